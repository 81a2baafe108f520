//! The pure choice.

use std::time::Duration;

use super::promise::Promises;
use super::types::{Action, Because, Memory, ModelView, Outcome, State, Verdict};
use crate::limits;

/// Looks at all models and says at most one switch, that of the highest priority first.
///
/// The same state, views and time give the same answer. The caller performs the action before the next
/// step, or shows in the next views that it did not.
pub fn step(state: &mut State, models: &[ModelView], now: Duration) -> Outcome {
    state.models.retain(|name, _| models.iter().any(|model| model.name == *name));
    let mut outcome = Outcome::default();
    let mut order: Vec<&ModelView> = models.iter().collect();
    order.sort_by(|a, b| b.priority.cmp(&a.priority).then_with(|| a.name.cmp(&b.name)));
    for model in order {
        let memory = state.models.entry(model.name.clone()).or_insert_with(|| Memory::new(now));
        memory.observe(model, now);
        let budget = model.budget.filter(|_| model.observed.count() > 0);
        let met = budget.map(|budget| !model.observed.breaks_budget(budget));
        let verdict = Verdict { slowdown: memory.slowdown, met };
        outcome.verdicts.insert(model.name.clone(), verdict);
        outcome.convicted.extend(memory.promises.convicts(model, now));
        if outcome.action.is_none()
            && let Some((to, because)) = memory.choose(model, now)
        {
            memory.switched(model, to, because, now);
            outcome.action = Some(Action { model: model.name.clone(), to, because });
        }
    }
    outcome
}

/// How much of a thing is forgotten in `elapsed`.
fn forgotten(elapsed: Duration, half_life: Duration) -> f64 {
    1.0 - 0.5f64.powf(elapsed.as_secs_f64() / half_life.as_secs_f64())
}

impl Memory {
    fn new(now: Duration) -> Self {
        Self {
            slowdown: 1.0,
            seen: now,
            switched: None,
            stalled: 0.0,
            forgiven: 0.0,
            went_up: false,
            fits_since: None,
            failures: 0,
            promises: Promises::default(),
        }
    }

    /// Takes the latencies in: a rise at once, a fall smoothed. Without traffic the slowdown fades to 1:
    /// nobody knows, and the next requests will tell.
    fn observe(&mut self, model: &ModelView, now: Duration) {
        let elapsed = now.saturating_sub(self.seen);
        self.seen = now;
        let over = model.budget.map_or(0.0, |budget| model.observed.share_over(budget));
        self.stalled += (over - self.stalled) * forgotten(elapsed, limits::STALLED_HALF_LIFE);
        self.forgiven -= self.forgiven * forgotten(elapsed, limits::FORGIVEN_HALF_LIFE);
        let target = match model.observed.typical() {
            Some(typical) => match self.slowdown_at(model, typical) {
                Some(slowdown) => slowdown,
                None => return,
            },
            None if model.observed.count() > 0 => return,
            None => 1.0,
        };
        if target > self.slowdown {
            self.slowdown = target;
        } else {
            let share = forgotten(elapsed, limits::SLOWDOWN_HALF_LIFE);
            self.slowdown += (target - self.slowdown) * share;
        }
    }

    fn choose(&mut self, model: &ModelView, now: Duration) -> Option<(usize, Because)> {
        let current = model.variants.get(model.current)?;
        let missed = self.promises.missed(model, now);
        let allowed = |index: usize| {
            let variant = &model.variants[index];
            let held = self.promises.holds(&variant.name, now);
            variant.ready && !held && (index == 0 || variant.quality >= model.floor)
        };
        let usable: Vec<usize> =
            (0..model.variants.len()).filter(|index| allowed(*index)).collect();
        let best = |fits: &dyn Fn(usize) -> bool| {
            let fitting = usable.iter().copied().filter(|i| *i != model.current && fits(*i));
            fitting.max_by(|a, b| {
                let (a, b) = (&model.variants[*a], &model.variants[*b]);
                a.quality.total_cmp(&b.quality).then(a.promised.cmp(&b.promised))
            })
        };
        if model.fault {
            return best(&|_| true).map(|to| (to, Because::Fault));
        }
        if let Some(to) = missed.filter(|to| allowed(*to)) {
            return Some((to, Because::MissedPromise));
        }
        if self.switched.is_some_and(|at| now.saturating_sub(at) < model.policy.dwell) {
            return None;
        }
        let Some(budget) = model.budget else {
            let dense = (model.current != 0 && allowed(0)).then_some((0, Because::Policy));
            self.fits_since = None;
            return dense;
        };
        if !allowed(model.current) && current.ready {
            return best(&|_| true).map(|to| (to, Because::Policy));
        }
        if model.observed.breaks_throughout(|latency| latency > budget, self.forgiven) {
            let fits = |index: usize| self.would_cost(model, index) <= budget;
            let faster = |index: usize| model.variants[index].promised < current.promised;
            let fitting = best(&|index| faster(index) && fits(index));
            let fastest = || {
                let faster = usable.iter().copied().filter(|index| faster(*index));
                faster.min_by_key(|index| model.variants[*index].promised)
            };
            if let Some(to) = fitting.or_else(fastest) {
                self.fits_since = None;
                return Some((to, Because::Budget));
            }
        }
        let better = best(&|index| {
            model.variants[index].promised > current.promised
                && self.would_hold(model, index, budget)
        });
        let Some(to) = better.filter(|to| {
            let variant = &model.variants[*to];
            *to == 0 || variant.quality >= current.quality
        }) else {
            self.fits_since = None;
            return None;
        };
        let since = *self.fits_since.get_or_insert(now);
        let wait = model.policy.sustain * (1 << self.failures.min(limits::UPWARD_DOUBLINGS));
        (now.saturating_sub(since) >= wait).then_some((to, Because::Headroom))
    }

