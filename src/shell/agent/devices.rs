//! The accelerators of the box while the agent runs. One task a vendor looks for its devices and has its
//! library read in a child; what that tells comes back as events, and what changed goes to the log, the status,
//! the metrics and the recorded trace. Nothing of it holds serving up.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};

use super::Agent;
use super::event::Event;
use crate::config::{Accelerator, Config, Sandbox};
use crate::hardware::{
    Change, Device, Health, Known, Presence, Roster, Seen, Trouble, Vendor, complete,
};
use crate::limits;
use crate::shell::children::confine::Confined;
use crate::shell::children::confining::Confining;
use crate::shell::children::{Wish, telemetry, this_program};
use crate::shell::metrics::VendorState;
use crate::shell::probe::detect;
use crate::shell::probe::source::{Reading, Source, Told};

/// What a vendor's task tells.
pub enum VendorEvent {
    /// What of its devices is seen without the library.
    Seen(Seen),
    /// What the library tells.
    Told(Told),
    /// It is read by a child that is not confined, though that was wanted: it told nothing otherwise.
    Lifted(Trouble),
    /// What the library of its runtime tells of the same devices.
    Runtime(Vec<Device>),
}

/// All vendors' devices.
#[derive(Default)]
pub(super) struct Devices {
    roster: Roster,
    vendors: BTreeMap<Vendor, Watched>,
    /// Counts the tasks that were begun: an event of one that was ended says nothing any more.
    tasks: u64,
}

/// What a task is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Wanted {
    library: Option<PathBuf>,
    every: Duration,
    patience: Duration,
    sandbox: Sandbox,
}

impl Wanted {
    /// `None` where the vendor is not looked after.
    fn of(config: &Config, vendor: Vendor) -> Option<Self> {
        let (config, sandbox) = (&config.devices, config.sandbox);
        let library = match Source::setting(config, vendor) {
            Accelerator::Off => return None,
            Accelerator::Auto => None,
            Accelerator::At(path) => Some(path.clone()),
        };
        let (every, patience) = (config.interval.into(), config.timeout.into());
        Some(Self { library, every, patience, sandbox })
    }

    fn reading(&self, source: Source) -> Reading {
        let (library, every) = (self.library.clone(), self.every);
        let sweeps = limits::TELEMETRY_SWEEPS;
        Reading { source, library, every, sweeps, opens: false, sandbox: self.sandbox }
    }
}

/// A vendor that is looked after.
struct Watched {
    wanted: Wanted,
    task: u64,
    /// Ends the task; so does dropping it.
    end: watch::Sender<Wish>,
    seen: Seen,
    state: State,
    library: Option<PathBuf>,
    version: Option<String>,
    /// Processor time of the last sweep, and of all.
    cpu_us: Option<u64>,
    cpu_sum_us: u64,
    /// How far the child is confined that reads it; `None` where it is not.
    confined: Option<Confined>,
    /// Why it is not where that was wanted.
    lifted: Option<Trouble>,
    /// What was logged of both.
    told: (Option<Confined>, Option<Trouble>),
    /// What its runtime tells; `None` until that was asked.
    runtime: Option<Vec<Device>>,
}

impl Watched {
    fn sandbox(&self) -> Value {
        let confined = self.confined.as_ref();
        json!({
            "in_force": confined.and_then(Confined::in_force),
            "missing": confined.map_or(&[][..], |confined| &confined.missing),
            "lifted": self.lifted.as_ref().map(Trouble::to_string),
        })
    }

    /// Logs how its library is read where that has changed.
    fn tell_confinement(&mut self, vendor: Vendor) {
        let now = (self.confined.clone(), self.lifted.clone());
        if now == self.told {
            return;
        }
        self.told = now;
        match &self.told {
            (_, Some(why)) => tracing::warn!(
                %vendor, "its library is read without confinement, since it told nothing so: {why}"
            ),
            (Some(confined), None) if confined.missing.is_empty() => {
                tracing::info!(%vendor, "its library is read by a confined child: {confined}");
            }
            (Some(confined), None) => {
                tracing::warn!(%vendor, "its library is not confined as it could be: {confined}");
            }
            (None, None) => {}
        }
    }
}

