use serde_json::json;

use super::*;

/// A box with three models: one in trouble, one whose ladder is being built, one that nobody asks.
fn status(answered: u64, at_budget: f64) -> Value {
    json!({
        "blochd": "0.1.0", "ready": true, "uptime_s": 3725,
        "config": {"file": "/etc/blochd/agent.yaml", "revision": 2, "error": null},
        "hardware": {
            "cpu": {"model": "Some CPU", "logical_cores": 4},
            "memory": {"total": 8u64 << 30, "available": 3u64 << 30},
            "load": {"one": 0.5}, "thermal": [{"celsius": 63.2}],
        },
        "sandbox": {"wanted": "auto", "in_force": "landlock ABI 7, seccomp", "missing": []},
        "models": [
            {
                "model": "ocr", "version": 3, "variant": "r0.75",
                "budget": {"percentile": "p95", "limit_ms": 40.0},
                "observed": {"requests": 9, "p99_ms": 61.0, "at_budget_ms": at_budget},
                "met": false, "slowdown": 1.5, "answered": answered, "failed": 2, "refused": 5,
                "queued": 7, "swaps": 4, "last_swap_because": "budget",
                "build": "done", "build_why": null, "build_share": null,
                "not_built": [{"asked": 0.3, "because": "below the quality floor 0.9"}],
                "ladder": [
                    {"name": "dense", "quality": 1.0, "state": "ready", "why": null},
                    {"name": "r0.75", "quality": 0.981, "state": "in service", "why": null},
                    {"name": "r0.5", "quality": 0.93, "state": "waiting",
                     "why": "memory: it takes 300 MiB and 100 MiB are free"},
                ],
            },
            {
                "model": "digits", "version": 1, "variant": "dense",
                "budget": {"percentile": "p99", "limit_ms": 10.0},
                "observed": {"requests": 9, "p99_ms": 5.0, "at_budget_ms": 5.0},
                "met": true, "slowdown": 1.0, "answered": 2 * answered, "failed": 0, "refused": 0,
                "queued": 0, "swaps": 0, "last_swap_because": null,
                "build": "cuts 42 %", "build_why": null, "build_share": 0.42, "build_stage": "cuts",
                "build_paused": true, "not_built": [],
                "ladder": [{"name": "dense", "quality": 1.0, "state": "in service", "why": null}],
            },
            {
                "model": "idle", "version": 1, "variant": "dense", "budget": null,
                "observed": {"requests": 0, "p99_ms": null, "at_budget_ms": null},
                "met": null, "slowdown": null, "answered": 0, "failed": 0, "refused": 0,
                "queued": 0, "swaps": 0, "last_swap_because": null,
                "build": "failed", "build_why": "its build failed: it crashed (SIGSEGV)",
                "build_share": null, "not_built": [],
                "ladder": [{"name": "dense", "quality": 1.0, "state": "in service", "why": null}],
            },
        ],
        "refused": [{"model": "bad", "version": 3, "reason": "model.onnx: \u{1b}[2Jbroken at 7"}],
    })
}

/// Half a minute of looks, one a second, with a stall in the middle.
fn seen() -> (Value, History) {
    let mut history = History::default();
    let mut last = Value::Null;
    for second in 0..30u64 {
        let latency = if (10..15).contains(&second) { 80.0 } else { 10.0 + second as f64 };
        last = status(120 * second, latency);
        history.take(&last, Duration::from_secs(second));
    }
    last["models"][0]["observed"]["at_budget_ms"] = json!(52.0);
    (last, history)
}

fn lines(width: usize) -> Vec<Line> {
    let (status, history) = seen();
    frame(&status, &history, width)
}

fn text(lines: &[Line]) -> String {
    lines.iter().map(|line| format!("{}\n", line.text)).collect()
}

fn is(width: usize, expected: &str) {
    let shown = text(&lines(width));
    assert_eq!(shown, expected, "\n{shown}");
    assert!(lines(width).iter().all(|line| line.text.chars().count() <= width));
}

