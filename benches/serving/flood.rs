//! Requests at a pace that nobody holds, sent whether or not the earlier ones are answered: as gRPC calls with
//! deadlines, many under way on each connection.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::json;

use crate::bare::{self, Bare};
use crate::client::{Outcome, Path, grpc_body, seen};
use crate::stream::Address;
use crate::wire::{self, Ended, Frame, Frames, Writer};
use crate::{Common, Error, percentile, pin, told};

#[derive(Args)]
pub struct Flood {
    #[command(flatten)]
    common: Common,
    /// What is asked, over gRPC.
    #[arg(long)]
    path: Path,
    /// Requests a second.
    #[arg(long)]
    rate: f64,
    /// Deadline of each.
    #[arg(long)]
    deadline_ms: u32,
    #[arg(long, default_value_t = 60.0)]
    seconds: f64,
    #[arg(long, default_value_t = 4)]
    connections: usize,
}

/// How long after the last request its answer is waited for.
const PATIENCE: Duration = Duration::from_secs(5);

/// A request that was answered or refused.
struct Told {
    /// Milliseconds.
    took: f64,
    outcome: Outcome,
}

/// A connection, written to by the sender and for what the reader has to say.
struct Line {
    writer: Mutex<Writer>,
    /// Under way: when each was sent, and its answer as far as it has come.
    open: Mutex<BTreeMap<u32, (Instant, Ended)>>,
    done: AtomicBool,
}

impl Line {
    fn writer(&self) -> std::sync::MutexGuard<'_, Writer> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open(&self) -> std::sync::MutexGuard<'_, BTreeMap<u32, (Instant, Ended)>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Flood {
    pub fn run(self) -> Result<(), Error> {
        let environment = bare::load(&self.common.library)?;
        let mut bare = Bare::open(&environment, &self.common.model)?;
        let expected = [bare.call()?];
        let body = grpc_body(&self.path.model, &bare);
        let timeout = format!("{}m", self.deadline_ms);
        let call = "/inference.GRPCInferenceService/ModelInfer";
        let headers = wire::headers(call, &[("grpc-timeout", &timeout)]);
        let mut lines = Vec::new();
        let mut readers = Vec::new();
        for _ in 0..self.connections {
            let (line, frames) = open(&self.path.address)?;
            let (reads, expected, core) =
                (Arc::clone(&line), expected.clone(), self.common.client_core);
            readers.push(thread::spawn(move || read(&reads, frames, &expected, core)));
            lines.push(line);
        }
        pin(self.common.client_core)?;
        // The server's settings have come by then.
        thread::sleep(Duration::from_millis(200));
        let begun = Instant::now();
        let between = Duration::from_secs_f64(1.0 / self.rate);
        let total = (self.rate * self.seconds) as u32;
        let mut late = Vec::new();
        for number in 0..total {
            let due = begun + between * number;
            thread::sleep(due.saturating_duration_since(Instant::now()));
            late.push(due.elapsed().as_secs_f64() * 1e3);
            send(&lines[number as usize % lines.len()], &headers, &body)?;
        }
        let sending = begun.elapsed().as_secs_f64();
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end && lines.iter().any(|line| !line.open().is_empty()) {
            thread::sleep(Duration::from_millis(10));
        }
        let unanswered: usize = lines.iter().map(|line| line.open().len()).sum();
        let mut all = Vec::new();
        for (line, reader) in lines.iter().zip(readers) {
            line.done.store(true, Ordering::Relaxed);
            line.writer().shut()?;
            all.extend(reader.join().map_err(|_| "a reader panicked")??);
        }
        self.tell(all, total, unanswered, sending, late);
        Ok(())
    }

    fn tell(&self, all: Vec<Told>, sent: u32, unanswered: usize, sending: f64, late: Vec<f64>) {
        let deadline = f64::from(self.deadline_ms);
        let answered = |told: &&Told| matches!(told.outcome, Outcome::Answer(_));
        let times = |wanted: &dyn Fn(&&Told) -> bool| -> Vec<f64> {
            all.iter().filter(wanted).map(|told| told.took).collect()
        };
        let admitted = times(&answered);
        let in_time = admitted.iter().filter(|took| **took <= deadline).count();
        let refused = times(&|told| matches!(told.outcome, Outcome::Refused(_)));
        let wrong = all.iter().filter(|told| told.outcome == Outcome::Wrong).count();
        let mut codes: BTreeMap<u16, u64> = BTreeMap::new();
        for told in &all {
            if let Outcome::Refused(code) = told.outcome {
                *codes.entry(code).or_default() += 1;
            }
        }
        let mut late_sorted = late;
        late_sorted.sort_by(f64::total_cmp);
        let at_once = refused.iter().filter(|took| **took < 5.0).count();
        println!(
            "{}",
            json!({
                "sent": sent, "seconds": sending, "late_p99_ms": percentile(&late_sorted, 0.99),
                "unanswered": unanswered, "wrong": wrong, "in_time": in_time,
                "refused_below_5_ms": at_once, "codes": codes,
                "admitted_ms": told(admitted), "refused_ms": told(refused),
            })
        );
    }
}

fn open(address: &Address) -> io::Result<(Arc<Line>, Frames)> {
    let (writer, frames) = wire::connect(address)?;
    let writer = Mutex::new(writer);
    let line = Line { writer, open: Mutex::default(), done: AtomicBool::default() };
    Ok((Arc::new(line), frames))
}

/// Sends one request, whole.
fn send(line: &Line, headers: &[u8], body: &[u8]) -> io::Result<()> {
    loop {
        let mut writer = line.writer();
        let mut window = writer.allowed.stream;
        if writer.allowed.connection < body.len() as i64 {
            // The server reads no more for now.
            drop(writer);
            thread::yield_now();
            continue;
        }
        let stream = writer.begin(headers);
        let ended = Ended { status: None, message: Vec::new() };
        line.open().insert(stream, (Instant::now(), ended));
        let sent = writer.body(stream, body, &mut window)?;
        if sent < body.len() {
            return Err(io::Error::other("the request is larger than the server's window"));
        }
        return Ok(());
    }
}

/// Takes the answers of a connection until it ends.
fn read(
    line: &Line,
    mut frames: Frames,
    expected: &[Vec<u8>],
    core: Option<usize>,
) -> Result<Vec<Told>, Error> {
    pin(core)?;
    let mut all = Vec::new();
    loop {
        let frame = frames.next(|tell| {
            let mut writer = line.writer();
            tell(&mut writer);
            // Where it cannot be sent the connection is broken, which the next reading tells.
            let _ = writer.send();
        });
        let frame = match frame {
            Ok(frame) => frame,
            Err(_) if line.done.load(Ordering::Relaxed) => return Ok(all),
            Err(error) => return Err(error.into()),
        };
        let now = Instant::now();
        let (stream, end) = match frame {
            Frame::Data { stream, bytes, end } => {
                if let Some((_, ended)) = line.open().get_mut(&stream) {
                    ended.message.extend_from_slice(bytes);
                }
                (stream, end)
            }
            Frame::Headers { stream, status, end } => {
                if let Some((_, ended)) = line.open().get_mut(&stream) {
                    ended.status = status.or(ended.status);
                }
                (stream, end)
            }
            // 0xffff: the server ended the call without a status.
            Frame::Reset { stream } => (stream, true),
            Frame::Grant { .. } | Frame::Other => continue,
        };
        if !end {
            continue;
        }
        let Some((sent, ended)) = line.open().remove(&stream) else { continue };
        let took = (now - sent).as_secs_f64() * 1e3;
        all.push(Told { took, outcome: seen(expected, &ended) });
    }
}
