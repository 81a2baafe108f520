//! The agent's link to its fleet's broker: what comes by it is put into the inbox, and what the status says
//! goes back.
//!
//! A bundle that came by the broker goes the way of one that an operator dropped: it is written into the inbox
//! as one file a topic, whole or not at all, and whoever looks there finds it, after a restart too.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use serde_json::Value;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::Agent;
use super::fleet::Fleet;
use crate::config::{self, FleetName, Inbox};
use crate::fleet::apply::Report;
use crate::fleet::reported::{Figures, Hardware, Health, Model, Reported};
use crate::fleet::telling::Told;
use crate::fleet::topics::TopicError;
use crate::fleet::{Node, Record};
use crate::limits;
use crate::shell::files;
use crate::shell::fleet::{inbox, node};
use crate::shell::links::mqtt::{self, Arrived, Ends, Shared};
use crate::units::Digest;

/// A link, and what it carries.
pub struct Linked {
    broker: String,
    inbox: PathBuf,
    /// What does not change while the agent runs.
    base: Reported,
    state: watch::Sender<Arc<Reported>>,
    link: Shared,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
    told: Told,
    met: BTreeMap<String, Met>,
    looked: Instant,
}

/// How long a model's budget was looked after, and met.
#[derive(Debug, Clone, Copy, Default)]
struct Met {
    watched: Duration,
    met: Duration,
}

impl Linked {
    /// Begins to link a node to the broker of the settings; `None` where there is none, or no inbox.
    ///
    /// # Errors
    /// Where a name cannot stand in a topic.
    pub fn start(settings: &config::Fleet, node: &Node) -> Result<Option<Self>, TopicError> {
        let (Some(url), Some(Inbox(inbox))) = (&settings.mqtt.url, &settings.inbox) else {
            return Ok(None);
        };
        let FleetName(fleet) = &settings.mqtt.fleet;
        let who = mqtt::Node::new(fleet, &node.id, &node.labels)?;
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let base = Reported {
            node: node.id.clone(),
            labels: node.labels.clone(),
            agent: env!("CARGO_PKG_VERSION").to_owned(),
            started: since.as_secs(),
            ..Reported::default()
        };
        let (state, follows) = watch::channel(Arc::new(base.clone()));
        let (door, bundles) = mpsc::channel(limits::LINK_BUNDLES);
        let (link, stop) = (Shared::default(), CancellationToken::new());
        // The only randomness from the system that the standard library gives; it is no secret.
        let epoch = RandomState::new().hash_one(since);
        let ends =
            Ends { bundles: door, state: follows, link: link.clone(), stop: stop.clone(), epoch };
        let task = tokio::spawn(mqtt::run(settings.mqtt.clone(), who, ends));
        tokio::spawn(deliver(bundles, inbox.clone()));
        let broker = url.to_string();
        tracing::info!(node = node.id, broker, "the fleet's broker is looked for");
        let (inbox, told) = (inbox.clone(), Told::default());
        let (met, looked) = (BTreeMap::new(), Instant::now());
        Ok(Some(Self { broker, inbox, base, state, link, stop, task, told, met, looked }))
    }

    /// Leaves the node's state to the link.
    pub fn tell(&mut self, status: &Value, record: &Record, now: Instant) {
        let elapsed = now.saturating_duration_since(std::mem::replace(&mut self.looked, now));
        let mut reported = self.base.clone();
        for model in array(&status["models"]) {
            let Some(name) = model["model"].as_str() else { continue };
            let met = self.met.entry(name.to_owned()).or_default();
            if let Some(is_met) = model["met"].as_bool() {
                met.watched += elapsed;
                met.met += if is_met { elapsed } else { Duration::ZERO };
            }
            reported.models.insert(name.to_owned(), of_model(model, *met));
        }
        self.met.retain(|name, _| reported.models.contains_key(name));
        reported.hardware = hardware(&status["hardware"]);
        reported.health = health(status);
        self.told.tell(record, &mut reported);
        reported.received = self.link.get().received;
        let reported = reported.bounded();
        self.state.send_if_modified(|old| {
            let changed = **old != reported;
            if changed {
                *old = Arc::new(reported);
            }
            changed
        });
    }

