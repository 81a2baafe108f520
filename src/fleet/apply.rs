//! How a bundle comes into force: a machine whose every step is written down before it is taken.
//!
//! ```text
//! Idle ─► Staging ─► Downloading ─► Trying ─► Applying ─► Probation ─► Idle: in force for good
//!  ▲         │            │            │          │           │
//!  │◄────────┴────────────┴────────────┘          └─► RollingBack
//!  │◄──────────────────────────────────────────────────────┘
//! ```
//!
//! Up to `Trying` the box is as it was, and whatever fails leaves it so. The record of `Applying` is the one
//! write that brings the new bundle into force, that of `RollingBack` the one that brings the old one back:
//! what is in force is read from the record alone ([`Record::in_force`]), and all that follows makes the box
//! so, any number of times. A power cut therefore finds the old one in force or the new one.
//!
//! [`Machine::step`] is pure: its effects are performed by the shell in their order and come back as events.
//! Where an [`Effect::Keep`] or [`Effect::Save`] fails, none of the rest is performed, the step has not been
//! taken, and the shell resumes from what was saved last.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::limits;
use crate::units::{Digest, Version};

use super::admit::{Seen, Standing, Verified, admit, verify};
use super::artifact::Artifact;
use super::health::{Baseline, Health, Looks, Verdict};
use super::keys::KeySet;
use super::refused::Refused;
use super::select::Node;
use super::time::Timestamp;

/// A bundle that is kept on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    pub revision: u64,
    pub digest: Digest,
}

/// A version that a bundle brought: it goes with the bundle.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Placed {
    pub name: String,
    pub version: Version,
}

/// Where the box stands.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "snake_case")]
pub enum Step {
    #[default]
    Idle,
    /// The bundle is admitted and kept; room for its artifacts is looked for.
    Staging { bundle: Kept },
    /// Its artifacts are fetched.
    Downloading { bundle: Kept },
    /// Its configuration is read and its models are tried, beside what is in service.
    Trying { bundle: Kept },
    /// It is in force; its models are put in their places.
    Applying { bundle: Kept, placed: Vec<Placed>, before: Baseline, starts: u32 },
    /// Everything is in its place; it is watched.
    Probation { bundle: Kept, placed: Vec<Placed>, before: Baseline, starts: u32 },
    /// The one before is in force again; what this one brought is taken away.
    RollingBack { bundle: Kept, placed: Vec<Placed>, why: String },
}

/// Keys that came in a bundle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rotated {
    /// The configuration's keys that they follow: where others are named there, these hold no longer.
    pub from: Digest,
    pub keys: KeySet,
}

/// All that must survive a power cut.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Record {
    /// The newest bundle that was begun.
    pub seen: Option<Seen>,
    /// The last one that served its probation: what is returned to.
    pub good: Option<Kept>,
    pub step: Step,
    pub rotated: Option<Rotated>,
}

/// What happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A bundle was brought: its name and bytes.
    Offered { name: String, bytes: Arc<[u8]> },
    /// What came of a task. Only that of the last one counts.
    Done { job: u64, outcome: Outcome },
    /// A look at the models, a second after the last one or later.
    Looked(Health),
    /// Time passes.
    Tick,
}

/// What came of a [`Task`].
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// Whether there is room for the artifacts.
    Reserved(Result<(), String>),
    /// Whether an artifact is whole, and what the bundle says of it holds.
    Fetched(Result<(), Failure>),
    /// Whether the configuration holds together with the box's own.
    Checked(Result<(), String>),
    /// How a model did.
    Tried(Result<(), Failure>),
    /// The box as it is before the bundle comes into force, or why its models cannot be put in their places.
    Surveyed(Result<Survey, String>),
    /// Whether the models are in their places.
    Placed(Result<(), String>),
    /// Whether what the bundle brought is taken away.
    Removed(Result<(), String>),
}

/// Why something of a bundle failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// It may go well later: the network, memory.
    Later(String),
    /// It will fail again.
    ForGood(String),
}

