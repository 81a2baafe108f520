//! The agent's turn: the governor, the metrics and the status.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;

use super::linked::Linked;
use super::polled::Polled;
use super::served::{Served, Standby};
use super::{Agent, pace};
use crate::config::Provider;
use crate::governor;
use crate::limits;
use crate::shell::children::Wish;
use crate::shell::frugal;
use crate::shell::slot;
use crate::shell::systemd::tell;

impl Agent {
    pub(super) fn tick(&mut self) {
        let now = Instant::now();
        let elapsed = now - self.last_tick;
        let last_tick = std::mem::replace(&mut self.last_tick, now);
        self.count_arrivals(now);
        self.record(last_tick);
        let views: Vec<_> = self.served.values().map(|served| served.view(now)).collect();
        let outcome = governor::step(&mut self.governor, &views, self.started.elapsed());
        self.verdicts = outcome.verdicts;
        outcome.convicted.iter().for_each(|conviction| self.convict(conviction));
        if let Some(action) = &outcome.action {
            self.switch(action);
        }
        self.try_again();
        self.follow_providers(now);
        self.pace_build(&views, now);
        self.follow_shadows(&views, now);
        self.release_held(now);
        self.tell_metrics(elapsed);
        if now.duration_since(self.started) > limits::READY_PATIENCE {
            self.underway.give_up(|key| self.arrivals.is_settling(key));
        }
        // Ready once, with the first listing served or refused: then every model is where it can be.
        if self.underway.is_complete() && !self.repository.is_ready() {
            // Who finds it ready finds in the status what it serves.
            self.tell_status(now);
            self.repository.set_ready(true);
            // What the start needed is not needed again.
            frugal::give_back_heap();
            frugal::give_back_program();
        }
        self.end_probations(now);
        self.turn_fleet(now);
        self.tell_status(now);
        self.tell_link(now);
        // A run on a device is given up by those who wait for it, and may compile for long.
        let on_cpu = self.served.values().filter(|s| s.standing.provider == Provider::Cpu);
        let slots = on_cpu.map(|served| (&served.key.model, &served.slot));
        let runs = slots.filter_map(|(model, slot)| Some((model.clone(), slot.longest_run(now)?)));
        self.life.runs(runs.collect());
        tell(&[sd_notify::NotifyState::Status(&self.one_line(now))]);
    }

    /// A build makes place while a model is near its budget.
    fn pace_build(&mut self, views: &[governor::ModelView], now: Instant) {
        let observed = views.iter().filter_map(|view| view.observed.tail().zip(view.budget));
        let pressure = pace::pressure(observed);
        let paused = match *self.build_wish.borrow() {
            Wish::Pause => true,
            Wish::Run => false,
            Wish::End => return,
        };
        let since = self.build_since.map(|since| now.saturating_duration_since(since));
        let pause = pace::pauses(paused, pressure, since);
        if self.building.is_some() && pause != paused {
            self.build_wish.send_replace(if pause { Wish::Pause } else { Wish::Run });
            self.build_since = Some(now);
            tracing::info!("the build {}", if pause { "makes place" } else { "goes on" });
        }
    }

    fn tell_metrics(&self, elapsed: Duration) {
        self.metrics.refused(self.admitting.gate.refused());
        for (model, served) in &self.served {
            let version = served.key.version;
            let budget = served.config.budget.map(|budget| Duration::from(budget.limit));
            self.metrics.budget(model, version, budget);
            let mut standby = BTreeMap::new();
            for candidate in &served.candidates {
                *standby.entry(candidate.standby.words().0).or_default() += 1;
            }
            self.metrics.ladder(model, version, served.current, standby);
            self.tell_shadow_metrics(served);
            self.tell_provider_metrics(served);
            let Some(verdict) = self.verdicts.get(model) else { continue };
            self.metrics.slowdown(model, version, Some(verdict.slowdown));
            if let Some(met) = verdict.met {
                self.metrics.budget_held(model, version, met, elapsed);
            }
        }
    }

    /// A variant that has served its probation without a fault is trusted.
    fn end_probations(&mut self, now: Instant) {
        for served in self.served.values_mut() {
            let probation = Duration::from(served.config.governor.probation);
            let current = served.slot.current();
            if current.on_probation() && now.saturating_duration_since(served.switched) > probation
            {
                current.set_probation(false);
                served.candidates[served.current].faults = 0;
            }
        }
    }

    /// Variants that were held back long enough may stand by again.
    fn release_held(&mut self, now: Instant) {
        let waits = |served: &&Served| {
            let all = served.candidates.iter();
            all.filter(|candidate| matches!(candidate.standby, Standby::Waiting(_)))
                .any(|candidate| candidate.held_until.is_some_and(|until| until <= now))
        };
        let models = self.served.values().filter(waits).map(|served| served.key.model.clone());
        for model in models.collect::<Vec<String>>() {
            self.open_missing(&model);
        }
    }

    /// What the service manager shows: who hangs, and what is served.
    fn one_line(&self, now: Instant) -> String {
        let stalled = self.life.stalled(now).into_iter().map(|stalled| stalled.to_string());
        let models = self.served.values().map(|served| {
            let variant = &served.candidates[served.current].info.name;
            format!("{} {}: {variant}", served.key.model, served.key.version)
        });
        let served: Vec<String> = models.collect();
        let served =
            if served.is_empty() { "no model is served".to_owned() } else { served.join(", ") };
        stalled.chain([served]).collect::<Vec<_>>().join("; ")
    }

    pub(super) fn tell_status(&self, now: Instant) {
        let models: Vec<_> = self
            .served
            .values()
            .map(|served| {
                let mut status = served.status(self.verdicts.get(&served.key.model), now);
                let is_built = self.building.as_ref().is_some_and(|(key, _)| *key == served.key);
                let paused = *self.build_wish.borrow() == Wish::Pause;
                status["build_paused"] = json!(is_built && paused);
                self.tell_shadow(served, &mut status);
                status
            })
            .collect();
        let refused: Vec<_> = self
            .refused
            .iter()
            .map(|(key, reason)| {
                json!({"model": key.model, "version": key.version.0, "reason": reason})
            })
            .collect();
        let quarantine: Vec<_> = self
            .store
            .quarantined()
            .iter()
            .map(|(digest, one)| {
                let digest = digest.to_string();
                json!({"digest": digest, "what": one.what, "reason": one.reason, "at": one.at})
            })
            .collect();
        let mut hardware = (self.hardware)();
        hardware["devices"] = self.devices.devices();
        let status = json!({
            "blochd": env!("CARGO_PKG_VERSION"),
            "ready": self.repository.is_ready(),
            "uptime_s": self.started.elapsed().as_secs(),
            "config": {
                "file": self.config_file.as_ref().map(|f| f.path().display().to_string()),
                "revision": self.config_revision, "error": self.config_error,
            },
            "models": models, "refused": refused, "quarantine": quarantine,
            "building": self.building.as_ref().map(|(key, _)| key.model.clone()),
            "shared_weights_bytes": self.loader.pool.bytes(),
            "abandoned_sessions": slot::abandoned(),
            "sandbox": self.loader.confined.status(self.config.sandbox),
            "hardware": hardware, "accelerators": self.devices.status(),
            "fleet": self.fleet_status(),
            "broker": self.linked.as_ref().map(Linked::status),
            "access": self.admitting.status(&self.config),
            "poll": self.polled.as_ref().map(Polled::status),
        });
        self.status.store(Arc::new(status));
    }
}
