//! What becomes of a version: prepared, served, given a ladder, swapped, removed.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::watch;

use super::Agent;
use super::event::{Event, Opened, Prepared, Unfit};
use super::prepare::Loader;
use super::served::{Build, Candidate, Served, Standby};
use crate::arrivals::VersionKey;
use crate::governor;
use crate::ladder::manifest::CalibrationSource;
use crate::limits;
use crate::shell::children::builder::{BuildEvent, BuildJob, build};
use crate::shell::children::{ChildError, Wish, this_program};
use crate::shell::slot::{
    CommandError, Drain, Entry, Fault, ModelState, Notice, Runner, Slot, SlotOptions, VariantInfo,
};
use crate::shell::store::{
    BuildState, InService, Ladder, LadderId, LadderRecord, ModelRecord, Quarantined,
};
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
        loader.trial_timeout = self.config.trial.timeout.into();
        loader.trial_memory = self.config.trial.memory.map(|memory| memory.0);
        let quarantined = self.store.quarantined().iter();
        let reasons = quarantined.map(|(digest, why)| (*digest, why.reason.clone()));
        loader.quarantined = Arc::new(reasons.collect());
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
            let external = loader.external(path.clone()).await;
            let outcome = loader.prepare(path.clone()).await;
            let _ = events.send(Event::Prepared { key, path, external, outcome }).await;
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
    ) {
        self.preparing -= 1;
        let model = key.model.clone();
        match outcome {
            Ok(prepared) => self.put_into_service(key, path, *prepared),
            Err(unfit) => {
                let reason = one_line(&unfit.reason);
                self.refuse(&key, &reason);
                if let Some(digest) = unfit.digest.filter(|_| unfit.for_good) {
                    let what = format!("{} version {}", key.model, key.version);
                    self.put_into_quarantine(digest, what, reason);
                }
            }
        }
        self.answer_loads(&model);
    }

    /// Tells those who asked for a model to be loaded what came of it.
    fn answer_loads(&mut self, model: &str) {
        let Some(waiting) = self.loads.remove(model) else { return };
        let served = self.served.get(model).map(|served| &served.key);
        let mut refused = self.refused.iter().rev().filter(|(key, _)| key.model == model);
        let failure = refused.find(|(key, _)| served.is_none_or(|s| s.version <= key.version));
        for answer in waiting {
            let outcome = match failure {
                Some((_, reason)) => {
                    Err(CommandError::Failed(format!("failed to load '{model}': {reason}")))
                }
                None => Ok(()),
            };
            // The client may have gone.
            let _ = answer.send(outcome);
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
        let at = seconds_since_1970();
        if let Err(error) = self.store.put_quarantine(digest, Quarantined { what, reason, at }) {
            tracing::error!("a variant that failed is not remembered as such: {error}");
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
            calibration: self.calibration_of(&key.model),
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
        self.sample_requests(&key.model);
        self.want_ladder(&key);
    }

    pub(super) fn calibration_of(&self, model: &str) -> Option<(u64, i64, i64)> {
        fingerprint(&self.config.model_dir.join(model).join("calibration.npz"))
    }

    /// Which ladder a served model wants: other ratios or samples give other rungs, other engines other
    /// latencies.
    fn ladder_id(&self, served: &Served) -> LadderId {
        let identity = self.loader_for(&served.key.model).identity();
        let (ladder, floor) = (&served.config.ladder, served.config.quality_floor);
        let samples = served.config.calibration.samples;
        // Which live samples does not matter: a better draw of the same requests is no reason to build
        // a ladder anew.
        let source = match (served.calibration, self.live_samples(served)) {
            (None, Some(_)) => "requests".to_owned(),
            (file, _) => format!("{file:?}"),
        };
        let recipe = format!("{ladder:?} floor {floor} samples {samples} of {source}");
        LadderId::new(served.digest, &identity, &recipe)
    }

    /// Takes the kept ladder, or queues a build.
    pub(super) fn want_ladder(&mut self, key: &VersionKey) {
        let Some(served) = self.served.get(&key.model) else { return };
        if !served.config.ladder.enabled {
            return;
        }
        let id = self.ladder_id(served);
        if let Some(ladder) = self.store.ladder(&id) {
            tracing::info!(model = key.model, "its ladder was built before");
            self.note_build(id, BuildState::Done);
            return self.take_ladder(&key.model, ladder);
        }
        let failed = match self.store.build(&id).map(|record| &record.build) {
            Some(BuildState::Failed { reason }) => Some(reason.clone()),
            Some(BuildState::Queued | BuildState::Building | BuildState::Done) | None => None,
        };
        let Some(served) = self.served.get_mut(&key.model) else { return };
        if let Some(reason) = failed {
            served.build = Build::Failed(reason);
            return;
        }
        served.build = Build::Queued;
        self.note_build(id, BuildState::Queued);
        self.builds.push_back(key.clone());
        self.next_build();
    }

    fn note_build(&mut self, id: LadderId, build: BuildState) {
        let used = seconds_since_1970();
        let before = self.store.build(&id).cloned().unwrap_or_default();
        if let Err(error) = self.store.put_build(id, LadderRecord { build, used, ..before }) {
            tracing::warn!("how a build stands is not kept: {error}");
        }
    }

    /// Starts the next build where none runs. One at a time: a build may take a core for minutes.
    fn next_build(&mut self) {
        while self.building.is_none() {
            let Some(key) = self.builds.pop_front() else { return };
            let threads = self.loader_for(&key.model).threads;
            let samples = self.samples_for(&key.model);
            let Some(served) = self.served.get(&key.model).filter(|s| s.key == key) else {
                continue;
            };
            let id = self.ladder_id(served);
            let out = match self.store.begin_ladder(&id) {
                Ok(out) => out,
                Err(error) => {
                    self.build_failed(&key, error.to_string());
                    continue;
                }
            };
            let job = BuildJob {
                model: served.path.clone(),
                out,
                runtime: self.loader.library.clone(),
                state_dir: self.config.state_dir.clone(),
                samples,
                most_samples: served.config.calibration.samples,
                ratios: served.config.ladder.ratios.clone(),
                method: served.config.ladder.method.to_string(),
                seed: served.config.ladder.seed,
                threads,
                floor: served.config.quality_floor,
                timeout: self.config.build.timeout.into(),
                memory: self.config.build.memory.map(|memory| memory.0),
                nice: self.config.build.nice,
            };
            self.note_build(id, BuildState::Building);
            if let Some(served) = self.served.get_mut(&key.model) {
                served.build = Build::Running { share: 0.0, stage: "starting".to_owned() };
            }
            tracing::info!(model = key.model, "its ladder is being built");
            self.building = Some(key.clone());
            self.build_since = None;
            let (wisher, wish) = watch::channel(Wish::Run);
            self.build_wish = wisher;
            spawn_build(self.events.clone(), key, id, job, wish);
        }
    }

    /// What a ladder is made with: the operator's samples, else those of live requests, else nothing.
    fn samples_for(&mut self, model: &str) -> Option<(PathBuf, CalibrationSource)> {
        let given = self.config.model_dir.join(model).join("calibration.npz");
        if given.is_file() {
            return Some((given, CalibrationSource::File));
        }
        self.served.get(model).and_then(|served| self.live_samples(served))?;
        if let Some((kept, _)) = self.store.reservoir(model) {
            return Some((kept, CalibrationSource::Live));
        }
        // Their file is gone or damaged: they are drawn anew.
        self.drop_samples(model);
        self.sample_requests(model);
        None
    }

    fn build_failed(&mut self, key: &VersionKey, reason: String) {
        tracing::error!(model = key.model, "no ladder: {reason}");
        if let Some(served) = self.served.get_mut(&key.model).filter(|s| s.key == *key) {
            served.build = Build::Failed(reason);
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
        id: LadderId,
        outcome: Result<(), ChildError>,
    ) {
        self.building = None;
        self.metrics.build_progress(&key.model, key.version, None);
        // A crash will come again; a full disk or a shutdown need not.
        let for_good = matches!(
            outcome,
            Err(ChildError::Crashed { .. }
                | ChildError::Failed { .. }
                | ChildError::OutOfMemory { .. }
                | ChildError::TimedOut { .. })
        );
        let kept = outcome
            .map_err(|error| format!("its build failed: {error}"))
            .and_then(|()| self.store.commit_ladder(&id).map_err(|error| error.to_string()));
        let wanted = self.served.get(&key.model).filter(|served| served.key == *key);
        let wanted = wanted.is_some_and(|served| self.ladder_id(served) == id);
        match kept {
            Ok(ladder) => {
                self.note_build(id, BuildState::Done);
                let rungs = ladder.manifest.rungs.len();
                tracing::info!(model = key.model, rungs, "its ladder is built");
                if wanted {
                    self.take_ladder(&key.model, ladder);
                }
                let ids: Vec<_> = self.served.values().map(|s| self.ladder_id(s)).collect();
                self.store.drop_old_ladders(&ids);
            }
            Err(reason) => {
                if for_good {
                    self.note_build(id, BuildState::Failed { reason: reason.clone() });
                }
                if wanted {
                    self.build_failed(key, reason);
                }
            }
        }
        self.next_build();
    }

    /// Makes the rungs of a ladder candidates and loads them.
    fn take_ladder(&mut self, model: &str, ladder: Ladder) {
        let Ladder { manifest, folder: dir } = ladder;
        let Some(served) = self.served.get_mut(model) else { return };
        if served.current != 0 {
            // A rung of the ladder before serves: the model is loaded anew behind it, with this one.
            self.arrivals.forget(model);
            self.look.notify_one();
            return;
        }
        let micros = |us: f64| Duration::from_secs_f64((us / 1e6).clamp(0.0, 3600.0));
        served.candidates.truncate(1);
        served.candidates[0].p50 = micros(manifest.dense.p50_us);
        served.candidates[0].p99 = micros(manifest.dense.p99_us);
        for rung in &manifest.rungs {
            // Ratios were compared run by run; single percentiles took in whatever else the box did.
            let share = rung.figures.ratio;
            let p50 = micros(manifest.dense.p50_us * share);
            let p99 = micros(manifest.dense.p99_us * share);
            let known = self.store.quarantined().get(&rung.digest).map(|q| q.reason.clone());
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
        let made_up = matches!(
            &served.build,
            Build::Done(manifest) if manifest.calibration.source == CalibrationSource::Synthetic
        );
        for (index, candidate) in served.candidates.iter_mut().enumerate() {
            let Standby::Waiting(_) = candidate.standby else { continue };
            // What noise says of quality holds for noise: only who asks for none takes its word.
            if index > 0 && made_up && floor > 0.0 {
                let why = "its quality is not known: no calibration.npz was given, and made-up \
                           samples prove nothing; give one, or let samples of requests be kept \
                           (calibration: {live: true})";
                candidate.standby = Standby::Waiting(why.to_owned());
                continue;
            }
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
            Ok(opened) => {
                candidate.standby = Standby::Loaded(opened.sessions);
                self.resume(key, variant);
            }
            Err(unfit) if unfit.for_good => {
                candidate.standby = Standby::Withdrawn(unfit.reason.clone());
                tracing::error!(model = key.model, variant, "withdrawn: {}", unfit.reason);
                self.put_into_quarantine(digest, format!("{} {variant}", key.model), unfit.reason);
            }
            Err(unfit) => candidate.standby = Standby::Waiting(unfit.reason),
        }
    }

    /// After a restart the variant that served last takes over again as soon as it is loaded: whatever
    /// made it necessary is likely to last.
    fn resume(&mut self, key: &VersionKey, variant: &str) {
        let Some(served) = self.served.get(&key.model).filter(|served| served.swaps == 0) else {
            return;
        };
        let last = self.store.model(&key.model).in_service;
        let this =
            InService { version: key.version, dense: served.digest, variant: variant.to_owned() };
        let to = served.candidates.iter().position(|c| c.info.name == variant);
        if let Some(to) = to.filter(|to| *to > 0 && last == Some(this)) {
            let because = governor::Because::Budget;
            self.switch(&governor::Action { model: key.model.clone(), to, because });
        }
    }

    fn remember_variant(&mut self, model: &str) {
        let Some(served) = self.served.get(model) else { return };
        let in_service = Some(InService {
            version: served.key.version,
            dense: served.digest,
            variant: served.candidates[served.current].info.name.clone(),
        });
        let record = ModelRecord { in_service, ..self.store.model(model) };
        if let Err(error) = self.store.put_model(model, record) {
            tracing::warn!(model, "the variant in service is not remembered: {error}");
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
        let fault = served.fault.take();
        leaving.standby = match &fault {
            Some(reason) => Standby::Withdrawn(reason.clone()),
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
        if let Some(reason) = fault {
            let what = format!("{} {from}", key.model);
            self.put_into_quarantine(left, what, format!("it failed in service: {reason}"));
        }
        self.remember_variant(&key.model);
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
        // Dense is what the operator gave: there is nothing to go back to. A rung that has served its
        // probation is no worse than dense: a request that fails it is likely at fault itself.
        let panicked = matches!(notice.fault, Fault::Panic(_));
        if served.current != 0 && (current.on_probation() || panicked) {
            served.fault = Some(reason);
        }
    }

    pub(super) fn removed(&mut self, key: &VersionKey) {
        self.refused.remove(key);
        if self.served.get(&key.model).is_some_and(|served| served.key == *key) {
            self.unload(key, "its file is gone");
            self.sampling.remove(&key.model);
            if !self.arrivals.knows(&key.model) {
                self.drop_samples(&key.model);
            }
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
        if self.building.as_ref() == Some(key) {
            // Nobody is there for its ladder.
            self.build_wish.send_replace(Wish::End);
        }
    }
}

fn spawn_build(
    events: tokio::sync::mpsc::Sender<Event>,
    key: VersionKey,
    id: LadderId,
    job: BuildJob,
    wish: watch::Receiver<Wish>,
) {
    tokio::spawn(async move {
        let (told, of) = (events.clone(), key.clone());
        let mut tell = move |event: BuildEvent| match event {
            BuildEvent::Progress { stage, done, total } => {
                let share = done as f64 / total.max(1) as f64;
                // Progress that finds the queue full is not worth waiting for.
                let _ = told.try_send(Event::Building { key: of.clone(), share, stage });
            }
            // The manifest will say it all.
            BuildEvent::Rung { .. } | BuildEvent::NotBuilt { .. } => {}
        };
        let outcome = build(&this_program(), &job, wish, &mut tell).await;
        let _ = events.send(Event::Built { key, id, outcome }).await;
    });
}

/// ONNX Runtime and what it calls speak in several lines; a reason is one.
fn one_line(reason: &str) -> String {
    let lines = reason.lines().map(str::trim).filter(|line| !line.is_empty());
    lines.collect::<Vec<_>>().join(" ")
}

/// The size and the time of the last change of a file, which tell it from its predecessors.
fn fingerprint(path: &Path) -> Option<(u64, i64, i64)> {
    use std::os::unix::fs::MetadataExt;
    let meta = std::fs::metadata(path).ok()?;
    Some((meta.len(), meta.mtime(), meta.mtime_nsec()))
}

fn seconds_since_1970() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

/// Memory that can be used without swapping, bytes.
fn available_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}
