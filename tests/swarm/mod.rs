//! Many nodes on one broker: the real link, verification and machine of each; only their disks, models and time
//! at work are not there. Some have disks that fail, some trust other keys, some are not there yet.

// Each program uses its own part of it.
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use blochd::config::Mqtt;
use blochd::fleet::apply::{Context, Effect, Event, Machine, Outcome, Record, Step, Survey, Task};
use blochd::fleet::health::{Baseline, Health};
use blochd::fleet::reported::{Health as Told1, Reported};
use blochd::fleet::roll_call::{Followed, Progress, RollCall};
use blochd::fleet::telling::Told;
use blochd::fleet::topics::{Target, Topics};
use blochd::fleet::{Envelope, Key, KeySet, Node, Timestamp};
use blochd::limits;
use blochd::shell::links::mqtt::{self, Arrived, Ends, Shared};
use blochd::shell::links::operator::Operator;
use blochd::units::Digest;
use minisign::KeyPair;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::broker::{Broker, FLEET, OPERATOR};

/// How long a bundle is watched here; days in earnest.
pub const PROBATION: Duration = Duration::from_secs(1);

/// Between two looks at the models during a probation.
const LOOK: Duration = Duration::from_millis(250);

/// Those who sign, and those who would like to.
pub struct Signers {
    ours: KeyPair,
    pub trusted: KeySet,
    pub others: KeySet,
}

impl Signers {
    pub fn new() -> Self {
        let [ours, theirs] = [(); 2].map(|()| KeyPair::generate_unencrypted_keypair().unwrap());
        let set = |pair: &KeyPair| {
            KeySet::new(vec![Key::parse(&pair.pk.to_base64()).unwrap()], 1).unwrap()
        };
        let (trusted, others) = (set(&ours), set(&theirs));
        Self { ours, trusted, others }
    }

    /// A bundle for all that says something of the configuration.
    pub fn bundle(&self, revision: u64) -> (Vec<u8>, Followed) {
        let expires = Timestamp(4_000_000_000);
        let text = format!(
            "fleet: 1\nrevision: {revision}\nexpires: {expires}\nfor: all\nconfig:\n  defaults:\n    \
             budget: {{p99: {revision}ms}}\n"
        );
        let signed = minisign::sign(None, &self.ours.sk, text.as_bytes(), None, None).unwrap();
        let bytes = Envelope::seal(&text, &[&signed.into_string()]).unwrap().into_bytes();
        let digest = Digest::of(&bytes).to_string();
        (bytes, Followed { revision, digest })
    }
}

/// What is wrong with a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ill {
    Not,
    /// Nothing can be written.
    Disk,
    /// It trusts others.
    Keys,
}

/// A node from outside.
pub struct Member {
    pub id: String,
    pub ill: Ill,
    pub disk_fails: Arc<AtomicBool>,
    /// What is on its disk.
    pub record: Arc<Mutex<Record>>,
    /// How often it took up another configuration.
    pub reloads: Arc<AtomicU64>,
    pub link: Shared,
    pub state: Arc<watch::Sender<Arc<Reported>>>,
    stop: CancellationToken,
}

