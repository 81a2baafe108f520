//! `blochd profile` on boxes with the libraries of no, one and several vendors, whole and broken.

mod running;
mod standins;

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use running::{parsed, words};
use serde_json::{Value, json};
use standins::Bench;

/// Runs it with a state directory of its own; `vendors` are those whose libraries are in the bench.
fn profile(bench: &Bench, vendors: &[&str], options: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_blochd"));
    running::without_settings(&mut command);
    command.arg("profile").args(options);
    command.arg("--runtime-library").arg(running::onnx_runtime());
    command.arg("--state-dir").arg(bench.path().join("state"));
    command.env(standins::SCENARIO, bench.scenario()).env("BLOCHD_DEVICES__TIMEOUT", "3s");
    for vendor in ["ascend", "cambricon", "kunlunxin"] {
        let variable = format!("BLOCHD_DEVICES__{}", vendor.to_uppercase());
        let named = vendors.contains(&vendor);
        command.env(variable, if named { bench.path().as_os_str() } else { "none".as_ref() });
    }
    command.output().unwrap()
}

/// Names and kinds of values, without the values. Of lists the first stands for all.
fn shape(value: &Value) -> Value {
    match value {
        Value::Null => json!("null"),
        Value::Bool(_) => json!("bool"),
        Value::Number(_) => json!("number"),
        Value::String(_) => json!("text"),
        Value::Array(items) => json!([items.first().map_or(Value::Null, shape)]),
        Value::Object(entries) => {
            entries.iter().map(|(name, value)| (name.clone(), shape(value))).collect()
        }
    }
}

#[test]
fn a_box_without_accelerators_is_as_good_a_box() {
    let bench = Bench::with(&[]);
    let output = profile(&bench, &[], &["--json"]);
    let told = parsed(&output, 0);
    assert_eq!((&told["accelerators"], &told["host"]["devices"]), (&json!({}), &json!([])));
    assert!(told["host"]["cpu"]["logical_cores"].as_u64().unwrap() > 0);
    let providers = told["runtime"]["providers"].as_array().unwrap();
    let cpu = providers.iter().find(|one| one["name"] == "CPUExecutionProvider").unwrap();
    assert_eq!(cpu["library"], Value::Null);
    let (text, _) = words(&profile(&bench, &[], &[]));
    for words in ["Accelerators\n  none\n", "CPUExecutionProvider: compiled in", "--roofline"] {
        assert!(text.contains(words), "{words}: {text}");
    }
    // Looking leaves nothing behind.
    assert!(!bench.path().join("state").exists());
}

