//! A real agent, a real broker and the operator's commands: a bundle that is pushed comes into force or is
//! refused, which the operator is told, and what the agent serves is seen from afar.

mod broker;
mod running;

use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use blochd::fleet::Envelope;
use broker::{Broker, FLEET, OPERATOR, PATIENCE, SignIn, secret};
use minisign::KeyPair;
use nix::sys::signal::Signal;
use running::{Agent, Home, model, without_settings, words};
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

/// A box of the fleet with a model, that trusts `signer`.
fn box_1(broker: &Broker, signer: &str) -> Home {
    let home = Home::new();
    fs::write(home.dir.path().join("ops.pub"), signer).unwrap();
    home.drop_model(&model("digits_resnet.onnx"), "digits/1/model.onnx");
    home.configure(&format!(
        "defaults: {{ladder: {{enabled: false}}}}\nfleet:\n  node_id: box-1\n  labels: {{site: berlin}}\n  \
         keys: [ops.pub]\n  inbox: inbox\n  probation: 2s\n  mqtt:\n    url: mqtts://localhost:{}\n    fleet: {FLEET}\n    \
         ca: {}\n    username: box-1\n    password_file: {}",
        broker.port,
        broker.path("ca.pem").display(),
        broker.path("box-1.password").display(),
    ));
    home
}

fn linked(home: &Home) -> Agent<'_> {
    let mut agent = home.start_ready();
    agent.eventually("it is linked", |agent| agent.status()["broker"]["connected"] == true);
    agent.eventually("it serves", |agent| agent.serves("digits", 1));
    agent
}

#[test]
fn of_all_that_a_broker_retains_for_a_box_the_newest_alone_comes_into_force() {
    let broker = Broker::start(SignIn::Passwords, &["box-1"]);
    let signer = KeyPair::generate_unencrypted_keypair().unwrap();
    let home = box_1(&broker, &signer.pk.to_base64());
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
    let signer = KeyPair::generate_unencrypted_keypair().unwrap();
    let home = box_1(&broker, &signer.pk.to_base64());
    let mut agent = linked(&home);
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

/// What a secret may look like where it is told: as it is, and as programs print bytes.
fn forms(secret: &str) -> [String; 4] {
    let bytes = secret.as_bytes();
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let list = format!("{bytes:?}");
    let escaped: String = bytes.iter().map(|byte| format!("\\x{byte:02x}")).collect();
    [secret.to_owned(), hex, list.trim_matches(['[', ']']).to_owned(), escaped]
}

/// All files below a folder as one text.
fn contents(folder: &Path) -> String {
    let mut all = String::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            all.push_str(&contents(&path));
        } else {
            all.push_str(&String::from_utf8_lossy(&fs::read(&path).unwrap_or_default()));
        }
    }
    all
}

/// Everything that an agent tells anybody.
fn told(agent: &Agent<'_>, home: &Home) -> String {
    let config = home.dir.path().join("agent.yaml").display().to_string();
    let blochd = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_blochd"));
        without_settings(&mut command);
        let done = command.args(arguments).output().unwrap();
        let (out, err) = running::words(&done);
        assert!(done.status.success(), "{arguments:?}: {err}");
        out + &err
    };
    let metrics = format!("http://127.0.0.1:{}/metrics", home.metrics);
    let metrics = ureq::get(metrics).call().unwrap().body_mut().read_to_string().unwrap();
    assert!(metrics.contains("blochd_"), "{metrics}");
    let url = home.url("");
    [
        home.log(),
        agent.status().to_string(),
        metrics,
        contents(&home.state()),
        blochd(&["config", "show", "--effective", "--config", &config]),
        blochd(&["config", "show", "--json", "--config", &config]),
        blochd(&["config", "check", "--config", &config]),
        blochd(&["status", "--url", &url]),
        blochd(&["status", "--json", "--url", &url]),
    ]
    .join("\n")
}

