//! Protobuf's wire format, read field by field out of a buffer that the fields are slices of. Inference
//! requests are not decoded into a tree of messages: each empty message of two bytes would become some
//! hundred bytes of memory, and each number another pass over it.

use bytes::Bytes;

/// Bytes that are no message of protobuf, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(super) struct NotProtobuf(pub String);

fn broken(what: &str) -> NotProtobuf {
    NotProtobuf(what.to_owned())
}

/// What a field holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Value {
    Varint(u64),
    Fixed64([u8; 8]),
    Length(Bytes),
    Fixed32([u8; 4]),
}

impl Value {
    /// The bytes of a string, of bytes, of a message or of packed numbers.
    pub fn bytes(self) -> Result<Bytes, NotProtobuf> {
        match self {
            Self::Length(bytes) => Ok(bytes),
            Self::Varint(_) | Self::Fixed64(_) | Self::Fixed32(_) => {
                Err(broken("a number stands where bytes are expected"))
            }
        }
    }

    pub fn text(self) -> Result<String, NotProtobuf> {
        let bytes = self.bytes()?;
        let text = std::str::from_utf8(&bytes).map_err(|_| broken("a string is not UTF-8"))?;
        Ok(text.to_owned())
    }

    /// The numbers of a repeated field, packed or not, of which each is a varint.
    pub fn varints(self) -> Varints {
        match self {
            Self::Varint(number) => Varints { one: Some(Ok(number)), packed: Bytes::new() },
            Self::Length(packed) => Varints { one: None, packed },
            Self::Fixed64(_) | Self::Fixed32(_) => {
                let error = broken("a number of fixed width stands where a varint is expected");
                Varints { one: Some(Err(error)), packed: Bytes::new() }
            }
        }
    }
}

/// See [`Value::varints`].
pub(super) struct Varints {
    one: Option<Result<u64, NotProtobuf>>,
    packed: Bytes,
}

impl Iterator for Varints {
    type Item = Result<u64, NotProtobuf>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(one) = self.one.take() {
            return Some(one);
        }
        if self.packed.is_empty() {
            return None;
        }
        let Some((number, length)) = varint(&self.packed) else {
            self.packed.clear();
            return Some(Err(broken("packed numbers end in the midst of one")));
        };
        drop(self.packed.split_to(length));
        Some(Ok(number))
    }
}

/// The fields of a message, in their order; ends after the first that cannot be read.
pub(super) struct Fields(Bytes);

impl Fields {
    pub fn of(message: Bytes) -> Self {
        Self(message)
    }

    fn field(&mut self) -> Result<(u32, Value), NotProtobuf> {
        let (number, kind, length) = tag(&self.0)?;
        drop(self.0.split_to(length));
        let beyond = || broken("a field reaches beyond its message");
        let value = match kind {
            Kind::Varint => {
                let (value, length) = varint(&self.0).ok_or_else(beyond)?;
                drop(self.0.split_to(length));
                Value::Varint(value)
            }
            Kind::Fixed64 => {
                let value = *self.0.first_chunk().ok_or_else(beyond)?;
                drop(self.0.split_to(8));
                Value::Fixed64(value)
            }
            Kind::Fixed32 => {
                let value = *self.0.first_chunk().ok_or_else(beyond)?;
                drop(self.0.split_to(4));
                Value::Fixed32(value)
            }
            Kind::Length => {
                let (claimed, length) = varint(&self.0).ok_or_else(beyond)?;
                drop(self.0.split_to(length));
                let claimed = usize::try_from(claimed).ok().filter(|size| *size <= self.0.len());
                Value::Length(self.0.split_to(claimed.ok_or_else(beyond)?))
            }
        };
        Ok((number, value))
    }
}

impl Iterator for Fields {
    type Item = Result<(u32, Value), NotProtobuf>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.0.clear();
        }
        Some(field)
    }
}

enum Kind {
    Varint,
    Fixed64,
    Length,
    Fixed32,
}

/// A field's number and kind, and the tag's own length.
fn tag(bytes: &[u8]) -> Result<(u32, Kind, usize), NotProtobuf> {
    let (tag, length) = varint(bytes).ok_or_else(|| broken("a tag ends in its midst"))?;
    let number = u32::try_from(tag >> 3).ok().filter(|number| (1..1 << 29).contains(number));
    let number = number.ok_or_else(|| broken("a tag names no field"))?;
    let kind = match tag & 7 {
        0 => Kind::Varint,
        1 => Kind::Fixed64,
        2 => Kind::Length,
        5 => Kind::Fixed32,
        other => return Err(NotProtobuf(format!("field {number} is of the wire type {other}"))),
    };
    Ok((number, kind, length))
}

/// A varint and its length; `None` where it does not end, or not within 64 bits.
fn varint(bytes: &[u8]) -> Option<(u64, usize)> {
    let mut value = 0u64;
    for (at, byte) in bytes.iter().take(10).enumerate() {
        let bits = u64::from(byte & 0x7F);
        if at == 9 && bits > 1 {
            return None;
        }
        value |= bits << (7 * at);
        if byte & 0x80 == 0 {
            return Some((value, at + 1));
        }
    }
    None
}

