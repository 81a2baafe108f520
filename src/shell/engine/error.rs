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
        "no usable ONNX Runtime (1.{} or newer) was found; looked at:{}\nrun `blochd runtime \
         fetch` to install one, or `blochd runtime import WHEEL` without network",
        ort::MINOR_VERSION,
        list(looked)
    )]
    NotFound { looked: Vec<Looked> },
    /// The library that the user named cannot be used. No other is taken in its stead.
    #[error(
        "{origin} names {}, which {why}; correct it, or remove it and run `blochd runtime fetch`",
        path.display()
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

fn list(looked: &[Looked]) -> String {
    looked.iter().map(|place| format!("\n  {place}")).collect()
}
