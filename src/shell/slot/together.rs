//! Requests that run as one: collected, run, taken apart again, and what happens to them on the way.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use crate::onnx::{DType, ExecError, Tensor};
use crate::protocol::{Dim, Example, Signature, TensorSpec};
use crate::schedule::Batching;
use crate::shell::engine::{EngineOptions, LiveSession, testing};

use super::tests::{Outputs, finished, info, options, request, values};
use super::*;

const HOURS: Duration = Duration::from_secs(36_000);

/// Every value doubled; notes the rows of each run. What `refuses` says fails the whole run.
fn doubling(
    batching: Batching,
    runs: &Arc<Mutex<Vec<usize>>>,
    refuses: impl Fn(&Tensor) -> Option<&'static str> + Send + 'static,
) -> Box<dyn Runner> {
    let runs = Arc::clone(runs);
    let run = move |inputs: &[(&str, &Tensor)], _: &[&str]| -> Outputs {
        let tensor = inputs[0].1;
        runs.lock().unwrap().push(tensor.shape[0]);
        match refuses(tensor) {
            Some("panic") => panic!("no such thing"),
            Some(reason) => {
                let (doing, reason) = ("running".to_owned(), reason.to_owned());
                return Err(ExecError { doing, reason });
            }
            None => {}
        }
        let doubled: Vec<f32> = tensor.to_f32().unwrap().iter().map(|value| 2.0 * value).collect();
        Ok(vec![Tensor::from_f32(&tensor.shape, &doubled)])
    };
    Box::new(Batched { session: Box::new(run), batching })
}

/// The same, but its first run waits for the sender's word.
fn gated(batching: Batching, runs: &Arc<Mutex<Vec<usize>>>) -> (Box<dyn Runner>, mpsc::Sender<()>) {
    let (go, wait) = mpsc::channel();
    let first = Mutex::new(Some(wait));
    let session = doubling(batching, runs, move |_| {
        if let Some(wait) = first.lock().unwrap().take() {
            wait.recv().unwrap();
        }
        None
    });
    (session, go)
}

fn rows(all: &[f32], width: usize) -> Request {
    let inputs = vec![("x".to_owned(), Tensor::from_f32(&[all.len() / width, width], all))];
    Request { inputs, ..request(0.0) }
}

fn start(queue: usize, session: Box<dyn Runner>) -> Slot {
    Slot::start(options(queue), info("dense"), vec![session]).unwrap()
}

fn submit(slot: &Slot, request: Request) -> Ticket {
    slot.submit(request, Instant::now()).unwrap()
}

/// Submits one that occupies the session.
fn occupy(slot: &Slot, runs: &Mutex<Vec<usize>>) -> Ticket {
    let ticket = submit(slot, rows(&[0.0], 1));
    while runs.lock().unwrap().is_empty() {
        std::thread::yield_now();
    }
    ticket
}

#[test]
fn what_waits_is_run_as_one_and_each_gets_its_own_rows() {
    let runs = Arc::default();
    let batching = Batching { rows: 4, delay: Duration::ZERO };
    let (session, go) = gated(batching, &runs);
    let slot = start(8, session);
    let first = occupy(&slot, &runs);
    let asked: [&[f32]; 5] = [&[1.0], &[2.0, 3.0], &[4.0], &[5.0], &[6.0, 7.0, 8.0]];
    let tickets = asked.map(|all| submit(&slot, rows(all, 1)));
    go.send(()).unwrap();
    assert_eq!(first.wait().unwrap().together, 1);
    let answers = tickets.map(|ticket| ticket.wait().unwrap());
    for (all, answer) in asked.iter().zip(&answers) {
        assert_eq!(answer.outputs[0].shape, [all.len(), 1]);
        assert_eq!(values(answer), all.iter().map(|value| 2.0 * value).collect::<Vec<f32>>());
        slot.ready(answer, Instant::now(), Duration::ZERO);
    }
    assert_eq!(answers.map(|answer| answer.together), [3, 3, 3, 2, 2]);
    assert_eq!(*runs.lock().unwrap(), [1, 4, 4]);
    let totals = slot.totals();
    assert_eq!((totals.success, totals.executions, totals.failure), (6, 3, 0));
    let batches = slot.batches();
    let counts: BTreeMap<usize, u64> = batches.iter().map(|(size, b)| (*size, b.runs)).collect();
    assert_eq!(counts, BTreeMap::from([(1, 1), (2, 1), (3, 1)]));
    let window = slot.current().stats().window(Instant::now() - Duration::from_secs(600));
    assert_eq!((window.len(), window.compute.len()), (5, 0), "none of them ran alone");
}

