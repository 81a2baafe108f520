//! What an operator is to bring about behind it: its own old output, the sum at the end of its residual
//! branch, or the value that it has to stand for once a block is left out; and whether a rectifier follows.

use std::collections::{BTreeMap, BTreeSet};

use super::rectified::Gate;
use crate::onnx::{Graph, NodeId, Operator, Tensor, Use};

/// Where the dense network has what is to come out.
pub(super) enum Wanted {
    /// It is this value.
    Value(String),
    /// It is the sum inside the node that writes `node_output`: the operator's own output and input number
    /// `input` of the node.
    Fused { node_output: String, input: usize },
}

/// a + b of tensors of one shape.
pub fn plus(a: &Tensor, b: &Tensor) -> Option<Tensor> {
    let (x, y) = (a.to_f32()?, b.to_f32()?);
    let sum: Vec<f32> = x.iter().zip(&y).map(|(x, y)| x + y).collect();
    (a.shape == b.shape).then(|| Tensor::from_f32(&a.shape, &sum))
}

/// What an operator's output is to bring about behind it.
pub(super) struct Aim {
    pub wanted: Wanted,
    /// What the cut network adds to the operator's output before that, and has computed already.
    pub shortcut: Option<String>,
    /// Per-channel scale and shift of a BatchNormalization between the operator and the value.
    norm: Option<(Vec<f32>, Vec<f32>)>,
    /// Whether the value stands elsewhere in the dense network: then the operator is to say something else
    /// than it did, even where its input is the old one.
    pub moved: bool,
    /// Whether a rectifier alone reads the value: what is negative may be anything negative.
    pub rectified: bool,
}

/// Follows the operator's output through at most one normalisation to a rectifier, to an addition whose
/// other term does not depend on operators that are still to be repaired, or to a value that stands for
/// another. `None` where the output is to be what it was, and nothing more is known.
pub(super) fn aim(
    graph: &Graph,
    operator: &Operator,
    stands_for: &BTreeMap<String, String>,
) -> Option<Aim> {
    let mut value = operator.output.as_str();
    let mut norm = None;
    loop {
        let rectified = is_rectified(graph, value);
        let (shortcut, other) = (None, stands_for.get(value));
        if rectified || other.is_some() {
            let moved = other.is_some();
            let wanted = Wanted::Value(other.map_or(value, String::as_str).to_owned());
            return Some(Aim { wanted, shortcut, norm, moved, rectified });
        }
        let [Use::Input { node, input }] = graph.uses(value) else { return None };
        let output = graph.node(*node).output.first()?;
        match graph.op(*node).as_str() {
            "Add" => {
                let shortcut = Some(ready(graph, graph.input(*node, 1 - input)?, operator)?);
                let other = stands_for.get(output);
                let (wanted, moved) =
                    (Wanted::Value(other.unwrap_or(output).clone()), other.is_some());
                let rectified = is_rectified(graph, output);
                return Some(Aim { wanted, shortcut, norm, moved, rectified });
            }
            "com.microsoft.SkipLayerNormalization"
            | "com.microsoft.SkipSimplifiedLayerNormalization"
                if norm.is_none() && *input < 2 =>
            {
                let shortcut = Some(ready(graph, graph.input(*node, 1 - input)?, operator)?);
                let wanted = Wanted::Fused { node_output: output.clone(), input: 1 - input };
                return Some(Aim { wanted, shortcut, norm, moved: false, rectified: false });
            }
            "Identity" => {}
            "BatchNormalization" if norm.is_none() && *input == 0 => {
                norm = Some(norm_of(graph, *node)?);
            }
            _ => return None,
        }
        value = output;
    }
}

/// Whether a Relu (or a Clip from zero on) is all that reads a value.
fn is_rectified(graph: &Graph, value: &str) -> bool {
    let [Use::Input { node, input: 0 }] = graph.uses(value) else { return false };
    match graph.op(*node).as_str() {
        "Relu" => true,
        "Clip" => match graph.input(*node, 1) {
            Some(least) => graph.floats(least).is_some_and(|values| values == [0.0]),
            None => graph.attrs(*node).float("min") == Some(0.0),
        },
        _ => false,
    }
}

/// A shortcut that is computed, and by nothing that is still to be repaired.
fn ready(graph: &Graph, shortcut: &str, operator: &Operator) -> Option<String> {
    let computed = graph.weight(shortcut).is_none();
    (computed && ancestors_before(graph, shortcut, operator.node)).then(|| shortcut.to_owned())
}

/// Whether every operator that `value` depends on stands before node `before`.
fn ancestors_before(graph: &Graph, value: &str, before: NodeId) -> bool {
    let mut seen = BTreeSet::new();
    let mut open = vec![value];
    while let Some(value) = open.pop() {
        let Some(node) = graph.producer(value) else { continue };
        if !seen.insert(node) {
            continue;
        }
        // Behind the operator there may stand additions and activations that do not read it.
        if node == before || (node > before && operators_at(graph, node)) {
            return false;
        }
        open.extend(graph.node(node).input.iter().map(String::as_str));
    }
    true
}

