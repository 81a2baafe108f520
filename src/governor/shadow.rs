//! Whether a rung that agreed with dense on calibration data agrees on live requests, too. A small share of
//! them runs on dense as well; what the two say is compared by the measure that ladders are made with
//! ([`agreement`]), so that the same floor holds for both.
//!
//! One disagreement says little, and who looks often enough sees every bad streak. So the evidence is weighed
//! by the Shiryaev–Roberts statistic of a bet against the floor: an observation x in 0..=1 multiplies a stake
//! by x·q/f + (1 − x)·(1 − q)/(1 − f), f being the floor and q the lower agreement that is betted on. While
//! what comes next is at the floor or above it on average, given all that came before, no such bet gains on
//! average, whatever the distribution is; a stake of 1 is added with each observation, so that drift that
//! begins late is found as soon as any other. The sum over T observations is then T at most on average, and by
//! Doob's inequality it reaches [`limits::SHADOW_ODDS`] within them with a probability of at most T in that
//! many. A rung below the floor is found after about ln(odds) / (information an observation carries against the
//! floor): at a floor of 0.9 after a dozen requests where nothing agrees, some 40 at an agreement of 0.5, 120
//! at 0.7.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::time::Duration;

use crate::ladder::quality::{agreement, tells_classes};
use crate::limits;
use crate::onnx::{Tensor, values};
use crate::units::Digest;

/// Which requests run on dense as well: each with the same chance, so that what recurs among them meets nobody
/// more often than others, and never too soon after one another. The same seed draws the same numbers.
#[derive(Debug, Clone)]
pub struct Draw {
    share: f64,
    seed: u64,
    seen: u64,
    /// None before then.
    free: Duration,
}

impl Draw {
    /// Draws `share` (0 to 1) of the requests.
    pub fn new(share: f64, seed: u64) -> Self {
        Self { share, seed, seen: 0, free: Duration::ZERO }
    }

    /// Whether the next request is one.
    pub fn takes(&mut self, now: Duration) -> bool {
        self.seen = self.seen.wrapping_add(1);
        if now < self.free || chance(self.seed, self.seen) >= self.share {
            return false;
        }
        self.free = now.saturating_add(limits::SHADOW_GAP);
        true
    }

    /// A run on dense has ended, and took so long: the next waits in proportion, so that all of them take a
    /// bounded part of one core.
    pub fn ran(&mut self, end: Duration, took: Duration) {
        let rest = took.saturating_mul(limits::SHADOW_REST);
        self.free = self.free.max(end.saturating_add(rest));
    }
}

/// A number in [0, 1) that looks drawn by chance (SplitMix64: Steele, Lea, Flood 2014).
fn chance(seed: u64, number: u64) -> f64 {
    let mut z = seed.wrapping_add(number.wrapping_mul(0x9E37_79B9_7F4A_7C15));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^= z >> 31;
    (z >> 11) as f64 / (1u64 << 53) as f64
}

/// What dense and a rung said of one or more requests, as one number.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Compared {
    /// Agreement, 0 to 1, as [`agreement`] measures it.
    pub quality: f64,
    /// Requests that it is of.
    pub requests: usize,
}

/// Outputs that wait until there are enough of them.
#[derive(Debug, Default)]
struct Pack {
    dense: Vec<Vec<Tensor>>,
    rung: Vec<Vec<Tensor>>,
    requests: usize,
    rows: usize,
    bytes: usize,
    /// When one was added last.
    touched: u64,
}

/// Puts what dense and one rung say into numbers. A class is right or wrong for each request; how much of a
/// variance is explained can be told of several only, of the same shapes: they wait here for one another, in
/// bounded memory.
#[derive(Debug, Default)]
pub struct Comparison {
    packs: BTreeMap<Vec<Vec<usize>>, Pack>,
    turn: u64,
}

