//! Draws rows from values of a network on the samples: a bounded number of positions of every sample.

use std::ops::Range;

use bytes::Bytes;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::rows::{Geometry, RowSource, Rows};
use crate::limits;
use crate::onnx::{DType, Tensor};

/// Positions drawn from an operator's inputs and wanted outputs, from which the rows of each group of its
/// channels are read. Holds the values, not the rows, which take up to a kernel's size times as much.
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

    /// The rows of group `group` (0 for an operator without groups), each made when it is asked for.
    pub fn drawn(&self, group: usize) -> Drawn<'_> {
        let g = self.geometry;
        let inputs = g.inputs / g.group * g.kernel.iter().product::<usize>();
        self.drawn_columns(group, 0..inputs)
    }

    /// The same with the columns `columns` of x alone: whole channels.
    pub fn drawn_columns(&self, group: usize, columns: Range<usize>) -> Drawn<'_> {
        let taps = self.geometry.kernel.iter().product::<usize>().max(1);
        let mut positions = self.positions.iter();
        let (mut places, mut samples) = (Vec::new(), Vec::new());
        let mut first = 0;
        for (number, (batch, size)) in self.batches.iter().zip(&self.sizes).enumerate() {
            for (entry, positions) in (0..batch.samples).zip(&mut positions) {
                let sample = (first + entry * size / batch.samples) as u32;
                places.extend(positions.iter().map(|position| (number, entry, *position)));
                samples.extend(std::iter::repeat_n(sample, positions.len()));
            }
            first += size;
        }
        let channels = columns.start / taps..columns.end.div_ceil(taps);
        Drawn { sampler: self, group, channels, taps, places, samples }
    }

    /// The rows of group `group`: held where they are few, else made anew whenever they are asked for.
    pub fn source(&self, group: usize) -> Box<dyn RowSource + '_> {
        let drawn = self.drawn(group);
        match 4 * drawn.samples.len() * drawn.inputs() <= limits::HELD_ROWS_BYTES {
            true => Box::new(drawn.held()),
            false => Box::new(drawn),
        }
    }

    /// The rows of group `group`, held.
    pub fn rows(&self, group: usize) -> Rows {
        self.drawn(group).held()
    }

    /// Values of another tensor a batch that is shaped as the operator's output, at the same positions:
    /// rows × outputs of the group. `None` where the shapes differ.
    pub fn outputs_of(&self, values: &[Tensor], group: usize) -> Option<Vec<f32>> {
        let mut out = Vec::new();
        let mut positions = self.positions.iter();
        for (batch, tensor) in self.batches.iter().zip(values) {
            let values = floats(tensor).filter(|values| values.len() == batch.y.len())?;
            for sample in 0..batch.samples {
                for position in positions.next()? {
                    let at = (sample, *position);
                    batch.push_outputs(elements(&values), self.geometry, group, at, &mut out);
                }
            }
        }
        Some(out)
    }
}

/// The rows of one group of an operator's channels.
pub struct Drawn<'a> {
    sampler: &'a Sampler<'a>,
    group: usize,
    /// Input channels of the group that x holds.
    channels: Range<usize>,
    taps: usize,
    /// Batch, its entry and the position of every row.
    places: Vec<(usize, usize, usize)>,
    samples: Vec<u32>,
}

impl Drawn<'_> {
    /// The same rows, made once and held.
    fn held(self) -> Rows {
        let (inputs, outputs, count) = (self.inputs(), self.outputs(), self.samples.len());
        let mut x = Vec::with_capacity(count * inputs);
        let mut y = Vec::with_capacity(count * outputs);
        for row in 0..count {
            self.push_x(row, &mut x);
            self.push_y(row, &mut y);
        }
        Rows { inputs, outputs, x, y, sample: self.samples }
    }
}

impl RowSource for Drawn<'_> {
    fn inputs(&self) -> usize {
        self.channels.len() * self.taps
    }

    fn outputs(&self) -> usize {
        self.sampler.geometry.outputs / self.sampler.geometry.group
    }

    fn samples(&self) -> &[u32] {
        &self.samples
    }

    fn push_x(&self, row: usize, into: &mut Vec<f32>) {
        let (batch, entry, position) = self.places[row];
        let g = self.sampler.geometry;
        let first = self.group * (g.inputs / g.group);
        let channels = first + self.channels.start..first + self.channels.end;
        self.sampler.batches[batch].push_x(g, channels, (entry, position), into);
    }

    fn push_y(&self, row: usize, into: &mut Vec<f32>) {
        let (batch, entry, position) = self.places[row];
        let g = self.sampler.geometry;
        let batch = &self.sampler.batches[batch];
        batch.push_outputs(elements(&batch.y), g, self.group, (entry, position), into);
    }
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

