//! What an operator sees and says on calibration samples: rows (x, y) with y ≈ W·x + b, where x is the
//! flattened patch under the kernel. A bounded number of positions is drawn from every sample.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::onnx::{Graph, Operator, OperatorKind, Tensor};

/// Sampled rows of one operator (one group of its channels).
#[derive(Debug, Clone, Default)]
pub struct Rows {
    /// Length of x.
    pub inputs: usize,
    /// Length of y.
    pub outputs: usize,
    /// `count × inputs`, row-major.
    pub x: Vec<f32>,
    /// `count × outputs`, row-major.
    pub y: Vec<f32>,
    /// The sample (image) that each row comes from.
    pub sample: Vec<u32>,
}

impl Rows {
    /// Number of rows.
    pub fn count(&self) -> usize {
        self.sample.len()
    }

    /// The same rows with the columns `columns` of x alone.
    #[must_use]
    pub fn of_columns(&self, columns: std::ops::Range<usize>) -> Self {
        let mut x = Vec::with_capacity(self.count() * columns.len());
        for row in self.x.chunks_exact(self.inputs.max(1)) {
            x.extend_from_slice(&row[columns.clone()]);
        }
        let (y, sample) = (self.y.clone(), self.sample.clone());
        Self { inputs: columns.len(), outputs: self.outputs, x, y, sample }
    }
}

/// How an operator walks over its input.
///
/// A ConvTranspose adds overlapping copies of its kernel; seen from one output position, each kernel position
/// reads at most one input position (none where the strides leave a gap), so that y = W·x + b holds there as
/// for any other operator, with zeros in x where nothing is read.
#[derive(Debug, Clone)]
pub struct Geometry {
    kernel: Vec<usize>,
    strides: Vec<usize>,
    dilations: Vec<usize>,
    /// Explicit leading pads, or `None` where they follow from `auto_pad` and the sizes.
    pads: Option<Vec<usize>>,
    same_lower: bool,
    /// For each axis how many positions a ConvTranspose adds at the end; `None` for other operators.
    added: Option<Vec<usize>>,
    group: usize,
    inputs: usize,
    outputs: usize,
}

impl Geometry {
    /// The geometry of a Conv, ConvTranspose, Gemm or MatMul; `None` where an attribute is out of range.
    pub fn of(graph: &Graph, operator: &Operator) -> Option<Self> {
        let attrs = graph.attrs(operator.node);
        let rank = operator.kernel.len();
        let list = |name: &str, default: usize| -> Option<Vec<usize>> {
            match attrs.ints(name) {
                None => Some(vec![default; rank]),
                Some(values) => values.iter().map(|v| usize::try_from(*v).ok()).collect(),
            }
        };
        let steps =
            |name: &str| list(name, 1).filter(|steps| steps.len() == rank && !steps.contains(&0));
        let transposed = matches!(operator.kind, OperatorKind::ConvTranspose { .. });
        let auto = attrs.text("auto_pad").unwrap_or("NOTSET");
        let pads = match auto {
            // Where a ConvTranspose's output shape is given, pads follow from it and are not read.
            _ if transposed && attrs.ints("output_shape").is_some() => None,
            "SAME_UPPER" | "SAME_LOWER" => None,
            "VALID" => Some(vec![0; rank]),
            _ => Some(list("pads", 0)?),
        };
        Some(Self {
            kernel: operator.kernel.clone(),
            strides: steps("strides")?,
            dilations: steps("dilations")?,
            pads,
            same_lower: auto == "SAME_LOWER",
            added: if transposed { Some(list("output_padding", 0)?) } else { None },
            group: operator.group(),
            inputs: operator.inputs,
            outputs: operator.outputs,
        })
    }

    /// A map from `inputs` to `outputs` channels at every position of tensors of rank `rank`: channels on
    /// axis 1 where there are spatial axes (rank above 3), else on the last.
    pub fn pointwise(rank: usize, inputs: usize, outputs: usize) -> Self {
        let spatial = if rank > 3 { rank - 2 } else { 0 };
        Self {
            kernel: vec![1; spatial],
            strides: vec![1; spatial],
            dilations: vec![1; spatial],
            pads: Some(vec![0; spatial]),
            same_lower: false,
            added: None,
            group: 1,
            inputs,
            outputs,
        }
    }

    /// Leading pad of spatial axis `axis`. `None` where the two ends of a ConvTranspose cannot be padded alike:
    /// versions of the specification and of runtimes disagree about which one gets more.
    fn pad(&self, axis: usize, input: usize, output: usize) -> Option<isize> {
        if let Some(pads) = &self.pads {
            return Some(pads.get(axis).copied().unwrap_or(0) as isize);
        }
        let reach = (self.kernel[axis] - 1) * self.dilations[axis] + 1;
        let span = |length: usize| length.saturating_sub(1) * self.strides[axis] + reach;
        let Some(added) = &self.added else {
            let total = span(output).saturating_sub(input);
            let lead = if self.same_lower { total.div_ceil(2) } else { total / 2 };
            return Some(lead as isize);
        };
        let total = (span(input) + added.get(axis).copied().unwrap_or(0)).saturating_sub(output);
        total.is_multiple_of(2).then_some(total as isize / 2)
    }