/// How it stands with a vendor's library.
#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    /// Nothing of the vendor is seen: nobody asks.
    Absent,
    /// It has not told anything yet.
    Asked,
    Answers,
    /// It told nothing, and is asked again later.
    Degraded(Trouble),
}

impl Devices {
    pub fn hottest(&self) -> Option<f64> {
        self.roster.hottest()
    }

    /// What the vendors' libraries tell.
    pub fn roster(&self) -> &Roster {
        &self.roster
    }

    /// The devices that can be worked with as far as their libraries tell, by number, and the vendors of which
    /// anything is seen.
    pub fn usable(&self) -> BTreeSet<(Vendor, Option<u32>)> {
        let works = |known: &&Known| {
            known.presence == Presence::Answers
                && !matches!(known.device.health, Health::Unusable(_))
        };
        let told = self.roster.devices().filter(works);
        let told = told.map(|known| (known.device.vendor, Some(known.device.index)));
        let seen = self.vendors.iter().filter(|(_, watched)| watched.seen.is_any());
        told.chain(seen.map(|(vendor, _)| (*vendor, None))).collect()
    }

    /// Whether anything of a vendor's is seen without its library.
    pub fn sees(&self, vendor: Vendor) -> bool {
        self.vendors.get(&vendor).is_some_and(|watched| watched.seen.is_any())
    }

    pub fn devices(&self) -> Value {
        json!(self.roster.devices().collect::<Vec<&Known>>())
    }

    /// How each vendor of which anything is known is read.
    pub fn status(&self) -> Value {
        let shown = self.vendors.iter().filter(|(_, watched)| watched.state != State::Absent);
        let one = |watched: &Watched| {
            let (state, trouble) = match &watched.state {
                State::Absent => ("absent", None),
                State::Asked => ("asked", None),
                State::Answers => ("answers", None),
                State::Degraded(trouble) => ("degraded", Some(trouble)),
            };
            json!({
                "state": state, "why": trouble.map(Trouble::to_string), "trouble": trouble,
                "library": watched.library, "version": watched.version,
                "sweep_cpu_us": watched.cpu_us, "seen": watched.seen, "sandbox": watched.sandbox(),
            })
        };
        shown.map(|(vendor, watched)| (vendor.name().to_owned(), one(watched))).collect()
    }
}

impl Agent {
    /// Looks after the vendors that the configuration wants looked after, as it says.
    pub(super) fn follow_devices(&mut self) {
        for vendor in Vendor::ALL {
            let wanted = Wanted::of(&self.config, vendor);
            let now = self.devices.vendors.get(&vendor).map(|watched| &watched.wanted);
            if now == wanted.as_ref() {
                continue;
            }
            self.devices.vendors.remove(&vendor);
            self.devices.roster.forget(vendor);
            if let Some(wanted) = wanted {
                self.devices.tasks += 1;
                let task = self.devices.tasks;
                let (end, wish) = watch::channel(Wish::Run);
                let teller = Teller { vendor, task, events: self.events.clone() };
                tokio::spawn(look_after(teller, wanted.clone(), wish));
                let watched = Watched {
                    wanted,
                    task,
                    end,
                    seen: Seen::default(),
                    state: State::Absent,
                    library: None,
                    version: None,
                    cpu_us: None,
                    cpu_sum_us: 0,
                    confined: None,
                    lifted: None,
                    told: (None, None),
                    runtime: None,
                };
                self.devices.vendors.insert(vendor, watched);
            }
        }
        self.tell_devices();
    }

