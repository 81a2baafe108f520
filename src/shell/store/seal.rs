//! The form of a state file: one line with the hash of what follows, then JSON.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::units::Digest;

const MAGIC: &str = "blochd-state 1 ";

/// Why the bytes of a state file are not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    #[error("its first line is not that of a state file of this version")]
    Header,
    #[error("its contents do not have the hash that its first line tells")]
    Hash,
    #[error("its contents are not what they should be: {0}")]
    Contents(String),
    #[error("it cannot be read: {0}")]
    Unreadable(String),
}

/// The file that holds `value`.
///
/// # Errors
/// Where the value cannot be written as JSON.
pub fn seal<T: Serialize>(value: &T) -> Result<Vec<u8>, serde_json::Error> {
    let payload = serde_json::to_vec_pretty(value)?;
    let mut bytes = format!("{MAGIC}{}\n", Digest::of(&payload)).into_bytes();
    bytes.extend_from_slice(&payload);
    Ok(bytes)
}

/// The value that a file holds.
///
/// # Errors
/// Where the file is not whole, or holds something else.
pub fn open<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Damage> {
    let end = bytes.iter().position(|byte| *byte == b'\n').ok_or(Damage::Header)?;
    let header = std::str::from_utf8(&bytes[..end]).map_err(|_| Damage::Header)?;
    let told = header.strip_prefix(MAGIC).ok_or(Damage::Header)?;
    let told: Digest = told.parse().map_err(|_| Damage::Header)?;
    let payload = &bytes[end + 1..];
    if Digest::of(payload) != told {
        return Err(Damage::Hash);
    }
    serde_json::from_slice(payload).map_err(|error| Damage::Contents(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_comes_back_and_no_flipped_or_missing_byte_passes() {
        let bytes = seal(&vec!["a", "b"]).unwrap();
        assert_eq!(open::<Vec<String>>(&bytes).unwrap(), ["a", "b"]);
        for at in 0..bytes.len() {
            assert!(open::<Vec<String>>(&bytes[..at]).is_err(), "cut at {at}");
            let mut flipped = bytes.clone();
            flipped[at] ^= 4;
            assert!(open::<Vec<String>>(&flipped).is_err(), "flipped at {at}");
        }
    }

    #[test]
    fn a_sound_file_of_another_kind_is_refused() {
        let bytes = seal(&7).unwrap();
        assert!(matches!(open::<Vec<String>>(&bytes), Err(Damage::Contents(_))));
    }
}
