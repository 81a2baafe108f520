//! What decoding and encoding a model costs: time, and the most memory held against the file's size.
//!
//! `cargo bench --bench graph_io` makes models of 90 MB and 1 GB in a temporary folder (`TMPDIR`), with the
//! weights inside and outside, and reads and writes each in children of its own. `BLOCHD_BENCH_PYTHON` names a
//! Python with the onnx package, which is then asked to do the same.

use std::ffi::OsStr;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use blochd::onnx::proto::{
    GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, ValueInfoProto,
};
use blochd::onnx::{DType, Model, entry, tensor};
use blochd::shell::models;
use bytes::Bytes;
use measure::{child, median, milliseconds, number, peak_memory};

mod measure;

const ROUNDS: usize = 7;

/// Bytes of each weight: 1024 × 1024 floats, as in a transformer of middling width.
const WEIGHT: usize = 4 << 20;

fn main() {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    if let [mode, model, out] = &arguments[..] {
        let out = Path::new(out);
        match mode.to_str() {
            Some("--code") => return coded(Path::new(model)),
            Some("--save") => return saved(Path::new(model), out),
            _ => {}
        }
    }
    // Cargo's test runner calls benches without `--bench`; this one writes gigabytes.
    if !arguments.iter().any(|argument| argument == "--bench") {
        return;
    }
    println!(
        "\nMedian of {ROUNDS} runs (least to most), each in a process of its own, files in memory\n"
    );
    println!(
        "| model | MB | decode, ms | encode, ms | every byte copied out once, ms | all three, MB/s | \
         peak memory / file | saved and synced, MB/s | peak memory / file |"
    );
    println!("|---|{}", "---|".repeat(8));
    for (label, weights, outside) in [
        ("90 MB, weights inside", 22, false),
        ("90 MB, weights outside", 22, true),
        ("1 GB, weights inside", 238, false),
        ("1 GB, weights outside", 238, true),
    ] {
        row(label, weights, outside);
    }
}

fn row(label: &str, weights: usize, outside: bool) {
    let folder = tempfile::tempdir().expect("a folder for the models");
    let path = folder.path().join("model.onnx");
    let size = make(&path, weights, outside) as f64;
    let out = folder.path().join("again.onnx");
    let ask = |mode: &str| child(&[OsStr::new(mode), path.as_os_str(), out.as_os_str()]);
    let coded: Vec<_> = (0..ROUNDS).map(|_| ask("--code")).collect();
    let saved: Vec<_> = (0..3).map(|_| ask("--save")).collect();
    let all = |from: &[serde_json::Value], key: &str| -> Vec<f64> {
        from.iter().map(|told| number(told, key)).collect()
    };
    let parts = ["decode", "encode", "copy"].map(|key| all(&coded, key));
    let whole: Vec<f64> = (0..ROUNDS).map(|i| parts.iter().map(|part| part[i]).sum()).collect();
    let rate = |seconds: &[f64]| size / 1e6 / median(seconds);
    let [decode, encode, copy] = parts.map(|part| milliseconds(&part));
    println!(
        "| {label} | {:.0} | {decode} | {encode} | {copy} | {:.0} | {:.2} | {:.0} | {:.2} |",
        size / 1e6,
        rate(&whole),
        median(&all(&coded, "peak")) / size,
        rate(&all(&saved, "save")),
        median(&all(&saved, "peak")) / size,
    );
    let Some(python) = std::env::var_os("BLOCHD_BENCH_PYTHON") else { return };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/peers/graph_io.py");
    let peer = || -> serde_json::Value {
        let output = Command::new(&python).arg(&script).arg(&path).output().expect("Python starts");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).expect("JSON from the peer")
    };
    let told: Vec<_> = (0..3).map(|_| peer()).collect();
    let parts = ["decode", "encode"].map(|key| all(&told, key));
    let whole: Vec<f64> = (0..told.len()).map(|i| parts[0][i] + parts[1][i]).collect();
    let peak = median(&all(&told, "peak")) / size;
    let [decode, encode] = parts.map(|part| milliseconds(&part));
    println!(
        "| the same, Python's onnx | | {decode} | {encode} | – | {:.0} | {peak:.2} | – | – |",
        rate(&whole)
    );
}

