//! The queue against one that sorts and adds up all anew at every step, and in virtual time with runs that take
//! as long as expected.

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;

use super::site::{Fate, Runs, simulate};
use super::*;
use crate::limits::QUEUE_PATIENCE;

const MS: Duration = Duration::from_millis(1);

fn asked(id: u64, priority: u64, arrived: Duration, timeout: Option<Duration>) -> Asked {
    let deadline = timeout.map(|timeout| arrived + timeout);
    Asked { id, level: Level::of(priority), arrived, deadline, kind: None, rows: 1 }
}

/// So many sessions that take so long, one request at a time.
fn server(instances: usize, service: Duration) -> Server {
    Server { instances, service: ServiceTime::new(Some(service)), batching: Batching::OFF }
}

fn ten() -> Server {
    server(1, 10 * MS)
}

/// The requests of the next run.
fn take(queue: &mut Queue<u64>, server: &Server, now: Duration) -> (Vec<u64>, Option<(Run, u64)>) {
    let Taken { expired, next } = queue.take(server, now, false);
    match next {
        Next::Run { run, jobs } => {
            assert_eq!(jobs.len(), 1);
            (expired, Some((run, jobs[0])))
        }
        Next::Nothing => (expired, None),
        Next::Hold { .. } => panic!("nobody asked for batches"),
    }
}

/// A queue of one session with a run that has just begun.
fn busy(capacity: usize) -> Queue<u64> {
    let mut queue = Queue::new(capacity);
    queue.offer(asked(0, 0, Duration::ZERO, None), 0, &ten(), Duration::ZERO).unwrap();
    assert_eq!(take(&mut queue, &ten(), Duration::ZERO).1.unwrap().1, 0);
    queue
}

fn offer(queue: &mut Queue<u64>, id: u64, priority: u64, ms: u32) -> Result<Vec<u64>, Refused> {
    queue.offer(asked(id, priority, Duration::ZERO, Some(ms * MS)), id, &ten(), Duration::ZERO)
}

fn order(queue: &mut Queue<u64>) -> Vec<u64> {
    std::iter::from_fn(|| take(queue, &ten(), Duration::ZERO).1.map(|(_, id)| id)).collect()
}

#[test]
fn priority_goes_before_deadline_and_deadline_before_arrival() {
    let mut queue = busy(9);
    for (id, priority, ms) in
        [(1, 0, 900), (2, 3, 300), (3, 2, 500), (4, 1, 800), (5, 0, 500), (6, 1, 700)]
    {
        assert_eq!(offer(&mut queue, id, priority, ms), Ok(vec![]));
    }
    assert_eq!(order(&mut queue), [6, 4, 3, 5, 1, 2]);
}

#[test]
fn who_would_be_late_or_make_others_late_is_refused() {
    let mut queue = busy(9);
    let late = Refused::Late { takes: 20 * MS, wait: 10 * MS };
    assert_eq!(offer(&mut queue, 1, 0, 19), Err(late), "10 ms of the run, 10 of its own");
    assert_eq!(offer(&mut queue, 1, 0, 35), Ok(vec![]));
    assert_eq!(offer(&mut queue, 2, 0, 20), Ok(vec![]), "it overtakes, and the other has time");
    assert_eq!(offer(&mut queue, 3, 0, 20), Err(Refused::Late { takes: 30 * MS, wait: 20 * MS }));
    assert_eq!(offer(&mut queue, 3, 0, 34), Err(Refused::Overbooked { wait: 20 * MS }));
    assert_eq!(offer(&mut queue, 4, 1, 25), Ok(vec![2]), "it has no time for another run");
    let overbooked = Refused::Overbooked { wait: 10 * MS };
    assert_eq!(offer(&mut queue, 5, 1, 22), Err(overbooked), "equals make no way");
    assert_eq!(order(&mut queue), [4, 1]);
}

