//! A request on its way through a slot, and its answer.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::onnx::Tensor;
use crate::schedule;
use crate::units::Digest;

use super::error::{InferError, Refusal};
use super::live::Shared;
use super::variant::Variant;

/// One inference request, checked against the model's signature.
#[derive(Debug, Clone)]
pub struct Request {
    /// Every input by name.
    pub inputs: Vec<(String, Tensor)>,
    /// The outputs to compute, in the order in which they are answered.
    pub wanted: Vec<String>,
    /// When the whole request had arrived.
    pub arrived: Instant,
    /// How long its inputs took to be read out of its body since then.
    pub decode: Duration,
    /// How long the answer may take from `arrived` on; `None` takes the slot's default.
    pub timeout: Option<Duration>,
    /// The protocol's `priority`: 1 is the highest, 0 the default; see [`schedule::Level`].
    pub priority: u64,
}

/// A request's outputs, all of one variant.
#[derive(Debug)]
pub struct Answer {
    /// The wanted outputs, in their order.
    pub outputs: Vec<Tensor>,
    /// The variant that ran the request.
    pub variant: Arc<Variant>,
    /// When the request had arrived.
    pub arrived: Instant,
    /// Submission to start of the run.
    pub queued: Duration,
    /// Time in the session, all that ran with it included.
    pub compute: Duration,
    /// Requests of its run; 1 where it ran alone.
    pub together: usize,
}

pub(super) type Outcome = Result<Answer, InferError>;

#[derive(Debug)]
pub(super) struct Job {
    pub id: u64,
    pub level: schedule::Level,
    /// What it may run together with, and its rows.
    pub kind: Option<Digest>,
    pub rows: usize,
    pub request: Request,
    pub deadline: Option<Instant>,
    /// Whether it was run before, on a session that failed for good.
    pub again: bool,
    pub reply: oneshot::Sender<Outcome>,
}

/// A place in the queue, and then the answer. Dropping it gives the place back; a request that runs
/// already is run to its end and its answer is thrown away.
#[must_use = "dropping a ticket cancels its request"]
pub struct Ticket {
    id: u64,
    answer: oneshot::Receiver<Outcome>,
    arrived: Instant,
    deadline: Option<Instant>,
    shared: Arc<Shared>,
    done: bool,
}

impl Ticket {
    pub(super) fn new(
        id: u64,
        (arrived, deadline): (Instant, Option<Instant>),
        answer: oneshot::Receiver<Outcome>,
        shared: Arc<Shared>,
    ) -> Self {
        Self { id, answer, arrived, deadline, shared, done: false }
    }

    /// The answer, or a refusal when the deadline passes while the request still waits, even where
    /// every session hangs. A request that has been started is waited for.
    ///
    /// # Errors
    /// Where the request was refused or failed.
    pub async fn outcome(mut self) -> Result<Answer, InferError> {
        if let Some(deadline) = self.deadline {
            // A worker that takes the request right at its deadline refuses it itself.
            let late = tokio::time::timeout_at(deadline.into(), &mut self).await;
            match late {
                Ok(outcome) => return outcome,
                Err(_) if self.shared.queue.forget(self.id) => return Err(self.expired()),
                Err(_) => {}
            }
        }
        self.await
    }

    fn expired(&mut self) -> InferError {
        self.done = true;
        let waited = self.arrived.elapsed();
        let refusal = Refusal::Expired { waited, retry_after: waited };
        self.shared.refused(&refusal);
        refusal.into()
    }

    /// Blocks the calling thread until the answer is there; not to be called on an async thread.
    ///
    /// # Errors
    /// Where the request was refused or failed.
    pub fn wait(mut self) -> Outcome {
        self.done = true;
        let (_, closed) = oneshot::channel();
        let answer = std::mem::replace(&mut self.answer, closed);
        answer.blocking_recv().unwrap_or(Err(InferError::Refused(Refusal::Closing)))
    }
}

impl Future for Ticket {
    type Output = Outcome;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Outcome> {
        let outcome = std::task::ready!(Pin::new(&mut self.answer).poll(cx));
        self.done = true;
        // A sender that vanishes without a word belongs to a slot that was closed and dropped.
        Poll::Ready(outcome.unwrap_or(Err(InferError::Refused(Refusal::Closing))))
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if !self.done && self.shared.queue.forget(self.id) {
            self.shared.counters.cancelled();
        }
    }
}
