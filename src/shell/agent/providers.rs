//! On which execution provider each model runs, and how one comes to another: away from a device that is
//! lost, and back to what is wanted first. The slot stays; what waits in its queue is run by the new
//! sessions.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::Agent;
use super::choosing::{Choosing, Tried, told};
use super::event::{Event, Fate, Prepared, Unfit};
use super::memory;
use super::prepare::Loader;
use super::served::{Build, Served, Standby};
use super::swapping::Swap;
use crate::arrivals::VersionKey;
use crate::config::providers::CANN;
use crate::config::{Config, ModelConfig, Plugin, Provider, Wanted};
use crate::hardware::{
    Choice, Passed, PassedOver, Roster, Vendor, label, told_unusable, unusable, ways,
};
use crate::limits;
use crate::shell::children::this_program;
use crate::shell::engine::{Found, OfferedDevice, RuntimeError, Search, compiled};
use crate::shell::metrics::Runs;
use crate::shell::probe::detect;
use crate::shell::store::FailedOnProvider;

/// Finds ONNX Runtime: one with the provider for CANN where NPUs of Ascend are seen or the configuration names
/// it, and there is such a one; models' own policies are not known yet.
///
/// # Errors
/// Where there is none at all.
pub fn runtime(config: &Config) -> Result<Found, RuntimeError> {
    let search = Search::new(config.runtime_library.clone(), &config.state_dir);
    let names = |of: &ModelConfig| of.execution_providers.0.contains(&Wanted::Cann);
    let mut named = config.named_models().filter_map(|model| config.model(model, None).ok());
    let wanted = detect::accelerators(Path::new("/")).contains_key(&Vendor::Ascend)
        || names(&config.defaults)
        || named.any(|of| names(&of));
    match wanted {
        true => Found::preferring(&search, &Provider::Cann(config.cann.clone()), &this_program()),
        false => Found::new(&search, &this_program()),
    }
}

/// Why a model goes to another provider.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Going {
    /// What it runs on is gone.
    Off,
    /// What is wanted before it may do again.
    Back,
}

/// How long a provider is left alone that has failed so many times before: twice as long each time.
fn wait_after(failures: u32) -> Duration {
    let factor = 1u32.checked_shl(failures).unwrap_or(u32::MAX);
    limits::PROVIDER_AGAIN_FIRST.saturating_mul(factor).min(limits::PROVIDER_AGAIN_LONGEST)
}

/// How a served model stands with its providers.
#[derive(Debug, Clone, Default)]
pub struct Standing {
    /// What it runs on.
    pub provider: Provider,
    /// What was wanted before that or beside it, and why it is not that.
    pub passed: Vec<PassedOver>,
    /// What the trial told of the provider in service.
    pub facts: Value,
    going: Option<Going>,
    /// When something that is wanted before it is looked for.
    due: Option<Instant>,
    failures: u32,
    /// When a way off what is lost is looked for again; `None`: at once.
    off_again: Option<Instant>,
}

impl Standing {
    pub fn new(provider: Provider, tried: &Tried, facts: Value, now: Instant) -> Self {
        let mut standing = Self { provider, facts, ..Self::default() };
        standing.see(tried, now);
        standing
    }

    /// Takes in what was passed over, and when that is looked at again.
    fn see(&mut self, tried: &Tried, now: Instant) {
        self.passed = tried.passed.clone();
        let may_change = |passed: &PassedOver| {
            !matches!(passed.why, Passed::NotInRuntime | Passed::NotDescribed)
        };
        self.due = self.passed.iter().any(may_change).then(|| now + self.wait());
    }

    fn wait(&self) -> Duration {
        wait_after(self.failures)
    }

    fn put_off(&mut self, now: Instant) {
        self.failures = self.failures.saturating_add(1);
        self.due = Some(now + self.wait());
    }

    /// Whether it is on its way to another provider.
    pub fn is_going(&self) -> bool {
        self.going.is_some()
    }

