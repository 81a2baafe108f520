//! Looks for the best variant of about one ratio among those that plans at several prices lead to.

use std::collections::BTreeSet;

use super::allocate::Choice;
use super::bench::{Bench, Built};
use super::plan::{Plan, plan};
use super::prices::Prices;
use super::task::LadderError;
use crate::limits;

/// A plan, what it was asked to save (microseconds), and the ratio that its cut was measured at.
pub(super) struct Found {
    pub plan: Plan,
    pub needed: f64,
    pub ratio: f64,
}

/// The search for the best variant of about one ratio.
pub(super) struct Search<'i> {
    asked: f64,
    items: &'i [Vec<Choice>],
    seen: BTreeSet<Plan>,
    /// The best variant so far, and the prices that led to it.
    pub best: Option<(Built, Prices)>,
    /// The plan that came nearest to what is asked for, and its ratio.
    pub nearest: Option<(Plan, f64)>,
    /// What the last plan was asked to save, microseconds: the next one begins there.
    needed: Option<f64>,
}

impl<'i> Search<'i> {
    pub fn new(asked: f64, items: &'i [Vec<Choice>]) -> Self {
        let (seen, best) = (BTreeSet::new(), None);
        Self { asked, items, seen, best, nearest: None, needed: None }
    }

    /// Whether the best variant is so near to dense that no other is worth the time.
    pub fn is_over(&self) -> bool {
        let explained = self.best.as_ref().map(|(best, _)| best.rung.figures.explained);
        explained.is_some_and(|explained| explained >= limits::EXPLAINED_ENOUGH)
    }

    /// Plans at other prices and builds the plan, if it is a new one.
    pub fn price(
        &mut self,
        bench: &Bench,
        prices: Prices,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<(), LadderError> {
        let items = prices.of(self.items);
        let Some(found) = find_plan(bench, self.asked, &items, self.needed)? else { return Ok(()) };
        let off = |ratio: f64| (ratio / self.asked - 1.0).abs();
        if self.nearest.as_ref().is_none_or(|nearest| off(found.ratio) < off(nearest.1)) {
            self.nearest = Some((found.plan.clone(), found.ratio));
        }
        if off(found.ratio) > limits::RATIO_TOLERANCE || !self.seen.insert(found.plan.clone()) {
            return Ok(());
        }
        self.needed = Some(found.needed);
        let built = on_target(bench, self.asked, &found.plan, &items, progress)?;
        let best = self.best.as_ref().map(|(best, _)| best);
        if best.is_none_or(|best| is_better(self.asked, &built, best)) {
            self.best = Some((built, prices));
        }
        Ok(())
    }
}

/// Whether one of two variants for the same ratio is to be preferred: the one that is as fast as asked, and
/// of those the one that errs less. A slower variant's error counts for more, as it would grow on the
/// way to the ratio that is asked for (about with its inverse cube on the networks that were measured).
fn is_better(asked: f64, built: &Built, other: &Built) -> bool {
    let relative = |built: &Built| built.rung.figures.ratio / asked;
    let fits = |built: &Built| (relative(built) - 1.0).abs() <= limits::RATIO_TOLERANCE;
    let error = |built: &Built| (1.0 - built.rung.figures.explained) * relative(built).powi(3);
    match (fits(built), fits(other)) {
        (true, false) => true,
        (false, true) => false,
        _ => error(built) < error(other),
    }
}

/// Builds a plan; where the repair moves the ratio, aims as far beside the mark and builds again.
fn on_target(
    bench: &Bench,
    asked: f64,
    plan: &Plan,
    items: &[Vec<Choice>],
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Built, LadderError> {
    let built = bench.build(asked, plan, progress)?;
    let off = |built: &Built| (built.rung.figures.ratio / asked - 1.0).abs();
    if off(&built) <= limits::RATIO_TOLERANCE {
        return Ok(built);
    }
    let aim = (asked * asked / built.rung.figures.ratio).clamp(0.05, 0.99);
    if let Some(found) = find_plan(bench, aim, items, None)? {
        let again = bench.build(asked, &found.plan, progress)?;
        if off(&again) < off(&built) {
            return Ok(again);
        }
    }
    Ok(built)
}

/// The plan whose cut, measured on the whole model, comes nearest to a ratio. `start` is what a plan
/// should save at first, microseconds, where something is known about that.
pub(super) fn find_plan(
    bench: &Bench,
    asked: f64,
    items: &[Vec<Choice>],
    start: Option<f64>,
) -> Result<Option<Found>, LadderError> {
    // The table was measured on the parts, each at another moment: it may think less possible than is.
    let most = most(items);
    let mut needed = start.unwrap_or(bench.dense.p50_us * (1.0 - asked)).min(most);
    // The nearest plans on either side: what they were asked to save, and their measured ratio.
    let mut too_slow: Option<(f64, f64)> = None;
    let mut too_fast: Option<(f64, f64)> = None;
    let mut best: Option<Found> = None;
    let mut seen: BTreeSet<Plan> = BTreeSet::new();
    for _ in 0..limits::PLAN_CORRECTIONS {
        let Some(candidate) = plan(items, needed) else { break };
        let new = seen.insert(candidate.clone());
        let ratio = if new {
            bench.ratio_of(&candidate)?
        } else {
            match (too_slow, too_fast) {
                // Nothing lies between the two plans.
                (Some(_), Some(_)) => break,
                _ => best.as_ref().map_or(1.0, |best| best.ratio),
            }
        };
        let off = |ratio: f64| (ratio / asked - 1.0).abs();
        if new && best.as_ref().is_none_or(|best| off(best.ratio) > off(ratio)) {
            best = Some(Found { plan: candidate, needed, ratio });
        }
        if off(ratio) <= limits::RATIO_GOOD_ENOUGH {
            break;
        }
        match ratio > asked {
            true => too_slow = Some((needed, ratio)),
            false => too_fast = Some((needed, ratio)),
        }
        needed = match (too_slow, too_fast) {
            (Some((n0, r0)), Some((n1, r1))) if (r0 - r1).abs() > 1e-6 => {
                let share = ((r0 - asked) / (r0 - r1)).clamp(0.1, 0.9);
                n0 + share * (n1 - n0)
            }
            _ => needed * ((1.0 - asked) / (1.0 - ratio).max(1e-3)).clamp(0.5, 1.7),
        };
        if needed > most && too_fast.is_none() {
            if too_slow.is_some_and(|(tried, _)| tried >= most) {
                break;
            }
            needed = most;
        }
    }
    Ok(best)
}

/// What all items together save by the table, short of the last steps in which savings are counted.
pub(super) fn most(items: &[Vec<Choice>]) -> f64 {
    let of = |item: &Vec<Choice>| {
        item.iter().map(|choice| choice.saving).filter(|s| s.is_finite()).fold(0.0, f64::max)
    };
    0.98 * items.iter().map(of).sum::<f64>()
}
