//! Rules of the operators that ONNX Runtime's offline optimiser fuses transformers into
//! (<https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md>), and of the normalisations.

use super::atoms::{Atoms, Axis};
use super::rules::{Node, broadcast, freeze_from, freeze_node};

/// A normalisation that may lose channels of its last axis.
pub(super) fn norm(node: &Node, atoms: &mut Atoms) {
    broadcast(node, atoms);
    like_the_first(node, atoms, 1);
}

/// `x + skip + bias` normalised over the last axis, which stays whole unless it `divides`; the others pass.
/// The sum may be an output too.
pub(super) fn skip_norm(node: &Node, atoms: &mut Atoms, divides: bool) {
    let rank = atoms.rank(node.output()).unwrap_or(0);
    norm(node, atoms);
    let last = rank.checked_sub(1).and_then(|last| atoms.axis(node.output(), last));
    if let Some(axis) = last.filter(|_| !divides) {
        atoms.freeze(axis, &node.along());
    }
}

/// Further outputs, aligned at the end, lose what the first does.
fn like_the_first(node: &Node, atoms: &mut Atoms, from: usize) {
    let rank = atoms.rank(node.output()).unwrap_or(0);
    for value in node.outputs().skip(from).collect::<Vec<_>>() {
        let own = atoms.rank(value).unwrap_or(0);
        for back in 1..=own.min(rank) {
            let pair = (atoms.axis(value, own - back), atoms.axis(node.output(), rank - back));
            atoms.join(pair.0, pair.1, &node.rearranged());
        }
    }
}

/// The sum of rows of two or three tables, normalised over the width of the tables.
pub(super) fn embed_norm(node: &Node, atoms: &mut Atoms, divides: bool) {
    if !divides {
        return freeze_node(node, atoms, &node.along());
    }
    let (output, reason) = (node.output(), node.rearranged());
    let width = atoms.axis(output, 2);
    let (tables, vectors) = (2..5, 5..7);
    let places = tables.map(|input| (input, 1)).chain(vectors.map(|input| (input, 0)));
    for (input, axis) in places {
        let Some(value) = node.input(input) else { continue };
        let own = atoms.axis(value, axis);
        atoms.join(own, width, &reason);
    }
    let ids = [0, 1, 8].into_iter().filter_map(|input| node.input(input));
    for (value, axis) in ids.flat_map(|value| [(value, 0), (value, 1)]) {
        let pair = (atoms.axis(value, axis), atoms.axis(output, axis));
        atoms.join(pair.0, pair.1, &reason);
    }
    // The second output counts tokens; the third is the sum itself.
    like_the_first(node, atoms, 2);
}

/// Which constants and values of an attention operator hold the indices of its heads.
pub(crate) struct Heads {
    /// How many there are.
    pub count: usize,
    pub places: Vec<HeadsPlace>,
}

/// One axis that holds the indices of heads.
pub(crate) struct HeadsPlace {
    value: String,
    axis: usize,
    /// The stretches in which each head has its indices, one behind the other: where the first head begins,
    /// and how many indices a head has.
    stretches: Vec<(usize, usize)>,
}

/// The attributes that count the heads of an attention operator.
pub(crate) fn head_counts(op: &str) -> &'static [&'static str] {
    if op == "Attention" { &["q_num_heads", "kv_num_heads"] } else { &["num_heads"] }
}

/// The heads of a fused attention; `None` where it is of a form that has no rule here (packed inputs, a
/// past, rotary positions): then nothing of it may be cut. `length` gives the length of an axis.
pub(crate) fn heads(node: &Node, length: impl Fn(&str, usize) -> Option<usize>) -> Option<Heads> {
    let mut counts = head_counts(&node.op).iter().map(|name| node.int(name));
    let count = counts.next()?.filter(|count| counts.all(|other| other == Some(*count)))?;
    let count = usize::try_from(count).ok()?;
    let rotary = node.int("do_rotary").unwrap_or(0) != 0;
    if count == 0 || rotary || node.outputs().count() > 1 {
        return None;
    }
    let (sizes, mut places, bias, scores_bias, past) = match node.op.as_str() {
        "com.microsoft.Attention" => {
            let weight = node.input(1)?;
            let columns = length(weight, 1)?;
            let third = [columns / 3; 3].map(|size| size as i64);
            let sizes = node.graph.attrs(node.id).ints("qkv_hidden_sizes").unwrap_or(&third);
            let sizes: Vec<usize> =
                sizes.iter().map(|size| usize::try_from(*size).ok()).collect::<Option<_>>()?;
            let fits = sizes.len() == 3 && sizes.iter().sum::<usize>() == columns;
            let sizes = <[usize; 3]>::try_from(sizes).ok().filter(|_| fits)?;
            let sections = stretches(&sizes, count)?;
            (sizes, vec![place(weight, 1, sections)], Some(2), 5, vec![4, 6])
        }
        "com.microsoft.MultiHeadAttention" | "Attention" => {
            let inputs = [node.input(0)?, node.input(1)?, node.input(2)?];
            // Rank three: batch, tokens, all heads side by side.
            if inputs.iter().any(|value| length(value, 2).is_none() || length(value, 3).is_some()) {
                return None;
            }
            let sizes = inputs.map(|value| length(value, 2).unwrap_or(0));
            let of = |(value, size)| Some(place(value, 2, stretches(&[size], count)?));
            let places = inputs.into_iter().zip(sizes).map(of).collect::<Option<_>>()?;
            match node.op.as_str() {
                "Attention" => (sizes, places, None, 3, vec![4, 5, 6]),
                _ => (sizes, places, Some(3), 5, vec![6, 7]),
            }
        }
        _ => return None,
    };
    if past.iter().any(|input| node.input(*input).is_some()) {
        return None;
    }
    if let Some(bias) = bias.and_then(|input| node.input(input)) {
        let fits = length(bias, 0) == Some(sizes.iter().sum());
        places.push(place(bias, 0, stretches(&sizes, count).filter(|_| fits)?));
    }
    if let Some(bias) = node.input(scores_bias) {
        // Aligned at the end with batch, heads, queries and keys.
        let rank = (0..4).take_while(|axis| length(bias, *axis).is_some()).count();
        match rank.checked_sub(3) {
            Some(axis) if length(bias, axis)? > 1 => places.push(place(bias, axis, vec![(0, 1)])),
            Some(_) => {}
            None if node.op == "Attention" => {}
            None => return None,
        }
    }
    places.push(place(node.output(), 2, stretches(&[sizes[2]], count)?));
    // Every stretch must lie within its axis.
    let fits = |place: &HeadsPlace| {
        let end = place.stretches.iter().map(|(first, each)| first + each * count).max();
        end.is_some() && end <= length(&place.value, place.axis)
    };
    places.iter().all(fits).then_some(Heads { count, places })
}

