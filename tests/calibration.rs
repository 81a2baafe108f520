//! Samples that are made up for models with integer inputs: every index is one that the model takes, and
//! nothing is masked away. Held against ONNX Runtime, which refuses an index beyond its table.

mod running;

#[path = "nets/mod.rs"]
mod nets;
#[path = "nets/subject.rs"]
mod subject;

use std::collections::BTreeMap;
use std::process::Command;

use blochd::ladder::calibration::{Samples, inputs, synthetic};
use blochd::onnx::{DType, Engine, Model, Tensor, attr_ints, values};
use nets::{Net, attr_int};
use subject::engine;

const COUNT: usize = 64;

fn samples(model: &Model, sizes: &[(&str, usize)]) -> Samples {
    let sizes: BTreeMap<String, usize> =
        sizes.iter().map(|(name, size)| ((*name).to_owned(), *size)).collect();
    synthetic(model, &inputs(model).unwrap(), &sizes, COUNT, 3).unwrap()
}

/// All that was made up for one input.
fn made(samples: &Samples, input: &str) -> Vec<i64> {
    let of = |tensor: &Tensor| values::integers(tensor.dtype, &tensor.data).unwrap();
    samples.batches.iter().flat_map(|batch| of(&batch[input])).collect()
}

fn run(model: &Model, samples: &Samples) -> Vec<Tensor> {
    let mut session = engine().open(model).unwrap();
    let mut run = |batch: &BTreeMap<String, Tensor>| {
        let fed: Vec<(&str, &Tensor)> = batch.iter().map(|(n, t)| (n.as_str(), t)).collect();
        session.run(&fed).unwrap_or_else(|error| panic!("{error}"))
    };
    samples.batches.iter().flat_map(&mut run).collect()
}

const WIDTH: usize = 8;
const WORDS: usize = 50;
const POSITIONS: usize = 16;

/// Embeddings of words, kinds and positions, and one head of attention over those that a mask lets through.
fn encoder(dtype: DType, mask: DType) -> Model {
    let mut net = Net::plain(2);
    let tokens = [None, Some(12)];
    let [ids, kinds, places] =
        ["input_ids", "token_type_ids", "position_ids"].map(|name| net.typed(name, dtype, &tokens));
    let mask_in = net.typed("attention_mask", mask, &tokens);
    // Indices and tables as exporters leave them: behind casts, with an axis more for a while.
    let wide = net.node("Cast", &[&ids], vec![attr_int("to", DType::I64 as i64)]);
    let axes = net.ints(&[0]);
    let wide = net.node("Unsqueeze", &[&wide, &axes], Vec::new());
    let wide = net.node("Squeeze", &[&wide, &axes], Vec::new());
    let [words, two, ends] = [WORDS, 2, POSITIONS].map(|rows| net.weight(&[rows, WIDTH]));
    let ends = net.node("Identity", &[&ends], Vec::new());
    let x = net.node("Gather", &[&words, &wide], Vec::new());
    let y = net.node("Gather", &[&two, &kinds], vec![attr_int("axis", 0)]);
    let z = net.node("Gather", &[&ends, &places], Vec::new());
    let x = net.node("Add", &[&x, &y], Vec::new());
    let x = net.node("Add", &[&x, &z], Vec::new());
    let [q, k, v] = [(); 3].map(|()| net.linear(&x, WIDTH, WIDTH));
    let k = net.transpose(&k, &[0, 2, 1]);
    let scores = net.node("MatMul", &[&q, &k], Vec::new());
    let axes = net.ints(&[1]);
    let heard = net.node("Unsqueeze", &[&mask_in, &axes], Vec::new());
    let scores = if mask == DType::Bool {
        let never = net.reals(&[], |_| -1e4);
        net.node("Where", &[&heard, &scores, &never], Vec::new())
    } else {
        let heard = net.node("Cast", &[&heard], vec![attr_int("to", 1)]);
        let (one, never) = (net.reals(&[], |_| 1.0), net.reals(&[], |_| -1e4));
        let silent = net.node("Sub", &[&one, &heard], Vec::new());
        let silent = net.node("Mul", &[&silent, &never], Vec::new());
        net.node("Add", &[&scores, &silent], Vec::new())
    };
    let shares = net.node("Softmax", &[&scores], vec![attr_int("axis", -1)]);
    let y = net.node("MatMul", &[&shares, &v], Vec::new());
    let end = net.linear(&y, WIDTH, 3);
    net.output(&end);
    net.model()
}

