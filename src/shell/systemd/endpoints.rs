//! Which socket that was handed over serves which endpoint. Sockets of socket units win over the address in the
//! configuration, as everywhere with systemd, and the difference is told; a socket out of the manager's store
//! is only taken back where the configuration still says so.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;

use super::handed::Place;
use super::{STORED, is_stored};

/// Where clients come in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Endpoint {
    Http,
    Grpc,
    Unix,
    Metrics,
    Admin,
}

impl Endpoint {
    pub const ALL: [Self; 5] = [Self::Http, Self::Grpc, Self::Unix, Self::Metrics, Self::Admin];

    /// Its name for `FileDescriptorName=`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Grpc => "grpc",
            Self::Unix => "unix",
            Self::Metrics => "metrics",
            Self::Admin => "admin",
        }
    }

    /// The setting that says where it is.
    pub fn setting(self) -> &'static str {
        match self {
            Self::Http => "http_address",
            Self::Grpc => "grpc_address",
            Self::Unix => "unix_socket",
            Self::Metrics => "metrics_address",
            Self::Admin => "admin_address",
        }
    }

    fn kind(self) -> &'static str {
        if self == Self::Unix { "a path" } else { "a TCP port" }
    }

    /// Whether it may be there.
    fn takes(self, place: &Place) -> bool {
        matches!(place, Place::Path(_)) == (self == Self::Unix)
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Where the configuration wants an endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    At(Place),
    /// Wherever it is handed over, and nowhere otherwise.
    IfHanded,
}

impl Wanted {
    fn is_at(&self, place: &Place) -> bool {
        match (self, place) {
            (Self::IfHanded, _) => false,
            // A socket is made beside its place and renamed, and keeps the name that it was made under.
            (Self::At(Place::Path(wanted)), Place::Path(path)) => {
                path == wanted || *path == beside(wanted)
            }
            (Self::At(wanted), place) => wanted == place,
        }
    }
}

/// The name under which the agent makes the socket `path`.
pub(in crate::shell) fn beside(path: &Path) -> std::path::PathBuf {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    beside.into()
}

/// What becomes of a socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It serves; the configuration may want the endpoint elsewhere.
    Serves { endpoint: Endpoint, instead_of: Option<Place> },
    /// It is closed.
    Closed(Refusal),
}

/// Why a socket is closed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error(
        "{setting} gives it no place: write an address there, or disable the socket unit",
        setting = .0.setting()
    )]
    Off(Endpoint),
    #[error("{0} is served at {kind}", kind = .0.kind())]
    Kind(Endpoint),
    #[error("another socket was handed over for {0}")]
    Taken(Endpoint),
    #[error("{setting} says otherwise by now", setting = .0.setting())]
    Moved(Endpoint),
    #[error(
        "no setting names this address: set http_address, grpc_address, unix_socket, \
         metrics_address or admin_address to it, or say in the socket unit what it is for \
         (FileDescriptorName=http, grpc, unix, metrics or admin)"
    )]
    Unknown,
}

/// What becomes of each socket, in their order.
pub fn assign(offers: &[(&str, &Place)], wanted: &BTreeMap<Endpoint, Wanted>) -> Vec<Verdict> {
    let named = |name: &str| Endpoint::ALL.into_iter().find(|endpoint| endpoint.name() == name);
    let stored = |name: &str| name.strip_prefix(STORED).and_then(named);
    // Who says what it is goes first, what was kept last.
    let rank = |name: &str| match (named(name), is_stored(name)) {
        (Some(_), _) => 0,
        (None, false) => 1,
        (None, true) => 2,
    };
    let mut order: Vec<usize> = (0..offers.len()).collect();
    order.sort_by_key(|index| rank(offers[*index].0));
    let mut taken = BTreeSet::new();
    let mut verdicts = BTreeMap::new();
    for index in order {
        let (name, place) = offers[index];
        let judged = if let Some(endpoint) = named(name) {
            by_name(endpoint, place, wanted)
        } else if let Some(endpoint) = stored(name) {
            kept(endpoint, place, wanted)
        } else {
            by_address(place, wanted)
        };
        let verdict = match judged {
            Verdict::Serves { endpoint, .. } if !taken.insert(endpoint) => {
                Verdict::Closed(Refusal::Taken(endpoint))
            }
            verdict => verdict,
        };
        verdicts.insert(index, verdict);
    }
    verdicts.into_values().collect()
}

fn by_name(endpoint: Endpoint, place: &Place, wanted: &BTreeMap<Endpoint, Wanted>) -> Verdict {
    if !endpoint.takes(place) {
        return Verdict::Closed(Refusal::Kind(endpoint));
    }
    match wanted.get(&endpoint) {
        None => Verdict::Closed(Refusal::Off(endpoint)),
        Some(wanted) if wanted.is_at(place) => Verdict::Serves { endpoint, instead_of: None },
        Some(Wanted::IfHanded) => Verdict::Serves { endpoint, instead_of: None },
        Some(Wanted::At(other)) => Verdict::Serves { endpoint, instead_of: Some(other.clone()) },
    }
}

fn kept(endpoint: Endpoint, place: &Place, wanted: &BTreeMap<Endpoint, Wanted>) -> Verdict {
    match wanted.get(&endpoint) {
        Some(wanted) if wanted.is_at(place) => Verdict::Serves { endpoint, instead_of: None },
        Some(_) | None => Verdict::Closed(Refusal::Moved(endpoint)),
    }
}

