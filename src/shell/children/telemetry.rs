//! `blochd probe`: a vendor's library is read in a child, which tells a line a sweep. A library that hangs in a
//! sick card's driver holds the child up and nobody else; one that crashes ends it. The library is the system's
//! or the operator's own and sees no model: the child is bounded like any, and confined as far as such
//! libraries are known to work.

use std::path::Path;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::confining::Confining;
use super::process::{Bounds, ChildError, Memory, Priority, Wish, argument, run};
use crate::hardware::Trouble;
use crate::limits;
use crate::shell::probe::source::{Reading, Told};

fn bounds() -> Bounds {
    Bounds {
        timeout: limits::TELEMETRY_LONGEST,
        processor: limits::TELEMETRY_PROCESSOR,
        memory: Memory::Bytes(limits::TELEMETRY_MEMORY),
        priority: Priority::Normal,
        folder: None,
        homes: &[],
    }
}

/// Reads a library with `program` (this one, outside of tests) and tells what comes, the trouble with which it
/// ends included. Returns when the child has made its sweeps, has failed, or was ended; `patience` is how long
/// it may be silent beyond the time between two sweeps. A child that hangs is told as such at once, and then
/// waited for: where not even SIGKILL reaches it, a second one would hang beside it.
///
/// # Errors
/// Why it ended; [`None`] where that was wished.
pub async fn watch(
    program: &Path,
    reading: &Reading,
    patience: Duration,
    mut wish: watch::Receiver<Wish>,
    told: &(dyn Fn(Told) + Send + Sync),
) -> Result<(), Option<Trouble>> {
    let bounds = bounds();
    let heard = Notify::new();
    let (own, hears) = watch::channel(Wish::Run);
    let (mut trouble, mut hung) = (None, None);
    let mut first = true;
    let ended = {
        let mut line = |line: &str| {
            match serde_json::from_str(line) {
                Ok(Told::Trouble { trouble: found }) => trouble = Some(found),
                // Of how it is confined only the first line tells, before the library can speak.
                Ok(Told::Confined(_)) if !first => {}
                Ok(other) => told(other),
                Err(_) => tracing::debug!(line, "a probe wrote"),
            }
            first = false;
            heard.notify_one();
            Ok(())
        };
        let arguments = arguments(reading);
        let mut running = pin!(run(program, &arguments, &bounds, hears, &mut line));
        let limit = reading.every + patience;
        let mut until = Instant::now() + limit;
        let mut asked = false;
        loop {
            let ends = async {
                // Whoever could wish is gone: nobody wants to know any more.
                while wish.changed().await.is_ok() && *wish.borrow_and_update() != Wish::End {}
            };
            tokio::select! {
                ended = &mut running => break ended,
                () = heard.notified() => until = Instant::now() + limit,
                () = tokio::time::sleep_until(until), if !asked => {
                    let trouble = Trouble::Hung { limit_ms: millis(limit) };
                    told(Told::Trouble { trouble: trouble.clone() });
                    hung = Some(trouble);
                    asked = true;
                    own.send_replace(Wish::End);
                }
                () = ends, if !asked => {
                    asked = true;
                    own.send_replace(Wish::End);
                }
            }
        }
    };
    if let Some(hung) = hung {
        return Err(Some(hung));
    }
    let trouble = match (ended, trouble) {
        (_, Some(trouble)) => trouble,
        (Ok(()), None) => return Ok(()),
        (Err(ChildError::Ended), None) => return Err(None),
        (Err(error), None) => Trouble::Ended { how: error.to_string() },
    };
    told(Told::Trouble { trouble: trouble.clone() });
    Err(Some(trouble))
}

/// The same for a library that is read in one child and no other: where it told nothing confined, and the
/// configuration does not insist, it is read once more without.
///
/// # Errors
/// As [`watch()`], of the last child.
pub async fn once(
    program: &Path,
    reading: &Reading,
    patience: Duration,
    wish: watch::Receiver<Wish>,
    told: &(dyn Fn(Told) + Send + Sync),
) -> Result<(), Option<Trouble>> {
    let swept = AtomicBool::new(false);
    let tell = |what: Told| {
        swept.fetch_or(matches!(what, Told::Sweep { .. }), Ordering::Relaxed);
        told(what);
    };
    let mut confining = Confining::new(reading.sandbox);
    let ended = watch(program, reading, patience, wish.clone(), &tell).await;
    confining.ended(swept.load(Ordering::Relaxed), ended.as_ref().err().and_then(Option::as_ref));
    if confining.lifted().is_none() {
        return ended;
    }
    let reading = Reading { sandbox: confining.now(), ..reading.clone() };
    watch(program, &reading, patience, wish, &tell).await
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn arguments(reading: &Reading) -> Vec<String> {
    let mut arguments = vec!["probe".to_owned(), reading.source.to_string()];
    let options = [
        ("--every", format!("{}ms", reading.every.as_millis())),
        ("--sweeps", reading.sweeps.to_string()),
        ("--sandbox", reading.sandbox.to_string()),
    ];
    for (name, value) in options {
        arguments.extend([name.to_owned(), value]);
    }
    if let Some(library) = &reading.library {
        arguments.extend(["--library".to_owned(), argument(library)]);
    }
    if reading.opens {
        arguments.push("--open-devices".to_owned());
    }
    arguments
}
