//! The layers of a graph that are linear maps, as matrices: Conv, ConvTranspose, Gemm, MatMul, and the
//! per-channel ones (BatchNormalization, Mul and Div by one number a channel).

use super::{Augment, KeyBuilder, OperatorMatrix, Precision};
use crate::onnx::{DType, Graph, Matrix, NodeId, OnnxError, Operator, OperatorKind, operators};
use crate::units::Digest;

/// What kind of matrix a layer is.
#[derive(Debug, Clone, PartialEq)]
pub enum LayerKind {
    /// y = W·x + b over all inputs of a group.
    Linear(Operator),
    /// y_c = s_c·x_c + t_c.
    Diagonal(Diagonal),
}

/// A per-channel scale and shift, and the constants it stands in.
#[derive(Debug, Clone, PartialEq)]
pub struct Diagonal {
    /// Value names of the constants, in the order of the node's inputs.
    pub constants: Vec<String>,
    /// s, one value a channel.
    pub scale: Vec<f32>,
    /// t, one value a channel; zeros where there is none.
    pub shift: Vec<f32>,
    /// What besides the constants decides the result (the epsilon of a BatchNormalization).
    parameter: f32,
}

/// One analysable node.
#[derive(Debug, Clone, PartialEq)]
pub struct Layer {
    pub node: NodeId,
    /// The node's label.
    pub name: String,
    /// Operator type, with `depthwise` or `grouped` where that changes what its matrix is.
    pub op: String,
    pub kind: LayerKind,
    /// The value y.
    pub output: String,
    /// Output channels.
    pub channels: usize,
    /// Dimensions of the weight as the file has them.
    pub dims: Vec<usize>,
    /// Element type of the weight.
    pub dtype: DType,
}

/// Why a node that may hold weights has no matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Unanalysed {
    /// The operator is not of the default domain: nobody says what it computes.
    UnknownOperator,
    /// Its body is a graph of its own.
    ControlFlow,
    /// The weight is quantised or of a type that is no floating-point one.
    NotFloat,
    /// The weight is a constant that other nodes convert when the model runs (a cast, a dequantisation).
    Converted,
    /// It holds a weight but is no linear map of its input (a table, a recurrent cell).
    NotLinear,
}

impl std::fmt::Display for Unanalysed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::UnknownOperator => "unknown operator: what it computes is not specified by ONNX",
            Self::ControlFlow => "control flow: its body is a graph of its own",
            Self::NotFloat => "its weight is not of a floating-point type",
            Self::Converted => "its weight is converted when the model runs",
            Self::NotLinear => "holds weights but is no linear map of its input",
        })
    }
}

/// A node that was passed over, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PassedOver {
    pub name: String,
    pub op: String,
    pub because: Unanalysed,
}

/// All layers in topological order, and the nodes with weights that have no matrix.
pub fn layers(graph: &Graph) -> (Vec<Layer>, Vec<PassedOver>) {
    let mut linear = operators(graph).into_iter().peekable();
    let (mut layers, mut passed) = (Vec::new(), Vec::new());
    for node in 0..graph.nodes().len() {
        if let Some(operator) = linear.next_if(|operator| operator.node == node) {
            layers.extend(linear_layer(graph, operator));
        } else if let Some(layer) = diagonal_layer(graph, node) {
            layers.push(layer);
        } else if let Some(because) = passed_over(graph, node) {
            passed.push(PassedOver { name: graph.label(node), op: graph.op(node), because });
        }
    }
    (layers, passed)
}

fn linear_layer(graph: &Graph, operator: Operator) -> Option<Layer> {
    let op = match operator.kind {
        OperatorKind::Conv { group: 1 } => "Conv".to_owned(),
        OperatorKind::ConvTranspose { group: 1 } => "ConvTranspose".to_owned(),
        OperatorKind::Conv { group } | OperatorKind::ConvTranspose { group } => {
            let plain = graph.op(operator.node);
            if operator.is_depthwise() {
                format!("{plain} (depthwise)")
            } else {
                format!("{plain} ({group} groups)")
            }
        }
        OperatorKind::Gemm { .. } => "Gemm".to_owned(),
        OperatorKind::MatMul => "MatMul".to_owned(),
    };
    Some(Layer {
        node: operator.node,
        name: operator.name.clone(),
        op,
        output: operator.output.clone(),
        channels: operator.outputs,
        dims: graph.weight_dims(&operator.weight)?,
        dtype: graph.weight_dtype(&operator.weight)?,
        kind: LayerKind::Linear(operator),
    })
}

