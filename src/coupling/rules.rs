//! One rule an operator: which atoms of its inputs, constants and outputs must go together, and which may
//! not go at all. An operator without a rule freezes all that it touches.

use std::collections::BTreeMap;

use super::atoms::{Atoms, Axis};
use super::norms::{Norm, by_node};
use super::sizes::{Size, Sizes};
use super::table::{Rule, rule_of};
use super::types::Reason;
use super::{fused, linear, rearrange, reshape};
use crate::onnx::{Graph, NodeId, Operator, Shapes, operators};

/// What a rule sees of its node.
pub(crate) struct Node<'g> {
    pub graph: &'g Graph<'g>,
    pub id: NodeId,
    pub op: String,
}

impl<'g> Node<'g> {
    pub fn input(&self, number: usize) -> Option<&'g str> {
        self.graph.input(self.id, number)
    }

    pub fn inputs(&self) -> impl Iterator<Item = &'g str> {
        let inputs = self.graph.node(self.id).input.iter();
        inputs.map(String::as_str).filter(|name| !name.is_empty())
    }

    pub fn outputs(&self) -> impl Iterator<Item = &'g str> {
        let outputs = self.graph.node(self.id).output.iter();
        outputs.map(String::as_str).filter(|name| !name.is_empty())
    }

    /// The first output; empty where the node has none.
    pub fn output(&self) -> &'g str {
        self.graph.node(self.id).output.first().map_or("", String::as_str)
    }

    pub fn along(&self) -> Reason {
        Reason::Along { node: self.graph.label(self.id), op: self.op.clone() }
    }

    pub fn rearranged(&self) -> Reason {
        Reason::Rearranged { node: self.graph.label(self.id), op: self.op.clone() }
    }

    /// Whether a function of the model itself goes by the operator's name.
    fn is_local_function(&self) -> bool {
        let node = self.graph.node(self.id);
        let functions = &self.graph.model().proto().functions;
        functions.iter().any(|function| {
            function.name == node.op_type
                && function.domain.as_deref().unwrap_or_default()
                    == node.domain.as_deref().unwrap_or_default()
        })
    }

    pub fn int(&self, name: &str) -> Option<i64> {
        self.graph.attrs(self.id).int(name)
    }

    /// An axis number as people write it (negative counts from the end).
    pub fn axis_of(&self, axis: i64, rank: usize) -> Option<usize> {
        let axis = if axis < 0 { axis + rank as i64 } else { axis };
        usize::try_from(axis).ok().filter(|axis| *axis < rank)
    }

    /// A list that newer operator sets take as input number `input`, older ones as attribute `name`.
    /// `Err` where it is computed.
    pub fn list(&self, input: usize, name: &str) -> Result<Option<Vec<i64>>, ()> {
        match self.input(input) {
            Some(value) => self.graph.ints(value).map(Some).ok_or(()),
            None => Ok(self.graph.attrs(self.id).ints(name).map(<[i64]>::to_vec)),
        }
    }
}

/// Applies the rules of all nodes, and freezes what the caller gives, gets or captures.
pub(super) fn relate(graph: &Graph, shapes: &Shapes, norms: &[Norm], atoms: &mut Atoms) {
    let operators: BTreeMap<NodeId, Operator> =
        operators(graph).into_iter().map(|operator| (operator.node, operator)).collect();
    let sizes = Sizes::new(graph, shapes);
    let norms = by_node(norms);
    for id in 0..graph.nodes().len() {
        let node = Node { graph, id, op: graph.op(id) };
        atoms.begin();
        let unknown = node.inputs().chain(node.outputs()).find(|name| atoms.axes(name).is_none());
        match unknown {
            // Values that no shape is known for hide how the node's other values hang together.
            Some(value) if !is_harmless(&node, value) => {
                let value = value.to_owned();
                freeze_node(&node, atoms, &Reason::NoShape { value, node: graph.label(id) });
            }
            _ => rule(&node, atoms, &sizes, operators.get(&id), norms.get(&id).copied()),
        }
        read_lengths(&node, atoms, &sizes);
        if !node.outputs().any(|value| graph.weight(value).is_some()) {
            atoms.close(node.inputs().chain(node.outputs()), &node.along());
        }
        for captured in graph.captured(id) {
            let reason = Reason::ControlFlow { node: graph.label(id), op: node.op.clone() };
            atoms.freeze_value(captured, &reason);
            freeze_lengths(graph, atoms, &sizes, captured, &node);
        }
    }
    let message = graph.model().graph();
    for value in message.input.iter().filter_map(|input| input.name.as_deref()) {
        if graph.weight(value).is_none() {
            atoms.freeze_value(value, &Reason::GraphInput { value: value.to_owned() });
        }
    }
    for value in message.output.iter().filter_map(|output| output.name.as_deref()) {
        atoms.freeze_value(value, &Reason::GraphOutput { value: value.to_owned() });
        if let Some(id) = graph.producer(value) {
            freeze_lengths(graph, atoms, &sizes, value, &Node { graph, id, op: graph.op(id) });
        }
    }
    atoms.settle_lengths();
}

