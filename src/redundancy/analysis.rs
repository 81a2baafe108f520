//! `analyze`: every layer's spectrum, every layer's channel graph, and the pairs of layers, in one report.

use std::collections::{BTreeMap, BTreeSet};

use faer::Mat;
use serde::Serialize;

use super::graph::{
    Certificate, Edge, Extent, Metric, RedundancyGraph, StatesFrom, channel_states, response_graph,
    spectral_graph,
};
use super::kept::{self, Kept};
use super::layer_pairs::{Identical, LayerPair};
use super::lineage::{Known, Origin};
use super::{Cluster, lineage, pairs, response_value};
use crate::coupling::couple;
use crate::limits;
use crate::onnx::{Engine, ExecError, Graph, Model, OnnxError, Operator, Shapes, Tensor};
use crate::spectra::response::{ChannelMoments, Probe, Response, measure};
use crate::spectra::{
    Augment, Drift, Layer, PassedOver, Spectrum, Store, effective_rank, energy_rank, layers,
    numerical_rank, singular, stable_rank,
};
use crate::units::Digest;

/// Version of the report's layout.
pub const FORMAT: u32 = 1;

/// Share of ‖W‖_F² by which the energy rank counts.
pub const ENERGY: f64 = 0.99;

/// How a model is analysed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Options {
    pub augment: Augment,
    /// Channels are near each other up to this distance, radians.
    pub threshold: f64,
}

/// What a run on samples needs.
pub struct Calibrated<'a> {
    pub engine: &'a dyn Engine,
    /// Where the samples come from: `file`, `live` or `synthetic`.
    pub source: &'a str,
    pub samples: usize,
    pub batches: &'a [BTreeMap<String, Tensor>],
}

/// How far an analysis is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress<'a> {
    pub stage: &'static str,
    pub done: usize,
    pub total: usize,
    /// The layer at work, or nothing.
    pub at: &'a str,
}

/// Why a model could not be analysed.
#[derive(Debug, thiserror::Error)]
pub enum AnalyzeError {
    #[error("the model cannot be read")]
    Onnx(#[from] OnnxError),
    #[error("the calibration samples could not be run")]
    Exec(#[from] ExecError),
}

/// The report.
#[derive(Debug, Clone, Serialize)]
pub struct Analysis {
    /// [`FORMAT`].
    pub format: u32,
    /// Version of the algorithm of the spectra.
    pub algorithm: u32,
    /// BLAKE3 of the model, see `onnx::Model::digest`.
    pub model: Digest,
    /// `affine` or `none`.
    pub augment: &'static str,
    pub threshold: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub calibration: Option<CalibrationInfo>,
    pub layers: Vec<LayerReport>,
    pub identical: Vec<Identical>,
    /// Pairs of layers of one shape, nearest first.
    pub pairs: Vec<LayerPair>,
    /// Pairs that were left out because there are too many.
    pub pairs_left_out: usize,
    /// Nodes that hold weights but have no matrix.
    pub passed_over: Vec<PassedOverNode>,
    /// Operators whose outputs may not be cut; absent where shapes were not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub frozen: Option<Vec<FrozenLayer>>,
    /// Spectra that were computed.
    pub computed: usize,
    /// Spectra that were found under their key.
    pub reused: usize,
    /// Spectra of an earlier version that stand in for those of this one.
    pub lent: usize,
}

/// The samples behind the response states.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CalibrationInfo {
    pub source: String,
    pub samples: usize,
    /// The engine that ran them.
    pub engine: String,
}

/// A node without a matrix.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PassedOverNode {
    pub name: String,
    pub op: String,
    pub because: String,
}

/// An operator whose outputs may not be cut.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FrozenLayer {
    pub name: String,
    pub channels: usize,
    pub because: String,
}

/// One layer.
#[derive(Debug, Clone, Serialize)]
pub struct LayerReport {
    pub name: String,
    pub op: String,
    /// Dimensions of the weight in the file.
    pub weight: Vec<usize>,
    /// Rows and columns of the matrix, the border of the augmentation included.
    pub matrix: (usize, usize),
    pub parameters: usize,
    pub channels: usize,
    /// Singular values, descending; empty where `problem` says why.
    pub values: Vec<f64>,
    /// Whether values below 1e-7·σ₁ are meaningful.
    pub exact: bool,
    pub sigma1: f64,
    pub effective_rank: f64,
    pub stable_rank: f64,
    /// Values that hold 99 % of ‖W‖_F².
    pub energy_rank: usize,
    /// Values that weights of the stored precision can tell from zero.
    pub numerical_rank: usize,
    /// Whether the spectrum was found under its key.
    pub reused: bool,
    /// Whether the spectrum is that of an earlier version, whose weights differ too little to matter.
    pub lent: bool,
    /// How far the layer's state may have moved since the spectrum was computed, radians, over all versions.
    #[serde(skip_serializing_if = "is_zero")]
    pub drift: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub graph: Option<ChannelReport>,
}

