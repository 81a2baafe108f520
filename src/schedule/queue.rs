//! The queue: requests in their order, and what runs now.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::limits::QUEUE_PATIENCE;
use crate::units::Digest;

use super::batch::Batching;
use super::service::ServiceTime;

/// How urgent a request is: the lower goes first, as in Triton.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Level(u64);

impl Level {
    /// That of a request which says nothing, and the second of all: there is one above it for what is urgent,
    /// and any number below it.
    pub const DEFAULT: Self = Self(2);

    /// The protocol's `priority`: 1 is the highest, 0 the default.
    pub fn of(priority: u64) -> Self {
        if priority == 0 { Self::DEFAULT } else { Self(priority) }
    }
}

/// A request that asks to be taken in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asked {
    /// Its own; among equals the lower goes first.
    pub id: u64,
    pub level: Level,
    pub arrived: Duration,
    /// When its answer is due at the latest.
    pub deadline: Option<Duration>,
    /// What it may run together with: requests of the same kind. `None`: it runs alone.
    pub kind: Option<Digest>,
    /// Rows of its inputs; 1 where the model has no such axis.
    pub rows: usize,
}

impl Asked {
    fn place(&self) -> Place {
        let due = self.deadline.unwrap_or_else(|| self.arrived.saturating_add(QUEUE_PATIENCE));
        Place { level: self.level, due, id: self.id }
    }
}

/// Who takes requests out of the queue.
#[derive(Debug, Clone, Copy)]
pub struct Server {
    /// Sessions, each with a run at a time; at least 1.
    pub instances: usize,
    /// How long a run takes.
    pub service: ServiceTime,
    /// How many rows may run together.
    pub batching: Batching,
}

impl Server {
    /// How long the sessions take for `work` together.
    pub(super) fn share(&self, work: Duration) -> Duration {
        work / u32::try_from(self.instances.max(1)).unwrap_or(u32::MAX)
    }
}

/// Why a request is not taken in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// No place is left. `wait` is how long those before it take.
    Full { wait: Duration },
    /// Its answer would come after its deadline: `takes` from now, of which it would wait for `wait`.
    Late { takes: Duration, wait: Duration },
    /// One that was taken in before would miss its deadline.
    Overbooked { wait: Duration },
}

/// A place in the order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub level: Level,
    pub due: Duration,
    pub id: u64,
}

#[derive(Debug)]
pub(super) struct Waiting<T> {
    pub has_deadline: bool,
    /// When it was taken in.
    pub since: Duration,
    pub kind: Option<Digest>,
    pub rows: usize,
    job: T,
}

impl<T> Waiting<T> {
    /// How long it takes alone.
    pub fn takes(&self, server: &Server) -> Duration {
        server.service.upper(self.rows)
    }
}

/// What a session runs now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Running {
    run: Run,
    begun: Duration,
    takes: Duration,
    requests: usize,
}

impl Running {
    /// How long it still takes. One that is late is expected to be late by as much again.
    fn remaining(&self, now: Duration) -> Duration {
        let elapsed = now.saturating_sub(self.begun);
        match self.takes.checked_sub(elapsed) {
            Some(left) if !left.is_zero() => left,
            Some(_) | None => elapsed.saturating_sub(self.takes).min(self.takes),
        }
    }
}

/// One run of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run(u64);

/// What a session that is free gets.
#[derive(Debug, PartialEq, Eq)]
pub struct Taken<T> {
    /// Requests whose deadline has passed while they waited: not to be run.
    pub expired: Vec<T>,
    pub next: Next<T>,
}

/// What a session does next.
#[derive(Debug, PartialEq, Eq)]
pub enum Next<T> {
    /// Nothing waits.
    Nothing,
    /// All that waits makes a batch that is not full: until then, or until something changes, more may join.
    Hold { until: Duration },
    /// To be run, in one run where they are several, which is to be given to [`Queue::finished`].
    Run { run: Run, jobs: Vec<T> },
}

