//! The Unix socket: put where the configuration says without a moment in which others may use it, and taken
//! away at the end.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tokio::net::{UnixListener, UnixStream};

/// Who may connect: the agent's user and its group.
const MODE: u32 = 0o660;

/// A listening socket; its file goes with it.
#[derive(Debug)]
pub struct UnixSocket {
    pub(super) listener: UnixListener,
    path: PathBuf,
    /// Device and number of the file: another one may have come into its place.
    file: (u64, u64),
}

impl UnixSocket {
    /// Listens at `path`. A socket there that nobody listens on any more is replaced.
    ///
    /// # Errors
    /// Where another server listens there, something else lies there, or the folder may not be written.
    pub async fn bind(path: &Path) -> io::Result<Self> {
        if is_socket(path)? {
            match UnixStream::connect(path).await {
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
                // One that takes no more connections is one, too.
                Ok(_) | Err(_) => {
                    let words = "another server listens there";
                    return Err(io::Error::new(io::ErrorKind::AddrInUse, words));
                }
            }
        }
        // Under another name until nobody but those who may can connect; the renaming replaces what was left.
        let mut beside = path.as_os_str().to_owned();
        beside.push(".new");
        let beside = PathBuf::from(beside);
        if is_socket(&beside)? {
            fs::remove_file(&beside)?;
        }
        let listener = UnixListener::bind(&beside)?;
        let placed = fs::set_permissions(&beside, Permissions::from_mode(MODE))
            .and_then(|()| fs::rename(&beside, path))
            .and_then(|()| fs::symlink_metadata(path));
        let facts = placed.inspect_err(|_| drop(fs::remove_file(&beside)))?;
        Ok(Self { listener, path: path.to_owned(), file: (facts.dev(), facts.ino()) })
    }
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
        let ours = |facts: fs::Metadata| (facts.dev(), facts.ino()) == self.file;
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
}
