//! Stands in for Cambricon's `libcndev.so`. `--cfg version_5` is an older one: it takes version 5 alone and has
//! the older forms of calls only.

#[path = "scenario.rs"]
mod scenario;

use std::ffi::{c_char, c_int};
use std::mem::{offset_of, size_of};

const OTHER_VERSION: c_int = 3;
const INVALID_DEVICE: c_int = 6;
/// The version that this library takes.
const TAKES: i32 = if cfg!(version_5) { 5 } else { 6 };
/// Handles are no indices, where there are any.
const HANDLES_FROM: i32 = if cfg!(version_5) { 0 } else { 100 };

#[repr(C)]
pub struct CardInfo {
    version: c_int,
    number: u32,
}

#[repr(C)]
pub struct MemoryInfo {
    version: c_int,
    physical_total: i64,
    physical_used: i64,
    virtual_total: i64,
    virtual_used: i64,
    channel_number: i64,
    channel_used: [i64; 20],
    global_memory: u64,
}

#[repr(C)]
pub struct MemoryInfoV2 {
    physical_total: i64,
    physical_used: i64,
    reserved_memory: i64,
    virtual_total: i64,
    virtual_used: i64,
    global_memory: u64,
    reserved: [u64; 16],
}

#[repr(C)]
pub struct TemperatureInfo {
    version: c_int,
    board: c_int,
    cluster: [c_int; 20],
    memory_die: [c_int; 8],
    chip: c_int,
    air_inlet: c_int,
    air_outlet: c_int,
    memory: c_int,
    video_input: c_int,
    cpu: c_int,
    isp: c_int,
}

#[repr(C)]
pub struct PowerInfo {
    version: c_int,
    usage: c_int,
    cap: c_int,
    usage_decimal: c_int,
    machine: c_int,
    cap_decimal: c_int,
    design: u16,
    instantaneous: u16,
    instantaneous_decimal: u16,
}

#[repr(C)]
pub struct DevicePowerInfo {
    usage: i32,
    cap: i32,
    machine: i32,
    tdp: i32,
    max_power: i32,
    reserved: [i32; 16],
}

#[repr(C)]
pub struct UtilizationInfo {
    version: c_int,
    average: c_int,
    core: [c_int; 80],
}

#[repr(C)]
pub struct HealthState {
    version: c_int,
    health: c_int,
    device_state: c_int,
    driver_state: c_int,
}

#[repr(C)]
pub struct FrequencyInfo {
    version: c_int,
    board_freq: c_int,
    ddr_freq: c_int,
    overtemp_flag: u8,
    fast_flag: u8,
    cluster_count: u16,
    cluster: [u16; 20],
    board_default: c_int,
    board_range: [c_int; 2],
}

#[repr(C)]
pub struct EccInfo {
    version: c_int,
    one_bit: u64,
    multiple_one: u64,
    multiple: u64,
    multiple_multiple: u64,
    corrected: u64,
    uncorrected: u64,
    total: u64,
    forbidden: u64,
}

#[repr(C)]
pub struct VersionInfo {
    version: c_int,
    parts: [u32; 6],
}

#[repr(C)]
pub struct LibVersionInfo {
    version: c_int,
    parts: [u32; 3],
}

#[repr(C)]
pub struct PcieInfoV2 {
    subsystem_id: u32,
    device_id: u32,
    vendor: u16,
    subsystem_vendor: u16,
    domain: u32,
    bus: u32,
    device: u32,
    function: u32,
    module_id: u16,
    slot_id: u16,
    reserved: [u32; 8],
}

#[repr(C)]
pub struct PcieInfo {
    version: c_int,
    subsystem_id: u32,
    device_id: u32,
    vendor: u16,
    subsystem_vendor: u16,
    domain: u32,
    bus: u32,
    device: u32,
    function: u32,
    physical_slot: *const c_char,
    slot_id: c_int,
}

const _: () = {
    assert!(size_of::<CardInfo>() == 8);
    assert!(size_of::<MemoryInfo>() == 216 && offset_of!(MemoryInfo, physical_used) == 16);
    assert!(size_of::<MemoryInfoV2>() == 176 && offset_of!(MemoryInfoV2, physical_used) == 8);
    assert!(size_of::<TemperatureInfo>() == 148 && offset_of!(TemperatureInfo, chip) == 120);
    assert!(size_of::<PowerInfo>() == 32 && size_of::<DevicePowerInfo>() == 84);
    assert!(size_of::<UtilizationInfo>() == 328 && size_of::<HealthState>() == 16);
    assert!(size_of::<FrequencyInfo>() == 68 && offset_of!(FrequencyInfo, board_default) == 56);
    assert!(size_of::<EccInfo>() == 72 && offset_of!(EccInfo, corrected) == 40);
    assert!(size_of::<VersionInfo>() == 28 && size_of::<LibVersionInfo>() == 16);
    assert!(size_of::<PcieInfoV2>() == 64 && offset_of!(PcieInfoV2, bus) == 16);
    assert!(size_of::<PcieInfo>() == 48 && offset_of!(PcieInfo, bus) == 20);
};

