//! A read-only view of a model's main graph: who writes and who reads each value, attributes with their
//! defaults, and constants wherever they stand (initializers or Constant nodes).

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::check::label;
use super::proto::{AttributeProto, GraphProto, NodeProto, TensorProto};
use super::walk::subgraphs;
use super::{DType, Model, OnnxError, values};
use crate::units::Digest;

/// Position of a node in the graph's topological order.
pub type NodeId = usize;

/// One reading of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Use {
    /// Input number `input` of node `node`.
    Input { node: NodeId, input: usize },
    /// A control-flow body of node `node` reads the value by name.
    Captured { node: NodeId },
    /// The graph returns the value.
    Output,
}

/// A constant of the graph.
#[derive(Debug, Clone, Copy)]
pub struct Weight<'m> {
    /// The tensor's message. Its own name may differ from the value's where a Constant node holds it.
    pub tensor: &'m TensorProto,
    /// The Constant node that holds it; `None` for an initializer.
    pub node: Option<NodeId>,
}

/// The index over a model's main graph. Borrowed from the model; build it once per pass.
#[derive(Debug)]
pub struct Graph<'m> {
    model: &'m Model,
    producers: BTreeMap<&'m str, NodeId>,
    uses: BTreeMap<&'m str, Vec<Use>>,
    weights: BTreeMap<&'m str, Weight<'m>>,
    /// Digests that were taken, by the place of the tensor's message: hashing goes over every byte of a weight.
    digests: RefCell<BTreeMap<*const TensorProto, Digest>>,
}

impl<'m> Graph<'m> {
    /// Indexes the main graph of `model`.
    pub fn new(model: &'m Model) -> Self {
        let graph = model.graph();
        let mut view = Self {
            model,
            producers: BTreeMap::new(),
            uses: BTreeMap::new(),
            weights: BTreeMap::new(),
            digests: RefCell::default(),
        };
        // From IR version 4 on, an initializer that is also an input can be replaced by the caller: it is
        // no constant. Before, every initializer had to be listed as an input.
        let overridable = model.proto().ir_version.unwrap_or_default() >= 4;
        let inputs: BTreeSet<&str> = graph.input.iter().filter_map(|i| i.name.as_deref()).collect();
        for tensor in &graph.initializer {
            let name = tensor.name.as_deref().unwrap_or_default();
            if !(overridable && inputs.contains(name)) {
                view.weights.insert(name, Weight { tensor, node: None });
            }
        }
        for (id, node) in graph.node.iter().enumerate() {
            view.index_node(id, node);
        }
        for output in graph.output.iter().filter_map(|o| o.name.as_deref()) {
            view.uses.entry(output).or_default().push(Use::Output);
        }
        view
    }

    fn index_node(&mut self, id: NodeId, node: &'m NodeProto) {
        for (input, value) in node.input.iter().enumerate().filter(|(_, v)| !v.is_empty()) {
            self.uses.entry(value).or_default().push(Use::Input { node: id, input });
        }
        for value in self.captured(id) {
            self.uses.entry(value).or_default().push(Use::Captured { node: id });
        }
        for value in node.output.iter().filter(|value| !value.is_empty()) {
            self.producers.insert(value, id);
        }
        if node.op_type.as_deref() == Some("Constant")
            && let Some(value) = node.attribute.iter().find(|a| a.name.as_deref() == Some("value"))
            && let (Some(tensor), Some(output)) = (value.t.as_option(), node.output.first())
        {
            self.weights.insert(output, Weight { tensor, node: Some(id) });
        }
    }

