//! The accept loop: bounded connections, time-outs for idle ones and for those that do not read, graceful end.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::limits::{HTTP_CONNECTIONS, HTTP_IDLE_SECS, HTTP_WRITE_SECS};

use super::patience::Patient;

/// Pause after an accept that failed for want of descriptors or memory: without it the loop would
/// spin until some are freed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

pub(super) async fn run(
    listener: TcpListener,
    router: Router,
    stop: CancellationToken,
    grace: watch::Receiver<Duration>,
) -> usize {
    let places = Arc::new(Semaphore::new(HTTP_CONNECTIONS));
    let graceful = GracefulShutdown::new();
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            Some(_) = connections.join_next() => continue,
            accepted = accept(&listener, &places) => accepted,
        };
        let (stream, place) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let service = TowerToHyperService::new(router.clone());
        let stream = Patient::new(stream, Duration::from_secs(HTTP_WRITE_SECS));
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(Duration::from_secs(HTTP_IDLE_SECS))
            .serve_connection(TokioIo::new(stream), service);
        let connection = graceful.watch(connection);
        connections.spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection ended early");
            }
            drop(place);
        });
    }
    drop(listener);
    let grace = *grace.borrow();
    // Idle connections end at once, busy ones after the answer that they are waiting for.
    if tokio::time::timeout(grace, graceful.shutdown()).await.is_ok() {
        return 0;
    }
    while connections.try_join_next().is_some() {}
    let cut = connections.len();
    connections.shutdown().await;
    cut
}

type Place = tokio::sync::OwnedSemaphorePermit;

/// Waits for a free place first: what cannot be served waits in the kernel's backlog.
async fn accept(listener: &TcpListener, places: &Arc<Semaphore>) -> io::Result<(TcpStream, Place)> {
    let place = Arc::clone(places).acquire_owned().await.map_err(io::Error::other)?;
    let (stream, _) = listener.accept().await?;
    // Answers are written in one piece; waiting for more to send only adds latency. A client that has gone
    // again already is its own affair: its connection will end.
    let _ = stream.set_nodelay(true);
    Ok((stream, place))
}
