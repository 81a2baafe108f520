//! Runs some requests on dense as well, on a thread of its own that gets a core only where nobody else wants
//! it, and tells what dense and the variant in service said.
//!
//! Nothing here makes a client wait: a session's thread asks locks that it does not wait for (a channel has one
//! of its own, and whoever holds it may be kept from running for long), and hands over what it has in its hands
//! anyhow, without a copy, where there is a place for it. What comes while another one runs, or while somebody
//! waits, is dropped and counted.

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::governor::shadow::{Compared, Comparison, Draw};
use crate::limits;
use crate::onnx::Tensor;
use crate::shell::children::yield_to_others;
use crate::shell::slot::{Runner, Variant, Witness};
use crate::units::Digest;

/// What a shadow is made with.
pub struct Start {
    pub model: String,
    /// All of the model's outputs, in the graph's order.
    pub outputs: Vec<String>,
    pub digest: Digest,
    /// A session of dense that nobody else runs.
    pub dense: Box<dyn Runner>,
    pub draw: Draw,
    /// Whether there is time for it now. Takes no lock that others wait for.
    pub slack: Box<dyn Fn() -> bool + Send>,
}

/// What became of the requests that were drawn.
#[derive(Debug, Default)]
struct Counts {
    compared: AtomicU64,
    busy: AtomicU64,
    unsuitable: AtomicU64,
    failed: AtomicU64,
}

/// A copy of the counts at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tally {
    /// Run on dense.
    pub compared: u64,
    /// Dropped because there was no time for them.
    pub busy: u64,
    /// Not all outputs were asked for, or they are too large.
    pub unsuitable: u64,
    /// Dense failed on them.
    pub failed: u64,
}

/// A shadow of one slot; ends when it is dropped and the slot has let go of its witness.
pub struct Shadow {
    inner: Arc<Inner>,
    thread: thread::JoinHandle<()>,
}

struct Inner {
    outputs: Vec<String>,
    dense: Digest,
    pace: Arc<Pace>,
    said: Arc<Said>,
    door: Arc<Door>,
    /// Who waits at it.
    thread: thread::Thread,
    counts: Arc<Counts>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.door.closed.store(true, Ordering::Release);
        self.thread.unpark();
    }
}

/// What came out, by the digest of the rung, until somebody takes it.
type Said = Mutex<VecDeque<(Digest, Compared)>>;

struct Pace {
    draw: Mutex<Draw>,
    began: Instant,
}

impl Pace {
    fn ran(&self, took: Duration) {
        let now = self.began.elapsed();
        self.draw.lock().unwrap_or_else(PoisonError::into_inner).ran(now, took);
    }
}

/// Where one request at a time is handed over.
#[derive(Default)]
struct Door {
    place: Mutex<Option<Shown>>,
    closed: AtomicBool,
}

impl Door {
    /// Whether there was a place; whoever waits is to be woken.
    fn offer(&self, shown: Shown) -> bool {
        let Ok(mut place) = self.place.try_lock() else { return false };
        let free = place.is_none();
        if free {
            *place = Some(shown);
        }
        free
    }

    /// The next that is handed over, for the thread that is woken; `None` once the door is closed.
    fn next(&self) -> Option<Shown> {
        loop {
            if self.closed.load(Ordering::Acquire) {
                return None;
            }
            let shown = self.place.lock().unwrap_or_else(PoisonError::into_inner).take();
            if shown.is_some() {
                return shown;
            }
            thread::park();
        }
    }
}

/// A request that is to run on dense.
struct Shown {
    variant: Digest,
    inputs: Vec<(String, Tensor)>,
    outputs: Vec<Tensor>,
}

impl Shadow {
    /// Begins.
    ///
    /// # Errors
    /// Where there is no thread for it.
    pub fn start(start: Start) -> io::Result<Self> {
        let Start { model, outputs, digest, dense, draw, slack } = start;
        let door = Arc::new(Door::default());
        let (counts, said) = (Arc::new(Counts::default()), Arc::new(Said::default()));
        let pace = Arc::new(Pace { draw: Mutex::new(draw), began: Instant::now() });
        let work = Work {
            model,
            outputs: outputs.clone(),
            dense,
            slack,
            pace: Arc::clone(&pace),
            said: Arc::clone(&said),
            counts: Arc::clone(&counts),
        };
        let at = Arc::clone(&door);
        let named = thread::Builder::new().name("shadow".to_owned());
        let thread = named.spawn(move || work.all(&at))?;
        let waits = thread.thread().clone();
        let inner = Inner { outputs, dense: digest, pace, said, door, thread: waits, counts };
        Ok(Self { inner: Arc::new(inner), thread })
    }

