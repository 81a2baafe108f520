//! The pieces that random networks are put together from: each takes an image and gives one.

use blochd::onnx::attr_ints;

use super::nets::{Image, Net, attr_int, attr_text};
use super::{fused, pointwise, transformer};

/// How many kinds of pieces there are.
pub const KINDS: usize = 34;

/// Appends a piece of kind `kind`.
pub fn step(net: &mut Net, x: &Image, kind: usize) -> Image {
    match kind {
        0 => wider(net, x),
        1 => residual(net, x),
        2 => dense_concat(net, x),
        3 => depthwise(net, x),
        4 => grouped(net, x),
        5 => {
            let y = wider(net, x);
            net.batch_norm(&y, 0.3)
        }
        6 => squeeze_excite(net, x),
        7 => split_and_join(net, x),
        8 => option_a(net, x),
        9 => conv_transpose(net, x),
        10 => shuffle(net, x),
        11 => pointwise_by_matmul(net, x, false),
        12 => pointwise_by_matmul(net, x, true),
        13 => pooled(net, x),
        14 => sliced(net, x),
        15 => resized(net, x),
        16 => weighted_sum(net, x),
        17 => attention(net, x),
        18 => through_sizes(net, x),
        19 => squeezed(net, x),
        20 => over_channels(net, x),
        21 => picked(net, x),
        22 => tied(net, x),
        23..=25 => transformer::piece(net, x, kind - 23),
        27 | 28 => pointwise::piece(net, x),
        29 => pointwise::instance_norm(net, x),
        30 => pointwise::control_flow(net, x),
        31 | 32 => fused::piece(net, x),
        33 => fused::vision(net, x),
        _ => inverted_residual(net, x),
    }
}

fn wider(net: &mut Net, x: &Image) -> Image {
    let (c, kernel) = (net.chance.pick(&[4, 6, 8, 12]), net.chance.pick(&[1, 3]));
    let stride = if x.h > 4 { net.chance.pick(&[1, 1, 2]) } else { 1 };
    let y = net.conv(x, c, kernel, stride, 1);
    net.activation(&y)
}

fn residual(net: &mut Net, x: &Image) -> Image {
    let inner = net.chance.pick(&[4, 8]);
    let y = net.conv(x, inner, 3, 1, 1);
    let y = net.activation(&y);
    let y = net.conv(&y, x.c, 3, 1, 1);
    let sum = net.binary("Add", &y, &x.name);
    net.unary("Relu", &sum)
}

fn inverted_residual(net: &mut Net, x: &Image) -> Image {
    let y = net.conv(x, x.c * 2, 1, 1, 1);
    let y = net.activation(&y);
    let y = net.conv(&y, y.c, 3, 1, y.c);
    let y = net.batch_norm(&y, 0.2);
    let y = net.conv(&y, x.c, 1, 1, 1);
    net.binary("Add", &y, &x.name)
}

fn dense_concat(net: &mut Net, x: &Image) -> Image {
    let growth = net.chance.pick(&[2, 4]);
    let y = net.conv(x, growth, 3, 1, 1);
    let y = net.activation(&y);
    concat(net, &[x.clone(), y])
}

fn concat(net: &mut Net, parts: &[Image]) -> Image {
    let names: Vec<&str> = parts.iter().map(|part| part.name.as_str()).collect();
    let axis = net.chance.pick(&[1, -3]);
    let name = net.node("Concat", &names, vec![attr_int("axis", axis)]);
    Image { name, c: parts.iter().map(|part| part.c).sum(), ..parts[0].clone() }
}

fn depthwise(net: &mut Net, x: &Image) -> Image {
    let times = net.chance.pick(&[1, 2]);
    let y = net.conv(x, x.c * times, 3, 1, x.c);
    net.activation(&y)
}

fn grouped(net: &mut Net, x: &Image) -> Image {
    let group = if x.c.is_multiple_of(2) { 2 } else { 1 };
    let c = group * net.chance.pick(&[2, 3]);
    let y = net.conv(x, c, 3, 1, group);
    net.activation(&y)
}

