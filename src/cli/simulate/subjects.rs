//! What is simulated: traces, ladders and policies from files.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, anyhow};
use blochd::config::{Config, Flag, Layers, ModelConfig, Text};
use blochd::governor::simulate::{Noise, Spread, Subject, arrivals, slowdown};
use blochd::governor::trace::{Stretch, Trace};
use blochd::governor::{self, ModelView, Observed, VariantView};
use blochd::ladder::Manifest;
use blochd::ladder::manifest::{CalibrationSource, Figures, MANIFEST_FILE, MANIFEST_FORMAT};
use blochd::limits;
use blochd::shell::{files, recorder};
use blochd::units::Percentile;

use super::super::configured::policy;
use super::super::{Code, Failure, OrFail};

/// What a model is called where the trace names none.
const ONLY: &str = "model";

/// `[MODEL=]PATH`.
pub struct Named<'a> {
    model: Option<&'a str>,
    path: &'a Path,
}

impl<'a> Named<'a> {
    pub fn all(texts: &'a [String]) -> Vec<Self> {
        let named = |text: &'a String| match text.split_once('=') {
            // A path may hold the sign; a model's name holds no slash.
            Some((model, path)) if !model.contains('/') => {
                Self { model: Some(model), path: Path::new(path) }
            }
            _ => Self { model: None, path: Path::new(text) },
        };
        texts.iter().map(named).collect()
    }

    /// What is meant for a model: what is given for it, else what is given for all.
    fn find<'n>(all: &'n [Self], model: &str) -> Option<&'n Self> {
        let own = all.iter().find(|named| named.model == Some(model));
        own.or_else(|| all.iter().find(|named| named.model.is_none()))
    }
}

/// All that the command was given.
pub struct Setup<'a> {
    pub trace: &'a Trace,
    pub ladders: Vec<Named<'a>>,
    pub policies: Vec<Named<'a>>,
    pub config: Option<&'a Path>,
    /// Settings of each model.
    pub flags: Vec<Flag>,
    pub spread: Spread,
    pub noise: Option<Noise>,
    pub seed: u64,
}

/// One model of the trace.
pub struct Model {
    pub name: String,
    manifest: Manifest,
    config: ModelConfig,
    stretches: Vec<Stretch>,
}

/// The trace in a file, or in those that the agent recorded in a directory.
///
/// # Errors
/// Where it cannot be read, or says something else than a trace.
pub fn trace(path: &Path) -> Result<Trace, Failure> {
    let parts: Vec<PathBuf> = if path.is_dir() {
        recorder::files(path).with_context(|| cannot_read(path)).code(Code::Io)?
    } else {
        vec![path.to_owned()]
    };
    if parts.is_empty() {
        let error = anyhow!("{}: there is no trace in this directory", path.display());
        return Err(Failure { code: Code::Data, error });
    }
    let mut whole = Trace::default();
    for part in parts {
        let text = read(&part, limits::TRACE_READ_BYTES)?;
        let read = Trace::parse(&text).and_then(|trace| whole.append(trace));
        read.with_context(|| part.display().to_string()).code(Code::Data)?;
    }
    Ok(whole)
}

fn cannot_read(path: &Path) -> String {
    format!("cannot read {}", path.display())
}

fn read(path: &Path, most: usize) -> Result<String, Failure> {
    files::read_text(path, most).with_context(|| cannot_read(path)).code(Code::Io)
}

fn manifest(path: &Path) -> Result<Manifest, Failure> {
    let path = if path.is_dir() { path.join(MANIFEST_FILE) } else { path.to_owned() };
    let text = read(&path, limits::TRACE_READ_BYTES)?;
    let manifest: Manifest =
        serde_json::from_str(&text).with_context(|| path.display().to_string()).code(Code::Data)?;
    let wrong = |what: String| {
        let error = anyhow!("{}: {what}", path.display());
        Err(Failure { code: Code::Data, error })
    };
    if manifest.format > MANIFEST_FORMAT {
        let format = manifest.format;
        return wrong(format!(
            "its format {format} is newer than this blochd, which reads {MANIFEST_FORMAT}"
        ));
    }
    let figures = manifest.rungs.iter().map(|rung| &rung.figures);
    let all = std::iter::once(&manifest.dense).chain(figures);
    let timed = |figures: &Figures| {
        let real = |us: f64| us > 0.0 && us < 1e9;
        real(figures.p50_us) && real(figures.p99_us) && figures.ratio > 0.0
    };
    if !all.clone().all(timed) {
        return wrong("not all of its latencies are numbers above 0".to_owned());
    }
    Ok(manifest)
}