    /// A vendor's task told something.
    pub(super) fn vendor(&mut self, vendor: Vendor, task: u64, event: VendorEvent) {
        let devices = &mut self.devices;
        let watched = devices.vendors.get_mut(&vendor).filter(|watched| watched.task == task);
        let Some(watched) = watched else { return };
        match event {
            VendorEvent::Seen(seen) => {
                let is_asked = seen.is_any() || watched.wanted.library.is_some();
                watched.seen = seen;
                match watched.state {
                    State::Absent if is_asked => watched.state = State::Asked,
                    State::Absent | State::Asked | State::Answers | State::Degraded(_) => {}
                }
            }
            VendorEvent::Told(Told::Confined(confined)) => {
                watched.confined = Some(confined);
                watched.lifted = None;
            }
            VendorEvent::Lifted(why) => {
                watched.confined = None;
                watched.lifted = Some(why);
            }
            VendorEvent::Told(Told::Library { path, version }) => {
                if watched.library.as_ref() != Some(&path) {
                    let version = version.as_deref().unwrap_or("of unknown version");
                    let library = path.display();
                    tracing::info!(%vendor, "accelerators are read by {library} {version}");
                }
                watched.library = Some(path);
                watched.version = version;
            }
            VendorEvent::Told(Told::Sweep { devices: mut listed, cpu_us }) => {
                if watched.state != State::Answers {
                    tracing::info!(%vendor, "{} accelerators answer", listed.len());
                }
                watched.tell_confinement(vendor);
                watched.state = State::Answers;
                watched.cpu_us = Some(cpu_us);
                watched.cpu_sum_us = watched.cpu_sum_us.saturating_add(cpu_us);
                complete(&mut listed, watched.runtime.as_deref().unwrap_or_default());
                let lacks_memory = listed.iter().any(|device| device.memory_total.is_none());
                let changes = devices.roster.see(vendor, listed);
                changes.iter().for_each(tell_change);
                self.ask_runtime(vendor, lacks_memory);
            }
            VendorEvent::Told(Told::Trouble { trouble }) => {
                if watched.state != State::Degraded(trouble.clone()) {
                    tracing::warn!(%vendor, "its accelerators cannot be read: {trouble}");
                }
                watched.state = State::Degraded(trouble);
                devices.roster.silence(vendor);
                self.ask_runtime(vendor, true);
            }
            VendorEvent::Runtime(told) => {
                let known = devices.roster.devices().any(|known| known.device.vendor == vendor);
                // Where the driver's library tells nothing, these are all that is known.
                if matches!(watched.state, State::Degraded(_)) && !known {
                    let changes = devices.roster.see(vendor, told.clone());
                    changes.iter().for_each(tell_change);
                }
                watched.runtime = Some(told);
            }
        }
        self.tell_devices();
    }

    /// Asks an Ascend's runtime what its driver does not tell: once, and again only for another task.
    fn ask_runtime(&mut self, vendor: Vendor, opens: bool) {
        let Some(watched) = self.devices.vendors.get_mut(&vendor) else { return };
        if vendor != Vendor::Ascend || watched.runtime.is_some() {
            return;
        }
        watched.runtime = Some(Vec::new());
        let patience = watched.wanted.patience;
        let teller = Teller { vendor, task: watched.task, events: self.events.clone() };
        let reading = watched.wanted.reading(Source::Acl);
        let reading = Reading { every: Duration::ZERO, sweeps: 1, opens, ..reading };
        let wish = watched.end.subscribe();
        tokio::spawn(async move {
            let tell = |told| match told {
                Told::Sweep { devices, .. } => teller.try_tell(VendorEvent::Runtime(devices)),
                // A box that has the driver and not the runtime is as good a box.
                Told::Trouble { trouble } => {
                    tracing::debug!("the runtime tells nothing: {trouble}")
                }
                Told::Library { .. } | Told::Confined(_) => {}
            };
            // What went wrong was told.
            let _ = telemetry::once(&this_program(), &reading, patience, wish, &tell).await;
        });
    }

    fn tell_devices(&self) {
        let shown = self.devices.vendors.iter().filter(|(_, one)| one.state != State::Absent);
        let state = |watched: &Watched| VendorState {
            answers: watched.state == State::Answers,
            cpu: Duration::from_micros(watched.cpu_sum_us),
        };
        let vendors = shown.map(|(vendor, watched)| (*vendor, state(watched))).collect();
        self.metrics.devices(vendors, self.devices.roster.devices().cloned().collect());
    }
}

