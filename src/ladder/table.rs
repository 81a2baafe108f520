//! How much time each cut saves on this box, measured on the part of the network that it changes. Entries
//! are kept by the engine that measured and by what decides the time (see [`super::segments::key`]), so that
//! equal blocks are measured once and a later version of the model hardly at all.

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

/// Savings by engine and segment: kept width (or rank) → microseconds saved. Width 0 stands for the whole
/// segment's time. Bounded: what was not used for longest goes first.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct LatencyTable {
    /// By device, execution provider and runtime version (see `Engine::identity`): one engine's latencies say
    /// nothing of another's.
    engines: BTreeMap<String, Measured>,
    /// Counts the builds that used the table.
    builds: u64,
    /// Segments of which something was known when they were asked for, since the table was read.
    #[serde(skip)]
    found: usize,
}

/// What one engine measured.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct Measured {
    /// The last build that used it.
    used: u64,
    segments: BTreeMap<String, Entry>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct Entry {
    used: u64,
    savings: BTreeMap<usize, f64>,
}

/// What was asked of a table makes no difference.
impl PartialEq for LatencyTable {
    fn eq(&self, other: &Self) -> bool {
        self.engines == other.engines && self.builds == other.builds
    }
}

impl LatencyTable {
    /// Begins a build on `engine`: its entries are the last to go.
    fn begin(&mut self, engine: &str) {
        self.builds += 1;
        self.engines.entry(engine.to_owned()).or_default().used = self.builds;
        while self.engines.len() > limits::LATENCY_ENGINES {
            let oldest = self.engines.iter().min_by_key(|(_, measured)| measured.used);
            let Some(oldest) = oldest.map(|(name, _)| name.clone()) else { break };
            self.engines.remove(&oldest);
        }
    }

    /// What is known of a segment.
    fn known(&mut self, engine: &str, segment: &str) -> BTreeMap<usize, f64> {
        let found = self.engines.get_mut(engine).and_then(|all| all.segments.get_mut(segment));
        let Some(entry) = found else { return BTreeMap::new() };
        entry.used = self.builds;
        self.found += 1;
        entry.savings.clone()
    }

    fn add(&mut self, engine: &str, segment: &str, savings: &BTreeMap<usize, f64>) {
        let used = self.builds;
        let all = &mut self.engines.entry(engine.to_owned()).or_default().segments;
        let entry = all.entry(segment.to_owned()).or_default();
        entry.used = used;
        // A file cannot hold anything else.
        entry.savings.extend(savings.iter().filter(|(_, saving)| saving.is_finite()));
        while all.len() > limits::LATENCY_SEGMENTS {
            let oldest = all.iter().filter(|(name, _)| *name != segment);
            let oldest = oldest.min_by_key(|(_, entry)| entry.used);
            let Some(oldest) = oldest.map(|(name, _)| name.clone()) else { break };
            all.remove(&oldest);
        }
    }

    /// How often something was known of a segment: what was not measured again, or not all of it.
    pub fn found(&self) -> usize {
        self.found
    }

    /// Number of segments that an engine measured.
    pub fn segments(&self, engine: &str) -> usize {
        self.engines.get(engine).map_or(0, |measured| measured.segments.len())
    }
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
    identity: String,
    known: Activations<'a>,
}

