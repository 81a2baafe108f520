//! The agent as a node of a fleet: what the machine that brings bundles into force has it do.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::sync::Notify;

use super::Agent;
use super::event::{Event, Fate};
use super::lifecycle::seconds_since_1970;
use crate::config::{self, Inbox};
use crate::fleet::apply::{
    Context, Effect, Event as Happened, Failure, Outcome, Report, Step, Stepped, Survey, Task,
};
use crate::fleet::artifact::SAMPLES_FILE;
use crate::fleet::health::{Health, Seen, baseline};
use crate::fleet::{Artifact, KeySet, Machine, Node, Record, Refused, Timestamp};
use crate::limits;
use crate::shell::fleet::depot::Depot;
use crate::shell::fleet::fetch::{self, Fetcher};
use crate::shell::fleet::inbox::Bundles;
use crate::shell::fleet::{node, place, trusted};
use crate::shell::store::KeptBundle;
use crate::shell::watch;

/// What the agent is in its fleet.
pub struct Fleet {
    node: Node,
    configured: Option<KeySet>,
    probation: Duration,
    bandwidth: Option<u64>,
    depot: Depot,
    pub(super) inbox: Option<PathBuf>,
    machine: Machine,
    pub(super) bundles: Bundles,
    /// Bundles that are offered again once nothing is under way.
    pub(super) waiting: BTreeSet<PathBuf>,
    settles: bool,
    /// The last one offered has to wait.
    pub(super) busy: bool,
    /// The task that runs, and what ends it.
    running: Option<(u64, Arc<AtomicBool>)>,
    looked: Instant,
    /// When the machine is started again, since what it wanted to write could not be written.
    pub(super) again: Option<Instant>,
    /// Why an artifact is still to come.
    delayed: Option<String>,
    counts: BTreeMap<(&'static str, &'static str), u64>,
    last_refused: Option<Value>,
    last: Option<Value>,
    _watcher: Option<notify::RecommendedWatcher>,
}

impl Agent {
    /// Takes up what was left when the agent was last stopped. A box that belongs to no fleet has nothing to
    /// do.
    pub(super) fn join_fleet(&mut self, changed: &Arc<Notify>) {
        let record = self.store.fleet();
        let config = self.config.fleet.clone();
        let alone = config.keys.0.is_empty() && config.inbox.is_none();
        if alone && record == Record::default() {
            return;
        }
        let node = match node(&config) {
            Ok(node) => node,
            Err(error) => return tracing::error!("no bundle is taken: {error}"),
        };
        let configured = trusted(&config).unwrap_or_else(|error| {
            tracing::error!("every bundle is refused: {error}");
            None
        });
        let inbox = config.inbox.map(|Inbox(dir)| dir);
        let watcher = inbox.as_ref().and_then(|inbox| watch_inbox(inbox, changed));
        tracing::info!(node = node.id, "a node of a fleet");
        self.fleet = Some(Fleet {
            node,
            configured,
            probation: config.probation.into(),
            bandwidth: config.bandwidth.map(|config::Bandwidth(bytes)| bytes.0),
            depot: Depot::new(config.artifacts),
            inbox,
            machine: Machine::default(),
            bundles: Bundles::default(),
            waiting: BTreeSet::new(),
            settles: false,
            busy: false,
            running: None,
            looked: Instant::now(),
            again: None,
            delayed: None,
            counts: BTreeMap::new(),
            last_refused: None,
            last: None,
            _watcher: watcher,
        });
        self.resume_fleet();
        self.look_at_inbox();
    }

    /// Goes on from what was saved last.
    fn resume_fleet(&mut self) {
        let record = self.store.fleet();
        let bytes = record.candidate().and_then(|kept| self.store.bundle(kept.digest));
        let up = self.started.elapsed();
        let Some(fleet) = &mut self.fleet else { return };
        fleet.stop();
        fleet.again = None;
        let stepped = Machine::resume(record, bytes.as_deref(), &fleet.context(up));
        self.perform(stepped);
    }

