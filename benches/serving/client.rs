//! The ways to ask a server, each with a request that is made once: what is timed is sending it, waiting, and
//! looking at the answer.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::atomic::{AtomicU32, Ordering};

use blochd::protocol::grpc::Message;
use blochd::protocol::grpc::frame;
use blochd::protocol::grpc::proto::inference as proto;
use proto::infer_parameter::ParameterChoice;
use proto::model_infer_request::{InferInputTensor, InferRequestedOutputTensor};

use crate::Error;
use crate::bare::Bare;
use crate::stream::Address;
use crate::{rest, wire};

/// `NAME=KIND@ADDRESS/MODEL`, such as `unix=grpc@unix:/run/b.sock/ocr`: what is asked, and how.
#[derive(Debug, Clone)]
pub struct Path {
    pub name: String,
    pub kind: Kind,
    pub address: Address,
    pub model: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Open Inference Protocol over gRPC, tensors as raw contents.
    Grpc,
    /// The same with input and output in shared memory.
    Shared,
    /// The same over REST, tensors as binary data.
    Rest,
    /// The input's bytes for the output's, to a server that speaks no protocol.
    Octets,
}

impl FromStr for Path {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = || {
            let (name, rest) = text.split_once('=')?;
            let (kind, rest) = rest.split_once('@')?;
            let (address, model) = rest.rsplit_once('/')?;
            let kind = match kind {
                "grpc" => Kind::Grpc,
                "shared" => Kind::Shared,
                "rest" => Kind::Rest,
                "octets" => Kind::Octets,
                _ => return None,
            };
            let (name, model) = (name.to_owned(), model.to_owned());
            Some(Self { name, kind, address: Address::of(address), model })
        };
        parts().ok_or_else(|| format!("{text:?} is not NAME=KIND@ADDRESS/MODEL"))
    }
}

/// How a call went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The expected answer of this number.
    Answer(usize),
    /// An answer that nobody expects.
    Wrong,
    /// The server's own code, of gRPC or of HTTP.
    Refused(u16),
}

/// One client: a connection, a request and the answers that may come.
pub struct Client {
    way: Way,
    expected: Vec<Vec<u8>>,
}

enum Way {
    Grpc { connection: wire::Connection, headers: Vec<u8>, body: Vec<u8> },
    Shared { connection: wire::Connection, headers: Vec<u8>, body: Vec<u8>, memory: Memory },
    Rest { connection: rest::Connection, request: Vec<u8> },
}

const SERVICE: &str = "/inference.GRPCInferenceService/";

impl Client {
    /// Connects. `bare` says what the model takes; `expected` are the bytes of outputs.
    pub fn open(path: &Path, bare: &Bare, expected: &[Vec<u8>]) -> Result<Self, Error> {
        let input = bare.input_bytes();
        let headers = wire::headers(&format!("{SERVICE}ModelInfer"), &[]);
        let way = match path.kind {
            Kind::Grpc => {
                let connection = wire::Connection::open(&path.address)?;
                Way::Grpc { connection, headers, body: grpc_body(&path.model, bare) }
            }
            Kind::Shared => {
                let mut connection = wire::Connection::open(&path.address)?;
                let output = expected.first().map_or(0, Vec::len);
                let memory = Memory::new(input, output)?;
                memory.register(&mut connection)?;
                let body = framed(&memory.request(&path.model, bare).encode_to_vec());
                Way::Shared { connection, headers, body, memory }
            }
            Kind::Rest => {
                let connection = rest::Connection::open(&path.address)?;
                Way::Rest { connection, request: rest_request(&path.model, bare) }
            }
            Kind::Octets => {
                let connection = rest::Connection::open(&path.address)?;
                let request = rest::request(&format!("/{}", path.model), &[], &input);
                Way::Rest { connection, request }
            }
        };
        Ok(Self { way, expected: expected.to_vec() })
    }

    /// One request and its answer.
    pub fn call(&mut self) -> io::Result<Outcome> {
        match &mut self.way {
            Way::Grpc { connection, headers, body } => {
                let ended = connection.call(headers, body)?;
                Ok(seen(&self.expected, &ended))
            }
            Way::Shared { connection, headers, body, memory } => {
                memory.write()?;
                let ended = connection.call(headers, body)?;
                if ended.status != Some(0) {
                    return Ok(seen(&self.expected, &ended));
                }
                let output = memory.read()?;
                Ok(which(&self.expected, output))
            }
            Way::Rest { connection, request } => {
                let answer = connection.call(request)?;
                if answer.status != 200 {
                    return Ok(Outcome::Refused(answer.status));
                }
                Ok(which(&self.expected, &answer.body))
            }
        }
    }
}

