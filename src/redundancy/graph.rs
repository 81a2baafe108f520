//! The graph over the channels of one layer.

use serde::Serialize;

use super::cover::{Cluster, cover};
use crate::onnx::{Graph, OnnxError, Operator};
use crate::spectra::response::{ChannelMoments, Response};
use crate::spectra::{SpectraError, State, tiny};

/// Which distance decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Metric {
    /// arccos|corr| of the response states: the error of substituting follows from it.
    Response,
    /// Fubini–Study distance of the channels' spectra: says which channels look alike up to rotations,
    /// not which can replace each other.
    Spectral,
}

/// Two operators and their distances in radians.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Edge {
    pub a: usize,
    pub b: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub d_fs: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub d_response: Option<f64>,
}

/// Why one channel can go.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Certificate {
    pub removed: usize,
    pub represented_by: usize,
    /// Fubini–Study distance of the two channels' spectra.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub d_fs: Option<f64>,
    /// Angle between the two response states.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub d_response: Option<f64>,
    /// ‖h‖·sin d_response: root-mean-square error of the best affine substitute on the samples it was fitted
    /// on, in the unit of the activation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bound: Option<f64>,
    /// The bound as a share of ‖h‖.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub relative: Option<f64>,
    /// The error of the same substitute on samples that the fit did not see.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub measured: Option<f64>,
}

/// The channels of a layer, who is near whom, and who stands for whom.
#[derive(Debug, Clone, PartialEq)]
pub struct RedundancyGraph {
    /// Number of channels.
    pub nodes: usize,
    pub by: Metric,
    /// Clusters were made at this distance.
    pub threshold: f64,
    /// Edges up to the distance asked for, nearest first.
    pub edges: Vec<Edge>,
    /// Edges within that distance that were left out because there are too many.
    pub left_out: usize,
    /// Median over the channels of the distance to the nearest other one; `None` below two channels.
    pub nearest: Option<f64>,
    pub clusters: Vec<Cluster>,
    /// One for every channel that is represented by another, ascending.
    pub certificates: Vec<Certificate>,
}

/// How much of a graph is kept.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Extent {
    /// Edges up to this distance, radians.
    pub reach: f64,
    /// Most edges.
    pub edges: usize,
}

/// The graph by response states, the spectral distance as second attribute where `states` are given.
pub fn response_graph(
    response: &Response,
    states: Option<&[Option<State>]>,
    threshold: f64,
    extent: Extent,
) -> RedundancyGraph {
    let fit = &response.fit;
    let d_fs = |i: usize, j: usize| spectral_distance(states?, i, j);
    let cost = |i: usize, j: usize| fit.substitution_error(i, j).powi(2);
    let distances = Distances::of(fit.channels(), |i, j| symmetric(fit, i, j));
    let distance = |i: usize, j: usize| distances.between(i, j);
    let clusters = cover(fit.channels(), threshold, distance, cost);
    let certify = |removed: usize, by: usize| {
        let bound = fit.substitution_error(removed, by);
        let norm = fit.norm(removed);
        let checked = response.held_out.rows() > 0;
        let substitute = fit.substitute(removed, by);
        Certificate {
            removed,
            represented_by: by,
            d_fs: d_fs(removed, by),
            d_response: Some(fit.distance(removed, by)),
            bound: Some(bound),
            relative: Some(if norm > 0.0 { bound / norm } else { 0.0 }),
            measured: checked.then(|| response.held_out.error_of(removed, by, substitute)),
        }
    };
    let edge = |a: usize, b: usize, d: f64| Edge { a, b, d_fs: d_fs(a, b), d_response: Some(d) };
    let (edges, left_out) = edges(fit.channels(), extent, distance, edge);
    let certificates = certificates(&clusters, certify);
    let nodes = fit.channels();
    let nearest = median_nearest(nodes, distance);
    let by = Metric::Response;
    RedundancyGraph { nodes, by, threshold, edges, left_out, nearest, clusters, certificates }
}

/// The distance of a pair for clusters. A channel that does not vary is a constant, which folds into its
/// readers: it needs no representative and can be none, so such channels are near each other and nobody else.
fn symmetric(fit: &ChannelMoments, i: usize, j: usize) -> f64 {
    match (fit.norm(i) > 0.0, fit.norm(j) > 0.0) {
        (true, true) => fit.distance(i, j),
        (false, false) => 0.0,
        (true, false) | (false, true) => f64::INFINITY,
    }
}

/// The graph by spectra alone, at d_FS. Channels without a state (all weights zero) are near nobody.
pub fn spectral_graph(states: &[Option<State>], threshold: f64, extent: Extent) -> RedundancyGraph {
    let far = f64::INFINITY;
    let distances =
        Distances::of(states.len(), |i, j| spectral_distance(states, i, j).unwrap_or(far));
    let distance = |i: usize, j: usize| distances.between(i, j);
    let clusters = cover(states.len(), threshold, distance, distance);
    let certify = |removed: usize, by: usize| Certificate {
        removed,
        represented_by: by,
        d_fs: spectral_distance(states, removed, by),
        d_response: None,
        bound: None,
        relative: None,
        measured: None,
    };
    let edge = |a: usize, b: usize, d: f64| Edge { a, b, d_fs: Some(d), d_response: None };
    let (edges, left_out) = edges(states.len(), extent, distance, edge);
    let certificates = certificates(&clusters, certify);
    let (nodes, by) = (states.len(), Metric::Spectral);
    let nearest = median_nearest(nodes, distance);
    RedundancyGraph { nodes, by, threshold, edges, left_out, nearest, clusters, certificates }
}

