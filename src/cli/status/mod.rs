//! `blochd status`: what the agent on this box does now.

mod access;
mod devices;
mod fleet;
mod live;
mod provider;
mod terminal;

use std::fmt::Write as _;
use std::io::{IsTerminal, Write as _};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use blochd::units::Span;
use clap::Args;
use serde_json::Value;

use super::asking::{Asking, Client};
use super::{Code, Failure, OrFail};
use terminal::Waited;

/// Show the models that an agent serves, their budgets, ladders, and the box.
///
/// The agent is asked where the configuration and the environment, read as `blochd run` reads them, say that
/// it serves. Exit code 69 where no agent answers.
#[derive(Debug, Args)]
pub struct Status {
    #[command(flatten)]
    asking: Asking,
    /// Show on the terminal what it does at the moment, until `q` or Ctrl-C. With --json: the agent's answer on
    /// one line, again and again.
    #[arg(long, short)]
    watch: bool,
    /// Print the agent's answer as it is.
    #[arg(long)]
    json: bool,
    /// How often it is asked with --watch: a time from 100ms to 1h.
    #[arg(long, default_value = "1s", value_parser = interval, requires = "watch")]
    interval: Duration,
}

/// The shortest and the longest time between two questions.
const INTERVALS: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(3600));
/// Largest answer that is taken: a thousand models with their ladders.
const ANSWER_BYTES: u64 = 16 << 20;

impl Status {
    pub fn run(self) -> Result<(), Failure> {
        let client = self.asking.client().code(Code::Usage)?;
        if !self.watch {
            let shown = ask(&client).map(|status| self.show(&status));
            return shown.and_then(|text| print(&text)).code(Code::Unavailable);
        }
        if self.json {
            return self.lines(&client).code(Code::Unavailable);
        }
        if !std::io::stdout().is_terminal() {
            let error =
                anyhow!("--watch draws on a terminal; --watch --json writes lines for programs");
            return Err(Failure { code: Code::Usage, error });
        }
        self.draw(&client).code(Code::Software)
    }

    /// The agent's answers, each on a line. One that restarts is waited for.
    fn lines(&self, client: &Client) -> anyhow::Result<()> {
        loop {
            match ask(client) {
                Ok(status) => print(&format!("{status}\n"))?,
                Err(error) => eprintln!("blochd: {error:#}"),
            }
            std::thread::sleep(self.interval);
        }
    }

    /// Draws until somebody leaves. An agent that restarts is waited for.
    fn draw(&self, client: &Client) -> anyhow::Result<()> {
        let begun = Instant::now();
        let mut history = live::History::default();
        let mut terminal = terminal::Terminal::enter().context("cannot draw on this terminal")?;
        loop {
            let asked = Instant::now();
            let answer = ask(client);
            if let Ok(status) = &answer {
                history.take(status, begun.elapsed());
            }
            // A change of size asks for another frame, not for another answer.
            loop {
                let (width, height) = terminal.size();
                let lines = match &answer {
                    Ok(status) => live::frame(status, &history, width),
                    Err(error) => live::trouble(&format!("{error:#}"), width),
                };
                terminal.draw(live::fit(lines, height))?;
                match terminal.wait(self.interval.saturating_sub(asked.elapsed()))? {
                    Waited::Leave => return Ok(()),
                    Waited::Passed => break,
                    Waited::Resized => {}
                }
            }
        }
    }

    fn show(&self, status: &Value) -> String {
        if self.json { format!("{status:#}\n") } else { render(status) }
    }
}

fn interval(text: &str) -> Result<Duration, String> {
    let (least, most) = INTERVALS;
    let time = text.parse::<Span>().map(Duration::from).map_err(|error| error.to_string())?;
    if (least..=most).contains(&time) {
        Ok(time)
    } else {
        Err("write a time from 100ms to 1h".to_owned())
    }
}

