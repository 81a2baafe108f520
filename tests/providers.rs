//! Another execution provider than the CPU's, on the whole way: a plugin of somebody else's, pinned by its
//! hash, registered, asked for its devices, run, told apart from the CPU, and put away.

mod ggml;
mod running;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

use blochd::config::{Plugin, Provider};
use blochd::ladder::Manifest;
use blochd::ladder::table::LatencyTable;
use blochd::onnx::{Model, Tensor};
use blochd::shell::engine::{
    EngineOptions, Library, LiveSession, OrtEngine, PluginError, Runtime, Search, init,
};
use blochd::shell::{models, places};
use running::model;
use serde_json::Value;

/// What stands for what the network takes: digits of 28 by 28 points.
fn digits(count: usize) -> Tensor {
    let point = |at: usize| (at.wrapping_mul(0x9E37_79B9) >> 9 & 0xFF) as f32 / 255.0;
    Tensor::from_f32(&[count, 1, 28, 28], &(0..count * 784).map(point).collect::<Vec<_>>())
}

fn runtime() -> Runtime {
    init(&Search::new(None, &places::state_dir())).unwrap_or_else(|error| panic!("{error}"))
}

fn engine(runtime: &Runtime, provider: Provider) -> OrtEngine {
    OrtEngine::new(runtime, EngineOptions { provider, ..EngineOptions::default() })
}

fn run(session: &mut LiveSession, digits: &Tensor) -> Vec<f32> {
    let name = session.inputs()[0].name.clone();
    session.run(&[(&name, digits)], &[]).unwrap()[0].to_f32().unwrap()
}

/// `blochd` with ONNX Runtime at `runtime`.
fn blochd(arguments: &[&str], runtime: &Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_blochd"));
    running::without_settings(&mut command);
    command.args(arguments).arg("--runtime").arg(runtime).output().unwrap()
}

