//! What integer and boolean inputs of a model may hold when samples are made up: rows of the tables that they
//! pick from, pixels, or flags.

use std::collections::BTreeMap;

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use super::calibration::InputSpec;
use crate::onnx::proto::tensor_shape_proto::dimension;
use crate::onnx::proto::type_proto;
use crate::onnx::{DType, Graph, Model, NodeId};

/// What an input's values mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Meaning {
    /// They pick rows of tables, of which the smallest has so many (at least one).
    Rows(i64),
    /// They are pixels, as bytes.
    Pixels,
    /// They say what counts: all of it, as in a request without padding. Also sizes and counts, for which 1
    /// is what every model takes.
    Flags,
}

/// What the model does with an integer input. Follows it through whatever hands values on unchanged; what
/// arithmetic or a comparison makes of it is not the input any more.
pub(super) fn meaning(model: &Model, spec: &InputSpec) -> Meaning {
    let graph = Graph::new(model);
    let mut rows: Option<i64> = None;
    // Values that are the input's, and the most that constants have added to them on the way.
    let mut same: BTreeMap<&str, i64> = BTreeMap::from([(spec.name.as_str(), 0)]);
    for (id, node) in graph.nodes().iter().enumerate() {
        for (input, name) in node.input.iter().enumerate() {
            let Some(shift) = same.get(name.as_str()).copied() else { continue };
            if let Some(table) = table(&graph, id, input) {
                let most = table.saturating_sub(shift).max(1);
                rows = Some(rows.map_or(most, |least| least.min(most)));
            }
            let Some(more) = handed_on(&graph, id, input) else { continue };
            let shift = shift.saturating_add(more);
            for output in node.output.iter().filter(|name| !name.is_empty()) {
                let most = same.entry(output).or_insert(shift);
                *most = shift.max(*most);
            }
        }
    }
    match rows {
        Some(rows) => Meaning::Rows(rows),
        None if spec.dtype == DType::U8 && spec.dims.len() == IMAGE_RANK => Meaning::Pixels,
        None => Meaning::Flags,
    }
}

/// Axes of a batch of images.
const IMAGE_RANK: usize = 4;

/// How many values input `input` of the node picks from; `None` where it picks nothing, 1 where nobody knows
/// how long the axis is.
fn table(graph: &Graph, node: NodeId, input: usize) -> Option<i64> {
    let axis = graph.attrs(node).int("axis").unwrap_or(0);
    let length = |table: usize, axis: i64| {
        let dims = dims(graph, graph.input(node, table)?)?;
        let place = if axis < 0 { axis + dims.len() as i64 } else { axis };
        dims.get(usize::try_from(place).ok()?).copied()
    };
    let found = match (graph.op(node).as_str(), input) {
        ("Gather" | "GatherElements" | "ScatterElements", 1) => length(0, axis),
        // Each index is one of several that stand for as many axes.
        ("GatherND" | "ScatterND", 1) => {
            graph.input(node, 0).and_then(|table| dims(graph, table)?.into_iter().min())
        }
        ("com.microsoft.EmbedLayerNormalization", 0 | 1) => length(input + 2, 0),
        ("com.microsoft.EmbedLayerNormalization", 8) => length(3, 0),
        ("OneHot", 0) => graph.input(node, 1).and_then(|depth| graph.ints(depth)?.first().copied()),
        _ => return None,
    };
    Some(found.unwrap_or(1))
}

/// Shape of a constant, of one that is converted as the model runs, or of a value whose shape the file states
/// in full.
fn dims(graph: &Graph, value: &str) -> Option<Vec<i64>> {
    let mut at = value;
    // A chain of conversions is as long as the graph at most, since nodes stand in order.
    while graph.weight(at).is_none()
        && let Some(node) = graph.producer(at)
        && ["Cast", "DequantizeLinear", "Identity"].contains(&graph.op(node).as_str())
    {
        at = graph.input(node, 0)?;
    }
    if let Some(dims) = graph.weight_dims(at) {
        return dims.into_iter().map(|dim| i64::try_from(dim).ok()).collect();
    }
    let graph = graph.model().graph();
    let mut infos = graph.value_info.iter().chain(&graph.input);
    let info = infos.find(|info| info.name.as_deref() == Some(at))?;
    let Some(type_proto::Value::TensorType(tensor)) = &info.r#type.value else { return None };
    let size = |dim: &dimension::Value| match dim {
        dimension::Value::DimValue(size) => Some(*size),
        dimension::Value::DimParam(_) => None,
    };
    tensor.shape.dim.iter().map(|dim| size(dim.value.as_ref()?)).collect()
}

/// Whether the node hands the values of its input `input` on, and the most that it adds to them.
fn handed_on(graph: &Graph, node: NodeId, input: usize) -> Option<i64> {
    match (graph.op(node).as_str(), input) {
        (
            "Cast" | "CastLike" | "Clip" | "Dropout" | "Expand" | "Flatten" | "Gather"
            | "GatherElements" | "GatherND" | "Identity" | "Pad" | "Reshape" | "Slice" | "Split"
            | "Squeeze" | "Tile" | "Transpose" | "Unsqueeze",
            0,
        )
        | ("Concat" | "Max" | "Min", _)
        | ("Where", 1 | 2) => Some(0),
        // Fields that share a table stand one behind the other in it.
        ("Add", 0 | 1) => graph.ints(graph.input(node, 1 - input)?)?.into_iter().max(),
        _ => None,
    }
}

/// Values of one input, `count` in all.
pub(super) fn values(
    meaning: Meaning,
    dtype: DType,
    count: usize,
    pixels: impl FnOnce(&mut ChaCha8Rng) -> Vec<f32>,
    rng: &mut ChaCha8Rng,
) -> Vec<i64> {
    match meaning {
        Meaning::Rows(rows) => {
            let end = rows.min(largest(dtype).saturating_add(1));
            (0..count).map(|_| rng.random_range(0..end)).collect()
        }
        // The middle of the range, and as far to both sides as natural images mostly go.
        Meaning::Pixels => pixels(rng)
            .into_iter()
            .map(|value| (128.0 + 64.0 * value).round().clamp(0.0, 255.0) as i64)
            .collect(),
        Meaning::Flags => vec![1; count],
    }
}

/// The largest value of an integer type, as far as an `i64` says it.
fn largest(dtype: DType) -> i64 {
    match dtype {
        DType::Bool => 1,
        DType::I8 => i8::MAX.into(),
        DType::U8 => u8::MAX.into(),
        DType::I16 => i16::MAX.into(),
        DType::U16 => u16::MAX.into(),
        DType::I32 => i32::MAX.into(),
        DType::U32 => u32::MAX.into(),
        _ => i64::MAX,
    }
}
