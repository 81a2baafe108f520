//! The same configuration for every subcommand: file, environment, flags, and where relative paths start.

mod running;

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use running::{Home, onnx_runtime};
use serde_json::Value;

/// The program in `dir`, without settings of whoever runs the tests.
fn blochd(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_blochd"));
    running::without_settings(&mut command);
    command.current_dir(dir).args(args).stdin(Stdio::null());
    command
}

fn out(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr))
}

#[test]
fn a_relative_path_in_a_file_that_is_named_relatively_starts_from_its_folder_once() {
    let home = Home::new();
    let dir = home.dir.path();
    fs::create_dir(dir.join("configs")).unwrap();
    fs::rename(dir.join("agent.yaml"), dir.join("configs/agent.yaml")).unwrap();
    let runtime = onnx_runtime().to_str().unwrap();
    let run = ["run", "--config", "configs/agent.yaml", "--runtime-library", runtime];
    let mut agent = blochd(dir, &run).stderr(Stdio::null()).spawn().unwrap();
    let there = || dir.join("configs/models").is_dir() && dir.join("configs/state").is_dir();
    for _ in 0..600 {
        if there() || agent.try_wait().unwrap().is_some() {
            break;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    agent.kill().unwrap();
    agent.wait().unwrap();
    assert!(there() && !dir.join("configs/configs").exists());
    // `runtime` keeps its libraries in the same place; a variable starts from where one stands.
    let folder = onnx_runtime().parent().unwrap().to_str().unwrap();
    let import =
        ["runtime", "import", folder, "--allow-unlisted", "--config", "configs/agent.yaml"];
    let output = blochd(dir, &import).output().unwrap();
    assert!(output.status.success(), "{:?}", out(&output));
    assert!(out(&output).0.contains(" configs/state/runtime/"), "{:?}", out(&output));
    let output = blochd(dir, &import).env("BLOCHD_STATE_DIR", "here").output().unwrap();
    assert!(out(&output).0.contains(" here/runtime/"), "{:?}", out(&output));
    let list = ["runtime", "list", "--json", "--config", "configs/agent.yaml"];
    let output = blochd(dir, &list).env_remove("ORT_DYLIB_PATH").output().unwrap();
    let found: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    let used = found.iter().find(|one| one["in_use"] == true).unwrap();
    let path = used["library"]["path"].as_str().unwrap();
    assert!(path.contains("configs/state/runtime/"), "{path}");
}

#[test]
fn the_runtime_that_the_configuration_names_is_the_one_that_is_listed() {
    let home = Home::new();
    let dir = home.dir.path();
    home.configure(&format!("runtime_library: {}", onnx_runtime().display()));
    let list =
        |command: &mut Command| -> Output { command.args(["runtime", "list"]).output().unwrap() };
    let output = list(blochd(dir, &[]).env("BLOCHD_CONFIG", "agent.yaml"));
    assert!(output.status.success(), "{:?}", out(&output));
    let (words, _) = out(&output);
    let used = words.lines().find(|line| line.starts_with('*')).unwrap();
    assert!(used.contains(onnx_runtime().to_str().unwrap()), "{words}");
    let output = list(
        blochd(dir, &[])
            .env("BLOCHD_CONFIG", "agent.yaml")
            .env("BLOCHD_RUNTIME_LIBRARY", "no/such.so"),
    );
    assert_eq!(output.status.code(), Some(69), "{:?}", out(&output));
    assert!(out(&output).1.contains("no/such.so"), "{:?}", out(&output));
    home.write_config("runtime_libary: x\n");
    let output = list(blochd(dir, &[]).env("BLOCHD_CONFIG", "agent.yaml"));
    assert_eq!(output.status.code(), Some(78), "{:?}", out(&output));
}

#[test]
fn status_asks_where_the_configuration_says_that_the_agent_serves() {
    let home = Home::new();
    let _agent = home.start();
    let dir = home.dir.path();
    let status = |command: &mut Command| {
        let output = command.args(["status", "--json"]).output().unwrap();
        assert!(output.status.success(), "{:?}", out(&output));
        let (status, told) = out(&output);
        let status: Value = serde_json::from_str(&status).unwrap();
        assert!(status["config"]["file"].as_str().unwrap().ends_with("agent.yaml"));
        told
    };
    let address = format!("127.0.0.1:{}", home.http);
    let at = |name: &'static str, value: &str| {
        let mut command = blochd(dir, &[]);
        command.env(name, value);
        command
    };
    assert_eq!(status(&mut at("BLOCHD_CONFIG", "agent.yaml")), "");
    assert_eq!(status(&mut at("BLOCHD_HTTP_ADDRESS", &address)), "");
    assert_eq!(status(&mut at("BLOCHD_URL", &format!("http://{address}/"))), "");
    let mut everywhere = at("BLOCHD_HTTP_ADDRESS", &format!("0.0.0.0:{}", home.http));
    assert_eq!(status(everywhere.env("BLOCHD_ALLOW_PLAINTEXT", "true")), "");
    // A file that the agent refuses must not keep one from asking it why.
    home.write_config("nonsense: 1\n");
    let mut command = at("BLOCHD_HTTP_ADDRESS", &address);
    assert!(status(command.env("BLOCHD_CONFIG", "agent.yaml")).contains("nonsense"));
}

#[test]
fn every_value_is_shown_with_the_place_where_it_was_written() {
    let home = Home::new();
    let dir = home.dir.path();
    home.configure("defaults: {budget: 40ms}\nmodels: {ocr: {instances: 2}}");
    fs::create_dir(dir.join("conf.d")).unwrap();
    fs::write(dir.join("conf.d/10.yaml"), "defaults: {budget: 30ms}\n").unwrap();
    fs::create_dir_all(dir.join("models/ocr")).unwrap();
    fs::write(dir.join("models/ocr/policy.yaml"), "queue_length: 9\ninstances: 4\n").unwrap();
    let show = |more: &[&str]| {
        let args = [&["config", "show", "--config", "agent.yaml", "--effective"], more].concat();
        let output = blochd(dir, &args).env("BLOCHD_LOG_LEVEL", "debug").output().unwrap();
        assert!(output.status.success(), "{:?}", out(&output));
        let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
        out(&output).0.lines().map(words).collect::<Vec<String>>()
    };
    let more = Home::MORE;
    let all = show(&[]);
    for expected in [
        "log_level: debug # environment variable BLOCHD_LOG_LEVEL",
        "sandbox: auto # default",
        "defaults.budget: p99: 30ms # conf.d/10.yaml:1:20",
        &format!("models.ocr.instances: 2 # agent.yaml:{}:27", more + 1),
    ] {
        assert!(all.iter().any(|line| line == expected), "{expected}: {all:#?}");
    }
    let model = show(&["--model", "ocr"]);
    for expected in [
        "budget: p99: 30ms # conf.d/10.yaml:1:20",
        "queue_length: 9 # models/ocr/policy.yaml:1:15",
        // Whoever runs the box has the last word.
        &format!("instances: 2 # agent.yaml:{}:27", more + 1),
    ] {
        assert!(model.iter().any(|line| line == expected), "{expected}: {model:#?}");
    }
    let changed = show(&["--changed", "--model", "ocr"]);
    assert_eq!(changed.len(), 3, "{changed:#?}");
    let shown = blochd(dir, &["config", "show", "--config", "agent.yaml", "--json"]).output();
    let shown: Value = serde_json::from_slice(&shown.unwrap().stdout).unwrap();
    assert_eq!(shown["defaults.budget"]["value"], "p99: 30ms");
    assert_eq!(shown["defaults.budget"]["from"]["line"], 1);
    assert_eq!(shown["sandbox"]["from"]["layer"], "default");
}

#[test]
fn a_check_says_all_that_is_wrong_at_once_or_that_nothing_is() {
    let home = Home::new();
    let dir = home.dir.path();
    let check = |more: &[&str]| {
        let args = [&["config", "check", "--config", "agent.yaml"], more].concat();
        blochd(dir, &args).output().unwrap()
    };
    fs::create_dir_all(dir.join("models/ocr")).unwrap();
    fs::write(dir.join("models/ocr/policy.yaml"), "queue_length: 9\n").unwrap();
    let right = check(&[]);
    assert!(right.status.success(), "{:?}", out(&right));
    let (said, _) = out(&right);
    assert!(said.starts_with("agent.yaml is right; policies that are right, too: 1.\n"), "{said}");
    let http = format!("http_address 127.0.0.1:{}", home.http);
    assert!(said.contains(&format!("{http} is open to whoever is on this box, without TLS.\n")));
    assert_eq!(said.lines().count(), 5, "{said}");
    assert_eq!(out(&check(&["--json"])).0, "[]\n");
    // A policy is told with its place, and so is each part.
    fs::write(dir.join("models/ocr/policy.yaml"), "queue_lenght: 9\nbudget: -1ms\n").unwrap();
    let wrong = check(&[]);
    assert_eq!(wrong.status.code(), Some(78), "{:?}", out(&wrong));
    for place in ["models/ocr/policy.yaml:1:1: ", "models/ocr/policy.yaml:2:9: ", "`queue_length`?"]
    {
        assert!(out(&wrong).1.contains(place), "{place}: {:?}", out(&wrong));
    }
    fs::create_dir(dir.join("conf.d")).unwrap();
    fs::write(dir.join("conf.d/10.yaml"), "sandbox: maybe\n").unwrap();
    fs::write(dir.join("conf.d/20.yaml"), "nothing: 1\n").unwrap();
    let wrong = check(&["--json"]);
    assert_eq!(wrong.status.code(), Some(78));
    let told: Value = serde_json::from_slice(&wrong.stdout).unwrap();
    let places: Vec<(&str, u64)> = told
        .as_array()
        .unwrap()
        .iter()
        .map(|one| (one["file"].as_str().unwrap(), one["line"].as_u64().unwrap()))
        .collect();
    assert_eq!(places, [("conf.d/10.yaml", 1), ("conf.d/20.yaml", 1)]);
    // A file that is not there is no configuration.
    fs::remove_file(dir.join("agent.yaml")).unwrap();
    assert_eq!(check(&[]).status.code(), Some(74));
}

#[test]
fn a_file_that_cannot_be_read_and_one_that_is_wrong_end_with_codes_of_their_own() {
    let home = Home::new();
    let dir = home.dir.path();
    let commands: [&[&str]; 4] =
        [&["config", "show"], &["config", "check"], &["runtime", "list"], &["fleet", "node"]];
    let code = |command: &[&str]| {
        let output = blochd(dir, command).env("BLOCHD_CONFIG", "agent.yaml").output().unwrap();
        (output.status.code(), out(&output).1)
    };
    for command in commands {
        home.write_config("nonsense: 1\n");
        let (wrong, words) = code(command);
        assert_eq!(wrong, Some(78), "{command:?}: {words}");
        // A folder in its place is no file: nothing of it can be read, whoever asks.
        fs::remove_file(dir.join("agent.yaml")).unwrap();
        fs::create_dir(dir.join("agent.yaml")).unwrap();
        let (unreadable, words) = code(command);
        assert_eq!(unreadable, Some(74), "{command:?}: {words}");
        assert!(words.contains("agent.yaml"), "{words}");
        fs::remove_dir(dir.join("agent.yaml")).unwrap();
    }
}