impl Comparison {
    /// Takes in all outputs of dense and of the rung for one request, in the order of the graph. `None` where
    /// there is no number yet, or the request says nothing: dense's own answer is not finite.
    pub fn take(&mut self, dense: &[Tensor], rung: &[Tensor]) -> Option<Compared> {
        let finite = |tensor: &Tensor| {
            let values = values::floats(tensor.dtype, &tensor.data);
            values.is_none_or(|values| values.iter().all(|value| value.is_finite()))
        };
        if !dense.iter().all(finite) {
            return None;
        }
        let each = |outputs: &[Tensor]| outputs.iter().map(|t| vec![t.clone()]).collect();
        let same = dense.len() == rung.len()
            && dense.iter().zip(rung).all(|(a, b)| a.shape == b.shape && a.dtype == b.dtype);
        if !same || !rung.iter().all(finite) {
            return Some(Compared { quality: 0.0, requests: 1 });
        }
        if tells_classes(dense) {
            let quality = agreement(&each(dense), &each(rung), &[vec![true]]).quality;
            return Some(Compared { quality, requests: 1 });
        }
        self.turn += 1;
        let shapes = dense.iter().map(|t| t.shape.get(1..).unwrap_or_default().to_vec());
        let shapes: Vec<_> = shapes.collect();
        let pack = self.packs.entry(shapes.clone()).or_default();
        pack.add(dense, rung, self.turn);
        if pack.is_full() {
            return self.packs.remove(&shapes).map(|pack| pack.compared());
        }
        self.make_room();
        None
    }

    /// The pack that has waited for the longest goes first.
    fn make_room(&mut self) {
        let bytes = |packs: &BTreeMap<_, Pack>| packs.values().map(|p| p.bytes).sum::<usize>();
        while self.packs.len() > limits::SHADOW_PACKS
            || (self.packs.len() > 1 && bytes(&self.packs) > limits::SHADOW_PACK_BYTES)
        {
            let oldest = self.packs.iter().min_by_key(|(_, pack)| pack.touched);
            let Some(oldest) = oldest.map(|(shapes, _)| shapes.clone()) else { return };
            self.packs.remove(&oldest);
        }
    }
}

impl Pack {
    fn add(&mut self, dense: &[Tensor], rung: &[Tensor], turn: u64) {
        self.touched = turn;
        self.requests += 1;
        self.rows += dense.first().and_then(|t| t.shape.first()).copied().unwrap_or(1);
        let mut put = |to: &mut Vec<Vec<Tensor>>, outputs: &[Tensor]| {
            to.resize_with(outputs.len(), Vec::new);
            for (all, tensor) in to.iter_mut().zip(outputs) {
                self.bytes += tensor.data.len();
                // A copy: what an answer is made of may be a slice of much more.
                let data = bytes::Bytes::copy_from_slice(&tensor.data);
                all.push(Tensor { dtype: tensor.dtype, shape: tensor.shape.clone(), data });
            }
        };
        put(&mut self.dense, dense);
        put(&mut self.rung, rung);
    }

    /// Of large outputs fewer must do.
    fn is_full(&self) -> bool {
        self.requests >= limits::SHADOW_PACK
            || (self.requests >= 2 && self.bytes >= limits::SHADOW_PACK_BYTES / 2)
    }

    fn compared(&self) -> Compared {
        let counted = vec![vec![true]; self.requests];
        let found = agreement(&self.dense, &self.rung, &counted).explained;
        // The mean of so few rows lies nearer to them than the mean of all does, which a ladder's larger
        // sample hardly shows: the unexplained part is told too large by n / (n − 1).
        let rows = self.rows.max(2) as f64;
        let quality = (1.0 - (1.0 - found) * (rows - 1.0) / rows).clamp(0.0, 1.0);
        Compared { quality: if found.is_finite() { quality } else { 0.0 }, requests: self.requests }
    }
}

/// Why a rung is not to be served any more.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Withdrawn {
    /// Mean agreement over the last requests.
    pub agreement: f64,
    /// How many these were.
    pub requests: usize,
    pub floor: f64,
}

impl fmt::Display for Withdrawn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { agreement, requests, floor } = self;
        write!(
            f,
            "its agreement with dense on live requests is {agreement:.3} (the last {requests} that \
             were compared), below the floor of {floor}"
        )
    }
}

/// What is thought of a rung.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Judgement {
    /// Too little was compared.
    Open,
    /// Nothing speaks against it.
    Holds,
    Withdrawn(Withdrawn),
}