fn diagonal_layer(graph: &Graph, node: NodeId) -> Option<Layer> {
    let diagonal = match graph.op(node).as_str() {
        "BatchNormalization" => batch_normalization(graph, node)?,
        "Mul" => per_channel(graph, node, |value| value)?,
        // Only x / c is linear in x.
        "Div" if graph.weight(graph.input(node, 0)?).is_none() => {
            per_channel(graph, node, f32::recip)?
        }
        _ => return None,
    };
    let weight = diagonal.constants.first()?;
    Some(Layer {
        node,
        name: graph.label(node),
        op: graph.op(node),
        output: graph.node(node).output.first()?.clone(),
        channels: diagonal.scale.len(),
        dims: graph.weight_dims(weight)?,
        dtype: graph.weight_dtype(weight)?,
        kind: LayerKind::Diagonal(diagonal),
    })
}

/// y = (x − mean)/√(var + ε)·scale + bias, in inference.
fn batch_normalization(graph: &Graph, node: NodeId) -> Option<Diagonal> {
    let names: Option<Vec<&str>> = (1..5).map(|input| graph.input(node, input)).collect();
    let constants: Vec<String> = names?.into_iter().map(str::to_owned).collect();
    let values: Option<Vec<Vec<f32>>> = constants.iter().map(|name| graph.floats(name)).collect();
    let [scale, bias, mean, variance] = <[Vec<f32>; 4]>::try_from(values?).ok()?;
    let channels = scale.len();
    if channels == 0 || [&bias, &mean, &variance].iter().any(|other| other.len() != channels) {
        return None;
    }
    let epsilon = graph.attrs(node).float("epsilon").unwrap_or(1e-5);
    let gain: Vec<f32> =
        scale.iter().zip(&variance).map(|(s, v)| s / (v + epsilon).sqrt()).collect();
    let shift = (0..channels).map(|c| bias[c] - mean[c] * gain[c]).collect();
    Some(Diagonal { constants, scale: gain, shift, parameter: epsilon })
}

/// A product with a constant that has exactly one axis longer than 1, on the axis of channels of an image
/// (`[C, 1, 1]`, `[1, C, 1, 1]`) or of features (`[C]`).
fn per_channel(graph: &Graph, node: NodeId, scale: fn(f32) -> f32) -> Option<Diagonal> {
    let inputs = [graph.input(node, 0)?, graph.input(node, 1)?];
    let held: Vec<&str> = inputs.into_iter().filter(|name| graph.weight(name).is_some()).collect();
    let [name] = held[..] else { return None };
    let dims = graph.weight_dims(name)?;
    let mut long = dims.iter().enumerate().filter(|(_, dim)| **dim != 1);
    let (Some((axis, channels)), None) = (long.next(), long.next()) else { return None };
    let behind = dims.len() - 1 - axis;
    if *channels < 2 || !matches!((axis, behind), (_, 0) | (0 | 1, 1..=3)) {
        return None;
    }
    let values = graph.floats(name)?;
    let shift = vec![0.0; values.len()];
    let scale = values.into_iter().map(scale).collect();
    Some(Diagonal { constants: vec![name.to_owned()], scale, shift, parameter: 0.0 })
}

fn passed_over(graph: &Graph, node: NodeId) -> Option<Unanalysed> {
    let op = graph.op(node);
    if op.contains('.') {
        return Some(Unanalysed::UnknownOperator);
    }
    if ["If", "Loop", "Scan"].contains(&op.as_str()) {
        return Some(Unanalysed::ControlFlow);
    }
    let linear = ["Conv", "ConvTranspose", "Gemm", "MatMul"].contains(&op.as_str());
    if linear && graph.input(node, 1).is_some_and(|name| is_converted(graph, name)) {
        return Some(Unanalysed::Converted);
    }
    let names = graph.node(node).input.iter().map(String::as_str);
    let wide = |name: &&str| {
        let dims = graph.weight_dims(name).unwrap_or_default();
        dims.iter().filter(|dim| **dim > 1).count() > 1
    };
    let weight = names.into_iter().find(wide)?;
    let quantised = ["QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger"];
    let float = graph
        .weight_dtype(weight)
        .is_some_and(|dtype| matches!(dtype, DType::F32 | DType::F16 | DType::BF16 | DType::F64));
    if quantised.contains(&op.as_str()) || (linear && !float) || op == "DequantizeLinear" {
        return Some(Unanalysed::NotFloat);
    }
    let holds = ["Gather", "LSTM", "GRU", "RNN", "Einsum", "Conv", "ConvTranspose", "Gemm"];
    (float && holds.contains(&op.as_str())).then_some(Unanalysed::NotLinear)
}

