//! The native side of the serving benchmark: a client that costs as little as a client can, and bare ONNX Runtime
//! in the same process. `serving.py` beside this file runs it and says what is compared and how; each command
//! prints JSON.

mod bare;
mod client;
mod flood;
mod load;
mod rest;
mod stream;
mod turns;
mod wire;

use std::io;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use bare::Bare;

type Error = Box<dyn std::error::Error + Send + Sync>;

#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Calls one after the other, in turn with bare ONNX Runtime: latencies.
    Latency(turns::Latency),
    /// Several clients at once, in turn with bare ONNX Runtime: answers a second.
    Throughput(turns::Throughput),
    /// Clients that go on until standard input closes, and look at every answer.
    Load(load::Load),
    /// More requests than can be answered, each with a deadline.
    Flood(flood::Flood),
    /// What ONNX Runtime itself takes for a model.
    Memory(Memory),
}

/// What every command needs.
#[derive(Args, Clone)]
struct Common {
    /// ONNX Runtime's library.
    #[arg(long)]
    library: PathBuf,
    /// The model's file: its answers are what is expected.
    #[arg(long)]
    model: PathBuf,
    /// Core of the clients.
    #[arg(long)]
    client_core: Option<usize>,
}

#[derive(Args)]
struct Memory {
    #[command(flatten)]
    common: Common,
    /// Runs before it is looked at.
    #[arg(long, default_value_t = 100)]
    runs: usize,
}

fn main() -> Result<(), Error> {
    // Cargo runs benches with `--bench`, its test runner without: neither names a command.
    let arguments: Vec<_> = std::env::args_os().filter(|argument| argument != "--bench").collect();
    if arguments.len() == 1 {
        println!("benches/serving/README.md says how the serving benchmark is run");
        return Ok(());
    }
    match Cli::parse_from(arguments).command {
        Command::Latency(latency) => latency.run(),
        Command::Throughput(throughput) => throughput.run(),
        Command::Load(load) => load.run(),
        Command::Flood(flood) => flood.run(),
        Command::Memory(memory) => memory.run(),
    }
}

impl Memory {
    fn run(self) -> Result<(), Error> {
        let environment = bare::load(&self.common.library)?;
        let before = resident()?;
        let mut bare = Bare::open(&environment, &self.common.model)?;
        for _ in 0..self.runs {
            bare.call()?;
        }
        let after = resident()?;
        let [before, after] = [before, after].map(|(all, own)| serde_json::json!([all, own]));
        println!("{}", serde_json::json!({ "before": before, "after": after }));
        Ok(())
    }
}

/// Resident memory of this process, and its part that is of no file, bytes.
fn resident() -> io::Result<(u64, u64)> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let of = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|line| line.trim().trim_end_matches("kB").trim().parse::<u64>().ok())
    };
    let all = of("VmRSS:").zip(of("RssAnon:"));
    all.map(|(all, own)| (all << 10, own << 10)).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Keeps the calling thread on one core.
fn pin(core: Option<usize>) -> Result<(), Error> {
    let Some(core) = core else { return Ok(()) };
    let mut set = nix::sched::CpuSet::new();
    set.set(core)?;
    nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &set)?;
    Ok(())
}

/// A percentile of sorted values.
fn percentile(sorted: &[f64], share: f64) -> f64 {
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.clamp(1, sorted.len().max(1)) - 1).copied().unwrap_or(f64::NAN)
}

/// What is told of many values: their number, percentiles and the largest.
fn told(mut values: Vec<f64>) -> serde_json::Value {
    values.sort_by(f64::total_cmp);
    let of = |share| percentile(&values, share);
    let mean = values.iter().sum::<f64>() / values.len().max(1) as f64;
    let most = values.last().copied().unwrap_or(f64::NAN);
    serde_json::json!({
        "count": values.len(), "mean": mean, "p50": of(0.5), "p90": of(0.9), "p99": of(0.99),
        "p999": of(0.999), "max": most,
    })
}
