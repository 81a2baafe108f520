//! Landlock: which paths may be opened for what, and no TCP at all.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, LandlockStatus, PathBeneath, PathFd, Ruleset,
    RulesetAttr, RulesetCreated, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};

use super::Needs;
use crate::limits;
use crate::shell::engine::Search;

/// The rights that are asked for: those of the newest interface that this was tried on. An older kernel
/// enforces those that it knows; a newer one has more, of which nobody knows yet what they would break.
const KNOWN: ABI = ABI::V7;

/// Libraries of the system and what finds them, beside those that the linker is told of.
const LIBRARIES: &[&str] = &[
    "/lib",
    "/lib64",
    "/usr/lib",
    "/usr/lib64",
    "/usr/local/lib",
    "/usr/local/lib64",
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/ld.so.conf.d",
    "/etc/ld.so.preload",
    "/etc/localtime",
    "/usr/share/zoneinfo",
    // Where every package has a folder of its own.
    "/nix/store",
    "/gnu/store",
];

/// What vendors' drivers and toolkits read of themselves.
const VENDORS: &[&str] = &[
    "/usr/local/Ascend",
    "/usr/local/dcmi",
    "/etc/ascend_install.info",
    "/etc/ascend_driver.conf",
    "/usr/local/neuware",
    "/usr/local/xpu",
];

/// Programs that a vendor's compiler starts.
const PROGRAMS: &[&str] = &["/usr", "/bin", "/sbin", "/usr/local/Ascend", "/usr/local/neuware"];

/// Device nodes that everything may use.
const DEVICES: &[&str] = &["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"];

/// Beginnings of the names of accelerators' device nodes: Ascend, Cambricon, Kunlunxin.
const ACCELERATORS: &[&str] = &["davinci", "devmm_svm", "hisi_hdc", "cambricon_", "xpu"];

/// Whole names of further nodes that an Ascend's driver makes where the NPU is part of the SoC. They say too
/// little by themselves: they are an accelerator's only beside [`SOC`].
const BESIDE_SOC: &[&str] = &[
    "dvpp_cmdlist",
    "event_sched",
    "log_drv",
    "memory_bandwidth",
    "pngd",
    "svm0",
    "sys",
    "ts_aisle",
    "upgrade",
    "vdec",
    "venc",
    "vpc",
];

/// The node that every Ascend has.
const SOC: &str = "davinci_manager";

/// The device nodes of accelerators in `dev`, in the order of their names.
pub fn accelerators(dev: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dev).into_iter().flatten().flatten();
    let names = entries.take(limits::DIRECTORY_ENTRIES).map(|entry| entry.file_name());
    let mut names: Vec<_> = names.filter_map(|name| name.into_string().ok()).collect();
    names.sort();
    let soc = names.iter().any(|name| name == SOC);
    let known = |name: &String| {
        ACCELERATORS.iter().any(|start| name.starts_with(start))
            || (soc && BESIDE_SOC.contains(&name.as_str()))
    };
    names.into_iter().filter(known).map(|name| dev.join(name)).collect()
}

/// These files with the numbers that the file system knows them by; those that are gone are left out.
pub fn numbers(files: Vec<PathBuf>) -> BTreeMap<PathBuf, u64> {
    let number = |file: PathBuf| file.symlink_metadata().ok().map(|meta| (file, meta.ino()));
    files.into_iter().filter_map(number).collect()
}

/// Folders in which the kernel has device nodes of accelerators and processors of pictures, whoever made them.
const OTHERS: &[&str] = &["accel", "dri"];

/// Device nodes in `dev` that any plugin's device may be behind.
pub fn others(dev: &Path) -> Vec<PathBuf> {
    OTHERS.iter().map(|name| dev.join(name)).filter(|folder| folder.is_dir()).collect()
}

type Rights = BitFlags<AccessFs>;

