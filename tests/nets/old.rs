//! Pieces in the forms of operator set 9: numbers in attributes, and an operator that is gone today.

// Each test file uses a part of it.
#![allow(dead_code)]

use blochd::onnx::{attr_float, attr_ints};

use super::nets::{Image, Net, attr_int, attr_text};

/// How many kinds of pieces there are.
pub const KINDS: usize = 5;

/// Appends a piece of kind `kind`.
pub fn step(net: &mut Net, x: &Image, kind: usize) -> Image {
    match kind {
        0 => {
            let y = net.conv(x, 6, 3, 1, 1);
            let bounds = vec![attr_float("min", 0.0), attr_float("max", 1.0)];
            Image { name: net.node("Clip", &[&y.name], bounds), ..y }
        }
        1 if x.h <= 8 => {
            let mut scales = [1.0, 1.0, 2.0, 2.0].into_iter();
            let scales = net.reals(&[4], |_| scales.next().unwrap());
            let name =
                net.node("Upsample", &[&x.name, &scales], vec![attr_text("mode", "nearest")]);
            Image { name, c: x.c, h: x.h * 2, w: x.w * 2 }
        }
        2 => {
            // The first channels, and two empty ones behind.
            let y = net.conv(x, 8, 1, 1, 1);
            let bounds =
                vec![attr_ints("starts", &[1]), attr_ints("ends", &[7]), attr_ints("axes", &[1])];
            let part = net.node("Slice", &[&y.name], bounds);
            let pads = vec![attr_ints("pads", &[0, 0, 0, 0, 0, 2, 0, 0])];
            let padded = net.node("Pad", &[&part], pads);
            net.binary("Add", &y, &padded)
        }
        3 => {
            let y = net.conv(x, 6, 1, 1, 1);
            let attrs = vec![attr_int("axis", 1), attr_ints("split", &[2, 4])];
            let parts = net.nodes("Split", &[&y.name], 2, attrs);
            let axis = vec![attr_int("axis", 1)];
            Image { name: net.node("Concat", &[&parts[1], &parts[0]], axis), ..y }
        }
        _ => {
            let mean = vec![attr_ints("axes", &[2, 3]), attr_int("keepdims", 1)];
            let pooled = net.node("ReduceMean", &[&x.name], mean);
            let vector = net.node("Squeeze", &[&pooled], vec![attr_ints("axes", &[2, 3])]);
            let vector = net.gemm(&vector, x.c, x.c);
            let scale = net.node("Unsqueeze", &[&vector], vec![attr_ints("axes", &[2, 3])]);
            net.binary("Mul", x, &scale)
        }
    }
}
