//! Why a bundle is refused, and what to do about it.

use crate::config::ConfigErrors;
use crate::limits::FLEET_BUNDLE_BYTES;
use crate::units::ByteSize;

use super::keys::Tally;
use super::time::Timestamp;

/// Why a bundle is refused. A refused bundle changes nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("the bundle has {size}, more than {}: send weights as artifacts", largest())]
    TooLarge { size: ByteSize },
    #[error("line {line}: {what}; make the bundle with `blochd fleet sign`")]
    Malformed { line: usize, what: String },
    #[error("nobody signed it: sign it with `blochd fleet sign`")]
    Unsigned,
    #[error("no key is trusted here: name public keys under fleet.keys")]
    NoKeys,
    #[error("{}", signatures(tally, *threshold))]
    Signatures { tally: Box<Tally>, threshold: usize },
    #[error("{0}")]
    Document(ConfigErrors),
    #[error(
        "the keys that are to follow cannot be trusted yet: {}; have {threshold} of them sign this \
         bundle too, so that no box waits for signatures that nobody can make",
        signatures(tally, *threshold)
    )]
    NextKeys { tally: Box<Tally>, threshold: usize },
    #[error("it expired at {expires}, and now it is {now}: sign it anew with a later `expires`")]
    Expired { expires: Timestamp, now: Timestamp },
    #[error(
        "it has revision {revision}, and this node has seen {seen}: send it again with a revision \
         above that"
    )]
    Old { revision: u64, seen: u64 },
    #[error(
        "it has revision {revision}, as one that this node has seen, and other contents: give \
         every change a revision of its own"
    )]
    OtherContents { revision: u64 },
    #[error("revision {revision} is overtaken by {by}, which lies beside it")]
    Superseded { revision: u64, by: u64 },
    #[error("revision {revision} is in force already")]
    Applied { revision: u64 },
    #[error("revision {revision} was given up here ({why}): send what is better as a new revision")]
    GivenUp { revision: u64, why: String },
    #[error("it is not for this node, {node}: {why}")]
    NotForThisNode { node: String, why: String },
    #[error(
        "it is for {} % of the nodes, and {node} is at {} %: raise `percent` in a new revision \
         with the same `salt`",
        hundredths(*percent), hundredths(*place)
    )]
    NotChosen { node: String, percent: u64, place: u64 },
    #[error("revision {revision} is being brought into force; this one is looked at after that")]
    Busy { revision: u64 },
}

impl Refused {
    /// One word for metrics and machines.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::TooLarge { .. } => "too_large",
            Self::Malformed { .. } => "malformed",
            Self::Unsigned => "unsigned",
            Self::NoKeys => "no_keys",
            Self::Signatures { .. } => "signatures",
            Self::Document(_) => "document",
            Self::NextKeys { .. } => "next_keys",
            Self::Expired { .. } => "expired",
            Self::Old { .. } => "old_revision",
            Self::OtherContents { .. } => "other_contents",
            Self::Superseded { .. } => "superseded",
            Self::Applied { .. } => "applied",
            Self::GivenUp { .. } => "given_up",
            Self::NotForThisNode { .. } => "not_for_this_node",
            Self::NotChosen { .. } => "not_chosen",
            Self::Busy { .. } => "busy",
        }
    }

    /// Whether somebody should look at it: a bundle for others, one that is in force already, or one that a
    /// newer one has overtaken, is nothing out of the ordinary.
    pub fn is_wrong(&self) -> bool {
        match self {
            Self::Superseded { .. }
            | Self::Applied { .. }
            | Self::NotForThisNode { .. }
            | Self::NotChosen { .. }
            | Self::Busy { .. } => false,
            Self::TooLarge { .. }
            | Self::Malformed { .. }
            | Self::Unsigned
            | Self::NoKeys
            | Self::Signatures { .. }
            | Self::Document(_)
            | Self::NextKeys { .. }
            | Self::Expired { .. }
            | Self::Old { .. }
            | Self::OtherContents { .. }
            | Self::GivenUp { .. } => true,
        }
    }
}

fn largest() -> ByteSize {
    ByteSize(FLEET_BUNDLE_BYTES as u64)
}

/// What the signatures come to.
fn signatures(tally: &Tally, threshold: usize) -> String {
    let mut text = format!(
        "{} of the {threshold} signatures that are needed hold",
        tally.by.len().min(threshold)
    );
    let mut also = |words: &str, keys: &std::collections::BTreeSet<String>| {
        if !keys.is_empty() {
            let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
            text.push_str(&format!("; {words} {}", keys.join(", ")));
        }
    };
    also("the document is not what was signed by", &tally.wrong);
    also("in minisign's older form, which is not taken (sign with -H), signed", &tally.legacy);
    also("not trusted here is", &tally.unknown);
    if tally.unreadable > 0 {
        text.push_str(&format!("; {} cannot be read", tally.unreadable));
    }
    text
}

/// Hundredths of a percent as percent.
fn hundredths(parts: u64) -> String {
    match (parts / 100, parts % 100) {
        (whole, 0) => whole.to_string(),
        (whole, rest) => format!("{whole}.{rest:02}"),
    }
}
