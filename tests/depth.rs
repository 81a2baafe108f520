//! Residual blocks that are left out, held against ONNX Runtime: with a projection on the shortcut, and with an
//! addition that is fused into the normalisation behind it.

#[path = "nets/mod.rs"]
mod nets;
#[path = "nets/subject.rs"]
mod subject;

use std::collections::BTreeMap;

use blochd::coupling::{Block, blocks};
use blochd::ladder::plan::{Known, Plan};
use blochd::ladder::quality::{agreement, outputs};
use blochd::ladder::score::Scorer;
use blochd::onnx::{Graph, Model, attr_ints};
use blochd::redundancy::selection::Method;
use blochd::spectra::activations::Batch;
use blochd::surgery::Gone;
use blochd::surgery::repair::{Mode, Repair};
use nets::{Image, Net, attr_float};
use subject::{Subject, difference, engine, listing};

const WIDTH: usize = 6;

fn known<'a>(graph: &'a Graph<'a>, subject: &'a Subject, blocks: &'a [Block]) -> Known<'a> {
    Known {
        graph,
        shapes: &subject.shapes,
        coupling: &subject.coupling,
        blocks,
        scored: BTreeMap::new(),
        ranked: BTreeMap::new(),
    }
}

/// Leaves out every set of blocks and compares with what the network computes whose branches are empty.
fn compare(subject: &Subject, expected: usize) {
    let graph = Graph::new(&subject.model);
    let found = blocks(&graph, &subject.coupling, &subject.shapes);
    assert_eq!(found.len(), expected, "{found:#?}\n{}", listing(&subject.model));
    let known = known(&graph, subject, &found);
    let dense = subject.run(&subject.model);
    for set in 1usize..1 << expected {
        let bypass: Vec<usize> = (0..expected).filter(|index| set >> index & 1 == 1).collect();
        let lasts: Vec<usize> = bypass.iter().map(|index| found[*index].last).collect();
        let plan = Plan { bypass: bypass.into_iter().collect(), ..Plan::default() };
        let model = known.carry_out(&plan).unwrap();
        let empty = subject.run(&subject.without_rows(&lasts));
        let error = difference(&subject.run(&model), &empty);
        assert!(error < 1e-5, "{set:b}: {error}\n{}\n{}", listing(&subject.model), listing(&model));
        assert!(difference(&dense, &empty) > 1e-2, "the branches say nothing");
        let left = Graph::new(&model);
        for block in plan.bypass.iter().map(|index| &found[*index]) {
            let branch = block.branch.iter().map(|node| &graph.node(*node).output[0]);
            assert!(branch.into_iter().all(|value| left.producer(value).is_none()), "{set:b}");
        }
    }
}

/// How a fused normalisation is used.
#[derive(Clone, Copy, Debug)]
struct Fused {
    /// Whether the stream is the sum, not what is normalised.
    sums: bool,
    bias: bool,
    centred: bool,
    /// Whether the shortcut is the first input.
    first: bool,
}

/// Two blocks that end in a fused normalisation, and a linear layer.
fn fused(form: Fused, opset: i64) -> Subject {
    let mut net = Net::plain(21);
    net.opset = opset;
    let mut stream = net.tokens(WIDTH, 4);
    let mut seen = stream.clone();
    for _ in 0..2 {
        let y = net.product(&seen, WIDTH, 8);
        let y = net.node("Relu", &[&y], Vec::new());
        let y = net.product(&y, 8, WIDTH);
        let mut vector = |around: f32| net.reals(&[WIDTH], |chance| around + 0.5 * chance.real());
        let (scale, shift, bias) = (vector(1.0), vector(0.0), vector(0.0));
        let pair = if form.first { [&stream, &y] } else { [&y, &stream] };
        let mut inputs: Vec<&str> = pair.iter().map(|value| value.as_str()).collect();
        inputs.push(&scale);
        if form.centred {
            inputs.push(&shift);
        }
        if form.bias {
            inputs.push(&bias);
        }
        let kind = match form.centred {
            true => "SkipLayerNormalization",
            false => "SkipSimplifiedLayerNormalization",
        };
        let epsilon = vec![attr_float("epsilon", 1e-3)];
        if form.sums {
            let outputs = net.fused_nodes(kind, &inputs, 4, &[1, 2], epsilon);
            (seen, stream) = (outputs[0].clone(), outputs[3].clone());
        } else {
            stream = net.fused(kind, &inputs, epsilon);
            seen = stream.clone();
        }
    }
    let end = net.linear(&seen, WIDTH, 3);
    net.output(&end);
    if form.sums {
        let end = net.linear(&stream, WIDTH, 3);
        net.output(&end);
    }
    Subject::new(net.model(), &[("free0", 7)], 5)
}

