//! What a session of ONNX Runtime takes and gives, in the protocol's words.

use crate::protocol::{Dim, Signature, TensorSpec};
use crate::shell::engine::{self, LiveSession, ValueInfo};

impl From<&LiveSession> for Signature {
    fn from(session: &LiveSession) -> Self {
        let specs = |values: &[ValueInfo]| values.iter().map(spec).collect();
        Self { inputs: specs(session.inputs()), outputs: specs(session.outputs()) }
    }
}

fn spec(value: &ValueInfo) -> TensorSpec {
    let dim = |dim: &engine::Dim| match dim {
        engine::Dim::Fixed(size) => Dim::Fixed(*size),
        engine::Dim::Free(name) => Dim::Free(name.clone()),
    };
    TensorSpec {
        name: value.name.clone(),
        dtype: value.dtype,
        shape: value.ranked.then(|| value.shape.iter().map(dim).collect()),
    }
}
