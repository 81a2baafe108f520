//! Links to a fleet: what carries bundles to this box and its state back.

pub mod mqtt;
pub mod operator;
mod sign_in;

pub use sign_in::LinkError;
