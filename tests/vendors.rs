//! The real program against libraries with the symbols and layouts of the vendors' own: what it reads out of
//! them, and what it makes of libraries that lack something, refuse, lie, hang or crash. Nothing here has met an
//! accelerator.

mod standins;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::Mutex;
use std::time::Duration;

use blochd::config::Sandbox;
use blochd::hardware::Trouble;
use blochd::shell::children::Wish;
use blochd::shell::children::telemetry;
use blochd::shell::probe::source::{Reading, Source, Told};
use serde_json::{Value, json};
use standins::{Bench, why};
use tokio::sync::watch;

#[test]
fn an_ascend_tells_all_that_its_driver_knows() {
    let bench = Bench::with(&[("dcmi", "")]);
    bench.play("cards = 2\n");
    let (lines, _) = bench.probe("dcmi", &[]);
    assert_eq!(lines[0]["version"], "24.1.0.3");
    assert_eq!(lines[0]["path"], json!(bench.library("dcmi").canonicalize().unwrap()));
    let devices = lines[1]["devices"].as_array().unwrap();
    // The controller in each card is no device.
    assert_eq!(devices.len(), 2);
    let mut first = devices[0].clone();
    assert_eq!(devices[1]["pci"], "0000:3c:00.0");
    assert_eq!(devices[1]["celsius"], 51.0);
    let missing = first.as_object_mut().unwrap().remove("missing").unwrap();
    let expected = json!({
        "vendor": "ascend", "index": 0, "model": "310P3", "pci": "0000:3b:00.0",
        // Size times share: what is available comes in a unit that varies.
        "memory_total": 8u64 << 30, "memory_used": 2u64 << 30,
        "utilisation": 0.34, "celsius": 50.0, "watts": 12.8, "frequency_mhz": 1000,
        "ecc": {"corrected": 7, "uncorrected": 2}, "health": {"state": "ok"},
    });
    assert_eq!(first, expected);
    let no_call = |what: &str| json!({"what": what, "why": {"kind": "no_call"}});
    assert_eq!(missing, json!(["soc", "driver", "firmware", "runtime"].map(no_call)));
}

#[test]
fn what_an_ascend_does_not_support_is_absent_with_the_reason_and_never_zero() {
    let bench = Bench::with(&[("dcmi", "")]);
    let call = "dcmi_get_device_temperature";
    for (code, kind) in [(-8255, "unsupported"), (-8013, "in_container"), (-8002, "no_permission")]
    {
        bench.play(&format!("error.{call} = {code}\n"));
        let device = &bench.devices("dcmi")[0];
        assert_eq!(device.get("celsius"), None);
        assert_eq!(why(device, "temperature"), json!({"kind": kind, "call": call}));
        assert_eq!(device["watts"], 12.8);
    }
    bench.play(&format!("error.{call} = -8012\n"));
    let failed = json!({"kind": "failed", "call": call, "code": -8012});
    assert_eq!(why(&bench.devices("dcmi")[0], "temperature"), failed);
    // A sensor that is not there reads as this on some boards.
    bench.play("temperature = 32767\nutilisation = 4000000\n");
    let device = &bench.devices("dcmi")[0];
    let implausible = json!({"kind": "implausible", "call": call, "value": 32767});
    assert_eq!(why(device, "temperature"), implausible);
    assert_eq!((device.get("celsius"), device.get("utilisation")), (None, None));
    bench.play("ecc = 0\n");
    assert_eq!(why(&bench.devices("dcmi")[0], "ecc")["kind"], "unsupported");
}

#[test]
fn an_older_ascend_driver_is_asked_by_the_calls_that_it_has() {
    let bench = Bench::with(&[("dcmi", "older")]);
    bench.play("error.dcmi_get_device_power_info = -8255\n");
    let device = &bench.devices("dcmi")[0];
    assert_eq!((&device["model"], &device["index"]), (&json!("310P3"), &json!(0)));
    // Of the card, where it is not told of the chip.
    assert_eq!(device["watts"], 41.5);
    assert_eq!(device.get("memory_total"), None);
    let lacks = json!({"kind": "no_symbol", "symbol": "dcmi_get_device_memory_info_v3"});
    assert_eq!(why(device, "memory"), lacks);
}

#[test]
fn an_ascend_with_hbm_or_on_no_bus_or_with_an_alarm_is_told_as_such() {
    let bench = Bench::with(&[("dcmi", "")]);
    bench.play("hbm = 32768\nbus = 0\nhealth = 2\n");
    let device = &bench.devices("dcmi")[0];
    assert_eq!(device["memory_total"], 32u64 << 30);
    assert_eq!(device["memory_used"], 8u64 << 30);
    assert_eq!(device.get("pci"), None);
    let alarm = json!({"state": "degraded", "why": {"kind": "alarm", "level": 2}});
    assert_eq!(device["health"], alarm);
    bench.play(&format!("health = {}\n", 0xFFFF_FFFFu32));
    let absent = json!({"state": "unusable", "why": {"kind": "absent"}});
    assert_eq!(bench.devices("dcmi")[0]["health"], absent);
    // A number that nobody has explained is no verdict.
    bench.play("health = 77\n");
    assert_eq!(bench.devices("dcmi")[0]["health"], json!({"state": "unknown"}));
}

