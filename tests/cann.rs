//! The execution provider of ONNX Runtime's CANN build, the real one from its published wheel, against
//! libraries that stand in for Huawei's CANN (`tests/standin/cann.rs`): what is asked of CANN, what is told
//! where it is not there or refuses, and that no compiled model of other weights is ever run. Nothing is
//! computed.

mod running;
mod standins;

use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use nix::fcntl::{Flock, FlockArg};
use running::{Agent, Home, model, parsed, words};
use serde_json::{Value, json};
use standins::Bench;
use tempfile::TempDir;

const FOLDER: &str = "runtime/onnxruntime-cann-1.24.4";

/// A state directory into which `blochd runtime fetch --ep cann` has put the wheel's libraries: once for all
/// test programs and their repetitions.
fn fetched() -> &'static Path {
    static FETCHED: OnceLock<PathBuf> = OnceLock::new();
    FETCHED.get_or_init(|| {
        let state = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cann-state");
        fs::create_dir_all(&state).unwrap();
        let lock = File::create(state.join("lock")).unwrap();
        let _lock = Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, error)| error).unwrap();
        let told = parsed(&runtime(&state, &["fetch", "--ep", "cann", "--json"]), 0);
        assert_eq!(
            (&told["package"], &told["version"]),
            (&json!("onnxruntime-cann"), &json!("1.24.4"))
        );
        state
    })
}

fn library() -> PathBuf {
    fetched().join(FOLDER).join("libonnxruntime.so.1.24.4")
}

fn blochd(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_blochd"));
    running::without_settings(&mut command);
    command.args(arguments).env_remove("ORT_DYLIB_PATH").env_remove("LD_LIBRARY_PATH");
    command
}

fn runtime(state: &Path, arguments: &[&str]) -> Output {
    let mut command = blochd(&["runtime"]);
    command.args(arguments).arg("--state-dir").arg(state).output().unwrap()
}

/// `blochd trial` on CANN as these words ask for it, in a working directory of its own. The stand-ins are
/// there where `bench` is.
fn trial_in(folder: &Path, model: &Path, provider: &str, bench: Option<&Bench>) -> Output {
    let mut command = blochd(&["trial", "--runs", "2", "--json", "--provider", provider]);
    command.arg(model).arg("--runtime").arg(library()).current_dir(folder);
    if let Some(bench) = bench {
        command.env("LD_LIBRARY_PATH", bench.path()).env(standins::SCENARIO, bench.scenario());
    }
    command.output().unwrap()
}

fn trial(model: &Path, provider: &str, bench: Option<&Bench>) -> Output {
    let folder = tempfile::tempdir().unwrap();
    trial_in(folder.path(), model, provider, bench)
}

/// What a trial that must not succeed says.
fn refusal(output: &Output) -> String {
    let (out, err) = words(output);
    assert!(!output.status.success() && out.is_empty(), "{out}\n{err}");
    err
}

/// The provider with a device and options, as a flag has it.
fn cann(device: u32, options: &[(&str, &str)]) -> String {
    let options: serde_json::Map<String, Value> =
        options.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect();
    json!({"cann": {"device_id": device, "options": options}}).to_string()
}

fn digits() -> PathBuf {
    model("digits_resnet.onnx")
}

/// Lines of what CANN was asked that begin with a word.
fn of<'a>(asked: &'a [String], word: &str) -> Vec<&'a str> {
    asked.iter().filter_map(|line| line.strip_prefix(word)).map(str::trim).collect()
}

#[test]
fn the_published_build_is_fetched_whole_and_only_once() {
    let state = fetched();
    let mut names: Vec<String> = fs::read_dir(state.join(FOLDER))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    let expected = [
        "LICENSE",
        "ThirdPartyNotices.txt",
        "libonnxruntime.so.1.24.4",
        "libonnxruntime_providers_cann.so",
        "libonnxruntime_providers_shared.so",
    ];
    assert_eq!(names, expected);
    let again = parsed(&runtime(state, &["fetch", "--ep", "cann", "--json"]), 0);
    assert_eq!(again["already"], true);
    // One library that was tampered with is enough for the wheel to be refused.
    let dir = tempfile::tempdir().unwrap();
    let brought = dir.path().join("brought");
    fs::create_dir(&brought).unwrap();
    for name in &names {
        fs::copy(state.join(FOLDER).join(name), brought.join(name)).unwrap();
    }
    let import = || runtime(dir.path(), &["import", brought.to_str().unwrap(), "--json"]);
    let told = parsed(&import(), 0);
    assert_eq!(told["package"], "onnxruntime-cann");
    let provider = brought.join("libonnxruntime_providers_cann.so");
    let mut bytes = fs::read(&provider).unwrap();
    bytes[100_000] ^= 1;
    fs::write(&provider, bytes).unwrap();
    let (_, err) = words(&import());
    assert!(err.contains("libonnxruntime_providers_cann.so") && err.contains("SHA-256"), "{err}");
    fs::remove_file(brought.join("libonnxruntime_providers_shared.so")).unwrap();
    fs::copy(state.join(FOLDER).join("libonnxruntime_providers_cann.so"), &provider).unwrap();
    let (_, err) = words(&import());
    assert!(err.contains("libonnxruntime_providers_shared.so of onnxruntime-cann"), "{err}");
}

