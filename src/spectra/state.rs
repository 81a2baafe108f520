//! What is read off a spectrum: the state and its Fubini–Study distance, Wasserstein distance, and ranks.

/// Singular values scaled to unit length: where an operator stands once scale and rotations are taken away.
#[derive(Debug, Clone, PartialEq)]
pub struct State(Vec<f64>);

impl State {
    /// The state of a spectrum; `None` for the zero operator, which has none.
    pub fn of(values: &[f64]) -> Option<Self> {
        // Scaled by the largest first, so that squares neither overflow nor vanish.
        let largest = values.iter().copied().fold(0.0, f64::max);
        if !(largest > 0.0 && largest.is_finite()) {
            return None;
        }
        let scaled: Vec<f64> = values.iter().map(|value| value / largest).collect();
        let norm = scaled.iter().map(|value| value * value).sum::<f64>().sqrt();
        Some(Self(scaled.into_iter().map(|value| value / norm).collect()))
    }

    /// The unit vector.
    pub fn as_slice(&self) -> &[f64] {
        &self.0
    }

    /// Fubini–Study distance arccos⟨ψ, φ⟩ in radians, 0 to π/2; the shorter state is padded with zeros.
    ///
    /// Computed as 2·atan2(‖ψ − φ‖, ‖ψ + φ‖) (Kahan): arccos loses half of the digits near 0.
    pub fn fubini_study(&self, other: &Self) -> f64 {
        let (minus, plus) = padded(&self.0, &other.0).fold((0.0, 0.0), |(minus, plus), (a, b)| {
            (minus + (a - b).powi(2), plus + (a + b).powi(2))
        });
        2.0 * minus.sqrt().atan2(plus.sqrt())
    }
}

/// The values of both, the shorter padded with zeros.
fn padded<'a>(a: &'a [f64], b: &'a [f64]) -> impl Iterator<Item = (f64, f64)> + 'a {
    let at = |s: &'a [f64], i: usize| s.get(i).copied().unwrap_or(0.0);
    (0..a.len().max(b.len())).map(move |i| (at(a, i), at(b, i)))
}

/// Wasserstein-2 distance between two spectra as uniform measures on their values (both descending, the
/// shorter padded with zeros): in one dimension the optimal transport keeps the order, so it is the root
/// mean square of the differences. In the unit of the singular values: scale counts, unlike in a state.
pub fn wasserstein2(a: &[f64], b: &[f64]) -> f64 {
    let count = a.len().max(b.len());
    if count == 0 {
        return 0.0;
    }
    let sum: f64 = padded(a, b).map(|(a, b)| (a - b).powi(2)).sum();
    (sum / count as f64).sqrt()
}

/// Effective rank exp(−Σ pᵢ ln pᵢ) with pᵢ = σᵢ/Σσ (Roy & Vetterli, "The effective rank", EUSIPCO 2007):
/// between 1 and the number of values; 0 for the zero operator.
pub fn effective_rank(values: &[f64]) -> f64 {
    let total: f64 = values.iter().sum();
    if total <= 0.0 {
        return 0.0;
    }
    let shares = values.iter().map(|value| value / total).filter(|share| *share > 0.0);
    shares.map(|share| -share * share.ln()).sum::<f64>().exp()
}

/// Stable rank ‖W‖_F² / σ₁²; 0 for the zero operator.
pub fn stable_rank(values: &[f64]) -> f64 {
    let largest = values.first().copied().unwrap_or_default();
    if largest <= 0.0 {
        return 0.0;
    }
    values.iter().map(|value| (value / largest).powi(2)).sum()
}

/// The fewest leading values that hold `share` (0 to 1) of ‖W‖_F².
pub fn energy_rank(values: &[f64], share: f64) -> usize {
    let wanted = share * values.iter().map(|value| value * value).sum::<f64>();
    let mut held = 0.0;
    let short = |value: &&f64| {
        let is_short = held < wanted;
        held += *value * *value;
        is_short
    };
    values.iter().take_while(short).count()
}

/// The number of values above `longest side · epsilon · σ₁`, where `epsilon` is the unit round-off of the
/// type that the weights are stored in: what a weight of that precision can tell from zero.
pub fn numerical_rank(values: &[f64], shape: (usize, usize), epsilon: f64) -> usize {
    let largest = values.first().copied().unwrap_or_default();
    let floor = shape.0.max(shape.1) as f64 * epsilon * largest;
    values.iter().filter(|value| **value > floor).count()
}
