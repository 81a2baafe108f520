//! Whole ladders of a real network. The runtime computes; what an operator takes is told by a rule instead of a
//! clock, so that the same ladder comes out on every machine and every run.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use blochd::coupling::{blocks, couple};
use blochd::ladder::calibration::{Samples, free_sizes, from_arrays, inputs};
use blochd::ladder::manifest::{CalibrationSource, Rung};
use blochd::ladder::report;
use blochd::ladder::table::LatencyTable;
use blochd::ladder::task::{Eval, Event, Keeper, Ladder, LadderError, Options, SoFar, Task};
use blochd::onnx::{Engine, ExecError, Graph, Model, Session, Shapes, Tensor, values};
use blochd::redundancy::selection::Method;
use blochd::shell::engine::{EngineOptions, OrtEngine, Search, init};
use blochd::shell::{models, npz, places};
use blochd::surgery::repair::Mode;

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/models").join(name)
}

/// Runs on ONNX Runtime; a run is said to take so many microseconds an operator, and one for every hundred
/// thousand products.
#[derive(Clone)]
struct Paced {
    engine: OrtEngine,
    per_operator: f64,
}

struct PacedSession {
    session: Box<dyn Session>,
    engine: Paced,
    model: Model,
    taken: Option<Duration>,
}

impl Engine for Paced {
    fn identity(&self) -> String {
        "a rule".to_owned()
    }

    fn shapes(&self, model: &Model, fixed: &BTreeMap<String, usize>) -> Result<Shapes, ExecError> {
        self.engine.shapes(model, fixed)
    }

    fn open(&self, model: &Model) -> Result<Box<dyn Session>, ExecError> {
        let (session, engine) = (self.engine.open(model)?, self.clone());
        Ok(Box::new(PacedSession { session, engine, model: model.clone(), taken: None }))
    }
}

impl Session for PacedSession {
    fn run(&mut self, inputs: &[(&str, &Tensor)]) -> Result<Vec<Tensor>, ExecError> {
        self.session.run(inputs)
    }

    fn time(
        &mut self,
        inputs: &[(&str, &Tensor)],
        runs: usize,
    ) -> Result<Vec<Duration>, ExecError> {
        if self.taken.is_none() {
            let batch = inputs.iter().map(|(n, t)| ((*n).to_owned(), (*t).clone())).collect();
            let shapes = self.engine.shapes(&self.model, &free_sizes(&self.model, &batch))?;
            let graph = Graph::new(&self.model);
            let operators = graph.nodes().len() as f64;
            let micros =
                self.engine.per_operator * operators + report::macs(&graph, &shapes) as f64 / 1e5;
            self.taken = Some(Duration::from_nanos((micros * 1e3) as u64));
        }
        Ok(vec![self.taken.unwrap_or_default(); runs])
    }
}

/// Keeps everything in memory; `stop_after` so many rungs it has no more room.
#[derive(Default)]
struct Kept {
    models: BTreeMap<String, Model>,
    so_far: Option<SoFar>,
    told: Vec<String>,
    stop_after: Option<usize>,
    timed: Cell<usize>,
}

impl Keeper for Kept {
    fn told(&mut self, event: &Event) {
        if let Event::Progress { stage, .. } = event
            && self.told.last().is_none_or(|last| last != stage)
        {
            self.told.push((*stage).to_owned());
        }
    }

    fn rung(&mut self, rung: &mut Rung, model: &Model) -> Result<(), String> {
        if self.stop_after.is_some_and(|most| self.models.len() >= most) {
            return Err("there is no more room".to_owned());
        }
        rung.file = format!("{}.onnx", rung.name);
        self.models.insert(rung.name.clone(), model.clone());
        Ok(())
    }

    fn so_far(&mut self, so_far: &SoFar) -> Result<(), String> {
        self.so_far = Some(so_far.clone());
        Ok(())
    }

    fn timed(&mut self, _: &LatencyTable, _: bool) {
        self.timed.set(self.timed.get() + 1);
    }
}

struct Subject {
    engine: Paced,
    model: Model,
    samples: Samples,
    eval: Eval,
}

fn subject() -> &'static Subject {
    static SUBJECT: OnceLock<Subject> = OnceLock::new();
    SUBJECT.get_or_init(|| {
        let runtime = init(&Search::new(None, &places::state_dir()));
        let runtime = runtime.unwrap_or_else(|error| panic!("{error}"));
        let engine = OrtEngine::new(&runtime, EngineOptions::default());
        let engine = Paced { engine, per_operator: 10.0 };
        let model = models::load(&data("digits_resnet.onnx")).unwrap();
        let specs = inputs(&model).unwrap();
        let read = |name: &str, most: usize| {
            let arrays = npz::read(&data(name)).unwrap();
            let from = CalibrationSource::File;
            (from_arrays(&specs, &arrays, most, from).unwrap(), arrays["labels"].clone())
        };
        let (samples, _) = read("digits_calibration.npz", 96);
        let (test, labels) = read("digits_test.npz", usize::MAX);
        let labels = values::integers(labels.dtype, &labels.data);
        Subject { engine, model, samples, eval: Eval { samples: test, labels } }
    })
}

