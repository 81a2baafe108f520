//! Comparing latencies on a machine that is never quite quiet: the candidates run in turn, round by round,
//! and see the same disturbances; what is compared is how fast each is while nothing disturbs it.

use crate::limits;
use crate::onnx::{ExecError, Session, Tensor};

/// A loaded model and the inputs that it is timed with.
pub struct Candidate<'a> {
    pub session: Box<dyn Session>,
    pub inputs: Vec<(&'a str, &'a Tensor)>,
}

/// Latencies of several candidates, taken in the same rounds.
#[derive(Debug, Clone)]
pub struct Timings {
    /// `rounds[r][c]`: microseconds of candidate c in round r.
    rounds: Vec<Vec<f64>>,
}

impl Timings {
    /// Runs all candidates in turn for about `seconds` in all, after a warm-up; at least
    /// [`limits::TIMING_ROUNDS_MIN`] rounds whatever they take.
    ///
    /// # Errors
    /// Where a candidate fails to run.
    pub fn take(candidates: &mut [Candidate], seconds: f64) -> Result<Self, ExecError> {
        let mut round_us = 0.0;
        for candidate in &mut *candidates {
            candidate.session.time(&candidate.inputs, 2)?;
            let warm = candidate.session.time(&candidate.inputs, 3)?;
            round_us += warm.iter().map(|t| t.as_secs_f64() * 1e6).fold(f64::INFINITY, f64::min);
        }
        let rounds = (seconds * 1e6 / round_us.max(1.0)) as usize;
        let rounds = rounds.clamp(limits::TIMING_ROUNDS_MIN, limits::TIMING_ROUNDS_MAX);
        let mut timings = Self { rounds: Vec::with_capacity(rounds) };
        for round in 0..rounds {
            let mut row = vec![0.0; candidates.len()];
            // Every candidate starts a round equally often: what a candidate leaves in the caches
            // does not favour its neighbour.
            for step in 0..candidates.len() {
                let index = (round + step) % candidates.len();
                let candidate = &mut candidates[index];
                let taken = candidate.session.time(&candidate.inputs, 1)?;
                row[index] = taken.first().map_or(0.0, |t| t.as_secs_f64() * 1e6);
            }
            timings.rounds.push(row);
        }
        Ok(timings)
    }

    /// Percentile (0 to 1) of a candidate's latency, microseconds.
    pub fn percentile(&self, candidate: usize, quantile: f64) -> f64 {
        let times = self.rounds.iter().map(|row| row[candidate]).collect();
        quantile_of(times, quantile)
    }

    /// `candidate`'s latency divided by that of candidate 0, both undisturbed.
    pub fn ratio(&self, candidate: usize) -> f64 {
        self.percentile(candidate, UNDISTURBED) / self.percentile(0, UNDISTURBED)
    }

    /// Candidate 0's latency minus `candidate`'s, both undisturbed; microseconds.
    pub fn saving(&self, candidate: usize) -> f64 {
        self.percentile(0, UNDISTURBED) - self.percentile(candidate, UNDISTURBED)
    }
}

/// The quantile that stands for an undisturbed run: on a box that also serves, far more than half of the
/// runs may be interrupted, and the fastest of all is luck.
const UNDISTURBED: f64 = 0.25;

fn quantile_of(mut values: Vec<f64>, quantile: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let rank = (quantile * values.len() as f64).ceil() as usize;
    values.get(rank.max(1) - 1).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// A session whose n-th run takes the n-th of its times, slowed down with everybody else.
    struct Scripted(Vec<u64>, usize);

    impl Session for Scripted {
        fn run(&mut self, _: &[(&str, &Tensor)]) -> Result<Vec<Tensor>, ExecError> {
            Ok(Vec::new())
        }

        fn time(&mut self, _: &[(&str, &Tensor)], runs: usize) -> Result<Vec<Duration>, ExecError> {
            let times = (0..runs).map(|_| {
                self.1 += 1;
                Duration::from_micros(self.0[self.1 % self.0.len()])
            });
            Ok(times.collect())
        }
    }

    #[test]
    fn disturbances_of_most_runs_do_not_move_the_ratio() {
        let mut calm = vec![100_000; 40];
        calm[12..30].fill(300_000);
        let half = calm.iter().map(|t| t / 2).collect();
        let mut candidates = [calm, half]
            .map(|times| Candidate { session: Box::new(Scripted(times, 0)), inputs: Vec::new() });
        let timings = Timings::take(&mut candidates, 0.0).unwrap();
        assert!((timings.ratio(1) - 0.5).abs() < 1e-9, "{}", timings.ratio(1));
        assert!(timings.percentile(0, 0.99) >= 300_000.0);
    }
}
