//! The libraries that tell of accelerators, each read in a process of its own: what such a library does to that
//! process, it does to nothing else.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use serde::{Deserialize, Serialize};

use super::ascend::{self, Dcmi, runtime::Acl};
use super::cambricon::{self, Cndev};
use super::kunlunxin::{self, Xpuml};
use super::library;
use crate::config::{Accelerator, Devices, Sandbox};
use crate::hardware::{Device, Trouble, Vendor};
use crate::shell::children::confine::Confined;

/// A library that tells of devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// Ascend's driver.
    Dcmi,
    /// Ascend's runtime.
    Acl,
    /// Cambricon's driver.
    Cndev,
    /// Kunlunxin's driver.
    Xpuml,
}

impl Source {
    const ALL: [Self; 4] = [Self::Dcmi, Self::Acl, Self::Cndev, Self::Xpuml];

    /// The library that tells how a vendor's devices are now.
    pub fn of(vendor: Vendor) -> Self {
        match vendor {
            Vendor::Ascend => Self::Dcmi,
            Vendor::Cambricon => Self::Cndev,
            Vendor::Kunlunxin => Self::Xpuml,
        }
    }

    /// What the configuration says of a vendor's libraries.
    pub fn setting(config: &Devices, vendor: Vendor) -> &Accelerator {
        match vendor {
            Vendor::Ascend => &config.ascend,
            Vendor::Cambricon => &config.cambricon,
            Vendor::Kunlunxin => &config.kunlunxin,
        }
    }

    /// The file that would be loaded, without links; `named` as for [`Reading::library`].
    ///
    /// # Errors
    /// Where there is none.
    pub fn file(self, named: Option<&Path>) -> Result<PathBuf, Trouble> {
        match self {
            Self::Dcmi => library::find(named, &ascend::PLACES),
            Self::Acl => library::find(Acl::folder(named).as_deref(), &ascend::runtime::PLACES),
            Self::Cndev => library::find(named, &cambricon::PLACES),
            Self::Xpuml => library::find(named, &kunlunxin::PLACES),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Dcmi => "dcmi",
            Self::Acl => "acl",
            Self::Cndev => "cndev",
            Self::Xpuml => "xpuml",
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Source {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = Self::ALL.into_iter().find(|source| source.name() == text);
        known.ok_or_else(|| "one of dcmi, acl, cndev, xpuml".to_owned())
    }
}

/// A line of the process that reads a library.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Told {
    /// How far the process is confined; the first line, where it is.
    Confined(Confined),
    /// The library is loaded and ready.
    Library { path: PathBuf, version: Option<String> },
    /// All of its devices, as they are now.
    Sweep {
        devices: Vec<Device>,
        /// Processor time that this took, microseconds.
        cpu_us: u64,
    },
    /// Nothing can be read; the last line.
    Trouble { trouble: Trouble },
}

/// How a library is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reading {
    pub source: Source,
    /// The library, or its folder, where the configuration names it.
    pub library: Option<PathBuf>,
    /// Time between two sweeps.
    pub every: Duration,
    /// Sweeps, at least one.
    pub sweeps: u32,
    /// Whether devices are opened to be asked for their memory.
    pub opens: bool,
    /// How the process is confined.
    pub sandbox: Sandbox,
}

enum Opened {
    Dcmi(Box<Dcmi>),
    Acl(Box<Acl>),
    Cndev(Box<Cndev>),
    Xpuml(Box<Xpuml>),
}

impl Opened {
    fn open(reading: &Reading) -> Result<Self, Trouble> {
        let named = reading.library.as_deref();
        Ok(match reading.source {
            Source::Dcmi => Self::Dcmi(Box::new(Dcmi::open(named)?)),
            Source::Acl => Self::Acl(Box::new(Acl::open(named, reading.opens)?)),
            Source::Cndev => Self::Cndev(Box::new(Cndev::open(named)?)),
            Source::Xpuml => Self::Xpuml(Box::new(Xpuml::open(named)?)),
        })
    }

    fn path(&self) -> &Path {
        match self {
            Self::Dcmi(library) => library.path(),
            Self::Acl(library) => library.path(),
            Self::Cndev(library) => library.path(),
            Self::Xpuml(library) => library.path(),
        }
    }

    fn version(&mut self) -> Option<String> {
        match self {
            Self::Dcmi(library) => library.version(),
            Self::Acl(library) => library.version(),
            Self::Cndev(library) => library.version(),
            Self::Xpuml(library) => library.version(),
        }
    }

    fn sweep(&mut self) -> Result<Vec<Device>, Trouble> {
        match self {
            Self::Dcmi(library) => library.sweep(),
            Self::Acl(library) => library.sweep(),
            Self::Cndev(library) => library.sweep(),
            Self::Xpuml(library) => library.sweep(),
        }
    }
}

/// Reads a library in this process, which it may hang or end. `tell` is given a line at a time; `goes_on` says
/// before each further sweep whether there is to be one.
///
/// # Errors
/// What `tell` returns where nobody listens any more.
pub fn read<E>(
    reading: &Reading,
    goes_on: impl Fn() -> bool,
    mut tell: impl FnMut(Told) -> Result<(), E>,
) -> Result<(), E> {
    let mut library = match Opened::open(reading) {
        Ok(library) => library,
        Err(trouble) => return tell(Told::Trouble { trouble }),
    };
    let path = library.path().to_owned();
    tell(Told::Library { path, version: library.version() })?;
    for sweep in 0..reading.sweeps.max(1) {
        if sweep > 0 {
            std::thread::sleep(reading.every);
            if !goes_on() {
                break;
            }
        }
        let before = processor_us();
        match library.sweep() {
            Ok(devices) => {
                let cpu_us = processor_us().saturating_sub(before);
                tell(Told::Sweep { devices, cpu_us })?;
            }
            Err(trouble) => return tell(Told::Trouble { trouble }),
        }
    }
    Ok(())
}

/// Processor time of this process, threads of the library included.
fn processor_us() -> u64 {
    let usage = getrusage(UsageWho::RUSAGE_SELF);
    let sum = usage
        .map(|usage| usage.user_time().num_microseconds() + usage.system_time().num_microseconds());
    sum.ok().and_then(|us| u64::try_from(us).ok()).unwrap_or(0)
}
