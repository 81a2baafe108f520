//! What widths that fill the blocks of an accelerator are worth: the same multiply-adds of `digits_resnet`, spread
//! over its residual blocks evenly or in multiples of 16 channels, on the simulated accelerator of the tests (a
//! plugin of ONNX Runtime whose core works in blocks of 16 × 16 channels) and on this processor.
//!
//! `cargo bench --bench npu`. Dense and all variants run in turn, round by round; what is told is the lower quartile
//! of each over dense's. The accelerator's times are modelled by a rule and waited for: they say what the pruner
//! can gain where cores behave so, and nothing of a chip.

// Each user of it needs a part.
#[path = "../tests/standins/mod.rs"]
mod standins;

use std::collections::BTreeMap;
use std::path::Path;

use blochd::config::Provider;
use blochd::coupling::{Coupling, GroupId, couple};
use blochd::ladder::report;
use blochd::ladder::timing::{Candidate, Timings};
use blochd::onnx::{Engine, Graph, Model, Shapes, Tensor};
use blochd::shell::engine::{EngineOptions, OrtEngine, Search, init};
use blochd::shell::{models, places};
use blochd::surgery::{self, Cut};
use standins::{Bench, SCENARIO, npu};

/// Channels that the three blocks of a stage keep together, of 64 each, and of 96 in the last stage: multiples of
/// 16, and not of 48.
const TOTALS: [(usize, usize); 5] = [(160, 256), (128, 208), (112, 160), (80, 128), (64, 80)];
const BLOCK: usize = 16;
/// Seconds for which all candidates of an engine run in turn.
const SECONDS: f64 = 60.0;

fn main() {
    // Cargo's test runner calls benches without `--bench`.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let bench = Bench::with(&[("npu", "")]);
    // SAFETY: no other thread is there yet.
    unsafe { std::env::set_var(SCENARIO, bench.scenario()) };
    let runtime = init(&Search::new(None, &places::state_dir())).unwrap();
    let engine =
        |provider| OrtEngine::new(&runtime, EngineOptions { provider, ..EngineOptions::default() });
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/models/digits_resnet.onnx");
    let dense = models::load(&path).unwrap();
    let cpu = engine(Provider::Cpu);
    let variants = variants(&cpu, &dense);
    for (what, engine) in
        [("simulated accelerator", engine(Provider::Plugin(npu::plugin(&bench)))), ("CPU", cpu)]
    {
        println!("\n{what}: {}\n", engine.identity());
        table(&engine, &dense, &variants);
    }
}

struct Variant {
    model: Model,
    macs: u64,
    widths: [Vec<usize>; 3],
}

/// For every total one variant with even widths and one with multiples of 16, and dense before them.
fn variants(engine: &dyn Engine, dense: &Model) -> Vec<(Variant, Variant)> {
    let graph = Graph::new(dense);
    let shapes = engine.shapes(dense, &sizes()).unwrap();
    let coupling = couple(&graph, &shapes);
    let stages = stages(&coupling);
    let of =
        |widths: [Vec<usize>; 3]| variant(engine, (dense, &shapes, &coupling), &stages, widths);
    TOTALS
        .iter()
        .map(|(narrow, wide)| {
            let totals = [*narrow, *narrow, *wide];
            (of(totals.map(evenly)), of(totals.map(in_blocks)))
        })
        .collect()
}

/// Three widths that differ by one at most.
fn evenly(total: usize) -> Vec<usize> {
    (0..3).map(|at| (total + at) / 3).collect()
}

/// Three multiples of 16 that differ by 16 at most.
fn in_blocks(total: usize) -> Vec<usize> {
    (0..3).map(|at| (total / BLOCK + at) / 3 * BLOCK).collect()
}

fn sizes() -> BTreeMap<String, usize> {
    BTreeMap::from([("N".to_owned(), 1)])
}

/// The groups inside of blocks, by the stage that they are in; those of the streams are left as they are.
fn stages(coupling: &Coupling) -> [Vec<GroupId>; 3] {
    let inner: Vec<_> = coupling.groups.iter().filter(|group| !group.stream).collect();
    assert_eq!(inner.len(), 9, "three stages of three blocks");
    let stage = |at: usize| inner[3 * at..3 * at + 3].iter().map(|group| group.id).collect();
    [stage(0), stage(1), stage(2)]
}

fn variant(
    engine: &dyn Engine,
    (dense, shapes, coupling): (&Model, &Shapes, &Coupling),
    stages: &[Vec<GroupId>; 3],
    widths: [Vec<usize>; 3],
) -> Variant {
    let groups = stages.iter().flatten().zip(widths.iter().flatten());
    let removed = groups.map(|(id, width)| {
        let group = coupling.groups.iter().find(|group| group.id == *id).unwrap();
        (*id, (*width..group.width).collect())
    });
    let cut = Cut { removed: removed.collect() };
    let model = surgery::apply(dense, coupling, shapes, &cut).unwrap();
    let shapes = engine.shapes(&model, &sizes()).unwrap();
    let macs = report::macs(&Graph::new(&model), &shapes);
    Variant { model, macs, widths }
}

fn table(engine: &OrtEngine, dense: &Model, variants: &[(Variant, Variant)]) {
    let image: Vec<f32> = (0..28 * 28).map(|at| (at % 13) as f32 / 6.0 - 1.0).collect();
    let image = Tensor::from_f32(&[1, 1, 28, 28], &image);
    let both = variants.iter().flat_map(|(even, blocks)| [&even.model, &blocks.model]);
    let mut candidates: Vec<Candidate<'_>> = std::iter::once(dense)
        .chain(both)
        .map(|model| Candidate {
            session: engine.open(model).unwrap(),
            inputs: vec![("input", &image)],
        })
        .collect();
    let timings = Timings::take(&mut candidates, SECONDS).unwrap();
    let shapes = engine.shapes(dense, &sizes()).unwrap();
    let all = report::macs(&Graph::new(dense), &shapes) as f64;
    println!("dense: {:.2} ms", timings.percentile(0, 0.25) / 1e3);
    println!("| widths in turn, evenly / in blocks | MACs | evenly | in blocks | gain |");
    println!("|---|---|---|---|---|");
    for (at, (even, blocks)) in variants.iter().enumerate() {
        let (one, other) = (timings.ratio(2 * at + 1), timings.ratio(2 * at + 2));
        let share = |variant: &Variant| variant.macs as f64 / all;
        println!(
            "| {} / {} | {:.3} / {:.3} | {one:.3} | {other:.3} | {:.1} % |",
            words(&even.widths),
            words(&blocks.widths),
            share(even),
            share(blocks),
            100.0 * (1.0 - other / one),
        );
    }
}

fn words(widths: &[Vec<usize>; 3]) -> String {
    let stage =
        |stage: &Vec<usize>| stage.iter().map(usize::to_string).collect::<Vec<_>>().join(" ");
    widths.iter().map(stage).collect::<Vec<_>>().join(", ")
}
