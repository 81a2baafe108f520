//! What is written beside the rungs: where they come from, what was removed from each and who stands in
//! for it, what it costs and what it promises. The agent serves nothing that its manifest does not name.

use serde::{Deserialize, Serialize};

use crate::units::Digest;

/// Version of the manifest's layout; a reader refuses a higher one.
pub const MANIFEST_FORMAT: u32 = 1;

/// Name of the manifest in a ladder's folder.
pub const MANIFEST_FILE: &str = "manifest.json";

/// A ladder: the dense model and the faster variants that were made from it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`MANIFEST_FORMAT`] of the writer.
    pub format: u32,
    /// Version of blochd that made the ladder.
    pub blochd: String,
    /// The dense model.
    pub source: Source,
    /// Device, execution provider and runtime version on which all latencies were measured.
    pub engine: String,
    /// How channels were selected: `obs`, `response`, `spectral`, `magnitude`, `random` or `scores`.
    pub method: String,
    /// Seed of everything that chance decides.
    pub seed: u64,
    /// Where the calibration samples came from.
    pub calibration: Calibration,
    /// The dense model's own figures (ratio 1, quality 1).
    pub dense: Figures,
    /// The variants, slowest first.
    pub rungs: Vec<Rung>,
    /// Ratios that were asked for and not built, with the reason.
    pub not_built: Vec<NotBuilt>,
    /// Coupled groups of the dense model, prunable ones.
    pub groups: Vec<GroupInfo>,
    /// What may not be cut, and because of what.
    pub frozen: Vec<FrozenInfo>,
}

/// The file that a ladder was made from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Source {
    /// File name, without its folder.
    pub file: String,
    /// BLAKE3 of the file and its external data, see `onnx::Model::digest`.
    pub digest: Digest,
}

/// Where calibration samples came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CalibrationSource {
    /// A file the operator gave (`--calibration`, or `calibration.npz` beside the model).
    File,
    /// Live requests that the agent kept under its policy.
    Live,
    /// Made up: low-pass noise. Rungs from it are close to dense at best; see README.
    Synthetic,
}

/// The calibration samples of a ladder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Calibration {
    pub source: CalibrationSource,
    /// Number of samples used (those held out for checking included).
    pub samples: usize,
}

/// What a variant costs and is worth.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// Promised median latency of one sample on this box, microseconds: dense's, times `ratio`.
    pub p50_us: f64,
    /// Promised 99th percentile, microseconds: dense's, times `ratio`.
    pub p99_us: f64,
    /// This variant's undisturbed latency (lower quartile of runs in turn with dense) divided by dense's,
    /// from rounds on which no choice depended.
    pub ratio: f64,
    /// Multiply-accumulate operations of one sample.
    pub macs: u64,
    /// Parameters: elements of all floating-point constants.
    pub params: u64,
    /// Size of the file, bytes.
    pub bytes: u64,
    /// Agreement with dense on samples that the repair did not see, 0 to 1: the share of equal top-1
    /// classes where the output is a score a class, else the explained variance of the outputs.
    pub quality: f64,
    /// Share of explained variance of the outputs, at most 1 (can be negative).
    pub explained: f64,
    /// Top-1 accuracy on the labelled samples of `--eval`, 0 to 1.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub accuracy: Option<f64>,
}

impl Figures {
    /// Takes `ratio` of dense's own latencies: that is what a variant promises, measured side by side with
    /// dense and so free of what disturbed the box at that moment.
    pub fn take(&mut self, dense: &Self, ratio: f64) {
        self.ratio = ratio;
        (self.p50_us, self.p99_us) = (dense.p50_us * ratio, dense.p99_us * ratio);
    }
}

/// One faster variant.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Rung {
    /// Short name, from the ratio that was asked for: `r0.75`.
    pub name: String,
    /// The ratio that was asked for.
    pub asked: f64,
    /// File name in the ladder's folder.
    pub file: String,
    /// BLAKE3 of the variant, see `onnx::Model::digest`.
    pub digest: Digest,
    pub figures: Figures,
    /// Groups that lost channels.
    pub cuts: Vec<GroupCut>,
    /// Residual blocks that were replaced by their shortcut, by the name of their last addition (or of the
    /// normalisation that adds).
    pub bypassed: Vec<String>,
    /// Operators that were put in two of lower rank.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub in_two: Vec<LowRank>,
    /// Operators that read the weight of another one.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub substituted: Vec<Substituted>,
    /// What the repair did to each operator behind a cut.
    pub repairs: Vec<Repair>,
    /// Whether everything that the rung before lost is gone here, too; nothing for the slowest rung.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub nested: Option<bool>,
}

/// An operator that was put in two: W ≈ B·A.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LowRank {
    /// The operator's name.
    pub operator: String,
    /// Inputs and outputs of the dense operator.
    pub inputs: usize,
    pub outputs: usize,
    /// Outputs of A, inputs of B.
    pub rank: usize,
    /// Squared error of the best operator of this rank on the calibration rows, relative to the variance of
    /// the value that it adds to: the tail of the singular values of W·S^½, known before anything is cut.
    pub tail: f64,
    /// The same on rows that the directions were not taken from.
    pub held_out: f64,
}

/// An operator that reads another one's weight, for the two say nearly the same.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Substituted {
    /// The operator's name.
    pub operator: String,
    /// The operator whose weight it reads.
    pub reads: String,
    /// Squared error of its output on held-out samples, relative to the output's variance: scaled and shifted
    /// at best where what stands behind takes that over.
    pub error: f64,
    /// Bytes of the weight that the file holds no more.
    pub saves_bytes: u64,
}

/// The channels that a group lost.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GroupCut {
    /// The group's name: that of the first operator which writes it.
    pub group: String,
    pub width: usize,
    pub kept: usize,
    pub removed: Vec<Certificate>,
}

/// Why one channel could go: who stands in for it, and at what error.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Certificate {
    /// The removed channel.
    pub channel: usize,
    /// The kept channel whose response is nearest.
    pub represented_by: usize,
    /// Fubini–Study distance of the two channels' spectra, radians.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub d_fs: Option<f64>,
    /// Angle between the two channels' response states, radians (0 to π/2).
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub d_response: Option<f64>,
    /// Root-mean-square error of the best affine substitution by the representative alone:
    /// ‖h‖·sin d_response over the calibration rows, relative to ‖h‖.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub bound: Option<f64>,
    /// The same error, measured, when *all* kept channels may stand in for it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub measured: Option<f64>,
}

/// What the repair did to one operator.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Repair {
    /// The operator's name.
    pub operator: String,
    /// `refit`, `statistics` or `none`.
    pub kind: String,
    /// Relative squared error of its output on held-out samples before and after.
    pub before: f64,
    pub after: f64,
}

/// A ratio that was asked for and not built.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NotBuilt {
    pub asked: f64,
    /// What stood in the way, in a sentence.
    pub because: String,
    /// The lowest ratio that was reached above the quality floor, if any was.
    pub reachable: Option<f64>,
}

/// A coupled group of the dense model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GroupInfo {
    pub name: String,
    pub width: usize,
    /// Every (tensor, axis) that loses the same channel together.
    pub places: Vec<String>,
    /// Whether the group is a residual stream.
    pub stream: bool,
}

/// Channels that may not be cut.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FrozenInfo {
    pub what: String,
    pub width: usize,
    pub because: String,
}
