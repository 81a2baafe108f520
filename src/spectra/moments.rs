//! First and second moments of rows: all that selection and refit need to know of the samples, and how much of
//! it is chance where the samples are few.
//!
//! Rows of one sample (the positions of one image) resemble each other, so that their number says little about
//! how well a covariance is known. What is independent are the samples: each has a covariance C_s of its own,
//! the whole one is their mean, and its variance is Σ‖C_s − C‖²/(n(n − 1)) over the n *samples*, however the
//! rows within one depend on each other. The share of the off-diagonal of C that is chance is that variance
//! over ‖C‖², both off the diagonal: the intensity of Ledoit and Wolf (2004) with the diagonal as the target of
//! Schäfer and Strimmer (2005), which leaves every channel's own variance alone and does not depend on units.

use faer::linalg::matmul::{matmul, triangular};
use faer::{Accum, Mat, MatRef, Par};

use super::rows::Rows;
use crate::limits;

/// Largest share of a covariance that is taken for chance: a shrunk one keeps its inverse.
const MOST_CHANCE: f64 = 0.99;

/// Means and centred second moments (divided by the number of rows) of rows (x, y).
#[derive(Debug, Clone)]
pub struct Moments {
    /// Number of rows.
    pub rows: usize,
    /// Mean of x, length n.
    pub mean_x: Vec<f64>,
    /// Mean of y, length m.
    pub mean_y: Vec<f64>,
    /// Covariance of x, n × n.
    pub xx: Mat<f64>,
    /// Cross-covariance of y with x, m × n.
    pub yx: Mat<f64>,
    /// Variance of each y, length m.
    pub yy: Vec<f64>,
    /// Share of the covariance of x off its diagonal that is chance, below 1; 0 from
    /// [`limits::FEW_SAMPLES`] samples on, and where a single sample tells nothing about it.
    pub chance: f64,
}

impl Moments {
    /// Moments of the rows for which `take` holds of their sample's number; `None` without such rows.
    pub fn of(rows: &Rows, take: impl Fn(u32) -> bool) -> Option<Self> {
        let chosen: Vec<usize> = (0..rows.count()).filter(|row| take(rows.sample[*row])).collect();
        if chosen.is_empty() {
            return None;
        }
        let (mean_x, x) = centred(&rows.x, rows.inputs, &chosen);
        let (mean_y, y) = centred(&rows.y, rows.outputs, &chosen);
        let count = chosen.len();
        let (n, m) = (rows.inputs, rows.outputs);
        let scale = 1.0 / count as f64;
        let yy: Vec<f64> = (0..m)
            .map(|j| (0..count).map(|i| f64::from(y[i * m + j]).powi(2)).sum::<f64>() * scale)
            .collect();
        let x = MatRef::from_row_major_slice(&x, count, n);
        let y = MatRef::from_row_major_slice(&y, count, m);
        let (xx, chance) = if samples(&rows.sample).count() < limits::FEW_SAMPLES {
            let of: Vec<u32> = chosen.iter().map(|row| rows.sample[*row]).collect();
            by_sample(x, samples(&of))
        } else {
            (gram(x, scale), 0.0)
        };
        Some(Self { rows: count, mean_x, mean_y, xx, yx: cross(y, x, scale), yy, chance })
    }

    /// The covariance of x with the share off the diagonal taken away that is chance.
    pub fn shrunk(&self) -> Mat<f64> {
        let keep = |i: usize, j: usize| if i == j { 1.0 } else { 1.0 - self.chance };
        Mat::from_fn(self.xx.nrows(), self.xx.ncols(), |i, j| self.xx[(i, j)] * keep(i, j))
    }

    /// What a regression on x adds to the diagonal of its covariance so that it is one on the shrunk moments:
    /// with both C_xx and C_yx shrunk by the same share ρ off the diagonal (of x and y together), dividing by
    /// 1 − ρ leaves C_yx·(C_xx + ρ/(1 − ρ)·diag C_xx)⁻¹.
    pub fn chance_ridge(&self, column: usize) -> f64 {
        self.chance / (1.0 - self.chance) * self.xx[(column, column)]
    }

