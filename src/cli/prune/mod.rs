//! `blochd prune`: makes the ladder of one model.

mod given;
mod keeping;
mod shown;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use blochd::ladder::calibration::{self, Samples, free_sizes};
use blochd::ladder::importance::Importances;
use blochd::ladder::manifest::{Calibration, CalibrationSource, MANIFEST_FORMAT, Source};
use blochd::ladder::resume::conditions;
use blochd::ladder::task::{Eval, Ladder, LadderError, Options, Task};
use blochd::ladder::{Manifest, report};
use blochd::limits;
use blochd::onnx::{DType, Engine, Model};
use blochd::redundancy::selection::Method;
use blochd::shell::children::confine::Needs;
use blochd::shell::engine::{self, EngineOptions, OrtEngine, Search};
use blochd::shell::probe::HostProbe;
use blochd::shell::unfinished::{self, Unfinished};
use blochd::shell::{files, models};
use blochd::surgery::repair::Mode;
use blochd::units::{Digest, is_latency_ratio};
use clap::{Args, ValueEnum};

use super::providing::ProviderArgs;
use super::sandbox::SandboxArgs;
use super::{Code, Failure, OrFail, without_runtime};
use keeping::Keeping;
use shown::{Shown, print_table};

/// Folder of the latency table in the state directory, and its file: a folder of its own, so that a confined
/// build can replace the one and nothing else.
pub const LATENCIES: &str = "latencies";
const LATENCY_TABLE: &str = "table.json";

