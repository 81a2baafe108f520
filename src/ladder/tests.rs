//! The search for rungs on a workbench that is told what every cut costs and saves.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use super::allocate::Choice;
use super::bench::{Built, Workbench};
use super::fakes::{FakeEngine, Layer, chain};
use super::manifest::{Figures, NotBuilt, Rung};
use super::nest::nests;
use super::plan::Plan;
use super::prices::Prices;
use super::rungs::attempt;
use super::search::{Search, find_plan, most};
use super::task::{LadderError, Options, Step};
use crate::coupling::GroupId;
use crate::limits;
use crate::onnx::{DType, Engine, Graph};
use crate::redundancy::selection::Method;
use crate::surgery::repair::Mode;
use crate::surgery::work;
use crate::units::Digest;

/// Dense takes a hundred microseconds. What a plan truly saves is `truth` times what the items say.
struct FakeBench {
    items: Vec<Vec<Choice>>,
    truth: f64,
    /// What a plan's error is, from the sum of its losses.
    error: fn(&Plan, f64) -> f64,
    /// By what the timing of a variant when it is built is off from the truth.
    luck: fn(&Plan) -> f64,
    /// Ratio of a repaired variant to that of its cut.
    repaired: f64,
    dense: Figures,
    measured: RefCell<Vec<f64>>,
    built: RefCell<Vec<Plan>>,
    promised: Cell<usize>,
    /// Work of one build, where the options bound it to 1.
    work: f64,
}

impl FakeBench {
    fn new(items: Vec<Vec<Choice>>) -> Self {
        Self {
            items,
            truth: 1.0,
            error: |_, loss| loss,
            luck: |_| 1.0,
            repaired: 1.0,
            dense: Figures { p50_us: 100.0, p99_us: 150.0, ratio: 1.0, ..Figures::default() },
            measured: RefCell::default(),
            built: RefCell::default(),
            promised: Cell::new(0),
            work: 0.0,
        }
    }

    /// What a plan saves and loses by the items.
    fn totals(&self, plan: &Plan) -> (f64, f64) {
        let mut totals = (0.0, 0.0);
        for item in &self.items {
            let taken = item.iter().rfind(|choice| {
                let cut = |(group, kept): &(usize, usize)| {
                    plan.widths.get(&GroupId(*group)) == Some(kept)
                };
                choice.bypass.is_none_or(|block| plan.bypass.contains(&block))
                    && choice.widths.iter().all(cut)
            });
            let taken = taken.expect("the choice that changes nothing always holds");
            totals = (totals.0 + taken.saving, totals.1 + taken.loss);
        }
        totals
    }

    fn true_ratio(&self, plan: &Plan) -> f64 {
        1.0 - self.truth * self.totals(plan).0 / self.dense.p50_us
    }
}

impl Workbench for FakeBench {
    fn dense(&self) -> &Figures {
        &self.dense
    }

    fn work(&self) -> f64 {
        self.work
    }

    fn ratio_of(&self, plan: &Plan) -> Result<f64, LadderError> {
        let ratio = self.true_ratio(plan);
        self.measured.borrow_mut().push(ratio);
        Ok(ratio)
    }

    fn build(
        &self,
        asked: f64,
        plan: &Plan,
        _: &mut dyn FnMut(usize, usize),
    ) -> Result<Built, LadderError> {
        self.built.borrow_mut().push(plan.clone());
        let explained = 1.0 - (self.error)(plan, self.totals(plan).1);
        let mut figures = Figures { quality: explained, explained, ..Figures::default() };
        let ratio = self.true_ratio(plan) * self.repaired * (self.luck)(plan);
        figures.take(&self.dense, ratio);
        let rung = Rung {
            in_two: Vec::new(),
            substituted: Vec::new(),
            name: format!("r{asked}"),
            asked,
            file: String::new(),
            digest: Digest::of(b"rung"),
            figures,
            cuts: Vec::new(),
            bypassed: Vec::new(),
            repairs: Vec::new(),
            nested: None,
        };
        let model = chain(17, DType::F32, "v", 1, &[Layer::op("Relu")]);
        Ok(Built { rung, plan: plan.clone(), model })
    }

    fn promise(&self, built: &mut Built) -> Result<(), LadderError> {
        self.promised.set(self.promised.get() + 1);
        let ratio = self.true_ratio(&built.plan) * self.repaired;
        built.rung.figures.take(&self.dense, ratio);
        Ok(())
    }

