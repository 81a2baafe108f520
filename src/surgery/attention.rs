//! One attention, written in two ways. com.microsoft.Attention projects what it reads to queries, keys and
//! values itself, by a weight that nothing else of the program sees as an operator's: what it reads could lose
//! no channel, and its projection be neither refitted nor put in two. With the projection outside (MatMul, Add,
//! Split, com.microsoft.MultiHeadAttention) all of that can be done; inside again, the runtime runs one node as
//! before. Both operators: <https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md>.

use std::borrow::Cow;

use super::low_rank::fresh;
use crate::onnx::proto::{AttributeProto, NodeProto};
use crate::onnx::{
    DType, Graph, Model, NodeId, OnnxError, Patch, Shapes, Use, attr_int, attr_ints, tensor, values,
};

/// What a node says whose projection stood inside it.
const MARK: &str = "blochd: projects what it reads";

/// Attributes that mean the same to both operators.
const SHARED: [&str; 4] = ["num_heads", "mask_filter_value", "scale", "unidirectional"];

/// Attributes of com.microsoft.Attention alone, which as zero say nothing.
const OFF: [&str; 3] = ["do_rotary", "rotary_embedding_dim", "past_present_share_buffer"];

/// An attention and its own projection.
struct Projecting<'g> {
    node: NodeId,
    input: &'g str,
    weight: &'g str,
    bias: Option<&'g str>,
    mask: Option<&'g str>,
    scores_bias: Option<&'g str>,
    /// Columns of the weight for queries, keys and values.
    sizes: [i64; 3],
}

/// The model with the projections outside; `None` where no attention is of a form that both operators have.
/// `shapes` are those of one request.
///
/// # Errors
/// Where the edited graph is no valid one.
pub fn project_outside(model: &Model, shapes: &Shapes) -> Result<Option<Model>, OnnxError> {
    let graph = Graph::new(model);
    let mut patch = Patch::default();
    for node in 0..graph.nodes().len() {
        if let Some(found) = projecting(&graph, shapes, node) {
            outside(&graph, model.opset(), &found, &mut patch);
        }
    }
    if patch.is_empty() { Ok(None) } else { patch.apply(model).map(Some) }
}

fn projecting<'g>(graph: &'g Graph, shapes: &Shapes, node: NodeId) -> Option<Projecting<'g>> {
    if graph.op(node) != "com.microsoft.Attention" || graph.node(node).output.len() != 1 {
        return None;
    }
    let attrs = graph.attrs(node);
    let known = |attribute: &AttributeProto| {
        let name = attribute.name.as_deref().unwrap_or_default();
        SHARED.contains(&name)
            || name == "qkv_hidden_sizes"
            || OFF.contains(&name) && attrs.int(name) == Some(0)
    };
    // A past, and how long it is.
    let more = [4, 6].iter().any(|input| graph.input(node, *input).is_some());
    if more || !graph.node(node).attribute.iter().all(known) {
        return None;
    }
    let (input, weight) = (graph.input(node, 0)?, graph.input(node, 1)?);
    let dims = graph.weight_dims(weight).filter(|dims| dims.len() == 2)?;
    graph.weight_dtype(weight).and_then(|dtype| values::floats(dtype, &[]))?;
    let total = i64::try_from(dims[1]).ok()?;
    let sizes = match attrs.ints("qkv_hidden_sizes") {
        Some(sizes) => <[i64; 3]>::try_from(sizes).ok()?,
        None => [total / 3; 3],
    };
    let heads = attrs.int("num_heads").filter(|heads| *heads > 0)?;
    let whole = sizes.iter().all(|size| *size > 0 && size % heads == 0);
    // Each is a positive part of the whole: their sum cannot overflow before it is found to be another one.
    if !whole || sizes.iter().any(|size| *size > total) || sizes.iter().sum::<i64>() != total {
        return None;
    }
    let bias = graph.input(node, 2);
    if bias.is_some_and(|bias| graph.weight_dims(bias).is_none_or(|own| own != [dims[1]])) {
        return None;
    }
    let shape = |value: &str| shapes.get(value).map(|found| found.shape.as_slice());
    let [batch, _, _] = shape(input)? else { return None };
    let mask = graph.input(node, 3);
    // One number a sequence, or a row for each. Lengths with beginnings, and masks of four axes, are of the one
    // operator alone.
    let passes = |mask: &str| match shape(mask).or(own_shape(graph, mask).as_deref()) {
        Some([length]) => length.is_some() && length == batch,
        Some([_, _] | [_, _, _]) => true,
        _ => false,
    };
    let fits = sizes[0] == sizes[1] && mask.is_none_or(passes);
    let scores_bias = graph.input(node, 5);
    fits.then_some(Projecting { node, input, weight, bias, mask, scores_bias, sizes })
}

fn own_shape(graph: &Graph, value: &str) -> Option<Vec<Option<usize>>> {
    Some(graph.weight_dims(value)?.into_iter().map(Some).collect())
}

