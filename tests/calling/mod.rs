//! A client of gRPC that holds every frame in its own hands, for tests that look at what goes over the wire.

// Each test program uses its own part of it.
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use blochd::onnx::DType;
use blochd::protocol::datatype;
use blochd::protocol::grpc::Message;
use blochd::protocol::grpc::frame::PREFIX;
use blochd::protocol::grpc::proto::grpc::health::v1 as health;
use blochd::protocol::grpc::proto::inference as proto;
use bytes::Bytes;
use http_body_util::channel::{Channel, Sender};
use http_body_util::{BodyExt, Full, combinators::BoxBody};
use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

/// Nothing that is waited for takes longer, unless it is broken.
const PATIENCE: Duration = Duration::from_secs(60);

/// The streaming call of the health service.
pub const WATCH: &str = "/grpc.health.v1.Health/Watch";

type Body = BoxBody<Bytes, hyper::Error>;

/// A connection of gRPC.
#[derive(Clone)]
pub struct Caller(SendRequest<Body>);

/// How a call ended.
#[derive(Debug)]
pub struct Ended {
    pub code: u32,
    pub message: String,
    /// `grpc-retry-pushback-ms`.
    pub pushback: Option<u32>,
    /// Headers of the answer.
    pub headers: BTreeMap<String, String>,
    /// Without their prefixes.
    pub messages: Vec<Bytes>,
}

impl Ended {
    pub fn answer<M: Message>(&self) -> M {
        assert_eq!(self.code, 0, "{self:?}");
        M::decode_from_slice(&self.messages[0]).unwrap()
    }
}

/// A message with its prefix.
pub fn framed(message: &[u8]) -> Bytes {
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    [&[0], &length[..], message].concat().into()
}

/// A request for `model` with one raw FP32 input `x`.
pub fn infer(model: &str, id: &str, values: &[f32]) -> proto::ModelInferRequest {
    let data: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let input = proto::model_infer_request::InferInputTensor {
        name: "x".to_owned(),
        datatype: datatype(DType::F32).to_owned(),
        shape: vec![values.len() as i64],
        ..Default::default()
    };
    proto::ModelInferRequest {
        model_name: model.to_owned(),
        id: id.to_owned(),
        inputs: vec![input],
        raw_input_contents: vec![data.into()],
        ..Default::default()
    }
}

