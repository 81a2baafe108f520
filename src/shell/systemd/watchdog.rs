//! The thread that feeds the service manager's watchdog. It does nothing else, so that it can tell of every
//! other actor that it hangs, the event loop included; where one does, the watchdog is not fed, and the manager
//! starts the agent anew.

use std::collections::BTreeSet;
use std::io;
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use sd_notify::NotifyState;

use super::life::{Life, Stalled};
use crate::limits;

/// Its actor's name. It tells the status itself as long as it can.
pub const EVENT_LOOP: &str = "the event loop";

/// The thread; it ends when this is dropped.
#[derive(Debug)]
pub struct Watchdog {
    /// Dropped to end it.
    _stop: SyncSender<()>,
}

impl Watchdog {
    /// Looks at `life` now and every `interval`, and calls `tell` with what the manager is to know.
    ///
    /// # Errors
    /// Where there can be no further thread.
    pub fn start(
        life: Life,
        interval: Duration,
        tell: impl FnMut(&[NotifyState]) + Send + 'static,
    ) -> io::Result<Self> {
        let (stop, stopped) = sync_channel(0);
        let mut keeper = Keeper { tell, silent: BTreeSet::new() };
        let turn = move || {
            loop {
                keeper.look(&life.stalled(Instant::now()));
                match stopped.recv_timeout(interval) {
                    Err(RecvTimeoutError::Timeout) => {}
                    Ok(()) | Err(RecvTimeoutError::Disconnected) => return,
                }
            }
        };
        let builder = thread::Builder::new().name("watchdog".to_owned());
        builder.stack_size(limits::WATCHDOG_STACK_BYTES).spawn(turn)?;
        Ok(Self { _stop: stop })
    }
}

/// How often the watchdog is fed: thrice in the time that the manager gives, so that one late turn costs
/// nothing. `None` of it: nobody waits for that.
pub fn interval(given: Option<Duration>) -> Duration {
    let third = given.unwrap_or(limits::WATCHDOG_INTERVAL) / 3;
    third.clamp(limits::WATCHDOG_LEAST, limits::WATCHDOG_INTERVAL)
}

struct Keeper<T> {
    tell: T,
    /// Who was named already.
    silent: BTreeSet<String>,
}

impl<T: FnMut(&[NotifyState])> Keeper<T> {
    fn look(&mut self, stalled: &[Stalled]) {
        let names: BTreeSet<String> = stalled.iter().map(|one| one.name.clone()).collect();
        for one in stalled.iter().filter(|one| !self.silent.contains(&one.name)) {
            tracing::error!(actor = one.name, "{one}: the watchdog is not fed while that lasts");
        }
        for name in self.silent.difference(&names) {
            tracing::warn!(actor = name, "{name} shows life again");
        }
        self.silent = names;
        if stalled.is_empty() {
            (self.tell)(&[NotifyState::Watchdog]);
        } else if self.silent.contains(EVENT_LOOP) {
            let words: Vec<String> = stalled.iter().map(ToString::to_string).collect();
            (self.tell)(&[NotifyState::Status(&words.join(", "))]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stalled(name: &str) -> Stalled {
        Stalled { name: name.to_owned(), silent: Duration::from_secs(31) }
    }

    #[test]
    fn it_is_fed_only_while_nobody_hangs() {
        let mut told = Vec::new();
        let tell = |states: &[NotifyState]| {
            told.push(states.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "));
        };
        let mut keeper = Keeper { tell, silent: BTreeSet::new() };
        keeper.look(&[]);
        // The event loop tells the status that says so.
        keeper.look(&[stalled("http")]);
        keeper.look(&[stalled(EVENT_LOOP), stalled("http")]);
        keeper.look(&[stalled(EVENT_LOOP)]);
        keeper.look(&[]);
        let both = "STATUS=the event loop shows no life for 31 s, http shows no life for 31 s";
        let one = "STATUS=the event loop shows no life for 31 s";
        assert_eq!(told, ["WATCHDOG=1", both, one, "WATCHDOG=1"]);
    }

    #[test]
    fn it_is_fed_three_times_as_often_as_the_manager_asks() {
        let secs = Duration::from_secs;
        assert_eq!(interval(Some(secs(3))), secs(1));
        assert_eq!(interval(Some(secs(600))), limits::WATCHDOG_INTERVAL);
        assert_eq!(interval(Some(Duration::from_micros(1))), limits::WATCHDOG_LEAST);
        assert!(interval(None) <= limits::WATCHDOG_INTERVAL);
    }

    #[test]
    fn the_thread_feeds_from_the_start_and_ends_with_its_handle() {
        let life = Life::default();
        let (fed, feedings) = sync_channel(64);
        let tell = move |states: &[NotifyState]| {
            let _ = fed.try_send(states.len());
        };
        let watchdog = Watchdog::start(life, Duration::from_millis(1), tell).unwrap();
        for _ in 0..3 {
            assert_eq!(feedings.recv().unwrap(), 1);
        }
        drop(watchdog);
        // Ends: the sender goes with the thread.
        while feedings.recv().is_ok() {}
    }
}
