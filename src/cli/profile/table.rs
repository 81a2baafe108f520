//! The profile for people.

use std::fmt::Write as _;

use serde_json::Value;

use crate::cli::status::{array, device_lines, hardware, printable, word};

/// The whole of it.
pub fn render(profile: &Value) -> String {
    let host = &profile["host"];
    let mut text = String::new();
    let product = host["product"].as_str().map(printable).unwrap_or_default();
    let kernel = host["kernel"].as_str().map(printable).unwrap_or_default();
    let _ = writeln!(
        text,
        "{}",
        [&product, &word(&host["arch"]), &kernel].map(|s| s.as_str()).join("  ").trim()
    );
    let _ = writeln!(text, "{}", hardware(host));
    for zone in array(&host["thermal"]) {
        let Some(celsius) = zone["celsius"].as_f64() else { continue };
        let bound = |name: &str| zone[name].as_f64().map(|bound| format!(", {name} {bound:.0}"));
        let bounds = [bound("passive"), bound("critical")].into_iter().flatten();
        let bounds: String = bounds.collect();
        let _ = writeln!(text, "  {}: {celsius:.0} °C{bounds}", word(&zone["name"]));
    }
    text.push_str("\nAccelerators\n");
    let lines = device_lines(host, &profile["accelerators"]);
    if lines.is_empty() {
        text.push_str("  none\n");
    }
    for line in lines {
        let _ = writeln!(text, "  {line}");
    }
    text.push_str(&libraries(&profile["accelerators"]));
    text.push_str(&runtime(profile));
    text.push_str(&runtimes(profile));
    text.push_str(&roofline(&profile["roofline"]));
    text
}

/// What each vendor's library is, and what is seen of devices that no library tells of.
fn libraries(accelerators: &Value) -> String {
    let mut text = String::new();
    for (vendor, look) in accelerators.as_object().into_iter().flatten() {
        let vendor = printable(vendor);
        if let Some(path) = look["library"].as_str() {
            let version =
                look["version"].as_str().map(|version| format!(" {}", printable(version)));
            let runtime = look["runtime"].as_str().map(|v| format!(", runtime {}", printable(v)));
            let _ = writeln!(
                text,
                "  {vendor}: {}{}{}",
                printable(path),
                version.unwrap_or_default(),
                runtime.unwrap_or_default()
            );
        }
        let nodes = array(&look["seen"]["nodes"]).count();
        let cards: Vec<String> = look["seen"]["cards"]
            .as_object()
            .into_iter()
            .flatten()
            .map(|(address, card)| match card["chip"].as_str() {
                Some(chip) => format!("{} ({})", printable(address), printable(chip)),
                None => printable(address),
            })
            .collect();
        if nodes > 0 || !cards.is_empty() {
            let _ = writeln!(
                text,
                "  {vendor}: {nodes} device nodes; cards: {}",
                if cards.is_empty() { "none".to_owned() } else { cards.join(", ") }
            );
        }
    }
    text
}

fn runtime(profile: &Value) -> String {
    let runtime = &profile["runtime"];
    let mut text = "\nONNX Runtime\n".to_owned();
    let Some(version) = runtime["version"].as_str() else {
        let why = profile["runtime_error"].as_str().unwrap_or_default();
        for line in why.lines() {
            let _ = writeln!(text, "  {}", printable(line));
        }
        return text;
    };
    let _ = writeln!(
        text,
        "  {}  {}  ({})",
        printable(version),
        word(&runtime["path"]),
        word(&runtime["origin"])
    );
    for provider in array(&runtime["providers"]) {
        let library = &provider["library"];
        let state = match library["there"].as_bool() {
            None => "compiled in".to_owned(),
            Some(true) => format!("its library is there: {}", word(&library["path"])),
            Some(false) => format!("not usable: there is no {}", word(&library["path"])),
        };
        let _ = writeln!(text, "  {}: {state}", word(&provider["name"]));
    }
    text
}

/// The other ones that are installed, and whether CANN can be used by those that have it.
fn runtimes(profile: &Value) -> String {
    let mut text = String::new();
    for one in array(&profile["runtimes"]) {
        if one["in_use"] != true {
            let version = one["version"].as_str().map_or_else(|| "-".to_owned(), printable);
            let _ = writeln!(text, "  {version}  {}  (not used)", word(&one["path"]));
        }
        let cann = &one["cann"];
        let version = word(&one["version"]);
        match (cann["loads"].as_bool(), cann["why"].as_str()) {
            (Some(true), _) => {
                let _ = writeln!(text, "  CANN loads with {version}");
            }
            (Some(false), why) => {
                let why = printable(why.unwrap_or_default());
                let _ = writeln!(text, "  CANN does not load with {version}: {why}");
            }
            (None, _) => {}
        }
    }
    text
}

fn roofline(roofline: &Value) -> String {
    let measured = &roofline["measured"];
    let Some(memory) = measured["memory_gb_s"].as_f64() else {
        return "\nNothing was measured yet: --roofline does.\n".to_owned();
    };
    let when = if roofline["now"] == true { "measured now" } else { "measured before" };
    let mut text = format!("\n{} ({when})\n", word(&roofline["engine"]));
    for one in array(&measured["operators"]) {
        let mark = if one["aligned"] == true { "" } else { "  (not a multiple of 16)" };
        let _ = writeln!(
            text,
            "  {:4} {:>4} channels  {:>8.1} GFLOP/s  {:>9.0} µs{mark}",
            word(&one["operator"]),
            word(&one["width"]),
            one["gflop_s"].as_f64().unwrap_or_default(),
            one["micros"].as_f64().unwrap_or_default(),
        );
    }
    let _ = writeln!(text, "  memory  {memory:.1} GB/s");
    text
}
