//! A bundle on its way into force: admitted, fetched, tried. Up to here the box is as it was.

use std::sync::Arc;

use crate::limits;

use super::super::admit::{Seen, Standing, admit, verify};
use super::super::artifact::Artifact;
use super::super::refused::Refused;
use super::{
    Context, Effect, Failure, Kept, Machine, Placed, Report, Step, Stepped, Survey, Task, Work,
};

impl Machine {
    pub(super) fn offered(mut self, name: String, bytes: Arc<[u8]>, with: &Context) -> Stepped {
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

    pub(super) fn reserved(self, outcome: Result<(), String>, with: &Context) -> Stepped {
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

    pub(super) fn fetched(mut self, outcome: Result<(), Failure>, with: &Context) -> Stepped {
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

    pub(super) fn checked(self, outcome: Result<(), String>) -> Stepped {
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

    pub(super) fn tried(self, outcome: Result<(), Failure>) -> Stepped {
        let index = self.work.index;
        match outcome {
            Ok(()) => self.attempt(index + 1),
            Err(Failure::Later(why)) => self.abandon(why, false),
            Err(Failure::ForGood(why)) => self.abandon(why, true),
        }
    }

    pub(super) fn surveyed(self, outcome: Result<Survey, String>, with: &Context) -> Stepped {
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

    /// Leaves a bundle alone before anything of it was in force; for good, or until it comes again.
    pub(super) fn abandon(self, why: String, for_good: bool) -> Stepped {
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

    pub(super) fn expire(self) -> Stepped {
        self.abandon("it expired before it could be brought into force".to_owned(), false)
    }
}
