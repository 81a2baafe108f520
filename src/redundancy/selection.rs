//! Which channels of a group go first, and at what error: block OBS over all consumers, after Hassibi and
//! Stork's Optimal Brain Surgeon in the block form of OSSCAR (arXiv 2403.12983) and ZipLM (arXiv
//! 2302.04089), and the plainer rules that it is compared with.

use faer::linalg::matmul::matmul;
use faer::linalg::solvers::{DenseSolveCore, Llt};
use faer::linalg::triangular_solve::solve_lower_triangular_in_place;
use faer::{Accum, Mat, Par, Side};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

/// Ridge added to the covariance, as a share of its mean diagonal: keeps the inverse finite where
/// channels are copies of each other. Results are the same from 1e-4 to 1e-1.
const RIDGE: f64 = 0.01;

/// How channels are ranked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Method {
    /// Block OBS: the error in all consumers that no remaining channel can make up for.
    Obs,
    /// Pairwise response states: the channel whose nearest remaining neighbour is nearest.
    Response,
    /// The same with the spectral distance of the channels' matrices (QM-FRG by singular values only).
    Spectral,
    /// Smallest producing weights first.
    Magnitude,
    /// By chance.
    Random,
    /// By importances that the caller brings.
    Scores,
}

impl Method {
    /// All methods, the default first.
    pub const ALL: [Self; 6] =
        [Self::Obs, Self::Response, Self::Spectral, Self::Magnitude, Self::Random, Self::Scores];

    /// The name on the command line and in manifests.
    pub fn name(self) -> &'static str {
        match self {
            Self::Obs => "obs",
            Self::Response => "response",
            Self::Spectral => "spectral",
            Self::Magnitude => "magnitude",
            Self::Random => "random",
            Self::Scores => "scores",
        }
    }
}

/// One operator that reads the group.
#[derive(Debug, Clone)]
pub struct Reader {
    /// Its weight, outputs × columns.
    pub weight: Mat<f64>,
    /// Covariance of its input columns.
    pub covariance: Mat<f64>,
    /// For each channel of the group the columns that it feeds; none where a block of columns is a reader of
    /// its own and the channel feeds others.
    pub columns: Vec<Vec<usize>>,
    /// What an error of this reader's output is divided by: the variance of the value it adds to.
    pub scale: f64,
}

/// An order of removal and what each step costs.
#[derive(Debug, Clone, PartialEq)]
pub struct Selection {
    /// Channels, first to go first. All channels of the group, each once.
    pub order: Vec<usize>,
    /// `loss[k]`: summed relative error of all readers after the first k removals; length width + 1.
    pub loss: Vec<f64>,
}

/// Channels that are looked at closely for each one that goes between two rescorings of all.
const SHORTLIST: usize = 4;

/// Channels that are removed in one step where their order is given.
const STRIDE: usize = 16;

/// Ranks the `width` channels of a group by block OBS. Between two rescorings of all channels `at_once` of
/// them go: each the cheapest, after those before it, of a short list of the cheapest. 1 is exact.
pub fn obs(width: usize, readers: Vec<Reader>, at_once: usize) -> Selection {
    let mut state: Vec<Downdated> = readers.into_iter().filter_map(Downdated::new).collect();
    let mut left: Vec<usize> = (0..width).collect();
    let mut selection = Selection { order: Vec::with_capacity(width), loss: vec![0.0] };
    let at_once = at_once.max(1);
    while !left.is_empty() {
        let length = if at_once == 1 { 1 } else { at_once * SHORTLIST };
        let listed: Vec<usize> = cheapest(&state, &left).into_iter().take(length).collect();
        let mut list: Vec<Downdated> = state.iter().map(|reader| reader.of(&listed)).collect();
        let mut open: Vec<usize> = (0..listed.len()).collect();
        let mut going = Vec::with_capacity(at_once);
        for _ in 0..at_once.min(listed.len()) {
            let Some(next) = cheapest(&list, &open).into_iter().next() else { break };
            selection.take(&mut list, &[next], |place| listed[place]);
            open.retain(|other| *other != next);
            going.push(listed[next]);
        }
        state.iter_mut().for_each(|reader| drop(reader.remove(&going)));
        left.retain(|channel| !going.contains(channel));
    }
    selection
}

