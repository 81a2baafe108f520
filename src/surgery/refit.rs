//! The repair of one operator in closed form: the affine map that, on calibration samples, gives back
//! best what the dense network said, as a ridge regression towards the weights that were there.

use faer::linalg::matmul::matmul;
use faer::linalg::solvers::Solve;
use faer::{Accum, Mat, MatRef, Par, Side};

use crate::spectra::moments::Moments;

/// Ridges that are tried, as shares of the mean variance of an input. The strongest is for samples that
/// are few against the unknowns.
const RIDGES: [f64; 4] = [0.01, 0.1, 1.0, 10.0];

/// An operator's weight (outputs × columns) and bias.
#[derive(Debug, Clone)]
pub struct Affine {
    pub weight: Mat<f64>,
    pub bias: Vec<f64>,
}

/// A repaired operator and what the repair is worth on samples that it did not see.
#[derive(Debug, Clone)]
pub struct Refit {
    pub affine: Affine,
    pub kind: RefitKind,
    /// Mean squared error on the held-out rows, relative to the variance of the wanted output, of the
    /// operator as it was and as it is now.
    pub before: f64,
    pub after: f64,
    /// The ridge that was best, where the weight was refitted.
    pub ridge: Option<f64>,
}

/// What was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefitKind {
    /// Nothing was better than what was there.
    Kept,
    /// Only the bias.
    Bias,
    /// Weight and bias.
    Full,
}

impl RefitKind {
    /// The name in manifests.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kept => "none",
            Self::Bias => "statistics",
            Self::Full => "refit",
        }
    }
}

/// Finds the best of: the operator as it is, with a new bias, refitted with each ridge. The candidates
/// are made from `fit` and judged on `check`.
///
/// W' = W + (C_yx − W·C_xx)·(C_xx + λI)⁻¹ and b' = mean(y) − W'·mean(x), λ = ridge · tr(C_xx)/n.
pub fn refit(current: Affine, fit: &Moments, check: &Moments) -> Refit {
    let relative = |affine: &Affine| {
        check.error(affine.weight.as_ref(), &affine.bias) / check.variance().max(f64::MIN_POSITIVE)
    };
    let before = relative(&current);
    let shifted =
        Affine { bias: fit.matching_bias(current.weight.as_ref()), weight: current.weight.clone() };
    let residual = residual(current.weight.as_ref(), fit);
    let full = RIDGES.iter().filter_map(|ridge| {
        let weight = solve(current.weight.as_ref(), &residual, fit, *ridge)?;
        let affine = Affine { bias: fit.matching_bias(weight.as_ref()), weight };
        Some((RefitKind::Full, affine, Some(*ridge)))
    });
    let kept = (current.clone(), RefitKind::Kept);
    let mut best = Refit { affine: kept.0, kind: kept.1, before, after: before, ridge: None };
    for (kind, affine, ridge) in std::iter::once((RefitKind::Bias, shifted, None)).chain(full) {
        let after = relative(&affine);
        // A comparison that is false for NaN: a failed candidate never wins.
        if after < best.after {
            best = Refit { affine, kind, before, after, ridge };
        }
    }
    best
}

/// C_yx − W·C_xx.
fn residual(weight: MatRef<'_, f64>, moments: &Moments) -> Mat<f64> {
    let mut residual = moments.yx.clone();
    matmul(residual.as_mut(), Accum::Add, weight, moments.xx.as_ref(), -1.0, Par::Seq);
    residual
}

fn solve(
    weight: MatRef<'_, f64>,
    residual: &Mat<f64>,
    moments: &Moments,
    ridge: f64,
) -> Option<Mat<f64>> {
    let step = ridged(moments, ridge)?.llt(Side::Lower).ok()?.solve(residual.transpose());
    Some(weight + step.transpose())
}

/// C_xx + ridge · tr(C_xx)/n · I; `None` where nothing varies.
pub(super) fn ridged(moments: &Moments, ridge: f64) -> Option<Mat<f64>> {
    let n = moments.xx.nrows();
    let mean = (0..n).map(|i| moments.xx[(i, i)]).sum::<f64>() / n.max(1) as f64;
    if !(mean.is_finite() && mean > 0.0) {
        return None;
    }
    let mut ridged = moments.xx.clone();
    (0..n).for_each(|i| ridged[(i, i)] += ridge * mean);
    Some(ridged)
}

