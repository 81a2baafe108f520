//! Attention that projects what it reads by itself: written out it computes the same and lets the stream before
//! it go; what a ladder keeps is of the model's own form again.

#[path = "nets/counting.rs"]
mod counting;
#[path = "nets/models.rs"]
mod models;
#[path = "nets/mod.rs"]
mod nets;
#[path = "nets/subject.rs"]
mod subject;

use std::borrow::Cow;

use blochd::onnx::proto::{AttributeProto, NodeProto, ValueInfoProto};
use blochd::onnx::{DType, Graph, Model, attr_float, attr_ints, tensor};
use blochd::surgery::attention::{project_inside, project_outside};
use counting::{ladder, options};
use nets::{Chance, Net, attr_int};
use subject::{Subject, check_cut, difference};

const WIDTH: usize = 6;
const STREAM: usize = 10;
const ROWS: usize = 5;
const HEADS: usize = 3;

/// What an attention is given beside what it projects.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Given {
    Nothing,
    NoBias,
    MaskedTokens,
    MaskedPairs,
    Lengths,
    ScoresBias,
    Narrow,
    Causal,
    Scaled,
}

const ALL: [Given; 9] = [
    Given::Nothing,
    Given::NoBias,
    Given::MaskedTokens,
    Given::MaskedPairs,
    Given::Lengths,
    Given::ScoresBias,
    Given::Narrow,
    Given::Causal,
    Given::Scaled,
];

/// An attention of three heads of four numbers over `x`, and the width of what it says.
fn attention(net: &mut Net, x: &str, given: Given) -> (String, usize) {
    let value = if given == Given::Narrow { 6 } else { 12 };
    let all = 24 + value;
    let (weight, bias) = (net.weight(&[STREAM, all]), net.reals(&[all], |chance| chance.real()));
    let mut attrs: Vec<AttributeProto> = vec![attr_int("num_heads", HEADS as i64)];
    let bias = if given == Given::NoBias { String::new() } else { bias };
    let mut mask = String::new();
    let mut scores = String::new();
    match given {
        Given::Nothing | Given::NoBias => {}
        Given::MaskedTokens => mask = net.ids32(&[2, ROWS], &[1, 1, 1, 0, 0, 1, 1, 1, 1, 0]),
        Given::MaskedPairs => {
            let flags: Vec<i32> = (0..2 * ROWS * ROWS).map(|at| i32::from(at % 4 != 2)).collect();
            mask = net.ids32(&[2, ROWS, ROWS], &flags);
        }
        Given::Lengths => mask = net.ids32(&[2], &[3, 5]),
        Given::ScoresBias => {
            scores = net.reals(&[1, HEADS, ROWS, ROWS], |chance| chance.real());
        }
        Given::Narrow => attrs.push(attr_ints("qkv_hidden_sizes", &[12, 12, 6])),
        Given::Causal => attrs.push(attr_int("unidirectional", 1)),
        Given::Scaled => attrs.push(attr_float("scale", 0.2)),
    }
    let mut inputs = vec![x, &weight, &bias, &mask, "", &scores];
    while inputs.last() == Some(&"") {
        inputs.pop();
    }
    (net.fused("Attention", &inputs, attrs), value)
}

/// A stream of ten channels, which an attention reads and writes to, normalised, and a linear layer behind.
fn network(seed: u64, opset: i64, given: &[Given]) -> Subject {
    let mut net = Net::plain(seed);
    net.opset = opset;
    let image = net.input(WIDTH, ROWS, 1);
    let flat = net.reshape(&image.name, &[0, 0, -1]);
    let tokens = net.transpose(&flat, &[0, 2, 1]);
    let mut stream = net.product(&tokens, WIDTH, STREAM);
    for given in given {
        let (y, wide) = attention(&mut net, &stream, *given);
        let y = net.product(&y, wide, STREAM);
        let [scale, shift] = [(); 2].map(|()| net.reals(&[STREAM], |chance| chance.real()));
        stream = net.fused("SkipLayerNormalization", &[&y, &stream, &scale, &shift], Vec::new());
    }
    let end = net.linear(&stream, STREAM, 4);
    net.output(&end);
    Subject::new(net.model(), &[], seed)
}

fn count(model: &Model, op: &str) -> usize {
    let graph = Graph::new(model);
    (0..graph.nodes().len()).filter(|id| graph.op(*id) == op).count()
}

fn opened(subject: &Subject) -> Subject {
    let model = project_outside(&subject.model, &subject.shapes).unwrap().unwrap();
    Subject::new(model, &[], 3)
}

/// Names of values do not matter, nor where the graph's constants stand.
fn forms(model: &Model) -> Vec<(String, Vec<AttributeProto>)> {
    let graph = Graph::new(model);
    (0..graph.nodes().len()).map(|id| (graph.op(id), graph.node(id).attribute.clone())).collect()
}

