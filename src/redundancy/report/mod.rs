//! The analysis as one page that needs nothing but a browser: no network, no other file. Its size is bounded
//! whatever the model; what was left out is said on the page.

use serde::Serialize;
use serde_json::{Value, json};

use super::analysis::{Analysis, ChannelReport, LayerReport};
use crate::limits;

const PAGE: &str = include_str!("page.html");
const STYLE: &str = include_str!("style.css");
const SCRIPT: &str = include_str!("script.js");

/// The page for `analysis` of the model called `name`.
pub fn html(name: &str, analysis: &Analysis) -> String {
    let data = data(analysis).to_string();
    // Inside a script element only a closing tag or a comment could end the data.
    let data = data.replace('<', "\\u003c");
    let mut page = String::with_capacity(PAGE.len() + STYLE.len() + SCRIPT.len() + data.len());
    let mut rest = PAGE;
    while let Some((before, after)) = rest.split_once("{{") {
        let (slot, behind) = after.split_once("}}").unwrap_or((after, ""));
        page.push_str(before);
        match slot {
            "title" => page.push_str(&escaped(name)),
            "style" => page.push_str(STYLE),
            "script" => page.push_str(SCRIPT),
            "data" => page.push_str(&data),
            other => page.push_str(other),
        }
        rest = behind;
    }
    page.push_str(rest);
    page
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// What the script reads, rounded and thinned to a bounded size.
fn data(analysis: &Analysis) -> Value {
    let shown = analysis.layers.len().min(limits::PAGE_LAYERS);
    let points = (limits::PAGE_POINTS / shown.max(1)).clamp(8, 128);
    let mut room = Room { edges: limits::PAGE_EDGES, layers: shown };
    let layers: Vec<Value> =
        analysis.layers[..shown].iter().map(|one| layer(one, points, &mut room)).collect();
    let mut notes = Vec::new();
    if shown < analysis.layers.len() {
        let more = analysis.layers.len() - shown;
        notes.push(format!("{more} further layers are in the JSON report, not on this page."));
    }
    if analysis.layers.iter().any(|layer| layer.values.len() > points) {
        notes.push(format!("Spectra are drawn with at most {points} points."));
    }
    let listed = |index: usize| index < shown;
    let pairs: Vec<Value> = analysis
        .pairs
        .iter()
        .filter(|pair| listed(pair.a) && listed(pair.b))
        .map(|pair| {
            json!({
                "a": pair.a, "b": pair.b, "fs": rounded(pair.d_fs), "w2": rounded(pair.w2),
                "data": pair.d_data.map(rounded), "error": pair.error.map(rounded),
            })
        })
        .collect();
    let identical: Vec<Value> = analysis
        .identical
        .iter()
        .filter(|set| set.layers.iter().all(|index| listed(*index)))
        .map(|set| json!({"layers": set.layers, "shared": set.shared, "saves": set.saves_bytes}))
        .collect();
    json!({
        "augment": analysis.augment,
        "threshold": analysis.threshold,
        "calibration": analysis.calibration,
        "computed": analysis.computed,
        "reused": analysis.reused,
        "totals": {
            "layers": analysis.layers.len(),
            "parameters": analysis.layers.iter().map(|layer| layer.parameters).sum::<usize>(),
        },
        "layers": layers,
        "pairs": pairs,
        "pairs_left_out": analysis.pairs_left_out,
        "identical": identical,
        "passed_over": first(&analysis.passed_over, "nodes without a matrix", &mut notes),
        "frozen": analysis
            .frozen
            .as_ref()
            .map(|frozen| first(frozen, "frozen operators", &mut notes)),
        "notes": notes,
    })
}

/// The first entries of a list that a model could make arbitrarily long.
fn first<'a, T: Serialize>(all: &'a [T], what: &str, notes: &mut Vec<String>) -> &'a [T] {
    if all.len() > limits::PAGE_LAYERS {
        let more = all.len() - limits::PAGE_LAYERS;
        notes.push(format!("{more} further {what} are in the JSON report."));
    }
    &all[..all.len().min(limits::PAGE_LAYERS)]
}

/// How many edges the layers that are still to come may draw.
struct Room {
    edges: usize,
    layers: usize,
}

impl Room {
    /// An equal share of what is left.
    fn take(&mut self, wanted: usize) -> usize {
        let taken = wanted.min(self.edges / self.layers.max(1));
        self.edges -= taken;
        self.layers = self.layers.saturating_sub(1);
        taken
    }
}

fn layer(report: &LayerReport, points: usize, room: &mut Room) -> Value {
    let wanted = report.graph.as_ref().map_or(0, |graph| graph.edges.len());
    let edges = room.take(wanted);
    json!({
        "name": clipped(&report.name),
        "op": clipped(&report.op),
        "weight": report.weight,
        "parameters": report.parameters,
        "sigma1": rounded(report.sigma1),
        "full": report.matrix.0.min(report.matrix.1),
        "effective": rounded(report.effective_rank),
        "stable": rounded(report.stable_rank),
        "energy": report.energy_rank,
        "exact": report.exact,
        "reused": report.reused,
        "problem": report.problem,
        "points": thinned(&report.values, points),
        "graph": report.graph.as_ref().map(|graph| channels(graph, report.channels, edges)),
    })
}

fn channels(graph: &ChannelReport, n: usize, edges: usize) -> Value {
    // Distances in ten-thousandths of a radian: a third of the bytes, and finer than the slider.
    let whole = |distance: f64| (distance * 1e4).round() as i64;
    let edge = |edge: &super::Edge| {
        let by_response = edge.d_response.or(edge.d_fs).unwrap_or_default();
        json!([edge.a, edge.b, whole(by_response), edge.d_fs.map_or(-1, whole)])
    };
    json!({
        "n": n,
        "by": graph.by,
        "states": graph.states,
        "redundancy": rounded(graph.redundancy),
        "nearest": graph.nearest.map(rounded),
        "directions": graph.directions,
        "edges": graph.edges[..edges].iter().map(edge).collect::<Vec<_>>(),
        "left_out": graph.edges_left_out + graph.edges.len() - edges,
    })
}

/// Names come from the file and may be of any length.
fn clipped(name: &str) -> String {
    let length = name.chars().count();
    if length <= limits::PAGE_NAME {
        return name.to_owned();
    }
    let end: String = name.chars().skip(length - limits::PAGE_NAME + 1).collect();
    format!("…{end}")
}

/// Four significant digits.
fn rounded(value: f64) -> f64 {
    if value == 0.0 || !value.is_finite() {
        return 0.0;
    }
    let scale = 10f64.powi(3 - value.abs().log10().floor() as i32);
    // Beyond the range of powers the number is as good as zero or itself.
    if scale.is_finite() && scale > 0.0 { (value * scale).round() / scale } else { value }
}

/// At most `most` of the values with their indices, evenly spread, the last included.
fn thinned(values: &[f64], most: usize) -> Vec<(usize, f64)> {
    let count = values.len().min(most);
    let at = |i: usize| if count > 1 { i * (values.len() - 1) / (count - 1) } else { 0 };
    (0..count).map(at).map(|index| (index, rounded(values[index]))).collect()
}
