//! Residual blocks that are left out: who is read instead, and what it stands for from then on.

use std::collections::BTreeMap;

use super::plan::{Known, Plan};
use crate::coupling::{Block, SUM};
use crate::onnx::proto::NodeProto;
use crate::onnx::{Patch, Use, attr_float, attr_int};

/// What ONNX Runtime's fused normalisations take where nothing is said.
const EPSILON: f32 = 1e-12;

impl Known<'_> {
    /// Lets the readers of each removed block's sum read its shortcut. An activation that directly follows
    /// and that the shortcut went through already is skipped as well; a normalisation of the sum becomes one of
    /// the shortcut.
    pub(super) fn bypass(&self, plan: &Plan) -> Patch {
        let replace = self.replaced(plan);
        let mut patch = Patch { forget: replace.keys().cloned().collect(), ..Patch::default() };
        for block in self.removed(plan).filter(|block| block.norm) {
            let shortcut = replace.get(&block.shortcut).unwrap_or(&block.shortcut);
            let mut normed = shortcut.clone();
            if let Some((bias, sum)) = self.biased(block) {
                let name = format!("{sum}.add");
                let add = NodeProto {
                    name: Some(name),
                    op_type: Some("Add".to_owned()),
                    input: vec![shortcut.clone(), bias],
                    output: vec![sum.clone()],
                    ..Default::default()
                };
                patch.insert.push((block.add, add));
                normed = sum;
            }
            patch.nodes.insert(block.add, self.norm_of(block, normed));
        }
        patch.replace = replace;
        patch
    }

    fn removed(&self, plan: &Plan) -> impl Iterator<Item = &Block> {
        plan.bypass.iter().filter_map(|index| self.blocks.get(*index))
    }

    /// The value of a block's sum, where it has a name and is read.
    fn sum(&self, block: &Block) -> Option<&String> {
        let number = if block.norm { SUM } else { 0 };
        let sum = self.graph.node(block.add).output.get(number);
        sum.filter(|sum| !block.norm || !self.graph.uses(sum).is_empty())
    }

    /// Whether a normalisation takes the mean off.
    fn centred(&self, block: &Block) -> bool {
        self.graph.op(block.add) == "com.microsoft.SkipLayerNormalization"
    }

    /// The bias that a normalisation adds, and the name of the shortcut with it: an empty branch still has it.
    fn biased(&self, block: &Block) -> Option<(String, String)> {
        let number = if self.centred(block) { 4 } else { 3 };
        let bias = self.graph.input(block.add, number).filter(|_| block.norm)?;
        let silent = self.graph.floats(bias).is_some_and(|all| all.iter().all(|b| *b == 0.0));
        let output = self.graph.node(block.add).output.first()?;
        (!silent).then(|| (bias.to_owned(), format!("{output}.shortcut.blochd")))
    }

    /// The normalisation of a value alone in the place of one of a sum.
    fn norm_of(&self, block: &Block, value: String) -> NodeProto {
        let (node, centred) = (self.graph.node(block.add), self.centred(block));
        let epsilon = self.graph.attrs(block.add).float("epsilon").unwrap_or(EPSILON);
        let scales = if centred { 2..4 } else { 2..3 };
        let scales = node.input.get(scales.start..scales.end.min(node.input.len()));
        let kind = if centred { "LayerNormalization" } else { "SimplifiedLayerNormalization" };
        NodeProto {
            op_type: Some(kind.to_owned()),
            domain: None,
            input: std::iter::once(value).chain(scales.unwrap_or_default().to_vec()).collect(),
            output: node.output.first().cloned().into_iter().collect(),
            attribute: vec![attr_int("axis", -1), attr_float("epsilon", epsilon)],
            ..node.clone()
        }
    }

    /// Values that nobody computes any more, each with the one that is read instead.
    fn replaced(&self, plan: &Plan) -> BTreeMap<String, String> {
        let mut replace: BTreeMap<String, String> = BTreeMap::new();
        for block in self.removed(plan) {
            let Some(sum) = self.sum(block) else { continue };
            if let Some((_, biased)) = self.biased(block) {
                replace.insert(sum.clone(), biased);
                continue;
            }
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
    ///
    /// Where the block ends in a normalisation, what stands behind it makes up for it alone.
    pub fn stands_for(&self, plan: &Plan) -> BTreeMap<String, String> {
        let replaced = self.replaced(plan);
        let mut found = BTreeMap::new();
        // Blocks stand in topological order: of a row of them the last one's sum stays.
        for block in self.removed(plan).filter(|block| !block.norm) {
            let Some(sum) = self.sum(block) else { continue };
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
            // Before the Relu a projection may have taken the place of a sum.
            let before = match before.and_then(|before| replaced.get(before)) {
                Some(instead) => {
                    Some(instead.as_str()).filter(|value| self.is_read_by_removed(plan, value))
                }
                None => before,
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
            Use::Input { node, .. } => {
                self.removed(plan).any(|block| block.add == *node || block.branch.contains(node))
            }
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
