//! What a slot observes: exact counters, a latency histogram, and a bounded ring of recent requests
//! for windowed percentiles.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::limits::OBSERVATIONS;
use crate::units::Percentile;

use super::job::Request;
use super::variant::nanos;

/// Upper bounds of the latency histogram's buckets, microseconds; the last bucket has no bound.
pub const LATENCY_BUCKETS_US: [u64; 18] = [
    100, 250, 500, 1_000, 2_000, 3_000, 5_000, 7_500, 10_000, 15_000, 20_000, 30_000, 50_000,
    75_000, 100_000, 250_000, 500_000, 1_000_000,
];

/// Counts since the start. All durations are sums over requests.
#[derive(Debug, Default)]
pub struct Counters {
    success: AtomicU64,
    failure: AtomicU64,
    non_finite: AtomicU64,
    executions: AtomicU64,
    cancelled: AtomicU64,
    input_ns: AtomicU64,
    queue_ns: AtomicU64,
    compute_ns: AtomicU64,
    output_ns: AtomicU64,
    request_ns: AtomicU64,
    failed_ns: AtomicU64,
    last_ms: AtomicU64,
    /// Runs by the number of their requests; at most as many as may run together.
    batches: Mutex<BTreeMap<usize, BatchTimes>>,
}

/// A copy of [`Counters`] at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Totals {
    /// Requests that were answered.
    pub success: u64,
    /// Requests that a session started and did not finish: error or panic.
    pub failure: u64,
    /// Answers on probation with a value that is not finite (they count as success, too).
    pub non_finite: u64,
    /// Runs of a session, failed ones included.
    pub executions: u64,
    /// Requests whose client went away before they were run.
    pub cancelled: u64,
    /// Time in which inputs were read out of bodies, successful requests.
    pub input: Duration,
    /// Time in the queue, successful requests.
    pub queue: Duration,
    /// Time in the session, successful requests; each that runs with others is told the whole run.
    pub compute: Duration,
    /// Time in which outputs were written into bodies, successful requests.
    pub output: Duration,
    /// Arrival to the answer standing ready, successful requests: the sum of the four.
    pub request: Duration,
    /// Arrival to failure, failed requests.
    pub failed: Duration,
    /// Wall clock of the last run, milliseconds since 1970; 0 before the first.
    pub last_ms: u64,
}

/// Runs that answered the same number of requests each, and what they took together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BatchTimes {
    pub runs: u64,
    /// Inputs put together.
    pub input: Duration,
    /// In the runtime.
    pub compute: Duration,
    /// Outputs taken apart.
    pub output: Duration,
}

/// The times of one request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Times {
    pub input: Duration,
    pub queue: Duration,
    pub compute: Duration,
    /// Arrival to the end of the run.
    pub request: Duration,
}

impl Times {
    /// Of a request whose run began at `start` and took `compute`.
    pub fn of(request: &Request, start: Instant, compute: Duration) -> Self {
        let waited = start.saturating_duration_since(request.arrived);
        let (input, queue) = (request.decode, waited.saturating_sub(request.decode));
        Self { input, queue, compute, request: waited + compute }
    }
}

fn add(counter: &AtomicU64, duration: Duration) {
    counter.fetch_add(nanos(duration), Ordering::Relaxed);
}

