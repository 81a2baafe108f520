//! Rungs that are compared with dense on live requests: `blochd run` in a process of its own, real files, real
//! ONNX Runtime, real HTTP.

mod running;

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use blochd::onnx::Tensor;
use blochd::shell::npz;
use nix::sys::signal::Signal;
use running::{Agent, Home, model};
use serde_json::{Value, json};

const PIXELS: usize = 28 * 28;

/// Images of digits, one after another.
fn digits(count: usize) -> Vec<f32> {
    let arrays = npz::read(&model("digits_test.npz")).unwrap();
    let images = arrays.values().find(|array| array.shape.len() == 4).unwrap();
    images.to_f32().unwrap()[..count * PIXELS].to_vec()
}

/// Samples that say little of what will be asked: one image with a little noise.
fn narrow_calibration(count: usize) -> Vec<u8> {
    let one = digits(1);
    let mut state = 1u64;
    let mut noise = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 40) as f32 / (1 << 23) as f32 - 1.0) * 0.02
    };
    let values: Vec<f32> = (0..count).flat_map(|_| one.clone()).map(|v| v + noise()).collect();
    let array = Tensor::from_f32(&[count, 1, 28, 28], &values);
    npz::encode(&BTreeMap::from([("input".to_owned(), array)])).unwrap()
}

fn request(values: &[f32]) -> Value {
    let shape = [values.len() / PIXELS, 1, 28, 28];
    json!({"inputs": [{"name": "input", "datatype": "FP32", "shape": shape, "data": values}]})
}

/// Asks with short pauses until it is stopped; the words of what failed.
struct Client {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<Vec<String>>,
}

impl Client {
    fn start(http: u16, request: Value) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut failed = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                failed.extend(running::infer(http, "digits", &request).err());
                std::thread::sleep(Duration::from_millis(10));
            }
            failed
        });
        Self { stop, thread }
    }

    fn finish(self) -> Vec<String> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

fn rung_serves(agent: &Agent<'_>) -> bool {
    agent.model("digits")["variant"].as_str().is_some_and(|name| name != "dense")
}

/// The ladder's entry of a variant.
fn entry(agent: &Agent<'_>, variant: &str) -> Value {
    let model = agent.model("digits");
    let ladder = model["ladder"].as_array().cloned().unwrap_or_default();
    ladder.into_iter().find(|one| one["name"] == variant).unwrap_or_default()
}

fn configure(home: &Home, budget: &str, shadow: &str) {
    home.configure(&format!(
        "defaults:\n  budget: {budget}\n  quality_floor: 0.8\n  \
         quality: {{shadow: {shadow}}}\n  governor: {{dwell: 100ms, sustain: 1h}}\n  \
         ladder: {{ratios: [0.7]}}\n  calibration: {{samples: 40}}\n"
    ));
}

fn until_built(agent: &mut Agent<'_>) {
    agent.once_built("a rung is ready", |agent| {
        let ladder = agent.model("digits")["ladder"].as_array().cloned().unwrap_or_default();
        ladder.len() > 1 && ladder[1]["state"] == "ready"
    });
}

/// No variant holds this budget: the rung serves.
const BROKEN: &str = "{p99: 20us}";
/// Every variant holds this one, and the rung stays: the way up takes an hour.
const HELD: &str = "{p99: 5s}";

