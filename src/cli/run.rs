//! `blochd run`: the agent in the foreground, as systemd starts it.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use blochd::config::{Config, Flag, Layers, LogFormat, LogLevel, Text};
use blochd::limits;
use blochd::shell::agent::{self, AgentError, Setup};
use blochd::shell::probe::HostProbe;
use blochd::shell::{files, places};
use clap::Args;
use serde_json::Value;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use super::{Code, Failure, OrFail};

/// Serve the model directory, make ladders, hold the budgets.
///
/// Every setting of the configuration can also be given by an environment variable
/// (`BLOCHD_HTTP_ADDRESS`, levels joined by `__`) or by `--set path=value`; a flag wins over a variable, and
/// that over the file. SIGTERM ends it after what is in flight, SIGHUP reads the configuration again. Exit
/// code 78 for a wrong configuration, 69 without ONNX Runtime or when a port is taken, 74 where the state or
/// the model directory cannot be written.
#[derive(Debug, Args)]
pub struct Run {
    /// The configuration. Without: `/etc/blochd/agent.yaml` where it is there, else the defaults.
    #[arg(long, env = "BLOCHD_CONFIG")]
    config: Option<PathBuf>,
    /// Where models are dropped [default: `models` in the state directory].
    #[arg(long)]
    model_dir: Option<String>,
    /// Where ladders, caches and runtimes are kept [default: /var/lib/blochd for root, else
    /// ~/.local/state/blochd].
    #[arg(long)]
    state_dir: Option<String>,
    /// Address of the Open Inference Protocol [default: 127.0.0.1:8000].
    #[arg(long)]
    http_address: Option<String>,
    /// Address of the metrics page, at /metrics [default: 127.0.0.1:8002].
    #[arg(long)]
    metrics_address: Option<String>,
    /// ONNX Runtime library, or its folder, instead of the one that is found.
    #[arg(long)]
    runtime_library: Option<String>,
    /// error, warn, info, debug or trace [default: info].
    #[arg(long)]
    log_level: Option<String>,
    /// text or json [default: text].
    #[arg(long)]
    log_format: Option<String>,
    /// Any setting: `--set defaults.budget="p99: 40ms"`. May be given several times.
    #[arg(long = "set", value_name = "PATH=VALUE")]
    settings: Vec<String>,
}

/// Looked for when no configuration is named.
const SYSTEM_CONFIG: &str = "/etc/blochd/agent.yaml";

/// What the status tells of the box is at most this old.
const HOST_AGE: Duration = Duration::from_secs(1);

impl Run {
    pub fn run(self) -> Result<(), Failure> {
        let file = self.file();
        let flags = self.flags().code(Code::Config)?;
        let config = load(file.as_deref(), &flags).code(Code::Config)?;
        log(&config);
        let reread_file = file.clone();
        let reread = Box::new(move || {
            load(reread_file.as_deref(), &flags).map_err(|error| format!("{error:#}"))
        });
        let hardware = Box::new(hardware());
        let setup = Setup { config, config_file: file, reread, hardware };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .context("cannot start the event loop")
            .code(Code::Software)?;
        let ended = runtime.block_on(agent::run(setup));
        // A load that hangs must not hold the end up.
        runtime.shutdown_background();
        ended.map_err(|error| {
            let code = match &error {
                AgentError::Runtime(_) | AgentError::Listen { .. } => Code::Unavailable,
                AgentError::Store(_) | AgentError::ModelDir { .. } => Code::Io,
                AgentError::Signals(_) => Code::Software,
            };
            let remedy = match &error {
                AgentError::Store(_) => {
                    "; the agent must be able to write to its state directory: --state-dir or \
                     BLOCHD_STATE_DIR name another"
                }
                AgentError::ModelDir { .. } => "; --model-dir or BLOCHD_MODEL_DIR name another",
                AgentError::Runtime(_) | AgentError::Listen { .. } | AgentError::Signals(_) => "",
            };
            Failure { code, error: anyhow!("{error}{remedy}") }
        })
    }

