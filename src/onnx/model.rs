//! A decoded model: the protobuf message, its external data, and the bytes of every tensor.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use buffa::{Message, Rope};
use bytes::Bytes;

use super::check::check_model;
use super::proto::tensor_proto::DataLocation;
use super::proto::{GraphProto, ModelProto, StringStringEntryProto, TensorProto};
use super::walk::{visit_tensors, visit_tensors_mut};
use super::{DType, OnnxError, external, wire};
use crate::limits;
use crate::units::Digest;

/// A model as it stands in its file. Cloning is cheap: weights are shared slices of the file's buffer.
#[derive(Debug, Clone)]
pub struct Model {
    proto: ModelProto,
    /// Contents of the external data files, by the location that the tensors name.
    external: BTreeMap<String, Bytes>,
    /// The file that it was decoded from; `None` for one that was edited.
    file: Option<Bytes>,
}

/// A model as it is to be written: the ONNX file and, where the model keeps weights outside, the
/// chunks of its one data file.
#[derive(Debug)]
pub struct Encoded {
    /// Contents of the ONNX file in order, to be written without joining them first: what was not edited are
    /// slices of the file that the model came from.
    pub main: Vec<Bytes>,
    /// Name of the data file and its contents in order.
    pub data: Option<(String, Vec<Bytes>)>,
}

impl Model {
    /// Decodes an ONNX file. Weights are not copied: they are slices of `file` (a memory map wrapped by
    /// `Bytes::from_owner` stays a map). External data is attached afterwards, see [`Model::attach`].
    ///
    /// # Errors
    /// Where the bytes are no ONNX file, are truncated, exceed the limits, or describe a graph that is
    /// not in topological order or writes a value twice.
    pub fn decode(file: Bytes) -> Result<Self, OnnxError> {
        let size = file.len() as u64;
        if size > limits::MODEL_FILE_BYTES {
            let what = "the model file".to_owned();
            return Err(OnnxError::TooLarge { what, size, limit: limits::MODEL_FILE_BYTES });
        }
        let proto = ModelProto::decode(&mut file.clone()).map_err(|error| OnnxError::NotOnnx {
            bytes: file.len(),
            offset: wire::broken_at(&file),
            reason: error.to_string(),
        })?;
        Ok(Self { file: Some(file), ..Self::from_proto(proto)? })
    }

    /// Wraps a message after the same checks as [`Model::decode`].
    ///
    /// # Errors
    /// As [`Model::decode`].
    pub fn from_proto(proto: ModelProto) -> Result<Self, OnnxError> {
        check_model(&proto)?;
        Ok(Self { proto, external: BTreeMap::new(), file: None })
    }

    /// The same external data under another message (the result of an edit of this model).
    pub(super) fn with_proto(&self, proto: ModelProto) -> Result<Self, OnnxError> {
        check_model(&proto)?;
        Ok(Self { proto, external: self.external.clone(), file: None })
    }

    /// The message.
    pub fn proto(&self) -> &ModelProto {
        &self.proto
    }

    /// The main graph.
    pub fn graph(&self) -> &GraphProto {
        &self.proto.graph
    }

    /// Version of the default operator set; 1 where the file does not say.
    pub fn opset(&self) -> i64 {
        let default = |domain: &str| domain.is_empty() || domain == "ai.onnx";
        self.proto
            .opset_import
            .iter()
            .find(|import| default(import.domain.as_deref().unwrap_or_default()))
            .and_then(|import| import.version)
            .unwrap_or(1)
    }

    /// The relative paths of all external data files that the model names.
    ///
    /// # Errors
    /// Where a tensor names an absolute path or one that leaves the model's folder.
    pub fn external_files(&self) -> Result<BTreeSet<String>, OnnxError> {
        let mut files = BTreeSet::new();
        let mut problem = None;
        visit_tensors(&self.proto, &mut |tensor| {
            match external::place(tensor) {
                Ok(Some(place)) => drop(files.insert(place.location)),
                Ok(None) => {}
                Err(error) => drop(problem.get_or_insert(error)),
            };
        });
        problem.map_or(Ok(files), Err)
    }

    /// Gives the model the contents of the external data file at `location`.
    ///
    /// # Errors
    /// Where a tensor's place lies outside `contents`, or its length is not what its shape needs.
    pub fn attach(&mut self, location: &str, contents: Bytes) -> Result<(), OnnxError> {
        self.external.insert(location.to_owned(), contents);
        let mut problem = None;
        visit_tensors(&self.proto, &mut |tensor| {
            let here =
                matches!(external::place(tensor), Ok(Some(place)) if place.location == location);
            if here && let Err(error) = self.tensor_bytes(tensor) {
                problem.get_or_insert(error);
            }
        });
        problem.map_or(Ok(()), Err)
    }

