//! Samples: from arrays that were given, or made up where none are.

use std::collections::BTreeMap;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::integers;
use super::manifest::CalibrationSource;
use crate::limits;
use crate::onnx::proto::tensor_shape_proto::dimension;
use crate::onnx::proto::{ValueInfoProto, type_proto};
use crate::onnx::{DType, Graph, Model, Shapes, Tensor, ValueType, free_axis, values};
use crate::spectra::activations::Batch;

/// Why given arrays are not samples of a model.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CalibrationError {
    #[error("the samples have no array for input {input:?} of the model; they have {found:?}")]
    Missing { input: String, found: Vec<String> },
    #[error("array {input:?} is {found}, the model's input is {expected}")]
    Type { input: String, found: String, expected: String },
    #[error("array {input:?} holds {found} samples, the others {expected}")]
    Count { input: String, found: usize, expected: usize },
    #[error("there is no sample in the arrays")]
    Empty,
    #[error("input {input:?} of the model is of a type that samples cannot be made up for")]
    Unsupported { input: String },
    #[error("samples of input {input:?} would take the shape {shape:?}: too large to be made up")]
    TooLarge { input: String, shape: Vec<usize> },
}

/// A graph input that a caller must give.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InputSpec {
    pub name: String,
    pub dtype: DType,
    /// `Ok(size)`, or `Err(name)` of a free axis (see [`free_axis`]), for each axis.
    pub dims: Vec<Result<usize, String>>,
}

/// The inputs of a model that have no initializer.
///
/// # Errors
/// Where an input is not a tensor of a type that the program handles.
pub fn inputs(model: &Model) -> Result<Vec<InputSpec>, CalibrationError> {
    let graph = Graph::new(model);
    let initializers: Vec<&str> =
        model.graph().initializer.iter().filter_map(|t| t.name.as_deref()).collect();
    let infos = model.graph().input.iter();
    let needed = infos.filter(|info| {
        let name = info.name.as_deref().unwrap_or_default();
        graph.weight(name).is_none() && !initializers.contains(&name)
    });
    needed
        .map(|info| {
            let input = info.name.clone().unwrap_or_default();
            spec(info).ok_or(CalibrationError::Unsupported { input })
        })
        .collect()
}

fn spec(info: &ValueInfoProto) -> Option<InputSpec> {
    let Some(type_proto::Value::TensorType(tensor)) = &info.r#type.value else { return None };
    let name = info.name.clone()?;
    let dims = tensor.shape.dim.iter().enumerate().map(|(axis, dim)| match &dim.value {
        Some(dimension::Value::DimValue(size)) if *size > 0 => Ok(*size as usize),
        _ => Err(free_axis(&name, axis, dim).unwrap_or_default()),
    });
    Some(InputSpec {
        name: name.clone(),
        dtype: DType::from_onnx(tensor.elem_type?)?,
        dims: dims.collect(),
    })
}

/// Sizes of the free axes of one request where no sample tells them: 1 for the first axis, and for the
/// others what `given` says or [`limits::SYNTHETIC_FREE_AXIS`].
pub fn assumed_sizes(
    specs: &[InputSpec],
    given: &BTreeMap<String, usize>,
) -> BTreeMap<String, usize> {
    let axes = specs.iter().flat_map(|spec| spec.dims.iter().enumerate());
    let free = axes.filter_map(|(axis, dim)| Some((axis, dim.as_ref().err()?)));
    let assumed = |axis| if axis == 0 { 1 } else { limits::SYNTHETIC_FREE_AXIS };
    free.map(|(axis, name)| (name.clone(), given.get(name).copied().unwrap_or(assumed(axis))))
        .collect()
}

/// Sizes of the free axes of a model's inputs, by symbol, as `batch` has them.
pub fn free_sizes(model: &Model, batch: &Batch) -> BTreeMap<String, usize> {
    let mut sizes = BTreeMap::new();
    for spec in inputs(model).unwrap_or_default() {
        let Some(tensor) = batch.get(&spec.name) else { continue };
        for (dim, size) in spec.dims.iter().zip(&tensor.shape) {
            if let Err(symbol) = dim {
                sizes.insert(symbol.clone(), *size);
            }
        }
    }
    sizes
}

/// Samples in batches, as the model takes them.
#[derive(Debug, Clone)]
pub struct Samples {
    pub source: CalibrationSource,
    pub count: usize,
    /// Batches in order; the samples' numbers run through all of them.
    pub batches: Vec<Batch>,
    /// The first sample alone, as one request brings it: what latencies are measured with.
    pub first: Batch,
}

