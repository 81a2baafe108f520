//! Builds one planned variant and measures it against dense: latency, agreement, sizes.

use std::cell::RefCell;
use std::collections::BTreeMap;

use super::calibration::free_sizes;
use super::manifest::{self, Figures, Rung};
use super::plan::{Known, Plan, PlanError};
use super::quality::{Agreement, Judges, Outputs, accuracy, agreement, outputs};
use super::ranks::Into2;
use super::report;
use super::task::{Eval, LadderError, Task};
use super::timing::{Candidate, Timings};
use crate::limits;
use crate::onnx::{Graph, Model, Tensor, share_equal};
use crate::surgery::attention::project_inside;
use crate::surgery::repair::Repair;
use crate::surgery::{self, Gone};

/// A variant that is built and measured.
#[derive(Debug, Clone)]
pub struct Built {
    pub rung: Rung,
    pub plan: Plan,
    /// As `ladder::opened` writes it out.
    pub model: Model,
}

/// What the search for a rung asks of whoever builds and measures variants.
pub trait Workbench {
    /// Dense's figures.
    fn dense(&self) -> &Figures;

    /// Multiply-adds that building one variant takes, about.
    fn work(&self) -> f64;

    /// Ratio of a planned cut that is not repaired, measured on the whole model.
    ///
    /// # Errors
    /// Where the cut is refused, or the runtime fails on it.
    fn ratio_of(&self, plan: &Plan) -> Result<f64, LadderError>;

    /// Carries a plan out, repairs it, and measures and judges what comes out.
    ///
    /// # Errors
    /// Where the runtime fails on it, or refuses it.
    fn build(
        &self,
        asked: f64,
        plan: &Plan,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Built, LadderError>;

    /// Measures a variant that was chosen once more, beside dense, in rounds on which no choice has depended:
    /// of many variants the one that is chosen is also the one that was timed most luckily. Its
    /// figures say from then on what it promises.
    ///
    /// # Errors
    /// As [`Workbench::build`].
    fn promise(&self, built: &mut Built) -> Result<(), LadderError>;

    /// Lets layers of the variant that was chosen share weights where that costs it next to nothing.
    ///
    /// # Errors
    /// As [`Workbench::build`].
    fn share_weights(&self, built: &mut Built) -> Result<(), LadderError>;
}

/// Builds and measures variants against the dense model.
pub struct Bench<'a> {
    pub(super) task: &'a Task<'a>,
    known: &'a Known<'a>,
    held_out: &'a Judges,
    dense_outputs: Outputs,
    dense: Figures,
    /// Ratios of the plans that were measured so far.
    measured: RefCell<BTreeMap<Plan, f64>>,
}

impl<'a> Bench<'a> {
    /// Measures dense, unless its figures are `known_figures` from before.
    ///
    /// # Errors
    /// Where the runtime fails on it.
    pub fn new(
        task: &'a Task<'a>,
        known: &'a Known<'a>,
        held_out: &'a Judges,
        known_figures: Option<Figures>,
    ) -> Result<Self, LadderError> {
        let model = project_inside(task.model)?;
        let dense_outputs = outputs(task.engine, &model, &held_out.batches)?;
        let (dense, measured) = (Figures::default(), RefCell::default());
        let mut bench = Self { task, known, held_out, dense_outputs, dense, measured };
        bench.dense = match known_figures {
            Some(dense) => dense,
            None => bench.dense_figures()?,
        };
        Ok(bench)
    }

    fn dense_figures(&self) -> Result<Figures, LadderError> {
        let model = self.task.model;
        let timings = self.compare(model, self.task.options.seconds)?;
        let own = Agreement { quality: 1.0, explained: 1.0 };
        let sized = self.sized(model, own)?;
        Ok(Figures {
            p50_us: timings.percentile(0, 0.5),
            p99_us: timings.percentile(0, 0.99),
            ratio: 1.0,
            accuracy: self.accuracy(model)?,
            ..sized
        })
    }

