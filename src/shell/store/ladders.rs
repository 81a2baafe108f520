//! Ladders: built in a folder beside their place, sealed, and renamed into it when whole.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::ladder::Manifest;
use crate::ladder::manifest::{MANIFEST_FILE, MANIFEST_FORMAT};
use crate::limits;
use crate::shell::unfinished::{UNFINISHED_FILE, Unfinished};
use crate::units::Digest;

use super::records::{BuildState, Ladder, LadderId};
use super::seal::{self, Damage};
use super::{Disk, LADDERS, Store, StoreError, is_hidden};

/// The seal's name in a ladder's folder.
const SEAL: &str = "seal";

/// Hashes of a ladder's files by name.
type Seal = BTreeMap<String, Digest>;

impl Store {
    /// Where a finished ladder lies, if there is one.
    pub fn ladder_dir(&self, id: &LadderId) -> PathBuf {
        self.root.join(LADDERS).join(id.folder())
    }

    fn building_dir(&self, id: &LadderId) -> PathBuf {
        self.root.join(LADDERS).join(format!(".building-{}", id.folder()))
    }

    fn former_dir(&self, folder: &str) -> PathBuf {
        self.root.join(LADDERS).join(format!(".former-{folder}"))
    }

    /// Ends what a crash interrupted: a ladder that had made place for its successor comes back
    /// where the successor did not arrive; half-built ones whose build does not wait to go on, go.
    pub(super) fn recover_ladders(&mut self) -> Result<(), StoreError> {
        let dir = self.root.join(LADDERS);
        for path in self.disk.list(&dir).unwrap_or_default() {
            if !is_hidden(&path) {
                continue;
            }
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if name.strip_prefix(".building-").is_some_and(|folder| self.is_open(folder)) {
                continue;
            }
            let place = name.strip_prefix(".former-").map(|folder| dir.join(folder));
            match place.filter(|place| self.disk.list(place).is_err()) {
                Some(place) => {
                    self.did("bring back", &place, self.disk.rename(&path, &place))?;
                    self.did("sync", &dir, self.disk.sync_dir(&dir))?;
                }
                None => {
                    if let Err(error) = self.disk.remove(&path) {
                        tracing::warn!("cannot remove {}: {error}", path.display());
                    }
                }
            }
        }
        Ok(())
    }

    /// Whether the ladder of that folder waits to be built.
    fn is_open(&self, folder: &str) -> bool {
        self.builds.iter().any(|(id, record)| {
            let waits = matches!(record.build, BuildState::Queued | BuildState::Building);
            waits && id.folder() == folder
        })
    }

    /// A folder to build a ladder in. What an interrupted build finished there is left for the next one to
    /// go on from (it looks whether the files are whole and the conditions the same); all else is gone.
    ///
    /// # Errors
    /// Where it cannot be made.
    pub fn begin_ladder(&mut self, id: &LadderId) -> Result<PathBuf, StoreError> {
        let path = self.building_dir(id);
        let record = self.disk.read(&path.join(UNFINISHED_FILE)).ok();
        match record.and_then(|bytes| seal::open::<Unfinished>(&bytes).ok()) {
            Some(unfinished) => {
                for file in self.did("list", &path, self.disk.list(&path))? {
                    let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
                    if name != UNFINISHED_FILE && !unfinished.files.contains_key(&name) {
                        self.did("remove", &file, self.disk.remove(&file))?;
                    }
                }
            }
            None => {
                self.did("remove", &path, self.disk.remove(&path))?;
                self.did("make", &path, self.disk.make_dir(&path))?;
            }
        }
        Ok(path)
    }

    /// Takes a ladder into place that was whole when the agent stopped: a build writes its manifest last.
    pub fn finished_ladder(&mut self, id: &LadderId) -> Option<Ladder> {
        self.disk.read(&self.building_dir(id).join(MANIFEST_FILE)).ok()?;
        let taken = self.commit_ladder(id);
        taken.inspect_err(|error| tracing::warn!("a build is done again: {error}")).ok()
    }

    /// Takes what was built into place, after a look at whether it is a ladder of that model.
    ///
    /// # Errors
    /// Where it is none, or cannot be written; a ladder that was there before still is.
    pub fn commit_ladder(&mut self, id: &LadderId) -> Result<Ladder, StoreError> {
        let from = self.building_dir(id);
        let to = self.ladder_dir(id);
        let mut sealed = Seal::new();
        for file in self.did("list", &from, self.disk.list(&from))? {
            let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if name.starts_with('.') || name == SEAL {
                self.did("remove", &file, self.disk.remove(&file))?;
                continue;
            }
            self.did("sync", &file, self.disk.sync_file(&file))?;
            sealed.insert(name, self.did("read", &file, self.disk.hash(&file))?);
        }
        let manifest = manifest(self.disk.as_ref(), &from, id, &sealed)
            .map_err(|reason| StoreError::NotALadder { path: from.clone(), reason })?;
        self.put(&from.join(SEAL), &sealed)?;
        let dir = self.root.join(LADDERS);
        let former = self.former_dir(&id.folder());
        self.did("remove", &former, self.disk.remove(&former))?;
        let replaces = self.disk.list(&to).is_ok();
        if replaces {
            self.did("move", &to, self.disk.rename(&to, &former))?;
        }
        let moved = self.disk.rename(&from, &to).and_then(|()| self.disk.sync_dir(&dir));
        if moved.is_err() && replaces && self.disk.list(&to).is_err() {
            // The one before is better than none. Should this fail, too, the next start does it.
            let _ = self.disk.rename(&former, &to);
        }
        self.did("move into place", &to, moved)?;
        if let Err(error) = self.disk.remove(&former) {
            tracing::warn!("cannot remove {}: {error}", former.display());
        }
        Ok(Ladder { manifest, folder: to })
    }

