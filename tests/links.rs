//! The link between a node, a real broker and an operator: what is wanted arrives, whenever a node comes; what
//! a node is is seen; nobody writes for another; and whatever is wrong is told and tried again.

#[path = "broker/mod.rs"]
mod broker;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use blochd::config::{Mqtt, SecretFile};
use blochd::fleet::reported::{Applied, Reported};
use blochd::fleet::roll_call::RollCall;
use blochd::fleet::topics::{Target, Topics};
use blochd::limits;
use blochd::shell::links::LinkError;
use blochd::shell::links::mqtt::{self, Arrived, Ends, LinkState, Node, Shared};
use blochd::shell::links::operator::Operator;
use broker::{Authority, Broker, FLEET, OPERATOR, PATIENCE, SignIn, secret};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

/// A node of the tests: the link, and what is behind it in an agent.
struct Box1 {
    bundles: mpsc::Receiver<Arrived>,
    state: watch::Sender<Arc<Reported>>,
    link: Shared,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

fn labels() -> BTreeMap<String, String> {
    [("site".to_owned(), "berlin".to_owned())].into()
}

fn reported(id: &str) -> Reported {
    Reported { node: id.to_owned(), labels: labels(), ..Reported::default() }
}

fn join(settings: Mqtt, id: &str) -> Box1 {
    let (door, bundles) = mpsc::channel(limits::LINK_BUNDLES);
    let (state, follows) = watch::channel(Arc::new(reported(id)));
    let (link, stop) = (Shared::default(), CancellationToken::new());
    let node = Node::new(FLEET, id, &labels()).unwrap();
    let ends =
        Ends { bundles: door, state: follows, link: link.clone(), stop: stop.clone(), epoch: 7 };
    let task = tokio::spawn(mqtt::run(settings, node, ends));
    Box1 { bundles, state, link, stop, task }
}

impl Box1 {
    async fn bundle(&mut self) -> (String, Vec<u8>) {
        let arrived = tokio::time::timeout(PATIENCE, self.bundles.recv()).await;
        let arrived = arrived.expect("a bundle in time").expect("a link");
        (arrived.topic, arrived.bytes.to_vec())
    }

