//! Why a vendor's devices cannot be read at all.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Why nothing is told of a vendor's devices.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Trouble {
    /// The library is in none of the places where it may be.
    NoLibrary {
        name: String,
        looked: Vec<String>,
    },
    /// The one that the configuration names is not there.
    NotThere {
        path: String,
    },
    /// Somebody else could put other code into its place.
    WritableByOthers {
        path: String,
        what: String,
    },
    /// It was found, not named, and belongs to a user who is neither the superuser nor the agent's.
    Owner {
        path: String,
        uid: u32,
    },
    /// The dynamic linker refuses it.
    NotLoadable {
        path: String,
        said: String,
    },
    /// A version so old, or another library, that what everything begins with is missing.
    NoSymbol {
        path: String,
        symbol: String,
    },
    /// The call that everything begins with failed, with the library's own number.
    Failed {
        call: String,
        code: i64,
    },
    /// The same, since this is a container to which the device is not given.
    InContainer {
        call: String,
    },
    NoPermission {
        call: String,
    },
    /// It told something that cannot be.
    Implausible {
        call: String,
        value: i64,
    },
    /// It did not return within the time: a sick card, as a rule.
    Hung {
        limit_ms: u64,
    },
    /// The process in which it ran ended.
    Ended {
        how: String,
    },
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoLibrary { name, looked } => {
                write!(f, "no {name} in {}", looked.join(", "))?;
                f.write_str("; name it in the configuration (`devices`)")
            }
            Self::NotThere { path } => {
                write!(f, "{path}, which the configuration names, is no library")
            }
            Self::WritableByOthers { path, what } => {
                write!(
                    f,
                    "{path} is not loaded: everybody may write to {what}; take that right away"
                )
            }
            Self::Owner { path, uid } => write!(
                f,
                "{path} is not loaded: it belongs to user {uid}; name it in the configuration \
                 (`devices`) where that is right"
            ),
            Self::NotLoadable { path, said } => write!(f, "{path} cannot be loaded: {said}"),
            Self::NoSymbol { path, symbol } => {
                write!(f, "{path} has no {symbol}: too old, or another library")
            }
            Self::Failed { call, code } => write!(f, "{call} failed with {code}"),
            Self::InContainer { call } => {
                write!(f, "{call}: the device is not given to this container")
            }
            Self::NoPermission { call } => {
                write!(f, "{call}: this user may not; add it to the driver's group")
            }
            Self::Implausible { call, value } => write!(f, "{call} says {value}, which cannot be"),
            Self::Hung { limit_ms } => write!(
                f,
                "its library did not return within {:.1} s; a card may be sick",
                *limit_ms as f64 / 1e3
            ),
            Self::Ended { how } => write!(f, "the process that asked its library ended: {how}"),
        }
    }
}