/// Splits given arrays (first axis: samples) into batches; at most `most` samples, evenly spread over the
/// arrays. A model with a fixed first axis gets batches of exactly that size.
///
/// # Errors
/// Where an array is missing, of another type or shape than the input, or the counts differ.
pub fn from_arrays(
    specs: &[InputSpec],
    arrays: &BTreeMap<String, Tensor>,
    most: usize,
    source: CalibrationSource,
) -> Result<Samples, CalibrationError> {
    let mut count = None;
    for spec in specs {
        let array = arrays.get(&spec.name).ok_or_else(|| CalibrationError::Missing {
            input: spec.name.clone(),
            found: arrays.keys().cloned().collect(),
        })?;
        check_type(spec, array)?;
        let found = array.shape.first().copied().unwrap_or(0);
        let expected = *count.get_or_insert(found);
        if found != expected {
            return Err(CalibrationError::Count { input: spec.name.clone(), found, expected });
        }
    }
    let total = count.unwrap_or(0);
    let fixed = specs.iter().find_map(|s| s.dims.first().and_then(|d| d.as_ref().ok().copied()));
    let bytes: usize = specs.iter().map(|s| arrays[&s.name].data.len() / total.max(1)).sum();
    let affordable = (limits::CALIBRATION_BATCH_BYTES / bytes.max(1)).max(1);
    let batch = fixed.unwrap_or(limits::CALIBRATION_BATCH.min(affordable));
    let mut chosen: Vec<usize> =
        (0..total.min(most)).map(|i| i * total / total.min(most)).collect();
    if let Some(size) = fixed {
        chosen.truncate(chosen.len() / size * size);
    }
    let first = chosen.get(..fixed.unwrap_or(1)).ok_or(CalibrationError::Empty)?;
    let pick = |rows: &[usize]| -> Batch {
        specs.iter().map(|s| (s.name.clone(), rows_of(&arrays[&s.name], rows))).collect()
    };
    let batches = chosen.chunks(batch).map(&pick).collect();
    Ok(Samples { source, count: chosen.len(), first: pick(first), batches })
}

fn check_type(spec: &InputSpec, array: &Tensor) -> Result<(), CalibrationError> {
    let shape_fits = array.shape.len() == spec.dims.len()
        && spec
            .dims
            .iter()
            .zip(&array.shape)
            .skip(1)
            .all(|(d, s)| d.as_ref().map_or(true, |d| d == s));
    if array.dtype == spec.dtype && shape_fits {
        return Ok(());
    }
    let dims: Vec<String> = spec
        .dims
        .iter()
        .map(|dim| match dim {
            Ok(size) => size.to_string(),
            Err(symbol) => symbol.clone(),
        })
        .collect();
    Err(CalibrationError::Type {
        input: spec.name.clone(),
        found: format!("{:?} {:?}", array.dtype, array.shape),
        expected: format!("{:?} [{}]", spec.dtype, dims.join(", ")),
    })
}

impl Samples {
    /// How many samples may be used (at least those of one request) so that the values which are held at
    /// once (four of the largest: what an operator reads and says, in the dense and in the cut network) stay
    /// within `bytes`. `shapes` are those of one request.
    pub fn affordable(shapes: &Shapes, request: usize, bytes: u64) -> usize {
        let size = |value: &ValueType| -> u64 {
            let elements: Option<u64> =
                value.shape.iter().map(|d| d.map(|d| d as u64)).product::<Option<u64>>();
            elements.unwrap_or(0).saturating_mul(value.dtype.size().unwrap_or(8) as u64)
        };
        let largest = shapes.values().map(size).max().unwrap_or(0) / request.max(1) as u64;
        usize::try_from(bytes / (HELD_AT_ONCE * largest.max(1))).unwrap_or(usize::MAX).max(request)
    }
}

/// See [`Samples::affordable`].
const HELD_AT_ONCE: u64 = 4;

/// The given rows (first axis) of an array.
pub fn rows_of(array: &Tensor, rows: &[usize]) -> Tensor {
    let stride = array.data.len() / array.shape.first().copied().unwrap_or(1).max(1);
    let mut data = Vec::with_capacity(rows.len() * stride);
    rows.iter().for_each(|row| data.extend_from_slice(&array.data[row * stride..][..stride]));
    let mut shape = array.shape.clone();
    if let Some(first) = shape.first_mut() {
        *first = rows.len();
    }
    Tensor { dtype: array.dtype, shape, data: data.into() }
}