    pub(super) fn happened(&mut self, event: Happened) {
        let up = self.started.elapsed();
        let Some(fleet) = &self.fleet else { return };
        let stepped = fleet.machine.step(event, &fleet.context(up));
        self.perform(stepped);
    }

    /// What came of a task.
    pub(super) fn fleet_done(&mut self, job: u64, outcome: Outcome) {
        // What a task that is no longer wanted says is nobody's business.
        if let Some(fleet) = self.fleet.as_mut().filter(|fleet| fleet.machine.job() == job) {
            let delayed = match &outcome {
                Outcome::Fetched(Err(Failure::Later(why))) => Some(why.clone()),
                _ => None,
            };
            if let Some(why) = delayed.as_ref().filter(|_| delayed != fleet.delayed) {
                tracing::warn!("an artifact is still to come: {why}; it is asked for again");
            }
            fleet.delayed = delayed;
        }
        self.happened(Happened::Done { job, outcome });
    }

    /// Performs effects in their order. Where something is not kept, the step is not taken.
    fn perform(&mut self, (machine, effects): Stepped) {
        let mut task = None;
        for effect in effects {
            let kept = match effect {
                Effect::Keep { digest, bytes } => self.store.put_bundle(digest, &bytes),
                Effect::Save(record) => self.store.put_fleet(&record),
                Effect::Begin { job, task: begun } => {
                    task = Some((job, begun));
                    Ok(())
                }
                Effect::Reload => {
                    self.reload();
                    Ok(())
                }
                Effect::Sweep { keep } => {
                    self.store.sweep_fleet(&keep);
                    Ok(())
                }
                Effect::Report(report) => {
                    self.fleet_reports(report);
                    Ok(())
                }
            };
            if let Err(error) = kept {
                tracing::error!("a bundle does not go on, and is taken up again later: {error}");
                if let Some(fleet) = &mut self.fleet {
                    fleet.again = Some(Instant::now() + limits::FLEET_AGAIN);
                }
                return;
            }
        }
        let Some(fleet) = &mut self.fleet else { return };
        fleet.machine = machine;
        if fleet.running.as_ref().is_some_and(|(job, _)| *job != fleet.machine.job()) {
            fleet.stop();
        }
        if let Some((job, task)) = task {
            self.begin_fleet_task(job, task);
        }
    }

    pub(super) fn fleet_reports(&mut self, report: Report) {
        if let Some(linked) = &mut self.linked {
            linked.hear(&report);
        }
        let Some(fleet) = &mut self.fleet else { return };
        let (outcome, kind) = match &report {
            Report::Refused { name, why } if why.is_wrong() => {
                tracing::error!(bundle = name, "refused: {why}");
                ("refused", why.kind())
            }
            Report::Refused { name, why } => {
                tracing::info!(bundle = name, "passed over: {why}");
                ("passed_over", why.kind())
            }
            Report::Begun { revision } => {
                tracing::info!(revision, "a bundle is brought into force");
                ("begun", "")
            }
            Report::Abandoned { revision, why } => {
                tracing::error!(revision, "the bundle is left alone: {why}");
                ("abandoned", "")
            }
            Report::Committed { revision } => {
                tracing::info!(revision, "the bundle is in force for good");
                ("applied", "")
            }
            Report::RolledBack { revision, why } => {
                tracing::error!(revision, "the bundle before it is in force again: {why}");
                ("rolled_back", "")
            }
        };
        if let Report::Refused { why: Refused::Busy { .. }, .. } = report {
            fleet.busy = true;
            return;
        }
        *fleet.counts.entry((outcome, kind)).or_default() += 1;
        self.metrics.fleet(fleet.counts.clone());
        match report {
            Report::Refused { name, why } => {
                let reason = why.to_string();
                let told = json!({"bundle": name, "why": why.kind(), "reason": reason});
                if why.is_wrong() {
                    fleet.last_refused = Some(told);
                }
            }
            Report::Begun { .. } => {}
            Report::Committed { revision } => {
                fleet.last = Some(json!({"revision": revision, "outcome": "applied"}));
            }
            Report::Abandoned { revision, why } => {
                fleet.last =
                    Some(json!({"revision": revision, "outcome": "abandoned", "reason": why}));
            }
            Report::RolledBack { revision, why } => {
                fleet.last =
                    Some(json!({"revision": revision, "outcome": "rolled_back", "reason": why}));
            }
        }
    }

