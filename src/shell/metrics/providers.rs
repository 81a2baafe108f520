//! What the metrics page shows of execution providers.

use std::collections::{BTreeMap, BTreeSet};

use super::page::{Kind, Page};
use super::{Key, Told};
use crate::shell::slot::abandoned;

/// How a model runs.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Runs {
    /// What the configuration calls what runs it.
    pub provider: String,
    /// What is wanted and does not run it, and a word for the reason.
    pub passed: BTreeSet<(String, &'static str)>,
    /// Share of the operators' time that the CPU takes beside another provider, 0 to 1.
    pub fallen_back: Option<f64>,
    /// First runs of its shapes in the trial, seconds.
    pub compile: Option<f64>,
}

pub(super) fn show(page: &mut Page, told: &BTreeMap<Key, Told>) {
    let all: Vec<(&str, String, &Runs)> = told
        .iter()
        .filter_map(|((model, version), told)| {
            Some((model.as_str(), version.to_string(), told.runs.as_ref()?))
        })
        .collect();
    let help = "Execution provider that runs the model; always 1.";
    page.family("blochd_provider_info", Kind::Gauge, help);
    for (model, version, runs) in &all {
        let provider = ("provider", runs.provider.as_str());
        page.sample(&[("model", *model), ("version", version), provider], 1.0);
    }
    let help = "Execution provider that is wanted and does not run the model; always 1.";
    page.family("blochd_provider_passed_over", Kind::Gauge, help);
    for (model, version, runs) in &all {
        for (provider, reason) in &runs.passed {
            let own = [("model", *model), ("version", version.as_str())];
            let why = [("provider", provider.as_str()), ("reason", *reason)];
            page.sample(&[own, why].concat(), 1.0);
        }
    }
    let help = "Sessions that hang in a run on an accelerator and were left behind.";
    page.family("blochd_abandoned_sessions", Kind::Gauge, help);
    page.sample(&[], abandoned() as f64);
    type Value = fn(&Runs) -> Option<f64>;
    let gauges: [(&str, &str, Value); 2] = [
        (
            "blochd_provider_fallback_ratio",
            "Share of the operators' time that the CPU takes beside the provider, 0 to 1.",
            |runs| runs.fallen_back,
        ),
        (
            "blochd_provider_compile_seconds",
            "First runs of all shapes in the trial, in which a provider compiles.",
            |runs| runs.compile,
        ),
    ];
    for (name, help, value) in gauges {
        page.family(name, Kind::Gauge, help);
        for (model, version, runs) in &all {
            if let Some(value) = value(runs) {
                let provider = ("provider", runs.provider.as_str());
                page.sample(&[("model", *model), ("version", version), provider], value);
            }
        }
    }
}
