//! Tells nodes of a cut: grouped convolutions, heads, and whoever names sizes or positions in attributes or
//! constant inputs.

use std::collections::BTreeSet;

use super::cut::{CutError, Gone, plain};
use crate::coupling::fused::{head_counts, heads};
use crate::coupling::rules::Node;
use crate::coupling::sizes::{Origin, Size, Sizes};
use crate::onnx::proto::TensorProto;
use crate::onnx::{DType, Graph, NodeId, Patch, Shapes, attr_int, attr_ints, tensor};

/// Tells nodes whose attributes or constant inputs name sizes or positions of what is gone.
pub(super) struct Tell<'a> {
    pub graph: &'a Graph<'a>,
    pub shapes: &'a Shapes,
    pub gone: &'a Gone,
    pub sizes: &'a Sizes,
}

impl Tell<'_> {
    pub fn node(&self, id: NodeId, patch: &mut Patch) -> Result<(), CutError> {
        let Some(input) = self.graph.input(id, 0) else { return Ok(()) };
        let output = self.graph.node(id).output.first().map_or("", String::as_str);
        match self.graph.op(id).as_str() {
            "Conv" | "ConvTranspose" | "com.microsoft.FusedConv" => self.group(id, input, patch),
            "Reshape" | "Expand" => self.target(id, 1, output, patch),
            "Resize" => self.target(id, 3, output, patch),
            "Split" => self.split(id, patch),
            "Slice" => self.slice(id, input, output, patch),
            "Pad" => self.pad(id, output, patch),
            "Attention" | "com.microsoft.Attention" | "com.microsoft.MultiHeadAttention" => {
                self.heads(id, output, patch)
            }
            _ => Ok(()),
        }
    }

    pub(super) fn removed(&self, value: &str, axis: usize) -> Option<&BTreeSet<usize>> {
        self.gone.get(&(value.to_owned(), axis))
    }

    pub(super) fn length(&self, value: &str, axis: usize) -> Option<usize> {
        self.shapes.get(value)?.shape.get(axis).copied().flatten()
    }

    pub(super) fn refuse(&self, id: NodeId, problem: &str) -> CutError {
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
        for name in head_counts(&node.op) {
            attributes.push(attr_int(name, left as i64));
        }
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
    pub(super) fn fresh_name(&self, id: NodeId, number: usize, patch: &Patch) -> String {
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
