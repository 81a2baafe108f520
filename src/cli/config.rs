//! `blochd config`: what the agent would make of its configuration, and from where it has each value.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use anyhow::anyhow;
use blochd::config::{
    Config, ConfigErrors, Loaded, Origin, Policy, grant_settings, json_schema, model_settings,
    plugin_settings, settings, version,
};
use blochd::shell::serve::Gate;
use blochd::units::check_model_name;
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::{Code, Failure, OrFail, configured};

/// Check the configuration, or show what holds and where it was written.
///
/// Built-in defaults < agent.yaml < the parts in conf.d beside it, in the order of their names < the fleet's
/// bundle that is in force < environment < flags; for a model also `defaults` < its policy.yaml < `models:`.
/// Exit code 78 for a wrong configuration, 74 where a file cannot be read.
#[derive(Debug, Args)]
pub struct ConfigCommand {
    #[command(subcommand)]
    what: What,
    /// The configuration. Without: `/etc/blochd/agent.yaml` where it is there, else the defaults.
    #[arg(long, env = "BLOCHD_CONFIG", global = true)]
    config: Option<PathBuf>,
    /// Print JSON.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Say all that is wrong, with file, line and column: of the configuration, and of the policies in the
    /// model directory. Say what is wrong with certificates, keys and tokens, as far as they can be read,
    /// and to whom each port is open.
    Check,
    /// Show every value.
    Show {
        /// Leave out what has its default.
        #[arg(long)]
        changed: bool,
        /// What holds for this model, its policy.yaml in the model directory included.
        #[arg(long)]
        model: Option<String>,
        /// Name where each value was written, or that it is the default [default: on a terminal].
        #[arg(long)]
        effective: bool,
    },
    /// Print the JSON Schema that editors check agent.yaml by.
    Schema {
        /// That of a model's policy.yaml.
        #[arg(long)]
        policy: bool,
    },
}

/// A setting as it holds.
struct Held {
    path: String,
    value: String,
    origin: Origin,
}

impl ConfigCommand {
    pub fn run(self) -> Result<(), Failure> {
        let file = configured::file(self.config);
        match self.what {
            What::Schema { policy } => {
                let schema = if policy { json_schema::policy() } else { json_schema::agent() };
                println!("{schema:#}");
                Ok(())
            }
            What::Check => check(file.as_deref(), self.json),
            What::Show { changed, model, effective } => {
                let loaded =
                    configured::load_and_warn(file.as_deref(), &[]).map_err(configured::failed)?;
                let mut held = match model {
                    Some(model) => of_model(&loaded, &model)?,
                    None => of_agent(&loaded),
                };
                held.retain(|one| !changed || one.origin != Origin::Default);
                match self.json {
                    true => println!("{:#}", tree(&held)),
                    false => print(&held, effective || std::io::stdout().is_terminal()),
                }
                Ok(())
            }
        }
    }
}

fn of_agent(loaded: &Loaded) -> Vec<Held> {
    // Whatever version a text was written for, what holds is of this one.
    let mut all = vec![(version::KEY.to_owned(), version::VERSION.to_string())];
    all.extend(settings(&loaded.config));
    for (name, plugin) in &loaded.config.plugins {
        let own = plugin_settings(plugin).into_iter();
        all.extend(own.map(|(path, text)| (format!("plugins.{name}.{path}"), text)));
    }
    for (name, grant) in &loaded.config.access {
        let own = grant_settings(grant);
        all.extend(own.map(|(path, text)| (format!("access.{name}.{path}"), text)));
    }
    // Of single models only what was written for them.
    for model in loaded.config.named_models() {
        let Ok(own) = loaded.config.model(model, None) else { continue };
        let own = model_settings(&own).map(|(path, text)| (format!("models.{model}.{path}"), text));
        all.extend(own.filter(|(path, _)| loaded.origins.contains_key(path)));
    }
    let origin = |path: &str| loaded.origins.get(path).cloned().unwrap_or(Origin::Default);
    all.into_iter().map(|(path, value)| Held { origin: origin(&path), path, value }).collect()
}

fn of_model(loaded: &Loaded, model: &str) -> Result<Vec<Held>, Failure> {
    check_model_name(model).code(Code::Usage)?;
    let path = loaded.config.model_dir.join(model).join("policy.yaml");
    let policy = match path.is_file() {
        true => Some(configured::policy(&path)?),
        false => None,
    };
    let config = loaded.config.model(model, policy.as_ref()).code(Code::Config)?;
    let by_policy = policy.as_ref().map(Policy::origins).unwrap_or_default();
    let origin = |path: &str| {
        let own = loaded.origins.get(&format!("models.{model}.{path}"));
        let below = by_policy.get(path).or_else(|| loaded.origins.get(&format!("defaults.{path}")));
        own.or(below).cloned().unwrap_or(Origin::Default)
    };
    let held =
        |(path, value): (&str, String)| Held { origin: origin(path), path: path.to_owned(), value };
    Ok(model_settings(&config).map(held).collect())
}

