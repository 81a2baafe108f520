//! Tensors ↔ ONNX Runtime's values. Inputs are lent to the runtime where they are aligned; large outputs
//! stay in the runtime's memory and are lent to us.

use std::fmt::Debug;
use std::ops::Range;

use bytes::Bytes;
use half::{bf16, f16};
use ort::memory::Allocator;
use ort::session::SessionInputValue;
use ort::value::{
    DynTensor, DynTensorValueType, DynValue, PrimitiveTensorElementType, Shape, TensorElementType,
    TensorRef,
};

use super::session::Under;
use crate::limits;
use crate::onnx::{DType, Tensor};

/// The runtime's name of an element type.
pub(super) fn element(dtype: DType) -> TensorElementType {
    match dtype {
        DType::F32 => TensorElementType::Float32,
        DType::U8 => TensorElementType::Uint8,
        DType::I8 => TensorElementType::Int8,
        DType::U16 => TensorElementType::Uint16,
        DType::I16 => TensorElementType::Int16,
        DType::I32 => TensorElementType::Int32,
        DType::I64 => TensorElementType::Int64,
        DType::String => TensorElementType::String,
        DType::Bool => TensorElementType::Bool,
        DType::F16 => TensorElementType::Float16,
        DType::F64 => TensorElementType::Float64,
        DType::U32 => TensorElementType::Uint32,
        DType::U64 => TensorElementType::Uint64,
        DType::BF16 => TensorElementType::Bfloat16,
    }
}

/// Our name of one of the runtime's element types; `None` where the program does not handle it.
pub(super) fn dtype(ty: TensorElementType) -> Option<DType> {
    use DType::*;
    let all = [F32, U8, I8, U16, I16, I32, I64, String, Bool, F16, F64, U32, U64, BF16];
    all.into_iter().find(|dtype| element(*dtype) == ty)
}

/// A value for the runtime that borrows the tensor's elements where it can.
///
/// # Errors
/// Where the number of bytes is not what type and shape need, or a text holds a NUL.
pub(super) fn lend(tensor: &Tensor) -> Result<SessionInputValue<'_>, String> {
    check_length(tensor)?;
    let value = match tensor.dtype {
        DType::F32 => view::<f32>(tensor),
        DType::U8 => view::<u8>(tensor),
        DType::I8 => view::<i8>(tensor),
        DType::U16 => view::<u16>(tensor),
        DType::I16 => view::<i16>(tensor),
        DType::I32 => view::<i32>(tensor),
        DType::I64 => view::<i64>(tensor),
        DType::F16 => view::<f16>(tensor),
        DType::F64 => view::<f64>(tensor),
        DType::U32 => view::<u32>(tensor),
        DType::U64 => view::<u64>(tensor),
        DType::BF16 => view::<bf16>(tensor),
        DType::String | DType::Bool => return owned(tensor).map(Into::into),
    };
    value.map_err(|error| error.to_string())
}

/// A value for the runtime with elements of its own.
///
/// # Errors
/// As [`lend`].
pub(super) fn owned(tensor: &Tensor) -> Result<DynValue, String> {
    check_length(tensor)?;
    if let Some(texts) = tensor.strings() {
        let texts: Vec<String> = texts.into_iter().map(str::to_owned).collect();
        let value = ort::value::Tensor::from_string_array((tensor.shape.clone(), &*texts));
        return value.map(ort::value::Value::into_dyn).map_err(|error| error.to_string());
    }
    copied(tensor).map_err(|error| error.to_string())
}

fn check_length(tensor: &Tensor) -> Result<(), String> {
    let count = tensor.shape.iter().try_fold(1usize, |product, dim| product.checked_mul(*dim));
    let count = count.ok_or_else(|| format!("has an impossible shape {:?}", tensor.shape))?;
    let found = tensor.data.len();
    match tensor.dtype.size() {
        Some(size) if count.checked_mul(size) != Some(found) => {
            Err(format!("holds {found} bytes where shape {:?} needs {count}×{size}", tensor.shape))
        }
        Some(_) => Ok(()),
        None => match tensor.strings() {
            Some(texts) if texts.len() == count => Ok(()),
            Some(texts) => {
                let found = texts.len();
                Err(format!("holds {found} texts where shape {:?} needs {count}", tensor.shape))
            }
            None => Err("does not hold UTF-8 texts, each after its length".to_owned()),
        },
    }
}

