//! The pure choice.

use std::time::Duration;

use super::promise::Promises;
use super::relief;
use super::trend::Trend;
use super::types::{Action, Because, Memory, ModelView, Outcome, State, Verdict};
use crate::limits;

/// Looks at all models and says at most one switch, that of the highest priority first. Where none has one of
/// its own, one may be moved for the sake of another.
///
/// The same state, views and time give the same answer. The caller performs the action before the next
/// step, or shows in the next views that it did not.
pub fn step(state: &mut State, models: &[ModelView], now: Duration) -> Outcome {
    state.models.retain(|name, _| models.iter().any(|model| model.name == *name));
    let mut outcome = Outcome::default();
    let mut order: Vec<&ModelView> = models.iter().collect();
    order.sort_by(|a, b| b.priority.cmp(&a.priority).then_with(|| a.name.cmp(&b.name)));
    for model in &order {
        let stays = relief::is_needed(state, &order, model);
        let memory = state.models.entry(model.name.clone()).or_insert_with(|| Memory::new(now));
        memory.observe(model, now);
        let budget = model.budget.filter(|_| model.observed.count() > 0);
        let met = budget.map(|budget| !model.observed.breaks_budget(budget));
        let verdict = Verdict { slowdown: memory.slowdown, met };
        outcome.verdicts.insert(model.name.clone(), verdict);
        outcome.convicted.extend(memory.promises.convicts(model, now));
        if outcome.action.is_none()
            && let Some((to, because)) = memory.choose(model, stays, now)
        {
            memory.switched(model, to, because, now);
            outcome.action = Some(Action { model: model.name.clone(), to, because });
        }
    }
    if outcome.action.is_none() {
        outcome.action = relief::relieve(state, &order, now);
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
            failed: None,
            dared: false,
            overrun: None,
            promises: Promises::default(),
            trend: Trend::default(),
            relieves: None,
            relieved: None,
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
        let newest = model.observed.newest_run().and_then(|run| self.slowdown_at(model, run));
        if let Some(newest) = newest {
            self.trend.add(now, newest);
        }
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

    /// Variants that may serve: ready, not held back, and not below the floor.
    fn usable(&self, model: &ModelView, now: Duration) -> Vec<usize> {
        let allowed = |index: &usize| {
            let variant = &model.variants[*index];
            let held = self.promises.holds(&variant.name, now);
            variant.ready && !held && (*index == 0 || variant.quality >= model.floor)
        };
        (0..model.variants.len()).filter(allowed).collect()
    }

    /// Whether the last switch was too short ago for another one.
    fn dwells(&self, model: &ModelView, now: Duration) -> bool {
        self.switched.is_some_and(|at| now.saturating_sub(at) < model.policy.dwell)
    }

    /// `stays`: another model needs it to go no higher.
    fn choose(
        &mut self,
        model: &ModelView,
        stays: bool,
        now: Duration,
    ) -> Option<(usize, Because)> {
        let current = model.variants.get(model.current)?;
        let missed = self.promises.missed(model, now);
        let usable = self.usable(model, now);
        let allowed = |index: usize| usable.contains(&index);
        if model.fault {
            return best(model, &usable, |_| true).map(|to| (to, Because::Fault));
        }
        if model.disproved {
            return self.instead(model, &usable).map(|to| (to, Because::Quality));
        }
        if let Some(to) = missed.filter(|to| allowed(*to)) {
            return Some((to, Because::MissedPromise));
        }
        if self.dwells(model, now) {
            return None;
        }
        let Some(budget) = model.budget else {
            let dense = (model.current != 0 && allowed(0)).then_some((0, Because::Policy));
            self.fits_since = None;
            return dense;
        };
        if !allowed(model.current) && current.ready {
            return best(model, &usable, |_| true).map(|to| (to, Because::Policy));
        }
        let down = self.down(model, &usable, budget);
        if down.is_some() {
            self.fits_since = None;
            return down;
        }
        let better = if stays { None } else { self.better(model, &usable, budget) };
        let Some(to) = better else {
            self.fits_since = None;
            return None;
        };
        let since = *self.fits_since.get_or_insert(now);
        let crowds = would_crowd(model, to);
        let proven = self.overrun.is_some_and(|failed| model.variants[to].promised >= failed);
        if proven && !crowds {
            self.overrun = None;
        }
        let doublings = match (crowds, proven) {
            (false, _) => self.failures,
            (true, false) => self.failures.saturating_add(limits::CROWDED_DOUBLINGS),
            (true, true) => limits::UPWARD_DOUBLINGS,
        };
        let wait = model.policy.sustain * (1 << doublings.min(limits::UPWARD_DOUBLINGS));
        if now.saturating_sub(since) < wait {
            return None;
        }
        self.dared = crowds;
        Some((to, Because::Headroom))
    }

    /// Whether the attempts that failed were at a variant that is no slower than this.
    fn failed_at(&self, model: &ModelView, index: usize) -> bool {
        self.failed.is_some_and(|failed| model.variants[index].promised >= failed)
    }

    /// What serves in the place of a variant whose quality does not hold: the best of the better ones that
    /// holds the budget, else the fastest of these; where none of them is ready, whatever else may serve.
    fn instead(&self, model: &ModelView, usable: &[usize]) -> Option<usize> {
        let current = model.variants.get(model.current)?;
        let is_better = |index: &usize| {
            let variant = &model.variants[*index];
            *index != model.current
                && variant.promised >= current.promised
                && (*index == 0 || variant.quality >= current.quality)
        };
        let better: Vec<usize> = usable.iter().copied().filter(is_better).collect();
        let holds =
            |index| model.budget.is_none_or(|budget| self.would_cost(model, index) <= budget);
        let fastest = || better.iter().copied().min_by_key(|i| model.variants[*i].promised);
        best(model, &better, holds).or_else(fastest).or_else(|| best(model, usable, |_| true))
    }

    /// The faster variant to be taken where the budget is in danger: the best that holds it, else the fastest.
    fn down(
        &self,
        model: &ModelView,
        usable: &[usize],
        budget: Duration,
    ) -> Option<(usize, Because)> {
        let because = self.endangered(model, budget)?;
        let current = model.variants.get(model.current)?.promised;
        let faster = |index: usize| model.variants[index].promised < current;
        let fitting = best(model, usable, |index| {
            let crowded = busy(model, index).is_some_and(|busy| busy > limits::UTILISATION);
            faster(index) && !crowded && self.would_cost(model, index) <= budget
        });
        let fastest = || {
            let faster = usable.iter().copied().filter(|index| faster(*index));
            faster.min_by_key(|index| model.variants[*index].promised)
        };
        fitting.or_else(fastest).map(|to| (to, because))
    }

    /// The best slower variant that is no worse and would hold the budget; one that would be busy all the time
    /// only where there is no other. Who made room for another goes back one rung at a time: what that costs
    /// the other shows.
    fn better(&self, model: &ModelView, usable: &[usize], budget: Duration) -> Option<usize> {
        let current = model.variants.get(model.current)?;
        let slower = usable.iter().map(|index| model.variants[*index].promised);
        let next = slower.filter(|promised| *promised > current.promised).min();
        let most = next.filter(|_| self.relieves.is_some()).unwrap_or(Duration::MAX);
        let holds = |index: usize| {
            let variant = &model.variants[index];
            (index == 0 || variant.quality >= current.quality)
                && variant.promised > current.promised
                && variant.promised <= most
                && self.would_hold(model, index, budget)
        };
        let calm = best(model, usable, |index| holds(index) && !would_crowd(model, index));
        calm.or_else(|| best(model, usable, holds))
    }

    /// Whether the budget is broken, or surely will be soon. What is to move a variant shows all over the
    /// window, or in all of the newest requests.
    fn endangered(&self, model: &ModelView, budget: Duration) -> Option<Because> {
        let observed = &model.observed;
        if observed.breaks_throughout(|latency| latency > budget, self.forgiven)
            || observed.newest_break(budget)
        {
            return Some(Because::Budget);
        }
        let growth = self.trend.growth(limits::TREND_AHEAD);
        let foreseen = observed.tail().is_some_and(|tail| scaled(tail, growth) > budget);
        (growth > 1.0 && foreseen).then_some(Because::Foreseen)
    }

    /// Whether its budget is broken on the fastest variant that may serve, and nobody made room just now.
    pub(super) fn needs_relief(&self, model: &ModelView, now: Duration) -> bool {
        let (Some(budget), Some(current)) = (model.budget, model.variants.get(model.current))
        else {
            return false;
        };
        let waits = self.relieved.is_some_and(|at| now.saturating_sub(at) < model.policy.window);
        let slowest = |index: &usize| model.variants[*index].promised >= current.promised;
        !waits
            && self.usable(model, now).iter().all(slowest)
            && self.endangered(model, budget) == Some(Because::Budget)
    }

    /// Whether its budget would be held, though the box were slower by the headroom.
    pub(super) fn is_well_within(&self, model: &ModelView) -> bool {
        let (Some(budget), Some(current)) = (model.budget, model.variants.get(model.current))
        else {
            return true;
        };
        let near = scaled(current.promised, self.slowdown * model.policy.headroom) > budget;
        !near && !model.observed.breaks_budget(budget)
    }

    /// Whether its budget is broken by more than the headroom.
    pub(super) fn is_far_above(&self, model: &ModelView) -> bool {
        let typical = model.observed.typical().zip(model.budget);
        typical.is_some_and(|(took, budget)| took > scaled(budget, model.policy.headroom))
    }

    /// A faster variant of one that has a budget and is asked for, the fastest or the next; `None` where there
    /// is none, or where it was switched just now.
    pub(super) fn lower(&self, model: &ModelView, fastest: bool, now: Duration) -> Option<usize> {
        let current = model.variants.get(model.current)?.promised;
        let moves = model.budget.is_some() && model.observed.count() > 0;
        if !moves || model.fault || self.dwells(model, now) {
            return None;
        }
        let usable = self.usable(model, now);
        let faster = |index: usize| {
            let promised = model.variants[index].promised;
            promised > Duration::ZERO && promised < current
        };
        if fastest {
            let faster = usable.into_iter().filter(|index| faster(*index));
            return faster.min_by_key(|index| model.variants[*index].promised);
        }
        best(model, &usable, faster)
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
        let growth = self.trend.growth(limits::TREND_AHEAD);
        scaled(model.variants[index].promised, slowdown * growth * model.policy.margin)
    }

    /// Whether a better variant, with its headroom, would hold the budget: at the pace of the typical
    /// stretch, and without breaking it by the requests that are in time now and would then be late.
    fn would_hold(&self, model: &ModelView, index: usize, budget: Duration) -> bool {
        let headroom = model.policy.headroom * self.trend.growth(model.policy.sustain);
        let (now, then) = (model.variants[model.current].promised, model.variants[index].promised);
        if scaled(then, self.slowdown * headroom) > budget {
            return false;
        }
        let factor = then.as_secs_f64() / now.as_secs_f64().max(1e-9) * headroom;
        let late = |latency: Duration| latency <= budget && scaled(latency, factor) > budget;
        !model.observed.breaks(late, 0.0)
    }

    pub(super) fn switched(
        &mut self,
        model: &ModelView,
        to: usize,
        because: Because,
        now: Duration,
    ) {
        let elapsed = self.switched.map_or(Duration::ZERO, |at| now.saturating_sub(at));
        let driven = matches!(because, Because::Budget | Because::Foreseen | Because::Relief);
        if self.went_up && elapsed < model.policy.probation {
            self.failures += u32::from(driven);
            if driven {
                self.failed = model.variants.get(model.current).map(|variant| variant.promised);
            }
            if driven && self.dared {
                self.overrun = model.variants.get(model.current).map(|variant| variant.promised);
            }
        } else {
            // An attempt of the kind that failed, and lasted, makes up for one that failed, and so does time.
            let long = (model.policy.probation * limits::FAILURE_FORGOTTEN).as_secs_f64();
            let quiet = if long > 0.0 { (elapsed.as_secs_f64() / long) as u32 } else { 0 };
            let lasted = self.went_up && self.failed_at(model, model.current);
            let made_up_for = quiet.saturating_add(u32::from(lasted));
            self.failures = self.failures.saturating_sub(made_up_for);
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
        self.trend.clear();
        if to == 0 {
            self.relieves = None;
        }
    }
}

/// The variant of best quality that fits, the slower of equals; not the one in service.
fn best(model: &ModelView, usable: &[usize], fits: impl Fn(usize) -> bool) -> Option<usize> {
    let fitting = usable.iter().copied().filter(|i| *i != model.current && fits(*i));
    fitting.max_by(|a, b| {
        let (a, b) = (&model.variants[*a], &model.variants[*b]);
        a.quality.total_cmp(&b.quality).then(a.promised.cmp(&b.promised))
    })
}

/// Share of its time that the sessions would be busy if a variant served what is asked for now; more than 1
/// where it cannot. `None` where that is not known.
pub(super) fn busy(model: &ModelView, index: usize) -> Option<f64> {
    let load = model.load?;
    let run = model.observed.mean_run()?.as_secs_f64();
    let promised = |index: usize| model.variants[index].promised.as_secs_f64();
    let now = Some(promised(model.current)).filter(|now| *now > 0.0)?;
    Some(load.rate * run * promised(index) / now / load.instances.max(1) as f64)
}

/// Whether a better variant would be busy all the time, while the one in service is not. A client that sends
/// when it was answered keeps any variant busy, and none too much: that it is one shows where the variant in
/// service holds the budget without a pause, and else only in the attempt.
fn would_crowd(model: &ModelView, index: usize) -> bool {
    let crowded = |index: usize| busy(model, index).is_some_and(|busy| busy > limits::UTILISATION);
    crowded(index) && !crowded(model.current)
}

/// `duration` times a factor that may be anything.
fn scaled(duration: Duration, factor: f64) -> Duration {
    Duration::try_from_secs_f64(duration.as_secs_f64() * factor).unwrap_or(Duration::MAX)
}

#[cfg(test)]
mod tests {
    use super::super::types::{Load, Policy, VariantView};
    use super::*;
    use crate::governor::Observed;
    use crate::units::Percentile;

    /// Seconds until dense is taken again, where a rung of half its time serves so many requests a second.
    fn back_after(rate: f64) -> Option<u64> {
        let ms = Duration::from_millis;
        let variant = |name: &str, promised, quality| VariantView {
            name: name.to_owned(),
            promised: ms(promised),
            quality,
            ready: true,
        };
        let policy = Policy {
            window: ms(2000),
            dwell: ms(5000),
            margin: 1.1,
            headroom: 1.25,
            sustain: ms(5000),
            probation: ms(30_000),
        };
        let view = ModelView {
            name: "m".to_owned(),
            variants: vec![variant("dense", 10, 1.0), variant("r0.5", 5, 0.9)],
            current: 1,
            budget: Some(ms(20)),
            floor: 0.5,
            priority: 0,
            policy,
            observed: Observed::new(vec![ms(5); 100], Percentile::P99).with_runs(vec![ms(5); 100]),
            load: Some(Load { rate, instances: 1 }),
            fault: false,
            disproved: false,
        };
        let mut state = State::default();
        (0..600).find(|second| {
            let view = std::slice::from_ref(&view);
            step(&mut state, view, ms(1000 * second)).action.is_some()
        })
    }

    #[test]
    fn a_load_that_would_crowd_a_better_variant_makes_it_wait_but_not_for_ever() {
        assert_eq!(back_after(80.0), Some(5));
        assert_eq!(back_after(150.0), Some(20));
        // One client that sends without a pause: it would wait for dense as well.
        assert_eq!(back_after(195.0), Some(5));
    }

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
                load: None,
                fault: false,
                disproved: false,
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
