//! What the box computes and moves at most: matrix products and convolutions through ONNX Runtime at widths
//! that fit its kernels and at widths a little beside them, and copies of memory.

use std::hint::black_box;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::ladder::timing::{Candidate, Timings};
use crate::limits;
use crate::onnx::proto::tensor_shape_proto::{Dimension, dimension::Value as Size};
use crate::onnx::proto::type_proto::{Tensor as TensorType, Value as Kind};
use crate::onnx::proto::{
    GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorShapeProto, TypeProto,
    ValueInfoProto,
};
use crate::onnx::{DType, Engine, ExecError, Model, Tensor, attr_ints, tensor};
use crate::shell::engine::OrtEngine;

/// What was measured, by one engine: its identity is the key under which it is kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Roofline {
    pub operators: Vec<Measured>,
    /// Bytes read and written a second by copying, in units of 10⁹.
    pub memory_gb_s: f64,
    pub threads: usize,
}

/// One operator.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// `gemm` or `conv`.
    pub operator: String,
    /// Channels in and out.
    pub width: usize,
    /// Whether the width is a multiple of 16, which the kernels of all boxes that were measured like.
    pub aligned: bool,
    /// Operations (a product and a sum are two) a second, in units of 10⁹.
    pub gflop_s: f64,
    pub micros: f64,
}

/// An operator to be measured.
struct Probe {
    operator: &'static str,
    width: usize,
    /// Rows of the product, or the side of the square image.
    size: usize,
}

/// Pairs of a width that is a multiple of 16 and one a little below it: sizes that mobile networks have.
const PROBES: [Probe; 8] = [
    Probe { operator: "gemm", width: 64, size: 256 },
    Probe { operator: "gemm", width: 60, size: 256 },
    Probe { operator: "gemm", width: 256, size: 256 },
    Probe { operator: "gemm", width: 250, size: 256 },
    Probe { operator: "conv", width: 32, size: 28 },
    Probe { operator: "conv", width: 30, size: 28 },
    Probe { operator: "conv", width: 128, size: 14 },
    Probe { operator: "conv", width: 120, size: 14 },
];

impl Probe {
    fn shape(&self) -> Vec<usize> {
        match self.operator {
            "gemm" => vec![self.size, self.width],
            _ => vec![1, self.width, self.size, self.size],
        }
    }

    fn weight_shape(&self) -> Vec<usize> {
        match self.operator {
            "gemm" => vec![self.width, self.width],
            _ => vec![self.width, self.width, 3, 3],
        }
    }

    /// Operations of one run.
    fn operations(&self) -> f64 {
        let positions = match self.operator {
            "gemm" => self.size,
            _ => self.size * self.size * 9,
        };
        2.0 * positions as f64 * (self.width * self.width) as f64
    }

    /// A network of this operator alone.
    fn model(&self) -> Result<Model, ExecError> {
        let weights = Tensor::from_f32(&self.weight_shape(), &noise(&self.weight_shape()));
        let weight = tensor("w", DType::F32, &self.weight_shape(), weights.data);
        let (kind, attribute) = match self.operator {
            "gemm" => ("MatMul", Vec::new()),
            _ => ("Conv", vec![attr_ints("pads", &[1, 1, 1, 1])]),
        };
        let node = NodeProto {
            op_type: Some(kind.to_owned()),
            input: vec!["x".to_owned(), "w".to_owned()],
            output: vec!["y".to_owned()],
            attribute,
            ..Default::default()
        };
        let graph = GraphProto {
            name: Some("roofline".to_owned()),
            node: vec![node],
            initializer: vec![weight],
            input: vec![value("x", &self.shape())],
            output: vec![value("y", &self.shape())],
            ..Default::default()
        };
        let opset = OperatorSetIdProto { version: Some(17), ..Default::default() };
        let proto = ModelProto {
            ir_version: Some(8),
            opset_import: vec![opset],
            graph: Some(graph).into(),
            ..Default::default()
        };
        Model::from_proto(proto).map_err(|error| ExecError {
            doing: "making a model to measure".to_owned(),
            reason: error.to_string(),
        })
    }
}

