//! Makes a ladder: scores and times every group once, then for each ratio plans, measures the planned cut
//! on the whole model, corrects the plan, repairs the cut and judges the result.

use std::collections::BTreeMap;

use super::allocate::Choice;
use super::bench::{Bench, Built, Workbench};
use super::calibration::free_sizes;
use super::importance::check;
use super::manifest::{FrozenInfo, NotBuilt};
use super::opened;
use super::plan::{Known, group_choices, items, widths};
use super::quality::Judges;
use super::ranks::{RankChoices, candidates};
use super::rungs::attempt;
use super::score::Scorer;
use super::table::{LatencyTable, Stopwatch};
use super::task::{Event, Finished, Keeper, Ladder, LadderError, SoFar, Task};
use crate::coupling::{Group, Neutral, blocks, couple};
use crate::onnx::{ExecError, Graph, Shapes, operators};
use crate::surgery::attention::project_inside;
use crate::surgery::repair::{Mode, is_held_out};

impl Task<'_> {
    /// Makes the ladder. Finished rungs go to `keeper` one by one, slowest first, so that an interrupted
    /// build keeps what it has; with what it kept `before`, a build goes on where it stopped.
    ///
    /// # Errors
    /// Where the runtime fails on the dense model, importances are not of it, or `keeper` cannot keep
    /// something.
    pub fn make(
        &self,
        before: Option<SoFar>,
        table: &mut LatencyTable,
        keeper: &mut dyn Keeper,
    ) -> Result<Ladder, LadderError> {
        match opened(self.engine, self.model, &self.samples.first)? {
            Some(model) => Task { model: &model, ..*self }.make_of(before, table, keeper),
            None => self.make_of(before, table, keeper),
        }
    }

    fn make_of(
        &self,
        before: Option<SoFar>,
        table: &mut LatencyTable,
        keeper: &mut dyn Keeper,
    ) -> Result<Ladder, LadderError> {
        let graph = Graph::new(self.model);
        let shapes = self.shapes()?;
        let coupling = couple(&graph, &shapes);
        check(&self.options.importances, &coupling)?;
        let blocks = blocks(&graph, &coupling, &shapes);
        let mut known = Known {
            graph: &graph,
            shapes: &shapes,
            coupling: &coupling,
            blocks: &blocks,
            scored: BTreeMap::new(),
            ranked: BTreeMap::new(),
        };
        if let Some(before) = &before {
            before.finished.iter().for_each(|one| keeper.told(&Event::Rung(&one.rung)));
            before.not_built.iter().for_each(|missed| keeper.told(&Event::NotBuilt(missed)));
        }
        let mut declined = Vec::new();
        let losses = self.score(&mut known, &mut declined, keeper);
        let items = self.items(&known, &losses, table, &mut declined, keeper);
        let held_out = self.held_out();
        let dense = before.as_ref().map(|before| before.dense.clone());
        let bench = Bench::new(self, &known, &held_out, dense)?;
        let dense = bench.dense().clone();
        let (finished, not_built) = (Vec::new(), Vec::new());
        let mut so_far = before.unwrap_or(SoFar { dense, finished, not_built });
        self.rungs(&bench, &items, &mut so_far, keeper)?;
        Ok(Ladder {
            dense: so_far.dense,
            rungs: so_far.finished.into_iter().map(|one| one.rung).collect(),
            not_built: so_far.not_built,
            coupling: coupling.clone(),
            declined,
        })
    }

    /// Builds the rungs that are not there yet, slowest first.
    fn rungs(
        &self,
        bench: &dyn Workbench,
        items: &[Vec<Choice>],
        so_far: &mut SoFar,
        keeper: &mut dyn Keeper,
    ) -> Result<(), LadderError> {
        let mut ratios = self.options.ratios.clone();
        ratios.sort_by(|a, b| b.total_cmp(a));
        for asked in ratios {
            if so_far.settled(asked) {
                continue;
            }
            let stage = format!("building {asked}");
            let mut progress =
                |done, total| keeper.told(&Event::Progress { stage: &stage, done, total });
            let slower = so_far.finished.last().map(|one| &one.step);
            match attempt(bench, self.options, asked, items, slower, &mut progress) {
                Ok(Ok((mut built, step))) => {
                    bench.share_weights(&mut built)?;
                    let Built { mut rung, model, .. } = built;
                    let model = project_inside(&model)?;
                    keeper.rung(&mut rung, &model).map_err(LadderError::NotKept)?;
                    so_far.finished.push(Finished { rung: rung.clone(), step });
                    keeper.so_far(so_far).map_err(LadderError::NotKept)?;
                    keeper.told(&Event::Rung(&rung));
                    continue;
                }
                Ok(Err(missed)) => so_far.not_built.push(missed),
                // One plan that fails is no reason to lose the other rungs.
                Err(error) => {
                    let because = sentence(&error);
                    so_far.not_built.push(NotBuilt { asked, because, reachable: None });
                }
            }
            keeper.so_far(so_far).map_err(LadderError::NotKept)?;
            if let Some(missed) = so_far.not_built.last() {
                keeper.told(&Event::NotBuilt(missed));
            }
        }
        Ok(())
    }

    /// Sizes of all values for one request.
    fn shapes(&self) -> Result<Shapes, ExecError> {
        let fixed = free_sizes(self.model, &self.samples.first);
        self.engine.shapes(self.model, &fixed)
    }

    /// Ranks all groups; returns for each block the loss of removing it. Where the runtime fails on a
    /// part of the network, that part is left whole and the rest goes on.
    fn score(
        &self,
        known: &mut Known,
        declined: &mut Vec<FrozenInfo>,
        keeper: &mut dyn Keeper,
    ) -> Vec<f64> {
        let mut scorer = Scorer::new(
            known.graph,
            self.engine,
            known.blocks,
            &self.samples.batches,
            self.options.method,
            self.options.seed,
        );
        scorer.importances = Some(&self.options.importances);
        scorer.by_reader = self.options.repair == Mode::Ridge;
        if self.options.low_rank {
            let ranks = candidates(known.graph, self.options.align).into_iter();
            scorer.in_two = ranks.filter_map(|(node, r)| Some((node, *r.last()?))).collect();
        }
        let groups = &known.coupling.groups;
        let mut losses = scorer.watch(groups, &mut |done, total| {
            keeper.told(&Event::Progress { stage: "watching dense", done, total });
        });
        if !self.options.depth {
            losses.fill(f64::INFINITY);
        }
        for (done, group) in groups.iter().enumerate() {
            let total = groups.len();
            keeper.told(&Event::Progress { stage: "ranking channels", done, total });
            if group.neutral == Neutral::Mean && self.options.repair != Mode::Refit {
                let why = "a normalisation takes the mean of the channels off: only a refit of \
                           what reads them makes up for those that go";
                declined.push(decline(group, why.to_owned()));
                continue;
            }
            match scorer.score(group) {
                Ok(scored) => {
                    known.scored.insert(group.id, scored);
                }
                Err(error) => declined.push(decline(group, sentence(&error))),
            }
            scorer.forget_but(&groups[done + 1..]);
        }
        known.ranked = scorer.ranked;
        losses
    }

    fn items(
        &self,
        known: &Known,
        losses: &[f64],
        table: &mut LatencyTable,
        declined: &mut Vec<FrozenInfo>,
        keeper: &mut dyn Keeper,
    ) -> Vec<Vec<Choice>> {
        let mut watch = Stopwatch::new(
            self.engine,
            known.graph,
            known.coupling,
            known.shapes,
            table,
            &self.samples.first,
        );
        let total = known.coupling.groups.len() + known.blocks.len();
        let mut choices = BTreeMap::new();
        for (done, group) in known.coupling.groups.iter().enumerate() {
            keeper.told(&Event::Progress { stage: "timing cuts", done, total });
            let Some(scored) = known.scored.get(&group.id) else { continue };
            let widths = widths(group, self.options.align);
            let timed = watch.group(group, &widths);
            keeper.timed(watch.table, false);
            match timed {
                Ok(savings) => {
                    let savings: Vec<(usize, f64)> = widths.into_iter().zip(savings).collect();
                    let offered = group_choices(group.id, group.width, scored, &savings);
                    choices.insert(group.id, offered);
                }
                Err(error) => declined.push(decline(group, sentence(&error))),
            }
        }
        let mut removals = Vec::new();
        for (index, (block, loss)) in known.blocks.iter().zip(losses).enumerate() {
            let done = known.coupling.groups.len() + index;
            keeper.told(&Event::Progress { stage: "timing cuts", done, total });
            let saving = loss.is_finite().then(|| watch.block(block).ok()).flatten();
            keeper.timed(watch.table, false);
            removals.push(saving.map(|saving| (saving, *loss)));
        }
        keeper.told(&Event::Progress { stage: "timing cuts", done: total, total });
        let ranks = self.rank_choices(known, &mut watch, declined, keeper);
        keeper.timed(watch.table, true);
        items(choices, ranks, known.blocks, &removals)
    }

    /// The operators that may be put in two, timed at their ranks.
    fn rank_choices(
        &self,
        known: &Known,
        watch: &mut Stopwatch,
        declined: &mut Vec<FrozenInfo>,
        keeper: &mut dyn Keeper,
    ) -> Vec<RankChoices> {
        let linear = operators(known.graph);
        let offered = candidates(known.graph, self.options.align);
        let mut found = Vec::new();
        let total = known.ranked.len();
        for (done, (node, ranked)) in known.ranked.iter().enumerate() {
            keeper.told(&Event::Progress { stage: "timing ranks", done, total });
            let operator = linear.iter().find(|operator| operator.node == *node);
            let (Some(operator), Some(ranks)) = (operator, offered.get(node)) else { continue };
            match watch.ranks(operator, ranks) {
                Ok(savings) => {
                    let savings: Vec<(usize, f64)> = ranks.iter().copied().zip(savings).collect();
                    let choices = ranked.choices(*node, &savings);
                    found.push(RankChoices::new(known.coupling, *node, choices));
                }
                Err(error) => declined.push(FrozenInfo {
                    what: operator.name.clone(),
                    width: operator.outputs,
                    because: sentence(&error),
                }),
            }
            keeper.timed(watch.table, false);
        }
        found
    }

    /// The calibration samples that no repair sees.
    pub(super) fn held_out(&self) -> Judges {
        let fixed = super::calibration::inputs(self.model)
            .is_ok_and(|specs| specs.iter().any(|s| s.dims.first().is_some_and(Result::is_ok)));
        Judges::of(&self.samples.batches, fixed, is_held_out)
    }
}

fn decline(group: &Group, because: String) -> FrozenInfo {
    FrozenInfo { what: group.name.clone(), width: group.width, because }
}

/// An error and its causes in one line.
fn sentence(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |error| error.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
