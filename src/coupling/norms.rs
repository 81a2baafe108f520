//! Normalisations over channels on the last axis, however they are written down: as an operator, fused with the
//! addition before it, or put together of simple operators by an exporter.
//!
//! Such a node looks along the axis that it normalises, and can lose channels of it all the same. Of n
//! channels n' are left; where those that go are zero (for a normalisation that takes the mean off: where
//! they are the mean) the sum of squares stays and its mean grows by n/n'. With γ·√(n/n') for γ and ε·n/n'
//! for ε the channels that are left come out as they did.

use std::collections::BTreeMap;

use super::rules::Node;
use crate::onnx::{Graph, NodeId, Use, values};

/// A normalisation and where its numbers stand.
#[derive(Debug, Clone, PartialEq)]
pub struct Norm {
    /// The values whose sum is normalised: one, two where the node adds them itself, none where it adds up
    /// embeddings.
    pub terms: Vec<String>,
    /// Name of γ, which scales each channel.
    pub scale: String,
    /// The node and the number of its input that γ is.
    pub scale_at: (NodeId, usize),
    pub epsilon: Epsilon,
    /// The value behind γ.
    pub output: String,
    /// Whether the mean over the channels is taken off.
    pub centred: bool,
    /// The nodes that take means over the channels; none where one operator does all.
    pub means: Vec<NodeId>,
    /// The first axis that is normalised over, as the model writes it.
    axis: i64,
    /// Whether somebody reads the mean or the deviation itself.
    read: bool,
}

/// What is added to the mean of squares.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Epsilon {
    None,
    /// Attribute `epsilon` of the node, or the operator's default.
    Attribute(f32),
    /// The constant at this input of this node.
    Constant(NodeId, usize),
}

impl Norm {
    /// Whether channels of the last axis, of `length`, may go: nothing but the channels themselves depends on
    /// their number, and γ can make up for it.
    pub(crate) fn divides(&self, graph: &Graph, rank: usize, length: usize) -> bool {
        let last = self.axis == -1 || usize::try_from(self.axis).is_ok_and(|axis| axis + 1 == rank);
        let fits = graph.weight_dims(&self.scale).is_some_and(|dims| {
            dims.last() == Some(&length) && dims.iter().product::<usize>() == length
        });
        last && fits && is_real(graph, &self.scale) && !self.read
    }
}

/// The normalisations of a graph, in the order of their nodes.
pub fn norms(graph: &Graph) -> Vec<Norm> {
    let of = |node| match graph.op(node).as_str() {
        "Sqrt" => written_out(graph, node).unwrap_or_default(),
        _ => operator(graph, node).into_iter().collect(),
    };
    (0..graph.nodes().len()).flat_map(of).collect()
}

/// Normalisations by the nodes that look along the channels for them.
pub(super) fn by_node(norms: &[Norm]) -> BTreeMap<NodeId, &Norm> {
    let looking = |norm: &Norm| match norm.means.as_slice() {
        [] => vec![norm.scale_at.0],
        means => means.to_vec(),
    };
    norms.iter().flat_map(|norm| looking(norm).into_iter().map(move |node| (node, norm))).collect()
}

fn operator(graph: &Graph, node: NodeId) -> Option<Norm> {
    // What ONNX Runtime adds where the attribute is missing, and the outputs that hold statistics.
    const LITTLE: f32 = 1e-5;
    const FUSED_LITTLE: f32 = 1e-12;
    let (terms, scale, centred, little, statistics) = match graph.op(node).as_str() {
        "LayerNormalization" => (0..1, 1, true, LITTLE, 1..3),
        "RMSNormalization" | "SimplifiedLayerNormalization" => (0..1, 1, false, LITTLE, 1..2),
        "com.microsoft.SkipLayerNormalization" => (0..2, 2, true, FUSED_LITTLE, 1..3),
        "com.microsoft.SkipSimplifiedLayerNormalization" => (0..2, 2, false, FUSED_LITTLE, 1..3),
        "com.microsoft.EmbedLayerNormalization" => (0..0, 5, true, FUSED_LITTLE, 0..0),
        _ => return None,
    };
    let outputs = &graph.node(node).output;
    let terms: Option<Vec<String>> =
        terms.map(|input| graph.input(node, input).map(str::to_owned)).collect();
    let is_read =
        |output: usize| outputs.get(output).is_some_and(|value| !graph.uses(value).is_empty());
    Some(Norm {
        terms: terms?,
        scale: graph.input(node, scale)?.to_owned(),
        scale_at: (node, scale),
        epsilon: Epsilon::Attribute(graph.attrs(node).float("epsilon").unwrap_or(little)),
        output: outputs.first()?.clone(),
        centred,
        means: Vec::new(),
        axis: graph.attrs(node).int("axis").unwrap_or(-1),
        read: statistics.into_iter().any(is_read),
    })
}

/// γ · x / √(mean(x²) + ε) around the root at node `root`, x with or without its mean; one for each γ.
fn written_out(graph: &Graph, root: NodeId) -> Option<Vec<Norm>> {
    let (under, deviation) = (graph.input(root, 0)?, graph.node(root).output.first()?);
    let (variance, epsilon) = match plus_little(graph, under) {
        Some((variance, node, input)) => (variance, Epsilon::Constant(node, input)),
        None => (under, Epsilon::None),
    };
    let (mean, axis) = mean_over(graph, variance)?;
    let base = root_of_square(graph, graph.input(mean, 0)?)?;
    let (over, quotient) = quotient(graph, deviation)?;
    if !same(graph, base, over) || only_reader(graph, under).is_none() {
        return None;
    }
    only_reader(graph, variance)?;
    let (x, means, centred) = match centring(graph, base) {
        Some((x, node, own)) if own == axis => (x, vec![node, mean], true),
        Some(_) => return None,
        None => (base, vec![mean], false),
    };
    let products = products(graph, quotient)?;
    let made = products.into_iter().map(|(node, input, scale)| Norm {
        terms: vec![x.to_owned()],
        scale: scale.to_owned(),
        scale_at: (node, input),
        epsilon,
        output: graph.node(node).output.first().cloned().unwrap_or_default(),
        centred,
        means: means.clone(),
        axis,
        read: false,
    });
    Some(made.collect())
}

