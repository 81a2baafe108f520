//! Built-in defaults < files, one after the other < the fleet's bundle < environment < flags, laid on top of
//! each other.

use std::collections::BTreeMap;

use super::access;
use super::belongs;
use super::checked::{Config, ModelConfig, apply};
use super::error::{ConfigErrors, Origin, Problem};
use super::fleet::{self, FleetPart};
use super::plugins;
use super::schema::{AGENT, MODEL, Set, Setting, find, read_agent};
use super::version;

/// What all variables of the agent begin with.
pub const VARIABLE_PREFIX: &str = "BLOCHD_";

/// Variables with our prefix that are no settings: the file to read is given by `BLOCHD_CONFIG`, the agent
/// that `status` asks by `BLOCHD_URL` and those after it. `BLOCHD_VERSION` is what images of containers often
/// call the program's.
const NOT_SETTINGS: &[&str] = &[
    "BLOCHD_CONFIG",
    "BLOCHD_URL",
    "BLOCHD_CA",
    "BLOCHD_TOKEN_FILE",
    "BLOCHD_CLIENT_CERTIFICATE",
    "BLOCHD_CLIENT_KEY",
    "BLOCHD_EXTRA_MODELS",
    "BLOCHD_VERSION",
];

/// The same by their beginnings: what the project's own benches and tests are told.
const NOT_SETTINGS_BELOW: &[&str] = &["BLOCHD_BENCH_", "BLOCHD_TEST_"];

/// A setting of a model with the text it was given and where.
#[derive(Debug, Clone)]
pub struct Assigned {
    pub(super) setting: &'static Setting<ModelConfig>,
    pub(super) text: String,
    pub(super) origin: Origin,
}

impl PartialEq for Assigned {
    /// Where a value was written makes no difference.
    fn eq(&self, other: &Self) -> bool {
        self.setting.path == other.setting.path && self.text == other.text
    }
}

impl From<(&'static Setting<ModelConfig>, String, Origin)> for Assigned {
    fn from((setting, text, origin): (&'static Setting<ModelConfig>, String, Origin)) -> Self {
        Self { setting, text, origin }
    }
}

/// A file's name (for errors, and as the start of relative paths) and its text.
#[derive(Debug, Clone, Copy)]
pub struct Text<'a> {
    pub file: &'a str,
    pub text: &'a str,
}

/// A command line flag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flag {
    /// As the person wrote it, for errors: `--http-address`.
    pub flag: String,
    /// Path of the setting: `http_address`, `defaults.budget`.
    pub path: String,
    pub text: String,
}

/// All that a configuration is made of.
#[derive(Debug, Clone)]
pub struct Layers<'a> {
    /// What holds where nothing is written: [`Config::default`], or with a state directory of the
    /// user who runs the program.
    pub base: Config,
    /// The agent's file, then the parts beside it: what a later one says comes over an earlier one.
    pub files: &'a [Text<'a>],
    /// The fleet's bundle that is in force: over what the box's own files say, under what whoever starts the
    /// agent says.
    pub fleet: Option<FleetPart<'a>>,
    /// The environment; only names that begin with [`VARIABLE_PREFIX`] are looked at. `__` stands
    /// between the levels: `BLOCHD_DEFAULTS__BUDGET="p99: 40ms"`, `BLOCHD_MODELS__ocr__INSTANCES=2`
    /// (a model's name is taken as it stands).
    pub environment: &'a BTreeMap<String, String>,
    pub flags: &'a [Flag],
}

/// A configuration that holds, and what a person should know about it.
#[derive(Debug, Clone, PartialEq)]
pub struct Loaded {
    pub config: Config,
    /// Variables with our prefix that name no setting. No error: Kubernetes alone sets seven of
    /// them (`BLOCHD_PORT`, …) for a service that is called blochd.
    pub warnings: Vec<Problem>,
    /// Where each setting was written last, by its full path; those that are not there have their defaults.
    pub origins: Origins,
}

impl Layers<'_> {
    /// Reads, merges and checks.
    ///
    /// # Errors
    /// Everything that is wrong in any of the layers.
    pub fn load(self) -> Result<Loaded, ConfigErrors> {
        let mut problems = Vec::new();
        let mut warnings = Vec::new();
        let mut sets = Vec::new();
        for Text { file, text } in self.files {
            let (found, wrong) = read_agent(file, text);
            sets.extend(found);
            problems.extend(wrong);
        }
        if let Some(part) = &self.fleet {
            let (found, wrong) = fleet::read(part);
            sets.extend(found);
            problems.extend(wrong);
        }
        for (name, text) in self.environment {
            let Some(rest) = name.strip_prefix(VARIABLE_PREFIX) else { continue };
            let ours = NOT_SETTINGS_BELOW.iter().any(|start| name.starts_with(start));
            if ours || NOT_SETTINGS.contains(&name.as_str()) {
                continue;
            }
            let origin = Origin::Variable(name.clone());
            match find(&path_of_variable(rest), text, &origin) {
                Ok(set) => sets.push(set),
                Err(wrong) => warnings.push(wrong.at(&origin)),
            }
        }
        for Flag { flag, path, text } in self.flags {
            let origin = Origin::Flag(flag.clone());
            match find(path, text, &origin) {
                Ok(set) => sets.push(set),
                Err(wrong) => problems.push(wrong.at(&origin)),
            }
        }
        let mut config = self.base;
        let origins = merge(&mut config, sets, &mut problems);
        // Models lie in the state directory where nobody says otherwise, wherever that is.
        if origins.contains_key("state_dir") && !origins.contains_key("model_dir") {
            config.model_dir = config.state_dir.join("models");
        }
        if problems.is_empty() {
            check(&config, &origins, &mut problems);
            problems.sort();
        }
        if problems.is_empty() {
            Ok(Loaded { config, warnings, origins })
        } else {
            Err(ConfigErrors(problems))
        }
    }
}

