use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::onnx::{DType, Matrix, Model, tensor};
use crate::spectra::response::{ChannelMoments, Response};
use crate::spectra::rows::Rows;
use crate::spectra::{Augment, NoStore, Spectrum, State, Store};
use crate::units::Digest;

const EXTENT: Extent = Extent { reach: 0.52, edges: 100 };

/// Deterministic, well-spread numbers without a generator.
fn noise(i: usize, j: usize) -> f64 {
    ((i * 37 + j * 101 + i * j * 13) % 97) as f64 / 48.5 - 1.0
}

fn response(rows: &[Vec<f64>]) -> Response {
    let n = rows[0].len();
    let mut both = [ChannelMoments::new(n), ChannelMoments::new(n)];
    for (i, row) in rows.iter().enumerate() {
        both[usize::from(i % 5 == 4)].add(row);
    }
    let [fit, held_out] = both;
    Response { fit, held_out }
}

/// Four channels: 1 = −2·(0) + 3, 2 independent, 3 constant.
fn small() -> Response {
    let rows: Vec<Vec<f64>> =
        (0..100).map(|i| vec![noise(i, 1), 3.0 - 2.0 * noise(i, 1), noise(i, 7), 4.0]).collect();
    response(&rows)
}

proptest! {
    #[test]
    fn every_member_is_within_the_threshold_of_its_representative_and_stands_once(
        points in prop::collection::vec(0.0f64..1.0, 1..60), threshold in 0.0f64..0.4
    ) {
        let d = |i: usize, j: usize| (points[i] - points[j]).abs();
        let clusters = cover(points.len(), threshold, d, d);
        let mut seen: Vec<usize> = clusters.iter().flat_map(|c| c.members.clone()).collect();
        seen.sort_unstable();
        prop_assert_eq!(seen, (0..points.len()).collect::<Vec<_>>());
        for cluster in &clusters {
            prop_assert!(cluster.members.contains(&cluster.representative));
            let far = cluster.members.iter().map(|i| d(*i, cluster.representative));
            prop_assert_eq!(cluster.radius, far.fold(0.0, f64::max));
            prop_assert!(cluster.radius <= threshold);
        }
        // Representatives of a greedy cover are never nearer than needed: two singletons are far apart.
        let single: Vec<usize> =
            clusters.iter().filter(|c| c.members.len() == 1).map(|c| c.representative).collect();
        for (at, i) in single.iter().enumerate() {
            for j in &single[at + 1..] {
                prop_assert!(d(*i, *j) > threshold);
            }
        }
        prop_assert_eq!(cover(points.len(), threshold, d, d), clusters);
    }
}

#[test]
fn the_medoid_represents_and_not_whoever_was_found_first() {
    let points: [f64; 5] = [0.0, 0.4, 0.5, 0.6, 1.0];
    let d = |i: usize, j: usize| (points[i] - points[j]).abs();
    let clusters = cover(5, 0.5, d, d);
    assert_eq!(clusters.len(), 1);
    assert_eq!(clusters[0].representative, 2);
}

#[test]
fn a_scaled_and_shifted_copy_is_represented_without_error() {
    let graph = response_graph(&small(), None, 0.1, EXTENT);
    assert_eq!(graph.by, Metric::Response);
    assert_eq!(graph.clusters.len(), 3);
    let [one] = graph.certificates[..] else { panic!("{:?}", graph.certificates) };
    assert_eq!(one.removed.min(one.represented_by), 0);
    assert_eq!(one.removed.max(one.represented_by), 1);
    assert!(one.d_response.unwrap() < 1e-6 && one.relative.unwrap() < 1e-6);
    assert!(one.measured.unwrap() < 1e-6, "on rows that the fit did not see");
    assert_eq!(graph.edges.len(), 1);
}

#[test]
fn a_constant_channel_represents_nobody() {
    let graph = response_graph(&small(), None, 1.5, EXTENT);
    let of = |channel: usize| graph.clusters.iter().find(|c| c.members.contains(&channel)).unwrap();
    assert_eq!(of(3).members, [3]);
}

