//! The network front: the Open Inference Protocol v2 over REST and gRPC with Triton's extensions, blochd's
//! own status, and the metrics page. Speaks `protocol`, submits to `slot`, decides nothing.
//!
//! REST is spoken on one TCP port, gRPC on another, both on a Unix socket and on the port for administration.
//! Status codes of REST: 200; 400 a request that is wrong (the error names the input); 401 nobody who is known;
//! 403 no right to it, or not at this port, and shared memory from afar; 404 an unknown model, version, path or
//! region; 405 a wrong method; 408 a body that does not come; 409 a region's name that is
//! taken; 413 a body above the limit; 415 a compressed body; 500 a model that failed while it ran; 501 shared
//! memory that is not switched on; 503 with `Retry-After` for a model or server that is not ready, a full
//! queue, and a deadline that cannot be met (Triton's code for both); 504 a repository command that takes too
//! long. Every error's body is `{"error": "…"}`. Those of gRPC stand in `grpc/mod.rs`.

mod activity;
mod authority;
mod front;
mod gate;
mod grpc;
mod infer;
mod listen;
mod memory_routes;
mod metrics_page;
mod patience;
mod regions;
mod reply;
mod routes;
mod traced;
mod unix;

use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_util::sync::CancellationToken;

use crate::limits::{HTTP_BODIES_BYTES, HTTP_BODY_BYTES, HTTP_LINGER, LISTENER_SILENCE};
use crate::protocol::access;
use crate::shell::metrics::Metrics;
use crate::shell::slot::{NotServed, Repository, Slot};
use crate::shell::spans::Tracer;
use crate::shell::systemd::Life;
use crate::units::Version;

use front::{Calls, Front};
use listen::Speaks;
use regions::{RegionError, Regions};
use reply::Failed;

pub use gate::{Gate, GateError, Looks};
pub use unix::UnixSocket;

/// Gives the JSON of `GET /v2/blochd/status`, anew for every call.
pub type StatusSource = Arc<dyn Fn() -> serde_json::Value + Send + Sync>;

/// What the protocol's server answers from.
pub struct App {
    repository: Arc<Repository>,
    status: StatusSource,
    max_body: usize,
    /// Bytes that request bodies may still take, in KiB.
    bodies: Arc<Semaphore>,
    /// Where shared memory is switched on.
    regions: Option<Regions>,
    /// Where spans are wanted.
    tracer: Option<Arc<Tracer>>,
    /// Until when requests wait for the agent's start.
    start: Option<Instant>,
    /// Where listeners show that they are alive.
    life: Life,
    /// Who is let in.
    gate: Arc<Gate>,
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
        let (regions, tracer, start, life) = (None, None, None, Life::default());
        let gate = Arc::default();
        Self { repository, status, max_body, bodies, regions, tracer, start, life, gate }
    }

    /// With shared memory for clients on this box, or without.
    #[must_use]
    pub fn sharing_memory(mut self, on: bool) -> Self {
        self.regions = on.then(Regions::new);
        self
    }

    /// With spans of its requests, or without.
    #[must_use]
    pub fn traced(mut self, tracer: Option<Arc<Tracer>>) -> Self {
        self.tracer = tracer;
        self
    }

    /// Requests for models that are not served yet wait for the agent's start until then, or are refused at
    /// once.
    #[must_use]
    pub fn waiting_for_start(mut self, until: Option<Instant>) -> Self {
        self.start = until;
        self
    }

    /// Its listeners show there that they are alive.
    #[must_use]
    pub fn watched(mut self, life: Life) -> Self {
        self.life = life;
        self
    }

    /// Its clients are let in by `gate`.
    #[must_use]
    pub fn guarded(mut self, gate: Arc<Gate>) -> Self {
        self.gate = gate;
        self
    }

    /// The slot that answers for `model`.
    async fn find(&self, model: &str, version: Option<Version>) -> Result<Arc<Slot>, NotServed> {
        match self.start {
            None => self.repository.find(model, version),
            Some(until) => self.repository.find_at_start(model, version, until).await,
        }
    }

    fn shares_memory(&self) -> bool {
        self.regions.is_some()
    }

    /// The regions of shared memory, for a client that may use them.
    fn regions(&self, local: bool) -> Result<&Regions, RegionError> {
        let regions = self.regions.as_ref().ok_or(RegionError::Off)?;
        if local { Ok(regions) } else { Err(RegionError::Remote) }
    }

    fn too_large(&self) -> Failed {
        let error = format!("the request is larger than the limit of {} bytes", self.max_body);
        Failed::new(axum::http::StatusCode::PAYLOAD_TOO_LARGE, error)
    }

    /// Counts `bytes` of memory for bodies until the permit is dropped.
    fn hold(&self, bytes: u64) -> Result<OwnedSemaphorePermit, Failed> {
        let held = Arc::clone(&self.bodies).try_acquire_many_owned(self.kib(bytes)?);
        held.map_err(|_| no_room())
    }

    /// As [`App::hold`], after those that hold too much of it now.
    async fn wait_to_hold(&self, bytes: u64) -> Result<OwnedSemaphorePermit, Failed> {
        let held = Arc::clone(&self.bodies).acquire_many_owned(self.kib(bytes)?);
        held.await.map_err(|_| no_room())
    }

    fn kib(&self, bytes: u64) -> Result<u32, Failed> {
        u32::try_from(bytes.div_ceil(1024)).map_err(|_| self.too_large())
    }
}

