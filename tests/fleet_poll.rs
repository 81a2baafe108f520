//! An agent that asks a server for bundles, takes models of several files from where they lie, and finds the
//! newest of the bundles that lie in its inbox together. Real processes, certificates and models.

mod broker;
mod depot;
mod running;

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use blochd::fleet::Envelope;
use broker::Authority;
use depot::{Answer, Asked, Server};
use minisign::KeyPair;
use running::{Agent, Home, model};
use serde_json::{Value, json};
use sha2::Digest as _;

/// A box, those who sign its bundles, and who vouches for its servers.
struct Fleet {
    home: Home,
    signer: KeyPair,
}

fn digest(bytes: &[u8]) -> String {
    sha2::Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Where a file is, how large, and its hash, as a bundle says it.
fn content(place: &str, bytes: &[u8]) -> String {
    format!("{place}, size: {}, sha256: '{}'", bytes.len(), digest(bytes))
}

impl Fleet {
    fn new() -> Self {
        let home = Home::new();
        let signer = KeyPair::generate_unencrypted_keypair().unwrap();
        fs::write(home.dir.path().join("ops.pub"), signer.pk.to_base64()).unwrap();
        fs::create_dir(home.dir.path().join("inbox")).unwrap();
        let authority = Authority::new();
        authority.write(&home.dir.path().join("ca.pem"));
        authority.certify(home.dir.path(), "server");
        Self { home, signer }
    }

    fn configure(&self, more: &str) {
        self.configure_with("{ladder: {enabled: false}}", more);
    }

    fn configure_with(&self, defaults: &str, more: &str) {
        self.home.configure(&format!(
            "defaults: {defaults}\nfleet:\n  node_id: box-1\n  labels: {{site: berlin}}\n  \
             keys: [ops.pub]\n  inbox: inbox\n  probation: 1s\n{more}"
        ));
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.dir.path().join(name)
    }

    fn server(&self, answer: impl Fn(&Asked) -> Answer + Send + Sync + 'static) -> Server {
        let (certificate, key) = (self.path("server.pem"), self.path("server.key"));
        Server::start(Some((&certificate, &key)), answer)
    }

    fn bundle(&self, revision: u64, rest: &str) -> String {
        let document = format!(
            "fleet: 1\nrevision: {revision}\nexpires: 2096-01-01T00:00:00Z\nfor: all\n{rest}"
        );
        let signed = minisign::sign(None, &self.signer.sk, document.as_bytes(), None, None);
        Envelope::seal(&document, &[&signed.unwrap().into_string()]).unwrap()
    }

    fn drop_into_inbox(&self, name: &str, bytes: impl AsRef<[u8]>) {
        let path = self.path("inbox").join(name);
        fs::write(path.with_extension("new"), bytes).unwrap();
        fs::rename(path.with_extension("new"), path).unwrap();
    }
}

fn fleet(agent: &Agent<'_>) -> Value {
    agent.status()["fleet"].clone()
}

fn is_good(agent: &Agent<'_>, revision: u64) -> bool {
    let fleet = fleet(agent);
    fleet["good"] == revision && fleet["step"]["step"] == "idle"
}

/// How many bundles came to such an end.
fn count(agent: &Agent<'_>, why: &str) -> u64 {
    let counts = fleet(agent)["counts"].as_array().cloned().unwrap_or_default();
    let found = counts.iter().filter(|one| one["why"] == why || one["outcome"] == why);
    found.filter_map(|one| one["count"].as_u64()).sum()
}

fn said(agent: &Agent<'_>, what: &str, word: &str) -> bool {
    agent.status()["poll"][what].as_str().is_some_and(|text| text.contains(word))
}

/// What a server of bundles has, with a word by which it knows it again.
#[derive(Clone, Default)]
struct Shelf(Arc<Mutex<Option<(String, String)>>>);

impl Shelf {
    fn put(&self, tag: &str, bundle: &str) {
        *self.0.lock().unwrap() = Some((tag.to_owned(), bundle.to_owned()));
    }

    fn answer(&self, asked: &Asked) -> Answer {
        let there = self.0.lock().unwrap().clone();
        let Some((tag, bundle)) = there else { return Answer::status(404) };
        if asked.path != "/berlin/box-1.bundle" {
            return Answer::status(500);
        }
        if asked.header("authorization") != Some("Bearer open-sesame") {
            return Answer::status(401);
        }
        if asked.header("if-none-match") == Some(&tag) {
            return Answer::status(304);
        }
        Answer::bytes(bundle).with("etag", tag)
    }
}

#[test]
fn a_bundle_comes_from_a_server_that_is_trusted_and_is_not_sent_again_until_it_changes() {
    let fleet_of_one = Fleet::new();
    let shelf = Shelf::default();
    let (own, bytes) = (shelf.clone(), fs::read(model("fixtures/mlp_gemm.onnx")).unwrap());
    let sent = bytes.clone();
    let server = fleet_of_one.server(move |asked| match asked.path.as_str() {
        "/mlp.onnx" => Answer::file(asked, &sent),
        _ => own.answer(asked),
    });
    fs::write(fleet_of_one.path("token"), "open-sesame\n").unwrap();
    let right = fs::read(fleet_of_one.path("ca.pem")).unwrap();
    Authority::new().write(&fleet_of_one.path("ca.pem"));
    fleet_of_one.configure(&format!(
        "  poll: {{url: 'https://{}/{{label:site}}/{{node}}.bundle', interval: 1s, ca: ca.pem, \
         token_file: token}}\n  artifacts: {{ca: ca.pem}}\n",
        server.host()
    ));
    let home = &fleet_of_one.home;
    let mut agent = home.start_ready();
    // Nobody whom the box trusts vouches for the server.
    agent.eventually("it is not trusted", |agent| said(agent, "error", "fleet.poll.ca"));
    assert_eq!(server.asked(), []);
    assert_eq!(agent.status()["poll"]["answered"], 0);
    // Certificates are read anew for every question.
    fs::write(fleet_of_one.path("ca.new"), right).unwrap();
    fs::rename(fleet_of_one.path("ca.new"), fleet_of_one.path("ca.pem")).unwrap();
    agent.eventually("there is no bundle yet", |agent| said(agent, "error", "answers 404"));
    let place = content(&format!("url: 'https://{}/mlp.onnx'", server.host()), &bytes);
    let rest = format!("models:\n- {{name: mlp, version: 3, {place}}}\n");
    shelf.put("\"one\"", &fleet_of_one.bundle(1, &rest));
    agent.eventually("the first is in force", |agent| is_good(agent, 1));
    assert!(agent.serves("mlp", 3) && agent.infer("mlp").is_ok());
    // The server is asked whether it is the same, and says so.
    agent.eventually("it is unchanged", |agent| said(agent, "answer", "unchanged"));
    let asked = server.asked();
    assert!(asked.iter().any(|one| one.header("if-none-match") == Some("\"one\"")), "{asked:?}");
    assert_eq!(agent.status()["poll"]["brought"], 1);
    shelf.put("\"two\"", &fleet_of_one.bundle(2, &rest));
    agent.eventually("the second is in force", |agent| is_good(agent, 2));
    let poll = agent.status()["poll"].clone();
    assert_eq!((&poll["brought"], &poll["error"]), (&json!(2), &Value::Null));
    assert!(poll["last_asked"].is_string() && poll["last_answered"].is_string(), "{poll}");
    // What somebody takes out of the inbox comes again.
    let place = fleet_of_one.path("inbox/poll.bundle");
    fs::remove_file(&place).unwrap();
    agent.eventually("it is there again", |_| place.exists());
    // Nothing secret is told.
    let all = format!("{} {}", agent.status(), home.log());
    assert!(!all.contains("open-sesame"), "{all}");
}

#[test]
fn a_model_and_its_weights_from_three_places_are_served_as_one() {
    let fleet_of_one = Fleet::new();
    fleet_of_one.configure("  artifacts: {ca: ca.pem}\n");
    let home = &fleet_of_one.home;
    let bytes = fs::read(model("fixtures/external/model.onnx")).unwrap();
    let weights = fs::read(model("fixtures/external/weights.bin")).unwrap();
    let (sent, kept) = (bytes.clone(), weights.clone());
    let server = fleet_of_one.server(move |asked| Answer::file(asked, &sent));
    let busy = AtomicBool::new(true);
    let registry = Server::start(None, move |asked| match busy.swap(false, Ordering::Relaxed) {
        true => Answer::status(503),
        false => Answer::file(asked, &kept),
    });
    let samples = fs::read(model("digits_calibration.npz")).unwrap();
    fleet_of_one.drop_into_inbox("samples.npz", &samples);
    let version = |version: u64, weights: &[u8]| {
        let model = content(&format!("url: '{}'", server.url("/m")), &bytes);
        let blob = format!("url: 'oci+http://{}/models/ext'", registry.host());
        let (data, samples) = (content(&blob, weights), content("file: samples.npz", &samples));
        format!(
            "models:\n- name: ext\n  version: {version}\n  files:\n  - {{name: weights.bin, {data}}}\n  - \
             {{name: calibration.npz, {samples}}}\n  {}\n",
            model.replace(", ", "\n  ")
        )
    };
    let mut agent = home.start_ready();
    fleet_of_one.drop_into_inbox("1.bundle", fleet_of_one.bundle(1, &version(1, &weights)));
    agent.eventually("it is told why it takes its time", |agent| {
        let delayed = fleet(agent)["delayed"].clone();
        delayed.as_str().is_some_and(|why| why.contains("weights.bin") && why.contains("503"))
    });
    agent.eventually("it is in force", |agent| is_good(agent, 1));
    assert!(agent.serves("ext", 1), "{}", home.log());
    assert_eq!(fleet(&agent)["delayed"], Value::Null);
    agent.infer("ext").unwrap();
    let asked = registry.asked();
    assert_eq!(asked[0].path, format!("/v2/models/ext/blobs/sha256:{}", digest(&weights)));
    let folder = home.models().join("ext/1");
    assert_eq!(fs::read(folder.join("weights.bin")).unwrap(), weights);
    assert_eq!(fs::read(folder.join("calibration.npz")).unwrap(), samples);
    // What was staged is gone, folders too.
    let staged = home.state().join("fleet/artifacts");
    agent.eventually("it is swept", |_| fs::read_dir(&staged).unwrap().count() == 0);
    // Weights that are not what was signed bring nothing.
    let mut other = weights.clone();
    other[0] ^= 1;
    fleet_of_one.drop_into_inbox("2.bundle", fleet_of_one.bundle(2, &version(2, &other)));
    agent.eventually("it is left alone", |agent| fleet(agent)["last"]["outcome"] == "abandoned");
    let reason = fleet(&agent)["last"]["reason"].clone();
    assert!(reason.as_str().unwrap().starts_with("ext version 2, weights.bin: "), "{reason}");
    assert!(agent.serves("ext", 1) && !home.models().join("ext/2").exists());
    // A name that leads out of the version's folder is no name.
    let leads_out = version(3, &weights).replace("name: weights.bin", "name: ../../weights.bin");
    fleet_of_one.drop_into_inbox("3.bundle", fleet_of_one.bundle(3, &leads_out));
    agent.eventually("it is refused", |agent| count(agent, "document") == 1);
    let refused = fleet(&agent)["last_refused"]["reason"].clone();
    assert!(refused.as_str().unwrap().contains("is no plain name"), "{refused}");
}

#[test]
fn samples_that_come_with_a_version_are_those_that_its_ladder_is_made_with() {
    let fleet_of_one = Fleet::new();
    let few = "{quality_floor: 0.2, ladder: {ratios: [0.73]}, calibration: {samples: 16}}";
    fleet_of_one.configure_with(few, "");
    let bytes = fs::read(model("fixtures/vgg_chain.onnx")).unwrap();
    let samples = fs::read(model("digits_calibration.npz")).unwrap();
    fleet_of_one.drop_into_inbox("digits.onnx", &bytes);
    fleet_of_one.drop_into_inbox("digits.npz", &samples);
    let rest = format!(
        "models:\n- {{name: digits, version: 1, {}, files: [{{name: calibration.npz, {}}}]}}\n",
        content("file: digits.onnx", &bytes),
        content("file: digits.npz", &samples)
    );
    fleet_of_one.drop_into_inbox("1.bundle", fleet_of_one.bundle(1, &rest));
    let mut agent = fleet_of_one.home.start_ready();
    agent.eventually("it is in force", |agent| is_good(agent, 1));
    let made_with = |agent: &Agent<'_>| agent.model("digits")["calibration"]["source"].clone();
    agent.once_built("its ladder is made", |agent| made_with(agent).is_string());
    assert_eq!(made_with(&agent), "file");
    assert!(!fleet_of_one.home.models().join("digits/calibration.npz").exists());
}

#[test]
fn of_bundles_that_lie_there_together_the_newest_alone_comes_into_force() {
    let fleet_of_one = Fleet::new();
    fleet_of_one.configure("");
    let home = &fleet_of_one.home;
    for (file, revision) in [("broker-all", 5), ("broker-group-site=berlin", 7), ("broker-node", 6)]
    {
        let rest = format!("config: {{defaults: {{priority: {revision}}}}}\n");
        let bundle = fleet_of_one.bundle(revision, &rest);
        fleet_of_one.drop_into_inbox(&format!("{file}.bundle"), bundle);
    }
    let mut agent = home.start_ready();
    agent.eventually("the newest is in force", |agent| is_good(agent, 7));
    let ends = |agent: &Agent<'_>| {
        let ends = ["begun", "applied", "superseded", "refused"];
        ends.map(|end| count(agent, end))
    };
    assert_eq!(ends(&agent), [1, 1, 2, 0], "{}", fleet(&agent));
    assert_eq!(fleet(&agent)["last_refused"], Value::Null);
    drop(agent);
    // All three lie there still, and nothing is wrong with that.
    let mut agent = home.start_ready();
    agent.eventually("they are passed over", |agent| count(agent, "superseded") == 2);
    agent.eventually("one is in force already", |agent| count(agent, "applied") == 1);
    assert_eq!((count(&agent, "begun"), count(&agent, "refused")), (0, 0));
    assert!(is_good(&agent, 7));
    // One that is sent later, and is older, is refused as ever.
    let late = fleet_of_one.bundle(4, "");
    fleet_of_one.drop_into_inbox("late.bundle", late);
    agent.eventually("it is too old", |agent| count(agent, "old_revision") == 1);
}