#[test]
fn the_bound_of_a_certificate_is_the_error_on_the_rows_it_was_fitted_on() {
    let rows: Vec<Vec<f64>> =
        (0..500).map(|i| vec![noise(i, 1), noise(i, 1) + 0.2 * noise(i, 9), noise(i, 5)]).collect();
    let response = response(&rows);
    let graph = response_graph(&response, None, 0.3, EXTENT);
    let [one] = graph.certificates[..] else { panic!("{:?}", graph.certificates) };
    assert!(
        response.fit.norm(one.removed) < response.fit.norm(one.represented_by),
        "of two the smaller goes: its error costs less"
    );
    let substitute = response.fit.substitute(one.removed, one.represented_by);
    let fitted = response.fit.error_of(one.removed, one.represented_by, substitute);
    assert!((one.bound.unwrap() - fitted).abs() < 1e-12);
    assert!((one.relative.unwrap() - one.d_response.unwrap().sin()).abs() < 1e-12);
    let measured = one.measured.unwrap();
    assert!(measured > 0.5 * fitted && measured < 2.0 * fitted, "{measured} {fitted}");
}

#[test]
fn edges_beyond_the_bound_are_counted_and_the_nearest_stay() {
    let states: Vec<Option<State>> =
        (0..40).map(|i| State::of(&[1.0, 0.01 * f64::from(i)])).collect();
    let graph = spectral_graph(&states, 0.1, Extent { reach: 0.52, edges: 10 });
    assert_eq!(graph.edges.len(), 10);
    assert_eq!(graph.left_out, 40 * 39 / 2 - 10);
    let all = spectral_graph(&states, 0.1, Extent { reach: 0.52, edges: 1000 });
    assert_eq!(all.edges[..10], graph.edges[..]);
}

#[test]
fn channels_without_weights_are_near_nobody() {
    let states = [State::of(&[1.0]), None, State::of(&[2.0]), None];
    let graph = spectral_graph(&states, 0.1, EXTENT);
    let members: Vec<&[usize]> = graph.clusters.iter().map(|c| c.members.as_slice()).collect();
    assert_eq!(members, [&[0, 2][..], &[1], &[3]]);
}

fn rows(count: usize, inputs: usize) -> Rows {
    Rows {
        inputs,
        outputs: 0,
        x: (0..count * inputs).map(|k| noise(k / inputs, k % inputs + 3) as f32).collect(),
        y: Vec::new(),
        sample: (0..count as u32).collect(),
    }
}

fn weights(outputs: usize, inputs: usize, seed: usize) -> Matrix {
    let at = |k: usize| noise(k / inputs + seed, k % inputs) as f32;
    Matrix { rows: outputs, cols: inputs, data: (0..outputs * inputs).map(at).collect() }
}

#[test]
fn a_scaled_layer_substitutes_the_other_and_a_rotated_one_only_after_rotating_back() {
    let (a, rows) = (weights(3, 5, 1), rows(200, 5));
    let scaled = Matrix { data: a.data.iter().map(|v| v * -0.5).collect(), ..a.clone() };
    let found = compare_rows(&a, &scaled, &rows).unwrap().unwrap();
    assert!(found.d_data < 1e-3 && found.error < 1e-3, "{found:?}");
    let mut rotated = a.clone();
    rotated.data.rotate_left(5);
    let found = compare_rows(&a, &rotated, &rows).unwrap().unwrap();
    assert!(found.d_data < 1e-3 && found.error > 0.3, "{found:?}");
    let other = compare_rows(&a, &weights(3, 5, 50), &rows).unwrap().unwrap();
    assert!(other.d_data > 0.1, "{other:?}");
    let nothing = Matrix { data: vec![0.0; 15], ..a.clone() };
    assert_eq!(compare_rows(&a, &nothing, &rows).unwrap(), None);
}

fn fixture(name: &str) -> Model {
    let path = format!("{}/tests/models/fixtures/{name}.onnx", env!("CARGO_MANIFEST_DIR"));
    Model::decode(std::fs::read(path).unwrap().into()).unwrap()
}

const OPTIONS: Options = Options { augment: Augment::Affine, threshold: 0.1 };

