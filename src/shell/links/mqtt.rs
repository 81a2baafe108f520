//! A node's link to its fleet's broker: MQTT 5, one connection, tried again for as long as the agent runs.
//!
//! Two things run side by side on a connection: one moves packets and hands bundles over, the other says what
//! the node is. Neither is ever waited for by the agent: it leaves its newest state in a place and takes
//! bundles from a bounded queue. Each connection begins anew (no session is kept at the broker): what is wanted
//! of a node is retained there, and is delivered on every connection, after weeks too.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rumqttc::{
    AsyncClient, ConnectionError, Event, EventLoop, LastWill, Packet, PubAckReason, PublishOptions,
    PublishResult, QoS, SubscribeReasonCode,
};
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::sign_in::{LinkError, options};
use crate::config::Mqtt;
use crate::fleet::backoff::Backoff;
use crate::fleet::outbox::{Outbox, Step};
use crate::fleet::reported::Reported;
use crate::fleet::roll_call::{OFFLINE, ONLINE};
use crate::fleet::topics::{Heard, TopicError, Topics};
use crate::limits;

/// Who the box is at the broker.
#[derive(Debug, Clone)]
pub struct Node {
    topics: Topics,
    id: String,
    presence: String,
    reported: String,
    filters: Vec<String>,
}

impl Node {
    /// # Errors
    /// [`TopicError`] where one of the names cannot stand in a topic.
    pub fn new(
        fleet: &str,
        id: &str,
        labels: &BTreeMap<String, String>,
    ) -> Result<Self, TopicError> {
        let topics = Topics::new(fleet)?;
        Ok(Self {
            presence: topics.presence(id)?,
            reported: topics.reported(id)?,
            filters: topics.of_node(id, labels)?,
            id: id.to_owned(),
            topics,
        })
    }
}

/// A bundle that came by the broker: signed bytes, whoever sent them.
#[derive(Debug, Clone)]
pub struct Arrived {
    pub topic: String,
    pub bytes: Bytes,
    /// The broker had it when the node connected; else somebody sent it now.
    pub retained: bool,
}

/// How the link is, for the status.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LinkState {
    pub connected: bool,
    /// Attempts to connect, and those of them that led to a connection.
    pub attempts: u64,
    pub connections: u64,
    /// Messages that came from the broker, and reports that it acknowledged.
    pub received: u64,
    pub reported: u64,
    /// Why there is no connection, or what the broker does not allow on it.
    pub error: Option<LinkError>,
}

/// The state, shared with who tells it.
#[derive(Debug, Clone, Default)]
pub struct Shared(Arc<Mutex<LinkState>>);

