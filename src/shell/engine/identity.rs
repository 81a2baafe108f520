//! What latencies hold for, in words, and the widths that a provider likes.

use std::path::Path;

use super::{EngineOptions, Located};
use crate::config::{Plugin, Provider};
use crate::hardware;
use crate::shell::probe::detect;
use crate::units::Digest;

/// Digits of a library's hash that tell it from others on one box.
const HASH_DIGITS: usize = 12;

/// Number of channels in which the provider's cores work; see [`hardware::alignment`].
pub fn alignment(provider: &Provider) -> Option<usize> {
    hardware::alignment(provider.execution_provider())
}

/// What latencies of models that run with `options` hold for: CPU, provider, version of the library, threads.
///
/// All of it is known without loading anything: whoever has not loaded the runtime yet asks for what was
/// measured by the same words. That is why a plugin is named by its file's hash, which says more than the
/// version that it would give itself, and a device by what its vendor and model are on the bus.
pub(super) fn identity(library: &Located, options: &EngineOptions) -> String {
    let threads = options.intra_op_threads.max(1);
    let spinning = if options.spinning { ", spinning" } else { "" };
    format!(
        "{} / {} / onnxruntime {} / {threads} thread{}{spinning}",
        cpu_model(),
        provider(&options.provider, Path::new("/")),
        library.version,
        if threads == 1 { "" } else { "s" },
    )
}

/// A provider with all that its times depend on; devices are looked for below `root`.
fn provider(provider: &Provider, root: &Path) -> String {
    let mut text = provider.execution_provider().to_owned();
    let (device, options) = match provider {
        Provider::Cpu => return text,
        Provider::Cann(cann) => (cann.device_id as usize, &cann.options),
        Provider::Plugin(plugin) => {
            text.push_str(&library(plugin));
            (plugin.device, &plugin.options)
        }
    };
    text.push_str(&format!(" device {device}"));
    let devices = devices(root);
    if !devices.is_empty() {
        text.push_str(&format!(" ({})", devices.join(", ")));
    }
    let options: Vec<String> =
        options.iter().map(|(key, value)| format!("{key}={value}")).collect();
    if !options.is_empty() {
        text.push_str(&format!(" {}", bounded(options.join(" "))));
    }
    text
}

fn library(plugin: &Plugin) -> String {
    let hash: String = plugin.sha256.chars().take(HASH_DIGITS).collect();
    format!(" of {} {hash}", plugin.name)
}

/// Kinds of accelerators in the box, as their vendors number them.
fn devices(root: &Path) -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    for (vendor, seen) in detect::accelerators(root) {
        let chips = seen.cards.values().map(|card| match card.chip.as_deref() {
            Some(chip) if !chip.is_empty() => format!("{vendor} {chip}"),
            Some(_) | None => format!("{vendor} {:04x}", card.device),
        });
        all.extend(chips);
        if seen.cards.is_empty() && !seen.nodes.is_empty() {
            all.push(format!("{vendor} on the chip"));
        }
    }
    all.sort();
    all.dedup();
    all
}

/// Words that are too long to be shown are told apart by their hash.
fn bounded(words: String) -> String {
    const MOST: usize = 200;
    if words.len() <= MOST { words } else { Digest::of(words.as_bytes()).to_string() }
}

/// The CPU's own name of itself.
fn cpu_model() -> String {
    let kind = sysinfo::CpuRefreshKind::nothing();
    let system =
        sysinfo::System::new_with_specifics(sysinfo::RefreshKind::nothing().with_cpu(kind));
    let brand =
        system.ok().and_then(|system| Some(system.cpus().first()?.brand().trim().to_owned()));
    let known = brand.filter(|brand| !brand.is_empty());
    known.unwrap_or_else(|| format!("unknown {} CPU", std::env::consts::ARCH))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Cann;

    fn plugin() -> Plugin {
        Plugin {
            name: "npu".to_owned(),
            library: "/opt/npu/libep.so".into(),
            sha256: "0123456789abcdef".repeat(4),
            provider: Some("NpuExecutionProvider".to_owned()),
            device: 0,
            options: [("cores".to_owned(), "4".to_owned())].into(),
        }
    }

    #[test]
    fn what_changes_the_times_of_a_provider_changes_its_words() {
        let root = tempfile::tempdir().unwrap();
        let words = |plugin: Plugin| provider(&Provider::Plugin(plugin), root.path());
        let first = words(plugin());
        assert_eq!(first, "NpuExecutionProvider of npu 0123456789ab device 0 cores=4");
        let long = [("cores".to_owned(), "4".repeat(1000))];
        let others = [
            Plugin { device: 1, ..plugin() },
            Plugin { sha256: "f".repeat(64), ..plugin() },
            Plugin { options: [("cores".to_owned(), "2".to_owned())].into(), ..plugin() },
            Plugin { options: long.into(), ..plugin() },
            Plugin { provider: None, ..plugin() },
        ];
        for other in others {
            let other = words(other);
            assert!(other != first && other.len() < 300, "{other}");
        }
        // Where the library lies changes nothing.
        assert_eq!(words(Plugin { library: "/lib/libep.so".into(), ..plugin() }), first);
        std::fs::create_dir(root.path().join("dev")).unwrap();
        std::fs::write(root.path().join("dev/davinci0"), "").unwrap();
        let cann = Provider::Cann(Cann::default());
        let found = provider(&cann, root.path());
        assert_eq!(found, "CANNExecutionProvider device 0 (ascend on the chip)");
        assert_eq!(provider(&Provider::Cpu, root.path()), "CPUExecutionProvider");
    }
}
