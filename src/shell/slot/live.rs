//! The slot itself: admission, publication, drain.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, ArcSwapOption};
use tokio::sync::{mpsc, oneshot, watch};

use crate::protocol::Signature;
use crate::schedule::Level;
use crate::shell::cpus;
use crate::units::Version;

use super::batch;
use super::error::{PublishError, Refusal};
use super::job::{Answer, Job, Request, Ticket};
use super::queue::Queue;
use super::stats::{BatchTimes, Counters, Stats, Totals};
use super::variant::{Notice, Runner, Sampler, Variant, VariantInfo, Witness};
use super::worker;

/// What a slot is made with.
pub struct SlotOptions {
    pub model: String,
    pub version: Version,
    /// Inputs and outputs; the same for every variant.
    pub signature: Signature,
    /// Requests that may wait; at least 1.
    pub queue: usize,
    /// How long a request may take where it does not say so itself.
    pub timeout: Option<Duration>,
    /// Where faults are told at once.
    pub notices: Option<mpsc::Sender<Notice>>,
}

/// What the slot and its threads share.
pub(super) struct Shared {
    pub model: String,
    pub version: Version,
    pub queue: Queue,
    /// Sums over all variants.
    pub counters: Counters,
    pub notices: Option<mpsc::Sender<Notice>>,
    refusals: Mutex<BTreeMap<&'static str, u64>>,
    sampler: ArcSwapOption<Arc<dyn Sampler>>,
    witness: ArcSwapOption<Arc<dyn Witness>>,
}

impl Shared {
    pub fn refused(&self, refusal: &Refusal) {
        let mut refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        *refusals.entry(refusal.label()).or_default() += 1;
    }

    /// Answers a request that is not run.
    pub fn refuse(&self, job: Job, refusal: Refusal) {
        self.refused(&refusal);
        // Nobody may be waiting any more.
        let _ = job.reply.send(Err(refusal.into()));
    }

    pub fn sampler(&self) -> Option<Arc<dyn Sampler>> {
        self.sampler.load().as_ref().map(|sampler| Arc::clone(sampler.as_ref()))
    }

    pub fn witness(&self) -> Option<Arc<dyn Witness>> {
        self.witness.load().as_ref().map(|witness| Arc::clone(witness.as_ref()))
    }
}

/// One served model version.
pub struct Slot {
    signature: Signature,
    timeout: Option<Duration>,
    shared: Arc<Shared>,
    current: ArcSwap<Variant>,
    next_id: AtomicU64,
    publication: Mutex<Publication>,
}

/// What only one publication at a time may touch.
struct Publication {
    generation: u64,
    /// By variant name; at most one ladder's worth.
    stats: BTreeMap<String, Arc<Stats>>,
    /// Of the variant in service.
    drain: Drain,
}

/// Tells when every thread of a variant has ended and its sessions are freed.
#[derive(Debug, Clone)]
pub struct Drain {
    variant: Arc<Variant>,
    alive: watch::Receiver<usize>,
}

impl Drain {
    /// The variant that goes out of service.
    pub fn variant(&self) -> &Arc<Variant> {
        &self.variant
    }

    /// Whether all of its sessions are freed.
    pub fn is_done(&self) -> bool {
        *self.alive.borrow() == 0
    }

    /// Waits until all of its sessions are freed. A session that hangs hangs this: bound it with
    /// `tokio::time::timeout`.
    pub async fn done(mut self) {
        // An error says that the last thread has gone, which is what is waited for.
        let _ = self.alive.wait_for(|alive| *alive == 0).await;
    }
}

/// Counts a thread as gone when it is dropped, a panic included.
struct Alive(watch::Sender<usize>);

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.send_modify(|alive| *alive -= 1);
    }
}

