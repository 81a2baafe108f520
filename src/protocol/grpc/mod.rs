//! The protocol over gRPC: messages ↔ the same typed requests and answers as over REST. `grpc_service.proto`
//! gives names and numbers; its small messages are generated, inference requests and answers are read and
//! written by hand, as slices of what came and from where the outputs lie. What carries them, prefixes and
//! status codes, is in [`frame`].

mod answer;
mod contents;
pub mod frame;
mod messages;
mod request;
mod wire;

/// The generated messages, by package.
#[allow(missing_docs, clippy::all, clippy::pedantic, rustdoc::all)]
pub mod proto {
    include!(concat!(env!("OUT_DIR"), "/grpc.include.rs"));
}

pub use answer::{Call, stream_error};
pub use buffa::Message;
pub use messages::{model_config, unsupported_load, unsupported_unload};
pub use request::{GrpcRequest, raw_contents_begin};
