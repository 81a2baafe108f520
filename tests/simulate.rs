//! `blochd simulate` as its users meet it: tables, exit codes, errors with the line that is wrong; and a trace
//! that a running agent records for it.

mod running;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use blochd::governor::trace::{HEADER, Trace};
use blochd::units::Digest;
use running::{Home, Load, model, without_settings};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A ladder as `blochd prune` writes it: dense takes 10 ms, and one rung 6.
fn manifest(source: &str) -> Value {
    let figures = |ratio: f64, quality: f64| {
        json!({
            "p50_us": 10_000.0 * ratio, "p99_us": 11_000.0 * ratio, "ratio": ratio, "macs": 1,
            "params": 1, "bytes": 1, "quality": quality, "explained": quality,
        })
    };
    let digest = Digest::of(b"x");
    json!({
        "format": 1, "blochd": "0.1.0", "source": {"file": "m.onnx", "digest": digest},
        "engine": "CPU", "method": "obs", "seed": 0,
        "calibration": {"source": source, "samples": 128}, "dense": figures(1.0, 1.0),
        "rungs": [{
            "name": "r0.6", "asked": 0.6, "file": "r0.6.onnx", "digest": digest,
            "figures": figures(0.6, 0.97), "cuts": [], "bypassed": [], "repairs": [],
        }],
        "not_built": [], "groups": [], "frozen": [],
    })
}

struct Place {
    dir: TempDir,
}

impl Place {
    fn new() -> Self {
        let place = Self { dir: tempfile::tempdir().unwrap() };
        place.write("manifest.json", &manifest("file").to_string());
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    /// Forty requests a second for two minutes, of which the middle forty seconds are squeezed.
    fn squeeze(&self) -> &Self {
        let line = |second: u32| {
            let slowdown = if (40..80).contains(&second) { "2.0" } else { "1.0" };
            format!("{second},40,{slowdown}\n")
        };
        let lines: String = (0..120).map(line).collect();
        self.write("t.csv", &format!("t_s,arrivals,slowdown\n{lines}"));
        self
    }

    fn simulate(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_blochd"));
        command.current_dir(self.dir.path()).arg("simulate").args(arguments);
        without_settings(&mut command);
        command.output().unwrap()
    }
}

fn json_of(output: &Output) -> Value {
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

const SQUEEZED: [&str; 6] = ["--trace", "t.csv", "--ladder", ".", "--budget", "15ms"];

fn and<'a>(more: &[&'a str]) -> Vec<&'a str> {
    SQUEEZED.iter().copied().chain(more.iter().copied()).collect()
}

#[test]
fn a_squeeze_is_told_as_a_table_as_json_and_as_a_picture() {
    let place = Place::new();
    let told = place.squeeze().simulate(&and(&["--plot", "a.html", "--require", "95"]));
    assert_eq!(told.status.code(), Some(0), "{}", String::from_utf8_lossy(&told.stderr));
    let table = String::from_utf8(told.stdout).unwrap();
    for words in ["budget p99 ≤ 15.00 ms", "r0.6", "headroom", "within budget", "with foresight"]
    {
        assert!(table.contains(words), "{words} is not in\n{table}");
    }
    let page = fs::read_to_string(place.path("a.html")).unwrap();
    assert!(page.starts_with("<!doctype html>") && page.contains("class=\"budget\""));

    let told = json_of(&place.simulate(&and(&["--json", "--plot", "a.svg"])));
    assert!(fs::read_to_string(place.path("a.svg")).unwrap().starts_with("<svg"));
    let model = &told["models"][0];
    assert_eq!((&told["length_s"], &model["model"]), (&json!(120.0), &json!("model")));
    let switches = model["switches"].as_array().unwrap();
    let told_of: Vec<_> =
        switches.iter().map(|switch| (&switch["to"], &switch["because"])).collect();
    assert_eq!(
        told_of,
        [(&json!("r0.6"), &json!("budget")), (&json!("dense"), &json!("headroom"))]
    );
    let at = switches[0]["at_s"].as_f64().unwrap();
    assert!((40.0..41.25).contains(&at), "{at}");
    assert_eq!(model["windows"].as_array().unwrap().len(), 60);
    assert!(model["within_share"].as_f64().unwrap() > 0.97);
    let lost = model["quality_lost"].as_f64().unwrap();
    assert!((0.0..0.01).contains(&lost), "{lost}");
    // The same once more, to the last digit; another seed is another box.
    let again = place.simulate(&and(&["--json"]));
    assert_eq!(json_of(&again), told);
    assert_ne!(json_of(&place.simulate(&and(&["--json", "--seed", "1"]))), told);
}

