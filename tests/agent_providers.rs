//! Execution providers that cannot be had: a runtime without CANN, libraries that are none, or not the ones
//! that are pinned. `blochd run` in a process of its own, real files, real ONNX Runtime; nothing here
//! computes on anything but the CPU.

mod running;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::Signal;
use running::{Agent, Home, model, without_settings};
use serde_json::Value;
use sha2::{Digest, Sha256};

/// A configuration in which models name `providers`, and `plugins`.
fn configure(home: &Home, providers: &str, plugins: &str) {
    home.configure(&format!(
        "plugins: {plugins}\n\
         defaults: {{execution_providers: {providers}, ladder: {{enabled: false}}}}"
    ));
}

fn sha256(path: &Path) -> String {
    Sha256::digest(fs::read(path).unwrap()).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A library that the linker loads and that offers no execution provider.
fn no_provider(home: &Home) -> PathBuf {
    let path = home.dir.path().join("libnothing.so");
    // The runtime's own stands for any: it exports no factory of providers.
    fs::copy(running::onnx_runtime(), &path).unwrap();
    path
}

/// A file that is no library at all.
fn no_library(home: &Home) -> PathBuf {
    let path = home.dir.path().join("libtext.so");
    fs::write(&path, "not ELF").unwrap();
    path
}

fn plugin(name: &str, library: &Path, sha256: &str) -> String {
    format!("{{{name}: {{library: {}, sha256: '{sha256}'}}}}", library.display())
}

fn drop_digits(home: &Home) {
    home.drop_model(&model("digits_resnet.onnx"), "digits/1/model.onnx");
}

/// Why `provider` does not run the model: the kind of the reason and its words.
fn passed(agent: &Agent<'_>, provider: &str) -> Option<(String, String)> {
    let told = agent.model("digits")["provider"]["passed"].clone();
    let all = told.as_array().cloned().unwrap_or_default();
    let found = all.into_iter().find(|passed| passed["provider"] == provider)?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    Some((text(&found["kind"]), text(&found["why"])))
}

fn runs_on(agent: &Agent<'_>) -> Value {
    agent.model("digits")["provider"]["name"].clone()
}

fn status_table(home: &Home) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_blochd"));
    command.args(["status", "--url"]).arg(format!("http://127.0.0.1:{}", home.http));
    without_settings(&mut command);
    String::from_utf8(command.output().unwrap().stdout).unwrap()
}

/// What is wanted and not there is told everywhere, and serving does without it.
#[test]
fn a_runtime_without_cann_serves_on_the_cpu_and_says_why() {
    let home = Home::new();
    configure(&home, "[cann, cpu]", "{}");
    drop_digits(&home);
    let mut agent = home.start_ready();
    agent.eventually("it serves", |agent| agent.serves("digits", 1));
    assert_eq!(runs_on(&agent), "cpu");
    let (kind, why) = passed(&agent, "cann").unwrap();
    assert_eq!(kind, "not_in_runtime", "{why}");
    agent.infer("digits").unwrap();
    let url = format!("http://127.0.0.1:{}/metrics", home.metrics);
    let page = ureq::get(url).call().unwrap().body_mut().read_to_string().unwrap();
    let labels = r#"{model="digits",version="1",provider="cpu"} 1"#;
    assert!(page.contains(&format!("blochd_provider_info{labels}")), "{page}");
    let labels = r#"{model="digits",version="1",provider="cann",reason="not_in_runtime"} 1"#;
    assert!(page.contains(&format!("blochd_provider_passed_over{labels}")), "{page}");
    let table = status_table(&home);
    let expected = "not on cann: ONNX Runtime was not built with it";
    assert!(table.contains(expected), "{table}");
    agent.signal(Signal::SIGTERM);
    assert!(agent.wait().success(), "{}", home.log());
}

/// `auto` on a box like any other asks for nothing and tells nothing.
#[test]
fn a_box_without_accelerators_says_nothing_of_them() {
    let home = Home::new();
    configure(&home, "[auto]", "{}");
    drop_digits(&home);
    let mut agent = home.start_ready();
    agent.eventually("it serves", |agent| agent.serves("digits", 1));
    let provider = agent.model("digits")["provider"].clone();
    assert_eq!((&provider["name"], &provider["passed"]), (&"cpu".into(), &Value::Array(vec![])));
}

