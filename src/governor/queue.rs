//! The governor against a box with a queue: requests come by chance (Poisson) and wait for one another, so
//! that latencies come in bursts and a slower variant costs more than its own time.

use std::collections::VecDeque;
use std::time::Duration;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{Because, ModelView, Observed, Policy, State, VariantView, observe, step};
use crate::units::Percentile;

const DENSE_MS: f64 = 10.0;

struct Site {
    /// Requests a second.
    rate: f64,
    budget_ms: f64,
    /// Slowdown from second 20 to second 60.
    squeeze: f64,
    /// Share of requests that take 30 ms longer.
    outliers: f64,
    seed: u64,
}

/// (arrival in seconds, latency in milliseconds) and (second, from, to, why).
type Ran = (Vec<(f64, f64)>, Vec<(f64, usize, usize, Because)>);

fn model(budget_ms: f64) -> ModelView {
    let variant = |ratio: f64, quality: f64| VariantView {
        name: format!("r{ratio}"),
        promised: Duration::from_secs_f64(DENSE_MS * ratio * 1.1e-3),
        quality,
        ready: true,
    };
    ModelView {
        name: "m".to_owned(),
        variants: vec![
            variant(1.0, 1.0),
            variant(0.75, 0.99),
            variant(0.6, 0.97),
            variant(0.5, 0.93),
        ],
        current: 0,
        budget: Some(Duration::from_secs_f64(budget_ms * 1e-3)),
        floor: 0.9,
        priority: 0,
        policy: Policy {
            window: Duration::from_secs(2),
            dwell: Duration::from_secs(5),
            margin: 1.1,
            headroom: 1.25,
            sustain: Duration::from_secs(5),
            probation: Duration::from_secs(30),
        },
        observed: Observed::default(),
        fault: false,
    }
}

/// Runs for `seconds` in steps of one millisecond; the governor looks four times a second.
fn run(the: &Site, seconds: u64) -> Ran {
    let ratios = [1.0, 0.75, 0.6, 0.5];
    let mut rng = ChaCha8Rng::seed_from_u64(the.seed);
    let mut model = model(the.budget_ms);
    let mut state = State::default();
    let (mut waiting, mut done, mut switches) = (VecDeque::new(), Vec::new(), Vec::new());
    let (mut next, mut free, mut since) = (0.0f64, 0.0f64, 0.0f64);
    for now_ms in 0..seconds * 1000 {
        let now = now_ms as f64;
        while next <= now {
            waiting.push_back(next);
            next += -(1.0 - rng.random::<f64>()).ln() * 1e3 / the.rate;
        }
        while free <= now
            && let Some(arrival) = waiting.pop_front()
        {
            let start = free.max(arrival);
            let squeezed = (20e3..60e3).contains(&start);
            let slowdown = if squeezed { the.squeeze } else { 1.0 };
            let noise = 0.95 + 0.15 * rng.random::<f64>();
            let outlier = if rng.random::<f64>() < the.outliers { 30.0 } else { 0.0 };
            free = start + DENSE_MS * ratios[model.current] * slowdown * noise + outlier;
            done.push((arrival, free));
        }
        if now_ms % 250 != 0 {
            continue;
        }
        let from = (now - 2e3).max(since);
        let recent = done.iter().rev().take(1000).filter(|(_, end)| (from..=now).contains(end));
        let took = |(arrival, end): &(f64, f64)| Duration::from_secs_f64((end - arrival) * 1e-3);
        model.observed = observe(recent.map(took).collect(), model.budget, Percentile::P99);
        let at = Duration::from_millis(now_ms);
        if let Some(action) = step(&mut state, std::slice::from_ref(&model), at).action {
            switches.push((now * 1e-3, model.current, action.to, action.because));
            (model.current, since) = (action.to, now);
        }
    }
    let latencies = done.iter().map(|(arrival, end)| (arrival * 1e-3, end - arrival)).collect();
    (latencies, switches)
}

