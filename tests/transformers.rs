//! Transformer layers, held against ONNX Runtime: what the loss of a neuron counts behind a normalisation, and
//! the repair behind a cut: wherever the bias stands, across a residual addition, and with weights that several
//! layers share.

#[path = "nets/mod.rs"]
mod nets;
#[path = "nets/subject.rs"]
mod subject;

use std::collections::BTreeMap;

use blochd::coupling::{blocks, couple};
use blochd::ladder::plan::{Known, Plan};
use blochd::ladder::quality::{Judges, agreement, outputs};
use blochd::ladder::score::Scorer;
use blochd::onnx::{Graph, Model, Tensor, attr_ints};
use blochd::redundancy::selection::Method;
use blochd::spectra::activations::{Activations, Batch};
use blochd::surgery::repair::{Mode, Repair};
use blochd::surgery::{Cut, Gone, apply, gone};
use nets::{Chance, Net, attr_int};
use subject::{Subject, difference, engine};

const WIDTH: usize = 6;
const ROWS: usize = 5;
const SAMPLES: usize = 40;

/// Where a layer's bias stands.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Bias {
    Own,
    Unsqueezed,
    Shared,
    Fused,
    None,
}

fn vector(net: &mut Net, dims: &[usize]) -> String {
    net.reals(dims, |chance| chance.real())
}

/// tokens + MLP(tokens), twice, then a linear layer.
fn mlps(bias: Bias) -> Subject {
    let mut net = Net::plain(4);
    let mut stream = net.tokens(WIDTH, ROWS);
    let shared = [vector(&mut net, &[8]), vector(&mut net, &[WIDTH])];
    for _ in 0..2 {
        let y = net.product(&stream, WIDTH, 8);
        if bias == Bias::Fused {
            let inner = vector(&mut net, &[8]);
            let y = net.fused("BiasGelu", &[&y, &inner], Vec::new());
            let y = net.product(&y, 8, WIDTH);
            let [scale, shift, outer] = [(); 3].map(|()| vector(&mut net, &[WIDTH]));
            let inputs = [y.as_str(), &stream, &scale, &shift, &outer];
            stream = net.fused("SkipLayerNormalization", &inputs, Vec::new());
            continue;
        }
        let with_bias = |net: &mut Net, y: String, length: usize, shared: &String| {
            let vector = match bias {
                Bias::Own => vector(net, &[length]),
                Bias::Unsqueezed => vector(net, &[1, 1, length]),
                Bias::Shared => shared.clone(),
                Bias::Fused | Bias::None => return y,
            };
            net.node("Add", &[&vector, &y], Vec::new())
        };
        let y = with_bias(&mut net, y, 8, &shared[0]);
        let y = net.node("Relu", &[&y], Vec::new());
        let y = net.product(&y, 8, WIDTH);
        let y = with_bias(&mut net, y, WIDTH, &shared[1]);
        stream = net.node("Add", &[&y, &stream], Vec::new());
    }
    let end = net.linear(&stream, WIDTH, 3);
    net.output(&end);
    Subject::new(net.model(), &[("free0", SAMPLES)], 5)
}

fn batches(subject: &Subject) -> Vec<Batch> {
    vec![subject.inputs.iter().cloned().collect()]
}

/// The cut model as it is and repaired, and what each differs from dense by.
fn repaired(subject: &Subject, cut: &Cut) -> (Model, f32, f32) {
    let model = apply(&subject.model, &subject.coupling, &subject.shapes, cut).unwrap();
    let engine = engine();
    let gone = gone(&subject.coupling, cut).unwrap();
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
    let before = difference(&dense, &subject.run(&model));
    let (model, _) = repair.run(model, &mut |_, _| {}).unwrap();
    let after = difference(&dense, &subject.run(&model));
    (model, before, after)
}

