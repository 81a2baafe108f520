//! Spans of requests, swaps and builds, sent to an OpenTelemetry collector where the configuration names one.
//!
//! Whoever makes a span never waits: it goes into a bounded queue, or is dropped and counted. One thread sends
//! what has come together. A collector that does not answer costs one line in the log, until it answers again,
//! and a counter.

mod export;
mod otlp;

use std::hash::{BuildHasher, RandomState};
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::config::Collector;
use crate::limits;
use crate::protocol::TraceParent;

use export::{Errand, Exporter};

/// What a span was made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Something inside.
    Internal,
    /// Something that a client asked for.
    Server,
}

/// A value that a span tells.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    Text(String),
    Whole(u64),
    Number(f64),
}

/// Where a span stands in its trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    pub trace: [u8; 16],
    pub span: [u8; 8],
    pub parent: Option<[u8; 8]>,
}

/// Something that took time.
#[derive(Debug, Clone, PartialEq)]
pub struct Span {
    pub place: Place,
    pub name: &'static str,
    pub kind: Kind,
    pub begun: Instant,
    pub ended: Instant,
    pub told: Vec<(&'static str, Value)>,
    /// Where it failed.
    pub error: Option<String>,
}

/// What became of the spans.
#[derive(Debug, Default)]
struct Counts {
    exported: AtomicU64,
    dropped: AtomicU64,
    failed: AtomicU64,
}

/// A copy of the counts at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tally {
    /// The collector took them.
    pub exported: u64,
    /// They found no place in the queue.
    pub dropped: u64,
    /// The collector did not take them.
    pub failed: u64,
}

/// Makes places for spans and sends what is made of them.
pub struct Tracer {
    door: SyncSender<Errand>,
    random: Mutex<ChaCha8Rng>,
    /// Share of the requests without a trace of their client's that begin one.
    share: f64,
    counts: Arc<Counts>,
}

impl Tracer {
    /// Begins to send to `collector`.
    ///
    /// # Errors
    /// Where there is no thread for it.
    pub fn start(collector: &Collector, share: f64) -> io::Result<Self> {
        let (door, errands) = sync_channel(limits::SPANS_WAITING);
        let counts = Arc::new(Counts::default());
        let exporter = Exporter::new(collector.url(), Arc::clone(&counts));
        thread::Builder::new().name("spans".to_owned()).spawn(move || exporter.all(&errands))?;
        // The only randomness from the system that the standard library gives; these are no secrets.
        let mut seed = [0; 32];
        for part in seed.as_chunks_mut::<8>().0 {
            *part = RandomState::new().hash_one(Instant::now()).to_le_bytes();
        }
        let random = Mutex::new(ChaCha8Rng::from_seed(seed));
        Ok(Self { door, random, share, counts })
    }

    /// Where a request stands, if it is to be traced: as its client says, else by chance.
    pub fn of_request(&self, parent: Option<TraceParent>) -> Option<Place> {
        let mut random = self.random();
        match parent {
            Some(parent) => parent.sampled.then(|| Place {
                trace: parent.trace,
                span: id(&mut random),
                parent: Some(parent.span),
            }),
            None if random.random::<f64>() < self.share => Some(root(&mut random)),
            None => None,
        }
    }

    /// The beginning of a trace of its own.
    pub fn root(&self) -> Place {
        root(&mut self.random())
    }

    /// A place below `place`.
    pub fn below(&self, place: Place) -> Place {
        Place { span: id(&mut self.random()), parent: Some(place.span), ..place }
    }

    fn random(&self) -> std::sync::MutexGuard<'_, ChaCha8Rng> {
        self.random.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands a span over, or drops it where too many wait.
    pub fn send(&self, span: Span) {
        // Times of the monotonic clock, on the wall's as it goes now.
        let (now, wall) = (Instant::now(), SystemTime::now().duration_since(UNIX_EPOCH));
        let wall = wall.unwrap_or_default();
        let at = |at: Instant| wall.saturating_sub(now.saturating_duration_since(at));
        let times = (at(span.begun), at(span.ended));
        if self.door.try_send(Errand::Send(Box::new(span), times)).is_err() {
            self.counts.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub fn tally(&self) -> Tally {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let Counts { exported, dropped, failed } = &*self.counts;
        Tally { exported: read(exported), dropped: read(dropped), failed: read(failed) }
    }

    /// Waits until what was handed over is sent, but no longer than `patience`. Blocks.
    pub fn flush(&self, patience: Duration) {
        let (done, waits) = sync_channel(1);
        if self.door.try_send(Errand::Flush(done)).is_ok() {
            // Later it is lost, as it would be without an end.
            let _ = waits.recv_timeout(patience);
        }
    }
}

fn id<const N: usize>(random: &mut ChaCha8Rng) -> [u8; N] {
    loop {
        let id: [u8; N] = std::array::from_fn(|_| random.random());
        // All zeros mean none.
        if id != [0; N] {
            return id;
        }
    }
}

fn root(random: &mut ChaCha8Rng) -> Place {
    Place { trace: id(random), span: id(random), parent: None }
}