    /// The same about zero instead of the means: what counts where an operator has no bias to shift by.
    #[must_use]
    pub fn about_zero(mut self) -> Self {
        let (x, y) = (std::mem::take(&mut self.mean_x), std::mem::take(&mut self.mean_y));
        for j in 0..x.len() {
            (0..x.len()).for_each(|i| self.xx[(i, j)] += x[i] * x[j]);
            (0..y.len()).for_each(|i| self.yx[(i, j)] += y[i] * x[j]);
        }
        self.yy.iter_mut().zip(&y).for_each(|(yy, mean)| *yy += mean * mean);
        Self { mean_x: vec![0.0; x.len()], mean_y: vec![0.0; y.len()], ..self }
    }

    /// Mean over the rows of (y − W·x − b)² of every output, for W of m × n.
    pub fn errors(&self, weight: MatRef<'_, f64>, bias: &[f64]) -> Vec<f64> {
        let mut product = Mat::<f64>::zeros(weight.nrows(), weight.ncols());
        matmul(product.as_mut(), Accum::Replace, weight, self.xx.as_ref(), 1.0, Par::Seq);
        let means = self.output_means(weight);
        let error = |i: usize| {
            let along: f64 = (0..weight.ncols())
                .map(|j| weight[(i, j)] * (product[(i, j)] - 2.0 * self.yx[(i, j)]))
                .sum();
            (self.mean_y[i] - means[i] - bias[i]).powi(2) + (self.yy[i] + along).max(0.0)
        };
        (0..weight.nrows()).map(error).collect()
    }

    /// Mean over the rows of ‖y − W·x − b‖², for W of m × n.
    pub fn error(&self, weight: MatRef<'_, f64>, bias: &[f64]) -> f64 {
        self.errors(weight, bias).iter().sum()
    }

    /// W·mean(x), length m.
    pub fn output_means(&self, weight: MatRef<'_, f64>) -> Vec<f64> {
        (0..weight.nrows())
            .map(|i| (0..weight.ncols()).map(|j| weight[(i, j)] * self.mean_x[j]).sum())
            .collect()
    }

    /// The bias that gives W·x + b the mean of y.
    pub fn matching_bias(&self, weight: MatRef<'_, f64>) -> Vec<f64> {
        let means = self.output_means(weight);
        self.mean_y.iter().zip(means).map(|(wanted, mean)| wanted - mean).collect()
    }

    /// Total variance of y.
    pub fn variance(&self) -> f64 {
        self.yy.iter().sum()
    }
}

/// Means of `wanted` (chosen rows × outputs, row-major) and its cross-covariance with the x of the `chosen`
/// rows, whose means are `mean_x`; outputs × inputs.
pub fn cross_moments(
    rows: &Rows,
    chosen: &[usize],
    wanted: &[f32],
    mean_x: &[f64],
) -> (Vec<f64>, Mat<f64>) {
    let (count, n, m) = (chosen.len(), rows.inputs, rows.outputs);
    let all: Vec<usize> = (0..count).collect();
    let (mean, wanted) = centred(wanted, m, &all);
    let mut x = Vec::with_capacity(count * n);
    for row in chosen {
        let row = &rows.x[row * n..][..n];
        x.extend(row.iter().zip(mean_x).map(|(value, mean)| (f64::from(*value) - mean) as f32));
    }
    let x = MatRef::from_row_major_slice(&x, count, n);
    let wanted = MatRef::from_row_major_slice(&wanted, count, m);
    (mean, cross(wanted, x, 1.0 / count.max(1) as f64))
}

/// Means in f64 and the centred rows in f32.
fn centred(values: &[f32], width: usize, chosen: &[usize]) -> (Vec<f64>, Vec<f32>) {
    let mut mean = vec![0.0f64; width];
    for row in chosen {
        let row = &values[row * width..][..width];
        mean.iter_mut().zip(row).for_each(|(mean, value)| *mean += f64::from(*value));
    }
    mean.iter_mut().for_each(|mean| *mean /= chosen.len() as f64);
    let mut out = Vec::with_capacity(chosen.len() * width);
    for row in chosen {
        let row = &values[row * width..][..width];
        out.extend(row.iter().zip(&mean).map(|(value, mean)| (f64::from(*value) - mean) as f32));
    }
    (mean, out)
}