/// Makes samples up: low-pass noise of unit variance where the input is an image (its neighbours resemble
/// each other, as in real ones); for integer inputs rows of the tables that they pick from, else ones. Free
/// axes behind the first take [`limits::SYNTHETIC_FREE_AXIS`], or the size that is given for their symbol.
///
/// # Errors
/// Where an input of `model` (of which `specs` are the inputs) is text, or its sizes are absurd.
pub fn synthetic(
    model: &Model,
    specs: &[InputSpec],
    sizes: &BTreeMap<String, usize>,
    count: usize,
    seed: u64,
) -> Result<Samples, CalibrationError> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let fixed = specs.iter().find_map(|s| s.dims.first().and_then(|d| d.as_ref().ok().copied()));
    let count = count.next_multiple_of(fixed.unwrap_or(1));
    let mut arrays = BTreeMap::new();
    for spec in specs {
        let size = |dim: &Result<usize, String>| match dim {
            Ok(size) => *size,
            Err(symbol) => sizes.get(symbol).copied().unwrap_or(limits::SYNTHETIC_FREE_AXIS),
        };
        let mut shape: Vec<usize> = spec.dims.iter().map(size).collect();
        if let Some(first) = shape.first_mut() {
            *first = count;
        }
        let width = spec.dtype.size().unwrap_or(4) as u64;
        let bytes =
            shape.iter().try_fold(width, |bytes, dim| bytes.checked_mul(u64::try_from(*dim).ok()?));
        if bytes.is_none_or(|bytes| bytes > limits::SYNTHETIC_BYTES) {
            return Err(CalibrationError::TooLarge { input: spec.name.clone(), shape });
        }
        let array = made_up(model, spec, shape, &mut rng)
            .ok_or_else(|| CalibrationError::Unsupported { input: spec.name.clone() })?;
        arrays.insert(spec.name.clone(), array);
    }
    from_arrays(specs, &arrays, count, CalibrationSource::Synthetic)
}

/// One input of all samples; `None` for text.
fn made_up(
    model: &Model,
    spec: &InputSpec,
    shape: Vec<usize>,
    rng: &mut ChaCha8Rng,
) -> Option<Tensor> {
    let data = match spec.dtype {
        DType::F32 | DType::F16 | DType::F64 | DType::BF16 => {
            values::float_bytes(spec.dtype, &smooth_noise(&shape, rng))?
        }
        DType::String => return None,
        dtype => {
            let meaning = integers::meaning(model, spec);
            let noise = |rng: &mut ChaCha8Rng| smooth_noise(&shape, rng);
            let made = integers::values(meaning, dtype, shape.iter().product(), noise, rng);
            values::integer_bytes(dtype, &made)?
        }
    };
    Some(Tensor { dtype: spec.dtype, shape, data: data.into() })
}

/// Gaussian noise, smoothed along the last two axes where there are four, of unit variance.
fn smooth_noise(shape: &[usize], rng: &mut ChaCha8Rng) -> Vec<f32> {
    let total: usize = shape.iter().product();
    // Sum of twelve uniforms: Gaussian for every purpose here.
    let mut values: Vec<f32> =
        (0..total).map(|_| (0..12).map(|_| rng.random::<f32>()).sum::<f32>() - 6.0).collect();
    if let [_, _, height, width] = *shape {
        for plane in values.chunks_exact_mut((height * width).max(1)) {
            for _ in 0..3 {
                blur(plane, width, height, 1, width);
                blur(plane, height, width, width, 1);
            }
        }
        let power = values.iter().map(|v| v * v).sum::<f32>() / total.max(1) as f32;
        let scale = if power > 0.0 { power.sqrt().recip() } else { 1.0 };
        values.iter_mut().for_each(|value| *value *= scale);
    }
    values
}

/// Averages each value with its two neighbours along one axis of a plane: `lines` lines of `length`
/// values that stand `step` apart, the lines `line_step` apart.
fn blur(plane: &mut [f32], length: usize, lines: usize, step: usize, line_step: usize) {
    for line in 0..lines {
        let at = |i: usize| line * line_step + i * step;
        let mut before = plane[at(0)];
        for i in 0..length {
            let here = plane[at(i)];
            let after = plane[at((i + 1).min(length - 1))];
            plane[at(i)] = (before + here + after) / 3.0;
            before = here;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_holds_fewer_of_larger_samples_and_all_of_them_are_there() {
        let batches = |elements: usize| {
            let dims = vec![Err("batch".to_owned()), Ok(elements)];
            let specs = [InputSpec { name: "x".to_owned(), dtype: DType::F32, dims }];
            let values: Vec<f32> = (0..40).flat_map(|n| vec![n as f32; elements]).collect();
            let arrays = [("x".to_owned(), Tensor::from_f32(&[40, elements], &values))].into();
            let found = from_arrays(&specs, &arrays, 40, CalibrationSource::File).unwrap();
            let firsts = found.batches.iter().flat_map(|batch| {
                let values = batch["x"].to_f32().unwrap();
                values.chunks(elements).map(|sample| sample[0] as usize).collect::<Vec<_>>()
            });
            assert_eq!(firsts.collect::<Vec<_>>(), (0..40).collect::<Vec<_>>());
            found.batches.len()
        };
        assert_eq!((batches(3), batches(1 << 18), batches(1 << 21)), (2, 10, 40));
    }
}
