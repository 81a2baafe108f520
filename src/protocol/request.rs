//! An inference request's bytes → typed inputs, checked against the model's signature.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;

use bytes::Bytes;
use serde::de::{self, Deserialize, Deserializer, SeqAccess, Visitor};
use serde_json::value::RawValue;

use crate::limits::{INFER_JSON_BYTES, REQUEST_TENSORS, TENSOR_RANK};
use crate::onnx::{DType, Tensor};

use super::elements::{self, DataError};
use super::error::RequestError;
use super::raw;
use super::signature::{Dim, Signature, TensorSpec, datatype, dtype_of};

/// A checked inference request.
#[derive(Debug, Clone, PartialEq)]
pub struct InferRequest {
    /// Given back in the answer; empty where the client gave none.
    pub id: String,
    /// Every input of the signature, in the client's order. Binary data is a slice of the body.
    pub inputs: Vec<(String, Tensor)>,
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
    shared_memory_region: Option<de::IgnoredAny>,
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
        let mut reader =
            Reader { model, signature, binary: body.slice(claimed..), sizes: BTreeMap::new() };
        let mut inputs: Vec<(String, Tensor)> = Vec::with_capacity(raw.inputs.0.len());
        for input in raw.inputs.0 {
            if inputs.iter().any(|(name, _)| *name == input.name) {
                return Err(RequestError::DuplicateInput { input: input.name });
            }
            let tensor = reader.input(&input)?;
            inputs.push((input.name, tensor));
        }
        if !reader.binary.is_empty() {
            return Err(RequestError::BinaryLeftOver { left: reader.binary.len() });
        }
        reader.none_missing(&inputs)?;
        let binary = raw.parameters.binary_data_output.unwrap_or(false);
        let timeout = raw.parameters.timeout.filter(|us| *us > 0).map(Duration::from_micros);
        Ok(Self {
            outputs: reader.outputs(raw.outputs.map_or_else(Vec::new, |list| list.0), binary)?,
            id: raw.id,
            inputs,
            timeout,
            priority: raw.parameters.priority.unwrap_or(0),
        })
    }
}

struct Reader<'a> {
    model: &'a str,
    signature: &'a Signature,
    /// What the inputs read so far have left of the binary part.
    binary: Bytes,
    /// Sizes of the named free dimensions, and the input that set each.
    sizes: BTreeMap<String, (usize, String)>,
}