#[derive(Default)]
struct Memory {
    kept: BTreeMap<Digest, Spectrum>,
    bytes: BTreeMap<Digest, Vec<u8>>,
    /// After so many entries the run is cut off.
    room: Option<usize>,
}

impl Store for Memory {
    fn get(&mut self, key: &Digest) -> Option<Spectrum> {
        self.kept.get(key).cloned()
    }

    fn put(&mut self, key: &Digest, spectrum: &Spectrum) {
        if self.room.is_none_or(|room| self.kept.len() < room) {
            self.kept.insert(*key, spectrum.clone());
        }
    }

    fn get_bytes(&mut self, key: &Digest) -> Option<Vec<u8>> {
        self.bytes.get(key).cloned()
    }

    fn put_bytes(&mut self, key: &Digest, bytes: &[u8]) {
        self.bytes.insert(*key, bytes.to_vec());
    }
}

fn run(model: &Model, store: &mut dyn Store) -> Analysis {
    analyze(model, &OPTIONS, store, &Beside::default(), &mut |_| {}).unwrap()
}

#[test]
fn a_second_run_reuses_every_spectrum_and_reports_the_same() {
    let model = fixture("residual");
    let mut store = Memory::default();
    let mut first = run(&model, &mut store);
    let mut second = run(&model, &mut store);
    assert_eq!((first.reused, second.computed), (0, 0));
    assert_eq!(second.reused, second.layers.len());
    for analysis in [&mut first, &mut second] {
        (analysis.reused, analysis.computed) = (0, 0);
        analysis.layers.iter_mut().for_each(|layer| layer.reused = false);
    }
    let text = |analysis: &Analysis| serde_json::to_string(analysis).unwrap();
    assert_eq!(text(&first), text(&second));
    assert_eq!(report::html("m", &first), report::html("m", &second));
}

/// All that a report says of the channels, as text.
fn channels(analysis: &Analysis) -> String {
    let graphs: Vec<_> = analysis.layers.iter().map(|layer| &layer.graph).collect();
    serde_json::to_string(&graphs).unwrap()
}

fn run_at(model: &Model, threshold: f64, store: &mut dyn Store) -> Analysis {
    let options = Options { threshold, ..OPTIONS };
    analyze(model, &options, store, &Beside::default(), &mut |_| {}).unwrap()
}

/// The model with one weight of one operator moved.
fn moved(model: &Model, which: usize) -> Model {
    let graph = crate::onnx::Graph::new(model);
    let weight = crate::onnx::operators(&graph)[which].weight.clone();
    let mut values = graph.floats(&weight).unwrap();
    values.iter_mut().enumerate().for_each(|(i, value)| *value += noise(i, 3) as f32);
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let mut patch = crate::onnx::Patch::default();
    let dims = graph.weight_dims(&weight).unwrap();
    patch.constants.insert(weight.clone(), tensor(&weight, DType::F32, &dims, bytes));
    patch.apply(model).unwrap()
}

#[test]
fn kept_reports_of_channels_are_those_that_a_fresh_run_makes() {
    for name in ["residual", "vgg_chain", "conv_transpose", "grouped_conv", "option_a"] {
        let model = fixture(name);
        let mut store = Memory::default();
        let first = channels(&run(&model, &mut store));
        let kept = store.bytes.clone();
        assert_eq!(channels(&run(&model, &mut store)), first, "{name}");
        assert_eq!(store.bytes, kept, "{name}: nothing new was made");
        // A version with one other weight, back, and at another threshold.
        let next = moved(&model, 1);
        let fresh = channels(&run(&next, &mut NoStore));
        assert_eq!(channels(&run(&next, &mut store)), fresh, "{name}");
        assert_eq!(channels(&run(&model, &mut store)), first, "{name}");
        let wider = channels(&run_at(&model, 0.4, &mut NoStore));
        assert_eq!(channels(&run_at(&model, 0.4, &mut store)), wider, "{name}");
    }
}