#[test]
fn a_free_session_waits_for_a_batch_to_fill() {
    let runs = Arc::default();
    let slot = start(8, doubling(Batching { rows: 3, delay: HOURS }, &runs, |_| None));
    let tickets = [1.0, 2.0, 3.0].map(|value| submit(&slot, rows(&[value], 1)));
    for (ticket, value) in tickets.into_iter().zip([2.0, 4.0, 6.0]) {
        assert_eq!(values(&ticket.wait().unwrap()), [value]);
    }
    assert_eq!(*runs.lock().unwrap(), [3]);
    // As large as may be already, and larger: nobody is waited for.
    assert_eq!(submit(&slot, rows(&[0.0; 3], 1)).wait().unwrap().outputs[0].shape, [3, 1]);
    assert_eq!(submit(&slot, rows(&[0.0; 5], 1)).wait().unwrap().outputs[0].shape, [5, 1]);
    assert_eq!(*runs.lock().unwrap(), [3, 3, 5]);
}

#[test]
fn nobody_is_kept_waiting_beyond_its_deadline_for_others_to_come() {
    let runs = Arc::default();
    let slot = start(8, doubling(Batching { rows: 3, delay: HOURS }, &runs, |_| None));
    let timeout = Some(Duration::from_secs(4));
    let answer = submit(&slot, Request { timeout, ..rows(&[1.0], 1) }).wait().unwrap();
    assert_eq!(values(&answer), [2.0]);
    assert!(answer.queued < Duration::from_secs(4));
}

#[test]
fn requests_of_another_kind_end_the_wait_and_run_apart() {
    let runs = Arc::default();
    let slot = start(8, doubling(Batching { rows: 2, delay: HOURS }, &runs, |_| None));
    let narrow = submit(&slot, rows(&[1.0], 1));
    let wide = submit(&slot, rows(&[2.0, 3.0], 2));
    assert_eq!(values(&narrow.wait().unwrap()), [2.0]);
    let other = submit(&slot, rows(&[4.0, 5.0], 2));
    assert_eq!(values(&wide.wait().unwrap()), [4.0, 6.0]);
    assert_eq!(values(&other.wait().unwrap()), [8.0, 10.0]);
    assert_eq!(*runs.lock().unwrap(), [1, 2]);
}

#[test]
fn a_bad_request_of_a_batch_fails_alone() {
    for (reason, words) in [("no memory", "running: no memory"), ("panic", "the runtime panicked")]
    {
        let runs: Arc<Mutex<Vec<usize>>> = Arc::default();
        let batching = Batching { rows: 3, delay: HOURS };
        let session = doubling(batching, &runs, move |tensor| {
            tensor.to_f32().unwrap().contains(&13.0).then_some(reason)
        });
        let (notices, mut told) = tokio::sync::mpsc::channel(8);
        let options = SlotOptions { notices: Some(notices), ..options(8) };
        let slot = Slot::start(options, info("dense"), vec![session]).unwrap();
        let [one, bad, two] = [1.0, 13.0, 2.0].map(|value| submit(&slot, rows(&[value], 1)));
        assert_eq!(values(&one.wait().unwrap()), [2.0]);
        let failure = bad.wait().unwrap_err().to_string();
        assert!(failure.starts_with(words), "{failure}");
        assert_eq!(values(&two.wait().unwrap()), [4.0]);
        let totals = slot.totals();
        assert_eq!((totals.success, totals.failure, totals.executions), (2, 1, 4));
        assert!(told.try_recv().is_ok() && told.try_recv().is_err(), "one fault, of one request");
        // The variant goes on with batches.
        let tickets = [1.0, 2.0, 3.0].map(|value| submit(&slot, rows(&[value], 1)));
        tickets.into_iter().for_each(|ticket| assert!(ticket.wait().is_ok()));
        assert_eq!(*runs.lock().unwrap(), [3, 1, 1, 1, 3]);
    }
}

