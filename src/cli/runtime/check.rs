//! `blochd runtime check`: tries an execution provider with a model of one operator.

use anyhow::Context;
use blochd::config::Provider;
use blochd::shell::children::confine::Needs;
use blochd::shell::engine::{self, EngineOptions, OrtEngine, Search, preflight};
use clap::Args;
use serde_json::json;

use crate::cli::sandbox::SandboxArgs;
use crate::cli::{Code, Failure, OrFail};

#[derive(Debug, Args)]
pub struct Check {
    /// cann, cpu, or JSON in the words of the configuration's `cann` and `plugins`:
    /// `{"plugin": {"name": …, "library": …, "sha256": …}}`.
    #[arg(default_value = "cann")]
    provider: Provider,
    /// Load the provider, and compile and run nothing.
    #[arg(long)]
    load_only: bool,
    /// ONNX Runtime library, or its folder, instead of the one that is found.
    #[arg(long)]
    pub runtime_library: Option<std::path::PathBuf>,
    #[command(flatten)]
    sandbox: SandboxArgs,
}

impl Check {
    pub fn run(&self, search: Search, as_json: bool) -> Result<(), Failure> {
        let search = search.wanting(&self.provider);
        // Providers look for libraries, and for compiled models, in the working directory: this one is nobody
        // else's.
        let folder = match self.sandbox.scratch() {
            Some(scratch) => tempfile::tempdir_in(scratch),
            None => tempfile::tempdir(),
        };
        let folder = folder.context("a temporary folder cannot be made").code(Code::Io)?;
        std::env::set_current_dir(folder.path()).code(Code::Io)?;
        let mut needs = Needs::default();
        needs.runtime(&search);
        needs.provider(&self.provider);
        needs.write.push(folder.path().to_owned());
        self.sandbox.begin(needs, false)?;
        let runtime = engine::init(&search).code(Code::Unavailable)?;
        let options = EngineOptions { provider: self.provider.clone(), ..EngineOptions::default() };
        let tried = preflight(&OrtEngine::new(&runtime, options), !self.load_only);
        // Its folder goes with it.
        std::env::set_current_dir("/").code(Code::Io)?;
        let library = runtime.library();
        if as_json {
            let told = tried.as_ref().ok();
            let line = json!({
                "provider": self.provider, "version": library.version, "library": library.path,
                "load_ms": told.map(|told| told.load.as_secs_f64() * 1e3),
                "first_run_ms": told.and_then(|t| t.first_run).map(|t| t.as_secs_f64() * 1e3),
                "why": tried.as_ref().err().map(ToString::to_string),
            });
            println!("{line}");
        } else if let Ok(told) = &tried {
            let name = self.provider.execution_provider();
            let seconds = told.load.as_secs_f64();
            println!("{name} of ONNX Runtime {} loads in {seconds:.1} s", library.version);
            if let Some(first) = told.first_run {
                let seconds = first.as_secs_f64();
                println!(
                    "one operator is compiled and run in {seconds:.1} s, and its result is right"
                );
            }
        }
        tried.map(drop).code(Code::Unavailable)
    }
}
