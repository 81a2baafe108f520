//! The thread that sends spans: what has come together within a second, as one request over HTTP.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::time::{Duration, Instant};

use crate::limits;

use super::otlp::{Timed, request};
use super::{Counts, Span};

/// What the thread is asked for.
pub(super) enum Errand {
    /// A span, and when it began and ended since 1970.
    Send(Box<Span>, (Duration, Duration)),
    /// To send what it has, and then to say so.
    Flush(SyncSender<()>),
}

pub(super) struct Exporter {
    client: ureq::Agent,
    url: String,
    counts: Arc<Counts>,
    /// The collector did not take what was sent last.
    fails: bool,
}

impl Exporter {
    pub fn new(url: String, counts: Arc<Counts>) -> Self {
        let config = ureq::Agent::config_builder()
            .timeout_global(Some(limits::SPANS_TIMEOUT))
            // A collector is told by its address, and stands where that says.
            .proxy(None)
            .max_redirects(0)
            .build();
        Self { client: ureq::Agent::new_with_config(config), url, counts, fails: false }
    }

    /// Sends until nobody makes spans any more.
    pub fn all(mut self, errands: &Receiver<Errand>) {
        while let Ok(first) = errands.recv() {
            let until = Instant::now() + limits::SPANS_DELAY;
            let mut batch = Vec::new();
            let mut next = Ok(first);
            loop {
                match next {
                    Ok(Errand::Send(span, times)) => batch.push((span, times)),
                    Ok(Errand::Flush(done)) => {
                        self.send(&mut batch);
                        // Who asked may have lost patience.
                        let _ = done.try_send(());
                    }
                    Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break,
                }
                if batch.len() >= limits::SPANS_TOGETHER {
                    break;
                }
                next = errands.recv_timeout(until.saturating_duration_since(Instant::now()));
            }
            self.send(&mut batch);
        }
    }

    fn send(&mut self, batch: &mut Vec<Timed>) {
        if batch.is_empty() {
            return;
        }
        let body = request(batch).to_string();
        let count = batch.len() as u64;
        batch.clear();
        let post = self.client.post(&self.url).header("content-type", "application/json");
        match post.send(body) {
            Ok(_) => {
                self.counts.exported.fetch_add(count, Ordering::Relaxed);
                if std::mem::take(&mut self.fails) {
                    tracing::info!(collector = self.url, "the collector takes spans again");
                }
            }
            Err(error) => {
                self.counts.failed.fetch_add(count, Ordering::Relaxed);
                if !std::mem::replace(&mut self.fails, true) {
                    tracing::warn!(collector = self.url, "spans are lost: {error}");
                }
            }
        }
    }
}
