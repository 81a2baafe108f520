//! What the ranking of a group's channels needs of the operators that read them.

use faer::Mat;

use super::packed::Packed;
use crate::limits;
use crate::redundancy::selection::Reader;

/// What selection needs of a reader, or of a block of its columns. Held of all readers at once, so in f32: the
/// ridge of the selection is far above what that rounds away.
#[derive(Debug, Clone)]
pub struct Seen {
    /// The first of its columns.
    pub first: usize,
    pub weight: Mat<f32>,
    pub covariance: Packed<f32>,
    pub scale: f64,
}

impl Seen {
    /// `columns` are those of the whole operator that each channel of a group feeds.
    pub fn reader(&self, columns: &[Vec<usize>]) -> Reader {
        let within = self.first..self.first + self.covariance.side();
        let own = |all: &Vec<usize>| {
            let own = all.iter().filter(|column| within.contains(*column));
            own.map(|column| column - self.first).collect()
        };
        let (rows, cols) = (self.weight.nrows(), self.weight.ncols());
        Reader {
            weight: Mat::from_fn(rows, cols, |i, j| f64::from(self.weight[(i, j)])),
            covariance: self.covariance.whole(),
            columns: columns.iter().map(own).collect(),
            scale: self.scale,
        }
    }
}

/// Columns that are ranked at a time, whole channels of `taps` columns: all where they are few enough, else
/// equal blocks which together hold no more than the widest that is ranked whole.
pub fn block(columns: usize, taps: usize) -> usize {
    let most = limits::SELECTION_COLUMNS;
    if columns <= most {
        return columns;
    }
    let count = columns.div_ceil((most * most / columns).max(1));
    columns.div_ceil(count).next_multiple_of(taps.max(1))
}

/// Covariance of whole channels: the mean over the places where a channel feeds its reader, which may stand in
/// blocks. Channels that share no block count as if they had nothing in common.
pub fn channel_covariance(blocks: &[Reader], width: usize) -> Packed<f64> {
    let places = |i: usize| blocks.iter().map(|block| block.columns[i].len()).sum::<usize>();
    Packed::from_fn(width, |i, j| {
        let pairs = blocks.iter().flat_map(|block| {
            let pairs = block.columns[i].iter().zip(&block.columns[j]);
            pairs.map(|(a, b)| block.covariance[(*a, *b)])
        });
        pairs.sum::<f64>() / places(i).max(1) as f64
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_of_a_wide_operator_hold_no_more_than_the_widest_whole_one() {
        let most = limits::SELECTION_COLUMNS;
        assert_eq!(block(most, 9), most);
        for (columns, taps) in [(most + 9, 9), (9_216, 9), (5_000, 1), (12_544, 49), (1 << 20, 1)] {
            let size = block(columns, taps);
            let count = columns.div_ceil(size);
            assert!(size.is_multiple_of(taps) && count > 1, "{columns}: {count} of {size}");
            let slack = taps * columns;
            assert!(count * size * size <= most * most + 2 * slack, "{columns}: {count} of {size}");
        }
        assert!(9_216usize.div_ceil(block(9_216, 9)) <= limits::SELECTION_BLOCKS);
        assert!((1usize << 20).div_ceil(block(1 << 20, 1)) > limits::SELECTION_BLOCKS);
    }
}
