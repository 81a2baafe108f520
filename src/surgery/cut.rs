//! Removes channels: every place of a group loses the same ones, and what names their number is put right.

use std::collections::{BTreeMap, BTreeSet};

use super::tell::Tell;
use crate::coupling::sizes::Sizes;
use crate::coupling::{Coupling, GroupId};
use crate::onnx::proto::TensorProto;
use crate::onnx::{DType, Graph, Model, NodeId, OnnxError, Patch, Shapes, tensor};

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
    tell.norms(&mut patch)?;
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
pub(super) fn plain(graph: &Graph, value: &str) -> Result<TensorProto, CutError> {
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