#[test]
fn a_variant_whose_batches_alone_fail_is_given_none_any_more() {
    let runs: Arc<Mutex<Vec<usize>>> = Arc::default();
    let batching = Batching { rows: 2, delay: HOURS };
    let session = doubling(batching, &runs, |tensor| (tensor.shape[0] > 1).then_some("too much"));
    let slot = start(8, session);
    let tickets = [1.0, 2.0].map(|value| submit(&slot, rows(&[value], 1)));
    tickets.into_iter().for_each(|ticket| assert!(ticket.wait().is_ok()));
    // Nobody waits for it to fill.
    assert_eq!(values(&submit(&slot, rows(&[3.0], 1)).wait().unwrap()), [6.0]);
    assert_eq!(*runs.lock().unwrap(), [2, 1, 1, 1]);
    assert_eq!(slot.totals().failure, 0);
}

#[test]
fn outputs_without_their_rows_are_not_taken_apart() {
    let session = |inputs: &[(&str, &Tensor)], _: &[&str]| -> Outputs {
        let sum: f32 = inputs[0].1.to_f32().unwrap().iter().sum();
        Ok(vec![Tensor::from_f32(&[1], &[sum])])
    };
    let batching = Batching { rows: 2, delay: HOURS };
    let slot = start(8, Box::new(Batched { session: Box::new(session), batching }));
    let tickets = [1.0, 2.0].map(|value| submit(&slot, rows(&[value], 1)));
    let answers = tickets.map(|ticket| values(&ticket.wait().unwrap()));
    assert_eq!(answers, [[1.0], [2.0]]);
}

#[test]
fn a_client_that_goes_away_leaves_its_place_in_a_waiting_batch() {
    let runs = Arc::default();
    let slot = start(8, doubling(Batching { rows: 3, delay: HOURS }, &runs, |_| None));
    let [one, gone] = [1.0, 2.0].map(|value| submit(&slot, rows(&[value], 1)));
    drop(gone);
    assert_eq!(slot.pending(), (1, 0));
    let more = [3.0, 4.0].map(|value| submit(&slot, rows(&[value], 1)));
    let answers = [one].into_iter().chain(more).map(|ticket| values(&ticket.wait().unwrap()));
    assert_eq!(answers.collect::<Vec<_>>(), [[2.0], [6.0], [8.0]]);
    assert_eq!(*runs.lock().unwrap(), [3]);
    assert_eq!(slot.totals().cancelled, 1);
}

#[test]
fn a_swap_or_a_close_in_the_midst_of_a_waiting_batch_loses_nothing() {
    let runs = Arc::default();
    let batching = Batching { rows: 3, delay: HOURS };
    let slot = start(8, doubling(batching, &runs, |_| None));
    let [one, two] = [1.0, 2.0].map(|value| submit(&slot, rows(&[value], 1)));
    let swapped = |session| slot.publish(info("r0.5"), vec![session], false).unwrap();
    finished(swapped(doubling(batching, &runs, |_| None)));
    assert_eq!(slot.pending(), (2, 0), "they wait on, for the new variant's batch");
    let three = submit(&slot, rows(&[3.0], 1));
    for (ticket, value) in [one, two, three].into_iter().zip([2.0, 4.0, 6.0]) {
        let answer = ticket.wait().unwrap();
        assert_eq!((values(&answer), answer.variant.generation()), (vec![value], 2));
    }
    assert_eq!(*runs.lock().unwrap(), [3]);
    // A variant that takes no batches runs what waits at once.
    let [one, two] = [1.0, 2.0].map(|value| submit(&slot, rows(&[value], 1)));
    finished(swapped(doubling(Batching::OFF, &runs, |_| None)));
    assert!(one.wait().is_ok() && two.wait().is_ok());
    assert_eq!(*runs.lock().unwrap(), [3, 1, 1]);
    finished(swapped(doubling(batching, &runs, |_| None)));
    let last = submit(&slot, rows(&[7.0], 1));
    finished(slot.close());
    assert_eq!(values(&last.wait().unwrap()), [14.0], "a close waits for no others");
}

