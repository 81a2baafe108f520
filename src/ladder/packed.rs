//! Symmetric matrices of which one half is held.

use faer::Mat;

/// A symmetric matrix: the columns of its lower half, one behind the other.
#[derive(Debug, Clone, PartialEq)]
pub struct Packed<T> {
    side: usize,
    lower: Vec<T>,
}

impl<T: Copy> Packed<T> {
    /// The matrix of `side × side` whose lower half `value(i, j)` gives, i ≥ j.
    pub fn from_fn(side: usize, mut value: impl FnMut(usize, usize) -> T) -> Self {
        let mut lower = Vec::with_capacity(side * (side + 1) / 2);
        for j in 0..side {
            lower.extend((j..side).map(|i| value(i, j)));
        }
        Self { side, lower }
    }

    /// Rows, and columns.
    pub fn side(&self) -> usize {
        self.side
    }

    /// One element.
    pub fn at(&self, i: usize, j: usize) -> T {
        let (i, j) = (i.max(j), i.min(j));
        // Column c has side − c elements.
        self.lower[j * self.side - j * j.saturating_sub(1) / 2 + (i - j)]
    }
}

impl<T: Copy + Into<f64>> Packed<T> {
    /// Both halves, in f64.
    pub fn whole(&self) -> Mat<f64> {
        let mut whole = Mat::zeros(self.side, self.side);
        let mut values = self.lower.iter();
        for j in 0..self.side {
            for (i, value) in (j..self.side).zip(&mut values) {
                whole[(i, j)] = (*value).into();
                whole[(j, i)] = (*value).into();
            }
        }
        whole
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_halves_come_out_as_the_lower_one_went_in() {
        for side in 0..7 {
            let value = |i: usize, j: usize| (10 * i.max(j) + i.min(j)) as f32;
            let packed = Packed::from_fn(side, value);
            let whole = packed.whole();
            assert_eq!(packed.side(), side);
            for i in 0..side {
                for j in 0..side {
                    assert_eq!(packed.at(i, j), value(i, j), "{i} {j} of {side}");
                    assert_eq!(whole[(i, j)], f64::from(value(i, j)), "{i} {j} of {side}");
                }
            }
        }
    }
}