    pub fn status(&self) -> Value {
        let passed = self.passed.iter().map(|passed| {
            json!({
                "provider": passed.provider, "kind": passed.why.label(),
                "why": passed.why.to_string(),
            })
        });
        json!({
            "name": label(&self.provider), "passed": passed.collect::<Vec<_>>(),
            "moving": self.is_going(), "trial": self.facts,
        })
    }
}

/// A provider whose sessions failed in service: it is left alone for a while, longer each time.
#[derive(Debug, Clone)]
pub struct Left {
    reason: String,
    times: u32,
    until: Instant,
}

impl Agent {
    /// What a load of the model has to choose from.
    pub(super) fn choosing(&self, model: &str, config: &ModelConfig) -> Choosing {
        let now = Instant::now();
        let left = self.left.iter().filter(|((of, _), left)| of == model && left.until > now);
        let left = left.map(|((_, provider), left)| (provider.clone(), left.reason.clone()));
        Choosing {
            wanted: config.execution_providers.clone(),
            cann_built: self.is_built_with_cann(),
            ascend_seen: self.devices.sees(Vendor::Ascend),
            roster: self.devices.roster().clone(),
            cann: self.config.cann.clone(),
            plugins: self.config.plugins.clone(),
            gone: self.gone_plugins(),
            failed: self.store.failed_on(super::lifecycle::seconds_since_1970()),
            left: left.collect(),
            better_than: None,
        }
    }

    fn is_built_with_cann(&self) -> bool {
        self.loader.runtime.library().providers.iter().any(|provider| provider == CANN)
    }

    /// All that the model asks for, whether it is there or not: what makes it another model to load.
    pub(super) fn asked_providers(&self, config: &ModelConfig) -> Vec<Provider> {
        let asked = Choosing {
            wanted: config.execution_providers.clone(),
            cann_built: true,
            ascend_seen: true,
            roster: Roster::default(),
            cann: self.config.cann.clone(),
            plugins: self.config.plugins.clone(),
            ..Choosing::default()
        };
        let nothing = crate::units::Digest::of(b"");
        asked.choice(nothing, |_| String::new()).candidates
    }

    /// Each turn: models leave what is lost, and go back to what is wanted first where that may do again.
    pub(super) fn follow_providers(&mut self, now: Instant) {
        self.look_at_devices(now);
        for model in self.served.keys().cloned().collect::<Vec<_>>() {
            let Some(served) = self.served.get(&model) else { continue };
            if served.standing.is_going() {
                continue;
            }
            let is_due = served.standing.due.is_some_and(|due| due <= now);
            let lost = served.slot.current().lost().map(str::to_owned);
            let lost = lost.map(|reason| Passed::LeftService { reason });
            match lost.or_else(|| self.gone(served)) {
                Some(why) if served.standing.off_again.is_none_or(|at| at <= now) => {
                    self.leave_provider(&model, &why, now);
                }
                None if is_due => self.go_back(&model, now),
                Some(_) | None => {}
            }
        }
        let served = &self.served;
        self.left.retain(|(model, _), left| served.contains_key(model) || left.until > now);
    }

    /// Why the device in service cannot be worked with any more, as far as its vendor's library tells.
    fn gone(&self, served: &Served) -> Option<Passed> {
        match &served.standing.provider {
            Provider::Cann(cann) => unusable(self.devices.roster(), cann.device_id),
            plugin @ Provider::Plugin(_) => self.gone_with(self.offered.get(plugin)?),
            Provider::Cpu => None,
        }
    }

    fn gone_with(&self, device: &OfferedDevice) -> Option<Passed> {
        told_unusable(self.devices.roster(), device.told())
    }

    /// The plugins whose devices are known and cannot be worked with: trying them would only tell so again.
    fn gone_plugins(&self) -> BTreeMap<String, Passed> {
        let described = |plugin: &Plugin| self.config.plugins.get(&plugin.name) == Some(plugin);
        let gone = self.offered.iter().filter_map(|(provider, device)| match provider {
            Provider::Plugin(plugin) if described(plugin) => {
                Some((plugin.name.clone(), self.gone_with(device)?))
            }
            Provider::Cpu | Provider::Cann(_) | Provider::Plugin(_) => None,
        });
        gone.collect()
    }