    /// Latencies of dense (candidate 0) and `variant` in the same rounds.
    fn compare(&self, variant: &Model, seconds: f64) -> Result<Timings, LadderError> {
        let inputs: Vec<(&str, &Tensor)> =
            self.task.samples.first.iter().map(|(name, t)| (name.as_str(), t)).collect();
        let mut candidates = Vec::new();
        for model in [self.task.model, variant] {
            let model = project_inside(model)?;
            let session = self.task.engine.open(&model)?;
            candidates.push(Candidate { session, inputs: inputs.clone() });
        }
        Ok(Timings::take(&mut candidates, seconds)?)
    }

    /// Figures of a model whose latency is not known yet.
    pub(super) fn sized(
        &self,
        model: &Model,
        agreement: Agreement,
    ) -> Result<Figures, LadderError> {
        let sizes = free_sizes(model, &self.task.samples.first);
        let shapes = self.task.engine.shapes(model, &sizes)?;
        let graph = Graph::new(model);
        Ok(Figures {
            macs: report::macs(&graph, &shapes),
            params: report::parameters(&graph),
            bytes: project_inside(model)?.inline_size()?,
            quality: agreement.quality,
            explained: agreement.explained,
            ..Figures::default()
        })
    }

    fn accuracy(&self, model: &Model) -> Result<Option<f64>, LadderError> {
        let Some(Eval { samples, labels: Some(labels) }) = self.task.eval else { return Ok(None) };
        let model = project_inside(model)?;
        let outputs = outputs(self.task.engine, &model, &samples.batches)?;
        Ok(accuracy(&outputs, labels))
    }