/// A state directory with the newest build for CPUs, and, if asked for, the older one with CANN.
fn installed(with_cann: bool) -> TempDir {
    let state = tempfile::tempdir().unwrap();
    let runtimes = state.path().join("runtime");
    fs::create_dir(&runtimes).unwrap();
    let cpu = running::onnx_runtime().parent().unwrap();
    symlink(cpu, runtimes.join("onnxruntime-1.32.0")).unwrap();
    if with_cann {
        let place = runtimes.join("onnxruntime-cann-1.24.4");
        symlink(fetched().join(FOLDER), place).unwrap();
    }
    state
}

#[test]
fn the_newest_is_taken_and_where_cann_is_wanted_the_newest_that_has_it() {
    let state = installed(true);
    let used = |arguments: &[&str]| {
        let told = parsed(&runtime(state.path(), arguments), 0);
        let mut all = told.as_array().unwrap().iter();
        all.find(|one| one["in_use"] == true).unwrap()["library"].clone()
    };
    let plain = used(&["list", "--json"]);
    assert_ne!(plain["version"], "1.24.4");
    let cann = used(&["list", "--ep", "cann", "--json"]);
    assert_eq!(cann["version"], "1.24.4");
    assert_eq!(cann["providers"][0], "CANNExecutionProvider");
    let (out, _) = words(&runtime(state.path(), &["list"]));
    assert!(out.contains("CANNExecutionProvider, CPUExecutionProvider"), "{out}");
    let located = runtime(state.path(), &["locate", "--wants", "CANNExecutionProvider"]);
    assert_eq!(parsed(&located, 0)["version"], "1.24.4");
    // Where there is none the message has the command that gets one.
    let output = runtime(installed(false).path(), &["list", "--ep", "cann"]);
    let (_, err) = words(&output);
    assert_eq!(output.status.code(), Some(69), "{err}");
    for words in ["built without CANNExecutionProvider", "blochd runtime fetch --ep cann"] {
        assert!(err.contains(words), "{err}");
    }
    // Nor is another taken in the stead of the one that is named.
    let mut command = blochd(&["trial", "--provider", "cann", "--runtime"]);
    let (_, err) = words(&command.arg(running::onnx_runtime()).arg(digits()).output().unwrap());
    assert!(err.contains("built without CANNExecutionProvider; correct it"), "{err}");
}

#[test]
fn a_box_without_cann_is_told_what_to_install_and_nothing_is_run_on_the_cpu_instead() {
    let err = refusal(&trial(&digits(), "cann", None));
    for words in [
        "libascendcl.so: cannot open shared object file",
        "libascendcl.so is a library of CANN: install the CANN toolkit",
        "set_env.sh",
        "LD_LIBRARY_PATH",
    ] {
        assert!(err.contains(words), "{words}: {err}");
    }
    let output = runtime(fetched(), &["check", "cann", "--json"]);
    let told = parsed(&output, 69);
    assert!(told["why"].as_str().unwrap().contains("set_env.sh"), "{told}");
}

