//! What an agent's sessions take from the box: memory, ONNX Runtime itself, CPUs. Real processes, files and HTTP.

mod running;

use std::fs;
use std::path::PathBuf;

use blochd::shell::cpus;
use running::{Agent, Home, model};
use serde_json::json;

fn home() -> Home {
    let home = Home::new();
    home.configure("defaults: {ladder: {enabled: false}}");
    home
}

/// Whether ONNX Runtime's library is in the agent's memory.
fn has_runtime(agent: &Agent<'_>) -> bool {
    let maps = fs::read_to_string(format!("/proc/{}/maps", agent.pid())).unwrap();
    maps.contains("libonnxruntime")
}

#[test]
fn onnx_runtime_is_loaded_with_the_first_model_and_not_before() {
    let home = home();
    let mut agent = home.start_ready();
    assert!(!has_runtime(&agent), "{}", home.log());
    home.drop_model(&model("fixtures/vgg_chain.onnx"), "digits/1/model.onnx");
    agent.eventually("it serves", |agent| agent.infer("digits").is_ok());
    assert!(has_runtime(&agent));
}

#[test]
fn sessions_hold_their_weights_once_until_the_model_is_unloaded() {
    let home = home();
    let file = fs::metadata(model("digits_resnet.onnx")).unwrap().len();
    home.configure("defaults: {instances: 3, ladder: {enabled: false}}");
    home.drop_model(&model("digits_resnet.onnx"), "digits/1/model.onnx");
    // The same network under another name.
    home.drop_model(&model("digits_resnet.onnx"), "twin/1/model.onnx");
    let mut agent = home.start_ready();
    agent.eventually("both serve", |a| a.infer("digits").is_ok() && a.infer("twin").is_ok());
    let held = |agent: &Agent<'_>| agent.status()["shared_weights_bytes"].as_u64().unwrap();
    // Six sessions: one set of their weights, of which the smallest are left out.
    let once = held(&agent);
    assert!(once > file / 2 && once <= file, "{once} of {file}");
    assert_eq!(agent.infer("digits").unwrap()["outputs"], agent.infer("twin").unwrap()["outputs"]);
    assert_eq!(agent.command("digits", "unload").0, 200);
    agent.eventually("one is unloaded", |agent| !agent.serves("digits", 1));
    assert_eq!(held(&agent), once);
    assert!(agent.infer("twin").is_ok());
    assert_eq!(agent.command("twin", "unload").0, 200);
    agent.eventually("all is given back", |agent| held(agent) == 0);
    assert_eq!(agent.command("digits", "load").0, 200);
    assert!(agent.infer("digits").is_ok());
    agent.eventually("it is held again", |agent| held(agent) == once);
}

#[test]
fn weights_are_those_of_the_file_as_it_was_tried_whatever_becomes_of_it() {
    let home = home();
    home.drop_model(&model("fixtures/vgg_chain.onnx"), "digits/1/model.onnx");
    let mut agent = home.start_ready();
    let before = agent.infer("digits").unwrap()["outputs"].clone();
    // Cut short in place, as nobody should: what is mapped is not this file.
    let path = home.models().join("digits/1/model.onnx");
    fs::write(&path, "no model").unwrap();
    agent.eventually("it is refused", |agent| agent.refused("digits", 1).is_some());
    assert_eq!(agent.infer("digits").unwrap()["outputs"], before);
}

/// The names of an agent's threads with the CPUs that each may use.
fn threads(agent: &Agent<'_>) -> Vec<(String, String)> {
    let tasks = fs::read_dir(format!("/proc/{}/task", agent.pid())).unwrap().flatten();
    let tasks: Vec<PathBuf> = tasks.map(|task| task.path()).collect();
    let read = |task: &PathBuf| {
        // It may have ended meanwhile.
        let name = fs::read_to_string(task.join("comm")).ok()?.trim().to_owned();
        let status = fs::read_to_string(task.join("status")).ok()?;
        let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
        Some((name, list.trim().to_owned()))
    };
    tasks.iter().filter_map(read).collect()
}

#[test]
fn the_threads_of_a_model_are_bound_as_its_policy_says_and_no_others() {
    let home = home();
    let usable = cpus::usable().unwrap();
    let (first, last) = (usable[0].to_string(), usable.last().unwrap().to_string());
    home.configure("defaults: {instances: 1, intra_op_threads: 2, ladder: {enabled: false}}");
    home.drop_model(&model("fixtures/vgg_chain.onnx"), "free/1/model.onnx");
    home.drop_model(&model("fixtures/vgg_chain.onnx"), "bound/1/model.onnx");
    fs::write(home.models().join("bound/policy.yaml"), format!("cpus: [{first}]\n")).unwrap();
    let mut agent = home.start_ready();
    agent.eventually("both serve", |a| a.infer("free").is_ok() && a.infer("bound").is_ok());
    let everywhere = threads(&agent).into_iter().find(|(name, _)| name == "free").unwrap().1;
    assert!(usable.len() == 1 || everywhere != first, "{everywhere}");
    agent.eventually("its thread is bound", |agent| {
        threads(agent).iter().any(|(name, list)| name == "bound" && *list == first)
    });
    // The second thread is ONNX Runtime's own.
    let bound = threads(&agent).iter().filter(|(_, list)| *list == first).count();
    assert!(bound >= 2, "{:?}", threads(&agent));
    fs::write(home.models().join("bound/policy.yaml"), "cpus: auto\n").unwrap();
    agent.eventually("it is bound anew", |agent| {
        threads(agent).iter().any(|(name, list)| name == "bound" && *list == last)
    });
    assert!(agent.infer("bound").is_ok());
}

#[test]
fn cpus_that_the_box_does_not_have_are_refused_with_those_that_it_has() {
    let home = home();
    home.configure("models: {ocr: {cpus: [8000]}}");
    let mut run = std::process::Command::new(env!("CARGO_BIN_EXE_blochd"));
    running::without_settings(&mut run);
    run.args(["run", "--config"]).arg(home.dir.path().join("agent.yaml"));
    let run = run.output().unwrap();
    let words = String::from_utf8_lossy(&run.stderr);
    assert_eq!(run.status.code(), Some(78), "{words}");
    assert!(words.contains("`models.ocr.cpus` names CPU 8000"), "{words}");
    home.configure("defaults: {ladder: {enabled: false}}");
    home.drop_model(&model("fixtures/vgg_chain.onnx"), "digits/1/model.onnx");
    let mut agent = home.start_ready();
    // A policy and a change of the file are refused by a running agent, which serves on.
    fs::write(home.models().join("digits/policy.yaml"), "cpus: [8000]\n").unwrap();
    agent.eventually("the policy is refused", |_| home.log().contains("policy refused"));
    home.configure("defaults: {cpus: [8000]}");
    agent.eventually("the file is refused", |agent| {
        let error = agent.status()["config"]["error"].clone();
        error.as_str().is_some_and(|error| error.contains("`defaults.cpus` names CPU 8000"))
    });
    assert!(agent.infer("digits").is_ok());
    assert_eq!(agent.status()["refused"], json!([]));
}
