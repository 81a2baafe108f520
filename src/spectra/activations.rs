//! Values inside a network on calibration samples, computed piece by piece: each request runs only what
//! lies between the values that are known already and those that are wanted. A network that is being
//! repaired from front to back is so never run twice over the same part.

use std::collections::{BTreeMap, BTreeSet};

use crate::onnx::proto::tensor_shape_proto::{Dimension, dimension};
use crate::onnx::proto::{TensorShapeProto, TypeProto, ValueInfoProto, type_proto};
use crate::onnx::{DType, Engine, ExecError, Graph, Model, NodeId, Tensor, extract};

/// One batch of inputs: a tensor for every graph input, by name.
pub type Batch = BTreeMap<String, Tensor>;

/// Known values of a network, each as one tensor a batch.
pub struct Activations<'e> {
    engine: &'e dyn Engine,
    known: BTreeMap<String, Vec<Tensor>>,
    batches: usize,
}

impl<'e> Activations<'e> {
    /// Starts from the graph inputs. Every batch must hold the same inputs.
    pub fn new(engine: &'e dyn Engine, batches: &[Batch]) -> Self {
        let mut known: BTreeMap<String, Vec<Tensor>> = BTreeMap::new();
        for (name, tensor) in batches.iter().flatten() {
            known.entry(name.clone()).or_default().push(tensor.clone());
        }
        Self { engine, known, batches: batches.len() }
    }

    /// Computes `values` of `model` and remembers them. What is known already is taken as it is: the
    /// caller answers for it that a value which an edit changed is not remembered under its old contents.
    ///
    /// # Errors
    /// Where the runtime fails, or a value cannot be computed from what is known.
    pub fn fetch(&mut self, model: &Model, values: &[&str]) -> Result<(), ExecError> {
        let missing: Vec<&str> = {
            let wanted: BTreeSet<&str> = values.iter().copied().collect();
            wanted.into_iter().filter(|value| !self.known.contains_key(*value)).collect()
        };
        if missing.is_empty() {
            return Ok(());
        }
        let doing = || format!("computing values {missing:?}");
        let frontier = self.frontier(model, &missing);
        let inputs: Vec<ValueInfoProto> = frontier
            .iter()
            .filter_map(|name| Some(value_info(name, self.known.get(name)?.first()?, false)))
            .collect();
        let part = extract(model, inputs, &missing)
            .map_err(|error| ExecError { doing: doing(), reason: error.to_string() })?;
        let mut session = self.engine.open(&part)?;
        let mut results: Vec<Vec<Tensor>> = vec![Vec::new(); missing.len()];
        for batch in 0..self.batches {
            let fed: Vec<(&str, &Tensor)> =
                frontier.iter().map(|name| (name.as_str(), &self.known[name][batch])).collect();
            for (slot, tensor) in results.iter_mut().zip(session.run(&fed)?) {
                slot.push(tensor);
            }
        }
        self.known.extend(missing.iter().map(|name| (*name).to_owned()).zip(results));
        Ok(())
    }

    /// The known values from which `targets` can be computed.
    fn frontier(&self, model: &Model, targets: &[&str]) -> BTreeSet<String> {
        let graph = Graph::new(model);
        let mut found = BTreeSet::new();
        let mut seen: BTreeSet<&str> = BTreeSet::new();
        let mut open: Vec<&str> = targets.to_vec();
        while let Some(value) = open.pop() {
            if self.known.contains_key(value) {
                found.insert(value.to_owned());
            } else if let Some(node) = graph.producer(value) {
                let inputs = graph.node(node).input.iter().map(String::as_str);
                open.extend(inputs.chain(graph.captured(node)).filter(|name| seen.insert(*name)));
            }
        }
        found
    }

    /// A known value, one tensor a batch.
    pub fn get(&self, value: &str) -> Option<&[Tensor]> {
        self.known.get(value).map(Vec::as_slice)
    }

    /// Forgets what is not needed to compute everything that node `first` and those behind it read.
    ///
    /// A value that nobody behind reads may still be what such a value is computed from: were it forgotten,
    /// the network would be run again from its inputs.
    pub fn forget_before(&mut self, model: &Model, first: NodeId) {
        let graph = Graph::new(model);
        let behind = (first..graph.nodes().len()).flat_map(|id| {
            graph.node(id).input.iter().map(String::as_str).chain(graph.captured(id))
        });
        let wanted: Vec<&str> = behind.collect();
        let needed = self.frontier(model, &wanted);
        self.known.retain(|name, _| needed.contains(name) || graph.producer(name).is_none());
    }
}

/// The type of a value as a graph input states it: with the tensor's own sizes where `fixed`, else with
/// free dimensions.
pub fn value_info(name: &str, tensor: &Tensor, fixed: bool) -> ValueInfoProto {
    let dim = |(axis, size): (usize, &usize)| Dimension {
        value: Some(if fixed {
            dimension::Value::DimValue(*size as i64)
        } else {
            dimension::Value::DimParam(format!("{name}_{axis}"))
        }),
        ..Default::default()
    };
    let shape = TensorShapeProto {
        dim: tensor.shape.iter().enumerate().map(dim).collect(),
        ..Default::default()
    };
    typed(name, tensor.dtype, shape)
}

fn typed(name: &str, dtype: DType, shape: TensorShapeProto) -> ValueInfoProto {
    let tensor = type_proto::Tensor {
        elem_type: Some(dtype as i32),
        shape: shape.into(),
        ..Default::default()
    };
    let value = Some(type_proto::Value::TensorType(Box::new(tensor)));
    ValueInfoProto {
        name: Some(name.to_owned()),
        r#type: TypeProto { value, ..Default::default() }.into(),
        ..Default::default()
    }
}
