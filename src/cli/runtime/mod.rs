//! `blochd runtime`: fetches, imports, lists and tries ONNX Runtime.

mod check;

use std::collections::BTreeSet;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::Duration;

use blochd::shell::engine::{Search, cann, inspect, locate};
use blochd::shell::supply::{self, Build, Installed, SupplyError};
use clap::{Args, Subcommand, ValueEnum};
use indicatif::ProgressBar;
use serde_json::json;

use check::Check;

use super::{Code, Failure, OrFail, configured};

/// Get ONNX Runtime, or see which one is used.
///
/// Taken is the first that is usable: the one that the configuration or a flag names, the one that
/// ORT_DYLIB_PATH names, the newest in the state directory, one of the system. Where an Ascend is to be used,
/// only those count that are built with CANN. Configuration and environment are read as `blochd run` reads
/// them. Exit code 65 for a wheel that is none, 69 where there is no runtime or no pip to fetch it with, 74
/// where files cannot be read or written, 78 for a wrong configuration.
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
        /// The execution provider that it is to have besides the CPU's: cann for Ascend.
        #[arg(long, value_enum, default_value_t = Ep::Cpu)]
        ep: Ep,
        /// The version [default: the pinned one].
        #[arg(long)]
        version: Option<String>,
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
    /// Show every ONNX Runtime on this machine with its execution providers, and which one is used.
    List {
        /// Which one is used where this execution provider is wanted.
        #[arg(long, value_enum, default_value_t = Ep::Cpu)]
        ep: Ep,
    },
    /// Try whether an execution provider can be used here, with a model of one operator: what is missing is
    /// told with what to do about it. Compilers of accelerators take some seconds for it.
    Check(Check),
    /// One line of JSON: the library that is used.
    #[command(hide = true)]
    Locate {
        #[arg(long)]
        library: Option<PathBuf>,
        /// The execution provider that it must have, by ONNX Runtime's name.
        #[arg(long)]
        wants: Option<String>,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Ep {
    Cpu,
    Cann,
}

impl Ep {
    fn build(self) -> Build {
        match self {
            Self::Cpu => Build::Cpu,
            Self::Cann => Build::Cann,
        }
    }

    /// What the search must find; nothing where every library will do.
    fn wants(self) -> Option<String> {
        (self == Self::Cann).then(|| cann::NAME.to_owned())
    }
}

impl Runtime {
    pub fn run(self) -> Result<(), Failure> {
        // The agent asks; it has read its configuration.
        if let (What::Locate { library, wants }, Some(state)) = (&self.what, &self.state_dir) {
            let search = Search::new(library.clone(), Path::new(state));
            let located = locate(&Search { wants: wants.clone(), ..search });
            let located = located.code(Code::Unavailable)?;
            println!("{}", serde_json::to_string(&located).code(Code::Software)?);
            return Ok(());
        }
        let flag = configured::flag("--state-dir", "state_dir", self.state_dir.as_deref());
        let flags: Vec<_> = flag.into_iter().collect();
        let file = configured::file(self.config);
        let loaded =
            configured::load_and_warn(file.as_deref(), &flags).map_err(configured::failed)?;
        let config = loaded.config;
        let state = config.state_dir;
        match self.what {
            What::Fetch { ep, version, pip } => {
                let build = ep.build();
                let spinner = std::io::stderr().is_terminal().then(ProgressBar::new_spinner);
                if let Some(spinner) = &spinner {
                    spinner.set_message(format!("fetching {} with pip", build.package()));
                    spinner.enable_steady_tick(Duration::from_millis(120));
                }
                let installed = supply::fetch(&state, build, version.as_deref(), pip.as_deref());
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
            What::Check(check) => {
                let named = check.runtime_library.clone().or(config.runtime_library);
                check.run(Search::new(named, &state), self.json)
            }
            What::List { ep } => {
                let search = Search::new(config.runtime_library, &state);
                list(&Search { wants: ep.wants(), ..search }, self.json)
            }
            What::Locate { wants, .. } => {
                let search = Search::new(config.runtime_library, &state);
                list(&Search { wants, ..search }, self.json)
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
        let Installed { package, version, dir, .. } = installed;
        println!("{package} {version} {how} {}", dir.display());
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
