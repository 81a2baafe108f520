//! Whether an execution provider can be used here at all, found out with the smallest model that there is:
//! before a real one is blamed for what it has no part in, and in seconds where that one compiles for
//! minutes.

use std::time::{Duration, Instant};

use super::OrtEngine;
use crate::onnx::proto::{GraphProto, ModelProto, NodeProto, OperatorSetIdProto};
use crate::onnx::{ExecError, Model, Tensor};
use crate::spectra::activations::value_info;

/// Elements of the model's input, one vector of most chips.
const WIDTH: usize = 16;

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Preflight {
    /// Until the provider was loaded and its session made.
    pub load: Duration,
    /// Of the first run, in which providers that compile do; `None` where none was asked for.
    pub first_run: Option<Duration>,
}

/// Loads the model on `engine`, and runs it once if that is asked for.
///
/// # Errors
/// Where the provider cannot be loaded, refuses its options, fails to compile or to run one operator, or
/// computes something else.
pub fn preflight(engine: &OrtEngine, run: bool) -> Result<Preflight, ExecError> {
    let values: Vec<f32> = (0..WIDTH).map(|at| at as f32 - WIDTH as f32 / 2.0).collect();
    let input = Tensor::from_f32(&[1, WIDTH], &values);
    let model = Model::from_proto(relu(&input)).map_err(|error| ExecError {
        doing: "making a model to try the provider with".to_owned(),
        reason: error.to_string(),
    })?;
    let begun = Instant::now();
    let mut session = engine.open_live(&model)?;
    let load = begun.elapsed();
    if !run {
        return Ok(Preflight { load, first_run: None });
    }
    let begun = Instant::now();
    let outputs = session.run(&[("x", &input)], &[])?;
    let first_run = Some(begun.elapsed());
    let expected: Vec<f32> = values.iter().map(|value| value.max(0.0)).collect();
    let found = outputs.first().and_then(Tensor::to_f32).unwrap_or_default();
    if found != expected {
        let reason =
            format!("Relu of {values:?} came out as {found:?}: the provider computes wrong");
        return Err(ExecError { doing: "running one operator".to_owned(), reason });
    }
    Ok(Preflight { load, first_run })
}

fn relu(input: &Tensor) -> ModelProto {
    let node = NodeProto {
        name: Some("relu".to_owned()),
        op_type: Some("Relu".to_owned()),
        input: vec!["x".to_owned()],
        output: vec!["y".to_owned()],
        ..Default::default()
    };
    let graph = GraphProto {
        name: Some("preflight".to_owned()),
        node: vec![node],
        input: vec![value_info("x", input, true)],
        output: vec![value_info("y", input, true)],
        ..Default::default()
    };
    let opset = OperatorSetIdProto { version: Some(13), ..Default::default() };
    ModelProto {
        ir_version: Some(8),
        opset_import: vec![opset],
        graph: Some(graph).into(),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shell::engine::EngineOptions;
    use crate::shell::engine::testing::runtime;

    #[test]
    fn the_cpu_passes() {
        let engine = OrtEngine::new(&runtime(), EngineOptions::default());
        assert!(preflight(&engine, true).unwrap().first_run.is_some());
        assert_eq!(preflight(&engine, false).unwrap().first_run, None);
    }
}
