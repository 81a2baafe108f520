//! What the elements of small integer tensors are: numbers that stand in the model, or sizes of other
//! values that the graph reads at run time. Exporters compute the target of a Reshape that way
//! (Shape → Slice → Concat): after a cut the sizes read follow by themselves, the numbers must be told.

use std::collections::BTreeMap;

use crate::limits;
use crate::onnx::{Graph, NodeId, Shapes};

/// One element of an integer tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Size {
    /// A number of the model.
    Known { value: i64, origin: Option<Origin> },
    /// The length of an axis, read when the model runs.
    Length { value: String, axis: usize },
    /// Anything else.
    Computed,
}

/// The one place where a number stands, if nothing but the tensor in question (and all that reads that as a
/// whole) depends on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Origin {
    pub constant: String,
    pub index: usize,
    /// Where others read the constant too: the input (node, number) that can be given one of its own.
    pub reader: Option<(NodeId, usize)>,
}

/// The integer vectors and scalars of a graph, by value name.
#[derive(Debug, Default)]
pub(crate) struct Sizes(BTreeMap<String, Vec<Size>>);

impl Sizes {
    /// Follows all sizes through the graph.
    pub fn new(graph: &Graph, shapes: &Shapes) -> Self {
        let mut sizes = Self::default();
        for node in 0..graph.nodes().len() {
            if let Some(found) = sizes.follow(graph, shapes, node)
                && let Some(output) = graph.node(node).output.first()
            {
                sizes.0.insert(output.clone(), found);
            }
        }
        sizes
    }

    /// The elements of an integer value of rank 0 or 1; `None` where they were not followed. All who read
    /// the value see the same numbers.
    pub fn of(&self, graph: &Graph, value: &str) -> Option<Vec<Size>> {
        if let Some(found) = self.0.get(value) {
            return Some(found.clone());
        }
        constant(graph, value, None)
    }

    /// The elements of input `number` of a node, with the origins of those that can be changed for this node
    /// alone.
    fn read(&self, graph: &Graph, node: NodeId, number: usize) -> Option<Vec<Size>> {
        let value = graph.input(node, number)?;
        let found = match self.0.get(value) {
            Some(found) => found.clone(),
            None => return constant(graph, value, Some((node, number))),
        };
        let alone = graph.uses(value).len() == 1;
        Some(if alone { found } else { found.into_iter().map(Size::shared).collect() })
    }

    /// Whether node `node` only hands sizes on: what it reads is still followed behind it.
    pub fn hands_on(&self, graph: &Graph, node: NodeId) -> bool {
        graph.node(node).output.first().is_some_and(|output| self.0.contains_key(output))
    }

    fn follow(&self, graph: &Graph, shapes: &Shapes, node: NodeId) -> Option<Vec<Size>> {
        let (input, output) = (graph.input(node, 0)?, graph.node(node).output.first()?);
        if shapes.get(output).is_none_or(|found| found.shape.len() > 1) {
            return None;
        }
        let attrs = graph.attrs(node);
        match graph.op(node).as_str() {
            "Shape" => {
                let rank = shapes.get(input)?.shape.len();
                let at = |name, otherwise| position(attrs.int(name).unwrap_or(otherwise), rank);
                let axes = at("start", 0)..at("end", rank as i64);
                Some(axes.map(|axis| Size::Length { value: input.to_owned(), axis }).collect())
            }
            "Cast" | "Identity" | "Squeeze" | "Unsqueeze" => self.read(graph, node, 0),
            "Slice" => {
                let sizes = self.read(graph, node, 0)?;
                let list = |number: usize, name: &str| match graph.input(node, number) {
                    Some(value) => graph.ints(value),
                    None => attrs.ints(name).map(<[i64]>::to_vec),
                };
                let one = |list: Vec<i64>| (list.len() == 1).then(|| list[0]);
                let start = position(one(list(1, "starts")?)?, sizes.len());
                let end = position(one(list(2, "ends")?)?, sizes.len());
                let steps =
                    graph.input(node, 4).is_none_or(|steps| graph.ints(steps) == Some(vec![1]));
                (steps && start <= end).then(|| sizes[start..end].to_vec())
            }
            "Gather" => {
                let sizes = self.read(graph, node, 0)?;
                let indices = graph.ints(graph.input(node, 1)?)?;
                let pick = |index: &i64| {
                    let index = if *index < 0 { index + sizes.len() as i64 } else { *index };
                    sizes.get(usize::try_from(index).ok()?).cloned()
                };
                // One number may be picked twice.
                let distinct = indices.len() == 1;
                let picked: Option<Vec<Size>> = indices.iter().map(pick).collect();
                picked.map(
                    |all| {
                        if distinct { all } else { all.into_iter().map(Size::shared).collect() }
                    },
                )
            }
            "Concat" => {
                let inputs = graph.node(node).input.iter().enumerate();
                let part = |(number, value): (usize, &String)| {
                    let length = || match shapes.get(value)?.shape.as_slice() {
                        [length] => *length,
                        _ => None,
                    };
                    let computed = |length| vec![Size::Computed; length];
                    let small = |length: &usize| *length <= limits::TENSOR_RANK;
                    self.read(graph, node, number).or_else(|| length().filter(small).map(computed))
                };
                let parts: Option<Vec<Vec<Size>>> = inputs.map(part).collect();
                Some(parts?.concat())
            }
            _ => None,
        }
    }
}

impl Size {
    /// The same number where others read it as well.
    fn shared(self) -> Self {
        match self {
            Self::Known { value, .. } => Self::Known { value, origin: None },
            other @ (Self::Length { .. } | Self::Computed) => other,
        }
    }
}

/// The elements of a constant. What several nodes read can be changed for one of them (`reader`) only by
/// giving that one a constant of its own.
fn constant(graph: &Graph, value: &str, reader: Option<(NodeId, usize)>) -> Option<Vec<Size>> {
    let dims = graph.weight_dims(value)?;
    if dims.len() > 1 || dims.iter().product::<usize>() > limits::TENSOR_RANK {
        return None;
    }
    let alone = graph.uses(value).len() == 1;
    let origin = |index| {
        let reader = reader.filter(|_| !alone);
        let found = Origin { constant: value.to_owned(), index, reader };
        (alone || reader.is_some()).then_some(found)
    };
    let known = |(index, value)| Size::Known { value, origin: origin(index) };
    Some(graph.ints(value)?.into_iter().enumerate().map(known).collect())
}

/// A bound of a slice as a position: negative ones count from the end, all are clamped.
fn position(bound: i64, length: usize) -> usize {
    let length = length as i64;
    (if bound < 0 { bound.saturating_add(length) } else { bound }).clamp(0, length) as usize
}
