//! The width of a residual stream that normalisations work along: in every form in which they are written down its
//! channels are a group, what is left of a cut one computes what normalisations compute that do not see what went,
//! and channels that are neutral go for nothing.

#[path = "nets/models.rs"]
mod models;
#[path = "nets/mod.rs"]
mod nets;
#[path = "nets/subject.rs"]
mod subject;

use std::collections::{BTreeMap, BTreeSet};

use blochd::coupling::{Group, Neutral, Reason};
use blochd::ladder::calibration::Samples;
use blochd::ladder::manifest::CalibrationSource;
use blochd::ladder::score::Scorer;
use blochd::ladder::table::LatencyTable;
use blochd::ladder::task::{Options, Task};
use blochd::onnx::{Graph, Model, Patch, attr_float, attr_ints, tensor};
use blochd::redundancy::selection::Method;
use blochd::spectra::activations::Batch;
use blochd::surgery::repair::{Mode, Repair};
use blochd::surgery::{Cut, gone};
use models::Models;
use nets::{Chance, Net, attr_int};
use subject::{Subject, check_cut, difference, engine};

/// Width of the stream, of what is read, and tokens.
const WIDTH: usize = 8;
const READ: usize = 6;
const ROWS: usize = 5;
const SAMPLES: usize = 60;

/// How a normalisation is written down.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Form {
    Operator,
    /// With Pow, Div and all.
    ByHand,
    /// The square as a product, the mean taken off twice, γ first.
    TwiceSubtracted,
    Reciprocal,
    OneOver,
    Fused,
    Embedded,
    RootMeanSquare,
    Simplified,
    RootByHand,
    FusedRoot,
}

const CENTRED: [Form; 7] = [
    Form::Operator,
    Form::ByHand,
    Form::TwiceSubtracted,
    Form::Reciprocal,
    Form::OneOver,
    Form::Fused,
    Form::Embedded,
];

const NOT_CENTRED: [Form; 4] =
    [Form::RootMeanSquare, Form::Simplified, Form::RootByHand, Form::FusedRoot];

/// γ and β.
fn vectors(net: &mut Net) -> (String, String) {
    let scale = net.reals(&[WIDTH], |chance| 1.0 + chance.real() * 0.5);
    let shift = net.reals(&[WIDTH], |chance| chance.real() * 0.3);
    (scale, shift)
}

fn mean(net: &mut Net, x: &str, axis: i64) -> String {
    net.node("ReduceMean", &[x], vec![attr_ints("axes", &[axis])])
}

fn number(net: &mut Net, value: f32) -> String {
    net.reals(&[], |_| value)
}

fn by_hand(net: &mut Net, x: &str, form: Form, little: &str) -> String {
    let (scale, shift) = vectors(net);
    let axis = if form == Form::TwiceSubtracted { 2 } else { -1 };
    let taken = |net: &mut Net| {
        let middle = mean(net, x, axis);
        net.node("Sub", &[x, &middle], Vec::new())
    };
    let rooted = matches!(form, Form::RootByHand | Form::FusedRoot);
    let base = if rooted { x.to_owned() } else { taken(net) };
    let squares = if form == Form::TwiceSubtracted {
        net.node("Mul", &[&base, &base], Vec::new())
    } else {
        let two = number(net, 2.0);
        net.node("Pow", &[&base, &two], Vec::new())
    };
    let variance = mean(net, &squares, axis);
    let under = net.node("Add", &[&variance, little], Vec::new());
    let root = net.node("Sqrt", &[&under], Vec::new());
    let made = match form {
        Form::TwiceSubtracted => {
            // Both differences are of the one mean.
            let middle = mean_of(net, &base);
            let again = net.node("Sub", &[x, &middle], Vec::new());
            net.node("Div", &[&again, &root], Vec::new())
        }
        Form::Reciprocal => {
            let inverse = net.node("Reciprocal", &[&root], Vec::new());
            net.node("Mul", &[&inverse, &base], Vec::new())
        }
        Form::OneOver => {
            let one = number(net, 1.0);
            let inverse = net.node("Div", &[&one, &root], Vec::new());
            net.node("Mul", &[&base, &inverse], Vec::new())
        }
        _ => net.node("Div", &[&base, &root], Vec::new()),
    };
    if rooted {
        return net.node("Mul", &[&made, &scale], Vec::new());
    }
    let made = net.node("Mul", &[&scale, &made], Vec::new());
    net.node("Add", &[&made, &shift], Vec::new())
}

