//! What may run the operators of a model: ONNX Runtime's own kernels on the CPU, its provider for Huawei's
//! CANN, and libraries of vendors that speak its plugin interface.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// ONNX Runtime's name of its own kernels.
pub const CPU: &str = "CPUExecutionProvider";

/// ONNX Runtime's name of its provider for CANN.
pub const CANN: &str = "CANNExecutionProvider";

/// An execution provider with all that is asked of it.
///
/// Text, as flags of commands have it: `cpu`, `cann`, or its JSON.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Provider {
    /// ONNX Runtime's own kernels on the CPU.
    #[default]
    Cpu,
    /// Ascend, by the provider that is compiled into ONNX Runtime's CANN build.
    Cann(Cann),
    /// A library that offers a provider through ONNX Runtime's plugin interface.
    Plugin(Plugin),
}

/// What is asked of the CANN provider.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Cann {
    /// Which NPU, from 0.
    pub device_id: u32,
    /// The provider's further options by their names in ONNX Runtime, such as `precision_mode`.
    pub options: BTreeMap<String, String>,
}

/// A library with a provider, and what is asked of it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plugin {
    /// What the configuration calls it.
    pub name: String,
    pub library: PathBuf,
    /// SHA-256 of the library, 64 lower-case hexadecimal digits. Another file is not loaded.
    pub sha256: String,
    /// Name of the provider that is wanted of those that the library offers; `None`: its first one.
    #[serde(default)]
    pub provider: Option<String>,
    /// Which of its devices, from 0 in the library's own order.
    #[serde(default)]
    pub device: usize,
    /// The provider's own options.
    #[serde(default)]
    pub options: BTreeMap<String, String>,
}

impl Provider {
    /// The text from which it is read again, with all of its options.
    pub fn text(&self) -> String {
        // Strings, numbers and paths, which come out of text themselves: none of them fails.
        serde_json::to_string(self).unwrap_or_else(|_| self.name().to_owned())
    }

    /// ONNX Runtime's name of it, as far as it is known before a plugin is loaded.
    pub fn execution_provider(&self) -> &str {
        match self {
            Self::Cpu => CPU,
            Self::Cann(_) => CANN,
            Self::Plugin(plugin) => plugin.provider.as_deref().unwrap_or(&plugin.name),
        }
    }

    /// What the configuration calls it: `cpu`, `cann`, or the plugin's name.
    pub fn name(&self) -> &str {
        match self {
            Self::Cpu => "cpu",
            Self::Cann(_) => "cann",
            Self::Plugin(plugin) => &plugin.name,
        }
    }
}

impl fmt::Display for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why a text names no provider.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is no execution provider: write cpu, cann, or its JSON ({reason})")]
pub struct NoProvider {
    text: String,
    reason: String,
}

impl FromStr for Provider {
    type Err = NoProvider;

    fn from_str(text: &str) -> Result<Self, NoProvider> {
        match text {
            "cpu" => Ok(Self::Cpu),
            "cann" => Ok(Self::Cann(Cann::default())),
            _ => serde_json::from_str(text)
                .map_err(|error| NoProvider { text: text.to_owned(), reason: error.to_string() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_provider_is_read_as_it_is_written() {
        let plugin = Plugin {
            name: "mlu".to_owned(),
            library: "/opt/mlu/libep.so".into(),
            sha256: "0".repeat(64),
            provider: None,
            device: 1,
            options: [("cores".to_owned(), "4".to_owned())].into(),
        };
        for provider in [Provider::Cpu, Provider::Cann(Cann::default()), Provider::Plugin(plugin)] {
            assert_eq!(provider.text().parse(), Ok(provider));
        }
        assert_eq!("cann".parse(), Ok(Provider::Cann(Cann::default())));
        let error = "tpu".parse::<Provider>().unwrap_err().to_string();
        assert!(error.contains("`tpu`") && error.contains("cpu, cann"), "{error}");
    }
}
