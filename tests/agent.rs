//! The agent as its users see it: `blochd run` in a process of its own, real files, signals and HTTP,
//! real ONNX Runtime, a client in this process.

mod running;

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use nix::sys::signal::Signal;
use running::{Home, Load, children_of, model};
use serde_json::json;

const NO_LADDER: &str = "defaults: {ladder: {enabled: false}}";

fn home() -> Home {
    let home = Home::new();
    home.configure(NO_LADDER);
    home
}

#[test]
fn a_model_that_is_dropped_is_served_and_one_that_is_removed_is_not() {
    let home = home();
    let mut agent = home.start_ready();
    assert_eq!(agent.status()["models"], json!([]));
    home.drop_model(&model("fixtures/mlp_gemm.onnx"), "mlp/1/model.onnx");
    home.drop_model(&model("fixtures/vgg_chain.onnx"), "bare.onnx");
    agent.eventually("both are served", |a| a.serves("mlp", 1) && a.serves("bare", 1));
    for name in ["mlp", "bare"] {
        let answer = agent.infer(name).unwrap();
        assert_eq!(answer["model_version"], "1");
        assert!(!answer["outputs"][0]["data"].as_array().unwrap().is_empty());
    }
    fs::remove_file(home.models().join("bare.onnx")).unwrap();
    agent.eventually("it is gone", |a| a.model("bare").is_null());
    assert!(running::infer(home.http, "bare", &json!({"inputs": []})).unwrap_err().contains("404"));
    assert!(agent.infer("mlp").is_ok(), "the other one stays");
}

#[test]
fn does_not_load_a_half_written_file() {
    let home = home();
    let mut agent = home.start_ready();
    let bytes = fs::read(model("digits_mobile.onnx")).unwrap();
    let path = home.models().join("digits/1/model.onnx");
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let mut file = fs::File::create(&path).unwrap();
    // A writer that does not rename, and is slow: each piece well within the settle time.
    let pieces: Vec<&[u8]> = bytes.chunks(bytes.len() / 12 + 1).collect();
    for (at, piece) in pieces.iter().enumerate() {
        file.write_all(piece).unwrap();
        file.flush().unwrap();
        std::thread::sleep(Duration::from_millis(40));
        if at + 1 < pieces.len() {
            assert!(!agent.serves("digits", 1), "piece {at}");
        }
    }
    drop(file);
    agent.eventually("it is served", |agent| agent.serves("digits", 1));
    let log = home.log();
    assert!(!log.contains("ERROR"), "it was never tried before it was whole:\n{log}");
}

#[test]
fn a_bad_file_is_refused_with_its_reason_and_the_version_in_service_stays() {
    let home = home();
    home.drop_model(&model("fixtures/mlp_gemm.onnx"), "mlp/1/model.onnx");
    let mut agent = home.start_ready();
    assert!(agent.serves("mlp", 1));
    let bad = ["not_onnx", "truncated", "external_traversal", "external_missing", "cycle"];
    for (version, name) in (2u64..).zip(bad) {
        let file = model(&format!("fixtures/bad/{name}.onnx"));
        home.drop_model(&file, &format!("mlp/{version}/model.onnx"));
        agent.eventually(name, |agent| agent.refused("mlp", version).is_some());
        let reason = agent.refused("mlp", version).unwrap();
        assert!(reason.contains(&format!("mlp/{version}/model.onnx")), "{name}: {reason}");
        assert_eq!(agent.infer("mlp").unwrap()["model_version"], "1", "{name}");
    }
    // The version in service itself is overwritten by garbage.
    home.drop_model(&model("fixtures/bad/not_onnx.onnx"), "mlp/1/model.onnx");
    agent.eventually("it is refused", |agent| agent.refused("mlp", 1).is_some());
    assert_eq!(agent.infer("mlp").unwrap()["model_version"], "1");
    // And repaired.
    home.drop_model(&model("fixtures/mlp_matmul.onnx"), "mlp/9/model.onnx");
    agent.eventually("the good one is served", |agent| agent.serves("mlp", 9));
}

