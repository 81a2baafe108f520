//! What was measured of the box, kept beside the latency tables.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use blochd::limits;
use blochd::shell::files;
use blochd::shell::probe::roofline::Roofline;

use crate::cli::prune::LATENCIES;

const FILE: &str = "roofline.json";

/// By engine: processor, execution provider, runtime version and threads.
pub type Kept = BTreeMap<String, Roofline>;

/// What is kept; a file of another format is as good as none.
pub fn read(state_dir: &Path) -> Kept {
    let text = files::read_text(&state_dir.join(LATENCIES).join(FILE), limits::ROOFLINE_FILE_BYTES);
    text.ok().and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default()
}

/// Adds a measurement. Of other engines as many are kept as of latency tables.
///
/// # Errors
/// Where the file cannot be written.
pub fn write(state_dir: &Path, mut kept: Kept, engine: &str, new: &Roofline) -> io::Result<()> {
    kept.remove(engine);
    while kept.len() >= limits::LATENCY_ENGINES {
        kept.pop_first();
    }
    kept.insert(engine.to_owned(), new.clone());
    let folder = state_dir.join(LATENCIES);
    std::fs::create_dir_all(&folder)?;
    let text = serde_json::to_vec_pretty(&kept).map_err(io::Error::other)?;
    files::replace(&folder.join(FILE), &[text.into()])
}
