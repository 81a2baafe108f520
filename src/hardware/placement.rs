//! Which provider runs which operators of a model, and what that costs: an accelerator that leaves operators
//! to the processor may be slower than the processor alone.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

// The provider that takes what no other does.
use crate::config::providers::CPU;
use crate::limits;

/// What stands for kinds of operators beyond the first [`limits::PLACED_KINDS`].
const OTHERS: &str = "others";

/// Longest name of a kind that is kept.
const NAME_CHARS: usize = 100;

/// The operators of one model by the provider that runs them.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Placement {
    /// By the runtime's name of the provider.
    pub providers: BTreeMap<String, Placed>,
}

/// What one provider runs.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Placed {
    /// How many operators of each kind, as they are in the graph once the runtime has simplified it.
    pub operators: BTreeMap<String, u64>,
    /// Its share of the time of all operators, 0 to 1, moving tensors included; `None` where nothing was timed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub share: Option<f64>,
}

impl Placed {
    /// Number of operators.
    pub fn count(&self) -> u64 {
        self.operators.values().sum()
    }
}

impl Placement {
    /// Counts one operator. `domain` is empty, or `ai.onnx`, for ONNX's own.
    pub fn add(&mut self, provider: &str, domain: &str, operator: &str) {
        let own = matches!(domain, "" | "ai.onnx");
        let kind = if own { operator.to_owned() } else { format!("{domain}:{operator}") };
        let kind: String = kind.chars().take(NAME_CHARS).collect();
        let known = self.providers.len() < limits::PLACED_PROVIDERS;
        if !known && !self.providers.contains_key(provider) {
            return;
        }
        let placed = self.providers.entry(provider.to_owned()).or_default();
        let room = placed.operators.len() < limits::PLACED_KINDS;
        let kind = if room || placed.operators.contains_key(&kind) { &kind } else { OTHERS };
        *placed.operators.entry(kind.to_owned()).or_default() += 1;
    }

    /// Adds the shares of time that a profile of ONNX Runtime tells (see [`times`]).
    pub fn timed(&mut self, times: &BTreeMap<String, f64>) {
        let whole: f64 = times.values().sum();
        if whole <= 0.0 {
            return;
        }
        for (provider, micros) in times.iter().take(limits::PLACED_PROVIDERS) {
            self.providers.entry(provider.clone()).or_default().share = Some(micros / whole);
        }
        // Who ran nothing took no time.
        for placed in self.providers.values_mut() {
            placed.share.get_or_insert(0.0);
        }
    }

    /// What was asked of another provider and the CPU runs; `None` where it runs nothing.
    pub fn fallen_back(&self) -> Option<&Placed> {
        self.providers.get(CPU).filter(|placed| placed.count() > 0)
    }
}

/// The part of an entry of a profile that is read.
#[derive(Deserialize)]
struct Entry {
    #[serde(default)]
    cat: String,
    #[serde(default)]
    name: String,
    /// Microseconds.
    #[serde(default)]
    dur: f64,
    #[serde(default)]
    args: Arguments,
}

#[derive(Deserialize, Default)]
struct Arguments {
    #[serde(default)]
    provider: String,
}

/// How long each provider works in one run, microseconds, by a profile of ONNX Runtime of several: of every
/// node the quickest run counts, since the first of a provider that compiles takes as long as that does. What
/// is within a branch or a loop counts there and once more with the node around it.
///
/// # Errors
/// Where the text is no profile.
pub fn times(profile: &[u8]) -> Result<BTreeMap<String, f64>, String> {
    let entries: Vec<Entry> = serde_json::from_slice(profile).map_err(|error| error.to_string())?;
    let mut quickest: BTreeMap<(&str, &str), f64> = BTreeMap::new();
    for entry in &entries {
        let run = entry.cat == "Node" && entry.name.ends_with("_kernel_time");
        if run && !entry.args.provider.is_empty() && entry.dur >= 0.0 {
            let key = (entry.args.provider.as_str(), entry.name.as_str());
            let best = quickest.entry(key).or_insert(entry.dur);
            *best = best.min(entry.dur);
        }
    }
    let mut times = BTreeMap::new();
    for ((provider, _), micros) in quickest {
        *times.entry(provider.to_owned()).or_default() += micros;
    }
    Ok(times)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operators_are_counted_by_provider_and_kind_and_no_report_grows_without_bound() {
        let mut placement = Placement::default();
        placement.add("Npu", "", "Conv");
        placement.add("Npu", "ai.onnx", "Conv");
        placement.add(CPU, "com.vendor", "Odd");
        assert_eq!(placement.providers["Npu"].operators, [("Conv".to_owned(), 2)].into());
        let fallen = placement.fallen_back().unwrap();
        assert_eq!(fallen.operators, [("com.vendor:Odd".to_owned(), 1)].into());
        for at in 0..10_000 {
            placement.add(CPU, "", &format!("{at}{}", "x".repeat(1000)));
            placement.add(&at.to_string(), "", "Relu");
        }
        let fallen = placement.fallen_back().unwrap();
        assert_eq!(fallen.count(), 10_001, "all are counted");
        let text = serde_json::to_string(&placement).unwrap();
        assert!(text.len() < 64 << 10, "{} bytes", text.len());
        assert_eq!(serde_json::from_str::<Placement>(&text).unwrap(), placement);
    }

    #[test]
    fn time_is_that_of_the_quickest_run_of_every_node() {
        let profile = br#"[
            {"cat":"Session","name":"session_initialization","dur":900000,"args":{}},
            {"cat":"Node","name":"a_kernel_time","dur":5000000,
             "args":{"provider":"Npu","op_name":"F"}},
            {"cat":"Node","name":"a_kernel_time","dur":60,"args":{"provider":"Npu","op_name":"F"}},
            {"cat":"Node","name":"b_kernel_time","dur":30,
             "args":{"provider":"CPUExecutionProvider"}},
            {"cat":"Node","name":"c_kernel_time","dur":10,
             "args":{"provider":"CPUExecutionProvider"}},
            {"cat":"Node","name":"c_fence_after","dur":7,"args":{}}
        ]"#;
        let mut placement = Placement::default();
        placement.add("Npu", "", "Conv");
        placement.add("Idle", "", "Conv");
        placement.timed(&times(profile).unwrap());
        let share = |name: &str| placement.providers[name].share.unwrap();
        assert_eq!((share("Npu"), share(CPU), share("Idle")), (0.6, 0.4, 0.0));
        for bad in [&b"[{"[..], b"{}", b"", b"[1]", b"[{\"dur\":\"x\"}]"] {
            assert!(times(bad).is_err());
        }
        // A profile without nodes tells nothing.
        let mut untimed = Placement::default();
        untimed.add("Npu", "", "Conv");
        untimed.timed(&times(b"[]").unwrap());
        assert_eq!(untimed.providers["Npu"].share, None);
    }
}
