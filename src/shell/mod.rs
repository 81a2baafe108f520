//! Everything that touches the world: sockets, files, clocks, threads, processes, ONNX Runtime.

pub mod agent;
pub mod children;
pub mod config_parts;
pub mod cpus;
pub mod engine;
pub mod files;
pub mod fleet;
pub mod frugal;
pub mod inputs;
pub mod links;
pub mod metrics;
pub mod models;
pub mod npz;
pub mod places;
pub mod probe;
pub mod recorder;
pub mod serve;
pub mod shadow;
pub mod slot;
pub mod spans;
pub mod spectra_cache;
pub mod store;
pub mod supply;
pub mod systemd;
pub mod unfinished;
pub mod watch;