// The signature is serde's.
#[expect(clippy::trivially_copy_pass_by_ref)]
fn is_zero(value: &f64) -> bool {
    *value == 0.0
}

/// The graph over a layer's channels.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ChannelReport {
    pub by: Metric,
    /// The value whose activations were measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// What the spectral distances compare; absent where all channels are single rows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub states: Option<StatesFrom>,
    /// Share of channels that another one represents within the threshold.
    pub redundancy: f64,
    /// Median over the channels of the distance to the nearest other one, radians.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nearest: Option<f64>,
    /// Principal directions that hold 99 % of the variance of the channels' responses, all scaled to unit
    /// variance: how many channels there would be if each one said something new.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub directions: Option<usize>,
    pub clusters: Vec<Cluster>,
    pub certificates: Vec<Certificate>,
    /// Nearest pairs, up to [`limits::REPORT_REACH`].
    pub edges: Vec<Edge>,
    pub edges_left_out: usize,
}

/// What may stand beside a model.
#[derive(Clone, Copy, Default)]
pub struct Beside<'a> {
    /// Needed to say what is frozen.
    pub shapes: Option<&'a Shapes>,
    /// Needed for response states.
    pub calibrated: Option<&'a Calibrated<'a>>,
    /// An earlier version, which lends its spectra to layers that have hardly changed.
    pub earlier: Option<&'a Model>,
}

/// Analyses a model. Finished spectra go to `store` one by one, so that an interrupted run goes on where it
/// stopped.
///
/// # Errors
/// Where the model's weights cannot be read or the samples cannot be run.
pub fn analyze(
    model: &Model,
    options: &Options,
    store: &mut dyn Store,
    beside: &Beside,
    progress: &mut dyn FnMut(Progress),
) -> Result<Analysis, AnalyzeError> {
    let Beside { shapes, calibrated, earlier } = *beside;
    let graph = Graph::new(model);
    let (found, passed) = layers(&graph);
    let mut at = |done: usize, at: &str| {
        progress(Progress { stage: "spectra", done, total: found.len(), at });
    };
    let known = lineage::spectra(&graph, &found, earlier, options, store, &mut at)?;
    let reports = found.iter().zip(known).map(|(layer, known)| layer_report(&graph, layer, known));
    let mut reports: Vec<LayerReport> = reports.collect();
    let responses = match calibrated {
        Some(calibrated) => responses(&graph, &found, calibrated, progress)?,
        None => BTreeMap::new(),
    };
    let mut kept = Kept::open(&found, options, calibrated.is_some(), store);
    for (done, (layer, report)) in found.iter().zip(&mut reports).enumerate() {
        progress(Progress { stage: "graphs", done, total: found.len(), at: &layer.name });
        report.graph = channel_report(&graph, &found, layer, &responses, options, &mut kept)?;
    }
    kept.close(store);
    let (mut near, pairs_left_out) = pairs::nearest(&found, &reports);
    if let Some(calibrated) = calibrated {
        pairs::compare(&graph, &found, &mut near, calibrated, progress)?;
    }
    let reused = reports.iter().filter(|report| report.reused).count();
    let lent = reports.iter().filter(|report| report.lent).count();
    let there = reports.iter().filter(|report| !report.values.is_empty()).count();
    let computed = there - reused - lent;
    Ok(Analysis {
        format: FORMAT,
        algorithm: crate::spectra::ALGORITHM,
        model: graph.model_digest()?,
        augment: match options.augment {
            Augment::Affine => "affine",
            Augment::None => "none",
        },
        threshold: options.threshold,
        calibration: calibrated.map(|c| CalibrationInfo {
            source: c.source.to_owned(),
            samples: c.samples,
            engine: c.engine.identity(),
        }),
        identical: pairs::identical(&graph, &found)?,
        pairs: near,
        pairs_left_out,
        passed_over: passed.into_iter().map(passed_over).collect(),
        frozen: shapes.map(|shapes| frozen(&graph, shapes)),
        layers: reports,
        computed,
        reused,
        lent,
    })
}

fn passed_over(node: PassedOver) -> PassedOverNode {
    PassedOverNode { name: node.name, op: node.op, because: node.because.to_string() }
}

fn frozen(graph: &Graph, shapes: &Shapes) -> Vec<FrozenLayer> {
    let one = |frozen: crate::coupling::Frozen| FrozenLayer {
        name: frozen.what,
        channels: frozen.width,
        because: frozen.because.to_string(),
    };
    couple(graph, shapes).frozen.into_iter().map(one).collect()
}

fn layer_report(graph: &Graph, layer: &Layer, known: Known) -> LayerReport {
    let no_spectrum =
        || Spectrum { values: Vec::new(), shape: (0, 0), exact: false, drift: Drift::default() };
    let (spectrum, problem) = match known.spectrum {
        Ok(spectrum) => (spectrum, None),
        Err(problem) => (no_spectrum(), Some(problem)),
    };
    let values = &spectrum.values;
    LayerReport {
        name: layer.name.clone(),
        op: layer.op.clone(),
        weight: layer.dims.clone(),
        matrix: spectrum.shape,
        parameters: layer.parameters(graph),
        channels: layer.channels,
        exact: spectrum.exact,
        sigma1: values.first().copied().unwrap_or_default(),
        effective_rank: effective_rank(values),
        stable_rank: stable_rank(values),
        energy_rank: energy_rank(values, ENERGY),
        numerical_rank: numerical_rank(values, spectrum.shape, layer.epsilon()),
        values: spectrum.values,
        reused: known.origin == Origin::Kept,
        lent: known.origin == Origin::Lent,
        drift: spectrum.drift.bound(),
        problem,
        graph: None,
    }
}

