//! What analysing a model costs: the singular values of all its layers against numpy's on one thread, the
//! share of that work which a changed model costs again, and the memory it takes.
//!
//! `cargo bench --bench analysis` looks at the networks of `tests/models` and at those that
//! `BLOCHD_BENCH_MODELS` names. `BLOCHD_BENCH_PYTHON` names a Python with numpy; without it only blochd is timed.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Instant;

use blochd::onnx::{Graph, Model, Patch, tensor};
use blochd::redundancy::{Beside, Options, analyze};
use blochd::shell::models;
use blochd::shell::spectra_cache::SpectraCache;
use blochd::spectra::{
    Augment, Layer, OperatorMatrix, Precision, SpectraError, layers, spectrum, tiny,
};
use measure::{child, median, milliseconds, number, peak_memory};

mod measure;

/// Rounds in which all routes take their turn.
const ROUNDS: usize = 7;

/// Shares of a model's layers that change between two analyses.
const CHANGED: [f64; 3] = [0.01, 0.1, 1.0];

/// Rounds of the re-analysis; each changes other layers.
const CHANGES: usize = 5;

fn main() {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    if let [mode, model, state] = &arguments[..]
        && mode == "--analyse"
    {
        return analysed(Path::new(model), Path::new(state));
    }
    // Cargo's test runner calls benches without `--bench`; this one takes minutes.
    if !arguments.iter().any(|argument| argument == "--bench") {
        return;
    }
    let (mut speed, mut small, mut again) = (String::new(), String::new(), String::new());
    for path in models_to_look_at() {
        eprintln!("{}", path.display());
        let subject = Subject::of(&path);
        subject.against_numpy(&mut speed, &mut small);
        changed(&path, &mut again);
    }
    println!("\nSpectra of all layers, ms, median of {ROUNDS} rounds (least to most)\n");
    println!(
        "| model | matrices | blochd | numpy SVD, float64 | numpy SVD, float32 | numpy Gram | \
         numpy Gram, batched | against SVD, float64 | against the better Gram | error of blochd | \
         of numpy's Gram | of numpy's float32 SVD |"
    );
    println!("|---|{}\n{speed}", "---|".repeat(11));
    println!("Spectra of the kernels of single channels, all layers, ms\n");
    println!(
        "| model | kernels | blochd | numpy SVD, batched | numpy Gram, batched | \
         against SVD | against Gram | error of blochd | of numpy's Gram |"
    );
    println!("|---|{}\n{small}", "---|".repeat(8));
    println!(
        "A whole analysis (graphs of channels included), and another one of a changed model\n"
    );
    println!(
        "| model | layers | analysis, ms | changed layers | another, ms | share of the time | \
         peak memory, MB | beyond the file, MB |"
    );
    println!("|---|{}\n{again}", "---|".repeat(7));
}

/// The networks of `tests/models`, and those that `BLOCHD_BENCH_MODELS` names: files, or folders with
/// `.onnx` files in them, with `:` between.
fn models_to_look_at() -> Vec<PathBuf> {
    let mut found = inside(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/models"));
    let named = std::env::var_os("BLOCHD_BENCH_MODELS").unwrap_or_default();
    for path in std::env::split_paths(&named).filter(|path| !path.as_os_str().is_empty()) {
        if path.is_dir() {
            found.extend(inside(&path));
        } else {
            found.push(path);
        }
    }
    found
}

fn inside(folder: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = std::fs::read_dir(folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "onnx"))
        .collect();
    found.sort();
    found
}

