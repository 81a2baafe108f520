//! Transformers as ONNX Runtime's offline optimiser leaves them (operators of the domain com.microsoft): heads
//! and neurons go, and what has no rule stays with its reason.

#[path = "nets/mod.rs"]
mod nets;
#[path = "nets/subject.rs"]
mod subject;

use blochd::coupling::{Group, Reason, couple};
use blochd::onnx::proto::AttributeProto;
use blochd::onnx::{Graph, Model, attr_ints, operators};
use blochd::surgery::Cut;
use nets::{Chance, Net, attr_int};
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
