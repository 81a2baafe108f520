//! Triton's system shared memory: regions of POSIX shared memory objects that clients register by name, to
//! give inputs and take outputs without a socket.
//!
//! Nothing is mapped. Whoever may write to such an object may also cut it short at any moment, and a read
//! of a mapped page that is gone kills the process (SIGBUS); objects of `shm_open` cannot be sealed against
//! that. It may also be written to while it is read, so that what was checked is not what is run. Inputs are
//! therefore read (`pread`) into memory of our own and outputs written (`pwrite`): one copy at the speed of
//! memory, and a client that cuts its object short gets an error.
//!
//! A key names a file of `/dev/shm` and nothing else; what lies before or behind the registered range is
//! neither read nor written. A region costs a descriptor and no memory; what a request reads of it counts as
//! its body.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use nix::libc;

use crate::limits::{SHARED_NAME_BYTES, SHARED_REGIONS};
use crate::protocol::{RegionStatus, RegisterRequest, SharedRange};

/// Why a region cannot be registered, read or written.
#[derive(Debug, thiserror::Error)]
pub(super) enum RegionError {
    #[error("shared memory is not switched on in this server: `shared_memory: true` does so")]
    Off,
    #[error(
        "shared memory is for clients on this box: call over a Unix socket or a loopback address"
    )]
    Remote,
    #[error("Unable to find shared memory region: '{name}'")]
    Unknown { name: String },
    #[error("shared memory region '{name}' already in manager: unregister it first")]
    Registered { name: String },
    #[error("{SHARED_REGIONS} regions of shared memory are registered already")]
    TooMany,
    #[error("'{name}' cannot be the name of a region: write 1 to {SHARED_NAME_BYTES} bytes")]
    Name { name: String },
    #[error(
        "'{key}' is not the name of a shared memory object: expected one name, such as /frames"
    )]
    Key { key: String },
    #[error("the shared memory object '{key}' cannot be opened: {source}")]
    Open { key: String, source: io::Error },
    #[error("'{key}' is not a shared memory object")]
    NotMemory { key: String },
    #[error(
        "{byte_size} bytes from {offset} on are no part of the shared memory object '{key}' of \
         {length} bytes"
    )]
    Size { key: String, offset: u64, byte_size: u64, length: u64 },
    #[error(
        "{size} bytes from {offset} on are no part of the shared memory region '{name}' of \
         {length} bytes"
    )]
    Range { name: String, offset: u64, size: u64, length: u64 },
    #[error(
        "the object behind shared memory region '{name}' is shorter than when it was registered"
    )]
    Shrunk { name: String },
    #[error("the object behind shared memory region '{name}' may not be written by this server")]
    ReadOnly { name: String },
    #[error("output '{output}' takes {needed} bytes, shared_memory_byte_size is {given}")]
    TooSmall { output: String, needed: usize, given: u64 },
    #[error("shared memory region '{name}': {source}")]
    Access { name: String, source: io::Error },
}

struct Region {
    key: String,
    offset: u64,
    size: u64,
    file: File,
    writable: bool,
}

/// The registered regions. One that is unregistered while it is read stays open until that is done.
pub(super) struct Regions {
    folder: PathBuf,
    regions: Mutex<BTreeMap<String, Arc<Region>>>,
}

impl Regions {
    /// Regions of the box's shared memory objects.
    pub fn new() -> Self {
        Self::of("/dev/shm")
    }

