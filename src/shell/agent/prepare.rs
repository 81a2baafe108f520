//! Loading and trying variants: what happens before anything is put into service.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::event::{Opened, Prepared, Unfit};
use crate::limits;
use crate::onnx::Engine;
use crate::protocol::Signature;
use crate::shell::children::trial::{TrialJob, TrialReport, attempt};
use crate::shell::children::{Wish, this_program};
use crate::shell::engine::{EngineOptions, OrtEngine, Runtime};
use crate::shell::models;
use crate::shell::slot::Runner;
use crate::units::Digest;

/// How variants are loaded and tried.
#[derive(Clone)]
pub struct Loader {
    pub runtime: Runtime,
    pub library: PathBuf,
    pub threads: usize,
    pub instances: usize,
    /// Wall time and memory of a trial.
    pub trial_timeout: Duration,
    pub trial_memory: Option<u64>,
    /// What is not to be tried again, and why.
    pub quarantined: Arc<BTreeMap<Digest, String>>,
}

impl Loader {
    fn engine(&self) -> OrtEngine {
        let options = EngineOptions { intra_op_threads: self.threads, ..EngineOptions::default() };
        OrtEngine::new(&self.runtime, options)
    }

    /// Device, provider and runtime version: what latencies hold for.
    pub fn identity(&self) -> String {
        self.engine().identity()
    }

    /// Channels in which the provider's cores work, where that is known.
    pub fn alignment(&self) -> Option<usize> {
        self.engine().provider().alignment()
    }

    /// Reads, tries and loads a dense model.
    pub async fn prepare(self, path: PathBuf) -> Result<Box<Prepared>, Unfit> {
        let (file, loader) = (path.clone(), self.clone());
        let digest = blocking(move || loader.digest(&file)).await?;
        if let Some(reason) = self.quarantined.get(&digest) {
            let reason = format!("{} is quarantined: {reason}", path.display());
            return Err(Unfit { digest: Some(digest), reason, for_good: false });
        }
        let unfit = match self.open_variant(&path, digest).await {
            Ok((opened, signature)) => {
                return Ok(Box::new(Prepared { digest, signature, opened }));
            }
            Err(unfit) => unfit,
        };
        if !unfit.for_good {
            return Err(unfit);
        }
        // What was written over while it was tried is not to blame for how that went.
        let file = path.clone();
        let now = blocking(move || self.digest(&file)).await;
        if now.is_ok_and(|now| now == digest) {
            return Err(unfit);
        }
        let reason = format!("{} changed while it was tried: {}", path.display(), unfit.reason);
        Err(Unfit { reason, for_good: false, ..unfit })
    }

    /// The external data files that a model names; `None` where it cannot be read.
    pub async fn external(&self, path: PathBuf) -> Option<BTreeSet<String>> {
        // Why not is for `prepare` to say.
        tokio::task::spawn_blocking(move || models::external_files(&path).ok()).await.ok()?
    }

    /// Tries and loads a rung.
    pub async fn open(self, path: PathBuf, digest: Digest) -> Result<Opened, Unfit> {
        Ok(self.open_variant(&path, digest).await?.0)
    }

    /// Loads a variant again that has been tried before.
    pub async fn reopen(
        self,
        path: PathBuf,
        digest: Digest,
    ) -> Result<Vec<Box<dyn Runner>>, Unfit> {
        blocking(move || Ok(self.sessions(&path, digest)?.0)).await
    }

    fn digest(&self, path: &Path) -> Result<Digest, Unfit> {
        let unfit = |reason: String, for_good| Unfit { digest: None, reason, for_good };
        let model = models::load_copied(path).map_err(|error| {
            let bad = error.is_bad_data();
            unfit(chain(&error), bad)
        })?;
        model.digest().map_err(|error| unfit(error.to_string(), true))
    }

    async fn open_variant(
        &self,
        path: &Path,
        digest: Digest,
    ) -> Result<(Opened, Signature), Unfit> {
        let report = self.trial(path, digest).await?;
        let (file, loader) = (path.to_owned(), self.clone());
        let (sessions, signature) = blocking(move || loader.sessions(&file, digest)).await?;
        let micros = |us: f64| Duration::from_secs_f64((us / 1e6).clamp(0.0, 3600.0));
        let (p50, p99) = (micros(report.p50_us), micros(report.p99_us));
        Ok((Opened { sessions, p50, p99 }, signature))
    }

    async fn trial(&self, path: &Path, digest: Digest) -> Result<TrialReport, Unfit> {
        let job = TrialJob {
            model: path.to_owned(),
            runtime: self.library.clone(),
            threads: self.threads,
            runs: limits::TRIAL_RUNS,
            timeout: self.trial_timeout,
            memory: self.trial_memory,
        };
        let (_wisher, wish) = watch::channel(Wish::Run);
        attempt(&this_program(), &job, wish).await.map_err(|error| Unfit {
            digest: Some(digest),
            reason: format!("{}: {error}", path.display()),
            for_good: error.blames_the_variant(),
        })
    }

    fn sessions(
        &self,
        path: &Path,
        digest: Digest,
    ) -> Result<(Vec<Box<dyn Runner>>, Signature), Unfit> {
        let unfit = |reason: String, for_good| Unfit { digest: Some(digest), reason, for_good };
        let model = models::load_copied(path).map_err(|error| unfit(chain(&error), false))?;
        // Between the trial and now the file may have been replaced: never serve what was not tried.
        if model.digest().ok() != Some(digest) {
            return Err(unfit("the file changed while it was loaded".to_owned(), false));
        }
        let engine = self.engine();
        let mut sessions: Vec<Box<dyn Runner>> = Vec::new();
        let mut signature = None;
        for _ in 0..self.instances {
            let session = engine.open_live(&model).map_err(|error| unfit(chain(&error), true))?;
            signature.get_or_insert_with(|| Signature::from(&session));
            sessions.push(Box::new(session));
        }
        let signature =
            signature.ok_or_else(|| unfit("no instance was asked for".into(), false))?;
        Ok((sessions, signature))
    }
}

/// Runs work that blocks off the event loop. A panic there is a failure of the variant only.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Unfit> + Send + 'static,
) -> Result<T, Unfit> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| {
        Err(Unfit { digest: None, reason: format!("loading it failed: {error}"), for_good: false })
    })
}

/// An error with all of its causes.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}