    /// The agent's turn: what waits for a moment, and how the models do.
    pub(super) fn turn_fleet(&mut self, now: Instant) {
        let Some(fleet) = &mut self.fleet else { return };
        if fleet.again.is_some_and(|at| now >= at) {
            return self.resume_fleet();
        }
        if fleet.again.is_some() {
            return;
        }
        if now.saturating_duration_since(fleet.looked) >= limits::FLEET_LOOK {
            fleet.looked = now;
            let event = match fleet.machine.watches() {
                true => Happened::Looked(self.health()),
                false => Happened::Tick,
            };
            self.happened(event);
        }
        let Some(fleet) = &mut self.fleet else { return };
        if fleet.machine.is_idle() {
            for path in std::mem::take(&mut fleet.waiting) {
                fleet.bundles.forget(&path);
                fleet.settles = true;
            }
        }
        if fleet.settles || fleet.bundles.are_settling() {
            fleet.settles = false;
            self.look_at_inbox();
        }
    }

    /// How all models do.
    fn health(&self) -> Health {
        let mut health = Health::new();
        for (model, served) in &self.served {
            let totals = served.slot.totals();
            let met = self.verdicts.get(model).and_then(|verdict| verdict.met);
            let seen = Seen {
                serving: Some(served.key.version),
                refused: BTreeMap::new(),
                requests: totals.success + totals.failure,
                failures: totals.failure,
                met,
            };
            health.insert(model.clone(), seen);
        }
        for (key, why) in &self.refused {
            let seen = health.entry(key.model.clone()).or_default();
            seen.refused.insert(key.version, why.clone());
        }
        health
    }

    fn begin_fleet_task(&mut self, job: u64, task: Task) {
        let health = self.health();
        let Some(fleet) = &mut self.fleet else { return };
        let stop = Arc::new(AtomicBool::new(false));
        fleet.running = Some((job, Arc::clone(&stop)));
        let (models, artifacts) = (self.config.model_dir.clone(), self.store.artifacts_dir());
        let trusted = fleet.machine.record().trusted(fleet.configured.as_ref()).cloned();
        let (inbox, bandwidth, depot) = (fleet.inbox.clone(), fleet.bandwidth, fleet.depot.clone());
        let blocking: Box<dyn FnOnce() -> Outcome + Send> = match task {
            Task::Reserve { artifacts: wanted } => {
                Box::new(move || Outcome::Reserved(fetch::reserve(&wanted, &artifacts, &models)))
            }
            Task::Fetch { artifact } => Box::new(move || {
                let fetcher = Fetcher::new(artifacts, inbox, depot, bandwidth, stop);
                Outcome::Fetched(fetcher.fetch(&artifact, trusted.as_ref()))
            }),
            Task::Survey { artifacts: wanted } => Box::new(move || {
                let there = place::there(&models, &wanted);
                let survey = |there| Survey { before: baseline(&health), there };
                Outcome::Surveyed(there.map(survey))
            }),
            Task::Place { artifacts: wanted } => {
                Box::new(move || Outcome::Placed(place::place(&models, &artifacts, &wanted)))
            }
            Task::Remove { placed } => {
                Box::new(move || Outcome::Removed(place::remove(&models, &placed)))
            }
            Task::Check => {
                let outcome = Outcome::Checked(self.check_candidate());
                Box::new(move || outcome)
            }
            Task::Try { artifact } => {
                return self.try_candidate(
                    job,
                    &artifact,
                    fetch::model_file(&artifacts, &artifact),
                );
            }
        };
        let events = self.events.clone();
        tokio::spawn(async move {
            // One that panicked or was not run says nothing; the next start takes it up.
            if let Ok(outcome) = tokio::task::spawn_blocking(blocking).await {
                let _ = events.send(Event::Fleet { job, outcome }).await;
            }
        });
    }