    fn of(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into(), regions: Mutex::default() }
    }

    fn all(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Arc<Region>>> {
        self.regions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, name: &str) -> Result<Arc<Region>, RegionError> {
        let found = self.all().get(name).cloned();
        found.ok_or_else(|| RegionError::Unknown { name: name.to_owned() })
    }

    /// Registers a range of a shared memory object as `name`.
    pub fn register(&self, name: &str, request: RegisterRequest) -> Result<(), RegionError> {
        if name.is_empty() || name.len() > SHARED_NAME_BYTES {
            return Err(RegionError::Name { name: name.chars().take(SHARED_NAME_BYTES).collect() });
        }
        let region = Region::open(&self.folder, request)?;
        let mut all = self.all();
        if all.contains_key(name) {
            return Err(RegionError::Registered { name: name.to_owned() });
        }
        if all.len() >= SHARED_REGIONS {
            return Err(RegionError::TooMany);
        }
        all.insert(name.to_owned(), Arc::new(region));
        Ok(())
    }

    /// Forgets `name`, or everything; a name that is not registered is forgotten already.
    pub fn unregister(&self, name: Option<&str>) {
        match name {
            Some(name) => drop(self.all().remove(name)),
            None => self.all().clear(),
        }
    }

    /// `name`, or everything that is registered.
    pub fn status(&self, name: Option<&str>) -> Result<Vec<RegionStatus>, RegionError> {
        let status = |name: &str, region: &Region| RegionStatus {
            name: name.to_owned(),
            key: region.key.clone(),
            offset: region.offset,
            byte_size: region.size,
        };
        match name {
            Some(name) => Ok(vec![status(name, &*self.find(name)?)]),
            None => Ok(self.all().iter().map(|(name, region)| status(name, region)).collect()),
        }
    }

    /// The bytes of a range, copied.
    pub fn read(&self, range: &SharedRange) -> Result<Bytes, RegionError> {
        let region = self.find(&range.region)?;
        let (at, size) = region.place(range)?;
        // Before memory is asked for: the object may have been cut since.
        region.reaches(&range.region, at, size)?;
        let mut data = vec![0; size];
        region.file.read_exact_at(&mut data, at).map_err(|error| region.failed(range, error))?;
        Ok(data.into())
    }

    /// Writes an output to the beginning of its range.
    pub fn write(&self, output: &str, range: &SharedRange, data: &[u8]) -> Result<(), RegionError> {
        let region = self.find(&range.region)?;
        let (at, size) = region.place(range)?;
        if data.len() > size {
            let (output, needed) = (output.to_owned(), data.len());
            return Err(RegionError::TooSmall { output, needed, given: range.size });
        }
        if !region.writable {
            return Err(RegionError::ReadOnly { name: range.region.clone() });
        }
        // A write beyond its end would make the object longer.
        region.reaches(&range.region, at, data.len())?;
        region.file.write_all_at(data, at).map_err(|error| region.failed(range, error))
    }
}

impl Region {
    fn open(folder: &Path, request: RegisterRequest) -> Result<Self, RegionError> {
        let RegisterRequest { key, offset, byte_size } = request;
        let path = folder.join(object(&key).ok_or_else(|| RegionError::Key { key: key.clone() })?);
        let open = |writable: bool| {
            // A pipe would block the opening, a link could lead anywhere.
            let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_CLOEXEC | libc::O_NOCTTY;
            OpenOptions::new().read(true).write(writable).custom_flags(flags).open(&path)
        };
        let opened = match open(true) {
            // Inputs can be read out of what may not be written.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                open(false).map(|file| (file, false))
            }
            opened => opened.map(|file| (file, true)),
        };
        let failed = |source| RegionError::Open { key: key.clone(), source };
        let (file, writable) = opened.map_err(failed)?;
        let facts = file.metadata().map_err(failed)?;
        if !facts.is_file() {
            return Err(RegionError::NotMemory { key });
        }
        let (length, end) = (facts.len(), offset.checked_add(byte_size));
        if byte_size == 0 || end.is_none_or(|end| end > length) {
            return Err(RegionError::Size { key, offset, byte_size, length });
        }
        Ok(Self { key, offset, size: byte_size, file, writable })
    }

    /// Where a range lies in the object, and its length.
    fn place(&self, range: &SharedRange) -> Result<(u64, usize), RegionError> {
        let SharedRange { region, offset, size } = range;
        let inside = offset.checked_add(*size).is_some_and(|end| end <= self.size);
        let length = usize::try_from(*size).ok().filter(|_| inside);
        let (name, offset, size) = (region.clone(), *offset, *size);
        let length = length.ok_or(RegionError::Range { name, offset, size, length: self.size })?;
        // The region's own end was counted when it was registered.
        Ok((self.offset + offset, length))
    }

    /// Whether the object still has the bytes.
    fn reaches(&self, name: &str, at: u64, size: usize) -> Result<(), RegionError> {
        let access = |source| RegionError::Access { name: name.to_owned(), source };
        let length = self.file.metadata().map_err(access)?.len();
        if at + size as u64 > length {
            return Err(RegionError::Shrunk { name: name.to_owned() });
        }
        Ok(())
    }

    fn failed(&self, range: &SharedRange, source: io::Error) -> RegionError {
        let name = range.region.clone();
        match source.kind() {
            io::ErrorKind::UnexpectedEof => RegionError::Shrunk { name },
            _ => RegionError::Access { name, source },
        }
    }
}

