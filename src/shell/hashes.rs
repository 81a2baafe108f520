//! SHA-256 of files, the hash by which wheels, plugins and artifacts are named outside blochd; inside it is
//! BLAKE3 (see [`crate::units::Digest`]).

use std::fmt::Write;
use std::io::{self, Read};

use sha2::{Digest as _, Sha256};

/// Bytes that are read at a time.
const CHUNK: usize = 64 << 10;

/// The hash of all that is left to read, and how many bytes that was. `goes_on` is asked before each piece.
///
/// # Errors
/// Where it cannot be read; [`io::ErrorKind::Interrupted`] where it is not to go on.
pub fn sha256(
    from: &mut impl Read,
    mut goes_on: impl FnMut() -> bool,
) -> io::Result<([u8; 32], u64)> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; CHUNK];
    let mut size = 0;
    loop {
        if !goes_on() {
            return Err(io::ErrorKind::Interrupted.into());
        }
        match from.read(&mut buffer) {
            Ok(0) => return Ok((hasher.finalize().into(), size)),
            Ok(read) => {
                hasher.update(&buffer[..read]);
                size += read as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// As `sha256sum` writes it: 64 lower-case hexadecimal digits.
///
/// # Errors
/// Where it cannot be read.
pub fn sha256_text(from: &mut impl Read) -> io::Result<String> {
    sha256(from, || true).map(|(hash, _)| hexadecimal(&hash))
}

/// Two lower-case digits a byte.
pub fn hexadecimal(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        // Writing into a string does not fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_that_of_the_bytes() {
        let found = sha256_text(&mut &b"abc"[..]).unwrap();
        assert_eq!(found, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }

    #[test]
    fn who_is_not_to_go_on_reads_no_more() {
        let mut left = &[0u8; 3 * CHUNK][..];
        let mut asked = 0;
        let stopped = sha256(&mut left, || {
            asked += 1;
            asked < 2
        });
        assert_eq!(stopped.unwrap_err().kind(), io::ErrorKind::Interrupted);
        assert_eq!(left.len(), 2 * CHUNK);
    }
}
