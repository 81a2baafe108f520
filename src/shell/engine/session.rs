//! A loaded model: what it takes and gives, and running it.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ort::AsPointer;
use ort::memory::MemoryInfo;
use ort::session::{RunOptions, SessionInputValue};
use ort::value::{Outlet, ValueType};

use super::identity::identity;
use super::making::{builder, has_free_dims};
use super::weights::Lent;
use super::{Library, Runtime, cann, convert, placed};

use crate::config::Provider;
use crate::hardware::Placement;
use crate::onnx::{DType, ExecError, Model, OnnxError, Session, Tensor};
use crate::shell::models;
use crate::shell::slot::{Ender, Runner};

/// How a model is loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineOptions {
    /// The execution provider that runs it.
    pub provider: Provider,
    /// Threads that work on one operator, the calling one included; at least 1.
    pub intra_op_threads: usize,
    /// The CPU of each of them, the calling one first, which binds itself; empty: they are not bound.
    pub cpus: Vec<usize>,
    /// Whether idle threads of the runtime spin. Faster for one busy model on an idle box, and harmful
    /// for everybody else on a shared one.
    pub spinning: bool,
    /// Where the runtime writes its profile (JSON, one entry an operator): a prefix of the file's name.
    pub profile: Option<PathBuf>,
    /// A folder of this model and provider alone, where the provider may keep what it compiles.
    pub cache: Option<PathBuf>,
    /// Sizes of free axes that have names, where only requests of these shall be served: providers that
    /// compile do so for every shape.
    pub sizes: BTreeMap<String, usize>,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self {
            provider: Provider::Cpu,
            intra_op_threads: 1,
            cpus: Vec::new(),
            spinning: false,
            profile: None,
            cache: None,
            sizes: BTreeMap::new(),
        }
    }
}

/// One dimension of an input or output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Dim {
    /// A size that the model fixes.
    Fixed(usize),
    /// A size that the caller chooses; dimensions of one name have one size. May be empty: no name.
    Free(String),
}

/// An input or output of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ValueInfo {
    pub name: String,
    pub dtype: DType,
    /// The dimensions; empty for a scalar, and where `ranked` is false.
    pub shape: Vec<Dim>,
    /// False where the model does not even say how many dimensions there are.
    pub ranked: bool,
}

/// Ends runs from another thread. One that is cancelled stays so: make a new one for each run.
#[derive(Clone)]
pub struct Cancel {
    options: Arc<RunOptions>,
    cancelled: Arc<AtomicBool>,
}

impl std::fmt::Debug for Cancel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cancel").field("cancelled", &self.is_cancelled()).finish_non_exhaustive()
    }
}

impl Cancel {
    /// A handle for one run.
    ///
    /// # Errors
    /// Where the runtime has no memory for it.
    pub fn new(_runtime: &Runtime) -> Result<Self, ExecError> {
        Self::for_one()
    }

    /// The same where a session shows that the runtime is there.
    fn for_one() -> Result<Self, ExecError> {
        let options = RunOptions::new().map_err(|error| failed("preparing a run", error))?;
        Ok(Self { options: Arc::new(options), cancelled: Arc::default() })
    }

    /// Ends the run, or keeps it from starting. The runtime looks between operators: a single long
    /// operator is not interrupted. The run returns an error.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Release);
        if let Err(error) = self.options.terminate() {
            tracing::warn!(%error, "ONNX Runtime did not take the request to end a run");
        }
    }

    /// Whether [`Cancel::cancel`] was called.
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Acquire)
    }
}

/// What a session stands on, and so does everything that can reach its memory.
#[derive(Debug, Clone, Default)]
pub(super) struct Under {
    /// Constants of others that it reads.
    pub _lent: Option<Arc<Lent>>,
    /// The library whose code runs it.
    pub _library: Option<Arc<Library>>,
}