/// The mean that a difference takes off.
fn mean_of(net: &Net, difference: &str) -> String {
    net.input_of(difference, 1)
}

/// x normalised, in any form of one term.
fn norm(net: &mut Net, x: &str, form: Form, little: &str) -> String {
    let epsilon = attr_float("epsilon", 1e-2);
    match form {
        Form::Operator | Form::Embedded => {
            let (scale, shift) = vectors(net);
            let attrs = vec![attr_int("axis", -1), epsilon];
            net.node("LayerNormalization", &[x, &scale, &shift], attrs)
        }
        Form::RootMeanSquare => {
            let (scale, _) = vectors(net);
            net.node("RMSNormalization", &[x, &scale], vec![attr_int("axis", 2), epsilon])
        }
        Form::Simplified => {
            let (scale, _) = vectors(net);
            net.node("SimplifiedLayerNormalization", &[x, &scale], vec![epsilon])
        }
        _ => by_hand(net, x, form, little),
    }
}

/// Embeddings, positions and a linear layer write a stream; two branches, of attention and of neurons, read it
/// behind normalisations of one form and add to it.
fn transformer(form: Form, seed: u64) -> Subject {
    let mut net = Net::plain(seed);
    if form == Form::RootMeanSquare {
        net.opset = 23;
    }
    let little = number(&mut net, 1e-2);
    let mut stream = written(&mut net, form);
    let mut seen = None;
    for branch in [heads, neurons] {
        let read = match seen.take() {
            Some(seen) => seen,
            None => norm(&mut net, &stream, form, &little),
        };
        let made = branch(&mut net, &read);
        match form {
            Form::Fused | Form::FusedRoot => {
                let (scale, shift) = vectors(&mut net);
                let bias = net.reals(&[WIDTH], |chance| chance.real());
                let (kind, inputs): (_, Vec<&str>) = if form == Form::Fused {
                    ("SkipLayerNormalization", vec![&made, &stream, &scale, &shift, &bias])
                } else {
                    ("SkipSimplifiedLayerNormalization", vec![&stream, &made, &scale, &bias])
                };
                let (after, sum) = net.skip_norm(kind, &inputs);
                (stream, seen) = (sum, Some(after));
            }
            _ => stream = net.node("Add", &[&made, &stream], Vec::new()),
        }
    }
    let read = match seen {
        Some(seen) => seen,
        None => norm(&mut net, &stream, form, &little),
    };
    let end = net.linear(&read, WIDTH, 3);
    net.output(&end);
    Subject::new(net.model(), &[("free0", SAMPLES)], seed)
}

fn written(net: &mut Net, form: Form) -> String {
    let tokens = net.tokens(READ, ROWS);
    let made = net.linear(&tokens, READ, WIDTH);
    let table = net.reals(&[9, WIDTH], |chance| chance.real());
    let ids = net.ints(&[3, 1, 4, 1, 8]);
    let rows = net.node("Gather", &[&table, &ids], vec![attr_int("axis", 0)]);
    let positions = net.reals(&[1, ROWS, WIDTH], |chance| chance.real());
    let places = net.node("Add", &[&rows, &positions], Vec::new());
    let sum = net.node("Add", &[&made, &places], Vec::new());
    if form != Form::Embedded {
        return sum;
    }
    let ids = net.ids32(&[1, ROWS], &[3, 1, 4, 1, 8]);
    let words = net.reals(&[9, WIDTH], |chance| chance.real());
    let places = net.reals(&[ROWS, WIDTH], |chance| chance.real());
    let (scale, shift) = vectors(net);
    let inputs = [ids.as_str(), "", &words, &places, "", &scale, &shift];
    let rows = net.embed_norm(&inputs);
    net.node("Add", &[&sum, &rows], Vec::new())
}

