//! The configuration as every subcommand that follows it reads it: file, environment, flags.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context;
use blochd::config::{Config, Flag, Layers, Loaded, Policy, Text};
use blochd::limits;
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

/// Reads the layers anew: the file, then the parts beside it (`conf.d/*.yaml`) in the order of their names. A
/// relative path in a file starts from the file's folder, one in a variable or a flag from the working
/// directory.
///
/// # Errors
/// Everything that is wrong in any of them, or that a file cannot be read.
pub fn load(file: Option<&Path>, flags: &[Flag]) -> anyhow::Result<Loaded> {
    let texts = file.map(texts).transpose()?.unwrap_or_default();
    let files: Vec<Text> = texts.iter().map(|(file, text)| Text { file, text }).collect();
    let state_dir = places::state_dir();
    let mut base = Config::default();
    base.model_dir = state_dir.join("models");
    base.state_dir = state_dir;
    let environment: BTreeMap<String, String> = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    let layers = Layers { base, files: &files, fleet: None, environment: &environment, flags };
    Ok(layers.load()?)
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
