//! Operator matrices → singular values → states and distances, and the keys under which they are kept.
//! Uses `onnx`; `redundancy` builds its graph on these states, and `ladder` ranks by them.
//!
//! What the distances mean (and what they do not): min over orthogonal Q, R of ‖W₁ − c·Q·W₂·R‖_F is
//! 2·‖W₁‖_F·sin(d_FS/2) with c = ‖W₁‖_F/‖W₂‖_F, so the Fubini–Study distance of two spectra is an error *after
//! rotations*, which no nonlinearity absorbs: W and −W are at distance 0, so are any two single rows, and so
//! nearly are two independent random layers. The response states of `response` are what substitution errors
//! follow from.

pub mod activations;
mod drift;
mod error;
mod gram;
mod key;
mod layers;
mod matrix;
pub mod moments;
mod reduction;
pub mod response;
pub mod rows;
pub mod sampler;
pub mod singular;
mod state;
#[cfg(test)]
mod tests;
pub mod tiny;
pub mod tridiagonal;

pub use drift::{Drift, angle_bound};
pub use error::SpectraError;
pub use gram::Gram;
pub use key::{ALGORITHM, KeyBuilder, NoStore, Store};
pub use layers::{Diagonal, Layer, LayerKind, PassedOver, Unanalysed, layers};
pub use matrix::{Augment, OperatorMatrix};
pub use singular::{NOISE, Precision, Spectrum, spectrum};
pub use state::{State, effective_rank, energy_rank, numerical_rank, stable_rank, wasserstein2};
