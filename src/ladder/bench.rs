//! Builds one planned variant and measures it against dense: latency, agreement, sizes.

use std::cell::RefCell;
use std::collections::BTreeMap;

use super::calibration::free_sizes;
use super::manifest::{self, Figures, Rung};
use super::plan::{Known, Plan, PlanError};
use super::quality::{Agreement, Outputs, accuracy, agreement, outputs};
use super::ranks::Into2;
use super::report;
use super::task::{Eval, LadderError, Task};
use super::timing::{Candidate, Timings};
use crate::limits;
use crate::onnx::{Graph, Model, Tensor, share_equal};
use crate::spectra::activations::Batch;
use crate::surgery::repair::Repair;
use crate::surgery::{self, Gone};

/// Builds and measures variants against the dense model.
pub struct Bench<'a> {
    pub(super) task: &'a Task<'a>,
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
    pub(super) fn figures(
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
            bytes: model.inline_size()?,
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

    /// How a variant agrees with dense on the samples that no repair has seen.
    pub(super) fn judge(&self, model: &Model) -> Result<Agreement, LadderError> {
        let found = outputs(self.task.engine, model, self.held_out)?;
        Ok(agreement(&self.dense_outputs, &found, |_| true))
    }

    /// Measures a planned cut on the whole model, once.
    pub(super) fn ratio_of(&self, plan: &Plan) -> Result<f64, LadderError> {
        if let Some(known) = self.measured.borrow().get(plan) {
            return Ok(*known);
        }
        let model = self.known.carry_out(plan)?;
        let ratio = self.compare(&model, self.task.options.seconds * 0.4)?.ratio(1);
        self.measured.borrow_mut().insert(plan.clone(), ratio);
        Ok(ratio)
    }

    /// Carries a plan out, repairs it, and measures and judges what comes out.
    ///
    /// # Errors
    /// Where the runtime fails on it, or refuses it.
    pub(super) fn build(
        &self,
        asked: f64,
        plan: &Plan,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Built, LadderError> {
        let task = self.task;
        let gone =
            surgery::gone(self.known.coupling, &self.known.cut(plan)).map_err(PlanError::Cut)?;
        let (repaired, repairs) = self.repaired(plan, &gone, progress)?;
        let model = share_equal(&repaired)?.model;
        let agreement = self.judge(&model)?;
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
            substituted: Vec::new(),
            in_two: report::in_two(self.known, plan, &gone),
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
        let (mut model, mut done) = repair.run(self.known.narrowed(plan)?, progress)?;
        if !plan.ranks.is_empty() {
            // Factors of weights that are repaired already, and then the second ones once more.
            let in_two = self.known.put_in_two(plan, model, Into2::Factors)?;
            let again;
            (model, again) = repair.run(in_two, progress)?;
            done.retain(|one| again.iter().all(|later| later.operator != one.operator));
            done.extend(again);
        }
        let repairs = done.into_iter().map(|one| manifest::Repair {
            operator: one.operator,
            kind: one.kind.name().to_owned(),
            before: one.before,
            after: one.after,
        });
        Ok((model, repairs.collect()))
    }
}
