//! The one table of settings: paths, how each is read and shown, and whether a change needs a
//! restart.

use std::sync::Arc;

use crate::limits;
use crate::units::{Span, check_model_name};

use super::access::{self, Given, Grant};
use super::checked::{Config, ModelConfig};
use super::error::{Origin, Problem, Wrong, did_you_mean};
use super::layers::Assigned;
use super::mqtt::SecretFile;
use super::plugins::{self, Part, Said};
use super::providers::Plugin;
use super::raw::{At, Key, Node, Value, parse};
use super::shapes::{ServedShapes, served_shapes};
use super::values::{self as read, Show};
use super::version;
use super::{wanted, web};

/// A setting of `T`.
#[derive(Debug)]
pub struct Setting<T: 'static> {
    /// Its name in the file, with dots between the levels.
    pub path: &'static str,
    /// What its value may look like in YAML.
    pub shape: Shape,
    /// Whether the running agent cannot take a change of it.
    pub restart: bool,
    pub(super) set: fn(&mut T, &str) -> Result<(), Wrong>,
    /// The value as text.
    pub get: fn(&T) -> String,
}

/// What a setting's value may look like in YAML.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// A path: relative ones in a file start from the file's folder.
    Path,
    Scalar,
    /// Yes or no, or a word.
    Flag,
    List,
    /// A list of names.
    Names,
    /// A scalar, or a map of one entry.
    Pair,
    /// A list of paths, or one.
    Paths,
    /// A map of scalars.
    Map,
    /// A list of maps of scalars.
    Maps,
}

macro_rules! setting {
    ($t:ty, $path:literal, $shape:ident, $restart:literal, $read:expr, $($field:ident).+) => {
        Setting {
            path: $path,
            shape: Shape::$shape,
            restart: $restart,
            set: |config: &mut $t, text: &str| {
                config.$($field).+ = $read(text)?;
                Ok(())
            },
            get: |config: &$t| config.$($field).+.show(),
        }
    };
}

macro_rules! agent {
    ($path:literal, $shape:ident, $restart:literal, $read:expr, $($field:ident).+) => {
        setting!(Config, $path, $shape, $restart, $read, $($field).+)
    };
}

macro_rules! model {
    ($path:literal, $shape:ident, $read:expr, $($field:ident).+) => {
        setting!(ModelConfig, $path, $shape, false, $read, $($field).+)
    };
}

/// An option of the provider for CANN, by its name there.
macro_rules! cann {
    ($option:ident, $shape:ident, $read:expr, $show:expr) => {
        Setting {
            path: concat!("cann.", stringify!($option)),
            shape: Shape::$shape,
            restart: false,
            set: |config: &mut Config, text: &str| {
                wanted::set_option(&mut config.cann, stringify!($option), $read(text)?);
                Ok(())
            },
            get: |config: &Config| wanted::shown_option(&config.cann, stringify!($option), $show),
        }
    };
}

