//! Response states: what every channel says on calibration samples, as centred second moments that grow
//! batch by batch. h_i is channel i's activation over all sampled positions, less its mean; h_i/‖h_i‖ its
//! state. The best affine substitute a·h_j + c of channel i errs by exactly ‖h_i‖·sin d_ij with
//! d_ij = arccos|corr(h_i, h_j)|, and both a and c fold into whoever reads the channel.

use std::collections::BTreeMap;
use std::f64::consts::FRAC_PI_2;

use faer::linalg::matmul::triangular::{self, BlockStructure};
use faer::{Accum, Mat, MatRef, Par};

use crate::limits;
use crate::onnx::{Engine, ExecError, Model, Tensor, with_outputs};
use crate::units::Digest;

/// Second moments of the channels of one value. Memory is channels² · 8 bytes, whatever the number of samples.
#[derive(Debug, Clone)]
pub struct ChannelMoments {
    count: f64,
    mean: Vec<f64>,
    /// Σ (x − mean)(x − mean)ᵀ, lower half.
    scatter: Mat<f64>,
}

impl ChannelMoments {
    /// No samples yet.
    pub fn new(channels: usize) -> Self {
        Self { count: 0.0, mean: vec![0.0; channels], scatter: Mat::zeros(channels, channels) }
    }

    /// Number of channels.
    pub fn channels(&self) -> usize {
        self.mean.len()
    }

    /// Number of rows (positions of samples) so far.
    pub fn rows(&self) -> u64 {
        self.count as u64
    }

    /// A digest of everything that is known of the channels.
    fn digest(&self, hasher: &mut blake3::Hasher) {
        let n = self.channels();
        hasher.update(&(n as u64).to_le_bytes()).update(&self.count.to_le_bytes());
        let mut column = Vec::with_capacity(8 * n);
        let mut add = |values: &mut dyn Iterator<Item = f64>| {
            column.clear();
            values.for_each(|value| column.extend_from_slice(&value.to_le_bytes()));
            hasher.update(&column);
        };
        add(&mut self.mean.iter().copied());
        (0..n).for_each(|j| add(&mut (j..n).map(|i| self.scatter[(i, j)])));
    }

    /// Mean of a channel.
    pub fn mean(&self, channel: usize) -> f64 {
        self.mean[channel]
    }

    /// Covariance of two channels; 0 without rows.
    pub fn covariance(&self, i: usize, j: usize) -> f64 {
        let (low, high) = (i.min(j), i.max(j));
        if self.count > 0.0 { self.scatter[(high, low)] / self.count } else { 0.0 }
    }

    /// ‖h_i‖ as a standard deviation: the root mean square of the centred activation.
    pub fn norm(&self, channel: usize) -> f64 {
        self.covariance(channel, channel).max(0.0).sqrt()
    }

    /// |corr(h_i, h_j)|, 0 to 1; `None` where a channel does not vary.
    pub fn correlation(&self, i: usize, j: usize) -> Option<f64> {
        let norms = self.norm(i) * self.norm(j);
        (norms > 0.0).then(|| (self.covariance(i, j).abs() / norms).min(1.0))
    }

    /// d_response = arccos|corr|, 0 to π/2. A channel that does not vary is represented by any other without
    /// error: it is at distance 0 from all.
    pub fn distance(&self, i: usize, j: usize) -> f64 {
        if i == j || self.norm(i) <= 0.0 || self.norm(j) <= 0.0 {
            let dead = self.norm(i) <= 0.0 || i == j;
            return if dead { 0.0 } else { FRAC_PI_2 };
        }
        let (i, j) = (i.max(j), i.min(j));
        // From the residual 1 − corr², where arccos would lose half of the digits.
        let (a, b, c) = (self.covariance(i, i), self.covariance(j, j), self.covariance(i, j));
        let cos = c.abs() / (a.sqrt() * b.sqrt());
        let sin = ((1.0 - cos) * (1.0 + cos)).max(0.0).sqrt();
        sin.atan2(cos)
    }

    /// Root-mean-square error ‖h_i‖·sin d_ij of the best affine substitute of channel `i` by `j`.
    pub fn substitution_error(&self, i: usize, j: usize) -> f64 {
        self.norm(i) * self.distance(i, j).sin()
    }