#[test]
fn outside_and_inside_compute_the_same_in_every_form() {
    for (seed, given) in ALL.into_iter().enumerate() {
        for opset in [12, 17] {
            let subject = network(seed as u64, opset, &[given]);
            let said = subject.run(&subject.model);
            let outside = project_outside(&subject.model, &subject.shapes).unwrap().unwrap();
            let ops = ["com.microsoft.Attention", "com.microsoft.MultiHeadAttention", "Split"];
            assert_eq!(ops.map(|op| count(&outside, op)), [0, 1, 1], "{given:?}");
            let error = difference(&said, &subject.run(&outside));
            assert!(error < 1e-5, "{given:?} outside differs by {error}");
            let inside = project_inside(&outside).unwrap();
            assert_eq!(forms(&inside), forms(&subject.model), "{given:?}");
            assert_eq!(
                inside.inline_size().unwrap(),
                subject.model.inline_size().unwrap(),
                "{given:?}: something stayed behind"
            );
            assert!(said == subject.run(&inside), "{given:?}");
        }
    }
}

#[test]
fn the_stream_and_the_heads_go_and_the_attention_projects_again() {
    for (seed, given) in ALL.into_iter().enumerate() {
        let subject = network(seed as u64, 17, &[given]);
        let width = |subject: &Subject| {
            let widths = subject.coupling.groups.iter().map(|group| group.width);
            widths.collect::<Vec<usize>>()
        };
        // Heads alone, while the projection stands inside.
        assert_eq!(width(&subject), [HEADS], "{given:?}");
        let outside = opened(&subject);
        let mut found = width(&outside);
        found.sort_unstable();
        assert_eq!(found, [HEADS, STREAM], "{given:?} {:#?}", outside.coupling.frozen);
        for turn in 0..6 {
            let cut = outside.cut(&mut Chance(turn));
            check_cut(&outside, &cut, 1e-4);
            let narrow = outside.apply(&cut);
            let inside = project_inside(&narrow).unwrap();
            assert_eq!(count(&inside, "com.microsoft.Attention"), 1, "{given:?} {cut:?}");
            assert_eq!(count(&inside, "Split"), 0);
            let error = difference(&outside.run(&narrow), &outside.run(&inside));
            assert!(error < 1e-5, "{given:?} {cut:?} differs by {error}");
        }
    }
}

#[test]
fn what_the_other_operator_does_not_know_stays_inside() {
    let plain = network(1, 17, &[Given::Nothing]);
    let with = |change: &dyn Fn(&mut NodeProto)| {
        let mut proto = plain.model.proto().clone();
        let graph = proto.graph.get_or_insert_default();
        let named =
            |name: &str| ValueInfoProto { name: Some(name.to_owned()), ..Default::default() };
        graph.input.push(named("elsewhere"));
        graph.initializer.push(tensor("four", DType::F32, &[1; 4], vec![0; 4]));
        for node in &mut proto.graph.get_or_insert_default().node {
            if node.op_type.as_deref() == Some("Attention") {
                change(node);
            }
        }
        let model = Model::from_proto(proto).unwrap();
        project_outside(&model, &plain.shapes).unwrap().is_some()
    };
    assert!(with(&|_| {}));
    assert!(with(&|node| node.attribute.push(attr_int("do_rotary", 0))));
    assert!(!with(&|node| node.attribute.push(attr_int("do_rotary", 1))));
    assert!(!with(&|node| node.attribute.push(attr_int("unheard_of", 0))));
    assert!(!with(&|node| node.attribute[0] = attr_int("num_heads", 5)));
    assert!(!with(&|node| node.attribute.push(attr_ints("qkv_hidden_sizes", &[12, 6, 18]))));
    assert!(!with(&|node| node.attribute.push(attr_ints("qkv_hidden_sizes", &[i64::MAX; 3]))));
    assert!(!with(&|node| node.input.extend([String::new(), node.input[0].clone()])));
    assert!(!with(&|node| node.output.push("present".to_owned())));
    // A mask of which nothing is known, and one of floats with an axis too many.
    assert!(!with(&|node| node.input.push("elsewhere".to_owned())));
    assert!(!with(&|node| node.input.push("four".to_owned())));
    // Nobody else's attention is touched on the way back.
    let outside = project_outside(&plain.model, &plain.shapes).unwrap().unwrap();
    let mut proto = outside.proto().clone();
    proto.graph.get_or_insert_default().node.iter_mut().for_each(|node| node.doc_string = None);
    let own = Model::from_proto(proto).unwrap();
    assert!(matches!(project_inside(&own).unwrap(), Cow::Borrowed(_)));
}

#[test]
fn a_ladder_narrows_the_stream_and_keeps_the_models_own_form() {
    let subject = network(4, 17, &[Given::Nothing, Given::ScoresBias]);
    let (made, models) = ladder(&subject.model, &options(0.7));
    let [model] = models.as_slice() else { panic!("{:?}", made.not_built) };
    assert_eq!(count(model, "com.microsoft.MultiHeadAttention"), 0);
    let stream = made.coupling.groups.iter().find(|group| group.width == STREAM).unwrap();
    assert!(stream.producers.len() >= 3, "{stream:#?}");
    let rung = &made.rungs[0];
    assert_eq!(rung.digest, model.digest().unwrap());
    assert_eq!(rung.figures.bytes, model.inline_size().unwrap());
    assert!(!rung.cuts.is_empty());
    assert!(subject.run(model)[0].to_f32().unwrap().iter().all(|value| value.is_finite()));
}