/// The distances of all pairs, which clusters, edges and nearest neighbours all ask for. A channel has no
/// distance to itself.
struct Distances {
    /// Row by row what stands below the diagonal.
    below: Vec<f64>,
}

impl Distances {
    fn of(n: usize, distance: impl Fn(usize, usize) -> f64) -> Self {
        let row = |i: usize| (0..i).map(move |j| (j, i));
        Self { below: (0..n).flat_map(row).map(|(j, i)| distance(j, i)).collect() }
    }

    fn between(&self, i: usize, j: usize) -> f64 {
        let (low, high) = (i.min(j), i.max(j));
        if low == high { 0.0 } else { self.below[high * (high - 1) / 2 + low] }
    }
}

fn spectral_distance(states: &[Option<State>], i: usize, j: usize) -> Option<f64> {
    Some(states.get(i)?.as_ref()?.fubini_study(states.get(j)?.as_ref()?))
}

fn certificates(
    clusters: &[Cluster],
    certify: impl Fn(usize, usize) -> Certificate,
) -> Vec<Certificate> {
    let mut all: Vec<Certificate> = clusters
        .iter()
        .flat_map(|cluster| cluster.members.iter().map(|member| (*member, cluster.representative)))
        .filter(|(member, representative)| member != representative)
        .map(|(member, representative)| certify(member, representative))
        .collect();
    all.sort_by_key(|certificate| certificate.removed);
    all
}

fn median_nearest(n: usize, distance: impl Fn(usize, usize) -> f64) -> Option<f64> {
    let nearest = |i: usize| {
        let others = (0..n).filter(|j| *j != i).map(|j| distance(i, j));
        others.min_by(f64::total_cmp)
    };
    let mut all: Vec<f64> = (0..n).filter_map(nearest).filter(|d| d.is_finite()).collect();
    all.sort_by(f64::total_cmp);
    all.get(all.len() / 2).copied()
}

/// The nearest pairs within reach, and how many more there are.
fn edges(
    n: usize,
    extent: Extent,
    distance: impl Fn(usize, usize) -> f64,
    edge: impl Fn(usize, usize, f64) -> Edge,
) -> (Vec<Edge>, usize) {
    // Kept to twice the bound while gathering: the far half is dropped whenever it is reached.
    let mut near: Vec<(f64, usize, usize)> = Vec::new();
    let mut total = 0;
    let order = |a: &(f64, usize, usize), b: &(f64, usize, usize)| {
        a.0.total_cmp(&b.0).then((a.1, a.2).cmp(&(b.1, b.2)))
    };
    for i in 0..n {
        for j in i + 1..n {
            let d = distance(i, j);
            if d <= extent.reach {
                total += 1;
                near.push((d, i, j));
            }
        }
        if near.len() > 2 * extent.edges.max(n) {
            near.sort_by(order);
            near.truncate(extent.edges);
        }
    }
    near.sort_by(order);
    near.truncate(extent.edges);
    let kept: Vec<Edge> = near.into_iter().map(|(d, i, j)| edge(i, j, d)).collect();
    let left_out = total - kept.len();
    (kept, left_out)
}

/// What the channels' spectra are taken from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum StatesFrom {
    /// The channel's own kernels, as inputs × taps.
    Kernels,
    /// The kernels with which the one reader of the layer takes the channel in, as outputs × taps: the
    /// channel's own weights are a single row, and single rows are all at distance 0.
    Reader,
}

/// The spectral states of a layer's channels.
#[derive(Debug, Clone, PartialEq)]
pub struct ChannelStates {
    pub from: StatesFrom,
    /// One a channel; `None` for a channel whose weights are all zero.
    pub states: Vec<Option<State>>,
}

/// Spectral states of a layer's output channels; `None` where neither the layer nor its `reader` (the
/// operator that alone reads the channels one by one, if there is one) has kernels with more than one tap.
///
/// # Errors
/// Where a weight cannot be read or is no number.
pub fn channel_states(
    graph: &Graph,
    operator: &Operator,
    reader: Option<&Operator>,
) -> Result<Option<ChannelStates>, SpectraError> {
    let per_group = operator.inputs / operator.group();
    if operator.taps() > 1 && per_group > 1 {
        let data = operator.matrix(graph)?.data;
        let states = states(&data, per_group, operator.taps())?;
        return Ok(Some(ChannelStates { from: StatesFrom::Kernels, states }));
    }
    let fits = |reader: &&Operator| {
        reader.taps() > 1 && reader.group() == 1 && reader.inputs == operator.outputs
    };
    let Some(reader) = reader.filter(fits) else { return Ok(None) };
    let data = by_input(graph, reader)?;
    let states = states(&data, reader.outputs, reader.taps())?;
    Ok(Some(ChannelStates { from: StatesFrom::Reader, states }))
}

fn states(data: &[f32], rows: usize, cols: usize) -> Result<Vec<Option<State>>, SpectraError> {
    Ok(tiny::batch(data, rows, cols)?.iter().map(|values| State::of(values)).collect())
}

/// The operator's kernels as inputs × outputs × taps.
fn by_input(graph: &Graph, reader: &Operator) -> Result<Vec<f32>, OnnxError> {
    let matrix = reader.matrix(graph)?;
    let taps = reader.taps();
    let mut data = Vec::with_capacity(matrix.data.len());
    for input in 0..reader.inputs {
        for row in matrix.data.chunks_exact(matrix.cols) {
            data.extend_from_slice(&row[input * taps..][..taps]);
        }
    }
    Ok(data)
}
