//! The demo's client: a process of its own that sends one digit after the other at a steady rate over
//! HTTP, in the protocol's binary form, and tells on its standard output how each went.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use blochd::onnx::values;
use blochd::shell::npz;
use blochd::units::Percentile;
use clap::Args;
use serde_json::json;

use super::Running;
use super::story::Request;

/// What the demo starts its client with.
#[derive(Debug, Args)]
pub struct Load {
    data: PathBuf,
    port: u16,
    rate: f64,
}

impl Load {
    /// Sends requests until standard input closes.
    pub fn run(self) -> anyhow::Result<()> {
        let arrays = npz::read(&self.data)?;
        let images = arrays.get("input").context("no array \"input\"")?;
        let labels = arrays.get("labels").context("no array \"labels\"")?;
        let labels = values::integers(labels.dtype, &labels.data).context("labels are integers")?;
        let size = images.data.len() / labels.len().max(1);
        let stop = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&stop);
        thread::spawn(move || {
            // Returns when the demo closes the pipe or is gone.
            let _ = std::io::stdin().read(&mut [0u8; 1]);
            ended.store(true, Ordering::Relaxed);
        });
        let url = format!("http://127.0.0.1:{}/v2/models/digits/infer", self.port);
        let header = json!({
            "inputs": [{
                "name": "input", "datatype": "FP32", "shape": [1, 1, 28, 28],
                "parameters": {"binary_data_size": size},
            }],
            "outputs": [{"name": "logits", "parameters": {"binary_data": true}}],
        })
        .to_string();
        let agent = ureq::Agent::new_with_defaults();
        let started = Instant::now();
        let between = Duration::from_secs_f64(1.0 / self.rate.max(0.1));
        let mut next = started;
        let mut out = std::io::stdout().lock();
        for index in (0..labels.len()).cycle() {
            if stop.load(Ordering::Relaxed) {
                return Ok(());
            }
            thread::sleep(next.saturating_duration_since(Instant::now()));
            let image = &images.data[index * size..][..size];
            let sent = Instant::now();
            let answer = infer(&agent, &url, &header, image);
            let latency = sent.elapsed();
            // A late answer delays the next request: one client, one request at a time.
            next = (next + between).max(Instant::now());
            let (variant, right) = match answer {
                Ok((variant, class)) => (variant, Some(class as i64 == labels[index])),
                Err(error) => (format!("{error:#}"), None),
            };
            let line = json!({
                "at": (sent - started).as_secs_f64(), "latency": latency.as_secs_f64(),
                "variant": variant, "right": right,
            });
            if writeln!(out, "{line}").and_then(|()| out.flush()).is_err() {
                return Ok(());
            }
        }
        Ok(())
    }
}

/// The variant that answered and the class it gave.
fn infer(
    agent: &ureq::Agent,
    url: &str,
    header: &str,
    image: &[u8],
) -> anyhow::Result<(String, usize)> {
    let body = [header.as_bytes(), image].concat();
    let mut response = agent
        .post(url)
        .header("Inference-Header-Content-Length", header.len().to_string())
        .header("Content-Type", "application/octet-stream")
        .send(&body[..])?;
    let text = |name: &str| -> Option<String> {
        Some(response.headers().get(name)?.to_str().ok()?.to_owned())
    };
    let variant = text("blochd-variant").unwrap_or_default();
    let json_length = text("inference-header-content-length").and_then(|text| text.parse().ok());
    let body = response.body_mut().read_to_vec()?;
    let from: usize = json_length.context("the answer has no binary part")?;
    let scores: Vec<f32> = body
        .get(from..)
        .context("the answer is shorter than it says")?
        .chunks_exact(4)
        .map(|bytes| f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
        .collect();
    let best = scores.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
    Ok((variant, best.context("the answer has no scores")?.0))
}

/// Reads one line of the client; times count from its start.
fn parse(line: &str, started: Instant) -> Option<Sample> {
    let value: serde_json::Value = serde_json::from_str(line).ok()?;
    Some(Sample {
        at: started + Duration::try_from_secs_f64(value["at"].as_f64()?).ok()?,
        latency: value["latency"].as_f64()?,
        variant: value["variant"].as_str()?.to_owned(),
        right: value["right"].as_bool(),
    })
}

/// One answered (or failed) request as the client process tells it.
#[derive(Debug, Clone)]
struct Sample {
    /// When it was sent.
    at: Instant,
    /// Seconds until the whole answer was there.
    latency: f64,
    variant: String,
    /// `None` where the request failed.
    right: Option<bool>,
}

/// The client process and what it has told so far.
pub struct Client {
    process: Running,
    told: Arc<Mutex<Vec<Sample>>>,
    reader: Option<thread::JoinHandle<()>>,
}

impl Client {
    pub fn start(assets: &Path, port: u16, rate: f64) -> anyhow::Result<Self> {
        let started = Instant::now();
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("demo-client").arg(assets.join("digits_test.npz"));
        command.arg(port.to_string()).arg(rate.to_string());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let mut process = Running(command.spawn()?);
        let out = process.0.stdout.take().context("the client's output is not connected")?;
        let told = Arc::new(Mutex::new(Vec::new()));
        let into = Arc::clone(&told);
        let reader = thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                if let (Some(sample), Ok(mut all)) = (parse(&line, started), into.lock()) {
                    all.push(sample);
                }
            }
        });
        Ok(Self { process, told, reader: Some(reader) })
    }

    fn samples(&self) -> anyhow::Result<Vec<Sample>> {
        Ok(self.told.lock().map_err(|_| anyhow!("the client's reader failed"))?.clone())
    }

    /// p99 of the requests sent since `since`, seconds.
    pub fn p99_since(&self, since: Instant) -> anyhow::Result<f64> {
        let mut all: Vec<f64> =
            self.samples()?.iter().filter(|s| s.at >= since).map(|s| s.latency).collect();
        all.sort_by(f64::total_cmp);
        Percentile::P99.of(&all).context("no request was answered")
    }

    /// Sent and failed.
    pub fn counts(&self) -> (usize, usize) {
        let all = self.samples().unwrap_or_default();
        (all.len(), all.iter().filter(|sample| sample.right.is_none()).count())
    }

    /// Ends the client and returns what it told, times relative to `begin`.
    pub fn finish(mut self, begin: Instant) -> anyhow::Result<Vec<Request>> {
        // The client stops when its input closes, after the request in flight.
        drop(self.process.0.stdin.take());
        if let Some(reader) = self.reader.take() {
            reader.join().map_err(|_| anyhow!("the client's reader failed"))?;
        }
        let request = |sample: Sample| Request {
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
