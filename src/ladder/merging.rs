//! Which kept channels of a planned cut stand in for those that go: the ones that the caller says they are
//! merged into, or all of them by ridge regression on the channels' covariance.

use std::collections::BTreeMap;

use faer::linalg::solvers::Solve;
use faer::{Mat, Side};

use super::plan::{Known, Plan, PlanError};
use super::score::Scored;
use crate::coupling::{Group, GroupId};
use crate::onnx::Model;
use crate::surgery::merge::{Merge, merge};

/// Share of the mean variance of a kept channel that the regression adds to each.
const RIDGE: f64 = 1e-3;

impl Known<'_> {
    /// The model of [`Known::narrowed`], in which kept channels stand in for those that go.
    ///
    /// # Errors
    /// Where the cut is refused.
    pub fn merged(&self, plan: &Plan) -> Result<Model, PlanError> {
        let merges = self.merges(plan);
        if merges.is_empty() {
            return self.narrowed(plan);
        }
        self.narrowed_of(&merge(self.graph.model(), self.coupling, &merges)?, plan)
    }

    fn merges(&self, plan: &Plan) -> BTreeMap<GroupId, Merge> {
        let cut = self.cut(plan);
        let one = |group: &Group| {
            let (gone, scored) = (cut.removed.get(&group.id)?, self.scored.get(&group.id)?);
            let kept = (0..group.width).filter(|channel| !gone.contains(channel)).collect();
            Some((group.id, merge_of(scored, group, kept)?))
        };
        self.coupling.groups.iter().filter_map(one).collect()
    }
}

/// `None` where channels just go.
fn merge_of(scored: &Scored, group: &Group, kept: Vec<usize>) -> Option<Merge> {
    if scored.into.is_empty() && scored.by_reader.is_empty() {
        return None;
    }
    let members = members(&scored.into, group.width, &kept);
    let counts: Vec<f64> = members.row_iter().map(|row| row.iter().sum()).collect();
    let written =
        Mat::from_fn(kept.len(), group.width, |row, channel| members[(row, channel)] / counts[row]);
    let read = group.consumers.iter().map(|consumer| {
        let by_ridge = match scored.by_reader.get(&consumer.node) {
            Some(covariance) => ridge(&covariance.whole(), &written),
            None => None,
        };
        (consumer.node, by_ridge.unwrap_or_else(|| members.clone()))
    });
    let read = read.collect();
    Some(Merge { kept, written: (!scored.into.is_empty()).then_some(written), read })
}

/// 1 where a channel is, or is merged into, a kept one: kept × width.
fn members(into: &[usize], width: usize, kept: &[usize]) -> Mat<f64> {
    let mut found = Mat::zeros(kept.len(), width);
    for channel in 0..width {
        let mut at = channel;
        // Every step leads to a channel that goes later.
        let end = loop {
            match (kept.binary_search(&at), into.get(at)) {
                (Ok(row), _) => break Some(row),
                (Err(_), Some(next)) if *next != at => at = *next,
                (Err(_), _) => break None,
            }
        };
        if let Some(row) = end {
            found[(row, channel)] = 1.0;
        }
    }
    found
}

/// What part of each channel the kept ones explain: (P·C·Pᵀ + λI)⁻¹·P·C, kept × width, where P (kept × width)
/// makes the kept channels of all and C is the channels' covariance.
fn ridge(covariance: &Mat<f64>, written: &Mat<f64>) -> Option<Mat<f64>> {
    let crossed = written * covariance;
    let mut own = &crossed * written.transpose();
    let n = own.nrows();
    let mean = (0..n).map(|i| own[(i, i)]).sum::<f64>() / n.max(1) as f64;
    if !(mean.is_finite() && mean > 0.0) {
        return None;
    }
    (0..n).for_each(|i| own[(i, i)] += RIDGE * mean);
    Some(own.llt(Side::Lower).ok()?.solve(&crossed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_channel_is_merged_into_the_first_kept_one_on_its_way() {
        // 0 → 1 → 4, 2 → 3, and 3 just goes.
        let into = [1, 4, 3, 3, 4];
        let of = |kept: &[usize]| -> Vec<Vec<usize>> {
            let found = members(&into, 5, kept);
            (0..kept.len()).map(|r| (0..5).filter(|c| found[(r, *c)] == 1.0).collect()).collect()
        };
        assert_eq!(of(&[1, 3, 4]), [vec![0, 1], vec![2, 3], vec![4]]);
        assert_eq!(of(&[4]), [vec![0, 1, 4]]);
        assert_eq!(members(&[], 2, &[1]), Mat::from_fn(1, 2, |_, j| j as f64));
    }

    #[test]
    fn ridge_gives_back_channels_that_are_sums_of_kept_ones() {
        // Two channels of variance 1 and 4, and one that is the first minus half of the second.
        let mix = Mat::from_fn(3, 2, |i, j| [[1.0, 0.0], [0.0, 2.0], [1.0, -1.0]][i][j]);
        let covariance = &mix * mix.transpose();
        let written = members(&[], 3, &[0, 1]);
        let found = ridge(&covariance, &written).unwrap();
        let expected = [[1.0, 0.0, 1.0], [0.0, 1.0, -0.5]];
        for (row, values) in expected.iter().enumerate() {
            for (column, value) in values.iter().enumerate() {
                let difference: f64 = found[(row, column)] - value;
                assert!(difference.abs() < 5e-3, "{row} {column}: {}", found[(row, column)]);
            }
        }
        assert!(ridge(&Mat::zeros(3, 3), &written).is_none());
    }
}
