//! Rules of the operators that give a value a shape by numbers: Reshape, Flatten, Expand, Resize. Which
//! indices go together follows from the shapes; whether the numbers can follow a cut, from `sizes`.

use std::ops::Range;

use super::atoms::{Atoms, Axis};
use super::rearrange::{freeze_data, length_of};
use super::rules::Node;
use super::sizes::{Size, Sizes};
use crate::onnx::Use;

/// Input and output axes are matched in stretches of equal size. An axis that stays as it is passes. Where
/// axes merge, the first of them that is not frozen takes its merged indices with it; where one splits, one
/// part takes the indices that it stands for. The other axes of such a stretch stay whole.
pub(super) fn reshape(node: &Node, atoms: &mut Atoms, sizes: &Sizes) {
    let Some(input) = node.input(0) else { return };
    let output = node.output();
    let lengths = |value: &str| -> Option<Vec<usize>> {
        (0..atoms.rank(value)?).map(|axis| length_of(atoms, value, axis)).collect()
    };
    let (Some(from), Some(to)) = (lengths(input), lengths(output)) else {
        return freeze_data(node, atoms, &node.rearranged());
    };
    if node.op == "Reshape" && !follows(node, atoms, sizes, 1) {
        return freeze_data(node, atoms, &node.rearranged());
    }
    for (a, b) in stretches(&from, &to) {
        // Behind a split of the last axis stand attention heads: the part before the last counts them, and
        // they go whole. Elsewhere it is a channel shuffle: the longest part leaves the finest cut.
        let last = a.end == from.len();
        let of = |value: &str, range: &Range<usize>| -> Vec<Axis> {
            range.clone().filter_map(|axis| atoms.axis(value, axis)).collect()
        };
        match (of(input, &a).as_slice(), of(output, &b).as_slice()) {
            ([], []) => {}
            ([one], [other]) => atoms.join(Some(*one), Some(*other), &node.rearranged()),
            (parts, [whole]) => {
                let open = parts.iter().position(|axis| !atoms.is_frozen(*axis));
                tie(node, atoms, parts, open.unwrap_or(0), *whole);
            }
            ([whole], parts) => {
                let longest = (0..parts.len()).max_by_key(|part| parts[*part].length);
                let chosen = if last { parts.len() - 2 } else { longest.unwrap_or(0) };
                tie(node, atoms, parts, chosen, *whole);
            }
            (many, others) => many.iter().chain(others).for_each(|axis| {
                atoms.freeze(*axis, &node.rearranged());
            }),
        }
    }
}

/// Joins every index of `whole` with the index of its part number `chosen`; freezes the other parts.
fn tie(node: &Node, atoms: &mut Atoms, parts: &[Axis], chosen: usize, whole: Axis) {
    let inner: usize = parts[chosen + 1..].iter().map(|axis| axis.length).product();
    let part = parts[chosen];
    for index in 0..whole.length {
        let own = index / inner.max(1) % part.length;
        atoms.union(part.first + own as u32, whole.first + index as u32);
    }
    for other in (0..parts.len()).filter(|other| *other != chosen) {
        atoms.freeze(parts[other], &node.rearranged());
    }
}

/// Shortest ranges of input and output axes that hold the same number of elements.
fn stretches(from: &[usize], to: &[usize]) -> Vec<(Range<usize>, Range<usize>)> {
    let mut found = Vec::new();
    let (mut i, mut j) = (0, 0);
    while i < from.len() && j < to.len() {
        let (first_i, first_j) = (i, j);
        let (mut a, mut b) = (from[i], to[j]);
        i += 1;
        j += 1;
        while a != b {
            if a < b && i < from.len() {
                a = a.saturating_mul(from[i]);
                i += 1;
            } else if b < a && j < to.len() {
                b = b.saturating_mul(to[j]);
                j += 1;
            } else {
                return found;
            }
        }
        found.push((first_i..i, first_j..j));
    }
    found
}