    /// The little-endian elements of one of this model's tensors, wherever they stand: raw data, typed
    /// fields (those are copied), or an attached external file.
    ///
    /// # Errors
    /// Where the external file was not attached or is too short, or the size contradicts the shape.
    pub fn tensor_bytes(&self, tensor: &TensorProto) -> Result<Bytes, OnnxError> {
        let bytes = match external::place(tensor)? {
            None => inline_bytes(tensor),
            Some(place) => {
                let absent = |problem: String| OnnxError::ExternalData {
                    tensor: tensor.name.clone().unwrap_or_default(),
                    location: place.location.clone(),
                    problem,
                };
                let file = self
                    .external
                    .get(&place.location)
                    .ok_or_else(|| absent("was not found beside the model".to_owned()))?;
                place.slice(file).map_err(absent)?
            }
        };
        super::check::check_size(tensor, bytes.len() as u64)?;
        Ok(bytes)
    }

    /// The file's bytes again. A model without external data and without edits comes out as it came in.
    /// Tensors with external data are laid out one after the other in a single file named `data_file`.
    ///
    /// # Errors
    /// Where external data is missing or the message exceeds protobuf's 2 GiB.
    pub fn encode(&self, data_file: &str) -> Result<Encoded, OnnxError> {
        if self.external_files()?.is_empty() {
            return Ok(Encoded { main: chunks(&self.proto)?, data: None });
        }
        let mut proto = self.proto.clone();
        let mut layout = external::Layout::new(data_file);
        self.replace_external(&mut proto, |tensor, bytes| layout.place(tensor, bytes))?;
        let main = chunks(&proto)?;
        Ok(Encoded { main, data: Some((data_file.to_owned(), layout.into_chunks())) })
    }

    /// The whole model in one message with every weight inside, for loading from memory.
    ///
    /// # Errors
    /// Where external data is missing or the message exceeds protobuf's 2 GiB.
    pub fn encode_inline(&self) -> Result<Vec<u8>, OnnxError> {
        let proto = self.inlined()?;
        proto.try_encode_to_vec().map_err(|_| too_large(&proto))
    }

    /// As [`Model::encode_inline`]; nothing is copied where the model stands in its file as it is.
    ///
    /// # Errors
    /// As [`Model::encode_inline`].
    pub fn inline(&self) -> Result<Bytes, OnnxError> {
        match &self.file {
            Some(file) if self.external_files()?.is_empty() => Ok(file.clone()),
            Some(_) | None => self.encode_inline().map(Bytes::from),
        }
    }

    /// Bytes of the whole model in one message, see [`Model::encode_inline`].
    ///
    /// # Errors
    /// As [`Model::encode_inline`].
    pub fn inline_size(&self) -> Result<u64, OnnxError> {
        let proto = self.inlined()?;
        proto.try_encoded_len().map(u64::from).map_err(|_| too_large(&proto))
    }

