//! Transformers as ONNX Runtime's offline optimiser leaves them (operators of the domain com.microsoft): heads
//! and neurons go, and what has no rule stays with its reason.

#[path = "nets/mod.rs"]
mod nets;
#[path = "nets/subject.rs"]
mod subject;

use blochd::coupling::{Group, Reason, couple};
use blochd::onnx::proto::AttributeProto;
use blochd::onnx::{Graph, Model, attr_float, attr_ints, operators};
use blochd::surgery::Cut;
use nets::{Chance, Image, Net, attr_int, attr_text};
use subject::{Subject, check_cut};

const WIDTH: usize = 8;
const ROWS: usize = 5;

fn vector(net: &mut Net, length: usize) -> String {
    net.reals(&[length], |chance| chance.real())
}

/// tokens → what `between` makes of them (the last size given) → linear layer → output.
fn network(between: impl Fn(&mut Net, &str) -> (String, usize)) -> Subject {
    let mut net = Net::plain(9);
    let tokens = net.tokens(WIDTH, ROWS);
    let (y, wide) = between(&mut net, &tokens);
    let end = net.linear(&y, wide, 4);
    net.output(&end);
    Subject::new(net.model(), &[], 3)
}

/// Self-attention with projections inside; `sizes` are those of queries, keys and values.
fn attention(net: &mut Net, x: &str, heads: usize, sizes: [usize; 3], named: bool) -> String {
    let all: usize = sizes.iter().sum();
    let (weight, bias) = (net.weight(&[WIDTH, all]), vector(net, all));
    let mut attrs = vec![attr_int("num_heads", heads as i64)];
    if named {
        attrs.push(attr_ints("qkv_hidden_sizes", &sizes.map(|size| size as i64)));
    }
    net.fused("Attention", &[x, &weight, &bias], attrs)
}

fn heads_of(subject: &Subject) -> &Group {
    let groups: Vec<&Group> = subject.coupling.groups.iter().collect();
    let [group] = groups.as_slice() else { panic!("{:#?}", subject.coupling) };
    group
}

/// Every number of heads that can be left, each cut checked against the dense network that is deaf to it.
fn check_all_widths(subject: &Subject) {
    let group = heads_of(subject);
    for kept in 1..group.width {
        let mut chance = Chance(kept as u64);
        let mut channels: Vec<usize> = (0..group.width).collect();
        (0..group.width).for_each(|at| channels.swap(at, chance.below(group.width)));
        let removed = channels[kept..].iter().copied().collect();
        check_cut(subject, &Cut { removed: [(group.id, removed)].into() }, 1e-4);
    }
}

#[test]
fn heads_of_a_fused_attention_go_whole() {
    for (sizes, named) in [([12; 3], false), ([12; 3], true), ([6, 6, 12], true)] {
        let subject = network(|net, x| (attention(net, x, 3, sizes, named), sizes[2]));
        let group = heads_of(&subject);
        assert_eq!(group.width, 3);
        assert!(group.producers.iter().all(|p| p.outputs.iter().all(|o| o.len() == sizes[2] / 3)));
        check_all_widths(&subject);
    }
}

/// Attention over queries, keys and values that are projected outside.
fn multi_head(net: &mut Net, x: &str, scores: bool, more: Vec<AttributeProto>) -> String {
    let parts = [(); 3].map(|()| net.product(x, WIDTH, 12));
    let bias = vector(net, 36);
    let mut inputs = vec![parts[0].as_str(), &parts[1], &parts[2], &bias];
    let positions = net.reals(&[1, 3, ROWS, ROWS], |chance| chance.real());
    if scores {
        inputs.extend(["", positions.as_str()]);
    }
    let attrs = std::iter::once(attr_int("num_heads", 3)).chain(more).collect();
    net.fused("MultiHeadAttention", &inputs, attrs)
}

#[test]
fn heads_of_a_multi_head_attention_go_with_their_projections() {
    for scores in [false, true] {
        let subject = network(|net, x| (multi_head(net, x, scores, Vec::new()), 12));
        let group = heads_of(&subject);
        assert_eq!((group.width, group.producers.len()), (3, 3));
        check_all_widths(&subject);
    }
}

