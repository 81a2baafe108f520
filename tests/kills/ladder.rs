//! A ladder: built by `blochd prune`, and taken into place by the agent that has it built.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use blochd::ladder::Manifest;
use blochd::ladder::table::LatencyTable;
use blochd::onnx::Model;
use blochd::shell::models;
use blochd::shell::store::Store;
use blochd::units::Digest;
use nix::sys::signal::Signal;

use super::disk::{self, Disk, How, Run};
use super::running::{self, Agent, Home, model, onnx_runtime};

/// Nothing that is waited for takes longer, unless it is broken.
const PATIENCE: Duration = Duration::from_secs(180);

/// How long an agent is left to itself after its disk has gone.
const AFTERWARDS: Duration = Duration::from_secs(2);

/// The folders of a build.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("out")).unwrap();
        fs::create_dir(dir.path().join("state")).unwrap();
        Self { dir }
    }

    fn out(&self) -> PathBuf {
        self.dir.path().join("out")
    }

    fn run<'a>(&self, disk: &'a Disk) -> Run<'a> {
        let below = vec![self.out(), self.dir.path().join("state")];
        Run { disk, below, log: self.dir.path().join("calls") }
    }

    fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_blochd"));
        running::without_settings(&mut command);
        command.arg("prune").arg(model("fixtures/mlp_gemm.onnx"));
        command.args(["--ratios", "0.9,0.8", "--trials", "0", "--seconds", "0.02"]);
        command.args(["--floor", "0", "--progress", "none", "--out"]).arg(self.out());
        command.arg("--state-dir").arg(self.dir.path().join("state"));
        command.arg("--runtime").arg(onnx_runtime()).stdout(Stdio::null());
        command
    }

    /// What a build that broke off has left: nothing that has a name is half.
    fn look(&self) {
        let manifest = fs::read_to_string(self.out().join("manifest.json"));
        if let Ok(text) = &manifest {
            verified(&self.out(), &serde_json::from_str(text).unwrap());
        }
        for entry in fs::read_dir(self.out()).unwrap().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.ends_with(".onnx") && !name.starts_with('.') {
                assert!(Model::decode(fs::read(entry.path()).unwrap().into()).is_ok(), "{name}");
            }
        }
        let table = fs::read_to_string(self.dir.path().join("state/latencies/table.json"));
        if let Ok(text) = table {
            serde_json::from_str::<LatencyTable>(&text).unwrap();
        }
    }

    /// The same command again makes a ladder, and nothing of the one that broke off is left.
    fn finish(&self) {
        let done = self.command().output().unwrap();
        let (_, words) = running::words(&done);
        assert!(done.status.success(), "{words}");
        let text = fs::read_to_string(self.out().join("manifest.json")).unwrap();
        let manifest: Manifest = serde_json::from_str(&text).unwrap();
        verified(&self.out(), &manifest);
        assert_eq!(manifest.rungs.len() + manifest.not_built.len(), 2);
        let mut expected: BTreeSet<String> =
            manifest.rungs.iter().map(|rung| format!("out/{}", rung.file)).collect();
        // A rung that was finished before stays where another build found its place taken by what it measured.
        expected.extend(["out/manifest.json", "state/latencies"].map(str::to_owned));
        expected.insert("state/latencies/table.json".to_owned());
        let found = disk::listing(self.dir.path(), &["out", "state"]);
        let more: Vec<_> = found.difference(&expected).filter(|one| !is_rung(one)).collect();
        assert!(more.is_empty() && expected.is_subset(&found), "{found:?}");
    }
}

fn is_rung(path: &str) -> bool {
    path.starts_with("out/r") && path.ends_with(".onnx")
}

/// Every rung that a manifest names is there and is what it says.
fn verified(dir: &Path, manifest: &Manifest) {
    for rung in &manifest.rungs {
        let model = models::load(&dir.join(&rung.file)).unwrap();
        assert_eq!(model.digest().unwrap(), rung.digest, "{}", rung.name);
    }
}

fn at_every_point_of_a_build(how: How, every: usize) {
    let disk = Disk::new();
    let count = {
        let place = Place::new();
        let run = place.run(&disk);
        let mut command = place.command();
        run.goes(&mut command, 0, how);
        assert!(command.status().unwrap().success());
        place.finish();
        run.calls().len()
    };
    assert!(count >= 30, "{count} calls are counted");
    let one = |at: usize| {
        let place = Place::new();
        let run = place.run(&disk);
        let mut command = place.command();
        run.goes(&mut command, at, how);
        let done = command.output().unwrap();
        let (_, words) = running::words(&done);
        let told = match how {
            How::Kill => disk::was_killed(done.status),
            // Where only what saves time could not be kept, the ladder is made all the same.
            How::Full | How::Broken => matches!(done.status.code(), Some(0 | 74)),
        };
        assert!(told || done.status.success(), "{at}: {}: {words}", done.status);
        let reached = run.is_gone(at);
        let found = std::panic::catch_unwind(|| {
            place.look();
            place.finish();
        });
        assert!(found.is_ok(), "{how:?} at {at}: {:?}", run.calls().get(at - 1));
        reached
    };
    disk::sweep(&format!("a ladder's build, {how:?}"), count, every, one);
}

