//! Layers that say nearly the same: one reads the other's weight, and the file holds it once. Tried on a rung
//! that is built and repaired, and kept where its quality hardly falls.

use std::collections::{BTreeMap, BTreeSet};

use faer::Mat;

use super::bench::{Bench, Built};
use super::manifest::Substituted;
use super::quality::Agreement;
use super::task::LadderError;
use crate::limits;
use crate::onnx::{
    Graph, Matrix, Model, NodeId, OnnxError, Operator, OperatorKind, Patch, Use, operators, tensor,
    values,
};
use crate::spectra::activations::Activations;
use crate::spectra::moments::Moments;
use crate::spectra::rows::Geometry;
use crate::spectra::sampler::Sampler;
use crate::surgery::attention::project_inside;
use crate::surgery::low_rank::writer;
use crate::surgery::repair::{is_held_out, rows_wanted, set_bias};

/// A layer that another one's weight could serve.
#[derive(Debug, Clone, PartialEq)]
struct Offer {
    /// The outputs of the two operators' nodes: the one whose weight stays, and the one that is to read it.
    kept: String,
    other: String,
    /// What the kept weight's products are multiplied by, where a normalisation with fixed statistics follows
    /// that takes it over.
    scale: f64,
    /// What is added to the other operator's output behind that.
    shift: Vec<f64>,
    /// Squared error of the other operator's output on held-out samples, relative to its variance.
    error: f64,
}

impl Bench<'_> {
    /// Lets layers of a rung read the weights of others that say nearly the same, one after the other, the
    /// nearest first. What costs too much quality is left as it was. Returns whether any does; its figures then
    /// lack latency and accuracy.
    ///
    /// # Errors
    /// Where the runtime fails on a variant.
    pub(super) fn substitute(&self, built: &mut Built) -> Result<bool, LadderError> {
        let task = self.task;
        let mut known = Activations::new(task.engine, &task.samples.batches);
        // Where its layers cannot be compared the rung stays as it is.
        let Ok(offers) = offers(&built.model, &mut known, task.options.seed) else {
            return Ok(false);
        };
        let before = built.rung.figures.clone();
        let mut taken: BTreeSet<String> = BTreeSet::new();
        let mut gone: BTreeSet<String> = BTreeSet::new();
        let mut model = built.model.clone();
        let mut agreement = Agreement { quality: before.quality, explained: before.explained };
        for offer in offers.into_iter().take(limits::SUBSTITUTIONS_TRIED) {
            // What was measured of a weight holds as long as it is the one that is read.
            if taken.contains(&offer.other)
                || [&offer.kept, &offer.other].iter().any(|o| gone.contains(*o))
            {
                continue;
            }
            let Some((candidate, told)) = offer.apply(&model)? else { continue };
            // A variant that does not run is none; the rung without it is there.
            let Ok(found) = self.judge(&candidate) else { continue };
            // Comparisons that are false for NaN: such a variant is never taken.
            let holds = found.quality >= task.options.floor
                && found.quality >= before.quality - limits::SUBSTITUTION_FALL
                && found.explained >= before.explained - limits::SUBSTITUTION_FALL;
            if holds {
                (model, agreement) = (candidate, found);
                taken.insert(offer.kept);
                gone.insert(offer.other);
                built.rung.substituted.push(told);
            }
        }
        if gone.is_empty() {
            return Ok(false);
        }
        built.rung.figures = self.sized(&model, agreement)?;
        built.rung.digest = project_inside(&model)?.digest()?;
        built.model = model;
        Ok(true)
    }
}

/// Pairs of layers of one form whose weights point the same way, by the error on the calibration samples.
fn offers(model: &Model, known: &mut Activations, seed: u64) -> Result<Vec<Offer>, LadderError> {
    let graph = Graph::new(model);
    let mut offers = Vec::new();
    for (other, nearest) in near(&graph)? {
        known.forget_before(model, other.node);
        if let Some(offer) = measured(&graph, &other, &nearest, known, seed)? {
            offers.push(offer);
        }
    }
    offers.sort_by(|a, b| a.error.total_cmp(&b.error).then(a.other.cmp(&b.other)));
    Ok(offers)
}

