//! File events and the time → settled models: debouncing, rescans, half-written files.
