//! Stand-ins for the runtime: networks of a few operators that are computed here, and a clock that is told how
//! long each takes.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use crate::onnx::proto::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, ValueInfoProto,
};
use crate::onnx::{
    DType, Engine, ExecError, Graph, Model, Session, Shapes, Tensor, ValueType, tensor, values,
};
use crate::spectra::activations::value_info;

/// One operator of a [`chain`], which reads what the one before it writes.
#[derive(Clone)]
pub struct Layer {
    op: &'static str,
    attributes: Vec<AttributeProto>,
    weight: Option<[usize; 2]>,
    also: Option<usize>,
    constant: Option<f32>,
}

impl Layer {
    pub fn op(op: &'static str) -> Self {
        Self { op, attributes: Vec::new(), weight: None, also: None, constant: None }
    }

    /// A product with a matrix.
    pub fn product(inputs: usize, outputs: usize) -> Self {
        Self { weight: Some([inputs, outputs]), ..Self::op("MatMul") }
    }

    pub fn with(mut self, attribute: AttributeProto) -> Self {
        self.attributes.push(attribute);
        self
    }

    /// Reads value number `value` (0: the input) as well.
    pub fn also_reads(mut self, value: usize) -> Self {
        self.also = Some(value);
        self
    }

    pub fn constant(mut self, value: f32) -> Self {
        self.constant = Some(value);
        self
    }
}

/// A network of layers in a row. Its input is `[1, …]`, or has as many samples as `batch` says (0: any).
/// `names` begins the names of all values, `seed` decides the weights.
pub fn chain(opset: i64, dtype: DType, names: &str, seed: u64, layers: &[Layer]) -> Model {
    batched(1, opset, dtype, names, seed, layers)
}

pub fn batched(
    batch: usize,
    opset: i64,
    dtype: DType,
    names: &str,
    seed: u64,
    layers: &[Layer],
) -> Model {
    let value = |number: usize| format!("{names}{number}");
    let inputs = layers.iter().find_map(|layer| layer.weight).map_or(1, |weight| weight[0]);
    let shape = vec![batch, inputs];
    let zeros = Tensor { dtype, shape, data: Vec::new().into() };
    let mut graph = GraphProto {
        name: Some(names.to_owned()),
        input: vec![value_info(&value(0), &zeros, true)],
        output: vec![ValueInfoProto { name: Some(value(layers.len())), ..Default::default() }],
        ..Default::default()
    };
    for (number, layer) in layers.iter().enumerate() {
        let mut input = vec![value(number)];
        if let Some([rows, columns]) = layer.weight {
            let weights: Vec<f32> =
                (0..rows * columns).map(|i| real(seed + (number * 1000 + i) as u64)).collect();
            let bytes = values::float_bytes(dtype, &weights).unwrap();
            let name = format!("{names}w{number}");
            graph.initializer.push(tensor(&name, dtype, &[rows, columns], bytes));
            input.push(name);
        }
        input.extend(layer.also.map(value));
        if let Some(constant) = layer.constant {
            let name = format!("{names}c{number}");
            let bytes = values::float_bytes(dtype, &[constant]).unwrap();
            graph.initializer.push(tensor(&name, dtype, &[], bytes));
            input.push(name);
        }
        graph.node.push(NodeProto {
            op_type: Some(layer.op.to_owned()),
            name: Some(format!("{names}node{number}")),
            input,
            output: vec![value(number + 1)],
            attribute: layer.attributes.clone(),
            ..Default::default()
        });
    }
    let opset = OperatorSetIdProto { version: Some(opset), ..Default::default() };
    Model::from_proto(ModelProto {
        ir_version: Some(8),
        graph: graph.into(),
        opset_import: vec![opset],
        ..Default::default()
    })
    .unwrap()
}

/// Between -1 and 1: the same number for the same `seed` (SplitMix64).
pub fn real(seed: u64) -> f32 {
    let mut z = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ (z >> 31)) >> 40) as f32 / (1u64 << 23) as f32 - 1.0
}

/// Whether what a sample (its first value) makes a network say is falsified.
type Spoils = Box<dyn Fn(f32) -> bool>;

/// Runs chains of products, additions and rectifiers. A product takes a microsecond for every two hundred of
/// its weights, every operator 20 beside.
#[derive(Clone, Default)]
pub struct FakeEngine {
    pub name: String,
    /// Models that were timed so far.
    pub timed: Rc<Cell<usize>>,
    /// Falsifies what networks say of some samples.
    pub spoils: Rc<RefCell<Option<Spoils>>>,
}