fn by_address(place: &Place, wanted: &BTreeMap<Endpoint, Wanted>) -> Verdict {
    let found = wanted.iter().find(|(_, wanted)| wanted.is_at(place));
    // There is one Unix socket at most: what else could it be.
    let only = wanted
        .get_key_value(&Endpoint::Unix)
        .filter(|(endpoint, wanted)| **wanted == Wanted::IfHanded && endpoint.takes(place));
    match found.or(only) {
        Some((endpoint, _)) => Verdict::Serves { endpoint: *endpoint, instead_of: None },
        None => Verdict::Closed(Refusal::Unknown),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(text: &str) -> Place {
        Place::Port(text.parse().unwrap())
    }

    fn path(text: &str) -> Place {
        Place::Path(text.into())
    }

    fn wanted() -> BTreeMap<Endpoint, Wanted> {
        BTreeMap::from([
            (Endpoint::Http, Wanted::At(port("127.0.0.1:8000"))),
            (Endpoint::Grpc, Wanted::At(port("127.0.0.1:8001"))),
            (Endpoint::Unix, Wanted::At(path("/run/blochd/blochd.sock"))),
            (Endpoint::Metrics, Wanted::At(port("127.0.0.1:8002"))),
        ])
    }

    fn serves(endpoint: Endpoint) -> Verdict {
        Verdict::Serves { endpoint, instead_of: None }
    }

    fn assigned(offers: &[(&str, Place)], wanted: &BTreeMap<Endpoint, Wanted>) -> Vec<Verdict> {
        let offers: Vec<_> = offers.iter().map(|(name, place)| (*name, place)).collect();
        assign(&offers, wanted)
    }

    #[test]
    fn the_sockets_of_one_unit_are_told_apart_by_their_addresses() {
        let unit = "blochd.socket";
        let offers = [
            (unit, path("/run/blochd/blochd.sock")),
            (unit, port("127.0.0.1:8002")),
            (unit, port("127.0.0.1:8000")),
            (unit, port("127.0.0.1:9000")),
            (unit, port("127.0.0.1:8001")),
        ];
        let expected = [
            serves(Endpoint::Unix),
            serves(Endpoint::Metrics),
            serves(Endpoint::Http),
            Verdict::Closed(Refusal::Unknown),
            serves(Endpoint::Grpc),
        ];
        assert_eq!(assigned(&offers, &wanted()), expected);
    }

    #[test]
    fn a_name_wins_over_an_address_and_the_difference_is_known() {
        let offers = [("grpc", port("0.0.0.0:9001")), ("http", port("127.0.0.1:8000"))];
        let instead_of = Some(port("127.0.0.1:8001"));
        let elsewhere = Verdict::Serves { endpoint: Endpoint::Grpc, instead_of };
        assert_eq!(assigned(&offers, &wanted()), [elsewhere, serves(Endpoint::Http)]);
    }

    #[test]
    fn what_is_switched_off_of_another_kind_or_there_already_is_closed() {
        let mut without = wanted();
        without.remove(&Endpoint::Grpc);
        let offers = [
            ("grpc", port("127.0.0.1:8001")),
            ("unix", port("127.0.0.1:1")),
            ("metrics", path("/m")),
            ("other", port("127.0.0.1:8000")),
            ("http", port("127.0.0.1:8000")),
            ("http", port("127.0.0.1:9000")),
        ];
        let expected = [
            Verdict::Closed(Refusal::Off(Endpoint::Grpc)),
            Verdict::Closed(Refusal::Kind(Endpoint::Unix)),
            Verdict::Closed(Refusal::Kind(Endpoint::Metrics)),
            // The one that has the name goes first.
            Verdict::Closed(Refusal::Taken(Endpoint::Http)),
            serves(Endpoint::Http),
            Verdict::Closed(Refusal::Taken(Endpoint::Http)),
        ];
        assert_eq!(assigned(&offers, &without), expected);
    }

    #[test]
    fn a_kept_socket_is_taken_back_only_where_the_configuration_still_says_so() {
        let offers = [
            ("stored-http", port("127.0.0.1:8000")),
            ("stored-grpc", port("127.0.0.1:9001")),
            // Made beside its place, and renamed.
            ("stored-unix", path("/run/blochd/blochd.sock.new")),
            ("stored-metrics", port("127.0.0.1:8002")),
            ("metrics", port("127.0.0.1:8002")),
            ("stored-nonsense", port("127.0.0.1:7")),
        ];
        let expected = [
            serves(Endpoint::Http),
            Verdict::Closed(Refusal::Moved(Endpoint::Grpc)),
            serves(Endpoint::Unix),
            Verdict::Closed(Refusal::Taken(Endpoint::Metrics)),
            serves(Endpoint::Metrics),
            Verdict::Closed(Refusal::Unknown),
        ];
        assert_eq!(assigned(&offers, &wanted()), expected);
        let none = BTreeMap::new();
        let moved = Verdict::Closed(Refusal::Moved(Endpoint::Http));
        assert_eq!(assigned(&offers[..1], &none), [moved]);
    }

    #[test]
    fn a_unix_socket_without_a_place_of_its_own_is_taken_where_it_is_handed_over() {
        let wanted = BTreeMap::from([(Endpoint::Unix, Wanted::IfHanded)]);
        for name in ["unix", "blochd.socket"] {
            assert_eq!(assigned(&[(name, path("/s"))], &wanted), [serves(Endpoint::Unix)]);
        }
        // Kept from when it had one.
        let moved = Verdict::Closed(Refusal::Moved(Endpoint::Unix));
        assert_eq!(assigned(&[("stored-unix", path("/s"))], &wanted), [moved]);
        let unknown = Verdict::Closed(Refusal::Unknown);
        assert_eq!(assigned(&[("x", port("127.0.0.1:1"))], &wanted), [unknown]);
    }
}
