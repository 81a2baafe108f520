//! A model for the tests: dense takes 10 ms, and four rungs of its ladder stand by.

use std::time::Duration;

use super::super::trace::Stretch;
use super::super::{ModelView, Observed, Policy, VariantView};
use super::{Noise, Spread, Subject, arrivals, slowdown};
use crate::limits;
use crate::units::Percentile;

/// Name, ratio and quality.
const LADDER: [(&str, f64, f64); 4] =
    [("dense", 1.0, 1.0), ("r0.75", 0.75, 0.99), ("r0.6", 0.6, 0.97), ("r0.5", 0.5, 0.93)];

/// Runs scatter by so much: the 99th percentile over the median.
const TAIL: f64 = 1.1;

/// The ladder's variants where dense takes `dense_ms` and the others these ratios of it.
pub fn variants(dense_ms: f64, ladder: &[(f64, f64)]) -> (Vec<VariantView>, Vec<Duration>) {
    let median = |ratio: f64| Duration::from_secs_f64(dense_ms * 1e-3 * ratio);
    let view = |(ratio, quality): &(f64, f64)| VariantView {
        name: if *ratio == 1.0 { "dense".to_owned() } else { format!("r{ratio}") },
        promised: median(*ratio).mul_f64(TAIL),
        quality: *quality,
        ready: true,
    };
    (ladder.iter().map(view).collect(), ladder.iter().map(|(ratio, _)| median(*ratio)).collect())
}

/// How the tests' models are governed.
pub fn policy() -> Policy {
    Policy {
        window: Duration::from_secs(2),
        dwell: Duration::from_secs(5),
        margin: 1.1,
        headroom: 1.25,
        sustain: Duration::from_secs(5),
        probation: Duration::from_secs(30),
    }
}

/// The model on a box that does what `stretches` say.
pub fn subject<'a>(
    name: &str,
    budget_ms: u64,
    stretches: &'a [Stretch],
    spread: Spread,
    seed: u64,
) -> Subject<'a> {
    let (variants, medians) = variants(10.0, &LADDER.map(|(_, ratio, quality)| (ratio, quality)));
    Subject {
        view: ModelView {
            name: name.to_owned(),
            variants,
            current: 0,
            budget: Some(Duration::from_millis(budget_ms)),
            floor: 0.9,
            priority: 0,
            policy: policy(),
            observed: Observed::default(),
            load: None,
            fault: false,
            disproved: false,
        },
        percentile: Percentile::P99,
        medians,
        instances: 1,
        queue: limits::QUEUE_LENGTH,
        arrivals: arrivals(stretches, spread, seed),
        slowdown: Box::new(slowdown(stretches)),
        noise: Noise::Tail(TAIL),
        seed,
    }
}

/// Stretches one after the other: (seconds, requests a second, slowdown).
pub fn stretches(all: &[(f64, f64, f64)]) -> Vec<Stretch> {
    let mut from = 0.0;
    let stretch = |(length, rate, slowdown): &(f64, f64, f64)| {
        let begin = from;
        from += length;
        let arrivals = (length * rate).round() as u64;
        Stretch { from: begin, to: from, arrivals, slowdown: *slowdown }
    };
    all.iter().map(stretch).collect()
}