#[test]
fn the_runtime_of_an_ascend_tells_the_chips_name_and_opens_devices_only_if_asked() {
    let bench = Bench::with(&[("acl", "")]);
    bench.play("cards = 2\nerror.aclInit = 100002\n");
    let devices = bench.devices("acl");
    assert_eq!(devices.len(), 2);
    assert_eq!(
        (&devices[1]["soc"], &devices[1]["runtime"]),
        (&json!("Ascend310P3"), &json!("1.13.0"))
    );
    assert_eq!(devices[1].get("memory_total"), None);
    let (lines, _) = bench.probe("acl", &["--open-devices"]);
    assert_eq!(lines[1]["devices"][1]["memory_total"], 8u64 << 30);
    bench.play("error.aclrtSetDevice = 507033\n");
    let (lines, _) = bench.probe("acl", &["--open-devices"]);
    assert_eq!(why(&lines[1]["devices"][0], "memory")["code"], 507_033);
}

#[test]
fn a_cambricon_is_asked_in_the_version_that_its_library_takes() {
    let bench = Bench::with(&[("cndev", "")]);
    bench.play("cards = 2\n");
    let (lines, _) = bench.probe("cndev", &[]);
    assert_eq!(lines[0]["version"], "4.0.2");
    let mut device = lines[1]["devices"][1].clone();
    device.as_object_mut().unwrap().remove("missing");
    let expected = json!({
        "vendor": "cambricon", "index": 1, "model": "MLU370-S4", "pci": "0000:66:00.0",
        "driver": "6.10.3", "firmware": "1.1.4",
        "memory_total": 24u64 << 30, "memory_used": 1u64 << 30,
        "utilisation": 0.61, "celsius": 45.0, "watts": 75.0, "frequency_mhz": 1300,
        "ecc": {"corrected": 3, "uncorrected": 0}, "health": {"state": "ok"},
    });
    assert_eq!(device, expected);
    // Version 5 alone, the older forms of the calls, no handles, no temperature of the chip.
    let bench = Bench::with(&[("cndev", "version_5")]);
    let device = &bench.devices("cndev")[0];
    assert_eq!((&device["pci"], &device["driver"]), (&json!("0000:17:00.0"), &json!("6.10.3")));
    assert_eq!((&device["celsius"], &device["watts"]), (&json!(38.0), &json!(33.0)));
    assert_eq!(device["memory_total"], 16u64 << 30);
    assert_eq!(device["memory_used"], 512u64 << 20);
}

#[test]
fn a_cambricon_whose_driver_or_device_is_not_well_cannot_be_used() {
    let bench = Bench::with(&[("cndev", "")]);
    bench.play("driver_state = 6\n");
    let driver = json!({"state": "unusable", "why": {"kind": "driver", "state": 6}});
    assert_eq!(bench.devices("cndev")[0]["health"], driver);
    bench.play("device_state = 0\n");
    let device = json!({"state": "unusable", "why": {"kind": "state", "state": 0}});
    assert_eq!(bench.devices("cndev")[0]["health"], device);
    bench.play("error.cndevGetECCInfo = 10\nmemory = 99999\n");
    let device = &bench.devices("cndev")[0];
    assert_eq!(why(device, "ecc"), json!({"kind": "unsupported", "call": "cndevGetECCInfo"}));
    // More than there is.
    assert_eq!(why(device, "memory_used")["kind"], "implausible");
    assert_eq!(device.get("memory_used"), None);
    bench.play("error.cndevGetDeviceCount = 12\n");
    assert_eq!(bench.devices("cndev"), Vec::<Value>::new());
}

