//! When a broker that was lost is tried again: a random time below a bound that doubles, so that a fleet that
//! lost its broker in one moment does not come back in one.

use std::time::Duration;

use crate::limits;

/// Attempts that failed in a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Backoff {
    failed: u32,
}

impl Backoff {
    /// Time until the next attempt; `chance` is uniform in 0 to 1.
    pub fn after_failure(&mut self, chance: f64) -> Duration {
        let doubled = limits::LINK_BACKOFF.saturating_mul(1 << self.failed.min(30));
        self.failed = self.failed.saturating_add(1);
        let share = if (0.0..=1.0).contains(&chance) { chance } else { 0.0 };
        doubled.min(limits::LINK_BACKOFF_MOST).mul_f64(share)
    }

    /// A connection ended that had held for `held`.
    pub fn held(&mut self, held: Duration) {
        if held >= limits::LINK_STEADY {
            self.failed = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bound_doubles_up_to_its_cap_and_a_steady_connection_begins_anew() {
        let mut backoff = Backoff::default();
        let seconds: Vec<u64> = (0..12).map(|_| backoff.after_failure(1.0).as_secs()).collect();
        assert_eq!(seconds, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]);
        assert_eq!(backoff.after_failure(0.0), Duration::ZERO);
        assert_eq!(backoff.after_failure(0.5), Duration::from_secs(150));
        // A broker that takes a connection and drops it at once is no good one.
        backoff.held(Duration::from_secs(1));
        assert_eq!(backoff.after_failure(1.0), limits::LINK_BACKOFF_MOST);
        backoff.held(limits::LINK_STEADY);
        assert_eq!(backoff.after_failure(1.0), limits::LINK_BACKOFF);
    }

    #[test]
    fn weeks_of_attempts_do_not_overflow() {
        let mut backoff = Backoff { failed: u32::MAX - 1 };
        assert_eq!(backoff.after_failure(1.0), limits::LINK_BACKOFF_MOST);
        assert_eq!(backoff.after_failure(f64::NAN), Duration::ZERO);
    }
}
