//! What the agent keeps below its state directory, and the only writer there: ladders, how their
//! builds stand, the quarantine, what was last in service, samples of live requests.
//!
//! ```text
//! quarantine                    variants that must not be served, by digest
//! providers                     on which execution providers models did not run
//! remembered/<name>             what is remembered of a model
//! builds/<dense>-<conditions>   how a ladder's build stands, its trials
//! ladders/<dense>-<conditions>/ manifest, rungs, and a seal with the hash of each file
//! reservoirs/<name>/<hash>.npz  samples of live requests
//! fleet/record                  what bundle is in force, and how the next one comes to be
//! fleet/bundles/<hash>.bundle   these bundles
//! fleet/artifacts/              models of the next one, while they are fetched and tried
//! damaged/                      what was found broken, moved aside
//! children/                     folders of the children that run, for as long as they do
//! ```
//!
//! Every write is a temporary file, fsync, rename, fsync of the directory. A method that returns
//! without error has made its change last; one that fails, or is cut short by a crash, leaves the
//! old state or the new one. Every file carries its hash; what does not match is moved aside and
//! counts as absent: state never stops the agent from starting.

mod disk;
#[cfg(test)]
mod faulty;
mod fleet;
mod ladders;
mod providers;
mod records;
pub(super) mod seal;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::fcntl::{Flock, FlockArg};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::limits;
use crate::units::Digest;

pub use disk::{Disk, RealDisk};
pub use fleet::{KeptBundle, in_force};
pub use records::{
    BuildState, Drawn, FailedOnProvider, InService, Ladder, LadderId, LadderRecord, ModelRecord,
    Quarantined, Reservoir, Trial,
};
pub use seal::Damage;

/// Why something could not be kept. What was kept before still is.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file system refused.
    #[error("cannot {doing} {}: {source}", path.display())]
    Io { doing: &'static str, path: PathBuf, source: io::Error },
    /// Another agent holds the state directory.
    #[error("{} is in use by another blochd; give each its own state directory", path.display())]
    InUse { path: PathBuf },
    /// What a build left is no ladder.
    #[error("{}: {reason}", path.display())]
    NotALadder { path: PathBuf, reason: String },
}

/// A file that was found damaged and moved aside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Moved {
    pub path: PathBuf,
    /// Where it lies now; `None` where it could not be moved.
    pub to: Option<PathBuf>,
    pub reason: String,
}

/// The state directory.
pub struct Store {
    disk: Arc<dyn Disk>,
    root: PathBuf,
    models: BTreeMap<String, ModelRecord>,
    builds: BTreeMap<LadderId, LadderRecord>,
    quarantine: BTreeMap<Digest, Quarantined>,
    failed_on: BTreeMap<Digest, FailedOnProvider>,
    moved: Vec<Moved>,
    _lock: Option<Flock<File>>,
}

/// Holds the identity of a build beside its record: the folder's name is shortened.
#[derive(Serialize, serde::Deserialize)]
struct Build {
    id: LadderId,
    record: LadderRecord,
}

const QUARANTINE: &str = "quarantine";
const PROVIDERS: &str = "providers";
/// Not "models": where nothing else is said, that folder of the state directory is where models are dropped.
const MODELS: &str = "remembered";
const BUILDS: &str = "builds";
const LADDERS: &str = "ladders";
const RESERVOIRS: &str = "reservoirs";
const DAMAGED: &str = "damaged";
const CHILDREN: &str = "children";

/// The oldest entries make place beyond `most`; `at` tells their age.
fn bound<T>(all: &mut BTreeMap<Digest, T>, most: usize, at: impl Fn(&T) -> u64) {
    while all.len() > most {
        let oldest = all.iter().min_by_key(|(_, entry)| at(entry)).map(|(key, _)| *key);
        oldest.map(|key| all.remove(&key));
    }
}

