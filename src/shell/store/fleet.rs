//! What is kept of a fleet's bundles: the machine's record, and the bundles that it names.

use std::path::{Path, PathBuf};

use super::{Store, StoreError, seal};
use crate::fleet::{Envelope, Kept, Record};
use crate::units::Digest;

const FLEET: &str = "fleet";
const RECORD: &str = "fleet/record";
const BUNDLES: &str = "fleet/bundles";
const ARTIFACTS: &str = "fleet/artifacts";

/// A bundle that is kept, with what it says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptBundle {
    pub kept: Kept,
    /// Where it lies, for errors and origins.
    pub path: PathBuf,
    pub document: String,
}

impl KeptBundle {
    /// The bundle as a store keeps it; `None` where it is not there or not whole.
    pub fn of(store: &Store, kept: Kept) -> Option<Self> {
        let bytes = store.bundle(kept.digest)?;
        let document = Envelope::open(&bytes).ok()?.document.to_owned();
        Some(Self { path: bundle_path(&store.root, kept.digest), kept, document })
    }
}

impl Store {
    /// The machine's record; that of a box that has seen no bundle where there is none.
    pub fn fleet(&mut self) -> Record {
        let path = self.root.join(RECORD);
        self.load(&path).unwrap_or_default()
    }

    /// Keeps the machine's record.
    ///
    /// # Errors
    /// Where it cannot be written; the one before then stands.
    pub fn put_fleet(&mut self, record: &Record) -> Result<(), StoreError> {
        self.make_fleet()?;
        self.put(&self.root.join(RECORD), record)
    }

    /// Keeps a bundle.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub fn put_bundle(&mut self, digest: Digest, bytes: &[u8]) -> Result<(), StoreError> {
        self.make_fleet()?;
        self.put_bytes(&bundle_path(&self.root, digest), bytes)
    }

    /// A bundle that is kept, if it is there and whole.
    pub fn bundle(&self, digest: Digest) -> Option<Vec<u8>> {
        let bytes = self.disk.read(&bundle_path(&self.root, digest)).ok()?;
        is_whole(&bytes, digest).then_some(bytes)
    }

    /// Removes all bundles but these, and all artifacts. What cannot be removed only takes place.
    pub fn sweep_fleet(&mut self, keep: &[Digest]) {
        let kept = |path: &Path| keep.iter().any(|digest| path == bundle_path(&self.root, *digest));
        let bundles = self.disk.list(&self.root.join(BUNDLES)).unwrap_or_default();
        let artifacts = self.disk.list(&self.artifacts_dir()).unwrap_or_default();
        for path in bundles.into_iter().filter(|path| !kept(path)).chain(artifacts) {
            if let Err(error) = self.disk.remove(&path) {
                tracing::warn!("cannot remove {}: {error}", path.display());
            }
        }
    }

    /// Where artifacts are while they are fetched and tried.
    pub fn artifacts_dir(&self) -> PathBuf {
        self.root.join(ARTIFACTS)
    }

    /// Makes the directories, each of which lasts before anything is put into it.
    fn make_fleet(&self) -> Result<(), StoreError> {
        for (dir, above) in [(FLEET, ""), (BUNDLES, FLEET), (ARTIFACTS, FLEET)] {
            let (path, above) = (self.root.join(dir), self.root.join(above));
            self.did("make", &path, self.disk.make_dir(&path))?;
            self.did("sync", &above, self.disk.sync_dir(&above))?;
        }
        Ok(())
    }
}

fn bundle_path(root: &Path, digest: Digest) -> PathBuf {
    root.join(BUNDLES).join(format!("{digest}.bundle"))
}

/// Whether a bundle's document is the one that is meant. Its signatures were verified when it came.
fn is_whole(bytes: &[u8], digest: Digest) -> bool {
    Envelope::open(bytes).is_ok_and(|opened| Digest::of(opened.document.as_bytes()) == digest)
}