#[test]
fn a_kunlunxin_of_a_known_generation_tells_all_and_of_another_only_plain_numbers() {
    let bench = Bench::with(&[("xpuml", "")]);
    let mut device = bench.devices("xpuml")[0].clone();
    device.as_object_mut().unwrap().remove("missing");
    let expected = json!({
        "vendor": "kunlunxin", "index": 0, "model": "R200", "pci": "0000:81:00.0",
        "driver": "4.0.25", "memory_total": 16u64 << 30, "memory_used": 3u64 << 30,
        "utilisation": 0.12, "celsius": 47.0, "watts": 88.5, "frequency_mhz": 900,
        "health": {"state": "ok"},
    });
    assert_eq!(device, expected);
    // Structures of the third generation are published nowhere.
    let bench = Bench::with(&[("xpuml", "named")]);
    bench.play("generation = 3\n");
    let device = &bench.devices("xpuml")[0];
    assert_eq!((&device["model"], &device["celsius"]), (&json!("P800"), &json!(47.0)));
    for (what, value) in
        [("memory", "memory_total"), ("utilisation", "utilisation"), ("pci", "pci")]
    {
        assert_eq!(device.get(value), None);
        let layout = why(device, what);
        assert_eq!((&layout["kind"], &layout["generation"]), (&json!("unknown_layout"), &json!(3)));
    }
    // Watts, or milliwatts of nothing: it is not guessed.
    bench.play("power = 88\nstate = 208\n");
    let device = &bench.devices("xpuml")[0];
    assert_eq!((device.get("watts"), &why(device, "power")["value"]), (None, &json!(88)));
    let exception = json!({"state": "unusable", "why": {"kind": "state", "state": 208}});
    assert_eq!(device["health"], exception);
}

#[test]
fn a_library_that_cannot_begin_or_counts_what_cannot_be_tells_why() {
    let all = Bench::with(&[("dcmi", ""), ("cndev", ""), ("xpuml", ""), ("acl", "")]);
    all.play("error.dcmi_init = -8013\nerror.cndevInit = 1\nerror.xpumlInit = 9\n");
    let container = json!({"kind": "in_container", "call": "dcmi_init"});
    assert_eq!(all.trouble("dcmi"), container);
    let failed = |call: &str, code: i64| json!({"kind": "failed", "call": call, "code": code});
    assert_eq!(all.trouble("cndev"), failed("cndevInit", 1));
    assert_eq!(all.trouble("xpuml"), failed("xpumlInit", 9));
    all.play("count = 1000000\n");
    for (source, call) in [
        ("dcmi", "dcmi_get_card_list"),
        ("cndev", "cndevGetDeviceCount"),
        ("xpuml", "xpumlDeviceGetCount"),
    ] {
        let expected = json!({"kind": "implausible", "call": call, "value": 1_000_000});
        assert_eq!(all.trouble(source), expected);
    }
    // Another library under the name: nothing that everything begins with.
    fs::copy(all.library("xpuml"), all.library("cndev")).unwrap();
    assert_eq!(all.trouble("cndev")["symbol"], "cndevInit");
    fs::write(all.library("cndev"), "no library").unwrap();
    assert_eq!(all.trouble("cndev")["kind"], "not_loadable");
    fs::remove_file(all.library("cndev")).unwrap();
    assert_eq!(all.trouble("cndev")["kind"], "not_there");
}

#[test]
fn a_library_that_everybody_may_write_to_is_not_loaded() {
    let bench = Bench::with(&[("dcmi", "")]);
    bench.play("crash = dcmi_init\n");
    let path = bench.library("dcmi");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
    assert_eq!(bench.trouble("dcmi")["kind"], "writable_by_others");
}

#[test]
fn what_a_library_prints_does_not_stand_within_the_lines() {
    let bench = Bench::with(&[("xpuml", "")]);
    bench.play("chatter = xpumlDeviceGetCount\n");
    let (lines, output) = bench.probe("xpuml", &["--sweeps", "3", "--every", "10ms"]);
    assert_eq!(lines.len(), 4);
    assert!(String::from_utf8_lossy(&output.stderr).contains("hello from the driver"));
}

/// What a child tells of a library, and how it ended.
fn watched(
    bench: &Bench,
    source: Source,
    sweeps: u32,
    patience: Duration,
    during: impl Fn(&Told) + Send + Sync,
) -> (Vec<Told>, Result<(), Option<Trouble>>) {
    let reading = Reading {
        source,
        library: Some(bench.path().to_owned()),
        every: Duration::from_millis(20),
        sweeps,
        opens: false,
        sandbox: Sandbox::Off,
    };
    let told = Mutex::new(Vec::new());
    let tell = |line: Told| {
        during(&line);
        told.lock().unwrap().push(line);
    };
    // The scenario is found by a variable, which a child inherits: a shell sets it for this one alone.
    let program = bench.path().join("blochd");
    let script = format!(
        "#!/bin/sh\n{}={} exec {} \"$@\"\n",
        standins::SCENARIO,
        bench.scenario().display(),
        env!("CARGO_BIN_EXE_blochd")
    );
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let (_wisher, wish) = watch::channel(Wish::Run);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let ended = runtime.block_on(telemetry::watch(&program, &reading, patience, wish, &tell));
    (told.into_inner().unwrap(), ended)
}

const PATIENT: Duration = Duration::from_secs(60);

