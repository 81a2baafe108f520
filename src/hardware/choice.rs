//! Which execution provider is to run a model: what is wanted, what there is, and what did not work before →
//! providers in the order in which they are tried, and a reason for each that is passed over.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use super::detect::vendor_of;
use super::{Complaint, Health, Known, Presence, Roster, Vendor};
use crate::config::{Cann, ExecutionProviders, Plugin, Provider, Wanted};

/// The option of the provider for CANN by which the parts of a graph that it knows are compiled, and not the
/// whole.
const SUBGRAPHS: &str = "enable_cann_subgraph";

/// What there is to choose from.
#[derive(Debug, Clone, Copy)]
pub struct Offer<'a> {
    /// Whether the runtime was built with the provider for CANN.
    pub cann_built: bool,
    /// Whether device nodes or cards of Ascend's are seen.
    pub ascend_seen: bool,
    /// What the vendors' libraries tell.
    pub roster: &'a Roster,
    /// What CANN is asked for.
    pub cann: &'a Cann,
    pub plugins: &'a BTreeMap<String, Plugin>,
    /// Plugins whose device cannot be worked with as far as its vendor's library tells, by name.
    pub gone: &'a BTreeMap<String, Passed>,
}

/// Why a provider is passed over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Passed {
    /// The runtime was not built with it.
    NotInRuntime,
    /// Nothing of its vendor's is seen in the box.
    NoDevice,
    /// The configuration does not describe it any more.
    NotDescribed,
    /// The vendor's library does not list its device any more.
    DeviceLost { device: u32 },
    /// Its device is there and cannot be used.
    DeviceUnusable { device: u32, complaint: Complaint },
    /// The model failed on it.
    Failed { reason: String },
    /// It failed on it some time ago, and is tried again later.
    FailedBefore { reason: String },
    /// It served the model, and its sessions failed.
    LeftService { reason: String },
}

impl fmt::Display for Passed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotInRuntime => f.write_str("ONNX Runtime was not built with it"),
            Self::NoDevice => f.write_str("no device of its vendor is seen"),
            Self::NotDescribed => f.write_str("the configuration does not describe it"),
            Self::DeviceLost { device } => write!(f, "device {device} is lost"),
            Self::DeviceUnusable { device, complaint } => {
                write!(f, "device {device} cannot be used: {complaint}")
            }
            Self::Failed { reason } => write!(f, "the model failed on it: {reason}"),
            Self::FailedBefore { reason } => write!(f, "the model failed on it before: {reason}"),
            Self::LeftService { reason } => write!(f, "it failed in service: {reason}"),
        }
    }
}

impl Passed {
    /// The word for it in metrics.
    pub fn label(&self) -> &'static str {
        match self {
            Self::NotInRuntime => "not_in_runtime",
            Self::NoDevice => "no_device",
            Self::NotDescribed => "not_described",
            Self::DeviceLost { .. } => "device_lost",
            Self::DeviceUnusable { .. } => "device_unusable",
            Self::Failed { .. } => "failed",
            Self::FailedBefore { .. } => "failed_before",
            Self::LeftService { .. } => "left_service",
        }
    }
}

/// A provider that is passed over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PassedOver {
    /// As [`label`] tells it.
    pub provider: String,
    #[serde(flatten)]
    pub why: Passed,
}

/// What is to be tried.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Choice {
    /// The best first; none stands twice.
    pub candidates: Vec<Provider>,
    /// In the order in which they are wanted.
    pub passed: Vec<PassedOver>,
}

/// What people are told of a provider: its name, and how it is asked where it is asked in several ways.
pub fn label(provider: &Provider) -> String {
    match provider {
        Provider::Cann(cann) if cann.options.get(SUBGRAPHS).is_some_and(|on| on == "1") => {
            "cann (subgraphs)".to_owned()
        }
        Provider::Cpu | Provider::Cann(_) | Provider::Plugin(_) => provider.name().to_owned(),
    }
}

