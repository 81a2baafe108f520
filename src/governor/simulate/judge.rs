//! What a run was worth: the windows that held the budget, of those in which any variant could have, and the
//! quality beside that of a controller that knows what will come.

use std::collections::VecDeque;
use std::time::Duration;

use serde::Serialize;

use super::super::{ModelView, Observed};
use super::{Driver, Lane, Served, Site, Subject, duration, factors, run};

/// One stretch of the policy's window, of one model.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct WindowReport {
    /// Begin, seconds.
    pub from_s: f64,
    /// Requests that arrived in it.
    pub requests: usize,
    /// Those that were refused because the queue was full.
    pub refused: usize,
    /// Latency at the budget's percentile, milliseconds, by the nearest-rank rule; nothing where no request
    /// arrived, or where it is one that was refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency_ms: Option<f64>,
    /// Whether that is within the budget; nothing without a budget or requests.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub within: Option<bool>,
    /// The same where the fastest variant that may serve serves all the time: what it does not hold, none does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub possible: Option<bool>,
    /// The variant that was in service at its end.
    pub variant: usize,
    /// Mean quality over the requests.
    pub quality: f64,
    /// The box's slowdown in its middle.
    pub slowdown: f64,
    /// The variant that the clairvoyant controller takes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clairvoyant: Option<usize>,
}

/// The same of all windows together.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    /// Windows with requests.
    pub windows: usize,
    /// Those in which a variant could hold the budget.
    pub possible: usize,
    /// Those of the possible ones in which it was held.
    pub within: usize,
    /// Those of the possible ones that the agent would tell as held: no more requests above the budget than
    /// chance explains.
    pub told_within: usize,
    pub requests: usize,
    pub refused: usize,
    /// Mean over the requests that were answered.
    pub quality: f64,
    pub switches: usize,
}

impl Summary {
    /// Share of the windows within the budget, of those where that was possible; 1 where there are none.
    pub fn share(&self) -> f64 {
        if self.possible == 0 { 1.0 } else { self.within as f64 / self.possible as f64 }
    }
}

/// What a controller comes to that knows all slowdowns and arrivals: in each window the best variant that holds
/// the budget, the fastest where none does, as often as it likes.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Clairvoyant {
    /// Mean over the requests that it answers.
    pub quality: f64,
    /// Windows within the budget, of the possible ones.
    pub within: usize,
}

/// One model's run, judged.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Judged {
    pub windows: Vec<WindowReport>,
    pub summary: Summary,
    /// Nothing where models share cores: what is best for one is then not best for all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clairvoyant: Option<Clairvoyant>,
}

/// Judges what [`run`] gave for the same subjects and site.
pub fn judge(subjects: &[Subject], site: &Site, lanes: &[Lane]) -> Vec<Judged> {
    let fastest: Vec<usize> = subjects.iter().map(|subject| fastest(&subject.view)).collect();
    let reference = run(subjects, site, Driver::Fixed(&fastest));
    let all = subjects.iter().zip(lanes).zip(&reference);
    all.map(|((subject, lane), reference)| one(subject, site, lane, reference)).collect()
}

/// Whether a variant may serve: dense always may.
fn may_serve(view: &ModelView, variant: usize) -> bool {
    let shown = &view.variants[variant];
    variant == 0 || (shown.ready && shown.quality >= view.floor)
}

fn fastest(view: &ModelView) -> usize {
    let may = (0..view.variants.len()).filter(|variant| may_serve(view, *variant));
    may.min_by_key(|variant| view.variants[*variant].promised).unwrap_or_default()
}