fn no_room() -> Failed {
    let error = "refused: too many large requests are in flight";
    Failed::unavailable(error, Duration::from_secs(1))
}

/// Where clients come in.
pub enum Door {
    /// REST.
    Rest(TcpListener),
    /// gRPC.
    Grpc(TcpListener),
    /// Both, without inference and with what it takes an administrator to do.
    Admin(TcpListener),
    /// Both.
    Unix(UnixSocket),
}

/// Serves the protocol at `doors` until `stop` is cancelled, then finishes the requests in
/// flight for at most what `grace` says at that moment. Returns the number of connections that had
/// to be cut off.
pub async fn serve(
    doors: Vec<Door>,
    app: Arc<App>,
    stop: CancellationToken,
    grace: watch::Receiver<Duration>,
) -> usize {
    let router = TowerToHyperService::new(routes::router(Arc::clone(&app)));
    let (life, gate) = (app.life.clone(), Arc::clone(&app.gate));
    let calls = Calls { app, stop: stop.clone() };
    let mut open = tokio::task::JoinSet::new();
    for door in doors {
        let (rest, grpc) = (Some(router.clone()), Some(calls.clone()));
        let (stop, grace, gate) = (stop.clone(), grace.clone(), Arc::clone(&gate));
        match door {
            Door::Rest(listener) => {
                let front = Front { rest, grpc: None, gate, door: access::Door::Requests };
                let pulse = life.actor("the HTTP listener", LISTENER_SILENCE);
                open.spawn(listen::run(listener, front, Speaks::Http1, (stop, grace), pulse))
            }
            Door::Grpc(listener) => {
                let front = Front { rest: None, grpc, gate, door: access::Door::Requests };
                let pulse = life.actor("the gRPC listener", LISTENER_SILENCE);
                open.spawn(listen::run(listener, front, Speaks::Http2, (stop, grace), pulse))
            }
            Door::Admin(listener) => {
                let front = Front { rest, grpc, gate, door: access::Door::Admin };
                let pulse = life.actor("the admin listener", LISTENER_SILENCE);
                open.spawn(listen::run(listener, front, Speaks::Either, (stop, grace), pulse))
            }
            Door::Unix(socket) => {
                let front = Front { rest, grpc, gate, door: access::Door::Unix };
                let pulse = life.actor("the Unix socket's listener", LISTENER_SILENCE);
                open.spawn(listen::run(socket, front, Speaks::Either, (stop, grace), pulse))
            }
        };
    }
    let mut cut = 0;
    while let Some(ended) = open.join_next().await {
        cut += ended.unwrap_or_else(|error| {
            tracing::error!(%error, "a listener ended");
            0
        });
    }
    cut
}

/// Serves `GET /metrics` on `listener` until `stop` is cancelled, to whom `gate` lets in; shows in `life` that
/// it does.
pub async fn serve_metrics(
    listener: TcpListener,
    (metrics, gate): (Arc<Metrics>, Arc<Gate>),
    stop: CancellationToken,
    life: &Life,
) -> usize {
    let pulse = life.actor("the metrics listener", LISTENER_SILENCE);
    let (_, short) = watch::channel(2 * HTTP_LINGER);
    let rest = Some(TowerToHyperService::new(metrics_page::router(metrics)));
    let front = Front { rest, grpc: None, gate, door: access::Door::Metrics };
    listen::run(listener, front, Speaks::Http1, (stop, short), pulse).await
}
