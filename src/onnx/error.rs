//! What can be wrong with an ONNX file, named so that a person can act on it.

/// Why bytes are not a model that blochd can work with.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OnnxError {
    /// The protobuf decoder stopped. `offset` is that of the field that cannot be read, where it is known.
    #[error(
        "not an ONNX file, or a truncated one ({bytes} bytes): {reason}{}",
        at(offset.as_ref())
    )]
    NotOnnx { bytes: usize, offset: Option<usize>, reason: String },
    /// The message has no graph: a different protobuf, or an empty file.
    #[error(
        "not an ONNX file: it decodes to a message without a graph; check that the file is complete"
    )]
    NoGraph,
    /// A file or a count above the program's bound.
    #[error("{what} is {size}, above the limit of {limit}")]
    TooLarge { what: String, size: u64, limit: u64 },
    /// Two nodes write the same value.
    #[error("value {value:?} is written by node {first:?} and again by node {second:?}")]
    WrittenTwice { value: String, first: String, second: String },
    /// A node stands before the node whose output it reads, or nothing produces the value.
    #[error(
        "node {node:?} ({op}) reads value {value:?}, which no input, weight or earlier node \
         provides"
    )]
    Unordered { node: String, op: String, value: String },
    /// The tensor's data does not have the size that its shape asks for.
    #[error("tensor {tensor:?} holds {found} bytes where its shape {shape:?} needs {expected}")]
    TensorSize { tensor: String, shape: Vec<i64>, expected: u64, found: u64 },
    /// The tensor's dimensions are negative or their product overflows.
    #[error("tensor {tensor:?} has an impossible shape {shape:?}")]
    TensorShape { tensor: String, shape: Vec<i64> },
    /// A path in the file leads out of the model's folder.
    #[error(
        "tensor {tensor:?} keeps its data in {location:?}, which is not a plain path below the \
         model's folder; external data must lie beside the model"
    )]
    ExternalPath { tensor: String, location: String },
    /// The external file is missing or shorter than the tensor's place in it.
    #[error("tensor {tensor:?}: external data {location:?} {problem}")]
    ExternalData { tensor: String, location: String, problem: String },
    /// An edit names something that the graph does not have, or would leave it inconsistent.
    #[error("cannot edit the graph: {0}")]
    Edit(String),
}

fn at(offset: Option<&usize>) -> String {
    offset.map(|offset| format!(", in the field at offset {offset}")).unwrap_or_default()
}