/// Settings of the agent as a whole.
pub static AGENT: &[Setting<Config>] = &[
    agent!("model_dir", Path, true, read::path, model_dir),
    agent!("state_dir", Path, true, read::path, state_dir),
    agent!("http_address", Scalar, true, read::address, http_address),
    agent!("grpc_address", Scalar, true, read::address_or_none, grpc_address),
    agent!("unix_socket", Path, true, read::socket, unix_socket),
    agent!("admin_address", Scalar, true, access::admin_address, admin_address),
    agent!("shared_memory", Scalar, true, read::flag, shared_memory),
    agent!("metrics_address", Scalar, true, read::address, metrics_address),
    agent!("tls.certificate", Path, false, read::secret_file, tls.certificate),
    agent!("tls.key", Path, false, read::secret_file, tls.key),
    agent!("tls.client_ca", Path, false, read::secret_file, tls.client_ca),
    agent!("allow_plaintext", Scalar, false, read::flag, allow_plaintext),
    agent!("runtime_library", Path, true, read::path_or_auto, runtime_library),
    agent!("log_level", Scalar, false, read::log_level, log_level),
    agent!("log_format", Scalar, true, read::log_format, log_format),
    agent!("drain_timeout", Scalar, false, |t| between(t, 0, 3600), drain_timeout),
    agent!("trace", Path, false, read::trace, trace),
    agent!("otlp_endpoint", Scalar, true, read::collector, otlp_endpoint),
    agent!("otlp_share", Scalar, true, |t| read::number(t, 0.0, 1.0), otlp_share),
    agent!("arrivals.settle", Scalar, false, read::wait, arrivals.settle),
    agent!("arrivals.rescan", Scalar, false, read::wait, arrivals.rescan),
    agent!("sandbox", Scalar, false, read::sandbox, sandbox),
    agent!("trial.timeout", Scalar, false, read::wait, trial.timeout),
    agent!("trial.memory", Scalar, false, read::memory, trial.memory),
    agent!("build.timeout", Scalar, false, |t| between(t, 1, 86_400), build.timeout),
    agent!("build.memory", Scalar, false, read::memory, build.memory),
    agent!("build.nice", Scalar, false, |t| read::whole(t, 0, 19).map(|n| n as i32), build.nice),
    agent!("devices.interval", Scalar, false, |t| millis(t, 100, 3_600_000), devices.interval),
    agent!("devices.timeout", Scalar, false, |t| millis(t, 100, 600_000), devices.timeout),
    agent!("devices.ascend", Path, false, read::accelerator, devices.ascend),
    agent!("devices.cambricon", Path, false, read::accelerator, devices.cambricon),
    agent!("devices.kunlunxin", Path, false, read::accelerator, devices.kunlunxin),
    agent!("cann.device_id", Scalar, false, |t| read::device(t).map(|n| n as u32), cann.device_id),
    cann!(npu_mem_limit, Scalar, wanted::size, wanted::shown_size),
    cann!(arena_extend_strategy, Scalar, wanted::arena_extend_strategy, wanted::shown_as_is),
    cann!(enable_cann_graph, Flag, wanted::switch, wanted::shown_switch),
    cann!(enable_cann_subgraph, Flag, wanted::switch, wanted::shown_switch),
    cann!(precision_mode, Scalar, wanted::precision_mode, wanted::shown_as_is),
    cann!(op_select_impl_mode, Scalar, wanted::implementation_mode, wanted::shown_as_is),
    cann!(optypelist_for_implmode, Names, wanted::operator_types, wanted::shown_as_is),
    cann!(dump_graphs, Flag, wanted::switch, wanted::shown_switch),
    cann!(dump_om_model, Flag, wanted::switch, wanted::shown_switch),
    agent!("fleet.node_id", Scalar, true, read::node_id, fleet.node_id),
    agent!("fleet.labels", Map, true, read::labels, fleet.labels),
    agent!("fleet.keys", Paths, true, read::key_files, fleet.keys),
    agent!(
        "fleet.threshold",
        Scalar,
        true,
        |t| read::whole(t, 1, limits::FLEET_KEYS),
        fleet.threshold
    ),
    agent!("fleet.inbox", Path, true, read::inbox, fleet.inbox),
    agent!("fleet.probation", Scalar, true, |t| between(t, 1, 604_800), fleet.probation),
    agent!("fleet.bandwidth", Scalar, true, read::bandwidth, fleet.bandwidth),
    agent!("fleet.mqtt.url", Scalar, true, read::broker, fleet.mqtt.url),
    agent!("fleet.mqtt.fleet", Scalar, true, read::fleet, fleet.mqtt.fleet),
    agent!("fleet.mqtt.ca", Path, true, read::path_or_auto, fleet.mqtt.ca),
    agent!(
        "fleet.mqtt.client_certificate",
        Path,
        true,
        read::secret_file,
        fleet.mqtt.client_certificate
    ),
    agent!("fleet.mqtt.client_key", Path, true, read::secret_file, fleet.mqtt.client_key),
    agent!("fleet.mqtt.username", Scalar, true, read::user_name, fleet.mqtt.username),
    agent!("fleet.mqtt.password_file", Path, true, read::secret_file, fleet.mqtt.password_file),
    agent!("fleet.mqtt.plaintext", Scalar, true, read::flag, fleet.mqtt.plaintext),
    agent!("fleet.poll.url", Scalar, true, web::poll_url, fleet.poll.url),
    agent!("fleet.poll.interval", Scalar, true, |t| between(t, 1, 604_800), fleet.poll.interval),
    agent!("fleet.poll.ca", Path, true, read::path_or_auto, fleet.poll.sign_in.ca),
    agent!(
        "fleet.poll.client_certificate",
        Path,
        true,
        read::secret_file,
        fleet.poll.sign_in.client_certificate
    ),
    agent!("fleet.poll.client_key", Path, true, read::secret_file, fleet.poll.sign_in.client_key),
    agent!("fleet.poll.username", Scalar, true, read::user_name, fleet.poll.sign_in.username),
    agent!(
        "fleet.poll.password_file",
        Path,
        true,
        read::secret_file,
        fleet.poll.sign_in.password_file
    ),
    agent!("fleet.poll.token_file", Path, true, read::secret_file, fleet.poll.sign_in.token_file),
    agent!("fleet.poll.plaintext", Scalar, true, read::flag, fleet.poll.plaintext),
    agent!("fleet.artifacts.hosts", Names, true, web::hosts, fleet.artifacts.hosts),
    agent!("fleet.artifacts.ca", Path, true, read::path_or_auto, fleet.artifacts.sign_in.ca),
    agent!(
        "fleet.artifacts.client_certificate",
        Path,
        true,
        read::secret_file,
        fleet.artifacts.sign_in.client_certificate
    ),
    agent!(
        "fleet.artifacts.client_key",
        Path,
        true,
        read::secret_file,
        fleet.artifacts.sign_in.client_key
    ),
    agent!(
        "fleet.artifacts.username",
        Scalar,
        true,
        read::user_name,
        fleet.artifacts.sign_in.username
    ),
    agent!(
        "fleet.artifacts.password_file",
        Path,
        true,
        read::secret_file,
        fleet.artifacts.sign_in.password_file
    ),
    agent!(
        "fleet.artifacts.token_file",
        Path,
        true,
        read::secret_file,
        fleet.artifacts.sign_in.token_file
    ),
];