/// Orders what is wanted. `failed` tells of what did not work before, as long as it counts.
///
/// CANN is tried with the whole graph, and with its parts where nobody has said which. Where `auto` stands
/// for it, it takes a device that is seen; who names it is taken at their word, since containers show less
/// than there is.
pub fn choose(
    wanted: &ExecutionProviders,
    offer: &Offer<'_>,
    failed: impl Fn(&Provider) -> Option<Passed>,
) -> Choice {
    let mut choice = Choice::default();
    let add = |choice: &mut Choice, provider: Provider| {
        let told = label(&provider);
        let is_told = choice.passed.iter().any(|passed| passed.provider == told);
        if is_told || choice.candidates.contains(&provider) {
            return;
        }
        let passed = match &provider {
            Provider::Cann(cann) => unusable(offer.roster, cann.device_id),
            Provider::Plugin(plugin) => offer.gone.get(&plugin.name).cloned(),
            Provider::Cpu => None,
        };
        match passed.or_else(|| failed(&provider)) {
            Some(why) => choice.passed.push(PassedOver { provider: told, why }),
            None => choice.candidates.push(provider),
        }
    };
    let pass = |choice: &mut Choice, name: &str, why: Passed| {
        if choice.passed.iter().all(|passed| passed.provider != name) {
            choice.passed.push(PassedOver { provider: name.to_owned(), why });
        }
    };
    let add_cann = |choice: &mut Choice| match offer.cann_built {
        true => ways(offer.cann).into_iter().for_each(|one| add(choice, Provider::Cann(one))),
        false => pass(choice, "cann", Passed::NotInRuntime),
    };
    for one in &wanted.0 {
        match one {
            Wanted::Auto => {
                match (offer.cann_built, offer.ascend_seen) {
                    (_, true) => add_cann(&mut choice),
                    // One that is named as well is not passed over for that.
                    (true, false) if !wanted.0.contains(&Wanted::Cann) => {
                        pass(&mut choice, "cann", Passed::NoDevice);
                    }
                    // A box like any other.
                    (_, false) => {}
                }
                for plugin in offer.plugins.values() {
                    add(&mut choice, Provider::Plugin(plugin.clone()));
                }
                add(&mut choice, Provider::Cpu);
            }
            Wanted::Cpu => add(&mut choice, Provider::Cpu),
            Wanted::Cann => add_cann(&mut choice),
            Wanted::Plugin(name) => match offer.plugins.get(name) {
                Some(plugin) => add(&mut choice, Provider::Plugin(plugin.clone())),
                None => pass(&mut choice, name, Passed::NotDescribed),
            },
        }
    }
    choice
}

/// The ways in which CANN is asked, the best first.
pub fn ways(asked: &Cann) -> Vec<Cann> {
    if asked.options.contains_key(SUBGRAPHS) {
        return vec![asked.clone()];
    }
    let mut parts = asked.clone();
    parts.options.insert(SUBGRAPHS.to_owned(), "1".to_owned());
    vec![asked.clone(), parts]
}

/// Why an NPU cannot be worked with, as far as its vendor's library tells.
pub fn unusable(roster: &Roster, device: u32) -> Option<Passed> {
    none_works(roster.numbered(Vendor::Ascend, device))
}

/// A device that a provider tells of, as far as it says which one that is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Told<'a> {
    /// Number of its maker on the PCI bus.
    pub vendor_id: u32,
    /// Its address there, as sysfs writes it.
    pub pci: Option<&'a str>,
}

/// The same of a device that a plugin tells of: the one of its address, or, where it gives none, the only one
/// of its maker's. Of any other nobody knows which it is, and nothing is said of it.
pub fn told_unusable(roster: &Roster, told: Told<'_>) -> Option<Passed> {
    let vendor = vendor_of(told.vendor_id)?;
    let own: Vec<&Known> = roster.devices().filter(|known| known.device.vendor == vendor).collect();
    match (told.pci, own.as_slice()) {
        (Some(pci), all) => {
            let there = |own: &str| own.eq_ignore_ascii_case(pci);
            let is_it = |known: &&Known| known.device.pci.as_deref().is_some_and(there);
            none_works(all.iter().copied().filter(is_it))
        }
        (None, [only]) => none_works(std::iter::once(*only)),
        (None, _) => None,
    }
}

