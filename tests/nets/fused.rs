//! Pieces of the operators that ONNX Runtime's optimiser fuses others into, and of the youngest operator sets.

// Each test file uses a part of it.
#![allow(dead_code)]

use blochd::onnx::{attr_float, attr_ints};

use super::nets::{Image, Net, attr_int, attr_text};

/// Appends one of the pieces.
pub fn piece(net: &mut Net, x: &Image) -> Image {
    if net.chance.below(3) == 0 {
        return conv(net, x);
    }
    let flat = net.reshape(&x.name, &[0, 0, -1]);
    let tokens = net.transpose(&flat, &[0, 2, 1]);
    let rows = x.h * x.w;
    let branch = match net.chance.below(3) {
        0 => neurons(net, &tokens, x.c),
        1 => heads(net, &tokens, (x.c, rows)),
        _ => heads_apart(net, &tokens, (x.c, rows)),
    };
    let sum = joined(net, &branch, &tokens, (x.c, rows));
    let image = net.transpose(&sum, &[0, 2, 1]);
    let (c, h, w) = (x.c as i64, x.h as i64, x.w as i64);
    Image { name: net.reshape(&image, &[-1, c, h, w]), ..x.clone() }
}

/// A convolution with its activation, and with another value that is added before.
fn conv(net: &mut Net, x: &Image) -> Image {
    let activation = net.chance.pick(&["Relu", "Tanh", "LeakyRelu"]);
    let mut attrs = vec![attr_text("activation", activation), attr_ints("pads", &[1; 4])];
    if activation == "LeakyRelu" {
        attrs.push(super::nets::attr_floats("activation_params", &[0.1]));
    }
    let (c, group) = if x.c.is_multiple_of(2) { (x.c, net.chance.pick(&[1, 2])) } else { (4, 1) };
    let (weight, bias) = (net.weight(&[c, x.c / group, 3, 3]), net.bias(c));
    attrs.push(attr_int("group", group as i64));
    let added = net.chance.below(2) == 0 && c == x.c && group == 1;
    let inputs: &[&str] =
        if added { &[&x.name, &weight, &bias, &x.name] } else { &[&x.name, &weight, &bias] };
    Image { name: net.fused("FusedConv", inputs, attrs), c, ..x.clone() }
}

/// y = factor · x · W.
fn product(net: &mut Net, x: &str, from: usize, to: usize) -> String {
    let weight = net.weight(&[from, to]);
    if net.chance.below(2) == 0 {
        return net.node("MatMul", &[x, &weight], Vec::new());
    }
    let factor = net.chance.pick(&[1.0, 0.5]);
    net.fused("FusedMatMul", &[x, &weight], vec![attr_float("alpha", factor)])
}

fn neurons(net: &mut Net, tokens: &str, c: usize) -> String {
    let y = product(net, tokens, c, 6);
    let bias = net.bias(6);
    let y = match net.chance.below(5) {
        0 => net.fused("BiasGelu", &[&y, &bias], Vec::new()),
        1 => net.fused("FastGelu", &[&y, &bias], Vec::new()),
        2 => net.fused("FastGelu", &[&y], Vec::new()),
        3 => net.fused("Gelu", &[&y], Vec::new()),
        _ => net.fused("QuickGelu", &[&y], Vec::new()),
    };
    product(net, &y, 6, c)
}

/// Attention that keeps its heads side by side.
fn heads(net: &mut Net, tokens: &str, (c, rows): (usize, usize)) -> String {
    let (count, depth) = (net.chance.pick(&[2, 3]), 4);
    let wide = count * depth;
    let kind = net.chance.below(3);
    if kind == 0 {
        // What it projects itself keeps the width of what it reads.
        let (weight, bias) = (net.weight(&[c, 3 * wide]), net.bias(3 * wide));
        let attrs = vec![attr_int("num_heads", count as i64)];
        let y = net.fused("Attention", &[tokens, &weight, &bias], attrs);
        return product(net, &y, wide, c);
    }
    let parts = [(); 3].map(|()| product(net, tokens, c, wide));
    let [q, k, v] = [0, 1, 2].map(|part: usize| parts[part].as_str());
    let mask = net.reals(&[1, count, rows, rows], |chance| chance.real());
    let y = if kind == 1 || net.opset < 23 {
        let bias = net.bias(3 * wide);
        let attrs = vec![attr_int("num_heads", count as i64)];
        net.fused("MultiHeadAttention", &[q, k, v, &bias, "", &mask], attrs)
    } else {
        let attrs = ["q_num_heads", "kv_num_heads"].map(|name| attr_int(name, count as i64));
        net.node("Attention", &[q, k, v, &mask], attrs.to_vec())
    };
    product(net, &y, wide, c)
}

/// Attention over heads on an axis of their own, turned by their positions.
fn heads_apart(net: &mut Net, tokens: &str, (c, rows): (usize, usize)) -> String {
    let (count, depth) = (net.chance.pick(&[2, 3]), 4);
    let wide = count * depth;
    let sizes = [-1, rows as i64, count as i64, depth as i64];
    let mut parts = [(); 3].map(|()| {
        let made = product(net, tokens, c, wide);
        let split = net.reshape(&made, &sizes);
        net.transpose(&split, &[0, 2, 1, 3])
    });
    let young = net.opset >= 23;
    if net.chance.below(2) == 0 {
        let [cos, sin] = [(); 2].map(|()| net.reals(&[rows, depth / 2], |chance| chance.real()));
        let numbers: Vec<i64> = (0..2 * rows as i64).map(|at| at % rows as i64).collect();
        for part in &mut parts[..2] {
            *part = if young {
                let places = net.ints_of(&[2, rows], &numbers);
                net.node("RotaryEmbedding", &[part, &cos, &sin, &places], Vec::new())
            } else {
                let first = net.ints(&[0]);
                net.fused("RotaryEmbedding", &[part, &first, &cos, &sin], Vec::new())
            };
        }
    }
    let [q, k, v] = [0, 1, 2].map(|part: usize| parts[part].as_str());
    let mixed = if young && net.chance.below(2) == 0 {
        net.node("Attention", &[q, k, v], Vec::new())
    } else {
        let attrs = vec![attr_float("alpha", 0.5), attr_int("transB", 1)];
        let scores = net.fused("FusedMatMul", &[q, k], attrs);
        let scores = net.node("Softmax", &[&scores], vec![attr_int("axis", -1)]);
        net.node("MatMul", &[&scores, v], Vec::new())
    };
    let mixed = net.transpose(&mixed, &[0, 2, 1, 3]);
    let joined = net.reshape(&mixed, &[-1, rows as i64, wide as i64]);
    product(net, &joined, wide, c)
}

