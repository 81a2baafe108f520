//! Taking the libraries out of a wheel or a folder. Entries are chosen by their exact place and written under
//! their last name only: no path of the archive is ever used.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

use super::SupplyError;
use crate::limits;

/// Where the libraries stand in a wheel.
const WHEEL_LIBRARIES: &str = "onnxruntime/capi/";

/// Licence and notices that must go with the libraries.
const NOTICES: [&str; 2] = ["LICENSE", "ThirdPartyNotices.txt"];

pub(super) fn is_library(name: &str) -> bool {
    let ours = name == "libonnxruntime.so"
        || name.starts_with("libonnxruntime.so.")
        || name.starts_with("libonnxruntime_providers_");
    ours && name.contains(".so") && !name.contains('/')
}

/// Takes the libraries and notices out of a wheel.
pub(super) fn unpack(wheel: &Path, into: &Path) -> Result<(), SupplyError> {
    let not = |reason: String| SupplyError::NotAWheel { path: wheel.to_owned(), reason };
    let unread = |source| SupplyError::Io { doing: "read", path: wheel.to_owned(), source };
    let file = File::open(wheel).map_err(unread)?;
    let mut archive = zip::ZipArchive::new(file).map_err(|error| not(error.to_string()))?;
    let mut taken = Taken::default();
    for index in 0..archive.len() {
        let entry = archive.by_index(index).map_err(|error| not(error.to_string()))?;
        let Some(name) = entry.name().ok().and_then(|name| wanted(&name)) else { continue };
        taken.one(wheel)?;
        keep(entry, wheel, &name, into)?;
    }
    Ok(())
}

/// The name under which an entry of a wheel is kept; `None` for what is not wanted.
fn wanted(entry: &str) -> Option<String> {
    if let Some(name) = entry.strip_prefix(WHEEL_LIBRARIES) {
        return is_library(name).then(|| name.to_owned());
    }
    let name = entry.strip_prefix("onnxruntime/")?;
    NOTICES.contains(&name).then(|| name.to_owned())
}

/// Takes them from a folder in which they lie.
pub(super) fn copy_folder(from: &Path, into: &Path) -> Result<(), SupplyError> {
    let failed = |source| SupplyError::Io { doing: "copy from", path: from.to_owned(), source };
    let mut taken = Taken::default();
    for entry in fs::read_dir(from).map_err(failed)?.flatten() {
        let Ok(name) = entry.file_name().into_string() else { continue };
        if is_library(&name) || NOTICES.contains(&name.as_str()) {
            taken.one(from)?;
            keep(File::open(entry.path()).map_err(failed)?, from, &name, into)?;
        }
    }
    Ok(())
}

/// How many files were taken.
#[derive(Default)]
struct Taken(usize);

impl Taken {
    fn one(&mut self, from: &Path) -> Result<(), SupplyError> {
        self.0 += 1;
        if self.0 <= limits::RUNTIME_FILES {
            return Ok(());
        }
        let reason = format!("it holds more than {} libraries", limits::RUNTIME_FILES);
        Err(SupplyError::NotAWheel { path: from.to_owned(), reason })
    }
}

/// Writes one file; it is on the disk when this returns.
fn keep(entry: impl Read, from: &Path, name: &str, into: &Path) -> Result<(), SupplyError> {
    let not = |reason: String| SupplyError::NotAWheel { path: from.to_owned(), reason };
    let to = into.join(name);
    let unwritten = |source| SupplyError::Io { doing: "write", path: to.clone(), source };
    let mut limited = entry.take(limits::LIBRARY_BYTES + 1);
    let mut out = File::create(&to).map_err(unwritten)?;
    let copied = io::copy(&mut limited, &mut out).map_err(|error| match error.kind() {
        // What the archive itself does wrong.
        io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => not(error.to_string()),
        _ => unwritten(error),
    })?;
    if copied > limits::LIBRARY_BYTES {
        return Err(not(format!("{name} is larger than {} bytes", limits::LIBRARY_BYTES)));
    }
    out.sync_all().map_err(unwritten)
}