/// Self-attention of two heads.
fn heads(net: &mut Net, x: &str) -> String {
    let (count, depth) = (2, 3);
    let wide = count * depth;
    let of = |net: &mut Net, order: &[i64]| {
        let made = net.linear(x, WIDTH, wide);
        let parts = net.reshape(&made, &[0, ROWS as i64, count as i64, depth as i64]);
        net.transpose(&parts, order)
    };
    let (q, k) = (of(net, &[0, 2, 1, 3]), of(net, &[0, 2, 3, 1]));
    let v = of(net, &[0, 2, 1, 3]);
    let scores = net.node("MatMul", &[&q, &k], Vec::new());
    let scores = net.node("Softmax", &[&scores], vec![attr_int("axis", -1)]);
    let mixed = net.node("MatMul", &[&scores, &v], Vec::new());
    let mixed = net.transpose(&mixed, &[0, 2, 1, 3]);
    let joined = net.reshape(&mixed, &[0, ROWS as i64, wide as i64]);
    net.linear(&joined, wide, WIDTH)
}

fn neurons(net: &mut Net, x: &str) -> String {
    let y = net.linear(x, WIDTH, 10);
    let y = net.node("Relu", &[&y], Vec::new());
    net.linear(&y, 10, WIDTH)
}

fn stream(subject: &Subject) -> &Group {
    let wide: Vec<&Group> = subject.coupling.groups.iter().filter(|g| g.width == WIDTH).collect();
    let [group] = wide.as_slice() else {
        panic!("{:?}\n{}", subject.coupling.frozen, subject::listing(&subject.model))
    };
    group
}

/// What the removed channels say.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Say {
    Zero,
    /// The mean of those that stay.
    Mean,
    /// The difference of two that stay.
    Difference,
}

impl Say {
    fn neutral(kind: Neutral) -> Self {
        if kind == Neutral::Zero { Self::Zero } else { Self::Mean }
    }

    fn of(self, kept: &[f32]) -> f32 {
        match self {
            Self::Zero => 0.0,
            Self::Mean => kept.iter().sum::<f32>() / kept.len() as f32,
            Self::Difference => kept[0] - kept[1],
        }
    }
}

/// The model in which the removed channels say the same wherever they are written. What normalisations add to them
/// behind γ is taken away.
fn saying(subject: &Subject, group: &Group, removed: &BTreeSet<usize>, say: Say) -> Model {
    let graph = Graph::new(&subject.model);
    let heard = subject.heard(group);
    let norms = subject.norms_of(group);
    let scales: BTreeSet<&str> = norms.iter().map(|norm| norm.scale.as_str()).collect();
    let is_shift = |value: &str| {
        let behind = |used: &blochd::onnx::Use| {
            let blochd::onnx::Use::Input { node, input } = *used else { return false };
            let operator = match graph.op(node).as_str() {
                "LayerNormalization" => input == 2,
                "com.microsoft.SkipLayerNormalization" => input == 3,
                "com.microsoft.EmbedLayerNormalization" => input == 6,
                _ => false,
            };
            let made = |value: &String| norms.iter().any(|norm| norm.output == *value);
            operator || (graph.op(node) == "Add" && graph.node(node).input.iter().any(made))
        };
        graph.uses(value).iter().any(behind)
    };
    let mut patch = Patch::default();
    for place in group.places.iter().filter(|place| place.constant) {
        let at = (place.value.clone(), place.axis);
        if heard.contains(&at) || scales.contains(place.value.as_str()) {
            continue;
        }
        let dims = graph.weight_dims(&place.value).unwrap();
        let mut values = match patch.constants.get(&place.value) {
            Some(made) => floats(made.raw_data.as_ref().unwrap()),
            None => graph.floats(&place.value).unwrap(),
        };
        let inner: usize = dims[place.axis + 1..].iter().product();
        let say = if is_shift(&place.value) { Say::Zero } else { say };
        for plane in values.chunks_mut(WIDTH * inner) {
            for offset in 0..inner {
                let kept = (0..WIDTH).filter(|channel| !removed.contains(channel));
                let kept: Vec<f32> = kept.map(|channel| plane[channel * inner + offset]).collect();
                for channel in removed {
                    plane[channel * inner + offset] = say.of(&kept);
                }
            }
        }
        let dtype = graph.weight_dtype(&place.value).unwrap();
        let bytes = blochd::onnx::values::float_bytes(dtype, &values).unwrap();
        patch.constants.insert(place.value.clone(), tensor(&place.value, dtype, &dims, bytes));
    }
    patch.apply(&subject.model).unwrap()
}

