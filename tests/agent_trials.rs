//! What the agent's child processes may and may not say of a model: `blochd run` in a process of its own,
//! real files, real ONNX Runtime.

mod running;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use blochd::shell::unfinished::UNFINISHED_FILE;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use running::{Agent, Home, children_of, model, without_settings};
use serde_json::{Value, json};

const NO_LADDER: &str = "defaults: {ladder: {enabled: false}}";

fn home() -> Home {
    let home = Home::new();
    home.configure(NO_LADDER);
    home
}

fn input(name: &str, datatype: &str, shape: &[usize], data: Value) -> Value {
    json!({"name": name, "datatype": datatype, "shape": shape, "data": data})
}

/// The models of `fixtures/inputs`, and what a client asks them.
fn requests() -> Vec<(&'static str, Vec<Value>)> {
    let numbers = |count: usize| json!(vec![1; count]);
    let ids = |name: &str, datatype: &str| input(name, datatype, &[1, 5], numbers(5));
    vec![
        ("u8_image", vec![input("pixels", "UINT8", &[1, 28, 28, 3], numbers(28 * 28 * 3))]),
        ("i32_tokens", vec![ids("ids", "INT32")]),
        (
            "token_types",
            ["input_ids", "attention_mask", "token_type_ids"].map(|n| ids(n, "INT64")).to_vec(),
        ),
        (
            "voice",
            vec![
                input("input", "FP32", &[1, 512], numbers(512)),
                input("state", "FP32", &[2, 1, 64], numbers(128)),
                input("sr", "INT64", &[], json!([16000])),
            ],
        ),
        ("words", vec![input("words", "BYTES", &[2], json!(["left", "up"]))]),
        (
            "masked",
            vec![
                input(
                    "keep",
                    "BOOL",
                    &[1, 8],
                    json!([true, false, true, false, true, true, true, true]),
                ),
                input("x", "FP16", &[1, 8], numbers(8)),
            ],
        ),
        ("skipped", vec![input("image", "FP32", &[1, 1, 36, 52], numbers(36 * 52))]),
        ("frames_of_48", vec![input("samples", "FP32", &[1, 48], numbers(48))]),
    ]
}

fn drop_input_model(home: &Home, name: &str) {
    home.drop_model(
        &model(&format!("fixtures/inputs/{name}.onnx")),
        &format!("{name}/1/model.onnx"),
    );
}

fn quarantine(agent: &Agent<'_>) -> Value {
    agent.status()["quarantine"].clone()
}

fn promised(agent: &Agent<'_>, name: &str) -> Value {
    agent.model(name)["ladder"][0]["promised_p99_ms"].clone()
}

#[test]
fn sound_models_are_served_whatever_their_inputs_are() {
    let home = home();
    for (name, _) in requests() {
        drop_input_model(&home, name);
    }
    drop_input_model(&home, "absurd");
    let mut agent = home.start_ready();
    for (name, inputs) in requests() {
        agent.eventually(name, |agent| agent.serves(name, 1));
        // JSON has no halves.
        if name == "masked" {
            continue;
        }
        let answer = running::infer(home.http, name, &json!({ "inputs": inputs }));
        assert!(answer.is_ok(), "{name}: {answer:?}\n{}", home.log());
    }
    assert_eq!(quarantine(&agent), json!([]));
    assert_eq!(agent.status()["refused"], json!([]));
    // What ran in its trial has a latency; what was only loaded has none yet.
    for (name, _) in requests() {
        let known = promised(&agent, name).is_f64();
        assert_eq!(known, name != "frames_of_48", "{name}: {}", promised(&agent, name));
    }
    assert!(agent.serves("absurd", 1) && promised(&agent, "absurd").is_null());
    agent.eventually("no slowdown is told", |a| a.model("frames_of_48")["slowdown"] == 1.0);
}

#[test]
fn trials_run_on_the_samples_beside_a_model_and_on_none_that_do_not_suit_it() {
    let home = home();
    let samples = model("fixtures/inputs/frames_of_48.npz");
    let beside = |name: &str| home.models().join(name).join("calibration.npz");
    drop_input_model(&home, "frames_of_48");
    fs::copy(&samples, beside("frames_of_48")).unwrap();
    // Those of another model, and garbage.
    drop_input_model(&home, "voice");
    fs::copy(&samples, beside("voice")).unwrap();
    drop_input_model(&home, "skipped");
    fs::write(beside("skipped"), "not an archive").unwrap();
    let agent = home.start_ready();
    for name in ["frames_of_48", "voice", "skipped"] {
        assert!(agent.serves(name, 1) && promised(&agent, name).is_f64(), "{name}: {}", home.log());
    }
    assert_eq!(quarantine(&agent), json!([]));
    assert!(home.log().contains("not an .npz archive"), "{}", home.log());
}

