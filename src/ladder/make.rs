//! Makes a ladder: scores and times every group once, then for each ratio plans, measures the planned cut
//! on the whole model, corrects the plan, repairs the cut and judges the result.

use std::collections::BTreeMap;

use super::allocate::Choice;
use super::bench::Bench;
use super::calibration::free_sizes;
use super::manifest::{FrozenInfo, NotBuilt};
use super::plan::{Known, group_choices, items, widths};
use super::ranks::{RankChoices, candidates};
use super::rungs::attempt;
use super::score::Scorer;
use super::table::{LatencyTable, Stopwatch};
use super::task::{Event, Ladder, LadderError, Sink, Task};
use crate::coupling::{Group, Neutral, blocks, couple};
use crate::onnx::{ExecError, Graph, Shapes, Tensor, operators};
use crate::spectra::activations::Batch;
use crate::surgery::repair::{Mode, is_held_out};

impl Task<'_> {
    /// Makes the ladder. Finished rungs go to `sink` one by one, slowest first, so that an interrupted
    /// build keeps what it has.
    ///
    /// # Errors
    /// Where the runtime fails on the dense model, or `sink` refuses.
    pub fn make(
        &self,
        table: &mut LatencyTable,
        on: &mut dyn FnMut(Event),
        sink: &mut Sink,
    ) -> Result<Ladder, LadderError> {
        let graph = Graph::new(self.model);
        let shapes = self.shapes()?;
        let coupling = couple(&graph, &shapes);
        let blocks = blocks(&graph, &coupling, &shapes);
        let mut known = Known {
            graph: &graph,
            shapes: &shapes,
            coupling: &coupling,
            blocks: &blocks,
            scored: BTreeMap::new(),
            ranked: BTreeMap::new(),
        };
        let mut declined = Vec::new();
        let losses = self.score(&mut known, &mut declined, on);
        let items = self.items(&known, &losses, table, &mut declined, on);
        let held_out = self.held_out();
        let bench = Bench::new(self, &known, &held_out)?;
        let mut ladder = Ladder {
            dense: bench.dense.clone(),
            rungs: Vec::new(),
            not_built: Vec::new(),
            coupling: coupling.clone(),
            declined,
        };
        let mut ratios = self.options.ratios.clone();
        ratios.sort_by(|a, b| b.total_cmp(a));
        for asked in ratios {
            let stage = format!("building {asked}");
            let mut progress = |done, total| on(Event::Progress { stage: &stage, done, total });
            let attempt = attempt(&bench, asked, &items, ladder.rungs.last(), &mut progress);
            let missed = match attempt {
                Ok(Ok(mut built)) => {
                    bench.substitute(&mut built)?;
                    sink(&mut built.rung, &built.model).map_err(LadderError::Sink)?;
                    on(Event::Rung(&built.rung));
                    ladder.rungs.push(built.rung);
                    continue;
                }
                Ok(Err(missed)) => missed,
                // One plan that fails is no reason to lose the other rungs.
                Err(error) => NotBuilt { asked, because: sentence(&error), reachable: None },
            };
            on(Event::NotBuilt(&missed));
            ladder.not_built.push(missed);
        }
        Ok(ladder)
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
        on: &mut dyn FnMut(Event),
    ) -> Vec<f64> {
        let mut scorer = Scorer::new(
            known.graph,
            self.engine,
            known.blocks,
            &self.samples.batches,
            self.options.method,
            self.options.seed,
        );
        if self.options.low_rank {
            let ranks = candidates(known.graph, self.options.align).into_iter();
            scorer.in_two = ranks.filter_map(|(node, r)| Some((node, *r.last()?))).collect();
        }
        let groups = &known.coupling.groups;
        let mut losses = scorer.watch(groups, &mut |done, total| {
            on(Event::Progress { stage: "watching dense", done, total });
        });
        if !self.options.depth {
            losses.fill(f64::INFINITY);
        }
        for (done, group) in groups.iter().enumerate() {
            on(Event::Progress { stage: "ranking channels", done, total: groups.len() });
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
        on: &mut dyn FnMut(Event),
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
            on(Event::Progress { stage: "timing cuts", done, total });
            let Some(scored) = known.scored.get(&group.id) else { continue };
            let widths = widths(group, self.options.align);
            match watch.group(group, &widths) {
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
            on(Event::Progress { stage: "timing cuts", done, total });
            let saving = loss.is_finite().then(|| watch.block(block).ok()).flatten();
            removals.push(saving.map(|saving| (saving, *loss)));
        }
        on(Event::Progress { stage: "timing cuts", done: total, total });
        let ranks = self.rank_choices(known, &mut watch, declined, on);
        items(choices, ranks, known.blocks, &removals)
    }

    /// The operators that may be put in two, timed at their ranks.
    fn rank_choices(
        &self,
        known: &Known,
        watch: &mut Stopwatch,
        declined: &mut Vec<FrozenInfo>,
        on: &mut dyn FnMut(Event),
    ) -> Vec<RankChoices> {
        let linear = operators(known.graph);
        let offered = candidates(known.graph, self.options.align);
        let mut found = Vec::new();
        for (done, (node, ranked)) in known.ranked.iter().enumerate() {
            on(Event::Progress { stage: "timing ranks", done, total: known.ranked.len() });
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
        }
        found
    }

    /// The calibration samples that no repair sees, in batches of their own.
    fn held_out(&self) -> Vec<Batch> {
        let mut first = 0u32;
        let mut out = Vec::new();
        for batch in &self.samples.batches {
            let size = batch.values().next().and_then(|t| t.shape.first()).copied().unwrap_or(0);
            let rows: Vec<usize> =
                (0..size).filter(|row| is_held_out(first + *row as u32)).collect();
            first += size as u32;
            // A model with a fixed batch takes whole batches only; its held-out samples are counted
            // within them.
            if !rows.is_empty() {
                let pick = |tensor: &Tensor| super::calibration::rows_of(tensor, &rows);
                out.push(batch.iter().map(|(name, t)| (name.clone(), pick(t))).collect());
            }
        }
        let fixed = super::calibration::inputs(self.model)
            .is_ok_and(|specs| specs.iter().any(|s| s.dims.first().is_some_and(Result::is_ok)));
        if fixed { self.samples.batches.clone() } else { out }
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
