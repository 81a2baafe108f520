//! What the status tells of the fleet.

use serde_json::Value;

use super::{printable, word};

/// What is in force, what is under way, and what was refused or taken back last; nothing of a box that belongs
/// to no fleet.
pub fn lines(status: &Value) -> Vec<String> {
    let fleet = &status["fleet"];
    let Some(node) = fleet["node"].as_str() else { return Vec::new() };
    let in_force = match fleet["revision"].as_u64() {
        Some(revision) => format!("revision {revision}"),
        None => "no bundle in force".to_owned(),
    };
    let step = &fleet["step"];
    let under_way = match (step["step"].as_str(), step["bundle"]["revision"].as_u64()) {
        (None | Some("idle"), _) | (_, None) => String::new(),
        (Some(step), Some(revision)) => {
            format!(", revision {revision}: {}", printable(&step.replace('_', " ")))
        }
    };
    let mut lines = vec![format!("Fleet: node {}, {in_force}{under_way}", printable(node))];
    let last = &fleet["last"];
    if let Some(reason) = last["reason"].as_str() {
        let outcome = word(&last["outcome"]).replace('_', " ");
        let revision = word(&last["revision"]);
        lines.push(format!("  revision {revision} was {outcome}: {}", printable(reason)));
    }
    let refused = &fleet["last_refused"];
    if let Some(reason) = refused["reason"].as_str() {
        let bundle = printable(&word(&refused["bundle"]));
        lines.push(format!("  {bundle} was refused: {}", printable(reason)));
    }
    if let Some(why) = fleet["delayed"].as_str() {
        lines.push(format!("  an artifact is still to come: {}", printable(why)));
    }
    let poll = &status["poll"];
    if let Some(error) = poll["error"].as_str() {
        let url = printable(&word(&poll["url"]));
        lines.push(format!("  no bundle comes from {url}: {}", printable(error)));
    }
    lines
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_box_of_a_fleet_tells_what_is_in_force_under_way_and_refused() {
        assert!(lines(&Value::Null).is_empty());
        let mut fleet = json!({"node": "box-1", "revision": null, "step": {"step": "idle"}});
        let none = ["Fleet: node box-1, no bundle in force"];
        assert_eq!(lines(&json!({"fleet": fleet, "poll": {"error": null}})), none);
        fleet["revision"] = json!(7);
        fleet["step"] = json!({"step": "rolling_back", "bundle": {"revision": 8}});
        fleet["last"] = json!({"revision": 6, "outcome": "rolled_back", "reason": "m failed"});
        fleet["last_refused"] = json!({"bundle": "in/5.bundle", "reason": "old\u{1b}"});
        fleet["delayed"] = json!("m version 8: it answers 503");
        let poll = json!({"url": "https://depot/x", "error": "it answers 404"});
        let lines = lines(&json!({"fleet": fleet, "poll": poll}));
        assert_eq!(lines[3], "  an artifact is still to come: m version 8: it answers 503");
        assert_eq!(lines[4], "  no bundle comes from https://depot/x: it answers 404");
        assert_eq!(lines[0], "Fleet: node box-1, revision 7, revision 8: rolling back");
        assert_eq!(lines[1], "  revision 6 was rolled back: m failed");
        assert!(
            lines[2].starts_with("  in/5.bundle was refused: old") && !lines[2].contains('\u{1b}')
        );
    }
}
