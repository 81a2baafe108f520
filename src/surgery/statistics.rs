//! The repair of an operator whose weights cannot be refitted: others read them as well, or what it does is
//! no plain W·x + b of rows that can be drawn. Mean and variance of each of its outputs are made dense's
//! again, by a scale and a shift that go into its own constants where they are its own, else into nodes
//! behind it.

use super::refit::{RefitKind, matching_scale};
use super::repair::{is_held_out, set_bias};
use crate::onnx::proto::NodeProto;
use crate::onnx::{DType, Graph, OnnxError, Operator, OperatorKind, Patch, Tensor, tensor, values};

/// y → scale·y + shift for each output.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Correction {
    /// `None` where only the means are corrected.
    scale: Option<Vec<f32>>,
    shift: Vec<f32>,
    pub kind: RefitKind,
    /// Mean squared error on the held-out samples, relative to the variance of what is wanted there.
    pub before: f64,
    pub after: f64,
}

/// Sums over pairs of what is said and what is wanted, of one output.
#[derive(Debug, Clone, Copy, Default)]
struct Sums {
    count: f64,
    said: f64,
    wanted: f64,
    said_said: f64,
    said_wanted: f64,
    wanted_wanted: f64,
}

impl Sums {
    fn add(&mut self, said: f64, wanted: f64) {
        self.count += 1.0;
        self.said += said;
        self.wanted += wanted;
        self.said_said += said * said;
        self.said_wanted += said * wanted;
        self.wanted_wanted += wanted * wanted;
    }

    /// Variances of what is said and of what is wanted.
    fn variances(&self) -> (f64, f64) {
        let variance = |square: f64, sum: f64| (square - sum * sum / self.count).max(0.0);
        let (said, wanted) =
            (variance(self.said_said, self.said), variance(self.wanted_wanted, self.wanted));
        (said / self.count, wanted / self.count)
    }

    /// Σ (wanted − scale·said − shift)².
    fn error(&self, scale: f64, shift: f64) -> f64 {
        let along = scale * scale * self.said_said - 2.0 * scale * self.said_wanted;
        let across = shift * (self.count * shift + 2.0 * (scale * self.said - self.wanted));
        (self.wanted_wanted + along + across).max(0.0)
    }
}

/// The correction of an operator's outputs that is best on the held-out samples; `None` where none is better
/// than what is `said` now. One tensor a batch; outputs stand on the last axis or on axis 1.
pub(super) fn correct(
    said: &[Tensor],
    wanted: &[Tensor],
    outputs: usize,
    features_last: bool,
) -> Option<Correction> {
    let (mut fit, mut check) = (vec![Sums::default(); outputs], vec![Sums::default(); outputs]);
    let mut number = 0;
    for (said, wanted) in said.iter().zip(wanted) {
        let axis = if features_last { said.shape.len().checked_sub(1)? } else { 1 };
        if said.shape != wanted.shape || said.shape.get(axis) != Some(&outputs) {
            return None;
        }
        let inner: usize = said.shape[axis + 1..].iter().product();
        let samples = said.shape[0];
        let (said, wanted) = (said.to_f32()?, wanted.to_f32()?);
        let each = said.len() / samples.max(1);
        for (at, (said, wanted)) in said.iter().zip(&wanted).enumerate() {
            let sample = number + at / each.max(1);
            let sums = if is_held_out(sample as u32) { &mut check } else { &mut fit };
            sums[at / inner % outputs].add(f64::from(*said), f64::from(*wanted));
        }
        number += samples;
    }
    if fit.iter().chain(&check).any(|sums| sums.count == 0.0) {
        return None;
    }
    let whole: f64 = check.iter().map(|sums| sums.variances().1 * sums.count).sum();
    let relative = |maps: &[(f64, f64)]| {
        let errors =
            check.iter().zip(maps).map(|(sums, (scale, shift))| sums.error(*scale, *shift));
        errors.sum::<f64>() / whole.max(f64::MIN_POSITIVE)
    };
    let before = relative(&vec![(1.0, 0.0); outputs]);
    let matched = |scale: fn(f64, f64) -> f64| -> Vec<(f64, f64)> {
        let map = |sums: &Sums| {
            let (said, wanted) = sums.variances();
            let scale = scale(said, wanted);
            (scale, (sums.wanted - scale * sums.said) / sums.count)
        };
        fit.iter().map(map).collect()
    };
    let candidates =
        [(RefitKind::Bias, matched(|_, _| 1.0)), (RefitKind::Statistics, matched(matching_scale))];
    let mut best: Option<Correction> = None;
    for (kind, maps) in candidates {
        let after = relative(&maps);
        // A comparison that is false for NaN: a failed candidate never wins.
        if after < best.as_ref().map_or(before, |best| best.after) {
            let scale = maps.iter().map(|(scale, _)| *scale as f32);
            let scale = (kind == RefitKind::Statistics).then(|| scale.collect());
            let shift = maps.iter().map(|(_, shift)| *shift as f32).collect();
            best = Some(Correction { scale, shift, kind, before, after });
        }
    }
    best
}

