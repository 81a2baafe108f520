//! What bad input gets: the table of the documentation, row by row, on the real program.

mod running;

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use blochd::shell::engine::{Search, library};
use nix::sys::signal::Signal;
use running::{Agent, Home, model};
use serde_json::{Value, json};
use tempfile::TempDir;

const NO_LADDER: &str = "defaults: {ladder: {enabled: false}}";

fn blochd(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_blochd"));
    running::without_settings(&mut command);
    command.args(arguments).output().unwrap()
}

fn words(output: &Output) -> String {
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!words.contains("panicked"), "{words}");
    words
}

/// The files of a folder of the test data.
fn files(folder: &str) -> Vec<PathBuf> {
    let all = fs::read_dir(model(folder)).unwrap().map(|entry| entry.unwrap().path());
    let mut all: Vec<PathBuf> = all.filter(|p| p.extension() == Some("onnx".as_ref())).collect();
    all.sort();
    assert!(all.len() > 10);
    all
}

fn name(path: &Path) -> &str {
    path.file_stem().unwrap().to_str().unwrap()
}

struct Commands {
    dir: TempDir,
    runtime: String,
}

impl Commands {
    fn new() -> Self {
        let runtime = running::onnx_runtime().display().to_string();
        Self { dir: tempfile::tempdir().unwrap(), runtime }
    }

    fn out(&self) -> PathBuf {
        self.dir.path().join("out")
    }

    fn run(&self, command: &str, model: &Path, more: &[&str]) -> Output {
        let state = self.dir.path().join("state").display().to_string();
        let mut arguments = vec![command, model.to_str().unwrap(), "--runtime", &self.runtime];
        arguments.extend(["--state-dir", &state]);
        arguments.extend(more);
        blochd(&arguments)
    }

    fn prune(&self, model: &Path) -> Output {
        let out = self.out().display().to_string();
        let quick = ["--samples", "16", "--ratios", "0.75", "--seconds", "0.05"];
        self.run("prune", model, &[&["--out", &out, "--json"], &quick[..]].concat())
    }
}

#[test]
fn every_command_refuses_a_bad_model_in_one_line_that_names_it() {
    let commands = Commands::new();
    // Sound as files: a runtime refuses them, and spectra need none.
    let for_the_runtime = ["opset_999"];
    let broken_bytes = ["not_onnx", "truncated", "length_lie"];
    for path in files("fixtures/bad") {
        let name = name(&path);
        for command in ["analyze", "trial", "prune"] {
            let done = match command {
                "prune" => commands.prune(&path),
                _ => commands.run(command, &path, &[]),
            };
            let words = words(&done);
            if command == "analyze" && for_the_runtime.contains(&name) {
                assert_eq!(done.status.code(), Some(0), "{words}");
                continue;
            }
            assert_eq!(done.status.code(), Some(65), "{command} {name}: {words}");
            assert_eq!(words.lines().count(), 1, "{command} {name}: {words}");
            assert!(words.contains(path.to_str().unwrap()), "{command} {name}: {words}");
            if broken_bytes.contains(&name) {
                assert!(words.contains("offset"), "{command} {name}: {words}");
            }
        }
    }
    assert!(!commands.out().join("manifest.json").exists());
}

#[test]
fn every_sound_model_is_analysed_and_pruned_or_the_reason_is_told() {
    let commands = Commands::new();
    for path in files("fixtures") {
        let name = name(&path);
        let done = commands.run("analyze", &path, &[]);
        assert_eq!(done.status.code(), Some(0), "{name}: {}", words(&done));
        let done = commands.prune(&path);
        let words = words(&done);
        if name == "custom_op" {
            // Nobody here can run it.
            assert_eq!(done.status.code(), Some(65), "{words}");
            assert!(words.contains("custom_op.onnx") && words.contains("SpinNetwork"), "{words}");
            continue;
        }
        assert_eq!(done.status.code(), Some(0), "{name}: {words}");
        let manifest: Value = serde_json::from_slice(&done.stdout).unwrap();
        let rungs = manifest["rungs"].as_array().unwrap();
        let not_built = manifest["not_built"].as_array().unwrap();
        assert_eq!(rungs.len() + not_built.len(), 1, "{name}");
        for rung in rungs {
            let file = commands.out().join(rung["file"].as_str().unwrap());
            let tried = commands.run("trial", &file, &[]);
            assert_eq!(tried.status.code(), Some(0), "{name}: {}", self::words(&tried));
        }
        for missed in not_built {
            assert!(missed["because"].as_str().unwrap().len() > 10, "{name}: {missed}");
        }
    }
}

