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

/// The clients that wait, by model.
#[derive(Debug, Default)]
pub struct Loads(BTreeMap<String, Vec<Waiting>>);

impl Loads {
    /// A client asks for a model; its versions are to be told anew.
    pub fn ask(&mut self, model: String, answer: Answer) {
        self.0.entry(model).or_default().push(Waiting { answer, newest: None });
    }

    /// A version begins to load.
    pub fn begin(&mut self, key: &VersionKey) {
        for waiting in self.0.get_mut(&key.model).into_iter().flatten() {
            waiting.newest = waiting.newest.max(Some(key.version));
        }
    }

    /// The clients whose newest version has ended, with it.
    fn answerable(
        &mut self,
        model: &str,
        is_loading: impl Fn(&VersionKey) -> bool,
    ) -> Vec<(Answer, Version)> {
        let Some(waiting) = self.0.remove(model) else { return Vec::new() };
        let mut ready = Vec::new();
        for one in waiting {
            let key = one.newest.map(|version| VersionKey { model: model.to_owned(), version });
            match key.filter(|key| !is_loading(key)) {
                Some(key) => ready.push((one.answer, key.version)),
                None => self.0.entry(model.to_owned()).or_default().push(one),
            }
        }
        ready
    }

    fn take(&mut self, model: &str) -> Vec<Answer> {
        let waiting = self.0.remove(model).unwrap_or_default();
        waiting.into_iter().map(|one| one.answer).collect()
    }

    /// Tells everybody who waits that nothing more will be loaded.
    pub fn end(&mut self) {
        for one in std::mem::take(&mut self.0).into_values().flatten() {
            // The client may have gone; so below.
            let _ = one.answer.send(Err(CommandError::Busy("it is shutting down".to_owned())));
        }
    }
}

impl Agent {
    /// Tells those who asked for a model to be loaded what came of it.
    pub(super) fn answer_loads(&mut self, model: &str) {
        let underway = &self.underway;
        let answerable = self.loads.answerable(model, |key| underway.is_loading(key));
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
        let asked: Vec<String> = self.loads.0.keys().cloned().collect();
        for model in asked.into_iter().filter(|model| !self.arrivals.knows(model)) {
            for answer in self.loads.take(&model) {
                let _ = answer.send(Err(CommandError::UnknownModel { model: model.clone() }));
            }
        }
    }

    /// Stops serving a model, and what of it is being loaded from being served.
    pub(super) fn unload_on_request(&mut self, model: &str) -> Result<(), CommandError> {
        let served = self.served.get(model).map(|served| served.key.clone());
        let stays = self.stays(model);
        let given_up = self.underway.cancel_model(model);
        for answer in self.loads.take(model) {
            let why = format!("failed to load '{model}': it was {UNLOADED}");
            let _ = answer.send(Err(CommandError::Failed(why)));
        }
        if let Some(key) = &served {
            self.unload(key, UNLOADED);
        }
        // They are there still, and can be loaded again; one whose file is gone cannot.
        for version in given_up.iter().copied().chain(stays) {
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

    fn show_unloaded(&self, key: &VersionKey) {
        let entry = Entry::Unready { state: ModelState::Unavailable, reason: UNLOADED.to_owned() };
        self.repository.set(&key.model, key.version, entry);
    }
}

#[cfg(test)]
mod tests {
    use super::super::underway::Underway;
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
        let (mut loads, mut underway) = (Loads::default(), Underway::default());
        let begin = |loads: &mut Loads, underway: &mut Underway, version| {
            loads.begin(&key(version));
            underway.begin(&key(version))
        };
        let before = begin(&mut loads, &mut underway, 3);
        let _client = ask(&mut loads);
        // Begun before the question: the file may have changed since.
        assert!(underway.ends(&key(3), before));
        let told = |loads: &mut Loads, underway: &Underway| {
            versions(&loads.answerable("m", |key| underway.is_loading(key)))
        };
        assert_eq!(told(&mut loads, &underway), [0; 0]);
        let first = begin(&mut loads, &mut underway, 1);
        let second = begin(&mut loads, &mut underway, 2);
        let _later = ask(&mut loads);
        assert!(underway.ends(&key(1), first));
        assert_eq!(told(&mut loads, &underway), [0; 0], "version 2 is not done");
        assert!(underway.ends(&key(2), second));
        assert_eq!(told(&mut loads, &underway), [2]);
        // Who asked later waits for what comes of that.
        let overtaken = begin(&mut loads, &mut underway, 2);
        let last = begin(&mut loads, &mut underway, 2);
        assert!(!underway.ends(&key(2), overtaken));
        assert_eq!(told(&mut loads, &underway), [0; 0], "its last load is not done");
        assert!(underway.ends(&key(2), last));
        assert_eq!(told(&mut loads, &underway), [2]);
        assert!(loads.0.is_empty());
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