#[test]
fn the_twin_of_a_removed_neuron_takes_over_wherever_the_bias_stands() {
    for bias in [Bias::Own, Bias::Unsqueezed, Bias::Shared, Bias::Fused, Bias::None] {
        let mut subject = mlps(bias);
        let inner: Vec<_> =
            subject.coupling.groups.iter().filter(|group| group.width == 8).cloned().collect();
        assert!(!inner.is_empty(), "{bias:?}: {:#?}", subject.coupling);
        let group = &inner[0];
        subject.model = subject.with_twins(group, 2, 5);
        let cut = Cut { removed: [(group.id, [5].into())].into() };
        let (_, before, after) = repaired(&subject, &cut);
        assert!(before > 1e-2, "{bias:?}: the cut costs nothing ({before})");
        assert!(after < 0.1 * before, "{bias:?}: {before} before, {after} after");
    }
}

/// Two layers with one weight, of which one feeds the stream that a further block repairs.
fn tied(fused: bool) -> Subject {
    let mut net = Net::plain(6);
    let tokens = net.tokens(WIDTH, ROWS);
    let hidden = |net: &mut Net| {
        let y = net.linear(&tokens, WIDTH, 8);
        net.node("Relu", &[&y], Vec::new())
    };
    let hidden = [hidden(&mut net), hidden(&mut net)];
    let weight = net.weight(&[8, WIDTH]);
    let parts = hidden.map(|y| net.node("MatMul", &[&y, &weight], Vec::new()));
    let stream = net.node("Add", &[&parts[0], &tokens], Vec::new());
    let inner = net.node("Tanh", &[&stream], Vec::new());
    let end = if fused {
        let y = net.product(&inner, WIDTH, WIDTH);
        let [one, zero] = [1.0, 0.0].map(|value| net.reals(&[WIDTH], |_| value));
        let bias = vector(&mut net, &[WIDTH]);
        net.fused("SkipLayerNormalization", &[&y, &stream, &one, &zero, &bias], Vec::new())
    } else {
        let y = net.linear(&inner, WIDTH, WIDTH);
        net.node("Add", &[&y, &stream], Vec::new())
    };
    net.output(&end);
    let second = net.node("Identity", &[&parts[1]], Vec::new());
    net.output(&second);
    Subject::new(net.model(), &[("free0", SAMPLES)], 5)
}

/// Mean over all rows of each column's difference, the largest.
fn shift(a: &Tensor, b: &Tensor) -> f32 {
    let (x, y) = (a.to_f32().unwrap(), b.to_f32().unwrap());
    let mut sums = [0.0f32; WIDTH];
    x.iter().zip(&y).enumerate().for_each(|(at, (x, y))| sums[at % WIDTH] += x - y);
    sums.iter().fold(0f32, |most, sum| most.max(sum.abs())) / (x.len() / WIDTH) as f32
}

#[test]
fn a_block_makes_up_for_what_its_stream_brings_along_and_a_shared_weight_stays() {
    for fused in [false, true] {
        let subject = tied(fused);
        // Both hidden layers feed the one weight: they are one group.
        let [group] = subject.coupling.groups.as_slice() else { panic!("{:#?}", subject.coupling) };
        let cut = Cut { removed: [(group.id, [0, 1, 2, 3, 4].into())].into() };
        let model = subject.apply(&cut);
        let (repaired, ..) = repaired(&subject, &cut);
        let graph = Graph::new(&repaired);
        let consumer = group.consumers[0].node;
        let weight = graph.input(consumer, 1).unwrap();
        let of = |model: &Model| Graph::new(model).floats(weight).unwrap();
        assert_eq!(of(&repaired), of(&model), "a weight that two layers share was refitted");
        let dense = &subject.run(&subject.model)[0];
        let before = shift(dense, &subject.run(&model)[0]);
        let after = shift(dense, &subject.run(&repaired)[0]);
        assert!(before > 1e-2 && after < 0.3 * before, "fused {fused}: {before}, {after}");
    }
}

/// How a normalisation is written down.
#[derive(Clone, Copy, Debug)]
enum Norm {
    Operator,
    ByHand,
    RootMeanSquare,
    Fused,
}