impl Correction {
    /// The edit that brings it about. Where new nodes are needed, the operator's output keeps its name.
    ///
    /// # Errors
    /// Where a weight's data is missing.
    pub fn patch(&self, graph: &Graph, operator: &Operator) -> Result<Patch, OnnxError> {
        let mut patch = Patch::default();
        let bias = own_bias(graph, operator);
        let own_weight = graph.uses(&operator.weight).len() == 1;
        match (bias, &self.scale) {
            (Some(bias), None) => {
                let bias: Vec<f32> = bias.iter().zip(&self.shift).map(|(b, t)| b + t).collect();
                set_bias(graph, operator, &unscaled(graph, operator, bias), &mut patch)?;
            }
            (Some(mut bias), Some(scale)) if own_weight => {
                let mut matrix = operator.matrix(graph)?;
                for (row, scale) in matrix.data.chunks_exact_mut(matrix.cols.max(1)).zip(scale) {
                    row.iter_mut().for_each(|weight| *weight *= scale);
                }
                let weight = operator.weight_tensor(graph, &matrix)?;
                patch.constants.insert(operator.weight.clone(), weight);
                for (bias, (scale, shift)) in bias.iter_mut().zip(scale.iter().zip(&self.shift)) {
                    // What is added behind the output is not scaled with it.
                    *bias = *bias * if operator.bias_behind { 1.0 } else { *scale } + shift;
                }
                set_bias(graph, operator, &unscaled(graph, operator, bias), &mut patch)?;
            }
            _ => self.behind(graph, operator, &mut patch)?,
        }
        Ok(patch)
    }

    /// Multiplies and adds in nodes of their own.
    fn behind(
        &self,
        graph: &Graph,
        operator: &Operator,
        patch: &mut Patch,
    ) -> Result<(), OnnxError> {
        let writer = graph.producer(&operator.output).unwrap_or(operator.node);
        let outputs = &graph.node(writer).output;
        let number = outputs.iter().position(|name| *name == operator.output).unwrap_or(0);
        let dtype = graph.weight_dtype(&operator.weight).unwrap_or(DType::F32);
        // Channels of images stand before the spatial axes.
        let dims: Vec<usize> =
            std::iter::once(operator.outputs).chain(operator.kernel.iter().map(|_| 1)).collect();
        let mut steps = vec![("Add", &self.shift)];
        if let Some(scale) = &self.scale {
            steps.insert(0, ("Mul", scale));
        }
        let raw = |step: usize| format!("{}.raw{step}.blochd", operator.output);
        patch.outputs.insert((writer, number), raw(0));
        let last = steps.len();
        for (step, (op, by)) in steps.into_iter().enumerate() {
            let constant = format!("{}.{}.blochd", operator.output, op.to_lowercase());
            if graph.weight(&constant).is_some() {
                return Err(OnnxError::Edit(format!("constant {constant:?} is there already")));
            }
            let bytes = values::float_bytes(dtype, by).unwrap_or_default();
            patch.constants.insert(constant.clone(), tensor(&constant, dtype, &dims, bytes));
            let output = if step + 1 == last { operator.output.clone() } else { raw(step + 1) };
            let node = NodeProto {
                op_type: Some(op.to_owned()),
                name: Some(format!("{}.{}.blochd", operator.name, op.to_lowercase())),
                input: vec![raw(step), constant],
                output: vec![output],
                ..Default::default()
            };
            patch.insert.push((writer + 1, node));
        }
        Ok(())
    }
}

