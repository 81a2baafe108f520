//! What a variant is worth: its agreement with dense on samples that no repair has seen, and its accuracy
//! where labels are given.

use std::collections::BTreeMap;

use super::calibration::rows_of;
use crate::onnx::{Engine, ExecError, Model, Tensor, values};
use crate::spectra::activations::Batch;

/// Outputs of a model on samples: for each graph output one tensor a batch.
pub type Outputs = Vec<Vec<Tensor>>;

/// Samples that judge variants, in batches as the model takes them.
#[derive(Debug, Clone, Default)]
pub struct Judges {
    pub batches: Vec<Batch>,
    /// For each batch, which of its samples count.
    pub counted: Vec<Vec<bool>>,
}

impl Judges {
    /// The samples for which `take` holds; they are numbered through all batches. Where the model takes
    /// `whole` batches only, those that hold such a sample are run, and their other samples do not count.
    pub fn of(batches: &[Batch], whole: bool, take: impl Fn(u32) -> bool) -> Self {
        let mut judges = Self::default();
        let mut first = 0u32;
        for batch in batches {
            let size = batch.values().next().and_then(|t| t.shape.first()).copied().unwrap_or(0);
            let counted: Vec<bool> = (0..size).map(|row| take(first + row as u32)).collect();
            first += size as u32;
            let rows: Vec<usize> = (0..size).filter(|row| counted[*row]).collect();
            if rows.is_empty() {
                continue;
            }
            if whole {
                judges.batches.push(batch.clone());
                judges.counted.push(counted);
            } else {
                let picked = batch.iter().map(|(name, t)| (name.clone(), rows_of(t, &rows)));
                judges.batches.push(picked.collect());
                judges.counted.push(vec![true; rows.len()]);
            }
        }
        judges
    }
}

/// Agreement of a variant with dense.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Agreement {
    /// Share of samples with the same top-1 class where the first output is a score a class
    /// (`[samples, classes ≥ 2]`), else the explained variance clipped to 0..=1.
    pub quality: f64,
    /// Share of the variance of dense's outputs (all floating-point ones) that the variant explains.
    pub explained: f64,
}

/// Runs a model over batches.
///
/// # Errors
/// Where the runtime fails.
pub fn outputs(
    engine: &dyn Engine,
    model: &Model,
    batches: &[Batch],
) -> Result<Outputs, ExecError> {
    let mut session = engine.open(model)?;
    let mut all: Outputs = Vec::new();
    for batch in batches {
        let fed: Vec<(&str, &Tensor)> = batch.iter().map(|(n, t)| (n.as_str(), t)).collect();
        for (index, tensor) in session.run(&fed)?.into_iter().enumerate() {
            if all.len() <= index {
                all.push(Vec::new());
            }
            all[index].push(tensor);
        }
    }
    Ok(all)
}

/// Compares a variant's outputs with dense's on the same batches, over the samples that are `counted` (see
/// [`Judges::counted`]). Outputs of which a sample's share cannot be told from that of one that does not
/// count are left out. A variant whose shapes differ or whose values are not finite agrees in nothing.
pub fn agreement(dense: &Outputs, variant: &Outputs, counted: &[Vec<bool>]) -> Agreement {
    let nothing = Agreement { quality: 0.0, explained: f64::NEG_INFINITY };
    let mut classes: BTreeMap<bool, usize> = BTreeMap::new();
    let mut explained = Vec::new();
    for (index, (dense, variant)) in dense.iter().zip(variant).enumerate() {
        let (Some(wanted), Some(found)) = (taken(dense, counted), taken(variant, counted)) else {
            continue;
        };
        if wanted.width != found.width || wanted.values.len() != found.values.len() {
            return nothing;
        }
        if found.values.iter().any(|value| !value.is_finite()) {
            return nothing;
        }
        explained.push(explained_variance(&wanted, &found));
        if index == 0 && wanted.is_class_scores {
            for (a, b) in wanted.rows().zip(found.rows()) {
                *classes.entry(argmax(a) == argmax(b)).or_default() += 1;
            }
        }
    }
    if explained.is_empty() {
        return nothing;
    }
    let explained = explained.iter().sum::<f64>() / explained.len() as f64;
    let (same, other) = (classes.get(&true).unwrap_or(&0), classes.get(&false).unwrap_or(&0));
    let quality = match same + other {
        0 => explained.clamp(0.0, 1.0),
        total => *same as f64 / total as f64,
    };
    Agreement { quality, explained }
}

/// Whether the quality that [`agreement`] tells of such outputs is a share of samples with the same class.
pub fn tells_classes(outputs: &[Tensor]) -> bool {
    let is_float = |tensor: &Tensor| values::floats(tensor.dtype, &[]).is_some();
    outputs.first().is_some_and(|first| is_class_scores(&first.shape) && is_float(first))
}

fn is_class_scores(shape: &[usize]) -> bool {
    shape.len() == 2 && shape[1] >= 2
}

/// Share of samples whose highest score in the first output is at their label.
pub fn accuracy(outputs: &Outputs, labels: &[i64]) -> Option<f64> {
    let scores = outputs.first()?;
    let all: Vec<Vec<bool>> =
        scores.iter().map(|t| vec![true; t.shape.first().copied().unwrap_or(0)]).collect();
    let scores = taken(scores, &all)?;
    if !scores.is_class_scores || scores.rows().count() != labels.len() || labels.is_empty() {
        return None;
    }
    let right = scores.rows().zip(labels).filter(|(row, label)| argmax(row) as i64 == **label);
    Some(right.count() as f64 / labels.len() as f64)
}

