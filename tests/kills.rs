//! `kill -9`, a full disk and a failing one at every change of what lies on it: while a bundle comes into force,
//! while a ladder is built, and while it is taken into place. Real processes, files and models.
//!
//! `EVERY_POINT=1 cargo test --test kills -- --nocapture` tries every point; without it, every so many.

mod disk;
mod running;
mod standins;

#[path = "kills/bundle.rs"]
mod bundle;
#[path = "kills/ladder.rs"]
mod ladder;