/// Why none of these, which have one number or one place, can be worked with. One that complains works: boards
/// are known that ring an alarm at all times.
fn none_works<'a>(devices: impl Iterator<Item = &'a Known>) -> Option<Passed> {
    let mut lost = None;
    for known in devices {
        let device = known.device.index;
        match (known.presence, &known.device.health) {
            (Presence::Lost, _) => lost = Some(Passed::DeviceLost { device }),
            (Presence::Answers, Health::Unusable(complaint)) => {
                let complaint = complaint.clone();
                return Some(Passed::DeviceUnusable { device, complaint });
            }
            (Presence::Answers | Presence::Silent, _) => return None,
        }
    }
    lost
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::hardware::Device;

    fn plugin(name: &str) -> Plugin {
        Plugin { name: name.to_owned(), library: "/l.so".into(), ..Plugin::default() }
    }

    struct Box {
        cann_built: bool,
        ascend_seen: bool,
        roster: Roster,
        cann: Cann,
        plugins: BTreeMap<String, Plugin>,
        gone: BTreeMap<String, Passed>,
    }

    impl Box {
        fn new(cann_built: bool, ascend_seen: bool, plugins: &[&str]) -> Self {
            let plugins = plugins.iter().map(|name| ((*name).to_owned(), plugin(name))).collect();
            let (roster, cann, gone) = (Roster::default(), Cann::default(), BTreeMap::new());
            Self { cann_built, ascend_seen, roster, cann, plugins, gone }
        }

        fn choose(&self, wanted: &[Wanted]) -> (Vec<String>, Vec<String>) {
            told(&choose(&ExecutionProviders(wanted.to_vec()), &self.offer(), |_| None))
        }

        fn offer(&self) -> Offer<'_> {
            Offer {
                cann_built: self.cann_built,
                ascend_seen: self.ascend_seen,
                roster: &self.roster,
                cann: &self.cann,
                plugins: &self.plugins,
                gone: &self.gone,
            }
        }
    }

    fn told(choice: &Choice) -> (Vec<String>, Vec<String>) {
        let passed = choice.passed.iter().map(|p| format!("{} {}", p.provider, p.why.label()));
        (choice.candidates.iter().map(label).collect(), passed.collect())
    }

    fn own(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn named(name: &str) -> Wanted {
        Wanted::Plugin(name.to_owned())
    }

    #[test]
    fn auto_is_cann_where_there_is_an_npu_then_the_plugins_by_name_then_the_cpu() {
        let auto = [Wanted::Auto];
        let whole = Box::new(true, true, &["b", "a"]).choose(&auto);
        assert_eq!(whole, (own(&["cann", "cann (subgraphs)", "a", "b", "cpu"]), vec![]));
        // An NPU and a runtime that knows nothing of it is worth a word; a plain box is not.
        let unknown = Box::new(false, true, &[]).choose(&auto);
        assert_eq!(unknown, (own(&["cpu"]), own(&["cann not_in_runtime"])));
        let idle = Box::new(true, false, &[]).choose(&auto);
        assert_eq!(idle, (own(&["cpu"]), own(&["cann no_device"])));
        assert_eq!(Box::new(false, false, &[]).choose(&auto), (own(&["cpu"]), vec![]));
    }

    #[test]
    fn who_names_a_provider_is_taken_at_their_word_and_gets_no_cpu_unasked() {
        let plain = Box::new(true, false, &["mlu"]);
        let all = own(&["cann", "cann (subgraphs)"]);
        assert_eq!(plain.choose(&[Wanted::Cann]), (all, vec![]));
        assert_eq!(plain.choose(&[named("mlu")]), (own(&["mlu"]), vec![]));
        let gone = plain.choose(&[named("xpu"), Wanted::Cpu]);
        assert_eq!(gone, (own(&["cpu"]), own(&["xpu not_described"])));
        let without = Box::new(false, true, &[]).choose(&[Wanted::Cann]);
        assert_eq!(without, (vec![], own(&["cann not_in_runtime"])));
        let both = plain.choose(&[Wanted::Cpu, Wanted::Auto, Wanted::Cann]);
        assert_eq!(both, (own(&["cpu", "mlu", "cann", "cann (subgraphs)"]), vec![]));
        let mut asked = Box::new(true, true, &[]);
        asked.cann.options.insert(SUBGRAPHS.to_owned(), "0".to_owned());
        assert_eq!(asked.choose(&[Wanted::Cann]), (own(&["cann"]), vec![]));
    }

    #[test]
    fn what_failed_before_is_passed_over_with_its_reason_and_only_that() {
        let all = Box::new(true, true, &["mlu"]);
        let failed = |provider: &Provider| {
            let reason = "GRAPH_FAILED".to_owned();
            (label(provider) == "cann").then_some(Passed::FailedBefore { reason })
        };
        let wanted = ExecutionProviders(vec![Wanted::Cann, Wanted::Cpu]);
        let choice = choose(&wanted, &all.offer(), failed);
        assert_eq!(
            told(&choice),
            (own(&["cann (subgraphs)", "cpu"]), own(&["cann failed_before"]))
        );
        assert!(choice.passed[0].why.to_string().contains("GRAPH_FAILED"));
    }

    #[test]
    fn an_npu_that_is_lost_or_unusable_is_passed_over_and_one_that_complains_is_not() {
        let mut npu = Box::new(true, true, &[]);
        let device = |health| Device { health, ..Device::new(Vendor::Ascend, 0) };
        npu.roster
            .see(Vendor::Ascend, vec![device(Health::Degraded(Complaint::Alarm { level: 3 }))]);
        let wanted = [Wanted::Cann, Wanted::Cpu];
        assert_eq!(npu.choose(&wanted).0.len(), 3);
        npu.roster.see(Vendor::Ascend, vec![device(Health::Unusable(Complaint::Absent))]);
        let passed = own(&["cann device_unusable", "cann (subgraphs) device_unusable"]);
        assert_eq!(npu.choose(&wanted), (own(&["cpu"]), passed));
        npu.roster.see(Vendor::Ascend, vec![]);
        let passed = own(&["cann device_lost", "cann (subgraphs) device_lost"]);
        assert_eq!(npu.choose(&wanted), (own(&["cpu"]), passed));
        // Another device of the same box, or the library that falls silent, say nothing.
        npu.cann.device_id = 1;
        assert_eq!(npu.choose(&wanted).0.len(), 3);
        npu.cann.device_id = 0;
        npu.roster.see(Vendor::Ascend, vec![device(Health::Ok)]);
        npu.roster.silence(Vendor::Ascend);
        assert_eq!(npu.choose(&wanted).0.len(), 3);
    }

    #[test]
    fn the_device_of_a_plugin_is_known_by_its_address_or_by_being_the_only_one_of_its_maker() {
        let mut roster = Roster::default();
        let device = |index: u32, pci: Option<&str>| Device {
            pci: pci.map(str::to_owned),
            ..Device::new(Vendor::Ascend, index)
        };
        let (first, second) = (Some("0000:3b:00.0"), Some("0000:5e:00.0"));
        let told = |vendor_id, pci| Told { vendor_id, pci };
        const ASCEND: u32 = 0x19e5;
        // Nobody has listed anything.
        assert_eq!(told_unusable(&roster, told(ASCEND, None)), None);
        roster.see(Vendor::Ascend, vec![device(0, first)]);
        assert_eq!(told_unusable(&roster, told(ASCEND, None)), None);
        roster.see(Vendor::Ascend, vec![]);
        let lost = |device| Some(Passed::DeviceLost { device });
        assert_eq!(told_unusable(&roster, told(ASCEND, None)), lost(0));
        // Another maker's, the processor that a plugin attaches to, another place.
        assert_eq!(told_unusable(&roster, told(0xcabc, None)), None);
        assert_eq!(told_unusable(&roster, told(0x8086, first)), None);
        assert_eq!(told_unusable(&roster, told(ASCEND, second)), None);
        roster.see(Vendor::Ascend, vec![device(1, second)]);
        // Of two it may be either.
        assert_eq!(told_unusable(&roster, told(ASCEND, None)), None);
        assert_eq!(told_unusable(&roster, told(ASCEND, Some("0000:3B:00.0"))), lost(0));
        assert_eq!(told_unusable(&roster, told(ASCEND, second)), None);
        roster.silence(Vendor::Ascend);
        assert_eq!(told_unusable(&roster, told(ASCEND, second)), None, "nothing is known of it");
        let unusable = Device { health: Health::Unusable(Complaint::Absent), ..device(1, second) };
        roster.see(Vendor::Ascend, vec![unusable]);
        let found = told_unusable(&roster, told(ASCEND, second)).unwrap();
        assert_eq!(found.label(), "device_unusable");
    }

    #[test]
    fn a_plugin_whose_device_is_gone_is_passed_over() {
        let mut there = Box::new(false, false, &["a", "b"]);
        there.gone.insert("a".to_owned(), Passed::DeviceLost { device: 0 });
        let wanted = [named("a"), named("b"), Wanted::Cpu];
        assert_eq!(there.choose(&wanted), (own(&["b", "cpu"]), own(&["a device_lost"])));
    }

    const BREAKABLE: [&str; 4] = ["cann", "cann (subgraphs)", "a", "cpu"];

    fn any_wanted() -> impl Strategy<Value = Vec<Wanted>> {
        let all = [Wanted::Auto, Wanted::Cpu, Wanted::Cann, named("a"), named("b"), named("gone")];
        proptest::sample::subsequence(all.to_vec(), 1..=6).prop_shuffle()
    }

    proptest! {
        /// Whatever is wanted is tried or passed over, nothing of it twice, in the order of the list; and
        /// only who asks for the CPU gets it.
        #[test]
        fn all_that_is_wanted_is_tried_or_passed_over_with_a_reason(
            wanted in any_wanted(),
            (cann_built, ascend_seen) in any::<(bool, bool)>(),
            broken in proptest::sample::subsequence(BREAKABLE.to_vec(), 0..=4),
        ) {
            let there = Box::new(cann_built, ascend_seen, &["a", "b"]);
            let failed = |provider: &Provider| {
                let is_broken = broken.contains(&label(provider).as_str());
                is_broken.then(|| Passed::FailedBefore { reason: String::new() })
            };
            let list = ExecutionProviders(wanted.clone());
            let choice = choose(&list, &there.offer(), failed);
            let tried: Vec<String> = choice.candidates.iter().map(label).collect();
            let passed: Vec<String> = choice.passed.iter().map(|p| p.provider.clone()).collect();
            let all: BTreeSet<&String> = tried.iter().chain(&passed).collect();
            prop_assert_eq!(all.len(), tried.len() + passed.len(), "{:?} {:?}", tried, passed);
            for one in wanted.iter().filter(|one| **one != Wanted::Auto) {
                prop_assert!(all.contains(&one.to_string()), "{} of {:?}", one, all);
            }
            let wants_cpu = wanted.contains(&Wanted::Cpu) || wanted.contains(&Wanted::Auto);
            prop_assert_eq!(all.contains(&"cpu".to_owned()), wants_cpu);
            prop_assert!(tried.iter().all(|one| !broken.contains(&one.as_str())));
            if !wanted.contains(&Wanted::Auto) {
                let place = |name: &str| {
                    let name = name.split(' ').next().unwrap_or_default();
                    wanted.iter().position(|one| one.to_string() == name)
                };
                let places: Vec<_> = tried.iter().map(|name| place(name)).collect();
                prop_assert!(places.is_sorted(), "{:?} of {:?}", tried, wanted);
            }
        }
    }
}
