//! Models that share one core: what runs beside makes everything slower, and the less important make room.

use std::time::Duration;

use super::super::trace::Stretch;
use super::super::{Because, ModelView};
use super::{Driver, Lane, Site, Spread, Subject, fixture, judge, run};
use crate::limits;
use crate::units::Percentile;

const SECONDS: u64 = 240;

/// A detector whose quality may not fall: 30 requests a second of 10 ms, the rungs below r0.75 below its floor.
fn strict(stretches: &[Stretch], priority: i32) -> Subject<'_> {
    let subject = fixture::subject("strict", 45, stretches, Spread::Chance, 1);
    let view = ModelView { floor: 0.98, priority, ..subject.view.clone() };
    Subject { view, percentile: Percentile::P95, ..subject }
}

/// A model that does much at a time and has time.
fn patient<'a>(name: &str, stretches: &'a [Stretch], priority: i32, seed: u64) -> Subject<'a> {
    let ladder = [(1.0, 1.0), (0.75, 0.99), (0.6, 0.97), (0.4, 0.93)];
    let (variants, medians) = fixture::variants(20.0, &ladder);
    let subject = fixture::subject(name, 2000, stretches, Spread::Chance, seed);
    let view = ModelView { variants, priority, ..subject.view.clone() };
    Subject { view, medians, instances: 4, ..subject }
}

fn on_one_core(subjects: &[Subject]) -> Vec<Lane> {
    run(subjects, &site(), Driver::Governor)
}

fn site() -> Site {
    Site { cores: Some(1), tick: limits::TICK, length: Duration::from_secs(SECONDS) }
}

/// Share of the first model's windows from second `from` to second `to` that hold the budget.
fn held(subjects: &[Subject], lanes: &[Lane], from: f64, to: f64) -> f64 {
    let judged = judge(subjects, &site(), lanes).remove(0);
    let of = |window: &&super::WindowReport| (from..to).contains(&window.from_s);
    let all: Vec<_> = judged.windows.iter().filter(of).filter_map(|window| window.within).collect();
    all.iter().filter(|within| **within).count() as f64 / all.len() as f64
}

fn reliefs(lane: &Lane) -> usize {
    lane.switches.iter().filter(|switch| switch.action.because == Because::Relief).count()
}

#[test]
fn a_model_makes_room_for_a_more_important_one_at_its_floor_and_comes_back() {
    let strict_load = fixture::stretches(&[(SECONDS as f64, 30.0, 1.0)]);
    let load = fixture::stretches(&[(20.0, 5.0, 1.0), (100.0, 40.0, 1.0), (120.0, 5.0, 1.0)]);
    let subjects = |priority| [strict(&strict_load, priority), patient("patient", &load, 0, 2)];
    let lanes = on_one_core(&subjects(1));
    assert!(reliefs(&lanes[1]) >= 1, "{:?}", lanes[1].switches);
    let with = held(&subjects(1), &lanes, 40.0, 120.0);
    // Of equal importance, none has to.
    let alone = on_one_core(&subjects(0));
    assert_eq!(reliefs(&alone[1]), 0);
    let without = held(&subjects(0), &alone, 40.0, 120.0);
    assert!(with > 0.6 && without < 0.1, "{with} {without}");
    for lane in &lanes {
        assert_eq!(lane.current, 0, "{:?}", lane.switches);
        assert!(lane.switches.len() <= 14, "{:?}", lane.switches);
        let dwelt = |pair: &[super::Switch]| pair[1].at - pair[0].at >= Duration::from_secs(5);
        assert!(lane.switches.windows(2).all(dwelt), "{:?}", lane.switches);
    }
    let variants = &subjects(1)[1].view.variants.clone();
    let quality = |served: &super::Served| variants[served.variant].quality;
    assert!(lanes[1].requests.iter().all(|served| quality(served) >= 0.9));
}

#[test]
fn of_three_models_the_least_important_makes_room_first() {
    let strict_load = fixture::stretches(&[(SECONDS as f64, 30.0, 1.0)]);
    let load = fixture::stretches(&[(20.0, 5.0, 1.0), (220.0, 19.0, 1.0)]);
    let subjects = |least, middle, most| {
        [
            strict(&strict_load, most),
            patient("least", &load, least, 2),
            patient("middle", &load, middle, 3),
        ]
    };
    let lanes = on_one_core(&subjects(0, 1, 2));
    let first = |lane: &Lane| {
        let relief = lane.switches.iter().find(|switch| switch.action.because == Because::Relief);
        relief.map(|switch| switch.at)
    };
    let (least, middle) = (first(&lanes[1]), first(&lanes[2]));
    assert!(least.is_some_and(|least| middle.is_none_or(|middle| least < middle)));
    assert_eq!(reliefs(&lanes[0]), 0);
    let with = held(&subjects(0, 1, 2), &lanes, 60.0, 240.0);
    let alone = on_one_core(&subjects(0, 0, 0));
    let without = held(&subjects(0, 0, 0), &alone, 60.0, 240.0);
    assert!(with > 0.6 && without < 0.1, "{with} {without}");
}

#[test]
fn models_that_hold_their_budgets_are_left_alone() {
    let loads = fixture::stretches(&[(SECONDS as f64, 8.0, 1.0)]);
    let subjects = [strict(&loads, 1), patient("patient", &loads, 0, 2)];
    for lane in on_one_core(&subjects) {
        assert_eq!(lane.switches, []);
    }
}
