//! `blochd prune` that is killed and started again, on the real program.

mod running;

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use blochd::ladder::Manifest;
use blochd::ladder::table::LatencyTable;
use blochd::shell::models;
use blochd::shell::unfinished::UNFINISHED_FILE;
use serde_json::Value;

const RATIOS: &str = "0.85,0.7,0.55";

fn command(out: &Path, state: &Path, more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_blochd"));
    running::without_settings(&mut command);
    command.arg("prune").arg(running::model("digits_mobile.onnx"));
    command.arg("--calibration").arg(running::model("digits_calibration.npz"));
    command.args(["--samples", "32", "--ratios", RATIOS, "--trials", "0", "--seconds", "0.05"]);
    command.args(["--floor", "0", "--progress", "json"]).args(more);
    command.arg("--out").arg(out).arg("--state-dir").arg(state);
    command.arg("--runtime").arg(running::onnx_runtime());
    command
}

/// Whether what was said so far is the place to kill it at.
type Enough = fn(&[Value]) -> bool;

/// Runs until a line of progress says so, and kills it there; gives what it said.
fn killed_at(mut command: Command, enough: impl Fn(&[Value]) -> bool) -> Vec<Value> {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut said: Vec<Value> = Vec::new();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let found = lines.into_iter().any(|line| {
        said.push(serde_json::from_str(&line.unwrap()).unwrap());
        enough(&said)
    });
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(found, "it was over before it was killed: {said:?}");
    said
}

fn count(said: &[Value], event: &str) -> usize {
    said.iter().filter(|line| line["event"] == event).count()
}

fn settled(said: &[Value]) -> usize {
    count(said, "rung") + count(said, "not_built")
}

fn is_stage(line: &Value, stage: &str) -> bool {
    line["stage"].as_str().is_some_and(|found| found.starts_with(stage))
}

/// Everything in a folder that is not hidden, by name.
fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let name = |entry: &fs::DirEntry| entry.file_name().to_string_lossy().into_owned();
    let shown = entries.filter(|entry| !name(entry).starts_with('.'));
    shown.map(|entry| (name(&entry), fs::read(entry.path()).unwrap())).collect()
}

fn finish(mut command: Command) -> Vec<Value> {
    let done = command.output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let text = String::from_utf8(done.stdout).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Every rung that a manifest names is there and is what it says.
fn whole(out: &Path) -> Manifest {
    let text = fs::read_to_string(out.join("manifest.json")).unwrap();
    let manifest: Manifest = serde_json::from_str(&text).unwrap();
    for rung in &manifest.rungs {
        let model = models::load(&out.join(&rung.file)).unwrap();
        assert_eq!(model.digest().unwrap(), rung.digest, "{}", rung.name);
    }
    assert_eq!(manifest.rungs.len() + manifest.not_built.len(), 3);
    assert!(!out.join(UNFINISHED_FILE).exists(), "nothing is left of the interruption");
    manifest
}

#[test]
fn a_killed_build_goes_on_where_it_was_killed() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let undisturbed = dir.path().join("undisturbed");
    finish(command(&undisturbed, &state, &[]));
    let undisturbed = whole(&undisturbed);

    let stages: [(&str, Enough); 4] = [
        ("timing", |said| said.iter().any(|line| is_stage(line, "timing"))),
        ("the first rung", |said| is_stage(&said[said.len() - 1], "building 0.85")),
        ("behind the first", |said| settled(said) == 1),
        ("the last rung", |said| {
            settled(said) == 2 && is_stage(&said[said.len() - 1], "building 0.55")
        }),
    ];
    for (place, enough) in stages {
        let out = dir.path().join(place);
        let said = killed_at(command(&out, &state, &[]), enough);
        assert!(!out.join("manifest.json").exists(), "{place}: half a ladder has no manifest");
        let (done, left) = (settled(&said), files(&out));
        for (name, bytes) in &left {
            assert!(blochd::onnx::Model::decode(bytes.clone().into()).is_ok(), "{place}: {name}");
        }
        let said = finish(command(&out, &state, &[]));
        // What was finished is told at once, before anything else is done.
        assert!(settled(&said[..done]) == done, "{place}: {said:?}");
        assert!(!is_stage(&said[done], "building"), "{place}");
        let manifest = whole(&out);
        let after = files(&out);
        for rung in manifest.rungs.iter().filter(|rung| rung.asked > [1.0, 0.84, 0.69][done]) {
            assert_eq!(after[&rung.file], left[&rung.file], "{place}: {} was redone", rung.name);
        }
        // What no clock decides is what it is without an interruption.
        assert_eq!(manifest.source, undisturbed.source);
        assert_eq!(manifest.groups, undisturbed.groups);
        assert_eq!(manifest.frozen, undisturbed.frozen);
        assert_eq!(manifest.calibration, undisturbed.calibration);
        let sizes = |m: &Manifest| (m.dense.macs, m.dense.params, m.dense.bytes);
        assert_eq!(sizes(&manifest), sizes(&undisturbed));
    }
}

#[test]
fn latencies_that_were_measured_outlive_the_kill() {
    let dir = tempfile::tempdir().unwrap();
    let (out, state) = (dir.path().join("out"), dir.path().join("state"));
    let table = || -> Option<LatencyTable> {
        let text = fs::read_to_string(state.join("latencies/table.json")).ok()?;
        Some(serde_json::from_str(&text).expect("never half a table"))
    };
    // It is written while cuts are timed, not only behind the last of them.
    killed_at(command(&out, &state, &[]), |said| {
        table().is_some() || said.iter().any(|line| is_stage(line, "building"))
    });
    let before = fs::read(state.join("latencies/table.json")).unwrap();
    let before: Value = serde_json::from_slice(&before).unwrap();
    finish(command(&out, &state, &[]));
    let after: Value =
        serde_json::from_slice(&fs::read(state.join("latencies/table.json")).unwrap()).unwrap();
    let mut compared = 0;
    for (engine, measured) in before["engines"].as_object().unwrap() {
        for (segment, entry) in measured["segments"].as_object().unwrap() {
            let now = &after["engines"][engine]["segments"][segment];
            for (width, saving) in entry["savings"].as_object().unwrap() {
                assert_eq!(&now["savings"][width], saving, "{segment} was timed again");
                compared += 1;
            }
        }
    }
    assert!(compared > 0);
}

#[test]
fn an_interrupted_build_is_not_gone_on_with_under_other_conditions() {
    let dir = tempfile::tempdir().unwrap();
    let (out, state) = (dir.path().join("out"), dir.path().join("state"));
    let said = killed_at(command(&out, &state, &[]), |said| count(said, "rung") == 1);
    assert_eq!(settled(&said), 1);
    let said = finish(command(&out, &state, &["--seed", "1"]));
    assert_ne!(said[0]["event"], "rung", "{said:?}");
    assert_eq!(whole(&out).seed, 1);
}

#[test]
fn a_finished_rung_that_was_damaged_is_made_again() {
    let dir = tempfile::tempdir().unwrap();
    let (out, state) = (dir.path().join("out"), dir.path().join("state"));
    killed_at(command(&out, &state, &[]), |said| count(said, "rung") == 1);
    let left = files(&out);
    let name = left.keys().next().unwrap();
    let bytes = &left[name];
    fs::write(out.join(name), &bytes[..bytes.len() / 2]).unwrap();
    let said = finish(command(&out, &state, &[]));
    assert_ne!(said[0]["event"], "rung", "half a file is no rung");
    whole(&out);
}
