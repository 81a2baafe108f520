//! Bounds of what a fleet sends.

// ---- fleet ----

/// Longest name of a node, label or value: fits a metric's label and a topic's level.
pub const FLEET_NAME_BYTES: usize = 128;
