//! The accept loop: bounded connections, TLS in front of them where a port speaks it, time-outs for idle ones
//! and for those that do not read, graceful end.

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::either::Either;
use tokio_util::sync::CancellationToken;

use crate::limits::{
    CONNECTION_CHECK_SECS, HTTP_CONNECTIONS, HTTP_IDLE_SECS, HTTP_LINGER, HTTP_WRITE_SECS,
    HTTP2_CONNECTION_WINDOW, HTTP2_CONNECTIONS, HTTP2_ERROR_STREAMS, HTTP2_FRAME_BYTES,
    HTTP2_HEADER_BYTES, HTTP2_PING_SECS, HTTP2_PONG_SECS, HTTP2_RESET_STREAMS, HTTP2_SEND_BYTES,
    HTTP2_STREAM_WINDOW, HTTP2_STREAMS, LISTENER_PULSE, TLS_HANDSHAKE,
};

use crate::shell::systemd::Pulse;

use super::activity::{Activity, Standing};
use super::authority::NamedByPath;
use super::front::Front;
use super::gate::{Peer, Speech};
use super::patience::Patient;
use super::unix::UnixSocket;

/// Pause after an accept that failed for want of descriptors or memory: without it the loop would
/// spin until some are freed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What a listener's connections speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Speaks {
    Http1,
    Http2,
    /// As a connection's first bytes say.
    Either,
}

impl Speaks {
    /// Connections at a time.
    fn connections(self) -> usize {
        match self {
            Self::Http1 => HTTP_CONNECTIONS,
            Self::Http2 | Self::Either => HTTP2_CONNECTIONS,
        }
    }

    fn builder(self) -> auto::Builder<TokioExecutor> {
        let builder = auto::Builder::new(TokioExecutor::new());
        let mut builder = match self {
            Self::Http1 => builder.http1_only(),
            Self::Http2 => builder.http2_only(),
            Self::Either => builder,
        };
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(Duration::from_secs(HTTP_IDLE_SECS));
        builder
            .http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(HTTP2_STREAMS)
            .initial_stream_window_size(HTTP2_STREAM_WINDOW)
            .initial_connection_window_size(HTTP2_CONNECTION_WINDOW)
            .max_frame_size(HTTP2_FRAME_BYTES)
            .max_header_list_size(HTTP2_HEADER_BYTES)
            .max_pending_accept_reset_streams(HTTP2_RESET_STREAMS)
            .max_local_error_reset_streams(HTTP2_ERROR_STREAMS)
            .max_send_buf_size(HTTP2_SEND_BYTES)
            .keep_alive_interval(Duration::from_secs(HTTP2_PING_SECS))
            .keep_alive_timeout(Duration::from_secs(HTTP2_PONG_SECS));
        builder
    }
}

/// Where connections come from.
pub(super) trait Listener: Send {
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// The next connection, and who is at its other end.
    fn accept(&self) -> impl Future<Output = io::Result<(Self::Stream, Peer)>> + Send;

    /// Whether other machines reach it.
    fn is_reached(&self) -> bool;
}

impl Listener for TcpListener {
    type Stream = TcpStream;

    async fn accept(&self) -> io::Result<(TcpStream, Peer)> {
        let (stream, peer) = TcpListener::accept(self).await?;
        // Answers are written in one piece; waiting for more to send only adds latency. A client that has gone
        // again already is its own affair: its connection will end.
        let _ = stream.set_nodelay(true);
        Ok((stream, Peer { local: is_local(peer), ..Peer::default() }))
    }

    fn is_reached(&self) -> bool {
        // One that does not say where it is may be anywhere.
        !self.local_addr().is_ok_and(is_local)
    }
}

impl Listener for UnixSocket {
    type Stream = NamedByPath<UnixStream>;

    async fn accept(&self) -> io::Result<(Self::Stream, Peer)> {
        let (stream, _) = self.listener.accept().await?;
        let user = stream.peer_cred().ok().map(|of| of.uid());
        Ok((NamedByPath::new(stream), Peer { local: true, user, certificate: None }))
    }

    fn is_reached(&self) -> bool {
        false
    }
}

fn is_local(peer: SocketAddr) -> bool {
    peer.ip().to_canonical().is_loopback()
}

