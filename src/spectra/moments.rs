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

use super::rows::RowSource;
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
    /// Moments of the rows for which `take` holds of their sample's number; `None` without such rows. Of rows
    /// that are made when they are asked for, few are there at a time; each is asked for twice.
    pub fn of(rows: &dyn RowSource, take: impl Fn(u32) -> bool) -> Option<Self> {
        let numbers = rows.samples();
        let chosen: Vec<usize> = (0..numbers.len()).filter(|row| take(numbers[*row])).collect();
        if chosen.is_empty() {
            return None;
        }
        let mut sums = Sums::about_means(rows, &chosen);
        let n = rows.inputs();
        let mut xx = Mat::<f64>::zeros(n, n);
        let chance = if samples(numbers).count() < limits::FEW_SAMPLES {
            by_sample(&mut sums, numbers, &chosen, &mut xx)
        } else {
            sums.add(&chosen, &mut xx);
            mirror(&mut xx);
            0.0
        };
        let Sums { mean_x, mean_y, yx, yy, .. } = sums;
        Some(Self { rows: chosen.len(), mean_x, mean_y, xx, yx, yy, chance })
    }

    /// The covariance of x with the share off the diagonal taken away that is chance.
    pub fn shrunk(mut self) -> Mat<f64> {
        if self.chance > 0.0 {
            let keep = |i: usize, j: usize| if i == j { 1.0 } else { 1.0 - self.chance };
            let (rows, columns) = (self.xx.nrows(), self.xx.ncols());
            for j in 0..columns {
                (0..rows).for_each(|i| self.xx[(i, j)] *= keep(i, j));
            }
        }
        self.xx
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

    /// What an operator is fitted on: about the means where its bias can make up for them, else about zero.
    #[must_use]
    pub fn for_operator(self, can_shift: bool) -> Self {
        if can_shift { self } else { self.about_zero() }
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

    /// The same, relative to the variance of y.
    pub fn relative(&self, weight: MatRef<'_, f64>, bias: &[f64]) -> f64 {
        self.error(weight, bias) / self.variance().max(f64::MIN_POSITIVE)
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
    rows: &dyn RowSource,
    chosen: &[usize],
    wanted: &[f32],
    mean_x: &[f64],
) -> (Vec<f64>, Mat<f64>) {
    let (n, m) = (rows.inputs(), rows.outputs());
    let scale = 1.0 / chosen.len().max(1) as f64;
    let mut mean = vec![0.0; m];
    wanted.chunks_exact(m.max(1)).for_each(|row| add(&mut mean, row));
    mean.iter_mut().for_each(|mean| *mean *= scale);
    let mut total = Mat::<f64>::zeros(m, n);
    let mut part = Mat::<f32>::zeros(m, n);
    let (mut x, mut y) = (Vec::new(), Vec::new());
    let stretches = chosen.chunks(STRETCH).zip(wanted.chunks((STRETCH * m).max(1)));
    for (stretch, wanted) in stretches {
        x.clear();
        y.clear();
        stretch.iter().for_each(|row| rows.push_x(*row, &mut x));
        y.extend_from_slice(wanted);
        centre(&mut x, mean_x);
        centre(&mut y, &mean);
        let x = MatRef::from_row_major_slice(&x, stretch.len(), n);
        let y = MatRef::from_row_major_slice(&y, stretch.len(), m);
        add_cross(&mut total, &mut part, y, x, scale);
    }
    (mean, total)
}

fn add(sums: &mut [f64], row: &[f32]) {
    sums.iter_mut().zip(row).for_each(|(sum, value)| *sum += f64::from(*value));
}

/// Subtracts the means from rows.
fn centre(rows: &mut [f32], mean: &[f64]) {
    for row in rows.chunks_exact_mut(mean.len().max(1)) {
        row.iter_mut()
            .zip(mean)
            .for_each(|(value, mean)| *value = (f64::from(*value) - mean) as f32);
    }
}

/// The sums of rows about their means, of which a stretch is held at a time.
struct Sums<'r> {
    rows: &'r dyn RowSource,
    mean_x: Vec<f64>,
    mean_y: Vec<f64>,
    yx: Mat<f64>,
    yy: Vec<f64>,
    /// One over the number of rows in all.
    scale: f64,
    xx_part: Mat<f32>,
    yx_part: Mat<f32>,
}

impl<'r> Sums<'r> {
    fn about_means(rows: &'r dyn RowSource, chosen: &[usize]) -> Self {
        let (n, m) = (rows.inputs(), rows.outputs());
        let (mut mean_x, mut mean_y) = (vec![0.0f64; n], vec![0.0f64; m]);
        let (mut x, mut y) = (Vec::with_capacity(n), Vec::with_capacity(m));
        for row in chosen {
            x.clear();
            y.clear();
            rows.push_x(*row, &mut x);
            rows.push_y(*row, &mut y);
            add(&mut mean_x, &x);
            add(&mut mean_y, &y);
        }
        let count = chosen.len() as f64;
        mean_x.iter_mut().chain(&mut mean_y).for_each(|mean| *mean /= count);
        Self {
            rows,
            mean_x,
            mean_y,
            yx: Mat::zeros(m, n),
            yy: vec![0.0; m],
            scale: 1.0 / count,
            xx_part: Mat::zeros(n, n),
            yx_part: Mat::zeros(m, n),
        }
    }

    /// Adds the chosen rows to the sums, and their share of the covariance of x to the lower half of `xx`.
    fn add(&mut self, chosen: &[usize], xx: &mut Mat<f64>) {
        let (n, m) = (self.mean_x.len(), self.mean_y.len());
        let held = chosen.len().min(STRETCH);
        let (mut x, mut y) = (Vec::with_capacity(held * n), Vec::with_capacity(held * m));
        for stretch in chosen.chunks(STRETCH) {
            x.clear();
            y.clear();
            for row in stretch {
                self.rows.push_x(*row, &mut x);
                self.rows.push_y(*row, &mut y);
            }
            centre(&mut x, &self.mean_x);
            centre(&mut y, &self.mean_y);
            for row in y.chunks_exact(m.max(1)) {
                let squares = row.iter().map(|value| f64::from(*value).powi(2));
                self.yy.iter_mut().zip(squares).for_each(|(sum, y)| *sum += y * self.scale);
            }
            let x = MatRef::from_row_major_slice(&x, stretch.len(), n);
            let y = MatRef::from_row_major_slice(&y, stretch.len(), m);
            add_gram(xx, &mut self.xx_part, x, self.scale);
            add_cross(&mut self.yx, &mut self.yx_part, y, x, self.scale);
        }
    }
}

/// The stretches of rows that belong to one sample each.
fn samples(of: &[u32]) -> impl Iterator<Item = std::ops::Range<usize>> {
    let mut end = 0;
    of.chunk_by(|a, b| a == b).map(move |rows| {
        end += rows.len();
        end - rows.len()..end
    })
}

/// Adds the chosen rows sample by sample; `xx` becomes their covariance, and what comes back is the share of it
/// off the diagonal that is chance, from how far the samples differ. They bring about equally many rows.
fn by_sample(sums: &mut Sums, numbers: &[u32], chosen: &[usize], xx: &mut Mat<f64>) -> f64 {
    let n = xx.ncols();
    let of: Vec<u32> = chosen.iter().map(|row| numbers[*row]).collect();
    // Σ w² and Σ w²·‖C_s‖² with w the sample's share of the rows.
    let (mut weights, mut squares) = (0.0, 0.0);
    for rows in samples(&of) {
        let mut own = Mat::<f64>::zeros(n, n);
        sums.add(&chosen[rows.clone()], &mut own);
        mirror(&mut own);
        weights += (rows.len() as f64 * sums.scale).powi(2);
        squares += off_diagonal(&own);
        *xx += own;
    }
    let whole = off_diagonal(xx);
    let variance = (squares - weights * whole) / (1.0 - weights);
    if variance > 0.0 && whole > 0.0 && variance.is_finite() {
        (variance / whole).min(MOST_CHANCE)
    } else {
        0.0
    }
}

/// Sum of squares off the diagonal.
fn off_diagonal(matrix: &Mat<f64>) -> f64 {
    let column = |j: usize| matrix.col(j).squared_norm_l2() - matrix[(j, j)].powi(2);
    (0..matrix.ncols()).map(column).sum()
}

/// Rows that are held, and multiplied in f32 before their product is added up in f64: short enough that f32
/// loses nothing that the ridge does not already hide.
pub const STRETCH: usize = 2048;

/// Adds xᵀ·x · scale to the lower half of `total`; `part` is room for the product of a stretch.
fn add_gram(total: &mut Mat<f64>, part: &mut Mat<f32>, x: MatRef<'_, f32>, scale: f64) {
    let n = x.ncols();
    triangular::matmul(
        part.as_mut(),
        triangular::BlockStructure::TriangularLower,
        Accum::Replace,
        x.transpose(),
        triangular::BlockStructure::Rectangular,
        x,
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

/// Copies the lower half over the upper one.
fn mirror(matrix: &mut Mat<f64>) {
    for j in 0..matrix.ncols() {
        for i in 0..j {
            matrix[(i, j)] = matrix[(j, i)];
        }
    }
}

/// Adds yᵀ·x · scale to `total`.
fn add_cross(
    total: &mut Mat<f64>,
    part: &mut Mat<f32>,
    y: MatRef<'_, f32>,
    x: MatRef<'_, f32>,
    scale: f64,
) {
    matmul(part.as_mut(), Accum::Replace, y.transpose(), x, 1.0f32, Par::Seq);
    for j in 0..total.ncols() {
        for i in 0..total.nrows() {
            total[(i, j)] += f64::from(part[(i, j)]) * scale;
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::spectra::rows::Rows;

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
            shrunk += distance(&moments.clone().shrunk(), &known());
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
        assert_eq!(moments.chance_ridge(0), 0.0);
        assert_eq!(moments.clone().shrunk(), moments.xx);
        let few = rows(limits::FEW_SAMPLES as u32 - 1, rng);
        assert!(Moments::of(&few, |_| true).unwrap().chance > 0.0);
        assert_eq!(Moments::of(&few, |sample| sample == 4).unwrap().chance, 0.0, "one sample");
    }
}
