//! What was asked of each model and what became of it, from turn to turn: for the governor, and for the trace
//! where one is wanted.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::Value;

use super::Agent;
use super::served::Served;
use crate::config::TraceDir;
use crate::governor::Load;
use crate::governor::trace::Row;
use crate::shell::recorder::{Recorder, Taken};
use crate::shell::slot::Slot;
use crate::units::Percentile;

/// Requests that have arrived by each of the last turns.
#[derive(Debug, Default)]
pub struct Demand {
    turns: VecDeque<(Instant, u64)>,
}

impl Demand {
    /// Takes in how many have arrived by now; of more than a window only one turn is kept.
    pub fn turn(&mut self, now: Instant, arrived: u64, window: Duration) {
        // Counts are read one after the other while requests move on between them.
        let arrived = self.turns.back().map_or(arrived, |(_, last)| arrived.max(*last));
        self.turns.push_back((now, arrived));
        while self.turns.get(1).is_some_and(|(at, _)| now.saturating_duration_since(*at) >= window)
        {
            self.turns.pop_front();
        }
    }

    /// Those that arrived in the last turn.
    pub fn newest(&self) -> u64 {
        let mut newest = self.turns.iter().rev().map(|(_, arrived)| *arrived);
        let last = newest.next().unwrap_or(0);
        last.saturating_sub(newest.next().unwrap_or(0))
    }

    /// Over the window, as the governor is shown it; `None` before the second turn.
    pub fn load(&self, instances: usize) -> Option<Load> {
        let ((from, first), (to, last)) = self.turns.front().zip(self.turns.back())?;
        let length = to.saturating_duration_since(*from).as_secs_f64();
        let rate = last.saturating_sub(*first) as f64 / length;
        (length > 0.0).then_some(Load { rate, instances })
    }
}

/// All requests that a slot was ever asked for.
pub fn arrived(slot: &Slot) -> u64 {
    let totals = slot.totals();
    let refused: u64 = slot.refusals().values().sum();
    let (waiting, running) = slot.pending();
    totals.success + totals.failure + totals.cancelled + refused + (waiting + running) as u64
}

/// What was recorded last of a model.
#[derive(Debug, Clone, Copy, Default)]
struct Last {
    success: u64,
    queue: Duration,
    /// Nothing arrived and nothing ran.
    idle: bool,
}

/// The trace that is being recorded.
pub struct Recording {
    recorder: Option<Recorder>,
    /// Could not be recorded to; another is tried when the configuration says so.
    failed: Option<PathBuf>,
    last: BTreeMap<String, Last>,
    /// Turns that were lost because the disk is behind.
    lost: u64,
    /// Wall clock of the start: what a trace tells goes on after a restart.
    started: Instant,
    wall_s: f64,
}

impl Recording {
    pub fn new(now: Instant) -> Self {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            recorder: None,
            failed: None,
            last: BTreeMap::new(),
            lost: 0,
            started: now,
            wall_s: wall.as_secs_f64(),
        }
    }

    /// Records where the configuration says, or ends.
    fn follow(&mut self, wanted: Option<&TraceDir>) {
        let wanted = wanted.map(|dir| dir.0.as_path());
        if self.recorder.as_ref().map(Recorder::dir) == wanted {
            return;
        }
        self.recorder = None;
        let Some(dir) = wanted.filter(|dir| self.failed.as_deref() != Some(dir)) else {
            self.failed = self.failed.take().filter(|_| wanted.is_some());
            return;
        };
        self.last.clear();
        match Recorder::open(dir) {
            Ok(recorder) => {
                tracing::info!("what the governor sees is recorded in {}", dir.display());
                (self.recorder, self.failed) = (Some(recorder), None);
            }
            Err(error) => {
                tracing::error!("nothing is recorded in {}: {error}", dir.display());
                self.failed = Some(dir.to_owned());
            }
        }
    }

    fn write(&mut self, lines: String) {
        let Some(recorder) = self.recorder.as_ref().filter(|_| !lines.is_empty()) else { return };
        match recorder.record(lines) {
            Taken::Yes if self.lost > 0 => {
                tracing::warn!("{} turns are missing in the trace: the disk was slow", self.lost);
                self.lost = 0;
            }
            Taken::Yes => {}
            Taken::Lost => self.lost += 1,
            Taken::Ended => {
                self.failed = Some(recorder.dir().to_owned());
                self.recorder = None;
            }
        }
    }
}

