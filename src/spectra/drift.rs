//! When a changed operator need not be looked at again.

use std::f64::consts::FRAC_PI_2;

/// How far a state can have moved when W became W + E: d_FS(W, W + E) ≤ arcsin(‖E‖_F / ‖W‖_F).
///
/// Mirsky's theorem puts σ(W + E) into the ball of radius ‖E‖_F around σ(W), and a ball of radius r around a
/// vector of length s is seen from the origin under the half angle arcsin(r/s); from r ≥ s on it holds
/// nothing.
pub fn angle_bound(change: f64, norm: f64) -> f64 {
    if change == 0.0 {
        0.0
    } else if change < norm {
        (change / norm).asin()
    } else {
        FRAC_PI_2
    }
}

/// How far an operator's state may have moved since its spectrum was computed, over any number of changes.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Drift {
    bound: f64,
}

impl Drift {
    /// A drift that was kept; `None` where no drift has such a bound.
    pub fn from_bound(bound: f64) -> Option<Self> {
        (0.0..=FRAC_PI_2).contains(&bound).then_some(Self { bound })
    }

    /// Adds a change of norm `change` = ‖E‖_F to an operator of norm `norm` = ‖W‖_F before it. Angles obey
    /// the triangle inequality, so bounds add up.
    #[must_use]
    pub fn after(self, change: f64, norm: f64) -> Self {
        Self { bound: (self.bound + angle_bound(change, norm)).min(FRAC_PI_2) }
    }

    /// The accumulated bound in radians, at most π/2.
    pub fn bound(self) -> f64 {
        self.bound
    }

    /// Whether the edge between this operator and another can still be on the other side of `threshold` than
    /// its distance says. While it cannot for any incident edge, the old spectrum serves.
    pub fn may_move_edge(self, other: Self, distance: f64, threshold: f64) -> bool {
        (distance - threshold).abs() <= self.bound + other.bound
    }
}
