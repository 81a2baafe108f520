//! Where the program keeps its files when nobody said otherwise.

use std::env;
use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, Uid, access};

/// Environment variable that names the state directory.
pub const STATE_DIR_VARIABLE: &str = "BLOCHD_STATE_DIR";

/// The state directory of a service installed by the system's administrator.
const SYSTEM_STATE_DIR: &str = "/var/lib/blochd";

/// The state directory: `BLOCHD_STATE_DIR`, else `/var/lib/blochd` for root and for whoever may write
/// there, else `$XDG_STATE_HOME/blochd`, else `~/.local/state/blochd`. It is not created.
pub fn state_dir() -> PathBuf {
    let variable = |name: &str| env::var_os(name).filter(|value| !value.is_empty());
    if let Some(dir) = variable(STATE_DIR_VARIABLE) {
        return PathBuf::from(dir);
    }
    let system = Path::new(SYSTEM_STATE_DIR);
    if Uid::effective().is_root() || (system.is_dir() && access(system, AccessFlags::W_OK).is_ok())
    {
        return system.to_owned();
    }
    // The XDG specification tells to ignore relative paths.
    let xdg = variable("XDG_STATE_HOME").map(PathBuf::from).filter(|dir| dir.is_absolute());
    let home = variable("HOME").map(|home| Path::new(&home).join(".local/state"));
    xdg.or(home).map_or_else(|| system.to_owned(), |dir| dir.join("blochd"))
}