/// tokens + two neurons, of which the first is heard a hundred times louder in channel 0 than the second in
/// channel 1; a normalisation makes channel 0 a thousand times quieter.
fn loud_and_quiet(form: Norm) -> Subject {
    let mut net = Net::plain(8);
    let tokens = net.tokens(WIDTH, ROWS);
    let y = net.linear(&tokens, WIDTH, 2);
    // No linear map of the tokens says what this says: what stands around the block cannot take it over.
    let y = net.node("Abs", &[&y], Vec::new());
    let mut weights = vec![0.0; 2 * WIDTH].into_iter().enumerate();
    let weight = net.reals(&[2, WIDTH], |_| match weights.next().unwrap().0 {
        0 => 100.0,
        at if at == WIDTH + 1 => 1.0,
        _ => 0.0,
    });
    let y = net.node("MatMul", &[&y, &weight], Vec::new());
    let mut first = [0.001].into_iter();
    let scale = net.reals(&[WIDTH], |_| first.next().unwrap_or(1.0));
    let shift = net.reals(&[WIDTH], |_| 0.1);
    let sum = |net: &mut Net| net.node("Add", &[&y, &tokens], Vec::new());
    let normed = match form {
        Norm::Fused => {
            let inputs = [y.as_str(), &tokens, &scale, &shift];
            net.fused("SkipLayerNormalization", &inputs, Vec::new())
        }
        Norm::Operator => {
            let sum = sum(&mut net);
            let inputs = [sum.as_str(), &scale, &shift];
            net.node("LayerNormalization", &inputs, vec![attr_int("axis", -1)])
        }
        Norm::ByHand | Norm::RootMeanSquare => {
            let sum = sum(&mut net);
            let axes = || vec![attr_ints("axes", &[-1])];
            let x = if matches!(form, Norm::ByHand) {
                let mean = net.node("ReduceMean", &[&sum], axes());
                net.node("Sub", &[&sum, &mean], Vec::new())
            } else {
                sum
            };
            let squares = net.node("Mul", &[&x, &x], Vec::new());
            let variance = net.node("ReduceMean", &[&squares], axes());
            let root = net.node("Sqrt", &[&variance], Vec::new());
            let x = net.node("Div", &[&x, &root], Vec::new());
            net.node("Mul", &[&scale, &x], Vec::new())
        }
    };
    let end = net.linear(&normed, WIDTH, 3);
    net.output(&end);
    Subject::new(net.model(), &[("free0", SAMPLES)], 5)
}

#[test]
fn an_error_counts_as_the_next_normalisation_lets_it_through() {
    for form in [Norm::Operator, Norm::ByHand, Norm::RootMeanSquare, Norm::Fused] {
        let subject = loud_and_quiet(form);
        let graph = Graph::new(&subject.model);
        let blocks = blocks(&graph, &subject.coupling, &subject.shapes);
        let (engine, batches) = (engine(), batches(&subject));
        let mut scorer = Scorer::new(&graph, &engine, &blocks, &batches, Method::Obs, 1);
        let groups = &subject.coupling.groups;
        let losses = scorer.watch(groups, &mut |_, _| {});
        let [group] = groups.as_slice() else { panic!("{form:?}: {:#?}", subject.coupling) };
        let scored = scorer.score(group).unwrap();
        assert_eq!(scored.selection.order, [0, 1], "{form:?}: {:?}", scored.selection);
        // Without both neurons the branch is gone: the loss of removing the block is of the same size, less
        // what a linear map of the tokens explains.
        let both = scored.selection.loss[2];
        assert!(losses.iter().all(|loss| (0.1..1.5).contains(&(loss / both))), "{losses:?} {both}");
        assert_eq!(losses.len(), 1, "{form:?}");
    }
}