/// A model loaded for serving. `Send`: it lives on the thread that runs it.
#[derive(Debug)]
pub struct LiveSession {
    session: ort::session::Session,
    inputs: Vec<ValueInfo>,
    outputs: Vec<ValueInfo>,
    /// What must outlive it; dropped after the session.
    under: Under,
    /// Where the thread that runs it is to be bound.
    cpu: Option<usize>,
    /// By which another thread may end the next run.
    next: Option<Cancel>,
}

impl LiveSession {
    /// Loads the model file at `path`. It is checked first: external data outside its folder and graphs
    /// that are none never reach the runtime.
    ///
    /// # Errors
    /// Where the file is not a model, or the runtime refuses it.
    pub fn open_file(
        runtime: &Runtime,
        path: &Path,
        options: &EngineOptions,
    ) -> Result<Self, ExecError> {
        let model = models::load(path).map_err(|error| failed("loading the model", error))?;
        let (library, mut builder) = builder(runtime, options, has_free_dims(&model))?;
        // With external data the runtime maps the weights' file: half of the memory of a copy.
        let session = guarded("loading the model", || builder.commit_from_file(path))?;
        let under = Under { _lent: None, _library: library };
        Self::new(session, under).map(|session| session.on(options))
    }

    /// Loads a model from memory.
    ///
    /// # Errors
    /// Where the runtime refuses the model.
    pub fn open_model(
        runtime: &Runtime,
        model: &Model,
        options: &EngineOptions,
    ) -> Result<Self, ExecError> {
        Self::open_lent(runtime, model, options, None)
    }

    /// Loads a model from memory, with constants of it that others hold. Only kernels of the CPU are lent them:
    /// of other providers nobody knows where they read them from.
    ///
    /// # Errors
    /// Where the runtime refuses the model.
    pub fn open_lent(
        runtime: &Runtime,
        model: &Model,
        options: &EngineOptions,
        lent: Option<&Arc<Lent>>,
    ) -> Result<Self, ExecError> {
        const DOING: &str = "loading the model";
        let bytes = match model.inline() {
            Ok(bytes) => bytes,
            Err(OnnxError::TooLarge { .. }) => return Self::open_large(runtime, model, options),
            Err(error) => return Err(failed(DOING, error)),
        };
        let bytes = match options.provider {
            Provider::Cann(_) => {
                let digest = model.digest().map_err(|error| failed(DOING, error))?;
                let identity = identity(runtime.library(), options);
                cann::named(&bytes, digest, &format!("{identity} {:?}", options.sizes))
            }
            Provider::Cpu | Provider::Plugin(_) => bytes,
        };
        let lent = lent.filter(|_| options.provider == Provider::Cpu);
        let (library, mut builder) = builder(runtime, options, has_free_dims(model))?;
        if let Some(lent) = lent {
            builder = guarded(DOING, || lent.to(builder))?;
        }
        let session = guarded(DOING, || builder.commit_from_memory(&bytes))?;
        let under = Under { _lent: lent.cloned(), _library: library };
        Self::new(session, under).map(|session| session.on(options))
    }

    fn on(self, options: &EngineOptions) -> Self {
        Self { cpu: options.cpus.first().copied(), ..self }
    }

    /// A model beyond protobuf's 2 GiB goes through a temporary file with its weights outside.
    fn open_large(
        runtime: &Runtime,
        model: &Model,
        options: &EngineOptions,
    ) -> Result<Self, ExecError> {
        const DOING: &str = "loading the model through a temporary file";
        let dir = tempfile::tempdir().map_err(|error| failed(DOING, error))?;
        let path = dir.path().join("model.onnx");
        models::save(model, &path).map_err(|error| failed(DOING, error))?;
        // What CANN compiles of a file it calls by the file's path, which is another one each time.
        let is_cann = matches!(options.provider, Provider::Cann(_));
        let cache = options.cache.clone().filter(|_| !is_cann);
        Self::open_file(runtime, &path, &EngineOptions { cache, ..options.clone() })
    }

