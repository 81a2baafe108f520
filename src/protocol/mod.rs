//! Open Inference Protocol v2 ↔ typed requests and answers. Stands on `limits`, `units` and `onnx`'s
//! tensors; `shell::serve` carries its bytes and `shell::slot` answers its requests.

mod signature;

pub use signature::{Signature, TensorSpec, datatype, dtype_of};
