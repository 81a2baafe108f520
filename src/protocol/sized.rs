//! A request in other sizes of its free axes: what further shapes of a model are run on.

use std::collections::{BTreeMap, BTreeSet};

use super::example::{Inputs, TooLarge};
use super::{Dim, Signature};
use crate::limits;
use crate::onnx::{DType, Tensor};

/// A shape names an axis that the model does not have, or that has a fixed size there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a shape names the axis `{axis}`: {}", has(.free))]
pub struct UnknownAxis {
    pub axis: String,
    /// Those that it could have named.
    pub free: BTreeSet<String>,
}

fn has(free: &BTreeSet<String>) -> String {
    let all: Vec<&str> = free.iter().map(String::as_str).collect();
    match all.as_slice() {
        [] => "all axes of the model's inputs have fixed sizes".to_owned(),
        all => format!("the free axes of the model's inputs are {}", all.join(", ")),
    }
}

/// Whether every axis of a shape is one of `free`.
///
/// # Errors
/// The first that is not.
pub fn check_axes(
    shape: &BTreeMap<String, usize>,
    free: &BTreeSet<String>,
) -> Result<(), UnknownAxis> {
    match shape.keys().find(|axis| !free.contains(*axis)) {
        Some(axis) => Err(UnknownAxis { axis: axis.clone(), free: free.clone() }),
        None => Ok(()),
    }
}

/// `like` in other sizes: free axes that `sizes` names (see `onnx::free_axis`) have these, all others what they
/// have in `like`. Elements follow one another as there, and from the first again: indices stay in their
/// tables, and pixels in their range.
///
/// # Errors
/// Where they would take more than [`limits::EXAMPLE_BYTES`].
pub fn sized(
    like: &Inputs,
    signature: &Signature,
    sizes: &BTreeMap<String, usize>,
) -> Result<Inputs, TooLarge> {
    let shapes: Vec<Vec<usize>> =
        like.iter().map(|(name, tensor)| shape(name, tensor, signature, sizes)).collect();
    let bytes = like.iter().zip(&shapes).try_fold(0u64, |sum, ((_, tensor), shape)| {
        let width = tensor.dtype.size().unwrap_or(4) as u64;
        let product = |bytes: u64, dim: &usize| bytes.checked_mul(u64::try_from(*dim).ok()?);
        sum.checked_add(shape.iter().try_fold(width, product)?)
    });
    if bytes.is_none_or(|bytes| bytes > limits::EXAMPLE_BYTES) {
        return Err(TooLarge::of(&shapes));
    }
    let tensor = |((name, tensor), shape): (&(String, Tensor), Vec<usize>)| {
        (name.clone(), repeated(tensor, shape))
    };
    Ok(like.iter().zip(shapes).map(tensor).collect())
}

fn shape(
    input: &str,
    like: &Tensor,
    signature: &Signature,
    sizes: &BTreeMap<String, usize>,
) -> Vec<usize> {
    let spec = signature.inputs.iter().find(|spec| spec.name == input);
    let Some(dims) = spec.and_then(|spec| spec.shape.as_ref()) else { return like.shape.clone() };
    let size = |(axis, own): (usize, &usize)| {
        let asked = match dims.get(axis) {
            Some(Dim::Free(name)) if name.is_empty() => sizes.get(&format!("{input}[{axis}]")),
            Some(Dim::Free(name)) => sizes.get(name),
            Some(Dim::Fixed(_)) | None => None,
        };
        asked.copied().unwrap_or(*own)
    };
    like.shape.iter().enumerate().map(size).collect()
}

/// The elements of a tensor, one after the other and from the first again. Of one without elements, and of
/// texts, whose sizes differ, nothing is left but zeros.
fn repeated(like: &Tensor, shape: Vec<usize>) -> Tensor {
    let count: usize = shape.iter().product();
    let dtype = like.dtype;
    if shape == like.shape {
        return like.clone();
    }
    let data = match dtype.size() {
        Some(width) if !like.data.is_empty() && dtype != DType::String => {
            like.data.iter().copied().cycle().take(count * width).collect::<Vec<u8>>()
        }
        // A text without letters is its length.
        width => vec![0; count * width.unwrap_or(4)],
    };
    Tensor { dtype, shape, data: data.into() }
}

#[cfg(test)]
mod tests {
    use super::super::TensorSpec;
    use super::*;

    fn signature() -> Signature {
        let free = |name: &str| Dim::Free(name.to_owned());
        let spec = |name: &str, dtype, shape| TensorSpec {
            name: name.to_owned(),
            dtype,
            shape: Some(shape),
        };
        let inputs = vec![
            spec("x", DType::F32, vec![free("batch"), Dim::Fixed(2), free("")]),
            spec("ids", DType::I64, vec![free("batch")]),
            spec("words", DType::String, vec![free("batch")]),
        ];
        Signature { inputs, outputs: Vec::new() }
    }

    fn sizes(all: &[(&str, usize)]) -> BTreeMap<String, usize> {
        all.iter().map(|(axis, size)| ((*axis).to_owned(), *size)).collect()
    }

    #[test]
    fn named_axes_get_their_sizes_and_elements_stay_what_they_were() {
        let like = vec![
            ("x".to_owned(), Tensor::from_f32(&[1, 2, 2], &[0.0, 1.0, 2.0, 3.0])),
            ("ids".to_owned(), Tensor::from_i64(&[1], &[7])),
            ("words".to_owned(), Tensor::from_strings(&[1], &["a"])),
        ];
        let of = |all: &[(&str, usize)]| sized(&like, &signature(), &sizes(all)).unwrap();
        assert_eq!(of(&[]), like);
        let made = of(&[("batch", 3), ("x[2]", 1)]);
        assert_eq!(made[0].1.shape, [3, 2, 1]);
        assert_eq!(made[0].1.to_f32().unwrap(), [0.0, 1.0, 2.0, 3.0, 0.0, 1.0]);
        assert_eq!(made[1].1, Tensor::from_i64(&[3], &[7, 7, 7]));
        assert_eq!(made[2].1.strings().unwrap(), ["", "", ""]);
        // An axis of a fixed size keeps it, whoever names it.
        assert_eq!(of(&[("x[1]", 9)]), like);
        let huge = sized(&like, &signature(), &sizes(&[("batch", 1 << 24), ("x[2]", 1 << 24)]));
        assert!(huge.unwrap_err().to_string().contains("16777216"));
    }

    #[test]
    fn an_axis_that_the_model_lacks_is_told_with_those_that_it_has() {
        let free: BTreeSet<String> = ["batch", "x[2]"].map(str::to_owned).into();
        assert_eq!(check_axes(&sizes(&[("batch", 4), ("x[2]", 1)]), &free), Ok(()));
        let words = check_axes(&sizes(&[("bacth", 4)]), &free).unwrap_err().to_string();
        let expected = "a shape names the axis `bacth`: the free axes of the model's inputs are \
                        batch, x[2]";
        assert_eq!(words, expected);
        let words = check_axes(&sizes(&[("n", 4)]), &BTreeSet::new()).unwrap_err().to_string();
        assert!(words.ends_with("have fixed sizes"), "{words}");
    }
}
