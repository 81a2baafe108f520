//! The spans of one request: the request itself below its client's span, and in it the time in the queue and in
//! the session. Nothing but a look where no spans are wanted.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::http::HeaderMap;

use crate::protocol::TraceParent;
use crate::shell::slot::{Answer, Slot};
use crate::shell::spans::{Kind, Place, Span, Tracer, Value};

use super::reply::Failed;

/// Makes spans of a request when it is dropped.
pub(super) struct Traced(Option<Box<Open>>);

struct Open {
    tracer: Arc<Tracer>,
    place: Place,
    begun: Instant,
    told: Vec<(&'static str, Value)>,
    /// When its run could have begun at the earliest.
    queued: Option<Instant>,
    ran: Option<Ran>,
    /// How it ended; none yet, and its client has gone.
    end: Option<Result<(), String>>,
}

struct Ran {
    waited: Duration,
    took: Duration,
}

/// What a client says of its trace; more than one such header is none.
pub(super) fn parent(headers: &HeaderMap) -> Option<TraceParent> {
    let mut all = headers.get_all("traceparent").iter();
    let (Some(only), None) = (all.next(), all.next()) else { return None };
    TraceParent::parse(only.to_str().ok()?)
}

impl Traced {
    /// Begins with a request's head, or its message in a stream; `protocol` is what it came over.
    pub fn begin(
        tracer: Option<&Arc<Tracer>>,
        parent: impl FnOnce() -> Option<TraceParent>,
        protocol: &'static str,
        begun: Instant,
    ) -> Self {
        let open = tracer.and_then(|tracer| {
            let place = tracer.of_request(parent())?;
            let told = vec![("network.protocol.name", Value::Text(protocol.to_owned()))];
            let (tracer, queued, ran, end) = (Arc::clone(tracer), None, None, None);
            Some(Box::new(Open { tracer, place, begun, told, queued, ran, end }))
        });
        Self(open)
    }

    /// The slot that is to answer, and when the request was ready for it.
    pub fn found(&mut self, slot: &Slot, ready: Instant) {
        let Some(open) = &mut self.0 else { return };
        // Another slot may have been asked before this one.
        open.told.truncate(1);
        open.told.push(("blochd.model", Value::Text(slot.model().to_owned())));
        open.told.push(("blochd.version", Value::Whole(slot.version().0)));
        open.queued = Some(ready);
    }

    pub fn answered(&mut self, answer: &Answer) {
        let Some(open) = &mut self.0 else { return };
        let ms = |time: Duration| Value::Number(time.as_secs_f64() * 1e3);
        let variant = answer.variant.info().name.clone();
        open.told.push(("blochd.variant", Value::Text(variant)));
        open.told.push(("blochd.queue_ms", ms(answer.queued)));
        open.told.push(("blochd.compute_ms", ms(answer.compute)));
        open.told.push(("blochd.requests_together", Value::Whole(answer.together as u64)));
        open.ran = Some(Ran { waited: answer.queued, took: answer.compute });
    }

    /// Takes in how it ended.
    pub fn ended<T>(mut self, outcome: Result<T, Failed>) -> Result<T, Failed> {
        if let Some(open) = &mut self.0 {
            open.end = Some(outcome.as_ref().map(|_| ()).map_err(|failed| failed.error.clone()));
        }
        outcome
    }
}

impl Drop for Traced {
    fn drop(&mut self) {
        let Some(open) = self.0.take() else { return };
        let Open { tracer, place, begun, told, queued, ran, end } = *open;
        let inner = |name, begun: Instant, took: Duration| Span {
            place: tracer.below(place),
            name,
            kind: Kind::Internal,
            begun,
            ended: begun + took,
            told: Vec::new(),
            error: None,
        };
        let error = match end {
            Some(outcome) => outcome.err(),
            None => Some("the client went away".to_owned()),
        };
        let (name, kind, ended) = ("infer", Kind::Server, Instant::now());
        if let Some((queued, Ran { waited, took })) = queued.zip(ran) {
            tracer.send(inner("queue", queued, waited));
            tracer.send(inner("compute", queued + waited, took));
        }
        tracer.send(Span { place, name, kind, begun, ended, told, error });
    }
}
