//! What the benches that time things share: medians, children, and the memory of a process.

pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Median (least to most), of seconds in milliseconds.
pub fn milliseconds(seconds: &[f64]) -> String {
    let least = seconds.iter().copied().fold(f64::INFINITY, f64::min);
    let most = seconds.iter().copied().fold(0.0, f64::max);
    format!("{:.1} ({:.1} to {:.1})", 1e3 * median(seconds), 1e3 * least, 1e3 * most)
}

/// The most memory that this process has held so far, mapped files included (VmHWM), in bytes.
pub fn peak_memory() -> u64 {
    let status =
        std::fs::read_to_string("/proc/self/status").expect("Linux tells a process's memory");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("the peak");
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse().expect("a number of KiB");
    kib << 10
}

/// Runs this bench again as a child, which prints one JSON value.
pub fn child(arguments: &[&std::ffi::OsStr]) -> serde_json::Value {
    let own = std::env::current_exe().expect("the path of the bench");
    let output =
        std::process::Command::new(own).args(arguments).output().expect("the child starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON from the child")
}

/// A number out of a child's answer.
pub fn number(value: &serde_json::Value, key: &str) -> f64 {
    value[key].as_f64().unwrap_or_else(|| panic!("no {key} in {value}"))
}
