//! Every bound of the program, each with its reason. Nothing that comes from outside (a length, a
//! count, a depth) is trusted beyond the number that stands here. One section a room.

// ---- onnx ----

/// Largest model file that is decoded. ONNX itself stops at 2 GiB a protobuf; weights beyond that
/// live in external data files, which have their own bound.
pub const MODEL_FILE_BYTES: u64 = 2 << 30;

/// Largest total of one model's external data: what the largest edge boxes hold in memory.
pub const EXTERNAL_DATA_BYTES: u64 = 64 << 30;

/// Most nodes of a graph. The largest exported networks have tens of thousands.
pub const GRAPH_NODES: usize = 1_000_000;

/// Most elements of one axis that may be tracked as channels. Vocabularies reach a quarter of a million.
pub const CHANNELS: usize = 1 << 20;