/// The given channels, the cheapest to lose first.
fn cheapest(readers: &[Downdated], channels: &[usize]) -> Vec<usize> {
    let score = |channel: &usize| readers.iter().map(|reader| reader.score(*channel)).sum();
    let mut scored: Vec<(f64, usize)> = channels.iter().map(|c| (score(c), *c)).collect();
    scored.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    scored.into_iter().map(|(_, channel)| channel).collect()
}

/// The cost of removing channels in a given order, the remaining ones making up for what they can.
pub fn along(order: &[usize], readers: Vec<Reader>) -> Selection {
    let mut state: Vec<Downdated> = readers.into_iter().filter_map(Downdated::new).collect();
    let mut selection = Selection { order: Vec::new(), loss: vec![0.0] };
    for channels in order.chunks(STRIDE) {
        selection.take(&mut state, channels, |channel| channel);
    }
    selection
}

impl Selection {
    /// Removes channels, one after the other; `name` says what each is called in the selection.
    fn take(
        &mut self,
        readers: &mut [Downdated],
        channels: &[usize],
        name: impl Fn(usize) -> usize,
    ) {
        let mut steps = vec![0.0; channels.len()];
        for reader in readers {
            let costs = reader.remove(channels);
            steps.iter_mut().zip(costs).for_each(|(step, cost)| *step += cost);
        }
        for (channel, step) in channels.iter().zip(steps) {
            self.order.push(name(*channel));
            self.loss.push(self.loss.last().copied().unwrap_or_default() + step.max(0.0));
        }
    }
}

/// A reader with the inverse of its (ridged) covariance over the columns that remain, and its weight
/// already corrected for those that went.
struct Downdated {
    weight: Mat<f64>,
    inverse: Mat<f64>,
    columns: Vec<Vec<usize>>,
    scale: f64,
}

impl Downdated {
    /// `None` where the reader's output does not vary or its covariance is unusable.
    fn new(reader: Reader) -> Option<Self> {
        let n = reader.covariance.nrows();
        let mut ridged = reader.covariance;
        let mean = (0..n).map(|i| ridged[(i, i)]).sum::<f64>() / n.max(1) as f64;
        if !(mean.is_finite() && mean > 0.0 && reader.scale > 0.0) {
            return None;
        }
        (0..n).for_each(|i| ridged[(i, i)] += RIDGE * mean);
        let factor = ridged.llt(Side::Lower).ok()?;
        // Wide ones take hundreds of megabytes, and the factor is as large.
        drop(ridged);
        let inverse = factor.inverse();
        Some(Self { weight: reader.weight, inverse, columns: reader.columns, scale: reader.scale })
    }

    /// The same of some channels alone: what their removal does to each other is all there.
    fn of(&self, channels: &[usize]) -> Self {
        let from: Vec<usize> = channels.iter().flat_map(|c| &self.columns[*c]).copied().collect();
        let mut next = 0;
        let mut place = |channel: &usize| {
            let first = next;
            next += self.columns[*channel].len();
            (first..next).collect()
        };
        let columns = channels.iter().map(&mut place).collect();
        let (outputs, n) = (self.weight.nrows(), from.len());
        Self {
            weight: Mat::from_fn(outputs, n, |row, j| self.weight[(row, from[j])]),
            inverse: Mat::from_fn(n, n, |i, j| self.inverse[(from[i], from[j])]),
            columns,
            scale: self.scale,
        }
    }

    /// tr(W_Q · ([H⁻¹]_QQ)⁻¹ · W_Qᵀ) / scale for the columns Q of `channel`.
    fn score(&self, channel: usize) -> f64 {
        let columns = &self.columns[channel];
        if columns.is_empty() {
            return 0.0;
        }
        if let [column] = columns[..] {
            let energy: f64 = self.weight.col(column).iter().map(|weight| weight * weight).sum();
            return energy / self.inverse[(column, column)] / self.scale;
        }
        let Some((_, solved)) = self.factored(columns) else { return 0.0 };
        solved.squared_norm_l2() / self.scale
    }

