//! What becomes of a version: prepared, served, given a ladder, swapped, removed.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::oneshot;

use super::event::{Event, Opened, Prepared, Unfit};
use super::prepare::Loader;
use super::served::{Build, Candidate, Served, Standby};
use super::{Agent, trial_bounds};
use crate::arrivals::VersionKey;
use crate::governor;
use crate::ladder::Manifest;
use crate::limits;
use crate::shell::children::{self, Bounds, ChildError};
use crate::shell::slot::{
    CommandError, Drain, Entry, Fault, ModelState, Notice, Runner, Slot, SlotOptions, VariantInfo,
};
use crate::shell::store::Quarantined;
use crate::units::Digest;

/// Name of the variant that the operator gave.
const DENSE: &str = "dense";

impl Agent {
    /// Threads and instances as the model asks for them.
    fn loader_for(&self, model: &str) -> Loader {
        let config = self.model_config(model);
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let mut loader = self.loader.clone();
        loader.instances = config.instances.max(1);
        loader.threads = config.intra_op_threads.count(cores, loader.instances);
        loader.trial = trial_bounds(&self.config);
        loader
    }

    /// Loads and tries a version that has settled.
    pub(super) fn prepare(&mut self, key: VersionKey, file: String) {
        let path = self.config.model_dir.join(file);
        let loader = self.loader_for(&key.model);
        if !self.served.contains_key(&key.model) {
            let reason = "it is being loaded".to_owned();
            let entry = Entry::Unready { state: ModelState::Loading, reason };
            self.repository.set(&key.model, key.version, entry);
        }
        tracing::info!(model = key.model, version = %key.version, "a version arrived");
        self.preparing += 1;
        let (events, permits) = (self.events.clone(), Arc::clone(&self.loading));
        tokio::spawn(async move {
            let _one_at_a_time = permits.acquire_owned().await;
            let outcome = loader.prepare(path.clone()).await;
            let _ = events.send(Event::Prepared { key, path, outcome }).await;
        });
    }

    pub(super) fn prepared(
        &mut self,
        key: VersionKey,
        path: PathBuf,
        outcome: Result<Box<Prepared>, Unfit>,
    ) {
        self.preparing -= 1;
        match outcome {
            Ok(prepared) => match self.quarantine.get(&prepared.digest).map(|q| q.reason.clone()) {
                Some(reason) => self.refuse(&key, &format!("it is quarantined: {reason}")),
                None => self.put_into_service(key, path, *prepared),
            },
            Err(unfit) => {
                let reason = unfit.reason.clone();
                self.refuse(&key, &reason);
                if let Some(digest) = unfit.digest.filter(|_| unfit.for_good) {
                    let what = format!("{} version {}", key.model, key.version);
                    self.put_into_quarantine(digest, what, reason);
                }
            }
        }
    }

    /// One line for people; the version in service, if there is one, stays.
    fn refuse(&mut self, key: &VersionKey, reason: &str) {
        tracing::error!(model = key.model, version = %key.version, "not served: {reason}");
        self.refused.insert(key.clone(), reason.to_owned());
        if self.served.get(&key.model).is_none_or(|served| served.key != *key) {
            let reason = reason.to_owned();
            let entry = Entry::Unready { state: ModelState::Unavailable, reason };
            self.repository.set(&key.model, key.version, entry);
        }
    }

    fn put_into_quarantine(&mut self, digest: Digest, what: String, reason: String) {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let at = since.map_or(0, |since| since.as_secs());
        self.quarantine.insert(digest, Quarantined { what, reason, at });
        if let Err(error) = self.store.keep_quarantine(&self.quarantine) {
            tracing::error!("the quarantine holds until the next start only: {error}");
        }
    }