#[test]
fn flags_come_over_a_policy_and_a_policy_over_the_defaults() {
    let place = Place::new();
    place.squeeze().write("policy.yaml", "budget: {p95: 15ms}\nquality_floor: 0.98\n");
    let arguments = ["--trace", "t.csv", "--ladder", "manifest.json", "--policy", "policy.yaml"];
    let told = json_of(&place.simulate(&[&arguments[..], &["--json"]].concat()));
    let model = &told["models"][0];
    assert_eq!(model["budget"], json!({"percentile": "p95", "limit_ms": 15.0}));
    assert_eq!(model["switches"], json!([]), "the rung is below the floor");
    let more = ["--json", "--floor", "0.9", "--set", "governor.sustain=20s"];
    let told = json_of(&place.simulate(&[&arguments[..], &more].concat()));
    let back = told["models"][0]["switches"][1]["at_s"].as_f64().unwrap();
    assert!(back > 99.0, "{back}");
}

#[test]
fn models_of_one_trace_have_ladders_of_their_own_and_share_cores() {
    let place = Place::new();
    fs::create_dir(place.path("b")).unwrap();
    fs::rename(place.path("manifest.json"), place.path("b/manifest.json")).unwrap();
    place.write("a.json", &manifest("file").to_string());
    let both = |second: u32| format!("{second},a,20,1\n{second},b,20,1\n");
    let lines: String = (0..20).map(both).collect();
    place.write("t.csv", &format!("t_s,model,arrivals,slowdown\n{lines}"));
    let given = ["--trace", "t.csv", "--ladder", "a=a.json", "--budget", "60ms", "--json"];
    let missing = place.simulate(&given);
    assert_eq!(missing.status.code(), Some(78));
    let said = String::from_utf8_lossy(&missing.stderr).into_owned();
    assert!(said.contains("the trace names the model b: give --ladder b=PATH"), "{said}");
    let alone = json_of(&place.simulate(&[&given[..], &["--ladder", "b=b"]].concat()));
    let shared =
        json_of(&place.simulate(&[&given[..], &["--ladder", "b=b", "--cores", "1"]].concat()));
    let worst = |told: &Value, model: usize| {
        let windows = told["models"][model]["windows"].as_array().unwrap();
        windows.iter().filter_map(|window| window["latency_ms"].as_f64()).fold(0.0, f64::max)
    };
    assert!(worst(&alone, 0) < 15.0 && worst(&alone, 1) < 15.0);
    assert!(worst(&shared, 0) > 15.0, "both ask at the same moments");
    assert!(shared["models"][0].get("clairvoyant").is_none_or(Value::is_null));
}

#[test]
fn what_is_wrong_is_told_with_its_line_and_an_exit_code() {
    let place = Place::new();
    let fails = |arguments: &[&str], code: i32, words: &str| {
        let output = place.simulate(arguments);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{said}");
        assert!(said.contains(words), "{said}");
    };
    place.squeeze().write("bad.csv", "t_s,arrivals,slowdown\n0,1,1\n1,1,fast\n");
    let bad = ["--trace", "bad.csv", "--ladder", "."];
    fails(&bad, 65, "bad.csv: line 3: slowdown is \"fast\"");
    fails(&["--trace", "no.csv", "--ladder", "."], 74, "cannot read no.csv");
    fails(&["--trace", ".", "--ladder", "."], 65, "there is no trace in this directory");
    fails(&["--trace", "t.csv", "--ladder", "bad.csv"], 65, "bad.csv: ");
    fails(&["--trace", "t.csv", "--ladder", "no"], 74, "cannot read no");
    fails(&and(&["--floor", "2"]), 78, "flag --floor: 2 is out of range");
    fails(&and(&["--require", "100"]), 1, "of its windows, not 100 %");
    place.write("policy.yaml", "budgt: 1ms\n");
    fails(&and(&["--policy", "policy.yaml"]), 78, "policy.yaml:1:1: unknown key `budgt`");
    let newer = json!({"format": 99});
    let mut wrong = manifest("file");
    wrong["format"] = newer["format"].clone();
    place.write("newer.json", &wrong.to_string());
    fails(&["--trace", "t.csv", "--ladder", "newer.json"], 65, "its format 99 is newer");
    wrong = manifest("file");
    wrong["dense"]["p50_us"] = json!(0.0);
    place.write("zero.json", &wrong.to_string());
    fails(&["--trace", "t.csv", "--ladder", "zero.json"], 65, "are numbers above 0");
}

