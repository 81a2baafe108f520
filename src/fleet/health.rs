//! Whether a bundle does the box good: what is seen of its models while it is on probation.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::limits::{FLEET_FAILURES, FLEET_LOOKS, FLEET_REQUESTS};
use crate::units::Version;

use super::artifact::Artifact;

/// What is seen of one model at a moment.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Seen {
    /// The version in service.
    pub serving: Option<Version>,
    /// Versions that could not be served, and why.
    pub refused: BTreeMap<Version, String>,
    /// Requests since the agent's start, and how many of them its own sessions failed.
    pub requests: u64,
    pub failures: u64,
    /// Whether its budget is kept; `None` where it has none, or nobody asks.
    pub met: Option<bool>,
}

/// What is seen of all models, by name.
pub type Health = BTreeMap<String, Seen>;

/// How a model did before the bundle was brought into force.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Before {
    /// Whether it missed its budget already.
    pub missed: bool,
}

/// All models that were in service before.
pub type Baseline = BTreeMap<String, Before>;

/// What is remembered of the looks so far.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Looks(BTreeMap<String, Counted>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Counted {
    version: Option<Version>,
    requests: u64,
    failures: u64,
    looks: u32,
    missed: u32,
}

/// What the looks so far come to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// All is as it should be.
    Well,
    /// Something is not there yet.
    Waits(String),
    /// It does the box no good.
    Sick(String),
}

/// How models did, for the next probation to compare with.
pub fn baseline(health: &Health) -> Baseline {
    let served = health.iter().filter(|(_, seen)| seen.serving.is_some());
    served.map(|(name, seen)| (name.clone(), Before { missed: seen.met == Some(false) })).collect()
}

impl Looks {
    /// Takes a look, a second after the last one or later, and says what all of them come to.
    pub fn take(&mut self, wanted: &[Artifact], before: &Baseline, now: &Health) -> Verdict {
        let mut waits = None;
        for artifact in wanted {
            let (name, version) = (&artifact.name, artifact.version);
            let seen = now.get(name);
            if let Some(why) = seen.and_then(|seen| seen.refused.get(&version)) {
                return Verdict::Sick(format!("{name} version {version} cannot be served: {why}"));
            }
            if seen.and_then(|seen| seen.serving) != Some(version) {
                waits = waits.or(Some(format!("{name} version {version} is not in service")));
            }
        }
        for (name, was) in before {
            let seen = now.get(name).filter(|seen| seen.serving.is_some());
            let Some(seen) = seen else {
                waits = waits.or(Some(format!("{name} is no longer in service")));
                continue;
            };
            if let Some(why) = self.count(name, was, seen) {
                return Verdict::Sick(why);
            }
        }
        // Models that come with the bundle have nothing to compare with.
        for artifact in wanted.iter().filter(|artifact| !before.contains_key(&artifact.name)) {
            let Some(seen) = now.get(&artifact.name) else { continue };
            if let Some(why) = self.count(&artifact.name, &Before { missed: false }, seen) {
                return Verdict::Sick(why);
            }
        }
        waits.map_or(Verdict::Well, Verdict::Waits)
    }

