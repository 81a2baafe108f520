//! Values inside a network on calibration samples, computed piece by piece: each request runs only what
//! lies between the values that are known already and those that are wanted. A network that is being
//! repaired from front to back is so hardly ever run twice over the same part.
//!
//! Memory is bounded: a value that is too large to be kept for all samples is kept for the first ones.

use std::collections::{BTreeMap, BTreeSet};

use crate::limits;
use crate::onnx::proto::tensor_shape_proto::{Dimension, dimension};
use crate::onnx::proto::{TensorShapeProto, TypeProto, ValueInfoProto, type_proto};
use crate::onnx::{DType, Engine, ExecError, Graph, Model, NodeId, Tensor, extract};

/// One batch of inputs: a tensor for every graph input, by name.
pub type Batch = BTreeMap<String, Tensor>;

/// Known values of a network, each as one tensor a batch: of all batches, or of the first ones.
pub struct Activations<'e> {
    engine: &'e dyn Engine,
    known: BTreeMap<String, Vec<Tensor>>,
    batches: usize,
    /// Batches of which every value is known.
    least: usize,
    /// Bytes beyond which no further batch of a value is kept.
    most_bytes: usize,
}

impl<'e> Activations<'e> {
    /// Starts from the graph inputs. Every batch must hold the same inputs.
    pub fn new(engine: &'e dyn Engine, batches: &[Batch]) -> Self {
        let mut known: BTreeMap<String, Vec<Tensor>> = BTreeMap::new();
        for (name, tensor) in batches.iter().flatten() {
            known.entry(name.clone()).or_default().push(tensor.clone());
        }
        let all = Self { engine, known, batches: batches.len(), least: 0, most_bytes: 0 };
        all.bounded(limits::VALUE_SAMPLES, limits::VALUE_BYTES)
    }

    /// Keeps other amounts than the usual ones: every value of `samples`, and no more than `bytes` of one.
    #[must_use]
    pub fn bounded(mut self, samples: usize, bytes: usize) -> Self {
        let first = self.known.values().next().and_then(|tensors| tensors.first());
        let batch = first.and_then(|tensor| tensor.shape.first().copied()).unwrap_or(1);
        (self.least, self.most_bytes) = (samples.div_ceil(batch.max(1)), bytes);
        self
    }

    /// Computes `values` of `model` and remembers them. What is known already is taken as it is: the
    /// caller answers for it that a value which an edit changed is not remembered under its old contents.
    ///
    /// # Errors
    /// Where the runtime fails, or a value cannot be computed from what is known.
    pub fn fetch(&mut self, model: &Model, values: &[&str]) -> Result<(), ExecError> {
        let wanted: BTreeSet<&str> = values.iter().copied().collect();
        let missing = wanted.into_iter().filter(|value| !self.known.contains_key(*value));
        let mut found: BTreeMap<&str, Vec<Tensor>> =
            missing.map(|value| (value, Vec::new())).collect();
        // Batch by batch, in runs that want the same values and can start from the same ones.
        let mut batch = 0;
        while batch < self.batches {
            let open: Vec<&str> = found
                .iter()
                .filter(|(_, tensors)| tensors.len() == batch && self.has_room(tensors))
                .map(|(value, _)| *value)
                .collect();
            if open.is_empty() {
                break;
            }
            batch = self.run(model, &open, batch, &mut found)?;
        }
        self.known.extend(found.into_iter().map(|(value, tensors)| (value.to_owned(), tensors)));
        Ok(())
    }

    /// Computes `open` from batch `first` on for as long as all of them have room and the run can start from
    /// the same values, and gives the batch behind.
    fn run(
        &self,
        model: &Model,
        open: &[&str],
        first: usize,
        found: &mut BTreeMap<&str, Vec<Tensor>>,
    ) -> Result<usize, ExecError> {
        let frontier = self.frontier(model, open, first);
        let starts: Vec<(&str, &[Tensor])> = frontier
            .iter()
            .filter_map(|name| Some((name.as_str(), self.known.get(name)?.as_slice())))
            .collect();
        let inputs: Vec<ValueInfoProto> = starts
            .iter()
            .filter_map(|(name, tensors)| Some(value_info(name, tensors.first()?, false)))
            .collect();
        let part = extract(model, inputs, open).map_err(|error| ExecError {
            doing: format!("computing values {open:?}"),
            reason: error.to_string(),
        })?;
        let mut session = self.engine.open(&part)?;
        let end = starts.iter().map(|(_, tensors)| tensors.len()).min().unwrap_or(self.batches);
        for batch in first..end {
            let fed: Vec<(&str, &Tensor)> =
                starts.iter().map(|(name, tensors)| (*name, &tensors[batch])).collect();
            let mut full = false;
            for (value, tensor) in open.iter().zip(session.run(&fed)?) {
                if let Some(tensors) = found.get_mut(*value) {
                    tensors.push(tensor);
                    full |= !self.has_room(tensors);
                }
            }
            if full {
                return Ok(batch + 1);
            }
        }
        Ok(end.max(first + 1))
    }

    /// Whether one more batch of a value may be kept.
    fn has_room(&self, tensors: &[Tensor]) -> bool {
        let size = tensors.first().map_or(0, |tensor| tensor.data.len());
        tensors.len() < self.least || size * (tensors.len() + 1) <= self.most_bytes
    }

    /// The values known of a batch from which `targets` can be computed for it.
    fn frontier(&self, model: &Model, targets: &[&str], batch: usize) -> BTreeSet<String> {
        let graph = Graph::new(model);
        let mut found = BTreeSet::new();
        let mut seen: BTreeSet<&str> = BTreeSet::new();
        let mut open: Vec<&str> = targets.to_vec();
        while let Some(value) = open.pop() {
            if self.known.get(value).is_some_and(|tensors| tensors.len() > batch) {
                found.insert(value.to_owned());
            } else if let Some(node) = graph.producer(value) {
                let inputs = graph.node(node).input.iter().map(String::as_str);
                open.extend(inputs.chain(graph.captured(node)).filter(|name| seen.insert(*name)));
            }
        }
        found
    }

    /// A known value, one tensor a batch; a large one of the first batches only.
    pub fn get(&self, value: &str) -> Option<&[Tensor]> {
        self.known.get(value).map(Vec::as_slice)
    }

    /// Forgets a value that an edit has changed.
    pub fn forget(&mut self, value: &str) {
        self.known.remove(value);
    }

    /// Forgets everything, the graph inputs too: nothing can be computed any more.
    pub fn clear(&mut self) {
        self.known.clear();
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
        // Between two of these numbers of batches the same values are known.
        let ends: BTreeSet<usize> = self.known.values().map(Vec::len).collect();
        let starts = std::iter::once(0).chain(ends).filter(|start| *start < self.batches);
        let needed: BTreeSet<String> =
            starts.flat_map(|start| self.frontier(model, &wanted, start)).collect();
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
