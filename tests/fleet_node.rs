//! An agent as a node of a fleet: bundles dropped into its inbox, brought into force, taken back, and cut off
//! at any moment. Real processes, files and models.

mod running;

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use blochd::fleet::Envelope;
use minisign::KeyPair;
use nix::sys::signal::Signal;
use running::{Agent, Home, Load, model};
use serde_json::{Value, json};
use sha2::Digest as _;

/// A fleet of one node and one signer.
struct Fleet {
    home: Home,
    signer: KeyPair,
}

fn digest(bytes: &[u8]) -> String {
    sha2::Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Fleet {
    fn new(probation: &str) -> Self {
        let home = Home::new();
        let signer = KeyPair::generate_unencrypted_keypair().unwrap();
        fs::write(home.dir.path().join("ops.pub"), signer.pk.to_base64()).unwrap();
        home.configure(&format!(
            "defaults: {{ladder: {{enabled: false}}}}\nfleet: {{node_id: box-1, keys: [ops.pub], inbox: inbox, \
             probation: {probation}, labels: {{site: berlin}}}}"
        ));
        fs::create_dir(home.dir.path().join("inbox")).unwrap();
        Self { home, signer }
    }

    fn inbox(&self) -> PathBuf {
        self.home.dir.path().join("inbox")
    }

    /// Puts a file beside the bundles; gives the line of a bundle that makes a model of it.
    fn artifact(&self, file: &Path, name: &str, version: u64) -> String {
        let bytes = fs::read(file).unwrap();
        let to = format!("{name}-{version}.onnx");
        fs::write(self.inbox().join(&to), &bytes).unwrap();
        let (size, sum) = (bytes.len(), digest(&bytes));
        format!(
            "- {{name: {name}, version: {version}, file: {to}, size: {size}, sha256: '{sum}'}}\n"
        )
    }

    fn document(revision: u64, rest: &str) -> String {
        format!("fleet: 1\nrevision: {revision}\nexpires: 2096-01-01T00:00:00Z\nfor: all\n{rest}")
    }

    fn drop_signed(&self, revision: u64, document: &str, by: &KeyPair) {
        let signed = minisign::sign(None, &by.sk, document.as_bytes(), None, None).unwrap();
        let bundle = Envelope::seal(document, &[&signed.into_string()]).unwrap();
        let path = self.inbox().join(format!("{revision}.bundle"));
        fs::write(path.with_extension("new"), bundle).unwrap();
        fs::rename(path.with_extension("new"), path).unwrap();
    }

    fn send(&self, revision: u64, rest: &str) {
        self.drop_signed(revision, &Self::document(revision, rest), &self.signer);
    }
}

fn fleet(agent: &Agent<'_>) -> Value {
    agent.status()["fleet"].clone()
}

fn is_good(agent: &Agent<'_>, revision: u64) -> bool {
    let fleet = fleet(agent);
    fleet["good"] == revision && fleet["step"]["step"] == "idle"
}

fn metric(home: &Home, line: &str) -> bool {
    let url = format!("http://127.0.0.1:{}/metrics", home.metrics);
    let page = ureq::get(&url).call().unwrap().body_mut().read_to_string().unwrap();
    page.lines().any(|found| found == line)
}

#[test]
fn a_bundle_brings_a_model_and_a_configuration_and_stays_over_a_restart() {
    let fleet_of_one = Fleet::new("1s");
    let home = &fleet_of_one.home;
    let line = fleet_of_one.artifact(&model("fixtures/mlp_gemm.onnx"), "mlp", 3);
    let mut agent = home.start_ready();
    assert_eq!(fleet(&agent)["node"], "box-1");
    let rest = format!("config: {{defaults: {{budget: {{p99: 44ms}}}}}}\nmodels:\n{line}");
    fleet_of_one.send(7, &rest);
    agent.eventually("it is in force for good", |agent| is_good(agent, 7));
    assert!(agent.serves("mlp", 3), "{}", home.log());
    assert_eq!(agent.model("mlp")["budget"]["limit_ms"], json!(44.0));
    assert!(agent.infer("mlp").is_ok());
    assert!(metric(home, "blochd_fleet_bundles_total{outcome=\"applied\",why=\"\"} 1"));
    drop(agent);
    let mut agent = home.start_ready();
    agent.eventually("it is served again", |agent| agent.serves("mlp", 3));
    assert_eq!(agent.model("mlp")["budget"]["limit_ms"], json!(44.0));
    assert_eq!(fleet(&agent)["revision"], 7);
    // The file lies in the inbox still: that is nothing wrong.
    agent.eventually("it is known", |agent| fleet(agent)["counts"][0]["why"] == "applied");
    assert_eq!(fleet(&agent)["last_refused"], Value::Null);
    let mut show = std::process::Command::new(env!("CARGO_BIN_EXE_blochd"));
    running::without_settings(&mut show);
    show.args(["config", "show", "--json", "--config"]).arg(home.dir.path().join("agent.yaml"));
    let shown: Value = serde_json::from_slice(&show.output().unwrap().stdout).unwrap();
    let from = &shown["defaults.budget"]["from"];
    assert_eq!((&from["layer"], &from["revision"]), (&json!("fleet"), &json!(7)));
}

#[test]
fn a_refused_bundle_changes_nothing_and_is_counted_and_told() {
    let fleet_of_one = Fleet::new("1s");
    let home = &fleet_of_one.home;
    let line = fleet_of_one.artifact(&model("fixtures/mlp_gemm.onnx"), "mlp", 1);
    let mut agent = home.start_ready();
    fleet_of_one.send(5, &format!("models:\n{line}"));
    agent.eventually("it is in force for good", |agent| is_good(agent, 5));
    let record = fs::read(home.state().join("fleet/record")).unwrap();
    let mallory = KeyPair::generate_unencrypted_keypair().unwrap();
    let rest = "config: {log_level: error}\n";
    fleet_of_one.drop_signed(6, &Fleet::document(6, rest), &mallory);
    fleet_of_one.send(4, rest);
    let other = Fleet::document(9, rest).replace("for: all", "for: {nodes: [box-2]}");
    fleet_of_one.drop_signed(9, &other, &fleet_of_one.signer);
    let told = |agent: &Agent<'_>, why: &str| {
        let counts = fleet(agent)["counts"].as_array().cloned().unwrap_or_default();
        counts.iter().any(|one| one["why"] == why && one["count"] == 1)
    };
    for why in ["signatures", "old_revision", "not_for_this_node"] {
        agent.eventually(why, |agent| told(agent, why));
    }
    assert!(metric(home, "blochd_fleet_bundles_total{outcome=\"refused\",why=\"signatures\"} 1"));
    let refused = &fleet(&agent)["last_refused"];
    assert!(refused["reason"].is_string(), "{refused}");
    assert_eq!(fs::read(home.state().join("fleet/record")).unwrap(), record);
    assert!(agent.serves("mlp", 1) && is_good(&agent, 5));
}

