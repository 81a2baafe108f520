//! Builds and measures single rungs: plans a cut, measures it on the whole model, corrects the plan,
//! repairs the cut and judges the result.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use super::allocate::Choice;
use super::calibration::free_sizes;
use super::manifest::{self, Figures, NotBuilt, Rung};
use super::plan::{Known, Plan, PlanError, plan};
use super::prices::Prices;
use super::quality::{Agreement, Outputs, accuracy, agreement, outputs};
use super::report;
use super::search::Search;
use super::task::{Eval, LadderError, Task};
use super::timing::{Candidate, Timings};
use crate::limits;
use crate::onnx::{Graph, Model, Tensor};
use crate::spectra::activations::Batch;
use crate::surgery::repair::Repair;
use crate::surgery::{self, Gone};

/// Builds and measures variants against the dense model.
pub struct Bench<'a> {
    task: &'a Task<'a>,
    known: &'a Known<'a>,
    held_out: &'a [Batch],
    dense_outputs: Outputs,
    pub dense: Figures,
    /// Ratios of the plans that were measured so far.
    measured: RefCell<BTreeMap<Plan, f64>>,
}

/// A variant that is built and measured.
pub struct Built {
    pub rung: Rung,
    pub model: Model,
}

/// A plan, what it was asked to save (microseconds), and the ratio that its cut was measured at.
pub(super) struct Found {
    pub plan: Plan,
    pub needed: f64,
    pub ratio: f64,
}

