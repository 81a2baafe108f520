//! Text → raw → checked configuration. Every error is reported at once, with line and column.
