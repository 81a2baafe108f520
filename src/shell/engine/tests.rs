//! Tests of the engine against a real ONNX Runtime, on the committed models.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::testing::runtime;
use super::*;
use crate::onnx::{DType, Graph, Tensor};
use crate::shell::models;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/models/fixtures").join(name)
}

fn engine() -> OrtEngine {
    OrtEngine::new(&runtime(), EngineOptions::default())
}

/// Ones (or texts) for every input; free dimensions are 1 unless `fixed` names them.
fn ones(session: &LiveSession, fixed: &[(&str, usize)]) -> Vec<(String, Tensor)> {
    let size = |dim: &Dim| match dim {
        Dim::Fixed(size) => *size,
        Dim::Free(name) => fixed.iter().find(|(n, _)| n == name).map_or(1, |(_, size)| *size),
    };
    let input = |info: &ValueInfo| {
        let shape: Vec<usize> = info.shape.iter().map(size).collect();
        let count = shape.iter().product();
        let tensor = match info.dtype {
            DType::F32 => Tensor::from_f32(&shape, &vec![1.0; count]),
            DType::I64 => Tensor::from_i64(&shape, &vec![1; count]),
            other => {
                Tensor { dtype: other, shape, data: vec![1; count * other.size().unwrap()].into() }
            }
        };
        (info.name.clone(), tensor)
    };
    session.inputs().iter().map(input).collect()
}

fn borrowed(inputs: &[(String, Tensor)]) -> Vec<(&str, &Tensor)> {
    inputs.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect()
}

#[test]
fn the_identity_names_cpu_provider_version_and_threads() {
    let options = EngineOptions { intra_op_threads: 2, ..Default::default() };
    let identity = OrtEngine::new(&runtime(), options).identity();
    assert!(identity.contains("CPUExecutionProvider / onnxruntime 1."), "{identity}");
    assert!(identity.ends_with("2 threads"), "{identity}");
    assert_ne!(identity, engine().identity());
}

#[test]
fn a_second_initialisation_gives_the_same_runtime_and_another_path_is_refused() {
    let first = runtime();
    let other = tempfile::NamedTempFile::new().unwrap();
    let search = Search {
        config: Some(first.library().path.clone()),
        environment: None,
        state_dir: PathBuf::from("/nonexistent"),
        system: Vec::new(),
        wants: None,
    };
    assert_eq!(init(&search).unwrap().library(), first.library());
    let search = Search { config: Some(other.path().to_owned()), ..search };
    let error = init(&search).unwrap_err();
    assert!(matches!(error, RuntimeError::AlreadyLoaded { .. }), "{error}");
}

#[test]
fn every_sound_fixture_runs_from_its_file_and_from_memory_alike() {
    let options = EngineOptions::default();
    for name in [
        "residual.onnx",
        "concat_dense.onnx",
        "constants_hardswish.onnx",
        "conv_transpose.onnx",
        "dynamic_hw.onnx",
        "f16_throughout.onnx",
        "f16_weights_cast.onnx",
        "grouped_conv.onnx",
        "if_node.onnx",
        "mlp_gemm.onnx",
        "option_a.onnx",
        "external/model.onnx",
    ] {
        let path = fixture(name);
        let model = models::load(&path).unwrap();
        let mut from_file = LiveSession::open_file(&runtime(), &path, &options).unwrap();
        let mut from_memory = LiveSession::open_model(&runtime(), &model, &options).unwrap();
        assert_eq!(from_file.inputs(), from_memory.inputs(), "{name}");
        let inputs = ones(&from_file, &[("height", 16), ("width", 16), ("h", 16), ("w", 16)]);
        let outputs = from_file.run(&borrowed(&inputs), &[]).unwrap();
        assert_eq!(outputs, from_memory.run(&borrowed(&inputs), &[]).unwrap(), "{name}");
        assert_eq!(outputs.len(), from_file.outputs().len(), "{name}");
        assert_eq!(from_file.time(&borrowed(&inputs), 3).unwrap().len(), 3, "{name}");
    }
}

#[test]
fn shapes_are_static_and_complete_once_free_dimensions_are_fixed() {
    for name in ["residual.onnx", "concat_dense.onnx", "mlp_gemm.onnx", "external/model.onnx"] {
        let model = models::load(&fixture(name)).unwrap();
        let symbols = ["N", "n", "batch", "batch_size", "height", "width", "h", "w"];
        let fixed: BTreeMap<String, usize> =
            symbols.iter().map(|symbol| ((*symbol).to_owned(), 16)).collect();
        let shapes = engine().shapes(&model, &fixed).unwrap();
        let graph = Graph::new(&model);
        for node in graph.nodes() {
            let value = &node.output[0];
            let found = shapes.get(value).unwrap_or_else(|| panic!("{name}: {value} is absent"));
            assert!(found.shape.iter().all(Option::is_some), "{name}: {value} is {found:?}");
        }
        let weight = graph.weights().find(|(_, weight)| weight.node.is_none()).unwrap().0;
        assert!(!shapes.contains_key(weight), "{name}: {weight} is a weight");
    }
}

