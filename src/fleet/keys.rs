//! Minisign's keys and signatures: who is trusted, and how many of them must have signed.

use std::collections::{BTreeMap, BTreeSet};

use minisign_verify::{Error, PublicKey, Signature};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::limits::FLEET_KEYS;
use crate::units::Digest;

/// A public key of minisign.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// As it stands in the second line of its file.
    text: String,
    id: [u8; 8],
    /// The Ed25519 key itself: the same one under two identities is one signer.
    point: [u8; 32],
    public: PublicKey,
}

/// Why keys are none, or no set of them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoKeys {
    #[error(
        "this is no public key of minisign: write the file that `minisign -G` made, or its second \
         line"
    )]
    NotAKey,
    #[error("key {0} stands twice")]
    Twice(String),
    #[error("{count} keys are given: write 1 to {FLEET_KEYS}")]
    Count { count: usize },
    #[error("the threshold {threshold} cannot be reached with {count} keys: write 1 to {count}")]
    Threshold { threshold: usize, count: usize },
}

impl Key {
    /// Reads a public key: its file of two lines, or the second of them alone.
    ///
    /// # Errors
    /// [`NoKeys::NotAKey`].
    pub fn parse(text: &str) -> Result<Self, NoKeys> {
        let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        let text = match (lines.next(), lines.next(), lines.next()) {
            (Some(key), None, _) => key,
            (Some(comment), Some(key), None) if comment.starts_with("untrusted comment:") => key,
            _ => return Err(NoKeys::NotAKey),
        };
        let public = PublicKey::from_base64(text).map_err(|_| NoKeys::NotAKey)?;
        let bytes = base64(text).ok_or(NoKeys::NotAKey)?;
        let (Some(id), Some(point)) = (part(&bytes, 2), part(&bytes, 10)) else {
            return Err(NoKeys::NotAKey);
        };
        Ok(Self { text: text.to_owned(), id, point, public })
    }

    /// The key's name, as minisign shows it: sixteen hexadecimal digits.
    pub fn id(&self) -> String {
        id_text(self.id)
    }

    /// The second line of its file.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether this key made `signature` (four lines) over what `feed` hands on in pieces.
    pub fn signed(&self, signature: &str, feed: impl FnOnce(&mut dyn FnMut(&[u8]))) -> bool {
        let Ok(signature) = Signature::decode(signature) else { return false };
        let Ok(mut verifier) = self.public.verify_stream(&signature) else { return false };
        feed(&mut |bytes| verifier.update(bytes));
        verifier.finalize().is_ok()
    }
}

fn id_text(id: [u8; 8]) -> String {
    format!("{:016X}", u64::from_le_bytes(id))
}

fn part<const N: usize>(bytes: &[u8], from: usize) -> Option<[u8; N]> {
    bytes.get(from..from + N)?.try_into().ok()
}

/// Keys of which so many must have signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeySet {
    keys: Vec<Key>,
    threshold: usize,
}

/// Which signatures of a document hold.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tally {
    /// Trusted keys that signed, by name, each with the comment that it signed too.
    pub by: BTreeMap<String, String>,
    /// Trusted keys in whose name a signature stands that does not hold.
    pub wrong: BTreeSet<String>,
    /// Trusted keys that signed in minisign's older form, which is not taken.
    pub legacy: BTreeSet<String>,
    /// Keys that are not trusted.
    pub unknown: BTreeSet<String>,
    /// Signatures that are none.
    pub unreadable: usize,
}

impl KeySet {
    /// The keys of which `threshold` must sign.
    ///
    /// # Errors
    /// Where there are none or too many, one stands twice, or there are fewer than the threshold.
    pub fn new(keys: Vec<Key>, threshold: usize) -> Result<Self, NoKeys> {
        let count = keys.len();
        if !(1..=FLEET_KEYS).contains(&count) {
            return Err(NoKeys::Count { count });
        }
        let mut points = BTreeSet::new();
        let mut ids = BTreeSet::new();
        if let Some(twice) = keys.iter().find(|key| !points.insert(key.point) | !ids.insert(key.id))
        {
            return Err(NoKeys::Twice(twice.id()));
        }
        if !(1..=count).contains(&threshold) {
            return Err(NoKeys::Threshold { threshold, count });
        }
        Ok(Self { keys, threshold })
    }

    pub fn keys(&self) -> &[Key] {
        &self.keys
    }

    pub fn threshold(&self) -> usize {
        self.threshold
    }

    /// The same for the same keys in any order with the same threshold.
    pub fn digest(&self) -> Digest {
        let points: BTreeSet<[u8; 32]> = self.keys.iter().map(|key| key.point).collect();
        let mut bytes = (self.threshold as u64).to_le_bytes().to_vec();
        points.iter().for_each(|point| bytes.extend_from_slice(point));
        Digest::of(&bytes)
    }

    /// Verifies signatures of a document. Only signatures over its hash are taken: without that mark in what is
    /// signed, minisign's older form lets a signature of 64 chosen bytes pass for one of another document.
    pub fn tally(&self, document: &[u8], signatures: &[&str]) -> Tally {
        let mut tally = Tally::default();
        for text in signatures {
            let id = text.lines().nth(1).and_then(base64).and_then(|bytes| part(&bytes, 2));
            let (Some(id), Ok(signature)) = (id, Signature::decode(text)) else {
                tally.unreadable += 1;
                continue;
            };
            let Some(key) = self.keys.iter().find(|key| key.id == id) else {
                tally.unknown.insert(id_text(id));
                continue;
            };
            match key.public.verify(document, &signature, false) {
                Ok(()) => {
                    let comment = signature.trusted_comment().to_owned();
                    tally.by.entry(key.id()).or_insert(comment);
                }
                Err(Error::UnexpectedAlgorithm) => drop(tally.legacy.insert(key.id())),
                Err(_) => drop(tally.wrong.insert(key.id())),
            }
        }
        tally
    }
}

#[derive(Serialize, Deserialize)]
struct Written {
    threshold: usize,
    public: Vec<String>,
}

impl Serialize for KeySet {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        let public = self.keys.iter().map(|key| key.text.clone()).collect();
        Written { threshold: self.threshold, public }.serialize(out)
    }
}

impl<'de> Deserialize<'de> for KeySet {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        let Written { threshold, public } = Written::deserialize(input)?;
        let keys: Result<Vec<Key>, NoKeys> = public.iter().map(|text| Key::parse(text)).collect();
        keys.and_then(|keys| Self::new(keys, threshold)).map_err(de::Error::custom)
    }
}

/// The bytes of padded standard base64, in which minisign writes; `None` for anything else.
pub fn base64(text: &str) -> Option<Vec<u8>> {
    let text = text.trim().as_bytes();
    let padding = text.iter().rev().take_while(|byte| **byte == b'=').count();
    if !text.len().is_multiple_of(4) || padding > 2 {
        return None;
    }
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    let (mut bits, mut held) = (0u32, 0);
    for byte in &text[..text.len() - padding] {
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = (bits << 6) | u32::from(value);
        held += 6;
        if held >= 8 {
            held -= 8;
            bytes.push((bits >> held) as u8);
            bits &= (1 << held) - 1;
        }
    }
    // What is left over is nothing: each value has one text.
    (bits == 0).then_some(bytes)
}
