//! The inference call: body → typed inputs (slices of the body) → slot → one buffer. Over gRPC the same, from
//! admission to the outputs in shared memory.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use axum::http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use tokio::sync::OwnedSemaphorePermit;

use crate::limits::{HTTP_BODY_SECS, JSON_INLINE_BYTES, SHARED_INLINE_BYTES};
use crate::protocol::grpc::GrpcRequest;
use crate::protocol::{
    AnswerError, EncodedAnswer, InferAnswer, InferRequest, RequestError, WantedOutput,
};
use crate::shell::slot::{Answer, Refusal, Request, Slot, Ticket};
use crate::units::Version;

use super::App;
use super::front::Local;
use super::regions::RegionError;
use super::reply::Failed;
use super::traced::{self, Traced};

/// Length of the JSON in front of binary tensor data, in both directions.
const JSON_LENGTH: HeaderName = HeaderName::from_static("inference-header-content-length");

/// Which variant answered.
pub(super) const VARIANT: HeaderName = HeaderName::from_static("blochd-variant");

/// Answers one inference request.
pub(super) async fn infer(
    app: &Arc<App>,
    (model, version): (&str, Option<Version>),
    Local(local): Local,
    headers: &HeaderMap,
    body: Body,
) -> Result<Response, Failed> {
    let parent = || traced::parent(headers);
    let mut traced = Traced::begin(app.tracer.as_ref(), parent, "http", Instant::now());
    let outcome = infer_traced(app, (model, version), local, headers, body, &mut traced).await;
    traced.ended(outcome)
}

async fn infer_traced(
    app: &Arc<App>,
    (model, version): (&str, Option<Version>),
    local: bool,
    headers: &HeaderMap,
    body: Body,
    traced: &mut Traced,
) -> Result<Response, Failed> {
    // The body is read even where the model is unknown: an answer to a half-sent request would
    // reach the client as a broken connection.
    let (body, _held) = read(app, headers, body, app.max_body).await?;
    let arrived = Instant::now();
    let source = Source::Rest { body, json_length: json_length(headers)? };
    let asked = Asked { source, arrived, timeout: None, local };
    let Admitted { slot, frame, ticket, held: _shared } =
        admit(app, model, version, &asked, traced).await?;
    let answer = ticket.outcome().await?;
    traced.answered(&answer);
    write_shared(app, local, &frame.wanted, &answer).await?;
    respond(&slot, frame, answer).await
}

/// A request that has arrived.
pub(super) struct Asked {
    pub source: Source,
    pub arrived: Instant,
    /// How long its call may take from then on; a request may say less.
    pub timeout: Option<Duration>,
    /// Whether its client is on this box.
    pub local: bool,
}

/// Where a request is read from.
#[derive(Clone)]
pub(super) enum Source {
    Rest { body: Bytes, json_length: Option<usize> },
    Grpc(GrpcRequest),
}

impl Source {
    /// Bytes that have to be rewritten to be tensors.
    fn conversion_bytes(&self) -> usize {
        match self {
            Self::Rest { body, json_length } => json_length.unwrap_or(body.len()),
            Self::Grpc(request) => request.conversion_bytes(),
        }
    }

    fn decode(&self, slot: &Slot) -> Result<InferRequest, RequestError> {
        let (model, signature) = (slot.model(), slot.signature());
        match self {
            Self::Rest { body, json_length } => {
                InferRequest::decode(body, *json_length, model, signature)
            }
            Self::Grpc(request) => request.decode(model, signature),
        }
    }
}

/// What the answer needs to know of the request.
pub(super) struct Frame {
    pub id: String,
    pub wanted: Vec<WantedOutput>,
}

/// A request in a slot's queue.
pub(super) struct Admitted {
    pub slot: Arc<Slot>,
    pub frame: Frame,
    pub ticket: Ticket,
    /// The memory of its inputs from shared memory.
    pub held: Option<OwnedSemaphorePermit>,
}

