//! The time line of a simulation as a picture (SVG), one above the other for several models: the latency of
//! each window and the budget, the box's slowdown below, and the variant in service as a band between the two.

use std::fmt::Write;

use blochd::governor::simulate::WindowReport;

use super::super::demo::plot::escaped;
use super::told::{Outcome, Scene};

const WIDTH: f64 = 1000.0;
const LEFT: f64 = 58.0;
const RIGHT: f64 = 986.0;
/// One model's height, and its parts from its top on.
const HEIGHT: f64 = 420.0;
const TOP: f64 = 56.0;
const BOTTOM: f64 = 256.0;
const BAND: (f64, f64) = (264.0, 280.0);
const SLOW: (f64, f64) = (292.0, 366.0);

const PLOT_STYLE: &str = include_str!("../demo/plot.css");
const PAGE_STYLE: &str = include_str!("../demo/page.css");
/// What the demo's picture does not have.
const OWN_STYLE: &str = ".slow { fill: none; stroke: var(--warm); stroke-width: 1.4; } .band { \
                         stroke-width: 16; fill: none; }";

/// Colours that there are for variants.
const COLOURS: usize = 5;

/// Writing to a string cannot fail.
macro_rules! put {
    ($into:expr, $($what:tt)*) => { let _ = write!($into, $($what)*); };
}

/// A picture for a page of its own.
pub fn page(scene: &Scene) -> String {
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>blochd \
         simulate</title>\n<style>{PLOT_STYLE}{PAGE_STYLE}{OWN_STYLE}</style></head>\n<body><main>\
         <h1>{}</h1>\n<div class=\"card\">{}</div></main></body></html>\n",
        escaped(&scene.trace),
        svg(scene, "")
    )
}

/// A picture that stands alone, on a light ground.
pub fn alone(scene: &Scene) -> String {
    let style = format!(
        "<style>{PLOT_STYLE}{OWN_STYLE}</style><rect class=\"ground\" width=\"100%\" \
         height=\"100%\" rx=\"10\"/>"
    );
    svg(scene, &style)
}

fn svg(scene: &Scene, first: &str) -> String {
    let height = HEIGHT * scene.outcomes.len().max(1) as f64;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" \
         aria-label=\"Latency over time, by model\">{first}\n"
    );
    for (number, outcome) in scene.outcomes.iter().enumerate() {
        put!(svg, "<g transform=\"translate(0 {})\">\n", HEIGHT * number as f64);
        Panel::new(scene, outcome).draw(&mut svg);
        svg.push_str("</g>\n");
    }
    svg.push_str("</svg>\n");
    svg
}

/// One model's picture and its axes.
struct Panel<'a> {
    scene: &'a Scene<'a>,
    outcome: &'a Outcome<'a>,
    end: f64,
    low: f64,
    high: f64,
    slowest: f64,
}

impl<'a> Panel<'a> {
    fn new(scene: &'a Scene<'a>, outcome: &'a Outcome<'a>) -> Self {
        let windows = &outcome.judged.windows;
        let budget = outcome.view.budget.map_or(1.0, |budget| budget.as_secs_f64() * 1e3);
        let took = || windows.iter().filter_map(|window| window.latency_ms);
        let slowdowns = windows.iter().map(|window| window.slowdown);
        Self {
            scene,
            outcome,
            end: scene.length.as_secs_f64().max(1.0),
            low: took().fold(budget, f64::min).max(1e-3) * 0.8,
            high: took().fold(budget, f64::max) * 1.25,
            slowest: slowdowns.fold(1.5, f64::max) * 1.1,
        }
    }

    fn x(&self, at: f64) -> f64 {
        LEFT + at.clamp(0.0, self.end) / self.end * (RIGHT - LEFT)
    }

    fn y(&self, ms: f64) -> f64 {
        let share = (ms.max(self.low) / self.low).ln() / (self.high / self.low).ln();
        BOTTOM - share * (BOTTOM - TOP)
    }

    fn y_slow(&self, slowdown: f64) -> f64 {
        SLOW.1 - slowdown.min(self.slowest) / self.slowest * (SLOW.1 - SLOW.0)
    }

    fn draw(&self, svg: &mut String) {
        self.axes(svg);
        self.band(svg);
        let line = |y: &dyn Fn(&WindowReport) -> Option<f64>| {
            let points = self.outcome.judged.windows.iter().filter_map(|window| {
                Some(format!("{:.1} {:.1}", self.x(window.from_s), y(window)?))
            });
            points.collect::<Vec<_>>().join(" ")
        };
        let latency = line(&|window| window.latency_ms.map(|took| self.y(took)));
        let slowdown = line(&|window| Some(self.y_slow(window.slowdown)));
        put!(svg, "<polyline class=\"p99\" points=\"{latency}\"/>\n");
        put!(svg, "<polyline class=\"slow\" points=\"{slowdown}\"/>\n");
        self.budget(svg);
        self.legend(svg);
    }