fn one(subject: &Subject, site: &Site, lane: &Lane, reference: &Lane) -> Judged {
    let window = subject.view.policy.window;
    let count = site.length.as_secs_f64() / window.as_secs_f64();
    let mut foresight = site.cores.is_none().then(|| Foresight::new(subject));
    let mut clairvoyant = Clairvoyant { quality: 0.0, within: 0 };
    let (mut windows, mut told) = (Vec::new(), 0);
    // A stretch that the run did not see whole is not judged.
    for number in 0..count.floor() as u32 {
        let (from, to) = (window * number, window * (number + 1));
        let seen = |lane: &Lane| requests(lane, from, to, site.length);
        let (own, ideal) = (seen(lane), seen(reference));
        let switched = lane.switches.iter().take_while(|switch| switch.at <= to).last();
        let first = lane.switches.first().map_or(lane.current, |switch| switch.from);
        let answered = own.iter().filter(|served| served.latency.is_some());
        let mut report = WindowReport {
            from_s: from.as_secs_f64(),
            requests: own.len(),
            refused: own.len() - answered.clone().count(),
            latency_ms: at_percentile(subject, &own).map(|took| took.as_secs_f64() * 1e3),
            within: within(subject, &own),
            possible: within(subject, &ideal),
            variant: switched.map_or(first, |switch| switch.action.to),
            quality: quality(&subject.view, answered.map(|served| served.variant)),
            slowdown: (subject.slowdown)(from + window / 2),
            clairvoyant: None,
        };
        if let Some(foresight) = &mut foresight {
            let (variant, held) = foresight.window(from, to);
            report.clairvoyant = Some(variant);
            clairvoyant.within += usize::from(held && report.possible == Some(true));
        }
        told += usize::from(report.possible == Some(true) && told_within(subject, &own));
        windows.push(report);
    }
    if let Some(foresight) = &foresight {
        clairvoyant.quality = quality(&subject.view, foresight.served.iter().copied());
    }
    let possible = windows.iter().filter(|window| window.possible == Some(true));
    let answered = lane.requests.iter().filter(|served| served.latency.is_some());
    let summary = Summary {
        windows: windows.iter().filter(|window| window.requests > 0).count(),
        possible: possible.clone().count(),
        within: possible.filter(|window| window.within == Some(true)).count(),
        told_within: told,
        requests: windows.iter().map(|window| window.requests).sum(),
        refused: windows.iter().map(|window| window.refused).sum(),
        quality: quality(&subject.view, answered.map(|served| served.variant)),
        switches: lane.switches.len(),
    };
    Judged { windows, summary, clairvoyant: foresight.map(|_| clairvoyant) }
}

/// Requests that arrived in a window; not those that the run's end cut off.
fn requests(lane: &Lane, from: Duration, to: Duration, end: Duration) -> Vec<Served> {
    let begin = lane.requests.partition_point(|served| served.arrived < from);
    let of_window = lane.requests[begin..].iter().take_while(|served| served.arrived < to);
    let last = lane.requests.iter().rposition(|served| served.latency.is_some());
    let cut = last.and_then(|last| lane.requests.get(last)).map_or(end, |served| served.arrived);
    of_window.filter(|served| served.latency.is_some() || served.arrived < cut).copied().collect()
}

/// `None` where there was none, or where it is that of a request that was refused.
fn at_percentile(subject: &Subject, served: &[Served]) -> Option<Duration> {
    let took = served.iter().map(|served| served.latency.unwrap_or(Duration::MAX));
    let mut sorted: Vec<Duration> = took.collect();
    sorted.sort_unstable();
    subject.percentile.of(&sorted).filter(|took| *took < Duration::MAX)
}

fn within(subject: &Subject, served: &[Served]) -> Option<bool> {
    let budget = subject.view.budget.filter(|_| !served.is_empty())?;
    Some(at_percentile(subject, served).is_some_and(|took| took <= budget))
}

fn told_within(subject: &Subject, served: &[Served]) -> bool {
    let took = served.iter().map(|served| served.latency.unwrap_or(Duration::MAX));
    let observed = Observed::new(took.collect(), subject.percentile);
    subject.view.budget.is_some_and(|budget| !observed.breaks_budget(budget))
}

