//! A provider's library is the very file that the configuration pins by its hash, or it is not loaded.
//!
//! The file is hashed where it lies and loaded from there, not from a copy: such libraries are large (one that
//! is on PyPI has 75 MB), and find what they need by their own place. That nobody puts another file there in
//! between is made sure of by who may: none but root and this user, on the whole way to it. What an update
//! puts there is seen afterwards. The libraries that it needs are not pinned.

use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use nix::unistd::geteuid;

use super::error::PluginError;
use crate::config::Plugin;
use crate::limits;
use crate::shell::exposed::{Trust, exposed};
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
        let user = geteuid().as_raw();
        if let Some(found) = exposed(&path, Trust::Pinned, user).map_err(unreadable)? {
            return Err(PluginError::Exposed { path: plugin.library.clone(), by: found.part });
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