#[test]
fn companions_that_lead_out_of_the_model_directory_are_passed_over_like_models() {
    let home = home();
    let samples = model("fixtures/inputs/frames_of_48.npz");
    drop_input_model(&home, "frames_of_48");
    symlink(&samples, home.models().join("frames_of_48/calibration.npz")).unwrap();
    drop_input_model(&home, "skipped");
    let folder = home.models().join("skipped");
    let outside = home.dir.path().join("outside.yaml");
    fs::write(&outside, "budget: {p95: 7ms}").unwrap();
    symlink(&outside, folder.join("policy.yaml")).unwrap();
    // A file of its own makes the agent look at both.
    fs::copy(&samples, folder.join("calibration.npz")).unwrap();
    let mut agent = home.start_ready();
    assert!(agent.serves("frames_of_48", 1) && agent.serves("skipped", 1));
    assert!(promised(&agent, "frames_of_48").is_null(), "its samples are not read");
    assert!(agent.model("skipped")["budget"].is_null(), "its policy is not read");
    // A link within the directory is followed.
    fs::write(home.models().join("shared.yaml"), "budget: {p95: 8ms}").unwrap();
    fs::remove_file(folder.join("policy.yaml")).unwrap();
    symlink("../shared.yaml", folder.join("policy.yaml")).unwrap();
    agent.eventually("its policy holds", |a| a.model("skipped")["budget"]["limit_ms"] == 8.0);
}

/// A child of the agent that runs this subcommand.
fn child(agent: &Agent<'_>, command: &str) -> Option<i32> {
    let runs = |child: &i32| {
        fs::read_to_string(format!("/proc/{child}/cmdline"))
            .is_ok_and(|line| line.split('\0').nth(1) == Some(command))
    };
    children_of(agent.pid()).into_iter().find(runs)
}

fn kill_child(agent: &mut Agent<'_>, command: &str) -> i32 {
    let mut killed = 0;
    agent.eventually("its child is killed", |agent| {
        let found = child(agent, command);
        killed = found.unwrap_or_default();
        found.is_some_and(|child| kill(Pid::from_raw(child), Signal::SIGKILL).is_ok())
    });
    killed
}

#[test]
fn a_trial_that_is_killed_from_outside_convicts_nobody_and_comes_again() {
    let home = home();
    home.drop_model(&model("fixtures/mlp_gemm.onnx"), "mlp/1/model.onnx");
    let mut agent = home.start_ready();
    home.drop_model(&model("fixtures/runaway/hangs.onnx"), "mlp/2/model.onnx");
    let first = kill_child(&mut agent, "trial");
    agent.eventually("it is refused", |agent| agent.refused("mlp", 2).is_some());
    let reason = agent.refused("mlp", 2).unwrap();
    assert!(reason.contains("ended by SIGKILL, which did not come from here"), "{reason}");
    assert_eq!(quarantine(&agent), json!([]));
    agent.eventually("it is tried again", |a| child(a, "trial").is_some_and(|c| c != first));
    assert_eq!(agent.infer("mlp").unwrap()["model_version"], "1");
    // Gone before its next turn: nobody waits for it.
    kill_child(&mut agent, "trial");
    fs::remove_file(home.models().join("mlp/2/model.onnx")).unwrap();
    agent.eventually("it is forgotten", |agent| agent.refused("mlp", 2).is_none());
    assert_eq!(quarantine(&agent), json!([]));
}

/// The bound on the memory of a process, bytes.
fn memory_of(process: i32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{process}/limits")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("Max data size"))?;
    line.split_whitespace().next()?.parse().ok()
}

