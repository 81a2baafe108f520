//! `blochd trial`: loads and warms one variant, alone in a process. The agent runs it before any variant is
//! served: a model that crashes, hangs or eats the memory takes this process down and nothing else.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, anyhow, bail};
use blochd::ladder::calibration::{self, Samples};
use blochd::ladder::manifest::CalibrationSource;
use blochd::onnx::{Engine, Model, Tensor};
use blochd::shell::engine::{self, EngineOptions, OrtEngine, Search};
use blochd::shell::{models, places};
use blochd::units::Percentile;
use clap::Args;
use serde_json::json;

use super::{Code, Failure, OrFail};

/// Load, warm and time one model in this process.
///
/// Exit code 65 when the model is not fit for service (not ONNX, refused by the runtime, outputs that are
/// not finite), 69 without ONNX Runtime, 74 where a file cannot be read.
#[derive(Debug, Args)]
pub struct Trial {
    /// The ONNX model.
    model: PathBuf,
    /// Real inputs (.npz; arrays named as the model's inputs): the first sample is used.
    #[arg(long)]
    inputs: Option<PathBuf>,
    /// Timed runs, after the warm-up.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    runs: u32,
    /// Size of a free axis of an input: `--shape width=320`.
    #[arg(long = "shape", value_parser = super::named_size)]
    shapes: Vec<(String, usize)>,
    /// Threads of ONNX Runtime.
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// ONNX Runtime library, instead of the one that is found.
    #[arg(long)]
    runtime: Option<PathBuf>,
    /// Where runtimes are kept [default: BLOCHD_STATE_DIR, else /var/lib/blochd for
    /// root, else ~/.local/state/blochd].
    #[arg(long)]
    state_dir: Option<PathBuf>,
    /// Print one line of JSON.
    #[arg(long)]
    json: bool,
}

impl Trial {
    pub fn run(self) -> Result<(), Failure> {
        let model = models::load(&self.model).map_err(|error| Failure {
            code: if error.is_bad_data() { Code::Data } else { Code::Io },
            error: error.into(),
        })?;
        let state = self.state_dir.clone().unwrap_or_else(places::state_dir);
        let runtime =
            engine::init(&Search::new(self.runtime.clone(), &state)).code(Code::Unavailable)?;
        let options =
            EngineOptions { intra_op_threads: self.threads.max(1), ..EngineOptions::default() };
        let engine = OrtEngine::new(&runtime, options);
        let samples = self.samples(&model)?;
        let inputs: Vec<(&str, &Tensor)> =
            samples.first.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
        let started = Instant::now();
        let name = || self.model.display().to_string();
        let mut session = engine.open(&model).with_context(name).code(Code::Data)?;
        let loaded = started.elapsed();
        let outputs = session.run(&inputs).with_context(name).code(Code::Data)?;
        // Made-up inputs may lead a sound model astray: only real ones convict it.
        if self.inputs.is_some() {
            finite(&model, &outputs).with_context(name).code(Code::Data)?;
        }
        let times = session.time(&inputs, self.runs as usize);
        let mut times = times.with_context(name).code(Code::Data)?;
        times.sort_unstable();
        let us = |p: Percentile| p.of(&times).map_or(0.0, |t| t.as_secs_f64() * 1e6);
        let (p50, p99) = (us(Percentile::P50), us(Percentile::P99));
        let load_ms = loaded.as_secs_f64() * 1e3;
        let peak = peak_memory();
        if self.json {
            println!(
                "{}",
                json!({
                    "p50_us": p50, "p99_us": p99, "load_ms": load_ms, "runs": self.runs,
                    "peak_memory_bytes": peak, "engine": engine.identity(),
                })
            );
        } else {
            println!("{}", self.model.display());
            println!("  on       {}", engine.identity());
            println!("  load     {load_ms:.1} ms");
            println!("  p50      {p50:.0} us over {} runs", self.runs);
            println!("  p99      {p99:.0} us");
            if let Some(peak) = peak {
                println!("  memory   {} at its peak", blochd::units::ByteSize(peak));
            }
        }
        Ok(())
    }

    fn samples(&self, model: &Model) -> Result<Samples, Failure> {
        let specs = calibration::inputs(model).code(Code::Data)?;
        if let Some(path) = &self.inputs {
            let arrays = super::samples_of(path)?;
            return calibration::from_arrays(&specs, &arrays, 1, CalibrationSource::File)
                .with_context(|| path.display().to_string())
                .code(Code::Data);
        }
        let sizes: BTreeMap<String, usize> = self.shapes.iter().cloned().collect();
        calibration::synthetic(model, &specs, &sizes, 1, 0).code(Code::Data)
    }
}

fn finite(model: &Model, outputs: &[Tensor]) -> anyhow::Result<()> {
    for (info, tensor) in model.graph().output.iter().zip(outputs) {
        let values = tensor.to_f32().unwrap_or_default();
        if values.iter().any(|value| !value.is_finite()) {
            bail!(anyhow!("output {:?} is not finite", info.name.as_deref().unwrap_or_default()));
        }
    }
    Ok(())
}

/// Largest resident memory of this process so far, bytes.
fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}
