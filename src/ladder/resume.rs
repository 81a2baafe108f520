//! Under what a ladder is made: an interrupted build may only be gone on with where all of it is the same.

use std::collections::BTreeMap;

use super::calibration::Samples;
use super::task::{Eval, Options};
use crate::onnx::Tensor;
use crate::units::Digest;

/// Digest of everything that decides what a ladder is: the dense model, the engine that measures, the
/// options, the samples, and the program's own version. `samples` are those that were given: that fewer of
/// them may have been used is noted elsewhere.
pub fn conditions(
    dense: &Digest,
    engine: &str,
    options: &Options,
    samples: &Samples,
    eval: Option<&Eval>,
) -> Digest {
    let mut hasher = blake3::Hasher::new();
    let mut text = |text: &str| {
        hasher.update(&(text.len() as u64).to_le_bytes()).update(text.as_bytes());
    };
    text(env!("CARGO_PKG_VERSION"));
    text(&dense.to_string());
    text(engine);
    text(&format!("{options:?}"));
    text(&contents(samples).to_string());
    if let Some(eval) = eval {
        text(&contents(&eval.samples).to_string());
        text(&format!("{:?}", eval.labels));
    }
    Digest::from_bytes(*hasher.finalize().as_bytes())
}

fn contents(samples: &Samples) -> Digest {
    let mut hasher = blake3::Hasher::new();
    hasher.update(format!("{:?} {}", samples.source, samples.count).as_bytes());
    let batches = samples.batches.iter().chain([&samples.first]);
    for (name, tensor) in batches.flat_map(BTreeMap::iter) {
        let Tensor { dtype, shape, data } = tensor;
        hasher.update(format!("{name:?} {dtype:?} {shape:?} {}", data.len()).as_bytes());
        hasher.update(data);
    }
    Digest::from_bytes(*hasher.finalize().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ladder::manifest::CalibrationSource;
    use crate::redundancy::selection::Method;
    use crate::surgery::repair::Mode;

    fn samples(value: f32) -> Samples {
        let batch: BTreeMap<_, _> = [("x".to_owned(), Tensor::from_f32(&[1, 1], &[value]))].into();
        let (first, batches) = (batch.clone(), vec![batch]);
        Samples { source: CalibrationSource::File, count: 1, batches, first }
    }

    #[test]
    fn whatever_changes_a_ladder_changes_its_conditions() {
        let options = Options {
            low_rank: false,
            ratios: vec![0.5],
            method: Method::Obs,
            importances: BTreeMap::new(),
            repair: Mode::Refit,
            depth: true,
            align: None,
            trials: 1,
            work: None,
            seed: 0,
            floor: 0.5,
            seconds: 1.0,
        };
        let dense = Digest::of(b"dense");
        let eval =
            |value, labels: &[i64]| Eval { samples: samples(value), labels: Some(labels.to_vec()) };
        let base = || conditions(&dense, "cpu", &options, &samples(1.0), None);
        assert_eq!(base(), base());
        let eval_of = |one: Eval| conditions(&dense, "cpu", &options, &samples(1.0), Some(&one));
        let given = Options {
            importances: [("g".to_owned(), Default::default())].into(),
            ..options.clone()
        };
        let slower = Options { ratios: vec![0.6], ..options.clone() };
        let seeded = Options { seed: 1, ..options.clone() };
        let live = Samples { source: CalibrationSource::Live, ..samples(1.0) };
        let all = [
            base(),
            conditions(&Digest::of(b"other"), "cpu", &options, &samples(1.0), None),
            conditions(&dense, "npu", &options, &samples(1.0), None),
            conditions(&dense, "cpu", &slower, &samples(1.0), None),
            conditions(&dense, "cpu", &given, &samples(1.0), None),
            conditions(&dense, "cpu", &seeded, &samples(1.0), None),
            conditions(&dense, "cpu", &options, &samples(2.0), None),
            conditions(&dense, "cpu", &options, &live, None),
            eval_of(eval(1.0, &[1])),
            eval_of(eval(1.0, &[2])),
            eval_of(eval(2.0, &[1])),
        ];
        let different: std::collections::BTreeSet<Digest> = all.into_iter().collect();
        assert_eq!(different.len(), all.len());
    }
}