impl Slot {
    /// A slot that serves its first variant, with one session a thread.
    ///
    /// # Errors
    /// Where there is no session, or no thread for it.
    pub fn start(
        options: SlotOptions,
        first: VariantInfo,
        sessions: Vec<Box<dyn Runner>>,
    ) -> Result<Self, PublishError> {
        let shared = Arc::new(Shared {
            model: options.model,
            version: options.version,
            queue: Queue::new(options.queue),
            counters: Counters::default(),
            notices: options.notices,
            refusals: Mutex::default(),
            sampler: ArcSwapOption::empty(),
            witness: ArcSwapOption::empty(),
        });
        let stats = Arc::new(Stats::default());
        let by_name = BTreeMap::from([(first.name.clone(), Arc::clone(&stats))]);
        let variant = Arc::new(Variant::new(first, 1, &sessions, stats, false));
        let drain = spawn(&shared, &variant, sessions)?;
        shared.queue.publish(1, || ());
        Ok(Self {
            signature: options.signature,
            timeout: options.timeout,
            shared,
            current: ArcSwap::new(variant),
            next_id: AtomicU64::new(0),
            publication: Mutex::new(Publication { generation: 1, stats: by_name, drain }),
        })
    }

    /// The model's name.
    pub fn model(&self) -> &str {
        &self.shared.model
    }

    /// The model's version.
    pub fn version(&self) -> Version {
        self.shared.version
    }

    /// What the model takes and gives.
    pub fn signature(&self) -> &Signature {
        &self.signature
    }

    /// The variant in service.
    pub fn current(&self) -> Arc<Variant> {
        self.current.load_full()
    }

    /// How long the oldest run of the variant in service has been under way at `now`.
    pub fn longest_run(&self, now: Instant) -> Option<Duration> {
        self.shared.queue.longest(now)
    }

    /// Queues a request. Never blocks: a request that finds no place, or whose deadline cannot be
    /// met, is refused at once, and so are those of lower priority that have to make way for it (see
    /// [`schedule`](crate::schedule)). `now` is at or after the request's arrival.
    ///
    /// # Errors
    /// The refusal.
    pub fn submit(&self, request: Request, now: Instant) -> Result<Ticket, Refusal> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let (reply, answer) = oneshot::channel();
        let timeout = request.timeout.or(self.timeout);
        // A time-out beyond the clock's range is none.
        let deadline = timeout.and_then(|timeout| request.arrived.checked_add(timeout));
        let times = (request.arrived, deadline);
        let level = Level::of(request.priority);
        let current = self.current.load_full();
        if let Some(shapes) = current.shapes() {
            let admitted = shapes.admit(&request.inputs);
            admitted.inspect_err(|refusal| self.shared.refused(refusal))?;
        }
        let (rows, kind) = batch::kind(&request, current.batching());
        let job = Job { id, level, kind, rows, request, deadline, again: false, reply };
        let admitted = self.shared.queue.push(job, &self.current, now);
        let making_way = admitted.inspect_err(|refusal| self.shared.refused(refusal))?;
        for job in making_way {
            let waited = now.saturating_duration_since(job.request.arrived);
            self.shared.refuse(job, Refusal::Displaced { waited, retry_after: waited });
        }
        Ok(Ticket::new(id, times, answer, Arc::clone(&self.shared)))
    }

    /// Puts a variant into service, with one loaded and warmed session a thread. From the return on
    /// (and for everything that waits in the queue) it takes all requests; the variant before it
    /// finishes what it has started and is freed, of which the drain tells. One that is published on
    /// probation is so from its first request on.
    ///
    /// # Errors
    /// Where there is no session, no thread, or the slot is closed; the variant before it then
    /// stays.
    pub fn publish(
        &self,
        info: VariantInfo,
        sessions: Vec<Box<dyn Runner>>,
        on_probation: bool,
    ) -> Result<Drain, PublishError> {
        let mut publication = self.publication.lock().unwrap_or_else(PoisonError::into_inner);
        let generation = publication.generation + 1;
        let name = info.name.clone();
        let stats = Arc::clone(publication.stats.entry(name.clone()).or_default());
        let variant = Arc::new(Variant::new(info, generation, &sessions, stats, on_probation));
        let drain = spawn(&self.shared, &variant, sessions)?;
        let switch = || self.current.store(Arc::clone(&variant));
        if !self.shared.queue.publish(generation, switch) {
            abandon(&self.shared, &variant);
            return Err(PublishError::Closed { variant: name });
        }
        publication.generation = generation;
        Ok(std::mem::replace(&mut publication.drain, drain))
    }

    /// Admits nothing more, answers everything that was admitted, then frees the sessions.
    pub fn close(&self) -> Drain {
        self.shared.queue.close(false);
        self.publication.lock().unwrap_or_else(PoisonError::into_inner).drain.clone()
    }

    /// As [`Slot::close`], but what still waits is refused: for a shutdown that has run out of
    /// time.
    pub fn abort(&self) -> Drain {
        for job in self.shared.queue.close(true) {
            self.shared.refuse(job, Refusal::Closing);
        }
        self.publication.lock().unwrap_or_else(PoisonError::into_inner).drain.clone()
    }

    /// Requests that wait, without waiting for those who change that.
    pub fn waiting(&self) -> usize {
        self.shared.queue.waiting()
    }

    /// Requests that wait, and those that the variant in service runs now.
    pub fn pending(&self) -> (usize, usize) {
        self.shared.queue.pending()
    }

    /// Takes in that an answer's bytes stand ready, after `encode` of writing them: what its client sees of
    /// the latency ends here.
    pub fn ready(&self, answer: &Answer, at: Instant, encode: Duration) {
        let latency = at.saturating_duration_since(answer.arrived);
        let stats = &answer.variant.stats;
        stats.answered(at, latency, answer.compute, answer.together);
        stats.queued(answer.queued);
        stats.counters.encoded(encode);
        self.shared.counters.encoded(encode);
    }

    /// Counts over all variants since the start.
    pub fn totals(&self) -> Totals {
        self.shared.counters.totals()
    }

    /// Runs over all variants since the start, by the number of requests that they answered.
    pub fn batches(&self) -> BTreeMap<usize, BatchTimes> {
        self.shared.counters.batches()
    }

    /// Refusals by [`Refusal::label`] since the start.
    pub fn refusals(&self) -> BTreeMap<&'static str, u64> {
        self.shared.refusals.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What was observed of every variant that has been in service, by name.
    pub fn variants(&self) -> BTreeMap<String, Arc<Stats>> {
        self.publication.lock().unwrap_or_else(PoisonError::into_inner).stats.clone()
    }

    /// Sets or removes who is offered the inputs of answered requests.
    pub fn set_sampler(&self, sampler: Option<Arc<dyn Sampler>>) {
        self.shared.sampler.store(sampler.map(Arc::new));
    }

    /// Sets or removes who is shown answered requests.
    pub fn set_witness(&self, witness: Option<Arc<dyn Witness>>) {
        self.shared.witness.store(witness.map(Arc::new));
    }
}