/// Whether a constant holds floating-point numbers.
fn is_real(graph: &Graph, value: &str) -> bool {
    graph.weight_dtype(value).and_then(|dtype| values::floats(dtype, &[])).is_some()
}

fn is_scalar(graph: &Graph, value: &str) -> bool {
    let dims = graph.weight_dims(value);
    dims.is_some_and(|dims| dims.iter().product::<usize>() == 1) && is_real(graph, value)
}

/// The one node that reads a value, and as which input.
fn only_reader(graph: &Graph, value: &str) -> Option<(NodeId, usize)> {
    match graph.uses(value) {
        [Use::Input { node, input }] => Some((*node, *input)),
        _ => None,
    }
}

/// x + a number: x, and where the number is read.
fn plus_little<'g>(graph: &'g Graph, value: &str) -> Option<(&'g str, NodeId, usize)> {
    let node = graph.producer(value).filter(|node| graph.op(*node) == "Add")?;
    let number = (0..2).find(|input| is_scalar(graph, graph.input(node, *input).unwrap_or("")))?;
    Some((graph.input(node, 1 - number)?, node, number))
}

/// The node that takes the mean which `value` is, over one axis that it keeps at length one, and that axis.
fn mean_over(graph: &Graph, value: &str) -> Option<(NodeId, i64)> {
    let id = graph.producer(value).filter(|node| graph.op(*node) == "ReduceMean")?;
    let node = Node { graph, id, op: graph.op(id) };
    let axes = node.list(1, "axes").ok()??;
    let keeps = node.int("keepdims").unwrap_or(1) != 0;
    (keeps && axes.len() == 1).then(|| (id, axes[0]))
}

/// x of x² or x·x.
fn root_of_square<'g>(graph: &'g Graph, value: &str) -> Option<&'g str> {
    let node = graph.producer(value)?;
    let (a, b) = (graph.input(node, 0)?, graph.input(node, 1)?);
    let squares = match graph.op(node).as_str() {
        "Pow" => graph.floats(b).map_or(graph.ints(b) == Some(vec![2]), |power| power == [2.0]),
        "Mul" => a == b,
        _ => false,
    };
    squares.then_some(a)
}

/// What is divided by `deviation`, and the value that comes out: x/d, or x·(1/d).
fn quotient<'g>(graph: &'g Graph, deviation: &str) -> Option<(&'g str, &'g str)> {
    let (node, input) = only_reader(graph, deviation)?;
    let output = |node: NodeId| graph.node(node).output.first().map(String::as_str);
    let is_one = |value: &str| graph.floats(value).is_some_and(|values| values == [1.0]);
    let inverse = match (graph.op(node).as_str(), input) {
        ("Div", 1) if is_one(graph.input(node, 0)?) => output(node)?,
        ("Div", 1) => return Some((graph.input(node, 0)?, output(node)?)),
        ("Reciprocal", 0) => output(node)?,
        _ => return None,
    };
    let (product, input) = only_reader(graph, inverse)?;
    let over = graph.input(product, 1usize.checked_sub(input)?)?;
    (graph.op(product) == "Mul").then_some((over, output(product)?))
}

/// Whether two values are one, or one difference written down twice.
fn same(graph: &Graph, a: &str, b: &str) -> bool {
    let terms = |value: &str| {
        let node = graph.producer(value).filter(|node| graph.op(*node) == "Sub")?;
        Some(graph.node(node).input.as_slice())
    };
    a == b || terms(a).is_some_and(|found| terms(b) == Some(found))
}

/// x of x − mean(x), where the mean serves nothing else; the node that takes it, and over which axis.
fn centring<'g>(graph: &'g Graph, value: &str) -> Option<(&'g str, NodeId, i64)> {
    let node = graph.producer(value).filter(|node| graph.op(*node) == "Sub")?;
    let (x, mean) = (graph.input(node, 0)?, graph.input(node, 1)?);
    let (taken, axis) =
        mean_over(graph, mean).filter(|(node, _)| graph.input(*node, 0) == Some(x))?;
    let takes_off = |used: &Use| match used {
        Use::Input { node, input: 1 } => {
            graph.op(*node) == "Sub" && graph.input(*node, 0) == Some(x)
        }
        Use::Input { .. } | Use::Captured { .. } | Use::Output => false,
    };
    graph.uses(mean).iter().all(takes_off).then_some((x, taken, axis))
}

/// The products with constants that are all that is made of a value: node, input of the constant, its name.
fn products<'g>(graph: &'g Graph, mut value: &'g str) -> Option<Vec<(NodeId, usize, &'g str)>> {
    while let Some((node, 0)) = only_reader(graph, value)
        && graph.op(node) == "Cast"
    {
        value = graph.node(node).output.first()?;
    }
    let product = |used: &Use| match *used {
        Use::Input { node, input } if graph.op(node) == "Mul" && input < 2 => {
            let scale = graph.input(node, 1 - input)?;
            graph.weight(scale).map(|_| (node, 1 - input, scale))
        }
        Use::Input { .. } | Use::Captured { .. } | Use::Output => None,
    };
    let found: Option<Vec<_>> = graph.uses(value).iter().map(product).collect();
    found.filter(|found| !found.is_empty())
}
