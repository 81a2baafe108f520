//! Requests that run as one: of the same kind, up to so many rows, and no more of them than leaves every answer
//! in its time.

use std::time::Duration;

use crate::limits::BATCH_REACH;

use super::queue::{Place, Queue, Server, Waiting};

/// Up to how many rows run together, and how long a session waits for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Batching {
    /// Most rows of a run of several requests; 1: every request runs alone.
    pub rows: usize,
    /// How long a request may be kept waiting by a free session, for others to join it.
    pub delay: Duration,
}

impl Batching {
    /// Every request runs alone.
    pub const OFF: Self = Self { rows: 1, delay: Duration::ZERO };
}

/// Requests that are to run as one.
#[derive(Debug)]
pub(super) struct Batch {
    /// In the order in which they were taken.
    pub places: Vec<Place>,
    rows: usize,
    /// How long the run takes.
    pub takes: Duration,
    /// How long they take one after the other.
    alone: Duration,
    /// The earliest deadline of those that can be answered in time.
    due: Duration,
    /// When the first of them was taken in.
    since: Duration,
    /// Whether more could join.
    open: bool,
}

impl Batch {
    fn of<T>(place: Place, first: &Waiting<T>, server: &Server, now: Duration) -> Self {
        let takes = first.takes(server);
        Self {
            places: vec![place],
            rows: first.rows,
            takes,
            alone: takes,
            due: due(place, first, takes, now),
            since: first.since,
            open: first.kind.is_some() && first.rows < server.batching.rows,
        }
    }

    /// Until when more are waited for: where all of the `waiting` requests are in it, so that nobody who could
    /// run instead is kept waiting, and for half of the time that they have to spare at most.
    pub fn holds_until(&self, server: &Server, waiting: usize) -> Option<Duration> {
        let whole = self.open && self.rows < server.batching.rows && self.places.len() == waiting;
        if !whole {
            return None;
        }
        let spare = self.due.saturating_sub(self.takes).saturating_sub(self.since);
        Some(self.since.saturating_add(server.batching.delay.min(spare / 2)))
    }
}

/// When a request that takes so long is due; no bound where it has none or cannot be in time anyhow.
fn due<T>(place: Place, waiting: &Waiting<T>, takes: Duration, now: Duration) -> Duration {
    let bound = waiting.has_deadline && now.saturating_add(takes) <= place.due;
    if bound { place.due } else { Duration::MAX }
}

impl<T> Queue<T> {
    /// The request at `first` and those that run along with it: of the same kind, in their order, as far as
    /// - the run takes no longer than they would one after the other,
    /// - nobody in it is answered too late for being in it,
    /// - nor is anybody that stands before one of them, and is passed over, for waiting until they are done.
    pub(super) fn batch(&self, first: Place, server: &Server, now: Duration) -> Option<Batch> {
        let head = self.waiting.get(&first)?;
        let mut batch = Batch::of(first, head, server, now);
        if !batch.open {
            return Some(batch);
        }
        // What runs beside, with those that were passed over.
        let mut beside = self.left(now);
        // How long the run may take for those that were passed over.
        let mut spare = Duration::MAX;
        let instances = u32::try_from(server.instances.max(1)).unwrap_or(u32::MAX);
        for (place, waiting) in self.waiting.iter().take(BATCH_REACH) {
            if batch.rows >= server.batching.rows {
                break;
            }
            if *place == first {
                continue;
            }
            let own = waiting.takes(server);
            let expired = waiting.has_deadline && place.due < now;
            let rows = batch.rows.saturating_add(waiting.rows);
            let takes = server.service.upper(rows);
            let alone = batch.alone.saturating_add(own);
            let due = batch.due.min(due(*place, waiting, own, now));
            let joins = waiting.kind == head.kind
                && !expired
                && rows <= server.batching.rows
                // Both were rounded.
                && takes <= alone.saturating_add(Duration::from_micros(1))
                && now.saturating_add(takes) <= due
                && takes <= spare;
            if joins {
                batch.places.push(*place);
                batch.since = batch.since.min(waiting.since);
                (batch.rows, batch.takes, batch.alone, batch.due) = (rows, takes, alone, due);
            } else if !expired {
                let wait = place.due.saturating_sub(now).saturating_sub(own);
                let bound = wait.saturating_mul(instances).saturating_sub(beside);
                // Who is too late already is not made so.
                if bound >= batch.takes {
                    spare = spare.min(bound);
                }
                beside = beside.saturating_add(own);
            }
        }
        Some(batch)
    }
}