impl Drop for Member {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Starts a node.
pub fn join(settings: Mqtt, id: &str, ill: Ill, signers: &Signers, epoch: u64) -> Member {
    let labels: BTreeMap<String, String> = [("site".to_owned(), "berlin".to_owned())].into();
    let node = Node { id: id.to_owned(), labels: labels.clone() };
    let health = Told1 { ready: true, problems: Vec::new() };
    let reported = Reported { node: id.to_owned(), labels, health, ..Reported::default() };
    let (door, bundles) = mpsc::channel(limits::LINK_BUNDLES);
    let (state, follows) = watch::channel(Arc::new(reported));
    let (link, stop, state) = (Shared::default(), CancellationToken::new(), Arc::new(state));
    let ends =
        Ends { bundles: door, state: follows, link: link.clone(), stop: stop.clone(), epoch };
    let own = mqtt::Node::new(FLEET, id, &node.labels).unwrap();
    tokio::spawn(mqtt::run(settings, own, ends));
    let trusted = if ill == Ill::Keys { &signers.others } else { &signers.trusted };
    let member = Member {
        id: id.to_owned(),
        ill,
        disk_fails: Arc::new(AtomicBool::new(ill == Ill::Disk)),
        record: Arc::default(),
        reloads: Arc::default(),
        link,
        state: Arc::clone(&state),
        stop,
    };
    let inside = Inside {
        node,
        trusted: trusted.clone(),
        machine: Machine::default(),
        told: Told::default(),
        offered: None,
        again: None,
        begun: Instant::now(),
        disk_fails: Arc::clone(&member.disk_fails),
        record: Arc::clone(&member.record),
        bundles: BTreeMap::new(),
        reloads: Arc::clone(&member.reloads),
        waiting: BTreeMap::new(),
        state,
    };
    tokio::spawn(inside.turn(bundles));
    member
}

/// A node from inside: what the agent has around its machine.
struct Inside {
    node: Node,
    trusted: KeySet,
    machine: Machine,
    told: Told,
    offered: Option<(Digest, bool)>,
    again: Option<Instant>,
    begun: Instant,
    disk_fails: Arc<AtomicBool>,
    record: Arc<Mutex<Record>>,
    bundles: BTreeMap<Digest, Arc<[u8]>>,
    reloads: Arc<AtomicU64>,
    waiting: BTreeMap<String, Arrived>,
    state: Arc<watch::Sender<Arc<Reported>>>,
}

impl Inside {
    async fn turn(mut self, mut bundles: mpsc::Receiver<Arrived>) {
        loop {
            let busy = self.machine.watches() || self.again.is_some() || !self.waiting.is_empty();
            tokio::select! {
                arrived = bundles.recv() => match arrived {
                    Some(arrived) => {
                        self.told.received();
                        self.waiting.insert(arrived.topic.clone(), arrived);
                    }
                    None => return,
                },
                () = tokio::time::sleep(LOOK), if busy => {}
            }
            if self.again.is_some_and(|at| Instant::now() >= at) {
                self.again = None;
                let record = self.record.lock().unwrap().clone();
                let bytes = record.candidate().and_then(|kept| self.bundles.get(&kept.digest));
                let stepped = Machine::resume(record, bytes.map(|bytes| &**bytes), &self.context());
                self.perform(stepped);
            }
            if self.again.is_none() && self.machine.watches() {
                self.happened(Event::Looked(Health::new()));
            }
            while self.again.is_none() && self.machine.record().step == Step::Idle {
                let Some((_, arrived)) = self.waiting.pop_first() else { break };
                self.offered = Some((Digest::of(&arrived.bytes), arrived.retained));
                let bytes: Arc<[u8]> = arrived.bytes.to_vec().into();
                self.happened(Event::Offered { name: arrived.topic.clone(), bytes });
                self.offered = None;
                if self.again.is_some() {
                    self.waiting.insert(arrived.topic.clone(), arrived);
                }
            }
            self.tell();
        }
    }

    fn context(&self) -> Context<'_> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        Context {
            node: &self.node,
            configured: Some(&self.trusted),
            probation: PROBATION,
            now: Timestamp(now.as_secs()),
            up: self.begun.elapsed(),
        }
    }

    fn happened(&mut self, event: Event) {
        let stepped = self.machine.step(event, &self.context());
        self.perform(stepped);
    }

    fn perform(&mut self, (machine, effects): (Machine, Vec<Effect>)) {
        let mut begun = None;
        for effect in effects {
            let writes = matches!(effect, Effect::Keep { .. } | Effect::Save(_));
            if writes && self.disk_fails.load(Ordering::Relaxed) {
                self.again = Some(Instant::now() + Duration::from_secs(1));
                return;
            }
            match effect {
                Effect::Keep { digest, bytes } => drop(self.bundles.insert(digest, bytes)),
                Effect::Save(record) => *self.record.lock().unwrap() = *record,
                Effect::Begin { job, task } => begun = Some((job, task)),
                Effect::Reload => drop(self.reloads.fetch_add(1, Ordering::Relaxed)),
                Effect::Sweep { keep } => self.bundles.retain(|digest, _| keep.contains(digest)),
                Effect::Report(report) => {
                    let (bundle, retained) = self.offered.unzip();
                    self.told.hear(&report, bundle, retained.unwrap_or_default());
                }
            }
        }
        self.machine = machine;
        if let Some((job, task)) = begun {
            self.happened(Event::Done { job, outcome: done(&task) });
        }
    }

    fn tell(&self) {
        let mut reported = Reported::clone(&self.state.borrow());
        self.told.tell(self.machine.record(), &mut reported);
        reported.health.problems.clear();
        if self.again.is_some() {
            reported.health.problems.push("the disk takes nothing".to_owned());
        }
        self.state.send_if_modified(|old| {
            let changed = **old != reported;
            if changed {
                *old = Arc::new(reported);
            }
            changed
        });
    }
}

