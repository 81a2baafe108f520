//! Looks for the best variant of about one ratio among those that plans at several prices lead to.

use std::collections::BTreeSet;

use super::allocate::Choice;
use super::plan::Plan;
use super::prices::Prices;
use super::rungs::{Bench, Built};
use super::task::LadderError;
use crate::limits;

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
        let Some(found) = bench.find_plan(self.asked, &items, self.needed)? else { return Ok(()) };
        let off = |ratio: f64| (ratio / self.asked - 1.0).abs();
        if self.nearest.as_ref().is_none_or(|nearest| off(found.ratio) < off(nearest.1)) {
            self.nearest = Some((found.plan.clone(), found.ratio));
        }
        if off(found.ratio) > limits::RATIO_TOLERANCE || !self.seen.insert(found.plan.clone()) {
            return Ok(());
        }
        self.needed = Some(found.needed);
        let built = bench.on_target(self.asked, &found.plan, &items, progress)?;
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
