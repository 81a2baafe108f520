//! Generates the message types of `src/onnx/onnx.proto`. `protox` compiles the file in Rust, so no
//! `protoc` is needed on the build machine.

use std::{env, error::Error, fs, path::PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    let proto = "src/onnx/onnx.proto";
    println!("cargo::rerun-if-changed={proto}");
    let descriptors = protox::Compiler::new(["src/onnx"])?
        .include_imports(true)
        .open_file("onnx.proto")?
        .encode_file_descriptor_set();
    let path = PathBuf::from(env::var("OUT_DIR")?).join("onnx.descriptors");
    fs::write(&path, descriptors)?;
    buffa_build::Config::new()
        .files(&["onnx.proto"])
        .descriptor_set(&path)
        // Weights are slices of the file's own buffer: nothing is copied to decode them.
        .use_bytes_type()
        .generate_views(false)
        .preserve_unknown_fields(true)
        .include_file("onnx.include.rs")
        .compile()
}
