//! Constants that sessions of several models can hold together: which ones, and what says that two are the
//! same.

use std::collections::BTreeSet;

use bytes::Bytes;

use super::proto::GraphProto;
use super::walk::subgraphs;
use super::{DType, Graph, Model, OnnxError, Use};
use crate::units::Digest;

/// A constant of a model that need not be its own.
#[derive(Debug, Clone)]
pub struct Constant {
    /// Its name in the graph.
    pub name: String,
    pub dtype: DType,
    /// Its shape.
    pub dims: Vec<usize>,
    /// Little-endian elements.
    pub bytes: Bytes,
    /// BLAKE3 of type, shape and elements: what is equal in this is the same constant, in whatever model.
    pub key: Digest,
}

/// Operators, and which of their inputs may be lent. ONNX Runtime moves transpositions and reshapes through a
/// graph and into constants, which keep their names then (1.32 does it to those that are added, concatenated or
/// dequantised): what is lent by such a name would be the wrong elements. These it leaves as they are, or makes
/// new ones of under new names.
const READERS: [(&str, &[usize]); 8] = [
    ("Conv", &[1]),
    ("ConvTranspose", &[1]),
    ("GRU", &[1, 2]),
    ("Gather", &[0]),
    ("Gemm", &[1]),
    ("LSTM", &[1, 2]),
    ("MatMul", &[0, 1]),
    ("RNN", &[1, 2]),
];

/// The constants of the main graph that a session may be given from outside, in the order of their names.
///
/// Left out are constants below `least` bytes, texts and truth values (whose form in memory is the
/// runtime's own), those that a caller can see or replace (inputs, outputs), those that a control-flow body
/// reads, and those whose name a body uses for a value of its own: the runtime knows a lent constant by its
/// name alone, in the main graph and in every body. And those that are read by anything but the operators of
/// `READERS`.
///
/// # Errors
/// Where a constant's external data is missing.
pub fn constants(model: &Model, least: usize) -> Result<Vec<Constant>, OnnxError> {
    let graph = Graph::new(model);
    let proto = model.graph();
    let mut taken: BTreeSet<&str> =
        proto.input.iter().filter_map(|input| input.name.as_deref()).collect();
    for attribute in graph.nodes().iter().flat_map(|node| &node.attribute) {
        subgraphs(attribute).for_each(|body| own_names(body, &mut taken));
    }
    let read = |one: &Use| match one {
        Use::Input { node, input } => {
            let op = graph.op(*node);
            READERS.iter().any(|(reader, inputs)| *reader == op && inputs.contains(input))
        }
        Use::Captured { .. } | Use::Output => false,
    };
    let mut found = Vec::new();
    for (name, weight) in graph.weights() {
        let dtype = weight.tensor.data_type.and_then(DType::from_onnx);
        let dtype = dtype.filter(|dtype| !matches!(dtype, DType::String | DType::Bool));
        let (Some(dtype), Some(dims)) = (dtype, graph.weight_dims(name)) else { continue };
        if taken.contains(name) || !graph.uses(name).iter().all(read) {
            continue;
        }
        let bytes = model.tensor_bytes(weight.tensor)?;
        if bytes.len() >= least {
            let key = key(dtype, &dims, &bytes);
            found.push(Constant { name: name.to_owned(), dtype, dims, bytes, key });
        }
    }
    Ok(found)
}

fn key(dtype: DType, dims: &[usize], bytes: &[u8]) -> Digest {
    let mut hasher = blake3::Hasher::new_derive_key("blochd constant");
    hasher.update(&(dtype as i32).to_le_bytes());
    hasher.update(&(dims.len() as u64).to_le_bytes());
    for dim in dims {
        hasher.update(&(*dim as u64).to_le_bytes());
    }
    hasher.update(bytes);
    Digest::from_bytes(*hasher.finalize().as_bytes())
}

