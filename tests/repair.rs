//! Operators that are ranked and repaired though a plain refit does not suit them, held against ONNX Runtime:
//! transposed convolutions, weights that several operators share, products that are scaled.

#[path = "nets/mod.rs"]
mod nets;
#[path = "nets/subject.rs"]
mod subject;

use std::collections::{BTreeMap, BTreeSet};

use blochd::coupling::{Group, blocks};
use blochd::ladder::score::{Scorer, Unmeasured, Unranked};
use blochd::onnx::proto::AttributeProto;
use blochd::onnx::proto::attribute_proto::AttributeType;
use blochd::onnx::{Graph, Model, Tensor, attr_ints, operators};
use blochd::redundancy::selection::Method;
use blochd::spectra::activations::Batch;
use blochd::spectra::rows::Geometry;
use blochd::spectra::sampler::Sampler;
use blochd::surgery::refit::RefitKind;
use blochd::surgery::repair::{Mode, Repair, Repaired};
use blochd::surgery::{Cut, apply, gone};
use nets::{Image, Net, attr_int, attr_text};
use proptest::prelude::*;
use subject::{Subject, engine};

const SAMPLES: usize = 40;

fn batches(subject: &Subject) -> Vec<Batch> {
    vec![subject.inputs.iter().cloned().collect()]
}

/// Mean squared difference of all outputs.
fn error(a: &[Tensor], b: &[Tensor]) -> f32 {
    let squares = a.iter().zip(b).flat_map(|(a, b)| {
        let (a, b) = (a.to_f32().unwrap(), b.to_f32().unwrap());
        assert_eq!(a.len(), b.len());
        a.into_iter().zip(b).map(|(a, b)| (a - b).powi(2)).collect::<Vec<f32>>()
    });
    let squares: Vec<f32> = squares.collect();
    squares.iter().sum::<f32>() / squares.len() as f32
}

struct Outcome {
    cut: Model,
    repaired: Model,
    report: Vec<Repaired>,
    before: f32,
    after: f32,
}

/// Cuts channels of the widest group and repairs what is left.
fn outcome(subject: &Subject, removed: &[usize]) -> Outcome {
    let group = widest(subject);
    let cut = Cut { removed: [(group.id, removed.iter().copied().collect())].into() };
    let model = apply(&subject.model, &subject.coupling, &subject.shapes, &cut).unwrap();
    let (engine, gone) = (engine(), gone(&subject.coupling, &cut).unwrap());
    let repair = Repair {
        engine: &engine,
        dense: &subject.model,
        gone: &gone,
        stands_for: &BTreeMap::new(),
        batches: &batches(subject),
        mode: Mode::Refit,
        seed: 1,
    };
    let dense = subject.run(&subject.model);
    let (repaired, report) = repair.run(model.clone(), &mut |_, _| {}).unwrap();
    let before = error(&dense, &subject.run(&model));
    let after = error(&dense, &subject.run(&repaired));
    Outcome { cut: model, repaired, report, before, after }
}

fn widest(subject: &Subject) -> &Group {
    let groups = subject.coupling.groups.iter();
    groups.max_by_key(|group| group.width).unwrap_or_else(|| panic!("{:#?}", subject.coupling))
}

fn new(net: Net) -> Subject {
    Subject::new(net.model(), &[("free0", SAMPLES)], 5)
}

/// image → convolution to 8 channels → Relu.
fn stem(net: &mut Net) -> Image {
    let x = net.input(3, 6, 6);
    let y = net.conv(&x, 8, 3, 1, 1);
    net.unary("Relu", &y)
}

fn transposed(
    net: &mut Net,
    x: &Image,
    outputs: usize,
    kernel: usize,
    attrs: Vec<AttributeProto>,
) -> String {
    let group = attrs.iter().find(|attr| attr.name.as_deref() == Some("group")).and_then(|a| a.i);
    let weight = net.weight(&[x.c, outputs, kernel, kernel]);
    let bias = net.reals(&[outputs * group.unwrap_or(1) as usize], |chance| chance.real());
    net.node("ConvTranspose", &[&x.name, &weight, &bias], attrs)
}

