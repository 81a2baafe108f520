//! The metrics page in Prometheus's text format, under the names that users of Triton know
//! (`nv_inference_*`) and blochd's own (`blochd_*`).
//!
//! Most of it is read out of the slots when the page is asked for: nothing is counted twice, and
//! what is unloaded vanishes from the page. Only what the agent alone knows is handed in. That is
//! why no metrics crate stands here: recorders of the `metrics` family keep the series of unloaded
//! models and buffer every histogram sample until the next scrape, `prometheus-client` renames
//! counters.

mod devices;
mod page;
mod providers;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::hardware::{Known, Vendor};
use crate::shell::slot::{Histogram, LATENCY_BUCKETS_US, Repository, Slot, Stats, Totals};
use crate::shell::spans::{Tally, Tracer};
use crate::units::Version;

use devices::Accelerators;
pub use devices::VendorState;
use page::{Kind, Page};
pub use providers::Runs;

type Key = (String, Version);

/// What the agent alone knows of one version.
#[derive(Debug, Clone, Default)]
struct Told {
    swaps: BTreeMap<String, u64>,
    budget_met: Duration,
    budget_unmet: Duration,
    budget: Option<Duration>,
    slowdown: Option<f64>,
    build: Option<f64>,
    rung: Option<usize>,
    /// Variants by how they stand by.
    standby: BTreeMap<&'static str, usize>,
    builds: BTreeMap<&'static str, u64>,
    reused: BTreeMap<&'static str, u64>,
    /// Requests that were drawn to run on dense as well, by what became of them.
    shadow: BTreeMap<&'static str, u64>,
    /// Agreement on live requests, by variant.
    agreement: BTreeMap<String, f64>,
    withdrawals: u64,
    runs: Option<Runs>,
}

/// How a ladder that was wanted came about, or did not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BuildOutcome {
    /// A build made it.
    Built,
    /// It was there from before.
    Kept,
    Failed,
}

impl BuildOutcome {
    fn label(self) -> &'static str {
        match self {
            Self::Built => "built",
            Self::Kept => "kept",
            Self::Failed => "failed",
        }
    }
}

/// Bundles of a fleet since the start, by what became of them and why.
pub type Bundles = BTreeMap<(&'static str, &'static str), u64>;

/// Calls that were not let in since the start, and connections that did not come to TLS, by door and reason.
pub type Refused = BTreeMap<(&'static str, &'static str), u64>;

/// Everything that the page shows.
pub struct Metrics {
    repository: Arc<Repository>,
    told: Mutex<BTreeMap<Key, Told>>,
    accelerators: Mutex<Accelerators>,
    bundles: Mutex<Bundles>,
    refused: Mutex<Refused>,
    /// Where spans are sent.
    tracer: Option<Arc<Tracer>>,
}

impl Metrics {
    /// The page of `repository`.
    pub fn new(repository: Arc<Repository>) -> Self {
        Self {
            repository,
            told: Mutex::default(),
            accelerators: Mutex::default(),
            bundles: Mutex::default(),
            refused: Mutex::default(),
            tracer: None,
        }
    }

    /// With the counts of spans, where some are made.
    #[must_use]
    pub fn traced(mut self, tracer: Option<Arc<Tracer>>) -> Self {
        self.tracer = tracer;
        self
    }

    /// Calls that were not let in so far.
    pub fn refused(&self, refused: Refused) {
        *self.refused.lock().unwrap_or_else(PoisonError::into_inner) = refused;
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Key, Told>> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, model: &str, version: Version, edit: impl FnOnce(&mut Told)) {
        edit(self.lock().entry((model.to_owned(), version)).or_default());
    }

    /// A variant came into service because of `reason` (a short word such as `over_budget`).
    pub fn swapped(&self, model: &str, version: Version, reason: &str) {
        self.tell(model, version, |told| *told.swaps.entry(reason.to_owned()).or_default() += 1);
    }