#[test]
fn a_model_is_compiled_once_for_its_shapes_with_the_options_that_were_asked_for_and_none_is_kept() {
    let bench = Bench::cann("1,10");
    let folder = tempfile::tempdir().unwrap();
    let provider =
        cann(1, &[("precision_mode", "force_fp16"), ("op_select_impl_mode", "high_precision")]);
    let told = parsed(&trial_in(folder.path(), &digits(), &provider, Some(&bench)), 0);
    assert!(told["p50_us"].as_f64().is_some(), "{told}");
    let engine = told["engine"].as_str().unwrap();
    assert!(engine.contains("CANNExecutionProvider device 1"), "{engine}");
    assert!(engine.contains("onnxruntime 1.24.4"), "{engine}");
    let asked = bench.asked();
    let options = of(&asked, "option ");
    assert!(options.contains(&"ge.exec.precision_mode=force_fp16"), "{asked:?}");
    assert!(options.contains(&"ge.socVersion=Ascend310P3"), "{asked:?}");
    assert_eq!(of(&asked, "build ").len(), 1, "{asked:?}");
    assert!(of(&asked, "build ")[0].ends_with("1,1,28,28"), "{asked:?}");
    // Once to see that it runs, and the timed runs.
    assert!(of(&asked, "execute ").len() >= 3, "{asked:?}");
    assert_eq!((of(&asked, "save ").len(), of(&asked, "load-file ").len()), (0, 0), "{asked:?}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn options_and_devices_that_there_are_not_are_named_with_what_there_is() {
    let bench = Bench::cann("1,10");
    let refused = |provider: &str| refusal(&trial(&digits(), provider, Some(&bench)));
    let err = refused(&cann(0, &[("precision_mode_v2", "fp16")]));
    assert!(err.contains("ONNX Runtime 1.24.4 has no option precision_mode_v2"), "{err}");
    assert!(err.contains("precision_mode (force_fp16"), "{err}");
    let err = refused(&cann(0, &[("npu_mem_limit", "2GiB")]));
    assert!(err.contains("npu_mem_limit is `2GiB`"), "{err}");
    // None of these was put to CANN.
    assert_eq!(bench.asked(), Vec::<String>::new());
    let err = refused(&cann(5, &[]));
    assert!(err.contains("Invalid device ID: 5, must be between 0 (inclusive) and 2"), "{err}");
    assert!(err.contains("ASCEND_RT_VISIBLE_DEVICES"), "{err}");
    bench.play("cards = 0\ndims = 1,10\n");
    let err = refused("cann");
    assert!(err.contains("CANN sees no device") && err.contains("HwHiAiUser"), "{err}");
    bench.play_cann("1,10", "error.aclrtGetDeviceCount = 507899\n");
    let err = refused("cann");
    assert!(err.contains("aclrtGetDeviceCount() failed") && err.contains("HwHiAiUser"), "{err}");
}

#[test]
fn what_cann_fails_at_is_told_with_model_shapes_and_what_to_do() {
    let bench = Bench::cann("1,10");
    let failing = |call: &str, code: i64| {
        bench.play_cann("1,10", &format!("error.{call} = {code}\n"));
        let err = refusal(&trial(&digits(), "cann", Some(&bench)));
        (err, bench.asked())
    };
    let (err, asked) = failing("aclgrphBuildModel", -1);
    for words in ["aclgrphBuildModel", "GRAPH_FAILED", "[1, 1, 28, 28]", "enable_cann_subgraph=1"] {
        assert!(err.contains(words), "{words}: {err}");
    }
    assert!(err.contains("Name:'CANNExecutionProvider_"), "{err}");
    // No other sizes are tried: each would take as long to fail.
    assert_eq!(of(&asked, "build ").len(), 1, "{asked:?}");
    let (err, _) = failing("aclgrphBuildInitialize", -1);
    assert!(err.contains("CANN's compiler does not start"), "{err}");
    // The status does not have the code; the log does.
    let (err, _) = failing("aclmdlLoadFromMem", 507_008);
    assert!(err.contains("code 507008") && err.contains("another SoC"), "{err}");
    let (err, _) = failing("aclmdlExecute", 507_011);
    assert!(err.contains("code 507011") && err.contains("failed on the chip"), "{err}");
    let (err, _) = failing("aclrtSetDevice", 107_001);
    assert!(err.contains("code 107001") && err.contains("device_id"), "{err}");
    let (err, _) = failing("aclrtMalloc", 207_001);
    assert!(err.contains("code 207001") && err.contains("npu_mem_limit"), "{err}");
}

/// The same model with one bit of a weight changed.
fn with_other_weights(path: &Path) -> Vec<u8> {
    let loaded = blochd::shell::models::load(path).unwrap();
    let constants = blochd::onnx::constants(&loaded, 64).unwrap();
    let weight = &constants[0].bytes;
    let mut bytes = fs::read(path).unwrap();
    let at = bytes.windows(weight.len()).position(|window| window == &weight[..]).unwrap();
    bytes[at] ^= 1;
    bytes
}

/// What the provider does by itself, in a process of its own: runs the model at a path and prints its first
/// answer.
#[test]
#[ignore = "a part of another test"]
fn the_provider_by_itself() {
    use ort::ep::CANN;
    use ort::session::builder::SessionBuilder;
    use ort::value::Tensor;
    let path = std::env::var("CANN_TEST_MODEL").unwrap();
    let environment = ort::init_from(library()).unwrap().build().unwrap();
    let builder = SessionBuilder::new(&environment).unwrap();
    let provider = CANN::default().build().error_on_failure();
    let mut builder = builder.with_execution_providers([provider]).unwrap();
    let mut session = builder.commit_from_file(path).unwrap();
    let input = Tensor::from_array(([1usize, 1, 28, 28], vec![0f32; 784])).unwrap();
    let outputs = session.run(ort::inputs![input]).unwrap();
    let (_, answers) = outputs[0].try_extract_tensor::<f32>().unwrap();
    println!("\nANSWER {}", answers[0]);
}

#[test]
fn a_compiled_model_of_other_weights_is_never_run() {
    let bench = Bench::cann("1,10");
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path().join("model.onnx");
    let by_itself = || {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["the_provider_by_itself", "--exact", "--ignored", "--nocapture"]);
        command.env("CANN_TEST_MODEL", &at).current_dir(folder.path());
        command.env("LD_LIBRARY_PATH", bench.path()).env(standins::SCENARIO, bench.scenario());
        let (out, err) = words(&command.output().unwrap());
        let answer = out.lines().find_map(|line| line.strip_prefix("ANSWER "));
        answer.unwrap_or_else(|| panic!("{out}\n{err}")).to_owned()
    };
    bench.play_cann("1,10", "fingerprint = 1\n");
    fs::copy(digits(), &at).unwrap();
    let first = by_itself();
    fs::write(&at, with_other_weights(&digits())).unwrap();
    // The danger is real: left to itself the provider answers with the old model.
    assert_eq!(by_itself(), first);
    let asked = bench.asked();
    bench.play_cann("1,10", "");
    let stale = of(&asked, "load-file ").first().map(|name| (*name).to_owned()).unwrap();
    assert_eq!(of(&asked, "save "), [stale.as_str()]);
    // The program does not even begin where such a file lies …
    let err = refusal(&trial_in(folder.path(), &at, "cann", Some(&bench)));
    assert!(err.contains(&stale) && err.contains("in place of the one"), "{err}");
    assert_eq!(bench.asked(), Vec::<String>::new());
    // … makes none, and compiles what it was given.
    let clean = tempfile::tempdir().unwrap();
    let mut built = Vec::new();
    for bytes in [fs::read(digits()).unwrap(), with_other_weights(&digits())] {
        fs::write(&at, bytes).unwrap();
        parsed(&trial_in(clean.path(), &at, "cann", Some(&bench)), 0);
        let asked = bench.asked();
        let model = of(&asked, "execute ")[0].to_owned();
        assert!(of(&asked, "build ")[0].starts_with(&model), "{asked:?}");
        assert_eq!(of(&asked, "load-file ").len(), 0, "{asked:?}");
        built.push(model);
    }
    assert_ne!(built[0], built[1]);
    assert_eq!(fs::read_dir(clean.path()).unwrap().count(), 0);
}

