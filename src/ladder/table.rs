//! How much time each cut saves on this box, measured on the part of the network that it changes. Entries
//! are kept by what decides the time (see [`super::segments::key`]), so that equal blocks are measured once
//! and a later version of the model hardly at all.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::segments::{Segment, key};
use super::timing::{Candidate, Timings};
use crate::coupling::{Block, Coupling, Group};
use crate::limits;
use crate::onnx::{
    DType, Engine, ExecError, Graph, Model, NodeId, OnnxError, Operator, Patch, Shapes, Tensor, Use,
};
use crate::spectra::activations::{Activations, Batch};
use crate::surgery::low_rank::{Factors, split};
use crate::surgery::{self, Cut, CutError};

/// Savings by segment: kept width (or rank) → microseconds saved. Width 0 stands for the whole segment's time.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct LatencyTable {
    /// Device, execution provider and runtime version; entries of another engine are worth nothing.
    pub engine: String,
    entries: BTreeMap<String, BTreeMap<usize, f64>>,
}

/// Why a segment could not be timed.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    #[error("the runtime failed on a part of the network")]
    Exec(#[from] ExecError),
    #[error("a part of the network could not be taken out")]
    Onnx(#[from] OnnxError),
    #[error("a trial cut was refused")]
    Cut(#[from] CutError),
}

/// Measures what cuts save, on one sample's real activations.
pub struct Stopwatch<'a> {
    pub engine: &'a dyn Engine,
    pub graph: &'a Graph<'a>,
    pub coupling: &'a Coupling,
    pub shapes: &'a Shapes,
    pub table: &'a mut LatencyTable,
    known: Activations<'a>,
}

impl<'a> Stopwatch<'a> {
    /// `sample` is what one request brings. Entries of `table` from another engine are dropped.
    pub fn new(
        engine: &'a dyn Engine,
        graph: &'a Graph<'a>,
        coupling: &'a Coupling,
        shapes: &'a Shapes,
        table: &'a mut LatencyTable,
        sample: &Batch,
    ) -> Self {
        if table.engine != engine.identity() {
            *table = LatencyTable { engine: engine.identity(), entries: BTreeMap::new() };
        }
        let known = Activations::new(engine, std::slice::from_ref(sample));
        Self { engine, graph, coupling, shapes, table, known }
    }

    /// Microseconds saved when `group` keeps each of `widths` channels.
    ///
    /// # Errors
    /// Where the segment cannot be cut out or run.
    pub fn group(&mut self, group: &Group, widths: &[usize]) -> Result<Vec<f64>, TableError> {
        let segment = Segment::around(self.graph, &self.nodes_of(group));
        let dense = self.part(&segment, self.graph.model())?;
        let name = format!("{}/{}", key(&dense), group.width);
        let (coupling, shapes) = (self.coupling, self.shapes);
        self.savings(name, &segment, dense, widths, &|graph, width| {
            let cut = Cut { removed: [(group.id, (width..group.width).collect())].into() };
            Ok(surgery::apply(graph.model(), coupling, shapes, &cut)?)
        })
    }

    /// Microseconds saved when `operator` stands in two of each of `ranks`.
    ///
    /// # Errors
    /// As [`Stopwatch::group`].
    pub fn ranks(&mut self, operator: &Operator, ranks: &[usize]) -> Result<Vec<f64>, TableError> {
        let segment = Segment::around(self.graph, &[operator.node].into());
        let dense = self.part(&segment, self.graph.model())?;
        let name = format!("{}/rank", key(&dense));
        self.savings(name, &segment, dense, ranks, &|graph, rank| {
            let weight = operator.matrix(graph)?;
            let mut patch = Patch::default();
            split(graph, operator, &Factors::sketch(&weight, rank), &mut patch)?;
            Ok(patch.apply(graph.model())?)
        })
    }

    /// Microseconds that a segment saves when it is cut to each of `sizes`; those under `name` in the table are
    /// known, the others are measured. `cut` makes the whole model with such a cut.
    fn savings(
        &mut self,
        name: String,
        segment: &Segment,
        dense: Model,
        sizes: &[usize],
        cut: &dyn Fn(&Graph, usize) -> Result<Model, TableError>,
    ) -> Result<Vec<f64>, TableError> {
        let known = self.table.entries.get(&name).cloned().unwrap_or_default();
        let missing: Vec<usize> =
            sizes.iter().copied().filter(|size| !known.contains_key(size)).collect();
        if !missing.is_empty() {
            let mut parts = vec![dense];
            for size in &missing {
                let model = cut(self.graph, *size)?;
                parts.push(self.part(segment, &model)?);
            }
            let timings = self.time(segment, parts)?;
            let entry = self.table.entries.entry(name.clone()).or_default();
            let savings =
                missing.iter().enumerate().map(|(i, size)| (*size, timings.saving(i + 1)));
            entry.extend(savings);
        }
        let entry = self.table.entries.get(&name);
        let saving = |size| entry.and_then(|entry| entry.get(size)).copied().unwrap_or(f64::NAN);
        Ok(sizes.iter().map(saving).collect())
    }

    /// Microseconds that a residual block takes: what its removal saves.
    ///
    /// # Errors
    /// As [`Stopwatch::group`].
    pub fn block(&mut self, block: &Block) -> Result<f64, TableError> {
        // A normalisation that adds stays as one that does not.
        let add = Some(block.add).filter(|_| !block.norm);
        let nodes: BTreeSet<NodeId> = block.branch.iter().copied().chain(add).collect();
        let segment = Segment::around(self.graph, &nodes);
        let part = self.part(&segment, self.graph.model())?;
        let name = format!("{}/block", key(&part));
        if let Some(known) = self.table.entries.get(&name).and_then(|entry| entry.get(&0)) {
            return Ok(*known);
        }
        let taken = self.time(&segment, vec![part])?.percentile(0, 0.5);
        self.table.entries.entry(name).or_default().insert(0, taken);
        Ok(taken)
    }

    /// Every node that reads or writes a value whose channels belong to the group, and those that compute
    /// the sizes by which such a node shapes its output: a cut changes the numbers in them.
    fn nodes_of(&self, group: &Group) -> BTreeSet<NodeId> {
        let mut nodes = BTreeSet::new();
        for place in group.places.iter().filter(|place| !place.constant) {
            nodes.extend(self.graph.producer(&place.value));
            nodes.extend(self.graph.uses(&place.value).iter().filter_map(|used| match used {
                Use::Input { node, .. } | Use::Captured { node } => Some(*node),
                Use::Output => None,
            }));
        }
        let mut open: Vec<NodeId> = nodes.iter().copied().collect();
        while let Some(node) = open.pop() {
            let values = self.graph.node(node).input.iter().filter(|value| self.is_size(value));
            let producers = values.filter_map(|value| self.graph.producer(value));
            open.extend(producers.filter(|producer| nodes.insert(*producer)));
        }
        nodes
    }

    /// Whether a value is a number or a list of numbers, as sizes, axes and bounds are.
    fn is_size(&self, value: &str) -> bool {
        self.shapes.get(value).is_some_and(|found| {
            matches!(found.dtype, DType::I32 | DType::I64) && found.shape.len() <= 1
        })
    }

    fn part(&mut self, segment: &Segment, model: &Model) -> Result<Model, TableError> {
        let names: Vec<&str> = segment.inputs.iter().map(String::as_str).collect();
        self.known.fetch(self.graph.model(), &names)?;
        Ok(segment.of(model, &tensors(&self.known, segment))?)
    }

    fn time(&self, segment: &Segment, parts: Vec<Model>) -> Result<Timings, TableError> {
        let tensors = tensors(&self.known, segment);
        let inputs: Vec<(&str, &Tensor)> =
            segment.inputs.iter().map(String::as_str).zip(tensors).collect();
        let mut candidates = parts
            .iter()
            .map(|part| Ok(Candidate { session: self.engine.open(part)?, inputs: inputs.clone() }))
            .collect::<Result<Vec<_>, ExecError>>()?;
        let seconds = limits::SEGMENT_SECONDS * candidates.len() as f64;
        Ok(Timings::take(&mut candidates, seconds)?)
    }
}

fn tensors<'t>(known: &'t Activations, segment: &Segment) -> Vec<&'t Tensor> {
    segment.inputs.iter().filter_map(|name| known.get(name)?.first()).collect()
}
