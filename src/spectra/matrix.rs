//! The matrix by which a layer is compared: blocks on the diagonal, with or without the bias as border.

use faer::Mat;

use crate::onnx::Matrix;

/// Whether the bias takes part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Augment {
    /// Ŵ = [[W, b], [0, 1]]: the affine map as a linear one.
    #[default]
    Affine,
    /// W alone.
    None,
}

/// The matrix of one operator: one dense block, several on the diagonal (a grouped convolution, whose groups
/// do not see each other's inputs), or a diagonal of numbers (a per-channel scale).
#[derive(Debug, Clone, PartialEq)]
pub struct OperatorMatrix {
    blocks: Vec<Matrix>,
    bias: Option<Vec<f32>>,
}

impl OperatorMatrix {
    /// A dense operator; `bias` (one value a row) augments it.
    ///
    /// # Panics
    /// Where `bias` does not have one value a row.
    pub fn dense_of(matrix: Matrix, bias: Option<Vec<f32>>) -> Self {
        Self::blocks_of(vec![matrix], bias)
    }

    /// Blocks on the diagonal; `bias` (one value a row, of all blocks) augments the whole.
    ///
    /// # Panics
    /// Where `bias` does not have one value a row.
    pub fn blocks_of(blocks: Vec<Matrix>, bias: Option<Vec<f32>>) -> Self {
        let rows: usize = blocks.iter().map(|block| block.rows).sum();
        assert!(bias.as_ref().is_none_or(|bias| bias.len() == rows), "one bias value a row");
        Self { blocks, bias }
    }

    /// A per-channel scale; `shift` (one value a channel) augments it.
    ///
    /// # Panics
    /// Where `shift` is not as long as `scale`.
    pub fn diagonal_of(scale: &[f32], shift: Option<Vec<f32>>) -> Self {
        let block = |value: &f32| Matrix { rows: 1, cols: 1, data: vec![*value] };
        Self::blocks_of(scale.iter().map(block).collect(), shift)
    }

    /// Rows and columns, the border included.
    pub fn shape(&self) -> (usize, usize) {
        let sum = |size: fn(&Matrix) -> usize| self.blocks.iter().map(size).sum::<usize>();
        let border = usize::from(self.bias.is_some());
        (sum(|block| block.rows) + border, sum(|block| block.cols) + border)
    }

    /// The blocks, from the upper left.
    pub fn blocks(&self) -> &[Matrix] {
        &self.blocks
    }

    /// The border's b.
    pub fn bias(&self) -> Option<&[f32]> {
        self.bias.as_deref()
    }

    /// Whether every element is a number.
    pub fn is_finite(&self) -> bool {
        let bias = self.bias.iter().flatten();
        self.blocks.iter().flat_map(|block| &block.data).chain(bias).all(|v| v.is_finite())
    }

    /// ‖·‖_F, the border included.
    pub fn frobenius(&self) -> f64 {
        let weights = self.blocks.iter().flat_map(|block| &block.data);
        let square = |value: &f32| f64::from(*value).powi(2);
        let border = self.bias.iter().map(|bias| 1.0 + bias.iter().map(square).sum::<f64>());
        (weights.map(square).sum::<f64>() + border.sum::<f64>()).sqrt()
    }

    /// ‖self − other‖_F; `None` where the two are not made up alike, or differ by what is no number.
    pub fn distance(&self, other: &Self) -> Option<f64> {
        let layout = |matrix: &Self| -> Vec<(usize, usize)> {
            matrix.blocks.iter().map(|block| (block.rows, block.cols)).collect()
        };
        if layout(self) != layout(other) || self.bias.is_some() != other.bias.is_some() {
            return None;
        }
        let elements = |matrix: &Self| {
            let weights = matrix.blocks.iter().flat_map(|block| block.data.iter().copied());
            weights.chain(matrix.bias.iter().flatten().copied()).collect::<Vec<f32>>()
        };
        let (own, others) = (elements(self), elements(other));
        let square = |(a, b): (&f32, &f32)| (f64::from(*a) - f64::from(*b)).powi(2);
        let distance = own.iter().zip(&others).map(square).sum::<f64>().sqrt();
        distance.is_finite().then_some(distance)
    }

    /// Singular values of a diagonal without border, which need no computing; descending.
    pub(super) fn diagonal_values(&self) -> Option<Vec<f64>> {
        let single = |block: &Matrix| block.rows == 1 && block.cols == 1;
        if self.bias.is_some() || !self.blocks.iter().all(single) {
            return None;
        }
        let mut values: Vec<f64> =
            self.blocks.iter().map(|block| f64::from(block.data[0]).abs()).collect();
        values.sort_by(|a, b| b.total_cmp(a));
        Some(values)
    }

    /// The whole matrix, zeros included.
    pub fn dense(&self) -> Mat<f64> {
        let (rows, cols) = self.shape();
        let mut dense = Mat::<f64>::zeros(rows, cols);
        let (mut row, mut col) = (0, 0);
        for block in &self.blocks {
            for (place, value) in block.data.iter().enumerate() {
                dense[(row + place / block.cols, col + place % block.cols)] = f64::from(*value);
            }
            row += block.rows;
            col += block.cols;
        }
        if let Some(bias) = &self.bias {
            for (i, value) in bias.iter().enumerate() {
                dense[(i, cols - 1)] = f64::from(*value);
            }
            dense[(rows - 1, cols - 1)] = 1.0;
        }
        dense
    }
}
