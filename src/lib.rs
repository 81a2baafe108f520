//! blochd keeps every ONNX model of an edge box inside its latency budget, at the best quality that
//! the box can give right now.
//!
//! The rooms stand in the order in which a model walks through them. A room uses only rooms above it
//! in this list; only [`shell`] (and the binary's `cli`) touches the world, and no room uses `shell`.
//! `tests/tidy.rs` holds both rules.
//!
//! ```text
//! files ──► arrivals ──► onnx ──► spectra ──► coupling, redundancy ──► ladder ──► surgery ──► rungs on disk
//!                                                                      ▲                         │
//! hardware ──► latency tables ─────────────────────────────────────────┘                         ▼
//! clients ──► protocol ──► schedule ──► slot (the variant in service) ◄── governor (budget, latency, health)
//! ```
//!
//! Words: a *model* is what a client calls by name, a *version* a directory `<model>/<N>/`, a *variant*
//! one ONNX file that can serve a version: the *dense* original or a *rung* of its *ladder*. A rung is
//! named by its *latency ratio* to dense as measured on this box. An *operator* is a unit that can be
//! compared and removed; a *coupled group* is the set of places that must lose the same channel together;
//! a *budget* is a bound on a latency percentile at the client-visible boundary; *quality* is the
//! agreement of a variant with dense, or a task metric where labels are given; a *bundle* is what a fleet sends
//! its boxes: a signed document with a revision.

pub mod limits;
pub mod units;

pub mod config;

pub mod arrivals;

pub mod onnx;

pub mod hardware;

pub mod spectra;

pub mod coupling;

pub mod redundancy;

pub mod surgery;

pub mod ladder;

pub mod governor;

pub mod protocol;

pub mod schedule;

pub mod fleet;

pub mod shell;
