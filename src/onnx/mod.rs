//! Bytes ↔ graph, lossless: decoding and encoding, weights wherever they stand, what may be external,
//! and edits as patches. Above it stand only `limits` and `units`; every room that looks at a network
//! uses it. Nothing here touches a file: the shell hands bytes in and takes bytes out.

mod check;
mod error;
pub mod exec;
mod external;
mod graph;
mod lend;
mod model;
mod operator;
mod patch;
mod share;
pub mod values;
mod walk;
mod wire;

/// The generated protobuf messages of an ONNX file, in the words of its specification.
#[allow(missing_docs, clippy::all, clippy::pedantic, rustdoc::all)]
pub mod proto {
    include!(concat!(env!("OUT_DIR"), "/onnx.include.rs"));
    pub use self::onnx::*;
}

pub use error::OnnxError;
pub use exec::{DType, Engine, ExecError, Session, Shapes, Tensor, ValueType, free_axis};
pub use graph::{Attrs, Graph, NodeId, Use, Weight};
pub use lend::{Constant, constants};
pub use model::{Encoded, Model, entry, tensor};
pub use operator::{Matrix, Operator, OperatorKind, operators};
pub use patch::{Patch, attr_float, attr_int, attr_ints, extract, with_outputs};
pub use share::{Shared, share_equal};