fn options(ratios: &[f64]) -> Options {
    Options {
        low_rank: true,
        ratios: ratios.to_vec(),
        method: Method::Obs,
        importances: BTreeMap::new(),
        repair: Mode::Refit,
        depth: true,
        align: None,
        trials: 1,
        work: None,
        seed: 0,
        floor: 0.0,
        seconds: 0.0,
    }
}

fn make(options: &Options, before: Option<SoFar>, kept: &mut Kept) -> Result<Ladder, LadderError> {
    make_on(&subject().engine, options, before, kept)
}

fn make_on(
    engine: &Paced,
    options: &Options,
    before: Option<SoFar>,
    kept: &mut Kept,
) -> Result<Ladder, LadderError> {
    let subject = subject();
    let task = Task {
        engine,
        model: &subject.model,
        samples: &subject.samples,
        eval: Some(&subject.eval),
        options,
    };
    task.make(before, &mut LatencyTable::default(), kept)
}

const RATIOS: [f64; 3] = [0.8, 0.6, 0.45];

/// The ladder that most tests look at.
fn ladder() -> &'static (Ladder, BTreeMap<String, Model>) {
    static LADDER: OnceLock<(Ladder, BTreeMap<String, Model>)> = OnceLock::new();
    LADDER.get_or_init(|| {
        let mut kept = Kept::default();
        let ladder = make(&options(&RATIOS), None, &mut kept).unwrap();
        assert_eq!(ladder.rungs.len(), RATIOS.len(), "{:?}", ladder.not_built);
        (ladder, kept.models)
    })
}

#[test]
fn every_rung_is_as_fast_as_asked_and_nearly_as_good_as_dense() {
    let (ladder, models) = ladder();
    let dense = ladder.dense.accuracy.unwrap();
    assert!(dense > 0.98, "{dense}");
    for (rung, (asked, most_lost)) in ladder.rungs.iter().zip(RATIOS.iter().zip([0.01, 0.02, 0.05]))
    {
        let figures = &rung.figures;
        assert!((figures.ratio / asked - 1.0).abs() < 0.06, "{}: {}", rung.name, figures.ratio);
        assert_eq!(figures.p50_us, ladder.dense.p50_us * figures.ratio);
        assert!(figures.macs < ladder.dense.macs && figures.params < ladder.dense.params);
        let accuracy = figures.accuracy.unwrap();
        assert!(dense - accuracy <= most_lost, "{}: {accuracy}", rung.name);
        assert_eq!(models[&rung.name].digest().unwrap(), rung.digest);
    }
}

#[test]
fn every_removed_channel_has_its_certificate() {
    let (ladder, _) = ladder();
    let mut removed = 0;
    for cut in ladder.rungs.iter().flat_map(|rung| &rung.cuts) {
        let gone: BTreeSet<usize> = cut.removed.iter().map(|one| one.channel).collect();
        assert_eq!((gone.len(), cut.removed.len()), (cut.width - cut.kept, gone.len()));
        for one in &cut.removed {
            let stands = one.represented_by;
            assert!(stands < cut.width && !gone.contains(&stands), "{}: {one:?}", cut.group);
            let all = [one.d_fs, one.d_response, one.bound, one.measured];
            assert!(all.iter().all(Option::is_some), "{}: {one:?}", cut.group);
            // All kept channels together do no worse than the best one alone.
            assert!(one.measured.unwrap() <= one.bound.unwrap() + 1e-3, "{}: {one:?}", cut.group);
            removed += 1;
        }
    }
    assert!(removed > 0);
}

#[test]
fn a_faster_rung_that_is_said_to_nest_has_lost_all_that_the_slower_one_lost() {
    let (ladder, _) = ladder();
    let subject = subject();
    let graph = Graph::new(&subject.model);
    let fixed = free_sizes(&subject.model, &subject.samples.first);
    let shapes = subject.engine.shapes(&subject.model, &fixed).unwrap();
    let coupling = couple(&graph, &shapes);
    let blocks = blocks(&graph, &coupling, &shapes);
    // Groups that go with a removed block.
    let gone_in = |rung: &Rung| -> BTreeSet<String> {
        let removed = blocks.iter().filter(|b| rung.bypassed.contains(&graph.label(b.add)));
        let ids: Vec<_> = removed.flat_map(|block| &block.groups).collect();
        let groups = coupling.groups.iter().filter(|group| ids.contains(&&group.id));
        groups.map(|group| group.name.clone()).collect()
    };
    let channels = |rung: &Rung, group: &str| -> BTreeSet<usize> {
        let cut = rung.cuts.iter().find(|cut| cut.group == group);
        cut.iter().flat_map(|cut| &cut.removed).map(|one| one.channel).collect()
    };
    assert_eq!(ladder.rungs[0].nested, None);
    for pair in ladder.rungs.windows(2) {
        let [slower, faster] = pair else { unreachable!() };
        let gone = gone_in(faster);
        let blocks_stay = slower.bypassed.iter().all(|block| faster.bypassed.contains(block));
        let contained = slower.cuts.iter().all(|cut| {
            gone.contains(&cut.group)
                || channels(slower, &cut.group).is_subset(&channels(faster, &cut.group))
        });
        assert_eq!(faster.nested, Some(blocks_stay && contained), "{}", faster.name);
    }
    assert!(ladder.rungs.iter().any(|rung| rung.nested == Some(true)), "none nests: no test");
}

