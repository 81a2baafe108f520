//! Whether rungs agree with dense on live requests as well as on calibration data: when dense is loaded to be
//! compared with, and what becomes of a rung that does not.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Instant;

use serde_json::{Value, json};

use super::Agent;
use super::event::{Event, Unfit};
use super::lifecycle::seconds_since_1970;
use super::memory;
use super::prepare::Loader;
use super::served::{Served, Standby};
use crate::arrivals::VersionKey;
use crate::governor::ModelView;
use crate::governor::shadow::{Draw, Judgement, Tracker, Trackers, Withdrawn};
use crate::limits;
use crate::schedule::Batching;
use crate::shell::shadow::{Shadow, Start, Tally};
use crate::shell::slot::{Runner, Slot};
use crate::shell::store::Quarantined;
use crate::units::Digest;

/// The comparisons of one model in service.
pub struct Shadowing {
    slot: Weak<Slot>,
    share: f64,
    stands: Stands,
    /// Since when dense itself serves: there is nothing to compare it with.
    idle: Option<Instant>,
    /// Of shadows that have ended.
    before: Tally,
    trackers: Trackers,
}

enum Stands {
    /// Dense serves, so that it need not be loaded beside itself.
    Off,
    Opening,
    /// It is not loaded, because of this; it is tried again then.
    Waiting(String, Instant),
    Running(Shadow),
}

impl Shadowing {
    fn new(served: &Served, share: f64) -> Self {
        Self {
            slot: Arc::downgrade(&served.slot),
            share,
            stands: Stands::Off,
            idle: None,
            before: Tally::default(),
            trackers: Trackers::new(),
        }
    }

    fn is_of(&self, served: &Served) -> bool {
        Weak::ptr_eq(&self.slot, &Arc::downgrade(&served.slot))
            && served.config.quality.shadow == Some(self.share)
    }

    /// Ends what runs; the thread is waited for by nobody but who wants to.
    fn stop(&mut self, then: Stands) -> Option<Shadow> {
        if let Some(slot) = self.slot.upgrade() {
            slot.set_witness(None);
        }
        let tally = self.tally();
        match std::mem::replace(&mut self.stands, then) {
            Stands::Running(shadow) => {
                self.before = tally;
                Some(shadow)
            }
            Stands::Off | Stands::Opening | Stands::Waiting(..) => None,
        }
    }

    fn tally(&self) -> Tally {
        let Stands::Running(shadow) = &self.stands else { return self.before };
        let (now, before) = (shadow.tally(), self.before);
        Tally {
            compared: before.compared + now.compared,
            busy: before.busy + now.busy,
            unsuitable: before.unsuitable + now.unsuitable,
            failed: before.failed + now.failed,
        }
    }

    fn words(&self) -> (&'static str, Option<&str>) {
        match &self.stands {
            Stands::Off => ("off while dense serves", None),
            Stands::Opening => ("loading", None),
            Stands::Waiting(why, _) => ("waiting", Some(why)),
            Stands::Running(_) => ("running", None),
        }
    }
}

impl Drop for Shadowing {
    fn drop(&mut self) {
        self.stop(Stands::Off);
    }
}

impl Agent {
    /// Each turn: dense is loaded for comparisons where a rung serves and the policy wants them, and is let go
    /// some time after the last rung has left service.
    pub(super) fn follow_shadows(&mut self, views: &[ModelView], now: Instant) {
        let fits = |view: &ModelView| match view.observed.tail().zip(view.budget) {
            Some((took, budget)) => {
                took.as_secs_f64() <= limits::SHADOW_SLACK * budget.as_secs_f64()
            }
            None => true,
        };
        self.calm.store(views.iter().all(fits), Ordering::Relaxed);
        let served = &self.served;
        self.shadows.retain(|model, one| served.get(model).is_some_and(|s| one.is_of(s)));
        for model in self.shadows.keys().cloned().collect::<Vec<_>>() {
            self.take_compared(&model);
        }
        let mut to_open = Vec::new();
        for (model, served) in &self.served {
            let Some(share) = served.config.quality.shadow else { continue };
            let fresh = || Shadowing::new(served, share);
            let one = self.shadows.entry(model.clone()).or_insert_with(fresh);
            let is_rung = |digest: &Digest| {
                served.candidates.iter().skip(1).any(|rung| rung.info.digest == *digest)
            };
            one.trackers.retain(|digest, _| is_rung(digest));
            if served.current == 0 {
                let since = *one.idle.get_or_insert(now);
                let over = now.saturating_duration_since(since) >= limits::SHADOW_KEEP;
                if over || !matches!(one.stands, Stands::Running(_)) {
                    one.stop(Stands::Off);
                }
                continue;
            }
            one.idle = None;
            let is_due = match &one.stands {
                Stands::Off => true,
                Stands::Waiting(_, until) => *until <= now,
                Stands::Opening | Stands::Running(_) => false,
            };
            if is_due {
                one.stands = Stands::Opening;
                to_open.push(model.clone());
            }
        }
        to_open.iter().for_each(|model| self.open_shadow(model));
    }

