//! What the agent keeps below its state directory: ladders, by the digest of the dense model and the
//! engine they were measured on, and the quarantine. The only writer there.
//!
//! A ladder is built in a folder of its own and renamed into place when it is whole; every other file is
//! replaced by a rename. Each is checked when it is read: whatever a crash or a failing disk left is
//! moved aside or built again, and never stops the agent.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::ladder::Manifest;
use crate::ladder::manifest::{MANIFEST_FILE, MANIFEST_FORMAT};
use crate::shell::{files, models};
use crate::units::Digest;

/// Why something could not be kept.
#[derive(Debug, thiserror::Error)]
#[error("cannot {doing} {}", path.display())]
pub struct StoreError {
    pub doing: &'static str,
    pub path: PathBuf,
    pub source: io::Error,
}

/// A variant that must not be served.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quarantined {
    /// What the variant is, for people: `digits version 2`, `digits r0.5`.
    pub what: String,
    pub reason: String,
    /// Seconds since 1970.
    pub at: u64,
}

/// The state directory.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
}

/// A file that carries the hash of its contents.
#[derive(Serialize, Deserialize)]
struct Sealed<T> {
    digest: Digest,
    contents: T,
}

impl Store {
    /// Makes the directories that are missing.
    ///
    /// # Errors
    /// Where they cannot be made.
    pub fn open(root: &Path) -> Result<Self, StoreError> {
        let store = Self { root: root.to_owned() };
        let ladders = store.ladders();
        fs::create_dir_all(&ladders).map_err(|source| StoreError {
            doing: "make",
            path: ladders.clone(),
            source,
        })?;
        // What an interrupted build left is of no use to the next one.
        for entry in fs::read_dir(&ladders).into_iter().flatten().flatten() {
            let unfinished = entry.file_name().to_string_lossy().ends_with(".building");
            if unfinished && let Err(error) = fs::remove_dir_all(entry.path()) {
                tracing::warn!("cannot remove {}: {error}", entry.path().display());
            }
        }
        Ok(store)
    }

    fn ladders(&self) -> PathBuf {
        self.root.join("ladders")
    }

    /// The folder of a ladder. Latencies of another engine are worth nothing, so it is part of the name.
    pub fn ladder_dir(&self, dense: Digest, engine: &str) -> PathBuf {
        let engine = Digest::of(engine.as_bytes()).short();
        self.ladders().join(format!("{dense}-{engine}"))
    }

    /// A finished ladder whose files are all there and are what they were.
    pub fn ladder(&self, dense: Digest, engine: &str) -> Option<Manifest> {
        let dir = self.ladder_dir(dense, engine);
        let text = fs::read(dir.join(MANIFEST_FILE)).ok()?;
        let manifest: Manifest = serde_json::from_slice(&text).ok()?;
        let sound = manifest.format <= MANIFEST_FORMAT
            && manifest.source.digest == dense
            && manifest.rungs.iter().all(|rung| {
                let plain =
                    Path::new(&rung.file).file_name().is_some_and(|n| n == rung.file.as_str());
                let model = plain.then(|| models::load(&dir.join(&rung.file)).ok()).flatten();
                model.and_then(|model| model.digest().ok()) == Some(rung.digest)
            });
        if !sound {
            tracing::warn!("the ladder in {} is damaged; it is built again", dir.display());
        }
        sound.then_some(manifest)
    }

    /// An empty folder to build a ladder in.
    ///
    /// # Errors
    /// Where it cannot be made.
    pub fn begin_ladder(&self, dense: Digest, engine: &str) -> Result<PathBuf, StoreError> {
        let path = self.ladder_dir(dense, engine).with_extension("building");
        let failed = |source| StoreError { doing: "make", path: path.clone(), source };
        if path.exists() {
            fs::remove_dir_all(&path).map_err(failed)?;
        }
        fs::create_dir_all(&path).map_err(failed)?;
        Ok(path)
    }

