//! Servers in turn with bare ONNX Runtime: a few calls of one, then of the next, again and again, each time in
//! another order. What the machine does meanwhile meets all of them alike.

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::{Value, json};

use crate::bare::{self, Bare};
use crate::client::{Client, Outcome, Path};
use crate::{Common, Error, pin, told};

#[derive(Args)]
pub struct Latency {
    #[command(flatten)]
    common: Common,
    /// Core of bare ONNX Runtime: that of the servers.
    #[arg(long)]
    server_core: Option<usize>,
    /// What is asked; bare ONNX Runtime always is.
    #[arg(long = "path")]
    paths: Vec<Path>,
    /// Calls of a turn; a tenth more goes ahead and does not count.
    #[arg(long, default_value_t = 200)]
    calls: usize,
    #[arg(long, default_value_t = 10)]
    rounds: usize,
}

/// The one thing that is in turn with all the others.
const BARE: &str = "bare";

impl Latency {
    pub fn run(self) -> Result<(), Error> {
        let environment = bare::load(&self.common.library)?;
        let mut bare = Bare::open(&environment, &self.common.model)?;
        let expected = [bare.call()?];
        let open = |path: &Path| {
            Client::open(path, &bare, &expected).map_err(|error| format!("{}: {error}", path.name))
        };
        let mut clients = self.paths.iter().map(open).collect::<Result<Vec<_>, _>>()?;
        let mut turns: BTreeMap<&str, Vec<Vec<f64>>> = BTreeMap::new();
        let kinds = clients.len() + 1;
        for round in 0..self.rounds {
            for at in 0..kinds {
                let of = (at + round) % kinds;
                let mut times = Vec::with_capacity(self.calls);
                let warm = (self.calls / 10).max(1);
                let name = if of == 0 {
                    pin(self.server_core)?;
                    for call in 0..warm + self.calls {
                        let begun = Instant::now();
                        bare.run(|output| {
                            std::hint::black_box(output);
                        })?;
                        if call >= warm {
                            times.push(begun.elapsed().as_secs_f64() * 1e6);
                        }
                    }
                    BARE
                } else {
                    pin(self.common.client_core)?;
                    let (client, path) = (&mut clients[of - 1], &self.paths[of - 1]);
                    for call in 0..warm + self.calls {
                        let begun = Instant::now();
                        let outcome = client.call().map_err(|e| format!("{}: {e}", path.name))?;
                        let took = begun.elapsed().as_secs_f64() * 1e6;
                        if outcome != Outcome::Answer(0) {
                            return Err(format!("{}: {outcome:?}", path.name).into());
                        }
                        if call >= warm {
                            times.push(took);
                        }
                    }
                    &path.name
                };
                turns.entry(name).or_default().push(times);
            }
        }
        println!("{}", summed(turns));
        Ok(())
    }
}

/// Of each what all calls took, and the median of each turn, microseconds.
fn summed(turns: BTreeMap<&str, Vec<Vec<f64>>>) -> Value {
    let one = |(name, turns): (&str, Vec<Vec<f64>>)| {
        let medians: Vec<Value> =
            turns.iter().map(|turn| told(turn.clone())["p50"].clone()).collect();
        (name.to_owned(), json!({ "all": told(turns.concat()), "medians": medians }))
    };
    turns.into_iter().map(one).collect::<serde_json::Map<_, _>>().into()
}

#[derive(Args)]
pub struct Throughput {
    #[command(flatten)]
    common: Common,
    /// Core of bare ONNX Runtime: that of the servers.
    #[arg(long)]
    server_core: Option<usize>,
    /// What is asked; bare ONNX Runtime always is.
    #[arg(long = "path")]
    paths: Vec<Path>,
    /// Clients, each with a connection and a thread of its own.
    #[arg(long, default_value_t = 8)]
    clients: usize,
    /// Seconds of a turn.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    #[arg(long, default_value_t = 5)]
    rounds: usize,
}

impl Throughput {
    pub fn run(self) -> Result<(), Error> {
        let environment = bare::load(&self.common.library)?;
        let mut bare = Bare::open(&environment, &self.common.model)?;
        let expected = [bare.call()?];
        let mut groups = Vec::new();
        for path in &self.paths {
            let open = |_| {
                let client = Client::open(path, &bare, &expected);
                client.map_err(|error| format!("{}: {error}", path.name))
            };
            groups.push((0..self.clients).map(open).collect::<Result<Vec<_>, _>>()?);
        }
        let turn = Duration::from_secs_f64(self.seconds);
        let mut rates: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
        let mut latencies: BTreeMap<&str, Vec<Vec<f64>>> = BTreeMap::new();
        let kinds = groups.len() + 1;
        for round in 0..self.rounds {
            for at in 0..kinds {
                let of = (at + round) % kinds;
                if of == 0 {
                    pin(self.server_core)?;
                    let (mut runs, begun) = (0.0, Instant::now());
                    while begun.elapsed() < turn {
                        bare.run(|output| {
                            std::hint::black_box(output);
                        })?;
                        runs += 1.0;
                    }
                    rates.entry(BARE).or_default().push(runs / begun.elapsed().as_secs_f64());
                    continue;
                }
                let name = self.paths[of - 1].name.as_str();
                let (rate, times) = together(&mut groups[of - 1], turn, self.common.client_core)
                    .map_err(|error| format!("{name}: {error}"))?;
                rates.entry(name).or_default().push(rate);
                latencies.entry(name).or_default().push(times);
            }
        }
        let latencies = latencies.into_iter();
        let latencies: serde_json::Map<String, Value> =
            latencies.map(|(name, turns)| (name.to_owned(), told(turns.concat()))).collect();
        println!("{}", json!({ "rates": rates, "latencies": latencies }));
        Ok(())
    }
}

/// All clients for one turn: answers a second, and what they took. The first tenth does not count.
fn together(
    clients: &mut [Client],
    turn: Duration,
    core: Option<usize>,
) -> Result<(f64, Vec<f64>), Error> {
    let begun = Instant::now();
    let (from, to) = (begun + turn / 10, begun + turn + turn / 10);
    let ask = |client: &mut Client| -> Result<Vec<f64>, Error> {
        pin(core)?;
        let mut times = Vec::new();
        loop {
            let sent = Instant::now();
            let outcome = client.call()?;
            let now = Instant::now();
            if outcome != Outcome::Answer(0) {
                return Err(format!("{outcome:?}").into());
            }
            if now >= to {
                return Ok(times);
            }
            if now >= from {
                times.push((now - sent).as_secs_f64() * 1e6);
            }
        }
    };
    let times = thread::scope(|scope| {
        let all: Vec<_> = clients.iter_mut().map(|client| scope.spawn(|| ask(client))).collect();
        let mut times = Vec::new();
        for one in all {
            times.extend(one.join().map_err(|_| "a client panicked")??);
        }
        Ok::<_, Error>(times)
    })?;
    Ok((times.len() as f64 / turn.as_secs_f64(), times))
}
