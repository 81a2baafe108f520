//! `blochd trial`: loads and warms one variant, alone in a process. The agent runs it before any variant is
//! served: a model that crashes, hangs or eats the memory takes this process down and nothing else.

mod provider;
mod shown;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use blochd::config::Provider;
use blochd::onnx::{Engine, ExecError, Model, Session, Tensor};
use blochd::protocol::{Inputs, Signature, suitable};
use blochd::shell::children::confine::Needs;
use blochd::shell::children::is_out_of_memory;
use blochd::shell::children::trial::RanOn;
use blochd::shell::engine::{self, EngineOptions, LiveSession, OrtEngine, Pool, compiled};
use blochd::shell::inputs::{self, SampleError};
use blochd::shell::npz::NpzError;
use blochd::shell::{cpus, models};
use blochd::units::Digest;
use clap::Args;

use super::providing::ProviderArgs;
use super::sandbox::SandboxArgs;
use super::{Code, Failure, OrFail, without_runtime};
use provider::Found;
use shown::Shown;

/// Load, warm and time one model in this process.
///
/// Without real inputs some are made up. A model that runs on none of those is loaded all the same, and its
/// latency is not known. Exit code 65 when the model is not fit for service (not ONNX, refused by the runtime,
/// without enough memory, outputs on real inputs that are not finite), 69 without ONNX Runtime, 74 where a
/// file cannot be read, 76 where the execution provider is not to be had or fails at what the CPU does.
#[derive(Debug, Args)]
pub struct Trial {
    /// The ONNX model.
    model: PathBuf,
    /// Real inputs (.npz; arrays named as the model's inputs): the first sample is used.
    #[arg(long)]
    inputs: Option<PathBuf>,
    /// Made-up inputs where the given ones do not suit the model.
    #[arg(long, hide = true, requires = "inputs")]
    or_made_up: bool,
    /// Timed runs, after the warm-up.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    runs: u32,
    /// Size of a free axis of an input, when inputs are made up: `--shape width=320`, or `--shape "x[2]=48"`
    /// for the third axis of input x where it has no name.
    #[arg(long = "shape", value_parser = super::named_size)]
    shapes: Vec<(String, usize)>,
    /// Sizes of free axes that will be served, with commas: `--served N=1,height=640`, once for each shape. On
    /// other execution providers than the CPU's each is run, which compiles it. Inputs that are made up have
    /// the first, where --shape says nothing.
    #[arg(long, value_name = "AXIS=SIZE,…", value_parser = sizes)]
    served: Vec<Sizes>,
    /// Size of a free axis that has a name, for good: requests of other sizes are refused.
    #[arg(long = "fix", value_name = "AXIS=SIZE", value_parser = super::named_size)]
    fixed: Vec<(String, usize)>,
    /// Where the execution provider may keep what it compiles of this model: a folder of its own.
    #[arg(long)]
    cache: Option<PathBuf>,
    /// Threads of ONNX Runtime.
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// CPUs that this process is bound to, with commas [default: those that it may use].
    #[arg(long, value_delimiter = ',')]
    cpus: Vec<usize>,
    #[command(flatten)]
    on: ProviderArgs,
    /// Print one line of JSON.
    #[arg(long)]
    json: bool,
    /// Look whether the model answers alike when its weights are lent to it.
    #[arg(long, hide = true)]
    lend: bool,
    #[command(flatten)]
    sandbox: SandboxArgs,
}

/// Sizes of free axes, one shape.
#[derive(Debug, Clone)]
struct Sizes(Vec<(String, usize)>);

fn sizes(text: &str) -> Result<Sizes, String> {
    text.split(',').map(super::named_size).collect::<Result<_, _>>().map(Sizes)
}

/// A model that is loaded and was run once.
struct Tried {
    session: LiveSession,
    load_ms: f64,
    run: Option<Run>,
    /// Why it did not run, or not on the samples.
    why: Option<String>,
    /// What another provider than the CPU's was found to be.
    found: Option<Found>,
}

/// What a model was run on, once, and found to run.
struct Run {
    on: RanOn,
    inputs: Inputs,
}

fn lent(inputs: &Inputs) -> Vec<(&str, &Tensor)> {
    inputs.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect()
}