#[test]
fn neurons_go_through_fused_activations_and_the_stream_that_is_given_stays() {
    for kind in ["BiasGelu", "FastGelu", "Gelu", "QuickGelu"] {
        let subject = network(|net, x| {
            let y = net.product(x, WIDTH, 10);
            let bias = vector(net, 10);
            let inputs: &[&str] =
                if kind.ends_with("sGelu") || kind == "FastGelu" { &[&y, &bias] } else { &[&y] };
            let y = net.fused(kind, inputs, Vec::new());
            let y = net.product(&y, 10, WIDTH);
            let [scale, shift, bias] = [(); 3].map(|()| vector(net, WIDTH));
            let inputs = [y.as_str(), x, &scale, &shift, &bias];
            (net.fused("SkipLayerNormalization", &inputs, Vec::new()), WIDTH)
        });
        let group = heads_of(&subject);
        assert_eq!(group.width, 10, "{kind}");
        check_all_widths(&subject);
        let given = |reason: &Reason| matches!(reason, Reason::GraphInput { .. });
        let held = &subject.coupling.frozen;
        assert!(held.iter().any(|f| f.width == WIDTH && given(&f.because)), "{held:?}");
    }
}

#[test]
fn the_bias_inside_a_fused_node_is_its_operators() {
    let subject = network(|net, x| {
        let y = net.product(x, WIDTH, 10);
        let bias = vector(net, 10);
        let y = net.fused("BiasGelu", &[&y, &bias], Vec::new());
        let y = net.product(&y, 10, WIDTH);
        let [scale, shift, bias] = [(); 3].map(|()| vector(net, WIDTH));
        let inputs = [y.as_str(), x, &scale, &shift, &bias];
        (net.fused("SkipLayerNormalization", &inputs, Vec::new()), WIDTH)
    });
    let graph = Graph::new(&subject.model);
    let found = operators(&graph);
    let behind: Vec<bool> = found.iter().map(|operator| operator.bias_behind).collect();
    assert_eq!(behind, [true, true, false]);
    assert!(found.iter().all(|operator| operator.bias.is_some()));
}

#[test]
fn attention_of_a_form_without_a_rule_stays_whole() {
    // Rotary positions (which the CPU's kernel does not even run).
    let plain = network(|net, x| (attention(net, x, 2, [8; 3], false), 8));
    assert_eq!(heads_of(&plain).width, 2);
    let mut proto = plain.model.proto().clone();
    for node in &mut proto.graph.get_or_insert_default().node {
        if node.op_type.as_deref() == Some("Attention") {
            node.attribute.push(attr_int("do_rotary", 1));
        }
    }
    let model = Model::from_proto(proto).unwrap();
    let rotary = couple(&Graph::new(&model), &plain.shapes);
    assert!(rotary.groups.is_empty(), "{:?}", rotary.groups);
    let reasons: Vec<String> =
        rotary.frozen.iter().map(|frozen| frozen.because.to_string()).collect();
    assert!(reasons.iter().any(|reason| reason.contains("com.microsoft.Attention")), "{reasons:?}");
    // An attention of a single head has nothing that could go.
    let single = network(|net, x| (attention(net, x, 1, [8; 3], false), 8));
    assert!(single.coupling.groups.is_empty());
}

/// The number of channels of every group, and the reasons of what is frozen.
fn found(subject: &Subject) -> (Vec<usize>, String) {
    let widths = subject.coupling.groups.iter().map(|group| group.width).collect();
    let reasons = subject.coupling.frozen.iter().map(|frozen| frozen.because.to_string());
    (widths, reasons.collect::<Vec<_>>().join("\n"))
}