/// Mean over what was served; 1 where nothing was.
fn quality(view: &ModelView, variants: impl Iterator<Item = usize>) -> f64 {
    let of = |variant: usize| if variant == 0 { 1.0 } else { view.variants[variant].quality };
    let (count, sum) = variants.fold((0usize, 0.0), |(n, sum), v| (n + 1, sum + of(v)));
    if count == 0 { 1.0 } else { sum / count as f64 }
}

/// Sessions that one model has to itself: a request begins when the first of them is free.
#[derive(Debug, Clone)]
struct Sessions {
    free: Vec<f64>,
    /// When those that may still wait begin.
    begins: VecDeque<f64>,
}

/// The clairvoyant controller on its way through the windows.
struct Foresight<'s, 'a> {
    subject: &'s Subject<'a>,
    factors: Vec<f64>,
    sessions: Sessions,
    next: usize,
    /// Variants that may serve, best quality first.
    choice: Vec<usize>,
    /// The variant of each request that was answered.
    served: Vec<usize>,
}

impl<'s, 'a> Foresight<'s, 'a> {
    fn new(subject: &'s Subject<'a>) -> Self {
        let view = &subject.view;
        let mut choice: Vec<usize> =
            (0..view.variants.len()).filter(|variant| may_serve(view, *variant)).collect();
        let of = |variant: usize| if variant == 0 { 1.0 } else { view.variants[variant].quality };
        choice.sort_by(|a, b| of(*b).total_cmp(&of(*a)).then(a.cmp(b)));
        Self {
            subject,
            factors: factors(subject.noise, subject.seed, subject.arrivals.len()),
            sessions: Sessions {
                free: vec![0.0; subject.instances.max(1)],
                begins: VecDeque::new(),
            },
            next: 0,
            choice,
            served: Vec::new(),
        }
    }

    /// Serves one window; the variant that it takes, and whether that holds the budget.
    fn window(&mut self, from: Duration, to: Duration) -> (usize, bool) {
        let first = self.next;
        let count = self.subject.arrivals[first..].partition_point(|at| *at < to);
        self.next += count;
        let begin = self.subject.arrivals[first..].partition_point(|at| *at < from);
        debug_assert_eq!(begin, 0, "windows follow one another");
        let mut chosen = None;
        for variant in self.choice.clone() {
            let tried = self.attempt(variant, first, count);
            let held = within(self.subject, &tried.1) != Some(false);
            if held {
                chosen = Some((variant, held, tried));
                break;
            }
        }
        let (variant, held, (sessions, served)) = chosen.unwrap_or_else(|| {
            let variant = fastest(&self.subject.view);
            (variant, false, self.attempt(variant, first, count))
        });
        self.sessions = sessions;
        let answered = served.iter().filter(|served| served.latency.is_some());
        self.served.extend(answered.map(|served| served.variant));
        (variant, held)
    }

    fn attempt(&self, variant: usize, first: usize, count: usize) -> (Sessions, Vec<Served>) {
        let mut sessions = self.sessions.clone();
        let median = self.subject.medians[variant].as_secs_f64();
        let serve = |request: usize| {
            let arrived = self.subject.arrivals[request];
            let at = arrived.as_secs_f64();
            while sessions.begins.front().is_some_and(|begin| *begin <= at) {
                sessions.begins.pop_front();
            }
            let mut served = Served { arrived, latency: None, run: Duration::ZERO, variant };
            let earliest = sessions.free.iter_mut().min_by(|a, b| a.total_cmp(b));
            if let Some(free) = earliest.filter(|_| sessions.begins.len() <= self.subject.queue) {
                let begin = free.max(at);
                let run = median * (self.subject.slowdown)(duration(begin)) * self.factors[request];
                *free = begin + run;
                sessions.begins.push_back(begin);
                (served.run, served.latency) = (duration(run), Some(duration(begin + run - at)));
            }
            served
        };
        let served = (first..first + count).map(serve).collect();
        (sessions, served)
    }
}
