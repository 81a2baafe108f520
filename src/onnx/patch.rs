//! Edits. A patch says what changes; applying it gives a new model and leaves the old one as it was.

use std::collections::{BTreeMap, BTreeSet};

use super::proto::attribute_proto::AttributeType;
use super::proto::tensor_shape_proto::{Dimension, dimension::Value as Size};
use super::proto::type_proto::Value as Kind;
use super::proto::{AttributeProto, GraphProto, NodeProto, TensorProto, ValueInfoProto};
use super::walk::subgraphs;
use super::{Graph, Model, NodeId, OnnxError};

/// A set of edits of a model's main graph. Node ids are those of the model that it is applied to.
#[derive(Debug, Clone, Default)]
pub struct Patch {
    /// New contents of constants (initializers or Constant nodes), by value name. A name that the graph
    /// does not have becomes a new initializer.
    pub constants: BTreeMap<String, TensorProto>,
    /// Attributes to set; an attribute of the same name is replaced.
    pub attributes: BTreeMap<NodeId, Vec<AttributeProto>>,
    /// Attributes to remove, by name.
    pub remove_attributes: BTreeMap<NodeId, BTreeSet<String>>,
    /// New sources of single node inputs: (node, input number) → value name. Inputs may be appended.
    pub inputs: BTreeMap<(NodeId, usize), String>,
    /// New names of single node outputs: (node, output number) → value name. The old name is free for a new
    /// node.
    pub outputs: BTreeMap<(NodeId, usize), String>,
    /// Values that are read elsewhere instead: every use of the key, graph outputs included, reads the
    /// value. The nodes that only served the key die.
    pub replace: BTreeMap<String, String>,
    /// Nodes that another one takes the place of.
    pub nodes: BTreeMap<NodeId, NodeProto>,
    /// New nodes, each to stand before the node with the given id.
    pub insert: Vec<(NodeId, NodeProto)>,
    /// Values whose recorded types (`value_info`) no longer hold.
    pub forget: BTreeSet<String>,
}

impl Patch {
    /// Whether nothing would change.
    pub fn is_empty(&self) -> bool {
        self.constants.is_empty()
            && self.attributes.is_empty()
            && self.remove_attributes.is_empty()
            && self.inputs.is_empty()
            && self.outputs.is_empty()
            && self.replace.is_empty()
            && self.nodes.is_empty()
            && self.insert.is_empty()
    }

    /// The model with the edits made. Nodes and initializers that were used before and are used no more
    /// are removed; all that the patch does not name stays bit-identical.
    ///
    /// # Errors
    /// Where an edit names a node that does not exist or the edited graph is not a valid one.
    pub fn apply(&self, model: &Model) -> Result<Model, OnnxError> {
        let view = Graph::new(model);
        let mut proto = model.proto().clone();
        let graph = proto.graph.get_or_insert_default();
        let alive_before = alive(graph);
        let known_weights: BTreeMap<&str, Option<NodeId>> =
            view.weights().map(|(name, weight)| (name, weight.node)).collect();
        for (name, tensor) in &self.constants {
            set_constant(graph, &known_weights, name, tensor)?;
        }
        for (id, node) in &self.nodes {
            node_mut(graph, *id)?.clone_from(node);
        }
        for (node, attributes) in &self.attributes {
            let node = node_mut(graph, *node)?;
            for new in attributes {
                node.attribute.retain(|old| old.name != new.name);
                node.attribute.push(new.clone());
            }
        }
        for (node, names) in &self.remove_attributes {
            let attributes = &mut node_mut(graph, *node)?.attribute;
            attributes.retain(|a| !a.name.as_ref().is_some_and(|name| names.contains(name)));
        }
        for ((node, input), value) in &self.inputs {
            let inputs = &mut node_mut(graph, *node)?.input;
            if inputs.len() <= *input {
                inputs.resize(*input + 1, String::new());
            }
            inputs[*input].clone_from(value);
        }
        for ((node, output), value) in &self.outputs {
            let slot = node_mut(graph, *node)?.output.get_mut(*output);
            let absent = || OnnxError::Edit(format!("node {node} has no output {output}"));
            slot.ok_or_else(absent)?.clone_from(value);
        }
        self.redirect(graph)?;
        // From the back, so that earlier positions stay valid.
        let mut inserts: Vec<_> = self.insert.iter().enumerate().collect();
        inserts.sort_by_key(|(order, (before, _))| std::cmp::Reverse((*before, *order)));
        for (_, (before, node)) in inserts {
            if *before > graph.node.len() {
                return Err(OnnxError::Edit(format!("there is no node {before} to insert before")));
            }
            graph.node.insert(*before, node.clone());
        }
        sweep(graph, &alive_before);
        graph
            .value_info
            .retain(|info| info.name.as_deref().is_none_or(|name| !self.forget.contains(name)));
        model.with_proto(proto)
    }

