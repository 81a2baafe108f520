//! Makes a ladder: scores and times every group once, then for each ratio plans, measures the planned cut
//! on the whole model, corrects the plan, repairs the cut and judges the result.

use std::collections::{BTreeMap, BTreeSet};

use super::calibration::Samples;
use super::manifest::{Figures, NotBuilt, Rung};
use super::plan::{Known, Plan, PlanError, group_choices, items, plan, widths};
use super::quality::{Agreement, Outputs, accuracy, agreement, outputs};
use super::report;
use super::score::Scorer;
use super::table::{LatencyTable, Stopwatch, TableError};
use super::timing::{Candidate, Timings};
use crate::coupling::{Coupling, blocks, couple};
use crate::limits;
use crate::onnx::{Engine, ExecError, Graph, Model, OnnxError, Shapes, Tensor};
use crate::redundancy::selection::Method;
use crate::spectra::activations::Batch;
use crate::surgery::repair::{Mode, Repair, RepairError, is_held_out};
use crate::surgery::{self, Gone};

/// What is asked of a ladder.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// Latency ratios to dense, each in (0, 1).
    pub ratios: Vec<f64>,
    pub method: Method,
    pub repair: Mode,
    /// Whether whole residual blocks may be removed.
    pub depth: bool,
    /// Kept widths are multiples of this; `None` lets the measured latencies decide.
    pub align: Option<usize>,
    pub seed: u64,
    /// Least quality of a rung; below it none is built.
    pub floor: f64,
    /// Seconds for which a whole variant is compared with dense.
    pub seconds: f64,
}

/// Labelled samples that nothing is fitted on.
#[derive(Debug, Clone)]
pub struct Eval {
    pub samples: Samples,
    /// One class a sample, if known.
    pub labels: Option<Vec<i64>>,
}