/// Where the contents of the first field `number` begin in a message of which `bytes` is the beginning;
/// `None` where that lies beyond it, or cannot be told.
pub(super) fn begins(bytes: &[u8], number: u32) -> Option<usize> {
    let mut at = 0;
    loop {
        let (found, kind, length) = tag(bytes.get(at..)?).ok()?;
        at += length;
        let (contents, width) = match kind {
            Kind::Varint => (0, varint(bytes.get(at..)?)?.1),
            Kind::Fixed64 => (8, 0),
            Kind::Fixed32 => (4, 0),
            Kind::Length => {
                let (claimed, width) = varint(bytes.get(at..)?)?;
                (usize::try_from(claimed).ok()?, width)
            }
        };
        at += width;
        if found == number {
            return Some(at);
        }
        at = at.checked_add(contents)?;
    }
}

/// Writes fields one after another.
#[derive(Default)]
pub(super) struct Out(pub Vec<u8>);

impl Out {
    pub fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    /// The tag and length of a field with contents of `length` bytes, which the caller lets follow.
    pub fn length(&mut self, number: u32, length: usize) {
        self.varint(u64::from(number) << 3 | 2);
        self.varint(length as u64);
    }

    pub fn bytes(&mut self, number: u32, bytes: &[u8]) {
        self.length(number, bytes.len());
        self.0.extend_from_slice(bytes);
    }

    /// A text; an empty one is left out, as proto3 does.
    pub fn text(&mut self, number: u32, text: &str) {
        if !text.is_empty() {
            self.bytes(number, text.as_bytes());
        }
    }

    pub fn number(&mut self, number: u32, value: u64) {
        self.varint(u64::from(number) << 3);
        self.varint(value);
    }
}

/// Length of a varint.
pub(super) fn width(value: u64) -> usize {
    (64 - (value | 1).leading_zeros() as usize).div_ceil(7)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(bytes: &[u8]) -> Result<Vec<(u32, Value)>, NotProtobuf> {
        Fields::of(Bytes::copy_from_slice(bytes)).collect()
    }

    #[test]
    fn fields_of_every_kind_are_read_back_in_their_order() {
        let mut out = Out::default();
        out.number(1, u64::MAX);
        out.text(2, "größe");
        out.text(3, "");
        out.0.extend_from_slice(&[4 << 3 | 1, 1, 2, 3, 4, 5, 6, 7, 8, 5 << 3 | 5, 1, 2, 3, 4]);
        let length = Value::Length(Bytes::from_static("größe".as_bytes()));
        let expected = vec![
            (1, Value::Varint(u64::MAX)),
            (2, length),
            (4, Value::Fixed64([1, 2, 3, 4, 5, 6, 7, 8])),
            (5, Value::Fixed32([1, 2, 3, 4])),
        ];
        assert_eq!(all(&out.0), Ok(expected));
        assert_eq!(begins(&out.0, 2), Some(1 + 10 + 2));
        assert_eq!(begins(&out.0, 4), Some(1 + 10 + 2 + 7 + 1));
        assert_eq!(begins(&out.0[..12], 2), None);
        assert_eq!(begins(&out.0, 9), None);
    }

    #[test]
    fn what_is_no_message_is_refused_and_ends_the_reading() {
        for bytes in [
            &[0x00][..],                                             // field 0
            &[0x80],                                                 // a tag without an end
            &[0x0B],                                                 // a group
            &[0x08],                                                 // no value
            &[0x08, 0x80],                                           // a value without an end
            &[0x0A, 0x05, 1],                                        // shorter than it says
            &[0x09, 1, 2, 3],                                        // eight bytes are expected
            &[0x0D, 1, 2, 3],                                        // four bytes are expected
            &[0x0A, 255, 255, 255, 255, 255, 255, 255, 255, 255, 1], // more than there is memory
            &[0x08, 255, 255, 255, 255, 255, 255, 255, 255, 255, 2], // more than 64 bits
        ] {
            assert!(all(bytes).is_err(), "{bytes:?}");
            assert_eq!(Fields::of(Bytes::copy_from_slice(bytes)).count(), 1, "{bytes:?}");
            assert_eq!(begins(bytes, 3), None, "{bytes:?}");
        }
    }

    #[test]
    fn a_varints_width_is_what_it_takes() {
        for value in [0, 1, 127, 128, 16_383, 16_384, u64::from(u32::MAX), u64::MAX] {
            let mut out = Out::default();
            out.varint(value);
            assert_eq!(out.0.len(), width(value), "{value}");
            assert_eq!(varint(&out.0), Some((value, width(value))));
        }
    }

    #[test]
    fn repeated_numbers_are_read_packed_and_unpacked() {
        let packed = Value::Length(Bytes::from_static(&[1, 0x80, 1, 0]));
        assert_eq!(packed.varints().collect::<Result<Vec<_>, _>>(), Ok(vec![1, 128, 0]));
        assert_eq!(Value::Varint(7).varints().collect::<Result<Vec<_>, _>>(), Ok(vec![7]));
        let cut = Value::Length(Bytes::from_static(&[1, 0x80]));
        assert!(cut.varints().collect::<Result<Vec<_>, _>>().is_err());
        assert!(Value::Fixed32([0; 4]).varints().any(|number| number.is_err()));
    }
}
