//! A file system in memory that fails or crashes at a chosen operation.
//!
//! It promises only what a journaling file system does: changes of names last in their order, up to
//! some point at or after the last `sync_dir` that asked for them; contents last from `sync_file`
//! on, before that any beginning of them may be there.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::disk::Disk;
use crate::units::Digest;

/// What happens at the chosen operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The disk is full: this operation fails, a write half-way.
    Once,
    /// The machine stops: this and all later operations fail.
    Crash,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Node {
    Dir,
    File(usize),
}

#[derive(Debug, Clone)]
enum Change {
    Make(PathBuf, Node),
    Rename(PathBuf, PathBuf),
    Remove(PathBuf),
}

type Names = BTreeMap<PathBuf, Node>;

#[derive(Debug, Clone, Default)]
struct Inode {
    data: Vec<u8>,
    synced: bool,
}

#[derive(Debug, Default)]
struct State {
    lasting: Names,
    names: Names,
    pending: Vec<Change>,
    inodes: Vec<Inode>,
    done: usize,
    fault: Option<(usize, Fault)>,
}

/// Cloning gives another handle on the same disk.
#[derive(Debug, Clone, Default)]
pub struct FaultyDisk(Arc<Mutex<State>>);

impl Change {
    fn apply(&self, names: &mut Names) {
        match self {
            Self::Make(path, node) => drop(names.insert(path.clone(), node.clone())),
            Self::Remove(path) => names.retain(|name, _| !name.starts_with(path)),
            Self::Rename(from, to) => {
                names.retain(|name, _| !name.starts_with(to));
                let moved: Vec<PathBuf> =
                    names.keys().filter(|name| name.starts_with(from)).cloned().collect();
                for old in moved {
                    let (Some(node), Ok(rest)) = (names.remove(&old), old.strip_prefix(from))
                    else {
                        continue;
                    };
                    let new = if rest.as_os_str().is_empty() { to.clone() } else { to.join(rest) };
                    names.insert(new, node);
                }
            }
        }
    }

    fn touches(&self, dir: &Path) -> bool {
        let within = |path: &Path| path.parent() == Some(dir);
        match self {
            Self::Make(path, _) | Self::Remove(path) => within(path),
            Self::Rename(from, to) => within(from) || within(to),
        }
    }
}

impl FaultyDisk {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// Operations that changed something so far.
    pub fn done(&self) -> usize {
        self.state().done
    }

    /// Plans a fault at the `at`-th changing operation from the beginning on.
    pub fn fail_at(&self, at: usize, fault: Fault) {
        self.state().fault = Some((at, fault));
    }

    /// What a machine finds after a power cut: chance, by `seed`, decides how much of what was not
    /// synced is there.
    pub fn after_crash(&self, seed: u64) -> Self {
        let state = self.state();
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut names = state.lasting.clone();
        let lasting = rng.random_range(0..=state.pending.len());
        state.pending[..lasting].iter().for_each(|change| change.apply(&mut names));
        let torn = |inode: &Inode, rng: &mut ChaCha8Rng| {
            let kept = if inode.synced {
                inode.data.len()
            } else {
                rng.random_range(0..=inode.data.len())
            };
            Inode { data: inode.data[..kept].to_vec(), synced: true }
        };
        let inodes = state.inodes.iter().map(|inode| torn(inode, &mut rng)).collect();
        let state = State { lasting: names.clone(), names, inodes, ..State::default() };
        Self(Arc::new(Mutex::new(state)))
    }

    /// Changes a byte of a file behind everybody's back.
    pub fn damage(&self, path: &Path) {
        let mut state = self.state();
        let Some(Node::File(inode)) = state.names.get(path).cloned() else { panic!("no {path:?}") };
        let data = &mut state.inodes[inode].data;
        let middle = data.len() / 2;
        data[middle] ^= 1;
    }

    /// All files that are there.
    pub fn files(&self) -> Vec<PathBuf> {
        let state = self.state();
        let files = state.names.iter().filter(|(_, node)| **node != Node::Dir);
        files.map(|(path, _)| path.clone()).collect()
    }
}

fn full() -> io::Error {
    io::Error::new(io::ErrorKind::StorageFull, "no space left on device")
}

impl State {
    /// Counts an operation; `Err` where it is to fail.
    fn turn(&mut self) -> io::Result<()> {
        self.done += 1;
        match self.fault {
            Some((at, Fault::Once)) if self.done == at => Err(full()),
            Some((at, Fault::Crash)) if self.done >= at => Err(full()),
            _ => Ok(()),
        }
    }

    fn change(&mut self, change: Change) {
        change.apply(&mut self.names);
        self.pending.push(change);
    }

    fn inode(&self, path: &Path) -> io::Result<usize> {
        match self.names.get(path) {
            Some(Node::File(inode)) => Ok(*inode),
            Some(Node::Dir) => Err(io::ErrorKind::IsADirectory.into()),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }
}

impl Disk for FaultyDisk {
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        let state = self.state();
        Ok(state.inodes[state.inode(path)?].data.clone())
    }

    fn hash(&self, path: &Path) -> io::Result<Digest> {
        Ok(Digest::of(&self.read(path)?))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>> {
        let state = self.state();
        match state.names.get(dir) {
            Some(Node::Dir) => {
                let within = |path: &&PathBuf| path.parent() == Some(dir);
                Ok(state.names.keys().filter(within).cloned().collect())
            }
            Some(Node::File(_)) => Err(io::ErrorKind::NotADirectory.into()),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn make_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.turn()?;
        let missing: Vec<PathBuf> =
            dir.ancestors().filter(|d| !state.names.contains_key(*d)).map(Path::to_owned).collect();
        for dir in missing.into_iter().rev() {
            state.change(Change::Make(dir, Node::Dir));
        }
        Ok(())
    }

    fn write(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.state();
        let turn = state.turn();
        let crashed = matches!(state.fault, Some((at, Fault::Crash)) if state.done > at);
        if crashed {
            return turn;
        }
        let kept = if turn.is_ok() { bytes.len() } else { bytes.len() / 2 };
        let inode = state.inodes.len();
        state.inodes.push(Inode { data: bytes[..kept].to_vec(), synced: false });
        state.change(Change::Make(path.to_owned(), Node::File(inode)));
        turn
    }

    fn sync_file(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.turn()?;
        let inode = state.inode(path)?;
        state.inodes[inode].synced = true;
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.turn()?;
        let last = state.pending.iter().rposition(|change| change.touches(dir));
        let lasting: Vec<Change> = state.pending.drain(..last.map_or(0, |at| at + 1)).collect();
        lasting.iter().for_each(|change| change.apply(&mut state.lasting));
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.turn()?;
        let node = state.names.get(from).ok_or(io::ErrorKind::NotFound)?;
        let filled = state.names.keys().any(|name| name != to && name.starts_with(to));
        if *node == Node::Dir && filled {
            return Err(io::ErrorKind::DirectoryNotEmpty.into());
        }
        state.change(Change::Rename(from.to_owned(), to.to_owned()));
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.turn()?;
        if state.names.contains_key(path) {
            state.change(Change::Remove(path.to_owned()));
        }
        Ok(())
    }
}
