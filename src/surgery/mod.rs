//! Graph and cut → new graph, refit, pre- and postconditions. `coupling` says what may be cut; `ladder`
//! decides what is.

mod cut;

use std::collections::{BTreeMap, BTreeSet};

use crate::coupling::GroupId;
use crate::onnx::OnnxError;

/// What is removed: channels (numbers below the group's width) by group.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Cut {
    pub removed: BTreeMap<GroupId, BTreeSet<usize>>,
}

/// Why a cut was not carried out. The model is as it was.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CutError {
    /// The coupling has no such group.
    #[error("there is no {0} in this model's coupling")]
    UnknownGroup(GroupId),
    /// The group has fewer channels.
    #[error("group {group:?} has {width} channels and no channel {channel}")]
    UnknownChannel { group: String, channel: usize, width: usize },
    /// Nothing of the group would stay.
    #[error("the cut removes all {width} channels of group {group:?}; one at least must stay")]
    Emptied { group: String, width: usize },
    /// The coupling was made from another model.
    #[error("the coupling does not fit the model: {0}")]
    Mismatch(String),
    /// The result is not what the cut asked for: a defect of this program; the model was not changed.
    #[error("the cut model is not what was asked for: {0}")]
    Postcondition(String),
    /// The edited graph was refused.
    #[error("the edited graph was refused")]
    Onnx(#[from] OnnxError),
}
//! Graph and cut → new graph, refit, pre- and postconditions.

pub mod refit;
pub mod repair;