#[test]
fn rungs_of_unknown_quality_are_simulated_as_the_agent_serves_them() {
    let place = Place::new();
    place.squeeze().write("made_up.json", &manifest("synthetic").to_string());
    let arguments = ["--trace", "t.csv", "--ladder", "made_up.json", "--budget", "15ms", "--json"];
    let output = place.simulate(&arguments);
    assert!(String::from_utf8_lossy(&output.stderr).contains("made-up samples"));
    assert_eq!(json_of(&output)["models"][0]["switches"], json!([]));
    let told = json_of(&place.simulate(&[&arguments[..], &["--floor", "0"]].concat()));
    assert_eq!(told["models"][0]["switches"].as_array().unwrap().len(), 2);
}

fn joined(dir: &Path) -> String {
    let files = blochd::shell::recorder::files(dir).unwrap_or_default();
    files.iter().map(|path| fs::read_to_string(path).unwrap()).collect()
}

/// The directory is named while the agent runs, and again no more.
#[test]
fn an_agent_records_what_a_simulation_replays() {
    let home = Home::new();
    let with = |more: &str| {
        home.configure(&format!(
            "defaults: {{ladder: {{enabled: false}}, budget: {{p99: 400ms}}}}\n{more}"
        ));
    };
    with("");
    home.drop_model(&model("fixtures/mlp_gemm.onnx"), "mlp/1/model.onnx");
    let mut agent = home.start_ready();
    let traces = home.dir.path().join("traces");
    assert!(!traces.exists(), "nothing is recorded unless it is asked for");
    with("trace: traces");
    agent.eventually("the trace is begun", |_| joined(&traces).starts_with(HEADER));
    let load = Load::start(home.http, "mlp", agent.input("mlp").unwrap());
    let rows = || Trace::parse(&joined(&traces)).map(|trace| trace.models).unwrap_or_default();
    agent.eventually("some seconds are recorded", |_| {
        rows().get("mlp").is_some_and(|rows| rows.iter().filter(|row| row.arrivals > 0).count() > 8)
    });
    let (answered, failed) = load.finish();
    assert_eq!(failed, Vec::<String>::new());
    // What stands still is told once.
    agent.eventually("it is told that none comes any more", |_| {
        rows()["mlp"].last().is_some_and(|row| row.arrivals == 0)
    });
    let recorded = rows().remove("mlp").unwrap();
    let arrivals: u64 = recorded.iter().map(|row| row.arrivals).sum();
    assert!(arrivals > 0 && arrivals <= answered as u64, "{arrivals} of {answered}");
    let told = recorded.iter().filter(|row| row.slowdown.is_some());
    for row in told {
        assert_eq!(row.variant.as_deref(), Some("dense"));
        assert!(row.compute_ms.is_some_and(|ms| ms > 0.0) && row.latency_ms >= row.compute_ms);
    }
    with("");
    agent.eventually("the end is read", |agent| agent.status()["config"]["revision"] == 3);
    let length = joined(&traces).len();
    assert!(agent.infer("mlp").is_ok());
    std::thread::sleep(std::time::Duration::from_millis(600));
    assert_eq!(joined(&traces).len(), length, "nothing is recorded any more");

    let place = Place::new();
    let output = place.simulate(&[
        "--trace",
        traces.to_str().unwrap(),
        "--ladder",
        "mlp=manifest.json",
        "--budget",
        "400ms",
        "--json",
    ]);
    let told = json_of(&output);
    assert_eq!(told["models"][0]["model"], "mlp");
    assert!(told["models"][0]["summary"]["requests"].as_u64() <= Some(arrivals));
}
