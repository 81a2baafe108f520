//! A real agent, a real broker and the operator's commands: a bundle that is pushed comes into force or is refused,
//! which the operator is told, and what the agent serves is seen from afar.

mod broker;
mod running;

use std::fs;
use std::process::{Command, Output};
use std::time::Instant;

use blochd::fleet::Envelope;
use broker::{Broker, FLEET, OPERATOR, PATIENCE, SignIn, secret};
use minisign::KeyPair;
use nix::sys::signal::Signal;
use running::{Home, model, without_settings};
use serde_json::Value;

/// A bundle for all, and beside it its document.
fn bundle(home: &Home, revision: u64, by: &KeyPair) -> String {
    let text = format!(
        "fleet: 1\nrevision: {revision}\nexpires: 2096-01-01T00:00:00Z\nfor: all\nconfig:\n  \
         models: {{digits: {{priority: {revision}}}}}\n"
    );
    let signed = minisign::sign(None, &by.sk, text.as_bytes(), None, None).unwrap();
    let path = home.dir.path().join(format!("{revision}.bundle"));
    fs::write(&path, Envelope::seal(&text, &[&signed.into_string()]).unwrap()).unwrap();
    fs::write(path.with_extension("yaml"), text).unwrap();
    path.display().to_string()
}

/// One of the operator's commands.
fn fleet(broker: &Broker, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_blochd"));
    without_settings(&mut command);
    command
        .arg("fleet")
        .args(arguments)
        .args(["--broker", &format!("mqtts://localhost:{}", broker.port)])
        .args(["--fleet", FLEET, "--username", OPERATOR, "--ca"])
        .arg(broker.path("ca.pem"))
        .arg("--broker-password-file")
        .arg(broker.path("operator.password"));
    command.output().unwrap()
}

