//! Eigenvalues of symmetric tridiagonal matrices.
//!
//! The root-free QR iteration of Pal, Walker and Kahan (Parlett, *The Symmetric Eigenvalue Problem*, §8.14–15)
//! spends its time waiting: every step of a sweep divides by what the step before divided. So eight sweeps
//! follow each other down the matrix, two rows apart, one a SIMD lane. Their shifts are the eigenvalues of the
//! last eight rows.

/// Sweeps that follow each other.
const LANES: usize = 8;

/// Rows by which what comes out of the last sweep trails what goes into the first.
const LAG: usize = 2 * LANES - 1;

/// Blocks up to this size are done by single sweeps: a pipeline is hardly full before they end.
const SINGLE: usize = 24;

/// Single sweeps a row, and passes a row, after which the iteration is given up; it needs about two and a
/// quarter.
const PATIENCE: usize = 30;

/// Below it (the matrix is scaled to norm 1) a squared cosine is as good as zero, and its inverse would
/// overflow.
const VANISHED: f64 = 1e-290;

type Lanes = [f64; LANES];

/// A symmetric tridiagonal matrix.
#[derive(Debug, Clone, PartialEq)]
pub struct Tridiagonal {
    pub diagonal: Vec<f64>,
    /// Squares of the elements beside the diagonal, one fewer.
    pub squares: Vec<f64>,
}

impl Tridiagonal {
    /// The eigenvalues, ascending, each to about 1e-16 of the largest; `None` where the iteration does not
    /// converge or an element is not finite.
    pub fn eigenvalues(mut self) -> Option<Vec<f64>> {
        let norm = self.norm();
        if norm == 0.0 {
            return Some(self.diagonal);
        }
        if !norm.is_finite() {
            return None;
        }
        self.diagonal.iter_mut().for_each(|d| *d /= norm);
        self.squares.iter_mut().for_each(|b| *b = *b / norm / norm);
        pulp::Arch::new().dispatch(Iterate(&mut self.diagonal, &mut self.squares))?;
        self.diagonal.iter_mut().for_each(|d| *d *= norm);
        self.diagonal.sort_unstable_by(f64::total_cmp);
        Some(self.diagonal)
    }

    /// The largest sum of the magnitudes of a row.
    fn norm(&self) -> f64 {
        let beside =
            |i: Option<usize>| i.and_then(|i| self.squares.get(i)).map_or(0.0, |b| b.sqrt());
        let row = |(i, d): (usize, &f64)| d.abs() + beside(i.checked_sub(1)) + beside(Some(i));
        let rows = self.diagonal.iter().enumerate().map(row);
        // Unlike `f64::max`, keeps what is not a number.
        rows.fold(0.0, |most, row| if row <= most { most } else { row })
    }
}

struct Iterate<'a>(&'a mut [f64], &'a mut [f64]);

impl pulp::WithSimd for Iterate<'_> {
    type Output = Option<()>;

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, _: S) -> Self::Output {
        iterate(self.0, self.1)
    }
}

/// Turns `d` into the eigenvalues, block by block from the end.
#[inline(always)]
fn iterate(d: &mut [f64], b: &mut [f64]) -> Option<()> {
    // Sweeps find the small eigenvalues of a graded matrix first, and are quicker where those are last.
    if d.first().map(|d| d.abs()) < d.last().map(|d| d.abs()) {
        d.reverse();
        b.reverse();
    }
    let mut stream = Vec::with_capacity(d.len() + LAG);
    let mut left = PATIENCE * d.len();
    let negligible = f64::EPSILON * f64::EPSILON;
    let mut end = d.len();
    while end > 1 {
        if b[end - 2] <= negligible {
            end -= 1;
            continue;
        }
        let start = (0..end - 2).rev().find(|i| b[*i] <= negligible).map_or(0, |i| i + 1);
        left = left.checked_sub(1)?;
        let (d, b) = (&mut d[start..end], &mut b[start..end - 1]);
        if d.len() <= SINGLE {
            single(d, b, negligible, 0.0, left)?;
        } else {
            pass(d, b, shifts(d, b, left)?, &mut stream);
        }
    }
    Some(())
}

/// One row of one sweep: takes the squared element before it and its diagonal element, and gives those of the
/// row before as the sweep leaves them.
#[derive(Clone, Copy)]
struct Sweep {
    shift: f64,
    cos: f64,
    sin: f64,
    gamma: f64,
    p: f64,
}

impl Sweep {
    #[inline(always)]
    fn new(shift: f64) -> Self {
        Self { shift, cos: 1.0, sin: 0.0, gamma: 0.0, p: 1.0 }
    }

