//! Loading and trying variants: what happens before anything is put into service.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::watch;

use super::choosing::{Choosing, Trying};
use super::confined::Seen;
use super::event::{Fate, Lending, Opened, Prepared, Unfit};
use super::memory;
use super::providers::nothing_left;
use crate::config::{Provider, Sandbox, ServedShapes};
use crate::hardware::{Choice, PassedOver};
use crate::ladder::calibration;
use crate::limits;
use crate::onnx::{ExecError, Model};
use crate::protocol::{Inputs, Signature, check_axes};
use crate::schedule::Batching;
use crate::shell::children::trial::{RanOn, TrialJob, TrialReport, attempt};
use crate::shell::children::{Memory, Wish, this_program};
use crate::shell::engine::{
    EngineOptions, Found, OrtEngine, Pool, Weights, alignment, cann, compiled,
};
use crate::shell::frugal;
use crate::shell::inputs;
use crate::shell::models;
use crate::shell::slot::{Batched, Patience, Runner, check_rows};
use crate::units::Digest;

/// One session an instance.
pub(super) type Sessions = Vec<Box<dyn Runner>>;

/// How variants are loaded and tried.
#[derive(Clone)]
pub struct Loader {
    pub runtime: Found,
    pub library: PathBuf,
    /// The weights that sessions hold together.
    pub pool: Arc<Pool>,
    /// The model's name.
    pub model: String,
    /// Whether its sessions are taken to hold their weights together, as long as no trial has said so.
    pub expects_lending: bool,
    pub threads: usize,
    pub instances: usize,
    /// The CPU of every thread of every instance, in order; empty: they are not bound.
    pub cpus: Vec<usize>,
    /// How many rows of requests may be run together, where a variant can do that.
    pub batching: Batching,
    /// The shapes that it is to be served in, where what runs it compiles each.
    pub shapes: ServedShapes,
    /// How long a session on a device is waited for.
    pub patience: Patience,
    /// Wall time and memory of a trial.
    pub trial_timeout: Duration,
    pub trial_memory: Memory,
    pub sandbox: Sandbox,
    /// Where children get folders of their own.
    pub folders: PathBuf,
    /// Where providers keep what they compile.
    pub state_dir: PathBuf,
    pub confined: Seen,
    /// Real inputs to try and to warm variants with, where there are any.
    pub samples: Option<PathBuf>,
    /// What is not to be tried again, and why.
    pub quarantined: Arc<BTreeMap<Digest, String>>,
    /// What runs it; a dense model is tried on what `choosing` says instead.
    pub provider: Provider,
    pub choosing: Arc<Choosing>,
    /// What did not do on the way.
    pub trying: Trying,
}

impl Loader {
    /// How one instance is loaded.
    fn options(&self, instance: usize) -> EngineOptions {
        self.options_with(instance, None)
    }

    fn options_with(&self, instance: usize, cache: Option<PathBuf>) -> EngineOptions {
        EngineOptions {
            cache,
            provider: self.provider.clone(),
            intra_op_threads: self.threads,
            cpus: self.cpus_of(instance).to_vec(),
            sizes: self.fixed(),
            ..EngineOptions::default()
        }
    }

    /// The same loader for runs that are expected to take so long at the most.
    pub fn expecting(mut self, longest: Option<Duration>) -> Self {
        self.patience = self.patience.expecting(longest);
        self
    }

    /// Where the threads of one instance are bound.
    fn cpus_of(&self, instance: usize) -> &[usize] {
        self.cpus.chunks(self.threads.max(1)).nth(instance).unwrap_or_default()
    }

    /// Device, provider and runtime version: what latencies hold for.
    pub fn identity(&self) -> String {
        self.runtime.identity(&self.options(0))
    }

    /// Channels in which the provider's cores work, where that is known.
    pub fn alignment(&self) -> Option<usize> {
        alignment(&self.options(0).provider)
    }