/// The bundle that is in force below a state directory, which another process may hold.
///
/// # Errors
/// Where the record or the bundle is there and cannot be read.
pub fn in_force(state_dir: &Path) -> Result<Option<KeptBundle>, String> {
    let path = state_dir.join(RECORD);
    let record: Record = match std::fs::read(&path) {
        Ok(bytes) => {
            seal::open(&bytes).map_err(|damage| format!("{}: {damage}", path.display()))?
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(format!("cannot read {}: {error}", path.display())),
    };
    let Some(kept) = record.in_force().cloned() else { return Ok(None) };
    let path = bundle_path(state_dir, kept.digest);
    let bytes = std::fs::read(&path);
    let bytes = bytes.map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    if !is_whole(&bytes, kept.digest) {
        return Err(format!("{} is damaged", path.display()));
    }
    let opened = Envelope::open(&bytes).map_err(|refused| refused.to_string())?;
    let document = opened.document.to_owned();
    Ok(Some(KeptBundle { kept, path, document }))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::faulty::{Fault, FaultyDisk};
    use super::*;
    use crate::fleet::apply::Step;
    use crate::fleet::{Seen, Standing};

    fn bundle(revision: u64) -> (Digest, Vec<u8>) {
        let document = format!("revision: {revision}\n");
        let signature = "untrusted comment: a\nb\ntrusted comment: c\nd";
        let bytes = Envelope::seal(&document, &[signature]).unwrap().into_bytes();
        (Digest::of(document.as_bytes()), bytes)
    }

    fn record(revision: u64) -> Record {
        let (digest, _) = bundle(revision);
        let good = Some(Kept { revision, digest });
        let seen = Some(Seen { revision, digest, standing: Standing::Applied });
        Record { seen, good, step: Step::Idle, rotated: None }
    }

    /// Keeps a bundle, then says that it is in force, then lets go of those before: as the machine's effects
    /// do.
    fn bring(store: &mut Store, revision: u64) -> Result<(), StoreError> {
        let (digest, bytes) = bundle(revision);
        store.put_bundle(digest, &bytes)?;
        store.put_fleet(&record(revision))?;
        store.sweep_fleet(&[digest]);
        Ok(())
    }

    fn open(disk: &FaultyDisk) -> Store {
        Store::open_on(Arc::new(disk.clone()), Path::new("/state")).unwrap()
    }

    /// The revision in force; its bundle must be there.
    fn found(disk: &FaultyDisk) -> u64 {
        let mut store = open(disk);
        let record = store.fleet();
        assert!(store.moved().is_empty(), "{:?}", store.moved());
        let Some(kept) = record.in_force() else { return 0 };
        assert_eq!(store.bundle(kept.digest), Some(bundle(kept.revision).1));
        kept.revision
    }

    #[test]
    fn a_power_cut_at_any_write_leaves_the_old_bundle_in_force_or_the_new_one() {
        let disk = FaultyDisk::default();
        let mut store = open(&disk);
        let begun = disk.done();
        (1..=3).for_each(|revision| bring(&mut store, revision).unwrap());
        let writes = disk.done() - begun;
        assert!(writes > 20, "{writes}");
        let mut seen = std::collections::BTreeSet::new();
        for at in 1..=writes {
            for seed in 0..4 {
                let disk = FaultyDisk::default();
                let mut store = open(&disk);
                disk.fail_at(disk.done() + at, Fault::Crash);
                let acknowledged =
                    (1..=3).take_while(|n| bring(&mut store, *n).is_ok()).count() as u64;
                let after = found(&disk.after_crash(seed));
                assert!((acknowledged..=acknowledged + 1).contains(&after), "{at}: {after}");
                seen.insert(after);
            }
        }
        assert_eq!(seen.into_iter().collect::<Vec<_>>(), [0, 1, 2, 3]);
    }

    #[test]
    fn a_full_disk_leaves_the_old_bundle_in_force_and_the_next_try_brings_the_new_one() {
        for at in 1..=12 {
            let disk = FaultyDisk::default();
            let mut store = open(&disk);
            bring(&mut store, 1).unwrap();
            disk.fail_at(disk.done() + at, Fault::Once);
            let done = bring(&mut store, 2).is_ok();
            assert!(found(&disk) == 2 || !done && found(&disk) == 1, "at {at}");
            bring(&mut store, 2).unwrap();
            assert_eq!(found(&disk), 2);
        }
    }

    #[test]
    fn whoever_does_not_hold_the_store_finds_what_is_in_force_and_is_told_of_damage() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(in_force(dir.path()), Ok(None));
        let mut store = Store::open(dir.path()).unwrap();
        bring(&mut store, 7).unwrap();
        let found = in_force(dir.path()).unwrap().unwrap();
        assert_eq!((found.kept.revision, found.document.as_str()), (7, "revision: 7\n"));
        std::fs::write(&found.path, "revision: 8\n").unwrap();
        assert!(in_force(dir.path()).unwrap_err().ends_with("is damaged"));
        std::fs::write(dir.path().join(RECORD), "x").unwrap();
        assert!(in_force(dir.path()).is_err());
    }
}
