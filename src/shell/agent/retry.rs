//! What failed through no fault of a file, or perhaps through none, is tried again, with growing waits.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use super::Agent;
use super::event::Fate;
use super::served::Build;
use crate::arrivals::VersionKey;
use crate::limits;
use crate::shell::store::LadderId;
use crate::units::Digest;

/// Failed work of one kind: by what it is for (`K`), which of it failed (`W`: another file is another
/// matter), how often, and when it is due again. Times count from any fixed moment.
pub struct Retries<K, W> {
    first: Duration,
    longest: Duration,
    tries: BTreeMap<K, Try<W>>,
}

struct Try<W> {
    work: W,
    failures: u32,
    doubtful: u32,
    due: Option<Duration>,
}

/// What follows from a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// It is due again after this wait.
    In(Duration),
    /// It failed too often for anything else to be the cause.
    ToBlame,
}

impl Next {
    /// Tells of the wait; whether there is none.
    fn told(self, model: &str) -> bool {
        match self {
            Self::In(wait) => tracing::info!(model, ?wait, "it is tried again"),
            Self::ToBlame => tracing::warn!(model, "it is not tried again: it failed too often"),
        }
        self == Self::ToBlame
    }
}

impl<K: Ord + Clone, W: PartialEq + Clone> Retries<K, W> {
    pub fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, tries: BTreeMap::new() }
    }

    /// Takes a failure in. `doubtful`: the work itself may be its cause.
    pub fn failed(&mut self, key: K, work: W, doubtful: bool, now: Duration) -> Next {
        let fresh = Try { work: work.clone(), failures: 0, doubtful: 0, due: None };
        let known = self.tries.remove(&key).filter(|known| known.work == work);
        let mut tried = known.unwrap_or(fresh);
        tried.doubtful += u32::from(doubtful);
        if tried.doubtful >= limits::DOUBTFUL_TRIES {
            return Next::ToBlame;
        }
        let factor = 1u32.checked_shl(tried.failures).unwrap_or(u32::MAX);
        let wait = self.first.saturating_mul(factor).min(self.longest);
        tried.failures = tried.failures.saturating_add(1);
        tried.due = Some(now.saturating_add(wait));
        self.tries.insert(key, tried);
        Next::In(wait)
    }

    /// What is due now; each is told once.
    pub fn due(&mut self, now: Duration) -> Vec<(K, W)> {
        let due = self.tries.iter_mut().filter(|(_, tried)| tried.due.is_some_and(|at| at <= now));
        due.map(|(key, tried)| {
            tried.due = None;
            (key.clone(), tried.work.clone())
        })
        .collect()
    }

    /// It went well: failures before it count no more.
    pub fn went_well(&mut self, key: &K) {
        self.tries.remove(key);
    }

    /// Keeps only what is still of interest.
    pub fn retain(&mut self, wanted: impl Fn(&K) -> bool) {
        self.tries.retain(|key, _| wanted(key));
    }
}

/// All that an agent tries again.
pub struct Again {
    /// Versions that are not served: their files, and what these were.
    versions: Retries<VersionKey, (PathBuf, Option<Digest>)>,
    /// Variants that do not stand by, by model and name.
    variants: Retries<(String, String), Digest>,
    ladders: Retries<VersionKey, LadderId>,
}

impl Default for Again {
    fn default() -> Self {
        let loads = (limits::RELOAD_FIRST, limits::RELOAD_LONGEST);
        Self {
            versions: Retries::new(loads.0, loads.1),
            variants: Retries::new(loads.0, loads.1),
            ladders: Retries::new(limits::REBUILD_FIRST, limits::REBUILD_LONGEST),
        }
    }
}

impl Agent {
    /// Whether a version that is not fit for service never will be; what may be is tried again.
    pub(super) fn version_is_to_blame(
        &mut self,
        key: &VersionKey,
        path: PathBuf,
        digest: Option<Digest>,
        fate: Fate,
    ) -> bool {
        let now = self.started.elapsed();
        let doubtful = fate == Fate::Doubtful;
        match fate {
            Fate::ForGood => true,
            Fate::WhenChanged => false,
            Fate::Doubtful | Fate::Provider | Fate::Later => {
                let versions = &mut self.again.versions;
                let next = versions.failed(key.clone(), (path, digest), doubtful, now);
                next.told(&key.model)
            }
        }
    }

