//! `blochd probe`: reads a vendor's library, alone in a process, and tells a line a sweep. The agent and
//! `blochd profile` run it: what hangs or crashes in a driver takes this process along and nothing else.

use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use blochd::shell::children::confine::{self, Needs};
use blochd::shell::probe::source::{Reading, Source, Told, read};
use blochd::units::Span;
use clap::Args;

use super::sandbox::SandboxArgs;
use super::{Code, Failure, OrFail};

/// Read the accelerators of one vendor and print a line of JSON for each sweep.
///
/// Exit code 69 where nothing can be read; the last line says why.
#[derive(Debug, Args)]
#[command(hide = true)]
pub struct Probe {
    /// The library: dcmi, acl, cndev or xpuml.
    source: Source,
    /// Its file, or the folder where it lies.
    #[arg(long)]
    library: Option<PathBuf>,
    /// Time between two sweeps.
    #[arg(long, default_value = "1s")]
    every: Span,
    #[arg(long, default_value_t = 1)]
    sweeps: u32,
    /// Open the devices, which takes some of their memory, to ask how much they have.
    #[arg(long)]
    open_devices: bool,
    #[command(flatten)]
    sandbox: SandboxArgs,
}

impl Probe {
    pub fn run(self) -> Result<(), Failure> {
        // What is named relatively is meant from here.
        let library = self.library.map(std::path::absolute).transpose().code(Code::Io)?;
        // What it cannot find is told when it is to be loaded.
        let file = self.source.file(library.as_deref()).ok();
        self.sandbox.begin(Needs::telemetry(file.as_deref()), true)?;
        let nodes = confine::nodes();
        // A node that was made anew is shut to who is confined: the next child finds it open.
        let goes_on = || self.sandbox.is_off() || confine::nodes() == nodes;
        let mut lines = take_standard_output()
            .context("standard output cannot be kept for the lines")
            .code(Code::Software)?;
        // Libraries are built with the working directory in their search path; nobody writes to the root.
        std::env::set_current_dir("/").code(Code::Software)?;
        let reading = Reading {
            source: self.source,
            library,
            every: Duration::from(self.every),
            sweeps: self.sweeps,
            opens: self.open_devices,
            sandbox: self.sandbox.wanted(),
        };
        let mut failed = None;
        let told = read(&reading, goes_on, |told| {
            let line = serde_json::to_string(&told).map_err(io::Error::other)?;
            if let Told::Trouble { trouble } = told {
                failed = Some(trouble);
            }
            lines.write_all(format!("{line}\n").as_bytes())
        });
        match (told, failed) {
            (Ok(()), None) => end(0),
            (Ok(()), Some(trouble)) => {
                eprintln!("blochd: {trouble}");
                end(Code::Unavailable as u8)
            }
            (Err(error), _) => Err(error).context("the lines cannot be written").code(Code::Io),
        }
    }
}

/// All is said: nothing of the library, whose handlers may wait for a sick card, runs any more.
fn end(code: u8) -> ! {
    // SAFETY: ends the process.
    unsafe { nix::libc::_exit(code.into()) }
}

/// Where the lines go. From now on what a library prints to standard output, as some do, goes to standard
/// error: it must not stand within a line.
fn take_standard_output() -> io::Result<std::fs::File> {
    let lines = nix::unistd::dup(io::stdout())?;
    nix::unistd::dup2_stdout(io::stderr())?;
    Ok(lines.into())
}
