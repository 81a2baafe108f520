//! What is kept, as it is written.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::ladder::Manifest;
use crate::units::{Digest, Version};

/// Which ladder: that of a dense model under certain conditions. Latencies of another engine are
/// worth nothing, and other ratios or samples give other rungs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct LadderId {
    /// The dense model, see `onnx::Model::digest`.
    pub dense: Digest,
    /// The engine that measured, and how the ladder was asked for.
    pub conditions: Digest,
}

impl LadderId {
    /// The ladder of `dense` on `engine` (its identity), asked for by `recipe` (anything that names
    /// ratios, method, seed, samples).
    pub fn new(dense: Digest, engine: &str, recipe: &str) -> Self {
        let mut text = engine.as_bytes().to_vec();
        text.push(0);
        text.extend_from_slice(recipe.as_bytes());
        Self { dense, conditions: Digest::of(&text) }
    }

    /// The name of its folder.
    pub(super) fn folder(&self) -> String {
        format!("{}-{}", self.dense, self.conditions.short())
    }
}

/// How far the making of a ladder is.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "lowercase")]
pub enum BuildState {
    /// Waits for its turn, or was interrupted.
    #[default]
    Queued,
    /// Under way; after a restart: interrupted.
    Building,
    /// Its files are in place.
    Done,
    /// It will not be tried again before something changes.
    Failed { reason: String },
}

/// How a variant did in its trial.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Trial {
    /// Median and 99th percentile of the warm runs, microseconds.
    pub p50_us: f64,
    pub p99_us: f64,
    /// Most memory that the child held, bytes.
    pub memory: u64,
}

/// What is known of one ladder besides its files.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct LadderRecord {
    pub build: BuildState,
    /// Variants that were tried, by name.
    pub trials: BTreeMap<String, Trial>,
    /// When an agent last used it, seconds since 1970.
    pub used: u64,
}

/// A ladder whose files are whole.
#[derive(Debug, Clone, PartialEq)]
pub struct Ladder {
    pub manifest: Manifest,
    pub folder: std::path::PathBuf,
}

/// What is remembered of one model.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ModelRecord {
    /// What was last in service.
    pub in_service: Option<InService>,
    /// Kept samples of live requests.
    pub reservoir: Option<Reservoir>,
}

/// The variant that served a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InService {
    pub version: Version,
    pub dense: Digest,
    /// `dense`, or the rung's name.
    pub variant: String,
}

/// Samples of live requests, in a file of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reservoir {
    /// BLAKE3 of the file, and its name.
    pub digest: Digest,
    pub drawn: Drawn,
}

/// What samples were drawn from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drawn {
    pub samples: usize,
    /// How many there were to draw from.
    pub seen: u64,
    /// Names, types and shapes of the model's inputs: those of another model are no samples of this one.
    pub inputs: Digest,
}

/// A variant that must not be served.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Quarantined {
    /// What it is, for people: `digits version 2`, `digits r0.5`.
    pub what: String,
    pub reason: String,
    /// Seconds since 1970.
    pub at: u64,
    /// Where its agreement with dense on live requests is the reason: the floor that it is below.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub floor: Option<f64>,
}

/// A model that did not run on an execution provider.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedOnProvider {
    /// What it is, for people: `digits version 2 on cann`.
    pub what: String,
    pub reason: String,
    /// Seconds since 1970.
    pub at: u64,
}

impl Quarantined {
    /// Whether it holds where variants must agree with dense so much.
    pub fn holds_at(&self, floor: f64) -> bool {
        self.floor.is_none_or(|missed| floor >= missed)
    }
}