/// One output over the chosen samples.
struct Values {
    /// Values of one sample.
    width: usize,
    values: Vec<f32>,
    is_class_scores: bool,
}

impl Values {
    fn rows(&self) -> impl Iterator<Item = &[f32]> {
        self.values.chunks_exact(self.width.max(1))
    }
}

/// What an output says of the samples that count; `None` where that cannot be told.
fn taken(tensors: &[Tensor], counted: &[Vec<bool>]) -> Option<Values> {
    let shape = &tensors.first()?.shape;
    let is_class_scores = is_class_scores(shape);
    let width: usize = shape.get(1..)?.iter().product();
    let mut values = Vec::new();
    for (tensor, counted) in tensors.iter().zip(counted) {
        let found = tensor.to_f32()?;
        if counted.iter().all(|counts| *counts) {
            values.extend_from_slice(&found);
            continue;
        }
        // The first axis holds the samples, each with as many rows as every other.
        if tensor.shape.first()? % counted.len() != 0 {
            return None;
        }
        let share = found.len() / counted.len();
        for (rows, _) in found.chunks_exact(share.max(1)).zip(counted).filter(|(_, takes)| **takes)
        {
            values.extend_from_slice(rows);
        }
    }
    Some(Values { width, values, is_class_scores })
}

/// 1 − Σ‖a − b‖² / Σ‖a − mean‖², the mean taken for each element of the output over the samples, or over
/// all elements where there is one sample only.
fn explained_variance(wanted: &Values, found: &Values) -> f64 {
    let rows = wanted.rows().count();
    let mean: Vec<f64> = if rows > 1 {
        (0..wanted.width)
            .map(|i| wanted.rows().map(|row| f64::from(row[i])).sum::<f64>() / rows as f64)
            .collect()
    } else {
        let all = wanted.values.iter().map(|v| f64::from(*v)).sum::<f64>();
        vec![all / wanted.values.len().max(1) as f64; wanted.width]
    };
    let (mut error, mut total) = (0.0, 0.0);
    for (a, b) in wanted.rows().zip(found.rows()) {
        for ((a, b), mean) in a.iter().zip(b).zip(&mean) {
            error += (f64::from(*a) - f64::from(*b)).powi(2);
            total += (f64::from(*a) - mean).powi(2);
        }
    }
    match total > 0.0 {
        true => 1.0 - error / total,
        false if error == 0.0 => 1.0,
        false => f64::NEG_INFINITY,
    }
}

fn argmax(row: &[f32]) -> usize {
    let best = row.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1).then(b.0.cmp(&a.0)));
    best.map_or(0, |(index, _)| index)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scores(rows: &[[f32; 3]]) -> Outputs {
        let flat: Vec<f32> = rows.iter().flatten().copied().collect();
        vec![vec![Tensor::from_f32(&[rows.len(), 3], &flat)]]
    }

    #[test]
    fn a_model_agrees_with_itself_and_not_with_one_that_says_nan() {
        let dense = scores(&[[1.0, 2.0, 0.0], [5.0, 2.0, 0.0], [0.0, 0.0, 1.0]]);
        let all = [vec![true; 3]];
        let same = agreement(&dense, &dense, &all);
        assert_eq!((same.quality, same.explained), (1.0, 1.0));
        let nan = scores(&[[1.0, f32::NAN, 0.0], [5.0, 2.0, 0.0], [0.0, 0.0, 1.0]]);
        assert_eq!(agreement(&dense, &nan, &all).quality, 0.0);
    }

    #[test]
    fn counts_only_the_samples_that_are_taken() {
        let dense = scores(&[[1.0, 2.0, 0.0], [5.0, 2.0, 0.0]]);
        let other = scores(&[[9.0, 2.0, 0.0], [5.0, 2.0, 0.0]]);
        assert_eq!(agreement(&dense, &other, &[vec![false, true]]).quality, 1.0);
        assert_eq!(agreement(&dense, &other, &[vec![true, false]]).quality, 0.0);
        assert_eq!(accuracy(&other, &[1, 0]), Some(0.5));
        assert_eq!(accuracy(&other, &[1]), None, "labels for other samples than these");
    }

    #[test]
    fn an_output_that_does_not_tell_its_samples_apart_is_left_out() {
        // Five detections of four samples, of which one counts.
        let found = |first: f32| -> Outputs {
            vec![vec![Tensor::from_f32(&[5, 1], &[first, 2.0, 3.0, 4.0, 5.0])]]
        };
        let counted = [vec![true, false, false, false]];
        let nothing = agreement(&found(1.0), &found(1.0), &counted);
        assert_eq!((nothing.quality, nothing.explained), (0.0, f64::NEG_INFINITY));
        // With all of them it does not matter whose is whose.
        assert_eq!(agreement(&found(1.0), &found(1.0), &[vec![true; 4]]).quality, 1.0);
    }

    #[test]
    fn a_sample_takes_all_of_its_rows_with_it() {
        let rows = |second: f32| -> Outputs {
            vec![vec![Tensor::from_f32(&[4, 1], &[1.0, 2.0, second, second])]]
        };
        let (first, last) = ([vec![true, false]], [vec![false, true]]);
        assert_eq!(agreement(&rows(3.0), &rows(9.0), &first).explained, 1.0);
        assert!(agreement(&rows(3.0), &rows(9.0), &last).explained < 0.0);
    }
}