#[test]
fn a_fused_convolution_takes_its_activation_and_what_it_adds_along() {
    for (added, group) in [(false, 1), (true, 1), (false, 4)] {
        let mut net = Net::plain(9);
        let x = net.input(3, 5, 5);
        let first = net.conv(&x, 8, 3, 1, 1);
        let (weight, bias) = (net.weight(&[8, 8 / group, 3, 3]), vector(&mut net, 8));
        let mut attrs = vec![attr_text("activation", "Relu"), attr_ints("pads", &[1; 4])];
        attrs.push(attr_int("group", group as i64));
        let inputs = [first.name.as_str(), &weight, &bias, &first.name];
        let inputs = if added { &inputs[..] } else { &inputs[..3] };
        let y = Image { name: net.fused("FusedConv", inputs, attrs), ..first };
        let end = net.conv(&y, 5, 1, 1, 1);
        net.output(&end.name);
        let subject = Subject::new(net.model(), &[], 3);
        let expected = match (added, group) {
            (false, 1) => vec![8, 8],
            (true, _) => vec![8],
            _ => vec![4],
        };
        assert_eq!(found(&subject).0, expected, "{added} {group}");
        for seed in 0..4 {
            check_cut(&subject, &subject.cut(&mut Chance(seed)), 1e-4);
        }
        // What it says is no linear map of what it reads: it is not refitted.
        let linear = operators(&Graph::new(&subject.model));
        assert_eq!(linear.iter().map(|o| o.exact).collect::<Vec<_>>(), [true, false, true]);
    }
}

#[test]
fn a_fused_product_is_an_operator_with_a_constant_and_passes_heads_without() {
    let subject = network(|net, x| {
        let weight = net.weight(&[WIDTH, 10]);
        let y = net.fused("FusedMatMul", &[x, &weight], vec![attr_float("alpha", 0.5)]);
        (net.node("Relu", &[&y], Vec::new()), 10)
    });
    assert_eq!(heads_of(&subject).width, 10);
    check_all_widths(&subject);
    // A constant that is stored the other way round has no rule.
    let turned = network(|net, x| {
        let weight = net.weight(&[10, WIDTH]);
        (net.fused("FusedMatMul", &[x, &weight], vec![attr_int("transB", 1)]), 10)
    });
    assert!(turned.coupling.groups.is_empty(), "{:?}", turned.coupling.groups);
    // Scores of heads, the keys turned round inside.
    let subject = network(|net, x| (heads_apart(net, x, None), 12));
    assert_eq!(heads_of(&subject).producers.len(), 3);
    check_all_widths(&subject);
}

/// Attention of three heads on an axis of their own, queries and keys turned by their positions.
fn heads_apart(net: &mut Net, x: &str, young: Option<bool>) -> String {
    let mut parts = [(); 3].map(|()| {
        let made = net.product(x, WIDTH, 12);
        let split = net.reshape(&made, &[0, ROWS as i64, 3, 4]);
        net.transpose(&split, &[0, 2, 1, 3])
    });
    if let Some(young) = young {
        let [cos, sin] = [(); 2].map(|()| net.reals(&[ROWS, 2], |chance| chance.real()));
        for part in &mut parts[..2] {
            let places: Vec<i64> = (0..2 * ROWS as i64).map(|at| at % ROWS as i64).collect();
            let places = net.ints_of(&[2, ROWS], &places);
            *part = if young {
                net.node("RotaryEmbedding", &[part, &cos, &sin, &places], Vec::new())
            } else {
                net.fused("RotaryEmbedding", &[part, &places, &cos, &sin], Vec::new())
            };
        }
    }
    let mixed = if young == Some(true) {
        net.node("Attention", &[&parts[0], &parts[1], &parts[2]], Vec::new())
    } else {
        let attrs = vec![attr_float("alpha", 0.5), attr_int("transB", 1)];
        let scores = net.fused("FusedMatMul", &[&parts[0], &parts[1]], attrs);
        let scores = net.node("Softmax", &[&scores], vec![attr_int("axis", -1)]);
        net.node("MatMul", &[&scores, &parts[2]], Vec::new())
    };
    let mixed = net.transpose(&mixed, &[0, 2, 1, 3]);
    net.reshape(&mixed, &[0, ROWS as i64, 12])
}

/// The same as [`network`] for the operators of opset 24.
fn young(between: impl Fn(&mut Net, &str) -> (String, usize)) -> Subject {
    let mut net = Net::plain(9);
    net.opset = 24;
    let tokens = net.tokens(WIDTH, ROWS);
    let (y, wide) = between(&mut net, &tokens);
    let end = net.linear(&y, wide, 4);
    net.output(&end);
    Subject::new(net.model(), &[], 3)
}