#[test]
fn nothing_secret_is_told_by_an_agent_that_a_broker_refuses() {
    let broker = Broker::start(SignIn::Passwords, &["box-1"]);
    let home = Home::new();
    let at = |name: &str| home.dir.path().join("secrets").join(name);
    fs::create_dir(at("")).unwrap();
    let signer = KeyPair::generate_unencrypted_keypair().unwrap();
    fs::write(home.dir.path().join("ops.pub"), signer.pk.to_base64()).unwrap();
    broker.authority.certify(&at(""), "box-1");
    let password = "wr0ng-pass-w0rd-of-a-box";
    fs::write(at("password"), format!("{password}\n")).unwrap();
    // Lines of a key, as its file has them.
    let key = fs::read_to_string(at("box-1.key")).unwrap();
    let of_key: Vec<&str> = key.lines().filter(|line| !line.starts_with('-')).collect();
    assert!(of_key[0].len() > 40, "{key}");
    home.configure(&format!(
        "log_level: trace\ndefaults: {{ladder: {{enabled: false}}}}\nfleet:\n  node_id: box-1\n  \
         keys: [ops.pub]\n  inbox: inbox\n  mqtt:\n    url: mqtts://localhost:{}\n    fleet: {FLEET}\n    \
         ca: {}\n    username: box-1\n    password_file: secrets/password\n    \
         client_certificate: secrets/box-1.pem\n    client_key: secrets/box-1.key",
        broker.port,
        broker.path("ca.pem").display(),
    ));
    let mut agent = home.start_ready();
    let says =
        |agent: &Agent<'_>, words: &str| agent.status()["broker"].to_string().contains(words);
    agent.eventually("it is refused", |agent| says(agent, "does not take this user name"));
    let check = |told: &str, secrets: &[&str]| {
        for form in secrets.iter().flat_map(|secret| forms(secret)) {
            let found = told.find(&form).map(|at| &told[at.saturating_sub(200)..at]);
            assert_eq!(found, None, "a secret stands behind this");
        }
    };
    let all = told(&agent, &home);
    assert!(all.contains("TRACE"), "it tells all that it has to tell");
    // That the search would find something.
    assert!(all.contains("secrets/password") && all.contains("secrets/box-1.key"));
    check(&all, &[&[password][..], &of_key[..]].concat());
    // Files that hold something else than they should are named, and nothing of them told.
    let spoilt = "TWlkbmlnaHQtaW4tdGhlLWdhcmRlbi1vZi1nb29kLWFuZC1ldmls";
    let pem = format!("-----BEGIN PRIVATE KEY-----\n{spoilt}\n-----END PRIVATE KEY-----\n");
    for contents in [spoilt, &pem] {
        drop(agent);
        fs::write(at("box-1.key"), contents).unwrap();
        agent = home.start_ready();
        agent.eventually("it is refused", |agent| says(agent, "secrets/box-1."));
        check(&told(&agent, &home), &[&[password, spoilt][..], &of_key[..]].concat());
    }
}

/// What `blochd fleet status` says of the box: its line, and its state.
fn told_of(broker: &Broker) -> (String, Value) {
    let table = fleet(broker, &["status"]);
    let table = String::from_utf8_lossy(&table.stdout).into_owned();
    let line = table.lines().find(|line| line.starts_with("box-1")).unwrap_or_default().to_owned();
    (line, node(broker, "box-1")["reported"].clone())
}

/// Waits until the box has told the broker something.
fn until_told(broker: &Broker, what: &str, holds: impl Fn(&Value) -> bool) {
    let begun = Instant::now();
    loop {
        let (line, reported) = told_of(broker);
        if holds(&reported) {
            return;
        }
        assert!(begun.elapsed() < PATIENCE, "never: {what}: {line}\n{reported:#}");
    }
}

/// An old bundle that somebody sends is answered; one that the broker still holds is nothing new.
#[test]
fn an_old_revision_that_is_pushed_is_refused_before_the_operators_eyes_and_a_retained_one_is_not_told()
 {
    let broker = Broker::start(SignIn::Passwords, &["box-1"]);
    let signer = KeyPair::generate_unencrypted_keypair().unwrap();
    let home = box_1(&broker, &signer.pk.to_base64());
    let mut agent = linked(&home);
    let push = |revision: u64, to: &str| {
        let bundle = bundle(&home, revision, &signer);
        let pushed = fleet(&broker, &["push", &bundle, "--to", to, "--wait", "120s"]);
        (pushed.status.code(), words(&pushed).0)
    };
    let (code, said) = push(5, "all");
    assert_eq!(code, Some(0), "{said}");
    // Twice, on either way: the second time it lies in the inbox already.
    for to in ["node:box-1", "node:box-1", "all"] {
        let (code, said) = push(4, to);
        assert_eq!(code, Some(1), "{to}: {said}");
        assert!(
            said.contains("box-1 refused it: it has revision 4, and this node has seen 5"),
            "{said}"
        );
        until_told(&broker, "it is refused", |reported| reported["refused"]["revision"] == 4);
        let (line, reported) = told_of(&broker);
        assert!(line.contains("refused 4: it has revision 4"), "{line}");
        assert_eq!(reported["applied"]["revision"], 5);
    }
    // A new one ends that. What is retained of the old one on another topic is found at the next start, and is
    // nobody's mistake.
    let (code, said) = push(6, "all");
    assert_eq!(code, Some(0), "{said}");
    until_told(&broker, "nothing is refused", |reported| reported["refused"].is_null());
    let before = told_of(&broker).1["started"].clone();
    // Seconds are what is told.
    std::thread::sleep(Duration::from_millis(1100));
    agent.signal(Signal::SIGTERM);
    assert!(agent.wait().success());
    drop(agent);
    let mut agent = linked(&home);
    agent.eventually("what is retained was looked at", |agent| {
        let status = agent.status();
        let counts = status["fleet"]["counts"].as_array().cloned().unwrap_or_default();
        let known = counts.iter().any(|one| one["why"] == "applied");
        known && status["broker"]["received"].as_u64() >= Some(2)
    });
    until_told(&broker, "it is back", |reported| reported["started"] != before);
    let (line, reported) = told_of(&broker);
    assert!(reported["refused"].is_null() && !line.contains("refused"), "{line}\n{reported:#}");
}

