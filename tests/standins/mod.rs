//! Vendors' libraries that stand in for the real ones: built from `tests/standin` by the compiler that
//! built the tests, with the same symbols and layouts, and played by a scenario.

// Each test program uses its own part of it.
#![allow(dead_code)]

pub mod npu;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Mutex;

use serde_json::Value;
use tempfile::TempDir;

/// The variable by which a library finds its scenario.
pub const SCENARIO: &str = "STANDIN_SCENARIO";

/// Libraries of CANN from which ONNX Runtime's provider takes nothing that a stand-in does not have elsewhere.
const EMPTY: [&str; 2] = ["acl_op_compiler", "fmk_onnx_parser"];

/// The name of the file of a library.
fn file(library: &str) -> String {
    let name = if library == "acl" { "ascendcl" } else { library };
    format!("lib{name}.so")
}

static BUILT: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

/// Builds a stand-in, once a test program. `form` is a `--cfg` of its source, or nothing.
fn built(library: &str, form: &str) -> PathBuf {
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("standin-{library}-{form}.so"));
    let mut built = BUILT.lock().unwrap();
    if built.contains(&out) {
        return out;
    }
    let source = if EMPTY.contains(&library) { "empty" } else { library };
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/standin/{source}.rs"));
    let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let new = dir.path().join("new.so");
    let compiler = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let mut command = Command::new(compiler);
    command.args(["--edition", "2024", "--crate-type", "cdylib", "-C", "panic=abort", "-o"]);
    command.arg(&new).arg(&source).args(["-A", "unexpected_cfgs", "-A", "dead_code"]);
    // By which others are linked to it.
    command.arg("-C").arg(format!("link-arg=-Wl,-soname,{}", file(library)));
    if !form.is_empty() {
        command.args(["--cfg", form]);
    }
    if library == "npu" {
        // It computes, and must be quicker at it than what it claims to take.
        command.args(["-C", "opt-level=3"]);
    }
    let done = command.output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    fs::rename(new, &out).unwrap();
    built.insert(out.clone());
    out
}

/// A folder with stand-ins under the names of the real ones, and their scenario.
pub struct Bench {
    dir: TempDir,
}

impl Bench {
    /// With these libraries, each with its form: `("dcmi", "")`.
    pub fn with(libraries: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for (library, form) in libraries {
            fs::copy(built(library, form), dir.path().join(file(library))).unwrap();
        }
        let new = Self { dir };
        new.play("");
        new
    }

    /// With all that ONNX Runtime's provider for CANN is linked to, two cards, and models with one input
    /// and one output of these dimensions.
    pub fn cann(dims: &str) -> Self {
        let new = Self::with(&[("acl", "provider"), (EMPTY[0], ""), (EMPTY[1], "")]);
        new.play_cann(dims, "");
        new
    }

    /// The same with more lines.
    pub fn play_cann(&self, dims: &str, more: &str) {
        self.play(&format!("cards = 2\ndims = {dims}\n{more}"));
    }

    /// What CANN was asked for since the last call: lines of `tests/standin/cann.rs`.
    pub fn asked(&self) -> Vec<String> {
        let path = self.dir.path().join("scenario.log");
        let text = fs::read_to_string(&path).unwrap_or_default();
        let _ = fs::remove_file(path);
        text.lines().map(str::to_owned).collect()
    }

    /// The folder, as `devices` in the configuration names it.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn library(&self, library: &str) -> PathBuf {
        self.dir.path().join(format!("lib{library}.so"))
    }

    pub fn scenario(&self) -> PathBuf {
        self.dir.path().join("scenario")
    }

    /// What the libraries play from their next sweep on.
    pub fn play(&self, scenario: &str) {
        let new = self.dir.path().join("scenario.new");
        fs::write(&new, scenario).unwrap();
        fs::rename(new, self.scenario()).unwrap();
    }

    /// `blochd probe` of a library here: its lines.
    pub fn probe(&self, source: &str, options: &[&str]) -> (Vec<Value>, Output) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_blochd"));
        command.args(["probe", source, "--library"]).arg(self.path()).args(options);
        let output = command.env(SCENARIO, self.scenario()).output().unwrap();
        let text = String::from_utf8(output.stdout.clone()).unwrap();
        let line = |line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {text}"));
        (text.lines().map(line).collect(), output)
    }

    /// The devices of one sweep.
    pub fn devices(&self, source: &str) -> Vec<Value> {
        let (lines, output) = self.probe(source, &[]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        lines[1]["devices"].as_array().unwrap().clone()
    }

    /// Why nothing could be read.
    pub fn trouble(&self, source: &str) -> Value {
        let (lines, output) = self.probe(source, &[]);
        assert_eq!(output.status.code(), Some(69));
        assert_eq!(lines.last().unwrap()["event"], "trouble", "{lines:?}");
        lines.last().unwrap()["trouble"].clone()
    }
}

/// Why a device does not tell something.
pub fn why(device: &Value, what: &str) -> Value {
    let missing = device["missing"].as_array().cloned().unwrap_or_default();
    missing
        .into_iter()
        .find(|one| one["what"] == what)
        .map_or(Value::Null, |one| one["why"].clone())
}
