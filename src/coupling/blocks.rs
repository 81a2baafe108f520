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

/// The residual blocks with an identity shortcut: the branch is what lies between s and the addition, and
/// nobody else reads what is inside it. What else it reads (an attention mask) is there without it.
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

/// The nodes on the ways from `shortcut` to `end`, if nobody outside reads them.
fn branch(graph: &Graph, shortcut: &str, end: &str, add: NodeId) -> Option<BTreeSet<NodeId>> {
    let between = before(graph, shortcut, end)?;
    let mut nodes = BTreeSet::new();
    let mut inside: BTreeSet<&str> = [shortcut].into();
    // In topological order: behind the shortcut stands what reads it or something behind it.
    for node in between {
        let read = &graph.node(node).input;
        let captured = graph.captured(node);
        if captured.iter().any(|name| inside.contains(name)) {
            return None;
        }
        if read.iter().any(|name| inside.contains(name.as_str())) {
            inside.extend(graph.node(node).output.iter().map(String::as_str));
            nodes.insert(node);
        }
    }
    let own = |used: &Use| match used {
        Use::Input { node, .. } => nodes.contains(node) || *node == add,
        Use::Captured { .. } | Use::Output => false,
    };
    let outputs = nodes.iter().flat_map(|node| &graph.node(*node).output);
    let closed = outputs.into_iter().all(|value| graph.uses(value).iter().all(own));
    (inside.contains(end) && end != shortcut && closed).then_some(nodes)
}

/// The nodes that `end` is computed from and that stand behind the one that writes `shortcut`; `None` where
/// they are too many for a block.
fn before(graph: &Graph, shortcut: &str, end: &str) -> Option<BTreeSet<NodeId>> {
    let first = graph.producer(shortcut).map_or(0, |node| node + 1);
    let mut nodes = BTreeSet::new();
    let mut open = vec![end];
    while let Some(value) = open.pop() {
        let Some(node) = graph.producer(value).filter(|node| *node >= first) else { continue };
        if graph.weight(value).is_none() && nodes.insert(node) {
            open.extend(graph.node(node).input.iter().map(String::as_str));
            open.extend(graph.captured(node));
            if nodes.len() > limits::BLOCK_NODES {
                return None;
            }
        }
    }
    Some(nodes)
}

/// Groups all of whose computed values are written in the branch.
fn inside(graph: &Graph, coupling: &Coupling, branch: &BTreeSet<NodeId>) -> Vec<GroupId> {
    let own = |value: &str| graph.producer(value).is_some_and(|node| branch.contains(&node));
    let groups = coupling.groups.iter().filter(|group| {
        group.places.iter().filter(|place| !place.constant).all(|place| own(&place.value))
    });
    groups.map(|group| group.id).collect()
}
