//! The time line of a demo as a picture (SVG): a dot a request, the budget, the squeeze, the swaps.

use std::fmt::Write;

use super::story::{Story, WINDOW};

const WIDTH: f64 = 1000.0;
const HEIGHT: f64 = 460.0;
/// The plot's own area.
const LEFT: f64 = 58.0;
const RIGHT: f64 = 986.0;
const TOP: f64 = 64.0;
const BOTTOM: f64 = 410.0;

/// The classes and colours of a picture that stands alone; a page brings its own.
const STYLE: &str = include_str!("plot.css");

struct Scale {
    end: f64,
    low: f64,
    high: f64,
}

impl Scale {
    fn of(story: &Story) -> Self {
        let shown = || story.samples.iter().filter(|sample| sample.at >= 0.0);
        let end = shown().map(|sample| sample.at).fold(1.0, f64::max);
        let ms = |fold: fn(f64, f64) -> f64| {
            shown().map(|sample| sample.latency * 1e3).fold(story.budget_ms, fold)
        };
        Self { end, low: ms(f64::min).max(1e-3) * 0.8, high: ms(f64::max) * 1.25 }
    }

    fn x(&self, at: f64) -> f64 {
        LEFT + at.clamp(0.0, self.end) / self.end * (RIGHT - LEFT)
    }

    /// Latencies span two orders of magnitude: a logarithmic axis shows all of them.
    fn y(&self, ms: f64) -> f64 {
        let share = (ms.max(self.low) / self.low).ln() / (self.high / self.low).ln();
        BOTTOM - share * (BOTTOM - TOP)
    }

    /// 1, 2, 5, 10, … within the axis.
    fn ticks(&self) -> impl Iterator<Item = f64> {
        let from = self.low.log10().floor() as i32;
        let all = (from..from + 8)
            .flat_map(|power| [1.0, 2.0, 5.0].map(|digit| digit * 10f64.powi(power)));
        all.filter(|ms| (self.low..=self.high).contains(ms))
    }
}

/// Writing to a string cannot fail.
macro_rules! put {
    ($into:expr, $($what:tt)*) => { let _ = write!($into, $($what)*); };
}

/// The picture for a page that defines the colours.
pub fn embedded(story: &Story) -> String {
    svg(story, "")
}

/// The picture as a file of its own, on a light ground.
pub fn alone(story: &Story) -> String {
    let style = format!(
        "<style>{}</style><rect class=\"ground\" width=\"100%\" height=\"100%\" rx=\"10\"/>",
        STYLE.trim()
    );
    svg(story, &style)
}

fn svg(story: &Story, first: &str) -> String {
    let scale = Scale::of(story);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" \
         aria-label=\"Latency of every request over time, by variant\">{first}\n"
    );
    squeeze(&mut svg, story, &scale);
    axes(&mut svg, &scale);
    dots(&mut svg, story, &scale);
    p99(&mut svg, story, &scale);
    budget(&mut svg, story, &scale);
    switches(&mut svg, story, &scale);
    legend(&mut svg, story);
    svg.push_str("</svg>\n");
    svg
}

/// Each competing process darkens the ground a little.
fn squeeze(svg: &mut String, story: &Story, scale: &Scale) {
    let to = scale.x(story.relieved);
    let most = story.squeezed.len();
    for at in &story.squeezed {
        let from = scale.x(*at);
        put!(
            svg,
            "<rect class=\"squeeze\" x=\"{from:.1}\" y=\"{TOP}\" width=\"{:.1}\" height=\"{}\" \
             fill-opacity=\"{:.3}\"/>\n",
            to - from,
            BOTTOM - TOP,
            0.5 / most as f64
        );
    }
    let middle = (scale.x(story.squeeze_from()) + to) / 2.0;
    put!(
        svg,
        "<text class=\"soft\" x=\"{middle:.1}\" y=\"{:.1}\" text-anchor=\"middle\">squeeze: {most} \
         competing process{}, one after the other</text>\n",
        BOTTOM - 8.0,
        if most == 1 { "" } else { "es" }
    );
}

