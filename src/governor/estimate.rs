//! What a stretch of latencies says about a budget on one of its percentiles, when there are few of them and
//! some met a stall that no variant would have avoided.
//!
//! The 99th percentile of sixty requests is the slowest one, and one page fault would decide. So a budget
//! counts as broken where more requests lie above it than chance explains: with a budget that is just
//! held, each request lies above it with probability 1 − q, and `k` of `n` do with the tail of the
//! binomial distribution.
//!
//! A stall (the hypervisor, a swap, a flash that erases) makes all requests of one moment slow, however many
//! they are; a squeeze makes requests slow all the time. So the window is cut into slices, in the order
//! of time, and what is to move a variant must show in half of them.

use std::time::Duration;

use crate::limits::{
    BROKEN_CHANCE, BROKEN_REQUESTS, NEWEST_REQUESTS, OBSERVED_MIN, PROMISE_RUNS, SLICE_REQUESTS,
    SLICES,
};
use crate::units::Percentile;

/// Latencies of a window, in the order of their answers.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Observed {
    latencies: Vec<Duration>,
    percentile: Percentile,
    /// Time in the session of each.
    runs: Vec<Duration>,
}

impl Observed {
    /// What the governor is shown of `latencies` (in the order of the answers), of which it was promised that
    /// `percentile` lie within the budget.
    pub fn new(latencies: Vec<Duration>, percentile: Percentile) -> Self {
        Self { latencies, percentile, runs: Vec::new() }
    }

    /// The same, with how long each request's run took, without its wait.
    pub fn with_runs(self, runs: Vec<Duration>) -> Self {
        Self { runs, ..self }
    }

    /// Runs known.
    pub(super) fn runs(&self) -> usize {
        self.runs.len()
    }

    /// The fastest run.
    pub(super) fn fastest_run(&self) -> Option<Duration> {
        self.runs.iter().min().copied()
    }

    /// What hardly a run exceeded; `None` with fewer than [`PROMISE_RUNS`].
    pub(super) fn slow_run(&self) -> Option<Duration> {
        if self.runs.len() < PROMISE_RUNS {
            return None;
        }
        tail(&self.runs, self.percentile)
    }

    /// Requests answered.
    pub fn count(&self) -> usize {
        self.latencies.len()
    }

    /// Share of the requests above `limit`; 0 without requests.
    pub(super) fn share_over(&self, limit: Duration) -> f64 {
        let over = self.latencies.iter().filter(|latency| **latency > limit).count();
        over as f64 / self.latencies.len().max(1) as f64
    }

    /// Latency at the percentile, without the slowest requests where too few would decide. A stall counts.
    pub fn tail(&self) -> Option<Duration> {
        tail(&self.latencies, self.percentile)
    }

    /// The median over the slices of their latency at the percentile: what no single stall moves. `None`
    /// with fewer than [`OBSERVED_MIN`] requests.
    pub fn typical(&self) -> Option<Duration> {
        if self.latencies.len() < OBSERVED_MIN {
            return None;
        }
        let tail = |slice: &[Duration]| {
            let mut sorted = slice.to_vec();
            sorted.sort_unstable();
            self.percentile.of(&sorted)
        };
        let mut tails: Vec<Duration> = self.slices().filter_map(tail).collect();
        tails.sort_unstable();
        tails.get(tails.len().saturating_sub(1) / 2).copied()
    }

    /// Whether more requests lie above `budget` than chance explains where those that the percentile leaves
    /// may.
    pub fn breaks_budget(&self, budget: Duration) -> bool {
        self.breaks(|latency| latency > budget, 0.0)
    }

    /// Whether more requests are `over` than chance explains, where a share of `besides` more than the
    /// percentile leaves would be.
    pub(super) fn breaks(&self, over: impl Fn(Duration) -> bool, besides: f64) -> bool {
        let found = self.latencies.iter().filter(|latency| over(**latency)).count();
        let share = 1.0 - self.percentile.quantile() + besides;
        found >= BROKEN_REQUESTS && found >= breaking(self.latencies.len(), share)
    }

    /// The same, and they did not come in a few moments.
    pub(super) fn breaks_throughout(&self, over: impl Fn(Duration) -> bool, besides: f64) -> bool {
        let hit = self.slices().filter(|slice| slice.iter().any(|latency| over(*latency))).count();
        let slices = self.slices().len();
        hit >= slices.min((slices / 2).max(2)) && self.breaks(over, besides)
    }

    /// Whether all of the newest requests are above `budget`, a quarter of the window and [`NEWEST_REQUESTS`]
    /// at least. A stall that long is not told from a squeeze.
    pub(super) fn newest_break(&self, budget: Duration) -> bool {
        let newest = NEWEST_REQUESTS.max(self.latencies.len().div_ceil(4));
        let from = self.latencies.len().checked_sub(newest);
        from.is_some_and(|from| self.latencies[from..].iter().all(|latency| *latency > budget))
    }

    /// The median of the newest runs, a slice of the window; `None` with fewer than [`SLICE_REQUESTS`].
    pub(super) fn newest_run(&self) -> Option<Duration> {
        let newest = SLICE_REQUESTS.max(self.runs.len() / SLICES);
        let mut runs = self.runs[self.runs.len().checked_sub(newest)?..].to_vec();
        runs.sort_unstable();
        Percentile::P50.of(&runs)
    }