#[test]
fn a_model_that_fails_its_trial_and_one_that_is_gone_on_probation_leave_the_box_as_it_was() {
    let fleet_of_one = Fleet::new("10s");
    let home = &fleet_of_one.home;
    let line = fleet_of_one.artifact(&model("fixtures/mlp_gemm.onnx"), "mlp", 1);
    let mut agent = home.start_ready();
    fleet_of_one.send(1, &format!("models:\n{line}"));
    agent.eventually("it is in force for good", |agent| is_good(agent, 1));
    // No ONNX at all.
    let line = fleet_of_one.artifact(&home.dir.path().join("agent.yaml"), "mlp", 2);
    fleet_of_one.send(2, &format!("config: {{defaults: {{priority: 9}}}}\nmodels:\n{line}"));
    agent.eventually("it is given up", |agent| fleet(agent)["last"]["outcome"] == "abandoned");
    assert!(!home.models().join("mlp/2").exists());
    assert!(agent.serves("mlp", 1) && is_good(&agent, 1));
    // One that goes while it is watched.
    let line = fleet_of_one.artifact(&model("fixtures/mlp_gemm.onnx"), "mlp", 3);
    fleet_of_one.send(3, &format!("config: {{defaults: {{priority: 9}}}}\nmodels:\n{line}"));
    agent.eventually("it is watched", |agent| fleet(agent)["probation_left_s"].is_number());
    assert!(agent.serves("mlp", 3));
    fs::remove_dir_all(home.models().join("mlp/3")).unwrap();
    agent.eventually("the one before is back", |agent| {
        fleet(agent)["last"]["outcome"] == "rolled_back" && agent.serves("mlp", 1)
    });
    assert!(is_good(&agent, 1));
    let reason = fleet(&agent)["last"]["reason"].clone();
    assert!(reason.as_str().unwrap().contains("mlp version 3"), "{reason}");
}

