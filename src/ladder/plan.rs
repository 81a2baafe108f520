//! What a rung cuts: the items of the knapsack from scores and latencies, and the plan that it picks.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::allocate::{Choice, allocate, combine};
use super::score::Scored;
use crate::coupling::{Block, Coupling, Group, GroupId};
use crate::onnx::{Graph, Model, OnnxError, Patch, Shapes, Use};
use crate::surgery::{self, Cut, CutError};

/// Channels a group may keep: multiples of what `align` asks of the operators' outputs (or of what divides the
/// width into at most sixteen steps of a power of two), down to an eighth. Channels that are large blocks of
/// outputs, as attention heads are, go one by one.
pub fn widths(group: &Group, align: Option<usize>) -> Vec<usize> {
    let block = block(group);
    let step = match (align, group.width) {
        (Some(align), _) => align.max(1) / gcd(align.max(1), block),
        (None, width) if block >= LARGE_BLOCK && width <= MANY_BLOCKS => 1,
        (None, 0..=15) => 2,
        (None, 16..=31) => 4,
        (None, 32..=127) => 8,
        (None, wide) => (wide / 16).next_power_of_two(),
    };
    let least = (group.width / 8).max(1).next_multiple_of(step);
    (least..group.width).step_by(step).collect()
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
}

/// The channels to keep and the blocks to remove.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub struct Plan {
    /// Kept channels of every group that is cut.
    pub widths: BTreeMap<GroupId, usize>,
    /// Removed blocks, as indices.
    pub bypass: BTreeSet<usize>,
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
        bypass: None,
    });
    std::iter::once(Choice::keep()).chain(cuts).collect()
}

/// The items of the knapsack: residual blocks (their groups' widths together, or their removal) and the
/// groups outside of blocks. `removals` gives each block's (saving, loss) where it may be removed.
pub fn items(
    mut groups: BTreeMap<GroupId, Vec<Choice>>,
    blocks: &[Block],
    removals: &[Option<(f64, f64)>],
) -> Vec<Vec<Choice>> {
    let mut items = Vec::new();
    for (index, block) in blocks.iter().enumerate() {
        let inside = block.groups.iter().filter_map(|id| groups.remove(id));
        let mut choices = inside.fold(vec![Choice::keep()], |all, one| combine(&all, &one));
        if let Some(Some((saving, loss))) = removals.get(index) {
            let (saving, loss) = (*saving, *loss);
            choices.push(Choice { saving, loss, widths: Vec::new(), bypass: Some(index) });
        }
        items.push(choices);
    }
    items.extend(groups.into_values());
    items
}

/// The plan that saves `needed` microseconds at the least loss; `None` where nothing saves so much.
pub fn plan(items: &[Vec<Choice>], needed: f64) -> Option<Plan> {
    let chosen = allocate(items, needed)?;
    let mut plan = Plan::default();
    for (item, index) in items.iter().zip(chosen) {
        let choice = &item[index];
        plan.widths.extend(choice.widths.iter().map(|(id, kept)| (GroupId(*id), *kept)));
        plan.bypass.extend(choice.bypass);
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
        let dense = self.graph.model();
        let cut = surgery::apply(dense, self.coupling, self.shapes, &self.cut(plan))?;
        if plan.bypass.is_empty() {
            return Ok(cut);
        }
        Ok(self.bypass(plan).apply(&cut)?)
    }

    /// Lets the readers of each removed block's sum read its shortcut. An activation that directly follows
    /// and that the shortcut went through already is skipped as well.
    fn bypass(&self, plan: &Plan) -> Patch {
        let replace = self.replaced(plan);
        let forget = replace.keys().cloned().collect();
        Patch { replace, forget, ..Patch::default() }
    }

    /// Values that nobody computes any more, each with the one that is read instead.
    fn replaced(&self, plan: &Plan) -> BTreeMap<String, String> {
        let mut replace: BTreeMap<String, String> = BTreeMap::new();
        for block in plan.bypass.iter().map(|index| &self.blocks[*index]) {
            let Some(sum) = self.graph.node(block.add).output.first() else { continue };
            replace.insert(sum.clone(), block.shortcut.clone());
            if let Some((repeated, same)) = self.repeated_relu(sum, &block.shortcut) {
                replace.insert(repeated, same);
            }
        }
        // A shortcut may itself have been replaced by the block before.
        let resolved = replace.iter().map(|(from, to)| {
            let mut end = to;
            while let Some(next) = replace.get(end) {
                end = next;
            }
            (from.clone(), end.clone())
        });
        resolved.collect()
    }

    /// For the value before each removed block (or row of removed blocks): the dense network's value
    /// behind it, which it stands for from now on. Both are taken before the activation that follows.
    pub fn stands_for(&self, plan: &Plan) -> BTreeMap<String, String> {
        let replaced = self.replaced(plan);
        let mut found = BTreeMap::new();
        // Blocks stand in topological order: of a row of them the last one's sum stays.
        for block in plan.bypass.iter().map(|index| &self.blocks[*index]) {
            let Some(sum) = self.graph.node(block.add).output.first() else { continue };
            let Some(end) = replaced.get(sum).filter(|end| self.is_read_by_removed(plan, end))
            else {
                continue;
            };
            let relu = self.graph.producer(end).filter(|node| self.graph.op(*node) == "Relu");
            let before = match relu {
                // What lies behind a Relu cannot stand for a sum that none follows.
                Some(_) if self.repeated_relu(sum, end).is_none() => continue,
                Some(node) => {
                    self.graph.input(node, 0).filter(|before| self.graph.uses(before).len() == 1)
                }
                None => Some(end.as_str()),
            };
            if let Some(before) = before {
                found.insert(before.to_owned(), sum.clone());
            }
        }
        found
    }

    /// Whether only removed blocks read a value in the dense network: others still expect it as it was.
    fn is_read_by_removed(&self, plan: &Plan, value: &str) -> bool {
        self.graph.uses(value).iter().all(|used| match used {
            Use::Input { node, .. } => plan.bypass.iter().any(|index| {
                let block = &self.blocks[*index];
                block.add == *node || block.branch.contains(node)
            }),
            Use::Captured { .. } | Use::Output => false,
        })
    }

    /// Relu(x) where x = Relu(…): the value of the second and the one that it repeats.
    fn repeated_relu(&self, sum: &str, shortcut: &str) -> Option<(String, String)> {
        let is_relu = |node: usize| self.graph.op(node) == "Relu";
        self.graph.producer(shortcut).filter(|node| is_relu(*node))?;
        let [Use::Input { node, .. }] = self.graph.uses(sum) else { return None };
        let output = self.graph.node(*node).output.first().filter(|_| is_relu(*node))?;
        let returned = self.graph.uses(output).contains(&Use::Output);
        (!returned).then(|| (output.clone(), shortcut.to_owned()))
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
