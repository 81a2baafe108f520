//! What runs a model, and where that is found: flags of every command that runs one.

use std::path::PathBuf;

use blochd::config::Provider;
use blochd::shell::engine::Search;
use blochd::shell::places;
use clap::Args;

#[derive(Debug, Args)]
pub struct ProviderArgs {
    /// What runs the model: cpu, cann, or JSON in the words of the configuration's `cann` and `plugins`:
    /// `{"plugin": {"name": …, "library": …, "sha256": …}}`.
    #[arg(long, default_value = "cpu")]
    pub provider: Provider,
    /// ONNX Runtime library, instead of the one that is found.
    #[arg(long)]
    pub runtime: Option<PathBuf>,
    /// Where runtimes, measured latencies and finished spectra are kept [default: BLOCHD_STATE_DIR, else
    /// /var/lib/blochd for root, else ~/.local/state/blochd].
    #[arg(long)]
    pub state_dir: Option<PathBuf>,
}

impl ProviderArgs {
    /// The state directory.
    pub fn state(&self) -> PathBuf {
        self.state_dir.clone().unwrap_or_else(places::state_dir)
    }

    /// Where ONNX Runtime is looked for.
    pub fn search(&self) -> Search {
        Search::new(self.runtime.clone(), &self.state()).wanting(&self.provider)
    }
}
