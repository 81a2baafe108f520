//! Versions that are being loaded, and the clients that wait for it. A client that asks for a model is answered
//! by what becomes of the newest version that its question has set going, not by the first that is done.

use std::collections::BTreeMap;
use std::time::Instant;

use tokio::sync::oneshot;

use super::Agent;
use crate::arrivals::VersionKey;
use crate::shell::slot::{CommandError, Entry, ModelState};
use crate::units::Version;

type Answer = oneshot::Sender<Result<(), CommandError>>;

/// Why a version is not served after an operator's word.
const UNLOADED: &str = "unloaded on request";

/// A client that waits.
#[derive(Debug)]
struct Waiting {
    answer: Answer,
    /// The newest version that was begun since it asked.
    newest: Option<Version>,
}

/// How many loads of one version are under way. They run one at a time and count as ending in the order in
/// which they began.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct UnderWay {
    loads: usize,
    /// The first so many of them are no longer wanted.
    unwanted: usize,
}

#[derive(Debug, Default)]
pub struct Loads {
    under_way: BTreeMap<VersionKey, UnderWay>,
    waiting: BTreeMap<String, Vec<Waiting>>,
}

impl Loads {
    /// A client asks for a model; its versions are to be told anew.
    pub fn ask(&mut self, model: String, answer: Answer) {
        self.waiting.entry(model).or_default().push(Waiting { answer, newest: None });
    }

    /// A version begins to load.
    pub fn begin(&mut self, key: &VersionKey) {
        self.under_way.entry(key.clone()).or_default().loads += 1;
        for waiting in self.waiting.get_mut(&key.model).into_iter().flatten() {
            waiting.newest = waiting.newest.max(Some(key.version));
        }
    }

    /// The version's first load has ended; whether it is still wanted.
    pub fn done(&mut self, key: &VersionKey) -> bool {
        let Some(under_way) = self.under_way.get_mut(key) else { return true };
        let wanted = under_way.unwanted == 0;
        under_way.unwanted = under_way.unwanted.saturating_sub(1);
        under_way.loads = under_way.loads.saturating_sub(1);
        if under_way.loads == 0 {
            self.under_way.remove(key);
        }
        wanted
    }

    /// What loads of the model is not to be served when that ends; the versions concerned.
    fn give_up(&mut self, model: &str) -> Vec<Version> {
        let of_model = self.under_way.iter_mut().filter(|(key, _)| key.model == model);
        let wanted = of_model.filter(|(_, under_way)| under_way.unwanted < under_way.loads);
        wanted
            .map(|(key, under_way)| {
                under_way.unwanted = under_way.loads;
                key.version
            })
            .collect()
    }

    /// The clients whose newest version has ended, with it.
    fn answerable(&mut self, model: &str) -> Vec<(Answer, Version)> {
        let Some(waiting) = self.waiting.remove(model) else { return Vec::new() };
        let mut ready = Vec::new();
        for one in waiting {
            let key = one.newest.map(|version| VersionKey { model: model.to_owned(), version });
            match key.filter(|key| !self.under_way.contains_key(key)) {
                Some(key) => ready.push((one.answer, key.version)),
                None => self.waiting.entry(model.to_owned()).or_default().push(one),
            }
        }
        ready
    }

    fn take(&mut self, model: &str) -> Vec<Answer> {
        let waiting = self.waiting.remove(model).unwrap_or_default();
        waiting.into_iter().map(|one| one.answer).collect()
    }

    /// Tells everybody who waits that nothing more will be loaded.
    pub fn end(&mut self) {
        for one in std::mem::take(&mut self.waiting).into_values().flatten() {
            // The client may have gone; so below.
            let _ = one.answer.send(Err(CommandError::Busy("it is shutting down".to_owned())));
        }
    }
}

impl Agent {
    /// Tells those who asked for a model to be loaded what came of it.
    pub(super) fn answer_loads(&mut self, model: &str) {
        let answerable = self.loads.answerable(model);
        if answerable.is_empty() {
            return;
        }
        // Whoever is answered may look at the status next: it must not be older than the answer.
        self.tell_status(Instant::now());
        for (answer, version) in answerable {
            let _ = answer.send(self.loaded(model, version));
        }
    }

    fn loaded(&self, model: &str, version: Version) -> Result<(), CommandError> {
        let served = self.served.get(model).map(|served| served.key.version);
        let refused = self.refused.get(&VersionKey { model: model.to_owned(), version });
        let why = match refused {
            // It is refused by its newest file, while that before it serves.
            Some(reason) => reason.clone(),
            None if served.is_some_and(|served| served >= version) => return Ok(()),
            None => format!("version {version} is no longer there"),
        };
        Err(CommandError::Failed(format!("failed to load '{model}': {why}")))
    }

