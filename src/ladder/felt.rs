//! Where an error in a value is felt: behind the normalisation over channels that reads it. A residual stream
//! of a transformer has a few channels that are hundreds of times louder than the others, which the scale of
//! the next LayerNormalization makes quiet again: an error in the others must not drown in their variance.

use crate::onnx::{ExecError, Graph, Model, NodeId, Tensor, Use};
use crate::spectra::activations::Activations;

/// What errors of a value count: each channel's is multiplied by its weight, their summed variance divided by
/// `scale`.
#[derive(Debug, Clone, PartialEq)]
pub struct Felt {
    pub weights: Vec<f64>,
    pub scale: f64,
}

/// A normalisation over the last axis and the value that it writes.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Norm {
    /// Constant that holds the scale of each channel.
    scale: String,
    output: String,
    /// Another value that is added before, inside the same node.
    also: Option<String>,
    /// Whether the mean is taken off.
    centred: bool,
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
        let Some(norm) = norm_after(graph, value) else { return Ok(None) };
        let Some(scales) = graph.floats(&norm.scale).filter(|s| s.len() == channels) else {
            return Ok(None);
        };
        let values: Vec<&str> =
            [value, &norm.output].into_iter().chain(norm.also.as_deref()).collect();
        known.fetch(model, &values)?;
        let (Some(sum), Some(output)) = (known.get(value), known.get(&norm.output)) else {
            return Ok(None);
        };
        let also = norm.also.as_deref().and_then(|also| known.get(also));
        let Some(gain) = gain(sum, also, channels, norm.centred) else { return Ok(None) };
        let scale = variances(output, channels, true).iter().sum();
        let weights = scales.iter().map(|scale| f64::from(*scale).abs() * gain).collect();
        Ok((scale > 0.0).then_some(Self { weights, scale }))
    }
}

/// The normalisation over channels that reads a value: as an operator, fused with the addition before it, or
/// put together of simple operators.
fn norm_after(graph: &Graph, value: &str) -> Option<Norm> {
    graph.uses(value).iter().find_map(|used| {
        let Use::Input { node, input } = *used else { return None };
        let output = graph.node(node).output.first()?;
        let norm = |scale: usize, also: Option<usize>, centred: bool| {
            let also = also.and_then(|also| graph.input(node, also)).map(str::to_owned);
            let (scale, output) = (graph.input(node, scale)?.to_owned(), output.clone());
            Some(Norm { scale, output, also, centred })
        };
        match graph.op(node).as_str() {
            "LayerNormalization" if input == 0 => norm(1, None, true),
            "RMSNormalization" | "SimplifiedLayerNormalization" if input == 0 => {
                norm(1, None, false)
            }
            "com.microsoft.SkipLayerNormalization" if input < 2 => norm(2, Some(1 - input), true),
            "com.microsoft.SkipSimplifiedLayerNormalization" if input < 2 => {
                norm(2, Some(1 - input), false)
            }
            "Sub" if input == 0 && is_mean_of(graph, graph.input(node, 1)?, value) => {
                scaled(graph, output, true)
            }
            "Div" if input == 0 => scaled(graph, value, false),
            _ => None,
        }
    })
}

fn is_mean_of(graph: &Graph, mean: &str, value: &str) -> bool {
    graph
        .producer(mean)
        .is_some_and(|node| graph.op(node) == "ReduceMean" && graph.input(node, 0) == Some(value))
}

/// `x / root(mean of squares) · scale`, written out.
fn scaled(graph: &Graph, x: &str, centred: bool) -> Option<Norm> {
    let next = |value: &str, op: &str| -> Option<NodeId> {
        graph.uses(value).iter().find_map(|used| match used {
            Use::Input { node, input: 0 } if graph.op(*node) == op => Some(*node),
            Use::Input { node, .. } if op == "Mul" && graph.op(*node) == op => Some(*node),
            Use::Input { .. } | Use::Captured { .. } | Use::Output => None,
        })
    };
    let divided = next(x, "Div")?;
    let root = graph.producer(graph.input(divided, 1)?)?;
    if graph.op(root) != "Sqrt" {
        return None;
    }
    let product = next(graph.node(divided).output.first()?, "Mul")?;
    let scale = graph.node(product).input.iter().find(|name| graph.weight(name).is_some())?;
    let output = graph.node(product).output.first()?.clone();
    Some(Norm { scale: scale.clone(), output, also: None, centred })
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
