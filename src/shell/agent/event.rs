//! What can happen to the agent, in one closed list.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use super::choosing::Tried;
use super::devices::VendorEvent;
use crate::arrivals::VersionKey;
use crate::config::Provider;
use crate::fleet::apply::Outcome;
use crate::hardware::Vendor;
use crate::ladder::Manifest;
use crate::protocol::Signature;
use crate::shell::children::trial::RanOn;
use crate::shell::children::{Blame, ChildError};
use crate::shell::engine::Weights;
use crate::shell::slot::{Command, Notice, Runner};
use crate::shell::store::{Damage, Drawn, LadderId};
use crate::shell::watch::Listing;
use crate::units::Digest;

/// One event.
pub enum Event {
    /// The model directory was listed.
    Listed(Listing),
    /// The model directory cannot be listed.
    NotListed(String),
    /// A version's dense model is loaded, tried and ready for service, or is not fit for it.
    Prepared {
        key: VersionKey,
        /// Which load it was: only the last one of a version counts.
        load: u64,
        path: PathBuf,
        /// External data files that it names, relative to its folder; `None` where it cannot be read.
        external: Option<BTreeSet<String>>,
        outcome: Result<Box<Prepared>, Unfit>,
        /// What it does not run on.
        tried: Tried,
    },
    /// A served version is loaded to run on another execution provider, or is not.
    Moved { key: VersionKey, outcome: Result<Box<Prepared>, Unfit>, tried: Tried },
    /// A rung is loaded and tried, or is not fit for service.
    Opened {
        key: VersionKey,
        digest: Digest,
        variant: String,
        /// What it was loaded for.
        provider: Provider,
        outcome: Result<Opened, Unfit>,
    },
    /// The builder has got so far (0 to 1) with a version.
    Building { key: VersionKey, share: f64, stage: String },
    /// A ladder that was built before was looked at: its manifest, or what is wrong with it.
    LadderFound { key: VersionKey, id: LadderId, found: Result<Box<Manifest>, Damage> },
    /// The builder has ended.
    Built { key: VersionKey, id: LadderId, outcome: Result<(), ChildError> },
    /// Samples of a model's live requests stand ready to be kept.
    Sampled { model: String, outcome: Result<Sampled, String> },
    /// A variant's last request is answered and its sessions are freed.
    Drained { key: VersionKey, variant: String },
    /// Dense is loaded to be compared with, or is not.
    Shadowed { key: VersionKey, outcome: Result<Vec<Box<dyn Runner>>, Unfit> },
    /// A session failed.
    Notice(Notice),
    /// A client asks for something.
    Command(Command),
    /// The task that looks after a vendor's accelerators found something.
    Vendor {
        vendor: Vendor,
        /// Which task it was: only the last one of a vendor counts.
        task: u64,
        event: VendorEvent,
    },
    /// A task for a fleet's bundle has ended.
    Fleet { job: u64, outcome: Outcome },
    /// SIGHUP.
    Reload,
}

/// A dense model that can be served.
pub struct Prepared {
    pub digest: Digest,
    pub signature: Signature,
    pub opened: Opened,
    /// What runs it.
    pub provider: Provider,
    /// What its trial told of that.
    pub facts: Value,
}

/// A variant's sessions and what its trial measured.
pub struct Opened {
    pub sessions: Vec<Box<dyn Runner>>,
    /// Median and 99th percentile of one request in the trial; `None` where nothing was found that it runs
    /// on: real requests will tell.
    pub p50: Option<Duration>,
    pub p99: Option<Duration>,
    /// What it was tried and warmed on.
    pub ran_on: Option<RanOn>,
    pub lending: Lending,
}

/// Whether a variant's sessions hold their weights together with others.
#[derive(Debug, Clone, Default)]
pub enum Lending {
    /// They do not: its trial has not said that it answers alike then.
    #[default]
    Off,
    /// They do. Weights that cost no memory are kept for when it is loaded again.
    On(Option<Arc<Weights>>),
}

impl Lending {
    pub fn is_on(&self) -> bool {
        matches!(self, Self::On(_))
    }
}

/// Samples of live requests as an archive of arrays.
pub struct Sampled {
    pub npz: Vec<u8>,
    pub drawn: Drawn,
}

/// Why a variant is not fit for service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unfit {
    /// What it is, if it could be read that far.
    pub digest: Option<Digest>,
    pub reason: String,
    pub fate: Fate,
}

/// What becomes of a variant that is not fit for service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It never will be: it is quarantined.
    ForGood,
    /// It is tried again; where that fails too often, it is to blame.
    Doubtful,
    /// What was to run it is to blame: another provider is tried, and itself later.
    Provider,
    /// It is not to blame, and is tried again.
    Later,
    /// Its files decide: it is tried when they change, and when somebody asks for it.
    WhenChanged,
}

impl From<Blame> for Fate {
    fn from(blame: Blame) -> Self {
        match blame {
            Blame::Work => Self::ForGood,
            Blame::Either => Self::Doubtful,
            Blame::Provider => Self::Provider,
            Blame::Circumstances => Self::Later,
        }
    }
}
