//! The repair of one operator in closed form: the affine map that, on calibration samples, gives back
//! best what the dense network said, as a ridge regression towards the weights that were there.

use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::cholesky::llt;
use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, Par};

use crate::spectra::moments::Moments;

/// Ridges that are tried, as shares of the mean variance of an input, weakest first. The strongest is for
/// samples that are few against the unknowns.
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
    pub ridge: Option<Ridge>,
}

/// By what a refit is held near the weights that were there.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ridge {
    /// Share of the mean variance of an input.
    pub share: f64,
    /// Whether what is chance in the moments of few samples is taken away besides.
    pub shrunk: bool,
}

/// What was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefitKind {
    /// Nothing was better than what was there.
    Kept,
    /// Only the bias.
    Bias,
    /// Mean and variance of every output.
    Statistics,
    /// Weight and bias.
    Full,
}

impl RefitKind {
    /// The name in manifests.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kept => "none",
            Self::Bias | Self::Statistics => "statistics",
            Self::Full => "refit",
        }
    }
}

/// Finds the best of: the operator as it is, with a new bias, with the mean and variance of every output
/// corrected, refitted with each ridge. The candidates are made from `fit`; `error` tells what one errs by on
/// rows that are held out, relative to the variance of the wanted output.
///
/// W' = W + (C_yx − W·C_xx)·(C_xx + λI)⁻¹ and b' = mean(y) − W'·mean(x), λ = ridge · tr(C_xx)/n. Of few
/// samples moments that are shrunk by what is chance in them are tried as well, see [`Moments`].
pub fn refit(current: &Affine, fit: &Moments, error: &dyn Fn(&Affine) -> f64) -> Refit {
    Start::of(current, fit).refit(error)
}

/// What all repairs of one operator begin with: the operator, the moments of the rows it is fitted on, and
/// W·C_xx.
pub(super) struct Start<'a> {
    pub current: &'a Affine,
    pub fit: &'a Moments,
    product: Mat<f64>,
}

/// The lower Cholesky factor of a ridged covariance; what stands above its diagonal means nothing.
pub(super) struct Factor(Mat<f64>);

impl<'a> Start<'a> {
    pub fn of(current: &'a Affine, fit: &'a Moments) -> Self {
        let weight = current.weight.as_ref();
        let mut product = Mat::<f64>::zeros(weight.nrows(), weight.ncols());
        matmul(product.as_mut(), Accum::Replace, weight, fit.xx.as_ref(), 1.0, Par::Seq);
        Self { current, fit, product }
    }

    /// As [`refit`].
    pub fn refit(&self, error: &dyn Fn(&Affine) -> f64) -> Refit {
        let before = error(self.current);
        let affine = self.current.clone();
        let mut best = Refit { affine, kind: RefitKind::Kept, before, after: before, ridge: None };
        // Comparisons that are false for NaN: a failed candidate never wins.
        for (kind, affine) in self.statistics() {
            let after = error(&affine);
            if after < best.after {
                best = Refit { affine, kind, before, after, ridge: None };
            }
        }
        // Of few samples those on the shrunk moments too. Which of the two errs less on unseen rows depends on
        // how much of the wanted output is noise, which only the held-out samples tell.
        let shrunk: &[bool] = if self.fit.chance > 0.0 { &[false, true] } else { &[false] };
        for shrunk in shrunk {
            let mut weaker = f64::INFINITY;
            for share in RIDGES {
                let ridge = Ridge { share, shrunk: *shrunk };
                let Some(factor) = self.factor(ridge) else { continue };
                let weight = self.towards(&factor, &self.fit.yx);
                let affine = Affine { bias: self.fit.matching_bias(weight.as_ref()), weight };
                let after = error(&affine);
                if after < best.after {
                    best =
                        Refit { affine, kind: RefitKind::Full, before, after, ridge: Some(ridge) };
                }
                // A ridge that was too strong already is not followed by a stronger one: each costs the cube
                // of the inputs.
                if after > weaker {
                    break;
                }
                weaker = after;
            }
        }
        best
    }

