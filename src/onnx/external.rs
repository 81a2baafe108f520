//! Where a tensor's data lies outside the ONNX file, and what such a place may be. The rules follow the
//! ONNX specification ("External data"): a relative POSIX path below the model's folder.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use bytes::Bytes;

use super::OnnxError;
use super::model::entry;
use super::proto::TensorProto;
use super::proto::tensor_proto::DataLocation;

/// Start of each tensor in a data file is a multiple of this, so that it can be mapped and loaded with
/// aligned instructions.
const ALIGNMENT: usize = 64;

/// One tensor's place in an external file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    /// Path relative to the model's folder.
    pub location: String,
    offset: u64,
    length: Option<u64>,
}

impl Place {
    /// The tensor's bytes out of its file, or what is wrong with the place.
    pub fn slice(&self, file: &Bytes) -> Result<Bytes, String> {
        let size = file.len() as u64;
        let length = self.length.unwrap_or(size.saturating_sub(self.offset));
        let end = self.offset.checked_add(length).filter(|end| *end <= size);
        let Some(end) = end else {
            return Err(format!(
                "has {size} bytes, but {length} were expected from offset {}",
                self.offset
            ));
        };
        Ok(file.slice(self.offset as usize..end as usize))
    }
}

/// The place of a tensor's data; `None` where it stands in the message.
///
/// # Errors
/// Where the location is not a plain path below the model's folder, or a number is not one.
pub(super) fn place(tensor: &TensorProto) -> Result<Option<Place>, OnnxError> {
    if tensor.data_location != Some(DataLocation::EXTERNAL) {
        return Ok(None);
    }
    let name = || tensor.name.clone().unwrap_or_default();
    let value = |key: &str| {
        let found = tensor.external_data.iter().find(|e| e.key.as_deref() == Some(key));
        found.and_then(|entry| entry.value.clone())
    };
    let location = value("location").unwrap_or_default();
    if !is_plain_relative(&location) {
        return Err(OnnxError::ExternalPath { tensor: name(), location });
    }
    let number = |key: &str| match value(key) {
        None => Ok(None),
        Some(text) => text.parse::<u64>().map(Some).map_err(|_| OnnxError::ExternalData {
            tensor: name(),
            location: location.clone(),
            problem: format!("has {key} {text:?}, which is not a number of bytes"),
        }),
    };
    let (offset, length) = (number("offset")?.unwrap_or(0), number("length")?);
    Ok(Some(Place { location, offset, length }))
}

/// Whether every component of the path is an ordinary name: no root, no `..`, no drive, no backslash.
fn is_plain_relative(path: &str) -> bool {
    let plain = |part: &str| !part.is_empty() && part != "." && part != "..";
    let path = path.strip_prefix("./").unwrap_or(path);
    !path.contains(['\\', '\0', ':']) && path.split('/').all(plain)
}

/// Lays tensors out in one new data file.
pub(super) struct Layout<'a> {
    file: &'a str,
    size: usize,
    chunks: Vec<Bytes>,
    /// Where the bytes at an address stand already: tensors may be given the same place in a file, and
    /// shall not take two in the next one.
    placed: HashMap<(*const u8, usize), usize>,
}

impl<'a> Layout<'a> {
    pub fn new(file: &'a str) -> Self {
        Self { file, size: 0, chunks: Vec::new(), placed: HashMap::new() }
    }

    /// Appends `bytes` and makes `tensor` point at them. Keys that are not about the place are kept.
    pub fn place(&mut self, tensor: &mut TensorProto, bytes: Bytes) {
        let length = bytes.len();
        let offset = self.offset(bytes);
        let about_place = ["location", "offset", "length", "checksum"];
        tensor
            .external_data
            .retain(|entry| !about_place.contains(&entry.key.as_deref().unwrap_or_default()));
        tensor.external_data.extend([
            entry("location", self.file),
            entry("offset", offset),
            entry("length", length),
        ]);
    }

    /// Where the bytes stand, appended if they do not yet. The chunks keep them alive, so that an address
    /// means the same bytes for as long as this lives.
    fn offset(&mut self, bytes: Bytes) -> usize {
        let length = bytes.len();
        let next = self.size.next_multiple_of(ALIGNMENT);
        match self.placed.entry((bytes.as_ptr(), length)) {
            Entry::Occupied(there) => *there.get(),
            Entry::Vacant(free) => {
                self.chunks.push(Bytes::from(vec![0; next - self.size]));
                self.chunks.push(bytes);
                self.size = next + length;
                *free.insert(next)
            }
        }
    }

    pub fn into_chunks(self) -> Vec<Bytes> {
        self.chunks
    }
}

#[cfg(test)]
mod tests {
    use super::is_plain_relative;

    #[test]
    fn only_plain_paths_below_the_model_are_locations() {
        for good in ["weights.bin", "data/weights.bin", "./w", "a..b"] {
            assert!(is_plain_relative(good), "{good:?}");
        }
        for bad in ["", "/etc/passwd", "../w", "a/../../w", "a//b", "c:\\w", "a\\..\\b", ".", ".."]
        {
            assert!(!is_plain_relative(bad), "{bad:?}");
        }
    }
}
