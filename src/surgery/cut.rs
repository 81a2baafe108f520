//! Removes channels: every place of a group loses the same ones, and what names their number is put right.

use std::collections::{BTreeMap, BTreeSet};

use crate::coupling::fused::heads;
use crate::coupling::rules::Node;
use crate::coupling::sizes::{Origin, Size, Sizes};
use crate::coupling::{Coupling, GroupId};
use crate::onnx::proto::TensorProto;
use crate::onnx::{
    DType, Graph, Model, NodeId, OnnxError, Patch, Shapes, attr_int, attr_ints, tensor,
};

/// Channels to remove, by group.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cut {
    pub removed: BTreeMap<GroupId, BTreeSet<usize>>,
}

/// Why a cut is refused. The model is left as it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CutError {
    #[error("there is no group {0} in this model")]
    NoGroup(usize),
    #[error("group {group:?} has {width} channels; channel {channel} is not one of them")]
    NoChannel { group: String, width: usize, channel: usize },
    #[error("group {0:?} would lose all of its channels")]
    Emptied(String),
    #[error("constant {name:?} ({problem}) cannot be cut")]
    Constant { name: String, problem: String },
    #[error("node {node:?} ({op}) cannot be told of the cut: {problem}")]
    Node { node: String, op: String, problem: String },
    #[error("the coupling was not made from this model: {0}")]
    Mismatch(String),
    #[error("the cut model is not what was asked for (a defect of blochd): {0}")]
    Postcondition(String),
    #[error(transparent)]
    Onnx(#[from] OnnxError),
}

/// Indices that go, by (value, axis).
pub type Gone = BTreeMap<(String, usize), BTreeSet<usize>>;

/// The indices that a cut removes, at every place of its groups.
///
/// # Errors
/// Where the cut names a group or a channel that does not exist, or empties a group.
pub fn gone(coupling: &Coupling, cut: &Cut) -> Result<Gone, CutError> {
    let mut gone = Gone::new();
    for (id, removed) in cut.removed.iter().filter(|(_, removed)| !removed.is_empty()) {
        let group = coupling.groups.iter().find(|group| group.id == *id);
        let group = group.ok_or(CutError::NoGroup(id.0))?;
        if let Some(channel) = removed.iter().copied().find(|channel| *channel >= group.width) {
            let (group, width) = (group.name.clone(), group.width);
            return Err(CutError::NoChannel { group, width, channel });
        }
        if removed.len() == group.width {
            return Err(CutError::Emptied(group.name.clone()));
        }
        for place in &group.places {
            let indices = removed.iter().flat_map(|channel| &place.index[*channel]);
            let entry = gone.entry((place.value.clone(), place.axis)).or_default();
            entry.extend(indices.map(|index| *index as usize));
        }
    }
    Ok(gone)
}

/// The model without the channels of `cut`. Names of nodes and values stay; untouched constants stay
/// bit-identical. `shapes` are those that the coupling was found with.
///
/// # Errors
/// Where the cut is not one of this coupling, or a constant or node cannot follow it.
pub fn apply(
    model: &Model,
    coupling: &Coupling,
    shapes: &Shapes,
    cut: &Cut,
) -> Result<Model, CutError> {
    let gone = gone(coupling, cut)?;
    if gone.is_empty() {
        return Ok(model.clone());
    }
    let graph = Graph::new(model);
    let mut patch = Patch::default();
    for ((value, axis), indices) in &gone {
        check_fits(&graph, shapes, value, *axis, indices)?;
        patch.forget.insert(value.clone());
        if graph.weight(value).is_none() {
            continue;
        }
        let current = match patch.constants.get(value) {
            Some(tensor) => tensor.clone(),
            None => plain(&graph, value)?,
        };
        patch.constants.insert(value.clone(), slice(value, &current, *axis, indices)?);
    }
    let sizes = Sizes::new(&graph, shapes);
    let tell = Tell { graph: &graph, shapes, gone: &gone, sizes: &sizes };
    for node in 0..graph.nodes().len() {
        tell.node(node, &mut patch)?;
    }
    keep_names(&graph, &mut patch);
    let cut = patch.apply(model)?;
    check_result(&graph, &Graph::new(&cut), &gone)?;
    Ok(cut)
}

