//! What a ladder is made from, what is asked of it, what is told while it is made, and what comes out.

use super::calibration::Samples;
use super::manifest::{Figures, FrozenInfo, NotBuilt, Rung};
use super::plan::PlanError;
use super::table::TableError;
use crate::coupling::Coupling;
use crate::onnx::{Engine, ExecError, Model, OnnxError};
use crate::redundancy::selection::Method;
use crate::surgery::repair::{Mode, RepairError};

/// What is asked of a ladder.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// Latency ratios to dense, each in (0, 1).
    pub ratios: Vec<f64>,
    pub method: Method,
    pub repair: Mode,
    /// Whether whole residual blocks may be removed.
    pub depth: bool,
    /// Whether wide operators may be put in two of lower rank.
    pub low_rank: bool,
    /// Kept widths are multiples of this; `None` lets the measured latencies decide.
    pub align: Option<usize>,
    /// Further plans that are tried for each rung once the first ones are built.
    pub trials: usize,
    pub seed: u64,
    /// Least quality of a rung; below it none is built.
    pub floor: f64,
    /// Seconds for which a whole variant is compared with dense.
    pub seconds: f64,
}

/// Labelled samples that nothing is fitted on.
#[derive(Debug, Clone)]
pub struct Eval {
    pub samples: Samples,
    /// One class a sample, if known.
    pub labels: Option<Vec<i64>>,
}

/// What happens while a ladder is made.
#[derive(Debug, Clone, PartialEq)]
pub enum Event<'a> {
    /// `done` of `total` steps of a stage.
    Progress { stage: &'a str, done: usize, total: usize },
    /// A rung is finished.
    Rung(&'a Rung),
    /// A ratio is given up.
    NotBuilt(&'a NotBuilt),
}

/// Why no ladder could be made.
#[derive(Debug, thiserror::Error)]
pub enum LadderError {
    #[error("the runtime failed")]
    Exec(#[from] ExecError),
    #[error(transparent)]
    Onnx(#[from] OnnxError),
    #[error(transparent)]
    Table(#[from] TableError),
    #[error(transparent)]
    Plan(#[from] PlanError),
    #[error(transparent)]
    Repair(#[from] RepairError),
    #[error("{0}")]
    Sink(String),
}

/// Takes a finished rung and its model; an error stops the work.
pub type Sink<'a> = dyn FnMut(&mut Rung, &Model) -> Result<(), String> + 'a;

/// A finished ladder, without what only the shell knows (files, versions).
#[derive(Debug, Clone)]
pub struct Ladder {
    pub dense: Figures,
    pub rungs: Vec<Rung>,
    pub not_built: Vec<NotBuilt>,
    pub coupling: Coupling,
    /// Groups that could be cut by their coupling and are not, because a trial of it failed.
    pub declined: Vec<FrozenInfo>,
}

/// The inputs of `Task::make`.
pub struct Task<'a> {
    pub engine: &'a dyn Engine,
    pub model: &'a Model,
    pub samples: &'a Samples,
    pub eval: Option<&'a Eval>,
    pub options: &'a Options,
}
