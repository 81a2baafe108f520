//! Whether a faster variant keeps its promise once it serves.
//!
//! What its promise is worth was measured before; what the box does now is known from the variant that it
//! relieves. So its fastest run, right after the swap, is held against what it promised times the slowdown
//! that the variant before it showed last, taken high: a stall or a squeeze that comes while it serves has
//! spared some of its runs, and a variant that is slow has spared none. Only runs count, not how long
//! requests waited: the queue that the variant before left behind is not its fault.
//!
//! A squeeze that rises in the very moment of the swap cannot be told from a slow variant while that serves. So
//! the variant before it comes back at once, and is looked at again: where it is as fast as it was, the box
//! has not changed, and the suspect is convicted. Where not, the suspect is held back for a while.
//!
//! Loading a variant is work beside: as long as the one that left service, or the suspect, is being loaded
//! again, nothing is judged.

use std::collections::BTreeMap;
use std::time::Duration;

use super::types::{Because, Conviction, ModelView};
use crate::limits::{PROMISE_HELD, PROMISE_MARGIN, PROMISE_RUNS};

/// A faster variant that has just come into service.
#[derive(Debug, Clone, PartialEq)]
struct Trial {
    variant: String,
    /// Whom it relieved.
    relieved: String,
    /// The slowdown that one showed last.
    slowdown: f64,
    since: Duration,
    /// Since when nothing is loaded beside.
    undisturbed: Option<Duration>,
    /// The least slowdown that the variant on trial was seen at.
    shown: f64,
}

/// A variant that missed its promise, after the one before it has come back.
#[derive(Debug, Clone, PartialEq)]
struct Suspect {
    variant: String,
    /// Who serves instead.
    instead: String,
    /// The least slowdown that the suspect was seen at.
    shown: f64,
    since: Duration,
    undisturbed: Option<Duration>,
}

/// What is remembered of one model's promises.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Promises {
    trial: Option<Trial>,
    suspect: Option<Suspect>,
    /// Variants that are not to be taken until then.
    held: BTreeMap<String, Duration>,
}

impl Promises {
    /// Whether a variant is held back.
    pub fn holds(&self, variant: &str, now: Duration) -> bool {
        self.held.get(variant).is_some_and(|until| now < *until)
    }

    /// The variant that has to come back, where the one in service misses its promise.
    pub fn missed(&mut self, model: &ModelView, now: Duration) -> Option<usize> {
        let trial = self.trial.as_mut()?;
        let back = model.variants.iter().position(|variant| variant.name == trial.relieved);
        let elapsed = now.saturating_sub(trial.since);
        let serves = model.variants.get(model.current)?.name == trial.variant;
        let same = serves && elapsed <= model.policy.probation;
        let Some(back) = back.filter(|_| same) else {
            self.trial = None;
            return None;
        };
        match judged(&mut trial.undisturbed, model, back, now) {
            Judged::NotYet => return None,
            // What shows only now may be the box's doing.
            Judged::Over => {
                self.trial = None;
                return None;
            }
            Judged::Now => {}
        }
        trial.shown = slowdown(model, model.observed.fastest_run()?)?;
        (trial.shown > trial.slowdown * PROMISE_MARGIN).then_some(back)
    }

    /// The suspect, where the variant that serves instead shows that the box is as it was.
    pub fn convicts(&mut self, model: &ModelView, now: Duration) -> Option<Conviction> {
        let suspect = self.suspect.as_mut()?;
        let index = model.variants.iter().position(|variant| variant.name == suspect.variant);
        let current = model.variants.get(model.current)?;
        let elapsed = now.saturating_sub(suspect.since);
        let same = current.name == suspect.instead && elapsed <= model.policy.probation;
        let judged = index
            .filter(|_| same)
            .map(|index| (index, judged(&mut suspect.undisturbed, model, index, now)));
        let index = match judged {
            Some((_, Judged::NotYet)) => return None,
            Some((index, Judged::Now)) => index,
            None | Some((_, Judged::Over)) => {
                self.suspect = None;
                return None;
            }
        };
        let box_now = slowdown(model, model.observed.slow_run()?)?;
        if suspect.shown <= box_now * PROMISE_MARGIN {
            return None;
        }
        let conviction = Conviction {
            model: model.name.clone(),
            variant: index,
            shown: suspect.shown,
            expected: box_now,
        };
        self.suspect = None;
        Some(conviction)
    }

