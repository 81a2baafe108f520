//! When a build makes place for serving.

use std::time::Duration;

use crate::limits;

/// How near the models are to their budgets, taken together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pressure {
    /// All of them are well within.
    Low,
    /// Between the two marks: what is going on goes on.
    Some,
    /// At least one is near its budget or above it.
    High,
}

/// The pressure that the worst of the models is under: of each that has a budget and requests, the
/// latency that is observed and the budget.
pub fn pressure(models: impl IntoIterator<Item = (Duration, Duration)>) -> Pressure {
    let share =
        |(latency, budget): (Duration, Duration)| latency.as_secs_f64() / budget.as_secs_f64();
    let worst = models.into_iter().map(share).fold(0.0, f64::max);
    if worst > limits::NEAR_BUDGET {
        Pressure::High
    } else if worst > limits::FAR_FROM_BUDGET {
        Pressure::Some
    } else {
        Pressure::Low
    }
}

/// Whether the build shall stand still. `since` is how long it has run or stood still; `None` where it
/// was never paused. On a box that is always near its budgets it is the ladder that helps: a pause has an
/// end, and is followed by a stretch of work.
pub fn pauses(paused: bool, pressure: Pressure, since: Option<Duration>) -> bool {
    if paused {
        pressure != Pressure::Low && since.is_none_or(|since| since < limits::BUILD_PAUSE)
    } else {
        pressure == Pressure::High && since.is_none_or(|since| since >= limits::BUILD_RUN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    fn ms(latency: u64, budget: u64) -> (Duration, Duration) {
        (Duration::from_millis(latency), Duration::from_millis(budget))
    }

    #[test]
    fn the_model_that_is_nearest_to_its_budget_decides() {
        assert_eq!(pressure([]), Pressure::Low);
        assert_eq!(pressure([ms(10, 100), ms(59, 100)]), Pressure::Low);
        assert_eq!(pressure([ms(10, 100), ms(70, 100)]), Pressure::Some);
        assert_eq!(pressure([ms(81, 100), ms(10, 100)]), Pressure::High);
    }

    #[test]
    fn a_build_pauses_near_a_budget_and_goes_on_only_well_within_it() {
        let secs = |secs| Some(Duration::from_secs(secs));
        // Never paused before: at once.
        assert!(pauses(false, Pressure::High, None));
        assert!(!pauses(false, Pressure::Some, None));
        // Between the marks nothing changes.
        assert!(pauses(true, Pressure::Some, secs(1)));
        assert!(!pauses(false, Pressure::Some, secs(100)));
        assert!(!pauses(true, Pressure::Low, secs(1)));
    }

    #[test]
    fn a_box_that_is_always_near_its_budgets_still_gets_its_ladder() {
        let (mut paused, mut since, mut worked) = (false, None, Duration::ZERO);
        for _ in 0..10_000 {
            let now = pauses(paused, Pressure::High, since);
            since =
                if now == paused { since.map(|s| s + limits::TICK) } else { Some(limits::TICK) };
            paused = now;
            worked += if paused { Duration::ZERO } else { limits::TICK };
        }
        let share = worked.as_secs_f64() / (10_000.0 * limits::TICK.as_secs_f64());
        assert!((0.6..0.9).contains(&share), "{share}");
    }
}