impl Trial {
    pub fn run(mut self) -> Result<(), Failure> {
        // From where it was called; it may work elsewhere below.
        for path in [&mut self.inputs, &mut self.cache].into_iter().flatten() {
            *path = std::path::absolute(&*path).code(Code::Io)?;
        }
        if !self.cpus.is_empty()
            && let Err(error) = cpus::bind(&self.cpus)
        {
            // What it then finds holds for other CPUs, and no less for the model.
            eprintln!("blochd: not bound to CPUs {:?}: {error}", self.cpus);
        }
        let search = self.on.search();
        let mut needs = Needs::model(&self.model);
        needs.read.extend(self.inputs.clone());
        needs.runtime(&search);
        needs.provider(&self.on.provider);
        if let Some(cache) = &self.cache {
            compiled::make(cache).with_context(|| cache.display().to_string()).code(Code::Io)?;
            needs.write.push(cache.clone());
        }
        self.sandbox.begin(needs, self.json)?;
        let model = models::load(&self.model).map_err(|error| Failure {
            code: if error.is_bad_data() { Code::Data } else { Code::Io },
            error: error.into(),
        })?;
        let runtime = engine::init(&search).map_err(without_runtime)?;
        if let (Provider::Cann(_), Some(cache)) = (&self.on.provider, &self.cache) {
            // CANN's provider keeps what it compiles where it works, and looks for it there.
            std::env::set_current_dir(cache)
                .with_context(|| cache.display().to_string())
                .code(Code::Io)?;
        }
        let engine = OrtEngine::new(&runtime, self.options());
        let tried = match &self.on.provider {
            Provider::Cpu => self.on_cpu(&engine, &model)?,
            Provider::Cann(_) | Provider::Plugin(_) => self.on_provider(&engine, &model)?,
        };
        let Tried { mut session, load_ms, run, why, found } = tried;
        let (mut times, why) = self.time(&mut session, run.as_ref(), why)?;
        times.sort_unstable();
        let peak = peak_memory();
        let lends = match &run {
            _ if found.is_some() => Err("it does not run on the CPU".to_owned()),
            Some(run) if self.lend => self.lends(&engine, &model, session, run),
            Some(_) | None => Err("it was run on nothing".to_owned()),
        };
        let shown =
            Shown { load_ms, times, why, ran_on: run.map(|run| run.on), lends, peak, found };
        shown.print(&self, &Engine::identity(&engine));
        Ok(())
    }

    fn options(&self) -> EngineOptions {
        EngineOptions {
            provider: self.on.provider.clone(),
            intra_op_threads: self.threads.max(1),
            cache: self.cache.clone(),
            sizes: self.fixed.iter().cloned().collect(),
            ..EngineOptions::default()
        }
    }

    fn on_cpu(&self, engine: &OrtEngine, model: &Model) -> Result<Tried, Failure> {
        let started = Instant::now();
        let mut session = engine.open_live(model).with_context(|| self.name()).code(Code::Data)?;
        let load_ms = started.elapsed().as_secs_f64() * 1e3;
        let (run, why) = self.warm(&mut session)?;
        Ok(Tried { session, load_ms, run, why, found: None })
    }

    /// Whether the model answers alike, to the last bit, with its weights lent to it. The runtime looks for
    /// what it is lent by name, after it has changed the graph to its liking: where it gave a name to other
    /// elements, what was lent would be the wrong ones.
    fn lends(
        &self,
        engine: &OrtEngine,
        model: &Model,
        mut session: LiveSession,
        run: &Run,
    ) -> Result<(), String> {
        let words = |error: ExecError| error.to_string();
        let answers = |session: &mut LiveSession| -> Result<Vec<_>, String> {
            let outputs = session.run(&lent(&run.inputs), &[]).map_err(words)?;
            let outputs = outputs.into_iter();
            Ok(outputs.map(|o| (o.dtype, o.shape.clone(), Digest::of(&o.data))).collect())
        };
        let alone = answers(&mut session)?;
        // Two at a time would take more memory than serving does.
        drop(session);
        let pool = match self.sandbox.scratch() {
            Some(folder) => Pool::in_folder(folder.to_owned()),
            None => Pool::in_memory(),
        };
        let weights = pool.hold(model, 2).map_err(words)?;
        let weights = weights.ok_or("it has no weights that could be lent")?;
        let lent = pool.lend(engine.runtime(), "trial", &weights).map_err(words)?;
        let mut session = engine.open_lent(model, Some(&lent)).map_err(words)?;
        weights.release();
        if answers(&mut session)? == alone {
            return Ok(());
        }
        Err("its answers differ when its weights are lent to it".to_owned())
    }

    /// Sizes of inputs that are made up.
    fn given(&self) -> BTreeMap<String, usize> {
        let served = self.served.first().map(|sizes| sizes.0.as_slice());
        let given = if self.shapes.is_empty() { served } else { Some(self.shapes.as_slice()) };
        given.unwrap_or_default().iter().cloned().collect()
    }