fn node(broker: &Broker, id: &str) -> Value {
    let output = fleet(broker, &["status", "--json"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    let nodes = told["nodes"].as_array().unwrap();
    nodes.iter().find(|node| node["node"] == id).cloned().unwrap_or_default()
}

/// A box that belongs to the broker's fleet, and who signs for it.
fn box_of(broker: &Broker) -> (Home, KeyPair) {
    let home = Home::new();
    let signer = KeyPair::generate_unencrypted_keypair().unwrap();
    fs::write(home.dir.path().join("ops.pub"), signer.pk.to_base64()).unwrap();
    home.configure(&format!(
        "defaults: {{ladder: {{enabled: false}}}}\nfleet:\n  node_id: box-1\n  labels: {{site: berlin}}\n  \
         keys: [ops.pub]\n  inbox: inbox\n  probation: 2s\n  mqtt:\n    url: mqtts://localhost:{}\n    fleet: {FLEET}\n    \
         ca: {}\n    username: box-1\n    password_file: {}",
        broker.port,
        broker.path("ca.pem").display(),
        broker.path("box-1.password").display(),
    ));
    (home, signer)
}

#[test]
fn of_all_that_a_broker_retains_for_a_box_the_newest_alone_comes_into_force() {
    let broker = Broker::start(SignIn::Passwords, &["box-1"]);
    let (home, signer) = box_of(&broker);
    for (revision, to) in [(5, "all"), (7, "group:site=berlin"), (6, "node:box-1")] {
        let bundle = bundle(&home, revision, &signer);
        let pushed = fleet(&broker, &["push", &bundle, "--to", to]);
        assert!(pushed.status.success(), "{}", String::from_utf8_lossy(&pushed.stderr));
    }
    let mut agent = home.start_ready();
    agent.eventually("the newest is in force", |agent| agent.status()["fleet"]["good"] == 7);
    let fleet = agent.status()["fleet"].clone();
    let counts = fleet["counts"].as_array().unwrap();
    let count = |what: &str, word: &str| {
        let found = counts.iter().filter(|one| one[what] == word);
        found.filter_map(|one| one["count"].as_u64()).sum::<u64>()
    };
    let ends = [count("outcome", "begun"), count("why", "superseded"), count("outcome", "refused")];
    assert_eq!(ends, [1, 2, 0], "{fleet}\n{}", home.log());
}

#[test]
fn a_pushed_bundle_comes_into_force_and_the_agent_is_seen_from_afar() {
    let broker = Broker::start(SignIn::Passwords, &["box-1"]);
    let (home, signer) = box_of(&broker);
    home.drop_model(&model("digits_resnet.onnx"), "digits/1/model.onnx");
    let mut agent = home.start_ready();
    agent.eventually("it is linked", |agent| agent.status()["broker"]["connected"] == true);
    agent.eventually("it serves", |agent| agent.serves("digits", 1));
    // A push to its group is followed until it is in force for good.
    let bundle = bundle(&home, 5, &signer);
    let pushed = fleet(&broker, &["push", &bundle, "--to", "group:site=berlin", "--wait", "120s"]);
    let said = String::from_utf8_lossy(&pushed.stdout).into_owned();
    assert!(pushed.status.success(), "{said} {}", String::from_utf8_lossy(&pushed.stderr));
    assert!(said.contains("revision 5: 1 applied, 0 refused"), "{said}");
    let place = home.dir.path().join("inbox/broker-group-site=berlin.bundle");
    assert_eq!(fs::read(&place).unwrap(), fs::read(&bundle).unwrap());
    assert_eq!(agent.status()["fleet"]["revision"], 5);
    // One that somebody else signed is refused, and changes nothing.
    let other = KeyPair::generate_unencrypted_keypair().unwrap();
    let foreign = self::bundle(&home, 6, &other);
    let refused = fleet(&broker, &["push", &foreign, "--to", "node:box-1", "--wait", "120s"]);
    let said = String::from_utf8_lossy(&refused.stdout).into_owned();
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(said.contains("box-1 refused it") && said.contains("signatures"), "{said}");
    assert_eq!(agent.status()["fleet"]["revision"], 5);
    // What no node could read is not published.
    let document = home.dir.path().join("6.yaml").display().to_string();
    let refused = fleet(&broker, &["push", &document, "--to", "all"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("nobody signed it"), "{refused:?}");
    // What it is.
    let begun = Instant::now();
    let seen = loop {
        let seen = node(&broker, "box-1");
        if seen["reported"]["models"]["digits"]["version"] == 1 {
            break seen;
        }
        assert!(begun.elapsed() < PATIENCE, "{seen:#}");
    };
    assert_eq!(seen["online"], true);
    assert_eq!(seen["reported"]["models"]["digits"]["variant"], "dense");
    assert_eq!(seen["reported"]["labels"]["site"], "berlin");
    assert_eq!(seen["reported"]["health"]["ready"], true);
    assert!(seen["reported"]["hardware"]["cores"].as_u64().unwrap() > 0);
    let table = fleet(&broker, &["status"]);
    let table = String::from_utf8_lossy(&table.stdout);
    assert!(table.contains("box-1") && table.contains("digits 1: dense"), "{table}");
    // Nothing secret is told.
    let all = format!("{} {} {seen}", agent.status(), home.log());
    assert!(!all.contains(&secret("box-1")), "{all}");
    // A wrong password of the operator's is told.
    fs::write(broker.path("operator.password"), "letmein\n").unwrap();
    let wrong = fleet(&broker, &["status"]);
    let said = String::from_utf8_lossy(&wrong.stderr).into_owned();
    assert_eq!(wrong.status.code(), Some(69), "{said}");
    assert!(said.contains("does not take this user name") && !said.contains("letmein"), "{said}");
    fs::write(broker.path("operator.password"), secret(OPERATOR)).unwrap();
    // It takes its leave.
    agent.signal(Signal::SIGTERM);
    assert!(agent.wait().success());
    assert_eq!(node(&broker, "box-1")["online"], false);
}
