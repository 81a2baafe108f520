//! The box itself: queues, sessions and cores, from event to event.

use std::collections::VecDeque;
use std::time::Duration;

use super::super::{Load, ModelView, Observed, State, step};
use super::{Driver, Lane, Served, Site, Subject, Switch, duration, factors};

/// Work below this many seconds is done: far below any run, far above what sums of floats lose.
const DONE: f64 = 1e-9;

/// A request in a session.
struct Running {
    request: usize,
    begun: f64,
    /// Seconds of its own that it still needs.
    left: f64,
}

/// One model's part of the box.
struct Part<'s, 'a> {
    subject: &'s Subject<'a>,
    view: ModelView,
    factors: Vec<f64>,
    /// Next request to arrive.
    next: usize,
    waiting: VecDeque<usize>,
    running: Vec<Running>,
    /// Recent answers of the variant in service: end, latency, run.
    answered: VecDeque<(f64, Duration, Duration)>,
    lane: Lane,
}

impl<'s, 'a> Part<'s, 'a> {
    fn new(subject: &'s Subject<'a>, current: usize) -> Self {
        Self {
            subject,
            view: ModelView { current, ..subject.view.clone() },
            factors: factors(subject.noise, subject.seed, subject.arrivals.len()),
            next: 0,
            waiting: VecDeque::new(),
            running: Vec::new(),
            answered: VecDeque::new(),
            lane: Lane { current, ..Lane::default() },
        }
    }

    fn arrival(&self) -> f64 {
        self.subject.arrivals.get(self.next).map_or(f64::INFINITY, Duration::as_secs_f64)
    }

    /// Takes in what arrives, and begins what can be begun.
    fn begin(&mut self, now: f64) {
        while self.arrival() <= now {
            let arrived = self.subject.arrivals[self.next];
            let variant = self.view.current;
            let refused = Served { arrived, latency: None, run: Duration::ZERO, variant };
            self.lane.requests.push(refused);
            if self.running.len() < self.subject.instances
                || self.waiting.len() < self.subject.queue
            {
                self.waiting.push_back(self.next);
            }
            self.next += 1;
            self.start(now);
        }
        self.start(now);
    }

    fn start(&mut self, now: f64) {
        while self.running.len() < self.subject.instances
            && let Some(request) = self.waiting.pop_front()
        {
            let variant = self.view.current;
            self.lane.requests[request].variant = variant;
            let median = self.subject.medians[variant].as_secs_f64();
            let left = median * (self.subject.slowdown)(duration(now)) * self.factors[request];
            self.running.push(Running { request, begun: now, left });
        }
    }

    fn end(&mut self, now: f64) {
        let mut ended = Vec::new();
        self.running.retain(|running| {
            let goes_on = running.left > DONE;
            if !goes_on {
                ended.push((running.request, running.begun));
            }
            goes_on
        });
        for (request, begun) in ended {
            let served = &mut self.lane.requests[request];
            let run = duration(now - begun);
            let latency = duration(now - served.arrived.as_secs_f64());
            (served.run, served.latency) = (run, Some(latency));
            if served.variant == self.view.current {
                self.answered.push_back((now, latency, run));
            }
        }
    }

    /// What the agent would show of it.
    fn look(&mut self, now: f64) {
        let window = self.view.policy.window.as_secs_f64();
        while self.answered.front().is_some_and(|(end, ..)| *end < now - window) {
            self.answered.pop_front();
        }
        let recent = self.answered.iter().map(|(_, latency, run)| (*latency, *run));
        let (latencies, runs) = recent.unzip();
        self.view.observed = Observed::new(latencies, self.subject.percentile).with_runs(runs);
        let from = duration(now - window);
        let arrived = self.subject.arrivals.partition_point(|at| *at < from);
        let stretch = window.min(now).max(DONE);
        let rate = (self.next - arrived) as f64 / stretch;
        self.view.load = Some(Load { rate, instances: self.subject.instances });
    }
}

/// Runs all `subjects` on one box. The same arguments give the same run.
pub fn run(subjects: &[Subject], site: &Site, driver: Driver) -> Vec<Lane> {
    let current = |index: usize, subject: &Subject| match driver {
        Driver::Governor => subject.view.current,
        Driver::Fixed(variants) => variants.get(index).copied().unwrap_or_default(),
    };
    let parts = subjects.iter().enumerate();
    let mut parts: Vec<Part> =
        parts.map(|(index, subject)| Part::new(subject, current(index, subject))).collect();
    let mut state = State::default();
    let (mut now, mut tick) = (0.0, Duration::ZERO);
    while tick < site.length {
        tick += site.tick;
        pass(&mut parts, site, &mut now, tick.as_secs_f64());
        if driver == Driver::Governor {
            govern(&mut parts, &mut state, tick);
        }
    }
    parts.into_iter().map(|part| Lane { current: part.view.current, ..part.lane }).collect()
}

/// Lets time pass until `to`.
fn pass(parts: &mut [Part], site: &Site, now: &mut f64, to: f64) {
    loop {
        let busy: usize = parts.iter().map(|part| part.running.len()).sum();
        let share = site.cores.map_or(1.0, |cores| (cores as f64 / busy.max(1) as f64).min(1.0));
        let running = parts.iter().flat_map(|part| &part.running);
        let ends = running.map(|running| *now + running.left / share);
        let arrivals = parts.iter().map(Part::arrival);
        let next = ends.chain(arrivals).fold(to, f64::min).max(*now);
        let work = (next - *now) * share;
        for running in parts.iter_mut().flat_map(|part| &mut part.running) {
            running.left -= work;
        }
        *now = next;
        for part in parts.iter_mut() {
            part.end(next);
            part.begin(next);
        }
        let idle = |part: &Part| part.running.iter().all(|running| running.left > DONE);
        if next >= to && parts.iter().all(idle) {
            return;
        }
    }
}

/// One step of the governor, and what it asks for.
fn govern(parts: &mut [Part], state: &mut State, now: Duration) {
    for part in parts.iter_mut() {
        part.look(now.as_secs_f64());
    }
    let views: Vec<ModelView> = parts.iter().map(|part| part.view.clone()).collect();
    let outcome = step(state, &views, now);
    for conviction in outcome.convicted {
        let Some(part) = parts.iter_mut().find(|part| part.view.name == conviction.model) else {
            continue;
        };
        part.view.variants[conviction.variant].ready = false;
        part.lane.convicted.push((now, conviction));
    }
    let Some(action) = outcome.action else { return };
    let Some(part) = parts.iter_mut().find(|part| part.view.name == action.model) else { return };
    let from = std::mem::replace(&mut part.view.current, action.to);
    part.answered.clear();
    part.lane.switches.push(Switch { at: now, from, action });
}
