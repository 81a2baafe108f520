//! Whether the box is getting slower, so that a variant leaves before its budget is broken.
//!
//! Clocks that fall as a box gets hot do so over tens of seconds, a few per cent a second at most. What is
//! looked at is the newest runs of each moment, not how long requests waited; a line is laid through the
//! logarithms of the last seconds. It counts where it rises by far more than chance explains, and in both
//! halves alike: a step, which rises no further, does so in one.

use std::collections::VecDeque;
use std::time::Duration;

use crate::limits::{TREND_CERTAIN, TREND_POINTS, TREND_SPAN};

/// The slowdown of the last seconds.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Trend {
    /// When, and the logarithm of the slowdown then.
    points: VecDeque<(Duration, f64)>,
}

impl Trend {
    /// Takes in the slowdown of the newest runs; the same once more says nothing new.
    pub fn add(&mut self, now: Duration, slowdown: f64) {
        while self.points.front().is_some_and(|(at, _)| now.saturating_sub(*at) > TREND_SPAN) {
            self.points.pop_front();
        }
        let log = slowdown.max(f64::MIN_POSITIVE).ln();
        if self.points.back().is_none_or(|(_, last)| *last != log) {
            self.points.push_back((now, log));
        }
    }

    /// Another variant serves: what it takes beside its promise is no change of the box.
    pub fn clear(&mut self) {
        self.points.clear();
    }

    /// How many times slower the box will be after `ahead`, at the least; 1 where it does not surely get
    /// slower.
    pub fn growth(&self, ahead: Duration) -> f64 {
        if self.points.len() < TREND_POINTS {
            return 1.0;
        }
        let (older, newer): (Vec<_>, Vec<_>) = {
            let half = self.points.len() / 2;
            let all = self.points.iter().copied();
            (all.clone().take(half).collect(), all.skip(half).collect())
        };
        let all: Vec<(Duration, f64)> = self.points.iter().copied().collect();
        let (Some(whole), Some(older), Some(newer)) =
            (Line::fit(&all), Line::fit(&older), Line::fit(&newer))
        else {
            return 1.0;
        };
        let least = whole.slope - TREND_CERTAIN * whole.error;
        if least <= 0.0 || older.slope.min(newer.slope) < whole.slope / 3.0 {
            return 1.0;
        }
        (least * ahead.as_secs_f64()).exp()
    }
}

/// A line of least squares.
struct Line {
    /// A second.
    slope: f64,
    /// Its standard error.
    error: f64,
}

impl Line {
    fn fit(points: &[(Duration, f64)]) -> Option<Self> {
        let count = points.len() as f64;
        let x = |at: Duration| at.as_secs_f64();
        let mean_x = points.iter().map(|(at, _)| x(*at)).sum::<f64>() / count;
        let mean_y = points.iter().map(|(_, y)| y).sum::<f64>() / count;
        let spread: f64 = points.iter().map(|(at, _)| (x(*at) - mean_x).powi(2)).sum();
        if points.len() < 3 || spread <= 0.0 {
            return None;
        }
        let both: f64 = points.iter().map(|(at, y)| (x(*at) - mean_x) * (y - mean_y)).sum();
        let slope = both / spread;
        let miss = |(at, y): &(Duration, f64)| (y - mean_y - slope * (x(*at) - mean_x)).powi(2);
        let rest: f64 = points.iter().map(miss).sum();
        Some(Self { slope, error: (rest / (count - 2.0) / spread).sqrt() })
    }
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    const TICK: Duration = Duration::from_millis(250);

    /// What is foreseen for two seconds later, at every tick of half a minute.
    fn foreseen(noise: f64, seed: u64, slowdown: impl Fn(f64) -> f64) -> Vec<f64> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut trend = Trend::default();
        let growth = |tick: u32| {
            let now = TICK * tick;
            let chance = 1.0 + noise * (rng.random::<f64>() - 0.5);
            trend.add(now, slowdown(now.as_secs_f64()) * chance);
            trend.growth(Duration::from_secs(2))
        };
        (1..120).map(growth).collect()
    }

    #[test]
    fn a_ramp_is_foreseen_and_neither_noise_nor_a_step_is() {
        for seed in 0..50 {
            let ramp = foreseen(0.05, seed, |at| 1.0 + 0.03 * at);
            let last = ramp[ramp.len() - 1];
            assert!((1.0..1.06).contains(&last), "{last}");
            assert!(ramp[40..].iter().filter(|growth| **growth > 1.01).count() > 40, "{ramp:?}");
            let flat = foreseen(0.1, seed, |_| 1.4);
            assert!(flat.iter().all(|growth| *growth < 1.03), "{flat:?}");
            let step = foreseen(0.05, seed, |at| if at < 15.0 { 1.0 } else { 1.4 });
            assert!(step.iter().filter(|growth| **growth > 1.05).count() <= 4, "{step:?}");
        }
    }

    #[test]
    fn what_stands_still_and_what_is_not_seen_tell_nothing() {
        let same = foreseen(0.0, 0, |_| 1.0);
        assert!(same.iter().all(|growth| *growth == 1.0));
        let falls = foreseen(0.02, 0, |at| 3.0 - 0.05 * at);
        assert!(falls.iter().all(|growth| *growth == 1.0));
        assert_eq!(Trend::default().growth(Duration::from_secs(2)), 1.0);
    }
}
