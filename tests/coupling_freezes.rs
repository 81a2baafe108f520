//! What coupling must not offer for removal, and the reason that it gives.

#[path = "nets/mod.rs"]
mod nets;
#[path = "nets/subject.rs"]
mod subject;

use std::path::Path;

use blochd::coupling::{Coupling, Reason, couple};
use blochd::onnx::proto::attribute_proto::AttributeType;
use blochd::onnx::proto::{AttributeProto, FunctionProto};
use blochd::onnx::{Graph, Model, attr_ints};
use blochd::shell::models;
use blochd::surgery::Cut;
use nets::{Image, Net, attr_int};
use subject::{Subject, check_cut};

/// input → convolution `watched` of 8 channels → what `between` makes of it → convolution → output.
fn network(between: impl Fn(&mut Net, &Image) -> Image) -> Subject {
    let mut net = Net::plain(5);
    let x = net.input(3, 4, 4);
    let watched = net.conv(&x, 8, 3, 1, 1);
    net.rename_last("watched");
    let y = between(&mut net, &watched);
    let out = net.conv(&y, 5, 1, 1, 1);
    net.output(&out.name);
    Subject::new(net.model(), &[], 1)
}

/// How many channels of `watched` can go, and what holds the others.
fn fate(coupling: &Coupling, model: &Model) -> (usize, Vec<Reason>) {
    let graph = Graph::new(model);
    let of = |group: &&blochd::coupling::Group| {
        group.producers.iter().any(|producer| graph.label(producer.node) == "watched")
    };
    let free = coupling.groups.iter().filter(of).map(|group| group.width).sum();
    let held = coupling.frozen.iter().filter(|frozen| frozen.what == "watched");
    (free, held.map(|frozen| frozen.because.clone()).collect())
}

#[track_caller]
fn assert_held(subject: &Subject, op: &str) {
    let (free, reasons) = fate(&subject.coupling, &subject.model);
    assert_eq!(free, 0, "channels can go through {op}");
    let text: Vec<String> = reasons.iter().map(Reason::to_string).collect();
    assert!(text.iter().any(|text| text.contains(op)), "{op} is not named: {text:?}");
}

fn unary(kind: &'static str, attrs: Vec<AttributeProto>) -> Subject {
    network(|net, x| Image { name: net.node(kind, &[&x.name], attrs.clone()), ..x.clone() })
}

#[test]
fn the_watched_channels_can_go_where_nothing_holds_them() {
    let subject = unary("Relu", Vec::new());
    assert_eq!(fate(&subject.coupling, &subject.model), (8, Vec::new()));
}

#[test]
fn does_not_cut_what_the_graph_returns() {
    let mut net = Net::plain(5);
    let x = net.input(3, 4, 4);
    let watched = net.conv(&x, 8, 3, 1, 1);
    net.rename_last("watched");
    let out = net.conv(&watched, 5, 1, 1, 1);
    net.output(&out.name);
    net.output(&watched.name);
    assert_held(&Subject::new(net.model(), &[], 1), &watched.name);
}

#[test]
fn does_not_cut_what_the_caller_gives() {
    let mut net = Net::plain(5);
    let x = net.input(6, 4, 4);
    let watched = net.conv(&x, 6, 1, 1, 1);
    net.rename_last("watched");
    let sum = net.binary("Add", &watched, &x.name);
    let out = net.conv(&sum, 5, 1, 1, 1);
    net.output(&out.name);
    assert_held(&Subject::new(net.model(), &[], 1), "input");
}

#[test]
fn freezes_what_an_unknown_operator_touches() {
    assert_held(&unary("LRN", vec![attr_int("size", 3)]), "LRN");
    // The same graph with an operator of a foreign domain in the place of the Relu.
    let subject = unary("Relu", Vec::new());
    let mut proto = subject.model.proto().clone();
    for node in &mut proto.graph.get_or_insert_default().node {
        if node.op_type.as_deref() == Some("Relu") {
            node.domain = Some("com.example".to_owned());
        }
    }
    let model = Model::from_proto(proto).unwrap();
    let coupling = couple(&Graph::new(&model), &subject.shapes);
    let (free, reasons) = fate(&coupling, &model);
    assert_eq!(free, 0);
    let named = |reason: &Reason| matches!(reason, Reason::UnknownOperator { op, .. } if op == "com.example.Relu");
    assert!(reasons.iter().any(named), "{reasons:?}");
}

#[test]
fn does_not_take_a_function_of_the_model_for_the_operator_of_its_name() {
    let subject = unary("Relu", Vec::new());
    let mut proto = subject.model.proto().clone();
    let function = FunctionProto { name: Some("Relu".to_owned()), ..Default::default() };
    proto.functions.push(function);
    let model = Model::from_proto(proto).unwrap();
    assert_eq!(fate(&couple(&Graph::new(&model), &subject.shapes), &model).0, 0);
}

