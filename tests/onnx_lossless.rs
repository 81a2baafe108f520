//! What the ONNX room promises about bytes: what comes in comes out, and no bytes whatever bring it down.

use std::path::{Path, PathBuf};

use blochd::onnx::proto::{GraphProto, ModelProto, TensorProto};
use blochd::onnx::{DType, Graph, Model, OnnxError, Patch, operators, tensor};
use buffa::Message;
use bytes::Bytes;
use proptest::prelude::*;

/// Further models to try, beside the committed ones: directories in the form of `PATH`.
const EXTRA_MODELS: &str = "BLOCHD_EXTRA_MODELS";

fn models_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/models")
}

fn read(path: &Path) -> Bytes {
    std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).into()
}

fn fixture(name: &str) -> Bytes {
    read(&models_dir().join("fixtures").join(name))
}

fn onnx_files(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    let paths = entries.map(|entry| entry.unwrap().path());
    let mut found: Vec<_> =
        paths.filter(|path| path.extension().is_some_and(|e| e == "onnx")).collect();
    found.sort();
    found
}

fn sound_models() -> Vec<PathBuf> {
    let mut found = onnx_files(&models_dir());
    found.extend(onnx_files(&models_dir().join("fixtures")));
    match std::env::var_os(EXTRA_MODELS) {
        Some(dirs) => found.extend(std::env::split_paths(&dirs).flat_map(|dir| onnx_files(&dir))),
        None => println!("{EXTRA_MODELS} is not set: only the committed models are tried"),
    }
    found
}

#[test]
fn decoding_and_encoding_changes_no_byte_of_any_model() {
    let files = sound_models();
    assert!(files.len() >= 19, "the committed models are missing: {files:?}");
    for path in files {
        let file = read(&path);
        let model = Model::decode(file.clone()).unwrap_or_else(|e| panic!("{path:?}: {e}"));
        let encoded = model.encode("weights.bin").unwrap();
        assert!(encoded.data.is_none(), "{path:?}");
        assert!(encoded.main.concat() == file, "{path:?} came out changed");
        let untouched = Patch::default().apply(&model).unwrap();
        assert!(
            untouched.encode("weights.bin").unwrap().main.concat() == file,
            "{path:?}: empty patch"
        );
    }
}

/// One field of a protobuf message: a number with a length-delimited payload.
fn field(number: u64, payload: &[u8]) -> Vec<u8> {
    let mut bytes = varint(number << 3 | 2);
    bytes.extend(varint(payload.len() as u64));
    bytes.extend(payload);
    bytes
}