#[test]
fn a_full_queue_has_a_place_for_a_higher_priority_only() {
    let mut queue = busy(2);
    assert_eq!(offer(&mut queue, 1, 0, 900), Ok(vec![]));
    assert_eq!(offer(&mut queue, 2, 0, 800), Ok(vec![]));
    assert_eq!(offer(&mut queue, 3, 0, 700), Err(Refused::Full { wait: 30 * MS }));
    assert_eq!(offer(&mut queue, 4, 1, 900), Ok(vec![1]), "the last makes way");
    assert_eq!(offer(&mut queue, 5, 1, 800), Ok(vec![2]));
    assert_eq!(offer(&mut queue, 6, 1, 700), Err(Refused::Full { wait: 30 * MS }));
    assert_eq!(order(&mut queue), [5, 4]);
}

#[test]
fn who_has_no_deadline_makes_no_way_and_goes_first_once_it_is_overdue() {
    let mut queue = busy(2);
    let patient = asked(1, 9, Duration::ZERO, None);
    queue.offer(patient, 1, &ten(), Duration::ZERO).unwrap();
    queue.offer(asked(2, 9, MS, None), 2, &ten(), MS).unwrap();
    assert!(matches!(offer(&mut queue, 3, 1, 900), Err(Refused::Full { .. })));
    assert_eq!(queue.remove(2), Some(2));
    let due = QUEUE_PATIENCE;
    let hurried = |id, now| asked(id, 1, now, Some(Duration::from_secs(60)));
    let now = due - 25 * MS;
    let refused = queue.offer(hurried(4, now), 4, &ten(), now).unwrap_err();
    assert!(matches!(refused, Refused::Overbooked { .. }), "{refused:?}");
    queue.offer(hurried(5, Duration::ZERO), 5, &ten(), Duration::ZERO).unwrap();
    assert_eq!(take(&mut queue, &ten(), due).1.unwrap().1, 1);
    assert_eq!(take(&mut queue, &ten(), due).1.unwrap().1, 5);
}

#[test]
fn what_expired_is_handed_out_and_the_rest_is_run() {
    let mut queue = busy(9);
    offer(&mut queue, 1, 0, 30).unwrap();
    offer(&mut queue, 2, 0, 90).unwrap();
    let (expired, run) = take(&mut queue, &ten(), 31 * MS);
    assert_eq!((expired, run.unwrap().1), (vec![1], 2));
    assert_eq!((queue.waiting(), queue.running()), (0, 2));
    queue.forget_running();
    assert_eq!(queue.running(), 0);
}

/// The same queue, written down as plainly as can be.
struct Naive {
    capacity: usize,
    server: Server,
    waiting: Vec<Asked>,
    /// When each run began.
    running: BTreeMap<u64, Duration>,
}

pub fn due(asked: &Asked) -> Duration {
    asked.deadline.unwrap_or(asked.arrived + QUEUE_PATIENCE)
}

impl Naive {
    fn sorted(mut list: Vec<Asked>) -> Vec<Asked> {
        list.sort_by_key(|asked| (asked.level, due(asked), asked.id));
        list
    }

    /// When each of `list` is answered.
    fn answers(&self, list: &[Asked], now: Duration) -> BTreeMap<u64, Duration> {
        let service = self.server.service.upper(1);
        let left = |begun: &Duration| {
            let (elapsed, end) = (now - *begun, *begun + service);
            if end > now { end - now } else { (elapsed - service).min(service) }
        };
        let mut work: Duration = self.running.values().map(left).sum();
        let mut answers = BTreeMap::new();
        for asked in Self::sorted(list.to_vec()) {
            answers.insert(asked.id, now + work / self.server.instances as u32 + service);
            work += service;
        }
        answers
    }