    /// Models that were asked for and are not in the directory.
    pub(super) fn answer_unknown_loads(&mut self) {
        let asked: Vec<String> = self.loads.waiting.keys().cloned().collect();
        for model in asked.into_iter().filter(|model| !self.arrivals.knows(model)) {
            for answer in self.loads.take(&model) {
                let _ = answer.send(Err(CommandError::UnknownModel { model: model.clone() }));
            }
        }
    }

    /// Stops serving a model, and what of it is being loaded from being served.
    pub(super) fn unload_on_request(&mut self, model: &str) -> Result<(), CommandError> {
        let served = self.served.get(model).map(|served| served.key.clone());
        let given_up = self.loads.give_up(model);
        for answer in self.loads.take(model) {
            let why = format!("failed to load '{model}': it was {UNLOADED}");
            let _ = answer.send(Err(CommandError::Failed(why)));
        }
        if let Some(key) = &served {
            self.unload(key, UNLOADED);
        }
        // They are there still, and can be loaded again.
        for version in given_up.iter().copied().chain(served.iter().map(|key| key.version)) {
            self.show_unloaded(&VersionKey { model: model.to_owned(), version });
        }
        let refused = || self.refused.iter().rev().find(|(key, _)| key.model == model);
        let failed = |why: String| Err(CommandError::Failed(format!("'{model}' {why}")));
        match served {
            Some(_) => Ok(()),
            None if !given_up.is_empty() => {
                tracing::info!(model, "what is being loaded will not be served: {UNLOADED}");
                Ok(())
            }
            None => match refused() {
                Some((key, reason)) => {
                    failed(format!("is not served: version {} was refused: {reason}", key.version))
                }
                None if self.arrivals.knows(model) => failed("is not loaded".to_owned()),
                None => Err(CommandError::UnknownModel { model: model.to_owned() }),
            },
        }
    }

    /// A version that was loaded after its model had been unloaded.
    pub(super) fn not_wanted(&self, key: &VersionKey) {
        tracing::info!(model = key.model, version = %key.version, "not served: {UNLOADED}");
    }

    fn show_unloaded(&self, key: &VersionKey) {
        let entry = Entry::Unready { state: ModelState::Unavailable, reason: UNLOADED.to_owned() };
        self.repository.set(&key.model, key.version, entry);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(version: u64) -> VersionKey {
        VersionKey { model: "m".to_owned(), version: Version(version) }
    }

    fn ask(loads: &mut Loads) -> oneshot::Receiver<Result<(), CommandError>> {
        let (answer, answered) = oneshot::channel();
        loads.ask("m".to_owned(), answer);
        answered
    }

    fn versions(answerable: &[(Answer, Version)]) -> Vec<u64> {
        answerable.iter().map(|(_, version)| version.0).collect()
    }

    #[test]
    fn the_newest_version_answers_and_what_was_under_way_before_does_not() {
        let mut loads = Loads::default();
        loads.begin(&key(3));
        let _client = ask(&mut loads);
        // Begun before the question: the file may have changed since.
        assert!(loads.done(&key(3)));
        assert_eq!(versions(&loads.answerable("m")), [0; 0]);
        for version in [1, 2] {
            loads.begin(&key(version));
        }
        let _later = ask(&mut loads);
        assert!(loads.done(&key(1)));
        assert_eq!(versions(&loads.answerable("m")), [0; 0], "version 2 is not done");
        assert!(loads.done(&key(2)));
        assert_eq!(versions(&loads.answerable("m")), [2]);
        // Who asked later waits for what comes of that.
        loads.begin(&key(2));
        loads.begin(&key(2));
        assert!(loads.done(&key(2)));
        assert_eq!(versions(&loads.answerable("m")), [0; 0], "its last load is not done");
        assert!(loads.done(&key(2)));
        assert_eq!(versions(&loads.answerable("m")), [2]);
        assert!(loads.under_way.is_empty() && loads.waiting.is_empty());
    }

    #[test]
    fn what_is_given_up_is_not_wanted_and_what_begins_later_is() {
        let mut loads = Loads::default();
        loads.begin(&key(1));
        loads.begin(&key(2));
        assert_eq!(loads.give_up("m"), [Version(1), Version(2)]);
        assert_eq!(loads.give_up("m"), [], "once");
        assert_eq!(loads.give_up("other"), []);
        loads.begin(&key(2));
        assert!(!loads.done(&key(1)));
        assert!(!loads.done(&key(2)));
        assert!(loads.done(&key(2)));
    }

    #[test]
    fn at_the_end_everybody_who_waits_is_told() {
        let mut loads = Loads::default();
        let (mut one, mut other) = (ask(&mut loads), ask(&mut loads));
        loads.begin(&key(1));
        loads.end();
        for answer in [one.try_recv(), other.try_recv()] {
            let words = answer.unwrap().unwrap_err().to_string();
            assert!(words.contains("shutting down"), "{words}");
        }
    }
}
