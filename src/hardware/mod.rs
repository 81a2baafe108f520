//! What a box is: processors, memory, heat, pressure, the limits of the slice that the agent runs
//! in, and its accelerators. Text that the kernel shows → facts; nothing here reads a file.
//!
//! Facts are incomplete by nature: what is absent or unreadable is `None` and never an error,
//! because a box without a thermal zone is as good a box. `shell::probe` collects the texts.

mod alignment;
mod cgroup;
mod device;
mod host;
mod kernel;
#[cfg(test)]
mod tests;

pub use alignment::alignment;
pub use cgroup::{Groups, Throttling};
pub use device::{Device, Health};
pub use host::{Cpu, Host, Limits, Load, Memory, ThermalZone};
pub use kernel::Pressure;

/// Parsers of what the kernel shows, one a kind of file.
pub mod parse {
    pub use super::cgroup::{
        cpu_max, cpu_quota_v1, cpu_set, cpu_stat, file_cache, groups, memory_max, memory_max_v1,
    };
    pub use super::kernel::{
        CpuInfo, cpuinfo, frequency_mhz, load_average, meminfo, millidegrees, pressure,
    };
}