#[test]
fn does_not_cut_through_what_works_along_the_channels() {
    assert_held(&unary("Softmax", vec![attr_int("axis", 1)]), "Softmax");
    assert_held(&unary("LogSoftmax", vec![attr_int("axis", -3)]), "LogSoftmax");
    let mean = network(|net, x| {
        let mean = net.node("ReduceMean", &[&x.name], vec![attr_ints("axes", &[1])]);
        net.binary("Sub", x, &mean)
    });
    assert_held(&mean, "ReduceMean");
}

#[test]
fn does_not_cut_through_a_layer_norm_of_more_than_the_channels() {
    let normed = |axis: i64| {
        network(move |net, x| {
            let rows = net.transpose(&x.name, &[0, 2, 3, 1]);
            let dims: &[usize] = if axis == -1 { &[8] } else { &[4, 8] };
            let scale = net.reals(dims, |chance| 1.0 + chance.real());
            let attrs = vec![attr_int("axis", axis)];
            let rows = net.node("LayerNormalization", &[&rows, &scale], attrs);
            Image { name: net.transpose(&rows, &[0, 3, 1, 2]), ..x.clone() }
        })
    };
    assert_held(&normed(2), "LayerNormalization");
    let subject = normed(-1);
    assert_eq!(fate(&subject.coupling, &subject.model).0, 8);
}

#[test]
fn does_not_cut_through_norms_of_simple_operators_that_scale_no_channel() {
    for centred in [true, false] {
        let subject = network(|net, x| {
            let rows = net.transpose(&x.name, &[0, 2, 3, 1]);
            let mean = vec![attr_ints("axes", &[-1])];
            let rows = if centred {
                let middle = net.node("ReduceMean", &[&rows], mean.clone());
                net.node("Sub", &[&rows, &middle], Vec::new())
            } else {
                rows
            };
            let squares = net.node("Mul", &[&rows, &rows], Vec::new());
            let variance = net.node("ReduceMean", &[&squares], mean);
            let root = net.node("Sqrt", &[&variance], Vec::new());
            let rows = net.node("Div", &[&rows, &root], Vec::new());
            Image { name: net.transpose(&rows, &[0, 3, 1, 2]), ..x.clone() }
        });
        assert_held(&subject, "ReduceMean");
    }
}

/// input → linear layer `watched` of 8 columns → a recurrent layer of 4 units → linear layer → output.
fn recurrent(kind: &'static str, gates: usize) -> Subject {
    network(|net, x| {
        let rows = net.reshape(&x.name, &[0, 8, -1]);
        let steps = net.transpose(&rows, &[2, 0, 1]);
        let (weight, state) = (net.weight(&[1, gates * 4, 8]), net.weight(&[1, gates * 4, 4]));
        let attrs = vec![attr_int("hidden_size", 4)];
        let all = net.node(kind, &[&steps, &weight, &state], attrs);
        let axes = net.ints(&[1]);
        let units = net.node("Squeeze", &[&all, &axes], Vec::new());
        let units = net.linear(&units, 4, 8);
        let rows = net.transpose(&units, &[1, 2, 0]);
        Image { name: net.reshape(&rows, &[0, 8, 4, 4]), ..x.clone() }
    })
}

#[test]
fn recurrent_layers_keep_their_units_and_what_they_read() {
    for (kind, gates) in [("GRU", 3), ("LSTM", 4), ("RNN", 1)] {
        let subject = recurrent(kind, gates);
        assert_held(&subject, kind);
        let graph = Graph::new(&subject.model);
        let of = |id: usize| graph.op(id) == kind;
        let node = (0..graph.nodes().len()).find(|id| of(*id)).unwrap();
        let touched = graph.node(node).input.iter().chain(&graph.node(node).output);
        for value in touched {
            let held = |group: &blochd::coupling::Group| {
                group.places.iter().all(|place| place.value != *value)
            };
            assert!(subject.coupling.groups.iter().all(held), "{kind}: {value} would be cut");
        }
    }
}

#[test]
fn does_not_cut_what_control_flow_reads() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/models/fixtures/if_node.onnx");
    let subject = Subject::new(models::load(&path).unwrap(), &[("2", 28), ("3", 28)], 1);
    let graph = Graph::new(&subject.model);
    let touched = |group: &blochd::coupling::Group| {
        group.producers.iter().any(|producer| graph.label(producer.node) == "conv1")
            || group.consumers.iter().any(|consumer| graph.label(consumer.node) == "conv2")
    };
    assert!(!subject.coupling.groups.iter().any(touched));
}