    fn put_into_service(&mut self, key: VersionKey, path: PathBuf, prepared: Prepared) {
        let config = self.model_config(&key.model);
        let Prepared { digest, signature, opened } = prepared;
        let info = VariantInfo {
            name: DENSE.to_owned(),
            digest,
            ratio: 1.0,
            quality: 1.0,
            promised: Some(opened.p99),
        };
        let options = SlotOptions {
            model: key.model.clone(),
            version: key.version,
            signature,
            queue: config.queue_length,
            timeout: Some(config.request_timeout.into()),
            notices: Some(self.notices.clone()),
        };
        let slot = match Slot::start(options, info.clone(), opened.sessions) {
            Ok(slot) => Arc::new(slot),
            Err(error) => return self.refuse(&key, &error.to_string()),
        };
        let before = self.repository.set(&key.model, key.version, Entry::Ready(Arc::clone(&slot)));
        if let Some(Entry::Ready(old)) = before {
            old.close();
        }
        self.refused.remove(&key);
        tracing::info!(model = key.model, version = %key.version, p99 = ?opened.p99, "in service");
        let dense = Candidate {
            info,
            path: path.clone(),
            p50: opened.p50,
            p99: opened.p99,
            standby: Standby::InService,
        };
        let served = Served {
            key: key.clone(),
            path,
            digest,
            config,
            slot,
            candidates: vec![dense],
            current: 0,
            switched: Instant::now(),
            fault: None,
            build: Build::None("no ladder is wanted".to_owned()),
            swaps: 0,
            last_because: None,
        };
        let previous = self.served.insert(key.model.clone(), served);
        if let Some(previous) = previous.filter(|previous| previous.key != key) {
            if let Some(Entry::Ready(old)) =
                self.repository.remove(&previous.key.model, previous.key.version)
            {
                old.close();
            }
            self.metrics.forget(&previous.key.model, previous.key.version);
        }
        self.want_ladder(&key);
    }

    /// Takes the kept ladder, or queues a build.
    fn want_ladder(&mut self, key: &VersionKey) {
        let identity = self.loader_for(&key.model).identity();
        let Some(served) = self.served.get_mut(&key.model) else { return };
        if !served.config.ladder.enabled {
            return;
        }
        if let Some(manifest) = self.store.ladder(served.digest, &identity) {
            tracing::info!(model = key.model, "its ladder was built before");
            return self.take_ladder(&key.model, manifest);
        }
        served.build = Build::Queued;
        self.builds.push_back(key.clone());
        self.next_build();
    }

    /// Starts the next build where none runs. One at a time: a build may take a core for minutes.
    fn next_build(&mut self) {
        while self.building.is_none() {
            let Some(key) = self.builds.pop_front() else { return };
            let identity = self.loader_for(&key.model).identity();
            let threads = self.loader_for(&key.model).threads;
            let Some(served) = self.served.get_mut(&key.model).filter(|s| s.key == key) else {
                continue;
            };
            let out = match self.store.begin_ladder(served.digest, &identity) {
                Ok(out) => out,
                Err(error) => {
                    served.build = Build::Failed(error.to_string());
                    continue;
                }
            };
            let calibration = self.config.model_dir.join(&key.model).join("calibration.npz");
            let ladder = &served.config.ladder;
            let ratios: Vec<String> = ladder.ratios.iter().map(f64::to_string).collect();
            let mut arguments = vec![
                "prune".to_owned(),
                served.path.display().to_string(),
                format!("--out={}", out.display()),
                format!("--ratios={}", ratios.join(",")),
                format!("--method={}", format!("{:?}", ladder.method).to_lowercase()),
                format!("--seed={}", ladder.seed),
                format!("--floor={}", served.config.quality_floor),
                format!("--threads={threads}"),
                format!("--samples={}", served.config.calibration.samples),
                format!("--runtime={}", self.loader.library.display()),
                format!("--state-dir={}", self.config.state_dir.display()),
                "--progress=json".to_owned(),
            ];
            if calibration.is_file() {
                arguments.push(format!("--calibration={}", calibration.display()));
            }
            served.build = Build::Running { share: 0.0, stage: "starting".to_owned() };
            tracing::info!(model = key.model, "its ladder is being built");
            let bounds = Bounds {
                timeout: self.config.build.timeout.into(),
                memory: self.config.build.memory.map(|memory| memory.0),
                nice: self.config.build.nice,
            };
            self.building = Some(key.clone());
            spawn_build(self.events.clone(), key, served.digest, arguments, bounds);
        }
    }

    pub(super) fn build_progress(&mut self, key: &VersionKey, share: f64, stage: String) {
        self.metrics.build_progress(&key.model, key.version, Some(share));
        if let Some(served) = self.served.get_mut(&key.model).filter(|s| s.key == *key) {
            served.build = Build::Running { share, stage };
        }
    }