fn number(number: u64, value: u64) -> Vec<u8> {
    [varint(number << 3), varint(value)].concat()
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value > 0x7f {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

/// A field that no version of ONNX defines, in each of protobuf's four wire types.
fn unknown(mark: u64) -> Vec<u8> {
    let fixed = |wire: u64, bytes: &[u8]| [varint(3000 << 3 | wire), bytes.to_vec()].concat();
    [
        number(2000, mark),
        field(2001, format!("unknown {mark}").as_bytes()),
        fixed(1, &mark.to_le_bytes()),
        fixed(5, &(mark as u32).to_le_bytes()),
    ]
    .concat()
}

/// `y = x · w` written by hand, with unknown fields in every message there is.
fn model_of_the_future() -> Vec<u8> {
    let weight = [
        number(1, 2),
        number(1, 3),
        number(2, 1),
        field(8, b"w"),
        field(9, &[0x3c; 24]),
        unknown(1),
    ];
    let attribute = [field(1, b"note"), number(3, 7), number(20, 2), unknown(2)];
    let node = [
        field(1, b"x"),
        field(1, b"w"),
        field(2, b"y"),
        field(3, b"matmul"),
        field(4, b"MatMul"),
        field(5, &attribute.concat()),
        unknown(3),
    ];
    let dimension = [number(1, 2), unknown(4)];
    let shape = [field(1, &dimension.concat()), unknown(5)];
    let of_tensor = [number(1, 1), field(2, &shape.concat()), unknown(6)];
    let value_type = [field(1, &of_tensor.concat()), unknown(7)];
    let value = |name: &[u8]| [field(1, name), field(2, &value_type.concat()), unknown(8)].concat();
    let graph = [
        field(1, &node.concat()),
        field(2, b"hand-written"),
        field(5, &weight.concat()),
        field(11, &value(b"x")),
        field(12, &value(b"y")),
        unknown(9),
    ];
    let opset = [number(2, 17), unknown(10)];
    let metadata = [field(1, b"author"), field(2, b"nobody"), unknown(11)];
    [
        number(1, 8),
        field(7, &graph.concat()),
        field(8, &opset.concat()),
        field(14, &metadata.concat()),
        unknown(12),
    ]
    .concat()
}

#[test]
fn fields_that_no_onnx_version_defines_survive_in_every_message() {
    let file = model_of_the_future();
    let model = Model::decode(file.clone().into()).unwrap();
    assert_eq!(model.encode("").unwrap().main.concat(), file);
}

#[test]
fn weights_are_the_same_memory_from_the_file_to_what_is_written() {
    let weight = tensor("w", DType::F32, &[64, 64], vec![7u8; 64 * 64 * 4]);
    let graph = GraphProto { initializer: vec![weight], ..Default::default() };
    let proto = ModelProto { graph: graph.into(), ..Default::default() };
    let file: Bytes = Model::from_proto(proto).unwrap().encode_inline().unwrap().into();
    let main = Model::decode(file.clone()).unwrap().encode("").unwrap().main;
    assert_eq!(main.concat(), file);
    let inside = |chunk: &Bytes| file.as_ptr_range().contains(&chunk.as_ptr());
    let shared: usize = main.iter().filter(|chunk| inside(chunk)).map(Bytes::len).sum();
    assert_eq!(shared, 64 * 64 * 4);
}

#[test]
fn an_edit_keeps_the_unknown_fields_even_of_the_tensor_that_it_edits() {
    let model = Model::decode(model_of_the_future().into()).unwrap();
    let mut patch = Patch::default();
    let narrow = tensor("w", DType::F32, &[2, 2], vec![0u8; 16]);
    patch.constants.insert("w".to_owned(), narrow);
    let edited = patch.apply(&model).unwrap();
    assert_eq!(Graph::new(&edited).weight_dims("w"), Some(vec![2, 2]));
    let bytes = edited.encode("").unwrap().main.concat();
    for mark in 1..=12 {
        let trace = unknown(mark);
        assert!(bytes.windows(trace.len()).any(|w| w == trace), "unknown {mark} was dropped");
    }
}

#[test]
fn weights_are_slices_of_the_file_and_not_copies() {
    let file = fixture("vgg_chain.onnx");
    let range = file.as_ptr_range();
    let model = Model::decode(file.clone()).unwrap();
    let graph = Graph::new(&model);
    let mut seen = 0;
    for (name, _) in graph.weights() {
        let bytes = graph.weight_bytes(name).unwrap().unwrap();
        if bytes.len() > 64 {
            assert!(range.contains(&bytes.as_ptr()), "{name} was copied");
            seen += 1;
        }
    }
    assert!(seen > 3, "no weight was looked at");
}

fn external_model() -> (Model, Bytes) {
    let mut model = Model::decode(fixture("external/model.onnx")).unwrap();
    let data = fixture("external/weights.bin");
    assert_eq!(model.external_files().unwrap().into_iter().collect::<Vec<_>>(), ["weights.bin"]);
    model.attach("weights.bin", data.clone()).unwrap();
    (model, data)
}

fn all_weights(model: &Model) -> Vec<(String, Bytes)> {
    let graph = Graph::new(model);
    let bytes = |name: &str| graph.weight_bytes(name).unwrap().unwrap();
    graph.weights().map(|(name, _)| (name.to_owned(), bytes(name))).collect()
}

#[test]
fn external_data_survives_being_written_and_read_again() {
    let (model, _) = external_model();
    let encoded = model.encode("new.bin").unwrap();
    let (name, chunks) = encoded.data.unwrap();
    assert_eq!(name, "new.bin");
    let data: Bytes = chunks.concat().into();
    let mut again = Model::decode(encoded.main.concat().into()).unwrap();
    again.attach("new.bin", data.clone()).unwrap();
    assert_eq!(all_weights(&model), all_weights(&again));
    // Writing under the same name is a fixed point: no offset drifts.
    let third = again.encode("new.bin").unwrap();
    assert_eq!(third.main.concat(), encoded.main.concat());
    assert_eq!(Bytes::from(third.data.unwrap().1.concat()), data);
}

#[test]
fn external_weights_are_the_same_once_they_stand_inside() {
    let (model, _) = external_model();
    let inline = Model::decode(model.encode_inline().unwrap().into()).unwrap();
    assert!(inline.external_files().unwrap().is_empty());
    assert_eq!(all_weights(&model), all_weights(&inline));
}

#[test]
fn an_edited_tensor_leaves_the_external_file_and_the_others_stay() {
    let (model, _) = external_model();
    let graph = Graph::new(&model);
    let (name, _) = graph.weights().find(|(_, w)| w.tensor.data_location.is_some()).unwrap();
    let mut patch = Patch::default();
    patch.constants.insert(name.to_owned(), tensor(name, DType::F32, &[1], vec![0u8; 4]));
    let edited = patch.apply(&model).unwrap();
    for (other, bytes) in all_weights(&edited) {
        let expected = graph.weight_bytes(&other).unwrap().unwrap();
        assert!(if other == name { bytes.len() == 4 } else { bytes == expected }, "{other}");
    }
}

#[test]
fn a_data_file_that_is_too_short_is_refused_when_it_is_attached() {
    let mut model = Model::decode(fixture("external/model.onnx")).unwrap();
    let data = fixture("external/weights.bin");
    let error = model.attach("weights.bin", data.slice(..data.len() - 1)).unwrap_err();
    assert!(matches!(error, OnnxError::ExternalData { .. }), "{error}");
}

#[test]
fn every_hostile_file_gets_an_error_and_none_reads_outside_its_folder() {
    // Sound as ONNX files: what is wrong with them only a runtime finds.
    let for_the_runtime = ["opset_999.onnx"];
    for path in onnx_files(&models_dir().join("fixtures/bad")) {
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let refused = Model::decode(read(&path)).and_then(|mut model| {
            for location in model.external_files()? {
                let beside = path.with_file_name(&location);
                if beside.exists() {
                    model.attach(&location, read(&beside))?;
                }
            }
            model.encode_inline()
        });
        assert_eq!(
            refused.is_ok(),
            for_the_runtime.contains(&name.as_str()),
            "{name}: {refused:?}"
        );
        if name.contains("traversal") || name.contains("absolute") {
            let error = refused.unwrap_err();
            assert!(matches!(error, OnnxError::ExternalPath { .. }), "{name}: {error}");
        }
    }
}

#[test]
fn a_tensor_without_the_data_that_its_shape_claims_is_refused_and_nothing_is_allocated() {
    let whole = Model::decode(fixture("vgg_chain.onnx")).unwrap();
    let mut proto = whole.proto().clone();
    let weight = &mut proto.graph.get_or_insert_default().initializer[0];
    weight.raw_data = None;
    weight.dims = vec![1 << 40, 1, 1, 1];
    let error = Model::from_proto(proto).unwrap_err();
    assert!(matches!(error, OnnxError::TensorSize { found: 0, .. }), "{error}");
}

/// Does with a model what the program does before any runtime sees it.
fn walk_through(file: &Bytes) {
    let Ok(model) = Model::decode(file.clone()) else { return };
    let graph = Graph::new(&model);
    for (name, _) in graph.weights() {
        let _ = (graph.weight_dims(name), graph.floats(name), graph.ints(name));
        let _ = graph.weight_bytes(name);
    }
    for operator in operators(&graph) {
        let _ = (operator.matrix(&graph), operator.bias_values(&graph));
    }
    for node in 0..graph.nodes().len() {
        let _ = (graph.label(node), graph.op(node), graph.attrs(node).int("group"));
    }
    let _ = (model.external_files(), model.encode_inline(), model.digest());
    let _ = Patch::default().apply(&model);
}

#[test]
fn no_truncation_of_a_model_panics() {
    let file = fixture("custom_op.onnx");
    let decoded = (0..file.len())
        .filter(|end| {
            walk_through(&file.slice(..*end));
            Model::decode(file.slice(..*end)).is_ok()
        })
        .count();
    // Only a cut between two fields of the outermost message leaves a message, and only the graph's end
    // leaves a graph.
    assert!(decoded < 8, "{decoded} truncated files passed for models");
}

/// Positions that are not weights are where structure is: half of the flips go there.
fn structure_of(file: &Bytes) -> Vec<usize> {
    let proto = ModelProto::decode(&mut file.clone()).unwrap();
    let base = file.as_ptr() as usize;
    let mut weights: Vec<(usize, usize)> = Vec::new();
    let mut note = |tensor: &TensorProto| {
        if let Some(raw) = &tensor.raw_data {
            let start = (raw.as_ptr() as usize).wrapping_sub(base);
            weights.push((start, start.saturating_add(raw.len())));
        }
    };
    proto.graph.initializer.iter().for_each(&mut note);
    (0..file.len()).filter(|at| !weights.iter().any(|(a, b)| (a..b).contains(&at))).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn no_flipped_bytes_panic(
        name in prop::sample::select(vec![
            "residual.onnx", "if_node.onnx", "constants_hardswish.onnx", "channel_shuffle.onnx",
            "external/model.onnx", "f16_weights_cast.onnx", "mlp_gemm.onnx",
        ]),
        flips in prop::collection::vec((any::<prop::sample::Index>(), 1u8..=255, any::<bool>()), 1..8),
    ) {
        let file = fixture(name);
        let structure = structure_of(&file);
        let mut bytes = file.to_vec();
        for (at, mask, anywhere) in flips {
            let at = if anywhere { at.index(bytes.len()) } else { structure[at.index(structure.len())] };
            bytes[at] ^= mask;
        }
        walk_through(&bytes.into());
    }

    #[test]
    fn what_decodes_decodes_to_the_same_again(
        flips in prop::collection::vec((any::<prop::sample::Index>(), 1u8..=255), 1..4),
    ) {
        let file = fixture("residual.onnx");
        let structure = structure_of(&file);
        let mut bytes = file.to_vec();
        for (at, mask) in flips {
            bytes[structure[at.index(structure.len())]] ^= mask;
        }
        if let Ok(model) = Model::decode(bytes.into())
            && let Ok(encoded) = model.encode_inline()
        {
            let again = Model::decode(encoded.clone().into()).unwrap();
            prop_assert_eq!(again.encode_inline().unwrap(), encoded);
        }
    }
}
