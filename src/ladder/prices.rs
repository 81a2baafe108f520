//! How dear cuts are taken to be when a rung is planned. A cut's loss is known for the dense network and for
//! that cut alone; what it costs once others are made and all is repaired shows only in a variant that
//! was built. So several plans are built, each from other prices, and the best one is kept.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::allocate::Choice;

/// What the losses of each item's choices are multiplied by.
#[derive(Debug, Clone, PartialEq)]
pub struct Prices {
    /// (narrower, removed): for the choices that keep fewer channels, and for the one that removes the block.
    items: Vec<(f64, f64)>,
}

/// Standard deviation of the logarithm by which a price is moved.
const SPREAD: f64 = 0.6;

impl Prices {
    /// The same price for every item: losses as they were found, those of removed blocks times `removed`.
    pub fn uniform(items: usize, removed: f64) -> Self {
        Self { items: vec![(1.0, removed); items] }
    }

    /// Prices near these; the same ones for the same `seed`.
    pub fn near(&self, seed: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        // Sum of twelve uniforms: Gaussian for every purpose here.
        let mut move_ = |price: f64| {
            let normal = (0..12).map(|_| rng.random::<f64>()).sum::<f64>() - 6.0;
            price * (SPREAD * normal).exp()
        };
        Self { items: self.items.iter().map(|(a, b)| (move_(*a), move_(*b))).collect() }
    }

    /// The items of the knapsack at these prices.
    pub fn of(&self, items: &[Vec<Choice>]) -> Vec<Vec<Choice>> {
        let mut items = items.to_vec();
        for (item, (narrower, removed)) in items.iter_mut().zip(&self.items) {
            for choice in item {
                choice.loss *= if choice.bypass.is_some() { removed } else { narrower };
            }
        }
        items
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prices_move_losses_only_and_the_same_way_for_the_same_seed() {
        let cut = Choice { saving: 3.0, loss: 2.0, widths: vec![(0, 8)], ..Choice::keep() };
        let gone = Choice { bypass: Some(0), ..cut.clone() };
        let items = vec![vec![Choice::keep(), cut, gone]; 5];
        let uniform = Prices::uniform(5, 0.1);
        let at = uniform.of(&items);
        assert_eq!((at[0][0].loss, at[0][1].loss, at[0][2].loss), (0.0, 2.0, 0.2));
        let near = uniform.near(1).of(&items);
        assert_eq!(near, uniform.near(1).of(&items));
        assert_ne!(near, uniform.near(2).of(&items));
        assert!(near.iter().all(|item| item[1].saving == 3.0 && item[1].loss > 0.0));
        assert!(near[0][1].loss != near[1][1].loss, "every item moves by itself");
    }
}
