//! Whatever comes from outside, no reader panics over it, and none asks for more memory than what it was given
//! warrants: bundles, documents, configurations, topics, requests, models, samples, libraries. Each is fed
//! damaged forms of what is right, and the allocator counts.

mod specs;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use blochd::fleet::topics::Topics;
use blochd::fleet::{Document, Envelope};
use blochd::onnx::{DType, Graph, Model, Tensor};
use blochd::protocol::grpc::{GrpcRequest, raw_contents_begin};
use blochd::protocol::{InferRequest, Signature};
use blochd::shell::engine::run_paths;
use blochd::shell::npz;
use bytes::Bytes;
use proptest::prelude::*;
use specs::spec;

/// The system's allocator, with what each thread holds and has held at most.
struct Counting;

thread_local! {
    static HELD: Cell<isize> = const { Cell::new(0) };
    static MOST: Cell<isize> = const { Cell::new(0) };
}

fn count(bytes: isize) {
    // A thread that ends has nothing to count with any more.
    let _ = HELD.try_with(|held| {
        held.set(held.get() + bytes);
        let _ = MOST.try_with(|most| most.set(most.get().max(held.get())));
    });
}

// SAFETY: hands every call on to the system's allocator; counting neither allocates nor unwinds.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller's promise.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, place: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // Both may be there for a moment.
        count(size as isize);
        count(-(layout.size() as isize));
        // SAFETY: the caller's promise.
        unsafe { System.realloc(place, layout, size) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(place, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// The most bytes that this thread held during `work` beyond what it held before.
fn most(work: impl FnOnce()) -> usize {
    let before = HELD.with(Cell::get);
    MOST.with(|most| most.set(before));
    work();
    (MOST.with(Cell::get) - before).max(0) as usize
}

/// What is done to bytes.
#[derive(Debug, Clone)]
enum Damage {
    Flip(prop::sample::Index, u8),
    /// A number that claims much, or nothing.
    Lie(prop::sample::Index, usize, u8),
    Cut(prop::sample::Index),
    /// A piece once more, somewhere else.
    Again(prop::sample::Index, usize, prop::sample::Index),
}

fn damages() -> impl Strategy<Value = Vec<Damage>> {
    let at = || any::<prop::sample::Index>();
    let one = prop_oneof![
        3 => (at(), 1..=255u8).prop_map(|(at, with)| Damage::Flip(at, with)),
        3 => (at(), 1..10usize, prop::sample::select(vec![0, 0x7f, 0x80, 0xff]))
            .prop_map(|(at, length, byte)| Damage::Lie(at, length, byte)),
        1 => at().prop_map(Damage::Cut),
        1 => (at(), 1..40usize, at()).prop_map(|(at, length, to)| Damage::Again(at, length, to)),
    ];
    prop::collection::vec(one, 1..6)
}

fn damaged(bytes: &[u8], damages: &[Damage]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for damage in damages {
        if bytes.is_empty() {
            break;
        }
        let place = |at: &prop::sample::Index| at.index(bytes.len());
        match damage {
            Damage::Flip(at, with) => {
                let at = place(at);
                bytes[at] ^= with;
            }
            Damage::Lie(at, length, byte) => {
                let at = place(at);
                let end = (at + length).min(bytes.len());
                bytes[at..end].fill(*byte);
            }
            Damage::Cut(at) => {
                let at = place(at);
                bytes.truncate(at);
            }
            Damage::Again(at, length, to) => {
                let (at, to) = (place(at), place(to));
                let piece = bytes[at..(at + length).min(bytes.len())].to_vec();
                bytes.splice(to..to, piece);
            }
        }
    }
    bytes
}

fn fixture(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(name);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Memory for what a text of a configuration becomes: a node of a tree for a handful of bytes, and words about
/// what is wrong with it.
fn of_yaml(text: usize) -> usize {
    (1 << 20) + 400 * text
}

/// Memory for what a message becomes: fields and names of a few bytes each, with vectors of their own.
fn of_message(bytes: usize) -> usize {
    (256 << 10) + 64 * bytes
}

fn walk_through(file: Bytes) {
    let Ok(model) = Model::decode(file) else { return };
    let graph = Graph::new(&model);
    let _ = (graph.nodes().len(), model.external_files(), model.digest());
}

/// An archive of two arrays.
fn archive() -> Vec<u8> {
    let stored = npz::encode(&BTreeMap::from([
        ("x".to_owned(), Tensor::from_f32(&[4, 3], &[0.5; 12])),
        ("ids".to_owned(), Tensor { dtype: DType::I64, shape: vec![2], data: vec![1; 16].into() }),
    ]));
    stored.unwrap()
}

/// Bytes that arrays may hold here.
const ARRAYS: u64 = 1 << 20;

fn read_archive(bytes: &[u8]) -> usize {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    most(|| drop(npz::read_some(file.path(), ARRAYS, &|_| usize::MAX)))
}

/// An archive of one array, compressed, with this header.
fn npy(header: &str, data: &[u8]) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let options = zip::write::SimpleFileOptions::default();
    zip.start_file("x.npy", options).unwrap();
    zip.write_all(b"\x93NUMPY\x01\x00").unwrap();
    zip.write_all(&(header.len() as u16).to_le_bytes()).unwrap();
    zip.write_all(header.as_bytes()).unwrap();
    zip.write_all(data).unwrap();
    zip.finish().unwrap().into_inner()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, failure_persistence: None, ..Default::default() })]

    #[test]
    fn no_bundle_breaks_its_readers_or_costs_more_than_it_is_long(damages in damages()) {
        let bytes = damaged(&fixture("fixtures/fleet/document.bundle"), &damages);
        let taken = most(|| drop(Envelope::open(&bytes)));
        prop_assert!(taken <= (64 << 10) + 4 * bytes.len(), "{taken}");
        if let Ok(text) = std::str::from_utf8(&bytes) {
            let taken = most(|| drop(Document::parse("b", text)));
            prop_assert!(taken <= of_yaml(text.len()), "{taken} for {}", text.len());
        }
    }

    #[test]
    fn no_topic_breaks_its_reader(topic in "\\PC{0,80}", more in "(?s).{0,20}") {
        let topics = Topics::new("plant").unwrap();
        let topic = format!("blochd/v1/plant/{topic}{more}");
        let taken = most(|| drop(topics.read(&topic)));
        prop_assert!(taken <= 1024 + 4 * topic.len(), "{taken}");
    }

    #[test]
    fn no_request_breaks_its_readers_or_costs_more_than_it_is_long(
        damages in damages(),
        json_length in prop::option::of(prop_oneof![0..400usize, Just(usize::MAX)]),
    ) {
        let tensors = r#""id":"7","parameters":{"timeout":5,"binary_data_output":true},"inputs":[
            {"name":"x","shape":[2,1],"datatype":"FP32","data":[1.5,-2]},
            {"name":"y","shape":[2],"datatype":"INT64","parameters":{"binary_data_size":16}}],
            "outputs":[{"name":"z","parameters":{"binary_data":false}}]"#;
        let mut body = format!("{{{tensors}}}").into_bytes();
        let json = body.len();
        body.extend([1; 16]);
        let body: Bytes = damaged(&body, &damages).into();
        let (x, y) = (spec("x", DType::F32, &[-1, -1]), spec("y", DType::I64, &[-1]));
        let signature =
            Signature { inputs: vec![x, y], outputs: vec![spec("z", DType::F32, &[-1])] };
        for length in [json_length, Some(json), None] {
            let taken = most(|| drop(InferRequest::decode(&body, length, "m", &signature)));
            prop_assert!(taken <= of_message(body.len()), "{taken}");
        }
        let taken = most(|| {
            raw_contents_begin(&body);
            if let Ok(request) = GrpcRequest::parse(&body) {
                let _ = request.decode("m", &signature);
            }
        });
        prop_assert!(taken <= of_message(body.len()), "{taken}");
    }

    #[test]
    fn no_model_breaks_its_reader_or_costs_more_than_it_is_long(
        name in prop::sample::select(vec![
            "residual.onnx", "if_node.onnx", "external/model.onnx", "custom_op.onnx",
            "unknown_fields.onnx",
        ]),
        damages in damages(),
    ) {
        let file: Bytes = damaged(&fixture(&format!("models/fixtures/{name}")), &damages).into();
        let length = file.len();
        let taken = most(|| walk_through(file));
        prop_assert!(taken <= of_message(length), "{taken} for {length}");
    }

    #[test]
    fn no_samples_break_their_reader_or_cost_more_than_they_may(damages in damages()) {
        let bytes = damaged(&archive(), &damages);
        let taken = read_archive(&bytes);
        prop_assert!(taken <= 4 * ARRAYS as usize, "{taken}");
    }

    #[test]
    fn no_header_of_an_array_is_believed(
        kind in prop::sample::select(vec!["<f4", ">i8", "|b1", "<U4294967295", ">U3", "O", "<f"]),
        order in prop::sample::select(vec!["True", "False", "Yes"]),
        dims in prop::collection::vec(
            prop_oneof![0..5u64, Just(u64::MAX), Just(1 << 40), Just(u64::from(u32::MAX))], 0..6,
        ),
        data in prop::collection::vec(any::<u8>(), 0..64),
    ) {
        let dims: String = dims.iter().map(|dim| format!("{dim}, ")).collect();
        let header = format!("{{'descr': '{kind}', 'fortran_order': {order}, 'shape': ({dims}), }}\n");
        let taken = read_archive(&npy(&header, &data));
        prop_assert!(taken <= 4 * ARRAYS as usize, "{taken} for {header}");
    }

    #[test]
    fn no_library_breaks_who_looks_for_its_folders(damages in damages()) {
        // The beginning of this program, where the tables stand that lead to the rest.
        let program = std::env::current_exe().unwrap();
        let mut head = vec![0; 4096];
        std::io::Read::read_exact(&mut std::fs::File::open(program).unwrap(), &mut head).unwrap();
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&damaged(&head, &damages)).unwrap();
        let taken = most(|| drop(run_paths(file.path())));
        prop_assert!(taken <= 8 << 20, "{taken}");
    }
}

#[test]
fn memory_is_counted() {
    let taken = most(|| drop(vec![0u8; 1 << 20]));
    assert!(((1 << 20)..(2 << 20)).contains(&taken), "{taken}");
    // What is right is read, so that damage has something to spoil.
    assert!(Envelope::open(&fixture("fixtures/fleet/document.bundle")).is_ok());
    assert!(Model::decode(fixture("models/fixtures/residual.onnx").into()).is_ok());
    assert!(read_archive(&archive()) > 0);
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&archive()).unwrap();
    assert_eq!(npz::read_some(file.path(), ARRAYS, &|_| usize::MAX).unwrap().len(), 2);
}
