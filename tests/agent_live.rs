//! The agent over the life of a model: samples of its requests, external data that changes, builds that
//! make place. Real processes, files and HTTP.

mod running;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use nix::sys::signal::Signal;
use running::{Agent, Home, Load, model};
use serde_json::{Value, json};

/// A batch of images of noise, another one for each `seed`.
fn images(seed: u64, count: usize) -> Value {
    let mut state = seed * 1000 + 1;
    let mut noise = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f64 / f64::from(1 << 23) - 1.0
    };
    let data: Vec<f64> = (0..count * 28 * 28).map(|_| noise()).collect();
    let shape = [count, 1, 28, 28];
    json!({"inputs": [{"name": "input", "datatype": "FP32", "shape": shape, "data": data}]})
}

fn ask(home: &Home, batches: u64) {
    for seed in 0..batches {
        running::infer(home.http, "digits", &images(seed, 16)).unwrap();
    }
}

fn kept(home: &Home) -> Vec<PathBuf> {
    let dir = home.state().join("reservoirs/digits");
    fs::read_dir(dir).into_iter().flatten().map(|entry| entry.unwrap().path()).collect()
}

fn made_from(agent: &Agent<'_>) -> Value {
    let model = agent.model("digits");
    if model["build"] == "done" { model["calibration"]["source"].clone() } else { Value::Null }
}

#[test]
fn a_ladder_from_noise_is_made_anew_from_requests_where_the_policy_allows_to_keep_them() {
    let home = Home::new();
    let with = |live: &str| {
        home.configure(&format!(
            "defaults: {{quality_floor: 0.2, ladder: {{ratios: [0.73]}}{live}}}"
        ));
    };
    with("");
    home.drop_model(&model("fixtures/vgg_chain.onnx"), "digits/1/model.onnx");
    let mut agent = home.start_ready();
    agent.once_built("its first ladder", |agent| made_from(agent) == "synthetic");
    // Nobody allowed it.
    ask(&home, 9);
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(kept(&home), Vec::<PathBuf>::new());
    with(", calibration: {live: true}");
    agent.eventually("it is allowed", |_| home.log().contains("its policy changed"));
    ask(&home, 9);
    agent.once_built("a ladder from requests", |agent| made_from(agent) == "live");
    let files = kept(&home);
    assert_eq!(files.len(), 1, "{files:?}");
    assert_eq!(fs::metadata(&files[0]).unwrap().permissions().mode() & 0o777, 0o600);
    let arrays = blochd::shell::npz::read(&files[0]).unwrap();
    let shape = &arrays["input"].shape;
    assert!(shape[0] >= 128 && shape[1..] == [1, 28, 28], "{shape:?}");
    assert!(agent.infer("digits").is_ok());
    // What is kept outlives the agent, and so does the ladder.
    let builds = || home.log().matches("is being built").count();
    let before = builds();
    agent.signal(Signal::SIGKILL);
    agent.wait();
    let mut agent = home.start_ready();
    agent.once_built("the same ladder", |agent| made_from(agent) == "live");
    assert_eq!(builds(), before, "{}", home.log());
    // Who forbids it wants them gone.
    with("");
    agent.eventually("they are gone", |_| kept(&home).is_empty());
    assert!(agent.infer("digits").is_ok());
}

