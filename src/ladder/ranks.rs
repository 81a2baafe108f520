//! Low rank as a cut: which operators may be put in two, at which ranks, at what loss, and the factors that a
//! plan asks for.

use std::collections::{BTreeMap, BTreeSet};

use faer::Mat;

use super::allocate::Choice;
use super::plan::{Known, Plan, PlanError, stepped};
use crate::coupling::{Coupling, GroupId};
use crate::limits;
use crate::onnx::{Graph, Model, NodeId, Operator, Patch, operators};
use crate::spectra::moments::Moments;
use crate::spectra::rows::RowSource;
use crate::surgery::low_rank::{Factors, can_split, output_axis, split, writer};
use crate::surgery::repair::is_held_out;
use crate::surgery::whitened::Whitened;
use crate::surgery::{self, Gone};

/// An operator that may be put in two, as the calibration rows see it.
#[derive(Debug, Clone)]
pub struct Ranked {
    /// The output of the operator's node.
    pub output: String,
    pub inputs: usize,
    pub outputs: usize,
    directions: Whitened,
    /// What an error of each output counts.
    weights: Vec<f64>,
    /// By rank: the error of the best operator of that rank on the rows that it is made from, relative to the
    /// variance of the value that the operator adds to. Known before anything is cut.
    pub tail: Vec<f64>,
    /// The same on rows that are held out: what the allocation goes by, for few rows flatter.
    pub loss: Vec<f64>,
}

/// Operators that may be put in two, with the ranks that are offered.
pub fn candidates(graph: &Graph, align: Option<usize>) -> BTreeMap<NodeId, Vec<usize>> {
    let mut bytes = 0;
    let mut found = BTreeMap::new();
    for operator in operators(graph) {
        let side = operator.inputs.min(operator.outputs);
        let fits = (limits::LOW_RANK_NARROWEST..=limits::LOW_RANK_SIDE).contains(&side);
        if !(fits && operator.exact && can_split(graph, &operator)) {
            continue;
        }
        let ranks: Vec<usize> = stepped(side, align, 1)
            .into_iter()
            .filter(|rank| is_worth_it(*rank, operator.inputs, operator.outputs))
            .collect();
        let Some(most) = ranks.last() else { continue };
        let needed = 4 * most * operator.outputs;
        if bytes + needed <= limits::LOW_RANK_BYTES {
            bytes += needed;
            found.insert(operator.node, ranks);
        }
    }
    found
}

/// Whether two factors multiply clearly less than the operator itself.
fn is_worth_it(rank: usize, inputs: usize, outputs: usize) -> bool {
    let share = (rank * (inputs + outputs)) as f64 / (inputs * outputs).max(1) as f64;
    rank > 0 && share <= limits::LOW_RANK_SHARE
}

impl Ranked {
    /// `weight` (outputs × inputs) has its rows multiplied by `weights` already; `scale` is what errors are
    /// divided by. `about_zero` where the operator has no bias that could make up for a mean.
    pub fn of(
        (graph, operator): (&Graph, &Operator),
        weight: &Mat<f64>,
        weights: &[f64],
        rows: &dyn RowSource,
        scale: f64,
        most: usize,
    ) -> Option<Self> {
        let can_shift = can_shift(operator);
        let moments =
            |take: fn(u32) -> bool| Some(Moments::of(rows, take)?.for_operator(can_shift));
        let (fit, check) = (moments(|sample| !is_held_out(sample))?, moments(is_held_out)?);
        // An output that nobody hears would have to be divided by nothing.
        let loudest = weights.iter().fold(0.0f64, |most, weight| most.max(weight.abs()));
        let weights: Vec<f64> =
            weights.iter().map(|weight| weight.abs().max(SILENT * loudest)).collect();
        if !(scale > 0.0 && loudest > 0.0 && loudest.is_finite()) {
            return None;
        }
        let directions = Whitened::of(weight, &fit.xx, most)?;
        let relative = |moments: &Moments| -> Vec<f64> {
            directions.tails(weight, &moments.xx).iter().map(|tail| tail / scale).collect()
        };
        let (tail, loss) = (relative(&fit), relative(&check));
        Some(Self {
            output: graph.node(operator.node).output.first()?.clone(),
            inputs: operator.inputs,
            outputs: operator.outputs,
            directions,
            weights,
            tail,
            loss,
        })
    }

