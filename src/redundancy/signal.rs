//! Which value carries the channels of an operator to its readers.

use std::collections::{BTreeMap, BTreeSet};

use crate::onnx::{Graph, NodeId, Operator, Use};

/// Operators that work on every element (or channel) by itself.
const POINTWISE: [&str; 33] = [
    "Abs",
    "Add",
    "BatchNormalization",
    "Cast",
    "Celu",
    "Clip",
    "Div",
    "Dropout",
    "Elu",
    "Erf",
    "Exp",
    "Gelu",
    "HardSigmoid",
    "HardSwish",
    "Identity",
    "LeakyRelu",
    "Max",
    "Min",
    "Mish",
    "Mul",
    "Neg",
    "PRelu",
    "Pow",
    "Relu",
    "Selu",
    "Sigmoid",
    "Softplus",
    "Softsign",
    "Sqrt",
    "Sub",
    "Swish",
    "Tanh",
    "ThresholdedRelu",
];

/// The value that the readers of `operator` see: its result after normalisation and activation, however the
/// exporter spelled them (a decomposed HardSwish forks and joins). A substitute for a channel is fitted there,
/// since only behind the nonlinearity do its scale and offset fold into the readers.
///
/// Grows the set of values that follow pointwise from the operator's result; where exactly one of them is read
/// from outside the set, that is the one. Else it is the result itself.
pub fn response_value(graph: &Graph, operator: &Operator) -> String {
    let mut inside: BTreeSet<String> = BTreeSet::from([operator.output.clone()]);
    let mut nodes: BTreeSet<NodeId> = BTreeSet::new();
    let mut open: BTreeMap<NodeId, ()> = BTreeMap::new();
    followers(graph, &operator.output, &mut open);
    while let Some((node, ())) = open.pop_first() {
        if nodes.contains(&node) || !is_pointwise(graph, node, &inside) {
            continue;
        }
        nodes.insert(node);
        for output in graph.node(node).output.iter().filter(|name| !name.is_empty()) {
            inside.insert(output.clone());
            followers(graph, output, &mut open);
        }
    }
    let leaves = |used: &Use| match used {
        Use::Input { node, .. } => !nodes.contains(node),
        Use::Captured { .. } | Use::Output => true,
    };
    let exits: Vec<&String> =
        inside.iter().filter(|value| graph.uses(value).iter().any(leaves)).collect();
    match exits[..] {
        [exit] => exit.clone(),
        _ => operator.output.clone(),
    }
}

fn followers(graph: &Graph, value: &str, open: &mut BTreeMap<NodeId, ()>) {
    for used in graph.uses(value) {
        if let Use::Input { node, .. } = used {
            open.insert(*node, ());
        }
    }
}

/// Whether everything that the node reads is a constant or already follows pointwise. A node that waits for
/// another branch is visited again when that branch arrives.
fn is_pointwise(graph: &Graph, node: NodeId, inside: &BTreeSet<String>) -> bool {
    POINTWISE.contains(&graph.op(node).as_str())
        && graph
            .node(node)
            .input
            .iter()
            .filter(|name| !name.is_empty())
            .all(|name| graph.weight(name).is_some() || inside.contains(name))
}
