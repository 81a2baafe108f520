//! The unit is one that systemd takes without a word, and leaves little to an intruder; so it stays with each
//! vendor's drop-in.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use blochd::config::Config;

/// Highest exposure by `systemd-analyze security`, of 10. What stays: it serves sockets, and reads the
/// whole of /proc. Device nodes of cards weigh little.
const MOST_EXPOSURE: f64 = 2.0;

const DROP_INS: [&str; 3] = ["ascend", "cambricon", "kunlunxin"];

fn file(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd").join(name);
    fs::read_to_string(path).unwrap()
}

fn unit() -> String {
    file("blochd.service")
}

/// The units in a folder of their own, with a binary that is there; the service's path.
fn installed(dir: &Path) -> PathBuf {
    let text = unit().replace("/usr/bin/blochd", env!("CARGO_BIN_EXE_blochd"));
    let path = dir.join("blochd.service");
    fs::write(&path, text).unwrap();
    fs::write(dir.join("blochd.socket"), file("blochd.socket")).unwrap();
    path
}

fn drop_in(vendor: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("systemd/{vendor}.conf"));
    fs::read_to_string(path).unwrap()
}

/// The unit with a drop-in beside it.
fn installed_with(dir: &Path, drop_in: &str) -> PathBuf {
    let path = installed(dir);
    let beside = dir.join("blochd.service.d");
    fs::create_dir(&beside).unwrap();
    fs::write(beside.join("vendor.conf"), drop_in).unwrap();
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
fn systemd_takes_the_socket_unit_without_a_word() {
    let dir = tempfile::tempdir().unwrap();
    let path = installed(dir.path()).with_extension("socket");
    let Some(output) = analyze(&["verify", "--man=no"], &path) else { return };
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "{said}");
}

/// Files of sysusers.d and tmpfiles.d make what the unit needs, in a system of the test's own.
#[test]
fn the_user_its_groups_and_the_models_folder_are_made() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: only root may make users, be it below a folder");
        return;
    }
    let system = tempfile::tempdir().unwrap();
    fs::create_dir(system.path().join("etc")).unwrap();
    let root = format!("--root={}", system.path().display());
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd");
    let run = |program: &str, arguments: &[&str], folder: &str| {
        // Read from where such files lie.
        let place = system.path().join("usr/lib").join(folder);
        fs::create_dir_all(&place).unwrap();
        fs::copy(here.join(folder).join("blochd.conf"), place.join("blochd.conf")).unwrap();
        let output = Command::new(program).arg(&root).args(arguments).output();
        let output = match output {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                eprintln!("skipped: {program} is not installed");
                return false;
            }
            output => output.unwrap(),
        };
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        true
    };
    if !run("systemd-sysusers", &[], "sysusers.d") {
        return;
    }
    if !run("systemd-tmpfiles", &["--create"], "tmpfiles.d") {
        return;
    }
    let id = |file: &str, name: &str| -> u32 {
        let text = fs::read_to_string(system.path().join("etc").join(file)).unwrap();
        let line = text.lines().find(|line| line.starts_with(&format!("{name}:"))).unwrap();
        line.split(':').nth(2).unwrap().parse().unwrap()
    };
    let models = fs::metadata(system.path().join("var/lib/blochd/models")).unwrap();
    assert_eq!(models.mode() & 0o7777, 0o2775);
    assert_eq!(
        (models.uid(), models.gid()),
        (id("passwd", "blochd"), id("group", "blochd-models"))
    );
    let groups = fs::read_to_string(system.path().join("etc/group")).unwrap();
    let members = groups.lines().find(|line| line.starts_with("blochd-models:")).unwrap();
    assert!(members.ends_with(":blochd"), "{members}");
}