/// What happens while a ladder is made.
#[derive(Debug, Clone, PartialEq)]
pub enum Event<'a> {
    /// `done` of `total` steps of a stage.
    Progress { stage: &'a str, done: usize, total: usize },
    /// A rung is finished.
    Rung(&'a Rung),
    /// A ratio is given up.
    NotBuilt(&'a NotBuilt),
}

/// Why no ladder could be made.
#[derive(Debug, thiserror::Error)]
pub enum LadderError {
    #[error("the runtime failed")]
    Exec(#[from] ExecError),
    #[error(transparent)]
    Onnx(#[from] OnnxError),
    #[error(transparent)]
    Table(#[from] TableError),
    #[error(transparent)]
    Plan(#[from] PlanError),
    #[error(transparent)]
    Repair(#[from] RepairError),
    #[error("{0}")]
    Sink(String),
}

/// Takes a finished rung and its model; an error stops the work.
pub type Sink<'a> = dyn FnMut(&mut Rung, &Model) -> Result<(), String> + 'a;

/// A finished ladder, without what only the shell knows (files, versions).
#[derive(Debug, Clone)]
pub struct Ladder {
    pub dense: Figures,
    pub rungs: Vec<Rung>,
    pub not_built: Vec<NotBuilt>,
    pub coupling: Coupling,
}

/// The inputs of [`Task::make`].
pub struct Task<'a> {
    pub engine: &'a dyn Engine,
    pub model: &'a Model,
    pub samples: &'a Samples,
    pub eval: Option<&'a Eval>,
    pub options: &'a Options,
}

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
        };
        let losses = self.score(&mut known, on)?;
        let items = self.items(&known, &losses, table, on)?;
        let held_out = self.held_out();
        let mut bench = Bench::new(self, &known, &held_out)?;
        let dense = bench.dense_figures()?;
        let mut ladder =
            Ladder { dense, rungs: Vec::new(), not_built: Vec::new(), coupling: coupling.clone() };
        let mut ratios = self.options.ratios.clone();
        ratios.sort_by(|a, b| b.total_cmp(a));
        for asked in ratios {
            bench.rung(asked, &items, &mut ladder, on, sink)?;
        }
        Ok(ladder)
    }

    /// Sizes of all values for one request.
    fn shapes(&self) -> Result<Shapes, ExecError> {
        let fixed = free_sizes(self.model, &self.samples.first);
        self.engine.shapes(self.model, &fixed)
    }

    /// Ranks all groups; returns for each block the loss of removing it.
    fn score(&self, known: &mut Known, on: &mut dyn FnMut(Event)) -> Result<Vec<f64>, LadderError> {
        let mut scorer = Scorer::new(
            known.graph,
            self.engine,
            known.blocks,
            &self.samples.batches,
            self.options.method,
            self.options.seed,
        );
        let total = known.coupling.groups.len();
        for (done, group) in known.coupling.groups.iter().enumerate() {
            on(Event::Progress { stage: "ranking channels", done, total });
            if let Some(first) = group.producers.iter().map(|producer| producer.node).min() {
                scorer.forget_before(first);
            }
            if let Some(scored) = scorer.score(group)? {
                known.scored.insert(group.id, scored);
            }
        }
        let mut losses = Vec::new();
        for (done, block) in known.blocks.iter().enumerate() {
            on(Event::Progress { stage: "weighing blocks", done, total: known.blocks.len() });
            losses.push(if self.options.depth { scorer.removal(block)? } else { f64::INFINITY });
        }
        Ok(losses)
    }

    fn items(
        &self,
        known: &Known,
        losses: &[f64],
        table: &mut LatencyTable,
        on: &mut dyn FnMut(Event),
    ) -> Result<Vec<Vec<super::allocate::Choice>>, LadderError> {
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
            let savings = watch.group(group, &widths)?;
            let savings: Vec<(usize, f64)> = widths.into_iter().zip(savings).collect();
            choices.insert(group.id, group_choices(group.id, group.width, scored, &savings));
        }
        let mut removals = Vec::new();
        for (index, (block, loss)) in known.blocks.iter().zip(losses).enumerate() {
            let done = known.coupling.groups.len() + index;
            on(Event::Progress { stage: "timing cuts", done, total });
            removals.push(match loss.is_finite() {
                true => Some((watch.block(block)?, *loss)),
                false => None,
            });
        }
        on(Event::Progress { stage: "timing cuts", done: total, total });
        Ok(items(choices, known.blocks, &removals))
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

/// Sizes of the free axes of a model's inputs, by symbol, as `batch` has them.
pub fn free_sizes(model: &Model, batch: &Batch) -> BTreeMap<String, usize> {
    let mut sizes = BTreeMap::new();
    for spec in super::calibration::inputs(model).unwrap_or_default() {
        let Some(tensor) = batch.get(&spec.name) else { continue };
        for (dim, size) in spec.dims.iter().zip(&tensor.shape) {
            if let Err(symbol) = dim {
                sizes.insert(symbol.clone(), *size);
            }
        }
    }
    sizes
}

/// Builds and measures variants against the dense model.
struct Bench<'a> {
    task: &'a Task<'a>,
    known: &'a Known<'a>,
    held_out: &'a [Batch],
    dense_outputs: Outputs,
    /// Microseconds.
    dense_us: f64,
}

/// A variant that is built and measured.
struct Built {
    rung: Rung,
    model: Model,
}

impl<'a> Bench<'a> {
    fn new(
        task: &'a Task<'a>,
        known: &'a Known<'a>,
        held_out: &'a [Batch],
    ) -> Result<Self, LadderError> {
        let dense_outputs = outputs(task.engine, task.model, held_out)?;
        Ok(Self { task, known, held_out, dense_outputs, dense_us: 0.0 })
    }

    /// Latencies of dense (candidate 0) and `variant` in the same rounds.
    fn compare(&self, variant: &Model, seconds: f64) -> Result<Timings, LadderError> {
        let inputs: Vec<(&str, &Tensor)> =
            self.task.samples.first.iter().map(|(name, t)| (name.as_str(), t)).collect();
        let mut candidates = Vec::new();
        for model in [self.task.model, variant] {
            let session = self.task.engine.open(model)?;
            candidates.push(Candidate { session, inputs: inputs.clone() });
        }
        Ok(Timings::take(&mut candidates, seconds)?)
    }

    fn dense_figures(&mut self) -> Result<Figures, LadderError> {
        let timings = self.compare(self.task.model, self.task.options.seconds)?;
        self.dense_us = timings.percentile(0, 0.5);
        let own = Agreement { quality: 1.0, explained: 1.0 };
        self.figures(self.task.model, &timings, own, 0)
    }

    fn figures(
        &self,
        model: &Model,
        timings: &Timings,
        agreement: Agreement,
        candidate: usize,
    ) -> Result<Figures, LadderError> {
        let sizes = free_sizes(model, &self.task.samples.first);
        let shapes = self.task.engine.shapes(model, &sizes)?;
        let graph = Graph::new(model);
        Ok(Figures {
            p50_us: timings.percentile(candidate, 0.5),
            p99_us: timings.percentile(candidate, 0.99),
            ratio: timings.ratio(candidate),
            macs: report::macs(&graph, &shapes),
            params: report::parameters(&graph),
            bytes: model.encode_inline()?.len() as u64,
            quality: agreement.quality,
            explained: agreement.explained,
            accuracy: self.accuracy(model)?,
        })
    }

    fn accuracy(&self, model: &Model) -> Result<Option<f64>, LadderError> {
        let Some(Eval { samples, labels: Some(labels) }) = self.task.eval else { return Ok(None) };
        let outputs = outputs(self.task.engine, model, &samples.batches)?;
        Ok(accuracy(&outputs, labels))
    }

    /// Builds the rung for `asked`, or says why not and what can be reached.
    fn rung(
        &mut self,
        asked: f64,
        items: &[Vec<super::allocate::Choice>],
        ladder: &mut Ladder,
        on: &mut dyn FnMut(Event),
        sink: &mut Sink,
    ) -> Result<(), LadderError> {
        let floor = self.task.options.floor;
        let stage = format!("building {asked}");
        let mut give_up = |because: String, reachable: Option<f64>, ladder: &mut Ladder| {
            let missed = NotBuilt { asked, because, reachable };
            on(Event::NotBuilt(&missed));
            ladder.not_built.push(missed);
        };
        let Some((plan, planned)) = self.find_plan(asked, items)? else {
            let reached = self.fastest(items)?;
            let because = "all cuts that are sound together do not save so much time".to_owned();
            give_up(because, reached, ladder);
            return Ok(());
        };
        if (planned / asked - 1.0).abs() > limits::RATIO_TOLERANCE {
            let because = format!(
                "the nearest that the measured steps of this box allow is a ratio of {planned:.3}"
            );
            give_up(because, Some(planned), ladder);
            return Ok(());
        }
        let mut report = |done, total| on(Event::Progress { stage: &stage, done, total });
        let mut built = self.build(asked, &plan, &mut report)?;
        if built.rung.figures.quality < floor {
            let because = format!(
                "its quality would be {:.3}, below the floor of {floor}",
                built.rung.figures.quality
            );
            let reachable = self.reachable(asked, items, ladder)?;
            let missed = NotBuilt { asked, because, reachable };
            on(Event::NotBuilt(&missed));
            ladder.not_built.push(missed);
            return Ok(());
        }
        sink(&mut built.rung, &built.model).map_err(LadderError::Sink)?;
        on(Event::Rung(&built.rung));
        ladder.rungs.push(built.rung);
        Ok(())
    }

    /// The plan whose cut, measured on the whole model, comes nearest to a ratio.
    fn find_plan(
        &self,
        asked: f64,
        items: &[Vec<super::allocate::Choice>],
    ) -> Result<Option<(Plan, f64)>, LadderError> {
        let mut needed = self.dense_us * (1.0 - asked);
        // The nearest plans on either side: what they were asked to save, and their measured ratio.
        let mut too_slow: Option<(f64, f64)> = None;
        let mut too_fast: Option<(f64, f64)> = None;
        let mut best: Option<(Plan, f64)> = None;
        let mut seen: BTreeSet<String> = BTreeSet::new();
        for _ in 0..limits::PLAN_CORRECTIONS {
            let Some(candidate) = plan(items, needed) else { break };
            let new = seen.insert(format!("{candidate:?}"));
            let ratio = if new {
                let model = self.known.carry_out(&candidate)?;
                self.compare(&model, self.task.options.seconds * 0.4)?.ratio(1)
            } else {
                match (too_slow, too_fast) {
                    // Nothing lies between the two plans.
                    (Some(_), Some(_)) => break,
                    _ => best.as_ref().map_or(1.0, |(_, ratio)| *ratio),
                }
            };
            let off = |ratio: f64| (ratio / asked - 1.0).abs();
            if new && best.as_ref().is_none_or(|(_, nearest)| off(*nearest) > off(ratio)) {
                best = Some((candidate, ratio));
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
        }
        Ok(best)
    }

    /// The ratio of the plan that saves the most.
    fn fastest(&self, items: &[Vec<super::allocate::Choice>]) -> Result<Option<f64>, LadderError> {
        let most: f64 = items
            .iter()
            .map(|item| item.iter().map(|c| c.saving).filter(|s| s.is_finite()).fold(0.0, f64::max))
            .sum();
        let Some(candidate) = plan(items, most * 0.98) else { return Ok(None) };
        let model = self.known.carry_out(&candidate)?;
        Ok(Some(self.compare(&model, self.task.options.seconds * 0.4)?.ratio(1)))
    }

    /// The lowest ratio above `failed` whose quality is at the floor, by bisection.
    fn reachable(
        &self,
        failed: f64,
        items: &[Vec<super::allocate::Choice>],
        ladder: &Ladder,
    ) -> Result<Option<f64>, LadderError> {
        let mut low = failed;
        let best = ladder.rungs.last().map(|rung| rung.figures.ratio);
        let mut high = best.unwrap_or(1.0);
        let mut reached = best;
        for _ in 0..limits::FLOOR_BISECTIONS {
            let middle = f64::midpoint(low, high);
            let Some((plan, ratio)) = self.find_plan(middle, items)? else { break };
            let built = self.build(middle, &plan, &mut |_, _| {})?;
            if built.rung.figures.quality >= self.task.options.floor {
                (high, reached) = (middle, Some(ratio));
            } else {
                low = middle;
            }
        }
        Ok(reached)
    }

    fn build(
        &self,
        asked: f64,
        plan: &Plan,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Built, LadderError> {
        let task = self.task;
        let gone =
            surgery::gone(self.known.coupling, &self.known.cut(plan)).map_err(PlanError::Cut)?;
        let model = self.repaired(plan, &gone, progress)?;
        let (model, repairs) = model;
        let found = outputs(task.engine, &model, self.held_out)?;
        let agreement = agreement(&self.dense_outputs, &found, |_| true);
        let mut timings = self.compare(&model, task.options.seconds)?;
        if (timings.ratio(1) / asked - 1.0).abs() > limits::RATIO_TOLERANCE {
            // The cut was as fast as asked when it was planned: one of the two was disturbed.
            timings = self.compare(&model, 2.0 * task.options.seconds)?;
        }
        let figures = self.figures(&model, &timings, agreement, 1)?;
        let rung = Rung {
            name: format!("r{asked}"),
            asked,
            file: String::new(),
            digest: model.digest()?,
            figures,
            cuts: report::cuts(self.known, plan),
            bypassed: plan
                .bypass
                .iter()
                .map(|b| self.known.graph.label(self.known.blocks[*b].add))
                .collect(),
            repairs,
        };
        Ok(Built { rung, model })
    }

    fn repaired(
        &self,
        plan: &Plan,
        gone: &Gone,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<(Model, Vec<super::manifest::Repair>), LadderError> {
        let repair = Repair {
            engine: self.task.engine,
            dense: self.task.model,
            gone,
            batches: &self.task.samples.batches,
            mode: self.task.options.repair,
            seed: self.task.options.seed,
        };
        let (model, done) = repair.run(self.known.carry_out(plan)?, progress)?;
        let repairs = done.into_iter().map(|one| super::manifest::Repair {
            operator: one.operator,
            kind: one.kind.name().to_owned(),
            before: one.before,
            after: one.after,
        });
        Ok((model, repairs.collect()))
    }
}