    /// W + (C_yx − W·C_xx)·(C_xx + λI)⁻¹, the factor being that of the ridged covariance.
    pub fn towards(&self, factor: &Factor, yx: &Mat<f64>) -> Mat<f64> {
        let (m, n) = (yx.nrows(), yx.ncols());
        let mut step = Mat::from_fn(n, m, |j, i| yx[(i, j)] - self.product[(i, j)]);
        let scratch = llt::solve::solve_in_place_scratch::<f64>(n, m, Par::Seq);
        let mut scratch = MemBuffer::new(scratch);
        let stack = MemStack::new(&mut scratch);
        llt::solve::solve_in_place(factor.0.as_ref(), step.as_mut(), Par::Seq, stack);
        let weight = &self.current.weight;
        Mat::from_fn(m, n, |i, j| weight[(i, j)] + step[(j, i)])
    }

    /// Factor of C_xx + share · tr(C_xx)/n · I, and what few samples ask for besides; `None` where nothing
    /// varies. Made in place, in one copy of C_xx: of a wide operator each takes a hundred megabytes.
    pub fn factor(&self, ridge: Ridge) -> Option<Factor> {
        let moments = self.fit;
        let n = moments.xx.nrows();
        let mean = (0..n).map(|i| moments.xx[(i, i)]).sum::<f64>() / n.max(1) as f64;
        if !(mean.is_finite() && mean > 0.0) {
            return None;
        }
        let mut ridged = moments.xx.clone();
        let chance = |i: usize| if ridge.shrunk { moments.chance_ridge(i) } else { 0.0 };
        (0..n).for_each(|i| ridged[(i, i)] += ridge.share * mean + chance(i));
        let spec = Default::default();
        let scratch = llt::factor::cholesky_in_place_scratch::<f64>(n, Par::Seq, spec);
        let mut scratch = MemBuffer::new(scratch);
        let stack = MemStack::new(&mut scratch);
        let plain = Default::default();
        llt::factor::cholesky_in_place(ridged.as_mut(), plain, Par::Seq, stack, spec).ok()?;
        Some(Factor(ridged))
    }

    /// The operator with the mean of every output corrected, and with mean and variance.
    pub fn statistics(&self) -> [(RefitKind, Affine); 2] {
        let fit = self.fit;
        let shifted =
            |weight: Mat<f64>| Affine { bias: fit.matching_bias(weight.as_ref()), weight };
        let weight = &self.current.weight;
        let scale = |i: usize| {
            let said = (0..weight.ncols()).map(|j| self.product[(i, j)] * weight[(i, j)]).sum();
            matching_scale(said, fit.yy[i])
        };
        let scales: Vec<f64> = (0..weight.nrows()).map(scale).collect();
        let scaled =
            Mat::from_fn(weight.nrows(), weight.ncols(), |i, j| weight[(i, j)] * scales[i]);
        [(RefitKind::Bias, shifted(weight.clone())), (RefitKind::Statistics, shifted(scaled))]
    }
}

/// What gives a value of variance `said` the variance `wanted`; 1 where it hardly varies.
pub(super) fn matching_scale(said: f64, wanted: f64) -> f64 {
    if said > 1e-12 * wanted && said > 0.0 { (wanted / said).sqrt() } else { 1.0 }
}

