//! On what a model runs, where that is worth more than a word in the table: what is wanted and passed over,
//! what the CPU takes beside an accelerator, what compiling took.

use std::fmt::Write as _;

use serde_json::Value;

use super::{array, printable, word};

/// Most kinds of operators that are named.
const KINDS: usize = 6;

/// Lines of one model; none for one that runs on the CPU and wants nothing else.
pub fn lines(model: &Value) -> String {
    let provider = &model["provider"];
    let mut text = String::new();
    for passed in array(&provider["passed"]) {
        let (name, why) = (word(&passed["provider"]), printable(&word(&passed["why"])));
        let _ = writeln!(text, "  not on {name}: {why}");
    }
    if provider["moving"].as_bool() == Some(true) {
        let _ = writeln!(text, "  is being tried on another execution provider");
    }
    let trial = &provider["trial"];
    let fallen_back = &trial["fallen_back"];
    if let Some(operators) = fallen_back["operators"].as_object().filter(|all| !all.is_empty()) {
        let kinds = operators.iter().take(KINDS);
        let kinds: Vec<String> =
            kinds.map(|(kind, count)| format!("{} {}", word(count), printable(kind))).collect();
        let more = operators.len().saturating_sub(KINDS);
        let more = if more > 0 { format!(" and {more} more kinds") } else { String::new() };
        let share = fallen_back["share"].as_f64();
        let share = share.map(|share| format!(", {:.0} % of the time", 100.0 * share));
        let kinds = kinds.join(", ");
        let _ = writeln!(text, "  on the CPU: {kinds}{more}{}", share.unwrap_or_default());
    }
    if let Some(ms) = trial["compile_ms"].as_f64() {
        let shapes = array(&trial["compiled"]).count();
        let _ = writeln!(text, "  first runs of {shapes} shapes: {:.1} s", ms / 1e3);
    }
    match text.is_empty() {
        true => text,
        false => format!("\n{}\n{text}", word(&model["model"])),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_passed_over_and_what_falls_back_is_told_with_its_reason() {
        let model = json!({"model": "digits", "provider": {
            "name": "cann (subgraphs)", "moving": false,
            "passed": [{"provider": "cann", "kind": "failed", "why": "GRAPH\u{1b}FAILED"}],
            "trial": {
                "compile_ms": 12_340.0, "compiled": [{"inputs": "x[1,2]", "us": 1.0}],
                "fallen_back": {"operators": {"Gelu": 2, "Einsum": 1}, "share": 0.254},
            },
        }});
        let expected = "\ndigits\n  not on cann: GRAPH FAILED\n  \
                        on the CPU: 1 Einsum, 2 Gelu, 25 % of the time\n  \
                        first runs of 1 shapes: 12.3 s\n";
        assert_eq!(lines(&model), expected);
        assert_eq!(lines(&json!({"model": "a", "provider": {"name": "cpu", "passed": []}})), "");
        assert_eq!(lines(&json!({})), "");
    }
}
