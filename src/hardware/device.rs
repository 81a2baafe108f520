//! An accelerator as the agent sees it, whoever made it.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A maker of accelerators whose libraries are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Vendor {
    Ascend,
    Cambricon,
    Kunlunxin,
}

impl Vendor {
    pub const ALL: [Self; 3] = [Self::Ascend, Self::Cambricon, Self::Kunlunxin];

    /// As in the configuration, in metrics and in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ascend => "ascend",
            Self::Cambricon => "cambricon",
            Self::Kunlunxin => "kunlunxin",
        }
    }
}

impl fmt::Display for Vendor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One accelerator. What its maker's library does not tell is `None`, and `missing` says why.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Device {
    pub vendor: Vendor,
    /// Number by which the vendor's runtime opens it.
    pub index: u32,
    /// The chip's or the board's name, such as `310P3`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub model: Option<String>,
    /// The name that compilers for it are told, such as `Ascend310P3`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub soc: Option<String>,
    /// PCI address as sysfs writes it: `0000:3b:00.0`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub pci: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub driver: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub firmware: Option<String>,
    /// Version of the runtime that programs it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub runtime: Option<String>,
    /// Bytes.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub memory_total: Option<u64>,
    /// Bytes.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub memory_used: Option<u64>,
    /// Share of time that the compute cores are busy, 0 to 1.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub utilisation: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub celsius: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub watts: Option<f64>,
    /// Of the compute cores, now.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub frequency_mhz: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub ecc: Option<EccErrors>,
    pub health: Health,
    /// What is not known, and why, in the order of [`Quantity`].
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub missing: Vec<Missing>,
}

/// Memory errors, as many as the device remembers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct EccErrors {
    pub corrected: u64,
    pub uncorrected: u64,
}

/// Whether a device can be worked with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "state", content = "why")]
pub enum Health {
    /// Its library says so.
    Ok,
    /// It answers, and complains.
    Degraded(Complaint),
    /// It is there and cannot be used.
    Unusable(Complaint),
    /// Nobody says.
    Unknown,
}

/// What a device complains of, in its vendor's numbers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Complaint {
    /// An alarm: 1 minor, 2 major, 3 critical. Boards are known that ring one at all times and work.
    Alarm { level: u32 },
    /// The device's own state.
    State { state: i64 },
    /// The state of the driver that works it.
    Driver { state: i64 },
    /// Its vendor's library lists it and says that it is not there.
    Absent,
}

/// Something that may be known of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Quantity {
    Model,
    Soc,
    Pci,
    Driver,
    Firmware,
    Runtime,
    Memory,
    MemoryUsed,
    Utilisation,
    Temperature,
    Power,
    Frequency,
    Ecc,
    Health,
}

/// A quantity that is not known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Missing {
    pub what: Quantity,
    pub why: Why,
}

/// Why a quantity is not known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Why {
    /// No call of the vendor's interface is known that tells it.
    NoCall,
    /// This version of the library lacks the function.
    NoSymbol {
        symbol: String,
    },
    /// The device or its board does not have it.
    Unsupported {
        call: String,
    },
    /// It is not told inside a container.
    InContainer {
        call: String,
    },
    NoPermission {
        call: String,
    },
    /// The call failed, with the library's own number.
    Failed {
        call: String,
        code: i64,
    },
    /// It answered with something that cannot be.
    Implausible {
        call: String,
        value: i64,
    },
    /// The layout of the answer is not known for this generation of the device: nothing is read out of it.
    UnknownLayout {
        call: String,
        generation: i64,
    },
    /// The device has it switched off.
    Disabled {
        call: String,
    },
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoCall => f.write_str("the vendor's interface has no call for it"),
            Self::NoSymbol { symbol } => write!(f, "the library has no {symbol}"),
            Self::Unsupported { call } => write!(f, "{call}: not supported"),
            Self::InContainer { call } => write!(f, "{call}: not inside a container"),
            Self::NoPermission { call } => write!(f, "{call}: no permission"),
            Self::Failed { call, code } => write!(f, "{call} failed with {code}"),
            Self::Implausible { call, value } => write!(f, "{call} says {value}, which cannot be"),
            Self::UnknownLayout { call, generation } => {
                write!(f, "{call}: its answer is not known for generation {generation}")
            }
            Self::Disabled { call } => write!(f, "{call}: it is switched off"),
        }
    }
}

impl fmt::Display for Complaint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Alarm { level } => write!(f, "alarm of level {level}"),
            Self::State { state } => write!(f, "state {state}"),
            Self::Driver { state } => write!(f, "its driver is in state {state}"),
            Self::Absent => f.write_str("its library says that it is not there"),
        }
    }
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ok => f.write_str("ok"),
            Self::Degraded(why) => write!(f, "degraded: {why}"),
            Self::Unusable(why) => write!(f, "unusable: {why}"),
            Self::Unknown => f.write_str("unknown"),
        }
    }
}

