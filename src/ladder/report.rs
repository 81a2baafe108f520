//! What a manifest says of a model and of a cut: sizes, removed places, certificates.

use std::collections::BTreeSet;

use faer::linalg::solvers::Solve;
use faer::{Mat, Side};

use super::manifest::{Certificate, FrozenInfo, GroupCut, GroupInfo, LowRank};
use super::packed::Packed;
use super::plan::{Known, Plan};
use super::ranks::Split;
use super::score::{Scored, response_distance};
use crate::coupling::{Coupling, Group};
use crate::onnx::{Graph, Shapes, operators, values};
use crate::surgery::Gone;

/// Multiply-accumulate operations of one request. Operators whose output size is not known before a run
/// are not counted.
pub fn macs(graph: &Graph, shapes: &Shapes) -> u64 {
    let count = |operator: &crate::onnx::Operator| -> Option<u64> {
        let value = &graph.node(operator.node).output[0];
        let shape = &shapes.get(value)?.shape;
        let elements: usize = shape.iter().copied().product::<Option<usize>>()?;
        Some((elements * operator.row_len()) as u64)
    };
    operators(graph).iter().filter_map(count).sum()
}

/// Elements of all floating-point constants.
pub fn parameters(graph: &Graph) -> u64 {
    let count = |name: &str| -> Option<u64> {
        values::floats(graph.weight_dtype(name)?, &[])?;
        Some(graph.weight_dims(name)?.iter().product::<usize>() as u64)
    };
    graph.weights().filter_map(|(name, _)| count(name)).sum()
}

/// The prunable groups of a model, for people and programs.
pub fn groups(coupling: &Coupling) -> Vec<GroupInfo> {
    let info = |group: &Group| GroupInfo {
        name: group.name.clone(),
        width: group.width,
        places: group
            .places
            .iter()
            .map(|place| format!("{}[axis {}]", place.value, place.axis))
            .collect(),
        stream: group.stream,
    };
    coupling.groups.iter().map(info).collect()
}

/// What may not be cut.
pub fn frozen(coupling: &Coupling) -> Vec<FrozenInfo> {
    let info = |frozen: &crate::coupling::Frozen| FrozenInfo {
        what: frozen.what.clone(),
        width: frozen.width,
        because: frozen.because.to_string(),
    };
    coupling.frozen.iter().map(info).collect()
}

/// The channels that each group loses, with their certificates.
pub fn cuts(known: &Known, plan: &Plan) -> Vec<GroupCut> {
    let cut = known.cut(plan);
    let find = |id| known.coupling.groups.iter().find(|group| group.id == id);
    let one = |(id, removed): (&crate::coupling::GroupId, &BTreeSet<usize>)| {
        let (group, scored) = (find(*id)?, known.scored.get(id)?);
        Some(GroupCut {
            group: group.name.clone(),
            width: group.width,
            kept: group.width - removed.len(),
            removed: certificates(scored, removed, group.width),
        })
    };
    cut.removed.iter().filter_map(one).collect()
}

/// The operators that a plan puts in two; `gone` is what else it removes.
pub fn in_two(known: &Known, plan: &Plan, gone: &Gone) -> Vec<LowRank> {
    let splits = known.splits(plan, gone).into_iter();
    let one = |split: Split| LowRank {
        operator: known.graph.label(split.node),
        inputs: split.ranked.inputs,
        outputs: split.ranked.outputs,
        rank: split.rank,
        tail: split.ranked.tail.get(split.rank).copied().unwrap_or_default(),
        held_out: split.ranked.loss.get(split.rank).copied().unwrap_or_default(),
    };
    splits.map(one).collect()
}

fn certificates(scored: &Scored, removed: &BTreeSet<usize>, width: usize) -> Vec<Certificate> {
    let kept: Vec<usize> = (0..width).filter(|channel| !removed.contains(channel)).collect();
    let measured = scored.covariance.as_ref().map(|cov| residuals(cov, &kept, removed));
    let one = |(index, channel): (usize, &usize)| {
        let nearest = scored.covariance.as_ref().and_then(|cov| {
            let distances = kept.iter().map(|k| (response_distance(cov, *channel, *k), *k));
            distances.min_by(|a, b| a.0.total_cmp(&b.0))
        });
        let by = nearest.map_or(kept.first().copied().unwrap_or(0), |(_, kept)| kept);
        Certificate {
            channel: *channel,
            represented_by: by,
            d_fs: scored
                .states
                .get(*channel)
                .zip(scored.states.get(by))
                .and_then(|(a, b)| Some(a.as_ref()?.fubini_study(b.as_ref()?))),
            d_response: nearest.map(|(distance, _)| distance),
            bound: nearest.map(|(distance, _)| distance.sin()),
            measured: measured.as_ref().and_then(|all| all.get(index).copied()),
        }
    };
    removed.iter().enumerate().map(one).collect()
}

/// Relative root-mean-square error of each removed channel when all kept ones stand in for it:
/// √(1 − c·C_KK⁻¹·c / C_ii).
fn residuals(covariance: &Packed<f64>, kept: &[usize], removed: &BTreeSet<usize>) -> Vec<f64> {
    let n = kept.len();
    let mean = kept.iter().map(|k| covariance.at(*k, *k)).sum::<f64>() / n.max(1) as f64;
    let tiny = 1e-6 * mean.max(f64::MIN_POSITIVE);
    let block = Mat::from_fn(n, n, |i, j| {
        covariance.at(kept[i], kept[j]) + if i == j { tiny } else { 0.0 }
    });
    let Ok(factor) = block.llt(Side::Lower) else { return Vec::new() };
    let gone: Vec<usize> = removed.iter().copied().collect();
    let cross = Mat::from_fn(n, gone.len(), |i, j| covariance.at(kept[i], gone[j]));
    let solved = factor.solve(&cross);
    let left = |(j, channel): (usize, &usize)| {
        let own = covariance.at(*channel, *channel);
        let explained: f64 = (0..n).map(|i| cross[(i, j)] * solved[(i, j)]).sum();
        if own > 0.0 { (1.0 - explained / own).max(0.0).sqrt() } else { 0.0 }
    };
    gone.iter().enumerate().map(left).collect()
}
