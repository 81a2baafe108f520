//! The part of a network that a cut changes, as a model of its own that can be timed: what it costs there
//! and what a cut saves there is what the whole network gains, up to what fusions across its border do.

use std::collections::{BTreeMap, BTreeSet};

use buffa::Message;

use crate::onnx::{DType, Graph, Model, NodeId, OnnxError, Tensor, extract};
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

/// A key under which segments that take the same time are one: operators with the version of their sets,
/// attributes, wiring, and the sizes and element types of weights and inputs, but neither names nor the
/// weights' values.
pub fn key(segment: &Model) -> Digest {
    let graph = Graph::new(segment);
    let mut hasher = blake3::Hasher::new();
    for set in &segment.proto().opset_import {
        let domain = set.domain.as_deref().unwrap_or_default();
        hasher.update(format!("{domain}:{};", set.version.unwrap_or_default()).as_bytes());
    }
    for function in &segment.proto().functions {
        hasher.update(&function.encode_to_vec());
    }
    let mut numbers: BTreeMap<&str, usize> = BTreeMap::new();
    for input in &segment.graph().input {
        let count = numbers.len();
        numbers.insert(input.name.as_deref().unwrap_or_default(), count);
        hasher.update(&input.r#type.encode_to_vec());
    }
    let wired = |numbers: &BTreeMap<&str, usize>, value: &str| match numbers.get(value) {
        Some(number) => format!("#{number},"),
        None => "-,".to_owned(),
    };
    for (id, node) in graph.nodes().iter().enumerate() {
        hasher.update(format!("{}(", graph.op(id)).as_bytes());
        for value in &node.input {
            let read = match graph.weight(value) {
                Some(_) => constant(&graph, id, value),
                None => wired(&numbers, value),
            };
            hasher.update(read.as_bytes());
        }
        for value in graph.captured(id) {
            hasher.update(wired(&numbers, value).as_bytes());
        }
        hasher.update(b")");
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
    for output in &segment.graph().output {
        let name = output.name.as_deref().unwrap_or_default();
        hasher.update(wired(&numbers, name).as_bytes());
    }
    Digest::from_bytes(*hasher.finalize().as_bytes())
}

/// What of a constant decides how long its reader takes: shapes, axes, pads, scales and exponents decide what
/// is computed; weights only what comes out.
fn constant(graph: &Graph, node: NodeId, value: &str) -> String {
    let dtype = graph.weight(value).and_then(|weight| weight.tensor.data_type);
    let dims = graph.weight_dims(value);
    let is_small = dims.iter().flatten().product::<usize>() <= DECIDING_ELEMENTS;
    let is_index = matches!(graph.weight_dtype(value), Some(DType::I32 | DType::I64));
    let ints = (is_small && is_index).then(|| graph.ints(value)).flatten();
    let is_scale = is_small && SCALED.contains(&graph.op(node).as_str());
    let reals = is_scale.then(|| graph.floats(value)).flatten();
    format!("{dtype:?} {dims:?} {ints:?} {reals:?},")
}

/// Most elements of a constant that says what is to be done rather than with what.
const DECIDING_ELEMENTS: usize = 1024;

/// Operators whose floating-point constants say what is to be done.
const SCALED: [&str; 3] = ["Resize", "Upsample", "Pow"];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ladder::fakes::{Layer, chain};
    use crate::onnx::attr_int;

    fn base() -> Vec<Layer> {
        vec![Layer::product(4, 6), Layer::op("Relu"), Layer::product(6, 3)]
    }

    #[test]
    fn what_a_segment_computes_makes_its_key_and_neither_names_nor_weights_do() {
        let plain = key(&chain(17, DType::F32, "a", 1, &base()));
        assert_eq!(key(&chain(17, DType::F32, "other", 1, &base())), plain, "names");
        assert_eq!(key(&chain(17, DType::F32, "a", 2, &base())), plain, "values of weights");
        let with = |at: usize, layer: Layer| {
            let mut layers = base();
            layers[at] = layer;
            key(&chain(17, DType::F32, "a", 1, &layers))
        };
        let softmax = |axis| Layer::op("Softmax").with(attr_int("axis", axis));
        let others = [
            ("an operator", with(1, Layer::op("Tanh"))),
            ("an attribute", with(1, softmax(1))),
            ("its value", with(1, softmax(0))),
            (
                "a weight's shape",
                key(&chain(17, DType::F32, "a", 1, &{
                    let mut layers = base();
                    (layers[0], layers[2]) = (Layer::product(4, 5), Layer::product(5, 3));
                    layers
                })),
            ),
            ("an element type", key(&chain(17, DType::F16, "a", 1, &base()))),
            ("the operator set", key(&chain(18, DType::F32, "a", 1, &base()))),
            ("the wiring", with(1, Layer::op("Add").also_reads(0))),
            ("and other wiring", with(1, Layer::op("Add").also_reads(1))),
            ("an exponent", with(1, Layer::op("Pow").constant(2.0))),
            ("its value", with(1, Layer::op("Pow").constant(0.5))),
        ];
        let mut seen = std::collections::BTreeMap::from([(plain, "nothing")]);
        for (what, key) in others {
            assert_eq!(seen.insert(key, what), None, "{what}");
        }
    }

    #[test]
    fn the_element_type_of_a_weight_alone_makes_another_key() {
        let plain = chain(17, DType::F32, "a", 1, &base());
        let mut proto = plain.proto().clone();
        let graph = proto.graph.get_or_insert_default();
        for weight in &mut graph.initializer {
            let half = vec![0u8; weight.raw_data.as_ref().map_or(0, |data| data.len() / 2)];
            weight.raw_data = Some(half.into());
            weight.data_type = Some(DType::F16 as i32);
        }
        assert_ne!(key(&Model::from_proto(proto).unwrap()), key(&plain));
    }
}