fn outside(graph: &Graph, opset: i64, found: &Projecting, patch: &mut Patch) {
    let node = graph.node(found.node);
    let output = node.output.first().map_or("", String::as_str);
    let parts = ["product", "projected", "queries", "keys", "values", "sizes"];
    let [product, projected, queries, keys, values, sizes] =
        parts.map(|part| fresh(graph, output, part));
    let plain = |op: &str, input: Vec<String>, output: Vec<String>| NodeProto {
        name: Some(fresh(graph, &graph.label(found.node), op)),
        op_type: Some(op.to_owned()),
        input,
        output,
        ..Default::default()
    };
    let read = vec![found.input.to_owned(), found.weight.to_owned()];
    let mut before = vec![plain("MatMul", read, vec![product.clone()])];
    let made = match found.bias {
        Some(bias) => {
            let read = vec![product, bias.to_owned()];
            before.push(plain("Add", read, vec![projected.clone()]));
            projected
        }
        None => product,
    };
    let three = vec![queries, keys, values];
    let mut split = plain("Split", vec![made], three.clone());
    split.attribute.push(attr_int("axis", 2));
    // Sizes are an input since operator set 13.
    if opset < 13 {
        split.attribute.push(attr_ints("split", &found.sizes));
    } else {
        let bytes: Vec<u8> = found.sizes.iter().flat_map(|size| size.to_le_bytes()).collect();
        patch.constants.insert(sizes.clone(), tensor(&sizes, DType::I64, &[3], bytes));
        split.input.push(sizes);
    }
    before.push(split);
    patch.insert.extend(before.into_iter().map(|made| (found.node, made)));
    let optional = |value: Option<&str>| value.unwrap_or_default().to_owned();
    let mut input = three;
    input.extend([String::new(), optional(found.mask), optional(found.scores_bias)]);
    patch.nodes.insert(found.node, rewritten(node, "MultiHeadAttention", input, Some(MARK)));
}

/// The same node as another operator of the same domain, with what both operators know.
fn rewritten(node: &NodeProto, op: &str, mut input: Vec<String>, mark: Option<&str>) -> NodeProto {
    while input.last().is_some_and(String::is_empty) {
        input.pop();
    }
    let shared = |attribute: &&AttributeProto| {
        attribute.name.as_deref().is_some_and(|name| SHARED.contains(&name))
    };
    NodeProto {
        op_type: Some(op.to_owned()),
        input,
        attribute: node.attribute.iter().filter(shared).cloned().collect(),
        doc_string: mark.map(str::to_owned),
        ..node.clone()
    }
}

/// The model with those projections inside again that [`project_outside`] put out and that still are one
/// product and one bias. The others stay outside, for good.
///
/// # Errors
/// Where the edited graph is no valid one.
pub fn project_inside(model: &Model) -> Result<Cow<'_, Model>, OnnxError> {
    let graph = Graph::new(model);
    let mut patch = Patch::default();
    for (id, node) in graph.nodes().iter().enumerate() {
        if node.doc_string.as_deref() != Some(MARK) {
            continue;
        }
        let mut plain = node.clone();
        plain.doc_string = None;
        patch.nodes.insert(id, projects_again(&graph, id).unwrap_or(plain));
    }
    if patch.is_empty() { Ok(Cow::Borrowed(model)) } else { patch.apply(model).map(Cow::Owned) }
}

fn projects_again(graph: &Graph, id: NodeId) -> Option<NodeProto> {
    let node = graph.node(id);
    let split = graph.producer(graph.input(id, 0)?).filter(|split| graph.op(*split) == "Split")?;
    let three = &graph.node(split).output;
    let only = |value: &str, by: NodeId| only_reader(graph, value) == Some(by);
    let own = |value: &String| only(value, id);
    let axis = graph.attrs(split).int("axis");
    if node.input.get(..3) != Some(three.as_slice()) || !three.iter().all(own) || axis != Some(2) {
        return None;
    }
    let sizes = match graph.input(split, 1) {
        Some(sizes) => graph.ints(sizes)?,
        None => graph.attrs(split).ints("split")?.to_vec(),
    };
    let sizes = <[i64; 3]>::try_from(sizes).ok()?;
    let made = graph.input(split, 0).filter(|value| only(value, split))?;
    let maker = graph.producer(made)?;
    let (product, bias) = if graph.op(maker) == "Add" {
        let sides = [0, 1].map(|side| graph.input(maker, side));
        let [Some(a), Some(b)] = sides else { return None };
        let (product, bias) = if graph.weight(a).is_some() { (b, a) } else { (a, b) };
        if !only(product, maker) {
            return None;
        }
        (graph.producer(product)?, Some(bias))
    } else {
        (maker, None)
    };
    if graph.op(product) != "MatMul" {
        return None;
    }
    let (input, weight) = (graph.input(product, 0)?, graph.input(product, 1)?);
    let dims = graph.weight_dims(weight).filter(|dims| dims.len() == 2)?;
    let total = i64::try_from(dims[1]).ok()?;
    let whole = sizes.iter().sum::<i64>() == total;
    let alike = bias.is_none_or(|bias| graph.weight_dims(bias).is_some_and(|own| own == [dims[1]]));
    if !whole || !alike {
        return None;
    }
    let text = |value: Option<&str>| value.unwrap_or_default().to_owned();
    let read = [Some(input), Some(weight), bias, graph.input(id, 4), None, graph.input(id, 5)];
    let mut made = rewritten(node, "Attention", read.map(text).to_vec(), None);
    if sizes.iter().any(|size| *size != sizes[0]) {
        made.attribute.push(attr_ints("qkv_hidden_sizes", &sizes));
    }
    Some(made)
}

fn only_reader(graph: &Graph, value: &str) -> Option<NodeId> {
    match graph.uses(value) {
        [Use::Input { node, .. }] => Some(*node),
        _ => None,
    }
}