    /// The best affine substitute of channel `i` by `j`: (a, c) of a·x_j + c.
    pub fn substitute(&self, i: usize, j: usize) -> (f64, f64) {
        let variance = self.covariance(j, j);
        let a = if variance > 0.0 { self.covariance(i, j) / variance } else { 0.0 };
        (a, self.mean[i] - a * self.mean[j])
    }

    /// Root-mean-square error on *these* rows of the substitute (a, c) of channel `i` by `j`.
    pub fn error_of(&self, i: usize, j: usize, (a, c): (f64, f64)) -> f64 {
        let shift = self.mean[i] - a * self.mean[j] - c;
        let (own, other) = (self.covariance(i, i), self.covariance(j, j));
        let spread = own - 2.0 * a * self.covariance(i, j) + a * a * other;
        (spread.max(0.0) + shift * shift).sqrt()
    }

    /// Adds rows: `rows × channels` values, row-major (Chan, Golub & LeVeque's pairwise update).
    pub fn add(&mut self, values: &[f64]) {
        let n = self.channels();
        if n == 0 || values.len() < n {
            return;
        }
        let rows = values.len() / n;
        let count = rows as f64;
        let mut mean = vec![0.0; n];
        for row in values.chunks_exact(n) {
            mean.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
        }
        mean.iter_mut().for_each(|sum| *sum /= count);
        let mut centred = Vec::with_capacity(rows * n);
        for row in values.chunks_exact(n) {
            centred.extend(row.iter().zip(&mean).map(|(value, mean)| value - mean));
        }
        let x = MatRef::from_column_major_slice(&centred, n, rows);
        triangular::matmul(
            self.scatter.as_mut(),
            BlockStructure::TriangularLower,
            Accum::Add,
            x,
            BlockStructure::Rectangular,
            x.transpose(),
            BlockStructure::Rectangular,
            1.0,
            Par::Seq,
        );
        let total = self.count + count;
        let weight = self.count * count / total;
        let gap: Vec<f64> = mean.iter().zip(&self.mean).map(|(new, old)| new - old).collect();
        for j in 0..n {
            (j..n).for_each(|i| self.scatter[(i, j)] += weight * gap[i] * gap[j]);
        }
        self.mean.iter_mut().zip(&gap).for_each(|(mean, gap)| *mean += gap * count / total);
        self.count = total;
    }
}

/// The moments of one value, apart for the samples that fit and those that check.
#[derive(Debug, Clone)]
pub struct Response {
    /// Over the samples that distances and substitutes come from.
    pub fit: ChannelMoments,
    /// Over every fifth sample, which the fit does not see; empty below five samples.
    pub held_out: ChannelMoments,
}

impl Response {
    /// A digest of the moments: equal where the channels say the same on the same samples.
    pub fn digest(&self) -> Digest {
        let mut hasher = blake3::Hasher::new_derive_key("blochd response");
        self.fit.digest(&mut hasher);
        self.held_out.digest(&mut hasher);
        Digest::from_bytes(*hasher.finalize().as_bytes())
    }
}

/// Every fifth sample is held out, as in the refit.
const HELD_OUT: usize = 5;

/// A value of the graph whose channels are to be measured.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Probe {
    /// The value's name.
    pub value: String,
    /// Number of channels.
    pub channels: usize,
    /// Whether channels stand on axis 1 (images) rather than on the last axis (features).
    pub image: bool,
}

