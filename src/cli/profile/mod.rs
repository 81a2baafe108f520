//! `blochd profile`: what this box is and what works on it.

mod kept;
mod runtimes;
mod table;

use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use blochd::config::{Config, Provider};
use blochd::hardware::{Health, Host};
use blochd::shell::children::{looks, this_program};
use blochd::shell::engine::{self, EngineOptions, Located, OrtEngine, Search, locate};
use blochd::shell::probe::{HostProbe, roofline};
use clap::Args;
use serde_json::{Value, json};

use super::{Code, Failure, OrFail, configured, without_runtime};

/// Show the processors, memory, heat and accelerators of this box, and ONNX Runtime with its execution
/// providers.
///
/// Configuration and environment are read as `blochd run` reads them: `devices` says which vendors' libraries
/// are asked. Exit code 0 where all that was found works; 1 where accelerators are there, or are named, that
/// cannot be read or used; 69 without ONNX Runtime; 70 where it fails to measure; 74 where measurements cannot
/// be kept, or the configuration not be read; 76 where the execution provider that is to be measured is not to
/// be had; 78 for a wrong configuration. What could be found is printed wherever the configuration holds.
#[derive(Debug, Args)]
pub struct Profile {
    /// The configuration. Without: `/etc/blochd/agent.yaml` where it is there, else the defaults.
    #[arg(long, env = "BLOCHD_CONFIG")]
    config: Option<PathBuf>,
    /// Where measurements and runtimes are kept [default: BLOCHD_STATE_DIR, else as the configuration says,
    /// else /var/lib/blochd for root, else ~/.local/state/blochd].
    #[arg(long)]
    state_dir: Option<String>,
    /// ONNX Runtime library, or its folder, instead of the one that is found.
    #[arg(long)]
    runtime_library: Option<String>,
    /// Measure for some seconds what the box computes and moves at most, and keep it in the state directory.
    /// The box should be quiet.
    #[arg(long)]
    roofline: bool,
    /// Threads that are measured with.
    #[arg(long, default_value_t = 1, requires = "roofline",
          value_parser = clap::value_parser!(u16).range(1..=256))]
    threads: u16,
    /// What is measured: cpu, cann, or JSON in the words of the configuration's `cann` and `plugins`,
    /// `{"plugin": {"name": …, "library": …, "sha256": …}}`. Without --roofline: of which the measurements that
    /// are kept are shown.
    #[arg(long, default_value = "cpu")]
    provider: Provider,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Execution providers that ONNX Runtime loads from a library of their own beside it, and the part of its name.
const LOADED: &[(&str, &str)] = &[
    ("CANNExecutionProvider", "cann"),
    ("CUDAExecutionProvider", "cuda"),
    ("TensorrtExecutionProvider", "tensorrt"),
    ("OpenVINOExecutionProvider", "openvino"),
    ("MIGraphXExecutionProvider", "migraphx"),
    ("VitisAIExecutionProvider", "vitisai"),
    ("QNNExecutionProvider", "qnn"),
];

impl Profile {
    pub fn run(self) -> Result<(), Failure> {
        let flags: Vec<_> = [
            configured::flag("--state-dir", "state_dir", self.state_dir.as_deref()),
            configured::flag(
                "--runtime-library",
                "runtime_library",
                self.runtime_library.as_deref(),
            ),
        ]
        .into_iter()
        .flatten()
        .collect();
        let file = configured::file(self.config.clone());
        let loaded =
            configured::load_and_warn(file.as_deref(), &flags).map_err(configured::failed)?;
        let config = loaded.config;
        let search = Search::new(config.runtime_library.clone(), &config.state_dir);
        let search = search.wanting(&self.provider);
        let located = locate(&search);
        let (host, accelerators) = host(&config)?;
        let measured = match &located {
            Ok(_) => self.measured(&search, &config.state_dir),
            Err(_) => Ok(Value::Null),
        };
        let profile = json!({
            "blochd": env!("CARGO_PKG_VERSION"),
            "host": host,
            "accelerators": accelerators,
            "runtime": located.as_ref().ok().map(runtime),
            "runtimes": runtimes::all(
                &search,
                located.as_ref().ok().map(|l| l.path.as_path()),
                config.sandbox,
            ),
            "runtime_error": located.as_ref().err().map(ToString::to_string),
            "roofline": measured.as_ref().unwrap_or(&Value::Null),
        });
        if self.json {
            println!("{profile:#}");
        } else {
            print!("{}", table::render(&profile));
        }
        located.code(Code::Unavailable)?;
        measured?;
        verdict(&host, &profile["accelerators"])
    }

