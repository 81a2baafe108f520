//! How a served version gets its ladder: kept from before, or built, one at a time.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::Agent;
use super::confined::Seen;
use super::event::{Event, Fate, Lending};
use super::served::{Build, Candidate, Served, Standby};
use crate::arrivals::VersionKey;
use crate::config::shape_text;
use crate::ladder::Manifest;
use crate::ladder::manifest::CalibrationSource;
use crate::limits;
use crate::shell::children::builder::{BuildEvent, BuildJob, blame, build};
use crate::shell::children::{ChildError, Memory, Wish, this_program};
use crate::shell::files;
use crate::shell::metrics::{BuildOutcome, Metrics};
use crate::shell::slot::VariantInfo;
use crate::shell::spans::{Kind, Place, Span, Tracer, Value};
use crate::shell::store::{BuildState, Damage, Ladder, LadderId, LadderRecord};
use crate::units::Version;

impl Agent {
    pub(super) fn calibration_of(
        &self,
        model: &str,
        version: Option<Version>,
    ) -> Option<(u64, i64, i64)> {
        fingerprint(&self.samples_with(model, version)?)
    }

    /// Which ladder a served model wants: other ratios or samples give other rungs, other engines other
    /// latencies.
    pub(super) fn ladder_id(&self, served: &Served) -> LadderId {
        let identity = self.loader_for(&served.key.model).identity();
        let (ladder, floor) = (&served.config.ladder, served.config.quality_floor);
        let samples = served.config.calibration.samples;
        // Which live samples does not matter: a better draw of the same requests is no reason to build
        // a ladder anew.
        let source = match (served.calibration, self.live_samples(served)) {
            (None, Some(_)) => "requests".to_owned(),
            (file, _) => format!("{file:?}"),
        };
        let mut recipe = format!("{ladder:?} floor {floor} samples {samples} of {source}");
        // What is made up has the first of the named shapes.
        let shape = served.config.shapes.first();
        if !shape.is_empty() {
            recipe.push_str(&format!(" in {}", shape_text(&shape)));
        }
        LadderId::new(served.digest, &identity, &recipe)
    }

    /// Takes the kept ladder, or queues a build.
    pub(super) fn want_ladder(&mut self, key: &VersionKey) {
        let Some(served) = self.served.get(&key.model) else { return };
        if !served.config.ladder.enabled {
            return;
        }
        let id = self.ladder_id(served);
        self.end_unwanted_build(&key.model);
        if let Some(look) = self.store.look_at_ladder(&id) {
            // All of its files are read: seconds on a slow disk, and off the loop for that.
            let (events, key) = (self.events.clone(), key.clone());
            tokio::spawn(async move {
                let found = tokio::task::spawn_blocking(look).await;
                let found =
                    found.unwrap_or_else(|error| Err(Damage::Unreadable(error.to_string())));
                let found = found.map(Box::new);
                let _ = events.send(Event::LadderFound { key, id, found }).await;
            });
            return;
        }
        // The agent may have ended between the end of a build and its being taken into place.
        if let Some(ladder) = self.store.finished_ladder(&id) {
            tracing::info!(model = key.model, "its ladder was built before");
            self.metrics.built(&key.model, key.version, BuildOutcome::Kept);
            self.note_build(id, BuildState::Done);
            return self.take_ladder(&key.model, ladder);
        }
        self.queue_build(key, id);
    }

    /// What became of a ladder that was built before.
    pub(super) fn ladder_found(
        &mut self,
        key: &VersionKey,
        id: LadderId,
        found: Result<Box<Manifest>, Damage>,
    ) {
        let served = self.served.get(&key.model).filter(|served| served.key == *key);
        // Wanted meanwhile is another one, and that is being looked after.
        if served.is_none_or(|served| self.ladder_id(served) != id) {
            return;
        }
        match found {
            Ok(manifest) => {
                tracing::info!(model = key.model, "its ladder was built before");
                self.metrics.built(&key.model, key.version, BuildOutcome::Kept);
                self.note_build(id, BuildState::Done);
                let ladder = Ladder { manifest: *manifest, folder: self.store.ladder_dir(&id) };
                self.take_ladder(&key.model, ladder);
            }
            Err(damage) => {
                self.store.set_ladder_aside(&id, &damage);
                self.queue_build(key, id);
            }
        }
    }

    fn queue_build(&mut self, key: &VersionKey, id: LadderId) {
        let failed = match self.store.build(&id).map(|record| &record.build) {
            Some(BuildState::Failed { reason }) => Some(reason.clone()),
            Some(BuildState::Queued | BuildState::Building | BuildState::Done) | None => None,
        };
        let Some(served) = self.served.get_mut(&key.model) else { return };
        if let Some(reason) = failed {
            served.build = Build::Failed(reason);
            return;
        }
        if self.building.as_ref() == Some(&(key.clone(), id)) {
            // It is on its way.
            return;
        }
        served.build = Build::Queued;
        self.note_build(id, BuildState::Queued);
        if !self.builds.contains(key) {
            self.builds.push_back(key.clone());
        }
        self.next_build();
    }

