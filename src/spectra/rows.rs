//! What an operator sees and says on calibration samples: rows (x, y) with y ≈ W·x + b, where x is the
//! flattened patch under the kernel. The sampler beside this draws them from values of the network.

use crate::onnx::{Graph, Operator, OperatorKind};

/// Rows (x, y) that are looked at one by one, whether they are held or made when they are asked for.
pub trait RowSource {
    /// Length of x.
    fn inputs(&self) -> usize;
    /// Length of y.
    fn outputs(&self) -> usize;
    /// The sample (image) that each row comes from.
    fn samples(&self) -> &[u32];
    /// Appends x of row `row`.
    fn push_x(&self, row: usize, into: &mut Vec<f32>);
    /// Appends y of row `row`.
    fn push_y(&self, row: usize, into: &mut Vec<f32>);
}

/// Sampled rows of one operator (one group of its channels), held.
#[derive(Debug, Clone, Default)]
pub struct Rows {
    /// Length of x.
    pub inputs: usize,
    /// Length of y.
    pub outputs: usize,
    /// `count × inputs`, row-major.
    pub x: Vec<f32>,
    /// `count × outputs`, row-major.
    pub y: Vec<f32>,
    /// The sample (image) that each row comes from.
    pub sample: Vec<u32>,
}

impl Rows {
    /// Number of rows.
    pub fn count(&self) -> usize {
        self.sample.len()
    }
}

impl RowSource for Rows {
    fn inputs(&self) -> usize {
        self.inputs
    }

    fn outputs(&self) -> usize {
        self.outputs
    }

    fn samples(&self) -> &[u32] {
        &self.sample
    }

    fn push_x(&self, row: usize, into: &mut Vec<f32>) {
        into.extend_from_slice(&self.x[row * self.inputs..][..self.inputs]);
    }

    fn push_y(&self, row: usize, into: &mut Vec<f32>) {
        into.extend_from_slice(&self.y[row * self.outputs..][..self.outputs]);
    }
}

/// How an operator walks over its input.
///
/// A ConvTranspose adds overlapping copies of its kernel; seen from one output position, each kernel position
/// reads at most one input position (none where the strides leave a gap), so that y = W·x + b holds there as
/// for any other operator, with zeros in x where nothing is read.
#[derive(Debug, Clone)]
pub struct Geometry {
    pub(super) kernel: Vec<usize>,
    strides: Vec<usize>,
    dilations: Vec<usize>,
    /// Explicit leading pads, or `None` where they follow from `auto_pad` and the sizes.
    pads: Option<Vec<usize>>,
    same_lower: bool,
    /// For each axis how many positions a ConvTranspose adds at the end; `None` for other operators.
    added: Option<Vec<usize>>,
    pub(super) group: usize,
    pub(super) inputs: usize,
    pub(super) outputs: usize,
}

impl Geometry {
    /// The geometry of a Conv, ConvTranspose, Gemm or MatMul; `None` where an attribute is out of range.
    pub fn of(graph: &Graph, operator: &Operator) -> Option<Self> {
        let attrs = graph.attrs(operator.node);
        let rank = operator.kernel.len();
        let list = |name: &str, default: usize| -> Option<Vec<usize>> {
            match attrs.ints(name) {
                None => Some(vec![default; rank]),
                Some(values) => values.iter().map(|v| usize::try_from(*v).ok()).collect(),
            }
        };
        let steps =
            |name: &str| list(name, 1).filter(|steps| steps.len() == rank && !steps.contains(&0));
        let transposed = matches!(operator.kind, OperatorKind::ConvTranspose { .. });
        let auto = attrs.text("auto_pad").unwrap_or("NOTSET");
        let pads = match auto {
            // Where a ConvTranspose's output shape is given, pads follow from it and are not read.
            _ if transposed && attrs.ints("output_shape").is_some() => None,
            "SAME_UPPER" | "SAME_LOWER" => None,
            "VALID" => Some(vec![0; rank]),
            _ => Some(list("pads", 0)?),
        };
        Some(Self {
            kernel: operator.kernel.clone(),
            strides: steps("strides")?,
            dilations: steps("dilations")?,
            pads,
            same_lower: auto == "SAME_LOWER",
            added: if transposed { Some(list("output_padding", 0)?) } else { None },
            group: operator.group(),
            inputs: operator.inputs,
            outputs: operator.outputs,
        })
    }

    /// A map from `inputs` to `outputs` channels at every position of tensors of rank `rank`: channels on
    /// axis 1 where there are spatial axes (rank above 3), else on the last.
    pub fn pointwise(rank: usize, inputs: usize, outputs: usize) -> Self {
        let spatial = if rank > 3 { rank - 2 } else { 0 };
        Self {
            kernel: vec![1; spatial],
            strides: vec![1; spatial],
            dilations: vec![1; spatial],
            pads: Some(vec![0; spatial]),
            same_lower: false,
            added: None,
            group: 1,
            inputs,
            outputs,
        }
    }

    /// Leading pad of spatial axis `axis`. `None` where the two ends of a ConvTranspose cannot be padded alike:
    /// versions of the specification and of runtimes disagree about which one gets more.
    pub(super) fn pad(&self, axis: usize, input: usize, output: usize) -> Option<isize> {
        if let Some(pads) = &self.pads {
            return Some(pads.get(axis).copied().unwrap_or(0) as isize);
        }
        let reach = (self.kernel[axis] - 1) * self.dilations[axis] + 1;
        let span = |length: usize| length.saturating_sub(1) * self.strides[axis] + reach;
        let Some(added) = &self.added else {
            let total = span(output).saturating_sub(input);
            let lead = if self.same_lower { total.div_ceil(2) } else { total / 2 };
            return Some(lead as isize);
        };
        let total = (span(input) + added.get(axis).copied().unwrap_or(0)).saturating_sub(output);
        total.is_multiple_of(2).then_some(total as isize / 2)
    }

    /// Where on an input axis of length `length` kernel position `tap` reads for output position `output`;
    /// `None` where it reads nothing.
    pub(super) fn place(
        &self,
        axis: usize,
        output: usize,
        tap: usize,
        pad: isize,
        length: usize,
    ) -> Option<usize> {
        let (stride, tap) = (self.strides[axis], tap * self.dilations[axis]);
        let place = match self.added {
            None => (output * stride + tap) as isize - pad,
            Some(_) => {
                let scaled = output as isize + pad - tap as isize;
                (scaled % stride as isize == 0).then_some(scaled / stride as isize)?
            }
        };
        usize::try_from(place).ok().filter(|place| *place < length)
    }
}
