//! One frame of `blochd status --watch`: the agent's answers so far, as lines for a terminal of some width.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use serde_json::Value;

use super::{
    access, array, devices, hanging, hardware, millis, or_dash, printable, refused_configuration,
    sandbox, title, word,
};

/// How far back the line of past latencies reaches.
const PAST: Duration = Duration::from_secs(60);
/// Requests a second are counted over this time: one second alone jumps.
const RATE: Duration = Duration::from_secs(5);
/// Widest bar, and the narrowest that says anything, characters.
const BAR: (usize, usize) = (40, 5);
/// Eighths of a character's height.
const HEIGHTS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// How a line stands out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    Plain,
    /// A heading.
    Strong,
    /// What is only for the record.
    Dim,
    /// What asks for a person.
    Alarm,
}

/// A line without control characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    pub text: String,
    pub style: Style,
}

/// What was seen of one version of a model at one moment.
#[derive(Debug, Clone, Copy)]
struct Point {
    at: Duration,
    /// At the budget's percentile, milliseconds; `None` without traffic.
    latency: Option<f64>,
    answered: u64,
}

/// What was seen of every model within [`PAST`].
#[derive(Debug, Default)]
pub struct History(BTreeMap<(String, u64), VecDeque<Point>>);

fn key(model: &Value) -> (String, u64) {
    (word(&model["model"]), model["version"].as_u64().unwrap_or_default())
}

/// Latency at the percentile that the budget bounds, milliseconds.
fn latency(model: &Value) -> Option<f64> {
    let observed = &model["observed"];
    observed["at_budget_ms"].as_f64().or_else(|| observed["p99_ms"].as_f64())
}

impl History {
    /// Takes in what the agent told `at` a moment since the start.
    pub fn take(&mut self, status: &Value, at: Duration) {
        let mut there = BTreeSet::new();
        for model in array(&status["models"]) {
            let answered = model["answered"].as_u64().unwrap_or_default();
            let points = self.0.entry(key(model)).or_default();
            // Counters that went back belong to another run of the agent.
            if points.back().is_some_and(|last| last.answered > answered) {
                points.clear();
            }
            points.push_back(Point { at, latency: latency(model), answered });
            while points.front().is_some_and(|first| at.saturating_sub(first.at) > PAST) {
                points.pop_front();
            }
            there.insert(key(model));
        }
        self.0.retain(|key, _| there.contains(key));
    }

    fn points(&self, model: &Value) -> impl DoubleEndedIterator<Item = &Point> {
        self.0.get(&key(model)).into_iter().flatten()
    }

    /// Requests answered a second; `None` before the second look.
    fn rate(&self, model: &Value) -> Option<f64> {
        let last = self.points(model).next_back()?;
        let recent = |point: &&Point| last.at.saturating_sub(point.at) <= RATE;
        let first = self.points(model).find(recent)?;
        let seconds = last.at.saturating_sub(first.at).as_secs_f64();
        (seconds > 0.0).then(|| last.answered.saturating_sub(first.answered) as f64 / seconds)
    }

    /// The last minute in so many columns, the worst of each as a height below `full`; a dot where there was no
    /// traffic, nothing where nobody looked.
    fn spark(&self, model: &Value, columns: usize, full: Option<f64>) -> String {
        let Some(last) = self.points(model).next_back() else { return String::new() };
        let mut worst: Vec<Option<Option<f64>>> = vec![None; columns];
        for point in self.points(model) {
            let age = last.at.saturating_sub(point.at).as_secs_f64() / PAST.as_secs_f64();
            let back = (age * columns as f64) as usize;
            let Some(at) = columns.checked_sub(back + 1) else { continue };
            let known = worst[at].flatten().into_iter().chain(point.latency);
            worst[at] = Some(known.reduce(f64::max));
        }
        let highest = worst.iter().flatten().flatten().copied().reduce(f64::max);
        let full = full.into_iter().chain(highest).reduce(f64::max).unwrap_or(1.0);
        let text: String = worst
            .into_iter()
            .map(|column| match column {
                None => ' ',
                Some(None) => '·',
                Some(Some(ms)) => {
                    let step = (ms / full * HEIGHTS.len() as f64).ceil() as usize;
                    HEIGHTS[step.clamp(1, HEIGHTS.len()) - 1]
                }
            })
            .collect();
        text.trim_start().to_owned()
    }
}

