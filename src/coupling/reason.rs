//! Why channels may not be cut: data for reports, not log lines.

/// What holds a channel. `node` is the node's label, `op` its operator type.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Reason {
    /// Callers give the value in its full size.
    #[error("it is graph input {value:?}")]
    GraphInput { value: String },
    /// Callers expect the value in its full size.
    #[error("it is graph output {value:?}")]
    GraphOutput { value: String },
    /// The operator is not one whose index maps are known.
    #[error("operator {op} of node {node:?} is not one whose channels can be followed")]
    UnknownOperator { node: String, op: String },
    /// Control flow: a body reads or writes the value.
    #[error("control flow {op} of node {node:?} reads or writes it")]
    ControlFlow { node: String, op: String },
    /// Quantised arithmetic: scales and packing depend on all channels.
    #[error("quantised operator {op} of node {node:?} works on it")]
    Quantised { node: String, op: String },
    /// The operator's result at one index depends on all of them (softmax, normalisation, kernels, sums).
    #[error("{op} of node {node:?} works along the axis: each result depends on all of it")]
    Mixed { node: String, op: String },
    /// A dimension or an argument that decides the index map is known only at run time.
    #[error("{op} of node {node:?} has a size or an argument that is only known at run time")]
    Dynamic { node: String, op: String },
    /// The indices move in a way that no cut of whole indices follows.
    #[error("{op} of node {node:?} moves it in a way that no cut follows")]
    Layout { node: String, op: String },
    /// The graph computes with the number of channels itself.
    #[error("{op} of node {node:?} computes with its size")]
    SizeRead { node: String, op: String },
    /// A constant that names the size is shared or computed, so that it cannot be changed for one reader.
    #[error("{op} of node {node:?} takes its size from {constant:?}, which others read as well")]
    SizeShared { node: String, op: String, constant: String },
    /// All channels are tied together: none can go alone.
    #[error("its channels are all tied to each other")]
    Indivisible,
    /// The axis, or the model's axes together, are longer than the program follows.
    #[error("it is longer than the limit of {limit} channels")]
    TooLarge { limit: usize },
}
