//! The ONNX Runtime of tests: found as the program finds it. Where there is none, a test fails and says
//! what to run; it is never skipped.

use super::{Runtime, Search, init};
use crate::shell::places;

/// The process's runtime.
pub fn runtime() -> Runtime {
    let search = Search::new(None, &places::state_dir());
    init(&search).unwrap_or_else(|error| panic!("{error}"))
}
