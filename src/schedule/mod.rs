//! Which request a model's sessions take next, and which is refused because its answer would come too late.
//! Pure: time is an argument, a `Duration` since any fixed moment. `shell::slot` puts threads behind it.
//!
//! **Order.** The higher priority goes first; within one, the earlier deadline (EDF); among equals, who came
//! first. A request without a deadline counts as due [`limits::QUEUE_PATIENCE`](crate::limits::QUEUE_PATIENCE)
//! after its arrival, and goes before everybody else once that has passed.
//!
//! **Admission.** The answer of a waiting request is expected after what runs and what stands before it,
//! shared by the sessions, and its own run. That is an upper bound for any number of sessions (Graham's, for
//! lists), so what it promises holds where the times of single runs do. Refused is
//! - who would be answered after its deadline,
//! - who would put off, past its deadline, a request that was taken in before, unless that one has a lower
//!   priority: then it is the one that is refused, at once,
//! - who finds no place, unless one of lower priority has one: then that one is refused.
//!
//! Requests without a deadline are never refused for another's sake. A session that has nothing to do always
//! tries, whatever is expected: its time keeps the estimate honest.
//!
//! **Batches.** Requests that differ in their rows alone run as one, the first of the order and those behind it
//! that fit, where that takes no longer than one after the other and makes nobody late. Admission does not
//! count on it, so that what it promises holds whether others of their kind come or not.

mod batch;
#[cfg(test)]
mod batches;
#[cfg(test)]
mod flood;
mod queue;
mod service;
#[cfg(test)]
mod site;
#[cfg(test)]
mod tests;

pub use batch::Batching;
pub use queue::{Asked, Level, Next, Queue, Refused, Run, Server, Taken};
pub use service::ServiceTime;
