//! Raw binary requests: a body without any JSON is the data of the model's only input, and its size
//! says what the one free dimension is. All outputs are answered in binary, as Triton does.

use bytes::{BufMut, Bytes, BytesMut};

use crate::onnx::{DType, Tensor};

use super::elements;
use super::error::RequestError;
use super::request::{InferRequest, WantedOutput};
use super::signature::{Dim, Signature, TensorSpec, datatype};

pub(super) fn decode(
    body: &Bytes,
    model: &str,
    signature: &Signature,
) -> Result<InferRequest, RequestError> {
    let refuse = |because: String| RequestError::Raw { model: model.to_owned(), because };
    let [spec] = &signature.inputs[..] else {
        return Err(refuse(format!("it has {} inputs, not one", signature.inputs.len())));
    };
    let tensor = tensor(spec, body).map_err(refuse)?;
    let want = |spec: &TensorSpec| WantedOutput::new(spec.name.clone(), true);
    Ok(InferRequest {
        id: String::new(),
        inputs: vec![(spec.name.clone(), tensor)],
        shared: Vec::new(),
        outputs: signature.outputs.iter().map(want).collect(),
        timeout: None,
        priority: 0,
    })
}

fn tensor(spec: &TensorSpec, body: &Bytes) -> Result<Tensor, String> {
    let TensorSpec { name, dtype, shape } = spec;
    let dims = shape.as_ref().ok_or_else(|| format!("the rank of input '{name}' is open"))?;
    let free = dims.iter().filter(|dim| matches!(dim, Dim::Free(_))).count();
    if free > 1 {
        return Err(format!(
            "input '{name}' has {free} free dimensions, at most one can be derived"
        ));
    }
    // The whole body is one text.
    let (count, data) = match dtype.size() {
        Some(size) if body.len().is_multiple_of(size) => (body.len() / size, body.clone()),
        Some(size) => {
            let (got, word) = (body.len(), datatype(*dtype));
            return Err(format!("{got} bytes are no multiple of {word}'s {size} bytes"));
        }
        None => (1, one_text(name, body)?),
    };
    if *dtype == DType::Bool && !elements::all_bools(&data) {
        return Err(format!("a BOOL element of input '{name}' is neither 0 nor 1"));
    }
    let fixed = dims.iter().try_fold(1usize, |product, dim| match dim {
        Dim::Fixed(size) => product.checked_mul(*size),
        Dim::Free(_) => Some(product),
    });
    let rows = fixed.filter(|fixed| *fixed > 0 && count.is_multiple_of(*fixed)).map(|f| count / f);
    let rows = rows.filter(|rows| free == 1 || *rows == 1).ok_or_else(|| {
        format!("{count} elements do not fill input '{name}' of shape {:?}", spec.dims())
    })?;
    let size = |dim: &Dim| match dim {
        Dim::Fixed(size) => *size,
        Dim::Free(_) => rows,
    };
    Ok(Tensor { dtype: *dtype, shape: dims.iter().map(size).collect(), data })
}

fn one_text(name: &str, body: &Bytes) -> Result<Bytes, String> {
    std::str::from_utf8(body).map_err(|_| format!("the text of input '{name}' is not UTF-8"))?;
    let length = u32::try_from(body.len()).map_err(|_| "the text exceeds 4 GiB".to_owned())?;
    let mut data = BytesMut::with_capacity(elements::LENGTH_PREFIX + body.len());
    data.put_u32_le(length);
    data.extend_from_slice(body);
    Ok(data.freeze())
}
