//! Writing files so that a crash at any instant leaves the old one or the new one, never half of one; reading
//! them within bounds; telling one state of a file from another.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use nix::fcntl::OFlag;

use crate::limits;

/// What tells one state of a file from another without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint {
    pub size: u64,
    pub modified_ns: i128,
    pub inode: u64,
}

/// How a file looks, wherever links lead; `None` where it is not there.
pub fn fingerprint(path: &Path) -> Option<Fingerprint> {
    let meta = fs::metadata(path).ok()?;
    let modified_ns = i128::from(meta.mtime()) * 1_000_000_000 + i128::from(meta.mtime_nsec());
    Some(Fingerprint { size: meta.len(), modified_ns, inode: meta.ino() })
}

/// The text of a file of at most `most` bytes. Of a larger one no more is read than shows that it is.
///
/// # Errors
/// Where it cannot be read, has more bytes, or is not UTF-8.
pub fn read_text(path: &Path, most: usize) -> io::Result<String> {
    let bytes = read(path, most)?;
    String::from_utf8(bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// A file of at most `most` bytes. Of a larger one no more is read than shows that it is.
///
/// # Errors
/// Where it cannot be read or has more bytes.
pub fn read(path: &Path, most: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(most as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > most {
        let words = format!("it has more than {most} bytes");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, words));
    }
    Ok(bytes)
}

/// Replaces the file at `path` by `chunks`, one after the other. After a return without error the new
/// file survives a power cut.
///
/// # Errors
/// Where the directory is not there or not writable, or the disk is full. The old file then stands.
pub fn replace(path: &Path, chunks: &[Bytes]) -> io::Result<()> {
    let mut beside = Beside::new(path)?;
    for chunk in chunks {
        beside.file.write_all(chunk)?;
    }
    // Temporary files are private to their owner; what is published is read by others as well.
    beside.file.set_permissions(fs::Permissions::from_mode(0o644))?;
    beside.file.sync_all()?;
    beside.publish(path)?;
    sync_dir(parent(path))
}

/// Replaces the file at `path` by `bytes` without waiting for the disk: for what can be made again and
/// carries a hash of its own. A crash leaves the old file or the new one; a power cut may leave anything.
///
/// # Errors
/// As [`replace`].
pub fn replace_unsynced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut beside = Beside::new(path)?;
    beside.file.write_all(bytes)?;
    beside.publish(path)
}

/// Removes what writers that were killed have left in a folder. What cannot be removed only takes place.
pub fn clear_leftovers(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if is_beside(&entry.file_name().to_string_lossy()) {
            cleared(&entry.path());
        }
    }
}

/// How the names of temporary files end: those of nobody else.
const ENDING: &str = ".blochd-new";

/// Whether a name is that of a temporary file: `.name.0.blochd-new`.
fn is_beside(name: &str) -> bool {
    let inner = name.strip_prefix('.').and_then(|name| name.strip_suffix(ENDING));
    let number = inner.and_then(|inner| inner.rsplit_once('.')).map(|(_, number)| number);
    number.is_some_and(|number| number.parse::<u32>().is_ok())
}

/// A new file beside the one whose place it is to take: hidden, and removed where that does not come about.
///
/// Its name has the first number that no living process holds by a lock. What one that was killed has left goes
/// with that: no number of kills leaves more of them than there were writers at once.
struct Beside {
    file: File,
    path: PathBuf,
    published: bool,
}

impl Beside {
    fn new(path: &Path) -> io::Result<Self> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        for number in 0..limits::WRITERS_BESIDE {
            let path = path.with_file_name(format!(".{name}.{number}{ENDING}"));
            if let Some(file) = Self::taken(&path)? {
                return Ok(Self { file, path, published: false });
            }
        }
        let words = format!("{} writers are at it", limits::WRITERS_BESIDE);
        Err(io::Error::new(io::ErrorKind::ResourceBusy, words))
    }

    /// A new file of that name, held by this process; `None` where another one's is there.
    fn taken(path: &Path) -> io::Result<Option<File>> {
        let mut options = File::options();
        let options = options.write(true).create_new(true).mode(0o600);
        loop {
            let file = match options.open(path) {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => match cleared(path) {
                    true => continue,
                    false => return Ok(None),
                },
                Err(error) => return Err(error),
            };
            match file.try_lock() {
                // Whoever took it for a leftover between the two has removed it.
                Ok(()) if !is_named(&file, path) => {}
                Err(TryLockError::WouldBlock) => return Ok(None),
                // A file system without locks: its leftovers stay.
                Ok(()) | Err(TryLockError::Error(_)) => return Ok(Some(file)),
            }
        }
    }

    fn publish(mut self, path: &Path) -> io::Result<()> {
        fs::rename(&self.path, path)?;
        self.published = true;
        Ok(())
    }
}

