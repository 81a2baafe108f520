//! Links to a fleet: what carries bundles to this box and its state back.

pub mod https;
pub mod mqtt;
pub mod operator;
pub mod poll;
mod secrets;
mod sign_in;

pub use secrets::SecretError;
pub use sign_in::LinkError;
