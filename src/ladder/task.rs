//! What a ladder is made from, what is asked of it, what is told while it is made, and what comes out.

use serde::{Deserialize, Serialize};

use super::calibration::Samples;
use super::importance::{ImportanceError, Importances};
use super::manifest::{Figures, FrozenInfo, NotBuilt, Rung};
use super::opened::OpenError;
use super::plan::{Plan, PlanError};
use super::table::{LatencyTable, TableError};
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
    /// What channels are chosen by where the method is [`Method::Scores`].
    pub importances: Importances,
    pub repair: Mode,
    /// Whether whole residual blocks may be removed.
    pub depth: bool,
    /// Whether wide operators may be put in two of lower rank.
    pub low_rank: bool,
    /// Kept widths are multiples of this; `None` lets the measured latencies decide.
    pub align: Option<usize>,
    /// Further plans that are tried for each rung once the first ones are built.
    pub trials: usize,
    /// Multiply-adds that building all variants for one rung may take, about: once they are used up, the best
    /// one so far has to do. `None` for all of the trials, however long they take.
    pub work: Option<f64>,
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
    #[error(transparent)]
    Importance(#[from] ImportanceError),
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error("{0}")]
    NotKept(String),
}

/// What the making of a ladder asks of its surroundings.
pub trait Keeper {
    /// Hears what happens.
    fn told(&mut self, event: &Event);

    /// Keeps a finished rung's model and fills in the name of its file.
    ///
    /// # Errors
    /// Where it cannot be kept; the work stops.
    fn rung(&mut self, rung: &mut Rung, model: &Model) -> Result<(), String>;

    /// Keeps how far the ladder is, for [`Task::make`] to go on there.
    ///
    /// # Errors
    /// As [`Keeper::rung`].
    fn so_far(&mut self, so_far: &SoFar) -> Result<(), String>;

    /// Hears that something was timed, and whether that was `all`: the table is worth keeping.
    fn timed(&mut self, table: &LatencyTable, all: bool);
}

/// How far a ladder is: what need not be done again. It holds for one model, engine, set of samples and
/// set of options only (see [`super::resume::conditions`]).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct SoFar {
    /// The dense model's own figures, from which every rung's promise is taken.
    pub dense: Figures,
    /// Finished rungs, slowest first.
    pub finished: Vec<Finished>,
    pub not_built: Vec<NotBuilt>,
}

impl SoFar {
    /// Whether a ratio that was asked for is done with.
    pub fn settled(&self, asked: f64) -> bool {
        self.finished.iter().any(|one| one.rung.asked == asked)
            || self.not_built.iter().any(|missed| missed.asked == asked)
    }
}

/// A finished rung, and where the search for a faster one begins.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Finished {
    pub rung: Rung,
    pub step: Step,
}

/// Where a rung's search ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Step {
    pub plan: Plan,
    /// What the plan was asked to save by the latency table, microseconds.
    pub needed: f64,
    /// The ratio that the rung promises.
    pub ratio: f64,
}

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
