//! (snapshots, budgets, observations, now) → at most one action a step, and a simulator that closes the
//! loop. Decides which variant each model is to be served by; the shell makes it so and reports back in
//! the next snapshot. Time is an argument: a `Duration` since any fixed moment.
//!
//! The rule: slowdown = observed / promised latency of the variant in service; the best-quality variant
//! with promised × slowdown × margin ≤ budget. Down at once; up only after the better variant has fitted,
//! with more headroom, for a while; never two switches within the dwell time; never below the quality
//! floor. An upward switch that had to be taken back makes the next attempt wait longer, because a slowdown
//! that was measured on a fast variant under a squeeze need not hold for a slower one.
//!
//! A stall that hits every variant alike must not keep the better one out. So the slowdown is that of the
//! typical stretch of the window; what moves a model down must be seen all over the window; and a better
//! variant is asked only for the requests that it would be too slow for, not for those that the faster
//! one in service does not answer in time either.
//!
//! A rung that takes longer than it promised goes back at once; see `promise.rs`. A budget that a box which
//! gets slower will break is left before; see `trend.rs`. Where models share a box and the more important one
//! has no faster variant left, a less important one makes room; see `relief.rs`.
//!
//! A rung whose agreement with dense turns out lower on live requests than its floor is left at once; whether
//! it is so, [`shadow`] judges.
//!
//! All of it runs over recorded or made-up boxes in [`simulate`]; what is recorded is a [`trace`].

mod estimate;
mod policy;
mod promise;
#[cfg(test)]
mod queue;
mod relief;
pub mod shadow;
pub mod simulate;
pub mod trace;
mod trend;
mod types;

pub use estimate::Observed;
pub use policy::step;
pub use types::{
    Action, Because, Conviction, Load, ModelView, Outcome, Policy, State, VariantView, Verdict,
};
