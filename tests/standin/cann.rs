//! The rest of CANN as far as ONNX Runtime's provider calls it: ACL's memory, streams and models, and the
//! graph engine's parser and compiler. It computes nothing: a "built" model is a fingerprint of the ONNX bytes
//! that it was built from, by which the log tells whose model was run, and its answers are zeros.
//!
//! Played besides what `scenario.rs` says: `inputs`, `outputs` and `dims = 1,10` of every model, `soc`, and
//! `fingerprint = 1` for answers of the fingerprint; `writes = 1`: the compiler writes where CANN's does, and does not
//! start where it cannot. What is asked of it goes into the file beside the scenario
//! that ends in `.log`, a line a call.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::io::Write;
use std::sync::Mutex;

use super::scenario;

fn fails(call: &str) -> Option<c_int> {
    scenario::enter("cann", call)
}

fn done(call: &str) -> c_int {
    fails(call).unwrap_or(0)
}

fn log(line: &str) {
    let path = std::env::var("STANDIN_SCENARIO").unwrap_or_default() + ".log";
    if let Ok(mut file) = std::fs::File::options().create(true).append(true).open(path) {
        let _ = file.write_all(format!("{line}\n").as_bytes());
    }
}

fn text(at: *const c_char) -> String {
    unsafe { CStr::from_ptr(at) }.to_string_lossy().into_owned()
}

/// FNV-1a, small enough that a f32 holds it.
fn fingerprint(bytes: &[u8]) -> u64 {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, step) % 1_000_003
}

// ---- memory, streams, events ----

const ALIGNED: usize = 64;

