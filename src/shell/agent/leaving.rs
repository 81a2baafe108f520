//! How a version leaves service: at once where nothing can take its place, and else once something has.
//!
//! A version whose file is gone (an operator removed it, or a bundle is taken back) has all that it needs in
//! memory. Where other versions of its model are there, it serves on until one of these is loaded beside it and
//! takes its place, as a newer version would; where none of them can be served, it goes.

use std::collections::BTreeSet;

use super::Agent;
use crate::arrivals::VersionKey;
use crate::shell::slot::Entry;
use crate::units::Version;

/// Why a version leaves.
const GONE: &str = "its file is gone";

impl Agent {
    /// The version of a model that is in service and does not wait for another to take its place.
    pub(super) fn stays(&self, model: &str) -> Option<Version> {
        let served = self.served.get(model).filter(|served| served.awaits.is_none());
        served.map(|served| served.key.version)
    }

    /// A version that another one has taken the place of answers no more.
    pub(super) fn leave(&mut self, key: &VersionKey) {
        if let Some(Entry::Ready(old)) = self.repository.remove(&key.model, key.version) {
            old.close();
        }
        self.metrics.forget(&key.model, key.version);
    }

    /// A version's file is gone.
    pub(super) fn removed(&mut self, key: &VersionKey) {
        self.refused.remove(key);
        self.underway.cancel(key);
        self.answer_loads(&key.model);
        let Some(served) = self.served.get_mut(&key.model).filter(|served| served.key == *key)
        else {
            self.repository.remove(&key.model, key.version);
            return self.takes_no_place(key);
        };
        let of_model = self.arrivals.versions().filter(|other| other.model == key.model);
        let others: BTreeSet<Version> = of_model.map(|other| other.version).collect();
        if others.is_empty() {
            return self.goes(key);
        }
        let (model, version) = (&key.model, key.version);
        tracing::info!(model, %version, "{GONE}: it serves until another takes its place");
        served.awaits = Some(others);
        self.end_unwanted_build(&key.model);
        self.tell_anew(&key.model);
    }

    /// A version is not served: where the one in service waited for this one alone, it goes.
    pub(super) fn takes_no_place(&mut self, key: &VersionKey) {
        let Some(served) = self.served.get_mut(&key.model) else { return };
        let Some(awaited) = &mut served.awaits else { return };
        awaited.remove(&key.version);
        if awaited.is_empty() {
            let gone = served.key.clone();
            self.goes(&gone);
        }
    }

    /// A version whose file is gone leaves. What found no room beside it may find some now.
    fn goes(&mut self, key: &VersionKey) {
        self.unload(key, GONE);
        self.sampling.remove(&key.model);
        if !self.arrivals.knows(&key.model) {
            self.drop_samples(&key.model);
        }
        self.tell_anew(&key.model);
    }

    /// Has the versions of a model that are there told as if they had just come.
    fn tell_anew(&mut self, model: &str) {
        self.arrivals.forget(model);
        self.look.notify_one();
    }

    pub(super) fn unload(&mut self, key: &VersionKey, why: &str) {
        tracing::info!(model = key.model, version = %key.version, "no longer served: {why}");
        if let Some(Entry::Ready(slot)) = self.repository.remove(&key.model, key.version) {
            slot.close();
        }
        self.served.remove(&key.model);
        self.metrics.forget(&key.model, key.version);
        self.end_unwanted_build(&key.model);
    }
}