#[test]
fn a_version_is_replaced_under_load_without_a_failed_request() {
    let home = home();
    home.drop_model(&model("digits_mobile.onnx"), "digits/1/model.onnx");
    let mut agent = home.start_ready();
    let request = agent.input("digits").unwrap();
    let clients: Vec<Load> =
        (0..3).map(|_| Load::start(home.http, "digits", request.clone())).collect();
    // New versions, and another file in the place of the newest.
    home.drop_model(&model("digits_mobile_bn.onnx"), "digits/2/model.onnx");
    agent.eventually("version 2", |agent| agent.serves("digits", 2));
    home.drop_model(&model("digits_mobile.onnx"), "digits/3/model.onnx");
    agent.eventually("version 3", |agent| agent.serves("digits", 3));
    let before = agent.model("digits")["digest"].clone();
    home.drop_model(&model("digits_mobile_bn.onnx"), "digits/3/model.onnx");
    agent.eventually("its new file", |agent| {
        agent.serves("digits", 3) && agent.model("digits")["digest"] != before
    });
    for client in clients {
        let (answered, failed) = client.finish();
        assert!(answered > 10, "{answered}");
        assert_eq!(failed, Vec::<String>::new());
    }
}

#[test]
fn sigterm_answers_what_is_in_flight_and_ends_well() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let home = home();
        home.drop_model(&model("digits_resnet.onnx"), "digits/1/model.onnx");
        let mut agent = home.start_ready();
        // Enough images to keep the session busy for a while.
        let images = 128;
        let data = vec![0.5; images * 28 * 28];
        let input = json!({
            "name": "input", "datatype": "FP32", "shape": [images, 1, 28, 28], "data": data,
        });
        let request = json!({ "inputs": [input] });
        let http = home.http;
        let waiting: Vec<_> = (0..3)
            .map(|_| {
                let request = request.clone();
                std::thread::spawn(move || running::infer(http, "digits", &request))
            })
            .collect();
        agent.eventually("they are in flight", |a| {
            a.get("/v2/models/digits/stats")
                .is_some_and(|stats| stats["model_stats"][0]["inference_count"].as_u64() >= Some(1))
        });
        agent.signal(signal);
        let status = agent.wait();
        for request in waiting {
            let answer = request.join().unwrap();
            assert!(answer.is_ok(), "{answer:?}\n{}", home.log());
        }
        assert_eq!(status.code(), Some(0), "{signal}\n{}", home.log());
    }
}

#[test]
fn a_bad_configuration_is_refused_whole_and_the_last_good_one_holds() {
    let home = home();
    home.drop_model(&model("fixtures/mlp_gemm.onnx"), "mlp/1/model.onnx");
    let mut agent = home.start_ready();
    let revision = agent.status()["config"]["revision"].as_u64().unwrap();
    let good = "defaults: {ladder: {enabled: false}, budget: {p99: 40ms}}";
    home.configure(good);
    agent.eventually("its change is seen", |a| a.model("mlp")["budget"]["limit_ms"] == json!(40.0));
    assert_eq!(agent.status()["config"]["revision"], revision + 1);
    for bad in [
        "defaults: {budget: {p99: -4ms}}",
        "defaults: {budgte: {p99: 4ms}}",
        "defaults: {budget: {p99: 4 parsecs}}",
        "defaults: [",
    ] {
        home.configure(bad);
        agent.signal(Signal::SIGHUP);
        agent.eventually(bad, |a| {
            a.status()["config"]["error"].as_str().is_some_and(|e| e.contains("agent.yaml:8"))
        });
        let status = agent.status();
        assert_eq!(status["config"]["revision"], revision + 1, "{bad}");
        assert_eq!(status["models"][0]["budget"]["limit_ms"], 40.0, "{bad}");
        assert!(agent.infer("mlp").is_ok(), "{bad}");
        home.configure(good);
        agent.signal(Signal::SIGHUP);
        agent.eventually("it is good again", |a| a.status()["config"]["error"].is_null());
    }
    assert_eq!(agent.model("mlp")["swaps"], 0, "nothing was loaded again");
}

