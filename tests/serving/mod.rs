//! A real server on real sockets, with sessions that are closures, for tests that speak HTTP and gRPC.

// Each test program uses its own part of it.
#![allow(dead_code)]

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use blochd::onnx::{DType, ExecError, Tensor};
use blochd::protocol::Signature;
use blochd::shell::metrics::Metrics;
use blochd::shell::serve::{App, Door, UnixSocket, serve, serve_metrics};
use blochd::shell::slot::{
    Command, CommandError, Commands, Entry, ModelState, Repository, Runner, Slot, SlotOptions,
    VariantInfo,
};
use blochd::shell::systemd::Life;
use blochd::units::{Digest, Version};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

#[path = "../specs/mod.rs"]
mod specs;

pub use specs::spec;

/// A running server; stops when it is dropped.
pub struct Served {
    pub repository: Arc<Repository>,
    pub metrics: Arc<Metrics>,
    pub http: SocketAddr,
    pub grpc: SocketAddr,
    /// Where models are loaded and unloaded.
    pub admin: SocketAddr,
    /// Both protocols over one Unix socket.
    pub unix: PathBuf,
    pub metrics_at: SocketAddr,
    pub stop: CancellationToken,
    /// Gives the number of connections that were cut off once the server has stopped.
    pub ended: Option<tokio::task::JoinHandle<usize>>,
    pub runtime: tokio::runtime::Runtime,
    _folder: tempfile::TempDir,
}

impl Drop for Served {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Served {
    /// A server of an empty repository that is ready, with bodies of at most `max_body` bytes.
    pub fn start(max_body: usize) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let (repository, commands) = Repository::new();
        repository.set_ready(true);
        let metrics = Arc::new(Metrics::new(Arc::clone(&repository)));
        let stop = CancellationToken::new();
        let bind = || runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let [rest, calls, commands_listener, metrics_listener] = [(); 4].map(|()| bind());
        let [http, grpc, admin, metrics_at] =
            [&rest, &calls, &commands_listener, &metrics_listener]
                .map(|listener| listener.local_addr().unwrap());
        let folder = tempfile::tempdir().unwrap();
        let unix = folder.path().join("s.sock");
        let socket = runtime.block_on(UnixSocket::bind(&unix)).unwrap();
        let doors = vec![
            Door::Rest(rest),
            Door::Grpc(calls),
            Door::Admin(commands_listener),
            Door::Unix(socket),
        ];
        let status = Arc::new(|| serde_json::json!({ "models": [] }));
        let app = App::with_max_body(Arc::clone(&repository), status, max_body);
        let app = Arc::new(app.sharing_memory(true));
        let grace = tokio::sync::watch::channel(Duration::from_secs(30)).1;
        let ended = runtime.spawn(serve(doors, app, stop.clone(), grace));
        let (counters, stopped) = (Arc::clone(&metrics), stop.clone());
        runtime.spawn(async move {
            let gate = Arc::default();
            serve_metrics(metrics_listener, (counters, gate), stopped, &Life::default()).await
        });
        runtime.spawn(agent(Arc::clone(&repository), commands));
        let ended = Some(ended);
        let _folder = folder;
        Self {
            repository,
            metrics,
            http,
            grpc,
            admin,
            unix,
            metrics_at,
            stop,
            ended,
            runtime,
            _folder,
        }
    }

    /// Stops the server and waits for its end; the number of connections that were cut off.
    pub fn finish(&mut self) -> usize {
        self.stop.cancel();
        self.runtime.block_on(self.ended.take().unwrap()).unwrap()
    }

    /// Serves `model` with one session.
    pub fn add(&self, model: &str, signature: Signature, session: Box<dyn Runner>) -> Arc<Slot> {
        self.put(model, slot(model, 1, signature, session))
    }

    /// The same with a queue of `queue` requests.
    pub fn add_with_queue(
        &self,
        model: &str,
        signature: Signature,
        session: Box<dyn Runner>,
        queue: usize,
    ) -> Arc<Slot> {
        self.put(model, slot_with_queue(model, 1, signature, session, queue))
    }

    fn put(&self, model: &str, slot: Slot) -> Arc<Slot> {
        let slot = Arc::new(slot);
        self.repository.set(model, Version(1), Entry::Ready(Arc::clone(&slot)));
        slot
    }
}

