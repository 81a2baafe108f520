//! Singular values: by the Gram matrix on the small side, and by a values-only decomposition where the
//! small ones matter.

use faer::diag::Diag;
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::evd::tridiag;
use faer::linalg::{evd, svd};
use faer::{Mat, MatRef, Par, Spec};

use super::reduction::reduce;
use super::tridiagonal::Tridiagonal;
use super::{Drift, Gram, OperatorMatrix, SpectraError};
use crate::limits;

/// Singular values that come from a Gram matrix are square roots of eigenvalues, which are known to
/// about 1e-16 of the largest: below this share of σ₁ there is only rounding noise, reported as zero.
pub const NOISE: f64 = 1e-7;

/// Reflections that the reduction in blocks applies at a time.
const REFLECTIONS: usize = 32;

/// How small singular values are treated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// Gram matrix only: values below [`NOISE`]·σ₁ come out as zero.
    Gram,
    /// Gram matrix first; where it leaves noise in the tail and the matrix is small enough to afford it
    /// ([`limits::EXACT_SIDE`]), the values-only decomposition.
    Auto,
    /// Values-only decomposition: every value to about 1e-16·σ₁.
    Exact,
}

/// The singular values of an operator, descending; as many as the small side is long.
#[derive(Debug, Clone, PartialEq)]
pub struct Spectrum {
    /// σ₁ ≥ σ₂ ≥ … ≥ 0.
    pub values: Vec<f64>,
    /// Rows and columns of the matrix they belong to, augmentation included.
    pub shape: (usize, usize),
    /// Whether values below [`NOISE`]·σ₁ are meaningful; otherwise they are zero.
    pub exact: bool,
    /// How far the state may have moved since: zero unless the values are those of an earlier version.
    pub drift: Drift,
}

/// The spectrum of an operator's matrix.
///
/// # Errors
/// Where an element is not finite, the small side exceeds the limit, or the iteration does not converge.
pub fn spectrum(matrix: &OperatorMatrix, precision: Precision) -> Result<Spectrum, SpectraError> {
    let shape = matrix.shape();
    let side = shape.0.min(shape.1);
    if side > limits::GRAM_SIDE {
        return Err(SpectraError::TooLarge { shape, limit: limits::GRAM_SIDE });
    }
    if !matrix.is_finite() {
        return Err(SpectraError::NotFinite);
    }
    if let Some(values) = matrix.diagonal_values() {
        return Ok(Spectrum { values, shape, exact: true, drift: Drift::default() });
    }
    if precision == Precision::Exact {
        return exact(matrix);
    }
    let values = Gram::of(matrix).singular_values()?;
    let noisy = values.last() == Some(&0.0) && values.first() > Some(&0.0);
    if precision == Precision::Auto && noisy && side <= limits::EXACT_SIDE {
        return exact(matrix);
    }
    Ok(Spectrum { values, shape, exact: false, drift: Drift::default() })
}

fn exact(matrix: &OperatorMatrix) -> Result<Spectrum, SpectraError> {
    let values = decomposed(matrix.dense().as_ref())?;
    Ok(Spectrum { values, shape: matrix.shape(), exact: true, drift: Drift::default() })
}

/// Square roots of the eigenvalues of a Gram matrix (both halves filled), descending; noise is zero.
pub(super) fn of_gram(gram: MatRef<'_, f64>) -> Result<Vec<f64>, SpectraError> {
    let mut values = eigenvalues(gram)?;
    values.reverse();
    let floor = values.first().copied().unwrap_or_default() * NOISE * NOISE;
    let root = |value: &mut f64| *value = if *value > floor { value.sqrt() } else { 0.0 };
    values.iter_mut().for_each(root);
    Ok(values)
}

/// Eigenvalues of a symmetric matrix (both halves filled), ascending, each to about 1e-16 of the largest.
///
/// # Errors
/// Where the iteration does not converge.
pub fn eigenvalues(matrix: MatRef<'_, f64>) -> Result<Vec<f64>, SpectraError> {
    let reduced =
        if matrix.nrows() <= limits::CACHED_SIDE { reduce(matrix) } else { blocked(matrix) };
    reduced.eigenvalues().map_or_else(|| by_evd(matrix), Ok)
}

/// Householder's reduction in blocks, for matrices that do not fit the caches.
fn blocked(matrix: MatRef<'_, f64>) -> Tridiagonal {
    let n = matrix.nrows();
    let params = Spec::<tridiag::TridiagParams, f64>::default();
    let mut memory = MemBuffer::new(tridiag::tridiag_in_place_scratch::<f64>(n, Par::Seq, params));
    let mut reduced = matrix.to_owned();
    let mut reflections = Mat::zeros(REFLECTIONS.min(n.saturating_sub(1)), n.saturating_sub(1));
    let stack = MemStack::new(&mut memory);
    tridiag::tridiag_in_place(reduced.as_mut(), reflections.as_mut(), Par::Seq, stack, params);
    Tridiagonal {
        diagonal: (0..n).map(|i| reduced[(i, i)]).collect(),
        squares: (1..n).map(|i| reduced[(i, i - 1)].powi(2)).collect(),
    }
}

/// By faer's own iteration, which is slower and finds what is not finite.
fn by_evd(matrix: MatRef<'_, f64>) -> Result<Vec<f64>, SpectraError> {
    let n = matrix.nrows();
    let params = Spec::<evd::SelfAdjointEvdParams, f64>::default();
    let none = evd::ComputeEigenvectors::No;
    let need = evd::self_adjoint_evd_scratch::<f64>(n, none, Par::Seq, params);
    let mut memory = MemBuffer::new(need);
    let mut values = Diag::<f64>::zeros(n);
    let stack = MemStack::new(&mut memory);
    evd::self_adjoint_evd(matrix, values.as_mut(), None, Par::Seq, stack, params)
        .map_err(|_| SpectraError::NoConvergence)?;
    Ok(values.column_vector().iter().copied().collect())
}

/// Singular values by decomposition, descending.
pub fn decomposed(matrix: MatRef<'_, f64>) -> Result<Vec<f64>, SpectraError> {
    let (m, n) = (matrix.nrows(), matrix.ncols());
    let params = Spec::<svd::SvdParams, f64>::default();
    let none = svd::ComputeSvdVectors::No;
    let need = svd::svd_scratch::<f64>(m, n, none, none, Par::Seq, params);
    let mut memory = MemBuffer::new(need);
    let mut values = Diag::<f64>::zeros(m.min(n));
    let stack = MemStack::new(&mut memory);
    svd::svd(matrix, values.as_mut(), None, None, Par::Seq, stack, params)
        .map_err(|_| SpectraError::NoConvergence)?;
    Ok(values.column_vector().iter().map(|value| value.max(0.0)).collect())
}

/// Sum of the singular values of a matrix (its nuclear norm).
///
/// # Errors
/// Where the iteration does not converge.
pub fn nuclear_norm(matrix: &Mat<f64>) -> Result<f64, SpectraError> {
    Ok(decomposed(matrix.as_ref())?.iter().sum())
}
