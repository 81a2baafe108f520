//! Why an operator has no spectrum.

/// Why no spectrum could be computed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpectraError {
    /// A weight is NaN or infinite: there is no singular value.
    #[error(
        "a weight is NaN or infinite; the model is damaged or was exported after training diverged"
    )]
    NotFinite,
    /// The small side is above the program's bound.
    #[error(
        "the matrix is {} × {}: its smaller side is above the limit of {limit}, whose eigenvalues \
         take minutes",
        shape.0, shape.1
    )]
    TooLarge { shape: (usize, usize), limit: usize },
    /// The eigenvalue iteration did not end, which exact arithmetic excludes.
    #[error("the eigenvalue iteration did not converge")]
    NoConvergence,
    /// The constant could not be read.
    #[error("{0}")]
    Weight(#[from] crate::onnx::OnnxError),
}
