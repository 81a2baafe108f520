//! What becomes of a version: prepared, served, given a ladder, swapped, removed.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::Agent;
use super::choosing::{Tried, Trying};
use super::event::{Event, Fate, Prepared, Unfit};
use super::prepare::Loader;
use super::providers::Standing;
use super::recording::Demand;
use super::served::{Build, Candidate, Served, Standby};
use crate::arrivals::VersionKey;
use crate::config::{Cpus, ModelConfig};
use crate::hardware::{PassedOver, label};
use crate::limits;
use crate::protocol::Signature;
use crate::schedule::Batching;
use crate::shell::children::Memory;
use crate::shell::cpus;
use crate::shell::slot::{Entry, ModelState, Patience, Slot, SlotOptions, VariantInfo};
use crate::shell::store::Quarantined;
use crate::units::{Digest, Version};

/// Name of the variant that the operator gave.
const DENSE: &str = "dense";

impl Agent {
    /// Threads and instances as the model asks for them.
    pub(super) fn loader_for(&self, model: &str) -> Loader {
        let config = self.model_config(model);
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let mut loader = self.loader.clone();
        model.clone_into(&mut loader.model);
        // What its dense model does, its other variants and the next version are likely to do.
        let dense = self.served.get(model).and_then(|served| served.candidates.first());
        loader.expects_lending = dense.is_some_and(|dense| dense.lending.is_on());
        let standing = self.served.get(model).map(|served| &served.standing);
        loader.provider = standing.map(|standing| standing.provider.clone()).unwrap_or_default();
        loader.choosing = Arc::new(self.choosing(model, &config));
        loader.trying = Trying::default();
        loader.instances = config.instances.max(1);
        loader.batching = Batching { rows: config.max_batch, delay: config.max_queue_delay.into() };
        loader.shapes = config.shapes.clone();
        loader.threads = config.intra_op_threads.count(cores, loader.instances);
        loader.cpus = self.cpus_for(model, &config, loader.threads * loader.instances);
        loader.trial_timeout = self.config.trial.timeout.into();
        // What a run is expected to take is known after the trial; compiling took it no longer than this.
        loader.patience = Patience { first: loader.trial_timeout, ..Patience::default() };
        loader.trial_memory = Memory::or_part(self.config.trial.memory, limits::TRIAL_MEMORY_PARTS);
        loader.sandbox = self.config.sandbox;
        loader.samples = self.given_samples(model).or_else(|| self.store.reservoir_file(model));
        let quarantined = self.store.quarantined().iter();
        let reasons = quarantined.map(|(digest, why)| (*digest, why.reason.clone()));
        loader.quarantined = Arc::new(reasons.collect());
        loader
    }

    /// Where a model's threads are bound. Those that leave it to the agent follow the threads of the models
    /// before them, by name, that do the same.
    fn cpus_for(&self, model: &str, config: &ModelConfig, threads: usize) -> Vec<usize> {
        let before = self.served.iter().take_while(|(name, _)| name.as_str() < model);
        let before = before.map(|(_, served)| &served.config);
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let count = |config: &ModelConfig| {
            config.instances * config.intra_op_threads.count(cores, config.instances)
        };
        let before = before.filter(|config| config.cpus == Cpus::Auto).map(count).sum();
        match cpus::usable() {
            Ok(usable) => config.cpus.assign(&usable, threads, before),
            Err(error) => {
                tracing::warn!(model, "its threads are not bound: {error}");
                Vec::new()
            }
        }
    }

    /// Loads and tries a version that has settled.
    pub(super) fn prepare(&mut self, key: VersionKey, file: String) {
        let path = self.config.model_dir.join(file);
        let mut loader = self.loader_for(&key.model);
        // Its own, and not those of the version in service.
        let samples = self.samples_with(&key.model, Some(key.version));
        loader.samples = samples.or_else(|| self.store.reservoir_file(&key.model));
        if !self.served.contains_key(&key.model) {
            let reason = "it is being loaded".to_owned();
            let entry = Entry::Unready { state: ModelState::Loading, reason };
            self.repository.set(&key.model, key.version, entry);
        }
        tracing::info!(model = key.model, version = %key.version, "a version arrived");
        let load = self.underway.begin(&key);
        self.loads.begin(&key);
        // Two versions of a model are in memory until the older one is drained. Where none is served there is
        // nothing to protect: the trial finds out.
        let beside = self.served.contains_key(&key.model);
        let (events, permits) = (self.events.clone(), Arc::clone(&self.loading));
        tokio::spawn(async move {
            let _one_at_a_time = permits.acquire_owned().await;
            let external = loader.external(path.clone()).await;
            let (lends, trying) = (loader.expects_lending, loader.trying.clone());
            let outcome = match beside {
                true => loader.with_room(path.clone(), lends, Loader::prepare).await,
                false => loader.prepare(path.clone()).await,
            };
            let tried = trying.end();
            let event = Event::Prepared { key, load, path, external, outcome, tried };
            let _ = events.send(event).await;
        });
    }

    /// A bare model changes with the data files that it names; those of a version's folder are watched
    /// anyhow.
    pub(super) fn depends(
        &mut self,
        key: &VersionKey,
        path: &Path,
        external: Option<BTreeSet<String>>,
    ) {
        if path.parent() != Some(self.config.model_dir.as_path()) {
            return;
        }
        let plain = |name: String| name.trim_start_matches("./").to_owned();
        let files = external.into_iter().flatten().map(plain).collect();
        self.arrivals.depends(key, files);
    }

