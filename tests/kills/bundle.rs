//! A bundle with a model and a configuration, at whose every step the agent's disk goes.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use blochd::fleet::Envelope;
use blochd::shell::store::{Store, in_force};
use minisign::KeyPair;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use sha2::Digest as _;

use super::disk::{self, Disk, How, Run};
use super::running::{self, Agent, Home, model, onnx_runtime};

const OLD: u64 = 41;
const NEW: u64 = 42;

/// How long a point is left to itself after its disk has gone, unless the bundle ends before.
const AFTERWARDS: Duration = Duration::from_secs(2);

/// Nothing that is waited for takes longer, unless it is broken.
const PATIENCE: Duration = Duration::from_secs(180);

/// A box on which the old bundle is in force, and the new one that comes into its inbox.
struct Template {
    home: Home,
    signer: KeyPair,
}

/// The model of a revision: the same network, and another file.
fn contents(revision: u64) -> Vec<u8> {
    let mut bytes = fs::read(model("fixtures/mlp_gemm.onnx")).unwrap();
    // The model's own words about itself, once more.
    let words = format!("revision {revision}");
    bytes.extend([0x32, words.len() as u8]);
    bytes.extend(words.as_bytes());
    bytes
}

fn digest(bytes: &[u8]) -> String {
    sha2::Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn configure(home: &Home, probation: &str) {
    home.configure(&format!(
        "defaults: {{ladder: {{enabled: false}}, intra_op_threads: 1}}\nfleet: {{node_id: box-1, \
         keys: [ops.pub], inbox: inbox, probation: {probation}}}"
    ));
}

/// The status of what the agent has of its fleet; null where it does not answer.
fn fleet(agent: &Agent<'_>) -> Value {
    agent.get("/v2/blochd/status").map_or(Value::Null, |status| status["fleet"].clone())
}

fn is_good(agent: &Agent<'_>, revision: u64) -> bool {
    let fleet = fleet(agent);
    fleet["good"] == revision && fleet["step"]["step"] == "idle"
}

impl Template {
    fn new() -> Self {
        let home = Home::new();
        let signer = KeyPair::generate_unencrypted_keypair().unwrap();
        fs::write(home.dir.path().join("ops.pub"), signer.pk.to_base64()).unwrap();
        fs::create_dir(home.dir.path().join("inbox")).unwrap();
        configure(&home, "1s");
        let new = Self { home, signer };
        new.send(&new.home, OLD, false);
        let mut agent = new.home.start_ready();
        agent.eventually("the old one is in force", |agent| is_good(agent, OLD));
        agent.signal(Signal::SIGTERM);
        assert!(agent.wait().success());
        drop(agent);
        new
    }

    /// Puts a bundle into an inbox, its artifacts first: a model that is there already, or another beside it.
    fn send(&self, home: &Home, revision: u64, another: bool) {
        let inbox = home.dir.path().join("inbox");
        let mut document = format!(
            "fleet: 1\nrevision: {revision}\nexpires: 2096-01-01T00:00:00Z\nfor: all\n\
             config: {{defaults: {{budget: {{p99: {revision}ms}}}}}}\nmodels:\n"
        );
        let mut brings = vec![("mlp", revision, contents(revision))];
        if another {
            brings.push(("other", 1, contents(0)));
        }
        for (name, version, bytes) in brings {
            let (file, size) = (format!("{name}-{version}.onnx"), bytes.len());
            document.push_str(&format!(
                "- {{name: {name}, version: {version}, file: {file}, size: {size}, sha256: '{}'}}\n",
                digest(&bytes)
            ));
            fs::write(inbox.join(file), bytes).unwrap();
        }
        let signed =
            minisign::sign(None, &self.signer.sk, document.as_bytes(), None, None).unwrap();
        let bundle = Envelope::seal(&document, &[&signed.into_string()]).unwrap();
        fs::write(inbox.join(format!("{revision}.bundle")), bundle).unwrap();
    }

    /// Another box like this, to which the new bundle comes.
    fn twin(&self) -> Home {
        self.twin_with("1s", false)
    }

    fn twin_with(&self, probation: &str, another: bool) -> Home {
        let home = Home::new();
        for name in ["state", "models", "inbox"] {
            let to = home.dir.path().join(name);
            disk::copy_all(&self.home.dir.path().join(name), &to);
        }
        let key = |home: &Home| home.dir.path().join("ops.pub");
        fs::copy(key(&self.home), key(&home)).unwrap();
        configure(&home, probation);
        self.send(&home, NEW, another);
        home
    }
}

fn run<'a>(disk: &'a Disk, home: &Home) -> Run<'a> {
    let below = vec![home.state(), home.models()];
    Run { disk, below, log: home.dir.path().join("calls") }
}

fn start<'a>(home: &'a Home, run: &Run<'_>, at: usize, how: How) -> Agent<'a> {
    let mut command = home.command(onnx_runtime());
    run.goes(&mut command, at, how);
    home.started(command.spawn().unwrap())
}

