//! One look at all accelerators of the box, for a command that ends: each library is read once, in a child, and
//! all of them at the same time.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde::Serialize;
use tokio::sync::watch;

use super::process::Wish;
use super::telemetry;
use crate::config::{Accelerator, Devices, Sandbox};
use crate::hardware::{Device, Seen, Trouble, Vendor, complete};
use crate::limits;
use crate::shell::probe::detect;
use crate::shell::probe::source::{Reading, Source, Told};

/// What one look at a vendor's devices came to.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Look {
    /// What is seen without a library.
    pub seen: Seen,
    /// The library that was read, and its version.
    pub library: Option<PathBuf>,
    pub version: Option<String>,
    /// Version of the runtime that programs the devices, where it is another library.
    pub runtime: Option<String>,
    #[serde(skip)]
    pub devices: Vec<Device>,
    /// Why nothing could be read.
    pub trouble: Option<Trouble>,
}

/// Looks at every vendor of which something is seen below `root`, or whose library the configuration names,
/// with `program` (this one, outside of tests), confined as `sandbox` says.
pub async fn look(
    program: &Path,
    root: &Path,
    config: &Devices,
    sandbox: Sandbox,
) -> BTreeMap<Vendor, Look> {
    let mut seen = detect::accelerators(root);
    let mut asked = Vec::new();
    for vendor in Vendor::ALL {
        let seen = seen.remove(&vendor).unwrap_or_default();
        let library = match Source::setting(config, vendor) {
            Accelerator::At(path) => Some(path.clone()),
            Accelerator::Auto if seen.is_any() => None,
            Accelerator::Auto | Accelerator::Off => continue,
        };
        let reading = Reading {
            source: Source::of(vendor),
            library,
            every: Duration::ZERO,
            sweeps: 1,
            opens: false,
            sandbox,
        };
        asked.push(one(program, vendor, seen, reading, config.timeout.into()));
    }
    let mut looks = BTreeMap::new();
    // Three at the most: what they wait for runs in their children.
    let mut asked = asked.into_iter();
    let (first, second, third) = (asked.next(), asked.next(), asked.next());
    let (first, second, third) = tokio::join!(maybe(first), maybe(second), maybe(third));
    looks.extend([first, second, third].into_iter().flatten());
    looks
}

async fn maybe<T>(future: Option<impl Future<Output = T>>) -> Option<T> {
    match future {
        Some(future) => Some(future.await),
        None => None,
    }
}

async fn one(
    program: &Path,
    vendor: Vendor,
    seen: Seen,
    reading: Reading,
    patience: Duration,
) -> (Vendor, Look) {
    let mut look = Look { seen, ..read(program, &reading, patience).await };
    if vendor == Vendor::Ascend {
        let opens = look.devices.iter().any(|device| device.memory_total.is_none());
        let opens = opens || look.trouble.is_some();
        let reading = Reading { source: Source::Acl, opens, ..reading };
        let runtime = read(program, &reading, patience).await;
        look.runtime = runtime.version;
        // Where the driver's library tells nothing, these are all that is known.
        if look.trouble.is_some() {
            look.devices = runtime.devices;
        } else {
            complete(&mut look.devices, &runtime.devices);
        }
    }
    (vendor, look)
}

async fn read(program: &Path, reading: &Reading, patience: Duration) -> Look {
    let look = Mutex::new(Look::default());
    let tell = |told| {
        let mut look = look.lock().unwrap_or_else(PoisonError::into_inner);
        match told {
            Told::Library { path, version } => {
                look.library = Some(path);
                look.version = version;
            }
            Told::Sweep { devices, .. } => {
                look.devices = devices;
                look.trouble = None;
            }
            Told::Confined(_) => {}
            Told::Trouble { trouble } => look.trouble = Some(trouble),
        }
    };
    let (_wisher, wish) = watch::channel(Wish::Run);
    let watched = telemetry::once(program, reading, patience, wish, &tell);
    // What went wrong was told. A child that not even SIGKILL ends is left behind. There may be two, one after
    // the other.
    let _ = tokio::time::timeout(2 * (patience + limits::TELEMETRY_END), watched).await;
    look.into_inner().unwrap_or_else(PoisonError::into_inner)
}
