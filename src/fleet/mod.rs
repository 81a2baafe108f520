//! What a fleet and its nodes tell each other: [`topics`] of a broker, the state that is [`reported`], how much of
//! it is sent and when ([`outbox`]), when a lost broker is tried again ([`backoff`]), and what operators see of all
//! of it ([`roll_call`]). Time and chance are arguments.

pub mod backoff;
pub mod outbox;
pub mod reported;
pub mod roll_call;
pub mod topics;

pub use outbox::{Outbox, Step};
pub use reported::{Receiver, Reported};
pub use roll_call::{Progress, RollCall};
pub use topics::{Heard, Target, Topics};
