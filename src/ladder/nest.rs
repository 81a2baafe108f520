//! Rungs inside one another: a plan that removes all that a slower rung's plan removed, and more. Who goes
//! down such a ladder loses channels and never gets others back.

use std::collections::BTreeSet;

use super::allocate::Choice;
use super::plan::Plan;
use crate::coupling::GroupId;
use crate::onnx::NodeId;

/// The choices of each item that remove all that `slower` removes of it.
pub fn inside(items: &[Vec<Choice>], slower: &Plan) -> Vec<Vec<Choice>> {
    let kept = |item: &Vec<Choice>| {
        let part = Part::of(item, slower);
        item.iter().filter(|choice| part.is_gone_in(choice)).cloned().collect()
    };
    items.iter().map(kept).collect()
}

/// Whether `faster` removes all that `slower` removes. A removed block takes its groups with it.
pub fn nests(items: &[Vec<Choice>], slower: &Plan, faster: &Plan) -> bool {
    items.iter().all(|item| {
        let (wanted, found) = (Part::of(item, slower), Part::of(item, faster));
        wanted.is_gone_in(&Choice {
            widths: found.widths.iter().map(|(group, kept)| (group.0, *kept)).collect(),
            bypass: found.bypass.first().copied(),
            ranks: found.ranks,
            ..Choice::keep()
        })
    })
}

/// What a plan does to one item.
struct Part {
    widths: Vec<(GroupId, usize)>,
    bypass: BTreeSet<usize>,
    ranks: Vec<(NodeId, usize)>,
}

impl Part {
    fn of(item: &[Choice], plan: &Plan) -> Self {
        let groups: BTreeSet<usize> =
            item.iter().flat_map(|choice| &choice.widths).map(|(group, _)| *group).collect();
        let blocks = item.iter().filter_map(|choice| choice.bypass);
        let widths = plan.widths.iter().filter(|(group, _)| groups.contains(&group.0));
        let nodes: BTreeSet<NodeId> =
            item.iter().flat_map(|choice| &choice.ranks).map(|(node, _)| *node).collect();
        let ranks = plan.ranks.iter().filter(|(node, _)| nodes.contains(*node));
        Self {
            ranks: ranks.map(|(node, rank)| (*node, *rank)).collect(),
            widths: widths.map(|(group, kept)| (*group, *kept)).collect(),
            bypass: blocks.filter(|block| plan.bypass.contains(block)).collect(),
        }
    }

    /// Whether a choice removes as much and more.
    fn is_gone_in(&self, choice: &Choice) -> bool {
        if let Some(block) = choice.bypass {
            return self.bypass.is_empty() || self.bypass.contains(&block);
        }
        let narrower = |group: GroupId, most: usize| {
            choice.widths.iter().any(|(cut, kept)| *cut == group.0 && *kept <= most)
        };
        let lower = |node: NodeId, most: usize| {
            choice.ranks.iter().any(|(found, rank)| *found == node && *rank <= most)
        };
        self.bypass.is_empty()
            && self.widths.iter().all(|(group, kept)| narrower(*group, *kept))
            && self.ranks.iter().all(|(node, rank)| lower(*node, *rank))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(widths: &[(usize, usize)]) -> Choice {
        Choice { saving: 1.0, loss: 1.0, widths: widths.to_vec(), ..Choice::keep() }
    }

    fn removed(block: usize) -> Choice {
        Choice { bypass: Some(block), ..cut(&[]) }
    }

    /// A block with two groups, and a group outside of blocks.
    fn items() -> Vec<Vec<Choice>> {
        vec![
            vec![
                Choice::keep(),
                cut(&[(0, 8)]),
                cut(&[(0, 4)]),
                cut(&[(0, 8), (1, 6)]),
                cut(&[(0, 4), (1, 3)]),
                removed(0),
            ],
            vec![Choice::keep(), cut(&[(2, 5)]), cut(&[(2, 2)])],
        ]
    }

    fn plan(widths: &[(usize, usize)], blocks: &[usize]) -> Plan {
        Plan {
            widths: widths.iter().map(|(group, kept)| (GroupId(*group), *kept)).collect(),
            bypass: blocks.iter().copied().collect(),
            ..Plan::default()
        }
    }

    #[test]
    fn only_what_removes_all_of_the_slower_rung_is_left_to_choose_from() {
        let items = items();
        let left = inside(&items, &plan(&[(0, 8), (1, 6)], &[]));
        assert_eq!(left[0], items[0][3..], "nothing comes back, not even of one of two groups");
        assert_eq!(left[1], items[1], "what the slower rung left whole is free");
        let left = inside(&items, &plan(&[(2, 5)], &[0]));
        assert_eq!(left[0], [removed(0)], "a removed block stays removed");
        assert_eq!(left[1], items[1][1..]);
    }

    #[test]
    fn a_plan_nests_in_another_when_nothing_comes_back() {
        let items = items();
        let slower = plan(&[(0, 8), (2, 5)], &[]);
        for (faster, nested) in [
            (plan(&[(0, 8), (2, 5)], &[]), true),
            (plan(&[(0, 4), (1, 3), (2, 2)], &[]), true),
            (plan(&[(2, 5)], &[0]), true),
            (plan(&[(0, 4)], &[0]), false),
            (plan(&[(1, 3), (2, 2)], &[]), false),
            (plan(&[], &[]), false),
        ] {
            assert_eq!(nests(&items, &slower, &faster), nested, "{faster:?}");
        }
        let of_rank = |rank: usize| Choice { ranks: vec![(7, rank)], ..cut(&[]) };
        let ranked = |rank: usize| Plan { ranks: [(7, rank)].into(), ..Plan::default() };
        let offered = [vec![Choice::keep(), of_rank(64), of_rank(32), removed(3)]];
        assert!(
            nests(&offered, &ranked(64), &ranked(32))
                && nests(&offered, &ranked(64), &plan(&[], &[3]))
        );
        assert!(
            !nests(&offered, &ranked(32), &ranked(64))
                && !nests(&offered, &ranked(64), &plan(&[], &[]))
        );
        assert_eq!(inside(&offered, &ranked(32))[0], offered[0][2..]);
        assert!(!nests(&items, &plan(&[], &[0]), &plan(&[(0, 4), (1, 3)], &[])));
        assert!(nests(&items, &Plan::default(), &slower), "everything nests in dense");
    }
}