    fn new(session: ort::session::Session, under: Under) -> Result<Self, ExecError> {
        let side = |outlets: &[Outlet], what: &str, input: bool| {
            let described = outlets.iter().enumerate().map(|(at, outlet)| {
                describe(&session, outlet, at, input).map_err(|reason| {
                    failed("loading the model", format!("{what} {:?} {reason}", outlet.name()))
                })
            });
            described.collect::<Result<Vec<ValueInfo>, ExecError>>()
        };
        let inputs = side(session.inputs(), "input", true)?;
        let outputs = side(session.outputs(), "output", false)?;
        Ok(Self { session, inputs, outputs, under, cpu: None, next: None })
    }

    /// The inputs that a run needs, in the graph's order.
    pub fn inputs(&self) -> &[ValueInfo] {
        &self.inputs
    }

    /// The outputs, in the graph's order.
    pub fn outputs(&self) -> &[ValueInfo] {
        &self.outputs
    }

    /// Runs once and returns the outputs named by `wanted`, in that order; all of them where it is empty.
    ///
    /// # Errors
    /// Where an input is missing, unknown or of a wrong type or shape, an output is unknown, or the
    /// runtime fails.
    pub fn run(
        &mut self,
        inputs: &[(&str, &Tensor)],
        wanted: &[&str],
    ) -> Result<Vec<Tensor>, ExecError> {
        self.run_inner(inputs, wanted, None)
    }

    /// As [`LiveSession::run`], for a run that another thread may end.
    ///
    /// # Errors
    /// As [`LiveSession::run`], and where the run was cancelled.
    pub fn run_cancellable(
        &mut self,
        inputs: &[(&str, &Tensor)],
        wanted: &[&str],
        cancel: &Cancel,
    ) -> Result<Vec<Tensor>, ExecError> {
        self.run_inner(inputs, wanted, Some(cancel))
    }

    fn run_inner(
        &mut self,
        inputs: &[(&str, &Tensor)],
        wanted: &[&str],
        cancel: Option<&Cancel>,
    ) -> Result<Vec<Tensor>, ExecError> {
        const DOING: &str = "running the model";
        self.check(inputs)?;
        let at = |name: &&str| self.outputs.iter().position(|output| output.name == *name);
        if let Some(name) = wanted.iter().find(|name| at(name).is_none()) {
            return Err(failed(DOING, format!("the model has no output {name:?}")));
        }
        let order: Vec<usize> = match wanted {
            [] => (0..self.outputs.len()).collect(),
            names => names.iter().filter_map(at).collect(),
        };
        let mut values: Vec<(Cow<'_, str>, SessionInputValue<'_>)> = Vec::new();
        for (name, tensor) in inputs {
            let value = convert::lend(tensor)
                .map_err(|reason| failed(DOING, format!("input {name:?} {reason}")))?;
            values.push((Cow::Borrowed(name), value));
        }
        let session = &mut self.session;
        // The runtime computes every output anyhow; those that are not wanted are dropped.
        let outputs = guarded(DOING, || match cancel {
            Some(cancel) => session.run_with_options(values, &cancel.options),
            None => session.run(values),
        });
        let outputs = outputs.map_err(|error| cann::of_run(error, inputs))?;
        let mut outputs: Vec<_> = outputs.into_iter().map(|(_, value)| Some(value)).collect();
        let lent = convert::lent(inputs);
        let mut tensors: Vec<Tensor> = Vec::with_capacity(order.len());
        for (place, at) in order.iter().enumerate() {
            let tensor = match outputs.get_mut(*at).and_then(Option::take) {
                Some(value) => convert::take(value, &lent, &self.under).map_err(|reason| {
                    failed(DOING, format!("output {:?} {reason}", self.outputs[*at].name))
                })?,
                // Asked for twice.
                None => match order[..place].iter().position(|earlier| earlier == at) {
                    Some(earlier) => tensors[earlier].clone(),
                    None => return Err(failed(DOING, "the runtime returned too few outputs")),
                },
            };
            tensors.push(tensor);
        }
        Ok(tensors)
    }

