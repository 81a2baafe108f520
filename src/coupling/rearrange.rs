//! Rules of the operators that move indices about: concatenation, splitting, slicing, padding, gathering,
//! transposition and reduction.

use super::atoms::{Atoms, Axis};
use super::rules::Node;
use super::types::Reason;

/// Freezes all axes of the first input and of all outputs.
pub(super) fn freeze_data(node: &Node, atoms: &mut Atoms, reason: &Reason) {
    for value in node.input(0).into_iter().chain(node.outputs()) {
        atoms.freeze_value(value, reason);
    }
}

/// Joins all axes of two values but `except`.
fn join_others(node: &Node, atoms: &mut Atoms, a: &str, b: &str, except: usize) {
    let rank = atoms.rank(b).unwrap_or(0);
    for axis in (0..rank).filter(|axis| *axis != except) {
        let (x, y) = (atoms.axis(a, axis), atoms.axis(b, axis));
        atoms.join(x, y, &node.rearranged());
    }
}

/// Joins `count` indices of one axis from `from` with those of another from `to`. An axis of length one is
/// not tracked: what would be joined with it is frozen.
fn join_stretch(
    node: &Node,
    atoms: &mut Atoms,
    (a, from): (Option<Axis>, usize),
    (b, to): (Option<Axis>, usize),
    count: usize,
) {
    let fits = |axis: Axis, start: usize| start + count <= axis.length;
    match (a, b) {
        (Some(a), Some(b)) if fits(a, from) && fits(b, to) => {
            for i in 0..count {
                atoms.union(a.first + (from + i) as u32, b.first + (to + i) as u32);
            }
        }
        (a, b) => a.into_iter().chain(b).for_each(|axis| atoms.freeze(axis, &node.rearranged())),
    }
}

pub(super) fn length_of(atoms: &Atoms, value: &str, axis: usize) -> Option<usize> {
    match atoms.axes(value)?.get(axis)? {
        None => Some(1),
        Some(axis) if axis.length > 0 => Some(axis.length),
        Some(_) => None,
    }
}

pub(super) fn concat(node: &Node, atoms: &mut Atoms) {
    let output = node.output();
    let rank = atoms.rank(output).unwrap_or(0);
    let axis = node.int("axis").and_then(|axis| node.axis_of(axis, rank));
    let lengths: Option<Vec<usize>> =
        axis.and_then(|axis| node.inputs().map(|value| length_of(atoms, value, axis)).collect());
    let (Some(axis), Some(lengths)) = (axis, lengths) else {
        node.inputs().chain([output]).for_each(|v| atoms.freeze_value(v, &node.rearranged()));
        return;
    };
    let mut offset = 0;
    for (value, length) in node.inputs().zip(lengths) {
        join_others(node, atoms, value, output, axis);
        let (from, to) = (atoms.axis(value, axis), atoms.axis(output, axis));
        match from {
            Some(_) => join_stretch(node, atoms, (from, 0), (to, offset), length),
            // A single index of the result: it stays.
            None => freeze_one(atoms, to, offset, &node.rearranged()),
        }
        offset += length;
    }
}

fn freeze_one(atoms: &mut Atoms, axis: Option<Axis>, index: usize, reason: &Reason) {
    if let Some(axis) = axis.filter(|axis| index < axis.length) {
        atoms.freeze(Axis { first: axis.first + index as u32, length: 1 }, reason);
    }
}

pub(super) fn split(node: &Node, atoms: &mut Atoms) {
    let Some(input) = node.input(0) else { return };
    let rank = atoms.rank(input).unwrap_or(0);
    let axis = node.axis_of(node.int("axis").unwrap_or(0), rank);
    // An output without a name has no shape here: where the others begin is unknown.
    let outputs = &node.graph.node(node.id).output;
    let lengths: Option<Vec<usize>> =
        axis.and_then(|axis| outputs.iter().map(|value| length_of(atoms, value, axis)).collect());
    let (Some(axis), Some(lengths), Ok(_)) = (axis, lengths, node.list(1, "split")) else {
        return freeze_data(node, atoms, &node.rearranged());
    };
    let mut offset = 0;
    for (value, length) in node.outputs().zip(lengths) {
        join_others(node, atoms, input, value, axis);
        let (from, to) = (atoms.axis(input, axis), atoms.axis(value, axis));
        match to {
            Some(_) => join_stretch(node, atoms, (from, offset), (to, 0), length),
            None => freeze_one(atoms, from, offset, &node.rearranged()),
        }
        offset += length;
    }
}

