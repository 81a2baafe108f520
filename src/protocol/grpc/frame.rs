//! What stands around the messages of a call: the prefix of each, the status at the end, the deadline in
//! front. Source: the "gRPC over HTTP2" protocol description.

use std::time::Duration;

/// Bytes in front of every message: whether it is compressed, and its length, big-endian.
pub const PREFIX: usize = 5;

/// What the paths of calls begin with: of inference and the repository, and of the health service.
pub const INFERENCE: &str = "/inference.GRPCInferenceService/";
pub const HEALTH: &str = "/grpc.health.v1.Health/";

/// The codes of a call's end that this program gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Code {
    Ok = 0,
    InvalidArgument = 3,
    DeadlineExceeded = 4,
    NotFound = 5,
    AlreadyExists = 6,
    PermissionDenied = 7,
    ResourceExhausted = 8,
    FailedPrecondition = 9,
    Unimplemented = 12,
    Internal = 13,
    Unavailable = 14,
    Unauthenticated = 16,
}

/// The length of the message that `prefix` announces; `None` where it is compressed, which is not offered.
pub fn announced(prefix: [u8; PREFIX]) -> Option<usize> {
    let [compressed, length @ ..] = prefix;
    let length = usize::try_from(u32::from_be_bytes(length)).ok()?;
    (compressed == 0).then_some(length)
}

/// The prefix of a message; `None` for one that is too long to be announced.
pub fn prefix(length: usize) -> Option<[u8; PREFIX]> {
    let [a, b, c, d] = u32::try_from(length).ok()?.to_be_bytes();
    Some([0, a, b, c, d])
}

/// How long a call may take by its header `grpc-timeout`: at most eight digits and a unit.
pub fn timeout(header: &str) -> Option<Duration> {
    let (digits, unit) = header.split_at_checked(header.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|digit| digit.is_ascii_digit())
    {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(number * 3600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

/// Longest message of a status before it is escaped: clients bound their headers at 8 KiB.
const MESSAGE_BYTES: usize = 2048;

/// The value of the trailer `grpc-message`: everything but printable ASCII is percent-encoded.
pub fn escaped(message: &str) -> String {
    let end = message.floor_char_boundary(MESSAGE_BYTES);
    let mut escaped = String::with_capacity(end);
    for byte in message[..end].bytes() {
        match byte {
            b' '..=b'~' if byte != b'%' => escaped.push(char::from(byte)),
            _ => {
                let digit = |value: u8| char::from(b"0123456789ABCDEF"[usize::from(value & 15)]);
                escaped.extend(['%', digit(byte >> 4), digit(byte)]);
            }
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_announces_its_message_unless_that_is_compressed() {
        assert_eq!(prefix(0x01_02_03), Some([0, 0, 1, 2, 3]));
        assert_eq!(announced([0, 0, 1, 2, 3]), Some(0x01_02_03));
        assert_eq!(announced([0, 255, 255, 255, 255]), Some(u32::MAX as usize));
        assert_eq!(announced([1, 0, 0, 0, 3]), None);
        assert_eq!(prefix(1 << 32), None);
    }

    #[test]
    fn a_timeout_is_read_in_every_unit_and_nothing_else_is() {
        let times = [
            ("1H", Duration::from_secs(3600)),
            ("2M", Duration::from_secs(120)),
            ("3S", Duration::from_secs(3)),
            ("250m", Duration::from_millis(250)),
            ("0u", Duration::ZERO),
            ("99999999n", Duration::from_nanos(99_999_999)),
        ];
        for (header, time) in times {
            assert_eq!(timeout(header), Some(time), "{header}");
        }
        for header in ["", "S", "1", "1s", "-1S", "+1S", "1.5S", "123456789S", "1 S", "1ü", "ü"] {
            assert_eq!(timeout(header), None, "{header:?}");
        }
    }

    #[test]
    fn a_message_is_escaped_and_cut() {
        assert_eq!(escaped("100 % größer\n~"), "100 %25 gr%C3%B6%C3%9Fer%0A~");
        assert_eq!(escaped(&"ü".repeat(5000)).len(), MESSAGE_BYTES * 3);
        assert_eq!(
            escaped(&format!("a{}", "ü".repeat(5000))).len(),
            1 + (MESSAGE_BYTES / 2 - 1) * 6
        );
    }
}
