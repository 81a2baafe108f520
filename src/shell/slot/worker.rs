//! The thread of one session: takes requests from the slot's queue and runs them.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use half::{bf16, f16};

use crate::onnx::{DType, ExecError, Tensor};
use crate::schedule::Run;

use super::batch::{gather, scatter};
use super::error::{Refusal, RunFailure};
use super::job::{Answer, Job, Outcome, Request};
use super::live::Shared;
use super::queue::Work;
use super::stats::{BatchTimes, Counters, Times};
use super::variant::{Fault, Notice, Runner, Variant, Witness};

/// Runs until the variant is superseded or the slot is closed and its queue empty.
pub(super) fn work(shared: &Shared, variant: &Arc<Variant>, runner: &mut dyn Runner) {
    while let Some(Work { expired, left, run }) = shared.queue.next(variant) {
        for job in expired {
            expire(shared, variant, job);
        }
        for job in left {
            shared.refuse(job, Refusal::Closing);
        }
        let Some((run, jobs)) = run else { continue };
        let (gone, jobs): (Vec<Job>, Vec<Job>) =
            jobs.into_iter().partition(|job| job.reply.is_closed());
        gone.iter().for_each(|_| shared.counters.cancelled());
        let served = Served { shared, variant, run };
        match jobs.len() {
            0 => shared.queue.finished(variant, run),
            1 => {
                served.one_by_one(runner, jobs);
            }
            _ => served.together(runner, jobs),
        }
    }
}

fn expire(shared: &Shared, variant: &Variant, job: Job) {
    let waited = job.request.arrived.elapsed();
    shared.refuse(job, Refusal::Expired { waited, retry_after: variant.service_time() });
}

/// One run of the queue, on its way to its answers.
struct Served<'a> {
    shared: &'a Shared,
    variant: &'a Arc<Variant>,
    run: Run,
}

impl Served<'_> {
    /// Whether all were answered.
    fn one_by_one(&self, runner: &mut dyn Runner, jobs: Vec<Job>) -> bool {
        let mut all = true;
        let last = jobs.len().saturating_sub(1);
        for (at, job) in jobs.into_iter().enumerate() {
            let ran = match self.variant.lost() {
                // A session of its batch has found out before it.
                Some(reason) => Err(Lost(RunFailure::Error(reason.to_owned()), None)),
                None => outcome(self.shared, self.variant, runner, &job),
            };
            if at == last {
                // Before the reply: a client that asks again at once must not find this thread busy.
                self.shared.queue.finished(self.variant, self.run);
            }
            match ran {
                Ok(outcome) => {
                    all &= outcome.is_ok();
                    self.reply(job, outcome);
                }
                Err(lost) => {
                    all = false;
                    self.lost(job, lost);
                }
            }
        }
        all
    }

    /// The session can run nothing any more. Who was failed by it waits for what comes after it, once.
    fn lost(&self, mut job: Job, Lost(failure, times): Lost) {
        let (model, variant) = (&self.shared.model, &self.variant.info.name);
        if self.variant.lose(failure.to_string()) {
            tracing::error!(model, variant, "what runs it is lost: {failure}");
        }
        if !std::mem::replace(&mut job.again, true) {
            match self.shared.queue.put_back(job) {
                Ok(()) => return,
                Err(closed) => job = *closed,
            }
        }
        let wall = wall_ms();
        let times =
            times.unwrap_or_else(|| Times::of(&job.request, Instant::now(), Duration::ZERO));
        both(self.shared, self.variant, |counters| counters.failed(times, wall));
        self.reply(job, Err(failure.into()));
    }

    fn reply(&self, job: Job, outcome: Outcome) {
        let answered = outcome.is_ok();
        let shown = outcome.as_ref().ok().and_then(|answer| self.to_show(answer));
        // Nobody may be waiting any more; the answer is thrown away then.
        let _ = job.reply.send(outcome);
        if answered {
            offer(self.shared, &job.request);
        }
        if let Some((witness, outputs)) = shown {
            let request = &job.request;
            let show = || witness.shown(self.variant, &request.inputs, &request.wanted, outputs);
            guarded(self.shared, "witness", show);
        }
    }

    /// An answer that is to be shown to somebody else than its client.
    fn to_show(&self, answer: &Answer) -> Option<(Arc<dyn Witness>, Vec<Tensor>)> {
        let witness = self.shared.witness()?;
        let waiting = || self.shared.queue.waiting();
        witness.wants(self.variant, &waiting).then(|| (witness, answer.outputs.clone()))
    }

    /// Runs all as one. Where that fails each runs alone, so that none fails for another's sake; and where
    /// each then succeeds, it is the batch that the variant cannot do: it is given none any more.
    fn together(&self, runner: &mut dyn Runner, jobs: Vec<Job>) {
        let (shared, variant) = (self.shared, self.variant);
        match batch(shared, variant, runner, &jobs) {
            Ok(answers) => {
                shared.queue.finished(variant, self.run);
                for (job, answer) in jobs.into_iter().zip(answers) {
                    self.reply(job, Ok(answer));
                }
            }
            Err(failure) => {
                let (model, requests) = (&shared.model, jobs.len());
                tracing::warn!(model, requests, "a batch failed and is run one by one: {failure}");
                if self.one_by_one(runner, jobs) {
                    variant.stop_batching();
                    tracing::warn!(model, variant = variant.info.name, "is not batched any more");
                }
            }
        }
    }
}