    /// Which providers run its operators, where it was opened for another one than the CPU's, or to be
    /// profiled.
    ///
    /// # Errors
    /// Where it was not.
    pub fn placement(&self) -> Result<Placement, ExecError> {
        placed::placement(&self.session)
    }

    /// Ends profiling and tells the file that the runtime wrote.
    ///
    /// # Errors
    /// Where the session was not opened for profiling.
    pub fn end_profiling(&mut self) -> Result<PathBuf, ExecError> {
        let session = &mut self.session;
        guarded("writing the profile", || session.end_profiling()).map(PathBuf::from)
    }

    fn check(&self, inputs: &[(&str, &Tensor)]) -> Result<(), ExecError> {
        let wrong = |reason: String| failed("running the model", reason);
        for (at, (name, tensor)) in inputs.iter().enumerate() {
            let Some(info) = self.inputs.iter().find(|info| info.name == *name) else {
                let known: Vec<&str> = self.inputs.iter().map(|i| i.name.as_str()).collect();
                return Err(wrong(format!("the model has no input {name:?}, only {known:?}")));
            };
            if inputs[..at].iter().any(|(earlier, _)| earlier == name) {
                return Err(wrong(format!("input {name:?} is given twice")));
            }
            if info.dtype != tensor.dtype {
                let (expected, found) = (info.dtype, tensor.dtype);
                return Err(wrong(format!("input {name:?} is {expected:?}, got {found:?}")));
            }
            let agrees = |(dim, size): (&Dim, &usize)| match dim {
                Dim::Fixed(expected) => expected == size,
                Dim::Free(_) => true,
            };
            let same_rank = info.shape.len() == tensor.shape.len();
            if info.ranked && !(same_rank && info.shape.iter().zip(&tensor.shape).all(agrees)) {
                let (expected, found) = (shape_text(&info.shape), &tensor.shape);
                return Err(wrong(format!("input {name:?} has shape {expected}, got {found:?}")));
            }
        }
        match self.inputs.iter().find(|info| inputs.iter().all(|(name, _)| info.name != *name)) {
            Some(missing) => Err(wrong(format!("input {:?} is missing", missing.name))),
            None => Ok(()),
        }
    }
}

impl Session for LiveSession {
    fn run(&mut self, inputs: &[(&str, &Tensor)]) -> Result<Vec<Tensor>, ExecError> {
        self.run_inner(inputs, &[], None)
    }

    /// Inputs are bound once, outputs stay with the runtime: only the run lies between two readings of
    /// the clock.
    fn time(
        &mut self,
        inputs: &[(&str, &Tensor)],
        runs: usize,
    ) -> Result<Vec<Duration>, ExecError> {
        const DOING: &str = "timing the model";
        self.check(inputs)?;
        let bound = || -> ort::Result<_> {
            let mut binding = self.session.create_binding()?;
            for (name, tensor) in inputs {
                let value = convert::owned(tensor).map_err(ort::Error::new)?;
                binding.bind_input(*name, &value)?;
            }
            let memory = MemoryInfo::default();
            for output in &self.outputs {
                binding.bind_output_to_device(output.name.as_str(), &memory)?;
            }
            Ok(binding)
        };
        let binding = guarded(DOING, bound)?;
        let session = &mut self.session;
        let mut once = || {
            let start = Instant::now();
            guarded(DOING, || session.run_binding(&binding).map(drop)).map(|()| start.elapsed())
        };
        (0..runs).map(|_| once()).collect()
    }
}

impl Runner for LiveSession {
    fn run(
        &mut self,
        inputs: &[(&str, &Tensor)],
        wanted: &[&str],
    ) -> Result<Vec<Tensor>, ExecError> {
        let cancel = self.next.take();
        self.run_inner(inputs, wanted, cancel.as_ref())
    }

