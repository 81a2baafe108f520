//! An operator in two of lower rank: W (outputs × inputs) becomes B·A, where A has `rank` outputs and B as many
//! inputs. What reads and what is read keep their names, so that everything that is known of the dense
//! network's values goes on to hold of B's output.

use faer::linalg::solvers::Solve;
use faer::{Mat, Side};

use crate::onnx::proto::NodeProto;
use crate::onnx::{
    DType, Graph, Matrix, NodeId, OnnxError, Operator, OperatorKind, Patch, attr_ints, tensor,
    values,
};

/// W ≈ B·A.
#[derive(Debug, Clone, PartialEq)]
pub struct Factors {
    /// A: rank × inputs.
    pub first: Matrix,
    /// B: outputs × rank.
    pub second: Matrix,
}

impl Factors {
    /// The nearest factors to `weight` (outputs × inputs) whose outputs lie in the span of `basis` (outputs ×
    /// rank), where an error of output i counts `weights[i]` times. The basis is one of the weighted outputs.
    ///
    /// `None` where the sizes differ, or the basis has no rank at all.
    pub fn onto(basis: &Mat<f64>, weights: &[f64], weight: &Matrix) -> Option<Self> {
        let (outputs, rank) = (basis.nrows(), basis.ncols());
        if weights.len() != outputs || weight.rows != outputs || rank == 0 {
            return None;
        }
        // The weights say what counts more than what; their own size would only make one factor large and
        // the other small.
        let size = (weights.iter().map(|w| w * w).sum::<f64>() / outputs.max(1) as f64).sqrt();
        let weights: Vec<f64> = weights.iter().map(|weight| weight / size).collect();
        if !weights.iter().all(|weight| weight.is_finite() && *weight > 0.0) {
            return None;
        }
        let loud = Mat::from_fn(outputs, weight.cols, |i, j| {
            f64::from(weight.data[i * weight.cols + j]) * weights[i]
        });
        let mut gram = basis.transpose() * basis;
        let mean = (0..rank).map(|i| gram[(i, i)]).sum::<f64>() / rank as f64;
        (0..rank).for_each(|i| gram[(i, i)] += SINGULAR * mean);
        let first = gram.llt(Side::Lower).ok()?.solve(basis.transpose() * &loud);
        Some(Self {
            first: matrix(rank, weight.cols, |i, j| first[(i, j)] as f32),
            second: matrix(outputs, rank, |i, j| (basis[(i, j)] / weights[i]) as f32),
        })
    }

    /// Factors that take as long as any of this rank: every output says what one of the first `rank` said.
    /// They are for timing only.
    pub fn sketch(weight: &Matrix, rank: usize) -> Self {
        let at = |i: usize, j: usize| weight.data[(i % weight.rows) * weight.cols + j];
        Self {
            first: matrix(rank, weight.cols, at),
            second: matrix(weight.rows, rank, |i, j| f32::from(u8::from(i % rank == j))),
        }
    }
}

/// Keeps the normal equations solvable where a cut left two directions of a basis alike.
const SINGULAR: f64 = 1e-9;

fn matrix(rows: usize, cols: usize, at: impl Fn(usize, usize) -> f32) -> Matrix {
    let data = (0..rows).flat_map(|i| (0..cols).map(move |j| (i, j)));
    Matrix { rows, cols, data: data.map(|(i, j)| at(i, j)).collect() }
}

/// Whether an operator can stand in two: one that reads every position of its input alone, without padding.
pub fn can_split(graph: &Graph, operator: &Operator) -> bool {
    match operator.kind {
        OperatorKind::Gemm { .. } | OperatorKind::MatMul => true,
        OperatorKind::Conv { group: 1 } => {
            let attrs = graph.attrs(operator.node);
            let automatic = attrs.text("auto_pad").is_some_and(|auto| auto != "NOTSET");
            let padded = attrs.ints("pads").is_some_and(|pads| pads.iter().any(|pad| *pad != 0));
            operator.kernel.iter().all(|side| *side == 1) && (automatic || !padded)
        }
        OperatorKind::Conv { .. } | OperatorKind::ConvTranspose { .. } => false,
    }
}

/// The axis of an operator's weight that runs over its outputs.
pub fn output_axis(operator: &Operator) -> usize {
    match operator.kind {
        OperatorKind::Conv { .. } | OperatorKind::Gemm { trans_b: true } => 0,
        OperatorKind::ConvTranspose { .. }
        | OperatorKind::Gemm { trans_b: false }
        | OperatorKind::MatMul => 1,
    }
}

