//! Where clients come in: ports for REST, gRPC, administration and metrics, and a Unix socket. A socket that
//! the service manager hands over is used instead of making one; one that is made is given to it to keep, so
//! that the next agent takes over the queue of those who connect in between.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use tokio::net::TcpListener;

use super::AgentError;
use crate::config::{Asks, Config, Opening, Socket};
use crate::shell::serve::{Door, UnixSocket};
use crate::shell::systemd::{
    self, Endpoint, Handed, Listening, Place, Refusal, Taken, Verdict, Wanted,
};

/// Name of the socket in the runtime directory.
const SOCKET: &str = "blochd.sock";

/// All that is open.
pub(super) struct Doors {
    pub doors: Vec<Door>,
    pub metrics: TcpListener,
    /// Where the ports are.
    pub ports: Ports,
    /// Whether any of them was handed over: clients may have been waiting.
    pub handed: bool,
}

/// Ports, by what is served there, and where they are.
pub(super) type Ports = BTreeMap<Endpoint, SocketAddr>;

/// Listens wherever the configuration, or the service manager, says.
pub(super) async fn open(config: &Config, handed: Taken) -> Result<Doors, AgentError> {
    let mut sockets = take_over(config, handed);
    let was_handed = !sockets.is_empty();
    let mut doors = Vec::new();
    let mut ports = Ports::new();
    let http = port(config, config.http_address, Endpoint::Http, &mut sockets).await?;
    ports.insert(Endpoint::Http, at(&http, config.http_address));
    doors.push(Door::Rest(http));
    if let Some(address) = config.grpc_address {
        let listener = port(config, address, Endpoint::Grpc, &mut sockets).await?;
        let at = at(&listener, address);
        ports.insert(Endpoint::Grpc, at);
        doors.push(Door::Grpc(listener));
        tracing::info!(grpc = %at, "gRPC is served");
    }
    if let Some(address) = config.admin_address.address() {
        let listener = port(config, address, Endpoint::Admin, &mut sockets).await?;
        let at = at(&listener, address);
        ports.insert(Endpoint::Admin, at);
        doors.push(Door::Admin(listener));
        tracing::info!(admin = %at, "models are loaded and unloaded here");
    }
    if let Some(socket) = unix(config, &mut sockets).await? {
        let path = socket.path().display().to_string();
        doors.push(Door::Unix(socket));
        tracing::info!(socket = path, "REST and gRPC are served at a Unix socket");
    }
    let metrics = port(config, config.metrics_address, Endpoint::Metrics, &mut sockets).await?;
    ports.insert(Endpoint::Metrics, at(&metrics, config.metrics_address));
    tell(config, &ports);
    Ok(Doors { doors, metrics, ports, handed: was_handed })
}

/// Says to whom each port is open.
pub(super) fn tell(config: &Config, ports: &Ports) {
    for (endpoint, at) in ports {
        let opening = config.opening(*at);
        let Opening { elsewhere, tls, asks } = opening;
        if elsewhere && (!tls || asks == Asks::Nothing) {
            tracing::warn!(%at, "{endpoint} is open to {opening}, since allow_plaintext says so");
        } else {
            tracing::info!(%at, "{endpoint} is open to {opening}");
        }
    }
}

fn at(listener: &TcpListener, wanted: SocketAddr) -> SocketAddr {
    listener.local_addr().unwrap_or(wanted)
}

/// The sockets that were handed over and are of use, by what they serve. What becomes of the others is told.
fn take_over(config: &Config, handed: Taken) -> BTreeMap<Endpoint, Handed> {
    for (name, why) in &handed.unfit {
        tracing::warn!(socket = name, "a socket that was handed over is closed: {why}");
        forget_stored(name);
    }
    let offers: Vec<_> = handed.sockets.iter().map(|one| (one.name.as_str(), &one.at)).collect();
    let verdicts = systemd::assign(&offers, &wanted(config));
    let mut sockets = BTreeMap::new();
    for (one, verdict) in handed.sockets.into_iter().zip(verdicts) {
        let (name, at) = (&one.name, &one.at);
        match verdict {
            Verdict::Serves { endpoint, instead_of } => {
                match instead_of {
                    Some(wanted) => differs((name, at), endpoint, &wanted),
                    None => {
                        let words = "a socket was handed over";
                        tracing::info!(socket = name, at = %at, "{endpoint}: {words}");
                    }
                }
                sockets.insert(endpoint, one);
            }
            Verdict::Closed(why) => {
                match why {
                    // The configuration was changed on purpose.
                    Refusal::Moved(_) => {
                        tracing::info!(socket = name, at = %at, "is given up: {why}");
                    }
                    Refusal::Off(_) | Refusal::Kind(_) | Refusal::Taken(_) | Refusal::Unknown => {
                        let words = "a socket that was handed over is closed";
                        tracing::warn!(socket = name, at = %at, "{words}: {why}");
                    }
                }
                forget_stored(name);
            }
        }
    }
    sockets
}

