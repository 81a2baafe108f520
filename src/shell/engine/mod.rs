//! ONNX Runtime: finding its library, loading it once a process, and running models with it. Behind
//! [`crate::onnx::Engine`] for the rooms that measure, and as [`LiveSession`] for serving.

pub mod cann;
pub mod compiled;
mod convert;
mod elf;
mod error;
mod found;
mod identity;
pub mod library;
mod making;
mod pinned;
mod placed;
mod plugins;
mod preflight;
mod session;
mod shapes;
#[cfg(test)]
pub mod testing;
#[cfg(test)]
mod tests;
mod weights;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use ort::environment::Environment;
use ort::logging::LogLevel;

pub use elf::run_paths;
pub use error::{Looked, PluginError, RuntimeError, Unusable};
pub use found::Found;
pub use identity::alignment;
use identity::identity;
pub use library::{Located, Origin, Search, inspect, locate};
pub use plugins::{Library, OfferedDevice};
pub use preflight::{Preflight, preflight};
pub use session::{Cancel, Dim, EngineOptions, LiveSession, ValueInfo};
pub use weights::{Lent, Pool, Weights};

use self::session::failed;
use crate::config::Provider;
use crate::onnx::{Engine, ExecError, Model, Session, Shapes};

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

    /// The devices of all execution providers that this process has now, those of libraries included that are
    /// registered.
    pub fn devices(&self) -> Vec<OfferedDevice> {
        plugins::devices(self.environment())
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
        if search.check(runtime.library().clone()).is_err() {
            let (loaded, asked) = (loaded.clone(), library::locate(search)?.path);
            return Err(RuntimeError::AlreadyLoaded { loaded, asked });
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

/// Whether an error is a provider's own, and speaks against running the model there in any size.
pub fn is_providers_own(error: &ExecError) -> bool {
    cann::is_to_blame(&error.reason)
}

/// Hands the runtime's log to ours, under the target `ort`.
fn log(level: LogLevel, category: &str, id: &str, location: &str, message: &str) {
    cann::heard(message);
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
    /// The provider's library, from the first use on: it shall not come and go with every session.
    plugin: Arc<OnceLock<Arc<Library>>>,
}

impl OrtEngine {
    /// An engine on `runtime`.
    pub fn new(runtime: &Runtime, options: EngineOptions) -> Self {
        let identity = identity(runtime.library(), &options);
        Self { runtime: runtime.clone(), options, identity, plugin: Arc::default() }
    }

    /// How it loads models.
    pub fn options(&self) -> &EngineOptions {
        &self.options
    }

    /// What runs the operators.
    pub fn provider(&self) -> &Provider {
        &self.options.provider
    }

    /// The provider's library, where it comes from one: checked, loaded and registered.
    ///
    /// # Errors
    /// Where it is not the one that is pinned, or of no use with this runtime.
    pub fn library(&self) -> Result<Option<Arc<Library>>, PluginError> {
        let Provider::Plugin(plugin) = self.provider() else { return Ok(None) };
        if let Some(library) = self.plugin.get() {
            return Ok(Some(Arc::clone(library)));
        }
        let library = Library::of(&self.runtime, plugin)?;
        library.device(plugin)?;
        Ok(Some(Arc::clone(self.plugin.get_or_init(|| library))))
    }

    /// Asks for the provider, and loads what it needs, without a model.
    ///
    /// # Errors
    /// Where there is no such provider here: nothing of it speaks against a model.
    pub fn check(&self) -> Result<(), ExecError> {
        self.ready()?;
        making::check(&self.runtime, &self.options)
    }

    /// Number of channels in which the provider's cores work, where that is known. A plugin is asked its
    /// provider's name, where the configuration does not tell it.
    pub fn alignment(&self) -> Option<usize> {
        let library = self.library().ok().flatten();
        match (self.provider(), library) {
            (Provider::Plugin(plugin), Some(library)) => {
                let device = library.device(plugin).ok()?;
                crate::hardware::alignment(&device.provider)
            }
            (provider, _) => alignment(provider),
        }
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
        self.ready()?;
        LiveSession::open_lent(&self.runtime, model, &self.options, lent)
    }

    /// Loads a model for running, as its concrete type.
    ///
    /// # Errors
    /// As [`Engine::open`].
    pub fn open_live(&self, model: &Model) -> Result<LiveSession, ExecError> {
        self.ready()?;
        LiveSession::open_model(&self.runtime, model, &self.options)
    }
}

impl OrtEngine {
    fn ready(&self) -> Result<(), ExecError> {
        self.library().map(drop).map_err(|error| failed(making::PROVIDER, error))
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
