//! `blochd trial`: a variant is loaded and run in a child first.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::confine::Confined;
use super::process::{
    Blame, Bounds, ChildError, Memory, Priority, Wish, argument, folder, homes, processor_time,
    provider_argument, run,
};
use crate::config::{Provider, Sandbox, Sizes};
use crate::hardware::Placement;
use crate::protocol::Example;
use crate::shell::engine::OfferedDevice;

/// What to try, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrialJob {
    pub model: PathBuf,
    /// ONNX Runtime's library.
    pub runtime: PathBuf,
    /// What it is to run on.
    pub provider: Provider,
    /// Every shape that will be served, beside that of the samples: on another provider than the CPU's each is
    /// run. What is made up has the first.
    pub served: Vec<Sizes>,
    /// Sizes that free axes with names have for good.
    pub fixed: Sizes,
    /// Where the provider may keep what it compiles of this very model, see [`crate::shell::engine::compiled`].
    pub cache: Option<PathBuf>,
    pub threads: usize,
    /// The CPUs that it is bound to; empty: to none.
    pub cpus: Vec<usize>,
    /// Timed runs.
    pub runs: usize,
    pub timeout: Duration,
    pub memory: Memory,
    pub sandbox: Sandbox,
    /// Where it gets a folder of its own.
    pub folders: PathBuf,
    /// Real inputs, where there are any. Those that do not suit the model are made up for.
    pub samples: Option<PathBuf>,
}

/// What a trial ran a model on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RanOn {
    /// The first of the samples that it was given.
    Samples,
    MadeUp(Example),
}

/// A shape that a provider has run for the first time, which may have compiled it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Compiled {
    /// Names and sizes of the inputs: `x[1,3,224,224]`.
    pub inputs: String,
    /// Time of that run, microseconds.
    pub us: f64,
    /// Median of warm runs after it, microseconds; `None` for the shape that the whole trial timed.
    #[serde(default)]
    pub p50_us: Option<f64>,
}

/// What came of a trial: the child's own line.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct TrialReport {
    /// Time to load, milliseconds.
    pub load_ms: f64,
    /// Median and 99th percentile of warm runs, microseconds; `None` where it is loaded and nothing was found
    /// that it runs on.
    pub p50_us: Option<f64>,
    pub p99_us: Option<f64>,
    pub ran_on: Option<RanOn>,
    /// Why it did not run, or not on the samples.
    pub why: Option<String>,
    /// Whether it answered alike, to the last bit, with its weights lent to it; where it did not, or that was
    /// not tried, `lends_not` says why.
    #[serde(default)]
    pub lends: bool,
    #[serde(default)]
    pub lends_not: Option<String>,
    /// On another provider than the CPU's: the time of the first runs of all shapes, microseconds, and of each.
    #[serde(default)]
    pub compile_us: Option<f64>,
    #[serde(default)]
    pub compiled: Vec<Compiled>,
    /// Shapes that were to be served and that the model does not run in on the CPU either, each with the
    /// reason.
    #[serde(default)]
    pub unsuited: Vec<String>,
    /// How far its answers are from the CPU's, as a share of those; `None` where they are no numbers.
    #[serde(default)]
    pub differs: Option<f64>,
    /// Which operators run where.
    #[serde(default)]
    pub placement: Option<Placement>,
    /// The device, as a plugin tells of it.
    #[serde(default)]
    pub device: Option<OfferedDevice>,
    /// Most memory that the child held, bytes, where the kernel tells.
    pub peak_memory_bytes: Option<u64>,
}

/// What a trial tells before its report.
#[derive(Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
enum Told {
    Confined(Confined),
}

/// Why a variant failed its trial.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("its trial failed: {error}")]
pub struct TrialError {
    pub error: ChildError,
    /// Whether it ran on the CPU alone.
    pub on_cpu: bool,
}

impl TrialError {
    /// Whom it speaks against. Of a provider's trial only a refusal speaks against the variant, since the CPU
    /// refused it as well; what crashes or hangs there may be sound elsewhere.
    pub fn blame(&self) -> Blame {
        match (self.error.blame(), &self.error) {
            (Blame::Work, ChildError::Failed { .. }) => Blame::Work,
            (Blame::Work | Blame::Either, _) if !self.on_cpu => Blame::Provider,
            (blame, _) => blame,
        }
    }
}

/// Tries a variant with `program` (this one, outside of tests), which tells `confined` how far it is that
/// before it looks at the model.
///
/// # Errors
/// What went wrong.
pub async fn attempt(
    program: &Path,
    job: &TrialJob,
    wish: watch::Receiver<Wish>,
    confined: &mut (dyn FnMut(Confined) + Send),
) -> Result<TrialReport, TrialError> {
    let mut arguments = vec!["trial".to_owned(), argument(&job.model)];
    arguments.extend(["--runtime".to_owned(), argument(&job.runtime)]);
    arguments.extend(["--provider".to_owned(), provider_argument(&job.provider)]);
    let sizes = |sizes: &Sizes| -> Vec<String> {
        sizes.iter().map(|(axis, size)| format!("{axis}={size}")).collect()
    };
    for served in job.served.iter().filter(|served| !served.is_empty()) {
        arguments.extend(["--served".to_owned(), sizes(served).join(",")]);
    }
    for fixed in sizes(&job.fixed) {
        arguments.extend(["--fix".to_owned(), fixed]);
    }
    if let Some(cache) = &job.cache {
        arguments.extend(["--cache".to_owned(), argument(cache)]);
    }
    arguments.extend(["--threads".to_owned(), job.threads.to_string()]);
    arguments.extend(["--runs".to_owned(), job.runs.to_string(), "--json".to_owned()]);
    arguments.push("--lend".to_owned());
    arguments.extend(["--sandbox".to_owned(), job.sandbox.to_string()]);
    if !job.cpus.is_empty() {
        let cpus: Vec<String> = job.cpus.iter().map(usize::to_string).collect();
        arguments.extend(["--cpus".to_owned(), cpus.join(",")]);
    }
    if let Some(samples) = &job.samples {
        arguments.extend(["--inputs".to_owned(), argument(samples), "--or-made-up".to_owned()]);
    }
    let folder = folder(&job.folders);
    if let Some(folder) = &folder {
        arguments.extend(["--scratch".to_owned(), argument(folder.path())]);
    }
    let bounds = Bounds {
        timeout: job.timeout,
        processor: processor_time(job.timeout, job.threads),
        memory: job.memory,
        priority: Priority::Normal,
        folder: folder.as_ref().map(|folder| folder.path().to_owned()),
        homes: homes(&job.provider),
    };
    let on_cpu = job.provider == Provider::Cpu;
    let mut report = None;
    let mut first = true;
    let mut line = |line: &str| {
        // Vendor libraries print to standard output as they please; only our own lines count, and of how it is
        // confined only the first, which comes before anything else can speak.
        match (serde_json::from_str(line), serde_json::from_str(line)) {
            (Ok(found), _) => report = Some(found),
            (_, Ok(Told::Confined(told))) if first => confined(told),
            _ => tracing::debug!(line, "a trial wrote"),
        }
        first = false;
        Ok(())
    };
    let ran = run(program, &arguments, &bounds, wish, &mut line).await;
    match (ran, report) {
        (Err(error), _) => Err(TrialError { error, on_cpu }),
        (Ok(()), Some(report)) => Ok(report),
        (Ok(()), None) => {
            let problem = "it ended well without a report".to_owned();
            Err(TrialError { error: ChildError::Output { problem }, on_cpu })
        }
    }
}
