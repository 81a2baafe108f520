//! An inference request's bytes → typed inputs, checked against the model's signature.

use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;

use bytes::Bytes;
use serde::de::{self, Deserialize, Deserializer, SeqAccess, Visitor};
use serde_json::value::RawValue;

use crate::limits::{INFER_JSON_BYTES, REQUEST_TENSORS, TENSOR_RANK};
use crate::onnx::{DType, Tensor};

use super::check::{Checker, Claim, Expected};
use super::elements;
use super::error::RequestError;
use super::raw;
use super::shared::{SharedInput, SharedParameters, SharedRange};
use super::signature::Signature;

/// A checked inference request.
#[derive(Debug, Clone, PartialEq)]
pub struct InferRequest {
    /// Given back in the answer; empty where the client gave none.
    pub id: String,
    /// Every input of the signature, in the client's order. Binary data is a slice of the body; what lies
    /// in shared memory is empty until it is read.
    pub inputs: Vec<(String, Tensor)>,
    /// The inputs that [`InferRequest::read_shared`] reads.
    pub shared: Vec<SharedInput>,
    /// The outputs to answer with, in this order.
    pub outputs: Vec<WantedOutput>,
    /// The `timeout` parameter (microseconds on the wire); 0 means none, as in Triton.
    pub timeout: Option<Duration>,
    /// The `priority` parameter: 1 is the highest, 0 the default, as where none was given.
    pub priority: u64,
}

/// An output that a client wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WantedOutput {
    pub name: String,
    /// Whether its data goes behind the JSON, in binary.
    pub binary: bool,
    /// Where its data goes instead, if it is to be written into shared memory.
    pub shared: Option<SharedRange>,
}

impl WantedOutput {
    /// An output whose data is part of the answer.
    pub fn new(name: impl Into<String>, binary: bool) -> Self {
        Self { name: name.into(), binary, shared: None }
    }
}

/// An array of at most `MAX` elements: what is beyond is refused before it is kept.
struct Bounded<T, const MAX: usize>(Vec<T>);

impl<'de, T: Deserialize<'de>, const MAX: usize> Deserialize<'de> for Bounded<T, MAX> {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        struct Seq<T, const MAX: usize>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>, const MAX: usize> Visitor<'de> for Seq<T, MAX> {
            type Value = Bounded<T, MAX>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "an array of at most {MAX} elements")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                let mut all = Vec::new();
                while let Some(element) = seq.next_element()? {
                    if all.len() == MAX {
                        return Err(de::Error::invalid_length(MAX + 1, &self));
                    }
                    all.push(element);
                }
                Ok(Bounded(all))
            }
        }
        input.deserialize_seq(Seq(PhantomData))
    }
}

#[derive(serde::Deserialize)]
#[serde(expecting = "an object with \"inputs\"")]
struct RawRequest<'a> {
    #[serde(default)]
    id: String,
    #[serde(default)]
    parameters: RequestParameters,
    #[serde(borrow)]
    inputs: Bounded<RawInput<'a>, REQUEST_TENSORS>,
    outputs: Option<Bounded<RawOutput, REQUEST_TENSORS>>,
}

#[derive(serde::Deserialize, Default)]
struct RequestParameters {
    timeout: Option<u64>,
    priority: Option<u64>,
    binary_data_output: Option<bool>,
}

#[derive(serde::Deserialize)]
struct RawInput<'a> {
    name: String,
    shape: Bounded<i64, TENSOR_RANK>,
    datatype: String,
    #[serde(default)]
    parameters: TensorParameters,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
}

#[derive(serde::Deserialize)]
struct RawOutput {
    name: String,
    #[serde(default)]
    parameters: TensorParameters,
}

#[derive(serde::Deserialize, Default)]
struct TensorParameters {
    binary_data_size: Option<u64>,
    binary_data: Option<bool>,
    classification: Option<de::IgnoredAny>,
    shared_memory_region: Option<String>,
    shared_memory_offset: Option<u64>,
    shared_memory_byte_size: Option<u64>,
}

impl TensorParameters {
    fn shared(&self) -> SharedParameters {
        SharedParameters {
            region: self.shared_memory_region.clone(),
            offset: self.shared_memory_offset,
            size: self.shared_memory_byte_size,
        }
    }
}

