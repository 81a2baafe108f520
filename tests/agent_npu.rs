//! The whole loop on an accelerator: an agent serves on the simulated NPU, finds its steps and prunes to them, holds
//! its budget while the chip throttles, goes back to dense when it has cooled, serves from the processor while
//! the card is lost, and from the card again once it has returned. Real processes, ONNX Runtime's real plugin
//! interface, and telemetry and compute out of one scenario.

mod nets;
mod running;
mod standins;

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use blochd::ladder::Manifest;
use blochd::onnx::Tensor;
use blochd::shell::npz;
use nets::{Chance, Net};
use running::{Agent, Home, Load};
use serde_json::Value;
use standins::{Bench, npu};

/// Slow enough that what else goes on in the box is little beside it.
const COOL: &str = "temperature = 60\nnpu.time = 13000\n";
/// More than twice as slow: dense breaks its budget, a rung of 0.6 keeps it.
const HOT: &str = "temperature = 95\nnpu.time = 13000\nnpu.hot = 85\nnpu.throttle = 220\n";
const LOST: &str = "temperature = 60\nnpu.time = 13000\ngone = 0\n";

/// A network whose ladder is made in seconds: convolutions of one place, of 64 and 96 channels in turn.
fn small_network() -> Vec<u8> {
    let mut net = Net::plain(11);
    let mut x = net.input(16, 8, 8);
    for width in [64, 96, 64, 96] {
        x = net.conv(&x, width, 1, 1, 1);
        x = net.unary("Relu", &x);
    }
    let pooled = net.node("GlobalAveragePool", &[&x.name], Vec::new());
    let flat = net.node("Flatten", &[&pooled], Vec::new());
    let end = net.gemm(&flat, 96, 10);
    net.output(&end);
    net.model().encode_inline().unwrap().to_vec()
}

fn samples() -> Vec<u8> {
    let mut chance = Chance(5);
    let shape = [40, 16, 8, 8];
    let values: Vec<f32> = (0..shape.iter().product()).map(|_| chance.real()).collect();
    let array = Tensor::from_f32(&shape, &values);
    npz::encode(&BTreeMap::from([("input".to_owned(), array)])).unwrap()
}

fn configure(home: &Home, bench: &Bench) {
    let plugin = npu::plugin(bench);
    home.configure(&format!(
        "plugins:\n  npu: {{library: {}, sha256: {}}}\n\
         devices: {{interval: 100ms, timeout: 2s, ascend: {}, cambricon: none, kunlunxin: none}}\n\
         defaults:\n  execution_providers: [npu, cpu]\n  budget: {{p99: 60ms}}\n  quality_floor: 0\n  \
         governor: {{window: 1s, dwell: 100ms, sustain: 500ms}}\n  \
         ladder: {{ratios: [0.6]}}\n  calibration: {{samples: 40}}\n",
        plugin.library.display(),
        plugin.sha256,
        bench.path().display(),
    ));
}

/// On what the model runs.
fn provider(agent: &Agent<'_>) -> Value {
    agent.model("network")["provider"]["name"].clone()
}

fn variant(agent: &Agent<'_>) -> Value {
    agent.model("network")["variant"].clone()
}

fn rung_is_ready(agent: &Agent<'_>) -> bool {
    let ladder = agent.model("network")["ladder"].as_array().cloned().unwrap_or_default();
    ladder.len() > 1 && ladder[1]["state"] == "ready"
}

fn celsius(agent: &Agent<'_>) -> Value {
    let devices = agent.status()["hardware"]["devices"].clone();
    devices[0]["celsius"].clone()
}

/// The ladders that are kept, by the engine that they hold for.
fn manifests(home: &Home) -> Vec<Manifest> {
    let folders = fs::read_dir(home.state().join("ladders")).into_iter().flatten().flatten();
    let files = folders.map(|folder| folder.path().join("manifest.json"));
    let read = |path: PathBuf| serde_json::from_slice(&fs::read(path).ok()?).ok();
    files.filter_map(read).collect()
}

#[test]
fn an_agent_holds_its_budget_on_an_accelerator_that_throttles_vanishes_and_returns() {
    let bench = Bench::with(&[("dcmi", ""), ("npu", "")]);
    bench.play(COOL);
    let home = Home::new();
    configure(&home, &bench);
    let file = home.dir.path().join("network");
    fs::write(&file, small_network()).unwrap();
    home.drop_model(&file, "network/1/model.onnx");
    fs::write(home.models().join("network/calibration.npz"), samples()).unwrap();
    let scenario = bench.scenario();
    let mut agent = home.start_with(&[(standins::SCENARIO, scenario.to_str().unwrap())]);
    agent.eventually("it serves", |agent| agent.serves("network", 1));
    assert_eq!(provider(&agent), "npu", "{}", home.log());
    agent.once_built("its ladder is ready", rung_is_ready);

    // The ladder and what was measured for it are the accelerator's, and follow its steps of 16 channels.
    let made = manifests(&home);
    let on_npu = format!(" of npu {}", &npu::plugin(&bench).sha256[..12]);
    assert!(made.len() == 1 && made[0].engine.contains(&on_npu), "{:?}", made[0].engine);
    let table = fs::read(home.state().join("latencies/table.json")).unwrap();
    let table: Value = serde_json::from_slice(&table).unwrap();
    let engines: Vec<&String> = table["engines"].as_object().unwrap().keys().collect();
    assert_eq!(engines, [&made[0].engine]);
    let cuts = &made[0].rungs[0].cuts;
    let aligned = cuts.iter().filter(|cut| cut.kept % 16 == 0).count();
    assert!(!cuts.is_empty() && aligned == cuts.len(), "{aligned} of {} cuts", cuts.len());

    // It gets hot: the telemetry tells, the budget breaks, a rung keeps it.
    let load = Load::start(home.http, "network", agent.input("network").unwrap());
    agent.eventually("dense serves", |agent| variant(agent) == "dense");
    bench.play(HOT);
    agent.eventually("a rung serves", |agent| variant(agent) != "dense");
    agent.eventually("the heat is told", |agent| celsius(agent) == 95.0);
    assert_eq!(provider(&agent), "npu");
    // It cools: back to dense.
    bench.play(COOL);
    agent.eventually("dense serves again", |agent| variant(agent) == "dense");
    agent.eventually("it is told to be cool", |agent| celsius(agent) == 60.0);

    // The card is lost under load: what it failed is answered by the processor.
    bench.play(LOST);
    agent.eventually("the processor serves", |agent| provider(agent) == "cpu");
    let passed = agent.model("network")["provider"]["passed"][0].clone();
    assert_eq!(passed["provider"], "npu");
    // Whoever was quicker: a request that failed, or the telemetry.
    let why = passed["why"].as_str().unwrap();
    assert!(why.contains("device[0] is lost") || why.contains("device 0 is lost"), "{why}");
    agent.eventually("the telemetry says so", |agent| {
        agent.status()["hardware"]["devices"][0]["presence"] == "lost"
    });
    assert!(agent.infer("network").is_ok());
    // It returns, and so does the model, to the ladder that it had.
    bench.play(COOL);
    agent.once_built("the accelerator serves again", |agent| provider(agent) == "npu");
    agent.once_built("its ladder is there", rung_is_ready);
    let (answered, failed) = load.finish();
    assert!(answered > 0 && failed.is_empty(), "{} failed: {:?}", failed.len(), failed.first());
    let of_npu = manifests(&home).into_iter().filter(|made| made.engine.contains("of npu"));
    let of_npu: Vec<Manifest> = of_npu.collect();
    assert_eq!(of_npu, made, "another ladder was made for it");
}
