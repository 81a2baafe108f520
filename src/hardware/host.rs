//! The facts of a box.

use serde::{Deserialize, Serialize};

use super::{Device, Pressure, Throttling};

/// What a box is and how it is now.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Host {
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub hostname: Option<String>,
    /// Kernel release.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub kernel: Option<String>,
    /// What the box's maker calls it: the device tree's or the firmware's product name.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub product: Option<String>,
    /// `x86_64`, `aarch64`, …
    pub arch: String,
    pub cpu: Cpu,
    pub memory: Memory,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub load: Option<Load>,
    /// In the kernel's order.
    pub thermal: Vec<ThermalZone>,
    /// Of the control group that the agent runs in, all groups above it included.
    pub limits: Limits,
    /// Pressure stall information of the processors, where the kernel has it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub cpu_pressure: Option<Pressure>,
    /// Accelerators.
    pub devices: Vec<Device>,
}

/// The processors.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Cpu {
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub model: Option<String>,
    /// Cores; `None` where the kernel does not tell them from threads.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub physical_cores: Option<usize>,
    /// Hardware threads.
    pub logical_cores: usize,
    /// The fastest core's frequency now.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub frequency_mhz: Option<u64>,
    /// What the fastest core can reach.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub max_frequency_mhz: Option<u64>,
}

/// Memory in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Memory {
    pub total: u64,
    /// What can be had without swapping.
    pub available: u64,
}

/// Mean number of runnable tasks over the last minutes.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Load {
    pub one: f64,
    pub five: f64,
    pub fifteen: f64,
}

/// A temperature sensor with its bounds, °C.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct ThermalZone {
    pub name: String,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub celsius: Option<f64>,
    /// From here on the kernel slows the box down.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub passive: Option<f64>,
    /// Here it switches off.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub critical: Option<f64>,
}

/// What the agent's control group may use.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Limits {
    /// Processor time, in processors; may be a fraction.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub cpus: Option<f64>,
    /// Numbers of the processors that may be used, ascending.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub cpu_set: Option<Vec<usize>>,
    /// Bytes.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub memory: Option<u64>,
    /// Bytes used of it by the limited group, without files that the kernel would drop.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub memory_used: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub throttling: Option<Throttling>,
}

impl Host {
    /// Processors that the agent can keep busy: all of them, or what its slice allows (a quota is
    /// rounded up); at least 1.
    pub fn usable_cores(&self) -> usize {
        let cores = self.cpu.logical_cores.max(1);
        let set = self.limits.cpu_set.as_ref().map_or(cores, Vec::len);
        let quota = self.limits.cpus.map_or(cores, |cpus| cpus.ceil() as usize);
        cores.min(set).min(quota).max(1)
    }

    /// Bytes that the agent can still have: the box's, or what its slice has left.
    pub fn memory_available(&self) -> u64 {
        let left = self
            .limits
            .memory
            .map_or(u64::MAX, |limit| limit.saturating_sub(self.limits.memory_used.unwrap_or(0)));
        self.memory.available.min(left)
    }

    /// Whether a sensor has reached the point at which the kernel slows the box down.
    pub fn is_hot(&self) -> bool {
        self.thermal.iter().any(|zone| match (zone.celsius, zone.passive.or(zone.critical)) {
            (Some(now), Some(bound)) => now >= bound,
            (None, _) | (_, None) => false,
        })
    }
}
