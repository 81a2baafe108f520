//! What the demo tells at its end: a table for the terminal, and a page that needs nothing but itself.

use std::fmt::Write;

use serde_json::Value;

use super::plot::{self, escaped};
use super::story::Story;

const PAGE: &str = include_str!("page.html");
const PAGE_STYLE: &str = include_str!("page.css");
const PLOT_STYLE: &str = include_str!("plot.css");

/// The closing table for the terminal.
pub fn table(story: &Story) -> String {
    let mut text = format!(
        "\n{:>13}  {:8} {:8} {:>9} {:>9} {:>9} {:>7} {:>9} {:>13}\n",
        "time", "act", "rung", "p50", "p99", "budget", "above", "accuracy", "sent / failed"
    );
    for row in story.stretches() {
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "{:5.1} – {:5.1}  {:8} {:8} {:>6.2} ms {:>6.2} ms {:>6.2} ms {:>5.1} % {:>7.1} % \
             {:>13}",
            row.from,
            row.to,
            row.act,
            row.variant,
            row.p50,
            row.p99,
            story.budget_ms,
            100.0 * row.over,
            100.0 * row.right as f64 / row.requests.max(1) as f64,
            format!("{} / {}", row.requests, row.failed)
        );
    }
    text.push('\n');
    for line in findings(story) {
        let _ = writeln!(text, "{line}");
    }
    text
}

/// What the numbers come to, a sentence each.
fn findings(story: &Story) -> Vec<String> {
    let mut lines = Vec::new();
    match story.reaction() {
        None => lines.push("The squeeze did not break the budget.".to_owned()),
        Some(reaction) => {
            let after = reaction.broken - story.squeeze_from();
            let processes = story.squeezed.iter().filter(|at| **at <= reaction.broken).count();
            lines.push(format!(
                "The budget was broken {after:.1} s into the squeeze, by the competing process \
                 number {processes}."
            ));
            lines.push(match reaction.held {
                None => "It was not held again before the squeeze ended.".to_owned(),
                Some(held) => format!(
                    "It was held again {:.1} s later, and at {:.0} % of all moments from then to \
                     the end of the squeeze.",
                    held - reaction.broken,
                    100.0 * story.held_share().unwrap_or_default()
                ),
            });
        }
    }
    lines.push(match story.returned() {
        None => "Dense did not come back after the squeeze.".to_owned(),
        Some(seconds) => format!("Dense was back {seconds:.1} s after the squeeze."),
    });
    lines.push(format!("Requests sent {}, failed {}.", story.sent(), story.failed()));
    lines
}

/// A page that needs nothing but itself.
pub fn html(story: &Story) -> String {
    let lead = format!(
        "A CNN that reads handwritten digits, served by the agent on {} to a client that sends \
         labelled test digits over HTTP, while competing processes take the CPU. Nothing \
         here is simulated.",
        escaped(&story.host)
    );
    PAGE.replace("{{plot.css}}", PLOT_STYLE.trim())
        .replace("{{page.css}}", PAGE_STYLE.trim())
        .replace("{{lead}}", &lead)
        .replace("{{tiles}}", &tiles(story))
        .replace("{{plot}}", &plot::embedded(story))
        .replace("{{stretches}}", &stretches(story))
        .replace("{{ladder}}", &ladder(&story.ladder))
}

fn tiles(story: &Story) -> String {
    let seconds = |found: Option<f64>| found.map_or("never".to_owned(), |s| format!("{s:.1} s"));
    let judged = |good: bool| if good { "good" } else { "bad" };
    let reaction = story.reaction();
    let held = reaction.and_then(|reaction| Some(reaction.held? - reaction.broken));
    let share = story.held_share();
    let right = story.samples.iter().filter(|sample| sample.right == Some(true)).count();
    let accuracy = 100.0 * right as f64 / story.sent().max(1) as f64;
    let tiles = [
        ("", format!("{:.1} ms", story.budget_ms), "budget of the 99th percentile"),
        (judged(held.is_some()), seconds(held), "until the broken budget was held again"),
        (
            judged(share.is_some_and(|share| share > 0.9)),
            share.map_or("–".to_owned(), |share| format!("{:.0} %", 100.0 * share)),
            "of the squeeze from then on held",
        ),
        (
            judged(story.returned().is_some()),
            seconds(story.returned()),
            "from the end of the squeeze to dense",
        ),
        ("", format!("{accuracy:.1} %"), "of the digits recognised"),
        (
            judged(story.failed() == 0),
            format!("{} / {}", story.sent(), story.failed()),
            "requests sent / failed",
        ),
    ];
    let tile = |(class, value, what): &(&str, String, &str)| {
        format!("<div class=\"tile {class}\"><b>{value}</b><span>{what}</span></div>\n")
    };
    tiles.iter().map(tile).collect()
}

fn header(names: &[&str]) -> String {
    let cells: String = names.iter().map(|name| format!("<th>{name}</th>")).collect();
    format!("<tr>{cells}</tr>\n")
}

fn stretches(story: &Story) -> String {
    let mut text = header(&[
        "time",
        "act",
        "rung",
        "p50",
        "p99",
        "budget",
        "above it",
        "accuracy",
        "sent / failed",
    ]);
    for row in story.stretches() {
        let class = if row.p99 > story.budget_ms { " class=\"bad\"" } else { "" };
        let _ = writeln!(
            text,
            "<tr><td>{:.1} – {:.1} s</td><td>{}</td><td>{}</td><td>{:.2} ms</td><td{class}>{:.2} \
             ms</td><td>{:.2} ms</td><td>{:.1} %</td><td>{:.1} %</td><td>{} / {}</td></tr>",
            row.from,
            row.to,
            row.act,
            escaped(&row.variant),
            row.p50,
            row.p99,
            story.budget_ms,
            100.0 * row.over,
            100.0 * row.right as f64 / row.requests.max(1) as f64,
            row.requests,
            row.failed
        );
    }
    text
}

fn ladder(model: &Value) -> String {
    let mut text = header(&["variant", "ratio", "promised p50", "promised p99", "agreement"]);
    for rung in model["ladder"].as_array().into_iter().flatten() {
        let number = |name: &str| rung[name].as_f64().unwrap_or_default();
        let _ = writeln!(
            text,
            "<tr><td>{}</td><td>{:.3}</td><td>{:.2} ms</td><td>{:.2} ms</td><td>{:.1} %</td></tr>",
            escaped(rung["name"].as_str().unwrap_or_default()),
            number("ratio"),
            number("promised_p50_ms"),
            number("promised_p99_ms"),
            100.0 * number("quality")
        );
    }
    for missed in not_built(model) {
        let _ =
            writeln!(text, "<tr><td class=\"left\" colspan=\"5\">{}</td></tr>", escaped(&missed));
    }
    text
}

/// A sentence for each rung that was asked for and is not there, or not to be used.
pub fn not_built(model: &Value) -> Vec<String> {
    let missed = model["not_built"].as_array().into_iter().flatten().map(|missed| {
        let reachable = missed["reachable"].as_f64();
        let reachable = reachable.map(|ratio| format!("; {ratio:.2} can be reached"));
        format!(
            "{} was not built: {}{}",
            missed["asked"],
            missed["because"].as_str().unwrap_or_default(),
            reachable.unwrap_or_default()
        )
    });
    let withheld = model["ladder"].as_array().into_iter().flatten().filter_map(|rung| {
        let (name, state) = (rung["name"].as_str()?, rung["state"].as_str()?);
        Some(format!("{name} is {state}: {}", rung["why"].as_str()?))
    });
    missed.chain(withheld).collect()
}
