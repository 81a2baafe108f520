//! What happens to the machine, and what it has done.

use std::sync::Arc;

use crate::units::Digest;

use super::super::artifact::Artifact;
use super::super::health::{Baseline, Health};
use super::super::refused::Refused;
use super::record::{Placed, Record};

/// What happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A bundle was brought: its name and bytes.
    Offered { name: String, bytes: Arc<[u8]> },
    /// What came of a task. Only that of the last one counts.
    Done { job: u64, outcome: Outcome },
    /// A look at the models, a second after the last one or later.
    Looked(Health),
    /// Time passes.
    Tick,
}

/// What came of a [`Task`].
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// Whether there is room for the artifacts.
    Reserved(Result<(), String>),
    /// Whether an artifact is whole, and what the bundle says of it holds.
    Fetched(Result<(), Failure>),
    /// Whether the configuration holds together with the box's own.
    Checked(Result<(), String>),
    /// How a model did.
    Tried(Result<(), Failure>),
    /// The box as it is before the bundle comes into force, or why its models cannot be put in their places.
    Surveyed(Result<Survey, String>),
    /// Whether the models are in their places.
    Placed(Result<(), String>),
    /// Whether what the bundle brought is taken away.
    Removed(Result<(), String>),
}

/// Why something of a bundle failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// It may go well later: the network, memory.
    Later(String),
    /// It will fail again.
    ForGood(String),
}

/// The box before a bundle.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Survey {
    pub before: Baseline,
    /// Versions of the bundle that are there, with the same contents: they stay whatever becomes of it.
    pub there: Vec<Placed>,
}

/// What is to be done, in this order.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Keeps a bundle under its digest. What returns without error survives a power cut.
    Keep {
        digest: Digest,
        bytes: Arc<[u8]>,
    },
    /// Keeps the record in place of the one before; likewise.
    Save(Box<Record>),
    /// Begins a task in place of the one before.
    Begin {
        job: u64,
        task: Task,
    },
    /// Has the agent read its configuration with the part that is in force.
    Reload,
    /// Removes all bundles but these, and all artifacts.
    Sweep {
        keep: Vec<Digest>,
    },
    Report(Report),
}

/// What takes its time, one at a time.
#[derive(Debug, Clone, PartialEq)]
pub enum Task {
    /// Finds room for what is still to fetch.
    Reserve {
        artifacts: Vec<Artifact>,
    },
    Fetch {
        artifact: Artifact,
    },
    /// Reads the configuration with this bundle's part.
    Check,
    Try {
        artifact: Artifact,
    },
    /// Looks at the models, and at which of these are in their places.
    Survey {
        artifacts: Vec<Artifact>,
    },
    /// Puts these models in their places; those that are there stay.
    Place {
        artifacts: Vec<Artifact>,
    },
    /// Takes these versions away; those that are not there are fine.
    Remove {
        placed: Vec<Placed>,
    },
}

/// What operators are told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Report {
    Refused {
        name: String,
        why: Refused,
    },
    Begun {
        revision: u64,
    },
    /// It is left alone; nothing has changed.
    Abandoned {
        revision: u64,
        why: String,
    },
    /// It is in force for good.
    Committed {
        revision: u64,
    },
    /// The one before is in force again.
    RolledBack {
        revision: u64,
        why: String,
    },
}
