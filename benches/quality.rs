//! What one-shot pruning costs in accuracy at the same measured latency: the default (block OBS and refit)
//! against magnitude and random selection with per-channel statistics repaired, all of them planned by the
//! same latency table and measured in the same way.
//!
//! `cargo bench --bench quality` prunes the network of `tests/models`. Further networks are taken from the
//! folder that `BLOCHD_BENCH_MODELS` names: every `NAME_DATA.onnx` in it with `DATA_calibration.npz` and
//! `DATA_test.npz` (arrays named as the input, and `labels`).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use blochd::ladder::Manifest;

/// What is compared: a name, the selection, the repair.
const METHODS: [(&str, &str, &str); 3] = [
    ("block OBS + refit (default)", "obs", "refit"),
    ("magnitude + statistics", "magnitude", "statistics"),
    ("random + statistics", "random", "statistics"),
];

const SEEDS: [&str; 3] = ["0", "1", "2"];

/// By the ratio that was asked for: measured ratio and accuracy, one a seed.
type Cells = BTreeMap<String, Vec<(f64, f64)>>;

struct Subject {
    model: PathBuf,
    calibration: PathBuf,
    test: PathBuf,
}

fn main() {
    // Cargo's test runner calls benches without `--bench`; this one takes minutes.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let ratios = std::env::var("BLOCHD_BENCH_RATIOS").unwrap_or_else(|_| "0.75,0.6".to_owned());
    for subject in subjects() {
        table(&subject, &ratios);
    }
}

fn subjects() -> Vec<Subject> {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/models");
    let mut found = vec![Subject {
        model: own.join("digits_resnet.onnx"),
        calibration: own.join("digits_calibration.npz"),
        test: own.join("digits_test.npz"),
    }];
    let Ok(folder) = std::env::var("BLOCHD_BENCH_MODELS") else { return found };
    let mut models: Vec<PathBuf> = std::fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{folder}: {error}"))
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "onnx"))
        .collect();
    models.sort();
    for model in models {
        let stem = model.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let data = stem.rsplit('_').next().unwrap_or_default();
        let beside = |what: &str| Path::new(&folder).join(format!("{data}_{what}.npz"));
        let (calibration, test) = (beside("calibration"), beside("test"));
        found.push(Subject { model, calibration, test });
    }
    found
}

fn table(subject: &Subject, ratios: &str) {
    let name = subject.model.file_name().unwrap_or_default().to_string_lossy();
    let mut dense = None;
    let mut rows: Vec<(&str, Cells, usize)> = Vec::new();
    for (label, method, repair) in METHODS {
        let mut cells = Cells::new();
        let mut missing = 0;
        for seed in SEEDS {
            eprintln!("{name}: {label}, seed {seed}");
            let manifest = prune(subject, ratios, method, repair, seed);
            dense = manifest.dense.accuracy.or(dense);
            missing += manifest.not_built.len();
            for rung in manifest.rungs {
                let accuracy = rung.figures.accuracy.unwrap_or(f64::NAN);
                cells
                    .entry(rung.asked.to_string())
                    .or_default()
                    .push((rung.figures.ratio, accuracy));
            }
        }
        rows.push((label, cells, missing));
    }
    let asked: Vec<&str> = ratios.split(',').collect();
    let heads: Vec<String> =
        asked.iter().map(|ratio| format!(" {ratio}: measured ratio | accuracy, % |")).collect();
    println!(
        "\n{name}, dense {:.1} %, {} seeds: median (least to most)\n",
        100.0 * dense.unwrap_or(f64::NAN),
        SEEDS.len()
    );
    println!("| method |{}", heads.concat());
    println!("|---|{}", "---|".repeat(2 * asked.len()));
    for (label, cells, missing) in rows {
        let cell = |ratio: &&str| {
            let Some(values) = cells.get(*ratio) else { return " – | not reached |".to_owned() };
            let measured = spread(values.iter().map(|value| value.0).collect(), 3);
            let accuracy = spread(values.iter().map(|value| 100.0 * value.1).collect(), 1);
            format!(" {measured} | {accuracy} |")
        };
        let note = if missing > 0 { format!(" ({missing} not reached)") } else { String::new() };
        println!("| {label}{note} |{}", asked.iter().map(cell).collect::<String>());
    }
}

fn prune(subject: &Subject, ratios: &str, method: &str, repair: &str, seed: &str) -> Manifest {
    let out = tempfile::tempdir().expect("a folder for the rungs");
    let mut command = Command::new(env!("CARGO_BIN_EXE_blochd"));
    command.arg("prune").arg(&subject.model).arg("--out").arg(out.path());
    command.arg("--calibration").arg(&subject.calibration).arg("--eval").arg(&subject.test);
    // No floor: a peer that breaks the network is shown with what is left of it.
    command.args(["--ratios", ratios, "--method", method, "--repair", repair, "--seed", seed]);
    command.args(["--floor", "0", "--json"]);
    let output = command.output().expect("blochd runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("a manifest")
}

/// Median (least to most).
fn spread(mut values: Vec<f64>, digits: usize) -> String {
    values.sort_by(f64::total_cmp);
    let (least, middle, most) = (values[0], values[values.len() / 2], values[values.len() - 1]);
    format!("{middle:.digits$} ({least:.digits$} to {most:.digits$})")
}