    /// L with L·Lᵀ = [H⁻¹]_QQ, and L⁻¹·W_Qᵀ (|Q| × outputs): the square of its row i is what column i costs
    /// once those before it are gone.
    fn factored(&self, columns: &[usize]) -> Option<(Llt<f64>, Mat<f64>)> {
        let q = columns.len();
        let block = Mat::from_fn(q, q, |i, j| self.inverse[(columns[i], columns[j])]);
        let factor = block.llt(Side::Lower).ok()?;
        let mut solved =
            Mat::from_fn(q, self.weight.nrows(), |i, row| self.weight[(row, columns[i])]);
        solve_lower_triangular_in_place(factor.L(), solved.as_mut(), Par::Seq);
        Some((factor, solved))
    }

    /// Removes the columns of channels; returns what each costs after those before it.
    fn remove(&mut self, channels: &[usize]) -> Vec<f64> {
        let taken: Vec<Vec<usize>> =
            channels.iter().map(|channel| std::mem::take(&mut self.columns[*channel])).collect();
        let columns = taken.concat();
        if columns.is_empty() {
            return vec![0.0; channels.len()];
        }
        let Some((factor, solved)) = self.factored(&columns) else {
            return vec![0.0; channels.len()];
        };
        // W ← W − W_Q·(H⁻¹_QQ)⁻¹·H⁻¹_Q:, and H⁻¹ ← H⁻¹ − H⁻¹_:Q·(H⁻¹_QQ)⁻¹·H⁻¹_Q:.
        let n = self.inverse.nrows();
        let mut strip = Mat::from_fn(columns.len(), n, |i, j| self.inverse[(columns[i], j)]);
        solve_lower_triangular_in_place(factor.L(), strip.as_mut(), Par::Seq);
        let weight = self.weight.as_mut();
        matmul(weight, Accum::Add, solved.transpose(), &strip, -1.0, Par::Seq);
        let inverse = self.inverse.as_mut();
        matmul(inverse, Accum::Add, strip.transpose(), &strip, -1.0, Par::Seq);
        for column in &columns {
            (0..self.weight.nrows()).for_each(|row| self.weight[(row, *column)] = 0.0);
            for other in 0..n {
                self.inverse[(*column, other)] = 0.0;
                self.inverse[(other, *column)] = 0.0;
            }
        }
        let mut rows = solved.row_iter();
        let cost = |columns: &Vec<usize>| {
            let of_channel = rows.by_ref().take(columns.len());
            of_channel.map(|row| row.squared_norm_l2()).sum::<f64>() / self.scale
        };
        taken.iter().map(cost).collect()
    }
}

/// Ranks by a score a channel, smallest first.
pub fn by_score(scores: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|a, b| scores[*a].total_cmp(&scores[*b]).then(a.cmp(b)));
    order
}

/// Ranks by chance.
pub fn by_chance(width: usize, seed: u64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..width).collect();
    order.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
    order
}

/// Ranks by pairwise redundancy: of the two nearest remaining channels the one with the smaller `weight`
/// goes. `distance(i, j)` is symmetric.
pub fn by_distance(weights: &[f64], distance: impl Fn(usize, usize) -> f64) -> Vec<usize> {
    let width = weights.len();
    let mut pairs: Vec<(f64, usize, usize)> = (0..width)
        .flat_map(|i| (i + 1..width).map(move |j| (i, j)))
        .map(|(i, j)| (distance(i, j), i, j))
        .collect();
    pairs.sort_by(|a, b| a.0.total_cmp(&b.0).then((a.1, a.2).cmp(&(b.1, b.2))));
    let mut gone = vec![false; width];
    let mut order = Vec::with_capacity(width);
    for (_, i, j) in pairs {
        if !gone[i] && !gone[j] {
            let loser = if weights[i] < weights[j] { i } else { j };
            gone[loser] = true;
            order.push(loser);
        }
    }
    order.extend((0..width).filter(|channel| !gone[*channel]));
    order
}

