//! A call's body → its messages, each held within the memory for bodies before its bytes are taken in.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::http::StatusCode;
use hyper::body::{Body, Incoming};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout_at};

use crate::limits::HTTP_BODY_SECS;
use crate::protocol::grpc::frame::{self, PREFIX};
use crate::protocol::grpc::raw_contents_begin;
use crate::shell::serve::App;
use crate::shell::serve::reply::Failed;

/// Raw contents are put at multiples of this where they are moved anyhow: of every type's size, and what
/// vectors of the processor like best.
const ALIGNMENT: usize = 64;

/// One message, and the memory that it is counted for.
pub(super) struct Message {
    pub bytes: Bytes,
    pub held: OwnedSemaphorePermit,
}

/// Whether a message waits for memory that others hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Patience {
    /// It is refused: its client may ask again.
    None,
    /// What came before it is being answered meanwhile.
    Waits,
}

/// The messages of a call, in their order. Dropping a future of [`Messages::next`] loses nothing.
pub(super) struct Messages {
    app: Arc<App>,
    body: Incoming,
    /// Longest message.
    limit: usize,
    patience: Patience,
    /// What came and was not looked at.
    chunk: Bytes,
    part: Part,
}

enum Part {
    /// Between two messages, or in the midst of a prefix.
    Prefix { bytes: [u8; PREFIX], got: usize },
    /// Announced, and not counted yet.
    Announced { length: usize, until: Instant },
    /// Counted.
    Held { length: usize, until: Instant, held: OwnedSemaphorePermit, landing: Landing },
}

const START: Part = Part::Prefix { bytes: [0; PREFIX], got: 0 };

/// Where a message that comes in several pieces is put together.
#[derive(Default)]
struct Landing {
    bytes: Vec<u8>,
    /// Bytes in front of the message, so that its raw contents are aligned.
    skip: usize,
}

impl Messages {
    pub fn of(app: Arc<App>, body: Incoming, limit: usize, patience: Patience) -> Self {
        Self { app, body, limit, patience, chunk: Bytes::new(), part: START }
    }

    /// The next message; `None` at the end of the call's body.
    pub async fn next(&mut self) -> Result<Option<Message>, Failed> {
        loop {
            match self.part {
                Part::Prefix { bytes, got: PREFIX } => {
                    let length = self.announced(bytes)?;
                    let until = Instant::now() + Duration::from_secs(HTTP_BODY_SECS);
                    self.part = Part::Announced { length, until };
                }
                Part::Prefix { got, .. } if self.chunk.is_empty() => {
                    match receive(&mut self.body).await {
                        Some(chunk) => self.chunk = chunk?,
                        None if got > 0 => return Err(cut()),
                        None => return Ok(None),
                    }
                }
                Part::Prefix { ref mut bytes, ref mut got } => {
                    let take = (PREFIX - *got).min(self.chunk.len());
                    bytes[*got..*got + take].copy_from_slice(&self.chunk.split_to(take));
                    *got += take;
                }
                Part::Announced { length, until } => {
                    let held = self.hold(length).await?;
                    self.part = Part::Held { length, until, held, landing: Landing::default() };
                }
                Part::Held { .. } => return self.take_in().await.map(Some),
            }
        }
    }

