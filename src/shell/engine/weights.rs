//! Constants that sessions hold together, once for the whole agent: sessions of one variant, and those of
//! variants and models in which a constant has the same type, shape and bytes.
//!
//! ONNX Runtime is given them by name (`AddInitializer`) beside the model; it reads them where they lie and
//! frees its own reading of them. What its kernels make of them (weights packed for a matrix product) is kept
//! by a container that all sessions of a model share; it takes in nothing but constants that were given so.
//!
//! They lie in files without a name, one a constant, mapped for reading: nobody else can write to one or cut
//! it short, which is why the model's own file is not mapped. Most of them are read while a session is loaded
//! and never after, since the packed form is what runs: pages that a file stands behind cost nothing then, and
//! the kernel can take them back. Memory of the process would stand twice, once raw and once packed. Where the
//! disk has no room, or is memory itself, they lie in memory, and only where several sessions ask for them.

use std::collections::BTreeMap;
use std::fs::{DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use memmap2::{Mmap, MmapMut, UncheckedAdvice};
use nix::sys::statfs::{FsType, TMPFS_MAGIC, statfs};
use ort::AsPointer;
use ort::memory::{Allocator, MemoryInfo};
use ort::session::builder::{PrepackedWeights, SessionBuilder};
use ort::value::DynValue;

use super::session::{failed, guarded};
use super::{Runtime, convert};
use crate::limits;
use crate::onnx::{self, DType, ExecError, Model};
use crate::units::Digest;

/// Linux's number of the file system without a size, `ramfs`.
const RAMFS_MAGIC: FsType = FsType(0x8584_58f6);

/// One constant, alive as long as a session or a [`Weights`] wants it.
#[derive(Debug)]
struct Constant {
    dtype: DType,
    /// As the runtime takes it.
    dims: Vec<i64>,
    map: Mmap,
    in_file: bool,
    /// What its pool counts by.
    count: Arc<AtomicU64>,
}

impl Drop for Constant {
    fn drop(&mut self) {
        self.count.fetch_sub(self.map.len() as u64, Ordering::Relaxed);
    }
}

impl Constant {
    /// A value of the runtime that lies in the constant's own memory.
    fn value(&self) -> ort::Result<DynValue> {
        let memory = MemoryInfo::default();
        let mut value = ptr::null_mut();
        // SAFETY: the memory outlives the value, see `Lent`. The runtime takes it as writable, and writes to
        // no constant that a session was given: it may be that of several. It is mapped for reading only.
        let status = unsafe {
            (ort::api().CreateTensorWithDataAsOrtValue)(
                memory.ptr(),
                self.map.as_ptr().cast_mut().cast(),
                self.map.len(),
                self.dims.as_ptr(),
                self.dims.len(),
                convert::element(self.dtype).into(),
                &mut value,
            )
        };
        if !status.0.is_null() {
            // SAFETY: the status is ours to release, once.
            unsafe { (ort::api().ReleaseStatus)(status.0) };
        }
        let value = NonNull::new(value)
            .ok_or_else(|| ort::Error::new("it made no value of a constant's memory"))?;
        // SAFETY: the value was just made, is a tensor, and belongs to nobody else.
        Ok(unsafe { DynValue::from_ptr(value, Some(&Allocator::default())) })
    }
}

/// The constants of one model that are held for its sessions, by name.
#[derive(Debug)]
pub struct Weights {
    constants: BTreeMap<String, (Digest, Arc<Constant>)>,
}

impl Weights {
    /// Bytes of the constants.
    pub fn bytes(&self) -> u64 {
        self.constants.values().map(|(_, constant)| constant.map.len() as u64).sum()
    }

    /// Whether they cost no memory while no session reads them.
    pub fn in_files(&self) -> bool {
        self.constants.values().all(|(_, constant)| constant.in_file)
    }

    /// Gives back the memory of what a file stands behind; what is still read comes back page by page. To be
    /// called once the sessions are loaded.
    pub fn release(&self) {
        for (_, constant) in self.constants.values().filter(|(_, constant)| constant.in_file) {
            // SAFETY: the map is a shared one of a file that nobody writes to: its pages are those of the file,
            // before and after.
            let advised = unsafe { constant.map.unchecked_advise(UncheckedAdvice::DontNeed) };
            if let Err(error) = advised {
                tracing::debug!("the memory of a constant is not given back: {error}");
            }
        }
    }
}

/// What kernels made of constants, for all sessions of a model.
#[derive(Debug)]
struct Packed {
    container: PrepackedWeights,
    /// What it may hold a packed form of, and how large. It gives nothing back before its end.
    seen: Mutex<BTreeMap<Digest, (Weak<Constant>, u64)>>,
}

impl Packed {
    fn new() -> Result<Self, ExecError> {
        let made = || Ok(PrepackedWeights::new());
        let container = guarded("preparing to share packed weights", made)?;
        Ok(Self { container, seen: Mutex::default() })
    }

    /// Whether it is still worth using for `weights`: not where most of what it holds is of constants that
    /// are gone.
    fn takes(&self, weights: &Weights) -> bool {
        let mut seen = lock(&self.seen);
        for (key, constant) in weights.constants.values() {
            seen.insert(*key, (Arc::downgrade(constant), constant.map.len() as u64));
        }
        let sum = |alive: bool| -> u64 {
            let found = seen.values().filter(|(weak, _)| (weak.strong_count() > 0) == alive);
            found.map(|(_, bytes)| bytes).sum()
        };
        sum(false) <= sum(true)
    }
}

/// What a session was lent. Everything that can reach the session's memory holds it: the constants must
/// outlive the session, which outputs keep alive.
#[derive(Debug)]
pub struct Lent {
    weights: Arc<Weights>,
    packed: Arc<Packed>,
}

impl Lent {
    /// Gives a session that is being built its constants.
    ///
    /// # Errors
    /// Where the runtime does not take one.
    pub(super) fn to(&self, mut builder: SessionBuilder) -> ort::Result<SessionBuilder> {
        for (name, (_, constant)) in &self.weights.constants {
            builder = builder.with_initializer(name, constant.value()?)?;
        }
        Ok(builder.with_prepacked_weights(&self.packed.container)?)
    }
}

/// Every constant that is held, for all models.
#[derive(Debug)]
pub struct Pool {
    /// Where its files lie; `None` for memory.
    folder: Option<PathBuf>,
    /// Fewest bytes of a constant that is held.
    least: usize,
    /// Bytes of all that are.
    count: Arc<AtomicU64>,
    held: Mutex<BTreeMap<Digest, Weak<Constant>>>,
    packed: Mutex<BTreeMap<String, Weak<Packed>>>,
}

impl Pool {
    /// A pool with its files in `folder`, which is made when it is wanted.
    pub fn in_folder(folder: PathBuf) -> Self {
        Self { folder: Some(folder), ..Self::in_memory() }
    }

    /// A pool without files.
    pub fn in_memory() -> Self {
        Self {
            folder: None,
            least: limits::LENT_BYTES,
            count: Arc::default(),
            held: Mutex::default(),
            packed: Mutex::default(),
        }
    }

    /// Bytes of all constants that are held.
    pub fn bytes(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// Holds the constants of `model` for `sessions` sessions; those that are held already are the same.
    /// `None` where there is nothing to hold.
    ///
    /// # Errors
    /// Where the model's external data is missing, or memory is.
    pub fn hold(&self, model: &Model, sessions: usize) -> Result<Option<Arc<Weights>>, ExecError> {
        const DOING: &str = "holding the model's weights";
        let found = onnx::constants(model, self.least).map_err(|error| failed(DOING, error))?;
        let mut held = lock(&self.held);
        held.retain(|_, constant| constant.strong_count() > 0);
        let new = found.iter().filter(|constant| !held.contains_key(&constant.key));
        let bytes = new.map(|constant| constant.bytes.len() as u64).sum();
        let folder = self.folder.as_deref().filter(|folder| has_room(folder, bytes));
        let mut constants = BTreeMap::new();
        for onnx::Constant { name, dtype, dims, bytes, key } in found {
            let known = held.get(&key).and_then(Weak::upgrade);
            let constant = match known {
                Some(constant) => constant,
                // Raw and packed, they would stand in memory twice, for the sake of nobody else.
                None if folder.is_none() && sessions < 2 => continue,
                None => {
                    let (map, in_file) = place(folder, &bytes).map_err(|e| failed(DOING, e))?;
                    let dims = dims.iter().map(|dim| *dim as i64).collect();
                    self.count.fetch_add(map.len() as u64, Ordering::Relaxed);
                    let count = Arc::clone(&self.count);
                    let constant = Arc::new(Constant { dtype, dims, map, in_file, count });
                    held.insert(key, Arc::downgrade(&constant));
                    constant
                }
            };
            constants.insert(name, (key, constant));
        }
        Ok((!constants.is_empty()).then(|| Arc::new(Weights { constants })))
    }

    /// What sessions of the model called `name` are given: its weights, and what any of them has packed.
    ///
    /// # Errors
    /// Where the runtime has no memory.
    pub fn lend(
        &self,
        _runtime: &Runtime,
        name: &str,
        weights: &Arc<Weights>,
    ) -> Result<Arc<Lent>, ExecError> {
        let mut all = lock(&self.packed);
        all.retain(|_, packed| packed.strong_count() > 0);
        let known = all.get(name).and_then(Weak::upgrade).filter(|packed| packed.takes(weights));
        let packed = match known {
            Some(packed) => packed,
            None => {
                let packed = Arc::new(Packed::new()?);
                packed.takes(weights);
                all.insert(name.to_owned(), Arc::downgrade(&packed));
                packed
            }
        };
        Ok(Arc::new(Lent { weights: Arc::clone(weights), packed }))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether `folder` is on a disk that has room for so many bytes and for what others write.
fn has_room(folder: &Path, bytes: u64) -> bool {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
    let Ok(found) = made.and_then(|()| Ok(statfs(folder)?)) else { return false };
    let kind = found.filesystem_type();
    let block = u64::try_from(found.block_size()).unwrap_or_default();
    let free = found.blocks_available().saturating_mul(block);
    kind != TMPFS_MAGIC && kind != RAMFS_MAGIC && free >= bytes.saturating_add(limits::DISK_RESERVE)
}

/// The bytes in a file of `folder`, or else in memory, and whether it is a file.
fn place(folder: Option<&Path>, bytes: &[u8]) -> io::Result<(Mmap, bool)> {
    if let Some(folder) = folder {
        match in_file(folder, bytes) {
            Ok(map) => return Ok((map, true)),
            Err(error) => tracing::warn!("weights stay in memory: {}: {error}", folder.display()),
        }
    }
    let mut map = MmapMut::map_anon(bytes.len())?;
    map.copy_from_slice(bytes);
    Ok((map.make_read_only()?, false))
}

fn in_file(folder: &Path, bytes: &[u8]) -> io::Result<Mmap> {
    let mut file: File = tempfile::tempfile_in(folder)?;
    // Written, not mapped and filled: a full disk is an error here and a signal there.
    file.write_all(bytes)?;
    // SAFETY: the file has no name and is closed below: nobody can cut it short or write to it.
    let map = unsafe { Mmap::map(&file) }?;
    if map.len() == bytes.len() { Ok(map) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

#[cfg(test)]
mod tests;
