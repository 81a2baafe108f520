//! The public keys that the configuration names.

use std::path::{Path, PathBuf};

use crate::config::Fleet;
use crate::fleet::{Key, KeySet, NoKeys};
use crate::limits;
use crate::shell::files;

/// Why the keys that are named are none.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("cannot read the public key {}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error("{}: {source}", path.display())]
    NotAKey { path: PathBuf, source: NoKeys },
    #[error("fleet.keys: {0}")]
    Set(NoKeys),
}

/// Those who are trusted by the configuration; `None` where it names nobody.
///
/// # Errors
/// Where a file cannot be read or is no key, or the keys are no set of them.
pub fn trusted(fleet: &Fleet) -> Result<Option<KeySet>, KeyError> {
    if fleet.keys.0.is_empty() {
        return Ok(None);
    }
    let keys =
        fleet.keys.0.iter().map(|path| read(path)).collect::<Result<Vec<Key>, KeyError>>()?;
    KeySet::new(keys, fleet.threshold).map(Some).map_err(KeyError::Set)
}

/// The key in a file.
///
/// # Errors
/// Where it cannot be read or is no key.
pub fn read(path: &Path) -> Result<Key, KeyError> {
    let text = files::read_text(path, limits::FLEET_KEY_BYTES);
    let text = text.map_err(|source| KeyError::Io { path: path.to_owned(), source })?;
    Key::parse(&text).map_err(|source| KeyError::NotAKey { path: path.to_owned(), source })
}
