//! The agent beside accelerators that get hot, vanish, come back and hang: the status, the metrics, the log and the
//! recorded trace show it, and serving goes on. Real processes, and libraries with the vendors' own layouts.

mod running;
mod standins;

use std::fs;

use running::{Agent, Home, Load, model};
use serde_json::Value;
use standins::Bench;

fn devices(agent: &Agent<'_>) -> Vec<Value> {
    agent.status()["hardware"]["devices"].as_array().cloned().unwrap_or_default()
}

fn device(agent: &Agent<'_>, vendor: &str, index: u64) -> Value {
    let found = devices(agent)
        .into_iter()
        .find(|device| device["vendor"] == vendor && device["index"] == index);
    found.unwrap_or_default()
}

fn metrics(home: &Home) -> String {
    let url = format!("http://127.0.0.1:{}/metrics", home.metrics);
    ureq::get(url).call().unwrap().body_mut().read_to_string().unwrap()
}

/// The sample of a family with all of these labels.
fn sample(page: &str, family: &str, labels: &[&str]) -> Option<f64> {
    let line = page.lines().find(|line| {
        line.starts_with(&format!("{family}{{")) && labels.iter().all(|label| line.contains(label))
    })?;
    line.rsplit(' ').next()?.parse().ok()
}

fn configure(home: &Home, bench: &Bench, ascend: &str) {
    home.configure(&format!(
        "trace: trace\ndefaults: {{ladder: {{enabled: false}}}}\n\
         devices: {{interval: 100ms, timeout: 2s, ascend: {ascend}, cambricon: {}, \
         kunlunxin: none}}",
        bench.path().display()
    ));
}

#[test]
fn a_card_that_gets_hot_vanishes_and_returns_is_told_everywhere_and_serving_goes_on() {
    let bench = Bench::with(&[("dcmi", ""), ("acl", ""), ("cndev", "")]);
    bench.play("cards = 2\ndcmi.temperature = 40\ndcmi.temperature.step = 1\n");
    let home = Home::new();
    configure(&home, &bench, bench.path().to_str().unwrap());
    home.drop_model(&model("digits_resnet.onnx"), "digits/1/model.onnx");
    let scenario = bench.scenario();
    let mut agent = home.start_with(&[(standins::SCENARIO, scenario.to_str().unwrap())]);
    agent.eventually("it serves", |agent| agent.serves("digits", 1));
    let load = Load::start(home.http, "digits", agent.input("digits").unwrap());
    agent.eventually("all cards answer", |agent| devices(agent).len() == 4);
    // The runtime fills in what the driver does not tell.
    agent.eventually("the runtime was asked", |agent| {
        device(agent, "ascend", 1)["soc"] == "Ascend310P3"
    });
    // It gets hot: a step a sweep.
    let celsius = |agent: &Agent<'_>| device(agent, "ascend", 0)["celsius"].as_f64();
    agent.eventually("it gets hot", |agent| celsius(agent).is_some_and(|now| now >= 55.0));
    let page = metrics(&home);
    let ascend = ["vendor=\"ascend\"", "device=\"1\"", "pci=\"0000:3c:00.0\""];
    assert!(sample(&page, "blochd_device_temperature_celsius", &ascend).unwrap() >= 56.0, "{page}");
    assert_eq!(sample(&page, "blochd_device_up", &ascend), Some(1.0));
    assert_eq!(sample(&page, "blochd_device_healthy", &ascend), Some(1.0));
    assert_eq!(
        sample(&page, "blochd_device_memory_total_bytes", &ascend),
        Some(8.0 * 2f64.powi(30))
    );
    assert_eq!(sample(&page, "blochd_vendor_library_up", &["vendor=\"cambricon\""]), Some(1.0));
    // The trace that the governor can be run over again has seen the heat.
    let is_hot = |line: &str| {
        line.rsplit(',').next().and_then(|last| last.parse::<f64>().ok()).is_some_and(|t| t >= 55.0)
    };
    agent.eventually("it is recorded", |_| {
        let files = fs::read_dir(home.dir.path().join("trace")).into_iter().flatten().flatten();
        let texts = files.filter_map(|file| fs::read_to_string(file.path()).ok());
        texts.into_iter().any(|text| text.lines().any(is_hot))
    });
    // The first card of each vendor vanishes. Cambricon's second has its number now, and its own address.
    bench.play("cards = 2\ngone = 0\n");
    let lost = |agent: &Agent<'_>, vendor: &str| {
        let all = devices(agent);
        let mut lost = all.iter().filter(|device| device["presence"] == "lost");
        lost.any(|device| device["vendor"] == vendor && device.get("celsius").is_none())
    };
    agent.eventually("both are lost", |agent| lost(agent, "ascend") && lost(agent, "cambricon"));
    let page = metrics(&home);
    let gone = ["vendor=\"cambricon\"", "pci=\"0000:65:00.0\""];
    assert_eq!(sample(&page, "blochd_device_up", &gone), Some(0.0), "{page}");
    assert_eq!(sample(&page, "blochd_device_losses_total", &gone), Some(1.0));
    assert_eq!(sample(&page, "blochd_device_temperature_celsius", &gone), None);
    let stays = ["vendor=\"cambricon\"", "device=\"0\"", "pci=\"0000:66:00.0\""];
    assert_eq!(sample(&page, "blochd_device_up", &stays), Some(1.0));
    assert!(home.log().contains("is lost"), "{}", home.log());
    bench.play("cards = 2\n");
    agent.eventually("they are back", |agent| {
        let all = devices(agent);
        all.len() == 4 && all.iter().all(|device| device["presence"] == "answers")
    });
    assert_eq!(device(&agent, "cambricon", 0)["losses"], 1);
    assert!(home.log().contains("is there again"), "{}", home.log());
    // Who is looked after no longer leaves the status.
    configure(&home, &bench, "none");
    agent.eventually("one vendor is left", |agent| {
        agent.status()["accelerators"].get("ascend").is_none() && devices(agent).len() == 2
    });
    let (answered, failed) = load.finish();
    assert!(answered > 0 && failed.is_empty(), "{failed:?}");
}