#[cfg(test)]
mod tests {
    use faer::linalg::solvers::Solve;

    use super::*;

    fn covariance(rows: &[Vec<f64>]) -> Mat<f64> {
        let n = rows[0].len();
        Mat::from_fn(n, n, |i, j| rows.iter().map(|r| r[i] * r[j]).sum::<f64>() / rows.len() as f64)
    }

    /// Deterministic, well-spread numbers without a generator.
    fn noise(i: usize, j: usize) -> f64 {
        ((i * 37 + j * 101 + i * j * 13) % 97) as f64 / 48.5 - 1.0
    }

    fn reader(columns: Vec<Vec<usize>>, rows: &[Vec<f64>], outputs: usize) -> Reader {
        let n = rows[0].len();
        let weight = Mat::from_fn(outputs, n, |i, j| noise(i + 200, j));
        Reader { weight, covariance: covariance(rows), columns, scale: 1.0 }
    }

    #[test]
    fn an_exact_copy_goes_first_and_costs_nearly_nothing() {
        let rows: Vec<Vec<f64>> = (0..200)
            .map(|i| {
                let mut row: Vec<f64> = (0..5).map(|j| noise(i, j)).collect();
                row.push(row[2]);
                row
            })
            .collect();
        let columns = (0..6).map(|c| vec![c]).collect();
        let found = obs(6, vec![reader(columns, &rows, 4)], 1);
        assert!([2, 5].contains(&found.order[0]), "{:?}", found.order);
        assert!(found.loss[1] < 0.02 * found.loss[6], "{:?}", found.loss);
    }

    #[test]
    fn downdating_gives_the_same_error_as_a_fresh_least_squares_fit() {
        let rows: Vec<Vec<f64>> = (0..300).map(|i| (0..6).map(|j| noise(i, j)).collect()).collect();
        let columns: Vec<Vec<usize>> = vec![vec![0, 1], vec![2, 3], vec![4, 5]];
        let one = reader(columns, &rows, 3);
        let found = along(&[1, 0], vec![one.clone()]);
        // The same ridged problem solved at once: keep columns 4 and 5.
        let n = 6;
        let mean = (0..n).map(|i| one.covariance[(i, i)]).sum::<f64>() / n as f64;
        let mut h = one.covariance.clone();
        (0..n).for_each(|i| h[(i, i)] += RIDGE * mean);
        let (kept, gone) = ([4, 5], [0, 1, 2, 3]);
        let kk = Mat::from_fn(2, 2, |i, j| h[(kept[i], kept[j])]);
        let kg = Mat::from_fn(2, 4, |i, j| h[(kept[i], gone[j])]);
        let gg = Mat::from_fn(4, 4, |i, j| h[(gone[i], gone[j])]);
        let schur = &gg - kg.transpose() * kk.llt(Side::Lower).unwrap().solve(&kg);
        let w = Mat::from_fn(3, 4, |i, j| one.weight[(i, gone[j])]);
        let product = &w * &schur * w.transpose();
        let direct: f64 = (0..3).map(|i| product[(i, i)]).sum();
        assert!((found.loss[2] - direct).abs() < 1e-9 * direct, "{} {direct}", found.loss[2]);
    }

    #[test]
    fn of_copies_only_one_goes_early_however_many_go_at_once() {
        // Eight channels and a copy of each: the second of a pair costs as much as a channel without copy.
        let rows: Vec<Vec<f64>> = (0..400)
            .map(|i| {
                let own: Vec<f64> = (0..8).map(|j| noise(i, j)).collect();
                [own.as_slice(), own.as_slice()].concat()
            })
            .collect();
        let columns: Vec<Vec<usize>> = (0..16).map(|c| vec![c]).collect();
        for at_once in [2, 4, 8] {
            let found = obs(16, vec![reader(columns.clone(), &rows, 4)], at_once);
            let mut first: Vec<usize> = found.order[..8].iter().map(|c| c % 8).collect();
            first.sort_unstable();
            assert_eq!(first, (0..8).collect::<Vec<_>>(), "{at_once} at once: {:?}", found.order);
            assert!(found.loss[8] < 0.03 * found.loss[16], "{:?}", found.loss);
        }
    }

