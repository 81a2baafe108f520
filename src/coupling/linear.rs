//! Rules of the operators that multiply: convolutions, Gemm and MatMul.

use super::atoms::{Atoms, Axis};
use super::rules::{Node, freeze_from, freeze_node};
use super::types::Reason;
use crate::onnx::{Operator, OperatorKind};

pub(super) fn linear(node: &Node, atoms: &mut Atoms, operator: &Operator) {
    let (input, output, weight) =
        (operator.input.as_str(), node.output(), operator.weight.as_str());
    let own_bias = node.input(2);
    let reason = node.rearranged();
    if node.op == "com.microsoft.FusedConv"
        && let Some(added) = node.input(3)
    {
        for axis in 0..atoms.rank(output).unwrap_or(0) {
            let (a, b) = (atoms.axis(added, axis), atoms.axis(output, axis));
            atoms.join(a, b, &reason);
        }
    }
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
        // A convolution's bias is a vector over channels; Gemm's is broadcast, its last axis over columns.
        let rank = atoms.rank(bias).unwrap_or(0);
        for back in 0..rank.min(2) {
            let (of_bias, of_output) =
                (atoms.axis(bias, rank - 1 - back), atoms.axis(output, out_axis - back));
            atoms.join(of_output, of_bias, &reason);
        }
    }
    match operator.kind {
        OperatorKind::Conv { .. } | OperatorKind::ConvTranspose { .. } => {
            freeze_spatial(node, atoms);
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
    operator: &Operator,
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
pub(super) fn matmul(node: &Node, atoms: &mut Atoms) {
    product(node, atoms, [false, false]);
}

/// The same with a factor, and either side transposed. With a constant that is no operator's weight it would
/// be a reader whose weights nobody sees.
pub(super) fn fused_matmul(node: &Node, atoms: &mut Atoms) {
    let flag = |name| node.int(name).unwrap_or(0) != 0;
    let constant = node.inputs().any(|value| node.graph.weight(value).is_some());
    if constant || flag("transBatchA") || flag("transBatchB") {
        return freeze_node(node, atoms, &node.rearranged());
    }
    product(node, atoms, ["transA", "transB"].map(flag));
}

fn product(node: &Node, atoms: &mut Atoms, [turned_a, turned_b]: [bool; 2]) {
    let (Some(a), Some(b)) = (node.input(0), node.input(1)) else { return };
    let output = node.output();
    let ranks = (atoms.rank(a), atoms.rank(b), atoms.rank(output));
    let (Some(ra), Some(rb), Some(ro)) = ranks else { return };
    if ra < 2 || rb < 2 {
        freeze_node(node, atoms, &node.rearranged());
        return;
    }
    let reason = node.rearranged();
    let last_two = |rank: usize, turned: bool| {
        if turned { (rank - 1, rank - 2) } else { (rank - 2, rank - 1) }
    };
    let ((rows, summed_a), (summed_b, columns)) = (last_two(ra, turned_a), last_two(rb, turned_b));
    let pairs = [
        (atoms.axis(a, summed_a), atoms.axis(b, summed_b)),
        (atoms.axis(a, rows), atoms.axis(output, ro - 2)),
        (atoms.axis(b, columns), atoms.axis(output, ro - 1)),
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
