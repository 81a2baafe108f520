//! Control groups, both versions (Linux, `Documentation/admin-guide/cgroup-v2` and `cgroup-v1`).

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::limits::CPU_NUMBERS;

/// The groups that a process is in.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Groups {
    /// Path in the unified hierarchy.
    pub v2: Option<String>,
    /// Path by controller of the old hierarchies.
    pub v1: BTreeMap<String, String>,
}

/// Reads `/proc/self/cgroup`. Paths that leave their hierarchy (a group outside the namespace is
/// shown as `/../..`) are taken for its root.
pub fn groups(text: &str) -> Groups {
    let mut groups = Groups::default();
    for line in text.lines() {
        let mut parts = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next())
        else {
            continue;
        };
        let inside = path.starts_with('/') && !path.split('/').any(|part| part == "..");
        let path = if inside { path } else { "/" };
        if controllers.is_empty() {
            groups.v2 = Some(path.to_owned());
        } else {
            let controllers = controllers.split(',').map(|name| (name.to_owned(), path.to_owned()));
            groups.v1.extend(controllers);
        }
    }
    groups
}

/// Reads version 2's `cpu.max`: processors, `None` without a limit.
pub fn cpu_max(text: &str) -> Option<f64> {
    let (quota, period) = text.trim().split_once(' ')?;
    share(quota.parse().ok()?, period.trim().parse().ok()?)
}

/// Reads version 1's `cpu.cfs_quota_us` and `cpu.cfs_period_us`; a quota of -1 is no limit.
pub fn cpu_quota_v1(quota: &str, period: &str) -> Option<f64> {
    share(quota.trim().parse().ok()?, period.trim().parse().ok()?)
}

fn share(quota: i64, period: i64) -> Option<f64> {
    (quota > 0 && period > 0).then(|| quota as f64 / period as f64)
}

/// Reads version 2's `memory.max` (or `memory.high`, `memory.current`) in bytes; `max` is no limit.
pub fn memory_max(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

/// Reads from `memory.stat` (of either version) the bytes of files that the kernel keeps as long as nobody
/// needs the memory: a group that has read much looks full and is not.
pub fn file_cache(text: &str) -> Option<u64> {
    let value = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
        line.trim().parse().ok()
    };
    // Version 1's plain names leave the groups below out.
    value("total_inactive_file").or_else(|| value("inactive_file"))
}

/// Reads version 1's `memory.limit_in_bytes`. Its "no limit" is 2⁶³ rounded down to a page.
pub fn memory_max_v1(text: &str) -> Option<u64> {
    memory_max(text).filter(|bytes| *bytes < 1 << 60)
}

/// Reads `cpuset.cpus.effective` or `cpuset.cpus`: `0-3,7`. Empty is no restriction.
pub fn cpu_set(text: &str) -> Option<Vec<usize>> {
    let text = text.trim();
    if text.is_empty() {
        return None;
    }
    let mut set = BTreeSet::new();
    for part in text.split(',') {
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        let (from, to): (usize, usize) = (from.trim().parse().ok()?, to.trim().parse().ok()?);
        if from > to || to >= CPU_NUMBERS {
            return None;
        }
        set.extend(from..=to);
    }
    Some(set.into_iter().collect())
}

/// How often the group ran into its processor limit, since it exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Throttling {
    /// Periods in which the group ran.
    pub periods: u64,
    /// Of these, periods in which it was stopped.
    pub throttled: u64,
    /// How long it was stopped, microseconds.
    pub throttled_us: u64,
}

/// Reads `cpu.stat` of either version.
pub fn cpu_stat(text: &str) -> Option<Throttling> {
    let value = |name: &str| {
        let mut lines = text.lines().filter_map(|line| line.split_once(' '));
        lines.find(|(key, _)| *key == name)?.1.trim().parse::<u64>().ok()
    };
    let nanoseconds = || value("throttled_time").map(|ns| ns / 1000);
    Some(Throttling {
        periods: value("nr_periods")?,
        throttled: value("nr_throttled")?,
        throttled_us: value("throttled_usec").or_else(nanoseconds)?,
    })
}
