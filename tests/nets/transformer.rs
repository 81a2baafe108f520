//! Pieces of transformers for random networks, in the forms that several exporters give them.

// Each test file uses a part of it.
#![allow(dead_code)]

use blochd::onnx::{attr_float, attr_ints};

use super::nets::{Image, Net, attr_int};

/// Where the numbers of a Reshape's target stand.
#[derive(Clone, Copy)]
enum Target {
    /// In a list of its own.
    List,
    /// In a constant that is put together with sizes read from the value.
    Computed,
    /// The same, but queries, keys and values share the constant.
    SharedNumbers,
    /// They share the whole computed target.
    SharedWhole,
}

/// Appends a piece of kind `kind`, one of the three.
pub fn piece(net: &mut Net, x: &Image, kind: usize) -> Image {
    match kind {
        0 => block(net, x, attention),
        1 => block(net, x, neurons),
        _ => pyramid(net, x),
    }
}

/// x as rows of tokens, normalised before or after, what `branch` makes of them added.
fn block(net: &mut Net, x: &Image, branch: fn(&mut Net, &str, &Image) -> String) -> Image {
    let flat = net.reshape(&x.name, &[0, 0, -1]);
    let tokens = net.transpose(&flat, &[0, 2, 1]);
    let before = net.chance.below(3);
    let seen = if before == 0 { norm(net, &tokens, x.c) } else { tokens.clone() };
    let made = branch(net, &seen, x);
    let sum = net.node("Add", &[&made, &tokens], Vec::new());
    let sum = if before == 1 { norm(net, &sum, x.c) } else { sum };
    let image = net.transpose(&sum, &[0, 2, 1]);
    let (c, h, w) = (x.c as i64, x.h as i64, x.w as i64);
    Image { name: net.reshape(&image, &[-1, c, h, w]), ..x.clone() }
}

fn number(net: &mut Net, value: f32) -> String {
    net.reals(&[], |_| value)
}

fn mean(net: &mut Net, x: &str) -> String {
    if net.opset >= 18 {
        let axes = net.ints(&[-1]);
        return net.node("ReduceMean", &[x, &axes], Vec::new());
    }
    net.node("ReduceMean", &[x], vec![attr_ints("axes", &[-1])])
}

/// LayerNormalization as an operator or by hand, or the root mean square alone.
pub fn norm(net: &mut Net, x: &str, width: usize) -> String {
    let scale = net.reals(&[width], |chance| 1.0 + chance.real() * 0.3);
    let loud = if net.quiet { 0.0 } else { 0.3 };
    let shift = net.reals(&[width], |chance| chance.real() * loud);
    let form = net.chance.below(3);
    if form == 0 && net.opset >= 17 {
        // As by hand: what is left of two channels that say nearly the same is more than rounding.
        let attrs = vec![attr_int("axis", -1), attr_float("epsilon", 1e-3)];
        return net.node("LayerNormalization", &[x, &scale, &shift], attrs);
    }
    let centred = if form == 1 {
        let mean = mean(net, x);
        net.node("Sub", &[x, &mean], Vec::new())
    } else {
        x.to_owned()
    };
    let two = number(net, 2.0);
    let squares = net.node("Pow", &[&centred, &two], Vec::new());
    let variance = mean(net, &squares);
    let little = number(net, 1e-3);
    let variance = net.node("Add", &[&variance, &little], Vec::new());
    let root = net.node("Sqrt", &[&variance], Vec::new());
    let made = net.node("Div", &[&centred, &root], Vec::new());
    let made = net.node("Mul", &[&made, &scale], Vec::new());
    if form == 1 { net.node("Add", &[&made, &shift], Vec::new()) } else { made }
}

/// What queries, keys and values of one attention share.
#[derive(Default)]
struct Shared {
    numbers: Option<String>,
    target: Option<String>,
}

/// (batch, tokens, …) with the last sizes as given.
fn reshaped(
    net: &mut Net,
    x: &str,
    (rows, last): (usize, &[usize]),
    target: Target,
    shared: &mut Shared,
) -> String {
    let last: Vec<i64> = last.iter().map(|size| *size as i64).collect();
    if let Target::List = target {
        return net.reshape(x, &[&[-1, rows as i64], last.as_slice()].concat());
    }
    if let (Target::SharedWhole, Some(target)) = (target, &shared.target) {
        return net.node("Reshape", &[x, target], Vec::new());
    }
    let shape = net.node("Shape", &[x], Vec::new());
    let batch = net.slice(&shape, &[0], &[(0, 1)], 1);
    let one = net.ints(&[1]);
    let tokens = net.node("Gather", &[&shape, &one], vec![attr_int("axis", 0)]);
    let numbers = match (target, &shared.numbers) {
        (Target::SharedNumbers, Some(numbers)) => numbers.clone(),
        _ => net.ints(&last),
    };
    let made = net.node("Concat", &[&batch, &tokens, &numbers], vec![attr_int("axis", 0)]);
    shared.numbers = Some(numbers);
    shared.target = Some(made.clone());
    net.node("Reshape", &[x, &made], Vec::new())
}

