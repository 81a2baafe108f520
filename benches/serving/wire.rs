//! gRPC as frames of HTTP/2 on a blocking socket: one thread, one write and as few reads as there are, so that
//! what is measured is the server. Headers are written without compression; of those that come back only
//! `grpc-status` is read.

use std::io::{self, Write};
use std::sync::OnceLock;

use crate::stream::{Address, Incoming, Stream};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const HEAD: usize = 9;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RESET: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GO_AWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;

const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;

/// Largest window, of which nothing is ever given back: no run receives 2 GiB over one connection.
const WINDOW: u32 = (1 << 31) - 1;

/// Longer pieces of a body are sent from where they lie.
const COPIED: usize = 16 << 10;

/// What a server allows now.
#[derive(Debug, Clone, Copy)]
pub struct Allowed {
    pub frame: usize,
    /// Bytes of the body of a new call.
    pub stream: i64,
    /// Bytes of all bodies.
    pub connection: i64,
}

/// The writing half of a connection.
pub struct Writer {
    stream: Stream,
    out: Vec<u8>,
    next: u32,
    pub allowed: Allowed,
}

/// What came.
pub enum Frame<'a> {
    Data {
        stream: u32,
        bytes: &'a [u8],
        end: bool,
    },
    Headers {
        stream: u32,
        status: Option<u16>,
        end: bool,
    },
    Reset {
        stream: u32,
    },
    /// The body of a call may have so many bytes more.
    Grant {
        stream: u32,
        bytes: i64,
    },
    Other,
}

/// The reading half.
pub struct Frames(Incoming);

/// How a call ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// gRPC's code; none where it could not be read.
    pub status: Option<u16>,
    /// The answer's message.
    pub message: Vec<u8>,
}

pub fn connect(address: &Address) -> io::Result<(Writer, Frames)> {
    let stream = Stream::connect(address)?;
    let frames = Frames(Incoming::new(stream.try_clone()?));
    // HTTP/2's own defaults, until the server says what it allows.
    let allowed = Allowed { frame: 16_384, stream: 65_535, connection: 65_535 };
    let mut writer = Writer { stream, out: PREFACE.to_vec(), next: 1, allowed };
    let mut settings = Vec::new();
    // No table of headers, no pushed streams, as much as there is.
    for (setting, value) in [(1u16, 0u32), (2, 0), (4, WINDOW)] {
        settings.extend(setting.to_be_bytes());
        settings.extend(value.to_be_bytes());
    }
    writer.frame(SETTINGS, 0, 0, &settings);
    writer.frame(WINDOW_UPDATE, 0, 0, &(WINDOW - 65_535).to_be_bytes());
    writer.send()?;
    Ok((writer, frames))
}

/// The headers of a call: the path, and what else it says.
pub fn headers(path: &str, more: &[(&str, &str)]) -> Vec<u8> {
    // :method POST and :scheme http stand in the static table, as do the names of :authority and :path.
    let mut block = vec![0x83, 0x86, 0x01];
    text(&mut block, "localhost");
    block.push(0x04);
    text(&mut block, path);
    let usual = [("content-type", "application/grpc"), ("te", "trailers")];
    for (name, value) in usual.iter().chain(more) {
        block.push(0x00);
        text(&mut block, name);
        text(&mut block, value);
    }
    block
}

fn text(block: &mut Vec<u8>, text: &str) {
    assert!(text.len() < 127, "a length of one byte");
    block.push(text.len() as u8);
    block.extend(text.as_bytes());
}