    /// Those that make way, or `None` where it is refused.
    fn offer(&mut self, new: Asked, now: Duration) -> Option<Vec<u64>> {
        let mut list = self.waiting.clone();
        let mut out = Vec::new();
        if list.len() >= self.capacity {
            let last = Self::sorted(list.clone()).into_iter().rfind(|one| one.deadline.is_some());
            let last = last.filter(|last| last.level > new.level)?;
            list.retain(|one| one.id != last.id);
            out.push(last.id);
        }
        let idle = self.waiting.len() + self.running.len() < self.server.instances;
        let before = self.answers(&self.waiting, now);
        list.push(new);
        loop {
            if idle {
                break;
            }
            let after = self.answers(&list, now);
            if new.deadline.is_some_and(|deadline| after[&new.id] > deadline) {
                return None;
            }
            let pushed = Self::sorted(list.clone()).into_iter().find(|one| {
                one.id != new.id && before[&one.id] <= due(one) && after[&one.id] > due(one)
            });
            let Some(pushed) = pushed else { break };
            if pushed.level <= new.level || pushed.deadline.is_none() {
                return None;
            }
            out.push(pushed.id);
            list.retain(|one| one.id != pushed.id);
        }
        self.waiting = list;
        Some(out)
    }

    /// The expired, and who runs.
    fn take(&mut self, now: Duration) -> (Vec<u64>, Option<u64>) {
        let mut expired = Vec::new();
        self.waiting = Self::sorted(std::mem::take(&mut self.waiting));
        while let Some(deadline) = self.waiting.first().and_then(|one| one.deadline)
            && deadline < now
        {
            expired.push(self.waiting.remove(0).id);
        }
        let overdue = self.waiting.iter().filter(|one| one.deadline.is_none() && due(one) <= now);
        let first = overdue.min_by_key(|one| due(one)).or(self.waiting.first()).map(|one| one.id);
        self.waiting.retain(|one| Some(one.id) != first);
        (expired, first)
    }
}

#[derive(Debug, Clone)]
enum Step {
    Offer { priority: u64, timeout: Option<u64> },
    Take,
    Finish(usize),
    Remove(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let timeout = prop_oneof![1 => Just(None), 9 => (0u64..4000).prop_map(Some)];
    prop_oneof![
        6 => (0u64..4, timeout).prop_map(|(priority, timeout)| Step::Offer { priority, timeout }),
        3 => Just(Step::Take),
        2 => (0usize..4).prop_map(Step::Finish),
        1 => (0usize..9).prop_map(Step::Remove),
    ]
}

/// Runs that take as long as they are expected to, or so many times as long, in turn.
pub struct Fixed(pub Server, pub Vec<u32>);

impl Runs for Fixed {
    fn server(&self) -> Server {
        self.0
    }

    fn takes(&mut self, rows: usize) -> Duration {
        self.1.rotate_left(1);
        self.0.service.upper(rows) * self.1[0]
    }

