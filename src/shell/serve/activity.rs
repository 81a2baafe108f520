//! What goes on on one connection: which calls are under way, and which answers their client does not take.
//! Over HTTP/2 a client may read its socket and still grant nothing to an answer, which no bound on writing to
//! the socket sees.

use std::collections::BTreeMap;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::response::Response;
use hyper::body::{Frame, SizeHint};
use tokio::sync::Notify;
use tokio::time::Instant;

/// How a connection stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    Busy,
    /// Without a call for as long as connections may be.
    Idle,
    /// With an answer of which nothing was taken for as long as that may be.
    Stuck,
}

/// The calls of one connection.
#[derive(Debug)]
pub(super) struct Activity {
    calls: Mutex<Calls>,
    begun: Notify,
}

#[derive(Debug)]
struct Calls {
    next: u64,
    /// Since when the client has not taken what it was handed; `None` while it waits for us.
    open: BTreeMap<u64, Option<Instant>>,
    /// When the last call ended.
    idle_since: Instant,
}

impl Activity {
    pub fn new() -> Arc<Self> {
        let idle_since = Instant::now();
        let calls = Mutex::new(Calls { next: 0, open: BTreeMap::new(), idle_since });
        Arc::new(Self { calls, begun: Notify::new() })
    }

    fn with<T>(&self, change: impl FnOnce(&mut Calls) -> T) -> T {
        change(&mut self.calls.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Counts a call until what is given back is dropped.
    pub fn begin(self: &Arc<Self>) -> Under {
        let call = self.with(|calls| {
            calls.next += 1;
            calls.open.insert(calls.next, None);
            calls.next
        });
        self.begun.notify_waiters();
        Under { activity: Arc::clone(self), call }
    }

    /// Waits until a call is under way.
    pub async fn busy(&self) {
        let mut begun = pin!(self.begun.notified());
        begun.as_mut().enable();
        if self.with(|calls| calls.open.is_empty()) {
            begun.await;
        }
    }

    /// How the connection stands at `now`, where it may be idle for `idle` and leave an answer for `write`.
    pub fn standing(&self, now: Instant, idle: Duration, write: Duration) -> Standing {
        let past = |since: Instant, bound| now.saturating_duration_since(since) > bound;
        self.with(|calls| {
            if calls.open.values().flatten().any(|since| past(*since, write)) {
                return Standing::Stuck;
            }
            let idle = calls.open.is_empty() && past(calls.idle_since, idle);
            if idle { Standing::Idle } else { Standing::Busy }
        })
    }
}

/// A call under way.
#[derive(Debug)]
pub(super) struct Under {
    activity: Arc<Activity>,
    call: u64,
}

impl Under {
    fn handed(&self, since: Option<Instant>) {
        self.activity.with(|calls| calls.open.insert(self.call, since));
    }

    /// The answer, whose call is under way until all of it was taken.
    pub fn watch(self, response: Response) -> Response {
        response.map(|body| Body::new(Watched { body, under: self }))
    }
}

impl Drop for Under {
    fn drop(&mut self) {
        self.activity.with(|calls| {
            calls.open.remove(&self.call);
            calls.idle_since = Instant::now();
        });
    }
}

struct Watched {
    body: Body,
    under: Under,
}

impl hyper::body::Body for Watched {
    type Data = Bytes;
    type Error = axum::Error;

    /// The connection asks when there is room for more: from one piece to the next question it is the client's
    /// turn.
    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        self.under.handed(frame.is_ready().then(Instant::now));
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDLE: Duration = Duration::from_secs(300);
    const WRITE: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn a_connection_is_idle_without_a_call_and_stuck_with_an_answer_that_is_not_taken() {
        let activity = Activity::new();
        let after = |time: Duration| activity.standing(Instant::now() + time, IDLE, WRITE);
        assert_eq!(after(WRITE), Standing::Busy);
        assert_eq!(after(IDLE + WRITE), Standing::Idle);
        let under = activity.begin();
        assert_eq!(
            after(IDLE + WRITE),
            Standing::Busy,
            "a call that waits for us may wait for long"
        );
        let mut response = under.watch(Response::new(Body::from("piece")));
        let next = std::future::poll_fn(|cx| {
            hyper::body::Body::poll_frame(Pin::new(response.body_mut()), cx)
        });
        assert!(next.await.is_some());
        assert_eq!(after(WRITE / 2), Standing::Busy);
        assert_eq!(after(WRITE * 2), Standing::Stuck);
        drop(response);
        assert_eq!(after(WRITE * 2), Standing::Busy);
        assert_eq!(after(IDLE + WRITE), Standing::Idle);
    }

    #[tokio::test]
    async fn a_connection_is_busy_while_a_call_is_under_way() {
        let activity = Activity::new();
        assert!(at_once(activity.busy()).await.is_none());
        let under = activity.begin();
        assert!(at_once(activity.busy()).await.is_some());
        drop(under);
        assert!(at_once(activity.busy()).await.is_none());
        let waits = activity.busy();
        let begins = async { drop(activity.begin()) };
        tokio::join!(waits, begins);
    }

    /// What a future gives that is looked at once.
    async fn at_once<T>(future: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            value = future => Some(value),
            () = std::future::ready(()) => None,
        }
    }
}