    fn share_weights(&self, _: &mut Built) -> Result<(), LadderError> {
        Ok(())
    }
}

fn options(floor: f64) -> Options {
    Options {
        low_rank: false,
        ratios: Vec::new(),
        method: Method::Obs,
        importances: BTreeMap::new(),
        repair: Mode::Refit,
        depth: true,
        align: None,
        trials: 6,
        work: Some(1.0),
        seed: 0,
        floor,
        seconds: 1.0,
    }
}

/// A group of 16 channels, each pair of which saves `saving` microseconds and loses `loss`, growing.
fn group(id: usize, saving: f64, loss: f64) -> Vec<Choice> {
    let cut = |pairs: usize| Choice {
        saving: saving * pairs as f64,
        loss: loss * (pairs * pairs) as f64,
        widths: vec![(id, 16 - 2 * pairs)],
        ..Choice::keep()
    };
    std::iter::once(Choice::keep()).chain((1..8).map(cut)).collect()
}

fn groups(count: usize) -> Vec<Vec<Choice>> {
    (0..count).map(|id| group(id, 1.5, 1e-3 * (1.0 + id as f64))).collect()
}

fn built(
    bench: &FakeBench,
    asked: f64,
    floor: f64,
    slower: Option<&Step>,
) -> Result<(Built, Step), NotBuilt> {
    attempt(bench, &options(floor), asked, &bench.items, slower, &mut |_, _| {}).unwrap()
}

fn off(ratio: f64, asked: f64) -> f64 {
    (ratio / asked - 1.0).abs()
}

#[test]
fn a_plan_is_corrected_until_the_whole_model_is_as_fast_as_asked() {
    for truth in [0.6, 1.0, 1.5] {
        let bench = FakeBench { truth, ..FakeBench::new(groups(8)) };
        for asked in [0.9, 0.75, 0.6] {
            let found = find_plan(&bench, asked, &bench.items, None).unwrap().unwrap();
            assert_eq!(found.ratio, bench.true_ratio(&found.plan));
            assert!(off(found.ratio, asked) <= limits::RATIO_TOLERANCE, "{truth}: {}", found.ratio);
            assert!(found.needed <= most(&bench.items));
        }
        assert!(bench.measured.borrow().len() <= 3 * limits::PLAN_CORRECTIONS);
    }
}

#[test]
fn nothing_is_measured_twice_where_steps_leave_nothing_between() {
    // One block: it is there or not.
    let gone = Choice { saving: 30.0, loss: 0.1, bypass: Some(0), ..Choice::keep() };
    let bench = FakeBench::new(vec![vec![Choice::keep(), gone]]);
    let found = find_plan(&bench, 0.85, &bench.items, None).unwrap().unwrap();
    assert!((found.ratio - 0.7).abs() < 1e-9);
    assert_eq!(bench.measured.borrow().len(), 1);
    let missed = built(&bench, 0.85, 0.0, None).unwrap_err();
    assert_eq!(missed.because, "the nearest that the measured steps of this box allow is 0.700");
    assert!(missed.reachable.is_some_and(|ratio| (ratio - 0.7).abs() < 1e-9));
    let missed = built(&bench, 0.3, 0.0, None).unwrap_err();
    assert_eq!(missed.because, "all cuts that are sound together do not save so much time");
    assert!(missed.reachable.is_some_and(|ratio| (ratio - 0.7).abs() < 1e-9));
}

#[test]
fn below_the_floor_it_says_what_can_be_reached() {
    let bench = FakeBench::new(groups(8));
    let missed = built(&bench, 0.5, 0.9, None).unwrap_err();
    assert!(missed.because.contains("below the floor of 0.9"), "{}", missed.because);
    let reachable = missed.reachable.unwrap();
    assert!(reachable > 0.5 && reachable < 1.0, "{reachable}");
    let found = find_plan(&bench, reachable, &bench.items, None).unwrap().unwrap();
    assert!(1.0 - bench.totals(&found.plan).1 >= 0.9);
}

