//! gRPC's C core, and with it Python's client, calls a server at a Unix socket by the socket's path, as in
//! `:authority: run%2Fblochd%2Fblochd.sock`. That is no host name, and h2 ends such a call as malformed. What
//! comes over a Unix socket therefore has each `%` in that header replaced by `-` on its way in: nobody reads
//! it, nothing grows or shrinks, and what the header compression keeps of it is the same at later calls.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What a connection of HTTP/2 begins with.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The header's name as the C core writes it: a literal, uncompressed.
const NAME: &[u8] = b":authority";

/// Bytes in front of a frame, and the type of those with headers.
const HEAD: usize = 9;
const HEADERS: u8 = 1;

/// A stream of HTTP in which the name of the host may be a path.
#[derive(Debug)]
pub(super) struct NamedByPath<S> {
    stream: S,
    at: At,
}

/// Where in the stream the next byte is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    Preface {
        seen: usize,
    },
    Head {
        bytes: [u8; HEAD],
        got: usize,
    },
    Frame {
        left: usize,
        within: Within,
    },
    /// Not HTTP/2.
    Other,
}

/// Where in a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Within {
    /// One without headers.
    Data,
    /// So much of the name has come.
    Name {
        seen: usize,
    },
    Length,
    Value {
        left: u8,
    },
}

impl At {
    const HEAD: Self = Self::Head { bytes: [0; HEAD], got: 0 };

    fn step(self, byte: &mut u8) -> Self {
        match self {
            Self::Other => Self::Other,
            Self::Preface { seen } => match PREFACE.get(seen) {
                Some(expected) if expected == byte && seen + 1 == PREFACE.len() => Self::HEAD,
                Some(expected) if expected == byte => Self::Preface { seen: seen + 1 },
                Some(_) | None => Self::Other,
            },
            Self::Head { mut bytes, got } => {
                bytes[got] = *byte;
                if got + 1 < HEAD {
                    return Self::Head { bytes, got: got + 1 };
                }
                let [a, b, c, kind, ..] = bytes;
                let within = if kind == HEADERS { Within::Name { seen: 0 } } else { Within::Data };
                Self::frame(u32::from_be_bytes([0, a, b, c]) as usize, within)
            }
            Self::Frame { left, within } => Self::frame(left - 1, within.step(byte)),
        }
    }

    fn frame(left: usize, within: Within) -> Self {
        if left == 0 { Self::HEAD } else { Self::Frame { left, within } }
    }

    /// Goes over bytes that have come.
    fn over(mut self, bytes: &mut [u8]) -> Self {
        let mut rest = bytes;
        loop {
            // Tensors are passed by, not looked at.
            if let Self::Frame { left, within: Within::Data } = self {
                let skipped = left.min(rest.len());
                rest = &mut rest[skipped..];
                self = Self::frame(left - skipped, Within::Data);
            }
            let Some((byte, more)) = rest.split_first_mut() else { return self };
            self = self.step(byte);
            if self == Self::Other {
                return self;
            }
            rest = more;
        }
    }
}

impl Within {
    fn step(self, byte: &mut u8) -> Self {
        let name = Self::Name { seen: 0 };
        match self {
            Self::Data => Self::Data,
            Self::Name { seen } if NAME.get(seen) == Some(byte) => match seen + 1 {
                seen if seen == NAME.len() => Self::Length,
                seen => Self::Name { seen },
            },
            // No beginning of the name is in its midst.
            Self::Name { .. } => Self::Name { seen: usize::from(*byte == NAME[0]) },
            // Compressed, or longer than a byte tells: not by the C core.
            Self::Length if matches!(*byte, 0 | 0x7F..) => name,
            Self::Length => Self::Value { left: *byte },
            Self::Value { left } => {
                if *byte == b'%' {
                    *byte = b'-';
                }
                if left == 1 { name } else { Self::Value { left: left - 1 } }
            }
        }
    }
}

impl<S> NamedByPath<S> {
    pub fn new(stream: S) -> Self {
        Self { stream, at: At::Preface { seen: 0 } }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for NamedByPath<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        self.at = self.at.over(&mut buffer.filled_mut()[before..]);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for NamedByPath<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
        let [_, a, b, c] = (payload.len() as u32).to_be_bytes();
        [&[a, b, c, kind, 4, 0, 0, 0, 1], payload].concat()
    }

    fn header(authority: &str) -> Vec<u8> {
        let name = [&[0x40, 10], NAME, &[authority.len() as u8]].concat();
        [b"@\x05:path\x03/%a", &name[..], authority.as_bytes(), b"@\x02te\x01%"].concat()
    }

    /// What comes out where it comes in pieces of `size`.
    fn passed(bytes: &[u8], size: usize) -> Vec<u8> {
        let mut bytes = bytes.to_vec();
        bytes.chunks_mut(size).fold(At::Preface { seen: 0 }, |at, piece| at.over(piece));
        bytes
    }

    #[test]
    fn only_the_name_of_the_host_is_changed_however_it_comes() {
        let settings = frame(4, b":authority\x03%%%");
        let data = frame(0, b":authority\x03%%%");
        let wire = |authority: &str| {
            let headers = frame(HEADERS, &header(authority));
            let empty = frame(4, b"");
            [PREFACE, &settings, &headers, &empty, &data, &headers].concat()
        };
        for size in [1, 2, 3, 7, 100, 10_000] {
            assert_eq!(passed(&wire("run%2Fb%2Fb.sock"), size), wire("run-2Fb-2Fb.sock"), "{size}");
            assert_eq!(passed(&wire("localhost"), size), wire("localhost"));
        }
    }

    #[test]
    fn what_is_no_http2_and_what_is_compressed_stays_as_it_is() {
        let http1 = b"GET /%20 HTTP/1.1\r\nhost: a%b\r\n:authority\x03%%%\r\n\r\n";
        assert_eq!(passed(http1, 5), http1);
        let mut compressed = header("a%b");
        let at = compressed.windows(10).position(|window| window == NAME).unwrap() + 10;
        compressed[at] |= 0x80;
        let wire = [PREFACE, &frame(HEADERS, &compressed)].concat();
        assert_eq!(passed(&wire, 4), wire);
    }
}
