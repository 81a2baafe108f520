//! A bundle that is in force: put in its places, watched, and kept for good or taken back.

use crate::limits;

use super::super::admit::Standing;
use super::super::health::{Health, Verdict};
use super::{Context, Effect, Machine, Report, Rotated, Step, Stepped, Task};

impl Machine {
    pub(super) fn placed(self, outcome: Result<(), String>, with: &Context) -> Stepped {
        let Step::Applying { bundle, placed, before, starts } = self.record.step.clone() else {
            return self.nothing();
        };
        if let Err(why) = outcome {
            // A disk that is full, or fails, says nothing of the bundle.
            return self.take_back(why, true);
        }
        let mut next = self.enter(Step::Probation { bundle, placed, before, starts });
        next.work.patience = Some(with.up + limits::FLEET_PATIENCE);
        (next.clone(), vec![next.save()])
    }

    pub(super) fn looked(mut self, health: &Health, with: &Context) -> Stepped {
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

    /// Takes a bundle back that does no good here.
    pub(super) fn roll_back(self, why: String) -> Stepped {
        self.take_back(why, false)
    }

    /// Takes a bundle back; for good, or until it comes `again`.
    pub(super) fn take_back(self, why: String, again: bool) -> Stepped {
        let (Step::Applying { bundle, placed, .. } | Step::Probation { bundle, placed, .. }) =
            self.record.step.clone()
        else {
            return self.nothing();
        };
        let step = Step::RollingBack { bundle, placed: placed.clone(), why, again };
        let mut next = self.enter(step);
        let remove = next.begin(Task::Remove { placed });
        (next.clone(), vec![next.save(), Effect::Reload, remove])
    }

    pub(super) fn removed(mut self, outcome: Result<(), String>, with: &Context) -> Stepped {
        let Step::RollingBack { bundle, why, again, .. } = self.record.step.clone() else {
            return self.nothing();
        };
        if outcome.is_err() {
            self.work.wake = Some(with.up + limits::FLEET_AGAIN);
            return self.nothing();
        }
        let report = Report::RolledBack { revision: bundle.revision, why: why.clone() };
        match again {
            true => self.end(Standing::Interrupted { why }, report),
            false => self.end(Standing::GivenUp { why }, report),
        }
    }
}
