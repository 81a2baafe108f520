//! Child processes: this program itself, started again for what must not share an address space or a
//! priority with serving. A child that crashes, hangs or eats the memory is a reason, never our end.

use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::Signal;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader};
use tokio::process::Command;

use crate::limits;

/// What a child may take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bounds {
    /// Wall time.
    pub timeout: Duration,
    /// Address space, bytes.
    pub memory: Option<u64>,
    /// Added to this process's niceness.
    pub nice: i32,
}

/// Why a child did not do its work.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChildError {
    #[error("cannot start {program}: {reason}")]
    Start { program: String, reason: String },
    #[error("it took longer than {0:?} and was stopped")]
    TimedOut(Duration),
    #[error("it was ended by signal {signal}{said}")]
    Signal { signal: String, said: String },
    #[error("it failed with exit code {code}{said}")]
    Failed { code: i32, said: String },
}

/// Runs this program with `arguments` and hands every line of its standard output to `line`. Returns the
/// last line.
///
/// # Errors
/// Where the child cannot be started, fails, is killed or takes too long. It is gone then.
pub async fn run(
    arguments: Vec<String>,
    bounds: &Bounds,
    line: &mut (dyn FnMut(&str) + Send),
) -> Result<String, ChildError> {
    let program = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("blochd"));
    let name = program.display().to_string();
    let start = |reason: String| ChildError::Start { program: name.clone(), reason };
    let mut command = Command::new(&program);
    command.args(&arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.kill_on_drop(true);
    bound(&mut command, bounds.clone());
    let mut child = command.spawn().map_err(|error| start(error.to_string()))?;
    let (Some(out), Some(err)) = (child.stdout.take(), child.stderr.take()) else {
        return Err(start("its output is not connected".to_owned()));
    };
    let work = async {
        let (last, said) = tokio::join!(lines(BufReader::new(out), line), tail(err));
        let status = child.wait().await.map_err(|error| start(error.to_string()))?;
        outcome(status, &said).map(|()| last)
    };
    match tokio::time::timeout(bounds.timeout, work).await {
        Ok(done) => done,
        // Dropping the child kills it.
        Err(_) => Err(ChildError::TimedOut(bounds.timeout)),
    }
}

/// Sets what the child inherits between fork and exec.
fn bound(command: &mut Command, bounds: Bounds) {
    let parent = nix::unistd::getpid();
    let prepare = move || {
        // Only calls that are safe after fork: no allocation, no lock.
        nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
        if nix::unistd::getppid() != parent {
            return Err(nix::errno::Errno::ESRCH.into());
        }
        if let Some(memory) = bounds.memory {
            setrlimit(Resource::RLIMIT_AS, memory, memory)?;
        }
        if bounds.nice > 0 {
            // SAFETY: nice has no preconditions; a failure leaves the niceness as it was.
            unsafe { nix::libc::nice(bounds.nice) };
        }
        Ok(())
    };
    // SAFETY: `prepare` runs in the forked child and makes system calls only.
    unsafe { command.pre_exec(prepare) };
}

/// Hands on lines of bounded length; what is longer is cut. Returns the last.
async fn lines(mut out: impl AsyncBufRead + Unpin, line: &mut (dyn FnMut(&str) + Send)) -> String {
    let mut last = String::new();
    let mut buffer = Vec::new();
    loop {
        buffer.clear();
        let mut limited = (&mut out).take(limits::CHILD_LINE_BYTES);
        match limited.read_until(b'\n', &mut buffer).await {
            Ok(0) | Err(_) => return last,
            Ok(_) => {
                let text = String::from_utf8_lossy(&buffer);
                let text = text.trim_end();
                line(text);
                text.clone_into(&mut last);
            }
        }
    }
}

/// The last words on standard error.
async fn tail(mut err: impl AsyncRead + Unpin) -> String {
    let mut kept = Vec::new();
    let mut buffer = [0u8; 4096];
    while let Ok(count @ 1..) = err.read(&mut buffer).await {
        kept.extend_from_slice(&buffer[..count]);
        let excess = kept.len().saturating_sub(limits::CHILD_SAID_BYTES);
        kept.drain(..excess);
    }
    String::from_utf8_lossy(&kept).trim().to_owned()
}

fn outcome(status: ExitStatus, said: &str) -> Result<(), ChildError> {
    let said = if said.is_empty() { String::new() } else { format!(": {said}") };
    match (status.code(), status.signal()) {
        (Some(0), _) => Ok(()),
        (Some(code), _) => Err(ChildError::Failed { code, said }),
        (None, signal) => {
            let number = signal.unwrap_or_default();
            let name = Signal::try_from(number).map(|s| s.to_string());
            Err(ChildError::Signal { signal: name.unwrap_or_else(|_| number.to_string()), said })
        }
    }
}