/// Whether a value is computed from constants alone by nodes that only convert.
fn is_converted(graph: &Graph, value: &str) -> bool {
    const CONVERTERS: [&str; 6] =
        ["Cast", "DequantizeLinear", "Identity", "Reshape", "Transpose", "Unsqueeze"];
    let mut at = value;
    // A chain of conversions is as long as the graph at most, since nodes stand in order.
    while let Some(node) = graph.producer(at).filter(|_| graph.weight(at).is_none()) {
        let Some(input) = graph.input(node, 0) else { return false };
        if !CONVERTERS.contains(&graph.op(node).as_str()) {
            return false;
        }
        at = input;
    }
    at != value && graph.weight(at).is_some()
}

impl Layer {
    /// The layer's matrix.
    ///
    /// A depthwise convolution is its channels × taps matrix: as an operator it has one block of one row a
    /// channel, whose singular values would be the filters' norms and nothing more.
    ///
    /// # Errors
    /// Where a constant's data is missing.
    pub fn matrix(&self, graph: &Graph, augment: Augment) -> Result<OperatorMatrix, OnnxError> {
        match &self.kind {
            LayerKind::Diagonal(diagonal) => {
                let shift = (augment == Augment::Affine).then(|| diagonal.shift.clone());
                Ok(OperatorMatrix::diagonal_of(&diagonal.scale, shift))
            }
            LayerKind::Linear(operator) => {
                let whole = operator.matrix(graph)?;
                let mut bias = operator.bias_values(graph);
                bias.resize(operator.outputs, 0.0);
                let bias = (augment == Augment::Affine).then_some(bias);
                if operator.group() == 1 || operator.is_depthwise() {
                    return Ok(OperatorMatrix::dense_of(whole, bias));
                }
                let rows = operator.outputs / operator.group();
                let block = |data: &[f32]| Matrix { rows, cols: whole.cols, data: data.to_vec() };
                let blocks = whole.data.chunks_exact(rows * whole.cols).map(block).collect();
                Ok(OperatorMatrix::blocks_of(blocks, bias))
            }
        }
    }

    /// The key of this layer's spectrum. Equal keys mean equal spectra, whatever the model.
    ///
    /// # Errors
    /// Where a constant's data is missing.
    pub fn key(
        &self,
        graph: &Graph,
        augment: Augment,
        precision: Precision,
    ) -> Result<Digest, OnnxError> {
        let (what, constants): (String, Vec<&str>) = match &self.kind {
            LayerKind::Diagonal(diagonal) => {
                let what = format!("{} {}", self.op, diagonal.parameter);
                (what, diagonal.constants.iter().map(String::as_str).collect())
            }
            LayerKind::Linear(operator) => {
                let bias = operator.bias.as_deref().filter(|_| augment == Augment::Affine);
                let constants = [Some(operator.weight.as_str()), bias].into_iter().flatten();
                (format!("{:?}", operator.kind), constants.collect())
            }
        };
        let mut key = KeyBuilder::new(&what, augment, precision);
        for name in constants {
            let digest = graph.weight_digest(name)?.unwrap_or_else(|| Digest::of(&[]));
            let dims = graph.weight_dims(name).unwrap_or_default();
            key = key.constant(graph.weight_dtype(name).unwrap_or(self.dtype), &dims, &digest);
        }
        Ok(key.finish())
    }

    /// A digest of the weight alone (shape, type, bytes): layers that could share one tensor.
    ///
    /// # Errors
    /// Where a constant's data is missing.
    pub fn weight_digest(&self, graph: &Graph) -> Result<Digest, OnnxError> {
        self.key(graph, Augment::None, Precision::Gram)
    }

    /// Number of weights: of the matrix itself and of the bias.
    pub fn parameters(&self, graph: &Graph) -> usize {
        let count = |name: &str| graph.weight_dims(name).map_or(0, |dims| dims.iter().product());
        match &self.kind {
            LayerKind::Diagonal(diagonal) => diagonal.constants.iter().map(|n| count(n)).sum(),
            LayerKind::Linear(operator) => {
                count(&operator.weight) + operator.bias.as_deref().map_or(0, count)
            }
        }
    }

    /// The operator, where the layer is one.
    pub fn operator(&self) -> Option<&Operator> {
        match &self.kind {
            LayerKind::Linear(operator) => Some(operator),
            LayerKind::Diagonal(_) => None,
        }
    }

    /// Unit round-off of the type that the weights are stored in.
    pub fn epsilon(&self) -> f64 {
        match self.dtype {
            DType::F16 => f64::powi(2.0, -11),
            DType::BF16 => f64::powi(2.0, -8),
            DType::F64 => f64::EPSILON / 2.0,
            _ => f64::from(f32::EPSILON) / 2.0,
        }
    }
}
