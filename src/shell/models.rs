//! Model files ↔ models. A file is mapped, or read where others may change it meanwhile; external data is
//! looked for in the model's folder and nowhere else.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use memmap2::Mmap;
use nix::fcntl::OFlag;

use super::files;
use crate::limits;
use crate::onnx::{Model, OnnxError};

/// Why a model could not be loaded or saved. Names the file.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file could not be opened, read or written.
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    /// Not a plain file: a directory, a pipe, a device.
    #[error("{} is not a regular file", path.display())]
    NotAFile { path: PathBuf },
    /// The bytes are not a model.
    #[error("{}: {source}", path.display())]
    Onnx { path: PathBuf, source: OnnxError },
    /// External data that leads out of the model's folder through a link.
    #[error(
        "{}: external data {location:?} is a link to {}, outside the model's folder; put the data \
         itself beside the model",
        path.display(),
        target.display()
    )]
    Outside { path: PathBuf, location: String, target: PathBuf },
    /// External data that is not there or cannot be read.
    #[error("{}: external data {location:?}: {source}", path.display())]
    External { path: PathBuf, location: String, source: io::Error },
    /// A file or a total above the program's bound.
    #[error("{}: {what} is {size} bytes, above the limit of {limit}", path.display())]
    TooLarge { path: PathBuf, what: String, size: u64, limit: u64 },
}

impl LoadError {
    /// Whether what the files say is wrong, as opposed to reading or writing them.
    pub fn is_bad_data(&self) -> bool {
        match self {
            Self::Io { .. } => false,
            Self::NotAFile { .. }
            | Self::Onnx { .. }
            | Self::Outside { .. }
            | Self::External { .. }
            | Self::TooLarge { .. } => true,
        }
    }
}

/// Loads the model at `path` with its external data. The files are mapped: they must not be changed in
/// place while the model lives, which the model repository's rule (write, then rename) ensures.
///
/// # Errors
/// Where a file is missing, too large, not a model, or outside the model's folder.
pub fn load(path: &Path) -> Result<Model, LoadError> {
    load_by(map, path)
}

/// As [`load`], with the files read into memory: nothing that is done to them afterwards touches the
/// model. A file that is cut short while it is mapped kills the process that looks at it; whoever copies a
/// model over another one does that.
///
/// # Errors
/// As [`load`].
pub fn load_copied(path: &Path) -> Result<Model, LoadError> {
    load_by(read, path)
}

/// The contents of a regular file of at most so many bytes, and its size.
type Take = fn(&Path, u64) -> Result<(Bytes, u64), Fault>;

fn load_by(take: Take, path: &Path) -> Result<Model, LoadError> {
    let io = |source| LoadError::Io { path: path.to_owned(), source };
    let onnx = |source| LoadError::Onnx { path: path.to_owned(), source };
    let mut model = decode(take, path)?;
    let locations = model.external_files().map_err(onnx)?;
    if locations.is_empty() {
        return Ok(model);
    }
    let folder = path.parent().filter(|dir| !dir.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new(".")).canonicalize().map_err(io)?;
    let mut left = limits::EXTERNAL_DATA_BYTES;
    for location in locations {
        let external = |source| {
            let location = location.clone();
            LoadError::External { path: path.to_owned(), location, source }
        };
        let target = folder.join(&location).canonicalize().map_err(external)?;
        if !target.starts_with(&folder) {
            return Err(LoadError::Outside { path: path.to_owned(), location, target });
        }
        let (contents, size) = take(&target, left).map_err(|fault| match fault {
            Fault::Io(source) => external(source),
            Fault::NotAFile => external(io::Error::other("is not a regular file")),
            Fault::TooLarge(size) => {
                let total = limits::EXTERNAL_DATA_BYTES - left + size;
                too_large(path, "the external data", total, limits::EXTERNAL_DATA_BYTES)
            }
        })?;
        left -= size;
        model.attach(&location, contents).map_err(onnx)?;
    }
    Ok(model)
}

/// The external data files that the model at `path` names, relative to its folder.
///
/// # Errors
/// Where the file is missing, too large, not a model, or names a file outside its folder.
pub fn external_files(path: &Path) -> Result<BTreeSet<String>, LoadError> {
    let onnx = |source| LoadError::Onnx { path: path.to_owned(), source };
    decode(read, path)?.external_files().map_err(onnx)
}

