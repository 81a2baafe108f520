//! The unmodified `tritonclient[grpc,http]` from PyPI against a real server.

mod python;
mod running;
mod serving;

use std::path::Path;

use blochd::onnx::{DType, ExecError, Tensor};
use blochd::protocol::{Signature, TensorSpec};
use blochd::shell::engine::{EngineOptions, LiveSession, Search, init};
use blochd::shell::places::state_dir;
use blochd::shell::slot::Runner;

use python::{python, run};
use running::{Home, model};
use serving::Served;

#[test]
fn the_unmodified_tritonclient_is_served() {
    let served = Served::start(1 << 20);
    served.add("types", serving::types(), serving::echo());
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/tritonclient_calls.py");
    let address = served.http.to_string();
    let admin = served.admin.to_string();
    let more = ["--types", "types", "--reload", "types", "--admin", &admin];
    run(python().args([script, &address]).args(more));
}

const GRPC: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/tritonclient_grpc_calls.py");

/// A model that waits until `open` is asked, and one that waits until it does so; all give their input back.
fn gate() -> [(&'static str, Box<dyn Runner>); 3] {
    let (begin, begun) = std::sync::mpsc::channel();
    let (open, opened) = std::sync::mpsc::channel();
    let give = |inputs: &[(&str, &Tensor)]| Ok::<_, ExecError>(vec![inputs[0].1.clone()]);
    let gate = move |inputs: &[(&str, &Tensor)], _: &[&str]| {
        begin.send(()).unwrap();
        opened.recv().unwrap();
        give(inputs)
    };
    let begun = move |inputs: &[(&str, &Tensor)], _: &[&str]| {
        begun.recv().unwrap();
        give(inputs)
    };
    let open = move |inputs: &[(&str, &Tensor)], _: &[&str]| {
        open.send(()).unwrap();
        give(inputs)
    };
    [("gate", Box::new(gate)), ("begun", Box::new(begun)), ("open", Box::new(open))]
}

#[test]
fn the_unmodified_tritonclient_is_served_over_grpc_and_shared_memory() {
    let served = Served::start(1 << 20);
    served.add("types", serving::types(), serving::echo());
    for spec in serving::types().inputs {
        let word = blochd::protocol::datatype(spec.dtype);
        let one = |name: &str| TensorSpec { name: name.to_owned(), ..spec.clone() };
        let signature = Signature { inputs: vec![one("in")], outputs: vec![one("out")] };
        served.add(&format!("echo_{word}"), signature, serving::echo());
    }
    let unix = format!("unix:{}", served.unix.display());
    let (http, admin) = (served.http.to_string(), served.admin.to_string());
    // Over the Unix socket its owner loads and unloads, too.
    for (target, admin) in [(served.grpc.to_string(), &admin), (unix.clone(), &unix)] {
        let x = vec![serving::spec("x", DType::F32, &[-1])];
        for (model, session) in gate() {
            let signature = Signature { inputs: x.clone(), outputs: x.clone() };
            served.add(model, signature, session);
        }
        let more = ["--types", "types", "--reload", "types", "--gate", "gate", "--http", &http];
        let admin = (target != *admin).then_some(["--admin", admin]);
        run(python().args([GRPC, &target]).args(more).args(admin.into_iter().flatten()));
    }
}

#[test]
fn the_unmodified_tritonclient_is_served_by_a_real_model() {
    let runtime = init(&Search::new(None, &state_dir())).unwrap_or_else(|error| panic!("{error}"));
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/models/digits_resnet.onnx");
    let options = EngineOptions::default();
    let session = LiveSession::open_file(&runtime, Path::new(model), &options).unwrap();
    let served = Served::start(1 << 20);
    served.add("digits", Signature::from(&session), Box::new(session));
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/tritonclient_calls.py");
    let admin = served.admin.to_string();
    run(python().args([script, &served.http.to_string(), "--admin", &admin]));
    run(python().args([GRPC, &served.grpc.to_string(), "--admin", &admin]));
}

#[test]
fn the_unmodified_tritonclient_is_served_by_the_agent() {
    let home = Home::new();
    home.configure("defaults: {ladder: {enabled: false}}\nunix_socket: b.sock");
    home.drop_model(&model("digits_mobile.onnx"), "digits/3/model.onnx");
    home.drop_model(&model("fixtures/mlp_gemm.onnx"), "mlp.onnx");
    home.drop_model(&model("fixtures/bad/truncated.onnx"), "broken/1/model.onnx");
    let agent = home.start_ready();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/tritonclient_calls.py");
    let address = format!("127.0.0.1:{}", home.http);
    let more = ["--reload", "digits", "--broken", "broken"];
    let admin = format!("127.0.0.1:{}", home.admin);
    run(python().args([script, &address, "--admin", &admin]).args(more));
    let unix = format!("unix:{}", home.dir.path().join("b.sock").display());
    run(python().args([GRPC, &unix, "--no-memory"]).args(more));
    let target = format!("127.0.0.1:{}", home.grpc);
    run(python().args([GRPC, &target, "--no-memory", "--admin", &admin]).args(more));
    // What was unloaded and loaded again still serves.
    assert!(agent.serves("digits", 3) && agent.infer("digits").is_ok());
}