/// What a call of gRPC came to.
pub fn seen(expected: &[Vec<u8>], ended: &wire::Ended) -> Outcome {
    match ended.status {
        Some(0) => which(expected, &ended.message),
        status => Outcome::Refused(status.unwrap_or(u16::MAX)),
    }
}

/// Answers end with the bytes of their only output: it is the message's last field, and the binary data of REST.
fn which(expected: &[Vec<u8>], answer: &[u8]) -> Outcome {
    let found = expected.iter().position(|output| answer.ends_with(output));
    found.map_or(Outcome::Wrong, Outcome::Answer)
}

fn request(model: &str, bare: &Bare) -> proto::ModelInferRequest {
    let input = InferInputTensor {
        name: bare.name.clone(),
        datatype: "FP32".to_owned(),
        shape: bare.shape.clone(),
        ..Default::default()
    };
    let output = InferRequestedOutputTensor { name: bare.output.clone(), ..Default::default() };
    proto::ModelInferRequest {
        model_name: model.to_owned(),
        inputs: vec![input],
        outputs: vec![output],
        ..Default::default()
    }
}

fn framed(message: &[u8]) -> Vec<u8> {
    let prefix = frame::prefix(message.len()).expect("a message of less than 4 GiB");
    [&prefix, message].concat()
}

/// A request with its tensor, as a call's body.
pub fn grpc_body(model: &str, bare: &Bare) -> Vec<u8> {
    let mut request = request(model, bare);
    request.raw_input_contents = vec![bare.input_bytes().into()];
    framed(&request.encode_to_vec())
}

fn rest_request(model: &str, bare: &Bare) -> Vec<u8> {
    let input = bare.input_bytes();
    let json = serde_json::json!({
        "inputs": [{
            "name": bare.name, "datatype": "FP32", "shape": bare.shape,
            "parameters": {"binary_data_size": input.len()},
        }],
        "outputs": [{"name": bare.output, "parameters": {"binary_data": true}}],
    })
    .to_string();
    let length = ("Inference-Header-Content-Length", json.len().to_string());
    let body = [json.as_bytes(), &input].concat();
    rest::request(&format!("/v2/models/{model}/infer"), &[length], &body)
}

/// A region of POSIX shared memory with the input in front of the output.
struct Memory {
    file: fs::File,
    path: PathBuf,
    input: Vec<u8>,
    output: Vec<u8>,
}

impl Memory {
    fn new(input: Vec<u8>, output: usize) -> io::Result<Self> {
        static REGIONS: AtomicU32 = AtomicU32::new(0);
        let number = REGIONS.fetch_add(1, Ordering::Relaxed);
        let path = PathBuf::from(format!("/dev/shm/serving-{}-{number}", std::process::id()));
        let mut file = fs::File::options().read(true).write(true).create_new(true).open(&path)?;
        file.write_all(&vec![0; input.len() + output])?;
        Ok(Self { file, path, input, output: vec![0; output] })
    }

    fn name(&self) -> String {
        self.path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
    }

    fn register(&self, connection: &mut wire::Connection) -> Result<(), Error> {
        let (name, key) = (self.name(), format!("/{}", self.name()));
        let byte_size = (self.input.len() + self.output.len()) as u64;
        let request =
            proto::SystemSharedMemoryRegisterRequest { name, key, byte_size, ..Default::default() };
        let headers = wire::headers(&format!("{SERVICE}SystemSharedMemoryRegister"), &[]);
        let ended = connection.call(&headers, &framed(&request.encode_to_vec()))?;
        match ended.status {
            Some(0) => Ok(()),
            status => Err(format!("shared memory is not registered: {status:?}").into()),
        }
    }

    fn request(&self, model: &str, bare: &Bare) -> proto::ModelInferRequest {
        let mut request = request(model, bare);
        let of = |choice| proto::InferParameter { parameter_choice: Some(choice) };
        let number = |value: usize| of(ParameterChoice::Int64Param(value as i64));
        let range = |offset: usize, size: usize| {
            [
                ("shared_memory_region", of(ParameterChoice::StringParam(self.name()))),
                ("shared_memory_offset", number(offset)),
                ("shared_memory_byte_size", number(size)),
            ]
            .map(|(name, value)| (name.to_owned(), value))
        };
        request.inputs[0].parameters.extend(range(0, self.input.len()));
        request.outputs[0].parameters.extend(range(self.input.len(), self.output.len()));
        request
    }

    /// A camera would write its frame here.
    fn write(&self) -> io::Result<()> {
        self.file.write_all_at(&self.input, 0)
    }

    fn read(&mut self) -> io::Result<&[u8]> {
        self.file.read_exact_at(&mut self.output, self.input.len() as u64)?;
        Ok(&self.output)
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}
