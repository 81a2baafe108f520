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

use running::{Agent, Home, Load, model};
use tempfile::TempDir;

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
    let [found] = entries(PATIENCE, journal, [start]);
    found
}

/// A folder with a journal's socket; `None` (and a word on standard error) where it cannot be put in the place of
/// the system's.
fn journal() -> Option<(TempDir, UnixDatagram)> {
    let place = tempfile::tempdir().unwrap();
    let journal = UnixDatagram::bind(place.path().join("socket")).unwrap();
    journal.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let can = namespaced(place.path()).arg("true").output();
    if can.is_ok_and(|output| output.status.success()) {
        return Some((place, journal));
    }
    eprintln!("skipped: nobody may have a mount namespace here");
    None
}

/// Waits for entries whose messages begin like these, in whatever order they come.
fn entries<const N: usize>(
    patience: Duration,
    journal: &UnixDatagram,
    starts: [&str; N],
) -> [BTreeMap<String, String>; N] {
    let begun = Instant::now();
    let mut seen = Vec::new();
    let mut buffer = vec![0; 1 << 16];
    let mut found = starts.map(|_| BTreeMap::new());
    while begun.elapsed() < patience {
        let Ok(length) = journal.recv(&mut buffer) else { continue };
        let entry = fields(&buffer[..length]);
        let message = entry.get("MESSAGE").cloned().unwrap_or_default();
        match starts.iter().position(|start| message.starts_with(start)) {
            Some(place) if found[place].is_empty() => found[place] = entry,
            Some(_) | None => seen.push(entry),
        }
        if found.iter().all(|entry| !entry.is_empty()) {
            return found;
        }
    }
    panic!("never all of {starts:?}\n{seen:#?}");
}

#[test]
fn a_service_logs_to_the_journal_with_fields_and_everybody_else_to_standard_error() {
    let home = Home::new();
    home.configure("defaults: {ladder: {enabled: false}}");
    home.drop_model(&model("fixtures/mlp_gemm.onnx"), "mlp/1/model.onnx");
    let Some((place, journal)) = journal() else { return };
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

/// One that logs to the journal, whatever its standard error is.
fn start<'a>(home: &'a Home, place: &Path) -> Agent<'a> {
    let mut command = namespaced(place);
    running::without_settings(&mut command);
    command.arg(env!("CARGO_BIN_EXE_blochd")).args(["run", "--log-format", "journald"]);
    command.arg("--config").arg(home.dir.path().join("agent.yaml"));
    command.arg("--runtime-library").arg(running::onnx_runtime()).env_remove("RUST_LOG");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    home.started(command.spawn().unwrap())
}

#[test]
fn what_became_of_a_model_is_found_by_fields() {
    let home = Home::new();
    let configure = |budget: &str| {
        home.configure(&format!(
            "defaults: {{budget: {budget}, quality_floor: 0, ladder: {{ratios: [0.7]}}}}"
        ));
    };
    // A build makes place for a model that misses its budget.
    configure("none");
    home.drop_model(&model("digits_mobile.onnx"), "digits/1/model.onnx");
    let bad = home.dir.path().join("bad.onnx");
    std::fs::write(&bad, "no model").unwrap();
    home.drop_model(&bad, "bad/1/model.onnx");
    let Some((place, journal)) = journal() else { return };
    let agent = start(&home, place.path());
    let has = |entry: &BTreeMap<String, String>, fields: &[(&str, &str)]| {
        for (name, value) in fields {
            assert_eq!(entry.get(*name).map(String::as_str), Some(*value), "{name}: {entry:#?}");
        }
    };
    let [refused, serves] = entries(PATIENCE, &journal, ["not served: ", "in service"]);
    has(&refused, &[("MODEL", "bad"), ("VERSION", "1"), ("PRIORITY", "3")]);
    // The words say it, too.
    assert_eq!(refused["MESSAGE"], format!("not served: {}", refused["REASON"]));
    has(&serves, &[("MODEL", "digits"), ("VARIANT", "dense"), ("PRIORITY", "6")]);
    assert!(serves["P99"].starts_with("Some("), "{serves:#?}");
    let [built] = entries(10 * PATIENCE, &journal, ["its ladder is built"]);
    has(&built, &[("MODEL", "digits"), ("RUNGS", "1")]);
    // Dense is above this whatever it does.
    configure("{p99: 20us}");
    let load = Load::start(home.http, "digits", agent.input("digits").unwrap());
    let [swapped] = entries(2 * PATIENCE, &journal, ["swapped dense for "]);
    let (answered, failed) = load.finish();
    assert!(answered > 0 && failed.is_empty(), "{failed:?}");
    has(
        &swapped,
        &[("MODEL", "digits"), ("VERSION", "1"), ("FROM", "dense"), ("REASON", "budget")],
    );
    assert_eq!(swapped["VARIANT"], swapped["TO"]);
    assert!(swapped.contains_key("PROMISED_P99"), "{swapped:#?}");
}
