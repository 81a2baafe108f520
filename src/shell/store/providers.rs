//! On which execution providers models did not run: the next load does not try them again, for a day.

use std::collections::BTreeMap;

use crate::limits;
use crate::units::Digest;

use super::{FailedOnProvider, PROVIDERS, Store, StoreError, bound};

impl Store {
    /// Why models failed on providers, by whatever key a failure was kept under; `now` in seconds since 1970.
    /// One that is too old counts no more.
    pub fn failed_on(&self, now: u64) -> BTreeMap<Digest, String> {
        let counts = |(_, failed): &(&Digest, &FailedOnProvider)| {
            now.saturating_sub(failed.at) < limits::PROVIDER_FORGIVEN.as_secs()
        };
        let failed = self.failed_on.iter().filter(counts);
        failed.map(|(key, failed)| (*key, failed.reason.clone())).collect()
    }

    /// Remembers one. The oldest make place beyond [`limits::PROVIDER_FAILURES`].
    ///
    /// # Errors
    /// Where it cannot be written.
    pub fn put_failed_on(
        &mut self,
        key: Digest,
        failed: FailedOnProvider,
    ) -> Result<(), StoreError> {
        let mut all = self.failed_on.clone();
        all.insert(key, failed);
        bound(&mut all, limits::PROVIDER_FAILURES, |failed| failed.at);
        self.put(&self.root.join(PROVIDERS), &all)?;
        self.failed_on = all;
        Ok(())
    }

    /// Forgets those of which the words begin so.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub fn forgive(&mut self, start: &str) -> Result<(), StoreError> {
        let mut all = self.failed_on.clone();
        all.retain(|_, failed| !failed.what.starts_with(start));
        if all.len() == self.failed_on.len() {
            return Ok(());
        }
        self.put(&self.root.join(PROVIDERS), &all)?;
        self.failed_on = all;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_outlives_a_restart_counts_for_a_day_and_is_forgotten_on_request() {
        let dir = tempfile::tempdir().unwrap();
        let key = |text: &str| Digest::of(text.as_bytes());
        let failed = |what: &str, at: u64| FailedOnProvider {
            what: what.to_owned(),
            reason: "GRAPH_FAILED".to_owned(),
            at,
        };
        let mut store = Store::open(dir.path()).unwrap();
        store.put_failed_on(key("a"), failed("a version 1 on cann", 1000)).unwrap();
        store.put_failed_on(key("ab"), failed("ab version 1 on cann", 2000)).unwrap();
        drop(store);
        let mut store = Store::open(dir.path()).unwrap();
        assert_eq!(store.failed_on(3000).len(), 2);
        let day = limits::PROVIDER_FORGIVEN.as_secs();
        assert_eq!(store.failed_on(1000 + day).into_keys().collect::<Vec<_>>(), [key("ab")]);
        store.forgive("a ").unwrap();
        assert_eq!(store.failed_on(3000).into_keys().collect::<Vec<_>>(), [key("ab")]);
        for n in 0..limits::PROVIDER_FAILURES as u64 {
            store
                .put_failed_on(key(&n.to_string()), failed("m version 1 on cann", 3000 + n))
                .unwrap();
        }
        assert!(!store.failed_on(3000).contains_key(&key("ab")), "the oldest makes place");
    }
}
