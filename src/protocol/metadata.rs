//! The small JSON objects of the protocol: metadata, index, configuration, statistics, errors.

use std::collections::BTreeMap;

use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

use crate::units::Version;

use super::signature::{Signature, TensorSpec, datatype};

/// Extensions that the server has, in the protocol's words; the last one only where it is switched on.
const EXTENSIONS: [&str; 6] = [
    "binary_tensor_data",
    "model_configuration",
    "model_repository",
    "model_repository(unload_dependents)",
    "statistics",
    "system_shared_memory",
];

/// Answer of every failed call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    pub error: String,
}

/// Answer of `GET /v2`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ServerMetadata {
    pub name: &'static str,
    pub version: &'static str,
    pub extensions: &'static [&'static str],
}

impl ServerMetadata {
    /// This program's, with or without shared memory.
    pub fn this(shared_memory: bool) -> Self {
        let extensions = if shared_memory { &EXTENSIONS[..] } else { &EXTENSIONS[..5] };
        Self { name: "blochd", version: env!("CARGO_PKG_VERSION"), extensions }
    }
}

/// Answer of the readiness calls of server and model; the status code says the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ReadyBody {
    pub ready: bool,
}

/// Name, type and shape of an input or output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TensorMetadata {
    pub name: String,
    pub datatype: &'static str,
    pub shape: Vec<i64>,
}

impl TensorMetadata {
    fn of(spec: &TensorSpec) -> Self {
        let datatype = datatype(spec.dtype);
        Self { name: spec.name.clone(), datatype, shape: spec.dims() }
    }
}

/// Answer of `GET /v2/models/<model>`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ModelMetadata {
    pub name: String,
    pub versions: Vec<String>,
    pub platform: &'static str,
    pub inputs: Vec<TensorMetadata>,
    pub outputs: Vec<TensorMetadata>,
}

/// What Triton calls a model that ONNX Runtime runs.
pub(super) const PLATFORM: &str = "onnxruntime_onnx";

/// And the backend of it.
pub(super) const BACKEND: &str = "onnxruntime";

/// A version's file.
pub(super) const MODEL_FILE: &str = "model.onnx";

impl ModelMetadata {
    /// Of a model with the versions that are served.
    pub fn of(model: &str, versions: &[Version], signature: &Signature) -> Self {
        Self {
            name: model.to_owned(),
            versions: versions.iter().map(Version::to_string).collect(),
            platform: PLATFORM,
            inputs: signature.inputs.iter().map(TensorMetadata::of).collect(),
            outputs: signature.outputs.iter().map(TensorMetadata::of).collect(),
        }
    }
}

/// Answer of `GET /v2/models/<model>/config`: the part of Triton's configuration that clients read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ModelConfig {
    name: String,
    platform: &'static str,
    backend: &'static str,
    version_policy: BTreeMap<&'static str, BTreeMap<&'static str, u32>>,
    /// 0: the shapes of the metadata are whole shapes, a batch axis included.
    max_batch_size: u32,
    input: Vec<ConfigTensor>,
    output: Vec<ConfigTensor>,
    instance_group: Vec<InstanceGroup>,
    default_model_filename: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct ConfigTensor {
    name: String,
    data_type: String,
    dims: Vec<i64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct InstanceGroup {
    name: String,
    kind: &'static str,
    count: usize,
}

impl ModelConfig {
    /// Of a model served by `instances` sessions.
    pub fn of(model: &str, signature: &Signature, instances: usize) -> Self {
        let tensor = |spec: &TensorSpec| {
            let word = match datatype(spec.dtype) {
                "BYTES" => "STRING",
                word => word,
            };
            let data_type = format!("TYPE_{word}");
            ConfigTensor { name: spec.name.clone(), data_type, dims: spec.dims() }
        };
        let group = InstanceGroup { name: model.to_owned(), kind: "KIND_AUTO", count: instances };
        Self {
            name: model.to_owned(),
            platform: PLATFORM,
            backend: BACKEND,
            version_policy: BTreeMap::from([("latest", BTreeMap::from([("num_versions", 1)]))]),
            max_batch_size: 0,
            input: signature.inputs.iter().map(tensor).collect(),
            output: signature.outputs.iter().map(tensor).collect(),
            instance_group: vec![group],
            default_model_filename: MODEL_FILE,
        }
    }
}

/// Body of `POST /v2/repository/index`; an empty body is the default.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct IndexRequest {
    /// List only versions that are ready.
    #[serde(default)]
    pub ready: bool,
}

/// A line of the answer of `POST /v2/repository/index`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct IndexLine {
    pub name: String,
    pub version: String,
    pub state: &'static str,
    pub reason: String,
}

/// Body of `POST /v2/systemsharedmemory/region/<name>/register`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct RegisterRequest {
    /// Name of the shared memory object.
    pub key: String,
    /// Where the region begins in it.
    #[serde(default)]
    pub offset: u64,
    pub byte_size: u64,
}

/// A registered region of shared memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RegionStatus {
    pub name: String,
    pub key: String,
    pub offset: u64,
    pub byte_size: u64,
}

/// Body of a load or unload call; an empty body is the default.
#[derive(Debug, Default, Deserialize)]
pub struct RepositoryRequest {
    #[serde(default)]
    parameters: BTreeMap<String, IgnoredAny>,
}

impl RepositoryRequest {
    /// The first parameter that the server cannot honour: models come from the model directory
    /// alone, neither their files nor their configuration from a client.
    pub fn unsupported(&self) -> Option<&str> {
        unsupported(self.parameters.keys())
    }
}

/// The first of a repository call's parameters that is not taken.
pub(super) fn unsupported<'a>(mut names: impl Iterator<Item = &'a String>) -> Option<&'a str> {
    names.find(|name| *name != "unload_dependents").map(String::as_str)
}

/// Answer of the statistics calls.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StatsBody {
    pub model_stats: Vec<ModelStats>,
}

/// Statistics of one served version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ModelStats {
    pub name: String,
    pub version: String,
    /// Wall clock of the last run, milliseconds since 1970.
    pub last_inference: u64,
    pub inference_count: u64,
    pub execution_count: u64,
    pub inference_stats: InferenceStats,
    /// By the number of requests that a run answered, rising.
    pub batch_stats: Vec<BatchStats>,
}

/// Runs that answered `batch_size` requests each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct BatchStats {
    pub batch_size: u64,
    /// Inputs of several requests put together.
    pub compute_input: Duration,
    pub compute_infer: Duration,
    /// Their outputs taken apart.
    pub compute_output: Duration,
}

/// Sums over requests: a successful one is `compute_input` (its body is read), `queue`, `compute_infer` and
/// `compute_output` (its answer is written), one after another. Each request of a batch is told the time of
/// the whole run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct InferenceStats {
    pub success: Duration,
    pub fail: Duration,
    pub queue: Duration,
    pub compute_input: Duration,
    pub compute_infer: Duration,
    pub compute_output: Duration,
    pub cache_hit: Duration,
    pub cache_miss: Duration,
}

/// A number of events and the nanoseconds they took together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Duration {
    pub count: u64,
    pub ns: u64,
}
