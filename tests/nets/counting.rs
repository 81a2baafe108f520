//! ONNX Runtime with a clock of its own: what a model takes is counted, not measured, so that what a ladder
//! chooses does not depend on the machine.

use std::collections::BTreeMap;
use std::time::Duration;

use blochd::ladder::calibration::{Samples, free_sizes, rows_of};
use blochd::ladder::manifest::CalibrationSource;
use blochd::ladder::report::macs;
use blochd::ladder::table::LatencyTable;
use blochd::ladder::task::{Ladder, Options, Task};
use blochd::onnx::{Engine, ExecError, Graph, Model, Session, Shapes, Tensor};
use blochd::redundancy::selection::Method;
use blochd::shell::engine::OrtEngine;
use blochd::spectra::activations::Batch;
use blochd::surgery::repair::Mode;

use super::models::Models;
use super::subject::{Subject, engine};

/// Nanoseconds for every node that computes something.
const NODE: u64 = 200;

pub struct Counting(pub OrtEngine);

struct Counted {
    inner: Box<dyn Session>,
    takes: Duration,
}

impl Engine for Counting {
    fn identity(&self) -> String {
        "counted".to_owned()
    }

    fn shapes(&self, model: &Model, fixed: &BTreeMap<String, usize>) -> Result<Shapes, ExecError> {
        self.0.shapes(model, fixed)
    }

    /// One request has one sample.
    fn open(&self, model: &Model) -> Result<Box<dyn Session>, ExecError> {
        let inputs = &model.graph().input;
        let free = free_sizes(model, &BTreeMap::new());
        assert!(free.is_empty() && !inputs.is_empty());
        let names = inputs.iter().flat_map(|input| input.name.clone());
        let symbols = (0..8).map(|axis| format!("free{axis}"));
        let fixed = names.chain(symbols).map(|name| (name, 1)).collect();
        let graph = Graph::new(model);
        let shapes = self.0.shapes(model, &fixed)?;
        let nodes = graph.nodes().iter().filter(|node| node.op_type.as_deref() != Some("Constant"));
        let takes = Duration::from_nanos(NODE * nodes.count() as u64 + macs(&graph, &shapes));
        Ok(Box::new(Counted { inner: self.0.open(model)?, takes }))
    }
}

impl Session for Counted {
    fn run(&mut self, inputs: &[(&str, &Tensor)]) -> Result<Vec<Tensor>, ExecError> {
        self.inner.run(inputs)
    }

    fn time(&mut self, _: &[(&str, &Tensor)], runs: usize) -> Result<Vec<Duration>, ExecError> {
        Ok(vec![self.takes; runs])
    }
}

/// One rung, of the first plan.
pub fn options(ratio: f64) -> Options {
    Options {
        ratios: vec![ratio],
        method: Method::Obs,
        importances: BTreeMap::new(),
        repair: Mode::Refit,
        depth: true,
        low_rank: true,
        align: None,
        trials: 0,
        work: None,
        seed: 0,
        floor: 0.5,
        seconds: 0.01,
    }
}

/// The ladder of a model from 200 random samples, and the rungs' models.
pub fn ladder(model: &Model, options: &Options) -> (Ladder, Vec<Model>) {
    let subject = Subject::new(model.clone(), &[("free0", 200)], 5);
    let all: Batch = subject.inputs.iter().cloned().collect();
    let first = all.iter().map(|(name, tensor)| {
        let one = rows_of(tensor, &[0]);
        (name.clone(), one)
    });
    let samples = Samples {
        source: CalibrationSource::File,
        count: 200,
        first: first.collect(),
        batches: vec![all],
    };
    let engine = Counting(engine());
    let task = Task { engine: &engine, model, samples: &samples, eval: None, options };
    let mut models = Models::default();
    let ladder = task.make(None, &mut LatencyTable::default(), &mut models).unwrap();
    (ladder, models.0)
}
