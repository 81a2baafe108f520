//! Why a request got no answer.

use std::time::Duration;

/// Why a request was not run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The slot's queue is full.
    #[error("the queue of {capacity} requests is full")]
    QueueFull { capacity: usize, retry_after: Duration },
    /// The answer would come after the request's deadline.
    #[error("the answer would take about {estimate:?}, the request allows {allowed:?}")]
    DeadlineUnreachable { estimate: Duration, allowed: Duration, retry_after: Duration },
    /// A request that was taken in before would miss its deadline.
    #[error("requests that were taken in before would miss their deadlines")]
    Overbooked { retry_after: Duration },
    /// A request of higher priority took its place in the queue.
    #[error("requests of higher priority took its place after it had waited for {waited:?}")]
    Displaced { waited: Duration, retry_after: Duration },
    /// The deadline passed while the request waited.
    #[error("the deadline passed while the request waited for {waited:?}")]
    Expired { waited: Duration, retry_after: Duration },
    /// What runs the model compiles it anew for every combination of input shapes, and has done so often
    /// enough.
    #[error(
        "the inputs {asked} are of other shapes than {provider} serves this model in: {served}"
    )]
    Shape { provider: String, asked: String, served: String },
    /// The version is being unloaded, or the agent stops.
    #[error("the model is being unloaded")]
    Closing,
}

impl Refusal {
    /// The word for it in metrics.
    pub fn label(&self) -> &'static str {
        match self {
            Self::QueueFull { .. } => "queue_full",
            Self::DeadlineUnreachable { .. } => "deadline_unreachable",
            Self::Overbooked { .. } => "overbooked",
            Self::Displaced { .. } => "displaced",
            Self::Expired { .. } => "deadline_passed",
            Self::Shape { .. } => "shape",
            Self::Closing => "closing",
        }
    }

    /// After which time it is worth asking again.
    pub fn retry_after(&self) -> Duration {
        match self {
            Self::QueueFull { retry_after, .. }
            | Self::DeadlineUnreachable { retry_after, .. }
            | Self::Overbooked { retry_after }
            | Self::Displaced { retry_after, .. }
            | Self::Expired { retry_after, .. } => *retry_after,
            Self::Closing | Self::Shape { .. } => Duration::from_secs(1),
        }
    }
}

/// Why a request that was started has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RunFailure {
    /// The runtime's own words.
    #[error("{0}")]
    Error(String),
    /// The runtime panicked.
    #[error("the runtime panicked: {0}")]
    Panic(String),
}

/// Why a request has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InferError {
    /// It was not run.
    #[error("refused: {0}")]
    Refused(#[from] Refusal),
    /// It was run, and failed.
    #[error("{0}")]
    Failed(#[from] RunFailure),
}

/// Why a variant did not come into service; the one before it still is.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// A variant needs at least one session.
    #[error("variant {variant} was given no session")]
    NoSession { variant: String },
    /// The operating system gave no thread.
    #[error("no thread for variant {variant}: {source}")]
    Thread { variant: String, source: std::io::Error },
    /// The slot has been closed.
    #[error("the slot is closed: variant {variant} cannot be published")]
    Closed { variant: String },
}
