//! The real program under its own confinement: hostile native code in the place of ONNX Runtime, sound models,
//! vendors' libraries that tell of devices, a kernel that has no landlock.

mod running;
mod standins;

use std::fs;
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use nix::libc;
use running::{Home, model};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};
use serde_json::{Value, json};
use standins::Bench;
use tempfile::TempDir;

fn blochd(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_blochd"));
    running::without_settings(&mut command);
    command.args(arguments);
    command
}

fn words(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn runtime() -> String {
    running::onnx_runtime().display().to_string()
}

/// The first line of standard output.
fn told(output: &Output) -> Value {
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    serde_json::from_str(said.lines().next().unwrap_or_default())
        .unwrap_or_else(|error| panic!("{error}: {said}\n{}", words(output)))
}

/// Whether the kernel can do all of it; says so where it cannot.
fn can_confine() -> bool {
    let path = model("fixtures/mlp_gemm.onnx");
    let trial = ["trial", path.to_str().unwrap(), "--runtime", &runtime()];
    let done = blochd(&trial).args(["--sandbox", "required"]).output().unwrap();
    let can = done.status.success();
    if !can {
        eprintln!("skipped: {}", words(&done));
    }
    can
}

/// What is loaded before anything of the model is looked at, as any library is: it has the process to itself.
const HOSTILE: &str = r#"
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

static void say(const char *what, int ok) {
    fprintf(stderr, "%s: %s\n", what, ok ? "possible" : "denied");
}

__attribute__((constructor)) static void run(void) {
    char path[4096];
    const char *outside = getenv("HOSTILE_OUTSIDE");
    snprintf(path, sizeof path, "%s/secret", outside);
    say("read", open(path, O_RDONLY) >= 0);
    snprintf(path, sizeof path, "%s/new", outside);
    say("write", open(path, O_WRONLY | O_CREAT, 0644) >= 0);
    struct sockaddr_in to = { .sin_family = AF_INET };
    to.sin_port = htons(atoi(getenv("HOSTILE_PORT")));
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int s = socket(AF_INET, SOCK_STREAM, 0);
    say("connect", s >= 0 && connect(s, (struct sockaddr *)&to, sizeof to) == 0);
    pid_t child = fork();
    if (child == 0) _exit(0);
    say("fork", child > 0 && waitpid(child, NULL, 0) == child);
    // The way into another process, tried on this one.
    char from = 7, into = 0;
    struct iovec here = { &into, 1 }, there = { &from, 1 };
    say("look", process_vm_readv(getpid(), &here, 1, &there, 1, 0) == 1);
}
"#;

fn hostile(dir: &Path) -> PathBuf {
    let (source, library) = (dir.join("hostile.c"), dir.join("libonnxruntime.so"));
    fs::write(&source, HOSTILE).unwrap();
    let built = Command::new("cc")
        .args(["-shared", "-fPIC", "-o"])
        .args([&library, &source])
        .output()
        .expect("a C compiler, which Rust links with");
    assert!(built.status.success(), "{}", words(&built));
    library
}

#[test]
fn hostile_code_in_a_trial_reaches_nothing() {
    if !can_confine() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let library = hostile(dir.path());
    let outside = TempDir::new().unwrap();
    fs::write(outside.path().join("secret"), "x").unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    let path = model("fixtures/mlp_gemm.onnx");
    for (sandbox, expected) in [("off", "possible"), ("auto", "denied")] {
        let new = outside.path().join("new");
        let done = blochd(&["trial", path.to_str().unwrap(), "--sandbox", sandbox, "--runtime"])
            .arg(&library)
            .env("HOSTILE_OUTSIDE", outside.path())
            .env("HOSTILE_PORT", &port)
            .output()
            .unwrap();
        let said = words(&done);
        for what in ["read", "write", "connect", "fork", "look"] {
            assert!(said.contains(&format!("{what}: {expected}")), "{sandbox}: {said}");
        }
        assert_eq!(new.exists(), sandbox == "off");
        let _ = fs::remove_file(new);
        // It is no ONNX Runtime either.
        assert_eq!(done.status.code(), Some(69), "{said}");
    }
}

#[test]
fn sound_models_pass_their_trial_confined_and_those_that_reach_out_fail_it() {
    if !can_confine() {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let trial = |path: &Path| {
        blochd(&["trial", path.to_str().unwrap(), "--runtime", &runtime(), "--json"])
            .args(["--sandbox", "required", "--scratch"])
            .arg(scratch.path())
            .output()
            .unwrap()
    };
    for name in ["fixtures/external/model.onnx", "digits_resnet.onnx", "fixtures/dynamic_hw.onnx"] {
        let done = trial(&model(name));
        assert!(done.status.success(), "{name}: {}", words(&done));
        let told = told(&done);
        assert_eq!((&told["event"], &told["seccomp"]), (&json!("confined"), &json!(true)));
        assert!(told["landlock"].as_u64().is_some_and(|abi| abi >= 3), "{told}");
        assert_eq!(told["missing"], json!([]));
        let said = String::from_utf8_lossy(&done.stdout).into_owned();
        assert!(said.lines().last().unwrap().contains("p99_us"), "{name}: {said}");
    }
    for name in ["external_traversal", "external_absolute", "custom_op"] {
        let place = if name == "custom_op" { "fixtures" } else { "fixtures/bad" };
        let done = trial(&model(&format!("{place}/{name}.onnx")));
        assert_eq!(done.status.code(), Some(65), "{name}: {}", words(&done));
    }
    // A link that leads to a model elsewhere is followed, its neighbours there are not.
    let dir = tempfile::tempdir().unwrap();
    let link = dir.path().join("model.onnx");
    std::os::unix::fs::symlink(model("fixtures/mlp_gemm.onnx"), &link).unwrap();
    let done = trial(&link);
    assert!(done.status.success(), "{}", words(&done));
}

#[test]
fn a_ladder_is_built_confined_and_nothing_is_written_elsewhere() {
    if !can_confine() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let place = |name: &str| dir.path().join(name).display().to_string();
    let prune = |name: &str, more: &[&str]| {
        let path = model(name);
        blochd(&["prune", path.to_str().unwrap(), "--runtime", &runtime()])
            .args(["--out", &place("out"), "--state-dir", &place("state"), "--progress", "json"])
            .args(["--samples", "16", "--ratios", "0.9", "--seconds", "0.05", "--floor", "0"])
            .args(["--sandbox", "required"])
            .args(more)
            .output()
            .unwrap()
    };
    let reused = |done: &Output| -> u64 {
        let said = String::from_utf8_lossy(&done.stdout).into_owned();
        let mut lines = said.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let told = lines.rfind(|line| line["event"] == "reused").expect(&said);
        told["latencies"].as_u64().unwrap()
    };
    let done = prune("fixtures/mlp_gemm.onnx", &[]);
    assert!(done.status.success(), "{}", words(&done));
    assert_eq!(told(&done)["event"], "confined");
    let manifest = fs::read_to_string(dir.path().join("out/manifest.json")).unwrap();
    let manifest: Value = serde_json::from_str(&manifest).unwrap();
    assert!(manifest["dense"]["p99_us"].is_f64(), "{manifest}");
    assert!(dir.path().join("state/latencies/table.json").exists(), "{}", words(&done));
    let in_state: Vec<_> = fs::read_dir(dir.path().join("state")).unwrap().flatten().collect();
    assert_eq!(in_state.len(), 1);
    // The next one reads what this one measured.
    let again = prune("fixtures/mlp_gemm.onnx", &[]);
    assert!(again.status.success(), "{}", words(&again));
    assert!(reused(&again) > reused(&done), "{} {}", reused(&again), reused(&done));
    // Samples lie elsewhere, and are read all the same.
    let samples = model("fixtures/inputs/frames_of_48.npz").display().to_string();
    let done = prune("fixtures/inputs/frames_of_48.onnx", &["--calibration", &samples]);
    assert!(done.status.success(), "{}", words(&done));
    let manifest = fs::read_to_string(dir.path().join("out/manifest.json")).unwrap();
    let manifest: Value = serde_json::from_str(&manifest).unwrap();
    assert_eq!(manifest["calibration"]["source"], "file", "{manifest}");
}

/// Makes the program see a kernel without landlock.
fn without_landlock(command: &mut Command) {
    let calls = [libc::SYS_landlock_create_ruleset].map(|call| (call, Vec::new()));
    let absent = SeccompAction::Errno(libc::ENOSYS as u32);
    let arch = std::env::consts::ARCH.try_into().unwrap();
    let filter =
        SeccompFilter::new(calls.into_iter().collect(), SeccompAction::Allow, absent, arch);
    let program: BpfProgram = filter.unwrap().try_into().unwrap();
    let apply =
        move || seccompiler::apply_filter(&program).map_err(|_| std::io::ErrorKind::Other.into());
    // SAFETY: two system calls on a program that was made before the fork.
    unsafe { command.pre_exec(apply) };
}

#[test]
fn a_kernel_without_landlock_is_told_and_refused_only_where_that_is_asked_for() {
    let path = model("fixtures/mlp_gemm.onnx");
    let trial = |sandbox: &str| {
        let mut command = blochd(&["trial", path.to_str().unwrap(), "--runtime", &runtime()]);
        command.args(["--json", "--sandbox", sandbox]);
        without_landlock(&mut command);
        command.output().unwrap()
    };
    let done = trial("auto");
    assert!(done.status.success(), "{}", words(&done));
    let told = told(&done);
    assert_eq!((&told["landlock"], &told["seccomp"]), (&Value::Null, &json!(true)), "{told}");
    assert_eq!(told["missing"], json!(["landlock: this kernel has none"]));
    let refused = trial("required");
    let said = words(&refused);
    // Not the model's fault: 69, as where the runtime is missing.
    assert_eq!(refused.status.code(), Some(69), "{said}");
    assert!(said.contains("sandbox: required") && said.contains("this kernel has none"), "{said}");
}

#[test]
fn the_agent_confines_its_children_and_tells_it() {
    let home = Home::new();
    home.configure("defaults: {ladder: {enabled: false}}");
    home.drop_model(&model("fixtures/external/model.onnx"), "ext/1/model.onnx");
    let beside = home.models().join("ext/1/weights.bin");
    fs::copy(model("fixtures/external/weights.bin"), beside).unwrap();
    let mut agent = home.start_ready();
    agent.eventually("it is served", |agent| agent.serves("ext", 1));
    let sandbox = agent.status()["sandbox"].clone();
    assert_eq!(sandbox["wanted"], "auto");
    if can_confine() {
        let in_force = sandbox["in_force"].as_str().unwrap_or_default();
        assert!(
            in_force.starts_with("landlock ABI ") && in_force.ends_with("seccomp"),
            "{sandbox}"
        );
        assert!(home.log().contains("children are confined: landlock"), "{}", home.log());
    }
    // Taken over while it runs.
    home.configure("sandbox: off\ndefaults: {ladder: {enabled: false}}");
    agent.eventually("it is off", |agent| agent.status()["sandbox"]["wanted"] == "off");
    home.drop_model(&model("fixtures/mlp_gemm.onnx"), "mlp/1/model.onnx");
    agent.eventually("it is served", |agent| agent.serves("mlp", 1));
    assert_eq!(agent.status()["sandbox"]["in_force"], Value::Null);
}

#[test]
fn vendors_libraries_tell_of_their_devices_confined_and_reach_nothing_else() {
    if !can_confine() {
        return;
    }
    let bench = Bench::with(&[("dcmi", ""), ("acl", ""), ("cndev", ""), ("xpuml", "")]);
    let outside = TempDir::new().unwrap();
    let (secret, new) = (outside.path().join("shadow"), outside.path().join("new"));
    fs::write(&secret, "x").unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let (reads, writes) = (secret.display(), new.display());
    bench.play(&format!("cards = 2\nreads = {reads}\nwrites = {writes}\nconnects = {port}\n"));
    for source in ["dcmi", "acl", "cndev", "xpuml"] {
        let probe = |sandbox: &str, expected: &str| {
            let (lines, output) = bench.probe(source, &["--sandbox", sandbox]);
            let said = words(&output);
            for what in ["reads", "writes", "connects"] {
                assert!(said.contains(&format!("{what}: {expected}")), "{source}: {said}");
            }
            assert_eq!(new.exists(), expected == "possible", "{source}");
            let _ = fs::remove_file(&new);
            lines
        };
        let free = probe("off", "possible");
        let confined = probe("required", "denied");
        assert_eq!(
            (&free[0]["event"], &confined[0]["event"]),
            (&json!("library"), &json!("confined"))
        );
        assert_eq!(confined[0]["missing"], json!([]));
        assert_eq!(free[0], confined[1]);
        let devices = &confined[2]["devices"];
        assert_eq!(devices.as_array().unwrap().len(), 2, "{source}");
        assert_eq!(*devices, free[1]["devices"], "{source}");
    }
}

#[test]
fn the_agent_reads_vendors_libraries_confined_unless_they_tell_nothing_so() {
    let bench = Bench::with(&[("dcmi", "")]);
    bench.play("cards = 2\n");
    let home = Home::new();
    let configure = |sandbox: &str| {
        home.configure(&format!(
            "sandbox: {sandbox}\n\
             devices: {{interval: 100ms, ascend: {}, cambricon: none, kunlunxin: none}}",
            bench.path().display()
        ));
    };
    configure("auto");
    let scenario = bench.scenario();
    let mut agent = home.start_with(&[(standins::SCENARIO, scenario.to_str().unwrap())]);
    let ascend = |agent: &running::Agent<'_>| agent.status()["accelerators"]["ascend"].clone();
    agent.eventually("it answers", |agent| ascend(agent)["state"] == "answers");
    if !can_confine() {
        return;
    }
    let sandbox = ascend(&agent)["sandbox"].clone();
    let in_force = sandbox["in_force"].as_str().unwrap_or_default();
    assert!(in_force.starts_with("landlock ABI ") && in_force.ends_with("seccomp"), "{sandbox}");
    assert_eq!((&sandbox["missing"], &sandbox["lifted"]), (&json!([]), &Value::Null));
    assert!(home.log().contains("its library is read by a confined child"), "{}", home.log());
    // From now on it works only with a file that nobody who is confined may open.
    let outside = TempDir::new().unwrap();
    let file = outside.path().join("needed");
    fs::write(&file, "x").unwrap();
    bench.play(&format!("cards = 2\nneeds = {}\n", file.display()));
    // Who insists goes without its devices; another one reads it without, and says so.
    configure("required");
    agent.eventually("it fails", |agent| ascend(agent)["state"] == "degraded");
    assert_eq!(
        ascend(&agent)["trouble"],
        json!({"kind": "failed", "call": "dcmi_init", "code": 1})
    );
    configure("auto");
    agent.eventually("it answers", |agent| {
        let ascend = ascend(agent);
        ascend["state"] == "answers" && ascend["sandbox"]["lifted"] == "dcmi_init failed with 1"
    });
    assert_eq!(ascend(&agent)["sandbox"]["in_force"], Value::Null);
    let said = "its library is read without confinement, since it told nothing so";
    assert!(home.log().contains(said), "{}", home.log());
    configure("off");
    agent.eventually("it is off", |agent| {
        let ascend = ascend(agent);
        ascend["state"] == "answers" && ascend["sandbox"]["lifted"].is_null()
    });
}
