//! Who is alive: every actor of the agent shows it in its turn, and whoever has not for longer than it may is
//! named.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::limits;

/// What an actor showed last.
#[derive(Debug, Clone, Copy)]
struct Actor {
    bound: Duration,
    /// Its last sign of life; `None` while it has nothing to do.
    last: Option<Instant>,
}

#[derive(Debug, Default)]
struct State {
    actors: BTreeMap<String, Actor>,
    /// For how long sessions have been running what they run, by model.
    runs: BTreeMap<String, Duration>,
}

/// All actors of the agent.
#[derive(Debug, Clone, Default)]
pub struct Life(Arc<Mutex<State>>);

/// An actor that shows no life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stalled {
    pub name: String,
    /// Since its last sign.
    pub silent: Duration,
}

impl fmt::Display for Stalled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} shows no life for {} s", self.name, self.silent.as_secs())
    }
}

/// By which an actor shows life. One that is dropped without [`Pulse::rest`], as by a panic, shows none.
#[derive(Debug)]
pub struct Pulse {
    life: Life,
    name: String,
}

impl Life {
    /// An actor that has nothing to do yet and shows life at least every `bound` while it has. One name stands
    /// for one actor.
    pub fn actor(&self, name: &str, bound: Duration) -> Pulse {
        self.lock().actors.insert(name.to_owned(), Actor { bound, last: None });
        Pulse { life: self.clone(), name: name.to_owned() }
    }

    /// For how long the oldest run of each model has been under way; what was said before is forgotten.
    pub fn runs(&self, runs: BTreeMap<String, Duration>) {
        self.lock().runs = runs;
    }

    /// Who shows no life at `now`, by name.
    pub fn stalled(&self, now: Instant) -> Vec<Stalled> {
        let state = self.lock();
        let silent = |(name, actor): (&String, &Actor)| {
            let silent = now.saturating_duration_since(actor.last?);
            (silent > actor.bound).then(|| Stalled { name: name.clone(), silent })
        };
        let hanging = |(model, ran): (&String, &Duration)| {
            let name = format!("a session of {model}");
            (*ran > limits::RUN_SILENCE).then_some(Stalled { name, silent: *ran })
        };
        let actors = state.actors.iter().filter_map(silent);
        actors.chain(state.runs.iter().filter_map(hanging)).collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code that can panic runs under this lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pulse {
    /// A sign of life.
    pub fn beat(&self) {
        self.set(Some(Instant::now()));
    }

    /// There is nothing to do: no sign is owed until the next one.
    pub fn rest(&self) {
        self.set(None);
    }

    fn set(&self, last: Option<Instant>) {
        if let Some(actor) = self.life.lock().actors.get_mut(&self.name) {
            actor.last = last;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUND: Duration = Duration::from_secs(10);

    fn names(life: &Life, now: Instant) -> Vec<String> {
        life.stalled(now).into_iter().map(|stalled| stalled.name).collect()
    }

    #[test]
    fn each_actor_is_held_to_its_own_bound_and_named() {
        let life = Life::default();
        let (quick, slow) = (life.actor("quick", BOUND), life.actor("slow", 3 * BOUND));
        let now = Instant::now();
        // Nobody has begun.
        assert!(names(&life, now + 100 * BOUND).is_empty());
        quick.beat();
        slow.beat();
        let now = Instant::now();
        assert!(names(&life, now).is_empty());
        assert_eq!(names(&life, now + 2 * BOUND), ["quick"]);
        assert_eq!(names(&life, now + 4 * BOUND), ["quick", "slow"]);
        let stalled = life.stalled(now + 2 * BOUND);
        assert!(stalled[0].silent >= 2 * BOUND, "{stalled:?}");
        assert_eq!(stalled[0].to_string(), "quick shows no life for 20 s");
        quick.rest();
        assert_eq!(names(&life, now + 4 * BOUND), ["slow"]);
        // Back to life.
        slow.beat();
        assert!(names(&life, Instant::now()).is_empty());
    }

    #[test]
    fn an_actor_that_goes_without_a_word_is_missed() {
        let life = Life::default();
        let pulse = life.actor("lost", BOUND);
        pulse.beat();
        drop(pulse);
        assert_eq!(names(&life, Instant::now() + 2 * BOUND), ["lost"]);
    }

    #[test]
    fn a_session_that_hangs_is_named_until_it_does_not() {
        let life = Life::default();
        let ran = |ran| life.runs(BTreeMap::from([("mlp".to_owned(), ran)]));
        ran(limits::RUN_SILENCE);
        assert!(names(&life, Instant::now()).is_empty());
        ran(limits::RUN_SILENCE + BOUND);
        assert_eq!(names(&life, Instant::now()), ["a session of mlp"]);
        life.runs(BTreeMap::new());
        assert!(names(&life, Instant::now()).is_empty());
    }
}