    #[test]
    fn removing_many_at_once_costs_what_removing_them_one_by_one_costs() {
        let rows: Vec<Vec<f64>> =
            (0..300).map(|i| (0..24).map(|j| noise(i, j)).collect()).collect();
        let columns: Vec<Vec<usize>> = (0..12).map(|c| vec![c, c + 12]).collect();
        let one = reader(columns, &rows, 5);
        let found = obs(12, vec![one.clone()], 4);
        let mut state = Downdated::new(one).unwrap();
        let mut sum = 0.0;
        for (step, channel) in found.order.iter().enumerate() {
            assert!((found.loss[step] - sum).abs() < 1e-9 * (1.0 + sum), "step {step}");
            sum += state.remove(&[*channel])[0];
        }
    }

    #[test]
    fn every_rule_ranks_every_channel_once() {
        let rows: Vec<Vec<f64>> = (0..50).map(|i| (0..8).map(|j| noise(i, j)).collect()).collect();
        let columns: Vec<Vec<usize>> = (0..8).map(|c| vec![c]).collect();
        let orders = [
            obs(8, vec![reader(columns.clone(), &rows, 2)], 3).order,
            by_chance(8, 1),
            by_score(&[3.0, 1.0, 2.0, 5.0, 4.0, 8.0, 7.0, 6.0]),
            by_distance(&[1.0; 8], |i, j| noise(i.min(j), i.max(j))),
        ];
        for mut order in orders {
            order.sort_unstable();
            assert_eq!(order, (0..8).collect::<Vec<_>>());
        }
        let free = Reader { scale: 0.0, ..reader(columns, &rows, 2) };
        assert_eq!(
            obs(8, vec![free], 1).order.len(),
            8,
            "an unusable reader must not stop the ranking"
        );
    }

    #[test]
    fn blocks_of_columns_never_understate_what_a_wide_reader_loses() {
        // Channels of two columns each that hang together across the blocks.
        let rows: Vec<Vec<f64>> = (0..400)
            .map(|i| {
                let own: Vec<f64> = (0..6).map(|j| noise(i, j)).collect();
                (0..12)
                    .map(|j| own[j % 6] + 0.5 * own[(j + 1) % 6] + 0.7 * noise(i, j + 50))
                    .collect()
            })
            .collect();
        let columns: Vec<Vec<usize>> = (0..6).map(|c| vec![2 * c, 2 * c + 1]).collect();
        let whole = reader(columns.clone(), &rows, 5);
        for count in [2usize, 3] {
            let size = 12 / count;
            let blocks: Vec<Reader> = (0..count)
                .map(|block| {
                    let first = block * size;
                    let own = |all: &Vec<usize>| {
                        let own = all.iter().filter(|c| (first..first + size).contains(*c));
                        own.map(|column| column - first).collect()
                    };
                    Reader {
                        weight: whole.weight.subcols(first, size).to_owned(),
                        covariance: whole.covariance.submatrix(first, first, size, size).to_owned(),
                        columns: columns.iter().map(own).collect(),
                        scale: whole.scale / count as f64,
                    }
                })
                .collect();
            for seed in 0..20 {
                let order = by_chance(6, seed);
                let (all, parts) =
                    (along(&order, vec![whole.clone()]), along(&order, blocks.clone()));
                for (exact, bound) in all.loss.iter().zip(&parts.loss) {
                    assert!(*bound >= exact * (1.0 - 1e-9), "{count} blocks: {exact} {bound}");
                }
            }
            assert_eq!(obs(6, blocks, 2).order.len(), 6);
        }
    }
}
