//! A slot under concurrent swaps, full queues, vanishing clients and failing sessions. Sessions are
//! closures; where a test needs a moment, a session waits for the test's word, never for a clock.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use crate::onnx::{ExecError, Tensor};
use crate::protocol::Signature;
use crate::units::{Digest, Percentile, Version};

use super::*;

pub(super) type Outputs = Result<Vec<Tensor>, ExecError>;

pub(super) fn options(queue: usize) -> SlotOptions {
    SlotOptions {
        model: "digits".to_owned(),
        version: Version(1),
        signature: Signature::default(),
        queue,
        timeout: None,
        notices: None,
    }
}

pub(super) fn info(name: &str) -> VariantInfo {
    let digest = Digest::of(name.as_bytes());
    VariantInfo { name: name.to_owned(), digest, ratio: 1.0, quality: 1.0, promised: None }
}

pub(super) fn request(value: f32) -> Request {
    Request {
        inputs: vec![("x".to_owned(), Tensor::from_f32(&[1], &[value]))],
        wanted: vec!["y".to_owned()],
        arrived: Instant::now(),
        decode: Duration::ZERO,
        timeout: None,
        priority: 0,
    }
}

pub(super) fn submit(slot: &Slot, value: f32) -> Result<Ticket, Refusal> {
    slot.submit(request(value), Instant::now())
}

/// Answers with its input and, as the second element, `tag`.
fn echo(tag: f32) -> Box<dyn Runner> {
    Box::new(move |inputs: &[(&str, &Tensor)], _: &[&str]| -> Outputs {
        let value = inputs[0].1.to_f32().unwrap()[0];
        Ok(vec![Tensor::from_f32(&[2], &[value, tag])])
    })
}

/// A session that tells when it starts a request, and runs it when it is told to.
struct Gate {
    started: mpsc::Receiver<()>,
    go: mpsc::Sender<()>,
}

fn gated(tag: f32) -> (Box<dyn Runner>, Gate) {
    let (tell, started) = mpsc::channel();
    let (go, wait) = mpsc::channel();
    let mut inner = echo(tag);
    let session = move |inputs: &[(&str, &Tensor)], wanted: &[&str]| -> Outputs {
        tell.send(()).unwrap();
        wait.recv().unwrap();
        inner.run(inputs, wanted)
    };
    (Box::new(session), Gate { started, go })
}

pub(super) fn values(answer: &Answer) -> Vec<f32> {
    answer.outputs[0].to_f32().unwrap()
}

pub(super) fn finished(drain: Drain) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let done = async { tokio::time::timeout(Duration::from_secs(60), drain.done()).await };
    runtime.block_on(done).expect("the drain ends");
}

/// An echo that counts in `live` from now until it is freed.
fn counted(live: &Arc<AtomicUsize>, tag: f32) -> Box<dyn Runner> {
    struct Counted(Arc<AtomicUsize>);
    impl Drop for Counted {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Ordering::SeqCst);
        }
    }
    live.fetch_add(1, Ordering::SeqCst);
    let held = Counted(Arc::clone(live));
    let mut inner = echo(tag);
    let session = move |inputs: &[(&str, &Tensor)], wanted: &[&str]| -> Outputs {
        let _held = &held;
        inner.run(inputs, wanted)
    };
    Box::new(session)
}

