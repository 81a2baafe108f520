//! The thread of one session: takes requests from the slot's queue and runs them.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use half::{bf16, f16};

use crate::onnx::{DType, ExecError, Tensor};
use crate::schedule::Taken;

use super::error::{Refusal, RunFailure};
use super::job::{Answer, Job, Outcome, Request};
use super::live::Shared;
use super::stats::Times;
use super::variant::{Fault, Notice, Runner, Variant};

/// Runs until the variant is superseded or the slot is closed and its queue empty.
pub(super) fn work(shared: &Shared, variant: &Arc<Variant>, runner: &mut dyn Runner) {
    while let Some(Taken { expired, job }) = shared.queue.next(variant) {
        for job in expired {
            let waited = job.request.arrived.elapsed();
            shared.refuse(job, Refusal::Expired { waited, retry_after: variant.service_time() });
        }
        let Some((run, Job { request, reply, .. })) = job else { continue };
        if reply.is_closed() {
            shared.counters.cancelled();
            shared.queue.finished(variant, run);
            continue;
        }
        let outcome = outcome(shared, variant, runner, &request);
        let answered = outcome.is_ok();
        // Before the reply: a client that asks again at once must not find this thread busy.
        shared.queue.finished(variant, run);
        // Nobody may be waiting any more; the answer is thrown away then.
        let _ = reply.send(outcome);
        if answered {
            offer(shared, &request);
        }
    }
}

fn outcome(
    shared: &Shared,
    variant: &Arc<Variant>,
    runner: &mut dyn Runner,
    request: &Request,
) -> Outcome {
    let start = Instant::now();
    let waited = start.saturating_duration_since(request.arrived);
    let outcome = run(runner, request);
    let compute = start.elapsed();
    let (input, queued) = (request.decode, waited.saturating_sub(request.decode));
    let times = Times { input, queue: queued, compute, request: waited + compute };
    let wall = wall_ms();
    match outcome {
        Ok(outputs) => {
            variant.observe_compute(compute);
            variant.stats.counters.succeeded(times, wall);
            shared.counters.succeeded(times, wall);
            check(shared, variant, request, &outputs);
            let (variant, arrived) = (Arc::clone(variant), request.arrived);
            Ok(Answer { outputs, variant, arrived, queued, compute })
        }
        Err(failure) => {
            variant.stats.counters.failed(times, wall);
            shared.counters.failed(times, wall);
            let fault = match &failure {
                RunFailure::Error(words) => Fault::Error(words.clone()),
                RunFailure::Panic(words) => Fault::Panic(words.clone()),
            };
            notify(shared, variant, fault);
            Err(failure.into())
        }
    }
}

fn offer(shared: &Shared, request: &Request) {
    let Some(sampler) = shared.sampler() else { return };
    if catch_unwind(AssertUnwindSafe(|| sampler.offer(&request.inputs))).is_err() {
        tracing::error!(model = shared.model, "the request sampler panicked");
    }
}

/// Runs the session; what it throws becomes this request's failure and nobody else's.
fn run(runner: &mut dyn Runner, request: &Request) -> Result<Vec<Tensor>, RunFailure> {
    let inputs: Vec<(&str, &Tensor)> =
        request.inputs.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    let wanted: Vec<&str> = request.wanted.iter().map(String::as_str).collect();
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