/// Adds to `patch` what puts an operator in two. A takes over how the input is read (strides, a transposition),
/// B everything behind the product (the bias, a Gemm's factors).
///
/// # Errors
/// Where the operator is none that [`can_split`], the factors are of other sizes, or its weight is of a type
/// that is not written.
pub fn split(
    graph: &Graph,
    operator: &Operator,
    factors: &Factors,
    patch: &mut Patch,
) -> Result<(), OnnxError> {
    let wrong = |what: &str| OnnxError::Edit(format!("operator {:?}: {what}", operator.name));
    let (first, second) = (&factors.first, &factors.second);
    let fits = first.cols == operator.inputs
        && second.rows == operator.outputs
        && first.rows == second.cols;
    if !can_split(graph, operator) || !fits {
        return Err(wrong("it does not stand in two factors of these sizes"));
    }
    let node = graph.node(operator.node);
    let output = node.output.first().ok_or_else(|| wrong("it has no output"))?;
    let names = ["narrow", "first", "second"].map(|part| fresh(graph, output, part));
    let [narrow, first_name, second_name] = names;
    let dtype = graph.weight_dtype(&operator.weight);
    let dtype = dtype.ok_or_else(|| wrong("its weight is no constant of a known type"))?;
    for (name, factor) in [(&first_name, first), (&second_name, second)] {
        let made = constant(operator, name, factor, dtype);
        let made = made.ok_or_else(|| wrong("its weight is not of a floating-point type"))?;
        patch.constants.insert(name.clone(), made);
    }
    let product_only =
        |name: &str| !matches!(operator.kind, OperatorKind::Gemm { .. } if is_factor(name));
    let attribute = node
        .attribute
        .iter()
        .filter(|attribute| attribute.name.as_deref().is_none_or(product_only));
    let before = NodeProto {
        name: Some(fresh(graph, &graph.label(operator.node), "first")),
        op_type: node.op_type.clone(),
        domain: node.domain.clone(),
        input: vec![operator.input.clone(), first_name],
        output: vec![narrow.clone()],
        attribute: attribute.cloned().collect(),
        ..Default::default()
    };
    patch.insert.push((operator.node, before));
    patch.inputs.insert((operator.node, 0), narrow);
    patch.inputs.insert((operator.node, 1), second_name);
    let gone: &[&str] = match operator.kind {
        OperatorKind::Gemm { .. } => &["transA"],
        _ => &["auto_pad", "pads", "dilations"],
    };
    let remove = patch.remove_attributes.entry(operator.node).or_default();
    remove.extend(gone.iter().map(|name| (*name).to_owned()));
    if graph.attrs(operator.node).ints("strides").is_some() {
        let ones = attr_ints("strides", &vec![1; operator.kernel.len()]);
        patch.attributes.entry(operator.node).or_default().push(ones);
    }
    Ok(())
}

/// A Gemm's factors of the product and of the bias: both stand behind the product.
fn is_factor(attribute: &str) -> bool {
    matches!(attribute, "alpha" | "beta")
}

/// A factor in the layout of the operator's own weight.
fn constant(
    operator: &Operator,
    name: &str,
    factor: &Matrix,
    dtype: DType,
) -> Option<crate::onnx::proto::TensorProto> {
    let Matrix { rows, cols, data } = factor;
    let (dims, stored) = if output_axis(operator) == 0 {
        let dims = [&[*rows, *cols], operator.kernel.as_slice()].concat();
        (dims, data.clone())
    } else {
        (vec![*cols, *rows], matrix(*cols, *rows, |i, j| data[j * cols + i]).data)
    };
    Some(tensor(name, dtype, &dims, values::float_bytes(dtype, &stored)?))
}

/// A name made of `base` and `part` that nothing of the graph goes by.
pub(super) fn fresh(graph: &Graph, base: &str, part: &str) -> String {
    let labels: Vec<String> = (0..graph.nodes().len()).map(|id| graph.label(id)).collect();
    let taken = |name: &String| {
        graph.weight(name).is_some() || graph.producer(name).is_some() || labels.contains(name)
    };
    let first = format!("{base}.{part}.blochd");
    let more = (2..).map(|turn| format!("{base}.{part}{turn}.blochd"));
    let names = std::iter::once(first.clone()).chain(more);
    names.into_iter().find(|name| !taken(name)).unwrap_or(first)
}

/// The operator whose node writes `output`, in a network that may have lost nodes or channels.
pub fn writer<'o>(graph: &Graph, operators: &'o [Operator], output: &str) -> Option<&'o Operator> {
    let node: NodeId = graph.producer(output)?;
    operators.iter().find(|operator| operator.node == node)
}
