//! The bounded queue of a slot, shared by the threads of the variant in service.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;

use super::error::Refusal;
use super::job::Job;
use super::variant::Variant;

#[derive(Debug)]
pub(super) struct Queue {
    state: Mutex<State>,
    wake: Condvar,
    capacity: usize,
}

#[derive(Debug, Default)]
struct State {
    jobs: VecDeque<Job>,
    /// Only threads of the variant with this generation take jobs.
    generation: u64,
    /// Requests that the variant of this generation runs now.
    running: usize,
    closed: bool,
}

impl Queue {
    pub fn new(capacity: usize) -> Self {
        Self { state: Mutex::default(), wake: Condvar::new(), capacity: capacity.max(1) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code that can panic runs under this lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Requests that wait, and those that run.
    pub fn pending(&self) -> (usize, usize) {
        let state = self.lock();
        (state.jobs.len(), state.running)
    }

    /// Takes `job` in, unless there is no place or no hope. `current` is the variant in service; it
    /// changes only under this queue's lock.
    pub fn push(&self, job: Job, current: &ArcSwap<Variant>, now: Instant) -> Result<(), Refusal> {
        let mut state = self.lock();
        if state.closed {
            return Err(Refusal::Closing);
        }
        let variant = current.load();
        let service = variant.service_time();
        let ahead = state.jobs.len() + state.running;
        let wait = wait_for(ahead, variant.instances, service);
        if state.jobs.len() >= self.capacity {
            return Err(Refusal::QueueFull { capacity: self.capacity, retry_after: wait });
        }
        // An idle instance always tries: its time is what keeps the estimate honest.
        if let Some(deadline) = job.deadline
            && ahead >= variant.instances
            && now + wait + service > deadline
        {
            return Err(Refusal::DeadlineUnreachable {
                estimate: wait + service + now.saturating_duration_since(job.request.arrived),
                allowed: deadline.saturating_duration_since(job.request.arrived),
                retry_after: wait,
            });
        }
        state.jobs.push_back(job);
        drop(state);
        self.wake.notify_one();
        Ok(())
    }

    /// Removes a job that nobody waits for; `false` where it has left the queue already.
    pub fn forget(&self, id: u64) -> bool {
        let mut state = self.lock();
        let place = state.jobs.iter().position(|job| job.id == id);
        let job = place.and_then(|place| state.jobs.remove(place));
        drop(state);
        job.is_some()
    }

    /// The next job for a thread of `variant`; `None` when the thread shall end. The caller reports
    /// every job that it got by [`Queue::finished`].
    pub fn next(&self, variant: &Variant) -> Option<Job> {
        let mut state = self.lock();
        loop {
            let superseded = state.generation > variant.generation;
            if superseded || variant.abandoned.load(Ordering::Relaxed) {
                return None;
            }
            if state.generation == variant.generation {
                if let Some(job) = state.jobs.pop_front() {
                    state.running += 1;
                    return Some(job);
                }
                if state.closed {
                    return None;
                }
            }
            state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// A thread of `variant` has answered its job.
    pub fn finished(&self, variant: &Variant) {
        let mut state = self.lock();
        if state.generation == variant.generation {
            state.running -= 1;
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
        state.running = 0;
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
        let dropped = if abandon { state.jobs.drain(..).collect() } else { Vec::new() };
        drop(state);
        self.wake.notify_all();
        dropped
    }
}

/// How long a request waits behind `ahead` others.
fn wait_for(ahead: usize, instances: usize, service: Duration) -> Duration {
    let ahead = u32::try_from(ahead).unwrap_or(u32::MAX);
    let instances = u32::try_from(instances.max(1)).unwrap_or(u32::MAX);
    service.saturating_mul(ahead) / instances
}
