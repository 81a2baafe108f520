//! Residual blocks that could be left out whole.

use std::collections::BTreeSet;

use super::types::{Coupling, GroupId};
use crate::limits;
use crate::onnx::{Graph, NodeId, Operator, Shapes, Use, operators};

/// y = s + branch(x): a block that may be replaced by its shortcut s, which is x or a projection of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// The addition: an Add, or a normalisation that adds its first two inputs before.
    pub add: NodeId,
    /// s: what would be read instead of the sum.
    pub shortcut: String,
    /// The branch's value that is added to it.
    pub end: String,
    /// Whether the addition is the first part of a normalisation, which stays.
    pub norm: bool,
    /// All nodes of the branch, in topological order.
    pub branch: Vec<NodeId>,
    /// The last operator of the branch.
    pub last: NodeId,
    /// Groups that live in the branch only.
    pub groups: Vec<GroupId>,
}

/// The residual blocks: the branch is what lies between x and the addition, and nobody else reads what is
/// inside it. What else it reads (an attention mask) is there without it. x is the shortcut itself, or what
/// one linear operator with a kernel of one place makes the shortcut of.
pub fn blocks(graph: &Graph, coupling: &Coupling, shapes: &Shapes) -> Vec<Block> {
    let linear = operators(graph);
    let adds = (0..graph.nodes().len()).filter_map(|id| Some((id, is_norm(graph, id)?)));
    adds.filter_map(|(add, norm)| {
        let (a, b) = (graph.input(add, 0)?, graph.input(add, 1)?);
        // What the graph returns, or a control-flow body reads by name, cannot go by another name.
        let by_name = |used: &Use| !matches!(used, Use::Input { .. });
        let sum =
            if norm { graph.node(add).output.get(SUM) } else { graph.node(add).output.first() };
        if sum.is_some_and(|sum| graph.uses(sum).iter().any(by_name)) {
            return None;
        }
        let same = shapes.get(a)? == shapes.get(b)?;
        let pairs = if same { [(a, b), (b, a)] } else { return None };
        let identity = pairs.iter().find_map(|(shortcut, end)| {
            let starts = std::iter::once(*shortcut).chain(normed(graph, shortcut));
            let mut branches = starts.map(|start| branch(graph, start, end, add));
            Some((*shortcut, *end, branches.find_map(|found| found)?))
        });
        let projected = || {
            pairs.iter().find_map(|(shortcut, end)| {
                let from = projected(graph, &linear, shortcut)?;
                let branch = branch(graph, from, end, add)?;
                // What makes the projection stays.
                let apart = graph.producer(shortcut).is_none_or(|node| !branch.contains(&node));
                apart.then_some((*shortcut, *end, branch))
            })
        };
        let (shortcut, end, branch) = identity.or_else(projected)?;
        let is_linear = |node: &&NodeId| linear.iter().any(|operator| operator.node == **node);
        let last = *branch.iter().rev().find(is_linear)?;
        let groups = inside(graph, coupling, &branch);
        let branch = branch.into_iter().collect();
        let (shortcut, end) = (shortcut.to_owned(), end.to_owned());
        Some(Block { add, shortcut, end, norm, branch, last, groups })
    })
    .collect()
}

/// The output of a normalisation after an addition that is the sum itself.
pub const SUM: usize = 3;

/// Whether an addition is the first part of a normalisation; `None` where a node adds nothing, or says more of
/// the sum than can be said without it.
fn is_norm(graph: &Graph, node: NodeId) -> Option<bool> {
    match graph.op(node).as_str() {
        "Add" => Some(false),
        "com.microsoft.SkipLayerNormalization"
        | "com.microsoft.SkipSimplifiedLayerNormalization" => {
            let outputs = &graph.node(node).output;
            let statistics = outputs.iter().take(SUM).skip(1);
            let unread = statistics.into_iter().all(|value| graph.uses(value).is_empty());
            (unread && graph.input(node, 2).is_some()).then_some(true)
        }
        _ => None,
    }
}

/// The normalisation of a sum, where one node writes both.
fn normed<'g>(graph: &Graph<'g>, sum: &str) -> Option<&'g str> {
    let node = graph.producer(sum).filter(|node| is_norm(graph, *node) == Some(true))?;
    let outputs = &graph.node(node).output;
    let output = outputs.first().filter(|_| outputs.get(SUM).is_some_and(|found| found == sum));
    output.map(String::as_str).filter(|output| !output.is_empty())
}

/// What one linear operator with a kernel of one place makes `shortcut` of; a bias or a normalisation with
/// fixed statistics may stand behind it.
fn projected<'g>(graph: &Graph<'g>, linear: &[Operator], shortcut: &str) -> Option<&'g str> {
    let mut value = shortcut;
    loop {
        let node = graph.producer(value)?;
        if let Some(operator) = linear.iter().find(|operator| operator.node == node) {
            let one_place = operator.kernel.iter().all(|side| *side == 1) && operator.group() == 1;
            return graph.input(node, 0).filter(|_| one_place);
        }
        let constant =
            |input: usize| graph.input(node, input).is_some_and(|v| graph.weight(v).is_some());
        value = match graph.op(node).as_str() {
            "BatchNormalization" | "Identity" => graph.input(node, 0)?,
            "Add" if constant(1) => graph.input(node, 0)?,
            "Add" if constant(0) => graph.input(node, 1)?,
            _ => return None,
        };
    }
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
