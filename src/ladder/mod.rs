//! Latency tables, scores and a target → plan, its check, its report, and the manifest of the rungs.