/// The box before a bundle.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Survey {
    pub before: Baseline,
    /// Versions of the bundle that are there, with the same contents: they stay whatever becomes of it.
    pub there: Vec<Placed>,
}

/// What is to be done, in this order.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Keeps a bundle under its digest. What returns without error survives a power cut.
    Keep {
        digest: Digest,
        bytes: Arc<[u8]>,
    },
    /// Keeps the record in place of the one before; likewise.
    Save(Box<Record>),
    /// Begins a task in place of the one before.
    Begin {
        job: u64,
        task: Task,
    },
    /// Has the agent read its configuration with the part that is in force.
    Reload,
    /// Removes all bundles but these, and all artifacts.
    Sweep {
        keep: Vec<Digest>,
    },
    Report(Report),
}

/// What takes its time, one at a time.
#[derive(Debug, Clone, PartialEq)]
pub enum Task {
    /// Finds room for what is still to fetch.
    Reserve {
        artifacts: Vec<Artifact>,
    },
    Fetch {
        artifact: Artifact,
    },
    /// Reads the configuration with this bundle's part.
    Check,
    Try {
        artifact: Artifact,
    },
    /// Looks at the models, and at which of these are in their places.
    Survey {
        artifacts: Vec<Artifact>,
    },
    /// Puts these models in their places; those that are there stay.
    Place {
        artifacts: Vec<Artifact>,
    },
    /// Takes these versions away; those that are not there are fine.
    Remove {
        placed: Vec<Placed>,
    },
}

/// What operators are told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Report {
    Refused {
        name: String,
        why: Refused,
    },
    Begun {
        revision: u64,
    },
    /// It is left alone; nothing has changed.
    Abandoned {
        revision: u64,
        why: String,
    },
    /// It is in force for good.
    Committed {
        revision: u64,
    },
    /// The one before is in force again.
    RolledBack {
        revision: u64,
        why: String,
    },
}

/// What the machine is told with each event.
#[derive(Debug, Clone)]
pub struct Context<'a> {
    pub node: &'a Node,
    /// Those whom the configuration trusts.
    pub configured: Option<&'a KeySet>,
    pub probation: Duration,
    /// The wall's clock, for what expires.
    pub now: Timestamp,
    /// Time since the agent's start, for what takes its time.
    pub up: Duration,
}

/// The record, and what is known of the bundle under way.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Machine {
    record: Record,
    bundle: Option<Arc<Verified>>,
    /// The last task; what comes of those before does not count.
    job: u64,
    work: Work,
}

/// What is lost with the process.
#[derive(Debug, Clone, PartialEq, Default)]
struct Work {
    /// The artifact or model that is worked on.
    index: usize,
    /// Failures in a row.
    tries: u32,
    /// When something is tried again.
    wake: Option<Duration>,
    /// By when all must have been well once: models take their time to load.
    patience: Option<Duration>,
    /// The end of the probation, which begins when all is well for the first time.
    until: Option<Duration>,
    looks: Looks,
}

impl Record {
    /// The bundle whose configuration and models hold; `None`: the box's own files alone.
    pub fn in_force(&self) -> Option<&Kept> {
        match &self.step {
            Step::Idle
            | Step::Staging { .. }
            | Step::Downloading { .. }
            | Step::Trying { .. }
            | Step::RollingBack { .. } => self.good.as_ref(),
            Step::Applying { bundle, .. } | Step::Probation { bundle, .. } => Some(bundle),
        }
    }

    /// The bundle under way.
    pub fn candidate(&self) -> Option<&Kept> {
        match &self.step {
            Step::Idle => None,
            Step::Staging { bundle }
            | Step::Downloading { bundle }
            | Step::Trying { bundle }
            | Step::Applying { bundle, .. }
            | Step::Probation { bundle, .. }
            | Step::RollingBack { bundle, .. } => Some(bundle),
        }
    }

    /// Who is trusted: those who came in a bundle, for as long as the configuration names those whom they
    /// followed.
    pub fn trusted<'a>(&'a self, configured: Option<&'a KeySet>) -> Option<&'a KeySet> {
        let configured = configured?;
        let follows = |rotated: &&Rotated| rotated.from == configured.digest();
        Some(self.rotated.as_ref().filter(follows).map_or(configured, |rotated| &rotated.keys))
    }
}

