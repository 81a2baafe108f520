//! Open Inference Protocol v2 over REST and gRPC ↔ typed requests and answers, with Triton's binary tensor
//! data, model repository, model configuration, statistics and system shared memory extensions. Stands on
//! `limits`, `units` and `onnx`'s tensors; `shell::serve` carries its bytes and `shell::slot` answers its
//! requests.
//!
//! Source: the Open Inference Protocol's REST and gRPC specifications and Triton's extension documents.
//! Strings travel through the program as they do in binary tensor data: each element is a 4-byte
//! little-endian length and its bytes.

pub mod access;
mod answer;
mod check;
mod elements;
mod error;
mod example;
pub mod grpc;
mod metadata;
mod raw;
mod request;
mod shared;
mod signature;
mod sized;
mod traceparent;

pub use answer::{EncodedAnswer, InferAnswer};
pub use error::{AnswerError, RequestError};
pub use example::{Example, Inputs, NoneSuits, TooLarge, suitable};
pub use metadata::{
    BatchStats, Duration as StatDuration, ErrorBody, IndexLine, IndexRequest, InferenceStats,
    ModelConfig, ModelMetadata, ModelStats, ReadyBody, RegionStatus, RegisterRequest,
    RepositoryRequest, ServerMetadata, StatsBody, TensorMetadata,
};
pub use request::{InferRequest, WantedOutput};
pub use shared::{SharedInput, SharedRange};
pub use signature::{Dim, Signature, TensorSpec, datatype, dtype_of};
pub use sized::{UnknownAxis, check_axes, sized};
pub use traceparent::TraceParent;
