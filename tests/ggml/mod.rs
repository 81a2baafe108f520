//! A provider that nobody here wrote: `onnxruntime-ggml` from PyPI (MIT), which runs on any processor. pip
//! fetches it once into a folder under `target/`.

// Each test program uses its own part of it.
#![allow(dead_code)]

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use blochd::config::Plugin;
use sha2::{Digest, Sha256};

/// The version, with the hash of its wheel for x86-64.
const GGML: &str = "onnxruntime-ggml==0.2.0";
const WHEEL: &str = "2342809f3f6dc2d7b6d303f3bcde391ec5ab10177ce45aec9365880aa5914745";

/// The library in that wheel.
const LIBRARY: &str = "b50f9aa48fe6ef23318ce7d3f34827575aae03a83fb378a2badb2c4d4b0f31fb";

/// The oldest ONNX Runtime that is supported, by which it offers nothing.
const OLD: &str = "onnxruntime==1.24.4";

/// A folder with what pip installs by `more`, made once for all test programs.
fn installed(name: &str, requirement: &str, more: &[&str]) -> PathBuf {
    let root = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let folder = root.join(name);
    let lock = File::create(root.join(format!("{name}.lock"))).unwrap();
    lock.lock().unwrap();
    if folder.is_dir() {
        return folder;
    }
    let new = tempfile::Builder::new().prefix(name).tempdir_in(root).unwrap();
    let wanted = new.path().join("requirements.txt");
    fs::write(&wanted, requirement).unwrap();
    let target = new.path().join("packages");
    let output = Command::new("python3")
        .args(["-m", "pip", "install", "--quiet", "--no-deps", "--only-binary=:all:"])
        .args(more)
        .arg("--target")
        .arg(&target)
        .arg("-r")
        .arg(&wanted)
        .output()
        .expect("python3 with pip");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    fs::rename(target, &folder).unwrap();
    folder
}

/// The provider, as a configuration pins it.
pub fn plugin() -> Plugin {
    let known = cfg!(target_arch = "x86_64");
    let hash = if known { format!(" --hash=sha256:{WHEEL}") } else { String::new() };
    let folder = installed("ggml-0.2.0", &format!("{GGML}{hash}"), &[]);
    let library = folder.join("onnxruntime_ggml/lib/libonnxruntime_ggml.so");
    let found = Sha256::digest(fs::read(&library).unwrap());
    let sha256: String = found.iter().map(|byte| format!("{byte:02x}")).collect();
    assert!(!known || sha256 == LIBRARY, "{sha256}");
    Plugin {
        name: "llama".to_owned(),
        library,
        sha256,
        provider: Some("ggml".to_owned()),
        device: 0,
        options: [("device", "cpu"), ("threads", "1")].map(|(k, v)| (k.into(), v.into())).into(),
    }
}

/// The library of the oldest ONNX Runtime that is supported.
pub fn old_runtime() -> PathBuf {
    let more = ["--python-version", "3.11", "--implementation", "cp"];
    let folder = installed("onnxruntime-1.24.4", OLD, &more);
    folder.join("onnxruntime/capi/libonnxruntime.so.1.24.4")
}