    /// The choices that the measured savings (rank, microseconds) make.
    pub fn choices(&self, node: NodeId, savings: &[(usize, f64)]) -> Vec<Choice> {
        let one = |(rank, saving): &(usize, f64)| {
            let loss = *self.loss.get(*rank)?;
            let choice =
                Choice { saving: *saving, loss, ranks: vec![(node, *rank)], ..Choice::keep() };
            (*saving > 0.0).then_some(choice)
        };
        std::iter::once(Choice::keep()).chain(savings.iter().filter_map(one)).collect()
    }

    /// Factors of what is left of the operator behind a cut.
    fn factors(
        &self,
        weight: &crate::onnx::Matrix,
        rank: usize,
        gone: &BTreeSet<usize>,
    ) -> Option<Factors> {
        let kept = |output: usize| !gone.contains(&output);
        let weights: Vec<f64> =
            (0..self.outputs).filter(|output| kept(*output)).map(|i| self.weights[i]).collect();
        Factors::onto(&self.directions.first(rank, kept), &weights, weight)
    }
}

/// Least weight of an output, as a share of the largest.
const SILENT: f64 = 1e-4;

/// Whether an operator has, or can be given, a bias.
fn can_shift(operator: &Operator) -> bool {
    operator.bias.is_some() || operator.kind != crate::onnx::OperatorKind::MatMul
}

/// The ranks of one operator as choices, with the groups that it writes or reads.
#[derive(Debug, Clone)]
pub struct RankChoices {
    pub node: NodeId,
    pub groups: BTreeSet<GroupId>,
    pub choices: Vec<Choice>,
}

impl RankChoices {
    pub fn new(coupling: &Coupling, node: NodeId, choices: Vec<Choice>) -> Self {
        let touched = coupling.groups.iter().filter(|group| {
            group.producers.iter().any(|producer| producer.node == node)
                || group.consumers.iter().any(|consumer| consumer.node == node)
        });
        Self { node, groups: touched.map(|group| group.id).collect(), choices }
    }

    /// Whether these channels are cut already where the operator would be put in two. Each is timed for itself:
    /// of an operator that is narrower, two factors save far less than the table says.
    pub fn clash(&self, cut: &Choice) -> bool {
        cut.widths.iter().any(|(id, _)| self.groups.contains(&GroupId(*id)))
    }
}

/// What an operator is put into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Into2 {
    /// The best factors of its weight as it is then.
    Factors,
    /// Any factors: the network is only timed.
    Sketch,
}

/// An operator that a plan puts in two: at what rank, and which of its outputs are cut away besides.
pub struct Split<'k> {
    pub node: NodeId,
    pub rank: usize,
    pub ranked: &'k Ranked,
    gone: BTreeSet<usize>,
}

impl Known<'_> {
    /// The operators that a plan puts in two. What it removes, or makes so narrow that two factors are no
    /// cheaper, stays in one.
    pub fn splits(&self, plan: &Plan, gone: &Gone) -> Vec<Split<'_>> {
        let linear = operators(self.graph);
        let removed: BTreeSet<NodeId> =
            plan.bypass.iter().flat_map(|index| &self.blocks[*index].branch).copied().collect();
        let one = |(node, rank): (&NodeId, &usize)| {
            let ranked = self.ranked.get(node).filter(|_| !removed.contains(node))?;
            let operator = linear.iter().find(|operator| operator.node == *node)?;
            let axis = output_axis(operator);
            let on = |axis: usize| gone.get(&(operator.weight.clone(), axis));
            let gone = on(axis).cloned().unwrap_or_default();
            let inputs = ranked.inputs - on(1 - axis).map_or(0, BTreeSet::len);
            let worth = is_worth_it(*rank, inputs, ranked.outputs - gone.len());
            worth.then_some(Split { node: *node, rank: *rank, ranked, gone })
        };
        plan.ranks.iter().filter_map(one).collect()
    }

    /// `model`, the dense one cut as planned (and perhaps repaired), with the operators in two that the plan
    /// names.
    ///
    /// # Errors
    /// Where the cut is refused, or a factor cannot be stored.
    pub fn put_in_two(&self, plan: &Plan, model: Model, into: Into2) -> Result<Model, PlanError> {
        if plan.ranks.is_empty() {
            return Ok(model);
        }
        let gone = surgery::gone(self.coupling, &self.cut(plan))?;
        let graph = Graph::new(&model);
        let linear = operators(&graph);
        let mut patch = Patch::default();
        for Split { rank, ranked, gone, .. } in self.splits(plan, &gone) {
            let Some(operator) = writer(&graph, &linear, &ranked.output) else { continue };
            let weight = operator.matrix(&graph)?;
            let factors = match into {
                Into2::Sketch => Some(Factors::sketch(&weight, rank)),
                Into2::Factors => ranked.factors(&weight, rank, &gone),
            };
            let factors = factors.ok_or_else(|| {
                let what = format!("operator {:?} has no factors of rank {rank}", operator.name);
                crate::onnx::OnnxError::Edit(what)
            })?;
            split(&graph, operator, &factors, &mut patch)?;
        }
        Ok(patch.apply(&model)?)
    }
}

