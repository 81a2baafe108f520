//! Operator matrices → singular values → states and distances, and the keys under which they are kept.

pub mod activations;
pub mod moments;
pub mod rows;