fn place(value: &str, axis: usize, stretches: Vec<(usize, usize)>) -> HeadsPlace {
    HeadsPlace { value: value.to_owned(), axis, stretches }
}

/// Sections of the given sizes, one behind the other, each of `count` equal stretches.
fn stretches(sizes: &[usize], count: usize) -> Option<Vec<(usize, usize)>> {
    let mut first = 0;
    let one = |size: &usize| {
        let at = first;
        first += size;
        (size.is_multiple_of(count) && *size > 0).then_some((at, size / count))
    };
    sizes.iter().map(one).collect()
}

/// Heads go whole: queries, keys, values, their biases and the outputs. Everything else that attention
/// reads stays, but for the batch and the tokens of its first input.
pub(super) fn attention(node: &Node, atoms: &mut Atoms) {
    if node.op == "Attention" && node.input(0).is_some_and(|q| atoms.rank(q) == Some(4)) {
        return split_attention(node, atoms);
    }
    let length = |value: &str, axis: usize| super::rearrange::length_of(atoms, value, axis);
    let Some(heads) = heads(node, length) else {
        return freeze_node(node, atoms, &node.rearranged());
    };
    for head in 0..heads.count {
        let mut first: Option<u32> = None;
        for HeadsPlace { value, axis, stretches } in &heads.places {
            let Some(Axis { first: base, .. }) = atoms.axis(value, *axis) else { continue };
            for (from, each) in stretches {
                for index in from + head * each..from + (head + 1) * each {
                    let atom = base + index as u32;
                    atoms.union(*first.get_or_insert(atom), atom);
                }
            }
        }
    }
    if let Some(input) = node.input(0) {
        for axis in 0..2 {
            let pair = (atoms.axis(input, axis), atoms.axis(node.output(), axis));
            atoms.join(pair.0, pair.1, &node.rearranged());
        }
    }
}

/// Attention over heads on an axis of their own: those of queries, keys and values go together, and the depth
/// of the values is that of the outputs. The depth of queries and keys scales the scores and stays.
fn split_attention(node: &Node, atoms: &mut Atoms) {
    let inputs = [0, 1, 2].map(|input| node.input(input));
    let (&[Some(q), Some(k), Some(v)], 1) = (&inputs, node.outputs().count()) else {
        return freeze_node(node, atoms, &node.rearranged());
    };
    let (output, reason) = (node.output(), node.rearranged());
    let pairs = [(q, 0), (q, 1), (q, 2), (k, 0), (k, 1), (v, 0), (v, 1), (v, 3)];
    for (value, axis) in pairs {
        let pair = (atoms.axis(value, axis), atoms.axis(output, axis));
        match pair {
            // Fewer heads of keys than of queries, down to one that serves all.
            (None, Some(own)) if axis == 1 => atoms.freeze(own, &reason),
            (a, b) => atoms.join(a, b, &reason),
        }
    }
    if let Some(mask) = node.input(3)
        && let Some(axis) = atoms.rank(mask).and_then(|rank| rank.checked_sub(3))
    {
        let pair = (atoms.axis(mask, axis), atoms.axis(output, 1));
        atoms.join(pair.0, pair.1, &reason);
    }
    if [4, 5, 6].iter().any(|input| node.input(*input).is_some()) {
        freeze_node(node, atoms, &reason);
    }
}

/// Rotary positions turn each head's depth, which stays; heads on an axis of their own pass.
pub(super) fn rotary(node: &Node, atoms: &mut Atoms) {
    let apart = node.input(0).is_some_and(|x| atoms.rank(x) == Some(4));
    if !apart || node.int("num_heads").unwrap_or(0) != 0 {
        return freeze_node(node, atoms, &node.along());
    }
    let Some(input) = node.input(0) else { return };
    for axis in 0..3 {
        let pair = (atoms.axis(input, axis), atoms.axis(node.output(), axis));
        atoms.join(pair.0, pair.1, &node.rearranged());
    }
    freeze_from(node, atoms, 3);
}
