//! Operators in two of lower rank, held against ONNX Runtime: exact where the weight has that rank, wrong by
//! just what was foretold where it has not, and chosen by a ladder where that is the best cut.

#[path = "nets/counting.rs"]
mod counting;
#[path = "nets/models.rs"]
mod models;
#[path = "nets/mod.rs"]
mod nets;
#[path = "nets/subject.rs"]
mod subject;

use std::collections::BTreeMap;

use blochd::ladder::plan::{Known, Plan};
use blochd::ladder::ranks::{Into2, candidates};
use blochd::ladder::score::Scorer;
use blochd::ladder::task::Options;
use blochd::onnx::{Graph, Model, Operator, Patch, Tensor, attr_ints, operators};
use blochd::redundancy::selection::Method;
use blochd::spectra::activations::Batch;
use blochd::surgery::low_rank::{Factors, can_split, split};
use blochd::surgery::repair::is_held_out;
use blochd::surgery::whitened::Whitened;
use counting::{ladder, options};
use faer::Mat;
use nets::{Chance, Net, attr_int};
use subject::{Subject, difference, engine, listing};

const INPUTS: usize = 12;
const OUTPUTS: usize = 10;
const RANK: usize = 3;

/// outputs × inputs of rank `rank`, and noise of the given size on it.
fn product(
    chance: &mut Chance,
    (outputs, inputs): (usize, usize),
    rank: usize,
    noise: f32,
) -> Mat<f32> {
    let mut random = |rows, cols| Mat::from_fn(rows, cols, |_, _| chance.real());
    let (b, a) = (random(outputs, rank), random(rank, inputs));
    let scale = (3.0 / rank as f32).sqrt() / (inputs as f32).sqrt() * 3.0f32.sqrt();
    let rest = random(outputs, inputs);
    Mat::from_fn(outputs, inputs, |i, j| {
        let sum: f32 = (0..rank).map(|k| b[(i, k)] * a[(k, j)]).sum();
        sum * scale + rest[(i, j)] * noise
    })
}

