//! The part of a network that a cut changes, as a model of its own that can be timed: what it costs there
//! and what a cut saves there is what the whole network gains, up to what fusions across its border do.

use std::collections::BTreeSet;

use buffa::Message;

use crate::onnx::{Graph, Model, NodeId, OnnxError, Tensor, extract};
use crate::spectra::activations::value_info;
use crate::units::Digest;

/// The border of a set of nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// Values that its nodes read and others produce.
    pub inputs: Vec<String>,
    /// Values that its nodes produce and others (or the caller) read.
    pub outputs: Vec<String>,
}

impl Segment {
    /// The border of `nodes`.
    pub fn around(graph: &Graph, nodes: &BTreeSet<NodeId>) -> Self {
        let mut inputs = BTreeSet::new();
        let mut outputs = BTreeSet::new();
        for id in nodes {
            for value in graph.node(*id).input.iter().filter(|value| !value.is_empty()) {
                let inside = graph.producer(value).is_some_and(|node| nodes.contains(&node));
                if !inside && graph.weight(value).is_none() {
                    inputs.insert(value.clone());
                }
            }
            for value in graph.node(*id).output.iter().filter(|value| !value.is_empty()) {
                let leaves = |used: &crate::onnx::Use| match used {
                    crate::onnx::Use::Input { node, .. } => !nodes.contains(node),
                    crate::onnx::Use::Captured { .. } | crate::onnx::Use::Output => true,
                };
                if graph.uses(value).iter().any(leaves) {
                    outputs.insert(value.clone());
                }
            }
        }
        Self { inputs: inputs.into_iter().collect(), outputs: outputs.into_iter().collect() }
    }

    /// The segment of `model` as a model, its inputs of the sizes of `tensors` (in the order of
    /// [`Segment::inputs`]).
    ///
    /// # Errors
    /// Where the segment cannot be cut out.
    pub fn of(&self, model: &Model, tensors: &[&Tensor]) -> Result<Model, OnnxError> {
        let infos = self.inputs.iter().zip(tensors).map(|(n, t)| value_info(n, t, true)).collect();
        let outputs: Vec<&str> = self.outputs.iter().map(String::as_str).collect();
        extract(model, infos, &outputs)
    }
}

/// A key under which segments that take the same time are one: operators, attributes, wiring and the
/// sizes of weights and inputs, but neither names nor the weights' values.
pub fn key(segment: &Model) -> Digest {
    let graph = Graph::new(segment);
    let mut hasher = blake3::Hasher::new();
    let mut numbers: std::collections::BTreeMap<&str, usize> = std::collections::BTreeMap::new();
    for input in &segment.graph().input {
        let count = numbers.len();
        numbers.insert(input.name.as_deref().unwrap_or_default(), count);
        hasher.update(&input.r#type.encode_to_vec());
    }
    for (id, node) in graph.nodes().iter().enumerate() {
        hasher.update(graph.op(id).as_bytes()).update(b"(");
        for value in &node.input {
            match graph.weight_dims(value) {
                Some(dims) => hasher.update(format!("{dims:?}").as_bytes()),
                None => hasher.update(&numbers.get(value.as_str()).unwrap_or(&0).to_le_bytes()),
            };
            // Shapes, axes and pads decide what is computed; weights only what comes out.
            if let Some(ints) = graph.ints(value) {
                hasher.update(format!("{ints:?}").as_bytes());
            }
        }
        if graph.op(id) != "Constant" {
            for attribute in &node.attribute {
                hasher.update(&attribute.encode_to_vec());
            }
        }
        for value in &node.output {
            let count = numbers.len();
            numbers.insert(value, count);
        }
    }
    Digest::from_bytes(*hasher.finalize().as_bytes())
}