/// A list of numbers that all of its readers have exchanged for lists of their own would fall away, and a
/// Constant node with it: the first of the new lists goes by the old one's name instead.
fn keep_names(graph: &Graph, patch: &mut Patch) {
    let mut exchanged: BTreeMap<&str, Vec<(NodeId, usize)>> = BTreeMap::new();
    for (node, input) in patch.inputs.keys() {
        if let Some(old) = graph.input(*node, *input) {
            exchanged.entry(old).or_default().push((*node, *input));
        }
    }
    for (old, readers) in exchanged {
        if readers.len() < graph.uses(old).len() {
            continue;
        }
        let Some(first) = readers.first().and_then(|reader| patch.inputs.get(reader)).cloned()
        else {
            continue;
        };
        let Some(list) = patch.constants.remove(&first) else { continue };
        patch.inputs.remove(&readers[0]);
        for reader in &readers[1..] {
            let same = patch.inputs.get(reader).filter(|name| {
                patch.constants.get(*name).is_some_and(|other| other.raw_data == list.raw_data)
            });
            if let Some(name) = same.cloned() {
                patch.constants.remove(&name);
                patch.inputs.remove(reader);
            }
        }
        patch.constants.insert(old.to_owned(), list);
    }
}

/// That a place lies within the model's value.
fn check_fits(
    graph: &Graph,
    shapes: &Shapes,
    value: &str,
    axis: usize,
    indices: &BTreeSet<usize>,
) -> Result<(), CutError> {
    let length = match graph.weight_dims(value) {
        Some(dims) => dims.get(axis).copied(),
        None => shapes.get(value).and_then(|found| found.shape.get(axis).copied().flatten()),
    };
    match (length, indices.last()) {
        (Some(length), Some(last)) if *last < length && indices.len() < length => Ok(()),
        (Some(_) | None, _) => Err(CutError::Mismatch(format!(
            "axis {axis} of {value:?} has {length:?} indices where index {:?} of {} is to go",
            indices.last(),
            indices.len()
        ))),
    }
}

/// That every constant has lost exactly what the cut names, and no node fell away.
fn check_result(before: &Graph, after: &Graph, gone: &Gone) -> Result<(), CutError> {
    let wrong = |what: String| Err(CutError::Postcondition(what));
    if before.nodes().len() != after.nodes().len() {
        let (old, new) = (before.nodes().len(), after.nodes().len());
        return wrong(format!("{old} nodes became {new}"));
    }
    for (name, _) in before.weights() {
        let Some(mut expected) = before.weight_dims(name) else { continue };
        for (axis, length) in expected.iter_mut().enumerate() {
            *length -= gone.get(&(name.to_owned(), axis)).map_or(0, BTreeSet::len);
        }
        match after.weight_dims(name) {
            Some(found) if found != expected => {
                return wrong(format!("{name:?} is {found:?}, not {expected:?}"));
            }
            // A list of sizes that was replaced for its only reader is gone with it.
            Some(_) | None => {}
        }
    }
    Ok(())
}

/// A constant with its elements as raw data.
fn plain(graph: &Graph, value: &str) -> Result<TensorProto, CutError> {
    let wrong =
        |problem: &str| CutError::Constant { name: value.to_owned(), problem: problem.to_owned() };
    let dtype = graph.weight_dtype(value).ok_or_else(|| wrong("of a type without a rule"))?;
    let dims = graph.weight_dims(value).ok_or_else(|| wrong("of unknown shape"))?;
    let bytes = graph.weight_bytes(value)?.ok_or_else(|| wrong("not there"))?;
    Ok(tensor(value, dtype, &dims, bytes))
}

fn slice(
    name: &str,
    tensor: &TensorProto,
    axis: usize,
    gone: &BTreeSet<usize>,
) -> Result<TensorProto, CutError> {
    let wrong = |problem: String| CutError::Constant { name: name.to_owned(), problem };
    let size = tensor.data_type.and_then(DType::from_onnx).and_then(DType::size);
    let size = size.ok_or_else(|| wrong("its elements have no fixed size".to_owned()))?;
    let dims: Vec<usize> = tensor.dims.iter().map(|dim| *dim as usize).collect();
    let length = *dims.get(axis).ok_or_else(|| wrong(format!("it has no axis {axis}")))?;
    let inner = dims[axis + 1..].iter().product::<usize>() * size;
    let raw = tensor.raw_data.clone().unwrap_or_default();
    let mut data = Vec::with_capacity(raw.len());
    for plane in raw.chunks_exact((length * inner).max(1)) {
        for (index, piece) in plane.chunks_exact(inner.max(1)).enumerate() {
            if !gone.contains(&index) {
                data.extend_from_slice(piece);
            }
        }
    }
    let mut new = tensor.clone();
    new.dims[axis] = (length - gone.len()) as i64;
    new.raw_data = Some(data.into());
    Ok(new)
}

