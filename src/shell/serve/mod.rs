//! The HTTP front: the Open Inference Protocol v2 REST routes with Triton's extensions, blochd's
//! own status, and the metrics page. Speaks `protocol`, submits to `slot`, decides nothing.
//!
//! Status codes: 200; 400 a request that is wrong (the error names the input); 404 an unknown
//! model, version or path; 405 a wrong method; 408 a body that does not come; 413 a body above the
//! limit; 415 a compressed body; 500 a model that failed while it ran; 503 with `Retry-After` for a
//! model or server that is not ready, a full queue, and a deadline that cannot be met (Triton's
//! code for both); 504 a repository command that takes too long. Every error's body is `{"error":
//! "…"}`.

mod infer;
mod listen;
mod metrics_page;
mod patience;
mod reply;
mod routes;

use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;

use crate::limits::{HTTP_BODIES_BYTES, HTTP_BODY_BYTES};
use crate::shell::metrics::Metrics;
use crate::shell::slot::Repository;

/// Gives the JSON of `GET /v2/blochd/status`, anew for every call.
pub type StatusSource = Arc<dyn Fn() -> serde_json::Value + Send + Sync>;

/// What the protocol's server answers from.
pub struct App {
    repository: Arc<Repository>,
    status: StatusSource,
    max_body: usize,
    /// Bytes that request bodies may still take, in KiB.
    bodies: Arc<Semaphore>,
}

impl App {
    /// Serves `repository` with bodies of at most [`HTTP_BODY_BYTES`].
    pub fn new(repository: Arc<Repository>, status: StatusSource) -> Self {
        Self::with_max_body(repository, status, HTTP_BODY_BYTES)
    }

    /// As [`App::new`], with bodies of at most `max_body` bytes (never above
    /// [`HTTP_BODIES_BYTES`]).
    pub fn with_max_body(
        repository: Arc<Repository>,
        status: StatusSource,
        max_body: usize,
    ) -> Self {
        let max_body = max_body.min(HTTP_BODIES_BYTES);
        let bodies = Arc::new(Semaphore::new(HTTP_BODIES_BYTES / 1024 + 1));
        Self { repository, status, max_body, bodies }
    }
}

/// Serves the protocol on `listener` until `stop` is cancelled, then finishes the requests in
/// flight for at most what `grace` says at that moment. Returns the number of connections that had
/// to be cut off.
pub async fn serve(
    listener: TcpListener,
    app: Arc<App>,
    stop: CancellationToken,
    grace: watch::Receiver<Duration>,
) -> usize {
    listen::run(listener, routes::router(app), stop, grace).await
}

/// Serves `GET /metrics` on `listener` until `stop` is cancelled.
pub async fn serve_metrics(
    listener: TcpListener,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) -> usize {
    let (_, none) = watch::channel(Duration::ZERO);
    listen::run(listener, metrics_page::router(metrics), stop, none).await
}