#[test]
fn does_not_cut_where_the_graph_computes_with_the_number_of_channels() {
    let subject = network(|net, x| {
        let shape = net.node("Shape", &[&x.name], Vec::new());
        let one = net.ints(&[1]);
        let channels = net.node("Gather", &[&shape, &one], vec![attr_int("axis", 0)]);
        let channels = net.node("Cast", &[&channels], vec![attr_int("to", 1)]);
        net.binary("Div", x, &channels)
    });
    assert_held(&subject, "number of channels");
}

#[test]
fn cuts_where_only_another_axis_is_computed_with() {
    let subject = network(|net, x| {
        let shape = net.node("Shape", &[&x.name], Vec::new());
        let one = net.ints(&[2]);
        let height = net.node("Gather", &[&shape, &one], vec![attr_int("axis", 0)]);
        let height = net.node("Cast", &[&height], vec![attr_int("to", 1)]);
        net.binary("Div", x, &height)
    });
    assert_eq!(fate(&subject.coupling, &subject.model).0, 8);
}

#[test]
fn does_not_let_a_squeeze_without_axes_swallow_the_last_channel() {
    let squeezed = |named: bool| {
        network(|net, x| {
            let pooled = net.node("GlobalAveragePool", &[&x.name], Vec::new());
            let axes = net.ints(&[2, 3]);
            let inputs: &[&str] = if named { &[&pooled, &axes] } else { &[&pooled] };
            let vector = net.node("Squeeze", inputs, Vec::new());
            let back = net.node("Unsqueeze", &[&vector, &axes], Vec::new());
            net.binary("Mul", x, &back)
        })
    };
    assert_held(&squeezed(false), "Squeeze");
    let subject = squeezed(true);
    assert_eq!(fate(&subject.coupling, &subject.model).0, 8);
}

#[test]
fn does_not_cut_where_a_pool_numbers_positions_across_channels() {
    let subject = network(|net, x| {
        let attrs = vec![attr_ints("kernel_shape", &[2, 2])];
        let made = net.nodes("MaxPool", &[&x.name], 2, attrs);
        net.output(&made[1]);
        Image { name: made[0].clone(), c: 8, h: 3, w: 3 }
    });
    assert_held(&subject, "MaxPool");
}

#[test]
fn does_not_cut_an_axis_that_is_picked_from() {
    let gathered = network(|net, x| {
        let order = net.ints(&[7, 6, 5, 4, 3, 2, 1, 0]);
        let name = net.node("Gather", &[&x.name, &order], vec![attr_int("axis", 1)]);
        Image { name, ..x.clone() }
    });
    assert_held(&gathered, "Gather");
    let strided = network(|net, x| {
        let name = net.slice(&x.name, &[1], &[(0, 8)], 2);
        Image { name, c: 4, ..x.clone() }
    });
    assert_held(&strided, "Slice");
}

#[test]
fn does_not_cut_beside_a_constant_that_cannot_be_cut() {
    let subject = network(|net, x| {
        // A Constant node may hold plain numbers instead of a tensor.
        let numbers = AttributeProto {
            name: Some("value_floats".to_owned()),
            r#type: Some(AttributeType::FLOATS),
            floats: vec![1.0; 8],
            ..Default::default()
        };
        let vector = net.node("Constant", &[], vec![numbers]);
        let axes = net.ints(&[1, 2]);
        let vector = net.node("Unsqueeze", &[&vector, &axes], Vec::new());
        net.binary("Add", x, &vector)
    });
    assert_held(&subject, "Constant");
}

/// x as (N, 8, 16) and back, the last target put together from parts of which `made` gives the channels.
fn there_and_back(made: impl Fn(&mut Net) -> (String, Option<String>)) -> Subject {
    network(|net, x| {
        let flat = net.reshape(&x.name, &[0, 8, -1]);
        let (channels, second) = made(net);
        let (first, last) = (net.ints(&[-1]), net.ints(&[4, 4]));
        let mut back = |parts: [&str; 3]| {
            let target = net.node("Concat", &parts, vec![attr_int("axis", 0)]);
            net.node("Reshape", &[&flat, &target], Vec::new())
        };
        let one = back([&first, &channels, &last]);
        let image = Image { name: one, ..x.clone() };
        let Some(second) = second else { return image };
        let other = back([&first, &second, &last]);
        net.binary("Add", &image, &other)
    })
}

#[test]
fn a_number_deep_in_a_reshape_target_follows_the_cut_where_nobody_else_reads_it() {
    let subject = there_and_back(|net| (net.ints(&[8]), None));
    assert_eq!(fate(&subject.coupling, &subject.model).0, 8);
    let group = subject.group_of("watched").unwrap();
    let cut = Cut { removed: [(group.id, [0, 3, 7].into())].into() };
    check_cut(&subject, &cut, 1e-4);
}

