//! Open Inference Protocol v2 ↔ typed requests and answers, with Triton's binary tensor data, model
//! repository, model configuration and statistics extensions. Stands on `limits`, `units` and
//! `onnx`'s tensors; `shell::serve` carries its bytes and `shell::slot` answers its requests.
//!
//! Source: the Open Inference Protocol's REST specification and Triton's extension documents.
//! Strings travel through the program as they do in binary tensor data: each element is a 4-byte
//! little-endian length and its bytes.

mod answer;
mod elements;
mod error;
mod example;
mod metadata;
mod raw;
mod request;
mod signature;

pub use answer::{EncodedAnswer, InferAnswer};
pub use error::{AnswerError, RequestError};
pub use example::{Example, Inputs, NoneSuits, TooLarge, suitable};
pub use metadata::{
    BatchStats, Duration as StatDuration, ErrorBody, IndexLine, IndexRequest, InferenceStats,
    ModelConfig, ModelMetadata, ModelStats, ReadyBody, RepositoryRequest, ServerMetadata,
    StatsBody, TensorMetadata,
};
pub use request::{InferRequest, WantedOutput};
pub use signature::{Dim, Signature, TensorSpec, datatype, dtype_of};