impl Setup<'_> {
    /// The models of the trace, each with its ladder and its settings.
    ///
    /// # Errors
    /// What cannot be read, or does not hold.
    pub fn models(&self) -> Result<Vec<Model>, Failure> {
        self.trace.models.keys().map(|name| self.model(name)).collect()
    }

    fn model(&self, in_trace: &str) -> Result<Model, Failure> {
        let name = if in_trace.is_empty() { ONLY } else { in_trace };
        let ladder = Named::find(&self.ladders, name);
        let ladder = ladder
            .ok_or_else(|| anyhow!("the trace names the model {name}: give --ladder {name}=PATH"))
            .code(Code::Config)?;
        Ok(Model {
            name: name.to_owned(),
            manifest: manifest(ladder.path)?,
            config: self.settings(name)?,
            stretches: self.trace.stretches(in_trace),
        })
    }

    /// Built-in defaults < the configuration's < the policy's < the configuration's of this model < flags.
    fn settings(&self, name: &str) -> Result<ModelConfig, Failure> {
        let of_model =
            |flag: &Flag| Flag { path: format!("models.{name}.{}", flag.path), ..flag.clone() };
        let flags: Vec<Flag> = self.flags.iter().map(of_model).collect();
        let text = match self.config {
            Some(path) => {
                Some((path.display().to_string(), read(path, limits::CONFIG_FILE_BYTES)?))
            }
            None => None,
        };
        let files: Vec<Text> = text.iter().map(|(file, text)| Text { file, text }).collect();
        let layers = Layers {
            base: Config::default(),
            files: &files,
            fleet: None,
            environment: &BTreeMap::new(),
            flags: &flags,
        };
        let config = layers.load().code(Code::Config)?.config;
        let policy = match Named::find(&self.policies, name) {
            Some(named) => Some(policy(named.path)?),
            None => None,
        };
        config.model(name, policy.as_ref()).code(Code::Config)
    }
}

impl Model {
    /// The model as the simulator wants it.
    pub fn subject<'a>(&'a self, setup: &Setup) -> Subject<'a> {
        let (config, manifest) = (&self.config, &self.manifest);
        let percentile = config.budget.map_or(Percentile::P99, |budget| budget.percentile);
        let us = |us: f64| Duration::try_from_secs_f64(us * 1e-6).unwrap_or_default();
        let promised = |figures: &Figures| match percentile {
            Percentile::P50 => us(figures.p50_us),
            Percentile::P90
            | Percentile::P95
            | Percentile::P99
            | Percentile::P999
            | Percentile::Max => us(figures.p99_us),
        };
        let variant = |name: &str, figures: &Figures, quality: f64, ready: bool| VariantView {
            name: name.to_owned(),
            promised: promised(figures),
            quality,
            ready,
        };
        let dense = &manifest.dense;
        let mut variants = vec![variant("dense", dense, 1.0, true)];
        let served = !self.is_made_up();
        let rungs = manifest.rungs.iter();
        variants.extend(
            rungs.map(|rung| variant(&rung.name, &rung.figures, rung.figures.quality, served)),
        );
        let figures = std::iter::once(dense).chain(manifest.rungs.iter().map(|rung| &rung.figures));
        let governor = &config.governor;
        Subject {
            view: ModelView {
                name: self.name.clone(),
                variants,
                current: 0,
                budget: config.budget.map(|budget| budget.limit.into()),
                floor: config.quality_floor,
                priority: config.priority,
                policy: governor::Policy {
                    window: governor.window.into(),
                    dwell: governor.dwell.into(),
                    margin: governor.margin,
                    headroom: governor.headroom,
                    sustain: governor.sustain.into(),
                    probation: governor.probation.into(),
                },
                observed: Observed::default(),
                load: None,
                fault: false,
                disproved: false,
            },
            percentile,
            medians: figures.map(|figures| us(figures.p50_us)).collect(),
            instances: config.instances,
            queue: config.queue_length,
            arrivals: arrivals(&self.stretches, setup.spread, setup.seed),
            slowdown: Box::new(slowdown(&self.stretches)),
            noise: setup.noise.unwrap_or(Noise::Tail(dense.p99_us / dense.p50_us)),
            seed: setup.seed,
        }
    }

    /// Rungs whose quality is not known: the agent serves them only where no quality is asked for.
    fn is_made_up(&self) -> bool {
        let made_up = self.manifest.calibration.source == CalibrationSource::Synthetic;
        let held = made_up && self.config.quality_floor > 0.0 && !self.manifest.rungs.is_empty();
        if held {
            eprintln!(
                "blochd: the rungs of {} come from made-up samples, which the agent does not \
                 serve; --floor 0 simulates them all the same",
                self.name
            );
        }
        held
    }
}