/// The machine after a step, and what is to be done.
pub type Stepped = (Machine, Vec<Effect>);

impl Machine {
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// The bundle under way, as far as it could be read.
    pub fn bundle(&self) -> Option<&Verified> {
        self.bundle.as_deref()
    }

    /// When a [`Event::Tick`] is wanted, in the agent's time.
    pub fn wake(&self) -> Option<Duration> {
        self.work.wake
    }

    /// When the probation ends, in the agent's time; `None` before all was well once.
    pub fn probation_ends(&self) -> Option<Duration> {
        self.work.until
    }

    /// Whether nothing is under way.
    pub fn is_idle(&self) -> bool {
        self.record.step == Step::Idle
    }

    /// Whether it wants to be told how the models do.
    pub fn watches(&self) -> bool {
        matches!(self.record.step, Step::Probation { .. })
    }

    /// The task that is worked on; every other one has no purpose any more.
    pub fn job(&self) -> u64 {
        self.job
    }

    /// Goes on after a start with what was saved last. `bytes` is the bundle under way as it is found on disk.
    pub fn resume(record: Record, bytes: Option<&[u8]>, with: &Context) -> Stepped {
        let mut machine = Self { record, ..Self::default() };
        let Some(kept) = machine.record.candidate().cloned() else {
            let sweep = machine.sweep();
            return (machine, vec![sweep]);
        };
        let trusted = machine.record.trusted(with.configured);
        let verified = bytes.ok_or("its bundle is not there".to_owned()).and_then(|bytes| {
            verify("the bundle", bytes, trusted).map_err(|refused| refused.to_string())
        });
        let damage = match verified {
            Ok(verified) if verified.digest == kept.digest => {
                machine.bundle = Some(Arc::new(verified));
                None
            }
            Ok(_) => Some("its bundle is damaged".to_owned()),
            Err(why) => Some(why),
        };
        machine.go_on(damage)
    }

    /// Takes the step that was saved once more.
    fn go_on(mut self, damage: Option<String>) -> Stepped {
        match (self.record.step.clone(), damage) {
            (Step::Idle, _) => self.nothing(),
            (Step::RollingBack { placed, .. }, _) => {
                let remove = self.begin(Task::Remove { placed });
                (self, vec![Effect::Reload, remove])
            }
            (Step::Staging { .. } | Step::Downloading { .. } | Step::Trying { .. }, Some(why)) => {
                self.abandon(why, false)
            }
            (
                Step::Staging { bundle } | Step::Downloading { bundle } | Step::Trying { bundle },
                None,
            ) => {
                self.record.step = Step::Staging { bundle };
                let reserve = self.begin(Task::Reserve { artifacts: self.artifacts() });
                (self, vec![reserve])
            }
            (Step::Applying { .. } | Step::Probation { .. }, Some(why)) => {
                self.roll_back(format!("after a start of the agent, {why}"))
            }
            (
                Step::Applying { bundle, placed, before, starts }
                | Step::Probation { bundle, placed, before, starts },
                None,
            ) => {
                let starts = starts + 1;
                if starts > limits::FLEET_STARTS {
                    let why = format!("the agent was started {starts} times before all was well");
                    return self.roll_back(why);
                }
                // Versions may have gone while nobody watched: they are put in their places again.
                self.record.step = Step::Applying { bundle, placed, before, starts };
                let place = self.begin(Task::Place { artifacts: self.artifacts() });
                (self.clone(), vec![self.save(), Effect::Reload, place])
            }
        }
    }

