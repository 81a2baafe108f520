//! The configuration of a running agent: when its file is read again, what is told of it, and what holds at
//! once. Real processes and files.

mod running;

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use nix::sys::signal::Signal;
use running::{Agent, Home, Load, model};
use serde_json::json;

const NO_LADDER: &str = "defaults: {ladder: {enabled: false}}";

fn revision(agent: &Agent<'_>) -> u64 {
    agent.status()["config"]["revision"].as_u64().unwrap()
}

/// Everything but the settle and rescan times, which a test wants to give itself.
fn configure_arrivals(home: &Home, settle: &str, rescan: &str, more: &str) {
    let text = format!(
        "model_dir: models\nstate_dir: state\nhttp_address: 127.0.0.1:{}\ngrpc_address: none\n\
         admin_address: none\nmetrics_address: 127.0.0.1:{}\narrivals: {{settle: {settle}, rescan: {rescan}}}\n{NO_LADDER}\n{more}\n",
        home.http, home.metrics
    );
    home.write_config(&text);
}

/// The agent's log lies beside its configuration here, as that of `blochd run 2> log` in a home directory
/// does: what it writes must not make it read again.
#[test]
fn warnings_are_told_from_the_start_on_and_once() {
    let home = Home::new();
    home.configure(NO_LADDER);
    let mut agent = home.start_with(&[("BLOCHD_MODLE_DIR", "/nowhere"), ("BLOCHD_TEST_X", "1")]);
    let told = |words: &str| home.log().matches(words).count();
    agent.eventually("a misspelt variable is told", |_| told("did you mean `model_dir`?") == 1);
    // A change that waits for the next start, beside one that holds at once.
    for (wanted, level) in [(2, "warn"), (3, "debug"), (4, "info")] {
        home.configure(&format!("{NO_LADDER}\nlog_format: json\nlog_level: {level}"));
        agent.eventually("it is read", |agent| revision(agent) == wanted);
    }
    assert_eq!(told("takes effect at the next start"), 1, "{}", home.log());
    assert_eq!(told("BLOCHD_MODLE_DIR"), 1, "{}", home.log());
    assert_eq!(told("BLOCHD_TEST_X"), 0);
    // Back again, and anew: that is another change.
    home.configure(NO_LADDER);
    agent.eventually("it is read", |agent| revision(agent) == 5);
    home.configure(&format!("{NO_LADDER}\nlog_format: json"));
    agent.eventually("it is read", |agent| revision(agent) == 6);
    assert_eq!(told("takes effect at the next start"), 2, "{}", home.log());
}

#[test]
fn a_file_that_is_written_in_its_place_is_read_when_it_is_whole() {
    let home = Home::new();
    let with = |budget: &str| {
        home.configure(&format!("defaults: {{ladder: {{enabled: false}}, budget: {budget}}}"));
    };
    with("{p99: 40ms}");
    home.drop_model(&model("fixtures/mlp_gemm.onnx"), "mlp/1/model.onnx");
    let mut agent = home.start_ready();
    let budget = |agent: &Agent<'_>| agent.model("mlp")["budget"]["limit_ms"].clone();
    assert_eq!(budget(&agent), json!(40.0));
    let path = home.dir.path().join("agent.yaml");
    let text = fs::read_to_string(&path).unwrap().replace("40ms", "41ms");
    // Empty, which would be a valid configuration, then without its end, which would not.
    let (head, end) = text.split_at(text.find("ms}").unwrap());
    let mut file = fs::File::create(&path).unwrap();
    for piece in [head, end] {
        for _ in 0..10 {
            std::thread::sleep(Duration::from_millis(30));
            assert_eq!(budget(&agent), json!(40.0), "{}", home.log());
        }
        file.write_all(piece.as_bytes()).unwrap();
    }
    drop(file);
    agent.eventually("the new one holds", |agent| budget(agent) == json!(41.0));
    assert_eq!(revision(&agent), 2, "{}", home.log());
}