/// Runs `model` on the batches and gathers the moments of every probe's channels. Values are computed in
/// as many passes as keep the moments within [`limits::RESPONSE_BYTES`], and of every sample at most
/// [`limits::RESPONSE_POSITIONS`] positions count. Probes whose tensors are not floating-point or not of the
/// stated width are left out of the result. `done(passes finished, of)` is called between passes.
///
/// # Errors
/// Where the runtime refuses the model or a batch.
pub fn measure(
    engine: &dyn Engine,
    model: &Model,
    batches: &[BTreeMap<String, Tensor>],
    probes: &[Probe],
    done: &mut dyn FnMut(usize, usize),
) -> Result<BTreeMap<String, Response>, ExecError> {
    let passes = split(probes);
    let mut found = BTreeMap::new();
    for (number, pass) in passes.iter().enumerate() {
        done(number, passes.len());
        let names = pass.iter().map(|probe| probe.value.as_str());
        let wider = with_outputs(model, names).map_err(|error| ExecError {
            doing: "adding outputs to the model".to_owned(),
            reason: error.to_string(),
        })?;
        let places = output_places(&wider, pass);
        let mut session = engine.open(&wider)?;
        let mut responses: Vec<Option<Response>> = pass
            .iter()
            .map(|probe| {
                let empty = || ChannelMoments::new(probe.channels);
                Some(Response { fit: empty(), held_out: empty() })
            })
            .collect();
        let mut first = 0;
        for batch in batches {
            let inputs: Vec<(&str, &Tensor)> =
                batch.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
            let outputs = session.run(&inputs)?;
            let samples = batch.values().filter_map(|t| t.shape.first()).copied().max();
            let samples = samples.unwrap_or(1);
            for ((probe, response), place) in pass.iter().zip(&mut responses).zip(&places) {
                let tensor = place.and_then(|place| outputs.get(place));
                let added = tensor
                    .zip(response.as_mut())
                    .and_then(|(tensor, r)| r.add(probe, tensor, samples, first));
                if added.is_none() {
                    *response = None;
                }
            }
            first += samples;
        }
        let named = pass.iter().zip(responses);
        found.extend(named.filter_map(|(probe, r)| Some((probe.value.clone(), r?))));
    }
    done(passes.len(), passes.len());
    Ok(found)
}

/// Splits the probes so that the moments of one pass fit into memory.
fn split(probes: &[Probe]) -> Vec<Vec<&Probe>> {
    let mut passes: Vec<Vec<&Probe>> = Vec::new();
    let mut held = u64::MAX;
    for probe in probes.iter().filter(|probe| probe.channels <= limits::RESPONSE_CHANNELS) {
        let bytes = 2 * 8 * (probe.channels as u64).pow(2);
        let full = passes.last().is_none_or(|pass| pass.len() >= limits::RESPONSE_OUTPUTS);
        if full || held.saturating_add(bytes) > limits::RESPONSE_BYTES {
            passes.push(Vec::new());
            held = 0;
        }
        held += bytes;
        passes.last_mut().into_iter().for_each(|pass| pass.push(probe));
    }
    passes
}

fn output_places(model: &Model, pass: &[&Probe]) -> Vec<Option<usize>> {
    let outputs = &model.graph().output;
    let place = |probe: &&Probe| {
        outputs.iter().position(|output| output.name.as_deref() == Some(&probe.value))
    };
    pass.iter().map(place).collect()
}

impl Response {
    /// Adds the rows of one batch of `samples` samples, the first of which is number `first`.
    fn add(&mut self, probe: &Probe, tensor: &Tensor, samples: usize, first: usize) -> Option<()> {
        let values = tensor.to_f32()?;
        let axis = if probe.image { 1 } else { tensor.shape.len().checked_sub(1)? };
        if tensor.shape.get(axis) != Some(&probe.channels) || values.is_empty() {
            return None;
        }
        // The first axis counts samples where its length says so; else the whole batch is one sample.
        let samples = if tensor.shape[0] == samples && axis > 0 { samples } else { 1 };
        let per_sample = values.len() / samples;
        let positions = per_sample / probe.channels;
        for (number, sample) in values.chunks_exact(per_sample).enumerate() {
            let mut rows = Vec::new();
            for position in spread(positions) {
                let at = |channel: usize| match probe.image {
                    true => sample[channel * positions + position],
                    false => sample[position * probe.channels + channel],
                };
                rows.extend((0..probe.channels).map(|channel| f64::from(at(channel))));
            }
            if rows.iter().any(|value| !value.is_finite()) {
                return None;
            }
            let held_out = (first + number) % HELD_OUT == HELD_OUT - 1;
            let moments = if held_out { &mut self.held_out } else { &mut self.fit };
            moments.add(&rows);
        }
        Some(())
    }
}

/// Evenly spread positions, at most [`limits::RESPONSE_POSITIONS`]. Each is drawn from its own stretch by the
/// golden ratio's sequence, so that no column of an image is favoured.
fn spread(total: usize) -> impl Iterator<Item = usize> {
    const GOLDEN: f64 = 0.618_033_988_749_894_9;
    let count = total.min(limits::RESPONSE_POSITIONS);
    (0..count).map(move |i| {
        if count == total {
            return i;
        }
        let place = (i as f64 + (i as f64 * GOLDEN).fract()) * total as f64 / count as f64;
        (place as usize).min(total - 1)
    })
}
