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

// ---- protocol ----

/// Longest JSON part of an inference request. Numbers as text take up to four times their binary
/// size; a client with more to say uses the binary extension.
pub const INFER_JSON_BYTES: usize = 256 << 20;

/// Most inputs, and most requested outputs, of one request. Exported networks with cached state
/// have a few hundred.
pub const REQUEST_TENSORS: usize = 4096;

/// Most axes of a tensor. Runtimes stop at 8 or 16.
pub const TENSOR_RANK: usize = 64;

// ---- shell: slot, serve, metrics ----

/// Answered requests of a variant that are kept for windowed percentiles: forty seconds of one
/// hundred requests a second, 128 KiB.
pub const OBSERVATIONS: usize = 4096;

/// Requests that wait in one model's queue where the policy says nothing: more would wait longer
/// than any real-time client does.
pub const QUEUE_LENGTH: usize = 256;

/// Repository commands of clients (load, unload) that wait for the agent.
pub const REPOSITORY_COMMANDS: usize = 16;

/// How long a client waits for a repository command; loading, trial and warm-up of a large model on
/// a slow box take minutes.
pub const REPOSITORY_COMMAND_SECS: u64 = 600;

/// Largest body of an HTTP request where the configuration says nothing: four seconds of 16 kHz
/// audio and a 4K camera frame as FP32 fit (100 MB).
pub const HTTP_BODY_BYTES: usize = 128 << 20;

/// Bytes of all request bodies that are held at one time: two of the largest.
pub const HTTP_BODIES_BYTES: usize = 256 << 20;

/// Largest body of a repository call: a few parameters.
pub const REPOSITORY_BODY_BYTES: usize = 64 << 10;

/// Open connections of one listener. Each costs some 20 KiB; an edge box has tens of clients.
pub const HTTP_CONNECTIONS: usize = 512;

/// How long a connection may stay idle, or take to send a request's head.
pub const HTTP_IDLE_SECS: u64 = 300;

/// How long a client may take to send one body: the largest over a slow field link.
pub const HTTP_BODY_SECS: u64 = 60;

/// JSON bodies above this size are read on a thread that may block, so that a large request never
/// holds up the small ones. Below it the hand-over would cost more than the reading.
pub const JSON_INLINE_BYTES: usize = 64 << 10;
// ---- shell::engine ----

/// Most entries of a directory that are looked at in search of a library. `/usr/lib` of a full desktop
/// has some five thousand.
pub const DIRECTORY_ENTRIES: usize = 100_000;

/// Constants with more elements than this are not given to the runtime when it infers shapes: shapes,
/// axes, pads and sizes are small, weights are not.
pub const SHAPE_CONSTANT_ELEMENTS: u64 = 1024;

/// Outputs below this many bytes are copied out of the runtime's memory; larger ones stay in it until
/// they are dropped. Below a page the bookkeeping costs more than the copy.
pub const COPIED_OUTPUT_BYTES: usize = 4096;

// ---- shell::npz ----

/// Most arrays of an archive: a model has tens of inputs at most.
pub const NPZ_ARRAYS: usize = 1024;

/// Most bytes of all arrays of an archive together, uncompressed. 512 calibration images of 1024×1024×3
/// floats are 6 GiB.
pub const NPZ_BYTES: u64 = 8 << 30;

/// Longest header of an array: a type, an order and a shape.
pub const NPY_HEADER_BYTES: usize = 64 << 10;
// ---- surgery ----

/// Rows of calibration data that one fit draws at least: enough for a 3×3 convolution over 256 channels.
/// More change nothing on the networks that were measured, 4,096 nearly nothing, 1,024 collapse.
pub const ROWS_PER_FIT: usize = 16_384;

/// Most bytes of such rows at a time.
pub const FIT_BYTES: usize = 512 << 20;