    /// What a slot shows its requests to.
    pub fn witness(&self) -> Arc<dyn Witness> {
        Arc::clone(&self.inner) as _
    }

    /// Waits until its session is freed; the slot has let go of its witness.
    pub fn end(self) {
        let Self { inner, thread } = self;
        drop(inner);
        // Whatever it panicked of harms nobody any more.
        let _ = thread.join();
    }

    /// What was compared since this was asked last, oldest first; nothing where it cannot be had without
    /// waiting.
    pub fn take(&self) -> Vec<(Digest, Compared)> {
        let Ok(mut said) = self.inner.said.try_lock() else { return Vec::new() };
        said.drain(..).collect()
    }

    pub fn tally(&self) -> Tally {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let counts = &self.inner.counts;
        Tally {
            compared: read(&counts.compared),
            busy: read(&counts.busy),
            unsuitable: read(&counts.unsuitable),
            failed: read(&counts.failed),
        }
    }
}

fn one(count: &AtomicU64) {
    count.fetch_add(1, Ordering::Relaxed);
}

impl Witness for Inner {
    fn wants(&self, variant: &Variant, waiting: &dyn Fn() -> usize) -> bool {
        if variant.info().digest == self.dense {
            return false;
        }
        // Another session asks at this moment: it has the turn.
        let Ok(mut draw) = self.pace.draw.try_lock() else { return false };
        let drawn = draw.takes(self.pace.began.elapsed());
        drop(draw);
        if drawn && waiting() > 0 {
            one(&self.counts.busy);
            return false;
        }
        drawn
    }

    fn shown(
        &self,
        variant: &Variant,
        inputs: &[(String, Tensor)],
        wanted: &[String],
        outputs: Vec<Tensor>,
    ) {
        let find = |name: &String| wanted.iter().position(|wanted| wanted == name);
        let all: Option<Vec<Tensor>> =
            self.outputs.iter().map(|name| outputs.get(find(name)?).cloned()).collect();
        let tensors = inputs.iter().map(|(_, tensor)| tensor).chain(&outputs);
        let bytes = tensors.map(|tensor| tensor.data.len()).fold(0, usize::saturating_add);
        let Some(outputs) = all.filter(|_| bytes <= limits::SHADOW_REQUEST_BYTES) else {
            return one(&self.counts.unsuitable);
        };
        let variant = variant.info().digest;
        if self.door.offer(Shown { variant, inputs: inputs.to_vec(), outputs }) {
            self.thread.unpark();
        } else {
            one(&self.counts.busy);
        }
    }
}

/// What the thread has.
struct Work {
    model: String,
    outputs: Vec<String>,
    dense: Box<dyn Runner>,
    slack: Box<dyn Fn() -> bool + Send>,
    pace: Arc<Pace>,
    said: Arc<Said>,
    counts: Arc<Counts>,
}

impl Work {
    fn all(mut self, door: &Door) {
        yield_to_others(19);
        let mut comparing: Option<(Digest, Comparison)> = None;
        while let Some(Shown { variant, inputs, outputs }) = door.next() {
            if !(self.slack)() {
                one(&self.counts.busy);
                continue;
            }
            let begun = Instant::now();
            let said = self.run(&inputs);
            drop(inputs);
            self.pace.ran(begun.elapsed());
            let said = match said {
                Ok(said) => said,
                Err(why) => {
                    one(&self.counts.failed);
                    tracing::warn!(model = self.model, "dense failed where a rung did not: {why}");
                    continue;
                }
            };
            // Those of one rung are compared with one another; another one begins anew.
            let same = comparing.take().filter(|(of, _)| *of == variant);
            let (_, comparison) =
                comparing.insert(same.unwrap_or_else(|| (variant, Comparison::default())));
            if let Some(compared) = comparison.take(&said, &outputs) {
                let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
                if said.len() >= limits::SHADOW_WINDOW {
                    said.pop_front();
                }
                said.push_back((variant, compared));
            }
            one(&self.counts.compared);
        }
    }

    fn run(&mut self, inputs: &[(String, Tensor)]) -> Result<Vec<Tensor>, String> {
        let inputs: Vec<(&str, &Tensor)> = inputs.iter().map(|(n, t)| (n.as_str(), t)).collect();
        let wanted: Vec<&str> = self.outputs.iter().map(String::as_str).collect();
        let dense = &mut self.dense;
        let ran = catch_unwind(AssertUnwindSafe(|| dense.run(&inputs, &wanted)));
        ran.map_err(|_| "it panicked".to_owned())?.map_err(|error| error.to_string())
    }
}
