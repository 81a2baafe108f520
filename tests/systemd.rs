//! The unit is one that systemd takes without a word, and leaves little to an intruder.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Highest exposure by `systemd-analyze security`, of 10. What stays: it serves sockets, and reads the
/// whole of /proc.
const MOST_EXPOSURE: f64 = 2.0;

fn unit() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd/blochd.service");
    fs::read_to_string(path).unwrap()
}

/// The unit in a folder of its own, with a binary that is there.
fn installed(dir: &Path) -> PathBuf {
    let text = unit().replace("/usr/bin/blochd", env!("CARGO_BIN_EXE_blochd"));
    let path = dir.join("blochd.service");
    fs::write(&path, text).unwrap();
    path
}

/// `None` (and a word on standard error) where there is no systemd-analyze.
fn analyze(arguments: &[&str], unit: &Path) -> Option<Output> {
    match Command::new("systemd-analyze").args(arguments).arg(unit).output() {
        Ok(output) => Some(output),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            eprintln!("skipped: systemd-analyze is not installed");
            None
        }
        Err(error) => panic!("systemd-analyze: {error}"),
    }
}

#[test]
fn systemd_takes_the_unit_without_a_word() {
    let dir = tempfile::tempdir().unwrap();
    let path = installed(dir.path());
    let Some(output) = analyze(&["verify", "--man=no"], &path) else { return };
    // Unknown keys are warnings with exit code 0.
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "{said}");
}

#[test]
fn the_check_notices_a_misspelt_key() {
    let dir = tempfile::tempdir().unwrap();
    let path = installed(dir.path());
    let text = fs::read_to_string(&path).unwrap().replace("WatchdogSec=", "WatchdogSeconds=");
    fs::write(&path, text).unwrap();
    let Some(output) = analyze(&["verify", "--man=no"], &path) else { return };
    assert!(String::from_utf8_lossy(&output.stderr).contains("WatchdogSeconds"));
}

#[test]
fn an_intruder_gets_little() {
    let dir = tempfile::tempdir().unwrap();
    let path = installed(dir.path());
    let Some(output) = analyze(&["security", "--offline=yes", "--no-pager"], &path) else { return };
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let overall = said.lines().find(|line| line.contains("Overall exposure level")).unwrap();
    let level = overall.split_whitespace().find_map(|word| word.parse::<f64>().ok()).unwrap();
    assert!(level <= MOST_EXPOSURE, "{said}");
}

#[test]
fn the_unit_says_what_the_agent_does() {
    let text = unit();
    for line in [
        "Type=notify",
        "ExecStart=/usr/bin/blochd run --config /etc/blochd/agent.yaml",
        "ExecReload=kill -HUP $MAINPID",
        "StateDirectory=blochd blochd/models",
        "DynamicUser=yes",
        "Restart=always",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}");
    }
}