fn tell_change((device, change): &(Device, Change)) {
    let (vendor, index) = (device.vendor, device.index);
    let pci = device.pci.as_deref().unwrap_or("-");
    let model = device.model.as_deref().unwrap_or("accelerator");
    match change {
        Change::Lost => tracing::error!(%vendor, index, pci, "{model} {change}"),
        Change::Health { .. } => tracing::warn!(%vendor, index, pci, "{model} {change}"),
        Change::Appeared | Change::Returned => {
            tracing::info!(%vendor, index, pci, "{model} {change}");
        }
    }
}

/// Sends what a task finds to the agent.
#[derive(Clone)]
struct Teller {
    vendor: Vendor,
    task: u64,
    events: mpsc::Sender<Event>,
}

impl Teller {
    fn event(&self, event: VendorEvent) -> Event {
        Event::Vendor { vendor: self.vendor, task: self.task, event }
    }

    /// A sweep that finds no place is followed by another.
    fn try_tell(&self, event: VendorEvent) {
        let _ = self.events.try_send(self.event(event));
    }

    /// Whether somebody listens.
    async fn tell(&self, event: VendorEvent) -> bool {
        self.events.send(self.event(event)).await.is_ok()
    }
}

/// Reads a vendor's devices until it is ended; what fails is tried again, later and later.
async fn look_after(teller: Teller, wanted: Wanted, mut wish: watch::Receiver<Wish>) {
    let vendor = teller.vendor;
    let mut confining = Confining::new(wanted.sandbox);
    let mut wait = limits::TELEMETRY_FIRST;
    loop {
        let seen = tokio::task::spawn_blocking(|| detect::accelerators(Path::new("/"))).await;
        let seen = seen.ok().and_then(|mut all| all.remove(&vendor)).unwrap_or_default();
        let is_asked = seen.is_any() || wanted.library.is_some();
        if !teller.tell(VendorEvent::Seen(seen)).await {
            return;
        }
        let pause = if is_asked {
            let swept = AtomicBool::new(false);
            let tell = |told: Told| {
                if matches!(told, Told::Sweep { .. }) {
                    swept.store(true, Ordering::Relaxed);
                }
                teller.try_tell(VendorEvent::Told(told));
            };
            if let Some(why) = confining.lifted() {
                teller.try_tell(VendorEvent::Lifted(why.clone()));
            }
            let mut reading = wanted.reading(Source::of(vendor));
            reading.sandbox = confining.now();
            if confining.is_trying() {
                reading.sweeps = 1;
            }
            let program = this_program();
            let watched =
                telemetry::watch(&program, &reading, wanted.patience, wish.clone(), &tell).await;
            let worked = swept.load(Ordering::Relaxed);
            confining.ended(worked, watched.as_ref().err().and_then(Option::as_ref));
            if worked {
                wait = limits::TELEMETRY_FIRST;
            }
            match watched {
                Err(None) => return,
                // It has made its sweeps: the next one goes on.
                Ok(()) if worked => continue,
                Ok(()) => {}
                Err(Some(trouble)) => {
                    // Told before, perhaps in vain.
                    let told = VendorEvent::Told(Told::Trouble { trouble });
                    if !teller.tell(told).await {
                        return;
                    }
                }
            }
            let pause = wait;
            wait = (2 * wait).min(limits::TELEMETRY_AGAIN_LONGEST);
            pause
        } else {
            limits::ACCELERATORS_LOOK
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            // Nothing else than its end is ever wished.
            _ = wish.changed() => return,
        }
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.end.send_replace(Wish::End);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vendor_is_looked_after_as_the_configuration_says_or_not_at_all() {
        let mut config = Config::default();
        let wanted = Wanted::of(&config, Vendor::Cambricon).unwrap();
        assert_eq!(wanted.library, None);
        config.devices.cambricon = Accelerator::At("/opt/neuware".into());
        let named = Wanted::of(&config, Vendor::Cambricon).unwrap();
        assert_eq!(named.library.as_deref(), Some(Path::new("/opt/neuware")));
        config.devices.cambricon = Accelerator::Off;
        assert_eq!(Wanted::of(&config, Vendor::Cambricon), None);
    }
}