#[test]
fn a_report_is_found_by_all_that_it_is_made_from() {
    let model = fixture("residual");
    let graph = crate::onnx::Graph::new(&model);
    let operators = crate::onnx::operators(&graph);
    let (a, b) = (&operators[0], &operators[1]);
    let rows = |by: f64| -> Vec<Vec<f64>> {
        (0..20).map(|i| (0..4).map(|j| by * noise(i, j)).collect()).collect()
    };
    let (one, other) = (response(&rows(1.0)), response(&rows(1.001)));
    let key = |operator, reader, response: Option<&Response>, threshold| {
        let options = Options { threshold, ..OPTIONS };
        kept::key(&graph, operator, reader, response, &options).unwrap()
    };
    let all = [
        key(a, None, None, 0.1),
        key(b, None, None, 0.1),
        key(a, Some(b), None, 0.1),
        key(a, None, Some(&one), 0.1),
        key(a, None, Some(&other), 0.1),
        key(a, None, None, 0.2),
    ];
    let distinct: std::collections::BTreeSet<Digest> = all.into_iter().collect();
    assert_eq!(distinct.len(), all.len());
    assert_eq!(key(a, None, Some(&response(&rows(1.0))), 0.1), all[3]);
    let other = moved(&model, 0);
    let other = crate::onnx::Graph::new(&other);
    assert_ne!(kept::key(&other, a, None, None, &OPTIONS).unwrap(), all[0]);
}

#[test]
fn a_model_has_one_digest_whether_its_weights_were_hashed_before_or_not() {
    for name in ["residual", "constants_hardswish", "if_node", "f16_throughout"] {
        let model = fixture(name);
        let whole = model.digest().unwrap();
        let graph = crate::onnx::Graph::new(&model);
        for (weight, _) in graph.weights() {
            let bytes = graph.weight_bytes(weight).unwrap().unwrap();
            assert_eq!(graph.weight_digest(weight).unwrap(), Some(Digest::of(&bytes)), "{name}");
        }
        assert_eq!(graph.model_digest().unwrap(), whole, "{name}");
        if name != "f16_throughout" {
            assert_ne!(moved(&model, 0).digest().unwrap(), whole, "{name}");
        }
        let mut proto = model.proto().clone();
        proto.graph.get_or_insert_default().name = Some("another".to_owned());
        assert_ne!(Model::from_proto(proto).unwrap().digest().unwrap(), whole, "{name}");
    }
}

#[test]
fn an_interrupted_run_goes_on_where_it_stopped() {
    let model = fixture("vgg_chain");
    let mut store = Memory { room: Some(2), ..Memory::default() };
    let whole = run(&model, &mut store);
    store.room = None;
    let again = run(&model, &mut store);
    assert_eq!(again.reused, 2);
    assert_eq!(again.computed, whole.layers.len() - 2);
}

/// A chain of square matrix products.
fn chain(weights: &[Vec<f32>]) -> Model {
    use crate::onnx::proto::{
        GraphProto, ModelProto, NodeProto, OperatorSetIdProto, ValueInfoProto,
    };
    let value = |name: String| ValueInfoProto { name: Some(name), ..Default::default() };
    let mut graph = GraphProto {
        name: Some("chain".to_owned()),
        input: vec![value("x0".to_owned())],
        output: vec![value(format!("x{}", weights.len()))],
        ..Default::default()
    };
    for (i, weight) in weights.iter().enumerate() {
        let side = weight.len().isqrt();
        let bytes: Vec<u8> = weight.iter().flat_map(|value| value.to_le_bytes()).collect();
        let name = format!("w{i}");
        graph.initializer.push(tensor(&name, DType::F32, &[side, side], bytes));
        graph.node.push(NodeProto {
            op_type: Some("MatMul".to_owned()),
            name: Some(format!("product{i}")),
            input: vec![format!("x{i}"), name],
            output: vec![format!("x{}", i + 1)],
            ..Default::default()
        });
    }
    let opset = OperatorSetIdProto { version: Some(17), ..Default::default() };
    let (graph, opset_import) = (graph.into(), vec![opset]);
    Model::from_proto(ModelProto { ir_version: Some(8), graph, opset_import, ..Default::default() })
        .unwrap()
}

fn with_earlier(model: &Model, earlier: &Model, options: &Options, store: &mut Memory) -> Analysis {
    let beside = Beside { earlier: Some(earlier), ..Beside::default() };
    analyze(model, options, store, &beside, &mut |_| {}).unwrap()
}

