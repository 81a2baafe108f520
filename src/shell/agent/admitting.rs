//! Who may come in while the agent runs: files that are read again, what of a new configuration the open ports
//! allow, and what is told of ports and clients.

use std::sync::Arc;
use std::time::Instant;

use serde_json::{Value, json};

use super::Agent;
use super::doors::{self, Ports};
use crate::config::{Config, Grant, Opening};
use crate::limits;
use crate::shell::serve::{Gate, Looks};

/// The gate, and what is open behind it.
pub(super) struct Admitting {
    pub gate: Arc<Gate>,
    pub ports: Ports,
    /// What is wrong with the files that say who may come in.
    wrong: Vec<String>,
    /// How they look, where that is news, and since when.
    changed: Option<(Looks, Instant)>,
}

impl Admitting {
    pub fn new(gate: Arc<Gate>, ports: Ports) -> Self {
        Self { gate, ports, wrong: Vec::new(), changed: None }
    }

    /// Reads all files again.
    fn reload(&mut self, config: &Config) {
        self.changed = None;
        let errors = self.gate.reload(config).err().unwrap_or_default();
        let wrong: Vec<String> = errors.iter().map(ToString::to_string).collect();
        for words in wrong.iter().filter(|words| !self.wrong.contains(words)) {
            tracing::error!("{words}; a certificate stays as it was, a token lets nobody in");
        }
        self.wrong = wrong;
    }

    /// When to look again at files that may still be written; those that rest are read.
    fn look(&mut self, config: &Config, now: Instant) -> Option<Instant> {
        let Some(news) = self.gate.news(config) else {
            self.changed = None;
            return None;
        };
        let since = match &self.changed {
            Some((before, since)) if *before == news => *since,
            Some(_) | None => now,
        };
        let rested = since + limits::CONFIG_REST;
        if now < rested {
            self.changed = Some((news, since));
            return Some(rested);
        }
        self.reload(config);
        tracing::info!("the files that say who may come in were read again");
        None
    }

    /// What an open port does not allow of a new configuration, which holds only from the next start on where
    /// it is: a port that was to be moved first must not be left open to everybody.
    pub fn keep_closed(&self, old: &Config, new: &mut Config) {
        let open = self.ports.iter().find_map(|(endpoint, at)| Some((endpoint, new.closed(*at)?)));
        let Some((endpoint, why)) = open else { return };
        tracing::warn!(
            "tls, access and allow_plaintext stay as they were until the next start: \
             {endpoint} at {why}"
        );
        new.tls = old.tls.clone();
        new.access = old.access.clone();
        new.allow_plaintext = old.allow_plaintext;
    }

    /// To whom each port is open, and who is listed. No secret, and no name of a file.
    pub fn status(&self, config: &Config) -> Value {
        let port = |(endpoint, at): (&crate::shell::systemd::Endpoint, &std::net::SocketAddr)| {
            let opening = config.opening(*at);
            let Opening { elsewhere, tls, .. } = opening;
            let facts = json!({
                "at": at.to_string(), "tls": tls, "reached_from_elsewhere": elsewhere,
                "open_to": opening.to_string(),
            });
            (endpoint.name().to_owned(), facts)
        };
        let one = |(name, grant): (&String, &Grant)| {
            let scopes: Vec<&str> = grant.scopes.0.iter().map(|scope| scope.word()).collect();
            let certificate = grant.certificate.as_ref().map(ToString::to_string);
            let facts = json!({
                "scopes": scopes, "token": grant.token_file.is_some(), "certificate": certificate,
            });
            (name.clone(), facts)
        };
        json!({
            "ports": self.ports.iter().map(port).collect::<serde_json::Map<_, _>>(),
            "listed": config.access.iter().map(one).collect::<serde_json::Map<_, _>>(),
            "errors": self.wrong,
        })
    }
}

impl Agent {
    /// Looks at the files that say who may come in.
    pub(super) fn look_at_gate(&mut self) {
        let again = self.admitting.look(&self.config, Instant::now());
        // Whichever of them is due first.
        self.config_look = [self.config_look, again].into_iter().flatten().min();
    }

    /// Reads them, whether they have changed or not.
    pub(super) fn reload_gate(&mut self) {
        self.admitting.reload(&self.config);
    }

    /// Tells to whom each port is open where that has changed.
    pub(super) fn tell_openings(&self, old: &Config) {
        let changed = |at| old.opening(at) != self.config.opening(at);
        if self.admitting.ports.values().any(|at| changed(*at)) {
            doors::tell(&self.config, &self.admitting.ports);
        }
    }
}
