//! When a server is asked for bundles again: at the interval, a little more or less, so that boxes that were
//! started together drift apart; and later and later where it does not answer.

use std::time::Duration;

use crate::limits;

use super::backoff::Backoff;

/// How a question ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// With an answer, be it that there is nothing.
    Answered,
    /// With none, or with one that asks to come back later, perhaps after so long.
    Unanswered { retry_after: Option<Duration> },
}

/// The questions so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Polling {
    backoff: Backoff,
}

impl Polling {
    /// Time until the first question; `chance` is uniform in 0 to 1.
    pub fn first(interval: Duration, chance: f64) -> Duration {
        interval.min(limits::LINK_POLL_FIRST).mul_f64(share(chance))
    }

    /// Time until the next.
    pub fn next(&mut self, ended: Ended, interval: Duration, chance: f64) -> Duration {
        match ended {
            Ended::Answered => {
                self.backoff = Backoff::default();
                let shift = limits::LINK_POLL_JITTER * (2.0 * share(chance) - 1.0);
                interval.mul_f64(1.0 + shift)
            }
            Ended::Unanswered { retry_after } => {
                let asked = retry_after.unwrap_or_default().min(limits::LINK_POLL_AWAY);
                self.backoff.after_failure(chance).max(asked)
            }
        }
    }
}

fn share(chance: f64) -> f64 {
    if (0.0..=1.0).contains(&chance) { chance } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn answers_keep_the_interval_and_their_lack_draws_it_out_to_a_bound() {
        let mut polling = Polling::default();
        let next =
            |polling: &mut Polling, ended, chance| polling.next(ended, HOUR, chance).as_secs();
        assert_eq!(next(&mut polling, Ended::Answered, 0.5), 3600);
        assert_eq!(next(&mut polling, Ended::Answered, 0.0), 3240);
        assert_eq!(next(&mut polling, Ended::Answered, 1.0), 3960);
        let none = Ended::Unanswered { retry_after: None };
        let waits: Vec<u64> = (0..11).map(|_| next(&mut polling, none, 1.0)).collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]);
        next(&mut polling, Ended::Answered, 0.5);
        assert_eq!(next(&mut polling, none, 1.0), 1);
        assert_eq!(next(&mut polling, none, f64::NAN), 0);
    }

    #[test]
    fn a_server_may_ask_to_be_left_alone_for_a_while_but_not_for_good() {
        let mut polling = Polling::default();
        for (asked, wait) in [(60, 60), (1_000_000, 3600)] {
            let ended = Ended::Unanswered { retry_after: Some(Duration::from_secs(asked)) };
            assert_eq!(polling.next(ended, HOUR, 0.0).as_secs(), wait);
        }
    }

    #[test]
    fn the_first_question_comes_at_once_or_soon() {
        assert_eq!(Polling::first(HOUR, 0.0), Duration::ZERO);
        assert_eq!(Polling::first(HOUR, 1.0), limits::LINK_POLL_FIRST);
        assert_eq!(Polling::first(Duration::from_secs(1), 1.0), Duration::from_secs(1));
    }
}