/// The model without its external data.
fn decode(take: Take, path: &Path) -> Result<Model, LoadError> {
    let (bytes, _) = take(path, limits::MODEL_FILE_BYTES).map_err(|fault| match fault {
        Fault::Io(source) => LoadError::Io { path: path.to_owned(), source },
        Fault::NotAFile => LoadError::NotAFile { path: path.to_owned() },
        Fault::TooLarge(size) => too_large(path, "the model file", size, limits::MODEL_FILE_BYTES),
    })?;
    Model::decode(bytes).map_err(|source| LoadError::Onnx { path: path.to_owned(), source })
}

fn too_large(path: &Path, what: &str, size: u64, limit: u64) -> LoadError {
    LoadError::TooLarge { path: path.to_owned(), what: what.to_owned(), size, limit }
}

/// Writes the model to `path`, and its external data, if it has any, to `<stem>.data` beside it. The data
/// is in place before the model names it.
///
/// # Errors
/// Where the model cannot be encoded or a file not be written; an old file then stands.
pub fn save(model: &Model, path: &Path) -> Result<(), LoadError> {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let encoded = model
        .encode(&format!("{stem}.data"))
        .map_err(|source| LoadError::Onnx { path: path.to_owned(), source })?;
    let write = |path: &Path, chunks: &[Bytes]| {
        files::replace(path, chunks)
            .map_err(|source| LoadError::Io { path: path.to_owned(), source })
    };
    if let Some((name, chunks)) = &encoded.data {
        write(&path.with_file_name(name), chunks)?;
    }
    write(path, &encoded.main)
}

enum Fault {
    Io(io::Error),
    NotAFile,
    TooLarge(u64),
}

/// A regular file of at most `limit` bytes, and its size.
fn open(path: &Path, limit: u64) -> Result<(File, u64), Fault> {
    // Opening a pipe that nobody writes to would wait for ever.
    let flags = (OFlag::O_NONBLOCK | OFlag::O_CLOEXEC).bits();
    let file: File =
        OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(Fault::Io)?;
    let metadata = file.metadata().map_err(Fault::Io)?;
    if !metadata.is_file() {
        return Err(Fault::NotAFile);
    }
    let size = metadata.len();
    if size > limit {
        return Err(Fault::TooLarge(size));
    }
    Ok((file, size))
}

/// Contents in memory of their own. A file that changes meanwhile gives whatever was there: what is made of
/// it is checked, and looked at again once the file has settled.
fn read(path: &Path, limit: u64) -> Result<(Bytes, u64), Fault> {
    let (file, size) = open(path, limit)?;
    let mut contents = Vec::new();
    contents.try_reserve_exact(usize::try_from(size).map_err(|_| Fault::TooLarge(size))?).map_err(
        |_| Fault::Io(io::Error::new(io::ErrorKind::OutOfMemory, "no memory to read it into")),
    )?;
    file.take(size).read_to_end(&mut contents).map_err(Fault::Io)?;
    let size = contents.len() as u64;
    Ok((contents.into(), size))
}

/// Contents as the kernel maps them.
fn map(path: &Path, limit: u64) -> Result<(Bytes, u64), Fault> {
    let (file, size) = open(path, limit)?;
    if size == 0 {
        return Ok((Bytes::new(), 0));
    }
    // SAFETY: a file that is shortened while it is mapped raises SIGBUS on access. Files of the model
    // repository and of the state directory are replaced by renaming, never changed in place; a file that
    // is still being written is not opened (see `arrivals`).
    let map = unsafe { Mmap::map(&file) }.map_err(Fault::Io)?;
    Ok((Bytes::from_owner(map), size))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_copied_model_outlives_its_files_being_cut_short() {
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/models/fixtures/external");
        let dir = tempfile::tempdir().unwrap();
        let files = ["model.onnx", "weights.bin"].map(|name| {
            let to = dir.path().join(name);
            fs::copy(from.join(name), &to).unwrap();
            to
        });
        let mapped = load(&from.join("model.onnx")).unwrap().digest().unwrap();
        let model = load_copied(&files[0]).unwrap();
        files.iter().for_each(|file| fs::write(file, "").unwrap());
        assert_eq!(model.digest().unwrap(), mapped);
        assert!(load_copied(&files[0]).unwrap_err().is_bad_data());
    }
}
