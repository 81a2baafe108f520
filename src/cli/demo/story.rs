//! What happened in a demo, and whether it was what the demo is to show. All of it is judged by what the client
//! saw: the agent's own word is not asked.

use std::collections::BTreeSet;
use std::time::Duration;

use blochd::governor::Observed;
use blochd::units::Percentile;
use serde_json::Value;

/// One request as the client told it.
#[derive(Debug, Clone)]
pub struct Request {
    /// When it was sent: seconds since the story began; negative before.
    pub at: f64,
    /// Seconds until the whole answer was there.
    pub latency: f64,
    pub variant: String,
    /// Whether the digit was recognised; `None` where the request failed.
    pub right: Option<bool>,
}

/// Everything that happened.
#[derive(Debug, Clone)]
pub struct Story {
    pub budget_ms: f64,
    /// The model's status after its ladder was built.
    pub ladder: Value,
    /// In the order of sending.
    pub samples: Vec<Request>,
    /// When each competing process was started.
    pub squeezed: Vec<f64>,
    /// When all of them were ended.
    pub relieved: f64,
    /// The box.
    pub host: String,
}

/// Requests of one variant in one act, one after the other.
#[derive(Debug, Clone, PartialEq)]
pub struct Stretch {
    pub act: &'static str,
    pub from: f64,
    pub to: f64,
    pub variant: String,
    pub requests: usize,
    pub failed: usize,
    pub right: usize,
    /// Milliseconds.
    pub p50: f64,
    pub p99: f64,
    /// Share of the requests above the budget.
    pub over: f64,
}

/// The client's view of a moment are the answers of this many seconds before it.
pub const WINDOW: f64 = 2.0;
/// The client looks this often.
const STEP: f64 = 0.25;
/// What was reached must last for these seconds to count as reached.
const LASTING: f64 = 2.0;
/// The squeeze must be answered within these seconds.
const PATIENCE: f64 = 5.0;

/// When the squeeze broke the budget and when it was held again, seconds of the story.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Reaction {
    /// When the client could first see that the budget is broken, or when the agent acted, if that was
    /// before.
    pub broken: f64,
    /// The first moment from which the client saw it held.
    pub held: Option<f64>,
}

impl Story {
    pub fn sent(&self) -> usize {
        self.samples.len()
    }

    pub fn failed(&self) -> usize {
        self.samples.iter().filter(|sample| sample.right.is_none()).count()
    }

    pub fn squeeze_from(&self) -> f64 {
        self.squeezed.first().copied().unwrap_or(self.relieved)
    }

    /// Latencies in milliseconds of what was answered in the window before `at`.
    fn window(&self, at: f64) -> Vec<f64> {
        let answered = |sample: &&Request| {
            let end = sample.at + sample.latency;
            (at - WINDOW..at).contains(&end)
        };
        self.samples.iter().filter(answered).map(|sample| sample.latency * 1e3).collect()
    }

    /// Whether the client saw the budget broken in the window before `at`: more requests above it than
    /// chance explains where one in a hundred may be.
    fn broken(&self, at: f64) -> bool {
        let latencies = self.window(at).into_iter().map(|ms| Duration::from_secs_f64(ms * 1e-3));
        let budget = Duration::from_secs_f64(self.budget_ms * 1e-3);
        Observed::new(latencies.collect(), Percentile::P99).breaks_budget(budget)
    }

    /// Moments of looking from `from` to `to`.
    fn looks(from: f64, to: f64) -> impl Iterator<Item = f64> {
        let steps = ((to - from) / STEP).max(0.0) as u32;
        (0..=steps).map(move |step| from + f64::from(step) * STEP)
    }

    /// What the client saw of p99, milliseconds, over the whole story.
    pub fn p99_line(&self) -> Vec<(f64, f64)> {
        let end = self.samples.last().map_or(0.0, |sample| sample.at);
        let look = |at: f64| {
            let mut window = self.window(at);
            window.sort_by(f64::total_cmp);
            Some((at, Percentile::P99.of(&window)?))
        };
        Self::looks(WINDOW, end).filter_map(look).collect()
    }