#[test]
fn a_working_directory_that_everybody_can_write_to_is_refused() {
    let bench = Bench::cann("1,10");
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let err = refusal(&trial_in(folder.path(), &digits(), "cann", Some(&bench)));
    assert!(err.contains("can be written to by everybody"), "{err}");
    assert_eq!(bench.asked(), Vec::<String>::new());
}

/// `blochd runtime check cann` with the stand-ins.
fn check(bench: &Bench, options: &[&str]) -> Output {
    let mut command = blochd(&["runtime", "check", "cann", "--json"]);
    command.args(options).arg("--state-dir").arg(fetched());
    command.env("LD_LIBRARY_PATH", bench.path()).env(standins::SCENARIO, bench.scenario());
    command.output().unwrap()
}

#[test]
fn a_model_of_one_operator_tells_early_what_cann_lacks_and_what_it_computes_wrong() {
    let bench = Bench::cann("1,16");
    let told = parsed(&check(&bench, &["--load-only"]), 0);
    assert!(told["load_ms"].as_f64().is_some() && told["why"].is_null(), "{told}");
    assert_eq!(of(&bench.asked(), "build ").len(), 0);
    // The stand-in computes nothing, which does not go unseen.
    let told = parsed(&check(&bench, &[]), 69);
    assert!(told["why"].as_str().unwrap().contains("the provider computes wrong"), "{told}");
    assert_eq!(of(&bench.asked(), "build ").len(), 1);
    bench.play_cann("1,16", "error.aclgrphBuildModel = -1\n");
    let told = parsed(&check(&bench, &[]), 69);
    assert!(told["why"].as_str().unwrap().contains("enable_cann_subgraph=1"), "{told}");
}