/// Self-attention: projections apart or in one, the one taken apart by Split, Slice or Gather.
fn attention(net: &mut Net, tokens: &str, x: &Image) -> String {
    let (heads, depth) = (net.chance.pick(&[2, 3, 4]), net.chance.pick(&[2, 3]));
    let (wide, rows) = (heads * depth, x.h * x.w);
    let target = net.chance.pick(&[
        Target::List,
        Target::Computed,
        Target::SharedNumbers,
        Target::SharedWhole,
    ]);
    let mut shared = Shared::default();
    let apart = |net: &mut Net, made: [String; 3], shared: &mut Shared| {
        made.map(|x| reshaped(net, &x, (rows, &[heads, depth]), target, shared))
    };
    let parts = match net.chance.below(4) {
        0 => {
            let made = [(); 3].map(|()| net.linear(tokens, x.c, wide));
            apart(net, made, &mut shared)
        }
        1 => {
            let all = net.linear(tokens, x.c, 3 * wide);
            let sizes = net.ints(&[wide as i64; 3]);
            let axis = vec![attr_int("axis", -1)];
            let made = net.nodes("Split", &[&all, &sizes], 3, axis);
            apart(net, made.try_into().unwrap(), &mut shared)
        }
        2 => {
            let all = net.linear(tokens, x.c, 3 * wide);
            let wide = wide as i64;
            let made = [(0, wide), (wide, 2 * wide), (2 * wide, i64::MAX)]
                .map(|bounds| net.slice(&all, &[2], &[bounds], 1));
            apart(net, made, &mut shared)
        }
        _ => {
            let all = net.linear(tokens, x.c, 3 * wide);
            let all = reshaped(net, &all, (rows, &[3, heads, depth]), target, &mut shared);
            let zero = net.ints(&[2]);
            [0, 1, 2].map(|part| {
                let at = net.ints(&[part]);
                let one = net.node("Gather", &[&all, &at], vec![attr_int("axis", 2)]);
                net.node("Squeeze", &[&one, &zero], Vec::new())
            })
        }
    };
    let q = net.transpose(&parts[0], &[0, 2, 1, 3]);
    let k = net.transpose(&parts[1], &[0, 2, 3, 1]);
    let v = net.transpose(&parts[2], &[0, 2, 1, 3]);
    let scores = net.node("MatMul", &[&q, &k], Vec::new());
    let root = number(net, (depth as f32).sqrt());
    let scores = net.node("Div", &[&scores, &root], Vec::new());
    let scores = net.node("Softmax", &[&scores], vec![attr_int("axis", -1)]);
    let mixed = net.node("MatMul", &[&scores, &v], Vec::new());
    let mixed = net.transpose(&mixed, &[0, 2, 1, 3]);
    let joined = reshaped(net, &mixed, (rows, &[wide]), target, &mut Shared::default());
    net.linear(&joined, wide, x.c)
}

/// Two linear layers with one of the common activations or gates between them.
fn neurons(net: &mut Net, tokens: &str, x: &Image) -> String {
    let gated = net.chance.below(2) == 0;
    let inner = 6;
    let y = net.linear(tokens, x.c, if gated { 2 * inner } else { inner });
    if !gated {
        let y = activated(net, &y);
        return net.linear(&y, inner, x.c);
    }
    let half = inner as i64;
    let parts = if net.chance.below(2) == 0 {
        let sizes = net.ints(&[half; 2]);
        net.nodes("Split", &[&y, &sizes], 2, vec![attr_int("axis", -1)])
    } else {
        let far = i64::MAX;
        [(0, half), (half, far)].map(|bounds| net.slice(&y, &[-1], &[bounds], 1)).to_vec()
    };
    let gate = activated(net, &parts[0]);
    let y = net.node("Mul", &[&gate, &parts[1]], Vec::new());
    net.linear(&y, inner, x.c)
}

/// GELU by Erf or by Tanh, or SiLU.
fn activated(net: &mut Net, x: &str) -> String {
    let [one, half] = [1.0, 0.5].map(|value| number(net, value));
    let inner = match net.chance.below(3) {
        0 => {
            let root = number(net, 2f32.sqrt());
            let y = net.node("Div", &[x, &root], Vec::new());
            net.node("Erf", &[&y], Vec::new())
        }
        1 => {
            let [three, third, factor] =
                [3.0, 0.044_715, 0.797_884_6].map(|value| number(net, value));
            let y = net.node("Pow", &[x, &three], Vec::new());
            let y = net.node("Mul", &[&y, &third], Vec::new());
            let y = net.node("Add", &[x, &y], Vec::new());
            let y = net.node("Mul", &[&y, &factor], Vec::new());
            net.node("Tanh", &[&y], Vec::new())
        }
        _ => {
            let y = net.node("Sigmoid", &[x], Vec::new());
            return net.node("Mul", &[x, &y], Vec::new());
        }
    };
    let y = net.node("Add", &[&inner, &one], Vec::new());
    let y = net.node("Mul", &[x, &y], Vec::new());
    net.node("Mul", &[&y, &half], Vec::new())
}

/// Two scales: the coarse one enlarged and put beside (or added to) what the fine one says.
fn pyramid(net: &mut Net, x: &Image) -> Image {
    if x.h < 4 || !x.h.is_multiple_of(2) {
        return net.unary("Relu", x);
    }
    let coarse = net.conv(x, 6, 3, 2, 1);
    let coarse = net.unary("Relu", &coarse);
    let coarse = net.conv(&coarse, 4, 1, 1, 1);
    let empty = net.reals(&[0], |_| 0.0);
    let mut scales = [1.0, 1.0, 2.0, 2.0].into_iter();
    let scales = net.reals(&[4], |_| scales.next().unwrap());
    let name = net.node("Resize", &[&coarse.name, &empty, &scales], Vec::new());
    let large = Image { name, c: 4, h: coarse.h * 2, w: coarse.w * 2 };
    let fine = net.conv(x, 4, 1, 1, 1);
    let y = if net.chance.below(2) == 0 {
        net.binary("Add", &fine, &large.name)
    } else {
        let attrs = vec![attr_int("axis", 1)];
        let name = net.node("Concat", &[&fine.name, &large.name], attrs);
        Image { name, c: 8, ..fine }
    };
    net.conv(&y, 6, 3, 1, 1)
}
