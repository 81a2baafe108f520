//! What a child takes from itself before it touches a model: the right to open files that the work does not
//! need, to reach the network, and to ask the kernel for what no model needs. A file in ONNX's format is data,
//! but what reads it is a million lines of native code, and a vendor's provider is not ours: what takes such
//! code over shall find an empty room.
//!
//! Two of the kernel's means are used, each where it is there. *Landlock* (`files`) knows paths and TCP ports;
//! *seccomp* (`calls`) knows system calls and their numbers, and no paths. Both bind the calling thread and
//! what it starts, for good: a child begins with this while it has one thread. What a superuser may besides
//! (`powers`) goes first.
//!
//! A vendor's library that tells of its devices sees no model, and reads what a driver and a card answer.
//! Nobody has written down what such libraries open and call: they keep what vendors' own are known to need,
//! and where one tells nothing so, [`Confining`](super::confining::Confining) says what becomes of it.

mod calls;
mod files;
mod powers;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::config::Provider;
use crate::limits;
use crate::shell::engine::{Search, run_paths};

/// The paths that a child needs, beyond the system's libraries and devices. Those that are not there are passed
/// over: whoever opens them says so better.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Needs {
    /// Files, and folders with all below them, that are read.
    pub read: Vec<PathBuf>,
    /// Folders in which files are made, written, renamed and removed.
    pub write: Vec<PathBuf>,
    /// Whether the device nodes of whatever accelerator are needed, beside those of known makers.
    pub any_device: bool,
    /// Whether a vendor's compiler may start programs, even where no device of a known maker is seen.
    pub programs: bool,
    /// Whether daemons may be spoken with that listen at a name of no file's.
    pub daemons: bool,
}

/// Variables by which vendors' toolkits are told where they lie, beside `LD_LIBRARY_PATH`.
const TOOLKITS: &[&str] =
    &["ASCEND_HOME_PATH", "ASCEND_TOOLKIT_HOME", "ASCEND_OPP_PATH", "NEUWARE_HOME", "XPU_HOME"];

/// Variables by which vendors' libraries are told where their logs go.
const LOGS: &[&str] = &["ASCEND_PROCESS_LOG_PATH", "ASCEND_WORK_PATH"];

/// What the C library looks a user's name and home up in, and vendors the system's: who nobody is, no secrets.
const FACTS: &[&str] = &["/etc/passwd", "/etc/group", "/etc/nsswitch.conf", "/etc/os-release"];

impl Needs {
    /// What loading the model at `path` needs: its folder, where its external data lies, and the file itself
    /// where its name is a link.
    pub fn model(path: &Path) -> Self {
        let folder = path.parent().filter(|dir| !dir.as_os_str().is_empty());
        let folder = folder.unwrap_or(Path::new(".")).to_owned();
        Self { read: vec![folder, path.to_owned()], ..Self::default() }
    }

    /// ONNX Runtime's library wherever it may be found, with what lies beside it.
    pub fn runtime(&mut self, search: &Search) {
        for named in [&search.config, &search.environment].into_iter().flatten() {
            let file = named.canonicalize().unwrap_or_else(|_| named.clone());
            let beside = if file.is_dir() { Some(file.as_path()) } else { file.parent() };
            self.read.extend(beside.map(Path::to_owned));
        }
        self.read.push(search.state_dir.join("runtime"));
    }

    /// What the provider needs: a plugin's library with what lies beside it and where it names others, and
    /// vendors' toolkits where they are not where vendors put them.
    pub fn provider(&mut self, provider: &Provider) {
        match provider {
            Provider::Cpu => return,
            Provider::Cann(_) => self.programs = true,
            Provider::Plugin(plugin) => {
                self.any_device = true;
                self.library(&plugin.library);
            }
        }
        self.read.extend(named(TOOLKITS));
    }

    /// What a vendor's library that tells of devices needs. `library`: its file, where it was found.
    pub fn telemetry(library: Option<&Path>) -> Self {
        let mut needs = Self { any_device: true, programs: true, daemons: true, ..Self::default() };
        needs.read.extend(FACTS.iter().map(PathBuf::from));
        library.into_iter().for_each(|file| needs.library(file));
        needs.read.extend(named(TOOLKITS));
        needs.write.extend(named(LOGS));
        // Where Ascend's write their logs as long as no variable says otherwise.
        needs.write.extend(named(&["HOME"]).map(|home| home.join("ascend/log")));
        needs
    }

    /// A library with what lies beside it and where it names others.
    fn library(&mut self, file: &Path) {
        let file = file.canonicalize().unwrap_or_else(|_| file.to_owned());
        self.read.extend(file.parent().map(Path::to_owned));
        self.read.extend(run_paths(&file));
    }
}

/// The folders that these variables name.
fn named(variables: &[&str]) -> impl Iterator<Item = PathBuf> {
    let named = variables.iter().filter_map(std::env::var_os).map(PathBuf::from);
    named.filter(|folder| folder.is_absolute()).collect::<Vec<_>>().into_iter()
}

/// The device nodes of accelerators as they are now, each with the number of its file. Whoever is confined may
/// open those that were there when that began: one that a driver makes anew is another file.
pub fn nodes() -> BTreeMap<PathBuf, u64> {
    files::numbers(files::accelerators(Path::new("/dev")))
}

/// What is in force in a child: the first that it tells.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confined {
    /// Version of landlock's interface by which files and TCP are bound; `None` where they are not.
    pub landlock: Option<u32>,
    /// Whether system calls are bound.
    pub seccomp: bool,
    /// What could not be had, and why.
    pub missing: Vec<String>,
}

impl Confined {
    /// Whether that is enough for who insists: files can neither be opened, changed nor cut short elsewhere,
    /// and nothing reaches the network, which seccomp sees to on kernels whose landlock does not.
    pub fn is_enough(&self) -> bool {
        self.seccomp && self.landlock.is_some_and(|abi| abi >= limits::LANDLOCK_ENOUGH)
    }

    /// What is in force, in words; `None` where nothing is.
    pub fn in_force(&self) -> Option<String> {
        let landlock = self.landlock.map(|abi| format!("landlock ABI {abi}"));
        let seccomp = self.seccomp.then(|| "seccomp".to_owned());
        let all: Vec<String> = landlock.into_iter().chain(seccomp).collect();
        (!all.is_empty()).then(|| all.join(", "))
    }
}

impl fmt::Display for Confined {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.in_force().as_deref().unwrap_or("nothing is in force"))?;
        if !self.missing.is_empty() {
            write!(f, " (without {})", self.missing.join("; without "))?;
        }
        Ok(())
    }
}

/// Confines this thread and all that it starts to what `needs` says, as far as the kernel can, and tells how
/// far that is.
pub fn begin(needs: &Needs) -> Confined {
    let mut accelerators = files::accelerators(Path::new("/dev"));
    let programs = needs.programs || !accelerators.is_empty();
    if needs.any_device {
        accelerators.extend(files::others(Path::new("/dev")));
    }
    let mut missing = Vec::new();
    if let Err(why) = powers::give_up() {
        missing.push(format!("giving up the superuser's powers: {why}"));
    }
    let landlock = files::restrict(needs, &accelerators, programs)
        .map_err(|why| missing.push(format!("landlock: {why}")))
        .ok();
    // Where a vendor's compiler may be at work it starts programs of its own; a processor's kernels do not.
    let calls = if programs { calls::Work::Programs } else { calls::Work::Alone };
    let seccomp =
        calls::restrict(calls).map_err(|why| missing.push(format!("seccomp: {why}"))).is_ok();
    Confined { landlock, seccomp, missing }
}
