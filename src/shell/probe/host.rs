//! The box itself: processors, memory, heat, and the slice that we run in.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use sysinfo::{Components, CpuRefreshKind, MemoryRefreshKind, RefreshKind, System};

use crate::hardware::{Cpu, Groups, Host, Limits, Load, Memory, ThermalZone, parse};
use crate::limits::{CGROUP_DEPTH, CPU_NUMBERS, KERNEL_FILE_BYTES, THERMAL_ZONES, TRIP_POINTS};

/// Collects the facts of the box below a root: `/`, or a copy of its `/proc` and `/sys`.
#[derive(Debug)]
pub struct HostProbe {
    root: PathBuf,
    /// Fills in what the kernel's files do not tell. It always looks at the real box, so there is
    /// none for a copy.
    system: Option<System>,
}

impl HostProbe {
    /// A probe of this box.
    pub fn new() -> Self {
        let kinds = RefreshKind::nothing()
            .with_cpu(CpuRefreshKind::nothing().with_frequency())
            .with_memory(MemoryRefreshKind::nothing().with_ram());
        Self { root: "/".into(), system: System::new_with_specifics(kinds).ok() }
    }

    /// A probe of the copy of a box's `/proc` and `/sys` below `root`.
    pub fn at(root: &Path) -> Self {
        Self { root: root.to_owned(), system: None }
    }

    /// The facts now. Takes about a millisecond; what cannot be read is absent.
    pub fn host(&mut self) -> Host {
        if let Some(system) = &mut self.system {
            system.refresh_memory_specifics(MemoryRefreshKind::nothing().with_ram());
            system.refresh_cpu_frequency();
        }
        Host {
            hostname: self.line("proc/sys/kernel/hostname"),
            kernel: self.line("proc/sys/kernel/osrelease"),
            product: self
                .line("proc/device-tree/model")
                .or_else(|| self.line("sys/class/dmi/id/product_name")),
            arch: self.line("proc/sys/kernel/arch").unwrap_or_else(System::cpu_arch),
            cpu: self.cpu(),
            memory: self.memory(),
            load: self.read("proc/loadavg").and_then(|text| parse::load_average(&text)),
            thermal: self.thermal(),
            limits: self.limits(),
            cpu_pressure: self.read("proc/pressure/cpu").and_then(|text| parse::pressure(&text)),
            devices: Vec::new(),
        }
    }

    /// The load average alone: cheap enough for every turn.
    pub fn load(&self) -> Option<Load> {
        self.read("proc/loadavg").and_then(|text| parse::load_average(&text))
    }

