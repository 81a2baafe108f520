//! What a box is: processors, memory, heat, pressure, the limits of the slice that the agent runs
//! in, and its accelerators. Text that the kernel shows → facts; nothing here reads a file.
//!
//! Facts are incomplete by nature: what is absent or unreadable is `None` and never an error,
//! because a box without a thermal zone is as good a box. `shell::probe` collects the texts.

mod alignment;
mod cgroup;
mod choice;
mod detect;
mod device;
mod host;
mod kernel;
pub mod placement;
mod roster;
#[cfg(test)]
mod tests;
mod trouble;

pub use alignment::alignment;
pub use cgroup::{Groups, Throttling};
pub use choice::{
    Choice, Offer, Passed, PassedOver, Told, choose, label, told_unusable, unusable, ways,
};
pub use detect::{PciCard, Seen};
pub use device::{Complaint, Device, EccErrors, Health, Missing, Quantity, Vendor, Why, complete};
pub use host::{Cpu, Host, Limits, Load, Memory, ThermalZone};
pub use kernel::Pressure;
pub use placement::{Placed, Placement};
pub use roster::{Change, Known, Presence, Roster};
pub use trouble::Trouble;

/// Parsers of what the kernel shows, one a kind of file.
pub mod parse {
    pub use super::cgroup::{
        cpu_max, cpu_quota_v1, cpu_set, cpu_stat, file_cache, groups, memory_max, memory_max_v1,
    };
    pub use super::detect::{card, node};
    pub use super::kernel::{
        CpuInfo, cpuinfo, frequency_mhz, load_average, meminfo, millidegrees, pressure,
    };
}