struct FakeSession {
    model: Model,
    engine: FakeEngine,
    counted: bool,
}

impl Engine for FakeEngine {
    fn identity(&self) -> String {
        self.name.clone()
    }

    fn shapes(&self, model: &Model, _: &BTreeMap<String, usize>) -> Result<Shapes, ExecError> {
        let graph = Graph::new(model);
        let mut shapes = Shapes::new();
        for input in &model.graph().input {
            let Some(crate::onnx::proto::type_proto::Value::TensorType(tensor)) =
                &input.r#type.value
            else {
                continue;
            };
            let shape = tensor.shape.dim.iter().map(|dim| match dim.value {
                Some(crate::onnx::proto::tensor_shape_proto::dimension::Value::DimValue(size)) => {
                    Some(size.max(1) as usize)
                }
                _ => Some(1),
            });
            let name = input.name.clone().unwrap_or_default();
            shapes.insert(name, ValueType { dtype: DType::F32, shape: shape.collect() });
        }
        for (id, node) in graph.nodes().iter().enumerate() {
            let mut found = shapes[&node.input[0]].clone();
            if let Some(dims) = graph.input(id, 1).and_then(|weight| graph.weight_dims(weight))
                && graph.op(id) == "MatMul"
            {
                found.shape[1] = Some(dims[1]);
            }
            shapes.insert(node.output[0].clone(), found);
        }
        Ok(shapes)
    }

    fn open(&self, model: &Model) -> Result<Box<dyn Session>, ExecError> {
        let (model, engine) = (model.clone(), self.clone());
        Ok(Box::new(FakeSession { model, engine, counted: false }))
    }
}

impl Session for FakeSession {
    fn run(&mut self, inputs: &[(&str, &Tensor)]) -> Result<Vec<Tensor>, ExecError> {
        let graph = Graph::new(&self.model);
        let mut known: BTreeMap<&str, (usize, Vec<f32>)> = BTreeMap::new();
        for (name, tensor) in inputs {
            known.insert(name, (tensor.shape[0], tensor.to_f32().unwrap()));
        }
        let marks: Vec<f32> = match inputs {
            [(_, one), ..] => {
                one.to_f32().unwrap().chunks(one.shape[1]).map(|row| row[0]).collect()
            }
            [] => Vec::new(),
        };
        for (id, node) in graph.nodes().iter().enumerate() {
            let (rows, x) = known[node.input[0].as_str()].clone();
            let y = match graph.op(id).as_str() {
                "Relu" => x.iter().map(|value| value.max(0.0)).collect(),
                "Add" => {
                    let (_, other) = &known[node.input[1].as_str()];
                    x.iter().zip(other).map(|(a, b)| a + b).collect()
                }
                "MatMul" => {
                    let weight = graph.floats(&node.input[1]).unwrap();
                    let dims = graph.weight_dims(&node.input[1]).unwrap();
                    product(&x, &weight, dims[0], dims[1])
                }
                op => panic!("{op} is not computed here"),
            };
            known.insert(&node.output[0], (rows, y));
        }
        let spoils = self.engine.spoils.borrow();
        let outputs = self.model.graph().output.iter().map(|output| {
            let (rows, mut values) = known[output.name.as_deref().unwrap()].clone();
            let width = values.len() / rows;
            for (row, mark) in values.chunks_mut(width).zip(&marks) {
                if spoils.as_ref().is_some_and(|spoils| spoils(*mark)) {
                    row.reverse();
                    row.iter_mut().for_each(|value| *value = 3.0 - *value);
                }
            }
            Tensor::from_f32(&[rows, width], &values)
        });
        Ok(outputs.collect())
    }

    fn time(&mut self, _: &[(&str, &Tensor)], runs: usize) -> Result<Vec<Duration>, ExecError> {
        if !std::mem::replace(&mut self.counted, true) {
            self.engine.timed.set(self.engine.timed.get() + 1);
        }
        let weights: usize = self
            .model
            .graph()
            .initializer
            .iter()
            .map(|t| t.dims.iter().product::<i64>() as usize)
            .sum();
        let nodes = self.model.graph().node.len();
        Ok(vec![Duration::from_nanos((20_000 * nodes + 5 * weights) as u64); runs])
    }
}

fn product(x: &[f32], weight: &[f32], inputs: usize, outputs: usize) -> Vec<f32> {
    let row = |x: &[f32]| -> Vec<f32> {
        let at = |o: usize| x.iter().enumerate().map(|(i, x)| x * weight[i * outputs + o]).sum();
        (0..outputs).map(at).collect()
    };
    x.chunks(inputs).flat_map(row).collect()
}