#[test]
fn a_plugin_that_is_another_file_than_the_pinned_one_is_not_loaded_and_the_cpu_serves() {
    let home = Home::new();
    let library = no_provider(&home);
    configure(&home, "[npu, cpu]", &plugin("npu", &library, &"0".repeat(64)));
    drop_digits(&home);
    let mut agent = home.start_ready();
    agent.eventually("it serves", |agent| agent.serves("digits", 1));
    let (kind, why) = passed(&agent, "npu").unwrap();
    assert_eq!((kind.as_str(), runs_on(&agent)), ("failed", "cpu".into()));
    assert!(why.contains("not the library that is pinned"), "{why}");
    assert!(agent.status()["quarantine"].as_array().unwrap().is_empty(), "nothing is its fault");
}

/// Neither of them is a provider. The first failure is remembered: the next start does not try again what
/// failed, and somebody who asks for the model has it tried again.
#[test]
fn libraries_without_a_provider_are_passed_over_each_with_its_reason_and_remembered() {
    let home = Home::new();
    let (nothing, text) = (no_provider(&home), no_library(&home));
    let both = format!(
        "{{a: {{library: {}, sha256: {}}}, b: {{library: {}, sha256: {}}}}}",
        nothing.display(),
        sha256(&nothing),
        text.display(),
        sha256(&text)
    );
    configure(&home, "[auto]", &both);
    drop_digits(&home);
    let mut agent = home.start_ready();
    agent.eventually("it serves", |agent| agent.serves("digits", 1));
    for name in ["a", "b"] {
        let (kind, why) = passed(&agent, name).unwrap();
        assert_eq!(kind, "failed", "{name}: {why}");
        let file = if name == "a" { "libnothing.so" } else { "libtext.so" };
        assert!(why.contains(file), "{name}: {why}");
    }
    assert_eq!(runs_on(&agent), "cpu");
    agent.infer("digits").unwrap();
    agent.signal(Signal::SIGTERM);
    assert!(agent.wait().success(), "{}", home.log());
    drop(agent);
    let mut agent = home.start_ready();
    agent.eventually("it serves", |agent| agent.serves("digits", 1));
    assert_eq!(passed(&agent, "a").unwrap().0, "failed_before");
    assert_eq!(agent.command("digits", "load").0, 200);
    assert_eq!(passed(&agent, "a").unwrap().0, "failed", "it was tried again");
}

/// A list without the CPU means that: the model is not served, its file is not to blame, and other words in the
/// configuration are taken up while the agent runs.
#[test]
fn a_model_that_may_not_run_on_the_cpu_is_refused_until_the_configuration_lets_it() {
    let home = Home::new();
    configure(&home, "[cann]", "{}");
    drop_digits(&home);
    let mut agent = home.start();
    agent.eventually("it is refused", |agent| agent.refused("digits", 1).is_some());
    let why = agent.refused("digits", 1).unwrap();
    assert!(why.contains("no execution provider of [cann] can run it: cann:"), "{why}");
    assert!(agent.status()["quarantine"].as_array().unwrap().is_empty());
    assert!(agent.infer("digits").is_err());
    configure(&home, "[cann, cpu]", "{}");
    agent.eventually("it serves", |agent| agent.serves("digits", 1));
    assert_eq!(runs_on(&agent), "cpu");
}

/// A change of what is wanted loads a served model again, under its clients.
#[test]
fn a_served_model_is_loaded_again_where_the_configuration_wants_other_providers() {
    let home = Home::new();
    configure(&home, "[cpu]", "{}");
    drop_digits(&home);
    let mut agent = home.start_ready();
    agent.eventually("it serves", |agent| agent.serves("digits", 1));
    let library = no_library(&home);
    let load = running::Load::start(home.http, "digits", agent.input("digits").unwrap());
    configure(&home, "[npu, cpu]", &plugin("npu", &library, &sha256(&library)));
    agent.eventually("it was tried on the plugin", |agent| passed(agent, "npu").is_some());
    let (answered, failed) = load.finish();
    assert!(answered > 0 && failed.is_empty(), "{answered}: {failed:?}");
    assert_eq!(runs_on(&agent), "cpu");
}
