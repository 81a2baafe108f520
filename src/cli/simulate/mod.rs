//! `blochd simulate`: what the governor would do on a box that was recorded.

mod plot;
mod subjects;
mod told;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, anyhow};
use blochd::config::Flag;
use blochd::governor::simulate::{Driver, Noise, Site, Spread, judge, run};
use blochd::limits;
use blochd::shell::files;
use clap::{Args, ValueEnum};

use super::configured::flag;
use super::{Code, Failure, OrFail};
use told::{Outcome, Scene};

/// Run the governor over a recorded or made-up trace and a ladder, without a model or a runtime.
///
/// The governor is the agent's own. Told are the windows that held the budget, of those where any variant
/// could have, each switch with its reason, and the average quality beside that of a controller that knows
/// what will come. Exit code 1 where fewer windows held it than --require asks for, 65 when the trace or a
/// manifest is not usable, 74 where a file cannot be read or written, 78 when a setting is wrong.
#[derive(Debug, Args)]
pub struct Simulate {
    /// The trace: a table of comma-separated values, or a directory that the agent recorded (its setting
    /// `trace`). The columns t_s, arrivals and slowdown must be there, a line a stretch of time; model tells
    /// several models apart.
    #[arg(long)]
    trace: PathBuf,
    /// A ladder: its manifest.json, or the folder of it. MODEL=PATH where the trace is of several models.
    #[arg(long, required = true, value_name = "[MODEL=]PATH")]
    ladder: Vec<String>,
    /// A policy.yaml; MODEL=PATH as above. Flags come over it.
    #[arg(long, value_name = "[MODEL=]PATH")]
    policy: Vec<String>,
    /// An agent's configuration: what it says of the models.
    #[arg(long)]
    config: Option<PathBuf>,
    /// The budget, such as 40ms or "p95: 40ms".
    #[arg(long)]
    budget: Option<String>,
    /// The percentile that it bounds: p50, p90, p95, p99, p99.9 or max.
    #[arg(long, requires = "budget")]
    percentile: Option<String>,
    /// Least quality of a variant that may serve, 0 to 1.
    #[arg(long)]
    floor: Option<String>,
    /// Least time between two switches, such as 5s.
    #[arg(long)]
    dwell: Option<String>,
    /// Requests that run at the same time.
    #[arg(long)]
    instances: Option<String>,
    /// Any other setting of a model, such as governor.headroom=1.3.
    #[arg(long = "set", value_name = "SETTING=VALUE")]
    sets: Vec<String>,
    /// Cores that the models share: what runs at the same time slows each other down. Without, the trace's
    /// slowdown is all.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    cores: Option<u16>,
    /// How requests lie in their stretch of the trace.
    #[arg(long, value_enum, default_value_t = SpreadArg::Even)]
    arrivals: SpreadArg,
    /// By how much the 99th percentile of a variant's runs exceeds their median: 0.1 is a tenth [default: what
    /// the manifest says].
    #[arg(long, value_parser = noise)]
    noise: Option<f64>,
    /// What chance decides.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Print JSON instead of the table.
    #[arg(long)]
    json: bool,
    /// Write a picture to this file: a page where its name ends with .html, else SVG.
    #[arg(long)]
    plot: Option<PathBuf>,
    /// Fail where a smaller share of the windows, in per cent, held its budget.
    #[arg(long, value_parser = percent)]
    require: Option<f64>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum SpreadArg {
    /// At even distances, as a camera sends.
    Even,
    /// By chance, as many clients do.
    Chance,
}

fn number(text: &str, least: f64, most: f64) -> Result<f64, String> {
    let value = text.parse::<f64>().ok().filter(|value| (least..=most).contains(value));
    value.ok_or_else(|| format!("write a number from {least} to {most}"))
}

fn noise(text: &str) -> Result<f64, String> {
    number(text, 0.0, 10.0)
}

fn percent(text: &str) -> Result<f64, String> {
    number(text, 0.0, 100.0)
}

impl Simulate {
    pub fn run(self) -> Result<(), Failure> {
        let trace = subjects::trace(&self.trace)?;
        let setup = subjects::Setup {
            trace: &trace,
            ladders: subjects::Named::all(&self.ladder),
            policies: subjects::Named::all(&self.policy),
            config: self.config.as_deref(),
            flags: self.flags()?,
            spread: match self.arrivals {
                SpreadArg::Even => Spread::Even,
                SpreadArg::Chance => Spread::Chance,
            },
            noise: self.noise.map(|share| Noise::Tail(1.0 + share)),
            seed: self.seed,
        };
        let models = setup.models()?;
        let subjects: Vec<_> = models.iter().map(|model| model.subject(&setup)).collect();
        let length = Duration::try_from_secs_f64(trace.length()).unwrap_or_default();
        let site = Site { cores: self.cores.map(usize::from), tick: limits::TICK, length };
        let lanes = run(&subjects, &site, Driver::Governor);
        let judged = judge(&subjects, &site, &lanes);
        let scene = Scene {
            trace: self.trace.display().to_string(),
            length,
            outcomes: (models.iter().zip(&subjects).zip(lanes).zip(judged))
                .map(|(((model, subject), lane), judged)| Outcome {
                    name: &model.name,
                    view: &subject.view,
                    percentile: subject.percentile,
                    lane,
                    judged,
                })
                .collect(),
        };
        if self.json {
            let text = serde_json::to_string_pretty(&scene.json()).code(Code::Software)?;
            println!("{text}");
        } else {
            print!("{}", scene.table());
        }
        self.draw(&scene)?;
        self.judge(&scene)
    }

    /// What the flags say of every model, as settings of its own.
    fn flags(&self) -> Result<Vec<Flag>, Failure> {
        let budget = self.budget.as_deref().map(|budget| match &self.percentile {
            Some(percentile) => format!("{percentile}: {budget}"),
            None => budget.to_owned(),
        });
        let own = [
            ("--budget", "budget", budget.as_deref()),
            ("--floor", "quality_floor", self.floor.as_deref()),
            ("--dwell", "governor.dwell", self.dwell.as_deref()),
            ("--instances", "instances", self.instances.as_deref()),
        ];
        let mut flags: Vec<Flag> =
            own.into_iter().filter_map(|(name, path, text)| flag(name, path, text)).collect();
        for setting in &self.sets {
            let (path, text) = setting
                .split_once('=')
                .ok_or_else(|| anyhow!("--set {setting}: write a setting as path=value"))
                .code(Code::Config)?;
            flags.extend(flag(&format!("--set {path}"), path, Some(text)));
        }
        Ok(flags)
    }

    fn draw(&self, scene: &Scene) -> Result<(), Failure> {
        let Some(path) = &self.plot else { return Ok(()) };
        let page = path.extension().is_some_and(|extension| extension == "html");
        let text = if page { plot::page(scene) } else { plot::alone(scene) };
        files::replace(path, &[text.into()])
            .with_context(|| format!("cannot write {}", path.display()))
            .code(Code::Io)
    }

    fn judge(&self, scene: &Scene) -> Result<(), Failure> {
        let Some(required) = self.require else { return Ok(()) };
        let share = |outcome: &Outcome| 100.0 * outcome.judged.summary.share();
        let short = scene.outcomes.iter().find(|outcome| share(outcome) < required);
        let Some(outcome) = short else { return Ok(()) };
        let (name, share) = (outcome.name, share(outcome));
        let error =
            anyhow!("{name} held its budget in {share:.2} % of its windows, not {required} %");
        Err(Failure { code: Code::Unmet, error })
    }
}