/// Lengths that a node reads are followed where it hands them on or shapes its output by them. Whoever
/// computes with a length otherwise may do so in a way that a cut would change.
fn read_lengths(node: &Node, atoms: &mut Atoms, sizes: &Sizes) {
    if sizes.hands_on(node.graph, node.id) {
        return;
    }
    for (number, value) in node.graph.node(node.id).input.iter().enumerate() {
        let shapes_by_it =
            matches!((node.op.as_str(), number), ("Reshape" | "Expand", 1) | ("Resize", 3));
        if !shapes_by_it {
            freeze_lengths(node.graph, atoms, sizes, value, node);
        }
    }
}

/// Freezes the axes whose lengths `value` holds.
fn freeze_lengths(graph: &Graph, atoms: &mut Atoms, sizes: &Sizes, value: &str, node: &Node) {
    for size in sizes.of(graph, value).unwrap_or_default() {
        if let Size::Length { value, axis } = size
            && let Some(axis) = atoms.axis(&value, axis)
        {
            atoms.freeze(axis, &Reason::SizeRead { node: graph.label(node.id) });
        }
    }
}

/// Outputs that nobody reads need no shape.
fn is_harmless(node: &Node, value: &str) -> bool {
    node.outputs().any(|output| output == value) && node.graph.uses(value).is_empty()
}

pub(super) fn freeze_node(node: &Node, atoms: &mut Atoms, reason: &Reason) {
    node.inputs().chain(node.outputs()).for_each(|value| atoms.freeze_value(value, reason));
}

/// `norm` is the normalisation that the node looks along its channels for, if they may go all the same.
fn rule(
    node: &Node,
    atoms: &mut Atoms,
    sizes: &Sizes,
    operator: Option<&Operator>,
    norm: Option<&Norm>,
) {
    if let Some(operator) = operator {
        return linear::linear(node, atoms, operator);
    }
    if node.is_local_function() {
        return unknown(node, atoms);
    }
    let Some(rule) = rule_of(&node.op) else { return unknown(node, atoms) };
    match rule {
        Rule::Nothing => {}
        // With a constant it is an operator, and was dealt with.
        Rule::Linear => unknown(node, atoms),
        Rule::MatMul => linear::matmul(node, atoms),
        Rule::FusedMatMul => linear::fused_matmul(node, atoms),
        Rule::Pass => pass_all(node, atoms),
        Rule::Broadcast => broadcast(node, atoms),
        Rule::BatchNorm => batch_norm(node, atoms),
        Rule::InstanceNorm => {
            batch_norm(node, atoms);
            freeze_from(node, atoms, 2);
        }
        // MaxPool's second output numbers positions across all channels.
        Rule::MaxPool if node.outputs().count() > 1 => freeze_node(node, atoms, &node.along()),
        Rule::MaxPool | Rule::Pool => {
            pass(node, atoms, 0..2);
            freeze_from(node, atoms, 2);
        }
        Rule::Resize => reshape::resize(node, atoms, sizes),
        Rule::Expand => reshape::expand(node, atoms, sizes),
        Rule::Gather => rearrange::gather(node, atoms),
        Rule::Softmax => normalised(node, atoms),
        Rule::Norm if norm.is_some() => fused::norm(node, atoms),
        Rule::Norm => normalised(node, atoms),
        Rule::SkipNorm => fused::skip_norm(node, atoms, norm.is_some()),
        Rule::EmbedNorm => fused::embed_norm(node, atoms, norm.is_some()),
        Rule::Attention => fused::attention(node, atoms),
        Rule::Rotary => fused::rotary(node, atoms),
        Rule::Concat => rearrange::concat(node, atoms),
        Rule::Split => rearrange::split(node, atoms),
        Rule::Slice => rearrange::slice(node, atoms),
        Rule::Pad => rearrange::pad(node, atoms),
        Rule::Reshape => reshape::reshape(node, atoms, sizes),
        Rule::Transpose => rearrange::transpose(node, atoms),
        Rule::Squeeze => rearrange::squeeze(node, atoms),
        Rule::Reduce => rearrange::reduce(node, atoms, norm.is_some()),
        // Who reads the lengths decides what they hold.
        Rule::Shape => free_all(node, atoms),
        Rule::ControlFlow => {
            let reason =
                Reason::ControlFlow { node: node.graph.label(node.id), op: node.op.clone() };
            freeze_node(node, atoms, &reason);
        }
    }
}

