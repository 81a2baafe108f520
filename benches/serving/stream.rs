//! Addresses and connections, TCP and Unix sockets alike.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

/// `unix:PATH` or `HOST:PORT`.
#[derive(Debug, Clone)]
pub enum Address {
    Tcp(String),
    Unix(PathBuf),
}

impl Address {
    pub fn of(text: &str) -> Self {
        match text.strip_prefix("unix:") {
            Some(path) => Self::Unix(path.into()),
            None => Self::Tcp(text.to_owned()),
        }
    }
}

#[derive(Debug)]
pub enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Stream {
    pub fn connect(address: &Address) -> io::Result<Self> {
        match address {
            Address::Tcp(address) => {
                let stream = TcpStream::connect(address)?;
                stream.set_nodelay(true)?;
                Ok(Self::Tcp(stream))
            }
            Address::Unix(path) => UnixStream::connect(path).map(Self::Unix),
        }
    }

    pub fn try_clone(&self) -> io::Result<Self> {
        match self {
            Self::Tcp(stream) => stream.try_clone().map(Self::Tcp),
            Self::Unix(stream) => stream.try_clone().map(Self::Unix),
        }
    }

    /// Ends both directions, whoever waits in them.
    pub fn shut(&self) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.shutdown(std::net::Shutdown::Both),
            Self::Unix(stream) => stream.shutdown(std::net::Shutdown::Both),
        }
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(buffer),
            Self::Unix(stream) => stream.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.write(bytes),
            Self::Unix(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What was read of a connection and not looked at yet.
pub struct Incoming {
    stream: Stream,
    bytes: Vec<u8>,
    from: usize,
    to: usize,
}

impl Incoming {
    pub fn new(stream: Stream) -> Self {
        Self { stream, bytes: vec![0; 64 << 10], from: 0, to: 0 }
    }

    pub fn seen(&self) -> &[u8] {
        &self.bytes[self.from..self.to]
    }

    pub fn take(&mut self, length: usize) -> &[u8] {
        let from = self.from;
        self.from += length;
        &self.bytes[from..from + length]
    }

    /// Reads until at least so many bytes are there.
    pub fn fill(&mut self, length: usize) -> io::Result<()> {
        while self.to - self.from < length {
            self.more()?;
        }
        Ok(())
    }

    pub fn more(&mut self) -> io::Result<()> {
        if self.from == self.to {
            (self.from, self.to) = (0, 0);
        } else if self.to == self.bytes.len() {
            self.bytes.copy_within(self.from..self.to, 0);
            (self.from, self.to) = (0, self.to - self.from);
            if self.to * 2 > self.bytes.len() {
                self.bytes.resize(self.bytes.len() * 2, 0);
            }
        }
        match self.stream.read(&mut self.bytes[self.to..])? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            read => {
                self.to += read;
                Ok(())
            }
        }
    }
}