/// What a bundle brought is taken away behind the version that was there before: nobody who asks finds nothing.
#[test]
fn a_model_is_served_without_a_gap_while_its_bundle_is_taken_back() {
    let fleet_of_one = Fleet::new("3s");
    let home = &fleet_of_one.home;
    let line = fleet_of_one.artifact(&model("fixtures/mlp_gemm.onnx"), "mlp", 1);
    let mut agent = home.start_ready();
    fleet_of_one.send(1, &format!("models:\n{line}"));
    agent.eventually("it is in force for good", |agent| is_good(agent, 1));
    let load = Load::start(home.http, "mlp", agent.input("mlp").unwrap());
    let line = fleet_of_one.artifact(&model("fixtures/mlp_gemm.onnx"), "mlp", 2);
    let other = fleet_of_one.artifact(&model("fixtures/residual.onnx"), "other", 1);
    fleet_of_one.send(2, &format!("config: {{defaults: {{priority: 9}}}}\nmodels:\n{line}{other}"));
    agent.eventually("it is watched", |agent| fleet(agent)["probation_left_s"].is_number());
    assert!(agent.serves("mlp", 2));
    // The other model goes: all of the bundle is taken back.
    fs::remove_dir_all(home.models().join("other/1")).unwrap();
    agent.eventually("the one before is back", |agent| {
        fleet(agent)["last"]["outcome"] == "rolled_back" && agent.serves("mlp", 1)
    });
    let (answered, failed) = load.finish();
    assert!(answered > 0 && failed.is_empty(), "{answered}, {failed:?}\n{}", home.log());
    assert!(is_good(&agent, 1) && !home.models().join("mlp/2").exists());
    assert!(agent.model("other").is_null(), "what came with the bundle goes");
}

/// The same where an operator removes a version; and where none of those that are left can be served.
#[test]
fn a_version_that_is_removed_serves_until_another_takes_its_place_or_none_can() {
    let home = Home::new();
    home.configure("defaults: {ladder: {enabled: false}}");
    home.drop_model(&model("fixtures/mlp_gemm.onnx"), "mlp/1/model.onnx");
    home.drop_model(&model("fixtures/mlp_gemm.onnx"), "mlp/2/model.onnx");
    let mut agent = home.start_ready();
    agent.eventually("the newer one serves", |agent| agent.serves("mlp", 2));
    let load = Load::start(home.http, "mlp", agent.input("mlp").unwrap());
    fs::remove_dir_all(home.models().join("mlp/2")).unwrap();
    agent.eventually("the older one serves", |agent| agent.serves("mlp", 1));
    let (answered, failed) = load.finish();
    assert!(answered > 0 && failed.is_empty(), "{answered}, {failed:?}\n{}", home.log());
    // What is left is no model: it is told, and nothing is served whose file is gone.
    home.drop_model(&model("fixtures/bad/truncated.onnx"), "mlp/3/model.onnx");
    agent.eventually("it is refused", |agent| agent.refused("mlp", 3).is_some());
    fs::remove_dir_all(home.models().join("mlp/1")).unwrap();
    agent.eventually("nothing is served", |agent| agent.model("mlp").is_null());
    assert!(agent.refused("mlp", 3).is_some());
    home.drop_model(&model("fixtures/mlp_gemm.onnx"), "mlp/4/model.onnx");
    agent.eventually("the next one serves", |agent| agent.serves("mlp", 4));
}

