//! Which channels must go together: coupled groups (the field's "dependency groups", DepGraph, arXiv
//! 2301.12900), their index maps, and what is frozen and because of what.
//!
//! Every index of every axis of every value and constant is an *atom*. One rule an operator joins the
//! atoms that must be removed together and freezes those that must stay; an operator without a rule
//! freezes all that it touches. Classes of atoms that stand in the same axes are interchangeable channels:
//! they form a [`Group`]. Above stand `onnx` and `spectra`; `surgery` carries out what this room allows.

mod atoms;
mod blocks;
pub(crate) mod fused;
mod groups;
mod linear;
mod norms;
mod rearrange;
mod reshape;
pub(crate) mod rules;
pub(crate) mod sizes;
mod table;
mod types;

pub use blocks::{Block, SUM, blocks};
pub use groups::couple;
pub use norms::{Epsilon, Norm, norms};
pub use table::operators_with_rules;
pub use types::{Consumer, Coupling, Frozen, Group, GroupId, Neutral, Place, Producer, Reason};