    /// Takes in which device a plugin brings: its trial has told it.
    pub(super) fn know_device(&mut self, provider: &Provider, facts: &Value) {
        let Ok(device) = serde_json::from_value::<OfferedDevice>(facts["device"].clone()) else {
            return;
        };
        // Plugins that are described no longer are asked for no more.
        let plugins = &self.config.plugins;
        self.offered.retain(|known, _| match known {
            Provider::Plugin(plugin) => plugins.get(&plugin.name) == Some(plugin),
            Provider::Cpu | Provider::Cann(_) => false,
        });
        self.offered.insert(provider.clone(), device);
    }

    /// An accelerator that comes or gets well is a reason to look at once: of most plugins nobody knows whose
    /// they are.
    fn look_at_devices(&mut self, now: Instant) {
        let usable = self.devices.usable();
        let before = std::mem::replace(&mut self.usable, usable);
        if self.usable.is_subset(&before) {
            return;
        }
        self.left.values_mut().for_each(|left| left.until = now);
        for served in self.served.values_mut() {
            if served.standing.due.is_some() {
                (served.standing.due, served.standing.failures) = (Some(now), 0);
            }
        }
    }

    /// The model leaves what it runs on. What stands by there is let go.
    fn leave_provider(&mut self, model: &str, why: &Passed, now: Instant) {
        let Some(served) = self.served.get_mut(model) else { return };
        let provider = label(&served.standing.provider);
        tracing::error!(model, provider, "it leaves its execution provider: {why}");
        if let Passed::LeftService { reason } = why {
            // Asking the same device in another way would only keep waiting who waits.
            let ways = match &served.standing.provider {
                Provider::Cann(asked) => ways(asked).into_iter().map(Provider::Cann).collect(),
                other => vec![other.clone()],
            };
            for way in ways {
                let key = (model.to_owned(), label(&way));
                let times = self.left.get(&key).map_or(0, |left| left.times);
                let until = now + wait_after(times);
                let left = Left { reason: reason.clone(), times: times.saturating_add(1), until };
                self.left.insert(key, left);
            }
        }
        for candidate in &mut served.candidates {
            if let Standby::Loaded(_) = candidate.standby {
                let why = "what it was loaded on is lost".to_owned();
                let before = std::mem::replace(&mut candidate.standby, Standby::Waiting(why));
                memory::free(before);
            }
        }
        self.go(model, Going::Off);
    }

    /// Looks whether anything that is wanted before the provider in service may do by now.
    fn go_back(&mut self, model: &str, now: Instant) {
        let Some(served) = self.served.get(model) else { return };
        let (digest, serving) = (served.digest, served.standing.provider.clone());
        let loader = self.loader_for(model);
        let Choice { candidates, passed } = loader.choice(digest);
        let better = candidates.first().is_some_and(|first| *first != serving);
        let Some(served) = self.served.get_mut(model) else { return };
        if better {
            self.go(model, Going::Back);
        } else {
            served.standing.see(&Tried { passed, failed: Vec::new() }, now);
            served.standing.put_off(now);
        }
    }

    /// Tries and loads the model on another provider, behind the one in service.
    fn go(&mut self, model: &str, going: Going) {
        let mut loader = self.loader_for(model);
        let Some(served) = self.served.get_mut(model) else { return };
        served.standing.going = Some(going);
        let choosing = Arc::make_mut(&mut loader.choosing);
        match going {
            Going::Back => choosing.better_than = Some(served.standing.provider.clone()),
            // Whatever else is the reason, it is no way out of itself.
            Going::Off => {
                let reason = "it is being left".to_owned();
                choosing.left.entry(label(&served.standing.provider)).or_insert(reason);
            }
        }
        let trying = loader.trying.clone();
        let (key, path) = (served.key.clone(), served.path.clone());
        let (events, permits) = (self.events.clone(), Arc::clone(&self.loading));
        tokio::spawn(async move {
            let _one_at_a_time = permits.acquire_owned().await;
            let lends = loader.expects_lending;
            let outcome = loader.with_room(path, lends, Loader::prepare).await;
            let _ = events.send(Event::Moved { key, outcome, tried: trying.end() }).await;
        });
    }