    async fn until(&self, what: &str, holds: impl Fn(&LinkState) -> bool) -> LinkState {
        let begun = Instant::now();
        loop {
            let state = self.link.get();
            if holds(&state) {
                return state;
            }
            assert!(begun.elapsed() < PATIENCE, "{what}: {state:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

async fn operator(broker: &Broker) -> Operator {
    Operator::connect(&broker.settings(OPERATOR), "operator-1").await.unwrap()
}

/// Follows the fleet until something holds.
async fn watch_until(
    operator: &mut Operator,
    roll: &mut RollCall,
    what: &str,
    holds: impl Fn(&RollCall) -> bool,
) {
    let follow = async {
        while !holds(roll) {
            let message = operator.next().await.unwrap();
            roll.hear(&message.topic, &message.payload);
        }
    };
    tokio::time::timeout(PATIENCE, follow).await.unwrap_or_else(|_| panic!("never: {what}"));
}

fn online(roll: &RollCall, id: &str) -> Option<bool> {
    roll.nodes().get(id).and_then(|node| node.online)
}

fn revision(roll: &RollCall, id: &str) -> Option<u64> {
    let state = roll.nodes().get(id)?.state.as_ref()?;
    Some(state.applied.as_ref()?.revision)
}

fn topic(target: &str) -> String {
    Topics::new(FLEET).unwrap().desired(&target.parse::<Target>().unwrap())
}

/// What was published while a node was away, and while the broker was, is there when it comes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wanted_arrives_whenever_a_node_comes() {
    let mut broker = Broker::start(SignIn::Passwords, &["box-1"]);
    let by = operator(&broker).await;
    // Not text, and of the largest size of a bundle.
    let large: Vec<u8> =
        (0..limits::CONFIG_FILE_BYTES + (32 << 10)).map(|n| (n % 251) as u8).collect();
    for (target, bytes) in [
        ("all", b"for all".to_vec()),
        ("node:box-1", large.clone()),
        ("group:site=berlin", b"for berlin".to_vec()),
        ("group:site=bonn", b"not for here".to_vec()),
        ("node:box-2", b"not for this one".to_vec()),
    ] {
        by.publish(&topic(target), bytes.into()).await.unwrap();
    }
    by.close().await;
    // The broker itself is restarted in the meantime.
    broker.stop();
    broker.up();
    let mut node = join(broker.settings("box-1"), "box-1");
    let mut came = BTreeMap::new();
    for _ in 0..3 {
        let (topic, bytes) = node.bundle().await;
        came.insert(topic, bytes);
    }
    let expected: BTreeMap<String, Vec<u8>> = [
        (topic("all"), b"for all".to_vec()),
        (topic("node:box-1"), large),
        (topic("group:site=berlin"), b"for berlin".to_vec()),
    ]
    .into();
    assert!(came == expected, "{:?}", came.keys());
    // A live push arrives as well, and one that is taken back is none.
    let by = operator(&broker).await;
    by.publish(&topic("all"), b"".as_slice().into()).await.unwrap();
    by.publish(&topic("node:box-1"), b"newer".as_slice().into()).await.unwrap();
    assert_eq!(node.bundle().await, (topic("node:box-1"), b"newer".to_vec()));
    assert!(node.bundles.try_recv().is_err());
    by.close().await;
}

/// Presence and state are seen by those who watch, and by those who come later; an end without a farewell is
/// told by the broker.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_node_is_is_seen_and_its_end_is_told() {
    let broker = Broker::start(SignIn::Passwords, &["box-1"]);
    let node = join(broker.settings("box-1"), "box-1");
    let mut by = operator(&broker).await;
    let topics = Topics::new(FLEET).unwrap();
    let mut roll = RollCall::new(topics.clone());
    by.follow(&topics.of_operators()).await.unwrap();
    watch_until(&mut by, &mut roll, "online", |roll| {
        online(roll, "box-1") == Some(true) && roll.nodes()["box-1"].state.is_some()
    })
    .await;
    assert_eq!(roll.nodes()["box-1"].state, Some(reported("box-1")));
    let mut state = reported("box-1");
    state.applied = Some(Applied { revision: 4, digest: "d".to_owned() });
    node.state.send_replace(Arc::new(state));
    watch_until(&mut by, &mut roll, "applied", |roll| revision(roll, "box-1") == Some(4)).await;
    // Its power is cut.
    node.task.abort();
    watch_until(&mut by, &mut roll, "lost", |roll| online(roll, "box-1") == Some(false)).await;
    // It comes back and ends as it should.
    let node = join(broker.settings("box-1"), "box-1");
    watch_until(&mut by, &mut roll, "back", |roll| online(roll, "box-1") == Some(true)).await;
    node.stop.cancel();
    tokio::time::timeout(PATIENCE, node.task).await.unwrap().unwrap();
    watch_until(&mut by, &mut roll, "ended", |roll| online(roll, "box-1") == Some(false)).await;
    by.close().await;
    // Whoever comes later finds both.
    let mut by = operator(&broker).await;
    let mut roll = RollCall::new(topics.clone());
    by.follow(&topics.of_operators()).await.unwrap();
    watch_until(&mut by, &mut roll, "retained", |roll| {
        online(roll, "box-1") == Some(false) && roll.nodes()["box-1"].state.is_some()
    })
    .await;
    by.close().await;
}

/// The broker goes, by a power cut, and comes back; the node does too, with all that it has to say.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_comes_back_is_found_again() {
    // It is not there at first either.
    let mut broker = Broker::prepare(SignIn::Passwords, &["box-1"]);
    let mut node = join(broker.settings("box-1"), "box-1");
    let lost = node.until("an attempt", |link| link.error.is_some()).await;
    assert!(matches!(lost.error, Some(LinkError::Connection(_))), "{lost:?}");
    broker.up();
    node.until("a connection", |link| link.connected && link.reported == 1).await;
    broker.down();
    node.until("the loss", |link| !link.connected).await;
    // What changes meanwhile is told then.
    let mut state = reported("box-1");
    state.applied = Some(Applied { revision: 9, digest: "d".to_owned() });
    node.state.send_replace(Arc::new(state));
    broker.up();
    node.until("a further connection", |link| link.connected && link.reported == 2).await;
    let mut by = operator(&broker).await;
    let topics = Topics::new(FLEET).unwrap();
    let mut roll = RollCall::new(topics.clone());
    by.follow(&topics.of_operators()).await.unwrap();
    watch_until(&mut by, &mut roll, "the news", |roll| revision(roll, "box-1") == Some(9)).await;
    by.publish(&topic("node:box-1"), b"after that".as_slice().into()).await.unwrap();
    assert_eq!(node.bundle().await.1, b"after that");
    by.close().await;
}

/// The access list of the documentation: a node neither writes nor reads what is another's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_writes_only_what_is_its_own() {
    let broker = Broker::start(SignIn::Passwords, &["box-1", "box-2"]);
    let mut by = operator(&broker).await;
    by.publish(&topic("node:box-2"), b"for the second".as_slice().into()).await.unwrap();
    let topics = Topics::new(FLEET).unwrap();
    let mut roll = RollCall::new(topics.clone());
    by.follow(&topics.of_operators()).await.unwrap();
    // The first signs in as itself and says that it is the second.
    let mut node = join(broker.settings("box-1"), "box-2");
    let told = node.until("the refusal", |link| link.error.is_some()).await;
    let Some(LinkError::NotAllowed(what)) = &told.error else { panic!("{told:?}") };
    assert!(what.contains("box-2"), "{what}");
    let end = node.until("all of it", |link| link.connected).await;
    assert_eq!(end.reported, 0);
    // Nodes push nothing to others.
    let thief = Operator::connect(&broker.settings("box-1"), "thief").await.unwrap();
    for target in ["all", "node:box-1", "node:box-2"] {
        let refused = thief.publish(&topic(target), b"mine".as_slice().into()).await;
        assert!(matches!(refused, Err(LinkError::NotAllowed(_))), "{refused:?}");
    }
    thief.close().await;
    assert!(node.bundles.try_recv().is_err(), "it read what is another's");
    // Both have one client's name; the broker would end the one for the other.
    node.stop.cancel();
    tokio::time::timeout(PATIENCE, node.task).await.unwrap().unwrap();
    // What came in between, if anything, was told before this.
    let second = join(broker.settings("box-2"), "box-2");
    watch_until(&mut by, &mut roll, "the second", |roll| {
        online(roll, "box-2") == Some(true) && roll.nodes()["box-2"].state.is_some()
    })
    .await;
    second.until("its report", |link| link.reported == 1).await;
    assert_eq!((roll.nodes().len(), roll.passed_over), (1, 0));
    by.close().await;
}

/// Certificates instead of passwords.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_signs_in_by_its_certificate() {
    let broker = Broker::start(SignIn::Certificates, &["box-1"]);
    let node = join(broker.settings("box-1"), "box-1");
    node.until("a report", |link| link.connected && link.reported == 1).await;
    // Without one there is no connection; and none by one that another authority made.
    let mut without = broker.settings("box-1");
    (without.client_certificate, without.client_key) = (None, None);
    let other = Authority::new().certify(&broker.path(""), "mallory");
    let mut foreign = broker.settings("box-1");
    (foreign.client_certificate, foreign.client_key) =
        (Some(SecretFile(other.0)), Some(SecretFile(other.1)));
    for wrong in [without, foreign] {
        let refused = Operator::connect(&wrong, "wrong").await.err().expect("no connection");
        assert!(matches!(refused, LinkError::Connection(_)), "{refused:?}");
    }
}

