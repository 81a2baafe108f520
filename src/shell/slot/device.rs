//! A session on an accelerator, which may be gone from one moment to the next.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::limits;
use crate::onnx::{ExecError, Tensor};

use super::apart::{Apart, Patience};
use super::shapes::Shapes;
use super::variant::Runner;

/// A session that tells a request that fails from a device that does: after a run that failed it runs what it
/// ran on before it served. Where that fails, too, no other request has a chance. A run that does not return
/// is given up, and the device with it.
pub struct OnDevice {
    session: Apart,
    /// What it is known to run on. Without it, so many failures one after the other count as the same.
    sound: Option<Arc<Vec<(String, Tensor)>>>,
    shapes: Arc<Shapes>,
    patience: Patience,
    /// Shapes that were run before: nothing of them is left to be compiled.
    seen: BTreeSet<Vec<Vec<usize>>>,
    failures: u32,
    lost: bool,
}

impl OnDevice {
    pub fn new(
        session: Box<dyn Runner>,
        sound: Option<Arc<Vec<(String, Tensor)>>>,
        shapes: Arc<Shapes>,
        patience: Patience,
    ) -> Self {
        let (session, seen) = (Apart::new(session), BTreeSet::new());
        Self { session, sound, shapes, patience, seen, failures: 0, lost: false }
    }

    fn run_once(
        &mut self,
        inputs: &[(&str, &Tensor)],
        wanted: &[&str],
    ) -> Result<Vec<Tensor>, ExecError> {
        let shapes: Vec<Vec<usize>> =
            inputs.iter().map(|(_, tensor)| tensor.shape.clone()).collect();
        let known = self.seen.contains(&shapes);
        let patience = if known { self.patience.later } else { self.patience.first };
        let ran = self.session.run(inputs, wanted, patience);
        if !known && ran.is_ok() {
            self.seen.insert(shapes);
        }
        ran
    }

    fn runs_nothing(&mut self) -> bool {
        if self.session.hangs() {
            return true;
        }
        match self.sound.clone() {
            Some(sound) => {
                let inputs: Vec<(&str, &Tensor)> =
                    sound.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
                self.run_once(&inputs, &[]).is_err()
            }
            None => self.failures >= limits::DEVICE_FAULTS,
        }
    }
}

impl Runner for OnDevice {
    fn run(
        &mut self,
        inputs: &[(&str, &Tensor)],
        wanted: &[&str],
    ) -> Result<Vec<Tensor>, ExecError> {
        let ran = self.run_once(inputs, wanted);
        match &ran {
            Ok(_) => self.failures = 0,
            Err(_) => {
                self.failures = self.failures.saturating_add(1);
                self.lost = self.runs_nothing();
            }
        }
        ran
    }

    fn is_lost(&self) -> bool {
        self.lost
    }