    /// The message with every weight inside.
    fn inlined(&self) -> Result<Cow<'_, ModelProto>, OnnxError> {
        if self.external_files()?.is_empty() {
            return Ok(Cow::Borrowed(&self.proto));
        }
        let mut proto = self.proto.clone();
        self.replace_external(&mut proto, |tensor, bytes| {
            tensor.external_data.clear();
            tensor.data_location = None;
            tensor.raw_data = Some(bytes);
        })?;
        Ok(Cow::Owned(proto))
    }

    fn replace_external(
        &self,
        proto: &mut ModelProto,
        mut replace: impl FnMut(&mut TensorProto, Bytes),
    ) -> Result<(), OnnxError> {
        let mut problem = None;
        visit_tensors_mut(proto, &mut |tensor| {
            if tensor.data_location != Some(DataLocation::EXTERNAL) {
                return;
            }
            match self.tensor_bytes(tensor) {
                Ok(bytes) => replace(tensor, bytes),
                Err(error) => drop(problem.get_or_insert(error)),
            }
        });
        problem.map_or(Ok(()), Err)
    }

    /// A digest of the message and of the elements of all tensors, wherever they stand.
    ///
    /// # Errors
    /// Where external data is missing or the message exceeds protobuf's 2 GiB.
    pub fn digest(&self) -> Result<Digest, OnnxError> {
        self.digest_by(&mut |tensor| Ok(Digest::of(&self.tensor_bytes(tensor)?)))
    }

    /// The digest from those of the large tensors' elements, which `of` gives: BLAKE3 of the message without
    /// them, followed by theirs in the order of the message.
    pub(super) fn digest_by<'m>(
        &'m self,
        of: &mut dyn FnMut(&'m TensorProto) -> Result<Digest, OnnxError>,
    ) -> Result<Digest, OnnxError> {
        let mut elements: Result<Vec<Digest>, OnnxError> = Ok(Vec::new());
        visit_tensors(&self.proto, &mut |tensor| {
            if is_large(tensor)
                && let Ok(found) = &mut elements
            {
                match of(tensor) {
                    Ok(digest) => found.push(digest),
                    Err(error) => elements = Err(error),
                }
            }
        });
        let mut proto = self.proto.clone();
        visit_tensors_mut(&mut proto, &mut |tensor| {
            if is_large(tensor) {
                tensor.raw_data = None;
            }
        });
        let mut hasher = blake3::Hasher::new_derive_key("blochd model");
        let chunks = chunks(&proto)?;
        let length: usize = chunks.iter().map(Bytes::len).sum();
        hasher.update(&(length as u64).to_le_bytes());
        for chunk in chunks {
            hasher.update(&chunk);
        }
        for digest in elements? {
            hasher.update(digest.as_bytes());
        }
        Ok(Digest::from_bytes(*hasher.finalize().as_bytes()))
    }
}

/// Whether the elements of a tensor are hashed apart from the message: those outside of it, and those that are
/// more than their digest.
fn is_large(tensor: &TensorProto) -> bool {
    tensor.data_location == Some(DataLocation::EXTERNAL)
        || tensor.raw_data.as_ref().is_some_and(|raw| raw.len() >= limits::SHARED_BYTES)
}

/// A new tensor with raw data, named `name`. `dims.product() * dtype.size()` bytes.
pub fn tensor(name: &str, dtype: DType, dims: &[usize], raw: impl Into<Bytes>) -> TensorProto {
    TensorProto {
        name: Some(name.to_owned()),
        data_type: Some(dtype as i32),
        dims: dims.iter().map(|dim| *dim as i64).collect(),
        raw_data: Some(raw.into()),
        ..Default::default()
    }
}

/// A key and its value as ONNX's metadata carries them.
pub fn entry(key: &str, value: impl ToString) -> StringStringEntryProto {
    StringStringEntryProto {
        key: Some(key.to_owned()),
        value: Some(value.to_string()),
        ..Default::default()
    }
}

/// A message's bytes in order; tensors are shared, not copied.
fn chunks(proto: &ModelProto) -> Result<Vec<Bytes>, OnnxError> {
    let mut rope = Rope::new();
    proto.try_encode(&mut rope).map_err(|_| too_large(proto))?;
    Ok(rope.into_segments())
}

fn too_large(proto: &ModelProto) -> OnnxError {
    let mut size = 0;
    visit_tensors(proto, &mut |tensor| size += tensor.raw_data.as_ref().map_or(0, Bytes::len));
    OnnxError::TooLarge {
        what: "the model without external data".to_owned(),
        size: size as u64,
        limit: limits::MODEL_FILE_BYTES,
    }
}

/// Elements of a tensor that stand in the message itself: raw, or in the field of their type (ONNX packs
/// the small types into `int32_data`).
fn inline_bytes(tensor: &TensorProto) -> Bytes {
    if let Some(raw) = &tensor.raw_data {
        return raw.clone();
    }
    let dtype = tensor.data_type.and_then(DType::from_onnx);
    let bytes: Vec<u8> = match dtype {
        Some(DType::F32) => tensor.float_data.iter().flat_map(|v| v.to_le_bytes()).collect(),
        Some(DType::F64) => tensor.double_data.iter().flat_map(|v| v.to_le_bytes()).collect(),
        Some(DType::I64) => tensor.int64_data.iter().flat_map(|v| v.to_le_bytes()).collect(),
        Some(DType::U64) => tensor.uint64_data.iter().flat_map(|v| v.to_le_bytes()).collect(),
        Some(DType::U32) => {
            tensor.uint64_data.iter().flat_map(|v| (*v as u32).to_le_bytes()).collect()
        }
        Some(dtype) => {
            let size = dtype.size().unwrap_or_default();
            tensor.int32_data.iter().flat_map(|v| v.to_le_bytes().into_iter().take(size)).collect()
        }
        None => Vec::new(),
    };
    bytes.into()
}
