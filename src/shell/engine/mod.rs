//! ONNX Runtime: finding its library, loading it once a process, and running models with it. Behind
//! [`crate::onnx::Engine`] for the rooms that measure, and as [`LiveSession`] for serving.

mod convert;
mod error;
mod found;
pub mod library;
mod session;
mod shapes;
#[cfg(test)]
pub mod testing;
#[cfg(test)]
mod tests;
mod weights;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use ort::environment::Environment;
use ort::logging::LogLevel;

pub use error::{Looked, RuntimeError, Unusable};
pub use found::Found;
pub use library::{Located, Origin, Search, inspect, locate};
pub use session::{Cancel, Dim, EngineOptions, LiveSession, ValueInfo};
pub use weights::{Lent, Pool, Weights};

use crate::hardware;
use crate::onnx::{Engine, ExecError, Model, Session, Shapes};

/// What runs the operators of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Provider {
    /// ONNX Runtime's own kernels on the CPU.
    #[default]
    Cpu,
}

impl Provider {
    /// Number of channels in which its cores work; see [`hardware::alignment`].
    pub fn alignment(self) -> Option<usize> {
        hardware::alignment(&self.to_string())
    }
}

impl fmt::Display for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cpu => "CPUExecutionProvider",
        })
    }
}

/// The process's ONNX Runtime. Cloning is cheap; it is never unloaded.
#[derive(Debug, Clone)]
pub struct Runtime(Arc<Loaded>);

#[derive(Debug)]
struct Loaded {
    environment: Environment,
    library: Located,
}

impl Runtime {
    /// The library: its file, why it was taken, its version and providers.
    pub fn library(&self) -> &Located {
        &self.0.library
    }

    fn environment(&self) -> &Environment {
        &self.0.environment
    }
}

/// One a process: ONNX Runtime allows a single environment, and the library cannot be exchanged.
static RUNTIME: Mutex<Option<Runtime>> = Mutex::new(None);

/// Finds and loads ONNX Runtime. Further calls return the one that runs.
///
/// # Errors
/// Where no usable library is found, the named one is not usable, another one is already loaded, or it
/// does not start. Nothing is kept of a failed call: it can be repeated after `blochd runtime fetch`.
pub fn init(search: &Search) -> Result<Runtime, RuntimeError> {
    let mut slot = RUNTIME.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(runtime) = slot.as_ref() {
        let loaded = &runtime.library().path;
        if let Some((_, named)) = search.named() {
            let asked = search.candidates().into_iter().next().map(|(_, file)| file);
            let asked = asked.unwrap_or_else(|| named.to_owned());
            if asked.canonicalize().ok().as_ref() != Some(loaded) {
                return Err(RuntimeError::AlreadyLoaded { loaded: loaded.clone(), asked });
            }
        }
        return Ok(runtime.clone());
    }
    let library = library::locate(search)?;
    let start = |reason: String| RuntimeError::Start { path: library.path.clone(), reason };
    let environment = ort::init_from(&library.path)
        .map_err(|error| start(error.to_string()))?
        .with_name("blochd")
        .with_telemetry(false)
        .with_logger(Arc::new(log))
        .build()
        .map_err(|error| start(error.to_string()))?;
    // Below warnings the runtime writes thousands of lines a model: they are not even formatted unless
    // somebody listens.
    let level = if tracing::enabled!(target: "ort", tracing::Level::DEBUG) {
        LogLevel::Verbose
    } else {
        LogLevel::Warning
    };
    environment.set_log_level(level);
    let runtime = Runtime(Arc::new(Loaded { environment, library }));
    *slot = Some(runtime.clone());
    Ok(runtime)
}

/// Hands the runtime's log to ours, under the target `ort`.
fn log(level: LogLevel, category: &str, id: &str, location: &str, message: &str) {
    match level {
        LogLevel::Verbose => tracing::trace!(target: "ort", category, id, location, "{message}"),
        LogLevel::Info => tracing::debug!(target: "ort", category, id, location, "{message}"),
        LogLevel::Warning => tracing::warn!(target: "ort", category, id, location, "{message}"),
        LogLevel::Error | LogLevel::Fatal => {
            tracing::error!(target: "ort", category, id, location, "{message}");
        }
    }
}

/// One execution provider with its options, as the rooms that measure see it.
#[derive(Debug, Clone)]
pub struct OrtEngine {
    runtime: Runtime,
    options: EngineOptions,
    identity: String,
}

impl OrtEngine {
    /// An engine on `runtime`.
    pub fn new(runtime: &Runtime, options: EngineOptions) -> Self {
        let identity = identity(runtime.library(), &options);
        Self { runtime: runtime.clone(), options, identity }
    }

    /// What runs the operators.
    pub fn provider(&self) -> Provider {
        self.options.provider
    }

    /// The runtime under it.
    pub fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    /// Loads a model for running, as its concrete type, with constants that others hold.
    ///
    /// # Errors
    /// As [`Engine::open`].
    pub fn open_lent(
        &self,
        model: &Model,
        lent: Option<&Arc<Lent>>,
    ) -> Result<LiveSession, ExecError> {
        LiveSession::open_lent(&self.runtime, model, &self.options, lent)
    }

    /// Loads a model for running, as its concrete type.
    ///
    /// # Errors
    /// As [`Engine::open`].
    pub fn open_live(&self, model: &Model) -> Result<LiveSession, ExecError> {
        LiveSession::open_model(&self.runtime, model, &self.options)
    }
}

impl Engine for OrtEngine {
    fn identity(&self) -> String {
        self.identity.clone()
    }

    fn shapes(&self, model: &Model, fixed: &BTreeMap<String, usize>) -> Result<Shapes, ExecError> {
        shapes::infer(&self.runtime, model, fixed)
    }

    fn open(&self, model: &Model) -> Result<Box<dyn Session>, ExecError> {
        Ok(Box::new(self.open_live(model)?))
    }
}

/// What latencies of models that run with `options` hold for: CPU, provider, version of the library, threads.
fn identity(library: &Located, options: &EngineOptions) -> String {
    let threads = options.intra_op_threads.max(1);
    let spinning = if options.spinning { ", spinning" } else { "" };
    format!(
        "{} / {} / onnxruntime {} / {threads} thread{}{spinning}",
        cpu_model(),
        options.provider,
        library.version,
        if threads == 1 { "" } else { "s" },
    )
}

/// The CPU's own name of itself.
fn cpu_model() -> String {
    let kind = sysinfo::CpuRefreshKind::nothing();
    let system =
        sysinfo::System::new_with_specifics(sysinfo::RefreshKind::nothing().with_cpu(kind));
    let brand =
        system.ok().and_then(|system| Some(system.cpus().first()?.brand().trim().to_owned()));
    let known = brand.filter(|brand| !brand.is_empty());
    known.unwrap_or_else(|| format!("unknown {} CPU", std::env::consts::ARCH))
}
