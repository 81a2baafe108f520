//! Folders in which providers keep what they compile of models: one for each model and provider, named by what
//! they are, never by where they lie. What was compiled of other weights, by another provider, or for another
//! device, is another folder: providers themselves go by names.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::limits;
use crate::units::Digest;

/// Name of the folder of all of them in the state directory.
pub const COMPILED: &str = "compiled";

/// The folder for `model` on the engine of that identity: `<state>/compiled/<identity>/<model>`.
pub fn folder(state: &Path, identity: &str, model: Digest) -> PathBuf {
    let identity = Digest::of(identity.as_bytes()).short();
    state.join(COMPILED).join(identity).join(model.to_string())
}

/// Makes such a folder, which nobody else may read or write.
///
/// # Errors
/// Where it cannot be made.
pub fn make(folder: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

/// A folder of one model.
struct Kept {
    path: PathBuf,
    bytes: u64,
    /// When anything in it was last written.
    written: SystemTime,
}

/// Removes folders from `compiled` until what is left has at most `bytes`: those that were written to longest
/// ago first, and none of `keep`. Returns how many bytes are left. Links are removed, and not followed.
///
/// # Errors
/// Where the folder cannot be read, or something in it cannot be removed; a folder that is not there is empty.
pub fn evict(compiled: &Path, keep: &BTreeSet<PathBuf>, bytes: u64) -> io::Result<u64> {
    let mut all = Vec::new();
    for identity in folders(compiled)? {
        for path in folders(&identity)? {
            let mut kept = Kept { path, bytes: 0, written: SystemTime::UNIX_EPOCH };
            let path = kept.path.clone();
            measure(&path, &mut kept, limits::COMPILED_DEPTH)?;
            all.push(kept);
        }
    }
    all.sort_by(|a, b| (a.written, &a.path).cmp(&(b.written, &b.path)));
    let mut left: u64 = all.iter().map(|kept| kept.bytes).sum();
    for kept in all.iter().filter(|kept| !keep.contains(&kept.path)) {
        if left <= bytes {
            break;
        }
        fs::remove_dir_all(&kept.path)?;
        left = left.saturating_sub(kept.bytes);
        // The last one of a provider; it is in the way of nothing where it stays.
        if let Some(identity) = kept.path.parent() {
            let _ = fs::remove_dir(identity);
        }
    }
    Ok(left)
}

/// The folders in a folder, in the order of their names.
fn folders(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut found = Vec::new();
    for entry in entries.take(limits::DIRECTORY_ENTRIES) {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}

fn measure(dir: &Path, kept: &mut Kept, depth: usize) -> io::Result<()> {
    for entry in fs::read_dir(dir)?.take(limits::DIRECTORY_ENTRIES) {
        let found = entry?;
        let about = match found.metadata() {
            Ok(about) => about,
            // A provider that is at work puts its files in their places.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        kept.written = kept.written.max(about.modified().unwrap_or(SystemTime::UNIX_EPOCH));
        match (about.is_dir(), depth.checked_sub(1)) {
            (true, Some(depth)) => measure(&found.path(), kept, depth)?,
            _ => kept.bytes = kept.bytes.saturating_add(about.len()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn put(state: &Path, identity: &str, model: &[u8], bytes: usize, age: u64) -> PathBuf {
        let folder = folder(state, identity, Digest::of(model));
        make(&folder).unwrap();
        let file = folder.join("graph.om");
        fs::write(&file, vec![0; bytes]).unwrap();
        let written = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000 - age);
        fs::File::options().write(true).open(file).unwrap().set_modified(written).unwrap();
        folder
    }

    #[test]
    fn what_was_written_longest_ago_goes_first_and_what_is_in_use_never() {
        let state = tempfile::tempdir().unwrap();
        let compiled = state.path().join(COMPILED);
        let keep = |paths: &[&PathBuf]| paths.iter().map(|path| (*path).clone()).collect();
        assert_eq!(evict(&compiled, &keep(&[]), 0).unwrap(), 0, "nothing is there");
        let used = put(state.path(), "npu", b"used", 100, 90);
        let old = put(state.path(), "npu", b"old", 100, 80);
        let new = put(state.path(), "npu", b"new", 100, 10);
        let other = put(state.path(), "gpu", b"used", 100, 20);
        assert_eq!(evict(&compiled, &keep(&[&used]), 400).unwrap(), 400, "there is room");
        assert_eq!(evict(&compiled, &keep(&[&used]), 399).unwrap(), 300);
        assert!(used.exists() && !old.exists() && new.exists() && other.exists());
        assert_eq!(evict(&compiled, &keep(&[&used]), 0).unwrap(), 100);
        assert!(used.exists() && !new.exists() && !other.parent().unwrap().exists());
    }

    #[test]
    fn other_weights_and_other_providers_have_folders_of_their_own() {
        let of =
            |identity: &str, model: &[u8]| folder(Path::new("/s"), identity, Digest::of(model));
        let first = of("npu device 0", b"a");
        assert_eq!(first, of("npu device 0", b"a"));
        assert!(first != of("npu device 1", b"a") && first != of("npu device 0", b"b"));
        assert!(first.starts_with("/s/compiled"));
    }

    #[test]
    fn links_are_not_followed() {
        let (state, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(outside.path().join("keep"), vec![0; 1000]).unwrap();
        let compiled = state.path().join(COMPILED);
        let folder = put(state.path(), "npu", b"a", 10, 0);
        std::os::unix::fs::symlink(outside.path(), folder.join("link")).unwrap();
        std::os::unix::fs::symlink(outside.path(), compiled.join("link")).unwrap();
        evict(&compiled, &BTreeSet::new(), 0).unwrap();
        assert!(!folder.exists() && outside.path().join("keep").exists());
    }
}
