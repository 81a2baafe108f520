//! A provider's library is the very file that the configuration pins by its hash, or it is not loaded.
//!
//! The file is hashed where it lies and loaded from there, not from a copy: such libraries are large (one that
//! is on PyPI has 75 MB), and find what they need by their own place. That nobody puts another file there in
//! between is made sure of by who may: none but root and this user, on the whole way to it. What an update
//! puts there is seen afterwards. The libraries that it needs are not pinned.

use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::unistd::geteuid;

use super::error::PluginError;
use crate::config::Plugin;
use crate::limits;
use crate::shell::hashes::sha256_text;

/// A file that was found to be the one that is pinned.
pub(super) struct Checked {
    /// Without links on the way.
    pub path: PathBuf,
    /// As it was when it was hashed; it is open until it is registered.
    was: Metadata,
    _file: File,
}

impl Checked {
    /// Opens and hashes the library of `plugin`.
    ///
    /// # Errors
    /// Where it is another file, or one that others may exchange.
    pub fn new(plugin: &Plugin) -> Result<Self, PluginError> {
        let unreadable = |error: io::Error| PluginError::Unreadable {
            path: plugin.library.clone(),
            reason: error.to_string(),
        };
        let path = plugin.library.canonicalize().map_err(unreadable)?;
        if let Some(by) = exposed(&path).map_err(unreadable)? {
            return Err(PluginError::Exposed { path: plugin.library.clone(), by });
        }
        let mut file = File::open(&path).map_err(unreadable)?;
        let was = file.metadata().map_err(unreadable)?;
        if !was.is_file() || was.len() > limits::PLUGIN_BYTES {
            let why = format!("it is no file of at most {} bytes", limits::PLUGIN_BYTES);
            return Err(unreadable(io::Error::new(io::ErrorKind::InvalidData, why)));
        }
        let found = sha256_text(&mut file).map_err(unreadable)?;
        if found != plugin.sha256 {
            let (path, expected) = (plugin.library.clone(), plugin.sha256.clone());
            return Err(PluginError::OtherFile { path, expected, found });
        }
        Ok(Self { path, was, _file: file })
    }

    /// Whether it is still the file that was hashed.
    pub fn is_the_same(&self) -> bool {
        let key = |m: &Metadata| {
            let changed = (m.ctime(), m.ctime_nsec(), m.mtime(), m.mtime_nsec());
            (m.dev(), m.ino(), m.len(), changed)
        };
        fs::metadata(&self.path).is_ok_and(|now| key(&now) == key(&self.was))
    }

    /// Whether it is what is loaded under its name. A library that does not let itself be unloaded stays when
    /// another file takes its place, and the linker goes by names.
    pub fn is_loaded(&self) -> bool {
        let path = self.path.to_string_lossy();
        let Ok(maps) = fs::read_to_string("/proc/self/maps") else { return true };
        let of = |line: &str| line.find('/').map(|at| line[at..].to_owned());
        maps.lines().any(|line| of(line).is_some_and(|mapped| mapped == path))
    }
}

/// What on the way to a file, it included, others than root and this user could exchange.
fn exposed(path: &Path) -> io::Result<Option<PathBuf>> {
    let user = geteuid().as_raw();
    for part in path.ancestors() {
        let found = fs::symlink_metadata(part)?;
        let owned = found.uid() == 0 || found.uid() == user;
        // Where the sticky bit is set, as on /tmp, only owners exchange what is theirs.
        let sticky = found.is_dir() && found.mode() & 0o1000 != 0;
        // A group of the same number as its user is the user's own, by the custom of most distributions.
        let group = found.gid() == 0 || found.gid() == user;
        let others = found.mode() & 0o002 != 0 || (found.mode() & 0o020 != 0 && !group);
        if !owned || (others && !sticky) {
            return Ok(Some(part.to_owned()));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_file_that_others_could_exchange_is_told_by_what_they_could_change() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        let (folder, file) = (root.join("folder"), root.join("folder/lib.so"));
        fs::create_dir(&folder).unwrap();
        fs::write(&file, "x").unwrap();
        let open = |path: &Path, mode| {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        };
        open(&folder, 0o755);
        open(&file, 0o644);
        assert_eq!(exposed(&file).unwrap(), None);
        open(&file, 0o646);
        assert_eq!(exposed(&file).unwrap(), Some(file.clone()));
        open(&file, 0o644);
        open(&folder, 0o777);
        assert_eq!(exposed(&file).unwrap(), Some(folder.clone()));
        // Others may put files there, and not exchange this one.
        open(&folder, 0o1777);
        assert_eq!(exposed(&file).unwrap(), None);
    }
}