    /// Loads a session of dense for comparisons alone: one that stands by must be free for service at any
    /// moment. It has one thread, the one that calls it, so that all of it runs at that thread's priority.
    fn open_shadow(&self, model: &str) {
        let longest = self.served.get(model).and_then(|served| served.candidates[0].p99);
        let mut loader = self.loader_for(model).expecting(longest);
        (loader.instances, loader.threads, loader.batching) = (1, 1, Batching::OFF);
        // Where the model's threads are bound is for those that serve.
        loader.cpus = Vec::new();
        let Some(served) = self.served.get(model) else { return };
        let dense = &served.candidates[0];
        let (path, digest, ran_on) = (dense.path.clone(), dense.info.digest, dense.ran_on);
        let lending = dense.lending.clone();
        let (events, permits) = (self.events.clone(), Arc::clone(&self.loading));
        let key = served.key.clone();
        tokio::spawn(async move {
            let _one_at_a_time = permits.acquire_owned().await;
            let lends = lending.is_on();
            let reopen = |loader: Loader, path| loader.reopen(path, digest, ran_on, lending);
            let outcome = loader.with_room(path, lends, reopen).await.map(|(sessions, _)| sessions);
            let _ = events.send(Event::Shadowed { key, outcome }).await;
        });
    }

    /// Dense is loaded for comparisons, or is not.
    pub(super) fn shadowed(
        &mut self,
        key: &VersionKey,
        outcome: Result<Vec<Box<dyn Runner>>, Unfit>,
    ) {
        let Some(served) = self.served.get(&key.model).filter(|served| served.key == *key) else {
            return;
        };
        let one = self.shadows.get_mut(&key.model).filter(|one| one.is_of(served));
        let Some(one) = one.filter(|one| matches!(one.stands, Stands::Opening)) else { return };
        let session = outcome.map_err(|unfit| unfit.reason).and_then(|mut sessions| {
            sessions.pop().ok_or_else(|| "no session was loaded".to_owned())
        });
        let (repository, calm) = (Arc::clone(&self.repository), Arc::clone(&self.calm));
        let started = session.and_then(|dense| {
            let start = Start {
                model: key.model.clone(),
                outputs: served.slot.signature().outputs.iter().map(|o| o.name.clone()).collect(),
                digest: served.digest,
                dense,
                draw: Draw::new(one.share, served.config.ladder.seed),
                slack: Box::new(move || {
                    let nobody_waits = |slot: &Arc<Slot>| slot.waiting() == 0;
                    calm.load(Ordering::Relaxed) && repository.slots().iter().all(nobody_waits)
                }),
            };
            Shadow::start(start).map_err(|error| error.to_string())
        });
        match started {
            Ok(shadow) => {
                served.slot.set_witness(Some(shadow.witness()));
                one.stands = Stands::Running(shadow);
                let share = one.share;
                tracing::info!(model = key.model, share, "some requests run on dense as well");
            }
            Err(why) => {
                tracing::warn!(model = key.model, "no request runs on dense as well: {why}");
                one.stands = Stands::Waiting(why, Instant::now() + limits::SHADOW_RETRY);
            }
        }
    }

    /// Something that is to serve finds no room: what only compares makes some.
    pub(super) fn shadows_give_way(&mut self) {
        let until = Instant::now() + limits::SHADOW_RETRY;
        for one in self.shadows.values_mut() {
            if matches!(one.stands, Stands::Running(_)) {
                one.stop(Stands::Waiting("its memory is wanted for serving".to_owned(), until));
            }
        }
    }