#[test]
fn parts_beside_the_file_come_over_it_and_are_read_when_they_change() {
    let home = Home::new();
    home.configure("defaults: {ladder: {enabled: false}, budget: 40ms}");
    home.drop_model(&model("fixtures/mlp_gemm.onnx"), "mlp/1/model.onnx");
    let parts = home.dir.path().join("conf.d");
    fs::create_dir(&parts).unwrap();
    fs::write(parts.join("10-fleet.yaml"), "defaults: {budget: 30ms, queue_length: 9}").unwrap();
    let mut agent = home.start_ready();
    let budget = |agent: &Agent<'_>| agent.model("mlp")["budget"]["limit_ms"].clone();
    assert_eq!(budget(&agent), json!(30.0));
    // Written under a name that does not count yet, then put in its place.
    fs::write(parts.join(".20-site.yaml"), "defaults: {budget: 20ms}").unwrap();
    fs::rename(parts.join(".20-site.yaml"), parts.join("20-site.yaml")).unwrap();
    agent.eventually("the last part holds", |agent| budget(agent) == json!(20.0));
    fs::write(parts.join("15-wrong.yaml"), "defaults: {budget: soon}").unwrap();
    agent.eventually("a wrong part is told with its place", |agent| {
        let error = &agent.status()["config"]["error"];
        error.as_str().is_some_and(|error| error.contains("conf.d/15-wrong.yaml:1:20"))
    });
    assert_eq!(budget(&agent), json!(20.0));
    fs::remove_file(parts.join("15-wrong.yaml")).unwrap();
    fs::remove_file(parts.join("20-site.yaml")).unwrap();
    agent.eventually("what is taken away holds no more", |agent| budget(agent) == json!(30.0));
    assert!(agent.status()["config"]["error"].is_null());
}

#[test]
fn nothing_else_in_the_folder_of_the_configuration_is_read() {
    let home = Home::new();
    home.configure(NO_LADDER);
    let mut agent = home.start_ready();
    // A configuration that is refused would show.
    let elsewhere = home.dir.path().join("sub");
    fs::create_dir(&elsewhere).unwrap();
    for _ in 0..3 {
        fs::write(elsewhere.join("agent.yaml"), "nonsense: 1").unwrap();
        fs::write(home.dir.path().join("other.yaml"), "nonsense: 1").unwrap();
    }
    // Through a link, as Kubernetes mounts it.
    let path = home.dir.path().join("agent.yaml");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(elsewhere.join("real.yaml"), &text).unwrap();
    std::os::unix::fs::symlink(elsewhere.join("real.yaml"), path.with_extension("new")).unwrap();
    fs::rename(path.with_extension("new"), &path).unwrap();
    fs::write(elsewhere.join("real.yaml"), format!("{text}\ndrain_timeout: 7s\n")).unwrap();
    agent.eventually("what the link leads to is read", |agent| revision(agent) == 2);
    assert!(agent.status()["config"]["error"].is_null());
    assert!(!home.log().contains("refused"), "{}", home.log());
}

#[test]
fn how_much_is_logged_changes_at_once() {
    let home = Home::new();
    home.configure(&format!("{NO_LADDER}\nlog_level: error"));
    let mut agent = home.start_ready();
    home.drop_model(&model("fixtures/mlp_gemm.onnx"), "mlp/1/model.onnx");
    agent.eventually("it is served", |agent| agent.serves("mlp", 1));
    assert_eq!(home.log(), "");
    home.configure(&format!("{NO_LADDER}\nlog_level: info"));
    agent.eventually("it is read", |agent| revision(agent) == 2);
    home.drop_model(&model("fixtures/mlp_matmul.onnx"), "mlp/2/model.onnx");
    agent.eventually("it is told", |_| home.log().contains("a version arrived"));
    home.configure(&format!("{NO_LADDER}\nlog_level: error"));
    agent.eventually("it is read", |agent| revision(agent) == 3);
    agent.eventually("it is served", |agent| agent.serves("mlp", 2));
    let before = home.log();
    home.drop_model(&model("fixtures/mlp_gemm.onnx"), "mlp/3/model.onnx");
    agent.eventually("it is served", |agent| agent.serves("mlp", 3));
    assert_eq!(home.log(), before);
}