unsafe fn room(to: *mut *mut c_void, size: usize) {
    let layout = std::alloc::Layout::from_size_align(size.max(1), ALIGNED).unwrap();
    // Never given back: its size is not told when it is freed.
    unsafe { to.write(std::alloc::alloc_zeroed(layout).cast()) };
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn aclrtMalloc(to: *mut *mut c_void, size: usize, _: c_int) -> c_int {
    unsafe { room(to, size) };
    done("aclrtMalloc")
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn aclrtMallocHost(to: *mut *mut c_void, size: usize) -> c_int {
    unsafe { room(to, size) };
    done("aclrtMallocHost")
}

#[unsafe(no_mangle)]
pub extern "C" fn aclrtFree(_: *mut c_void) -> c_int {
    0
}

#[unsafe(no_mangle)]
pub extern "C" fn aclrtFreeHost(_: *mut c_void) -> c_int {
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn aclrtMemcpy(
    to: *mut u8,
    most: usize,
    from: *const u8,
    count: usize,
    _: c_int,
) -> c_int {
    assert!(count <= most);
    unsafe { std::ptr::copy(from, to, count) };
    done("aclrtMemcpy")
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn aclrtMemcpyAsync(
    to: *mut u8,
    most: usize,
    from: *const u8,
    count: usize,
    kind: c_int,
    _: *mut c_void,
) -> c_int {
    unsafe { aclrtMemcpy(to, most, from, count, kind) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn aclrtMemsetAsync(
    to: *mut u8,
    most: usize,
    value: c_int,
    count: usize,
    _: *mut c_void,
) -> c_int {
    assert!(count <= most);
    unsafe { std::ptr::write_bytes(to, value as u8, count) };
    0
}

static THING: u64 = 0;

fn thing() -> *mut c_void {
    (&raw const THING).cast_mut().cast()
}

macro_rules! makers {
    ($($name:ident),*) => {$(
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name(to: *mut *mut c_void) -> c_int {
            unsafe { to.write(thing()) };
            done(stringify!($name))
        }
    )*};
}

makers!(aclrtCreateStream, aclrtCreateEvent);

macro_rules! nothings {
    ($($name:ident($($of:ty),*)),*) => {$(
        #[unsafe(no_mangle)]
        pub extern "C" fn $name($(_: $of),*) -> c_int {
            done(stringify!($name))
        }
    )*};
}

nothings!(
    aclrtDestroyStream(*mut c_void),
    aclrtDestroyEvent(*mut c_void),
    aclrtRecordEvent(*mut c_void, *mut c_void),
    aclrtStreamWaitEvent(*mut c_void, *mut c_void),
    aclrtSynchronizeDevice(),
    aclrtSynchronizeEvent(*mut c_void),
    aclrtSynchronizeStream(*mut c_void),
    aclopSetAttrBool(*mut c_void, *const c_char, u8),
    aclopSetAttrFloat(*mut c_void, *const c_char, f32),
    aclopSetAttrInt(*mut c_void, *const c_char, i64),
    aclopSetAttrListInt(*mut c_void, *const c_char, c_int, *const i64),
    aclopSetAttrString(*mut c_void, *const c_char, *const c_char),
    aclSetTensorConst(*mut c_void, *mut c_void, usize),
    aclmdlUnload(u32)
);

#[unsafe(no_mangle)]
pub unsafe extern "C" fn aclrtGetDevice(to: *mut i32) -> c_int {
    unsafe { to.write(0) };
    done("aclrtGetDevice")
}

#[unsafe(no_mangle)]
pub extern "C" fn aclGetRecentErrMsg() -> *const c_char {
    c"the stand-in was told to fail".as_ptr()
}

// ---- single operators: named, and not computed ----

#[unsafe(no_mangle)]
pub extern "C" fn aclopCreateAttr() -> *mut c_void {
    thing()
}

#[unsafe(no_mangle)]
pub extern "C" fn aclopDestroyAttr(_: *mut c_void) {}

#[unsafe(no_mangle)]
pub extern "C" fn aclCreateTensorDesc(_: c_int, _: c_int, _: *const i64, _: c_int) -> *mut c_void {
    thing()
}

#[unsafe(no_mangle)]
pub extern "C" fn aclDestroyTensorDesc(_: *mut c_void) {}

#[unsafe(no_mangle)]
pub extern "C" fn aclDataTypeSize(_: c_int) -> usize {
    4
}

#[unsafe(no_mangle)]
pub extern "C" fn aclopCompileAndExecute(
    name: *const c_char,
    _: c_int,
    _: *const *const c_void,
    _: *const *const c_void,
    _: c_int,
    _: *const *const c_void,
    _: *const *mut c_void,
    _: *const c_void,
    _: c_int,
    _: c_int,
    _: *const c_char,
    _: *mut c_void,
) -> c_int {
    log(&format!("operator {}", text(name)));
    done("aclopCompileAndExecute")
}

// ---- models ----

/// What identifies each loaded model.
static LOADED: Mutex<Vec<u64>> = Mutex::new(Vec::new());

fn loaded(fingerprint: u64, id: *mut u32) -> c_int {
    let mut all = LOADED.lock().unwrap();
    all.push(fingerprint);
    unsafe { id.write(all.len() as u32) };
    0
}

#[unsafe(no_mangle)]
pub extern "C" fn aclmdlLoadFromFile(path: *const c_char, id: *mut u32) -> c_int {
    let path = text(path);
    log(&format!("load-file {path}"));
    let bytes = std::fs::read(path).unwrap_or_default();
    let number = String::from_utf8_lossy(&bytes).trim().parse().unwrap_or(0);
    fails("aclmdlLoadFromFile").unwrap_or_else(|| loaded(number, id))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn aclmdlLoadFromMem(at: *const u8, size: usize, id: *mut u32) -> c_int {
    let bytes = unsafe { std::slice::from_raw_parts(at, size) };
    let number = String::from_utf8_lossy(bytes).trim().parse().unwrap_or(0);
    log(&format!("load-memory {number}"));
    fails("aclmdlLoadFromMem").unwrap_or_else(|| loaded(number, id))
}

#[unsafe(no_mangle)]
pub extern "C" fn aclmdlCreateDesc() -> *mut c_void {
    thing()
}

#[unsafe(no_mangle)]
pub extern "C" fn aclmdlDestroyDesc(_: *mut c_void) -> c_int {
    0
}

#[unsafe(no_mangle)]
pub extern "C" fn aclmdlGetDesc(_: *mut c_void, _: u32) -> c_int {
    done("aclmdlGetDesc")
}

fn count(what: &str) -> usize {
    scenario::number("cann", what, 1) as usize
}

fn dims() -> Vec<i64> {
    let text = scenario::text("cann", "dims").unwrap_or_else(|| "1".to_owned());
    text.split(',').filter_map(|dim| dim.trim().parse().ok()).collect()
}

fn bytes() -> usize {
    dims().iter().product::<i64>() as usize * 4
}

#[unsafe(no_mangle)]
pub extern "C" fn aclmdlGetNumInputs(_: *mut c_void) -> usize {
    count("inputs")
}

#[unsafe(no_mangle)]
pub extern "C" fn aclmdlGetNumOutputs(_: *mut c_void) -> usize {
    count("outputs")
}

#[unsafe(no_mangle)]
pub extern "C" fn aclmdlGetInputSizeByIndex(_: *mut c_void, _: usize) -> usize {
    4
}

#[unsafe(no_mangle)]
pub extern "C" fn aclmdlGetOutputSizeByIndex(_: *mut c_void, _: usize) -> usize {
    bytes()
}

/// `aclmdlIODims`.
#[repr(C)]
pub struct Dims {
    name: [u8; 128],
    count: usize,
    dims: [i64; 128],
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn aclmdlGetOutputDims(_: *mut c_void, _: usize, to: *mut Dims) -> c_int {
    let found = dims();
    let mut all = [0; 128];
    all[..found.len()].copy_from_slice(&found);
    unsafe { to.write(Dims { name: [0; 128], count: found.len(), dims: all }) };
    done("aclmdlGetOutputDims")
}

/// A data buffer.
struct Data(*mut u8, usize);

#[unsafe(no_mangle)]
pub extern "C" fn aclCreateDataBuffer(at: *mut u8, size: usize) -> *mut c_void {
    Box::into_raw(Box::new(Data(at, size))).cast()
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn aclGetDataBufferAddr(data: *mut c_void) -> *mut u8 {
    unsafe { (*data.cast::<Data>()).0 }
}

#[unsafe(no_mangle)]
pub extern "C" fn aclDestroyDataBuffer(_: *mut c_void) -> c_int {
    0
}

#[unsafe(no_mangle)]
pub extern "C" fn aclmdlCreateDataset() -> *mut c_void {
    Box::into_raw(Box::new(Vec::<*mut c_void>::new())).cast()
}

#[unsafe(no_mangle)]
pub extern "C" fn aclmdlDestroyDataset(_: *mut c_void) -> c_int {
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn aclmdlAddDatasetBuffer(set: *mut c_void, data: *mut c_void) -> c_int {
    unsafe { (*set.cast::<Vec<*mut c_void>>()).push(data) };
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn aclmdlGetDatasetBuffer(set: *mut c_void, at: usize) -> *mut c_void {
    unsafe { (&(*set.cast::<Vec<*mut c_void>>()))[at] }
}

#[unsafe(no_mangle)]
pub extern "C" fn aclmdlGetDatasetTensorDesc(_: *mut c_void, _: usize) -> *mut c_void {
    thing()
}

#[unsafe(no_mangle)]
pub extern "C" fn aclGetTensorDescNumDims(_: *mut c_void) -> usize {
    dims().len()
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn aclGetTensorDescDimV2(_: *mut c_void, at: usize, to: *mut i64) -> c_int {
    unsafe { to.write(dims()[at]) };
    0
}

#[unsafe(no_mangle)]
pub extern "C" fn aclGetTensorDescSize(_: *mut c_void) -> usize {
    bytes()
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn aclmdlExecute(id: u32, _: *mut c_void, outputs: *mut c_void) -> c_int {
    let number = LOADED.lock().unwrap()[id as usize - 1];
    log(&format!("execute {number}"));
    if let Some(code) = fails("aclmdlExecute") {
        return code;
    }
    let tells = scenario::number("cann", "fingerprint", 0) == 1;
    let answer = if tells { number as f32 } else { 0.0 };
    for data in unsafe { &*outputs.cast::<Vec<*mut c_void>>() } {
        let Data(at, size) = unsafe { &*data.cast::<Data>() };
        let values = unsafe { std::slice::from_raw_parts_mut(at.cast::<f32>(), size / 4) };
        values.fill(answer);
    }
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn aclmdlExecuteAsync(
    id: u32,
    inputs: *mut c_void,
    outputs: *mut c_void,
    _: *mut c_void,
) -> c_int {
    unsafe { aclmdlExecute(id, inputs, outputs) }
}

// ---- graph engine: C++ classes by their layouts ----

/// A `std::shared_ptr` that counts nothing.
#[repr(C)]
pub struct Shared(*mut c_void, *mut c_void);

fn shared(to: *mut c_void) -> Shared {
    Shared(to, std::ptr::null_mut())
}

/// `AscendString(char const*)`.
#[unsafe(export_name = "_ZN2ge12AscendStringC1EPKc")]
pub unsafe extern "C" fn ascend_string(this: *mut Shared, from: *const c_char) {
    let kept = unsafe { CStr::from_ptr(from) }.to_owned();
    unsafe { this.write(shared(kept.into_raw().cast())) };
}

#[unsafe(export_name = "_ZNK2ge12AscendStringltERKS0_")]
pub unsafe extern "C" fn ascend_string_less(one: *const Shared, other: *const Shared) -> bool {
    unsafe { CStr::from_ptr((*one).0.cast()) < CStr::from_ptr((*other).0.cast()) }
}

/// A node of libstdc++'s red-black tree of strings by strings.
#[repr(C)]
struct Node {
    colour: usize,
    parent: *const Node,
    left: *const Node,
    right: *const Node,
    key: Shared,
    value: Shared,
}

/// `std::map`: its (empty) comparison, and the node before the first.
#[repr(C)]
pub struct Map {
    compare: usize,
    colour: usize,
    root: *const Node,
}

fn entries(node: *const Node, into: &mut Vec<(String, String)>) {
    let Some(node) = (unsafe { node.as_ref() }) else { return };
    entries(node.left, into);
    into.push((text(node.key.0.cast()), text(node.value.0.cast())));
    entries(node.right, into);
}

fn all(map: *const Map) -> Vec<(String, String)> {
    let mut found = Vec::new();
    entries(unsafe { (*map).root }, &mut found);
    found
}

#[unsafe(export_name = "_ZN2ge22aclgrphBuildInitializeERSt3mapINS_12AscendStringES1_St4lessIS1_ESaISt4pairIKS1_S1_EEE")]
pub extern "C" fn build_initialize(options: *mut Map) -> c_int {
    for (key, value) in all(options) {
        log(&format!("option {key}={value}"));
    }
    if scenario::number("cann", "writes", 0) == 1 && !writes() {
        return -1;
    }
    done("aclgrphBuildInitialize")
}

/// Adds the number of this process to a file in each folder that CANN is told to write to.
fn writes() -> bool {
    let one = |name: &str| -> std::io::Result<()> {
        let folder = std::env::var(name).map_err(std::io::Error::other)?;
        let path = std::path::Path::new(&folder).join(format!("{name}.written"));
        let mut file = std::fs::File::options().create(true).append(true).open(path)?;
        writeln!(file, "{}", std::process::id())
    };
    ["ASCEND_WORK_PATH", "ASCEND_CACHE_PATH", "HOME"].iter().all(|name| one(name).is_ok())
}

#[unsafe(export_name = "_ZN2ge20aclgrphBuildFinalizeEv")]
pub extern "C" fn build_finalize() {}

#[unsafe(export_name = "_ZN2ge5GraphC1EPKc")]
pub unsafe extern "C" fn graph(this: *mut Shared, _: *const c_char) {
    unsafe { this.write(shared(Box::into_raw(Box::new(0u64)).cast())) };
}

#[unsafe(export_name = "_ZN2ge23aclgrphParseONNXFromMemEPKcmRKSt3mapINS_12AscendStringES3_St4lessIS3_ESaISt4pairIKS3_S3_EEERNS_5GraphE")]
pub unsafe extern "C" fn parse(
    at: *const u8,
    size: usize,
    _: *const Map,
    graph: *mut Shared,
) -> c_int {
    let bytes = unsafe { std::slice::from_raw_parts(at, size) };
    unsafe { (*graph).0.cast::<u64>().write(fingerprint(bytes)) };
    done("aclgrphParseONNXFromMem")
}

/// `ModelBufferData`.
#[repr(C)]
pub struct Buffer {
    data: Shared,
    length: u64,
}

#[unsafe(export_name = "_ZN2ge17aclgrphBuildModelERKNS_5GraphERKSt3mapINS_12AscendStringES4_St4lessIS4_ESaISt4pairIKS4_S4_EEERNS_15ModelBufferDataE")]
pub unsafe extern "C" fn build(graph: *const Shared, options: *const Map, to: *mut Buffer) -> c_int {
    let number = unsafe { (*graph).0.cast::<u64>().read() };
    let shapes = all(options).into_iter().map(|(_, value)| value).collect::<Vec<_>>().join(" ");
    log(&format!("build {number} for {shapes}"));
    if let Some(code) = fails("aclgrphBuildModel") {
        return code;
    }
    let text = number.to_string().into_bytes().leak();
    let length = text.len() as u64;
    unsafe { to.write(Buffer { data: shared(text.as_mut_ptr().cast()), length }) };
    0
}

#[unsafe(export_name = "_ZN2ge16aclgrphSaveModelEPKcRKNS_15ModelBufferDataE")]
pub unsafe extern "C" fn save(path: *const c_char, model: *const Buffer) -> c_int {
    let path = text(path) + ".om";
    log(&format!("save {path}"));
    let Buffer { data, length } = unsafe { &*model };
    let bytes = unsafe { std::slice::from_raw_parts(data.0.cast::<u8>(), *length as usize) };
    std::fs::write(path, bytes).map_or(-1, |()| 0)
}
