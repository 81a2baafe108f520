//! Which execution providers a load may use: what `hardware::choice` is asked with, kept for the time of the
//! load.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::event::{Fate, Unfit};
use crate::config::{Cann, ExecutionProviders, Plugin, Provider};
use crate::hardware::{Choice, Offer, Passed, PassedOver, Roster, Vendor, choose, label};
use crate::units::Digest;

/// What there is to choose from, as it was when a load began.
#[derive(Debug, Clone, Default)]
pub struct Choosing {
    pub wanted: ExecutionProviders,
    pub cann_built: bool,
    pub ascend_seen: bool,
    pub roster: Roster,
    pub cann: Cann,
    pub plugins: BTreeMap<String, Plugin>,
    /// Plugins whose devices cannot be worked with, by name.
    pub gone: BTreeMap<String, Passed>,
    /// Why models failed on providers, by [`Choosing::key`].
    pub failed: BTreeMap<Digest, String>,
    /// Providers whose sessions of this model failed in service, by their labels.
    pub left: BTreeMap<String, String>,
    /// Only what is wanted before this one is tried.
    pub better_than: Option<Provider>,
}

impl Choosing {
    /// What a model of `digest` is tried on; `identity` tells what a provider is on this box.
    pub fn choice(&self, digest: Digest, identity: impl Fn(&Provider) -> String) -> Choice {
        let offer = Offer {
            cann_built: self.cann_built,
            ascend_seen: self.ascend_seen,
            roster: &self.roster,
            cann: &self.cann,
            plugins: &self.plugins,
            gone: &self.gone,
        };
        let failed = |provider: &Provider| {
            // The one that every other falls back to fails for no fault of its own.
            if *provider == Provider::Cpu {
                return None;
            }
            if let Some(reason) = self.left.get(&label(provider)) {
                return Some(Passed::LeftService { reason: reason.clone() });
            }
            let key = self.key(digest, provider, &identity(provider));
            self.failed.get(&key).map(|reason| Passed::FailedBefore { reason: reason.clone() })
        };
        let mut choice = choose(&self.wanted, &offer, failed);
        if let Some(serving) = &self.better_than {
            let at = choice.candidates.iter().position(|provider| provider == serving);
            choice.candidates.truncate(at.unwrap_or(choice.candidates.len()));
        }
        choice
    }

    /// Under which a failure of a model on a provider is remembered: another chip, driver or version of
    /// anything is another matter.
    pub fn key(&self, digest: Digest, provider: &Provider, identity: &str) -> Digest {
        let mut text = format!("{digest}\0{identity}");
        if let Provider::Cann(cann) = provider {
            for known in self.roster.numbered(Vendor::Ascend, cann.device_id) {
                let device = &known.device;
                text.push_str(&format!(
                    "\0{:?} {:?} {:?}",
                    device.soc, device.driver, device.runtime
                ));
            }
        }
        Digest::of(text.as_bytes())
    }
}

/// A failure that is to be remembered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailedOn {
    pub key: Digest,
    /// What people are told of the provider.
    pub provider: String,
    pub reason: String,
}

/// What was tried on the way, and in vain.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tried {
    pub passed: Vec<PassedOver>,
    pub failed: Vec<FailedOn>,
}

/// The same while a load is under way.
#[derive(Debug, Clone, Default)]
pub struct Trying(Arc<Mutex<Tried>>);

impl Trying {
    /// A load begins to try what was chosen.
    pub fn begin(&self, passed: Vec<PassedOver>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) =
            Tried { passed, failed: Vec::new() };
    }

    /// A provider did not do. What says nothing of the model on it is not remembered.
    pub fn failed(&self, provider: &Provider, key: Digest, unfit: &Unfit) {
        let mut tried = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (provider, reason) = (label(provider), unfit.reason.clone());
        if matches!(unfit.fate, Fate::ForGood | Fate::Doubtful | Fate::Provider) {
            let (provider, reason) = (provider.clone(), reason.clone());
            tried.failed.push(FailedOn { key, provider, reason });
        }
        tried.passed.push(PassedOver { provider, why: Passed::Failed { reason } });
    }

    /// What came of it.
    pub fn end(self) -> Tried {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Those that were passed over, for a reason why nothing is left.
pub fn told(passed: &[PassedOver]) -> String {
    let one = |passed: &PassedOver| format!("{}: {}", passed.provider, passed.why);
    passed.iter().map(one).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Wanted;

    fn choosing(wanted: Vec<Wanted>) -> Choosing {
        let wanted = ExecutionProviders(wanted);
        Choosing { wanted, cann_built: true, ..Choosing::default() }
    }

    fn labels(choice: &Choice) -> Vec<String> {
        choice.candidates.iter().map(label).collect()
    }

    fn identity(provider: &Provider) -> String {
        provider.name().to_owned()
    }

    #[test]
    fn a_failure_counts_for_that_model_on_that_provider_and_the_cpu_has_none() {
        let model = Digest::of(b"model");
        let mut choosing = choosing(vec![Wanted::Cann, Wanted::Cpu]);
        let all = choosing.choice(model, identity).candidates;
        for provider in [&all[0], &Provider::Cpu] {
            let key = choosing.key(model, provider, &format!("{provider} with driver 1"));
            choosing.failed.insert(key, "GRAPH_FAILED".to_owned());
        }
        let with_driver = |number: u8| {
            move |provider: &Provider| match label(provider).as_str() {
                "cann (subgraphs)" => "another".to_owned(),
                _ => format!("{provider} with driver {number}"),
            }
        };
        let choice = choosing.choice(model, with_driver(1));
        assert_eq!(labels(&choice), ["cann (subgraphs)", "cpu"]);
        assert_eq!(choice.passed[0].why.label(), "failed_before");
        // Another driver, or another model, is another matter.
        assert_eq!(choosing.choice(model, with_driver(2)).candidates, all);
        assert_eq!(choosing.choice(Digest::of(b"other"), with_driver(1)).candidates, all);
    }

    #[test]
    fn the_way_back_leads_to_what_is_wanted_before_and_never_through_what_was_left() {
        let model = Digest::of(b"model");
        let mut choosing = choosing(vec![Wanted::Cann, Wanted::Cpu]);
        choosing.better_than = Some(Provider::Cpu);
        assert_eq!(labels(&choosing.choice(model, identity)), ["cann", "cann (subgraphs)"]);
        choosing.left.insert("cann".to_owned(), "507018".to_owned());
        let choice = choosing.choice(model, identity);
        assert_eq!(labels(&choice), ["cann (subgraphs)"]);
        assert_eq!(choice.passed[0].why.to_string(), "it failed in service: 507018");
        choosing.better_than = None;
        assert_eq!(labels(&choosing.choice(model, identity)), ["cann (subgraphs)", "cpu"]);
    }

    #[test]
    fn what_says_nothing_of_the_model_on_a_provider_is_told_and_not_remembered() {
        let trying = Trying::default();
        trying.begin(Vec::new());
        let unfit = |fate| Unfit { digest: None, reason: "why".to_owned(), fate };
        let (key, cann) = (Digest::of(b"key"), Provider::Cann(Cann::default()));
        for fate in [Fate::Later, Fate::Provider, Fate::ForGood] {
            trying.failed(&cann, key, &unfit(fate));
        }
        let tried = trying.end();
        assert_eq!((tried.passed.len(), tried.failed.len()), (3, 2));
    }
}