    /// The budget was met, or not, for another `elapsed`.
    pub fn budget_held(&self, model: &str, version: Version, met: bool, elapsed: Duration) {
        self.tell(model, version, |told| {
            let sum = if met { &mut told.budget_met } else { &mut told.budget_unmet };
            *sum = sum.saturating_add(elapsed);
        });
    }

    /// The latency budget in force; `None` where there is none.
    pub fn budget(&self, model: &str, version: Version, budget: Option<Duration>) {
        self.tell(model, version, |told| told.budget = budget);
    }

    /// Observed over promised compute time of the variant in service.
    pub fn slowdown(&self, model: &str, version: Version, slowdown: Option<f64>) {
        self.tell(model, version, |told| told.slowdown = slowdown);
    }

    /// How far the ladder's build is, 0 to 1; `None` when none is under way.
    pub fn build_progress(&self, model: &str, version: Version, progress: Option<f64>) {
        self.tell(model, version, |told| told.build = progress);
    }

    /// A ladder came about, or did not.
    pub fn built(&self, model: &str, version: Version, outcome: BuildOutcome) {
        self.tell(model, version, |told| *told.builds.entry(outcome.label()).or_default() += 1);
    }

    /// A build went on with what earlier ones had found out: finished rungs, and latencies of parts of the
    /// network that were not measured again.
    pub fn reused(&self, model: &str, version: Version, rungs: u64, latencies: u64) {
        // A build may tell of a version that has gone meanwhile.
        if let Some(told) = self.lock().get_mut(&(model.to_owned(), version)) {
            *told.reused.entry("rungs").or_default() += rungs;
            *told.reused.entry("latencies").or_default() += latencies;
        }
    }

    /// What became of the requests that were drawn to run on dense as well, and the agreement of the variants
    /// that answered them.
    pub fn shadow(
        &self,
        model: &str,
        version: Version,
        requests: BTreeMap<&'static str, u64>,
        agreement: BTreeMap<String, f64>,
    ) {
        self.tell(model, version, |told| (told.shadow, told.agreement) = (requests, agreement));
    }

    /// A variant was withdrawn because of its agreement on live requests.
    pub fn withdrawn(&self, model: &str, version: Version) {
        self.tell(model, version, |told| told.withdrawals += 1);
    }

    /// Where on its ladder the variant in service stands, dense being 0, and how many variants stand by in
    /// which state.
    pub fn ladder(
        &self,
        model: &str,
        version: Version,
        rung: usize,
        standby: BTreeMap<&'static str, usize>,
    ) {
        self.tell(model, version, |told| {
            told.rung = Some(rung);
            // A state that was left is shown as such, not dropped.
            told.standby.values_mut().for_each(|count| *count = 0);
            told.standby.extend(standby);
        });
    }

    /// How vendors' libraries are read, and the devices that they tell of.
    pub fn devices(&self, vendors: BTreeMap<Vendor, VendorState>, devices: Vec<Known>) {
        let mut told = self.accelerators.lock().unwrap_or_else(PoisonError::into_inner);
        *told = Accelerators { vendors, devices };
    }

    /// On which execution provider it runs.
    pub fn provider(&self, model: &str, version: Version, runs: Runs) {
        self.tell(model, version, |told| told.runs = Some(runs));
    }

    /// What became of a fleet's bundles so far.
    pub fn fleet(&self, bundles: Bundles) {
        *self.bundles.lock().unwrap_or_else(PoisonError::into_inner) = bundles;
    }

    /// Drops all series of a version that is gone.
    pub fn forget(&self, model: &str, version: Version) {
        self.lock().remove(&(model.to_owned(), version));
    }

