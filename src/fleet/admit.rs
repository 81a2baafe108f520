//! Whether a bundle may be brought into force here: who signed it, what it says, whom it is for, and when.

use serde::{Deserialize, Serialize};

use crate::units::Digest;

use super::document::Document;
use super::envelope::Envelope;
use super::keys::{KeySet, Tally};
use super::refused::Refused;
use super::select::Node;
use super::time::Timestamp;

/// A bundle that was signed by those who are trusted, and says something that this program understands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    pub document: Document,
    /// BLAKE3 of the document's bytes: a further signature makes no other bundle of it.
    pub digest: Digest,
    /// Who signed it.
    pub by: Tally,
}

/// The newest bundle that was verified, was for this node, and was begun.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    pub revision: u64,
    pub digest: Digest,
    pub standing: Standing,
}

/// What became of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum Standing {
    /// It is being brought into force.
    Underway,
    /// It is in force.
    Applied,
    /// It did no good here, and the one before is in force again.
    GivenUp { why: String },
    /// It could not be brought into force through no fault of its own: the same one may come again.
    Interrupted { why: String },
}

/// Verifies the signatures of a bundle and reads it, in this order: nothing unsigned is parsed. `file` is only
/// named in errors.
///
/// # Errors
/// Why it is refused.
pub fn verify(file: &str, bytes: &[u8], trusted: Option<&KeySet>) -> Result<Verified, Refused> {
    let envelope = Envelope::open(bytes)?;
    let trusted = trusted.ok_or(Refused::NoKeys)?;
    let signed = envelope.document.as_bytes();
    let by = trusted.tally(signed, &envelope.signatures);
    if by.by.len() < trusted.threshold() {
        let threshold = trusted.threshold();
        return Err(Refused::Signatures { tally: Box::new(by), threshold });
    }
    let document = Document::parse(file, envelope.document).map_err(Refused::Document)?;
    if let Some(next) = &document.keys {
        let tally = next.tally(signed, &envelope.signatures);
        if tally.by.len() < next.threshold() {
            let threshold = next.threshold();
            return Err(Refused::NextKeys { tally: Box::new(tally), threshold });
        }
    }
    Ok(Verified { document, digest: Digest::of(signed), by })
}

/// Whether a verified bundle may be begun by `node`, which has `seen` one before, `now`.
///
/// # Errors
/// Why it is refused.
pub fn admit(
    bundle: &Verified,
    node: &Node,
    seen: Option<&Seen>,
    now: Timestamp,
) -> Result<(), Refused> {
    let Document { revision, expires, .. } = bundle.document;
    bundle.document.selector.select(node)?;
    if let Some(seen) = seen.filter(|seen| revision <= seen.revision) {
        if revision < seen.revision {
            return Err(Refused::Old { revision, seen: seen.revision });
        }
        if bundle.digest != seen.digest {
            return Err(Refused::OtherContents { revision });
        }
        match &seen.standing {
            Standing::Applied => return Err(Refused::Applied { revision }),
            Standing::Underway => return Err(Refused::Busy { revision }),
            Standing::GivenUp { why } => {
                return Err(Refused::GivenUp { revision, why: why.clone() });
            }
            Standing::Interrupted { .. } => {}
        }
    }
    if now >= expires {
        return Err(Refused::Expired { expires, now });
    }
    Ok(())
}