#[test]
fn a_change_of_the_external_data_alone_is_a_new_version() {
    let home = Home::new();
    home.configure("defaults: {ladder: {enabled: false}}");
    let weights = fs::read(model("fixtures/external/weights.bin")).unwrap();
    let write = |place: &str, bytes: &[u8]| {
        let path = home.models().join(place);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path.with_extension("part"), bytes).unwrap();
        fs::rename(path.with_extension("part"), path).unwrap();
    };
    for place in ["weights.bin", "folder/1/weights.bin"] {
        write(place, &weights);
    }
    home.drop_model(&model("fixtures/external/model.onnx"), "bare.onnx");
    home.drop_model(&model("fixtures/external/model.onnx"), "folder/1/model.onnx");
    let mut agent = home.start_ready();
    let other: Vec<u8> =
        weights.chunks(4).flat_map(|b| [b[0] ^ 1].into_iter().chain(b[1..].to_vec())).collect();
    for (name, place) in [("bare", "weights.bin"), ("folder", "folder/1/weights.bin")] {
        let digest = |agent: &Agent<'_>| agent.model(name)["digest"].clone();
        let first = digest(&agent);
        assert!(first.is_string(), "{}", home.log());
        // No restlessness of its own: what has not changed is not loaded again.
        std::thread::sleep(Duration::from_millis(1500));
        let loads = home.log().matches("in service").count();
        write(place, &other);
        agent.eventually("the new weights", |agent| digest(agent) != first);
        assert!(agent.infer(name).is_ok());
        assert_eq!(home.log().matches("in service").count(), loads + 1, "{}", home.log());
        // Weights that end too early are refused; what was loaded serves on.
        let second = digest(&agent);
        write(place, &other[..100]);
        agent.eventually("they are refused", |agent| agent.refused(name, 1).is_some());
        let reason = agent.refused(name, 1).unwrap();
        assert!(reason.contains("weights.bin") && reason.contains("100 bytes"), "{reason}");
        assert_eq!(digest(&agent), second);
        assert!(agent.infer(name).is_ok());
        write(place, &weights);
        agent.eventually("the first weights again", |agent| digest(agent) == first);
        assert!(agent.refused(name, 1).is_none());
    }
}

#[test]
fn a_model_that_is_written_over_again_and_again_in_place_harms_nobody() {
    let home = Home::new();
    home.configure("defaults: {ladder: {enabled: false}}");
    home.drop_model(&model("fixtures/mlp_gemm.onnx"), "mlp/1/model.onnx");
    let mut agent = home.start_ready();
    let files =
        ["digits_mobile.onnx", "digits_resnet.onnx"].map(|name| fs::read(model(name)).unwrap());
    let path = home.models().join("digits/1/model.onnx");
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    // Somewhere between the settle time and the end of a trial: hit while it is read, tried and loaded.
    for round in 0u64..24 {
        fs::write(&path, &files[usize::from(round % 2 == 0)]).unwrap();
        std::thread::sleep(Duration::from_millis(120 + 23 * (round % 12)));
        assert!(agent.infer("mlp").is_ok(), "{}", home.log());
    }
    fs::write(&path, &files[0]).unwrap();
    home.drop_model(&model("digits_mobile.onnx"), "same.onnx");
    agent.eventually("it has come to rest", |agent| {
        let digest = agent.model("same")["digest"].clone();
        digest.is_string() && agent.model("digits")["digest"] == digest
    });
    assert_eq!(agent.status()["quarantine"], json!([]), "{}", home.log());
}

#[test]
fn a_build_stands_still_while_a_model_is_near_its_budget_and_goes_on_after() {
    let home = Home::new();
    home.configure("defaults: {budget: {p99: 20us}}");
    home.drop_model(&model("digits_resnet.onnx"), "digits/1/model.onnx");
    let mut agent = home.start_ready();
    // One letter: T where the build is stopped.
    let state = |agent: &Agent<'_>| {
        let builder = running::children_of(agent.pid()).into_iter().find(|child| {
            fs::read_to_string(format!("/proc/{child}/cmdline"))
                .is_ok_and(|line| line.contains("prune"))
        })?;
        let stat = fs::read_to_string(format!("/proc/{builder}/stat")).ok()?;
        stat.rsplit(") ").next()?.chars().next()
    };
    agent.eventually("it builds", |agent| state(agent).is_some());
    let load = Load::start(home.http, "digits", agent.input("digits").unwrap());
    agent.eventually("the build stands still", |agent| state(agent) == Some('T'));
    let (answered, failed) = load.finish();
    assert!(answered > 0 && failed.is_empty(), "{failed:?}");
    agent.eventually("it goes on", |agent| state(agent).is_some_and(|state| state != 'T'));
    // An agent that ends takes a build with it, whatever its state.
    agent.signal(Signal::SIGTERM);
    assert_eq!(agent.wait().code(), Some(0));
}