    fn took(&mut self, _: usize, _: Duration) {}
}

proptest! {
    #[test]
    fn it_does_as_one_that_sorts_and_adds_up_at_every_step(
        steps in prop::collection::vec((0u64..300, step()), 1..80),
        (instances, service, capacity) in (1usize..4, 0u64..700, 1usize..12),
    ) {
        let server = server(instances, service as u32 * MS);
        let mut queue: Queue<u64> = Queue::new(capacity);
        let mut naive =
            Naive { capacity, server, waiting: Vec::new(), running: BTreeMap::new() };
        let mut runs: BTreeMap<u64, Run> = BTreeMap::new();
        let mut now = Duration::ZERO;
        for (id, (wait, step)) in steps.into_iter().enumerate() {
            now += wait as u32 * MS;
            match step {
                Step::Offer { priority, timeout } => {
                    let timeout = timeout.map(|ms| ms as u32 * MS);
                    let new = asked(id as u64, priority, now, timeout);
                    let before = naive.waiting.clone();
                    let offered = queue.offer(new, new.id, &server, now);
                    prop_assert_eq!(offered.clone().ok(), naive.offer(new, now), "{:?}", offered);
                    for out in offered.into_iter().flatten() {
                        let out = before.iter().find(|one| one.id == out).unwrap();
                        prop_assert!(out.level > new.level && out.deadline.is_some());
                    }
                }
                Step::Take if runs.len() < instances => {
                    let (expired, run) = take(&mut queue, &server, now);
                    let run = run.map(|(run, id)| {
                        runs.insert(id, run);
                        naive.running.insert(id, now);
                        id
                    });
                    prop_assert_eq!((expired, run), naive.take(now));
                }
                Step::Take => {}
                Step::Finish(which) => {
                    if let Some(id) = runs.keys().nth(which).copied() {
                        naive.running.remove(&id);
                        queue.finished(runs.remove(&id).unwrap());
                    }
                }
                Step::Remove(which) => {
                    let id = naive.waiting.get(which).map_or(9999, |one| one.id);
                    naive.waiting.retain(|one| one.id != id);
                    prop_assert_eq!(queue.remove(id), (id != 9999).then_some(id));
                }
            }
            prop_assert_eq!(queue.waiting(), naive.waiting.len());
            prop_assert_eq!(queue.running(), naive.running.len());
            prop_assert!(queue.waiting() <= capacity);
        }
        let rest = Naive::sorted(naive.waiting);
        prop_assert_eq!(queue.drain(), rest.iter().map(|one| one.id).collect::<Vec<_>>());
    }

    /// Whatever comes and overtakes: who is taken in is answered in time, and who has no deadline is not put
    /// off beyond its patience.
    #[test]
    fn who_is_taken_in_is_answered_in_time_where_runs_take_as_long_as_expected(
        gaps in prop::collection::vec((0u64..150, 0u64..4, 0u64..12_000), 1..200),
        (instances, service, capacity) in (1usize..4, 1u64..200, 1usize..40),
    ) {
        let server = server(instances, service as u32 * MS);
        let mut now = Duration::ZERO;
        let mut arrivals = Vec::new();
        for (id, (gap, priority, timeout)) in gaps.into_iter().enumerate() {
            now += gap as u32 * MS;
            let timeout = (timeout % 8 != 0).then_some(timeout as u32 * MS);
            arrivals.push(asked(id as u64, priority, now, timeout));
        }
        let fates = simulate(&arrivals, capacity, &mut Fixed(server, vec![1]));
        for (asked, fate) in arrivals.iter().zip(fates) {
            match fate {
                Fate::Refused(_) => {}
                Fate::Displaced => prop_assert!(asked.deadline.is_some()),
                Fate::Expired => prop_assert!(false, "{:?} was taken in and expired", asked),
                // Who finds a session idle is always tried.
                Fate::Answered { begun, .. } if begun == asked.arrived => {}
                Fate::Answered { ended, .. } => {
                    prop_assert!(ended <= due(asked), "{:?} ended at {:?}", asked, ended);
                }
            }
        }
    }

    /// However urgent the others and however wrong the estimate.
    #[test]
    fn who_has_no_deadline_waits_no_longer_than_its_patience_and_those_who_were_put_off_before(
        gaps in prop::collection::vec((0u64..300, 0u64..3, 0u64..3000), 1..250),
        times in prop::collection::vec(1u32..5, 1..20),
        (instances, service) in (1usize..3, 1u64..900),
    ) {
        let server = server(instances, service as u32 * MS);
        let mut now = Duration::ZERO;
        let mut arrivals = Vec::new();
        for (id, (gap, priority, timeout)) in gaps.into_iter().enumerate() {
            now += gap as u32 * MS;
            let timeout = (timeout % 8 != 0).then_some(timeout as u32 * MS);
            // Nobody is more patient and less important.
            let priority = if timeout.is_some() { priority } else { 9 };
            arrivals.push(asked(id as u64, priority, now, timeout));
        }
        let fates = simulate(&arrivals, 1000, &mut Fixed(server, times));
        let mut before = 0;
        for (asked, fate) in arrivals.iter().zip(fates).filter(|(one, _)| one.deadline.is_none()) {
            before += 1;
            let Fate::Answered { begun, .. } = fate else { panic!("{asked:?}: {fate:?}") };
            let latest = due(asked) + server.service.upper(1) * 5 * before;
            prop_assert!(begun <= latest, "{:?} began at {:?}", asked, begun);
        }
    }
}