/// Every path that stays open, and for what.
fn rights(needs: &Needs, accelerators: &[PathBuf], programs: bool) -> Vec<(PathBuf, Rights)> {
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let made = AccessFs::MakeReg | AccessFs::MakeDir | AccessFs::RemoveFile | AccessFs::RemoveDir;
    let write = read | made | AccessFs::WriteFile | AccessFs::Truncate;
    let device = AccessFs::ReadFile | AccessFs::WriteFile;
    let paths = |names: &[&str]| names.iter().map(PathBuf::from).collect::<Vec<_>>();
    // What `LD_LIBRARY_PATH` and the linker's configuration name.
    let linked = Search::new(None, Path::new("")).system;
    let mut all = Vec::new();
    let mut allow = |these: Vec<PathBuf>, to: Rights| {
        all.extend(these.into_iter().map(|path| (path, to)));
    };
    allow(paths(LIBRARIES), read);
    allow(paths(VENDORS), read);
    allow(linked, read);
    // Facts of the box and of the process. Landlock itself keeps it out of what other processes hold there.
    allow(paths(&["/proc", "/sys"]), read);
    allow(paths(&["/dev"]), AccessFs::ReadDir.into());
    allow(paths(DEVICES), device);
    allow(needs.read.clone(), read);
    allow(needs.write.clone(), write);
    if !accelerators.is_empty() {
        allow(accelerators.to_vec(), device | AccessFs::IoctlDev | AccessFs::ReadDir);
    }
    if programs {
        allow(paths(PROGRAMS), read | AccessFs::Execute);
        // Drivers and their compilers share memory by name.
        allow(paths(&["/dev/shm"]), write);
    }
    all
}

/// Leaves this thread, and what it starts, with those paths and without TCP. Returns the version of landlock's
/// interface that the kernel has.
pub fn restrict(needs: &Needs, accelerators: &[PathBuf], programs: bool) -> Result<u32, String> {
    // Signals stay within; the rest keeps away from what listens at names of no file's.
    let scope = if needs.daemons { Scope::Signal.into() } else { Scope::from_all(KNOWN) };
    let status = ruleset(&rights(needs, accelerators, programs), scope)
        .and_then(RulesetCreated::restrict_self)
        .map_err(|error| error.to_string())?;
    match (status.ruleset, status.landlock) {
        (RulesetStatus::NotEnforced, LandlockStatus::NotImplemented) => {
            Err("this kernel has none".to_owned())
        }
        (RulesetStatus::NotEnforced, LandlockStatus::NotEnabled) => {
            Err("it was not enabled when this kernel started (lsm=landlock,…)".to_owned())
        }
        (RulesetStatus::NotEnforced, LandlockStatus::Available { .. }) => {
            Err("this kernel enforces none of it".to_owned())
        }
        (_, LandlockStatus::Available { effective_abi, kernel_abi }) => {
            let newer = kernel_abi.and_then(|abi| u32::try_from(abi).ok());
            Ok(newer.unwrap_or(effective_abi as u32))
        }
        (_, LandlockStatus::NotImplemented | LandlockStatus::NotEnabled) => {
            Err("this kernel contradicts itself about it".to_owned())
        }
    }
}

fn ruleset(
    rights: &[(PathBuf, Rights)],
    scope: BitFlags<Scope>,
) -> Result<RulesetCreated, RulesetError> {
    let mut rules = Ruleset::default()
        .handle_access(AccessFs::from_all(KNOWN))?
        .handle_access(AccessNet::from_all(KNOWN))?
        .scope(scope)?
        .create()?;
    for (path, access) in rights {
        // What is not there, or not to be reached, cannot be opened either.
        let Ok(opened) = PathFd::new(path) else { continue };
        let access = if path.is_dir() { *access } else { *access & AccessFs::from_file(KNOWN) };
        if !access.is_empty() {
            rules = rules.add_rule(PathBeneath::new(opened, access))?;
        }
    }
    Ok(rules)
}
