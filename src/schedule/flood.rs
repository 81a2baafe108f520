//! Far more requests than can be answered, in virtual time: they come by chance (Poisson), runs take as long as
//! chance has it, and the estimate only knows the runs that it has seen.

use std::time::Duration;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::site::{Fate, Runs, simulate};
use super::*;
use crate::limits::QUEUE_LENGTH;

/// What an undisturbed run takes on average.
const RUN: Duration = Duration::from_millis(10);

#[derive(Debug, Clone, Copy)]
struct Flood {
    instances: usize,
    /// Requests offered, as a multiple of those that can be answered.
    load: f64,
    /// Time that a request allows on average, in runs; single ones allow 0.7 to 1.3 times as much.
    allows: f64,
    /// Relative standard deviation of a run.
    varies: f64,
    /// Share of the runs that take three times as long.
    outliers: f64,
    /// All runs take twice as long from the middle on.
    squeeze: bool,
    requests: usize,
    seed: u64,
}

const FLOOD: Flood = Flood {
    instances: 1,
    load: 10.0,
    allows: 5.0,
    varies: 0.1,
    outliers: 0.0,
    squeeze: false,
    requests: 20_000,
    seed: 0,
};

struct Noisy {
    flood: Flood,
    time: ServiceTime,
    rng: ChaCha8Rng,
    begun: usize,
}

impl Runs for Noisy {
    fn server(&self) -> Server {
        let instances = self.flood.instances;
        Server { instances, service: self.time, batching: Batching::OFF }
    }

    fn takes(&mut self, _: usize) -> Duration {
        self.begun += 1;
        // Twelve uniform numbers are as good as a normal one here.
        let normal = (0..12).map(|_| self.rng.random::<f64>()).sum::<f64>() - 6.0;
        let outlier = if self.rng.random::<f64>() < self.flood.outliers { 3.0 } else { 1.0 };
        let share = self.flood.requests as f64 / self.flood.load / 2.0;
        let squeezed = self.flood.squeeze && self.begun as f64 > share;
        let slow = if squeezed { 2.0 } else { 1.0 };
        RUN.mul_f64((normal * self.flood.varies).exp() * outlier * slow)
    }

    fn took(&mut self, rows: usize, took: Duration) {
        self.time.observe(rows, took);
    }
}

/// Shares of those that were taken in and not answered in time, and of the time in which answers that were in
/// time were made.
fn run(flood: Flood) -> (f64, f64) {
    let mut rng = ChaCha8Rng::seed_from_u64(flood.seed);
    let gap = RUN.as_secs_f64() / flood.load / flood.instances as f64;
    let mut at = 0.0;
    let arrivals: Vec<Asked> = (0..flood.requests)
        .map(|id| {
            at -= (1.0 - rng.random::<f64>()).ln() * gap;
            let arrived = Duration::from_secs_f64(at);
            let allows = RUN.mul_f64(flood.allows * rng.random_range(0.7..1.3));
            let level = Level::DEFAULT;
            let deadline = Some(arrived + allows);
            Asked { id: id as u64, level, arrived, deadline, kind: None, rows: 1 }
        })
        .collect();
    let time = ServiceTime::new(Some(RUN));
    let fates = simulate(&arrivals, QUEUE_LENGTH, &mut Noisy { flood, time, rng, begun: 0 });
    let (mut taken, mut late, mut useful) = (0, 0, Duration::ZERO);
    for (asked, fate) in arrivals.iter().zip(fates) {
        match fate {
            Fate::Refused(_) => continue,
            Fate::Answered { begun, ended, .. } if Some(ended) <= asked.deadline => {
                useful += ended - begun;
            }
            Fate::Answered { .. } | Fate::Expired => late += 1,
            Fate::Displaced => unreachable!("all are of one priority"),
        }
        taken += 1;
    }
    (f64::from(late) / f64::from(taken), useful.as_secs_f64() / at / flood.instances as f64)
}

#[test]
fn ten_times_the_load_leaves_those_taken_in_their_deadlines_and_the_box_no_rest() {
    let floods = [
        FLOOD,
        Flood { varies: 0.2, ..FLOOD },
        Flood { allows: 2.5, ..FLOOD },
        Flood { allows: 2.5, varies: 0.2, ..FLOOD },
        Flood { allows: 50.0, varies: 0.2, ..FLOOD },
        Flood { instances: 2, allows: 10.0, varies: 0.2, ..FLOOD },
        Flood { instances: 4, allows: 4.0, varies: 0.1, ..FLOOD },
        Flood { load: 1.5, varies: 0.2, ..FLOOD },
    ];
    for flood in floods {
        for seed in 0..5 {
            let (late, useful) = run(Flood { seed, ..flood });
            assert!(late <= 0.01, "{flood:?}, seed {seed}: {late} late");
            let busy = 0.9 * flood.load.min(1.0);
            assert!(useful >= busy, "{flood:?}, seed {seed}: {useful} useful");
        }
    }
}

#[test]
fn a_load_that_fits_is_nearly_all_answered_in_time() {
    let flood = Flood { load: 0.5, allows: 10.0, varies: 0.2, ..FLOOD };
    let (late, useful) = run(flood);
    assert!(late <= 0.001 && useful >= 0.48, "{late} late, {useful} useful");
}

/// No estimate knows which run will take three times as long, or when the box slows down: what waits behind it
/// is late, and nothing more.
#[test]
fn outliers_and_a_squeeze_cost_what_waits_behind_them() {
    let outliers = Flood { outliers: 0.01, ..FLOOD };
    let squeeze = Flood { squeeze: true, ..FLOOD };
    for seed in 0..5 {
        let (late, useful) = run(Flood { seed, ..outliers });
        assert!(late <= 0.08 && useful >= 0.85, "seed {seed}: {late} late, {useful} useful");
        let (late, useful) = run(Flood { seed, ..squeeze });
        assert!(late <= 0.02 && useful >= 0.85, "seed {seed}: {late} late, {useful} useful");
    }
}