impl Drop for Slot {
    /// Without a slot nobody can close the queue: its threads would wait for ever.
    fn drop(&mut self) {
        self.shared.queue.close(false);
    }
}

/// One thread a session. They take no request before the variant's generation is published.
fn spawn(
    shared: &Arc<Shared>,
    variant: &Arc<Variant>,
    sessions: Vec<Box<dyn Runner>>,
) -> Result<Drain, PublishError> {
    if sessions.is_empty() {
        return Err(PublishError::NoSession { variant: variant.info.name.clone() });
    }
    let (sender, alive) = watch::channel(0);
    for mut session in sessions {
        sender.send_modify(|alive| *alive += 1);
        let guard = Alive(sender.clone());
        let (own, shared_with) = (Arc::clone(variant), Arc::clone(shared));
        let body = move || {
            // Declared first, dropped last: the session is freed before the thread counts as gone.
            let _guard = guard;
            if let Some(cpu) = session.cpu()
                && let Err(error) = cpus::bind(&[cpu])
            {
                let model = &shared_with.model;
                tracing::warn!(model, cpu, "a thread of its own is not bound: {error}");
            }
            worker::work(&shared_with, &own, session.as_mut());
            drop(session);
        };
        let name: String = shared.model.chars().filter(|c| *c != '\0').collect();
        if let Err(source) = thread::Builder::new().name(name).spawn(body) {
            abandon(shared, variant);
            return Err(PublishError::Thread { variant: variant.info.name.clone(), source });
        }
    }
    Ok(Drain { variant: Arc::clone(variant), alive })
}

fn abandon(shared: &Shared, variant: &Variant) {
    variant.abandoned.store(true, Ordering::Relaxed);
    shared.queue.wake_all();
}