    /// The same of a variant that could not be loaded to stand by.
    pub(super) fn variant_is_to_blame(
        &mut self,
        model: &str,
        variant: &str,
        digest: Digest,
        fate: Fate,
    ) -> bool {
        let now = self.started.elapsed();
        let doubtful = fate == Fate::Doubtful;
        let key = (model.to_owned(), variant.to_owned());
        match fate {
            Fate::ForGood => true,
            // Nobody but the agent changes the files of rungs; dense ones come as a new version.
            Fate::WhenChanged => false,
            Fate::Doubtful | Fate::Provider | Fate::Later => {
                self.again.variants.failed(key, digest, doubtful, now).told(model)
            }
        }
    }

    pub(super) fn variant_went_well(&mut self, model: &str, variant: &str) {
        self.again.variants.went_well(&(model.to_owned(), variant.to_owned()));
    }

    pub(super) fn build_went_well(&mut self, key: &VersionKey) {
        self.again.ladders.went_well(key);
    }

    /// When a build that failed is due again; `None` where it failed for good.
    pub(super) fn build_due(
        &mut self,
        key: &VersionKey,
        id: LadderId,
        fate: Fate,
    ) -> Option<Duration> {
        let now = self.started.elapsed();
        let doubtful = fate == Fate::Doubtful;
        match fate {
            Fate::ForGood => None,
            Fate::Doubtful | Fate::Provider | Fate::Later | Fate::WhenChanged => {
                match self.again.ladders.failed(key.clone(), id, doubtful, now) {
                    Next::In(wait) => Some(wait),
                    Next::ToBlame => None,
                }
            }
        }
    }

    /// Each turn: what is due again.
    pub(super) fn try_again(&mut self) {
        let now = self.started.elapsed();
        for (key, (path, _)) in self.again.versions.due(now) {
            let newer = self.stays(&key.model).is_some_and(|stays| stays > key.version);
            if self.refused.contains_key(&key) && !newer {
                self.prepare(key, path.to_string_lossy().into_owned());
            }
        }
        let variants = self.again.variants.due(now).into_iter().map(|((model, _), _)| model);
        for model in variants.collect::<BTreeSet<_>>() {
            self.open_missing(&model);
        }
        for (key, _) in self.again.ladders.due(now) {
            let served = self.served.get(&key.model).filter(|served| served.key == key);
            if served.is_some_and(|served| matches!(served.build, Build::Failed(_))) {
                self.want_ladder(&key);
            }
        }
        let (served, refused) = (&self.served, &self.refused);
        self.again.versions.retain(|key| refused.contains_key(key));
        self.again.variants.retain(|(model, _)| served.contains_key(model));
        self.again.ladders.retain(|key| served.get(&key.model).is_some_and(|s| s.key == *key));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    fn retries() -> Retries<&'static str, u8> {
        Retries::new(secs(5), secs(60))
    }

    #[test]
    fn the_waits_double_up_to_the_longest_and_what_is_due_is_told_once() {
        let mut retries = retries();
        let mut now = Duration::ZERO;
        for wait in [5, 10, 20, 40, 60, 60, 60] {
            assert_eq!(retries.failed("a", 1, false, now), Next::In(secs(wait)));
            assert_eq!(retries.due(now + secs(wait) - Duration::from_millis(1)), []);
            now += secs(wait);
            assert_eq!(retries.due(now), [("a", 1)]);
            assert_eq!(retries.due(now + secs(3600)), []);
        }
        let mut often = Retries::new(secs(1), Duration::MAX);
        for _ in 0..100 {
            assert!(matches!(often.failed("a", 1, false, secs(9)), Next::In(_)));
        }
    }

    #[test]
    fn what_may_be_to_blame_is_after_so_many_failures_and_another_file_is_another_matter() {
        let mut retries = retries();
        let doubtful = |retries: &mut Retries<_, _>, work| {
            retries.failed("a", work, true, Duration::ZERO) == Next::ToBlame
        };
        let most = limits::DOUBTFUL_TRIES;
        assert!((1..most).all(|_| !doubtful(&mut retries, 1)));
        assert!(!doubtful(&mut retries, 2), "another file");
        // Failures of the box between them do not count.
        assert!((2..most).all(|_| !doubtful(&mut retries, 2)));
        assert!(matches!(retries.failed("a", 2, false, Duration::ZERO), Next::In(_)));
        assert!(doubtful(&mut retries, 2));
        assert!(!doubtful(&mut retries, 2), "it is forgotten with the verdict");
        retries.went_well(&"a");
        assert!((1..most).all(|_| !doubtful(&mut retries, 2)), "and with a success");
        retries.retain(|_| false);
        assert_eq!(retries.due(secs(1000)), []);
    }
}