#[test]
fn no_request_is_lost_failed_or_answered_twice_under_hundreds_of_swaps() {
    const CLIENTS: usize = 4;
    const REQUESTS: usize = 2500;
    const INSTANCES: usize = 2;
    let live = Arc::new(AtomicUsize::new(0));
    // Each generation answers with its own number; `live` counts sessions that are not freed yet.
    let sessions = |generation: f32| -> Vec<Box<dyn Runner>> {
        (0..INSTANCES).map(|_| counted(&live, generation)).collect()
    };
    let slot = Slot::start(options(CLIENTS * 8), info("v1"), sessions(1.0)).unwrap();
    let stop = AtomicBool::new(false);
    let by_variant: Mutex<BTreeMap<String, usize>> = Mutex::default();
    let client = |client: usize| {
        let mut waiting = Vec::new();
        let take = |value: f32, ticket: Ticket| {
            let answer = ticket.wait().expect("no request fails");
            let [echoed, tag] = values(&answer)[..] else { panic!("half an answer") };
            assert_eq!(echoed, value, "an answer belongs to its request");
            assert_eq!(tag, answer.variant.generation() as f32, "an answer is of one variant");
            slot.ready(&answer, Instant::now(), Duration::ZERO);
            let name = answer.variant.info().name.clone();
            *by_variant.lock().unwrap().entry(name).or_default() += 1;
        };
        for n in 0..REQUESTS {
            let value = (client * REQUESTS + n) as f32;
            waiting.push((value, submit(&slot, value).expect("the queue holds all clients")));
            if waiting.len() == 8 {
                waiting.drain(..).for_each(|(value, ticket)| take(value, ticket));
            }
        }
        waiting.drain(..).for_each(|(value, ticket)| take(value, ticket));
    };
    let swaps = thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS).map(|n| scope.spawn(move || client(n))).collect();
        let swapper = scope.spawn(|| {
            let mut swaps = 0;
            while swaps < 300 || !stop.load(Ordering::Relaxed) {
                let generation = slot.current().generation() + 1;
                let name = if generation.is_multiple_of(2) { "r0.75" } else { "v1" };
                slot.publish(info(name), sessions(generation as f32), false).unwrap();
                swaps += 1;
                thread::yield_now();
            }
            swaps
        });
        clients.into_iter().for_each(|client| client.join().unwrap());
        stop.store(true, Ordering::Relaxed);
        swapper.join().unwrap()
    });
    assert!(swaps >= 300);
    let total = CLIENTS * REQUESTS;
    assert_eq!(by_variant.lock().unwrap().values().sum::<usize>(), total);
    let totals = slot.totals();
    assert_eq!((totals.success, totals.failure, totals.cancelled), (total as u64, 0, 0));
    let observed = slot.variants();
    for (name, count) in by_variant.lock().unwrap().iter() {
        let of_variant = &observed[name];
        assert_eq!(of_variant.counters.totals().success, *count as u64);
        assert_eq!(of_variant.histogram().buckets.iter().sum::<u64>(), *count as u64);
    }
    finished(slot.close());
    // The last generation has drained; those before it may still be ending their threads.
    while live.load(Ordering::SeqCst) != 0 {
        thread::yield_now();
    }
}

#[test]
fn what_is_queued_at_a_swap_goes_to_the_new_variant_and_the_drain_waits_for_the_last_started() {
    let (old, gate) = gated(1.0);
    let slot = Slot::start(options(8), info("dense"), vec![old]).unwrap();
    let started = submit(&slot, 10.0).unwrap();
    gate.started.recv().unwrap();
    let queued = submit(&slot, 11.0).unwrap();
    let drain = slot.publish(info("r0.5"), vec![echo(2.0)], false).unwrap();
    assert_eq!(values(&queued.wait().unwrap()), [11.0, 2.0], "the new one takes the queue at once");
    assert_eq!(values(&submit(&slot, 12.0).unwrap().wait().unwrap()), [12.0, 2.0]);
    assert!(!drain.is_done(), "the old one still runs what it has started");
    assert_eq!(drain.variant().info().name, "dense");
    gate.go.send(()).unwrap();
    let answer = started.wait().unwrap();
    assert_eq!(values(&answer), [10.0, 1.0]);
    assert_eq!(answer.variant.info().name, "dense");
    finished(drain);
}

#[test]
fn a_full_queue_refuses_at_once_and_a_client_that_goes_away_frees_its_place() {
    let (session, gate) = gated(1.0);
    let slot = Slot::start(options(2), info("dense"), vec![session]).unwrap();
    let running = submit(&slot, 0.0).unwrap();
    gate.started.recv().unwrap();
    let first = submit(&slot, 1.0).unwrap();
    let second = submit(&slot, 2.0).unwrap();
    assert_eq!(slot.pending(), (2, 1));
    let refusal = submit(&slot, 3.0).err().unwrap();
    assert!(matches!(refusal, Refusal::QueueFull { capacity: 2, .. }), "{refusal}");
    drop(first);
    assert_eq!(slot.pending(), (1, 1));
    let third = submit(&slot, 4.0).unwrap();
    for _ in 0..3 {
        gate.go.send(()).unwrap();
    }
    assert_eq!(values(&running.wait().unwrap())[0], 0.0);
    assert_eq!(values(&second.wait().unwrap())[0], 2.0);
    assert_eq!(values(&third.wait().unwrap())[0], 4.0);
    let totals = slot.totals();
    assert_eq!((totals.success, totals.cancelled), (3, 1), "the cancelled one was never run");
    assert_eq!(slot.refusals(), BTreeMap::from([("queue_full", 1)]));
}