/// Runs several requests as one.
fn batch(
    shared: &Shared,
    variant: &Arc<Variant>,
    runner: &mut dyn Runner,
    jobs: &[Job],
) -> Result<Vec<Answer>, RunFailure> {
    let start = Instant::now();
    let requests: Vec<&Request> = jobs.iter().map(|job| &job.request).collect();
    let rows: Vec<usize> = jobs.iter().map(|job| job.rows).collect();
    let ran = gather(&requests)
        .ok_or_else(|| RunFailure::Error("the requests do not fit together".to_owned()))
        .and_then(|inputs| {
            let gathered = Instant::now();
            let outputs = run(runner, &inputs, &requests[0].wanted)?;
            let ended = Instant::now();
            let apart = scatter(&outputs, &rows).map_err(RunFailure::Error)?;
            Ok((apart, gathered, ended))
        });
    let end = Instant::now();
    let wall = wall_ms();
    let (apart, gathered, ended) = match ran {
        Ok(ran) => ran,
        Err(failure) => {
            both(shared, variant, |counters| counters.executed());
            return Err(failure);
        }
    };
    let compute = end - start;
    variant.observe_compute(rows.iter().sum(), compute);
    let parts = BatchTimes {
        runs: 1,
        input: gathered - start,
        compute: ended - gathered,
        output: end - ended,
    };
    both(shared, variant, |counters| {
        counters.executed();
        counters.batch(jobs.len(), parts);
    });
    let answers = jobs.iter().zip(apart).map(|(job, outputs)| {
        let times = Times::of(&job.request, start, compute);
        both(shared, variant, |counters| counters.succeeded(times, wall));
        check(shared, variant, &job.request, &outputs);
        answer(variant, job, outputs, times, jobs.len())
    });
    Ok(answers.collect())
}

fn both(shared: &Shared, variant: &Variant, count: impl Fn(&Counters)) {
    count(&variant.stats.counters);
    count(&shared.counters);
}

fn answer(
    variant: &Arc<Variant>,
    job: &Job,
    outputs: Vec<Tensor>,
    times: Times,
    together: usize,
) -> Answer {
    let (queued, compute) = (times.queue, times.compute);
    let (variant, arrived) = (Arc::clone(variant), job.request.arrived);
    Answer { outputs, variant, arrived, queued, compute, together }
}

/// A run that failed since its session can run nothing any more, and its times, where it ran.
struct Lost(RunFailure, Option<Times>);

