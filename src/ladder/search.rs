//! Looks for the best variant of about one ratio among those that plans at several prices lead to.

use std::collections::BTreeSet;

use super::allocate::Choice;
use super::bench::{Built, Workbench};
use super::manifest::Figures;
use super::nest::{inside, nests};
use super::plan::{Plan, plan};
use super::prices::Prices;
use super::task::{LadderError, Step};
use crate::limits;

/// A plan, what it was asked to save (microseconds), and the ratio that its cut was measured at.
pub(super) struct Found {
    pub plan: Plan,
    pub needed: f64,
    pub ratio: f64,
}

/// A variant, and how it was come by.
#[derive(Clone)]
pub(super) struct Variant {
    pub built: Built,
    pub prices: Prices,
    /// What its plan was asked to save, microseconds.
    pub needed: f64,
}

impl Variant {
    pub fn figures(&self) -> &Figures {
        &self.built.rung.figures
    }
}

/// The search for the best variant of about one ratio.
pub(super) struct Search<'i> {
    asked: f64,
    items: &'i [Vec<Choice>],
    /// The rung before, and the choices that remove all that it removed.
    slower: Option<(&'i Step, Vec<Vec<Choice>>)>,
    seen: BTreeSet<Plan>,
    /// The best variant so far.
    pub best: Option<Variant>,
    /// The best one that nests in the rung before.
    nested: Option<Variant>,
    /// The plan that came nearest to what is asked for, and its ratio.
    pub nearest: Option<(Plan, f64)>,
    /// What the last plan was asked to save, microseconds: the next one begins there.
    needed: Option<f64>,
    /// Variants that may still be built.
    builds: usize,
}

impl<'i> Search<'i> {
    /// `slower` is where the search for the rung before ended; once `builds` variants are built, the best of
    /// them has to do.
    pub fn new(
        asked: f64,
        items: &'i [Vec<Choice>],
        slower: Option<&'i Step>,
        builds: usize,
    ) -> Self {
        // What the table says is off by about the same factor for the next rung.
        let share = |step: &Step| (1.0 - asked) / (1.0 - step.ratio);
        let needed = slower.map(|step| step.needed * share(step)).filter(|n| n.is_finite());
        Self {
            asked,
            items,
            slower: slower.map(|step| (step, inside(items, &step.plan))),
            seen: BTreeSet::new(),
            best: None,
            nested: None,
            nearest: None,
            needed: needed.filter(|needed| *needed > 0.0),
            builds,
        }
    }

    /// Whether no other variant is worth the time: the best one is so near to dense, or the time is over.
    pub fn is_over(&self) -> bool {
        self.best.as_ref().is_some_and(|best| self.builds == 0 || is_enough(best))
    }

