//! `blochd runtime`: fetches, imports and lists ONNX Runtime.

use std::collections::BTreeSet;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::Duration;

use blochd::shell::engine::{Search, inspect, locate};
use blochd::shell::supply::{self, Installed, RUNTIME_VERSION, SupplyError};
use clap::{Args, Subcommand};
use indicatif::ProgressBar;
use serde_json::json;

use super::{Code, Failure, OrFail, configured};

/// Get ONNX Runtime, or see which one is used.
///
/// Taken is the first that is usable: the one that the configuration or a flag names, the one that
/// ORT_DYLIB_PATH names, the newest in the state directory, one of the system. Configuration and environment
/// are read as `blochd run` reads them. Exit code 65 for a wheel that is none, 69 where there is no runtime or
/// no pip to fetch it with, 74 where files cannot be written, 78 for a wrong configuration.
#[derive(Debug, Args)]
pub struct Runtime {
    #[command(subcommand)]
    what: What,
    /// The configuration. Without: `/etc/blochd/agent.yaml` where it is there, else the defaults.
    #[arg(long, env = "BLOCHD_CONFIG", global = true)]
    config: Option<PathBuf>,
    /// Where runtimes are kept [default: BLOCHD_STATE_DIR, else as the configuration says, else
    /// /var/lib/blochd for root, else ~/.local/state/blochd].
    #[arg(long, global = true)]
    state_dir: Option<String>,
    /// Print JSON.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Download the pinned ONNX Runtime with pip, check it and install its libraries.
    Fetch {
        /// The version.
        #[arg(long, default_value = RUNTIME_VERSION)]
        version: String,
        /// How pip is called.
        #[arg(long, value_name = "COMMAND")]
        pip: Option<String>,
    },
    /// Install from a wheel, or from a folder with the libraries, without network.
    Import {
        /// The wheel or folder.
        from: PathBuf,
        /// Take libraries whose hash this program does not list.
        #[arg(long)]
        allow_unlisted: bool,
    },
    /// Show every ONNX Runtime on this machine, and which one is used.
    List,
    /// One line of JSON: the library that is used.
    #[command(hide = true)]
    Locate {
        #[arg(long)]
        library: Option<PathBuf>,
    },
}

impl Runtime {
    pub fn run(self) -> Result<(), Failure> {
        // The agent asks; it has read its configuration.
        if let (What::Locate { library }, Some(state)) = (&self.what, &self.state_dir) {
            let located = locate(&Search::new(library.clone(), Path::new(state)));
            let located = located.code(Code::Unavailable)?;
            println!("{}", serde_json::to_string(&located).code(Code::Software)?);
            return Ok(());
        }
        let flag = configured::flag("--state-dir", "state_dir", self.state_dir.as_deref());
        let flags: Vec<_> = flag.into_iter().collect();
        let file = configured::file(self.config);
        let loaded = configured::load_and_warn(file.as_deref(), &flags).code(Code::Config)?;
        let config = loaded.config;
        let state = config.state_dir;
        match self.what {
            What::Fetch { version, pip } => {
                let spinner = std::io::stderr().is_terminal().then(ProgressBar::new_spinner);
                if let Some(spinner) = &spinner {
                    spinner.set_message(format!("fetching ONNX Runtime {version} with pip"));
                    spinner.enable_steady_tick(Duration::from_millis(120));
                }
                let installed = supply::fetch(&state, &version, pip.as_deref());
                if let Some(spinner) = spinner {
                    spinner.finish_and_clear();
                }
                installed_says(
                    &installed.map_err(|error| failure(error, Code::Unavailable))?,
                    self.json,
                )
            }
            What::Import { from, allow_unlisted } => {
                let installed = supply::import(&state, &from, allow_unlisted);
                installed_says(&installed.map_err(|error| failure(error, Code::Data))?, self.json)
            }
            What::List | What::Locate { .. } => {
                list(&Search::new(config.runtime_library, &state), self.json)
            }
        }
    }
}

/// Files that cannot be read or written are that; everything else is `otherwise`.
fn failure(error: SupplyError, otherwise: Code) -> Failure {
    let code = match &error {
        SupplyError::Io { .. } => Code::Io,
        SupplyError::NoPip { .. }
        | SupplyError::Pip { .. }
        | SupplyError::NotAWheel { .. }
        | SupplyError::Unlisted { .. }
        | SupplyError::NoSuchVersion { .. } => otherwise,
    };
    Failure { code, error: error.into() }
}

fn installed_says(installed: &Installed, as_json: bool) -> Result<(), Failure> {
    if as_json {
        println!("{}", serde_json::to_string(installed).code(Code::Software)?);
    } else {
        let how = if installed.already { "is there already in" } else { "was installed in" };
        println!("ONNX Runtime {} {how} {}", installed.version, installed.dir.display());
    }
    Ok(())
}

fn list(search: &Search, as_json: bool) -> Result<(), Failure> {
    let used = locate(search);
    let used_path = used.as_ref().ok().map(|located| located.path.clone());
    let mut shown = BTreeSet::new();
    let mut lines = Vec::new();
    for (origin, path) in search.candidates() {
        let real = path.canonicalize().unwrap_or_else(|_| path.clone());
        if !shown.insert(real) {
            continue;
        }
        let found = inspect(&path, origin);
        let in_use = found.as_ref().is_ok_and(|found| Some(&found.path) == used_path.as_ref());
        if as_json {
            lines.push(match &found {
                Ok(found) => json!({"in_use": in_use, "library": found}),
                Err(error) => json!({"in_use": false, "path": path, "error": error.to_string()}),
            });
            continue;
        }
        let mark = if in_use { "*" } else { " " };
        match found {
            Ok(found) => println!(
                "{mark} {:8} {}  ({}; {})",
                found.version,
                found.path.display(),
                found.origin,
                found.providers.join(", ")
            ),
            Err(error) => println!("{mark} -        {}  (not usable: {error})", path.display()),
        }
    }
    if as_json {
        println!("{}", json!(lines));
    }
    used.map(|_| ()).code(Code::Unavailable)
}
