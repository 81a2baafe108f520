//! How long a run takes: a moving mean, and how far single runs stray from it, as TCP keeps of its round trips.

use std::time::Duration;

/// Part of a run's difference that the mean takes over: it follows the last eight or so.
const MEAN_GAIN: f64 = 1.0 / 8.0;

/// The same of the spread, slower: one run in fifty that takes four times as long shall not make all others
/// wait for that.
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

/// Numbers of rows that are told apart: 1, 2, up to 4, up to 8, and so on; what is beyond the last counts with
/// it.
const SIZES: usize = 12;

/// Part by which a size that was found to be slower than its rows alone is forgiven at every run of another
/// one. Otherwise it would never be tried again, and a first run often meets what later ones do not.
const FORGIVEN: f64 = 1.0 / 64.0;

/// What the next run is expected to take, by the number of its rows.
///
/// The sizes share what the box does to them: a run of one size that takes longer than it did moves all others
/// as well, so that what is known of a single row stays true where only batches are run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ServiceTime {
    /// Means by size, nanoseconds; 0 where nothing is known yet.
    means: [f64; SIZES],
    /// Mean deviation of a run from the mean, in means.
    spread: f64,
}

impl ServiceTime {
    /// Before the first run: what was promised of a single row, or nothing.
    pub fn new(promised: Option<Duration>) -> Self {
        let mut means = [0.0; SIZES];
        means[0] = promised.map_or(0.0, nanos);
        Self { means, spread: 0.0 }
    }

    /// The moving mean of a single row; zero where nothing is known.
    pub fn mean(&self) -> Duration {
        duration(self.expected(1))
    }

    /// What hardly a run of so many rows exceeds; zero where nothing is known.
    pub fn upper(&self, rows: usize) -> Duration {
        duration(self.expected(rows) * (1.0 + SPREADS * self.spread))
    }

    /// A run of so many rows took so long.
    pub fn observe(&mut self, rows: usize, took: Duration) {
        let (size, took) = (size(rows), nanos(took));
        let expected = self.expected(rows);
        if expected <= 0.0 {
            self.means[size] = took;
            return;
        }
        if self.means[size] <= 0.0 {
            // The first of its size.
            self.means[size] = took.min(expected * (1.0 + MOST));
            return;
        }
        let stray = (took / expected - 1.0).min(MOST);
        self.spread += (stray.abs() - self.spread) * SPREAD_GAIN;
        for other in 0..SIZES {
            self.means[other] *= 1.0 + stray * MEAN_GAIN;
            let alone = self.below(other, least(other));
            if other != size && alone > 0.0 && self.means[other] > alone {
                // In whole steps at the end, so that it gets there.
                let step = (self.means[other] - alone).max(alone / 16.0) * FORGIVEN;
                self.means[other] = (self.means[other] - step).max(alone);
            }
        }
    }

    /// The mean of as many rows; of a size that was not seen what its rows would take one after the other, as
    /// many at a time as were seen, else what a larger size takes.
    fn expected(&self, rows: usize) -> f64 {
        let size = size(rows);
        let known = |mean: &&f64| **mean > 0.0;
        match self.means[size] {
            mean if mean > 0.0 => mean,
            _ => match self.below(size, rows as f64) {
                below if below > 0.0 => below,
                _ => self.means[size..].iter().find(known).copied().unwrap_or(0.0),
            },
        }
    }

    /// What `rows` would take in runs of the next smaller known size; 0 where none is known.
    fn below(&self, size: usize, rows: f64) -> f64 {
        let below = (0..size).rev().find(|below| self.means[*below] > 0.0);
        below.map_or(0.0, |below| self.means[below] * rows.max(1.0) / least(below))
    }
}

/// Fewest rows of a size.
fn least(size: usize) -> f64 {
    if size == 0 { 1.0 } else { 2f64.powi(size as i32 - 1) + 1.0 }
}