/// Killed at many moments, the agent finds its way by itself, and a model is served whenever it runs.
#[test]
fn an_agent_that_is_killed_again_and_again_ends_with_the_new_bundle_in_force() {
    let fleet_of_one = Fleet::new("1s");
    let home = &fleet_of_one.home;
    let first = fleet_of_one.artifact(&model("fixtures/mlp_gemm.onnx"), "mlp", 1);
    let mut agent = home.start_ready();
    fleet_of_one.send(1, &format!("models:\n{first}"));
    agent.eventually("the first is in force", |agent| is_good(agent, 1));
    for (revision, delay) in (2..8u64).zip([0, 150, 300, 500, 800, 1300]) {
        let line = fleet_of_one.artifact(&model("fixtures/mlp_gemm.onnx"), "mlp", revision);
        fleet_of_one.send(revision, &format!("models:\n{line}"));
        std::thread::sleep(Duration::from_millis(delay));
        agent.signal(Signal::SIGKILL);
        agent.wait();
        agent = home.start_ready();
        let version = agent.model("mlp")["version"].as_u64();
        assert!(version == Some(revision) || version == Some(revision - 1), "{version:?}");
        agent.eventually("the new one is in force", |agent| is_good(agent, revision));
        assert!(agent.serves("mlp", revision), "{}", home.log());
    }
}

/// A server that breaks off in the middle, and is asked for the rest.
#[test]
fn an_artifact_is_fetched_by_http_and_goes_on_where_it_stopped() {
    let fleet_of_one = Fleet::new("1s");
    let home = &fleet_of_one.home;
    let bytes = fs::read(model("fixtures/mlp_gemm.onnx")).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (size, sum) = (bytes.len(), digest(&bytes));
    let server = std::thread::spawn(move || serve_in_two_parts(&listener, &bytes));
    let mut agent = home.start_ready();
    let line = format!(
        "- {{name: mlp, version: 1, url: 'http://{address}/m', size: {size}, sha256: '{sum}'}}\n"
    );
    fleet_of_one.send(1, &format!("models:\n{line}"));
    agent.eventually("it is in force", |agent| is_good(agent, 1));
    assert!(agent.serves("mlp", 1));
    let asked = server.join().unwrap();
    assert_eq!(asked, [None, Some(format!("bytes={}-", size / 2))]);
}

/// Answers two requests, the first with half of the file only. Gives the ranges that were asked for.
fn serve_in_two_parts(listener: &TcpListener, bytes: &[u8]) -> Vec<Option<String>> {
    let half = bytes.len() / 2;
    let mut asked = Vec::new();
    for part in 0..2 {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = Vec::new();
        let mut byte = [0];
        while !request.ends_with(b"\r\n\r\n") {
            stream.read_exact(&mut byte).unwrap();
            request.push(byte[0]);
        }
        let request = String::from_utf8(request).unwrap().to_lowercase();
        let range =
            request.lines().find_map(|line| line.strip_prefix("range: ")).map(str::to_owned);
        asked.push(range);
        let head = if part == 0 {
            format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", bytes.len())
        } else {
            let (last, all) = (bytes.len() - 1, bytes.len());
            format!(
                "HTTP/1.1 206 Partial Content\r\ncontent-length: {}\r\ncontent-range: bytes {half}-{last}/{all}\r\n\r\n",
                all - half
            )
        };
        stream.write_all(head.as_bytes()).unwrap();
        let body = if part == 0 { &bytes[..half] } else { &bytes[half..] };
        stream.write_all(body).unwrap();
    }
    asked
}