    fn axes(&self, svg: &mut String) {
        let from = self.low.log10().floor() as i32;
        let ticks = (from..from + 8)
            .flat_map(|power| [1.0, 2.0, 5.0].map(|digit| digit * 10f64.powi(power)));
        for ms in ticks.filter(|ms| (self.low..=self.high).contains(ms)) {
            let y = self.y(ms);
            put!(
                svg,
                "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{RIGHT}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>\
                 <text class=\"soft\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{ms}</text>\n",
                LEFT - 8.0,
                y + 4.0
            );
        }
        let steps = [1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0, 600.0, 3600.0, 21_600.0, 86_400.0];
        let step = steps.into_iter().find(|step| self.end / step <= 15.0).unwrap_or(604_800.0);
        for number in 0..=(self.end / step) as u32 {
            let at = f64::from(number) * step;
            put!(
                svg,
                "<text class=\"soft\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{at}</text>\n",
                self.x(at),
                SLOW.1 + 18.0
            );
        }
        put!(
            svg,
            "<line class=\"axis\" x1=\"{LEFT}\" x2=\"{RIGHT}\" y1=\"{0}\" y2=\"{0}\"/>\n<line \
             class=\"grid\" x1=\"{LEFT}\" x2=\"{RIGHT}\" y1=\"{1:.1}\" y2=\"{1:.1}\"/><text \
             class=\"soft\" x=\"{2:.1}\" y=\"{3:.1}\" text-anchor=\"end\">×1</text>\n<text \
             class=\"soft\" x=\"{4:.1}\" y=\"{5:.1}\" text-anchor=\"middle\">time in seconds; the \
             box's slowdown above it</text>\n",
            SLOW.1,
            self.y_slow(1.0),
            LEFT - 8.0,
            self.y_slow(1.0) + 4.0,
            (LEFT + RIGHT) / 2.0,
            SLOW.1 + 36.0
        );
    }

    fn band(&self, svg: &mut String) {
        let middle = (BAND.0 + BAND.1) / 2.0;
        for stretch in self.outcome.stretches(self.scene.length) {
            put!(
                svg,
                "<path class=\"band v{}\" d=\"M{:.1} {middle}H{:.1}\"/>\n",
                stretch.variant % COLOURS,
                self.x(stretch.from_s),
                self.x(stretch.to_s)
            );
            let Some(because) = &stretch.because else { continue };
            put!(
                svg,
                "<line class=\"switch\" x1=\"{0:.1}\" x2=\"{0:.1}\" y1=\"{TOP}\" y2=\"{1}\"><title>\
                 {2:.2} s: {3}, {4}</title></line>\n",
                self.x(stretch.from_s),
                BAND.1,
                stretch.from_s,
                escaped(self.outcome.variant(stretch.variant)),
                escaped(because)
            );
        }
    }

    fn budget(&self, svg: &mut String) {
        let Some(budget) = self.outcome.view.budget else { return };
        let ms = budget.as_secs_f64() * 1e3;
        let y = self.y(ms);
        put!(
            svg,
            "<line class=\"budget\" x1=\"{LEFT}\" x2=\"{RIGHT}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>\
             <text class=\"limit\" x=\"{:.1}\" y=\"{:.1}\">budget: {} ≤ {ms:.1} ms</text>\n",
            LEFT + 6.0,
            y - 6.0,
            self.outcome.percentile
        );
    }

    fn legend(&self, svg: &mut String) {
        put!(
            svg,
            "<text class=\"title\" x=\"{LEFT}\" y=\"22\">{}: {} of each window in ms \
             (logarithmic), the variant in service, the box's slowdown</text>\n",
            escaped(self.outcome.name),
            self.outcome.percentile
        );
        let mut x = LEFT;
        for (number, variant) in self.outcome.view.variants.iter().enumerate() {
            put!(
                svg,
                "<path class=\"key v{}\" d=\"M{:.1} 40h0\"/><text x=\"{:.1}\" y=\"44\">{}</text>\n",
                number % COLOURS,
                x + 6.0,
                x + 17.0,
                escaped(&variant.name)
            );
            x += 17.0 + 8.0 * variant.name.chars().count() as f64 + 16.0;
        }
    }
}