    /// Reads, tries and loads a dense model.
    pub async fn prepare(self, path: PathBuf) -> Result<Box<Prepared>, Unfit> {
        let (file, loader) = (path.clone(), self.clone());
        let digest = blocking(move || loader.digest(&file)).await?;
        if let Some(reason) = self.quarantined.get(&digest) {
            let reason = format!("{} is quarantined: {reason}", path.display());
            return Err(Unfit { digest: Some(digest), reason, fate: Fate::WhenChanged });
        }
        let unfit = match self.open_first(&path, digest).await {
            Ok(prepared) => return Ok(Box::new(prepared)),
            Err(unfit) => unfit,
        };
        if unfit.fate != Fate::ForGood {
            return Err(unfit);
        }
        // What was written over while it was tried is not to blame for how that went.
        let file = path.clone();
        let now = blocking(move || self.digest(&file)).await;
        if now.is_ok_and(|now| now == digest) {
            return Err(unfit);
        }
        let reason = format!("{} changed while it was tried: {}", path.display(), unfit.reason);
        Err(Unfit { reason, fate: Fate::WhenChanged, ..unfit })
    }

    /// What a model of `digest` may be tried on.
    pub fn choice(&self, digest: Digest) -> Choice {
        self.choosing.choice(digest, |provider| self.on(provider).identity())
    }

    /// The same loader for another provider. What its trial says of lending counts there alone.
    fn on(&self, provider: &Provider) -> Self {
        let expects_lending = self.expects_lending && *provider == self.provider;
        Self { provider: provider.clone(), expects_lending, ..self.clone() }
    }

    /// Opens a model on the first provider that does. Only the CPU convicts it, where it may run there at all.
    async fn open_first(&self, path: &Path, digest: Digest) -> Result<Prepared, Unfit> {
        let Choice { candidates, passed } = self.choice(digest);
        self.trying.begin(passed.clone());
        let (mut on_cpu, mut last) = (None, None);
        for provider in candidates {
            let loader = self.on(&provider);
            match loader.open_variant(path, digest).await {
                Ok((opened, signature, facts)) => {
                    return Ok(Prepared { digest, signature, opened, provider, facts });
                }
                Err(unfit) if unfit.fate == Fate::WhenChanged => return Err(unfit),
                Err(unfit) if provider == Provider::Cpu => on_cpu = Some(unfit),
                Err(unfit) => {
                    let key = self.choosing.key(digest, &provider, &loader.identity());
                    self.trying.failed(&provider, key, &unfit);
                    last = Some(unfit);
                }
            }
        }
        let nothing = |passed: &[PassedOver]| nothing_left(&self.choosing.wanted, passed);
        Err(on_cpu.unwrap_or_else(|| match last {
            Some(unfit) => {
                let told = format!("{} ({})", unfit.reason, nothing(&passed));
                let reason = if passed.is_empty() { unfit.reason } else { told };
                Unfit { reason, ..unfit }
            }
            None => {
                let reason = format!("{}: {}", path.display(), nothing(&passed));
                Unfit { digest: Some(digest), reason, fate: Fate::Later }
            }
        }))
    }

    /// Tries a model of which nothing is served yet, on the first provider on which it runs.
    pub async fn only_try(self, path: PathBuf) -> Result<(), Unfit> {
        let (file, loader) = (path.clone(), self.clone());
        let digest = blocking(move || loader.digest(&file)).await?;
        if let Some(reason) = self.quarantined.get(&digest) {
            let reason = format!("it is quarantined: {reason}");
            return Err(Unfit { digest: Some(digest), reason, fate: Fate::WhenChanged });
        }
        let Choice { candidates, passed } = self.choice(digest);
        let mut last = None;
        for provider in candidates {
            match self.on(&provider).trial(&path, digest).await {
                Ok(_) => return Ok(()),
                Err(unfit) => last = Some(unfit),
            }
        }
        Err(last.unwrap_or_else(|| {
            let reason = nothing_left(&self.choosing.wanted, &passed);
            Unfit { digest: Some(digest), reason, fate: Fate::Later }
        }))
    }

    /// The external data files that a model names; `None` where it cannot be read.
    pub async fn external(&self, path: PathBuf) -> Option<BTreeSet<String>> {
        // Why not is for `prepare` to say.
        tokio::task::spawn_blocking(move || models::external_files(&path).ok()).await.ok()?
    }

    /// Loads the model at `path`, by `load`, where it finds place in memory, its weights held together or not.
    pub async fn with_room<T, F>(
        self,
        path: PathBuf,
        lends: bool,
        load: impl FnOnce(Self, PathBuf) -> F,
    ) -> Result<T, Unfit>
    where
        F: Future<Output = Result<T, Unfit>>,
    {
        self.room_for(path.clone(), lends).await?;
        load(self, path).await
    }