    /// A switch is made; gives the slowdown that holds from now on where that of the variant in service
    /// was not the box's.
    pub fn switched(
        &mut self,
        model: &ModelView,
        to: usize,
        because: Because,
        now: Duration,
    ) -> Option<f64> {
        let trial = self.trial.take();
        self.suspect = None;
        self.held.retain(|_, until| now < *until);
        let (from, to) = (&model.variants[model.current], &model.variants[to]);
        if because == Because::MissedPromise {
            let trial = trial?;
            self.held.insert(from.name.clone(), now.saturating_add(PROMISE_HELD));
            self.suspect = Some(Suspect {
                variant: from.name.clone(),
                instead: to.name.clone(),
                shown: trial.shown,
                since: now,
                undisturbed: None,
            });
            return Some(trial.slowdown);
        }
        let shown = model.observed.slow_run().and_then(|run| slowdown(model, run));
        let faster = to.promised < from.promised;
        self.trial = shown.filter(|_| faster).map(|slowdown| Trial {
            variant: to.name.clone(),
            relieved: from.name.clone(),
            slowdown,
            since: now,
            undisturbed: None,
            shown: 0.0,
        });
        None
    }
}

enum Judged {
    /// Something is loaded beside, or too few runs are known.
    NotYet,
    Now,
    /// The time for it has passed.
    Over,
}

/// Whether it is time to judge the variant in service: for one window from the moment on in which `other` is
/// loaded again.
fn judged(
    undisturbed: &mut Option<Duration>,
    model: &ModelView,
    other: usize,
    now: Duration,
) -> Judged {
    if !model.variants[other].ready {
        *undisturbed = None;
        return Judged::NotYet;
    }
    let since = *undisturbed.get_or_insert(now);
    if now.saturating_sub(since) > model.policy.window {
        return Judged::Over;
    }
    if model.observed.runs() < PROMISE_RUNS { Judged::NotYet } else { Judged::Now }
}

/// A run of the variant in service over what it promised.
fn slowdown(model: &ModelView, run: Duration) -> Option<f64> {
    let promised = model.variants.get(model.current)?.promised.as_secs_f64();
    (promised > 0.0).then(|| run.as_secs_f64() / promised)
}

#[cfg(test)]
mod tests {
    use super::super::{Observed, Policy, VariantView};
    use super::*;
    use crate::units::Percentile;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// Dense promises 10 ms, the rung 6; `current` serves, and `runs` runs took `took` each.
    fn view(current: usize, runs: usize, took: Duration) -> ModelView {
        let variant = |name: &str, promised| VariantView {
            name: name.to_owned(),
            promised: ms(promised),
            quality: 1.0,
            ready: true,
        };
        ModelView {
            name: "m".to_owned(),
            variants: vec![variant("dense", 10), variant("r0.6", 6)],
            current,
            budget: Some(ms(15)),
            floor: 0.9,
            priority: 0,
            policy: Policy {
                window: ms(2000),
                dwell: ms(5000),
                margin: 1.1,
                headroom: 1.25,
                sustain: ms(5000),
                probation: ms(30_000),
            },
            observed: Observed::new(vec![took; runs], Percentile::P99).with_runs(vec![took; runs]),
            load: None,
            fault: false,
            disproved: false,
        }
    }

    /// Dense took 18 ms when the rung relieved it at second 10.
    fn on_trial() -> Promises {
        let mut promises = Promises::default();
        let slowdown = promises.switched(&view(0, 40, ms(18)), 1, Because::Budget, ms(10_000));
        assert_eq!(slowdown, None);
        promises
    }

