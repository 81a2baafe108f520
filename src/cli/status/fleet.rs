//! What the status tells of the fleet.

use serde_json::Value;

use super::{printable, word};

/// What is in force, what is under way, and what was refused or taken back last; nothing of a box that belongs
/// to no fleet.
pub fn lines(fleet: &Value) -> Vec<String> {
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
        assert_eq!(lines(&fleet), ["Fleet: node box-1, no bundle in force"]);
        fleet["revision"] = json!(7);
        fleet["step"] = json!({"step": "rolling_back", "bundle": {"revision": 8}});
        fleet["last"] = json!({"revision": 6, "outcome": "rolled_back", "reason": "m failed"});
        fleet["last_refused"] = json!({"bundle": "in/5.bundle", "reason": "old\u{1b}"});
        let lines = lines(&fleet);
        assert_eq!(lines[0], "Fleet: node box-1, revision 7, revision 8: rolling back");
        assert_eq!(lines[1], "  revision 6 was rolled back: m failed");
        assert!(
            lines[2].starts_with("  in/5.bundle was refused: old") && !lines[2].contains('\u{1b}')
        );
    }
}