#[test]
fn the_profile_tells_which_runtimes_have_cann_and_whether_it_loads() {
    let bench = Bench::cann("1,10");
    let state = installed(true);
    let profile = |with: bool| {
        let mut command = blochd(&["profile", "--json", "--state-dir"]);
        command.arg(state.path());
        for vendor in ["ASCEND", "CAMBRICON", "KUNLUNXIN"] {
            command.env(format!("BLOCHD_DEVICES__{vendor}"), "none");
        }
        if with {
            command.env("LD_LIBRARY_PATH", bench.path()).env(standins::SCENARIO, bench.scenario());
        }
        let told = parsed(&command.output().unwrap(), 0);
        told["runtimes"].as_array().unwrap().clone()
    };
    let all = profile(false);
    let one = |all: &[Value], version: &str| {
        all.iter().find(|one| one["version"] == version).cloned().unwrap_or_default()
    };
    let cann = one(&all, "1.24.4");
    assert_eq!((&cann["in_use"], &cann["cann"]["loads"]), (&json!(false), &json!(false)));
    assert!(cann["cann"]["why"].as_str().unwrap().contains("set_env.sh"), "{cann}");
    let used: Vec<&Value> = all.iter().filter(|one| one["in_use"] == true).collect();
    assert_eq!((used.len(), &used[0]["cann"]), (1, &Value::Null));
    assert_eq!(one(&profile(true), "1.24.4")["cann"], json!({"loads": true}));
}

#[test]
fn the_agent_serves_on_the_cpu_with_the_older_runtime_of_the_cann_build() {
    let told = parsed(&trial(&digits(), "cpu", None), 0);
    assert!(told["engine"].as_str().unwrap().contains("CPUExecutionProvider / onnxruntime 1.24.4"));
    let home = Home::new();
    home.configure("defaults: {ladder: {enabled: false}}");
    home.drop_model(&digits(), "digits/1/model.onnx");
    let mut agent = home.start_on(&library(), &[]);
    agent.eventually("it serves", |agent| agent.serves("digits", 1));
    let old = agent.infer("digits").unwrap();
    drop(agent);
    let mut agent = home.start();
    agent.eventually("it serves", |agent| agent.serves("digits", 1));
    let new = agent.infer("digits").unwrap();
    let answers = |answer: &Value| -> Vec<f64> {
        let data = answer["outputs"][0]["data"].as_array().unwrap();
        data.iter().map(|value| value.as_f64().unwrap()).collect()
    };
    let (old, new) = (answers(&old), answers(&new));
    assert_eq!(old.len(), 10);
    for (old, new) in old.iter().zip(&new) {
        assert!((old - new).abs() < 1e-3, "{old} and {new}");
    }
}

/// Confined or not, a trial's CANN writes to the folder that goes with the trial, wherever the service's
/// environment says.
#[test]
fn what_cann_writes_in_a_trial_goes_with_the_trial() {
    let bench = Bench::cann("1,10");
    bench.play_cann("1,10", "writes = 1\n");
    let home = Home::new();
    home.configure("defaults: {execution_providers: [cann, cpu], ladder: {enabled: false}}");
    home.drop_model(&digits(), "digits/1/model.onnx");
    let own = home.dir.path().join("ascend");
    fs::create_dir(&own).unwrap();
    let (own_text, libraries) = (own.to_str().unwrap(), bench.path().to_str().unwrap());
    let scenario = bench.scenario();
    let mut agent = home.start_on(
        &library(),
        &[
            ("LD_LIBRARY_PATH", libraries),
            (standins::SCENARIO, scenario.to_str().unwrap()),
            ("ASCEND_WORK_PATH", own_text),
            ("ASCEND_CACHE_PATH", own_text),
            ("HOME", own_text),
        ],
    );
    agent.eventually("it serves", |agent| agent.serves("digits", 1));
    // It would have failed its trial there, and run on the processor.
    let provider = agent.model("digits")["provider"].clone();
    assert_eq!(provider["name"], "cann", "{provider}\n{}", home.log());
    // The agent compiles nothing itself; a trial that wrote there would have left its number.
    let written = fs::read_dir(&own).unwrap().count();
    assert_eq!(written, 0, "a trial wrote outside of its folder");
    let left = fs::read_dir(home.state().join("children")).into_iter().flatten().count();
    assert_eq!(left, 0, "the trial's folder is there still");
}

