//! The agent's log in a journal: the real program in a mount namespace of its own, where a socket of the test
//! stands at journald's place.

mod running;

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use running::{Home, model};

const PATIENCE: Duration = Duration::from_secs(60);

/// Runs a program with the folder `$0` in the place of journald's.
const AT_ITS_PLACE: &str = "mount -t tmpfs none /run && mkdir -p /run/systemd/journal && \
                            mount --bind \"$0\" /run/systemd/journal && exec \"$@\"";

fn namespaced(journal: &Path) -> Command {
    let mut command = Command::new("unshare");
    command.args(["--map-root-user", "--mount", "sh", "-c", AT_ITS_PLACE]).arg(journal);
    command
}

/// Ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The fields of an entry in the journal's export format.
fn fields(mut entry: &[u8]) -> BTreeMap<String, String> {
    let mut fields = BTreeMap::new();
    while let Some(end) = entry.iter().position(|byte| *byte == b'\n') {
        let (line, rest) = (String::from_utf8_lossy(&entry[..end]).into_owned(), &entry[end + 1..]);
        if let Some((name, value)) = line.split_once('=') {
            fields.insert(name.to_owned(), value.to_owned());
            entry = rest;
            continue;
        }
        let (length, rest) = rest.split_at(8);
        let length = u64::from_le_bytes(length.try_into().unwrap()) as usize;
        fields.insert(line, String::from_utf8_lossy(&rest[..length]).into_owned());
        entry = &rest[length + 1..];
    }
    fields
}

/// Waits for an entry whose message begins like this.
fn entry(journal: &UnixDatagram, start: &str) -> BTreeMap<String, String> {
    let begun = Instant::now();
    let mut seen = Vec::new();
    let mut buffer = vec![0; 1 << 16];
    while begun.elapsed() < PATIENCE {
        let Ok(length) = journal.recv(&mut buffer) else { continue };
        let found = fields(&buffer[..length]);
        if found.get("MESSAGE").is_some_and(|message| message.starts_with(start)) {
            return found;
        }
        seen.push(found);
    }
    panic!("never: {start}\n{seen:#?}");
}

#[test]
fn a_service_logs_to_the_journal_with_fields_and_everybody_else_to_standard_error() {
    let home = Home::new();
    home.configure("defaults: {ladder: {enabled: false}}");
    home.drop_model(&model("fixtures/mlp_gemm.onnx"), "mlp/1/model.onnx");
    let place = tempfile::tempdir().unwrap();
    let journal = UnixDatagram::bind(place.path().join("socket")).unwrap();
    journal.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let can = namespaced(place.path()).arg("true").output();
    if !can.is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: nobody may have a mount namespace here");
        return;
    }
    let config = home.dir.path().join("agent.yaml");
    let start = |stream: &str, stderr: File| {
        let mut command = namespaced(place.path());
        running::without_settings(&mut command);
        command.arg(env!("CARGO_BIN_EXE_blochd")).args(["run", "--config"]).arg(&config);
        command.arg("--runtime-library").arg(running::onnx_runtime());
        command.env("JOURNAL_STREAM", stream).env_remove("RUST_LOG");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr);
        Running(command.spawn().unwrap())
    };
    // As systemd sets it: device and inode of what standard error is connected to.
    let path = home.dir.path().join("stderr");
    let stderr = File::create(&path).unwrap();
    let meta = stderr.metadata().unwrap();
    let stream = format!("{}:{}", meta.dev(), meta.ino());
    let agent = start(&stream, stderr);
    let serves = entry(&journal, "blochd serves");
    let field = |entry: &BTreeMap<String, String>, name: &str| entry.get(name).cloned();
    assert_eq!(field(&serves, "HTTP"), Some(format!("127.0.0.1:{}", home.http)));
    assert_eq!(field(&serves, "PRIORITY").as_deref(), Some("6"));
    assert_eq!(field(&serves, "SYSLOG_IDENTIFIER").as_deref(), Some("blochd"));
    assert_eq!(field(&serves, "TARGET").as_deref(), Some("blochd::shell::agent"));
    let arrived = entry(&journal, "a version arrived");
    assert_eq!(field(&arrived, "MODEL").as_deref(), Some("mlp"));
    assert_eq!(field(&arrived, "VERSION").as_deref(), Some("1"));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "");
    drop(agent);
    // Standard error was led elsewhere since.
    let stderr = File::create(home.dir.path().join("elsewhere")).unwrap();
    let _agent = start(&stream, stderr);
    let begun = Instant::now();
    let said = || std::fs::read_to_string(home.dir.path().join("elsewhere")).unwrap();
    while !said().contains("blochd serves") {
        assert!(begun.elapsed() < PATIENCE, "{}", said());
        std::thread::sleep(Duration::from_millis(20));
    }
}
