//! An accelerator that is served in named shapes, hangs in the midst of a run, and vanishes without a request
//! noticing: a real agent on the simulated NPU, whose log tells what it compiled and when.

mod running;
mod standins;

use std::fs;
use std::time::{Duration, Instant};

use running::{Agent, Home, Load, model};
use serde_json::{Value, json};
use standins::{Bench, npu};

const WELL: &str = "npu.time = 0\n";

/// A bench with the NPU and its telemetry; the plugin notes what it does.
fn bench() -> Bench {
    let bench = Bench::with(&[("dcmi", ""), ("npu", "")]);
    play(&bench, "");
    bench
}

fn play(bench: &Bench, more: &str) {
    let log = bench.path().join("npu.log");
    bench.play(&format!("{WELL}npu.log = {}\n{more}", log.display()));
}

/// `model` are settings of all models.
fn configure(home: &Home, bench: &Bench, model: &str) {
    let plugin = npu::plugin(bench);
    // Confined, its children could not write the plugin's log.
    home.configure(&format!(
        "plugins:\n  npu: {{library: {}, sha256: {}}}\nsandbox: off\n\
         devices: {{interval: 100ms, timeout: 2s, ascend: {}, cambricon: none, kunlunxin: none}}\n\
         defaults:\n  execution_providers: [npu, cpu]\n  ladder: {{enabled: false}}\n{model}",
        plugin.library.display(),
        plugin.sha256,
        bench.path().display(),
    ));
}

fn start<'a>(home: &'a Home, bench: &Bench) -> Agent<'a> {
    home.start_with(&[(standins::SCENARIO, bench.scenario().to_str().unwrap())])
}

fn drop_digits(home: &Home) {
    home.drop_model(&model("digits_resnet.onnx"), "digits/1/model.onnx");
}

fn provider(agent: &Agent<'_>) -> Value {
    agent.model("digits")["provider"]["name"].clone()
}

/// Shapes that the agent's own process, not its children, has had compiled, in order.
fn built(agent: &Agent<'_>, bench: &Bench) -> Vec<String> {
    let text = fs::read_to_string(bench.path().join("npu.log")).unwrap_or_default();
    let own = format!("{} build ", agent.pid());
    text.lines().filter_map(|line| line.strip_prefix(&own)).map(str::to_owned).collect()
}

fn images(rows: usize) -> Value {
    let data = vec![0.5; rows * 28 * 28];
    json!({"inputs": [{
        "name": "input", "datatype": "FP32", "shape": [rows, 1, 28, 28], "data": data,
    }]})
}

fn ask(home: &Home, rows: usize) -> Result<Value, String> {
    running::infer(home.http, "digits", &images(rows))
}

#[test]
fn all_named_shapes_are_compiled_before_a_model_serves_and_none_while_it_does() {
    let (bench, home) = (bench(), Home::new());
    configure(&home, &bench, "  shapes: [{N: 1}, {N: 4}, {N: 2}]");
    drop_digits(&home);
    let mut agent = start(&home, &bench);
    agent.eventually("it serves", |agent| agent.serves("digits", 1));
    assert_eq!(provider(&agent), "npu", "{}", home.log());
    let expected = ["[1, 1, 28, 28]", "[4, 1, 28, 28]", "[2, 1, 28, 28]"];
    assert_eq!(built(&agent, &bench), expected);
    let trial = agent.model("digits")["provider"]["trial"].clone();
    let compiled = trial["compiled"].as_array().unwrap();
    assert_eq!(compiled.len(), 3, "{trial}");
    assert!(compiled[1]["p50_us"].as_f64().is_some_and(|us| us > 0.0), "{trial}");
    for rows in [4, 1, 2, 1, 4] {
        let answer = ask(&home, rows).unwrap();
        assert_eq!(answer["outputs"][0]["shape"], json!([rows, 10]));
    }
    let refused = ask(&home, 3).unwrap_err();
    assert!(refused.contains("of other shapes than npu serves"), "{refused}");
    assert_eq!(built(&agent, &bench).len(), 3, "something was compiled while it served");
    // One shape alone is fixed: the model itself says so.
    configure(&home, &bench, "  shapes: [{N: 2}]");
    agent.eventually("its shape is fixed", |agent| {
        agent.get("/v2/models/digits").unwrap()["inputs"][0]["shape"] == json!([2, 1, 28, 28])
    });
    assert!(ask(&home, 2).is_ok() && ask(&home, 1).is_err());
    // What the model does not have is told, and what serves goes on serving.
    configure(&home, &bench, "  shapes: [{batch: 2}]");
    agent.eventually("it is refused", |agent| agent.refused("digits", 1).is_some());
    let why = agent.refused("digits", 1).unwrap();
    assert!(why.contains("the axis `batch`") && why.contains("inputs are N"), "{why}");
    assert!(ask(&home, 2).is_ok());
    assert!(agent.status()["quarantine"].as_array().unwrap().is_empty(), "it is no fault of it");
    configure(&home, &bench, "  shapes: [{N: 2}]");
    agent.eventually("all is well", |agent| agent.refused("digits", 1).is_none());
}