/// The branch and the tokens added and normalised.
fn joined(net: &mut Net, branch: &str, tokens: &str, (c, rows): (usize, usize)) -> String {
    let loud = if net.quiet { 0.0 } else { 0.3 };
    let scale = net.reals(&[c], |chance| 1.0 + chance.real() * 0.3);
    let shift = net.reals(&[c], |chance| chance.real() * loud);
    let bias = net.reals(&[c], |chance| chance.real() * loud);
    let sum = |net: &mut Net| net.node("Add", &[branch, tokens], Vec::new());
    let little = || attr_float("epsilon", 1e-2);
    match net.chance.below(6) {
        0 => {
            let inputs = [branch, tokens, &scale, &shift, &bias];
            net.fused("SkipLayerNormalization", &inputs, vec![little()])
        }
        1 => {
            let inputs = [branch, tokens, &scale, &bias];
            net.fused("SkipSimplifiedLayerNormalization", &inputs, vec![little()])
        }
        2 => {
            let sum = sum(net);
            net.node("SimplifiedLayerNormalization", &[&sum, &scale], vec![little()])
        }
        3 if net.opset >= 23 => {
            let sum = sum(net);
            net.node("RMSNormalization", &[&sum, &scale], vec![little()])
        }
        4 if !net.quiet => {
            let ids: Vec<i32> = (0..rows as i32).map(|at| at % 3).collect();
            let ids = net.ids32(&[1, rows], &ids);
            let [words, places] =
                [3, rows].map(|length| net.reals(&[length, c], |chance| chance.real()));
            let rows = net.embed_norm(&[&ids, "", &words, &places, "", &scale, &shift]);
            let sum = sum(net);
            net.node("Add", &[&sum, &rows], Vec::new())
        }
        _ => {
            let inputs = [branch, tokens, &scale];
            net.fused("SkipSimplifiedLayerNormalization", &inputs, vec![little()])
        }
    }
}

/// A vision transformer and its class token, which gates what the patches have become.
pub fn vision(net: &mut Net, x: &Image) -> Image {
    let (stream, patches) = class_and_patches(net, x);
    let (width, h, w) = (patches.c, patches.h, patches.w);
    let first = net.ints(&[0]);
    let token = net.node("Gather", &[&stream, &first], vec![attr_int("axis", 1)]);
    let gate = net.linear(&token, width, width);
    let rest = net.slice(&stream, &[1], &[(1, i64::MAX)], 1);
    let gated = net.node("Mul", &[&rest, &gate], Vec::new());
    let image = net.transpose(&gated, &[0, 2, 1]);
    let name = net.reshape(&image, &[-1, width as i64, h as i64, w as i64]);
    Image { name, ..patches }
}

/// Patches, a class token before them, positions and a block, normalised; and the size of the image of patches.
pub fn class_and_patches(net: &mut Net, x: &Image) -> (String, Image) {
    let (width, size) = (6, if x.h.is_multiple_of(2) { 2 } else { 1 });
    let (weight, bias) = (net.weight(&[width, x.c, size, size]), net.bias(width));
    let patches =
        net.node("Conv", &[&x.name, &weight, &bias], vec![attr_ints("strides", &[size as i64; 2])]);
    let (h, w) = (x.h / size, x.w / size);
    let rows = h * w;
    let flat = net.reshape(&patches, &[0, width as i64, -1]);
    let patches = net.transpose(&flat, &[0, 2, 1]);
    let stream = with_class_token(net, &patches, (width, rows));
    let seen = super::transformer::norm(net, &stream, width);
    let y = net.linear(&seen, width, 10);
    let y = net.node("Relu", &[&y], Vec::new());
    let y = net.linear(&y, 10, width);
    let stream = net.node("Add", &[&stream, &y], Vec::new());
    let stream = super::transformer::norm(net, &stream, width);
    (stream.clone(), Image { name: stream, c: width, h, w })
}

/// A token for each image before its patches, and positions added to all.
pub fn with_class_token(net: &mut Net, patches: &str, (width, rows): (usize, usize)) -> String {
    let loud = if net.quiet { 0.0 } else { 1.0 };
    let token = net.reals(&[1, 1, width], |chance| chance.real() * loud);
    let shape = net.node("Shape", &[patches], Vec::new());
    let batch = net.slice(&shape, &[0], &[(0, 1)], 1);
    let rest = net.ints(&[1, width as i64]);
    let target = net.node("Concat", &[&batch, &rest], vec![attr_int("axis", 0)]);
    let tokens = net.node("Expand", &[&token, &target], Vec::new());
    let all = net.node("Concat", &[&tokens, patches], vec![attr_int("axis", 1)]);
    let positions = net.reals(&[1, rows + 1, width], |chance| chance.real() * loud);
    net.node("Add", &[&all, &positions], Vec::new())
}
