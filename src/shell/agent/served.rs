//! One model in service: its slot, its ladder and what stands by.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::event::{Lending, Opened};
use super::providers::Standing;
use super::recording::Demand;
use crate::arrivals::VersionKey;
use crate::config::{ModelConfig, Provider};
use crate::governor::shadow::Withdrawn;
use crate::governor::{ModelView, Observed, Policy, VariantView, Verdict};
use crate::ladder::Manifest;
use crate::shell::children::trial::RanOn;
use crate::shell::slot::{Runner, Slot, VariantInfo, Window};
use crate::units::{Digest, Percentile, Version};

/// One variant that could serve the model.
pub struct Candidate {
    pub info: VariantInfo,
    pub path: PathBuf,
    /// Of the trial, or of the ladder's build; `None` where the trial found nothing that it runs on.
    pub p50: Option<Duration>,
    pub p99: Option<Duration>,
    /// What the trial ran it on; it is warmed with the same.
    pub ran_on: Option<RanOn>,
    pub lending: Lending,
    pub standby: Standby,
    /// It waits at least until then, since it failed in service.
    pub held_until: Option<Instant>,
    /// Probations on which it failed, one after the other.
    pub faults: u32,
    /// It is in service still, and is to leave it because of this.
    pub disproved: Option<Withdrawn>,
}

impl Candidate {
    /// The same variant with other sessions, which `opened` tells of: not in service and not on trial.
    pub fn anew(&self, opened: &Opened) -> Self {
        Self {
            info: VariantInfo { promised: opened.p99, ..self.info.clone() },
            path: self.path.clone(),
            p50: opened.p50,
            p99: opened.p99,
            ran_on: opened.ran_on,
            lending: opened.lending.clone(),
            standby: Standby::Opening,
            held_until: None,
            faults: 0,
            disproved: None,
        }
    }

    /// It waits for a while.
    pub fn hold(&mut self, why: String, wait: Duration, now: Instant) {
        self.standby = Standby::Waiting(why);
        self.held_until = Some(now + wait);
    }
}

/// What the variant in service did wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Misdeed {
    pub reason: String,
    /// Whether once is enough to take it out of service for good.
    pub for_good: bool,
}

/// Whether a variant can be put into service at once.
pub enum Standby {
    /// Its sessions serve.
    InService,
    /// Its sessions are loaded and warm.
    Loaded(Vec<Box<dyn Runner>>),
    /// It is being loaded and tried.
    Opening,
    /// It is not loaded, because of this; it is tried again later.
    Waiting(String),
    /// It is not to be served, because of this.
    Withdrawn(String),
}

impl Standby {
    pub fn words(&self) -> (&'static str, Option<&str>) {
        match self {
            Self::InService => ("in service", None),
            Self::Loaded(_) => ("ready", None),
            Self::Opening => ("loading", None),
            Self::Waiting(why) => ("waiting", Some(why)),
            Self::Withdrawn(why) => ("withdrawn", Some(why)),
        }
    }
}

/// How far the ladder is.
pub enum Build {
    /// None is wanted, or none can be made.
    None(String),
    Queued,
    Running {
        share: f64,
        stage: String,
    },
    Done(Box<Manifest>),
    Failed(String),
}

impl Build {
    /// What the status of its model says of it.
    fn status(&self) -> Value {
        let (build, why) = match self {
            Self::None(why) => ("none".to_owned(), Some(why)),
            Self::Queued => ("queued".to_owned(), None),
            Self::Running { share, stage } => (format!("{stage} {:.0} %", 100.0 * share), None),
            Self::Done(_) => ("done".to_owned(), None),
            Self::Failed(why) => ("failed".to_owned(), Some(why)),
        };
        let (share, stage) = match self {
            Self::Running { share, stage } => (Some(share), Some(stage)),
            Self::None(_) | Self::Queued | Self::Done(_) | Self::Failed(_) => (None, None),
        };
        let (not_built, samples) = match self {
            Self::Done(manifest) => (json!(manifest.not_built), json!(manifest.calibration)),
            Self::None(_) | Self::Queued | Self::Running { .. } | Self::Failed(_) => {
                (json!([]), Value::Null)
            }
        };
        json!({
            "build": build, "build_why": why, "build_share": share, "build_stage": stage,
            "not_built": not_built, "calibration": samples,
        })
    }
}

/// One model in service.
pub struct Served {
    pub key: VersionKey,
    pub path: PathBuf,
    pub digest: Digest,
    pub config: ModelConfig,
    pub slot: Arc<Slot>,
    /// Dense first, then falling in promised latency.
    pub candidates: Vec<Candidate>,
    pub current: usize,
    pub switched: Instant,
    pub fault: Option<Misdeed>,
    /// What is asked of it.
    pub demand: Demand,
    pub build: Build,
    pub swaps: u64,
    pub last_because: Option<String>,
    /// Size and time of the calibration samples that its ladder is made with.
    pub calibration: Option<(u64, i64, i64)>,
    pub standing: Standing,
    /// All execution providers that it asks for, whether they are there or not.
    pub asked: Vec<Provider>,
    /// Its file is gone, and it serves until one of these versions takes its place, or none of them can.
    pub awaits: Option<BTreeSet<Version>>,
}