/// Scales each output and shifts it so that its mean and variance on the rows are those of the wanted
/// output: the repair that every method of selection is compared with.
pub fn match_statistics(current: Affine, fit: &Moments, check: &Moments) -> Refit {
    let relative = |affine: &Affine| {
        check.error(affine.weight.as_ref(), &affine.bias) / check.variance().max(f64::MIN_POSITIVE)
    };
    let before = relative(&current);
    let mut weight = current.weight;
    let mut product = Mat::<f64>::zeros(weight.nrows(), weight.ncols());
    matmul(product.as_mut(), Accum::Replace, weight.as_ref(), fit.xx.as_ref(), 1.0, Par::Seq);
    for i in 0..weight.nrows() {
        let variance: f64 = (0..weight.ncols()).map(|j| product[(i, j)] * weight[(i, j)]).sum();
        if variance > 1e-12 * fit.yy[i] && variance > 0.0 {
            let scale = (fit.yy[i] / variance).sqrt();
            (0..weight.ncols()).for_each(|j| weight[(i, j)] *= scale);
        }
    }
    let affine = Affine { bias: fit.matching_bias(weight.as_ref()), weight };
    let after = relative(&affine);
    Refit { affine, kind: RefitKind::Bias, before, after, ridge: None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spectra::rows::Rows;

    /// Rows of y = A·(x, hidden) where hidden = x₀ + 0.1·x₁ is no longer an input.
    fn rows(count: usize) -> Rows {
        let mut rows = Rows { inputs: 3, outputs: 2, ..Rows::default() };
        for i in 0..count {
            let x: Vec<f32> =
                (0..3).map(|j| ((i * 7919 + j * 104_729) % 1000) as f32 / 500.0 - 1.0).collect();
            let hidden = x[0] + 0.1 * x[1];
            rows.y.extend([x[0] + 2.0 * hidden + 0.5, x[2] - hidden]);
            rows.x.extend(x);
            rows.sample.push(i as u32);
        }
        rows
    }

    #[test]
    fn what_a_removed_channel_said_is_taken_over_by_those_that_explain_it() {
        let rows = rows(4000);
        let fit = Moments::of(&rows, |sample| sample % 5 != 0).unwrap();
        let check = Moments::of(&rows, |sample| sample % 5 == 0).unwrap();
        let weight =
            Mat::from_fn(2, 3, |i, j| f64::from(u8::from((i, j) == (0, 0) || (i, j) == (1, 2))));
        let found = refit(Affine { weight, bias: vec![0.0, 0.0] }, &fit, &check);
        assert_eq!(found.kind, RefitKind::Full);
        assert!(found.before > 0.4 && found.after < 1e-3, "{} {}", found.before, found.after);
        assert!((found.affine.weight[(0, 0)] - 3.0).abs() < 0.05);
        assert!((found.affine.bias[0] - 0.5).abs() < 0.05);
    }

    #[test]
    fn an_operator_that_is_right_already_is_left_alone() {
        let rows = rows(500);
        let fit = Moments::of(&rows, |sample| sample % 5 != 0).unwrap();
        let check = Moments::of(&rows, |sample| sample % 5 == 0).unwrap();
        let weight = Mat::from_fn(2, 3, |i, j| [[3.0, 0.2, 0.0], [-1.0, -0.1, 1.0]][i][j]);
        let found = refit(Affine { weight, bias: vec![0.5, 0.0] }, &fit, &check);
        assert!(found.after <= 1e-9, "{}", found.after);
    }

    #[test]
    fn does_not_refit_on_samples_that_say_nothing_about_the_held_out_ones() {
        // Few rows of pure noise: any fit is worse on the held-out half than the true zero map.
        let mut rows = Rows { inputs: 12, outputs: 1, ..Rows::default() };
        for i in 0..16u32 {
            let value =
                |j: u32| (((i * 2_654_435 + j * 40_503) ^ (i << 7)) % 997) as f32 / 498.5 - 1.0;
            rows.x.extend((0..12).map(value));
            rows.y.push(value(99));
            rows.sample.push(i);
        }
        let fit = Moments::of(&rows, |sample| sample < 8).unwrap();
        let check = Moments::of(&rows, |sample| sample >= 8).unwrap();
        let zero = Affine { weight: Mat::zeros(1, 12), bias: vec![0.0] };
        let found = refit(zero, &fit, &check);
        assert!(found.after <= found.before);
    }
}