    /// Plans at other prices and builds the plan, if it is a new one.
    pub fn price(
        &mut self,
        bench: &dyn Workbench,
        prices: Prices,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<(), LadderError> {
        let items = prices.of(self.items);
        self.try_among(bench, &items, prices, progress)
    }

    /// Looks for a variant inside the rung before that is about as good as the best one, and gives the one
    /// to be taken. `seed` decides the prices that are tried.
    pub fn choose(
        &mut self,
        bench: &dyn Workbench,
        seed: u64,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Option<Variant>, LadderError> {
        let Some(best) = self.best.clone() else { return Ok(None) };
        let Some(narrowed) = self.slower.as_ref().map(|(_, choices)| choices.clone()) else {
            return Ok(Some(best));
        };
        for trial in 0..limits::NESTED_TRIALS as u64 {
            if self.builds == 0 || self.is_nested_enough() {
                break;
            }
            let prices =
                if trial == 0 { best.prices.clone() } else { best.prices.near(seed ^ trial) };
            self.try_among(bench, &prices.of(&narrowed), prices, progress)?;
        }
        let nested = if self.is_nested_enough() { self.nested.clone() } else { None };
        Ok(nested.or_else(|| self.best.clone()))
    }

    /// Whether the best variant inside the rung before is as good as the best one, within noise.
    fn is_nested_enough(&self) -> bool {
        let (Some(nested), Some(best)) = (&self.nested, &self.best) else { return false };
        let (asked, most) = (self.asked, limits::NESTED_ERROR * error(self.asked, best));
        fits(asked, best) <= fits(asked, nested)
            && (is_enough(nested) || error(asked, nested) <= most)
    }

    /// Whether a plan removes all that the rung before removes; nothing where there is none.
    pub fn nests(&self, plan: &Plan) -> Option<bool> {
        self.slower.as_ref().map(|(step, _)| nests(self.items, &step.plan, plan))
    }

    fn try_among(
        &mut self,
        bench: &dyn Workbench,
        items: &[Vec<Choice>],
        prices: Prices,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<(), LadderError> {
        let Some(found) = find_plan(bench, self.asked, items, self.needed)? else { return Ok(()) };
        let off = |ratio: f64| (ratio / self.asked - 1.0).abs();
        if self.nearest.as_ref().is_none_or(|nearest| off(found.ratio) < off(nearest.1)) {
            self.nearest = Some((found.plan.clone(), found.ratio));
        }
        if off(found.ratio) > limits::RATIO_TOLERANCE || !self.seen.insert(found.plan.clone()) {
            return Ok(());
        }
        self.needed = Some(found.needed);
        let (built, needed, builds) = on_target(bench, self.asked, found, items, progress)?;
        self.builds = self.builds.saturating_sub(builds);
        let variant = Variant { built, prices, needed };
        let better = |than: &Option<Variant>| {
            than.as_ref().is_none_or(|other| is_better(self.asked, &variant, other))
        };
        if self.nests(&variant.built.plan) == Some(true) && better(&self.nested) {
            self.nested = Some(variant.clone());
        }
        if better(&self.best) {
            self.best = Some(variant);
        }
        Ok(())
    }
}

fn is_enough(variant: &Variant) -> bool {
    variant.figures().explained >= limits::EXPLAINED_ENOUGH
}

/// Whether a variant is as fast as asked.
fn fits(asked: f64, variant: &Variant) -> bool {
    (variant.figures().ratio / asked - 1.0).abs() <= limits::RATIO_TOLERANCE
}

/// What a variant errs by. A slower variant's error counts for more, as it would grow on the way to the
/// ratio that is asked for (about with its inverse cube on the networks that were measured).
fn error(asked: f64, variant: &Variant) -> f64 {
    (1.0 - variant.figures().explained) * (variant.figures().ratio / asked).powi(3)
}

/// Whether one of two variants for the same ratio is to be preferred: the one that is as fast as asked, and
/// of those the one that errs less.
fn is_better(asked: f64, variant: &Variant, other: &Variant) -> bool {
    match (fits(asked, variant), fits(asked, other)) {
        (true, false) => true,
        (false, true) => false,
        _ => error(asked, variant) < error(asked, other),
    }
}

/// Builds a plan; where the repair moves the ratio, aims as far beside the mark and builds again. Gives what
/// the plan that was built was asked to save and how many were built, too.
fn on_target(
    bench: &dyn Workbench,
    asked: f64,
    found: Found,
    items: &[Vec<Choice>],
    progress: &mut dyn FnMut(usize, usize),
) -> Result<(Built, f64, usize), LadderError> {
    let built = bench.build(asked, &found.plan, progress)?;
    let off = |built: &Built| (built.rung.figures.ratio / asked - 1.0).abs();
    if off(&built) <= limits::RATIO_TOLERANCE {
        return Ok((built, found.needed, 1));
    }
    let aim = beside(asked, built.rung.figures.ratio, asked);
    if let Some(other) = find_plan(bench, aim, items, None)? {
        let again = bench.build(asked, &other.plan, progress)?;
        let better = off(&again) < off(&built);
        let (built, needed) = if better { (again, other.needed) } else { (built, found.needed) };
        return Ok((built, needed, 2));
    }
    Ok((built, found.needed, 1))
}

/// Where to aim next when `ratio` came out of aiming at `aim`.
fn beside(asked: f64, ratio: f64, aim: f64) -> f64 {
    (aim * asked / ratio).clamp(0.05, 0.99)
}

/// Measures the chosen variant once more, in rounds on which nothing has depended yet, and lets it promise what
/// comes out. Where that is not what was asked for, a plan as far beside the mark takes its place.
pub(super) fn promised(
    bench: &dyn Workbench,
    asked: f64,
    mut variant: Variant,
    items: &[Vec<Choice>],
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Variant, LadderError> {
    bench.promise(&mut variant.built)?;
    let off = |variant: &Variant| (variant.figures().ratio / asked - 1.0).abs();
    let items = variant.prices.of(items);
    let mut tried: BTreeSet<Plan> = [variant.built.plan.clone()].into();
    let (mut aim, mut last) = (asked, variant.figures().ratio);
    for _ in 0..limits::PROMISE_CORRECTIONS {
        if off(&variant) <= limits::RATIO_TOLERANCE {
            break;
        }
        aim = beside(asked, last, aim);
        let Some(found) = find_plan(bench, aim, &items, Some(variant.needed))? else { break };
        if !tried.insert(found.plan.clone()) {
            break;
        }
        let built = bench.build(asked, &found.plan, progress)?;
        let mut other = Variant { built, needed: found.needed, prices: variant.prices.clone() };
        bench.promise(&mut other.built)?;
        last = other.figures().ratio;
        if off(&other) < off(&variant) {
            variant = other;
        }
    }
    Ok(variant)
}

/// The plan whose cut, measured on the whole model, comes nearest to a ratio. `start` is what a plan
/// should save at first, microseconds, where something is known about that.
pub(super) fn find_plan(
    bench: &dyn Workbench,
    asked: f64,
    items: &[Vec<Choice>],
    start: Option<f64>,
) -> Result<Option<Found>, LadderError> {
    // The table was measured on the parts, each at another moment: it may think less possible than is.
    let most = most(items);
    let mut needed = start.unwrap_or(bench.dense().p50_us * (1.0 - asked)).min(most);
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