fn ask(client: &Client) -> anyhow::Result<Value> {
    let at = &client.url;
    let failed = || format!("no agent answers at {at}; is `blochd run` running there?");
    let mut answer = match client.get("/v2/blochd/status") {
        Err(ureq::Error::StatusCode(code @ (401 | 403))) => return Err(not_let_in(at, code)),
        answer => answer.with_context(failed)?,
    };
    let body = answer.body_mut().with_config().limit(ANSWER_BYTES);
    let status: Value = body.read_json().with_context(failed)?;
    if status.get("models").is_none() {
        return Err(anyhow!("what answers at {at} is no blochd that has started"));
    }
    Ok(status)
}

fn not_let_in(at: &str, code: u16) -> anyhow::Error {
    let why = match code {
        401 => "does not know you: --token-file or --client-certificate say who you are",
        _ => "does not let you read its status: that takes the right `metrics`",
    };
    anyhow!("the agent at {at} {why}")
}

fn print(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}

/// The status for people.
fn render(status: &Value) -> String {
    let mut text = head(status);
    let models: Vec<&Value> = array(&status["models"]).collect();
    if models.is_empty() {
        text.push_str("\nNo model is served.\n");
    } else {
        text.push('\n');
        text.push_str(&table(&models));
    }
    for model in models {
        text.push_str(&provider::lines(model));
        text.push_str(&ladder(model));
    }
    for refused in array(&status["refused"]) {
        let (model, version) = (word(&refused["model"]), &refused["version"]);
        let _ = write!(text, "\n{model} version {version} is not served: ");
        text.push_str(&printable(&word(&refused["reason"])));
        text.push('\n');
    }
    text
}

fn head(status: &Value) -> String {
    let mut text = format!("{}\n", title(status));
    for line in refused_configuration(status) {
        let _ = writeln!(text, "{line}");
    }
    for line in [hardware(&status["hardware"]), sandbox(&status["sandbox"]), hanging(status)] {
        if !line.is_empty() {
            let _ = writeln!(text, "{line}");
        }
    }
    for line in access::lines(&status["access"]) {
        let _ = writeln!(text, "{}", line.text);
    }
    for line in devices::lines(&status["hardware"], &status["accelerators"]) {
        let _ = writeln!(text, "{}", line.text);
    }
    for line in fleet::lines(status) {
        let _ = writeln!(text, "{line}");
    }
    text
}

fn title(status: &Value) -> String {
    let ready = if status["ready"] == true { "ready" } else { "not ready" };
    let uptime = Duration::from_secs(status["uptime_s"].as_u64().unwrap_or(0));
    let config = &status["config"];
    let file = config["file"].as_str().map_or("no configuration file".to_owned(), printable);
    format!(
        "blochd {}  {ready}  up {}  {file}, revision {}",
        word(&status["blochd"]),
        span(uptime),
        word(&config["revision"]),
    )
}

fn refused_configuration(status: &Value) -> Vec<String> {
    let Some(error) = status["config"]["error"].as_str() else { return Vec::new() };
    let head = "The configuration file is refused, the last good one holds:".to_owned();
    let lines = error.lines().map(|line| format!("  {}", printable(line)));
    std::iter::once(head).chain(lines).collect()
}

/// Sessions that do not come back from accelerators; nothing where there are none.
fn hanging(status: &Value) -> String {
    match status["abandoned_sessions"].as_u64() {
        None | Some(0) => String::new(),
        Some(count) => format!("{count} of its sessions hang in a run on an accelerator"),
    }
}

/// What keeps children from what they do not need; nothing before the first has started.
fn sandbox(sandbox: &Value) -> String {
    if sandbox["wanted"] == "off" {
        return "Children are not confined: the configuration says so".to_owned();
    }
    let missing: Vec<String> = array(&sandbox["missing"]).map(word).collect();
    let without = |text: String| match missing.as_slice() {
        [] => text,
        missing => format!("{text} (without {})", missing.join("; without ")),
    };
    match sandbox["in_force"].as_str() {
        Some(in_force) => without(format!("Children are confined: {}", printable(in_force))),
        None if missing.is_empty() => String::new(),
        None => without("Children are not confined".to_owned()),
    }
}

