//! `blochd demo`: the whole job on a real model with real data, on this machine, in a few minutes. The
//! agent, its builder, a client and a competing load run as processes of their own; nothing is staged.

mod client;
mod report;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use blochd::shell::supply::{self, RUNTIME_VERSION};
use blochd::shell::{files, places};
use clap::Args;
use serde_json::Value;

pub use client::Load;

use self::report::{Moment, Story};
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
    /// Requests a second.
    #[arg(long, default_value_t = 30.0)]
    rate: f64,
    /// Keep the temporary folder with the agent's log, models and ladder.
    #[arg(long)]
    keep: bool,
}

/// Seconds of each act.
const CALM: u64 = 12;
const SQUEEZED: u64 = 30;
const AFTER: u64 = 60;

/// The budget as a multiple of the p99 that dense shows to the client on the undisturbed box.
const BUDGET_FACTOR: f64 = 1.7;

/// A child process that is stopped when its owner goes.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Demo {
    pub fn run(self) -> Result<(), Failure> {
        let story = self.play().code(Code::Software)?;
        let html = report::html(&story);
        files::replace(&self.report, &[html.into()])
            .with_context(|| format!("cannot write {}", self.report.display()))
            .code(Code::Io)?;
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
        let state = places::state_dir();
        say("ONNX Runtime");
        let installed = supply::fetch(&state, RUNTIME_VERSION, None)?;
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
        let mut client = Client::start(&self.assets, agent.port, self.rate)?;
        let built = agent.wait("the ladder is built", 240, |model| {
            let rungs = model["ladder"].as_array().map_or(&[][..], Vec::as_slice);
            let waiting = |rung: &Value| rung["state"] == "loading" || rung["state"] == "waiting";
            model["build"] == "done" && !rungs.iter().any(waiting)
        })?;
        for rung in built["ladder"].as_array().into_iter().flatten() {
            println!(
                "  {:8} ratio {:.3}  p99 {:.2} ms  agreement {:.1} %",
                rung["name"].as_str().unwrap_or_default(),
                rung["ratio"].as_f64().unwrap_or_default(),
                rung["promised_p99_ms"].as_f64().unwrap_or_default(),
                100.0 * rung["quality"].as_f64().unwrap_or_default(),
            );
        }
        thread::sleep(Duration::from_secs(5));
        let calm_p99 = client.p99_since(Instant::now() - Duration::from_secs(4))?;
        let budget = Duration::from_secs_f64(calm_p99 * BUDGET_FACTOR);
        agent.set_budget(budget)?;
        println!("  the budget is set by the configuration: p99 {:.2} ms", ms(budget));
        let mut story = Story::new(budget, built);
        let begin = Instant::now();
        client.mark(begin);
        say("calm");
        self.act(&agent, &mut client, &mut story, begin, CALM, None)?;
        story.squeeze_from = begin.elapsed().as_secs_f64();
        say("squeeze: one more process every two seconds takes the CPU, until dense is too slow");
        let mut squeeze = Vec::new();
        let most = 4 * thread::available_parallelism().map_or(1, usize::from);
        while story.moments.last().is_none_or(|now| now.variant == "dense") && squeeze.len() < most
        {
            squeeze.push(spawn_self(&["demo-burn"])?);
            self.act(&agent, &mut client, &mut story, begin, 2, None)?;
        }
        println!("  {} competing processes", squeeze.len());
        self.act(&agent, &mut client, &mut story, begin, SQUEEZED, None)?;
        drop(squeeze);
        story.squeeze_to = begin.elapsed().as_secs_f64();
        say("the squeeze is over");
        self.act(&agent, &mut client, &mut story, begin, AFTER, Some("dense"))?;
        story.samples = client.finish()?;
        Ok(story)
    }

    /// Watches for some seconds; a line a second. Ends early once `until` has been in service for a while.
    fn act(
        &self,
        agent: &Agent,
        client: &mut Client,
        story: &mut Story,
        begin: Instant,
        seconds: u64,
        until: Option<&str>,
    ) -> anyhow::Result<()> {
        let end = Instant::now() + Duration::from_secs(seconds);
        let mut reached = 0;
        while Instant::now() < end && reached < 10 {
            thread::sleep(Duration::from_secs(1));
            let status = agent.status()?;
            let moment = Moment::of(&status["models"][0], begin.elapsed().as_secs_f64());
            println!("  {}", moment.line(client.counts()));
            reached = if until == Some(moment.variant.as_str()) { reached + 1 } else { 0 };
            story.moments.push(moment);
        }
        Ok(())
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

fn spawn_self(arguments: &[&str]) -> anyhow::Result<Running> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    Ok(Running(command.spawn()?))
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

/// The agent as a process of its own, with its folders.
struct Agent {
    dir: PathBuf,
    port: u16,
    metrics_port: u16,
    runtime: PathBuf,
    process: Option<Running>,
}

impl Agent {
    fn start(dir: &Path, runtime: &Path) -> anyhow::Result<Self> {
        fs::create_dir_all(dir.join("models"))?;
        let mut agent = Self {
            dir: dir.to_owned(),
            port: free_port()?,
            metrics_port: free_port()?,
            runtime: runtime.to_owned(),
            process: None,
        };
        agent.write_config(None)?;
        let log = fs::File::create(dir.join("agent.log"))?;
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("run").arg("--config").arg(dir.join("agent.yaml"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        agent.process = Some(Running(command.spawn()?));
        Ok(agent)
    }

    fn write_config(&self, budget: Option<Duration>) -> anyhow::Result<()> {
        let budget = budget.map_or(String::new(), |budget| {
            format!("  budget: \"p99: {}us\"\n", budget.as_micros())
        });
        let text = format!(
            "model_dir: {0}/models\nstate_dir: {0}/state\nhttp_address: 127.0.0.1:{1}\n\
             metrics_address: 127.0.0.1:{2}\nruntime_library: {3}\ndefaults:\n{4}  \
             intra_op_threads: 1\n  quality_floor: 0.9\n  governor:\n    \
             sustain: 3s\n    dwell: 4s\n  \
             ladder:\n    ratios: [0.75, 0.5]\n  calibration:\n    samples: 128\n",
            self.dir.display(),
            self.port,
            self.metrics_port,
            self.runtime.display(),
            budget
        );
        files::replace(&self.dir.join("agent.yaml"), &[text.into()])?;
        Ok(())
    }

    /// What an operator does: the file is replaced, the agent sees it.
    fn set_budget(&self, budget: Duration) -> anyhow::Result<()> {
        self.write_config(Some(budget))?;
        let told = |model: &Value| model["budget"].is_object();
        self.wait("the budget is taken over", 20, told).map(|_| ())
    }

    fn drop_model(&self, assets: &Path) -> anyhow::Result<()> {
        let model = self.dir.join("models/digits");
        fs::create_dir_all(model.join("1"))?;
        fs::copy(assets.join("digits_calibration.npz"), model.join("calibration.npz"))?;
        fs::copy(assets.join("digits_resnet.onnx"), model.join("1/model.onnx"))?;
        Ok(())
    }

    fn status(&self) -> anyhow::Result<Value> {
        let url = format!("http://127.0.0.1:{}/v2/blochd/status", self.port);
        Ok(ureq::get(&url).call()?.body_mut().read_json()?)
    }

    /// Waits until the one model is as wanted.
    fn wait(
        &self,
        what: &str,
        seconds: u64,
        wanted: impl Fn(&Value) -> bool,
    ) -> anyhow::Result<Value> {
        let end = Instant::now() + Duration::from_secs(seconds);
        let mut last = String::new();
        loop {
            if let Ok(status) = self.status() {
                let model = &status["models"][0];
                if model.is_object() && wanted(model) {
                    println!("  {what}");
                    return Ok(model.clone());
                }
                last = model["build"].as_str().unwrap_or_default().to_owned();
            }
            if Instant::now() > end {
                let log = fs::read_to_string(self.dir.join("agent.log")).unwrap_or_default();
                let tail: Vec<&str> = log.lines().rev().take(5).collect();
                bail!("not within {seconds} s: {what} ({last}); the agent says: {tail:#?}");
            }
            thread::sleep(Duration::from_millis(250));
        }
    }
}

fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// One answered (or failed) request as the client process tells it.
#[derive(Debug, Clone)]
pub struct Sample {
    /// When it was sent.
    at: Instant,
    /// Seconds until the whole answer was there.
    latency: f64,
    variant: String,
    /// `None` where the request failed.
    right: Option<bool>,
}

/// The client process and what it has told so far.
struct Client {
    process: Running,
    told: std::sync::Arc<std::sync::Mutex<Vec<Sample>>>,
    reader: Option<thread::JoinHandle<()>>,
    begin: Instant,
}

impl Client {
    fn start(assets: &Path, port: u16, rate: f64) -> anyhow::Result<Self> {
        let started = Instant::now();
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("demo-client").arg(assets.join("digits_test.npz"));
        command.arg(port.to_string()).arg(rate.to_string());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let mut process = Running(command.spawn()?);
        let out = process.0.stdout.take().context("the client's output is not connected")?;
        let told = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
        let into = std::sync::Arc::clone(&told);
        let reader = thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                if let (Some(sample), Ok(mut all)) = (client::parse(&line, started), into.lock()) {
                    all.push(sample);
                }
            }
        });
        Ok(Self { process, told, reader: Some(reader), begin: started })
    }

    fn samples(&self) -> anyhow::Result<Vec<Sample>> {
        Ok(self.told.lock().map_err(|_| anyhow!("the client's reader failed"))?.clone())
    }

    /// p99 of the requests sent since `since`, seconds.
    fn p99_since(&self, since: Instant) -> anyhow::Result<f64> {
        let mut all: Vec<f64> =
            self.samples()?.iter().filter(|s| s.at >= since).map(|s| s.latency).collect();
        all.sort_by(f64::total_cmp);
        // Without the single slowest: the governor judges alike.
        let rank = all.len().checked_sub(2).ok_or_else(|| anyhow!("no request was answered"))?;
        Ok(all[rank])
    }

    /// The story's time zero.
    fn mark(&mut self, begin: Instant) {
        self.begin = begin;
    }

    /// Sent and failed.
    fn counts(&self) -> (usize, usize) {
        let all = self.samples().unwrap_or_default();
        (all.len(), all.iter().filter(|sample| sample.right.is_none()).count())
    }

    /// Ends the client and returns what it told, times relative to the story's beginning.
    fn finish(mut self) -> anyhow::Result<Vec<report::Request>> {
        // The client stops when its input closes, after the request in flight.
        drop(self.process.0.stdin.take());
        if let Some(reader) = self.reader.take() {
            reader.join().map_err(|_| anyhow!("the client's reader failed"))?;
        }
        let begin = self.begin;
        let request = |sample: Sample| report::Request {
            at: if sample.at >= begin {
                (sample.at - begin).as_secs_f64()
            } else {
                -(begin - sample.at).as_secs_f64()
            },
            latency: sample.latency,
            variant: sample.variant,
            right: sample.right,
        };
        Ok(self.samples()?.into_iter().map(request).collect())
    }
}
