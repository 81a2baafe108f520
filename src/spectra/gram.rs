//! Gram matrices on the small side of an operator's matrix.

use faer::linalg::matmul::triangular::{self, BlockStructure};
use faer::{Accum, Mat, MatRef, Par};

use super::{OperatorMatrix, SpectraError, singular};
use crate::onnx::Matrix;

/// Elements of a strip that is widened to f64 and multiplied at a time, and its least length: fits the caches
/// and what an allocator has at hand, and keeps a matrix of any length from being copied whole.
const STRIP_ELEMENTS: usize = 1 << 14;
const STRIP_LENGTH: usize = 64;

/// Which product a [`Gram`] is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum GramSide {
    /// W·Wᵀ, rows × rows.
    Rows,
    /// Wᵀ·W, columns × columns.
    Columns,
}

/// W·Wᵀ or Wᵀ·W in f64, both halves filled.
#[derive(Debug, Clone)]
pub struct Gram(Mat<f64>);

impl Gram {
    /// The Gram matrix of `operator` on its small side. Blocks on the diagonal (grouped convolutions) cost
    /// only their own products; the augmentation [[W, b], [0, 1]] is added as its rank-one border.
    pub fn of(operator: &OperatorMatrix) -> Self {
        let shape = operator.shape();
        let side = if shape.0 <= shape.1 { GramSide::Rows } else { GramSide::Columns };
        let n = shape.0.min(shape.1);
        let mut matrix = Mat::<f64>::zeros(n, n);
        let mut start = 0;
        for block in operator.blocks() {
            let size = if side == GramSide::Rows { block.rows } else { block.cols };
            let place = matrix.as_mut().submatrix_mut(start, start, size, size);
            accumulate(place, block, side);
            start += size;
        }
        if let Some(bias) = operator.bias() {
            border(&mut matrix, operator.blocks(), bias, side);
        }
        mirror(&mut matrix);
        Self(matrix)
    }

    /// Singular values of W, descending; those below 1e-7·σ₁ are zero.
    ///
    /// # Errors
    /// Where the iteration does not converge.
    pub fn singular_values(&self) -> Result<Vec<f64>, SpectraError> {
        singular::of_gram(self.0.as_ref())
    }
}

/// Adds the block's product to the lower half of `into`, strip by strip over the long side.
fn accumulate(mut into: faer::MatMut<'_, f64>, block: &Matrix, side: GramSide) {
    let (rows, cols) = (block.rows, block.cols);
    let (short, long) = if side == GramSide::Rows { (rows, cols) } else { (cols, rows) };
    let step = (STRIP_ELEMENTS / short.max(1)).max(STRIP_LENGTH).min(long.max(1));
    let mut strip = Vec::with_capacity(step * short);
    for start in (0..long).step_by(step) {
        let length = step.min(long - start);
        strip.clear();
        // The strip as `short × length`, column-major on the row side only by its transpose.
        match side {
            GramSide::Rows => {
                for row in 0..rows {
                    let values = &block.data[row * cols + start..][..length];
                    strip.extend(values.iter().map(|value| f64::from(*value)));
                }
                let x = MatRef::from_row_major_slice(&strip, short, length);
                lower_product(into.as_mut(), x, 1.0);
            }
            GramSide::Columns => {
                let values = &block.data[start * cols..][..length * cols];
                strip.extend(values.iter().map(|value| f64::from(*value)));
                let x = MatRef::from_column_major_slice(&strip, short, length);
                lower_product(into.as_mut(), x, 1.0);
            }
        }
    }
}

/// lower(into) += alpha · x·xᵀ.
fn lower_product(into: faer::MatMut<'_, f64>, x: MatRef<'_, f64>, alpha: f64) {
    triangular::matmul(
        into,
        BlockStructure::TriangularLower,
        Accum::Add,
        x,
        BlockStructure::Rectangular,
        x.transpose(),
        BlockStructure::Rectangular,
        alpha,
        Par::Seq,
    );
}

/// Adds what the border [[·, b], [0, 1]] contributes: bbᵀ, b and 1 on the row side, Wᵀb and bᵀb + 1 on the
/// column side.
fn border(matrix: &mut Mat<f64>, blocks: &[Matrix], bias: &[f32], side: GramSide) {
    let last = matrix.nrows() - 1;
    let bias: Vec<f64> = bias.iter().map(|value| f64::from(*value)).collect();
    match side {
        GramSide::Rows => {
            for j in 0..last {
                (j..last).for_each(|i| matrix[(i, j)] += bias[i] * bias[j]);
                matrix[(last, j)] = bias[j];
            }
            matrix[(last, last)] = 1.0;
        }
        GramSide::Columns => {
            let (mut row, mut col) = (0, 0);
            for block in blocks {
                for i in 0..block.rows {
                    let values = &block.data[i * block.cols..][..block.cols];
                    for (j, value) in values.iter().enumerate() {
                        matrix[(last, col + j)] += bias[row + i] * f64::from(*value);
                    }
                }
                row += block.rows;
                col += block.cols;
            }
            matrix[(last, last)] = 1.0 + bias.iter().map(|b| b * b).sum::<f64>();
        }
    }
}

fn mirror(matrix: &mut Mat<f64>) {
    for j in 0..matrix.ncols() {
        (0..j).for_each(|i| matrix[(i, j)] = matrix[(j, i)]);
    }
}
