//! The configuration that the program runs by: every value typed, in range, and given.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use crate::limits::{CALIBRATION_SAMPLES, QUEUE_LENGTH};
use crate::units::{ByteSize, Percentile, Span};

use super::access::{AdminDoor, Grant, Tls};
use super::error::{ConfigErrors, Origin, Problem};
use super::layers::{Assigned, Origins};
use super::mqtt::Mqtt;
use super::providers::{Cann, Plugin};
use super::schema;
use super::shapes::ServedShapes;
use super::wanted::{self, ExecutionProviders};
use super::web::{Depots, Poll};

/// What the agent is asked to be.
///
/// Two configurations are equal where they mean the same, wherever their values were written.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Directory with a folder a model: `<model>/<version>/model.onnx`.
    pub model_dir: PathBuf,
    /// Directory of all that the agent keeps: ladders, caches, runtimes.
    pub state_dir: PathBuf,
    /// Where the Open Inference Protocol is served over REST.
    pub http_address: SocketAddr,
    /// Where it is served over gRPC; `None`: nowhere.
    pub grpc_address: Option<SocketAddr>,
    /// The Unix socket at which both are served.
    pub unix_socket: Socket,
    /// Where models are loaded and unloaded.
    pub admin_address: AdminDoor,
    /// Whether clients on this box may give and take tensors in shared memory.
    pub shared_memory: bool,
    /// Where Prometheus metrics are served.
    pub metrics_address: SocketAddr,
    /// What ports that other machines reach show, and who vouches for clients.
    pub tls: Tls,
    /// Whether ports that other machines reach may be without TLS, and ask nobody who they are.
    pub allow_plaintext: bool,
    /// ONNX Runtime's shared library; `None` searches `ORT_DYLIB_PATH`, the state directory, the
    /// system.
    pub runtime_library: Option<PathBuf>,
    pub log_level: LogLevel,
    pub log_format: LogFormat,
    /// How long requests in flight may take after SIGTERM before they are cut off.
    pub drain_timeout: Span,
    /// Where what the governor sees is recorded; `None`: nowhere.
    pub trace: Option<TraceDir>,
    /// Where spans are sent to; `None`: nowhere.
    pub otlp_endpoint: Option<Collector>,
    /// Share of the requests that belong to no trace of their client's, 0 to 1, of which spans are made.
    pub otlp_share: f64,
    pub arrivals: Arrivals,
    /// Whether child processes are kept from what their work does not need.
    pub sandbox: Sandbox,
    pub trial: Trial,
    pub build: Build,
    pub devices: Devices,
    /// What is asked of the provider for CANN, wherever it runs a model.
    pub cann: Cann,
    /// Libraries with further execution providers, by name.
    pub plugins: BTreeMap<String, Plugin>,
    pub fleet: Fleet,
    /// Who may come in, by name; empty: nobody is asked by a name.
    pub access: BTreeMap<String, Grant>,
    /// What holds for each model where nothing else is said of it.
    pub defaults: ModelConfig,
    /// What the agent's own file, the environment and flags say of single models.
    pub(super) models: BTreeMap<String, Vec<Assigned>>,
}

/// Where a Unix socket is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Socket {
    /// In the runtime directory, if systemd gave one.
    Auto,
    /// Nowhere.
    Off,
    At(PathBuf),
}

/// A directory of traces, see the room `governor`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceDir(pub PathBuf);

/// A collector of spans that speaks OpenTelemetry's protocol over HTTP, by its URL without a slash at the end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Collector(pub String);

impl Collector {
    /// Where spans are posted to.
    pub fn url(&self) -> String {
        let Self(base) = self;
        if base.ends_with("/v1/traces") { base.clone() } else { format!("{base}/v1/traces") }
    }
}

/// When files count as complete.
#[derive(Debug, Clone, PartialEq)]
pub struct Arrivals {
    /// How long a model's files must stay the same before they are loaded.
    pub settle: Span,
    /// How often the directory is read as a whole: file events can be lost.
    pub rescan: Span,
}

/// Bounds of the child process that loads and warms a variant first.
#[derive(Debug, Clone, PartialEq)]
pub struct Trial {
    pub timeout: Span,
    /// Memory that the child may have of its own: heap, stacks and private mappings that it may write, not
    /// files that it maps. `None`: what the box has available when the child starts.
    pub memory: Option<ByteSize>,
}

/// Bounds of the child process that analyses and prunes.
#[derive(Debug, Clone, PartialEq)]
pub struct Build {
    pub timeout: Span,
    /// As that of a trial. `None`: half of what the box has available when the child starts.
    pub memory: Option<ByteSize>,
    /// Scheduling niceness, 0 to 19.
    pub nice: i32,
}

