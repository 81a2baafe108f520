//! What operators see of a fleet: every node that was heard of, and how far a revision has got with those it is
//! for.

use std::collections::BTreeMap;

use super::reported::{Receiver, Report, Reported};
use super::topics::{Heard, Topics};
use crate::limits;

/// Words of a presence.
pub const ONLINE: &str = "online";
pub const OFFLINE: &str = "offline";

/// One node.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Seen {
    /// `None`: nobody said.
    pub online: Option<bool>,
    pub reports: Receiver,
    /// What it told last.
    pub state: Option<Reported>,
}

/// Where a node is with a revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// It is in force, or a newer one is.
    Applied,
    /// It was refused, and why.
    Refused(String),
    /// It is on its way, and at this stage.
    Underway(String),
    /// Nothing was heard of it yet.
    Pending,
}

/// How many nodes are where with a revision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    pub applied: usize,
    pub refused: usize,
    pub underway: usize,
    pub pending: usize,
    /// Of those not applied, not refused: who cannot be reached. They find the bundle when they come back.
    pub offline: usize,
}

impl Progress {
    /// Nodes that the revision is for.
    pub fn all(self) -> usize {
        self.applied + self.refused + self.underway + self.pending + self.offline
    }

    /// Whether nobody who can be reached is still on the way.
    pub fn is_settled(self) -> bool {
        self.underway == 0 && self.pending == 0
    }

    /// Whether everybody who can be reached has it in force, and somebody has.
    pub fn is_converged(self) -> bool {
        self.is_settled() && self.refused == 0 && self.applied > 0
    }
}

/// A bundle that is followed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Followed {
    pub revision: u64,
    /// Digest of its bytes: a node that trusts none of its signers does not believe its revision.
    pub digest: String,
}

/// All nodes that were heard of.
#[derive(Debug, Clone)]
pub struct RollCall {
    topics: Topics,
    nodes: BTreeMap<String, Seen>,
    /// Messages that were none of a node, or of more nodes than are followed.
    pub passed_over: u64,
}

impl RollCall {
    pub fn new(topics: Topics) -> Self {
        Self { topics, nodes: BTreeMap::new(), passed_over: 0 }
    }

    pub fn nodes(&self) -> &BTreeMap<String, Seen> {
        &self.nodes
    }

    /// Takes a message; `false` where it told nothing.
    pub fn hear(&mut self, topic: &str, payload: &[u8]) -> bool {
        let told = match self.topics.read(topic) {
            Some(Heard::Presence(id)) => self.presence(id, payload),
            Some(Heard::Reported(id)) => self.report(id, payload),
            Some(Heard::Desired(_)) | None => false,
        };
        if !told {
            self.passed_over = self.passed_over.saturating_add(1);
        }
        told
    }

    fn node(&mut self, id: String) -> Option<&mut Seen> {
        let known = self.nodes.len() < limits::LINK_NODES || self.nodes.contains_key(&id);
        known.then(|| self.nodes.entry(id).or_default())
    }

    fn presence(&mut self, id: String, payload: &[u8]) -> bool {
        // An empty one is how a node is taken out of a broker.
        let online = match payload {
            b"" => return self.nodes.remove(&id).is_some(),
            payload if payload == ONLINE.as_bytes() => true,
            payload if payload == OFFLINE.as_bytes() => false,
            _ => return false,
        };
        let Some(node) = self.node(id) else { return false };
        node.online = Some(online);
        true
    }

    fn report(&mut self, id: String, payload: &[u8]) -> bool {
        if payload.len() > 2 * limits::LINK_REPORT_BURST {
            return false;
        }
        let Ok(report) = serde_json::from_slice::<Report>(payload) else { return false };
        let Some(node) = self.node(id.clone()) else { return false };
        if !node.reports.take(&report) {
            return false;
        }
        // A node speaks for itself only.
        node.state = node.reports.state().filter(|state| state.node == id);
        node.state.is_some()
    }

    /// Where a node is with a bundle.
    pub fn standing(&self, id: &str, bundle: &Followed) -> Standing {
        let revision = bundle.revision;
        let Some(state) = self.nodes.get(id).and_then(|node| node.state.as_ref()) else {
            return Standing::Pending;
        };
        // A node that has a newer one answers an older one that is sent to it now; what it does not speak of is
        // overtaken.
        let answered = state.refused.as_ref();
        let answered = answered.filter(|one| one.bundle.as_ref() == Some(&bundle.digest));
        if let Some(refused) = answered {
            return Standing::Refused(refused.why.clone());
        }
        if state.applied.as_ref().is_some_and(|applied| applied.revision >= revision) {
            return Standing::Applied;
        }
        if let Some(underway) = state.underway.as_ref().filter(|one| one.revision == revision) {
            return Standing::Underway(underway.stage.clone());
        }
        let refused = state.refused.as_ref().filter(|one| one.revision == Some(revision));
        refused.map_or(Standing::Pending, |one| Standing::Refused(one.why.clone()))
    }

