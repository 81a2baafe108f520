//! The configuration as every subcommand that follows it reads it: file, environment, flags.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context;
use blochd::config::{
    Config, ConfigErrors, Flag, FleetPart, Layers, Loaded, Origin, Policy, Problem, Text,
};
use blochd::fleet::Document;
use blochd::limits;
use blochd::shell::store::{self, KeptBundle};
use blochd::shell::{config_parts, files, places};

use super::{Code, Failure, OrFail};

/// Looked for when no configuration is named.
const SYSTEM_CONFIG: &str = "/etc/blochd/agent.yaml";

/// The file that holds: the one that was named, else the system's, where it or parts beside it are there.
pub fn file(named: Option<PathBuf>) -> Option<PathBuf> {
    let there = |path: &PathBuf| path.is_file() || config_parts::folder(path).is_dir();
    named.or_else(|| Some(PathBuf::from(SYSTEM_CONFIG)).filter(there))
}

/// A flag of the command line that stands for a setting; `None` where it was not given.
pub fn flag(flag: &str, path: &str, text: Option<&str>) -> Option<Flag> {
    let text = text?.to_owned();
    Some(Flag { flag: flag.to_owned(), path: path.to_owned(), text })
}

/// Reads the layers anew: the file, then the parts beside it (`conf.d/*.yaml`) in the order of their names,
/// then the part of the fleet's bundle that is in force. A relative path in a file starts from the file's
/// folder, one in a variable or a flag from the working directory.
///
/// # Errors
/// Everything that is wrong in any of them, or that a file cannot be read.
pub fn load(file: Option<&Path>, flags: &[Flag]) -> anyhow::Result<Loaded> {
    load_with(file, flags, None)
}

/// The same with the part of `bundle` in place of that in force.
///
/// # Errors
/// As [`load`].
pub fn load_with(
    file: Option<&Path>,
    flags: &[Flag],
    bundle: Option<&KeptBundle>,
) -> anyhow::Result<Loaded> {
    let texts = file.map(texts).transpose()?.unwrap_or_default();
    let files: Vec<Text> = texts.iter().map(|(file, text)| Text { file, text }).collect();
    let environment: BTreeMap<String, String> = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    let layers = |fleet: Option<FleetPart>| {
        let state_dir = places::state_dir();
        let mut base = Config::default();
        base.model_dir = state_dir.join("models");
        base.state_dir = state_dir;
        Layers { base, files: &files, fleet, environment: &environment, flags }.load()
    };
    // Only without it is it known where the bundle lies.
    let mut own = layers(None)?;
    let found = match bundle {
        Some(bundle) => Ok(Some(bundle.clone())),
        None => store::in_force(&own.config.state_dir),
    };
    let read = found.and_then(|found| found.map(document).transpose());
    match read {
        Ok(None) => Ok(own),
        Ok(Some((file, Document { revision, config: Some(config), .. }))) => {
            Ok(layers(Some(FleetPart { file: &file, revision, config: &config }))?)
        }
        Ok(Some((_, Document { config: None, .. }))) => Ok(own),
        Err(what) if bundle.is_some() => Err(anyhow::anyhow!(what)),
        // The box goes on with what it says itself rather than not at all.
        Err(what) => {
            let file = own.config.state_dir.join("fleet").display().to_string().into();
            let origin = Origin::File { file, line: 1, column: 1 };
            let right = "what the fleet set does not hold: send the bundle again".to_owned();
            own.warnings.push(Problem { origin, what, right });
            Ok(own)
        }
    }
}

/// A kept bundle's name and what it says.
fn document(kept: KeptBundle) -> Result<(String, Document), String> {
    let file = kept.path.display().to_string();
    let read = Document::parse(&file, &kept.document);
    read.map(|document| (file, document)).map_err(|errors| errors.to_string())
}

/// Name and text of the file and of the parts beside it.
fn texts(path: &Path) -> anyhow::Result<Vec<(String, String)>> {
    let parts = config_parts::list(path)
        .with_context(|| format!("cannot list {}", config_parts::folder(path).display()))?;
    // The system's file need not be there where parts are.
    let own = path.is_file() || path != Path::new(SYSTEM_CONFIG);
    own.then(|| path.to_owned())
        .into_iter()
        .chain(parts)
        .map(|path| {
            let name = path.display().to_string();
            let text = files::read_text(&path, limits::CONFIG_FILE_BYTES)
                .with_context(|| format!("cannot read the configuration {name}"))?;
            Ok((name, text))
        })
        .collect()
}

/// The same for a command that ends soon: warnings go to standard error.
///
/// # Errors
/// As [`load`].
pub fn load_and_warn(file: Option<&Path>, flags: &[Flag]) -> anyhow::Result<Loaded> {
    let loaded = load(file, flags)?;
    loaded.warnings.iter().for_each(|warning| eprintln!("blochd: {warning}"));
    Ok(loaded)
}

/// Why the layers do not hold: under one code what is wrong in them, under another that a file cannot be read.
pub fn failed(error: anyhow::Error) -> Failure {
    let code = if error.is::<ConfigErrors>() { Code::Config } else { Code::Io };
    Failure { code, error }
}

/// Reads a model's policy.
///
/// # Errors
/// Where it cannot be read, or all that is wrong in it.
pub fn policy(path: &Path) -> Result<Policy, Failure> {
    let name = path.display().to_string();
    let text = files::read_text(path, limits::CONFIG_FILE_BYTES)
        .with_context(|| format!("cannot read {name}"))
        .code(Code::Io)?;
    Policy::parse(&name, &text).code(Code::Config)
}
