//! The devices of a box over time: which answer, which are lost, which have come back. What a vendor's library
//! lists comes in, look by look; what changed goes out.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::Serialize;

use super::{Device, Health, Vendor};

/// Whether a device answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Presence {
    Answers,
    /// Its vendor's library answers no longer: nothing is known of the device.
    Silent,
    /// Its vendor's library answers, and does not list it any more.
    Lost,
}

/// A device as it was seen last.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Known {
    #[serde(flatten)]
    pub device: Device,
    pub presence: Presence,
    /// How often it was lost.
    pub losses: u64,
}

/// What became of a device.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    Appeared,
    Lost,
    /// It is there again after it was lost.
    Returned,
    Health {
        from: Health,
        to: Health,
    },
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Appeared => f.write_str("is there"),
            Self::Lost => f.write_str("is lost: its library does not list it any more"),
            Self::Returned => f.write_str("is there again"),
            Self::Health { from, to } => write!(f, "health: {to}, was {from}"),
        }
    }
}

/// By PCI address where there is one: libraries that count their devices give others the number of one that is
/// lost. Cores of a system on a chip have no address, and are not lost one by one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Index(u32),
    Pci(String),
}

/// All devices that were ever seen since the program started.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Roster {
    devices: BTreeMap<(Vendor, Key), Known>,
}

impl Roster {
    /// Takes in what a vendor's library lists now; tells what changed, in the order of the devices.
    pub fn see(&mut self, vendor: Vendor, listed: Vec<Device>) -> Vec<(Device, Change)> {
        let mut changes = Vec::new();
        let mut seen = BTreeSet::new();
        for device in listed {
            let key = self.key(vendor, &device);
            if !seen.insert(key.clone()) {
                continue;
            }
            match self.devices.get_mut(&key) {
                None => {
                    changes.push((device.clone(), Change::Appeared));
                    let known = Known { device, presence: Presence::Answers, losses: 0 };
                    self.devices.insert(key, known);
                }
                Some(known) => {
                    if known.presence == Presence::Lost {
                        changes.push((device.clone(), Change::Returned));
                    }
                    let from = std::mem::replace(&mut known.device, device);
                    let to = &known.device;
                    if known.presence == Presence::Answers && from.health != to.health {
                        let change = Change::Health { from: from.health, to: to.health.clone() };
                        changes.push((to.clone(), change));
                    }
                    known.presence = Presence::Answers;
                }
            }
        }
        for (key, known) in &mut self.devices {
            let is_gone = key.0 == vendor && !seen.contains(key);
            if is_gone && known.presence != Presence::Lost {
                known.presence = Presence::Lost;
                known.losses += 1;
                known.device = known.device.identity();
                changes.push((known.device.clone(), Change::Lost));
            }
        }
        changes
    }

    /// A vendor's library answers no longer: what was read of its devices holds no longer.
    pub fn silence(&mut self, vendor: Vendor) {
        let own = self.devices.iter_mut().filter(|(key, _)| key.0 == vendor);
        for (_, known) in own.filter(|(_, known)| known.presence == Presence::Answers) {
            known.presence = Presence::Silent;
            known.device = known.device.identity();
        }
    }

    /// A vendor's devices are looked after no longer.
    pub fn forget(&mut self, vendor: Vendor) {
        self.devices.retain(|key, _| key.0 != vendor);
    }

    /// All devices, by vendor.
    pub fn devices(&self) -> impl Iterator<Item = &Known> {
        self.devices.values()
    }

    /// Those that the vendor's library knows by this number: more than one where a card was lost and another
    /// one has got its number.
    pub fn numbered(&self, vendor: Vendor, index: u32) -> impl Iterator<Item = &Known> {
        self.devices()
            .filter(move |known| known.device.vendor == vendor && known.device.index == index)
    }

    /// The temperature of the hottest device that answers, °C.
    pub fn hottest(&self) -> Option<f64> {
        self.devices().filter_map(|known| known.device.celsius).max_by(f64::total_cmp)
    }

