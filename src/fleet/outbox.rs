//! What of a node's state is sent, and when.
//!
//! There is no queue: what could not be sent yet is in the newest state, with the last outcomes of bundles in
//! its history, so that weeks without a broker take no more memory than a second. What decides something (a
//! revision, a reason, a variant, health) goes at once and whole; figures alone go as changes, at leisure. A
//! bucket of bytes bounds both.

use std::time::Duration;

use serde_json::Value;

use super::reported::{Body, Report, Reported, difference, standing};
use crate::limits;

/// What a node does next about its reports.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// Publish this; `retain`: for those who come later too.
    Send { payload: String, retain: bool },
    /// Nothing before that time has passed, unless the state changes.
    Wait(Duration),
}

/// Reports of one run of an agent.
#[derive(Debug, Clone)]
pub struct Outbox {
    epoch: u64,
    seq: u64,
    /// What whoever listens has.
    sent: Option<Value>,
    sent_at: Duration,
    full_at: Duration,
    /// Bytes that may be sent, as of a moment.
    allowance: f64,
    counted: Duration,
}

impl Outbox {
    /// `epoch` tells this run of the agent from others.
    pub fn new(epoch: u64) -> Self {
        Self {
            epoch,
            seq: 0,
            sent: None,
            sent_at: Duration::ZERO,
            full_at: Duration::ZERO,
            allowance: limits::LINK_REPORT_BURST as f64,
            counted: Duration::ZERO,
        }
    }

    /// There is a new connection: nobody knows what of the last reports arrived, and the next one is whole.
    pub fn reconnected(&mut self) {
        self.sent = None;
    }

    /// What is to be done at `now`, by a clock that does not go back, with the state as it is.
    pub fn step(&mut self, now: Duration, state: &Reported) -> Step {
        let document = state.document();
        let Some(sent) = &self.sent else { return self.whole(now, document) };
        let age = now.saturating_sub(self.sent_at);
        if standing(sent) != standing(&document) {
            return match limits::LINK_REPORT_GAP.checked_sub(age) {
                Some(rest) if !rest.is_zero() => Step::Wait(rest),
                Some(_) | None => self.whole(now, document),
            };
        }
        // Whoever comes later finds figures that are not too old.
        let old = limits::LINK_SNAPSHOT_AGE.saturating_sub(now.saturating_sub(self.full_at));
        let retained_is_behind = self.full_at < self.sent_at;
        if *sent == document {
            return match old {
                Duration::ZERO if retained_is_behind => self.whole(now, document),
                rest if retained_is_behind => Step::Wait(rest),
                _ => Step::Wait(limits::LINK_SNAPSHOT_AGE),
            };
        }
        match limits::LINK_FIGURES_GAP.checked_sub(age) {
            Some(rest) if !rest.is_zero() => Step::Wait(rest),
            Some(_) | None if old.is_zero() => self.whole(now, document),
            Some(_) | None => {
                let body = Body::Delta(difference(sent, &document));
                self.send(now, document, body, false)
            }
        }
    }

    fn whole(&mut self, now: Duration, document: Value) -> Step {
        let body = Body::Full(document.clone());
        self.send(now, document, body, true)
    }

