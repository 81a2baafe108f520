//! The weight-bearing nodes of a graph as linear operators y = W·x + b, and their matrices.

use super::model::tensor;
use super::proto::TensorProto;
use super::{Graph, NodeId, OnnxError, Use, values};

/// What kind of node an operator is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum OperatorKind {
    /// Weight `[out, in / group, k…]`.
    Conv { group: usize },
    /// Weight `[in, out / group, k…]`.
    ConvTranspose { group: usize },
    /// Weight `[out, in]` with `transB`, else `[in, out]`.
    Gemm { trans_b: bool },
    /// Weight `[in, out]`, the right-hand factor.
    MatMul,
}

/// A node that multiplies its input with a constant matrix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operator {
    /// The node.
    pub node: NodeId,
    /// The node's label.
    pub name: String,
    pub kind: OperatorKind,
    /// Value name of the constant weight.
    pub weight: String,
    /// Value name of the constant bias: the node's own, or that of the Add (or fused node) which follows a
    /// MatMul.
    pub bias: Option<String>,
    /// The node that applies the bias where the operator's own does not do so itself.
    pub bias_node: Option<NodeId>,
    /// Whether the bias is added behind `output`, inside a fused node.
    pub bias_behind: bool,
    /// The value that the operator reads.
    pub input: String,
    /// The value y, after the bias unless that is added behind it.
    pub output: String,
    /// Output channels, of all groups.
    pub outputs: usize,
    /// Input channels, of all groups.
    pub inputs: usize,
    /// Spatial extent of the kernel; empty for Gemm and MatMul.
    pub kernel: Vec<usize>,
    /// Whether y is W·x + b and nothing else (a Gemm may scale either term or transpose its input, a fused
    /// operator may scale or activate).
    pub exact: bool,
}

/// A row-major matrix of `rows × cols` values.
#[derive(Debug, Clone, PartialEq)]
pub struct Matrix {
    pub rows: usize,
    pub cols: usize,
    pub data: Vec<f32>,
}

/// All operators of the main graph, in topological order. Nodes whose weight is no floating-point
/// constant are left out.
pub fn operators(graph: &Graph) -> Vec<Operator> {
    (0..graph.nodes().len()).filter_map(|node| operator(graph, node)).collect()
}

fn operator(graph: &Graph, node: NodeId) -> Option<Operator> {
    let (input, weight) = (graph.input(node, 0)?, graph.input(node, 1)?);
    let dims = graph.weight_dims(weight)?;
    if graph.weight(input).is_some() || dims.contains(&0) {
        return None;
    }
    graph.weight_dtype(weight).and_then(|dtype| values::floats(dtype, &[]))?;
    let attrs = graph.attrs(node);
    let group = usize::try_from(attrs.int("group").unwrap_or(1)).ok().filter(|g| *g > 0)?;
    let mut exact = true;
    let (kind, outputs, inputs, kernel) = match (graph.op(node).as_str(), dims.as_slice()) {
        ("Conv" | "com.microsoft.FusedConv", [out, per_group, kernel @ ..])
            if !kernel.is_empty() && out % group == 0 =>
        {
            // The fused one activates what it computes, and may add another value before.
            exact = graph.op(node) == "Conv";
            (OperatorKind::Conv { group }, *out, per_group * group, kernel.to_vec())
        }
        ("ConvTranspose", [inputs, per_group, kernel @ ..])
            if !kernel.is_empty() && inputs % group == 0 =>
        {
            (OperatorKind::ConvTranspose { group }, per_group * group, *inputs, kernel.to_vec())
        }
        ("Gemm", [rows, cols]) => {
            let trans_b = attrs.int("transB").unwrap_or(0) != 0;
            let one = |name| attrs.float(name).is_none_or(|factor| factor == 1.0);
            exact = one("alpha") && one("beta") && attrs.int("transA").unwrap_or(0) == 0;
            let (out, inputs) = if trans_b { (*rows, *cols) } else { (*cols, *rows) };
            (OperatorKind::Gemm { trans_b }, out, inputs, Vec::new())
        }
        ("MatMul", [inputs, out]) => (OperatorKind::MatMul, *out, *inputs, Vec::new()),
        ("com.microsoft.FusedMatMul", [inputs, out])
            if ["transA", "transB", "transBatchA", "transBatchB"]
                .iter()
                .all(|name| attrs.int(name).unwrap_or(0) == 0) =>
        {
            exact = attrs.float("alpha").is_none_or(|factor| factor == 1.0);
            (OperatorKind::MatMul, *out, *inputs, Vec::new())
        }
        _ => return None,
    };
    let mut found = Operator {
        node,
        name: graph.label(node),
        kind,
        weight: weight.to_owned(),
        bias: graph.input(node, 2).map(str::to_owned),
        bias_node: None,
        bias_behind: false,
        input: input.to_owned(),
        output: graph.node(node).output.first()?.clone(),
        outputs,
        inputs,
        kernel,
        exact,
    };
    if let Some(bias) = &found.bias {
        let length = graph.weight_dims(bias).map(|dims| dims.iter().product::<usize>());
        found.exact &= length == Some(outputs);
    }
    if kind == OperatorKind::MatMul {
        adopt_bias(graph, &mut found);
    }
    Some(found)
}

