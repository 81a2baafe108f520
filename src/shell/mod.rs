//! Everything that touches the world: sockets, files, clocks, threads, processes, ONNX Runtime.

pub mod metrics;
pub mod serve;
pub mod slot;
