//! Rules of the operators that move indices about: concatenation, splitting, slicing, padding, reshaping,
//! transposition and reduction.

use super::atoms::{Atoms, Axis};
use super::rules::Node;
use super::types::Reason;

/// Freezes all axes of the first input and of all outputs.
fn freeze_data(node: &Node, atoms: &mut Atoms, reason: &Reason) {
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

fn length_of(atoms: &Atoms, value: &str, axis: usize) -> Option<usize> {
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
    let lengths: Option<Vec<usize>> =
        axis.and_then(|axis| node.outputs().map(|value| length_of(atoms, value, axis)).collect());
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
                    (1, Some(_)) => join_stretch(node, atoms, (from, start), (to, 0), kept),
                    (1, None) => freeze_one(atoms, from, start, &node.rearranged()),
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
    let real = |value: &str| -> Vec<Axis> {
        atoms.axes(value).unwrap_or_default().iter().copied().flatten().collect()
    };
    let (from, to) = (real(input), real(node.output()));
    if from.len() == to.len() {
        for (a, b) in from.into_iter().zip(to) {
            atoms.join(Some(a), Some(b), &node.rearranged());
        }
    } else {
        freeze_data(node, atoms, &node.rearranged());
    }
}

pub(super) fn reduce(node: &Node, atoms: &mut Atoms) {
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
            from.into_iter().for_each(|axis| atoms.freeze(axis, &node.along()));
            position += usize::from(keep);
        } else {
            let to = atoms.axis(node.output(), position);
            atoms.join(from, to, &node.rearranged());
            position += 1;
        }
    }
}

/// Reshape and Flatten: input and output axes are matched in stretches of equal size. An axis that stays
/// as it is passes; where axes merge, the first of them (channels, in the channels-first layout) takes its
/// merged indices with it; where one splits, the parts go with it. The other axes of such a stretch stay.
pub(super) fn reshape(node: &Node, atoms: &mut Atoms) {
    let Some(input) = node.input(0) else { return };
    let output = node.output();
    let known_target = node.op == "Flatten"
        || node.input(1).is_some_and(|target| node.graph.ints(target).is_some());
    let lengths = |value: &str| -> Option<Vec<usize>> {
        (0..atoms.rank(value)?).map(|axis| length_of(atoms, value, axis)).collect()
    };
    let (Some(from), Some(to), true) = (lengths(input), lengths(output), known_target) else {
        return freeze_data(node, atoms, &node.rearranged());
    };
    for (a, b) in stretches(&from, &to) {
        let of = |atoms: &Atoms, value: &str, range: &std::ops::Range<usize>| -> Vec<Axis> {
            range.clone().filter_map(|axis| atoms.axis(value, axis)).collect()
        };
        let (left, right) = (of(atoms, input, &a), of(atoms, output, &b));
        match (left.as_slice(), right.as_slice()) {
            ([], []) => {}
            ([one], [other]) => atoms.join(Some(*one), Some(*other), &node.rearranged()),
            ([first, rest @ ..], [whole]) | ([whole], [first, rest @ ..]) => {
                let inner: usize = rest.iter().map(|axis| axis.length).product();
                for index in 0..whole.length {
                    atoms.union(first.first + (index / inner) as u32, whole.first + index as u32);
                }
                rest.iter().for_each(|axis| atoms.freeze(*axis, &node.rearranged()));
            }
            (many, others) => many.iter().chain(others).for_each(|axis| {
                atoms.freeze(*axis, &node.rearranged());
            }),
        }
    }
}

/// Shortest ranges of input and output axes that hold the same number of elements.
fn stretches(
    from: &[usize],
    to: &[usize],
) -> Vec<(std::ops::Range<usize>, std::ops::Range<usize>)> {
    let mut found = Vec::new();
    let (mut i, mut j) = (0, 0);
    while i < from.len() && j < to.len() {
        let (first_i, first_j) = (i, j);
        let (mut a, mut b) = (from[i], to[j]);
        i += 1;
        j += 1;
        while a != b {
            if a < b && i < from.len() {
                a *= from[i];
                i += 1;
            } else if b < a && j < to.len() {
                b *= to[j];
                j += 1;
            } else {
                break;
            }
        }
        found.push((first_i..i, first_j..j));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::stretches;

    #[test]
    fn axes_are_matched_in_the_shortest_stretches() {
        assert_eq!(stretches(&[2, 8, 4, 4], &[2, 128]), [(0..1, 0..1), (1..4, 1..2)]);
        assert_eq!(
            stretches(&[2, 8, 16], &[2, 2, 4, 16]),
            [(0..1, 0..1), (1..2, 1..3), (2..3, 3..4)]
        );
        assert_eq!(stretches(&[6, 4], &[4, 6]), [(0..2, 0..2)]);
    }
}
