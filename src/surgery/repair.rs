//! Repairs a cut network from front to back: every operator behind a cut is refitted on what it now
//! reads towards what the dense network said there, so that each repair also makes up for what those
//! before it left over.
//!
//! The last operator of a residual branch is fitted to the dense value *after* the addition minus the cut
//! network's own shortcut: each block repairs the error that the stream brings along.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use faer::Mat;

use super::aim::{Aim, Wanted, aim, plus};
use super::cut::Gone;
use super::held_out::HeldOut;
use super::rectified::{Gate, refit_rectified, wanted};
use super::refit::{Affine, Refit, Start, match_statistics, refit};
use super::statistics;
use crate::limits;
use crate::onnx::{
    DType, Engine, ExecError, Graph, Matrix, Model, OnnxError, Operator, OperatorKind, Patch,
    Tensor, operators, tensor,
};
use crate::spectra::activations::{Activations, Batch};
use crate::spectra::moments::Moments;
use crate::spectra::rows::{Geometry, RowSource};
use crate::spectra::sampler::Sampler;

/// Every fifth sample is not fitted on; it decides whether a fit is kept.
pub const HELD_OUT: u32 = 5;

/// Whether a sample is held out from fitting.
pub fn is_held_out(sample: u32) -> bool {
    sample.is_multiple_of(HELD_OUT)
}

/// How operators behind a cut are repaired.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// Affine refit in closed form.
    #[default]
    Refit,
    /// Mean and variance of each channel only.
    Statistics,
    /// The same behind channels that stand in for others by ridge regression (the ladder merges them).
    Ridge,
    /// Not at all.
    None,
}

/// What the repair did to one operator.
#[derive(Debug, Clone)]
pub struct Repaired {
    /// The operator's name.
    pub operator: String,
    pub kind: super::refit::RefitKind,
    /// Relative squared error on held-out samples.
    pub before: f64,
    pub after: f64,
}

