//! What holds of a request's tensors however they travel: names, types, shapes and sizes against the model's
//! signature, before anything is allocated for them.

use std::collections::BTreeMap;

use crate::onnx::{DType, Tensor};

use super::elements;
use super::error::RequestError;
use super::request::WantedOutput;
use super::signature::{Dim, Signature, TensorSpec, datatype, dtype_of};

/// What a request says of one of its inputs.
#[derive(Clone, Copy)]
pub(super) struct Claim<'a> {
    pub name: &'a str,
    pub datatype: &'a str,
    pub shape: &'a [i64],
}

/// What the claim amounts to where it fits the model.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Expected {
    pub dtype: DType,
    pub shape: Vec<usize>,
    /// Elements; with the type's size they can be counted in bytes.
    pub count: usize,
}

/// Holds the inputs and outputs of one request against a signature.
pub(super) struct Checker<'a> {
    model: &'a str,
    signature: &'a Signature,
    /// Sizes of the named free dimensions, and the input that set each.
    sizes: BTreeMap<String, (usize, String)>,
}

impl<'a> Checker<'a> {
    pub fn new(model: &'a str, signature: &'a Signature) -> Self {
        Self { model, signature, sizes: BTreeMap::new() }
    }

    /// Whether the model has such an input, of this type and shape.
    pub fn input(&mut self, claim: Claim<'_>) -> Result<Expected, RequestError> {
        let signature = self.signature;
        let spec = signature.input(claim.name).ok_or_else(|| RequestError::UnknownInput {
            input: claim.name.to_owned(),
            model: self.model.to_owned(),
            expected: names(&signature.inputs),
        })?;
        let (shape, count) = self.shape(claim, spec)?;
        self.one_size(spec, &shape)?;
        Ok(Expected { dtype: spec.dtype, shape, count })
    }

    /// The shape and its number of elements.
    fn shape(
        &self,
        claim: Claim<'_>,
        spec: &TensorSpec,
    ) -> Result<(Vec<usize>, usize), RequestError> {
        let expected = datatype(spec.dtype);
        let dtype = dtype_of(claim.datatype).ok_or_else(|| RequestError::UnknownDatatype {
            input: claim.name.to_owned(),
            datatype: claim.datatype.to_owned(),
            expected,
        })?;
        if dtype != spec.dtype {
            let (input, model) = (claim.name.to_owned(), self.model.to_owned());
            let got = datatype(dtype);
            return Err(RequestError::Datatype { input, model, got, expected });
        }
        let not_a_shape = || RequestError::NotAShape {
            input: claim.name.to_owned(),
            shape: shape_text(claim.shape),
        };
        let dims = claim.shape.iter().map(|dim| usize::try_from(*dim));
        let shape: Vec<usize> = dims.collect::<Result<_, _>>().map_err(|_| not_a_shape())?;
        if !spec.admits(&shape) {
            return Err(RequestError::Shape {
                input: claim.name.to_owned(),
                model: self.model.to_owned(),
                expected: shape_text(&spec.dims()),
                got: shape_text(claim.shape),
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

    /// Whether every input of the model is given.
    pub fn none_missing(&self, inputs: &[(String, Tensor)]) -> Result<(), RequestError> {
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

    /// Adds an output to those that are wanted, if the model has it and it is not among them.
    pub fn want(
        &self,
        output: WantedOutput,
        wanted: &mut Vec<WantedOutput>,
    ) -> Result<(), RequestError> {
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
        wanted.push(output);
        Ok(())
    }

    /// All outputs of the model.
    pub fn all_outputs(&self, binary: bool) -> Vec<WantedOutput> {
        let want = |spec: &TensorSpec| WantedOutput::new(spec.name.clone(), binary);
        self.signature.outputs.iter().map(want).collect()
    }
}

impl Expected {
    /// Whether `size` bytes can be the elements; of BYTES only their contents can tell.
    pub fn size(&self, input: &str, size: usize) -> Result<(), RequestError> {
        // The product was checked together with the shape.
        let expected = self.dtype.size().map(|element| self.count * element);
        match expected {
            Some(expected) if expected != size => Err(RequestError::BinarySize {
                input: input.to_owned(),
                got: size,
                expected,
                datatype: datatype(self.dtype),
                shape: sizes_text(&self.shape),
            }),
            Some(_) | None => Ok(()),
        }
    }

    /// Whether `data` holds the elements, as binary tensor data does.
    pub fn elements(&self, input: &str, data: &[u8]) -> Result<(), RequestError> {
        self.size(input, data.len())?;
        let wrong = |what: String| Err(RequestError::Binary { input: input.to_owned(), what });
        match self.dtype {
            DType::String => {
                let mut got = 0;
                for element in elements::strings(data) {
                    match element {
                        Ok(text) if std::str::from_utf8(text).is_ok() => got += 1,
                        Ok(_) => return wrong(not_text(got)),
                        Err(what) => return wrong(what),
                    }
                }
                if got == self.count {
                    return Ok(());
                }
                let (expected, shape) = (self.count, sizes_text(&self.shape));
                wrong(format!("{got} BYTES elements, expected {expected} for shape {shape}"))
            }
            DType::Bool if !elements::all_bools(data) => {
                wrong("a BOOL element is neither 0 nor 1".to_owned())
            }
            _ => Ok(()),
        }
    }
}

/// What is said of a BYTES element that is no text.
pub(super) fn not_text(element: usize) -> String {
    format!("BYTES element {element} is not UTF-8, as ONNX's strings are")
}

pub(super) fn shape_text(dims: &[i64]) -> String {
    let dims: Vec<String> = dims.iter().map(i64::to_string).collect();
    format!("[{}]", dims.join(","))
}

pub(super) fn sizes_text(dims: &[usize]) -> String {
    let dims: Vec<String> = dims.iter().map(usize::to_string).collect();
    format!("[{}]", dims.join(","))
}

fn describe(spec: &TensorSpec) -> String {
    format!("'{}' ({} {})", spec.name, datatype(spec.dtype), shape_text(&spec.dims()))
}

fn names(specs: &[TensorSpec]) -> String {
    let names: Vec<String> = specs.iter().map(|spec| format!("'{}'", spec.name)).collect();
    names.join(", ")
}