    /// A finished ladder, every file of which is what it was when it was sealed. A damaged one is
    /// moved aside. Reads all of it: see [`Store::look_at_ladder`] for threads that must not wait.
    pub fn ladder(&mut self, id: &LadderId) -> Option<Ladder> {
        match self.look_at_ladder(id)?() {
            Ok(manifest) => Some(Ladder { manifest, folder: self.ladder_dir(id) }),
            Err(damage) => {
                self.set_ladder_aside(id, &damage);
                None
            }
        }
    }

    /// A look at a finished ladder, to be taken on a thread that may wait: whether every file is what it
    /// was when it was sealed. `None` where there is no such ladder.
    pub fn look_at_ladder(
        &self,
        id: &LadderId,
    ) -> Option<impl FnOnce() -> Result<Manifest, Damage> + Send + 'static> {
        let folder = self.ladder_dir(id);
        self.disk.list(&folder).ok()?;
        let (disk, id) = (std::sync::Arc::clone(&self.disk), *id);
        Some(move || sound(disk.as_ref(), &folder, &id))
    }

    /// Moves a damaged ladder out of the way.
    pub fn set_ladder_aside(&mut self, id: &LadderId, damage: &Damage) {
        self.set_aside(&self.ladder_dir(id), damage);
    }

    /// Removes the ladders that were not used for longest, beyond [`limits::LADDERS_KEPT`] and
    /// except those `in_use`.
    pub fn drop_old_ladders(&mut self, in_use: &[LadderId]) {
        let mut unused: Vec<(u64, LadderId)> = self
            .builds
            .iter()
            .filter(|(id, _)| !in_use.contains(id))
            .map(|(id, record)| (record.used, *id))
            .collect();
        unused.sort();
        let excess = self.builds.len().saturating_sub(limits::LADDERS_KEPT);
        for (_, id) in unused.into_iter().take(excess) {
            let removed = self
                .disk
                .remove(&self.ladder_dir(&id))
                .and_then(|()| self.disk.remove(&self.building_dir(&id)))
                .and_then(|()| self.disk.remove(&self.root.join(super::BUILDS).join(id.folder())));
            match removed {
                Ok(()) => drop(self.builds.remove(&id)),
                Err(error) => tracing::warn!("cannot remove an old ladder: {error}"),
            }
        }
    }
}

/// The manifest of a sealed folder, every file of which is what it was.
fn sound(disk: &dyn Disk, folder: &Path, id: &LadderId) -> Result<Manifest, Damage> {
    let unreadable = |error: std::io::Error| Damage::Unreadable(error.to_string());
    let sealed: Seal = seal::open(&disk.read(&folder.join(SEAL)).map_err(unreadable)?)?;
    for (name, told) in &sealed {
        if disk.hash(&folder.join(name)).map_err(unreadable)? != *told {
            return Err(Damage::Contents(format!("{name} is not what was written")));
        }
    }
    manifest(disk, folder, id, &sealed).map_err(Damage::Contents)
}

/// The manifest of a folder, if it is one of this model and names only files that are there.
fn manifest(disk: &dyn Disk, dir: &Path, id: &LadderId, sealed: &Seal) -> Result<Manifest, String> {
    let bytes = disk.read(&dir.join(MANIFEST_FILE));
    let bytes = bytes.map_err(|error| format!("{MANIFEST_FILE}: {error}"))?;
    let manifest: Manifest = serde_json::from_slice(&bytes)
        .map_err(|error| format!("{MANIFEST_FILE} is no manifest: {error}"))?;
    if manifest.format > MANIFEST_FORMAT {
        return Err(format!(
            "{MANIFEST_FILE} has format {}, this program reads up to {MANIFEST_FORMAT}",
            manifest.format
        ));
    }
    if manifest.source.digest != id.dense {
        return Err(format!(
            "{MANIFEST_FILE} is of the model {}, not of {}",
            manifest.source.digest.short(),
            id.dense.short()
        ));
    }
    // A name with a path in it is in no seal.
    match manifest.rungs.iter().find(|rung| !sealed.contains_key(&rung.file)) {
        Some(rung) => Err(format!("the file {:?} of {} is not there", rung.file, rung.name)),
        None => Ok(manifest),
    }
}