#[test]
fn a_removed_block_before_a_fused_normalisation_computes_what_its_empty_branch_computes() {
    for number in 0..16 {
        let bit = |bit: usize| number >> bit & 1 == 1;
        let form = Fused { sums: bit(0), bias: bit(1), centred: bit(2), first: bit(3) };
        println!("{form:?}");
        compare(&fused(form, 17), 2);
    }
    compare(&fused(Fused { sums: true, bias: true, centred: true, first: false }, 13), 2);
}

#[test]
fn a_fused_block_stays_where_its_sum_or_its_statistics_are_returned() {
    for returned in [None, Some(3)] {
        let mut net = Net::plain(3);
        let stream = net.tokens(WIDTH, 4);
        let y = net.linear(&stream, WIDTH, WIDTH);
        let y = net.node("Tanh", &[&y], Vec::new());
        let y = net.product(&y, WIDTH, WIDTH);
        let [scale, shift] = [(); 2].map(|()| net.reals(&[WIDTH], |chance| chance.real()));
        let inputs = [y.as_str(), &stream, &scale, &shift];
        let made = net.fused_nodes("SkipLayerNormalization", &inputs, 4, &[1, 2], Vec::new());
        // The normalised value keeps its name: it may be returned.
        net.output(&made[0]);
        if let Some(number) = returned {
            net.output(&made[number]);
        }
        let subject = Subject::new(net.model(), &[("free0", 7)], 5);
        if returned.is_none() {
            compare(&subject, 1);
        } else {
            let graph = Graph::new(&subject.model);
            assert_eq!(blocks(&graph, &subject.coupling, &subject.shapes), []);
        }
    }
}

/// How the shortcut of a block goes.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Shortcut {
    Plain,
    Normed,
    Wide,
    Read,
}

/// A block from `x` to `c` channels with a projection, and a Relu.
fn projected(net: &mut Net, x: &Image, c: usize, stride: usize, form: Shortcut) -> Image {
    let y = net.conv(x, 8, 3, stride, 1);
    let y = net.unary("Relu", &y);
    let y = net.conv(&y, c, 3, 1, 1);
    let kernel = if form == Shortcut::Wide { 3 } else { 1 };
    let mut shortcut = net.conv(x, c, kernel, stride, 1);
    if form == Shortcut::Normed {
        shortcut = net.batch_norm(&shortcut, 0.3);
    }
    let sum = net.binary("Add", &y, &shortcut.name);
    if form == Shortcut::Read {
        // Somebody else reads what is inside the branch.
        let end = net.unary("Tanh", &y);
        net.output(&end.name);
    }
    net.unary("Relu", &sum)
}

fn images(seed: u64, form: Shortcut) -> Subject {
    let mut net = Net::plain(seed);
    net.quiet = true;
    let x = net.input(3, 9, 9);
    let stem = net.conv(&x, 6, 3, 1, 1);
    let stem = net.unary("Relu", &stem);
    let y = projected(&mut net, &stem, 10, 2, form);
    let inner = net.conv(&y, 8, 3, 1, 1);
    let inner = net.unary("Relu", &inner);
    let inner = net.conv(&inner, y.c, 3, 1, 1);
    let sum = net.binary("Add", &inner, &y.name);
    let y = net.unary("Relu", &sum);
    let mean = net.node("ReduceMean", &[&y.name], vec![attr_ints("axes", &[2, 3])]);
    net.output(&mean);
    Subject::new(net.model(), &[("free0", 5)], seed)
}

