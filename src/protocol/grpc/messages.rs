//! The small answers, made of what the other rooms and the REST front say.

use crate::protocol::metadata::{self, unsupported};
use crate::protocol::signature::{Signature, TensorSpec, datatype};

use super::proto::inference as proto;

impl From<metadata::ServerMetadata> for proto::ServerMetadataResponse {
    fn from(server: metadata::ServerMetadata) -> Self {
        Self {
            name: server.name.to_owned(),
            version: server.version.to_owned(),
            extensions: server.extensions.iter().map(|word| (*word).to_owned()).collect(),
        }
    }
}

impl From<metadata::ModelMetadata> for proto::ModelMetadataResponse {
    fn from(model: metadata::ModelMetadata) -> Self {
        use proto::model_metadata_response::TensorMetadata;
        let tensor = |tensor: metadata::TensorMetadata| TensorMetadata {
            name: tensor.name,
            datatype: tensor.datatype.to_owned(),
            shape: tensor.shape,
        };
        Self {
            name: model.name,
            versions: model.versions,
            platform: model.platform.to_owned(),
            inputs: model.inputs.into_iter().map(tensor).collect(),
            outputs: model.outputs.into_iter().map(tensor).collect(),
        }
    }
}

/// The part of Triton's configuration that clients read, of a model served by `instances` sessions.
pub fn model_config(
    model: &str,
    signature: &Signature,
    instances: usize,
) -> proto::ModelConfigResponse {
    use proto::model_version_policy::{Latest, PolicyChoice};
    let input = |spec: &TensorSpec| proto::ModelInput {
        name: spec.name.clone(),
        data_type: data_type(spec).into(),
        dims: spec.dims(),
    };
    let output = |spec: &TensorSpec| proto::ModelOutput {
        name: spec.name.clone(),
        data_type: data_type(spec).into(),
        dims: spec.dims(),
    };
    let latest = PolicyChoice::Latest(Box::new(Latest { num_versions: 1 }));
    let config = proto::ModelConfig {
        name: model.to_owned(),
        platform: metadata::PLATFORM.to_owned(),
        backend: metadata::BACKEND.to_owned(),
        version_policy: proto::ModelVersionPolicy { policy_choice: Some(latest) }.into(),
        max_batch_size: 0,
        input: signature.inputs.iter().map(input).collect(),
        output: signature.outputs.iter().map(output).collect(),
        instance_group: vec![proto::ModelInstanceGroup {
            name: model.to_owned(),
            count: i32::try_from(instances).unwrap_or(i32::MAX),
            kind: proto::model_instance_group::Kind::KIND_AUTO.into(),
        }],
        default_model_filename: metadata::MODEL_FILE.to_owned(),
    };
    proto::ModelConfigResponse { config: config.into() }
}

fn data_type(spec: &TensorSpec) -> proto::DataType {
    use proto::DataType;
    match datatype(spec.dtype) {
        "BOOL" => DataType::TYPE_BOOL,
        "UINT8" => DataType::TYPE_UINT8,
        "UINT16" => DataType::TYPE_UINT16,
        "UINT32" => DataType::TYPE_UINT32,
        "UINT64" => DataType::TYPE_UINT64,
        "INT8" => DataType::TYPE_INT8,
        "INT16" => DataType::TYPE_INT16,
        "INT32" => DataType::TYPE_INT32,
        "INT64" => DataType::TYPE_INT64,
        "FP16" => DataType::TYPE_FP16,
        "FP32" => DataType::TYPE_FP32,
        "FP64" => DataType::TYPE_FP64,
        "BF16" => DataType::TYPE_BF16,
        _ => DataType::TYPE_STRING,
    }
}

impl From<metadata::ModelStats> for proto::ModelStatistics {
    fn from(stats: metadata::ModelStats) -> Self {
        let metadata::InferenceStats {
            success,
            fail,
            queue,
            compute_input,
            compute_infer,
            compute_output,
            cache_hit,
            cache_miss,
        } = stats.inference_stats;
        let time = |time: metadata::Duration| {
            proto::StatisticDuration { count: time.count, ns: time.ns }.into()
        };
        let sums = proto::InferStatistics {
            success: time(success),
            fail: time(fail),
            queue: time(queue),
            compute_input: time(compute_input),
            compute_infer: time(compute_infer),
            compute_output: time(compute_output),
            cache_hit: time(cache_hit),
            cache_miss: time(cache_miss),
        };
        let batch = |batch: metadata::BatchStats| proto::InferBatchStatistics {
            batch_size: batch.batch_size,
            compute_input: time(batch.compute_input),
            compute_infer: time(batch.compute_infer),
            compute_output: time(batch.compute_output),
        };
        Self {
            name: stats.name,
            version: stats.version,
            last_inference: stats.last_inference,
            inference_count: stats.inference_count,
            execution_count: stats.execution_count,
            inference_stats: sums.into(),
            batch_stats: stats.batch_stats.into_iter().map(batch).collect(),
        }
    }
}

impl From<metadata::IndexLine> for proto::repository_index_response::ModelIndex {
    fn from(line: metadata::IndexLine) -> Self {
        let metadata::IndexLine { name, version, state, reason } = line;
        Self { name, version, state: state.to_owned(), reason }
    }
}

impl From<metadata::RegionStatus> for proto::system_shared_memory_status_response::RegionStatus {
    fn from(region: metadata::RegionStatus) -> Self {
        let metadata::RegionStatus { name, key, offset, byte_size } = region;
        Self { name, key, offset, byte_size }
    }
}

/// The first parameter that the server cannot honour; see
/// [`RepositoryRequest::unsupported`](crate::protocol::RepositoryRequest::unsupported).
pub fn unsupported_load(request: &proto::RepositoryModelLoadRequest) -> Option<&str> {
    unsupported(request.parameters.keys())
}

/// As [`unsupported_load`].
pub fn unsupported_unload(request: &proto::RepositoryModelUnloadRequest) -> Option<&str> {
    unsupported(request.parameters.keys())
}
