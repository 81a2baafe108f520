//! Whether the rows of a model's inputs have nothing to do with one another, so that several requests may run
//! as one. The signature must say so, and a session must show it: random rows give the same answers alone and
//! together. A model that takes the mean over its batch, or sorts it, is told by that.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::limits::BATCH_CHECK_ROWS;
use crate::onnx::{DType, Tensor, values};
use crate::protocol::{Dim, Inputs, Signature, TensorSpec};

use super::batch;
use super::variant::Runner;

/// Why the requests of a model are not run together.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum NotBatched {
    #[error("its {side} {name:?} has no free first axis")]
    Fixed { side: &'static str, name: String },
    #[error(
        "the first axis of its {side} {name:?} is {found:?} where that of {first:?} is {expected:?}"
    )]
    OtherAxis { side: &'static str, name: String, found: String, first: String, expected: String },
    #[error("its {side} {name:?} holds texts")]
    Texts { side: &'static str, name: String },
    #[error("it has no inputs")]
    NoInputs,
    #[error("nothing is known that it runs on")]
    NoExample,
    #[error("its example is too plain to tell its rows apart: give a calibration.npz")]
    TooPlain,
    #[error("it does not run on {rows} random rows: {why}")]
    Run { rows: usize, why: String },
    #[error(
        "its output {output:?} for a row is another one with other rows beside it (off by {off:e})"
    )]
    Dependent { output: String, off: f64 },
}

/// Whether `session`'s rows are independent of one another. `example` are the inputs of a request that runs.
///
/// # Errors
/// Why they are not, or cannot be shown to be.
pub fn check_rows(
    session: &mut dyn Runner,
    signature: &Signature,
    example: Option<&Inputs>,
) -> Result<(), NotBatched> {
    check_so_many_rows(session, signature, example, BATCH_CHECK_ROWS)
}

/// As [`check_rows`], with at most so many rows, at least 2.
///
/// # Errors
/// As there.
pub fn check_so_many_rows(
    session: &mut dyn Runner,
    signature: &Signature,
    example: Option<&Inputs>,
    most: usize,
) -> Result<(), NotBatched> {
    same_axis(signature)?;
    let example = example.ok_or(NotBatched::NoExample)?;
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let rows: Vec<Inputs> = (0..most.clamp(2, BATCH_CHECK_ROWS))
        .map(|_| example.iter().map(|(name, like)| (name.clone(), row(like, &mut rng))).collect())
        .collect();
    if rows.windows(2).all(|pair| pair[0] == pair[1]) {
        return Err(NotBatched::TooPlain);
    }
    let wanted: Vec<&str> = signature.outputs.iter().map(|spec| spec.name.as_str()).collect();
    let mut run = |inputs: &Inputs, rows: usize| {
        let inputs: Vec<_> = inputs.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
        let failed = |why: String| NotBatched::Run { rows, why };
        let outputs = session.run(&inputs, &wanted).map_err(|error| failed(error.to_string()))?;
        if outputs.len() != wanted.len() {
            return Err(failed(format!("it gives {} outputs", outputs.len())));
        }
        batch::scatter(&outputs, &vec![1; rows]).map_err(failed)
    };
    let whole: Inputs = example
        .iter()
        .enumerate()
        .map(|(at, (name, _))| (name.clone(), below(rows.iter().map(|row| &row[at].1))))
        .collect();
    let together = run(&whole, rows.len())?;
    let mut alone = Vec::new();
    for row in &rows {
        alone.extend(run(row, 1)?);
    }
    for (at, output) in wanted.iter().enumerate() {
        let pairs = together.iter().zip(&alone).map(|(one, other)| (&one[at], &other[at]));
        if let Some(off) = differ(pairs) {
            return Err(NotBatched::Dependent { output: (*output).to_owned(), off });
        }
    }
    Ok(())
}

