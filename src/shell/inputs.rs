//! One request out of an archive of samples: what a model is tried and warmed with where real inputs are
//! there.

use std::path::Path;

use super::npz::{self, NpzError};
use crate::limits;
use crate::onnx::Tensor;
use crate::protocol::{Dim, Inputs, Signature, TensorSpec};

/// Why samples are no request of a model.
#[derive(Debug, thiserror::Error)]
pub enum SampleError {
    #[error(transparent)]
    Npz(#[from] NpzError),
    #[error("the samples have no array for input {input:?} of the model; they have {found:?}")]
    Missing { input: String, found: Vec<String> },
    #[error("array {input:?} is {found}, the model's input is {expected}")]
    Type { input: String, found: String, expected: String },
}

/// The first request that the samples in the archive at `path` make (first axis: samples). An input with a
/// fixed first axis takes as many of them, one without axes a single number. No more of the file is read.
///
/// # Errors
/// Where it cannot be read, or an array is missing or of another type or shape than the input.
pub fn first_of(path: &Path, signature: &Signature) -> Result<Inputs, SampleError> {
    let rows = |name: &str| signature.input(name).map_or(0, rows_of_one);
    let mut arrays = npz::read_some(path, limits::EXAMPLE_BYTES, &rows)?;
    let found: Vec<String> = arrays.keys().cloned().collect();
    let one = |spec: &TensorSpec| {
        let array = arrays.remove(&spec.name).ok_or_else(|| SampleError::Missing {
            input: spec.name.clone(),
            found: found.clone(),
        })?;
        Ok((spec.name.clone(), fitted(spec, array)?))
    };
    signature.inputs.iter().map(one).collect()
}

/// How many samples one request takes of an input's array.
fn rows_of_one(spec: &TensorSpec) -> usize {
    match spec.shape.as_deref() {
        Some([Dim::Fixed(rows), ..]) => *rows,
        Some([Dim::Free(_), ..] | []) | None => 1,
    }
}

fn fitted(spec: &TensorSpec, mut array: Tensor) -> Result<Tensor, SampleError> {
    let found = format!("{:?} {:?}", array.dtype, array.shape);
    if spec.shape.as_deref() == Some(&[]) && array.shape == [1] {
        array.shape.clear();
    }
    let enough = array.shape.first().is_none_or(|rows| *rows >= rows_of_one(spec));
    if spec.dtype == array.dtype && spec.admits(&array.shape) && enough {
        return Ok(array);
    }
    let dims = spec.dims();
    let expected = format!("{:?} {dims:?}", spec.dtype);
    Err(SampleError::Type { input: spec.name.clone(), found, expected })
}