/// Tells nodes whose attributes or constant inputs name sizes or positions of what is gone.
struct Tell<'a> {
    graph: &'a Graph<'a>,
    shapes: &'a Shapes,
    gone: &'a Gone,
    sizes: &'a Sizes,
}

impl Tell<'_> {
    fn node(&self, id: NodeId, patch: &mut Patch) -> Result<(), CutError> {
        let Some(input) = self.graph.input(id, 0) else { return Ok(()) };
        let output = self.graph.node(id).output.first().map_or("", String::as_str);
        match self.graph.op(id).as_str() {
            "Conv" | "ConvTranspose" => self.group(id, input, patch),
            "Reshape" | "Expand" => self.target(id, 1, output, patch),
            "Resize" => self.target(id, 3, output, patch),
            "Split" => self.split(id, patch),
            "Slice" => self.slice(id, input, output, patch),
            "Pad" => self.pad(id, output, patch),
            "com.microsoft.Attention" | "com.microsoft.MultiHeadAttention" => {
                self.heads(id, output, patch)
            }
            _ => Ok(()),
        }
    }

    fn removed(&self, value: &str, axis: usize) -> Option<&BTreeSet<usize>> {
        self.gone.get(&(value.to_owned(), axis))
    }

    fn length(&self, value: &str, axis: usize) -> Option<usize> {
        self.shapes.get(value)?.shape.get(axis).copied().flatten()
    }

    fn refuse(&self, id: NodeId, problem: &str) -> CutError {
        let (node, op, problem) = (self.graph.label(id), self.graph.op(id), problem.to_owned());
        CutError::Node { node, op, problem }
    }

    /// A grouped convolution loses whole groups.
    fn group(&self, id: NodeId, input: &str, patch: &mut Patch) -> Result<(), CutError> {
        let group = self.graph.attrs(id).int("group").unwrap_or(1);
        let Some(gone) = self.removed(input, 1).filter(|_| group > 1) else { return Ok(()) };
        let channels = self.length(input, 1).ok_or_else(|| self.refuse(id, "unknown channels"))?;
        let each = channels / group as usize;
        if gone.len() % each.max(1) != 0 {
            return Err(self.refuse(id, "it would lose a part of a group"));
        }
        let left = group - (gone.len() / each.max(1)) as i64;
        patch.attributes.entry(id).or_default().push(attr_int("group", left));
        Ok(())
    }

    /// A fused attention loses whole heads.
    fn heads(&self, id: NodeId, output: &str, patch: &mut Patch) -> Result<(), CutError> {
        let Some(gone) = self.removed(output, 2) else { return Ok(()) };
        let node = Node { graph: self.graph, id, op: self.graph.op(id) };
        let length = |value: &str, axis: usize| match self.graph.weight_dims(value) {
            Some(dims) => dims.get(axis).copied(),
            None => self.length(value, axis),
        };
        let found = heads(&node, length).ok_or_else(|| self.refuse(id, "its form has no rule"))?;
        let each = self.length(output, 2).map_or(0, |length| length / found.count);
        if each == 0 || gone.len() % each != 0 {
            return Err(self.refuse(id, "it would lose a part of a head"));
        }
        let left = found.count - gone.len() / each;
        let attributes = patch.attributes.entry(id).or_default();
        attributes.push(attr_int("num_heads", left as i64));
        if let Some(sizes) = node.graph.attrs(id).ints("qkv_hidden_sizes") {
            let kept = |size: &i64| size / found.count as i64 * left as i64;
            let sizes: Vec<i64> = sizes.iter().map(kept).collect();
            attributes.push(attr_ints("qkv_hidden_sizes", &sizes));
        }
        Ok(())
    }

    /// Replaces a constant list of integers at input `number` of the node by a list of its own, of the
    /// same element type.
    fn set_list(&self, id: NodeId, number: usize, values: &[i64], patch: &mut Patch) {
        let old = self.graph.input(id, number);
        let narrow = old.and_then(|old| self.graph.weight_dtype(old)) == Some(DType::I32);
        let (dtype, bytes): (_, Vec<u8>) = if narrow {
            (DType::I32, values.iter().flat_map(|value| (*value as i32).to_le_bytes()).collect())
        } else {
            (DType::I64, values.iter().flat_map(|value| value.to_le_bytes()).collect())
        };
        let name = self.fresh_name(id, number, patch);
        patch.constants.insert(name.clone(), tensor(&name, dtype, &[values.len()], bytes));
        patch.inputs.insert((id, number), name);
    }

    /// The numbers among input `number` that are lengths of the output's axes (aligned at the end) lose
    /// what the axes lose: in a list of the node's own, or where the graph takes them from.
    fn target(
        &self,
        id: NodeId,
        number: usize,
        output: &str,
        patch: &mut Patch,
    ) -> Result<(), CutError> {
        let rank = self.shapes.get(output).map_or(0, |value| value.shape.len());
        if (0..rank).all(|axis| self.removed(output, axis).is_none()) {
            return Ok(());
        }
        let Some(list) = self.graph.input(id, number) else { return Ok(()) };
        let unseen = || self.refuse(id, "its sizes cannot be followed");
        let sizes = self.sizes.of(self.graph, list).ok_or_else(unseen)?;
        let first = rank.checked_sub(sizes.len()).ok_or_else(unseen)?;
        let mut own = self.graph.weight(list).and_then(|_| self.graph.ints(list));
        let mut changed = false;
        for (index, size) in sizes.iter().enumerate() {
            let Size::Known { value, origin } = size else { continue };
            let gone = self.removed(output, first + index).map_or(0, BTreeSet::len) as i64;
            let length = self.length(output, first + index);
            if gone == 0 || usize::try_from(*value).ok() != length {
                continue;
            }
            match (&mut own, origin) {
                (Some(own), _) => own[index] -= gone,
                (None, Some(origin)) => self.set_number(origin, *value - gone, patch)?,
                (None, None) => return Err(unseen()),
            }
            changed = true;
        }
        if let Some(own) = own.filter(|_| changed) {
            self.set_list(id, number, &own, patch);
        }
        Ok(())
    }

    /// Changes one number of a constant: in its place, or in a constant of the reader's own where others read
    /// it too.
    fn set_number(&self, origin: &Origin, value: i64, patch: &mut Patch) -> Result<(), CutError> {
        let old = &origin.constant;
        let name = match origin.reader {
            None => old.clone(),
            Some(reader) => match patch.inputs.get(&reader) {
                Some(name) => name.clone(),
                None => {
                    let name = self.fresh_name(reader.0, reader.1, patch);
                    patch.inputs.insert(reader, name.clone());
                    name
                }
            },
        };
        let mut current = match patch.constants.get(&name) {
            Some(tensor) => tensor.clone(),
            None => TensorProto { name: Some(name.clone()), ..plain(self.graph, old)? },
        };
        let mut raw = current.raw_data.take().unwrap_or_default().to_vec();
        let size = self.graph.weight_dtype(old).and_then(DType::size).unwrap_or_default();
        let place = origin.index * size..(origin.index + 1) * size;
        let wrong = || CutError::Constant {
            name: old.clone(),
            problem: format!("has no integer number {}", origin.index),
        };
        let target = raw.get_mut(place).ok_or_else(wrong)?;
        let bytes = value.to_le_bytes();
        target.copy_from_slice(bytes.get(..size).ok_or_else(wrong)?);
        current.raw_data = Some(raw.into());
        patch.constants.insert(name, current);
        Ok(())
    }

    /// A name for a constant of the node's own at input `number` that nothing goes by yet.
    fn fresh_name(&self, id: NodeId, number: usize, patch: &Patch) -> String {
        // An output's name is unique in the graph; a node's name need not be.
        let of = self.graph.node(id).output.iter().find(|output| !output.is_empty());
        let base = format!("{}.input{number}.blochd", of.map_or("", String::as_str));
        let taken = |name: &str| {
            self.graph.weight(name).is_some()
                || self.shapes.contains_key(name)
                || patch.constants.contains_key(name)
        };
        let more = (2..).map(|turn| format!("{base}{turn}"));
        let names = std::iter::once(base.clone()).chain(more);
        names.into_iter().find(|name| !taken(name)).unwrap_or(base)
    }

    fn split(&self, id: NodeId, patch: &mut Patch) -> Result<(), CutError> {
        let outputs = &self.graph.node(id).output;
        let rank = outputs.first().and_then(|o| self.shapes.get(o)).map_or(0, |v| v.shape.len());
        let axis = self.graph.attrs(id).int("axis").unwrap_or(0);
        let axis = (if axis < 0 { axis + rank as i64 } else { axis }) as usize;
        if outputs.iter().all(|output| self.removed(output, axis).is_none()) {
            return Ok(());
        }
        let lengths: Option<Vec<i64>> = outputs
            .iter()
            .map(|output| {
                let gone = self.removed(output, axis).map_or(0, BTreeSet::len);
                Some((self.length(output, axis)? - gone) as i64)
            })
            .collect();
        let lengths = lengths.ok_or_else(|| self.refuse(id, "an output's size is unknown"))?;
        if self.graph.model().opset() >= 13 {
            self.set_list(id, 1, &lengths, patch);
            patch.remove_attributes.entry(id).or_default().insert("num_outputs".to_owned());
        } else {
            patch.attributes.entry(id).or_default().push(attr_ints("split", &lengths));
        }
        Ok(())
    }

    fn slice(
        &self,
        id: NodeId,
        input: &str,
        output: &str,
        patch: &mut Patch,
    ) -> Result<(), CutError> {
        let list = |number: usize, name: &str| match self.graph.input(id, number) {
            Some(value) => self.graph.ints(value),
            None => self.graph.attrs(id).ints(name).map(<[i64]>::to_vec),
        };
        let (Some(mut starts), Some(mut ends)) = (list(1, "starts"), list(2, "ends")) else {
            return Ok(());
        };
        let axes = list(3, "axes").unwrap_or_else(|| (0..starts.len() as i64).collect());
        let rank = self.shapes.get(input).map_or(0, |value| value.shape.len()) as i64;
        let mut changed = false;
        for (number, axis) in axes.iter().enumerate() {
            let axis = (if *axis < 0 { axis + rank } else { *axis }) as usize;
            let Some(gone) = self.removed(input, axis) else { continue };
            let length = self.length(input, axis);
            let taken = self.length(output, axis);
            let (Some(length), Some(taken)) = (length, taken) else {
                return Err(self.refuse(id, "a size is unknown"));
            };
            let start = starts[number];
            let start = (if start < 0 { start + length as i64 } else { start })
                .clamp(0, length as i64) as usize;
            let before = start - gone.range(..start).count();
            let kept = taken - gone.range(start..start + taken).count();
            starts[number] = before as i64;
            ends[number] = (before + kept) as i64;
            changed = true;
        }
        if changed && self.graph.input(id, 1).is_some() {
            self.set_list(id, 1, &starts, patch);
            self.set_list(id, 2, &ends, patch);
        } else if changed {
            let new = [attr_ints("starts", &starts), attr_ints("ends", &ends)];
            patch.attributes.entry(id).or_default().extend(new);
        }
        Ok(())
    }

    /// Padded places may be among those that go.
    fn pad(&self, id: NodeId, output: &str, patch: &mut Patch) -> Result<(), CutError> {
        let from_input = self.graph.input(id, 1);
        let pads = match from_input {
            Some(value) => self.graph.ints(value),
            None => self.graph.attrs(id).ints("pads").map(<[i64]>::to_vec),
        };
        let Some(mut pads) = pads else { return Ok(()) };
        let rank = pads.len() / 2;
        let mut changed = false;
        for axis in 0..rank {
            let Some(gone) = self.removed(output, axis) else { continue };
            let length = self.length(output, axis);
            let length = length.ok_or_else(|| self.refuse(id, "its output's size is unknown"))?;
            let (before, after) = (pads[axis].max(0) as usize, pads[axis + rank].max(0) as usize);
            pads[axis] -= gone.range(..before).count() as i64;
            pads[axis + rank] -= gone.range(length.saturating_sub(after)..).count() as i64;
            changed = true;
        }
        if changed && from_input.is_some() {
            self.set_list(id, 1, &pads, patch);
        } else if changed {
            patch.attributes.entry(id).or_default().push(attr_ints("pads", &pads));
        }
        Ok(())
    }
}
