//! A `ModelInferRequest`'s bytes → typed inputs. Read in two steps: which model is meant, and then, with its
//! signature, the tensors. Raw contents and packed floating-point numbers stay slices of the message.

use bytes::Bytes;

use crate::limits::{REQUEST_TENSORS, TENSOR_RANK};
use crate::onnx::Tensor;
use crate::protocol::check::{Checker, Claim};
use crate::protocol::error::RequestError;
use crate::protocol::request::{InferRequest, WantedOutput, microseconds};
use crate::protocol::shared::{SharedInput, SharedParameters};
use crate::protocol::signature::Signature;

use super::contents;
use super::wire::{self, Fields, NotProtobuf, Value};

/// The field of raw contents.
const RAW_INPUT_CONTENTS: u32 = 7;

impl From<NotProtobuf> for RequestError {
    fn from(error: NotProtobuf) -> Self {
        Self::Protobuf(error.0)
    }
}

/// An inference request whose tensors have not been looked at. What it holds beside slices of its message is
/// bounded by the number of tensors, however many the message claims.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GrpcRequest {
    model: String,
    version: String,
    id: String,
    timeout: Option<u64>,
    priority: Option<u64>,
    inputs: Vec<Input>,
    outputs: Vec<Output>,
    raw: Vec<Bytes>,
}

#[derive(Debug, Clone, Default, PartialEq)]
struct Input {
    name: String,
    datatype: String,
    shape: Vec<i64>,
    shared: SharedParameters,
    contents: Option<Bytes>,
}

#[derive(Debug, Clone, Default, PartialEq)]
struct Output {
    name: String,
    shared: SharedParameters,
    classification: bool,
}

/// Where the first raw contents begin in a message of which `beginning` has come: what is put at an even
/// address there need not be moved again to be read as numbers.
pub fn raw_contents_begin(beginning: &[u8]) -> Option<usize> {
    wire::begins(beginning, RAW_INPUT_CONTENTS)
}

impl GrpcRequest {
    /// Reads a message.
    ///
    /// # Errors
    /// Where it is none, or has too many tensors or axes.
    pub fn parse(message: &Bytes) -> Result<Self, RequestError> {
        let mut request = Self::default();
        for field in Fields::of(message.clone()) {
            let (number, value) = field?;
            match number {
                1 => request.model = value.text()?,
                2 => request.version = value.text()?,
                3 => request.id = value.text()?,
                4 => request.parameter(value.bytes()?)?,
                5 => bounded(&mut request.inputs, Input::parse(value.bytes()?)?, "inputs")?,
                6 => bounded(&mut request.outputs, Output::parse(value.bytes()?)?, "outputs")?,
                RAW_INPUT_CONTENTS => {
                    bounded(&mut request.raw, value.bytes()?, "raw_input_contents")?;
                }
                _ => {}
            }
        }
        Ok(request)
    }

    /// The model that is asked.
    pub fn model(&self) -> &str {
        &self.model
    }

    /// The version that is asked; empty for the highest one.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Given back in the answer.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Bytes of contents that have to be rewritten to be tensors.
    pub fn conversion_bytes(&self) -> usize {
        let converted = self.inputs.iter().filter(|input| contents::converts(&input.datatype));
        converted.filter_map(|input| input.contents.as_ref()).map(Bytes::len).sum()
    }

    /// Only `timeout` and `priority` mean something here; models keep no state between requests, so that the
    /// parameters of a sequence mean nothing.
    fn parameter(&mut self, entry: Bytes) -> Result<(), RequestError> {
        let (name, value) = parameter(entry)?;
        match name.as_str() {
            "timeout" => self.timeout = Some(value.number("timeout")?),
            "priority" => self.priority = Some(value.number("priority")?),
            _ => {}
        }
        Ok(())
    }

    /// The request for `model` with `signature`.
    ///
    /// # Errors
    /// What is wrong, naming the input. Nothing is allocated for what the request merely claims.
    pub fn decode(&self, model: &str, signature: &Signature) -> Result<InferRequest, RequestError> {
        let mut checker = Checker::new(model, signature);
        let mut inputs: Vec<(String, Tensor)> = Vec::with_capacity(self.inputs.len());
        let mut shared = Vec::new();
        let mut raw = self.raw.iter();
        let expected = self.inputs.iter().filter(|input| input.shared.region.is_none()).count();
        if !self.raw.is_empty() && self.raw.len() != expected {
            return Err(RequestError::RawCount { got: self.raw.len(), expected });
        }
        for input in &self.inputs {
            if inputs.iter().any(|(name, _)| *name == input.name) {
                return Err(RequestError::DuplicateInput { input: input.name.clone() });
            }
            let Input { name, datatype, shape, .. } = input;
            let expected = checker.input(Claim { name, datatype, shape })?;
            let place = input.shared.clone().range(name)?;
            let contents = input.contents.as_ref().filter(|contents| !contents.is_empty());
            let data = match (place, contents) {
                (Some(range), None) => {
                    shared.push(SharedInput::new(name, range, inputs.len(), expected.clone())?);
                    Bytes::new()
                }
                (None, None) if !self.raw.is_empty() => {
                    let data = raw.next().cloned().unwrap_or_default();
                    expected.elements(name, &data)?;
                    data
                }
                // Contents without an element say nothing, and are those of an empty tensor.
                (None, None) if expected.count == 0 => Bytes::new(),
                (None, Some(contents)) if self.raw.is_empty() => {
                    contents::read(name, contents, &expected)?
                }
                _ => return Err(RequestError::Contents { input: name.clone() }),
            };
            inputs.push((
                name.clone(),
                Tensor { dtype: expected.dtype, shape: expected.shape, data },
            ));
        }
        checker.none_missing(&inputs)?;
        Ok(InferRequest {
            id: self.id.clone(),
            inputs,
            shared,
            outputs: self.wanted(&checker)?,
            timeout: microseconds(self.timeout),
            priority: self.priority.unwrap_or(0),
        })
    }