/// How accelerators are looked after.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Devices {
    /// Time between two looks.
    pub interval: Span,
    /// How long a vendor's library may take for one, beyond that.
    pub timeout: Span,
    pub ascend: Accelerator,
    pub cambricon: Accelerator,
    pub kunlunxin: Accelerator,
}

/// Whether a vendor's accelerators are looked after, and by which library.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Accelerator {
    /// Where some are seen, by the vendor's library wherever the vendor or the system has it.
    Auto,
    /// Not at all.
    Off,
    /// By this library, or the one in this folder.
    At(PathBuf),
}

/// How the box belongs to a fleet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fleet {
    /// What bundles call this box; `None`: a name made of the machine's id.
    pub node_id: Option<NodeId>,
    pub labels: Labels,
    /// Files of the public keys of those who sign bundles.
    pub keys: KeyFiles,
    /// How many of them must have signed.
    pub threshold: usize,
    /// Where bundles are dropped; `None`: nowhere.
    pub inbox: Option<Inbox>,
    /// How long a bundle is watched before it is kept for good.
    pub probation: Span,
    /// What artifacts may take of the network; `None`: all there is.
    pub bandwidth: Option<Bandwidth>,
    /// The fleet's broker.
    pub mqtt: Mqtt,
    /// The server that is asked for bundles.
    pub poll: Poll,
    /// How artifacts are fetched.
    pub artifacts: Depots,
}

/// What bundles call a box.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeId(pub String);

/// What a box is, for bundles that are for boxes of a kind.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Labels(pub BTreeMap<String, String>);

/// Files of public keys.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct KeyFiles(pub Vec<PathBuf>);

/// A directory in which bundles are dropped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inbox(pub PathBuf);

/// Bytes a second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bandwidth(pub ByteSize);

/// What one model is asked to be.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// What may run it.
    pub execution_providers: ExecutionProviders,
    /// `None`: dense is served, whatever it takes.
    pub budget: Option<Budget>,
    /// Least agreement with dense (0 to 1) of a variant that may be served.
    pub quality_floor: f64,
    pub quality: Quality,
    /// Sessions, each on a thread of its own.
    pub instances: usize,
    /// Threads inside one operator.
    pub intra_op_threads: Threads,
    /// Which CPUs these threads are bound to.
    pub cpus: Cpus,
    /// Requests that may wait.
    pub queue_length: usize,
    /// A request that is not answered by then is refused.
    pub request_timeout: Span,
    /// Rows (of the first axis) that requests may have together to be run as one; 1: each runs alone.
    pub max_batch: usize,
    /// How long a free session may wait for a batch to fill.
    pub max_queue_delay: Span,
    /// The shapes that are compiled before it serves, where what runs it compiles each.
    pub shapes: ServedShapes,
    /// Whose budget goes first where models share the box: the higher.
    pub priority: i32,
    pub governor: Governor,
    pub ladder: Ladder,
    pub calibration: Calibration,
}

/// A bound on a latency percentile at the client-visible boundary of the agent. Text: `p99: 40ms`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    pub percentile: Percentile,
    pub limit: Span,
}

impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.percentile, self.limit)
    }
}

/// How the quality of a variant in service is looked after.
#[derive(Debug, Clone, PartialEq)]
pub struct Quality {
    /// Share of the live requests, above 0 and up to 1, that run on dense as well; `None`: none do.
    pub shadow: Option<f64>,
}

/// How variants are changed; see the room `governor`.
#[derive(Debug, Clone, PartialEq)]
pub struct Governor {
    /// Requests of this last stretch of time are looked at.
    pub window: Span,
    /// Least time between two switches.
    pub dwell: Span,
    /// A variant fits where promised × slowdown × margin ≤ budget.
    pub margin: f64,
    /// The same for a variant that is slower than the one in service: larger, against oscillation.
    pub headroom: f64,
    /// How long a better variant must have fitted before it is taken.
    pub sustain: Span,
    /// How long a variant is watched closely after it came into service.
    pub probation: Span,
}

/// Which variants are made.
#[derive(Debug, Clone, PartialEq)]
pub struct Ladder {
    /// Whether any are.
    pub enabled: bool,
    /// Latency ratios to dense, falling.
    pub ratios: Vec<f64>,
    /// How channels are selected.
    pub method: Method,
    pub seed: u64,
}

/// Where samples for the repair of pruned variants come from when no `calibration.npz` is given.
#[derive(Debug, Clone, PartialEq)]
pub struct Calibration {
    /// Whether inputs of live requests may be kept (in a bounded reservoir in the state directory).
    pub live: bool,
    /// Most samples kept and used.
    pub samples: usize,
}