/// Going back: the content of an earlier bundle comes into force under a new revision, for those who may sign it.
#[test]
fn a_fleet_goes_back_to_an_earlier_bundle_by_a_new_revision() {
    let broker = Broker::start(SignIn::Passwords, &["box-1"]);
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/fleet");
    let home = box_1(&broker, &fs::read_to_string(fixtures.join("alice.pub")).unwrap());
    let key = |name: &str| fixtures.join(name).display().to_string();
    let path = |name: &str| home.dir.path().join(name).display().to_string();
    let sign = |revision: u64| {
        let text = format!(
            "fleet: 1\nrevision: {revision}\nexpires: 2096-01-01T00:00:00Z\nfor: all\nconfig:\n  \
             models: {{digits: {{priority: {revision}}}}}\n"
        );
        let document = path(&format!("{revision}.yaml"));
        fs::write(&document, text).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_blochd"));
        without_settings(&mut command);
        let signed =
            command.args(["fleet", "sign", &document, "--key", &key("alice.key")]).output();
        let signed = signed.unwrap();
        assert!(signed.status.success(), "{:?}", words(&signed));
        path(&format!("{revision}.bundle"))
    };
    let (five, six) = (sign(5), sign(6));
    let back = |more: &[&str]| {
        let output = fleet(&broker, &[&["rollback", &five, "--to", "all"], more].concat());
        (output.status.code(), words(&output).0 + &words(&output).1)
    };
    // Nobody has reported a revision yet: which one is to follow is for the operator to say.
    let seven = path("7.bundle");
    let (code, said) = back(&["--out", &seven]);
    assert_eq!(code, Some(64), "{said}");
    assert!(said.contains("give --revision") && !Path::new(&seven).exists(), "{said}");
    let mut agent = linked(&home);
    for bundle in [&five, &six] {
        let pushed = fleet(&broker, &["push", bundle, "--to", "all", "--wait", "120s"]);
        assert!(pushed.status.success(), "{:?}", words(&pushed));
    }
    let priority = |agent: &Agent<'_>| {
        let mut show = Command::new(env!("CARGO_BIN_EXE_blochd"));
        without_settings(&mut show);
        let file = home.dir.path().join("agent.yaml");
        show.args(["config", "show", "--model", "digits", "--json", "--config"]).arg(file);
        let shown = running::parsed(&show.output().unwrap(), 0);
        let revision = agent.status()["fleet"]["revision"].as_u64();
        (shown["priority"]["value"].as_str().unwrap().to_owned(), revision)
    };
    assert_eq!(priority(&agent), ("6".to_owned(), Some(6)));
    // Without a key it is written for others to sign, and published to nobody.
    let (code, said) = back(&["--out", &path("draft.yaml")]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("revision 7, to be signed"), "{said}");
    let draft = fs::read_to_string(path("draft.yaml")).unwrap();
    assert_eq!(
        draft,
        fs::read_to_string(path("5.yaml")).unwrap().replace("revision: 5", "revision: 7")
    );
    // By somebody whom the box does not trust.
    let wait = ["--wait", "120s"];
    let out = path("mallory.bundle");
    let (code, said) = back(&[&["--key", &key("mallory.key"), "--out", &out], &wait[..]].concat());
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("box-1 refused it") && said.contains("signatures"), "{said}");
    // Under the number of one that was there before.
    let again = ["--revision", "5", "--key", &key("alice.key"), "--out", &path("again.bundle")];
    let (code, said) = back(&[&again, &wait[..]].concat());
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("this node has seen 6"), "{said}");
    // A document is no bundle.
    let text = fleet(&broker, &["rollback", &path("5.yaml"), "--to", "all", "--out", &seven]);
    assert_eq!(text.status.code(), Some(1), "{:?}", words(&text));
    assert!(words(&text).1.contains("nobody signed it"), "{:?}", words(&text));
    assert_eq!(priority(&agent), ("6".to_owned(), Some(6)));
    let (code, said) = back(&[&["--key", &key("alice.key"), "--out", &seven], &wait[..]].concat());
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("revision 7: 1 applied, 0 refused"), "{said}");
    agent.eventually("it is in force for good", |agent| agent.status()["fleet"]["good"] == 7);
    assert_eq!(priority(&agent), ("5".to_owned(), Some(7)));
    let back = fs::read_to_string(&seven).unwrap();
    assert!(back.starts_with(&draft), "{back}");
}