    fn cpu(&self) -> Option<usize> {
        self.cpu
    }

    fn ender(&mut self) -> Option<Ender> {
        // Without memory for it the run is only waited for.
        let cancel = Cancel::for_one().ok()?;
        self.next = Some(cancel.clone());
        Some(Box::new(move || cancel.cancel()))
    }
}

/// `[1, 3, height, ?]`.
fn shape_text(shape: &[Dim]) -> String {
    let text = |dim: &Dim| match dim {
        Dim::Fixed(size) => size.to_string(),
        Dim::Free(name) if name.is_empty() => "?".to_owned(),
        Dim::Free(name) => name.clone(),
    };
    format!("[{}]", shape.iter().map(text).collect::<Vec<_>>().join(", "))
}

fn describe(
    session: &ort::session::Session,
    outlet: &Outlet,
    at: usize,
    input: bool,
) -> Result<ValueInfo, String> {
    let ValueType::Tensor { ty, shape, dimension_symbols } = outlet.dtype() else {
        return Err(format!("is a {}: only tensors are served", outlet.dtype()));
    };
    let dtype = convert::dtype(*ty).ok_or_else(|| format!("is of type {ty}: it is not handled"))?;
    let symbol = |axis: usize| dimension_symbols.get(axis).cloned().unwrap_or_default();
    let dim = |(axis, size): (usize, &i64)| match usize::try_from(*size) {
        Ok(size) => Dim::Fixed(size),
        Err(_) => Dim::Free(symbol(axis)),
    };
    let shape: Vec<Dim> = shape.iter().enumerate().map(dim).collect();
    let ranked = !shape.is_empty() || has_shape(session, at, input);
    Ok(ValueInfo { name: outlet.name().to_owned(), dtype, shape, ranked })
}

/// Whether the shape of an input or output without dimensions is known (then it is a scalar).
pub(super) fn has_shape(session: &ort::session::Session, at: usize, input: bool) -> bool {
    let api = ort::api();
    let ask = if input { api.SessionGetInputTypeInfo } else { api.SessionGetOutputTypeInfo };
    let mut info = std::ptr::null_mut();
    // SAFETY: the session is alive; `at` counts its inputs or outputs, or else the call fails.
    let status = unsafe { ask(session.ptr(), at, &mut info) };
    // SAFETY: the status came from the call above and is given up here.
    if unsafe { ort::Error::result_from_status(status) }.is_err() || info.is_null() {
        return false;
    }
    let mut tensor = std::ptr::null();
    // SAFETY: `info` is alive until it is released below.
    let status = unsafe { (api.CastTypeInfoToTensorInfo)(info, &mut tensor) };
    // SAFETY: as above.
    let known = unsafe { ort::Error::result_from_status(status) }.is_ok()
        && !tensor.is_null()
        // SAFETY: not null, and alive with `info`.
        && unsafe { (api.TensorTypeAndShape_HasShape)(tensor) };
    // SAFETY: ours, released once; `tensor` is not used any more.
    unsafe { (api.ReleaseTypeInfo)(info) };
    known
}

/// Calls into `ort`, which panics on types that it does not know (a sequence of sequences, an opaque
/// type): such a model is refused like any other that the runtime does not take.
pub(super) fn guarded<T>(
    doing: &str,
    call: impl FnOnce() -> ort::Result<T>,
) -> Result<T, ExecError> {
    cann::begin();
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(result) => result.map_err(|error| failed(doing, cann::explained(error.to_string()))),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("panic");
            Err(failed(doing, format!("the binding of ONNX Runtime cannot handle it: {text}")))
        }
    }
}

pub(super) fn failed(doing: &str, reason: impl ToString) -> ExecError {
    ExecError { doing: doing.to_owned(), reason: reason.to_string() }
}