    /// What the machine reports of a bundle.
    pub fn hear(&mut self, report: &Report) {
        let name = match report {
            Report::Refused { name, .. } => Some(Path::new(name)),
            Report::Begun { .. }
            | Report::Abandoned { .. }
            | Report::Committed { .. }
            | Report::RolledBack { .. } => None,
        };
        // What lies in the inbox is offered again at every start, overtaken or not.
        let bundle = name.and_then(|name| self.digest(name));
        self.told.hear(report, bundle, bundle.is_some());
    }

    /// The digest of a bundle that lies in the inbox, by which whoever sent it knows it again.
    fn digest(&self, path: &Path) -> Option<Digest> {
        let ours = path.parent() == Some(self.inbox.as_path());
        let bytes = ours.then(|| files::read(path, limits::LINK_MESSAGE_BYTES).ok())??;
        Some(Digest::of(&bytes))
    }

    /// For `blochd status`.
    pub fn status(&self) -> Value {
        let mut status = self.link.status();
        status["broker"] = self.broker.clone().into();
        status
    }

    /// Takes leave of the broker.
    pub async fn close(self) {
        self.stop.cancel();
        // It bounds its farewell itself.
        let _ = self.task.await;
    }
}

impl Agent {
    /// Begins to look for the fleet's broker, where the configuration names one.
    pub(super) fn link_fleet(&mut self) {
        let settings = &self.config.fleet;
        if settings.mqtt.url.is_none() {
            return;
        }
        match node(settings).map(|node| Linked::start(settings, &node)) {
            Ok(Ok(linked)) => self.linked = linked,
            Ok(Err(error)) => tracing::error!("no link to the fleet's broker: {error}"),
            Err(error) => tracing::error!("no link to the fleet's broker: {error}"),
        }
    }

    /// Leaves the state of the box to the link.
    pub(super) fn tell_link(&mut self, now: Instant) {
        let none = Record::default();
        let record = self.fleet.as_ref().map_or(&none, Fleet::record);
        if let Some(linked) = &mut self.linked {
            linked.tell(&self.status.load(), record, now);
        }
    }
}

/// Puts bundles into the inbox, the newest of each topic, for as long as there is a link.
async fn deliver(mut bundles: mpsc::Receiver<Arrived>, inbox: PathBuf) {
    let mut waiting: BTreeMap<PathBuf, Bytes> = BTreeMap::new();
    loop {
        tokio::select! {
            arrived = bundles.recv() => {
                let Some(arrived) = arrived else { return };
                waiting.insert(inbox.join(file_name(&arrived.topic)), arrived.bytes);
            }
            // A disk that was full has room again some time.
            () = tokio::time::sleep(limits::LINK_INBOX_AGAIN), if !waiting.is_empty() => {}
        }
        while let Some((path, bytes)) = waiting.pop_first() {
            let (at, these) = (path.clone(), bytes.clone());
            let put = tokio::task::spawn_blocking(move || inbox::put(&at, these)).await;
            if let Ok(Err(error)) = put {
                tracing::error!("cannot put a bundle into the inbox: {}: {error}", path.display());
                waiting.insert(path, bytes);
                break;
            }
        }
    }
}

/// The file of a topic: `broker-group-site=berlin.bundle`. Topics that are listened to have names without
/// slashes.
fn file_name(topic: &str) -> String {
    let target = topic.split_once("/desired/").map_or("", |(_, target)| target);
    format!("broker-{}.bundle", target.replace('/', "-"))
}

fn of_model(status: &Value, met: Met) -> Model {
    let variant = status["variant"].as_str().unwrap_or_default();
    let served = array(&status["ladder"]).find(|one| one["name"] == variant);
    Model {
        version: status["version"].as_u64().unwrap_or_default(),
        variant: variant.to_owned(),
        ratio: rounded(status["ratio"].as_f64().unwrap_or_default()),
        quality: served.and_then(|one| one["quality"].as_f64()).map(rounded),
        budget_ms: status["budget"]["limit_ms"].as_f64(),
        figures: Figures {
            p99_ms: status["observed"]["p99_ms"].as_f64().map(rounded),
            watched_s: met.watched.as_secs(),
            met_s: met.met.as_secs(),
        },
    }
}