fn numbers(told: &[Told]) -> Vec<Vec<(u32, Option<f64>)>> {
    let sweep = |told: &Told| match told {
        Told::Sweep { devices, .. } => {
            Some(devices.iter().map(|device| (device.index, device.celsius)).collect())
        }
        Told::Confined(_) | Told::Library { .. } | Told::Trouble { .. } => None,
    };
    told.iter().filter_map(sweep).collect()
}

#[test]
fn a_temperature_ramps_and_a_card_vanishes_and_returns_in_one_child() {
    let bench = Bench::with(&[("dcmi", ""), ("cndev", ""), ("xpuml", "")]);
    for (source, base) in [(Source::Dcmi, 50.0), (Source::Cndev, 44.0)] {
        bench.play("cards = 2\ntemperature.step = 3\n");
        let (told, ended) = watched(&bench, source, 3, PATIENT, |_| {});
        assert_eq!(ended, Ok(()), "{told:?}");
        let first: Vec<f64> = numbers(&told).iter().map(|all| all[0].1.unwrap()).collect();
        assert_eq!(first[1] - first[0], 3.0);
        assert_eq!(first[2] - first[1], 3.0);
        assert!(first[0] >= base, "{first:?}");
    }
    for source in [Source::Dcmi, Source::Cndev, Source::Xpuml] {
        bench.play("cards = 2\n");
        let sweeps = Mutex::new(0);
        let (told, ended) = watched(&bench, source, 200, PATIENT, |told| {
            if !matches!(told, Told::Sweep { .. }) {
                return;
            }
            let mut sweeps = sweeps.lock().unwrap();
            *sweeps += 1;
            match *sweeps {
                5 => bench.play("cards = 2\ngone = 0\n"),
                60 => bench.play("cards = 2\n"),
                _ => {}
            }
        });
        assert_eq!(ended, Ok(()));
        let counts: Vec<usize> = numbers(&told).iter().map(Vec::len).collect();
        let mut steps = counts.clone();
        steps.dedup();
        assert_eq!(steps, [2, 1, 2], "{source}: {counts:?}");
        // Names and addresses follow the cards, not their numbers.
        let lone = told.iter().find_map(|told| match told {
            Told::Sweep { devices, .. } if devices.len() == 1 => devices[0].pci.clone(),
            _ => None,
        });
        let second = ["0000:3c:00.0", "0000:66:00.0", "0000:82:00.0"];
        assert!(second.contains(&lone.as_deref().unwrap()), "{source}: {lone:?}");
    }
}

#[test]
fn a_library_that_hangs_or_crashes_takes_its_child_along_and_says_so() {
    let bench = Bench::with(&[("dcmi", ""), ("cndev", ""), ("xpuml", "")]);
    for (source, call) in [
        (Source::Dcmi, "dcmi_get_device_health"),
        (Source::Cndev, "cndevGetTemperatureInfo"),
        (Source::Xpuml, "xpumlDeviceGetPowerUsage"),
    ] {
        bench.play(&format!("crash = {call}\n"));
        let (told, ended) = watched(&bench, source, 1, PATIENT, |_| {});
        let Err(Some(Trouble::Ended { how })) = &ended else { panic!("{ended:?}") };
        assert!(how.contains("SIGABRT"), "{how}");
        let trouble = ended.unwrap_err().unwrap();
        assert_eq!(told.last(), Some(&Told::Trouble { trouble }));
        bench.play(&format!("hang = {call}\n"));
        let (told, ended) = watched(&bench, source, 1, Duration::from_secs(3), |_| {});
        assert_eq!(ended, Err(Some(Trouble::Hung { limit_ms: 3020 })));
        assert!(matches!(told.first(), Some(Told::Library { .. })), "{told:?}");
        assert!(matches!(told.last(), Some(Told::Trouble { .. })), "{told:?}");
    }
}

#[test]
fn one_sweep_of_all_three_vendors_costs_little() {
    let bench = Bench::with(&[("dcmi", ""), ("cndev", ""), ("xpuml", "")]);
    bench.play("cards = 2\n");
    for source in [Source::Dcmi, Source::Cndev, Source::Xpuml] {
        let (told, ended) = watched(&bench, source, 40, PATIENT, |_| {});
        assert_eq!(ended, Ok(()));
        let mut costs: Vec<u64> = told
            .iter()
            .filter_map(|told| match told {
                Told::Sweep { cpu_us, .. } => Some(*cpu_us),
                Told::Confined(_) | Told::Library { .. } | Told::Trouble { .. } => None,
            })
            .collect();
        costs.sort_unstable();
        eprintln!("{source}: median {} µs, most {} µs a sweep", costs[20], costs[39]);
        // What is measured decides nothing; that it is measured does.
        assert_eq!(costs.len(), 40);
    }
}