    fn redirect(&self, graph: &mut GraphProto) -> Result<(), OnnxError> {
        for node in &mut graph.node {
            for input in &mut node.input {
                if let Some(new) = self.replace.get(input) {
                    input.clone_from(new);
                }
            }
        }
        for output in graph.output.iter().filter_map(|o| o.name.as_deref()) {
            if self.replace.contains_key(output) {
                return Err(OnnxError::Edit(format!(
                    "value {output:?} is a graph output and cannot be replaced under its name"
                )));
            }
        }
        Ok(())
    }
}

fn node_mut(graph: &mut GraphProto, id: NodeId) -> Result<&mut NodeProto, OnnxError> {
    let count = graph.node.len();
    graph
        .node
        .get_mut(id)
        .ok_or_else(|| OnnxError::Edit(format!("there is no node {id}: the graph has {count}")))
}

fn set_constant(
    graph: &mut GraphProto,
    known: &BTreeMap<&str, Option<NodeId>>,
    name: &str,
    tensor: &TensorProto,
) -> Result<(), OnnxError> {
    let slot = match known.get(name) {
        Some(Some(node)) => {
            let attributes = &mut node_mut(graph, *node)?.attribute;
            let value = attributes.iter_mut().find(|a| a.name.as_deref() == Some("value"));
            value.and_then(|attribute| attribute.t.as_option_mut())
        }
        Some(None) => {
            graph.initializer.iter_mut().find(|tensor| tensor.name.as_deref() == Some(name))
        }
        None => {
            let mut tensor = tensor.clone();
            tensor.name = Some(name.to_owned());
            graph.initializer.push(tensor);
            return Ok(());
        }
    };
    let slot = slot.ok_or_else(|| OnnxError::Edit(format!("constant {name:?} is not there")))?;
    let reshaped = slot.dims != tensor.dims;
    // The message's own name, documentation, metadata and unknown fields stay.
    slot.dims.clone_from(&tensor.dims);
    slot.data_type = tensor.data_type;
    slot.raw_data.clone_from(&tensor.raw_data);
    slot.external_data.clone_from(&tensor.external_data);
    slot.data_location = tensor.data_location;
    slot.float_data.clone_from(&tensor.float_data);
    slot.int32_data.clone_from(&tensor.int32_data);
    slot.int64_data.clone_from(&tensor.int64_data);
    slot.double_data.clone_from(&tensor.double_data);
    slot.uint64_data.clone_from(&tensor.uint64_data);
    slot.string_data.clone_from(&tensor.string_data);
    if reshaped {
        redeclare(graph, name, tensor);
    }
    Ok(())
}

