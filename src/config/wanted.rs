//! Which execution providers a model may run on, in order of preference, and the settings of the one for CANN.

use std::collections::BTreeMap;
use std::fmt;

use crate::limits;
use crate::units::ByteSize;

use super::error::{Origin, Problem, Wrong};
use super::plugins::check_name;
use super::providers::{Cann, Plugin};
use super::values::{Show, flag, word};

/// One entry of a model's `execution_providers`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wanted {
    /// What the box has: CANN where the runtime was built with it and an Ascend NPU is seen, the plugins in the
    /// order of their names, and the CPU.
    Auto,
    Cpu,
    Cann,
    /// The plugin that the configuration calls so.
    Plugin(String),
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Cpu => "cpu",
            Self::Cann => "cann",
            Self::Plugin(name) => name,
        })
    }
}

/// The execution providers that a model may run on, the best first; none stands twice. Without `cpu` or `auto`
/// among them it is not served where none of them works, rather than on the CPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecutionProviders(pub Vec<Wanted>);

impl Default for ExecutionProviders {
    fn default() -> Self {
        Self(vec![Wanted::Auto])
    }
}

impl fmt::Display for ExecutionProviders {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<String> = self.0.iter().map(Wanted::to_string).collect();
        f.write_str(&names.join(", "))
    }
}

impl Show for ExecutionProviders {
    fn show(&self) -> String {
        self.to_string()
    }
}

/// Names with commas.
pub(super) fn execution_providers(text: &str) -> Result<ExecutionProviders, Wrong> {
    let right = "write auto, cpu, cann or names of plugins, such as [cann, cpu]";
    let mut wanted = Vec::new();
    for item in text.split(',').map(str::trim).filter(|item| !item.is_empty()) {
        let one = match item {
            "auto" => Wanted::Auto,
            "cpu" => Wanted::Cpu,
            "cann" => Wanted::Cann,
            name => {
                check_name(name).map_err(|wrong| Wrong::new(wrong.what, right))?;
                Wanted::Plugin(name.to_owned())
            }
        };
        if wanted.contains(&one) {
            return Err(Wrong::new(format!("{item} stands twice"), "remove one"));
        }
        wanted.push(one);
    }
    if wanted.is_empty() {
        return Err(Wrong::new("no execution provider is named", right));
    }
    Ok(ExecutionProviders(wanted))
}

/// Plugins that are wanted and that nobody describes.
pub(super) fn check_known(
    wanted: &ExecutionProviders,
    plugins: &BTreeMap<String, Plugin>,
    origin: &Origin,
    problems: &mut Vec<Problem>,
) {
    for one in &wanted.0 {
        let Wanted::Plugin(name) = one else { continue };
        if plugins.contains_key(name) {
            continue;
        }
        let known = ["auto", "cann", "cpu"].into_iter().chain(plugins.keys().map(String::as_str));
        let known: Vec<&str> = known.collect();
        problems.push(Problem {
            origin: origin.clone(),
            what: format!("there is no execution provider `{name}`"),
            right: format!("known here: {}; others are described in `plugins`", known.join(", ")),
        });
    }
}

/// An option that is not given.
const UNSET: &str = "auto";

/// Sets an option of the provider for CANN, or leaves it to the provider.
pub(super) fn set_option(cann: &mut Cann, name: &str, value: Option<String>) {
    match value {
        Some(value) => drop(cann.options.insert(name.to_owned(), value)),
        None => drop(cann.options.remove(name)),
    }
}

/// An option as it is written in the configuration.
pub(super) fn shown_option(cann: &Cann, name: &str, show: fn(&str) -> String) -> String {
    cann.options.get(name).map_or_else(|| UNSET.to_owned(), |value| show(value))
}

fn unless_unset(
    text: &str,
    read: impl FnOnce(&str) -> Result<String, Wrong>,
) -> Result<Option<String>, Wrong> {
    let text = text.trim();
    if text == UNSET {
        return Ok(None);
    }
    let or_unset = |wrong: Wrong| Wrong::new(wrong.what, format!("{}, or {UNSET}", wrong.right));
    read(text).map(Some).map_err(or_unset)
}

fn one_of(text: &str, words: &[&'static str]) -> Result<Option<String>, Wrong> {
    let words: Vec<_> = words.iter().map(|name| (*name, *name)).collect();
    unless_unset(text, |text| word(text, &words).map(str::to_owned))
}

pub(super) fn arena_extend_strategy(text: &str) -> Result<Option<String>, Wrong> {
    one_of(text, &["kNextPowerOfTwo", "kSameAsRequested"])
}

/// What CANN's compiler takes for `precision_mode`.
pub(super) fn precision_mode(text: &str) -> Result<Option<String>, Wrong> {
    let modes = [
        "force_fp16",
        "force_fp32",
        "cube_fp16in_fp32out",
        "allow_fp32_to_fp16",
        "must_keep_origin_dtype",
        "allow_mix_precision",
        "allow_mix_precision_fp16",
    ];
    one_of(text, &modes)
}

pub(super) fn implementation_mode(text: &str) -> Result<Option<String>, Wrong> {
    one_of(text, &["high_performance", "high_precision"])
}

/// The provider reads 1 and 0.
pub(super) fn switch(text: &str) -> Result<Option<String>, Wrong> {
    unless_unset(text, |text| flag(text).map(|on| if on { "1" } else { "0" }.to_owned()))
}

pub(super) fn shown_switch(value: &str) -> String {
    (value == "1").to_string()
}

/// The provider reads bytes.
pub(super) fn size(text: &str) -> Result<Option<String>, Wrong> {
    let value = super::values::memory(text)?;
    Ok(value.map(|size| size.0.to_string()))
}

pub(super) fn shown_size(value: &str) -> String {
    value.parse().map_or_else(|_| value.to_owned(), |bytes| ByteSize(bytes).to_string())
}

/// Types of operators with commas.
pub(super) fn operator_types(text: &str) -> Result<Option<String>, Wrong> {
    unless_unset(text, |text| {
        let right = "write types of operators as CANN names them, such as [Pooling, SoftmaxV2]";
        let names: Vec<&str> = text.split(',').map(str::trim).filter(|n| !n.is_empty()).collect();
        let is_name = |name: &&str| {
            name.len() <= limits::OPERATOR_TYPE_BYTES
                && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        };
        match names.iter().find(|name| !is_name(name)) {
            Some(name) => Err(Wrong::new(format!("{name:?} is no type of operators"), right)),
            None if names.is_empty() => Err(Wrong::new("no type of operators is named", right)),
            None => Ok(names.join(",")),
        }
    })
}

pub(super) fn shown_as_is(value: &str) -> String {
    value.replace(',', ", ")
}