    /// Where on an input axis of length `length` kernel position `tap` reads for output position `output`;
    /// `None` where it reads nothing.
    fn place(
        &self,
        axis: usize,
        output: usize,
        tap: usize,
        pad: isize,
        length: usize,
    ) -> Option<usize> {
        let (stride, tap) = (self.strides[axis], tap * self.dilations[axis]);
        let place = match self.added {
            None => (output * stride + tap) as isize - pad,
            Some(_) => {
                let scaled = output as isize + pad - tap as isize;
                (scaled % stride as isize == 0).then_some(scaled / stride as isize)?
            }
        };
        usize::try_from(place).ok().filter(|place| *place < length)
    }
}

/// Positions drawn from an operator's inputs and wanted outputs, from which the rows of each group of its
/// channels are read.
pub struct Sampler<'a> {
    geometry: &'a Geometry,
    batches: Vec<Planes>,
    /// The positions of each sample, through all batches.
    positions: Vec<Vec<usize>>,
    /// Samples in each batch.
    sizes: Vec<usize>,
}

impl<'a> Sampler<'a> {
    /// Draws about `limit` positions of `x` and `y`, one tensor a batch, of the batches that both have; the
    /// batch axis is the first. The same positions are drawn for the same `seed` and shapes.
    ///
    /// `None` where the tensors are not floating-point or their shapes do not fit the operator.
    pub fn new(
        geometry: &'a Geometry,
        x: &[Tensor],
        y: &[Tensor],
        limit: usize,
        seed: u64,
    ) -> Option<Self> {
        let x = &x[..x.len().min(y.len())];
        let samples: usize = x.iter().map(|t| t.shape.first().copied().unwrap_or(1)).sum();
        let per_sample = limit.div_ceil(samples.max(1)).max(1);
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let pairs = x.iter().zip(y).map(|(x, y)| Planes::of(geometry, x, y));
        let batches: Vec<Planes> = pairs.collect::<Option<_>>()?;
        let sizes = batches.iter().flat_map(|b| std::iter::repeat_n(b.positions, b.samples));
        let positions = sizes.map(|size| draw(&mut rng, size, per_sample)).collect();
        let sizes = batches.iter().map(|batch| batch.samples).collect();
        Some(Self { geometry, batches, positions, sizes })
    }

    /// Numbers rows by the samples that the model was given, `sizes` in each batch, where the operator's first
    /// axis holds something else: behind a flattening, every token of every sample.
    #[must_use]
    pub fn of_samples(mut self, sizes: &[usize]) -> Self {
        let own = self.batches.iter().map(|batch| batch.samples);
        self.sizes = own.enumerate().map(|(i, n)| sizes.get(i).copied().unwrap_or(n)).collect();
        self
    }

    /// The rows of group `group` (0 for an operator without groups).
    pub fn rows(&self, group: usize) -> Rows {
        let g = self.geometry;
        let inputs = g.inputs / g.group * g.kernel.iter().product::<usize>();
        let outputs = g.outputs / g.group;
        let count = self.positions.iter().map(Vec::len).sum::<usize>();
        let mut rows = Rows {
            inputs,
            outputs,
            x: Vec::with_capacity(count * inputs),
            y: Vec::with_capacity(count * outputs),
            sample: Vec::with_capacity(count),
        };
        let mut positions = self.positions.iter();
        let mut first = 0;
        for (batch, size) in self.batches.iter().zip(&self.sizes) {
            for (entry, positions) in (0..batch.samples).zip(&mut positions) {
                let number = first + entry * size / batch.samples;
                for position in positions {
                    batch.push(g, group, entry, *position, &mut rows);
                    rows.sample.push(number as u32);
                }
            }
            first += size;
        }
        rows
    }

    /// Values of another tensor a batch that is shaped as the operator's output, at the same positions:
    /// rows × outputs of the group. `None` where the shapes differ.
    pub fn outputs_of(&self, values: &[Tensor], group: usize) -> Option<Vec<f32>> {
        let g = self.geometry;
        let per_group = g.outputs / g.group;
        let mut out = Vec::new();
        let mut positions = self.positions.iter();
        for (batch, tensor) in self.batches.iter().zip(values) {
            let values = tensor.to_f32().filter(|values| values.len() == batch.y.len())?;
            for sample in 0..batch.samples {
                for position in positions.next()? {
                    out.extend((group * per_group..(group + 1) * per_group).map(|channel| {
                        values[match g.kernel.is_empty() {
                            true => (sample * batch.positions + position) * g.outputs + channel,
                            false => (sample * g.outputs + channel) * batch.positions + position,
                        }]
                    }));
                }
            }
        }
        Some(out)
    }
}

/// [`Sampler::rows`] of one group of one operator.
pub fn sample(
    geometry: &Geometry,
    x: &[Tensor],
    y: &[Tensor],
    group: usize,
    limit: usize,
    seed: u64,
) -> Option<Rows> {
    Some(Sampler::new(geometry, x, y, limit, seed)?.rows(group))
}

