//! Loading and unloading on request, while versions come and go. Real processes, files and HTTP.

mod running;

use nix::sys::signal::Signal;
use running::{Agent, Home, children_of, model};
use serde_json::Value;

const SLOW_TRIALS: &str = "defaults: {ladder: {enabled: false}}\ntrial: {timeout: 3s}";

/// A home whose trials, where they hang, do so for three seconds.
fn home() -> Home {
    let home = Home::new();
    home.configure(SLOW_TRIALS);
    home
}

fn error(body: &Value) -> &str {
    body["error"].as_str().unwrap_or_default()
}

/// State and reason of one version in the repository's index.
fn indexed(home: &Home, name: &str, version: &str) -> Option<(String, String)> {
    let mut answer = ureq::post(home.url("/v2/repository/index")).send_empty().unwrap();
    let lines: Vec<Value> = answer.body_mut().read_json().unwrap();
    let found = lines.iter().find(|line| line["name"] == name && line["version"] == version)?;
    let text = |field: &str| found[field].as_str().unwrap().to_owned();
    Some((text("state"), text("reason")))
}

/// Waits for a trial that hangs: until it ends, nothing else is loaded.
fn hang(home: &Home, agent: &mut Agent<'_>) {
    home.drop_model(&model("fixtures/runaway/hangs.onnx"), "hang/1/model.onnx");
    agent.eventually("its trial runs", |agent| !children_of(agent.pid()).is_empty());
}

#[test]
fn a_load_is_answered_by_the_newest_version() {
    let home = home();
    home.drop_model(&model("fixtures/mlp_gemm.onnx"), "mlp/1/model.onnx");
    home.drop_model(&model("fixtures/bad/truncated.onnx"), "mlp/2/model.onnx");
    let mut agent = home.start_ready();
    agent.eventually("it is refused", |agent| agent.refused("mlp", 2).is_some());
    assert!(agent.serves("mlp", 1));
    let (code, body) = agent.command("mlp", "load");
    assert_eq!(code, 400, "{body}");
    assert!(error(&body).contains("mlp/2/model.onnx"), "{body}");
    assert!(agent.serves("mlp", 1));
    // The other way round: the older one is refused first, and nobody minds.
    assert_eq!(agent.command("mlp", "unload").0, 200);
    home.drop_model(&model("fixtures/bad/truncated.onnx"), "mlp/1/model.onnx");
    home.drop_model(&model("fixtures/mlp_matmul.onnx"), "mlp/2/model.onnx");
    let (code, body) = agent.command("mlp", "load");
    assert_eq!(code, 200, "{body}\n{}", home.log());
    assert!(agent.serves("mlp", 2));
    // A version that is taken away is gone when a load answers.
    home.drop_model(&model("fixtures/mlp_gemm.onnx"), "mlp/1/model.onnx");
    std::fs::remove_dir_all(home.models().join("mlp/2")).unwrap();
    let (code, body) = agent.command("mlp", "load");
    assert_eq!(code, 200, "{body}\n{}", home.log());
    assert!(agent.serves("mlp", 1));
}

#[test]
fn what_is_unloaded_while_it_loads_is_not_served_when_that_ends() {
    let home = home();
    let mut agent = home.start_ready();
    hang(&home, &mut agent);
    home.drop_model(&model("fixtures/mlp_gemm.onnx"), "mlp/1/model.onnx");
    agent.eventually("it is loading", |_| {
        indexed(&home, "mlp", "1").is_some_and(|(state, _)| state == "LOADING")
    });
    let (code, body) = agent.command("mlp", "unload");
    assert_eq!(code, 200, "{body}");
    let shown = indexed(&home, "mlp", "1").unwrap();
    assert_eq!(shown, ("UNAVAILABLE".to_owned(), "unloaded on request".to_owned()));
    agent.eventually("its loading has ended", |_| {
        home.log().contains("what was loaded is wanted no longer")
    });
    assert!(agent.model("mlp").is_null() && agent.infer("mlp").is_err());
    assert_eq!(indexed(&home, "mlp", "1").unwrap(), shown);
    // Once more: it is known, and not loaded.
    let (code, body) = agent.command("mlp", "unload");
    assert_eq!((code, error(&body)), (400, "'mlp' is not loaded"));
    let (code, body) = agent.command("mlp", "load");
    assert_eq!(code, 200, "{body}\n{}", home.log());
    assert!(agent.infer("mlp").is_ok());
}

#[test]
fn the_unloading_of_a_refused_model_says_why_it_is_not_served() {
    let home = home();
    home.drop_model(&model("fixtures/bad/truncated.onnx"), "broken/7/model.onnx");
    let mut agent = home.start_ready();
    agent.eventually("it is refused", |agent| agent.refused("broken", 7).is_some());
    let (code, body) = agent.command("broken", "unload");
    assert_eq!(code, 400, "{body}");
    let words = error(&body);
    assert!(words.contains("version 7 was refused") && words.contains("broken/7/model.onnx"));
    let (code, body) = agent.command("nobody", "unload");
    assert_eq!(code, 404, "{body}");
}

#[test]
fn a_load_that_waits_is_answered_when_the_agent_ends() {
    let home = home();
    home.configure("defaults: {ladder: {enabled: false}}\ntrial: {timeout: 3600s}");
    let mut agent = home.start_ready();
    hang(&home, &mut agent);
    let url = format!("http://127.0.0.1:{}/v2/repository/models/hang/load", home.admin);
    let client = std::thread::spawn(move || {
        let config = ureq::Agent::config_builder().http_status_as_error(false).build();
        let mut answer = ureq::Agent::new_with_config(config).post(url).send_empty().unwrap();
        let code = answer.status().as_u16();
        (code, answer.body_mut().read_json::<Value>().unwrap())
    });
    agent.eventually("it is tried again", |_| home.log().matches("a version arrived").count() == 2);
    agent.signal(Signal::SIGTERM);
    assert_eq!(agent.wait().code(), Some(0), "{}", home.log());
    let (code, body) = client.join().unwrap();
    assert_eq!(code, 503, "{body}");
    assert!(error(&body).contains("shutting down"), "{body}");
    assert!(!home.log().contains("were not done"), "{}", home.log());
}