/// Settings of one plugin, below `plugins: <name>:`, beside the `options` that are its provider's own.
pub static PLUGIN: &[Setting<Plugin>] = &[
    setting!(Plugin, "library", Path, false, read::path, library),
    setting!(Plugin, "sha256", Scalar, false, plugins::sha256, sha256),
    setting!(Plugin, "provider", Scalar, false, plugins::provider, provider),
    setting!(Plugin, "device", Scalar, false, read::device, device),
];

/// Settings of one who may come in, below `access: <name>:`.
pub static GRANT: &[Setting<Grant>] = &[
    setting!(Grant, "token_file", Path, false, read::secret_file, token_file),
    setting!(Grant, "certificate", Scalar, false, access::certificate_name, certificate),
    setting!(Grant, "scopes", Names, false, access::scopes, scopes),
];

/// Settings of one model: under `defaults:`, under `models: <model>:`, and in
/// `<model>/policy.yaml`.
pub static MODEL: &[Setting<ModelConfig>] = &[
    model!("execution_providers", Names, wanted::execution_providers, execution_providers),
    model!("budget", Pair, read::budget, budget),
    model!("quality_floor", Scalar, |t| read::number(t, 0.0, 1.0), quality_floor),
    model!("quality.shadow", Scalar, read::share, quality.shadow),
    model!("instances", Scalar, |t| read::whole(t, 1, limits::INSTANCES), instances),
    model!("intra_op_threads", Scalar, read::threads, intra_op_threads),
    model!("cpus", List, read::cpus, cpus),
    model!("queue_length", Scalar, |t| read::whole(t, 1, limits::LONGEST_QUEUE), queue_length),
    model!("request_timeout", Scalar, read::wait, request_timeout),
    model!("max_batch", Scalar, |t| read::whole(t, 1, limits::BATCH_ROWS), max_batch),
    model!("max_queue_delay", Scalar, |t| millis(t, 0, 1000), max_queue_delay),
    model!("shapes", Maps, served_shapes, shapes),
    model!("priority", Scalar, read::priority, priority),
    model!("governor.window", Scalar, |t| millis(t, 100, 60_000), governor.window),
    model!("governor.dwell", Scalar, |t| millis(t, 100, 3_600_000), governor.dwell),
    model!("governor.margin", Scalar, |t| read::number(t, 1.0, 10.0), governor.margin),
    model!("governor.headroom", Scalar, |t| read::number(t, 1.0, 10.0), governor.headroom),
    model!("governor.sustain", Scalar, |t| millis(t, 0, 3_600_000), governor.sustain),
    model!("governor.probation", Scalar, |t| millis(t, 0, 3_600_000), governor.probation),
    model!("ladder.enabled", Scalar, read::flag, ladder.enabled),
    model!("ladder.ratios", List, read::ratios, ladder.ratios),
    model!("ladder.method", Scalar, read::method, ladder.method),
    model!("ladder.seed", Scalar, read::seed, ladder.seed),
    model!("calibration.live", Scalar, read::flag, calibration.live),
    model!(
        "calibration.samples",
        Scalar,
        |t| read::whole(t, 1, limits::CALIBRATION_SAMPLES),
        calibration.samples
    ),
];

