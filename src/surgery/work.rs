//! About how much a repair of a whole network computes: what a search for variants goes by that must not take
//! hours where a network is large.

use std::collections::BTreeMap;

use super::aim::aim;
use super::repair::{HELD_OUT, rows_wanted};
use crate::onnx::{Graph, Operator, Shapes, operators};

/// Maps that are compared for an operator on its held-out rows, and ridges that are tried.
const COMPARED: f64 = 5.0;
const RIDGES: f64 = 2.0;

/// Alternations of a refit behind a rectifier.
const STEPS: f64 = 3.0;

/// Runs over all samples that the values of both networks take, together.
const RUNS: f64 = 3.0;

/// Multiply-adds, about, of the repair of all operators of a network on `samples` samples; `shapes` are those
/// of one request. Operators of unknown output sizes are not counted.
pub fn work(graph: &Graph, shapes: &Shapes, samples: usize) -> f64 {
    operators(graph).iter().filter_map(|operator| of(graph, shapes, operator, samples)).sum()
}

fn of(graph: &Graph, shapes: &Shapes, operator: &Operator, samples: usize) -> Option<f64> {
    let output = graph.node(operator.node).output.first()?;
    let shape = &shapes.get(output)?.shape;
    let elements = shape.iter().copied().product::<Option<usize>>()?;
    let requests = shape.first().copied().flatten().unwrap_or(1).max(1);
    let positions = elements / operator.outputs.max(1) / requests;
    let rows = rows_wanted(operator.row_len()).min(samples * positions) as f64;
    let (n, groups) = (operator.row_len() as f64, operator.group() as f64);
    let m = operator.outputs as f64 / groups;
    let held_out = COMPARED * rows * n * m / f64::from(HELD_OUT);
    let moments = rows * n * n / 2.0 + rows * n * m;
    let ridges = m * n * n + RIDGES * (n.powi(3) / 6.0 + m * n * n);
    let rectified = aim(graph, operator, &BTreeMap::new()).is_some_and(|aim| aim.rectified);
    let steps = if rectified { STEPS * (2.0 * rows * n * m + m * n * n) } else { 0.0 };
    let runs = RUNS * (samples * positions) as f64 * n * m;
    Some(groups * (held_out + moments + ridges + steps + runs))
}
