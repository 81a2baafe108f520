//! Pieces around one operator that works on every element for itself, or takes axes of an image together.
//!
//! Operators that jump (a comparison, a rounding) read values that stand away from where they do: numbers that differ
//! in their last bits give the same.

// Each test file uses a part of it.
#![allow(dead_code)]

use blochd::onnx::attr_ints;

use super::nets::{Image, Net, attr_int};

/// Operators of one value.
const UNARY: [&str; 33] = [
    "Relu",
    "LeakyRelu",
    "Sigmoid",
    "HardSigmoid",
    "HardSwish",
    "Tanh",
    "Elu",
    "Selu",
    "Celu",
    "Softplus",
    "Softsign",
    "Erf",
    "Exp",
    "Log",
    "Sqrt",
    "Abs",
    "Neg",
    "Reciprocal",
    "Floor",
    "Ceil",
    "Round",
    "Sign",
    "Identity",
    "Cast",
    "Dropout",
    "Clip",
    "ThresholdedRelu",
    "Sin",
    "Cos",
    "Gelu",
    "Mish",
    "Swish",
    "Not",
];

/// Operators of two values or more, and of a value and a vector over its channels.
const MANY: [&str; 17] = [
    "Add",
    "Sub",
    "Mul",
    "Div",
    "Pow",
    "Max",
    "Min",
    "Mean",
    "Sum",
    "Where",
    "PRelu",
    "And",
    "Or",
    "Xor",
    "Equal",
    "Greater",
    "GreaterOrEqual",
];

/// The rest of them, and operators that pool or reduce.
const MORE: [&str; 13] = [
    "Less",
    "LessOrEqual",
    "GlobalMaxPool",
    "LpPool",
    "ReduceMean",
    "ReduceSum",
    "ReduceMax",
    "ReduceMin",
    "ReduceL1",
    "ReduceL2",
    "ReduceProd",
    "ReduceSumSquare",
    "Expand",
];

/// How many operators there are.
pub const KINDS: usize = UNARY.len() + MANY.len() + MORE.len();

/// A piece around one of them.
pub fn piece(net: &mut Net, x: &Image) -> Image {
    let kind = net.chance.below(KINDS);
    around(net, x, kind)
}

/// x times what operator `kind` makes of values that x moves a little.
pub fn around(net: &mut Net, x: &Image, kind: usize) -> Image {
    let op = UNARY.iter().chain(&MANY).chain(&MORE).nth(kind).unwrap();
    let made = match *op {
        // Younger than some of the operator sets.
        "Gelu" if net.opset < 20 => net.node("Relu", &[&x.name], Vec::new()),
        "Mish" if net.opset < 18 => net.node("Relu", &[&x.name], Vec::new()),
        "Swish" if net.opset < 24 => net.node("Relu", &[&x.name], Vec::new()),
        "HardSwish" if net.opset < 14 => net.node("Relu", &[&x.name], Vec::new()),
        op if UNARY.contains(&op) => unary(net, x, op),
        op if MANY.contains(&op) || op.starts_with("Less") => many(net, x, op),
        op => together(net, x, op),
    };
    net.binary("Mul", x, &made)
}

/// A number between whole ones for each channel, moved by x by less than a fifth.
fn steady(net: &mut Net, x: &Image, least: f32) -> String {
    let offset = net.reals(&[1, x.c, 1, 1], |chance| least + chance.pick(&[0.5, 1.5, 2.5]));
    let bent = net.node("Tanh", &[&x.name], Vec::new());
    let fifth = net.reals(&[], |_| 0.2);
    let little = net.node("Mul", &[&bent, &fifth], Vec::new());
    net.node("Add", &[&little, &offset], Vec::new())
}