    /// `latency` of the variant in service over what it promised. Below 1 where the box was not undisturbed
    /// when the promise was measured.
    fn slowdown_at(&self, model: &ModelView, latency: Duration) -> Option<f64> {
        let promised = model.variants.get(model.current)?.promised.as_secs_f64();
        (promised > 0.0).then(|| latency.as_secs_f64() / promised)
    }

    /// What a faster variant would take, with its margin. A budget that is broken wants to be held at
    /// once, so the whole tail counts.
    fn would_cost(&self, model: &ModelView, index: usize) -> Duration {
        let tail = model.observed.tail().and_then(|tail| self.slowdown_at(model, tail));
        let slowdown = tail.map_or(self.slowdown, |tail| tail.max(self.slowdown));
        scaled(model.variants[index].promised, slowdown * model.policy.margin)
    }

    /// Whether a better variant, with its headroom, would hold the budget: at the pace of the typical
    /// stretch, and without breaking it by the requests that are in time now and would then be late.
    fn would_hold(&self, model: &ModelView, index: usize, budget: Duration) -> bool {
        let headroom = model.policy.headroom;
        let (now, then) = (model.variants[model.current].promised, model.variants[index].promised);
        if scaled(then, self.slowdown * headroom) > budget {
            return false;
        }
        let factor = then.as_secs_f64() / now.as_secs_f64().max(1e-9) * headroom;
        let late = |latency: Duration| latency <= budget && scaled(latency, factor) > budget;
        !model.observed.breaks(late, 0.0)
    }

    fn switched(&mut self, model: &ModelView, to: usize, because: Because, now: Duration) {
        let soon = |at: Duration| now.saturating_sub(at) < model.policy.probation;
        if because == Because::Budget && self.went_up && self.switched.is_some_and(soon) {
            self.failures += 1;
        } else if because == Because::Headroom && self.switched.is_some_and(|at| !soon(at)) {
            self.failures = self.failures.saturating_sub(1);
        }
        // What a variant that missed its promise made late, the one before it need not.
        self.went_up = because != Because::MissedPromise
            && model.variants[to].promised > model.variants[model.current].promised;
        if let Some(slowdown) = self.promises.switched(model, to, because, now) {
            self.slowdown = slowdown;
        }
        self.forgiven = if self.went_up { self.stalled } else { 0.0 };
        self.stalled = 0.0;
        self.switched = Some(now);
        self.fits_since = None;
    }
}

/// `duration` times a factor that may be anything.
fn scaled(duration: Duration, factor: f64) -> Duration {
    Duration::try_from_secs_f64(duration.as_secs_f64() * factor).unwrap_or(Duration::MAX)
}

#[cfg(test)]
mod tests {
    use super::super::types::{Policy, VariantView};
    use super::*;
    use crate::governor::Observed;
    use crate::units::Percentile;

    #[test]
    fn a_promise_that_is_not_known_moves_nothing_and_tells_no_slowdown() {
        let ms = Duration::from_millis;
        let variant = |name: &str, quality| VariantView {
            name: name.to_owned(),
            promised: Duration::ZERO,
            quality,
            ready: true,
        };
        let policy = Policy {
            window: ms(2000),
            dwell: ms(0),
            margin: 1.1,
            headroom: 1.25,
            sustain: ms(0),
            probation: ms(0),
        };
        for took in [1, 50] {
            let view = ModelView {
                name: "m".to_owned(),
                variants: vec![variant("dense", 1.0), variant("r0.5", 0.9)],
                current: 0,
                budget: Some(ms(10)),
                floor: 0.5,
                priority: 0,
                policy,
                observed: Observed::new(vec![ms(took); 100], Percentile::P99),
                fault: false,
            };
            let mut state = State::default();
            for second in 0..20 {
                let outcome = step(&mut state, std::slice::from_ref(&view), ms(1000 * second));
                assert_eq!(outcome.action, None);
                let verdict = outcome.verdicts["m"];
                assert_eq!((verdict.slowdown, verdict.met), (1.0, Some(took == 1)));
            }
        }
    }
}