/// The lines of a frame, none wider than `width`.
pub fn frame(status: &Value, history: &History, width: usize) -> Vec<Line> {
    let mut page = Page { width, lines: Vec::new() };
    page.head(status);
    let mut any = false;
    for model in array(&status["models"]) {
        any = true;
        page.model(model, history);
    }
    if !any {
        page.blank();
        page.put(Style::Plain, "No model is served.");
    }
    for refused in array(&status["refused"]) {
        page.blank();
        let (model, version) = (word(&refused["model"]), &refused["version"]);
        let why = printable(&word(&refused["reason"]));
        page.words(Style::Alarm, &format!("{model} version {version} is not served: {why}"));
    }
    page.lines
}

/// What is shown in place of a frame where there is none.
pub fn trouble(why: &str, width: usize) -> Vec<Line> {
    let mut page = Page { width, lines: Vec::new() };
    page.words(Style::Alarm, &printable(why));
    page.put(Style::Dim, "It is asked again until it answers.");
    page.lines
}

/// As many lines as a terminal of some height shows; the last says how many it does not.
pub fn fit(mut lines: Vec<Line>, height: usize) -> Vec<Line> {
    if lines.len() > height && height > 0 {
        let more = lines.len() - height + 1;
        lines.truncate(height - 1);
        lines.push(Line { text: format!("… {more} more lines"), style: Style::Dim });
    }
    lines
}

struct Page {
    width: usize,
    lines: Vec<Line>,
}

impl Page {
    fn put(&mut self, style: Style, text: &str) {
        self.lines.push(Line { text: cut(text, self.width), style });
    }

    fn blank(&mut self) {
        self.put(Style::Plain, "");
    }

    /// Parts on as many lines as they take, with `between` them, further lines indented as `indent` says.
    fn parts(&mut self, style: Style, indent: &str, between: &str, parts: &[String]) {
        let mut line = String::new();
        for part in parts {
            let longer = if line.is_empty() {
                format!("{indent}{part}")
            } else {
                format!("{line}{between}{part}")
            };
            if line.is_empty() || longer.chars().count() <= self.width {
                line = longer;
            } else {
                self.put(style, line.trim_end());
                line = format!("{indent}{part}");
            }
        }
        if !line.is_empty() {
            self.put(style, &line);
        }
    }

    /// A sentence, broken between words.
    fn words(&mut self, style: Style, text: &str) {
        let words: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
        self.parts(style, "", " ", &words);
    }

    fn head(&mut self, status: &Value) {
        self.parts(Style::Strong, "", "  ", &split(&title(status), "  "));
        let lines = [hardware(&status["hardware"]), sandbox(&status["sandbox"]), hanging(status)];
        for line in lines.iter().filter(|line| !line.is_empty()) {
            self.parts(Style::Dim, "", ", ", &split(line, ", "));
        }
        for line in access::lines(&status["access"]) {
            let style = if line.alarm { Style::Alarm } else { Style::Dim };
            self.parts(style, "", " ", &split(&line.text, " "));
        }
        for line in devices::lines(&status["hardware"], &status["accelerators"]) {
            let style = if line.alarm { Style::Alarm } else { Style::Dim };
            self.parts(style, "", "  ", &split(&line.text, "  "));
        }
        for line in refused_configuration(status) {
            self.words(Style::Alarm, &line);
        }
    }

    fn model(&mut self, model: &Value, history: &History) {
        let version = word(&model["version"]);
        let name = format!("{} {version}  {}", word(&model["model"]), word(&model["variant"]));
        let limit = model["budget"]["limit_ms"].as_f64();
        let (state, style) = match (limit, model["met"].as_bool()) {
            (None, _) => ("no budget", Style::Strong),
            (Some(_), None) => ("no traffic", Style::Strong),
            (Some(_), Some(true)) => ("in budget", Style::Strong),
            (Some(_), Some(false)) => ("OVER BUDGET", Style::Alarm),
        };
        self.blank();
        self.sides(style, &name, state);
        self.latency(model, limit, style);
        self.numbers(model, history);
        let label = "  last minute ";
        let columns = self.width.saturating_sub(label.len()).min(PAST.as_secs() as usize);
        let spark = history.spark(model, columns, limit);
        if !spark.is_empty() {
            self.put(Style::Plain, &format!("{label}{spark}"));
        }
        self.build(model);
        self.waiting(model);
    }

    /// The percentile against its bound.
    fn latency(&mut self, model: &Value, limit: Option<f64>, style: Style) {
        let percentile = model["budget"]["percentile"].as_str().unwrap_or("p99");
        let shown = or_dash(latency(model).map(millis));
        let text = format!("  {} {shown}", printable(percentile));
        let Some(limit) = limit else { return self.put(Style::Plain, &text) };
        let text = format!("{text} of {}", millis(limit));
        let share = latency(model).filter(|_| limit > 0.0).map(|ms| ms / limit);
        let style = if style == Style::Alarm { style } else { Style::Plain };
        self.bar(style, &text, share);
    }

