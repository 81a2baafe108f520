//! Latency tables, scores and a target → plan, its check, its report, and the manifest of the rungs.
//! Decides what is cut; `surgery` says what is legal and carries it out.

pub mod allocate;
mod bench;
pub mod calibration;
#[cfg(test)]
mod fakes;
mod felt;
pub mod importance;
mod integers;
pub mod make;
pub mod manifest;
mod merging;
mod nest;
mod opened;
mod packed;
pub mod plan;
mod prices;
pub mod quality;
pub mod ranks;
pub mod report;
pub mod resume;
mod rungs;
pub mod score;
mod search;
mod seen;
pub mod segments;
mod shortcut;
mod substitute;
pub mod table;
pub mod task;
#[cfg(test)]
mod tests;
pub mod timing;

pub use manifest::Manifest;
pub use opened::{OpenError, opened};