fn squeeze_excite(net: &mut Net, x: &Image) -> Image {
    // ReduceMax takes its axes as an input from opset 18 on.
    let pooled = if net.opset >= 18 {
        let axes = net.ints(&[-1, 2]);
        net.node("ReduceMax", &[&x.name, &axes], Vec::new())
    } else if net.chance.below(2) == 0 {
        net.node("GlobalAveragePool", &[&x.name], Vec::new())
    } else {
        net.node("ReduceMax", &[&x.name], vec![attr_ints("axes", &[2, -1])])
    };
    let s = Image { name: pooled, h: 1, w: 1, ..x.clone() };
    let s = net.conv(&s, 4, 1, 1, 1);
    let s = net.unary("Relu", &s);
    let s = net.conv(&s, x.c, 1, 1, 1);
    let s = net.unary("HardSigmoid", &s);
    net.binary("Mul", x, &s.name)
}

fn split_and_join(net: &mut Net, x: &Image) -> Image {
    let first = if x.c.is_multiple_of(2) { x.c / 2 } else { 1 };
    let sizes = [first, x.c - first];
    let parts = net.split(&x.name, &sizes);
    let mut parts: Vec<Image> =
        parts.into_iter().zip(sizes).map(|(name, c)| Image { name, c, ..x.clone() }).collect();
    let y = net.conv(&parts[1], parts[1].c, 3, 1, 1);
    parts[1] = net.activation(&y);
    if net.chance.below(2) == 0 {
        parts.reverse();
    }
    concat(net, &parts)
}

fn option_a(net: &mut Net, x: &Image) -> Image {
    let (before, after) = (net.chance.below(4), net.chance.below(4));
    let c = x.c + before + after;
    let step = if x.h > 4 { 2 } else { 1 };
    let y = net.conv(x, c, 3, step, 1);
    let far = i64::MAX;
    let thin = net.slice(&x.name, &[2, -1], &[(0, far), (0, far)], step as i64);
    let (before, after) = (before as i64, after as i64);
    let pads = net.ints(&[0, before, 0, 0, 0, after, 0, 0]);
    let padded = net.node("Pad", &[&thin, &pads], vec![attr_text("mode", "constant")]);
    let sum = net.binary("Add", &y, &padded);
    net.unary("Relu", &sum)
}

fn conv_transpose(net: &mut Net, x: &Image) -> Image {
    if x.h > 8 {
        return wider(net, x);
    }
    let group = if x.c.is_multiple_of(2) { net.chance.pick(&[1, 2]) } else { 1 };
    let each = net.chance.pick(&[2, 3]);
    let weight = net.weight(&[x.c, each, 2, 2]);
    let attrs = vec![attr_ints("strides", &[2, 2]), attr_int("group", group as i64)];
    let name = net.node("ConvTranspose", &[&x.name, &weight], attrs);
    let y = Image { name, c: each * group, h: x.h * 2, w: x.w * 2 };
    net.activation(&y)
}

fn shuffle(net: &mut Net, x: &Image) -> Image {
    let y = net.conv(x, 8, 1, 1, 1);
    let (h, w) = (y.h as i64, y.w as i64);
    let split = net.reshape(&y.name, &[-1, 2, 4, h, w]);
    let turned = net.transpose(&split, &[0, 2, 1, 3, 4]);
    Image { name: net.reshape(&turned, &[-1, 8, h, w]), ..y }
}

fn pointwise_by_matmul(net: &mut Net, x: &Image, normalised: bool) -> Image {
    let mut rows = net.transpose(&x.name, &[0, 2, 3, 1]);
    if normalised && net.chance.below(2) == 0 {
        rows = net.node("Softmax", &[&rows], vec![attr_int("axis", -1)]);
    }
    let c = net.chance.pick(&[4, 6]);
    let inner = net.linear(&rows, x.c, 10);
    let inner = net.node("Relu", &[&inner], Vec::new());
    let out = net.linear(&inner, 10, c);
    Image { name: net.transpose(&out, &[0, 3, 1, 2]), c, ..x.clone() }
}