#[test]
fn free_dimensions_stay_free_unless_they_are_fixed() {
    let model = models::load(&fixture("dynamic_hw.onnx")).unwrap();
    let input = model.graph().input[0].name.clone().unwrap();
    let shapes = engine().shapes(&model, &BTreeMap::new()).unwrap();
    assert!(shapes[&input].shape.contains(&None));
}

#[test]
fn wrong_inputs_and_outputs_are_named_and_never_reach_the_runtime() {
    let path = fixture("mlp_gemm.onnx");
    let mut session = LiveSession::open_file(&runtime(), &path, &EngineOptions::default()).unwrap();
    let good = ones(&session, &[]);
    let (name, tensor) = (good[0].0.as_str(), &good[0].1);
    let mut says = |inputs: &[(&str, &Tensor)], wanted: &[&str], expected: &str| {
        let error = session.run(inputs, wanted).unwrap_err().to_string();
        assert!(error.contains(expected), "{error} should contain {expected}");
    };
    says(&[], &[], "is missing");
    says(&[("nobody", tensor)], &[], "has no input");
    says(&[(name, tensor), (name, tensor)], &[], "given twice");
    says(&[(name, tensor)], &["nobody"], "has no output");
    let ints = Tensor::from_i64(&tensor.shape, &vec![0; tensor.len()]);
    says(&[(name, &ints)], &[], "is F32, got I64");
    says(&[(name, &Tensor::from_f32(&[1], &[0.0]))], &[], "has shape");
    let short = Tensor { data: tensor.data.slice(4..), ..tensor.clone() };
    says(&[(name, &short)], &[], "bytes where shape");
}

#[test]
fn elements_at_any_address_give_the_same_result() {
    let path = fixture("mlp_gemm.onnx");
    let mut session = LiveSession::open_file(&runtime(), &path, &EngineOptions::default()).unwrap();
    let good = ones(&session, &[]);
    let (name, tensor) = (&good[0].0, &good[0].1);
    let expected = session.run(&[(name, tensor)], &[]).unwrap();
    for offset in 0..4 {
        let mut padded = vec![0; offset];
        padded.extend_from_slice(&tensor.data);
        let data = bytes::Bytes::from(padded).slice(offset..);
        let moved = Tensor { data, ..tensor.clone() };
        assert_eq!(session.run(&[(name, &moved)], &[]).unwrap(), expected);
    }
}

#[test]
fn outputs_outlive_their_session_and_come_in_the_order_asked_for() {
    let path = fixture("residual.onnx");
    let mut session = LiveSession::open_file(&runtime(), &path, &EngineOptions::default()).unwrap();
    let inputs = ones(&session, &[]);
    let output = session.outputs()[0].name.clone();
    let wanted = [output.as_str(), output.as_str()];
    let twice = session.run(&borrowed(&inputs), &wanted).unwrap();
    drop(session);
    assert_eq!(twice[0], twice[1]);
    assert!(twice[0].to_f32().unwrap().iter().all(|value| value.is_finite()));
}

#[test]
fn a_cancelled_run_ends_with_an_error_and_the_next_one_works() {
    let path = fixture("residual.onnx");
    let mut session = LiveSession::open_file(&runtime(), &path, &EngineOptions::default()).unwrap();
    let inputs = ones(&session, &[]);
    let cancel = Cancel::new(&runtime()).unwrap();
    cancel.cancel();
    assert!(cancel.is_cancelled());
    let error = session.run_cancellable(&borrowed(&inputs), &[], &cancel).unwrap_err();
    assert!(error.reason.to_lowercase().contains("terminate"), "{error}");
    let cancel = Cancel::new(&runtime()).unwrap();
    session.run_cancellable(&borrowed(&inputs), &[], &cancel).unwrap();
}

#[test]
fn hostile_models_are_errors_with_a_reason() {
    let mut files: Vec<PathBuf> = std::fs::read_dir(fixture("bad"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|ext| ext == "onnx"))
        .collect();
    files.sort();
    assert!(files.len() > 10, "the hostile fixtures are not there");
    for path in files {
        let error = LiveSession::open_file(&runtime(), &path, &EngineOptions::default());
        let error = error.map(|_| ()).unwrap_err();
        assert!(!error.reason.is_empty(), "{}", path.display());
        if let Ok(model) = models::load(&path) {
            assert!(
                LiveSession::open_model(&runtime(), &model, &EngineOptions::default()).is_err()
            );
            engine().shapes(&model, &BTreeMap::new()).unwrap_err();
        }
    }
}

#[test]
fn an_unknown_operator_is_named_in_the_error() {
    let model = models::load(&fixture("custom_op.onnx")).unwrap();
    let error = engine().open(&model).map(|_| ()).unwrap_err();
    assert!(error.reason.contains("is not a registered function/op"), "{error}");
}