    #[inline(always)]
    fn step(&mut self, square: f64, diagonal: f64) -> (f64, f64) {
        let r = self.p + square;
        let before = self.sin * r;
        // Two divisions that do not wait for each other.
        let (inverse, back) = (1.0 / r, r / self.p);
        let some = r > 0.0;
        let (cos, sin) = if some { (self.p * inverse, square * inverse) } else { (1.0, 0.0) };
        let gamma = cos * (diagonal - self.shift) - sin * self.gamma;
        let out = self.gamma + (diagonal - gamma);
        let grown = gamma * gamma * if some { back } else { 1.0 };
        self.p = if self.p > VANISHED || !some { grown } else { self.cos * square };
        (self.cos, self.sin, self.gamma) = (cos, sin, gamma);
        (before, out)
    }
}

/// Single sweeps with Wilkinson's shift until every element beside the diagonal is negligible, absolutely or
/// against its neighbours.
#[inline(always)]
fn single(
    d: &mut [f64],
    b: &mut [f64],
    absolute: f64,
    relative: f64,
    mut left: usize,
) -> Option<()> {
    let mut end = d.len();
    while end > 1 {
        let gone = |i: usize| b[i] <= absolute || b[i] <= relative * (d[i] * d[i + 1]).abs();
        if gone(end - 2) {
            end -= 1;
            continue;
        }
        let start = (0..end - 2).rev().find(|i| gone(*i)).map_or(0, |i| i + 1);
        left = left.checked_sub(1)?;
        let beside = b[end - 2].sqrt();
        let half = (d[end - 2] - d[end - 1]) / (2.0 * beside);
        let root = (half * half + 1.0).sqrt();
        let shift = d[end - 1] - beside / (half + root.copysign(half));
        if end - start == 2 {
            let other = d[end - 2] + (d[end - 1] - shift);
            (d[end - 2], d[end - 1], b[end - 2]) = (other, shift, 0.0);
            continue;
        }
        let mut sweep = Sweep::new(shift);
        sweep.step(0.0, d[start]);
        for i in start + 1..end {
            let (before, out) = sweep.step(b[i - 1], d[i]);
            d[i - 1] = out;
            if i > start + 1 {
                b[i - 2] = before;
            }
        }
        let (before, out) = sweep.step(0.0, 0.0);
        (b[end - 2], d[end - 1]) = (before, out);
    }
    Some(())
}

/// Eigenvalues of the last rows: good enough is good, they only steer.
#[inline(always)]
fn shifts(d: &[f64], b: &[f64], left: usize) -> Option<Lanes> {
    let (mut last, mut beside) = ([0.0; LANES], [0.0; LANES - 1]);
    last.copy_from_slice(&d[d.len() - LANES..]);
    beside.copy_from_slice(&b[b.len() - (LANES - 1)..]);
    // Against neighbours, so that the small ones of graded rows steer well; and against the largest, since of
    // neighbours that are zero nothing is small.
    let squared = last.iter().map(|d| d * d).chain(beside).fold(0.0, f64::max);
    let negligible = f64::EPSILON * f64::EPSILON * squared;
    single(&mut last, &mut beside, negligible, 1e-8, left.max(PATIENCE * LANES))?;
    Some(last)
}

/// Eight sweeps.
#[inline(always)]
fn pass(d: &mut [f64], b: &mut [f64], shifts: Lanes, stream: &mut Vec<[f64; 2]>) {
    stream.clear();
    stream.push([0.0, d[0]]);
    stream.extend(b.iter().zip(&d[1..]).map(|(b, d)| [*b, *d]));
    stream.resize(d.len() + LAG, [0.0; 2]);
    let (mut cos, mut sin, mut gamma, mut p) =
        ([1.0; LANES], [0.0; LANES], [0.0; LANES], [1.0; LANES]);
    let (mut squares, mut diagonals) = ([0.0; LANES], [0.0; LANES]);
    // What a sweep meets before its first row and after its last one is a square of zero, which parts it from
    // whatever came before: no lane needs to be told when to start or to stop.
    for slot in stream.iter_mut() {
        let ([square, diagonal], b, d) = (*slot, squares, diagonals);
        squares = [square, b[0], b[1], b[2], b[3], b[4], b[5], b[6]];
        diagonals = [diagonal, d[0], d[1], d[2], d[3], d[4], d[5], d[6]];
        for l in 0..LANES {
            let mut sweep =
                Sweep { shift: shifts[l], cos: cos[l], sin: sin[l], gamma: gamma[l], p: p[l] };
            (squares[l], diagonals[l]) = sweep.step(squares[l], diagonals[l]);
            (cos[l], sin[l], gamma[l], p[l]) = (sweep.cos, sweep.sin, sweep.gamma, sweep.p);
        }
        *slot = [squares[LANES - 1], diagonals[LANES - 1]];
    }
    for (i, slot) in stream[LAG..].iter().enumerate() {
        d[i] = slot[1];
        if i > 0 {
            b[i - 1] = slot[0];
        }
    }
}
