//! What a stand-in for a vendor's library plays: lines of `key = value` in the file that `STANDIN_SCENARIO` names,
//! read again at each sweep, so that a test can change it under a running agent.
//!
//! - `cards = 2`, `gone = 0,1`: cards, and which of them are not there at the moment.
//! - `hang = CALL`, `crash = CALL`: what becomes of whoever makes the call.
//! - `error.CALL = CODE`: what the call returns instead of doing anything.
//! - `reads = FILE`, `writes = FILE`, `connects = PORT`: what it tries at each sweep, as code that has taken a
//!   library over would, and tells on standard error.
//! - `needs = FILE`: without reading that, every call fails with 1.
//! - anything else is a number that the library tells, such as `temperature = 61`; `temperature.step = 3` adds that
//!   much at each sweep.
//!
//! Every library plays its own part: a key may begin with its name, `cndev.temperature`.

use std::collections::BTreeMap;
use std::ffi::c_int;
use std::os::unix::fs::MetadataExt;
use std::sync::Mutex;
use std::time::{Duration, Instant};

#[derive(Default)]
struct Play {
    keys: BTreeMap<String, String>,
    sweeps: i64,
}

static PLAY: Mutex<Option<Play>> = Mutex::new(None);

fn read() -> BTreeMap<String, String> {
    let path = std::env::var("STANDIN_SCENARIO").unwrap_or_default();
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let pair =
        |line: &str| line.split_once('=').map(|(k, v)| (k.trim().to_owned(), v.trim().to_owned()));
    text.lines().filter_map(pair).collect()
}

fn with<T>(look: impl FnOnce(&Play) -> T) -> T {
    let mut play = PLAY.lock().unwrap();
    look(play.get_or_insert_with(|| Play { keys: read(), sweeps: 0 }))
}

fn value(library: &str, key: &str) -> Option<String> {
    with(|play| {
        let own = play.keys.get(&format!("{library}.{key}"));
        own.or_else(|| play.keys.get(key)).cloned()
    })
}

/// A sweep begins: the file is read again.
pub fn sweep() {
    let mut play = PLAY.lock().unwrap();
    let sweeps = play.as_ref().map_or(0, |play| play.sweeps + 1);
    let keys = read();
    reach_out(&keys);
    *play = Some(Play { keys, sweeps });
}

fn reach_out(keys: &BTreeMap<String, String>) {
    let say = |what: &str, done: bool| {
        eprintln!("{what}: {}", if done { "possible" } else { "denied" });
    };
    if let Some(file) = keys.get("reads") {
        say("reads", std::fs::read(file).is_ok());
    }
    if let Some(file) = keys.get("writes") {
        say("writes", std::fs::write(file, "x").is_ok());
    }
    if let Some(port) = keys.get("connects").and_then(|port| port.parse::<u16>().ok()) {
        say("connects", std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
    }
}

/// How long a library that knows no sweeps takes the file for unchanged.
const LOOKS: Duration = Duration::from_millis(50);

/// For a library that knows no sweeps: reads the file again if it is another one.
pub fn refresh() {
    static LAST: Mutex<Option<(Instant, Option<(u64, i64, i64)>)>> = Mutex::new(None);
    let mut last = LAST.lock().unwrap();
    if last.is_some_and(|(when, _)| when.elapsed() < LOOKS) {
        return;
    }
    let path = std::env::var("STANDIN_SCENARIO").unwrap_or_default();
    let file = std::fs::metadata(path).ok().map(|m| (m.ino(), m.mtime(), m.mtime_nsec()));
    let before = last.replace((Instant::now(), file));
    if before.is_none_or(|(_, before)| before != file) {
        sweep();
    }
}

/// A word that the scenario has for the library.
pub fn text(library: &str, key: &str) -> Option<String> {
    value(library, key)
}

/// To be called first by every function: hangs, crashes, or tells with what the call is to fail.
pub fn enter(library: &str, call: &str) -> Option<c_int> {
    let is = |key: &str| value(library, key).is_some_and(|named| named == call);
    while is("hang") {
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    if is("crash") {
        std::process::abort();
    }
    if value(library, "needs").is_some_and(|file| std::fs::read(file).is_err()) {
        return Some(1);
    }
    if is("chatter") {
        // As vendors' libraries do, in the middle of a line.
        print!("{library}: hello from the driver ");
        let _ = std::io::Write::flush(&mut std::io::stdout());
    }
    value(library, &format!("error.{call}")).and_then(|code| code.parse().ok())
}

/// A number that the library tells.
pub fn number(library: &str, key: &str, otherwise: i64) -> i64 {
    let parsed = |key: &str| value(library, key).and_then(|text| text.parse::<i64>().ok());
    let step = parsed(&format!("{key}.step")).unwrap_or(0);
    parsed(key).unwrap_or(otherwise) + step * with(|play| play.sweeps)
}

/// Numbers of the cards that are there.
pub fn cards(library: &str) -> Vec<i64> {
    let gone = value(library, "gone").unwrap_or_default();
    let gone: Vec<i64> = gone.split(',').filter_map(|card| card.trim().parse().ok()).collect();
    (0..number(library, "cards", 1)).filter(|card| !gone.contains(card)).collect()
}