    /// Whether the configuration holds with the candidate's part in place of that in force.
    fn check_candidate(&self) -> Result<(), String> {
        let Some(fleet) = &self.fleet else { return Ok(()) };
        let candidate = fleet.machine.record().candidate().cloned();
        let kept = candidate.and_then(|kept| KeptBundle::of(&self.store, kept));
        let kept = kept.ok_or_else(|| "its bundle is no longer there".to_owned())?;
        (self.reread)(Some(&kept)).map(drop)
    }

    /// Tries a model in a child, as every version is tried before it serves.
    fn try_candidate(&self, job: u64, artifact: &Artifact, path: PathBuf) {
        let mut loader = self.loader_for(&artifact.name);
        // Its own samples come with it.
        if artifact.files.iter().any(|file| file.name == SAMPLES_FILE) {
            loader.samples = Some(path.with_file_name(SAMPLES_FILE));
        }
        let (events, permits) = (self.events.clone(), Arc::clone(&self.loading));
        tokio::spawn(async move {
            let _one_at_a_time = permits.acquire_owned().await;
            let outcome = loader.only_try(path).await.map_err(|unfit| match unfit.fate {
                Fate::ForGood | Fate::WhenChanged => Failure::ForGood(unfit.reason),
                Fate::Doubtful | Fate::Provider | Fate::Later => Failure::Later(unfit.reason),
            });
            let outcome = Outcome::Tried(outcome);
            let _ = events.send(Event::Fleet { job, outcome }).await;
        });
    }

    /// For `blochd status`.
    pub(super) fn fleet_status(&self) -> Value {
        let Some(fleet) = &self.fleet else { return Value::Null };
        let record = fleet.machine.record();
        let left = fleet.machine.probation_ends();
        let left = left.map(|end| end.saturating_sub(self.started.elapsed()).as_secs());
        let revision = |kept: Option<&crate::fleet::Kept>| kept.map(|kept| kept.revision);
        let downloads = matches!(record.step, Step::Downloading { .. });
        let delayed = fleet.delayed.as_ref().filter(|_| downloads);
        json!({
            "node": fleet.node.id, "labels": fleet.node.labels,
            "revision": revision(record.in_force()), "good": revision(record.good.as_ref()),
            "step": record.step, "probation_left_s": left, "seen": record.seen, "last": fleet.last,
            "delayed": delayed,
            "last_refused": fleet.last_refused,
            "counts": fleet.counts.iter().map(|((outcome, why), count)| {
                json!({"outcome": outcome, "why": why, "count": count})
            }).collect::<Vec<_>>(),
        })
    }
}

impl Fleet {
    /// What is written down of bundles.
    pub fn record(&self) -> &Record {
        self.machine.record()
    }

    pub(super) fn context(&self, up: Duration) -> Context<'_> {
        Context {
            node: &self.node,
            configured: self.configured.as_ref(),
            probation: self.probation,
            now: Timestamp(seconds_since_1970()),
            up,
        }
    }

    /// Whatever runs is no longer wanted.
    fn stop(&mut self) {
        if let Some((_, stop)) = self.running.take() {
            stop.store(true, Ordering::Relaxed);
        }
    }
}

/// One that cannot be watched is still looked at every so often.
fn watch_inbox(inbox: &Path, changed: &Arc<Notify>) -> Option<notify::RecommendedWatcher> {
    if let Err(error) = std::fs::create_dir_all(inbox) {
        tracing::warn!("cannot make the inbox {}: {error}", inbox.display());
    }
    let watcher = watch::watch(inbox, Arc::clone(changed));
    watcher.inspect_err(|error| tracing::warn!("cannot watch {}: {error}", inbox.display())).ok()
}