impl Writer {
    fn frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        self.head(kind, flags, stream, payload.len());
        self.out.extend_from_slice(payload);
    }

    fn head(&mut self, kind: u8, flags: u8, stream: u32, length: usize) {
        self.out.extend_from_slice(&(length as u32).to_be_bytes()[1..]);
        self.out.extend_from_slice(&[kind, flags]);
        self.out.extend_from_slice(&stream.to_be_bytes());
    }

    pub fn send(&mut self) -> io::Result<()> {
        let sent = self.stream.write_all(&self.out);
        self.out.clear();
        sent
    }

    pub fn shut(&self) -> io::Result<()> {
        self.stream.shut()
    }

    /// Begins a call; nothing is sent yet.
    pub fn begin(&mut self, headers: &[u8]) -> u32 {
        let stream = self.next;
        self.next += 2;
        self.frame(HEADERS, END_HEADERS, stream, headers);
        stream
    }

    /// Sends of a call's body what the server allows; `window` is that of the call. How much it was.
    pub fn body(&mut self, stream: u32, body: &[u8], window: &mut i64) -> io::Result<usize> {
        let mut sent = 0;
        loop {
            let room = (*window).min(self.allowed.connection).max(0) as usize;
            let length = (body.len() - sent).min(room).min(self.allowed.frame);
            if length == 0 {
                self.send()?;
                return Ok(sent);
            }
            let end = sent + length == body.len();
            self.head(DATA, if end { END_STREAM } else { 0 }, stream, length);
            let piece = &body[sent..sent + length];
            if length > COPIED {
                self.send()?;
                self.stream.write_all(piece)?;
            } else {
                self.out.extend_from_slice(piece);
            }
            *window -= length as i64;
            self.allowed.connection -= length as i64;
            sent += length;
            if end {
                self.send()?;
                return Ok(sent);
            }
        }
    }
}

impl Frames {
    /// The next frame; what the connection itself needs is told to `writer` and answered by it.
    pub fn next(
        &mut self,
        with: impl FnOnce(&mut dyn FnMut(&mut Writer)),
    ) -> io::Result<Frame<'_>> {
        self.0.fill(HEAD)?;
        let mut head = [0; HEAD];
        head.copy_from_slice(self.0.take(HEAD));
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let (kind, flags) = (head[3], head[4]);
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]) & WINDOW;
        self.0.fill(length)?;
        let bytes = self.0.take(length);
        let end = flags & END_STREAM != 0;
        let number = |at: usize| {
            let four = bytes.get(at..at + 4).and_then(|four| four.try_into().ok());
            four.map(u32::from_be_bytes).ok_or(io::Error::from(io::ErrorKind::InvalidData))
        };
        if matches!(kind, DATA | HEADERS) && flags & PADDED != 0 {
            return Err(io::Error::other("a padded frame"));
        }
        Ok(match kind {
            DATA => Frame::Data { stream, bytes, end },
            HEADERS if flags & END_HEADERS == 0 => return Err(io::Error::other("long headers")),
            HEADERS => Frame::Headers { stream, status: status(bytes), end },
            RESET => Frame::Reset { stream },
            GO_AWAY => return Err(io::Error::other("the server closes the connection")),
            SETTINGS if flags & ACK == 0 => {
                let mut all = Vec::new();
                for at in (0..length).step_by(6) {
                    all.push((number(at)? >> 16, number(at + 2)?));
                }
                with(&mut |writer| {
                    for (setting, value) in &all {
                        match setting {
                            4 => writer.allowed.stream = i64::from(*value),
                            5 => writer.allowed.frame = *value as usize,
                            _ => {}
                        }
                    }
                    writer.frame(SETTINGS, ACK, 0, &[]);
                });
                Frame::Other
            }
            PING if flags & ACK == 0 => {
                with(&mut |writer| writer.frame(PING, ACK, 0, bytes));
                Frame::Other
            }
            WINDOW_UPDATE => {
                let more = i64::from(number(0)? & WINDOW);
                if stream == 0 {
                    with(&mut |writer| writer.allowed.connection += more);
                    Frame::Other
                } else {
                    Frame::Grant { stream, bytes: more }
                }
            }
            _ => Frame::Other,
        })
    }
}

/// A connection with one call at a time.
pub struct Connection {
    writer: Writer,
    frames: Frames,
}

impl Connection {
    /// Connects, and waits until the server has said what it allows.
    pub fn open(address: &Address) -> io::Result<Self> {
        let (writer, frames) = connect(address)?;
        let mut connection = Self { writer, frames };
        let before = connection.writer.allowed.frame;
        for _ in 0..2 {
            connection.turn(0, &mut 0, &mut Ended { status: None, message: Vec::new() })?;
            if connection.writer.allowed.frame != before {
                break;
            }
        }
        connection.writer.send()?;
        Ok(connection)
    }

