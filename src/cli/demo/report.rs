//! What the demo tells at its end: a table, and a page with the time line as a plot.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use serde_json::Value;

/// One second as the agent's status told it.
#[derive(Debug, Clone)]
pub struct Moment {
    pub at: f64,
    pub variant: String,
    pub ratio: f64,
    pub p99_ms: Option<f64>,
    pub met: Option<bool>,
    pub slowdown: f64,
}

/// One request as the client told it.
#[derive(Debug, Clone)]
pub struct Request {
    /// Seconds since the story began; negative before.
    pub at: f64,
    pub latency: f64,
    pub variant: String,
    pub right: Option<bool>,
}

/// Everything that happened.
#[derive(Debug, Clone)]
pub struct Story {
    pub budget_ms: f64,
    pub ladder: Value,
    pub moments: Vec<Moment>,
    pub samples: Vec<Request>,
    pub squeeze_from: f64,
    pub squeeze_to: f64,
}

impl Moment {
    pub fn of(model: &Value, at: f64) -> Self {
        Self {
            at,
            variant: model["variant"].as_str().unwrap_or_default().to_owned(),
            ratio: model["ratio"].as_f64().unwrap_or(1.0),
            p99_ms: model["observed"]["p99_ms"].as_f64(),
            met: model["met"].as_bool(),
            slowdown: model["slowdown"].as_f64().unwrap_or(1.0),
        }
    }

    pub fn line(&self, (sent, failed): (usize, usize)) -> String {
        let p99 = self.p99_ms.map_or("-".to_owned(), |p99| format!("{p99:.2}"));
        let met = match self.met {
            Some(true) => "met",
            Some(false) => "NOT MET",
            None => "-",
        };
        format!(
            "{:5.1} s  {:8} ratio {:.2}  p99 {p99:>7} ms  budget {met:8} slowdown {:.2}  sent \
             {sent}, failed {failed}",
            self.at, self.variant, self.ratio, self.slowdown
        )
    }
}

impl Story {
    pub fn new(budget: Duration, ladder: Value) -> Self {
        Self {
            budget_ms: budget.as_secs_f64() * 1e3,
            ladder,
            moments: Vec::new(),
            samples: Vec::new(),
            squeeze_from: 0.0,
            squeeze_to: 0.0,
        }
    }

    fn failed(&self) -> usize {
        self.samples.iter().filter(|sample| sample.right.is_none()).count()
    }

    /// Seconds from the moment at which the squeeze broke the budget (or had dense replaced before it did)
    /// until it is met again, two seconds on end.
    fn reaction(&self) -> Option<f64> {
        let during: Vec<&Moment> = self.during(self.squeeze_from, self.squeeze_to).collect();
        let broken = during.iter().position(|m| m.met == Some(false) || m.variant != "dense")?;
        let held = (broken..during.len().saturating_sub(1))
            .find(|at| during[*at..].iter().take(2).all(|moment| moment.met == Some(true)))?;
        Some(during[held].at - during[broken].at)
    }

    fn during(&self, from: f64, to: f64) -> impl Iterator<Item = &Moment> {
        self.moments.iter().filter(move |moment| moment.at >= from && moment.at < to)
    }

    /// Seconds from the end of the squeeze until dense serves again.
    fn returned(&self) -> Option<f64> {
        let back = self.moments.iter().find(|m| m.at >= self.squeeze_to && m.variant == "dense");
        back.map(|moment| moment.at - self.squeeze_to)
    }

    /// Whether the demo showed what it is to show.
    pub fn verdict(&self) -> Result<(), String> {
        if self.failed() > 0 {
            return Err(format!("{} requests failed", self.failed()));
        }
        match self.reaction() {
            None => {
                return Err(
                    "the squeeze never broke the budget, or it was not met again".to_owned()
                );
            }
            Some(seconds) if seconds > 5.0 => {
                return Err(format!("the budget was met again only after {seconds:.1} s"));
            }
            Some(_) => {}
        }
        match self.returned() {
            None => Err("dense did not come back after the squeeze".to_owned()),
            Some(_) => Ok(()),
        }
    }

    /// Requests, right answers and p99 (ms) between two moments, by variant.
    fn by_variant(&self, from: f64, to: f64) -> BTreeMap<String, (usize, usize, f64)> {
        let mut all: BTreeMap<String, (usize, usize, Vec<f64>)> = BTreeMap::new();
        for sample in self.samples.iter().filter(|s| s.at >= from && s.at < to) {
            let entry = all.entry(sample.variant.clone()).or_default();
            entry.0 += 1;
            entry.1 += usize::from(sample.right == Some(true));
            entry.2.push(sample.latency * 1e3);
        }
        let summed = all.into_iter().map(|(variant, (count, right, mut latencies))| {
            latencies.sort_by(f64::total_cmp);
            let rank = (0.99 * latencies.len() as f64).ceil() as usize;
            let p99 = latencies.get(rank.max(1) - 1).copied().unwrap_or_default();
            (variant, (count, right, p99))
        });
        summed.collect()
    }

