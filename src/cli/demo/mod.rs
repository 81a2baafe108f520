//! `blochd demo`: the whole job on a real model with real data, on this machine, in a few minutes. The
//! agent, its builder, a client and a competing load run as processes of their own; nothing is staged.

mod agent;
mod client;
pub mod plot;
mod report;
mod story;

use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use blochd::shell::probe::HostProbe;
use blochd::shell::supply::{self, Build};
use blochd::shell::{files, places};
use clap::Args;
use serde_json::Value;

pub use client::Load;

use self::agent::Agent;
use self::client::Client;
use self::story::Story;
use super::{Code, Failure, OrFail};

/// See blochd do its whole job: serve, prune, hold a budget under a squeeze, return to dense.
///
/// Takes the CNN and the labelled digits of this repository, starts the agent in a temporary folder,
/// drives it over HTTP from a client process, squeezes the CPU, and writes a report. Exit code 70 when a
/// request failed or the budget was not held.
#[derive(Debug, Args)]
pub struct Demo {
    /// Folder with `digits_resnet.onnx`, `digits_calibration.npz` and `digits_test.npz`.
    #[arg(long, default_value = "tests/models")]
    assets: PathBuf,
    /// The report.
    #[arg(long, default_value = "demo-report.html")]
    report: PathBuf,
    /// The time line alone, as a picture (SVG).
    #[arg(long)]
    picture: Option<PathBuf>,
    /// Requests a second.
    #[arg(long, default_value_t = 60.0)]
    rate: f64,
    /// Keep the temporary folder with the agent's log, models and ladder.
    #[arg(long)]
    keep: bool,
}

/// Seconds over which dense is timed on the undisturbed box.
const TIMED: u64 = 8;
/// Seconds of each act.
const CALM: u64 = 12;
const SQUEEZED: u64 = 25;
const AFTER: u64 = 60;
/// Seconds between two competing processes: the agent sees the effect of one before the next comes.
const BETWEEN: u64 = 3;
/// Seconds for which dense must have been back.
const BACK: u64 = 8;

/// The budget as a multiple of the p99 that dense shows to the client on the undisturbed box.
const BUDGET_FACTOR: f64 = 1.8;

/// Niceness of the competing processes. At the same niceness as the agent, most of a request's time goes by
/// waiting for a turn, which no variant makes shorter; a background job is usually nice anyway.
const NICE: &str = "5";

/// A child process that is stopped when its owner goes.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What the acts are played with.
struct Stage {
    agent: Agent,
    client: Client,
    begin: Instant,
    /// The variant that the agent said to serve last.
    variant: String,
}

impl Demo {
    pub fn run(self) -> Result<(), Failure> {
        let story = self.play().code(Code::Software)?;
        let write = |path: &PathBuf, text: String| {
            files::replace(path, &[text.into()])
                .with_context(|| format!("cannot write {}", path.display()))
                .code(Code::Io)
        };
        write(&self.report, report::html(&story))?;
        if let Some(picture) = &self.picture {
            write(picture, plot::alone(&story))?;
        }
        print!("{}", report::table(&story));
        println!("report: {}", self.report.display());
        story.verdict().map_err(|what| anyhow!(what)).code(Code::Software)
    }

    fn play(&self) -> anyhow::Result<Story> {
        let model = self.assets.join("digits_resnet.onnx");
        if !model.is_file() {
            bail!(
                "{} is not there; run the demo in a clone of the repository, or name the folder \
                 with --assets",
                model.display()
            );
        }
        say("ONNX Runtime");
        let installed = supply::fetch(&places::state_dir(), Build::Cpu, None, None)?;
        println!("  {} in {}", installed.version, installed.dir.display());
        let folder = tempfile::Builder::new().prefix("blochd-demo-").tempdir()?;
        let dir = folder.path().to_owned();
        if self.keep {
            println!("  kept in {}", folder.keep().display());
        }
        say("the agent starts; a model lands in its directory");
        let agent = Agent::start(&dir, &installed.dir)?;
        agent.drop_model(&self.assets)?;
        agent.wait("the model is served", 60, |model| model["variant"] == "dense")?;
        say("a client sends labelled digits; the ladder is being built beside");
        let client = Client::start(&self.assets, agent.port, self.rate)?;
        let built = agent.wait("the ladder is built", 240, |model| {
            let rungs = model["ladder"].as_array().map_or(&[][..], Vec::as_slice);
            let waiting = |rung: &Value| rung["state"] == "loading" || rung["state"] == "waiting";
            model["build"] == "done" && !rungs.iter().any(waiting)
        })?;
        show_ladder(&built);
        say("dense is timed on the undisturbed box");
        // The builder's last writes and trials are over after a moment.
        thread::sleep(Duration::from_secs(TIMED + 2));
        let calm_p99 = client.p99_since(Instant::now() - Duration::from_secs(TIMED))?;
        let budget = Duration::from_secs_f64(calm_p99 * BUDGET_FACTOR);
        println!("  p99 {:.2} ms", calm_p99 * 1e3);
        agent.set_budget(budget)?;
        println!("  the budget is set by the configuration: p99 {:.2} ms", ms(budget));
        let variant = "dense".to_owned();
        self.acts(Stage { agent, client, begin: Instant::now(), variant }, budget, built)
    }