    /// The page.
    pub fn render(&self) -> String {
        let slots = self.repository.slots();
        let told = self.lock().clone();
        let mut page = Page::default();
        page.family("blochd_build_info", Kind::Gauge, "Version of the agent; always 1.");
        page.sample(&[("version", env!("CARGO_PKG_VERSION"))], 1.0);
        page.family("blochd_ready", Kind::Gauge, "1 while the agent is ready for requests.");
        page.sample(&[], f64::from(u8::from(self.repository.is_ready())));
        requests(&mut page, &slots);
        queues(&mut page, &slots);
        variants(&mut page, &slots);
        latencies(&mut page, &slots);
        agent(&mut page, &told);
        let accelerators = self.accelerators.lock().unwrap_or_else(PoisonError::into_inner);
        accelerators.show(&mut page);
        drop(accelerators);
        let help =
            "Bundles of the fleet, by what became of them and, where they were refused, why.";
        page.family("blochd_fleet_bundles_total", Kind::Counter, help);
        let bundles = self.bundles.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for ((outcome, why), count) in bundles {
            page.sample(&[("outcome", outcome), ("why", why)], count as f64);
        }
        refused(&mut page, &self.refused.lock().unwrap_or_else(PoisonError::into_inner));
        if let Some(tracer) = &self.tracer {
            spans(&mut page, tracer.tally());
        }
        page.finish()
    }
}

fn refused(page: &mut Page, refused: &Refused) {
    let help = "Calls that were not let in, and connections that did not come to TLS (no_tls), by \
                door and reason.";
    page.family("blochd_refused_calls_total", Kind::Counter, help);
    for ((door, why), count) in refused {
        page.sample(&[("door", door), ("why", why)], *count as f64);
    }
}

fn spans(page: &mut Page, tally: Tally) {
    let help = "Spans that the collector took (exported), that found no place in the queue \
                (dropped), or that it did not take (failed).";
    page.family("blochd_spans_total", Kind::Counter, help);
    let Tally { exported, dropped, failed } = tally;
    for (outcome, count) in [("exported", exported), ("dropped", dropped), ("failed", failed)] {
        page.sample(&[("outcome", outcome)], count as f64);
    }
}

fn micros(duration: Duration) -> f64 {
    duration.as_nanos() as f64 / 1e3
}

/// Name, help and value of a counter.
type Series<T> = (&'static str, &'static str, fn(&T) -> f64);

/// Triton's counters of requests and their times.
fn requests(page: &mut Page, slots: &[Arc<Slot>]) {
    let totals: Vec<(&Slot, String, Totals)> =
        slots.iter().map(|s| (&**s, s.version().to_string(), s.totals())).collect();
    let series: [Series<Totals>; 8] = [
        ("nv_inference_request_success", "Requests answered.", |t| t.success as f64),
        ("nv_inference_count", "Inferences: one a request.", |t| t.success as f64),
        ("nv_inference_exec_count", "Runs of a session.", |t| t.executions as f64),
        (
            "nv_inference_request_duration_us",
            "Sum of arrival to the answer standing ready, microseconds.",
            |t| micros(t.request),
        ),
        ("nv_inference_queue_duration_us", "Sum of time in the queue, microseconds.", |t| {
            micros(t.queue)
        }),
        (
            "nv_inference_compute_input_duration_us",
            "Sum of time in which inputs were read out of bodies, microseconds.",
            |t| micros(t.input),
        ),
        (
            "nv_inference_compute_infer_duration_us",
            "Sum of time in the session, microseconds.",
            |t| micros(t.compute),
        ),
        (
            "nv_inference_compute_output_duration_us",
            "Sum of time in which outputs were written into bodies, microseconds.",
            |t| micros(t.output),
        ),
    ];
    for (name, help, value) in series {
        page.family(name, Kind::Counter, help);
        for (slot, version, totals) in &totals {
            page.sample(&[("model", slot.model()), ("version", version)], value(totals));
        }
    }
    let help = "Requests that were not answered, by Triton's reasons.";
    page.family("nv_inference_request_failure", Kind::Counter, help);
    for (slot, version, totals) in &totals {
        let refused: u64 = slot.refusals().values().sum();
        let reasons =
            [("BACKEND", totals.failure), ("CANCELED", totals.cancelled), ("REJECTED", refused)];
        for (reason, count) in reasons {
            let labels = [("model", slot.model()), ("version", version), ("reason", reason)];
            page.sample(&labels, count as f64);
        }
    }
    let help = "Answers on probation with a value that is not finite.";
    page.family("blochd_non_finite_answers_total", Kind::Counter, help);
    for (slot, version, totals) in &totals {
        let labels = [("model", slot.model()), ("version", version.as_str())];
        page.sample(&labels, totals.non_finite as f64);
    }
}

