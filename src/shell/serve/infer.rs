//! The inference call: body → typed inputs (slices of the body) → slot → one buffer.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use axum::http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use tokio::sync::OwnedSemaphorePermit;

use crate::limits::{HTTP_BODY_SECS, JSON_INLINE_BYTES};
use crate::protocol::{
    AnswerError, EncodedAnswer, InferAnswer, InferRequest, RequestError, WantedOutput,
};
use crate::shell::slot::{Answer, Refusal, Request, Slot, Ticket};
use crate::units::Version;

use super::App;
use super::reply::Failed;

/// Length of the JSON in front of binary tensor data, in both directions.
const JSON_LENGTH: HeaderName = HeaderName::from_static("inference-header-content-length");

/// Which variant answered.
const VARIANT: HeaderName = HeaderName::from_static("blochd-variant");

/// Answers one inference request.
pub(super) async fn infer(
    app: &App,
    (model, version): (&str, Option<Version>),
    headers: &HeaderMap,
    body: Body,
) -> Result<Response, Failed> {
    // The body is read even where the model is unknown: an answer to a half-sent request would
    // reach the client as a broken connection.
    let (body, _held) = read(app, headers, body, app.max_body).await?;
    let arrived = Instant::now();
    let json_length = json_length(headers)?;
    let asked = Asked { body, json_length, arrived };
    let (slot, request, ticket) = admit(app, model, version, &asked).await?;
    let answer = ticket.outcome().await?;
    respond(&slot, request, answer).await
}

struct Asked {
    body: Bytes,
    json_length: Option<usize>,
    arrived: Instant,
}

/// What the answer needs to know of the request.
struct Frame {
    id: String,
    wanted: Vec<WantedOutput>,
}

async fn admit(
    app: &App,
    model: &str,
    version: Option<Version>,
    asked: &Asked,
) -> Result<(Arc<Slot>, Frame, Ticket), Failed> {
    let mut before: Option<Arc<Slot>> = None;
    loop {
        let slot = app.repository.find(model, version)?;
        let request = decode(&slot, asked).await?;
        let InferRequest { id, inputs, outputs, timeout, priority } = request;
        let wanted = outputs.iter().map(|output| output.name.clone()).collect();
        let arrived = asked.arrived;
        let decode = arrived.elapsed();
        let request = Request { inputs, wanted, arrived, decode, timeout, priority };
        match slot.submit(request, Instant::now()) {
            Ok(ticket) => return Ok((slot, Frame { id, wanted: outputs }, ticket)),
            // The slot was replaced between look-up and admission: ask its successor, if there is
            // one.
            Err(Refusal::Closing) if before.is_none_or(|other| !Arc::ptr_eq(&other, &slot)) => {
                before = Some(slot);
            }
            Err(refusal) => return Err(refusal.into()),
        }
    }
}

async fn decode(slot: &Arc<Slot>, asked: &Asked) -> Result<InferRequest, RequestError> {
    let read = |slot: &Slot, body: &Bytes, json_length| {
        InferRequest::decode(body, json_length, slot.model(), slot.signature())
    };
    let json_length = asked.json_length;
    if json_length.unwrap_or(asked.body.len()) <= JSON_INLINE_BYTES {
        return read(slot, &asked.body, json_length);
    }
    let (slot, body) = (Arc::clone(slot), asked.body.clone());
    off_loop(move || read(&slot, &body, json_length))
        .await
        .unwrap_or_else(|error| Err(RequestError::Json(error)))
}

async fn respond(slot: &Arc<Slot>, frame: Frame, answer: Answer) -> Result<Response, Failed> {
    let json_elements = frame.wanted.iter().zip(&answer.outputs);
    let json_elements = json_elements.filter(|(wanted, _)| !wanted.binary);
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
            .map_err(|error| Failed::new(StatusCode::INTERNAL_SERVER_ERROR, error))??
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
    let kib = u32::try_from(claimed.div_ceil(1024)).map_err(|_| too_large())?;
    let held = Arc::clone(&app.bodies).try_acquire_many_owned(kib).map_err(|_| {
        let error = "refused: too many large requests are in flight";
        Failed::unavailable(error, Duration::from_secs(1))
    })?;
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
