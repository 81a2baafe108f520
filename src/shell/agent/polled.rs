//! The agent's questions to a server of bundles.

use std::hash::{BuildHasher, RandomState};
use std::time::Instant;

use serde_json::Value;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::Agent;
use crate::config::{Inbox, WebAddress};
use crate::shell::fleet::node;
use crate::shell::links::poll::{Errand, Shared, run};

/// What comes from the server lies in the inbox under this name.
const PLACE: &str = "poll.bundle";

/// Questions that are asked for as long as this is there.
pub struct Polled {
    url: WebAddress,
    interval_s: u64,
    state: Shared,
    _stop: DropGuard,
}

impl Polled {
    /// For `blochd status`.
    pub fn status(&self) -> Value {
        let mut status = self.state.status();
        status["url"] = self.url.shown().into();
        status["interval_s"] = self.interval_s.into();
        status
    }
}

impl Agent {
    /// Begins to ask for bundles, where the configuration names a server.
    pub(super) fn poll_fleet(&mut self) {
        let fleet = &self.config.fleet;
        let (Some(url), Some(Inbox(inbox))) = (&fleet.poll.url, &fleet.inbox) else { return };
        let node = match node(fleet) {
            Ok(node) => node,
            Err(error) => return tracing::error!("no server is asked for bundles: {error}"),
        };
        let filled = url.fill(&node.id, &node.labels).map_err(|error| error.to_string());
        let parsed = filled.and_then(|text| {
            text.parse::<WebAddress>().map_err(|error| format!("{text}: {error}"))
        });
        let url = match parsed {
            Ok(url) => url,
            Err(error) => return tracing::error!("no server is asked for bundles: {error}"),
        };
        let (state, stop) = (Shared::default(), CancellationToken::new());
        let errand =
            Errand { settings: fleet.poll.clone(), url: url.clone(), place: inbox.join(PLACE) };
        // The only randomness from the system that the standard library gives; it is no secret.
        let seed = RandomState::new().hash_one(Instant::now());
        tokio::spawn(run(errand, state.clone(), stop.clone(), seed));
        tracing::info!(node = node.id, url = url.shown(), "a server is asked for bundles");
        let interval_s = std::time::Duration::from(fleet.poll.interval).as_secs();
        self.polled = Some(Polled { url, interval_s, state, _stop: stop.drop_guard() });
    }
}