    /// Where a device is kept. One whose address was not told this time is the one that had its number.
    fn key(&self, vendor: Vendor, device: &Device) -> (Vendor, Key) {
        if let Some(pci) = &device.pci {
            return (vendor, Key::Pci(pci.clone()));
        }
        let same = self.devices.iter().find(|(key, known)| {
            key.0 == vendor
                && known.device.index == device.index
                && known.presence != Presence::Lost
        });
        same.map_or((vendor, Key::Index(device.index)), |(key, _)| key.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hardware::Complaint;

    fn device(index: u32, pci: Option<&str>, celsius: f64) -> Device {
        let (pci, celsius) = (pci.map(str::to_owned), Some(celsius));
        Device { pci, celsius, health: Health::Ok, ..Device::new(Vendor::Cambricon, index) }
    }

    fn told(changes: Vec<(Device, Change)>) -> Vec<(Option<String>, Change)> {
        changes.into_iter().map(|(device, change)| (device.pci, change)).collect()
    }

    #[test]
    fn a_card_that_is_lost_is_known_by_its_address_and_its_number_may_go_to_another() {
        let (a, b) = (Some("0000:01:00.0"), Some("0000:02:00.0"));
        let own = |pci: Option<&str>| pci.map(str::to_owned);
        let mut roster = Roster::default();
        let changes = roster.see(Vendor::Cambricon, vec![device(0, a, 40.0), device(1, b, 50.0)]);
        assert_eq!(told(changes), [(own(a), Change::Appeared), (own(b), Change::Appeared)]);
        assert_eq!(roster.hottest(), Some(50.0));
        // The first is gone and the second has its number now.
        let changes = roster.see(Vendor::Cambricon, vec![device(0, b, 51.0)]);
        assert_eq!(told(changes), [(own(a), Change::Lost)]);
        let lost = roster.devices().next().unwrap();
        assert_eq!((lost.presence, lost.losses), (Presence::Lost, 1));
        assert_eq!((lost.device.celsius, &lost.device.health), (None, &Health::Unknown));
        // It is lost once, however often it is looked for.
        assert_eq!(roster.see(Vendor::Cambricon, vec![device(0, b, 51.0)]), []);
        let changes = roster.see(Vendor::Cambricon, vec![device(0, a, 30.0), device(1, b, 51.0)]);
        assert_eq!(told(changes), [(own(a), Change::Returned)]);
        assert!(roster.devices().all(|known| known.presence == Presence::Answers));
    }

    #[test]
    fn a_look_that_does_not_tell_the_address_makes_no_other_device() {
        let a = Some("0000:01:00.0");
        let mut roster = Roster::default();
        roster.see(Vendor::Cambricon, vec![device(0, a, 40.0)]);
        assert_eq!(roster.see(Vendor::Cambricon, vec![device(0, None, 41.0)]), []);
        assert_eq!(roster.devices().count(), 1);
    }

    #[test]
    fn a_library_that_falls_silent_takes_the_readings_along_and_loses_no_device() {
        let mut roster = Roster::default();
        roster.see(Vendor::Cambricon, vec![device(0, None, 40.0)]);
        roster.silence(Vendor::Ascend);
        assert_eq!(roster.hottest(), Some(40.0));
        roster.silence(Vendor::Cambricon);
        let known = roster.devices().next().unwrap();
        assert_eq!((known.presence, known.losses), (Presence::Silent, 0));
        assert_eq!(roster.hottest(), None);
        assert_eq!(roster.see(Vendor::Cambricon, vec![device(0, None, 42.0)]), []);
        // Another vendor's look says nothing of it.
        assert_eq!(roster.see(Vendor::Ascend, Vec::new()), []);
        assert_eq!(roster.hottest(), Some(42.0));
        roster.forget(Vendor::Cambricon);
        assert_eq!(roster.devices().count(), 0);
    }

    #[test]
    fn a_change_of_health_is_told_once() {
        let mut roster = Roster::default();
        roster.see(Vendor::Cambricon, vec![device(0, None, 40.0)]);
        let to = Health::Degraded(Complaint::Alarm { level: 2 });
        let sick = Device { health: to.clone(), ..device(0, None, 40.0) };
        let changes = roster.see(Vendor::Cambricon, vec![sick.clone()]);
        assert_eq!(told(changes), [(None, Change::Health { from: Health::Ok, to })]);
        assert_eq!(roster.see(Vendor::Cambricon, vec![sick]), []);
    }
}
