//! An accelerator as the agent sees it, whoever made it.

use serde::{Deserialize, Serialize};

/// One accelerator. What its maker's library does not tell is `None`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Device {
    /// `ascend`, `cambricon`, `kunlunxin`.
    pub vendor: String,
    /// The chip's name, such as `310P3`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub model: Option<String>,
    /// Number by which the vendor's runtime opens it.
    pub index: u32,
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
    pub health: Health,
}

/// Whether a device can be worked with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "state", content = "reason")]
pub enum Health {
    /// Its library says so.
    Ok,
    /// It answers, and complains.
    Degraded(String),
    /// It is there and cannot be used: a library that is missing or of another version, or that
    /// returns errors.
    Unusable(String),
    /// Seen by its device node only; nobody asked it.
    Unknown,
}
