//! A session on a thread of its own, which is waited for only so long: what a driver does not return from holds
//! up nobody but that thread. It cannot be freed as long as the process lives, and is left behind knowingly.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::limits;
use crate::onnx::{ExecError, Tensor};
use crate::shell::cpus;

use super::variant::{Ender, Runner};

/// How long runs are waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// The first one in a shape, which may compile it.
    pub first: Duration,
    /// Every further one.
    pub later: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { first: limits::RUN_HANGS, later: limits::RUN_HANGS }
    }
}

impl Patience {
    /// With runs that are expected to take so long at the most.
    pub fn expecting(self, longest: Option<Duration>) -> Self {
        let times = longest.unwrap_or_default().saturating_mul(limits::RUN_HANGS_TIMES);
        let later = times.max(limits::RUN_HANGS);
        Self { first: self.first.max(later), later }
    }
}

/// Sessions whose run has not returned and that nobody waits for any more.
static ABANDONED: AtomicUsize = AtomicUsize::new(0);

/// How many sessions of this process hang in a run at the moment and were left behind.
pub fn abandoned() -> usize {
    ABANDONED.load(Ordering::Relaxed)
}

type Ran = Result<Vec<Tensor>, ExecError>;

/// A run that is asked for.
struct Ask {
    inputs: Vec<(String, Tensor)>,
    wanted: Vec<String>,
    answer: mpsc::SyncSender<Result<Ran, Box<dyn Any + Send>>>,
}

/// What the thread and who waits for it tell each other beside.
#[derive(Default)]
struct Between {
    running: bool,
    abandoned: bool,
    /// Ends the run that is under way.
    ender: Option<Ender>,
}

type Shared = Arc<Mutex<Between>>;

fn lock(between: &Shared) -> MutexGuard<'_, Between> {
    between.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The session's other end.
pub(super) struct Apart {
    asks: Option<mpsc::SyncSender<Ask>>,
    thread: Option<JoinHandle<()>>,
    between: Shared,
    /// Why it runs nothing any more.
    hung: Option<String>,
}

impl Apart {
    pub fn new(session: Box<dyn Runner>) -> Self {
        let (asks, asked) = mpsc::sync_channel(1);
        let between = Shared::default();
        let own = Arc::clone(&between);
        let body = move || work(session, &asked, &own);
        let thread = thread::Builder::new().name("device".to_owned()).spawn(body);
        let hung = thread.as_ref().err().map(|error| format!("there is no thread for it: {error}"));
        Self { asks: Some(asks), thread: thread.ok(), between, hung }
    }

    /// Runs once, and waits for it for so long. After one that did not return in time, nothing is run any more.
    pub fn run(
        &mut self,
        inputs: &[(&str, &Tensor)],
        wanted: &[&str],
        patience: Duration,
    ) -> Result<Vec<Tensor>, ExecError> {
        if let Some(why) = &self.hung {
            return Err(failed(why.clone()));
        }
        let (answer, answered) = mpsc::sync_channel(1);
        let owned = |(name, tensor): &(&str, &Tensor)| ((*name).to_owned(), (*tensor).clone());
        let inputs = inputs.iter().map(owned).collect();
        let wanted = wanted.iter().map(|name| (*name).to_owned()).collect();
        let ask = Ask { inputs, wanted, answer };
        let is_there = self.asks.as_ref().is_some_and(|asks| asks.send(ask).is_ok());
        match answered.recv_timeout(patience) {
            Ok(Ok(ran)) => return ran,
            Ok(Err(panic)) => resume_unwind(panic),
            Err(mpsc::RecvTimeoutError::Timeout) if is_there => {}
            Err(mpsc::RecvTimeoutError::Timeout | mpsc::RecvTimeoutError::Disconnected) => {
                return Err(failed("its thread has ended".to_owned()));
            }
        }
        let mut why = format!("a run did not return within {patience:?}");
        if let Some(ender) = &lock(&self.between).ender {
            ender();
        }
        // One that ends now is slow, not lost for good; still it is no session to serve with.
        if answered.recv_timeout(limits::RUN_ENDS).is_err() && self.abandon() {
            why.push_str(", nor when it was asked to end: its session is left behind");
        }
        self.hung = Some(why.clone());
        Err(failed(why))
    }

    pub fn hangs(&self) -> bool {
        self.hung.is_some()
    }

    /// Leaves the thread to itself; `false` where it has come back.
    fn abandon(&mut self) -> bool {
        let mut between = lock(&self.between);
        if between.running && !between.abandoned {
            between.abandoned = true;
            ABANDONED.fetch_add(1, Ordering::Relaxed);
        }
        between.abandoned
    }
}

impl Drop for Apart {
    /// The session is freed when this returns, unless it hangs.
    fn drop(&mut self) {
        self.asks = None;
        let abandoned = lock(&self.between).abandoned;
        if let Some(thread) = self.thread.take().filter(|_| !abandoned) {
            // It catches what the session throws.
            let _ = thread.join();
        }
    }
}

fn failed(reason: String) -> ExecError {
    ExecError { doing: "running the model".to_owned(), reason }
}

