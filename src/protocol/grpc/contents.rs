//! Typed tensor contents → the little-endian elements that the program works with.

use bytes::Bytes;

use crate::limits::TYPED_CONTENTS_BYTES;
use crate::onnx::DType;
use crate::protocol::check::{Expected, not_text};
use crate::protocol::elements::{DataError, LENGTH_PREFIX};
use crate::protocol::error::RequestError;
use crate::protocol::signature::datatype;

use super::wire::{Fields, NotProtobuf, Value};

/// The field in which elements of a type travel; `None` for those that travel raw only.
fn field_of(dtype: DType) -> Option<u32> {
    Some(match dtype {
        DType::Bool => 1,
        DType::I8 | DType::I16 | DType::I32 => 2,
        DType::I64 => 3,
        DType::U8 | DType::U16 | DType::U32 => 4,
        DType::U64 => 5,
        DType::F32 => 6,
        DType::F64 => 7,
        DType::String => 8,
        DType::F16 | DType::BF16 => return None,
    })
}

/// Whether the elements take more than a look: floating-point numbers, packed, are what they are made into.
pub(super) fn converts(dtype: &str) -> bool {
    !matches!(dtype, "FP32" | "FP64")
}

/// The elements of an `InferTensorContents`. Packed floating-point numbers stay where they are.
pub(super) fn read(
    input: &str,
    contents: &Bytes,
    expected: &Expected,
) -> Result<Bytes, RequestError> {
    let Some(field) = field_of(expected.dtype) else {
        let what = format!("{} has no contents, send it raw", datatype(expected.dtype));
        return Err(RequestError::Data { input: input.to_owned(), what });
    };
    let size = expected.dtype.size().unwrap_or(LENGTH_PREFIX);
    // A varint takes a byte at least.
    let most = contents.len().min(expected.count).saturating_mul(size);
    if !is_fixed(expected.dtype) && most > TYPED_CONTENTS_BYTES {
        let limit = TYPED_CONTENTS_BYTES;
        return Err(RequestError::ContentsTooLong { input: input.to_owned(), limit });
    }
    let mut sink =
        Sink { dtype: expected.dtype, size, count: expected.count, data: Vec::new(), got: 0 };
    let mut only: Option<Bytes> = None;
    for part in Fields::of(contents.clone()) {
        let (number, value) = part?;
        if number != field {
            let what = format!("its contents are not those of {}", datatype(expected.dtype));
            return Err(RequestError::Data { input: input.to_owned(), what });
        }
        match value {
            Value::Length(packed)
                if is_fixed(expected.dtype) && sink.data.is_empty() && only.is_none() =>
            {
                only = Some(packed);
            }
            value => {
                let before = only.take().map(Value::Length);
                for value in before.into_iter().chain([value]) {
                    sink.take(value)?.map_err(|error| error.of(input, expected))?;
                }
            }
        }
    }
    match only {
        Some(packed) => {
            let got = packed.len() / size;
            let wrong = match got.cmp(&expected.count) {
                _ if !packed.len().is_multiple_of(size) => return Err(cut().into()),
                std::cmp::Ordering::Less => DataError::TooFew(Some(got)),
                std::cmp::Ordering::Greater => DataError::TooMany,
                std::cmp::Ordering::Equal => return Ok(packed),
            };
            Err(wrong.of(input, expected))
        }
        None if sink.got < expected.count => {
            Err(DataError::TooFew(Some(sink.got)).of(input, expected))
        }
        None => Ok(sink.data.into()),
    }
}

fn is_fixed(dtype: DType) -> bool {
    matches!(dtype, DType::F32 | DType::F64)
}

fn cut() -> NotProtobuf {
    NotProtobuf("packed numbers end in the midst of one".to_owned())
}

struct Sink {
    dtype: DType,
    /// Bytes of an element, or of a text's length.
    size: usize,
    count: usize,
    data: Vec<u8>,
    got: usize,
}

impl Sink {
    fn put(&mut self, bytes: &[u8]) -> Result<(), DataError> {
        if self.got == self.count {
            return Err(DataError::TooMany);
        }
        self.got += 1;
        self.data.extend_from_slice(bytes);
        Ok(())
    }

    /// One element, or a run of packed ones.
    fn take(&mut self, value: Value) -> Result<Result<(), DataError>, NotProtobuf> {
        let wrong = || NotProtobuf("contents are of a wrong wire type".to_owned());
        match (self.dtype, value) {
            (DType::F32, Value::Fixed32(bytes)) => Ok(self.put(&bytes)),
            (DType::F64, Value::Fixed64(bytes)) => Ok(self.put(&bytes)),
            (DType::F32 | DType::F64, Value::Length(packed)) => {
                let chunks = packed.chunks_exact(self.size);
                if !chunks.remainder().is_empty() {
                    return Err(cut());
                }
                Ok(chunks.into_iter().try_for_each(|bytes| self.put(bytes)))
            }
            (DType::F32 | DType::F64, _) => Err(wrong()),
            (DType::String, Value::Length(text)) => Ok(self.text(&text)),
            (DType::String, _) => Err(wrong()),
            (_, value) => {
                for number in value.varints() {
                    if let Err(error) = self.integer(number?) {
                        return Ok(Err(error));
                    }
                }
                Ok(Ok(()))
            }
        }
    }

    fn text(&mut self, text: &[u8]) -> Result<(), DataError> {
        if std::str::from_utf8(text).is_err() {
            return Err(DataError::Element(not_text(self.got)));
        }
        let length = u32::try_from(text.len());
        let length = length.map_err(|_| DataError::Element("longer than 4 GiB".to_owned()))?;
        self.put(&length.to_le_bytes())?;
        self.data.extend_from_slice(text);
        Ok(())
    }

    fn integer(&mut self, number: u64) -> Result<(), DataError> {
        // As protobuf has it: 32 bits are what is left of 64, a sign reaches up to the top.
        macro_rules! narrow {
            ($wide:ty, $int:ty) => {{
                let value = number as $wide;
                match <$int>::try_from(value) {
                    Ok(value) => self.put(&value.to_le_bytes()),
                    Err(_) => {
                        let (element, word) = (self.got, datatype(self.dtype));
                        let what = format!("element {element}: {value} is beyond {word}");
                        Err(DataError::Element(what))
                    }
                }
            }};
        }
        match self.dtype {
            DType::Bool => self.put(&[u8::from(number != 0)]),
            DType::I8 => narrow!(i32, i8),
            DType::I16 => narrow!(i32, i16),
            DType::I32 => self.put(&(number as i32).to_le_bytes()),
            DType::I64 | DType::U64 => self.put(&number.to_le_bytes()),
            DType::U8 => narrow!(u32, u8),
            DType::U16 => narrow!(u32, u16),
            DType::U32 => self.put(&(number as u32).to_le_bytes()),
            DType::F32 | DType::F64 | DType::F16 | DType::BF16 | DType::String => {
                let what = format!("an integer is no {}", datatype(self.dtype));
                Err(DataError::Element(what))
            }
        }
    }
}