/// The file's name that a key means: `shm_open` takes it with or without a slash in front.
fn object(key: &str) -> Option<&str> {
    let name = key.strip_prefix('/').unwrap_or(key);
    let sound = !matches!(name, "" | "." | "..")
        && name.len() <= SHARED_NAME_BYTES
        && !name.contains(['/', '\0']);
    sound.then_some(name)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn request(key: &str, offset: u64, byte_size: u64) -> RegisterRequest {
        RegisterRequest { key: key.to_owned(), offset, byte_size }
    }

    fn range(region: &str, offset: u64, size: u64) -> SharedRange {
        SharedRange { region: region.to_owned(), offset, size }
    }

    /// An object `frames` of the bytes 0 to 99 in a folder that stands for `/dev/shm`.
    fn frames() -> (tempfile::TempDir, Regions) {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("frames"), (0..100).collect::<Vec<u8>>()).unwrap();
        let regions = Regions::of(folder.path());
        (folder, regions)
    }

    #[test]
    fn a_region_is_registered_read_written_and_forgotten() {
        let (folder, regions) = frames();
        regions.register("in", request("/frames", 10, 20)).unwrap();
        regions.register("all", request("frames", 0, 100)).unwrap();
        assert_eq!(&regions.read(&range("in", 5, 3)).unwrap()[..], [15, 16, 17]);
        assert_eq!(regions.read(&range("in", 20, 0)).unwrap().len(), 0);
        // Regions may overlap: what is written through one is read through the other.
        regions.write("y", &range("in", 18, 2), &[7, 8]).unwrap();
        assert_eq!(&regions.read(&range("all", 27, 4)).unwrap()[..], [27, 7, 8, 30]);
        assert_eq!(fs::metadata(folder.path().join("frames")).unwrap().len(), 100);
        let status = |name| regions.status(name).map(|all| all.len());
        assert_eq!(status(None).unwrap(), 2);
        let one = regions.status(Some("in")).unwrap();
        assert_eq!((one[0].key.as_str(), one[0].offset, one[0].byte_size), ("/frames", 10, 20));
        regions.unregister(Some("in"));
        regions.unregister(Some("in"));
        assert!(matches!(status(Some("in")), Err(RegionError::Unknown { .. })));
        assert!(matches!(regions.read(&range("in", 0, 1)), Err(RegionError::Unknown { .. })));
        regions.unregister(None);
        assert_eq!(status(None).unwrap(), 0);
    }

    #[test]
    fn a_range_outside_of_its_region_is_neither_read_nor_written() {
        let (folder, regions) = frames();
        regions.register("r", request("frames", 10, 20)).unwrap();
        for (offset, size) in [(0, 21), (20, 1), (21, 0), (u64::MAX, 2), (1, u64::MAX)] {
            let read = regions.read(&range("r", offset, size));
            assert!(matches!(read, Err(RegionError::Range { .. })), "{offset} {size}");
            let written = regions.write("y", &range("r", offset, size), &[1]);
            assert!(matches!(written, Err(RegionError::Range { .. })), "{offset} {size}");
        }
        let long = regions.write("y", &range("r", 0, 2), &[1, 2, 3]);
        assert!(matches!(long, Err(RegionError::TooSmall { needed: 3, given: 2, .. })));
        let before: Vec<u8> = (0..100).collect();
        assert_eq!(fs::read(folder.path().join("frames")).unwrap(), before);
    }

    #[test]
    fn a_key_leads_to_nothing_but_an_object_of_the_folder() {
        let (folder, regions) = frames();
        let outside = tempfile::NamedTempFile::new().unwrap();
        fs::write(outside.path(), [1; 100]).unwrap();
        std::os::unix::fs::symlink(outside.path(), folder.path().join("link")).unwrap();
        fs::create_dir(folder.path().join("folder")).unwrap();
        nix::unistd::mkfifo(&folder.path().join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let long = "x".repeat(300);
        for key in
            ["", "/", ".", "..", "/..", "../x", "a/b", "//frames", "/folder/x", "a\0b", &long]
        {
            let refused = regions.register("r", request(key, 0, 1));
            assert!(matches!(refused, Err(RegionError::Key { .. })), "{key:?}: {refused:?}");
        }
        for key in ["link", "folder", "missing"] {
            let refused = regions.register("r", request(key, 0, 1));
            assert!(matches!(refused, Err(RegionError::Open { .. })), "{key:?}: {refused:?}");
        }
        let pipe = regions.register("r", request("pipe", 0, 1));
        assert!(matches!(pipe, Err(RegionError::NotMemory { .. })), "{pipe:?}");
        assert_eq!(regions.status(None).unwrap().len(), 0);
    }

    #[test]
    fn a_registration_beyond_its_object_or_under_a_taken_name_is_refused() {
        let (_folder, regions) = frames();
        for (offset, size) in [(0, 0), (0, 101), (100, 1), (u64::MAX, 1), (1, u64::MAX)] {
            let refused = regions.register("r", request("frames", offset, size));
            assert!(matches!(refused, Err(RegionError::Size { length: 100, .. })));
        }
        regions.register("r", request("frames", 0, 100)).unwrap();
        let again = regions.register("r", request("frames", 0, 50));
        assert!(matches!(again, Err(RegionError::Registered { .. })));
        for name in ["", &"n".repeat(256)] {
            let refused = regions.register(name, request("frames", 0, 1));
            assert!(matches!(refused, Err(RegionError::Name { .. })));
        }
        for n in 1..SHARED_REGIONS {
            regions.register(&n.to_string(), request("frames", 0, 1)).unwrap();
        }
        let beyond = regions.register("one more", request("frames", 0, 1));
        assert!(matches!(beyond, Err(RegionError::TooMany)));
    }

    /// With a mapping this would be the end of the process.
    #[test]
    fn an_object_that_is_cut_after_its_registration_gives_errors_and_is_not_made_longer() {
        let (folder, regions) = frames();
        regions.register("r", request("frames", 0, 100)).unwrap();
        let file = OpenOptions::new().write(true).open(folder.path().join("frames")).unwrap();
        file.set_len(50).unwrap();
        assert!(matches!(regions.read(&range("r", 40, 20)), Err(RegionError::Shrunk { .. })));
        assert_eq!(regions.read(&range("r", 40, 10)).unwrap().len(), 10);
        let written = regions.write("y", &range("r", 40, 20), &[1; 20]);
        assert!(matches!(written, Err(RegionError::Shrunk { .. })));
        assert_eq!(file.metadata().unwrap().len(), 50);
        // What has been removed is still there for whoever has it open.
        fs::remove_file(folder.path().join("frames")).unwrap();
        assert_eq!(regions.read(&range("r", 40, 10)).unwrap()[0], 40);
    }
}