/// What a box is while no agent runs: one of both states, whole. Gives its revision.
fn look_at_rest(home: &Home) -> u64 {
    let kept = in_force(&home.state()).unwrap().expect("a bundle is in force").kept;
    assert!([OLD, NEW].contains(&kept.revision), "{kept:?}");
    // On a copy: opening a store cleans up.
    let copy = tempfile::tempdir().unwrap();
    disk::copy_all(&home.state(), copy.path());
    let store = Store::open(copy.path()).unwrap();
    assert!(store.moved().is_empty(), "{:?}", store.moved());
    for (name, of) in [("mlp", contents as fn(u64) -> Vec<u8>), ("other", |_| contents(0))] {
        for version in fs::read_dir(home.models().join(name)).into_iter().flatten().flatten() {
            let number = version.file_name().to_string_lossy().parse::<u64>();
            let Ok(number) = number else { continue };
            let found = fs::read(version.path().join("model.onnx")).unwrap();
            assert_eq!(digest(&found), digest(&of(number)), "{name} version {number} is whole");
        }
    }
    let mut show = Command::new(env!("CARGO_BIN_EXE_blochd"));
    running::without_settings(&mut show);
    show.args(["config", "show", "--json", "--config"]).arg(home.dir.path().join("agent.yaml"));
    let shown = running::parsed(&show.output().unwrap(), 0);
    let budget = &shown["defaults.budget"];
    assert_eq!(budget["from"]["revision"], kept.revision, "{budget}");
    assert_eq!(budget["value"], format!("p99: {}ms", kept.revision));
    kept.revision
}

/// The box comes up by itself, serves at once, and ends with the new bundle in force.
fn comes_up(home: &Home, clean: &BTreeSet<String>) {
    let mut agent = home.start_ready();
    let version = agent.model("mlp")["version"].as_u64().unwrap_or_default();
    assert!([OLD, NEW].contains(&version), "{version} is served");
    agent.infer("mlp").unwrap();
    agent.eventually("the new one is in force", |agent| is_good(agent, NEW));
    agent.eventually("it is served", |agent| agent.serves("mlp", NEW));
    assert_eq!(agent.model("mlp")["budget"]["limit_ms"], json!(NEW as f64));
    agent.infer("mlp").unwrap();
    agent.signal(Signal::SIGTERM);
    assert!(agent.wait().success());
    drop(agent);
    assert_eq!(look_at_rest(home), NEW);
    assert_eq!(
        disk::listing(home.dir.path(), &["state", "models"]),
        *clean,
        "nothing is left over"
    );
}

/// The whole life without a disturbance: how many calls it has, and what is there in the end.
fn undisturbed(template: &Template, disk: &Disk) -> (usize, BTreeSet<String>) {
    let home = template.twin();
    let run = run(disk, &home);
    let mut agent = start(&home, &run, 0, How::Kill);
    agent.eventually("the new one is in force", |agent| is_good(agent, NEW));
    agent.eventually("it is served", |agent| agent.serves("mlp", NEW));
    agent.signal(Signal::SIGTERM);
    assert!(agent.wait().success());
    let calls = run.calls();
    if std::env::var_os("SHOW_POINTS").is_some() {
        println!("{}", calls.join("\n"));
    }
    (calls.len(), disk::listing(home.dir.path(), &["state", "models"]))
}

