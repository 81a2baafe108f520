//! Typed outputs → an inference answer's bytes, in one buffer.

use serde::ser::{Serialize, SerializeMap, Serializer};

use crate::onnx::{DType, Tensor};
use crate::units::Version;

use super::elements::{self, Elements};
use super::error::AnswerError;
use super::request::WantedOutput;
use super::signature::datatype;

/// What an answer consists of; `wanted` and `outputs` stand in the same order.
#[derive(Debug, Clone, Copy)]
pub struct InferAnswer<'a> {
    /// The request's id; empty for none.
    pub id: &'a str,
    pub model: &'a str,
    pub version: Version,
    pub wanted: &'a [WantedOutput],
    pub outputs: &'a [Tensor],
}

/// An answer's bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncodedAnswer {
    /// The JSON, and behind it the binary outputs in their order.
    pub body: Vec<u8>,
    /// Length of the JSON where binary outputs follow: the value of the header
    /// `Inference-Header-Content-Length`.
    pub json_length: Option<usize>,
}

impl InferAnswer<'_> {
    /// The answer's bytes.
    ///
    /// # Errors
    /// Where an output that was asked for as JSON has no JSON form.
    pub fn encode(&self) -> Result<EncodedAnswer, AnswerError> {
        let going = |place: Place| {
            let pairs = self.wanted.iter().zip(self.outputs);
            pairs.filter(move |(wanted, _)| Place::of(wanted) == place)
        };
        let binary_bytes: usize = going(Place::Binary).map(|(_, tensor)| tensor.data.len()).sum();
        let json_elements: usize = going(Place::Json).map(|(_, tensor)| tensor.len()).sum();
        for (wanted, tensor) in going(Place::Json) {
            has_json_form(wanted, tensor)?;
        }
        // A number takes about ten characters, an output's frame about a hundred.
        let estimate = binary_bytes + 10 * json_elements + 128 * (self.wanted.len() + 1);
        let mut body = Vec::with_capacity(estimate);
        serde_json::to_writer(&mut body, self)
            .map_err(|error| AnswerError::Json(error.to_string()))?;
        if !self.wanted.iter().any(|wanted| Place::of(wanted) == Place::Binary) {
            return Ok(EncodedAnswer { body, json_length: None });
        }
        let json_length = Some(body.len());
        for (_, tensor) in going(Place::Binary) {
            body.extend_from_slice(&tensor.data);
        }
        Ok(EncodedAnswer { body, json_length })
    }
}

/// Where an output's data goes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Json,
    Binary,
    Shared,
}

impl Place {
    fn of(wanted: &WantedOutput) -> Self {
        match wanted {
            WantedOutput { shared: Some(_), .. } => Self::Shared,
            WantedOutput { binary: true, .. } => Self::Binary,
            WantedOutput { .. } => Self::Json,
        }
    }
}

fn has_json_form(wanted: &WantedOutput, tensor: &Tensor) -> Result<(), AnswerError> {
    let output = || wanted.name.clone();
    match tensor.dtype {
        DType::BF16 => Err(AnswerError::BinaryOnly { output: output(), dtype: tensor.dtype }),
        DType::String => {
            let text = |element: Result<&[u8], String>| {
                element.is_ok_and(|bytes| std::str::from_utf8(bytes).is_ok())
            };
            let all = elements::strings(&tensor.data).all(text);
            if all { Ok(()) } else { Err(AnswerError::NotText { output: output() }) }
        }
        _ => Ok(()),
    }
}

impl Serialize for InferAnswer<'_> {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        let mut map = out.serialize_map(None)?;
        if !self.id.is_empty() {
            map.serialize_entry("id", self.id)?;
        }
        map.serialize_entry("model_name", self.model)?;
        map.serialize_entry("model_version", &self.version.to_string())?;
        map.serialize_entry("outputs", &Outputs(self))?;
        map.end()
    }
}

struct Outputs<'a>(&'a InferAnswer<'a>);

impl Serialize for Outputs<'_> {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        let pairs = self.0.wanted.iter().zip(self.0.outputs);
        out.collect_seq(pairs.map(|(wanted, tensor)| Output { wanted, tensor }))
    }
}

struct Output<'a> {
    wanted: &'a WantedOutput,
    tensor: &'a Tensor,
}

impl Serialize for Output<'_> {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        #[derive(serde::Serialize)]
        struct BinarySize {
            binary_data_size: usize,
        }
        #[derive(serde::Serialize)]
        struct Shared<'a> {
            shared_memory_region: &'a str,
            shared_memory_offset: u64,
            shared_memory_byte_size: usize,
        }
        let mut map = out.serialize_map(None)?;
        map.serialize_entry("name", &self.wanted.name)?;
        map.serialize_entry("datatype", datatype(self.tensor.dtype))?;
        map.serialize_entry("shape", &self.tensor.shape)?;
        let data = &self.tensor.data;
        match &self.wanted.shared {
            Some(range) => {
                let written = Shared {
                    shared_memory_region: &range.region,
                    shared_memory_offset: range.offset,
                    shared_memory_byte_size: data.len(),
                };
                map.serialize_entry("parameters", &written)?;
            }
            None if self.wanted.binary => {
                map.serialize_entry("parameters", &BinarySize { binary_data_size: data.len() })?;
            }
            None => map.serialize_entry("data", &Elements { dtype: self.tensor.dtype, data })?,
        }
        map.end()
    }
}
