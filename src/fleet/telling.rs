//! What operators are told of bundles, put together from what the machine reports and what it has written down.

use crate::limits;
use crate::units::Digest;

use super::admit::Standing;
use super::apply::{Record, Report, Step};
use super::refused::Refused;
use super::reported::{Applied, Outcome, RefusedBundle, Reported, Underway};

/// What has become of bundles since the agent was started.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Told {
    refused: Option<RefusedBundle>,
    history: Vec<Outcome>,
    received: u64,
    refusals: u64,
}

impl Told {
    /// A bundle came.
    pub fn received(&mut self) {
        self.received += 1;
    }

    /// Takes a report of the machine. `bundle` is the digest of the bytes that it is about, where they were
    /// just offered; `retained`: the broker gave them because the node connected, not because somebody sent
    /// them now.
    pub fn hear(&mut self, report: &Report, bundle: Option<Digest>, retained: bool) {
        let (revision, outcome, why) = match report {
            Report::Begun { .. } => return,
            // The topics of a group keep what a later bundle of another topic has overtaken.
            Report::Refused { why: Refused::Old { .. }, .. } if retained => return,
            Report::Refused { why, .. } if !why.is_wrong() => return,
            Report::Refused { why, .. } => (revision(why), "refused", Some(why.to_string())),
            Report::Abandoned { revision, why } => {
                (Some(*revision), "abandoned", Some(why.clone()))
            }
            Report::RolledBack { revision, why } => {
                (Some(*revision), "rolled_back", Some(why.clone()))
            }
            Report::Committed { revision } => (Some(*revision), "applied", None),
        };
        self.refused = why.clone().map(|why| {
            self.refusals += 1;
            let bundle = bundle.map(|digest| digest.to_string());
            RefusedBundle { revision, bundle, why }
        });
        let outcome = Outcome { revision, outcome: outcome.to_owned(), why };
        // A broker that gives the same one again and again tells nothing new.
        if self.history.last() != Some(&outcome) {
            self.history.push(outcome);
        }
        let surplus = self.history.len().saturating_sub(limits::LINK_HISTORY);
        self.history.drain(..surplus);
    }

    /// Writes it into a node's state.
    pub fn tell(&self, record: &Record, reported: &mut Reported) {
        reported.applied = record
            .good
            .as_ref()
            .map(|kept| Applied { revision: kept.revision, digest: kept.digest.to_string() });
        reported.underway = record.candidate().map(|kept| Underway {
            revision: kept.revision,
            stage: stage(&record.step).to_owned(),
        });
        reported.refused = self.refused.clone().or_else(|| given_up(record));
        reported.history.clone_from(&self.history);
        reported.received = self.received;
        reported.refusals = self.refusals;
    }
}

/// What a start finds written down of a bundle that did no good.
fn given_up(record: &Record) -> Option<RefusedBundle> {
    let seen = record.seen.as_ref()?;
    match &seen.standing {
        Standing::GivenUp { why } => {
            Some(RefusedBundle { revision: Some(seen.revision), bundle: None, why: why.clone() })
        }
        Standing::Underway | Standing::Applied | Standing::Interrupted { .. } => None,
    }
}

fn stage(step: &Step) -> &'static str {
    match step {
        Step::Idle => "idle",
        Step::Staging { .. } => "staging",
        Step::Downloading { .. } => "downloading",
        Step::Trying { .. } => "trying",
        Step::Applying { .. } => "applying",
        Step::Probation { .. } => "probation",
        Step::RollingBack { .. } => "rolling_back",
    }
}

/// The revision of a bundle that was refused, where it is believed: those who are trusted signed it.
fn revision(why: &Refused) -> Option<u64> {
    match why {
        Refused::Old { revision, .. }
        | Refused::OtherContents { revision }
        | Refused::Superseded { revision, .. }
        | Refused::Applied { revision }
        | Refused::GivenUp { revision, .. }
        | Refused::Busy { revision } => Some(*revision),
        Refused::TooLarge { .. }
        | Refused::Malformed { .. }
        | Refused::Unsigned
        | Refused::NoKeys
        | Refused::Signatures { .. }
        | Refused::Document(_)
        | Refused::NextKeys { .. }
        | Refused::Expired { .. }
        | Refused::NotForThisNode { .. }
        | Refused::NotChosen { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::apply::Kept;
    use super::*;

    fn refused(why: Refused) -> Report {
        Report::Refused { name: "x".to_owned(), why }
    }

    fn reported(told: &Told, record: &Record) -> Reported {
        let mut reported = Reported::default();
        told.tell(record, &mut reported);
        reported
    }

    #[test]
    fn a_refusal_stands_until_a_bundle_is_in_force() {
        let (mut told, mut record) = (Told::default(), Record::default());
        let digest = Digest::of(b"bundle");
        told.received();
        told.hear(&refused(Refused::Unsigned), Some(digest), false);
        let state = reported(&told, &record);
        let why = state.refused.unwrap();
        assert_eq!((why.revision, why.bundle), (None, Some(digest.to_string())));
        assert_eq!((state.received, state.refusals, state.applied), (1, 1, None));
        // The same again is counted and makes the history no longer.
        told.hear(&refused(Refused::Unsigned), Some(digest), true);
        assert_eq!(reported(&told, &record).refusals, 2);
        let bundle = Kept { revision: 5, digest };
        record.step = Step::Trying { bundle: bundle.clone() };
        told.hear(&Report::Begun { revision: 5 }, None, false);
        let state = reported(&told, &record);
        let underway = Underway { revision: 5, stage: "trying".to_owned() };
        assert_eq!(state.underway, Some(underway));
        record = Record { good: Some(bundle), ..Record::default() };
        told.hear(&Report::Committed { revision: 5 }, None, false);
        let state = reported(&told, &record);
        assert_eq!((state.refused, state.underway), (None, None));
        assert_eq!(state.applied.unwrap().revision, 5);
        let outcomes: Vec<&str> = state.history.iter().map(|one| one.outcome.as_str()).collect();
        assert_eq!(outcomes, ["refused", "applied"]);
    }

    #[test]
    fn what_is_nothing_out_of_the_ordinary_is_not_told() {
        let mut told = Told::default();
        let old = || refused(Refused::Old { revision: 3, seen: 5 });
        // What a group's topic still retains.
        told.hear(&old(), None, true);
        told.hear(&refused(Refused::Applied { revision: 5 }), None, true);
        told.hear(&refused(Refused::Busy { revision: 5 }), None, false);
        assert_eq!(told, Told::default());
        // Somebody sends an old one.
        told.hear(&old(), None, false);
        assert_eq!(reported(&told, &Record::default()).refused.unwrap().revision, Some(3));
    }
}