    /// Whether the model at `path` finds place in memory, its weights held together or not.
    async fn room_for(&self, path: PathBuf, lends: bool) -> Result<(), Unfit> {
        let instances = self.instances;
        blocking(move || {
            let unfit = |why| Unfit {
                digest: None,
                reason: format!("{}: {why}", path.display()),
                fate: Fate::Later,
            };
            memory::room_for(&path, instances, lends).map_err(unfit)
        })
        .await
    }

    /// Tries and loads a rung.
    pub async fn open(self, path: PathBuf, digest: Digest) -> Result<Opened, Unfit> {
        Ok(self.open_variant(&path, digest).await?.0)
    }

    /// Loads a variant again that has been tried before, on what `ran_on` says.
    pub async fn reopen(
        self,
        path: PathBuf,
        digest: Digest,
        ran_on: Option<RanOn>,
        lending: Lending,
    ) -> Result<(Sessions, Lending), Unfit> {
        blocking(move || {
            let (sessions, _, lending) = self.sessions(&path, digest, ran_on, lending)?;
            Ok((sessions, lending))
        })
        .await
    }

    /// What a model is, where it has the axes that its shapes name: that of a configuration which does not fit
    /// it is no fault of its file.
    fn digest(&self, path: &Path) -> Result<Digest, Unfit> {
        let unfit = |reason: String, fate| Unfit { digest: None, reason, fate };
        let model = models::load_copied(path).map_err(|error| {
            let bad = error.is_bad_data();
            unfit(chain(&error), if bad { Fate::ForGood } else { Fate::Later })
        })?;
        let digest = model.digest().map_err(|error| unfit(error.to_string(), Fate::ForGood))?;
        // Inputs of types that are not served are for the runtime to refuse.
        let inputs = calibration::inputs(&model).unwrap_or_default();
        let free: BTreeSet<String> =
            inputs.into_iter().flat_map(|input| input.dims).filter_map(Result::err).collect();
        let checked = self.shapes.0.iter().try_for_each(|shape| check_axes(shape, &free));
        checked.map_err(|error| {
            let reason = format!("{}: {error}; see its setting `shapes`", path.display());
            Unfit { digest: Some(digest), reason, fate: Fate::WhenChanged }
        })?;
        Ok(digest)
    }

    async fn open_variant(
        &self,
        path: &Path,
        digest: Digest,
    ) -> Result<(Opened, Signature, Value), Unfit> {
        let cache = self.cache(digest);
        if let Some(cache) = &cache
            && let Err(error) = compiled::make(cache)
        {
            // It is compiled anew each time then.
            tracing::warn!("cannot make {}: {error}", cache.display());
        }
        let report = match (&self.provider, cache) {
            (Provider::Cann(_), Some(cache)) if cann::is_there(&cache) => {
                self.trial_on_kept(&cache, path, digest).await?
            }
            (Provider::Cpu | Provider::Cann(_) | Provider::Plugin(_), _) => {
                self.trial(path, digest).await?
            }
        };
        if let Some(why) = &report.why {
            tracing::warn!("the trial of {}: {why}", path.display());
        }
        if !report.unsuited.is_empty() {
            let (path, shapes) = (path.display(), report.unsuited.join("; "));
            let reason = format!("{path}: it does not run in shapes that it is to serve: {shapes}");
            return Err(Unfit { digest: Some(digest), reason, fate: Fate::WhenChanged });
        }
        let ran_on = report.ran_on;
        let lending = if report.lends { Lending::On(None) } else { Lending::Off };
        if let Some(why) = &report.lends_not {
            tracing::debug!("{} holds its weights alone: {why}", path.display());
        }
        if self.expects_lending && !report.lends {
            self.room_for(path.to_owned(), false).await?;
        }
        let (file, loader) = (path.to_owned(), self.clone().expecting(longest(&report)));
        let (sessions, signature, lending) =
            blocking(move || loader.sessions(&file, digest, ran_on, lending)).await?;
        let (p50, p99) = (report.p50_us.map(micros), report.p99_us.map(micros));
        let facts = facts(&report);
        Ok((Opened { sessions, p50, p99, ran_on, lending }, signature, facts))
    }

