//! The part that the stand-in plays of the scenario, its clock, and what it counts.

use std::collections::BTreeSet;
use std::io::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::scenario;

/// Nanoseconds that runs were to take.
pub static MODELLED: AtomicU64 = AtomicU64::new(0);
pub static RUNS: AtomicU64 = AtomicU64::new(0);
/// Shapes that a program was built for.
pub static BUILDS: AtomicU64 = AtomicU64::new(0);
/// Operators that were compiled into programs.
pub static OPERATORS: AtomicU64 = AtomicU64::new(0);
/// Programs that they were compiled into.
pub static PROGRAMS: AtomicU64 = AtomicU64::new(0);

/// The builder of programs works for one at a time, whoever waits.
static BUILDER: Mutex<()> = Mutex::new(());

/// Shorter waits than this are spun: a sleep ends later than asked.
const SPIN: Duration = Duration::from_micros(200);

fn number(key: &str, otherwise: i64) -> i64 {
    scenario::number("npu", key, otherwise)
}

pub fn count(counter: &AtomicU64, more: u64) {
    counter.fetch_add(more, Ordering::Relaxed);
}

/// To be called first in whatever the scenario may let fail.
pub fn begin(call: &str) -> Result<(), String> {
    scenario::refresh();
    while scenario::text("npu", "hang").is_some_and(|named| named == call) {
        std::thread::sleep(Duration::from_millis(20));
        scenario::refresh();
    }
    match scenario::enter("npu", call) {
        Some(code) => Err(format!("SimNPU: {call} failed, ret={code}, see the device's log")),
        None => Ok(()),
    }
}

/// Whether the card is there: its library of telemetry goes by the same lines.
pub fn is_there() -> bool {
    number("vanished", 0) == 0 && scenario::cards("npu").contains(&0)
}

/// Whether it takes the processor for its device.
pub fn attaches() -> bool {
    number("attach", 0) != 0
}

/// What a driver says whose card has gone.
pub fn lost(call: &str) -> String {
    format!("SimNPU: {call} failed, device[0] is lost or in reset, ret=507018, rtError=0x7bc8a")
}

/// The operators that are claimed.
pub fn claimed() -> BTreeSet<String> {
    let named = scenario::text("npu", "ops");
    let named = named.as_deref().unwrap_or(super::ops::CLAIMED);
    named.split(',').map(|kind| kind.trim().to_owned()).collect()
}

/// Waits as long as the builder takes for shapes that are new to it.
pub fn build(shapes: &[Vec<usize>]) {
    let _one = BUILDER.lock();
    std::thread::sleep(Duration::from_millis(number("compile_ms", 0).max(0) as u64));
    count(&BUILDS, 1);
    note(&format!("build {:?}", shapes.first().map_or(&[][..], Vec::as_slice)));
}

/// Waits until a run that began then has taken as long as the core would: its modelled time, as the scenario
/// scales it, and longer where the core is hot.
pub fn wait(begun: Instant, nanoseconds: f64) {
    let percent = |key: &str, otherwise: i64| number(key, otherwise).max(0) as f64 / 100.0;
    let is_hot = number("temperature", 50) >= number("hot", 85);
    let throttled = if is_hot { percent("throttle", 200) } else { 1.0 };
    let modelled = (nanoseconds * percent("time", 100) * throttled) as u64;
    count(&MODELLED, modelled);
    count(&RUNS, 1);
    note(&format!("run {modelled} ns"));
    let until = begun + Duration::from_nanos(modelled);
    let left = until.saturating_duration_since(Instant::now());
    if left > SPIN {
        std::thread::sleep(left - SPIN);
    }
    while Instant::now() < until {
        std::hint::spin_loop();
    }
}

/// Adds a line to the file that the scenario names as `npu.log`.
pub fn note(line: &str) {
    let Some(path) = scenario::text("npu", "log") else { return };
    let file = std::fs::File::options().create(true).append(true).open(path);
    if let Ok(mut file) = file {
        let _ = file.write_all(format!("{} {line}\n", std::process::id()).as_bytes());
    }
}
