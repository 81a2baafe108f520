//! Web servers of the tests, with TLS and without: each answers as the test says and remembers what it was
//! asked.

// Each test program uses its own part of it.
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection, StreamOwned};

/// A question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    pub path: String,
    headers: BTreeMap<String, String>,
}

impl Asked {
    /// A field by its name in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }
}

/// What is answered.
#[derive(Debug, Clone, Default)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(&'static str, String)>,
    pub body: Vec<u8>,
    /// Bytes after which the answer breaks off.
    pub cut: Option<usize>,
}

impl Answer {
    pub fn status(status: u16) -> Self {
        Self { status, ..Self::default() }
    }

    pub fn bytes(body: impl Into<Vec<u8>>) -> Self {
        Self { status: 200, body: body.into(), ..Self::default() }
    }

    pub fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    pub fn redirect(to: impl Into<String>) -> Self {
        Self::status(307).with("location", to)
    }

    /// All of a file, or the part of it that is asked for.
    pub fn file(asked: &Asked, bytes: &[u8]) -> Self {
        let from = asked.header("range").and_then(|range| range.strip_prefix("bytes="));
        let from = from.and_then(|range| range.strip_suffix('-')?.parse::<usize>().ok());
        match from {
            Some(from) if from < bytes.len() => {
                let all = bytes.len();
                let range = format!("bytes {from}-{}/{all}", all - 1);
                let part = Self { status: 206, ..Self::bytes(&bytes[from..]) };
                part.with("content-range", range)
            }
            Some(_) | None => Self::bytes(bytes),
        }
    }
}

/// A server that listens until the test ends.
pub struct Server {
    pub port: u16,
    tls: bool,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Server {
    /// `tls`: the files of a certificate and its key.
    pub fn start(
        tls: Option<(&Path, &Path)>,
        answer: impl Fn(&Asked) -> Answer + Send + Sync + 'static,
    ) -> Self {
        let config = tls.map(|(certificate, key)| server_config(certificate, key, None));
        Self::listen(config, answer)
    }

    /// One that lets in only those for whom an authority vouches.
    pub fn for_members(
        (certificate, key): (&Path, &Path),
        authority: &Path,
        answer: impl Fn(&Asked) -> Answer + Send + Sync + 'static,
    ) -> Self {
        Self::listen(Some(server_config(certificate, key, Some(authority))), answer)
    }

    fn listen(
        config: Option<Arc<ServerConfig>>,
        answer: impl Fn(&Asked) -> Answer + Send + Sync + 'static,
    ) -> Self {
        let tls = config.is_some();
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (heard, answer) = (Arc::clone(&asked), Arc::new(answer));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (config, heard, answer) = (config.clone(), heard.clone(), answer.clone());
                std::thread::spawn(move || serve(stream, config, &heard, &*answer));
            }
        });
        Self { port, tls, asked }
    }

    pub fn url(&self, path: &str) -> String {
        let scheme = if self.tls { "https" } else { "http" };
        format!("{scheme}://localhost:{}{path}", self.port)
    }

    /// Its name, as who the box is shown to is named.
    pub fn host(&self) -> String {
        format!("localhost:{}", self.port)
    }

    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }
}

fn server_config(certificate: &Path, key: &Path, members: Option<&Path>) -> Arc<ServerConfig> {
    let chain = CertificateDer::pem_file_iter(certificate).unwrap().map(Result::unwrap).collect();
    let key = PrivateKeyDer::from_pem_file(key).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .unwrap();
    let builder = match members {
        None => builder.with_no_client_auth(),
        Some(authority) => {
            let mut roots = RootCertStore::empty();
            roots.add(CertificateDer::from_pem_file(authority).unwrap()).unwrap();
            let verifier =
                WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
            builder.with_client_cert_verifier(verifier.unwrap())
        }
    };
    Arc::new(builder.with_single_cert(chain, key).unwrap())
}

fn serve(
    stream: TcpStream,
    config: Option<Arc<ServerConfig>>,
    heard: &Mutex<Vec<Asked>>,
    answer: &dyn Fn(&Asked) -> Answer,
) {
    // A client that does not trust the certificate, or goes away, is no failure of the server's.
    let _ = stream.set_read_timeout(Some(Duration::from_secs(60)));
    match config {
        None => drop(talk(stream, heard, answer)),
        Some(config) => {
            let connection = ServerConnection::new(config).unwrap();
            let mut stream = StreamOwned::new(connection, stream);
            if talk(&mut stream, heard, answer).is_ok() {
                stream.conn.send_close_notify();
                let _ = stream.flush();
            }
        }
    }
}

/// One question and its answer.
fn talk(
    mut stream: impl Read + Write,
    heard: &Mutex<Vec<Asked>>,
    answer: &dyn Fn(&Asked) -> Answer,
) -> std::io::Result<()> {
    let mut request = Vec::new();
    let mut byte = [0];
    while !request.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte)?;
        request.push(byte[0]);
    }
    let request = String::from_utf8(request).unwrap();
    let mut lines = request.lines();
    let path = lines.next().unwrap().split(' ').nth(1).unwrap().to_owned();
    let fields = lines.filter_map(|line| line.split_once(": "));
    let headers = fields.map(|(name, value)| (name.to_lowercase(), value.to_owned())).collect();
    let asked = Asked { path, headers };
    let Answer { status, headers, body, cut } = answer(&asked);
    heard.lock().unwrap().push(asked);
    let mut head = format!("HTTP/1.1 {status} -\r\nconnection: close\r\n");
    if status != 304 {
        head.push_str(&format!("content-length: {}\r\n", body.len()));
    }
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    stream.write_all(head.as_bytes())?;
    stream.write_all(b"\r\n")?;
    stream.write_all(&body[..cut.unwrap_or(body.len())])?;
    stream.flush()
}
