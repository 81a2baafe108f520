//! Child processes: this program itself, started again for what must not share an address space or a
//! priority with serving. A child that crashes, hangs, floods its output or eats the memory becomes
//! a typed reason; it never becomes our end. `process` starts and bounds any child; `confine` is what
//! the child itself begins with; `trial`, `builder` and `telemetry` know the kinds that the agent runs;
//! `confining` finds out how far the last of them can be confined.

pub mod builder;
pub mod confine;
pub mod confining;
pub mod looks;
mod process;
pub mod telemetry;
#[cfg(test)]
mod tests;
pub mod trial;

pub use process::{
    Blame, Bounds, ChildError, Memory, PROVIDER_FAILED, Priority, WORK_REFUSED, Wish,
    is_out_of_memory, processor_time, run, this_program, yield_to_others,
};
