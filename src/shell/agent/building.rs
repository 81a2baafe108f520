//! How a served version gets its ladder: kept from before, or built, one at a time.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::watch;

use super::Agent;
use super::event::Event;
use super::served::{Build, Candidate, Served, Standby};
use crate::arrivals::VersionKey;
use crate::ladder::manifest::CalibrationSource;
use crate::shell::children::builder::{BuildEvent, BuildJob, build};
use crate::shell::children::{ChildError, Wish, this_program};
use crate::shell::slot::VariantInfo;
use crate::shell::store::{BuildState, Ladder, LadderId, LadderRecord};

impl Agent {
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
        let ladder = self.store.ladder(&id).or_else(|| self.store.finished_ladder(&id));
        if let Some(ladder) = ladder {
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
                align,
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

/// The size and the time of the last change of a file, which tell it from its predecessors.
fn fingerprint(path: &Path) -> Option<(u64, i64, i64)> {
    use std::os::unix::fs::MetadataExt;
    let meta = std::fs::metadata(path).ok()?;
    Some((meta.len(), meta.mtime(), meta.mtime_nsec()))
}
