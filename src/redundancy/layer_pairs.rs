//! Layers against layers: equal weights, and weights that do nearly the same to the same data.

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatRef, Par};
use serde::Serialize;

use crate::onnx::Matrix;
use crate::spectra::rows::Rows;
use crate::spectra::{SpectraError, singular};

/// Layers whose weights are equal byte by byte.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Identical {
    /// Indices of the layers, ascending.
    pub layers: Vec<usize>,
    /// Whether the file holds them once already.
    pub shared: bool,
    /// Bytes that sharing one tensor saves.
    pub saves_bytes: u64,
}

/// Two layers of one shape.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LayerPair {
    pub a: usize,
    pub b: usize,
    /// Fubini–Study distance of their spectra, radians.
    pub d_fs: f64,
    /// Wasserstein-2 distance of their spectra, in the unit of the singular values.
    pub w2: f64,
    /// Angle left between W_a·S^½ and W_b·S^½ after the best rotation of the outputs, S being the covariance
    /// of the inputs of `a` (Procrustes in the data metric), radians.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub d_data: Option<f64>,
    /// Relative root-mean-square error when `b`, scaled and shifted at best but not rotated, stands in for
    /// `a`: measured on samples that the fit did not see.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<f64>,
}

/// What comparing two layers on the inputs of the first one gives.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PairRows {
    pub d_data: f64,
    pub error: f64,
}

/// Compares layer `a` with layer `b` (outputs × inputs, equal shapes) on rows of inputs of `a`. Every fifth
/// sample's rows are held out for the error. `None` where nothing varies.
///
/// # Errors
/// Where a decomposition does not converge.
pub fn compare_rows(a: &Matrix, b: &Matrix, rows: &Rows) -> Result<Option<PairRows>, SpectraError> {
    let (fit, held_out): (Vec<usize>, Vec<usize>) =
        (0..rows.count()).partition(|row| rows.sample[*row] % 5 != 4);
    let held_out = if held_out.is_empty() { fit.clone() } else { held_out };
    if fit.is_empty() {
        return Ok(None);
    }
    let said = |weights: &Matrix, chosen: &[usize]| product(weights, rows, chosen);
    let (mut ya, mut yb) = (said(a, &fit), said(b, &fit));
    let (mean_a, mean_b) = (centre(&mut ya), centre(&mut yb));
    let (na, nb) = (ya.norm_l2(), yb.norm_l2());
    if !(na > 0.0 && nb > 0.0) {
        return Ok(None);
    }
    let mut cross = Mat::<f64>::zeros(a.rows, a.rows);
    let (left, right) = (ya.as_ref().transpose(), yb.as_ref());
    matmul(cross.as_mut(), Accum::Replace, left, right, 1.0 / (na * nb), Par::Seq);
    let cos = singular::nuclear_norm(&cross)?.min(1.0);
    let sin = ((1.0 - cos) * (1.0 + cos)).max(0.0).sqrt();
    let scale = (0..a.rows).map(|i| cross[(i, i)]).sum::<f64>() * na / nb;
    let (ca, cb) = (said(a, &held_out), said(b, &held_out));
    let (mut wrong, mut whole) = (0.0, 0.0);
    for i in 0..held_out.len() {
        for j in 0..a.rows {
            let wanted = ca[(i, j)] - mean_a[j];
            wrong += (wanted - scale * (cb[(i, j)] - mean_b[j])).powi(2);
            whole += wanted * wanted;
        }
    }
    let error = if whole > 0.0 { (wrong / whole).sqrt() } else { 0.0 };
    Ok(Some(PairRows { d_data: sin.atan2(cos), error }))
}

/// X·Wᵀ for the chosen rows.
fn product(weights: &Matrix, rows: &Rows, chosen: &[usize]) -> Mat<f64> {
    let x = Mat::from_fn(chosen.len(), rows.inputs, |i, j| rows.x[chosen[i] * rows.inputs + j]);
    let w = MatRef::from_row_major_slice(&weights.data, weights.rows, weights.cols);
    let mut y = Mat::<f32>::zeros(chosen.len(), weights.rows);
    matmul(y.as_mut(), Accum::Replace, x.as_ref(), w.transpose(), 1.0f32, Par::Seq);
    Mat::from_fn(chosen.len(), weights.rows, |i, j| f64::from(y[(i, j)]))
}

/// Takes the columns' means away and returns them.
fn centre(y: &mut Mat<f64>) -> Vec<f64> {
    let count = y.nrows().max(1) as f64;
    (0..y.ncols())
        .map(|j| {
            let mean = (0..y.nrows()).map(|i| y[(i, j)]).sum::<f64>() / count;
            (0..y.nrows()).for_each(|i| y[(i, j)] -= mean);
            mean
        })
        .collect()
}