#[test]
fn a_number_that_others_read_too_is_changed_for_this_target_alone() {
    // The same constant in the targets of two Reshapes, of which the other belongs to another group.
    let mut net = Net::plain(5);
    let x = net.input(3, 4, 4);
    let (first, channels, last) = (net.ints(&[-1]), net.ints(&[8]), net.ints(&[16]));
    let mut ends = Vec::new();
    for _ in 0..2 {
        let y = net.conv(&x, 8, 3, 1, 1);
        let target = net.node("Concat", &[&first, &channels, &last], vec![attr_int("axis", 0)]);
        let y = net.node("Reshape", &[&y.name, &target], Vec::new());
        let y = net.transpose(&y, &[0, 2, 1]);
        ends.push(net.linear(&y, 8, 5));
    }
    let sum = net.node("Add", &[&ends[0], &ends[1]], Vec::new());
    net.output(&sum);
    let subject = Subject::new(net.model(), &[], 1);
    let [a, b] = subject.coupling.groups.as_slice() else { panic!("{:#?}", subject.coupling) };
    for cut in [
        vec![(a.id, [1, 2].into())],
        vec![(b.id, [7].into())],
        vec![(a.id, [0].into()), (b.id, [0, 5, 6].into())],
        vec![(a.id, [3, 4].into()), (b.id, [6, 7].into())],
    ] {
        check_cut(&subject, &Cut { removed: cut.into_iter().collect() }, 1e-4);
    }
}

#[test]
fn does_not_change_a_computed_target_for_one_of_those_who_share_it() {
    let shared = |joined: bool| {
        let mut net = Net::plain(5);
        let x = net.input(3, 4, 4);
        let (first, numbers) = (net.ints(&[-1]), net.ints(&[8, 16]));
        let target = net.node("Concat", &[&first, &numbers], vec![attr_int("axis", 0)]);
        let mut flat = Vec::new();
        for _ in 0..2 {
            let y = net.conv(&x, 8, 3, 1, 1);
            flat.push(net.node("Reshape", &[&y.name, &target], Vec::new()));
        }
        if joined {
            let sum = net.node("Add", &[&flat[0], &flat[1]], Vec::new());
            flat = vec![sum];
        }
        let ends: Vec<String> = flat
            .iter()
            .map(|y| {
                let rows = net.transpose(y, &[0, 2, 1]);
                net.linear(&rows, 8, 5)
            })
            .collect();
        ends.iter().for_each(|end| net.output(end));
        Subject::new(net.model(), &[], 1)
    };
    let apart = shared(false);
    assert!(apart.coupling.groups.is_empty(), "{:?}", apart.coupling.groups);
    let joined = shared(true);
    let [group] = joined.coupling.groups.as_slice() else { panic!("{:#?}", joined.coupling) };
    let cut = Cut { removed: [(group.id, [0, 6, 7].into())].into() };
    check_cut(&joined, &cut, 1e-4);
}

#[test]
fn does_not_change_a_number_that_is_computed_with() {
    let subject = network(|net, x| {
        let flat = net.reshape(&x.name, &[0, 8, -1]);
        let (first, channels, last) = (net.ints(&[-1]), net.ints(&[8]), net.ints(&[4, 4]));
        let target = net.node("Concat", &[&first, &channels, &last], vec![attr_int("axis", 0)]);
        let numbers = net.node("Cast", &[&target], vec![attr_int("to", 1)]);
        let all = net.node("ReduceSum", &[&numbers], vec![attr_int("keepdims", 0)]);
        let y = net.node("Reshape", &[&flat, &target], Vec::new());
        net.binary("Mul", &Image { name: y, ..x.clone() }, &all)
    });
    assert_held(&subject, "rearranges it in a way that a cut would change");
}

#[test]
fn a_target_that_two_reshapes_share_is_told_apart_by_their_cuts() {
    let mut net = Net::plain(5);
    let x = net.input(3, 4, 4);
    let target = net.ints(&[-1, 8, 16]);
    let mut flat = Vec::new();
    for _ in 0..2 {
        let y = net.conv(&x, 8, 3, 1, 1);
        let y = net.node("Reshape", &[&y.name, &target], Vec::new());
        let y = net.transpose(&y, &[0, 2, 1]);
        flat.push(net.linear(&y, 8, 5));
    }
    let sum = net.node("Add", &[&flat[0], &flat[1]], Vec::new());
    net.output(&sum);
    let subject = Subject::new(net.model(), &[], 1);
    let [a, b] = [&subject.coupling.groups[0], &subject.coupling.groups[1]];
    for cut in [
        vec![(a.id, [1, 2].into())],
        vec![(a.id, [0].into()), (b.id, [0, 5, 6].into())],
        vec![(a.id, [3, 4].into()), (b.id, [6, 7].into())],
    ] {
        check_cut(&subject, &Cut { removed: cut.into_iter().collect() }, 1e-4);
    }
}