/// Axes that keep their length are the same axes; along the others a value is repeated.
pub(super) fn expand(node: &Node, atoms: &mut Atoms, sizes: &Sizes) {
    let Some(input) = node.input(0) else { return };
    if !follows(node, atoms, sizes, 1) {
        return freeze_data(node, atoms, &node.rearranged());
    }
    let (own, rank) = (atoms.rank(input).unwrap_or(0), atoms.rank(node.output()).unwrap_or(0));
    for back in 1..=own.min(rank) {
        let (from, to) = (atoms.axis(input, own - back), atoms.axis(node.output(), rank - back));
        if from.is_some() {
            atoms.join(from, to, &node.rearranged());
        }
    }
}

/// Axes that keep their length pass, the others are resampled.
pub(super) fn resize(node: &Node, atoms: &mut Atoms, sizes: &Sizes) {
    let Some(input) = node.input(0) else { return };
    let by_sizes = node.input(3).is_some();
    let attrs = node.graph.attrs(node.id);
    let crops = attrs.text("coordinate_transformation_mode") == Some("tf_crop_and_resize");
    let partial = attrs.get("axes").is_some() || attrs.get("keep_aspect_ratio_policy").is_some();
    if crops || (by_sizes && (partial || !follows(node, atoms, sizes, 3))) {
        return freeze_data(node, atoms, &node.rearranged());
    }
    for axis in 0..atoms.rank(node.output()).unwrap_or(0) {
        let (from, to) = (atoms.axis(input, axis), atoms.axis(node.output(), axis));
        // Spatial axes of equal length are resampled too where the scale is not exactly one.
        if axis < 2 {
            atoms.join(from, to, &node.along());
        } else {
            from.into_iter().chain(to).for_each(|axis| atoms.freeze(axis, &node.along()));
        }
    }
}

/// Makes the numbers of input `number`, one for each axis of the output, follow a cut: a length that is
/// read must change as its axis does, a number must be free to change. `false` where they cannot be seen.
fn follows(node: &Node, atoms: &mut Atoms, sizes: &Sizes, number: usize) -> bool {
    let rank = atoms.rank(node.output()).unwrap_or(0);
    let Some(target) = node.input(number) else { return false };
    let Some(elements) = sizes.of(node.graph, target).filter(|found| found.len() <= rank) else {
        return false;
    };
    let direct = node.graph.weight(target).is_some();
    let copies = node.op == "Reshape" && node.int("allowzero").unwrap_or(0) == 0;
    let first = rank - elements.len();
    for (axis, size) in elements.iter().enumerate() {
        let own = atoms.axis(node.output(), first + axis);
        match size {
            Size::Known { value: -1, .. } => {}
            Size::Known { value: 0, .. } if copies => {
                let from = node.input(0).and_then(|input| atoms.axis(input, axis));
                atoms.same_length(from, own, &node.rearranged());
            }
            // A list that stands in the model is exchanged for this node alone.
            Size::Known { .. } if direct => {}
            Size::Known { origin: None, .. } => {
                own.into_iter().for_each(|axis| atoms.freeze(axis, &node.rearranged()));
            }
            Size::Known { origin: Some(_), .. } => {
                agree(node, atoms, target, first + axis, own);
            }
            Size::Length { value, axis } => {
                let read = atoms.axis(value, *axis);
                atoms.same_length(read, own, &node.rearranged());
            }
            Size::Computed => {
                own.into_iter().for_each(|axis| atoms.freeze(axis, &node.rearranged()));
            }
        }
    }
    true
}

/// All who shape their outputs by the same computed target must lose the same at `axis`; who reads it for
/// anything else forbids that it changes.
fn agree(node: &Node, atoms: &mut Atoms, target: &str, axis: usize, own: Option<Axis>) {
    for used in node.graph.uses(target) {
        match used {
            Use::Input { node: other, .. } if *other == node.id => {}
            Use::Input { node: other, input: 1 }
                if matches!(node.graph.op(*other).as_str(), "Reshape" | "Expand") =>
            {
                let output = node.graph.node(*other).output.first().map_or("", String::as_str);
                atoms.same_length(own, atoms.axis(output, axis), &node.rearranged());
            }
            Use::Input { .. } | Use::Captured { .. } | Use::Output => {
                own.into_iter().for_each(|axis| atoms.freeze(axis, &node.rearranged()));
            }
        }
    }
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
