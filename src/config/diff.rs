//! What a new configuration changes.

use std::collections::{BTreeMap, BTreeSet};

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

    fn compare_plugins(&mut self, old: &Config, new: &Config) {
        let names: BTreeSet<&String> = old.plugins.keys().chain(new.plugins.keys()).collect();
        let of = |config: &Config, name: &String| -> BTreeMap<String, String> {
            let plugin = config.plugins.get(name);
            plugin.map(plugin_settings).unwrap_or_default().into_iter().collect()
        };
        for name in names {
            let (before, after) = (of(old, name), of(new, name));
            let paths: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
            for path in paths.into_iter().filter(|path| before.get(*path) != after.get(*path)) {
                let text = |all: &BTreeMap<String, String>| {
                    all.get(path).cloned().unwrap_or_else(|| "none".to_owned())
                };
                let (from, to) = (text(&before), text(&after));
                let path = format!("plugins.{name}.{path}");
                self.changes.push(Change { path, from, to, restart: false });
            }
        }
    }

    /// Whether `model` may have another policy now.
    pub fn touches(&self, model: &str) -> bool {
        self.defaults || self.models.contains(model)
    }
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
        diff.compare_plugins(old, new);
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