fn queues(page: &mut Page, slots: &[Arc<Slot>]) {
    let help = "Requests that wait to be run.";
    page.family("nv_inference_pending_request_count", Kind::Gauge, help);
    for slot in slots {
        let version = slot.version().to_string();
        let labels = [("model", slot.model()), ("version", &version)];
        page.sample(&labels, slot.pending().0 as f64);
    }
    page.family("blochd_refusals_total", Kind::Counter, "Requests refused without a run.");
    for slot in slots {
        let version = slot.version().to_string();
        for (reason, count) in slot.refusals() {
            let labels = [("model", slot.model()), ("version", &version), ("reason", reason)];
            page.sample(&labels, count as f64);
        }
    }
}

fn variants(page: &mut Page, slots: &[Arc<Slot>]) {
    type Value = fn(&crate::shell::slot::Variant) -> f64;
    let series: [(&str, &str, Value); 3] = [
        (
            "blochd_variant_latency_ratio",
            "Latency of the variant in service relative to dense, as measured on this box.",
            |v| v.info().ratio,
        ),
        (
            "blochd_variant_quality_ratio",
            "Agreement of the variant in service with dense, 0 to 1.",
            |v| v.info().quality,
        ),
        ("blochd_instances", "Sessions of the variant in service.", |v| v.instances() as f64),
    ];
    for (name, help, value) in series {
        page.family(name, Kind::Gauge, help);
        for slot in slots {
            let (version, variant) = (slot.version().to_string(), slot.current());
            let name = variant.info().name.as_str();
            let labels = [("model", slot.model()), ("version", &version), ("variant", name)];
            page.sample(&labels, value(&variant));
        }
    }
}

fn latencies(page: &mut Page, slots: &[Arc<Slot>]) {
    type Value = fn(&Stats) -> Histogram;
    let families: [(&str, &str, Value); 3] = [
        (
            "blochd_request_duration_seconds",
            "Arrival of a request to its answer standing ready, by variant.",
            Stats::histogram,
        ),
        (
            "blochd_queue_duration_seconds",
            "Time of answered requests in the queue, by variant.",
            Stats::queue_histogram,
        ),
        (
            "blochd_compute_duration_seconds",
            "Time of answered requests in the session, by variant.",
            Stats::compute_histogram,
        ),
    ];
    for (name, help, value) in families {
        page.family(name, Kind::Histogram, help);
        for slot in slots {
            let version = slot.version().to_string();
            for (variant, stats) in slot.variants() {
                let labels =
                    [("model", slot.model()), ("version", &version), ("variant", &variant)];
                let Histogram { buckets, sum } = value(&stats);
                let bounds = LATENCY_BUCKETS_US.iter().map(|us| *us as f64 / 1e6);
                page.histogram(&labels, bounds, &buckets, sum.as_secs_f64());
            }
        }
    }
}