impl Served {
    /// The percentile that the budget bounds; p99 where there is none.
    fn percentile(&self) -> Percentile {
        self.config.budget.map_or(Percentile::P99, |budget| budget.percentile)
    }

    /// What dense was measured to take at the percentile, times the ratio: that one is undisturbed, being taken
    /// in turn with dense, while the tails of two short trials differ by what the box did meanwhile. Zero
    /// where it is not known.
    fn promised(&self, candidate: &Candidate) -> Duration {
        let dense = &self.candidates[0];
        let taken = match self.percentile() {
            Percentile::P50 => dense.p50,
            Percentile::P90
            | Percentile::P95
            | Percentile::P99
            | Percentile::P999
            | Percentile::Max => dense.p99,
        };
        let taken = taken.unwrap_or_default();
        let scaled = taken.as_secs_f64() * candidate.info.ratio;
        Duration::try_from_secs_f64(scaled).unwrap_or(taken)
    }

    /// Requests of the variant in service within the window, since it came into service, in the order of
    /// the answers.
    fn recent(&self, now: Instant) -> Window {
        let window = Duration::from(self.config.governor.window);
        let since = now.checked_sub(window).map_or(self.switched, |at| at.max(self.switched));
        self.slot.current().stats().window(since)
    }

    /// What the governor is shown.
    pub fn view(&self, now: Instant) -> ModelView {
        let budget = self.config.budget.map(|budget| Duration::from(budget.limit));
        let Window { latency, compute } = self.recent(now);
        let observed = Observed::new(latency, self.percentile()).with_runs(compute);
        let governor = &self.config.governor;
        ModelView {
            name: self.key.model.clone(),
            variants: self
                .candidates
                .iter()
                .map(|candidate| VariantView {
                    name: candidate.info.name.clone(),
                    promised: self.promised(candidate),
                    quality: candidate.info.quality,
                    ready: matches!(candidate.standby, Standby::Loaded(_) | Standby::InService),
                })
                .collect(),
            current: self.current,
            budget,
            floor: self.config.quality_floor,
            priority: self.config.priority,
            policy: Policy {
                window: governor.window.into(),
                dwell: governor.dwell.into(),
                margin: governor.margin,
                headroom: governor.headroom,
                sustain: governor.sustain.into(),
                probation: governor.probation.into(),
            },
            observed,
            load: self.demand.load(self.config.instances),
            fault: self.fault.is_some(),
            disproved: self.candidates[self.current].disproved.is_some(),
        }
    }

    /// For `blochd status` and everybody who asks by HTTP.
    pub fn status(&self, verdict: Option<&Verdict>, now: Instant) -> Value {
        let ms = |duration: Duration| duration.as_secs_f64() * 1e3;
        let mut latencies = self.recent(now).latency;
        latencies.sort_unstable();
        let totals = self.slot.totals();
        let at_budget = self.percentile().of(&latencies);
        let build = self.build.status();
        let candidates = self.candidates.iter().map(|candidate| {
            let (state, why) = candidate.standby.words();
            json!({
                "name": candidate.info.name, "ratio": candidate.info.ratio,
                "quality": candidate.info.quality, "promised_p50_ms": candidate.p50.map(ms),
                "promised_p99_ms": candidate.p99.map(ms), "state": state, "why": why,
            })
        });
        let mut status = json!({
            "model": self.key.model, "version": self.key.version.0,
            "digest": self.digest.to_string(),
            "variant": self.candidates[self.current].info.name,
            "ratio": self.candidates[self.current].info.ratio,
            "budget": self.config.budget.map(|budget| json!({
                "percentile": budget.percentile.to_string(), "limit_ms": ms(budget.limit.into()),
            })),
            "observed": {
                "requests": latencies.len(),
                "p50_ms": Percentile::P50.of(&latencies).map(ms),
                "p99_ms": Percentile::P99.of(&latencies).map(ms),
                "at_budget_ms": at_budget.map(ms),
            },
            "met": verdict.and_then(|verdict| verdict.met),
            "slowdown": verdict.map(|verdict| verdict.slowdown),
            "quality_floor": self.config.quality_floor,
            "answered": totals.success, "failed": totals.failure,
            "refused": self.slot.refusals().values().sum::<u64>(), "queued": self.slot.pending().0,
            "swaps": self.swaps, "last_swap_because": self.last_because,
            "ladder": candidates.collect::<Vec<_>>(), "provider": self.standing.status(),
        });
        if let (Some(status), Value::Object(build)) = (status.as_object_mut(), build) {
            status.extend(build);
        }
        status
    }
}
