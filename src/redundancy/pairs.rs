//! Which layers of a model are compared with which, and the rows that they are compared on.

use std::collections::{BTreeMap, BTreeSet};

use super::analysis::{AnalyzeError, Calibrated, LayerReport, Progress};
use super::layer_pairs::{Identical, LayerPair, compare_rows};
use crate::limits;
use crate::onnx::{ExecError, Graph, Matrix, OnnxError, Operator, Tensor, with_outputs};
use crate::spectra::rows::{Geometry, Rows};
use crate::spectra::sampler::Sampler;
use crate::spectra::{Layer, State, wasserstein2};

/// What two layers must have in common to be compared.
pub(super) type Shape = (usize, usize, usize, usize);

/// Outputs, inputs of one output, kernel positions and groups.
pub(super) fn shape(operator: &Operator) -> Shape {
    (operator.outputs, operator.row_len(), operator.taps(), operator.group())
}

/// Layers with equal weights, by content.
pub(super) fn identical(graph: &Graph, found: &[Layer]) -> Result<Vec<Identical>, OnnxError> {
    let mut by_digest = BTreeMap::new();
    for (index, layer) in found.iter().enumerate() {
        if layer.operator().is_some() {
            let digest = layer.weight_digest(graph)?;
            by_digest.entry(digest).or_insert_with(Vec::new).push(index);
        }
    }
    let mut all: Vec<Identical> = Vec::new();
    for layers in by_digest.into_values().filter(|layers| layers.len() > 1) {
        let names = layers.iter().filter_map(|index| found[*index].operator());
        let names: BTreeSet<&str> = names.map(|operator| operator.weight.as_str()).collect();
        let first = names.first().copied().unwrap_or_default();
        let bytes = graph.weight_bytes(first)?.map_or(0, |bytes| bytes.len() as u64);
        let saves_bytes = bytes * (names.len() as u64 - 1);
        all.push(Identical { layers, shared: names.len() == 1, saves_bytes });
    }
    all.sort_by(|a, b| a.layers.cmp(&b.layers));
    Ok(all)
}

/// Pairs of layers of one matrix shape by the distance of their spectra, nearest first, and how many were
/// left out beyond the limit.
pub(super) fn nearest(found: &[Layer], reports: &[LayerReport]) -> (Vec<LayerPair>, usize) {
    let mut by_shape: BTreeMap<_, Vec<usize>> = BTreeMap::new();
    for (index, (layer, report)) in found.iter().zip(reports).enumerate() {
        if let Some(operator) = layer.operator().filter(|_| !report.values.is_empty()) {
            by_shape.entry(shape(operator)).or_default().push(index);
        }
    }
    let mut pairs = Vec::new();
    for layers in by_shape.values() {
        let states: Vec<Option<State>> =
            layers.iter().map(|index| State::of(&reports[*index].values)).collect();
        for (i, a) in layers.iter().enumerate() {
            for (j, b) in layers.iter().enumerate().skip(i + 1) {
                let (Some(left), Some(right)) = (&states[i], &states[j]) else { continue };
                pairs.push(LayerPair {
                    a: *a,
                    b: *b,
                    d_fs: left.fubini_study(right),
                    w2: wasserstein2(&reports[*a].values, &reports[*b].values),
                    d_data: None,
                    error: None,
                });
            }
        }
    }
    pairs.sort_by(|x, y| x.d_fs.total_cmp(&y.d_fs).then((x.a, x.b).cmp(&(y.a, y.b))));
    let left_out = pairs.len().saturating_sub(limits::LAYER_PAIRS);
    pairs.truncate(limits::LAYER_PAIRS);
    (pairs, left_out)
}

