//! Residual blocks that could be left out whole.

use std::collections::BTreeSet;

use super::types::{Coupling, GroupId};
use crate::limits;
use crate::onnx::{Graph, NodeId, Shapes, Use, operators};

/// y = s + branch(s): a block that may be replaced by its shortcut s.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// The addition.
    pub add: NodeId,
    /// s: what would be read instead of the sum.
    pub shortcut: String,
    /// All nodes of the branch, in topological order.
    pub branch: Vec<NodeId>,
    /// The last operator of the branch.
    pub last: NodeId,
    /// Groups that live in the branch only.
    pub groups: Vec<GroupId>,
}

/// The residual blocks with an identity shortcut: the branch reads s and constants only, and nobody else
/// reads what is inside it.
pub fn blocks(graph: &Graph, coupling: &Coupling, shapes: &Shapes) -> Vec<Block> {
    let linear: BTreeSet<NodeId> = operators(graph).iter().map(|op| op.node).collect();
    let adds = (0..graph.nodes().len()).filter(|id| graph.op(*id) == "Add");
    adds.filter_map(|add| {
        let (a, b) = (graph.input(add, 0)?, graph.input(add, 1)?);
        // What the graph returns, or a control-flow body reads by name, cannot go by another name.
        let by_name = |used: &Use| !matches!(used, Use::Input { .. });
        if graph.uses(graph.node(add).output.first()?).iter().any(by_name) {
            return None;
        }
        let same = shapes.get(a)? == shapes.get(b)?;
        let pairs = if same { [(a, b), (b, a)] } else { return None };
        let found = pairs
            .into_iter()
            .find_map(|(shortcut, end)| Some((shortcut, branch(graph, shortcut, end, add)?)));
        let (shortcut, branch) = found?;
        let last = *branch.iter().rev().find(|node| linear.contains(node))?;
        let groups = inside(graph, coupling, &branch);
        let branch = branch.into_iter().collect();
        Some(Block { add, shortcut: shortcut.to_owned(), branch, last, groups })
    })
    .collect()
}

/// The nodes between `shortcut` and `end`, if they read nothing else and nobody outside reads them.
fn branch(graph: &Graph, shortcut: &str, end: &str, add: NodeId) -> Option<BTreeSet<NodeId>> {
    let mut nodes = BTreeSet::new();
    let mut reads_shortcut = false;
    let mut open = vec![end];
    while let Some(value) = open.pop() {
        if value == shortcut {
            reads_shortcut = true;
        } else if graph.weight(value).is_none() {
            let node = graph.producer(value)?;
            if nodes.insert(node) {
                let inputs = graph.node(node).input.iter().map(String::as_str);
                open.extend(inputs.filter(|name| !name.is_empty()));
                if !graph.captured(node).is_empty() || nodes.len() > limits::BLOCK_NODES {
                    return None;
                }
            }
        }
    }
    let inside = |used: &Use| match used {
        Use::Input { node, .. } => nodes.contains(node) || *node == add,
        Use::Captured { .. } | Use::Output => false,
    };
    let outputs = nodes.iter().flat_map(|node| &graph.node(*node).output);
    let closed = outputs.into_iter().all(|value| graph.uses(value).iter().all(inside));
    (reads_shortcut && closed).then_some(nodes)
}

/// Groups all of whose computed values are written in the branch.
fn inside(graph: &Graph, coupling: &Coupling, branch: &BTreeSet<NodeId>) -> Vec<GroupId> {
    let own = |value: &str| graph.producer(value).is_some_and(|node| branch.contains(&node));
    let groups = coupling.groups.iter().filter(|group| {
        group.places.iter().filter(|place| !place.constant).all(|place| own(&place.value))
    });
    groups.map(|group| group.id).collect()
}