#[cfg(test)]
mod tests {
    use super::super::plan::{items, plan};
    use super::*;
    use crate::coupling::Block;

    fn width(saving: f64, loss: f64, kept: usize) -> Choice {
        Choice { saving, loss, widths: vec![(0, kept)], ..Choice::keep() }
    }

    /// A group of which 8 or 4 channels stay, and an operator at two ranks.
    fn offered(groups: &[GroupId], loss: f64) -> (BTreeMap<GroupId, Vec<Choice>>, RankChoices) {
        let widths = vec![Choice::keep(), width(10.0, 1.0, 8), width(20.0, 3.0, 4)];
        let rank =
            |saving, loss, rank| Choice { saving, loss, ranks: vec![(7, rank)], ..Choice::keep() };
        let choices = vec![Choice::keep(), rank(12.0, loss, 16), rank(15.0, 4.0 * loss, 8)];
        let groups = groups.iter().copied().collect();
        ([(GroupId(0), widths)].into(), RankChoices { node: 7, groups, choices })
    }

    fn cut(items: &[Vec<Choice>], needed: f64) -> (Vec<usize>, Vec<usize>, usize) {
        let plan = plan(items, needed).unwrap();
        let (widths, ranks) = (plan.widths.into_values(), plan.ranks.into_values());
        (widths.collect(), ranks.collect(), plan.bypass.len())
    }

    #[test]
    fn low_rank_is_taken_where_it_costs_least_and_not_otherwise() {
        let made = |loss, touched: &[GroupId]| {
            let (groups, ranks) = offered(touched, loss);
            items(groups, vec![ranks], &[], &[])
        };
        let own = [GroupId(0)];
        assert_eq!(cut(&made(0.1, &own), 10.0), (vec![], vec![16], 0));
        assert_eq!(cut(&made(0.1, &own), 14.0), (vec![], vec![8], 0));
        assert_eq!(cut(&made(2.0, &own), 10.0), (vec![8], vec![], 0));
        // Together they would save 22 by the table, and do not: the operator is cut already.
        assert_eq!(cut(&made(0.1, &own), 20.0), (vec![4], vec![], 0));
        assert_eq!(cut(&made(0.1, &[]), 20.0), (vec![8], vec![16], 0));
    }

    #[test]
    fn of_a_block_that_is_removed_nothing_is_put_in_two() {
        let (groups, ranks) = offered(&[], 0.1);
        let block = Block {
            add: 9,
            shortcut: "s".to_owned(),
            end: "e".to_owned(),
            norm: false,
            branch: vec![7],
            last: 7,
            groups: vec![GroupId(0)],
        };
        let items = items(groups, vec![ranks], &[block], &[Some((40.0, 0.4))]);
        assert_eq!(items.len(), 1);
        assert_eq!(cut(&items, 30.0), (vec![], vec![], 1));
        assert_eq!(cut(&items, 12.0), (vec![], vec![16], 0));
        assert_eq!(cut(&items, 21.0), (vec![], vec![], 1));
    }

    #[test]
    fn only_the_best_of_very_many_choices_are_kept() {
        let many = |first: usize| {
            let one = |i: usize| width(i as f64, (i * i) as f64, first + i);
            std::iter::once(Choice::keep()).chain((1..60).map(one)).collect::<Vec<_>>()
        };
        let mut all = super::super::allocate::combine(&many(0), &many(100), |_, _| true);
        assert!(all.len() < 130, "{}", all.len());
        for times in 0..3 {
            let other: Vec<Choice> = many(200)
                .into_iter()
                .map(|choice| Choice {
                    saving: choice.saving * 1.0137,
                    loss: choice.loss * (1.3 + f64::from(times)),
                    ..choice
                })
                .collect();
            all = super::super::allocate::combine(&all, &other, |_, _| true);
        }
        assert!(all.len() <= limits::ITEM_CHOICES + 2, "{}", all.len());
        assert_eq!(all[0], Choice::keep());
        let least = all[1..].iter().map(|choice| choice.loss).fold(f64::INFINITY, f64::min);
        assert!(least < 10.0, "{least}");
    }
}
