//! What a box of a fleet is and whom it trusts, read from its files.

pub mod identity;
pub mod keys;

pub use identity::{NoIdentity, node};
pub use keys::{KeyError, trusted};
