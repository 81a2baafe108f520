//! Householder's reduction of a symmetric matrix to tridiagonal form (Golub & Van Loan, §8.3.1), for matrices
//! that fit the caches. The update that one reflection leads to and the product with the next one are done in
//! one pass over the matrix.

use faer::MatRef;
use pulp::{Arch, Simd, WithSimd};

use super::tridiagonal::Tridiagonal;

/// Rows are padded to a multiple of it, which is one of every processor's vectors.
const PADDED: usize = 8;

/// Reduces a symmetric matrix (both halves filled).
pub fn reduce(matrix: MatRef<'_, f64>) -> Tridiagonal {
    let n = matrix.nrows();
    let stride = n.next_multiple_of(PADDED);
    let mut rows = vec![0.0; n * stride];
    for (i, row) in rows.chunks_exact_mut(stride).enumerate() {
        row.iter_mut().zip(matrix.col(i).iter()).for_each(|(to, from)| *to = *from);
    }
    Arch::new().dispatch(Reduction { rows, n, stride })
}

struct Reduction {
    rows: Vec<f64>,
    n: usize,
    stride: usize,
}

impl WithSimd for Reduction {
    type Output = Tridiagonal;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> Tridiagonal {
        let Self { mut rows, n, stride } = self;
        let mut found =
            Tridiagonal { diagonal: vec![0.0; n], squares: vec![0.0; n.saturating_sub(1)] };
        let (mut v, mut w, mut next) = (vec![0.0; stride], vec![0.0; stride], vec![0.0; stride]);
        let mut turned = vec![0.0; stride];
        // Row k is the last one of what is left; v and w are the update that it and the rows above wait for.
        for k in (0..n).rev() {
            let (above, row) = rows.split_at_mut(k * stride);
            let row = &mut row[..stride];
            update(simd, row, &v, &w, k);
            found.diagonal[k] = row[k];
            if k == 0 {
                break;
            }
            // The reflection that turns the row before its diagonal element into one element.
            let width = k.next_multiple_of(PADDED);
            next[..k].copy_from_slice(&row[..k]);
            next[k..].fill(0.0);
            let square = dot(simd, &next[..width], &next[..width]);
            let (length, last) = (square.sqrt(), row[k - 1]);
            found.squares[k - 1] = square;
            next[k - 1] += length.copysign(last);
            let tau = if square > 0.0 { 1.0 / (length * (length + last.abs())) } else { 0.0 };
            // Products with the reflection; they go where the diagonal's row has no more use for its place.
            let products = &mut row[..width];
            turned.fill(0.0);
            for (i, row) in above.chunks_exact_mut(stride).enumerate() {
                products[i] = update_and_multiply(simd, row, &v, &w, i, &next, &mut turned);
            }
            products[k..].fill(0.0);
            products.iter_mut().zip(&turned).for_each(|(product, turned)| *product += turned);
            let half = 0.5 * tau * dot(simd, products, &next[..width]);
            for ((w, product), next) in w.iter_mut().zip(&*products).zip(&next) {
                *w = tau * (product - half * next);
            }
            w[width..].fill(0.0);
            std::mem::swap(&mut v, &mut next);
        }
        found
    }
}

/// Subtracts v[i]·w + w[i]·v from row i.
#[inline(always)]
fn update<S: Simd>(simd: S, row: &mut [f64], v: &[f64], w: &[f64], i: usize) {
    let (vi, wi) = (simd.splat_f64s(-v[i]), simd.splat_f64s(-w[i]));
    let ((row, _), (v, _), (w, _)) =
        (S::as_mut_simd_f64s(row), S::as_simd_f64s(v), S::as_simd_f64s(w));
    for ((row, v), w) in row.iter_mut().zip(v).zip(w) {
        *row = simd.mul_add_f64s(wi, *v, simd.mul_add_f64s(vi, *w, *row));
    }
}

/// The same up to the end of the block of the diagonal, and at once both products of what is left with x:
/// gives that of the row, and adds x[i] times the row to `turned` for what stands above the diagonal and is
/// not stored: blocks on the diagonal are stored whole.
#[inline(always)]
fn update_and_multiply<S: Simd>(
    simd: S,
    row: &mut [f64],
    v: &[f64],
    w: &[f64],
    i: usize,
    x: &[f64],
    turned: &mut [f64],
) -> f64 {
    let below = i / PADDED * PADDED;
    let end = below + PADDED;
    let (vi, wi, xi) = (simd.splat_f64s(-v[i]), simd.splat_f64s(-w[i]), simd.splat_f64s(x[i]));
    let (left, block) = row[..end].split_at_mut(below);
    let (va, vb) = v[..end].split_at(below);
    let (wa, wb) = w[..end].split_at(below);
    let (xa, xb) = x[..end].split_at(below);
    let mut sum = simd.splat_f64s(0.0);
    let turned = S::as_mut_simd_f64s(&mut turned[..below]).0;
    let all = S::as_mut_simd_f64s(left)
        .0
        .iter_mut()
        .zip(S::as_simd_f64s(va).0)
        .zip(S::as_simd_f64s(wa).0)
        .zip(S::as_simd_f64s(xa).0)
        .zip(turned);
    for ((((row, v), w), x), turned) in all {
        let new = simd.mul_add_f64s(wi, *v, simd.mul_add_f64s(vi, *w, *row));
        *row = new;
        sum = simd.mul_add_f64s(new, *x, sum);
        *turned = simd.mul_add_f64s(new, xi, *turned);
    }
    let all = S::as_mut_simd_f64s(block)
        .0
        .iter_mut()
        .zip(S::as_simd_f64s(vb).0)
        .zip(S::as_simd_f64s(wb).0)
        .zip(S::as_simd_f64s(xb).0);
    for (((row, v), w), x) in all {
        *row = simd.mul_add_f64s(wi, *v, simd.mul_add_f64s(vi, *w, *row));
        sum = simd.mul_add_f64s(*row, *x, sum);
    }
    simd.reduce_sum_f64s(sum)
}

#[inline(always)]
fn dot<S: Simd>(simd: S, a: &[f64], b: &[f64]) -> f64 {
    let ((a, _), (b, _)) = (S::as_simd_f64s(a), S::as_simd_f64s(b));
    let zero = simd.splat_f64s(0.0);
    let sum = a.iter().zip(b).fold(zero, |sum, (a, b)| simd.mul_add_f64s(*a, *b, sum));
    simd.reduce_sum_f64s(sum)
}
