//! The command line: one file a subcommand. Each turns its arguments into one call of the library and
//! its error into an exit code.

mod analyze;
mod asking;
mod config;
mod configured;
mod demo;
mod fleet;
mod log;
mod probe;
mod profile;
mod providing;
mod prune;
mod run;
mod runtime;
mod sandbox;
mod simulate;
mod status;
mod trial;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;

use blochd::onnx::Tensor;
use blochd::shell::engine::RuntimeError;
use blochd::shell::npz;
use clap::{Parser, Subcommand};
use nix::sys::signal::{SigHandler, Signal, signal};

/// Keeps every ONNX model of this box inside its latency budget.
#[derive(Debug, Parser)]
#[command(version, about, max_term_width = 100)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Demo(demo::Demo),
    /// The demo's client.
    #[command(hide = true)]
    DemoClient(demo::Load),
    /// The demo's competing load.
    #[command(hide = true)]
    DemoBurn,
    Probe(probe::Probe),
    Profile(profile::Profile),
    Run(run::Run),
    Runtime(runtime::Runtime),
    Analyze(Box<analyze::Analyze>),
    Config(config::ConfigCommand),
    Prune(Box<prune::Prune>),
    Simulate(Box<simulate::Simulate>),
    Status(status::Status),
    Trial(trial::Trial),
    Fleet(fleet::FleetCommand),
    /// Print the licence of this program.
    License,
}

/// What a failed command tells the calling process; the numbers follow BSD's `sysexits.h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Code {
    /// All went well, and what was asked for does not hold.
    Unmet = 1,
    /// The command line asks for what cannot be done (`EX_USAGE`).
    Usage = 64,
    /// The input file is not what it should be (`EX_DATAERR`).
    Data = 65,
    /// Something that the command needs is missing, such as ONNX Runtime (`EX_UNAVAILABLE`).
    Unavailable = 69,
    /// A failure of the program or of a library that it calls (`EX_SOFTWARE`).
    Software = 70,
    /// The execution provider fails where the CPU does not, or is not to be had. The next one may do
    /// (`EX_PROTOCOL`: what is at the other end does not keep to what was agreed).
    Provider = 76,
    /// A file could not be read or written (`EX_IOERR`).
    Io = 74,
    /// The configuration is wrong (`EX_CONFIG`).
    Config = 78,
}

/// A command's failure: the exit code for machines and the error for people.
#[derive(Debug)]
pub struct Failure {
    /// The process's exit status.
    pub code: Code,
    /// What happened and what to do.
    pub error: anyhow::Error,
}

/// There is no ONNX Runtime, or none with the execution provider that is asked for.
pub fn without_runtime(error: RuntimeError) -> Failure {
    let code = if error.lacks_provider() { Code::Provider } else { Code::Unavailable };
    Failure { code, error: error.into() }
}

/// Attaches an exit code to any error: `read(path).code(Code::Io)?`.
pub trait OrFail<T> {
    /// The value, or the error under exit code `code`.
    fn code(self, code: Code) -> Result<T, Failure>;
}

impl<T, E: Into<anyhow::Error>> OrFail<T> for Result<T, E> {
    fn code(self, code: Code) -> Result<T, Failure> {
        self.map_err(|error| Failure { code, error: error.into() })
    }
}

/// A size of a free axis as a flag: `NAME=SIZE`.
fn named_size(text: &str) -> Result<(String, usize), String> {
    let (name, size) = text.split_once('=').ok_or("write NAME=SIZE")?;
    let size: usize = size.parse().map_err(|_| format!("{size:?} is not a size"))?;
    if size == 0 { Err("a size is at least 1".to_owned()) } else { Ok((name.to_owned(), size)) }
}

/// The arrays of a file of samples that the user named.
fn samples_of(path: &Path) -> Result<BTreeMap<String, Tensor>, Failure> {
    npz::read(path).map_err(|error| Failure {
        code: if error.unreadable { Code::Io } else { Code::Data },
        error: error.into(),
    })
}

/// Carries out the command; prints its failure, with every cause, to standard error.
pub fn run(args: Args) -> ExitCode {
    keep_the_runtime_quiet();
    match &args.command {
        // They serve, or speak with others, over pipes and sockets that may close.
        Command::Demo(_) | Command::DemoClient(_) | Command::DemoBurn | Command::Run(_) => {}
        Command::Probe(_)
        | Command::Profile(_)
        | Command::Runtime(_)
        | Command::Analyze(_)
        | Command::Config(_)
        | Command::Fleet(_)
        | Command::Prune(_)
        | Command::Simulate(_)
        | Command::Status(_)
        | Command::Trial(_)
        | Command::License => end_with_the_reader(),
    }
    let outcome: Result<(), Failure> = match args.command {
        Command::Demo(demo) => demo.run(),
        Command::DemoClient(load) => load.run().code(Code::Software),
        Command::DemoBurn => {
            demo::burn();
            Ok(())
        }
        Command::Probe(probe) => probe.run(),
        Command::Profile(profile) => profile.run(),
        Command::Run(run) => run.run(),
        Command::Runtime(runtime) => runtime.run(),
        Command::Analyze(analyze) => analyze.run(),
        Command::Config(config) => config.run(),
        Command::Fleet(fleet) => fleet.run(),
        Command::Prune(prune) => prune.run(),
        Command::Simulate(simulate) => simulate.run(),
        Command::Status(status) => status.run(),
        Command::Trial(trial) => trial.run(),
        Command::License => {
            print!("{}", include_str!("../../LICENSE"));
            Ok(())
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("blochd: {}", words(&failure.error));
            ExitCode::from(failure.code as u8)
        }
    }
}

/// `blochd analyze MODEL | head` ends quietly, as other programs do, once nobody reads any more.
fn end_with_the_reader() {
    // SAFETY: no other thread runs yet, and the default action runs no code of ours.
    let set = unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) };
    // Where it cannot be set, the end is as sure and less quiet.
    let _ = set;
}

/// ONNX Runtime 1.32 gives a box an identifier, keeps a database in its user's cache folder and sends what it
/// counts to its makers, from the moment that it is loaded on: that it may be turned off comes too late. Only
/// this says so before.
fn keep_the_runtime_quiet() {
    // SAFETY: no other thread runs yet, so nobody reads the environment meanwhile.
    unsafe { std::env::set_var("ORT_DISABLE_TELEMETRY", "1") };
}

/// An error with its causes, none of them twice: many say what their cause says.
fn words(error: &anyhow::Error) -> String {
    let said = error.chain().map(|cause| cause.to_string().trim_end().to_owned());
    said.fold(String::new(), |text, cause| match text.as_str() {
        "" => cause,
        before if before.contains(&cause) => text,
        before => format!("{before}: {cause}"),
    })
}