    /// Ends the build that runs where it is of this model and nobody wants its ladder any more.
    pub(super) fn end_unwanted_build(&mut self, model: &str) {
        let Some((key, id)) = self.building.as_ref().filter(|(key, _)| key.model == model) else {
            return;
        };
        let wanted = |served: &&Served| served.key == *key && served.awaits.is_none();
        let served = self.served.get(model).filter(wanted);
        if served.is_none_or(|served| self.ladder_id(served) != *id) {
            self.build_wish.send_replace(Wish::End);
        }
    }

    fn note_build(&mut self, id: LadderId, build: BuildState) {
        let used = super::lifecycle::seconds_since_1970();
        let before = self.store.build(&id).cloned().unwrap_or_default();
        if let Err(error) = self.store.put_build(id, LadderRecord { build, used, ..before }) {
            tracing::warn!("how a build stands is not kept: {error}");
        }
    }

    /// Starts the next build where none runs. One at a time: a build may take a core for minutes.
    fn next_build(&mut self) {
        while self.building.is_none() {
            let Some(key) = self.builds.pop_front() else { return };
            let loader = self.loader_for(&key.model);
            let (threads, align) = (loader.threads, loader.alignment());
            let samples = self.samples_for(&key.model);
            let wanted = |served: &&Served| served.key == key && served.awaits.is_none();
            let Some(served) = self.served.get(&key.model).filter(wanted) else {
                continue;
            };
            let id = self.ladder_id(served);
            if self.store.look_at_ladder(&id).is_some() {
                // A build for another name, or before a change that was taken back, has made it.
                self.want_ladder(&key);
                continue;
            }
            let out = match self.store.begin_ladder(&id) {
                Ok(out) => out,
                Err(error) => {
                    let due = self.build_due(&key, id, Fate::Later);
                    self.build_failed(&key, error.to_string(), due);
                    continue;
                }
            };
            let job = BuildJob {
                model: served.path.clone(),
                out,
                runtime: self.loader.library.clone(),
                provider: loader.provider.clone(),
                state_dir: self.config.state_dir.clone(),
                samples,
                shape: served.config.shapes.first(),
                most_samples: served.config.calibration.samples,
                ratios: served.config.ladder.ratios.clone(),
                method: served.config.ladder.method.to_string(),
                seed: served.config.ladder.seed,
                threads,
                align,
                floor: served.config.quality_floor,
                timeout: self.config.build.timeout.into(),
                memory: Memory::or_part(self.config.build.memory, limits::BUILD_MEMORY_PARTS),
                sandbox: self.config.sandbox,
                folders: self.store.children_dir(),
                nice: self.config.build.nice,
            };
            self.note_build(id, BuildState::Building);
            if let Some(served) = self.served.get_mut(&key.model) {
                served.build = Build::Running { share: 0.0, stage: "starting".to_owned() };
            }
            tracing::info!(model = key.model, "its ladder is being built");
            self.building = Some((key.clone(), id));
            self.build_since = None;
            let (wisher, wish) = watch::channel(Wish::Run);
            self.build_wish = wisher;
            let told = Told {
                events: self.events.clone(),
                confined: self.loader.confined.clone(),
                metrics: Arc::clone(&self.metrics),
                tracer: self.tracer.clone(),
            };
            spawn_build(told, key, id, job, wish);
        }
    }