#[test]
fn a_rung_that_is_no_faster_than_what_is_there_is_not_built() {
    let bench = FakeBench::new(groups(8));
    let step = Step { plan: Plan::default(), needed: 30.0, ratio: 0.7 };
    let missed = built(&bench, 0.72, 0.0, Some(&step)).unwrap_err();
    assert!(missed.because.contains("no less than what is there already"), "{}", missed.because);
}

#[test]
fn of_all_variants_the_one_that_errs_least_is_taken() {
    // The table thinks the block dear; once all is repaired it costs nearly nothing.
    let mut items = groups(8);
    let gone = Choice { saving: 25.0, loss: 5.0, bypass: Some(0), ..Choice::keep() };
    items.push(vec![Choice::keep(), gone]);
    let error = |plan: &Plan, loss: f64| if plan.bypass.is_empty() { loss } else { loss - 4.9 };
    let bench = FakeBench { error, ..FakeBench::new(items) };
    let (rung, step) = built(&bench, 0.5, 0.0, None).unwrap();
    assert_eq!(step.plan, rung.plan);
    let explained = rung.rung.figures.explained;
    for plan in bench.built.borrow().iter() {
        let other = 1.0 - error(plan, bench.totals(plan).1);
        let slower = (bench.true_ratio(plan) / rung.rung.figures.ratio).powi(3);
        assert!(1.0 - explained <= (1.0 - other) * slower + 1e-9, "{plan:?} is better");
    }
    assert_eq!(rung.rung.nested, None, "there is none before");
}

/// Luck between -2 % and +2 %, another one for every plan.
#[test]
fn of_a_large_network_fewer_variants_are_built_and_one_at_least() {
    // No plan is near enough to dense to end the search.
    let error = |_: &Plan, loss| 0.1 + loss;
    let built = |work: f64| {
        let bench = FakeBench { work, error, ..FakeBench::new(groups(8)) };
        built(&bench, 0.75, 0.0, None).unwrap();
        bench.built.borrow().len()
    };
    let all = built(0.0);
    assert!(all > 4, "{all}");
    assert_eq!((built(0.25), built(0.5), built(20.0)), (4, 2, 1));
}

#[test]
fn a_wider_layer_is_more_work_and_so_are_more_samples() {
    let of = |width: usize, samples: usize| {
        let layers = [Layer::product(4, width), Layer::op("Relu"), Layer::product(width, 3)];
        let model = chain(17, DType::F32, "v", 1, &layers);
        let graph = Graph::new(&model);
        let shapes = FakeEngine::default().shapes(&model, &BTreeMap::new()).unwrap();
        work(&graph, &shapes, samples)
    };
    assert!(of(64, 8) > 4.0 * of(16, 8), "{} {}", of(64, 8), of(16, 8));
    assert!(of(16, 1000) > 10.0 * of(16, 8), "{} {}", of(16, 1000), of(16, 8));
}

fn luck(plan: &Plan) -> f64 {
    let text = format!("{plan:?}");
    let number =
        u32::from_le_bytes(blake3::hash(text.as_bytes()).as_bytes()[..4].try_into().unwrap());
    1.0 + 0.04 * (f64::from(number) / f64::from(u32::MAX) - 0.5)
}

#[test]
fn a_rung_promises_what_is_measured_once_it_is_chosen_and_not_its_lucky_timing() {
    let bench = FakeBench { luck, ..FakeBench::new(groups(8)) };
    let mut differs = false;
    for asked in [0.8, 0.7, 0.6, 0.5] {
        let (rung, step) = built(&bench, asked, 0.0, None).unwrap();
        let figures = &rung.rung.figures;
        assert_eq!(figures.ratio, bench.true_ratio(&rung.plan));
        assert_eq!(
            (figures.p50_us, figures.p99_us),
            (100.0 * figures.ratio, 150.0 * figures.ratio)
        );
        assert_eq!(step.ratio, figures.ratio);
        differs |= (luck(&rung.plan) - 1.0).abs() > 1e-3;
    }
    assert!(differs, "the luck of these plans is no test");
}