/// Finds the slot of a request and queues it.
pub(super) async fn admit(
    app: &Arc<App>,
    model: &str,
    version: Option<Version>,
    asked: &Asked,
    traced: &mut Traced,
) -> Result<Admitted, Failed> {
    let mut before: Option<Arc<Slot>> = None;
    loop {
        let slot = app.find(model, version).await?;
        let mut request = decode(&slot, &asked.source).await?;
        let held = read_shared(app, asked.local, &mut request).await?;
        let InferRequest { id, inputs, shared: _, outputs, timeout, priority } = request;
        let wanted = outputs.iter().map(|output| output.name.clone()).collect();
        let arrived = asked.arrived;
        let decode = arrived.elapsed();
        traced.found(&slot, arrived + decode);
        let timeout = timeout.into_iter().chain(asked.timeout).min();
        let request = Request { inputs, wanted, arrived, decode, timeout, priority };
        match slot.submit(request, Instant::now()) {
            Ok(ticket) => {
                let frame = Frame { id, wanted: outputs };
                return Ok(Admitted { slot, frame, ticket, held });
            }
            // The slot was replaced between look-up and admission: ask its successor, if there is
            // one.
            Err(Refusal::Closing) if before.is_none_or(|other| !Arc::ptr_eq(&other, &slot)) => {
                before = Some(slot);
            }
            Err(refusal) => return Err(refusal.into()),
        }
    }
}

async fn decode(slot: &Arc<Slot>, source: &Source) -> Result<InferRequest, RequestError> {
    if source.conversion_bytes() <= JSON_INLINE_BYTES {
        return source.decode(slot);
    }
    let (slot, source) = (Arc::clone(slot), source.clone());
    off_loop(move || source.decode(&slot))
        .await
        .unwrap_or_else(|error| Err(RequestError::Json(error)))
}

/// Reads the inputs that lie in shared memory, within the memory for bodies.
async fn read_shared(
    app: &Arc<App>,
    local: bool,
    request: &mut InferRequest,
) -> Result<Option<OwnedSemaphorePermit>, Failed> {
    // Before the model runs: an output that cannot be written would be computed in vain.
    if request.outputs.iter().any(|output| output.shared.is_some()) {
        app.regions(local)?;
    }
    if request.shared.is_empty() {
        return Ok(None);
    }
    app.regions(local)?;
    let bytes = request.shared_bytes();
    if bytes > app.max_body as u64 {
        return Err(app.too_large());
    }
    let held = app.hold(bytes)?;
    if bytes <= SHARED_INLINE_BYTES {
        fill(app, local, request)?;
        return Ok(Some(held));
    }
    let (app, mut taken) = (Arc::clone(app), request.clone());
    let filled = off_loop(move || fill(&app, local, &mut taken).map(|()| taken)).await;
    *request = filled.map_err(panicked)??;
    Ok(Some(held))
}

fn fill(app: &App, local: bool, request: &mut InferRequest) -> Result<(), Failed> {
    let regions = app.regions(local)?;
    request.read_shared(|range| regions.read(range).map_err(Failed::from))
}

/// Writes the outputs that go into shared memory.
pub(super) async fn write_shared(
    app: &Arc<App>,
    local: bool,
    wanted: &[WantedOutput],
    answer: &Answer,
) -> Result<(), Failed> {
    let pairs = wanted.iter().zip(&answer.outputs);
    let pairs =
        pairs.filter_map(|(wanted, tensor)| Some((wanted, wanted.shared.as_ref()?, tensor)));
    let bytes: u64 = pairs.clone().map(|(.., tensor)| tensor.data.len() as u64).sum();
    let mut outputs = pairs
        .map(|(wanted, range, tensor)| (wanted.name.clone(), range.clone(), tensor.data.clone()));
    if bytes <= SHARED_INLINE_BYTES {
        return outputs.try_for_each(|(name, range, data)| {
            Ok(app.regions(local)?.write(&name, &range, &data)?)
        });
    }
    let (app, outputs) = (Arc::clone(app), outputs.collect::<Vec<_>>());
    let written = off_loop(move || -> Result<(), RegionError> {
        let regions = app.regions(local)?;
        outputs.iter().try_for_each(|(name, range, data)| regions.write(name, range, data))
    });
    written.await.map_err(panicked)??;
    Ok(())
}