/// A socket unit has an endpoint elsewhere than the configuration, which was not asked about that place.
fn differs((name, at): (&str, &Place), endpoint: Endpoint, wanted: &Place) {
    let setting = endpoint.setting();
    tracing::warn!(
        socket = name, at = %at,
        "{endpoint} is served at {at}, as the socket unit says, and not at {wanted}, \
         as {setting} says: make one say what the other does"
    );
}

fn forget_stored(name: &str) {
    if systemd::is_stored(name) {
        systemd::forget(name);
    }
}

fn wanted(config: &Config) -> BTreeMap<Endpoint, Wanted> {
    let at = |address| Wanted::At(Place::Port(address));
    let mut wanted = BTreeMap::from([
        (Endpoint::Http, at(config.http_address)),
        (Endpoint::Metrics, at(config.metrics_address)),
    ]);
    wanted.extend(config.grpc_address.map(|address| (Endpoint::Grpc, at(address))));
    wanted.extend(config.admin_address.address().map(|address| (Endpoint::Admin, at(address))));
    match (socket(&config.unix_socket), &config.unix_socket) {
        (Some(path), _) => {
            wanted.insert(Endpoint::Unix, Wanted::At(Place::Path(path)));
        }
        (None, Socket::Auto) => {
            wanted.insert(Endpoint::Unix, Wanted::IfHanded);
        }
        (None, Socket::Off | Socket::At(_)) => {}
    }
    wanted
}

/// A port's listener: the one that was handed over, or a new one, which the manager gets to keep.
///
/// # Errors
/// Where it cannot listen; where a socket unit has it in a place that the configuration lets nobody in at.
async fn port(
    config: &Config,
    address: SocketAddr,
    endpoint: Endpoint,
    sockets: &mut BTreeMap<Endpoint, Handed>,
) -> Result<TcpListener, AgentError> {
    match sockets.remove(&endpoint).map(|handed| handed.socket) {
        Some(Listening::Tcp(listener)) => {
            let listener = TcpListener::from_std(listener)
                .map_err(|source| AgentError::Handed { endpoint, source })?;
            match config.closed(at(&listener, address)) {
                None => Ok(listener),
                Some(why) => Err(AgentError::Exposed { endpoint, why }),
            }
        }
        Some(Listening::Unix(_)) | None => {
            let bound = TcpListener::bind(address).await;
            let purpose = purpose(endpoint);
            let bound = bound.map_err(|source| AgentError::Listen { address, purpose, source })?;
            systemd::store(endpoint, &bound);
            Ok(bound)
        }
    }
}

fn purpose(endpoint: Endpoint) -> &'static str {
    match endpoint {
        Endpoint::Http | Endpoint::Unix => "requests",
        Endpoint::Grpc => "gRPC",
        Endpoint::Metrics => "metrics",
        Endpoint::Admin => "administration",
    }
}

async fn unix(
    config: &Config,
    sockets: &mut BTreeMap<Endpoint, Handed>,
) -> Result<Option<UnixSocket>, AgentError> {
    let own = socket(&config.unix_socket);
    if let Some(Handed { name, at: Place::Path(at), socket: Listening::Unix(listener) }) =
        sockets.remove(&Endpoint::Unix)
    {
        // One of the agent's own has been renamed since.
        let path = own.clone().filter(|_| systemd::is_stored(&name)).unwrap_or(at);
        match UnixSocket::adopt(listener, &path).await {
            Ok(Some(socket)) => return Ok(Some(socket)),
            Ok(None) => {
                let path = path.display();
                tracing::warn!(socket = name, "is closed: nothing leads to it, {path} is gone");
            }
            Err(error) => tracing::warn!(socket = name, "is closed: {error}"),
        }
        forget_stored(&name);
    }
    let Some(path) = own else { return Ok(None) };
    let failed = |source: io::Error| AgentError::Socket { path: path.clone(), source };
    let mut socket = UnixSocket::bind(&path).await.map_err(failed)?;
    if systemd::store(Endpoint::Unix, &socket) {
        socket.stays();
    }
    Ok(Some(socket))
}

fn socket(place: &Socket) -> Option<PathBuf> {
    match place {
        Socket::Off => None,
        Socket::At(path) => Some(path.clone()),
        Socket::Auto => {
            // The first of several, as systemd separates them.
            let folders = std::env::var_os("RUNTIME_DIRECTORY")?;
            let folder = std::env::split_paths(&folders).next()?;
            Some(folder).filter(|folder| folder.is_absolute()).map(|f: PathBuf| f.join(SOCKET))
        }
    }
}