#[test]
fn wrong_importances_are_refused_by_name() {
    let commands = Commands::new();
    let dense = model("fixtures/vgg_chain.onnx");
    let list = commands.dir.path().join("groups.json");
    let done = commands.run("prune", &dense, &["--groups", list.to_str().unwrap()]);
    assert!(done.status.success(), "{}", words(&done));
    let listed: Value = serde_json::from_str(&fs::read_to_string(&list).unwrap()).unwrap();
    let (name, width) = (&listed[0]["name"], listed[0]["width"].as_u64().unwrap());
    let given = commands.dir.path().join("scores.json");
    let out = commands.out().display().to_string();
    let prune = |method: &str, scores: &Path| {
        let more = ["--out", &out, "--scores", scores.to_str().unwrap(), "--method", method];
        commands.run("prune", &dense, &more)
    };
    let numbers = vec!["0.5"; width as usize].join(",");
    for (text, code, problem) in [
        ("{".to_owned(), 65, "EOF"),
        (r#"{"x": {"importance": [1e999]}}"#.to_owned(), 65, "out of range"),
        (r#"{"x": {"weights": [1]}}"#.to_owned(), 65, "unknown field"),
        (r#"{"no such": {"importance": [1]}}"#.to_owned(), 65, "no group \"no such\""),
        (format!(r#"{{{name}: {{"importance": [1]}}}}"#), 65, "1 numbers are given"),
        (format!(r#"{{{name}: {{"importance": [{numbers}], "into": [1]}}}}"#), 65, "\"into\""),
    ] {
        fs::write(&given, &text).unwrap();
        let done = prune("scores", &given);
        let words = words(&done);
        assert_eq!(done.status.code(), Some(code), "{text}: {words}");
        assert!(words.contains(problem) && words.contains("scores.json"), "{text}: {words}");
    }
    let nowhere = prune("scores", Path::new("/no/such.json"));
    assert_eq!(nowhere.status.code(), Some(74), "{}", words(&nowhere));
    let other = prune("magnitude", &given);
    assert_eq!(other.status.code(), Some(78), "{}", words(&other));
    let without = commands.run("prune", &dense, &["--out", &out, "--method", "scores"]);
    assert_eq!(without.status.code(), Some(2), "{}", words(&without));
}

#[test]
fn wrong_samples_are_refused_by_name() {
    let commands = Commands::new();
    let dense = model("digits_mobile.onnx");
    let garbage = commands.dir.path().join("x.npz");
    fs::write(&garbage, "not an archive").unwrap();
    let garbage = garbage.to_str().unwrap();
    let out = commands.out().display().to_string();
    let samples = model("digits_calibration.npz").display().to_string();
    let nowhere = "/no/such.npz";
    let cases: [(&str, &Path, &[&str], i32, &str); 6] = [
        ("prune", &dense, &["--out", &out, "--calibration", garbage], 65, garbage),
        ("prune", &dense, &["--out", &out, "--eval", garbage], 65, garbage),
        ("analyze", &dense, &["--calibration", garbage], 65, garbage),
        ("analyze", &dense, &["--calibration", nowhere], 74, nowhere),
        ("trial", &dense, &["--inputs", garbage], 65, garbage),
        ("trial", &dense, &["--inputs", nowhere], 74, nowhere),
    ];
    for (command, model, more, code, place) in cases {
        let done = commands.run(command, model, more);
        let words = words(&done);
        assert_eq!(done.status.code(), Some(code), "{command} {more:?}: {words}");
        assert!(words.contains(place), "{command} {more:?}: {words}");
    }
    // Samples of another type than the model's input.
    let arrays =
        commands.run("trial", &model("fixtures/f16_throughout.onnx"), &["--inputs", &samples]);
    assert_eq!(arrays.status.code(), Some(65));
    assert!(words(&arrays).contains("array \"input\" is F32"), "{}", words(&arrays));
}

#[test]
fn absurd_input_sizes_are_told_and_allocate_nothing() {
    let commands = Commands::new();
    let absurd = model("fixtures/inputs/absurd.onnx");
    let done = commands.prune(&absurd);
    assert_eq!(done.status.code(), Some(65), "{}", words(&done));
    assert!(words(&done).contains("too large to be made up"), "{}", words(&done));
    // It can be loaded and served; how long it takes is not known.
    for json in [&[][..], &["--json"]] {
        let done = commands.run("trial", &absurd, json);
        assert_eq!(done.status.code(), Some(0), "{}", words(&done));
        let told = String::from_utf8_lossy(&done.stdout);
        let expected = if json.is_empty() { "latency  not known" } else { "\"p99_us\":null" };
        assert!(told.contains(expected), "{told}");
    }
}

#[test]
fn a_rung_that_cannot_be_written_is_the_disks_fault() {
    let commands = Commands::new();
    for file in ["r0.75.onnx", "manifest.json"] {
        let in_the_way = commands.out().join(file);
        fs::create_dir_all(&in_the_way).unwrap();
        let done = commands.prune(&model("fixtures/vgg_chain.onnx"));
        assert_eq!(done.status.code(), Some(74), "{}", words(&done));
        assert!(words(&done).contains(in_the_way.to_str().unwrap()), "{}", words(&done));
        fs::remove_dir(&in_the_way).unwrap();
    }
}

#[test]
fn a_configuration_that_is_far_too_large_is_not_read() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("agent.yaml");
    // More than any box has memory for, and no disk.
    fs::File::create(&config).unwrap().set_len(1 << 42).unwrap();
    let done = blochd(&["run", "--config", config.to_str().unwrap()]);
    assert_eq!(done.status.code(), Some(78), "{}", words(&done));
    assert!(words(&done).contains("more than 1048576 bytes"), "{}", words(&done));
}

#[test]
fn a_model_that_is_not_there_is_told_as_such_by_every_command() {
    let commands = Commands::new();
    for command in ["analyze", "trial", "prune"] {
        let path = Path::new("/no/such/model.onnx");
        let done = if command == "prune" {
            commands.prune(path)
        } else {
            commands.run(command, path, &[])
        };
        let words = words(&done);
        assert_eq!(done.status.code(), Some(74), "{command}: {words}");
        assert_eq!(words.matches("No such file").count(), 1, "{command}: {words}");
    }
}

#[test]
fn without_a_runtime_every_command_names_the_places_and_the_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let config = dir.path().join("agent.yaml");
    let text = format!("state_dir: {}\nmodel_dir: models\n", state.display());
    fs::write(&config, text).unwrap();
    let (state, config) = (state.to_str().unwrap(), config.to_str().unwrap());
    let dense = model("digits_mobile.onnx").display().to_string();
    let samples = model("digits_calibration.npz").display().to_string();
    let out = dir.path().join("out").display().to_string();
    let cases: [&[&str]; 4] = [
        &["run", "--config", config, "--http-address", "127.0.0.1:0"],
        &["prune", &dense, "--out", &out, "--state-dir", state],
        &["analyze", &dense, "--calibration", &samples, "--state-dir", state],
        &["trial", &dense, "--state-dir", state],
    ];
    let mut search = Search::new(None, Path::new(state));
    search.environment = None;
    let system_has_one = library::locate(&search).is_ok();
    for arguments in cases {
        // None anywhere: every place is named. The machine itself may have one.
        if !system_has_one {
            let done = blochd(arguments);
            let words = words(&done);
            assert_eq!(done.status.code(), Some(69), "{arguments:?}: {words}");
            let runtime_dir = format!("{state}/runtime");
            let places = ["the configuration", "ORT_DYLIB_PATH", &runtime_dir, "system"];
            for place in places.into_iter().chain(["blochd runtime fetch", "runtime import"]) {
                assert!(words.contains(place), "{arguments:?} {place}: {words}");
            }
        }
        // One that the user named and that is none: no other is taken in its stead.
        let mut command = Command::new(env!("CARGO_BIN_EXE_blochd"));
        running::without_settings(&mut command);
        let done = command.args(arguments).env("ORT_DYLIB_PATH", config).output().unwrap();
        let words = words(&done);
        assert_eq!(done.status.code(), Some(69), "{arguments:?}: {words}");
        for word in ["ORT_DYLIB_PATH", config, "blochd runtime fetch"] {
            assert!(words.contains(word), "{arguments:?} {word}: {words}");
        }
    }
    // Spectra alone need no runtime.
    let done = blochd(&["analyze", &dense, "--state-dir", state]);
    assert_eq!(done.status.code(), Some(0), "{}", words(&done));
}

#[test]
fn a_reader_that_goes_away_ends_a_command_quietly() {
    let dense = model("digits_resnet.onnx").display().to_string();
    for more in [&["--json", "-"][..], &[]] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_blochd"));
        running::without_settings(&mut command);
        command.args(["analyze", "--no-cache", &dense]).args(more);
        command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
        let mut child = command.spawn().unwrap();
        drop(child.stdout.take());
        let done = child.wait_with_output().unwrap();
        assert!(!words(&done).contains("pipe"), "{}", words(&done));
        assert!(!done.status.success());
    }
}

/// An agent that serves version 1 of `mlp`.
fn serving(home: &Home) -> Agent<'_> {
    home.configure(NO_LADDER);
    home.drop_model(&model("fixtures/mlp_gemm.onnx"), "mlp/1/model.onnx");
    let agent = home.start_ready();
    assert!(agent.serves("mlp", 1));
    agent
}

/// The reason for which a version is refused; version 1 serves on.
fn refusal(agent: &mut Agent<'_>, home: &Home, version: u64) -> String {
    agent.eventually("it is refused", |agent| agent.refused("mlp", version).is_some());
    let reason = agent.refused("mlp", version).unwrap();
    let file = home.models().join(format!("mlp/{version}/model.onnx"));
    assert!(reason.contains(file.to_str().unwrap()), "{reason}");
    assert_eq!(reason.lines().count(), 1, "{reason}");
    let log = home.log();
    let line = log.lines().find(|line| line.contains(&reason));
    assert!(line.is_some_and(|line| line.contains("ERROR")), "{reason} is not in\n{log}");
    assert_eq!(agent.infer("mlp").unwrap()["model_version"], "1");
    reason
}

#[test]
fn external_data_outside_its_folder_is_never_read() {
    let home = Home::new();
    let mut agent = serving(&home);
    let outside = home.dir.path().join("weights.bin");
    fs::copy(model("fixtures/external/weights.bin"), &outside).unwrap();
    let folder = |version: u64| {
        let folder = home.models().join(format!("mlp/{version}"));
        fs::create_dir_all(&folder).unwrap();
        folder
    };
    // A link to a file that lies elsewhere: above the model directory, and in another version.
    symlink(&outside, folder(2).join("weights.bin")).unwrap();
    home.drop_model(&model("fixtures/external/model.onnx"), "mlp/2/model.onnx");
    let reason = refusal(&mut agent, &home, 2);
    assert!(reason.contains("outside the model's folder"), "{reason}");
    assert!(reason.contains("weights.bin") && reason.contains("beside"), "{reason}");
    fs::copy(&outside, folder(1).join("weights.bin")).unwrap();
    symlink("../1/weights.bin", folder(3).join("weights.bin")).unwrap();
    home.drop_model(&model("fixtures/external/model.onnx"), "mlp/3/model.onnx");
    let reason = refusal(&mut agent, &home, 3);
    assert!(reason.contains("outside the model's folder"), "{reason}");
    for (version, file, path) in [
        (4, "external_absolute", "/etc/passwd"),
        (5, "external_traversal", "../../etc/passwd"),
        (6, "external_missing", "nowhere.bin"),
        (7, "external_short", "short.bin"),
    ] {
        let bad = model(&format!("fixtures/bad/{file}.onnx"));
        fs::copy(model("fixtures/bad/short.bin"), folder(version).join("short.bin")).unwrap();
        home.drop_model(&bad, &format!("mlp/{version}/model.onnx"));
        let reason = refusal(&mut agent, &home, version);
        assert!(reason.contains(path), "{reason}");
    }
    // In its folder, below it, and a link within it are fine.
    let good = folder(8);
    fs::copy(&outside, good.join("real.bin")).unwrap();
    symlink("real.bin", good.join("weights.bin")).unwrap();
    home.drop_model(&model("fixtures/external/model.onnx"), "mlp/8/model.onnx");
    agent.eventually("it is served", |agent| agent.serves("mlp", 8));
}

#[test]
fn links_that_lead_out_of_the_model_directory_bring_no_models() {
    let home = Home::new();
    let outside = home.dir.path().join("outside");
    fs::create_dir_all(outside.join("1")).unwrap();
    fs::copy(model("fixtures/mlp_gemm.onnx"), outside.join("1/model.onnx")).unwrap();
    let within = |name: &str| {
        let place = home.models().join(name);
        fs::create_dir_all(place.parent().unwrap()).unwrap();
        place
    };
    // The folder of a model, that of a version, the file; by whole paths and by way of what lies above.
    symlink(&outside, within("folder")).unwrap();
    symlink("../../outside/1", within("version/1")).unwrap();
    symlink(outside.join("1/model.onnx"), within("file/1/model.onnx")).unwrap();
    symlink("../outside/1/model.onnx", within("bare.onnx")).unwrap();
    // One that leads round in a circle is followed no further than models lie deep.
    symlink(".", within("circle")).unwrap();
    let mut agent = serving(&home);
    for place in ["folder", "version/1", "file/1/model.onnx", "bare.onnx"] {
        let said = format!("{place} leads out of the model directory");
        agent.eventually(&said, |_| home.log().contains(&said));
    }
    // Nor are they, once they are asked for by name.
    for name in ["folder", "version", "file", "bare", "circle"] {
        assert!(agent.model(name).is_null(), "{name}: {}", agent.status());
        assert_eq!(agent.command(name, "load").0, 404, "{name}");
    }
    assert!(agent.infer("mlp").is_ok());
}

#[test]
fn names_that_lead_elsewhere_are_no_models() {
    let home = Home::new();
    let agent = serving(&home);
    // Where it would be found, if a name were taken for a path.
    fs::create_dir_all(home.dir.path().join("secret/1")).unwrap();
    fs::copy(model("fixtures/mlp_gemm.onnx"), home.dir.path().join("secret/1/model.onnx")).unwrap();
    let names = [
        "..",
        "%2e%2e",
        "..%2fsecret",
        "%2e%2e%2fsecret",
        "mlp%2f..%2f..%2fsecret",
        "..%5csecret",
        "%2fetc%2fpasswd",
        "mlp%00",
        "mlp%2f1",
        ".mlp",
    ];
    let empty = r#"{"inputs":[]}"#;
    let head = format!("HTTP/1.1\r\ncontent-length: {}", empty.len());
    for name in names {
        let calls = [
            ("GET", format!("/v2/models/{name}"), ""),
            ("GET", format!("/v2/models/{name}/ready"), ""),
            ("GET", format!("/v2/models/mlp/versions/{name}"), ""),
            ("POST", format!("/v2/models/{name}/infer"), empty),
            ("POST", format!("/v2/repository/models/{name}/load"), ""),
            ("POST", format!("/v2/repository/models/{name}/unload"), ""),
        ];
        for (method, path, body) in calls {
            let head = if body.is_empty() { "HTTP/1.1" } else { &head };
            let (status, said) =
                send(home.http, &format!("{method} {path} {head}"), body.as_bytes());
            assert!((400..=404).contains(&status), "{method} {path}: {status} {said}");
        }
    }
    assert_eq!(agent.status()["models"].as_array().unwrap().len(), 1);
    assert!(agent.infer("mlp").is_ok());
    // On the command line as well.
    let config = home.dir.path().join("agent.yaml").display().to_string();
    for name in ["../secret", "..", "/etc", ".mlp"] {
        let done = blochd(&["config", "show", "--config", &config, "--model", name]);
        assert_eq!(done.status.code(), Some(64), "{name}: {}", words(&done));
    }
}

#[test]
fn broken_bytes_are_refused_with_their_offset() {
    let home = Home::new();
    let mut agent = serving(&home);
    for (version, file) in [(2, "not_onnx"), (3, "truncated"), (4, "length_lie")] {
        let bad = model(&format!("fixtures/bad/{file}.onnx"));
        home.drop_model(&bad, &format!("mlp/{version}/model.onnx"));
        let reason = refusal(&mut agent, &home, version);
        assert!(reason.contains("at offset"), "{reason}");
    }
}

#[test]
fn what_onnx_runtime_refuses_is_refused_in_its_words_and_quarantined() {
    let home = Home::new();
    let mut agent = serving(&home);
    for (version, file, word) in [(2, "bad/opset_999", "999"), (3, "custom_op", "SpinNetwork")] {
        let bad = model(&format!("fixtures/{file}.onnx"));
        home.drop_model(&bad, &format!("mlp/{version}/model.onnx"));
        let reason = refusal(&mut agent, &home, version);
        assert!(reason.contains("trial") && reason.contains(word), "{reason}");
        let held = agent.status()["quarantine"].as_array().unwrap().clone();
        let what = format!("mlp version {version}");
        assert!(held.iter().any(|one| one["what"] == json!(what)), "{held:?}");
    }
}

#[test]
fn a_wrong_configuration_is_refused_with_place_and_remedy_at_the_start_and_on_reload() {
    let home = Home::new();
    let mut agent = serving(&home);
    let revision = agent.status()["config"]["revision"].clone();
    let cases = [
        ("defaults: {budgte: {p99: 4ms}}", "12: unknown key `budgte`; did you mean `budget`?"),
        ("model_dirr: x", "1: unknown key `model_dirr`; did you mean `model_dir`?"),
        ("defaults: {budget: {p99: -4ms}}", "20: \"-4ms\" is not a duration; write a budget"),
        ("defaults: {budget: {p99: 4 parsecs}}", "20: \"4 parsecs\" is not a duration; write"),
        ("trial: {memory: 512}", "17: \"512\" is not a size; write a number and a unit, such"),
        ("models: {mlp: {quality_floor: 2}}", "31: 2 is out of range; write a number from 0 to"),
        ("defaults: [", "11: unclosed bracket"),
    ];
    for (bad, expected) in cases {
        let expected = format!("{}:{expected}", Home::MORE);
        // Another setting beside the wrong one must not be taken over either.
        home.configure(&format!("{bad}\ndrain_timeout: 1s"));
        agent.signal(Signal::SIGHUP);
        agent.eventually(bad, |agent| {
            let status = agent.status();
            status["config"]["error"].as_str().is_some_and(|error| error.contains(&expected))
        });
        assert_eq!(agent.status()["config"]["revision"], revision, "{bad}");
        assert!(agent.infer("mlp").is_ok(), "{bad}");
        let config = home.dir.path().join("agent.yaml");
        let done = blochd(&["run", "--config", config.to_str().unwrap()]);
        let words = words(&done);
        assert_eq!(done.status.code(), Some(78), "{bad}: {words}");
        assert!(words.contains(&format!("agent.yaml:{expected}")), "{bad}: {words}");
    }
}

/// Sends bytes as they are; the status and the body of the answer.
fn send(http: u16, head: &str, body: &[u8]) -> (u16, String) {
    let mut stream = TcpStream::connect(("127.0.0.1", http)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let whole = format!("{head}\r\nhost: test\r\nconnection: close\r\n\r\n");
    stream.write_all(&[whole.as_bytes(), body].concat()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
    let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned());
    (status, body.unwrap_or_default())
}

/// The most memory that the agent ever held, and the most addresses that it ever asked for, MiB.
fn most_memory(agent: &Agent<'_>) -> (u64, u64) {
    let status = fs::read_to_string(format!("/proc/{}/status", agent.pid())).unwrap();
    let of = |name: &str| -> u64 {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024
    };
    (of("VmHWM:"), of("VmPeak:"))
}

#[test]
fn a_wrong_request_is_told_the_input_and_what_was_expected_and_costs_nothing() {
    let home = Home::new();
    home.configure(NO_LADDER);
    home.drop_model(&model("digits_mobile.onnx"), "digits/1/model.onnx");
    let agent = home.start_ready();
    assert!(agent.infer("digits").is_ok());
    let before = most_memory(&agent);
    let input = |name: &str, shape: &str, datatype: &str, data: &str| {
        format!(
            r#"{{"inputs":[{{"name":"{name}","shape":{shape},"datatype":"{datatype}",{data}}}]}}"#
        )
    };
    let few = r#""data":[0,0]"#;
    let huge = "[1099511627776,1,28,28]";
    let binary = |size: u64| format!(r#""parameters":{{"binary_data_size":{size}}}"#);
    let image = "[1,1,28,28]";
    let json: [(String, &[&str]); 9] = [
        (input("inptu", image, "FP32", few), &["'inptu'", "'input'"]),
        (input("input", "[1,28,28]", "FP32", few), &["'input'", "[-1,1,28,28]", "[1,28,28]"]),
        (input("input", "[1,3,28,28]", "FP32", few), &["'input'", "[-1,1,28,28]", "[1,3,28,28]"]),
        (input("input", "[-1,1,28,28]", "FP32", few), &["'input'", "[-1,1,28,28]"]),
        (input("input", image, "INT64", few), &["'input'", "'INT64'", "'FP32'"]),
        (input("input", image, "FLOAT", few), &["'input'", "'FLOAT'", "FP32"]),
        (input("input", image, "FP32", few), &["'input'", "fewer elements", "784"]),
        (input("input", huge, "FP32", few), &["'input'", "elements", "862017116176384"]),
        (r#"{"inputs":[]}"#.to_owned(), &["'input'", "FP32 [-1,1,28,28]"]),
    ];
    let path = "POST /v2/models/digits/infer HTTP/1.1";
    let check = |(status, body): (u16, String), expected: u16, words: &[&str]| {
        assert_eq!(status, expected, "{words:?}: {body}");
        let error: Value = serde_json::from_str(&body).unwrap();
        let error = error["error"].as_str().unwrap();
        for word in words {
            assert!(error.contains(word), "{word:?} is not in {error}");
        }
    };
    for (body, words) in &json {
        let head = format!("{path}\r\ncontent-length: {}", body.len());
        check(send(home.http, &head, body.as_bytes()), 400, words);
    }
    // The binary extension: sizes that lie in every direction.
    let tail = [0u8; 3136];
    let binaries: [(String, &[&str]); 5] = [
        (input("input", image, "FP32", &binary(1 << 60)), &["'input'", "only 3136 bytes"]),
        (input("input", image, "FP32", &binary(3132)), &["'input'", "3132 bytes", "3136"]),
        (input("input", "[2,1,28,28]", "FP32", &binary(3136)), &["'input'", "6272", "[2,1,28,28]"]),
        (input("input", huge, "FP32", &binary(3136)), &["'input'", "3136 bytes", "expected"]),
        (input("input", image, "FP32", &binary(0)), &["'input'", "0 bytes", "3136"]),
    ];
    for (json, words) in &binaries {
        let head = format!(
            "{path}\r\ncontent-length: {}\r\ninference-header-content-length: {}",
            json.len() + tail.len(),
            json.len()
        );
        check(send(home.http, &head, &[json.as_bytes(), &tail].concat()), 400, words);
    }
    let good = input("input", image, "FP32", &binary(3136));
    for claimed in ["99999999999999", "-1", "many"] {
        let head = format!(
            "{path}\r\ncontent-length: {}\r\ninference-header-content-length: {claimed}",
            good.len() + tail.len(),
        );
        let words = ["Inference-Header-Content-Length"];
        check(send(home.http, &head, &[good.as_bytes(), &tail].concat()), 400, &words);
    }
    // A body of a terabyte is announced, and a hundred of half the limit at once.
    let head = format!("{path}\r\ncontent-length: 1099511627776");
    check(send(home.http, &head, b""), 413, &["larger than the limit"]);
    let announced: Vec<TcpStream> = (0..100)
        .map(|_| {
            let mut stream = TcpStream::connect(("127.0.0.1", home.http)).unwrap();
            let head = format!("{path}\r\nhost: test\r\ncontent-length: 60000000\r\n\r\n");
            stream.write_all(head.as_bytes()).unwrap();
            stream
        })
        .collect();
    drop(announced);
    assert!(agent.infer("digits").is_ok(), "it serves on\n{}", home.log());
    let after = most_memory(&agent);
    assert!(after.0 - before.0 < 64, "{before:?} {after:?} MiB held");
    assert!(after.1 - before.1 < 1024, "{before:?} {after:?} MiB asked for");
}