/// Why a repair stopped.
#[derive(Debug, thiserror::Error)]
pub enum RepairError {
    #[error("the runtime failed while the cut network was repaired")]
    Exec(#[from] ExecError),
    #[error("a repaired operator could not be written back")]
    Onnx(#[from] OnnxError),
}

/// Everything a repair reads.
pub struct Repair<'a> {
    pub engine: &'a dyn Engine,
    pub dense: &'a Model,
    /// Removed indices of every value that lost channels.
    pub gone: &'a Gone,
    /// Values of the cut network that stand for others of the dense one: where a residual block is left
    /// out, the sum before it is read in place of the sum behind it, and is to resemble that one.
    pub stands_for: &'a BTreeMap<String, String>,
    pub batches: &'a [Batch],
    pub mode: Mode,
    pub seed: u64,
}

impl Repair<'_> {
    /// Repairs `cut` and says what was done to each operator, in topological order. `progress` hears
    /// (done, total).
    ///
    /// # Errors
    /// Where the runtime fails or an operator's new weights cannot be stored.
    pub fn run(
        &self,
        cut: Model,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<(Model, Vec<Repaired>), RepairError> {
        if self.mode == Mode::None {
            return Ok((cut, Vec::new()));
        }
        let mut dense = Activations::new(self.engine, self.batches);
        let mut pruned = Activations::new(self.engine, self.batches);
        let mut model = cut;
        let todo: Vec<Operator> = {
            let graph = Graph::new(&model);
            let nodes = self.dense.graph().node.iter();
            let there: BTreeSet<&str> =
                nodes.flat_map(|node| &node.output).map(String::as_str).collect();
            let dirty = dirty_values(&graph, &Graph::new(self.dense));
            let moved = |op: &Operator| {
                self.mode == Mode::Refit
                    && aim(&graph, op, self.stands_for).is_some_and(|aim| aim.moved)
            };
            // What dense has not, as the first of two operators of low rank, has nothing to be fitted to.
            let found = operators(&graph).into_iter().filter(|op| there.contains(&*op.output));
            found.filter(|op| dirty.contains(&op.input) || moved(op)).collect()
        };
        let mut report = Vec::new();
        let total = todo.len();
        let mut todo = VecDeque::from(todo);
        while let Some(operator) = todo.pop_front() {
            progress(total - todo.len() - 1, total);
            if let Some((patch, repaired)) =
                self.operator(&model, &operator, &mut dense, &mut pruned)?
            {
                model = patch.apply(&model)?;
                report.push(repaired);
                if !patch.insert.is_empty() {
                    renumber(&mut todo, &model);
                }
            }
            for (known, model) in [(&mut pruned, &model), (&mut dense, self.dense)] {
                let reached = Graph::new(model).producer(&operator.output).unwrap_or(0);
                known.forget_before(model, reached + 1);
            }
        }
        progress(total, total);
        Ok((model, report))
    }

    /// Samples in each batch.
    fn sizes(&self) -> Vec<usize> {
        let size = |batch: &Batch| batch.values().next().and_then(|t| t.shape.first()).copied();
        self.batches.iter().map(|batch| size(batch).unwrap_or(1)).collect()
    }

    fn operator(
        &self,
        model: &Model,
        operator: &Operator,
        dense: &mut Activations,
        pruned: &mut Activations,
    ) -> Result<Option<(Patch, Repaired)>, RepairError> {
        let graph = Graph::new(model);
        let Some(target) = self.target(&graph, operator, dense, pruned)? else { return Ok(None) };
        // A weight that others read as well stays what it is: what mends one place would break another.
        let fits = operator.exact && graph.uses(&operator.weight).len() == 1;
        let refitted = match fits {
            true => self.refit(&graph, operator, &target, pruned)?,
            false => None,
        };
        match refitted {
            Some(found) => Ok(Some(found)),
            None => self.correct(&graph, operator, &target, pruned),
        }
    }

    /// Corrects mean and variance of what an operator says, where its weights cannot be refitted.
    fn correct(
        &self,
        graph: &Graph,
        operator: &Operator,
        target: &Target,
        pruned: &mut Activations,
    ) -> Result<Option<(Patch, Repaired)>, RepairError> {
        pruned.fetch(graph.model(), &[&operator.output])?;
        let said = pruned.get(&operator.output).unwrap_or_default();
        let (outputs, features_last) = (operator.outputs, operator.kernel.is_empty());
        let found = statistics::correct(said, &target.wanted, outputs, features_last);
        // It will be another value under the same name.
        pruned.forget(&operator.output);
        let Some(found) = found else { return Ok(None) };
        let (kind, before, after) = (found.kind, found.before, found.after);
        let repaired = Repaired { operator: operator.name.clone(), kind, before, after };
        Ok(Some((found.patch(graph, operator)?, repaired)))
    }

    /// Refits the weights of an operator; `None` where that cannot be done.
    fn refit(
        &self,
        graph: &Graph,
        operator: &Operator,
        target: &Target,
        pruned: &mut Activations,
    ) -> Result<Option<(Patch, Repaired)>, RepairError> {
        let Some(geometry) = Geometry::of(graph, operator) else { return Ok(None) };
        let model = graph.model();
        pruned.fetch(model, &[&operator.input])?;
        let Some(x) = pruned.get(&operator.input) else { return Ok(None) };
        let current = operator.matrix(graph)?;
        let stored = operator.bias_values(graph);
        // What is added behind the output is no part of it.
        let bias = if operator.bias_behind { vec![0.0; stored.len()] } else { stored.clone() };
        let can_shift = operator.bias.is_some() || operator.kind != OperatorKind::MatMul;
        let group = operator.group();
        let per_group = operator.outputs / group;
        let limit = rows_wanted(operator.row_len()).div_ceil(if group > 8 { 4 } else { 1 });
        let mut new = Matrix { data: Vec::with_capacity(current.data.len()), ..current.clone() };
        let mut new_bias = Vec::with_capacity(bias.len());
        let mut worst: Option<Refit> = None;
        let sampler =
            Sampler::new(&geometry, x, &target.wanted, limit, self.seed ^ operator.node as u64);
        let Some(sampler) = sampler.map(|sampler| sampler.of_samples(&self.sizes())) else {
            return Ok(None);
        };
        for g in 0..group {
            let rows = sampler.source(g);
            let rows = &*rows;
            let affine = Affine {
                weight: Mat::from_fn(per_group, current.cols, |i, j| {
                    f64::from(current.data[(g * per_group + i) * current.cols + j])
                }),
                bias: bias[g * per_group..][..per_group].iter().map(|b| f64::from(*b)).collect(),
            };
            // The alternation moves the bias.
            let gate = target.gate(&sampler, pruned, rows, g).filter(|_| can_shift);
            let Some(found) = self.fit(affine, rows, gate, can_shift) else { return Ok(None) };
            for i in 0..per_group {
                new.data.extend((0..current.cols).map(|j| found.affine.weight[(i, j)] as f32));
            }
            flush_tiny(&mut new.data[g * per_group * current.cols..]);
            new_bias.extend(found.affine.bias.iter().map(|b| *b as f32));
            flush_tiny(&mut new_bias[g * per_group..]);
            if worst.as_ref().is_none_or(|w| found.before > w.before) {
                worst = Some(found);
            }
        }
        let Some(worst) = worst else { return Ok(None) };
        let mut patch = Patch::default();
        patch.constants.insert(operator.weight.clone(), operator.weight_tensor(graph, &new)?);
        if can_shift {
            if operator.bias_behind {
                new_bias.iter_mut().zip(&stored).for_each(|(new, old)| *new += old);
            }
            set_bias(graph, operator, &new_bias, &mut patch)?;
        }
        let (kind, before, after) = (worst.kind, worst.before, worst.after);
        Ok(Some((patch, Repaired { operator: operator.name.clone(), kind, before, after })))
    }

    /// The repair of one group of an operator's channels; `None` where there are no rows to fit on or none
    /// to judge by.
    fn fit(
        &self,
        current: Affine,
        rows: &dyn RowSource,
        gate: Option<Gate>,
        can_shift: bool,
    ) -> Option<Refit> {
        let held_out = HeldOut::of(rows, can_shift)?;
        let fit = Moments::of(rows, |sample| !is_held_out(sample))?.for_operator(can_shift);
        let error = |affine: &Affine| held_out.error(affine);
        Some(match (self.mode, gate) {
            (Mode::Refit, None) => refit(&current, &fit, &error),
            (Mode::Refit, Some(gate)) => {
                let start = Start::of(&current, &fit);
                refit_rectified(start.refit(&error), &start, rows, &gate, is_held_out)
            }
            (Mode::Statistics | Mode::Ridge | Mode::None, _) => {
                match_statistics(&current, &fit, &error)
            }
        })
    }

    /// What the operator is to say.
    fn target(
        &self,
        graph: &Graph,
        operator: &Operator,
        dense: &mut Activations,
        pruned: &mut Activations,
    ) -> Result<Option<Target>, RepairError> {
        dense.fetch(self.dense, &[&operator.output])?;
        let Some(plain) = self.kept(dense, &operator.output) else { return Ok(None) };
        if self.mode != Mode::Refit {
            return Ok(Some(Target::plain(plain)));
        }
        let Some(aim) = aim(graph, operator, self.stands_for) else {
            return Ok(Some(Target::plain(plain)));
        };
        let after = match &aim.wanted {
            Wanted::Value(value) => {
                dense.fetch(self.dense, &[value])?;
                self.kept(dense, value)
            }
            // The sum is a value of no name: it is made of its terms, as dense has them.
            Wanted::Fused { node_output, input } => {
                let graph = Graph::new(self.dense);
                let node = graph.producer(node_output);
                let other = node.and_then(|node| graph.input(node, *input));
                let Some(other) = other else { return Ok(Some(Target::plain(plain))) };
                dense.fetch(self.dense, &[other])?;
                let other = self.kept(dense, other);
                other.and_then(|other| plain.iter().zip(&other).map(|(a, b)| plus(a, b)).collect())
            }
        };
        let Some(after) = after else { return Ok(Some(Target::plain(plain))) };
        let shortcut = match &aim.shortcut {
            Some(name) => {
                pruned.fetch(graph.model(), &[name])?;
                pruned.get(name)
            }
            None => None,
        };
        if aim.shortcut.is_some() && shortcut.is_none() {
            return Ok(Some(Target::plain(plain)));
        }
        // Large values are known of fewer samples than small ones.
        let both = after.len().min(plain.len());
        let known = shortcut.map_or(both, |tensors| tensors.len().min(both));
        let corrected: Option<Vec<Tensor>> = after[..known]
            .iter()
            .zip(&plain)
            .enumerate()
            .map(|(batch, (after, plain))| {
                aim.before_norm(after, shortcut.map(|tensors| &tensors[batch]), plain)
            })
            .collect();
        Ok(Some(match corrected {
            Some(wanted) => Target { wanted, aim: Some(aim) },
            None => Target::plain(plain),
        }))
    }

    /// A dense value without the channels that the cut removed.
    fn kept(&self, dense: &Activations, value: &str) -> Option<Vec<Tensor>> {
        let mut tensors: Vec<Tensor> = dense.get(value)?.to_vec();
        for ((name, axis), gone) in self.gone.range((value.to_owned(), 0)..) {
            if name != value {
                break;
            }
            tensors = tensors.iter().map(|t| without(t, *axis, gone)).collect::<Option<_>>()?;
        }
        Some(tensors)
    }
}

/// What an operator's output is to be.
struct Target {
    /// One tensor a batch, only the channels that are left.
    wanted: Vec<Tensor>,
    /// What it is for, where that is known.
    aim: Option<Aim>,
}

impl Target {
    fn plain(wanted: Vec<Tensor>) -> Self {
        Self { wanted, aim: None }
    }