#[test]
fn a_deadline_that_cannot_be_met_is_refused_and_an_idle_instance_always_tries() {
    let (session, gate) = gated(1.0);
    let promised = Some(Duration::from_secs(10));
    let info = VariantInfo { promised, ..info("dense") };
    let slot = Slot::start(options(8), info, vec![session]).unwrap();
    let hurried = || Request { timeout: Some(Duration::from_secs(5)), ..request(1.0) };
    let first = slot.submit(hurried(), Instant::now()).expect("an idle instance tries");
    gate.started.recv().unwrap();
    let refusal = slot.submit(hurried(), Instant::now()).err().unwrap();
    assert!(matches!(refusal, Refusal::DeadlineUnreachable { .. }), "{refusal}");
    let patient = Request { timeout: Some(Duration::from_secs(60)), ..request(2.0) };
    let second = slot.submit(patient, Instant::now()).expect("a minute is enough for two");
    gate.go.send(()).unwrap();
    gate.go.send(()).unwrap();
    assert!(first.wait().is_ok() && second.wait().is_ok());
    assert_eq!(slot.refusals(), BTreeMap::from([("deadline_unreachable", 1)]));
    assert_eq!(slot.pending(), (0, 0), "whoever has its answer finds an idle instance");
}

/// Every run is expected to take ten seconds.
#[test]
fn the_higher_priority_and_the_earlier_deadline_go_first_and_lower_ones_make_way() {
    let (mut session, gate) = gated(1.0);
    let ran: Arc<Mutex<Vec<f32>>> = Arc::default();
    let seen = Arc::clone(&ran);
    let noting = move |inputs: &[(&str, &Tensor)], wanted: &[&str]| -> Outputs {
        let outputs = session.run(inputs, wanted);
        seen.lock().unwrap().push(inputs[0].1.to_f32().unwrap()[0]);
        outputs
    };
    let info = VariantInfo { promised: Some(Duration::from_secs(10)), ..info("dense") };
    let slot = Slot::start(options(4), info, vec![Box::new(noting)]).unwrap();
    let ask = |value: f32, priority: u64, seconds: u64| {
        let timeout = Some(Duration::from_secs(seconds));
        slot.submit(Request { timeout, priority, ..request(value) }, Instant::now())
    };
    let running = ask(0.0, 0, 600).unwrap();
    gate.started.recv().unwrap();
    let patient = ask(1.0, 0, 300).unwrap();
    let hurried = ask(2.0, 0, 100).unwrap();
    let least = ask(3.0, 3, 600).unwrap();
    let doomed = ask(4.0, 3, 45).unwrap();
    // The last of all makes its place free for it, and the other one would be late behind it.
    let urgent = ask(5.0, 1, 60).unwrap();
    for out in [least, doomed] {
        let refusal = out.wait().unwrap_err();
        assert!(matches!(refusal, InferError::Refused(Refusal::Displaced { .. })), "{refusal}");
    }
    let refusal = ask(6.0, 0, 25).err().unwrap();
    assert!(matches!(refusal, Refusal::DeadlineUnreachable { .. }), "behind the urgent: {refusal}");
    (0..4).for_each(|_| gate.go.send(()).unwrap());
    for ticket in [running, patient, hurried, urgent] {
        assert!(ticket.wait().is_ok());
    }
    assert_eq!(*ran.lock().unwrap(), [0.0, 5.0, 2.0, 1.0]);
    let refused = BTreeMap::from([("deadline_unreachable", 1), ("displaced", 2)]);
    assert_eq!(slot.refusals(), refused);
}

