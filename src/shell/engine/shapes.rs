//! The type of every value of a graph, asked from ONNX Runtime: a session over a model in which every
//! intermediate is an output that has only a name. Nothing is packed or run, and the weights stay at home:
//! only their shapes matter. Of the optimisations only the basic ones are on: they compute the sizes that the
//! graph reads and puts together (Shape, Gather, Concat → Reshape), which plain inference leaves open.

use std::collections::{BTreeMap, BTreeSet};

use ort::session::builder::{GraphOptimizationLevel, SessionBuilder};
use ort::value::{Outlet, ValueType as OrtType};

use super::making::on_cpu;
use super::session::{failed, guarded, has_shape};
use super::{Runtime, convert};
use crate::limits;
use crate::onnx::proto::tensor_proto::DataLocation;
use crate::onnx::proto::tensor_shape_proto::{Dimension, dimension::Value as Size};
use crate::onnx::proto::type_proto::{Tensor as TensorType, Value as Kind};
use crate::onnx::proto::{
    GraphProto, ModelProto, NodeProto, TensorProto, TensorShapeProto, TypeProto, ValueInfoProto,
};
use crate::onnx::{ExecError, Model, Shapes, ValueType, free_axis};

const DOING: &str = "inferring shapes";

/// The type of every tensor value of the main graph.
///
/// # Errors
/// Where the runtime refuses the model.
pub(super) fn infer(
    runtime: &Runtime,
    model: &Model,
    fixed: &BTreeMap<String, usize>,
) -> Result<Shapes, ExecError> {
    let light = without_weights(model, fixed).and_then(|bytes| {
        let folding = guarded(DOING, || session(runtime, &bytes, GraphOptimizationLevel::Level1));
        let plain = || guarded(DOING, || session(runtime, &bytes, GraphOptimizationLevel::Disable));
        folding.or_else(|_| plain()).ok()
    });
    // Some kernels insist on constant weights; those models are given whole.
    let session = match light {
        Some(session) => session,
        None => {
            let mut proto = model.proto().clone();
            prepare(proto.graph.get_or_insert_default(), fixed);
            let bytes = whole(model, proto)?;
            guarded(DOING, || session(runtime, &bytes, GraphOptimizationLevel::Disable))?
        }
    };
    let initializers: BTreeSet<&str> =
        model.graph().initializer.iter().filter_map(|tensor| tensor.name.as_deref()).collect();
    let inputs = session.inputs().iter().enumerate().map(|(at, outlet)| (at, outlet, true));
    let outputs = session.outputs().iter().enumerate().map(|(at, outlet)| (at, outlet, false));
    let typed =
        inputs.chain(outputs).filter(|(_, outlet, _)| !initializers.contains(outlet.name()));
    Ok(typed
        .filter_map(|(at, outlet, input)| {
            let value = value_type(outlet)?;
            let ranked = !value.shape.is_empty() || has_shape(&session, at, input);
            ranked.then(|| (outlet.name().to_owned(), value))
        })
        .collect())
}

fn value_type(outlet: &Outlet) -> Option<ValueType> {
    let OrtType::Tensor { ty, shape, .. } = outlet.dtype() else { return None };
    let shape = shape.iter().map(|dim| usize::try_from(*dim).ok()).collect();
    Some(ValueType { dtype: convert::dtype(*ty)?, shape })
}

fn session(
    runtime: &Runtime,
    bytes: &[u8],
    level: GraphOptimizationLevel,
) -> ort::Result<ort::session::Session> {
    on_cpu(SessionBuilder::new(runtime.environment())?, runtime)?
        .with_optimization_level(level)?
        .with_prepacking(false)?
        .with_memory_pattern(false)?
        .with_intra_threads(1)?
        .commit_from_memory(bytes)
}

/// The whole model, weights inside, under the edited message.
fn whole(model: &Model, mut proto: ModelProto) -> Result<Vec<u8>, ExecError> {
    let graph = proto.graph.get_or_insert_default();
    for tensor in &mut graph.initializer {
        bring_inside(model, tensor).map_err(|error| failed(DOING, error))?;
    }
    let edited = Model::from_proto(proto).and_then(|edited| edited.encode_inline());
    edited.map_err(|error| failed(DOING, error))
}