#[test]
fn the_json_of_a_box_with_every_vendor_has_the_shape_that_programs_know() {
    let bench = Bench::with(&[("dcmi", ""), ("acl", ""), ("cndev", ""), ("xpuml", "")]);
    let all = ["ascend", "cambricon", "kunlunxin"];
    let told = parsed(&profile(&bench, &all, &["--json", "--roofline"]), 0);
    let runtime = &told["runtime"];
    // What is seen without a library is this machine's own.
    let mut accelerators = told["accelerators"].clone();
    for look in accelerators.as_object_mut().unwrap().values_mut() {
        let seen = look["seen"].take();
        let names: Vec<&String> = seen.as_object().unwrap().keys().collect();
        assert_eq!(names, ["cards", "driver", "nodes"]);
    }
    let found = json!({
        "names": told.as_object().unwrap().keys().collect::<Vec<_>>(),
        "accelerators": shape(&accelerators),
        "devices": told["host"]["devices"].as_array().unwrap().iter().map(shape).collect::<Vec<_>>(),
        "runtime": runtime.as_object().unwrap().keys().collect::<Vec<_>>(),
        "roofline": shape(&told["roofline"]),
    });
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/profile.json");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&golden, format!("{found:#}\n")).unwrap();
    }
    let expected: Value = serde_json::from_str(&fs::read_to_string(golden).unwrap()).unwrap();
    assert_eq!(found, expected, "{found:#}");
    let ascend = &told["host"]["devices"][0];
    assert_eq!((&ascend["soc"], &ascend["runtime"]), (&json!("Ascend310P3"), &json!("1.13.0")));
    // What was measured is kept beside the latency tables, and shown the next time.
    let operators = told["roofline"]["measured"]["operators"].as_array().unwrap();
    let kinds: Vec<&str> = operators.iter().map(|one| one["operator"].as_str().unwrap()).collect();
    assert!(kinds.contains(&"gemm") && kinds.contains(&"conv"), "{kinds:?}");
    assert!(operators.iter().all(|one| one["gflop_s"].as_f64().unwrap() > 0.0));
    assert!(told["roofline"]["measured"]["memory_gb_s"].as_f64().unwrap() > 0.0);
    assert!(bench.path().join("state/latencies/roofline.json").is_file());
    let again = parsed(&profile(&bench, &[], &["--json"]), 0);
    assert_eq!(again["roofline"]["measured"], told["roofline"]["measured"]);
    assert_eq!(
        (&told["roofline"]["now"], &again["roofline"]["now"]),
        (&json!(true), &json!(false))
    );
    // A file that is none is as good as none.
    fs::write(bench.path().join("state/latencies/roofline.json"), "[]").unwrap();
    assert_eq!(parsed(&profile(&bench, &[], &["--json"]), 0)["roofline"], Value::Null);
    let (text, _) = words(&profile(&bench, &all, &[]));
    for words in ["ascend 0  310P3  0000:3b:00.0  50 °C  12.8 W", "MLU370-S4", "runtime 1.13.0"] {
        assert!(text.contains(words), "{words}: {text}");
    }
}

#[test]
fn what_is_named_and_cannot_be_read_or_used_is_told_by_the_exit_code() {
    let bench = Bench::with(&[("dcmi", ""), ("cndev", "")]);
    bench.play("hang = dcmi_get_device_health\n");
    let output = profile(&bench, &["ascend", "cambricon"], &["--json"]);
    let told = parsed(&output, 1);
    assert_eq!(told["accelerators"]["ascend"]["trouble"]["kind"], "hung");
    // The other vendor is read all the same.
    assert_eq!(told["accelerators"]["cambricon"]["trouble"], Value::Null);
    assert_eq!(told["host"]["devices"][0]["model"], "MLU370-S4");
    let (_, err) = words(&output);
    assert!(err.contains("ascend: its library did not return"), "{err}");
    bench.play("driver_state = 5\n");
    let output = profile(&bench, &["cambricon"], &[]);
    let (text, err) = words(&output);
    assert_eq!(output.status.code(), Some(1), "{text}{err}");
    assert!(err.contains("cambricon 0 is unusable: its driver is in state 5"), "{err}");
    // An alarm alone is no reason: boards are known that ring one at all times.
    bench.play("health = 1\n");
    parsed(&profile(&bench, &["ascend"], &["--json"]), 0);
    // No library of a vendor that was named.
    let told = parsed(&profile(&bench, &["kunlunxin"], &["--json"]), 1);
    assert_eq!(told["accelerators"]["kunlunxin"]["trouble"]["kind"], "not_there");
}

#[test]
fn without_onnx_runtime_the_box_is_shown_all_the_same() {
    let bench = Bench::with(&[("cndev", "")]);
    let mut command = Command::new(env!("CARGO_BIN_EXE_blochd"));
    running::without_settings(&mut command);
    let nothing = bench.path().join("nothing.so");
    command.args(["profile", "--json", "--runtime-library"]).arg(&nothing);
    command.env(standins::SCENARIO, bench.scenario());
    command.env("BLOCHD_DEVICES__CAMBRICON", bench.path());
    let told = parsed(&command.output().unwrap(), 69);
    assert_eq!(told["runtime"], Value::Null);
    assert!(told["runtime_error"].as_str().unwrap().contains("nothing.so"), "{told}");
    assert_eq!(told["host"]["devices"][0]["vendor"], "cambricon");
}