    /// The model is loaded on another provider, or is not.
    pub(super) fn moved(
        &mut self,
        key: &VersionKey,
        outcome: Result<Box<Prepared>, Unfit>,
        tried: &Tried,
    ) {
        let now = Instant::now();
        self.remember_failures(key, tried);
        let Some(served) = self.served.get_mut(&key.model).filter(|s| s.key == *key) else {
            memory::free(outcome);
            return;
        };
        let Some(going) = served.standing.going.take() else { return };
        match outcome {
            Ok(prepared) if prepared.digest == served.digest => {
                self.change(key, going, *prepared, tried);
            }
            // Its file is another one by now, which is on its way by itself.
            Ok(other) => memory::free(other),
            Err(unfit) => self.not_moved(key, going, &unfit, tried, now),
        }
    }

    fn not_moved(
        &mut self,
        key: &VersionKey,
        going: Going,
        unfit: &Unfit,
        tried: &Tried,
        now: Instant,
    ) {
        let Some(served) = self.served.get_mut(&key.model) else { return };
        tracing::warn!(model = key.model, "it stays where it is: {}", unfit.reason);
        served.standing.see(tried, now);
        served.standing.put_off(now);
        if going == Going::Back {
            return;
        }
        served.standing.off_again = Some(now + limits::PROVIDER_AGAIN_FIRST);
        if unfit.fate == Fate::Later && unfit.digest.is_none() {
            // Nothing was tried: memory was short, as a rule.
            served.standing.off_again = Some(now + limits::PROVIDER_LOST_AGAIN);
            self.shadows_give_way();
            return;
        }
        if served.slot.current().lost().is_none() {
            return;
        }
        // Nothing is left that could answer who waits.
        let (path, digest) = (served.path.clone(), served.digest);
        let reason = format!("what ran it is lost, and nothing else may or can: {}", unfit.reason);
        served.slot.abort();
        self.unload(key, &reason);
        self.refuse(key, &reason);
        let _ = self.version_is_to_blame(key, path, Some(digest), Fate::Later);
    }

    /// Puts the model into service on another provider, in the slot that it has.
    fn change(&mut self, key: &VersionKey, going: Going, prepared: Prepared, tried: &Tried) {
        let begun = Instant::now();
        let Some(served) = self.served.get_mut(&key.model) else { return };
        let Prepared { digest: _, signature: _, opened, provider, facts } = prepared;
        let from = label(&served.standing.provider);
        let to = label(&provider);
        let (asked, told) = (provider.clone(), facts.clone());
        let Some(first) = served.candidates.first() else { return };
        let mut dense = first.anew(&opened);
        dense.standby = Standby::InService;
        let info = dense.info.clone();
        let drain = match served.slot.publish(info, opened.sessions, true) {
            Ok(drain) => drain,
            Err(error) => {
                tracing::error!(model = key.model, "it stays where it is: {error}");
                served.standing.put_off(begun);
                served.standing.off_again = Some(begun + limits::PROVIDER_LOST_AGAIN);
                return;
            }
        };
        let before = std::mem::replace(&mut served.candidates, vec![dense]);
        // What stood by goes with what served.
        memory::free(before);
        served.standing = Standing::new(provider, tried, facts, begun);
        served.build = Build::None("no ladder is wanted".to_owned());
        (served.current, served.switched, served.fault) = (0, begun, None);
        served.swaps += 1;
        let because = match going {
            Going::Off => "provider_lost",
            Going::Back => "provider_returned",
        };
        served.last_because = Some(because.to_owned());
        tracing::info!(model = key.model, from, to, because, "it runs on another provider");
        self.know_device(&asked, &told);
        self.metrics.swapped(&key.model, key.version, because);
        self.remember_variant(&key.model);
        let swap = Swap::new(format!("dense on {to}"), because.to_owned(), begun);
        self.await_other_drain(key.clone(), format!("on {from}"), swap, drain);
        self.end_unwanted_build(&key.model);
        self.want_ladder(key);
        self.evict_compiled();
    }

