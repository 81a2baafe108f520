//! What a simulation came to: a table for people, JSON for machines.

use std::fmt::Write;
use std::time::Duration;

use blochd::governor::ModelView;
use blochd::governor::simulate::{Judged, Lane, WindowReport};
use blochd::units::Percentile;
use serde_json::{Value, json};

/// Most lines of one model's table; what is left out is in the JSON.
const LINES: usize = 80;

/// One model's run.
pub struct Outcome<'a> {
    pub name: &'a str,
    pub view: &'a ModelView,
    pub percentile: Percentile,
    pub lane: Lane,
    pub judged: Judged,
}

/// All of them.
pub struct Scene<'a> {
    pub trace: String,
    pub length: Duration,
    pub outcomes: Vec<Outcome<'a>>,
}

/// Writing to a string cannot fail.
macro_rules! put {
    ($into:expr, $($what:tt)*) => { let _ = writeln!($into, $($what)*); };
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// A stretch of time in which one variant served.
pub struct Stretch {
    pub from_s: f64,
    pub to_s: f64,
    pub variant: usize,
    /// Why it began.
    pub because: Option<String>,
}

impl Outcome<'_> {
    /// The variants in service, one after the other.
    pub fn stretches(&self, length: Duration) -> Vec<Stretch> {
        let first = self.lane.switches.first().map_or(self.lane.current, |switch| switch.from);
        let begin =
            Stretch { from_s: 0.0, to_s: length.as_secs_f64(), variant: first, because: None };
        self.lane.switches.iter().fold(vec![begin], |mut all, switch| {
            let at = switch.at.as_secs_f64();
            if let Some(last) = all.last_mut() {
                last.to_s = at;
            }
            all.push(Stretch {
                from_s: at,
                to_s: length.as_secs_f64(),
                variant: switch.action.to,
                because: Some(switch.action.because.to_string()),
            });
            all
        })
    }

    /// The name of a variant.
    pub fn variant(&self, index: usize) -> &str {
        self.view.variants.get(index).map_or("", |variant| &variant.name)
    }

    fn json(&self) -> Value {
        let summary = &self.judged.summary;
        let switches = self.lane.switches.iter().map(|switch| {
            json!({
                "at_s": switch.at.as_secs_f64(), "from": self.variant(switch.from),
                "to": self.variant(switch.action.to), "because": switch.action.because,
            })
        });
        let convicted = self.lane.convicted.iter().map(|(at, conviction)| {
            json!({"at_s": at.as_secs_f64(), "variant": self.variant(conviction.variant)})
        });
        let variants = self.view.variants.iter().map(|variant| {
            json!({
                "name": variant.name, "promised_ms": ms(variant.promised),
                "quality": variant.quality,
            })
        });
        let lost = self.judged.clairvoyant.as_ref().map(|c| c.quality - summary.quality);
        json!({
            "model": self.name,
            "budget": self.view.budget.map(|budget| json!({
                "percentile": self.percentile.to_string(), "limit_ms": ms(budget),
            })),
            "quality_floor": self.view.floor, "variants": variants.collect::<Vec<_>>(),
            "summary": summary, "within_share": summary.share(),
            "clairvoyant": self.judged.clairvoyant, "quality_lost": lost,
            "switches": switches.collect::<Vec<_>>(), "withdrawn": convicted.collect::<Vec<_>>(),
            "windows": self.judged.windows,
        })
    }

    fn table(&self, length: Duration, text: &mut String) {
        let budget = self.view.budget.map_or("no budget".to_owned(), |budget| {
            format!("budget {} ≤ {:.2} ms", self.percentile, ms(budget))
        });
        put!(text, "{}: {budget}, quality at least {}", self.name, self.view.floor);
        put!(
            text,
            "\n  {:>19}  {:8} {:15} {:>9} {:>12} {:>9} {:>10}",
            "time",
            "variant",
            "because",
            "requests",
            self.percentile.to_string(),
            "broken",
            "slowdown"
        );
        let stretches = self.stretches(length);
        for stretch in stretches.iter().take(LINES) {
            self.line(stretch, text);
        }
        if let Some(more) = stretches.len().checked_sub(LINES).filter(|more| *more > 0) {
            put!(text, "  … {more} more; --json tells all");
        }
        text.push('\n');
        self.findings(text);
    }

    fn line(&self, stretch: &Stretch, text: &mut String) {
        let of = |window: &&WindowReport| (stretch.from_s..stretch.to_s).contains(&window.from_s);
        let windows: Vec<&WindowReport> = self.judged.windows.iter().filter(of).collect();
        let requests: usize = windows.iter().map(|window| window.requests).sum();
        let broken = windows.iter().filter(|window| window.within == Some(false)).count();
        let latencies = windows.iter().filter_map(|window| window.latency_ms);
        let worst = latencies
            .fold(None, |worst: Option<f64>, took| Some(worst.map_or(took, |w| w.max(took))));
        let slowdowns = windows.iter().map(|window| window.slowdown);
        let slowdown = slowdowns.clone().sum::<f64>() / slowdowns.count().max(1) as f64;
        put!(
            text,
            "  {:8.2} – {:8.2}  {:8} {:15} {requests:>9} {:>12} {:>9} {:>10}",
            stretch.from_s,
            stretch.to_s,
            self.variant(stretch.variant),
            stretch.because.as_deref().unwrap_or("begin"),
            worst.map_or("–".to_owned(), |worst| format!("≤ {worst:.2} ms")),
            format!("{broken} / {}", windows.len()),
            if windows.is_empty() { "–".to_owned() } else { format!("{slowdown:.2}") }
        );
    }

    fn findings(&self, text: &mut String) {
        let (judged, summary) = (&self.judged, &self.judged.summary);
        if self.view.budget.is_some() {
            put!(
                text,
                "  within budget    {:.2} % of the {} windows in which a variant could hold it ({} \
                 broken); {} of {} windows were possible",
                100.0 * summary.share(),
                summary.possible,
                summary.possible - summary.within,
                summary.possible,
                summary.windows
            );
            let told = summary.told_within as f64 / summary.possible.max(1) as f64;
            put!(
                text,
                "  as the agent     {:.2} %: only windows with more requests above the budget than \
                 chance explains count as broken",
                100.0 * told
            );
        }
        put!(text, "  switches         {}", summary.switches);
        put!(text, "  requests         {}, {} refused", summary.requests, summary.refused);
        put!(text, "  average quality  {:.4}", summary.quality);
        match &judged.clairvoyant {
            Some(clairvoyant) => {
                put!(
                    text,
                    "  with foresight   {:.4} ({:+.4}), within budget in {} windows",
                    clairvoyant.quality,
                    clairvoyant.quality - summary.quality,
                    clairvoyant.within
                );
            }
            None => {
                put!(text, "  with foresight   not known where models share cores");
            }
        }
    }
}

impl Scene<'_> {
    /// Everything, with every window.
    pub fn json(&self) -> Value {
        let models: Vec<Value> = self.outcomes.iter().map(Outcome::json).collect();
        json!({"trace": self.trace, "length_s": self.length.as_secs_f64(), "models": models})
    }

    /// A table a model.
    pub fn table(&self) -> String {
        let mut text = String::new();
        for (number, outcome) in self.outcomes.iter().enumerate() {
            if number > 0 {
                text.push('\n');
            }
            outcome.table(self.length, &mut text);
        }
        text
    }
}