fn panicked(error: String) -> Failed {
    Failed::new(StatusCode::INTERNAL_SERVER_ERROR, error)
}

async fn respond(slot: &Arc<Slot>, frame: Frame, answer: Answer) -> Result<Response, Failed> {
    let json_elements = frame.wanted.iter().zip(&answer.outputs);
    let json_elements =
        json_elements.filter(|(wanted, _)| !wanted.binary && wanted.shared.is_none());
    let json_bytes: usize = json_elements.map(|(_, tensor)| tensor.data.len()).sum();
    let begun = Instant::now();
    let encode = |slot: &Slot, frame: &Frame, answer: &Answer| {
        InferAnswer {
            id: &frame.id,
            model: slot.model(),
            version: slot.version(),
            wanted: &frame.wanted,
            outputs: &answer.outputs,
        }
        .encode()
    };
    let (encoded, answer) = if json_bytes <= JSON_INLINE_BYTES {
        (encode(slot, &frame, &answer)?, answer)
    } else {
        let slot = Arc::clone(slot);
        off_loop(move || Ok::<_, AnswerError>((encode(&slot, &frame, &answer)?, answer)))
            .await
            .map_err(panicked)??
    };
    let response = response(encoded, &answer.variant.info().name);
    let now = Instant::now();
    slot.ready(&answer, now, now - begun);
    Ok(response)
}

fn response(encoded: EncodedAnswer, variant: &str) -> Response {
    let content = match encoded.json_length {
        Some(_) => "application/octet-stream",
        None => "application/json",
    };
    let mut response = encoded.body.into_response();
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content));
    if let Some(length) = encoded.json_length {
        headers.insert(JSON_LENGTH, HeaderValue::from(length));
    }
    if let Ok(variant) = HeaderValue::from_str(variant) {
        headers.insert(VARIANT, variant);
    }
    response
}

/// Runs `heavy` where it may block; the error says that it panicked.
async fn off_loop<T: Send + 'static>(
    heavy: impl FnOnce() -> T + Send + 'static,
) -> Result<T, String> {
    tokio::task::spawn_blocking(heavy).await.map_err(|error| error.to_string())
}

fn json_length(headers: &HeaderMap) -> Result<Option<usize>, Failed> {
    let Some(value) = headers.get(JSON_LENGTH) else { return Ok(None) };
    let length = value.to_str().ok().and_then(|text| text.trim().parse().ok());
    length.map(Some).ok_or_else(|| {
        Failed::bad_request("Inference-Header-Content-Length is not a number of bytes")
    })
}

/// Reads a body of at most `limit` bytes, and holds that much of the memory for bodies until the
/// permit is dropped.
pub(super) async fn read(
    app: &App,
    headers: &HeaderMap,
    body: Body,
    limit: usize,
) -> Result<(Bytes, OwnedSemaphorePermit), Failed> {
    if headers.get(CONTENT_ENCODING).is_some_and(|encoding| encoding != "identity") {
        let error = "compressed bodies are not supported: send the body without Content-Encoding";
        return Err(Failed::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, error));
    }
    let too_large = || {
        let error = format!("the request body is larger than the limit of {limit} bytes");
        Failed::new(StatusCode::PAYLOAD_TOO_LARGE, error)
    };
    let claimed = headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok());
    let claimed = claimed.map_or(Some(limit), |length| length.parse().ok());
    let claimed = claimed.filter(|claimed| *claimed <= limit).ok_or_else(too_large)?;
    // A body without a length might grow to the limit.
    let held = app.hold(claimed as u64)?;
    let whole = axum::body::to_bytes(body, limit);
    match tokio::time::timeout(Duration::from_secs(HTTP_BODY_SECS), whole).await {
        Ok(Ok(bytes)) => Ok((bytes, held)),
        // Past the limit, or a connection that broke: nobody reads the answer to the latter.
        Ok(Err(_)) => Err(too_large()),
        Err(_) => {
            let error = format!("the request body did not arrive within {HTTP_BODY_SECS} s");
            Err(Failed::new(StatusCode::REQUEST_TIMEOUT, error))
        }
    }
}