pub(super) async fn run(
    listener: impl Listener,
    front: Front,
    speaks: Speaks,
    (stop, grace): (CancellationToken, watch::Receiver<Duration>),
    pulse: Pulse,
) -> usize {
    let mut beat = tokio::time::interval(LISTENER_PULSE);
    let places = Arc::new(Semaphore::new(speaks.connections()));
    let builder = Arc::new(speaks.builder());
    let reached = listener.is_reached();
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            Some(_) = connections.join_next() => continue,
            _ = beat.tick() => {
                pulse.beat();
                continue;
            }
            accepted = accept(&listener, &places) => accepted,
        };
        let (stream, peer, place) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        // As it is now: a certificate is exchanged while the agent runs.
        let speech = if reached { front.gate.speech(speaks) } else { Speech::Plain };
        let (front, builder, stop) = (front.clone(), Arc::clone(&builder), stop.clone());
        connections.spawn(async move {
            // Until its end, and while it says nothing.
            let _place = place;
            let Some((stream, peer)) = greet(stream, peer, speech, &stop).await else {
                front.gate.count(front.door, "no_tls");
                return;
            };
            let activity = Activity::new();
            let service = front.of(peer, Arc::clone(&activity), stop.clone());
            let stream = Patient::new(stream, Duration::from_secs(HTTP_WRITE_SECS));
            let connection = builder.serve_connection(TokioIo::new(stream), service).into_owned();
            carry(connection, &activity, &stop).await;
        });
    }
    drop(listener);
    pulse.rest();
    let grace = *grace.borrow();
    // Idle connections end soon, busy ones after the answer that they are waiting for.
    let all = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(grace, all).await.is_ok() {
        return 0;
    }
    while connections.try_join_next().is_some() {}
    let cut = connections.len();
    connections.shutdown().await;
    cut
}

/// A connection as it is spoken over.
type Wire<S> = Either<S, TlsStream<S>>;

/// TLS's handshake, where the port speaks it: `None` where it fails, or takes too long.
async fn greet<S>(
    stream: S,
    peer: Peer,
    speech: Speech,
    stop: &CancellationToken,
) -> Option<(Wire<S>, Peer)>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let tls = match speech {
        Speech::Plain => return Some((Either::Left(stream), peer)),
        Speech::Tls(config) => TlsAcceptor::from(config),
        Speech::None => return None,
    };
    let stops = async {
        stop.cancelled().await;
        tokio::time::sleep(HTTP_LINGER).await;
    };
    let done = tokio::select! {
        done = tokio::time::timeout(TLS_HANDSHAKE, tls.accept(stream)) => done,
        () = stops => return None,
    };
    match done {
        Ok(Ok(stream)) => {
            let peer = peer.showing(stream.get_ref().1.peer_certificates());
            Some((Either::Right(stream), peer))
        }
        Ok(Err(error)) => {
            tracing::debug!(%error, "a client and the agent did not come to TLS");
            None
        }
        Err(_) => {
            tracing::debug!("a client took too long over TLS's handshake");
            None
        }
    }
}

type Connection<S> =
    auto::Connection<'static, TokioIo<Patient<Wire<S>>>, super::front::Served, TokioExecutor>;

/// Serves a connection to its end: the client's, or ours where it is idle, stuck or the server stops.
async fn carry<S>(connection: Connection<S>, activity: &Activity, stop: &CancellationToken)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut connection = pin!(connection);
    let mut check = tokio::time::interval(Duration::from_secs(CONNECTION_CHECK_SECS));
    let (idle, write) = (Duration::from_secs(HTTP_IDLE_SECS), Duration::from_secs(HTTP_WRITE_SECS));
    let mut ending = false;
    loop {
        tokio::select! {
            ended = connection.as_mut() => {
                if let Err(error) = ended {
                    tracing::debug!(%error, "a connection ended early");
                }
                return;
            }
            () = last_request(stop, activity), if !ending => {
                ending = true;
                connection.as_mut().graceful_shutdown();
            }
            now = check.tick() => match activity.standing(now, idle, write) {
                Standing::Busy => {}
                Standing::Idle if !ending => {
                    ending = true;
                    connection.as_mut().graceful_shutdown();
                }
                // A client that was asked to go and does not, or that takes nothing.
                Standing::Idle | Standing::Stuck => {
                    tracing::debug!("a connection was ended: it was idle, or took no answer");
                    return;
                }
            },
        }
    }
}

/// Waits until the connection shall end after what it does: the server stops, and a request that was on its way
/// has come.
async fn last_request(stop: &CancellationToken, activity: &Activity) {
    stop.cancelled().await;
    // None may come: then it was none that was lost.
    let _ = tokio::time::timeout(HTTP_LINGER, activity.busy()).await;
}

type Place = tokio::sync::OwnedSemaphorePermit;

/// Waits for a free place first: what cannot be served waits in the kernel's backlog.
async fn accept<L: Listener>(
    listener: &L,
    places: &Arc<Semaphore>,
) -> io::Result<(L::Stream, Peer, Place)> {
    let place = Arc::clone(places).acquire_owned().await.map_err(io::Error::other)?;
    let (stream, peer) = listener.accept().await?;
    Ok((stream, peer, place))
}

#[cfg(test)]
mod tests {
    use super::is_local;

    #[test]
    fn a_client_on_this_box_is_known_by_its_address() {
        for (peer, local) in [
            ("127.0.0.1:5", true),
            ("127.9.9.9:5", true),
            ("[::1]:5", true),
            ("[::ffff:127.0.0.1]:5", true),
            ("192.168.0.7:5", false),
            ("[::ffff:192.168.0.7]:5", false),
            ("0.0.0.0:5", false),
        ] {
            assert_eq!(is_local(peer.parse().unwrap()), local, "{peer}");
        }
    }
}