    /// What follows from an event. One that does not belong to the step changes nothing.
    pub fn step(&self, event: Event, with: &Context) -> Stepped {
        let next = self.clone();
        match event {
            Event::Offered { name, bytes } => next.offered(name, bytes, with),
            Event::Looked(health) => next.looked(&health, with),
            Event::Tick => next.tick(with),
            Event::Done { job, .. } if job != self.job => next.nothing(),
            Event::Done { outcome, .. } => match outcome {
                Outcome::Reserved(outcome) => next.reserved(outcome, with),
                Outcome::Fetched(outcome) => next.fetched(outcome, with),
                Outcome::Checked(outcome) => next.checked(outcome),
                Outcome::Tried(outcome) => next.tried(outcome),
                Outcome::Surveyed(outcome) => next.surveyed(outcome, with),
                Outcome::Placed(outcome) => next.placed(outcome, with),
                Outcome::Removed(outcome) => next.removed(outcome, with),
            },
        }
    }

    fn nothing(self) -> Stepped {
        (self, Vec::new())
    }

    /// Begins a task; what comes of the one before no longer counts.
    fn begin(&mut self, task: Task) -> Effect {
        self.job += 1;
        Effect::Begin { job: self.job, task }
    }

    fn artifacts(&self) -> Vec<Artifact> {
        self.bundle.as_ref().map(|bundle| bundle.document.models.clone()).unwrap_or_default()
    }

    fn is_expired(&self, with: &Context) -> bool {
        self.bundle.as_ref().is_none_or(|bundle| with.now >= bundle.document.expires)
    }

    fn save(&self) -> Effect {
        Effect::Save(Box::new(self.record.clone()))
    }

    /// Only what is in force, or is returned to, is worth its place.
    fn sweep(&self) -> Effect {
        let kept = self.record.good.iter().chain(self.record.candidate());
        Effect::Sweep { keep: kept.map(|kept| kept.digest).collect() }
    }

    fn enter(mut self, step: Step) -> Self {
        self.record.step = step;
        self.work = Work::default();
        self.job += 1;
        self
    }

    fn offered(mut self, name: String, bytes: Arc<[u8]>, with: &Context) -> Stepped {
        let trusted = self.record.trusted(with.configured);
        let seen = self.record.seen.as_ref();
        let admitted = verify(&name, &bytes, trusted).and_then(|bundle| {
            admit(&bundle, with.node, seen, with.now)?;
            Ok(bundle)
        });
        let bundle = match (admitted, self.busy()) {
            (Ok(bundle), None) => bundle,
            (Ok(_), Some(why)) | (Err(why), _) => {
                return (self, vec![Effect::Report(Report::Refused { name, why })]);
            }
        };
        let (revision, digest) = (bundle.document.revision, bundle.digest);
        let former = self.record.candidate().map(|former| Report::Abandoned {
            revision: former.revision,
            why: format!("revision {revision} came"),
        });
        self.record.seen = Some(Seen { revision, digest, standing: Standing::Underway });
        self.bundle = Some(Arc::new(bundle));
        let mut next = self.enter(Step::Staging { bundle: Kept { revision, digest } });
        let mut effects = vec![Effect::Keep { digest, bytes }, next.save()];
        effects.extend(former.map(Effect::Report));
        effects.push(Effect::Report(Report::Begun { revision }));
        effects.push(next.begin(Task::Reserve { artifacts: next.artifacts() }));
        (next, effects)
    }

    /// From when it is in force on, a bundle is not left for another one before that has ended.
    fn busy(&self) -> Option<Refused> {
        match &self.record.step {
            Step::Idle | Step::Staging { .. } | Step::Downloading { .. } | Step::Trying { .. } => {
                None
            }
            Step::Applying { bundle, .. }
            | Step::Probation { bundle, .. }
            | Step::RollingBack { bundle, .. } => Some(Refused::Busy { revision: bundle.revision }),
        }
    }

    fn reserved(self, outcome: Result<(), String>, with: &Context) -> Stepped {
        let Step::Staging { bundle } = self.record.step.clone() else { return self.nothing() };
        if let Err(why) = outcome {
            return self.abandon(why, false);
        }
        if self.is_expired(with) {
            return self.expire();
        }
        let next = self.enter(Step::Downloading { bundle });
        let save = next.save();
        let (next, effects) = next.fetch(0);
        (next, std::iter::once(save).chain(effects).collect())
    }

