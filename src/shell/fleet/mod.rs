//! What a box of a fleet is and whom it trusts, read from its files; the bundles in its inbox; artifacts on
//! their way, from where they are kept to their places.

pub mod depot;
pub mod fetch;
pub mod identity;
pub mod inbox;
pub mod keys;
pub mod place;

pub use identity::{NoIdentity, node};
pub use keys::{KeyError, trusted};