#[test]
fn a_rung_that_is_wrong_on_live_requests_is_withdrawn_for_good_and_no_request_fails() {
    let home = Home::new();
    configure(&home, "none", "none");
    home.drop_model(&model("digits_mobile.onnx"), "digits/1/model.onnx");
    fs::write(home.models().join("digits/calibration.npz"), narrow_calibration(64)).unwrap();
    let mut agent = home.start_ready();
    until_built(&mut agent);
    configure(&home, BROKEN, "none");
    let client = Client::start(home.http, request(&digits(32)));
    agent.eventually("a rung serves", rung_serves);
    let rung = agent.model("digits")["variant"].as_str().unwrap().to_owned();
    assert!(entry(&agent, &rung)["quality"].as_f64().unwrap() >= 0.8);
    assert!(agent.model("digits")["shadow"].is_null(), "nobody asked for comparisons");
    configure(&home, HELD, "1");
    agent.eventually("it is withdrawn", |agent| entry(agent, &rung)["state"] == "withdrawn");
    assert_eq!(agent.model("digits")["variant"], "dense");
    assert_eq!(agent.model("digits")["last_swap_because"], "quality");
    let why = entry(&agent, &rung)["why"].as_str().unwrap().to_owned();
    assert!(why.contains("on live requests") && why.contains("below the floor of 0.8"), "{why}");
    let live = entry(&agent, &rung)["live"].clone();
    assert!(live["agreement"].as_f64().unwrap() < 0.8 && live["requests"].as_u64() >= Some(16));
    assert_eq!(client.finish(), Vec::<String>::new());
    let page = ureq::get(format!("http://127.0.0.1:{}/metrics", home.metrics)).call().unwrap();
    let page = page.into_body().read_to_string().unwrap();
    for line in [
        "blochd_withdrawals_total{model=\"digits\",version=\"1\"} 1\n",
        "blochd_shadow_requests_total{model=\"digits\",version=\"1\",outcome=\"compared\"}",
        "blochd_swaps_total{model=\"digits\",version=\"1\",reason=\"quality\"} 1\n",
    ] {
        assert!(page.contains(line), "{line}:\n{page}");
    }
    let mut shown = Command::new(env!("CARGO_BIN_EXE_blochd"));
    running::without_settings(&mut shown);
    let shown = shown.args(["status", "--url", &home.url("")]).output().unwrap();
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(shown.contains(&format!("  {rung} on live requests: ")), "{shown}");
    // It is remembered, whatever the agent dies of.
    agent.signal(Signal::SIGKILL);
    agent.wait();
    configure(&home, BROKEN, "none");
    let mut agent = home.start_ready();
    let client = Client::start(home.http, request(&digits(1)));
    agent.eventually("it is withdrawn still", |agent| entry(agent, &rung)["why"] == why);
    assert_eq!(client.finish(), Vec::<String>::new());
    assert!(!rung_serves(&agent));
    // A lower floor is another matter: it may be good enough for that.
    let text = fs::read_to_string(home.dir.path().join("agent.yaml")).unwrap();
    home.write_config(&text.replace("quality_floor: 0.8", "quality_floor: 0.1"));
    until_built(&mut agent);
    // What is compared holds nobody up who ends the agent.
    agent.signal(Signal::SIGTERM);
    assert_eq!(agent.wait().code(), Some(0), "{}", home.log());
}

#[test]
fn a_rung_that_is_right_on_live_requests_is_compared_and_goes_on() {
    let home = Home::new();
    configure(&home, "none", "none");
    home.drop_model(&model("digits_mobile.onnx"), "digits/1/model.onnx");
    fs::copy(model("digits_calibration.npz"), home.models().join("digits/calibration.npz"))
        .unwrap();
    let mut agent = home.start_ready();
    until_built(&mut agent);
    configure(&home, BROKEN, "1");
    let client = Client::start(home.http, request(&digits(32)));
    agent.eventually("a rung serves", rung_serves);
    let rung = agent.model("digits")["variant"].as_str().unwrap().to_owned();
    // While its budget is broken, nothing is compared.
    agent.eventually("dense is loaded for it", |agent| {
        agent.model("digits")["shadow"]["state"] == "running"
    });
    agent.eventually("there is no time", |a| {
        a.model("digits")["shadow"]["busy"].as_u64() >= Some(3)
    });
    assert_eq!(agent.model("digits")["shadow"]["compared"], 0);
    configure(&home, HELD, "1");
    agent.eventually("so many are compared", |agent| {
        entry(agent, &rung)["live"]["requests"].as_u64() >= Some(40)
    });
    let live = entry(&agent, &rung)["live"].clone();
    assert!(live["agreement"].as_f64().unwrap() >= 0.8, "{live}");
    assert_eq!(agent.model("digits")["variant"], rung.as_str());
    // Who does not want it any more has dense's memory back.
    configure(&home, HELD, "none");
    agent.eventually("it is over", |agent| agent.model("digits")["shadow"].is_null());
    assert_eq!(client.finish(), Vec::<String>::new());
    agent.signal(Signal::SIGTERM);
    assert_eq!(agent.wait().code(), Some(0), "{}", home.log());
}