/// `path: value`, with the origin as a comment behind it.
fn print(held: &[Held], with_origins: bool) {
    let line = |one: &Held| format!("{}: {}", one.path, one.value);
    let width = held.iter().map(|one| line(one).chars().count()).max().unwrap_or(0).min(60);
    for one in held {
        match with_origins {
            true => println!("{:width$}  # {}", line(one), one.origin),
            false => println!("{}", line(one)),
        }
    }
}

fn tree(held: &[Held]) -> Value {
    let one = |one: &Held| {
        let from = match &one.origin {
            Origin::Default => json!({ "layer": "default" }),
            Origin::File { file, line, column } => {
                json!({ "layer": "file", "file": &**file, "line": line, "column": column })
            }
            Origin::Fleet { revision, file, line, column } => json!({
                "layer": "fleet", "revision": revision, "file": &**file, "line": line,
                "column": column,
            }),
            Origin::Variable(name) => json!({ "layer": "environment", "name": name }),
            Origin::Flag(name) => json!({ "layer": "flag", "name": name }),
        };
        (one.path.clone(), json!({ "value": one.value, "from": from }))
    };
    held.iter().map(one).collect::<serde_json::Map<_, _>>().into()
}

/// Everything that is wrong, of all files at once.
fn check(file: Option<&Path>, as_json: bool) -> Result<(), Failure> {
    let mut wrong: Vec<ConfigErrors> = Vec::new();
    let mut policies = 0;
    let mut openings: Vec<_> = Vec::new();
    match configured::load_and_warn(file, &[]) {
        Ok(loaded) => {
            openings = loaded
                .config
                .ports()
                .into_iter()
                .map(|(setting, at)| (setting, at, loaded.config.opening(at)))
                .collect();
            // What the service reads, others may not.
            Gate::check(&loaded.config).iter().for_each(|file| eprintln!("blochd: {file}"));
            policies = check_policies(&loaded.config, &mut wrong)?;
        }
        Err(error) => match error.downcast::<ConfigErrors>() {
            Ok(errors) => wrong.push(errors),
            Err(error) => return Err(configured::failed(error)),
        },
    }
    let problems: Vec<_> = wrong.iter().flat_map(|errors| &errors.0).collect();
    if as_json {
        let one = |problem: &&blochd::config::Problem| {
            let (file, line, column) = match &problem.origin {
                Origin::File { file, line, column } | Origin::Fleet { file, line, column, .. } => {
                    (Some(&**file), Some(*line), Some(*column))
                }
                Origin::Default | Origin::Variable(_) | Origin::Flag(_) => (None, None, None),
            };
            json!({ "origin": problem.origin.to_string(), "file": file, "line": line,
                "column": column, "what": problem.what, "right": problem.right })
        };
        println!("{:#}", problems.iter().map(one).collect::<Value>());
    }
    if problems.is_empty() {
        let name = file.map_or("the defaults".to_owned(), |file| file.display().to_string());
        if !as_json {
            println!("{name} is right; policies that are right, too: {policies}.");
            for (setting, at, opening) in openings {
                println!("{setting} {at} is open to {opening}.");
            }
        }
        return Ok(());
    }
    let said = wrong.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
    Err(Failure { code: Code::Config, error: anyhow!("the configuration is wrong:\n{said}") })
}

/// Reads the policy of every model that has one, and what it comes to with the rest; gives how many have.
fn check_policies(config: &Config, wrong: &mut Vec<ConfigErrors>) -> Result<usize, Failure> {
    let mut found = BTreeMap::new();
    let Ok(entries) = std::fs::read_dir(&config.model_dir) else { return Ok(0) };
    for entry in entries {
        let path = entry.code(Code::Io)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let path = path.join("policy.yaml");
        if check_model_name(&name).is_ok() && path.is_file() {
            found.insert(name, path);
        }
    }
    for (model, path) in &found {
        let checked = match configured::policy(path) {
            Ok(policy) => config.model(model, Some(&policy)).map(drop),
            Err(Failure { error, code }) => match error.downcast::<ConfigErrors>() {
                Ok(errors) => Err(errors),
                Err(error) => return Err(Failure { code, error }),
            },
        };
        wrong.extend(checked.err());
    }
    Ok(found.len())
}