fn attr_float(name: &str, value: f32) -> AttributeProto {
    AttributeProto {
        name: Some(name.to_owned()),
        r#type: Some(AttributeType::FLOAT),
        f: Some(value),
        ..Default::default()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..Default::default() })]

    #[test]
    fn the_rows_of_a_transposed_convolution_are_what_it_multiplies(
        kernel in 1usize..5, stride in 1usize..4, dilation in 1usize..3, pads in prop::array::uniform4(0usize..3),
        added in 0usize..2, group in prop::sample::select(vec![1usize, 2]), seed in any::<u64>(),
    ) {
        let reach = (kernel - 1) * dilation + 1;
        prop_assume!(pads.iter().all(|pad| *pad < reach) && added < stride);
        let mut net = Net::plain(seed);
        let x = net.input(4, 5, 4);
        let attrs = vec![
            attr_ints("strides", &[stride as i64; 2]),
            attr_ints("dilations", &[dilation as i64; 2]),
            attr_ints("pads", &pads.map(|pad| pad as i64)),
            attr_ints("output_padding", &[added as i64; 2]),
            attr_int("group", group as i64),
        ];
        let y = transposed(&mut net, &x, 3, kernel, attrs);
        net.output(&y);
        let subject = Subject::new(net.model(), &[("free0", 3)], seed);
        let graph = Graph::new(&subject.model);
        let operator = operators(&graph).remove(0);
        let geometry = Geometry::of(&graph, &operator).unwrap();
        let said = subject.run(&subject.model);
        let (matrix, bias) = (operator.matrix(&graph).unwrap(), operator.bias_values(&graph));
        let per_group = operator.outputs / group;
        for g in 0..group {
            let x = std::slice::from_ref(&subject.inputs[0].1);
            let rows = Sampler::new(&geometry, x, &said, 10_000, 1).unwrap().rows(g);
            prop_assert_eq!(rows.count(), said[0].shape[2] * said[0].shape[3] * 3);
            for (x, y) in rows.x.chunks(rows.inputs).zip(rows.y.chunks(rows.outputs)) {
                for (i, wanted) in y.iter().enumerate() {
                    let output = g * per_group + i;
                    let row = &matrix.data[output * matrix.cols..][..matrix.cols];
                    let product: f32 = row.iter().zip(x).map(|(w, x)| w * x).sum();
                    prop_assert!((product + bias[output] - wanted).abs() < 1e-4);
                }
            }
        }
    }
}

/// Eight channels, of which a convolution hears the last four and a transposed one the first four.
fn heard_by_halves(attrs: Vec<AttributeProto>) -> Subject {
    let mut net = Net::plain(7);
    let x = stem(&mut net);
    let mut at = 0;
    let weight = net.reals(&[4, 8, 3, 3], |chance| {
        at += 1;
        if (at - 1) / 9 % 8 < 4 { 0.0 } else { chance.real() }
    });
    let y = net.node("Conv", &[&x.name, &weight], vec![attr_ints("pads", &[1; 4])]);
    net.output(&y);
    let mut at = 0;
    let weight = net.reals(&[8, 4, 3, 3], |chance| {
        at += 1;
        if (at - 1) / 36 < 4 { chance.real() } else { 0.0 }
    });
    let y = net.node("ConvTranspose", &[&x.name, &weight], attrs);
    net.output(&y);
    new(net)
}

#[test]
fn a_channel_that_only_a_transposed_convolution_hears_is_not_free() {
    let subject = heard_by_halves(vec![attr_ints("strides", &[2, 2])]);
    let graph = Graph::new(&subject.model);
    let found = blocks(&graph, &subject.coupling, &subject.shapes);
    let (engine, batches) = (engine(), batches(&subject));
    let group = widest(&subject);
    for method in [Method::Obs, Method::Magnitude, Method::Random] {
        let mut scorer = Scorer::new(&graph, &engine, &found, &batches, method, 1);
        scorer.watch(&subject.coupling.groups, &mut |_, _| {});
        let selection = scorer.score(group).unwrap().selection;
        let all = selection.loss[8];
        for (step, channel) in selection.order.iter().enumerate() {
            let cost = selection.loss[step + 1] - selection.loss[step];
            assert!(cost > 0.005 * all, "{method:?}: {channel} costs {cost} of {all}");
        }
        // Each half is nearly all that its reader hears: both readers lose about everything.
        assert!((1.5..2.1).contains(&all), "{method:?}: {all}");
    }
}