#[test]
fn a_library_that_hangs_or_crashes_degrades_its_vendor_until_it_is_well_again() {
    let bench = Bench::with(&[("dcmi", ""), ("cndev", "")]);
    let home = Home::new();
    configure(&home, &bench, bench.path().to_str().unwrap());
    home.drop_model(&model("fixtures/mlp_gemm.onnx"), "mlp/1/model.onnx");
    let scenario = bench.scenario();
    let mut agent = home.start_with(&[(standins::SCENARIO, scenario.to_str().unwrap())]);
    agent.eventually("it serves", |agent| agent.serves("mlp", 1));
    let state = |agent: &Agent<'_>, vendor: &str| agent.status()["accelerators"][vendor].clone();
    let is = |agent: &Agent<'_>, vendor: &str, word: &str| state(agent, vendor)["state"] == word;
    agent.eventually("both answer", |agent| {
        is(agent, "ascend", "answers") && is(agent, "cambricon", "answers")
    });
    bench.play("hang = dcmi_get_device_temperature\n");
    agent.eventually("it hangs", |agent| is(agent, "ascend", "degraded"));
    assert_eq!(state(&agent, "ascend")["trouble"]["kind"], "hung");
    let silent = device(&agent, "ascend", 0);
    assert_eq!((&silent["presence"], silent.get("celsius")), (&"silent".into(), None));
    assert_eq!(silent["model"], "310P3");
    // The other vendor's library is in a process of its own.
    assert!(is(&agent, "cambricon", "answers"));
    assert_eq!(sample(&metrics(&home), "blochd_device_up", &["vendor=\"ascend\""]), Some(0.0));
    assert!(agent.infer("mlp").is_ok());
    bench.play("crash = cndevGetDeviceUtilizationInfo\n");
    agent.eventually("it crashes", |agent| is(agent, "cambricon", "degraded"));
    let why = state(&agent, "cambricon")["why"].as_str().unwrap().to_owned();
    assert!(why.contains("SIGABRT"), "{why}");
    bench.play("");
    agent.eventually("both are well again", |agent| {
        is(agent, "ascend", "answers") && is(agent, "cambricon", "answers")
    });
    assert_eq!(device(&agent, "ascend", 0)["losses"], 0);
    assert!(agent.infer("mlp").is_ok());
}
