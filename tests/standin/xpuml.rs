//! Stands in for Kunlunxin's `libxpuml.so`. `--cfg named` is a newer one, which has names.

#[path = "scenario.rs"]
mod scenario;

use std::ffi::{c_char, c_int, c_uint, c_void};
use std::mem::{offset_of, size_of};

const NOT_FOUND: c_int = 6;
const LOST: c_int = 15;

#[repr(C)]
pub struct XpumlMemory {
    page_size: u64,
    total: u64,
    free: u64,
    used: u64,
    l3: [u64; 4],
    reserved: [u64; 8],
}

#[repr(C)]
pub struct XpumlUtilization {
    xpu: c_uint,
    memory: c_uint,
    reserved: [u64; 15],
}

#[repr(C)]
pub struct XpumlAttributes {
    arch_id: c_int,
    board_id: c_int,
    model_id: c_int,
    cluster_count: c_uint,
    sdnn_count: c_uint,
    dma_count: c_uint,
    decoder_count: c_uint,
    encoder_count: c_uint,
    image_count: c_uint,
    most_functions: c_uint,
    global_memory_mb: u64,
    l3_memory_mb: u64,
    reserved: [u64; 9],
}

#[repr(C)]
pub struct XpumlPciInfo {
    domain: c_uint,
    bus: c_uint,
    device: c_uint,
    function: c_uint,
    device_id: c_uint,
    subsystem_id: c_uint,
    bus_id: [u8; 32],
    reserved: [u64; 9],
}

const _: () = {
    assert!(size_of::<XpumlMemory>() == 128 && offset_of!(XpumlMemory, used) == 24);
    assert!(size_of::<XpumlUtilization>() == 128 && offset_of!(XpumlUtilization, memory) == 4);
    assert!(size_of::<XpumlAttributes>() == 128 && offset_of!(XpumlAttributes, model_id) == 8);
    assert!(offset_of!(XpumlAttributes, global_memory_mb) == 40);
    assert!(size_of::<XpumlPciInfo>() == 128 && offset_of!(XpumlPciInfo, bus_id) == 24);
};

fn number(key: &str, otherwise: i64) -> i64 {
    scenario::number("xpuml", key, otherwise)
}

/// A handle is the number of the card, from 1 on.
fn fails(call: &str, device: *mut c_void) -> Option<c_int> {
    let there = || scenario::cards("xpuml").contains(&(device as i64 - 1));
    scenario::enter("xpuml", call).or_else(|| (!there()).then_some(LOST))
}

macro_rules! check {
    ($call:literal, $device:expr) => {
        if let Some(code) = fails($call, $device) {
            return code;
        }
    };
}

/// # Safety
/// `to` has room for a `T`, as every function here is promised.
unsafe fn tell<T>(to: *mut T, what: T) -> c_int {
    unsafe { to.write(what) };
    0
}

unsafe fn words(to: *mut c_char, room: c_uint, text: &[u8]) -> c_int {
    if (room as usize) < text.len() {
        return 7;
    }
    unsafe { to.copy_from_nonoverlapping(text.as_ptr().cast(), text.len()) };
    0
}

#[unsafe(no_mangle)]
pub extern "C" fn xpumlInit() -> c_int {
    scenario::enter("xpuml", "xpumlInit").unwrap_or(0)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn xpumlDeviceGetCount(to: *mut c_uint) -> c_int {
    scenario::sweep();
    if let Some(code) = scenario::enter("xpuml", "xpumlDeviceGetCount") {
        return code;
    }
    let there = scenario::cards("xpuml").len() as i64;
    unsafe { tell(to, number("count", there) as c_uint) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn xpumlDeviceGetHandleByIndex(index: c_uint, to: *mut *mut c_void) -> c_int {
    let cards = scenario::cards("xpuml");
    let Some(card) = cards.get(index as usize) else { return NOT_FOUND };
    let handle = std::ptr::without_provenance_mut(*card as usize + 1);
    check!("xpumlDeviceGetHandleByIndex", handle);
    unsafe { tell(to, handle) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn xpumlDeviceGetAttributes(
    device: *mut c_void,
    to: *mut XpumlAttributes,
) -> c_int {
    check!("xpumlDeviceGetAttributes", device);
    let told = XpumlAttributes {
        arch_id: number("generation", 2) as c_int,
        board_id: 100,
        model_id: 2,
        cluster_count: 8,
        sdnn_count: 6,
        dma_count: 0,
        decoder_count: 0,
        encoder_count: 0,
        image_count: 0,
        most_functions: 0,
        global_memory_mb: 16_384,
        l3_memory_mb: 63,
        reserved: [0xAAAA; 9],
    };
    unsafe { tell(to, told) }
}

#[cfg(named)]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xpumlDeviceGetName(
    device: *mut c_void,
    to: *mut c_char,
    room: c_uint,
) -> c_int {
    check!("xpumlDeviceGetName", device);
    unsafe { words(to, room, b"P800\0") }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn xpumlDeviceGetPciInfo(
    device: *mut c_void,
    to: *mut XpumlPciInfo,
) -> c_int {
    check!("xpumlDeviceGetPciInfo", device);
    let told = XpumlPciInfo {
        domain: 0,
        bus: 0x80 + device as c_uint,
        device: 0,
        function: 0,
        device_id: 0x3684_1d22,
        subsystem_id: 0,
        bus_id: [0; 32],
        reserved: [0; 9],
    };
    unsafe { tell(to, told) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn xpumlDeviceGetMemoryInfo(
    device: *mut c_void,
    to: *mut XpumlMemory,
) -> c_int {
    check!("xpumlDeviceGetMemoryInfo", device);
    let (total, used) = (16u64 << 30, 3u64 << 30);
    let free = total - used;
    let told = XpumlMemory { page_size: 4096, total, free, used, l3: [1; 4], reserved: [2; 8] };
    unsafe { tell(to, told) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn xpumlDeviceGetUtilizationRates(
    device: *mut c_void,
    to: *mut XpumlUtilization,
) -> c_int {
    check!("xpumlDeviceGetUtilizationRates", device);
    let xpu = number("utilisation", 12) as c_uint;
    unsafe { tell(to, XpumlUtilization { xpu, memory: 3, reserved: [0xAAAA; 15] }) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn xpumlDeviceGetTemperature(
    device: *mut c_void,
    sensor: c_int,
    to: *mut c_uint,
) -> c_int {
    check!("xpumlDeviceGetTemperature", device);
    if sensor != 0 {
        return 2;
    }
    unsafe { tell(to, number("temperature", 47) as c_uint) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn xpumlDeviceGetClockInfo(
    device: *mut c_void,
    _: c_int,
    to: *mut c_uint,
) -> c_int {
    check!("xpumlDeviceGetClockInfo", device);
    unsafe { tell(to, 900) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn xpumlDeviceGetPowerUsage(device: *mut c_void, to: *mut c_uint) -> c_int {
    check!("xpumlDeviceGetPowerUsage", device);
    unsafe { tell(to, number("power", 88_500) as c_uint) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn xpumlDeviceGetState(device: *mut c_void, to: *mut c_int) -> c_int {
    check!("xpumlDeviceGetState", device);
    unsafe { tell(to, number("state", 201) as c_int) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn xpumlSystemGetDriverVersion(to: *mut c_char, room: c_uint) -> c_int {
    unsafe { words(to, room, b"4.0.25\0") }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn xpumlSystemGetXPUMLVersion(to: *mut c_char, room: c_uint) -> c_int {
    unsafe { words(to, room, b"1.0\0") }
}