pub(super) fn slice(node: &Node, atoms: &mut Atoms) {
    let Some(input) = node.input(0) else { return };
    let (rank, output) = (atoms.rank(input).unwrap_or(0), node.output());
    let Some(steps) = slice_of(node, rank) else {
        return freeze_data(node, atoms, &node.rearranged());
    };
    for axis in 0..rank {
        let (from, to) = (atoms.axis(input, axis), atoms.axis(output, axis));
        match steps.iter().find(|slice| slice.axis == axis) {
            None => atoms.join(from, to, &node.rearranged()),
            Some(slice) => {
                let lengths = (length_of(atoms, input, axis), length_of(atoms, output, axis));
                let (Some(length), Some(kept)) = lengths else {
                    from.into_iter().chain(to).for_each(|a| atoms.freeze(a, &node.rearranged()));
                    continue;
                };
                let start = slice.start(length);
                // What is left out is bound to nothing here and may go on its own; a single index that
                // is taken out stays.
                match (slice.step, to) {
                    (1, _) if start + kept > length => {
                        from.into_iter()
                            .chain(to)
                            .for_each(|a| atoms.freeze(a, &node.rearranged()));
                    }
                    (1, Some(_)) => {
                        from.into_iter().for_each(|axis| atoms.free(axis, 0, length));
                        join_stretch(node, atoms, (from, start), (to, 0), kept);
                    }
                    (1, None) => {
                        from.into_iter().for_each(|axis| atoms.free(axis, 0, length));
                        freeze_one(atoms, from, start, &node.rearranged());
                    }
                    _ => from.into_iter().chain(to).for_each(|axis| {
                        atoms.freeze(axis, &node.rearranged());
                    }),
                }
            }
        }
    }
}

/// One axis of a Slice.
pub(crate) struct SliceAxis {
    pub axis: usize,
    pub start: i64,
    pub step: i64,
}

impl SliceAxis {
    /// The first index that is taken, of an axis of `length`.
    pub fn start(&self, length: usize) -> usize {
        let at = if self.start < 0 { self.start + length as i64 } else { self.start };
        at.clamp(0, length as i64) as usize
    }
}

/// The axes of a Slice with constant bounds.
pub(super) fn slice_of(node: &Node, rank: usize) -> Option<Vec<SliceAxis>> {
    let starts = node.list(1, "starts").ok()??;
    node.list(2, "ends").ok()??;
    let axes = node.list(3, "axes").ok()?.unwrap_or_else(|| (0..starts.len() as i64).collect());
    let steps = node.list(4, "steps").ok()?.unwrap_or_else(|| vec![1; starts.len()]);
    (axes.len() == starts.len() && steps.len() == starts.len()).then_some(())?;
    axes.iter()
        .zip(starts.iter().zip(&steps))
        .map(|(axis, (start, step))| {
            Some(SliceAxis { axis: node.axis_of(*axis, rank)?, start: *start, step: *step })
        })
        .collect()
}

pub(super) fn pad(node: &Node, atoms: &mut Atoms) {
    let Some(input) = node.input(0) else { return };
    let (rank, output) = (atoms.rank(input).unwrap_or(0), node.output());
    let pads = node.list(1, "pads").ok().flatten().filter(|pads| pads.len() == 2 * rank);
    let constant = matches!(node.graph.attrs(node.id).text("mode"), None | Some("constant"));
    let (Some(pads), true, None) = (pads, constant, node.input(3)) else {
        return freeze_data(node, atoms, &node.rearranged());
    };
    for axis in 0..rank {
        let (from, to) = (atoms.axis(input, axis), atoms.axis(output, axis));
        let before = pads[axis];
        match (length_of(atoms, input, axis), usize::try_from(before)) {
            (_, _) if before == 0 && pads[axis + rank] == 0 => {
                atoms.join(from, to, &node.rearranged());
            }
            // The places that the pad fills belong to nobody but the result: they may go with it.
            (Some(length), Ok(before)) if from.is_some() && pads[axis + rank] >= 0 => {
                to.into_iter().for_each(|axis| atoms.free(axis, 0, axis.length));
                join_stretch(node, atoms, (from, 0), (to, before), length);
            }
            _ => from.into_iter().chain(to).for_each(|axis| {
                atoms.freeze(axis, &node.rearranged());
            }),
        }
    }
}