    /// What a ladder is made with: the operator's samples, else those of live requests, else nothing.
    fn samples_for(&mut self, model: &str) -> Option<(PathBuf, CalibrationSource)> {
        if let Some(given) = self.given_samples(model) {
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

    /// `due`: when it is tried again; `None` where it never is.
    fn build_failed(&mut self, key: &VersionKey, reason: String, due: Option<Duration>) {
        let again = due.map_or_else(String::new, |wait| format!("; it is tried again in {wait:?}"));
        let reason = format!("{reason}{again}");
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
        // A crash will come again; a full disk, or what the kernel or an operator ends, need not.
        let fate = outcome.as_ref().map_or_else(|error| blame(error).into(), |()| Fate::Later);
        let asked_to_end = matches!(outcome, Err(ChildError::Ended));
        let kept = outcome
            .map_err(|error| format!("its build failed: {error}"))
            .and_then(|()| self.store.commit_ladder(&id).map_err(|error| error.to_string()));
        let served = self.served.get(&key.model).filter(|served| served.key == *key);
        let is_served = served.is_some();
        let wanted = served.is_some_and(|served| self.ladder_id(served) == id);
        if is_served && !asked_to_end {
            let outcome = if kept.is_ok() { BuildOutcome::Built } else { BuildOutcome::Failed };
            self.metrics.built(&key.model, key.version, outcome);
        }
        match kept {
            Ok(ladder) => {
                self.note_build(id, BuildState::Done);
                self.build_went_well(key);
                let rungs = ladder.manifest.rungs.len();
                tracing::info!(model = key.model, rungs, "its ladder is built");
                if wanted {
                    self.take_ladder(&key.model, ladder);
                } else {
                    self.want_current_ladder(&key.model);
                }
                let ids: Vec<_> = self.served.values().map(|s| self.ladder_id(s)).collect();
                self.store.drop_old_ladders(&ids);
                self.evict_compiled();
            }
            Err(reason) => {
                let due = self.build_due(key, id, fate);
                if due.is_none() {
                    self.note_build(id, BuildState::Failed { reason: reason.clone() });
                }
                if wanted {
                    self.build_failed(key, reason, due);
                } else {
                    self.want_current_ladder(&key.model);
                }
            }
        }
        self.next_build();
    }

    /// A build has ended that was of another ladder than its model wants by now: that one's turn.
    fn want_current_ladder(&mut self, model: &str) {
        let waits =
            |served: &&Served| matches!(served.build, Build::Queued | Build::Running { .. });
        if let Some(served) = self.served.get(model).filter(waits) {
            let key = served.key.clone();
            self.want_ladder(&key);
        }
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
        let on = served.standing.provider.execution_provider();
        if !manifest.engine.contains(on) {
            // Its latencies would promise what nobody measured here.
            let reason =
                format!("its ladder was measured on {}, and it runs on {on}", manifest.engine);
            tracing::error!(model, "no ladder: {reason}");
            served.build = Build::Failed(reason);
            return;
        }
        let micros = |us: f64| Duration::from_secs_f64((us / 1e6).clamp(0.0, 3600.0));
        let floor = served.config.quality_floor;
        served.candidates.truncate(1);
        served.candidates[0].p50 = Some(micros(manifest.dense.p50_us));
        served.candidates[0].p99 = Some(micros(manifest.dense.p99_us));
        for rung in &manifest.rungs {
            // Ratios were compared run by run; single percentiles took in whatever else the box did.
            let share = rung.figures.ratio;
            let p50 = micros(manifest.dense.p50_us * share);
            let p99 = micros(manifest.dense.p99_us * share);
            let known = self.store.quarantined().get(&rung.digest);
            let known = known.filter(|why| why.holds_at(floor)).map(|why| why.reason.clone());
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
                p50: Some(p50),
                p99: Some(p99),
                ran_on: None,
                lending: Lending::Off,
                standby,
                held_until: None,
                faults: 0,
                disproved: None,
            });
        }
        served.build = Build::Done(Box::new(manifest));
        self.open_missing(model);
    }
}

/// Whom a build tells.
struct Told {
    events: tokio::sync::mpsc::Sender<Event>,
    confined: Seen,
    metrics: Arc<Metrics>,
    tracer: Option<Arc<Tracer>>,
}

fn spawn_build(
    told: Told,
    key: VersionKey,
    id: LadderId,
    job: BuildJob,
    wish: watch::Receiver<Wish>,
) {
    tokio::spawn(async move {
        let Told { events, confined, metrics, tracer } = told;
        let begun = Instant::now();
        let (told, of) = (events.clone(), key.clone());
        let mut tell = move |event: BuildEvent| match event {
            BuildEvent::Confined(how) => confined.told(how),
            BuildEvent::Reused { rungs, latencies } => {
                metrics.reused(&of.model, of.version, rungs, latencies);
            }
            BuildEvent::Progress { stage, done, total } => {
                let share = done as f64 / total.max(1) as f64;
                // Progress that finds the queue full is not worth waiting for.
                let _ = told.try_send(Event::Building { key: of.clone(), share, stage });
            }
            // The manifest will say it all.
            BuildEvent::Rung { .. } | BuildEvent::NotBuilt { .. } => {}
        };
        let outcome = build(&this_program(), &job, wish, &mut tell).await;
        if let Some(tracer) = tracer {
            tracer.send(span(tracer.root(), &key, begun, outcome.as_ref().err()));
        }
        if outcome.is_ok() {
            // What is written out already takes the loop no time when the ladder is taken into place.
            let folder = job.out.clone();
            let _ = tokio::task::spawn_blocking(move || files::write_out(&folder)).await;
        }
        let _ = events.send(Event::Built { key, id, outcome }).await;
    });
}

fn span(place: Place, key: &VersionKey, begun: Instant, error: Option<&ChildError>) -> Span {
    let told = vec![
        ("blochd.model", Value::Text(key.model.clone())),
        ("blochd.version", Value::Whole(key.version.0)),
    ];
    let (ended, error) = (Instant::now(), error.map(ToString::to_string));
    Span { place, name: "build", kind: Kind::Internal, begun, ended, told, error }
}

/// The size and the time of the last change of a file, which tell it from its predecessors.
fn fingerprint(path: &Path) -> Option<(u64, i64, i64)> {
    use std::os::unix::fs::MetadataExt;
    let meta = std::fs::metadata(path).ok()?;
    Some((meta.len(), meta.mtime(), meta.mtime_nsec()))
}
