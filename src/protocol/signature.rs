//! What a served model takes and gives: names, element types and shapes.

use crate::onnx::DType;

/// The protocol's word for an element type.
pub fn datatype(dtype: DType) -> &'static str {
    match dtype {
        DType::F32 => "FP32",
        DType::U8 => "UINT8",
        DType::I8 => "INT8",
        DType::U16 => "UINT16",
        DType::I16 => "INT16",
        DType::I32 => "INT32",
        DType::I64 => "INT64",
        DType::String => "BYTES",
        DType::Bool => "BOOL",
        DType::F16 => "FP16",
        DType::F64 => "FP64",
        DType::U32 => "UINT32",
        DType::U64 => "UINT64",
        DType::BF16 => "BF16",
    }
}

/// The element type of a protocol word; `None` for a word that the protocol does not have.
pub fn dtype_of(datatype: &str) -> Option<DType> {
    Some(match datatype {
        "FP32" => DType::F32,
        "UINT8" => DType::U8,
        "INT8" => DType::I8,
        "UINT16" => DType::U16,
        "INT16" => DType::I16,
        "INT32" => DType::I32,
        "INT64" => DType::I64,
        "BYTES" => DType::String,
        "BOOL" => DType::Bool,
        "FP16" => DType::F16,
        "FP64" => DType::F64,
        "UINT32" => DType::U32,
        "UINT64" => DType::U64,
        "BF16" => DType::BF16,
        _ => return None,
    })
}

/// One dimension of an input or output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Dim {
    /// A size that the model fixes.
    Fixed(usize),
    /// A size that each request chooses (−1 on the wire). Within one request, all dimensions of one
    /// name have one size; dimensions without a name (empty) are free of each other.
    Free(String),
}

/// Name, element type and shape of one input or output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    pub name: String,
    pub dtype: DType,
    /// The dimensions; `None` where the model leaves even their number open.
    pub shape: Option<Vec<Dim>>,
}

impl TensorSpec {
    /// Whether a tensor of this shape may be given.
    pub fn admits(&self, shape: &[usize]) -> bool {
        let Some(wanted) = &self.shape else { return true };
        let fits = |(want, have): (&Dim, &usize)| match want {
            Dim::Fixed(want) => want == have,
            Dim::Free(_) => true,
        };
        wanted.len() == shape.len() && wanted.iter().zip(shape).all(fits)
    }

    /// The shape as the protocol writes it, −1 for a free dimension. The protocol has no word for an
    /// open number of dimensions: it is written as one free dimension.
    pub fn dims(&self) -> Vec<i64> {
        let dim = |dim: &Dim| match dim {
            Dim::Fixed(size) => i64::try_from(*size).unwrap_or(i64::MAX),
            Dim::Free(_) => -1,
        };
        self.shape.as_ref().map_or_else(|| vec![-1], |shape| shape.iter().map(dim).collect())
    }
}

/// The inputs and outputs of a served model, in the graph's order. Every variant of a version has
/// the same: pruning never changes what a client sees.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Signature {
    pub inputs: Vec<TensorSpec>,
    pub outputs: Vec<TensorSpec>,
}

impl Signature {
    /// The input named `name`.
    pub fn input(&self, name: &str) -> Option<&TensorSpec> {
        self.inputs.iter().find(|spec| spec.name == name)
    }

    /// The output named `name`.
    pub fn output(&self, name: &str) -> Option<&TensorSpec> {
        self.outputs.iter().find(|spec| spec.name == name)
    }
}
