//! What watching accelerators costs: processor time of the children that read vendors' libraries, for one
//! sweep and as a share of a core at the default interval, and what the agent itself adds. The libraries
//! are the tests' stand-ins with two cards each: a real library's own work comes on top and is not ours.
//!
//! `cargo bench --bench telemetry [-- SECONDS]` (60 unless said otherwise). Processor time is read, not
//! wall time: a busy box does not spoil it. Exit code 1 where a bound is broken: 5 ms for a sweep of all
//! vendors, 0.1 % of a core.

#[path = "../tests/running/mod.rs"]
mod running;
#[path = "../tests/standins/mod.rs"]
mod standins;

use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};
use nix::unistd::Pid;
use running::{Home, children_of};
use standins::Bench;

/// Processor time of a sweep of all vendors, and the share of a core that sampling takes.
const SWEEP: Duration = Duration::from_millis(5);
const SHARE: f64 = 0.001;

/// As the configuration has it where it says nothing.
const INTERVAL: Duration = Duration::from_secs(5);

/// Sources, and what they are called in the configuration.
const VENDORS: [(&str, &str); 3] =
    [("dcmi", "ascend"), ("cndev", "cambricon"), ("xpuml", "kunlunxin")];

fn main() -> ExitCode {
    let seconds = std::env::args().filter_map(|word| word.parse().ok()).next().unwrap_or(60);
    let bench = Bench::with(&[("dcmi", ""), ("acl", ""), ("cndev", ""), ("xpuml", "")]);
    bench.play("cards = 2\n");
    println!("one sweep of two cards, processor time of the child");
    let mut all = Duration::ZERO;
    for (source, _) in VENDORS {
        let (sweep, start) = sweep(&bench, source);
        all += sweep;
        println!(
            "  {source:6} {:>8.1} µs  (start of the child {:.1} ms)",
            micros(sweep),
            millis(start)
        );
    }
    println!("  all    {:>8.1} µs", micros(all));
    println!("agent, {seconds} s at one sweep in {} s, share of a core", INTERVAL.as_secs());
    let window = Duration::from_secs(seconds);
    let idle = agent(&bench, &[], window);
    println!("  no vendor    agent {:.4} %", idle.agent * 100.0);
    let mut worst: f64 = 0.0;
    for chosen in [&VENDORS[..1], &VENDORS[1..2], &VENDORS[2..], &VENDORS[..]] {
        let found = agent(&bench, chosen, window);
        let more = found.agent - idle.agent;
        let sum = found.children + more.max(0.0);
        worst = worst.max(sum);
        let names: Vec<&str> = chosen.iter().map(|(_, vendor)| *vendor).collect();
        println!(
            "  {:12} children {:.4} %, agent {:.4} % ({:+.4} %), sum {:.4} %",
            if names.len() == 1 { names[0] } else { "all" },
            found.children * 100.0,
            found.agent * 100.0,
            more * 100.0,
            sum * 100.0,
        );
    }
    let good = all <= SWEEP && worst <= SHARE;
    println!("{}", if good { "within the bounds" } else { "A BOUND IS BROKEN" });
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Processor time of all children that were waited for.
fn waited_for() -> Duration {
    let used = getrusage(UsageWho::RUSAGE_CHILDREN).unwrap();
    let time = |time: nix::sys::time::TimeVal| {
        Duration::new(time.tv_sec().unsigned_abs(), time.tv_usec().unsigned_abs() as u32 * 1000)
    };
    time(used.user_time()) + time(used.system_time())
}

/// Processor time of a sweep of one library once its child runs, and of the child's start with its first.
fn sweep(bench: &Bench, source: &str) -> (Duration, Duration) {
    const FEW: u32 = 1;
    const MANY: u32 = 2001;
    let time = |sweeps: u32| {
        let before = waited_for();
        let mut command = Command::new(env!("CARGO_BIN_EXE_blochd"));
        command.args(["probe", source, "--every", "0ms", "--sweeps", &sweeps.to_string()]);
        command.arg("--library").arg(bench.path()).stdout(Stdio::null());
        let status = command.env(standins::SCENARIO, bench.scenario()).status().unwrap();
        assert!(status.success(), "{source}");
        waited_for() - before
    };
    let start = time(FEW);
    (time(MANY).saturating_sub(start) / (MANY - FEW), start)
}

/// Shares of a core.
struct Shares {
    agent: f64,
    children: f64,
}

/// An agent without models that watches these vendors for a while, after its first sweeps.
fn agent(bench: &Bench, chosen: &[(&str, &str)], window: Duration) -> Shares {
    let home = Home::new();
    let setting = |(_, vendor): &(&str, &str)| {
        let named = chosen.iter().any(|(_, chosen)| chosen == vendor);
        let library = if named { bench.path().display().to_string() } else { "none".to_owned() };
        format!("{vendor}: {library}")
    };
    let devices: Vec<String> = VENDORS.iter().map(setting).collect();
    home.configure(&format!("devices: {{{}}}", devices.join(", ")));
    let scenario = bench.scenario().display().to_string();
    let mut agent = home.start_with(&[(standins::SCENARIO, &scenario)]);
    agent.eventually("all are read", |agent| {
        let status = agent.status();
        status["hardware"]["devices"].as_array().map_or(0, Vec::len) == 2 * chosen.len()
    });
    std::thread::sleep(INTERVAL);
    let pid = agent.pid();
    let children: Vec<i32> = children_of(pid);
    let read = || {
        let of_children: Duration = children.iter().map(|child| on_processor(*child)).sum();
        (on_processor(pid.as_raw()), of_children)
    };
    let (begun, (agent_before, children_before)) = (Instant::now(), read());
    std::thread::sleep(window);
    let (agent_after, children_after) = read();
    let took = begun.elapsed().as_secs_f64();
    assert_eq!(children_of(Pid::from_raw(pid.as_raw())), children, "a child was started anew");
    Shares {
        agent: (agent_after - agent_before).as_secs_f64() / took,
        children: (children_after - children_before).as_secs_f64() / took,
    }
}

/// Time that the threads of a process have been on processors, as the scheduler counts it.
fn on_processor(pid: i32) -> Duration {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    let nanos = |task: &Path| {
        let text = fs::read_to_string(task.join("schedstat")).unwrap_or_default();
        text.split(' ').next().and_then(|field| field.parse::<u64>().ok()).unwrap_or_default()
    };
    Duration::from_nanos(tasks.map(|task| nanos(&task.path())).sum())
}
