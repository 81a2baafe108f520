//! What the governor is shown and what it says.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::Serialize;

use super::estimate::Observed;
use super::promise::Promises;
use super::trend::Trend;

/// One variant of a model that could serve it.
#[derive(Debug, Clone, PartialEq)]
pub struct VariantView {
    pub name: String,
    /// Latency at the budget's percentile on the undisturbed box. What counts between two variants is the
    /// quotient. Zero where it is not known: no slowdown is then told of it, and neither is it left for its
    /// speed nor taken for it.
    pub promised: Duration,
    /// Agreement with dense, 0 to 1.
    pub quality: f64,
    /// Whether it can be put into service now: loaded, warmed and not withdrawn.
    pub ready: bool,
}

/// How eagerly variants are changed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Policy {
    /// Requests of this last stretch of time are shown.
    pub window: Duration,
    /// Least time between two switches.
    pub dwell: Duration,
    /// A variant fits where promised × slowdown × margin ≤ budget; at least 1.
    pub margin: f64,
    /// The same for a better variant than the one in service; at least the margin.
    pub headroom: f64,
    /// How long a better variant must have fitted before it is taken.
    pub sustain: Duration,
    /// A switch up that is taken back within this time has failed.
    pub probation: Duration,
}

/// How much a model is asked for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Load {
    /// Requests a second that arrived within the last window, whatever became of them.
    pub rate: f64,
    /// Requests that run at the same time.
    pub instances: usize,
}

/// One model as it stands.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelView {
    pub name: String,
    /// Variants, dense first, then falling in promised latency.
    pub variants: Vec<VariantView>,
    /// Index of the variant in service.
    pub current: usize,
    /// `None`: dense is served, whatever it takes.
    pub budget: Option<Duration>,
    /// Least quality; dense is never below it.
    pub floor: f64,
    /// Whose switch goes first: the higher.
    pub priority: i32,
    pub policy: Policy,
    /// Since the variant in service came into service, within the last window.
    pub observed: Observed,
    /// What is asked of it; `None` where that is not known.
    pub load: Option<Load>,
    /// The variant in service has failed: an error, a value that is not finite.
    pub fault: bool,
    /// Its agreement with dense on live requests is below the floor, see [`shadow`](super::shadow).
    pub disproved: bool,
}

/// Why a switch is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Because {
    /// The budget is broken.
    Budget,
    /// The budget is about to be broken: the box gets slower.
    Foreseen,
    /// A better variant has fitted for long enough.
    Headroom,
    /// The variant in service failed.
    Fault,
    /// The variant in service agrees with dense on live requests less than it must.
    Quality,
    /// The variant in service takes longer than it promised, which the box does not explain.
    MissedPromise,
    /// A model of higher priority breaks its budget and has no faster variant left.
    Relief,
    /// There is no budget (any more), or the floor was raised.
    Policy,
}

impl fmt::Display for Because {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Budget => "budget",
            Self::Foreseen => "foreseen",
            Self::Headroom => "headroom",
            Self::Fault => "fault",
            Self::Quality => "quality",
            Self::MissedPromise => "missed_promise",
            Self::Relief => "relief",
            Self::Policy => "policy",
        })
    }
}

/// Put another variant into service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Action {
    pub model: String,
    /// Index into the model's variants.
    pub to: usize,
    pub because: Because,
}

/// What the governor thinks of a model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Verdict {
    /// Observed / promised latency; about 1 on an undisturbed box.
    pub slowdown: f64,
    /// Whether the budget is held; `None` without a budget or without traffic.
    pub met: Option<bool>,
}

/// A variant that does not keep its promise on a box that has not changed: it is not to be served again.
#[derive(Debug, Clone, PartialEq)]
pub struct Conviction {
    pub model: String,
    /// Index into the model's variants; not the one in service.
    pub variant: usize,
    /// Its fastest run over what it promised.
    pub shown: f64,
    /// The same of the variant that serves instead, of its slow runs.
    pub expected: f64,
}

/// The answer of one step.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Outcome {
    /// Variants to be withdrawn, before the action.
    pub convicted: Vec<Conviction>,
    pub action: Option<Action>,
    pub verdicts: BTreeMap<String, Verdict>,
}

/// What the governor remembers between steps, by model.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct State {
    pub(super) models: BTreeMap<String, Memory>,
}

/// What is remembered of one model.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Memory {
    pub slowdown: f64,
    pub seen: Duration,
    pub switched: Option<Duration>,
    /// Share of the requests above the budget on the variant in service, averaged over some seconds.
    pub stalled: f64,
    /// That of the faster variant that was in service before, fading: what the one in service now is
    /// forgiven, because the faster one did not avoid it.
    pub forgiven: f64,
    /// The last switch went to a better variant.
    pub went_up: bool,
    /// Since when a better variant has fitted.
    pub fits_since: Option<Duration>,
    /// Failed attempts to go up, each doubling the wait.
    pub failures: u32,
    /// What the variant promises at which the last of them was made: that a faster one holds proves nothing.
    pub failed: Option<Duration>,
    /// The last attempt was made though the better variant seemed to be busy all the time.
    pub dared: bool,
    /// Such an attempt has failed: variants that promise this or more are.
    pub overrun: Option<Duration>,
    pub promises: Promises,
    pub trend: Trend,
    /// The model for whose sake it was moved down, until dense serves again.
    pub relieves: Option<String>,
    /// When another model was moved down for its sake.
    pub relieved: Option<Duration>,
}