    pub(super) async fn trial(&self, path: &Path, digest: Digest) -> Result<TrialReport, Unfit> {
        let job = TrialJob {
            model: path.to_owned(),
            runtime: self.library.clone(),
            provider: self.provider.clone(),
            served: self.shapes.0.clone(),
            fixed: self.fixed(),
            cache: self.cache(digest),
            threads: self.threads,
            cpus: self.cpus_of(0).to_vec(),
            runs: limits::TRIAL_RUNS,
            timeout: self.trial_timeout,
            memory: self.trial_memory,
            sandbox: self.sandbox,
            folders: self.folders.clone(),
            samples: self.samples.clone(),
        };
        let (_wisher, wish) = watch::channel(Wish::Run);
        let mut confined = |told| self.confined.told(told);
        attempt(&this_program(), &job, wish, &mut confined).await.map_err(|error| Unfit {
            digest: Some(digest),
            reason: format!("{}: {error}", path.display()),
            fate: error.blame().into(),
        })
    }

    /// Loads a variant that has passed its trial, and runs every session once: the first request shall not
    /// pay for what a session puts off until then. Whatever fails here is no fault of the variant.
    pub(super) fn loaded(
        &self,
        path: &Path,
        digest: Digest,
        ran_on: Option<RanOn>,
        lending: Lending,
    ) -> Result<(Sessions, Signature, Lending), Unfit> {
        let unfit = |reason: String, fate| Unfit { digest: Some(digest), reason, fate };
        let model = models::load_copied(path).map_err(|error| unfit(chain(&error), Fate::Later))?;
        // Between the trial and now the file may have been replaced: never serve what was not tried.
        if model.digest().ok() != Some(digest) {
            let reason = "the file changed while it was loaded".to_owned();
            return Err(unfit(reason, Fate::WhenChanged));
        }
        let runtime = self.runtime.load();
        let runtime = runtime.map_err(|error| unfit(chain(&error), Fate::Later))?;
        let mut sessions: Vec<Box<dyn Runner>> = Vec::new();
        let mut signature = None;
        let later = |error: ExecError| unfit(chain(&error), Fate::Later);
        let weights = self.weights(&model, lending).map_err(later)?;
        let lend = |weights| self.pool.lend(&runtime, &self.model, weights);
        let lent = weights.as_ref().map(lend).transpose().map_err(later)?;
        let cache = self.cache(digest);
        for instance in 0..self.instances {
            let engine = OrtEngine::new(&runtime, self.options_with(instance, cache.clone()));
            let session = engine.open_lent(&model, lent.as_ref()).map_err(later)?;
            signature.get_or_insert_with(|| Signature::from(&session));
            sessions.push(Box::new(session));
        }
        drop(model);
        frugal::give_back_heap();
        if let Some(weights) = &weights {
            weights.release();
        }
        let signature = signature
            .ok_or_else(|| unfit("no instance was asked for".into(), Fate::WhenChanged))?;
        let inputs = self.inputs(ran_on, &signature);
        let later = |reason: String| unfit(reason, Fate::Later);
        let sessions = match self.provider {
            Provider::Cpu => {
                if let Some(inputs) = &inputs {
                    warm(&mut sessions, std::slice::from_ref(inputs)).map_err(later)?;
                }
                self.batched(path, sessions, &signature, inputs.as_ref())
            }
            Provider::Cann(_) | Provider::Plugin(_) => {
                let all = self.all_shapes(inputs, &signature).map_err(later)?;
                let mut sessions = self.on_device(sessions, &all);
                warm(&mut sessions, &all).map_err(later)?;
                self.padded(path, sessions, &signature, &all)
            }
        };
        let lending = weights.map_or(Lending::Off, |weights| {
            Lending::On(Some(weights).filter(|weights| weights.in_files()))
        });
        Ok((sessions, signature, lending))
    }

    /// The weights that the variant's sessions are lent: those that were kept, or those of the model.
    fn weights(&self, model: &Model, lending: Lending) -> Result<Option<Arc<Weights>>, ExecError> {
        match lending {
            Lending::Off => Ok(None),
            Lending::On(Some(kept)) => Ok(Some(kept)),
            // One that is loaded through a file of its own is lent nothing.
            Lending::On(None) if model.inline_size().is_err() => Ok(None),
            Lending::On(None) => self.pool.hold(model, self.instances),
        }
    }