/// Removes a file that no living process holds; `false` where it is somebody's.
fn cleared(path: &Path) -> bool {
    let flags = (OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits();
    let file = match File::options().write(true).custom_flags(flags).open(path) {
        Ok(file) => file,
        Err(error) => return error.kind() == io::ErrorKind::NotFound,
    };
    file.try_lock().is_ok() && (!is_named(&file, path) || fs::remove_file(path).is_ok())
}

/// Whether that is the file's name still.
fn is_named(file: &File, path: &Path) -> bool {
    let place = |found: fs::Metadata| (found.dev(), found.ino());
    let named = fs::symlink_metadata(path).map(place).ok();
    named.is_some() && named == file.metadata().map(place).ok()
}

impl Drop for Beside {
    fn drop(&mut self) {
        // The lock is held still: nobody else's file goes.
        if !self.published {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Has the disk take everything that lies in a folder, so that whoever does it again finds it done.
///
/// # Errors
/// Where a file cannot be read or written out.
pub fn write_out(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_file() {
            File::open(&path)?.sync_all()?;
        }
    }
    sync_dir(folder)
}

/// Makes the names in a directory durable.
///
/// # Errors
/// Where the directory cannot be opened.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole_and_leaves_nothing_else_behind() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        fs::write(&path, "old").unwrap();
        replace(&path, &[Bytes::from_static(b"ne"), Bytes::from_static(b"w")]).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_a_killed_writer_left_is_used_again_and_what_a_living_one_holds_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        let left = dir.path().join(".x.0.blochd-new");
        fs::write(&left, "half of something much longer").unwrap();
        replace(&path, &[Bytes::from_static(b"new")]).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
        assert!(!left.exists());
        // Two at once, of which the first comes to nothing.
        let mut first = Beside::new(&path).unwrap();
        first.file.write_all(b"first").unwrap();
        replace_unsynced(&path, b"second").unwrap();
        clear_leftovers(dir.path());
        assert!(left.exists(), "its writer lives");
        drop(first);
        assert_eq!(fs::read_to_string(&path).unwrap(), "second");
        for name in [".y.onnx.1.blochd-new", ".y.new", "z.0.blochd-new", ".k.blochd-new"] {
            fs::write(dir.path().join(name), "left").unwrap();
        }
        clear_leftovers(dir.path());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 4, "others' files stay");
    }

    #[test]
    fn many_writers_of_one_file_leave_one_of_theirs_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        std::thread::scope(|scope| {
            for digit in b'0'..b'8' {
                let path = &path;
                scope.spawn(move || {
                    for _ in 0..50 {
                        replace_unsynced(path, &vec![digit; 10_000]).unwrap();
                    }
                });
            }
        });
        let found = fs::read(&path).unwrap();
        assert!(found.len() == 10_000 && found.iter().all(|byte| *byte == found[0]));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_text_that_is_too_long_is_refused_before_it_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        fs::write(&path, "four").unwrap();
        assert_eq!(read_text(&path, 4).unwrap(), "four");
        assert_eq!(read_text(&path, 3).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        // More than any box has memory for.
        File::options().write(true).open(&path).unwrap().set_len(1 << 42).unwrap();
        assert_eq!(read_text(&path, 1 << 20).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        fs::write(&path, b"\xFF").unwrap();
        assert_eq!(read_text(&path, 4).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn a_directory_that_is_not_there_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        assert!(replace(&dir.path().join("no/x"), &[]).is_err());
    }
}
