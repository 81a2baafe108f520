//! What every group would lose: its channels ranked, and the loss at every width, on the dense network.

use std::collections::{BTreeMap, BTreeSet};

use faer::Mat;

use super::felt::{Felt, variances};
use super::importance::Importances;
use super::packed::Packed;
use super::ranks::Ranked;
use super::seen::{Seen, block, channel_covariance};
use crate::coupling::{Block, Consumer, Group};
use crate::limits;
use crate::onnx::{Engine, ExecError, Graph, Model, NodeId, Operator, Tensor, operators};
use crate::redundancy::selection::{
    Method, Reader, Selection, along, by_chance, by_distance, by_score, obs,
};
use crate::spectra::State;
use crate::spectra::activations::{Activations, Batch};
use crate::spectra::moments::Moments;
use crate::spectra::rows::Geometry;
use crate::spectra::sampler::Sampler;
use crate::spectra::tiny::batch;
use crate::surgery::refit::{Affine, refit};
use crate::surgery::repair::{is_held_out, rows_wanted};
use crate::surgery::{plus, scale_after};

/// A group with its channels ranked.
#[derive(Debug, Clone)]
pub struct Scored {
    /// Order of removal, and the loss after each.
    pub selection: Selection,
    /// Covariance of the channels as their first reader sees them (taps averaged), width × width.
    pub covariance: Option<Packed<f64>>,
    /// Spectral states of the channels; `None` where all weights are zero.
    pub states: Vec<Option<State>>,
    /// Into which channel each is merged when it goes; nothing where channels just go.
    pub into: Vec<usize>,
    /// Covariance of the channels as each reader sees them, where that is asked for.
    pub by_reader: BTreeMap<NodeId, Packed<f64>>,
}

/// Why the channels of a group cannot be ranked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Unranked {
    #[error("no operator sums over it, so that nothing can make up for a loss")]
    Unread,
    #[error("no importances are given for it")]
    NotGiven,
    #[error("what {reader:?} makes of it cannot be measured: {because}")]
    Unmeasured { reader: String, because: Unmeasured },
    #[error(transparent)]
    Exec(#[from] ExecError),
}

/// Why nothing is known of what an operator makes of its input.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unmeasured {
    #[error("it is no sum over all of its inputs with constant weights")]
    NotLinear,
    #[error("its {columns} input columns are too many")]
    TooWide { columns: usize },
    #[error("it transposes its input")]
    Transposed,
    #[error("how it walks over its input is not known")]
    Geometry,
    #[error("its input and output are not known on the samples")]
    NoValues,
    #[error("its values on the samples are not finite")]
    NotFinite,
}

/// The dense network, its operators by node, and what was seen of it on the calibration samples.
pub struct Scorer<'a> {
    pub graph: &'a Graph<'a>,
    pub blocks: &'a [Block],
    pub method: Method,
    pub seed: u64,
    /// What the caller brings, for [`Method::Scores`].
    pub importances: Option<&'a Importances>,
    /// Whether the channels' covariance is kept as each reader sees it.
    pub by_reader: bool,
    /// Operators that might be put in two, with the highest rank that is offered: they are watched too.
    pub in_two: BTreeMap<NodeId, usize>,
    /// Those of them that can be, once they were watched.
    pub ranked: BTreeMap<NodeId, Ranked>,
    operators: BTreeMap<NodeId, Operator>,
    known: Activations<'a>,
    /// Operators that read a group.
    seen: BTreeMap<NodeId, Result<Vec<Seen>, Unranked>>,
}

/// A place of the network where something is measured, in the order of its nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stop {
    Reader,
    Block(usize),
}

impl<'a> Scorer<'a> {
    pub fn new(
        graph: &'a Graph<'a>,
        engine: &'a dyn Engine,
        blocks: &'a [Block],
        batches: &[Batch],
        method: Method,
        seed: u64,
    ) -> Self {
        let operators = operators(graph).into_iter().map(|op| (op.node, op)).collect();
        let known = Activations::new(engine, batches);
        let (in_two, ranked, seen) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        let (importances, by_reader) = (None, false);
        Self {
            graph,
            blocks,
            method,
            seed,
            importances,
            by_reader,
            in_two,
            ranked,
            operators,
            known,
            seen,
        }
    }