impl<'a> Stopwatch<'a> {
    /// `sample` is what one request brings.
    pub fn new(
        engine: &'a dyn Engine,
        graph: &'a Graph<'a>,
        coupling: &'a Coupling,
        shapes: &'a Shapes,
        table: &'a mut LatencyTable,
        sample: &Batch,
    ) -> Self {
        let identity = engine.identity();
        table.begin(&identity);
        let known = Activations::new(engine, std::slice::from_ref(sample));
        Self { engine, identity, graph, coupling, shapes, table, known }
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
        let mut known = self.table.known(&self.identity, &name);
        let missing: Vec<usize> =
            sizes.iter().copied().filter(|size| !known.contains_key(size)).collect();
        // A stream's segment is nearly the whole network: not all of its cuts are loaded at one time.
        let together = (limits::SEGMENT_BYTES / dense.inline_size()?.max(1)).max(1);
        for some in missing.chunks(together as usize) {
            let mut parts = vec![dense.clone()];
            for size in some {
                let model = cut(self.graph, *size)?;
                parts.push(self.part(segment, &model)?);
            }
            let timings = self.time(segment, parts)?;
            known.extend(some.iter().enumerate().map(|(i, size)| (*size, timings.saving(i + 1))));
        }
        if !missing.is_empty() {
            self.table.add(&self.identity, &name, &known);
        }
        Ok(sizes.iter().map(|size| known.get(size).copied().unwrap_or(f64::NAN)).collect())
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
        if let Some(known) = self.table.known(&self.identity, &name).get(&0) {
            return Ok(*known);
        }
        let taken = self.time(&segment, vec![part])?.percentile(0, 0.5);
        self.table.add(&self.identity, &name, &[(0, taken)].into());
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coupling::{blocks, couple};
    use crate::ladder::fakes::{FakeEngine, Layer, chain};

    fn mlp(hidden: usize) -> Model {
        let layers = [Layer::product(4, hidden), Layer::op("Relu"), Layer::product(hidden, 3)];
        chain(17, DType::F32, "v", 1, &layers)
    }

    fn engine(name: &str) -> FakeEngine {
        FakeEngine { name: name.to_owned(), ..FakeEngine::default() }
    }

    /// Times the cuts of the first group of `model`; also how many models were timed for it.
    fn savings(
        engine: &FakeEngine,
        model: &Model,
        table: &mut LatencyTable,
        widths: &[usize],
    ) -> (Vec<f64>, usize) {
        let graph = Graph::new(model);
        let shapes = engine.shapes(model, &BTreeMap::new()).unwrap();
        let coupling = couple(&graph, &shapes);
        let sample = [("v0".to_owned(), Tensor::from_f32(&[1, 4], &[1.0; 4]))].into();
        let before = engine.timed.get();
        let mut watch = Stopwatch::new(engine, &graph, &coupling, &shapes, table, &sample);
        let found = watch.group(&coupling.groups[0], widths).unwrap();
        (found, engine.timed.get() - before)
    }

    #[test]
    fn a_cut_saves_what_the_clock_says_and_is_timed_once() {
        let (cpu, mut table) = (engine("cpu"), LatencyTable::default());
        let (found, timed) = savings(&cpu, &mlp(16), &mut table, &[4, 8]);
        // Seven weights a neuron, each of five nanoseconds.
        for (saving, gone) in found.iter().zip([12.0, 8.0]) {
            assert!((saving - gone * 0.035).abs() < 1e-9, "{found:?}");
        }
        assert_eq!(timed, 3, "dense and two cuts");
        let (again, timed) = savings(&cpu, &mlp(16), &mut table, &[8, 4]);
        assert_eq!((again, timed), (vec![found[1], found[0]], 0));
        let (more, timed) = savings(&cpu, &mlp(16), &mut table, &[4, 12]);
        assert_eq!((more[0], timed), (found[0], 2), "only what is missing is timed");
        assert_eq!(savings(&cpu, &mlp(20), &mut table, &[4]).1, 2, "another segment");
    }

    #[test]
    fn what_one_engine_measured_outlives_builds_on_another() {
        let (cpu, npu, mut table) = (engine("cpu"), engine("npu"), LatencyTable::default());
        let (found, _) = savings(&cpu, &mlp(16), &mut table, &[4, 8]);
        assert_eq!(savings(&npu, &mlp(16), &mut table, &[4]).1, 2, "it says nothing of another");
        assert_eq!(savings(&cpu, &mlp(16), &mut table, &[4, 8]), (found, 0));
        assert_eq!((table.segments("cpu"), table.segments("npu")), (1, 1));
        let text = serde_json::to_string(&table).unwrap();
        let mut read: LatencyTable = serde_json::from_str(&text).unwrap();
        assert_eq!(read, table);
        assert_eq!(savings(&npu, &mlp(16), &mut read, &[4]).1, 0);
    }

    #[test]
    fn a_block_takes_the_time_of_its_branch_and_its_addition() {
        let layers = [
            Layer::product(4, 6),
            Layer::op("Relu"),
            Layer::product(6, 6),
            Layer::op("Add").also_reads(2),
            Layer::product(6, 3),
        ];
        let (model, cpu) = (chain(17, DType::F32, "v", 1, &layers), engine("cpu"));
        let graph = Graph::new(&model);
        let shapes = cpu.shapes(&model, &BTreeMap::new()).unwrap();
        let coupling = couple(&graph, &shapes);
        let found = blocks(&graph, &coupling, &shapes);
        assert_eq!(found.len(), 1);
        let sample = [("v0".to_owned(), Tensor::from_f32(&[1, 4], &[1.0; 4]))].into();
        let mut table = LatencyTable::default();
        let mut watch = Stopwatch::new(&cpu, &graph, &coupling, &shapes, &mut table, &sample);
        let taken = watch.block(&found[0]).unwrap();
        assert!((taken - (2.0 * 20.0 + 36.0 * 0.005)).abs() < 1e-9, "{taken}");
        let timed = cpu.timed.get();
        assert_eq!(watch.block(&found[0]).unwrap(), taken);
        assert_eq!(cpu.timed.get(), timed);
    }

    #[test]
    fn what_was_not_used_for_longest_goes_first() {
        let mut table = LatencyTable::default();
        for engine in 0..=limits::LATENCY_ENGINES {
            table.begin(&engine.to_string());
            table.add(&engine.to_string(), "s", &[(1, 1.0)].into());
            table.begin("0");
        }
        let last = limits::LATENCY_ENGINES.to_string();
        let left = ["0", "1", "2", last.as_str()].map(|engine| table.segments(engine));
        assert_eq!(left, [1, 0, 1, 1], "the first one was used again and again");

        let mut table = LatencyTable::default();
        table.begin("cpu");
        let name = |number: usize| format!("{number:06}");
        (0..limits::LATENCY_SEGMENTS).for_each(|n| table.add("cpu", &name(n), &[(1, 1.0)].into()));
        table.begin("cpu");
        assert_eq!((table.known("cpu", "no such"), table.found()), (BTreeMap::new(), 0));
        assert_eq!(table.known("cpu", &name(0)), [(1, 1.0)].into());
        assert_eq!(table.found(), 1);
        table.add("cpu", &name(limits::LATENCY_SEGMENTS), &[(1, 1.0), (2, f64::NAN)].into());
        assert_eq!(table.segments("cpu"), limits::LATENCY_SEGMENTS);
        let last = name(limits::LATENCY_SEGMENTS);
        let left = [name(0), name(1), last].map(|name| table.known("cpu", &name).len());
        assert_eq!(left, [1, 0, 1]);
    }

    #[test]
    fn a_table_of_another_layout_is_none() {
        let former = r#"{"engine": "cpu", "entries": {"s/16": {"8": 1.5}}}"#;
        assert!(serde_json::from_str::<LatencyTable>(former).is_err());
    }
}
