//! Which channels must go together: coupled groups, their index maps, what is frozen and because of what.
//! Reads a graph and the shapes of its values (`onnx`); `surgery` carries cuts out, `ladder` decides them.
//!
//! Every index of every axis of every value and constant is an *atom*. Each operator says which atoms of
//! its inputs and outputs stand for the same channel, and which may not be cut at all. The connected
//! classes of atoms are the channels; channels that stand on the same axes with the same multiplicity
//! are interchangeable and form a [`Group`] (the "dependency group" of DepGraph, arXiv 2301.12900, but by
//! index and not by layer: a dense concatenation, a padded shortcut or a channel shuffle needs no case of
//! its own). What an operator does not say is frozen: an unknown operator costs width, never correctness.

mod reason;

use std::fmt;

use crate::onnx::NodeId;

pub use reason::Reason;

/// Position of a group in [`Coupling::groups`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupId(pub usize);

impl fmt::Display for GroupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "group {}", self.0)
    }
}

/// All channels of a model: those that may be cut, and those that may not.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Coupling {
    /// Groups that may lose channels, in the order of their first producers. `groups[i].id == GroupId(i)`.
    /// A channel belongs to one group at most.
    pub groups: Vec<Group>,
    /// Output channels of operators that may not be cut.
    pub frozen: Vec<Frozen>,
}

impl Coupling {
    /// The group `id`; `None` where the model has no such group.
    pub fn group(&self, id: GroupId) -> Option<&Group> {
        self.groups.get(id.0)
    }
}

/// Interchangeable channels: any of them may go, as long as one stays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    pub id: GroupId,
    /// The label of the first producer; where several groups begin in one operator, `label#1`, `label#2`, ….
    pub name: String,
    /// Number of channels, at least 2. Channels are numbered in the order of the first producer's outputs.
    pub width: usize,
    /// Every axis on which the channels stand, values before and after operators and constants alike.
    pub places: Vec<Place>,
    /// The operators whose outputs the channels are; at least one.
    pub producers: Vec<Producer>,
    /// The operators that sum over the channels.
    pub consumers: Vec<Consumer>,
    /// Nodes with constants of their own for every channel, which lose them with it: normalisation with
    /// fixed statistics, depthwise and grouped convolution. What stays behind a cut is unchanged by them.
    pub through: Vec<NodeId>,
    /// Whether the channels flow through an addition of two computed values (a residual stream).
    pub stream: bool,
    /// Output channels of the first producer that one channel of the group stands for: 1, or more where
    /// a grouped convolution or a channel shuffle ties several together.
    pub granularity: usize,
}

/// One axis on which the channels of a group stand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Name of the value or constant.
    pub value: String,
    /// Whether it is a constant.
    pub constant: bool,
    pub axis: usize,
    /// For every channel its indices on that axis, ascending: as many for each channel.
    pub index: Vec<Vec<u32>>,
}

/// An operator that computes channels of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Producer {
    pub node: NodeId,
    /// For every channel its output channels (rows of the operator's matrix, see `onnx::Operator`).
    pub outputs: Vec<Vec<u32>>,
}

/// An operator that sums over the channels of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Consumer {
    pub node: NodeId,
    /// For every channel its input channels: one each for a convolution, height · width of them for a
    /// Gemm behind a Flatten.
    pub inputs: Vec<Vec<u32>>,
}

/// Output channels of an operator that may not be cut.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frozen {
    /// Label of the operator.
    pub what: String,
    /// How many of its output channels.
    pub width: usize,
    /// What they touch that holds them.
    pub because: Reason,
}

/// A residual block y = s + f(s) that can be replaced by its shortcut s.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// The addition.
    pub add: NodeId,
    /// The value s: what is read in place of the addition's output once the block is gone.
    pub shortcut: String,
    /// The nodes that compute f, in topological order; nothing else reads what they write.
    pub branch: Vec<NodeId>,
    /// The last operator with a weight of the branch: the one that writes f(s), but for what follows it
    /// channel by channel.
    pub last: NodeId,
    /// Groups that live wholly inside the branch and vanish with it.
    pub groups: Vec<GroupId>,
}
