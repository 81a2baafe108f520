//! What a rung cuts: the items of the knapsack from scores and latencies, and the plan that it picks.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::allocate::{Choice, allocate, combine};
use super::ranks::{Into2, RankChoices, Ranked};
use super::score::Scored;
use crate::coupling::{Block, Coupling, Group, GroupId};
use crate::onnx::{Graph, Model, NodeId, OnnxError, Shapes};
use crate::surgery::{self, Cut, CutError};

/// Channels a group may keep: multiples of what `align` asks of the operators' outputs (or of what divides the
/// width into at most sixteen steps of a power of two), down to an eighth. Channels that are large blocks of
/// outputs, as attention heads are, go one by one.
pub fn widths(group: &Group, align: Option<usize>) -> Vec<usize> {
    stepped(group.width, align, block(group))
}

/// The same for `width` channels of `block` outputs each: the steps of widths, and of ranks.
pub fn stepped(width: usize, align: Option<usize>, block: usize) -> Vec<usize> {
    let step = match (align, width) {
        (Some(align), _) => align.max(1) / gcd(align.max(1), block),
        (None, width) if block >= LARGE_BLOCK && width <= MANY_BLOCKS => 1,
        (None, 0..=15) => 2,
        (None, 16..=31) => 4,
        (None, 32..=127) => 8,
        (None, wide) => (wide / 16).next_power_of_two(),
    };
    let least = (width / 8).max(1).next_multiple_of(step);
    (least..width).step_by(step).collect()
}

/// Outputs of an operator that go with one channel from which on each is worth a step of its own: as many as
/// the processors' vectors hold.
const LARGE_BLOCK: usize = 8;

/// Blocks of a group up to which every number of them is tried.
const MANY_BLOCKS: usize = 32;

/// Fewest outputs of a producing operator that go with one channel.
fn block(group: &Group) -> usize {
    let outputs = group.producers.iter().flat_map(|producer| &producer.outputs);
    outputs.map(Vec::len).min().unwrap_or(1).max(1)
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Everything that is known of a model when its cuts are planned.
pub struct Known<'a> {
    pub graph: &'a Graph<'a>,
    pub shapes: &'a Shapes,
    pub coupling: &'a Coupling,
    pub blocks: &'a [Block],
    pub scored: BTreeMap<GroupId, Scored>,
    /// Operators that may be put in two.
    pub ranked: BTreeMap<NodeId, Ranked>,
}

/// The channels to keep, the blocks to remove and the operators to put in two.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub struct Plan {
    /// Kept channels of every group that is cut.
    pub widths: BTreeMap<GroupId, usize>,
    /// Removed blocks, as indices.
    pub bypass: BTreeSet<usize>,
    /// Ranks of the operators that are put in two, by node of the dense network.
    pub ranks: BTreeMap<NodeId, usize>,
}

