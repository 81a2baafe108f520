//! Generates the message types of `src/onnx/onnx.proto` and of the protocols in `src/protocol/grpc`. `protox`
//! compiles the files in Rust, so no `protoc` is needed on the build machine.

use std::{env, error::Error, fs, path::PathBuf, time::SystemTime};

fn main() -> Result<(), Box<dyn Error>> {
    // Weights are slices of the file's own buffer: nothing is copied to decode them. What the program does not
    // know of a model is kept.
    let onnx = messages("src/onnx", &["onnx.proto"], "onnx")?.preserve_unknown_fields(true);
    onnx.compile()?;
    let grpc = messages("src/protocol/grpc", &["grpc_service.proto", "health.proto"], "grpc")?;
    // The same answer is the same bytes.
    grpc.preserve_unknown_fields(false).map_type(buffa_build::MapRepr::BTreeMap).compile()
}

/// What generates the messages of `files` in `folder` into `<name>.include.rs`.
fn messages(
    folder: &str,
    files: &[&str],
    name: &str,
) -> Result<buffa_build::Config, Box<dyn Error>> {
    let mut compiler = protox::Compiler::new([folder])?;
    compiler.include_imports(true);
    for file in files {
        println!("cargo::rerun-if-changed={folder}/{file}");
        compiler.open_file(file)?;
    }
    let path = PathBuf::from(env::var("OUT_DIR")?).join(name).with_extension("descriptors");
    fs::write(&path, compiler.encode_file_descriptor_set())?;
    // buffa has cargo watch this file. Written now it would be newer than the run that wrote it, and everything
    // would be compiled anew each time.
    fs::File::options().append(true).open(&path)?.set_modified(SystemTime::UNIX_EPOCH)?;
    Ok(buffa_build::Config::new()
        .files(files)
        .descriptor_set(&path)
        .use_bytes_type()
        .generate_views(false)
        .include_file(format!("{name}.include.rs")))
}