/// Whether every input and output has a free first axis, and all of them the same.
fn same_axis(signature: &Signature) -> Result<(), NotBatched> {
    let inputs = signature.inputs.iter().map(|spec| ("input", spec));
    let sides = inputs.chain(signature.outputs.iter().map(|spec| ("output", spec)));
    let mut first: Option<(&TensorSpec, &str)> = None;
    for (side, spec) in sides {
        let name = || spec.name.clone();
        let Some([Dim::Free(axis), ..]) = spec.shape.as_deref() else {
            return Err(NotBatched::Fixed { side, name: name() });
        };
        if spec.dtype == DType::String {
            return Err(NotBatched::Texts { side, name: name() });
        }
        let (like, expected) = *first.get_or_insert((spec, axis));
        // Axes without a name have nothing to do with each other.
        if axis.is_empty() || axis != expected {
            let (found, expected) = (axis.clone(), expected.to_owned());
            let first = like.name.clone();
            return Err(NotBatched::OtherAxis { side, name: name(), found, first, expected });
        }
    }
    if signature.inputs.is_empty() { Err(NotBatched::NoInputs) } else { Ok(()) }
}

/// A random row of the type and shape of the example's rows. Floats lie between the example's least and largest
/// one, whole numbers are some of the example's, and where those are all one, 0 or 1: what a model takes as an
/// index, a length or a flag must stay within its bounds.
fn row(like: &Tensor, rng: &mut ChaCha8Rng) -> Tensor {
    let mut shape = like.shape.clone();
    if let Some(rows) = shape.first_mut() {
        *rows = 1;
    }
    let count = shape.iter().product();
    let data = match values::floats(like.dtype, &like.data) {
        Some(floats) => {
            let (least, most) = floats
                .iter()
                .filter(|value| value.is_finite())
                .fold((f32::INFINITY, f32::NEG_INFINITY), |(least, most), value| {
                    (least.min(*value), most.max(*value))
                });
            let (least, most) = if least < most { (least, most) } else { (0.0, 1.0) };
            let values: Vec<f32> =
                (0..count).map(|_| least + (most - least) * rng.random::<f32>()).collect();
            values::float_bytes(like.dtype, &values).unwrap_or_default()
        }
        None => {
            let width = like.dtype.size().unwrap_or(1);
            let known: Vec<&[u8]> = like.data.chunks_exact(width).collect();
            let plain = known.windows(2).all(|pair| pair[0] == pair[1]);
            let zero = vec![0; width];
            let one: Vec<u8> = (0..width).map(|at| u8::from(at == 0)).collect();
            let mut pick = || match plain {
                true if rng.random::<bool>() => &one[..],
                true => &zero[..],
                false => known[rng.random_range(0..known.len())],
            };
            (0..count).flat_map(|_| pick().to_vec()).collect()
        }
    };
    Tensor { dtype: like.dtype, shape, data: data.into() }
}

/// Rows one below the other.
fn below<'a>(rows: impl Iterator<Item = &'a Tensor>) -> Tensor {
    let rows: Vec<&Tensor> = rows.collect();
    let (dtype, mut shape) = (rows[0].dtype, rows[0].shape.clone());
    shape[0] = rows.len();
    let data: Vec<u8> = rows.iter().flat_map(|row| row.data.iter().copied()).collect();
    Tensor { dtype, shape, data: data.into() }
}

/// By how much an output differs between rows alone and together, where that is more than the order of sums
/// explains, relative to its largest value.
fn differ<'a>(pairs: impl Iterator<Item = (&'a Tensor, &'a Tensor)>) -> Option<f64> {
    let (mut most, mut off) = (0f64, 0f64);
    let mut tolerance = 0.0;
    for (one, other) in pairs {
        if one.shape != other.shape {
            return Some(f64::INFINITY);
        }
        tolerance = match one.dtype {
            DType::F32 | DType::F64 => 1e-4,
            DType::F16 => 1e-2,
            DType::BF16 => 5e-2,
            DType::U8 | DType::I8 | DType::U16 | DType::I16 | DType::I32 | DType::I64 => 0.0,
            DType::U32 | DType::U64 | DType::Bool | DType::String => 0.0,
        };
        match (one.to_f32(), other.to_f32()) {
            (Some(one), Some(other)) => {
                for (one, other) in one.into_iter().zip(other) {
                    let same = one == other || (one.is_nan() && other.is_nan());
                    if !same {
                        let by = f64::from((one - other).abs());
                        off = if by.is_nan() { f64::INFINITY } else { off.max(by) };
                    }
                    if other.is_finite() {
                        most = most.max(f64::from(other.abs()));
                    }
                }
            }
            _ if one.data == other.data => {}
            _ => return Some(1.0),
        }
    }
    (off > tolerance * most).then(|| off / most.max(f64::MIN_POSITIVE))
}