/// A constant of the given matrix, transposed where its rows are the inputs.
fn stored(net: &mut Net, matrix: &Mat<f32>, transposed: bool, more: &[usize]) -> String {
    let (rows, cols) = (matrix.nrows(), matrix.ncols());
    let (dims, at): ([usize; 2], Box<dyn Fn(usize) -> f32>) = if transposed {
        ([cols, rows], Box::new(|place| matrix[(place % rows, place / rows)]))
    } else {
        ([rows, cols], Box::new(|place| matrix[(place / cols, place % cols)]))
    };
    let mut places = 0..;
    net.reals(&[&dims, more].concat(), |_| at(places.next().unwrap()))
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Form {
    Conv { stride: i64, bias: bool },
    Gemm { trans_b: bool, trans_a: bool, bias: Option<bool>, scaled: bool },
    MatMul { rows: bool, bias: bool },
}

fn vector(net: &mut Net, dims: &[usize]) -> String {
    net.reals(dims, |chance| chance.real())
}

/// One operator of rank [`RANK`] and a Relu.
fn one(form: Form, seed: u64) -> Subject {
    let mut net = Net::plain(seed);
    let matrix = product(&mut net.chance, (OUTPUTS, INPUTS), RANK, 0.0);
    let made = match form {
        Form::Conv { stride, bias } => {
            let x = net.input(INPUTS, 5, 5);
            let weight = stored(&mut net, &matrix, false, &[1, 1]);
            let attrs = vec![
                attr_ints("strides", &[stride; 2]),
                attr_ints("pads", &[0; 4]),
                attr_ints("kernel_shape", &[1, 1]),
            ];
            let bias = bias.then(|| vector(&mut net, &[OUTPUTS]));
            let inputs: Vec<&str> =
                [x.name.as_str(), &weight].into_iter().chain(bias.as_deref()).collect();
            net.node("Conv", &inputs, attrs)
        }
        Form::Gemm { trans_b, trans_a, bias, scaled } => {
            let x = net.input(INPUTS, 1, 1);
            let flat = net.reshape(&x.name, &[-1, INPUTS as i64]);
            let flat = if trans_a { net.transpose(&flat, &[1, 0]) } else { flat };
            let weight = stored(&mut net, &matrix, !trans_b, &[]);
            let mut attrs =
                vec![attr_int("transB", trans_b.into()), attr_int("transA", trans_a.into())];
            if scaled {
                attrs.extend([nets::attr_float("alpha", 0.5), nets::attr_float("beta", -2.0)]);
            }
            let dims: &[usize] = if bias == Some(true) { &[1, OUTPUTS] } else { &[OUTPUTS] };
            let bias = bias.map(|_| vector(&mut net, dims));
            let inputs: Vec<&str> =
                [flat.as_str(), &weight].into_iter().chain(bias.as_deref()).collect();
            net.node("Gemm", &inputs, attrs)
        }
        Form::MatMul { rows, bias } => {
            let x = if rows {
                net.tokens(INPUTS, 4)
            } else {
                let x = net.input(INPUTS, 1, 1);
                net.reshape(&x.name, &[-1, INPUTS as i64])
            };
            let weight = stored(&mut net, &matrix, true, &[]);
            let y = net.node("MatMul", &[&x, &weight], Vec::new());
            let bias = bias.then(|| vector(&mut net, &[OUTPUTS]));
            bias.map_or(y.clone(), |bias| net.node("Add", &[&y, &bias], Vec::new()))
        }
    };
    let end = net.node("Relu", &[&made], Vec::new());
    net.output(&end);
    Subject::new(net.model(), &[("free0", 7)], seed)
}

/// The model with its only operator in two of the given rank, made from its weight alone.
fn in_two(model: &Model, rank: usize) -> Model {
    let graph = Graph::new(model);
    let found = operators(&graph);
    let [operator] = found.as_slice() else { panic!("{}", listing(model)) };
    assert!(can_split(&graph, operator));
    let matrix = operator.matrix(&graph).unwrap();
    let weight =
        Mat::from_fn(matrix.rows, matrix.cols, |i, j| f64::from(matrix.data[i * matrix.cols + j]));
    let alike = Mat::identity(matrix.cols, matrix.cols);
    let directions = Whitened::of(&weight, &alike, rank).unwrap();
    let weights = vec![1.0; matrix.rows];
    let factors = Factors::onto(&directions.first(rank, |_| true), &weights, &matrix).unwrap();
    let mut patch = Patch::default();
    split(&graph, operator, &factors, &mut patch).unwrap();
    patch.apply(model).unwrap()
}

#[test]
fn two_operators_of_a_weights_own_rank_say_what_the_one_said() {
    let conv =
        [1, 2].into_iter().flat_map(|stride| [false, true].map(|bias| Form::Conv { stride, bias }));
    let mut forms: Vec<Form> = conv.collect();
    for trans_b in [false, true] {
        for trans_a in [false, true] {
            for bias in [None, Some(false), Some(true)] {
                for scaled in [false, true] {
                    forms.push(Form::Gemm { trans_b, trans_a, bias, scaled });
                }
            }
        }
    }
    for rows in [false, true] {
        forms.extend([false, true].map(|bias| Form::MatMul { rows, bias }));
    }
    for form in forms {
        let subject = one(form, 3);
        let wanted = subject.run(&subject.model);
        let exact = in_two(&subject.model, RANK);
        let error = difference(&subject.run(&exact), &wanted);
        assert!(error < 1e-5, "{form:?}: {error}\n{}", listing(&exact));
        let graph = Graph::new(&exact);
        assert_eq!(operators(&graph).len(), 2, "{form:?}");
        assert_eq!(graph.nodes().len(), Graph::new(&subject.model).nodes().len() + 1);
        // One rank less is not the same: the comparison sees the factors.
        let error = difference(&subject.run(&in_two(&subject.model, RANK - 1)), &wanted);
        assert!(error > 1e-3, "{form:?}: {error}");
        // Once more: the names of the first time are taken.
        let again: Vec<Operator> = operators(&graph);
        let mut patch = Patch::default();
        let sketch = Factors::sketch(&again[1].matrix(&graph).unwrap(), 2);
        split(&graph, &again[1], &sketch, &mut patch).unwrap();
        subject.run(&patch.apply(&exact).unwrap());
    }
}

#[test]
fn what_reads_more_than_one_place_stays_in_one() {
    let mut net = Net::plain(2);
    let x = net.input(8, 6, 6);
    let padded = {
        let weight = net.weight(&[8, 8, 1, 1]);
        let attrs = vec![attr_ints("pads", &[1; 4])];
        nets::Image { name: net.node("Conv", &[&x.name, &weight], attrs), c: 8, h: 8, w: 8 }
    };
    let wide = net.conv(&padded, 8, 3, 1, 1);
    let grouped = net.conv(&wide, 8, 1, 1, 2);
    net.output(&grouped.name);
    let subject = Subject::new(net.model(), &[], 1);
    let graph = Graph::new(&subject.model);
    let found = operators(&graph);
    assert_eq!(found.len(), 3);
    for operator in &found {
        assert!(!can_split(&graph, operator), "{}", operator.name);
        let sketch = Factors::sketch(&operator.matrix(&graph).unwrap(), 2);
        assert!(split(&graph, operator, &sketch, &mut Patch::default()).is_err());
    }
}

const WIDE: usize = 128;
const SAMPLES: usize = 50;
const ROWS: usize = 6;

/// tokens · W (+ b), W of nearly rank 20, with a normalisation behind it or without.
fn wide(bias: bool) -> Subject {
    let mut net = Net::plain(7);
    let x = net.tokens(WIDE, ROWS);
    let matrix = product(&mut net.chance, (WIDE, WIDE), 20, 0.02);
    let weight = stored(&mut net, &matrix, true, &[]);
    // A mean that a bias can make up for.
    let offset = net.reals(&[WIDE], |_| 0.3);
    let x = net.node("Add", &[&x, &offset], Vec::new());
    let mut y = net.node("MatMul", &[&x, &weight], Vec::new());
    if bias {
        let bias = vector(&mut net, &[WIDE]);
        y = net.node("Add", &[&y, &bias], Vec::new());
    }
    let end = net.node("Identity", &[&y], Vec::new());
    net.output(&end);
    Subject::new(net.model(), &[("free0", SAMPLES)], 5)
}

fn batches(subject: &Subject) -> Vec<Batch> {
    vec![subject.inputs.iter().cloned().collect()]
}

/// Sum over the outputs of the mean squared values (about their mean or about zero), of the samples for which
/// `take` holds.
fn spread(tensor: &Tensor, about_mean: bool, take: fn(u32) -> bool) -> f64 {
    let values = tensor.to_f32().unwrap();
    let (mut sums, mut squares, mut rows) = (vec![0.0; WIDE], 0.0, 0.0);
    for (number, row) in values.chunks(WIDE).enumerate() {
        if take((number / ROWS) as u32) {
            rows += 1.0;
            for (sum, value) in sums.iter_mut().zip(row) {
                *sum += f64::from(*value);
                squares += f64::from(*value).powi(2);
            }
        }
    }
    let means: f64 = sums.iter().map(|sum| (sum / rows).powi(2)).sum();
    squares / rows - if about_mean { means } else { 0.0 }
}

#[test]
fn the_error_is_the_one_that_was_foretold() {
    for bias in [true, false] {
        let subject = wide(bias);
        let graph = Graph::new(&subject.model);
        let (engine, batches) = (engine(), batches(&subject));
        let offered = candidates(&graph, None);
        let (node, ranks) = offered.first_key_value().unwrap();
        assert_eq!(
            ranks,
            &[16, 24, 32, 40, 48],
            "of 128 in steps of 8, at most 0.8 of the products"
        );
        assert_eq!(candidates(&graph, Some(32))[node], [32]);
        let mut scorer = Scorer::new(&graph, &engine, &[], &batches, Method::Obs, 1);
        scorer.in_two = [(*node, 48)].into();
        scorer.watch(&[], &mut |_, _| {});
        let ranked = scorer.ranked.clone();
        let coupling = blochd::coupling::Coupling::default();
        let known = Known {
            graph: &graph,
            shapes: &subject.shapes,
            coupling: &coupling,
            blocks: &[],
            scored: BTreeMap::new(),
            ranked,
        };
        let ranked = &known.ranked[node];
        let dense = &subject.run(&subject.model)[0];
        for rank in ranks {
            let plan = Plan { ranks: [(*node, *rank)].into(), ..Plan::default() };
            let model = known.put_in_two(&plan, subject.model.clone(), Into2::Factors).unwrap();
            let found = &subject.run(&model)[0];
            let minus: Vec<f32> = dense
                .to_f32()
                .unwrap()
                .iter()
                .zip(found.to_f32().unwrap())
                .map(|(a, b)| a - b)
                .collect();
            let minus = Tensor::from_f32(&dense.shape, &minus);
            for (told, take) in [
                (&ranked.tail, (|s| !is_held_out(s)) as fn(u32) -> bool),
                (&ranked.loss, is_held_out),
            ] {
                // Relative to what varies on the rows that are fitted.
                let whole = spread(dense, true, |sample| !is_held_out(sample));
                let error = spread(&minus, bias, take) / whole;
                assert!(
                    (told[*rank] / error - 1.0).abs() < 1e-2,
                    "bias {bias}, rank {rank}: {} foretold, {error} measured",
                    told[*rank]
                );
            }
        }
        assert!(
            ranked.tail[16] > 5.0 * ranked.tail[32],
            "nothing to tell apart: {:?}",
            ranked.tail
        );
    }
}

/// A layer of which `rank` directions count, Tanh, and a small layer.
fn perceptron(rank: usize) -> Model {
    let mut net = Net::plain(11);
    let x = net.tokens(WIDE, ROWS);
    let matrix = product(&mut net.chance, (WIDE, WIDE), rank, 0.01);
    let weight = stored(&mut net, &matrix, true, &[]);
    let y = net.node("MatMul", &[&x, &weight], Vec::new());
    let bias = vector(&mut net, &[WIDE]);
    let y = net.node("Add", &[&y, &bias], Vec::new());
    let two = net.reals(&[], |_| 2.0);
    let y = net.node("Mul", &[&y, &two], Vec::new());
    let y = net.node("Tanh", &[&y], Vec::new());
    let y = net.linear(&y, WIDE, 32);
    net.output(&y);
    net.model()
}

#[test]
fn a_ladder_puts_a_wide_layer_of_low_rank_in_two() {
    let model = perceptron(16);
    let (found, models) = ladder(&model, &options(0.6));
    let [rung] = found.rungs.as_slice() else { panic!("{:?}", found.not_built) };
    let [cut] = rung.in_two.as_slice() else { panic!("{rung:?}") };
    assert_eq!((cut.inputs, cut.outputs), (WIDE, WIDE));
    assert!((16..=48).contains(&cut.rank) && cut.tail < 0.01, "{cut:?}");
    assert!(rung.figures.quality > 0.98, "{:?}", rung.figures);
    assert_eq!(operators(&Graph::new(&models[0])).len(), 3);
    assert!(rung.repairs.iter().any(|repair| repair.operator == cut.operator), "{rung:?}");
    // Without it the same ratio costs more.
    let without = Options { low_rank: false, ..options(0.6) };
    let (other, _) = ladder(&model, &without);
    let quality = other.rungs.first().map_or(0.0, |rung| rung.figures.explained);
    assert!(other.rungs.iter().all(|rung| rung.in_two.is_empty()));
    assert!(quality < rung.figures.explained, "{quality} {:?}", rung.figures);
}
