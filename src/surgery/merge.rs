//! Channels that stay take over from those that go, before the cut: what writes a kept channel becomes a
//! combination of what wrote several, and what reads the group hears the kept ones for all of them. So model
//! folding (arXiv 2502.10216) merges channels, and a ridge regression on the channels' covariance compensates
//! for those that were pruned (GRAIL, arXiv 2602.23795).

use std::collections::BTreeMap;

use faer::Mat;

use super::cut::{CutError, plain};
use super::low_rank::output_axis;
use crate::coupling::{Coupling, Group, GroupId, Place};
use crate::onnx::proto::TensorProto;
use crate::onnx::{DType, Graph, Model, NodeId, Patch, operators, tensor, values};

/// What the kept channels of one group take over. All matrices are kept × width: row k says which part of each
/// channel kept channel k takes.
#[derive(Debug, Clone, Default)]
pub struct Merge {
    pub kept: Vec<usize>,
    /// Of which channels a kept one is made; `None` leaves them as they are.
    pub written: Option<Mat<f64>>,
    /// For which channels a reader hears a kept one; a reader without an entry hears it for itself alone.
    pub read: BTreeMap<NodeId, Mat<f64>>,
}

/// The constants and axes along which operators sum over a group's channels, with the first such operator.
pub fn readings(graph: &Graph, group: &Group) -> BTreeMap<(String, usize), NodeId> {
    let mut found = BTreeMap::new();
    for operator in operators(graph) {
        if group.consumers.iter().any(|consumer| consumer.node == operator.node) {
            let axis = 1 - output_axis(&operator);
            found.entry((operator.weight, axis)).or_insert(operator.node);
        }
    }
    found
}

/// The model with the merges made, of the same sizes: what the channels that go say still stands there, for
/// the cut to take away.
///
/// # Errors
/// Where the coupling was not made from this model, or a constant's data is missing.
pub fn merge(
    model: &Model,
    coupling: &Coupling,
    merges: &BTreeMap<GroupId, Merge>,
) -> Result<Model, CutError> {
    let graph = Graph::new(model);
    let mut patch = Patch::default();
    for group in &coupling.groups {
        let Some(merge) = merges.get(&group.id) else { continue };
        let readings = readings(&graph, group);
        for place in group.places.iter().filter(|place| place.constant) {
            let map = match readings.get(&(place.value.clone(), place.axis)) {
                Some(reader) => merge.read.get(reader),
                None => merge.written.as_ref(),
            };
            let Some(map) = map else { continue };
            let current = match patch.constants.get(&place.value) {
                Some(tensor) => tensor.clone(),
                None => plain(&graph, &place.value)?,
            };
            let mixed = mixed(&current, place, &merge.kept, map)?;
            patch.constants.insert(place.value.clone(), mixed);
        }
    }
    Ok(patch.apply(model)?)
}

/// A constant whose kept channels are the combinations of channels that `map` (kept × width) tells. One whose
/// elements are no floating-point numbers stays as it is.
fn mixed(
    current: &TensorProto,
    place: &Place,
    kept: &[usize],
    map: &Mat<f64>,
) -> Result<TensorProto, CutError> {
    let raw = current.raw_data.clone().unwrap_or_default();
    let dtype = current.data_type.and_then(DType::from_onnx);
    let Some((dtype, old)) = dtype.and_then(|dtype| Some((dtype, values::floats(dtype, &raw)?)))
    else {
        return Ok(current.clone());
    };
    let dims: Vec<usize> = current.dims.iter().map(|dim| *dim as usize).collect();
    let length = dims.get(place.axis).copied().unwrap_or(0);
    let fits = place.index.iter().flatten().all(|index| (*index as usize) < length);
    let sized = (map.nrows(), map.ncols()) == (kept.len(), place.index.len());
    if !fits || !sized || kept.iter().any(|channel| *channel >= place.index.len()) {
        let what = format!("axis {} of {:?} does not hold the group", place.axis, place.value);
        return Err(CutError::Mismatch(what));
    }
    let inner: usize = dims[place.axis + 1..].iter().product();
    let plane = length * inner;
    let mut new = old.clone();
    let mut sum = vec![0.0; inner];
    for start in (0..old.len()).step_by(plane.max(1)) {
        for (row, channel) in kept.iter().enumerate() {
            for (part, target) in place.index[*channel].iter().enumerate() {
                sum.fill(0.0);
                for (column, places) in place.index.iter().enumerate() {
                    let (share, source) = (map[(row, column)], places.get(part));
                    let Some(source) = source.filter(|_| share != 0.0) else { continue };
                    let source = &old[start + *source as usize * inner..][..inner];
                    sum.iter_mut().zip(source).for_each(|(s, v)| *s += share * f64::from(*v));
                }
                let target = &mut new[start + *target as usize * inner..][..inner];
                target.iter_mut().zip(&sum).for_each(|(target, sum)| *target = *sum as f32);
            }
        }
    }
    let bytes = values::float_bytes(dtype, &new).unwrap_or_default();
    Ok(tensor(&place.value, dtype, &dims, bytes))
}