    #[test]
    fn a_rung_is_held_against_its_promise_times_the_slowdown_before_it() {
        // 6 ms × 1.8 × 1.5 = 16.2 ms.
        assert_eq!(on_trial().missed(&view(1, 40, ms(16)), ms(11_000)), None);
        assert_eq!(on_trial().missed(&view(1, 40, ms(17)), ms(11_000)), Some(0));
        // Too few runs, or one that was fast.
        assert_eq!(on_trial().missed(&view(1, PROMISE_RUNS - 1, ms(50)), ms(11_000)), None);
        let mut spared = view(1, 40, ms(50));
        let runs = (0..40).map(|n| if n == 7 { ms(11) } else { ms(50) });
        spared.observed =
            Observed::new(vec![ms(50); 40], Percentile::P99).with_runs(runs.collect());
        assert_eq!(on_trial().missed(&spared, ms(11_000)), None);
        // A better variant promises nothing, and where nobody was there before nothing is known.
        let mut up = Promises::default();
        up.switched(&view(1, 40, ms(6)), 0, Because::Headroom, ms(10_000));
        assert_eq!(up.missed(&view(0, 40, ms(90)), ms(11_000)), None);
        let mut idle = Promises::default();
        idle.switched(&view(0, 2, ms(18)), 1, Because::Budget, ms(10_000));
        assert_eq!(idle.missed(&view(1, 40, ms(90)), ms(11_000)), None);
    }

    #[test]
    fn it_is_judged_for_a_window_from_when_nothing_is_loaded_beside() {
        let mut promises = on_trial();
        let slow = view(1, 40, ms(40));
        let mut loading = slow.clone();
        loading.variants[0].ready = false;
        assert_eq!(promises.missed(&loading, ms(11_000)), None);
        assert_eq!(promises.missed(&loading, ms(14_000)), None);
        let fine = view(1, 40, ms(11));
        assert_eq!(promises.missed(&fine, ms(15_000)), None);
        assert_eq!(promises.clone().missed(&slow, ms(16_500)), Some(0));
        assert_eq!(promises.missed(&slow, ms(17_500)), None, "a squeeze that came later");
        assert_eq!(promises.missed(&slow, ms(17_600)), None);
    }

    #[test]
    fn a_suspect_is_convicted_where_the_box_is_as_it_was_and_else_held_back_for_a_while() {
        let suspect = || {
            let mut promises = on_trial();
            let slow = view(1, 40, ms(40));
            assert_eq!(promises.missed(&slow, ms(11_000)), Some(0));
            let slowdown = promises.switched(&slow, 0, Because::MissedPromise, ms(11_000));
            assert!((slowdown.unwrap() - 1.8).abs() < 1e-9);
            assert!(promises.holds("r0.6", ms(11_000)) && !promises.holds("dense", ms(11_000)));
            promises
        };
        let convicted = suspect().convicts(&view(0, 40, ms(19)), ms(12_000)).unwrap();
        assert_eq!((convicted.model.as_str(), convicted.variant), ("m", 1));
        assert!((convicted.expected - 1.9).abs() < 1e-9 && convicted.shown > 6.6);
        // The squeeze has risen: dense shows it as well.
        let mut promises = suspect();
        assert_eq!(promises.convicts(&view(0, 40, ms(60)), ms(12_000)), None);
        assert_eq!(promises.convicts(&view(0, 40, ms(60)), ms(14_500)), None);
        assert_eq!(promises.convicts(&view(0, 40, ms(19)), ms(14_600)), None, "too late to tell");
        let held_until = ms(11_000) + PROMISE_HELD;
        assert!(promises.holds("r0.6", held_until - ms(1)) && !promises.holds("r0.6", held_until));
        // Another variant serves: nothing can be compared.
        let mut promises = suspect();
        promises.switched(&view(0, 40, ms(60)), 1, Because::Budget, ms(16_000));
        assert_eq!(promises.convicts(&view(1, 40, ms(8)), ms(16_100)), None);
    }
}