fn between(text: &str, least_s: u64, most_s: u64) -> Result<Span, Wrong> {
    read::span_within(text, Span::secs(least_s), Span::secs(most_s))
}

fn millis(text: &str, least: u64, most: u64) -> Result<Span, Wrong> {
    read::span_within(text, Span::millis(least), Span::millis(most))
}

/// One value that a layer sets.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Set {
    Agent(&'static Setting<Config>, String, Origin),
    Defaults(Assigned),
    Model(String, Assigned),
    Plugin(Said),
    Access(Given),
    /// The version that a text names, which this program understands.
    Version(Origin),
}

impl<T> PartialEq for Setting<T> {
    fn eq(&self, other: &Self) -> bool {
        self.path == other.path
    }
}

/// Reads the agent's file.
pub(super) fn read_agent(file: &str, text: &str) -> (Vec<Set>, Vec<Problem>) {
    let mut reader = Reader::new(file);
    let mut sets = Vec::new();
    if let Some(root) = reader.document(text) {
        reader.agent(root, &mut sets);
    }
    (sets, reader.sorted())
}

/// Reads the `config` of a bundle, which has a revision where it is in force.
pub(super) fn read_fleet(
    file: &str,
    revision: Option<u64>,
    config: Node,
) -> (Vec<Set>, Vec<Problem>) {
    let mut reader = Reader { revision, ..Reader::new(file) };
    let mut sets = Vec::new();
    let root = reader.entries(config, "config");
    reader.agent(root, &mut sets);
    (sets, reader.sorted())
}

/// Reads a model's `policy.yaml`.
pub(super) fn read_model(file: &str, text: &str) -> (Vec<Assigned>, Vec<Problem>) {
    let mut reader = Reader::new(file);
    let Some(root) = reader.document(text) else { return (Vec::new(), reader.problems) };
    let Some((root, _)) = reader.version(root) else { return (Vec::new(), reader.problems) };
    let found = reader.map(MODEL, root, "", &[version::KEY]);
    (found.into_iter().map(Assigned::from).collect(), reader.sorted())
}

/// The entries of a map.
type Entries = Vec<(Key, Node)>;

/// How a list of maps is written.
const MAPS: &str = "write a list of maps, such as [{batch: 1}, {batch: 4}]";