fn floats(raw: &[u8]) -> Vec<f32> {
    blochd::onnx::values::floats(blochd::onnx::DType::F32, raw).unwrap()
}

fn some_channels(seed: u64, count: usize) -> BTreeSet<usize> {
    let mut chance = Chance(seed);
    let mut channels: Vec<usize> = (0..WIDTH).collect();
    (0..WIDTH).for_each(|at| channels.swap(at, chance.below(WIDTH)));
    channels.into_iter().take(count).collect()
}

/// How far the model without channels that say `say` is from the one with them.
fn loss_without(form: Form, count: usize, say: Say) -> f32 {
    let mut subject = transformer(form, 3 + count as u64);
    let group = stream(&subject).clone();
    let removed = some_channels(count as u64, count);
    subject.model = saying(&subject, &group, &removed, say);
    let cut = Cut { removed: [(group.id, removed)].into() };
    difference(&subject.run(&subject.apply(&cut)), &subject.run(&subject.model))
}

#[test]
fn the_width_of_a_stream_is_a_group_and_heads_and_neurons_are_others() {
    for form in CENTRED.into_iter().chain(NOT_CENTRED) {
        let subject = transformer(form, 3);
        let group = stream(&subject);
        let kind = if CENTRED.contains(&form) { Neutral::Mean } else { Neutral::Zero };
        assert_eq!((group.neutral, group.stream), (kind, true), "{form:?}");
        let normed = subject.norms_of(group).len();
        assert_eq!(normed, if form == Form::Embedded { 4 } else { 3 }, "{form:?}");
        // The linear layer before, the ends of two branches; three projections, the neurons and the end.
        assert_eq!((group.producers.len(), group.consumers.len()), (3, 5), "{form:?}");
        let mut others: Vec<(usize, Neutral)> =
            subject.coupling.groups.iter().map(|group| (group.width, group.neutral)).collect();
        others.sort_unstable();
        let expected = [(2, Neutral::Zero), (WIDTH, kind), (10, Neutral::Zero)];
        assert_eq!(others, expected, "{form:?}");
        let tables = group.places.iter().filter(|p| p.constant && p.axis == 1).count();
        assert!(tables >= 1, "{form:?}: no embedding goes along: {:?}", group.places);
    }
}

#[test]
fn a_narrower_stream_computes_what_norms_compute_that_do_not_see_what_went() {
    for form in CENTRED.into_iter().chain(NOT_CENTRED) {
        for seed in 0..4 {
            let subject = transformer(form, seed);
            let removed = some_channels(seed, 1 + seed as usize);
            let cut = Cut { removed: [(stream(&subject).id, removed)].into() };
            check_cut(&subject, &cut, 1e-4);
            check_cut(&subject, &subject.cut(&mut Chance(seed)), 1e-4);
        }
    }
}

#[test]
fn channels_that_are_zero_go_for_nothing_where_no_mean_is_taken_off() {
    for form in NOT_CENTRED {
        for count in [1, 4, 7] {
            let loss = loss_without(form, count, Say::Zero);
            assert!(loss < 1e-5, "{form:?} {count}: {loss}");
        }
    }
}