/// Each operator whose weight is its own, with the earlier ones of the same form that it resembles, the most
/// alike first.
fn near(graph: &Graph) -> Result<Vec<(Operator, Vec<Operator>)>, OnnxError> {
    let mut by_form: BTreeMap<_, Vec<(Operator, Matrix)>> = BTreeMap::new();
    let mut found = Vec::new();
    for operator in operators(graph) {
        let bytes = graph.weight_bytes(&operator.weight)?.map_or(0, |bytes| bytes.len());
        let fits = operator.exact && operator.group() == 1 && bytes >= limits::SHARED_BYTES;
        let transposed = matches!(operator.kind, OperatorKind::ConvTranspose { .. });
        if !fits || transposed || operator.row_len() > limits::LAYER_PAIR_COLUMNS {
            continue;
        }
        let dims = graph.weight_dims(&operator.weight);
        let form = (operator.kind, dims, graph.weight_dtype(&operator.weight));
        let matrix = operator.matrix(graph)?;
        let earlier = by_form.entry(form).or_default();
        let mut alike: Vec<(f64, Operator)> = earlier
            .iter()
            .filter(|(one, _)| one.weight != operator.weight)
            .map(|(one, weight)| (cosine(weight, &matrix), one.clone()))
            .filter(|(cosine, _)| *cosine >= limits::SUBSTITUTE_COSINE)
            .collect();
        alike.sort_by(|a, b| b.0.total_cmp(&a.0));
        alike.truncate(limits::SUBSTITUTES);
        let own = graph.uses(&operator.weight).len() == 1;
        if own && !alike.is_empty() {
            let alike = alike.into_iter().map(|(_, operator)| operator).collect();
            found.push((operator.clone(), alike));
        }
        earlier.push((operator, matrix));
    }
    Ok(found)
}

/// Cosine of the angle between two weights.
fn cosine(a: &Matrix, b: &Matrix) -> f64 {
    let sum = |x: &Matrix, y: &Matrix| -> f64 {
        x.data.iter().zip(&y.data).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum()
    };
    sum(a, b) / (sum(a, a) * sum(b, b)).sqrt()
}

/// The best of the substitutes for an operator, if one is good enough.
fn measured(
    graph: &Graph,
    other: &Operator,
    substitutes: &[Operator],
    known: &mut Activations,
    seed: u64,
) -> Result<Option<Offer>, LadderError> {
    let Some(geometry) = Geometry::of(graph, other) else { return Ok(None) };
    known.fetch(graph.model(), &[&other.input, &other.output])?;
    let (Some(x), Some(y)) = (known.get(&other.input), known.get(&other.output)) else {
        return Ok(None);
    };
    let limit = rows_wanted(other.row_len());
    let sampler = Sampler::new(&geometry, x, y, limit, seed ^ other.node as u64);
    let rows = sampler.as_ref().map(|sampler| sampler.source(0));
    let moments = |take: fn(u32) -> bool| rows.as_ref().and_then(|rows| Moments::of(&**rows, take));
    let (Some(fit), Some(check)) = (moments(|s| !is_held_out(s)), moments(is_held_out)) else {
        return Ok(None);
    };
    let (own, stored) = (weights(other, graph)?, biases(other, graph));
    let norm = norm_behind(graph, other);
    let can_shift = norm.is_some() || other.bias.is_some() || other.kind != OperatorKind::MatMul;
    let said = if other.bias_behind { vec![0.0; stored.len()] } else { stored };
    let mut best: Option<Offer> = None;
    for substitute in substitutes {
        let weight = weights(substitute, graph)?;
        let scale = if norm.is_some() { best_scale(&own, &weight, &fit) } else { 1.0 };
        let scaled = &weight * faer::Scale(scale);
        let apart = &own - &scaled;
        let shift =
            if can_shift { fit.output_means(apart.as_ref()) } else { vec![0.0; said.len()] };
        let bias: Vec<f64> = said.iter().zip(&shift).map(|(bias, shift)| bias + shift).collect();
        let error = check.relative(scaled.as_ref(), &bias);
        // Comparisons that are false for NaN.
        let better = best.as_ref().is_none_or(|best| error < best.error);
        if error <= limits::SUBSTITUTE_ERROR && better && scale > 0.0 {
            let (Some(kept), Some(name)) = (output(graph, substitute), output(graph, other)) else {
                continue;
            };
            best = Some(Offer { kept, other: name, scale, shift, error });
        }
    }
    Ok(best)
}

fn output(graph: &Graph, operator: &Operator) -> Option<String> {
    graph.node(operator.node).output.first().cloned()
}