#[test]
fn a_rung_whose_promise_misses_the_mark_is_planned_anew_and_not_for_ever() {
    // When they are built, variants seem to be as fast as their cuts; they are a tenth slower.
    let seems = |_: &Plan| 1.0 / 1.1;
    let bench = FakeBench { repaired: 1.1, luck: seems, ..FakeBench::new(groups(8)) };
    let (rung, _) = built(&bench, 0.6, 0.0, None).unwrap();
    let ratio = rung.rung.figures.ratio;
    assert_eq!(ratio, bench.true_ratio(&rung.plan) * 1.1);
    assert!(off(ratio, 0.6) <= limits::RATIO_TOLERANCE, "{ratio}");
    assert!(bench.promised.get() <= 1 + limits::PROMISE_CORRECTIONS);
    // What no plan can mend is promised as it is.
    let bench = FakeBench { repaired: 1.5, luck: |_| 1.0 / 1.5, ..FakeBench::new(groups(4)) };
    let (rung, _) = built(&bench, 0.65, 0.0, None).unwrap();
    let ratio = rung.rung.figures.ratio;
    assert_eq!(ratio, bench.true_ratio(&rung.plan) * 1.5);
    assert!(off(ratio, 0.65) > limits::RATIO_TOLERANCE);
    assert!(bench.promised.get() <= 1 + limits::PROMISE_CORRECTIONS);
}

#[test]
fn the_next_search_begins_where_the_last_one_ended() {
    // The table promises twice of what comes true.
    let bench = FakeBench { truth: 0.5, ..FakeBench::new(groups(16)) };
    let (_, step) = built(&bench, 0.8, 0.0, None).unwrap();
    let first = |slower: Option<&Step>| {
        bench.measured.borrow_mut().clear();
        let mut search = Search::new(0.6, &bench.items, slower, usize::MAX);
        search.price(&bench, Prices::uniform(16, 1.0), &mut |_, _| {}).unwrap();
        bench.measured.borrow()[0]
    };
    assert!(off(first(None), 0.6) > 0.2);
    assert!(off(first(Some(&step)), 0.6) < 0.03);
}

/// Errors of plans that do not remove what the rung before does, and those that do. The search for less finds
/// the second item cheaper.
fn ladder_of(nested: f64, free: f64) -> (FakeBench, Step, Vec<Vec<Choice>>) {
    let cut = |id: usize, kept: usize, saving: f64, loss: f64| Choice {
        saving,
        loss,
        widths: vec![(id, kept)],
        ..Choice::keep()
    };
    let items = vec![
        vec![Choice::keep(), cut(0, 8, 20.0, 0.05), cut(0, 4, 40.0, nested)],
        vec![Choice::keep(), cut(1, 8, 20.0, 0.2), cut(1, 4, 40.0, free)],
    ];
    let bench = FakeBench::new(items.clone());
    let (rung, step) = built(&bench, 0.8, 0.0, None).unwrap();
    assert_eq!(rung.plan.widths, [(GroupId(0), 8)].into());
    (bench, step, items)
}

#[test]
fn a_rung_nests_in_the_one_before_where_that_costs_nothing() {
    let (bench, step, items) = ladder_of(0.11, 0.105);
    let (rung, next) = built(&bench, 0.6, 0.0, Some(&step)).unwrap();
    assert_eq!(rung.plan.widths, [(GroupId(0), 4)].into(), "within noise of the best");
    assert_eq!(rung.rung.nested, Some(true));
    assert!(nests(&items, &step.plan, &next.plan));
    assert!(bench.built.borrow().iter().any(|plan| plan.widths == [(GroupId(1), 4)].into()));
}

#[test]
fn a_rung_does_not_nest_where_that_costs_quality_and_says_so() {
    let (bench, step, items) = ladder_of(0.15, 0.105);
    let (rung, next) = built(&bench, 0.6, 0.0, Some(&step)).unwrap();
    assert_eq!(rung.plan.widths, [(GroupId(1), 4)].into());
    assert_eq!(rung.rung.nested, Some(false));
    assert!(!nests(&items, &step.plan, &next.plan));
}

#[test]
fn a_nesting_rung_is_looked_for_a_few_times_at_most() {
    let bench = FakeBench::new(groups(16));
    let (_, step) = built(&bench, 0.8, 0.0, None).unwrap();
    let before = bench.built.borrow().len();
    let (rung, next) = built(&bench, 0.6, 0.0, Some(&step)).unwrap();
    let most = limits::REMOVED_PRICES.len() + 6 + limits::NESTED_TRIALS;
    assert!(bench.built.borrow().len() - before <= 2 * most);
    assert_eq!(rung.rung.nested, Some(nests(&bench.items, &step.plan, &next.plan)));
}
