//! The service manager's side of the agent: sockets that it hands over and keeps (`handed`, `endpoints`), what
//! it is told (`tell`), and the watchdog, which is fed while every actor shows life (`life`, `watchdog`).
//!
//! Without a manager (`NOTIFY_SOCKET`, `LISTEN_FDS` and `WATCHDOG_USEC` unset) all of it does nothing. The
//! protocol is systemd's: sd_notify(3), sd_listen_fds(3), sd_watchdog_enabled(3), systemd.socket(5).

mod endpoints;
mod handed;
mod life;
mod watchdog;

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::process::Command;

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

pub(in crate::shell) use self::endpoints::beside;
pub use self::endpoints::{Endpoint, Refusal, Verdict, Wanted, assign};
pub use self::handed::{Handed, Listening, Place, Taken, Unfit, take};
pub use self::life::{Life, Pulse, Stalled};
pub use self::watchdog::{EVENT_LOOP, Watchdog, interval};

/// Where the manager listens.
const NOTIFY_SOCKET: &str = "NOTIFY_SOCKET";

/// What the manager says to one process and nobody below it.
const FOR_ONE_PROCESS: &[&str] =
    &[NOTIFY_SOCKET, "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"];

/// Names in the manager's store begin so: what is handed over under such a name was stored by an agent before
/// this one.
const STORED: &str = "stored-";

/// Tells the manager, where there is one.
pub fn tell(states: &[sd_notify::NotifyState]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "the service manager cannot be told");
    }
}

/// A child is none of the manager's business: it must not speak for the agent.
pub fn unmanaged(command: &mut Command) {
    for name in FOR_ONE_PROCESS {
        command.env_remove(name);
    }
}

/// Gives the manager a listening socket to keep: it is handed over at the next start, and who connects in
/// between waits in its queue. Whether a manager was there to take it; one that keeps none throws it away.
pub fn store(endpoint: Endpoint, socket: &impl AsFd) -> bool {
    let words = format!("FDSTORE=1\nFDNAME={STORED}{}\n", endpoint.name());
    match send(&words, Some(socket)) {
        Ok(sent) => sent,
        Err(error) => {
            tracing::warn!(%error, "{endpoint}: the socket is not stored, and a restart closes it");
            false
        }
    }
}

/// Whether it is the name of a socket that an agent gave the manager to keep.
pub fn is_stored(name: &str) -> bool {
    name.starts_with(STORED)
}

/// Has the manager forget what it keeps under `name`, as it was handed over.
pub fn forget(name: &str) {
    let words = format!("FDSTOREREMOVE=1\nFDNAME={name}\n");
    if let Err(error) = send(&words, None::<&UnixDatagram>) {
        tracing::warn!(%error, "the socket {name} stays in the service manager's store");
    }
}

/// Sends one message, and a socket with it; `false` where there is no manager.
fn send(words: &str, socket: Option<&impl AsFd>) -> io::Result<bool> {
    let Some(place) = std::env::var_os(NOTIFY_SOCKET) else { return Ok(false) };
    let address = match place.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(&place)?,
    };
    let manager = UnixDatagram::unbound()?;
    manager.connect_addr(&address)?;
    let descriptors = socket.map(|socket| [socket.as_fd().as_raw_fd()]);
    let with: Vec<_> = descriptors.iter().map(|fds| ControlMessage::ScmRights(fds)).collect();
    let parts = [IoSlice::new(words.as_bytes())];
    sendmsg::<()>(manager.as_raw_fd(), &parts, &with, MsgFlags::MSG_NOSIGNAL, None)?;
    Ok(true)
}