    pub(super) fn built(
        &mut self,
        key: &VersionKey,
        digest: Digest,
        outcome: Result<(), ChildError>,
    ) {
        self.building = None;
        self.metrics.build_progress(&key.model, key.version, None);
        let identity = self.loader_for(&key.model).identity();
        let kept = outcome.map_err(|error| error.to_string()).and_then(|()| {
            self.store.commit_ladder(digest, &identity).map_err(|error| error.to_string())?;
            let missing = || "the builder left no ladder that holds".to_owned();
            self.store.ladder(digest, &identity).ok_or_else(missing)
        });
        let current =
            self.served.get(&key.model).is_some_and(|s| s.key == *key && s.digest == digest);
        match kept {
            Ok(manifest) if current => {
                tracing::info!(
                    model = key.model,
                    rungs = manifest.rungs.len(),
                    "its ladder is built"
                );
                self.take_ladder(&key.model, manifest);
            }
            Ok(_) => {}
            Err(reason) => {
                tracing::error!(model = key.model, "no ladder: {reason}");
                if let Some(served) = self.served.get_mut(&key.model).filter(|_| current) {
                    served.build = Build::Failed(reason);
                }
            }
        }
        self.next_build();
    }

    /// Makes the rungs of a ladder candidates and loads them.
    fn take_ladder(&mut self, model: &str, manifest: Manifest) {
        let identity = manifest.engine.clone();
        let Some(served) = self.served.get_mut(model) else { return };
        let dir = self.store.ladder_dir(served.digest, &identity);
        let micros = |us: f64| Duration::from_secs_f64((us / 1e6).clamp(0.0, 3600.0));
        served.candidates.truncate(1);
        served.candidates[0].p50 = micros(manifest.dense.p50_us);
        served.candidates[0].p99 = micros(manifest.dense.p99_us);
        for rung in &manifest.rungs {
            // Ratios were compared run by run; single percentiles took in whatever else the box did.
            let share = rung.figures.ratio;
            let p50 = micros(manifest.dense.p50_us * share);
            let p99 = micros(manifest.dense.p99_us * share);
            let known = self.quarantine.get(&rung.digest).map(|q| q.reason.clone());
            let standby = match known {
                Some(reason) => Standby::Withdrawn(reason),
                None => Standby::Waiting("not loaded yet".to_owned()),
            };
            served.candidates.push(Candidate {
                info: VariantInfo {
                    name: rung.name.clone(),
                    digest: rung.digest,
                    ratio: rung.figures.ratio,
                    quality: rung.figures.quality,
                    promised: Some(p99),
                },
                path: dir.join(&rung.file),
                p50,
                p99,
                standby,
            });
        }
        served.build = Build::Done(Box::new(manifest));
        self.open_missing(model);
    }

    /// Loads the variants that could serve and are not loaded, memory permitting.
    pub(super) fn open_missing(&mut self, model: &str) {
        let loader = self.loader_for(model);
        let available = available_memory();
        let Some(served) = self.served.get_mut(model) else { return };
        let floor = served.config.quality_floor;
        for (index, candidate) in served.candidates.iter_mut().enumerate() {
            let Standby::Waiting(_) = candidate.standby else { continue };
            if index > 0 && candidate.info.quality < floor {
                let quality = candidate.info.quality;
                let why = format!("its quality {quality:.3} is below the floor of {floor}");
                candidate.standby = Standby::Waiting(why);
                continue;
            }
            let size = std::fs::metadata(&candidate.path).map_or(0, |meta| meta.len());
            // Weights, their packed copies and the activations of every instance.
            let needed = size * (2 + loader.instances as u64) + limits::MEMORY_RESERVE;
            if available.is_some_and(|available| available < needed) {
                let why = format!("{needed} bytes of memory are wanted for it");
                candidate.standby = Standby::Waiting(why);
                continue;
            }
            candidate.standby = Standby::Opening;
            let (events, permits) = (self.events.clone(), Arc::clone(&self.loading));
            let (key, loader) = (served.key.clone(), loader.clone());
            let (path, digest) = (candidate.path.clone(), candidate.info.digest);
            let variant = candidate.info.name.clone();
            tokio::spawn(async move {
                let _one_at_a_time = permits.acquire_owned().await;
                let outcome = loader.open(path, digest).await;
                let _ = events.send(Event::Opened { key, digest, variant, outcome }).await;
            });
        }
    }