    fn read(&self, path: &str) -> Option<String> {
        let file = fs::File::open(self.root.join(path)).ok()?;
        let mut bytes = Vec::new();
        file.take(KERNEL_FILE_BYTES).read_to_end(&mut bytes).ok()?;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// A file's text without the end of line (or the NUL of a device tree's string).
    fn line(&self, path: &str) -> Option<String> {
        let text = self.read(path)?;
        let line = text.trim_matches(|c: char| c.is_whitespace() || c == '\0');
        (!line.is_empty()).then(|| line.to_owned())
    }

    /// Numbered entries of a directory, such as `thermal_zone0`, `thermal_zone1`, in order.
    fn numbered(&self, dir: &str, prefix: &str, most: usize) -> Vec<String> {
        let entries = fs::read_dir(self.root.join(dir)).into_iter().flatten().flatten();
        let mut numbers: Vec<u32> = entries
            .filter_map(|entry| entry.file_name().to_str()?.strip_prefix(prefix)?.parse().ok())
            .collect();
        numbers.sort_unstable();
        numbers.into_iter().take(most).map(|n| format!("{dir}/{prefix}{n}")).collect()
    }

    fn cpu(&self) -> Cpu {
        let info = self.read("proc/cpuinfo").map(|text| parse::cpuinfo(&text)).unwrap_or_default();
        let cores = self.numbered("sys/devices/system/cpu", "cpu", CPU_NUMBERS);
        let fastest = |file: &str| {
            let read = |core: &String| parse::frequency_mhz(&self.read(&format!("{core}/{file}"))?);
            cores.iter().filter_map(read).max()
        };
        let filled = self.system.as_ref();
        let frequency = || {
            let fastest = filled?.cpus().iter().map(sysinfo::Cpu::frequency).max();
            fastest.filter(|mhz| *mhz > 0)
        };
        let brand = || filled?.cpus().first().map(|cpu| cpu.brand().trim().to_owned());
        Cpu {
            model: info.model.or_else(|| brand().filter(|brand| !brand.is_empty())),
            physical_cores: info
                .physical_cores
                .or_else(|| filled.and_then(|_| System::physical_core_count().ok())),
            logical_cores: info.logical_cores.max(filled.map_or(0, |system| system.cpus().len())),
            frequency_mhz: fastest("cpufreq/scaling_cur_freq")
                .or(info.frequency_mhz)
                .or_else(frequency),
            max_frequency_mhz: fastest("cpufreq/cpuinfo_max_freq"),
        }
    }

    fn memory(&self) -> Memory {
        let filled = || {
            let system = self.system.as_ref()?;
            Some(Memory { total: system.total_memory(), available: system.available_memory() })
        };
        let read = self.read("proc/meminfo").and_then(|text| parse::meminfo(&text));
        read.or_else(filled).unwrap_or_default()
    }

    fn thermal(&self) -> Vec<ThermalZone> {
        let zones = self.numbered("sys/class/thermal", "thermal_zone", THERMAL_ZONES);
        let mut zones: Vec<ThermalZone> = zones.iter().map(|zone| self.zone(zone)).collect();
        if zones.is_empty() && self.system.is_some() {
            // Desktop boards have no zones, and sensors that sysinfo finds below hwmon.
            let components = Components::new_with_refreshed_list();
            let sensors = components.iter().flatten();
            zones.extend(sensors.take(THERMAL_ZONES).map(|sensor| ThermalZone {
                name: sensor.label().to_owned(),
                celsius: sensor.temperature().map(f64::from).filter(|c| c.is_finite()),
                passive: None,
                critical: sensor.critical().map(f64::from).filter(|c| c.is_finite()),
            }));
            zones.sort_by(|a, b| a.name.cmp(&b.name));
        }
        zones
    }

    fn zone(&self, path: &str) -> ThermalZone {
        let degrees = |file: &str| parse::millidegrees(&self.read(&format!("{path}/{file}"))?);
        let mut zone = ThermalZone {
            name: self.line(&format!("{path}/type")).unwrap_or_else(|| path.to_owned()),
            celsius: degrees("temp"),
            ..ThermalZone::default()
        };
        for trip in 0..TRIP_POINTS {
            let Some(kind) = self.line(&format!("{path}/trip_point_{trip}_type")) else { break };
            let bound = degrees(&format!("trip_point_{trip}_temp"));
            let lowest = |old: Option<f64>| match (old, bound) {
                (Some(old), Some(new)) => Some(old.min(new)),
                (old, new) => old.or(new),
            };
            match kind.as_str() {
                "passive" => zone.passive = lowest(zone.passive),
                "critical" => zone.critical = lowest(zone.critical),
                _ => {}
            }
        }
        zone
    }

    fn limits(&self) -> Limits {
        let text = self.read("proc/self/cgroup").unwrap_or_default();
        let groups = parse::groups(&text);
        let mut limits = Limits::default();
        self.limits_v2(&groups, &mut limits);
        self.limits_v1(&groups, &mut limits);
        limits
    }

    /// A group's folder and those of the groups above it, below `mount`; the innermost first. A
    /// container sees its own group as the mount itself, so that one always counts.
    fn ancestry(mount: &str, group: &str) -> Vec<String> {
        let mut folders = Vec::new();
        let mut path = group.trim_end_matches('/');
        while !path.is_empty() && folders.len() < CGROUP_DEPTH {
            folders.push(format!("{mount}{path}"));
            path = path.rsplit_once('/').map_or("", |(above, _)| above);
        }
        folders.push(mount.to_owned());
        folders
    }

    fn limits_v2(&self, groups: &Groups, limits: &mut Limits) {
        let Some(group) = &groups.v2 else { return };
        let mounts = ["sys/fs/cgroup", "sys/fs/cgroup/unified"];
        let is_mount = |mount: &&str| self.root.join(mount).join("cgroup.controllers").exists();
        let Some(mount) = mounts.into_iter().find(is_mount) else { return };
        for folder in Self::ancestry(mount, group) {
            let read = |file: &str| self.read(&format!("{folder}/{file}"));
            let quota = read("cpu.max").and_then(|text| parse::cpu_max(&text));
            if tighter(&mut limits.cpus, quota) {
                limits.throttling = read("cpu.stat").and_then(|text| parse::cpu_stat(&text));
            }
            let bound = ["memory.max", "memory.high"].into_iter();
            let bound = bound.filter_map(|file| parse::memory_max(&read(file)?)).min();
            if tighter(&mut limits.memory, bound) {
                let used = read("memory.current").and_then(|text| parse::memory_max(&text));
                let cache = read("memory.stat").and_then(|t| parse::file_cache(&t)).unwrap_or(0);
                limits.memory_used = used.map(|used| used.saturating_sub(cache));
            }
            if limits.cpu_set.is_none() {
                limits.cpu_set =
                    read("cpuset.cpus.effective").and_then(|text| parse::cpu_set(&text));
            }
        }
    }

    fn limits_v1(&self, groups: &Groups, limits: &mut Limits) {
        let folders = |controller: &str| {
            // `cpu` and `cpuacct` are often one mount, linked by either name.
            let group = groups.v1.get(controller);
            let mount = format!("sys/fs/cgroup/{controller}");
            group.map_or_else(Vec::new, |group| Self::ancestry(&mount, group))
        };
        for folder in folders("cpu") {
            let read = |file: &str| self.read(&format!("{folder}/{file}"));
            let period = read("cpu.cfs_period_us").unwrap_or_default();
            let quota = read("cpu.cfs_quota_us");
            let quota = quota.and_then(|quota| parse::cpu_quota_v1(&quota, &period));
            if tighter(&mut limits.cpus, quota) {
                limits.throttling = read("cpu.stat").and_then(|text| parse::cpu_stat(&text));
            }
        }
        for folder in folders("memory") {
            let read = |file: &str| self.read(&format!("{folder}/{file}"));
            let bound = read("memory.limit_in_bytes").and_then(|text| parse::memory_max_v1(&text));
            if tighter(&mut limits.memory, bound) {
                let used = read("memory.usage_in_bytes");
                let used = used.and_then(|text| parse::memory_max(&text));
                let cache = read("memory.stat").and_then(|t| parse::file_cache(&t)).unwrap_or(0);
                limits.memory_used = used.map(|used| used.saturating_sub(cache));
            }
        }
        for folder in folders("cpuset") {
            if limits.cpu_set.is_none() {
                let effective = self.read(&format!("{folder}/cpuset.effective_cpus"));
                let set = effective.or_else(|| self.read(&format!("{folder}/cpuset.cpus")));
                limits.cpu_set = set.and_then(|text| parse::cpu_set(&text));
            }
        }
    }
}

impl Default for HostProbe {
    fn default() -> Self {
        Self::new()
    }
}

/// Takes `new` over where it is the lower bound; whether it was.
fn tighter<T: PartialOrd>(old: &mut Option<T>, new: Option<T>) -> bool {
    let lower = match (&*old, &new) {
        (_, None) => false,
        (None, Some(_)) => true,
        (Some(old), Some(new)) => new < old,
    };
    if lower {
        *old = new;
    }
    lower
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fixture(name: &str) -> Host {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/hw").join(name);
        assert!(root.is_dir(), "{root:?}");
        HostProbe::at(&root).host()
    }

    #[test]
    fn reads_an_arm_board_in_a_slice_of_version_2() {
        let host = fixture("arm-board");
        assert_eq!(host.product.as_deref(), Some("Raspberry Pi 4 Model B Rev 1.4"));
        assert_eq!(host.cpu.model.as_deref(), Some("ARM Cortex-A72"));
        assert_eq!((host.cpu.logical_cores, host.cpu.physical_cores), (4, None));
        assert_eq!((host.cpu.frequency_mhz, host.cpu.max_frequency_mhz), (Some(600), Some(1500)));
        assert_eq!(host.memory, Memory { total: 3_884_816 << 10, available: 3_120_004 << 10 });
        assert_eq!(host.load, Some(Load { one: 0.52, five: 0.58, fifteen: 0.59 }));
        let zone = &host.thermal[0];
        assert_eq!((zone.name.as_str(), zone.celsius), ("cpu-thermal", Some(82.243)));
        assert_eq!((zone.passive, zone.critical), (Some(80.0), Some(110.0)));
        assert!(host.is_hot());
        // The quota stands on the service, the tighter memory bound on the slice above it, where a hundred
        // of the four hundred mebibytes in use are files that can be dropped.
        assert_eq!(host.limits.cpus, Some(1.5));
        assert_eq!(host.limits.cpu_set.as_deref(), Some(&[0, 1, 2][..]));
        assert_eq!((host.limits.memory, host.limits.memory_used), (Some(1 << 30), Some(300 << 20)));
        let throttling = host.limits.throttling.unwrap();
        assert_eq!((throttling.periods, throttling.throttled_us), (8_000, 91_234_567));
        assert_eq!(host.usable_cores(), 2);
        assert_eq!(host.memory_available(), 724 << 20);
        assert_eq!(host.cpu_pressure.unwrap().some_10s, 0.125);
    }

    #[test]
    fn reads_a_container_of_version_1() {
        let host = fixture("container-v1");
        assert_eq!(host.cpu.model.as_deref(), Some("Intel(R) Atom(TM) x6425E @ 2.00GHz"));
        assert_eq!((host.cpu.logical_cores, host.cpu.physical_cores), (4, Some(2)));
        assert_eq!(host.limits.cpus, Some(0.5));
        assert_eq!(host.limits.memory, Some(512 << 20));
        assert_eq!(host.limits.cpu_set.as_deref(), Some(&[1, 3][..]));
        assert_eq!(host.limits.throttling.unwrap().throttled_us, 5_000);
        assert_eq!(host.usable_cores(), 1);
        assert_eq!(host.cpu_pressure, None);
        assert_eq!(host.thermal, []);
    }

    #[test]
    fn a_box_that_shows_nothing_or_nonsense_is_still_a_box() {
        let empty = tempfile::tempdir().unwrap();
        let host = HostProbe::at(empty.path()).host();
        assert_eq!((host.usable_cores(), host.memory_available()), (1, 0));
        let host = fixture("nonsense");
        assert_eq!(host.limits, Limits::default());
        assert_eq!(host.thermal[0].celsius, None);
        assert!(!host.is_hot());
        assert_eq!(host.cpu.logical_cores, 0);
    }

    #[test]
    fn the_real_box_has_cores_and_memory() {
        let host = HostProbe::new().host();
        assert!(host.cpu.logical_cores > 0 && host.cpu.model.is_some());
        assert!(host.memory.total > 0 && host.memory_available() <= host.memory.total);
        assert!(host.usable_cores() <= host.cpu.logical_cores);
        let text = serde_json::to_string(&host).unwrap();
        assert_eq!(serde_json::from_str::<Host>(&text).unwrap(), host);
    }
}