    /// Puts a built ladder in its place.
    ///
    /// # Errors
    /// Where it cannot be moved. What was there before may be gone then: it is built again.
    pub fn commit_ladder(&self, dense: Digest, engine: &str) -> Result<(), StoreError> {
        let to = self.ladder_dir(dense, engine);
        let from = to.with_extension("building");
        let failed = |source| StoreError { doing: "put a ladder into", path: to.clone(), source };
        if to.exists() {
            fs::remove_dir_all(&to).map_err(failed)?;
        }
        files::sync_dir(&from).map_err(failed)?;
        fs::rename(&from, &to).map_err(failed)?;
        files::sync_dir(&self.ladders()).map_err(failed)
    }

    fn quarantine_file(&self) -> PathBuf {
        self.root.join("quarantine.json")
    }

    /// Everything that is quarantined, by digest. A damaged file is moved aside and counts as empty.
    pub fn quarantined(&self) -> BTreeMap<Digest, Quarantined> {
        let path = self.quarantine_file();
        let Ok(text) = fs::read(&path) else { return BTreeMap::new() };
        let read = || -> Option<BTreeMap<Digest, Quarantined>> {
            let sealed: Sealed<BTreeMap<Digest, Quarantined>> =
                serde_json::from_slice(&text).ok()?;
            let bytes = serde_json::to_vec(&sealed.contents).ok()?;
            (Digest::of(&bytes) == sealed.digest).then_some(sealed.contents)
        };
        read().unwrap_or_else(|| {
            let aside = path.with_extension("damaged");
            tracing::warn!("{} is damaged; it is kept as {}", path.display(), aside.display());
            if let Err(error) = fs::rename(&path, &aside) {
                tracing::warn!("cannot move {} aside: {error}", path.display());
            }
            BTreeMap::new()
        })
    }

    /// Keeps the quarantine.
    ///
    /// # Errors
    /// Where it cannot be written; what was kept before still is.
    pub fn keep_quarantine(&self, all: &BTreeMap<Digest, Quarantined>) -> Result<(), StoreError> {
        let path = self.quarantine_file();
        let failed = |source| StoreError { doing: "write", path: path.clone(), source };
        let contents = serde_json::to_vec(all).map_err(|error| failed(error.into()))?;
        let sealed = Sealed { digest: Digest::of(&contents), contents: all };
        let text = serde_json::to_vec_pretty(&sealed).map_err(|error| failed(error.into()))?;
        files::replace(&path, &[text.into()]).map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one() -> BTreeMap<Digest, Quarantined> {
        let entry = Quarantined { what: "m r0.5".into(), reason: "said NaN".into(), at: 7 };
        BTreeMap::from([(Digest::of(b"m"), entry)])
    }

    #[test]
    fn the_quarantine_survives_a_restart_and_a_damaged_one_does_not_stop_it() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        store.keep_quarantine(&one()).unwrap();
        assert_eq!(Store::open(dir.path()).unwrap().quarantined(), one());
        let path = dir.path().join("quarantine.json");
        let text = fs::read_to_string(&path).unwrap();
        for damaged in [&text[..text.len() / 2], &text.replace("NaN", "inf"), ""] {
            fs::write(&path, damaged).unwrap();
            assert_eq!(store.quarantined(), BTreeMap::new());
            assert!(!path.exists() && dir.path().join("quarantine.damaged").exists());
        }
    }

    #[test]
    fn a_ladder_that_was_not_finished_is_not_there_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let (dense, engine) = (Digest::of(b"model"), "cpu");
        let building = store.begin_ladder(dense, engine).unwrap();
        fs::write(building.join(MANIFEST_FILE), "{").unwrap();
        assert_eq!(store.ladder(dense, engine), None);
        let store = Store::open(dir.path()).unwrap();
        assert!(!building.exists());
        store.begin_ladder(dense, engine).unwrap();
        fs::write(building.join(MANIFEST_FILE), "{").unwrap();
        store.commit_ladder(dense, engine).unwrap();
        assert_eq!(
            store.ladder(dense, engine),
            None,
            "a manifest that cannot be read is no ladder"
        );
    }
}