    fn name(&self) -> String {
        self.model.display().to_string()
    }

    /// Runs the model once, on the samples or on what is made up. None where it runs on nothing that was
    /// made up: that may lead a sound model astray, and only real inputs convict it. The words tell why.
    fn warm(&self, session: &mut LiveSession) -> Result<(Option<Run>, Option<String>), Failure> {
        let signature = Signature::from(&*session);
        let mut why = None;
        if let Some(path) = &self.inputs {
            match self.on_samples(path, session, &signature) {
                Ok(run) => return Ok((Some(run), None)),
                Err(failure) if self.or_made_up && failure.spared => {
                    why = Some(format!("{:#}", failure.failure.error));
                }
                Err(failure) => return Err(failure.failure),
            }
        }
        let given = self.given();
        let mut blamed = None;
        let mut once = |inputs: &Inputs| -> Result<Duration, ExecError> {
            // No sizes help what the provider cannot compile, and it takes its time to find that out.
            if let Some(error) = &blamed {
                return Err(ExecError::clone(error));
            }
            let started = Instant::now();
            let ran = session.run(&lent(inputs), &[]);
            blamed = ran.as_ref().err().filter(|error| engine::is_providers_own(error)).cloned();
            ran.map(|_| started.elapsed())
        };
        let found = suitable(&signature, &given, &mut once);
        if let Some(error) = blamed {
            return Err(error).with_context(|| self.name()).code(Code::Data);
        }
        match found {
            Ok((example, inputs)) => Ok((Some(Run { on: RanOn::MadeUp(example), inputs }), why)),
            // However small it is: the model is to blame, or the box.
            Err(error) if is_out_of_memory(&error.0) => {
                Err(anyhow!(error)).with_context(|| self.name()).code(Code::Data)
            }
            Err(error) => {
                let before = why.map_or_else(String::new, |why| format!("{why}; "));
                Ok((None, Some(format!("{before}{error}"))))
            }
        }
    }

    /// Times warm runs. What was made up and ran once convicts no model by not running again.
    fn time(
        &self,
        session: &mut LiveSession,
        run: Option<&Run>,
        why: Option<String>,
    ) -> Result<(Vec<Duration>, Option<String>), Failure> {
        let Some(run) = run else { return Ok((Vec::new(), why)) };
        match session.time(&lent(&run.inputs), self.runs as usize) {
            Ok(times) => Ok((times, why)),
            // It ran there before.
            Err(error) if self.on.provider != Provider::Cpu => {
                Err(error).with_context(|| self.name()).code(Code::Provider)
            }
            Err(error) if run.on == RanOn::Samples || is_out_of_memory(&error.reason) => {
                Err(error).with_context(|| self.name()).code(Code::Data)
            }
            Err(error) => Ok((Vec::new(), Some(error.to_string()))),
        }
    }

    fn on_samples(
        &self,
        path: &Path,
        session: &mut LiveSession,
        signature: &Signature,
    ) -> Result<Run, Unsuited> {
        let inputs = inputs::first_of(path, signature).map_err(|error| {
            let code = match &error {
                SampleError::Npz(NpzError { unreadable: true, .. }) => Code::Io,
                SampleError::Npz(_) | SampleError::Missing { .. } | SampleError::Type { .. } => {
                    Code::Data
                }
            };
            let error = match error {
                SampleError::Npz(error) => error.into(),
                error => anyhow!(error).context(path.display().to_string()),
            };
            Unsuited { failure: Failure { code, error }, spared: true }
        })?;
        let failed = |error: anyhow::Error, spared| {
            let error = error.context(self.name());
            Unsuited { failure: Failure { code: Code::Data, error }, spared }
        };
        let outputs = session.run(&lent(&inputs), &[]).map_err(|error| {
            let spared = !is_out_of_memory(&error.reason);
            failed(error.into(), spared)
        })?;
        finite(signature, &outputs).map_err(|error| failed(error, false))?;
        Ok(Run { on: RanOn::Samples, inputs })
    }
}

/// Why a model was not run on samples, and whether that is left at a remark where they are not the caller's
/// own: samples of an earlier version may not suit the next one.
struct Unsuited {
    failure: Failure,
    spared: bool,
}

fn finite(signature: &Signature, outputs: &[Tensor]) -> anyhow::Result<()> {
    for (spec, tensor) in signature.outputs.iter().zip(outputs) {
        let values = tensor.to_f32().unwrap_or_default();
        if values.iter().any(|value| !value.is_finite()) {
            bail!("output {:?} is not finite", spec.name);
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
