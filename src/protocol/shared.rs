//! Tensors that lie in shared memory: what a request says of them, and how they come into it. The room
//! reads no memory: the caller does, for every range that is asked for, and the bytes are checked here as
//! those of a body are.

use bytes::Bytes;

use super::check::Expected;
use super::error::RequestError;
use super::request::InferRequest;

/// Bytes of a registered region.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SharedRange {
    /// Name under which the region was registered.
    pub region: String,
    /// Bytes from the region's beginning.
    pub offset: u64,
    /// Bytes; of an output, at most.
    pub size: u64,
}

/// An input that is still to be read out of shared memory.
#[derive(Debug, Clone, PartialEq)]
pub struct SharedInput {
    pub range: SharedRange,
    /// Which of the request's inputs.
    pub(super) at: usize,
    pub(super) expected: Expected,
}

/// The three parameters of a tensor that lies in shared memory, as far as they were given.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct SharedParameters {
    pub region: Option<String>,
    pub offset: Option<u64>,
    pub size: Option<u64>,
}

impl SharedParameters {
    /// The range that they name; `None` where they name no region.
    pub fn range(self, tensor: &str) -> Result<Option<SharedRange>, RequestError> {
        let Some(region) = self.region else { return Ok(None) };
        let offset = self.offset.unwrap_or(0);
        let size = self.size.ok_or_else(|| RequestError::SharedSize { tensor: tensor.to_owned() });
        Ok(Some(SharedRange { region, offset, size: size? }))
    }
}

impl SharedInput {
    /// An input whose claimed size fits its shape.
    pub(super) fn new(
        input: &str,
        range: SharedRange,
        at: usize,
        expected: Expected,
    ) -> Result<Self, RequestError> {
        // A size beyond the address space is no tensor's.
        expected.size(input, usize::try_from(range.size).unwrap_or(usize::MAX))?;
        Ok(Self { range, at, expected })
    }
}

impl InferRequest {
    /// Bytes that [`InferRequest::read_shared`] will ask for.
    pub fn shared_bytes(&self) -> u64 {
        self.shared.iter().fold(0, |sum, input| sum.saturating_add(input.range.size))
    }

    /// Reads the inputs that lie in shared memory; `read` gives the bytes of a range, all of them.
    ///
    /// # Errors
    /// What `read` says, and where the bytes are not the elements of the tensor.
    pub fn read_shared<E: From<RequestError>>(
        &mut self,
        mut read: impl FnMut(&SharedRange) -> Result<Bytes, E>,
    ) -> Result<(), E> {
        for input in std::mem::take(&mut self.shared) {
            let data = read(&input.range)?;
            if let Some((name, tensor)) = self.inputs.get_mut(input.at) {
                input.expected.elements(name, &data)?;
                tensor.data = data;
            }
        }
        Ok(())
    }
}
