//! Links to a fleet: what carries bundles to this box and its state back.

pub mod https;
pub mod mqtt;
pub mod operator;
pub mod poll;
mod sign_in;
mod trust;

pub use sign_in::LinkError;
pub use trust::TrustError;
