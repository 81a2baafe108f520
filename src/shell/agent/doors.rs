//! Where clients come in: two ports and a Unix socket.

use std::net::SocketAddr;
use std::path::PathBuf;

use tokio::net::TcpListener;

use super::AgentError;
use crate::config::{Config, Socket};
use crate::shell::serve::{Door, UnixSocket};

/// Name of the socket in the runtime directory.
const SOCKET: &str = "blochd.sock";

/// Listens wherever the configuration says.
pub(super) async fn open(config: &Config) -> Result<Vec<Door>, AgentError> {
    let mut doors = vec![Door::Rest(listen(config.http_address, "requests").await?)];
    if let Some(address) = config.grpc_address {
        doors.push(Door::Grpc(listen(address, "gRPC").await?));
        tracing::info!(grpc = %address, "gRPC is served");
    }
    if let Some(path) = socket(&config.unix_socket) {
        let bound = UnixSocket::bind(&path).await;
        let socket = bound.map_err(|source| AgentError::Socket { path: path.clone(), source })?;
        doors.push(Door::Unix(socket));
        tracing::info!(socket = %path.display(), "REST and gRPC are served at a Unix socket");
    }
    Ok(doors)
}

pub(super) async fn listen(
    address: SocketAddr,
    purpose: &'static str,
) -> Result<TcpListener, AgentError> {
    let bound = TcpListener::bind(address).await;
    bound.map_err(|source| AgentError::Listen { address, purpose, source })
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