fn number(key: &str, otherwise: i64) -> i64 {
    scenario::number("cndev", key, otherwise)
}

/// The card behind a handle: the libraries count those that are there.
fn card(handle: i32) -> Option<i64> {
    let index = usize::try_from(handle - HANDLES_FROM).ok()?;
    scenario::cards("cndev").get(index).copied()
}

fn fails(call: &str, handle: i32) -> Option<c_int> {
    scenario::enter("cndev", call).or_else(|| card(handle).is_none().then_some(INVALID_DEVICE))
}

/// # Safety
/// `to` is a structure of this interface, whose first field is its version.
unsafe fn is_taken<T>(to: *mut T) -> bool {
    unsafe { to.cast::<c_int>().read() == TAKES }
}

/// # Safety
/// `to` has room for a `T`, as every function here is promised.
unsafe fn tell<T>(to: *mut T, what: T) -> c_int {
    unsafe { to.write(what) };
    0
}

macro_rules! check {
    ($call:literal, $device:expr) => {
        if let Some(code) = fails($call, $device) {
            return code;
        }
    };
    ($call:literal, $device:expr, $to:expr) => {
        if !unsafe { is_taken($to) } {
            return OTHER_VERSION;
        }
        check!($call, $device);
    };
}

#[unsafe(no_mangle)]
pub extern "C" fn cndevInit(reserved: c_int) -> c_int {
    assert_eq!(reserved, 0);
    scenario::enter("cndev", "cndevInit").unwrap_or(0)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cndevGetDeviceCount(to: *mut CardInfo) -> c_int {
    if !unsafe { is_taken(to) } {
        return OTHER_VERSION;
    }
    scenario::sweep();
    if let Some(code) = scenario::enter("cndev", "cndevGetDeviceCount") {
        return code;
    }
    let cards = number("count", scenario::cards("cndev").len() as i64) as u32;
    unsafe { tell(to, CardInfo { version: TAKES, number: cards }) }
}

#[cfg(not(version_5))]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cndevGetDeviceHandleByIndex(index: c_int, to: *mut i32) -> c_int {
    check!("cndevGetDeviceHandleByIndex", index + HANDLES_FROM);
    unsafe { tell(to, index + HANDLES_FROM) }
}

#[unsafe(no_mangle)]
pub extern "C" fn cndevGetCardNameStringByDevId(device: i32) -> *const c_char {
    if card(device).is_some() { c"MLU370-S4".as_ptr() } else { std::ptr::null() }
}

#[cfg(not(version_5))]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cndevGetMemoryUsageV2(to: *mut MemoryInfoV2, device: i32) -> c_int {
    check!("cndevGetMemoryUsageV2", device);
    let told = MemoryInfoV2 {
        physical_total: 24_576,
        physical_used: number("memory", 1024),
        reserved_memory: 0,
        virtual_total: 0,
        virtual_used: 0,
        global_memory: 0,
        reserved: [0xAAAA; 16],
    };
    unsafe { tell(to, told) }
}

#[cfg(version_5)]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cndevGetMemoryUsage(to: *mut MemoryInfo, device: i32) -> c_int {
    check!("cndevGetMemoryUsage", device, to);
    let told = MemoryInfo {
        version: TAKES,
        physical_total: 16_384,
        physical_used: 512,
        virtual_total: 0,
        virtual_used: 0,
        channel_number: 4,
        channel_used: [128; 20],
        global_memory: 0,
    };
    unsafe { tell(to, told) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cndevGetTemperatureInfo(to: *mut TemperatureInfo, device: i32) -> c_int {
    check!("cndevGetTemperatureInfo", device, to);
    let Some(card) = card(device) else { return INVALID_DEVICE };
    let chip = (number("temperature", 44) + card) as c_int;
    let told = TemperatureInfo {
        version: TAKES,
        board: 38,
        cluster: [0; 20],
        memory_die: [0; 8],
        // Older libraries do not know the chip's.
        chip: if cfg!(version_5) { 0 } else { chip },
        air_inlet: 0,
        air_outlet: 0,
        memory: 0,
        video_input: 0,
        cpu: 0,
        isp: 0,
    };
    unsafe { tell(to, told) }
}

#[cfg(not(version_5))]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cndevGetDevicePowerInfo(to: *mut DevicePowerInfo, device: i32) -> c_int {
    check!("cndevGetDevicePowerInfo", device);
    let usage = number("power", 75) as i32;
    let (cap, machine, tdp, max_power) = (150, 0, 150, 150);
    unsafe { tell(to, DevicePowerInfo { usage, cap, machine, tdp, max_power, reserved: [7; 16] }) }
}