    fn wanted(&self, checker: &Checker<'_>) -> Result<Vec<WantedOutput>, RequestError> {
        if self.outputs.is_empty() {
            return Ok(checker.all_outputs(true));
        }
        let mut wanted = Vec::with_capacity(self.outputs.len());
        for Output { name, shared, classification } in &self.outputs {
            if *classification {
                let extension = "the classification extension";
                return Err(RequestError::Unsupported { tensor: name.clone(), extension });
            }
            let shared = shared.clone().range(name)?;
            let output = WantedOutput { name: name.clone(), binary: true, shared };
            checker.want(output, &mut wanted)?;
        }
        Ok(wanted)
    }
}

fn bounded<T>(into: &mut Vec<T>, item: T, what: &str) -> Result<(), NotProtobuf> {
    if into.len() == REQUEST_TENSORS {
        return Err(NotProtobuf(format!("more than {REQUEST_TENSORS} {what}")));
    }
    into.push(item);
    Ok(())
}

impl Input {
    fn parse(message: Bytes) -> Result<Self, RequestError> {
        let mut input = Self::default();
        for field in Fields::of(message) {
            let (number, value) = field?;
            match number {
                1 => input.name = value.text()?,
                2 => input.datatype = value.text()?,
                3 => input.axes(value)?,
                4 => drop(shared_parameter(&mut input.shared, value.bytes()?)?),
                5 if input.contents.is_some() => {
                    return Err(RequestError::Contents { input: input.name });
                }
                5 => input.contents = Some(value.bytes()?),
                _ => {}
            }
        }
        Ok(input)
    }

    fn axes(&mut self, value: Value) -> Result<(), NotProtobuf> {
        for axis in value.varints() {
            if self.shape.len() == TENSOR_RANK {
                return Err(NotProtobuf(format!("a tensor has more than {TENSOR_RANK} axes")));
            }
            self.shape.push(axis?.cast_signed());
        }
        Ok(())
    }
}

impl Output {
    fn parse(message: Bytes) -> Result<Self, RequestError> {
        let mut output = Self::default();
        for field in Fields::of(message) {
            let (number, value) = field?;
            match number {
                1 => output.name = value.text()?,
                2 => {
                    let other = shared_parameter(&mut output.shared, value.bytes()?)?;
                    output.classification |= other == "classification";
                }
                _ => {}
            }
        }
        Ok(output)
    }
}

/// Takes in one of a tensor's parameters; gives its name back.
fn shared_parameter(shared: &mut SharedParameters, entry: Bytes) -> Result<String, RequestError> {
    let (name, value) = parameter(entry)?;
    match name.as_str() {
        "shared_memory_region" => {
            shared.region = Some(value.text("shared_memory_region")?);
        }
        "shared_memory_offset" => {
            shared.offset = Some(value.number("shared_memory_offset")?);
        }
        "shared_memory_byte_size" => {
            shared.size = Some(value.number("shared_memory_byte_size")?);
        }
        _ => {}
    }
    Ok(name)
}

/// The value of a parameter.
enum Parameter {
    Text(String),
    Number(u64),
    /// Neither a text nor a whole number of at least zero.
    Other,
}

impl Parameter {
    fn text(self, name: &'static str) -> Result<String, RequestError> {
        match self {
            Self::Text(text) => Ok(text),
            Self::Number(_) | Self::Other => {
                Err(RequestError::Parameter { name, expected: "a string" })
            }
        }
    }

    fn number(self, name: &'static str) -> Result<u64, RequestError> {
        match self {
            Self::Number(number) => Ok(number),
            Self::Text(_) | Self::Other => {
                let expected = "a whole number of at least zero";
                Err(RequestError::Parameter { name, expected })
            }
        }
    }
}

/// An entry of a map of parameters.
fn parameter(entry: Bytes) -> Result<(String, Parameter), NotProtobuf> {
    let (mut name, mut parameter) = (String::new(), Parameter::Other);
    for field in Fields::of(entry) {
        match field? {
            (1, value) => name = value.text()?,
            (2, value) => {
                for choice in Fields::of(value.bytes()?) {
                    parameter = match choice? {
                        (2, Value::Varint(number)) if number.cast_signed() < 0 => Parameter::Other,
                        (2 | 5, Value::Varint(number)) => Parameter::Number(number),
                        (3, value) => Parameter::Text(value.text()?),
                        _ => Parameter::Other,
                    };
                }
            }
            _ => {}
        }
    }
    Ok((name, parameter))
}
