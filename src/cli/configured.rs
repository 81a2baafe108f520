//! The configuration as every subcommand that follows it reads it: file, environment, flags.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context;
use blochd::config::{Config, Flag, Layers, Loaded, Text};
use blochd::limits;
use blochd::shell::{files, places};

/// Looked for when no configuration is named.
const SYSTEM_CONFIG: &str = "/etc/blochd/agent.yaml";

/// The file that holds: the one that was named, else the system's, where it is there.
pub fn file(named: Option<PathBuf>) -> Option<PathBuf> {
    named.or_else(|| Some(PathBuf::from(SYSTEM_CONFIG)).filter(|path| path.is_file()))
}

/// A flag of the command line that stands for a setting; `None` where it was not given.
pub fn flag(flag: &str, path: &str, text: Option<&str>) -> Option<Flag> {
    let text = text?.to_owned();
    Some(Flag { flag: flag.to_owned(), path: path.to_owned(), text })
}

/// Reads the layers anew. A relative path in the file starts from the file's folder, one in a variable or
/// a flag from the working directory.
///
/// # Errors
/// Everything that is wrong in any of them, or that the file cannot be read.
pub fn load(file: Option<&Path>, flags: &[Flag]) -> anyhow::Result<Loaded> {
    let text = match file {
        None => None,
        Some(path) => Some(
            files::read_text(path, limits::CONFIG_FILE_BYTES)
                .with_context(|| format!("cannot read the configuration {}", path.display()))?,
        ),
    };
    let name = file.map(|path| path.display().to_string()).unwrap_or_default();
    let state_dir = places::state_dir();
    let mut base = Config::default();
    base.model_dir = state_dir.join("models");
    base.state_dir = state_dir;
    let environment: BTreeMap<String, String> = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    let layers = Layers {
        base,
        file: text.as_deref().map(|text| Text { file: &name, text }),
        environment: &environment,
        flags,
    };
    Ok(layers.load()?)
}

/// The same for a command that ends soon: warnings go to standard error.
///
/// # Errors
/// As [`load`].
pub fn load_and_warn(file: Option<&Path>, flags: &[Flag]) -> anyhow::Result<Config> {
    let Loaded { config, warnings } = load(file, flags)?;
    for warning in warnings {
        eprintln!("blochd: {warning}");
    }
    Ok(config)
}