/// Requests of one model that wait, and those that run.
#[derive(Debug)]
pub struct Queue<T> {
    capacity: usize,
    pub(super) waiting: BTreeMap<Place, Waiting<T>>,
    /// How many of them have no deadline.
    unhurried: usize,
    /// How many of them have so many rows.
    sizes: BTreeMap<usize, usize>,
    running: Vec<Running>,
    runs: u64,
}

impl<T> Queue<T> {
    /// An empty queue with room for `capacity` requests that wait, at least 1.
    pub fn new(capacity: usize) -> Self {
        let capacity = capacity.max(1);
        let (waiting, sizes) = (BTreeMap::new(), BTreeMap::new());
        Self { capacity, waiting, unhurried: 0, sizes, running: Vec::new(), runs: 0 }
    }

    /// Most requests that may wait.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Requests that wait.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Requests that run.
    pub fn running(&self) -> usize {
        self.running.iter().map(|running| running.requests).sum()
    }

    /// How long the oldest run has been under way.
    pub fn longest(&self, now: Duration) -> Option<Duration> {
        self.running.iter().map(|running| now.saturating_sub(running.begun)).max()
    }

    /// Takes a request in; gives back those of lower priority that make way for it and are to be refused.
    ///
    /// # Errors
    /// Where it is refused itself; the queue is as it was.
    pub fn offer(
        &mut self,
        asked: Asked,
        job: T,
        server: &Server,
        now: Duration,
    ) -> Result<Vec<T>, Refused> {
        let place = asked.place();
        let own = server.service.upper(asked.rows);
        let all = self.left(now).saturating_add(self.work(server));
        let mut making_way = Vec::new();
        if self.waiting.len() >= self.capacity {
            let last = self.waiting.iter().rev().find(|(_, waiting)| waiting.has_deadline);
            match last.filter(|(last, _)| last.level > place.level) {
                Some((last, _)) => making_way.push(*last),
                None => return Err(Refused::Full { wait: server.share(all) }),
            }
        }
        let behind = self.waiting.range(place..).map(|(_, waiting)| waiting.takes(server));
        let ahead = all.saturating_sub(behind.fold(Duration::ZERO, Duration::saturating_add));
        let idle = self.waiting.len() + self.running.len() < server.instances;
        if !idle {
            let wait = server.share(ahead);
            let takes = wait.saturating_add(own);
            if asked.deadline.is_some_and(|deadline| now.saturating_add(takes) > deadline) {
                return Err(Refused::Late { takes, wait });
            }
            self.make_way((place, own), ahead, server, now, &mut making_way)?;
        }
        let out = making_way.iter().filter_map(|place| self.pull(place)).collect();
        self.put(asked, job, now);
        Ok(out)
    }

    /// Takes back a request that was taken out and is not answered: it has been let in before, and is not asked
    /// for its place or its chances again.
    pub fn put_back(&mut self, asked: Asked, job: T, now: Duration) {
        self.put(asked, job, now);
    }

    fn put(&mut self, asked: Asked, job: T, now: Duration) {
        let (has_deadline, since) = (asked.deadline.is_some(), now);
        let (kind, rows) = (asked.kind, asked.rows);
        self.unhurried += usize::from(!has_deadline);
        *self.sizes.entry(rows).or_default() += 1;
        self.waiting.insert(asked.place(), Waiting { has_deadline, since, kind, rows, job });
    }

    /// How long what runs still takes.
    pub(super) fn left(&self, now: Duration) -> Duration {
        let left = self.running.iter().map(|running| running.remaining(now));
        left.fold(Duration::ZERO, Duration::saturating_add)
    }

    /// How long all that waits takes, one after the other.
    fn work(&self, server: &Server) -> Duration {
        let of_size = |(rows, count): (&usize, &usize)| {
            let count = u32::try_from(*count).unwrap_or(u32::MAX);
            server.service.upper(*rows).saturating_mul(count)
        };
        self.sizes.iter().map(of_size).fold(Duration::ZERO, Duration::saturating_add)
    }