/// The moments of every operator's response value.
fn responses(
    graph: &Graph,
    found: &[Layer],
    calibrated: &Calibrated,
    progress: &mut dyn FnMut(Progress),
) -> Result<BTreeMap<String, Response>, AnalyzeError> {
    let probe = |operator: &Operator| Probe {
        value: response_value(graph, operator),
        channels: operator.outputs,
        image: !operator.kernel.is_empty(),
    };
    let probes: BTreeSet<Probe> = found.iter().filter_map(Layer::operator).map(probe).collect();
    // In the order in which the values are computed, so that a pass needs little of the network.
    let mut probes: Vec<Probe> = probes.into_iter().collect();
    probes.sort_by_key(|probe| graph.producer(&probe.value));
    let mut done = |done: usize, total: usize| {
        progress(Progress { stage: "responses", done, total, at: "" });
    };
    let model = graph.model();
    Ok(measure(calibrated.engine, model, calibrated.batches, &probes, &mut done)?)
}

/// The report of a layer's channels, as it was kept or made afresh.
fn channel_report(
    graph: &Graph,
    found: &[Layer],
    layer: &Layer,
    responses: &BTreeMap<String, Response>,
    options: &Options,
    kept: &mut Kept,
) -> Result<Option<ChannelReport>, OnnxError> {
    let Some(operator) = layer.operator() else { return Ok(None) };
    let value = response_value(graph, operator);
    let (reader, response) = (only_reader(graph, found, &value), responses.get(&value));
    let key = kept::key(graph, operator, reader, response, options)?;
    let report = match kept.find(&key) {
        Some(report) => Some(report),
        None => {
            let made = fresh_report(graph, operator, reader, response, options);
            made.iter().for_each(|report| kept.keep(key, report));
            made
        }
    };
    Ok(report.map(|report| {
        let value = (report.by == Metric::Response).then_some(value);
        ChannelReport { value, ..report }
    }))
}

/// The report but for the name of the value that was measured. Whatever decides it goes into [`kept::key`].
fn fresh_report(
    graph: &Graph,
    operator: &Operator,
    reader: Option<&Operator>,
    response: Option<&Response>,
    options: &Options,
) -> Option<ChannelReport> {
    let extent = Extent { reach: limits::REPORT_REACH, edges: limits::REPORT_EDGES };
    let wide = operator.outputs > limits::RESPONSE_CHANNELS;
    let states = match channel_states(graph, operator, reader) {
        Ok(states) if !wide => states,
        _ => None,
    };
    let from = states.as_ref().map(|found| found.from);
    let states = states.as_ref().map(|found| found.states.as_slice());
    let made: RedundancyGraph = match (response, states) {
        (Some(response), states) => response_graph(response, states, options.threshold, extent),
        (None, Some(states)) => spectral_graph(states, options.threshold, extent),
        (None, None) => return None,
    };
    Some(ChannelReport {
        by: made.by,
        value: None,
        states: from,
        redundancy: made.certificates.len() as f64 / made.nodes.max(1) as f64,
        nearest: made.nearest,
        directions: response.and_then(|response| directions(&response.fit)),
        clusters: made.clusters,
        certificates: made.certificates,
        edges: made.edges,
        edges_left_out: made.left_out,
    })
}

/// Principal directions that hold [`ENERGY`] of the trace of the correlation matrix. `None` where it is too
/// wide to be decomposed in passing.
fn directions(moments: &ChannelMoments) -> Option<usize> {
    let alive: Vec<usize> = (0..moments.channels()).filter(|c| moments.norm(*c) > 0.0).collect();
    let n = alive.len();
    if n == 0 || n > limits::DIRECTION_CHANNELS {
        return None;
    }
    let correlation = Mat::from_fn(n, n, |i, j| {
        let (a, b) = (alive[i], alive[j]);
        moments.covariance(a, b) / (moments.norm(a) * moments.norm(b))
    });
    let mut shares = singular::eigenvalues(correlation.as_ref()).ok()?;
    shares.reverse();
    let roots: Vec<f64> = shares.iter().map(|share| share.max(0.0).sqrt()).collect();
    Some(energy_rank(&roots, ENERGY))
}

/// The one operator that reads `value`, if it is the only reader.
fn only_reader<'l>(graph: &Graph, found: &'l [Layer], value: &str) -> Option<&'l Operator> {
    let [_] = graph.uses(value) else { return None };
    found.iter().filter_map(Layer::operator).find(|operator| operator.input == value)
}
