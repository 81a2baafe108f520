//! The slot: one served model version, the variant in service behind an atomic pointer, its threads
//! and its queue. `shell::serve` submits requests, `shell::agent` publishes variants and reads what
//! was observed; `shell::engine` gives the sessions.
//!
//! Requests wait in **the slot's** queue, not in a variant's. Publishing a variant moves one number
//! (the generation) under the queue's lock: from then on only the new variant's threads take
//! requests, the old ones finish what they have started, free their sessions and end. A request
//! therefore belongs to exactly one variant from the moment it starts, and none can be dropped by a
//! swap.
//!
//! Who waits, who goes first and what runs together is `schedule`'s to say. A batch that waits to fill
//! is nothing of its own: its requests stand in the queue, can be cancelled there, and go to whichever
//! variant takes them.

mod apart;
mod batch;
mod device;
mod error;
mod job;
mod live;
mod padded;
mod queue;
mod repository;
mod rows;
mod session;
mod shapes;
mod stats;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod together;
mod variant;
mod worker;

pub use apart::{Patience, abandoned};
pub use batch::Batched;
pub use device::OnDevice;
pub use error::{InferError, PublishError, Refusal, RunFailure};
pub use job::{Answer, Request, Ticket};
pub use live::{Drain, Slot, SlotOptions};
pub use padded::{Padded, row_sizes};
pub use repository::{
    Command, CommandError, Commands, Entry, IndexEntry, ModelState, NotServed, Repository,
};
pub use rows::{NotBatched, check_rows, check_so_many_rows};
pub use shapes::Shapes;
pub use stats::{BatchTimes, Counters, Histogram, LATENCY_BUCKETS_US, Stats, Totals, Window};
pub use variant::{Ender, Fault, Notice, Runner, Sampler, Variant, VariantInfo, Witness};