impl Shared {
    pub fn get(&self) -> LinkState {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn with<T>(&self, change: impl FnOnce(&mut LinkState) -> T) -> T {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// For `blochd status`.
    pub fn status(&self) -> Value {
        let state = self.get();
        json!({
            "connected": state.connected, "attempts": state.attempts,
            "connections": state.connections, "received": state.received,
            "reported": state.reported, "error": state.error.map(|error| error.to_string()),
        })
    }
}

/// What joins a link to its agent.
pub struct Ends {
    pub bundles: mpsc::Sender<Arrived>,
    /// The newest state of the node.
    pub state: watch::Receiver<Arc<Reported>>,
    pub link: Shared,
    pub stop: CancellationToken,
    /// Tells this run of the agent from others, and seeds the times between attempts.
    pub epoch: u64,
}

/// Links the node to its broker until it is stopped.
pub async fn run(settings: Mqtt, node: Node, mut ends: Ends) {
    let mut backoff = Backoff::default();
    let mut chance = ChaCha8Rng::seed_from_u64(ends.epoch);
    let mut speaker = Speaker { outbox: Outbox::new(ends.epoch), begun: Instant::now() };
    let mut told = None;
    while !ends.stop.is_cancelled() {
        ends.link.with(|link| link.attempts += 1);
        let mut since = None;
        let error = connection(&settings, &node, &mut ends, &mut speaker, &mut since).await;
        ends.link.with(|link| {
            link.connected = false;
            link.error = Some(error.clone());
        });
        if ends.stop.is_cancelled() {
            break;
        }
        if let Some(since) = since {
            backoff.held(Instant::now().saturating_duration_since(since));
        }
        let wait = backoff.after_failure(chance.random::<f64>());
        // Weeks without a broker are one line.
        if told.as_ref() != Some(&error) || since.is_some() {
            tracing::warn!("the fleet's broker is not there: {error}; it is tried again");
            told = Some(error);
        }
        tokio::select! {
            () = ends.stop.cancelled() => break,
            () = tokio::time::sleep(wait) => {}
        }
    }
}

/// One connection, from its attempt to its end.
async fn connection(
    settings: &Mqtt,
    node: &Node,
    ends: &mut Ends,
    speaker: &mut Speaker,
    since: &mut Option<Instant>,
) -> LinkError {
    let (own, id) = (settings.clone(), node.id.clone());
    let read = tokio::task::spawn_blocking(move || options(&own, &id)).await;
    let mut options = match read {
        Ok(Ok(options)) => options,
        Ok(Err(error)) => return error,
        Err(_) => return LinkError::Stopped,
    };
    options.set_last_will(LastWill::new(&node.presence, OFFLINE, QoS::AtLeastOnce, true, None));
    let (client, mut packets) =
        AsyncClient::builder(options).capacity(limits::LINK_REQUESTS).build();
    let stop = ends.stop.clone();
    let admitted = tokio::select! {
        admitted = tokio::time::timeout(limits::LINK_CONNECT, admitted(&mut packets)) => admitted,
        () = stop.cancelled() => return LinkError::Stopped,
    };
    match admitted {
        Ok(Ok(())) => {}
        Ok(Err(error)) => return error.into(),
        Err(_) => return LinkError::Silent,
    }
    *since = Some(Instant::now());
    ends.link.with(|link| {
        link.connected = true;
        link.connections += 1;
        link.error = None;
    });
    tracing::info!(node = node.id, "linked to the fleet's broker");
    let (bundles, link) = (ends.bundles.clone(), ends.link.clone());
    let last = async {
        stop.cancelled().await;
        tokio::time::sleep(limits::LINK_FAREWELL).await;
    };
    // Neither future is dropped and made again: packets that are half read stay with their reader.
    tokio::select! {
        error = pump(&mut packets, node, &bundles, &link) => error,
        error = speaker.speak(&client, node, ends) => error,
        () = last => LinkError::Stopped,
    }
}

/// Waits until the broker lets the client in.
async fn admitted(packets: &mut EventLoop) -> Result<(), ConnectionError> {
    loop {
        if let Event::Incoming(Packet::ConnAck(_)) = packets.poll().await? {
            return Ok(());
        }
    }
}

/// Moves packets and hands bundles over.
async fn pump(
    packets: &mut EventLoop,
    node: &Node,
    bundles: &mpsc::Sender<Arrived>,
    link: &Shared,
) -> LinkError {
    loop {
        let publish = match packets.poll().await {
            Ok(Event::Incoming(Packet::Publish(publish))) => publish,
            Ok(Event::Incoming(_) | Event::Outgoing(_) | Event::Auth(_)) => continue,
            Err(error) => return error.into(),
        };
        link.with(|link| link.received += 1);
        let Ok(topic) = String::from_utf8(publish.topic.to_vec()) else { continue };
        let desired = matches!(node.topics.read(&topic), Some(Heard::Desired(_)));
        // An empty retained message is how one is taken back.
        if !desired || publish.payload.is_empty() {
            continue;
        }
        let arrived = Arrived { topic, bytes: publish.payload, retained: publish.retain };
        // An agent that does not keep up is waited for here, and nowhere else.
        if bundles.send(arrived).await.is_err() {
            return LinkError::Stopped;
        }
    }
}

/// Says what the node is.
struct Speaker {
    outbox: Outbox,
    begun: Instant,
}

impl Speaker {
    async fn speak(&mut self, client: &AsyncClient, node: &Node, ends: &mut Ends) -> LinkError {
        match self.talk(client, node, ends).await {
            Ok(never) => match never {},
            Err(error) => error,
        }
    }

    async fn talk(
        &mut self,
        client: &AsyncClient,
        node: &Node,
        ends: &mut Ends,
    ) -> Result<Infallible, LinkError> {
        // Whoever finds the node online finds it listening.
        listen(client, node, &ends.link).await?;
        publish(client, &node.presence, ONLINE.to_owned(), true, &ends.link).await?;
        self.outbox.reconnected();
        let mut feeds = true;
        loop {
            let state = Arc::clone(&ends.state.borrow_and_update());
            let wait = match self.outbox.step(self.begun.elapsed(), &state) {
                Step::Send { payload, retain } => {
                    if publish(client, &node.reported, payload, retain, &ends.link).await? {
                        ends.link.with(|link| link.reported += 1);
                    }
                    continue;
                }
                Step::Wait(wait) => wait,
            };
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                changed = ends.state.changed(), if feeds => feeds = changed.is_ok(),
                () = ends.stop.cancelled() => {
                    publish(client, &node.presence, OFFLINE.to_owned(), true, &ends.link).await?;
                    client.disconnect().await.map_err(|_| LinkError::Stopped)?;
                    // The connection ends once that is sent.
                    std::future::pending::<()>().await;
                }
            }
        }
    }
}

async fn listen(client: &AsyncClient, node: &Node, link: &Shared) -> Result<(), LinkError> {
    let lost = |error: &dyn std::fmt::Display| LinkError::Connection(error.to_string());
    for filter in &node.filters {
        let asked = client.subscribe_tracked(filter.clone(), QoS::AtLeastOnce).await;
        let answer = asked.map_err(|error| lost(&error))?.wait_async().await;
        let answer = answer.map_err(|error| lost(&error))?;
        let taken = |code: &SubscribeReasonCode| matches!(code, SubscribeReasonCode::Success(_));
        if !answer.return_codes.iter().all(taken) {
            // The other topics may be allowed.
            not_allowed(link, format!("to listen to {filter}"));
        }
    }
    Ok(())
}

/// Publishes and waits for the broker's answer; `false`: it did not allow it.
async fn publish(
    client: &AsyncClient,
    topic: &str,
    payload: String,
    retain: bool,
    link: &Shared,
) -> Result<bool, LinkError> {
    let options = PublishOptions::new(QoS::AtLeastOnce).retain(retain);
    let sent = client.publish_tracked(topic.to_owned(), payload, options).await;
    let notice = sent.map_err(|error| LinkError::Connection(error.to_string()))?;
    let answer = notice.wait_async().await;
    match answer.map_err(|error| LinkError::Connection(error.to_string()))? {
        PublishResult::Qos1(ack) if !is_taken(ack.reason) => {
            not_allowed(link, format!("to write to {topic} ({:?})", ack.reason));
            Ok(false)
        }
        PublishResult::Qos0Flushed
        | PublishResult::Qos1(_)
        | PublishResult::Qos2Completed(_)
        | PublishResult::Qos2PubRecRejected(_) => Ok(true),
    }
}

/// Whether a broker took a message.
pub(super) fn is_taken(reason: PubAckReason) -> bool {
    matches!(reason, PubAckReason::Success | PubAckReason::NoMatchingSubscribers)
}

fn not_allowed(link: &Shared, what: String) {
    let error = LinkError::NotAllowed(what);
    let new = link.with(|link| link.error.replace(error.clone()).as_ref() != Some(&error));
    if new {
        tracing::warn!("{error}");
    }
}
