//! The governor in a closed loop with a made-up box: a deterministic discrete-event model.
//!
//! Requests arrive at given moments and wait in one queue a model; each session runs one at a time, in the
//! order of arrival. A run takes the promised median of the variant in service, times the box's slowdown at its
//! begin, times seeded noise. Where models share cores, all that run share them evenly, so that a box that is
//! asked for twice what it has takes twice as long. The governor sees what the agent would show it, as often.
//!
//! What it does not tell: variants stand by at all times (the agent loads the one that left anew, which takes
//! seconds), and a slowdown is the same for each variant.

mod engine;
#[cfg(test)]
mod fixture;
#[cfg(test)]
mod hour;
mod judge;
#[cfg(test)]
mod promises;
#[cfg(test)]
mod replay;
#[cfg(test)]
mod sharing;
#[cfg(test)]
mod tests;

use std::time::Duration;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

pub use engine::run;
pub use judge::{Clairvoyant, Judged, Summary, WindowReport, judge};

use super::trace::Stretch;
use super::{Action, Conviction, ModelView};
use crate::units::Percentile;

/// One model on the box.
pub struct Subject<'a> {
    /// How the governor sees it; `current` serves at the begin, `observed` and `load` are not read.
    pub view: ModelView,
    /// The percentile that the budget bounds.
    pub percentile: Percentile,
    /// What each of the view's variants really takes on the undisturbed box: its median run.
    pub medians: Vec<Duration>,
    /// Requests that run at the same time.
    pub instances: usize,
    /// Requests that may wait; one more is refused.
    pub queue: usize,
    /// When requests arrive, in order.
    pub arrivals: Vec<Duration>,
    /// What a run that begins at a moment takes, over the undisturbed box's.
    pub slowdown: Box<dyn Fn(Duration) -> f64 + 'a>,
    pub noise: Noise,
    pub seed: u64,
}

/// What chance does to a run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Noise {
    None,
    /// Up to this share longer, evenly.
    Uniform(f64),
    /// Log-normal with a median of 1 and this 99th percentile.
    Tail(f64),
}

/// The box that all models share.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Site {
    /// Cores that runs of all models share; `None`: they do not touch each other beyond what their slowdowns
    /// say.
    pub cores: Option<usize>,
    /// The governor looks this often.
    pub tick: Duration,
    /// How long the run lasts.
    pub length: Duration,
}

/// One switch of a simulated run.
#[derive(Debug, Clone, PartialEq)]
pub struct Switch {
    pub at: Duration,
    pub from: usize,
    pub action: Action,
}

/// One request of a simulated run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Served {
    pub arrived: Duration,
    /// Arrival to answer; `None` where it was refused, or the run ended before.
    pub latency: Option<Duration>,
    /// Begin to end in the session.
    pub run: Duration,
    /// The variant that answered it, or was in service when it was refused.
    pub variant: usize,
}

/// What happened to one model.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Lane {
    pub switches: Vec<Switch>,
    /// The variant in service at the end.
    pub current: usize,
    /// Variants that were withdrawn, and when.
    pub convicted: Vec<(Duration, Conviction)>,
    /// In the order of arrival.
    pub requests: Vec<Served>,
}

/// Whether the governor drives, or each model is served by one variant throughout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Driver<'a> {
    Governor,
    /// One variant a model, in the order of the subjects.
    Fixed(&'a [usize]),
}

/// How the requests of a stretch lie in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spread {
    /// At even distances, as a camera sends.
    Even,
    /// By chance, as many clients do.
    Chance,
}

/// When the requests of all stretches arrive.
pub fn arrivals(stretches: &[Stretch], spread: Spread, seed: u64) -> Vec<Duration> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut all = Vec::new();
    for stretch in stretches {
        let count = stretch.arrivals as f64;
        let shares = (0..stretch.arrivals).map(|n| match spread {
            Spread::Even => (n as f64 + 0.5) / count,
            Spread::Chance => rng.random::<f64>(),
        });
        let at = |share: f64| stretch.from + share * (stretch.to - stretch.from);
        let mut of_stretch: Vec<f64> = shares.map(at).collect();
        of_stretch.sort_by(f64::total_cmp);
        all.extend(of_stretch.into_iter().map(duration));
    }
    all
}

/// The slowdown that stretches tell of, at any moment.
pub fn slowdown(stretches: &[Stretch]) -> impl Fn(Duration) -> f64 + '_ {
    move |at| {
        let next = stretches.partition_point(|stretch| stretch.from <= at.as_secs_f64());
        let stretch = stretches.get(next.saturating_sub(1));
        stretch.map_or(1.0, |stretch| stretch.slowdown)
    }
}

/// Seconds as a duration; nothing and nonsense are 0.
fn duration(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or_default()
}

/// A factor a request.
fn factors(noise: Noise, seed: u64, count: usize) -> Vec<f64> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed ^ 0x6e_6f69_7365);
    let mut factor = || match noise {
        Noise::None => 1.0,
        Noise::Uniform(most) => 1.0 + most * rng.random::<f64>(),
        Noise::Tail(p99) => {
            // 2.326 standard deviations are the 99th percentile of a normal distribution.
            let sigma = p99.max(1.0).ln() / 2.326;
            let (radius, turn) = (1.0 - rng.random::<f64>(), rng.random::<f64>());
            let normal = (-2.0 * radius.ln()).sqrt() * (std::f64::consts::TAU * turn).cos();
            (sigma * normal).exp()
        }
    };
    (0..count).map(|_| factor()).collect()
}