#[test]
fn a_group_with_a_reader_that_cannot_be_measured_is_declined_by_its_name() {
    // Padded by one more at one end than at the other; runtimes disagree at which.
    let same = vec![attr_ints("strides", &[2, 2]), attr_text("auto_pad", "SAME_UPPER")];
    let subject = heard_by_halves(same);
    let graph = Graph::new(&subject.model);
    let found = blocks(&graph, &subject.coupling, &subject.shapes);
    let (engine, batches) = (engine(), batches(&subject));
    let mut scorer = Scorer::new(&graph, &engine, &found, &batches, Method::Obs, 1);
    scorer.watch(&subject.coupling.groups, &mut |_, _| {});
    let refused = scorer.score(widest(&subject)).unwrap_err();
    let last = graph.label(graph.nodes().len() - 1);
    let Unranked::Unmeasured { reader, because } = &refused else { panic!("{refused}") };
    assert_eq!((reader, because), (&last, &Unmeasured::Geometry));
    assert!(refused.to_string().contains(&last), "{refused}");
}

#[test]
fn the_twin_of_a_removed_channel_takes_over_in_a_transposed_convolution() {
    let mut net = Net::plain(3);
    let x = stem(&mut net);
    let attrs = vec![attr_ints("strides", &[2, 2]), attr_ints("pads", &[1; 4])];
    let y = transposed(&mut net, &x, 3, 4, attrs);
    net.output(&y);
    let mut subject = new(net);
    subject.model = subject.with_twins(&widest(&subject).clone(), 2, 5);
    let found = outcome(&subject, &[5]);
    assert_eq!(found.report.last().unwrap().kind, RefitKind::Full);
    assert!(found.after < 0.01 * found.before, "{} {}", found.before, found.after);
}

/// What the constants of an operator's weight are now.
fn weight_of(model: &Model, op: &str) -> Vec<f32> {
    let graph = Graph::new(model);
    let node = (0..graph.nodes().len()).find(|node| graph.op(*node) == op).unwrap();
    graph.floats(graph.input(node, 1).unwrap()).unwrap()
}

fn assert_corrected(found: &Outcome, count: usize) {
    let kinds: Vec<RefitKind> = found.report.iter().map(|one| one.kind).collect();
    let corrected = |kind: &RefitKind| matches!(kind, RefitKind::Bias | RefitKind::Statistics);
    assert_eq!(kinds.iter().filter(|kind| corrected(kind)).count(), count, "{kinds:?}");
    assert!(found.report.iter().all(|one| one.after < one.before), "{:?}", found.report);
    assert!(found.before > 1e-2, "the cut costs nothing");
    assert!(found.after < 0.95 * found.before, "{} {}", found.before, found.after);
}

#[test]
fn a_transposed_convolution_of_unclear_padding_has_its_statistics_corrected() {
    let mut net = Net::plain(3);
    let x = stem(&mut net);
    let same = vec![attr_ints("strides", &[2, 2]), attr_text("auto_pad", "SAME_UPPER")];
    let y = transposed(&mut net, &x, 3, 3, same);
    net.output(&y);
    let found = outcome(&new(net), &[0, 2, 3, 6, 7]);
    assert_corrected(&found, 1);
}

#[test]
fn a_gemm_that_scales_its_terms_has_its_statistics_corrected() {
    for (beta, with_bias) in [(2.0, true), (0.5, false), (0.0, true)] {
        let mut net = Net::plain(11);
        let x = stem(&mut net);
        let x = net.node("GlobalAveragePool", &[&x.name], Vec::new());
        let x = net.node("Flatten", &[&x], Vec::new());
        let (weight, bias) = (net.weight(&[8, 5]), net.reals(&[5], |chance| chance.real()));
        let attrs = vec![attr_float("alpha", 3.0), attr_float("beta", beta)];
        let inputs: &[&str] = if with_bias { &[&x, &weight, &bias] } else { &[&x, &weight] };
        let y = net.node("Gemm", inputs, attrs);
        net.output(&y);
        let found = outcome(&new(net), &[1, 2, 4, 7]);
        assert_corrected(&found, 1);
    }
}

