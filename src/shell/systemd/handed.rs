//! Sockets that the service manager hands over at the start: those of socket units, and those that an agent
//! before this one gave it to keep.

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{SockType, getsockopt, sockopt};

use crate::limits;

/// The first descriptor that is handed over.
const FIRST: RawFd = 3;

/// As systemd calls what nobody named.
const UNNAMED: &str = "unknown";

/// Where a socket listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    Port(SocketAddr),
    Path(PathBuf),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Port(address) => write!(f, "{address}"),
            Self::Path(path) => write!(f, "{}", path.display()),
        }
    }
}

/// A socket that listens.
#[derive(Debug)]
pub enum Listening {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// A socket that was handed over.
#[derive(Debug)]
pub struct Handed {
    pub name: String,
    pub at: Place,
    pub socket: Listening,
}

/// All that was handed over.
#[derive(Debug, Default)]
pub struct Taken {
    pub sockets: Vec<Handed>,
    /// Names of what is of no use, and why; it is closed.
    pub unfit: Vec<(String, Unfit)>,
}

/// Why what was handed over is of no use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    #[error("LISTEN_FDS={0} is not a number of sockets")]
    Count(String),
    #[error("LISTEN_FDS hands over {0} sockets, more than anybody needs")]
    TooMany(usize),
    #[error("descriptor {0} is not open")]
    Closed(RawFd),
    #[error("it is no socket: use ListenStream= in the socket unit")]
    NoSocket,
    #[error("it is a {0} socket, and connections come by streams: use ListenStream=")]
    NoStream(String),
    #[error("it does not listen: a socket unit with Accept=yes hands over single connections")]
    NotListening,
    #[error("it listens neither at a TCP port nor at a path")]
    Nowhere,
    #[error("it cannot be looked at: {0}")]
    Unreadable(String),
}

/// Takes what was handed over to this process. To be called once, before anything else opens a descriptor; any
/// further call finds nothing.
///
/// None of it goes on to children.
pub fn take() -> Taken {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    let mut taken = Taken::default();
    if TAKEN.swap(true, Ordering::Relaxed) {
        return taken;
    }
    let variable = |name| std::env::var(name).ok();
    let (pid, count) = (variable("LISTEN_PID"), variable("LISTEN_FDS"));
    let count = match count_for(std::process::id(), pid.as_deref(), count.as_deref()) {
        Ok(count) => count,
        Err(why) => {
            taken.unfit.push(("LISTEN_FDS".to_owned(), why));
            return taken;
        }
    };
    let names = names(variable("LISTEN_FDNAMES").as_deref(), count);
    for (descriptor, name) in (FIRST..).zip(names) {
        match own(descriptor).and_then(look) {
            Ok((at, socket)) => taken.sockets.push(Handed { name, at, socket }),
            Err(why) => taken.unfit.push((name, why)),
        }
    }
    taken
}

/// How many descriptors are for the process `own`.
fn count_for(own: u32, pid: Option<&str>, count: Option<&str>) -> Result<usize, Unfit> {
    // What is left of the manager's words to a process above this one.
    let (Some(pid), Some(count)) = (pid, count) else { return Ok(0) };
    if pid.parse() != Ok(own) {
        return Ok(0);
    }
    let number = count.parse().map_err(|_| Unfit::Count(count.to_owned()))?;
    if number > limits::HANDED_SOCKETS { Err(Unfit::TooMany(number)) } else { Ok(number) }
}

/// A name for each of `count` descriptors.
fn names(listed: Option<&str>, count: usize) -> Vec<String> {
    let mut names: Vec<String> =
        listed.into_iter().flat_map(|listed| listed.split(':')).map(str::to_owned).collect();
    names.resize(count, UNNAMED.to_owned());
    names
}