/// `count` different numbers below `total`, all where there are no more; ascending.
fn draw(rng: &mut ChaCha8Rng, total: usize, count: usize) -> Vec<usize> {
    if count >= total {
        return (0..total).collect();
    }
    // One number from each of `count` equal stretches: no repetition, and the whole image is covered.
    (0..count)
        .map(|part| {
            let (from, to) = (part * total / count, (part + 1) * total / count);
            rng.random_range(from..to.max(from + 1))
        })
        .collect()
}

/// One batch of an operator's input and output as planes.
struct Planes {
    x: Vec<f32>,
    y: Vec<f32>,
    samples: usize,
    positions: usize,
    /// Spatial sizes; empty where features stand on the last axis (Gemm, MatMul).
    in_size: Vec<usize>,
    out_size: Vec<usize>,
    pads: Vec<isize>,
}

impl Planes {
    fn of(geometry: &Geometry, x: &Tensor, y: &Tensor) -> Option<Self> {
        let (xs, ys) = (x.to_f32()?, y.to_f32()?);
        let samples = *x.shape.first()?;
        if samples == 0 || y.shape.first() != Some(&samples) {
            return None;
        }
        if geometry.kernel.is_empty() {
            let fits = x.shape.last() == Some(&geometry.inputs)
                && y.shape.last() == Some(&geometry.outputs)
                && xs.len() / geometry.inputs == ys.len() / geometry.outputs;
            let positions = xs.len() / geometry.inputs / samples;
            let (in_size, out_size, pads) = (Vec::new(), Vec::new(), Vec::new());
            let planes = Self { x: xs, y: ys, samples, positions, in_size, out_size, pads };
            return fits.then_some(planes);
        }
        let rank = geometry.kernel.len();
        let fits = x.shape.len() == rank + 2
            && y.shape.len() == rank + 2
            && x.shape[1] == geometry.inputs
            && y.shape[1] == geometry.outputs;
        if !fits {
            return None;
        }
        let (in_size, out_size) = (x.shape[2..].to_vec(), y.shape[2..].to_vec());
        let pad = |axis: usize| geometry.pad(axis, in_size[axis], out_size[axis]);
        let pads = (0..rank).map(pad).collect::<Option<_>>()?;
        let positions = out_size.iter().product();
        Some(Self { x: xs, y: ys, samples, positions, in_size, out_size, pads })
    }

    /// Appends the row at output position `position` of sample `sample`.
    fn push(&self, g: &Geometry, group: usize, sample: usize, position: usize, rows: &mut Rows) {
        if g.kernel.is_empty() {
            let row = sample * self.positions + position;
            rows.x.extend_from_slice(&self.x[row * g.inputs..][..g.inputs]);
            rows.y.extend_from_slice(&self.y[row * g.outputs..][..g.outputs]);
            return;
        }
        let (per_in, per_out) = (g.inputs / g.group, g.outputs / g.group);
        let in_plane: usize = self.in_size.iter().product();
        let offsets = self.offsets(g, position);
        for channel in group * per_in..(group + 1) * per_in {
            let plane = &self.x[(sample * g.inputs + channel) * in_plane..][..in_plane];
            rows.x.extend(offsets.iter().map(|offset| offset.map_or(0.0, |at| plane[at])));
        }
        for channel in group * per_out..(group + 1) * per_out {
            rows.y.push(self.y[(sample * g.outputs + channel) * self.positions + position]);
        }
    }

    /// Where each kernel position reads in an input plane; `None` in the padding.
    fn offsets(&self, g: &Geometry, position: usize) -> Vec<Option<usize>> {
        let corner = unravel(position, &self.out_size);
        let taps: usize = g.kernel.iter().product();
        (0..taps)
            .map(|tap| {
                let at = unravel(tap, &g.kernel);
                (0..at.len()).try_fold(0, |index, axis| {
                    let length = self.in_size[axis];
                    let place = g.place(axis, corner[axis], at[axis], self.pads[axis], length)?;
                    Some(index * length + place)
                })
            })
            .collect()
    }
}

/// Row-major coordinates of `index` in an array of the given sizes.
fn unravel(index: usize, sizes: &[usize]) -> Vec<usize> {
    let mut rest = index;
    let mut at = vec![0; sizes.len()];
    for axis in (0..sizes.len()).rev() {
        at[axis] = rest % sizes[axis];
        rest /= sizes[axis];
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_token_of_a_sample_has_its_samples_number() {
        let geometry = Geometry::pointwise(2, 1, 1);
        let tokens = |count: usize| Tensor::from_f32(&[count, 1], &vec![1.0; count]);
        // Two batches of two samples with three tokens each, flattened.
        let values = [tokens(6), tokens(6)];
        let sampler = Sampler::new(&geometry, &values, &values, 100, 1).unwrap();
        let rows = sampler.of_samples(&[2, 2]).rows(0);
        assert_eq!(rows.sample, [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]);
        let sampler = Sampler::new(&geometry, &values, &values, 100, 1).unwrap();
        assert_eq!(sampler.rows(0).sample, (0..12).collect::<Vec<_>>());
    }
}