impl<'a> Bench<'a> {
    /// Measures dense.
    ///
    /// # Errors
    /// Where the runtime fails on it.
    pub fn new(
        task: &'a Task<'a>,
        known: &'a Known<'a>,
        held_out: &'a [Batch],
    ) -> Result<Self, LadderError> {
        let dense_outputs = outputs(task.engine, task.model, held_out)?;
        let (dense, measured) = (Figures::default(), RefCell::default());
        let mut bench = Self { task, known, held_out, dense_outputs, dense, measured };
        let timings = bench.compare(task.model, task.options.seconds)?;
        let latencies = (timings.percentile(0, 0.5), timings.percentile(0, 0.99));
        let own = Agreement { quality: 1.0, explained: 1.0 };
        bench.dense = bench.figures(task.model, latencies, 1.0, own)?;
        Ok(bench)
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

    /// `ratio` of dense's own latencies: that is what a variant promises, measured side by side with dense
    /// and so free of what disturbed the box at that moment.
    fn figures(
        &self,
        model: &Model,
        (p50_us, p99_us): (f64, f64),
        ratio: f64,
        agreement: Agreement,
    ) -> Result<Figures, LadderError> {
        let sizes = free_sizes(model, &self.task.samples.first);
        let shapes = self.task.engine.shapes(model, &sizes)?;
        let graph = Graph::new(model);
        Ok(Figures {
            p50_us: p50_us * ratio,
            p99_us: p99_us * ratio,
            ratio,
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

    /// Builds the rung for `asked`, or says why not and what can be reached. `slowest` is the last rung
    /// that was built.
    ///
    /// # Errors
    /// Where the runtime fails on what was planned, or refuses it.
    pub fn attempt(
        &self,
        asked: f64,
        items: &[Vec<Choice>],
        slower: Option<&Rung>,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Result<Built, NotBuilt>, LadderError> {
        let floor = self.task.options.floor;
        let missed = |because: String, reachable| Ok(Err(NotBuilt { asked, because, reachable }));
        let mut search = Search::new(asked, items);
        for removed in limits::REMOVED_PRICES {
            if search.is_over() {
                break;
            }
            search.price(self, Prices::uniform(items.len(), removed), progress)?;
        }
        let Some(nearest) = search.nearest.clone() else {
            let because = "all cuts that are sound together do not save so much time".to_owned();
            return missed(because, self.fastest(items)?);
        };
        for trial in 0..self.task.options.trials as u64 {
            let Some((_, prices)) = search.best.as_ref().filter(|_| !search.is_over()) else {
                break;
            };
            let seed = self.task.options.seed ^ asked.to_bits() ^ trial;
            search.price(self, prices.near(seed), progress)?;
        }
        let Some((built, _)) = search.best else {
            let (plan, ratio) = nearest;
            let because = if ratio > asked && self::plan(items, most(items)) == Some(plan) {
                "all cuts that are sound together do not save so much time".to_owned()
            } else {
                format!("the nearest that the measured steps of this box allow is {ratio:.3}")
            };
            return missed(because, Some(ratio));
        };
        let Figures { ratio, quality, .. } = built.rung.figures;
        let slower = slower.map_or(1.0, |rung| rung.figures.ratio);
        // Comparisons that are false for NaN: such a variant is never taken.
        if quality >= floor && ratio < slower {
            return Ok(Ok(built));
        }
        if quality >= floor {
            let because = format!(
                "repaired, it takes {ratio:.3} of dense's time, no less than what is there already"
            );
            return missed(because, None);
        }
        let because = format!("its quality would be {quality:.3}, below the floor of {floor}");
        missed(because, self.reachable(asked, items, slower)?)
    }

    /// Builds a plan; where the repair moves the ratio, aims as far beside the mark and builds again.
    pub(super) fn on_target(
        &self,
        asked: f64,
        plan: &Plan,
        items: &[Vec<Choice>],
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Built, LadderError> {
        let built = self.build(asked, plan, progress)?;
        let off = |built: &Built| (built.rung.figures.ratio / asked - 1.0).abs();
        if off(&built) <= limits::RATIO_TOLERANCE {
            return Ok(built);
        }
        let aim = (asked * asked / built.rung.figures.ratio).clamp(0.05, 0.99);
        if let Some(found) = self.find_plan(aim, items, None)? {
            let again = self.build(asked, &found.plan, progress)?;
            if off(&again) < off(&built) {
                return Ok(again);
            }
        }
        Ok(built)
    }

    /// The plan whose cut, measured on the whole model, comes nearest to a ratio. `start` is what a plan
    /// should save at first, microseconds, where something is known about that.
    pub(super) fn find_plan(
        &self,
        asked: f64,
        items: &[Vec<Choice>],
        start: Option<f64>,
    ) -> Result<Option<Found>, LadderError> {
        // The table was measured on the parts, each at another moment: it may think less possible than is.
        let most = most(items);
        let mut needed = start.unwrap_or(self.dense.p50_us * (1.0 - asked)).min(most);
        // The nearest plans on either side: what they were asked to save, and their measured ratio.
        let mut too_slow: Option<(f64, f64)> = None;
        let mut too_fast: Option<(f64, f64)> = None;
        let mut best: Option<Found> = None;
        let mut seen: BTreeSet<Plan> = BTreeSet::new();
        for _ in 0..limits::PLAN_CORRECTIONS {
            let Some(candidate) = plan(items, needed) else { break };
            let new = seen.insert(candidate.clone());
            let ratio = if new {
                self.ratio_of(&candidate)?
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

    /// The ratio of the plan that saves the most.
    fn fastest(&self, items: &[Vec<Choice>]) -> Result<Option<f64>, LadderError> {
        let Some(candidate) = plan(items, most(items)) else { return Ok(None) };
        Ok(Some(self.ratio_of(&candidate)?))
    }

    /// Measures a planned cut on the whole model, once.
    fn ratio_of(&self, plan: &Plan) -> Result<f64, LadderError> {
        if let Some(known) = self.measured.borrow().get(plan) {
            return Ok(*known);
        }
        let model = self.known.carry_out(plan)?;
        let ratio = self.compare(&model, self.task.options.seconds * 0.4)?.ratio(1);
        self.measured.borrow_mut().insert(plan.clone(), ratio);
        Ok(ratio)
    }

    /// The lowest ratio above `failed` whose quality is at the floor, by bisection.
    fn reachable(
        &self,
        failed: f64,
        items: &[Vec<Choice>],
        slower: f64,
    ) -> Result<Option<f64>, LadderError> {
        let mut low = failed;
        let mut high = slower;
        let mut reached = (slower < 1.0).then_some(slower);
        for _ in 0..limits::FLOOR_BISECTIONS {
            let middle = f64::midpoint(low, high);
            let Some(found) = self.find_plan(middle, items, None)? else { break };
            let built = self.build(middle, &found.plan, &mut |_, _| {})?;
            if built.rung.figures.quality >= self.task.options.floor {
                (high, reached) = (middle, Some(found.ratio));
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
        let dense = (self.dense.p50_us, self.dense.p99_us);
        let figures = self.figures(&model, dense, timings.ratio(1), agreement)?;
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
    ) -> Result<(Model, Vec<manifest::Repair>), LadderError> {
        let repair = Repair {
            engine: self.task.engine,
            dense: self.task.model,
            gone,
            stands_for: &self.known.stands_for(plan),
            batches: &self.task.samples.batches,
            mode: self.task.options.repair,
            seed: self.task.options.seed,
        };
        let (model, done) = repair.run(self.known.carry_out(plan)?, progress)?;
        let repairs = done.into_iter().map(|one| manifest::Repair {
            operator: one.operator,
            kind: one.kind.name().to_owned(),
            before: one.before,
            after: one.after,
        });
        Ok((model, repairs.collect()))
    }
}

/// What all items together save by the table, short of the last steps in which savings are counted.
pub(super) fn most(items: &[Vec<Choice>]) -> f64 {
    let of = |item: &Vec<Choice>| {
        item.iter().map(|choice| choice.saving).filter(|s| s.is_finite()).fold(0.0, f64::max)
    };
    0.98 * items.iter().map(of).sum::<f64>()
}