#[test]
fn the_more_urgent_are_in_the_first_batch() {
    let runs = Arc::default();
    let (session, go) = gated(Batching { rows: 2, delay: Duration::ZERO }, &runs);
    let slot = start(8, session);
    let first = occupy(&slot, &runs);
    let ask = |value, priority| submit(&slot, Request { priority, ..rows(&[value], 1) });
    let [least, urgent, usual] = [ask(1.0, 9), ask(2.0, 1), ask(3.0, 0)];
    go.send(()).unwrap();
    first.wait().unwrap();
    let together = [urgent, usual, least].map(|ticket| ticket.wait().unwrap().together);
    assert_eq!(together, [2, 2, 1]);
}

#[test]
fn on_probation_each_request_of_a_batch_is_looked_at_for_itself() {
    let poison = |inputs: &[(&str, &Tensor)], _: &[&str]| -> Outputs {
        let tensor = inputs[0].1;
        let of = |value: f32| if value == 7.0 { f32::NAN } else { value };
        let outputs: Vec<f32> = tensor.to_f32().unwrap().into_iter().map(of).collect();
        Ok(vec![Tensor::from_f32(&tensor.shape, &outputs)])
    };
    let batching = Batching { rows: 3, delay: HOURS };
    let slot = start(8, Box::new(Batched { session: Box::new(poison), batching }));
    slot.current().set_probation(true);
    let tickets = [1.0, 7.0, f32::NAN].map(|value| submit(&slot, rows(&[value], 1)));
    tickets.into_iter().for_each(|ticket| assert!(ticket.wait().is_ok()));
    assert_eq!(slot.totals().non_finite, 1, "not for what a client sent itself");
}

fn spec(name: &str, dims: &[&str]) -> TensorSpec {
    let dim = |dim: &&str| match dim.parse() {
        Ok(size) => Dim::Fixed(size),
        Err(_) => Dim::Free((*dim).to_owned()),
    };
    let shape = Some(dims.iter().map(dim).collect());
    TensorSpec { name: name.to_owned(), dtype: DType::F32, shape }
}

/// All rows of an input → all of the output.
type Model = Box<dyn FnMut(&[f32]) -> Vec<f32> + Send>;

#[test]
fn only_a_model_whose_rows_have_nothing_to_do_with_one_another_is_batched() {
    let signature =
        Signature { inputs: vec![spec("x", &["n", "4"])], outputs: vec![spec("y", &["n", "4"])] };
    let example = vec![("x".to_owned(), Tensor::from_f32(&[1, 4], &[0.0, 1.0, 2.0, 3.0]))];
    let says = |mut of: Model| {
        let mut session = move |inputs: &[(&str, &Tensor)], wanted: &[&str]| -> Outputs {
            assert_eq!(wanted, ["y"]);
            let tensor = inputs[0].1;
            Ok(vec![Tensor::from_f32(&tensor.shape, &of(&tensor.to_f32().unwrap()))])
        };
        check_rows(&mut session, &signature, Some(&example))
    };
    assert_eq!(says(Box::new(|all| all.iter().map(|value| value.exp()).collect())), Ok(()));
    let noise =
        |all: &[f32]| all.iter().map(|value| value * (1.0 + 1e-7 * all.len() as f32)).collect();
    assert_eq!(says(Box::new(noise)), Ok(()), "sums in another order");
    let mean = |all: &[f32]| {
        let mean = all.iter().sum::<f32>() / all.len() as f32;
        all.iter().map(|value| value - mean).collect()
    };
    let refused = says(Box::new(mean));
    assert!(
        matches!(&refused, Err(NotBatched::Dependent { output, .. }) if output == "y"),
        "{refused:?}"
    );
    let mut calls = 0.0;
    let counts = move |all: &[f32]| {
        calls += 1.0;
        all.iter().map(|value| value + calls).collect()
    };
    let refused = says(Box::new(counts));
    assert!(matches!(refused, Err(NotBatched::Dependent { .. })), "a state between runs");
    let swaps = |all: &[f32]| all.chunks(4).rev().flatten().copied().collect();
    assert!(matches!(says(Box::new(swaps)), Err(NotBatched::Dependent { .. })));

    let mut any = |_: &[(&str, &Tensor)], _: &[&str]| -> Outputs { panic!("it is not run") };
    let mut refused = |inputs: &[TensorSpec], outputs: &[TensorSpec]| {
        let signature = Signature { inputs: inputs.to_vec(), outputs: outputs.to_vec() };
        check_rows(&mut any, &signature, None).unwrap_err().to_string()
    };
    let good = [spec("x", &["n", "4"])];
    assert_eq!(refused(&good, &[spec("y", &["1"])]), "its output \"y\" has no free first axis");
    assert_eq!(refused(&good, &[spec("y", &[])]), "its output \"y\" has no free first axis");
    assert_eq!(
        refused(&good, &[spec("y", &["m"])]),
        "the first axis of its output \"y\" is \"m\" where that of \"x\" is \"n\""
    );
    let nameless = [spec("x", &["", "4"])];
    assert!(refused(&nameless, &nameless).starts_with("the first axis of its input \"x\" is \"\""));
    let texts = TensorSpec { dtype: DType::String, ..spec("t", &["n"]) };
    assert_eq!(refused(&[texts], &[]), "its input \"t\" holds texts");
    assert_eq!(refused(&[], &good), "it has no inputs");
    assert_eq!(refused(&good, &good), "nothing is known that it runs on");
}