fn name(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

/// What is compared: matrices of layers, and kernels of channels (data, rows, columns) by layer.
struct Subject {
    name: String,
    matrices: Vec<OperatorMatrix>,
    channels: Vec<(Vec<f32>, usize, usize)>,
}

impl Subject {
    fn of(path: &Path) -> Self {
        let model = models::load(path).expect("a model");
        let graph = Graph::new(&model);
        let found = layers(&graph).0;
        // Scales by channel are left out: numpy would have to be given a diagonal as a dense matrix.
        let linear: Vec<&Layer> = found.iter().filter(|layer| layer.operator().is_some()).collect();
        let matrix = |layer: &&Layer| layer.matrix(&graph, Augment::Affine).expect("weights");
        let kernels = |layer: &&Layer| {
            let operator = layer.operator()?;
            let rows = operator.inputs / operator.group();
            let data = operator.matrix(&graph).expect("weights").data;
            (rows > 1 && operator.taps() > 1).then_some((data, rows, operator.taps()))
        };
        Self {
            name: name(path),
            matrices: linear.iter().map(matrix).collect(),
            channels: linear.iter().filter_map(kernels).collect(),
        }
    }

    fn spectra(&self) -> Result<Vec<Vec<f64>>, SpectraError> {
        let values = |matrix| Ok(spectrum(matrix, Precision::Auto)?.values);
        self.matrices.iter().map(values).collect()
    }

    fn kernels(&self) -> Result<Vec<Vec<Vec<f64>>>, SpectraError> {
        self.channels.iter().map(|(data, rows, cols)| tiny::batch(data, *rows, *cols)).collect()
    }

    fn against_numpy(&self, speed: &mut String, small: &mut String) {
        let mut peer = Peer::start(self);
        let names = ["svd64", "svd32", "gram", "gram_batched", "channels_svd64", "channels_gram"];
        let mut times: Vec<Vec<f64>> = vec![Vec::new(); names.len()];
        let (mut own, mut own_small) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            own.push(seconds(|| self.spectra()));
            own_small.push(seconds(|| self.kernels()));
            if let Some(answer) = peer.as_mut().map(Peer::round) {
                let taken = |name: &&str| number(&answer, name);
                times.iter_mut().zip(&names).for_each(|(all, name)| all.push(taken(name)));
            }
        }
        let (blochd, ms) = (milliseconds(&own), |i: usize| milliseconds(&times[i]));
        let (name, count) = (&self.name, self.matrices.len());
        let Some(peer) = peer else {
            writeln!(speed, "| {name} | {count} | {blochd} |{}", " – |".repeat(9)).expect("text");
            return;
        };
        let error = |route: &str| {
            let of = |i: usize| peer.errors[route][i].as_f64().unwrap_or(f64::NAN);
            format!("{:.0e} / {:.0e}", of(0), of(1))
        };
        let faster = |by: f64, own: &[f64]| format!("{:.1}×", by / median(own));
        let gram = median(&times[2]).min(median(&times[3]));
        let (svd, better) = (faster(median(&times[0]), &own), faster(gram, &own));
        writeln!(
            speed,
            "| {name} | {count} | {blochd} | {} | {} | {} | {} | {svd} | {better} | {} | {} | {} |",
            ms(0),
            ms(1),
            ms(2),
            ms(3),
            error("blochd"),
            error("gram"),
            error("svd32"),
        )
        .expect("text");
        if !self.channels.is_empty() {
            let count: usize = self.channels.iter().map(|(data, r, c)| data.len() / (r * c)).sum();
            let (svd, gram) = (median(&times[4]), median(&times[5]));
            writeln!(
                small,
                "| {name} | {count} | {} | {} | {} | {} | {} | {} | {} |",
                milliseconds(&own_small),
                ms(4),
                ms(5),
                faster(svd, &own_small),
                faster(gram, &own_small),
                error("channels_blochd"),
                error("channels_gram"),
            )
            .expect("text");
        }
    }
}

fn seconds<T>(work: impl FnOnce() -> Result<T, SpectraError>) -> f64 {
    let start = Instant::now();
    std::hint::black_box(work().expect("spectra"));
    start.elapsed().as_secs_f64()
}

/// numpy, waiting for its next turn.
struct Peer {
    process: Child,
    answers: BufReader<ChildStdout>,
    errors: serde_json::Value,
    _folder: tempfile::TempDir,
}