/// An agent that serves on the stand-ins, unconfined: what its trials ask of CANN stands in the bench's log,
/// too.
fn on_cann<'a>(home: &'a Home, bench: &Bench) -> Agent<'a> {
    home.configure(
        "sandbox: off\ndefaults: {execution_providers: [cann, cpu], ladder: {enabled: false}}",
    );
    let scenario = bench.scenario();
    let environment = [
        ("LD_LIBRARY_PATH", bench.path().to_str().unwrap()),
        (standins::SCENARIO, scenario.to_str().unwrap()),
    ];
    let mut agent = home.start_on(&library(), &environment);
    agent.eventually("it serves", |agent| agent.serves("digits", 1));
    let provider = agent.model("digits")["provider"].clone();
    assert_eq!(provider["name"], "cann", "{provider}\n{}", home.log());
    agent
}

/// How often CANN was asked to compile, to save and to load from a file.
fn counts(asked: &[String]) -> [usize; 3] {
    ["build ", "save ", "load-file "].map(|word| of(asked, word).len())
}

/// The one model that was compiled.
fn built(asked: &[String]) -> String {
    let all = of(asked, "build ");
    assert_eq!(all.len(), 1, "{asked:?}");
    all[0].split(' ').next().unwrap().to_owned()
}

#[test]
fn a_compiled_model_is_kept_for_the_next_start_and_for_no_other_weights() {
    let (bench, home) = (Bench::cann("1,10"), Home::new());
    home.drop_model(&digits(), "digits/1/model.onnx");
    let agent = on_cann(&home, &bench);
    let asked = bench.asked();
    // The trial compiles, and the agent takes it from there.
    assert_eq!(counts(&asked), [1, 1, 1], "{asked:?}");
    let first = built(&asked);
    drop(agent);
    let mut agent = on_cann(&home, &bench);
    agent.infer("digits").unwrap();
    let asked = bench.asked();
    assert_eq!(counts(&asked), [0, 0, 2], "{asked:?}");
    assert!(of(&asked, "execute ").iter().all(|model| *model == first), "{asked:?}");
    // Other weights under the same names, at the same path.
    let digest = agent.model("digits")["digest"].clone();
    let other = home.dir.path().join("other");
    fs::write(&other, with_other_weights(&digits())).unwrap();
    home.drop_model(&other, "digits/1/model.onnx");
    agent.eventually("it is another model", |agent| agent.model("digits")["digest"] != digest);
    let asked = bench.asked();
    let second = built(&asked);
    assert_ne!(second, first);
    agent.infer("digits").unwrap();
    let asked = bench.asked();
    assert!(of(&asked, "execute ").iter().all(|model| *model == second), "{asked:?}");
    // In the agent's own working directory there is nothing left of all that.
    let names = fs::read_dir(home.dir.path()).unwrap().map(|entry| entry.unwrap().file_name());
    let left: Vec<_> = names.filter(|name| name.to_string_lossy().contains(".om")).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_kept_model_that_cann_does_not_take_any_more_is_compiled_anew() {
    let (bench, home) = (Bench::cann("1,10"), Home::new());
    home.drop_model(&digits(), "digits/1/model.onnx");
    drop(on_cann(&home, &bench));
    bench.asked();
    // Another CANN would say so of what an older one made.
    bench.play_cann("1,10", "error.aclmdlLoadFromFile = 145000\n");
    let agent = on_cann(&home, &bench);
    let asked = bench.asked();
    // Once in the trial, and once in the agent, which cannot take the file either.
    assert_eq!(of(&asked, "build ").len(), 2, "{asked:?}");
    agent.infer("digits").unwrap();
}