/// The bias as one value an output, as the operator adds it; `None` where it cannot be given a new one.
fn own_bias(graph: &Graph, operator: &Operator) -> Option<Vec<f32>> {
    let Some(name) = &operator.bias else {
        let takes_one = operator.kind != OperatorKind::MatMul && beta(graph, operator) != 0.0;
        return takes_one.then(|| vec![0.0; operator.outputs]);
    };
    let stored = graph.floats(name)?;
    let beta = beta(graph, operator);
    let stored = match stored.len() {
        1 => vec![stored[0]; operator.outputs],
        length => (length == operator.outputs).then_some(stored)?,
    };
    (beta != 0.0).then(|| stored.into_iter().map(|bias| bias * beta).collect())
}

/// The constant behind which a Gemm adds `bias`.
fn unscaled(graph: &Graph, operator: &Operator, bias: Vec<f32>) -> Vec<f32> {
    let beta = beta(graph, operator);
    bias.into_iter().map(|bias| bias / beta).collect()
}

/// By what a Gemm multiplies its bias.
fn beta(graph: &Graph, operator: &Operator) -> f32 {
    match operator.kind {
        OperatorKind::Gemm { .. } => graph.attrs(operator.node).float("beta").unwrap_or(1.0),
        _ => 1.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `said` of 20 samples of three channels of 2 × 2, and what `map` makes of each channel's values.
    fn pair(map: impl Fn(usize, usize, f32) -> f32) -> (Vec<Tensor>, Vec<Tensor>) {
        let value = |i: usize| ((i * 7919 + i * i * 31) % 997) as f32 / 498.5 - 1.0;
        let batch = |first: usize| {
            let said: Vec<f32> = (0..10 * 12).map(|i| value(first + i)).collect();
            let each =
                |(at, said): (usize, &f32)| map(first / 120 * 10 + at / 12, at / 4 % 3, *said);
            let wanted: Vec<f32> = said.iter().enumerate().map(each).collect();
            [said, wanted].map(|values| Tensor::from_f32(&[10, 3, 2, 2], &values))
        };
        [0, 120].map(batch).into_iter().map(|[said, wanted]| (said, wanted)).unzip()
    }

    #[test]
    fn mean_and_variance_of_every_channel_are_made_right() {
        let scale = [2.0, 0.5, 3.0];
        let (said, wanted) = pair(|_, channel, value| scale[channel] * value + channel as f32);
        let found = correct(&said, &wanted, 3, false).unwrap();
        assert_eq!(found.kind, RefitKind::Statistics);
        let close = |a: &[f32], b: [f32; 3]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-3);
        assert!(close(found.scale.as_ref().unwrap(), scale), "{found:?}");
        assert!(close(&found.shift, [0.0, 1.0, 2.0]), "{found:?}");
        assert!(found.after < 1e-6 && found.before > 0.1);
    }

    #[test]
    fn a_variance_that_is_no_part_of_the_signal_is_not_matched() {
        // What is wanted is louder but has nothing to do with what is said: only the mean is worth moving.
        let unrelated = |value: f32| {
            let mixed = u64::from(value.to_bits()).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            ((mixed >> 40) % 17) as f32
        };
        let (said, wanted) = pair(|_, _, value| 5.0 + unrelated(value));
        let found = correct(&said, &wanted, 3, false).unwrap();
        assert_eq!((found.kind, found.scale), (RefitKind::Bias, None));
    }

    #[test]
    fn what_the_held_out_samples_do_not_bear_out_is_not_kept() {
        let (said, wanted) =
            pair(|sample, _, value| if is_held_out(sample as u32) { value } else { value + 2.0 });
        assert_eq!(correct(&said, &wanted, 3, false), None);
        let (said, same) = pair(|_, _, value| value);
        assert_eq!(correct(&said, &same, 3, false), None);
    }

    #[test]
    fn values_of_another_shape_or_without_samples_to_judge_by_correct_nothing() {
        let (said, wanted) = pair(|_, _, value| 2.0 * value);
        assert_eq!(correct(&said, &wanted, 4, false), None);
        assert_eq!(correct(&said, &wanted, 3, true), None);
        assert_eq!(correct(&[], &[], 3, false), None);
        let first = |tensors: &[Tensor]| {
            vec![Tensor {
                shape: vec![1, 3, 2, 2],
                data: tensors[0].data.slice(..48),
                ..tensors[0].clone()
            }]
        };
        assert_eq!(correct(&first(&said), &first(&wanted), 3, false), None);
    }
}