fn work(mut session: Box<dyn Runner>, asked: &mpsc::Receiver<Ask>, between: &Shared) {
    if let Some(cpu) = session.cpu()
        && let Err(error) = cpus::bind(&[cpu])
    {
        tracing::warn!(cpu, "the thread of a device is not bound: {error}");
    }
    while let Ok(Ask { inputs, wanted, answer }) = asked.recv() {
        let ender = session.ender();
        {
            let mut between = lock(between);
            (between.running, between.ender) = (true, ender);
        }
        let ran = {
            let inputs: Vec<_> =
                inputs.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
            let wanted: Vec<&str> = wanted.iter().map(String::as_str).collect();
            catch_unwind(AssertUnwindSafe(|| session.run(&inputs, &wanted)))
        };
        let abandoned = {
            let mut between = lock(between);
            (between.running, between.ender) = (false, None);
            between.abandoned
        };
        if abandoned {
            drop(session);
            ABANDONED.fetch_sub(1, Ordering::Relaxed);
            tracing::warn!("a run that was given up has returned: its session is freed");
            return;
        }
        // Who asked may have given up.
        let _ = answer.send(ran);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;
    use std::time::Instant;

    use super::*;

    fn until(what: &str, holds: impl Fn() -> bool) {
        let begun = Instant::now();
        while !holds() {
            assert!(begun.elapsed() < Duration::from_secs(60), "never: {what}");
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Hangs while it is told to; where it is `mild`, only until it is asked to end.
    struct Hanging {
        hangs: Arc<AtomicBool>,
        mild: bool,
        freed: Arc<AtomicBool>,
    }

    impl Runner for Hanging {
        fn run(&mut self, inputs: &[(&str, &Tensor)], _: &[&str]) -> Ran {
            while self.hangs.load(Ordering::SeqCst) {
                thread::sleep(Duration::from_millis(1));
            }
            Ok(vec![inputs[0].1.clone()])
        }

        fn ender(&mut self) -> Option<Ender> {
            let hangs = Arc::clone(&self.hangs);
            self.mild.then(|| Box::new(move || hangs.store(false, Ordering::SeqCst)) as Ender)
        }
    }

    impl Drop for Hanging {
        fn drop(&mut self) {
            self.freed.store(true, Ordering::SeqCst);
        }
    }

    fn ask(apart: &mut Apart, patience: Duration) -> Ran {
        apart.run(&[("x", &Tensor::from_i64(&[1], &[7]))], &[], patience)
    }

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn a_run_that_hangs_is_given_up_and_its_session_freed_when_it_returns() {
        let (hangs, freed) = (Arc::new(AtomicBool::new(false)), Arc::default());
        let session = Hanging { hangs: Arc::clone(&hangs), mild: false, freed: Arc::clone(&freed) };
        let mut apart = Apart::new(Box::new(session));
        assert_eq!(ask(&mut apart, LONG).unwrap(), [Tensor::from_i64(&[1], &[7])]);
        hangs.store(true, Ordering::SeqCst);
        let before = abandoned();
        let words = ask(&mut apart, Duration::from_millis(20)).unwrap_err().to_string();
        assert!(words.contains("within 20ms") && words.contains("left behind"), "{words}");
        assert!(apart.hangs() && abandoned() == before + 1);
        // At once, this time.
        assert!(ask(&mut apart, LONG).is_err());
        drop(apart);
        assert!(!freed.load(Ordering::SeqCst));
        hangs.store(false, Ordering::SeqCst);
        until("it is freed", || freed.load(Ordering::SeqCst) && abandoned() == before);
    }

    #[test]
    fn a_run_that_ends_when_it_is_asked_to_leaves_nothing_behind() {
        let (hangs, freed) = (Arc::new(AtomicBool::new(true)), Arc::default());
        let session = Hanging { hangs, mild: true, freed: Arc::clone(&freed) };
        let mut apart = Apart::new(Box::new(session));
        let words = ask(&mut apart, Duration::from_millis(20)).unwrap_err().to_string();
        assert!(words.ends_with("within 20ms") && apart.hangs(), "{words}");
        drop(apart);
        assert!(freed.load(Ordering::SeqCst), "it is freed by then");
    }

    #[test]
    fn what_a_session_throws_is_thrown_where_it_was_asked() {
        let throws = |_: &[(&str, &Tensor)], _: &[&str]| -> Ran { panic!("no such thing") };
        let mut apart = Apart::new(Box::new(throws));
        let thrown = catch_unwind(AssertUnwindSafe(|| ask(&mut apart, LONG)));
        assert_eq!(thrown.unwrap_err().downcast_ref::<&str>(), Some(&"no such thing"));
        assert!(!apart.hangs());
    }

    #[test]
    fn patience_grows_with_what_runs_take_and_never_falls_below_the_least() {
        let first = Duration::from_secs(120);
        let patience = Patience { first, ..Patience::default() };
        let later = |longest| patience.expecting(longest).later;
        assert_eq!(later(None), limits::RUN_HANGS);
        assert_eq!(later(Some(Duration::from_millis(3))), limits::RUN_HANGS);
        let slow = Duration::from_secs(30);
        let expected = slow * limits::RUN_HANGS_TIMES;
        let grown = patience.expecting(Some(slow));
        assert_eq!((grown.first, grown.later), (expected, expected));
        assert_eq!(patience.expecting(None).first, first);
    }
}
