//! Writing files so that a crash at any instant leaves the old one or the new one, never half of one; reading
//! them within bounds; telling one state of a file from another.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use bytes::Bytes;
use tempfile::NamedTempFile;

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
    let dir = parent(path);
    let mut file = NamedTempFile::with_prefix_in(".", dir)?;
    for chunk in chunks {
        file.write_all(chunk)?;
    }
    publish(file, path)
}

/// Replaces the file at `path` by `bytes` without waiting for the disk: for what can be made again and
/// carries a hash of its own. A crash leaves the old file or the new one; a power cut may leave anything.
///
/// # Errors
/// As [`replace`].
pub fn replace_unsynced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = NamedTempFile::with_prefix_in(".", parent(path))?;
    file.write_all(bytes)?;
    file.persist(path)?;
    Ok(())
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

/// Gives a temporary file of the same directory its name, for good.
///
/// # Errors
/// Where it cannot be written out or renamed; it is then removed.
pub fn publish(file: NamedTempFile, path: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    // Temporary files are private to their owner; what is published is read by others as well.
    file.as_file().set_permissions(fs::Permissions::from_mode(0o644))?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    sync_dir(parent(path))
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