type Found<T> = (&'static Setting<T>, String, Origin);

/// Walks a tree along a table of settings and collects what is wrong.
struct Reader {
    file: Arc<str>,
    /// Of the bundle that the text is part of.
    revision: Option<u64>,
    problems: Vec<Problem>,
}

impl Reader {
    fn new(file: &str) -> Self {
        Self { file: file.into(), revision: None, problems: Vec::new() }
    }

    fn origin(&self, at: At) -> Origin {
        let (file, At { line, column }) = (Arc::clone(&self.file), at);
        match self.revision {
            Some(revision) => Origin::Fleet { revision, file, line, column },
            None => Origin::File { file, line, column },
        }
    }

    fn problem(&mut self, at: At, what: String, right: String) {
        let origin = self.origin(at);
        self.problems.push(Problem { origin, what, right });
    }

    fn sorted(mut self) -> Vec<Problem> {
        self.problems.sort();
        self.problems
    }

    fn document(&mut self, text: &str) -> Option<Vec<(Key, Node)>> {
        match parse(text) {
            Ok(node) => Some(self.entries(node, "the file")),
            Err(error) => {
                self.problem(error.at, error.what, "write one YAML document".to_owned());
                None
            }
        }
    }

    /// The entries of a map; nothing written is an empty map. Repeated keys are a problem.
    fn entries(&mut self, node: Node, name: &str) -> Vec<(Key, Node)> {
        let entries = match node.value {
            Value::Null => Vec::new(),
            Value::Map(entries) => entries,
            Value::Scalar(_) | Value::List(_) => {
                let right = "write `key: value` lines, indented by two spaces".to_owned();
                self.problem(node.at, format!("{name} is not a map"), right);
                Vec::new()
            }
        };
        let mut seen: Vec<(Key, Node)> = Vec::new();
        for (key, node) in entries {
            match seen.iter().find(|(known, _)| known.text == key.text) {
                Some((known, _)) => {
                    let what = format!("`{}` stands here for the second time", key.text);
                    let right = format!("the first is in line {}: keep one", known.at.line);
                    self.problem(key.at, what, right);
                }
                None => seen.push((key, node)),
            }
        }
        seen
    }

    /// The entries without the version that they name, and its place; `None` where that is not understood.
    fn version(&mut self, entries: Entries) -> Option<(Entries, Option<Origin>)> {
        let (named, rest): (Entries, Entries) =
            entries.into_iter().partition(|(key, _)| key.text == version::KEY);
        let Some((_, node)) = named.into_iter().next() else { return Some((rest, None)) };
        let checked = match &node.value {
            Value::Scalar(text) => version::check(text),
            Value::Null => version::check(""),
            Value::List(_) | Value::Map(_) => version::check("what stands here"),
        };
        match checked {
            Ok(()) => Some((rest, Some(self.origin(node.at)))),
            Err(Wrong { what, right }) => {
                self.problem(node.at, what, right);
                None
            }
        }
    }

    /// The settings of the agent, of all models and of single ones.
    fn agent(&mut self, root: Vec<(Key, Node)>, sets: &mut Vec<Set>) {
        let Some((root, version)) = self.version(root) else { return };
        sets.extend(version.map(Set::Version));
        let own: Vec<(Key, Node)> = root
            .into_iter()
            .filter_map(|(key, node)| match key.text.as_str() {
                "defaults" => {
                    let found = self.settings(MODEL, node, "defaults");
                    sets.extend(found.into_iter().map(Set::Defaults));
                    None
                }
                "models" => {
                    for (name, node) in self.entries(node, "models") {
                        if let Err(error) = check_model_name(&name.text) {
                            let right = "rename the model".to_owned();
                            self.problem(name.at, error.to_string(), right);
                            continue;
                        }
                        let found = self.settings(MODEL, node, &format!("models.{}", name.text));
                        let model = |item| Set::Model(name.text.clone(), item);
                        sets.extend(found.into_iter().map(model));
                    }
                    None
                }
                "plugins" => {
                    for (name, node) in self.entries(node, "plugins") {
                        if let Err(wrong) = plugins::check_name(&name.text) {
                            self.problem(name.at, wrong.what, wrong.right);
                            continue;
                        }
                        sets.extend(self.plugin(&name, node).into_iter().map(Set::Plugin));
                    }
                    None
                }
                "access" => {
                    for (name, node) in self.entries(node, "access") {
                        if let Err(wrong) = access::check_name(&name.text) {
                            self.problem(name.at, wrong.what, wrong.right);
                            continue;
                        }
                        sets.extend(self.grant(&name, node).into_iter().map(Set::Access));
                    }
                    None
                }
                _ => Some((key, node)),
            })
            .collect();
        let also = ["defaults", "models", "plugins", "access", version::KEY];
        let found = self.map(AGENT, own, "", &also);
        sets.extend(found.into_iter().map(|(setting, text, at)| Set::Agent(setting, text, at)));
    }

    fn settings(
        &mut self,
        table: &'static [Setting<ModelConfig>],
        node: Node,
        name: &str,
    ) -> Vec<Assigned> {
        let entries = self.entries(node, name);
        self.map(table, entries, "", &[]).into_iter().map(Assigned::from).collect()
    }

    /// All that is said of one who may come in.
    fn grant(&mut self, name: &Key, node: Node) -> Vec<Given> {
        let given =
            |setting, text, origin| Given { name: name.text.clone(), setting, text, origin };
        let itself = given(None, String::new(), self.origin(name.at));
        let entries = self.entries(node, &format!("access.{}", name.text));
        let found = self.map(GRANT, entries, "", &[]).into_iter();
        let settings = found.map(|(setting, text, origin)| given(Some(setting), text, origin));
        std::iter::once(itself).chain(settings).collect()
    }

    /// All that is said of one plugin.
    fn plugin(&mut self, name: &Key, node: Node) -> Vec<Said> {
        let said = |part, text, origin| Said { name: name.text.clone(), part, text, origin };
        let mut all = vec![said(Part::Itself, String::new(), self.origin(name.at))];
        let entries = self.entries(node, &format!("plugins.{}", name.text));
        let (options, own): (Vec<_>, Vec<_>) =
            entries.into_iter().partition(|(key, _)| key.text == "options");
        for (setting, text, origin) in self.map(PLUGIN, own, "", &["options"]) {
            all.push(said(Part::Setting(setting), text, origin));
        }
        for (_, node) in options {
            for (key, node) in self.entries(node, "options") {
                let origin = self.origin(node.at);
                match node.value {
                    Value::Scalar(text) => all.push(said(Part::Option(key.text), text, origin)),
                    Value::Null | Value::List(_) | Value::Map(_) => {
                        let what = format!("the option `{}` has no single value", key.text);
                        self.problem(node.at, what, "write a single value".to_owned());
                    }
                }
            }
        }
        all
    }

    /// Settings below `prefix`; `also` are keys that the caller understands itself.
    fn map<T: Default>(
        &mut self,
        table: &'static [Setting<T>],
        entries: Vec<(Key, Node)>,
        prefix: &str,
        also: &[&'static str],
    ) -> Vec<Found<T>> {
        let mut found = Vec::new();
        for (key, node) in entries {
            let path = format!("{prefix}{}", key.text);
            if let Some(setting) = table.iter().find(|setting| setting.path == path) {
                found.extend(self.value(setting, node).map(|(text, at)| (setting, text, at)));
                continue;
            }
            let below = format!("{path}.");
            if !key.text.contains('.') && table.iter().any(|s| s.path.starts_with(&below)) {
                let entries = self.entries(node, &path);
                found.extend(self.map(table, entries, &below, &[]));
                continue;
            }
            let siblings = table.iter().filter_map(|setting| {
                setting.path.strip_prefix(prefix).and_then(|rest| rest.split('.').next())
            });
            let right = did_you_mean(&key.text, siblings.chain(also.iter().copied()));
            self.problem(key.at, format!("unknown key `{}`", key.text), right);
        }
        found
    }

    /// The text of one setting's value, if it has the right shape and is in range.
    fn value<T: Default>(&mut self, setting: &Setting<T>, node: Node) -> Option<(String, Origin)> {
        let at = node.at;
        let origin = self.origin(at);
        let text = match (setting.shape, node.value) {
            (_, Value::Null) => {
                let right = "write one, or remove the line for the default".to_owned();
                self.problem(at, format!("`{}` has no value", setting.path), right);
                return None;
            }
            (Shape::Path, Value::Scalar(text)) => self.beside_the_file(&text),
            (Shape::Paths, Value::Scalar(text)) => self.paths(&text),
            (
                Shape::Scalar
                | Shape::Flag
                | Shape::List
                | Shape::Names
                | Shape::Pair
                | Shape::Maps,
                Value::Scalar(text),
            ) => text,
            (Shape::List | Shape::Names, Value::List(items)) => self.list(setting, items)?,
            (Shape::Paths, Value::List(items)) => {
                let text = self.list(setting, items)?;
                self.paths(&text)
            }
            (Shape::Pair, Value::Map(entries)) => self.pair(setting.path, at, entries)?,
            (Shape::Map, Value::Map(entries)) => self.scalars(setting.path, entries)?,
            (Shape::Maps, Value::List(items)) => self.maps(setting, items)?,
            (_, Value::List(_) | Value::Map(_)) | (Shape::Map, Value::Scalar(_)) => {
                let right = match setting.shape {
                    Shape::Path | Shape::Scalar | Shape::Flag => "write a single value",
                    Shape::List => "write a list, such as [2, 3]",
                    Shape::Names => "write a list, such as [a, b]",
                    Shape::Pair => "write it as {p99: 40ms}",
                    Shape::Paths => "write a list of paths, such as [a.pub, b.pub]",
                    Shape::Map => "write it as {site: berlin}",
                    Shape::Maps => MAPS,
                };
                let what = format!("`{}` has a value of the wrong form", setting.path);
                self.problem(at, what, right.to_owned());
                return None;
            }
        };
        Some((text, origin))
    }

    /// Each item is read on its own first, so that a wrong one is blamed at its own place.
    fn list<T: Default>(&mut self, setting: &Setting<T>, items: Vec<Node>) -> Option<String> {
        let mut texts = Vec::new();
        for item in items {
            let Value::Scalar(text) = item.value else {
                let what = format!("an item of `{}` is not a single value", setting.path);
                self.problem(item.at, what, "write a list of single values".to_owned());
                return None;
            };
            if let Err(wrong) = (setting.set)(&mut T::default(), &text) {
                self.problem(item.at, wrong.what, wrong.right);
                return None;
            }
            texts.push(text);
        }
        Some(texts.join(", "))
    }

    /// Each item is a map, and is read on its own first.
    fn maps<T: Default>(&mut self, setting: &Setting<T>, items: Vec<Node>) -> Option<String> {
        let mut texts = Vec::new();
        for item in items {
            let Value::Map(entries) = item.value else {
                let what = format!("an item of `{}` is not a map", setting.path);
                self.problem(item.at, what, MAPS.to_owned());
                return None;
            };
            let text = self.scalars(setting.path, entries)?;
            // Nothing written would read as no item at all.
            let text = if text.is_empty() { ",".to_owned() } else { text };
            if let Err(wrong) = (setting.set)(&mut T::default(), &text) {
                self.problem(item.at, wrong.what, wrong.right);
                return None;
            }
            texts.push(text);
        }
        Some(if texts.is_empty() { ServedShapes::NONE.to_owned() } else { texts.join("; ") })
    }

    /// Several paths, each from the file's folder.
    fn paths(&self, text: &str) -> String {
        let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
        items.map(|item| self.beside_the_file(item)).collect::<Vec<_>>().join(", ")
    }

    /// `{a: b, c: d}` as `a=b, c=d`.
    fn scalars(&mut self, path: &str, entries: Vec<(Key, Node)>) -> Option<String> {
        let map = Node { at: At { line: 1, column: 1 }, value: Value::Map(entries) };
        let mut texts = Vec::new();
        for (key, node) in self.entries(map, path) {
            let Value::Scalar(text) = node.value else {
                let what = format!("`{path}.{}` is not a single value", key.text);
                self.problem(node.at, what, "write it as {site: berlin}".to_owned());
                return None;
            };
            texts.push(format!("{}={text}", key.text));
        }
        Some(texts.join(", "))
    }

    fn pair(&mut self, path: &str, at: At, entries: Vec<(Key, Node)>) -> Option<String> {
        if let [(key, Node { value: Value::Scalar(text), .. })] = entries.as_slice() {
            return Some(format!("{}: {text}", key.text));
        }
        let what = format!("`{path}` takes one percentile and its bound");
        self.problem(at, what, "write it as {p99: 40ms}".to_owned());
        None
    }

    /// Relative paths in a file start from its folder, so that it does not matter where the agent
    /// was started. `auto` and `none` are no paths.
    fn beside_the_file(&self, text: &str) -> String {
        let folder = std::path::Path::new(&*self.file).parent();
        match folder {
            Some(_) if text.starts_with(SecretFile::CREDENTIAL) => text.to_owned(),
            Some(folder) if !matches!(text, "auto" | "none" | "") => {
                folder.join(text).display().to_string()
            }
            _ => text.to_owned(),
        }
    }
}

/// Finds the setting that a path from the environment or a flag means: `defaults.budget`,
/// `models.NAME.instances`, and `….budget.p99` for the pair's own text.
pub(super) fn find(path: &str, text: &str, origin: &Origin) -> Result<Set, Wrong> {
    let assigned = |rest: &str| -> Result<Assigned, Wrong> {
        let (setting, text) = lookup(MODEL, rest, text)?;
        Ok(Assigned { setting, text, origin: origin.clone() })
    };
    if let Some(rest) = path.strip_prefix("defaults.") {
        return assigned(rest).map(Set::Defaults);
    }
    if let Some(rest) = path.strip_prefix("models.") {
        // Names may hold dots, so the setting is looked for from the end.
        let split = rest.match_indices('.').find_map(|(at, _)| {
            lookup(MODEL, &rest[at + 1..], text).is_ok().then_some((&rest[..at], &rest[at + 1..]))
        });
        let (name, rest) = split.or_else(|| rest.split_once('.')).ok_or_else(|| {
            Wrong::new("no setting of the model is named", "write models.NAME.budget")
        })?;
        check_model_name(name).map_err(|e| Wrong::new(e.to_string(), "rename the model"))?;
        return assigned(rest).map(|item| Set::Model(name.to_owned(), item));
    }
    if let Some(rest) = path.strip_prefix("plugins.") {
        return plugins::find(rest, text, origin).map(Set::Plugin);
    }
    if let Some(rest) = path.strip_prefix("access.") {
        return access::find(rest, text, origin).map(Set::Access);
    }
    let (setting, text) = lookup(AGENT, path, text)?;
    Ok(Set::Agent(setting, text, origin.clone()))
}

pub(super) fn lookup<T>(
    table: &'static [Setting<T>],
    path: &str,
    text: &str,
) -> Result<(&'static Setting<T>, String), Wrong> {
    if let Some(setting) = table.iter().find(|setting| setting.path == path) {
        return Ok((setting, text.to_owned()));
    }
    let pair = table.iter().find_map(|setting| {
        let rest = path.strip_prefix(setting.path)?.strip_prefix('.')?;
        (setting.shape == Shape::Pair).then(|| (setting, format!("{rest}: {text}")))
    });
    pair.ok_or_else(|| {
        let hint = did_you_mean(path, table.iter().map(|setting| setting.path));
        Wrong::new(format!("there is no setting `{path}`"), hint)
    })
}