    /// Agreement with dense on the samples that no repair has seen.
    pub(super) fn judge(&self, model: &Model) -> Result<Agreement, LadderError> {
        let model = project_inside(model)?;
        let found = outputs(self.task.engine, &model, &self.held_out.batches)?;
        Ok(agreement(&self.dense_outputs, &found, &self.held_out.counted))
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
        let (mut model, mut done) = repair.run(self.known.merged(plan)?, progress)?;
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

impl Workbench for Bench<'_> {
    fn dense(&self) -> &Figures {
        &self.dense
    }

    fn work(&self) -> f64 {
        surgery::work(self.known.graph, self.known.shapes, self.task.samples.count)
    }

    fn ratio_of(&self, plan: &Plan) -> Result<f64, LadderError> {
        if let Some(known) = self.measured.borrow().get(plan) {
            return Ok(*known);
        }
        let model = self.known.carry_out(plan)?;
        let ratio = self.compare(&model, self.task.options.seconds * 0.4)?.ratio(1);
        self.measured.borrow_mut().insert(plan.clone(), ratio);
        Ok(ratio)
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
        let (repaired, repairs) = self.repaired(plan, &gone, progress)?;
        let model = share_equal(&repaired)?.model;
        let mut figures = self.sized(&model, self.judge(&model)?)?;
        let mut timings = self.compare(&model, task.options.seconds)?;
        if (timings.ratio(1) / asked - 1.0).abs() > limits::RATIO_TOLERANCE {
            // The cut was as fast as asked when it was planned: one of the two was disturbed.
            timings = self.compare(&model, 2.0 * task.options.seconds)?;
        }
        figures.take(&self.dense, timings.ratio(1));
        let rung = Rung {
            name: format!("r{asked}"),
            asked,
            file: String::new(),
            digest: project_inside(&model)?.digest()?,
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
            nested: None,
        };
        Ok(Built { rung, plan: plan.clone(), model })
    }

    fn promise(&self, built: &mut Built) -> Result<(), LadderError> {
        let ratio = self.compare(&built.model, self.task.options.seconds)?.ratio(1);
        let figures = &mut built.rung.figures;
        figures.take(&self.dense, ratio);
        figures.accuracy = self.accuracy(&built.model)?;
        Ok(())
    }

    fn share_weights(&self, built: &mut Built) -> Result<(), LadderError> {
        let before = built.rung.figures.clone();
        if self.substitute(built)? {
            // The operators and their sizes are the same, and so is the time that they take.
            built.rung.figures.take(&self.dense, before.ratio);
            built.rung.figures.accuracy = self.accuracy(&built.model)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coupling::{blocks, couple};
    use crate::ladder::calibration;
    use crate::ladder::fakes::{FakeEngine, Layer, batched, real};
    use crate::ladder::manifest::CalibrationSource;
    use crate::ladder::task::Options;
    use crate::onnx::{DType, Engine};
    use crate::redundancy::selection::Method;
    use crate::surgery::repair::{Mode, is_held_out};

    const SAMPLES: usize = 40;

    /// Samples that begin with their own number, from 1 on.
    fn arrays() -> BTreeMap<String, Tensor> {
        let values: Vec<f32> = (0..SAMPLES)
            .flat_map(|n| [n as f32 + 1.0, real(3 * n as u64), real(3 * n as u64 + 1), 1.0])
            .collect();
        [("v0".to_owned(), Tensor::from_f32(&[SAMPLES, 4], &values))].into()
    }

    /// Agreement of a network with itself where it says something else of the samples that `spoils` tells.
    fn agreement_where(batch: usize, spoils: fn(u32) -> bool) -> Agreement {
        let layers = [Layer::product(4, 8), Layer::op("Relu"), Layer::product(8, 3)];
        let model = batched(batch, 17, DType::F32, "v", 1, &layers);
        let specs = calibration::inputs(&model).unwrap();
        let from = CalibrationSource::File;
        let samples = calibration::from_arrays(&specs, &arrays(), SAMPLES, from).unwrap();
        assert_eq!(samples.count, SAMPLES);
        let engine = FakeEngine::default();
        let options = Options {
            low_rank: false,
            ratios: vec![0.5],
            method: Method::Obs,
            importances: BTreeMap::new(),
            repair: Mode::None,
            depth: false,
            align: None,
            trials: 0,
            work: None,
            seed: 0,
            floor: 0.0,
            seconds: 0.0,
        };
        let task = Task {
            engine: &engine,
            model: &model,
            samples: &samples,
            eval: None,
            options: &options,
        };
        let graph = Graph::new(&model);
        let shapes = engine.shapes(&model, &BTreeMap::new()).unwrap();
        let coupling = couple(&graph, &shapes);
        let blocks = blocks(&graph, &coupling, &shapes);
        let known = Known {
            ranked: BTreeMap::new(),
            graph: &graph,
            shapes: &shapes,
            coupling: &coupling,
            blocks: &blocks,
            scored: BTreeMap::new(),
        };
        let held_out = task.held_out();
        let bench = Bench::new(&task, &known, &held_out, None).unwrap();
        *engine.spoils.borrow_mut() = Some(Box::new(move |mark| spoils(mark as u32 - 1)));
        bench.build(0.5, &Plan::default(), &mut |_, _| {}).unwrap().judged()
    }

    impl Built {
        fn judged(&self) -> Agreement {
            let Figures { quality, explained, .. } = self.rung.figures;
            Agreement { quality, explained }
        }
    }

    #[test]
    fn no_sample_that_was_fitted_on_judges_whatever_the_batch() {
        let own = Agreement { quality: 1.0, explained: 1.0 };
        for batch in [0, 1, 4, 8] {
            assert_eq!(agreement_where(batch, |_| false), own, "batch {batch}");
            let fitted = agreement_where(batch, |sample| !is_held_out(sample));
            assert_eq!(fitted, own, "batch {batch}");
            let held_out = agreement_where(batch, is_held_out);
            assert!(held_out.explained < 0.5, "batch {batch}: {held_out:?}");
        }
    }
}