    /// Ends all comparisons; gives what may still run.
    pub(super) fn end_shadows(&mut self) -> Vec<Shadow> {
        let mut all = std::mem::take(&mut self.shadows);
        all.values_mut().filter_map(|one| one.stop(Stands::Off)).collect()
    }

    /// Takes in what dense and the rungs of a model said of live requests.
    fn take_compared(&mut self, model: &str) {
        let Some(one) = self.shadows.get_mut(model) else { return };
        let Some(served) = self.served.get(model) else { return };
        let Stands::Running(shadow) = &one.stands else { return };
        let floor = served.config.quality_floor;
        let mut bad = Vec::new();
        for (variant, compared) in shadow.take() {
            let tracker = one.trackers.entry(variant).or_insert_with(|| Tracker::new(floor));
            if tracker.floor() != floor {
                // What was weighed against another floor says nothing of this one.
                *tracker = Tracker::new(floor);
            }
            if let Judgement::Withdrawn(why) = tracker.observe(compared) {
                bad.push((variant, why));
            }
        }
        for (variant, why) in bad {
            self.withdraw(model, variant, why);
        }
    }

    /// A rung is worse on live requests than it may be. One that serves leaves service at the governor's next
    /// look, as soon as another one can take its place.
    fn withdraw(&mut self, model: &str, variant: Digest, why: Withdrawn) {
        let Some(served) = self.served.get_mut(model) else { return };
        let mut rungs = served.candidates.iter_mut().skip(1);
        let Some(rung) = rungs.find(|rung| rung.info.digest == variant) else { return };
        if rung.disproved.is_some() || matches!(rung.standby, Standby::Withdrawn(_)) {
            return;
        }
        let reason = why.to_string();
        if matches!(rung.standby, Standby::InService) {
            rung.disproved = Some(why);
        } else {
            let before = std::mem::replace(&mut rung.standby, Standby::Withdrawn(reason.clone()));
            if let Standby::Loaded(sessions) = before {
                memory::free(sessions);
            }
        }
        let name = rung.info.name.clone();
        tracing::error!(model, variant = name, "withdrawn: {reason}");
        self.metrics.withdrawn(model, served.key.version);
        let (what, at) = (format!("{model} {name}"), seconds_since_1970());
        self.quarantine(variant, Quarantined { what, reason, at, floor: Some(why.floor) });
    }

    /// Adds to the status of a model what its comparisons say.
    pub(super) fn tell_shadow(&self, served: &Served, status: &mut Value) {
        let Some(one) = self.shadows.get(&served.key.model) else { return };
        let (state, why) = one.words();
        let Tally { compared, busy, unsuitable, failed } = one.tally();
        status["shadow"] = json!({
            "share": one.share, "state": state, "why": why, "compared": compared, "busy": busy,
            "unsuitable": unsuitable, "failed": failed,
        });
        for (index, candidate) in served.candidates.iter().enumerate() {
            let Some(tracker) = one.trackers.get(&candidate.info.digest) else { continue };
            let (Some((agreement, over)), Some((low, high))) =
                (tracker.recent(), tracker.interval())
            else {
                continue;
            };
            status["ladder"][index]["live"] = json!({
                "agreement": agreement, "over": over, "low": low, "high": high,
                "requests": tracker.requests(),
            });
        }
    }

    pub(super) fn tell_shadow_metrics(&self, served: &Served) {
        let Some(one) = self.shadows.get(&served.key.model) else { return };
        let Tally { compared, busy, unsuitable, failed } = one.tally();
        let requests = BTreeMap::from([
            ("compared", compared),
            ("busy", busy),
            ("unsuitable", unsuitable),
            ("failed", failed),
        ]);
        let agreement = served.candidates.iter().filter_map(|candidate| {
            let (agreement, _) = one.trackers.get(&candidate.info.digest)?.recent()?;
            Some((candidate.info.name.clone(), agreement))
        });
        let (model, version) = (&served.key.model, served.key.version);
        self.metrics.shadow(model, version, requests, agreement.collect());
    }
}
