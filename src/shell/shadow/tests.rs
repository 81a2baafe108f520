//! A slot with a shadow: sessions are closures that wait for the test's word, never for a clock.

use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::sync::mpsc;

use super::*;
use crate::onnx::ExecError;
use crate::protocol::Signature;
use crate::shell::slot::{Request, Slot, SlotOptions, Ticket, VariantInfo};
use crate::units::Version;

type Outputs = Result<Vec<Tensor>, ExecError>;

fn info(name: &str) -> VariantInfo {
    let digest = Digest::of(name.as_bytes());
    VariantInfo { name: name.to_owned(), digest, ratio: 0.5, quality: 0.9, promised: None }
}

fn slot(name: &str, session: Box<dyn Runner>) -> Slot {
    let options = SlotOptions {
        model: "m".to_owned(),
        version: Version(1),
        signature: Signature::default(),
        queue: 8,
        timeout: None,
        notices: None,
    };
    Slot::start(options, info(name), vec![session]).unwrap()
}

fn submit(slot: &Slot, wanted: &[&str]) -> Ticket {
    let request = Request {
        inputs: vec![("x".to_owned(), Tensor::from_f32(&[1, 2], &[1.0, 2.0]))],
        wanted: wanted.iter().map(|name| (*name).to_owned()).collect(),
        arrived: Instant::now(),
        decode: Duration::ZERO,
        timeout: None,
        priority: 0,
    };
    slot.submit(request, Instant::now()).unwrap()
}

/// Answers every output with its input.
fn says() -> Box<dyn Runner> {
    Box::new(|inputs: &[(&str, &Tensor)], wanted: &[&str]| -> Outputs {
        Ok(wanted.iter().map(|_| inputs[0].1.clone()).collect())
    })
}

struct Shadowed {
    shadow: Shadow,
    slack: Arc<AtomicBool>,
    runs: Arc<AtomicUsize>,
}

fn shadowed(slot: &Slot, mut dense: Box<dyn Runner>) -> Shadowed {
    let (slack, runs) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicUsize::new(0)));
    let (is_slack, counted) = (Arc::clone(&slack), Arc::clone(&runs));
    let dense = move |inputs: &[(&str, &Tensor)], wanted: &[&str]| -> Outputs {
        counted.fetch_add(1, Ordering::SeqCst);
        dense.run(inputs, wanted)
    };
    let start = Start {
        model: "m".to_owned(),
        outputs: vec!["y".to_owned(), "z".to_owned()],
        digest: Digest::of(b"dense"),
        dense: Box::new(dense),
        draw: Draw::new(1.0, 0),
        slack: Box::new(move || is_slack.load(Ordering::SeqCst)),
    };
    let shadow = Shadow::start(start).unwrap();
    slot.set_witness(Some(shadow.witness()));
    Shadowed { shadow, slack, runs }
}

impl Shadowed {
    /// Asks, at the pace of the draw, until what was counted is as it shall be.
    fn ask_until(&self, slot: &Slot, wanted: &[&str], holds: impl Fn(Tally) -> bool) {
        let begun = Instant::now();
        while !holds(self.shadow.tally()) {
            assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", self.shadow.tally());
            submit(slot, wanted).wait().unwrap();
            thread::sleep(limits::SHADOW_GAP / 4);
        }
    }

    fn end(self, slot: &Slot) {
        slot.set_witness(None);
        self.shadow.end();
    }
}

const ALL: [&str; 2] = ["z", "y"];

#[test]
fn a_request_of_which_nobody_waits_is_run_on_dense_and_compared() {
    let slot = slot("rung", says());
    let shadowed = shadowed(&slot, says());
    shadowed.ask_until(&slot, &ALL, |tally| tally.compared > 0);
    let same = (info("rung").digest, Compared { quality: 1.0, requests: 1 });
    assert_eq!(shadowed.shadow.take(), [same]);
    assert_eq!(shadowed.shadow.take(), []);
    // One that asked for a part is no measure of the whole.
    shadowed.ask_until(&slot, &["y"], |tally| tally.unsuitable > 0);
    shadowed.end(&slot);
}