    fn acts(&self) -> [(&'static str, f64, f64); 3] {
        [
            ("calm", 0.0, self.squeeze_from),
            ("squeeze", self.squeeze_from, self.squeeze_to),
            ("after", self.squeeze_to, f64::INFINITY),
        ]
    }
}

/// The closing table for the terminal.
pub fn table(story: &Story) -> String {
    let mut text =
        String::from("\nact       variant   requests   p99 (client)   accuracy on labels\n");
    for (act, from, to) in story.acts() {
        for (variant, (count, right, p99)) in story.by_variant(from, to) {
            let accuracy = 100.0 * right as f64 / count.max(1) as f64;
            // Writing to a string cannot fail.
            let _ =
                writeln!(text, "{act:9} {variant:8} {count:>9} {p99:>11.2} ms {accuracy:>14.1} %");
        }
    }
    let seconds = |found: Option<f64>| found.map_or("never".to_owned(), |s| format!("{s:.1} s"));
    let _ = writeln!(text, "budget p99 {:.2} ms", story.budget_ms);
    let _ = writeln!(text, "met again {} after the squeeze broke it", seconds(story.reaction()));
    let _ = writeln!(text, "dense again {} after it", seconds(story.returned()));
    let _ = writeln!(text, "requests sent {}, failed {}", story.samples.len(), story.failed());
    text
}

/// A page that needs nothing but itself.
pub fn html(story: &Story) -> String {
    let body = table(story).replace('&', "&amp;").replace('<', "&lt;");
    format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>blochd demo</title><style>\
         :root{{color-scheme:light dark;--fg:#1b1f24;--bg:#fff;--soft:#8b949e;--band:#f6d7a8;\
         --line:#c0392b}}@media(prefers-color-scheme:dark){{:root{{--fg:#e6edf3;--bg:#0d1117;\
         --band:#4d3a17;--line:#ff7b72}}}}body{{font:15px/1.5 system-ui,sans-serif;color:var(--fg);\
         background:var(--bg);max-width:980px;margin:2rem auto;padding:0 1rem}}svg{{width:100%;\
         height:auto}}text{{fill:var(--fg);font-size:12px}}pre{{overflow-x:auto}}\
         </style><h1>blochd demo</h1><p>Every dot is one request: when it was sent and how long \
         its answer took, coloured by the variant that answered. The red line is the budget \
         (p99), the shaded stretch the squeeze.</p>{}<pre>{body}</pre><h2>The ladder</h2>\
         <pre>{}</pre></html>",
        plot(story),
        ladder(&story.ladder)
    )
}

fn ladder(model: &Value) -> String {
    let mut text = String::from("variant    ratio   promised p99   agreement with dense\n");
    for rung in model["ladder"].as_array().into_iter().flatten() {
        let number = |name: &str| rung[name].as_f64().unwrap_or_default();
        let _ = writeln!(
            text,
            "{:8} {:>7.3} {:>11.2} ms {:>14.1} %",
            rung["name"].as_str().unwrap_or_default().replace('<', "&lt;"),
            number("ratio"),
            number("promised_p99_ms"),
            100.0 * number("quality")
        );
    }
    text
}

const COLOURS: [&str; 6] = ["#2f81f7", "#3fb950", "#d29922", "#db61a2", "#a371f7", "#f0883e"];

fn plot(story: &Story) -> String {
    let (width, height, left, bottom) = (960.0, 380.0, 50.0, 34.0);
    let shown: Vec<&Request> = story.samples.iter().filter(|s| s.at >= 0.0).collect();
    let end = shown.iter().map(|s| s.at).fold(1.0, f64::max);
    let mut sorted: Vec<f64> = shown.iter().map(|s| s.latency * 1e3).collect();
    sorted.sort_by(f64::total_cmp);
    let high = sorted.get(sorted.len() * 995 / 1000).copied().unwrap_or(1.0);
    let top = high.max(story.budget_ms) * 1.2;
    let x = |at: f64| left + at / end * (width - left - 10.0);
    let y = |ms: f64| (height - bottom) * (1.0 - (ms / top).min(1.0)) + 8.0;
    let variants: BTreeMap<&str, usize> = {
        let mut names: Vec<&str> = shown.iter().map(|s| s.variant.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        names.into_iter().enumerate().map(|(index, name)| (name, index)).collect()
    };
    let mut svg = format!("<svg viewBox=\"0 0 {width} {height}\" role=\"img\">");
    let (from, to) = (x(story.squeeze_from), x(story.squeeze_to.min(end)));
    let _ = write!(
        svg,
        "<rect x=\"{from:.1}\" y=\"8\" width=\"{:.1}\" height=\"{:.1}\" fill=\"var(--band)\"/>",
        to - from,
        height - bottom
    );
    for step in 0..=5 {
        let value = top * f64::from(step) / 5.0;
        let _ = write!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{value:.0} ms</text>",
            left - 6.0,
            y(value) + 4.0
        );
    }
    for second in (0..=end as u32).step_by(10) {
        let at = x(f64::from(second));
        let _ = write!(svg, "<text x=\"{at:.1}\" y=\"{:.1}\">{second} s</text>", height - 6.0);
    }
    for sample in &shown {
        let index = variants.get(sample.variant.as_str()).copied().unwrap_or(0);
        let colour = COLOURS[index % COLOURS.len()];
        let _ = write!(
            svg,
            "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"2.2\" fill=\"{colour}\"/>",
            x(sample.at),
            y(sample.latency * 1e3)
        );
    }
    let budget = y(story.budget_ms);
    let _ = write!(
        svg,
        "<line x1=\"{left}\" x2=\"{:.1}\" y1=\"{budget:.1}\" y2=\"{budget:.1}\" \
         stroke=\"var(--line)\" stroke-width=\"1.5\"/>",
        width - 10.0
    );
    for (name, index) in &variants {
        let at = left + 10.0 + 110.0 * *index as f64;
        let colour = COLOURS[index % COLOURS.len()];
        let _ = write!(
            svg,
            "<circle cx=\"{at:.1}\" cy=\"20\" r=\"5\" fill=\"{colour}\"/><text x=\"{:.1}\" \
             y=\"24\">{}</text>",
            at + 10.0,
            name.replace('<', "&lt;")
        );
    }
    svg.push_str("</svg>");
    svg
}