fn axes(svg: &mut String, scale: &Scale) {
    for ms in scale.ticks() {
        let y = scale.y(ms);
        put!(
            svg,
            "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{RIGHT}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/><text \
             class=\"soft\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{ms}</text>\n",
            LEFT - 8.0,
            y + 4.0
        );
    }
    for second in (0..=scale.end as u32).step_by(10) {
        let x = scale.x(f64::from(second));
        put!(
            svg,
            "<line class=\"axis\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{BOTTOM}\" y2=\"{:.1}\"/><text \
             class=\"soft\" x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{second}</text>\n",
            BOTTOM + 5.0,
            BOTTOM + 20.0
        );
    }
    put!(
        svg,
        "<line class=\"axis\" x1=\"{LEFT}\" x2=\"{RIGHT}\" y1=\"{BOTTOM}\" y2=\"{BOTTOM}\"/>\n\
         <text class=\"soft\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">\
         time in seconds</text>\n\
         <text class=\"soft\" transform=\"translate(16 {:.1}) rotate(-90)\" \
         text-anchor=\"middle\">latency of a request in ms (logarithmic)</text>\n",
        (LEFT + RIGHT) / 2.0,
        BOTTOM + 40.0,
        (TOP + BOTTOM) / 2.0
    );
}

/// One path a variant: a line of no length with round ends is a dot, in a third of a circle's bytes.
fn dots(svg: &mut String, story: &Story, scale: &Scale) {
    for (number, variant) in story.variants().iter().enumerate() {
        put!(svg, "<path class=\"dots v{number}\" d=\"");
        for sample in story.samples.iter().filter(|sample| sample.at >= 0.0) {
            if sample.right.is_some() && sample.variant == *variant {
                put!(svg, "M{:.1} {:.1}h0", scale.x(sample.at), scale.y(sample.latency * 1e3));
            }
        }
        svg.push_str("\"/>\n");
    }
    for sample in story.samples.iter().filter(|s| s.at >= 0.0 && s.right.is_none()) {
        let (x, y) = (scale.x(sample.at), scale.y(sample.latency * 1e3));
        put!(svg, "<path class=\"failed\" d=\"M{:.1} {:.1}l8 8m0-8l-8 8\"/>\n", x - 4.0, y - 4.0);
    }
}

fn p99(svg: &mut String, story: &Story, scale: &Scale) {
    let points = story.p99_line().into_iter();
    let points = points.map(|(at, ms)| format!("{:.1} {:.1}", scale.x(at), scale.y(ms)));
    put!(svg, "<polyline class=\"p99\" points=\"{}\"/>\n", points.collect::<Vec<_>>().join(" "));
}

fn budget(svg: &mut String, story: &Story, scale: &Scale) {
    let y = scale.y(story.budget_ms);
    put!(
        svg,
        "<line class=\"budget\" x1=\"{LEFT}\" x2=\"{RIGHT}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/><text \
         class=\"limit\" x=\"{:.1}\" y=\"{:.1}\">budget: p99 ≤ {:.1} ms</text>\n",
        LEFT + 6.0,
        y - 6.0,
        story.budget_ms
    );
}

fn switches(svg: &mut String, story: &Story, scale: &Scale) {
    let mut free = [0.0f64; 3];
    for (at, _, to) in story.switches() {
        let x = scale.x(at);
        // Labels that would meet stand below one another.
        let row = free.iter().position(|end| *end <= x).unwrap_or(0);
        free[row] = x + 8.0 * (to.len() as f64 + 2.0);
        let y = TOP + 14.0 + 15.0 * row as f64;
        put!(
            svg,
            "<line class=\"switch\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{TOP}\" \
             y2=\"{BOTTOM}\"/><text class=\"label\" x=\"{:.1}\" y=\"{y:.1}\">→ {}</text>\n",
            x + 4.0,
            escaped(to)
        );
    }
}

fn legend(svg: &mut String, story: &Story) {
    let mut x = LEFT;
    put!(svg, "<text class=\"title\" x=\"{LEFT}\" y=\"24\">Every dot is one request</text>\n");
    for (number, variant) in story.variants().iter().enumerate() {
        put!(
            svg,
            "<path class=\"key v{number}\" d=\"M{:.1} 44h0\"/><text x=\"{:.1}\" y=\"48\">answered \
             by {}</text>\n",
            x + 6.0,
            x + 17.0,
            escaped(variant)
        );
        x += 17.0 + 7.0 * (variant.chars().count() as f64 + 12.0) + 16.0;
    }
    put!(
        svg,
        "<path class=\"p99\" d=\"M{x:.1} 44h22\"/><text x=\"{:.1}\" y=\"48\">\
         p99 of the last {WINDOW} s</text>\n",
        x + 29.0
    );
}

/// Text as it may stand in a page.
pub fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
