//! What the metrics page shows of accelerators. A device that is lost stays on it, with 0 for being up.

use std::collections::BTreeMap;
use std::time::Duration;

use super::page::{Kind, Page};
use crate::hardware::{Device, Health, Known, Presence, Vendor};

/// How a vendor's library is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VendorState {
    /// Whether its last look came to something.
    pub answers: bool,
    /// Processor time of all looks.
    pub cpu: Duration,
}

/// What the agent told last.
#[derive(Debug, Default)]
pub(super) struct Accelerators {
    pub vendors: BTreeMap<Vendor, VendorState>,
    pub devices: Vec<Known>,
}

type Value = fn(&Device) -> Option<f64>;

/// Name, help and value; what a device does not tell has no sample.
const GAUGES: [(&str, &str, Value); 7] = [
    ("blochd_device_temperature_celsius", "Temperature of an accelerator's chip.", |device| {
        device.celsius
    }),
    ("blochd_device_power_watts", "What an accelerator draws.", |device| device.watts),
    ("blochd_device_memory_total_bytes", "Memory of an accelerator.", |device| {
        device.memory_total.map(|bytes| bytes as f64)
    }),
    ("blochd_device_memory_used_bytes", "Memory of an accelerator in use.", |device| {
        device.memory_used.map(|bytes| bytes as f64)
    }),
    (
        "blochd_device_utilisation_ratio",
        "Share of time that an accelerator's cores are busy, 0 to 1.",
        |device| device.utilisation,
    ),
    ("blochd_device_frequency_hertz", "Clock of an accelerator's cores.", |device| {
        device.frequency_mhz.map(|mhz| f64::from(mhz) * 1e6)
    }),
    (
        "blochd_device_healthy",
        "1 where an accelerator says that it is well, 0 where it complains.",
        |device| match device.health {
            Health::Ok => Some(1.0),
            Health::Degraded(_) | Health::Unusable(_) => Some(0.0),
            Health::Unknown => None,
        },
    ),
];

impl Accelerators {
    pub fn show(&self, page: &mut Page) {
        let help = "1 while the vendor's library tells of its accelerators.";
        page.family("blochd_vendor_library_up", Kind::Gauge, help);
        for (vendor, state) in &self.vendors {
            page.sample(&[("vendor", vendor.name())], f64::from(u8::from(state.answers)));
        }
        let help = "Processor time spent on asking the vendor's library.";
        page.family("blochd_device_sweep_cpu_seconds_total", Kind::Counter, help);
        for (vendor, state) in &self.vendors {
            page.sample(&[("vendor", vendor.name())], state.cpu.as_secs_f64());
        }
        let help = "1 while an accelerator answers, 0 once it is lost or its library is silent.";
        self.family(page, "blochd_device_up", Kind::Gauge, help, |known| {
            Some(f64::from(u8::from(known.presence == Presence::Answers)))
        });
        let help = "How often an accelerator was lost.";
        self.family(page, "blochd_device_losses_total", Kind::Counter, help, |known| {
            Some(known.losses as f64)
        });
        for (name, help, value) in GAUGES {
            self.family(page, name, Kind::Gauge, help, |known| value(&known.device));
        }
        let help = "Memory errors that an accelerator remembers.";
        page.family("blochd_device_ecc_errors_total", Kind::Counter, help);
        for known in &self.devices {
            let Some(ecc) = known.device.ecc else { continue };
            for (kind, count) in [("corrected", ecc.corrected), ("uncorrected", ecc.uncorrected)] {
                labelled(page, &known.device, Some(("kind", kind)), count as f64);
            }
        }
    }

    fn family(
        &self,
        page: &mut Page,
        name: &'static str,
        kind: Kind,
        help: &str,
        value: impl Fn(&Known) -> Option<f64>,
    ) {
        page.family(name, kind, help);
        for known in &self.devices {
            if let Some(value) = value(known) {
                labelled(page, &known.device, None, value);
            }
        }
    }
}

/// By number, and by address where there is one: the number of a card that was lost may go to another.
fn labelled(page: &mut Page, device: &Device, more: Option<(&str, &str)>, value: f64) {
    let index = device.index.to_string();
    let mut labels = vec![("vendor", device.vendor.name()), ("device", index.as_str())];
    labels.extend(device.pci.as_deref().map(|pci| ("pci", pci)));
    labels.extend(more);
    page.sample(&labels, value);
}
