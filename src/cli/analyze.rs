//! `blochd analyze`: spectra and redundancy of one model.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use blochd::ladder::calibration::{self, Samples, free_sizes};
use blochd::ladder::manifest::CalibrationSource;
use blochd::onnx::{Engine, Model, Shapes};
use blochd::redundancy::{
    Analysis, AnalyzeError, Beside, Calibrated, LayerReport, Metric, Options, Progress, analyze,
    report,
};
use blochd::shell::engine::{self, EngineOptions, OrtEngine};
use blochd::shell::spectra_cache::SpectraCache;
use blochd::shell::{files, models};
use blochd::spectra::{Augment, NoStore, Store};
use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};

use super::providing::ProviderArgs;
use super::{Code, Failure, OrFail, without_runtime};

/// Show the spectrum and the redundancy of every layer of a model.
///
/// Spectra need the file alone. With --calibration, channels are compared by what they say on real samples,
/// which is what they can be replaced by. Exit code 65 when the model or the samples are not usable, 69 when
/// samples are given and ONNX Runtime is missing, 74 where a file cannot be read or written, 76 where the
/// execution provider is not to be had.
#[derive(Debug, Args)]
pub struct Analyze {
    /// The ONNX model.
    model: PathBuf,
    /// Samples (.npz; arrays named as the model's inputs): adds response states, certificates, and pairs of
    /// layers compared on data.
    #[arg(long)]
    calibration: Option<PathBuf>,
    /// Most samples that are used.
    #[arg(long, default_value_t = blochd::limits::CALIBRATION_SAMPLES)]
    samples: usize,
    /// Whether the bias takes part: [[W, b], [0, 1]] or W alone.
    #[arg(long, value_enum, default_value_t = AugmentArg::Affine)]
    augment: AugmentArg,
    /// Distance up to which one channel can stand for another, radians: the best substitute then errs by at
    /// most its sine.
    #[arg(long, default_value_t = 0.1, value_parser = angle)]
    threshold: f64,
    /// Write the whole report as JSON to this file; `-` is standard output, in place of the table.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Write a page with plots and the graph to this file; it needs nothing but a browser.
    #[arg(long)]
    html: Option<PathBuf>,
    /// Threads of ONNX Runtime.
    #[arg(long, default_value_t = 1)]
    threads: usize,
    #[command(flatten)]
    on: ProviderArgs,
    /// An earlier version of the model: where its spectra are kept, layers whose weights have hardly changed go
    /// without new ones [default: the version before, where the model lies in a directory of versions].
    #[arg(long, conflicts_with = "no_cache")]
    since: Option<PathBuf>,
    /// Compute everything afresh and keep nothing.
    #[arg(long)]
    no_cache: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum AugmentArg {
    Affine,
    None,
}

fn angle(text: &str) -> Result<f64, String> {
    let value: f64 = text.parse().map_err(|_| format!("{text:?} is not a number"))?;
    if (0.0..=std::f64::consts::FRAC_PI_2).contains(&value) {
        Ok(value)
    } else {
        Err("an angle between two channels lies between 0 and 1.571 (a right angle)".to_owned())
    }
}

impl Analyze {
    pub fn run(self) -> Result<(), Failure> {
        let model = models::load(&self.model)
            .map_err(|error| (if error.is_bad_data() { Code::Data } else { Code::Io }, error))
            .map_err(|(code, error)| Failure { code, error: error.into() })?;
        let state = self.on.state();
        let samples = self.samples(&model)?;
        let engine = self.engine()?;
        let calibrated = samples.as_ref().zip(engine.as_ref()).map(|(samples, engine)| {
            Calibrated { engine, source: "file", samples: samples.count, batches: &samples.batches }
        });
        let shapes =
            engine.as_ref().and_then(|engine| self.shapes(engine, &model, samples.as_ref()));
        let mut cache = self.cache(&state);
        let mut nothing = NoStore;
        let store: &mut dyn Store = match &mut cache {
            Some(cache) => cache,
            None => &mut nothing,
        };
        let augment = match self.augment {
            AugmentArg::Affine => Augment::Affine,
            AugmentArg::None => Augment::None,
        };
        let options = Options { augment, threshold: self.threshold };
        let earlier = self.earlier()?;
        let beside = Beside {
            shapes: shapes.as_ref(),
            calibrated: calibrated.as_ref(),
            earlier: earlier.as_ref(),
        };
        let bar = bar();
        let mut show = |progress: Progress| draw(bar.as_ref(), &progress);
        let analysis = analyze(&model, &options, store, &beside, &mut show)
            .map_err(|error| self.failure(error))?;
        bar.iter().for_each(ProgressBar::finish_and_clear);
        self.write(&analysis, cache.as_ref())
    }