fn words(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The last line of standard output.
fn told(output: &Output) -> Value {
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    serde_json::from_str(said.lines().last().unwrap_or_default())
        .unwrap_or_else(|error| panic!("{error}: {said}\n{}", words(output)))
}

#[test]
fn a_plugin_runs_what_it_claims_and_goes_with_its_last_user() {
    let plugin = ggml::plugin();
    let runtime = runtime();
    let before = runtime.devices();
    let loaded: Model = models::load(&model("fixtures/mlp_gemm.onnx")).unwrap();
    let input = digits(200);
    let expected = run(&mut engine(&runtime, Provider::Cpu).open_live(&loaded).unwrap(), &input);
    // Twice: what was put away can be had again.
    for _ in 0..2 {
        let wrong = Plugin { sha256: "0".repeat(64), ..plugin.clone() };
        let error = Library::of(&runtime, &wrong).unwrap_err();
        assert!(matches!(error, PluginError::OtherFile { .. }), "{error}");
        let told = error.to_string();
        for part in [&plugin.library.display().to_string(), &plugin.sha256, &wrong.sha256] {
            assert!(told.contains(part), "{told}");
        }
        assert_eq!(runtime.devices(), before, "it was not loaded");
        let engine = engine(&runtime, Provider::Plugin(plugin.clone()));
        let library = engine.library().unwrap().unwrap();
        let device = library.device(&plugin).unwrap().clone();
        assert_eq!(device.provider, "ggml");
        let with = runtime.devices();
        assert!(with.len() > before.len() && with.contains(&device), "{with:?}");
        let missing = Plugin { device: 99, ..plugin.clone() };
        assert!(matches!(library.device(&missing), Err(PluginError::NoSuchDevice { .. })));
        let other = Plugin { provider: Some("npu".to_owned()), ..plugin.clone() };
        let error = library.device(&other).unwrap_err().to_string();
        assert!(error.contains("\"npu\"") && error.contains("ggml"), "{error}");
        let mut session = engine.open_live(&loaded).unwrap();
        let placement = session.placement().unwrap();
        assert!(placement.providers["ggml"].operators["Gemm"] > 0, "{placement:?}");
        assert_eq!(placement.fallen_back(), None, "{placement:?}");
        // Who asks for the CPU gets it, whatever else there is in the process by now.
        let folder = tempfile::tempdir().unwrap();
        let options =
            EngineOptions { profile: Some(folder.path().join("cpu")), ..EngineOptions::default() };
        let on_cpu = OrtEngine::new(&runtime, options).open_live(&loaded).unwrap();
        let placed = on_cpu.placement().unwrap().providers;
        assert_eq!(placed.keys().collect::<Vec<_>>(), ["CPUExecutionProvider"]);
        drop(on_cpu);
        let name = session.inputs()[0].name.clone();
        let answers = session.run(&[(&name, &input)], &[]).unwrap();
        let found = answers[0].to_f32().unwrap();
        let largest = expected.iter().fold(0f32, |most, value| most.max(value.abs()));
        let apart = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(found.len() == expected.len() && apart < 1e-3 * largest, "{apart} of {largest}");
        // A session, and what its outputs lie in, is all that holds it by and by.
        drop((engine, library));
        assert_eq!(runtime.devices(), with);
        drop(session);
        assert!(answers[0].data.len() > 4096, "it lies where the runtime put it");
        assert_eq!(runtime.devices(), with);
        drop(answers);
        assert_eq!(runtime.devices(), before);
    }
}

#[test]
fn a_trial_tells_where_operators_run_and_how_far_the_answers_are_from_the_cpus() {
    let provider = Provider::Plugin(ggml::plugin()).text();
    let path = model("fixtures/mlp_gemm.onnx");
    let cache = tempfile::tempdir().unwrap();
    for sandbox in ["off", "auto"] {
        let scratch = tempfile::tempdir().unwrap();
        let done = blochd(
            &[
                &["trial", path.to_str().unwrap(), "--provider", &provider, "--json"][..],
                &["--sandbox", sandbox, "--scratch", scratch.path().to_str().unwrap()],
                &["--cache", cache.path().join(sandbox).to_str().unwrap(), "--lend"],
                &["--runs", "5", "--served", "N=3", "--served", "N=2"],
            ]
            .concat(),
            running::onnx_runtime(),
        );
        assert_eq!(done.status.code(), Some(0), "{sandbox}: {}", words(&done));
        let report = told(&done);
        assert_eq!((&report["provider"], &report["lends"]), (&"llama".into(), &false.into()));
        assert_eq!(report["device"]["provider"], "ggml", "{report}");
        assert!(report["engine"].as_str().unwrap().contains("ggml of llama"), "{report}");
        let compiled = report["compiled"].as_array().unwrap();
        let shapes: Vec<&str> = compiled.iter().map(|c| c["inputs"].as_str().unwrap()).collect();
        // Where there are no samples, what is made up has the first shape.
        assert_eq!(shapes, ["input[3,1,28,28]", "input[2,1,28,28]"], "{report}");
        let sum: f64 = compiled.iter().map(|one| one["us"].as_f64().unwrap()).sum();
        assert!((report["compile_us"].as_f64().unwrap() - sum).abs() < 1e-6 * sum, "{report}");
        assert!(report["differs"].as_f64().unwrap() < 1e-3, "{report}");
        let placed = report["placement"]["providers"].as_object().unwrap();
        assert!(placed["ggml"]["operators"]["Gemm"].as_u64().unwrap() > 0, "{report}");
        let shares: f64 = placed.values().map(|placed| placed["share"].as_f64().unwrap()).sum();
        assert!((shares - 1.0).abs() < 1e-9, "{report}");
        assert!(report["p50_us"].as_f64().unwrap() > 0.0, "{report}");
    }
    // It claims all of a network or nothing.
    let path = model("fixtures/vgg_chain.onnx");
    let arguments = ["trial", path.to_str().unwrap(), "--provider", &provider, "--runs", "2"];
    let text = String::from_utf8(blochd(&arguments, running::onnx_runtime()).stdout).unwrap();
    assert!(text.contains("CPUExecutionProvider: 10 operators, 100 % of the time"), "{text}");
    assert!(text.contains("MaxPool 2") && !text.contains("ggml: "), "{text}");
}

#[test]
fn a_provider_that_is_not_to_be_had_is_told_from_a_model_that_is_not() {
    let plugin = ggml::plugin();
    let text = |plugin: Plugin| Provider::Plugin(plugin).text();
    let new = running::onnx_runtime();
    let sound = model("digits_resnet.onnx");
    let trial = |provider: &str, path: &Path, runtime: &Path| {
        let path = path.to_str().unwrap();
        let done = blochd(&["trial", path, "--provider", provider, "--runs", "1"], runtime);
        (done.status.code().unwrap(), words(&done))
    };
    let dir = tempfile::tempdir().unwrap();
    let open = dir.path().join("open.so");
    fs::write(&open, "x").unwrap();
    fs::set_permissions(&open, fs::Permissions::from_mode(0o666)).unwrap();
    let no_library = dir.path().join("text.so");
    fs::write(&no_library, "abc").unwrap();
    let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad".to_owned();
    let old = ggml::old_runtime();
    let wrong = "f".repeat(64);
    let at = |library: &Path| Plugin { library: library.to_owned(), ..plugin.clone() };
    for (provider, runtime, expected) in [
        (text(Plugin { sha256: wrong.clone(), ..plugin.clone() }), new, &wrong[..]),
        (text(at(&open)), new, "others than root"),
        (text(at(&dir.path().join("missing.so"))), new, "missing.so cannot be read"),
        (text(Plugin { sha256: abc, ..at(&no_library) }), new, "does not take"),
        (text(Plugin { device: 7, ..plugin.clone() }), new, "offers 1 devices of ggml"),
        (text(plugin.clone()), &old, "offers no device with ONNX Runtime 1.24.4"),
        ("cann".to_owned(), new, "CANN"),
    ] {
        let (code, said) = trial(&provider, &sound, runtime);
        assert!(code == 76 && said.contains(expected), "{expected}: {code} {said}");
    }
    // What the CPU refuses is the model's own fault, whoever was asked to run it.
    for refused in ["fixtures/custom_op.onnx", "fixtures/bad/truncated.onnx"] {
        let (code, said) = trial(&text(plugin.clone()), &model(refused), new);
        assert_eq!(code, 65, "{refused}: {said}");
    }
    let (code, said) = trial("tpu", &sound, new);
    assert!(code != 0 && said.contains("cpu, cann"), "{said}");
}

#[test]
fn a_ladder_is_measured_on_its_provider_and_others_do_not_share_its_latencies() {
    let plugin = ggml::plugin();
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let options = |threads: &str| {
        [("device", "cpu"), ("threads", threads)].map(|(k, v)| (k.into(), v.into())).into()
    };
    let prune = |threads: &str| -> Manifest {
        let provider = Provider::Plugin(Plugin { options: options(threads), ..plugin.clone() });
        let (out, text) = (dir.path().join(threads), provider.text());
        let done = blochd(
            &[
                &["prune", model("digits_mobile.onnx").to_str().unwrap(), "--provider", &text][..],
                &["--calibration", model("digits_calibration.npz").to_str().unwrap()],
                &["--samples", "32", "--ratios", "0.7", "--trials", "0", "--seconds", "0.05"],
                &["--floor", "0", "--json", "--progress", "none", "--sandbox", "auto"],
                &["--out", out.to_str().unwrap(), "--state-dir", state.to_str().unwrap()],
            ]
            .concat(),
            running::onnx_runtime(),
        );
        assert!(done.status.success(), "{}", words(&done));
        serde_json::from_slice(&done.stdout).unwrap()
    };
    let (one, two) = (prune("1"), prune("2"));
    for manifest in [&one, &two] {
        assert!(manifest.engine.contains("ggml of llama"), "{}", manifest.engine);
        assert_eq!(manifest.rungs.len() + manifest.not_built.len(), 1);
    }
    assert_ne!(one.engine, two.engine);
    let table = fs::read_to_string(state.join("latencies/table.json")).unwrap();
    let _: LatencyTable = serde_json::from_str(&table).unwrap();
    assert!(table.contains(&one.engine) && table.contains(&two.engine), "{table}");
}
