//! A call's answer: its messages in pieces that a connection takes one after another, and the status that
//! follows them.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::response::Response;
use hyper::body::Frame;
use tokio::sync::mpsc;

use crate::limits::HTTP2_SEND_BYTES;
use crate::protocol::grpc::frame::{Code, escaped};
use crate::shell::serve::reply::Failed;

const STATUS: HeaderName = HeaderName::from_static("grpc-status");
const MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
/// After how many milliseconds a client that retries by itself may do so.
const PUSHBACK: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");
/// The compressions that requests may have.
const ENCODINGS: HeaderName = HeaderName::from_static("grpc-accept-encoding");

/// What makes a stream's messages: sends their pieces, and ends with how the stream ends.
pub(super) type Driver = Pin<Box<dyn Future<Output = Result<(), Failed>> + Send>>;

struct Messages {
    pieces: VecDeque<Bytes>,
    /// Of a stream. It runs only while its client takes what it has made.
    more: Option<(Driver, mpsc::Receiver<Vec<Bytes>>)>,
    trailers: Option<HeaderMap>,
}

fn head(response: &mut Response) {
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(ENCODINGS, HeaderValue::from_static("identity"));
}

/// The answer to a call that was answered: the pieces of one message.
pub(super) fn answered(pieces: Vec<Bytes>) -> Response {
    let (pieces, trailers) = (pieces.into(), Some(trailers(Ok(()))));
    let mut response = Response::new(Body::new(Messages { pieces, more: None, trailers }));
    head(&mut response);
    response
}

/// The answer to a call of which `driver` sends the messages.
pub(super) fn streamed(driver: Driver, messages: mpsc::Receiver<Vec<Bytes>>) -> Response {
    let more = Some((driver, messages));
    let messages = Messages { pieces: VecDeque::new(), more, trailers: None };
    let mut response = Response::new(Body::new(messages));
    head(&mut response);
    response
}

/// The answer to a call that failed: headers and nothing else.
pub(super) fn failed(failed: Failed) -> Response {
    let mut response = Response::new(Body::empty());
    head(&mut response);
    response.headers_mut().extend(trailers(Err(failed)));
    response
}

fn trailers(ended: Result<(), Failed>) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    let code = ended.as_ref().map_or_else(Failed::code, |()| Code::Ok);
    trailers.insert(STATUS, HeaderValue::from(code as u16));
    if let Err(failed) = ended {
        if let Some(after) = failed.retry_after {
            let milliseconds = u32::try_from(after.as_millis()).unwrap_or(u32::MAX).max(1);
            trailers.insert(PUSHBACK, HeaderValue::from(milliseconds));
        }
        // Escaped it has nothing that a header may not have.
        if let Ok(message) = HeaderValue::from_str(&escaped(&words(&failed))) {
            trailers.insert(MESSAGE, message);
        }
    }
    trailers
}

/// What went wrong, and when it may be worth asking again.
pub(super) fn words(failed: &Failed) -> String {
    match failed.retry_after {
        Some(after) => format!("{}; try again after {} ms", failed.error, after.as_millis().max(1)),
        None => failed.error.clone(),
    }
}

impl hyper::body::Body for Messages {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        loop {
            if let Some(mut piece) = self.pieces.pop_front() {
                // What was handed over lies in the connection's memory until the client takes it.
                if piece.len() > HTTP2_SEND_BYTES {
                    let rest = piece.split_off(HTTP2_SEND_BYTES);
                    self.pieces.push_front(rest);
                }
                return Poll::Ready(Some(Ok(Frame::data(piece))));
            }
            let Some((driver, messages)) = &mut self.more else { break };
            if let Poll::Ready(Some(pieces)) = messages.poll_recv(cx) {
                self.pieces = pieces.into();
                continue;
            }
            let ended = std::task::ready!(driver.as_mut().poll(cx));
            // What it has sent last is still to be taken.
            let last = std::iter::from_fn(|| messages.try_recv().ok()).flatten().collect();
            self.pieces = last;
            self.trailers = Some(trailers(ended));
            self.more = None;
        }
        Poll::Ready(self.trailers.take().map(|trailers| Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.pieces.is_empty() && self.more.is_none() && self.trailers.is_none()
    }
}