#[test]
fn an_encoder_of_text_gets_indices_in_range_and_a_mask_that_lets_all_through() {
    for (dtype, mask) in [
        (DType::I64, DType::I64),
        (DType::I32, DType::I32),
        (DType::I64, DType::Bool),
        (DType::I32, DType::U8),
    ] {
        let model = encoder(dtype, mask);
        let samples = samples(&model, &[]);
        for output in run(&model, &samples) {
            assert!(output.to_f32().unwrap().iter().all(|value| value.is_finite()));
        }
        for (input, rows) in
            [("input_ids", WORDS), ("token_type_ids", 2), ("position_ids", POSITIONS)]
        {
            let made = made(&samples, input);
            let (least, most) = (made.iter().min().unwrap(), made.iter().max().unwrap());
            assert_eq!((*least, *most), (0, rows as i64 - 1), "{dtype:?} {mask:?} {input}");
        }
        assert!(made(&samples, "attention_mask").iter().all(|flag| *flag == 1), "{mask:?}");
    }
}

#[test]
fn a_trial_of_an_encoder_needs_no_samples() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("encoder.onnx");
    std::fs::write(&path, encoder(DType::I64, DType::I64).encode_inline().unwrap()).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_blochd"));
    running::without_settings(&mut command);
    command.args(["trial", "--runs", "1", "--runtime"]).arg(running::onnx_runtime()).arg(&path);
    let done = command.output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

/// A model that hands input `x` on to `reader` and returns its result.
fn reading(
    dtype: DType,
    dims: &[Option<usize>],
    reader: impl Fn(&mut Net, &str) -> String,
) -> Vec<i64> {
    let mut net = Net::plain(4);
    let x = net.typed("x", dtype, dims);
    let end = reader(&mut net, &x);
    net.output(&end);
    let model = net.model();
    let samples = samples(&model, &[]);
    run(&model, &samples);
    made(&samples, "x")
}

fn most(made: &[i64]) -> i64 {
    *made.iter().max().unwrap()
}

#[test]
fn the_smallest_table_that_an_input_reaches_bounds_it() {
    let two = reading(DType::I64, &[None, Some(4)], |net, x| {
        let (large, small) = (net.weight(&[40, 3]), net.weight(&[7, 3]));
        let a = net.node("Gather", &[&large, x], Vec::new());
        let narrow = net.node("Cast", &[x], vec![attr_int("to", DType::I32 as i64)]);
        let flat = net.reshape(&narrow, &[-1, 4]);
        let b = net.node("Gather", &[&small, &flat], Vec::new());
        net.node("Add", &[&a, &b], Vec::new())
    });
    assert_eq!(most(&two), 6);
}

#[test]
fn an_axis_that_is_not_the_first_and_an_offset_into_a_shared_table_count() {
    let columns = reading(DType::I32, &[None], |net, x| {
        let table = net.weight(&[3, 9]);
        net.node("Gather", &[&table, x], vec![attr_int("axis", -1)])
    });
    assert_eq!(most(&columns), 8);
    let fields = reading(DType::I64, &[None, Some(2)], |net, x| {
        let table = net.weight(&[30, 3]);
        let starts = net.ints(&[0, 25]);
        let index = net.node("Add", &[x, &starts], Vec::new());
        net.node("Gather", &[&table, &index], Vec::new())
    });
    assert_eq!(most(&fields), 4);
}

#[test]
fn what_reaches_no_table_is_a_flag_or_a_picture() {
    let scaled = |net: &mut Net, x: &str| net.node("Cast", &[x], vec![attr_int("to", 1)]);
    for dtype in [DType::Bool, DType::I8, DType::I16, DType::U8, DType::I32, DType::U64] {
        let flags = reading(dtype, &[None, Some(5)], scaled);
        assert!(flags.iter().all(|flag| *flag == 1), "{dtype:?}");
    }
    let pixels = reading(DType::U8, &[None, Some(3), Some(16), Some(16)], |net, x| {
        let real = net.node("Cast", &[x], vec![attr_int("to", 1)]);
        net.node("ReduceMean", &[&real], vec![attr_ints("axes", &[2, 3])])
    });
    let mean = pixels.iter().sum::<i64>() / pixels.len() as i64;
    assert!((100..156).contains(&mean), "{mean}");
    assert!(*pixels.iter().min().unwrap() < 64 && most(&pixels) > 192);
}

#[test]
fn a_table_of_unknown_length_is_asked_for_its_first_row() {
    let first = reading(DType::I64, &[None], |net, x| {
        let table = net.node("Cast", &[x], vec![attr_int("to", 1)]);
        net.node("Gather", &[&table, x], Vec::new())
    });
    assert_eq!(most(&first), 0);
}
