//! The calls that need no more than a look, and those of the repository and of shared memory.

use std::sync::Arc;

use axum::body::Bytes;
use axum::http::StatusCode;
use axum::response::Response;

use crate::protocol::grpc::frame::{self, PREFIX};
use crate::protocol::grpc::proto::inference as proto;
use crate::protocol::grpc::{Message, model_config, unsupported_load, unsupported_unload};
use crate::protocol::{ModelMetadata, RegisterRequest, ServerMetadata};
use crate::shell::serve::App;
use crate::shell::serve::reply::Failed;
use crate::shell::serve::routes::{
    commanded, index_lines, model_stats, stats_slots, unsupported_parameter, version_of,
};
use crate::shell::slot::Slot;

use super::messages::Messages;
use super::{Caller, reply};

pub(super) type Reply = Result<Response, Failed>;

/// A call of the inference service other than inference itself.
pub(super) async fn inference(
    app: &App,
    caller: &Caller,
    name: &str,
    messages: &mut Messages,
) -> Reply {
    match name {
        "ServerLive" => {
            let _: proto::ServerLiveRequest = asked(messages).await?;
            answered(&proto::ServerLiveResponse { live: true })
        }
        "ServerReady" => {
            let _: proto::ServerReadyRequest = asked(messages).await?;
            answered(&proto::ServerReadyResponse { ready: app.repository.is_ready() })
        }
        "ServerMetadata" => {
            let _: proto::ServerMetadataRequest = asked(messages).await?;
            let metadata = ServerMetadata::this(app.shares_memory());
            answered(&proto::ServerMetadataResponse::from(metadata))
        }
        "ModelReady" => answered(&model_ready(app, &asked(messages).await?)?),
        "ModelMetadata" => answered(&model_metadata(app, &asked(messages).await?)?),
        "ModelConfig" => {
            let request: proto::ModelConfigRequest = asked(messages).await?;
            let slot = slot(app, &request.name, &request.version)?;
            let instances = slot.current().instances();
            answered(&model_config(slot.model(), slot.signature(), instances))
        }
        "ModelStatistics" => answered(&statistics(app, &asked(messages).await?)?),
        "RepositoryIndex" => {
            let request: proto::RepositoryIndexRequest = asked(messages).await?;
            let lines = index_lines(app, request.ready).into_iter();
            answered(&proto::RepositoryIndexResponse { models: lines.map(Into::into).collect() })
        }
        "RepositoryModelLoad" => {
            let request: proto::RepositoryModelLoadRequest = asked(messages).await?;
            unsupported_parameter(unsupported_load(&request))?;
            commanded(app.repository.load(&request.model_name)).await?;
            answered(&proto::RepositoryModelLoadResponse::default())
        }
        "RepositoryModelUnload" => {
            let request: proto::RepositoryModelUnloadRequest = asked(messages).await?;
            unsupported_parameter(unsupported_unload(&request))?;
            commanded(app.repository.unload(&request.model_name)).await?;
            answered(&proto::RepositoryModelUnloadResponse::default())
        }
        _ => memory(app, caller, name, messages).await,
    }
}

