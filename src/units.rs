//! Ids and units as newtypes, so that a digest is never taken for a name nor milliseconds for
//! microseconds. Uses nothing; every other room uses it.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::limits::{FLEET_NAME_BYTES, LEAST_RATIO, MODEL_NAME_BYTES};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// BLAKE3 digest (32 bytes) of some content; printed and serialised as 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; 32]);

impl Digest {
    /// The digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }

    /// Wraps a finished 32-byte BLAKE3 hash.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 32 bytes of the hash.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The first twelve hexadecimal digits: enough for a log line or a file name a person reads.
    pub fn short(&self) -> String {
        self.to_string()[..12].to_owned()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({self})")
    }
}

/// Why a text is not a value of one of this room's types.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// Not 64 hexadecimal digits.
    #[error("{0:?} is not a digest: expected 64 hexadecimal digits")]
    Digest(String),
    /// Not a number followed by a unit of time.
    #[error("{0:?} is not a duration: write a number and a unit, such as 40ms, 1.5s or 200us")]
    Duration(String),
    /// Not a number followed by a unit of size.
    #[error("{0:?} is not a size: write a number and a unit, such as 512MiB, 2GiB or 64KB")]
    Size(String),
    /// Not one of the percentiles that the program keeps.
    #[error("{0:?} is not a percentile: write p50, p90, p95, p99, p99.9 or max")]
    Percentile(String),
    /// Not a name that can be a folder and a part of a URL.
    #[error(
        "{0:?} is no name of a model: it has 1 to 128 letters (a-z, A-Z), digits, dots, dashes and \
         underscores, and does not begin with a dot"
    )]
    ModelName(String),
}

impl FromStr for Digest {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let wrong = || UnitError::Digest(text.to_owned());
        let hash = blake3::Hash::from_hex(text).map_err(|_| wrong())?;
        Ok(Self(*hash.as_bytes()))
    }
}

/// Whether `name` can name a model: it stands in a URL, a file name and a metric's label as it is.
///
/// # Errors
/// [`UnitError::ModelName`] with the rule.
pub fn check_model_name(name: &str) -> Result<(), UnitError> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let fits = (1..=MODEL_NAME_BYTES).contains(&name.len());
    if fits && name.bytes().all(plain) && !name.starts_with('.') {
        return Ok(());
    }
    Err(UnitError::ModelName(name.chars().take(MODEL_NAME_BYTES).collect()))
}

/// Whether `name` can name a node of a fleet, a label or its value: it stands in a topic and a metric's label
/// as it is.
pub fn is_fleet_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    (1..=FLEET_NAME_BYTES).contains(&name.len()) && name.bytes().all(plain)
}

/// Whether a rung can be asked to take this share of dense's time: it has to be faster, within reason.
pub fn is_latency_ratio(ratio: f64) -> bool {
    ratio > LEAST_RATIO && ratio < 1.0
}

