//! HTTP/1.1 on a blocking socket that is kept open: a request that is made once, and the body of its answer.

use std::io::{self, Write};

use crate::stream::{Address, Incoming, Stream};

const END: &[u8] = b"\r\n\r\n";

pub struct Connection {
    stream: Stream,
    incoming: Incoming,
}

/// A status code and a body.
pub struct Answer {
    pub status: u16,
    pub body: Vec<u8>,
}

/// A POST request.
pub fn request(path: &str, headers: &[(&str, String)], body: &[u8]) -> Vec<u8> {
    let mut head = format!(
        "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/octet-stream\r\n\
         Content-Length: {}\r\n",
        body.len()
    );
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    [head.as_bytes(), b"\r\n", body].concat()
}

impl Connection {
    pub fn open(address: &Address) -> io::Result<Self> {
        let stream = Stream::connect(address)?;
        let incoming = Incoming::new(stream.try_clone()?);
        Ok(Self { stream, incoming })
    }

    pub fn call(&mut self, request: &[u8]) -> io::Result<Answer> {
        self.stream.write_all(request)?;
        let length = loop {
            let seen = self.incoming.seen();
            match seen.windows(END.len()).position(|window| window == END) {
                Some(at) => break at + END.len(),
                None => self.incoming.more()?,
            }
        };
        let head = std::str::from_utf8(self.incoming.take(length)).map_err(io::Error::other)?;
        let wrong = || io::Error::other(format!("an answer that is not understood: {head}"));
        let status = head.split(' ').nth(1).and_then(|word| word.parse().ok()).ok_or_else(wrong)?;
        let named = |line: &str| {
            let (name, value) = line.split_once(':')?;
            let wanted = name.eq_ignore_ascii_case("content-length");
            wanted.then(|| value.trim().parse().ok()).flatten()
        };
        let length = head.lines().find_map(named).ok_or_else(wrong)?;
        self.incoming.fill(length)?;
        Ok(Answer { status, body: self.incoming.take(length).to_vec() })
    }
}
