//! What is wrong with a request, in words that name the tensor and what was expected.

use crate::onnx::DType;

use super::signature::datatype;

/// Why a request is refused before anything is run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// Not JSON, or not the protocol's object.
    #[error("failed to parse the request JSON: {0}")]
    Json(String),
    /// The header's length does not fit the body.
    #[error(
        "Inference-Header-Content-Length is {claimed}, the body has {actual} bytes: it must be the \
         length of the JSON that the body begins with"
    )]
    HeaderLength { claimed: usize, actual: usize },
    /// The JSON part is longer than [`crate::limits::INFER_JSON_BYTES`].
    #[error("the request JSON has {actual} bytes, at most {limit} are taken: send binary data")]
    JsonTooLong { actual: usize, limit: usize },
    /// The model has no such input.
    #[error("unexpected inference input '{input}' for model '{model}': its inputs are {expected}")]
    UnknownInput { input: String, model: String, expected: String },
    /// An input is given twice.
    #[error("input '{input}' is given more than once")]
    DuplicateInput { input: String },
    /// An input is not given.
    #[error(
        "expected {expected} inputs but got {got} inputs for model '{model}': missing {missing}"
    )]
    MissingInput { model: String, missing: String, expected: usize, got: usize },
    /// Not a word of the protocol.
    #[error("input '{input}': '{datatype}' is not a datatype of the protocol, expected {expected}")]
    UnknownDatatype { input: String, datatype: String, expected: &'static str },
    /// Another element type than the model's.
    #[error(
        "inference input '{input}' data-type is '{got}', but model '{model}' expects '{expected}'"
    )]
    Datatype { input: String, model: String, got: &'static str, expected: &'static str },
    /// Another shape than the model's.
    #[error(
        "unexpected shape for input '{input}' for model '{model}': expected {expected}, got {got} \
         (-1 stands for any size)"
    )]
    Shape { input: String, model: String, expected: String, got: String },
    /// Two dimensions that the model gives one name have two sizes.
    #[error(
        "input '{input}': dimension '{dim}' is {got}, but {expected} in input '{other}': the model \
         wants one size for both"
    )]
    DimConflict { input: String, dim: String, got: usize, expected: usize, other: String },
    /// A dimension below zero, or more elements than can be counted.
    #[error("input '{input}': {shape} is not the shape of a tensor")]
    NotAShape { input: String, shape: String },
    /// None of `data`, `binary_data_size` and a region of shared memory, or more than one.
    #[error(
        "input '{input}': expected either \"data\", or the parameter binary_data_size, or one that \
         names a region of shared memory"
    )]
    DataSource { input: String },
    /// A region of shared memory, and no word on how much of it.
    #[error("'{tensor}': shared_memory_region needs the parameter shared_memory_byte_size")]
    SharedSize { tensor: String },
    /// Not a message of protobuf, or not the protocol's.
    #[error("failed to parse the request message: {0}")]
    Protobuf(String),
    /// More than one of a tensor's three ways to travel, or none.
    #[error(
        "input '{input}': expected either contents, or raw_input_contents for all inputs, or \
         parameters that name a region of shared memory"
    )]
    Contents { input: String },
    /// Not as many raw contents as inputs that need one.
    #[error(
        "{got} raw_input_contents for {expected} inputs: each input that is not in shared memory \
         has one"
    )]
    RawCount { got: usize, expected: usize },
    /// A parameter of another type than the protocol's.
    #[error("the parameter '{name}' is not {expected}")]
    Parameter { name: &'static str, expected: &'static str },
    /// Typed contents beyond [`crate::limits::TYPED_CONTENTS_BYTES`].
    #[error(
        "input '{input}': contents of more than {limit} bytes are not taken: send \
         raw_input_contents"
    )]
    ContentsTooLong { input: String, limit: usize },
    /// The tensor's bytes do not lie in the body.
    #[error(
        "input '{input}': binary_data_size is {claimed}, only {left} bytes of the body are left"
    )]
    BinaryRange { input: String, claimed: u64, left: usize },
    /// As many bytes as the shape needs are expected.
    #[error(
        "input '{input}': {got} bytes of binary data, expected {expected} for {datatype} {shape}"
    )]
    BinarySize {
        input: String,
        /// Bytes.
        got: usize,
        /// Bytes.
        expected: usize,
        datatype: &'static str,
        shape: String,
    },
    /// The length prefixes of BYTES elements do not add up, or a BOOL is neither 0 nor 1.
    #[error("input '{input}': {what}")]
    Binary { input: String, what: String },
    /// The body is longer than its tensors.
    #[error(
        "{left} bytes of the body belong to no input: binary_data_size of the inputs add up to less"
    )]
    BinaryLeftOver { left: usize },
    /// A body of raw data for a model that does not have exactly one input with at most one free
    /// dimension.
    #[error("a raw binary request cannot be read for model '{model}': {because}")]
    Raw { model: String, because: String },
    /// `data` has an element of the wrong kind.
    #[error("input '{input}': {what}")]
    Data { input: String, what: String },
    /// `data` has not as many elements as the shape needs.
    #[error("input '{input}': \"data\" has {got} elements, expected {expected} for shape {shape}")]
    DataCount { input: String, got: String, expected: usize, shape: String },
    /// The model has no such output.
    #[error(
        "unexpected inference output '{output}' for model '{model}': its outputs are {expected}"
    )]
    UnknownOutput { output: String, model: String, expected: String },
    /// An output is asked for twice.
    #[error("output '{output}' is requested more than once")]
    DuplicateOutput { output: String },
    /// An extension that this server does not have.
    #[error("'{tensor}': {extension} is not supported by this server")]
    Unsupported { tensor: String, extension: &'static str },
}

/// Why an answer cannot be written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AnswerError {
    /// Bytes that are not text.
    #[error("output '{output}' has BYTES elements that are not UTF-8: ask for binary_data")]
    NotText { output: String },
    /// A type that JSON has no form for.
    #[error("output '{output}' is {}: ask for binary_data", datatype(*.dtype))]
    BinaryOnly { output: String, dtype: DType },
    /// More than a message of gRPC can announce.
    #[error("the outputs take {bytes} bytes: no message of gRPC is that long")]
    TooLong { bytes: usize },
    /// The outputs are not what a session may give.
    #[error("the outputs have no JSON form: {0}")]
    Json(String),
}