#[test]
fn a_removed_block_with_a_projection_computes_what_its_empty_branch_computes() {
    for seed in 0..4 {
        for form in [Shortcut::Plain, Shortcut::Normed] {
            compare(&images(seed, form), 2);
        }
        // Only the block behind it, whose shortcut is the sum itself.
        for form in [Shortcut::Wide, Shortcut::Read] {
            compare(&images(seed, form), 1);
        }
    }
}

/// A block whose branch is linear and of one place, with a projection; Relu and a convolution behind it, or a
/// further block that is removed as well.
fn linear_block(further: bool) -> Model {
    let mut net = Net::plain(5);
    let x = net.input(3, 10, 10);
    let stem = net.conv(&x, 8, 3, 1, 1);
    let branch = net.conv(&stem, 6, 1, 2, 1);
    let branch = net.conv(&branch, 12, 1, 1, 1);
    let shortcut = net.conv(&stem, 12, 1, 2, 1);
    let shortcut = net.batch_norm(&shortcut, 0.2);
    let sum = net.binary("Add", &branch, &shortcut.name);
    let mut y = net.unary("Relu", &sum);
    if further {
        let inner = net.conv(&y, 12, 1, 1, 1);
        let small = net.reals(&[], |_| 0.02);
        let inner = net.binary("Mul", &inner, &small);
        let sum = net.binary("Add", &inner, &y.name);
        y = net.unary("Relu", &sum);
    }
    let out = net.conv(&y, 4, 3, 1, 1);
    net.output(&out.name);
    net.model()
}

#[test]
fn a_projection_takes_over_what_was_added_to_it() {
    for further in [false, true] {
        let subject = Subject::new(linear_block(further), &[("free0", 60)], 9);
        let graph = Graph::new(&subject.model);
        let found = blocks(&graph, &subject.coupling, &subject.shapes);
        let known = known(&graph, &subject, &found);
        let bypass = (0..1 + usize::from(further)).collect();
        let plan = Plan { bypass, ..Plan::default() };
        let cut = known.carry_out(&plan).unwrap();
        let stands_for = known.stands_for(&plan);
        let last = found.last().unwrap();
        let sum = graph.node(last.add).output[0].clone();
        assert_eq!(stands_for, BTreeMap::from([(found[0].shortcut.clone(), sum)]));
        let batches: Vec<Batch> = vec![subject.inputs.iter().cloned().collect()];
        let engine = engine();
        let explained = |stands_for: &BTreeMap<String, String>| {
            let repair = Repair {
                engine: &engine,
                dense: &subject.model,
                gone: &Gone::new(),
                stands_for,
                batches: &batches,
                mode: Mode::Refit,
                seed: 1,
            };
            let (repaired, _) = repair.run(cut.clone(), &mut |_, _| {}).unwrap();
            let wanted = outputs(&engine, &subject.model, &batches).unwrap();
            let found = outputs(&engine, &repaired, &batches).unwrap();
            agreement(&wanted, &found, &[vec![true; 60]]).explained
        };
        let (with, without) = (explained(&stands_for), explained(&BTreeMap::new()));
        // Behind a further block stands a Relu less: what it makes of the sum is no linear map.
        assert!(with > if further { 0.9 } else { 0.999 }, "{with}");
        assert!(without < with - 0.01, "the network gives nothing to repair: {without} {with}");
        // Nothing is lost but what no linear map says.
        let mut scorer = Scorer::new(&graph, &engine, &found, &batches, Method::Obs, 1);
        let losses = scorer.watch(&[], &mut |_, _| {});
        assert!(losses[0] < 1e-2, "{losses:?}");
    }
}