impl Device {
    /// A device of which nothing is known yet.
    pub fn new(vendor: Vendor, index: u32) -> Self {
        Self {
            vendor,
            index,
            model: None,
            soc: None,
            pci: None,
            driver: None,
            firmware: None,
            runtime: None,
            memory_total: None,
            memory_used: None,
            utilisation: None,
            celsius: None,
            watts: None,
            frequency_mhz: None,
            ecc: None,
            health: Health::Unknown,
            missing: Vec::new(),
        }
    }

    /// Notes why something is not known. What is noted first stays.
    pub fn lacks(&mut self, what: Quantity, why: Why) {
        match self.missing.binary_search_by_key(&what, |missing| missing.what) {
            Ok(_) => {}
            Err(at) => self.missing.insert(at, Missing { what, why }),
        }
    }

    /// The value of an answer, or `None` with the reason noted.
    pub fn take<T>(&mut self, what: Quantity, answer: Result<T, Why>) -> Option<T> {
        answer.map_err(|why| self.lacks(what, why)).ok()
    }

    /// Takes over what another library tells of the same device, where this one told nothing.
    pub fn fill(&mut self, other: &Self) {
        fn fill<T: Clone>(
            own: &mut Option<T>,
            other: &Option<T>,
            what: Quantity,
            missing: &mut Vec<Missing>,
        ) {
            if own.is_none() && other.is_some() {
                own.clone_from(other);
                missing.retain(|missing| missing.what != what);
            }
        }
        let missing = &mut self.missing;
        fill(&mut self.model, &other.model, Quantity::Model, missing);
        fill(&mut self.soc, &other.soc, Quantity::Soc, missing);
        fill(&mut self.runtime, &other.runtime, Quantity::Runtime, missing);
        fill(&mut self.memory_total, &other.memory_total, Quantity::Memory, missing);
    }

    /// The same device without what changes: what is still true of one that no longer answers.
    pub fn identity(&self) -> Self {
        Self {
            memory_used: None,
            utilisation: None,
            celsius: None,
            watts: None,
            frequency_mhz: None,
            ecc: None,
            health: Health::Unknown,
            missing: Vec::new(),
            ..self.clone()
        }
    }
}

/// Fills in what a vendor's runtime tells of the devices that it opens by the same numbers.
pub fn complete(listed: &mut [Device], runtime: &[Device]) {
    for device in listed {
        if let Some(other) = runtime.iter().find(|other| other.index == device.index) {
            device.fill(other);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_is_not_there_in_json_and_not_zero() {
        let mut device = Device::new(Vendor::Ascend, 3);
        device.lacks(Quantity::Power, Why::Unsupported { call: "a".into() });
        device.lacks(Quantity::Model, Why::NoSymbol { symbol: "b".into() });
        device.lacks(Quantity::Power, Why::NoCall);
        let text = serde_json::to_string(&device).unwrap();
        let missing = [
            r#"{"what":"model","why":{"kind":"no_symbol","symbol":"b"}}"#,
            r#"{"what":"power","why":{"kind":"unsupported","call":"a"}}"#,
        ];
        let known = r#""vendor":"ascend","index":3,"health":{"state":"unknown"}"#;
        assert_eq!(text, format!("{{{known},\"missing\":[{}]}}", missing.join(",")));
        assert_eq!(serde_json::from_str::<Device>(&text).unwrap(), device);
    }

    #[test]
    fn another_library_fills_gaps_and_changes_nothing_that_was_told() {
        let mut device = Device::new(Vendor::Ascend, 0);
        device.model = Some("310P3".into());
        device.lacks(Quantity::Soc, Why::NoCall);
        device.lacks(Quantity::Memory, Why::Unsupported { call: "m".into() });
        let other = Device {
            model: Some("else".into()),
            soc: Some("Ascend310P3".into()),
            celsius: Some(50.0),
            ..Device::new(Vendor::Ascend, 0)
        };
        device.fill(&other);
        assert_eq!(device.model.as_deref(), Some("310P3"));
        assert_eq!(device.soc.as_deref(), Some("Ascend310P3"));
        assert_eq!((device.celsius, device.missing.len()), (None, 1));
    }

    #[test]
    fn a_device_is_completed_by_the_one_that_its_runtime_opens_by_the_same_number() {
        let mut listed = [Device::new(Vendor::Ascend, 0), Device::new(Vendor::Ascend, 1)];
        let soc = Some("Ascend310P3".to_owned());
        let runtime = [Device { soc: soc.clone(), ..Device::new(Vendor::Ascend, 1) }];
        complete(&mut listed, &[]);
        complete(&mut listed, &runtime);
        assert_eq!((&listed[0].soc, &listed[1].soc), (&None, &soc));
    }
}