    fn acts(&self, mut stage: Stage, budget: Duration, ladder: Value) -> anyhow::Result<Story> {
        say("calm");
        stage.act(CALM, None)?;
        say(&format!(
            "squeeze: a competing process more (nice {NICE}) every {BETWEEN} s, until dense is too \
             slow"
        ));
        let (mut squeezed, mut squeeze) = (Vec::new(), Vec::new());
        let most = 6 * thread::available_parallelism().map_or(1, usize::from);
        while squeeze.len() < most && stage.variant == "dense" {
            squeezed.push(stage.begin.elapsed().as_secs_f64());
            squeeze.push(compete()?);
            stage.act(BETWEEN, None)?;
        }
        println!("  {} competing processes", squeeze.len());
        stage.act(SQUEEZED, None)?;
        drop(squeeze);
        let relieved = stage.begin.elapsed().as_secs_f64();
        say("the squeeze is over");
        stage.act(AFTER, Some("dense"))?;
        let host = HostProbe::new().host();
        let cores = host.usable_cores();
        let cpu = host.cpu.model.unwrap_or(host.arch);
        Ok(Story {
            budget_ms: ms(budget),
            ladder,
            samples: stage.client.finish(stage.begin)?,
            squeezed,
            relieved,
            host: format!("{cores} core{} of {cpu}", if cores == 1 { "" } else { "s" }),
        })
    }
}

impl Stage {
    /// Watches for some seconds; a line a second. Ends early once `until` has been in service for a while.
    fn act(&mut self, seconds: u64, until: Option<&str>) -> anyhow::Result<()> {
        let end = Instant::now() + Duration::from_secs(seconds);
        let mut reached = 0;
        while Instant::now() < end && reached < BACK {
            thread::sleep(Duration::from_secs(1));
            let status = self.agent.status()?;
            let model = &status["models"][0];
            self.variant = model["variant"].as_str().unwrap_or_default().to_owned();
            println!("  {}", line(model, self.begin.elapsed(), self.client.counts()));
            reached = if until == Some(self.variant.as_str()) { reached + 1 } else { 0 };
        }
        Ok(())
    }
}

/// A second as the agent tells it.
fn line(model: &Value, at: Duration, (sent, failed): (usize, usize)) -> String {
    let number = |value: &Value| value.as_f64().map_or("-".to_owned(), |n| format!("{n:.2}"));
    let met = match model["met"].as_bool() {
        Some(true) => "held",
        Some(false) => "BROKEN",
        None => "-",
    };
    format!(
        "{:5.1} s  {:8} ratio {}  p99 {:>6} ms  budget {met:6}  slowdown {}  \
         sent {sent}, failed {failed}",
        at.as_secs_f64(),
        model["variant"].as_str().unwrap_or_default(),
        number(&model["ratio"]),
        number(&model["observed"]["p99_ms"]),
        number(&model["slowdown"]),
    )
}

fn show_ladder(model: &Value) {
    for rung in model["ladder"].as_array().into_iter().flatten() {
        println!(
            "  {:8} ratio {:.3}  p99 {:.2} ms  agreement {:.1} %",
            rung["name"].as_str().unwrap_or_default(),
            rung["ratio"].as_f64().unwrap_or_default(),
            rung["promised_p99_ms"].as_f64().unwrap_or_default(),
            100.0 * rung["quality"].as_f64().unwrap_or_default(),
        );
    }
    for missed in report::not_built(model) {
        println!("  {missed}");
    }
}

fn say(what: &str) {
    println!("\n{what}");
    // Progress that cannot be shown is no reason to stop.
    let _ = std::io::stdout().flush();
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// Starts a process that takes the CPU. `nice` becomes it, so what is killed is it.
fn compete() -> anyhow::Result<Running> {
    let mut command = Command::new("nice");
    command.args(["-n", NICE]).arg(std::env::current_exe()?).arg("demo-burn");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    Ok(Running(command.spawn().context("cannot start a competing process by `nice`")?))
}

/// Spins until it is killed, or its parent is gone.
pub fn burn() {
    let parent = std::os::unix::process::parent_id();
    let mut value = 1u64;
    loop {
        for _ in 0..50_000_000u64 {
            value =
                std::hint::black_box(value.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
        }
        if std::os::unix::process::parent_id() != parent {
            return;
        }
    }
}
