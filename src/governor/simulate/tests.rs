//! What the governor promises, held against one model on a box without a queue: requests at a steady rate, each
//! taking what the variant promised times the box's slowdown of that moment, with seeded noise.

use std::time::Duration;

use proptest::prelude::*;

use super::super::{Because, Conviction, ModelView, Observed, State, VariantView, step};
use super::{Driver, Noise, Site, Subject, Switch};
use crate::units::Percentile;

/// What happened in a run.
#[derive(Debug)]
struct Run {
    switches: Vec<Switch>,
    current: usize,
    convicted: Vec<(Duration, Conviction)>,
    /// When, by which variant, how long it took.
    requests: Vec<(Duration, usize, Duration)>,
}

/// How the box behaves.
struct Scene<'a> {
    /// Requests a second.
    rate: f64,
    /// The box's slowdown at a moment.
    slowdown: &'a dyn Fn(Duration) -> f64,
    /// What a variant really takes, over what it promises.
    truth: &'a dyn Fn(usize) -> f64,
    /// Largest share by which a request is slower than that by chance.
    noise: f64,
    seed: u64,
}

fn simulate(view: ModelView, scene: &Scene, length: Duration) -> Run {
    let variants = view.variants.iter().enumerate();
    let medians =
        variants.map(|(index, variant)| variant.promised.mul_f64((scene.truth)(index))).collect();
    let between = 1.0 / scene.rate;
    let count = (length.as_secs_f64() * scene.rate) as u32;
    let subject = Subject {
        view,
        percentile: Percentile::P99,
        medians,
        // Nobody waits for another.
        instances: 1000,
        queue: 0,
        arrivals: (0..count).map(|n| Duration::from_secs_f64(f64::from(n) * between)).collect(),
        slowdown: Box::new(scene.slowdown),
        noise: Noise::Uniform(scene.noise),
        seed: scene.seed,
    };
    let site = Site { cores: None, tick: Duration::from_millis(250), length };
    let mut lanes = super::run(&[subject], &site, Driver::Governor);
    let lane = lanes.remove(0);
    let answered = lane.requests.iter();
    let answered =
        answered.filter_map(|served| Some((served.arrived, served.variant, served.latency?)));
    Run {
        requests: answered.collect(),
        switches: lane.switches,
        current: lane.current,
        convicted: lane.convicted,
    }
}

fn model(budget_ms: u64, floor: f64) -> ModelView {
    let variant = |name: &str, us: u64, quality: f64| VariantView {
        name: name.to_owned(),
        promised: Duration::from_micros(us),
        quality,
        ready: true,
    };
    ModelView {
        name: "m".to_owned(),
        variants: vec![
            variant("dense", 10_000, 1.0),
            variant("r0.75", 7_500, 0.99),
            variant("r0.6", 6_000, 0.97),
            variant("r0.5", 5_000, 0.93),
        ],
        current: 0,
        budget: Some(Duration::from_millis(budget_ms)),
        floor,
        priority: 0,
        policy: super::fixture::policy(),
        observed: Observed::default(),
        load: None,
        fault: false,
        disproved: false,
    }
}

fn scene(slowdown: &dyn Fn(Duration) -> f64, seed: u64) -> Scene<'_> {
    Scene { rate: 40.0, slowdown, truth: &|_| 1.0, noise: 0.1, seed }
}

fn squeeze(from: u64, to: u64, factor: f64) -> impl Fn(Duration) -> f64 {
    move |at| if (from..to).contains(&at.as_secs()) { factor } else { 1.0 }
}

#[test]
fn meets_the_budget_soon_after_a_squeeze_begins_and_returns_to_dense_after_it() {
    let slowdown = squeeze(20, 60, 1.8);
    let run = simulate(model(15, 0.9), &scene(&slowdown, 1), Duration::from_secs(180));
    let first = &run.switches[0];
    assert_eq!(first.action.because, Because::Budget);
    assert!(first.at < Duration::from_secs(22), "{:?}", first.at);
    let late = run.requests.iter().filter(|(at, _, took)| {
        (25..60).contains(&at.as_secs()) && *took > Duration::from_millis(15)
    });
    assert_eq!(late.count(), 0);
    assert_eq!(run.current, 0, "{:?}", run.switches);
}