fn value(name: &str, dims: &[usize]) -> ValueInfoProto {
    let dim = |size: &usize| Dimension {
        value: Some(Size::DimValue(*size as i64)),
        ..Default::default()
    };
    let shape = TensorShapeProto { dim: dims.iter().map(dim).collect(), ..Default::default() };
    let kind = TensorType {
        elem_type: Some(DType::F32 as i32),
        shape: Some(shape).into(),
        ..Default::default()
    };
    let kind = TypeProto { value: Some(Kind::TensorType(Box::new(kind))), ..Default::default() };
    ValueInfoProto { name: Some(name.to_owned()), r#type: Some(kind).into(), ..Default::default() }
}

/// Numbers between -0.5 and 0.5, the same each time.
fn noise(shape: &[usize]) -> Vec<f32> {
    let step = |at: usize| (at.wrapping_mul(0x9E37_79B9) >> 7 & 0xFFFF) as f32 / 65_536.0 - 0.5;
    (0..shape.iter().product()).map(step).collect()
}

/// Measures on `engine`, which works with so many threads, for some seconds.
///
/// # Errors
/// Where ONNX Runtime fails.
pub fn measure(engine: &OrtEngine, threads: usize) -> Result<Roofline, ExecError> {
    let inputs: Vec<Tensor> = PROBES
        .iter()
        .map(|probe| Tensor::from_f32(&probe.shape(), &noise(&probe.shape())))
        .collect();
    let mut candidates = Vec::new();
    for (probe, input) in PROBES.iter().zip(&inputs) {
        let session = engine.open(&probe.model()?)?;
        candidates.push(Candidate { session, inputs: vec![("x", input)] });
    }
    let timings = Timings::take(&mut candidates, limits::ROOFLINE_SECONDS)?;
    let operators = PROBES.iter().enumerate().map(|(at, probe)| {
        // A quarter of the runs is undisturbed on any box that can be measured at all.
        let micros = timings.percentile(at, 0.25);
        Measured {
            operator: probe.operator.to_owned(),
            width: probe.width,
            aligned: probe.width % 16 == 0,
            gflop_s: probe.operations() / micros.max(f64::MIN_POSITIVE) / 1e3,
            micros,
        }
    });
    let operators = operators.collect();
    Ok(Roofline { operators, memory_gb_s: memory_gb_s(threads), threads })
}

/// The best of some copies, by all threads together, of more than caches hold.
fn memory_gb_s(threads: usize) -> f64 {
    let threads = threads.max(1);
    let length = limits::ROOFLINE_COPY_BYTES / threads / size_of::<u64>();
    let mut blocks: Vec<(Vec<u64>, Vec<u64>)> =
        (0..threads).map(|thread| (vec![thread as u64; length], vec![0; length])).collect();
    let mut best = f64::INFINITY;
    for _ in 0..limits::ROOFLINE_COPIES {
        let begun = Instant::now();
        std::thread::scope(|scope| {
            for (from, to) in &mut blocks {
                scope.spawn(|| {
                    to.copy_from_slice(black_box(from));
                    black_box(to);
                });
            }
        });
        best = best.min(begun.elapsed().as_secs_f64());
    }
    // Read once, written once.
    2.0 * (length * threads * size_of::<u64>()) as f64 / best / 1e9
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_width_has_a_neighbour_and_counts_its_operations() {
        for pair in PROBES.chunks(2) {
            assert_eq!((pair[0].operator, pair[0].size), (pair[1].operator, pair[1].size));
            assert!(pair[0].width % 16 == 0 && pair[1].width % 16 != 0);
            assert!(pair[1].width < pair[0].width && pair[1].width + 16 > pair[0].width);
        }
        assert_eq!(PROBES[0].operations(), 2.0 * 256.0 * 64.0 * 64.0);
        assert_eq!(PROBES[4].operations(), 2.0 * 784.0 * 9.0 * 32.0 * 32.0);
    }
}