pub(super) fn transpose(node: &Node, atoms: &mut Atoms) {
    let Some(input) = node.input(0) else { return };
    let rank = atoms.rank(input).unwrap_or(0);
    let reversed: Vec<i64> = (0..rank as i64).rev().collect();
    let order = node.graph.attrs(node.id).ints("perm").unwrap_or(&reversed);
    for (to, from) in order.iter().enumerate() {
        let from = usize::try_from(*from).ok().and_then(|from| atoms.axis(input, from));
        let to = atoms.axis(node.output(), to);
        atoms.join(from, to, &node.rearranged());
    }
}

/// Squeeze and Unsqueeze: the axes of length one fall away or come in, the others keep their order.
pub(super) fn squeeze(node: &Node, atoms: &mut Atoms) {
    let Some(input) = node.input(0) else { return };
    let (longer, shorter) =
        if node.op == "Squeeze" { (input, node.output()) } else { (node.output(), input) };
    let rank = atoms.rank(longer).unwrap_or(0);
    // A Squeeze that names no axes would swallow one that a cut leaves at length one.
    let named = node.list(1, "axes").ok().flatten();
    let axes: Option<Vec<usize>> =
        named.and_then(|axes| axes.iter().map(|axis| node.axis_of(*axis, rank)).collect());
    let Some(axes) = axes.filter(|axes| !axes.is_empty()) else {
        return freeze_data(node, atoms, &node.rearranged());
    };
    for (number, axis) in (0..rank).filter(|axis| !axes.contains(axis)).enumerate() {
        let (a, b) = (atoms.axis(longer, axis), atoms.axis(shorter, number));
        atoms.join(a, b, &node.rearranged());
    }
}

/// The axis that is picked from stays whole; the axes around it pass.
pub(super) fn gather(node: &Node, atoms: &mut Atoms) {
    let (Some(data), Some(indices)) = (node.input(0), node.input(1)) else { return };
    let rank = atoms.rank(data).unwrap_or(0);
    let picked = atoms.rank(indices).unwrap_or(0);
    let axis = node.axis_of(node.int("axis").unwrap_or(0), rank);
    let Some(axis) = axis else { return freeze_data(node, atoms, &node.along()) };
    for number in (0..rank).filter(|number| *number != axis) {
        let behind = if number < axis { number } else { number - 1 + picked };
        let (a, b) = (atoms.axis(data, number), atoms.axis(node.output(), behind));
        atoms.join(a, b, &node.rearranged());
    }
}

/// The axes that are reduced stay whole, unless what depends on their length `divides` them.
pub(super) fn reduce(node: &Node, atoms: &mut Atoms, divides: bool) {
    let Some(input) = node.input(0) else { return };
    let rank = atoms.rank(input).unwrap_or(0);
    let Ok(axes) = node.list(1, "axes") else {
        return freeze_data(node, atoms, &node.rearranged());
    };
    let all: Vec<i64> = (0..rank as i64).collect();
    let axes = axes.filter(|axes| !axes.is_empty()).unwrap_or(all);
    let reduced: Vec<usize> = axes.iter().filter_map(|a| node.axis_of(*a, rank)).collect();
    let keep = node.int("keepdims").unwrap_or(1) != 0;
    let mut position = 0;
    for axis in 0..rank {
        let from = atoms.axis(input, axis);
        if reduced.contains(&axis) {
            // A mean over channels changes with every channel that goes.
            from.into_iter().for_each(|axis| match divides {
                true => atoms.free(axis, 0, axis.length),
                false => atoms.freeze(axis, &node.along()),
            });
            position += usize::from(keep);
        } else {
            let to = atoms.axis(node.output(), position);
            atoms.join(from, to, &node.rearranged());
            position += 1;
        }
    }
}