    /// Runs the dense network once, front to back, and remembers of every reader of `groups` what ranking
    /// needs. Returns for each block the loss of removing it, infinite where the runtime fails.
    pub fn watch(&mut self, groups: &[Group], progress: &mut dyn FnMut(usize, usize)) -> Vec<f64> {
        let readers = groups.iter().flat_map(|group| &group.consumers);
        let readers = readers.map(|consumer| consumer.node).chain(self.in_two.keys().copied());
        let readers = readers.map(|node| (node, Stop::Reader));
        let blocks = self.blocks.iter().enumerate().map(|(i, b)| (b.add, Stop::Block(i)));
        let stops: BTreeSet<(NodeId, Stop)> = readers.chain(blocks).collect();
        let mut losses = vec![f64::INFINITY; self.blocks.len()];
        for (done, (node, stop)) in stops.iter().enumerate() {
            progress(done, stops.len());
            self.known.forget_before(self.graph.model(), *node);
            match stop {
                Stop::Reader => {
                    let seen = self.reader(*node);
                    self.seen.insert(*node, seen);
                }
                Stop::Block(index) => {
                    losses[*index] = self.removal(&self.blocks[*index]).unwrap_or(f64::INFINITY);
                }
            }
        }
        self.known.clear();
        losses
    }

    /// Forgets the readers that none of `groups`, which are still to be ranked, needs.
    pub fn forget_but(&mut self, groups: &[Group]) {
        let read = |node: &NodeId| {
            groups.iter().any(|group| group.consumers.iter().any(|reader| reader.node == *node))
        };
        self.seen.retain(|node, _| read(node));
    }