    /// Fetches an artifact, or goes on where that was the last.
    fn fetch(mut self, index: usize) -> Stepped {
        let Step::Downloading { bundle } = self.record.step.clone() else { return self.nothing() };
        self.work = Work { index, ..Work::default() };
        if let Some(artifact) = self.artifacts().into_iter().nth(index) {
            let fetch = self.begin(Task::Fetch { artifact });
            return (self, vec![fetch]);
        }
        let mut next = self.enter(Step::Trying { bundle });
        let check = next.begin(Task::Check);
        (next.clone(), vec![next.save(), check])
    }

    fn fetched(mut self, outcome: Result<(), Failure>, with: &Context) -> Stepped {
        if !matches!(self.record.step, Step::Downloading { .. }) {
            return self.nothing();
        }
        if self.is_expired(with) {
            return self.expire();
        }
        let index = self.work.index;
        let why = match outcome {
            Ok(()) => return self.fetch(index + 1),
            Err(Failure::ForGood(why)) => return self.abandon(why, false),
            Err(Failure::Later(why)) => why,
        };
        self.work.tries += 1;
        if self.work.tries >= limits::FLEET_FETCH_TRIES {
            let tries = self.work.tries;
            return self.abandon(format!("{why}, {tries} times in a row"), false);
        }
        let doubled = 2u32.saturating_pow(self.work.tries - 1);
        let wait = limits::FLEET_FETCH_FIRST.saturating_mul(doubled);
        self.work.wake = Some(with.up + wait.min(limits::FLEET_FETCH_LONGEST));
        self.nothing()
    }

    fn checked(self, outcome: Result<(), String>) -> Stepped {
        match outcome {
            Ok(()) => self.attempt(0),
            Err(why) => self.abandon(why, false),
        }
    }

    /// Tries a model, or looks at the box where that was the last.
    fn attempt(mut self, index: usize) -> Stepped {
        if !matches!(self.record.step, Step::Trying { .. }) {
            return self.nothing();
        }
        self.work.index = index;
        let artifacts = self.artifacts();
        let task = match artifacts.get(index) {
            Some(artifact) => Task::Try { artifact: artifact.clone() },
            None => Task::Survey { artifacts },
        };
        let begin = self.begin(task);
        (self, vec![begin])
    }

    fn tried(self, outcome: Result<(), Failure>) -> Stepped {
        let index = self.work.index;
        match outcome {
            Ok(()) => self.attempt(index + 1),
            Err(Failure::Later(why)) => self.abandon(why, false),
            Err(Failure::ForGood(why)) => self.abandon(why, true),
        }
    }

    fn surveyed(self, outcome: Result<Survey, String>, with: &Context) -> Stepped {
        let Step::Trying { bundle } = self.record.step.clone() else { return self.nothing() };
        if self.is_expired(with) {
            return self.expire();
        }
        let Survey { before, there } = match outcome {
            Ok(survey) => survey,
            Err(why) => return self.abandon(why, false),
        };
        let artifacts = self.artifacts();
        let place = |one: &Artifact| Placed { name: one.name.clone(), version: one.version };
        let placed = artifacts.iter().map(place).filter(|one| !there.contains(one)).collect();
        let mut next = self.enter(Step::Applying { bundle, placed, before, starts: 0 });
        let place = next.begin(Task::Place { artifacts });
        (next.clone(), vec![next.save(), Effect::Reload, place])
    }

    fn placed(self, outcome: Result<(), String>, with: &Context) -> Stepped {
        let Step::Applying { bundle, placed, before, starts } = self.record.step.clone() else {
            return self.nothing();
        };
        if let Err(why) = outcome {
            return self.roll_back(why);
        }
        let mut next = self.enter(Step::Probation { bundle, placed, before, starts });
        next.work.patience = Some(with.up + limits::FLEET_PATIENCE);
        (next.clone(), vec![next.save()])
    }