    /// A text, and behind it a share as a bar and in per cent.
    fn bar(&mut self, style: Style, text: &str, share: Option<f64>) {
        let Some(share) = share else { return self.put(style, text) };
        let number = format!("{:.0} %", 100.0 * share);
        let taken = text.chars().count() + number.chars().count() + 4;
        let room = self.width.saturating_sub(taken).min(BAR.0);
        if room < BAR.1 {
            return self.put(style, &format!("{text}  {number}"));
        }
        let full = ((share * room as f64).round() as usize).min(room);
        let bar = format!("{}{}", "█".repeat(full), "░".repeat(room - full));
        self.put(style, &format!("{text}  {bar}  {number}"));
    }

    fn numbers(&mut self, model: &Value, history: &History) {
        let variant = array(&model["ladder"]).find(|one| one["name"] == model["variant"]);
        let quality = variant.and_then(|variant| variant["quality"].as_f64());
        let mut parts = vec![
            history.rate(model).map_or_else(|| "-/s".to_owned(), |rate| format!("{rate:.1}/s")),
            format!("queue {}", word(&model["queued"])),
            format!("quality {}", or_dash(quality.map(|share| format!("{:.1} %", 100.0 * share)))),
            format!(
                "slowdown {}",
                or_dash(model["slowdown"].as_f64().map(|factor| format!("×{factor:.2}")))
            ),
        ];
        let failed = model["failed"].as_u64().unwrap_or_default();
        let refused = model["refused"].as_u64().unwrap_or_default();
        for (count, what) in [(failed, "failed"), (refused, "refused")] {
            if count > 0 {
                parts.push(format!("{what} {count}"));
            }
        }
        if let Some(why) = model["last_swap_because"].as_str() {
            let swaps = word(&model["swaps"]);
            parts.push(format!("switches {swaps} (last: {})", printable(why)));
        }
        self.parts(Style::Plain, "  ", "  ", &parts);
    }

    fn build(&mut self, model: &Value) {
        let build = word(&model["build"]);
        let why = model["build_why"].as_str().map(printable);
        if let Some(share) = model["build_share"].as_f64() {
            let stage = or_dash(model["build_stage"].as_str().map(printable));
            let paused = if model["build_paused"] == true { " (makes place)" } else { "" };
            return self.bar(Style::Plain, &format!("  ladder: {stage}{paused}"), Some(share));
        }
        match (build.as_str(), why) {
            ("done", _) => {}
            ("failed", why) => {
                let text = format!("  ladder failed: {}", or_dash(why));
                self.put(Style::Alarm, &text);
            }
            (build, why) => {
                let why = why.map_or_else(String::new, |why| format!(": {why}"));
                self.put(Style::Dim, &format!("  ladder {build}{why}"));
            }
        }
    }

    /// Variants that do not stand by, and rungs that there are not.
    fn waiting(&mut self, model: &Value) {
        for variant in array(&model["ladder"]) {
            let state = word(&variant["state"]);
            if matches!(state.as_str(), "in service" | "ready") {
                continue;
            }
            let why = variant["why"].as_str().map(printable);
            let why = why.map_or_else(String::new, |why| format!(": {why}"));
            self.put(Style::Dim, &format!("  {} {state}{why}", word(&variant["name"])));
        }
        for missed in array(&model["not_built"]) {
            let (asked, why) = (word(&missed["asked"]), printable(&word(&missed["because"])));
            self.put(Style::Dim, &format!("  {asked} not built: {why}"));
        }
    }

    /// Two texts at the two sides.
    fn sides(&mut self, style: Style, left: &str, right: &str) {
        let room = self.width.saturating_sub(right.chars().count() + 2);
        let left = cut(left, room);
        let fill = self.width.saturating_sub(left.chars().count() + right.chars().count());
        self.put(style, &format!("{left}{}{right}", " ".repeat(fill)));
    }
}

fn split(line: &str, between: &str) -> Vec<String> {
    line.split(between).map(str::to_owned).collect()
}

/// A text of at most `width` characters; what is left out is marked.
fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let kept: String = text.chars().take(width.saturating_sub(1)).collect();
    if width == 0 { kept } else { format!("{}…", kept.trim_end()) }
}

#[cfg(test)]
mod tests;
