//! First and second moments of rows: all that selection and refit need to know of the samples.

use faer::linalg::matmul::{matmul, triangular};
use faer::{Accum, Mat, MatRef, Par};

use super::rows::Rows;

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
        Some(Self { rows: count, mean_x, mean_y, xx: gram(x, scale), yx: cross(y, x, scale), yy })
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
