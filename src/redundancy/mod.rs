//! The QM-FRG (quantum-mechanical functional redundancy graph): nodes are operators (channels of a layer, and
//! layers), edges carry the Fubini–Study distance of their spectra and the angle of their response states,
//! clusters have a representative, and every removal its certificate. Also the scores by which channels are
//! selected. Above stand `onnx`, `spectra` and `coupling`; `ladder` cuts by what stands here.

mod analysis;
mod cover;
mod graph;
mod kept;
mod layer_pairs;
mod lineage;
mod pairs;
pub mod report;
pub mod selection;
mod signal;
#[cfg(test)]
mod tests;

pub use analysis::{
    Analysis, AnalyzeError, Beside, Calibrated, CalibrationInfo, ChannelReport, FORMAT,
    FrozenLayer, LayerReport, Options, PassedOverNode, Progress, analyze,
};
pub use cover::{Cluster, cover};
pub use graph::{
    Certificate, ChannelStates, Edge, Extent, Metric, RedundancyGraph, StatesFrom, channel_states,
    response_graph, spectral_graph,
};
pub use layer_pairs::{Identical, LayerPair, PairRows, compare_rows};
pub use signal::response_value;