    /// Remembers on what a version failed, for the next load and the next start.
    pub(super) fn remember_failures(&mut self, key: &VersionKey, tried: &Tried) {
        let at = super::lifecycle::seconds_since_1970();
        for failed in &tried.failed {
            let (model, version) = (&key.model, key.version);
            tracing::warn!(model, %version, provider = failed.provider, "{}", failed.reason);
            let what = format!("{} version {} on {}", key.model, key.version, failed.provider);
            let why = FailedOnProvider { what, reason: failed.reason.clone(), at };
            if let Err(error) = self.store.put_failed_on(failed.key, why) {
                tracing::warn!("a failure on a provider is not remembered: {error}");
            }
        }
    }

    /// Compiled graphs of variants that have gone make place, the oldest first.
    pub(super) fn evict_compiled(&self) {
        let on_device = |served: &&Served| served.standing.provider != Provider::Cpu;
        let mut keep = BTreeSet::new();
        for served in self.served.values().filter(on_device) {
            let loader = self.loader_for(&served.key.model);
            keep.extend(served.candidates.iter().filter_map(|c| loader.cache(c.info.digest)));
        }
        let folder = self.store.root().join(compiled::COMPILED);
        if !folder.is_dir() {
            return;
        }
        // Looking through a slow disk takes a while.
        tokio::task::spawn_blocking(move || {
            if let Err(error) = compiled::evict(&folder, &keep, limits::COMPILED_BYTES) {
                tracing::warn!("compiled graphs are not cleared away: {error}");
            }
        });
    }

    /// What runs a model, and what does not.
    pub(super) fn tell_provider_metrics(&self, served: &Served) {
        let standing = &served.standing;
        let passed = standing.passed.iter().map(|p| (p.provider.clone(), p.why.label())).collect();
        let fallen_back = standing.facts["fallen_back"]["share"].as_f64();
        let compile = standing.facts["compile_ms"].as_f64().map(|ms| ms / 1e3);
        let told = Runs { provider: label(&standing.provider), passed, fallen_back, compile };
        self.metrics.provider(&served.key.model, served.key.version, told);
    }

    /// Somebody asks for the model: it is tried on everything again.
    pub(super) fn forgive_providers(&mut self, model: &str) {
        self.left.retain(|(of, _), _| of != model);
        if let Err(error) = self.store.forgive(&format!("{model} ")) {
            tracing::warn!("failures on providers are not forgotten: {error}");
        }
    }
}

/// A reason that names what was passed over.
pub fn nothing_left(wanted: &impl std::fmt::Display, passed: &[PassedOver]) -> String {
    let passed = if passed.is_empty() { "nothing of it is there".to_owned() } else { told(passed) };
    format!("no execution provider of [{wanted}] can run it: {passed}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passed(why: Passed) -> Tried {
        let provider = "npu".to_owned();
        Tried { passed: vec![PassedOver { provider, why }], failed: Vec::new() }
    }

    #[test]
    fn what_may_come_back_is_looked_for_later_and_later_and_what_cannot_never_is() {
        let now = Instant::now();
        let standing = |why| Standing::new(Provider::Cpu, &passed(why), Value::Null, now);
        assert_eq!(standing(Passed::NotInRuntime).due, None);
        assert_eq!(standing(Passed::NotDescribed).due, None);
        let plain = Standing::new(Provider::Cpu, &Tried::default(), Value::Null, now);
        assert_eq!(plain.due, None, "it is what was wanted first");
        let mut lost = standing(Passed::DeviceLost { device: 0 });
        let first = limits::PROVIDER_AGAIN_FIRST;
        assert_eq!(lost.due, Some(now + first));
        lost.put_off(now);
        assert_eq!(lost.due, Some(now + 2 * first));
        for _ in 0..100 {
            lost.put_off(now);
        }
        assert_eq!(lost.due, Some(now + limits::PROVIDER_AGAIN_LONGEST));
    }

    #[test]
    fn a_reason_names_what_was_wanted_and_all_that_was_passed_over() {
        let words = nothing_left(&"cann", &passed(Passed::NotInRuntime).passed);
        let expected = "no execution provider of [cann] can run it: npu: ONNX Runtime was not";
        assert!(words.starts_with(expected), "{words}");
    }
}