/// r0.6 really takes 1.3 times as long as dense. It relieves dense, makes it worse, goes back, and is
/// withdrawn; the next faster one holds the budget.
#[test]
fn a_rung_that_misses_its_promise_goes_back_at_once_and_is_withdrawn() {
    let slowdown = squeeze(20, 120, 1.8);
    let truth = |variant: usize| if variant == 2 { 1.3 / 0.6 } else { 1.0 };
    for seed in 0..50 {
        let scene = Scene { truth: &truth, ..scene(&slowdown, seed) };
        let run = simulate(model(15, 0.9), &scene, Duration::from_secs(240));
        let [down, back, ..] = run.switches.as_slice() else { panic!("{:?}", run.switches) };
        assert_eq!((down.action.to, down.action.because), (2, Because::Budget));
        assert_eq!((back.action.to, back.action.because), (0, Because::MissedPromise));
        assert!(back.at - down.at <= Duration::from_secs(1), "{:?}", back.at - down.at);
        let [(at, conviction)] = run.convicted.as_slice() else { panic!("{run:?}") };
        assert_eq!(conviction.variant, 2);
        assert!(*at - back.at <= Duration::from_secs(1));
        let again = run.switches[2..].iter().find(|switch| switch.action.to == 2);
        assert_eq!(again, None);
        let late = run.requests.iter().filter(|(at, _, took)| {
            (30..120).contains(&at.as_secs()) && *took > Duration::from_millis(15)
        });
        assert_eq!(late.count(), 0, "{:?}", run.switches);
        assert_eq!(run.current, 0);
    }
}

/// However it rises, a squeeze is no rung's fault.
#[test]
fn a_squeeze_that_rises_convicts_no_rung() {
    for seconds in [0.5, 1.0, 2.0, 3.0, 5.0, 8.0, 15.0, 40.0] {
        for top in [2.0, 3.0, 5.0] {
            let rise = |at: Duration| {
                let risen = ((at.as_secs_f64() - 20.0) / seconds).clamp(0.0, 1.0);
                1.0 + (top - 1.0) * risen
            };
            for seed in 0..8 {
                let scene = scene(&rise, seed);
                let run = simulate(model(15, 0.9), &scene, Duration::from_secs(90));
                assert_eq!(run.convicted, [], "{seconds} {top}");
                let missed = |s: &&Switch| s.action.because == Because::MissedPromise;
                let missed = run.switches.iter().find(missed);
                assert_eq!(missed, None, "{seconds} {top} {:?}", run.switches);
            }
        }
    }
}

/// The one rise that looks like a rung's fault, in the very moment of its swap, costs a few seconds.
#[test]
fn a_squeeze_that_jumps_as_a_rung_takes_over_is_found_out_by_the_variant_before_it() {
    let first = squeeze(20, 100, 1.8);
    let run = simulate(model(15, 0.9), &scene(&first, 1), Duration::from_secs(40));
    let swap = run.switches[0].at;
    let jumps = |at: Duration| first(at) * if at < swap { 1.0 } else { 2.0 };
    let run = simulate(model(15, 0.9), &scene(&jumps, 1), Duration::from_secs(90));
    let [_, back, next, ..] = run.switches.as_slice() else { panic!("{:?}", run.switches) };
    assert_eq!((back.action.to, back.action.because), (0, Because::MissedPromise));
    assert_eq!(run.convicted, []);
    assert_eq!((next.action.because, run.current), (Because::Budget, 3));
    assert!(next.at - swap < Duration::from_secs(8));
}

#[test]
fn one_slow_request_is_no_reason_to_switch() {
    let slowdown = |at: Duration| if at == Duration::from_secs(10) { 9.0 } else { 1.0 };
    let run = simulate(model(15, 0.9), &scene(&slowdown, 1), Duration::from_secs(30));
    assert!(run.requests.iter().any(|(_, _, took)| *took > Duration::from_millis(80)));
    assert_eq!(run.switches, []);
}

#[test]
fn serves_the_fastest_at_the_floor_where_nothing_fits() {
    let slowdown = |_: Duration| 5.0;
    let run = simulate(model(15, 0.95), &scene(&slowdown, 1), Duration::from_secs(30));
    assert_eq!(run.current, 2, "r0.5 is below the floor");
}