#[test]
fn rows_that_cannot_be_run_together_or_told_apart_are_not_batched() {
    let signature =
        Signature { inputs: vec![spec("x", &["n", "0"])], outputs: vec![spec("y", &["n"])] };
    let mut any = |inputs: &[(&str, &Tensor)], _: &[&str]| -> Outputs {
        match inputs[0].1.shape[0] {
            1 => Ok(vec![Tensor::from_f32(&[1], &[0.0])]),
            _ => Err(ExecError { doing: "running".to_owned(), reason: "too large".to_owned() }),
        }
    };
    let empty = vec![("x".to_owned(), Tensor::from_f32(&[1, 0], &[]))];
    let refused = check_rows(&mut any, &signature, Some(&empty));
    assert_eq!(refused, Err(NotBatched::TooPlain));
    let one = vec![("x".to_owned(), Tensor::from_f32(&[1, 1], &[0.0]))];
    let refused = check_rows(&mut any, &signature, Some(&one)).unwrap_err().to_string();
    assert!(refused.ends_with("random rows: running: too large"), "{refused}");
}

/// A real network: its answers in a batch are those that it gives one by one.
#[test]
fn a_trained_network_answers_in_a_batch_as_it_does_one_by_one() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/models/digits_mobile.onnx");
    let open = || {
        let options = EngineOptions::default();
        LiveSession::open_file(&testing::runtime(), &path, &options).unwrap()
    };
    let mut single = open();
    let signature = Signature::from(&single);
    let example = Example { first: 1, free: 1, integer: 1 };
    let example = example.inputs(&signature, &BTreeMap::new()).unwrap();
    check_rows(&mut single, &signature, Some(&example)).unwrap();
    let batching = Batching { rows: 8, delay: HOURS };
    let session = Box::new(Batched { session: Box::new(open()), batching });
    let options = SlotOptions { signature, ..options(8) };
    let slot = Slot::start(options, info("dense"), vec![session]).unwrap();
    let sample = |n: usize| {
        let rows = 1 + n % 2;
        let value = |at: usize| ((at * 37 + n * 101) % 255) as f32 / 128.0 - 0.4;
        let values: Vec<f32> = (0..rows * 784).map(value).collect();
        Tensor::from_f32(&[rows, 1, 28, 28], &values)
    };
    // One, two, one, two, one: seven rows; one more fills the batch.
    let samples: Vec<Tensor> = [0, 1, 2, 3, 4, 6].map(sample).into();
    let tickets: Vec<Ticket> = samples
        .iter()
        .map(|tensor| {
            let inputs = vec![("input".to_owned(), tensor.clone())];
            let wanted = vec!["logits".to_owned()];
            submit(&slot, Request { inputs, wanted, ..request(0.0) })
        })
        .collect();
    for (tensor, ticket) in samples.iter().zip(tickets) {
        let answer = ticket.wait().unwrap();
        assert_eq!(answer.together, samples.len());
        let alone = single.run(&[("input", tensor)], &["logits"]).unwrap();
        assert_eq!(answer.outputs[0].shape, alone[0].shape);
        let pairs = values(&answer).into_iter().zip(alone[0].to_f32().unwrap());
        for (one, other) in pairs {
            assert!((one - other).abs() < 1e-3, "{one} {other}");
        }
    }
    assert_eq!(slot.totals().executions, 1);
}
