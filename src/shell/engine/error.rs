//! Why there is no ONNX Runtime to work with.

use std::fmt;
use std::path::PathBuf;

use super::library::Origin;

/// Why a file is not an ONNX Runtime that the program can use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// There is no such file.
    #[error("does not exist")]
    Missing,
    /// A directory without the library.
    #[error("holds no libonnxruntime.so")]
    Empty,
    /// The dynamic linker refused the file; carries its words.
    #[error("cannot be loaded as a library: {0}")]
    NotALibrary(String),
    /// A library that does not export `OrtGetApiBase`, or one whose answer makes no sense.
    #[error("is a library, but not ONNX Runtime")]
    NotOnnxRuntime,
    /// A version before the one whose interface the program needs.
    #[error("is ONNX Runtime {version}, too old: 1.{} or newer is needed", ort::MINOR_VERSION)]
    TooOld { version: String },
    /// A build without the execution provider that is wanted.
    #[error("is ONNX Runtime {version}, built without {provider}")]
    Lacks { version: String, provider: String },
}

/// One place that was looked at and what was there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Looked {
    /// Why the place was looked at.
    pub origin: Origin,
    /// The file or directory; `None` where the place was not set.
    pub path: Option<PathBuf>,
    /// What was wrong with it; `None` where the place was not set.
    pub why: Option<Unusable>,
}

impl fmt::Display for Looked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.path, &self.why) {
            (Some(path), Some(why)) => write!(f, "{}: {} {why}", self.origin, path.display()),
            _ => write!(f, "{}: not set", self.origin),
        }
    }
}

/// Why ONNX Runtime could not be loaded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RuntimeError {
    /// No place holds a usable library.
    #[error(
        "no usable ONNX Runtime (1.{} or newer{}) was found; looked at:{}\nrun `blochd runtime \
         fetch{}` to install one, or `blochd runtime import WHEEL` without network",
        ort::MINOR_VERSION,
        with(wants.as_deref()),
        list(looked),
        flag(wants.as_deref())
    )]
    NotFound {
        looked: Vec<Looked>,
        /// The execution provider that it was to have.
        wants: Option<String>,
    },
    /// The library that the user named cannot be used. No other is taken in its stead.
    #[error(
        "{origin} names {}, which {why}; correct it, or remove it and run `blochd runtime fetch{}`",
        path.display(),
        flag(why.lacks())
    )]
    Named { origin: Origin, path: PathBuf, why: Unusable },
    /// A process can hold one ONNX Runtime only.
    #[error(
        "{} is asked for, but this process already runs on {}; restart blochd to change it",
        asked.display(),
        loaded.display()
    )]
    AlreadyLoaded { loaded: PathBuf, asked: PathBuf },
    /// The library was loaded but refused to start.
    #[error("ONNX Runtime at {} does not start: {reason}", path.display())]
    Start { path: PathBuf, reason: String },
}

impl RuntimeError {
    /// Whether there is an ONNX Runtime, and it was built without the provider that is wanted.
    pub fn lacks_provider(&self) -> bool {
        let lacks = |why: &Unusable| why.lacks().is_some();
        match self {
            Self::Named { why, .. } => lacks(why),
            Self::NotFound { looked, .. } => {
                looked.iter().any(|place| place.why.as_ref().is_some_and(lacks))
            }
            Self::AlreadyLoaded { .. } | Self::Start { .. } => false,
        }
    }
}

/// Why a library with an execution provider is not used. None of it speaks against a model.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PluginError {
    #[error("the provider's library {} cannot be read: {reason}", path.display())]
    Unreadable { path: PathBuf, reason: String },
    /// Another file than the one that is pinned; it was not loaded.
    #[error(
        "{} is not the library that is pinned: its SHA-256 is {found}, and {expected} is \
         expected; put the pinned library back, or, where you trust this one, write its SHA-256 \
         into the configuration",
        path.display()
    )]
    OtherFile { path: PathBuf, expected: String, found: String },
    /// What it was when it was hashed, it need not be when it is loaded.
    #[error(
        "{} is not loaded, since others than root and this user may change {}: give it to root \
         (chown root, chmod go-w)",
        path.display(),
        by.display()
    )]
    Exposed { path: PathBuf, by: PathBuf },
    #[error("{} changed while it was loaded: it is not used before its SHA-256 is that of the new \
             file",
        path.display())]
    Changed { path: PathBuf },
    #[error(
        "another file was loaded from {} before, and cannot be put away: restart blochd to use \
         the new one",
        path.display()
    )]
    Stale { path: PathBuf },
    #[error("ONNX Runtime {version} does not take the provider's library {}: \
             {reason}", path.display())]
    Refused { path: PathBuf, version: String, reason: String },
    #[error(
        "{} offers no device with ONNX Runtime {version}; it may need a newer one (`blochd \
         runtime fetch`), or its driver",
        path.display()
    )]
    NoDevice { path: PathBuf, version: String },
    #[error("{} offers no provider {wanted:?}, only {}", path.display(), offered.join(", "))]
    NoProvider { path: PathBuf, wanted: String, offered: Vec<String> },
    #[error(
        "{} offers {found} devices of {provider}: there is none with number {device}, counted \
         from 0",
        path.display()
    )]
    NoSuchDevice { path: PathBuf, provider: String, device: usize, found: usize },
    #[error("{} offers a provider with a name of more than {} bytes: {name}", path.display(),
        crate::limits::PROVIDER_NAME_BYTES)]
    LongName { path: PathBuf, name: String },
    #[error("{provider} of {} does not take what is asked of it: {reason}", path.display())]
    Options { path: PathBuf, provider: String, reason: String },
}

impl Unusable {
    /// The provider that it is built without.
    fn lacks(&self) -> Option<&str> {
        if let Self::Lacks { provider, .. } = self { Some(provider) } else { None }
    }
}

/// `, with CANNExecutionProvider`.
fn with(provider: Option<&str>) -> String {
    provider.map_or_else(String::new, |provider| format!(", with {provider}"))
}

/// How `runtime fetch` is told of the provider that is wanted.
fn flag(provider: Option<&str>) -> &'static str {
    if provider == Some(super::cann::NAME) { " --ep cann" } else { "" }
}

fn list(looked: &[Looked]) -> String {
    looked.iter().map(|place| format!("\n  {place}")).collect()
}