fn pooled(net: &mut Net, x: &Image) -> Image {
    if x.h < 4 {
        return net.unary(if net.quiet { "Softsign" } else { "Sigmoid" }, x);
    }
    let kind = net.chance.pick(&["MaxPool", "AveragePool"]);
    let attrs = vec![attr_ints("kernel_shape", &[2, 2]), attr_ints("strides", &[2, 2])];
    Image { name: net.node(kind, &[&x.name], attrs), c: x.c, h: x.h / 2, w: x.w / 2 }
}

fn sliced(net: &mut Net, x: &Image) -> Image {
    let y = net.conv(x, 8, 1, 1, 1);
    let (start, end, c) = net.chance.pick(&[(2, 7, 5), (-6, 8, 6), (0, -3, 5), (3, i64::MAX, 5)]);
    let first = Image { name: net.slice(&y.name, &[1], &[(start, end)], 1), c, ..y.clone() };
    if net.chance.below(2) == 0 { first } else { concat(net, &[y, first]) }
}

fn resized(net: &mut Net, x: &Image) -> Image {
    if x.h > 8 {
        return net.unary("Relu", x);
    }
    let empty = net.reals(&[0], |_| 0.0);
    let (h, w) = (x.h * 2, x.w * 2);
    let name = if net.chance.below(2) == 0 {
        let mut scales = [1.0, 1.0, 2.0, 2.0].into_iter();
        let scales = net.reals(&[4], |_| scales.next().unwrap());
        net.node("Resize", &[&x.name, &empty, &scales], Vec::new())
    } else {
        // The sizes of batch and channels as the graph reads them.
        let shape = net.node("Shape", &[&x.name], Vec::new());
        let kept = net.slice(&shape, &[0], &[(0, 2)], 1);
        let new = net.ints(&[h as i64, w as i64]);
        let sizes = net.node("Concat", &[&kept, &new], vec![attr_int("axis", 0)]);
        net.node("Resize", &[&x.name, &empty, "", &sizes], Vec::new())
    };
    Image { name, c: x.c, h, w }
}

fn weighted_sum(net: &mut Net, x: &Image) -> Image {
    let scale = net.reals(&[1, x.c, 1, 1], |chance| chance.real());
    let y = net.binary("Mul", x, &scale);
    let loud = if net.quiet { 0.0 } else { 1.0 };
    let one = net.reals(&[1], |chance| chance.real() * loud);
    net.binary("Add", &y, &one)
}

/// Self-attention over positions, two heads, fused projection.
fn attention(net: &mut Net, x: &Image) -> Image {
    let (heads, depth) = (2, 3);
    let (wide, rows) = (heads * depth, (x.h * x.w) as i64);
    let flat = net.reshape(&x.name, &[0, 0, -1]);
    let tokens = net.transpose(&flat, &[0, 2, 1]);
    let of = |net: &mut Net, order: &[i64]| {
        let made = net.linear(&tokens, x.c, wide);
        let parts = net.reshape(&made, &[-1, rows, heads as i64, depth as i64]);
        net.transpose(&parts, order)
    };
    let (q, k) = (of(net, &[0, 2, 1, 3]), of(net, &[0, 2, 3, 1]));
    let v = of(net, &[0, 2, 1, 3]);
    let scores = net.node("MatMul", &[&q, &k], Vec::new());
    let scores = net.node("Softmax", &[&scores], vec![attr_int("axis", -1)]);
    let mixed = net.node("MatMul", &[&scores, &v], Vec::new());
    let mixed = net.transpose(&mixed, &[0, 2, 1, 3]);
    let joined = net.reshape(&mixed, &[-1, rows, wide as i64]);
    let out = net.linear(&joined, wide, x.c);
    let sum = net.node("Add", &[&out, &tokens], Vec::new());
    let image = net.transpose(&sum, &[0, 2, 1]);
    let (c, h, w) = (x.c as i64, x.h as i64, x.w as i64);
    Image { name: net.reshape(&image, &[-1, c, h, w]), ..x.clone() }
}