impl Reader<'_> {
    fn input(&mut self, input: &RawInput<'_>) -> Result<Tensor, RequestError> {
        let name = || input.name.clone();
        if input.parameters.shared_memory_region.is_some() {
            let extension = "shared memory";
            return Err(RequestError::Unsupported { tensor: name(), extension });
        }
        let spec = self.signature.input(&input.name).ok_or_else(|| RequestError::UnknownInput {
            input: name(),
            model: self.model.to_owned(),
            expected: names(&self.signature.inputs),
        })?;
        let (shape, count) = self.shape(input, spec)?;
        self.one_size(spec, &shape)?;
        let data = match (input.parameters.binary_data_size, input.data) {
            (Some(size), None) => self.binary_data(input, spec.dtype, count, size)?,
            (None, Some(data)) => json_data(input, spec.dtype, count, data.get())?.into(),
            (Some(_), Some(_)) | (None, None) => {
                return Err(RequestError::DataSource { input: name() });
            }
        };
        Ok(Tensor { dtype: spec.dtype, shape, data })
    }

    /// The shape and its number of elements.
    fn shape(
        &self,
        input: &RawInput<'_>,
        spec: &TensorSpec,
    ) -> Result<(Vec<usize>, usize), RequestError> {
        let expected = datatype(spec.dtype);
        let dtype = dtype_of(&input.datatype).ok_or_else(|| RequestError::UnknownDatatype {
            input: input.name.clone(),
            datatype: input.datatype.clone(),
            expected,
        })?;
        if dtype != spec.dtype {
            let (input, model) = (input.name.clone(), self.model.to_owned());
            let got = datatype(dtype);
            return Err(RequestError::Datatype { input, model, got, expected });
        }
        let not_a_shape = || RequestError::NotAShape {
            input: input.name.clone(),
            shape: shape_text(&input.shape.0),
        };
        let dims = input.shape.0.iter().map(|dim| usize::try_from(*dim));
        let shape: Vec<usize> = dims.collect::<Result<_, _>>().map_err(|_| not_a_shape())?;
        if !spec.admits(&shape) {
            return Err(RequestError::Shape {
                input: input.name.clone(),
                model: self.model.to_owned(),
                expected: shape_text(&spec.dims()),
                got: shape_text(&input.shape.0),
            });
        }
        // Zeros are left out of the product, so that no later product can overflow either.
        let element = dtype.size().unwrap_or(elements::LENGTH_PREFIX);
        let mut factors = shape.iter().filter(|dim| **dim != 0);
        let bytes = factors.try_fold(element, |product, dim| product.checked_mul(*dim));
        let bytes =
            bytes.filter(|bytes| isize::try_from(*bytes).is_ok()).ok_or_else(not_a_shape)?;
        let count = if shape.contains(&0) { 0 } else { bytes / element };
        Ok((shape, count))
    }

    /// Holds the named free dimensions to one size each.
    fn one_size(&mut self, spec: &TensorSpec, shape: &[usize]) -> Result<(), RequestError> {
        for (dim, got) in spec.shape.iter().flatten().zip(shape) {
            let Dim::Free(dim) = dim else { continue };
            if dim.is_empty() {
                continue;
            }
            let first = || (*got, spec.name.clone());
            let (expected, other) = self.sizes.entry(dim.clone()).or_insert_with(first);
            if expected != got {
                return Err(RequestError::DimConflict {
                    input: spec.name.clone(),
                    dim: dim.clone(),
                    got: *got,
                    expected: *expected,
                    other: other.clone(),
                });
            }
        }
        Ok(())
    }

    fn binary_data(
        &mut self,
        input: &RawInput<'_>,
        dtype: DType,
        count: usize,
        claimed: u64,
    ) -> Result<Bytes, RequestError> {
        let name = || input.name.clone();
        let left = self.binary.len();
        let size = usize::try_from(claimed).ok().filter(|size| *size <= left);
        let size =
            size.ok_or_else(|| RequestError::BinaryRange { input: name(), claimed, left })?;
        let data = self.binary.split_to(size);
        let wrong = |what: String| Err(RequestError::Binary { input: name(), what });
        if let Some(element) = dtype.size() {
            // The product was checked together with the shape.
            let expected = count * element;
            if size != expected {
                return Err(RequestError::BinarySize {
                    input: name(),
                    got: size,
                    expected,
                    datatype: datatype(dtype),
                    shape: shape_text(&input.shape.0),
                });
            }
        } else {
            let mut got = 0;
            for element in elements::strings(&data) {
                match element {
                    Ok(text) if std::str::from_utf8(text).is_ok() => got += 1,
                    Ok(_) => {
                        return wrong(format!(
                            "BYTES element {got} is not UTF-8, as ONNX's strings are"
                        ));
                    }
                    Err(what) => return wrong(what),
                }
            }
            if got != count {
                let shape = shape_text(&input.shape.0);
                return wrong(format!("{got} BYTES elements, expected {count} for shape {shape}"));
            }
        }
        if dtype == DType::Bool && !elements::all_bools(&data) {
            return wrong("a BOOL element is neither 0 nor 1".to_owned());
        }
        Ok(data)
    }

    fn none_missing(&self, inputs: &[(String, Tensor)]) -> Result<(), RequestError> {
        let given = |name: &str| inputs.iter().any(|(given, _)| given == name);
        let missing = self.signature.inputs.iter().filter(|spec| !given(&spec.name));
        let missing: Vec<String> = missing.map(describe).collect();
        if missing.is_empty() {
            return Ok(());
        }
        Err(RequestError::MissingInput {
            model: self.model.to_owned(),
            missing: missing.join(", "),
            expected: self.signature.inputs.len(),
            got: inputs.len(),
        })
    }

    fn outputs(
        &self,
        asked: Vec<RawOutput>,
        binary: bool,
    ) -> Result<Vec<WantedOutput>, RequestError> {
        if asked.is_empty() {
            let want = |spec: &TensorSpec| WantedOutput { name: spec.name.clone(), binary };
            return Ok(self.signature.outputs.iter().map(want).collect());
        }
        let mut wanted: Vec<WantedOutput> = Vec::with_capacity(asked.len());
        for output in asked {
            let unsupported = |tensor: &str, extension| {
                Err(RequestError::Unsupported { tensor: tensor.to_owned(), extension })
            };
            if output.parameters.classification.is_some() {
                return unsupported(&output.name, "the classification extension");
            }
            if output.parameters.shared_memory_region.is_some() {
                return unsupported(&output.name, "shared memory");
            }
            if self.signature.output(&output.name).is_none() {
                return Err(RequestError::UnknownOutput {
                    output: output.name,
                    model: self.model.to_owned(),
                    expected: names(&self.signature.outputs),
                });
            }
            if wanted.iter().any(|other| other.name == output.name) {
                return Err(RequestError::DuplicateOutput { output: output.name });
            }
            let binary = output.parameters.binary_data.unwrap_or(binary);
            wanted.push(WantedOutput { name: output.name, binary });
        }
        Ok(wanted)
    }
}

fn json_data(
    input: &RawInput<'_>,
    dtype: DType,
    count: usize,
    json: &str,
) -> Result<Vec<u8>, RequestError> {
    let name = || input.name.clone();
    if dtype == DType::BF16 {
        let what = "BF16 has no JSON form, send it as binary data".to_owned();
        return Err(RequestError::Data { input: name(), what });
    }
    elements::parse(json, dtype, count).map_err(|error| {
        let got = match error {
            DataError::Element(what) => return RequestError::Data { input: name(), what },
            DataError::TooFew(Some(got)) => got.to_string(),
            DataError::TooFew(None) => "fewer".to_owned(),
            DataError::TooMany => "more".to_owned(),
        };
        let shape = shape_text(&input.shape.0);
        RequestError::DataCount { input: name(), got, expected: count, shape }
    })
}

fn shape_text(dims: &[i64]) -> String {
    let dims: Vec<String> = dims.iter().map(i64::to_string).collect();
    format!("[{}]", dims.join(","))
}

fn describe(spec: &TensorSpec) -> String {
    format!("'{}' ({} {})", spec.name, datatype(spec.dtype), shape_text(&spec.dims()))
}

fn names(specs: &[TensorSpec]) -> String {
    let names: Vec<String> = specs.iter().map(|spec| format!("'{}'", spec.name)).collect();
    names.join(", ")
}