/// Number of threads inside one operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Threads {
    /// The cores that the agent may use, shared by the instances.
    Auto,
    Count(usize),
}

impl Threads {
    /// The number for a box with `cores` usable cores and `instances` sessions; at least 1.
    pub fn count(self, cores: usize, instances: usize) -> usize {
        match self {
            Self::Auto => (cores / instances.max(1)).max(1),
            Self::Count(count) => count,
        }
    }
}

impl fmt::Display for Threads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Count(count) => count.fmt(f),
        }
    }
}

/// Which CPUs the threads of a model's sessions are bound to, one a thread.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cpus {
    /// To none: the kernel moves them as it sees fit.
    None,
    /// As many as there are threads, from the last one down; models that ask for this follow one another.
    Auto,
    /// These, in this order and from the first again; none stands twice.
    List(Vec<usize>),
}

impl Cpus {
    /// The CPU of each of `threads` threads, where `usable` are those that the agent may use, ascending, and
    /// other models with [`Cpus::Auto`] come before with `before` threads. Empty: they are not bound.
    pub fn assign(&self, usable: &[usize], threads: usize, before: usize) -> Vec<usize> {
        match self {
            Self::None => Vec::new(),
            Self::Auto => usable.iter().rev().copied().cycle().skip(before).take(threads).collect(),
            Self::List(list) => list.iter().copied().cycle().take(threads).collect(),
        }
    }
}

impl fmt::Display for Cpus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Auto => f.write_str("auto"),
            Self::List(list) => {
                let list: Vec<String> = list.iter().map(usize::to_string).collect();
                f.write_str(&list.join(", "))
            }
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// The journal where standard error is connected to it, text otherwise.
    Auto,
    Text,
    Json,
    Journald,
}

/// Whether the processes that touch models first are kept from what they do not need: other files, the network,
/// most of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sandbox {
    /// As far as the kernel can.
    Auto,
    Off,
    /// Where the kernel cannot, nothing is tried, and nothing new is served.
    Required,
}

/// How channels are selected for removal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    Obs,
    Response,
    Spectral,
    Magnitude,
    Random,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            model_dir: "/var/lib/blochd/models".into(),
            state_dir: "/var/lib/blochd".into(),
            http_address: SocketAddr::from((Ipv4Addr::LOCALHOST, 8000)),
            grpc_address: Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 8001))),
            unix_socket: Socket::Auto,
            admin_address: AdminDoor::At(SocketAddr::from((Ipv4Addr::LOCALHOST, 8003))),
            shared_memory: false,
            metrics_address: SocketAddr::from((Ipv4Addr::LOCALHOST, 8002)),
            tls: Tls::default(),
            allow_plaintext: false,
            runtime_library: None,
            log_level: LogLevel::Info,
            log_format: LogFormat::Auto,
            drain_timeout: Span::secs(30),
            trace: None,
            otlp_endpoint: None,
            otlp_share: 0.01,
            arrivals: Arrivals { settle: Span::millis(500), rescan: Span::secs(10) },
            sandbox: Sandbox::Auto,
            trial: Trial { timeout: Span::secs(120), memory: None },
            build: Build { timeout: Span::secs(3600), memory: None, nice: 19 },
            devices: Devices {
                interval: Span::secs(5),
                timeout: Span::secs(10),
                ascend: Accelerator::Auto,
                cambricon: Accelerator::Auto,
                kunlunxin: Accelerator::Auto,
            },
            cann: Cann::default(),
            plugins: BTreeMap::new(),
            fleet: Fleet {
                node_id: None,
                labels: Labels::default(),
                keys: KeyFiles::default(),
                threshold: 1,
                inbox: None,
                probation: Span::secs(600),
                bandwidth: None,
                mqtt: Mqtt::default(),
                poll: Poll::default(),
                artifacts: Depots::default(),
            },
            access: BTreeMap::new(),
            defaults: ModelConfig::default(),
            models: BTreeMap::new(),
        }
    }
}

impl Default for ModelConfig {
    fn default() -> Self {
        Self {
            execution_providers: ExecutionProviders::default(),
            budget: None,
            quality_floor: 0.9,
            quality: Quality { shadow: None },
            instances: 1,
            intra_op_threads: Threads::Auto,
            cpus: Cpus::None,
            queue_length: QUEUE_LENGTH,
            request_timeout: Span::secs(10),
            max_batch: 1,
            max_queue_delay: Span::millis(0),
            shapes: ServedShapes::default(),
            priority: 0,
            governor: Governor::default(),
            ladder: Ladder {
                enabled: true,
                ratios: vec![0.9, 0.75, 0.6, 0.5],
                method: Method::Obs,
                seed: 0,
            },
            calibration: Calibration { live: false, samples: CALIBRATION_SAMPLES },
        }
    }
}