#[test]
fn channels_at_the_mean_go_for_nothing_where_it_is_taken_off() {
    for form in CENTRED.into_iter().filter(|form| *form != Form::Embedded) {
        for count in [1, 3, 5] {
            let loss = loss_without(form, count, Say::Mean);
            assert!(loss < 1e-5, "{form:?} {count}: {loss}");
            // That is what marks the group: zero is not neutral here.
            let zero = loss_without(form, count, Say::Zero);
            assert!(zero > 1e-3, "{form:?} {count}: {zero}");
        }
    }
}

fn batches(subject: &Subject) -> Vec<Batch> {
    vec![subject.inputs.iter().cloned().collect()]
}

/// What the model without `removed` channels of the stream differs by from dense, as cut and repaired.
fn repaired(subject: &Subject, removed: BTreeSet<usize>) -> (f32, f32) {
    let cut = Cut { removed: [(stream(subject).id, removed)].into() };
    let model = subject.apply(&cut);
    let engine = engine();
    let repair = Repair {
        engine: &engine,
        dense: &subject.model,
        gone: &gone(&subject.coupling, &cut).unwrap(),
        stands_for: &BTreeMap::new(),
        batches: &batches(subject),
        mode: Mode::Refit,
        seed: 1,
    };
    let dense = subject.run(&subject.model);
    let before = error(&dense[0], &subject.run(&model)[0]);
    let (model, _) = repair.run(model, &mut |_, _| {}).unwrap();
    (before, error(&dense[0], &subject.run(&model)[0]))
}

/// Squared error relative to the variance.
fn error(wanted: &blochd::onnx::Tensor, found: &blochd::onnx::Tensor) -> f32 {
    let (x, y) = (wanted.to_f32().unwrap(), found.to_f32().unwrap());
    let mean = x.iter().sum::<f32>() / x.len() as f32;
    let lost: f32 = x.iter().zip(&y).map(|(x, y)| (x - y).powi(2)).sum();
    lost / x.iter().map(|x| (x - mean).powi(2)).sum::<f32>()
}

#[test]
fn a_refit_of_what_reads_the_stream_makes_up_for_most_of_a_cut() {
    for form in CENTRED.into_iter().chain(NOT_CENTRED) {
        let mut subject = transformer(form, 5);
        let (group, removed) = (stream(&subject).clone(), some_channels(1, 2));
        subject.model = saying(&subject, &group, &removed, Say::Difference);
        let (before, after) = repaired(&subject, removed);
        println!("{form:?}: {before} before, {after} after");
        assert!(before > 1e-2 && after < 0.4 * before, "{form:?}: {before}, {after}");
    }
}

#[test]
fn a_channel_that_says_nothing_of_its_own_is_the_first_to_go() {
    for form in [Form::Operator, Form::ByHand, Form::Fused, Form::RootMeanSquare] {
        let mut subject = transformer(form, 7);
        let group = stream(&subject).clone();
        subject.model = saying(&subject, &group, &[5].into(), Say::neutral(group.neutral));
        let graph = Graph::new(&subject.model);
        let (engine, batches) = (engine(), batches(&subject));
        let mut scorer = Scorer::new(&graph, &engine, &[], &batches, Method::Obs, 1);
        scorer.watch(&subject.coupling.groups, &mut |_, _| {});
        let selection = scorer.score(&group).unwrap().selection;
        let named: Vec<usize> = selection.order.clone();
        assert_eq!(named[0], 5, "{form:?}: {selection:?}");
        assert!(selection.loss[1] < 0.3 * selection.loss[2], "{form:?}: {selection:?}");
    }
}

