//! Accelerators in the status, a line each; a vendor whose library cannot be read says why.

use serde_json::Value;

use super::{array, printable, word};

/// A line, and whether it is bad news.
pub struct Told {
    pub text: String,
    pub alarm: bool,
}

/// All that is known of accelerators.
pub fn lines(hardware: &Value, accelerators: &Value) -> Vec<Told> {
    let mut lines: Vec<Told> = array(&hardware["devices"]).map(device).collect();
    for (vendor, state) in accelerators.as_object().into_iter().flatten() {
        if let Some(why) = state["why"].as_str() {
            let text = format!("{} cannot be read: {}", printable(vendor), printable(why));
            lines.push(Told { text, alarm: true });
        }
        if let Some(why) = state["sandbox"]["lifted"].as_str() {
            let (vendor, why) = (printable(vendor), printable(why));
            let text = format!("{vendor} is read without confinement, under which it said: {why}");
            lines.push(Told { text, alarm: false });
        }
    }
    lines
}

fn device(device: &Value) -> Told {
    let mut parts = vec![format!("{} {}", word(&device["vendor"]), word(&device["index"]))];
    for name in ["model", "pci"] {
        parts.extend(device[name].as_str().map(printable));
    }
    let number = |name: &str| device[name].as_f64();
    parts.extend(number("celsius").map(|celsius| format!("{celsius:.0} °C")));
    parts.extend(number("watts").map(|watts| format!("{watts:.1} W")));
    parts.extend(number("utilisation").map(|share| format!("{:.0} % busy", 100.0 * share)));
    let gib = |name: &str| number(name).map(|bytes| bytes / f64::from(1 << 30));
    match (gib("memory_used"), gib("memory_total")) {
        (Some(used), Some(total)) => parts.push(format!("{used:.1} of {total:.1} GiB")),
        (None, Some(total)) => parts.push(format!("{total:.1} GiB")),
        (_, None) => {}
    }
    let state = device["health"]["state"].as_str().unwrap_or("unknown");
    let well = match device["presence"].as_str() {
        Some("lost") => {
            parts.push("LOST".to_owned());
            false
        }
        Some("silent") => {
            parts.push("silent".to_owned());
            false
        }
        _ => {
            parts.push(health(state, &device["health"]["why"]));
            !matches!(state, "degraded" | "unusable")
        }
    };
    match device["losses"].as_u64() {
        None | Some(0) => {}
        Some(1) => parts.push("lost once".to_owned()),
        Some(losses) => parts.push(format!("lost {losses} times")),
    }
    Told { text: parts.join("  "), alarm: !well }
}

fn health(state: &str, why: &Value) -> String {
    let number = why["level"].as_i64().or_else(|| why["state"].as_i64());
    let number = number.map(|number| format!(" {number}")).unwrap_or_default();
    match why["kind"].as_str() {
        Some(kind) => format!("{}: {}{number}", printable(state), printable(kind)),
        None if state == "unknown" => "health unknown".to_owned(),
        None => printable(state),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn devices_that_answer_complain_or_are_lost_have_a_line_and_so_has_a_silent_vendor() {
        let status = json!({
            "hardware": {"devices": [
                {"vendor": "ascend", "index": 0, "model": "310P3", "pci": "0000:3b:00.0",
                 "celsius": 50.4, "watts": 12.84, "utilisation": 0.34,
                 "memory_total": 8u64 << 30, "memory_used": 2u64 << 30,
                 "health": {"state": "ok"}, "presence": "answers", "losses": 0},
                {"vendor": "ascend", "index": 1, "memory_total": 8u64 << 30,
                 "health": {"state": "degraded", "why": {"kind": "alarm", "level": 2}},
                 "presence": "answers", "losses": 1},
                {"vendor": "cambricon", "index": 0, "model": "MLU\u{1b}370",
                 "health": {"state": "unknown"}, "presence": "lost", "losses": 2},
            ]},
            "accelerators": {
                "ascend": {"state": "answers", "why": null,
                    "sandbox": {"lifted": "dcmi_init failed with 1"}},
                "kunlunxin": {"state": "degraded", "why": "xpumlInit failed with 9"},
            },
        });
        let expected = [
            ("ascend 0  310P3  0000:3b:00.0  50 °C  12.8 W  34 % busy  2.0 of 8.0 GiB  ok", false),
            ("ascend 1  8.0 GiB  degraded: alarm 2  lost once", true),
            ("cambricon 0  MLU 370  LOST  lost 2 times", true),
            (
                "ascend is read without confinement, under which it said: dcmi_init failed with 1",
                false,
            ),
            ("kunlunxin cannot be read: xpumlInit failed with 9", true),
        ];
        let told: Vec<(String, bool)> = lines(&status["hardware"], &status["accelerators"])
            .into_iter()
            .map(|line| (line.text, line.alarm))
            .collect();
        assert_eq!(told, expected.map(|(text, alarm)| (text.to_owned(), alarm)));
        assert_eq!(lines(&Value::Null, &Value::Null).len(), 0);
    }
}
