//! `blochd analyze` from run to run and from version to version, on the real program.

mod running;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use blochd::onnx::proto::{GraphProto, ModelProto, NodeProto, OperatorSetIdProto, ValueInfoProto};
use blochd::onnx::{DType, Model, tensor};
use serde_json::Value;

const SIDE: usize = 192;
const LAYERS: usize = 60;

/// Writes a chain of matrix products; every weight is moved by up to `by` of its size.
fn write(path: &Path, by: f32) {
    let value = |name: String| ValueInfoProto { name: Some(name), ..Default::default() };
    let mut graph = GraphProto {
        name: Some("chain".to_owned()),
        input: vec![value("x0".to_owned())],
        output: vec![value(format!("x{}", LAYERS))],
        ..Default::default()
    };
    let number = |i: usize| ((i * 7919) % 2003) as f32 / 1001.5 - 1.0;
    for layer in 0..LAYERS {
        let value = |i: usize| number(i * (layer + 3)) * (1.0 + by * number(i + layer));
        let bytes: Vec<u8> = (0..SIDE * SIDE).flat_map(|i| value(i).to_le_bytes()).collect();
        let name = format!("w{layer}");
        graph.initializer.push(tensor(&name, DType::F32, &[SIDE, SIDE], bytes));
        graph.node.push(NodeProto {
            op_type: Some("MatMul".to_owned()),
            name: Some(format!("product{layer}")),
            input: vec![format!("x{layer}"), name],
            output: vec![format!("x{}", layer + 1)],
            ..Default::default()
        });
    }
    let opset = OperatorSetIdProto { version: Some(17), ..Default::default() };
    let proto = ModelProto {
        ir_version: Some(8),
        graph: graph.into(),
        opset_import: vec![opset],
        ..Default::default()
    };
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, Model::from_proto(proto).unwrap().encode_inline().unwrap()).unwrap();
}

fn command(model: &Path, more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_blochd"));
    running::without_settings(&mut command);
    command.arg("analyze").arg(model).args(["--json", "-"]).args(more);
    command
}

fn analysis(model: &Path, more: &[&str]) -> Value {
    let done = command(model, more).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    serde_json::from_slice(&done.stdout).unwrap()
}

fn count(analysis: &Value, key: &str) -> usize {
    analysis[key].as_u64().unwrap() as usize
}

fn values(analysis: &Value) -> Vec<&Value> {
    analysis["layers"].as_array().unwrap().iter().map(|layer| &layer["values"]).collect()
}

#[test]
fn a_killed_analysis_goes_on_where_it_was_killed() {
    let dir = tempfile::tempdir().unwrap();
    let (model, state) = (dir.path().join("model.onnx"), dir.path().join("state"));
    write(&model, 0.0);
    let more = ["--state-dir", state.to_str().unwrap()];
    let mut child = command(&model, &more).stdout(Stdio::null()).spawn().unwrap();
    let kept = || -> usize {
        let entries = fs::read_dir(state.join("spectra")).into_iter().flatten().flatten();
        entries.filter(|entry| !entry.file_name().to_string_lossy().starts_with('.')).count()
    };
    let start = Instant::now();
    while kept() < 3 {
        assert!(start.elapsed() < Duration::from_secs(120), "nothing is kept");
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let before = kept();
    assert!(before < LAYERS, "it was over before it was killed");
    let again = analysis(&model, &more);
    assert_eq!(count(&again, "reused"), before);
    assert_eq!(count(&again, "computed"), LAYERS - before);
    let fresh = analysis(&model, &["--no-cache"]);
    assert_eq!(values(&again), values(&fresh));
}

#[test]
fn the_version_before_lends_what_has_hardly_changed() {
    let dir = tempfile::tempdir().unwrap();
    let path =
        |version: &str| -> PathBuf { dir.path().join("net").join(version).join("model.onnx") };
    let state = dir.path().join("state");
    // No pair of layers is so far apart that a small change could carry it across.
    let more = ["--state-dir", state.to_str().unwrap(), "--threshold", "1.5"];
    // 9 comes before 10, whatever their names say.
    for (version, by) in [("9", 0.0), ("10", 1e-3), ("11", 0.5)] {
        write(&path(version), by);
    }
    assert_eq!(count(&analysis(&path("9"), &more), "computed"), LAYERS);
    let second = analysis(&path("10"), &more);
    assert_eq!((count(&second, "computed"), count(&second, "lent")), (0, LAYERS));
    assert_eq!(count(&analysis(&path("11"), &more), "computed"), LAYERS);
    // Elsewhere the earlier version is named.
    let moved = dir.path().join("moved.onnx");
    write(&moved, 2e-3);
    let since = path("10");
    let named = analysis(&moved, &[&more[..], &["--since", since.to_str().unwrap()]].concat());
    assert_eq!((count(&named, "computed"), count(&named, "lent")), (0, LAYERS));
}

#[test]
fn reports_on_other_samples_and_other_thresholds_are_not_those_that_were_kept() {
    let dir = tempfile::tempdir().unwrap();
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/models");
    let (model, samples) =
        (models.join("digits_mobile.onnx"), models.join("digits_calibration.npz"));
    let runtime = running::onnx_runtime().to_str().unwrap();
    let graphs = |samples_used: &str, threshold: &str, cache: &[&str]| {
        let file = samples.to_str().unwrap();
        let more = ["--calibration", file, "--samples", samples_used, "--runtime", runtime];
        let found = analysis(&model, &[&more[..], &["--threshold", threshold], cache].concat());
        let layers = found["layers"].as_array().unwrap().iter();
        layers.map(|layer| layer["graph"].clone()).collect::<Vec<Value>>()
    };
    let kept = ["--state-dir", dir.path().to_str().unwrap()];
    let mut seen: Vec<Vec<Value>> = Vec::new();
    for (samples, threshold) in [("10", "0.1"), ("15", "0.1"), ("10", "1.2")] {
        let (found, fresh) =
            (graphs(samples, threshold, &kept), graphs(samples, threshold, &["--no-cache"]));
        assert_eq!(found, fresh, "{samples} samples, {threshold}");
        assert!(found.iter().any(|graph| graph["by"] == "response"));
        seen.push(found);
    }
    assert!(seen[0] != seen[1], "other samples say something else");
}