#[test]
fn a_policy_beside_the_model_is_followed_and_a_bad_one_leaves_the_last_good_one() {
    let home = home();
    home.drop_model(&model("fixtures/mlp_gemm.onnx"), "mlp/1/model.onnx");
    let policy = |text: &str| {
        let path = home.models().join("mlp/policy.yaml");
        fs::write(path.with_extension("part"), text).unwrap();
        fs::rename(path.with_extension("part"), &path).unwrap();
    };
    policy("budget: {p95: 7ms}");
    let mut agent = home.start_ready();
    let budget = |ms: f64| json!({"percentile": "p95", "limit_ms": ms});
    agent.eventually("its policy holds", |a| a.model("mlp")["budget"] == budget(7.0));
    policy("budget: {p95: never}");
    agent.eventually("it is told", |_| home.log().contains("policy.yaml:1"));
    assert_eq!(agent.model("mlp")["budget"], budget(7.0));
    policy("budget: {p95: 8ms}");
    agent.eventually("the new one holds", |a| a.model("mlp")["budget"] == budget(8.0));
    assert!(agent.infer("mlp").is_ok());
}

#[test]
fn clients_unload_and_load_models() {
    let home = home();
    home.drop_model(&model("fixtures/mlp_gemm.onnx"), "mlp/1/model.onnx");
    let mut agent = home.start_ready();
    assert_eq!(agent.command("mlp", "unload").0, 200);
    assert!(agent.infer("mlp").is_err());
    // Nothing loads it but the word.
    std::thread::sleep(Duration::from_millis(2500));
    assert!(agent.model("mlp").is_null());
    let (code, body) = agent.command("mlp", "load");
    assert_eq!(code, 200, "{body}\n{}", home.log());
    assert!(agent.infer("mlp").is_ok());
    assert_eq!(agent.command("nobody", "load").0, 404);
    // A load that fails says why; so does one after the file was repaired.
    home.drop_model(&model("fixtures/bad/truncated.onnx"), "other/1/model.onnx");
    agent.eventually("it is refused", |a| a.refused("other", 1).is_some());
    let (code, body) = agent.command("other", "load");
    assert_ne!(code, 200);
    assert!(body["error"].as_str().unwrap().contains("other/1/model.onnx"), "{body}");
    home.drop_model(&model("fixtures/mlp_matmul.onnx"), "other/1/model.onnx");
    let (code, body) = agent.command("other", "load");
    assert_eq!(code, 200, "{body}\n{}", home.log());
}

#[test]
fn a_trial_that_crashes_hangs_or_eats_the_memory_costs_the_version_and_nothing_else() {
    let home = home();
    home.configure(&format!("{NO_LADDER}\ntrial: {{timeout: 3s, memory: 1GiB}}"));
    home.drop_model(&model("fixtures/mlp_gemm.onnx"), "mlp/1/model.onnx");
    let mut agent = home.start_ready();
    assert!(agent.serves("mlp", 1));
    let stays = |agent: &running::Agent<'_>| agent.infer("mlp").unwrap()["model_version"] == "1";
    home.drop_model(&model("fixtures/runaway/eats_memory.onnx"), "mlp/2/model.onnx");
    agent.eventually("it is refused", |agent| agent.refused("mlp", 2).is_some());
    let reason = agent.refused("mlp", 2).unwrap();
    assert!(reason.contains("ran out of the 1GiB of memory"), "{reason}");
    assert!(stays(&agent));
    // ONNX Runtime is not known to crash on any file of ours: a trial that works is struck.
    home.drop_model(&model("fixtures/runaway/hangs.onnx"), "mlp/3/model.onnx");
    agent.eventually("its trial is struck", |agent| {
        let at_work = |child: &i32| {
            fs::read_to_string(format!("/proc/{child}/cmdline"))
                .is_ok_and(|line| line.contains("trial"))
        };
        let child = children_of(agent.pid()).into_iter().find(at_work);
        child.is_some_and(|child| {
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(child), Signal::SIGABRT).is_ok()
        })
    });
    agent.eventually("it is refused", |agent| agent.refused("mlp", 3).is_some());
    let reason = agent.refused("mlp", 3).unwrap();
    assert!(reason.contains("it crashed (SIGABRT)"), "{reason}");
    assert!(stays(&agent));
    // It is remembered by its contents: the same file is not tried again under another name. Another
    // one that hangs is.
    home.drop_model(&model("fixtures/runaway/hangs.onnx"), "mlp/4/model.onnx");
    agent.eventually("it is refused", |agent| agent.refused("mlp", 4).is_some());
    let reason = agent.refused("mlp", 4).unwrap();
    assert!(reason.contains("quarantined"), "{reason}");
    // Whoever asks for it wants it tried again, and is told of the newest version.
    let (code, body) = agent.command("mlp", "load");
    assert_eq!(code, 400, "{body}\n{}", home.log());
    assert!(body["error"].as_str().unwrap().contains("it hung"), "{body}");
    assert!(agent.refused("mlp", 4).unwrap().contains("it hung"));
    assert!(stays(&agent));
    agent.eventually("no child is left", |agent| children_of(agent.pid()).is_empty());
}