pub fn hardware(host: &Value) -> String {
    let cpu = &host["cpu"];
    let mut parts = Vec::new();
    if let Some(model) = cpu["model"].as_str() {
        parts.push(printable(model));
    }
    if let Some(cores) = cpu["logical_cores"].as_u64() {
        parts.push(format!("{cores} cores"));
    }
    if let Some(cpus) = host["limits"]["cpus"].as_f64() {
        parts.push(format!("limited to {cpus:.1}"));
    }
    if let Some(load) = host["load"]["one"].as_f64() {
        parts.push(format!("load {load:.2}"));
    }
    let memory = &host["memory"];
    if let (Some(free), Some(all)) = (memory["available"].as_f64(), memory["total"].as_f64()) {
        let gib = f64::from(1 << 30);
        parts.push(format!("{:.1} of {:.1} GiB free", free / gib, all / gib));
    }
    let hottest = array(&host["thermal"]).filter_map(|zone| zone["celsius"].as_f64());
    if let Some(hottest) = hottest.reduce(f64::max) {
        parts.push(format!("{hottest:.0} °C"));
    }
    parts.join(", ")
}

/// Accelerators of a host, a line each, and vendors that cannot be read.
pub fn device_lines(host: &Value, accelerators: &Value) -> Vec<String> {
    devices::lines(host, accelerators).into_iter().map(|line| line.text).collect()
}

const COLUMNS: [&str; 10] =
    ["MODEL", "VER", "VARIANT", "ON", "BUDGET", "P99", "MET", "SLOW", "OK/FAILED", "LADDER"];

fn table(models: &[&Value]) -> String {
    let mut rows = vec![COLUMNS.map(str::to_owned)];
    rows.extend(models.iter().map(|model| row(model)));
    aligned(&rows, &[0, 2, 3, 9])
}

fn row(model: &Value) -> [String; 10] {
    let budget = &model["budget"];
    let limit = budget["limit_ms"]
        .as_f64()
        .map(|limit| format!("{} ≤ {}", word(&budget["percentile"]), millis(limit)));
    let met = match model["met"].as_bool() {
        Some(true) => "yes",
        Some(false) => "NO",
        None => "-",
    };
    let slowdown = model["slowdown"].as_f64().map(|factor| format!("×{factor:.2}"));
    let build = word(&model["build"]);
    let why = model["build_why"].as_str().map(|why| format!(": {}", printable(why)));
    [
        word(&model["model"]),
        word(&model["version"]),
        word(&model["variant"]),
        or_dash(model["provider"]["name"].as_str().map(printable)),
        or_dash(limit),
        or_dash(model["observed"]["p99_ms"].as_f64().map(millis)),
        met.to_owned(),
        or_dash(slowdown),
        format!("{}/{}", word(&model["answered"]), word(&model["failed"])),
        format!("{build}{}", why.unwrap_or_default()),
    ]
}

/// The variants of a model, where there is more than one or something to say of it.
fn ladder(model: &Value) -> String {
    let variants: Vec<&Value> = array(&model["ladder"]).collect();
    let not_built: Vec<&Value> = array(&model["not_built"]).collect();
    if variants.len() < 2 && not_built.is_empty() {
        return String::new();
    }
    let names = ["", "RATIO", "QUALITY", "P50", "P99", "STATE"];
    let mut rows = vec![names.map(str::to_owned)];
    rows[0][0] = format!("{} ladder", word(&model["model"]));
    for variant in variants {
        let number = |name: &str| variant[name].as_f64();
        let state = word(&variant["state"]);
        let why = variant["why"].as_str().map(|why| format!(": {}", printable(why)));
        let mark = if variant["name"] == model["variant"] { "▸" } else { " " };
        rows.push([
            format!("{mark} {}", word(&variant["name"])),
            or_dash(number("ratio").map(|ratio| format!("{ratio:.2}"))),
            or_dash(number("quality").map(|quality| format!("{:.1} %", 100.0 * quality))),
            or_dash(number("promised_p50_ms").map(millis)),
            or_dash(number("promised_p99_ms").map(millis)),
            format!("{state}{}", why.unwrap_or_default()),
        ]);
    }
    let mut text = format!("\n{}", aligned(&rows, &[0, 5]));
    text.push_str(&shadow(model));
    for missed in not_built {
        let reachable = missed["reachable"].as_f64();
        let reachable = reachable.map(|ratio| format!(" ({ratio:.2} can be reached)"));
        let because = printable(&word(&missed["because"]));
        let asked = word(&missed["asked"]);
        let _ = writeln!(text, "  {asked} not built: {because}{}", reachable.unwrap_or_default());
    }
    text
}

