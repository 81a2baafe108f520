//! Tensor elements as JSON, read straight into little-endian bytes and written straight out of
//! them.

use std::fmt;

use half::f16;
use serde::de::{self, DeserializeSeed, Deserializer, SeqAccess, Visitor};
use serde::ser::{self, SerializeSeq, Serializer};

use crate::onnx::DType;

use super::check::{Expected, sizes_text};
use super::error::RequestError;
use super::signature::datatype;

/// Bytes in front of every BYTES element: its length, little-endian.
pub(super) const LENGTH_PREFIX: usize = 4;

/// Why `data` is not taken.
pub(super) enum DataError {
    /// Fewer elements than the shape needs; how many there are is known only where all were read.
    TooFew(Option<usize>),
    TooMany,
    /// What is wrong with which element.
    Element(String),
}

impl DataError {
    /// The same as an error of the request.
    pub fn of(self, input: &str, expected: &Expected) -> RequestError {
        let input = input.to_owned();
        let got = match self {
            Self::Element(what) => return RequestError::Data { input, what },
            Self::TooFew(Some(got)) => got.to_string(),
            Self::TooFew(None) => "fewer".to_owned(),
            Self::TooMany => "more".to_owned(),
        };
        let shape = sizes_text(&expected.shape);
        RequestError::DataCount { input, got, expected: expected.count, shape }
    }
}

/// Reads the flat or nested array `json` of `count` elements. Nothing is reserved beyond a small
/// multiple of `json`'s own length, whatever `count` claims.
pub(super) fn parse(json: &str, dtype: DType, count: usize) -> Result<Vec<u8>, DataError> {
    // Each element but the last takes a character and a comma at least.
    if count > json.len() / 2 + 1 {
        return Err(DataError::TooFew(None));
    }
    let capacity = count * dtype.size().unwrap_or(LENGTH_PREFIX);
    let mut sink =
        Sink { dtype, left: count, bytes: Vec::with_capacity(capacity), overflow: false };
    let mut input = serde_json::Deserializer::from_str(json);
    match sink.deserialize(&mut input) {
        Ok(()) if sink.left == 0 => Ok(sink.bytes),
        Ok(()) => Err(DataError::TooFew(Some(count - sink.left))),
        Err(_) if sink.overflow => Err(DataError::TooMany),
        Err(error) => {
            Err(DataError::Element(format!("\"data\" element {}: {error}", count - sink.left)))
        }
    }
}

struct Sink {
    dtype: DType,
    left: usize,
    bytes: Vec<u8>,
    overflow: bool,
}

impl Sink {
    fn take<E: de::Error>(&mut self) -> Result<(), E> {
        self.overflow = self.left == 0;
        self.left = self.left.checked_sub(1).ok_or_else(|| E::custom("too many elements"))?;
        Ok(())
    }

    fn put<E: de::Error, const N: usize>(&mut self, bytes: [u8; N]) -> Result<(), E> {
        self.take()?;
        self.bytes.extend_from_slice(&bytes);
        Ok(())
    }

    fn float<E: de::Error>(&mut self, value: f64) -> Result<(), E> {
        let finite = |finite: bool| match finite {
            true => Ok(()),
            false => Err(E::custom(format!("{value:e} is beyond {}", datatype(self.dtype)))),
        };
        match self.dtype {
            DType::F64 => self.put(value.to_le_bytes()),
            DType::F32 => {
                finite((value as f32).is_finite())?;
                self.put((value as f32).to_le_bytes())
            }
            DType::F16 => {
                finite(f16::from_f64(value).is_finite())?;
                self.put(f16::from_f64(value).to_le_bytes())
            }
            other => Err(E::custom(format!("expected {}, got {value}", datatype(other)))),
        }
    }