    fn model(&self) -> &'a Model {
        self.graph.model()
    }

    /// Ranks the channels of a group that was watched.
    ///
    /// # Errors
    /// Where a reader of the group is not known: its losses would count as none.
    pub fn score(&self, group: &Group) -> Result<Scored, Unranked> {
        let readers = self.readers(group)?;
        if readers.is_empty() {
            return Err(Unranked::Unread);
        }
        let of = |(node, blocks): &(NodeId, Vec<Reader>)| {
            (*node, channel_covariance(blocks, group.width))
        };
        let covariance = readers.first().map(|first| of(first).1);
        let asked = if self.by_reader { &readers[..] } else { &[] };
        let by_reader = asked.iter().map(of).collect();
        let readers: Vec<Reader> = readers.into_iter().flat_map(|(_, blocks)| blocks).collect();
        let given = self.importances.and_then(|all| all.get(&group.name));
        let states = self.states(group);
        let at_once = (group.width / limits::SELECTION_STEPS).max(1);
        let selection = match self.method {
            Method::Obs => obs(group.width, readers, at_once),
            Method::Random => {
                along(&by_chance(group.width, self.seed ^ group.id.0 as u64), readers)
            }
            Method::Magnitude => along(&by_score(&self.magnitudes(group)), readers),
            Method::Response => {
                let magnitudes = self.magnitudes(group);
                let order = match &covariance {
                    Some(cov) => by_distance(&magnitudes, |i, j| response_distance(cov, i, j)),
                    None => by_score(&magnitudes),
                };
                along(&order, readers)
            }
            Method::Spectral => {
                let order = by_distance(&self.magnitudes(group), |i, j| {
                    spectral_distance(&states[i], &states[j])
                });
                along(&order, readers)
            }
            Method::Scores => {
                along(&by_score(&given.ok_or(Unranked::NotGiven)?.importance), readers)
            }
        };
        let into = given.map(|given| given.into.clone()).unwrap_or_default();
        Ok(Scored { selection, covariance, states, into, by_reader })
    }

    /// The readers of a group that was watched, each in its blocks of columns.
    fn readers(&self, group: &Group) -> Result<Vec<(NodeId, Vec<Reader>)>, Unranked> {
        let mut readers = Vec::new();
        for consumer in &group.consumers {
            let unknown = || self.unmeasured(consumer.node, Unmeasured::NoValues);
            let seen = self.seen.get(&consumer.node).ok_or_else(unknown)?;
            let columns = self.columns(consumer, group.width);
            let seen = seen.as_ref().map_err(Clone::clone)?;
            let blocks = seen.iter().map(|seen| seen.reader(&columns)).collect();
            readers.push((consumer.node, blocks));
        }
        Ok(readers)
    }

    /// Loss of removing a residual block: the variance that its branch adds and that no linear map of the
    /// shortcut explains (what stands before and behind the block can take such a map over), relative to
    /// the variance after the addition, both as the next normalisation sees them.
    ///
    /// # Errors
    /// Where the runtime fails.
    fn removal(&mut self, block: &Block) -> Result<f64, ExecError> {
        let Some(sum) = self.graph.node(block.add).output.first() else { return Ok(f64::INFINITY) };
        // The sum inside a normalisation is a value of no name, but its terms have theirs.
        let sum = if block.norm { &block.end } else { sum };
        self.known.fetch(self.model(), &[sum, &block.shortcut])?;
        let (Some(after), Some(before)) = (self.known.get(sum), self.known.get(&block.shortcut))
        else {
            return Ok(f64::INFINITY);
        };
        let sums: Option<Vec<Tensor>> = match block.norm {
            true => after.iter().zip(before).map(|(a, b)| plus(a, b)).collect(),
            false => None,
        };
        let after = sums.as_deref().unwrap_or(after);
        let channels = self.operators.get(&block.last).map_or(1, |operator| operator.outputs);
        let (lost, whole) = {
            let seed = self.seed ^ block.add as u64;
            let Some(lost) = unexplained(after, before, channels, seed) else {
                return Ok(f64::INFINITY);
            };
            (lost, variances(after, channels, self.features_last(block.last)).iter().sum())
        };
        let (weights, scale) = match self.felt(sum, block.last)? {
            Some(felt) => (felt.weights, felt.scale),
            None => (vec![1.0; channels], whole),
        };
        let loss = lost.iter().zip(&weights).map(|(lost, weight)| lost * weight * weight);
        let loss = loss.sum::<f64>() / scale;
        Ok(if loss.is_finite() { loss } else { f64::INFINITY })
    }

    /// Whether an operator's outputs stand on the last axis.
    fn features_last(&self, node: NodeId) -> bool {
        self.operators.get(&node).is_some_and(|operator| operator.kernel.is_empty())
    }

    /// What errors of `value`, to which operator `node` contributes, count behind the normalisation that
    /// reads it.
    fn felt(&mut self, value: &str, node: NodeId) -> Result<Option<Felt>, ExecError> {
        let Some(operator) = self.operators.get(&node).filter(|o| o.kernel.is_empty()) else {
            return Ok(None);
        };
        let model = self.graph.model();
        Felt::behind(self.graph, &mut self.known, model, value, operator.outputs)
    }

    /// Variance of the value that operator `node` contributes to: after the addition of its residual
    /// block, else its own output.
    fn sink(&self, operator: &Operator) -> String {
        let ends = |block: &&Block| block.last == operator.node && !block.norm;
        let block = self.blocks.iter().find(ends);
        let sum = block.and_then(|block| self.graph.node(block.add).output.first());
        sum.unwrap_or(&operator.output).clone()
    }

    /// The columns of a reader's matrix that each channel feeds.
    fn columns(&self, consumer: &Consumer, width: usize) -> Vec<Vec<usize>> {
        let taps = self.operators.get(&consumer.node).map_or(1, Operator::taps);
        let fed = |channel| consumer.inputs.get(channel).into_iter().flatten();
        let columns = |input: &u32| *input as usize * taps..(*input as usize + 1) * taps;
        (0..width).map(|channel| fed(channel).flat_map(columns).collect()).collect()
    }

    fn unmeasured(&self, node: NodeId, because: Unmeasured) -> Unranked {
        Unranked::Unmeasured { reader: self.graph.label(node), because }
    }

    /// What an operator makes of its inputs: all of its columns at once, or in blocks where they are many.
    fn reader(&mut self, node: NodeId) -> Result<Vec<Seen>, Unranked> {
        let refuse = |because| Unranked::Unmeasured { reader: self.graph.label(node), because };
        let found = self.operators.get(&node).filter(|operator| operator.group() == 1).cloned();
        let operator = found.ok_or_else(|| refuse(Unmeasured::NotLinear))?;
        let attrs = self.graph.attrs(node);
        let columns = operator.row_len();
        let block = block(columns, operator.taps());
        if attrs.int("transA").unwrap_or(0) != 0 {
            return Err(refuse(Unmeasured::Transposed));
        }
        if columns.div_ceil(block) > limits::SELECTION_BLOCKS {
            return Err(refuse(Unmeasured::TooWide { columns }));
        }
        let geometry = Geometry::of(self.graph, &operator);
        let geometry = geometry.ok_or_else(|| refuse(Unmeasured::Geometry))?;
        let sink = self.sink(&operator);
        let model = self.model();
        self.known.fetch(model, &[&operator.input, &operator.output, &sink])?;
        let unknown = || self.unmeasured(node, Unmeasured::NoValues);
        let values = self.known.get(&operator.input).zip(self.known.get(&operator.output));
        let (x, y) = values.ok_or_else(unknown)?;
        let sampler = Sampler::new(&geometry, x, y, rows_wanted(columns), self.seed ^ node as u64);
        let sampler = sampler.ok_or_else(|| self.unmeasured(node, Unmeasured::Geometry))?;
        let Ok(matrix) = operator.matrix(self.graph) else { return Err(unknown()) };
        let parts = (0..columns).step_by(block).map(|first| {
            let rows = sampler.drawn_columns(0, first..columns.min(first + block));
            Some((first, Moments::of(&rows, |s| !is_held_out(s))?))
        });
        let parts: Option<Vec<(usize, Moments)>> = parts.collect();
        let parts = parts.ok_or_else(unknown)?;
        let yy = parts.first().map_or(&[][..], |(_, moments)| &moments.yy);
        let (norm, scale) = self.heard(&operator, &sink, yy)?;
        // A Gemm may scale its product.
        let factor = f64::from(attrs.float("alpha").unwrap_or(1.0));
        let finite = |moments: &Moments| moments.mean_x.iter().all(|mean| mean.is_finite());
        if !scale.is_finite() || !parts.iter().all(|(_, moments)| finite(moments)) {
            return Err(self.unmeasured(node, Unmeasured::NotFinite));
        }
        if let Some(most) = self.in_two.get(&node) {
            let rows = &*sampler.source(0);
            let weight = Mat::from_fn(matrix.rows, matrix.cols, |i, j| {
                f64::from(matrix.data[i * matrix.cols + j]) * norm[i]
            });
            let of = (self.graph, &operator);
            let ranked = Ranked::of(of, &weight, &norm, rows, scale, *most);
            self.ranked.extend(ranked.map(|ranked| (node, ranked)));
        }
        let count = parts.len() as f64;
        let seen = parts.into_iter().map(|(first, moments)| {
            let width = moments.mean_x.len();
            let weight = Mat::from_fn(matrix.rows, width, |i, j| {
                (f64::from(matrix.data[i * matrix.cols + first + j]) * norm[i] * factor) as f32
            });
            let shrunk = moments.shrunk();
            let covariance = Packed::from_fn(width, |i, j| shrunk[(i, j)] as f32);
            // Each block makes up for its own losses alone, and ‖Σ e_b‖² ≤ count · Σ ‖e_b‖².
            Seen { first, weight, covariance, scale: scale / count }
        });
        Ok(seen.collect())
    }

    /// By what each output of an operator is multiplied on its way to where errors count, and the variance
    /// there; `yy` are the outputs' variances.
    fn heard(
        &mut self,
        operator: &Operator,
        sink: &str,
        yy: &[f64],
    ) -> Result<(Vec<f64>, f64), ExecError> {
        // Errors count as they are after the normalisation that follows, where the sum is taken.
        let norm = scale_after(self.graph, operator);
        let mut norm: Vec<f64> = norm.map_or_else(
            || vec![1.0; operator.outputs],
            |scales| scales.into_iter().map(f64::from).collect(),
        );
        let features_last = operator.kernel.is_empty();
        let mut scale: f64 = match self.known.get(sink) {
            Some(tensors) if sink != operator.output => {
                variances(tensors, operator.outputs, features_last).iter().sum()
            }
            _ => yy.iter().zip(&norm).map(|(v, s)| v * s * s).sum(),
        };
        if let Some(felt) = self.felt(sink, operator.node)? {
            norm.iter_mut().zip(&felt.weights).for_each(|(norm, weight)| *norm *= weight);
            scale = felt.scale;
        }
        Ok((norm, scale))
    }

    /// Norm of the weights that produce each channel.
    fn magnitudes(&self, group: &Group) -> Vec<f64> {
        let squares = self.rows_of_channels(group).into_iter().map(|rows| {
            rows.iter().flat_map(|(_, row)| row).map(|w| f64::from(*w).powi(2)).sum::<f64>().sqrt()
        });
        squares.collect()
    }

    /// For each channel the weights that produce it, one row an operator's output, with its kernel size.
    fn rows_of_channels(&self, group: &Group) -> Vec<Vec<(usize, Vec<f32>)>> {
        let mut rows = vec![Vec::new(); group.width];
        for producer in &group.producers {
            let Some(operator) = self.operators.get(&producer.node) else { continue };
            let Ok(matrix) = operator.matrix(self.graph) else { continue };
            for (channel, outputs) in producer.outputs.iter().enumerate() {
                for output in outputs.iter().map(|output| *output as usize) {
                    let row = matrix.data[output * matrix.cols..][..matrix.cols].to_vec();
                    rows[channel].push((operator.taps(), row));
                }
            }
        }
        rows
    }

    /// Spectral states of the channels: singular values of each one's (inputs × taps) matrix.
    pub fn states(&self, group: &Group) -> Vec<Option<State>> {
        self.rows_of_channels(group).iter().map(|rows| state(rows)).collect()
    }
}

