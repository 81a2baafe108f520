//! `blochd prune`: a ladder is built in a child, idle and pausable.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use tokio::sync::watch;

use super::confine::Confined;
use super::process::{
    Blame, Bounds, ChildError, Memory, Priority, Wish, argument, folder, homes, processor_time,
    provider_argument, run,
};
use crate::config::{Provider, Sandbox, Sizes};
use crate::ladder::manifest::CalibrationSource;

/// What to build, and how.
#[derive(Debug, Clone, PartialEq)]
pub struct BuildJob {
    pub model: PathBuf,
    /// Folder for the rungs and the manifest.
    pub out: PathBuf,
    /// ONNX Runtime's library.
    pub runtime: PathBuf,
    /// What the ladder is measured on.
    pub provider: Provider,
    /// Where latency tables are kept.
    pub state_dir: PathBuf,
    pub samples: Option<(PathBuf, CalibrationSource)>,
    /// Sizes of free axes of samples that are made up.
    pub shape: Sizes,
    pub most_samples: usize,
    pub ratios: Vec<f64>,
    pub method: String,
    pub seed: u64,
    pub threads: usize,
    /// Channels in which the execution provider's cores work; without it, the latencies that the build
    /// measures decide.
    pub align: Option<usize>,
    /// No rung is built below this agreement with dense.
    pub floor: f64,
    pub timeout: Duration,
    pub memory: Memory,
    pub sandbox: Sandbox,
    /// Where it gets a folder of its own.
    pub folders: PathBuf,
    pub nice: i32,
}

/// A line of the child.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum BuildEvent {
    /// How it is confined: its first line, and none after that.
    Confined(Confined),
    /// What was taken over from earlier builds: finished rungs, and latencies of parts of the network.
    Reused {
        rungs: u64,
        latencies: u64,
    },
    Progress {
        stage: String,
        done: u64,
        total: u64,
    },
    Rung {
        name: String,
        ratio: f64,
        quality: f64,
    },
    NotBuilt {
        asked: f64,
        because: String,
    },
}

impl BuildJob {
    fn arguments(&self) -> Vec<String> {
        let ratios: Vec<String> = self.ratios.iter().map(f64::to_string).collect();
        let mut arguments = vec!["prune".to_owned(), argument(&self.model)];
        let options = [
            ("--out", argument(&self.out)),
            ("--runtime", argument(&self.runtime)),
            ("--provider", provider_argument(&self.provider)),
            ("--state-dir", argument(&self.state_dir)),
            ("--ratios", ratios.join(",")),
            ("--method", self.method.clone()),
            ("--seed", self.seed.to_string()),
            ("--threads", self.threads.to_string()),
            ("--floor", self.floor.to_string()),
            ("--samples", self.most_samples.to_string()),
            ("--progress", "json".to_owned()),
            ("--sandbox", self.sandbox.to_string()),
        ];
        for (name, value) in options {
            arguments.extend([name.to_owned(), value]);
        }
        if let Some(align) = self.align {
            arguments.extend(["--align".to_owned(), align.to_string()]);
        }
        for (axis, size) in &self.shape {
            arguments.extend(["--shape".to_owned(), format!("{axis}={size}")]);
        }
        if let Some((path, source)) = &self.samples {
            arguments.extend(["--calibration".to_owned(), argument(path)]);
            if *source == CalibrationSource::Live {
                arguments.push("--calibration-is-live".to_owned());
            }
        }
        arguments
    }
}

/// Whom the failure of a build speaks against. What it prints is for people and bars: a pipe that broke says
/// nothing of the model.
pub fn blame(error: &ChildError) -> Blame {
    match error {
        ChildError::Output { .. } => Blame::Circumstances,
        error => error.blame(),
    }
}

/// Builds a ladder with `program` (this one, outside of tests) and tells of its progress.
///
/// # Errors
/// What went wrong. A model of which no rung could be made is none: its manifest says why.
pub async fn build(
    program: &Path,
    job: &BuildJob,
    wish: watch::Receiver<Wish>,
    told: &mut (dyn FnMut(BuildEvent) + Send),
) -> Result<(), ChildError> {
    let folder = folder(&job.folders);
    let mut arguments = job.arguments();
    if let Some(folder) = &folder {
        arguments.extend(["--scratch".to_owned(), argument(folder.path())]);
    }
    let bounds = Bounds {
        timeout: job.timeout,
        processor: processor_time(job.timeout, job.threads),
        memory: job.memory,
        priority: Priority::Idle { nice: job.nice },
        folder: folder.as_ref().map(|folder| folder.path().to_owned()),
        homes: homes(&job.provider),
    };
    let mut first = true;
    let mut line = |line: &str| {
        match serde_json::from_str(line) {
            Ok(BuildEvent::Confined(_)) if !first => {}
            Ok(event) => told(event),
            Err(_) => tracing::debug!(line, "a build wrote"),
        }
        first = false;
        Ok(())
    };
    run(program, &arguments, &bounds, wish, &mut line).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_provider_works_in_is_asked_of_the_build_and_nothing_where_it_is_not_known() {
        let job = |align| BuildJob {
            model: "m.onnx".into(),
            out: "out".into(),
            runtime: "ort".into(),
            provider: Provider::Cpu,
            state_dir: "state".into(),
            samples: None,
            shape: Sizes::new(),
            most_samples: 1,
            ratios: vec![0.5],
            method: "obs".into(),
            seed: 0,
            threads: 1,
            align,
            floor: 0.5,
            timeout: Duration::from_secs(1),
            memory: Memory::Bytes(1 << 30),
            sandbox: Sandbox::Auto,
            folders: "folders".into(),
            nice: 0,
        };
        let given = |align| {
            let arguments = job(align).arguments();
            let at = arguments.iter().position(|argument| argument == "--align")?;
            arguments.get(at + 1).cloned()
        };
        assert_eq!(given(Some(16)).as_deref(), Some("16"));
        assert_eq!(given(None), None);
    }
}