#[cfg(version_5)]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cndevGetPowerInfo(to: *mut PowerInfo, device: i32) -> c_int {
    check!("cndevGetPowerInfo", device, to);
    let told = PowerInfo {
        version: TAKES,
        usage: 33,
        cap: 70,
        usage_decimal: 0,
        machine: 0,
        cap_decimal: 0,
        design: 70,
        instantaneous: 34,
        instantaneous_decimal: 0,
    };
    unsafe { tell(to, told) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cndevGetDeviceUtilizationInfo(
    to: *mut UtilizationInfo,
    device: i32,
) -> c_int {
    check!("cndevGetDeviceUtilizationInfo", device, to);
    let average = number("utilisation", 61) as c_int;
    unsafe { tell(to, UtilizationInfo { version: TAKES, average, core: [average; 80] }) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cndevGetCardHealthState(to: *mut HealthState, device: i32) -> c_int {
    check!("cndevGetCardHealthState", device, to);
    let device_state = number("device_state", 1) as c_int;
    let driver_state = number("driver_state", 4) as c_int;
    unsafe { tell(to, HealthState { version: TAKES, health: 1, device_state, driver_state }) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cndevGetFrequencyInfo(to: *mut FrequencyInfo, device: i32) -> c_int {
    check!("cndevGetFrequencyInfo", device, to);
    let told = FrequencyInfo {
        version: TAKES,
        board_freq: 1300,
        ddr_freq: 3200,
        overtemp_flag: 0,
        fast_flag: 0,
        cluster_count: 4,
        cluster: [1300; 20],
        board_default: 1300,
        board_range: [300, 1300],
    };
    unsafe { tell(to, told) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cndevGetECCInfo(to: *mut EccInfo, device: i32) -> c_int {
    check!("cndevGetECCInfo", device, to);
    let told = EccInfo {
        version: TAKES,
        one_bit: 2,
        multiple_one: 1,
        multiple: 0,
        multiple_multiple: 0,
        corrected: 3,
        uncorrected: 0,
        total: 3,
        forbidden: 9,
    };
    unsafe { tell(to, told) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cndevGetVersionInfo(to: *mut VersionInfo, device: i32) -> c_int {
    check!("cndevGetVersionInfo", device, to);
    unsafe { tell(to, VersionInfo { version: TAKES, parts: [1, 1, 4, 6, 10, 3] }) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cndevGetLibVersion(to: *mut LibVersionInfo) -> c_int {
    if !unsafe { is_taken(to) } {
        return OTHER_VERSION;
    }
    unsafe { tell(to, LibVersionInfo { version: TAKES, parts: [4, 0, 2] }) }
}

#[cfg(not(version_5))]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cndevGetPCIeInfoV2(to: *mut PcieInfoV2, device: i32) -> c_int {
    check!("cndevGetPCIeInfoV2", device);
    let Some(card) = card(device) else { return INVALID_DEVICE };
    let told = PcieInfoV2 {
        subsystem_id: 0,
        device_id: 0x0370,
        vendor: 0xcabc,
        subsystem_vendor: 0,
        domain: 0,
        bus: 0x65 + card as u32,
        device: 0,
        function: 0,
        module_id: 0,
        slot_id: 0,
        reserved: [0; 8],
    };
    unsafe { tell(to, told) }
}

#[cfg(version_5)]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cndevGetPCIeInfo(to: *mut PcieInfo, device: i32) -> c_int {
    check!("cndevGetPCIeInfo", device, to);
    let told = PcieInfo {
        version: TAKES,
        subsystem_id: 0,
        device_id: 0x0270,
        vendor: 0xcabc,
        subsystem_vendor: 0,
        domain: 0,
        bus: 0x17,
        device: 0,
        function: 0,
        physical_slot: c"slot".as_ptr(),
        slot_id: 1,
    };
    unsafe { tell(to, told) }
}