proptest! {
    #[test]
    fn what_an_earlier_version_lends_is_as_near_as_stated_and_moves_no_pair_across_the_threshold(
        first in prop::collection::vec(prop::collection::vec(-1.0f32..1.0, 25), 4),
        steps in prop::collection::vec((0usize..5, -5.0f32..-1.0), 1..5),
        threshold in 0.02f64..0.6,
    ) {
        let options = Options { augment: Augment::Affine, threshold };
        let (mut store, mut weights) = (Memory::default(), first);
        let mut version = chain(&weights);
        analyze(&version, &options, &mut store, &Beside::default(), &mut |_| {}).unwrap();
        for (which, size) in steps {
            let chosen = |(i, _): &(usize, &mut Vec<f32>)| which == 4 || *i == which;
            for (i, layer) in weights.iter_mut().enumerate().filter(chosen) {
                let change = |j: usize| noise(i + 3, j) as f32 * 10f32.powf(size);
                layer.iter_mut().enumerate().for_each(|(j, value)| *value += change(j));
            }
            let next = chain(&weights);
            let found = with_earlier(&next, &version, &options, &mut store);
            let fresh = analyze(&next, &options, &mut NoStore, &Beside::default(), &mut |_| {});
            let fresh = fresh.unwrap();
            prop_assert_eq!(found.computed + found.reused + found.lent, found.layers.len());
            for (a, b) in found.layers.iter().zip(&fresh.layers) {
                let state = |layer: &LayerReport| State::of(&layer.values).unwrap();
                let moved = state(a).fubini_study(&state(b));
                prop_assert!(moved <= a.drift + 1e-7, "{moved} {}", a.drift);
                prop_assert!(a.drift <= crate::limits::LENT_DRIFT);
                prop_assert_eq!(a.lent && a.drift == 0.0, false);
            }
            let sides = |analysis: &Analysis| -> BTreeMap<(usize, usize), bool> {
                let near = |pair: &LayerPair| ((pair.a, pair.b), pair.d_fs <= threshold);
                analysis.pairs.iter().map(near).collect()
            };
            prop_assert_eq!(sides(&found), sides(&fresh));
            version = next;
        }
    }
}

#[test]
fn small_changes_are_lent_until_their_sum_is_too_large_and_large_ones_never() {
    let weight = |k: usize| (0..64).map(|i| noise(i, k) as f32).collect::<Vec<_>>();
    let scaled = |by: f32| {
        // Each weight another way, or the state would not move at all.
        let one = |(i, value): (usize, f32)| value * (1.0 + by * noise(i, 7) as f32);
        let far: Vec<f32> = weight(2).iter().map(|value| value * value).collect();
        chain(&[
            weight(1).into_iter().enumerate().map(one).collect(),
            if by > 0.0 { far } else { weight(2) },
        ])
    };
    let mut store = Memory::default();
    let mut version = scaled(0.0);
    run(&version, &mut store);
    let mut lent = 0;
    for step in 1..20u8 {
        let next = scaled(0.004 * f32::from(step));
        let found = with_earlier(&next, &version, &OPTIONS, &mut store);
        assert!(!found.layers[1].lent, "changed beyond recognition, then not at all");
        if !found.layers[0].lent {
            assert_eq!(found.layers[0].drift, 0.0);
            break;
        }
        lent += 1;
        version = next;
    }
    assert!((2..12).contains(&lent), "{lent}");
}

#[test]
fn operators_that_cannot_be_analysed_are_named_and_stop_nothing() {
    for (name, op) in
        [("custom_op", "SpinNetwork"), ("if_node", "If"), ("f16_weights_cast", "Conv")]
    {
        let found = run(&fixture(name), &mut NoStore);
        assert!(found.passed_over.iter().any(|node| node.op.contains(op)), "{name}: {found:?}");
    }
}

