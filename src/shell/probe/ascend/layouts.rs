//! DCMI's structures, as the header lays them out.

use std::ffi::{c_int, c_uint, c_ulong};

#[repr(C)]
#[derive(Clone, Copy)]
pub struct ChipInfoV2 {
    pub chip_type: [u8; 32],
    pub name: [u8; 32],
    pub version: [u8; 32],
    pub cores: c_uint,
    pub npu_name: [u8; 32],
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct PcieInfo {
    pub vendor: c_uint,
    pub subvendor: c_uint,
    pub device: c_uint,
    pub subdevice: c_uint,
    pub domain: c_int,
    pub bus: c_uint,
    pub slot: c_uint,
    pub function: c_uint,
    pub reserved: [u8; 32],
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct MemoryV3 {
    /// MB.
    pub size: u64,
    pub available: u64,
    pub frequency: c_uint,
    pub huge_page_size: c_ulong,
    pub huge_pages_total: c_ulong,
    pub huge_pages_free: c_ulong,
    /// Per cent.
    pub utilisation: c_uint,
    pub reserved: [u8; 60],
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct Hbm {
    /// MB.
    pub size: u64,
    pub frequency: c_uint,
    /// MB.
    pub used: u64,
    pub temperature: c_int,
    pub bandwidth: c_uint,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct Ecc {
    pub enabled: c_int,
    pub single: c_uint,
    pub double: c_uint,
    pub total_single: c_uint,
    pub total_double: c_uint,
    pub isolated: [c_uint; 4],
}

const _: () = {
    // The structure of the first version is the beginning of the second's.
    assert!(std::mem::offset_of!(ChipInfoV2, npu_name) == 100 && size_of::<ChipInfoV2>() == 132);
    assert!(size_of::<PcieInfo>() == 64 && std::mem::offset_of!(PcieInfo, domain) == 16);
    assert!(size_of::<MemoryV3>() == 112 && std::mem::offset_of!(MemoryV3, utilisation) == 48);
    assert!(std::mem::offset_of!(MemoryV3, huge_page_size) == 24);
    assert!(std::mem::offset_of!(MemoryV3, reserved) == 52);
    assert!(size_of::<Hbm>() == 32 && std::mem::offset_of!(Hbm, used) == 16);
    assert!(std::mem::offset_of!(Hbm, temperature) == 24 && size_of::<Ecc>() == 36);
};
