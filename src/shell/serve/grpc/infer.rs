//! Inference over gRPC: a call, and a stream of requests.
//!
//! A stream's requests are admitted in their order and run beside one another, as many as
//! [`STREAM_REQUESTS`]; the answers go in the same order. Beyond that the stream is not read on, which the
//! client's own HTTP/2 sees. A client that goes away drops all that it has under way.

use std::collections::VecDeque;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::http::{HeaderValue, StatusCode};
use axum::response::Response;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use crate::limits::STREAM_REQUESTS;
use crate::protocol::InferAnswer;
use crate::protocol::grpc::{Call, GrpcRequest, stream_error};
use crate::shell::serve::App;
use crate::shell::serve::front::Calls;
use crate::shell::serve::infer::{Admitted, Asked, Source, VARIANT, admit, write_shared};
use crate::shell::serve::reply::Failed;
use crate::shell::serve::routes::version_of;
use crate::shell::serve::traced::Traced;
use crate::shell::slot::{Answer, Slot};

use super::messages::{Message, Messages};
use super::{Caller, reply};

/// Answers one inference request.
pub(super) async fn infer(
    app: &Arc<App>,
    caller: Caller,
    messages: Messages,
) -> Result<Response, Failed> {
    let mut traced = Traced::begin(app.tracer.as_ref(), || caller.parent, "grpc", caller.begun);
    let outcome = infer_traced(app, caller, messages, &mut traced).await;
    traced.ended(outcome)
}

async fn infer_traced(
    app: &Arc<App>,
    caller: Caller,
    mut messages: Messages,
    traced: &mut Traced,
) -> Result<Response, Failed> {
    let Message { bytes, held: _held } = messages.only().await?;
    let arrived = Instant::now();
    let request = GrpcRequest::parse(&bytes)?;
    drop(bytes);
    let left = caller.timeout.map(|timeout| timeout.saturating_sub(arrived - caller.begun));
    let admitted = admitted(app, request, (arrived, left), caller.local, traced).await?;
    let Admitted { slot, frame, ticket, held: _shared } = admitted;
    let answer = ticket.outcome().await?;
    traced.answered(&answer);
    write_shared(app, caller.local, &frame.wanted, &answer).await?;
    let pieces = encoded(&slot, &frame, &answer, Call::Unary)?;
    let mut response = reply::answered(pieces);
    if let Ok(variant) = HeaderValue::from_str(&answer.variant.info().name) {
        response.headers_mut().insert(VARIANT, variant);
    }
    Ok(response)
}

async fn admitted(
    app: &Arc<App>,
    request: GrpcRequest,
    (arrived, timeout): (Instant, Option<Duration>),
    local: bool,
    traced: &mut Traced,
) -> Result<Admitted, Failed> {
    if timeout.is_some_and(|left| left.is_zero()) {
        let error = "the deadline passed before the request had arrived";
        return Err(Failed::new(StatusCode::GATEWAY_TIMEOUT, error));
    }
    let version = version_of(request.version())?;
    let model = request.model().to_owned();
    let asked = Asked { source: Source::Grpc(request), arrived, timeout, local };
    admit(app, &model, version, &asked, traced).await
}

fn encoded(
    slot: &Arc<Slot>,
    frame: &crate::shell::serve::infer::Frame,
    answer: &Answer,
    call: Call,
) -> Result<Vec<Bytes>, Failed> {
    let begun = Instant::now();
    let pieces = InferAnswer {
        id: &frame.id,
        model: slot.model(),
        version: slot.version(),
        wanted: &frame.wanted,
        outputs: &answer.outputs,
    }
    .message(call)
    .map_err(|error| Failed::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    let now = Instant::now();
    slot.ready(answer, now, now - begun);
    Ok(pieces)
}

/// A request of a stream on its way; the pieces of its answer, whatever becomes of it.
type Pending = std::pin::Pin<Box<dyn Future<Output = Vec<Bytes>> + Send>>;

/// Answers a stream of inference requests.
pub(super) fn stream(calls: Calls, caller: Caller, messages: Messages) -> Response {
    let (sender, receiver) = mpsc::channel(1);
    reply::streamed(Box::pin(drive(calls, caller, messages, sender)), receiver)
}

async fn drive(
    calls: Calls,
    caller: Caller,
    mut messages: Messages,
    answers: mpsc::Sender<Vec<Bytes>>,
) -> Result<(), Failed> {
    let deadline = caller.timeout.and_then(|timeout| caller.begun.checked_add(timeout));
    let mut pending: VecDeque<Pending> = VecDeque::new();
    // How the stream ends, once nothing more is read of it.
    let mut end: Option<Result<(), Failed>> = None;
    loop {
        let room = end.is_none() && pending.len() < STREAM_REQUESTS;
        tokio::select! {
            // What is done goes first; then nothing new is begun that would be turned away.
            biased;
            Some(pieces) = front(&mut pending) => {
                pending.pop_front();
                if answers.send(pieces).await.is_err() {
                    return Ok(());
                }
            }
            () = calls.stop.cancelled(), if end.is_none() => {
                let error = "the server stops: open the stream again";
                end = Some(Err(Failed::unavailable(error, Duration::from_secs(1))));
            }
            message = messages.next(), if room => match message {
                Ok(Some(message)) => {
                    pending.push_back(begin(&calls.app, message, deadline, &caller).await);
                }
                Ok(None) => end = Some(Ok(())),
                Err(failed) => end = Some(Err(failed)),
            },
            else => return end.unwrap_or(Ok(())),
        }
    }
}

/// The answer that is due next.
async fn front(pending: &mut VecDeque<Pending>) -> Option<Vec<Bytes>> {
    match pending.front_mut() {
        Some(first) => Some(first.await),
        None => None,
    }
}

/// Admits one request; its answer, or its error as one, is what the future gives.
async fn begin(
    app: &Arc<App>,
    message: Message,
    deadline: Option<Instant>,
    caller: &Caller,
) -> Pending {
    let Message { bytes, held } = message;
    let (arrived, local) = (Instant::now(), caller.local);
    let mut traced = Traced::begin(app.tracer.as_ref(), || caller.parent, "grpc", arrived);
    let timeout = deadline.map(|deadline| deadline.saturating_duration_since(arrived));
    let request = GrpcRequest::parse(&bytes);
    drop(bytes);
    let (model, id) = request.as_ref().map_or_else(
        |_| Default::default(),
        |request| (request.model().to_owned(), request.id().to_owned()),
    );
    let admitted = match request {
        Ok(request) => admitted(app, request, (arrived, timeout), local, &mut traced).await,
        Err(error) => Err(error.into()),
    };
    let app = Arc::clone(app);
    Box::pin(async move {
        let pieces = match admitted {
            Ok(admitted) => finish(&app, admitted, held, local, &mut traced).await,
            Err(failed) => Err(failed),
        };
        let pieces = traced.ended(pieces);
        pieces.unwrap_or_else(|failed| vec![stream_error(&reply::words(&failed), &model, &id)])
    })
}

async fn finish(
    app: &Arc<App>,
    admitted: Admitted,
    _held: OwnedSemaphorePermit,
    local: bool,
    traced: &mut Traced,
) -> Result<Vec<Bytes>, Failed> {
    let Admitted { slot, frame, ticket, held: _shared } = admitted;
    let answer = ticket.outcome().await?;
    traced.answered(&answer);
    write_shared(app, local, &frame.wanted, &answer).await?;
    encoded(&slot, &frame, &answer, Call::Stream)
}
