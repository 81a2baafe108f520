//! How variants are loaded to stand by, put into service and drained.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Agent;
use super::event::{Event, Fate, Opened, Unfit};
use super::memory;
use super::prepare::Loader;
use super::served::{Build, Candidate, Misdeed, Standby};
use crate::arrivals::VersionKey;
use crate::config::Provider;
use crate::governor;
use crate::ladder::manifest::CalibrationSource;
use crate::limits;
use crate::shell::slot::{Drain, Fault, Notice, Runner};
use crate::shell::spans::{Kind, Place, Span, Value};
use crate::shell::store::{InService, ModelRecord};
use crate::units::Digest;

/// A change of variants until the one that left has answered its last request.
pub(super) struct Swap {
    to: String,
    because: String,
    begun: Instant,
}

impl Swap {
    pub(super) fn new(to: String, because: String, begun: Instant) -> Self {
        Self { to, because, begun }
    }

    fn span(self, place: Place, key: &VersionKey, from: &str) -> Span {
        let text = |text: &str| Value::Text(text.to_owned());
        let told = vec![
            ("blochd.model", text(&key.model)),
            ("blochd.version", Value::Whole(key.version.0)),
            ("blochd.variant", Value::Text(self.to)),
            ("blochd.from", text(from)),
            ("blochd.because", Value::Text(self.because)),
        ];
        let (begun, ended, kind) = (self.begun, Instant::now(), Kind::Internal);
        Span { place, name: "swap", kind, begun, ended, told, error: None }
    }
}

impl Agent {
    /// Loads the variants that could serve and are not loaded, except those that are held back.
    pub(super) fn open_missing(&mut self, model: &str) {
        let loader = self.loader_for(model);
        let now = Instant::now();
        let Some(served) = self.served.get_mut(model) else { return };
        if served.standing.is_going() {
            // What it is on its way to has a ladder of its own.
            return;
        }
        let floor = served.config.quality_floor;
        let made_up = matches!(
            &served.build,
            Build::Done(manifest) if manifest.calibration.source == CalibrationSource::Synthetic
        );
        for (index, candidate) in served.candidates.iter_mut().enumerate() {
            if !matches!(candidate.standby, Standby::Waiting(_))
                || candidate.held_until.is_some_and(|until| until > now)
            {
                continue;
            }
            candidate.held_until = None;
            // What noise says of quality holds for noise: only who asks for none takes its word.
            if index > 0 && made_up && floor > 0.0 {
                let why = "its quality is not known: no calibration.npz was given, and made-up \
                           samples prove nothing; give one, or let samples of requests be kept \
                           (calibration: {live: true})";
                candidate.standby = Standby::Waiting(why.to_owned());
                continue;
            }
            if index > 0 && candidate.info.quality < floor {
                let quality = candidate.info.quality;
                let why = format!("its quality {quality:.3} is below the floor of {floor}");
                candidate.standby = Standby::Waiting(why);
                continue;
            }
            candidate.standby = Standby::Opening;
            let (events, permits) = (self.events.clone(), Arc::clone(&self.loading));
            let (key, loader) = (served.key.clone(), loader.clone());
            let (path, digest) = (candidate.path.clone(), candidate.info.digest);
            let (variant, provider) = (candidate.info.name.clone(), loader.provider.clone());
            tokio::spawn(async move {
                let _one_at_a_time = permits.acquire_owned().await;
                let lends = loader.expects_lending;
                let open = |loader: Loader, path| loader.open(path, digest);
                let outcome = loader.with_room(path, lends, open).await;
                let event = Event::Opened { key, digest, variant, provider, outcome };
                let _ = events.send(event).await;
            });
        }
    }