/// Lets an agent run until its disk has done what it was to do, or the bundle is in force. `true`: the point came.
fn run_on(agent: &mut Agent<'_>, home: &Home, run: &Run<'_>, at: usize) -> bool {
    let (begun, mut gone) = (Instant::now(), None);
    loop {
        if let Some(status) = agent.ended() {
            let words = home.log();
            assert!(disk::was_killed(status) || status.code().is_some(), "{status}\n{words}");
            assert!(!words.contains("panicked"), "{words}");
            return true;
        }
        if gone.is_none() && run.is_gone(at) {
            gone = Some(Instant::now());
        }
        let ended = || fleet(agent)["last"] != Value::Null;
        let over = gone.is_some_and(|gone| gone.elapsed() > AFTERWARDS || ended());
        if over || is_good(agent, NEW) {
            return run.is_gone(at);
        }
        assert!(begun.elapsed() < PATIENCE, "{}", home.log());
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Ends an agent that runs still. What it does on its way out is on the disk, too.
fn end(agent: &mut Agent<'_>, home: &Home) {
    if agent.ended().is_some() {
        return;
    }
    assert!(agent.get("/v2/health/live").is_some(), "it lives\n{}", home.log());
    agent.signal(Signal::SIGTERM);
    let status = agent.wait();
    assert!(status.success() || disk::was_killed(status), "{status}\n{}", home.log());
}

fn at_every_point(how: How, every: usize) {
    let (template, disk) = (Template::new(), Disk::new());
    let (count, clean) = undisturbed(&template, &disk);
    assert!(count >= 100, "{count} calls are counted");
    let one = |at: usize| {
        let home = template.twin();
        let run = run(&disk, &home);
        let mut agent = start(&home, &run, at, how);
        let mut reached = run_on(&mut agent, &home, &run, at);
        end(&mut agent, &home);
        reached |= run.is_gone(at);
        drop(agent);
        let found = std::panic::catch_unwind(|| {
            look_at_rest(&home);
            comes_up(&home, &clean);
        });
        if found.is_err() {
            println!("{how:?} at {at}: {:?}\n{}", run.calls().get(at - 1), home.log());
            panic!("see above");
        }
        reached
    };
    disk::sweep(&format!("a bundle, {how:?}"), count, every, one);
}

#[test]
fn a_box_that_is_killed_at_any_change_has_the_old_bundle_or_the_new_one_and_ends_with_the_new() {
    at_every_point(How::Kill, 12);
}

#[test]
fn a_disk_that_is_full_from_any_change_on_leaves_the_old_bundle_or_the_new_one() {
    at_every_point(How::Full, 20);
}

#[test]
fn a_disk_that_fails_from_any_change_on_leaves_the_old_bundle_or_the_new_one() {
    at_every_point(How::Broken, 34);
}

/// Has a bundle with another model come, and takes that away while it is watched, where it may `fail`; until it is
/// in force, or the one before it again, or the disk has gone.
fn taken_back(agent: &mut Agent<'_>, home: &Home, fail: bool, gone: impl Fn() -> bool) {
    let (begun, mut since) = (Instant::now(), None);
    loop {
        let status = agent.get("/v2/blochd/status").unwrap_or_default();
        let told = &status["fleet"];
        if fail && told["probation_left_s"].is_number() {
            // It may be gone already.
            let _ = fs::remove_dir_all(home.models().join("other/1"));
        }
        let models = status["models"].as_array().cloned().unwrap_or_default();
        let serves = models.iter().any(|one| one["model"] == "mlp" && one["version"] == OLD);
        let back = told["last"]["outcome"] == "rolled_back" && serves;
        if since.is_none() && gone() {
            since = Some(Instant::now());
        }
        let over = since.is_some_and(|since| since.elapsed() > AFTERWARDS);
        if agent.ended().is_some() || back || over || is_good(agent, NEW) {
            return;
        }
        assert!(begun.elapsed() < PATIENCE, "{}", home.log());
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The box comes up by itself, serves at once, and comes to rest as one of both, of which nothing is left over.
fn comes_to_rest(home: &Home, new: &BTreeSet<String>, old: &BTreeSet<String>) {
    look_at_rest(home);
    let mut agent = home.start_ready();
    agent.infer("mlp").unwrap();
    agent.eventually("it is at rest", |agent| fleet(agent)["step"]["step"] == "idle");
    agent.infer("mlp").unwrap();
    agent.signal(Signal::SIGTERM);
    assert!(agent.wait().success());
    let clean = if look_at_rest(home) == NEW { new } else { old };
    assert_eq!(disk::listing(home.dir.path(), &["state", "models"]), *clean);
}

fn at_every_point_of_taking_back(how: How, every: usize) {
    let (template, disk) = (Template::new(), Disk::new());
    let undisturbed = |fail: bool| {
        let home = template.twin_with("2s", true);
        let run = run(&disk, &home);
        let mut agent = start(&home, &run, 0, How::Kill);
        taken_back(&mut agent, &home, fail, || false);
        end(&mut agent, &home);
        assert_eq!(look_at_rest(&home), if fail { OLD } else { NEW });
        (run.calls().len(), disk::listing(home.dir.path(), &["state", "models"]))
    };
    let ((applied, new), (count, old)) = (undisturbed(false), undisturbed(true));
    // Those before the record says that it is taken back are those of a bundle that comes into force.
    let begin = applied - 30;
    let one = |at: usize| {
        let at = begin + at;
        let home = template.twin_with("2s", true);
        let run = run(&disk, &home);
        let mut agent = start(&home, &run, at, how);
        taken_back(&mut agent, &home, true, || run.is_gone(at));
        end(&mut agent, &home);
        drop(agent);
        let found = std::panic::catch_unwind(|| comes_to_rest(&home, &new, &old));
        if found.is_err() {
            println!("taken back, {how:?} at {at}: {:?}\n{}", run.calls().get(at - 1), home.log());
            panic!("see above");
        }
        run.is_gone(at)
    };
    disk::sweep(&format!("a bundle that is taken back, {how:?}"), count - begin, every, one);
}

#[test]
fn a_box_that_is_killed_at_any_change_while_a_bundle_is_taken_back_has_one_of_both() {
    at_every_point_of_taking_back(How::Kill, 13);
}

#[test]
fn a_disk_that_is_full_from_any_change_on_while_a_bundle_is_taken_back_leaves_one_of_both() {
    at_every_point_of_taking_back(How::Full, 18);
}

/// Only for the sweep's own sake: a folder that is listed has what is in it.
#[test]
fn a_listing_has_hidden_files_and_folders() {
    let dir = tempfile::tempdir().unwrap();
    let place: PathBuf = dir.path().join("a/.b");
    fs::create_dir_all(&place).unwrap();
    fs::write(place.join(".c"), "").unwrap();
    let all = disk::listing(Path::new(dir.path()), &["a"]);
    assert_eq!(all.into_iter().collect::<Vec<_>>(), ["a/.b", "a/.b/.c"]);
}