impl Peer {
    fn start(subject: &Subject) -> Option<Self> {
        let python = std::env::var_os("BLOCHD_BENCH_PYTHON")?;
        let folder = tempfile::tempdir().expect("a folder for the matrices");
        let file = |stem: &str, i: usize| folder.path().join(format!("{stem}_{i}.npy"));
        for (i, (matrix, values)) in
            subject.matrices.iter().zip(subject.spectra().expect("spectra")).enumerate()
        {
            let dense = matrix.dense();
            let (rows, cols) = matrix.shape();
            let row = |i: usize| (0..cols).map(move |j| (i, j));
            let data = (0..rows).flat_map(row).flat_map(|at| (dense[at] as f32).to_le_bytes());
            npy(&file("matrix", i), "<f4", &[rows, cols], data.collect());
            let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            npy(&file("blochd", i), "<f8", &[values.len()], bytes);
        }
        let found = subject.kernels().expect("spectra");
        for (i, ((data, rows, cols), values)) in subject.channels.iter().zip(found).enumerate() {
            let bytes = data.iter().flat_map(|value| value.to_le_bytes()).collect();
            npy(&file("channels", i), "<f4", &[values.len(), *rows, *cols], bytes);
            let bytes = values.iter().flatten().flat_map(|value| value.to_le_bytes()).collect();
            let shape = [values.len(), *rows.min(cols)];
            npy(&file("blochd_channels", i), "<f8", &shape, bytes);
        }
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/peers/spectra.py");
        let mut process = Command::new(python)
            .arg(script)
            .arg(folder.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the Python of BLOCHD_BENCH_PYTHON starts");
        let mut answers = BufReader::new(process.stdout.take().expect("its output"));
        let errors = answer(&mut answers);
        Some(Self { process, answers, errors, _folder: folder })
    }

    fn round(&mut self) -> serde_json::Value {
        writeln!(self.process.stdin.as_mut().expect("its input")).expect("the peer listens");
        answer(&mut self.answers)
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        drop(self.process.stdin.take());
        let _ = self.process.wait();
    }
}

fn answer(answers: &mut impl BufRead) -> serde_json::Value {
    let mut line = String::new();
    answers.read_line(&mut line).expect("a line of the peer");
    serde_json::from_str(&line).expect("JSON from the peer")
}

/// Writes an array in numpy's format, version 1.0.
fn npy(path: &Path, dtype: &str, shape: &[usize], data: Vec<u8>) {
    let shape: String = shape.iter().map(|size| format!("{size}, ")).collect();
    let mut head = format!("{{'descr': '{dtype}', 'fortran_order': False, 'shape': ({shape}), }}");
    let length = (10 + head.len() + 1).next_multiple_of(64) - 10;
    head = format!("{head:<width$}\n", width = length - 1);
    let start = [b"\x93NUMPY\x01\x00", &(length as u16).to_le_bytes()[..]].concat();
    std::fs::write(path, [start, head.into_bytes(), data].concat()).expect("room for the matrices");
}

/// The child: one whole analysis as `blochd analyze` makes it of the file alone.
fn analysed(model: &Path, state: &Path) {
    let start = Instant::now();
    let model = models::load(model).expect("a model");
    let mut store = SpectraCache::open(state).expect("a cache");
    let options = Options { augment: Augment::Affine, threshold: 0.1 };
    let found =
        analyze(&model, &options, &mut store, &Beside::default(), &mut |_| ()).expect("a report");
    let seconds = start.elapsed().as_secs_f64();
    let (layers, computed) = (found.layers.len(), found.computed);
    let told = serde_json::json!({
        "seconds": seconds, "layers": layers, "computed": computed, "peak": peak_memory(),
    });
    println!("{told}");
}

fn changed(path: &Path, table: &mut String) {
    let model = models::load(path).expect("a model");
    let size: u64 = std::fs::metadata(path).expect("a model").len();
    let mut full = Vec::new();
    let mut again: Vec<Vec<f64>> = vec![Vec::new(); CHANGED.len()];
    let (mut counts, mut layer_count, mut peak) = ([0; CHANGED.len()], 0.0, 0.0f64);
    for round in 0..CHANGES {
        let folder = tempfile::tempdir().expect("a folder for the state");
        let other = folder.path().join("other.onnx");
        let once = |model: &Path| {
            let arguments = [OsStr::new("--analyse"), model.as_os_str(), folder.path().as_os_str()];
            child(&arguments)
        };
        let first = once(path);
        full.push(number(&first, "seconds"));
        peak = peak.max(number(&first, "peak"));
        layer_count = number(&first, "layers");
        for (i, share) in CHANGED.iter().enumerate() {
            counts[i] = change(&model, *share, 3 * round + i, &other);
            let told = once(&other);
            // What stands twice in a model is computed once, so fewer can be needed than were changed.
            assert!(number(&told, "computed") <= counts[i] as f64, "{told}");
            again[i].push(number(&told, "seconds"));
        }
    }
    for (i, times) in again.iter().enumerate() {
        writeln!(
            table,
            "| {} | {layer_count} | {} | {} | {} | {:.1} % | {:.0} | {:.0} |",
            name(path),
            milliseconds(&full),
            counts[i],
            milliseconds(times),
            100.0 * median(times) / median(&full),
            peak / 1e6,
            (peak - size as f64) / 1e6,
        )
        .expect("text");
    }
}

/// Writes the model with the weights of about a share of its layers changed by a tenth of their size, and
/// says how many layers that were. Other rounds change other layers.
fn change(model: &Model, share: f64, round: usize, to: &Path) -> usize {
    let graph = Graph::new(model);
    let found = layers(&graph).0;
    let weights: Vec<&str> = found.iter().filter_map(Layer::operator).map(|o| &*o.weight).collect();
    let count = (share * weights.len() as f64).ceil() as usize;
    let places = (0..count).map(|i| (i * weights.len() / count + 5 * round) % weights.len());
    let chosen: BTreeSet<&str> = places.map(|place| weights[place]).collect();
    let mut patch = Patch::default();
    for weight in &chosen {
        let values = graph.floats(weight).expect("weights");
        let sign = |i: usize| if (i + round).is_multiple_of(3) { 0.9 } else { 1.1 };
        let values = values.iter().enumerate().map(|(i, value)| value * sign(i));
        let bytes: Vec<u8> = values.flat_map(f32::to_le_bytes).collect();
        let dims = graph.weight_dims(weight).expect("a shape");
        let changed = tensor(weight, blochd::onnx::DType::F32, &dims, bytes);
        patch.constants.insert((*weight).to_owned(), changed);
    }
    let changed = patch.apply(model).expect("a changed model");
    models::save(&changed, to).expect("room for a model");
    weights.iter().filter(|weight| chosen.contains(*weight)).count()
}