/// The values of a floating-point tensor as the bytes of `f32`: its own where they are that already.
fn floats(tensor: &Tensor) -> Option<Bytes> {
    if tensor.dtype == DType::F32 {
        return Some(tensor.data.clone());
    }
    let values = tensor.to_f32()?;
    Some(values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>().into())
}

fn elements(bytes: &[u8]) -> &[[u8; 4]] {
    bytes.as_chunks().0
}

/// One batch of an operator's input and output as planes.
struct Planes {
    x: Bytes,
    y: Bytes,
    samples: usize,
    positions: usize,
    /// Spatial sizes; empty where features stand on the last axis (Gemm, MatMul).
    in_size: Vec<usize>,
    out_size: Vec<usize>,
    pads: Vec<isize>,
}

impl Planes {
    fn of(geometry: &Geometry, x: &Tensor, y: &Tensor) -> Option<Self> {
        let (x_shape, y_shape) = (&x.shape, &y.shape);
        let (x, y) = (floats(x)?, floats(y)?);
        let (x_length, y_length) = (elements(&x).len(), elements(&y).len());
        let samples = *x_shape.first()?;
        if samples == 0 || y_shape.first() != Some(&samples) {
            return None;
        }
        if geometry.kernel.is_empty() {
            let fits = x_shape.last() == Some(&geometry.inputs)
                && y_shape.last() == Some(&geometry.outputs)
                && x_length / geometry.inputs == y_length / geometry.outputs;
            let positions = x_length / geometry.inputs / samples;
            let (in_size, out_size, pads) = (Vec::new(), Vec::new(), Vec::new());
            let planes = Self { x, y, samples, positions, in_size, out_size, pads };
            return fits.then_some(planes);
        }
        let rank = geometry.kernel.len();
        let fits = x_shape.len() == rank + 2
            && y_shape.len() == rank + 2
            && x_shape[1] == geometry.inputs
            && y_shape[1] == geometry.outputs;
        if !fits {
            return None;
        }
        let (in_size, out_size) = (x_shape[2..].to_vec(), y_shape[2..].to_vec());
        let pad = |axis: usize| geometry.pad(axis, in_size[axis], out_size[axis]);
        let pads = (0..rank).map(pad).collect::<Option<_>>()?;
        let positions = out_size.iter().product();
        Some(Self { x, y, samples, positions, in_size, out_size, pads })
    }

    /// Appends what stands under the kernel of `channels` at an output position (sample, position).
    fn push_x(
        &self,
        g: &Geometry,
        channels: Range<usize>,
        (sample, position): (usize, usize),
        into: &mut Vec<f32>,
    ) {
        let values = elements(&self.x);
        if g.kernel.is_empty() {
            let row = &values[(sample * self.positions + position) * g.inputs..][..g.inputs];
            into.extend(row[channels].iter().map(|value| f32::from_le_bytes(*value)));
            return;
        }
        let in_plane: usize = self.in_size.iter().product();
        let offsets = self.offsets(g, position);
        for channel in channels {
            let plane = &values[(sample * g.inputs + channel) * in_plane..][..in_plane];
            let read = |at| f32::from_le_bytes(plane[at]);
            into.extend(offsets.iter().map(|offset| offset.map_or(0.0, read)));
        }
    }

    /// Appends what the channels of group `group` say there in `values`, which are shaped as the output.
    fn push_outputs(
        &self,
        values: &[[u8; 4]],
        g: &Geometry,
        group: usize,
        (sample, position): (usize, usize),
        into: &mut Vec<f32>,
    ) {
        let per_group = g.outputs / g.group;
        let channels = group * per_group..(group + 1) * per_group;
        if g.kernel.is_empty() {
            let row = &values[(sample * self.positions + position) * g.outputs..][..g.outputs];
            into.extend(row[channels].iter().map(|value| f32::from_le_bytes(*value)));
            return;
        }
        into.extend(channels.map(|channel| {
            f32::from_le_bytes(values[(sample * g.outputs + channel) * self.positions + position])
        }));
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