    pub(super) fn opened(
        &mut self,
        key: &VersionKey,
        digest: Digest,
        variant: &str,
        provider: &Provider,
        outcome: Result<Opened, Unfit>,
    ) {
        let served = self.served.get(&key.model).filter(|served| served.key == *key);
        if served.is_none_or(|s| s.standing.is_going() || s.standing.provider != *provider) {
            // The model runs on something else by now, or is about to.
            memory::free(outcome);
            return;
        }
        let blamed = match &outcome {
            Err(unfit) => self.variant_is_to_blame(&key.model, variant, digest, unfit.fate),
            Ok(_) => {
                self.variant_went_well(&key.model, variant);
                false
            }
        };
        let Some(served) = self.served.get_mut(&key.model).filter(|s| s.key == *key) else {
            return;
        };
        let find = |c: &&mut Candidate| c.info.name == variant && c.info.digest == digest;
        let Some(candidate) = served.candidates.iter_mut().find(find) else { return };
        if !matches!(candidate.standby, Standby::Opening) {
            // What it did before it left service was found out while it was loaded again, or it serves already.
            memory::free(outcome);
            return;
        }
        let wants_room = outcome.as_ref().is_err_and(|unfit| unfit.fate == Fate::Later);
        match outcome {
            Ok(opened) => {
                candidate.ran_on = opened.ran_on;
                candidate.lending = opened.lending;
                candidate.standby = Standby::Loaded(opened.sessions);
                self.resume(key, variant);
            }
            Err(unfit) if blamed => {
                candidate.standby = Standby::Withdrawn(unfit.reason.clone());
                let reason = unfit.reason.as_str();
                tracing::error!(model = key.model, variant, reason, "withdrawn: {reason}");
                self.put_into_quarantine(digest, format!("{} {variant}", key.model), unfit.reason);
            }
            Err(unfit) => candidate.standby = Standby::Waiting(unfit.reason),
        }
        if wants_room {
            self.shadows_give_way();
        }
    }

    /// After a restart the variant that served last takes over again as soon as it is loaded: whatever
    /// made it necessary is likely to last.
    fn resume(&mut self, key: &VersionKey, variant: &str) {
        let Some(served) = self.served.get(&key.model).filter(|served| served.swaps == 0) else {
            return;
        };
        let last = self.store.model(&key.model).in_service;
        let this =
            InService { version: key.version, dense: served.digest, variant: variant.to_owned() };
        let to = served.candidates.iter().position(|c| c.info.name == variant);
        if let Some(to) = to.filter(|to| *to > 0 && last == Some(this)) {
            let because = governor::Because::Budget;
            self.switch(&governor::Action { model: key.model.clone(), to, because });
        }
    }

    pub(super) fn remember_variant(&mut self, model: &str) {
        let Some(served) = self.served.get(model) else { return };
        let in_service = Some(InService {
            version: served.key.version,
            dense: served.digest,
            variant: served.candidates[served.current].info.name.clone(),
        });
        let record = ModelRecord { in_service, ..self.store.model(model) };
        if let Err(error) = self.store.put_model(model, record) {
            tracing::warn!(model, "the variant in service is not remembered: {error}");
        }
    }

    /// Carries out what the governor asks for.
    pub(super) fn switch(&mut self, action: &governor::Action) {
        let Some(served) = self.served.get_mut(&action.model) else { return };
        let Some(candidate) = served.candidates.get_mut(action.to) else { return };
        let Standby::Loaded(_) = candidate.standby else { return };
        let begun = Instant::now();
        let taken = std::mem::replace(&mut candidate.standby, Standby::InService);
        let sessions: Vec<Box<dyn Runner>> = match taken {
            Standby::Loaded(sessions) => sessions,
            Standby::InService | Standby::Opening | Standby::Waiting(_) | Standby::Withdrawn(_) => {
                return;
            }
        };
        let info = candidate.info.clone();
        let name = info.name.clone();
        let drain = match served.slot.publish(info, sessions, true) {
            Ok(drain) => drain,
            Err(error) => {
                candidate.hold(error.to_string(), limits::FAULT_WAIT, Instant::now());
                return;
            }
        };
        let leaving = &mut served.candidates[served.current];
        let (from, left) = (leaving.info.name.clone(), leaving.info.digest);
        let fault = served.fault.take();
        let mut convicted = None;
        match (leaving.disproved.take(), fault) {
            // It stands in the quarantine since that was found.
            (Some(why), _) => leaving.standby = Standby::Withdrawn(why.to_string()),
            (None, None) => leaving.standby = Standby::Opening,
            (None, Some(Misdeed { reason, for_good })) => {
                leaving.faults += 1;
                if for_good || leaving.faults >= limits::FAULTS_TO_CONVICT {
                    leaving.standby = Standby::Withdrawn(reason.clone());
                    convicted = Some(reason);
                } else {
                    let why = format!("it failed in service and is held back: {reason}");
                    leaving.hold(why, limits::FAULT_WAIT, Instant::now());
                }
            }
        }
        served.current = action.to;
        served.switched = Instant::now();
        served.swaps += 1;
        served.last_because = Some(action.because.to_string());
        let key = served.key.clone();
        let (version, reason) = (key.version, action.because);
        let latency = served.candidates[served.current].p99;
        // The journal shows the words alone, and finds by the fields.
        tracing::info!(
            model = key.model, %version, variant = name, from, to = name, %reason,
            promised_p99 = ?latency, "swapped {from} for {name}: {reason}"
        );
        self.metrics.swapped(&key.model, key.version, &action.because.to_string());
        if let Some(reason) = convicted {
            let what = format!("{} {from}", key.model);
            self.put_into_quarantine(left, what, format!("it failed in service: {reason}"));
        }
        self.remember_variant(&key.model);
        let swap = Swap { to: name, because: action.because.to_string(), begun };
        self.await_drain(key, from, swap, drain);
    }