fn one(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl Counters {
    /// A session ran, whatever came of it.
    pub(super) fn executed(&self) {
        one(&self.executions);
    }

    /// A run answered so many requests.
    pub(super) fn batch(&self, requests: usize, times: BatchTimes) {
        let mut batches = self.batches.lock().unwrap_or_else(PoisonError::into_inner);
        let sum = batches.entry(requests).or_default();
        sum.runs += times.runs;
        sum.input = sum.input.saturating_add(times.input);
        sum.compute = sum.compute.saturating_add(times.compute);
        sum.output = sum.output.saturating_add(times.output);
    }

    /// Runs that answered, by the number of their requests.
    pub fn batches(&self) -> BTreeMap<usize, BatchTimes> {
        self.batches.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn succeeded(&self, times: Times, wall_ms: u64) {
        one(&self.success);
        add(&self.input_ns, times.input);
        add(&self.queue_ns, times.queue);
        add(&self.compute_ns, times.compute);
        add(&self.request_ns, times.request);
        self.last_ms.store(wall_ms, Ordering::Relaxed);
    }

    /// An answer that was counted before has been written.
    pub(super) fn encoded(&self, took: Duration) {
        add(&self.output_ns, took);
        add(&self.request_ns, took);
    }

    pub(super) fn failed(&self, times: Times, wall_ms: u64) {
        one(&self.failure);
        add(&self.failed_ns, times.request);
        self.last_ms.store(wall_ms, Ordering::Relaxed);
    }

    pub(super) fn not_finite(&self) {
        one(&self.non_finite);
    }

    pub(super) fn cancelled(&self) {
        one(&self.cancelled);
    }

    /// The counts now.
    pub fn totals(&self) -> Totals {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let time = |counter: &AtomicU64| Duration::from_nanos(counter.load(Ordering::Relaxed));
        Totals {
            success: count(&self.success),
            failure: count(&self.failure),
            non_finite: count(&self.non_finite),
            executions: count(&self.executions),
            cancelled: count(&self.cancelled),
            input: time(&self.input_ns),
            queue: time(&self.queue_ns),
            compute: time(&self.compute_ns),
            output: time(&self.output_ns),
            request: time(&self.request_ns),
            failed: time(&self.failed_ns),
            last_ms: count(&self.last_ms),
        }
    }
}

/// A histogram over [`LATENCY_BUCKETS_US`] at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Histogram {
    /// Requests in each bucket (not cumulative); the last is everything above the last bound.
    pub buckets: [u64; LATENCY_BUCKETS_US.len() + 1],
    /// Sum of all latencies.
    pub sum: Duration,
}

#[derive(Debug, Default)]
struct LiveHistogram {
    buckets: [AtomicU64; LATENCY_BUCKETS_US.len() + 1],
    sum_ns: AtomicU64,
}

impl LiveHistogram {
    fn add(&self, duration: Duration) {
        let us = duration.as_micros();
        let bucket = LATENCY_BUCKETS_US.partition_point(|bound| u128::from(*bound) < us);
        one(&self.buckets[bucket]);
        add(&self.sum_ns, duration);
    }

    fn copy(&self) -> Histogram {
        let mut copy = Histogram::default();
        for (to, from) in copy.buckets.iter_mut().zip(&self.buckets) {
            *to = from.load(Ordering::Relaxed);
        }
        copy.sum = Duration::from_nanos(self.sum_ns.load(Ordering::Relaxed));
        copy
    }
}

#[derive(Debug, Clone, Copy)]
struct Sample {
    at: Instant,
    latency: Duration,
    alone: Option<Duration>,
}

/// What was observed of one variant.
#[derive(Debug, Default)]
pub struct Stats {
    /// Exact counts.
    pub counters: Counters,
    latency: LiveHistogram,
    queue: LiveHistogram,
    compute: LiveHistogram,
    recent: Mutex<VecDeque<Sample>>,
}

impl Stats {
    /// Takes in one answered request: when its answer was ready for the socket, how long after its
    /// arrival that was, how long the session took, and for how many requests together.
    pub(super) fn answered(
        &self,
        at: Instant,
        latency: Duration,
        compute: Duration,
        together: usize,
    ) {
        self.latency.add(latency);
        self.compute.add(compute);
        // What is promised is the time of a request that runs alone.
        let alone = (together == 1).then_some(compute);
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        if recent.len() == OBSERVATIONS {
            recent.pop_front();
        }
        recent.push_back(Sample { at, latency, alone });
    }

    /// How long an answered request had waited in the queue.
    pub(super) fn queued(&self, time: Duration) {
        self.queue.add(time);
    }

    /// Latencies since the start.
    pub fn histogram(&self) -> Histogram {
        self.latency.copy()
    }

    /// Times in the queue since the start.
    pub fn queue_histogram(&self) -> Histogram {
        self.queue.copy()
    }

    /// Times in the session since the start.
    pub fn compute_histogram(&self) -> Histogram {
        self.compute.copy()
    }

    /// The requests answered since `since`, as far as the ring reaches back.
    pub fn window(&self, since: Instant) -> Window {
        let recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        // Instances finish out of order by a hair, so the whole ring is looked through.
        let of_window = || recent.iter().filter(|sample| sample.at >= since);
        Window {
            latency: of_window().map(|sample| sample.latency).collect(),
            compute: of_window().filter_map(|sample| sample.alone).collect(),
        }
    }
}

/// The requests of a stretch of time.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Window {
    /// Arrival to answer ready, in the order of the answers.
    pub latency: Vec<Duration>,
    /// Time in the session, in the same order, of those that ran alone: what is promised of a variant is the
    /// time of one request.
    pub compute: Vec<Duration>,
}

impl Window {
    /// Number of requests.
    pub fn len(&self) -> usize {
        self.latency.len()
    }

    /// Whether no request was answered.
    pub fn is_empty(&self) -> bool {
        self.latency.is_empty()
    }

    /// Client-visible latency at a percentile; `None` when empty.
    pub fn latency_at(&self, percentile: Percentile) -> Option<Duration> {
        percentile_of(&self.latency, percentile)
    }

    /// Compute time at a percentile; `None` when empty.
    pub fn compute_at(&self, percentile: Percentile) -> Option<Duration> {
        percentile_of(&self.compute, percentile)
    }
}

fn percentile_of(durations: &[Duration], percentile: Percentile) -> Option<Duration> {
    let mut sorted = durations.to_vec();
    sorted.sort_unstable();
    percentile.of(&sorted)
}