/// The stretches of rows that belong to one sample each.
fn samples(of: &[u32]) -> impl Iterator<Item = std::ops::Range<usize>> {
    let mut end = 0;
    of.chunk_by(|a, b| a == b).map(move |rows| {
        end += rows.len();
        end - rows.len()..end
    })
}

/// The covariance of centred rows, and the share of it off the diagonal that is chance, from how far the
/// samples differ. They bring about equally many rows.
fn by_sample(
    x: MatRef<'_, f32>,
    samples: impl Iterator<Item = std::ops::Range<usize>>,
) -> (Mat<f64>, f64) {
    let n = x.ncols();
    let mut total = Mat::<f64>::zeros(n, n);
    // Σ w² and Σ w²·‖C_s‖² with w the sample's share of the rows.
    let (mut weights, mut squares) = (0.0, 0.0);
    for rows in samples {
        let own = gram(x.subrows(rows.start, rows.len()), 1.0 / x.nrows() as f64);
        weights += (rows.len() as f64 / x.nrows() as f64).powi(2);
        squares += off_diagonal(&own);
        total += own;
    }
    let whole = off_diagonal(&total);
    let variance = (squares - weights * whole) / (1.0 - weights);
    let chance = if variance > 0.0 && whole > 0.0 && variance.is_finite() {
        (variance / whole).min(MOST_CHANCE)
    } else {
        0.0
    };
    (total, chance)
}

/// Sum of squares off the diagonal.
fn off_diagonal(matrix: &Mat<f64>) -> f64 {
    let column = |j: usize| matrix.col(j).squared_norm_l2() - matrix[(j, j)].powi(2);
    (0..matrix.ncols()).map(column).sum()
}

/// Rows that are multiplied in f32 before their product is added up in f64: short enough that f32 loses
/// nothing that the ridge does not already hide.
const STRETCH: usize = 2048;

/// xᵀ·x · scale, both halves filled.
fn gram(x: MatRef<'_, f32>, scale: f64) -> Mat<f64> {
    let n = x.ncols();
    let mut total = Mat::<f64>::zeros(n, n);
    let mut part = Mat::<f32>::zeros(n, n);
    for start in (0..x.nrows()).step_by(STRETCH) {
        let piece = x.subrows(start, STRETCH.min(x.nrows() - start));
        triangular::matmul(
            part.as_mut(),
            triangular::BlockStructure::TriangularLower,
            Accum::Replace,
            piece.transpose(),
            triangular::BlockStructure::Rectangular,
            piece,
            triangular::BlockStructure::Rectangular,
            1.0f32,
            Par::Seq,
        );
        for j in 0..n {
            for i in j..n {
                total[(i, j)] += f64::from(part[(i, j)]) * scale;
            }
        }
    }
    for j in 0..n {
        for i in 0..j {
            total[(i, j)] = total[(j, i)];
        }
    }
    total
}