/// The socket unit and the configuration's defaults name the same addresses.
#[test]
fn the_socket_unit_listens_where_the_configuration_says_by_default() {
    let text = file("blochd.socket");
    let mut listens: Vec<&str> =
        text.lines().filter_map(|line| line.strip_prefix("ListenStream=")).collect();
    listens.sort_unstable();
    let config = Config::default();
    let mut wanted = vec![
        config.http_address.to_string(),
        config.grpc_address.unwrap().to_string(),
        config.metrics_address.to_string(),
        config.admin_address.address().unwrap().to_string(),
        "/run/blochd/blochd.sock".to_owned(),
    ];
    wanted.sort_unstable();
    assert_eq!(listens, wanted);
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
    let Some((level, said)) = exposure(&path) else { return };
    assert!(level <= MOST_EXPOSURE, "{said}");
}

/// What systemd makes of the unit, of 10, and what it says to it.
fn exposure(unit: &Path) -> Option<(f64, String)> {
    let output = analyze(&["security", "--offline=yes", "--no-pager"], unit)?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let overall = said.lines().find(|line| line.contains("Overall exposure level")).unwrap();
    let level = overall.split_whitespace().find_map(|word| word.parse::<f64>().ok()).unwrap();
    Some((level, said))
}

#[test]
fn systemd_takes_each_drop_in_without_a_word_and_opens_the_cards_alone() {
    for vendor in DROP_INS {
        let dir = tempfile::tempdir().unwrap();
        let path = installed_with(dir.path(), &drop_in(vendor));
        let Some(output) = analyze(&["verify", "--man=no"], &path) else { return };
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.is_empty(), "{vendor}: {said}");
        let Some((level, said)) = exposure(&path) else { return };
        assert!(level <= MOST_EXPOSURE, "{vendor}: {said}");
        // That the drop-in was read at all.
        let device = said.lines().find(|line| line.contains("PrivateDevices=")).unwrap();
        assert!(device.contains('\u{2717}'), "{vendor}: {device}");
    }
}

#[test]
fn the_check_of_drop_ins_notices_a_misspelt_key() {
    let dir = tempfile::tempdir().unwrap();
    let text = drop_in("ascend").replace("DeviceAllow=/dev/svm0", "DevicesAllow=/dev/svm0");
    let path = installed_with(dir.path(), &text);
    let Some(output) = analyze(&["verify", "--man=no"], &path) else { return };
    assert!(String::from_utf8_lossy(&output.stderr).contains("DevicesAllow"));
}

/// An empty entry would be the working directory, and a relative one below it: a library that somebody leaves
/// there would be loaded.
#[test]
fn drop_ins_have_libraries_searched_in_folders_of_roots_alone() {
    for vendor in DROP_INS {
        let text = drop_in(vendor);
        let searched = text
            .lines()
            .find_map(|line| line.strip_prefix("Environment=LD_LIBRARY_PATH="))
            .unwrap_or_else(|| panic!("{vendor} names no folder"));
        for folder in searched.split(':') {
            assert!(folder.starts_with("/usr/"), "{vendor}: {folder:?}");
            assert!(!folder.contains(".."), "{vendor}: {folder:?}");
        }
    }
}

#[test]
fn each_drop_in_opens_the_nodes_by_which_cards_are_detected() {
    let nodes = [
        (
            "ascend",
            ["/dev/davinci0", "/dev/davinci_manager", "/dev/devmm_svm", "/dev/hisi_hdc"].as_slice(),
        ),
        ("cambricon", &["/dev/cambricon_dev0", "/dev/cambricon_ipcm0", "/dev/cambricon_ctl"]),
        ("kunlunxin", &["/dev/xpu0", "/dev/xpuctrl"]),
    ];
    for (vendor, nodes) in nodes {
        let text = drop_in(vendor);
        for node in nodes {
            let line = format!("DeviceAllow={node} rw");
            assert!(text.lines().any(|found| found == line), "{vendor}: {line}");
        }
    }
}

#[test]
fn the_unit_says_what_the_agent_does() {
    let text = unit();
    for line in [
        "Type=notify",
        "ExecStart=/usr/bin/blochd run --config /etc/blochd/agent.yaml",
        "ExecReload=kill -HUP $MAINPID",
        "User=blochd",
        "StateDirectory=blochd",
        "RuntimeDirectory=blochd",
        "LogsDirectory=blochd",
        "FileDescriptorStoreMax=8",
        "WatchdogSec=30",
        "Restart=always",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}");
    }
}
