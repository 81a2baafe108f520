//! A Python with the unmodified `tritonclient[grpc,http]` from PyPI. That of `BLOCHD_TEST_PYTHON` is used where it is
//! set; else pip installs the client into a folder under `target/`, which needs neither a virtual environment
//! (Debian packs `venv` apart) nor leave to write into the system's Python.

use std::path::PathBuf;
use std::process::Command;
use std::sync::Mutex;

const CLIENT: &str = "tritonclient[grpc,http]==2.73.0";

/// Two tests must not install it at the same time.
static INSTALLING: Mutex<()> = Mutex::new(());

/// A Python that has the client.
pub fn python() -> Command {
    let _alone = INSTALLING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Some(python) = std::env::var_os("BLOCHD_TEST_PYTHON") {
        return Command::new(python);
    }
    let folder =
        PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("tritonclient-grpc-2.73.0-packages");
    let python = || {
        let mut python = Command::new("python3");
        python.env("PYTHONPATH", &folder);
        python
    };
    let imports = python().args(["-c", "import tritonclient.grpc, tritonclient.http"]).output();
    if !imports.is_ok_and(|out| out.status.success()) {
        let pip = ["-m", "pip", "install", "--quiet", "--upgrade", "--target"];
        run(Command::new("python3").args(pip).arg(&folder).arg(CLIENT));
    }
    python()
}

/// What it printed, where all went well.
pub fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{command:?}\n{out}\n{err}");
    out
}