    /// The mean run.
    pub(super) fn mean_run(&self) -> Option<Duration> {
        let count = u32::try_from(self.runs.len()).ok().filter(|count| *count > 0)?;
        Some(self.runs.iter().sum::<Duration>() / count)
    }

    fn slices(&self) -> impl ExactSizeIterator<Item = &[Duration]> {
        let count = self.latencies.len();
        let slices = (count / SLICE_REQUESTS).clamp(1, SLICES);
        (0..slices).map(move |n| &self.latencies[count * n / slices..count * (n + 1) / slices])
    }
}

/// The value at the percentile, without the largest where too few would decide.
fn tail(values: &[Duration], percentile: Percentile) -> Option<Duration> {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    let count = sorted.len();
    let rank = (percentile.quantile() * count as f64).ceil() as usize;
    // Where the tail holds fewer requests than break a budget, they do not make a slowdown either.
    let rank = rank.min((count + 1).saturating_sub(BROKEN_REQUESTS)).max(1);
    sorted.get(rank - 1).copied()
}

/// How many of `count` requests must lie above a budget for it to be broken, where a `share` may: the
/// least number that chance reaches in fewer than [`BROKEN_CHANCE`] of all windows.
fn breaking(count: usize, share: f64) -> usize {
    if share <= 0.0 {
        return BROKEN_REQUESTS;
    }
    if share >= 1.0 {
        return count + 1;
    }
    // P(X = k) from P(X = k − 1), begun at ln P(X = 0) so that thousands of requests do not underflow
    // before the bulk is reached.
    let odds = (share / (1.0 - share)).ln();
    let mut log = count as f64 * (1.0 - share).ln();
    let mut below = 0.0;
    for k in 0..=count {
        if 1.0 - below < BROKEN_CHANCE {
            return k.max(BROKEN_REQUESTS);
        }
        below += log.exp();
        log += odds + ((count - k) as f64 / (k + 1) as f64).ln();
    }
    (count + 1).max(BROKEN_REQUESTS)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ms(values: impl IntoIterator<Item = u64>) -> Vec<Duration> {
        values.into_iter().map(Duration::from_millis).collect()
    }

    #[test]
    fn the_number_that_breaks_a_budget_is_the_binomial_tails() {
        // scipy.stats.binom.sf(k - 1, n, share) < 0.002
        let cases = [
            (5, 0.01, 3),
            (60, 0.01, 5),
            (120, 0.01, 6),
            (400, 0.01, 12),
            (4000, 0.01, 60),
            (60, 0.5, 42),
            (100, 0.05, 13),
            (100, 0.0, 3),
        ];
        for (count, share, expected) in cases {
            assert_eq!(breaking(count, share), expected, "{count} {share}");
        }
    }

    #[test]
    fn single_slow_requests_make_no_slowdown_of_a_tail_percentile() {
        let latencies = ms((0..60).map(|n| if n < 2 { 900 } else { 10 }));
        let observed = Observed::new(latencies, Percentile::P99);
        assert_eq!(observed.tail(), Some(Duration::from_millis(10)));
        assert_eq!(observed.share_over(Duration::from_millis(20)), 2.0 / 60.0);
        let half = Observed::new(ms(1..=100), Percentile::P50);
        assert_eq!(half.tail(), Some(Duration::from_millis(50)));
        let none = Observed::default();
        assert_eq!((none.tail(), none.typical(), none.count()), (None, None, 0));
    }

    #[test]
    fn a_stall_is_no_typical_latency_and_a_squeeze_is() {
        let limit = Duration::from_millis(20);
        let shown = |slow: std::ops::Range<u64>| {
            let took = (0..80).map(|n| if slow.contains(&n) { 50 } else { 10 });
            let observed = Observed::new(ms(took), Percentile::P99);
            let over = |latency: Duration| latency > limit;
            let broken = (observed.breaks(over, 0.0), observed.breaks_throughout(over, 0.0));
            (observed.typical().unwrap().as_millis(), broken)
        };
        assert_eq!(shown(0..0), (10, (false, false)));
        assert_eq!(shown(13..37), (10, (true, false)), "a third of the window, in one piece");
        assert_eq!(shown(20..80), (50, (true, true)));
    }

    #[test]
    fn what_is_forgiven_does_not_break() {
        let latencies = ms((0..80).map(|n| if n % 8 == 0 { 50 } else { 10 }));
        let observed = Observed::new(latencies, Percentile::P99);
        let over = |latency: Duration| latency > Duration::from_millis(20);
        assert!(observed.breaks_throughout(over, 0.0));
        assert!(!observed.breaks_throughout(over, 0.12));
        assert!(!observed.breaks_throughout(over, 1.0));
    }

    proptest! {
        #[test]
        fn more_requests_never_break_a_budget_sooner(
            count in 1usize..3000, share in 0.0005..0.5f64,
        ) {
            prop_assert!(breaking(count, share) <= breaking(count + 1, share));
            prop_assert!(breaking(count, share) as f64 >= count as f64 * share);
        }
    }
}