impl Agent {
    /// Each turn, before the governor looks: what is asked of each model.
    pub(super) fn count_arrivals(&mut self, now: Instant) {
        for served in self.served.values_mut() {
            let arrived = arrived(&served.slot);
            served.demand.turn(now, arrived, served.config.governor.window.into());
        }
    }

    /// Each turn: a line a model of what happened since the turn before.
    pub(super) fn record(&mut self, from: Instant) {
        self.recording.follow(self.config.trace.as_ref());
        if self.recording.recorder.is_none() {
            return;
        }
        let since_start = from.saturating_duration_since(self.recording.started);
        let t_s = self.recording.wall_s + since_start.as_secs_f64();
        // Of the box or of an accelerator in it: what heats one slows the other down.
        let sensors = [hottest(&(self.hardware)()), self.devices.hottest()];
        let temperature_c = sensors.into_iter().flatten().max_by(f64::total_cmp);
        let mut lines = String::new();
        for (name, served) in &self.served {
            let last = self.recording.last.entry(name.clone()).or_default();
            let row = Row { t_s, temperature_c, ..served.row(from, last) };
            let idle = row.arrivals == 0 && row.compute_ms.is_none();
            // What stays idle is told once: a line holds until the next.
            if !(idle && last.idle) {
                lines.push_str(&row.line());
            }
            last.idle = idle;
        }
        self.recording.last.retain(|name, _| self.served.contains_key(name));
        self.recording.write(lines);
    }
}

impl Served {
    /// What happened since `from`.
    fn row(&self, from: Instant, last: &mut Last) -> Row {
        let ms = |duration: Duration| duration.as_secs_f64() * 1e3;
        let totals = self.slot.totals();
        let answered = totals.success.saturating_sub(last.success);
        let waited = totals.queue.saturating_sub(last.queue);
        (last.success, last.queue) = (totals.success, totals.queue);
        let recent = self.slot.current().stats().window(from);
        let candidate = &self.candidates[self.current];
        let promised =
            self.candidates[0].p50.map(|dense| dense.as_secs_f64() * candidate.info.ratio);
        let compute = recent.compute_at(Percentile::P50);
        let slowdown = compute.zip(promised.filter(|promised| *promised > 0.0));
        let percentile = self.config.budget.map_or(Percentile::P99, |budget| budget.percentile);
        Row {
            model: self.key.model.clone(),
            arrivals: self.demand.newest(),
            slowdown: slowdown.map(|(compute, promised)| compute.as_secs_f64() / promised),
            variant: Some(candidate.info.name.clone()),
            queue_ms: (answered > 0).then(|| ms(waited) / answered as f64),
            compute_ms: compute.map(ms),
            latency_ms: recent.latency_at(percentile).map(ms),
            ..Row::default()
        }
    }
}

/// The temperature of the hottest sensor that the facts of the box tell of.
fn hottest(hardware: &Value) -> Option<f64> {
    let zones = hardware["thermal"].as_array()?.iter();
    zones.filter_map(|zone| zone["celsius"].as_f64()).max_by(f64::total_cmp)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn arrivals_are_counted_over_the_window_and_over_the_last_turn() {
        let begin = Instant::now();
        let mut demand = Demand::default();
        assert_eq!((demand.newest(), demand.load(2)), (0, None));
        for turn in 0..40u32 {
            // Ten a turn, and from the 30th on twenty; a count that was read late is not taken back.
            let late = u64::from(turn == 20);
            let arrived = u64::from(turn * 10 + 10 * turn.saturating_sub(30)) - 3 * late;
            let at = begin + Duration::from_millis(250) * turn;
            demand.turn(at, arrived, Duration::from_secs(2));
        }
        assert_eq!(demand.newest(), 20);
        let load = demand.load(2).unwrap();
        assert!((load.rate - 80.0).abs() < 1e-9, "{load:?}");
        assert_eq!((load.instances, demand.turns.len()), (2, 9));
    }

    #[test]
    fn the_hottest_sensor_counts_and_those_that_are_off_do_not() {
        let zones = json!({"thermal": [{"celsius": 41.5}, {"celsius": null}, {"celsius": 63.0}]});
        assert_eq!(hottest(&zones), Some(63.0));
        assert_eq!(hottest(&json!({"thermal": []})), None);
        assert_eq!(hottest(&Value::Null), None);
    }
}