    /// What is measured now, or was before on the same engine; null where nothing was.
    fn measured(&self, search: &Search, state_dir: &Path) -> Result<Value, Failure> {
        let kept = kept::read(state_dir);
        if !self.roofline && kept.is_empty() {
            return Ok(Value::Null);
        }
        let runtime = engine::init(search).map_err(without_runtime)?;
        let engine = |threads: usize| {
            let options = EngineOptions {
                provider: self.provider.clone(),
                intra_op_threads: threads,
                ..EngineOptions::default()
            };
            OrtEngine::new(&runtime, options)
        };
        if self.roofline {
            let threads = usize::from(self.threads);
            let engine = engine(threads);
            engine.check().with_context(|| self.provider.to_string()).code(Code::Provider)?;
            let identity = blochd::onnx::Engine::identity(&engine);
            let measured = roofline::measure(&engine, threads)
                .context("ONNX Runtime does not run what is measured")
                .code(Code::Software)?;
            kept::write(state_dir, kept, &identity, &measured)
                .with_context(|| format!("{} cannot be written", state_dir.display()))
                .code(Code::Io)?;
            return Ok(json!({"engine": identity, "now": true, "measured": measured}));
        }
        let found = kept.into_iter().find(|(identity, measured)| {
            *identity == blochd::onnx::Engine::identity(&engine(measured.threads))
        });
        Ok(found.map_or(
            Value::Null,
            |(identity, measured)| json!({"engine": identity, "now": false, "measured": measured}),
        ))
    }
}

/// The box with all of its accelerators, and how each vendor's were read.
fn host(config: &Config) -> Result<(Host, Value), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the event loop")
        .code(Code::Software)?;
    let program = this_program();
    let looks =
        runtime.block_on(looks::look(&program, Path::new("/"), &config.devices, config.sandbox));
    // A child in which a driver hangs must not hold the end up.
    runtime.shutdown_background();
    let mut host = HostProbe::new().host();
    host.devices = looks.values().flat_map(|look| look.devices.clone()).collect();
    let shown = looks.iter().map(|(vendor, look)| {
        let mut shown = json!(look);
        shown["why"] = json!(look.trouble.as_ref().map(ToString::to_string));
        (vendor.name().to_owned(), shown)
    });
    Ok((host, shown.collect()))
}

fn runtime(located: &Located) -> Value {
    let folder = located.path.parent().unwrap_or(Path::new("/"));
    let providers = located.providers.iter().map(|name| {
        let part = LOADED.iter().find(|(known, _)| known == name);
        // Compiled in is what the library says; whether its other half is there is another matter.
        let library = part.map(|(_, part)| {
            let file = folder.join(format!("libonnxruntime_providers_{part}.so"));
            json!({"path": file, "there": file.is_file()})
        });
        json!({"name": name, "library": library})
    });
    json!({
        "version": located.version, "path": located.path, "origin": located.origin,
        "providers": providers.collect::<Vec<Value>>(),
    })
}

/// Whether all that was found works.
fn verdict(host: &Host, accelerators: &Value) -> Result<(), Failure> {
    let mut wrong: Vec<String> = accelerators
        .as_object()
        .into_iter()
        .flatten()
        .filter_map(|(vendor, look)| Some(format!("{vendor}: {}", look["why"].as_str()?)))
        .collect();
    for device in &host.devices {
        if let Health::Unusable(why) = &device.health {
            wrong.push(format!("{} {} is unusable: {why}", device.vendor, device.index));
        }
    }
    if wrong.is_empty() {
        return Ok(());
    }
    Err(Failure { code: Code::Unmet, error: anyhow!(wrong.join("; ")) })
}
