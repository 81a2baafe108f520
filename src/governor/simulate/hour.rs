//! An hour of a box in the field, made up: what the governor makes of it.

use std::fmt::Write;
use std::time::Duration;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::super::trace::{Stretch, Trace};
use super::{Driver, Judged, Lane, Site, Spread, fixture, judge, run};
use crate::limits;

const LENGTH: usize = 3600;

/// A disturbance: (begin, rise, stay, fall) in seconds and what it comes to.
type Swell = (f64, f64, f64, f64, f64);

/// Clocks that fall as the box gets hot, twice slowly and once fast.
const THROTTLING: [Swell; 3] = [
    (420.0, 150.0, 180.0, 120.0, 0.9),
    (1500.0, 90.0, 240.0, 60.0, 0.65),
    (3080.0, 45.0, 120.0, 90.0, 1.1),
];

/// A neighbour that takes its share from one moment to the next.
const NEIGHBOUR: [Swell; 4] = [
    (1080.0, 0.0, 60.0, 0.0, 0.8),
    (1230.0, 0.0, 25.0, 0.0, 1.2),
    (2130.0, 0.0, 90.0, 0.0, 0.6),
    (2700.0, 0.0, 40.0, 0.0, 0.7),
];

/// Requests a second beside the 40 of every day: bursts, and a camera that is plugged in and out.
const LOAD: [Swell; 5] = [
    (200.0, 0.0, 12.0, 0.0, 80.0),
    (900.0, 2.0, 20.0, 2.0, 90.0),
    (1950.0, 0.0, 8.0, 0.0, 110.0),
    (2300.0, 0.0, 600.0, 0.0, 30.0),
    (3400.0, 3.0, 15.0, 3.0, 85.0),
];

fn at((begin, rise, stay, fall, top): Swell, second: f64) -> f64 {
    let risen = if rise > 0.0 { (second - begin) / rise } else { f64::from(second >= begin) };
    let end = begin + rise + stay;
    let fallen = if fall > 0.0 { (second - end) / fall } else { f64::from(second >= end) };
    top * (risen.clamp(0.0, 1.0) - fallen.clamp(0.0, 1.0))
}

/// The table, a line a second.
fn table() -> String {
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let mut text =
        "# One hour of an edge box, made up: throttling, bursts, a noisy neighbour, a camera \
                    that is plugged in.\nt_s,arrivals,slowdown,temperature_c\n"
            .to_owned();
    let (mut drift, mut temperature) = (0.0f64, 52.0f64);
    for second in 0..LENGTH {
        let now = second as f64;
        let sum = |swells: &[Swell]| swells.iter().map(|swell| at(*swell, now)).sum::<f64>();
        drift = 0.9 * drift + 0.006 * (rng.random::<f64>() - 0.5);
        let throttling = sum(&THROTTLING);
        let factor = (1.0 + throttling) * (1.0 + sum(&NEIGHBOUR)) * (1.0 + drift);
        let rate = (40.0 + sum(&LOAD)).round();
        temperature += 0.02 * (52.0 + 34.0 * throttling.min(1.0) - temperature);
        let _ = writeln!(text, "{second},{rate},{factor:.3},{temperature:.1}");
    }
    text
}

fn stretches() -> Vec<Stretch> {
    Trace::parse(&table()).unwrap().stretches("")
}

fn hour(budget_ms: u64, seed: u64) -> (Judged, Lane) {
    let stretches = stretches();
    let subjects = [fixture::subject("m", budget_ms, &stretches, Spread::Even, seed)];
    let length = Duration::from_secs(LENGTH as u64);
    let site = Site { cores: None, tick: limits::TICK, length };
    let mut lanes = run(&subjects, &site, Driver::Governor);
    let judged = judge(&subjects, &site, &lanes).remove(0);
    (judged, lanes.remove(0))
}

/// What was measured when this was written: 99.6 to 99.7 % of the windows as the agent tells them, 98.2 to
/// 99.7 % where the slowest of eighty requests decides alone, and 0.2 to 0.8 % less quality than foresight has.
#[test]
fn the_budget_is_held_at_nearly_the_quality_that_foresight_would_reach() {
    for (budget_ms, seed) in [(13, 0), (15, 1), (18, 2), (22, 3), (30, 4)] {
        let (judged, lane) = hour(budget_ms, seed);
        let summary = &judged.summary;
        assert_eq!(summary.possible, 1800, "a variant holds the budget in every window");
        let told = summary.told_within as f64 / summary.possible as f64;
        assert!(told >= 0.99, "{budget_ms} ms: {told}");
        assert!(summary.share() >= 0.98, "{budget_ms} ms: {}", summary.share());
        assert!(budget_ms < 22 || summary.share() >= 0.99, "{budget_ms} ms: {}", summary.share());
        let clairvoyant = judged.clairvoyant.unwrap();
        // It looks no further than its window: what it leaves behind may break the next one.
        assert!(clairvoyant.within >= 1790, "{}", clairvoyant.within);
        let lost = clairvoyant.quality - summary.quality;
        assert!(lost <= 0.01 * clairvoyant.quality, "{budget_ms} ms: {lost}");
        assert!(lane.switches.len() <= 40, "{:?}", lane.switches);
        assert_eq!(lane.convicted, []);
        // Dense takes 11 ms at the percentile, and comes back with a quarter of headroom.
        assert_eq!(lane.current == 0, budget_ms > 13);
    }
}

/// The file that users find is what is tested.
#[test]
fn the_example_is_this_hour() {
    assert_eq!(include_str!("../../../configs/examples/hour.csv"), table());
}

/// Replaces that file: `cargo test -- --ignored write_the_example`.
#[test]
#[ignore = "writes into the source"]
fn write_the_example() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/configs/examples/hour.csv");
    std::fs::write(path, table()).unwrap();
}
