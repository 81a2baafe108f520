//! Versions on their way into service: which loads still count, and when all that was there at the start has
//! come to an end.

use std::collections::{BTreeMap, BTreeSet};

use crate::arrivals::VersionKey;
use crate::units::Version;

/// Versions on their way into service.
#[derive(Debug, Default)]
pub struct Underway {
    /// Loads that run, each with the number of the one that counts: files that changed meanwhile are
    /// loaded once more.
    loading: BTreeMap<VersionKey, u64>,
    last: u64,
    /// Versions of the first listing whose end is not known yet; `None` before that.
    awaited: Option<BTreeSet<VersionKey>>,
}

impl Underway {
    /// A load of `key` begins; those before no longer count.
    pub fn begin(&mut self, key: &VersionKey) -> u64 {
        self.last += 1;
        self.loading.insert(key.clone(), self.last);
        self.last
    }

    /// A load has ended: whether its outcome counts.
    pub fn ends(&mut self, key: &VersionKey, number: u64) -> bool {
        if self.loading.get(key) != Some(&number) {
            return false;
        }
        self.loading.remove(key);
        true
    }

    /// Nobody wants `key` any more: a load that runs does not count.
    pub fn cancel(&mut self, key: &VersionKey) {
        self.loading.remove(key);
        self.settled(key);
    }

    /// The same for all versions of a model; those that were being loaded.
    pub fn cancel_model(&mut self, model: &str) -> Vec<Version> {
        let keys: Vec<VersionKey> =
            self.loading.keys().filter(|key| key.model == model).cloned().collect();
        keys.iter().for_each(|key| self.cancel(key));
        keys.iter().map(|key| key.version).collect()
    }

    /// Whether a version is being loaded.
    pub fn is_loading(&self, key: &VersionKey) -> bool {
        self.loading.contains_key(key)
    }

    /// `key` is served, refused or passed over.
    pub fn settled(&mut self, key: &VersionKey) {
        if let Some(awaited) = &mut self.awaited {
            awaited.remove(key);
        }
    }

    /// The first listing, or a later one, which says nothing new.
    pub fn listed<'k>(&mut self, keys: impl Iterator<Item = &'k VersionKey>) {
        if self.awaited.is_none() {
            self.awaited = Some(keys.cloned().collect());
        }
    }

    /// Waits no longer for versions whose files are still being written.
    pub fn give_up(&mut self, is_settling: impl Fn(&VersionKey) -> bool) {
        if let Some(awaited) = &mut self.awaited {
            awaited.retain(|key| !is_settling(key));
        }
    }

    /// Whether all that was there at the start is served or refused.
    pub fn is_complete(&self) -> bool {
        self.awaited.as_ref().is_some_and(BTreeSet::is_empty)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(model: &str, version: u64) -> VersionKey {
        VersionKey { model: model.to_owned(), version: Version(version) }
    }

    #[test]
    fn only_the_last_load_of_a_version_counts() {
        let mut underway = Underway::default();
        let first = underway.begin(&key("m", 1));
        let second = underway.begin(&key("m", 1));
        let other = underway.begin(&key("m", 2));
        assert!(!underway.ends(&key("m", 1), first));
        assert!(underway.is_loading(&key("m", 1)));
        assert!(underway.ends(&key("m", 1), second));
        assert!(!underway.ends(&key("m", 1), second), "once");
        underway.cancel(&key("m", 2));
        assert!(!underway.ends(&key("m", 2), other));
        assert!(!underway.is_loading(&key("m", 2)));
        underway.begin(&key("m", 3));
        assert_eq!(underway.cancel_model("m"), [Version(3)]);
        assert_eq!(underway.cancel_model("m"), [], "once");
    }

    #[test]
    fn the_start_is_complete_with_the_first_listing_and_not_with_later_ones() {
        let mut underway = Underway::default();
        assert!(!underway.is_complete());
        let first = [key("a", 1), key("b", 1), key("c", 1), key("d", 1)];
        underway.listed(first.iter());
        underway.listed([key("late", 1)].iter());
        let load = underway.begin(&first[0]);
        assert!(underway.ends(&first[0], load));
        underway.settled(&first[0]);
        underway.settled(&first[1]);
        underway.cancel(&first[2]);
        assert!(!underway.is_complete());
        // A file that grows for ever holds nobody back.
        underway.give_up(|key| *key == first[3]);
        assert!(underway.is_complete());
        let mut empty = Underway::default();
        empty.listed(std::iter::empty());
        assert!(empty.is_complete());
    }
}