    fn file(&self) -> Option<PathBuf> {
        let system = || Some(PathBuf::from(SYSTEM_CONFIG)).filter(|path| path.is_file());
        self.config.clone().or_else(system)
    }

    fn flags(&self) -> anyhow::Result<Vec<Flag>> {
        let named = [
            ("--model-dir", "model_dir", &self.model_dir),
            ("--state-dir", "state_dir", &self.state_dir),
            ("--http-address", "http_address", &self.http_address),
            ("--metrics-address", "metrics_address", &self.metrics_address),
            ("--runtime-library", "runtime_library", &self.runtime_library),
            ("--log-level", "log_level", &self.log_level),
            ("--log-format", "log_format", &self.log_format),
        ];
        let flag = |flag: &str, path: &str, text: &str| Flag {
            flag: flag.to_owned(),
            path: path.to_owned(),
            text: text.to_owned(),
        };
        let mut flags: Vec<Flag> = named
            .iter()
            .filter_map(|(name, path, value)| Some(flag(name, path, value.as_deref()?)))
            .collect();
        for setting in &self.settings {
            let (path, value) = setting
                .split_once('=')
                .ok_or_else(|| anyhow!("--set {setting}: write a setting as path=value"))?;
            flags.push(flag(&format!("--set {path}"), path, value));
        }
        Ok(flags)
    }
}

/// Reads the layers anew: file, environment, flags.
fn load(file: Option<&Path>, flags: &[Flag]) -> anyhow::Result<Config> {
    let text = match file {
        None => None,
        Some(path) => Some(
            files::read_text(path, limits::CONFIG_FILE_BYTES)
                .with_context(|| format!("cannot read the configuration {}", path.display()))?,
        ),
    };
    let name = file.map(|path| path.display().to_string()).unwrap_or_default();
    let state_dir = places::state_dir();
    let mut base = Config::default();
    base.model_dir = state_dir.join("models");
    base.state_dir = state_dir;
    let environment: BTreeMap<String, String> = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    let layers = Layers {
        base,
        file: text.as_deref().map(|text| Text { file: &name, text }),
        environment: &environment,
        flags,
    };
    let loaded = layers.load()?;
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
    let mut config = loaded.config;
    // A relative directory is meant from where its file stands, or from here where it is a flag.
    let from = file.and_then(Path::parent).map(Path::to_owned).unwrap_or_default();
    for (dir, flag) in [(&mut config.model_dir, "model_dir"), (&mut config.state_dir, "state_dir")]
    {
        if dir.is_relative() && !flags.iter().any(|given| given.path == flag) {
            *dir = from.join(&dir);
        }
    }
    Ok(config)
}

fn log(config: &Config) {
    let level = match config.log_level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    // ONNX Runtime says thousands of lines a model below warnings; RUST_LOG asks for them.
    let filter = EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| EnvFilter::new(format!("{level},ort=warn")));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // Colours are for people: a journal or a file would keep their codes.
    let builder = builder.with_ansi(std::io::stderr().is_terminal());
    // A logger that is there already is the caller's.
    let _ = match config.log_format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
}

/// What the status tells of the box. Every turn of the agent asks, and the answer costs a millisecond: it is
/// kept for a second.
fn hardware() -> impl Fn() -> Value + Send {
    let kept = RefCell::new((HostProbe::new(), None::<(Instant, Value)>));
    move || {
        let (probe, last) = &mut *kept.borrow_mut();
        match last {
            Some((at, host)) if at.elapsed() < HOST_AGE => host.clone(),
            _ => {
                // Numbers, texts and lists of them always have a form in JSON.
                let host = serde_json::to_value(probe.host()).unwrap_or(Value::Null);
                *last = Some((Instant::now(), host.clone()));
                host
            }
        }
    }
}