/// Where a number of rows stands.
fn size(rows: usize) -> usize {
    let power = rows.max(1).checked_next_power_of_two();
    power.map_or(SIZES - 1, |power| (power.trailing_zeros() as usize).min(SIZES - 1))
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
        assert_eq!((promised.mean(), promised.upper(1)), (10 * MS, 10 * MS));
        let mut unknown = ServiceTime::new(None);
        assert_eq!(unknown.upper(1), Duration::ZERO);
        unknown.observe(1, 7 * MS);
        assert_eq!((unknown.mean(), unknown.upper(1)), (7 * MS, 7 * MS));
    }

    #[test]
    fn the_mean_follows_the_box_and_the_upper_bound_lies_above_nearly_all_runs() {
        let mut time = ServiceTime::new(Some(10 * MS));
        let run = |n: u32| (90 + 7 * n % 21) * MS / 10;
        (0..200).for_each(|n| time.observe(1, run(n)));
        assert!((9 * MS..11 * MS).contains(&time.mean()), "{time:?}");
        assert!((11 * MS..13 * MS).contains(&time.upper(1)), "{time:?}");
        // Twice as slow: seen within 32 runs.
        (0..32).for_each(|n| time.observe(1, run(n) * 2));
        assert!((18 * MS..22 * MS).contains(&time.mean()), "{time:?}");
    }

    #[test]
    fn a_single_stall_moves_the_estimate_by_less_than_half() {
        let mut time = ServiceTime::new(Some(10 * MS));
        (0..50).for_each(|_| time.observe(1, 10 * MS));
        time.observe(1, 500 * MS);
        assert!(time.upper(1) < 15 * MS, "{time:?}");
    }

    #[test]
    fn rows_that_were_not_run_together_are_expected_to_take_as_long_as_one_after_the_other() {
        let mut time = ServiceTime::new(Some(10 * MS));
        for rows in [1, 2, 3, 4, 5, 8, 100] {
            assert_eq!(time.upper(rows), rows as u32 * 10 * MS);
        }
        time.observe(4, 18 * MS);
        let known = [1, 2, 3, 4, 5, 8].map(|rows| time.upper(rows));
        assert_eq!(known, [10, 20, 18, 18, 30, 48].map(|n| n * MS));
        let mut batches = ServiceTime::new(None);
        batches.observe(4, 18 * MS);
        assert_eq!([1, 4, 16].map(|rows| batches.upper(rows)), [18, 18, 96].map(|n| n * MS));
        assert!(batches.upper(usize::MAX) > batches.upper(16));
    }

    #[test]
    fn what_the_box_does_to_one_size_holds_for_all() {
        let mut time = ServiceTime::new(Some(10 * MS));
        time.observe(4, 16 * MS);
        (0..60).for_each(|_| time.observe(4, 32 * MS));
        assert!((19 * MS..21 * MS).contains(&time.mean()), "{time:?}");
    }

    /// A first batch that met a stall must not end all batching.
    #[test]
    fn a_size_that_was_slower_than_its_rows_alone_is_tried_again_in_time() {
        let mut time = ServiceTime::new(Some(10 * MS));
        time.observe(2, 500 * MS);
        assert!(time.upper(2) > 2 * time.upper(1), "{time:?}");
        (0..300).for_each(|_| time.observe(1, 10 * MS));
        assert!(time.upper(2) <= 2 * time.upper(1) + Duration::from_nanos(1), "{time:?}");
    }

    proptest! {
        #[test]
        fn it_stays_between_the_runs_it_has_seen(
            runs in prop::collection::vec(1u64..u64::MAX / 2, 1..60),
        ) {
            let mut time = ServiceTime::new(None);
            runs.iter().for_each(|ns| time.observe(1, Duration::from_nanos(*ns)));
            let (least, most) = (*runs.iter().min().unwrap(), *runs.iter().max().unwrap());
            let within = |ns: f64| ns >= least as f64 * 0.999 && ns <= most as f64 * 1.001;
            prop_assert!(within(time.mean().as_nanos() as f64), "{:?}", time);
            prop_assert!(time.mean() <= time.upper(1));
        }

        #[test]
        fn no_history_gives_nonsense(
            runs in prop::collection::vec((0usize..5000, 0u64..100_000_000), 0..80),
        ) {
            let mut time = ServiceTime::new(None);
            for (rows, us) in &runs {
                time.observe(*rows, Duration::from_micros(*us));
            }
            let most = runs.iter().map(|(_, us)| *us).max().unwrap_or(0);
            for rows in 0..40 {
                prop_assert!(time.upper(rows) <= 4 * 5000 * Duration::from_micros(most + 1));
            }
        }
    }
}
