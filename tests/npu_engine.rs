//! The engine and `blochd prune` on the simulated accelerator: what runs there and what does not, and ladders that
//! follow its steps.

mod running;
mod standins;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use blochd::config::Provider;
use blochd::ladder::Manifest;
use blochd::onnx::{Engine, Model, Tensor};
use blochd::shell::engine::{EngineOptions, OrtEngine, Runtime, Search, init};
use blochd::shell::{models, places};
use running::{model, onnx_runtime, without_settings};
use standins::npu::{count, plugin};
use standins::{Bench, SCENARIO};

/// A bench whose scenario this process plays, too; the tests that need it are one.
fn bench(scenario: &str) -> Bench {
    let bench = Bench::with(&[("npu", "")]);
    bench.play(scenario);
    bench
}

fn runtime() -> Runtime {
    init(&Search::new(None, &places::state_dir())).unwrap()
}

fn engine(runtime: &Runtime, provider: Provider) -> OrtEngine {
    OrtEngine::new(runtime, EngineOptions { provider, ..EngineOptions::default() })
}

fn image() -> Tensor {
    let pixels: Vec<f32> = (0..28 * 28).map(|at| (at % 13) as f32 / 6.0 - 1.0).collect();
    Tensor::from_f32(&[1, 1, 28, 28], &pixels)
}

fn logits(engine: &OrtEngine, model: &Model) -> Vec<f32> {
    let mut session = engine.open(model).unwrap();
    session.run(&[("input", &image())]).unwrap().remove(0).to_f32().unwrap()
}

#[test]
fn a_model_runs_where_it_is_asked_to_and_nothing_else_does() {
    let (bench, runtime) = (bench(""), runtime());
    let digits = models::load(&model("digits_resnet.onnx")).unwrap();
    let plugin = plugin(&bench);
    let hash = plugin.sha256[..12].to_owned();
    let (cpu, npu) = (engine(&runtime, Provider::Cpu), engine(&runtime, Provider::Plugin(plugin)));
    assert!(npu.identity().contains(&format!("SimNPU of npu {hash}")), "{}", npu.identity());
    assert_ne!(npu.identity(), cpu.identity());
    let mut held = npu.open(&digits).unwrap();
    let found = held.run(&[("input", &image())]).unwrap().remove(0).to_f32().unwrap();
    let made = || ["simnpu_programs", "simnpu_runs"].map(|what| count(&bench, what));
    assert_eq!(made(), [1, 1]);
    // An NPU that is registered draws nothing that asked for the processor.
    let expected = logits(&cpu, &digits);
    for engine in [&cpu, &npu] {
        engine.shapes(&digits, &BTreeMap::from([("N".to_owned(), 1)])).unwrap();
    }
    assert_eq!(made(), [1, 1]);
    for (found, expected) in found.iter().zip(&expected) {
        assert!((found - expected).abs() < 1e-4, "{found} is not {expected}");
    }
    let device = npu.library().unwrap().unwrap().devices().next().cloned().unwrap();
    assert_eq!((device.kind.as_str(), device.vendor_id, device.device_id), ("npu", 0x19e5, 0xd500));
}

fn prune(bench: &Bench, provider: &Provider, out: &Path, state: &Path) -> Manifest {
    let mut command = Command::new(env!("CARGO_BIN_EXE_blochd"));
    command.arg("prune").arg(model("digits_resnet.onnx")).arg("--out").arg(out);
    command.args(["--ratios", "0.7", "--samples", "40", "--trials", "1", "--seconds", "0.4"]);
    command.args(["--no-depth", "--no-low-rank", "--progress", "none", "--json"]);
    command.arg("--calibration").arg(model("digits_calibration.npz"));
    command.arg("--provider").arg(provider.text()).arg("--state-dir").arg(state);
    command.arg("--runtime").arg(onnx_runtime());
    without_settings(&mut command);
    let output = command.env(SCENARIO, bench.scenario()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn a_ladder_for_it_keeps_widths_that_fill_its_blocks() {
    let bench = bench("");
    let dir = tempfile::tempdir().unwrap();
    let plugin = plugin(&bench);
    let words = format!("SimNPU of npu {}", &plugin.sha256[..12]);
    let provider = Provider::Plugin(plugin);
    let state = dir.path().join("state");
    let manifest = prune(&bench, &provider, &dir.path().join("out"), &state);
    assert!(manifest.engine.contains(&words), "{}", manifest.engine);
    let rung = &manifest.rungs[0];
    assert!(rung.figures.ratio < 0.8 && !rung.cuts.is_empty(), "{:?}", rung.figures);
    // Nobody told it of 16: it is what was measured.
    for cut in &rung.cuts {
        assert_eq!(cut.kept % 16, 0, "{} keeps {} of {}", cut.group, cut.kept, cut.width);
    }
}