#[test]
fn what_could_not_be_loaded_for_a_passing_reason_is_tried_again() {
    let home = home();
    // A library that is not there for a while, as on a mount that comes late: trials cannot load it.
    let library = home.dir.path().join("libonnxruntime.so");
    let away = home.dir.path().join("away");
    fs::copy(running::onnx_runtime(), &library).unwrap();
    let mut agent = home.start_on(&library, &[]);
    agent.eventually("it is ready", |agent| agent.get("/v2/health/ready").is_some());
    fs::rename(&library, &away).unwrap();
    home.drop_model(&model("fixtures/mlp_gemm.onnx"), "mlp/1/model.onnx");
    agent.eventually("it is refused", |agent| agent.refused("mlp", 1).is_some());
    assert_eq!(agent.status()["quarantine"], json!([]), "it is not to blame");
    fs::rename(&away, &library).unwrap();
    agent.eventually("it is served", |agent| agent.serves("mlp", 1));
    assert!(agent.infer("mlp").is_ok());
    assert!(agent.refused("mlp", 1).is_none());
}

#[test]
fn a_file_that_never_comes_to_rest_holds_the_others_back_no_longer_than_its_patience() {
    let home = home();
    home.drop_model(&model("fixtures/mlp_gemm.onnx"), "mlp/1/model.onnx");
    let mut agent = home.start_ready();
    assert!(agent.serves("mlp", 1));
    // One that comes later and grows on does not take readiness back.
    let path = home.models().join("grows/1/model.onnx");
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let mut file = fs::File::create(&path).unwrap();
    for _ in 0..20 {
        file.write_all(&[0; 64]).unwrap();
        std::thread::sleep(Duration::from_millis(40));
        assert!(agent.get("/v2/health/ready").is_some());
    }
    agent.eventually("what is written so far is no model", |a| a.refused("grows", 1).is_some());
}

#[test]
fn what_is_passed_over_is_told_once_and_why() {
    let home = home();
    home.drop_model(&model("fixtures/mlp_gemm.onnx"), "my model.onnx");
    home.drop_model(&model("fixtures/mlp_gemm.onnx"), "mlp/model.onnx");
    home.drop_model(&model("fixtures/mlp_gemm.onnx"), "mlp/v1/model.onnx");
    let link = home.models().join("link.onnx");
    std::os::unix::fs::symlink(model("fixtures/mlp_gemm.onnx"), link).unwrap();
    let mut agent = home.start_ready();
    for words in ["my model.onnx", "<model>/<version>/model.onnx", "a number from 1", "link.onnx"] {
        agent.eventually(words, |_| home.log().contains(words));
    }
    // Some listings later.
    std::thread::sleep(Duration::from_millis(2500));
    let log = home.log();
    assert_eq!(log.matches("WARN").count(), 4, "{log}");
    assert!(!log.contains('\u{1b}'), "a file has no colours: {log}");
    assert_eq!(agent.status()["models"], json!([]));
}

