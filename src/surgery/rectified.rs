//! Refits an operator behind which a rectifier stands: where the dense network was silent, anything that
//! stays silent is right, and the freedom goes into the values that are heard.
//!
//! Alternates between the target (a wanted value where it is heard, else the nearest silent one to what
//! the operator says now) and the ridge regression towards it; each step lowers the rectified error on
//! the rows that are fitted. After the non-linear reconstruction of Zhang et al. (arXiv 1505.06798).

use faer::Mat;

use super::held_out::predict;
use super::refit::{Affine, Refit, RefitKind, Start};
use crate::spectra::moments::cross_moments;
use crate::spectra::rows::RowSource;

/// Alternations. Most of the gain comes with the first two.
const STEPS: usize = 4;

/// Share of the error that a step takes off at least where another one follows.
const WORTH_A_STEP: f64 = 0.005;

/// Where the values behind an operator are heard.
#[derive(Debug, Clone)]
pub struct Gate {
    /// What the rectifier reads when the operator says what is wanted, rows × outputs, row-major.
    pub after: Vec<f32>,
    /// By what an output of the operator is multiplied on its way there; 0 where no rectifier counts.
    pub scale: Vec<f32>,
}

/// Improves `plain`, a refit from `start` on the rows that `held_out` does not hold back. The result is the
/// best on the held-out rows of `plain`, its improvements, the operator with its statistics corrected, and the
/// operator itself. Errors are those behind the rectifier, relative to the variance there.
pub(super) fn refit_rectified(
    plain: Refit,
    start: &Start,
    rows: &dyn RowSource,
    gate: &Gate,
    held_out: impl Fn(u32) -> bool,
) -> Refit {
    let Start { current, fit, .. } = start;
    let samples = rows.samples();
    let (check, fitted): (Vec<usize>, Vec<usize>) =
        (0..samples.len()).partition(|row| held_out(samples[*row]));
    let heard = Heard::of(rows, gate);
    let loudness = heard.variance(&check).max(f64::MIN_POSITIVE);
    let error = |affine: &Affine| heard.error(&predict(rows, &check, affine), &check) / loudness;
    let before = error(current);
    let (affine, kind) = ((*current).clone(), RefitKind::Kept);
    let mut best = Refit { affine, kind, before, after: before, ridge: None };
    let ridge = plain.ridge;
    let candidates = start.statistics().map(|(kind, affine)| {
        let after = error(&affine);
        Refit { affine, kind, before, after, ridge: None }
    });
    let plain = Refit { before, after: error(&plain.affine), ..plain };
    let mut latest = plain.affine.clone();
    for candidate in std::iter::once(plain).chain(candidates) {
        // A comparison that is false for NaN: a failed candidate never wins.
        if candidate.after < best.after {
            best = candidate;
        }
    }
    let Some(factor) = ridge.and_then(|ridge| start.factor(ridge)) else { return best };
    for _ in 0..STEPS {
        let wanted = heard.wanted(&predict(rows, &fitted, &latest), &fitted);
        let (mean, yx) = cross_moments(rows, &fitted, &wanted, &fit.mean_x);
        let weight = start.towards(&factor, &yx);
        let shift = fit.output_means(weight.as_ref());
        let bias = mean.iter().zip(shift).map(|(mean, shift)| mean - shift).collect();
        latest = Affine { weight, bias };
        let (after, last) = (error(&latest), best.after);
        if after < last {
            let (affine, kind) = (latest.clone(), RefitKind::Full);
            best = Refit { affine, kind, before, after, ridge };
        }
        // False for NaN, too.
        let gains = after < (1.0 - WORTH_A_STEP) * last;
        if !gains {
            break;
        }
    }
    best
}

struct Heard<'a> {
    /// The wanted outputs, rows × outputs.
    y: Vec<f32>,
    outputs: usize,
    gate: &'a Gate,
}

impl<'a> Heard<'a> {
    fn of(rows: &dyn RowSource, gate: &'a Gate) -> Self {
        Self { y: wanted(rows), outputs: rows.outputs(), gate }
    }
}

/// The wanted outputs of all rows, rows × outputs.
pub fn wanted(rows: &dyn RowSource) -> Vec<f32> {
    let mut y = Vec::with_capacity(rows.samples().len() * rows.outputs());
    (0..rows.samples().len()).for_each(|row| rows.push_y(row, &mut y));
    y
}