fn weights(operator: &Operator, graph: &Graph) -> Result<Mat<f64>, OnnxError> {
    let Matrix { rows, cols, data } = operator.matrix(graph)?;
    Ok(Mat::from_fn(rows, cols, |i, j| f64::from(data[i * cols + j])))
}

fn biases(operator: &Operator, graph: &Graph) -> Vec<f64> {
    operator.bias_values(graph).into_iter().map(f64::from).collect()
}

/// The factor by which `weight` comes nearest to `wanted` on the rows.
fn best_scale(wanted: &Mat<f64>, weight: &Mat<f64>, rows: &Moments) -> f64 {
    let seen = weight * &rows.xx;
    let along = |other: &Mat<f64>| -> f64 {
        let row = |i: usize| (0..seen.ncols()).map(|j| seen[(i, j)] * other[(i, j)]).sum::<f64>();
        (0..seen.nrows()).map(row).sum()
    };
    along(wanted) / along(weight)
}

/// A BatchNormalization with fixed statistics of its own that alone reads an operator's output.
fn norm_behind(graph: &Graph, operator: &Operator) -> Option<NodeId> {
    let [Use::Input { node, input: 0 }] = graph.uses(&operator.output) else { return None };
    let own = |input: usize| {
        let name = graph.input(*node, input)?;
        (graph.uses(name).len() == 1).then(|| graph.floats(name)).flatten()
    };
    let fits = graph.op(*node) == "BatchNormalization"
        && graph.attrs(*node).int("training_mode").unwrap_or(0) == 0
        && own(1).zip(own(3)).is_some_and(|(scale, mean)| {
            scale.len() == operator.outputs && mean.len() == operator.outputs
        });
    fits.then_some(*node)
}

impl Offer {
    /// The model with the substitution made, and what is told of it; `None` where the network no longer has
    /// the two.
    fn apply(&self, model: &Model) -> Result<Option<(Model, Substituted)>, OnnxError> {
        let graph = Graph::new(model);
        let linear = operators(&graph);
        let (kept, other) =
            (writer(&graph, &linear, &self.kept), writer(&graph, &linear, &self.other));
        let (Some(kept), Some(other)) = (kept, other) else { return Ok(None) };
        let mut patch = Patch::default();
        patch.inputs.insert((other.node, 1), kept.weight.clone());
        if let Some(norm) = norm_behind(&graph, other) {
            self.fold(&graph, norm, &biases(other, &graph), &mut patch)?;
        } else if self.shift.iter().any(|shift| *shift != 0.0) {
            let stored = other.bias_values(&graph);
            let bias: Vec<f32> =
                stored.iter().zip(&self.shift).map(|(b, s)| b + *s as f32).collect();
            set_bias(&graph, other, &bias, &mut patch)?;
        }
        let bytes = graph.weight_bytes(&other.weight)?.map_or(0, |bytes| bytes.len() as u64);
        let told = Substituted {
            operator: other.name.clone(),
            reads: kept.name.clone(),
            error: self.error,
            saves_bytes: bytes,
        };
        Ok(Some((patch.apply(model)?, told)))
    }

    /// Scale and shift as the statistics of the normalisation behind: it reads W·x + b where it is to read
    /// c·W·x + s.
    fn fold(
        &self,
        graph: &Graph,
        norm: NodeId,
        bias: &[f64],
        patch: &mut Patch,
    ) -> Result<(), OnnxError> {
        let mut set = |input: usize, change: &dyn Fn(usize, f64) -> f64| {
            let wrong = || OnnxError::Edit(format!("node {norm} has no statistics to change"));
            let name = graph.input(norm, input).ok_or_else(wrong)?;
            let old = graph.floats(name).ok_or_else(wrong)?;
            let new: Vec<f32> =
                old.iter().enumerate().map(|(i, v)| change(i, f64::from(*v)) as f32).collect();
            let dtype = graph.weight_dtype(name).ok_or_else(wrong)?;
            let bytes = values::float_bytes(dtype, &new).ok_or_else(wrong)?;
            let dims = graph.weight_dims(name).unwrap_or_else(|| vec![new.len()]);
            patch.constants.insert(name.to_owned(), tensor(name, dtype, &dims, bytes));
            Ok(())
        };
        set(1, &|_, scale| scale * self.scale)?;
        set(3, &|i, mean| bias[i] - (bias[i] + self.shift[i] - mean) / self.scale)
    }
}
