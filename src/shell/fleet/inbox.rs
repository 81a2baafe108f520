//! Bundles that are dropped into a directory: which have come, or changed, and are no longer written.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use bytes::Bytes;

use crate::limits;
use crate::shell::files;

/// How bundles' names end.
const ENDING: &str = "bundle";

/// What tells one state of a file from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Looks {
    size: u64,
    modified_ns: i128,
    inode: u64,
}

/// What is known of the files of an inbox.
#[derive(Debug, Default)]
pub struct Bundles {
    /// As they were when they were offered.
    offered: BTreeMap<PathBuf, Looks>,
    /// Those that may still be written: how they look, and since when.
    settling: BTreeMap<PathBuf, (Looks, Instant)>,
    /// Since when some rest and wait for the others.
    gathering: Option<Instant>,
}

impl Bundles {
    /// The files that are to be offered now, in the order of their names: all that have come once none of them
    /// is written any more, so that of several only the newest comes into force; or those that rest, where
    /// others do not come to that. An inbox that cannot be listed has none.
    pub fn look(&mut self, inbox: &Path, now: Instant) -> Vec<PathBuf> {
        let found = list(inbox);
        self.offered.retain(|path, _| found.contains_key(path));
        self.settling.retain(|path, _| found.contains_key(path));
        let mut resting = BTreeMap::new();
        for (path, looks) in found {
            if self.offered.get(&path) == Some(&looks) {
                self.settling.remove(&path);
                continue;
            }
            let since = match self.settling.get(&path) {
                Some((before, since)) if *before == looks => *since,
                Some(_) | None => now,
            };
            self.settling.insert(path.clone(), (looks, since));
            if now.saturating_duration_since(since) >= limits::CONFIG_REST {
                resting.insert(path, looks);
            }
        }
        if resting.is_empty() {
            return Vec::new();
        }
        let since = *self.gathering.get_or_insert(now);
        let waited = now.saturating_duration_since(since) >= limits::FLEET_GATHER;
        if resting.len() < self.settling.len() && !waited {
            return Vec::new();
        }
        self.gathering = None;
        self.settling.retain(|path, _| !resting.contains_key(path));
        let ready = resting.keys().cloned().collect();
        self.offered.extend(resting);
        ready
    }

    /// Whether some are to be looked at again soon.
    pub fn are_settling(&self) -> bool {
        !self.settling.is_empty()
    }

    /// Has a file offered again.
    pub fn forget(&mut self, path: &Path) {
        self.offered.remove(path);
    }
}

fn list(inbox: &Path) -> BTreeMap<PathBuf, Looks> {
    let Ok(entries) = fs::read_dir(inbox) else { return BTreeMap::new() };
    let looks = |entry: fs::DirEntry| {
        let path = entry.path();
        let hidden = path.file_name()?.as_encoded_bytes().starts_with(b".");
        let ours = path.extension().is_some_and(|end| end == ENDING) && !hidden;
        // What a link leads to may be anything.
        let meta = ours.then(|| fs::symlink_metadata(&path).ok())??;
        let modified_ns = i128::from(meta.mtime()) * 1_000_000_000 + i128::from(meta.mtime_nsec());
        let looks = Looks { size: meta.len(), modified_ns, inode: meta.ino() };
        meta.is_file().then_some((path, looks))
    };
    entries.flatten().filter_map(looks).take(limits::FLEET_INBOX_FILES).collect()
}

/// The bytes of a bundle; of one that is too large as many as show that it is.
///
/// # Errors
/// Where it cannot be read.
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let most = limits::FLEET_BUNDLE_BYTES as u64 + 1;
    File::open(path)?.take(most).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Writes a bundle that came by a link, whole or not at all, unless it lies there already. Says whether it was
/// written: what carries bundles gives the same one again and again.
///
/// # Errors
/// Where it cannot be written; the one before then stands.
pub fn put(path: &Path, bytes: Bytes) -> io::Result<bool> {
    if files::read(path, limits::LINK_MESSAGE_BYTES).is_ok_and(|there| there == bytes) {
        return Ok(false);
    }
    if let Some(inbox) = path.parent() {
        fs::create_dir_all(inbox)?;
    }
    files::replace(path, &[bytes]).map(|()| true)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_bundle_is_offered_once_when_it_rests_and_again_when_it_changes() {
        let dir = tempfile::tempdir().unwrap();
        let begin = Instant::now();
        let at = |ms: u64| begin + Duration::from_millis(ms);
        let mut bundles = Bundles::default();
        let (a, b) = (dir.path().join("a.bundle"), dir.path().join("b.bundle"));
        assert!(bundles.look(&dir.path().join("no"), at(0)).is_empty());
        fs::write(&b, "b").unwrap();
        fs::write(&a, "a").unwrap();
        fs::write(dir.path().join(".c.bundle"), "c").unwrap();
        fs::write(dir.path().join("d.yaml"), "d").unwrap();
        std::os::unix::fs::symlink(&a, dir.path().join("e.bundle")).unwrap();
        assert!(bundles.look(dir.path(), at(0)).is_empty());
        assert!(bundles.are_settling());
        fs::write(&a, "still written").unwrap();
        // The one that rests waits for the other.
        assert!(bundles.look(dir.path(), at(200)).is_empty());
        assert_eq!(bundles.look(dir.path(), at(400)), [a.clone(), b]);
        assert!(bundles.look(dir.path(), at(9000)).is_empty() && !bundles.are_settling());
        bundles.forget(&a);
        bundles.look(dir.path(), at(9000));
        assert_eq!(bundles.look(dir.path(), at(9300)), std::slice::from_ref(&a));
        fs::remove_file(&a).unwrap();
        assert!(bundles.look(dir.path(), at(9900)).is_empty());
    }

    #[test]
    fn one_that_never_rests_does_not_keep_the_others_waiting_for_good() {
        let dir = tempfile::tempdir().unwrap();
        let begin = Instant::now();
        let mut bundles = Bundles::default();
        let rests = dir.path().join("rests.bundle");
        fs::write(&rests, "r").unwrap();
        let mut looked = Vec::new();
        for turn in 0..40u64 {
            fs::write(dir.path().join("never.bundle"), vec![b'n'; turn as usize]).unwrap();
            let now = begin + Duration::from_millis(100 * turn);
            looked.extend(bundles.look(dir.path(), now).into_iter().map(|path| (turn, path)));
        }
        let [(turn, path)] = looked.as_slice() else { panic!("{looked:?}") };
        let waited = Duration::from_millis(100 * turn);
        assert!(*path == rests && waited >= limits::FLEET_GATHER, "{waited:?}");
    }

    #[test]
    fn a_bundle_that_lies_there_is_not_written_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("inbox/broker-all.bundle");
        let inode = || fs::metadata(&path).unwrap().ino();
        assert!(put(&path, Bytes::from_static(b"one")).unwrap());
        let first = inode();
        assert!(!put(&path, Bytes::from_static(b"one")).unwrap());
        assert_eq!(inode(), first);
        assert!(put(&path, Bytes::from_static(b"two")).unwrap());
        assert_eq!(fs::read(&path).unwrap(), b"two");
    }
}