/// What is wrong is said, in words that name the setting and no secret.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_with_a_connection_is_told() {
    let broker = Broker::start(SignIn::Passwords, &["box-1"]);
    let good = broker.settings("box-1");
    Authority::new().write(&broker.path("other.pem"));
    let distrustful = Mqtt { ca: Some(broker.path("other.pem")), ..good.clone() };
    let node = join(distrustful, "box-1");
    let told = node.until("the distrust", |link| link.error.is_some()).await;
    assert!(matches!(told.error, Some(LinkError::NotTrusted(_))), "{told:?}");
    // Another name than the certificate's.
    let mut elsewhere = good.clone();
    elsewhere.url = Some(format!("mqtts://127.0.0.1:{}", broker.port).parse().unwrap());
    let told = Operator::connect(&elsewhere, "x").await.err().unwrap();
    assert!(matches!(told, LinkError::NotTrusted(_)), "{told:?}");
    std::fs::write(broker.path("wrong.password"), "letmein\n").unwrap();
    let wrong =
        Mqtt { password_file: Some(SecretFile(broker.path("wrong.password"))), ..good.clone() };
    let node = join(wrong, "box-1");
    let told = node.until("the refusal", |link| link.error.is_some()).await;
    assert_eq!(told.error, Some(LinkError::Password));
    let all = format!("{told:?} {} {good:?}", node.link.status());
    assert!(!all.contains("letmein") && !all.contains(&secret("box-1")), "{all}");
    let far = Mqtt { url: Some("mqtt://10.255.255.1".parse().unwrap()), ..good.clone() };
    let told = Operator::connect(&far, "x").await.err().unwrap();
    assert!(matches!(told, LinkError::Plaintext(_)), "{told:?}");
    let missing = Mqtt { ca: Some(broker.path("nowhere.pem")), ..good.clone() };
    let told = Operator::connect(&missing, "x").await.err().unwrap();
    assert!(told.to_string().contains("nowhere.pem"), "{told}");
    let no_pem = Mqtt { ca: Some(broker.path("access")), ..good };
    let told = Operator::connect(&no_pem, "x").await.err().unwrap();
    assert!(told.to_string().ends_with("access holds no certificate in PEM"), "{told}");
}

/// A message beyond all bundles costs the link nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_is_too_large_is_not_taken() {
    let broker = Broker::start(SignIn::Passwords, &["box-1"]);
    let by = operator(&broker).await;
    let large = vec![b'x'; 2 * limits::LINK_MESSAGE_BYTES];
    by.publish(&topic("all"), large.into()).await.unwrap();
    by.publish(&topic("node:box-1"), b"small".as_slice().into()).await.unwrap();
    let mut node = join(broker.settings("box-1"), "box-1");
    assert_eq!(node.bundle().await, (topic("node:box-1"), b"small".to_vec()));
    let state = node.until("a report", |link| link.reported == 1).await;
    assert_eq!((state.connections, state.error), (1, None));
    by.close().await;
}