    /// Finds those behind `place` whose answers would come in time without the new one, which takes `own`, and
    /// too late with it; `ahead` is the work before it. Batches are not counted on: they only take less.
    fn make_way(
        &self,
        (place, own): (Place, Duration),
        ahead: Duration,
        server: &Server,
        now: Duration,
        making_way: &mut Vec<Place>,
    ) -> Result<(), Refused> {
        let mut before = ahead;
        // Work of those that make way and stood before the one that is looked at.
        let mut freed = Duration::ZERO;
        for (at, waiting) in self.waiting.range(place..) {
            if freed >= own {
                break;
            }
            let takes = waiting.takes(server);
            let on_time = |work: Duration| {
                now.saturating_add(server.share(work)).saturating_add(takes) <= at.due
            };
            let then = before.saturating_add(own).saturating_sub(freed);
            if making_way.contains(at) {
                freed = freed.saturating_add(takes);
            } else if on_time(before) && !on_time(then) {
                if at.level <= place.level || !waiting.has_deadline {
                    return Err(Refused::Overbooked { wait: server.share(ahead) });
                }
                making_way.push(*at);
                freed = freed.saturating_add(takes);
            }
            before = before.saturating_add(takes);
        }
        Ok(())
    }

    fn pull(&mut self, place: &Place) -> Option<T> {
        let waiting = self.waiting.remove(place)?;
        self.unhurried -= usize::from(!waiting.has_deadline);
        if let Some(count) = self.sizes.get_mut(&waiting.rows) {
            *count -= 1;
            if *count == 0 {
                self.sizes.remove(&waiting.rows);
            }
        }
        Some(waiting.job)
    }

    /// What a free session is to do next. With `at_once` it does not wait for a batch to fill.
    pub fn take(&mut self, server: &Server, now: Duration, at_once: bool) -> Taken<T> {
        let mut expired = Vec::new();
        while let Some((place, waiting)) = self.waiting.first_key_value()
            && waiting.has_deadline
            && place.due < now
        {
            let place = *place;
            expired.extend(self.pull(&place));
        }
        let Some(batch) = self.next(now).and_then(|first| self.batch(first, server, now)) else {
            return Taken { expired, next: Next::Nothing };
        };
        if let Some(until) = batch.holds_until(server, self.waiting.len())
            && until > now
            && !at_once
        {
            return Taken { expired, next: Next::Hold { until } };
        }
        let jobs: Vec<T> = batch.places.iter().filter_map(|place| self.pull(place)).collect();
        let run = self.begin(batch.takes, jobs.len(), now);
        Taken { expired, next: Next::Run { run, jobs } }
    }

    /// Who goes first: of those without a deadline that were put off for too long the first, else the first
    /// of all.
    fn next(&self, now: Duration) -> Option<Place> {
        let overdue =
            |(place, waiting): &(&Place, &Waiting<T>)| !waiting.has_deadline && place.due <= now;
        let put_off = match self.unhurried {
            0 => None,
            _ => self.waiting.iter().filter(overdue).map(|(at, _)| *at).min_by_key(|at| at.due),
        };
        put_off.or_else(|| self.waiting.first_key_value().map(|(place, _)| *place))
    }

    fn begin(&mut self, takes: Duration, requests: usize, now: Duration) -> Run {
        self.runs += 1;
        let run = Run(self.runs);
        self.running.push(Running { run, begun: now, takes, requests });
        run
    }

    /// A session is free again. A run of before [`Queue::forget_running`] is not known any more.
    pub fn finished(&mut self, run: Run) {
        self.running.retain(|running| running.run != run);
    }

    /// What runs goes on elsewhere, and is not waited for here.
    pub fn forget_running(&mut self) {
        self.running.clear();
    }

    /// Takes out a request that still waits.
    pub fn remove(&mut self, id: u64) -> Option<T> {
        let place = *self.waiting.keys().find(|place| place.id == id)?;
        self.pull(&place)
    }

    /// Takes out all that wait, in their order.
    pub fn drain(&mut self) -> Vec<T> {
        self.unhurried = 0;
        self.sizes.clear();
        std::mem::take(&mut self.waiting).into_values().map(|waiting| waiting.job).collect()
    }
}