#[test]
fn how_long_the_end_may_take_is_what_holds_when_it_comes() {
    let home = Home::new();
    home.configure(&format!("{NO_LADDER}\ndrain_timeout: 3600s"));
    home.drop_model(&model("fixtures/mlp_gemm.onnx"), "mlp/1/model.onnx");
    let mut agent = home.start_ready();
    home.configure(&format!("{NO_LADDER}\ndrain_timeout: 1s"));
    agent.eventually("it is read", |agent| revision(agent) == 2);
    // A request whose body does not come.
    let mut client = TcpStream::connect(("127.0.0.1", home.http)).unwrap();
    client
        .write_all(
            b"POST /v2/models/mlp/infer HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n\
              Content-Length: 100\r\n\r\n",
        )
        .unwrap();
    // It is being read once the server asks for it.
    let mut asked = [0; 12];
    client.read_exact(&mut asked).unwrap();
    assert_eq!(&asked, b"HTTP/1.1 100");
    agent.signal(Signal::SIGTERM);
    assert_eq!(agent.wait().code(), Some(0), "{}", home.log());
    assert!(home.log().contains("1 connections were not done within 1s"), "{}", home.log());
}

#[test]
fn when_files_count_as_complete_changes_at_once() {
    let home = Home::new();
    configure_arrivals(&home, "1h", "1h", "");
    let mut agent = home.start_ready();
    home.drop_model(&model("fixtures/mlp_gemm.onnx"), "mlp.onnx");
    configure_arrivals(&home, "100ms", "1h", "");
    agent.eventually("it is served", |agent| agent.serves("mlp", 1));
}

#[test]
fn how_often_the_directory_is_read_changes_at_once() {
    let home = Home::new();
    configure_arrivals(&home, "100ms", "1h", "");
    // A file that is written through another name of it outside raises no event in the directory.
    let outside = home.dir.path().join("outside.onnx");
    fs::copy(model("fixtures/mlp_gemm.onnx"), &outside).unwrap();
    fs::hard_link(&outside, home.models().join("mlp.onnx")).unwrap();
    let mut agent = home.start_ready();
    agent.eventually("it is served", |agent| agent.serves("mlp", 1));
    configure_arrivals(&home, "100ms", "1s", "");
    agent.eventually("it is read", |agent| revision(agent) == 2);
    let before = agent.model("mlp")["digest"].clone();
    fs::write(&outside, fs::read(model("fixtures/mlp_matmul.onnx")).unwrap()).unwrap();
    agent.eventually("its new contents are served", |agent| {
        agent.serves("mlp", 1) && agent.model("mlp")["digest"] != before
    });
}

#[test]
fn requests_run_in_batches_where_the_policy_asks_for_it_and_the_model_can() {
    let home = Home::new();
    home.configure("defaults: {ladder: {enabled: false}, max_batch: 4, max_queue_delay: 200ms}");
    home.drop_model(&model("digits_mobile.onnx"), "digits/1/model.onnx");
    // Its state and its rate have no axis of samples in front.
    home.drop_model(&model("fixtures/inputs/voice.onnx"), "voice/1/model.onnx");
    let mut agent = home.start_ready();
    agent.eventually("both are served", |agent| {
        agent.serves("digits", 1) && agent.serves("voice", 1)
    });
    let log = home.log();
    let declined: Vec<&str> =
        log.lines().filter(|line| line.contains("not run in batches")).collect();
    assert!(declined.len() == 1 && declined[0].contains("no free first axis"), "{log}");
    let sizes = |agent: &Agent<'_>| -> Vec<u64> {
        let stats = agent.get("/v2/models/digits/stats").unwrap();
        let batches = stats["model_stats"][0]["batch_stats"].as_array().unwrap().clone();
        batches.iter().map(|batch| batch["batch_size"].as_u64().unwrap()).collect()
    };
    let image = agent.input("digits").unwrap();
    let load = |_| Load::start(home.http, "digits", image.clone());
    let loads: Vec<Load> = (0..4).map(load).collect();
    agent.eventually("a batch is run", |agent| sizes(agent).iter().any(|size| *size > 1));
    for load in loads {
        let (answered, failed) = load.finish();
        assert!(answered > 0 && failed.is_empty(), "{failed:?}");
    }
}
