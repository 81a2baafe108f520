//! Many small matrices of one shape at once: the kernels of single channels. A decomposition of a 64×9 matrix
//! spends its time on set-up; here eight problems share every step, one a SIMD lane.

use super::SpectraError;
use super::singular::{NOISE, decomposed};
use crate::limits;
use faer::Mat;
use pulp::{Arch, Simd, WithSimd};

/// Problems that run side by side.
const LANES: usize = 8;

/// Sweeps of the cyclic Jacobi iteration; it converges quadratically, 6 to 8 suffice for 16×16.
const SWEEPS: usize = 16;

/// Singular values of `data.len() / (rows · cols)` matrices, each `rows × cols`, row-major and one after the
/// other. Each has `rows.min(cols)` values, descending; below 1e-7·σ₁ they are zero.
///
/// # Errors
/// Where an element is not finite.
pub fn batch(data: &[f32], rows: usize, cols: usize) -> Result<Vec<Vec<f64>>, SpectraError> {
    let side = rows.min(cols);
    if side == 0 {
        return Ok(Vec::new());
    }
    if !data.iter().all(|value| value.is_finite()) {
        return Err(SpectraError::NotFinite);
    }
    let matrices: Vec<&[f32]> = data.chunks_exact(rows * cols).collect();
    if side == 1 {
        return Ok(matrices.iter().map(|matrix| vec![norm(matrix)]).collect());
    }
    if side > limits::TINY_SIDE {
        let each = |matrix: &&[f32]| {
            decomposed(Mat::from_fn(rows, cols, |i, j| f64::from(matrix[i * cols + j])).as_ref())
        };
        return matrices.iter().map(each).collect();
    }
    let mut found = Vec::with_capacity(matrices.len());
    let mut gram = vec![[0.0; LANES]; side * side];
    for group in matrices.chunks(LANES) {
        Arch::new().dispatch(Diagonalisation { group, rows, cols, gram: &mut gram });
        found.extend((0..group.len()).map(|lane| roots(&gram, lane, side)));
    }
    Ok(found)
}

fn norm(values: &[f32]) -> f64 {
    values.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt()
}

/// Writes the eigenvalues of the Gram matrices of up to eight matrices on the diagonal of `gram`, one matrix
/// a lane.
struct Diagonalisation<'a> {
    group: &'a [&'a [f32]],
    rows: usize,
    cols: usize,
    gram: &'a mut [[f64; LANES]],
}

impl WithSimd for Diagonalisation<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self { group, rows, cols, gram } = self;
        load(gram, group, rows, cols);
        diagonalise(gram, rows.min(cols));
    }
}

/// Writes the Gram matrices of the small side, each into one lane; lanes without a matrix are zero.
#[inline(always)]
fn load(gram: &mut [[f64; LANES]], group: &[&[f32]], rows: usize, cols: usize) {
    let (side, long) = (rows.min(cols), rows.max(cols));
    let (step, stride) = if cols <= rows { (1, cols) } else { (cols, 1) };
    gram.iter_mut().for_each(|lanes| *lanes = [0.0; LANES]);
    let mut column = [[0.0; LANES]; limits::TINY_SIDE];
    for t in 0..long {
        for (lane, matrix) in group.iter().enumerate() {
            for (i, lanes) in column[..side].iter_mut().enumerate() {
                lanes[lane] = f64::from(matrix[i * step + t * stride]);
            }
        }
        for i in 0..side {
            for j in i..side {
                let (a, b, sum) = (column[i], column[j], &mut gram[i * side + j]);
                (0..LANES).for_each(|l| sum[l] += a[l] * b[l]);
            }
        }
    }
    for i in 0..side {
        (0..i).for_each(|j| gram[i * side + j] = gram[j * side + i]);
    }
}

/// Cyclic Jacobi rotations (Golub & Van Loan, §8.5) until no lane has anything off the diagonal that rounding
/// would not put there.
#[inline(always)]
fn diagonalise(a: &mut [[f64; LANES]], n: usize) {
    for _ in 0..SWEEPS {
        let mut busy = false;
        for p in 0..n {
            for q in p + 1..n {
                busy |= rotate(a, n, p, q);
            }
        }
        if !busy {
            return;
        }
    }
}

#[inline(always)]
fn rotate(a: &mut [[f64; LANES]], n: usize, p: usize, q: usize) -> bool {
    let (app, aqq, apq) = (a[p * n + p], a[q * n + q], a[p * n + q]);
    let (mut cos, mut sin) = ([1.0; LANES], [0.0; LANES]);
    let mut busy = false;
    for l in 0..LANES {
        // Against the larger of the two entries: what is below is invisible in both eigenvalues.
        let visible = apq[l].abs() > f64::EPSILON * app[l].abs().max(aqq[l].abs());
        let theta = (aqq[l] - app[l]) / (2.0 * if visible { apq[l] } else { 1.0 });
        let tan = theta.signum() / (theta.abs() + (theta * theta + 1.0).sqrt());
        let tan = if visible { tan } else { 0.0 };
        cos[l] = (tan * tan + 1.0).sqrt().recip();
        sin[l] = tan * cos[l];
        busy |= visible;
    }
    if !busy {
        return false;
    }
    for r in 0..n {
        if r == p || r == q {
            continue;
        }
        let (arp, arq) = (a[r * n + p], a[r * n + q]);
        let (mut np, mut nq) = ([0.0; LANES], [0.0; LANES]);
        for l in 0..LANES {
            np[l] = cos[l] * arp[l] - sin[l] * arq[l];
            nq[l] = sin[l] * arp[l] + cos[l] * arq[l];
        }
        a[r * n + p] = np;
        a[p * n + r] = np;
        a[r * n + q] = nq;
        a[q * n + r] = nq;
    }
    let (mut npp, mut nqq) = ([0.0; LANES], [0.0; LANES]);
    for l in 0..LANES {
        let (c, s) = (cos[l], sin[l]);
        npp[l] = c * c * app[l] - 2.0 * s * c * apq[l] + s * s * aqq[l];
        nqq[l] = s * s * app[l] + 2.0 * s * c * apq[l] + c * c * aqq[l];
    }
    a[p * n + p] = npp;
    a[q * n + q] = nqq;
    a[p * n + q] = [0.0; LANES];
    a[q * n + p] = [0.0; LANES];
    // Lanes that did not turn keep their entry, which is invisible by now, as zero.
    busy
}

fn roots(a: &[[f64; LANES]], lane: usize, n: usize) -> Vec<f64> {
    let mut values: Vec<f64> = (0..n).map(|i| a[i * n + i][lane]).collect();
    values.sort_by(|a, b| b.total_cmp(a));
    let floor = values[0] * NOISE * NOISE;
    values.iter().map(|value| if *value > floor { value.sqrt() } else { 0.0 }).collect()
}
