//! How long a run takes: a moving mean, and how far single runs stray from it, as TCP keeps of its round trips.

use std::time::Duration;

/// Part of a run's difference that the mean takes over: it follows the last eight or so.
const MEAN_GAIN: f64 = 1.0 / 8.0;

/// The same of the spread, slower: one run in fifty that takes four times as long shall not make all others wait
/// for that.
const SPREAD_GAIN: f64 = 1.0 / 16.0;

/// Mean deviations above the mean that a run is expected to stay below. What the choice rests on, in a
/// simulation of runs that vary by a fifth (`flood.rs` holds the one that was chosen to it): of ten times the
/// requests that can be answered, each with the time of two and a half runs, 31 % of those taken in are late
/// with none, 5.5 with one, 1.2 with two, 0.2 with three and 0.1 with four. Caution costs where all could
/// nearly be answered: at a load of 0.9, with the time of five runs, the box answers for 0.82 of its time
/// with none and one, 0.81 with two, 0.79 with three and 0.77 with four.
const SPREADS: f64 = 3.0;

/// Most that one run counts for, in means above the mean: a run that met a stall of the box says little of the
/// next one.
const MOST: f64 = 1.0;

/// What the next run is expected to take.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ServiceTime {
    /// Nanoseconds; 0 where nothing is known yet.
    mean: f64,
    /// Mean deviation of a run from the mean, in means.
    spread: f64,
}

impl ServiceTime {
    /// Before the first run: what was promised, or nothing.
    pub fn new(promised: Option<Duration>) -> Self {
        Self { mean: promised.map_or(0.0, nanos), spread: 0.0 }
    }

    /// The moving mean; zero where nothing is known.
    pub fn mean(&self) -> Duration {
        duration(self.mean)
    }

    /// What hardly a run exceeds; zero where nothing is known.
    pub fn upper(&self) -> Duration {
        duration(self.mean * (1.0 + SPREADS * self.spread))
    }

    /// A run took so long.
    pub fn observe(&mut self, took: Duration) {
        let took = nanos(took);
        if self.mean <= 0.0 {
            self.mean = took;
            return;
        }
        let stray = (took / self.mean - 1.0).min(MOST);
        self.spread += (stray.abs() - self.spread) * SPREAD_GAIN;
        self.mean *= 1.0 + stray * MEAN_GAIN;
    }
}

fn nanos(duration: Duration) -> f64 {
    duration.as_nanos() as f64
}

fn duration(nanos: f64) -> Duration {
    // Never negative, and far from `u64`'s end: a cast that saturates.
    Duration::from_nanos(nanos as u64)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_promise_holds_until_runs_are_seen_and_the_first_run_where_there_is_none() {
        let promised = ServiceTime::new(Some(10 * MS));
        assert_eq!((promised.mean(), promised.upper()), (10 * MS, 10 * MS));
        let mut unknown = ServiceTime::new(None);
        assert_eq!(unknown.upper(), Duration::ZERO);
        unknown.observe(7 * MS);
        assert_eq!((unknown.mean(), unknown.upper()), (7 * MS, 7 * MS));
    }

    #[test]
    fn the_mean_follows_the_box_and_the_upper_bound_lies_above_nearly_all_runs() {
        let mut time = ServiceTime::new(Some(10 * MS));
        let run = |n: u32| (90 + 7 * n % 21) * MS / 10;
        (0..200).for_each(|n| time.observe(run(n)));
        assert!((9 * MS..11 * MS).contains(&time.mean()), "{time:?}");
        assert!((11 * MS..13 * MS).contains(&time.upper()), "{time:?}");
        // Twice as slow: seen within 32 runs.
        (0..32).for_each(|n| time.observe(run(n) * 2));
        assert!((18 * MS..22 * MS).contains(&time.mean()), "{time:?}");
    }

    #[test]
    fn a_single_stall_moves_the_estimate_by_less_than_half() {
        let mut time = ServiceTime::new(Some(10 * MS));
        (0..50).for_each(|_| time.observe(10 * MS));
        time.observe(500 * MS);
        assert!(time.upper() < 15 * MS, "{time:?}");
    }

    proptest! {
        #[test]
        fn it_stays_between_the_runs_it_has_seen(
            runs in prop::collection::vec(1u64..u64::MAX / 2, 1..60),
        ) {
            let mut time = ServiceTime::new(None);
            runs.iter().for_each(|ns| time.observe(Duration::from_nanos(*ns)));
            let (least, most) = (*runs.iter().min().unwrap(), *runs.iter().max().unwrap());
            let within = |ns: f64| ns >= least as f64 * 0.999 && ns <= most as f64 * 1.001;
            prop_assert!(within(time.mean().as_nanos() as f64), "{:?}", time);
            prop_assert!(time.mean() <= time.upper());
        }
    }
}