    /// The earlier version that is named, or the one before this in a directory of versions.
    fn earlier(&self) -> Result<Option<Model>, Failure> {
        let found = self.since.clone().or_else(|| version_before(&self.model));
        let Some(path) = found.filter(|_| !self.no_cache) else { return Ok(None) };
        match models::load(&path) {
            Ok(model) => Ok(Some(model)),
            Err(error) if self.since.is_some() => {
                let code = if error.is_bad_data() { Code::Data } else { Code::Io };
                Err(Failure { code, error: error.into() })
            }
            Err(error) => {
                eprintln!("blochd: the version before lends nothing: {error}");
                Ok(None)
            }
        }
    }

    fn samples(&self, model: &Model) -> Result<Option<Samples>, Failure> {
        let Some(path) = &self.calibration else { return Ok(None) };
        let specs = calibration::inputs(model).code(Code::Data)?;
        let arrays = super::samples_of(path)?;
        calibration::from_arrays(&specs, &arrays, self.samples, CalibrationSource::File)
            .with_context(|| path.display().to_string())
            .code(Code::Data)
            .map(Some)
    }

    /// With samples a runtime must be there. Without, it only serves to say what is frozen, and its absence is
    /// no failure.
    fn engine(&self) -> Result<Option<OrtEngine>, Failure> {
        let options = EngineOptions {
            provider: self.on.provider.clone(),
            intra_op_threads: self.threads.max(1),
            ..EngineOptions::default()
        };
        let asked = self.calibration.is_some() || self.on.runtime.is_some();
        match engine::init(&self.on.search()) {
            Ok(runtime) => {
                let engine = OrtEngine::new(&runtime, options);
                let checked = engine.check().with_context(|| self.on.provider.to_string());
                checked.code(Code::Provider)?;
                Ok(Some(engine))
            }
            Err(error) if asked => Err(without_runtime(error)),
            Err(error) => {
                tracing::debug!("what is frozen is not known: {error}");
                Ok(None)
            }
        }
    }

    /// Sizes of all values for one request; free axes that no sample tells are assumed, or left free where
    /// the model does not take what is assumed.
    fn shapes(
        &self,
        engine: &OrtEngine,
        model: &Model,
        samples: Option<&Samples>,
    ) -> Option<Shapes> {
        let sizes = match samples {
            Some(samples) => free_sizes(model, &samples.first),
            None => {
                let specs = calibration::inputs(model).unwrap_or_default();
                calibration::assumed_sizes(&specs, &BTreeMap::new())
            }
        };
        let shapes = engine.shapes(model, &sizes);
        match shapes.or_else(|_| engine.shapes(model, &BTreeMap::new())) {
            Ok(shapes) => Some(shapes),
            Err(error) => {
                eprintln!("blochd: what is frozen is not known: {error}");
                None
            }
        }
    }

    fn cache(&self, state: &Path) -> Option<SpectraCache> {
        if self.no_cache {
            return None;
        }
        SpectraCache::open(state)
            .inspect_err(|error| {
                let dir = state.display();
                eprintln!("blochd: spectra are not kept for the next time: {dir}: {error}");
            })
            .ok()
    }

