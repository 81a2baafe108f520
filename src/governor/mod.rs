//! (snapshots, budgets, observations, now) → at most one action, and the simulator.