fn unary(net: &mut Net, x: &Image, op: &str) -> String {
    let positive = ["Log", "Sqrt", "Reciprocal"].contains(&op);
    let s = steady(net, x, if positive { 0.0 } else { -2.0 });
    match op {
        "Cast" => net.node(op, &[&s], vec![attr_int("to", 1)]),
        "Clip" => {
            let (low, high) = (net.reals(&[], |_| -1.0), net.reals(&[], |_| 0.5));
            net.node(op, &[&s, &low, &high], Vec::new())
        }
        "Not" => {
            let zero = net.reals(&[], |_| 0.0);
            let truth = net.node("Greater", &[&s, &zero], Vec::new());
            let other = net.node(op, &[&truth], Vec::new());
            net.node("Cast", &[&other], vec![attr_int("to", 1)])
        }
        _ => net.node(op, &[&s], Vec::new()),
    }
}

fn many(net: &mut Net, x: &Image, op: &str) -> String {
    let s = steady(net, x, if ["Div", "Pow"].contains(&op) { 0.0 } else { -2.0 });
    // Whole numbers, one a channel.
    let whole = net.reals(&[x.c, 1, 1], |chance| chance.pick(&[1.0, 2.0]));
    let number = |net: &mut Net, truth: &str| net.node("Cast", &[truth], vec![attr_int("to", 1)]);
    match op {
        "Max" | "Min" | "Mean" | "Sum" => net.node(op, &[&s, &whole, &x.name], Vec::new()),
        "Equal" => {
            let low = net.node("Floor", &[&s], Vec::new());
            let truth = net.node(op, &[&low, &whole], Vec::new());
            number(net, &truth)
        }
        "Greater" | "GreaterOrEqual" | "Less" | "LessOrEqual" => {
            let truth = net.node(op, &[&whole, &s], Vec::new());
            number(net, &truth)
        }
        "And" | "Or" | "Xor" | "Where" => {
            let zero = net.reals(&[], |_| 0.0);
            let first = net.node("Greater", &[&s, &zero], Vec::new());
            if op == "Where" {
                return net.node(op, &[&first, &s, &whole], Vec::new());
            }
            let second = net.node("Less", &[&s, &whole], Vec::new());
            let truth = net.node(op, &[&first, &second], Vec::new());
            number(net, &truth)
        }
        _ => net.node(op, &[&s, &whole], Vec::new()),
    }
}

/// One number a channel (or a row of it).
fn together(net: &mut Net, x: &Image, op: &str) -> String {
    match op {
        "GlobalMaxPool" => net.node(op, &[&x.name], Vec::new()),
        "LpPool" => {
            let whole = vec![attr_ints("kernel_shape", &[x.h as i64, x.w as i64])];
            net.node(op, &[&x.name], whole)
        }
        "Expand" => {
            let row = net.reals(&[1, x.c, 1, 1], |chance| chance.real());
            let target = net.ints(&[1, x.c as i64, x.h as i64, x.w as i64]);
            net.node(op, &[&row, &target], Vec::new())
        }
        _ => {
            let s = steady(net, x, -2.0);
            let by_input = net.opset >= 18 || op == "ReduceSum";
            let (axes, keep) = ([3], attr_int("keepdims", 1));
            if by_input {
                let axes = net.ints(&axes);
                net.node(op, &[&s, &axes], vec![keep])
            } else {
                net.node(op, &[&s], vec![attr_ints("axes", &axes), keep])
            }
        }
    }
}

/// Statistics over the positions of each channel.
pub fn instance_norm(net: &mut Net, x: &Image) -> Image {
    let loud = if net.quiet { 0.0 } else { 0.3 };
    let scale = net.reals(&[x.c], |chance| 1.0 + chance.real() * 0.5);
    let shift = net.reals(&[x.c], |chance| chance.real() * loud);
    // A little more than rounding makes of equal positions.
    let attrs = vec![blochd::onnx::attr_float("epsilon", 1e-2)];
    let name = net.node("InstanceNormalization", &[&x.name, &scale, &shift], attrs);
    Image { name, ..x.clone() }
}

/// A body of control flow; what goes in stays.
pub fn control_flow(net: &mut Net, x: &Image) -> Image {
    let y = net.conv(x, 4, 1, 1, 1);
    let kind = net.chance.pick(&["If", "Loop", "Scan"]);
    let y = Image { name: net.control_flow(kind, &y), ..y };
    let y = net.conv(&y, 6, 1, 1, 1);
    net.unary("Relu", &y)
}