/// Scales each output and shifts it so that its mean and variance on the rows are those of the wanted
/// output: the repair that every method of selection is compared with.
pub fn match_statistics(current: &Affine, fit: &Moments, error: &dyn Fn(&Affine) -> f64) -> Refit {
    let before = error(current);
    let [_, (kind, affine)] = Start::of(current, fit).statistics();
    let after = error(&affine);
    Refit { affine, kind, before, after, ridge: None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spectra::rows::Rows;

    fn refit(current: Affine, fit: &Moments, check: &Moments) -> Refit {
        super::refit(&current, fit, &|affine| check.relative(affine.weight.as_ref(), &affine.bias))
    }

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

    #[test]
    fn where_rows_are_too_few_to_refit_by_mean_and_variance_are_corrected() {
        // y = 3·(w·x) − 2 of more inputs than rows: no regression finds the direction that is right already.
        let mut rows = Rows { inputs: 30, outputs: 1, ..Rows::default() };
        let noise =
            |i: usize, j: usize| ((i * 7919 + j * 104_729 + i * j * 31) % 997) as f32 / 498.5 - 1.0;
        let weight: Vec<f32> = (0..30).map(|j| noise(500, j)).collect();
        for i in 0..10 {
            let x: Vec<f32> = (0..30).map(|j| noise(i, j)).collect();
            rows.y.push(3.0 * x.iter().zip(&weight).map(|(x, w)| x * w).sum::<f32>() - 2.0);
            rows.x.extend(x);
            rows.sample.push(i as u32);
        }
        let fit = Moments::of(&rows, |sample| sample % 5 != 0).unwrap();
        let check = Moments::of(&rows, |sample| sample % 5 == 0).unwrap();
        let current =
            Affine { weight: Mat::from_fn(1, 30, |_, j| f64::from(weight[j])), bias: vec![0.0] };
        let found = refit(current.clone(), &fit, &check);
        assert_eq!(found.kind, RefitKind::Statistics);
        assert!(found.after < 1e-6 && found.before > 0.1, "{} {}", found.before, found.after);
        assert!((found.affine.bias[0] + 2.0).abs() < 1e-3);
        // A correction that the held-out rows do not bear out is not kept: they say what the operator says.
        let kept = Moments { mean_y: check.output_means(current.weight.as_ref()), ..check.clone() };
        let yx = &current.weight * &check.xx;
        let yy = vec![(&yx * current.weight.transpose())[(0, 0)]];
        let found = refit(current, &fit, &Moments { yx, yy, ..kept });
        assert_eq!(found.kind, RefitKind::Kept);
    }

    #[test]
    fn of_eight_samples_the_refit_on_shrunk_moments_errs_less_on_rows_that_it_has_not_seen() {
        use rand::{RngExt, SeedableRng};
        use rand_chacha::ChaCha8Rng;
        const INPUTS: usize = 24;
        let normal = |rng: &mut ChaCha8Rng| (0..12).map(|_| rng.random::<f32>()).sum::<f32>() - 6.0;
        // Inputs of very different sizes, of which few matter; rows of one sample share most of what they are.
        let size = |j: usize| 10f32.powf((j * 7 % INPUTS) as f32 / 12.0 - 1.0);
        let draw = |samples: u32, positions: usize, truth: &[f32], rng: &mut ChaCha8Rng| {
            let mut rows = Rows { inputs: INPUTS, outputs: 1, ..Rows::default() };
            for sample in 0..samples {
                let shared: Vec<f32> = (0..INPUTS).map(|_| 2.0 * normal(rng)).collect();
                let about = 2.0 * normal(rng);
                for _ in 0..positions {
                    let x: Vec<f32> = shared.iter().map(|s| s + normal(rng)).collect();
                    let y: f32 = x.iter().zip(truth).map(|(x, t)| x * t).sum();
                    rows.y.push(y + about + normal(rng));
                    rows.x.extend(x.iter().enumerate().map(|(j, x)| x * size(j)));
                    rows.sample.push(sample);
                }
            }
            rows
        };
        let (mut plain, mut shrunk) = (0.0, 0.0);
        for seed in 0..100 {
            let rng = &mut ChaCha8Rng::seed_from_u64(seed);
            let truth: Vec<f32> =
                (0..INPUTS).map(|j| if j < 3 { 0.5 * normal(rng) } else { 0.0 }).collect();
            let rows = draw(8, 12, &truth, rng);
            let unseen = Moments::of(&draw(300, 2, &truth, rng), |_| true).unwrap();
            let fit = Moments::of(&rows, |sample| sample % 5 != 0).unwrap();
            let check = Moments::of(&rows, |sample| sample % 5 == 0).unwrap();
            let nothing = || Affine { weight: Mat::zeros(1, INPUTS), bias: vec![0.0] };
            let error = |fit: &Moments| {
                let found = refit(nothing(), fit, &check).affine;
                unseen.error(found.weight.as_ref(), &found.bias) / unseen.variance()
            };
            shrunk += error(&fit);
            plain += error(&Moments { chance: 0.0, ..fit.clone() });
        }
        assert!(shrunk < 0.99 * plain, "{} against {}", shrunk / 100.0, plain / 100.0);
    }
}