fn outcome(
    shared: &Shared,
    variant: &Arc<Variant>,
    runner: &mut dyn Runner,
    job: &Job,
) -> Result<Outcome, Lost> {
    let request = &job.request;
    let start = Instant::now();
    if job.deadline.is_some_and(|deadline| start > deadline) {
        // Others of its batch ran before it, or it was taken at the last moment.
        let waited = start.saturating_duration_since(request.arrived);
        let refusal = Refusal::Expired { waited, retry_after: variant.service_time() };
        shared.refused(&refusal);
        return Ok(Err(refusal.into()));
    }
    let outcome = run(runner, &request.inputs, &request.wanted);
    let compute = start.elapsed();
    let times = Times::of(request, start, compute);
    let wall = wall_ms();
    both(shared, variant, |counters| counters.executed());
    match outcome {
        Ok(outputs) => {
            variant.observe_compute(job.rows, compute);
            let parts = BatchTimes { runs: 1, compute, ..BatchTimes::default() };
            both(shared, variant, |counters| {
                counters.batch(1, parts);
                counters.succeeded(times, wall);
            });
            check(shared, variant, request, &outputs);
            Ok(Ok(answer(variant, job, outputs, times, 1)))
        }
        Err(failure) if runner.is_lost() => Err(Lost(failure, Some(times))),
        Err(failure) => {
            both(shared, variant, |counters| counters.failed(times, wall));
            let fault = match &failure {
                RunFailure::Error(words) => Fault::Error(words.clone()),
                RunFailure::Panic(words) => Fault::Panic(words.clone()),
            };
            notify(shared, variant, fault);
            Ok(Err(failure.into()))
        }
    }
}

fn offer(shared: &Shared, request: &Request) {
    let Some(sampler) = shared.sampler() else { return };
    guarded(shared, "sampler", || sampler.offer(&request.inputs));
}

/// A session's thread outlives whoever looks at its requests.
fn guarded(shared: &Shared, who: &str, call: impl FnOnce()) {
    if catch_unwind(AssertUnwindSafe(call)).is_err() {
        tracing::error!(model = shared.model, "the request {who} panicked");
    }
}

/// Runs the session; what it throws becomes the failure of what it runs and nothing else's.
fn run(
    runner: &mut dyn Runner,
    inputs: &[(String, Tensor)],
    wanted: &[String],
) -> Result<Vec<Tensor>, RunFailure> {
    let inputs: Vec<(&str, &Tensor)> =
        inputs.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    let wanted: Vec<&str> = wanted.iter().map(String::as_str).collect();
    let call = AssertUnwindSafe(|| runner.run(&inputs, &wanted));
    let outputs = catch_unwind(call)
        .map_err(|panic| RunFailure::Panic(words_of(panic.as_ref())))?
        .map_err(|error: ExecError| RunFailure::Error(error.to_string()))?;
    if outputs.len() == wanted.len() {
        Ok(outputs)
    } else {
        let (got, want) = (outputs.len(), wanted.len());
        Err(RunFailure::Error(format!(
            "the session gave {got} outputs where {want} were asked for"
        )))
    }
}

fn words_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".to_owned())
}

fn check(shared: &Shared, variant: &Variant, request: &Request, outputs: &[Tensor]) {
    if !variant.on_probation() {
        return;
    }
    let bad = outputs.iter().position(|tensor| !all_finite(tensor));
    // Whoever sends what is not finite gets it back: that says nothing of the variant.
    let asked_soundly = || request.inputs.iter().all(|(_, tensor)| all_finite(tensor));
    if let Some(output) =
        bad.filter(|_| asked_soundly()).and_then(|place| request.wanted.get(place))
    {
        variant.stats.counters.not_finite();
        shared.counters.not_finite();
        notify(shared, variant, Fault::NonFinite { output: output.clone() });
    }
}

/// Whether no element is infinite or NaN; integers always are finite.
fn all_finite(tensor: &Tensor) -> bool {
    let data = &tensor.data;
    match tensor.dtype {
        DType::F32 => data.as_chunks().0.iter().all(|b| f32::from_le_bytes(*b).is_finite()),
        DType::F64 => data.as_chunks().0.iter().all(|b| f64::from_le_bytes(*b).is_finite()),
        DType::F16 => data.as_chunks().0.iter().all(|b| f16::from_le_bytes(*b).is_finite()),
        DType::BF16 => data.as_chunks().0.iter().all(|b| bf16::from_le_bytes(*b).is_finite()),
        DType::U8 | DType::I8 | DType::U16 | DType::I16 | DType::I32 | DType::I64 => true,
        DType::U32 | DType::U64 | DType::Bool | DType::String => true,
    }
}

fn notify(shared: &Shared, variant: &Variant, fault: Fault) {
    let Some(notices) = &shared.notices else { return };
    let notice = Notice {
        model: shared.model.clone(),
        version: shared.version,
        variant: variant.info.name.clone(),
        generation: variant.generation,
        fault,
    };
    // Full: the agent is behind and will read the counters.
    let _ = notices.try_send(notice);
}

fn wall_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