    fn looked(mut self, health: &Health, with: &Context) -> Stepped {
        let Step::Probation { before, .. } = self.record.step.clone() else {
            return self.nothing();
        };
        let verdict = self.work.looks.take(&self.artifacts(), &before, health);
        if verdict == Verdict::Well {
            self.work.until.get_or_insert(with.up + with.probation);
        }
        let end = self.work.until.or(self.work.patience);
        let over = end.is_none_or(|end| with.up >= end);
        match verdict {
            Verdict::Sick(why) => self.roll_back(why),
            Verdict::Waits(why) if over => {
                let waited =
                    if self.work.until.is_some() { "at its probation's end" } else { "in time" };
                self.roll_back(format!("{why} {waited}"))
            }
            Verdict::Well if over => self.commit(with),
            Verdict::Waits(_) | Verdict::Well => self.nothing(),
        }
    }

    fn commit(mut self, with: &Context) -> Stepped {
        let Some(bundle) = self.record.candidate().cloned() else { return self.nothing() };
        let revision = bundle.revision;
        let keys = self.bundle.as_ref().and_then(|bundle| bundle.document.keys.clone());
        if let (Some(keys), Some(configured)) = (keys, with.configured) {
            self.record.rotated = Some(Rotated { from: configured.digest(), keys });
        }
        self.record.good = Some(bundle);
        self.end(Standing::Applied, Report::Committed { revision })
    }

    /// Leaves a bundle alone before anything of it was in force; for good, or until it comes again.
    fn abandon(self, why: String, for_good: bool) -> Stepped {
        let (Step::Staging { bundle } | Step::Downloading { bundle } | Step::Trying { bundle }) =
            self.record.step.clone()
        else {
            return self.nothing();
        };
        let revision = bundle.revision;
        let report = Report::Abandoned { revision, why: why.clone() };
        match for_good {
            true => self.end(Standing::GivenUp { why }, report),
            false => self.end(Standing::Interrupted { why }, report),
        }
    }

    fn expire(self) -> Stepped {
        self.abandon("it expired before it could be brought into force".to_owned(), false)
    }

    fn roll_back(self, why: String) -> Stepped {
        let (Step::Applying { bundle, placed, .. } | Step::Probation { bundle, placed, .. }) =
            self.record.step.clone()
        else {
            return self.nothing();
        };
        let mut next = self.enter(Step::RollingBack { bundle, placed: placed.clone(), why });
        let remove = next.begin(Task::Remove { placed });
        (next.clone(), vec![next.save(), Effect::Reload, remove])
    }

    fn removed(mut self, outcome: Result<(), String>, with: &Context) -> Stepped {
        let Step::RollingBack { bundle, why, .. } = self.record.step.clone() else {
            return self.nothing();
        };
        if outcome.is_err() {
            self.work.wake = Some(with.up + limits::FLEET_AGAIN);
            return self.nothing();
        }
        let report = Report::RolledBack { revision: bundle.revision, why: why.clone() };
        self.end(Standing::GivenUp { why }, report)
    }

    /// The box is at rest again.
    fn end(mut self, standing: Standing, report: Report) -> Stepped {
        if let Some(seen) = &mut self.record.seen {
            seen.standing = standing;
        }
        self.bundle = None;
        let next = self.enter(Step::Idle);
        let effects = vec![next.save(), Effect::Report(report), next.sweep()];
        (next, effects)
    }

    fn tick(mut self, with: &Context) -> Stepped {
        let task = match self.record.step.clone() {
            Step::Staging { .. } | Step::Downloading { .. } | Step::Trying { .. }
                if self.is_expired(with) =>
            {
                return self.expire();
            }
            Step::Downloading { .. } => {
                let artifact = self.artifacts().into_iter().nth(self.work.index);
                artifact.map(|artifact| Task::Fetch { artifact })
            }
            Step::RollingBack { placed, .. } => Some(Task::Remove { placed }),
            Step::Idle
            | Step::Staging { .. }
            | Step::Trying { .. }
            | Step::Applying { .. }
            | Step::Probation { .. } => None,
        };
        match (task, self.work.wake) {
            (Some(task), Some(wake)) if with.up >= wake => {
                self.work.wake = None;
                let begin = self.begin(task);
                (self, vec![begin])
            }
            (Some(_) | None, Some(_) | None) => self.nothing(),
        }
    }
}
