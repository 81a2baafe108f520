//! One variant as a slot sees it, and the seams behind which sessions and observers stand.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use crate::onnx::{ExecError, Tensor};
use crate::schedule::{Batching, Server, ServiceTime};
use crate::units::{Digest, Version};

use super::shapes::Shapes;
use super::stats::Stats;

/// Ends a run that is under way.
pub type Ender = Box<dyn Fn() + Send>;

/// A loaded session that one thread runs: `shell::engine`'s live session, or a fake in tests.
pub trait Runner: Send {
    /// Runs once and returns the outputs named by `wanted`, in that order. Strings travel as the
    /// protocol's BYTES elements: 4-byte little-endian length, then the bytes.
    ///
    /// # Errors
    /// Where the runtime fails; the slot hands the words to the client and counts the failure.
    fn run(
        &mut self,
        inputs: &[(&str, &Tensor)],
        wanted: &[&str],
    ) -> Result<Vec<Tensor>, ExecError>;

    /// How many rows of several requests one run may take: more than 1 only where rows have nothing to do with
    /// one another.
    fn batching(&self) -> Batching {
        Batching::OFF
    }

    /// The CPU that the thread which runs it is bound to; `None`: it is not bound.
    fn cpu(&self) -> Option<usize> {
        None
    }

    /// What ends the next run from another thread, as far as that is possible.
    fn ender(&mut self) -> Option<Ender> {
        None
    }

    /// After a run that failed: whether every other will, since what runs the model is gone.
    fn is_lost(&self) -> bool {
        false
    }

    /// The input shapes that it may be asked for, where there is a bound on them.
    fn shapes(&self) -> Option<Arc<Shapes>> {
        None
    }
}

/// Any function of the right shape is a session: the seam for tests.
impl<F> Runner for F
where
    F: FnMut(&[(&str, &Tensor)], &[&str]) -> Result<Vec<Tensor>, ExecError> + Send,
{
    fn run(
        &mut self,
        inputs: &[(&str, &Tensor)],
        wanted: &[&str],
    ) -> Result<Vec<Tensor>, ExecError> {
        self(inputs, wanted)
    }
}

/// What a variant is and promises.
#[derive(Debug, Clone, PartialEq)]
pub struct VariantInfo {
    /// `dense`, or the rung's name such as `r0.75`.
    pub name: String,
    /// BLAKE3 of the variant's file.
    pub digest: Digest,
    /// Measured latency relative to dense; 1 for dense.
    pub ratio: f64,
    /// Agreement with dense, 0 to 1; 1 for dense.
    pub quality: f64,
    /// Promised compute time of one request (the manifest's p50), where it is known.
    pub promised: Option<Duration>,
}

/// A variant that is, or was, in service.
#[derive(Debug)]
pub struct Variant {
    pub(super) info: VariantInfo,
    pub(super) generation: u64,
    pub(super) instances: usize,
    batching: Batching,
    /// Its batches fail where its requests do not.
    unbatched: AtomicBool,
    pub(super) stats: Arc<Stats>,
    probation: AtomicBool,
    /// Set where publishing failed half-way: threads that were started already end.
    pub(super) abandoned: AtomicBool,
    /// Why its sessions can run nothing any more.
    lost: OnceLock<String>,
    shapes: Option<Arc<Shapes>>,
    /// Compute time of one request.
    service: Mutex<ServiceTime>,
}

impl Variant {
    pub(super) fn new(
        info: VariantInfo,
        generation: u64,
        sessions: &[Box<dyn Runner>],
        stats: Arc<Stats>,
        on_probation: bool,
    ) -> Self {
        let service = Mutex::new(ServiceTime::new(info.promised));
        let batching = sessions.iter().map(|session| session.batching());
        let batching = batching.min_by_key(|batching| batching.rows).unwrap_or(Batching::OFF);
        Self {
            info,
            generation,
            instances: sessions.len(),
            batching,
            unbatched: AtomicBool::new(false),
            stats,
            probation: AtomicBool::new(on_probation),
            abandoned: AtomicBool::new(false),
            lost: OnceLock::new(),
            shapes: sessions.first().and_then(|session| session.shapes()),
            service,
        }
    }

