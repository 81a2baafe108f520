//! What is written down of bundles: all that must survive a power cut.

use serde::{Deserialize, Serialize};

use crate::units::{Digest, Version};

use super::super::admit::Seen;
use super::super::health::Baseline;
use super::super::keys::KeySet;

/// A bundle that is kept on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    pub revision: u64,
    pub digest: Digest,
}

/// A version that a bundle brought: it goes with the bundle.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Placed {
    pub name: String,
    pub version: Version,
}

/// Where the box stands.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "snake_case")]
pub enum Step {
    #[default]
    Idle,
    /// The bundle is admitted and kept; room for its artifacts is looked for.
    Staging { bundle: Kept },
    /// Its artifacts are fetched.
    Downloading { bundle: Kept },
    /// Its configuration is read and its models are tried, beside what is in service.
    Trying { bundle: Kept },
    /// It is in force; its models are put in their places.
    Applying { bundle: Kept, placed: Vec<Placed>, before: Baseline, starts: u32 },
    /// Everything is in its place; it is watched.
    Probation { bundle: Kept, placed: Vec<Placed>, before: Baseline, starts: u32 },
    /// The one before is in force again; what this one brought is taken away.
    RollingBack {
        bundle: Kept,
        placed: Vec<Placed>,
        why: String,
        /// It was not to blame: the same one may come again.
        #[serde(default)]
        again: bool,
    },
}

/// Keys that came in a bundle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rotated {
    /// The configuration's keys that they follow: where others are named there, these hold no longer.
    pub from: Digest,
    pub keys: KeySet,
}

/// All that must survive a power cut.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Record {
    /// The newest bundle that was begun.
    pub seen: Option<Seen>,
    /// The last one that served its probation: what is returned to.
    pub good: Option<Kept>,
    pub step: Step,
    pub rotated: Option<Rotated>,
}

impl Record {
    /// The bundle whose configuration and models hold; `None`: the box's own files alone.
    pub fn in_force(&self) -> Option<&Kept> {
        match &self.step {
            Step::Idle
            | Step::Staging { .. }
            | Step::Downloading { .. }
            | Step::Trying { .. }
            | Step::RollingBack { .. } => self.good.as_ref(),
            Step::Applying { bundle, .. } | Step::Probation { bundle, .. } => Some(bundle),
        }
    }

    /// The bundle under way.
    pub fn candidate(&self) -> Option<&Kept> {
        match &self.step {
            Step::Idle => None,
            Step::Staging { bundle }
            | Step::Downloading { bundle }
            | Step::Trying { bundle }
            | Step::Applying { bundle, .. }
            | Step::Probation { bundle, .. }
            | Step::RollingBack { bundle, .. } => Some(bundle),
        }
    }

    /// Who is trusted: those who came in a bundle, for as long as the configuration names those whom they
    /// followed.
    pub fn trusted<'a>(&'a self, configured: Option<&'a KeySet>) -> Option<&'a KeySet> {
        let configured = configured?;
        let follows = |rotated: &&Rotated| rotated.from == configured.digest();
        Some(self.rotated.as_ref().filter(follows).map_or(configured, |rotated| &rotated.keys))
    }
}