    pub(super) fn opened(
        &mut self,
        key: &VersionKey,
        digest: Digest,
        variant: &str,
        outcome: Result<Opened, Unfit>,
    ) {
        let Some(served) = self.served.get_mut(&key.model).filter(|s| s.key == *key) else {
            return;
        };
        let find = |c: &&mut Candidate| c.info.name == variant && c.info.digest == digest;
        let Some(candidate) = served.candidates.iter_mut().find(find) else { return };
        match outcome {
            Ok(opened) => candidate.standby = Standby::Loaded(opened.sessions),
            Err(unfit) if unfit.for_good => {
                candidate.standby = Standby::Withdrawn(unfit.reason.clone());
                tracing::error!(model = key.model, variant, "withdrawn: {}", unfit.reason);
                self.put_into_quarantine(digest, format!("{} {variant}", key.model), unfit.reason);
            }
            Err(unfit) => candidate.standby = Standby::Waiting(unfit.reason),
        }
    }

    /// Carries out what the governor asks for.
    pub(super) fn switch(&mut self, action: &governor::Action) {
        let Some(served) = self.served.get_mut(&action.model) else { return };
        let Some(candidate) = served.candidates.get_mut(action.to) else { return };
        let Standby::Loaded(_) = candidate.standby else { return };
        let taken = std::mem::replace(&mut candidate.standby, Standby::InService);
        let sessions: Vec<Box<dyn Runner>> = match taken {
            Standby::Loaded(sessions) => sessions,
            Standby::InService | Standby::Opening | Standby::Waiting(_) | Standby::Withdrawn(_) => {
                return;
            }
        };
        let info = candidate.info.clone();
        let name = info.name.clone();
        let drain = match served.slot.publish(info, sessions) {
            Ok(drain) => drain,
            Err(error) => {
                candidate.standby = Standby::Waiting(error.to_string());
                return;
            }
        };
        let leaving = &mut served.candidates[served.current];
        let (from, left) = (leaving.info.name.clone(), leaving.info.digest);
        leaving.standby = match served.fault.take() {
            Some(reason) => Standby::Withdrawn(reason),
            None => Standby::Opening,
        };
        served.current = action.to;
        served.switched = Instant::now();
        served.swaps += 1;
        served.last_because = Some(action.because.to_string());
        served.slot.current().set_probation(true);
        let key = served.key.clone();
        tracing::info!(model = key.model, from, to = name, because = %action.because, "swapped");
        self.metrics.swapped(&key.model, key.version, &action.because.to_string());
        if action.because == governor::Because::Fault {
            let what = format!("{} {from}", key.model);
            self.put_into_quarantine(left, what, "it failed in service".to_owned());
        }
        self.await_drain(key, from, drain);
    }

    fn await_drain(&self, key: VersionKey, variant: String, drain: Drain) {
        let events = self.events.clone();
        let patience = Duration::from(self.config.drain_timeout);
        tokio::spawn(async move {
            if tokio::time::timeout(patience, drain.done()).await.is_err() {
                tracing::warn!(model = key.model, variant, "is still running a request");
            }
            let _ = events.send(Event::Drained { key, variant }).await;
        });
    }

    /// The variant that left service is loaded again, to stand by.
    pub(super) fn drained(&mut self, key: &VersionKey, variant: &str) {
        let loader = self.loader_for(&key.model);
        let Some(served) = self.served.get(&key.model).filter(|s| s.key == *key) else { return };
        let found = served.candidates.iter().find(|c| c.info.name == variant);
        let Some(candidate) = found.filter(|c| matches!(c.standby, Standby::Opening)) else {
            return;
        };
        let (events, permits) = (self.events.clone(), Arc::clone(&self.loading));
        let (key, variant) = (key.clone(), variant.to_owned());
        let (path, digest) = (candidate.path.clone(), candidate.info.digest);
        let (p50, p99) = (candidate.p50, candidate.p99);
        tokio::spawn(async move {
            let _one_at_a_time = permits.acquire_owned().await;
            let sessions = loader.reopen(path, digest).await;
            let outcome = sessions.map(|sessions| Opened { sessions, p50, p99 });
            let _ = events.send(Event::Opened { key, digest, variant, outcome }).await;
        });
    }

