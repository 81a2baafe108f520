//! `/proc` and `/sys` as text.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::host::{Load, Memory};

/// What `/proc/cpuinfo` says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CpuInfo {
    pub model: Option<String>,
    pub physical_cores: Option<usize>,
    pub logical_cores: usize,
    pub frequency_mhz: Option<u64>,
}

/// Reads `/proc/cpuinfo` of x86 and ARM. ARM kernels give codes instead of a name, and no cores.
pub fn cpuinfo(text: &str) -> CpuInfo {
    let mut info = CpuInfo::default();
    let (mut package, mut cores) = (None, BTreeSet::new());
    let (mut implementer, mut part) = (None, None);
    let mut hardware = None;
    for line in text.lines() {
        let Some((key, value)) = line.split_once(':') else { continue };
        let value = value.trim();
        match key.trim() {
            "processor" if value.parse::<usize>().is_ok() => info.logical_cores += 1,
            // Old ARM kernels write the name under `Processor`.
            "model name" | "Processor" if info.model.is_none() => info.model = named(value),
            "Hardware" => hardware = named(value),
            "CPU implementer" => implementer = hexadecimal(value),
            "CPU part" => part = hexadecimal(value),
            "physical id" => package = value.parse::<u32>().ok(),
            "core id" => {
                cores.extend(value.parse::<u32>().ok().map(|core| (package.unwrap_or(0), core)));
            }
            "cpu MHz" => {
                let mhz = value.parse::<f64>().ok().map(|mhz| mhz.round() as u64);
                info.frequency_mhz = info.frequency_mhz.max(mhz);
            }
            _ => {}
        }
    }
    let by_code = implementer.zip(part).map(|(implementer, part)| arm_name(implementer, part));
    info.model = info.model.or(by_code).or(hardware);
    info.physical_cores = (!cores.is_empty()).then_some(cores.len());
    info
}

fn named(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

fn hexadecimal(text: &str) -> Option<u32> {
    u32::from_str_radix(text.strip_prefix("0x")?, 16).ok()
}

/// Cores of edge boxes, by the main ID register's implementer and part number (Linux,
/// `arch/arm64/include/asm/cputype.h`).
fn arm_name(implementer: u32, part: u32) -> String {
    let known = match (implementer, part) {
        (0x41, 0xd03) => "ARM Cortex-A53",
        (0x41, 0xd04) => "ARM Cortex-A35",
        (0x41, 0xd05) => "ARM Cortex-A55",
        (0x41, 0xd07) => "ARM Cortex-A57",
        (0x41, 0xd08) => "ARM Cortex-A72",
        (0x41, 0xd09) => "ARM Cortex-A73",
        (0x41, 0xd0a) => "ARM Cortex-A75",
        (0x41, 0xd0b) => "ARM Cortex-A76",
        (0x41, 0xd0c) => "ARM Neoverse-N1",
        (0x41, 0xd41) => "ARM Cortex-A78",
        (0x41, 0xd42) => "ARM Cortex-A78AE",
        (0x41, 0xd49) => "ARM Neoverse-N2",
        (0x48, 0xd01) => "HiSilicon TaiShan v110",
        (0x4e, 0x004) => "NVIDIA Carmel",
        (0x70, 0x663) => "Phytium FTC663",
        (0x70, 0x662) => "Phytium FTC662",
        _ => return format!("ARM implementer {implementer:#04x} part {part:#05x}"),
    };
    known.to_owned()
}

/// Reads `/proc/meminfo`. Kernels before 3.14 do not tell what is available: free and cached then.
pub fn meminfo(text: &str) -> Option<Memory> {
    let bytes = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
        kib.checked_mul(1024)
    };
    let total = bytes("MemTotal")?;
    let guess = || bytes("MemFree")?.checked_add(bytes("Cached")?);
    let available = bytes("MemAvailable").or_else(guess)?.min(total);
    Some(Memory { total, available })
}

/// Reads `/proc/loadavg`.
pub fn load_average(text: &str) -> Option<Load> {
    let mut numbers = text.split_whitespace().map(|word| word.parse::<f64>().ok());
    let mut next = || numbers.next().flatten().filter(|load| load.is_finite() && *load >= 0.0);
    Some(Load { one: next()?, five: next()?, fifteen: next()? })
}

/// Share of time (0 to 1) in which tasks waited for a resource; Linux,
/// `Documentation/accounting/psi`.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Pressure {
    /// At least one task waited, mean over ten seconds.
    pub some_10s: f64,
    /// Over a minute.
    pub some_60s: f64,
    /// All tasks waited at once, mean over ten seconds; kernels before 5.13 do not say.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub full_10s: Option<f64>,
}

/// Reads `/proc/pressure/cpu` (or a group's `cpu.pressure`).
pub fn pressure(text: &str) -> Option<Pressure> {
    let share = |kind: &str, name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(kind)?.strip_prefix(' '))?;
        let word = line.split_whitespace().find_map(|word| word.strip_prefix(name))?;
        let percent: f64 = word.strip_prefix('=')?.parse().ok()?;
        (0.0..=100.0).contains(&percent).then_some(percent / 100.0)
    };
    Some(Pressure {
        some_10s: share("some", "avg10")?,
        some_60s: share("some", "avg60")?,
        full_10s: share("full", "avg10"),
    })
}

/// Reads a thermal zone's file in °C. Sensors that are off show nonsense such as -274 or 2³¹.
pub fn millidegrees(text: &str) -> Option<f64> {
    let celsius = text.trim().parse::<i64>().ok()? as f64 / 1000.0;
    (-60.0..=200.0).contains(&celsius).then_some(celsius)
}

/// Reads a cpufreq file (kHz).
pub fn frequency_mhz(text: &str) -> Option<u64> {
    text.trim().parse::<u64>().ok().map(|khz| khz / 1000).filter(|mhz| *mhz > 0)
}