/// Two branches that end in one weight, each with its own bias or none.
fn tied(with_bias: bool) -> Subject {
    let mut net = Net::plain(13);
    let x = net.input(3, 6, 6);
    let shared = net.weight(&[4, 8, 1, 1]);
    for _ in 0..2 {
        let y = net.conv(&x, 8, 3, 1, 1);
        let y = net.unary("Relu", &y);
        let bias = net.reals(&[4], |chance| chance.real());
        let inputs: &[&str] =
            if with_bias { &[&y.name, &shared, &bias] } else { &[&y.name, &shared] };
        let y = net.node("Conv", inputs, Vec::new());
        net.output(&y);
    }
    new(net)
}

#[test]
fn operators_that_share_a_weight_have_their_statistics_corrected_and_the_weight_stays() {
    for with_bias in [true, false] {
        let subject = tied(with_bias);
        let found = outcome(&subject, &[0, 1, 3, 4, 6]);
        assert_corrected(&found, 2);
        let shared = |model: &Model| -> BTreeSet<String> {
            let graph = Graph::new(model);
            let found = operators(&graph).into_iter().filter(|operator| operator.kernel == [1, 1]);
            found.map(|operator| operator.weight).collect()
        };
        assert_eq!(shared(&found.repaired).len(), 1, "the weight is still one");
        let weight = shared(&found.repaired).pop_first().unwrap();
        let of = |model: &Model| Graph::new(model).floats(&weight).unwrap();
        assert_eq!(of(&found.repaired), of(&found.cut));
    }
}

/// Products of tokens with one weight, without a place for a bias.
#[test]
fn where_there_is_no_place_for_a_correction_it_gets_nodes_of_its_own() {
    let mut net = Net::plain(17);
    let tokens = net.tokens(6, 5);
    let shared = net.weight(&[8, 4]);
    for _ in 0..2 {
        let y = net.linear(&tokens, 6, 8);
        let y = net.node("Relu", &[&y], Vec::new());
        let y = net.node("MatMul", &[&y, &shared], Vec::new());
        net.output(&y);
    }
    let subject = new(net);
    let found = outcome(&subject, &[0, 1, 3, 4, 6]);
    assert_corrected(&found, 2);
    let nodes = |model: &Model| model.graph().node.len();
    assert!(nodes(&found.repaired) > nodes(&found.cut));
}

#[test]
fn an_operator_that_a_correction_would_only_harm_is_left_alone() {
    // What is cut is silent: nothing is lost, and nothing can be better than what is there.
    let mut subject = tied(true);
    let group = widest(&subject).id;
    let cut = Cut { removed: [(group, [2, 5].into())].into() };
    subject.model = subject.silenced(&cut);
    let found = outcome(&subject, &[2, 5]);
    assert!(found.before < 1e-8 && found.after < 1e-8, "{} {}", found.before, found.after);
    assert!(found.report.iter().all(|one| one.after <= one.before));
}

#[test]
fn the_weights_of_a_scaled_gemm_move_with_its_outputs() {
    let mut net = Net::plain(11);
    let x = stem(&mut net);
    let x = net.node("GlobalAveragePool", &[&x.name], Vec::new());
    let x = net.node("Flatten", &[&x], Vec::new());
    let (weight, bias) = (net.weight(&[8, 5]), net.reals(&[5], |chance| chance.real()));
    let y = net.node("Gemm", &[&x, &weight, &bias], vec![attr_float("alpha", 3.0)]);
    net.output(&y);
    let found = outcome(&new(net), &[1, 2, 4, 7]);
    let (before, after) = (weight_of(&found.cut, "Gemm"), weight_of(&found.repaired, "Gemm"));
    // One factor an output, if any: columns of the stored weight.
    for output in 0..5 {
        let factors: Vec<f32> =
            (0..4).map(|i| after[i * 5 + output] / before[i * 5 + output]).collect();
        assert!(factors.iter().all(|f| (f - factors[0]).abs() < 1e-4 && *f > 0.0), "{factors:?}");
    }
}