/// Requests that have been answered, and runs that it took.
fn counted(agent: &Agent<'_>) -> (u64, u64) {
    let stats = agent.get("/v2/models/digits/stats").unwrap();
    let one = &stats["model_stats"][0];
    let number = |name: &str| one[name].as_u64().unwrap_or_else(|| panic!("{name}: {stats}"));
    (number("inference_count"), number("execution_count"))
}

#[test]
fn requests_run_as_one_in_the_numbers_of_rows_that_are_compiled() {
    let (bench, home) = (bench(), Home::new());
    let batching = "  max_batch: 16\n  max_queue_delay: 500ms\n  shapes: [{N: 1}, {N: 4}]";
    configure(&home, &bench, batching);
    drop_digits(&home);
    let mut agent = start(&home, &bench);
    agent.eventually("it serves", |agent| agent.serves("digits", 1));
    assert_eq!(provider(&agent), "npu", "{}", home.log());
    let alone = ask(&home, 1).unwrap()["outputs"][0]["data"].clone();
    agent.eventually("three are run as one", |agent| {
        let before = counted(agent);
        let answers: Vec<Value> = std::thread::scope(|scope| {
            let asked: Vec<_> = (0..3).map(|_| scope.spawn(|| ask(&home, 1).unwrap())).collect();
            asked.into_iter().map(|one| one.join().unwrap()).collect()
        });
        for answer in answers {
            let found = answer["outputs"][0]["data"].as_array().unwrap().clone();
            assert_eq!(found.len(), 10);
            for (one, other) in found.iter().zip(alone.as_array().unwrap()) {
                assert!((one.as_f64().unwrap() - other.as_f64().unwrap()).abs() < 1e-3);
            }
        }
        let after = counted(agent);
        (after.0 - before.0, after.1 - before.1) == (3, 1)
    });
    assert_eq!(built(&agent, &bench), ["[1, 1, 28, 28]", "[4, 1, 28, 28]"]);
}

#[test]
fn a_policy_that_names_no_axis_of_the_model_keeps_it_from_service_until_it_is_corrected() {
    let (bench, home) = (bench(), Home::new());
    configure(&home, &bench, "");
    let policy = |text: &str| {
        fs::create_dir_all(home.models().join("digits")).unwrap();
        let beside = home.models().join("digits/policy.part");
        fs::write(&beside, text).unwrap();
        fs::rename(beside, home.models().join("digits/policy.yaml")).unwrap();
    };
    policy("shapes: [{rows: 2}]\n");
    drop_digits(&home);
    let mut agent = start(&home, &bench);
    agent.eventually("it is refused", |agent| agent.refused("digits", 1).is_some());
    assert!(agent.refused("digits", 1).unwrap().contains("`rows`"));
    policy("execution_providers: [cpu]\nshapes: [{N: 2}]\n");
    agent.eventually("it serves", |agent| agent.serves("digits", 1));
    // The processor takes any shape, named or not.
    assert_eq!(provider(&agent), "cpu");
    for rows in [1, 2, 3] {
        ask(&home, rows).unwrap();
    }
}

