//! What must hold of a graph before any other room sees it.

use std::collections::{BTreeMap, BTreeSet};

use super::proto::tensor_proto::DataLocation;
use super::proto::{GraphProto, ModelProto, NodeProto, TensorProto};
use super::walk::{subgraphs, visit_tensors};
use super::{DType, OnnxError};
use crate::limits;

/// Checks counts, tensor sizes, single assignment and topological order.
pub(super) fn check_model(proto: &ModelProto) -> Result<(), OnnxError> {
    if proto.graph.is_unset() {
        return Err(OnnxError::NoGraph);
    }
    let mut problem = None;
    visit_tensors(proto, &mut |tensor| {
        if let Err(error) = check_inline(tensor) {
            problem.get_or_insert(error);
        }
    });
    if let Some(error) = problem {
        return Err(error);
    }
    check_graph(&proto.graph, &BTreeSet::new(), 0)
}

/// Most control-flow bodies inside each other. Exporters reach three; recursion needs an end.
const SUBGRAPH_DEPTH: usize = 32;

fn check_graph<'m>(
    graph: &'m GraphProto,
    outer: &BTreeSet<&'m str>,
    depth: usize,
) -> Result<(), OnnxError> {
    let too_large = |what: &str, size: usize, limit: usize| OnnxError::TooLarge {
        what: what.to_owned(),
        size: size as u64,
        limit: limit as u64,
    };
    if graph.node.len() > limits::GRAPH_NODES {
        return Err(too_large("the number of nodes", graph.node.len(), limits::GRAPH_NODES));
    }
    if depth > SUBGRAPH_DEPTH {
        return Err(too_large("the nesting of control flow", depth, SUBGRAPH_DEPTH));
    }
    let mut known = outer.clone();
    known.extend(graph.input.iter().filter_map(|value| value.name.as_deref()));
    known.extend(graph.initializer.iter().filter_map(|tensor| tensor.name.as_deref()));
    let sparse = graph.sparse_initializer.iter();
    known.extend(sparse.filter_map(|sparse| sparse.values.as_option()?.name.as_deref()));
    let mut writers: BTreeMap<&str, &NodeProto> = BTreeMap::new();
    for node in &graph.node {
        let unknown = |name: &&String| !name.is_empty() && !known.contains(name.as_str());
        if let Some(value) = node.input.iter().find(unknown) {
            return Err(OnnxError::Unordered {
                node: label(node),
                op: node.op_type.clone().unwrap_or_default(),
                value: value.clone(),
            });
        }
        for body in node.attribute.iter().flat_map(subgraphs) {
            check_graph(body, &known, depth + 1)?;
        }
        for value in node.output.iter().filter(|value| !value.is_empty()) {
            if let Some(first) = writers.insert(value, node) {
                let (value, first) = (value.clone(), label(first));
                return Err(OnnxError::WrittenTwice { value, first, second: label(node) });
            }
            known.insert(value);
        }
    }
    match graph.output.iter().filter_map(|o| o.name.as_deref()).find(|n| !known.contains(n)) {
        None => Ok(()),
        Some(value) => Err(OnnxError::Unordered {
            node: graph.name.clone().unwrap_or_default(),
            op: "graph output".to_owned(),
            value: value.to_owned(),
        }),
    }
}

/// A node's name, or its first output where the exporter gave it no name.
pub(super) fn label(node: &NodeProto) -> String {
    let name = node.name.as_deref().filter(|name| !name.is_empty());
    name.or(node.output.first().map(String::as_str)).unwrap_or_default().to_owned()
}

fn check_inline(tensor: &TensorProto) -> Result<(), OnnxError> {
    element_count(tensor)?;
    if tensor.data_location == Some(DataLocation::EXTERNAL) {
        return Ok(());
    }
    // Data that is not there must be found here: whoever trusts the shape would allocate for it.
    check_size(tensor, inline_size(tensor))
}

/// Bytes of the elements that stand in the message, raw or in the field of their type.
fn inline_size(tensor: &TensorProto) -> u64 {
    if let Some(raw) = &tensor.raw_data {
        return raw.len() as u64;
    }
    let dtype = tensor.data_type.and_then(DType::from_onnx);
    let count = match dtype {
        Some(DType::F32) => tensor.float_data.len(),
        Some(DType::F64) => tensor.double_data.len(),
        Some(DType::I64) => tensor.int64_data.len(),
        Some(DType::U32 | DType::U64) => tensor.uint64_data.len(),
        Some(_) | None => tensor.int32_data.len(),
    };
    (count * dtype.and_then(DType::size).unwrap_or_default()) as u64
}

/// Product of the dimensions.
pub(super) fn element_count(tensor: &TensorProto) -> Result<u64, OnnxError> {
    let product = tensor.dims.iter().try_fold(1u64, |product, dim| {
        product.checked_mul(u64::try_from(*dim).ok()?).filter(|count| *count < 1 << 48)
    });
    product.ok_or_else(|| OnnxError::TensorShape {
        tensor: tensor.name.clone().unwrap_or_default(),
        shape: tensor.dims.clone(),
    })
}

/// Checks that `found` bytes are what the tensor's type and shape need. Types of which the program does
/// not know the size (4-bit and 8-bit floats) are left to ONNX Runtime.
pub(super) fn check_size(tensor: &TensorProto, found: u64) -> Result<(), OnnxError> {
    let count = element_count(tensor)?;
    let size = tensor.data_type.and_then(DType::from_onnx).and_then(DType::size);
    match size.map(|size| count * size as u64) {
        Some(expected) if expected != found => Err(OnnxError::TensorSize {
            tensor: tensor.name.clone().unwrap_or_default(),
            shape: tensor.dims.clone(),
            expected,
            found,
        }),
        _ => Ok(()),
    }
}
