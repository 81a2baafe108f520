//! Weights that sessions hold together, against a real ONNX Runtime.

use std::fs;

use super::super::testing::runtime;
use super::super::{Dim, EngineOptions, LiveSession};
use super::*;
use crate::onnx::proto::TensorShapeProto;
use crate::onnx::proto::{GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto};
use crate::onnx::proto::{OperatorSetIdProto, TypeProto, tensor_shape_proto, type_proto};
use crate::onnx::{Session, Tensor, attr_ints, tensor};
use crate::shell::models;

fn model_file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/models").join(name)
}

/// Every constant counts, however small.
fn pool_of_all(folder: Option<&Path>) -> Pool {
    Pool { folder: folder.map(Path::to_owned), least: 1, ..Pool::in_memory() }
}

/// Numbers that differ, for every input; free axes are 16, and 1 for the first.
fn inputs(session: &LiveSession) -> Vec<(String, Tensor)> {
    let input = |info: &super::super::ValueInfo| {
        let size = |(axis, dim): (usize, &Dim)| match dim {
            Dim::Fixed(size) => *size,
            Dim::Free(_) => {
                if axis == 0 {
                    1
                } else {
                    16
                }
            }
        };
        let shape: Vec<usize> = info.shape.iter().enumerate().map(size).collect();
        let count: usize = shape.iter().product();
        let values: Vec<f32> = (0..count).map(|i| ((i * 37 % 101) as f32 - 50.0) / 50.0).collect();
        let tensor = match info.dtype {
            DType::F32 => Tensor::from_f32(&shape, &values),
            DType::F16 => {
                let halves = values.iter().map(|v| half::f16::from_f32(*v).to_le_bytes());
                let data: Vec<u8> = halves.flatten().collect();
                Tensor { dtype: DType::F16, shape, data: data.into() }
            }
            other => {
                Tensor { dtype: other, shape, data: vec![1; count * other.size().unwrap()].into() }
            }
        };
        (info.name.clone(), tensor)
    };
    session.inputs().iter().map(input).collect()
}

fn run(session: &mut LiveSession, inputs: &[(String, Tensor)]) -> Vec<Tensor> {
    let inputs: Vec<_> = inputs.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    session.run(&inputs, &[]).unwrap()
}

fn open(pool: &Pool, name: &str, model: &Model) -> (LiveSession, Option<Arc<Weights>>) {
    let weights = pool.hold(model, 2).unwrap();
    let lent = weights.as_ref().map(|weights| pool.lend(&runtime(), name, weights).unwrap());
    let options = EngineOptions::default();
    let session = LiveSession::open_lent(&runtime(), model, &options, lent.as_ref()).unwrap();
    (session, weights)
}