#[test]
fn a_missing_runtime_is_one_message_that_says_what_to_do() {
    let home = home();
    let mut run = std::process::Command::new(env!("CARGO_BIN_EXE_blochd"));
    running::without_settings(&mut run);
    run.args(["run", "--runtime-library", "/no/such/libonnxruntime.so", "--config"]);
    let run = run.arg(home.dir.path().join("agent.yaml")).output().unwrap();
    assert_eq!(run.status.code(), Some(69));
    let words = String::from_utf8_lossy(&run.stderr);
    assert!(words.contains("/no/such/libonnxruntime.so"), "{words}");
    assert!(words.contains("blochd runtime fetch"), "{words}");
    assert!(!words.contains("panicked"), "{words}");
}

#[test]
fn a_wrong_configuration_at_the_start_ends_with_every_error_and_its_place() {
    let home = home();
    home.configure("defaults: {instances: 0, budgte: {p99: 4ms}}\nhttp: 8000");
    let mut run = std::process::Command::new(env!("CARGO_BIN_EXE_blochd"));
    running::without_settings(&mut run);
    run.args(["run", "--config"]).arg(home.dir.path().join("agent.yaml"));
    let run = run.output().unwrap();
    assert_eq!(run.status.code(), Some(78));
    let words = String::from_utf8_lossy(&run.stderr);
    for place in ["agent.yaml:8:23:", "agent.yaml:8:26:", "agent.yaml:9:1:", "budgte", "`http`"] {
        assert!(words.contains(place), "{place}: {words}");
    }
}

#[test]
fn a_state_directory_that_cannot_be_written_is_told() {
    let home = home();
    let file = home.dir.path().join("state");
    fs::write(&file, "in the way").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o444)).unwrap();
    let mut run = std::process::Command::new(env!("CARGO_BIN_EXE_blochd"));
    running::without_settings(&mut run);
    run.args(["run", "--config"]).arg(home.dir.path().join("agent.yaml"));
    let run = run.arg("--runtime-library").arg(running::onnx_runtime()).output().unwrap();
    let words = String::from_utf8_lossy(&run.stderr);
    assert_eq!(run.status.code(), Some(74), "{words}");
    assert!(words.contains(file.to_str().unwrap()), "{words}");
    assert!(words.contains("--state-dir") && !words.contains("panicked"), "{words}");
}

#[test]
fn after_kill_9_it_serves_again_without_building_its_ladder_anew() {
    let home = home();
    home.configure("defaults: {quality_floor: 0.2, ladder: {ratios: [0.73]}}");
    home.drop_model(&model("fixtures/vgg_chain.onnx"), "digits/1/model.onnx");
    let mut agent = home.start_ready();
    let built = |agent: &running::Agent<'_>| {
        let model = agent.model("digits");
        let built = model["build"] == "done";
        built.then(|| model["ladder"].clone())
    };
    agent.once_built("its ladder is built", |agent| built(agent).is_some());
    agent.signal(Signal::SIGKILL);
    agent.wait();
    let builds = |log: &str| log.matches("is being built").count();
    assert_eq!(builds(&home.log()), 1);
    let mut agent = home.start_ready();
    assert!(agent.infer("digits").is_ok());
    agent.once_built("its ladder is there", |agent| built(agent).is_some());
    assert_eq!(builds(&home.log()), 1, "{}", home.log());
    // A build that is cut short is done again.
    drop(agent);
    for ladder in fs::read_dir(home.state().join("ladders")).unwrap() {
        let path = ladder.unwrap().path();
        fs::write(path.join("manifest.json"), "{").unwrap();
    }
    let mut agent = home.start_ready();
    agent.eventually("the build begins", |_| builds(&home.log()) == 2);
    agent.signal(Signal::SIGKILL);
    agent.wait();
    let mut agent = home.start_ready();
    agent.once_built("it is built in the end", |agent| built(agent).is_some());
    assert_eq!(builds(&home.log()), 3);
}