#[test]
fn a_fault_is_answered_at_once_and_without_a_budget_dense_is_served() {
    let mut state = State::default();
    let mut view = ModelView { fault: true, current: 2, ..model(15, 0.9) };
    let action = step(&mut state, std::slice::from_ref(&view), Duration::from_secs(1)).action;
    assert_eq!(action.map(|a| (a.to, a.because)), Some((0, Because::Fault)));
    view = ModelView { budget: None, current: 1, ..model(15, 0.9) };
    let action = step(&mut State::default(), &[view], Duration::from_secs(1)).action;
    assert_eq!(action.map(|a| (a.to, a.because)), Some((0, Because::Policy)));
}

#[test]
fn a_rung_that_is_disproved_makes_place_at_once_for_the_best_better_one_that_holds_the_budget() {
    let disproved =
        |budget_ms, current| ModelView { disproved: true, current, ..model(budget_ms, 0.9) };
    let to = |state: &mut State, view: ModelView, second| {
        let action = step(state, &[view], Duration::from_secs(second)).action;
        action.map(|action| (action.to, action.because))
    };
    let quality = |to| Some((to, Because::Quality));
    assert_eq!(to(&mut State::default(), disproved(15, 3), 1), quality(0));
    assert_eq!(to(&mut State::default(), disproved(9, 3), 1), quality(1));
    // None of the better ones holds the budget: the fastest of them, and none that is worse.
    assert_eq!(to(&mut State::default(), disproved(3, 2), 1), quality(1));
    // Right after a switch, too; and where no better one is ready, whatever else may serve.
    let mut state = State::default();
    assert_eq!(to(&mut state, disproved(9, 3), 1), quality(1));
    let mut view = disproved(9, 1);
    assert_eq!(to(&mut state, view.clone(), 1), quality(0));
    view.variants[0].ready = false;
    assert_eq!(to(&mut State::default(), view.clone(), 1), quality(2));
    view.variants.iter_mut().for_each(|variant| variant.ready = false);
    assert_eq!(to(&mut State::default(), view, 1), None, "better it than nobody");
}

#[test]
fn never_takes_a_variant_that_is_not_ready() {
    let mut view = model(15, 0.9);
    view.variants.iter_mut().skip(1).for_each(|variant| variant.ready = false);
    let slowdown = |_: Duration| 3.0;
    let run = simulate(view, &scene(&slowdown, 1), Duration::from_secs(30));
    assert_eq!(run.switches, []);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Whatever the box does: not below the floor, no two switches within the dwell time, and dense
    /// again once the box is undisturbed.
    #[test]
    fn holds_its_promises_on_any_trace(
        factors in prop::collection::vec(0.8..4.0f64, 12),
        floor in 0.9..1.0f64,
        budget in 12u64..40,
        seed in any::<u64>(),
    ) {
        let slowdown = |at: Duration| {
            factors.get(at.as_secs() as usize / 10).copied().unwrap_or(1.0)
        };
        let start = model(budget, floor);
        let run = simulate(start.clone(), &scene(&slowdown, seed), Duration::from_secs(600));
        for (_, variant, _) in &run.requests {
            prop_assert!(*variant == 0 || start.variants[*variant].quality >= floor);
        }
        prop_assert!(run.convicted.is_empty(), "{:?}", run.convicted);
        let tick = Duration::from_millis(250);
        for pair in run.switches.windows(2) {
            if pair[1].action.because == Because::MissedPromise {
                // Only a rise in the moment of the swap looks like that.
                let at = pair[0].at;
                let rise = slowdown(at + tick) / slowdown(at - tick);
                prop_assert!(rise > 1.3, "{:?}", run.switches);
            } else {
                prop_assert!(pair[1].at - pair[0].at >= start.policy.dwell);
            }
        }
        // Dense needs headroom over its own noise to be taken again.
        if 10.0 * 1.1 * 1.25 <= budget as f64 {
            prop_assert_eq!(run.current, 0, "{:?}", run.switches);
        }
    }

    /// A load that does not change makes the governor settle.
    #[test]
    fn does_not_oscillate_on_a_stationary_load(
        factor in 0.8..4.0f64, budget in 12u64..40, seed in any::<u64>(),
    ) {
        let slowdown = |_: Duration| factor;
        let length = Duration::from_secs(400);
        let run = simulate(model(budget, 0.9), &scene(&slowdown, seed), length);
        let late = run.switches.iter().filter(|s| s.at > Duration::from_secs(60));
        prop_assert!(late.count() <= 1, "{:?}", run.switches);
    }
}
