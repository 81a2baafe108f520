//! A box in virtual time, for tests: sessions that take requests out of the queue and run them.

use std::time::Duration;

use super::{Asked, Queue, Refused, Run, Server, Taken};

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    Refused(Refused),
    Displaced,
    Expired,
    Answered { begun: Duration, ended: Duration },
}

/// How long runs take, and what is expected of them.
pub trait Runs {
    fn server(&self) -> Server;
    /// How long a run of this request takes.
    fn takes(&mut self, asked: &Asked) -> Duration;
    /// A run took so long.
    fn took(&mut self, took: Duration);
}

struct Busy {
    until: Duration,
    begun: Duration,
    run: Run,
    index: usize,
}

/// Offers `arrivals` (in the order of their times, `id` being the index) to a queue with room for `capacity`, and
/// runs it empty.
pub fn simulate(arrivals: &[Asked], capacity: usize, runs: &mut impl Runs) -> Vec<Fate> {
    let mut queue: Queue<usize> = Queue::new(capacity);
    let mut fates = vec![None; arrivals.len()];
    let mut busy: Vec<Busy> = Vec::new();
    let mut coming = arrivals.iter().enumerate().peekable();
    loop {
        let end = busy.iter().map(|busy| busy.until).min();
        let arrival = coming.peek().map(|(_, asked)| asked.arrived);
        let Some(now) = end.into_iter().chain(arrival).min() else { break };
        if end == Some(now) {
            let place = busy.iter().position(|busy| busy.until == now).unwrap();
            let Busy { begun, run, index, .. } = busy.swap_remove(place);
            queue.finished(run);
            runs.took(now - begun);
            fates[index] = Some(Fate::Answered { begun, ended: now });
        } else if let Some((index, asked)) = coming.next() {
            match queue.offer(*asked, index, &runs.server(), now) {
                Ok(out) => out.into_iter().for_each(|out| fates[out] = Some(Fate::Displaced)),
                Err(refused) => fates[index] = Some(Fate::Refused(refused)),
            }
        }
        while busy.len() < runs.server().instances {
            let Taken { expired, job } = queue.take(&runs.server(), now);
            expired.into_iter().for_each(|index| fates[index] = Some(Fate::Expired));
            let Some((run, index)) = job else { break };
            let until = now + runs.takes(&arrivals[index]);
            busy.push(Busy { until, begun: now, run, index });
        }
    }
    fates.into_iter().map(|fate| fate.expect("every request comes to an end")).collect()
}
