//! Latency tables, scores and a target → plan, its check, its report, and the manifest of the rungs.
//! Decides what is cut; `surgery` says what is legal and carries it out.

pub mod manifest;

pub use manifest::Manifest;