/// The model with its large constants as inputs of their type; `None` where that is not possible.
fn without_weights(model: &Model, fixed: &BTreeMap<String, usize>) -> Option<Vec<u8>> {
    let mut proto = model.proto().clone();
    let graph = proto.graph.get_or_insert_default();
    let mut lifted: Vec<ValueInfoProto> = Vec::new();
    graph.initializer.retain(|tensor| {
        let large = is_large(tensor);
        lifted
            .extend(large.then(|| value_info(tensor.name.as_deref().unwrap_or_default(), tensor)));
        !large
    });
    graph.node.retain(|node| match constant(node) {
        Some((name, tensor)) if is_large(tensor) => {
            lifted.push(value_info(name, tensor));
            false
        }
        _ => true,
    });
    let present: BTreeSet<String> =
        graph.input.iter().filter_map(|input| input.name.clone()).collect();
    lifted.retain(|info| info.name.as_ref().is_none_or(|name| !present.contains(name)));
    graph.input.extend(lifted);
    for tensor in &mut graph.initializer {
        bring_inside(model, tensor).ok()?;
    }
    // A constant that is an output of the graph cannot be an input as well.
    let inputs: BTreeSet<&str> = graph.input.iter().filter_map(|i| i.name.as_deref()).collect();
    let clash = |output: &ValueInfoProto| {
        output.name.as_deref().is_some_and(|name| inputs.contains(name) && !present.contains(name))
    };
    if graph.output.iter().any(clash) {
        return None;
    }
    prepare(graph, fixed);
    Model::from_proto(proto).ok()?.encode_inline().ok()
}

/// Gives free dimensions their sizes and makes every intermediate an output.
fn prepare(graph: &mut GraphProto, fixed: &BTreeMap<String, usize>) {
    for input in &mut graph.input {
        let name = input.name.clone().unwrap_or_default();
        let Some(kind) = input.r#type.as_option_mut() else { continue };
        let Some(Kind::TensorType(tensor)) = &mut kind.value else { continue };
        let Some(shape) = tensor.shape.as_option_mut() else { continue };
        for (axis, dim) in shape.dim.iter_mut().enumerate() {
            let Some(symbol) = free_axis(&name, axis, dim) else { continue };
            if let Some(size) = fixed.get(&symbol) {
                dim.value = Some(Size::DimValue(*size as i64));
            }
        }
    }
    let mut present: BTreeSet<String> =
        graph.output.iter().filter_map(|output| output.name.clone()).collect();
    for node in &graph.node {
        for value in node.output.iter().filter(|value| !value.is_empty()) {
            if present.insert(value.clone()) {
                let name = Some(value.clone());
                graph.output.push(ValueInfoProto { name, ..Default::default() });
            }
        }
    }
}

/// The value and tensor of a Constant node.
fn constant(node: &NodeProto) -> Option<(&str, &TensorProto)> {
    let default = matches!(node.domain.as_deref(), None | Some("" | "ai.onnx"));
    if !default || node.op_type.as_deref() != Some("Constant") {
        return None;
    }
    let value = node.attribute.iter().find(|a| a.name.as_deref() == Some("value"))?;
    Some((node.output.first()?, value.t.as_option()?))
}

fn is_large(tensor: &TensorProto) -> bool {
    let count = tensor
        .dims
        .iter()
        .try_fold(1u64, |product, dim| product.checked_mul(u64::try_from(*dim).ok()?));
    count.is_none_or(|count| count > limits::SHAPE_CONSTANT_ELEMENTS)
}

fn value_info(name: &str, tensor: &TensorProto) -> ValueInfoProto {
    let dim = |size: &i64| Dimension { value: Some(Size::DimValue(*size)), ..Default::default() };
    let shape =
        TensorShapeProto { dim: tensor.dims.iter().map(dim).collect(), ..Default::default() };
    let kind =
        TensorType { elem_type: tensor.data_type, shape: Some(shape).into(), ..Default::default() };
    let kind = TypeProto { value: Some(Kind::TensorType(Box::new(kind))), ..Default::default() };
    ValueInfoProto { name: Some(name.to_owned()), r#type: Some(kind).into(), ..Default::default() }
}

/// Moves a tensor's external data into its message.
fn bring_inside(model: &Model, tensor: &mut TensorProto) -> Result<(), crate::onnx::OnnxError> {
    if tensor.data_location != Some(DataLocation::EXTERNAL) {
        return Ok(());
    }
    let bytes = model.tensor_bytes(tensor)?;
    tensor.external_data.clear();
    tensor.data_location = None;
    tensor.raw_data = Some(bytes);
    Ok(())
}