/// Why a plan could not be carried out.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    #[error("the planned cut was refused")]
    Cut(#[from] CutError),
    #[error("a residual block could not be removed")]
    Onnx(#[from] OnnxError),
}

/// Choices of one group: its widths with their savings (microseconds) and losses.
pub fn group_choices(
    id: GroupId,
    width: usize,
    scored: &Scored,
    savings: &[(usize, f64)],
) -> Vec<Choice> {
    let cuts = savings.iter().map(|(kept, saving)| Choice {
        saving: *saving,
        loss: scored.selection.loss[width - kept],
        widths: vec![(id.0, *kept)],
        ..Choice::keep()
    });
    std::iter::once(Choice::keep()).chain(cuts).collect()
}

/// The items of the knapsack: residual blocks (their groups' widths and their operators' ranks together, or
/// their removal), the groups outside of blocks with the operators that write or read them, and the operators
/// that are left. `removals` gives each block's (saving, loss) where it may be removed.
pub fn items(
    mut groups: BTreeMap<GroupId, Vec<Choice>>,
    mut ranks: Vec<RankChoices>,
    blocks: &[Block],
    removals: &[Option<(f64, f64)>],
) -> Vec<Vec<Choice>> {
    let mut items = Vec::new();
    for (index, block) in blocks.iter().enumerate() {
        let inside = block.groups.iter().filter_map(|id| groups.remove(id));
        let all = |_: &Choice, _: &Choice| true;
        let choices = inside.fold(vec![Choice::keep()], |left, one| combine(&left, &one, all));
        let own = ranks.extract_if(.., |operator| block.branch.contains(&operator.node));
        let mut choices = own.fold(choices, with_ranks);
        if let Some(Some((saving, loss))) = removals.get(index) {
            let (saving, loss) = (*saving, *loss);
            choices.push(Choice { saving, loss, bypass: Some(index), ..Choice::keep() });
        }
        items.push(choices);
    }
    for (id, choices) in groups {
        let own = ranks.extract_if(.., |operator| operator.groups.contains(&id));
        items.push(own.fold(choices, with_ranks));
    }
    items.extend(ranks.into_iter().map(|operator| operator.choices));
    items
}

/// The choices of an item with those of an operator in it.
fn with_ranks(choices: Vec<Choice>, operator: RankChoices) -> Vec<Choice> {
    combine(&choices, &operator.choices, |cut, rank| rank.ranks.is_empty() || !operator.clash(cut))
}

/// The plan that saves `needed` microseconds at the least loss; `None` where nothing saves so much.
pub fn plan(items: &[Vec<Choice>], needed: f64) -> Option<Plan> {
    let chosen = allocate(items, needed)?;
    let mut plan = Plan::default();
    for (item, index) in items.iter().zip(chosen) {
        let choice = &item[index];
        plan.widths.extend(choice.widths.iter().map(|(id, kept)| (GroupId(*id), *kept)));
        plan.bypass.extend(choice.bypass);
        plan.ranks.extend(choice.ranks.iter().copied());
    }
    Some(plan)
}

impl Known<'_> {
    /// The channels that a plan removes.
    pub fn cut(&self, plan: &Plan) -> Cut {
        let removed = plan.widths.iter().filter_map(|(id, kept)| {
            let scored = self.scored.get(id)?;
            let gone = scored.selection.order.len().checked_sub(*kept)?;
            Some((*id, scored.selection.order[..gone].iter().copied().collect()))
        });
        Cut { removed: removed.collect() }
    }

    /// The dense model cut as planned, not repaired: as fast as the rung will be.
    ///
    /// # Errors
    /// Where the cut is refused.
    pub fn carry_out(&self, plan: &Plan) -> Result<Model, PlanError> {
        self.put_in_two(plan, self.narrowed(plan)?, Into2::Sketch)
    }

    /// The dense model without the channels and blocks that a plan removes, every operator still in one.
    ///
    /// # Errors
    /// Where the cut is refused.
    pub fn narrowed(&self, plan: &Plan) -> Result<Model, PlanError> {
        self.narrowed_of(self.graph.model(), plan)
    }

    /// The same of a model that has the dense one's nodes and sizes.
    pub(super) fn narrowed_of(&self, model: &Model, plan: &Plan) -> Result<Model, PlanError> {
        let cut = surgery::apply(model, self.coupling, self.shapes, &self.cut(plan))?;
        if plan.bypass.is_empty() {
            return Ok(cut);
        }
        Ok(self.bypass(plan).apply(&cut)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coupling::Producer;

    fn group(width: usize, block: u32) -> Group {
        let outputs = (0..width as u32).map(|c| (c * block..(c + 1) * block).collect()).collect();
        Group {
            id: GroupId(0),
            name: "watched".to_owned(),
            width,
            places: Vec::new(),
            producers: vec![Producer { node: 0, outputs }],
            consumers: Vec::new(),
            through: Vec::new(),
            stream: false,
            neutral: crate::coupling::Neutral::Zero,
        }
    }

    #[test]
    fn heads_go_one_by_one_and_neurons_in_steps() {
        assert_eq!(widths(&group(12, 32), None), (1..12).collect::<Vec<_>>());
        assert_eq!(widths(&group(12, 1), None), [2, 4, 6, 8, 10]);
        assert_eq!(widths(&group(1536, 1), None).len(), 10);
        assert_eq!(widths(&group(1, 64), None), Vec::<usize>::new());
    }

    #[test]
    fn an_alignment_is_one_of_outputs_whatever_a_channel_takes_of_them() {
        assert_eq!(widths(&group(12, 32), Some(16)), (1..12).collect::<Vec<_>>());
        assert_eq!(widths(&group(12, 8), Some(16)), [2, 4, 6, 8, 10]);
        assert_eq!(widths(&group(64, 1), Some(16)), [16, 32, 48]);
        assert_eq!(widths(&group(64, 1), Some(0)).len(), 56);
    }
}