    /// The model under the view.
    pub fn model(&self) -> &'m Model {
        self.model
    }

    /// All nodes in topological order.
    pub fn nodes(&self) -> &'m [NodeProto] {
        &self.model.graph().node
    }

    /// Node `id`.
    pub fn node(&self, id: NodeId) -> &'m NodeProto {
        &self.model.graph().node[id]
    }

    /// The values that the control-flow bodies of node `id` read by name.
    pub fn captured(&self, id: NodeId) -> Vec<&'m str> {
        let mut values = Vec::new();
        let bodies = self.node(id).attribute.iter().flat_map(subgraphs);
        bodies.for_each(|body| captures(body, &mut values));
        values
    }

    /// A node's name, or its first output where the exporter gave it no name.
    pub fn label(&self, id: NodeId) -> String {
        label(self.node(id))
    }

    /// A node's operator type; operators outside the default domain are prefixed: `com.microsoft.Gelu`.
    pub fn op(&self, id: NodeId) -> String {
        op_of(self.node(id))
    }

    /// The node that writes `value`; `None` for graph inputs and initializers.
    pub fn producer(&self, value: &str) -> Option<NodeId> {
        self.producers.get(value).copied()
    }

    /// All readings of `value`, in topological order, graph outputs last.
    pub fn uses(&self, value: &str) -> &[Use] {
        self.uses.get(value).map_or(&[], Vec::as_slice)
    }

    /// The constant named `value`, if it is one.
    pub fn weight(&self, value: &str) -> Option<Weight<'m>> {
        self.weights.get(value).copied()
    }

    /// Names of all constants.
    pub fn weights(&self) -> impl Iterator<Item = (&'m str, Weight<'m>)> {
        self.weights.iter().map(|(name, weight)| (*name, *weight))
    }

    /// Input number `input` of node `id`; `None` where it is absent or left empty.
    pub fn input(&self, id: NodeId, input: usize) -> Option<&'m str> {
        self.node(id).input.get(input).map(String::as_str).filter(|name| !name.is_empty())
    }

    /// Shape of a constant.
    pub fn weight_dims(&self, value: &str) -> Option<Vec<usize>> {
        let weight = self.weight(value)?;
        weight.tensor.dims.iter().map(|dim| usize::try_from(*dim).ok()).collect()
    }

    /// Element type of a constant.
    pub fn weight_dtype(&self, value: &str) -> Option<DType> {
        self.weight(value)?.tensor.data_type.and_then(DType::from_onnx)
    }

    /// Little-endian elements of a constant; `None` where `value` is no constant.
    ///
    /// # Errors
    /// Where its data is missing or of a wrong size.
    pub fn weight_bytes(&self, value: &str) -> Result<Option<Bytes>, OnnxError> {
        self.weight(value).map(|weight| self.model.tensor_bytes(weight.tensor)).transpose()
    }

    /// BLAKE3 of the elements of a constant, taken once; `None` where `value` is no constant.
    ///
    /// # Errors
    /// As [`Graph::weight_bytes`].
    pub fn weight_digest(&self, value: &str) -> Result<Option<Digest>, OnnxError> {
        self.weight(value).map(|weight| self.digest_of(weight.tensor)).transpose()
    }

    /// [`Model::digest`], from the digests of the constants that were taken already.
    ///
    /// # Errors
    /// As [`Model::digest`].
    pub fn model_digest(&self) -> Result<Digest, OnnxError> {
        self.model.digest_by(&mut |tensor| self.digest_of(tensor))
    }

    fn digest_of(&self, tensor: &'m TensorProto) -> Result<Digest, OnnxError> {
        let place = std::ptr::from_ref(tensor);
        if let Some(digest) = self.digests.borrow().get(&place) {
            return Ok(*digest);
        }
        let digest = Digest::of(&self.model.tensor_bytes(tensor)?);
        self.digests.borrow_mut().insert(place, digest);
        Ok(digest)
    }

    /// A floating-point constant as `f32`; `None` where `value` is not one.
    pub fn floats(&self, value: &str) -> Option<Vec<f32>> {
        let bytes = self.weight_bytes(value).ok()??;
        values::floats(self.weight_dtype(value)?, &bytes)
    }

    /// An integer constant as `i64` (shapes, axes, pads); `None` where `value` is not one.
    pub fn ints(&self, value: &str) -> Option<Vec<i64>> {
        let bytes = self.weight_bytes(value).ok()??;
        values::integers(self.weight_dtype(value)?, &bytes)
    }

    /// Attributes of node `id`.
    pub fn attrs(&self, id: NodeId) -> Attrs<'m> {
        Attrs(&self.node(id).attribute)
    }
}

/// A node's attributes, read with their defaults.
#[derive(Debug, Clone, Copy)]
pub struct Attrs<'m>(&'m [AttributeProto]);

impl<'m> Attrs<'m> {
    /// The attribute itself.
    pub fn get(&self, name: &str) -> Option<&'m AttributeProto> {
        self.0.iter().find(|attribute| attribute.name.as_deref() == Some(name))
    }

    /// An integer attribute.
    pub fn int(&self, name: &str) -> Option<i64> {
        self.get(name)?.i
    }

    /// A float attribute.
    pub fn float(&self, name: &str) -> Option<f32> {
        self.get(name)?.f
    }

    /// A list of integers; `None` where the attribute is absent.
    pub fn ints(&self, name: &str) -> Option<&'m [i64]> {
        self.get(name).map(|attribute| attribute.ints.as_slice())
    }

    /// A text attribute.
    pub fn text(&self, name: &str) -> Option<&'m str> {
        std::str::from_utf8(self.get(name)?.s.as_ref()?).ok()
    }
}

pub(super) fn op_of(node: &NodeProto) -> String {
    let op = node.op_type.as_deref().unwrap_or_default();
    match node.domain.as_deref() {
        None | Some("" | "ai.onnx") => op.to_owned(),
        Some(domain) => format!("{domain}.{op}"),
    }
}

/// The values that a control-flow body reads from outside itself.
fn captures<'m>(body: &'m GraphProto, out: &mut Vec<&'m str>) {
    let mut own: Vec<&str> = body.input.iter().filter_map(|i| i.name.as_deref()).collect();
    own.extend(body.initializer.iter().filter_map(|tensor| tensor.name.as_deref()));
    own.extend(body.node.iter().flat_map(|node| node.output.iter().map(String::as_str)));
    let mut read: Vec<&str> = Vec::new();
    for node in &body.node {
        read.extend(node.input.iter().map(String::as_str).filter(|name| !name.is_empty()));
        node.attribute.iter().flat_map(subgraphs).for_each(|inner| captures(inner, &mut read));
    }
    read.extend(body.output.iter().filter_map(|o| o.name.as_deref()));
    out.extend(read.into_iter().filter(|name| !own.contains(name)));
}