    pub(super) fn notice(&mut self, notice: &Notice) {
        let Some(served) = self.served.get_mut(&notice.model) else { return };
        let current = served.slot.current();
        if served.key.version != notice.version || current.generation() != notice.generation {
            return;
        }
        let reason = match &notice.fault {
            Fault::Error(reason) => reason.clone(),
            Fault::Panic(reason) => format!("it panicked: {reason}"),
            Fault::NonFinite { output } => format!("its output {output:?} was not finite"),
        };
        tracing::error!(model = notice.model, variant = notice.variant, "fault: {reason}");
        // Dense is what the operator gave: there is nothing to go back to.
        if served.current != 0 {
            served.fault = Some(reason);
        }
    }

    pub(super) fn removed(&mut self, key: &VersionKey) {
        self.refused.remove(key);
        if self.served.get(&key.model).is_some_and(|served| served.key == *key) {
            self.unload(key, "its file is gone");
            // A version below it may take its place.
            self.arrivals.forget(&key.model);
            self.look.notify_one();
        } else {
            self.repository.remove(&key.model, key.version);
        }
    }

    pub(super) fn unload(&mut self, key: &VersionKey, why: &str) {
        tracing::info!(model = key.model, version = %key.version, "no longer served: {why}");
        if let Some(Entry::Ready(slot)) = self.repository.remove(&key.model, key.version) {
            slot.close();
        }
        self.served.remove(&key.model);
        self.metrics.forget(&key.model, key.version);
    }

    /// Answers a load command once the model serves, or says why it does not.
    pub(super) fn answer_when_served(
        &self,
        model: String,
        answer: oneshot::Sender<Result<(), CommandError>>,
        outcome: Result<(), CommandError>,
    ) {
        if outcome.is_err() {
            let _ = answer.send(outcome);
            return;
        }
        let repository = Arc::clone(&self.repository);
        let before: BTreeMap<_, _> = self
            .served
            .get(&model)
            .map(|served| (served.key.version, Arc::as_ptr(&served.slot) as usize))
            .into_iter()
            .collect();
        let patience = Duration::from(self.config.trial.timeout);
        tokio::spawn(async move {
            let deadline = tokio::time::Instant::now() + patience;
            let done = loop {
                tokio::time::sleep(limits::TICK).await;
                if let Ok(slot) = repository.find(&model, None) {
                    let same = before.get(&slot.version()) == Some(&(Arc::as_ptr(&slot) as usize));
                    if !same {
                        break Ok(());
                    }
                }
                let refused = repository
                    .index()
                    .into_iter()
                    .find(|entry| entry.model == model && entry.state == ModelState::Unavailable);
                if let Some(entry) = refused {
                    let text = format!("failed to load '{model}': {}", entry.reason);
                    break Err(CommandError::Failed(text));
                }
                if tokio::time::Instant::now() > deadline {
                    break Err(CommandError::Busy(format!("'{model}' is still being loaded")));
                }
            };
            let _ = answer.send(done);
        });
    }
}

fn spawn_build(
    events: tokio::sync::mpsc::Sender<Event>,
    key: VersionKey,
    digest: Digest,
    arguments: Vec<String>,
    bounds: Bounds,
) {
    tokio::spawn(async move {
        let (told, of) = (events.clone(), key.clone());
        let mut line = move |line: &str| {
            let Ok(value) = serde_json::from_str::<serde_json::Value>(line) else { return };
            if value["event"] == "progress" {
                let number = |name: &str| value[name].as_f64().unwrap_or(0.0);
                let share = number("done") / number("total").max(1.0);
                let stage = value["stage"].as_str().unwrap_or_default().to_owned();
                // Progress that finds the queue full is not worth waiting for.
                let _ = told.try_send(Event::Building { key: of.clone(), share, stage });
            }
        };
        let outcome = children::run(arguments, &bounds, &mut line).await.map(|_| ());
        let _ = events.send(Event::Built { key, digest, outcome }).await;
    });
}

/// Memory that can be used without swapping, bytes.
fn available_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}
