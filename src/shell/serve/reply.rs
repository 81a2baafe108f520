//! Errors → answers: the one place that knows which failure gets which status code, of HTTP and of gRPC.

use std::time::Duration;

use axum::http::header::{ALLOW, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use crate::protocol::grpc::frame::Code;
use crate::protocol::{AnswerError, ErrorBody, RequestError};
use crate::shell::slot::{CommandError, InferError, NotServed, Refusal};

use super::regions::RegionError;

/// A call that failed.
#[derive(Debug)]
pub(super) struct Failed {
    pub status: StatusCode,
    pub error: String,
    pub retry_after: Option<Duration>,
    /// Where gRPC has a finer word than `status`.
    finer: Option<Code>,
}

impl Failed {
    pub fn new(status: StatusCode, error: impl Into<String>) -> Self {
        Self { status, error: error.into(), retry_after: None, finer: None }
    }

    fn finer(mut self, code: Code) -> Self {
        self.finer = Some(code);
        self
    }

    /// What a call over gRPC ends with.
    pub fn code(&self) -> Code {
        self.finer.unwrap_or(match self.status {
            StatusCode::BAD_REQUEST => Code::InvalidArgument,
            StatusCode::NOT_FOUND => Code::NotFound,
            StatusCode::UNAUTHORIZED => Code::Unauthenticated,
            StatusCode::FORBIDDEN => Code::PermissionDenied,
            StatusCode::CONFLICT => Code::AlreadyExists,
            StatusCode::PAYLOAD_TOO_LARGE => Code::ResourceExhausted,
            StatusCode::METHOD_NOT_ALLOWED
            | StatusCode::UNSUPPORTED_MEDIA_TYPE
            | StatusCode::NOT_IMPLEMENTED => Code::Unimplemented,
            StatusCode::REQUEST_TIMEOUT | StatusCode::GATEWAY_TIMEOUT => Code::DeadlineExceeded,
            StatusCode::SERVICE_UNAVAILABLE => Code::Unavailable,
            _ => Code::Internal,
        })
    }

    pub fn bad_request(error: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, error)
    }

    /// Of a client that does not say who it is.
    pub fn unauthenticated(error: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, error)
    }

    pub fn forbidden(error: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, error)
    }

    pub fn unavailable(error: impl Into<String>, retry_after: Duration) -> Self {
        let retry_after = Some(retry_after);
        Self { retry_after, ..Self::new(StatusCode::SERVICE_UNAVAILABLE, error) }
    }
}

impl IntoResponse for Failed {
    fn into_response(self) -> Response {
        let mut response = json(self.status, &ErrorBody { error: self.error });
        if let Some(after) = self.retry_after {
            // The header counts whole seconds; 0 would invite a storm.
            let seconds = after.as_secs_f64().ceil().max(1.0) as u64;
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            let challenge = HeaderValue::from_static("Bearer realm=\"blochd\"");
            response.headers_mut().insert(WWW_AUTHENTICATE, challenge);
        }
        if self.status == StatusCode::METHOD_NOT_ALLOWED {
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, POST"));
        }
        response
    }
}

/// An answer with a JSON body.
pub(super) fn json(status: StatusCode, body: &impl Serialize) -> Response {
    let content = HeaderValue::from_static("application/json");
    match serde_json::to_vec(body) {
        Ok(body) => (status, [(CONTENT_TYPE, content)], body).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

/// How soon a client may ask again for a model that is not ready: loading takes seconds.
const NOT_READY_RETRY: Duration = Duration::from_secs(2);

impl From<RequestError> for Failed {
    fn from(error: RequestError) -> Self {
        Self::bad_request(error.to_string())
    }
}

impl From<AnswerError> for Failed {
    fn from(error: AnswerError) -> Self {
        Self::bad_request(error.to_string())
    }
}

impl From<NotServed> for Failed {
    fn from(error: NotServed) -> Self {
        match error {
            NotServed::UnknownModel { .. } | NotServed::UnknownVersion { .. } => {
                Self::new(StatusCode::NOT_FOUND, error.to_string())
            }
            NotServed::Unready { .. } => Self::unavailable(error.to_string(), NOT_READY_RETRY),
        }
    }
}

impl From<Refusal> for Failed {
    fn from(refusal: Refusal) -> Self {
        let failed = Self::unavailable(format!("refused: {refusal}"), refusal.retry_after());
        match refusal {
            Refusal::Shape { .. } => Self::bad_request(refusal.to_string()),
            Refusal::DeadlineUnreachable { .. } | Refusal::Expired { .. } => {
                failed.finer(Code::DeadlineExceeded)
            }
            Refusal::QueueFull { .. }
            | Refusal::Overbooked { .. }
            | Refusal::Displaced { .. }
            | Refusal::Closing => failed,
        }
    }
}

impl From<InferError> for Failed {
    fn from(error: InferError) -> Self {
        match error {
            InferError::Refused(refusal) => refusal.into(),
            InferError::Failed(failure) => {
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, failure.to_string())
            }
        }
    }
}

impl From<CommandError> for Failed {
    fn from(error: CommandError) -> Self {
        match error {
            CommandError::UnknownModel { .. } => {
                Self::new(StatusCode::NOT_FOUND, error.to_string())
            }
            CommandError::Failed(_) | CommandError::Forbidden(_) => {
                Self::bad_request(error.to_string())
            }
            CommandError::Busy(_) => Self::unavailable(error.to_string(), NOT_READY_RETRY),
        }
    }
}

impl From<RegionError> for Failed {
    fn from(error: RegionError) -> Self {
        let words = error.to_string();
        match error {
            RegionError::Off => Self::new(StatusCode::NOT_IMPLEMENTED, words),
            RegionError::Remote => Self::new(StatusCode::FORBIDDEN, words),
            RegionError::Unknown { .. } => Self::new(StatusCode::NOT_FOUND, words),
            RegionError::Registered { .. } => Self::new(StatusCode::CONFLICT, words),
            RegionError::Open { ref source, .. } => match source.kind() {
                std::io::ErrorKind::NotFound => Self::new(StatusCode::NOT_FOUND, words),
                std::io::ErrorKind::PermissionDenied => Self::new(StatusCode::FORBIDDEN, words),
                _ => Self::bad_request(words),
            },
            RegionError::TooMany => {
                Self::new(StatusCode::BAD_REQUEST, words).finer(Code::ResourceExhausted)
            }
            RegionError::Name { .. }
            | RegionError::Key { .. }
            | RegionError::NotMemory { .. }
            | RegionError::Size { .. }
            | RegionError::Range { .. }
            | RegionError::Shrunk { .. }
            | RegionError::ReadOnly { .. }
            | RegionError::TooSmall { .. } => Self::bad_request(words),
            RegionError::Access { .. } => Self::new(StatusCode::INTERNAL_SERVER_ERROR, words),
        }
    }
}