/// yᵀ·x · scale.
fn cross(y: MatRef<'_, f32>, x: MatRef<'_, f32>, scale: f64) -> Mat<f64> {
    let mut total = Mat::<f64>::zeros(y.ncols(), x.ncols());
    let mut part = Mat::<f32>::zeros(y.ncols(), x.ncols());
    for start in (0..x.nrows()).step_by(STRETCH) {
        let length = STRETCH.min(x.nrows() - start);
        let (x, y) = (x.subrows(start, length), y.subrows(start, length));
        matmul(part.as_mut(), Accum::Replace, y.transpose(), x, 1.0f32, Par::Seq);
        for j in 0..total.ncols() {
            for i in 0..total.nrows() {
                total[(i, j)] += f64::from(part[(i, j)]) * scale;
            }
        }
    }
    total
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    const INPUTS: usize = 12;
    const PER_SAMPLE: usize = 20;

    /// Sum of twelve uniforms.
    fn normal(rng: &mut ChaCha8Rng) -> f64 {
        (0..12).map(|_| rng.random::<f64>()).sum::<f64>() - 6.0
    }

    /// Covariance 0.4^|i − j|, by a chain.
    fn known() -> Mat<f64> {
        Mat::from_fn(INPUTS, INPUTS, |i, j| 0.4f64.powi(i.abs_diff(j) as i32))
    }

    fn draw(rng: &mut ChaCha8Rng) -> Vec<f64> {
        let mut x = vec![normal(rng)];
        for i in 1..INPUTS {
            x.push(0.4 * x[i - 1] + (1.0 - 0.16f64).sqrt() * normal(rng));
        }
        x
    }

    /// Rows of which those of one sample share three quarters of their variance.
    fn rows(samples: u32, rng: &mut ChaCha8Rng) -> Rows {
        let mut rows = Rows { inputs: INPUTS, outputs: 1, ..Rows::default() };
        for sample in 0..samples {
            let shared = draw(rng);
            for _ in 0..PER_SAMPLE {
                let own = draw(rng);
                let x = shared.iter().zip(&own).map(|(s, o)| 0.75f64.sqrt() * s + 0.5 * o);
                rows.x.extend(x.map(|x| x as f32));
                rows.y.push(0.0);
                rows.sample.push(sample);
            }
        }
        rows
    }

    fn distance(a: &Mat<f64>, b: &Mat<f64>) -> f64 {
        (a - b).squared_norm_l2()
    }

    #[test]
    fn of_eight_samples_the_shrunk_covariance_is_nearer_to_the_true_one() {
        let (mut plain, mut shrunk) = (0.0, 0.0);
        for seed in 0..40 {
            let rows = rows(8, &mut ChaCha8Rng::seed_from_u64(seed));
            let moments = Moments::of(&rows, |_| true).unwrap();
            assert!((0.0..1.0).contains(&moments.chance), "{}", moments.chance);
            plain += distance(&moments.xx, &known());
            shrunk += distance(&moments.shrunk(), &known());
        }
        assert!(shrunk < 0.75 * plain, "{shrunk} against {plain}");
    }

    #[test]
    fn more_samples_leave_less_to_chance_and_more_rows_of_the_same_do_not() {
        let mean = |samples: u32| -> f64 {
            let of = |seed| {
                let rows = rows(samples, &mut ChaCha8Rng::seed_from_u64(seed));
                Moments::of(&rows, |_| true).unwrap().chance
            };
            (0..20).map(of).sum::<f64>() / 20.0
        };
        let (six, twenty) = (mean(6), mean(24));
        assert!(twenty < 0.7 * six, "{six} {twenty}");
        // The same rows ten times over say nothing new.
        let rows = rows(6, &mut ChaCha8Rng::seed_from_u64(1));
        let mut again = Rows { inputs: INPUTS, outputs: 1, ..Rows::default() };
        for sample in 0..6 {
            let range = sample * PER_SAMPLE..(sample + 1) * PER_SAMPLE;
            for _ in 0..10 {
                again.x.extend(&rows.x[range.start * INPUTS..range.end * INPUTS]);
                again.y.extend(&rows.y[range.clone()]);
                again.sample.extend(&rows.sample[range.clone()]);
            }
        }
        let (once, tenfold) =
            [&rows, &again].map(|rows| Moments::of(rows, |_| true).unwrap().chance).into();
        assert!((once - tenfold).abs() < 1e-6, "{once} {tenfold}");
    }

    #[test]
    fn from_thirty_two_samples_on_nothing_is_taken_for_chance() {
        let rng = &mut ChaCha8Rng::seed_from_u64(3);
        let enough = rows(limits::FEW_SAMPLES as u32, rng);
        // A part of them is held out: it is the samples there are that count.
        let moments = Moments::of(&enough, |sample| sample % 5 != 0).unwrap();
        assert_eq!(moments.chance, 0.0);
        assert_eq!(moments.shrunk(), moments.xx);
        assert_eq!(moments.chance_ridge(0), 0.0);
        let few = rows(limits::FEW_SAMPLES as u32 - 1, rng);
        assert!(Moments::of(&few, |_| true).unwrap().chance > 0.0);
        assert_eq!(Moments::of(&few, |sample| sample == 4).unwrap().chance, 0.0, "one sample");
    }
}