/// How the variants agree with dense on live requests.
fn shadow(model: &Value) -> String {
    let mut text = String::new();
    if let Some(why) = model["shadow"]["why"].as_str() {
        let _ = writeln!(text, "  no request runs on dense as well: {}", printable(why));
    }
    for variant in array(&model["ladder"]) {
        let live = &variant["live"];
        let share = |name: &str| live[name].as_f64().map(|share| 100.0 * share);
        let (Some(agreement), Some(low), Some(high)) =
            (share("agreement"), share("low"), share("high"))
        else {
            continue;
        };
        let (name, over) = (word(&variant["name"]), word(&live["over"]));
        let _ = writeln!(
            text,
            "  {name} on live requests: {agreement:.1} % ({low:.1} to {high:.1} %) over the last \
             {over}"
        );
    }
    text
}

/// Rows in columns, numbers to the right, texts (`left`) to the left.
fn aligned<const N: usize>(rows: &[[String; N]], left: &[usize]) -> String {
    let width = |at: usize| rows.iter().map(|row| row[at].chars().count()).max().unwrap_or(0);
    let widths: [usize; N] = std::array::from_fn(width);
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (at, cell) in row.iter().enumerate() {
            let fill = " ".repeat(widths[at] - cell.chars().count());
            let cell =
                if left.contains(&at) { format!("{cell}{fill}") } else { format!("{fill}{cell}") };
            line.push_str(&cell);
            line.push_str("  ");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

pub fn array(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

pub fn word(value: &Value) -> String {
    match value {
        Value::String(text) => printable(text),
        Value::Null => "-".to_owned(),
        Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => value.to_string(),
    }
}

/// Names and reasons come from files and from far away: none may steer the terminal.
pub fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

fn or_dash(text: Option<String>) -> String {
    text.unwrap_or_else(|| "-".to_owned())
}

fn millis(ms: f64) -> String {
    match ms {
        ms if ms >= 100.0 => format!("{ms:.0} ms"),
        ms if ms >= 1.0 => format!("{ms:.1} ms"),
        ms => format!("{:.0} µs", 1e3 * ms),
    }
}

fn span(time: Duration) -> String {
    let seconds = time.as_secs();
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{minutes} min {} s", seconds % 60),
        3600..86_400 => format!("{hours} h {minutes} min"),
        _ => format!("{days} d {hours} h"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn status() -> Value {
        json!({
            "blochd": "0.1.0", "ready": true, "uptime_s": 3725,
            "config": {"file": "/etc/blochd/agent.yaml", "revision": 2, "error": null},
            "hardware": {
                "cpu": {"model": "Some CPU", "logical_cores": 4}, "limits": {"cpus": 2.0},
                "memory": {"total": 8u64 << 30, "available": 3u64 << 30},
                "load": {"one": 0.5}, "thermal": [{"celsius": 41.0}, {"celsius": 63.2}],
            },
            "models": [{
                "model": "digits", "version": 1, "variant": "r0.75",
                "provider": {"name": "cpu", "passed": [], "moving": false, "trial": null},
                "budget": {"percentile": "p99", "limit_ms": 40.0},
                "observed": {"requests": 9, "p50_ms": 20.0, "p99_ms": 31.25},
                "met": true, "slowdown": 1.5, "answered": 900, "failed": 0,
                "build": "done", "build_why": null,
                "not_built": [{"asked": 0.3, "because": "below the floor", "reachable": 0.41}],
                "ladder": [
                    {"name": "dense", "ratio": 1.0, "quality": 1.0, "promised_p50_ms": 0.5,
                     "promised_p99_ms": 30.0, "state": "ready", "why": null},
                    {"name": "r0.75", "ratio": 0.757, "quality": 0.981, "promised_p50_ms": 0.4,
                     "promised_p99_ms": 22.0, "state": "in service", "why": null},
                ],
            }],
            "refused": [{"model": "bad", "version": 3, "reason": "model.onnx: \u{1b}[2Jtruncated"}],
        })
    }

    #[test]
    fn shows_what_serves_the_budget_the_ladder_and_the_box() {
        let expected = "\
blochd 0.1.0  ready  up 1 h 2 min  /etc/blochd/agent.yaml, revision 2
Some CPU, 4 cores, limited to 2.0, load 0.50, 3.0 of 8.0 GiB free, 63 °C

MODEL   VER  VARIANT  ON       BUDGET      P99  MET   SLOW  OK/FAILED  LADDER
digits    1  r0.75    cpu p99 ≤ 40.0 ms  31.2 ms  yes  ×1.50      900/0  done

digits ladder  RATIO  QUALITY     P50      P99  STATE
  dense         1.00  100.0 %  500 µs  30.0 ms  ready
▸ r0.75         0.76   98.1 %  400 µs  22.0 ms  in service
  0.3 not built: below the floor (0.41 can be reached)

bad version 3 is not served: model.onnx:  [2Jtruncated
";
        let squeezed = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        let shown = render(&status());
        assert_eq!(squeezed(&shown), squeezed(expected));
        let line = |word: &str| shown.lines().find(|line| line.contains(word)).unwrap();
        let place = |line: &str, word: &str| line.find(word).unwrap();
        assert_eq!(place(line("VARIANT"), "VARIANT"), place(line("×1.50"), "r0.75"));
    }

    #[test]
    fn the_agreement_on_live_requests_is_told_and_so_is_why_nothing_is_compared() {
        let mut status = status();
        let model = &mut status["models"][0];
        model["shadow"] = json!({"state": "waiting", "why": "there is no room\u{7}"});
        model["ladder"][1]["live"] =
            json!({"agreement": 0.9125, "low": 0.871, "high": 0.9414, "over": 256});
        let shown = render(&status);
        let expected = "  r0.75 on live requests: 91.2 % (87.1 to 94.1 %) over the last 256\n";
        assert!(shown.contains(expected), "{shown}");
        assert!(
            shown.contains("  no request runs on dense as well: there is no room \n"),
            "{shown}"
        );
    }

    #[test]
    fn an_agent_without_models_and_an_answer_without_fields_are_shown_all_the_same() {
        assert!(render(&json!({"models": []})).contains("No model is served."));
        assert!(render(&json!({"models": [{}]})).contains("MODEL"));
    }

    #[test]
    fn a_refused_configuration_is_told_with_its_reasons() {
        let mut status = status();
        status["config"]["error"] = json!("agent.yaml:3:5: no such key\nagent.yaml:4:1: too small");
        assert!(render(&status).contains("  agent.yaml:4:1: too small\n"));
    }

    #[test]
    fn how_children_are_confined_is_told_in_a_line() {
        let line = |value: Value| sandbox(&value);
        let in_force = "landlock ABI 7, seccomp";
        let all = json!({"wanted": "auto", "in_force": in_force, "missing": []});
        assert_eq!(line(all), "Children are confined: landlock ABI 7, seccomp");
        let some = json!({"wanted": "auto", "in_force": "seccomp", "missing": ["landlock: none"]});
        assert_eq!(line(some), "Children are confined: seccomp (without landlock: none)");
        let none = json!({"wanted": "required", "in_force": null, "missing": ["a", "b"]});
        assert_eq!(line(none), "Children are not confined (without a; without b)");
        assert!(line(json!({"wanted": "off"})).starts_with("Children are not confined: the conf"));
        // Before the first child, and of an agent that does not tell.
        for nothing in [json!({"wanted": "auto", "in_force": null, "missing": []}), Value::Null] {
            assert_eq!(line(nothing), "");
        }
    }

    #[test]
    fn intervals_are_times_within_reason() {
        assert_eq!(interval("250ms"), Ok(Duration::from_millis(250)));
        for wrong in ["1ms", "2h", "5", "soon"] {
            assert!(interval(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn nothing_that_comes_from_outside_steers_the_terminal() {
        assert!(!render(&status()).contains('\u{1b}'));
    }
}