#[test]
fn a_request_whose_deadline_passed_in_the_queue_is_not_run_even_where_every_session_hangs() {
    let (session, gate) = gated(1.0);
    let slot = Slot::start(options(8), info("dense"), vec![session]).unwrap();
    let running = submit(&slot, 0.0).unwrap();
    gate.started.recv().unwrap();
    // Nothing is known of the service time yet, so both are admitted.
    let short = Request { timeout: Some(Duration::from_millis(5)), ..request(1.0) };
    let hanging = slot.submit(short.clone(), Instant::now()).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let refusal = runtime.block_on(hanging.outcome()).unwrap_err();
    assert!(matches!(refusal, InferError::Refused(Refusal::Expired { .. })), "{refusal}");
    assert_eq!(slot.pending(), (0, 1));
    let arrived = Instant::now();
    let popped = slot.submit(Request { arrived, ..short }, arrived).unwrap();
    while arrived.elapsed() < Duration::from_millis(6) {
        thread::yield_now();
    }
    gate.go.send(()).unwrap();
    assert!(running.wait().is_ok());
    let refusal = popped.wait().unwrap_err();
    assert!(matches!(refusal, InferError::Refused(Refusal::Expired { .. })), "{refusal}");
    assert_eq!(slot.refusals(), BTreeMap::from([("deadline_passed", 2)]));
    assert_eq!(slot.totals().executions, 1);
}

#[test]
fn an_error_or_a_panic_of_a_session_is_that_requests_failure_only_and_is_told() {
    let session = |inputs: &[(&str, &Tensor)], _: &[&str]| -> Outputs {
        match inputs[0].1.to_f32().unwrap()[0] {
            1.0 => Err(ExecError { doing: "running".to_owned(), reason: "no memory".to_owned() }),
            2.0 => panic!("index out of range"),
            3.0 => Ok(Vec::new()),
            value => Ok(vec![Tensor::from_f32(&[1], &[value])]),
        }
    };
    let (notices, mut told) = tokio::sync::mpsc::channel(8);
    let options = SlotOptions { notices: Some(notices), ..options(8) };
    let slot = Slot::start(options, info("dense"), vec![Box::new(session)]).unwrap();
    let run = |value: f32| submit(&slot, value).unwrap().wait();
    let failure = |value: f32| run(value).unwrap_err().to_string();
    assert_eq!(failure(1.0), "running: no memory");
    assert_eq!(failure(2.0), "the runtime panicked: index out of range");
    assert_eq!(failure(3.0), "the session gave 0 outputs where 1 were asked for");
    assert_eq!(values(&run(4.0).unwrap()), [4.0], "the session goes on");
    let faults: Vec<Fault> = std::iter::from_fn(|| told.try_recv().ok()).map(|n| n.fault).collect();
    assert_eq!(
        faults[..2],
        [
            Fault::Error("running: no memory".to_owned()),
            Fault::Panic("index out of range".to_owned()),
        ]
    );
    let of_variant = slot.current().stats().counters.totals();
    assert_eq!((of_variant.success, of_variant.failure, of_variant.executions), (1, 3, 4));
}

#[test]
fn values_that_are_not_finite_are_told_on_probation_and_only_then() {
    let (notices, mut told) = tokio::sync::mpsc::channel(8);
    let options = SlotOptions { notices: Some(notices), ..options(8) };
    let slot = Slot::start(options, info("r0.5"), vec![echo(f32::NAN)]).unwrap();
    submit(&slot, 1.0).unwrap().wait().unwrap();
    assert!(told.try_recv().is_err());
    slot.current().set_probation(true);
    submit(&slot, 1.0).unwrap().wait().unwrap();
    let notice = told.try_recv().unwrap();
    assert_eq!((notice.variant.as_str(), notice.generation), ("r0.5", 1));
    assert_eq!(notice.fault, Fault::NonFinite { output: "y".to_owned() });
    assert_eq!(slot.totals().non_finite, 1);
    // What a client sends comes back to it, and costs the variant nothing.
    submit(&slot, f32::NAN).unwrap().wait().unwrap();
    assert!(told.try_recv().is_err());
    assert_eq!(slot.totals().non_finite, 1);
}

/// What waits at a swap goes to the new variant at once: its first answers are searched already.
#[test]
fn a_variant_published_on_probation_is_so_from_its_first_answer() {
    let (notices, mut told) = tokio::sync::mpsc::channel(8);
    let options = SlotOptions { notices: Some(notices), ..options(8) };
    let (session, gate) = gated(1.0);
    let slot = Slot::start(options, info("dense"), vec![session]).unwrap();
    let running = submit(&slot, 1.0).unwrap();
    gate.started.recv().unwrap();
    let queued = submit(&slot, 2.0).unwrap();
    let drain = slot.publish(info("r0.5"), vec![echo(f32::NAN)], true).unwrap();
    queued.wait().unwrap();
    let notice = told.try_recv().unwrap();
    assert_eq!((notice.variant.as_str(), notice.generation), ("r0.5", 2));
    gate.go.send(()).unwrap();
    running.wait().unwrap();
    finished(drain);
}