    /// What the variant is and promises.
    pub fn info(&self) -> &VariantInfo {
        &self.info
    }

    /// What was observed of it. Kept by the slot under the variant's name, so that a variant which
    /// comes back into service goes on counting.
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// Number of threads, each with its own session.
    pub fn instances(&self) -> usize {
        self.instances
    }

    /// Grows by one with every publication in the slot.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// While on probation, outputs are searched for values that are not finite.
    pub fn set_probation(&self, on: bool) {
        self.probation.store(on, Ordering::Relaxed);
    }

    /// Whether the variant is on probation.
    pub fn on_probation(&self) -> bool {
        self.probation.load(Ordering::Relaxed)
    }

    /// Why its sessions can run nothing any more: it takes no request from then on, and what waits is kept for
    /// the variant that comes after it.
    pub fn lost(&self) -> Option<&str> {
        self.lost.get().map(String::as_str)
    }

    /// Takes in that a session of it can run nothing any more; whether that is news.
    pub(super) fn lose(&self, reason: String) -> bool {
        self.lost.set(reason).is_ok()
    }

    /// The input shapes that it may be asked for, where there is a bound on them.
    pub(super) fn shapes(&self) -> Option<&Shapes> {
        self.shapes.as_deref()
    }

    /// Recent compute time of one request: a moving mean over about eight requests, begun at what
    /// the variant promises. Zero where nothing is known yet.
    pub fn service_time(&self) -> Duration {
        self.service().mean()
    }

    fn service(&self) -> MutexGuard<'_, ServiceTime> {
        self.service.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn server(&self) -> Server {
        let (instances, service) = (self.instances, *self.service());
        Server { instances, service, batching: self.batching() }
    }

    pub(super) fn batching(&self) -> Batching {
        if self.unbatched.load(Ordering::Relaxed) { Batching::OFF } else { self.batching }
    }

    pub(super) fn stop_batching(&self) {
        self.unbatched.store(true, Ordering::Relaxed);
    }

    pub(super) fn observe_compute(&self, rows: usize, compute: Duration) {
        self.service().observe(rows, compute);
    }
}

pub(super) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// What went wrong with a variant in service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// The runtime returned an error.
    Error(String),
    /// The runtime panicked.
    Panic(String),
    /// An output has values that are not finite (looked for on probation only).
    NonFinite {
        /// Name of the output.
        output: String,
    },
}

/// Tells the agent of a fault at once. Notices are dropped while the agent is behind; the counters
/// of [`Stats`] stay exact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    pub model: String,
    pub version: Version,
    /// Name of the variant.
    pub variant: String,
    /// Which publication of it.
    pub generation: u64,
    pub fault: Fault,
}

/// Is shown some answered requests with their answers. What it is given is not copied: it pins the request's
/// body and the run's outputs until it is dropped.
pub trait Witness: Send + Sync {
    /// Whether the next answer of `variant` is to be shown. Asked on a session's thread while the client still
    /// waits: it must be quick. `waiting` counts the requests that wait for a session.
    fn wants(&self, variant: &Variant, waiting: &dyn Fn() -> usize) -> bool;

    /// The request's inputs, and its outputs by the names in `wanted`. Called after the answer has gone.
    fn shown(
        &self,
        variant: &Variant,
        inputs: &[(String, Tensor)],
        wanted: &[String],
        outputs: Vec<Tensor>,
    );
}

/// Is offered the inputs of answered requests. Called on a session's thread after the answer has
/// gone: it must be quick, and copies what it keeps (the tensors pin the whole request body).
pub trait Sampler: Send + Sync {
    /// One request's inputs by name, as the variant was given them.
    fn offer(&self, inputs: &[(String, Tensor)]);
}