/// The lower agreements that are betted on, as parts of the floor: one near it for a small miss, which shows
/// slowly anyhow, one far below for a large one, which is to show at once.
const BETS: [f64; 4] = [0.95, 0.85, 0.6, 0.2];

/// The agreement of one rung on live requests.
#[derive(Debug, Clone)]
pub struct Tracker {
    floor: f64,
    /// See [`limits::SHADOW_ODDS`].
    odds: f64,
    stakes: [f64; BETS.len()],
    recent: VecDeque<Compared>,
    requests: u64,
}

impl Tracker {
    /// A rung of which nothing is known, and the floor that holds for it.
    pub fn new(floor: f64) -> Self {
        let (odds, stakes) = (limits::SHADOW_ODDS, [0.0; BETS.len()]);
        Self { floor, odds, stakes, recent: VecDeque::new(), requests: 0 }
    }

    pub fn floor(&self) -> f64 {
        self.floor
    }

    /// Requests that were compared.
    pub fn requests(&self) -> u64 {
        self.requests
    }

    /// Takes an observation in.
    pub fn observe(&mut self, compared: Compared) -> Judgement {
        let x = if compared.quality.is_finite() { compared.quality.clamp(0.0, 1.0) } else { 0.0 };
        self.requests = self.requests.saturating_add(compared.requests as u64);
        self.recent.push_back(Compared { quality: x, ..compared });
        while self.recent.len() > limits::SHADOW_WINDOW {
            self.recent.pop_front();
        }
        // At a floor of 1 every difference is one too many; the bet needs a little room.
        let floor = self.floor.min(limits::SHADOW_STRICTEST);
        if floor > 0.0 {
            for (stake, part) in self.stakes.iter_mut().zip(BETS) {
                let bet = floor * part;
                let gain = x * part + (1.0 - x) * (1.0 - bet) / (1.0 - floor);
                *stake = ((*stake + 1.0) * gain).min(f64::MAX / BETS.len() as f64);
            }
        }
        self.judgement()
    }

    pub fn judgement(&self) -> Judgement {
        if self.requests < limits::SHADOW_LEAST {
            return Judgement::Open;
        }
        let evidence = self.stakes.iter().sum::<f64>() / BETS.len() as f64;
        if evidence < self.odds {
            return Judgement::Holds;
        }
        let (agreement, requests) = self.streak();
        Judgement::Withdrawn(Withdrawn { agreement, requests, floor: self.floor })
    }

    /// Mean agreement over the window, and the requests in it; `None` before the first.
    pub fn recent(&self) -> Option<(f64, usize)> {
        (!self.recent.is_empty()).then(|| mean(self.recent.iter()))
    }

    /// A 95 % confidence interval of that mean (Wilson's score interval, which holds for right or wrong and is
    /// wide for what lies between).
    pub fn interval(&self) -> Option<(f64, f64)> {
        let mean = self.recent()?.0;
        let n = self.recent.len() as f64;
        let z = 1.96f64;
        let middle = (mean + z * z / (2.0 * n)) / (1.0 + z * z / n);
        let half = z / (1.0 + z * z / n) * (mean * (1.0 - mean) / n + z * z / (4.0 * n * n)).sqrt();
        Some(((middle - half).max(0.0), (middle + half).min(1.0)))
    }

    /// The newest stretch of the window with the lowest mean, of those that are long enough: what a rung that
    /// was good before is withdrawn for.
    fn streak(&self) -> (f64, usize) {
        let least = (limits::SHADOW_LEAST as usize).min(self.recent.len()).max(1);
        let longest = self.recent.len();
        let stretches = (least.min(longest)..=longest)
            .map(|length| mean(self.recent.iter().skip(longest - length)));
        stretches.min_by(|a, b| a.0.total_cmp(&b.0)).unwrap_or((0.0, 0))
    }
}

fn mean<'a>(all: impl Iterator<Item = &'a Compared>) -> (f64, usize) {
    let (mut sum, mut count, mut requests) = (0.0, 0usize, 0);
    for one in all {
        sum += one.quality;
        count += 1;
        requests += one.requests;
    }
    (sum / count.max(1) as f64, requests)
}

/// The rungs of one dense model, by the digests of their files.
pub type Trackers = BTreeMap<Digest, Tracker>;
