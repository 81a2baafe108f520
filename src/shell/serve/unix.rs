//! The Unix socket: put where the configuration says without a moment in which others may use it, and taken
//! away at the end, unless the service manager keeps it.

use std::fs::{self, Permissions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener as StdListener;
use std::path::{Path, PathBuf};

use tokio::net::{UnixListener, UnixStream};

use crate::shell::systemd;

/// Who may connect: the agent's user and its group.
const MODE: u32 = 0o660;

/// A listening socket; its file goes with it, where nobody else keeps it.
#[derive(Debug)]
pub struct UnixSocket {
    pub(super) listener: UnixListener,
    path: PathBuf,
    /// Device and number of the file: another one may have come into its place. `None` where it stays.
    file: Option<(u64, u64)>,
}

impl UnixSocket {
    /// Listens at `path`. A socket there that nobody listens on any more is replaced.
    ///
    /// # Errors
    /// Where another server listens there, something else lies there, or the folder may not be written.
    pub async fn bind(path: &Path) -> io::Result<Self> {
        if is_listened_on(path).await? {
            let words = "another server listens there";
            return Err(io::Error::new(io::ErrorKind::AddrInUse, words));
        }
        // Under another name until nobody but those who may can connect; the renaming replaces what was left.
        let beside = systemd::beside(path);
        if is_socket(&beside)? {
            fs::remove_file(&beside)?;
        }
        let listener = UnixListener::bind(&beside)?;
        let placed = fs::set_permissions(&beside, Permissions::from_mode(MODE))
            .and_then(|()| fs::rename(&beside, path))
            .and_then(|()| fs::symlink_metadata(path));
        let facts = placed.inspect_err(|_| drop(fs::remove_file(&beside)))?;
        Ok(Self { listener, path: path.to_owned(), file: Some((facts.dev(), facts.ino())) })
    }

    /// One at `path` that was handed over and whose file stays. `None` where clients do not find it: its file
    /// is gone.
    ///
    /// # Errors
    /// Where something else lies there, or the socket cannot be waited for.
    pub async fn adopt(listener: StdListener, path: &Path) -> io::Result<Option<Self>> {
        if !is_listened_on(path).await? {
            return Ok(None);
        }
        listener.set_nonblocking(true)?;
        let listener = UnixListener::from_std(listener)?;
        Ok(Some(Self { listener, path: path.to_owned(), file: None }))
    }

    /// Leaves the file where it is at the end: the service manager has the socket as well.
    pub fn stays(&mut self) {
        self.file = None;
    }

    /// Where clients find it.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl AsFd for UnixSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

/// Whether a server listens there; an error where something else than a socket lies there.
async fn is_listened_on(path: &Path) -> io::Result<bool> {
    if !is_socket(path)? {
        return Ok(false);
    }
    let connected = UnixStream::connect(path).await;
    // One that takes no more connections is one, too.
    Ok(!connected.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused))
}

/// Whether a socket lies there; an error where something else does.
fn is_socket(path: &Path) -> io::Result<bool> {
    match fs::symlink_metadata(path) {
        Ok(facts) if facts.file_type().is_socket() => Ok(true),
        Ok(_) => {
            let words = format!("{} is there and is no socket", path.display());
            Err(io::Error::new(io::ErrorKind::AlreadyExists, words))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

impl Drop for UnixSocket {
    fn drop(&mut self) {
        let Some(file) = self.file else { return };
        let ours = |facts: fs::Metadata| (facts.dev(), facts.ino()) == file;
        if fs::symlink_metadata(&self.path).is_ok_and(ours) {
            // A socket that stays is replaced by the next start.
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_that_was_left_is_replaced_and_one_that_is_listened_on_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let socket = UnixSocket::bind(&path).await.unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, MODE);
        assert!(UnixStream::connect(&path).await.is_ok());
        let second = UnixSocket::bind(&path).await.unwrap_err();
        assert_eq!(second.kind(), io::ErrorKind::AddrInUse);
        assert!(UnixStream::connect(&path).await.is_ok());
        drop(socket);
        assert!(!path.exists());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn a_file_in_the_sockets_place_stays_and_so_does_what_comes_into_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s.sock");
        fs::write(&path, "a list").unwrap();
        let refused = UnixSocket::bind(&path).await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::AlreadyExists);
        fs::remove_file(&path).unwrap();
        fs::write(folder.path().join("s.sock.new"), "another").unwrap();
        let refused = UnixSocket::bind(&path).await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::AlreadyExists);
        fs::remove_file(folder.path().join("s.sock.new")).unwrap();
        let socket = UnixSocket::bind(&path).await.unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(&path, "a list").unwrap();
        drop(socket);
        assert_eq!(fs::read_to_string(&path).unwrap(), "a list");
    }

    #[tokio::test]
    async fn a_socket_that_is_handed_over_serves_while_clients_find_it_and_keeps_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s.sock");
        let mut first = UnixSocket::bind(&path).await.unwrap();
        let kept: StdListener = first.as_fd().try_clone_to_owned().unwrap().into();
        first.stays();
        drop(first);
        // Who comes while nobody serves is served by the next one.
        let client = UnixStream::connect(&path).await.unwrap();
        let second =
            UnixSocket::adopt(kept.try_clone().unwrap(), &path).await.unwrap().expect("found");
        assert!(second.listener.accept().await.is_ok());
        drop((client, second));
        assert!(path.exists());
        fs::remove_file(&path).unwrap();
        assert!(UnixSocket::adopt(kept, &path).await.unwrap().is_none());
    }
}
