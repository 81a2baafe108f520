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
    assert_eq!(status(&mut at("BLOCHD_HTTP_ADDRESS", &format!("0.0.0.0:{}", home.http))), "");
    // A file that the agent refuses must not keep one from asking it why.
    home.write_config("nonsense: 1\n");
    let mut command = at("BLOCHD_HTTP_ADDRESS", &address);
    assert!(status(command.env("BLOCHD_CONFIG", "agent.yaml")).contains("nonsense"));
}