    /// Where the rows of one group of the operator's channels are heard, if a rectifier follows.
    fn gate(
        &self,
        sampler: &Sampler,
        pruned: &Activations,
        rows: &dyn RowSource,
        group: usize,
    ) -> Option<Gate> {
        let aim = self.aim.as_ref()?;
        let added = match &aim.shortcut {
            Some(name) => Some(sampler.outputs_of(pruned.get(name)?, group)?),
            None => None,
        };
        aim.gate(&wanted(rows), added.as_deref(), group * rows.outputs(), rows.outputs())
    }
}

/// Sets to zero what is nothing beside the largest value. A channel that is dead in the dense network is
/// fitted by weights that are not quite zero, and a processor takes a hundred times as long for products
/// of subnormal numbers.
fn flush_tiny(values: &mut [f32]) {
    let largest = values.iter().fold(0.0f32, |most, value| most.max(value.abs()));
    for value in values {
        if value.abs() < 1e-12 * largest || value.is_subnormal() {
            *value = 0.0;
        }
    }
}

/// Rows to draw for `unknowns` columns: at least [`limits::ROWS_PER_FIT`],
/// [`limits::ROWS_PER_UNKNOWN`] an unknown, and no more than memory allows.
pub fn rows_wanted(unknowns: usize) -> usize {
    let by_memory = limits::FIT_BYTES / (4 * unknowns.max(1));
    limits::ROWS_PER_FIT.max(limits::ROWS_PER_UNKNOWN * unknowns).min(by_memory)
}

/// The tensor without the indices `gone` on `axis`.
pub fn without(tensor: &Tensor, axis: usize, gone: &BTreeSet<usize>) -> Option<Tensor> {
    let size = tensor.dtype.size()?;
    let length = *tensor.shape.get(axis)?;
    let inner = tensor.shape[axis + 1..].iter().product::<usize>() * size;
    let mut data = Vec::with_capacity(tensor.data.len());
    for plane in tensor.data.chunks_exact((length * inner).max(1)) {
        for (index, piece) in plane.chunks_exact(inner.max(1)).enumerate() {
            if !gone.contains(&index) {
                data.extend_from_slice(piece);
            }
        }
    }
    let mut shape = tensor.shape.clone();
    shape[axis] = length - gone.range(..length).count();
    Some(Tensor { dtype: tensor.dtype, shape, data: data.into() })
}

/// Stores a new bias, as a new constant where the operator had none or others read it as well.
///
/// # Errors
/// Where the new constant's name is taken.
pub fn set_bias(
    graph: &Graph,
    operator: &Operator,
    bias: &[f32],
    patch: &mut Patch,
) -> Result<(), OnnxError> {
    let dtype = graph.weight_dtype(&operator.weight).unwrap_or(DType::F32);
    let bytes = crate::onnx::values::float_bytes(dtype, bias).unwrap_or_default();
    let old = operator.bias.as_deref();
    let dims = old.and_then(|old| graph.weight_dims(old));
    let dims = dims.filter(|dims| dims.iter().product::<usize>() == bias.len());
    let dims = dims.unwrap_or_else(|| vec![bias.len()]);
    if let Some(old) = old.filter(|old| graph.uses(old).len() == 1) {
        patch.constants.insert(old.to_owned(), tensor(old, dtype, &dims, bytes));
        return Ok(());
    }
    // Several operators may read one weight: the second of them is named by what it writes.
    let names = [&operator.weight, &operator.output].map(|of| format!("{of}.bias.blochd"));
    let Some(name) = names.iter().find(|name| graph.weight(name).is_none()).cloned() else {
        return Err(OnnxError::Edit(format!("constant {:?} is there already", names[1])));
    };
    let node = operator.bias_node.unwrap_or(operator.node);
    let inputs = &graph.node(node).input;
    let number = old.and_then(|old| inputs.iter().position(|input| input == old)).unwrap_or(2);
    patch.constants.insert(name.clone(), tensor(&name, dtype, &dims, bytes));
    patch.inputs.insert((node, number), name);
    Ok(())
}

/// Finds operators again in a model that new nodes were put into; their outputs have kept their names.
fn renumber(operators_left: &mut VecDeque<Operator>, model: &Model) {
    let found: BTreeMap<String, Operator> = operators(&Graph::new(model))
        .into_iter()
        .map(|operator| (operator.output.clone(), operator))
        .collect();
    for operator in operators_left {
        if let Some(now) = found.get(&operator.output) {
            operator.clone_from(now);
        }
    }
}

/// Values of `cut` that may differ from those of `dense`: behind a changed constant or a changed input.
fn dirty_values(cut: &Graph, dense: &Graph) -> BTreeSet<String> {
    let mut dirty: BTreeSet<String> = BTreeSet::new();
    for (id, node) in cut.nodes().iter().enumerate() {
        let twin = node.output.first().and_then(|out| dense.producer(out)).map(|id| dense.node(id));
        let same_wiring = twin.is_some_and(|twin| twin.input == node.input);
        let changed = |name: &String| {
            dirty.contains(name)
                || cut.weight(name).is_some_and(|weight| {
                    let before = dense.weight(name).map(|weight| weight.tensor);
                    before.is_none_or(|tensor| {
                        tensor.dims != weight.tensor.dims
                            || tensor.raw_data != weight.tensor.raw_data
                    })
                })
        };
        let captured = cut.captured(id).into_iter().any(|name| dirty.contains(name));
        if !same_wiring || captured || node.input.iter().any(changed) {
            dirty.extend(node.output.iter().filter(|name| !name.is_empty()).cloned());
        }
    }
    dirty
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_nothing_beside_the_largest_is_stored_as_zero() {
        let mut values = [2.0, -1e-9, 3e-13, -1e-39, f32::MIN_POSITIVE, 0.0];
        flush_tiny(&mut values);
        assert_eq!(values, [2.0, -1e-9, 0.0, 0.0, 0.0, 0.0]);
        let mut small = [1e-38f32 / 4.0, -3e-38];
        flush_tiny(&mut small);
        assert_eq!(small, [0.0, -3e-38], "no subnormal is stored whatever stands beside it");
    }
}
