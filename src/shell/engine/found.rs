//! ONNX Runtime as long as no model wants it: found and known, and not in this process. Its library and what it
//! sets up cost 18 MB that an agent without models does without.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use crate::shell::systemd;

use super::{EngineOptions, Located, Runtime, RuntimeError, Search, identity, init, locate};

use crate::config::Provider;

/// A library that was found usable. Cloning is cheap.
#[derive(Debug, Clone)]
pub struct Found(Arc<Located>);

impl Found {
    /// Finds the library as [`locate`] does, in a process of its own: once loaded, it cannot be put away.
    /// `program` is this one; where it cannot be run, this process looks itself.
    ///
    /// # Errors
    /// As [`locate`].
    pub fn new(search: &Search, program: &Path) -> Result<Self, RuntimeError> {
        let located = match apart(search, program) {
            Some(located) => located,
            // And where it finds nothing, this process has the words for that.
            None => locate(search)?,
        };
        Ok(Self(Arc::new(located)))
    }

    /// The same, of a library with `provider` where there is one, else of whichever is usable.
    ///
    /// # Errors
    /// As [`locate`], for want of any.
    pub fn preferring(
        search: &Search,
        provider: &Provider,
        program: &Path,
    ) -> Result<Self, RuntimeError> {
        match apart(&search.clone().wanting(provider), program) {
            Some(located) => Ok(Self(Arc::new(located))),
            None => Self::new(search, program),
        }
    }

    /// The library: its file, why it was taken, its version and providers.
    pub fn library(&self) -> &Located {
        &self.0
    }

    /// See [`Engine::identity`](crate::onnx::Engine::identity).
    pub fn identity(&self, options: &EngineOptions) -> String {
        identity(&self.0, options)
    }

    /// The runtime itself; the first call loads it.
    ///
    /// # Errors
    /// Where the library is not what it was, or does not start.
    pub fn load(&self) -> Result<Runtime, RuntimeError> {
        let config = Some(self.0.path.clone());
        let (state_dir, system) = (PathBuf::new(), Vec::new());
        init(&Search { config, environment: None, state_dir, system, wants: None })
    }
}

fn apart(search: &Search, program: &Path) -> Option<Located> {
    let mut command = Command::new(program);
    systemd::unmanaged(&mut command);
    command.args(["runtime", "locate", "--state-dir"]).arg(&search.state_dir);
    if let Some(library) = &search.config {
        command.arg("--library").arg(library);
    }
    if let Some(provider) = &search.wants {
        command.arg("--wants").arg(provider);
    }
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    // What the library prints when it is loaded comes before the answer.
    let last = output.stdout.split(|byte| *byte == b'\n').rfind(|line| !line.is_empty())?;
    output.status.success().then(|| serde_json::from_slice(last).ok())?
}