/// Takes the constant that the only reader of a MatMul's result adds to it for the operator's bias.
fn adopt_bias(graph: &Graph, operator: &mut Operator) {
    let [Use::Input { node: reader, input }] = graph.uses(&operator.output) else { return };
    let (number, behind) = match (graph.op(*reader).as_str(), *input) {
        ("Add", 0 | 1) => (1 - input, false),
        ("com.microsoft.BiasGelu" | "com.microsoft.FastGelu", 0) => (1, true),
        ("com.microsoft.SkipLayerNormalization", 0 | 1) => (4, true),
        ("com.microsoft.SkipSimplifiedLayerNormalization", 0 | 1) => (3, true),
        _ => return,
    };
    let Some(bias) = graph.input(*reader, number) else { return };
    let is_vector = |dims: Vec<usize>| {
        dims.last() == Some(&operator.outputs) && dims.iter().product::<usize>() == operator.outputs
    };
    let result = graph.node(*reader).output.first();
    if let Some(result) = result.filter(|_| graph.weight_dims(bias).is_some_and(is_vector)) {
        operator.bias = Some(bias.to_owned());
        operator.bias_node = Some(*reader);
        operator.bias_behind = behind;
        if !behind {
            operator.output.clone_from(result);
        }
    }
}

impl Operator {
    /// Kernel positions: 1 for Gemm and MatMul.
    pub fn taps(&self) -> usize {
        self.kernel.iter().product()
    }

    /// Number of groups: 1 for Gemm and MatMul.
    pub fn group(&self) -> usize {
        match self.kind {
            OperatorKind::Conv { group } | OperatorKind::ConvTranspose { group } => group,
            OperatorKind::Gemm { .. } | OperatorKind::MatMul => 1,
        }
    }

    /// Whether every output channel reads one input channel only.
    pub fn is_depthwise(&self) -> bool {
        self.group() > 1 && self.group() == self.inputs
    }

    /// Length of one row of the matrix: input channels of one group times kernel positions.
    pub fn row_len(&self) -> usize {
        self.inputs / self.group() * self.taps()
    }

    /// W as `outputs × (inputs / group · taps)`, whatever the layout of the constant; columns are ordered
    /// by input channel, then kernel position.
    ///
    /// # Errors
    /// Where the constant's data is missing.
    pub fn matrix(&self, graph: &Graph) -> Result<Matrix, OnnxError> {
        let data = graph.weight_bytes(&self.weight)?.unwrap_or_default();
        let values = graph.weight_dtype(&self.weight).and_then(|d| values::floats(d, &data));
        let stored = values.unwrap_or_default();
        let (rows, cols) = (self.outputs, self.row_len());
        let mut matrix = vec![0.0; rows * cols];
        self.each_place(|row, col, place| matrix[row * cols + col] = stored[place]);
        Ok(Matrix { rows, cols, data: matrix })
    }

    /// The bias, `outputs` values; zeros where there is none.
    pub fn bias_values(&self, graph: &Graph) -> Vec<f32> {
        let found = self.bias.as_deref().and_then(|bias| graph.floats(bias));
        found.unwrap_or_else(|| vec![0.0; self.outputs])
    }

    /// The constant for a new W of the same size, in the layout and element type of the old one.
    ///
    /// # Errors
    /// Where `matrix` is of another size or the element type is not a floating-point one.
    pub fn weight_tensor(&self, graph: &Graph, matrix: &Matrix) -> Result<TensorProto, OnnxError> {
        let wrong = |what: String| OnnxError::Edit(format!("weight {:?}: {what}", self.weight));
        if (matrix.rows, matrix.cols) != (self.outputs, self.row_len()) {
            let (rows, cols) = (self.outputs, self.row_len());
            let given = format!("{} × {}", matrix.rows, matrix.cols);
            return Err(wrong(format!("is {rows} × {cols}, the new one {given}")));
        }
        let mut stored = vec![0.0; matrix.data.len()];
        self.each_place(|row, col, place| stored[place] = matrix.data[row * matrix.cols + col]);
        let dtype = graph.weight_dtype(&self.weight);
        let dtype = dtype.ok_or_else(|| wrong("is no constant of a known type".to_owned()))?;
        let bytes = values::float_bytes(dtype, &stored);
        let bytes = bytes.ok_or_else(|| wrong("is not of a floating-point type".to_owned()))?;
        let dims = graph.weight_dims(&self.weight).unwrap_or_default();
        Ok(tensor(&self.weight, dtype, &dims, bytes))
    }

    /// Calls `each(row, column, place)` for every element: its position in the matrix and its index in
    /// the stored constant.
    fn each_place(&self, mut each: impl FnMut(usize, usize, usize)) {
        let (rows, cols, taps) = (self.outputs, self.row_len(), self.taps());
        match self.kind {
            OperatorKind::Conv { .. } | OperatorKind::Gemm { trans_b: true } => {
                (0..rows * cols).for_each(|place| each(place / cols, place % cols, place));
            }
            OperatorKind::Gemm { trans_b: false } | OperatorKind::MatMul => {
                (0..rows * cols).for_each(|place| each(place % rows, place / rows, place));
            }
            OperatorKind::ConvTranspose { group } => {
                let (out_per_group, in_per_group) = (rows / group, self.inputs / group);
                for place in 0..rows * cols {
                    let (tap, channel) = (place % taps, place / taps);
                    let (input, out) = (channel / out_per_group, channel % out_per_group);
                    let row = input / in_per_group * out_per_group + out;
                    each(row, input % in_per_group * taps + tap, place);
                }
            }
        }
    }
}