/// Make a ladder of faster variants of a model, without training.
///
/// Writes one ONNX file a rung and `manifest.json` into the output folder. Where it was interrupted, the
/// same command goes on with the rungs that are finished there. Exit code 0 when the manifest is
/// written (it says which rungs could not be built, and why), 65 when the model or the samples are not
/// usable, 69 without ONNX Runtime, 74 when a file cannot be read or written, 76 where the execution provider
/// is not to be had.
#[derive(Debug, Args)]
pub struct Prune {
    /// The dense ONNX model.
    model: PathBuf,
    /// Folder for the rungs and the manifest; made if it is missing.
    #[arg(long, required_unless_present = "groups")]
    out: Option<PathBuf>,
    /// Unlabelled samples (.npz; arrays named as the model's inputs). Without: made-up noise, which
    /// keeps rungs close to dense.
    #[arg(long)]
    calibration: Option<PathBuf>,
    /// Whether the calibration file holds live requests that the agent kept.
    #[arg(long, hide = true, requires = "calibration")]
    calibration_is_live: bool,
    /// Samples that only judge (.npz; an array `labels` gives accuracy).
    #[arg(long)]
    eval: Option<PathBuf>,
    /// Latency ratios to dense.
    #[arg(
        long,
        value_delimiter = ',',
        default_values_t = [0.9, 0.75, 0.6, 0.5],
        value_parser = ratio,
    )]
    ratios: Vec<f64>,
    /// How channels are chosen.
    #[arg(long, value_enum, default_value_t = MethodArg::Obs)]
    method: MethodArg,
    /// Importances of channels for `--method scores`: a JSON object with one entry a group,
    /// `{"GROUP": {"importance": [NUMBER, …]}}`, a number for each channel, the lowest to go first. Groups
    /// without an entry stay whole. With `"into": [CHANNEL, …]` beside it, a channel that goes is merged
    /// into the one that is named for it: what makes them is averaged, what reads them added up.
    #[arg(long, value_name = "FILE", required_if_eq("method", "scores"))]
    scores: Option<PathBuf>,
    /// Write the groups that may be cut, with the places of their channels in the model, as JSON to this
    /// file (`-` is standard output), and make no ladder.
    #[arg(long, value_name = "FILE")]
    groups: Option<PathBuf>,
    /// How operators behind a cut are repaired.
    #[arg(long, value_enum, default_value_t = RepairArg::Refit)]
    repair: RepairArg,
    /// Never remove whole residual blocks.
    #[arg(long)]
    no_depth: bool,
    /// Never put an operator in two of lower rank.
    #[arg(long)]
    no_low_rank: bool,
    /// Keep channels in multiples of this. Without: what the execution provider's cores work in, or what
    /// the measured latencies favour.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=4096))]
    align: Option<u64>,
    /// Least agreement with dense, 0 to 1: no rung is built below it.
    #[arg(long, default_value_t = 0.5, value_parser = share)]
    floor: f64,
    /// Seed of all that chance decides.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Most calibration samples that are used.
    #[arg(long, default_value_t = limits::CALIBRATION_SAMPLES)]
    samples: usize,
    /// Size of a free axis of an input, when samples are made up: `--shape height=640`, or
    /// `--shape "x[2]=48"` for the third axis of input x where it has no name.
    #[arg(long = "shape", value_parser = super::named_size)]
    shapes: Vec<(String, usize)>,
    /// Threads of ONNX Runtime.
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Further plans that are tried for each rung: more are slower to build and lose less. Without: 6, and of
    /// large networks as many as a minute or two allow.
    #[arg(long)]
    trials: Option<usize>,
    /// Seconds for which a variant is compared with dense.
    #[arg(long, default_value_t = 1.5)]
    seconds: f64,
    #[command(flatten)]
    on: ProviderArgs,
    /// Print the manifest to standard output instead of a table.
    #[arg(long)]
    json: bool,
    /// How progress is shown on standard error: a bar on a terminal, JSON lines on standard output for
    /// programs, or nothing.
    #[arg(long, value_enum, default_value_t = ProgressArg::Auto)]
    progress: ProgressArg,
    #[command(flatten)]
    sandbox: SandboxArgs,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum MethodArg {
    Obs,
    Response,
    Spectral,
    Magnitude,
    Random,
    /// By the importances of --scores.
    Scores,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum RepairArg {
    Refit,
    Statistics,
    /// Kept channels stand in for those that go by ridge regression on dense's covariance, then as
    /// `statistics`.
    Ridge,
    None,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ProgressArg {
    Auto,
    Json,
    None,
}

fn ratio(text: &str) -> Result<f64, String> {
    let value: f64 = text.parse().map_err(|_| format!("{text:?} is not a number"))?;
    if is_latency_ratio(value) {
        Ok(value)
    } else {
        Err("a ratio lies between 0.05 and 1 (0.75 takes three quarters of dense's time)"
            .to_owned())
    }
}

fn share(text: &str) -> Result<f64, String> {
    let value: f64 = text.parse().map_err(|_| format!("{text:?} is not a number"))?;
    if (0.0..=1.0).contains(&value) {
        Ok(value)
    } else {
        Err("write a number from 0 to 1".to_owned())
    }
}

impl Prune {
    pub fn run(self) -> Result<(), Failure> {
        let importances = self.importances()?;
        let latencies = self.on.state().join(LATENCIES);
        let search = self.on.search();
        self.confine(&search, &latencies)?;
        let model = models::load(&self.model)
            .map_err(|error| (if error.is_bad_data() { Code::Data } else { Code::Io }, error))
            .map_err(|(code, error)| Failure { code, error: error.into() })?;
        let runtime = engine::init(&search).map_err(without_runtime)?;
        let options = EngineOptions {
            provider: self.on.provider.clone(),
            intra_op_threads: self.threads.max(1),
            ..EngineOptions::default()
        };
        let engine = OrtEngine::new(&runtime, options);
        engine.check().with_context(|| self.on.provider.to_string()).code(Code::Provider)?;
        let eval = self.eval(&model)?;
        let given = self.samples(&model, self.samples)?;
        let options = self.options(&engine, importances);
        if let Some(file) = &self.groups {
            return given::write_groups(file, &engine, &model, &given);
        }
        let dense = model.digest().code(Code::Data)?;
        let conditions =
            conditions(&dense, &Engine::identity(&engine), &options, &given, eval.as_ref());
        self.make_out()?;
        // What a build that was killed has left half: another one may never come to the same rung.
        [self.out(), &latencies].into_iter().for_each(files::clear_leftovers);
        let begun = unfinished::read(self.out(), &conditions);
        let before = begun.as_ref().map(|begun| begun.samples);
        let samples = self.affordable(&engine, &model, given, before)?;
        // What was fitted on other samples is no part of the same ladder.
        let begun = begun.filter(|begun| begun.samples == samples.count);
        let before = begun.as_ref().map(|begun| begun.so_far.clone());
        let unfinished = begun.unwrap_or_else(|| Unfinished::new(conditions, samples.count));
        let task = Task {
            engine: &engine,
            model: &model,
            samples: &samples,
            eval: eval.as_ref(),
            options: &options,
        };
        let shown = Shown::new(self.progress, self.json);
        let table = latencies.join(LATENCY_TABLE);
        let mut keeping = Keeping::new(shown, self.out(), unfinished, table);
        let finished = before.as_ref().map_or(0, |before| before.finished.len());
        let mut table = keeping.table();
        let ladder = task
            .make(before, &mut table, &mut keeping)
            .map_err(|error| self.failure(&model, error))?;
        keeping.shown.reused(finished, table.found());
        keeping.shown.finish();
        let manifest = self.manifest(&task, dense, ladder);
        let text = serde_json::to_string_pretty(&manifest).code(Code::Software)?;
        keeping.finish(&text).code(Code::Io)?;
        if self.json {
            println!("{text}");
        } else if self.progress != ProgressArg::Json {
            print_table(&manifest);
        }
        Ok(())
    }

    /// Keeps this process from all but the model, the samples, and the folders that it writes to. Those are
    /// made before: it could not make them itself any more.
    fn confine(&self, search: &Search, latencies: &Path) -> Result<(), Failure> {
        // Groups are asked for by hand, and go where the caller likes.
        if self.sandbox.is_off() || self.groups.is_some() {
            return Ok(());
        }
        self.make_out()?;
        // The table only saves time.
        let _ = std::fs::create_dir_all(latencies);
        let mut needs = Needs::model(&self.model);
        needs.read.extend(self.calibration.clone());
        needs.read.extend(self.eval.clone());
        needs.read.extend(self.scores.clone());
        needs.runtime(search);
        needs.provider(&self.on.provider);
        needs.write = vec![self.out().to_owned(), latencies.to_owned()];
        self.sandbox.begin(needs, self.progress == ProgressArg::Json)
    }

    /// The folder for the rungs; there is one unless only the groups are asked for.
    fn out(&self) -> &Path {
        self.out.as_deref().unwrap_or(Path::new("."))
    }

    fn make_out(&self) -> Result<(), Failure> {
        std::fs::create_dir_all(self.out())
            .with_context(|| format!("cannot make the folder {}", self.out().display()))
            .code(Code::Io)
    }

    fn manifest(&self, task: &Task, digest: Digest, ladder: Ladder) -> Manifest {
        let file = self.model.file_name();
        let file = file.map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        Manifest {
            format: MANIFEST_FORMAT,
            blochd: env!("CARGO_PKG_VERSION").to_owned(),
            source: Source { file, digest },
            engine: task.engine.identity(),
            method: task.options.method.name().to_owned(),
            seed: self.seed,
            calibration: Calibration { source: task.samples.source, samples: task.samples.count },
            dense: ladder.dense,
            rungs: ladder.rungs,
            not_built: ladder.not_built,
            groups: report::groups(&ladder.coupling),
            frozen: report::frozen(&ladder.coupling).into_iter().chain(ladder.declined).collect(),
        }
    }

    fn options(&self, engine: &OrtEngine, importances: Importances) -> Options {
        let align = self.align.map(|align| align as usize);
        Options {
            ratios: self.ratios.clone(),
            method: match self.method {
                MethodArg::Obs => Method::Obs,
                MethodArg::Response => Method::Response,
                MethodArg::Spectral => Method::Spectral,
                MethodArg::Magnitude => Method::Magnitude,
                MethodArg::Random => Method::Random,
                MethodArg::Scores => Method::Scores,
            },
            importances,
            repair: match self.repair {
                RepairArg::Refit => Mode::Refit,
                RepairArg::Statistics => Mode::Statistics,
                RepairArg::Ridge => Mode::Ridge,
                RepairArg::None => Mode::None,
            },
            depth: !self.no_depth,
            low_rank: !self.no_low_rank,
            align: align.or_else(|| engine.alignment()),
            seed: self.seed,
            floor: self.floor,
            trials: self.trials.unwrap_or(limits::PLAN_TRIALS),
            work: self.trials.is_none().then_some(limits::RUNG_WORK),
            seconds: self.seconds,
        }
    }

    /// The runtime refused the model on these samples, or a rung could not be written. Where the sizes of the
    /// samples were assumed, says which.
    fn failure(&self, model: &Model, error: LadderError) -> Failure {
        if let LadderError::NotKept(why) = error {
            return Failure { code: Code::Io, error: anyhow!(why) };
        }
        if let (LadderError::Importance(_), Some(path)) = (&error, &self.scores) {
            let error = anyhow::Error::from(error).context(path.display().to_string());
            return Failure { code: Code::Data, error };
        }
        let error = anyhow::Error::from(error);
        let specs = calibration::inputs(model).unwrap_or_default();
        let given: BTreeMap<String, usize> = self.shapes.iter().cloned().collect();
        let mut assumed = calibration::assumed_sizes(&specs, &given);
        assumed.retain(|axis, size| *size > 1 && !given.contains_key(axis));
        let mut what = self.model.display().to_string();
        if self.calibration.is_none() && !assumed.is_empty() {
            let axes: Vec<String> =
                assumed.iter().map(|(axis, size)| format!("{axis}={size}")).collect();
            what = format!(
                "{what}: made-up samples of the sizes {} do not suit the model; give --calibration \
                 or --shape AXIS=SIZE",
                axes.join(", ")
            );
        }
        Failure { code: Code::Data, error: error.context(what) }
    }

    /// Fewer samples where the box has no memory for the network's values on all of them; as many as
    /// `before`, where an interrupted build made do with so few.
    fn affordable(
        &self,
        engine: &OrtEngine,
        model: &Model,
        samples: Samples,
        before: Option<usize>,
    ) -> Result<Samples, Failure> {
        let sizes = free_sizes(model, &samples.first);
        let shapes = Engine::shapes(engine, model, &sizes)
            .map_err(|error| self.failure(model, error.into()))?;
        let request = samples.first.values().find_map(|t| t.shape.first().copied()).unwrap_or(1);
        let memory = HostProbe::new().host().memory_available() / limits::ACTIVATION_SHARE;
        let most = Samples::affordable(&shapes, request, memory);
        if let Some(before) = before.filter(|before| *before <= most && *before < samples.count) {
            return self.samples(model, before);
        }
        if most >= samples.count {
            return Ok(samples);
        }
        eprintln!(
            "blochd: memory allows {most} of the {} calibration samples ({} MiB may be used)",
            samples.count,
            memory >> 20
        );
        self.samples(model, most)
    }

    fn samples(&self, model: &Model, most: usize) -> Result<Samples, Failure> {
        let specs = calibration::inputs(model).code(Code::Data)?;
        let Some(path) = &self.calibration else {
            let sizes: BTreeMap<String, usize> = self.shapes.iter().cloned().collect();
            let count = most.min(limits::SYNTHETIC_SAMPLES);
            return calibration::synthetic(model, &specs, &sizes, count, self.seed)
                .code(Code::Data);
        };
        let source = if self.calibration_is_live {
            CalibrationSource::Live
        } else {
            CalibrationSource::File
        };
        let arrays = super::samples_of(path)?;
        calibration::from_arrays(&specs, &arrays, most, source)
            .with_context(|| path.display().to_string())
            .code(Code::Data)
    }

    fn eval(&self, model: &Model) -> Result<Option<Eval>, Failure> {
        let Some(path) = &self.eval else { return Ok(None) };
        let specs = calibration::inputs(model).code(Code::Data)?;
        let arrays = super::samples_of(path)?;
        let samples =
            calibration::from_arrays(&specs, &arrays, usize::MAX, CalibrationSource::File)
                .with_context(|| path.display().to_string())
                .code(Code::Data)?;
        let labels = arrays.get("labels").map(|labels| match labels.dtype {
            DType::I64 | DType::I32 | DType::U8 => {
                blochd::onnx::values::integers(labels.dtype, &labels.data)
                    .filter(|labels| labels.len() >= samples.count)
                    .map(|mut labels| {
                        labels.truncate(samples.count);
                        labels
                    })
            }
            _ => None,
        });
        match labels {
            Some(None) => Err(anyhow!(
                "{}: array \"labels\" must hold one integer class for each of the {} samples",
                path.display(),
                samples.count
            ))
            .code(Code::Data),
            found => Ok(Some(Eval { samples, labels: found.flatten() })),
        }
    }
}