    /// The sessions as they were, or such as may run several requests as one, where that is asked for and found
    /// to change no answer.
    fn batched(
        &self,
        path: &Path,
        mut sessions: Vec<Box<dyn Runner>>,
        signature: &Signature,
        example: Option<&Inputs>,
    ) -> Vec<Box<dyn Runner>> {
        let Some(first) = sessions.first_mut().filter(|_| self.batching.rows > 1) else {
            return sessions;
        };
        if let Err(why) = check_rows(first.as_mut(), signature, example) {
            tracing::warn!("{}: its requests are not run in batches: {why}", path.display());
            return sessions;
        }
        let batching = self.batching;
        let batched = |session| Box::new(Batched { session, batching }) as Box<dyn Runner>;
        sessions.into_iter().map(batched).collect()
    }

    /// What the trial ran on. None where it ran on nothing, and where its samples have gone since.
    fn inputs(&self, ran_on: Option<RanOn>, signature: &Signature) -> Option<Inputs> {
        match ran_on? {
            RanOn::MadeUp(example) => example.inputs(signature, &self.shapes.first()).ok(),
            RanOn::Samples => inputs::first_of(self.samples.as_deref()?, signature).ok(),
        }
    }
}

fn micros(us: f64) -> Duration {
    Duration::from_secs_f64((us / 1e6).clamp(0.0, 3600.0))
}

/// What a run took in the slowest of the shapes that were tried.
fn longest(report: &TrialReport) -> Option<Duration> {
    let shapes = report.compiled.iter().filter_map(|one| one.p50_us);
    shapes.chain(report.p99_us).map(micros).max()
}

/// What a trial tells of the provider, for the status. Of the CPU there is little to tell.
fn facts(report: &TrialReport) -> Value {
    let fallen_back = report.placement.as_ref().and_then(|placement| placement.fallen_back());
    json!({
        "load_ms": report.load_ms, "compile_ms": report.compile_us.map(|us| us / 1e3),
        "compiled": report.compiled, "differs": report.differs, "device": report.device,
        "placement": report.placement, "fallen_back": fallen_back,
    })
}

/// Runs every session once in every shape.
fn warm(sessions: &mut [Box<dyn Runner>], all: &[Inputs]) -> Result<(), String> {
    for inputs in all {
        let inputs: Vec<_> = inputs.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
        for session in &mut *sessions {
            session.run(&inputs, &[]).map_err(|error| error.to_string())?;
        }
    }
    Ok(())
}

/// Runs work that blocks off the event loop. A panic there is a failure of the variant only.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Unfit> + Send + 'static,
) -> Result<T, Unfit> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| {
        let reason = format!("loading it failed: {error}");
        Err(Unfit { digest: None, reason, fate: Fate::Later })
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

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::onnx::Tensor;

    #[test]
    fn every_session_runs_once_on_the_whole_request_before_it_serves() {
        let seen = Arc::new(AtomicUsize::new(0));
        let session = || -> Box<dyn Runner> {
            let (seen, mine) = (Arc::clone(&seen), RefCell::new(0));
            Box::new(move |inputs: &[(&str, &Tensor)], wanted: &[&str]| {
                assert!(inputs.len() == 2 && wanted.is_empty());
                assert_eq!(mine.replace(1), 0, "once");
                seen.fetch_add(1, Ordering::Relaxed);
                Ok(Vec::new())
            })
        };
        let mut sessions: Vec<_> = (0..3).map(|_| session()).collect();
        let tensor = Tensor::from_i64(&[1], &[1]);
        let inputs = vec![("x".to_owned(), tensor.clone()), ("y".to_owned(), tensor)];
        warm(&mut sessions, std::slice::from_ref(&inputs)).unwrap();
        assert_eq!(seen.load(Ordering::Relaxed), 3);
        let fails = |_: &[(&str, &Tensor)], _: &[&str]| {
            Err(ExecError { doing: "running".to_owned(), reason: "no memory".to_owned() })
        };
        sessions.push(Box::new(fails));
        let mut sessions = sessions.split_off(3);
        assert_eq!(warm(&mut sessions, &[inputs]).unwrap_err(), "running: no memory");
    }
}
