//! An inference answer as the pieces of a message: the outputs' bytes are sent from where they lie.

use bytes::Bytes;

use crate::limits::JOINED_BYTES;
use crate::onnx::Tensor;
use crate::protocol::answer::InferAnswer;
use crate::protocol::error::AnswerError;
use crate::protocol::request::WantedOutput;
use crate::protocol::signature::datatype;

use super::frame::{self, PREFIX};
use super::wire::{Out, width};

/// The field of raw contents.
const RAW_OUTPUT_CONTENTS: u32 = 6;

/// The field of a stream's answer that an answer stands in.
const INFER_RESPONSE: u32 = 2;

/// Whose answer it is: of a call, or one of a stream's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    Unary,
    Stream,
}

impl InferAnswer<'_> {
    /// The answer as a `ModelInferResponse`, or one in a `ModelStreamInferResponse`, with its prefix.
    ///
    /// # Errors
    /// Where the outputs together exceed what a message may have.
    pub fn message(&self, call: Call) -> Result<Vec<Bytes>, AnswerError> {
        let pairs = || self.wanted.iter().zip(self.outputs);
        let mut head = Out::default();
        head.text(1, self.model);
        head.text(2, &self.version.to_string());
        head.text(3, self.id);
        for (wanted, tensor) in pairs() {
            head.bytes(5, &described(wanted, tensor));
        }
        let raw: Vec<Bytes> = pairs().map(|(wanted, tensor)| raw(wanted, tensor)).collect();
        let raw_bytes = raw.iter().map(|data| 1 + width(data.len() as u64) + data.len());
        let inner = raw_bytes.fold(head.0.len(), usize::saturating_add);
        let mut begin = Out(vec![0; PREFIX]);
        if call == Call::Stream {
            begin.length(INFER_RESPONSE, inner);
        }
        let total = (begin.0.len() - PREFIX).saturating_add(inner);
        let prefix = frame::prefix(total).ok_or(AnswerError::TooLong { bytes: total })?;
        begin.0[..PREFIX].copy_from_slice(&prefix);
        begin.0.extend_from_slice(&head.0);
        Ok(pieces(begin, raw))
    }
}

/// Small outputs are sent in one piece with what stands before them, large ones on their own.
fn pieces(mut begun: Out, raw: Vec<Bytes>) -> Vec<Bytes> {
    let mut pieces = Vec::with_capacity(2 * raw.len() + 1);
    for data in raw {
        begun.length(RAW_OUTPUT_CONTENTS, data.len());
        if data.len() <= JOINED_BYTES {
            begun.0.extend_from_slice(&data);
            continue;
        }
        pieces.push(std::mem::take(&mut begun).0.into());
        pieces.push(data);
    }
    if !begun.0.is_empty() {
        pieces.push(begun.0.into());
    }
    pieces
}

fn raw(wanted: &WantedOutput, tensor: &Tensor) -> Bytes {
    if wanted.shared.is_some() { Bytes::new() } else { tensor.data.clone() }
}

/// An `InferOutputTensor`.
fn described(wanted: &WantedOutput, tensor: &Tensor) -> Vec<u8> {
    let mut out = Out::default();
    out.text(1, &wanted.name);
    out.text(2, datatype(tensor.dtype));
    let mut shape = Out::default();
    tensor.shape.iter().for_each(|dim| shape.varint(*dim as u64));
    if !shape.0.is_empty() {
        out.bytes(3, &shape.0);
    }
    if let Some(range) = &wanted.shared {
        let mut region = Out::default();
        region.bytes(3, range.region.as_bytes());
        parameter(&mut out, "shared_memory_region", region);
        for (name, value) in [
            ("shared_memory_offset", range.offset),
            ("shared_memory_byte_size", tensor.data.len() as u64),
        ] {
            let mut number = Out::default();
            number.number(2, value);
            parameter(&mut out, name, number);
        }
    }
    out.0
}

fn parameter(out: &mut Out, name: &str, value: Out) {
    let mut entry = Out::default();
    entry.text(1, name);
    entry.bytes(2, &value.0);
    out.bytes(4, &entry.0);
}

/// The answer to a stream's request that failed, with its prefix: a `ModelStreamInferResponse` with an error
/// and the request's id.
pub fn stream_error(error: &str, model: &str, id: &str) -> Bytes {
    let mut answer = Out::default();
    answer.text(1, model);
    answer.text(3, id);
    let mut message = Out::default();
    message.text(1, error);
    message.bytes(INFER_RESPONSE, &answer.0);
    // Names and errors are no longer than the requests that they came with.
    let prefix = frame::prefix(message.0.len()).unwrap_or([0; PREFIX]);
    [&prefix[..], &message.0].concat().into()
}
