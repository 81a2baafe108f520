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

mod events;
mod in_force;
mod record;
mod staging;

use std::sync::Arc;
use std::time::Duration;

use crate::limits;

use super::admit::{Standing, Verified, verify};
use super::artifact::Artifact;
use super::health::Looks;
use super::keys::KeySet;
use super::select::Node;
use super::time::Timestamp;

pub use events::{Effect, Event, Failure, Outcome, Report, Survey, Task};
pub use record::{Kept, Placed, Record, Rotated, Step};

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
                self.take_back(format!("after a start of the agent, {why}"), true)
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