    /// Counts what came since the last look; gives what is wrong with it.
    fn count(&mut self, name: &str, was: &Before, seen: &Seen) -> Option<String> {
        let fresh = Counted {
            version: seen.serving,
            requests: seen.requests,
            failures: seen.failures,
            looks: 0,
            missed: 0,
        };
        let counted = self.0.entry(name.to_owned()).or_insert_with(|| fresh.clone());
        // Another version counts from its own beginning.
        if counted.version != seen.serving || counted.requests > seen.requests {
            *counted = fresh;
        }
        counted.looks = counted.looks.saturating_add(u32::from(seen.met.is_some()));
        counted.missed = counted.missed.saturating_add(u32::from(seen.met == Some(false)));
        let requests = seen.requests - counted.requests;
        let failures = seen.failures.saturating_sub(counted.failures);
        if requests >= FLEET_REQUESTS && failures as f64 > FLEET_FAILURES * requests as f64 {
            return Some(format!("{name} failed {failures} of {requests} requests"));
        }
        if !was.missed && counted.looks >= FLEET_LOOKS && counted.missed * 2 > counted.looks {
            return Some(format!("{name} does not keep its budget, as it did before"));
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::super::artifact::{Sha256, Source};
    use super::*;

    fn wanted(version: u64) -> [Artifact; 1] {
        let (from, sha256) = (Source::File("f".into()), Sha256([0; 32]));
        let version = Version(version);
        [Artifact {
            name: "m".into(),
            version,
            from,
            size: 1,
            sha256,
            signature: None,
            files: Vec::new(),
        }]
    }

    fn seen(version: u64, requests: u64, failures: u64, met: Option<bool>) -> Health {
        let serving = Some(Version(version));
        [("m".to_owned(), Seen { serving, requests, failures, met, ..Seen::default() })].into()
    }

    #[test]
    fn a_bundle_waits_for_its_models_and_is_sick_where_one_cannot_be_served() {
        let before = baseline(&seen(1, 0, 0, None));
        let mut looks = Looks::default();
        let take = |looks: &mut Looks, health: &Health| looks.take(&wanted(2), &before, health);
        assert!(matches!(take(&mut looks, &seen(1, 0, 0, None)), Verdict::Waits(_)));
        assert!(matches!(take(&mut looks, &Health::new()), Verdict::Waits(_)));
        assert_eq!(take(&mut looks, &seen(2, 0, 0, None)), Verdict::Well);
        let mut health = seen(1, 0, 0, None);
        health.get_mut("m").unwrap().refused.insert(Version(2), "no ONNX".into());
        assert_eq!(
            take(&mut looks, &health),
            Verdict::Sick("m version 2 cannot be served: no ONNX".into())
        );
        // What was refused before is nothing of this bundle.
        let other = looks.take(&wanted(3), &before, &health);
        assert!(matches!(other, Verdict::Waits(_)));
    }

    #[test]
    fn failures_count_from_the_versions_first_look_on_and_from_enough_requests_on() {
        let before = Baseline::new();
        let mut looks = Looks::default();
        // What the version before failed at is not held against this one.
        looks.take(&wanted(2), &before, &seen(1, 1000, 900, None));
        assert_eq!(looks.take(&wanted(2), &before, &seen(2, 1010, 910, None)), Verdict::Well);
        assert_eq!(looks.take(&wanted(2), &before, &seen(2, 1029, 929, None)), Verdict::Well);
        let sick = looks.take(&wanted(2), &before, &seen(2, 1030, 912, None));
        assert_eq!(sick, Verdict::Sick("m failed 2 of 20 requests".into()));
        let mut looks = Looks::default();
        looks.take(&wanted(2), &before, &seen(2, 0, 0, None));
        assert_eq!(looks.take(&wanted(2), &before, &seen(2, 100, 5, None)), Verdict::Well);
    }

    #[test]
    fn a_budget_that_is_missed_counts_only_against_a_bundle_that_made_it_so() {
        let run = |before: &Baseline, met: bool| {
            let mut looks = Looks::default();
            let health = seen(1, 0, 0, Some(met));
            (0..FLEET_LOOKS).map(|_| looks.take(&[], before, &health)).collect::<Vec<_>>()
        };
        let kept = baseline(&seen(1, 0, 0, Some(true)));
        let verdicts = run(&kept, false);
        assert!(verdicts[..verdicts.len() - 1].iter().all(|verdict| *verdict == Verdict::Well));
        assert!(matches!(verdicts.last(), Some(Verdict::Sick(_))));
        assert_eq!(run(&kept, true).last(), Some(&Verdict::Well));
        let missed = baseline(&seen(1, 0, 0, Some(false)));
        assert_eq!(run(&missed, false).last(), Some(&Verdict::Well));
    }
}
