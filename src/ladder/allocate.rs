//! Where to cut: a multiple-choice knapsack. Every item (a residual block, or a group outside of blocks)
//! offers choices, each with the time that it saves and the loss that it costs; one choice an item is
//! taken so that the savings add up to what is needed at the least total loss.

use crate::limits;

/// One way of cutting an item. Choice 0 of an item is always "leave it as it is".
#[derive(Debug, Clone, PartialEq)]
pub struct Choice {
    /// Time saved, microseconds. A cut that makes the item slower has a negative saving and is never taken.
    pub saving: f64,
    /// Loss, additive over items.
    pub loss: f64,
    /// Groups that are cut, with the channels that they keep.
    pub widths: Vec<(usize, usize)>,
    /// The residual block that is removed instead.
    pub bypass: Option<usize>,
    /// Operators (by node) that are put in two, with the rank between.
    pub ranks: Vec<(usize, usize)>,
}

impl Choice {
    /// Leaves the item as it is.
    pub fn keep() -> Self {
        Self { saving: 0.0, loss: 0.0, widths: Vec::new(), bypass: None, ranks: Vec::new() }
    }
}

/// Steps in which savings are counted. Rounding a saving down by one step in a thousand moves the result
/// by less than the latency can be measured.
const STEPS: usize = 2000;

/// Picks one choice of each item such that the savings reach `needed` (microseconds) at the least loss.
/// Returns the chosen indices; `None` where all items together cannot save so much.
pub fn allocate(items: &[Vec<Choice>], needed: f64) -> Option<Vec<usize>> {
    if needed <= 0.0 {
        return Some(vec![0; items.len()]);
    }
    let steps_of =
        |saving: f64| ((saving / needed * STEPS as f64).floor().max(0.0) as usize).min(STEPS);
    // best[s]: least loss at savings of s steps (the last: of at least so many), over the items so far.
    let mut best = vec![f64::INFINITY; STEPS + 1];
    best[0] = 0.0;
    // How each state of each item was reached: the choice and the state before it.
    let mut ways: Vec<Vec<(u32, u32)>> = Vec::with_capacity(items.len());
    for choices in items {
        let mut next = vec![f64::INFINITY; STEPS + 1];
        let mut way = vec![(0, 0); STEPS + 1];
        for (index, choice) in choices.iter().enumerate() {
            if !(choice.saving >= 0.0 && choice.loss.is_finite()) {
                continue;
            }
            let gain = steps_of(choice.saving);
            for (before, loss) in best.iter().enumerate().filter(|(_, loss)| loss.is_finite()) {
                let after = (before + gain).min(STEPS);
                if loss + choice.loss < next[after] {
                    next[after] = loss + choice.loss;
                    way[after] = (index as u32, before as u32);
                }
            }
        }
        ways.push(way);
        best = next;
    }
    if !best[STEPS].is_finite() {
        return None;
    }
    let mut state = STEPS;
    let mut chosen: Vec<usize> = ways
        .iter()
        .rev()
        .map(|way| {
            let (index, before) = way[state];
            state = before as usize;
            index as usize
        })
        .collect();
    chosen.reverse();
    Some(chosen)
}

/// All pairs of choices of two items that are cut together (the groups of one residual block) and go together,
/// without those that another pair beats in both saving and loss. Of more than [`limits::ITEM_CHOICES`] the
/// best of each of as many equal steps of saving is left.
pub fn combine(
    left: &[Choice],
    right: &[Choice],
    together: impl Fn(&Choice, &Choice) -> bool,
) -> Vec<Choice> {
    let together = &together;
    let pairs = left.iter().flat_map(|a| {
        right.iter().filter(move |b| together(a, b)).map(move |b| Choice {
            saving: a.saving + b.saving,
            loss: a.loss + b.loss,
            widths: [a.widths.as_slice(), b.widths.as_slice()].concat(),
            bypass: None,
            ranks: [a.ranks.as_slice(), b.ranks.as_slice()].concat(),
        })
    });
    let mut pairs: Vec<Choice> = pairs.collect();
    pairs.sort_by(|a, b| b.saving.total_cmp(&a.saving).then(a.loss.total_cmp(&b.loss)));
    let mut least = f64::INFINITY;
    pairs.retain(|pair| {
        let better = pair.loss < least;
        least = least.min(pair.loss);
        better
    });
    // The choice that changes nothing comes first, whatever else there is.
    pairs.retain(|pair| !(pair.widths.is_empty() && pair.ranks.is_empty()));
    if pairs.len() > limits::ITEM_CHOICES {
        let step = pairs[0].saving / limits::ITEM_CHOICES as f64;
        let number = |pair: &Choice| (pair.saving / step) as i64;
        // Of one step the last saves (hardly) less and loses least.
        pairs.reverse();
        pairs.dedup_by_key(|pair| number(pair));
        pairs.reverse();
    }
    pairs.insert(0, Choice::keep());
    pairs
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn choice(saving: f64, loss: f64) -> Choice {
        Choice { saving, loss, ..Choice::keep() }
    }

    fn totals(items: &[Vec<Choice>], chosen: &[usize]) -> (f64, f64) {
        let pairs = items.iter().zip(chosen).map(|(item, index)| &item[*index]);
        pairs.fold((0.0, 0.0), |(s, l), c| (s + c.saving, l + c.loss))
    }

    proptest! {
        /// Against trying everything: enough is saved, and nobody who saves clearly more loses less.
        #[test]
        fn saves_enough_at_the_least_loss(
            raw in prop::collection::vec(
                prop::collection::vec((0.0..10.0f64, 0.0..5.0f64), 1..4),
                1..5,
            ),
            share in 0.05..0.95f64,
        ) {
            let items: Vec<Vec<Choice>> = raw.iter().map(|item| {
                let cuts = item.iter().map(|(saving, loss)| choice(*saving, *loss));
                std::iter::once(Choice::keep()).chain(cuts).collect()
            }).collect();
            let most: f64 = items.iter()
                .map(|i| i.iter().map(|c| c.saving).fold(0.0, f64::max)).sum();
            let needed = share * most;
            prop_assume!(needed > 0.1);
            let chosen = allocate(&items, needed).expect("the largest savings reach it");
            let (saved, lost) = totals(&items, &chosen);
            prop_assert!(saved >= needed * (1.0 - 1e-9));
            // Rounding may ask for a little more than needed, never for less loss than the optimum there.
            let slack = needed * (1.0 + items.len() as f64 / STEPS as f64);
            let mut all = vec![vec![]];
            for item in &items {
                all = all.into_iter().flat_map(|head: Vec<usize>| (0..item.len()).map(move |i| {
                    let mut next = head.clone(); next.push(i); next
                })).collect();
            }
            let best = all.iter().map(|c| totals(&items, c))
                .filter(|(s, _)| *s >= slack).map(|(_, l)| l).fold(f64::INFINITY, f64::min);
            prop_assert!(lost <= best + 1e-9);
        }
    }

    #[test]
    fn says_so_when_everything_together_is_not_enough() {
        let items = vec![vec![Choice::keep(), choice(2.0, 1.0)]; 3];
        assert_eq!(allocate(&items, 6.5), None);
        assert_eq!(allocate(&items, 5.9), Some(vec![1, 1, 1]));
        assert_eq!(allocate(&items, 0.0), Some(vec![0, 0, 0]));
    }

    #[test]
    fn never_takes_a_cut_that_makes_the_model_slower() {
        let items = vec![vec![Choice::keep(), choice(-3.0, 0.0), choice(1.0, 1.0)]];
        assert_eq!(allocate(&items, 0.5), Some(vec![2]));
    }
}
