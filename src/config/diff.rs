//! What a new configuration changes.

use std::collections::{BTreeMap, BTreeSet};

use super::access::grant_settings;
use super::checked::Config;
use super::plugins::plugin_settings;
use super::schema::{AGENT, MODEL};

/// One setting's old and new value, as text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// `http_address`, `defaults.budget`.
    pub path: String,
    pub from: String,
    pub to: String,
    /// Whether it holds only from the next start on.
    pub restart: bool,
}

/// What a new configuration changes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Diff {
    /// Changed settings of the agent and of the defaults.
    pub changes: Vec<Change>,
    /// Models whose own part under `models:` changed, came or went.
    pub models: BTreeSet<String>,
    /// Whether `defaults`, or what is said of execution providers, changed: every model is touched then.
    pub defaults: bool,
}

impl Diff {
    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty() && self.models.is_empty()
    }

    /// The changes that need a restart.
    pub fn restart(&self) -> impl Iterator<Item = &Change> {
        self.changes.iter().filter(|change| change.restart)
    }

    /// Settings of what has a name of its own, by their full paths.
    fn compare_named(&mut self, old: &BTreeMap<String, String>, new: &BTreeMap<String, String>) {
        let paths: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
        for path in paths.into_iter().filter(|path| old.get(*path) != new.get(*path)) {
            let text = |all: &BTreeMap<String, String>| {
                all.get(path).cloned().unwrap_or_else(|| "none".to_owned())
            };
            let (from, to) = (text(old), text(new));
            self.changes.push(Change { path: path.clone(), from, to, restart: false });
        }
    }

    /// Whether `model` may have another policy now.
    pub fn touches(&self, model: &str) -> bool {
        self.defaults || self.models.contains(model)
    }
}

fn of_plugins(config: &Config) -> BTreeMap<String, String> {
    let of = |(name, plugin)| {
        let own = plugin_settings(plugin).into_iter();
        own.map(move |(path, text)| (format!("plugins.{name}.{path}"), text))
    };
    config.plugins.iter().flat_map(of).collect()
}

fn of_access(config: &Config) -> BTreeMap<String, String> {
    let of = |(name, grant)| {
        let own = grant_settings(grant);
        own.map(move |(path, text)| (format!("access.{name}.{path}"), text))
    };
    config.access.iter().flat_map(of).collect()
}

impl Config {
    /// What `new` changes against `old`.
    pub fn diff(old: &Self, new: &Self) -> Diff {
        let mut diff = Diff::default();
        for setting in AGENT {
            let (from, to) = ((setting.get)(old), (setting.get)(new));
            if from != to {
                let path = setting.path.to_owned();
                diff.changes.push(Change { path, from, to, restart: setting.restart });
            }
        }
        for setting in MODEL {
            let (from, to) = ((setting.get)(&old.defaults), (setting.get)(&new.defaults));
            if from != to {
                let path = format!("defaults.{}", setting.path);
                diff.changes.push(Change { path, from, to, restart: setting.restart });
                diff.defaults = true;
            }
        }
        diff.compare_named(&of_plugins(old), &of_plugins(new));
        diff.compare_named(&of_access(old), &of_access(new));
        // What runs a model may be another one now.
        diff.defaults |= old.cann != new.cann || old.plugins != new.plugins;
        let named = old.models.keys().chain(new.models.keys());
        diff.models =
            named.filter(|name| old.models.get(*name) != new.models.get(*name)).cloned().collect();
        diff
    }

    /// `new` with those settings of `self` that only a restart changes: what the running agent goes
    /// on with.
    pub fn keeping_what_needs_a_restart(&self, new: &Self) -> Self {
        let mut kept = new.clone();
        kept.model_dir = self.model_dir.clone();
        kept.state_dir = self.state_dir.clone();
        kept.http_address = self.http_address;
        kept.grpc_address = self.grpc_address;
        kept.unix_socket = self.unix_socket.clone();
        kept.admin_address = self.admin_address;
        kept.shared_memory = self.shared_memory;
        kept.metrics_address = self.metrics_address;
        kept.runtime_library = self.runtime_library.clone();
        kept.log_format = self.log_format;
        kept.otlp_endpoint = self.otlp_endpoint.clone();
        kept.otlp_share = self.otlp_share;
        kept.fleet = self.fleet.clone();
        kept
    }
}