/// Flattened and put back with sizes that the graph reads from another value.
fn through_sizes(net: &mut Net, x: &Image) -> Image {
    let y = net.conv(x, 6, 1, 1, 1);
    let z = net.unary("Relu", &y);
    let shape = net.node("Shape", &[&y.name], Vec::new());
    let (batch, channels) = (net.slice(&shape, &[0], &[(0, 1)], 1), net.ints(&[1]));
    let channels = net.node("Gather", &[&shape, &channels], vec![attr_int("axis", 0)]);
    let rest = net.ints(&[-1]);
    let flat = net.node("Concat", &[&batch, &channels, &rest], vec![attr_int("axis", 0)]);
    let flat = net.node("Reshape", &[&z.name, &flat], Vec::new());
    let number = if net.chance.below(2) == 0 { channels } else { net.ints(&[6]) };
    let last = net.ints(&[y.h as i64, y.w as i64]);
    let back = net.node("Concat", &[&batch, &number, &last], vec![attr_int("axis", 0)]);
    Image { name: net.node("Reshape", &[&flat, &back], Vec::new()), ..y }
}

/// A scale a channel, made by pooling, squeezing and putting the axes back.
fn squeezed(net: &mut Net, x: &Image) -> Image {
    let pooled = net.node("GlobalAveragePool", &[&x.name], Vec::new());
    let axes = net.ints(&[2, 3]);
    let vector = net.node("Squeeze", &[&pooled, &axes], Vec::new());
    let vector = net.gemm(&vector, x.c, x.c);
    let axes = net.ints(&[-1, 2]);
    let scale = net.node("Unsqueeze", &[&vector, &axes], Vec::new());
    net.binary("Mul", x, &scale)
}

/// A Softmax over channels, which must stay, or over positions.
fn over_channels(net: &mut Net, x: &Image) -> Image {
    let y = net.conv(x, 6, 1, 1, 1);
    let kind = net.chance.pick(&["Softmax", "LogSoftmax"]);
    let axis = if net.quiet { 1 } else { net.chance.pick(&[1, 3]) };
    let name = net.node(kind, &[&y.name], vec![attr_int("axis", axis)]);
    net.binary("Sub", &y, &name)
}

/// Rows are picked by number; channels pass.
fn picked(net: &mut Net, x: &Image) -> Image {
    let rows: Vec<i64> = (0..x.h as i64).rev().collect();
    let indices = net.ints(&rows);
    Image { name: net.node("Gather", &[&x.name, &indices], vec![attr_int("axis", 2)]), ..x.clone() }
}

/// Two convolutions with one weight.
fn tied(net: &mut Net, x: &Image) -> Image {
    let weight = net.weight(&[x.c, x.c, 1, 1]);
    let name = net.node("Conv", &[&x.name, &weight], Vec::new());
    let y = net.unary("Relu", &Image { name, ..x.clone() });
    Image { name: net.node("Conv", &[&y.name, &weight], Vec::new()), ..x.clone() }
}

/// The end of a network: scores of five classes from an image, in one of the common ways.
pub fn head(net: &mut Net, x: &Image) -> String {
    let size = x.c * x.h * x.w;
    match net.chance.below(6) {
        0 => {
            let flat = net.node("Flatten", &[&x.name], Vec::new());
            net.gemm(&flat, size, 5)
        }
        1 => {
            let flat = net.reshape(&x.name, &[-1, size as i64]);
            net.linear(&flat, size, 5)
        }
        2 => {
            let flat = net.reshape(&x.name, &[0, -1]);
            net.linear(&flat, size, 5)
        }
        3 => {
            let shape = net.node("Shape", &[&x.name], Vec::new());
            let batch = net.slice(&shape, &[0], &[(0, 1)], 1);
            let rest = net.ints(&[size as i64]);
            let target = net.node("Concat", &[&batch, &rest], vec![attr_int("axis", 0)]);
            let flat = net.node("Reshape", &[&x.name, &target], Vec::new());
            net.gemm(&flat, size, 5)
        }
        4 => {
            let rows = net.transpose(&x.name, &[0, 2, 3, 1]);
            let flat = net.reshape(&rows, &[0, -1]);
            net.gemm(&flat, size, 5)
        }
        _ => {
            let pooled = net.node("GlobalAveragePool", &[&x.name], Vec::new());
            let flat = net.node("Flatten", &[&pooled], Vec::new());
            net.gemm(&flat, x.c, 5)
        }
    }
}