#[test]
fn a_build_that_is_killed_at_any_change_is_finished_by_the_same_command() {
    at_every_point_of_a_build(How::Kill, 6);
}

#[test]
fn a_build_whose_disk_is_full_from_any_change_on_is_finished_once_there_is_room() {
    at_every_point_of_a_build(How::Full, 10);
}

#[test]
fn a_build_whose_disk_fails_from_any_change_on_is_finished_once_it_does_not() {
    at_every_point_of_a_build(How::Broken, 12);
}

fn home() -> Home {
    let home = Home::new();
    home.configure(
        "defaults: {quality_floor: 0, intra_op_threads: 1, ladder: {ratios: [0.8]}}\nbuild: {nice: 0}",
    );
    home.drop_model(&model("fixtures/mlp_gemm.onnx"), "mlp/1/model.onnx");
    home
}

fn is_built(agent: &Agent<'_>) -> bool {
    let Some(status) = agent.get("/v2/blochd/status") else { return false };
    let models = status["models"].as_array().cloned().unwrap_or_default();
    models.iter().any(|model| model["model"] == "mlp" && model["build"] == "done")
}

/// Every ladder that is in its place is sealed and whole; gives how many there are.
fn ladders(home: &Home) -> usize {
    let mut count = 0;
    for entry in fs::read_dir(home.state().join("ladders")).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with('.') {
            continue;
        }
        let seal = fs::read_to_string(entry.path().join("seal")).unwrap();
        let (_, sealed) = seal.split_once('\n').unwrap();
        let sealed: BTreeMap<String, String> = serde_json::from_str(sealed).unwrap();
        for (name, told) in &sealed {
            let bytes = fs::read(entry.path().join(name)).unwrap();
            assert_eq!(Digest::of(&bytes).to_string(), *told, "{name}");
        }
        let manifest = fs::read_to_string(entry.path().join("manifest.json")).unwrap();
        verified(&entry.path(), &serde_json::from_str(&manifest).unwrap());
        count += 1;
    }
    count
}

/// The agent that has a ladder built, whose disk goes at every change that it makes itself.
fn at_every_point_of_its_agent(how: How, every: usize) {
    let disk = Disk::new();
    let run_of = |home: &Home| Run {
        disk: &disk,
        below: vec![home.state(), home.models()],
        log: home.dir.path().join("calls"),
    };
    let start = |home: &Home, at: usize| {
        fs::create_dir_all(home.state()).unwrap();
        let mut command = home.command(onnx_runtime());
        run_of(home).goes(&mut command, at, how);
        command.spawn().unwrap()
    };
    let count = {
        let home = home();
        let mut agent = home.started(start(&home, 0));
        agent.once_built("its ladder is built", is_built);
        agent.signal(Signal::SIGTERM);
        assert!(agent.wait().success());
        assert_eq!(ladders(&home), 1);
        run_of(&home).calls().len()
    };
    let one = |at: usize| {
        let home = home();
        let mut agent = home.started(start(&home, at));
        let (begun, mut gone) = (Instant::now(), None);
        loop {
            if gone.is_none() && run_of(&home).is_gone(at) {
                gone = Some(Instant::now());
            }
            let over = gone.is_some_and(|gone: Instant| gone.elapsed() > AFTERWARDS);
            if over || agent.ended().is_some() || is_built(&agent) {
                break;
            }
            assert!(begun.elapsed() < PATIENCE, "{}", home.log());
            std::thread::sleep(Duration::from_millis(10));
        }
        if agent.ended().is_none() {
            agent.signal(Signal::SIGTERM);
        }
        let status = agent.wait();
        assert!(disk::was_killed(status) || status.code().is_some(), "{status}");
        drop(agent);
        let found = std::panic::catch_unwind(|| comes_up(&home));
        if found.is_err() {
            let calls = run_of(&home).calls();
            println!("a ladder, {how:?} at {at}: {:?}\n{}", calls.get(at - 1), home.log());
            panic!("see above");
        }
        run_of(&home).is_gone(at)
    };
    disk::sweep(&format!("a ladder in its agent, {how:?}"), count, every, one);
}

/// The box comes up by itself, serves, and has its ladder in the end.
fn comes_up(home: &Home) {
    assert!(!home.log().contains("panicked"));
    assert!(ladders(home) <= 1);
    let copy = tempfile::tempdir().unwrap();
    disk::copy_all(&home.state(), copy.path());
    let store = Store::open(copy.path()).unwrap();
    assert!(store.moved().is_empty(), "{:?}", store.moved());
    let mut agent = home.start_ready();
    agent.infer("mlp").unwrap();
    agent.once_built("its ladder is built", is_built);
    agent.signal(Signal::SIGTERM);
    assert!(agent.wait().success());
    drop(agent);
    assert_eq!(ladders(home), 1);
    let left = disk::listing(&home.state().join("ladders"), &["."]);
    assert!(!left.iter().any(|path| path.contains("/.") || path.starts_with('.')), "{left:?}");
}

#[test]
fn an_agent_that_is_killed_at_any_change_while_a_ladder_comes_serves_it_in_the_end() {
    at_every_point_of_its_agent(How::Kill, 15);
}

#[test]
fn an_agent_whose_disk_is_full_from_any_change_on_has_its_ladder_once_there_is_room() {
    at_every_point_of_its_agent(How::Full, 20);
}
