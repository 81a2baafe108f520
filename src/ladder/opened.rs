//! The form of a model that a ladder is made from: as it is, or with what its fused operators do by themselves
//! written out, where the engine finds that it computes the same. What is measured, judged and kept is of the
//! model's own form again (`surgery::attention`).

use std::collections::BTreeMap;

use super::calibration::free_sizes;
use crate::limits;
use crate::onnx::{Engine, ExecError, Model, OnnxError, Tensor};
use crate::surgery::attention::project_outside;

/// The model written out; `None` where nothing of it needs to be, or where the engine cannot run it so, or
/// finds something else. `first` holds the inputs of one request.
///
/// # Errors
/// Where the runtime fails on the model as it is.
pub fn opened(
    engine: &dyn Engine,
    model: &Model,
    first: &BTreeMap<String, Tensor>,
) -> Result<Option<Model>, OpenError> {
    let shapes = engine.shapes(model, &free_sizes(model, first))?;
    let Some(made) = project_outside(model, &shapes)? else { return Ok(None) };
    let said = run(engine, model, first)?;
    let same = run(engine, &made, first).is_ok_and(|found| alike(&said, &found));
    Ok(same.then_some(made))
}

/// Why a model could not be looked at.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("the runtime failed")]
    Exec(#[from] ExecError),
    #[error(transparent)]
    Onnx(#[from] OnnxError),
}

fn run(
    engine: &dyn Engine,
    model: &Model,
    first: &BTreeMap<String, Tensor>,
) -> Result<Vec<Tensor>, ExecError> {
    let inputs: Vec<(&str, &Tensor)> = first.iter().map(|(name, t)| (name.as_str(), t)).collect();
    engine.open(model)?.run(&inputs)
}

/// Whether two runs agree up to rounding. Of numbers that are none, nothing can be said.
fn alike(a: &[Tensor], b: &[Tensor]) -> bool {
    let same = |(a, b): (&Tensor, &Tensor)| match (a.to_f32(), b.to_f32()) {
        (Some(x), Some(y)) if a.shape == b.shape => {
            let square = |value: f32| f64::from(value) * f64::from(value);
            let apart: f64 = x.iter().zip(&y).map(|(x, y)| square(x - y)).sum();
            let all: f64 = x.iter().map(|x| square(*x)).sum();
            apart <= limits::SAME_SQUARES * all
        }
        _ => a == b,
    };
    a.len() == b.len() && a.iter().zip(b).all(same)
}