    /// (second, from, to) of every change of the answering variant.
    pub fn switches(&self) -> Vec<(f64, &str, &str)> {
        let told = self.samples.iter().filter(|sample| sample.at >= 0.0 && sample.right.is_some());
        let told: Vec<&Request> = told.collect();
        let changed = |pair: &&[&Request]| pair[0].variant != pair[1].variant;
        let switch = |pair: &[&'_ Request]| pair[1].at;
        told.windows(2)
            .filter(changed)
            .map(|pair| (switch(pair), pair[0].variant.as_str(), pair[1].variant.as_str()))
            .collect()
    }

    /// `None` where the squeeze neither broke the budget nor moved the agent.
    pub fn reaction(&self) -> Option<Reaction> {
        let (from, to) = (self.squeeze_from(), self.relieved);
        let seen = Self::looks(from, to).find(|at| self.broken(*at));
        let acted = self.switches().into_iter().map(|(at, ..)| at).find(|at| *at >= from);
        let acted = acted.filter(|at| *at < to);
        let broken = seen.into_iter().chain(acted).reduce(f64::min)?;
        let lasting = |at: &f64| !Self::looks(*at, at + LASTING).any(|look| self.broken(look));
        let held = Self::looks(broken, to - LASTING).find(lasting);
        Some(Reaction { broken, held })
    }

    /// Share of the client's looks, from the moment the budget was held again to the end of the squeeze,
    /// at which it was held.
    pub fn held_share(&self) -> Option<f64> {
        let held = self.reaction()?.held?;
        let looks: Vec<bool> = Self::looks(held, self.relieved).map(|at| self.broken(at)).collect();
        Some(looks.iter().filter(|broken| !**broken).count() as f64 / looks.len().max(1) as f64)
    }

    /// Seconds from the end of the squeeze until dense serves again, for good.
    pub fn returned(&self) -> Option<f64> {
        let after = |sample: &&Request| sample.at >= self.relieved && sample.right.is_some();
        let other = |sample: &Request| sample.variant != "dense";
        let after: Vec<&Request> = self.samples.iter().filter(after).collect();
        let last = after.iter().rposition(|sample| other(sample));
        let back = after.get(last.map_or(0, |last| last + 1))?;
        Some(back.at - self.relieved)
    }

    /// Whether the demo showed what it is to show.
    pub fn verdict(&self) -> Result<(), String> {
        if self.failed() > 0 {
            return Err(format!("{} requests failed", self.failed()));
        }
        let Some(reaction) = self.reaction() else {
            return Err(
                "the squeeze never broke the budget: this box is too fast for it".to_owned()
            );
        };
        let Some(held) = reaction.held else {
            return Err("the budget was not held again under the squeeze".to_owned());
        };
        let seconds = held - reaction.broken;
        if seconds > PATIENCE {
            return Err(format!("the budget was held again only after {seconds:.1} s"));
        }
        match self.returned() {
            None => Err("dense did not come back after the squeeze".to_owned()),
            Some(_) => Ok(()),
        }
    }

    /// The story in the order of time; without the time before it, when the ladder was being built.
    pub fn stretches(&self) -> Vec<Stretch> {
        let act = |at: f64| match at {
            at if at < self.squeeze_from() => "calm",
            at if at < self.relieved => "squeeze",
            _ => "after",
        };
        let shown: Vec<&Request> = self.samples.iter().filter(|s| s.at >= 0.0).collect();
        // What failed was answered by nobody: it counts where it happened.
        let together = |a: &&Request, b: &&Request| {
            act(a.at) == act(b.at)
                && (a.variant == b.variant || a.right.is_none() || b.right.is_none())
        };
        let summed = shown.chunk_by(together).map(|chunk| {
            let mut latencies: Vec<f64> = chunk.iter().map(|s| s.latency * 1e3).collect();
            latencies.sort_by(f64::total_cmp);
            let at = |percentile: Percentile| percentile.of(&latencies).unwrap_or_default();
            let over = latencies.iter().filter(|ms| **ms > self.budget_ms).count();
            let answered = chunk.iter().find(|sample| sample.right.is_some());
            Stretch {
                act: act(chunk[0].at),
                from: chunk[0].at,
                to: chunk[chunk.len() - 1].at,
                variant: answered.map_or_else(String::new, |sample| sample.variant.clone()),
                requests: chunk.len(),
                failed: chunk.iter().filter(|sample| sample.right.is_none()).count(),
                right: chunk.iter().filter(|sample| sample.right == Some(true)).count(),
                p50: at(Percentile::P50),
                p99: at(Percentile::P99),
                over: over as f64 / latencies.len() as f64,
            }
        });
        summed.collect()
    }

    /// The variants that answered, dense first, then from slow to fast.
    pub fn variants(&self) -> Vec<String> {
        let answered = self.samples.iter().filter(|sample| sample.right.is_some());
        let names: BTreeSet<&str> = answered.map(|sample| sample.variant.as_str()).collect();
        // By name: "dense", then "r0.75" before "r0.5".
        let (dense, rungs): (Vec<&str>, Vec<&str>) =
            names.into_iter().rev().partition(|name| *name == "dense");
        dense.into_iter().chain(rungs).map(str::to_owned).collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Sixty requests a second: calm for ten seconds, squeezed for twenty, then twenty more.
    fn story(answer: impl Fn(f64) -> (&'static str, f64)) -> Story {
        let request = |n: u32| {
            let at = f64::from(n) / 60.0 - 2.0;
            let (variant, ms) = answer(at);
            let variant = variant.to_owned();
            Request { at, latency: ms * 1e-3, variant, right: Some(!n.is_multiple_of(50)) }
        };
        Story {
            budget_ms: 10.0,
            ladder: json!({}),
            samples: (0..60 * 52).map(request).collect(),
            squeezed: vec![10.0, 12.0],
            relieved: 30.0,
            host: String::new(),
        }
    }

    fn answered_after(seconds: f64) -> Story {
        story(move |at| match at {
            at if at < 12.0 => ("dense", 5.0),
            at if at < 12.0 + seconds => ("dense", 15.0),
            at if at < 30.0 => ("r0.5", 8.0),
            at if at < 36.0 => ("r0.5", 3.0),
            _ => ("dense", 5.0),
        })
    }

    #[test]
    fn a_squeeze_that_is_answered_in_time_is_a_success() {
        let story = answered_after(1.0);
        let reaction = story.reaction().unwrap();
        // Six of the 120 requests in the window break it.
        assert!((12.0..12.5).contains(&reaction.broken), "{reaction:?}");
        // The last slow answer leaves the window two seconds after it came.
        assert!((14.5..15.5).contains(&reaction.held.unwrap()), "{reaction:?}");
        assert_eq!(story.held_share(), Some(1.0));
        assert!((5.9..6.1).contains(&story.returned().unwrap()));
        assert_eq!(story.verdict(), Ok(()));
        let acts: Vec<_> = story.stretches().into_iter().map(|s| (s.act, s.variant)).collect();
        let expected =
            [("calm", "dense"), ("squeeze", "dense"), ("squeeze", "r0.5"), ("after", "r0.5")];
        assert_eq!(acts[..4], expected.map(|(act, variant)| (act, variant.to_owned())));
        assert_eq!(story.variants(), ["dense", "r0.5"]);
        assert_eq!(story.switches().len(), 2);
    }

    #[test]
    fn a_late_answer_a_dense_that_stays_away_and_a_failed_request_are_told() {
        assert!(answered_after(8.0).verdict().unwrap_err().contains("only after"));
        let never = story(|at| if at < 12.0 { ("dense", 5.0) } else { ("dense", 15.0) });
        assert!(never.verdict().unwrap_err().contains("not held again"));
        let calm = story(|_| ("dense", 5.0));
        assert!(calm.verdict().unwrap_err().contains("never broke"));
        let mut away = answered_after(1.0);
        away.samples.retain(|sample| sample.at < 35.0);
        assert!(away.verdict().unwrap_err().contains("did not come back"));
        let mut failed = answered_after(1.0);
        failed.samples[700].right = None;
        failed.samples[700].variant = "connection refused".to_owned();
        assert_eq!(failed.verdict(), Err("1 requests failed".to_owned()));
        assert_eq!(failed.stretches()[0].failed, 1);
        assert_eq!(failed.variants(), ["dense", "r0.5"]);
    }
}