impl InferRequest {
    /// Reads a request for `model` with `signature`. `json_length` is the value of the header
    /// `Inference-Header-Content-Length`; without it the whole body is JSON, and where it is 0 the
    /// whole body is the data of the model's only input.
    ///
    /// # Errors
    /// What is wrong, naming the input. Nothing is allocated for what the request merely claims.
    pub fn decode(
        body: &Bytes,
        json_length: Option<usize>,
        model: &str,
        signature: &Signature,
    ) -> Result<Self, RequestError> {
        if json_length == Some(0) {
            return raw::decode(body, model, signature);
        }
        let claimed = json_length.unwrap_or(body.len());
        let wrong = RequestError::HeaderLength { claimed, actual: body.len() };
        let json = body.get(..claimed).ok_or(wrong)?;
        if json.len() > INFER_JSON_BYTES {
            let (actual, limit) = (json.len(), INFER_JSON_BYTES);
            return Err(RequestError::JsonTooLong { actual, limit });
        }
        let raw: RawRequest<'_> =
            serde_json::from_slice(json).map_err(|error| RequestError::Json(error.to_string()))?;
        let mut reader = Reader {
            checker: Checker::new(model, signature),
            binary: body.slice(claimed..),
            inputs: Vec::with_capacity(raw.inputs.0.len()),
            shared: Vec::new(),
        };
        for input in raw.inputs.0 {
            reader.input(input)?;
        }
        if !reader.binary.is_empty() {
            return Err(RequestError::BinaryLeftOver { left: reader.binary.len() });
        }
        reader.checker.none_missing(&reader.inputs)?;
        let binary = raw.parameters.binary_data_output.unwrap_or(false);
        let outputs = raw.outputs.map_or_else(Vec::new, |list| list.0);
        Ok(Self {
            outputs: reader.outputs(outputs, binary)?,
            id: raw.id,
            inputs: reader.inputs,
            shared: reader.shared,
            timeout: microseconds(raw.parameters.timeout),
            priority: raw.parameters.priority.unwrap_or(0),
        })
    }
}

/// The `timeout` parameter; 0 means none, as in Triton.
pub(super) fn microseconds(timeout: Option<u64>) -> Option<Duration> {
    timeout.filter(|us| *us > 0).map(Duration::from_micros)
}

struct Reader<'a> {
    checker: Checker<'a>,
    /// What the inputs read so far have left of the binary part.
    binary: Bytes,
    inputs: Vec<(String, Tensor)>,
    shared: Vec<SharedInput>,
}

impl Reader<'_> {
    fn input(&mut self, input: RawInput<'_>) -> Result<(), RequestError> {
        if self.inputs.iter().any(|(name, _)| *name == input.name) {
            return Err(RequestError::DuplicateInput { input: input.name });
        }
        let claim = Claim { name: &input.name, datatype: &input.datatype, shape: &input.shape.0 };
        let expected = self.checker.input(claim)?;
        let shared = input.parameters.shared().range(&input.name)?;
        let data = match (input.parameters.binary_data_size, input.data, shared) {
            (Some(size), None, None) => self.binary_data(&input.name, &expected, size)?,
            (None, Some(data), None) => json_data(&input.name, &expected, data.get())?.into(),
            (None, None, Some(range)) => {
                let at = self.inputs.len();
                self.shared.push(SharedInput::new(&input.name, range, at, expected.clone())?);
                Bytes::new()
            }
            _ => return Err(RequestError::DataSource { input: input.name }),
        };
        let tensor = Tensor { dtype: expected.dtype, shape: expected.shape, data };
        self.inputs.push((input.name, tensor));
        Ok(())
    }

    fn binary_data(
        &mut self,
        input: &str,
        expected: &Expected,
        claimed: u64,
    ) -> Result<Bytes, RequestError> {
        let left = self.binary.len();
        let size = usize::try_from(claimed).ok().filter(|size| *size <= left);
        let beyond = || RequestError::BinaryRange { input: input.to_owned(), claimed, left };
        let data = self.binary.split_to(size.ok_or_else(beyond)?);
        expected.elements(input, &data)?;
        Ok(data)
    }

    fn outputs(
        &self,
        asked: Vec<RawOutput>,
        binary: bool,
    ) -> Result<Vec<WantedOutput>, RequestError> {
        if asked.is_empty() {
            return Ok(self.checker.all_outputs(binary));
        }
        let mut wanted: Vec<WantedOutput> = Vec::with_capacity(asked.len());
        for output in asked {
            if output.parameters.classification.is_some() {
                let extension = "the classification extension";
                return Err(RequestError::Unsupported { tensor: output.name, extension });
            }
            let shared = output.parameters.shared().range(&output.name)?;
            let binary = output.parameters.binary_data.unwrap_or(binary);
            self.checker.want(WantedOutput { name: output.name, binary, shared }, &mut wanted)?;
        }
        Ok(wanted)
    }
}

fn json_data(input: &str, expected: &Expected, json: &str) -> Result<Vec<u8>, RequestError> {
    if expected.dtype == DType::BF16 {
        let what = "BF16 has no JSON form, send it as binary data".to_owned();
        return Err(RequestError::Data { input: input.to_owned(), what });
    }
    let data = elements::parse(json, expected.dtype, expected.count);
    data.map_err(|error| error.of(input, expected))
}