#[test]
fn a_closed_slot_answers_what_it_admitted_and_refuses_the_rest() {
    let (session, gate) = gated(1.0);
    let slot = Slot::start(options(8), info("dense"), vec![session]).unwrap();
    let running = submit(&slot, 1.0).unwrap();
    gate.started.recv().unwrap();
    let queued = submit(&slot, 2.0).unwrap();
    let drain = slot.close();
    assert_eq!(submit(&slot, 3.0).err(), Some(Refusal::Closing));
    let refused = slot.publish(info("r0.5"), vec![echo(2.0)], false);
    assert!(matches!(refused, Err(PublishError::Closed { .. })));
    assert!(!drain.is_done());
    gate.go.send(()).unwrap();
    gate.go.send(()).unwrap();
    assert!(running.wait().is_ok() && queued.wait().is_ok());
    finished(drain);
}

#[test]
fn an_aborted_slot_refuses_what_waits_and_ends_what_runs() {
    let (session, gate) = gated(1.0);
    let slot = Slot::start(options(8), info("dense"), vec![session]).unwrap();
    let running = submit(&slot, 1.0).unwrap();
    gate.started.recv().unwrap();
    let queued = submit(&slot, 2.0).unwrap();
    let drain = slot.abort();
    assert_eq!(queued.wait().unwrap_err(), InferError::Refused(Refusal::Closing));
    gate.go.send(()).unwrap();
    assert!(running.wait().is_ok());
    finished(drain);
}

#[test]
fn a_variant_without_a_session_is_not_published() {
    assert!(matches!(
        Slot::start(options(1), info("dense"), Vec::new()).err(),
        Some(PublishError::NoSession { .. })
    ));
    let slot = Slot::start(options(1), info("dense"), vec![echo(1.0)]).unwrap();
    assert!(slot.publish(info("r0.5"), Vec::new(), false).is_err());
    assert_eq!(slot.current().info().name, "dense");
    assert_eq!(values(&submit(&slot, 1.0).unwrap().wait().unwrap()), [1.0, 1.0]);
}

#[test]
fn instances_run_side_by_side() {
    let meet = Arc::new(Barrier::new(3));
    let session = |_| {
        let meet = Arc::clone(&meet);
        let run = move |_: &[(&str, &Tensor)], _: &[&str]| -> Outputs {
            meet.wait();
            Ok(vec![Tensor::from_f32(&[1], &[0.0])])
        };
        Box::new(run) as Box<dyn Runner>
    };
    let slot = Slot::start(options(8), info("dense"), (0..3).map(session).collect()).unwrap();
    let tickets: Vec<Ticket> = (0..3).map(|n| submit(&slot, n as f32).unwrap()).collect();
    tickets.into_iter().for_each(|ticket| assert!(ticket.wait().is_ok()));
}

#[test]
fn the_sampler_is_offered_the_inputs_and_its_panic_harms_nobody() {
    struct Keep(Mutex<Vec<f32>>, mpsc::Sender<()>);
    impl Sampler for Keep {
        fn offer(&self, inputs: &[(String, Tensor)]) {
            let value = inputs[0].1.to_f32().unwrap()[0];
            self.1.send(()).unwrap();
            assert!(value < 2.0, "a panic of the sampler");
            self.0.lock().unwrap().push(value);
        }
    }
    let (tell, offered) = mpsc::channel();
    let keep = Arc::new(Keep(Mutex::default(), tell));
    let slot = Slot::start(options(8), info("dense"), vec![echo(1.0)]).unwrap();
    slot.set_sampler(Some(Arc::clone(&keep) as Arc<dyn Sampler>));
    for value in [1.0, 2.0, 1.5] {
        submit(&slot, value).unwrap().wait().unwrap();
        offered.recv().unwrap();
    }
    slot.set_sampler(None);
    submit(&slot, 0.5).unwrap().wait().unwrap();
    finished(slot.close());
    assert_eq!(*keep.0.lock().unwrap(), [1.0, 1.5]);
}

