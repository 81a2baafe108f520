//! Bundles that a fleet sends to its nodes: verified, compared with what this node has seen, and brought into
//! force by a machine that ends in the new state or in the old one.
//!
//! [`envelope`] takes a bundle apart; [`keys`] say whether enough of those who are trusted signed it;
//! [`document`] is what it says, and [`artifact`] what of models, which may lie in registries ([`oci`]);
//! [`select`] whom it is for; [`mod@admit`] puts these together into one answer, a typed [`Refused`] where it
//! is no, and [`mod@pass`] says which of several that came together is meant. [`apply`] is the machine that
//! brings a bundle into force, and [`health`] says whether it does the box good. Time and identity are
//! arguments.
//!
//! What a fleet and its nodes tell each other goes over the [`topics`] of a broker: bundles one way, the state
//! that is [`reported`] the other; [`telling`] puts together what became of bundles, [`outbox`] says how much
//! of it is sent and when, [`backoff`] when a broker that was lost is tried again, [`polling`] when a server is
//! asked for bundles, and [`roll_call`] what operators see of all of it.

pub mod admit;
pub mod apply;
pub mod artifact;
pub mod backoff;
pub mod document;
pub mod envelope;
pub mod health;
pub mod keys;
pub mod oci;
pub mod outbox;
pub mod pass;
pub mod polling;
pub mod refused;
pub mod reported;
pub mod roll_call;
pub mod select;
pub mod telling;
pub mod time;
pub mod topics;

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;

pub use admit::{Seen, Standing, Verified, admit, verify};
pub use apply::{Kept, Machine, Record};
pub use artifact::{Artifact, Further, Piece, Sha256, Source};
pub use document::Document;
pub use envelope::Envelope;
pub use keys::{Key, KeySet, NoKeys, Tally};
pub use refused::Refused;
pub use select::{Node, Selector, Share};
pub use time::Timestamp;
