//! The directions of an operator's output that its inputs make the most of: the singular value decomposition
//! of W·S^½, S being the covariance of what the operator reads (after SVD-LLM, arXiv 2403.07378). What is left
//! behind the first r of them is the error of the best operator of rank r, known before it is made.

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatRef, Par, Side};

/// Ridge added to the covariance, as a share of its mean diagonal: directions that no calibration row has
/// shown count a little, so that they are kept rather than mixed at random.
const RIDGE: f64 = 1e-3;

/// Below this share of the largest singular value there is rounding noise only (they are roots of eigenvalues).
const NOISE: f64 = 1e-7;

/// Orthonormal directions of an operator's output, those that vary most first.
#[derive(Debug, Clone)]
pub struct Whitened {
    /// Outputs × as many directions as were asked for. In f32: they are many, and only a start of a fit.
    basis: Mat<f32>,
}

impl Whitened {
    /// The first `most` directions of `weight` (outputs × inputs) on inputs of the given covariance.
    /// `None` where nothing varies or a decomposition fails.
    pub fn of(weight: &Mat<f64>, covariance: &Mat<f64>, most: usize) -> Option<Self> {
        let (outputs, inputs) = (weight.nrows(), weight.ncols());
        let mean = (0..inputs).map(|i| covariance[(i, i)]).sum::<f64>() / inputs.max(1) as f64;
        if !(mean.is_finite() && mean > 0.0) {
            return None;
        }
        let mut ridged = covariance.clone();
        (0..inputs).for_each(|i| ridged[(i, i)] += RIDGE * mean);
        let most = most.min(outputs).min(inputs);
        // On the smaller side: the eigenvectors of (W·L)·(W·L)ᵀ, or those of (W·L)ᵀ·(W·L) taken through W·L.
        let root = ridged.llt(Side::Lower).ok()?;
        let whole = product(weight.as_ref(), root.L());
        let wide = outputs > inputs;
        let gram = match wide {
            true => product(whole.transpose(), whole.as_ref()),
            false => product(whole.as_ref(), whole.transpose()),
        };
        let found = gram.self_adjoint_eigen(Side::Lower).ok()?;
        let (values, vectors) = (found.S().column_vector(), found.U());
        let side = vectors.ncols();
        let largest = values[side - 1];
        if !(largest.is_finite() && largest > 0.0) {
            return None;
        }
        // Ascending there, descending here.
        let first = Mat::from_fn(side, most, |i, j| vectors[(i, side - 1 - j)]);
        let basis = if wide {
            let mut turned = product(whole.as_ref(), first.as_ref());
            for j in 0..most {
                let value = values[side - 1 - j].max(0.0).sqrt();
                let scale = if value > NOISE * largest.sqrt() { value.recip() } else { 0.0 };
                (0..outputs).for_each(|i| turned[(i, j)] *= scale);
            }
            turned
        } else {
            first
        };
        Some(Self { basis: Mat::from_fn(outputs, most, |i, j| basis[(i, j)] as f32) })
    }

    /// What is left of `weight` on inputs of the given covariance, in all and behind the first direction, the
    /// first two, and so on: mean squared errors, summed over the outputs.
    pub fn tails(&self, weight: &Mat<f64>, covariance: &Mat<f64>) -> Vec<f64> {
        // An orthonormal basis in f32 is one up to rounding: the shares are those of its projection.
        let seen = product(weight.as_ref(), covariance.as_ref());
        let total: f64 = (0..weight.nrows())
            .map(|i| (0..weight.ncols()).map(|j| seen[(i, j)] * weight[(i, j)]).sum::<f64>())
            .sum();
        let basis = self.first(self.basis.ncols(), |_| true);
        let along = product(basis.transpose(), weight.as_ref());
        let spread = product(basis.transpose(), seen.as_ref());
        let mut left = total;
        let shares = (0..along.nrows()).map(|k| {
            let explained: f64 = (0..along.ncols()).map(|j| spread[(k, j)] * along[(k, j)]).sum();
            left = (left - explained).max(0.0);
            left
        });
        std::iter::once(total).chain(shares.collect::<Vec<_>>()).collect()
    }

    /// The first `rank` directions, of the outputs for which `kept` holds.
    pub fn first(&self, rank: usize, kept: impl Fn(usize) -> bool) -> Mat<f64> {
        let rows: Vec<usize> = (0..self.basis.nrows()).filter(|row| kept(*row)).collect();
        let rank = rank.min(self.basis.ncols());
        Mat::from_fn(rows.len(), rank, |i, j| f64::from(self.basis[(rows[i], j)]))
    }
}

fn product(a: MatRef<'_, f64>, b: MatRef<'_, f64>) -> Mat<f64> {
    let mut c = Mat::zeros(a.nrows(), b.ncols());
    matmul(c.as_mut(), Accum::Replace, a, b, 1.0, Par::Seq);
    c
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Deterministic, well-spread numbers without a generator.
    fn noise(i: usize, j: usize) -> f64 {
        ((i * 37 + j * 101 + i * j * 13) % 97) as f64 / 48.5 - 1.0
    }

    fn covariance(n: usize) -> Mat<f64> {
        let rows = Mat::from_fn(200, n, |i, j| noise(i, j) * if j % 3 == 0 { 4.0 } else { 1.0 });
        product(rows.transpose(), rows.as_ref()) * faer::Scale(1.0 / 200.0)
    }

    #[test]
    fn the_tails_are_the_squared_singular_values_that_are_left() {
        for (outputs, inputs) in [(12, 30), (30, 12)] {
            let weight = Mat::from_fn(outputs, inputs, |i, j| noise(i + 300, j));
            let cov = covariance(inputs);
            let found = Whitened::of(&weight, &cov, 12).unwrap();
            let tails = found.tails(&weight, &cov);
            let root = cov.llt(Side::Lower).unwrap();
            let values =
                crate::spectra::singular::decomposed(product(weight.as_ref(), root.L()).as_ref());
            let values = values.unwrap();
            for rank in 0..12 {
                let wanted: f64 = values[rank..].iter().map(|value| value * value).sum();
                // The ridge turns the directions a little; they are never better than the best.
                assert!(tails[rank] > wanted * (1.0 - 1e-5) && tails[rank] < wanted * 1.02 + 1e-6);
            }
        }
    }

    #[test]
    fn nothing_varies_and_nothing_is_found() {
        let weight = Mat::from_fn(4, 4, noise);
        assert!(Whitened::of(&weight, &Mat::zeros(4, 4), 2).is_none());
        assert!(Whitened::of(&Mat::zeros(4, 4), &covariance(4), 2).is_none());
    }
}