pub fn slot(model: &str, version: u64, signature: Signature, session: Box<dyn Runner>) -> Slot {
    // A client's stream has more under way than the queues of most tests.
    slot_with_queue(model, version, signature, session, 64)
}

pub fn slot_with_queue(
    model: &str,
    version: u64,
    signature: Signature,
    session: Box<dyn Runner>,
    queue: usize,
) -> Slot {
    let options = SlotOptions {
        model: model.to_owned(),
        version: Version(version),
        signature,
        queue,
        timeout: None,
        notices: None,
    };
    let digest = Digest::of(model.as_bytes());
    let name = "dense".to_owned();
    let dense = VariantInfo { name, digest, ratio: 1.0, quality: 1.0, promised: None };
    Slot::start(options, dense, vec![session]).unwrap()
}

/// Answers commands as an agent does: `types` can be unloaded and loaded again, `broken` fails.
async fn agent(repository: Arc<Repository>, mut commands: Commands) {
    while let Some(command) = commands.recv().await {
        match command {
            Command::Load { model, answer } => {
                let done = match model.as_str() {
                    "types" => {
                        let ready = slot("types", 1, types(), echo());
                        repository.set("types", Version(1), Entry::Ready(Arc::new(ready)));
                        Ok(())
                    }
                    "broken" => Err(CommandError::Failed("model.onnx is truncated".to_owned())),
                    _ => Err(CommandError::UnknownModel { model }),
                };
                let _ = answer.send(done);
            }
            Command::Unload { model, answer } => {
                let (state, reason) = (ModelState::Unavailable, "unloaded".to_owned());
                let before = repository.set(&model, Version(1), Entry::Unready { state, reason });
                if let Some(Entry::Ready(slot)) = before {
                    slot.close();
                }
                let _ = answer.send(Ok(()));
            }
        }
    }
}

pub fn sum_signature() -> Signature {
    Signature {
        inputs: vec![spec("x", DType::F32, &[-1])],
        outputs: vec![spec("y", DType::F32, &[1])],
    }
}

/// Adds its inputs up; fails on a sum below zero.
pub fn sum() -> Box<dyn Runner> {
    let run = |inputs: &[(&str, &Tensor)], _: &[&str]| -> Result<Vec<Tensor>, ExecError> {
        let total: f32 = inputs[0].1.to_f32().unwrap().iter().sum();
        if total < 0.0 {
            let (doing, reason) = ("running node Sqrt_3".to_owned(), "negative".to_owned());
            return Err(ExecError { doing, reason });
        }
        Ok(vec![Tensor::from_f32(&[1], &[total])])
    };
    Box::new(run)
}

/// A session that tells what it starts with, the sum of its inputs, and waits for the test's word.
pub fn gated() -> (Box<dyn Runner>, mpsc::Receiver<f32>, mpsc::Sender<()>) {
    let (tell, started) = mpsc::channel();
    let (go, wait) = mpsc::channel();
    let mut inner = sum();
    let run = move |inputs: &[(&str, &Tensor)], wanted: &[&str]| {
        tell.send(inputs[0].1.to_f32().unwrap().iter().sum()).unwrap();
        wait.recv().unwrap();
        inner.run(inputs, wanted)
    };
    (Box::new(run), started, go)
}

/// One input and one output of each type: `in_FP32` → `out_FP32`.
pub fn types() -> Signature {
    use DType::*;
    let all = [F32, U8, I8, U16, I16, I32, I64, String, Bool, F16, F64, U32, U64, BF16];
    let word = blochd::protocol::datatype;
    let each = |prefix: &str| {
        all.iter().map(|d| spec(&format!("{prefix}_{}", word(*d)), *d, &[-1, 2])).collect()
    };
    Signature { inputs: each("in"), outputs: each("out") }
}

/// A session that gives `in_X` back as `out_X`.
pub fn echo() -> Box<dyn Runner> {
    let run = |inputs: &[(&str, &Tensor)], wanted: &[&str]| -> Result<Vec<Tensor>, ExecError> {
        let give = |name: &&str| {
            let source = name.replacen("out", "in", 1);
            let found = inputs.iter().find(|(name, _)| *name == source);
            found.map(|(_, tensor)| (*tensor).clone()).unwrap()
        };
        Ok(wanted.iter().map(give).collect())
    };
    Box::new(run)
}
