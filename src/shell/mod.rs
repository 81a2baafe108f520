//! Everything that touches the world: sockets, files, clocks, threads, processes, ONNX Runtime.

pub mod engine;
pub mod files;
pub mod metrics;
pub mod models;
pub mod npz;
pub mod places;
pub mod serve;
pub mod slot;