/// What the agent told.
fn agent(page: &mut Page, told: &BTreeMap<Key, Told>) {
    page.family("blochd_swaps_total", Kind::Counter, "Variants that came into service.");
    for ((model, version), told) in told {
        for (reason, count) in &told.swaps {
            let version = version.to_string();
            let labels = [("model", model.as_str()), ("version", &version), ("reason", reason)];
            page.sample(&labels, *count as f64);
        }
    }
    let help = "Time during which the latency budget was met, and was not.";
    page.family("blochd_budget_seconds_total", Kind::Counter, help);
    for ((model, version), told) in told {
        for (met, sum) in [("true", told.budget_met), ("false", told.budget_unmet)] {
            let version = version.to_string();
            let labels = [("model", model.as_str()), ("version", &version), ("met", met)];
            page.sample(&labels, sum.as_secs_f64());
        }
    }
    type Value = fn(&Told) -> Option<f64>;
    let gauges: [(&str, &str, Value); 4] = [
        (
            "blochd_rung",
            "Place of the variant in service on its ladder: 0 is dense, each next one faster.",
            |told| told.rung.map(|rung| rung as f64),
        ),
        ("blochd_budget_seconds", "Latency budget in force.", |told| {
            told.budget.map(|budget| budget.as_secs_f64())
        }),
        ("blochd_slowdown_ratio", "Observed over promised compute time.", |told| told.slowdown),
        ("blochd_build_progress_ratio", "Progress of the ladder's build, 0 to 1.", |told| {
            told.build
        }),
    ];
    for (name, help, value) in gauges {
        page.family(name, Kind::Gauge, help);
        for ((model, version), told) in told {
            if let Some(value) = value(told) {
                let version = version.to_string();
                page.sample(&[("model", model), ("version", &version)], value);
            }
        }
    }
    ladders(page, told);
    providers::show(page, told);
}

/// How variants agree with dense on live requests.
fn shadows(page: &mut Page, told: &BTreeMap<Key, Told>) {
    let help = "Live requests that were drawn to run on dense as well: compared, dropped because \
                there was no time (busy), unsuitable, or failed there.";
    page.family("blochd_shadow_requests_total", Kind::Counter, help);
    for ((model, version), told) in told {
        let version = version.to_string();
        for (outcome, count) in &told.shadow {
            let labels = [("model", model.as_str()), ("version", &version), ("outcome", outcome)];
            page.sample(&labels, *count as f64);
        }
    }
    let help = "Agreement of a variant with dense on live requests, the last that were compared.";
    page.family("blochd_live_agreement_ratio", Kind::Gauge, help);
    for ((model, version), told) in told {
        let version = version.to_string();
        for (variant, agreement) in &told.agreement {
            let labels = [("model", model.as_str()), ("version", &version), ("variant", variant)];
            page.sample(&labels, *agreement);
        }
    }
    let help = "Variants that were withdrawn because of their agreement on live requests.";
    page.family("blochd_withdrawals_total", Kind::Counter, help);
    for ((model, version), told) in told.iter().filter(|(_, told)| told.withdrawals > 0) {
        let version = version.to_string();
        let labels = [("model", model.as_str()), ("version", &version)];
        page.sample(&labels, told.withdrawals as f64);
    }
}

/// How ladders came about and stand.
fn ladders(page: &mut Page, told: &BTreeMap<Key, Told>) {
    let help = "Variants of the model by how they stand by.";
    page.family("blochd_variants", Kind::Gauge, help);
    for ((model, version), told) in told {
        let version = version.to_string();
        for (state, count) in &told.standby {
            let labels = [("model", model.as_str()), ("version", &version), ("state", state)];
            page.sample(&labels, *count as f64);
        }
    }
    let help = "Ladders that were wanted: built, kept from before, or failed to build.";
    page.family("blochd_builds_total", Kind::Counter, help);
    for ((model, version), told) in told {
        let version = version.to_string();
        for (outcome, count) in &told.builds {
            let labels = [("model", model.as_str()), ("version", &version), ("outcome", outcome)];
            page.sample(&labels, *count as f64);
        }
    }
    shadows(page, told);
    let help = "What builds took over from earlier ones: finished rungs, and measured latencies.";
    page.family("blochd_analysis_reused_total", Kind::Counter, help);
    for ((model, version), told) in told {
        let version = version.to_string();
        for (what, count) in &told.reused {
            let labels = [("model", model.as_str()), ("version", &version), ("what", what)];
            page.sample(&labels, *count as f64);
        }
    }
}
