//! What coupling finds.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::onnx::NodeId;

/// Number of a group within one [`Coupling`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct GroupId(pub usize);

/// The groups of a model and what is frozen.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Coupling {
    /// Groups whose channels may be removed, in topological order of their first producer.
    pub groups: Vec<Group>,
    /// Output channels of operators that may not be removed.
    pub frozen: Vec<Frozen>,
}

/// Channels that stand in the same places and can be removed one by one.
///
/// A *channel* here is everything that must go together: one index on each axis for an ordinary
/// convolution, several where a flattening or a grouped convolution ties them.
#[derive(Debug, Clone, PartialEq)]
pub struct Group {
    pub id: GroupId,
    /// Label of the first operator that writes the group; where several groups begin in one operator,
    /// `label#2`, `label#3`, … for the further ones.
    pub name: String,
    /// Number of channels, at least two.
    pub width: usize,
    /// Every axis of a value or constant that holds the channels.
    pub places: Vec<Place>,
    /// Operators whose output axis holds the channels.
    pub producers: Vec<Producer>,
    /// Operators that sum over the channels.
    pub consumers: Vec<Consumer>,
    /// Depthwise and grouped operators that pass the channels on one by one.
    pub through: Vec<NodeId>,
    /// Whether the channels flow through an addition of two computed values (a residual stream).
    pub stream: bool,
    /// What a channel must be so that nothing changes without it.
    pub neutral: Neutral,
}

/// What a channel of a group must be so that the network says the same without it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Neutral {
    /// Zero.
    Zero,
    /// What the channels beside it are on average, in every row: a normalisation takes that off, and counts
    /// what is zero where the others are not. Without a refit of its readers no channel goes for nothing
    /// here.
    Mean,
}

/// One axis that holds a group's channels.
#[derive(Debug, Clone, PartialEq)]
pub struct Place {
    pub value: String,
    /// Whether the value is a constant of the graph.
    pub constant: bool,
    pub axis: usize,
    /// For each channel its indices on the axis.
    pub index: Vec<Vec<u32>>,
}

/// An operator that writes a group.
#[derive(Debug, Clone, PartialEq)]
pub struct Producer {
    pub node: NodeId,
    /// For each channel the operator's output channels.
    pub outputs: Vec<Vec<u32>>,
}

/// An operator that sums over a group.
#[derive(Debug, Clone, PartialEq)]
pub struct Consumer {
    pub node: NodeId,
    /// For each channel the operator's input channels.
    pub inputs: Vec<Vec<u32>>,
}

/// Output channels of an operator that may not be removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frozen {
    /// Label of the operator.
    pub what: String,
    /// How many of its output channels are frozen.
    pub width: usize,
    pub because: Reason,
}

/// What forbids that a channel is removed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// The caller gives the value.
    GraphInput { value: String },
    /// The caller receives the value.
    GraphOutput { value: String },
    /// No rule is known for the operator.
    UnknownOperator { node: String, op: String },
    /// The operator mixes or picks along the axis (softmax, normalisation, arg max, gather …).
    Along { node: String, op: String },
    /// A body of control flow reads or writes the value.
    ControlFlow { node: String, op: String },
    /// The rearrangement depends on sizes that are not known before the model runs, or that a cut
    /// would change.
    Rearranged { node: String, op: String },
    /// The operator's result depends on the size of the axis.
    SizeRead { node: String },
    /// The runtime does not tell the shape of the value.
    NoShape { value: String, node: String },
    /// All channels hang together: none can go alone.
    Indivisible,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::GraphInput { value } => write!(f, "it is tied to the model's input {value:?}"),
            Self::GraphOutput { value } => write!(f, "it reaches the model's output {value:?}"),
            Self::UnknownOperator { node, op } => {
                write!(f, "{op} (node {node:?}) is an operator without a rule")
            }
            Self::Along { node, op } => write!(f, "{op} (node {node:?}) works along the channels"),
            Self::ControlFlow { node, op } => {
                write!(f, "the body of {op} (node {node:?}) uses it")
            }
            Self::Rearranged { node, op } => {
                write!(f, "{op} (node {node:?}) rearranges it in a way that a cut would change")
            }
            Self::SizeRead { node } => write!(f, "node {node:?} reads the number of channels"),
            Self::Indivisible => write!(f, "its channels all hang together"),
            Self::NoShape { value, node } => {
                write!(f, "the shape of {value:?} at node {node:?} is not known")
            }
        }
    }
}
