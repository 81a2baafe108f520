//! What the governor promises, on any box with a queue and any ladder.

use std::time::Duration;

use proptest::prelude::*;

use super::super::trace::Stretch;
use super::super::{Because, ModelView, VariantView};
use super::{Driver, Lane, Site, Spread, Subject, fixture, run};
use crate::limits;
use crate::units::Percentile;

/// Ratios and qualities that fall from dense on.
fn ladders() -> impl Strategy<Value = Vec<(f64, f64)>> {
    prop::collection::vec((0.6..0.92f64, 0.94..1.0f64), 1..5).prop_map(|steps| {
        let mut ladder = vec![(1.0, 1.0)];
        for (ratio, quality) in steps {
            let (last_ratio, last_quality) = ladder[ladder.len() - 1];
            ladder.push((last_ratio * ratio, last_quality * quality));
        }
        ladder
    })
}

/// Stretches of ten seconds: requests a second and slowdown.
fn disturbances() -> impl Strategy<Value = Vec<(f64, f64, f64)>> {
    prop::collection::vec((5.0..80.0f64, 0.8..4.0f64), 12)
        .prop_map(|all| all.into_iter().map(|(rate, slowdown)| (10.0, rate, slowdown)).collect())
}

fn percentiles() -> impl Strategy<Value = Percentile> {
    prop::sample::select(vec![
        Percentile::P50,
        Percentile::P95,
        Percentile::P99,
        Percentile::P999,
        Percentile::Max,
    ])
}

fn one<'a>(
    ladder: &[(f64, f64)],
    floor: f64,
    budget_ms: u64,
    stretches: &'a [Stretch],
    seed: u64,
) -> Subject<'a> {
    let (variants, medians) = fixture::variants(10.0, ladder);
    let subject = fixture::subject("m", budget_ms, stretches, Spread::Even, seed);
    let view = ModelView { variants, floor, ..subject.view.clone() };
    Subject { view, medians, ..subject }
}

fn driven(subject: Subject, seconds: u64) -> Lane {
    let length = Duration::from_secs(seconds);
    let site = Site { cores: None, tick: limits::TICK, length };
    run(&[subject], &site, Driver::Governor).remove(0)
}

/// When the first switch came after second 20.
fn reaction(lane: &Lane) -> Option<f64> {
    let after = lane.switches.iter().find(|switch| switch.at.as_secs() >= 20);
    after.map(|switch| switch.at.as_secs_f64() - 20.0)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// Whatever percentile is bounded: not below the floor, no two switches within the dwell time, and dense
    /// again after the disturbance.
    #[test]
    fn on_any_box_the_floor_and_the_dwell_hold_and_dense_comes_back(
        ladder in ladders(),
        mut box_ in disturbances(),
        floor in 0.7..1.0f64,
        budget in 15u64..60,
        percentile in percentiles(),
        seed in any::<u64>(),
    ) {
        box_.push((480.0, 40.0, 1.0));
        let stretches = fixture::stretches(&box_);
        let mut subject = one(&ladder, floor, budget, &stretches, seed);
        subject.percentile = percentile;
        if percentile == Percentile::P50 {
            let promised = subject.view.variants.iter().zip(&subject.medians);
            let promised = promised.map(|(variant, median)| VariantView {
                promised: *median,
                ..variant.clone()
            });
            subject.view.variants = promised.collect();
        }
        let dwell = subject.view.policy.dwell;
        let lane = driven(subject, 600);
        for served in &lane.requests {
            prop_assert!(served.variant == 0 || ladder[served.variant].1 >= floor);
        }
        for pair in lane.switches.windows(2) {
            // What missed its promise goes back at once: a rise in the moment of the swap looks like that.
            let back = pair[1].action.because == Because::MissedPromise;
            prop_assert!(back || pair[1].at - pair[0].at >= dwell, "{:?}", lane.switches);
        }
        prop_assert!(lane.convicted.is_empty(), "{:?}", lane.convicted);
        prop_assert_eq!(lane.current, 0, "{:?}", lane.switches);
    }

    /// A load that does not change makes it settle: each attempt to go up that fails doubles the wait for the
    /// next one, so that few fit into the minutes after the first.
    #[test]
    fn on_a_stationary_load_it_does_not_oscillate(
        ladder in ladders(),
        rate in 5.0..60.0f64,
        factor in 0.8..4.0f64,
        budget in 15u64..60,
        seed in any::<u64>(),
    ) {
        let stretches = fixture::stretches(&[(400.0, rate, factor)]);
        let lane = driven(one(&ladder, 0.5, budget, &stretches, seed), 400);
        let late = lane.switches.iter().filter(|switch| {
            let failed = matches!(switch.action.because, Because::Budget | Because::Foreseen);
            failed && switch.at > Duration::from_secs(60)
        });
        prop_assert!(late.count() <= 5, "{:?}", lane.switches);
    }

    /// A step that breaks the budget is answered within a second where forty requests a second tell of it.
    #[test]
    fn a_step_is_answered_within_a_second(
        over in 1.15..3.0f64,
        budget in 15u64..24,
        seed in any::<u64>(),
    ) {
        let factor = over * budget as f64 / 10.0;
        let stretches = fixture::stretches(&[(20.0, 40.0, 1.0), (20.0, 40.0, factor)]);
        let subject = fixture::subject("m", budget, &stretches, Spread::Even, seed);
        let reaction = reaction(&driven(subject, 40));
        prop_assert!(reaction.is_some_and(|after| after <= 1.0), "{reaction:?}");
    }

    /// The same of a load that dense cannot serve.
    #[test]
    fn a_step_of_the_load_is_answered_within_a_second(
        rate in 130.0..250.0f64,
        budget in 15u64..30,
        seed in any::<u64>(),
    ) {
        let stretches = fixture::stretches(&[(20.0, 40.0, 1.0), (20.0, rate, 1.0)]);
        let subject = fixture::subject("m", budget, &stretches, Spread::Even, seed);
        let reaction = reaction(&driven(subject, 40));
        prop_assert!(reaction.is_some_and(|after| after <= 1.0), "{reaction:?}");
    }
}