#[test]
fn dense_is_not_compared_with_itself() {
    let slot = slot("dense", says());
    let shadowed = shadowed(&slot, says());
    for _ in 0..3 {
        submit(&slot, &ALL).wait().unwrap();
        thread::sleep(limits::SHADOW_GAP);
    }
    assert_eq!(shadowed.shadow.tally(), Tally::default());
    shadowed.end(&slot);
}

#[test]
fn nothing_is_run_while_somebody_waits() {
    let (tell, started) = mpsc::channel();
    let (go, wait) = mpsc::channel::<()>();
    let mut inner = says();
    let gated = move |inputs: &[(&str, &Tensor)], wanted: &[&str]| -> Outputs {
        tell.send(()).unwrap();
        wait.recv().unwrap();
        inner.run(inputs, wanted)
    };
    let slot = slot("rung", Box::new(gated));
    let shadowed = shadowed(&slot, says());
    let first = submit(&slot, &ALL);
    started.recv().unwrap();
    let others = [submit(&slot, &ALL), submit(&slot, &ALL)];
    go.send(()).unwrap();
    first.wait().unwrap();
    // It was drawn, and those behind it go first.
    assert_eq!(shadowed.shadow.tally(), Tally { busy: 1, ..Tally::default() });
    started.recv().unwrap();
    thread::sleep(limits::SHADOW_GAP);
    go.send(()).unwrap();
    let [second, third] = others;
    second.wait().unwrap();
    assert_eq!(shadowed.shadow.tally(), Tally { busy: 2, ..Tally::default() });
    assert_eq!(shadowed.runs.load(Ordering::SeqCst), 0);
    go.send(()).unwrap();
    third.wait().unwrap();
    shadowed.end(&slot);
}

#[test]
fn nothing_is_run_while_there_is_no_time_for_it() {
    let slot = slot("rung", says());
    let shadowed = shadowed(&slot, says());
    shadowed.slack.store(false, Ordering::SeqCst);
    shadowed.ask_until(&slot, &ALL, |tally| tally.busy >= 2);
    assert_eq!(shadowed.runs.load(Ordering::SeqCst), 0);
    shadowed.slack.store(true, Ordering::SeqCst);
    shadowed.ask_until(&slot, &ALL, |tally| tally.compared > 0);
    shadowed.end(&slot);
}

#[test]
fn what_comes_while_dense_runs_is_dropped_and_nobody_waits_for_it() {
    let slot = slot("rung", says());
    let (go, wait) = mpsc::channel::<()>();
    let mut inner = says();
    let slow = move |inputs: &[(&str, &Tensor)], wanted: &[&str]| -> Outputs {
        let _ = wait.recv();
        inner.run(inputs, wanted)
    };
    let shadowed = shadowed(&slot, Box::new(slow));
    // One runs, one has a place behind it.
    shadowed.ask_until(&slot, &ALL, |tally| tally.busy > 0);
    assert_eq!(shadowed.runs.load(Ordering::SeqCst), 1);
    drop(go);
    shadowed.end(&slot);
}

#[test]
fn dense_that_fails_or_panics_costs_a_comparison_and_no_request() {
    let slot = slot("rung", says());
    let mut calls = 0;
    let dense = move |_: &[(&str, &Tensor)], _: &[&str]| -> Outputs {
        calls += 1;
        assert!(calls > 1, "a panic");
        Err(ExecError { doing: "running".to_owned(), reason: "no memory".to_owned() })
    };
    let shadowed = shadowed(&slot, Box::new(dense));
    shadowed.ask_until(&slot, &ALL, |tally| tally.failed >= 2);
    assert_eq!(shadowed.shadow.take(), []);
    shadowed.end(&slot);
}