fn memory_of_the_box() -> u64 {
    let text = fs::read_to_string(Path::new("/proc/meminfo")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() * 1024
}

#[test]
fn children_may_take_what_the_box_has_where_nothing_else_is_said() {
    let home = Home::new();
    home.configure("defaults: {quality_floor: 0.2, ladder: {ratios: [0.73]}}");
    home.drop_model(&model("digits_resnet.onnx"), "digits/1/model.onnx");
    let mut agent = home.start_ready();
    let all = memory_of_the_box();
    let mut bounds = Vec::new();
    agent.eventually("a build is bounded", |agent| {
        bounds = child(agent, "prune").and_then(memory_of).into_iter().collect();
        !bounds.is_empty()
    });
    home.drop_model(&model("fixtures/runaway/hangs.onnx"), "mlp/1/model.onnx");
    agent.eventually("a trial is bounded", |agent| {
        bounds.extend(child(agent, "trial").and_then(memory_of));
        bounds.len() == 2
    });
    assert!(bounds[0] <= all / 2 && bounds[1] <= all, "{bounds:?} of {all}");
}

fn build_of(agent: &Agent<'_>) -> (String, String) {
    let model = agent.model("digits");
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    (text(&model["build"]), text(&model["build_why"]))
}

#[test]
fn a_build_that_is_killed_or_cannot_write_is_done_again() {
    let home = Home::new();
    home.configure("defaults: {quality_floor: 0.2, ladder: {ratios: [0.73]}}");
    home.drop_model(&model("fixtures/vgg_chain.onnx"), "digits/1/model.onnx");
    let mut agent = home.start_ready();
    kill_child(&mut agent, "prune");
    agent.eventually("it is told", |agent| {
        let (build, why) = build_of(agent);
        build == "failed" && why.contains("SIGKILL") && why.contains("tried again in 10s")
    });
    // A folder stands where the manifest is to be written.
    agent.eventually("it is in the way", |agent| {
        child(agent, "prune").is_some()
            && fs::read_dir(home.state().join("ladders")).is_ok_and(|all| {
                let mut places = all.flatten().map(|entry| entry.path());
                let building = |path: &Path| path.to_string_lossy().contains(".building-");
                places
                    .find(|path| building(path))
                    .is_some_and(|path| fs::create_dir(path.join("manifest.json")).is_ok())
            })
    });
    agent.eventually("it is told", |agent| {
        let (build, why) = build_of(agent);
        build == "failed" && why.contains("exit code 74") && why.contains("tried again in 20s")
    });
    agent.once_built("it is built in the end", |agent| build_of(agent).0 == "done");
}

/// Rungs that are finished of a ladder that is not.
fn finished_rungs(home: &Home) -> usize {
    let folders = fs::read_dir(home.state().join("ladders")).into_iter().flatten().flatten();
    let told = |folder: fs::DirEntry| fs::read(folder.path().join(UNFINISHED_FILE)).ok();
    let told = folders.filter_map(told).next().unwrap_or_default();
    String::from_utf8_lossy(&told).matches("\"step\"").count()
}

#[test]
fn an_agent_that_is_killed_goes_on_with_the_ladder_where_its_build_was() {
    let home = Home::new();
    home.configure("defaults: {quality_floor: 0, ladder: {ratios: [0.75, 0.6]}}");
    home.drop_model(&model("digits_mobile.onnx"), "digits/1/model.onnx");
    let mut agent = home.start_ready();
    agent.once_built("a rung is finished", |_| finished_rungs(&home) > 0);
    agent.signal(Signal::SIGKILL);
    agent.wait();
    assert!(finished_rungs(&home) > 0, "the ladder was not done yet");
    let mut agent = home.start_ready();
    agent.once_built("its ladder is done", |agent| build_of(agent).0 == "done");
    let page = ureq::get(format!("http://127.0.0.1:{}/metrics", home.metrics)).call().unwrap();
    let page = page.into_body().read_to_string().unwrap();
    let reused = "blochd_analysis_reused_total{model=\"digits\",version=\"1\",what=\"rungs\"} ";
    let reused = page.lines().find_map(|line| line.strip_prefix(reused)).expect("what was reused");
    assert!(reused.parse::<u64>().unwrap() > 0, "{reused}");
    assert_eq!(finished_rungs(&home), 0);
}

#[test]
fn the_runtime_leaves_nothing_of_its_own_behind_and_asks_nobody() {
    let home = home();
    let user = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_blochd"));
    without_settings(&mut command);
    command
        .env("HOME", user.path())
        .env_remove("XDG_CACHE_HOME")
        .env_remove("ORT_DISABLE_TELEMETRY");
    command.arg("trial").arg(model("fixtures/mlp_gemm.onnx")).current_dir(home.dir.path());
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let left: Vec<_> =
        fs::read_dir(user.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(left.is_empty(), "{left:?}");
}