/// Adds what the samples say about the pairs: the rows of each first layer's inputs go through both.
pub(super) fn compare(
    graph: &Graph,
    found: &[Layer],
    pairs: &mut [LayerPair],
    calibrated: &Calibrated,
    progress: &mut dyn FnMut(Progress),
) -> Result<(), AnalyzeError> {
    let firsts: BTreeSet<usize> = pairs.iter().map(|pair| pair.a).collect();
    let firsts: Vec<usize> = firsts.into_iter().collect();
    let mut matrices: BTreeMap<usize, Matrix> = BTreeMap::new();
    for (done, few) in firsts.chunks(limits::LAYER_PAIR_PASS).enumerate() {
        let total = firsts.len().div_ceil(limits::LAYER_PAIR_PASS);
        progress(Progress { stage: "layer pairs", done, total, at: "" });
        let rows = rows_of(graph, found, few, calibrated)?;
        for pair in pairs.iter_mut() {
            let Some(rows) = rows.get(&pair.a) else { continue };
            for index in [pair.a, pair.b] {
                if let Some(operator) = found[index].operator()
                    && !matrices.contains_key(&index)
                {
                    matrices.insert(index, operator.matrix(graph)?);
                }
            }
            let (Some(a), Some(b)) = (matrices.get(&pair.a), matrices.get(&pair.b)) else {
                continue;
            };
            // A decomposition that does not converge leaves the pair without the figure.
            if let Ok(Some(found)) = compare_rows(a, b, rows) {
                pair.d_data = Some(found.d_data);
                pair.error = Some(found.error);
            }
        }
    }
    Ok(())
}

/// Rows of the inputs of some layers. Grouped layers have none: each group sees other inputs.
fn rows_of(
    graph: &Graph,
    found: &[Layer],
    few: &[usize],
    calibrated: &Calibrated,
) -> Result<BTreeMap<usize, Rows>, AnalyzeError> {
    let operators = few.iter().filter_map(|index| Some((*index, found[*index].operator()?)));
    let plain = operators.filter(|(_, operator)| operator.group() == 1);
    let wanted: Vec<_> = plain
        .filter(|(_, operator)| operator.row_len() <= limits::LAYER_PAIR_COLUMNS)
        .filter_map(|(index, operator)| Some((index, operator, Geometry::of(graph, operator)?)))
        .collect();
    let given: BTreeSet<&str> =
        calibrated.batches.iter().flat_map(|batch| batch.keys().map(String::as_str)).collect();
    let values: BTreeSet<&str> = wanted
        .iter()
        .flat_map(|(_, operator, _)| [operator.input.as_str(), operator.output.as_str()])
        .filter(|value| !given.contains(value))
        .collect();
    let wider = with_outputs(graph.model(), values.iter().copied())?;
    let outputs: Vec<&str> =
        wider.graph().output.iter().filter_map(|output| output.name.as_deref()).collect();
    let mut session = calibrated.engine.open(&wider)?;
    let mut rows: BTreeMap<usize, Rows> = BTreeMap::new();
    let per_batch = limits::LAYER_PAIR_ROWS.div_ceil(calibrated.batches.len().max(1));
    for (number, batch) in calibrated.batches.iter().enumerate() {
        let inputs: Vec<(&str, &Tensor)> =
            batch.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
        let results: Vec<Tensor> = session.run(&inputs)?;
        let value = |name: &str| {
            let at = outputs.iter().position(|output| *output == name);
            batch.get(name).or_else(|| results.get(at?))
        };
        for (index, operator, geometry) in &wanted {
            let (Some(x), Some(y)) = (value(&operator.input), value(&operator.output)) else {
                let reason = format!("no value {:?} or {:?}", operator.input, operator.output);
                let doing = "reading a layer's inputs".to_owned();
                return Err(ExecError { doing, reason }.into());
            };
            let (x, y) = (std::slice::from_ref(x), std::slice::from_ref(y));
            let sampler = Sampler::new(geometry, x, y, per_batch, number as u64);
            let Some(sampler) = sampler else { continue };
            append(rows.entry(*index).or_default(), sampler.rows(0));
        }
    }
    Ok(rows)
}

fn append(rows: &mut Rows, more: Rows) {
    let first = rows.sample.last().map_or(0, |last| last + 1);
    rows.inputs = more.inputs;
    rows.outputs = more.outputs;
    rows.x.extend(more.x);
    rows.y.extend(more.y);
    rows.sample.extend(more.sample.into_iter().map(|sample| first + sample));
}