#[test]
fn a_narrow_terminal_shows_it_all() {
    is(40, include_str!("../../../../tests/golden/watch/40.txt"));
}

#[test]
fn a_usual_terminal_shows_it_all() {
    is(80, include_str!("../../../../tests/golden/watch/80.txt"));
}

#[test]
fn a_wide_terminal_shows_it_all() {
    is(120, include_str!("../../../../tests/golden/watch/120.txt"));
}

#[test]
fn what_asks_for_a_person_stands_out() {
    let lines = lines(80);
    let style = |word: &str| lines.iter().find(|line| line.text.contains(word)).unwrap().style;
    assert_eq!(style("OVER BUDGET"), Style::Alarm);
    assert_eq!(style("52.0 ms of"), Style::Alarm);
    assert_eq!(style("is not served"), Style::Alarm);
    assert_eq!(style("ladder failed"), Style::Alarm);
    assert_eq!(style("digits 1"), Style::Strong);
    assert_eq!(style("r0.5 waiting"), Style::Dim);
}

#[test]
fn nothing_that_comes_from_outside_steers_the_terminal() {
    assert!(lines(80).iter().all(|line| !line.text.chars().any(char::is_control)));
}

#[test]
fn any_width_and_an_answer_without_fields_are_shown_all_the_same() {
    let (status, history) = seen();
    for width in 0..60 {
        for line in frame(&status, &history, width) {
            assert!(line.text.chars().count() <= width, "{width}: {line:?}");
        }
        frame(&json!({"models": [{}]}), &history, width);
    }
    assert!(text(&frame(&json!({"models": []}), &history, 80)).contains("No model is served."));
}

#[test]
fn a_frame_that_is_too_high_says_how_much_it_leaves_out() {
    let all = lines(80);
    assert_eq!(fit(all.clone(), all.len()), all);
    let cut = fit(all.clone(), 5);
    assert_eq!(cut.len(), 5);
    assert_eq!(cut[..4], all[..4]);
    assert_eq!(cut[4].text, format!("… {} more lines", all.len() - 4));
}

#[test]
fn rates_are_those_of_the_last_seconds_and_begin_anew_with_the_agent() {
    let rate = |history: &History| history.rate(&status(0, 0.0)["models"][0]);
    let mut history = History::default();
    assert_eq!(rate(&history), None);
    let look = |history: &mut History, second: u64, answered: u64| {
        history.take(&status(answered, 1.0), Duration::from_secs(second));
    };
    look(&mut history, 0, 0);
    assert_eq!(rate(&history), None);
    look(&mut history, 2, 50);
    assert_eq!(rate(&history), Some(25.0));
    look(&mut history, 10, 50);
    // What is older than the stretch that is counted over is left out.
    look(&mut history, 12, 150);
    assert_eq!(rate(&history), Some(50.0));
    look(&mut history, 13, 3);
    assert_eq!(rate(&history), None);
    look(&mut history, 14, 5);
    assert_eq!(rate(&history), Some(2.0));
    // A model that went leaves nothing behind.
    history.take(&json!({"models": []}), Duration::from_secs(15));
    assert!(history.0.is_empty());
}

#[test]
fn the_last_minute_shows_the_worst_of_each_column() {
    let model = status(0, 0.0)["models"][0].clone();
    let mut history = History::default();
    for second in 0..=120u64 {
        let mut status = status(second, if second == 100 { 40.0 } else { 5.0 });
        if second < 80 {
            status["models"][0]["observed"] = json!({});
        }
        history.take(&status, Duration::from_secs(second));
    }
    assert_eq!(history.spark(&model, 6, Some(40.0)), "·▁▁█▁▁");
    assert_eq!(history.spark(&model, 6, None).chars().max(), Some('█'));
    assert_eq!(history.spark(&model, 0, Some(40.0)), "");
}