impl Heard<'_> {
    /// (wanted output, what the rectifier reads then, scale) of one element.
    fn at(&self, row: usize, output: usize) -> (f32, f32, f32) {
        let index = row * self.outputs + output;
        (self.y[index], self.gate.after[index], self.gate.scale[output])
    }

    /// Sum over `chosen` rows, of which `said` is what is said, of the squared error behind the rectifier, in
    /// units of the operator's output.
    fn error(&self, said: &Mat<f32>, chosen: &[usize]) -> f64 {
        let mut sum = 0.0;
        for output in 0..self.outputs {
            for (place, row) in chosen.iter().enumerate() {
                let (y, after, scale) = self.at(*row, output);
                let said = said[(place, output)];
                let error = match scale == 0.0 {
                    true => said - y,
                    false => ((after + scale * (said - y)).max(0.0) - after.max(0.0)) / scale,
                };
                sum += f64::from(error).powi(2);
            }
        }
        sum
    }

    /// Sum over `chosen` rows of the squared deviation of the wanted values from their mean.
    fn variance(&self, chosen: &[usize]) -> f64 {
        let mut sum = 0.0;
        for output in 0..self.outputs {
            let values = chosen.iter().map(|row| {
                let (y, after, scale) = self.at(*row, output);
                f64::from(if scale == 0.0 { y } else { after.max(0.0) / scale })
            });
            let (total, square) = values.fold((0.0, 0.0), |(t, s), v| (t + v, s + v * v));
            sum += square - total * total / chosen.len().max(1) as f64;
        }
        sum
    }

    /// The nearest values to what is `said` of the chosen rows that are right, chosen rows × outputs,
    /// row-major.
    fn wanted(&self, said: &Mat<f32>, chosen: &[usize]) -> Vec<f32> {
        let mut wanted = Vec::with_capacity(chosen.len() * self.outputs);
        for (place, row) in chosen.iter().enumerate() {
            wanted.extend((0..self.outputs).map(|output| {
                let (y, after, scale) = self.at(*row, output);
                let said = said[(place, output)];
                if scale == 0.0 || after > 0.0 {
                    y
                } else if after + scale * (said - y) <= 0.0 {
                    said
                } else {
                    y - after / scale
                }
            }));
        }
        wanted
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spectra::moments::Moments;
    use crate::spectra::rows::Rows;

    fn refit(current: Affine, fit: &Moments, check: &Moments) -> Refit {
        Start::of(&current, fit)
            .refit(&|affine| check.relative(affine.weight.as_ref(), &affine.bias))
    }

    fn rectified(plain: Refit, current: &Affine, rows: &Rows, gate: &Gate, fit: &Moments) -> Refit {
        refit_rectified(plain, &Start::of(current, fit), rows, gate, held_out)
    }

    fn held_out(sample: u32) -> bool {
        sample.is_multiple_of(5)
    }

    /// y = 2·x₀ + x₁ − |x₀|·3 where that is silent behind a rectifier, so that a linear map is right
    /// about everything that is heard, and no linear map is right about the rest.
    fn rows(count: usize) -> Rows {
        let mut rows = Rows { inputs: 2, outputs: 1, ..Rows::default() };
        for i in 0..count {
            let at = |j: usize| ((i * 7919 + j * 104_729) % 1000) as f32 / 500.0 - 1.0;
            let (a, b) = (at(0), at(1));
            let linear = 2.0 * a + b;
            rows.y.push(if linear > 0.0 { linear } else { linear * 8.0 - 3.0 });
            rows.x.extend([a, b]);
            rows.sample.push(i as u32);
        }
        rows
    }

    #[test]
    fn what_is_silent_does_not_bend_what_is_heard() {
        let rows = rows(3000);
        let fit = Moments::of(&rows, |sample| !held_out(sample)).unwrap();
        let check = Moments::of(&rows, held_out).unwrap();
        let current = Affine { weight: Mat::zeros(1, 2), bias: vec![0.0] };
        let gate = Gate { after: rows.y.clone(), scale: vec![1.0] };
        let plain = refit(current.clone(), &fit, &check);
        let ungated = Gate { scale: vec![0.0], ..gate.clone() };
        let as_it_was = rectified(plain.clone(), &current, &rows, &ungated, &fit);
        assert!(
            (as_it_was.after - plain.after).abs() < 1e-3,
            "nothing to gain without a rectifier"
        );
        let linear = Heard::of(&rows, &gate);
        let chosen: Vec<usize> = (0..rows.count()).collect();
        let heard = |affine: &Affine| {
            linear.error(&predict(&rows, &chosen, affine), &chosen) / linear.variance(&chosen)
        };
        let found = rectified(plain.clone(), &current, &rows, &gate, &fit);
        let (bent, straight) = (heard(&plain.affine), heard(&found.affine));
        assert!(straight < 0.4 * bent, "{straight} against {bent}");
        assert!((found.after - straight).abs() < 0.1, "{} {straight}", found.after);
    }

    #[test]
    fn a_negative_scale_is_heard_on_the_other_side() {
        let mut rows = rows(2000);
        let after = rows.y.clone();
        rows.y.iter_mut().for_each(|y| *y *= -0.5);
        let fit = Moments::of(&rows, |sample| !held_out(sample)).unwrap();
        let check = Moments::of(&rows, held_out).unwrap();
        let current = Affine { weight: Mat::zeros(1, 2), bias: vec![0.0] };
        let plain = refit(current.clone(), &fit, &check);
        let gate = Gate { after, scale: vec![-2.0] };
        let start = rectified(plain.clone(), &current, &rows, &gate, &fit);
        let heard = Heard::of(&rows, &gate);
        let check: Vec<usize> = (0..rows.count()).step_by(5).collect();
        let bent =
            heard.error(&predict(&rows, &check, &plain.affine), &check) / heard.variance(&check);
        assert!(start.after < 0.4 * bent, "{} against {bent}", start.after);
    }

    #[test]
    fn a_refit_that_is_worse_behind_the_rectifier_is_not_kept() {
        let rows = rows(1000);
        let fit = Moments::of(&rows, |sample| !held_out(sample)).unwrap();
        let current = Affine { weight: Mat::from_fn(1, 2, |_, j| [2.0, 1.0][j]), bias: vec![0.0] };
        let gate = Gate { after: rows.y.clone(), scale: vec![1.0] };
        // Nothing can be better than what is right wherever it is heard.
        let bent = Affine { weight: Mat::from_fn(1, 2, |_, j| [5.0, 2.0][j]), bias: vec![-1.0] };
        let start =
            Refit { affine: bent, kind: RefitKind::Full, before: 1.0, after: 0.5, ridge: None };
        let found = rectified(start, &current, &rows, &gate, &fit);
        assert_eq!(found.kind, RefitKind::Kept);
        assert!(found.after < 1e-9 && found.affine.weight == current.weight);
    }
}
