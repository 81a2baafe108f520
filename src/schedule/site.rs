//! A box in virtual time, for tests: sessions that take requests out of the queue and run them.

use std::time::Duration;

use super::{Asked, Next, Queue, Refused, Run, Server, Taken};

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    Refused(Refused),
    Displaced,
    Expired,
    /// In a run with others, of so many requests in all.
    Answered {
        begun: Duration,
        ended: Duration,
        together: usize,
    },
}

/// How long runs take, and what is expected of them.
pub trait Runs {
    fn server(&self) -> Server;
    /// How long a run of so many rows takes.
    fn takes(&mut self, rows: usize) -> Duration;
    /// A run took so long.
    fn took(&mut self, rows: usize, took: Duration);
}

struct Busy {
    until: Duration,
    begun: Duration,
    run: Run,
    indices: Vec<usize>,
}

/// Offers `arrivals` (in the order of their times, `id` being the index) to a queue with room for `capacity`,
/// and runs it empty.
pub fn simulate(arrivals: &[Asked], capacity: usize, runs: &mut impl Runs) -> Vec<Fate> {
    let mut queue: Queue<usize> = Queue::new(capacity);
    let mut fates = vec![None; arrivals.len()];
    let mut busy: Vec<Busy> = Vec::new();
    let mut hold = None;
    let mut coming = arrivals.iter().enumerate().peekable();
    let rows = |indices: &[usize]| indices.iter().map(|index| arrivals[*index].rows).sum();
    loop {
        let end = busy.iter().map(|busy| busy.until).min();
        let arrival = coming.peek().map(|(_, asked)| asked.arrived);
        let Some(now) = end.into_iter().chain(arrival).chain(hold).min() else { break };
        if end == Some(now) {
            let place = busy.iter().position(|busy| busy.until == now).unwrap();
            let Busy { begun, run, indices, .. } = busy.swap_remove(place);
            queue.finished(run);
            runs.took(rows(&indices), now - begun);
            let fate = Fate::Answered { begun, ended: now, together: indices.len() };
            indices.iter().for_each(|index| fates[*index] = Some(fate));
        } else if arrival == Some(now)
            && let Some((index, asked)) = coming.next()
        {
            match queue.offer(*asked, index, &runs.server(), now) {
                Ok(out) => out.into_iter().for_each(|out| fates[out] = Some(Fate::Displaced)),
                Err(refused) => fates[index] = Some(Fate::Refused(refused)),
            }
        }
        hold = None;
        while busy.len() < runs.server().instances {
            let Taken { expired, next } = queue.take(&runs.server(), now, false);
            expired.into_iter().for_each(|index| fates[index] = Some(Fate::Expired));
            match next {
                Next::Run { run, jobs: indices } => {
                    let until = now + runs.takes(rows(&indices));
                    busy.push(Busy { until, begun: now, run, indices });
                }
                Next::Hold { until } => {
                    assert!(until > now, "a wait has an end");
                    hold = Some(until);
                    break;
                }
                Next::Nothing => break,
            }
        }
    }
    fates.into_iter().map(|fate| fate.expect("every request comes to an end")).collect()
}