/// Variance, of each channel, of what was added to `before` and is no linear map of it.
fn unexplained(
    after: &[Tensor],
    before: &[Tensor],
    channels: usize,
    seed: u64,
) -> Option<Vec<f64>> {
    let branch: Option<Vec<Tensor>> = after
        .iter()
        .zip(before)
        .map(|(a, b)| {
            let (a32, b32) = (a.to_f32()?, b.to_f32()?);
            let minus: Vec<f32> = a32.iter().zip(&b32).map(|(a, b)| a - b).collect();
            (a32.len() == b32.len()).then(|| Tensor::from_f32(&a.shape, &minus))
        })
        .collect();
    let geometry = Geometry::pointwise(after.first()?.shape.len(), channels, channels);
    let sampler = Sampler::new(&geometry, before, &branch?, rows_wanted(channels), seed)?;
    let rows = sampler.source(0);
    let fit = Moments::of(&*rows, |s| !is_held_out(s))?;
    let check = Moments::of(&*rows, is_held_out)?;
    let nothing = Affine { weight: Mat::zeros(channels, channels), bias: vec![0.0; channels] };
    let error = |map: &Affine| check.relative(map.weight.as_ref(), &map.bias);
    let map = refit(&nothing, &fit, &error).affine;
    Some(check.errors(map.weight.as_ref(), &map.bias))
}

/// State of the singular values of all matrices (inputs × taps) that produce a channel.
fn state(rows: &[(usize, Vec<f32>)]) -> Option<State> {
    let mut values: Vec<f64> = Vec::new();
    for (taps, row) in rows {
        let taps = (*taps).max(1);
        values.extend(batch(row, row.len() / taps, taps).ok()?.into_iter().flatten());
    }
    values.sort_by(|a, b| b.total_cmp(a));
    State::of(&values)
}

/// Fubini–Study distance; a channel without a state (all its weights are zero) is far from every other.
pub fn spectral_distance(a: &Option<State>, b: &Option<State>) -> f64 {
    a.as_ref().zip(b.as_ref()).map_or(std::f64::consts::FRAC_PI_2, |(a, b)| a.fubini_study(b))
}

/// arccos|corr| of two channels.
pub fn response_distance(covariance: &Packed<f64>, i: usize, j: usize) -> f64 {
    let norm = (covariance.at(i, i) * covariance.at(j, j)).sqrt();
    if norm > 0.0 {
        (covariance.at(i, j).abs() / norm).min(1.0).acos()
    } else {
        std::f64::consts::FRAC_PI_2
    }
}
