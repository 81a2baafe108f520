//! What the pure rooms ask of whoever can run a model: the one trait between them and ONNX Runtime.
//! `shell::engine` implements it; tests may put a fake behind it.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Model;
use super::proto::tensor_shape_proto::{Dimension, dimension::Value as Size};

/// Element types that cross the [`Engine`] boundary and the serving protocol, numbered as in ONNX's
/// `TensorProto.DataType`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(i32)]
pub enum DType {
    F32 = 1,
    U8 = 2,
    I8 = 3,
    U16 = 4,
    I16 = 5,
    I32 = 6,
    I64 = 7,
    String = 8,
    Bool = 9,
    F16 = 10,
    F64 = 11,
    U32 = 12,
    U64 = 13,
    BF16 = 16,
}

impl DType {
    /// The type of ONNX's number `code`, or `None` where the program does not handle that type.
    pub fn from_onnx(code: i32) -> Option<Self> {
        use DType::*;
        let all = [F32, U8, I8, U16, I16, I32, I64, String, Bool, F16, F64, U32, U64, BF16];
        all.into_iter().find(|dtype| *dtype as i32 == code)
    }

    /// Bytes of one element; `None` for strings, which have no fixed size.
    pub fn size(self) -> Option<usize> {
        match self {
            Self::U8 | Self::I8 | Self::Bool => Some(1),
            Self::U16 | Self::I16 | Self::F16 | Self::BF16 => Some(2),
            Self::F32 | Self::I32 | Self::U32 => Some(4),
            Self::F64 | Self::I64 | Self::U64 => Some(8),
            Self::String => None,
        }
    }
}

/// A dense tensor: row-major, little-endian elements in `data`. Texts stand one after the other, each
/// after its length in bytes as a little-endian `u32`: the layout of the Open Inference Protocol.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    pub dtype: DType,
    pub shape: Vec<usize>,
    /// `shape.product() * dtype.size()` bytes; for texts, see above.
    pub data: bytes::Bytes,
}

impl Tensor {
    /// A tensor of `f32` values; `values.len()` must be the product of `shape`.
    pub fn from_f32(shape: &[usize], values: &[f32]) -> Self {
        assert_eq!(shape.iter().product::<usize>(), values.len(), "shape and values disagree");
        let data: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Self { dtype: DType::F32, shape: shape.to_vec(), data: data.into() }
    }

    /// A tensor of `i64` values; `values.len()` must be the product of `shape`.
    pub fn from_i64(shape: &[usize], values: &[i64]) -> Self {
        assert_eq!(shape.iter().product::<usize>(), values.len(), "shape and values disagree");
        let data: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Self { dtype: DType::I64, shape: shape.to_vec(), data: data.into() }
    }

    /// A tensor of texts, each shorter than 4 GiB; their number must be the product of `shape`.
    pub fn from_strings(shape: &[usize], texts: &[impl AsRef<str>]) -> Self {
        assert_eq!(shape.iter().product::<usize>(), texts.len(), "shape and texts disagree");
        let mut data = Vec::with_capacity(texts.iter().map(|text| 4 + text.as_ref().len()).sum());
        for text in texts.iter().map(AsRef::as_ref) {
            data.extend_from_slice(&(text.len() as u32).to_le_bytes());
            data.extend_from_slice(text.as_bytes());
        }
        Self { dtype: DType::String, shape: shape.to_vec(), data: data.into() }
    }

    /// The texts of a tensor of texts; `None` for other types, and where a length leads beyond the data
    /// or a text is not UTF-8.
    pub fn strings(&self) -> Option<Vec<&str>> {
        if self.dtype != DType::String {
            return None;
        }
        let (mut texts, mut rest) = (Vec::new(), &self.data[..]);
        while !rest.is_empty() {
            let (length, after) = rest.split_first_chunk::<4>()?;
            let (text, after) = after.split_at_checked(u32::from_le_bytes(*length) as usize)?;
            texts.push(std::str::from_utf8(text).ok()?);
            rest = after;
        }
        Some(texts)
    }

    /// The values of a floating-point tensor (f32, f16, bf16, f64) as `f32`; `None` for other types.
    pub fn to_f32(&self) -> Option<Vec<f32>> {
        super::values::floats(self.dtype, &self.data)
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Element type and shape of a value; a dimension that is only known at run time is `None`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ValueType {
    pub dtype: DType,
    pub shape: Vec<Option<usize>>,
}

/// The name of a graph input's free axis: its symbol, or `input[axis]` where it has none; `None` for an axis
/// of a fixed size.
pub fn free_axis(input: &str, axis: usize, dim: &Dimension) -> Option<String> {
    match &dim.value {
        Some(Size::DimValue(size)) if *size > 0 => None,
        Some(Size::DimParam(symbol)) if !symbol.is_empty() => Some(symbol.clone()),
        _ => Some(format!("{input}[{axis}]")),
    }
}

/// The type of every tensor value of a graph (inputs, intermediates, outputs; not initializers), by
/// name. Values that are not tensors, or of a type the program does not handle, are absent.
pub type Shapes = BTreeMap<String, ValueType>;

/// Why a model could not be loaded or run; carries what the runtime said.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{doing}: {reason}")]
pub struct ExecError {
    /// What was attempted, such as "loading model" or "running node block3".
    pub doing: String,
    /// The runtime's own words.
    pub reason: String,
}

/// Something that can load and time models: an execution provider of ONNX Runtime on one device.
pub trait Engine {
    /// Names device, execution provider and runtime version: the key under which latencies are kept.
    fn identity(&self) -> String;

    /// The type of every value of the model. `fixed` gives sizes for the graph inputs' free
    /// dimensions by name (see [`free_axis`]); free dimensions that it does not name stay free.
    ///
    /// # Errors
    /// Where the runtime refuses the model.
    fn shapes(&self, model: &Model, fixed: &BTreeMap<String, usize>) -> Result<Shapes, ExecError>;

    /// Loads a model for running.
    ///
    /// # Errors
    /// Where the runtime refuses the model.
    fn open(&self, model: &Model) -> Result<Box<dyn Session>, ExecError>;
}

/// A loaded model.
pub trait Session {
    /// Runs once and returns every graph output, in the graph's order.
    ///
    /// # Errors
    /// Where an input is missing or of a wrong type or shape, or the runtime fails.
    fn run(&mut self, inputs: &[(&str, &Tensor)]) -> Result<Vec<Tensor>, ExecError>;

    /// Wall time of each of `runs` runs with the same inputs; outputs are dropped.
    ///
    /// # Errors
    /// As [`Session::run`].
    fn time(&mut self, inputs: &[(&str, &Tensor)], runs: usize)
    -> Result<Vec<Duration>, ExecError>;
}

#[cfg(test)]
mod tests {
    use super::{DType, Tensor};

    #[test]
    fn texts_are_read_back_as_they_were_written() {
        let texts = ["", "blochd", "größer"];
        let tensor = Tensor::from_strings(&[3], &texts);
        assert_eq!(tensor.strings().unwrap(), texts);
        assert_eq!(Tensor::from_f32(&[1], &[1.0]).strings(), None);
    }

    #[test]
    fn texts_whose_length_leads_beyond_the_data_are_refused() {
        for data in [&[9u8, 0, 0, 0, b'x'][..], &[0, 0], &[1, 0, 0, 0, 0xFF], &[0xFF; 4]] {
            let data = bytes::Bytes::copy_from_slice(data);
            assert_eq!(Tensor { dtype: DType::String, shape: vec![1], data }.strings(), None);
        }
    }
}
