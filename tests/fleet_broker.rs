//! A real agent, a real broker and the operator's commands: a bundle that is pushed lies in the agent's inbox,
//! byte for byte, and what the agent serves is seen from afar.

mod broker;
mod running;

use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Instant;

use broker::{Broker, FLEET, OPERATOR, PATIENCE, SignIn, secret};
use nix::sys::signal::Signal;
use running::{Home, model, without_settings};
use serde_json::Value;

fn fixture(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/fleet").join(name)
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

#[test]
fn a_pushed_bundle_lies_in_the_inbox_and_the_agent_is_seen_from_afar() {
    let broker = Broker::start(SignIn::Passwords, &["box-1"]);
    let home = Home::new();
    home.drop_model(&model("digits_resnet.onnx"), "digits/1/model.onnx");
    home.configure(&format!(
        "defaults: {{ladder: {{enabled: false}}}}\nfleet:\n  node_id: box-1\n  labels: {{site: berlin}}\n  \
         keys: [{}]\n  inbox: inbox\n  mqtt:\n    url: mqtts://localhost:{}\n    fleet: {FLEET}\n    \
         ca: {}\n    username: box-1\n    password_file: {}",
        fixture("alice.pub").display(),
        broker.port,
        broker.path("ca.pem").display(),
        broker.path("box-1.password").display(),
    ));
    let mut agent = home.start_ready();
    agent.eventually("it is linked", |agent| agent.status()["broker"]["connected"] == true);
    agent.eventually("it serves", |agent| agent.serves("digits", 1));
    // A push to its group.
    let bundle = fixture("document.bundle");
    let text = bundle.display().to_string();
    let pushed = fleet(&broker, &["push", &text, "--to", "group:site=berlin"]);
    assert!(pushed.status.success(), "{}", String::from_utf8_lossy(&pushed.stderr));
    let place = home.dir.path().join("inbox/broker-group-site=berlin.bundle");
    agent.eventually("the bundle", |_| fs::read(&place).is_ok());
    assert_eq!(fs::read(&place).unwrap(), fs::read(&bundle).unwrap());
    // What no node could read is not published.
    let document = fixture("document.yaml").display().to_string();
    let refused = fleet(&broker, &["push", &document, "--to", "all"]);
    assert!(!refused.status.success());
    assert!(String::from_utf8_lossy(&refused.stderr).contains("signed"), "{refused:?}");
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