    fn send(&mut self, now: Duration, document: Value, body: Body, retain: bool) -> Step {
        let report = Report { epoch: self.epoch, seq: self.seq + 1, body };
        // A document of text and numbers can always be written.
        let payload = serde_json::to_string(&report).unwrap_or_default();
        let cost = (payload.len() + limits::LINK_OVERHEAD_BYTES) as f64;
        let since = now.saturating_sub(self.counted).as_secs_f64();
        let burst = limits::LINK_REPORT_BURST as f64;
        self.allowance = (self.allowance + since * limits::LINK_REPORT_RATE).min(burst);
        self.counted = self.counted.max(now);
        // The largest report fits a full bucket, so that each is sent some time.
        let missing = cost.min(burst) - self.allowance;
        if missing > 0.0 {
            // However little is missing, time has to pass.
            let wait = Duration::from_secs_f64(missing / limits::LINK_REPORT_RATE);
            return Step::Wait(wait + Duration::from_micros(1));
        }
        self.allowance -= cost;
        self.seq += 1;
        self.sent = Some(document);
        self.sent_at = now;
        if retain {
            self.full_at = now;
        }
        Step::Send { payload, retain }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::reported::{Applied, Model, Receiver, RefusedBundle};
    use super::*;

    /// What happens to a node.
    #[derive(Debug, Clone)]
    enum Happening {
        Passes(u64),
        Applies(u64),
        Refuses(usize),
        Measures(u64),
        Serves(String, u64),
        LosesBroker,
    }

    fn happenings() -> impl Strategy<Value = Vec<Happening>> {
        let one = prop_oneof![
            4 => (1u64..40_000).prop_map(Happening::Passes),
            2 => (1u64..5).prop_map(Happening::Applies),
            1 => (0usize..600).prop_map(Happening::Refuses),
            4 => (0u64..1000).prop_map(Happening::Measures),
            2 => ("[a-z]{1,3}", 1u64..4).prop_map(|(name, n)| Happening::Serves(name, n)),
            1 => Just(Happening::LosesBroker),
        ];
        proptest::collection::vec(one, 1..120)
    }

    fn happen(state: &mut Reported, what: &Happening) {
        match what {
            Happening::Passes(_) | Happening::LosesBroker => {}
            Happening::Applies(revision) => {
                state.applied = Some(Applied { revision: *revision, digest: "d".to_owned() });
                state.refused = None;
                state.received += 1;
            }
            Happening::Refuses(length) => {
                let why = "w".repeat(*length);
                state.refused = Some(RefusedBundle { revision: None, bundle: None, why });
                state.received += 1;
                state.refusals += 1;
            }
            Happening::Measures(seconds) => {
                for model in state.models.values_mut() {
                    model.figures.watched_s += seconds;
                    model.figures.p99_ms = Some(*seconds as f64 / 8.0);
                }
            }
            Happening::Serves(name, version) => {
                let model = Model { version: *version, ..Model::default() };
                state.models.insert(name.clone(), model);
            }
        }
    }

    fn taken(receiver: &mut Receiver, payload: &str) -> bool {
        receiver.take(&serde_json::from_str(payload).unwrap())
    }

    proptest! {
        /// Whoever listens all the time has what the node was told to send, in order, after each message;
        /// nobody is ever sent more than the bound in any stretch of time; and after a while of rest all is
        /// told.
        #[test]
        fn a_listener_has_the_nodes_state_and_is_never_flooded(story in happenings()) {
            let mut outbox = Outbox::new(1);
            let mut state = Reported { node: "a".to_owned(), ..Reported::default() };
            let (mut listener, mut retained) = (Receiver::default(), Receiver::default());
            let mut now = Duration::ZERO;
            let mut sent: Vec<(Duration, usize)> = Vec::new();
            let mut received = 0;
            let rest = Happening::Passes(3_600_000);
            for what in story.iter().chain([&rest]) {
                happen(&mut state, what);
                let end = match what {
                    Happening::Passes(ms) => now + Duration::from_millis(*ms),
                    Happening::LosesBroker => {
                        outbox.reconnected();
                        now
                    }
                    _ => now,
                };
                loop {
                    match outbox.step(now, &state) {
                        Step::Send { payload, retain } => {
                            prop_assert!(taken(&mut listener, &payload));
                            prop_assert_eq!(listener.document(), Some(&state.document()));
                            if retain {
                                prop_assert!(taken(&mut retained, &payload));
                            }
                            let told = listener.state().unwrap();
                            prop_assert!(told.received >= received, "counters do not go back");
                            received = told.received;
                            sent.push((now, payload.len()));
                        }
                        Step::Wait(wait) => {
                            prop_assert!(!wait.is_zero());
                            if now + wait > end {
                                break;
                            }
                            now += wait;
                        }
                    }
                }
                now = end;
            }
            prop_assert_eq!(listener.state(), Some(state.clone()));
            prop_assert_eq!(retained.state(), Some(state));
            for (first, (begun, _)) in sent.iter().enumerate() {
                let mut bytes = 0;
                for (at, length) in &sent[first..] {
                    bytes += length;
                    let seconds = (*at - *begun).as_secs_f64();
                    let refilled = seconds * limits::LINK_REPORT_RATE;
                    let most = limits::LINK_REPORT_BURST as f64 + refilled;
                    prop_assert!(bytes as f64 <= most + 1.0, "{bytes} bytes in {seconds} s");
                }
            }
        }
    }

    #[test]
    fn what_decides_something_goes_at_once_and_figures_at_leisure() {
        let at = Duration::from_secs;
        let mut outbox = Outbox::new(1);
        let mut state = Reported { node: "a".to_owned(), ..Reported::default() };
        state.models.insert("m".to_owned(), Model::default());
        assert!(matches!(outbox.step(at(0), &state), Step::Send { retain: true, .. }));
        assert_eq!(outbox.step(at(1), &state), Step::Wait(limits::LINK_SNAPSHOT_AGE));
        state.models.get_mut("m").unwrap().figures.p99_ms = Some(3.0);
        assert_eq!(outbox.step(at(10), &state), Step::Wait(at(20)));
        let Step::Send { payload, retain: false } = outbox.step(at(30), &state) else { panic!() };
        assert_eq!(
            payload,
            r#"{"epoch":1,"seq":2,"delta":{"models":{"m":{"figures":{"p99_ms":3.0}}}}}"#
        );
        state.applied = Some(Applied { revision: 4, digest: "d".to_owned() });
        assert!(matches!(outbox.step(at(31), &state), Step::Send { retain: true, .. }));
        // The retained one is as new as can be: nothing is sent again for its own sake.
        assert_eq!(outbox.step(at(700), &state), Step::Wait(limits::LINK_SNAPSHOT_AGE));
        state.models.get_mut("m").unwrap().figures.p99_ms = Some(4.0);
        assert!(matches!(outbox.step(at(701), &state), Step::Send { retain: true, .. }));
    }

    #[test]
    fn an_idle_node_sends_nothing() {
        let mut outbox = Outbox::new(1);
        let state = Reported { node: "a".to_owned(), ..Reported::default() };
        assert!(matches!(outbox.step(Duration::ZERO, &state), Step::Send { .. }));
        for hour in 1..1000 {
            let step = outbox.step(Duration::from_secs(3600 * hour), &state);
            assert!(matches!(step, Step::Wait(_)), "{step:?}");
        }
    }
}