#[test]
fn heads_that_rotary_positions_turn_go_whole() {
    let old = network(|net, x| (heads_apart(net, x, Some(false)), 12));
    let young = young(|net, x| (heads_apart(net, x, Some(true)), 12));
    for subject in [old, young] {
        assert_eq!((heads_of(&subject).width, heads_of(&subject).producers.len()), (3, 3));
        check_all_widths(&subject);
    }
    // Heads side by side are turned by an operator that must know how many there are.
    let beside = network(|net, x| {
        let y = net.product(x, WIDTH, 12);
        let [cos, sin] = [(); 2].map(|()| net.reals(&[ROWS, 2], |chance| chance.real()));
        let places = net.ints_of(&[1], &[0]);
        let attrs = vec![attr_int("num_heads", 3)];
        (net.fused("RotaryEmbedding", &[&y, &places, &cos, &sin], attrs), 12)
    });
    let (widths, reasons) = found(&beside);
    assert!(widths.is_empty() && reasons.contains("com.microsoft.RotaryEmbedding"), "{reasons}");
}

#[test]
fn heads_of_the_standard_attention_go_whole_where_each_has_keys_of_its_own() {
    for (keys, masked) in [(3, 0), (3, 3), (3, 1), (1, 0)] {
        let subject = young(|net, x| {
            let q = net.product(x, WIDTH, 12);
            let [k, v] = [(); 2].map(|()| net.product(x, WIDTH, 4 * keys));
            let mut inputs = vec![q, k, v];
            if masked > 0 {
                inputs.push(net.reals(&[1, masked, ROWS, ROWS], |chance| chance.real()));
            }
            let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
            let attrs = vec![attr_int("q_num_heads", 3), attr_int("kv_num_heads", keys as i64)];
            (net.node("Attention", &inputs, attrs), 12)
        });
        if keys == 3 {
            assert_eq!((heads_of(&subject).width, heads_of(&subject).producers.len()), (3, 3));
            check_all_widths(&subject);
        } else {
            let (widths, reasons) = found(&subject);
            assert!(widths.is_empty() && reasons.contains("Attention"), "{reasons}");
        }
    }
}

#[test]
fn attention_over_groups_of_queries_stays_whole_and_is_named() {
    let plain = network(|net, x| (multi_head(net, x, false, Vec::new()), 12));
    let mut proto = plain.model.proto().clone();
    for node in &mut proto.graph.get_or_insert_default().node {
        if node.op_type.as_deref() == Some("MultiHeadAttention") {
            node.op_type = Some("GroupQueryAttention".to_owned());
        }
    }
    let model = Model::from_proto(proto).unwrap();
    let coupling = couple(&Graph::new(&model), &plain.shapes);
    assert!(coupling.groups.is_empty(), "{:?}", coupling.groups);
    let named = |reason: &Reason| matches!(reason, Reason::UnknownOperator { op, .. } if op == "com.microsoft.GroupQueryAttention");
    assert!(coupling.frozen.iter().any(|frozen| named(&frozen.because)), "{:?}", coupling.frozen);
}

#[test]
fn a_fused_bias_and_residual_go_with_what_they_are_added_to() {
    // The CPU has no kernel for it: the shapes are those of the same sum in plain operators.
    let plain = network(|net, x| {
        let y = net.product(x, WIDTH, 10);
        let z = net.product(x, WIDTH, 10);
        let bias = vector(net, 10);
        (net.node("Sum", &[&y, &bias, &z], Vec::new()), 10)
    });
    let mut proto = plain.model.proto().clone();
    for node in &mut proto.graph.get_or_insert_default().node {
        if node.op_type.as_deref() == Some("Sum") {
            node.op_type = Some("BiasAdd".to_owned());
            node.domain = Some("com.microsoft".to_owned());
        }
    }
    let model = Model::from_proto(proto).unwrap();
    let coupling = couple(&Graph::new(&model), &plain.shapes);
    let [group] = coupling.groups.as_slice() else { panic!("{coupling:#?}") };
    assert_eq!((group.width, group.producers.len(), group.consumers.len()), (10, 2, 1));
    assert_eq!(group.places, plain.coupling.groups[0].places);
}