    /// How far a bundle has got with the nodes that it is for, by their names and labels.
    pub fn progress(
        &self,
        bundle: &Followed,
        is_meant: impl Fn(&str, &BTreeMap<String, String>) -> bool,
    ) -> Progress {
        let mut progress = Progress::default();
        let none = BTreeMap::new();
        for (id, node) in &self.nodes {
            let labels = node.state.as_ref().map_or(&none, |state| &state.labels);
            if !is_meant(id, labels) {
                continue;
            }
            let count = match self.standing(id, bundle) {
                Standing::Applied => &mut progress.applied,
                Standing::Refused(_) => &mut progress.refused,
                Standing::Underway(_) | Standing::Pending if node.online != Some(true) => {
                    &mut progress.offline
                }
                Standing::Underway(_) => &mut progress.underway,
                Standing::Pending => &mut progress.pending,
            };
            *count += 1;
        }
        progress
    }
}

#[cfg(test)]
mod tests {
    use super::super::outbox::{Outbox, Step};
    use super::super::reported::{Applied, RefusedBundle, Underway};
    use super::super::topics::Target;
    use super::*;

    /// What a node says after the agent was started anew.
    fn again(state: &Reported) -> Vec<u8> {
        said(2, state)
    }

    fn told(state: &Reported) -> Vec<u8> {
        said(1, state)
    }

    fn said(epoch: u64, state: &Reported) -> Vec<u8> {
        match Outbox::new(epoch).step(std::time::Duration::ZERO, state) {
            Step::Send { payload, .. } => payload.into_bytes(),
            Step::Wait(_) => panic!("the first report is sent at once"),
        }
    }

    fn node(id: &str) -> Reported {
        let labels = [("site".to_owned(), "berlin".to_owned())].into();
        Reported { node: id.to_owned(), labels, ..Reported::default() }
    }

    fn bundle(revision: u64) -> Followed {
        Followed { revision, digest: format!("digest of {revision}") }
    }

    fn of(roll: &RollCall, target: &Target, revision: u64) -> Progress {
        roll.progress(&bundle(revision), |id, labels| target.reaches(id, labels))
    }

    #[test]
    fn a_revision_is_followed_on_every_node_that_it_is_for() {
        let topics = Topics::new("plant").unwrap();
        let mut roll = RollCall::new(topics.clone());
        let mut states = [node("a"), node("b"), node("c"), node("d"), node("e")];
        states[0].applied = Some(Applied { revision: 7, digest: String::new() });
        states[1].refused = Some(RefusedBundle {
            revision: None,
            bundle: Some(bundle(7).digest),
            why: "no key".to_owned(),
        });
        states[2].underway = Some(Underway { revision: 7, stage: "probation".to_owned() });
        states[3].applied = Some(Applied { revision: 6, digest: String::new() });
        for (n, state) in states.iter().enumerate() {
            assert!(roll.hear(&topics.reported(&state.node).unwrap(), &told(state)));
            let presence = if n == 4 { OFFLINE } else { ONLINE };
            assert!(roll.hear(&topics.presence(&state.node).unwrap(), presence.as_bytes()));
        }
        let progress = of(&roll, &Target::All, 7);
        let expected = Progress { applied: 1, refused: 1, underway: 1, pending: 1, offline: 1 };
        assert_eq!((progress, progress.all()), (expected, 5));
        assert!(!progress.is_settled() && !progress.is_converged());
        let here = Target::group("site", "berlin").unwrap();
        assert_eq!(of(&roll, &here, 7), expected);
        assert_eq!(of(&roll, &Target::group("site", "bonn").unwrap(), 7).all(), 0);
        assert_eq!(roll.standing("b", &bundle(7)), Standing::Refused("no key".to_owned()));
        let one = of(&roll, &Target::node("a").unwrap(), 7);
        assert!(one.is_converged() && one.all() == 1);
        // A newer revision is one after this; an older one is not.
        assert!(of(&roll, &Target::node("d").unwrap(), 6).is_converged());
        // Unless the node was sent the older one now, and says so.
        states[3].refused = Some(RefusedBundle {
            revision: Some(5),
            bundle: Some(bundle(5).digest),
            why: "it is old".to_owned(),
        });
        assert!(roll.hear(&topics.reported("d").unwrap(), &again(&states[3])));
        assert_eq!(roll.standing("d", &bundle(5)), Standing::Refused("it is old".to_owned()));
        assert_eq!(roll.standing("d", &bundle(6)), Standing::Applied);
        // Nobody there is no success.
        assert!(!of(&roll, &Target::node("z").unwrap(), 7).is_converged());
        // A node that was taken out is followed no more.
        assert!(roll.hear(&topics.presence("e").unwrap(), b""));
        assert_eq!(of(&roll, &Target::All, 7).all(), 4);
    }

    #[test]
    fn a_node_speaks_for_itself_and_nonsense_is_passed_over() {
        let topics = Topics::new("plant").unwrap();
        let mut roll = RollCall::new(topics.clone());
        let reported = topics.reported("a").unwrap();
        assert!(!roll.hear(&reported, &told(&node("b"))), "under another's name");
        assert!(!roll.hear(&reported, b"{}") && !roll.hear(&reported, b"\xff"));
        assert!(!roll.hear(&reported, &vec![b' '; 3 * limits::LINK_REPORT_BURST]));
        assert!(!roll.hear(&topics.presence("a").unwrap(), b"maybe"));
        assert!(!roll.hear("blochd/v1/other/presence/a", b"online"));
        assert!(!roll.hear("blochd/v1/plant/desired/all", b"online"));
        assert_eq!(roll.passed_over, 7);
        assert_eq!(of(&roll, &Target::All, 1).applied, 0);
    }
}
