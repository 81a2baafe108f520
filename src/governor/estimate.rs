//! What a stretch of latencies says about a budget on one of its percentiles, when there are few of them.
//!
//! The 99th percentile of sixty requests is the slowest one, and one page fault would decide. So a budget
//! counts as broken where more requests lie above it than chance explains: with a budget that is just
//! held, each request lies above it with probability 1 − q, and `k` of `n` do with the tail of the
//! binomial distribution.

use std::time::Duration;

use super::types::Observed;
use crate::limits::{BROKEN_CHANCE, BROKEN_REQUESTS};
use crate::units::Percentile;

/// What the governor is shown of the latencies of a window, of which it was promised that `percentile` of
/// them lie within `budget`. The order of the latencies does not matter.
pub fn observe(
    mut latencies: Vec<Duration>,
    budget: Option<Duration>,
    percentile: Percentile,
) -> Observed {
    latencies.sort_unstable();
    let count = latencies.len();
    let over = budget.map_or(0, |budget| count - latencies.partition_point(|l| *l <= budget));
    let rank = (percentile.quantile() * count as f64).ceil() as usize;
    // Where the tail holds fewer requests than break a budget, they do not make a slowdown either.
    let rank = rank.min((count + 1).saturating_sub(BROKEN_REQUESTS)).max(1);
    Observed {
        count,
        over,
        breaking: breaking(count, 1.0 - percentile.quantile()),
        latency: latencies.get(rank - 1).copied(),
    }
}

/// How many of `count` requests must lie above a budget for it to be broken, where a `share` may: the
/// least number that chance reaches in fewer than [`BROKEN_CHANCE`] of all windows.
fn breaking(count: usize, share: f64) -> usize {
    if share <= 0.0 {
        return BROKEN_REQUESTS;
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
        let observed = observe(latencies, Some(Duration::from_millis(20)), Percentile::P99);
        assert_eq!((observed.count, observed.over), (60, 2));
        assert_eq!(observed.latency, Some(Duration::from_millis(10)));
        let half = observe(ms(1..=100), None, Percentile::P50);
        assert_eq!(half.latency, Some(Duration::from_millis(50)));
        assert_eq!(observe(Vec::new(), None, Percentile::P99).latency, None);
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