/// The first output of an answer as numbers.
pub fn values(answer: &proto::ModelInferResponse) -> Vec<f32> {
    let data = answer.raw_output_contents[0].as_chunks().0.iter();
    data.map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

impl Caller {
    pub async fn tcp(address: SocketAddr) -> Self {
        Self::over(TcpStream::connect(address).await.unwrap()).await
    }

    pub async fn unix(path: &Path) -> Self {
        Self::over(UnixStream::connect(path).await.unwrap()).await
    }

    async fn over(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Self {
        let (sender, connection) =
            http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        Self(sender)
    }

    /// Sends a call; its answer's head and body.
    pub async fn send(
        &self,
        path: &str,
        headers: &[(&str, &str)],
        body: Body,
    ) -> hyper::Result<Response<Incoming>> {
        let mut request = Request::post(format!("http://test{path}"));
        let usual = [("content-type", "application/grpc"), ("te", "trailers")];
        for (name, value) in headers.iter().chain(&usual) {
            if !request.headers_ref().unwrap().contains_key(*name) {
                request = request.header(*name, *value);
            }
        }
        self.0.clone().send_request(request.body(body).unwrap()).await
    }

    /// A call of the inference service with the bytes of its body.
    pub async fn bytes(&self, name: &str, headers: &[(&str, &str)], body: Bytes) -> Ended {
        let path = format!("/inference.GRPCInferenceService/{name}");
        self.path(&path, headers, body).await
    }

    pub async fn path(&self, path: &str, headers: &[(&str, &str)], body: Bytes) -> Ended {
        let body = Full::new(body).map_err(|never| match never {}).boxed();
        ended(self.send(path, headers, body).await.unwrap()).await
    }

    /// A call with one message.
    pub async fn call(&self, name: &str, message: &impl Message) -> Ended {
        self.bytes(name, &[], framed(&message.encode_to_vec())).await
    }

    /// A stream of requests, of which the sender gives the frames.
    pub async fn stream(&self) -> (Sender<Bytes, hyper::Error>, Stream) {
        let (sender, body) = Channel::<Bytes, hyper::Error>::new(4);
        let path = "/inference.GRPCInferenceService/ModelStreamInfer";
        let response = self.send(path, &[], body.boxed()).await.unwrap();
        (sender, Stream { response, rest: Vec::new() })
    }
}

impl Caller {
    /// Watches the health of the server (nothing) or of a model.
    pub async fn watch(&self, service: &str) -> Stream {
        let service = service.to_owned();
        let asked = health::HealthCheckRequest { service };
        let body = Full::new(framed(&asked.encode_to_vec())).map_err(|never| match never {});
        let response = self.send(WATCH, &[], body.boxed()).await.unwrap();
        Stream { response, rest: Vec::new() }
    }
}

/// The answers of a stream.
pub struct Stream {
    response: Response<Incoming>,
    rest: Vec<u8>,
}

impl Stream {
    /// The next answer, or how the stream ended.
    pub async fn next(&mut self) -> Result<proto::ModelStreamInferResponse, (u32, String)> {
        self.message().await
    }

    /// The next status of a watch, or how it ended.
    pub async fn health(
        &mut self,
    ) -> Result<health::health_check_response::ServingStatus, (u32, String)> {
        let answer: health::HealthCheckResponse = self.message().await?;
        Ok(answer.status.as_known().unwrap())
    }

    async fn message<M: Message>(&mut self) -> Result<M, (u32, String)> {
        loop {
            if let Some(message) = split(&mut self.rest) {
                return Ok(M::decode_from_slice(&message).unwrap());
            }
            let frame = self.response.body_mut().frame();
            let frame = tokio::time::timeout(PATIENCE, frame).await.expect("an answer in time");
            match frame.expect("trailers at the end").unwrap().into_data() {
                Ok(data) => self.rest.extend_from_slice(&data),
                Err(trailers) => {
                    let status = status(trailers.trailers_ref().unwrap()).unwrap();
                    return Err((status.0, status.1));
                }
            }
        }
    }
}

fn split(rest: &mut Vec<u8>) -> Option<Bytes> {
    let length = u32::from_be_bytes(rest.get(1..PREFIX)?.try_into().unwrap()) as usize;
    let message = Bytes::copy_from_slice(rest.get(PREFIX..PREFIX + length)?);
    rest.drain(..PREFIX + length);
    Some(message)
}

fn status(headers: &hyper::HeaderMap) -> Option<(u32, String, Option<u32>)> {
    let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap().to_owned());
    let code = text("grpc-status")?.parse().unwrap();
    let pushback = text("grpc-retry-pushback-ms").map(|text| text.parse().unwrap());
    Some((code, text("grpc-message").unwrap_or_default(), pushback))
}

/// All of a call's answer.
pub async fn ended(response: Response<Incoming>) -> Ended {
    let named = |(name, value): (&hyper::header::HeaderName, &hyper::header::HeaderValue)| {
        (name.to_string(), value.to_str().unwrap().to_owned())
    };
    let headers = response.headers().iter().map(named).collect();
    let at_once = status(response.headers());
    let collected = tokio::time::timeout(PATIENCE, response.into_body().collect());
    let collected = collected.await.expect("an answer in time").unwrap();
    let later = collected.trailers().and_then(status);
    let (code, message, pushback) = at_once.or(later).expect("a status");
    let mut rest = collected.to_bytes().to_vec();
    let messages = std::iter::from_fn(|| split(&mut rest)).collect();
    assert!(rest.is_empty());
    Ended { code, message, pushback, headers, messages }
}