#[test]
fn every_sound_fixture_has_a_spectrum_in_every_layer() {
    let dir = format!("{}/tests/models/fixtures", env!("CARGO_MANIFEST_DIR"));
    let mut seen = 0;
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|e| e != "onnx") {
            continue;
        }
        let model = Model::decode(std::fs::read(&path).unwrap().into()).unwrap();
        for layer in run(&model, &mut NoStore).layers {
            assert_eq!(layer.problem, None, "{}", path.display());
            assert_eq!(layer.values.len(), layer.matrix.0.min(layer.matrix.1));
            assert!(layer.values.is_sorted_by(|a, b| a >= b) && layer.sigma1 > 0.0);
            assert!(layer.effective_rank <= layer.values.len() as f64 + 1e-9);
            seen += 1;
        }
    }
    assert!(seen > 50, "{seen}");
}

#[test]
fn equal_weights_are_found_by_content_wherever_they_stand() {
    let model = fixture("vgg_chain");
    let (layers, _) = crate::spectra::layers(&crate::onnx::Graph::new(&model));
    let operators: Vec<_> = layers.iter().filter_map(|layer| layer.operator()).collect();
    let same = |a: usize, b: usize| {
        (operators[a].outputs, operators[a].row_len())
            == (operators[b].outputs, operators[b].row_len())
    };
    let pair = (0..operators.len())
        .flat_map(|a| (a + 1..operators.len()).map(move |b| (a, b)))
        .find(|(a, b)| same(*a, *b));
    let Some((a, b)) = pair else { return assert!(run(&model, &mut NoStore).identical.is_empty()) };
    let mut proto = model.proto().clone();
    let graph = proto.graph.get_or_insert_default();
    let of = |name: &str| graph.initializer.iter().position(|t| t.name.as_deref() == Some(name));
    let (from, to) = (of(&operators[a].weight).unwrap(), of(&operators[b].weight).unwrap());
    graph.initializer[to].raw_data = graph.initializer[from].raw_data.clone();
    let found = run(&Model::from_proto(proto).unwrap(), &mut NoStore).identical;
    assert_eq!(found.len(), 1);
    assert!(!found[0].shared && found[0].saves_bytes > 0, "{found:?}");
}

#[test]
fn the_response_is_taken_behind_a_decomposed_activation() {
    let model = fixture("constants_hardswish");
    let graph = crate::onnx::Graph::new(&model);
    let operators = crate::onnx::operators(&graph);
    let first = &operators[0];
    let value = response_value(&graph, first);
    assert_ne!(value, first.output);
    assert!(operators.iter().any(|operator| operator.input == value), "{value}");
}

#[test]
fn a_hostile_name_cannot_leave_its_place_on_the_page() {
    let mut analysis = run(&fixture("mlp_gemm"), &mut NoStore);
    let evil = "</script><script>alert(1)</script>{{data}}";
    analysis.layers[0].name = evil.to_owned();
    let page = report::html(evil, &analysis);
    assert!(!page.contains("<script>alert"));
    assert_eq!(page.matches("</script>").count(), 2);
    assert!(
        !page.contains("http://") || page.matches("http://").count() == 1,
        "only SVG's name space"
    );
    assert!(!page.contains("https://"));
}

#[test]
fn a_page_stays_small_whatever_the_model() {
    let mut analysis = run(&fixture("vgg_chain"), &mut NoStore);
    let mut wide = analysis.layers[0].clone();
    wide.name = "x".repeat(100_000);
    wide.values = (0..4096).map(|i| 1.0 / f64::from(i + 1)).collect();
    let states: Vec<Option<State>> =
        (0..300).map(|i| State::of(&[1.0, 1e-3 * f64::from(i)])).collect();
    let graph = spectral_graph(&states, 0.1, Extent { reach: 0.52, edges: 2000 });
    wide.graph = Some(ChannelReport {
        by: graph.by,
        value: None,
        states: None,
        redundancy: 0.5,
        nearest: graph.nearest,
        directions: None,
        clusters: graph.clusters,
        certificates: graph.certificates,
        edges: graph.edges,
        edges_left_out: graph.left_out,
    });
    analysis.layers = vec![wide; 5000];
    let page = report::html("big", &analysis);
    assert!(page.len() < 3 << 20, "{} bytes", page.len());
    assert!(page.contains("3000 further layers"));
}
