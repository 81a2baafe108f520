//! CNDEV's structures, as the header lays them out. Those of the older form begin with the version of the
//! interface.

#[repr(C)]
#[derive(Clone, Copy)]
pub struct CardInfo {
    pub version: i32,
    pub number: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct MemoryV2 {
    /// MB, as all that follow.
    pub total: i64,
    pub used: i64,
    pub reserved: i64,
    pub virtual_total: i64,
    pub virtual_used: i64,
    pub global: u64,
    pub rest: [u64; 16],
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct Memory {
    pub version: i32,
    pub total: i64,
    pub used: i64,
    pub virtual_total: i64,
    pub virtual_used: i64,
    pub channels: i64,
    pub of_channels: [i64; 20],
    pub global: u64,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct Temperature {
    pub version: i32,
    pub board: i32,
    pub clusters: [i32; 20],
    pub memory_dies: [i32; 8],
    pub chip: i32,
    pub others: [i32; 6],
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct PowerV2 {
    /// W, as all that follow.
    pub usage: i32,
    pub cap: i32,
    pub rest: [i32; 19],
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct Power {
    pub version: i32,
    /// W.
    pub usage: i32,
    pub cap: i32,
    pub rest: [i32; 3],
    pub others: [u16; 3],
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct Utilisation {
    pub version: i32,
    /// Per cent.
    pub average: i32,
    pub cores: [i32; 80],
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct HealthState {
    pub version: i32,
    pub health: i32,
    pub device: i32,
    pub driver: i32,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct Frequency {
    pub version: i32,
    /// MHz.
    pub board: i32,
    pub memory: i32,
    pub flags: [u8; 2],
    pub clusters: u16,
    pub of_clusters: [u16; 20],
    pub default: i32,
    pub range: [i32; 2],
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct Ecc {
    pub version: i32,
    pub counts: [u64; 4],
    pub corrected: u64,
    pub uncorrected: u64,
    pub total: u64,
    pub forbidden: u64,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct Versions {
    pub version: i32,
    pub mcu: [u32; 3],
    pub driver: [u32; 3],
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct LibraryVersion {
    pub version: i32,
    pub parts: [u32; 3],
}

/// Where a card is; the older form has a version before, and two fields of another kind behind.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct PcieV2 {
    pub subsystem: u32,
    pub device: u32,
    pub vendor: u16,
    pub subvendor: u16,
    pub domain: u32,
    pub bus: u32,
    pub slot: u32,
    pub function: u32,
    pub module: u16,
    pub slot_id: u16,
    pub rest: [u32; 8],
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct Pcie {
    pub version: i32,
    pub subsystem: u32,
    pub device: u32,
    pub vendor: u16,
    pub subvendor: u16,
    pub domain: u32,
    pub bus: u32,
    pub slot: u32,
    pub function: u32,
    /// The address of a text, which is not looked at.
    pub physical_slot: usize,
    pub slot_id: i32,
}

const _: () = {
    use std::mem::offset_of;
    assert!(size_of::<CardInfo>() == 8 && size_of::<MemoryV2>() == 176);
    assert!(size_of::<Memory>() == 216 && offset_of!(Memory, total) == 8);
    assert!(size_of::<Temperature>() == 148 && offset_of!(Temperature, chip) == 120);
    assert!(size_of::<PowerV2>() == 84 && size_of::<Power>() == 32);
    assert!(size_of::<Utilisation>() == 328 && size_of::<HealthState>() == 16);
    assert!(size_of::<Frequency>() == 68 && offset_of!(Frequency, default) == 56);
    assert!(size_of::<Ecc>() == 72 && offset_of!(Ecc, corrected) == 40);
    assert!(size_of::<Versions>() == 28 && size_of::<LibraryVersion>() == 16);
    assert!(size_of::<PcieV2>() == 64 && offset_of!(PcieV2, domain) == 12);
    assert!(size_of::<Pcie>() == 48 && offset_of!(Pcie, domain) == 16);
};
