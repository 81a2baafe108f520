//! The pure choice.

use std::time::Duration;

use super::types::{Action, Because, Memory, ModelView, Observed, Outcome, State, Verdict};
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
        let met = model.budget.filter(|_| model.observed.count > 0);
        let met = met.map(|_| !is_broken(&model.observed));
        let verdict = Verdict { slowdown: memory.slowdown, met };
        outcome.verdicts.insert(model.name.clone(), verdict);
        if outcome.action.is_none()
            && let Some((to, because)) = memory.choose(model, now)
        {
            memory.switched(model, to, because, now);
            outcome.action = Some(Action { model: model.name.clone(), to, because });
        }
    }
    outcome
}

/// Whether more requests lie above the budget than chance explains.
fn is_broken(observed: &Observed) -> bool {
    observed.over >= observed.breaking.max(limits::BROKEN_REQUESTS)
}

impl Memory {
    fn new(now: Duration) -> Self {
        Self {
            slowdown: 1.0,
            seen: now,
            switched: None,
            over: 0,
            rises: [None; 2],
            broken_since: None,
            went_up: false,
            fits_since: None,
            failures: 0,
        }
    }

    /// Takes the latencies in: a rise at once, a fall smoothed. Without traffic the slowdown fades to 1:
    /// nobody knows, and the next requests will tell.
    fn observe(&mut self, model: &ModelView, now: Duration) {
        let elapsed = now.saturating_sub(self.seen).as_secs_f64();
        self.seen = now;
        if model.observed.over > self.over {
            self.rises = [self.rises[1], Some(now)];
        }
        self.over = model.observed.over;
        self.broken_since = is_broken(&model.observed).then(|| self.broken_since.unwrap_or(now));
        let share = 1.0 - 0.5f64.powf(elapsed / limits::SLOWDOWN_HALF_LIFE.as_secs_f64());
        let promised = model.variants.get(model.current).map_or(0.0, |v| v.promised.as_secs_f64());
        let target = match model.observed.latency {
            Some(latency) if model.observed.count >= limits::OBSERVED_MIN && promised > 0.0 => {
                (latency.as_secs_f64() / promised).max(1.0)
            }
            Some(_) => return,
            None => 1.0,
        };
        if target > self.slowdown {
            self.slowdown = target;
        } else {
            self.slowdown += (target - self.slowdown) * share;
        }
    }

    fn choose(&mut self, model: &ModelView, now: Duration) -> Option<(usize, Because)> {
        let current = model.variants.get(model.current)?;
        let allowed = |index: usize| {
            let variant = &model.variants[index];
            variant.ready && (index == 0 || variant.quality >= model.floor)
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
        let limit = budget.as_secs_f64();
        let cost = |index: usize, factor: f64| {
            model.variants[index].promised.as_secs_f64() * self.slowdown * factor
        };
        if self.is_broken_for_long(model, now) {
            self.fits_since = None;
            let faster = |index: usize| model.variants[index].promised < current.promised;
            let fitting = best(&|i| faster(i) && cost(i, model.policy.margin) <= limit);
            let fastest = || {
                let faster = usable.iter().copied().filter(|index| faster(*index));
                faster.min_by_key(|index| model.variants[*index].promised)
            };
            return fitting.or_else(fastest).map(|to| (to, Because::Budget));
        }
        let better = best(&|i| {
            let variant = &model.variants[i];
            variant.promised > current.promised && cost(i, model.policy.headroom) <= limit
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

    /// One stall makes all requests of that moment slow, however many they are. So those above the budget
    /// must have come at two looks, or have been there for longer than a stall stays in the window.
    fn is_broken_for_long(&self, model: &ModelView, now: Duration) -> bool {
        let age = |at: Duration| now.saturating_sub(at);
        let twice = self.rises[0].is_some_and(|at| age(at) <= model.policy.window);
        let lasting = self.broken_since.is_some_and(|at| age(at) > model.policy.window);
        is_broken(&model.observed) && (twice || lasting)
    }

    fn switched(&mut self, model: &ModelView, to: usize, because: Because, now: Duration) {
        let soon = |at: Duration| now.saturating_sub(at) < model.policy.probation;
        if because == Because::Budget && self.went_up && self.switched.is_some_and(soon) {
            self.failures += 1;
        } else if because == Because::Headroom && self.switched.is_some_and(|at| !soon(at)) {
            self.failures = self.failures.saturating_sub(1);
        }
        self.went_up = model.variants[to].promised > model.variants[model.current].promised;
        self.switched = Some(now);
        self.over = 0;
        self.rises = [None; 2];
        self.broken_since = None;
        self.fits_since = None;
    }
}