    /// One call with a message that has its prefix.
    pub fn call(&mut self, headers: &[u8], body: &[u8]) -> io::Result<Ended> {
        let stream = self.writer.begin(headers);
        let (mut window, mut sent) = (self.writer.allowed.stream, 0);
        let mut ended = Ended { status: None, message: Vec::new() };
        loop {
            if sent < body.len() {
                sent += self.writer.body(stream, &body[sent..], &mut window)?;
            }
            if self.turn(stream, &mut window, &mut ended)? {
                break;
            }
            if !self.writer.out.is_empty() {
                self.writer.send()?;
            }
        }
        // The answer's prefix is no part of its message.
        ended.message.drain(..5.min(ended.message.len()));
        Ok(ended)
    }

    /// Takes one frame in; whether the call is done.
    fn turn(&mut self, call: u32, window: &mut i64, ended: &mut Ended) -> io::Result<bool> {
        let writer = &mut self.writer;
        match self.frames.next(|tell| tell(writer))? {
            Frame::Data { stream, bytes, end } if stream == call => {
                ended.message.extend_from_slice(bytes);
                Ok(end)
            }
            Frame::Headers { stream, status, end } if stream == call => {
                ended.status = status.or(ended.status);
                Ok(end)
            }
            Frame::Reset { stream } if stream == call => {
                Err(io::Error::other("the server ended the call"))
            }
            Frame::Grant { stream, bytes } if stream == call => {
                *window += bytes;
                Ok(false)
            }
            _ => Ok(false),
        }
    }
}

/// `grpc-status` in a block of headers that needs no table, written plainly or in HPACK's Huffman code.
fn status(block: &[u8]) -> Option<u16> {
    const PLAIN: &[u8] = b"grpc-status";
    static CODED: OnceLock<Vec<u8>> = OnceLock::new();
    let after = |name: &[u8]| {
        let at = block.windows(name.len()).position(|window| window == name)?;
        block.get(at + name.len()..)
    };
    let value = after(CODED.get_or_init(huffman_name)).or_else(|| after(PLAIN))?;
    let (length, coded) = (usize::from(value.first()? & 0x7f), value.first()? & 0x80 != 0);
    let bytes = value.get(1..1 + length)?;
    if !coded {
        return std::str::from_utf8(bytes).ok()?.parse().ok();
    }
    digits(bytes)
}

/// `grpc-status` in HPACK's Huffman code.
fn huffman_name() -> Vec<u8> {
    // (code, bits) of g r p c - s t a t u s.
    let letters = [
        (0x26u8, 6u8),
        (0x2c, 6),
        (0x2b, 6),
        (0x4, 5),
        (0x16, 6),
        (0x8, 5),
        (0x9, 5),
        (0x3, 5),
        (0x9, 5),
        (0x2d, 6),
        (0x8, 5),
    ];
    let mut bits: Vec<u8> = Vec::new();
    for (code, length) in letters {
        bits.extend((0..length).rev().map(|at| code >> at & 1));
    }
    bits.resize(bits.len().next_multiple_of(8), 1);
    bits.chunks(8).map(|eight| eight.iter().fold(0, |byte, bit| byte << 1 | bit)).collect()
}

/// A number in HPACK's Huffman code: 0, 1 and 2 have five bits, the other digits six.
fn digits(bytes: &[u8]) -> Option<u16> {
    let bits: Vec<u16> = bytes
        .iter()
        .flat_map(|byte| (0..8).rev().map(move |at| u16::from(byte >> at & 1)))
        .collect();
    let value = |bits: &[u16]| bits.iter().fold(0, |value, bit| value << 1 | bit);
    let (mut at, mut number, mut any) = (0, 0u16, false);
    while at + 5 <= bits.len() {
        let short = value(&bits[at..at + 5]);
        let digit = if short <= 2 {
            at += 5;
            short
        } else {
            let Some(long) = bits.get(at..at + 6) else { break };
            match value(long) {
                // What is left of the last byte is ones.
                code @ 0x19..=0x1f => {
                    at += 6;
                    code - 0x19 + 3
                }
                _ => break,
            }
        };
        number = number.checked_mul(10)?.checked_add(digit)?;
        any = true;
    }
    any.then_some(number)
}