/// A model's version: the number of its directory `<model>/<N>/`, at least 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Version(pub u64);

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A length of time as people write it: `40ms`, `1.5s`, `200us`, `2m`, `1h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Span(pub Duration);

impl Span {
    /// Whole milliseconds.
    pub const fn millis(ms: u64) -> Self {
        Self(Duration::from_millis(ms))
    }

    /// Whole microseconds.
    pub const fn micros(us: u64) -> Self {
        Self(Duration::from_micros(us))
    }

    /// Whole seconds.
    pub const fn secs(s: u64) -> Self {
        Self(Duration::from_secs(s))
    }
}

impl From<Span> for Duration {
    fn from(span: Span) -> Self {
        span.0
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ns = self.0.as_nanos();
        let (value, unit) = match ns {
            0..1_000_000 => (ns as f64 / 1e3, "us"),
            1_000_000..1_000_000_000 => (ns as f64 / 1e6, "ms"),
            _ => (ns as f64 / 1e9, "s"),
        };
        write!(f, "{}{unit}", trimmed(value))
    }
}

fn trimmed(value: f64) -> String {
    let text = format!("{value:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Splits `"1.5s"` into 1.5 and `"s"`.
fn number_and_unit(text: &str) -> Option<(f64, &str)> {
    let text = text.trim();
    let end = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let value: f64 = text[..end].parse().ok()?;
    value.is_finite().then(|| (value, text[end..].trim()))
}

impl FromStr for Span {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let wrong = || UnitError::Duration(text.to_owned());
        let (value, unit) = number_and_unit(text).ok_or_else(wrong)?;
        let seconds = match unit {
            "ns" => value * 1e-9,
            "us" | "µs" => value * 1e-6,
            "ms" => value * 1e-3,
            "s" => value,
            "m" | "min" => value * 60.0,
            "h" => value * 3600.0,
            _ => return Err(wrong()),
        };
        Duration::try_from_secs_f64(seconds).map(Self).map_err(|_| wrong())
    }
}

/// A number of bytes as people write it: `512MiB`, `2GiB`, `64KB`, `100B`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ByteSize(pub u64);

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(1u64 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
        match units.iter().find(|(size, _)| self.0 >= *size) {
            Some((size, unit)) => write!(f, "{}{unit}", trimmed(self.0 as f64 / *size as f64)),
            None => write!(f, "{}B", self.0),
        }
    }
}

impl FromStr for ByteSize {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let wrong = || UnitError::Size(text.to_owned());
        let (value, unit) = number_and_unit(text).ok_or_else(wrong)?;
        let factor: f64 = match unit {
            "B" => 1.0,
            "KB" => 1e3,
            "MB" => 1e6,
            "GB" => 1e9,
            "KiB" => 1024.0,
            "MiB" => 1024f64.powi(2),
            "GiB" => 1024f64.powi(3),
            "TiB" => 1024f64.powi(4),
            _ => return Err(wrong()),
        };
        let bytes = value * factor;
        if bytes < u64::MAX as f64 { Ok(Self(bytes as u64)) } else { Err(wrong()) }
    }
}

/// Which quantile of a latency distribution a budget bounds; `p99` unless said otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Percentile {
    P50,
    P90,
    P95,
    #[default]
    P99,
    P999,
    Max,
}

impl Percentile {
    /// The quantile in 0..=1 (1 is the maximum).
    pub fn quantile(self) -> f64 {
        match self {
            Self::P50 => 0.5,
            Self::P90 => 0.9,
            Self::P95 => 0.95,
            Self::P99 => 0.99,
            Self::P999 => 0.999,
            Self::Max => 1.0,
        }
    }

    /// The value of this percentile in `sorted` (ascending), by the nearest-rank rule; `None` when empty.
    pub fn of<T: Copy>(self, sorted: &[T]) -> Option<T> {
        let rank = (self.quantile() * sorted.len() as f64).ceil() as usize;
        sorted.get(rank.max(1) - 1).copied()
    }
}

impl fmt::Display for Percentile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::P50 => "p50",
            Self::P90 => "p90",
            Self::P95 => "p95",
            Self::P99 => "p99",
            Self::P999 => "p99.9",
            Self::Max => "max",
        })
    }
}

impl FromStr for Percentile {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        match text {
            "p50" => Ok(Self::P50),
            "p90" => Ok(Self::P90),
            "p95" => Ok(Self::P95),
            "p99" => Ok(Self::P99),
            "p99.9" => Ok(Self::P999),
            "max" => Ok(Self::Max),
            _ => Err(UnitError::Percentile(text.to_owned())),
        }
    }
}

/// Serialises a type by its `Display` and reads it by its `FromStr`: what people write is what is stored.
macro_rules! as_text {
    ($($name:ty),*) => {$(
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
                out.collect_str(self)
            }
        }
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
                let text = String::deserialize(input)?;
                text.parse().map_err(de::Error::custom)
            }
        }
    )*};
}

as_text!(Digest, Span, ByteSize, Percentile);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_write_is_read_and_written_back() {
        for text in ["40ms", "1.5s", "200us", "90s"] {
            assert_eq!(text.parse::<Span>().unwrap().to_string(), text);
        }
        for text in ["512MiB", "2GiB", "100B"] {
            assert_eq!(text.parse::<ByteSize>().unwrap().to_string(), text);
        }
        for text in ["p50", "p99", "p99.9", "max"] {
            assert_eq!(text.parse::<Percentile>().unwrap().to_string(), text);
        }
        let digest = Digest::of(b"x");
        assert_eq!(digest.to_string().parse::<Digest>().unwrap(), digest);
    }

    #[test]
    fn numbers_without_a_unit_and_negative_numbers_are_refused() {
        for text in ["40", "", "ms", "-4ms", "4 parsecs", "1e400s", "NaNs"] {
            assert!(text.parse::<Span>().is_err(), "{text:?}");
        }
        for text in ["512", "-1MiB", "3XB", "99999999TiB"] {
            assert!(text.parse::<ByteSize>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn percentiles_follow_the_nearest_rank_rule() {
        let values: Vec<u32> = (1..=100).collect();
        assert_eq!(Percentile::P50.of(&values), Some(50));
        assert_eq!(Percentile::P99.of(&values), Some(99));
        assert_eq!(Percentile::Max.of(&values), Some(100));
        assert_eq!(Percentile::P99.of(&[7]), Some(7));
        assert_eq!(Percentile::P99.of::<u32>(&[]), None);
    }
}
