//! `blochd run`: the agent in the foreground, as systemd starts it.

use std::cell::RefCell;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use blochd::config::{Flag, Loaded, Problem};
use blochd::shell::agent::{self, AgentError, ConfigFile, Setup};
use blochd::shell::cpus;
use blochd::shell::probe::HostProbe;
use blochd::shell::store::KeptBundle;
use blochd::shell::systemd;
use clap::Args;
use serde_json::Value;

use super::{Code, Failure, OrFail, configured, log};

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
    /// Address of the Open Inference Protocol over REST [default: 127.0.0.1:8000].
    #[arg(long)]
    http_address: Option<String>,
    /// The same over gRPC, or `none` [default: 127.0.0.1:8001].
    #[arg(long)]
    grpc_address: Option<String>,
    /// Unix socket of both, or `none` [default: blochd.sock in the runtime directory that systemd gives].
    #[arg(long)]
    unix_socket: Option<String>,
    /// Where models are loaded and unloaded: an address, `none`, or `same` for the ports of inference [default:
    /// 127.0.0.1:8003].
    #[arg(long)]
    admin_address: Option<String>,
    /// Address of the metrics page, at /metrics [default: 127.0.0.1:8002].
    #[arg(long)]
    metrics_address: Option<String>,
    /// ONNX Runtime library, or its folder, instead of the one that is found.
    #[arg(long)]
    runtime_library: Option<String>,
    /// error, warn, info, debug or trace [default: info].
    #[arg(long)]
    log_level: Option<String>,
    /// auto, text, json or journald [default: auto].
    #[arg(long)]
    log_format: Option<String>,
    /// Any setting: `--set defaults.budget="p99: 40ms"`. May be given several times.
    #[arg(long = "set", value_name = "PATH=VALUE")]
    settings: Vec<String>,
}

/// What the status tells of the box is at most this old.
const HOST_AGE: Duration = Duration::from_secs(1);

impl Run {
    pub fn run(self) -> Result<(), Failure> {
        // Before anything else is opened: the sockets are known by their numbers.
        let handed = systemd::take();
        let file = configured::file(self.config.clone());
        let flags = self.flags().code(Code::Config)?;
        // Looked at before it is read: what is written meanwhile is read again.
        let config_file = file.clone().map(ConfigFile::new);
        let loaded = configured::load(file.as_deref(), &flags).code(Code::Config)?;
        let Loaded { config, warnings, .. } = loaded;
        cpus::check(&config).code(Code::Config)?;
        let log_level = log::begin(&config);
        warn(&warnings);
        let told = RefCell::new(warnings);
        let reread = Box::new(move |bundle: Option<&KeptBundle>| {
            let loaded = configured::load_with(file.as_deref(), &flags, bundle);
            let loaded = loaded.map_err(|error| format!("{error:#}"))?;
            let Loaded { config, warnings, .. } = loaded;
            cpus::check(&config).map_err(|error| error.to_string())?;
            // What was told before is known.
            if *told.borrow() != warnings {
                warn(&warnings);
                told.replace(warnings);
            }
            Ok(config)
        });
        let hardware = Box::new(hardware());
        let setup = Setup { config, config_file, reread, log_level, hardware, handed };
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
                AgentError::Runtime(_) | AgentError::Listen { .. } | AgentError::Socket { .. } => {
                    Code::Unavailable
                }
                AgentError::Exposed { .. } | AgentError::Gate(_) => Code::Config,
                AgentError::Handed { .. } | AgentError::Watchdog(_) => Code::Software,
                AgentError::Store(_) | AgentError::ModelDir { .. } => Code::Io,
                AgentError::Signals(_) | AgentError::Spans(_) => Code::Software,
                AgentError::SessionsHang(_) => Code::Software,
            };
            let remedy = match &error {
                AgentError::Store(_) => {
                    "; the agent must be able to write to its state directory: --state-dir or \
                     BLOCHD_STATE_DIR name another"
                }
                AgentError::ModelDir { .. } => "; --model-dir or BLOCHD_MODEL_DIR name another",
                AgentError::Runtime(_)
                | AgentError::Listen { .. }
                | AgentError::Socket { .. }
                | AgentError::Handed { .. }
                | AgentError::Exposed { .. }
                | AgentError::Gate(_)
                | AgentError::Watchdog(_)
                | AgentError::Signals(_)
                | AgentError::Spans(_)
                | AgentError::SessionsHang(_) => "",
            };
            Failure { code, error: anyhow!("{error}{remedy}") }
        })
    }

    fn flags(&self) -> anyhow::Result<Vec<Flag>> {
        let named = [
            ("--model-dir", "model_dir", &self.model_dir),
            ("--state-dir", "state_dir", &self.state_dir),
            ("--http-address", "http_address", &self.http_address),
            ("--grpc-address", "grpc_address", &self.grpc_address),
            ("--unix-socket", "unix_socket", &self.unix_socket),
            ("--admin-address", "admin_address", &self.admin_address),
            ("--metrics-address", "metrics_address", &self.metrics_address),
            ("--runtime-library", "runtime_library", &self.runtime_library),
            ("--log-level", "log_level", &self.log_level),
            ("--log-format", "log_format", &self.log_format),
        ];
        let mut flags: Vec<Flag> = named
            .iter()
            .filter_map(|(name, path, value)| configured::flag(name, path, value.as_deref()))
            .collect();
        for setting in &self.settings {
            let (path, value) = setting
                .split_once('=')
                .ok_or_else(|| anyhow!("--set {setting}: write a setting as path=value"))?;
            flags.extend(configured::flag(&format!("--set {path}"), path, Some(value)));
        }
        Ok(flags)
    }
}

fn warn(warnings: &[Problem]) {
    for warning in warnings {
        tracing::warn!("{warning}");
    }
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
