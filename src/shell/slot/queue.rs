//! The bounded queue of a slot, shared by the threads of the variant in service: `schedule`'s under a lock,
//! with a clock.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;

use crate::schedule::{self, Asked, Next, Refused, Run, Taken};

use super::error::Refusal;
use super::job::Job;
use super::variant::Variant;

#[derive(Debug)]
pub(super) struct Queue {
    state: Mutex<State>,
    wake: Condvar,
    /// How many requests wait, for those who must not hold the lock.
    waiting: AtomicUsize,
    /// What the times of the schedule count from.
    origin: Instant,
}

#[derive(Debug)]
struct State {
    jobs: schedule::Queue<Job>,
    /// Only threads of the variant with this generation take jobs.
    generation: u64,
    closed: bool,
}

/// What a thread is to do.
#[derive(Debug)]
pub(super) struct Work {
    /// To be refused: their deadlines have passed.
    pub expired: Vec<Job>,
    /// To be refused: the slot is closed, and nothing is left that could run them.
    pub left: Vec<Job>,
    /// To be run, as one where they are several.
    pub run: Option<(Run, Vec<Job>)>,
}

impl Queue {
    pub fn new(capacity: usize) -> Self {
        let jobs = schedule::Queue::new(capacity);
        let state = Mutex::new(State { jobs, generation: 0, closed: false });
        let (wake, waiting) = (Condvar::new(), AtomicUsize::new(0));
        Self { state, wake, waiting, origin: Instant::now() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code that can panic runs under this lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, state: &State) {
        self.waiting.store(state.jobs.waiting(), Ordering::Relaxed);
    }

    /// Requests that wait; what changes at this moment may not count yet.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    fn time(&self, at: Instant) -> Duration {
        at.saturating_duration_since(self.origin)
    }

    /// Requests that wait, and those that run.
    pub fn pending(&self) -> (usize, usize) {
        let state = self.lock();
        (state.jobs.waiting(), state.jobs.running())
    }

    /// How long the oldest run of the variant in service has been under way.
    pub fn longest(&self, now: Instant) -> Option<Duration> {
        self.lock().jobs.longest(self.time(now))
    }

    /// Takes `job` in, unless there is no place or no hope; gives back those that make way for it, to be
    /// refused. `current` is the variant in service; it changes only under this queue's lock.
    pub fn push(
        &self,
        job: Job,
        current: &ArcSwap<Variant>,
        now: Instant,
    ) -> Result<Vec<Job>, Refusal> {
        let asked = self.asked(&job);
        let (arrived, deadline) = (job.request.arrived, job.deadline);
        let mut state = self.lock();
        if state.closed {
            return Err(Refusal::Closing);
        }
        let server = current.load().server();
        let capacity = state.jobs.capacity();
        let refusal = |refused| match refused {
            Refused::Full { wait } => Refusal::QueueFull { capacity, retry_after: wait },
            Refused::Late { takes, wait } => Refusal::DeadlineUnreachable {
                estimate: takes + now.saturating_duration_since(arrived),
                allowed: deadline.unwrap_or(now).saturating_duration_since(arrived),
                retry_after: wait,
            },
            Refused::Overbooked { wait } => Refusal::Overbooked { retry_after: wait },
        };
        let offered = state.jobs.offer(asked, job, &server, self.time(now));
        let out = offered.map_err(refusal)?;
        self.note(&state);
        drop(state);
        self.wake.notify_one();
        Ok(out)
    }

    fn asked(&self, job: &Job) -> Asked {
        Asked {
            id: job.id,
            level: job.level,
            arrived: self.time(job.request.arrived),
            deadline: job.deadline.map(|deadline| self.time(deadline)),
            kind: job.kind,
            rows: job.rows,
        }
    }

    /// Takes back a job that a session could not run, for the sessions of the next variant.
    ///
    /// # Errors
    /// Where the queue is closed: the job itself.
    pub fn put_back(&self, job: Job) -> Result<(), Box<Job>> {
        let asked = self.asked(&job);
        let mut state = self.lock();
        if state.closed {
            return Err(Box::new(job));
        }
        let now = self.time(Instant::now());
        state.jobs.put_back(asked, job, now);
        self.note(&state);
        drop(state);
        // The next variant may be there already, and threads of this one wait, too.
        self.wake.notify_all();
        Ok(())
    }

    /// Removes a job that nobody waits for; `false` where it has left the queue already.
    pub fn forget(&self, id: u64) -> bool {
        let mut state = self.lock();
        let job = state.jobs.remove(id);
        self.note(&state);
        job.is_some()
    }

    /// What a thread of `variant` is to do next; `None` when the thread shall end. The caller refuses what
    /// has expired, and reports every run that it got by [`Queue::finished`].
    pub fn next(&self, variant: &Variant) -> Option<Work> {
        let mut state = self.lock();
        loop {
            let superseded = state.generation > variant.generation;
            if superseded || variant.abandoned.load(Ordering::Relaxed) {
                return None;
            }
            let mut until = None;
            let own = state.generation == variant.generation;
            if own && variant.lost().is_some() {
                if state.closed {
                    let left = state.jobs.drain();
                    self.note(&state);
                    return (!left.is_empty()).then(|| Work {
                        expired: Vec::new(),
                        left,
                        run: None,
                    });
                }
            } else if own {
                let (now, at_once) = (self.time(Instant::now()), state.closed);
                let Taken { expired, next } = state.jobs.take(&variant.server(), now, at_once);
                self.note(&state);
                match next {
                    Next::Run { run, jobs } => {
                        if state.jobs.waiting() > 0 {
                            // Who was woken for what is left may have been this thread.
                            self.wake.notify_one();
                        }
                        return Some(Work { expired, left: Vec::new(), run: Some((run, jobs)) });
                    }
                    Next::Nothing | Next::Hold { .. } if !expired.is_empty() => {
                        return Some(Work { expired, left: Vec::new(), run: None });
                    }
                    Next::Hold { until: end } => until = Some(end.saturating_sub(now)),
                    Next::Nothing if state.closed => return None,
                    Next::Nothing => {}
                }
            }
            // What waits for a batch to fill waits in the queue: it can be forgotten, and goes to the next
            // variant with all the others.
            state = match until {
                Some(hold) => {
                    let woken = self.wake.wait_timeout(state, hold);
                    woken.unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.wake.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    /// A thread of `variant` has ended its run.
    pub fn finished(&self, variant: &Variant, run: Run) {
        let mut state = self.lock();
        if state.generation == variant.generation {
            state.jobs.finished(run);
        }
    }

    /// From now on only threads of generation `generation` take jobs. `switch` runs under the lock,
    /// so that no request is admitted on the figures of the wrong variant. `false` where closed.
    pub fn publish(&self, generation: u64, switch: impl FnOnce()) -> bool {
        let mut state = self.lock();
        if state.closed {
            return false;
        }
        state.generation = generation;
        state.jobs.forget_running();
        switch();
        drop(state);
        self.wake.notify_all();
        true
    }

    /// Wakes every thread to look at its variant's flags again.
    pub fn wake_all(&self) {
        drop(self.lock());
        self.wake.notify_all();
    }

    /// Admits nothing more; threads end once the queue is empty. With `abandon`, the requests that
    /// still wait are handed back for refusal.
    pub fn close(&self, abandon: bool) -> Vec<Job> {
        let mut state = self.lock();
        state.closed = true;
        let dropped = if abandon { state.jobs.drain() } else { Vec::new() };
        self.note(&state);
        drop(state);
        self.wake.notify_all();
        dropped
    }
}
