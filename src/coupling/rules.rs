//! One rule an operator: which atoms of its inputs, constants and outputs must go together, and which may
//! not go at all. An operator without a rule freezes all that it touches.

use super::atoms::{Atoms, Axis};
use super::rearrange;
use super::types::Reason;
use crate::onnx::{Graph, NodeId, OperatorKind, operators};

/// What a rule sees of its node.
pub(super) struct Node<'g> {
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
pub(super) fn relate(graph: &Graph, atoms: &mut Atoms) {
    let linear = operators(graph);
    for id in 0..graph.nodes().len() {
        let node = Node { graph, id, op: graph.op(id) };
        let unknown = node.inputs().chain(node.outputs()).find(|name| atoms.axes(name).is_none());
        match unknown {
            // Values that no shape is known for hide how the node's other values hang together.
            Some(value) if !is_harmless(&node, value) => {
                let value = value.to_owned();
                freeze_node(&node, atoms, &Reason::NoShape { value, node: graph.label(id) });
            }
            _ => rule(&node, atoms, linear.iter().find(|operator| operator.node == id)),
        }
        for captured in graph.captured(id) {
            let reason = Reason::ControlFlow { node: graph.label(id), op: node.op.clone() };
            atoms.freeze_value(captured, &reason);
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
    }
}

/// Outputs that nobody reads need no shape.
fn is_harmless(node: &Node, value: &str) -> bool {
    node.outputs().any(|output| output == value) && node.graph.uses(value).is_empty()
}

fn freeze_node(node: &Node, atoms: &mut Atoms, reason: &Reason) {
    node.inputs().chain(node.outputs()).for_each(|value| atoms.freeze_value(value, reason));
}

fn rule(node: &Node, atoms: &mut Atoms, operator: Option<&crate::onnx::Operator>) {
    if let Some(operator) = operator {
        return linear(node, atoms, operator);
    }
    match node.op.as_str() {
        "Constant" => {}
        "Relu"
        | "LeakyRelu"
        | "Sigmoid"
        | "HardSigmoid"
        | "HardSwish"
        | "Tanh"
        | "Elu"
        | "Selu"
        | "Celu"
        | "Softplus"
        | "Softsign"
        | "Erf"
        | "Exp"
        | "Log"
        | "Sqrt"
        | "Abs"
        | "Neg"
        | "Reciprocal"
        | "Floor"
        | "Ceil"
        | "Round"
        | "Sign"
        | "Identity"
        | "Cast"
        | "Dropout"
        | "Clip"
        | "Gelu"
        | "Mish"
        | "ThresholdedRelu"
        | "Not"
        | "Sin"
        | "Cos"
        | "Swish"
        | "com.microsoft.Gelu"
        | "com.microsoft.QuickGelu" => pass_all(node, atoms),
        "Add" | "Sub" | "Mul" | "Div" | "Pow" | "Max" | "Min" | "Mean" | "Sum" | "Where"
        | "PRelu" | "Equal" | "Greater" | "GreaterOrEqual" | "Less" | "LessOrEqual" | "And"
        | "Or" | "Xor" => {
            broadcast(node, atoms);
        }
        "MatMul" => matmul(node, atoms),
        "BatchNormalization" => batch_norm(node, atoms),
        "InstanceNormalization" => {
            batch_norm(node, atoms);
            freeze_from(node, atoms, 2);
        }
        "GlobalAveragePool" | "GlobalMaxPool" | "MaxPool" | "AveragePool" | "LpPool" => {
            pass(node, atoms, 0..2);
            freeze_from(node, atoms, 2);
        }
        "Resize" | "Upsample" => resize(node, atoms),
        "Softmax" | "LogSoftmax" | "LayerNormalization" => normalised(node, atoms),
        "Concat" => rearrange::concat(node, atoms),
        "Split" => rearrange::split(node, atoms),
        "Slice" => rearrange::slice(node, atoms),
        "Pad" => rearrange::pad(node, atoms),
        "Reshape" | "Flatten" => rearrange::reshape(node, atoms),
        "Transpose" => rearrange::transpose(node, atoms),
        "Squeeze" | "Unsqueeze" => rearrange::squeeze(node, atoms),
        "ReduceMean" | "ReduceSum" | "ReduceMax" | "ReduceMin" | "ReduceL1" | "ReduceL2"
        | "ReduceProd" | "ReduceSumSquare" => rearrange::reduce(node, atoms),
        "Shape" => size_read(node, atoms),
        "If" | "Loop" | "Scan" => {
            let reason =
                Reason::ControlFlow { node: node.graph.label(node.id), op: node.op.clone() };
            freeze_node(node, atoms, &reason);
        }
        _ => {
            let (node_name, op) = (node.graph.label(node.id), node.op.clone());
            freeze_node(node, atoms, &Reason::UnknownOperator { node: node_name, op });
        }
    }
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
fn freeze_from(node: &Node, atoms: &mut Atoms, first: usize) {
    for value in node.input(0).into_iter().chain([node.output()]) {
        let axes: Vec<Axis> =
            atoms.axes(value).unwrap_or_default().iter().skip(first).copied().flatten().collect();
        axes.into_iter().for_each(|axis| atoms.freeze(axis, &node.along()));
    }
}

/// NumPy broadcasting: axes are aligned at the end; an axis of length one goes with any.
fn broadcast(node: &Node, atoms: &mut Atoms) {
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

fn linear(node: &Node, atoms: &mut Atoms, operator: &crate::onnx::Operator) {
    let (input, output, weight) =
        (operator.input.as_str(), node.output(), operator.weight.as_str());
    let own_bias = node.input(2);
    let reason = node.rearranged();
    let rank_in = atoms.rank(input).unwrap_or(0);
    let rank_out = atoms.rank(output).unwrap_or(0);
    let (in_axis, out_axis, weight_in, weight_out) = match operator.kind {
        OperatorKind::Conv { .. } => (1, 1, 1, 0),
        OperatorKind::ConvTranspose { .. } => (1, 1, 0, 1),
        OperatorKind::Gemm { trans_b } => {
            let in_axis = if node.int("transA").unwrap_or(0) != 0 { 0 } else { 1 };
            (in_axis, 1, usize::from(trans_b), usize::from(!trans_b))
        }
        OperatorKind::MatMul => (rank_in.wrapping_sub(1), rank_out.wrapping_sub(1), 0, 1),
    };
    let (x, y) = (atoms.axis(input, in_axis), atoms.axis(output, out_axis));
    if operator.group() > 1 {
        grouped(atoms, operator, (x, y), weight, own_bias, &reason);
        freeze_spatial(node, atoms);
        return;
    }
    let (w_in, w_out) = (atoms.axis(weight, weight_in), atoms.axis(weight, weight_out));
    atoms.join(x, w_in, &reason);
    atoms.join(y, w_out, &reason);
    if let Some(bias) = own_bias {
        let last = atoms.rank(bias).unwrap_or(1).saturating_sub(1);
        let bias = atoms.axis(bias, last);
        atoms.join(y, bias, &reason);
    }
    match operator.kind {
        OperatorKind::Conv { .. } | OperatorKind::ConvTranspose { .. } => {
            freeze_spatial(node, atoms)
        }
        OperatorKind::Gemm { .. } => {
            let (a, b) = (atoms.axis(input, 1 - in_axis), atoms.axis(output, 0));
            atoms.join(a, b, &reason);
        }
        OperatorKind::MatMul => {
            // Leading axes are aligned at the end; the weight has none of its own.
            for back in 1..rank_in.min(rank_out) {
                let a = atoms.axis(input, rank_in - 1 - back);
                let b = atoms.axis(output, rank_out - 1 - back);
                atoms.join(a, b, &reason);
            }
        }
    }
}

/// Channels of one group of a grouped convolution go together, inputs and outputs.
fn grouped(
    atoms: &mut Atoms,
    operator: &crate::onnx::Operator,
    (x, y): (Option<Axis>, Option<Axis>),
    weight: &str,
    bias: Option<&str>,
    reason: &Reason,
) {
    let group = operator.group();
    // The weight's first axis runs over all channels of one side; its second over those of one group.
    let along_outputs = matches!(operator.kind, OperatorKind::Conv { .. });
    let first = atoms.axis(weight, 0);
    let bias = bias.and_then(|bias| atoms.axis(bias, 0));
    let own = if along_outputs { operator.outputs } else { operator.inputs };
    let sides =
        [(x, operator.inputs), (y, operator.outputs), (first, own), (bias, operator.outputs)];
    if sides.iter().flat_map(|(axis, n)| axis.map(|axis| (axis, *n))).any(|(a, n)| a.length != n) {
        sides.iter().filter_map(|side| side.0).for_each(|axis| atoms.freeze(axis, reason));
        return;
    }
    for number in 0..group {
        let mut all = sides.iter().flat_map(|(axis, channels)| {
            let each = channels / group;
            axis.iter().flat_map(move |axis| {
                (number * each..(number + 1) * each).map(move |i| axis.first + i as u32)
            })
        });
        if let Some(head) = all.next() {
            let rest: Vec<u32> = all.collect();
            rest.into_iter().for_each(|atom| atoms.union(head, atom));
        }
    }
}

/// The spatial axes of a convolution's input and output, and its kernel's.
fn freeze_spatial(node: &Node, atoms: &mut Atoms) {
    freeze_from(node, atoms, 2);
    let (x, y) = (node.input(0).and_then(|x| atoms.axis(x, 0)), atoms.axis(node.output(), 0));
    atoms.join(x, y, &node.rearranged());
    if let Some(weight) = node.input(1) {
        let kernel: Vec<Axis> =
            atoms.axes(weight).unwrap_or_default().iter().skip(2).copied().flatten().collect();
        kernel.into_iter().for_each(|axis| atoms.freeze(axis, &node.along()));
    }
}

/// The product of two computed values: rows, columns and the summed axis; leading axes are batches.
fn matmul(node: &Node, atoms: &mut Atoms) {
    let (Some(a), Some(b)) = (node.input(0), node.input(1)) else { return };
    let output = node.output();
    let ranks = (atoms.rank(a), atoms.rank(b), atoms.rank(output));
    let (Some(ra), Some(rb), Some(ro)) = ranks else { return };
    if ra < 2 || rb < 2 {
        freeze_node(node, atoms, &node.rearranged());
        return;
    }
    let reason = node.rearranged();
    let pairs = [
        (atoms.axis(a, ra - 1), atoms.axis(b, rb - 2)),
        (atoms.axis(a, ra - 2), atoms.axis(output, ro - 2)),
        (atoms.axis(b, rb - 1), atoms.axis(output, ro - 1)),
    ];
    pairs.into_iter().for_each(|(x, y)| atoms.join(x, y, &reason));
    for back in 2..ro {
        for (value, rank) in [(a, ra), (b, rb)] {
            if back < rank {
                let pair = (atoms.axis(value, rank - 1 - back), atoms.axis(output, ro - 1 - back));
                atoms.join(pair.0, pair.1, &reason);
            }
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

/// Axes that keep their length pass; sizes given as numbers would name the old channel count.
fn resize(node: &Node, atoms: &mut Atoms) {
    let sizes = node.input(3).is_some();
    if sizes {
        node.input(0).into_iter().chain([node.output()]).for_each(|value| {
            atoms.freeze_value(value, &node.rearranged());
        });
        return;
    }
    pass(node, atoms, 0..2);
    freeze_from(node, atoms, 2);
}

/// Softmax and LayerNormalization: the axes that they normalise stay whole, the others pass.
fn normalised(node: &Node, atoms: &mut Atoms) {
    let rank = atoms.rank(node.output()).unwrap_or(0);
    let axis = node.int("axis").unwrap_or(-1);
    let old_softmax = node.op != "LayerNormalization" && node.graph.model().opset() < 13;
    let axis = if old_softmax { node.int("axis").unwrap_or(1) } else { axis };
    let first = node.axis_of(axis, rank).unwrap_or(0);
    let last = if node.op == "LayerNormalization" || old_softmax { rank } else { first + 1 };
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

/// The sizes of a value are read. Harmless for the axes whose sizes nobody picks out.
fn size_read(node: &Node, atoms: &mut Atoms) {
    let Some(input) = node.input(0) else { return };
    let rank = atoms.rank(input).unwrap_or(0);
    let plain = node.int("start").is_none() && node.int("end").is_none();
    let picked = plain.then(|| picked_axes(node, rank)).flatten();
    let reason = Reason::SizeRead { node: node.graph.label(node.id) };
    for number in 0..rank {
        let harmless = picked.as_ref().is_some_and(|picked| !picked.contains(&number));
        if let Some(axis) = atoms.axis(input, number).filter(|_| !harmless) {
            atoms.freeze(axis, &reason);
        }
    }
}

/// The axes whose sizes are picked out of a Shape's result by Gather or Slice; `None` where it is used in
/// another way.
fn picked_axes(node: &Node, rank: usize) -> Option<Vec<usize>> {
    let mut picked = Vec::new();
    for used in node.graph.uses(node.output()) {
        let crate::onnx::Use::Input { node: reader, input: 0 } = used else { return None };
        let reader = Node { graph: node.graph, id: *reader, op: node.graph.op(*reader) };
        match reader.op.as_str() {
            "Gather" => {
                for index in node.graph.ints(reader.input(1)?)? {
                    picked.push(reader.axis_of(index, rank)?);
                }
            }
            "Slice" => {
                let one = |input, name: &str| reader.list(input, name).ok()??.first().copied();
                let (start, end) = (one(1, "starts")?, one(2, "ends")?);
                let clamp = |at: i64| {
                    let at = if at < 0 { at + rank as i64 } else { at };
                    at.clamp(0, rank as i64) as usize
                };
                picked.extend(clamp(start)..clamp(end));
            }
            _ => return None,
        }
    }
    Some(picked)
}