#[test]
fn windows_hold_the_recent_requests_and_their_percentiles() {
    let stats = stats::Stats::default();
    let start = Instant::now();
    let ms = Duration::from_millis;
    for n in 1..=100 {
        stats.answered(start + ms(n), ms(n), ms(n) / 2, 1);
    }
    let all = stats.window(start);
    assert_eq!(all.latency_at(Percentile::P99), Some(ms(99)));
    assert_eq!(all.compute_at(Percentile::P50), Some(ms(25)));
    let late = stats.window(start + ms(91));
    assert_eq!((late.len(), late.latency_at(Percentile::Max)), (10, Some(ms(100))));
    assert!(stats.window(start + ms(101)).is_empty());
    assert_eq!(stats.histogram().sum, ms(5050));
    for n in 0..crate::limits::OBSERVATIONS {
        stats.answered(start + ms(200), ms(n as u64), ms(1), 2);
    }
    assert_eq!(stats.window(start).len(), crate::limits::OBSERVATIONS, "the ring is bounded");
}

#[test]
fn names_are_found_by_version_or_by_the_highest_that_is_ready() {
    let (repository, _commands) = Repository::new();
    let slot = |version: u64| {
        let options = SlotOptions { version: Version(version), ..options(1) };
        Arc::new(Slot::start(options, info("dense"), vec![echo(1.0)]).unwrap())
    };
    let broken = |reason: &str| {
        let state = ModelState::Unavailable;
        Entry::Unready { state, reason: reason.to_owned() }
    };
    let found = |version: Option<u64>| {
        let slot = repository.find("digits", version.map(Version));
        slot.map(|slot| slot.version().0).map_err(|error| error.to_string())
    };
    assert!(found(None).unwrap_err().contains("'digits' is not found"));
    repository.set("digits", Version(1), Entry::Ready(slot(1)));
    repository.set("digits", Version(2), Entry::Ready(slot(2)));
    repository.set("digits", Version(3), broken("truncated"));
    assert_eq!(found(None), Ok(2));
    assert_eq!(found(Some(1)), Ok(1));
    assert!(found(Some(3)).unwrap_err().contains("not ready: truncated"));
    assert!(found(Some(4)).unwrap_err().contains("version 4 is not found"));
    assert_eq!(repository.ready_versions("digits"), [Version(1), Version(2)]);
    assert_eq!(repository.slots().len(), 2);
    let index = repository.index();
    assert_eq!(index.len(), 3);
    assert_eq!((index[2].state.word(), index[2].reason.as_str()), ("UNAVAILABLE", "truncated"));
    for version in 1..=3 {
        assert!(repository.remove("digits", Version(version)).is_some());
    }
    assert!(repository.remove("digits", Version(3)).is_none());
    assert!(repository.index().is_empty());
}

#[tokio::test]
async fn commands_reach_the_agent_and_never_wait_without_bound() {
    let (repository, mut commands) = Repository::new();
    let agent = tokio::spawn(async move {
        for _ in 0..2 {
            match commands.recv().await.unwrap() {
                Command::Load { answer, .. } => answer.send(Ok(())).unwrap(),
                Command::Unload { model, answer } => {
                    answer.send(Err(CommandError::UnknownModel { model })).unwrap();
                }
            }
        }
        commands
    });
    assert_eq!(repository.load("digits").await, Ok(()));
    assert!(matches!(repository.unload("x").await, Err(CommandError::UnknownModel { .. })));
    let commands = agent.await.unwrap();
    let mut waiting: Vec<_> =
        (0..crate::limits::REPOSITORY_COMMANDS).map(|_| Box::pin(repository.load("x"))).collect();
    for asked in &mut waiting {
        assert!(
            std::future::poll_fn(|cx| std::task::Poll::Ready(asked.as_mut().poll(cx).is_pending()))
                .await
        );
    }
    assert!(matches!(repository.load("x").await, Err(CommandError::Busy(_))));
    drop(commands);
    assert!(matches!(repository.load("x").await, Err(CommandError::Busy(_))));
    assert!(matches!(waiting.remove(0).await, Err(CommandError::Busy(_))));
}
