//! What an operator errs by on rows that nothing is fitted on.

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatRef, Par};

use super::refit::Affine;
use super::repair::is_held_out;
use crate::spectra::moments::{Moments, STRETCH};
use crate::spectra::rows::RowSource;

/// Operators that a refit compares, about: what decides which way of comparing them is the cheaper one.
const COMPARED: usize = 6;

/// The held-out rows of an operator, in the form in which operators are compared on them at the least cost.
pub(super) enum HeldOut<'r> {
    /// Their moments: where the outputs are many.
    Moments(Moments),
    /// Themselves: where the inputs are many, of which the moments would hold the square.
    Rows { rows: &'r dyn RowSource, chosen: Vec<usize>, y: Vec<f32>, variance: f64 },
}

impl<'r> HeldOut<'r> {
    /// `None` where no row is held out. Where the operator `can_shift` its output, that is compared about its
    /// mean.
    pub fn of(rows: &'r dyn RowSource, can_shift: bool) -> Option<Self> {
        let (n, m) = (rows.inputs(), rows.outputs());
        let samples = rows.samples();
        let held_out = samples.iter().filter(|sample| is_held_out(**sample)).count();
        // Multiply-adds; those in f64 take twice as long.
        let by_moments = held_out * n * n / 2 + COMPARED * 2 * m * n * n;
        if by_moments < COMPARED * held_out * n * m {
            return Some(Self::Moments(Moments::of(rows, is_held_out)?.for_operator(can_shift)));
        }
        Self::rows(rows, can_shift)
    }

    fn rows(rows: &'r dyn RowSource, can_shift: bool) -> Option<Self> {
        let samples = rows.samples();
        let chosen: Vec<usize> =
            (0..samples.len()).filter(|row| is_held_out(samples[*row])).collect();
        let (m, count) = (rows.outputs(), chosen.len() as f64);
        let mut y = Vec::with_capacity(chosen.len() * m);
        chosen.iter().for_each(|row| rows.push_y(*row, &mut y));
        let mut sums = vec![(0.0, 0.0); m];
        for row in y.chunks_exact(m.max(1)) {
            for ((sum, squares), value) in sums.iter_mut().zip(row) {
                *sum += f64::from(*value);
                *squares += f64::from(*value).powi(2);
            }
        }
        let about = |(sum, squares): &(f64, f64)| {
            squares / count - if can_shift { (sum / count).powi(2) } else { 0.0 }
        };
        let variance = sums.iter().map(about).sum();
        (!chosen.is_empty()).then_some(Self::Rows { rows, chosen, y, variance })
    }

    /// Mean squared error of an operator, relative to the variance of the wanted output.
    pub fn error(&self, affine: &Affine) -> f64 {
        match self {
            Self::Moments(moments) => moments.relative(affine.weight.as_ref(), &affine.bias),
            Self::Rows { rows, chosen, y, variance } => {
                let said = predict(*rows, chosen, affine);
                let m = rows.outputs();
                let of = |output: usize| -> f64 {
                    (0..chosen.len())
                        .map(|row| f64::from(said[(row, output)] - y[row * m + output]).powi(2))
                        .sum()
                };
                let sum: f64 = (0..m).map(of).sum();
                sum / chosen.len() as f64 / variance.max(f64::MIN_POSITIVE)
            }
        }
    }
}

/// W·x + b of the chosen rows, chosen rows × outputs.
pub(super) fn predict(rows: &dyn RowSource, chosen: &[usize], affine: &Affine) -> Mat<f32> {
    let (n, m) = (rows.inputs(), rows.outputs());
    let weight = Mat::from_fn(m, n, |i, j| affine.weight[(i, j)] as f32);
    let mut said = Mat::from_fn(chosen.len(), m, |_, j| affine.bias[j] as f32);
    let mut x = Vec::with_capacity(chosen.len().min(STRETCH) * n);
    for (number, stretch) in chosen.chunks(STRETCH).enumerate() {
        x.clear();
        stretch.iter().for_each(|row| rows.push_x(*row, &mut x));
        let x = MatRef::from_row_major_slice(&x, stretch.len(), n);
        let into = said.as_mut().subrows_mut(number * STRETCH, stretch.len());
        matmul(into, Accum::Add, x, weight.transpose(), 1.0f32, Par::Seq);
    }
    said
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spectra::rows::Rows;

    #[test]
    fn rows_and_their_moments_tell_the_same_error() {
        let (inputs, outputs, count) = (5, 3, 40 * STRETCH / 16);
        let value = |i: usize| ((i * 7919 + 13) % 1000) as f32 / 250.0 - 1.5;
        let rows = Rows {
            inputs,
            outputs,
            x: (0..count * inputs).map(value).collect(),
            y: (0..count * outputs).map(|i| value(3 * i + 1)).collect(),
            sample: (0..count as u32).map(|row| row / 8).collect(),
        };
        let weight = Mat::from_fn(outputs, inputs, |i, j| f64::from(value(i * 31 + j)));
        for (can_shift, bias) in [(true, vec![0.3, -2.0, 0.0]), (false, vec![0.0; outputs])] {
            let affine = Affine { weight: weight.clone(), bias };
            let moments = Moments::of(&rows, is_held_out).unwrap().for_operator(can_shift);
            let by_moments = HeldOut::Moments(moments).error(&affine);
            let by_rows = HeldOut::rows(&rows, can_shift).unwrap().error(&affine);
            assert!((by_moments / by_rows - 1.0).abs() < 1e-5, "{by_moments} {by_rows}");
        }
        let fitted = Rows { sample: vec![1; count], ..rows };
        assert!(HeldOut::of(&fitted, true).is_none());
    }
}
