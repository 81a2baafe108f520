//! Where an error in a value is felt: behind the normalisation over channels that reads it. A residual stream
//! of a transformer has a few channels that are hundreds of times louder than the others, which the scale of
//! the next LayerNormalization makes quiet again: an error in the others must not drown in their variance.

use crate::coupling::{Norm, norms};
use crate::onnx::{ExecError, Graph, Model, Tensor};
use crate::spectra::activations::Activations;

/// What errors of a value count: each channel's is multiplied by its weight, their summed variance divided by
/// `scale`.
#[derive(Debug, Clone, PartialEq)]
pub struct Felt {
    pub weights: Vec<f64>,
    pub scale: f64,
}

impl Felt {
    /// What errors of `value` (channels on its last axis) count; `None` where no normalisation over channels
    /// reads it.
    ///
    /// # Errors
    /// Where the runtime fails on what the normalisation writes.
    pub fn behind(
        graph: &Graph,
        known: &mut Activations,
        model: &Model,
        value: &str,
        channels: usize,
    ) -> Result<Option<Self>, ExecError> {
        let reads = |norm: &Norm| norm.terms.iter().any(|term| term == value);
        let Some(norm) = norms(graph).into_iter().find(reads) else { return Ok(None) };
        let also = norm.terms.iter().find(|term| *term != value).map(String::as_str);
        let Some(scales) = graph.floats(&norm.scale).filter(|s| s.len() == channels) else {
            return Ok(None);
        };
        let values: Vec<&str> = [value, &norm.output].into_iter().chain(also).collect();
        known.fetch(model, &values)?;
        let (Some(sum), Some(output)) = (known.get(value), known.get(&norm.output)) else {
            return Ok(None);
        };
        let also = also.and_then(|also| known.get(also));
        let Some(gain) = gain(sum, also, channels, norm.centred) else { return Ok(None) };
        let scale = variances(output, channels, true).iter().sum();
        let weights = scales.iter().map(|scale| f64::from(*scale).abs() * gain).collect();
        Ok((scale > 0.0).then_some(Self { weights, scale }))
    }
}

/// Root of the mean over rows of 1 / (the row's variance): by how much the normalisation enlarges an error.
fn gain(sum: &[Tensor], also: Option<&[Tensor]>, channels: usize, centred: bool) -> Option<f64> {
    let (mut total, mut count) = (0.0, 0usize);
    for (number, tensor) in sum.iter().enumerate() {
        let mut values = tensor.to_f32()?;
        if let Some(also) = also {
            let other = also.get(number)?.to_f32()?;
            if other.len() != values.len() {
                return None;
            }
            values.iter_mut().zip(&other).for_each(|(value, other)| *value += other);
        }
        for row in values.chunks_exact(channels.max(1)) {
            let of = |each: fn(f64) -> f64| {
                row.iter().map(|value| each(f64::from(*value))).sum::<f64>() / channels as f64
            };
            let mean = if centred { of(|value| value) } else { 0.0 };
            let variance = of(|value| value * value) - mean * mean;
            if variance > 0.0 {
                total += 1.0 / variance;
                count += 1;
            }
        }
    }
    let gain = (total / count.max(1) as f64).sqrt();
    (gain.is_finite() && gain > 0.0).then_some(gain)
}

/// Variance of every channel over everything else. Channels stand on the last axis, or on axis 1 where
/// they may (`last` is false) and the size fits.
pub fn variances(tensors: &[Tensor], channels: usize, last: bool) -> Vec<f64> {
    let mut sums = vec![(0.0f64, 0.0f64); channels];
    let mut count = 0.0;
    for tensor in tensors {
        let Some(values) = tensor.to_f32() else { continue };
        let plane: usize = match tensor.shape.get(1) {
            Some(axis) if *axis == channels && !last => tensor.shape[2..].iter().product(),
            _ => 1,
        };
        for (index, plane) in values.chunks_exact(plane.max(1)).enumerate() {
            let sum = &mut sums[index % channels];
            for value in plane.iter().map(|value| f64::from(*value)) {
                sum.0 += value;
                sum.1 += value * value;
            }
        }
        count += values.len() as f64 / channels.max(1) as f64;
    }
    let variance = |(sum, square): &(f64, f64)| (square - sum * sum / count).max(0.0) / count;
    if count > 0.0 { sums.iter().map(variance).collect() } else { vec![0.0; channels] }
}
