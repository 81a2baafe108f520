//! `blochd fleet status`: all nodes that the broker knows of.

use std::time::Duration;

use blochd::fleet::roll_call::{RollCall, Seen};
use blochd::units::Span;
use clap::Args;
use serde_json::{Value, json};

use super::broker::{Connection, block_on, roll_call};
use super::{Code, Failure, OrFail};

/// Show the nodes of a fleet: who is there, which revision is in force, and why another one is not.
///
/// Exit code 69 where the broker cannot be reached.
#[derive(Debug, Args)]
pub struct Status {
    #[command(flatten)]
    connection: Connection,
    /// How long to listen at most: nodes are known once nothing more comes.
    #[arg(long, default_value = "15s")]
    patience: Span,
}

impl Status {
    pub fn run(self, as_json: bool) -> Result<(), Failure> {
        let topics = self.connection.topics()?;
        let roll = block_on(async {
            let mut operator = self.connection.connect().await?;
            let patience = Duration::from(self.patience);
            let roll = roll_call(&mut operator, &topics, patience).await?;
            operator.close().await;
            Ok(roll)
        })?;
        if as_json {
            let text = serde_json::to_string_pretty(&told(&roll)).code(Code::Software)?;
            println!("{text}");
        } else {
            print!("{}", table(&roll));
        }
        Ok(())
    }
}

fn told(roll: &RollCall) -> Value {
    let nodes = roll.nodes().iter().map(|(id, node)| {
        json!({"node": id, "online": node.online, "behind": node.reports.behind,
            "reported": node.state})
    });
    json!({"nodes": nodes.collect::<Vec<_>>()})
}

/// A line a node, and one of what they come to.
fn table(roll: &RollCall) -> String {
    let mut rows = vec![["NODE", "", "REVISION", "STATE", "MODELS"].map(str::to_owned)];
    rows.extend(roll.nodes().iter().map(|(id, node)| row(id, node)));
    let mut widths = [0; 5];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for row in &rows {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    let online = roll.nodes().values().filter(|node| node.online == Some(true)).count();
    text.push_str(&format!("{} nodes, {online} online\n", roll.nodes().len()));
    text
}

fn row(id: &str, node: &Seen) -> [String; 5] {
    let presence = match node.online {
        Some(true) => "online",
        Some(false) => "offline",
        None => "-",
    };
    let Some(state) = &node.state else {
        return [id, presence, "-", "nothing reported", ""].map(str::to_owned);
    };
    let revision = state.applied.as_ref().map_or("-".to_owned(), |one| one.revision.to_string());
    let standing = match (&state.underway, &state.refused) {
        (Some(underway), _) => format!("{} {}", underway.stage, underway.revision),
        (None, Some(refused)) => {
            let revision = refused.revision.map_or(String::new(), |number| format!(" {number}"));
            format!("refused{revision}: {}", plain(&refused.why))
        }
        (None, None) if !state.health.ready => "not ready".to_owned(),
        (None, None) => match state.health.problems.first() {
            Some(problem) => plain(problem),
            None => "ok".to_owned(),
        },
    };
    let models = state.models.iter().map(|(name, model)| {
        let share = match model.figures.watched_s {
            0 => String::new(),
            watched => {
                format!(" {:.1} %", 100.0 * model.figures.met_s as f64 / watched as f64)
            }
        };
        format!("{name} {}: {}{share}", model.version, model.variant)
    });
    let models = plain(&models.collect::<Vec<_>>().join(", "));
    [id.to_owned(), presence.to_owned(), revision, standing, models]
}

/// What a node says goes to a terminal: on one line, without what moves the cursor.
fn plain(text: &str) -> String {
    text.chars().map(|one| if one.is_control() { ' ' } else { one }).take(160).collect()
}

#[cfg(test)]
mod tests {
    use blochd::fleet::reported::{Applied, Health, RefusedBundle, Reported};

    use super::*;

    #[test]
    fn a_line_says_where_a_node_is_and_writes_nothing_of_its_own_to_the_terminal() {
        let health = Health { ready: true, problems: Vec::new() };
        let mut state = Reported { node: "box-1".to_owned(), health, ..Reported::default() };
        state.applied = Some(Applied { revision: 7, digest: String::new() });
        let why = "an \u{1b}[2Jevil\nreason".to_owned();
        let mut node = Seen { online: Some(true), state: Some(state), ..Seen::default() };
        assert_eq!(row("box-1", &node), ["box-1", "online", "7", "ok", ""].map(str::to_owned));
        if let Some(state) = &mut node.state {
            state.refused = Some(RefusedBundle { revision: Some(8), bundle: None, why });
        }
        assert_eq!(row("box-1", &node)[3], "refused 8: an  [2Jevil reason");
        let silent = row("box-2", &Seen::default());
        assert_eq!(silent, ["box-2", "-", "-", "nothing reported", ""].map(str::to_owned));
    }
}