#[test]
fn a_card_that_hangs_is_left_its_clients_are_answered_and_it_is_taken_again_when_it_is_well() {
    let (bench, home) = (bench(), Home::new());
    configure(&home, &bench, "  request_timeout: 120s");
    drop_digits(&home);
    let mut agent = start(&home, &bench);
    agent.eventually("it serves", |agent| agent.serves("digits", 1));
    assert_eq!(provider(&agent), "npu", "{}", home.log());
    let load = Load::start(home.http, "digits", images(1));
    play(&bench, "npu.hang = Compute\n");
    agent.eventually("the processor serves", |agent| provider(agent) == "cpu");
    let passed = agent.model("digits")["provider"]["passed"][0].clone();
    assert_eq!((&passed["provider"], &passed["kind"]), (&json!("npu"), &json!("left_service")));
    let why = passed["why"].as_str().unwrap();
    assert!(why.contains("did not return within 10s") && why.contains("left behind"), "{why}");
    assert!(agent.infer("digits").is_ok());
    assert_eq!(agent.status()["abandoned_sessions"], 1);
    let url = format!("http://127.0.0.1:{}/metrics", home.metrics);
    let page = ureq::get(url).call().unwrap().body_mut().read_to_string().unwrap();
    assert!(page.contains("blochd_abandoned_sessions 1"), "{page}");
    let (answered, failed) = load.finish();
    assert!(answered > 0 && failed.is_empty(), "{} failed: {:?}", failed.len(), failed.first());
    // It gets well: who asks for the model has it tried again, and what hung is freed.
    play(&bench, "");
    assert_eq!(agent.command("digits", "load").0, 200);
    agent.eventually("the card serves again", |agent| provider(agent) == "npu");
    agent.eventually("what hung is freed", |agent| agent.status()["abandoned_sessions"] == 0);
    assert!(agent.infer("digits").is_ok());
}

#[test]
fn an_agent_with_too_many_sessions_that_hang_ends_to_be_started_anew() {
    let (bench, home) = (bench(), Home::new());
    let most = blochd::limits::ABANDONED_SESSIONS;
    let settings = format!("  instances: {most}\n  intra_op_threads: 1\n  request_timeout: 120s");
    configure(&home, &bench, &settings);
    drop_digits(&home);
    let mut agent = start(&home, &bench);
    agent.eventually("it serves", |agent| agent.serves("digits", 1));
    assert_eq!(provider(&agent), "npu", "{}", home.log());
    let load: Vec<Load> = (0..most).map(|_| Load::start(home.http, "digits", images(1))).collect();
    play(&bench, "npu.hang = Compute\n");
    let ended = agent.wait();
    assert!(!ended.success() && ended.code().is_some(), "{ended}");
    let words = format!("{most} sessions hang in runs on accelerators that do not return");
    assert!(home.log().contains(&words), "{}", home.log());
    load.into_iter().for_each(|one| drop(one.finish()));
}

#[test]
fn a_model_leaves_a_card_of_which_the_telemetry_says_that_it_has_vanished() {
    let (bench, home) = (bench(), Home::new());
    configure(&home, &bench, "");
    // The plugin tells where its device is: the second of two cards.
    let two = "cards = 2\nnpu.pci = 0000:3c:00.0\n";
    play(&bench, two);
    drop_digits(&home);
    let mut agent = start(&home, &bench);
    agent.eventually("it serves", |agent| agent.serves("digits", 1));
    agent.eventually("the telemetry knows both", |agent| {
        agent.status()["hardware"]["devices"].as_array().is_some_and(|all| all.len() == 2)
    });
    assert_eq!(provider(&agent), "npu", "{}", home.log());
    assert_eq!(agent.model("digits")["provider"]["trial"]["device"]["pci"], "0000:3c:00.0");
    let presence = |agent: &Agent<'_>, at: usize| {
        agent.status()["hardware"]["devices"][at]["presence"].clone()
    };
    // The other one goes: that is nothing to it. Only the telemetry plays this part.
    play(&bench, &format!("{two}dcmi.gone = 0\n"));
    agent.eventually("the other is lost", |agent| presence(agent, 0) == "lost");
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(1) {
        assert_eq!(provider(&agent), "npu");
        std::thread::sleep(Duration::from_millis(50));
    }
    // Its own goes, and no request has to fail for that.
    play(&bench, &format!("{two}dcmi.gone = 1\n"));
    agent.eventually("the processor serves", |agent| provider(agent) == "cpu");
    let passed = agent.model("digits")["provider"]["passed"][0].clone();
    assert_eq!((&passed["provider"], &passed["kind"]), (&json!("npu"), &json!("device_lost")));
    assert_eq!(agent.model("digits")["failed"], 0);
    play(&bench, two);
    agent.eventually("the card serves again", |agent| provider(agent) == "npu");
}
