//! (snapshots, budgets, observations, now) → at most one action a step, and a simulator that closes the
//! loop. Decides which variant each model is to be served by; the shell makes it so and reports back in
//! the next snapshot. Time is an argument: a `Duration` since any fixed moment.
//!
//! The rule: slowdown = observed / promised latency of the variant in service; the best-quality variant
//! with promised × slowdown × margin ≤ budget. Down at once; up only after the better variant has fitted,
//! with more headroom, for a while; never two switches within the dwell time; never below the quality
//! floor. An upward switch that had to be taken back makes the next attempt wait longer, because a slowdown
//! that was measured on a fast variant under a squeeze need not hold for a slower one.

mod estimate;
mod policy;
#[cfg(test)]
mod queue;
pub mod simulate;
mod types;

pub use estimate::observe;
pub use policy::step;
pub use types::{
    Action, Because, ModelView, Observed, Outcome, Policy, State, VariantView, Verdict,
};