fn view<T>(tensor: &Tensor) -> ort::Result<SessionInputValue<'_>>
where
    T: PrimitiveTensorElementType + Debug + Clone + 'static,
{
    // SAFETY: `T` is one of the number types above: every bit pattern is a value of it.
    let (before, values, after) = unsafe { tensor.data.align_to::<T>() };
    if before.is_empty() && after.is_empty() {
        return TensorRef::from_array_view((tensor.shape.clone(), values)).map(Into::into);
    }
    copied(tensor).map(Into::into)
}

fn copied(tensor: &Tensor) -> ort::Result<DynValue> {
    let shape: Shape = tensor.shape.iter().map(|dim| *dim as i64).collect();
    let mut value = DynTensor::new(&Allocator::default(), element(tensor.dtype), shape)?;
    if !tensor.data.is_empty() {
        let place = value.data_ptr_mut().cast::<u8>();
        // SAFETY: the runtime allocated as many bytes as type and shape need, which `check_length` found to
        // be as many as `data` has; the two cannot overlap.
        let place = unsafe { std::slice::from_raw_parts_mut(place, tensor.data.len()) };
        place.copy_from_slice(&tensor.data);
        if tensor.dtype == DType::Bool {
            // The runtime reads C++ `bool`s, of which only 0 and 1 are valid.
            place.iter_mut().for_each(|byte| *byte = u8::from(*byte != 0));
        }
    }
    Ok(value.into_dyn())
}

/// The addresses of the elements that inputs lend to the runtime.
pub(super) fn lent(inputs: &[(&str, &Tensor)]) -> Vec<Range<usize>> {
    let range = |tensor: &Tensor| {
        let start = tensor.data.as_ptr().addr();
        start..start + tensor.data.len()
    };
    inputs.iter().map(|(_, tensor)| range(tensor)).collect()
}

/// Elements that lie in memory of the runtime.
struct Held {
    value: DynTensor,
    len: usize,
    /// Dropped after the value, which keeps the session alive, which stands on it.
    _under: Under,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: the value owns at least `len` bytes there for as long as it lives, and nobody writes to
        // them: outputs are not used again by the session.
        unsafe { std::slice::from_raw_parts(self.value.data_ptr().cast::<u8>(), self.len) }
    }
}

/// An output of a run as a tensor. `lent` are the addresses of the run's inputs: an output that lies in
/// one of them (a graph that returns its input) is copied. `under` is what the session stands on.
///
/// # Errors
/// Where the value is no tensor, of a type that is not handled, or not in memory that the CPU reads.
pub(super) fn take(
    value: DynValue,
    lent: &[Range<usize>],
    under: &Under,
) -> Result<Tensor, String> {
    let value = value.downcast::<DynTensorValueType>().map_err(|error| error.to_string())?;
    let ty = *value.data_type();
    let dtype = dtype(ty).ok_or_else(|| format!("is of type {ty}, which is not handled"))?;
    let shape: Option<Vec<usize>> =
        value.shape().iter().map(|dim| usize::try_from(*dim).ok()).collect();
    let shape = shape.ok_or_else(|| format!("has an impossible shape {:?}", value.shape()))?;
    let Some(size) = dtype.size() else {
        let (_, texts) = value.try_extract_strings().map_err(|error| error.to_string())?;
        return Ok(Tensor::from_strings(&shape, &texts));
    };
    if !value.memory_info().is_cpu_accessible() {
        return Err("lies in the memory of a device".to_owned());
    }
    let len = shape.iter().product::<usize>() * size;
    if len == 0 {
        return Ok(Tensor { dtype, shape, data: Bytes::new() });
    }
    let address = value.data_ptr().addr();
    let held = Held { value, len, _under: under.clone() };
    let aliased = lent.iter().any(|range| range.contains(&address));
    let data = if aliased || len < limits::COPIED_OUTPUT_BYTES {
        Bytes::copy_from_slice(held.as_ref())
    } else {
        Bytes::from_owner(held)
    };
    Ok(Tensor { dtype, shape, data })
}