/// Three digits: more are noise, and would be sent.
fn rounded(number: f64) -> f64 {
    if number == 0.0 || !number.is_finite() {
        return number;
    }
    let scale = 10f64.powf(2.0 - number.abs().log10().floor());
    (number * scale).round() / scale
}

fn hardware(status: &Value) -> Hardware {
    let device = |device: &Value| {
        let word = |name: &str| device[name].as_str().unwrap_or_default().to_owned();
        let state = device["health"]["state"].as_str().unwrap_or("unknown");
        format!("{} {}: {state}", word("vendor"), word("model"))
    };
    Hardware {
        cpu: status["cpu"]["model"].as_str().unwrap_or_default().to_owned(),
        cores: status["cpu"]["logical_cores"].as_u64().unwrap_or_default(),
        memory_bytes: status["memory"]["total"].as_u64().unwrap_or_default(),
        accelerators: array(&status["devices"]).map(device).collect(),
    }
}

fn health(status: &Value) -> Health {
    let mut problems = Vec::new();
    problems.extend(status["config"]["error"].as_str().map(|error| format!("config: {error}")));
    for refused in array(&status["refused"]) {
        let word = |name: &str| refused[name].as_str().unwrap_or_default();
        let version = refused["version"].as_u64().unwrap_or_default();
        problems.push(format!("{} {version}: {}", word("model"), word("reason")));
    }
    for model in array(&status["models"]) {
        if model["met"].as_bool() == Some(false) {
            let name = model["model"].as_str().unwrap_or_default();
            problems.push(format!("{name} misses its budget"));
        }
    }
    Health { ready: status["ready"].as_bool().unwrap_or_default(), problems }
}

fn array(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().map(Vec::as_slice).unwrap_or_default().iter()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_status_is_told_in_short() {
        let status = json!({
            "ready": true, "config": {"error": "agent.yaml:3:1: unknown key"},
            "hardware": {
                "cpu": {"model": "Some CPU", "logical_cores": 4}, "memory": {"total": 8u64 << 30},
                "devices": [{"vendor": "ascend", "model": "310P3", "health": {"state": "ok"}}],
            },
            "models": [{
                "model": "digits", "version": 2, "met": false,
                "variant": "r0.75", "ratio": 0.757_31,
                "budget": {"limit_ms": 40.0}, "observed": {"p99_ms": 41.267_8},
                "ladder": [
                    {"name": "dense", "quality": 1.0}, {"name": "r0.75", "quality": 0.981_23},
                ],
            }],
            "refused": [{"model": "bad", "version": 3, "reason": "truncated"}],
        });
        let met = Met { watched: Duration::from_secs(10), met: Duration::from_millis(9900) };
        let figures = Figures { p99_ms: Some(41.3), watched_s: 10, met_s: 9 };
        let model = of_model(&status["models"][0], met);
        let expected = Model {
            version: 2,
            variant: "r0.75".to_owned(),
            ratio: 0.757,
            quality: Some(0.981),
            budget_ms: Some(40.0),
            figures,
        };
        assert_eq!(model, expected);
        let told = hardware(&status["hardware"]);
        assert_eq!((told.cores, told.memory_bytes), (4, 8 << 30));
        assert_eq!(told.accelerators, ["ascend 310P3: ok"]);
        let health = health(&status);
        assert!(health.ready);
        assert_eq!(
            health.problems,
            ["config: agent.yaml:3:1: unknown key", "bad 3: truncated", "digits misses its budget"]
        );
        // A status that says nothing makes no trouble.
        assert_eq!(of_model(&Value::Null, Met::default()), Model::default());
    }

    #[test]
    fn a_topic_has_a_file_of_its_own() {
        for (topic, name) in [
            ("blochd/v1/plant/desired/all", "broker-all.bundle"),
            ("blochd/v1/plant/desired/node/box-1", "broker-node-box-1.bundle"),
            ("blochd/v1/plant/desired/group/site=berlin", "broker-group-site=berlin.bundle"),
        ] {
            assert_eq!(file_name(topic), name);
        }
    }

    #[test]
    fn three_digits_are_enough() {
        for (number, short) in
            [(0.0, 0.0), (41.267_8, 41.3), (1234.5, 1230.0), (0.001_234, 0.001_23)]
        {
            assert_eq!(rounded(number), short);
        }
        assert!(rounded(f64::NAN).is_nan());
    }
}