/// Everything but the disk does as it should.
fn done(task: &Task) -> Outcome {
    match task {
        Task::Reserve { .. } => Outcome::Reserved(Ok(())),
        Task::Fetch { .. } => Outcome::Fetched(Ok(())),
        Task::Check => Outcome::Checked(Ok(())),
        Task::Try { .. } => Outcome::Tried(Ok(())),
        Task::Survey { .. } => {
            Outcome::Surveyed(Ok(Survey { before: Baseline::new(), there: Vec::new() }))
        }
        Task::Place { .. } => Outcome::Placed(Ok(())),
        Task::Remove { .. } => Outcome::Removed(Ok(())),
    }
}

/// An operator who follows all nodes.
pub struct Tower {
    pub operator: Operator,
    pub roll: RollCall,
    /// The last numbers of the broker's own topics.
    pub counts: BTreeMap<String, u64>,
    topics: Topics,
}

impl Tower {
    pub async fn new(broker: &Broker) -> Self {
        let operator = Operator::connect(&broker.settings(OPERATOR), "tower").await.unwrap();
        let topics = Topics::new(FLEET).unwrap();
        operator.follow(&topics.of_operators()).await.unwrap();
        operator.follow(&["$SYS/broker/bytes/+".to_owned()]).await.unwrap();
        let roll = RollCall::new(topics.clone());
        Self { operator, roll, counts: BTreeMap::new(), topics }
    }

    pub async fn push(&self, bytes: Vec<u8>) {
        self.operator.publish(&self.topics.desired(&Target::All), bytes.into()).await.unwrap();
    }

    /// Listens until something holds, and says how long that took.
    pub async fn until(
        &mut self,
        what: &str,
        patience: Duration,
        mut holds: impl FnMut(&RollCall) -> bool,
    ) -> Duration {
        let begun = Instant::now();
        while !holds(&self.roll) {
            let rest = patience.saturating_sub(begun.elapsed());
            let Ok(message) = tokio::time::timeout(rest, self.operator.next()).await else {
                panic!("not within {patience:?}: {what}");
            };
            self.hear(&message.unwrap());
            // A thousand messages are looked at together.
            while let Ok(message) =
                tokio::time::timeout(Duration::from_millis(1), self.operator.next()).await
            {
                self.hear(&message.unwrap());
            }
        }
        begun.elapsed()
    }

    /// Listens for a while.
    pub async fn listen(&mut self, time: Duration) {
        let end = Instant::now() + time;
        while let Ok(message) = tokio::time::timeout(
            end.saturating_duration_since(Instant::now()),
            self.operator.next(),
        )
        .await
        {
            self.hear(&message.unwrap());
        }
    }

    fn hear(&mut self, message: &blochd::shell::links::operator::Message) {
        if message.topic.starts_with("$SYS/") {
            let number =
                std::str::from_utf8(&message.payload).ok().and_then(|text| text.parse().ok());
            self.counts.insert(message.topic.clone(), number.unwrap_or(0));
        } else {
            self.roll.hear(&message.topic, &message.payload);
        }
    }

    /// Bytes that the broker received and sent, as it counts them.
    pub fn bytes(&self) -> (u64, u64) {
        let of = |name: &str| self.counts.get(&format!("$SYS/broker/bytes/{name}")).copied();
        (of("received").unwrap_or(0), of("sent").unwrap_or(0))
    }
}

pub fn progress(roll: &RollCall, bundle: &Followed) -> Progress {
    roll.progress(bundle, |_, _| true)
}

pub fn online(roll: &RollCall) -> usize {
    let known =
        |node: &&blochd::fleet::roll_call::Seen| node.online == Some(true) && node.state.is_some();
    roll.nodes().values().filter(known).count()
}