fn own(descriptor: RawFd) -> Result<OwnedFd, Unfit> {
    // SAFETY: sets a flag of a number, which may be any.
    if unsafe { libc::fcntl(descriptor, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return Err(Unfit::Closed(descriptor));
    }
    // SAFETY: it is open; it was made for this process, which has opened nothing yet, and each is taken once.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// What the descriptor is, where it is of use.
fn look(descriptor: OwnedFd) -> Result<(Place, Listening), Unfit> {
    let unreadable = |error: Errno| match error {
        Errno::ENOTSOCK => Unfit::NoSocket,
        error => Unfit::Unreadable(error.to_string()),
    };
    match getsockopt(&descriptor, sockopt::SockType).map_err(unreadable)? {
        SockType::Stream => {}
        other => return Err(Unfit::NoStream(format!("{other:?}").to_lowercase())),
    }
    if !getsockopt(&descriptor, sockopt::AcceptConn).map_err(unreadable)? {
        return Err(Unfit::NotListening);
    }
    let unreadable = |error: io::Error| Unfit::Unreadable(error.to_string());
    let tcp = TcpListener::from(descriptor);
    if let Ok(address) = tcp.local_addr() {
        tcp.set_nonblocking(true).map_err(unreadable)?;
        return Ok((Place::Port(address), Listening::Tcp(tcp)));
    }
    let unix = UnixListener::from(OwnedFd::from(tcp));
    let address = unix.local_addr().map_err(|_| Unfit::Nowhere)?;
    let path = address.as_pathname().ok_or(Unfit::Nowhere)?.to_owned();
    unix.set_nonblocking(true).map_err(unreadable)?;
    Ok((Place::Path(path), Listening::Unix(unix)))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::net::{TcpStream, UdpSocket};
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn only_what_is_meant_for_this_process_is_taken() {
        assert_eq!(count_for(7, Some("7"), Some("3")), Ok(3));
        assert_eq!(count_for(7, Some("8"), Some("3")), Ok(0));
        assert_eq!(count_for(7, Some(""), Some("3")), Ok(0));
        assert_eq!(count_for(7, None, Some("3")), Ok(0));
        assert_eq!(count_for(7, Some("7"), None), Ok(0));
        for nonsense in ["", "-1", "x", "3 4"] {
            let why = Unfit::Count(nonsense.to_owned());
            assert_eq!(count_for(7, Some("7"), Some(nonsense)), Err(why));
        }
        let most = limits::HANDED_SOCKETS;
        assert_eq!(count_for(7, Some("7"), Some(&most.to_string())), Ok(most));
        let more = (most + 1).to_string();
        assert_eq!(count_for(7, Some("7"), Some(&more)), Err(Unfit::TooMany(most + 1)));
    }

    #[test]
    fn every_descriptor_has_a_name() {
        assert_eq!(names(Some("http:grpc"), 2), ["http", "grpc"]);
        assert_eq!(names(Some("http"), 2), ["http", UNNAMED]);
        assert_eq!(names(Some("a:b:c"), 2), ["a", "b"]);
        assert_eq!(names(Some("http::unix"), 3), ["http", "", "unix"]);
        assert_eq!(names(None, 1), [UNNAMED]);
    }

    #[test]
    fn what_does_not_take_connections_is_told_from_what_does() {
        let fd = |owner: &dyn AsFd| owner.as_fd().try_clone_to_owned().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (at, socket) = look(fd(&listener)).unwrap();
        assert_eq!(at, Place::Port(listener.local_addr().unwrap()));
        assert!(matches!(socket, Listening::Tcp(_)));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s.sock");
        let unix = UnixListener::bind(&path).unwrap();
        let (at, socket) = look(fd(&unix)).unwrap();
        assert_eq!(at, Place::Path(path));
        assert!(matches!(socket, Listening::Unix(_)));

        let unfit = |owner: &dyn AsFd| look(fd(owner)).unwrap_err();
        assert_eq!(unfit(&File::open("/dev/null").unwrap()), Unfit::NoSocket);
        let datagrams = UdpSocket::bind("127.0.0.1:0").unwrap();
        assert_eq!(unfit(&datagrams), Unfit::NoStream("datagram".to_owned()));
        let connection = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        assert_eq!(unfit(&connection), Unfit::NotListening);
        assert_eq!(own(RawFd::MAX).unwrap_err(), Unfit::Closed(RawFd::MAX));
    }
}