impl Default for Governor {
    fn default() -> Self {
        Self {
            window: Span::secs(2),
            dwell: Span::secs(5),
            margin: 1.1,
            headroom: 1.25,
            sustain: Span::secs(5),
            probation: Span::secs(30),
        }
    }
}

/// What `<model>/policy.yaml` says: the settings of one model, as under `models: <model>:`.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Policy {
    pub(super) assigned: Vec<Assigned>,
}

impl Policy {
    /// Reads a policy file. `file` is only named in errors.
    ///
    /// # Errors
    /// All that is wrong with it.
    pub fn parse(file: &str, text: &str) -> Result<Self, ConfigErrors> {
        let (assigned, mut problems) = schema::read_model(file, text);
        let mut probe = ModelConfig::default();
        apply(&mut probe, &assigned, &mut problems);
        if problems.is_empty() { Ok(Self { assigned }) } else { Err(ConfigErrors(problems)) }
    }

    /// Where each of its settings was written, by its path.
    pub fn origins(&self) -> Origins {
        let one = |item: &Assigned| (item.setting.path.to_owned(), item.origin.clone());
        self.assigned.iter().map(one).collect()
    }
}

/// Sets what `assigned` says, in order; values were read once already, so a failure is a problem of
/// the text itself.
pub(super) fn apply(to: &mut ModelConfig, assigned: &[Assigned], problems: &mut Vec<Problem>) {
    for item in assigned {
        if let Err(wrong) = (item.setting.set)(to, &item.text) {
            problems.push(wrong.at(&item.origin));
        }
    }
}

impl Config {
    /// The models that are named in the configuration itself.
    pub fn named_models(&self) -> impl Iterator<Item = &str> {
        self.models.keys().map(String::as_str)
    }

    /// What `model` is asked to be: built-in defaults < `defaults` < its `policy.yaml` < `models:`
    /// (whoever runs the box has the last word over whoever made the model).
    ///
    /// # Errors
    /// Where the parts do not fit each other, such as a headroom below the margin.
    pub fn model(&self, model: &str, policy: Option<&Policy>) -> Result<ModelConfig, ConfigErrors> {
        let mut config = self.defaults.clone();
        let mut problems = Vec::new();
        let policy = policy.map_or(&[][..], |policy| &policy.assigned);
        let own = self.models.get(model).map_or(&[][..], Vec::as_slice);
        apply(&mut config, policy, &mut problems);
        apply(&mut config, own, &mut problems);
        let origin = |path: &str| {
            let of_path = |item: &&Assigned| item.setting.path == path;
            let item = own.iter().rev().chain(policy.iter().rev()).find(of_path);
            item.map_or(Origin::Default, |item| item.origin.clone())
        };
        config.check(&self.plugins, origin, &mut problems);
        if problems.is_empty() { Ok(config) } else { Err(ConfigErrors(problems)) }
    }
}

impl ModelConfig {
    /// What no single value can be blamed for. `origin` tells where a setting was written.
    pub(super) fn check(
        &self,
        plugins: &BTreeMap<String, Plugin>,
        origin: impl Fn(&str) -> Origin,
        problems: &mut Vec<Problem>,
    ) {
        let at = origin("execution_providers");
        wanted::check_known(&self.execution_providers, plugins, &at, problems);
        let first_written = |paths: [&str; 2]| {
            paths
                .map(&origin)
                .into_iter()
                .find(|at| *at != Origin::Default)
                .unwrap_or(Origin::Default)
        };
        let governor = &self.governor;
        if governor.headroom < governor.margin {
            problems.push(Problem {
                origin: first_written(["governor.headroom", "governor.margin"]),
                what: format!(
                    "headroom {} is below margin {}: variants would be changed to and fro",
                    governor.headroom, governor.margin
                ),
                right: "write a headroom of at least the margin".to_owned(),
            });
        }
        let budget = self.budget.map_or(self.request_timeout, |budget| budget.limit);
        if self.max_queue_delay >= budget {
            problems.push(Problem {
                origin: first_written(["max_queue_delay", "budget"]),
                what: format!(
                    "max_queue_delay {} leaves nothing of the {budget} that a request may take",
                    self.max_queue_delay
                ),
                right: "write a max_queue_delay well below it".to_owned(),
            });
        }
        if let Some(budget) = self.budget.filter(|budget| budget.limit > self.request_timeout) {
            problems.push(Problem {
                origin: first_written(["budget", "request_timeout"]),
                what: format!(
                    "the budget {budget} is longer than the request timeout {}",
                    self.request_timeout
                ),
                right: "write a request_timeout of at least the budget".to_owned(),
            });
        }
    }
}
