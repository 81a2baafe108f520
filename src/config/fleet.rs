//! What a fleet's bundle may set: everything but what would cut a box off, widen whom it trusts, or take effect
//! only after the probation in which it could be taken back.

use super::checked::Config;
use super::error::{Origin, Problem};
use super::layers::merge;
use super::plugins::Part;
use super::raw::Node;
use super::schema::{Set, read_fleet};

/// The `config` part of the bundle that is in force.
#[derive(Debug, Clone, Copy)]
pub struct FleetPart<'a> {
    /// The bundle's name, for errors and origins.
    pub file: &'a str,
    pub revision: u64,
    pub config: &'a Node,
}

const WIDENS_TRUST: &str = "whom a box trusts, and as what it is addressed, is said on the box \
                            alone; signers are exchanged by the bundle's own `keys`";
const CUTS_OFF: &str =
    "a wrong one would cut the box off from its clients, and shows only at the next start";
const LOADS_CODE: &str = "it names code that is loaded into a process of the box";
const WRITES: &str = "it names a place of the box's disk that is written to";
const SENDS: &str = "it names where the box sends what it sees";
const RESTARTS: &str = "it takes effect at the next start, when no probation would take it back";

/// Settings, by the beginning of their paths, that a bundle may not have, and why.
pub static RESERVED: &[(&str, &str)] = &[
    ("fleet.", WIDENS_TRUST),
    (
        "model_dir",
        "the models that are served would be others, and those to go back to out of reach",
    ),
    ("state_dir", "what the box would go back to lies there"),
    ("http_address", CUTS_OFF),
    ("grpc_address", CUTS_OFF),
    ("unix_socket", CUTS_OFF),
    ("admin_address", CUTS_OFF),
    ("tls.", WIDENS_TRUST),
    ("metrics_address", CUTS_OFF),
    ("allow_plaintext", "that a network is trusted is said on the box alone"),
    ("shared_memory", "it opens memory of the box to every client on it"),
    ("sandbox", "it opens the box to what models do"),
    ("runtime_library", LOADS_CODE),
    ("devices.ascend", LOADS_CODE),
    ("devices.cambricon", LOADS_CODE),
    ("devices.kunlunxin", LOADS_CODE),
    ("trace", WRITES),
    ("cann.dump_graphs", WRITES),
    ("otlp_endpoint", SENDS),
    ("otlp_share", RESTARTS),
    ("log_format", RESTARTS),
];

/// Why a bundle may not have this setting; `None` where it may.
pub fn reserved(path: &str) -> Option<&'static str> {
    let named = |name: &str| path == name || (name.ends_with('.') && path.starts_with(name));
    RESERVED.iter().find(|(name, _)| named(name)).map(|(_, why)| *why)
}

/// What is wrong with a bundle's `config` by itself: unknown keys, values out of range, settings that it may
/// not have.
pub fn fleet_problems(file: &str, config: &Node) -> Vec<Problem> {
    let (sets, mut problems) = read_fleet(file, None, config.clone());
    problems.extend(sets.iter().filter_map(refuse));
    merge(&mut Config::default(), sets, &mut problems);
    problems
}

/// The settings of a bundle that is in force.
pub(super) fn read(part: &FleetPart) -> (Vec<Set>, Vec<Problem>) {
    let (sets, mut problems) = read_fleet(part.file, Some(part.revision), part.config.clone());
    problems.extend(sets.iter().filter_map(refuse));
    (sets, problems)
}

fn refuse(set: &Set) -> Option<Problem> {
    let (path, why, origin) = match set {
        Set::Agent(setting, _, origin) => (setting.path, reserved(setting.path)?, origin),
        // Told once for each, and not for all that is said of it.
        Set::Plugin(said) if said.part == Part::Itself => ("plugins", LOADS_CODE, &said.origin),
        Set::Access(given) if given.setting.is_none() => ("access", WIDENS_TRUST, &given.origin),
        Set::Plugin(_) | Set::Access(_) | Set::Defaults(_) | Set::Model(..) | Set::Version(_) => {
            return None;
        }
    };
    let what = format!("a bundle may not set `{path}`: {why}");
    Some(Problem { origin: Origin::clone(origin), what, right: "leave it out".to_owned() })
}
