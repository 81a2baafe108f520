//! Constants with the same contents, kept once.

use std::collections::{BTreeMap, BTreeSet};

use super::proto::TensorProto;
use super::{Graph, Model, NodeId, OnnxError, Patch, Use};
use crate::limits;
use crate::units::Digest;

/// A model in which no two constants say the same, and what that saved.
#[derive(Debug)]
pub struct Shared {
    pub model: Model,
    /// Constants that are held no more: name, and the name of the one that is read instead.
    pub instead: BTreeMap<String, String>,
    /// Bytes of their elements.
    pub bytes: u64,
}

/// The model with every constant of the main graph that has the type, shape and bytes of another one read
/// from that one instead. The network computes what it computed, to the last bit: what its nodes read are the
/// same numbers.
///
/// Left alone are constants below [`limits::SHARED_BYTES`], those that a caller sees (outputs, inputs with a
/// default), those that a control-flow body reads by name, those with a quantisation annotation, and those
/// that carry documentation or metadata of their own.
///
/// # Errors
/// Where a constant's external data is missing.
pub fn share_equal(model: &Model) -> Result<Shared, OnnxError> {
    let graph = Graph::new(model);
    let inputs: BTreeSet<&str> =
        model.graph().input.iter().filter_map(|input| input.name.as_deref()).collect();
    let annotations = model.graph().quantization_annotation.iter();
    let annotated: BTreeSet<&str> = annotations.filter_map(|a| a.tensor_name.as_deref()).collect();
    let plain = |name: &str, tensor: &TensorProto| {
        let read = |one: &Use| matches!(one, Use::Input { .. });
        !inputs.contains(name)
            && !annotated.contains(name)
            && graph.uses(name).iter().all(read)
            && says_nothing_else(tensor)
    };
    // The first of each: initializers before Constant nodes, which stand in order before whatever reads
    // them, so that the one that is read instead is always there already.
    let mut found: BTreeMap<_, Vec<(Option<NodeId>, &str)>> = BTreeMap::new();
    for (name, weight) in graph.weights() {
        let (Some(dims), Some(bytes)) = (graph.weight_dims(name), graph.weight_bytes(name)?) else {
            continue;
        };
        if bytes.len() >= limits::SHARED_BYTES && plain(name, weight.tensor) {
            let same = (weight.tensor.data_type, dims, Digest::of(&bytes));
            found.entry(same).or_default().push((weight.node, name));
        }
    }
    let mut patch = Patch::default();
    let mut bytes = 0;
    for mut same in found.into_values() {
        same.sort_unstable();
        let Some(((_, first), others)) = same.split_first() else { continue };
        for (_, other) in others {
            bytes += graph.weight_bytes(other)?.map_or(0, |bytes| bytes.len() as u64);
            patch.replace.insert((*other).to_owned(), (*first).to_owned());
        }
    }
    let model = if patch.is_empty() { model.clone() } else { patch.apply(model)? };
    Ok(Shared { model, instead: patch.replace, bytes })
}

/// Whether a tensor is its elements and a name and nothing more.
fn says_nothing_else(tensor: &TensorProto) -> bool {
    let mut rest = tensor.clone();
    rest.name = None;
    rest.data_type = None;
    rest.data_location = None;
    rest.raw_data = None;
    rest.dims.clear();
    rest.external_data.clear();
    rest.float_data.clear();
    rest.double_data.clear();
    rest.int32_data.clear();
    rest.int64_data.clear();
    rest.uint64_data.clear();
    rest == TensorProto::default()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::onnx::proto::{GraphProto, ModelProto, NodeProto, ValueInfoProto};
    use crate::onnx::{DType, tensor};

    fn node(op: &str, input: &[&str], output: &str) -> NodeProto {
        NodeProto {
            op_type: Some(op.to_owned()),
            input: input.iter().map(|name| (*name).to_owned()).collect(),
            output: vec![output.to_owned()],
            ..Default::default()
        }
    }

    fn model(weights: Vec<TensorProto>, output: &str) -> Model {
        let nodes = weights.iter().enumerate().map(|(i, weight)| {
            let weight = weight.name.as_deref().unwrap_or_default();
            node("MatMul", &[&format!("x{i}"), weight], &format!("x{}", i + 1))
        });
        let value =
            |name: &str| ValueInfoProto { name: Some(name.to_owned()), ..Default::default() };
        let graph = GraphProto {
            node: nodes.collect(),
            input: vec![value("x0")],
            output: vec![value(output)],
            initializer: weights,
            ..Default::default()
        };
        Model::from_proto(ModelProto { graph: graph.into(), ..Default::default() }).unwrap()
    }

    fn weight(name: &str, first: u8, side: usize) -> TensorProto {
        let mut bytes = vec![1u8; side * side * 4];
        bytes[0] = first;
        tensor(name, DType::F32, &[side, side], Bytes::from(bytes))
    }

    #[test]
    fn equal_constants_are_held_once_and_all_else_stays() {
        let weights = vec![weight("a", 1, 32), weight("b", 2, 32), weight("c", 1, 32)];
        let found = share_equal(&model(weights, "x3")).unwrap();
        assert_eq!(found.instead, BTreeMap::from([("c".to_owned(), "a".to_owned())]));
        assert_eq!(found.bytes, 32 * 32 * 4);
        let names = |model: &Model| -> Vec<String> {
            model.graph().initializer.iter().filter_map(|t| t.name.clone()).collect()
        };
        assert_eq!(names(&found.model), ["a", "b"]);
        let inputs: Vec<&str> = found.model.graph().node.iter().map(|n| &*n.input[1]).collect();
        assert_eq!(inputs, ["a", "b", "a"]);
        let again = share_equal(&found.model).unwrap();
        assert_eq!((again.bytes, again.instead.len()), (0, 0));
        assert_eq!(again.model.encode_inline().unwrap(), found.model.encode_inline().unwrap());
    }

    #[test]
    fn what_differs_is_small_or_is_seen_from_outside_is_left_alone() {
        let mut other_type = weight("b", 1, 32);
        other_type.data_type = Some(DType::I32 as i32);
        let mut other_shape = weight("b", 1, 32);
        other_shape.dims = vec![16, 64];
        let mut documented = weight("b", 1, 32);
        documented.doc_string = Some("the decoder's".to_owned());
        for other in [other_type, other_shape, documented] {
            let found = share_equal(&model(vec![weight("a", 1, 32), other], "x2")).unwrap();
            assert_eq!(found.bytes, 0);
        }
        let small = share_equal(&model(vec![weight("a", 1, 8), weight("b", 1, 8)], "x2")).unwrap();
        assert_eq!(small.bytes, 0);
        let seen = share_equal(&model(vec![weight("a", 1, 32), weight("b", 1, 32)], "b")).unwrap();
        assert_eq!(seen.bytes, 0);
    }
}
