//! gRPC over HTTP/2: the calls of `inference.GRPCInferenceService` and of the health service. Only what carries
//! them stands here; what they mean is the same as over REST.
//!
//! Messages are put together here and not by a framework, so that the memory for one is counted when its
//! length is announced and before its bytes are taken in, and so that tensors are neither copied out of a
//! message nor into an answer.
//!
//! Status codes: `INVALID_ARGUMENT` a request that is wrong; `NOT_FOUND` an unknown model, version or region;
//! `ALREADY_EXISTS` a region's name that is taken; `PERMISSION_DENIED` shared memory from afar;
//! `RESOURCE_EXHAUSTED` a message above the limit; `UNIMPLEMENTED` an unknown call, a compressed message, what
//! is not switched on; `DEADLINE_EXCEEDED` a deadline that has passed or cannot be met; `UNAVAILABLE`, with
//! `grpc-retry-pushback-ms`, a model that is not ready, a full queue or memory, and an agent that stops;
//! `INTERNAL` a model that failed while it ran.

mod calls;
mod health;
mod infer;
mod messages;
mod reply;

use std::time::{Duration, Instant};

use axum::http::{Method, StatusCode};
use axum::response::Response;
use hyper::body::Incoming;

use crate::limits::REPOSITORY_BODY_BYTES;
use crate::protocol::TraceParent;
use crate::protocol::grpc::frame::{self, HEALTH, INFERENCE};

use super::front::{Admitted, Calls};
use super::reply::Failed;
use super::traced;

use messages::{Messages, Patience};

/// What a call says of itself in front of its messages.
struct Caller {
    local: bool,
    /// Whether it may hear of models.
    looks: Result<(), Failed>,
    begun: Instant,
    /// How long it may take from then on.
    timeout: Option<Duration>,
    /// Where it stands in its client's trace; nothing where nobody wants to know.
    parent: Option<TraceParent>,
}

/// Answers one call.
pub(super) async fn call(
    calls: Calls,
    admitted: Result<Admitted, Failed>,
    request: hyper::Request<Incoming>,
) -> Response {
    match admitted {
        Ok(admitted) => answer(calls, admitted, request).await.unwrap_or_else(reply::failed),
        Err(refused) => reply::failed(refused),
    }
}

async fn answer(
    calls: Calls,
    Admitted { local, looks }: Admitted,
    request: hyper::Request<Incoming>,
) -> Result<Response, Failed> {
    let begun = Instant::now();
    let (head, body) = request.into_parts();
    if head.method != Method::POST {
        return Err(Failed::new(StatusCode::METHOD_NOT_ALLOWED, "gRPC's calls are POST requests"));
    }
    let timeout = match head.headers.get("grpc-timeout") {
        None => None,
        Some(text) => {
            let timeout = text.to_str().ok().and_then(frame::timeout);
            Some(timeout.ok_or_else(|| Failed::bad_request("grpc-timeout is no time"))?)
        }
    };
    let parent = calls.app.tracer.as_ref().and_then(|_| traced::parent(&head.headers));
    let caller = Caller { local: local.0, looks, begun, timeout, parent };
    let path = head.uri.path();
    let app = &calls.app;
    let body = |limit, patience| Messages::of(app.clone(), body, limit, patience);
    match path.strip_prefix(INFERENCE) {
        Some("ModelInfer") => infer::infer(app, caller, body(app.max_body, Patience::None)).await,
        Some("ModelStreamInfer") => {
            let messages = body(app.max_body, Patience::Waits);
            Ok(infer::stream(calls.clone(), caller, messages))
        }
        Some(name) => {
            let mut messages = body(REPOSITORY_BODY_BYTES, Patience::None);
            calls::inference(app, &caller, name, &mut messages).await
        }
        None => {
            let mut messages = body(REPOSITORY_BODY_BYTES, Patience::None);
            health::call(&calls, caller, path.strip_prefix(HEALTH), &mut messages).await
        }
    }
}
