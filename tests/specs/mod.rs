//! Inputs and outputs of models as tests write them.

// Each test program uses its own part of it.
#![allow(dead_code)]

use blochd::onnx::DType;
use blochd::protocol::{Dim, TensorSpec};

/// Every element type.
pub const ALL: [DType; 14] = [
    DType::F32,
    DType::U8,
    DType::I8,
    DType::U16,
    DType::I16,
    DType::I32,
    DType::I64,
    DType::String,
    DType::Bool,
    DType::F16,
    DType::F64,
    DType::U32,
    DType::U64,
    DType::BF16,
];

/// A tensor's description; a dimension below zero is free.
pub fn spec(name: &str, dtype: DType, shape: &[i64]) -> TensorSpec {
    let dim =
        |dim: &i64| usize::try_from(*dim).map_or_else(|_| Dim::Free(String::new()), Dim::Fixed);
    let shape = shape.iter().map(dim).collect();
    TensorSpec { name: name.to_owned(), dtype, shape: Some(shape) }
}