    fn failure(&self, error: AnalyzeError) -> Failure {
        let error = anyhow!(error).context(self.model.display().to_string());
        Failure { code: Code::Data, error }
    }

    fn write(&self, analysis: &Analysis, cache: Option<&SpectraCache>) -> Result<(), Failure> {
        let name = self.model.file_name().unwrap_or_default().to_string_lossy();
        if let Some(path) = &self.html {
            let page = report::html(&name, analysis);
            files::replace(path, &[page.into()])
                .with_context(|| format!("cannot write {}", path.display()))
                .code(Code::Io)?;
        }
        let to_stdout = self.json.as_deref() == Some(Path::new("-"));
        if let Some(path) = &self.json {
            let text = serde_json::to_string_pretty(analysis).code(Code::Software)?;
            if to_stdout {
                println!("{text}");
            } else {
                files::replace(path, &[text.into()])
                    .with_context(|| format!("cannot write {}", path.display()))
                    .code(Code::Io)?;
            }
        }
        if !to_stdout {
            table(analysis);
        }
        if let Some(stats) = cache.map(SpectraCache::stats) {
            if stats.corrupted > 0 {
                eprintln!("blochd: {} damaged cache entries were replaced", stats.corrupted);
            }
            if let Some(reason) = &stats.not_kept {
                eprintln!("blochd: spectra are not kept for the next time: {reason}");
            }
        }
        Ok(())
    }
}

/// The model of the highest version below that of `model`, where its folder is named by a version.
fn version_before(model: &Path) -> Option<PathBuf> {
    let model = model.canonicalize().ok()?;
    let (file, folder) = (model.file_name()?, model.parent()?);
    let number = |path: &Path| path.file_name()?.to_str()?.parse::<u64>().ok();
    let own = number(folder)?;
    let folders = folder.parent()?.read_dir().ok()?.filter_map(|entry| Some(entry.ok()?.path()));
    let before = folders.filter(|path| number(path).is_some_and(|number| number < own));
    let with_model = before.filter(|path| path.join(file).is_file());
    with_model.max_by_key(|path| number(path)).map(|path| path.join(file))
}

fn bar() -> Option<ProgressBar> {
    std::io::stderr().is_terminal().then(|| {
        let style = ProgressStyle::with_template("{prefix:12} {bar:32} {pos}/{len} {msg}");
        let bar = ProgressBar::new(1);
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar
    })
}

fn draw(bar: Option<&ProgressBar>, progress: &Progress) {
    if let Some(bar) = bar {
        bar.set_prefix(progress.stage);
        bar.set_length(progress.total as u64);
        bar.set_position(progress.done as u64);
        bar.set_message(progress.at.to_owned());
    }
}

fn table(analysis: &Analysis) {
    println!(
        "{:<32} {:<20} {:<14} {:>8} {:>13} {:>5} {:>14} {:>10}  same or near",
        "layer", "operator", "weight", "σ₁", "eff. rank", "99 %", "redundant", "directions"
    );
    for (index, layer) in analysis.layers.iter().enumerate() {
        let (ranks, note) = match &layer.problem {
            None => {
                let full = layer.matrix.0.min(layer.matrix.1);
                (format!("{:.1} / {full}", layer.effective_rank), near(analysis, index))
            }
            Some(problem) => ("-".to_owned(), problem.clone()),
        };
        println!(
            "{:<32} {:<20} {:<14} {:>8.3} {:>13} {:>5} {:>14} {:>10}  {note}{}",
            tail(&layer.name, 32),
            tail(&layer.op, 20),
            dims(&layer.weight),
            layer.sigma1,
            ranks,
            layer.energy_rank,
            redundancy(layer),
            directions(layer),
            match (layer.reused, layer.lent) {
                (true, _) => "  (kept)",
                (_, true) => "  (hardly changed)",
                (false, false) => "",
            },
        );
    }
    footer(analysis);
}

fn footer(analysis: &Analysis) {
    println!(
        "\n{} layers: {} spectra computed, {} reused.",
        analysis.layers.len(),
        analysis.computed,
        analysis.reused
    );
    if analysis.lent > 0 {
        let drifts = analysis.layers.iter().filter(|layer| layer.lent).map(|layer| layer.drift);
        println!(
            "{} spectra are those of an earlier version: the states are at most {:.4} away.",
            analysis.lent,
            drifts.fold(0.0, f64::max)
        );
    }
    match &analysis.calibration {
        Some(info) => println!(
            "Redundant: share of channels that another one replaces with an error of at most \
             {:.1} % ({} samples).\nDirections: how many principal directions hold 99 % of what \
             the channels say together.",
            100.0 * analysis.threshold.sin(),
            info.samples
        ),
        None => println!(
            "Redundant (by spectra): share of channels with a spectrum like another's. That says \
             little about replacing them: give --calibration for what it takes."
        ),
    }
    let saved: u64 = analysis.identical.iter().map(|same| same.saves_bytes).sum();
    if !analysis.identical.is_empty() {
        println!(
            "{} sets of layers have equal weights; sharing them saves {saved} bytes.",
            analysis.identical.len()
        );
    }
    for node in &analysis.passed_over {
        println!("not analysed: {} ({}): {}", node.name, node.op, node.because);
    }
    for layer in analysis.frozen.iter().flatten() {
        println!("may not be cut: {} ({} channels): {}", layer.name, layer.channels, layer.because);
    }
    if analysis.frozen.is_none() {
        println!("What may not be cut is not known without ONNX Runtime (blochd runtime fetch).");
    }
}

fn redundancy(layer: &LayerReport) -> String {
    let Some(graph) = &layer.graph else { return "-".to_owned() };
    let share = format!("{:.0} %", 100.0 * graph.redundancy);
    match graph.by {
        Metric::Response => share,
        Metric::Spectral => format!("{share} (spectra)"),
    }
}

fn directions(layer: &LayerReport) -> String {
    let found = layer.graph.as_ref().and_then(|graph| graph.directions);
    found.map_or_else(|| "-".to_owned(), |found| format!("{found} / {}", layer.channels))
}

/// Layers with the same weights, or the nearest one on data (by spectrum where there is none).
fn near(analysis: &Analysis, index: usize) -> String {
    let name = |other: usize| tail(&analysis.layers[other].name, 24);
    if let Some(same) = analysis.identical.iter().find(|same| same.layers.contains(&index)) {
        let others = same.layers.iter().filter(|other| **other != index);
        return format!("= {}", others.map(|other| name(*other)).collect::<Vec<_>>().join(", "));
    }
    let pairs = analysis.pairs.iter().filter(|pair| pair.a == index || pair.b == index);
    let angle = |pair: &&blochd::redundancy::LayerPair| pair.d_data.unwrap_or(pair.d_fs);
    let nearest = pairs.min_by(|a, b| angle(a).total_cmp(&angle(b)));
    match nearest {
        Some(pair) if angle(&pair) <= analysis.threshold => {
            let what = if pair.d_data.is_some() { "does" } else { "spectrum" };
            format!("{what} ~ {} ({:.3})", name(pair.a + pair.b - index), angle(&pair))
        }
        _ => String::new(),
    }
}

/// The end of a name, which tells more than its start.
fn tail(name: &str, width: usize) -> String {
    let length = name.chars().count();
    if length <= width {
        return name.to_owned();
    }
    let end: String = name.chars().skip(length - width + 1).collect();
    format!("…{end}")
}

fn dims(dims: &[usize]) -> String {
    dims.iter().map(usize::to_string).collect::<Vec<_>>().join("×")
}
