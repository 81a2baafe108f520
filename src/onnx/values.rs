//! Little-endian element bytes ↔ numbers. The one place that knows how element types are laid out.

use half::{bf16, f16};

use super::DType;

/// The values of floating-point elements as `f32`; `None` for other types. `bytes` beyond the last
/// whole element are ignored.
pub fn floats(dtype: DType, bytes: &[u8]) -> Option<Vec<f32>> {
    match dtype {
        DType::F32 => {
            Some(bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
        }
        DType::F64 => {
            Some(bytes.as_chunks::<8>().0.iter().map(|b| f64::from_le_bytes(*b) as f32).collect())
        }
        DType::F16 => {
            Some(bytes.as_chunks::<2>().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect())
        }
        DType::BF16 => Some(
            bytes.as_chunks::<2>().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect(),
        ),
        _ => None,
    }
}

/// The values of integer elements as `i64`; `None` for other types. `u64` values above `i64::MAX` wrap,
/// as they do nowhere in a valid shape, axis or index.
pub fn integers(dtype: DType, bytes: &[u8]) -> Option<Vec<i64>> {
    match dtype {
        DType::I64 | DType::U64 => {
            Some(bytes.as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b)).collect())
        }
        DType::I32 => {
            Some(bytes.as_chunks::<4>().0.iter().map(|b| i32::from_le_bytes(*b).into()).collect())
        }
        DType::U32 => {
            Some(bytes.as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b).into()).collect())
        }
        DType::I16 => {
            Some(bytes.as_chunks::<2>().0.iter().map(|b| i16::from_le_bytes(*b).into()).collect())
        }
        DType::U16 => {
            Some(bytes.as_chunks::<2>().0.iter().map(|b| u16::from_le_bytes(*b).into()).collect())
        }
        DType::I8 => Some(bytes.iter().map(|b| i64::from(*b as i8)).collect()),
        DType::U8 | DType::Bool => Some(bytes.iter().map(|b| i64::from(*b)).collect()),
        _ => None,
    }
}

/// Elements of floating type `dtype` for `values`; `None` for other types. Values beyond the range of
/// the type become infinite, as IEEE 754 rounds.
pub fn float_bytes(dtype: DType, values: &[f32]) -> Option<Vec<u8>> {
    match dtype {
        DType::F32 => Some(values.iter().flat_map(|v| v.to_le_bytes()).collect()),
        DType::F64 => Some(values.iter().flat_map(|v| f64::from(*v).to_le_bytes()).collect()),
        DType::F16 => Some(values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect()),
        DType::BF16 => Some(values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect()),
        _ => None,
    }
}

/// Elements of integer type `dtype` for `values`; `None` for other types. Of values beyond the range of the
/// type the low bits stay; for booleans all but 0 is true.
pub fn integer_bytes(dtype: DType, values: &[i64]) -> Option<Vec<u8>> {
    let size = match dtype {
        DType::Bool => return Some(values.iter().map(|v| u8::from(*v != 0)).collect()),
        DType::I8 | DType::U8 => 1,
        DType::I16 | DType::U16 => 2,
        DType::I32 | DType::U32 => 4,
        DType::I64 | DType::U64 => 8,
        _ => return None,
    };
    Some(values.iter().flat_map(|v| v.to_le_bytes().into_iter().take(size)).collect())
}
