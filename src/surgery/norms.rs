//! Tells normalisations of a cut of the channels that they work along: of n channels n' are left, γ becomes
//! γ·√(n/n') and ε becomes ε·n/n' (see [`crate::coupling::Norm`]).

use std::collections::{BTreeMap, BTreeSet};

use super::cut::{CutError, plain};
use super::tell::Tell;
use crate::coupling::{Epsilon, Norm, norms};
use crate::onnx::proto::TensorProto;
use crate::onnx::{NodeId, Patch, attr_float, values};

impl Tell<'_> {
    /// Tells all normalisations of the graph.
    pub fn norms(&self, patch: &mut Patch) -> Result<(), CutError> {
        // Several normalisations may share a node that adds ε.
        let mut factors: BTreeMap<(NodeId, usize), f64> = BTreeMap::new();
        for norm in norms(self.graph) {
            let Some(ratio) = self.narrowed(&norm)? else { continue };
            factors.insert(norm.scale_at, ratio.sqrt());
            match norm.epsilon {
                Epsilon::None => {}
                Epsilon::Attribute(epsilon) => {
                    let told = attr_float("epsilon", (f64::from(epsilon) * ratio) as f32);
                    patch.attributes.entry(norm.scale_at.0).or_default().push(told);
                }
                Epsilon::Constant(node, input) => {
                    factors.insert((node, input), ratio);
                }
            }
        }
        factors.into_iter().try_for_each(|(at, factor)| self.multiply(at, factor, patch))
    }

    /// How many times as many channels there were, where the cut takes some.
    fn narrowed(&self, norm: &Norm) -> Result<Option<f64>, CutError> {
        let rank = self.shapes.get(&norm.output).map_or(0, |value| value.shape.len());
        let Some(last) = rank.checked_sub(1) else { return Ok(None) };
        let Some(gone) = self.removed(&norm.output, last).map(BTreeSet::len) else {
            return Ok(None);
        };
        let length = self.length(&norm.output, last).filter(|length| gone < *length);
        let length = length.filter(|length| norm.divides(self.graph, rank, *length));
        let wrong = || self.refuse(norm.scale_at.0, "its form has no rule");
        let length = length.ok_or_else(wrong)?;
        Ok(Some(length as f64 / (length - gone) as f64))
    }

    /// Multiplies the constant at an input of a node: in its place, or in one of the node's own where others
    /// read it too.
    fn multiply(
        &self,
        (node, input): (NodeId, usize),
        factor: f64,
        patch: &mut Patch,
    ) -> Result<(), CutError> {
        let Some(old) = self.graph.input(node, input) else { return Ok(()) };
        let current = match patch.constants.get(old) {
            Some(tensor) => tensor.clone(),
            None => plain(self.graph, old)?,
        };
        let wrong = || CutError::Constant {
            name: old.to_owned(),
            problem: "holds no floating-point numbers".to_owned(),
        };
        let dtype = self.graph.weight_dtype(old).ok_or_else(wrong)?;
        let raw = current.raw_data.clone().unwrap_or_default();
        let numbers = values::floats(dtype, &raw).ok_or_else(wrong)?;
        let scaled: Vec<f32> =
            numbers.iter().map(|number| (f64::from(*number) * factor) as f32).collect();
        let bytes = values::float_bytes(dtype, &scaled).ok_or_else(wrong)?;
        let name = if self.graph.uses(old).len() == 1 {
            old.to_owned()
        } else {
            let name = self.fresh_name(node, input, patch);
            patch.inputs.insert((node, input), name.clone());
            name
        };
        let told =
            TensorProto { name: Some(name.clone()), raw_data: Some(bytes.into()), ..current };
        patch.constants.insert(name, told);
        Ok(())
    }
}