    pub(super) fn prepared(
        &mut self,
        key: VersionKey,
        path: PathBuf,
        outcome: Result<Box<Prepared>, Unfit>,
        tried: &Tried,
    ) {
        self.remember_failures(&key, tried);
        let model = key.model.clone();
        let served = self.stays(&model);
        match outcome {
            // A newer one was faster.
            Ok(_) if served.is_some_and(|served| served > key.version) => {
                self.underway.settled(&key);
                self.repository.remove(&model, key.version);
            }
            Ok(prepared) => {
                self.underway.settled(&key);
                self.know_device(&prepared.provider, &prepared.facts);
                self.put_into_service(key, path, *prepared, tried);
            }
            Err(unfit) => {
                let reason = one_line(&unfit.reason);
                if unfit.fate == Fate::Later {
                    self.shadows_give_way();
                }
                self.refuse(&key, &reason);
                self.underway.settled(&key);
                let blamed = self.version_is_to_blame(&key, path, unfit.digest, unfit.fate);
                if let Some(digest) = unfit.digest.filter(|_| blamed) {
                    let what = format!("{} version {}", key.model, key.version);
                    self.put_into_quarantine(digest, what, reason);
                }
                self.takes_no_place(&key);
            }
        }
        self.answer_loads(&model);
    }

    /// One line for people; the version in service, if there is one, stays.
    pub(super) fn refuse(&mut self, key: &VersionKey, reason: &str) {
        tracing::error!(model = key.model, version = %key.version, reason, "not served: {reason}");
        self.refused.insert(key.clone(), reason.to_owned());
        if self.served.get(&key.model).is_none_or(|served| served.key != *key) {
            let reason = reason.to_owned();
            let entry = Entry::Unready { state: ModelState::Unavailable, reason };
            self.repository.set(&key.model, key.version, entry);
        }
    }

    pub(super) fn put_into_quarantine(&mut self, digest: Digest, what: String, reason: String) {
        let at = seconds_since_1970();
        self.quarantine(digest, Quarantined { what, reason, at, floor: None });
    }

    pub(super) fn quarantine(&mut self, digest: Digest, why: Quarantined) {
        if let Err(error) = self.store.put_quarantine(digest, why) {
            tracing::error!("a variant that failed is not remembered as such: {error}");
        }
    }

    fn put_into_service(
        &mut self,
        key: VersionKey,
        path: PathBuf,
        prepared: Prepared,
        tried: &Tried,
    ) {
        let config = self.model_config(&key.model);
        let Prepared { digest, signature, opened, provider, facts } = prepared;
        let info = VariantInfo {
            name: DENSE.to_owned(),
            digest,
            ratio: 1.0,
            quality: 1.0,
            promised: opened.p99,
        };
        let options = self.slot_options(&key, &config, signature);
        let slot = match Slot::start(options, info.clone(), opened.sessions) {
            Ok(slot) => Arc::new(slot),
            Err(error) => return self.refuse(&key, &error.to_string()),
        };
        let before = self.repository.set(&key.model, key.version, Entry::Ready(Arc::clone(&slot)));
        if let Some(Entry::Ready(old)) = before {
            old.close();
        }
        self.refused.remove(&key);
        let (version, on) = (key.version, label(&provider));
        tell_in_service(&key.model, version, &info.name, &on, opened.p99, &tried.passed);
        let dense = Candidate {
            info,
            path: path.clone(),
            p50: opened.p50,
            p99: opened.p99,
            ran_on: opened.ran_on,
            lending: opened.lending,
            standby: Standby::InService,
            held_until: None,
            faults: 0,
            disproved: None,
        };
        let served = Served {
            asked: self.asked_providers(&config),
            key: key.clone(),
            path,
            digest,
            config,
            slot,
            candidates: vec![dense],
            current: 0,
            switched: Instant::now(),
            fault: None,
            demand: Demand::default(),
            build: Build::None("no ladder is wanted".to_owned()),
            swaps: 0,
            last_because: None,
            calibration: self.calibration_of(&key.model, Some(key.version)),
            standing: Standing::new(provider, tried, facts, Instant::now()),
            awaits: None,
        };
        let previous = self.served.insert(key.model.clone(), served);
        if previous.is_some() {
            self.end_unwanted_build(&key.model);
        }
        if let Some(previous) = previous.filter(|previous| previous.key != key) {
            self.leave(&previous.key);
        }
        self.sample_requests(&key.model);
        self.want_ladder(&key);
        self.evict_compiled();
    }

    fn slot_options(
        &self,
        key: &VersionKey,
        config: &ModelConfig,
        signature: Signature,
    ) -> SlotOptions {
        SlotOptions {
            model: key.model.clone(),
            version: key.version,
            signature,
            queue: config.queue_length,
            timeout: Some(config.request_timeout.into()),
            notices: Some(self.notices.clone()),
        }
    }
}

/// What runs a version now, and why nothing that was wanted before it does.
fn tell_in_service(
    model: &str,
    version: Version,
    variant: &str,
    provider: &str,
    p99: Option<Duration>,
    passed: &[PassedOver],
) {
    tracing::info!(model, %version, variant, provider, ?p99, "in service");
    for passed in passed {
        tracing::info!(model, provider = passed.provider, "passed over: {}", passed.why);
    }
}

/// ONNX Runtime and what it calls speak in several lines; a reason is one.
fn one_line(reason: &str) -> String {
    let lines = reason.lines().map(str::trim).filter(|line| !line.is_empty());
    lines.collect::<Vec<_>>().join(" ")
}

pub(super) fn seconds_since_1970() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}