/// The child: decodes and encodes, and copies what comes out, piece by piece, as whoever writes it does.
fn coded(path: &Path) {
    let start = Instant::now();
    let model = models::load(path).expect("a model");
    let decoded = Instant::now();
    let encoded = model.encode("model.data").expect("an encoded model");
    let done = Instant::now();
    let mut piece = vec![0u8; 1 << 20];
    for chunk in encoded.main.iter().chain(encoded.data.iter().flat_map(|(_, chunks)| chunks)) {
        for part in chunk.chunks(piece.len()) {
            piece[..part.len()].copy_from_slice(part);
            std::hint::black_box(&piece);
        }
    }
    let told = serde_json::json!({
        "decode": (decoded - start).as_secs_f64(),
        "encode": (done - decoded).as_secs_f64(),
        "copy": done.elapsed().as_secs_f64(),
        "peak": peak_memory(),
    });
    println!("{told}");
}

/// The child: loads a model and saves it under another name, synced to the disk.
fn saved(path: &Path, out: &Path) {
    let start = Instant::now();
    let model = models::load(path).expect("a model");
    models::save(&model, out).expect("room for a model");
    let seconds = start.elapsed().as_secs_f64();
    println!("{}", serde_json::json!({ "save": seconds, "peak": peak_memory() }));
}

/// Writes a chain of matrix products and says how many bytes its files have.
fn make(path: &Path, weights: usize, outside: bool) -> u64 {
    let side = (WEIGHT / 4).isqrt();
    let initializer = (0..weights).map(|i| {
        let value = |j: usize| ((i * 7919 + j) % 1009) as f32 / 1009.0 - 0.5;
        let data: Vec<u8> = (0..WEIGHT / 4).flat_map(|j| value(j).to_le_bytes()).collect();
        tensor(&format!("w{i}"), DType::F32, &[side, side], data)
    });
    let mut initializer: Vec<TensorProto> = initializer.collect();
    let mut total = 0;
    if outside {
        let file =
            std::fs::File::create(path.with_extension("data")).expect("room for the weights");
        let mut file = std::io::BufWriter::new(file);
        for (i, tensor) in initializer.iter_mut().enumerate() {
            let data: Bytes = tensor.raw_data.take().expect("just made");
            std::io::Write::write_all(&mut file, &data).expect("room for the weights");
            tensor.data_location = Some(blochd::onnx::proto::tensor_proto::DataLocation::EXTERNAL);
            tensor.external_data =
                vec![entry("location", "model.data"), entry("offset", i * WEIGHT)];
            tensor.external_data.push(entry("length", WEIGHT));
            total += data.len() as u64;
        }
    }
    let named = |name: String| ValueInfoProto { name: Some(name), ..Default::default() };
    let node = |i: usize| NodeProto {
        op_type: Some("MatMul".to_owned()),
        input: vec![format!("x{i}"), format!("w{i}")],
        output: vec![format!("x{}", i + 1)],
        ..Default::default()
    };
    let graph = GraphProto {
        node: (0..weights).map(node).collect(),
        name: Some("chain".to_owned()),
        initializer,
        input: vec![named("x0".to_owned())],
        output: vec![named(format!("x{weights}"))],
        ..Default::default()
    };
    let proto = ModelProto {
        ir_version: Some(8),
        opset_import: vec![OperatorSetIdProto { version: Some(17), ..Default::default() }],
        graph: graph.into(),
        ..Default::default()
    };
    // Not by blochd's own writer: what is measured shall not have laid the file out.
    let bytes = buffa::Message::encode_to_vec(&proto);
    Model::decode(bytes.clone().into()).expect("a valid model");
    std::fs::write(path, &bytes).expect("room for a model");
    total + bytes.len() as u64
}
