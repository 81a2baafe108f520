//! What a trial tells: one line of JSON for programs, a few lines for people.

use std::time::Duration;

use blochd::hardware::Placed;
use blochd::shell::children::trial::RanOn;
use blochd::units::{ByteSize, Percentile};
use serde_json::json;

use super::Trial;
use super::provider::Found;

/// Kinds of operators that a line for people names.
const KINDS: usize = 6;

/// All that came of a trial.
pub struct Shown {
    pub load_ms: f64,
    /// Of warm runs, in order of length.
    pub times: Vec<Duration>,
    pub why: Option<String>,
    pub ran_on: Option<RanOn>,
    pub lends: Result<(), String>,
    /// Bytes.
    pub peak: Option<u64>,
    pub found: Option<Found>,
}

impl Shown {
    /// Prints it; `identity` is that of the engine.
    pub fn print(self, trial: &Trial, identity: &str) {
        let us = |p: Percentile| p.of(&self.times).map(|t| t.as_secs_f64() * 1e6);
        let (p50, p99) = (us(Percentile::P50), us(Percentile::P99));
        let compile_us = self.compile_us();
        if trial.json {
            let found = self.found.unwrap_or_default();
            println!(
                "{}",
                json!({
                    "p50_us": p50, "p99_us": p99, "load_ms": self.load_ms, "runs": self.times.len(),
                    "ran_on": self.ran_on, "why": self.why,
                    "lends": self.lends.is_ok(), "lends_not": self.lends.err(),
                    "peak_memory_bytes": self.peak, "engine": identity,
                    "provider": trial.on.provider.name(), "compile_us": compile_us,
                    "compiled": found.compiled, "differs": found.differs,
                    "placement": found.placement, "device": found.device,
                    "unsuited": found.unsuited,
                })
            );
            return;
        }
        println!("{}", trial.model.display());
        println!("  on       {identity}");
        println!("  load     {:.1} ms", self.load_ms);
        if let (Some(p50), Some(p99)) = (p50, p99) {
            println!("  p50      {p50:.0} us over {} runs", self.times.len());
            println!("  p99      {p99:.0} us");
        }
        if let Some(peak) = self.peak {
            println!("  memory   {} at its peak", ByteSize(peak));
        }
        if let (None, Some(why)) = (p50, &self.why) {
            println!("  latency  not known, {why}; --inputs or --shape AXIS=SIZE may help");
        }
        if let Some(found) = &self.found {
            print_found(found);
        }
    }

    /// Time of the first runs of all shapes; `None` on the CPU.
    fn compile_us(&self) -> Option<f64> {
        let found = self.found.as_ref()?;
        Some(found.compiled.iter().map(|one| one.us).sum())
    }
}

fn print_found(found: &Found) {
    if let Some(device) = &found.device {
        let version = device.version.as_deref().map_or(String::new(), |v| format!(" {v}"));
        let (kind, vendor) = (&device.kind, &device.vendor);
        println!("  device   {}{version} on a device of kind {kind}, {vendor}", device.provider);
    }
    for one in &found.compiled {
        let then = one.p50_us.map_or(String::new(), |us| format!(", then {us:.0} us"));
        println!("  first    {:.1} ms for {}{then}", one.us / 1e3, one.inputs);
    }
    for unsuited in &found.unsuited {
        println!("  not in   {unsuited}");
    }
    if let Some(differs) = found.differs {
        println!("  answers  {differs:.1e} of their length away from the CPU's");
    }
    let Some(placement) = &found.placement else { return };
    for (provider, placed) in &placement.providers {
        let share = placed
            .share
            .map_or(String::new(), |share| format!(", {:.0} % of the time", share * 100.0));
        println!("  {provider}: {} operators{share}{}", placed.count(), kinds(placed));
    }
}

/// The most frequent kinds of operators.
fn kinds(placed: &Placed) -> String {
    let mut all: Vec<(&String, &u64)> = placed.operators.iter().collect();
    all.sort_by(|a, b| b.1.cmp(a.1).then(a.0.cmp(b.0)));
    let mut words: Vec<String> =
        all.iter().take(KINDS).map(|(kind, count)| format!("{kind} {count}")).collect();
    if all.len() > KINDS {
        words.push(format!("{} further kinds", all.len() - KINDS));
    }
    if words.is_empty() { String::new() } else { format!(": {}", words.join(", ")) }
}
