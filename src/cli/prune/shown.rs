//! What a person or a program sees of a ladder in the making, and of a finished one.

use std::io::{IsTerminal, Write};

use blochd::ladder::Manifest;
use blochd::ladder::manifest::{self, CalibrationSource};
use blochd::ladder::task::Event;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use super::ProgressArg;

/// How many of the outputs that may not be cut the table names.
const FROZEN_SHOWN: usize = 8;

/// Shows what happens while a ladder is made.
pub struct Shown {
    bar: Option<ProgressBar>,
    json: bool,
}

impl Shown {
    pub fn new(progress: ProgressArg, quiet: bool) -> Self {
        let bar = (progress == ProgressArg::Auto && !quiet && std::io::stderr().is_terminal())
            .then(|| {
                let style = ProgressStyle::with_template("{msg:24} {bar:32} {pos}/{len} {elapsed}");
                let bar = ProgressBar::new(1);
                bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
                bar
            });
        Self { bar, json: progress == ProgressArg::Json }
    }

    /// What was taken over from earlier builds.
    pub fn reused(&self, rungs: usize, latencies: usize) {
        if self.json {
            println!("{}", json!({"event": "reused", "rungs": rungs, "latencies": latencies}));
        }
    }

    pub fn event(&mut self, event: &Event) {
        if self.json {
            let line = match event {
                Event::Progress { stage, done, total } => {
                    json!({"event": "progress", "stage": stage, "done": done, "total": total})
                }
                Event::Rung(rung) => json!({
                    "event": "rung", "name": rung.name, "asked": rung.asked, "file": rung.file,
                    "ratio": rung.figures.ratio, "quality": rung.figures.quality,
                }),
                Event::NotBuilt(missed) => json!({
                    "event": "not_built", "asked": missed.asked, "because": missed.because,
                    "reachable": missed.reachable,
                }),
            };
            println!("{line}");
            // The reader on the other side of the pipe wants to know now. A closed pipe is its business.
            let _ = std::io::stdout().flush();
        }
        if let (Some(bar), Event::Progress { stage, done, total }) = (&self.bar, event) {
            bar.set_message((*stage).to_owned());
            bar.set_length(*total as u64);
            bar.set_position(*done as u64);
        }
    }

    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

pub fn print_table(manifest: &Manifest) {
    let percent = |value: f64| format!("{:.1} %", 100.0 * value);
    println!(
        "{:<8} {:>6} {:>10} {:>10} {:>8} {:>8} {:>9} {:>9}  cut",
        "rung", "ratio", "p50", "p99", "MACs", "params", "agreement", "accuracy"
    );
    let row = |name: &str, figures: &manifest::Figures, cut: String| {
        let share = |part: u64, whole: u64| format!("{:.2}", part as f64 / whole.max(1) as f64);
        println!(
            "{:<8} {:>6.3} {:>7.0} us {:>7.0} us {:>8} {:>8} {:>9} {:>9}  {cut}",
            name,
            figures.ratio,
            figures.p50_us,
            figures.p99_us,
            share(figures.macs, manifest.dense.macs),
            share(figures.params, manifest.dense.params),
            percent(figures.quality),
            figures.accuracy.map(percent).unwrap_or_else(|| "-".to_owned()),
        );
    };
    row("dense", &manifest.dense, String::new());
    for rung in &manifest.rungs {
        let removed: usize = rung.cuts.iter().map(|cut| cut.width - cut.kept).sum();
        let mut cut = format!(
            "{removed} channels of {} groups, {} blocks",
            rung.cuts.len(),
            rung.bypassed.len()
        );
        if !rung.in_two.is_empty() {
            cut.push_str(&format!(", {} operators of low rank", rung.in_two.len()));
        }
        if !rung.substituted.is_empty() {
            cut.push_str(&format!(", {} layers share weights", rung.substituted.len()));
        }
        row(&rung.name, &rung.figures, cut);
    }
    for missed in &manifest.not_built {
        let reachable = missed
            .reachable
            .map(|ratio| format!("; {ratio:.3} can be reached"))
            .unwrap_or_default();
        println!("r{:<7} not built: {}{reachable}", missed.asked, missed.because);
    }
    if manifest.calibration.source == CalibrationSource::Synthetic {
        println!(
            "No samples were given: these rungs are fitted on made-up noise. Give --calibration \
             for rungs that hold on real data."
        );
    }
    for frozen in manifest.frozen.iter().take(FROZEN_SHOWN) {
        println!("may not be cut: {} ({} channels): {}", frozen.what, frozen.width, frozen.because);
    }
    if manifest.frozen.len() > FROZEN_SHOWN {
        println!("… and {} more; the manifest names them.", manifest.frozen.len() - FROZEN_SHOWN);
    }
}