/// Every name that a control-flow body, or one inside it, gives to a value.
fn own_names<'m>(body: &'m GraphProto, out: &mut BTreeSet<&'m str>) {
    out.extend(body.input.iter().filter_map(|input| input.name.as_deref()));
    out.extend(body.initializer.iter().filter_map(|tensor| tensor.name.as_deref()));
    let sparse = body.sparse_initializer.iter().filter_map(|sparse| sparse.values.as_option());
    out.extend(sparse.filter_map(|values| values.name.as_deref()));
    for node in &body.node {
        out.extend(node.output.iter().map(String::as_str));
        node.attribute.iter().flat_map(subgraphs).for_each(|inner| own_names(inner, out));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::proto::{AttributeProto, ModelProto, NodeProto, TensorProto, ValueInfoProto};
    use crate::onnx::tensor;

    /// Elements of those that are large enough.
    const BIG: usize = 16;

    fn value(name: &str) -> ValueInfoProto {
        ValueInfoProto { name: Some(name.to_owned()), ..Default::default() }
    }

    fn matmul(inputs: [&str; 2], output: &str) -> NodeProto {
        NodeProto {
            op_type: Some("MatMul".to_owned()),
            input: inputs.map(str::to_owned).to_vec(),
            output: vec![output.to_owned()],
            ..Default::default()
        }
    }

    fn weight(name: &str, fill: u8, elements: usize) -> TensorProto {
        tensor(name, DType::F32, &[elements], vec![fill; elements * 4])
    }

    fn graph(weights: Vec<TensorProto>, nodes: Vec<NodeProto>, output: &str) -> GraphProto {
        GraphProto {
            node: nodes,
            input: vec![value("x")],
            output: vec![value(output)],
            initializer: weights,
            ..Default::default()
        }
    }

    fn names(graph: GraphProto) -> Vec<String> {
        let proto = ModelProto { ir_version: Some(8), graph: graph.into(), ..Default::default() };
        let model = Model::from_proto(proto).unwrap();
        constants(&model, BIG * 4).unwrap().into_iter().map(|constant| constant.name).collect()
    }

    #[test]
    fn type_shape_and_every_byte_tell_constants_apart() {
        let bytes = vec![0u8; 64];
        let mut other = bytes.clone();
        other[63] = 1;
        let keys = [
            key(DType::F32, &[16], &bytes),
            key(DType::I32, &[16], &bytes),
            key(DType::F32, &[4, 4], &bytes),
            key(DType::F32, &[16, 1], &bytes),
            key(DType::F32, &[16], &other),
        ];
        assert_eq!(keys.iter().collect::<BTreeSet<_>>().len(), keys.len());
        assert_eq!(keys[0], key(DType::F32, &[16], &bytes.clone()));
    }

    #[test]
    fn small_constants_and_those_that_are_seen_from_outside_are_not_lent() {
        let weights = || vec![weight("w", 1, BIG), weight("small", 2, BIG - 1)];
        let nodes = || vec![matmul(["x", "w"], "y"), matmul(["y", "small"], "z")];
        assert_eq!(names(graph(weights(), nodes(), "z")), ["w"]);
        assert_eq!(names(graph(weights(), nodes(), "w")), [""; 0], "an output");
        let mut replaceable = graph(weights(), nodes(), "z");
        replaceable.input.push(value("w"));
        assert_eq!(names(replaceable), [""; 0], "an input");
    }

    #[test]
    fn what_an_operator_reads_that_the_runtime_moves_transpositions_through_is_not_lent() {
        let weights = vec![weight("w", 1, BIG), weight("v", 2, BIG)];
        let mut sum = matmul(["y", "v"], "z");
        sum.op_type = Some("Add".to_owned());
        let nodes = vec![matmul(["x", "w"], "y"), sum.clone()];
        assert_eq!(names(graph(weights.clone(), nodes, "z")), ["w"]);
        sum.input[1] = "w".to_owned();
        let nodes = vec![matmul(["x", "w"], "y"), sum];
        let alone = vec![weights[0].clone()];
        assert_eq!(names(graph(alone, nodes, "z")), [""; 0], "one reader is enough");
    }

    #[test]
    fn names_that_a_body_uses_are_not_lent() {
        let with_body = |body: GraphProto| {
            let mut branch = matmul(["x", "w"], "y");
            branch.op_type = Some("If".to_owned());
            branch.input = vec!["x".to_owned()];
            branch.attribute.push(AttributeProto {
                name: Some("then_branch".to_owned()),
                g: body.into(),
                ..Default::default()
            });
            let nodes = vec![matmul(["x", "w"], "v"), branch];
            graph(vec![weight("w", 1, BIG), weight("other", 1, BIG)], nodes, "y")
        };
        let mut own = graph(vec![weight("w", 2, BIG)], vec![matmul(["w", "w"], "t")], "t");
        own.input.clear();
        assert_eq!(names(with_body(own)), ["other"], "a weight of its own by that name");
        let mut captured = graph(Vec::new(), vec![matmul(["other", "other"], "t")], "t");
        captured.input.clear();
        assert_eq!(names(with_body(captured)), ["w"], "read by name");
    }
}