fn operators_at(graph: &Graph, node: NodeId) -> bool {
    let op = graph.op(node);
    matches!(
        op.as_str(),
        "Conv"
            | "ConvTranspose"
            | "Gemm"
            | "MatMul"
            | "com.microsoft.FusedConv"
            | "com.microsoft.FusedMatMul"
    )
}

/// Per-channel scale of the BatchNormalization that alone reads an operator's output; `None` where there
/// is none.
pub fn scale_after(graph: &Graph, operator: &Operator) -> Option<Vec<f32>> {
    let [Use::Input { node, input: 0 }] = graph.uses(&operator.output) else { return None };
    let norm = (graph.op(*node) == "BatchNormalization").then(|| norm_of(graph, *node))?;
    norm.map(|(scale, _)| scale).filter(|scale| scale.len() == operator.outputs)
}

fn norm_of(graph: &Graph, node: NodeId) -> Option<(Vec<f32>, Vec<f32>)> {
    let floats = |input| graph.floats(graph.input(node, input)?);
    let (gamma, beta, mean, variance) = (floats(1)?, floats(2)?, floats(3)?, floats(4)?);
    let epsilon = graph.attrs(node).float("epsilon").unwrap_or(1e-5);
    let scale: Vec<f32> =
        gamma.iter().zip(&variance).map(|(g, v)| g / (v + epsilon).sqrt()).collect();
    let shift = beta.iter().zip(&mean).zip(&scale).map(|((b, m), s)| b - m * s).collect();
    Some((scale, shift))
}

impl Aim {
    /// What the operator should say so that `after` comes out, given the shortcut: (after − shortcut) taken
    /// back through the normalisation. Channels that the normalisation all but silences keep `plain`.
    pub fn before_norm(
        &self,
        after: &Tensor,
        shortcut: Option<&Tensor>,
        plain: &Tensor,
    ) -> Option<Tensor> {
        if after.shape != plain.shape || shortcut.is_some_and(|s| s.shape != plain.shape) {
            return None;
        }
        let plain_values = plain.to_f32()?;
        let mut values = after.to_f32()?;
        if let Some(shortcut) = shortcut {
            values.iter_mut().zip(shortcut.to_f32()?.iter()).for_each(|(a, s)| *a -= s);
        }
        if let Some((scale, shift)) = &self.norm {
            let channels = *plain.shape.get(1)?;
            let plane: usize = plain.shape[2..].iter().product();
            if scale.len() != channels {
                return None;
            }
            let audible = audible(scale);
            for (index, value) in values.iter_mut().enumerate() {
                let channel = index / plane.max(1) % channels;
                *value = if audible[channel] {
                    (*value - shift[channel]) / scale[channel]
                } else {
                    plain_values[index]
                };
            }
        }
        Some(Tensor::from_f32(&plain.shape, &values))
    }

    /// Where the outputs `first ..` of the operator are heard: `wanted` (rows × outputs) is what they are to
    /// say, `shortcut` what is added to it. `None` where no rectifier follows.
    pub fn gate(
        &self,
        wanted: &[f32],
        shortcut: Option<&[f32]>,
        first: usize,
        outputs: usize,
    ) -> Option<Gate> {
        if !self.rectified || shortcut.is_some_and(|values| values.len() != wanted.len()) {
            return None;
        }
        let (scale, shift) = match &self.norm {
            Some((scale, shift)) => {
                let heard = audible(scale);
                let scale = scale.iter().zip(heard).map(|(s, heard)| if heard { *s } else { 0.0 });
                let scale: Vec<f32> = scale.skip(first).take(outputs).collect();
                (scale, shift.iter().copied().skip(first).take(outputs).collect())
            }
            None => (vec![1.0; outputs], vec![0.0; outputs]),
        };
        if scale.len() != outputs || shift.len() != outputs {
            return None;
        }
        let mut after: Vec<f32> = wanted.to_vec();
        for row in after.chunks_exact_mut(outputs.max(1)) {
            let norm = scale.iter().zip(&shift);
            row.iter_mut().zip(norm).for_each(|(value, (scale, shift))| {
                *value = *value * scale + shift;
            });
        }
        if let Some(shortcut) = shortcut {
            after.iter_mut().zip(shortcut).for_each(|(value, shortcut)| *value += shortcut);
        }
        Some(Gate { after, scale })
    }
}

/// Channels that a normalisation does not all but silence: through the others nothing can be told of what
/// stands before it.
fn audible(scale: &[f32]) -> Vec<bool> {
    let loudest = scale.iter().fold(0.0f32, |max, s| max.max(s.abs()));
    scale.iter().map(|s| s.abs() > 1e-3 * loudest).collect()
}