#[test]
fn a_further_output_of_a_node_is_computed_though_the_first_is_known() {
    let mut net = Net::plain(3);
    let x = net.input(4, 2, 2);
    let y = net.conv(&x, 4, 1, 1, 1);
    let parts = net.split(&y.name, &[2, 2]);
    let sum = net.node("Add", &[&parts[0], &parts[1]], Vec::new());
    let mean = net.node("ReduceMean", &[&sum], vec![attr_ints("axes", &[2, 3])]);
    net.output(&mean);
    let subject = Subject::new(net.model(), &[], 1);
    let engine = engine();
    let mut known = Activations::new(&engine, &batches(&subject));
    known.fetch(&subject.model, &[&parts[0]]).unwrap();
    known.fetch(&subject.model, &[&parts[1], &sum]).unwrap();
    let values: BTreeMap<&str, Vec<f32>> = [&parts[0], &parts[1], &sum]
        .map(|name| (name.as_str(), known.get(name).unwrap()[0].to_f32().unwrap()))
        .into();
    let mut chance = Chance(1);
    for _ in 0..8 {
        let at = chance.below(values[sum.as_str()].len());
        let made = values[parts[0].as_str()][at] + values[parts[1].as_str()][at];
        assert!((made - values[sum.as_str()][at]).abs() < 1e-6);
    }
}

/// stem → block with a linear branch → Relu → convolution.
fn linear_block(seed: u64) -> Model {
    let mut net = Net::plain(seed);
    let x = net.input(3, 10, 10);
    let stem = net.conv(&x, 8, 3, 1, 1);
    let branch = net.conv(&stem, 8, 1, 1, 1);
    let sum = net.binary("Add", &branch, &stem.name);
    let active = net.unary("Relu", &sum);
    let out = net.conv(&active, 4, 3, 1, 1);
    net.output(&out.name);
    net.model()
}

fn samples(model: &Model, count: usize) -> Vec<Batch> {
    let mut chance = Chance(9);
    let name = model.graph().input[0].name.clone().unwrap();
    let values: Vec<f32> = (0..count * 300).map(|_| chance.real()).collect();
    vec![Batch::from([(name, Tensor::from_f32(&[count, 3, 10, 10], &values))])]
}

/// A block whose branch is linear is no loss: what stands before it can say the sum itself. What stands
/// behind it could not make up for that, for a Relu lies between.
#[test]
fn what_stands_before_a_removed_block_takes_over_its_branch() {
    let model = linear_block(5);
    let subject = Subject::new(model.clone(), &[], 5);
    let graph = Graph::new(&model);
    let coupling = couple(&graph, &subject.shapes);
    let found = blocks(&graph, &coupling, &subject.shapes);
    assert_eq!(found.len(), 1);
    let known = Known {
        graph: &graph,
        shapes: &subject.shapes,
        coupling: &coupling,
        blocks: &found,
        scored: BTreeMap::new(),
        ranked: BTreeMap::new(),
    };
    let plan = Plan { bypass: [0].into(), ..Plan::default() };
    let cut = known.carry_out(&plan).unwrap();
    let batches = samples(&model, 60);
    let stands_for = known.stands_for(&plan);
    let stem = graph.node(graph.producer(&found[0].shortcut).unwrap());
    assert_eq!(stands_for.keys().collect::<Vec<_>>(), [&stem.output[0]]);
    let engine = engine();
    let explained = |stands_for: &BTreeMap<String, String>| {
        let repair = Repair {
            engine: &engine,
            dense: &model,
            gone: &Gone::new(),
            stands_for,
            batches: &batches,
            mode: Mode::Refit,
            seed: 1,
        };
        let (repaired, _) = repair.run(cut.clone(), &mut |_, _| {}).unwrap();
        let wanted = outputs(&engine, &model, &batches).unwrap();
        let all = Judges::of(&batches, false, |_| true);
        let found = outputs(&engine, &repaired, &all.batches).unwrap();
        agreement(&wanted, &found, &all.counted).explained
    };
    let (with, without) = (explained(&stands_for), explained(&BTreeMap::new()));
    assert!(with > 0.999, "{with}");
    assert!(without < 0.99, "the network gives nothing to repair: {without}");
}