impl Store {
    /// Opens the state directory, makes what is missing of it, and locks it against other agents.
    ///
    /// # Errors
    /// Where it cannot be made or is in use.
    pub fn open(root: &Path) -> Result<Self, StoreError> {
        let disk = RealDisk;
        let made = disk.make_dir(root);
        made.map_err(|source| StoreError::Io { doing: "make", path: root.to_owned(), source })?;
        let path = root.join("lock");
        let failed = |source| StoreError::Io { doing: "open", path: path.clone(), source };
        let mut options = File::options();
        let options = options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let file = options.open(&path).map_err(failed)?;
        let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock)
            .map_err(|_| StoreError::InUse { path: root.to_owned() })?;
        // Left by an agent that was killed, with its children. What cannot be removed is in nobody's way.
        let _ = std::fs::remove_dir_all(root.join(CHILDREN));
        let mut store = Self::open_on(Arc::new(disk), root)?;
        store._lock = Some(lock);
        Ok(store)
    }

    /// As [`Store::open`] on any file system, without the lock.
    ///
    /// # Errors
    /// Where the directories cannot be made.
    pub fn open_on(disk: Arc<dyn Disk>, root: &Path) -> Result<Self, StoreError> {
        let mut store = Self {
            disk,
            root: root.to_owned(),
            models: BTreeMap::new(),
            builds: BTreeMap::new(),
            quarantine: BTreeMap::new(),
            failed_on: BTreeMap::new(),
            moved: Vec::new(),
            _lock: None,
        };
        for dir in [MODELS, BUILDS, LADDERS, RESERVOIRS, DAMAGED] {
            let path = root.join(dir);
            store.did("make", &path, store.disk.make_dir(&path))?;
        }
        store.did("sync", root, store.disk.sync_dir(root))?;
        if let Some(quarantine) = store.load(&root.join(QUARANTINE)) {
            store.quarantine = quarantine;
        }
        if let Some(failed_on) = store.load(&root.join(PROVIDERS)) {
            store.failed_on = failed_on;
        }
        for path in store.whole_files(&root.join(MODELS)) {
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
            if let (Some(name), Some(record)) = (name, store.load(&path)) {
                store.models.insert(name, record);
            }
        }
        for path in store.whole_files(&root.join(BUILDS)) {
            if let Some(Build { id, record }) = store.load(&path) {
                store.builds.insert(id, record);
            }
        }
        store.recover_ladders()?;
        Ok(store)
    }

    /// What was found damaged when the store was opened or read.
    pub fn moved(&self) -> &[Moved] {
        &self.moved
    }

    /// The directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where children that run have folders of their own.
    pub fn children_dir(&self) -> PathBuf {
        self.root.join(CHILDREN)
    }

    /// What is remembered of a model; nothing of one that was never served.
    pub fn model(&self, name: &str) -> ModelRecord {
        self.models.get(name).cloned().unwrap_or_default()
    }

    /// Remembers.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub fn put_model(&mut self, name: &str, record: ModelRecord) -> Result<(), StoreError> {
        if self.models.get(name) == Some(&record) {
            return Ok(());
        }
        self.put(&self.root.join(MODELS).join(name), &record)?;
        self.models.insert(name.to_owned(), record);
        Ok(())
    }

    /// Everything that must not be served, by the variant's digest.
    pub fn quarantined(&self) -> &BTreeMap<Digest, Quarantined> {
        &self.quarantine
    }

    /// Keeps a variant out of service. The oldest entries make place beyond
    /// [`limits::QUARANTINE_ENTRIES`].
    ///
    /// # Errors
    /// Where it cannot be written.
    pub fn put_quarantine(&mut self, digest: Digest, why: Quarantined) -> Result<(), StoreError> {
        let mut all = self.quarantine.clone();
        all.insert(digest, why);
        bound(&mut all, limits::QUARANTINE_ENTRIES, |entry| entry.at);
        self.put(&self.root.join(QUARANTINE), &all)?;
        self.quarantine = all;
        Ok(())
    }

    /// Lets a variant be tried again.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub fn release(&mut self, digest: &Digest) -> Result<(), StoreError> {
        let mut all = self.quarantine.clone();
        if all.remove(digest).is_none() {
            return Ok(());
        }
        self.put(&self.root.join(QUARANTINE), &all)?;
        self.quarantine = all;
        Ok(())
    }

    /// How a ladder's build stands; `None` where it was never asked for.
    pub fn build(&self, id: &LadderId) -> Option<&LadderRecord> {
        self.builds.get(id)
    }

    /// Remembers how a ladder's build stands.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub fn put_build(&mut self, id: LadderId, record: LadderRecord) -> Result<(), StoreError> {
        if self.builds.get(&id) == Some(&record) {
            return Ok(());
        }
        let path = self.root.join(BUILDS).join(id.folder());
        self.put(&path, &Build { id, record: record.clone() })?;
        self.builds.insert(id, record);
        Ok(())
    }

    /// Keeps samples of a model's live requests (an npz archive) in place of those before.
    ///
    /// # Errors
    /// Where they cannot be written; those before are still kept then.
    pub fn put_reservoir(
        &mut self,
        model: &str,
        npz: &[u8],
        drawn: Drawn,
    ) -> Result<(), StoreError> {
        let dir = self.root.join(RESERVOIRS).join(model);
        self.did("make", &dir, self.disk.make_dir(&dir))?;
        let parent = self.root.join(RESERVOIRS);
        self.did("sync", &parent, self.disk.sync_dir(&parent))?;
        let digest = Digest::of(npz);
        let path = dir.join(format!("{digest}.npz"));
        self.put_bytes(&path, npz)?;
        let reservoir = Some(Reservoir { digest, drawn });
        self.put_model(model, ModelRecord { reservoir, ..self.model(model) })?;
        // Older samples only take place: a failure to remove them loses nothing.
        for old in self.disk.list(&dir).unwrap_or_default() {
            if old != path
                && let Err(error) = self.disk.remove(&old)
            {
                tracing::warn!("cannot remove {}: {error}", old.display());
            }
        }
        Ok(())
    }

    /// Removes a model's samples.
    ///
    /// # Errors
    /// Where that cannot be done; some of them may be gone then.
    pub fn drop_reservoir(&mut self, model: &str) -> Result<(), StoreError> {
        if self.model(model).reservoir.is_none() {
            return Ok(());
        }
        let dir = self.root.join(RESERVOIRS).join(model);
        self.did("remove", &dir, self.disk.remove(&dir))?;
        self.put_model(model, ModelRecord { reservoir: None, ..self.model(model) })
    }

    /// The file with a model's samples, checked, and what they were drawn from.
    pub fn reservoir(&mut self, model: &str) -> Option<(PathBuf, Reservoir)> {
        let reservoir = self.models.get(model)?.reservoir?;
        let path = self.reservoir_file(model)?;
        match self.disk.hash(&path) {
            Ok(found) if found == reservoir.digest => Some((path, reservoir)),
            Ok(_) => {
                self.set_aside(&path, &Damage::Hash);
                None
            }
            Err(_) => None,
        }
    }

    /// The file with a model's samples, whatever it holds by now: for readers that check what they find.
    pub fn reservoir_file(&self, model: &str) -> Option<PathBuf> {
        let reservoir = self.models.get(model)?.reservoir?;
        let dir = self.root.join(RESERVOIRS).join(model);
        Some(dir.join(format!("{}.npz", reservoir.digest)))
    }

    fn did<T>(
        &self,
        doing: &'static str,
        path: &Path,
        done: io::Result<T>,
    ) -> Result<T, StoreError> {
        done.map_err(|source| StoreError::Io { doing, path: path.to_owned(), source })
    }

    fn put<T: Serialize>(&self, path: &Path, value: &T) -> Result<(), StoreError> {
        let bytes = self.did("write", path, seal::seal(value).map_err(io::Error::other))?;
        self.put_bytes(path, &bytes)
    }

    fn put_bytes(&self, path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let temporary = path.with_file_name(format!(".{name}"));
        let dir = path.parent().unwrap_or(&self.root);
        let written = self
            .disk
            .write(&temporary, bytes)
            .and_then(|()| self.disk.sync_file(&temporary))
            .and_then(|()| self.disk.rename(&temporary, path))
            .and_then(|()| self.disk.sync_dir(dir));
        if written.is_err() {
            // On a full disk the half-written file would only make it worse.
            let _ = self.disk.remove(&temporary);
        }
        self.did("write", path, written)
    }

    /// The value in a file; `None` where there is none or a damaged one, which is moved aside.
    fn load<T: DeserializeOwned>(&mut self, path: &Path) -> Option<T> {
        let read = match self.disk.read(path) {
            Ok(bytes) => seal::open(&bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => Err(Damage::Unreadable(error.to_string())),
        };
        match read {
            Ok(value) => Some(value),
            Err(damage) => {
                self.set_aside(path, &damage);
                None
            }
        }
    }

    /// Files of a directory; temporary ones of an interrupted write are removed.
    fn whole_files(&self, dir: &Path) -> Vec<PathBuf> {
        let (temporary, whole): (Vec<_>, Vec<_>) =
            self.disk.list(dir).unwrap_or_default().into_iter().partition(|path| is_hidden(path));
        for path in temporary {
            let _ = self.disk.remove(&path);
        }
        whole
    }

    /// Moves something damaged out of the way, where a person can look at it.
    fn set_aside(&mut self, path: &Path, damage: &Damage) {
        let reason = damage.to_string();
        let relative = path.strip_prefix(&self.root).unwrap_or(path);
        let flat = relative.to_string_lossy().replace('/', "-");
        let dir = self.root.join(DAMAGED);
        let to = dir.join(flat);
        let moved = self
            .disk
            .remove(&to)
            .and_then(|()| self.disk.rename(path, &to))
            .and_then(|()| self.disk.sync_dir(&dir));
        if let Err(error) = &moved {
            tracing::warn!("cannot move {} aside: {error}", path.display());
        }
        tracing::warn!("{} is damaged: {reason}; it is made anew", path.display());
        let to = moved.is_ok().then_some(to);
        self.moved.push(Moved { path: path.to_owned(), to, reason });
        let kept = self.disk.list(&dir).unwrap_or_default();
        let excess = kept.len().saturating_sub(limits::DAMAGED_KEPT);
        for old in kept.into_iter().take(excess) {
            let _ = self.disk.remove(&old);
        }
    }
}

fn is_hidden(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'))
}
