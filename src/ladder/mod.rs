//! Latency tables, scores and a target → plan, its check, its report, and the manifest of the rungs.
//! Decides what is cut; `surgery` says what is legal and carries it out.

pub mod allocate;
mod bench;
pub mod calibration;
mod felt;
mod integers;
pub mod make;
pub mod manifest;
pub mod plan;
mod prices;
pub mod quality;
pub mod ranks;
pub mod report;
mod rungs;
pub mod score;
mod search;
pub mod segments;
mod shortcut;
mod substitute;
pub mod table;
pub mod task;
pub mod timing;

pub use manifest::Manifest;