#[test]
fn a_stream_with_a_mean_taken_off_is_offered_only_with_a_refit() {
    let subject = transformer(Form::Operator, 5);
    let batch = batches(&subject).remove(0);
    let (name, x) = batch.first_key_value().unwrap();
    let one = blochd::onnx::Tensor {
        shape: [&[1], &x.shape[1..]].concat(),
        data: x.data.slice(..x.data.len() / x.shape[0]),
        ..x.clone()
    };
    let samples = Samples {
        source: CalibrationSource::File,
        count: SAMPLES,
        first: [(name.clone(), one)].into(),
        batches: vec![batch.clone()],
    };
    let engine = engine();
    for repair in [Mode::Refit, Mode::Statistics, Mode::None] {
        let options = Options {
            low_rank: false,
            ratios: Vec::new(),
            method: Method::Obs,
            importances: BTreeMap::new(),
            repair,
            depth: false,
            align: None,
            trials: 0,
            work: None,
            seed: 1,
            floor: 0.0,
            seconds: 0.01,
        };
        let task = Task {
            engine: &engine,
            model: &subject.model,
            samples: &samples,
            eval: None,
            options: &options,
        };
        let mut table = LatencyTable::default();
        let ladder = task.make(None, &mut table, &mut Models::default()).unwrap();
        let declined = ladder.declined.iter().any(|held| held.width == WIDTH);
        assert_eq!(declined, repair != Mode::Refit, "{repair:?}: {:?}", ladder.declined);
    }
}

/// A stream of one linear layer, what `between` makes of it, and a linear layer that reads that.
fn held(between: impl Fn(&mut Net, &str) -> String) -> Vec<Reason> {
    let mut net = Net::plain(2);
    let tokens = net.tokens(READ, ROWS);
    let stream = net.linear(&tokens, READ, WIDTH);
    let read = between(&mut net, &stream);
    let end = net.linear(&read, WIDTH, 3);
    net.output(&end);
    let subject = Subject::new(net.model(), &[], 2);
    assert!(subject.coupling.groups.is_empty(), "{:#?}", subject.coupling.groups);
    subject.coupling.frozen.into_iter().map(|frozen| frozen.because).collect()
}

#[test]
fn the_width_stays_where_gamma_cannot_make_up_for_it_or_somebody_reads_the_statistics() {
    let along = |reasons: Vec<Reason>, op: &str| {
        let named =
            |reason: &Reason| matches!(reason, Reason::Along { op: found, .. } if found == op);
        assert!(reasons.iter().any(named), "{op}: {reasons:?}");
    };
    // γ is computed.
    let computed = held(|net, x| {
        let (scale, _) = vectors(net);
        let scale = net.node("Abs", &[&scale], Vec::new());
        net.node("LayerNormalization", &[x, &scale], Vec::new())
    });
    along(computed, "LayerNormalization");
    // More than the channels is normalised over.
    let both = held(|net, x| {
        let scale = net.reals(&[ROWS, WIDTH], |chance| 1.0 + chance.real());
        net.node("LayerNormalization", &[x, &scale], vec![attr_int("axis", 1)])
    });
    along(both, "LayerNormalization");
    // The deviation is an output that somebody reads.
    let read = held(|net, x| {
        let (scale, shift) = vectors(net);
        let made = net.nodes("LayerNormalization", &[x, &scale, &shift], 3, Vec::new());
        net.node("Add", &[&made[0], &made[2]], Vec::new())
    });
    along(read, "LayerNormalization");
    // Written out, with a mean, a variance or a quotient that goes elsewhere too, or without γ.
    let parts = |which: usize| {
        held(move |net, x| {
            let (scale, _) = vectors(net);
            let middle = mean(net, x, -1);
            let base = net.node("Sub", &[x, &middle], Vec::new());
            let two = number(net, 2.0);
            let squares = net.node("Pow", &[&base, &two], Vec::new());
            let variance = mean(net, &squares, -1);
            let root = net.node("Sqrt", &[&variance], Vec::new());
            let made = net.node("Div", &[&base, &root], Vec::new());
            let scaled = net.node("Mul", &[&made, &scale], Vec::new());
            match which {
                0 => net.node("Add", &[&scaled, &middle], Vec::new()),
                1 => net.node("Add", &[&scaled, &variance], Vec::new()),
                2 => net.node("Add", &[&scaled, &root], Vec::new()),
                3 => net.node("Add", &[&scaled, &made], Vec::new()),
                _ => made,
            }
        })
    };
    (0..5).for_each(|which| along(parts(which), "ReduceMean"));
}
