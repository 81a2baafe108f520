//! A trace that was recorded of a run gives the same run when it is replayed.

use std::time::Duration;

use super::super::trace::{HEADER, Row, Trace};
use super::{Driver, Lane, Noise, Site, Spread, Subject, Switch, fixture, run};
use crate::limits;
use crate::units::Percentile;

const SECONDS: u64 = 300;

fn governed(subject: Subject) -> Lane {
    let length = Duration::from_secs(SECONDS);
    let site = Site { cores: None, tick: limits::TICK, length };
    run(&[subject], &site, Driver::Governor).remove(0)
}

/// What the agent would have recorded: a line a tick, of what arrived and what was answered in it.
fn recorded(lane: &Lane, medians: &[Duration]) -> String {
    let mut text = format!("{HEADER}\n");
    let mut last = f64::NAN;
    for tick in 0..SECONDS as u32 * 4 {
        let (from, to) = (limits::TICK * tick, limits::TICK * (tick + 1));
        let begin = lane.requests.partition_point(|served| served.arrived < from);
        let end = lane.requests.partition_point(|served| served.arrived < to);
        let switched = lane.switches.iter().take_while(|switch| switch.at <= from).last();
        let variant = switched.map_or(0, |switch| switch.action.to);
        let answered = lane.requests.iter().filter(|served| {
            let at = served.latency.map(|latency| served.arrived + latency);
            served.variant == variant && at.is_some_and(|at| at >= from && at < to)
        });
        let mut runs: Vec<Duration> = answered.map(|served| served.run).collect();
        runs.sort_unstable();
        let compute = Percentile::P50.of(&runs);
        let over = |run: Duration| run.as_secs_f64() / medians[variant].as_secs_f64();
        let row = Row {
            // As if the box had been on for a while.
            t_s: 1.7e9 + from.as_secs_f64(),
            model: "m".to_owned(),
            arrivals: (end - begin) as u64,
            slowdown: compute.map(over),
            compute_ms: compute.map(|run| run.as_secs_f64() * 1e3),
            ..Row::default()
        };
        assert!(row.t_s > last || last.is_nan());
        last = row.t_s;
        text.push_str(&row.line());
    }
    text
}

fn told(switch: &Switch) -> (usize, usize, String) {
    (switch.from, switch.action.to, switch.action.because.to_string())
}

#[test]
fn a_recorded_run_replayed_makes_the_same_decisions() {
    let mut box_ = vec![(30.0, 40.0, 1.0)];
    // Clocks that fall for 40 seconds, stay, and rise again; a burst; a neighbour.
    box_.extend((0..40).map(|n| (1.0, 40.0, 1.0 + 0.03 * f64::from(n))));
    box_.extend([(30.0, 40.0, 2.2), (60.0, 40.0, 1.0), (10.0, 140.0, 1.0)]);
    box_.extend([(40.0, 40.0, 1.0), (30.0, 40.0, 2.6), (60.0, 40.0, 1.0)]);
    let stretches = fixture::stretches(&box_);
    let subject = |stretches| Subject {
        noise: Noise::None,
        ..fixture::subject("m", 15, stretches, Spread::Even, 0)
    };
    let first = subject(&stretches);
    let medians = first.medians.clone();
    let lane = governed(first);
    assert!(lane.switches.len() >= 6, "{:?}", lane.switches);

    let trace = Trace::parse(&recorded(&lane, &medians)).unwrap();
    assert!((trace.length() - SECONDS as f64).abs() < 1e-3);
    let replayed = trace.stretches("m");
    let again = governed(subject(&replayed));
    let decisions = |lane: &Lane| lane.switches.iter().map(told).collect::<Vec<_>>();
    assert_eq!(decisions(&again), decisions(&lane));
    for (first, second) in lane.switches.iter().zip(&again.switches) {
        // A run that begins in one tick and ends in the next is told with the next.
        assert!(first.at.abs_diff(second.at) <= 2 * limits::TICK, "{first:?} {second:?}");
    }
    assert_eq!(again.requests.len(), lane.requests.len());
    // And once more, it is the same to the last bit.
    let once_more = governed(subject(&replayed));
    assert_eq!(once_more, again);
}
