//! `blochd prune`: makes the ladder of one model.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use blochd::ladder::calibration::{self, Samples, free_sizes};
use blochd::ladder::manifest::{Calibration, CalibrationSource, MANIFEST_FORMAT, Rung, Source};
use blochd::ladder::table::LatencyTable;
use blochd::ladder::task::{Eval, Event, LadderError, Options, Task};
use blochd::ladder::{Manifest, manifest, report};
use blochd::limits;
use blochd::onnx::{DType, Engine, Model};
use blochd::redundancy::selection::Method;
use blochd::shell::engine::{self, EngineOptions, OrtEngine, Search};
use blochd::shell::probe::HostProbe;
use blochd::shell::{files, models, places};
use blochd::surgery::repair::Mode;
use blochd::units::is_latency_ratio;
use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use super::{Code, Failure, OrFail};

/// Make a ladder of faster variants of a model, without training.
///
/// Writes one ONNX file a rung and `manifest.json` into the output folder. Exit code 0 when it is
/// written (it says which rungs could not be built, and why), 65 when the model or the samples are not
/// usable, 69 without ONNX Runtime, 74 when a file cannot be read or written.
#[derive(Debug, Args)]
pub struct Prune {
    /// The dense ONNX model.
    model: PathBuf,
    /// Folder for the rungs and the manifest; made if it is missing.
    #[arg(long)]
    out: PathBuf,
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
    /// How operators behind a cut are repaired.
    #[arg(long, value_enum, default_value_t = RepairArg::Refit)]
    repair: RepairArg,
    /// Never remove whole residual blocks.
    #[arg(long)]
    no_depth: bool,
    /// Never put an operator in two of lower rank.
    #[arg(long)]
    no_low_rank: bool,
    /// Keep channels in multiples of this. Without: what the measured latencies favour.
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
    /// Further plans that are tried for each rung: more are slower to build and lose less.
    #[arg(long, default_value_t = limits::PLAN_TRIALS)]
    trials: usize,
    /// Seconds for which a variant is compared with dense.
    #[arg(long, default_value_t = 1.5)]
    seconds: f64,
    /// ONNX Runtime library, instead of the one that is found.
    #[arg(long)]
    runtime: Option<PathBuf>,
    /// Where runtimes and latency tables are kept.
    #[arg(long)]
    state_dir: Option<PathBuf>,
    /// Print the manifest to standard output instead of a table.
    #[arg(long)]
    json: bool,
    /// How progress is shown on standard error: a bar on a terminal, JSON lines on standard output for
    /// programs, or nothing.
    #[arg(long, value_enum, default_value_t = ProgressArg::Auto)]
    progress: ProgressArg,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum MethodArg {
    Obs,
    Response,
    Spectral,
    Magnitude,
    Random,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum RepairArg {
    Refit,
    Statistics,
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
        let state = self.state_dir.clone().unwrap_or_else(places::state_dir);
        let model = models::load(&self.model)
            .map_err(|error| (if error.is_bad_data() { Code::Data } else { Code::Io }, error))
            .map_err(|(code, error)| Failure { code, error: error.into() })?;
        let search = Search::new(self.runtime.clone(), &state);
        let runtime = engine::init(&search).code(Code::Unavailable)?;
        let options =
            EngineOptions { intra_op_threads: self.threads.max(1), ..EngineOptions::default() };
        let engine = OrtEngine::new(&runtime, options);
        let samples = self.affordable(&engine, &model, self.samples(&model, self.samples)?)?;
        let eval = self.eval(&model)?;
        std::fs::create_dir_all(&self.out)
            .with_context(|| format!("cannot make the folder {}", self.out.display()))
            .code(Code::Io)?;
        let options = self.options();
        let task = Task {
            engine: &engine,
            model: &model,
            samples: &samples,
            eval: eval.as_ref(),
            options: &options,
        };
        let table_path = state.join("latency.json");
        let mut table = read_table(&table_path);
        let mut shown = Shown::new(self.progress, self.json);
        let ladder = task
            .make(&mut table, &mut |event| shown.event(&event), &mut |rung, model| {
                save_rung(&self.out, rung, model)
            })
            .map_err(|error| self.failure(&model, error))?;
        shown.finish();
        // The table only saves time: a state directory that cannot be written is no failure.
        if let Err(error) = write_table(&table_path, &table) {
            eprintln!("blochd: latencies are not kept for the next time: {error:#}");
        }
        let manifest = Manifest {
            format: MANIFEST_FORMAT,
            blochd: env!("CARGO_PKG_VERSION").to_owned(),
            source: Source {
                file: self
                    .model
                    .file_name()
                    .map(|name| name.to_string_lossy().into_owned())
                    .unwrap_or_default(),
                digest: model.digest().code(Code::Data)?,
            },
            engine: Engine::identity(&engine),
            method: options.method.name().to_owned(),
            seed: self.seed,
            calibration: Calibration { source: samples.source, samples: samples.count },
            dense: ladder.dense,
            rungs: ladder.rungs,
            not_built: ladder.not_built,
            groups: report::groups(&ladder.coupling),
            frozen: report::frozen(&ladder.coupling).into_iter().chain(ladder.declined).collect(),
        };
        let text = serde_json::to_string_pretty(&manifest).code(Code::Software)?;
        let path = self.out.join(manifest::MANIFEST_FILE);
        files::replace(&path, &[text.clone().into()])
            .with_context(|| format!("cannot write {}", path.display()))
            .code(Code::Io)?;
        if self.json {
            println!("{text}");
        } else if self.progress != ProgressArg::Json {
            print_table(&manifest);
        }
        Ok(())
    }

    fn options(&self) -> Options {
        Options {
            ratios: self.ratios.clone(),
            method: match self.method {
                MethodArg::Obs => Method::Obs,
                MethodArg::Response => Method::Response,
                MethodArg::Spectral => Method::Spectral,
                MethodArg::Magnitude => Method::Magnitude,
                MethodArg::Random => Method::Random,
            },
            repair: match self.repair {
                RepairArg::Refit => Mode::Refit,
                RepairArg::Statistics => Mode::Statistics,
                RepairArg::None => Mode::None,
            },
            depth: !self.no_depth,
            low_rank: !self.no_low_rank,
            align: self.align.map(|align| align as usize),
            seed: self.seed,
            floor: self.floor,
            trials: self.trials,
            seconds: self.seconds,
        }
    }

    /// The runtime refused the model on these samples, or a rung could not be written. Where the sizes of the
    /// samples were assumed, says which.
    fn failure(&self, model: &Model, error: LadderError) -> Failure {
        if let LadderError::Sink(why) = error {
            return Failure { code: Code::Io, error: anyhow!(why) };
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

    /// Fewer samples where the box has no memory for the network's values on all of them.
    fn affordable(
        &self,
        engine: &OrtEngine,
        model: &Model,
        samples: Samples,
    ) -> Result<Samples, Failure> {
        let sizes = free_sizes(model, &samples.first);
        let shapes = Engine::shapes(engine, model, &sizes)
            .map_err(|error| self.failure(model, error.into()))?;
        let request = samples.first.values().find_map(|t| t.shape.first().copied()).unwrap_or(1);
        let memory = HostProbe::new().host().memory_available() / limits::ACTIVATION_SHARE;
        let most = Samples::affordable(&shapes, request, memory);
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

fn save_rung(out: &Path, rung: &mut Rung, model: &Model) -> Result<(), String> {
    rung.file = format!("{}.onnx", rung.name);
    models::save(model, &out.join(&rung.file)).map_err(|error| error.to_string())
}

/// How many of the outputs that may not be cut the table names.
const FROZEN_SHOWN: usize = 8;

/// A table of another engine or format is as good as none.
fn read_table(path: &Path) -> LatencyTable {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    serde_json::from_str(&text).unwrap_or_default()
}

fn write_table(path: &Path, table: &LatencyTable) -> anyhow::Result<()> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    files::replace(path, &[serde_json::to_vec(table)?.into()])?;
    Ok(())
}

/// Shows what happens while a ladder is made.
struct Shown {
    bar: Option<ProgressBar>,
    json: bool,
}

impl Shown {
    fn new(progress: ProgressArg, quiet: bool) -> Self {
        let bar = (progress == ProgressArg::Auto && !quiet && std::io::stderr().is_terminal())
            .then(|| {
                let style = ProgressStyle::with_template("{msg:24} {bar:32} {pos}/{len} {elapsed}");
                let bar = ProgressBar::new(1);
                bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
                bar
            });
        Self { bar, json: progress == ProgressArg::Json }
    }

    fn event(&mut self, event: &Event) {
        if self.json {
            let line = match event {
                Event::Progress { stage, done, total } => {
                    json!({"event": "progress", "stage": stage, "done": done, "total": total})
                }
                Event::Rung(rung) => json!({
                    "event": "rung", "name": rung.name, "asked": rung.asked, "file": rung.file,
                    "ratio": rung.figures.ratio, "quality": rung.figures.quality,
                }),
                Event::NotBuilt(missed) => json!({
                    "event": "not_built", "asked": missed.asked, "because": missed.because,
                    "reachable": missed.reachable,
                }),
            };
            println!("{line}");
            // The reader on the other side of the pipe wants to know now. A closed pipe is its business.
            let _ = std::io::stdout().flush();
        }
        if let (Some(bar), Event::Progress { stage, done, total }) = (&self.bar, event) {
            bar.set_message((*stage).to_owned());
            bar.set_length(*total as u64);
            bar.set_position(*done as u64);
        }
    }

    fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn print_table(manifest: &Manifest) {
    let percent = |value: f64| format!("{:.1} %", 100.0 * value);
    println!(
        "{:<8} {:>6} {:>10} {:>10} {:>8} {:>8} {:>9} {:>9}  cut",
        "rung", "ratio", "p50", "p99", "MACs", "params", "agreement", "accuracy"
    );
    let row = |name: &str, figures: &manifest::Figures, cut: String| {
        let share = |part: u64, whole: u64| format!("{:.2}", part as f64 / whole.max(1) as f64);
        println!(
            "{:<8} {:>6.3} {:>7.0} us {:>7.0} us {:>8} {:>8} {:>9} {:>9}  {cut}",
            name,
            figures.ratio,
            figures.p50_us,
            figures.p99_us,
            share(figures.macs, manifest.dense.macs),
            share(figures.params, manifest.dense.params),
            percent(figures.quality),
            figures.accuracy.map(percent).unwrap_or_else(|| "-".to_owned()),
        );
    };
    row("dense", &manifest.dense, String::new());
    for rung in &manifest.rungs {
        let removed: usize = rung.cuts.iter().map(|cut| cut.width - cut.kept).sum();
        let mut cut = format!(
            "{removed} channels of {} groups, {} blocks",
            rung.cuts.len(),
            rung.bypassed.len()
        );
        if !rung.in_two.is_empty() {
            cut.push_str(&format!(", {} operators of low rank", rung.in_two.len()));
        }
        if !rung.substituted.is_empty() {
            cut.push_str(&format!(", {} layers share weights", rung.substituted.len()));
        }
        row(&rung.name, &rung.figures, cut);
    }
    for missed in &manifest.not_built {
        let reachable = missed
            .reachable
            .map(|ratio| format!("; {ratio:.3} can be reached"))
            .unwrap_or_default();
        println!("r{:<7} not built: {}{reachable}", missed.asked, missed.because);
    }
    if manifest.calibration.source == CalibrationSource::Synthetic {
        println!(
            "No samples were given: these rungs are fitted on made-up noise. Give --calibration \
             for rungs that hold on real data."
        );
    }
    for frozen in manifest.frozen.iter().take(FROZEN_SHOWN) {
        println!("may not be cut: {} ({} channels): {}", frozen.what, frozen.width, frozen.because);
    }
    if manifest.frozen.len() > FROZEN_SHOWN {
        println!("… and {} more; the manifest names them.", manifest.frozen.len() - FROZEN_SHOWN);
    }
}
