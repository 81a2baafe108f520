//! Visits every tensor and every graph of a message, those inside attributes, control flow and functions
//! included.

use super::proto::{AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto};

/// Calls `visit` for every tensor of the model.
pub(super) fn visit_tensors<'m>(model: &'m ModelProto, visit: &mut dyn FnMut(&'m TensorProto)) {
    tensors_of_graph(&model.graph, visit);
    model.functions.iter().flat_map(|f| &f.node).for_each(|node| tensors_of_node(node, visit));
}

fn tensors_of_graph<'m>(graph: &'m GraphProto, visit: &mut dyn FnMut(&'m TensorProto)) {
    graph.initializer.iter().for_each(&mut *visit);
    for sparse in &graph.sparse_initializer {
        sparse.values.as_option().into_iter().for_each(&mut *visit);
        sparse.indices.as_option().into_iter().for_each(&mut *visit);
    }
    graph.node.iter().for_each(|node| tensors_of_node(node, visit));
}

fn tensors_of_node<'m>(node: &'m NodeProto, visit: &mut dyn FnMut(&'m TensorProto)) {
    for attribute in &node.attribute {
        attribute.t.as_option().into_iter().for_each(&mut *visit);
        attribute.tensors.iter().for_each(&mut *visit);
        subgraphs(attribute).for_each(|graph| tensors_of_graph(graph, visit));
    }
}

/// The graphs that an attribute holds (bodies of If, Loop and Scan).
pub(super) fn subgraphs(attribute: &AttributeProto) -> impl Iterator<Item = &GraphProto> {
    attribute.g.as_option().into_iter().chain(&attribute.graphs)
}

/// Calls `visit` for every tensor of the model that can hold external data, for editing.
pub(super) fn visit_tensors_mut(model: &mut ModelProto, visit: &mut dyn FnMut(&mut TensorProto)) {
    if let Some(graph) = model.graph.as_option_mut() {
        tensors_of_graph_mut(graph, visit);
    }
    for node in model.functions.iter_mut().flat_map(|f| &mut f.node) {
        tensors_of_node_mut(node, visit);
    }
}

fn tensors_of_graph_mut(graph: &mut GraphProto, visit: &mut dyn FnMut(&mut TensorProto)) {
    graph.initializer.iter_mut().for_each(&mut *visit);
    for sparse in &mut graph.sparse_initializer {
        sparse.values.as_option_mut().into_iter().for_each(&mut *visit);
        sparse.indices.as_option_mut().into_iter().for_each(&mut *visit);
    }
    graph.node.iter_mut().for_each(|node| tensors_of_node_mut(node, visit));
}

fn tensors_of_node_mut(node: &mut NodeProto, visit: &mut dyn FnMut(&mut TensorProto)) {
    for attribute in &mut node.attribute {
        attribute.t.as_option_mut().into_iter().for_each(&mut *visit);
        attribute.tensors.iter_mut().for_each(&mut *visit);
        let graphs = attribute.g.as_option_mut().into_iter().chain(&mut attribute.graphs);
        graphs.for_each(|graph| tensors_of_graph_mut(graph, visit));
    }
}
