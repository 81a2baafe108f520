//! Everything that touches the world: sockets, files, clocks, threads, processes, ONNX Runtime.

pub mod slot;