#[test]
fn answers_are_the_same_to_the_last_bit_whatever_lends_the_weights() {
    let dir = tempfile::tempdir().unwrap();
    for name in [
        "digits_resnet.onnx",
        "digits_resnet_bn.onnx",
        "digits_mobile.onnx",
        "digits_mobile_bn.onnx",
        "fixtures/concat_dense.onnx",
        "fixtures/constants_hardswish.onnx",
        "fixtures/conv_transpose.onnx",
        "fixtures/dynamic_hw.onnx",
        "fixtures/external/model.onnx",
        "fixtures/f16_throughout.onnx",
        "fixtures/f16_weights_cast.onnx",
        "fixtures/grouped_conv.onnx",
        "fixtures/if_node.onnx",
        "fixtures/mlp_gemm.onnx",
        "fixtures/mlp_matmul.onnx",
        "fixtures/residual.onnx",
        "fixtures/vgg_chain.onnx",
    ] {
        let model = models::load(&model_file(name)).unwrap();
        let options = EngineOptions::default();
        let mut alone = LiveSession::open_model(&runtime(), &model, &options).unwrap();
        let inputs = inputs(&alone);
        let expected = run(&mut alone, &inputs);
        assert!(expected.iter().all(|output| !output.data.is_empty()), "{name}");
        for pool in [pool_of_all(None), pool_of_all(Some(dir.path()))] {
            // The second finds everything there; the first one's end takes nothing from it.
            let (mut first, weights) = open(&pool, name, &model);
            let Some(weights) = weights else {
                assert_eq!(name, "fixtures/f16_weights_cast.onnx", "its weights are cast first");
                continue;
            };
            let (mut second, _) = open(&pool, name, &model);
            let bytes = pool.bytes();
            assert!(bytes > 0 && bytes <= weights.bytes(), "{name}");
            weights.release();
            assert_eq!(run(&mut first, &inputs), expected, "{name}");
            drop((first, weights));
            assert_eq!(run(&mut second, &inputs), expected, "{name}");
            assert_eq!(pool.bytes(), bytes, "{name}");
            let kept = run(&mut second, &inputs);
            drop(second);
            assert_eq!(kept, expected, "{name}: outputs outlive their session");
        }
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

fn value(name: &str, dims: &[i64]) -> ValueInfoProto {
    let dim = |size: &i64| tensor_shape_proto::Dimension {
        value: Some(tensor_shape_proto::dimension::Value::DimValue(*size)),
        ..Default::default()
    };
    let shape = TensorShapeProto { dim: dims.iter().map(dim).collect(), ..Default::default() };
    let of = type_proto::Tensor {
        elem_type: Some(DType::F32 as i32),
        shape: shape.into(),
        ..Default::default()
    };
    let r#type = TypeProto {
        value: Some(type_proto::Value::TensorType(Box::new(of))),
        ..Default::default()
    };
    ValueInfoProto { name: Some(name.to_owned()), r#type: r#type.into(), ..Default::default() }
}

fn node(op: &str, inputs: &[&str], output: &str) -> NodeProto {
    NodeProto {
        op_type: Some(op.to_owned()),
        input: inputs.iter().map(|name| (*name).to_owned()).collect(),
        output: vec![output.to_owned()],
        ..Default::default()
    }
}

fn model(nodes: Vec<NodeProto>, weights: Vec<TensorProto>, io: [ValueInfoProto; 2]) -> Model {
    let [input, output] = io;
    let graph = GraphProto {
        name: Some("g".to_owned()),
        node: nodes,
        input: vec![input],
        output: vec![output],
        initializer: weights,
        ..Default::default()
    };
    let opset = OperatorSetIdProto { version: Some(17), ..Default::default() };
    let proto = ModelProto {
        ir_version: Some(8),
        opset_import: vec![opset],
        graph: graph.into(),
        ..Default::default()
    };
    Model::from_proto(proto).unwrap()
}

const SIDE: usize = 128;

fn square(name: &str, seed: usize) -> TensorProto {
    let values = (0..SIDE * SIDE).map(|i| ((i * 31 + seed * 17) % 61) as f32 / 610.0 - 0.05);
    let bytes: Vec<u8> = values.flat_map(f32::to_le_bytes).collect();
    tensor(name, DType::F32, &[SIDE, SIDE], bytes)
}

/// A chain of products, with one weight a seed.
fn chain(seeds: &[usize]) -> Model {
    let names: Vec<String> = (0..seeds.len()).map(|at| format!("w{at}")).collect();
    let nodes = names
        .iter()
        .enumerate()
        .map(|(at, name)| node("MatMul", &[&format!("x{at}"), name], &format!("x{}", at + 1)));
    let weights = names.iter().zip(seeds).map(|(name, seed)| square(name, *seed)).collect();
    let shape = [4, SIDE as i64];
    let last = format!("x{}", seeds.len());
    model(nodes.collect(), weights, [value("x0", &shape), value(&last, &shape)])
}

fn resident() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

#[test]
fn a_ladder_holds_what_its_rungs_changed_beside_dense_and_gives_all_of_it_back() {
    let dir = tempfile::tempdir().unwrap();
    let pool = Pool::in_folder(dir.path().to_owned());
    let each = (SIDE * SIDE * 4) as u64;
    let dense: Vec<usize> = (0..20).collect();
    let before = resident();
    let (mut first, _) = open(&pool, "m", &chain(&dense));
    assert_eq!(pool.bytes(), 20 * each);
    let inputs = inputs(&first);
    let expected = run(&mut first, &inputs);
    let mut ladder = Vec::new();
    for rung in 0..3 {
        // Each rung has two weights of its own, each instance none.
        let mut seeds = dense.clone();
        seeds[rung] = 30 + rung;
        seeds[rung + 5] = 40 + rung;
        for _ in 0..2 {
            let (mut session, weights) = open(&pool, "m", &chain(&seeds));
            weights.unwrap().release();
            assert_ne!(run(&mut session, &inputs), expected);
            ladder.push(session);
        }
    }
    assert_eq!(pool.bytes(), (20 + 3 * 2) * each);
    println!("dense and 3 rungs twice: {} KiB resident more", (resident() - before) >> 10);
    drop(ladder);
    assert_eq!(pool.bytes(), 20 * each);
    assert_eq!(run(&mut first, &inputs), expected);
    drop(first);
    assert_eq!(pool.bytes(), 0);
}

#[test]
fn what_is_equal_by_name_alone_is_not_shared() {
    let pool = Pool::in_memory();
    let (mut old, _) = open(&pool, "m", &chain(&[1, 2]));
    let (mut new, _) = open(&pool, "m", &chain(&[1, 3]));
    let inputs = inputs(&old);
    let alone = |seeds: &[usize]| {
        let options = EngineOptions::default();
        let model = chain(seeds);
        run(&mut LiveSession::open_model(&runtime(), &model, &options).unwrap(), &inputs)
    };
    assert_eq!(run(&mut old, &inputs), alone(&[1, 2]));
    assert_eq!(run(&mut new, &inputs), alone(&[1, 3]));
    assert_ne!(alone(&[1, 2]), alone(&[1, 3]));
    assert_eq!(pool.bytes(), 3 * (SIDE * SIDE * 4) as u64);
}

#[test]
fn without_a_disk_one_session_alone_is_lent_nothing() {
    let pool = Pool::in_memory();
    assert!(pool.hold(&chain(&[1, 2]), 1).unwrap().is_none());
    let held = pool.hold(&chain(&[1, 2]), 2).unwrap().unwrap();
    assert!(!held.in_files());
    // What is there already costs nothing more.
    let beside = pool.hold(&chain(&[2, 3]), 1).unwrap().unwrap();
    assert_eq!((beside.bytes(), pool.bytes()), (held.bytes() / 2, held.bytes()));
}

#[test]
fn packed_weights_of_variants_that_are_gone_are_not_kept_for_ever() {
    let pool = Pool::in_memory();
    let packed = |seeds: &[usize]| {
        let weights = pool.hold(&chain(seeds), 2).unwrap().unwrap();
        let lent = pool.lend(&runtime(), "m", &weights).unwrap();
        (Arc::as_ptr(&lent.packed), lent)
    };
    let (first, lent) = packed(&[1, 2, 3]);
    let (again, _) = packed(&[1, 2, 4]);
    assert_eq!(first, again, "a rung uses what dense has packed");
    let (still, _) = packed(&[1, 2, 5]);
    assert_eq!(first, still, "of five, two are gone");
    let other = pool.lend(&runtime(), "other", &lent.weights).unwrap();
    assert_ne!(first, Arc::as_ptr(&other.packed), "another model has its own");
    for seed in 6..10 {
        packed(&[1, 2, seed]);
    }
    let (renewed, _) = packed(&[1, 2, 10]);
    assert_ne!(first, renewed, "most of it is of variants that are gone");
}

#[test]
fn a_weight_that_the_runtime_moves_a_transposition_into_is_not_lent() {
    let transpose = |input: &str, output: &str| NodeProto {
        attribute: vec![attr_ints("perm", &[1, 0])],
        ..node("Transpose", &[input], output)
    };
    let nodes = vec![
        transpose("x", "t"),
        node("Add", &["t", "w"], "a"),
        node("MatMul", &["a", "v"], "m"),
        transpose("m", "y"),
    ];
    let side = SIDE as i64;
    let io = [value("x", &[side, side]), value("y", &[side, side])];
    let model = model(nodes, vec![square("v", 2), square("w", 3)], io);
    let options = EngineOptions::default();
    let mut alone = LiveSession::open_model(&runtime(), &model, &options).unwrap();
    let inputs = inputs(&alone);
    let expected = run(&mut alone, &inputs);
    let pool = pool_of_all(None);
    let (mut lent, weights) = open(&pool, "m", &model);
    assert_eq!(weights.unwrap().constants.keys().collect::<Vec<_>>(), ["v"]);
    assert_eq!(run(&mut lent, &inputs), expected);
}

#[test]
fn times_are_taken_of_sessions_with_lent_weights() {
    let pool = Pool::in_memory();
    let (mut session, _) = open(&pool, "m", &chain(&[1, 2]));
    let inputs = inputs(&session);
    let lent: Vec<_> = inputs.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    assert_eq!(session.time(&lent, 3).unwrap().len(), 3);
}

#[test]
fn a_file_without_a_name_holds_the_bytes_and_gives_its_memory_back() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("made/anew");
    let bytes: Vec<u8> = (0..100_000u32).map(|i| i as u8).collect();
    assert!(!has_room(&folder, u64::MAX), "no disk is so large");
    assert!(!has_room(Path::new("/proc/here"), 0), "no folder can be made");
    let map = in_file(&folder, &bytes).unwrap();
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 0, "no name is left");
    let (dims, count) = (vec![100_000], Arc::new(AtomicU64::new(100_000)));
    let constant = Constant { dtype: DType::U8, dims, map, in_file: true, count: count.clone() };
    let constants = BTreeMap::from([("w".to_owned(), (Digest::of(&bytes), Arc::new(constant)))]);
    let weights = Weights { constants };
    assert!(weights.in_files() && weights.bytes() == 100_000);
    weights.release();
    assert!(weights.constants["w"].1.map[..] == bytes[..], "they come back from the file");
    let (map, in_file) = place(None, &bytes).unwrap();
    assert!(!in_file && map[..] == bytes[..]);
    drop(weights);
    assert_eq!(count.load(Ordering::Relaxed), 0);
}