    fn announced(&self, prefix: [u8; PREFIX]) -> Result<usize, Failed> {
        let compressed = || {
            let error = "compressed messages are not supported: send them as they are";
            Failed::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, error)
        };
        let length = frame::announced(prefix).ok_or_else(compressed)?;
        if length > self.limit {
            let limit = self.limit;
            let error = format!("the message has {length} bytes, more than the limit of {limit}");
            return Err(Failed::new(StatusCode::PAYLOAD_TOO_LARGE, error));
        }
        Ok(length)
    }

    async fn hold(&self, length: usize) -> Result<OwnedSemaphorePermit, Failed> {
        match self.patience {
            Patience::None => self.app.hold(length as u64),
            Patience::Waits => self.app.wait_to_hold(length as u64).await,
        }
    }

    /// The bytes of a message for which there is room.
    async fn take_in(&mut self) -> Result<Message, Failed> {
        loop {
            let Part::Held { length, until, landing, .. } = &mut self.part else {
                return Err(cut());
            };
            // All of it in one piece: it stays where it is.
            if landing.bytes.is_empty() && self.chunk.len() >= *length {
                let bytes = self.chunk.split_to(*length);
                return self.done(bytes);
            }
            landing.put(*length, &mut self.chunk);
            if landing.bytes.len() == landing.skip + *length {
                let bytes = Bytes::from(std::mem::take(&mut landing.bytes)).slice(landing.skip..);
                return self.done(bytes);
            }
            match timeout_at(*until, receive(&mut self.body)).await {
                Ok(Some(chunk)) => self.chunk = chunk?,
                Ok(None) => return Err(cut()),
                Err(_) => {
                    let error = format!("the message did not arrive within {HTTP_BODY_SECS} s");
                    return Err(Failed::new(StatusCode::REQUEST_TIMEOUT, error));
                }
            }
        }
    }

    fn done(&mut self, bytes: Bytes) -> Result<Message, Failed> {
        match std::mem::replace(&mut self.part, START) {
            Part::Held { held, .. } => Ok(Message { bytes, held }),
            Part::Prefix { .. } | Part::Announced { .. } => Err(cut()),
        }
    }

    /// The only message of a call, whose body ends with it.
    pub async fn only(&mut self) -> Result<Message, Failed> {
        let wrong = |error: &str| Failed::bad_request(error);
        let message = self.next().await?.ok_or_else(|| wrong("the call has no message"))?;
        let until = Instant::now() + Duration::from_secs(HTTP_BODY_SECS);
        match timeout_at(until, self.next()).await {
            Ok(Ok(None)) => Ok(message),
            Ok(Ok(Some(_))) => Err(wrong("the call has more than one message")),
            Ok(Err(failed)) => Err(failed),
            Err(_) => {
                let error = format!("the call's body did not end within {HTTP_BODY_SECS} s");
                Err(Failed::new(StatusCode::REQUEST_TIMEOUT, error))
            }
        }
    }
}

impl Landing {
    /// Takes of `chunk` what belongs to a message of `length` bytes.
    fn put(&mut self, length: usize, chunk: &mut Bytes) {
        if self.bytes.is_empty() && !chunk.is_empty() {
            // Counted already; what is not written to takes no memory.
            self.bytes.reserve_exact(length + ALIGNMENT);
            let raw = raw_contents_begin(chunk).unwrap_or(0);
            let address = self.bytes.as_ptr().addr().wrapping_add(raw);
            self.skip = address.wrapping_neg() % ALIGNMENT;
            self.bytes.resize(self.skip, 0);
        }
        let missing = self.skip + length - self.bytes.len();
        self.bytes.extend_from_slice(&chunk.split_to(missing.min(chunk.len())));
    }
}

/// The next data of a body; an error where the client has gone.
async fn receive(body: &mut Incoming) -> Option<Result<Bytes, Failed>> {
    loop {
        let frame = std::future::poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await?;
        match frame {
            // Trailers of a request mean nothing.
            Ok(frame) => match frame.into_data() {
                Ok(data) if data.is_empty() => {}
                Ok(data) => return Some(Ok(data)),
                Err(_) => {}
            },
            // Nobody reads the answer.
            Err(error) => return Some(Err(Failed::bad_request(error.to_string()))),
        }
    }
}

fn cut() -> Failed {
    Failed::bad_request("the call's body ends in the midst of a message")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn raw_contents_are_aligned_when_their_message_is_put_together() {
        // A field 1 of two bytes, and 100 bytes of raw contents.
        let message = [&[0x0A, 2, b'a', b'b', 0x3A, 100][..], &[7; 100]].concat();
        for first in [6, 7, 50] {
            let mut landing = Landing::default();
            let mut chunk = Bytes::copy_from_slice(&message[..first]);
            landing.put(message.len(), &mut chunk);
            assert!(chunk.is_empty());
            // The next message's beginning is left.
            let mut chunk = Bytes::from([&message[first..], &[9, 9]].concat());
            landing.put(message.len(), &mut chunk);
            assert_eq!(&chunk[..], [9, 9]);
            assert_eq!(landing.bytes[landing.skip..], message);
            assert_eq!(landing.bytes[landing.skip + 6..].as_ptr().addr() % ALIGNMENT, 0);
        }
    }
}