    fn shapes(&self) -> Option<Arc<Shapes>> {
        Some(Arc::clone(&self.shapes))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;
    use std::time::{Duration, Instant};

    use super::super::tests::{info, options, request, submit};
    use super::super::{InferError, Refusal, Request, Slot};
    use super::*;

    fn failed() -> ExecError {
        ExecError { doing: "running".to_owned(), reason: "507899".to_owned() }
    }

    fn session(sound: bool, run: impl FnMut(usize) -> bool + Send + 'static) -> OnDevice {
        let mut run = run;
        let session = move |inputs: &[(&str, &Tensor)], _: &[&str]| match run(inputs[0].1.shape[0])
        {
            true => Ok(Vec::new()),
            false => Err(failed()),
        };
        let inputs = vec![("x".to_owned(), Tensor::from_i64(&[1], &[0]))];
        let shapes = Arc::new(Shapes::new("npu".to_owned(), 8, &[]));
        let sound = sound.then(|| Arc::new(inputs));
        OnDevice::new(Box::new(session), sound, shapes, Patience::default())
    }

    fn ask(session: &mut OnDevice, rows: usize) -> bool {
        let tensor = Tensor::from_i64(&[rows], &vec![0; rows]);
        session.run(&[("x", &tensor)], &[]).is_ok()
    }

    #[test]
    fn a_request_that_fails_alone_is_at_fault_and_a_device_that_runs_nothing_is_lost() {
        let mut picky = session(true, |rows| rows < 5);
        assert!(ask(&mut picky, 2) && !ask(&mut picky, 7) && !ask(&mut picky, 9));
        assert!(!picky.is_lost());
        let mut left = 3;
        let mut dying = session(true, move |_| {
            left -= 1;
            left > 0
        });
        assert!(ask(&mut dying, 2) && ask(&mut dying, 2) && !dying.is_lost());
        assert!(!ask(&mut dying, 2) && dying.is_lost());
    }

    #[test]
    fn without_anything_that_it_ran_on_failures_in_a_row_count() {
        let mut dead = session(false, |rows| rows == 1);
        for _ in 1..limits::DEVICE_FAULTS {
            assert!(!ask(&mut dead, 2) && !dead.is_lost());
        }
        assert!(ask(&mut dead, 1), "one that goes well starts the count anew");
        for _ in 1..limits::DEVICE_FAULTS {
            assert!(!ask(&mut dead, 2) && !dead.is_lost());
        }
        assert!(!ask(&mut dead, 2) && dead.is_lost());
    }

    /// Sessions that die, by word.
    fn dying(dead: &Arc<AtomicBool>) -> Box<dyn Runner> {
        let dead = Arc::clone(dead);
        let session =
            move |inputs: &[(&str, &Tensor)], _: &[&str]| match dead.load(Ordering::SeqCst) {
                true => Err(failed()),
                false => Ok(vec![inputs[0].1.clone()]),
            };
        let sound = vec![("x".to_owned(), Tensor::from_f32(&[1], &[0.0]))];
        let shapes = Arc::new(Shapes::new("npu".to_owned(), 2, std::slice::from_ref(&sound)));
        let patience = Patience::default();
        Box::new(OnDevice::new(Box::new(session), Some(Arc::new(sound)), shapes, patience))
    }

    fn slot(dead: &Arc<AtomicBool>) -> Slot {
        Slot::start(options(8), info("npu"), vec![dying(dead)]).unwrap()
    }

    /// Waits until the slot's sessions are found to be lost.
    fn until_lost(slot: &Slot) {
        let begun = Instant::now();
        while slot.current().lost().is_none() {
            assert!(begun.elapsed() < Duration::from_secs(60), "it is not found to be lost");
            thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn who_was_failed_by_a_device_and_who_waits_are_answered_by_what_comes_after_it() {
        let dead = Arc::new(AtomicBool::new(false));
        let slot = slot(&dead);
        assert!(submit(&slot, 1.0).unwrap().wait().is_ok());
        dead.store(true, Ordering::SeqCst);
        let failed = submit(&slot, 2.0).unwrap();
        until_lost(&slot);
        assert!(slot.current().lost().unwrap().contains("507899"));
        let waiting = submit(&slot, 3.0).unwrap();
        let cpu = |inputs: &[(&str, &Tensor)], _: &[&str]| Ok(vec![inputs[0].1.clone()]);
        let drain = slot.publish(info("cpu"), vec![Box::new(cpu)], true).unwrap();
        for (ticket, value) in [(failed, 2.0), (waiting, 3.0)] {
            let answer = ticket.wait().unwrap();
            assert_eq!(answer.outputs[0].to_f32().unwrap(), [value]);
            assert_eq!(answer.variant.info().name, "cpu");
        }
        assert_eq!((slot.totals().success, slot.totals().failure), (3, 0));
        let begun = Instant::now();
        while !drain.is_done() {
            assert!(begun.elapsed() < Duration::from_secs(60), "its thread does not end");
            thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn who_waits_for_a_run_that_hangs_is_answered_by_what_comes_after_the_device() {
        let (go, wait) = std::sync::mpsc::channel::<()>();
        let hangs = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&hangs);
        let session = move |inputs: &[(&str, &Tensor)], _: &[&str]| {
            if told.load(Ordering::SeqCst) {
                // Returns when the test ends.
                let _ = wait.recv();
            }
            Ok(vec![inputs[0].1.clone()])
        };
        let shapes = Arc::new(Shapes::new("npu".to_owned(), 2, &[]));
        let least = Duration::from_millis(50);
        let patience = Patience { first: Duration::from_secs(60), later: least };
        let device = OnDevice::new(Box::new(session), None, shapes, patience);
        let slot = Slot::start(options(8), info("npu"), vec![Box::new(device)]).unwrap();
        assert!(submit(&slot, 1.0).unwrap().wait().is_ok());
        hangs.store(true, Ordering::SeqCst);
        let (running, waiting) = (submit(&slot, 2.0).unwrap(), submit(&slot, 3.0).unwrap());
        until_lost(&slot);
        assert!(slot.current().lost().unwrap().contains("did not return within 50ms"));
        let cpu = |inputs: &[(&str, &Tensor)], _: &[&str]| Ok(vec![inputs[0].1.clone()]);
        let drain = slot.publish(info("cpu"), vec![Box::new(cpu)], true).unwrap();
        for (ticket, value) in [(running, 2.0), (waiting, 3.0)] {
            assert_eq!(ticket.wait().unwrap().outputs[0].to_f32().unwrap(), [value]);
        }
        // The thread that waited for it is free, whatever becomes of the run.
        let begun = Instant::now();
        while !drain.is_done() {
            assert!(begun.elapsed() < Duration::from_secs(60), "its thread does not end");
            thread::sleep(Duration::from_millis(1));
        }
        drop(go);
    }

    #[test]
    fn a_request_that_fails_on_two_devices_is_told_so_and_a_slot_that_closes_keeps_nobody() {
        let (first, second) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicBool::new(true)));
        let slot = slot(&first);
        let ticket = submit(&slot, 1.0).unwrap();
        until_lost(&slot);
        slot.publish(info("npu1"), vec![dying(&second)], true).unwrap();
        let failure = ticket.wait().unwrap_err().to_string();
        assert!(failure.contains("507899"), "{failure}");
        until_lost(&slot);
        let waiting = submit(&slot, 2.0).unwrap();
        slot.close();
        assert!(matches!(waiting.wait(), Err(InferError::Refused(Refusal::Closing))));
    }

    #[test]
    fn shapes_beyond_the_bound_are_refused_before_they_wait() {
        let slot = slot(&Arc::default());
        let ask = |rows: usize| {
            let tensor = Tensor::from_f32(&[rows], &vec![0.0; rows]);
            let request = Request { inputs: vec![("x".to_owned(), tensor)], ..request(0.0) };
            slot.submit(request, Instant::now()).map(|ticket| ticket.wait().is_ok())
        };
        assert_eq!((ask(1), ask(2)), (Ok(true), Ok(true)));
        assert!(matches!(ask(3), Err(Refusal::Shape { .. })));
        assert_eq!((slot.refusals().get("shape"), ask(2)), (Some(&1), Ok(true)));
    }
}