/// `DEFAULTS__QUEUE_LENGTH` → `defaults.queue_length`; a model's name and a provider's own option keep their
/// letters.
fn path_of_variable(rest: &str) -> String {
    let lower = rest.to_ascii_lowercase();
    if let Some(at) = lower.find("__options__").filter(|_| lower.starts_with("plugins__")) {
        let key = &rest[at + "__options__".len()..];
        return format!("{}.options.{key}", lower[..at].replace("__", "."));
    }
    let mut parts: Vec<String> = rest.split("__").map(str::to_lowercase).collect();
    if parts[0] == "models" && parts.len() > 2 {
        // The name may itself hold `__`: the setting is what remains after it.
        let inner = &rest["models__".len()..];
        let known = |path: &str| {
            MODEL.iter().any(|s| s.path == path || path.starts_with(&format!("{}.", s.path)))
        };
        let split = inner.match_indices("__").find_map(|(at, _)| {
            let path = inner[at + 2..].to_lowercase().replace("__", ".");
            known(&path).then(|| (inner[..at].to_owned(), path))
        });
        if let Some((name, path)) = split {
            return format!("models.{name}.{path}");
        }
        if let Some(name) = inner.split("__").next() {
            parts[1] = name.to_owned();
        }
    }
    parts.join(".")
}

/// Where each setting was last written, by full path.
pub type Origins = BTreeMap<String, Origin>;

pub(super) fn merge(config: &mut Config, sets: Vec<Set>, problems: &mut Vec<Problem>) -> Origins {
    let mut origins = Origins::new();
    for set in sets {
        match set {
            Set::Agent(setting, text, origin) => {
                match (setting.set)(config, &text) {
                    Ok(()) => origins.insert(setting.path.to_owned(), origin),
                    Err(wrong) => {
                        problems.push(wrong.at(&origin));
                        None
                    }
                };
            }
            Set::Defaults(item) => {
                apply(&mut config.defaults, std::slice::from_ref(&item), problems);
                origins.insert(format!("defaults.{}", item.setting.path), item.origin);
            }
            Set::Model(name, item) => {
                let mut probe = ModelConfig::default();
                apply(&mut probe, std::slice::from_ref(&item), problems);
                origins.insert(format!("models.{name}.{}", item.setting.path), item.origin.clone());
                config.models.entry(name).or_default().push(item);
            }
            Set::Plugin(said) => problems.extend(said.merge(config, &mut origins).err()),
            Set::Access(given) => problems.extend(given.merge(config, &mut origins).err()),
            Set::Version(origin) => drop(origins.insert(version::KEY.to_owned(), origin)),
        }
    }
    problems.sort();
    origins
}

/// What no single value can be blamed for.
fn check(config: &Config, origins: &Origins, problems: &mut Vec<Problem>) {
    let origin = |paths: [&str; 2]| {
        let found = paths.iter().find_map(|path| origins.get(*path));
        found.cloned().unwrap_or(Origin::Default)
    };
    if config.model_dir == config.state_dir {
        problems.push(Problem {
            origin: origin(["model_dir", "state_dir"]),
            what: format!("{} is both model_dir and state_dir", config.model_dir.display()),
            right: "give the models a directory of their own".to_owned(),
        });
    }
    if config.arrivals.rescan < config.arrivals.settle {
        problems.push(Problem {
            origin: origin(["arrivals.rescan", "arrivals.settle"]),
            what: format!(
                "rescan {} is shorter than settle {}",
                config.arrivals.rescan, config.arrivals.settle
            ),
            right: "write a rescan of at least the settle time".to_owned(),
        });
    }
    access::check(config, origins, &origin, problems);
    plugins::check(config, origins, problems);
    belongs::check(&config.fleet, config, &origin, problems);
    config.defaults.check(
        &config.plugins,
        |path| origins.get(&format!("defaults.{path}")).cloned().unwrap_or(Origin::Default),
        problems,
    );
    if problems.is_empty() {
        for model in config.models.keys() {
            if let Err(ConfigErrors(found)) = config.model(model, None) {
                problems.extend(found);
            }
        }
    }
}

/// Every setting's path and the text of its value, in the order of the table, those of single models, plugins
/// and clients left out: what `configs/agent.yaml` documents and a person may ask for.
pub fn settings(config: &Config) -> Vec<(String, String)> {
    let agent = AGENT.iter().map(|s| (s.path.to_owned(), (s.get)(config)));
    let model = model_settings(&config.defaults);
    agent.chain(model.map(|(path, text)| (format!("defaults.{path}"), text))).collect()
}

/// The same of one model's settings.
pub fn model_settings(config: &ModelConfig) -> impl Iterator<Item = (&'static str, String)> {
    MODEL.iter().map(|s| (s.path, (s.get)(config)))
}
