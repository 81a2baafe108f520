//! Stands in for Ascend's `libdcmi.so`: the symbols and layouts of its public header, played by a scenario.
//! `--cfg older` leaves out what older drivers lack.

#[path = "scenario.rs"]
mod scenario;

use std::ffi::{c_char, c_int, c_uint, c_ulong};
use std::mem::{offset_of, size_of};

const ABSENT: c_int = -8008;
const UNSUPPORTED: c_int = -8255;

#[repr(C)]
pub struct DcmiChipInfo {
    chip_type: [u8; 32],
    chip_name: [u8; 32],
    chip_ver: [u8; 32],
    aicore_cnt: c_uint,
}

#[repr(C)]
pub struct DcmiChipInfoV2 {
    first: DcmiChipInfo,
    npu_name: [u8; 32],
}

#[repr(C)]
pub struct DcmiPcieInfoAll {
    venderid: c_uint,
    subvenderid: c_uint,
    deviceid: c_uint,
    subdeviceid: c_uint,
    domain: c_int,
    bdf_busid: c_uint,
    bdf_deviceid: c_uint,
    bdf_funcid: c_uint,
    reserve: [u8; 32],
}

#[repr(C)]
pub struct DcmiMemoryInfoV3 {
    memory_size: u64,
    memory_available: u64,
    freq: c_uint,
    hugepagesize: c_ulong,
    hugepages_total: c_ulong,
    hugepages_free: c_ulong,
    utiliza: c_uint,
    reserve: [u8; 60],
}

#[repr(C)]
pub struct DcmiHbmInfo {
    memory_size: u64,
    freq: c_uint,
    memory_usage: u64,
    temp: c_int,
    bandwith_util_rate: c_uint,
}

#[repr(C)]
pub struct DcmiEccInfo {
    enable_flag: c_int,
    counts: [c_uint; 8],
}

const _: () = {
    assert!(size_of::<DcmiChipInfo>() == 100 && size_of::<DcmiChipInfoV2>() == 132);
    assert!(offset_of!(DcmiChipInfo, chip_name) == 32);
    assert!(size_of::<DcmiPcieInfoAll>() == 64 && offset_of!(DcmiPcieInfoAll, bdf_busid) == 20);
    assert!(
        size_of::<DcmiMemoryInfoV3>() == 112 && offset_of!(DcmiMemoryInfoV3, hugepagesize) == 24
    );
    assert!(
        offset_of!(DcmiMemoryInfoV3, utiliza) == 48 && offset_of!(DcmiMemoryInfoV3, reserve) == 52
    );
    assert!(size_of::<DcmiHbmInfo>() == 32 && offset_of!(DcmiHbmInfo, memory_usage) == 16);
    assert!(size_of::<DcmiEccInfo>() == 36);
};

fn number(key: &str, otherwise: i64) -> i64 {
    scenario::number("dcmi", key, otherwise)
}

/// Whether the call fails, and how: by the scenario, or since the card is not there.
fn fails(call: &str, card: c_int) -> Option<c_int> {
    let there = || scenario::cards("dcmi").contains(&card.into());
    scenario::enter("dcmi", call).or_else(|| (!there()).then_some(ABSENT))
}

macro_rules! check {
    ($call:literal, $card:expr) => {
        if let Some(code) = fails($call, $card) {
            return code;
        }
    };
}

fn text(name: &str) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes[..name.len()].copy_from_slice(name.as_bytes());
    bytes
}

/// # Safety
/// `to` has room for a `T`, as every function here is promised.
unsafe fn tell<T>(to: *mut T, what: T) -> c_int {
    unsafe { to.write(what) };
    0
}

#[unsafe(no_mangle)]
pub extern "C" fn dcmi_init() -> c_int {
    scenario::enter("dcmi", "dcmi_init").unwrap_or(0)
}

unsafe fn list(call: &str, count: *mut c_int, list: *mut c_int, room: c_int) -> c_int {
    scenario::sweep();
    if let Some(code) = scenario::enter("dcmi", call) {
        return code;
    }
    let cards = scenario::cards("dcmi");
    for (at, card) in cards.iter().take(room as usize).enumerate() {
        unsafe { list.add(at).write(*card as c_int) };
    }
    unsafe { tell(count, number("count", cards.len() as i64) as c_int) }
}

