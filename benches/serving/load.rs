//! Clients that ask without an end, or at a steady pace, while something happens to the server. Every answer is
//! compared, bit by bit, with what each of the given files says.
//!
//! Standard input: `phase NAME` begins another phase, its end is the end. Standard output: `{"now": N, "at": S}`
//! whenever another file's answers come than before, and at the end what each phase was like.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::{Value, json};

use crate::bare::{self, Bare};
use crate::client::{Client, Outcome, Path};
use crate::{Common, Error, pin, told};

#[derive(Args)]
pub struct Load {
    #[command(flatten)]
    common: Common,
    /// What is asked.
    #[arg(long)]
    path: Path,
    /// Further files that may answer; the model itself is number 0.
    #[arg(long = "variant")]
    variants: Vec<PathBuf>,
    #[arg(long, default_value_t = 8)]
    clients: usize,
    /// Requests a second of each client; without, each asks again at once.
    #[arg(long)]
    rate: Option<f64>,
    /// Writes every request here: when it was sent (s), what it took (ms), who answered.
    #[arg(long)]
    timeline: Option<PathBuf>,
}

/// One request.
#[derive(Debug, Clone)]
struct Sample {
    phase: usize,
    /// Seconds since the start.
    at: f64,
    /// Milliseconds.
    took: f64,
    outcome: Outcome,
    /// Answered by what had been replaced before it was sent.
    stale: bool,
}

/// Whose answers come, and since when.
struct Now {
    variant: Option<usize>,
    since: Instant,
    /// Those that came before: an answer of theirs to a later request is a fault.
    begun: Instant,
}

struct Shared {
    begun: Instant,
    stop: AtomicBool,
    phase: AtomicUsize,
    now: Mutex<Now>,
}

impl Load {
    pub fn run(self) -> Result<(), Error> {
        let environment = bare::load(&self.common.library)?;
        let mut bare = Bare::open(&environment, &self.common.model)?;
        let mut expected = vec![bare.call()?];
        for file in &self.variants {
            let mut other = Bare::open(&environment, file)?;
            other.input.clone_from(&bare.input);
            expected.push(other.call()?);
        }
        let begun = Instant::now();
        let now = Mutex::new(Now { variant: None, since: begun, begun });
        let shared =
            Shared { begun, stop: AtomicBool::default(), phase: AtomicUsize::default(), now };
        let open = |_| Client::open(&self.path, &bare, &expected);
        let clients = (0..self.clients).map(open).collect::<Result<Vec<_>, _>>()?;
        let mut phases = vec!["start".to_owned()];
        let samples = thread::scope(|scope| {
            let all: Vec<_> = clients
                .into_iter()
                .map(|client| scope.spawn(|| self.ask(client, &shared)))
                .collect();
            for line in std::io::stdin().lines().map_while(Result::ok) {
                let Some(name) = line.strip_prefix("phase ") else { continue };
                let known = phases.iter().position(|phase| phase == name);
                let phase = known.unwrap_or_else(|| {
                    phases.push(name.to_owned());
                    phases.len() - 1
                });
                shared.phase.store(phase, Ordering::Relaxed);
            }
            shared.stop.store(true, Ordering::Relaxed);
            let mut samples = Vec::new();
            for one in all {
                samples.extend(one.join().map_err(|_| "a client panicked")??);
            }
            Ok::<_, Error>(samples)
        })?;
        if let Some(path) = &self.timeline {
            timeline(path, samples.clone())?;
        }
        println!("{}", json!({ "phases": summed(&phases, &samples) }));
        Ok(())
    }

    fn ask(&self, mut client: Client, shared: &Shared) -> Result<Vec<Sample>, Error> {
        pin(self.common.client_core)?;
        let between = self.rate.map(|rate| Duration::from_secs_f64(1.0 / rate));
        let mut samples = Vec::new();
        let mut next = Instant::now();
        while !shared.stop.load(Ordering::Relaxed) {
            if let Some(between) = between {
                thread::sleep(next.saturating_duration_since(Instant::now()));
                // A late answer delays the next request: one client, one request at a time.
                next = (next + between).max(Instant::now());
            }
            let phase = shared.phase.load(Ordering::Relaxed);
            let sent = Instant::now();
            let outcome = client.call()?;
            let took = sent.elapsed().as_secs_f64() * 1e3;
            let stale = shared.saw(sent, &outcome);
            let at = (sent - shared.begun).as_secs_f64();
            samples.push(Sample { phase, at, took, outcome, stale });
        }
        Ok(samples)
    }
}

impl Shared {
    /// Takes in who answered a request that was sent at `sent`; whether that one had gone by then.
    fn saw(&self, sent: Instant, outcome: &Outcome) -> bool {
        let Outcome::Answer(variant) = outcome else { return false };
        let mut now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        if now.variant == Some(*variant) {
            return false;
        }
        if sent < now.begun {
            // Under way when the other one took over.
            return false;
        }
        // Between the first answer of a variant and a request that was sent after it, the other may answer once
        // more only if it was put back meanwhile, which takes longer than any request is under way.
        let stale = now.variant.is_some() && sent < now.since + Duration::from_millis(2);
        (now.variant, now.since, now.begun) = (Some(*variant), sent, Instant::now());
        let at = (now.begun - self.begun).as_secs_f64();
        let mut out = std::io::stdout().lock();
        let told = writeln!(out, "{}", json!({ "now": variant, "at": at }));
        let _ = told.and_then(|()| out.flush());
        stale
    }
}

fn summed(phases: &[String], samples: &[Sample]) -> serde_json::Map<String, Value> {
    let of = |(number, name): (usize, &String)| {
        let mine: Vec<&Sample> = samples.iter().filter(|sample| sample.phase == number).collect();
        let mut answers: BTreeMap<String, u64> = BTreeMap::new();
        for sample in &mine {
            *answers.entry(word(&sample.outcome)).or_default() += 1;
        }
        let stale = mine.iter().filter(|sample| sample.stale).count();
        let took = told(mine.iter().map(|sample| sample.took).collect());
        (name.clone(), json!({ "took_ms": took, "answers": answers, "stale": stale }))
    };
    phases.iter().enumerate().map(of).collect()
}

fn word(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Answer(number) => number.to_string(),
        Outcome::Wrong => "wrong".to_owned(),
        Outcome::Refused(code) => format!("refused {code}"),
    }
}

fn timeline(path: &std::path::Path, mut samples: Vec<Sample>) -> Result<(), Error> {
    samples.sort_by(|a, b| a.at.total_cmp(&b.at));
    let mut text = String::new();
    for Sample { at, took, outcome, .. } in &samples {
        text += &format!("{at:.6} {took:.4} {}\n", word(outcome).replace(' ', "-"));
    }
    Ok(fs::write(path, text)?)
}