    fn await_drain(&self, key: VersionKey, variant: String, swap: Swap, drain: Drain) {
        let drained = Event::Drained { key: key.clone(), variant: variant.clone() };
        self.await_then(key, variant, swap, drain, Some(drained));
    }

    /// The same for one that is not loaded again.
    pub(super) fn await_other_drain(
        &self,
        key: VersionKey,
        variant: String,
        swap: Swap,
        drain: Drain,
    ) {
        self.await_then(key, variant, swap, drain, None);
    }

    fn await_then(
        &self,
        key: VersionKey,
        variant: String,
        swap: Swap,
        drain: Drain,
        then: Option<Event>,
    ) {
        let tracer = self.tracer.clone();
        let events = self.events.clone();
        let patience = Duration::from(self.config.drain_timeout);
        tokio::spawn(async move {
            if tokio::time::timeout(patience, drain.done()).await.is_err() {
                tracing::warn!(model = key.model, variant, "is still running a request");
            }
            if let Some(tracer) = tracer {
                tracer.send(swap.span(tracer.root(), &key, &variant));
            }
            if let Some(event) = then {
                let _ = events.send(event).await;
            }
        });
    }

    /// The variant that left service is loaded again, to stand by.
    pub(super) fn drained(&mut self, key: &VersionKey, variant: &str) {
        let loader = self.loader_for(&key.model);
        let Some(served) = self.served.get(&key.model).filter(|s| s.key == *key) else { return };
        let found = served.candidates.iter().find(|c| c.info.name == variant);
        let Some(candidate) = found.filter(|c| matches!(c.standby, Standby::Opening)) else {
            return;
        };
        let (events, permits) = (self.events.clone(), Arc::clone(&self.loading));
        let (key, variant) = (key.clone(), variant.to_owned());
        let provider = loader.provider.clone();
        let (path, digest) = (candidate.path.clone(), candidate.info.digest);
        let (p50, p99, ran_on) = (candidate.p50, candidate.p99, candidate.ran_on);
        let lending = candidate.lending.clone();
        tokio::spawn(async move {
            let _one_at_a_time = permits.acquire_owned().await;
            let lends = lending.is_on();
            let loader = loader.expecting(p99);
            let reopen = |loader: Loader, path| loader.reopen(path, digest, ran_on, lending);
            let sessions = loader.with_room(path, lends, reopen).await;
            let opened = |(sessions, lending)| Opened { sessions, p50, p99, ran_on, lending };
            let outcome = sessions.map(opened);
            let event = Event::Opened { key, digest, variant, provider, outcome };
            let _ = events.send(event).await;
        });
    }

    pub(super) fn notice(&mut self, notice: &Notice) {
        let Some(served) = self.served.get_mut(&notice.model) else { return };
        let current = served.slot.current();
        if served.key.version != notice.version || current.generation() != notice.generation {
            return;
        }
        let reason = match &notice.fault {
            Fault::Error(reason) => reason.clone(),
            Fault::Panic(reason) => format!("it panicked: {reason}"),
            Fault::NonFinite { output } => format!("its output {output:?} was not finite"),
        };
        tracing::error!(model = notice.model, variant = notice.variant, reason, "fault: {reason}");
        // Dense is what the operator gave: there is nothing to go back to. A rung that has served its
        // probation is no worse than dense: a request that fails it is likely at fault itself.
        let panicked = matches!(notice.fault, Fault::Panic(_));
        if served.current != 0 && (current.on_probation() || panicked) {
            served.fault = Some(Misdeed { reason, for_good: panicked });
        }
    }
}