/// Share of the requests that came from second `from` to second `to` and took longer than the budget.
fn over(ran: &Ran, from: f64, to: f64, budget_ms: f64) -> f64 {
    let took = || ran.0.iter().filter(|(at, _)| (from..to).contains(at));
    took().filter(|(_, took)| *took > budget_ms).count() as f64 / took().count() as f64
}

const SITES: [Site; 5] = [
    Site { rate: 20.0, budget_ms: 30.0, squeeze: 2.0, outliers: 0.0, seed: 0 },
    Site { rate: 20.0, budget_ms: 30.0, squeeze: 2.0, outliers: 0.002, seed: 0 },
    Site { rate: 40.0, budget_ms: 40.0, squeeze: 2.0, outliers: 0.0, seed: 0 },
    Site { rate: 40.0, budget_ms: 40.0, squeeze: 2.5, outliers: 0.001, seed: 0 },
    Site { rate: 60.0, budget_ms: 60.0, squeeze: 2.0, outliers: 0.0, seed: 0 },
];

fn every_run(mut check: impl FnMut(&Site, &Ran)) {
    for site in SITES {
        for seed in 0..6 {
            let site = Site { seed, ..site };
            check(&site, &run(&site, 180));
        }
    }
}

#[test]
fn a_squeeze_is_answered_within_two_seconds_and_dense_is_back_after_it() {
    every_run(|site, ran| {
        let in_service = |at: f64| {
            ran.1.iter().take_while(|(when, ..)| *when <= at).last().map_or(0, |switch| switch.2)
        };
        assert_ne!(in_service(22.0), 0, "{:?}", ran.1);
        assert!((60..100).any(|at| in_service(f64::from(at)) == 0), "{:?}", ran.1);
        assert!(over(ran, 65.0, 180.0, site.budget_ms) <= 0.011, "{:?}", ran.1);
    });
}

#[test]
fn bursts_of_a_busy_but_undisturbed_box_seldom_move_it() {
    let (mut left, mut runs) = (0, 0);
    every_run(|_, ran| {
        runs += 1;
        left +=
            ran.1.iter().filter(|(at, from, ..)| *from == 0 && !(20.0..62.0).contains(at)).count();
    });
    // Each run has 140 undisturbed seconds, with up to nine in a thousand requests above the budget.
    assert!(left <= runs, "{left} departures from dense in {runs} runs");
}

#[test]
fn a_budget_that_is_held_by_far_is_never_left() {
    for seed in 0..6 {
        let site = Site { rate: 20.0, budget_ms: 45.0, squeeze: 1.0, outliers: 0.001, seed };
        assert_eq!(run(&site, 600).1, []);
    }
}

#[test]
fn one_stall_that_slows_many_requests_at_once_is_no_reason_to_switch() {
    let mut state = State::default();
    let mut model = model(30.0);
    for tick in 1..40u64 {
        let slow = if (10..18).contains(&tick) { 8 } else { 0 };
        let took = |n: u64| Duration::from_millis(if n < slow { 200 } else { 11 });
        model.observed = observe((0..40).map(took).collect(), model.budget, Percentile::P99);
        let at = Duration::from_millis(250 * tick);
        assert_eq!(step(&mut state, std::slice::from_ref(&model), at).action, None);
    }
}

#[test]
fn a_budget_that_stays_broken_is_acted_on_though_nothing_gets_worse() {
    let mut state = State::default();
    let mut model = model(30.0);
    let slow = vec![Duration::from_millis(80); 40];
    model.observed = observe(slow, model.budget, Percentile::P99);
    let acts = |tick: u64| {
        let at = Duration::from_millis(250 * tick);
        step(&mut state, std::slice::from_ref(&model), at).action.is_some()
    };
    assert_eq!((1..40).map(acts).position(|acted| acted), Some(9));
}