/// Before IR version 4 every initializer is listed as a graph input too, with its shape.
fn redeclare(graph: &mut GraphProto, name: &str, tensor: &TensorProto) {
    let listed = graph.input.iter_mut().find(|input| input.name.as_deref() == Some(name));
    let declared = listed.and_then(|input| input.r#type.as_option_mut());
    if let Some(Kind::TensorType(declared)) = declared.and_then(|found| found.value.as_mut()) {
        let size =
            |dim: &i64| Dimension { value: Some(Size::DimValue(*dim)), ..Default::default() };
        declared.shape.get_or_insert_default().dim = tensor.dims.iter().map(size).collect();
    }
}

/// Names of all values that lead to a graph output.
fn alive(graph: &GraphProto) -> BTreeSet<String> {
    let mut alive: BTreeSet<String> =
        graph.output.iter().filter_map(|output| output.name.clone()).collect();
    for node in graph.node.iter().rev() {
        if node.output.iter().any(|value| alive.contains(value)) {
            alive.extend(node.input.iter().filter(|value| !value.is_empty()).cloned());
            for body in node.attribute.iter().flat_map(subgraphs) {
                names_read(body, &mut alive);
            }
        }
    }
    alive
}

/// Every name that a control-flow body mentions: an over-estimate of what it captures.
fn names_read(body: &GraphProto, out: &mut BTreeSet<String>) {
    for node in &body.node {
        out.extend(node.input.iter().filter(|value| !value.is_empty()).cloned());
        node.attribute.iter().flat_map(subgraphs).for_each(|inner| names_read(inner, out));
    }
    out.extend(body.output.iter().filter_map(|output| output.name.clone()));
}

/// Removes what the edit made dead; what was dead before stays as it was.
fn sweep(graph: &mut GraphProto, alive_before: &BTreeSet<String>) {
    let alive_now = alive(graph);
    let died = |name: &String| alive_before.contains(name) && !alive_now.contains(name);
    graph.node.retain(|node| {
        let outputs = || node.output.iter().filter(|value| !value.is_empty());
        !(outputs().any(died) && outputs().all(|name| !alive_now.contains(name)))
    });
    // Before IR version 4 an initializer is listed as an input too: without it callers would have to
    // give the input.
    let listed =
        graph.initializer.iter().filter_map(|tensor| tensor.name.clone()).filter(|n| died(n));
    let listed: BTreeSet<String> = listed.collect();
    graph.input.retain(|input| !input.name.as_ref().is_some_and(|name| listed.contains(name)));
    graph.initializer.retain(|tensor| !tensor.name.as_ref().is_some_and(died));
    graph.value_info.retain(|info| !info.name.as_ref().is_some_and(died));
}

/// An attribute that holds a list of integers.
pub fn attr_ints(name: &str, values: &[i64]) -> AttributeProto {
    AttributeProto {
        name: Some(name.to_owned()),
        r#type: Some(AttributeType::INTS),
        ints: values.to_vec(),
        ..Default::default()
    }
}

/// An attribute that holds one integer.
pub fn attr_int(name: &str, value: i64) -> AttributeProto {
    AttributeProto {
        name: Some(name.to_owned()),
        r#type: Some(AttributeType::INT),
        i: Some(value),
        ..Default::default()
    }
}

/// An attribute that holds one real number.
pub fn attr_float(name: &str, value: f32) -> AttributeProto {
    AttributeProto {
        name: Some(name.to_owned()),
        r#type: Some(AttributeType::FLOAT),
        f: Some(value),
        ..Default::default()
    }
}

/// The model with `values` as further graph outputs, named only: ONNX Runtime infers their types.
/// Values that are outputs already are not added again.
///
/// # Errors
/// Where a value is not in the graph.
pub fn with_outputs<'a>(
    model: &Model,
    values: impl IntoIterator<Item = &'a str>,
) -> Result<Model, OnnxError> {
    let mut proto = model.proto().clone();
    let graph = proto.graph.get_or_insert_default();
    let mut present: BTreeSet<String> =
        graph.output.iter().filter_map(|o| o.name.clone()).collect();
    for value in values {
        if present.insert(value.to_owned()) {
            graph.output.push(named(value));
        }
    }
    model.with_proto(proto)
}

/// The part of the model between `inputs` and `outputs` as a model of its own: `inputs` become graph
/// inputs (with the given type information, whose names they carry), `outputs` the graph outputs, and only
/// what lies between them stays.
///
/// # Errors
/// Where an output cannot be computed from the inputs and the weights alone.
pub fn extract(
    model: &Model,
    inputs: Vec<ValueInfoProto>,
    outputs: &[&str],
) -> Result<Model, OnnxError> {
    let mut proto = model.proto().clone();
    let graph = proto.graph.get_or_insert_default();
    let stops: BTreeSet<String> = inputs.iter().filter_map(|input| input.name.clone()).collect();
    let mut wanted: BTreeSet<String> = outputs.iter().map(|name| (*name).to_owned()).collect();
    let mut keep = vec![false; graph.node.len()];
    for (id, node) in graph.node.iter_mut().enumerate().rev() {
        let computes = |value: &String| wanted.contains(value) && !stops.contains(value);
        if !node.output.iter().any(computes) {
            continue;
        }
        // Of a node with one output given and another to be computed nobody reads the given one.
        for value in node.output.iter_mut().filter(|value| stops.contains(*value)) {
            value.push_str(".unread.blochd");
        }
        keep[id] = true;
        wanted.extend(node.input.iter().filter(|value| !value.is_empty()).cloned());
        node.attribute.iter().flat_map(subgraphs).for_each(|body| names_read(body, &mut wanted));
    }
    let mut ids = keep.iter();
    graph.node.retain(|_| ids.next().copied().unwrap_or_default());
    let read = |tensor: &TensorProto| tensor.name.as_ref().is_some_and(|n| wanted.contains(n));
    graph.initializer.retain(read);
    graph.sparse_initializer.retain(|sparse| sparse.values.as_option().is_some_and(read));
    graph.value_info.clear();
    graph.input = inputs;
    graph.output = outputs.iter().map(|name| named(name)).collect();
    model.with_proto(proto)
}

fn named(value: &str) -> ValueInfoProto {
    ValueInfoProto { name: Some(value.to_owned()), ..Default::default() }
}