#[cfg(not(older))]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dcmi_get_card_list(n: *mut c_int, to: *mut c_int, room: c_int) -> c_int {
    unsafe { list("dcmi_get_card_list", n, to, room) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn dcmi_get_card_num_list(
    n: *mut c_int,
    to: *mut c_int,
    room: c_int,
) -> c_int {
    unsafe { list("dcmi_get_card_num_list", n, to, room) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn dcmi_get_device_num_in_card(card: c_int, count: *mut c_int) -> c_int {
    check!("dcmi_get_device_num_in_card", card);
    unsafe { tell(count, 1) }
}

/// A card has one NPU and behind it a controller, which is no accelerator.
#[cfg(not(older))]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dcmi_get_device_id_in_card(
    card: c_int,
    most: *mut c_int,
    mcu: *mut c_int,
    cpu: *mut c_int,
) -> c_int {
    check!("dcmi_get_device_id_in_card", card);
    unsafe {
        tell(mcu, 1);
        tell(cpu, -1);
        tell(most, 2)
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn dcmi_get_device_type(card: c_int, device: c_int, to: *mut c_int) -> c_int {
    check!("dcmi_get_device_type", card);
    unsafe { tell(to, c_int::from(device > 0)) }
}

#[cfg(not(older))]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dcmi_get_device_logic_id(to: *mut c_int, card: c_int, _: c_int) -> c_int {
    check!("dcmi_get_device_logic_id", card);
    unsafe { tell(to, card) }
}

fn chip() -> DcmiChipInfo {
    let (chip_type, chip_name, chip_ver) = (text("Ascend"), text("310P3"), text("V1"));
    DcmiChipInfo { chip_type, chip_name, chip_ver, aicore_cnt: 8 }
}

#[cfg(not(older))]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dcmi_get_device_chip_info_v2(
    card: c_int,
    _: c_int,
    to: *mut DcmiChipInfoV2,
) -> c_int {
    check!("dcmi_get_device_chip_info_v2", card);
    unsafe { tell(to, DcmiChipInfoV2 { first: chip(), npu_name: text("npu") }) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn dcmi_get_device_chip_info(
    card: c_int,
    _: c_int,
    to: *mut DcmiChipInfo,
) -> c_int {
    check!("dcmi_get_device_chip_info", card);
    unsafe { tell(to, chip()) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn dcmi_get_device_pcie_info_v2(
    card: c_int,
    _: c_int,
    to: *mut DcmiPcieInfoAll,
) -> c_int {
    check!("dcmi_get_device_pcie_info_v2", card);
    let bus = 0x3b + card as c_uint;
    let on_bus = c_uint::from(number("bus", 1) != 0);
    let told = DcmiPcieInfoAll {
        venderid: 0x19e5 * on_bus,
        subvenderid: 0,
        deviceid: 0xd500 * on_bus,
        subdeviceid: 0,
        domain: 0,
        bdf_busid: bus * on_bus,
        bdf_deviceid: 0,
        bdf_funcid: 0,
        reserve: [0xAA; 32],
    };
    unsafe { tell(to, told) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn dcmi_get_device_temperature(
    card: c_int,
    _: c_int,
    to: *mut c_int,
) -> c_int {
    check!("dcmi_get_device_temperature", card);
    unsafe { tell(to, (number("temperature", 50) + i64::from(card)) as c_int) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn dcmi_get_device_power_info(
    card: c_int,
    _: c_int,
    to: *mut c_int,
) -> c_int {
    check!("dcmi_get_device_power_info", card);
    unsafe { tell(to, number("power", 128) as c_int) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn dcmi_mcu_get_power_info(card: c_int, to: *mut c_int) -> c_int {
    check!("dcmi_mcu_get_power_info", card);
    unsafe { tell(to, number("card_power", 415) as c_int) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn dcmi_get_device_utilization_rate(
    card: c_int,
    _: c_int,
    kind: c_int,
    to: *mut c_uint,
) -> c_int {
    check!("dcmi_get_device_utilization_rate", card);
    match kind {
        2 => unsafe { tell(to, number("utilisation", 34) as c_uint) },
        _ => UNSUPPORTED,
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn dcmi_get_device_health(card: c_int, _: c_int, to: *mut c_uint) -> c_int {
    check!("dcmi_get_device_health", card);
    unsafe { tell(to, number("health", 0) as c_uint) }
}

#[cfg(not(older))]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dcmi_get_device_memory_info_v3(
    card: c_int,
    _: c_int,
    to: *mut DcmiMemoryInfoV3,
) -> c_int {
    check!("dcmi_get_device_memory_info_v3", card);
    let told = DcmiMemoryInfoV3 {
        memory_size: 8192,
        // In whatever unit this driver likes.
        memory_available: 6_291_456,
        freq: 3200,
        hugepagesize: 2048,
        hugepages_total: 0,
        hugepages_free: 0,
        utiliza: 25,
        reserve: [0xAA; 60],
    };
    unsafe { tell(to, told) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn dcmi_get_device_hbm_info(
    card: c_int,
    _: c_int,
    to: *mut DcmiHbmInfo,
) -> c_int {
    check!("dcmi_get_device_hbm_info", card);
    let memory_size = number("hbm", 0) as u64;
    if memory_size == 0 {
        return UNSUPPORTED;
    }
    let told = DcmiHbmInfo {
        memory_size,
        freq: 1600,
        memory_usage: memory_size / 4,
        temp: 60,
        bandwith_util_rate: 5,
    };
    unsafe { tell(to, told) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn dcmi_get_device_ecc_info(
    card: c_int,
    _: c_int,
    kind: c_int,
    to: *mut DcmiEccInfo,
) -> c_int {
    check!("dcmi_get_device_ecc_info", card);
    if kind != 0 {
        return UNSUPPORTED;
    }
    let enable_flag = number("ecc", 1) as c_int;
    unsafe { tell(to, DcmiEccInfo { enable_flag, counts: [1, 0, 7, 2, 0, 0, 0, 0] }) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn dcmi_get_device_frequency(
    card: c_int,
    _: c_int,
    kind: c_int,
    to: *mut c_uint,
) -> c_int {
    check!("dcmi_get_device_frequency", card);
    if kind == 7 { unsafe { tell(to, number("frequency", 1000) as c_uint) } } else { UNSUPPORTED }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn dcmi_get_dcmi_version(to: *mut c_char, room: c_int) -> c_int {
    let version = b"24.1.0.3\0";
    if (room as usize) < version.len() {
        return -8001;
    }
    unsafe { to.copy_from_nonoverlapping(version.as_ptr().cast(), version.len()) };
    0
}