#[test]
fn equal_tensors_of_a_rung_are_held_once() {
    let (ladder, models) = ladder();
    for rung in &ladder.rungs {
        let graph = Graph::new(&models[&rung.name]);
        let mut seen = BTreeMap::new();
        for (name, weight) in graph.weights() {
            let bytes = graph.weight_bytes(name).unwrap().unwrap();
            if bytes.len() < blochd::limits::SHARED_BYTES {
                continue;
            }
            let contents = (weight.tensor.data_type, weight.tensor.dims.clone(), bytes);
            let other = seen.insert(contents, name);
            assert_eq!(other, None, "{name} of {} is there twice", rung.name);
        }
        assert!(!seen.is_empty());
    }
}

#[test]
fn the_refit_explains_more_than_statistics_do_on_the_same_cuts() {
    // One rung, so that nothing hangs on the one before; what is asked and offered is the same.
    let at = |repair| {
        let more = Options { low_rank: false, depth: false, ..options(&[0.6]) };
        let asked = Options { repair, trials: 0, ..more };
        let ladder = make(&asked, None, &mut Kept::default()).unwrap();
        ladder.rungs.into_iter().next().unwrap()
    };
    let [refit, statistics] = [Mode::Refit, Mode::Statistics].map(at);
    let plan = |rung: &Rung| -> Vec<(String, BTreeSet<usize>)> {
        let cuts = rung.cuts.iter();
        cuts.map(|cut| (cut.group.clone(), cut.removed.iter().map(|c| c.channel).collect()))
            .collect()
    };
    assert_eq!(plan(&refit), plan(&statistics));
    let explained = [&refit, &statistics].map(|rung| rung.figures.explained);
    // What is left unexplained: statistics repair every operator that they can, too.
    assert!(5.0 * (1.0 - explained[0]) < 1.0 - explained[1], "{explained:?}");
    assert!(refit.figures.accuracy > statistics.figures.accuracy);
    assert!(refit.repairs.iter().any(|one| one.kind == "refit" && one.after < one.before));
}

#[test]
fn whole_blocks_are_offered_where_nothing_else_saves_so_much() {
    // Most of the time is what every operator takes whatever its width.
    let engine = Paced { per_operator: 100.0, ..subject().engine.clone() };
    let half = |depth| {
        let asked = Options { depth, trials: 0, ..options(&[0.5]) };
        make_on(&engine, &asked, None, &mut Kept::default()).unwrap()
    };
    let narrower = half(false);
    assert_eq!(narrower.rungs, []);
    let because = &narrower.not_built[0].because;
    assert_eq!(because, "all cuts that are sound together do not save so much time");
    let removed = half(true);
    let rung = removed.rungs.first().unwrap_or_else(|| panic!("{:?}", removed.not_built));
    assert!(!rung.bypassed.is_empty());
    let graph = Graph::new(&subject().model);
    for name in &rung.bypassed {
        let add = graph.nodes().iter().position(|node| node.name.as_ref() == Some(name)).unwrap();
        assert_eq!(graph.op(add), "Add");
    }
}

#[test]
fn a_build_that_stops_between_rungs_ends_as_one_that_did_not() {
    let (whole, models) = ladder();
    // The rung that is lost is built again, and the one behind it.
    let done = 1;
    let mut kept = Kept { stop_after: Some(done), ..Kept::default() };
    let stopped = make(&options(&RATIOS), None, &mut kept);
    assert!(matches!(stopped, Err(LadderError::NotKept(_))), "{done}");
    // What is kept goes through a file.
    let text = serde_json::to_string(&kept.so_far).unwrap();
    let before: Option<SoFar> = serde_json::from_str(&text).unwrap();
    let mut again = Kept::default();
    let ladder = make(&options(&RATIOS), before, &mut again).unwrap();
    assert_eq!(ladder.rungs, whole.rungs, "stopped after {done}");
    assert_eq!((&ladder.dense, &ladder.not_built), (&whole.dense, &whole.not_built));
    let built: Vec<&String> = again.models.keys().collect();
    let expected: BTreeSet<String> =
        whole.rungs[done..].iter().map(|rung| rung.name.clone()).collect();
    assert_eq!(built, expected.iter().collect::<Vec<_>>(), "only what was missing is built");
    for (name, model) in &again.models {
        assert_eq!(model.digest().unwrap(), models[name].digest().unwrap());
    }
    assert!(again.timed.get() > 0, "latencies are handed on while they are taken");
}
