//! The parts of a configuration: the files in `conf.d` beside the agent's own, in the order of their names.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::limits;

/// The folder of the parts that belong to a configuration file.
pub fn folder(config: &Path) -> PathBuf {
    config.parent().unwrap_or(Path::new("")).join("conf.d")
}

/// Its parts: files whose names end in `.yaml` or `.yml` and do not begin with a dot, as those do that are not
/// finished yet.
///
/// # Errors
/// Where the folder is there and cannot be listed, or holds more than [`limits::CONFIG_PARTS`] of them.
pub fn list(config: &Path) -> io::Result<Vec<PathBuf>> {
    let folder = folder(config);
    let entries = match fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        let yaml = path.extension().is_some_and(|end| end == "yaml" || end == "yml");
        if yaml && !hidden && path.is_file() {
            found.push(path);
        }
        if found.len() > limits::CONFIG_PARTS {
            let words = format!("it holds more than {} files", limits::CONFIG_PARTS);
            return Err(io::Error::new(io::ErrorKind::InvalidData, words));
        }
    }
    found.sort();
    Ok(found)
}