fn unknown(node: &Node, atoms: &mut Atoms) {
    let (label, op) = (node.graph.label(node.id), node.op.clone());
    freeze_node(node, atoms, &Reason::UnknownOperator { node: label, op });
}

fn free_all(node: &Node, atoms: &mut Atoms) {
    let axes = node.input(0).and_then(|input| atoms.axes(input)).unwrap_or_default().to_vec();
    axes.into_iter().flatten().for_each(|axis| atoms.free(axis, 0, axis.length));
}

/// Every axis of the first input is the same axis of the first output.
fn pass_all(node: &Node, atoms: &mut Atoms) {
    let rank = atoms.rank(node.output()).unwrap_or(0);
    pass(node, atoms, 0..rank);
    // Further outputs (a dropout's mask) and inputs (a clip's bounds, scalars) hold no channels of
    // their own; where they are tensors they go along.
    for value in node.outputs().skip(1).chain(node.inputs().skip(1)) {
        for axis in 0..rank {
            let (a, b) = (atoms.axis(node.output(), axis), atoms.axis(value, axis));
            atoms.join(a, b, &node.along());
        }
    }
}

fn pass(node: &Node, atoms: &mut Atoms, axes: std::ops::Range<usize>) {
    let Some(input) = node.input(0) else { return };
    for axis in axes {
        let (a, b) = (atoms.axis(input, axis), atoms.axis(node.output(), axis));
        atoms.join(a, b, &node.rearranged());
    }
}

/// Freezes the axes from `first` on of the first input and output.
pub(super) fn freeze_from(node: &Node, atoms: &mut Atoms, first: usize) {
    for value in node.input(0).into_iter().chain([node.output()]) {
        let axes: Vec<Axis> =
            atoms.axes(value).unwrap_or_default().iter().skip(first).copied().flatten().collect();
        axes.into_iter().for_each(|axis| atoms.freeze(axis, &node.along()));
    }
}

/// NumPy broadcasting: axes are aligned at the end; an axis of length one goes with any.
pub(super) fn broadcast(node: &Node, atoms: &mut Atoms) {
    let output = node.output();
    let Some(rank) = atoms.rank(output) else { return };
    for value in node.inputs() {
        let own = atoms.rank(value).unwrap_or(0);
        for axis in 0..own.min(rank) {
            let (a, b) = (atoms.axis(value, own - 1 - axis), atoms.axis(output, rank - 1 - axis));
            atoms.join(a, b, &node.rearranged());
        }
    }
}

/// Scale, shift and statistics are vectors over axis 1.
fn batch_norm(node: &Node, atoms: &mut Atoms) {
    if node.outputs().count() > 1 {
        freeze_node(node, atoms, &node.along());
        return;
    }
    let rank = atoms.rank(node.output()).unwrap_or(0);
    pass(node, atoms, 0..rank);
    for value in node.inputs().skip(1) {
        let (a, b) = (atoms.axis(value, 0), atoms.axis(node.output(), 1));
        atoms.join(a, b, &node.rearranged());
    }
}

/// Softmax, and a LayerNormalization or RMSNormalization that must stay whole: the axes that they normalise are
/// frozen, the others pass.
fn normalised(node: &Node, atoms: &mut Atoms) {
    let rank = atoms.rank(node.output()).unwrap_or(0);
    let axis = node.int("axis").unwrap_or(-1);
    let to_the_end = node.op.ends_with("Normalization");
    let old_softmax = !to_the_end && node.graph.model().opset() < 13;
    let axis = if old_softmax { node.int("axis").unwrap_or(1) } else { axis };
    let first = node.axis_of(axis, rank).unwrap_or(0);
    let last = if to_the_end || old_softmax { rank } else { first + 1 };
    pass(node, atoms, 0..rank);
    let reason = node.along();
    for number in first..last.min(rank) {
        if let Some(axis) = atoms.axis(node.output(), number) {
            atoms.freeze(axis, &reason);
        }
    }
    for value in node.inputs().skip(1).chain(node.outputs().skip(1)) {
        atoms.freeze_value(value, &reason);
    }
}