/// A call of the shared memory extensions.
async fn memory(app: &App, caller: &Caller, name: &str, messages: &mut Messages) -> Reply {
    match name {
        "SystemSharedMemoryStatus" => {
            let request: proto::SystemSharedMemoryStatusRequest = asked(messages).await?;
            let regions = app.regions(caller.local)?.status(named(&request.name))?.into_iter();
            let regions = regions.map(|region| (region.name.clone(), region.into())).collect();
            answered(&proto::SystemSharedMemoryStatusResponse { regions })
        }
        "SystemSharedMemoryRegister" => {
            let request: proto::SystemSharedMemoryRegisterRequest = asked(messages).await?;
            let proto::SystemSharedMemoryRegisterRequest { name, key, offset, byte_size, .. } =
                request;
            let range = RegisterRequest { key, offset, byte_size };
            app.regions(caller.local)?.register(&name, range)?;
            answered(&proto::SystemSharedMemoryRegisterResponse::default())
        }
        "SystemSharedMemoryUnregister" => {
            let request: proto::SystemSharedMemoryUnregisterRequest = asked(messages).await?;
            app.regions(caller.local)?.unregister(named(&request.name));
            answered(&proto::SystemSharedMemoryUnregisterResponse::default())
        }
        // Clients begin and end by forgetting all regions of either kind, whichever they use; the messages are
        // those of the system's. Of CUDA's there is nothing to forget.
        "CudaSharedMemoryUnregister" => {
            let _: proto::SystemSharedMemoryUnregisterRequest = asked(messages).await?;
            app.regions(caller.local)?;
            answered(&proto::SystemSharedMemoryUnregisterResponse::default())
        }
        "CudaSharedMemoryStatus" | "CudaSharedMemoryRegister" => {
            Err(not_here("CUDA shared memory is not supported: no model runs on a CUDA device"))
        }
        _ => Err(not_here(&format!("there is no call {name}"))),
    }
}

pub(super) fn not_here(error: &str) -> Failed {
    Failed::new(StatusCode::NOT_IMPLEMENTED, error)
}

/// The request of a call that has one.
pub(super) async fn asked<M: Message>(messages: &mut Messages) -> Result<M, Failed> {
    let message = messages.only().await?;
    M::decode_from_slice(&message.bytes).map_err(|error| {
        Failed::bad_request(format!("failed to parse the request message: {error}"))
    })
}

pub(super) fn answered(answer: &impl Message) -> Reply {
    Ok(reply::answered(vec![framed(answer)?]))
}

/// A message with its prefix.
pub(super) fn framed(answer: &impl Message) -> Result<Bytes, Failed> {
    let mut message = vec![0; PREFIX];
    answer.try_encode(&mut message).map_err(|error| internal(&error.to_string()))?;
    let prefix = frame::prefix(message.len() - PREFIX);
    let prefix = prefix.ok_or_else(|| internal("the answer is too long for a message"))?;
    message[..PREFIX].copy_from_slice(&prefix);
    Ok(message.into())
}

fn internal(error: &str) -> Failed {
    Failed::new(StatusCode::INTERNAL_SERVER_ERROR, error)
}

fn named(name: &str) -> Option<&str> {
    Some(name).filter(|name| !name.is_empty())
}

fn slot(app: &App, model: &str, version: &str) -> Result<Arc<Slot>, Failed> {
    Ok(app.repository.find(model, version_of(version)?)?)
}

fn model_ready(
    app: &App,
    request: &proto::ModelReadyRequest,
) -> Result<proto::ModelReadyResponse, Failed> {
    // As Triton has it: what is unknown is not ready either.
    let ready = app.repository.find(&request.name, version_of(&request.version)?).is_ok();
    Ok(proto::ModelReadyResponse { ready })
}

fn model_metadata(
    app: &App,
    request: &proto::ModelMetadataRequest,
) -> Result<proto::ModelMetadataResponse, Failed> {
    let slot = slot(app, &request.name, &request.version)?;
    let versions = match named(&request.version) {
        Some(_) => vec![slot.version()],
        None => app.repository.ready_versions(slot.model()),
    };
    Ok(ModelMetadata::of(slot.model(), &versions, slot.signature()).into())
}

fn statistics(
    app: &App,
    request: &proto::ModelStatisticsRequest,
) -> Result<proto::ModelStatisticsResponse, Failed> {
    let slots = match named(&request.name) {
        None => app.repository.slots(),
        Some(model) => stats_slots(app, model, version_of(&request.version)?)?,
    };
    let model_stats = slots.iter().map(|slot| model_stats(slot).into()).collect();
    Ok(proto::ModelStatisticsResponse { model_stats })
}