    fn integer<E: de::Error>(&mut self, value: i128) -> Result<(), E> {
        let name = datatype(self.dtype);
        macro_rules! put {
            ($int:ty) => {
                match <$int>::try_from(value) {
                    Ok(value) => self.put(value.to_le_bytes()),
                    Err(_) => Err(E::custom(format!("{value} is beyond {name}"))),
                }
            };
        }
        match self.dtype {
            DType::U8 => put!(u8),
            DType::I8 => put!(i8),
            DType::U16 => put!(u16),
            DType::I16 => put!(i16),
            DType::U32 => put!(u32),
            DType::I32 => put!(i32),
            DType::U64 => put!(u64),
            DType::I64 => put!(i64),
            DType::Bool if value == 0 || value == 1 => self.put([value as u8]),
            DType::F16 | DType::F32 | DType::F64 => self.float(value as f64),
            DType::Bool | DType::String | DType::BF16 => {
                Err(E::custom(format!("expected {name}, got {value}")))
            }
        }
    }
}

impl<'de> DeserializeSeed<'de> for &mut Sink {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, input: D) -> Result<(), D::Error> {
        input.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for &mut Sink {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", datatype(self.dtype))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while seq.next_element_seed(&mut *self)?.is_some() {}
        Ok(())
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<(), E> {
        match self.dtype {
            DType::Bool => self.put([u8::from(value)]),
            other => Err(E::custom(format!("expected {}, got {value}", datatype(other)))),
        }
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<(), E> {
        self.integer(value.into())
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<(), E> {
        self.integer(value.into())
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<(), E> {
        self.float(value)
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<(), E> {
        if self.dtype != DType::String {
            return Err(E::custom(format!("expected {}, got a string", datatype(self.dtype))));
        }
        let length = u32::try_from(value.len()).map_err(|_| E::custom("longer than 4 GiB"))?;
        self.put(length.to_le_bytes())?;
        self.bytes.extend_from_slice(value.as_bytes());
        Ok(())
    }
}

/// The BYTES elements of `data`; an error says what does not add up.
pub(super) fn strings(data: &[u8]) -> impl Iterator<Item = Result<&[u8], String>> {
    let mut rest = data;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let split = rest.split_first_chunk::<LENGTH_PREFIX>().and_then(|(length, tail)| {
            let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
            tail.split_at_checked(length)
        });
        let Some((element, tail)) = split else {
            let at = data.len() - rest.len();
            rest = &[];
            return Some(Err(format!("the BYTES element at byte {at} reaches beyond the data")));
        };
        rest = tail;
        Some(Ok(element))
    })
}

/// Whether the bytes of a BOOL tensor are all 0 or 1; anything else is undefined in the runtime.
pub(super) fn all_bools(data: &[u8]) -> bool {
    data.iter().all(|byte| *byte <= 1)
}

/// The elements of a tensor as a flat JSON array. JSON has neither NaN nor infinity: both become
/// `null`, which NumPy reads as NaN; binary data keeps them.
pub(super) struct Elements<'a> {
    pub dtype: DType,
    pub data: &'a [u8],
}

impl ser::Serialize for Elements<'_> {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        let data = self.data;
        macro_rules! numbers {
            ($number:ty) => {
                out.collect_seq(data.as_chunks().0.iter().map(|b| <$number>::from_le_bytes(*b)))
            };
        }
        match self.dtype {
            DType::U8 => out.collect_seq(data),
            DType::I8 => numbers!(i8),
            DType::U16 => numbers!(u16),
            DType::I16 => numbers!(i16),
            DType::U32 => numbers!(u32),
            DType::I32 => numbers!(i32),
            DType::U64 => numbers!(u64),
            DType::I64 => numbers!(i64),
            DType::F32 => numbers!(f32),
            DType::F64 => numbers!(f64),
            DType::F16 => {
                let chunks = data.as_chunks().0.iter();
                out.collect_seq(chunks.map(|b| f16::from_le_bytes(*b).to_f32()))
            }
            DType::Bool => out.collect_seq(data.iter().map(|byte| *byte != 0)),
            DType::String => {
                let mut seq = out.serialize_seq(None)?;
                for element in strings(data) {
                    let text = element.ok().and_then(|bytes| std::str::from_utf8(bytes).ok());
                    seq.serialize_element(text.ok_or_else(|| ser::Error::custom("not UTF-8"))?)?;
                }
                seq.end()
            }
            DType::BF16 => Err(ser::Error::custom("BF16 has no JSON form")),
        }
    }
}
