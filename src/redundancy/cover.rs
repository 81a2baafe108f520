//! Clusters whose members are all within the threshold of their representative.
//!
//! Greedy cover by descending degree: the operator that can stand for most of the others that nobody stands
//! for yet becomes the centre of a star. A certificate bounds the error between a member and its
//! representative and nothing else, which is just what a star promises; complete linkage would bound all
//! pairs and so split clusters for nothing, connected components would chain operators that have nothing in
//! common.
//! The greedy rule needs at most ln(n) + 1 times as many representatives as the best cover (Chvátal 1979).

use serde::Serialize;

/// A representative and whom it stands for.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Cluster {
    /// The medoid: of all members that are within the threshold of every other, the one whose standing in
    /// costs least.
    pub representative: usize,
    /// All members, the representative included, ascending.
    pub members: Vec<usize>,
    /// The largest distance between a member and the representative, radians.
    pub radius: f64,
}

/// Covers `n` operators by clusters. `distance(i, j)` is symmetric; `cost(i, j)` is what it costs that `j`
/// stands in for `i`. Clusters are ordered by their representatives; ties go to the lower index.
pub fn cover(
    n: usize,
    threshold: f64,
    distance: impl Fn(usize, usize) -> f64,
    cost: impl Fn(usize, usize) -> f64,
) -> Vec<Cluster> {
    let near = Adjacency::of(n, |i, j| distance(i, j) <= threshold);
    let mut degree: Vec<usize> = (0..n).map(|i| near.count(i)).collect();
    let mut covered = vec![false; n];
    let mut clusters = Vec::new();
    // Covered operators may still be centres, but only for others: count them out of their neighbours' degree.
    while let Some(centre) = best(&degree, &covered) {
        let mut members: Vec<usize> =
            (0..n).filter(|i| !covered[*i] && (*i == centre || near.has(centre, *i))).collect();
        members.sort_unstable();
        for member in &members {
            covered[*member] = true;
            near.of_each(*member, |other| degree[other] = degree[other].saturating_sub(1));
        }
        let representative = medoid(&members, centre, &near, &cost);
        let far = members.iter().map(|i| distance(*i, representative));
        let radius = far.fold(0.0, f64::max);
        clusters.push(Cluster { representative, members, radius });
    }
    clusters.sort_by_key(|cluster| cluster.representative);
    clusters
}

/// The uncovered operator with the most uncovered neighbours. (A covered one as centre would need a second
/// representative in its own cluster.)
fn best(degree: &[usize], covered: &[bool]) -> Option<usize> {
    let open = (0..degree.len()).filter(|i| !covered[*i]);
    open.max_by_key(|i| (degree[*i], std::cmp::Reverse(*i)))
}

fn medoid(
    members: &[usize],
    centre: usize,
    near: &Adjacency,
    cost: &impl Fn(usize, usize) -> f64,
) -> usize {
    let fits = |candidate: usize| {
        members.iter().all(|other| *other == candidate || near.has(candidate, *other))
    };
    let total = |candidate: usize| -> f64 {
        members.iter().filter(|i| **i != candidate).map(|i| cost(*i, candidate)).sum()
    };
    let fitting = members.iter().copied().filter(|candidate| fits(*candidate));
    let scored = fitting.map(|candidate| (total(candidate), candidate));
    scored.min_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1))).map_or(centre, |(_, m)| m)
}

/// A symmetric relation as bits: 2 MiB for 4096 operators.
struct Adjacency {
    words: usize,
    bits: Vec<u64>,
}

impl Adjacency {
    fn of(n: usize, related: impl Fn(usize, usize) -> bool) -> Self {
        let words = n.div_ceil(64);
        let mut bits = vec![0; words * n];
        for i in 0..n {
            for j in (i + 1..n).filter(|j| related(i, *j)) {
                bits[i * words + j / 64] |= 1 << (j % 64);
                bits[j * words + i / 64] |= 1 << (i % 64);
            }
        }
        Self { words, bits }
    }

    fn row(&self, i: usize) -> &[u64] {
        &self.bits[i * self.words..][..self.words]
    }

    fn has(&self, i: usize, j: usize) -> bool {
        self.row(i)[j / 64] & (1 << (j % 64)) != 0
    }

    fn count(&self, i: usize) -> usize {
        self.row(i).iter().map(|word| word.count_ones() as usize).sum()
    }

    fn of_each(&self, i: usize, mut each: impl FnMut(usize)) {
        for (word, bits) in self.row(i).iter().enumerate() {
            let mut left = *bits;
            while left != 0 {
                each(word * 64 + left.trailing_zeros() as usize);
                left &= left - 1;
            }
        }
    }
}
