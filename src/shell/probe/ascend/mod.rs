//! Huawei Ascend through DCMI, the driver's management library (`libdcmi.so`), as far as its public header
//! (Ascend/mind-cluster, `dcmi_interface_api.h`) goes. All calls return 0 where they succeed.

mod layouts;
pub mod runtime;

use std::ffi::{c_char, c_int, c_uint};
use std::path::Path;

use self::layouts::{ChipInfoV2, Ecc, Hbm, MemoryV3, PcieInfo};
use super::identities::Identities;
use super::library::{self, Buffer, Function, Loaded, Places};
use crate::hardware::{Complaint, Device, EccErrors, Health, Quantity, Trouble, Vendor, Why};
use crate::limits;

pub const PLACES: Places = Places {
    names: &["libdcmi.so"],
    folders: &[
        "/usr/local/dcmi",
        "/usr/local/Ascend/driver/lib64/driver",
        "/usr/local/Ascend/driver/lib64",
        "/usr/lib64",
        "/usr/local/lib",
    ],
};

/// Return codes.
const NO_PERMISSION: c_int = -8002;
const NO_DEVICE: c_int = -8008;
const IN_CONTAINER: c_int = -8013;
const UNSUPPORTED: c_int = -8255;

/// `dcmi_unit_type` of what computes; cards have controllers, too.
const NPU: c_int = 0;
/// `dcmi_freq_type` of the AI cores' clock now.
const AI_CORE_CLOCK: c_int = 7;
/// Types of utilisation: AI cores, and the whole where cores are not told apart.
const AI_CORES: c_int = 2;
const WHOLE_NPU: c_int = 13;
/// `dcmi_device_type` of memories with error counters.
const ECC_HBM: c_int = 2;
const ECC_DDR: c_int = 0;
/// A health that stands for a device that is not there.
const HEALTH_ABSENT: c_uint = 0xFFFF_FFFF;

type OfDevice<T> = unsafe extern "C" fn(c_int, c_int, *mut T) -> c_int;
type OfKind<T> = unsafe extern "C" fn(c_int, c_int, c_int, *mut T) -> c_int;
type OfCard = unsafe extern "C" fn(c_int, *mut c_int) -> c_int;
type CardList = unsafe extern "C" fn(*mut c_int, *mut c_int, c_int) -> c_int;
type IdsInCard = unsafe extern "C" fn(c_int, *mut c_int, *mut c_int, *mut c_int) -> c_int;
type LogicId = unsafe extern "C" fn(*mut c_int, c_int, c_int) -> c_int;
type Text = unsafe extern "C" fn(*mut c_char, c_int) -> c_int;

/// The library, initialised.
pub struct Dcmi {
    loaded: Loaded,
    card_list: Function<CardList>,
    older_card_list: Function<CardList>,
    devices_in_card: Function<OfCard>,
    ids_in_card: Function<IdsInCard>,
    kind: Function<OfDevice<c_int>>,
    logic_id: Function<LogicId>,
    chip: Function<OfDevice<ChipInfoV2>>,
    older_chip: Function<OfDevice<ChipInfoV2>>,
    pcie: Function<OfDevice<PcieInfo>>,
    temperature: Function<OfDevice<c_int>>,
    power: Function<OfDevice<c_int>>,
    card_power: Function<OfCard>,
    utilisation: Function<OfKind<c_uint>>,
    health: Function<OfDevice<c_uint>>,
    memory: Function<OfDevice<MemoryV3>>,
    hbm: Function<OfDevice<Hbm>>,
    ecc: Function<OfKind<Ecc>>,
    frequency: Function<OfKind<c_uint>>,
    version: Function<Text>,
    buffer: Buffer,
    identities: Identities<(c_int, c_int)>,
}

impl Dcmi {
    /// Loads and initialises the library.
    ///
    /// # Errors
    /// Where there is none that can be used, or no device is given to this process.
    pub fn open(named: Option<&Path>) -> Result<Self, Trouble> {
        let loaded = library::open(named, &PLACES)?;
        // SAFETY: the signatures are those of the header.
        let dcmi = unsafe {
            Self {
                card_list: loaded.function("dcmi_get_card_list"),
                older_card_list: loaded.function("dcmi_get_card_num_list"),
                devices_in_card: loaded.function("dcmi_get_device_num_in_card"),
                ids_in_card: loaded.function("dcmi_get_device_id_in_card"),
                kind: loaded.function("dcmi_get_device_type"),
                logic_id: loaded.function("dcmi_get_device_logic_id"),
                chip: loaded.function("dcmi_get_device_chip_info_v2"),
                older_chip: loaded.function("dcmi_get_device_chip_info"),
                pcie: loaded.function("dcmi_get_device_pcie_info_v2"),
                temperature: loaded.function("dcmi_get_device_temperature"),
                power: loaded.function("dcmi_get_device_power_info"),
                card_power: loaded.function("dcmi_mcu_get_power_info"),
                utilisation: loaded.function("dcmi_get_device_utilization_rate"),
                health: loaded.function("dcmi_get_device_health"),
                memory: loaded.function("dcmi_get_device_memory_info_v3"),
                hbm: loaded.function("dcmi_get_device_hbm_info"),
                ecc: loaded.function("dcmi_get_device_ecc_info"),
                frequency: loaded.function("dcmi_get_device_frequency"),
                version: loaded.function("dcmi_get_dcmi_version"),
                buffer: Buffer::new(),
                identities: Identities::default(),
                loaded,
            }
        };
        // SAFETY: as above.
        let init: Function<unsafe extern "C" fn() -> c_int> =
            unsafe { dcmi.loaded.function("dcmi_init") };
        let begin = init.get().map_err(|_| dcmi.loaded.lacks(init.name))?;
        // SAFETY: takes nothing; called once a process.
        began(unsafe { begin() }, init.name)?;
        Ok(dcmi)
    }

    pub fn path(&self) -> &Path {
        self.loaded.path()
    }

    /// The library's own version.
    pub fn version(&self) -> Option<String> {
        let version = self.version.get().ok()?;
        let mut text = [0u8; limits::VENDOR_TEXT_BYTES];
        // One byte stays NUL whatever the library writes.
        let length = c_int::try_from(text.len() - 1).ok()?;
        // SAFETY: the buffer has the length that is told.
        let code = unsafe { version(text.as_mut_ptr().cast(), length) };
        if code == 0 { library::text(&text) } else { None }
    }

    /// Every NPU, as it is now.
    ///
    /// # Errors
    /// Where the library cannot list them.
    pub fn sweep(&mut self) -> Result<Vec<Device>, Trouble> {
        let places = self.places()?;
        self.identities.begin(&places);
        let mut devices = Vec::new();
        for at in places {
            let Some(identity) = self.identity(at, devices.len()) else { continue };
            let mut device = identity;
            self.readings(at, &mut device);
            devices.push(device);
        }
        devices.sort_by_key(|device| device.index);
        Ok(devices)
    }

    /// Card and number in it of every NPU.
    fn places(&self) -> Result<Vec<(c_int, c_int)>, Trouble> {
        let list = if self.card_list.is_there() { self.card_list } else { self.older_card_list };
        let call = list.get().map_err(|_| self.loaded.lacks(self.card_list.name))?;
        let mut cards = [0; limits::VENDOR_CARDS];
        let mut count = 0;
        let room = c_int::try_from(cards.len()).unwrap_or(c_int::MAX);
        // SAFETY: the list has as many places as are told.
        let code = unsafe { call(&raw mut count, cards.as_mut_ptr(), room) };
        if code == NO_DEVICE {
            return Ok(Vec::new());
        }
        began(code, list.name)?;
        let known = usize::try_from(count).ok().and_then(|count| cards.get(..count));
        let value = i64::from(count);
        let cards =
            known.ok_or_else(|| Trouble::Implausible { call: list.name.to_owned(), value })?;
        let mut places = Vec::new();
        for card in cards {
            let devices = (0..self.count_in(*card)).map(|device| (*card, device));
            places.extend(devices.filter(|at| self.is_npu(*at)));
        }
        Ok(places)
    }

    /// Devices of a card, of any kind; a card that does not tell has none.
    fn count_in(&self, card: c_int) -> c_int {
        let most = c_int::try_from(limits::VENDOR_DEVICES_IN_CARD).unwrap_or(c_int::MAX);
        let (mut count, mut mcu, mut cpu) = (0, 0, 0);
        let told = match (self.ids_in_card.get(), self.devices_in_card.get()) {
            // SAFETY: places for the three numbers.
            (Ok(call), _) => unsafe { call(card, &raw mut count, &raw mut mcu, &raw mut cpu) },
            // SAFETY: a place for the number.
            (_, Ok(call)) => unsafe { call(card, &raw mut count) },
            (Err(_), Err(_)) => return 0,
        };
        if told == 0 { count.clamp(0, most) } else { 0 }
    }

    /// A library that does not tell kinds has NPUs alone.
    fn is_npu(&self, at: (c_int, c_int)) -> bool {
        of_device(self.kind, at).map_or(true, |kind| kind == NPU)
    }

    /// What does not change; `None` where the device has just gone.
    fn identity(&mut self, at: (c_int, c_int), count: usize) -> Option<Device> {
        if let Some(known) = self.identities.get(&at) {
            return Some(known.clone());
        }
        let index = self.index(at).or_else(|| u32::try_from(count).ok())?;
        let mut device = Device::new(Vendor::Ascend, index);
        let chip = self
            .answer(self.chip, at)
            .or_else(|why| self.answer(self.older_chip, at).map_err(|_| why));
        let name = |chip: ChipInfoV2| library::text(&chip.name);
        device.model = device.take(Quantity::Model, chip).and_then(name);
        let pcie = self.answer(self.pcie, at);
        device.pci = device.take(Quantity::Pci, pcie).and_then(|pcie: PcieInfo| {
            // The cores of a system on a chip are on no bus, and say so by zeros.
            let is_card = pcie.vendor & 0xFFFF != 0;
            let domain = u32::try_from(pcie.domain).ok()?;
            is_card.then(|| library::pci(domain, pcie.bus, pcie.slot, pcie.function))?
        });
        for what in [Quantity::Soc, Quantity::Driver, Quantity::Firmware, Quantity::Runtime] {
            device.lacks(what, Why::NoCall);
        }
        self.identities.keep(at, &device);
        Some(device)
    }

    /// The number by which the runtime opens a device.
    fn index(&self, (card, device): (c_int, c_int)) -> Option<u32> {
        let call = self.logic_id.get().ok()?;
        let mut id = 0;
        // SAFETY: a place for the number.
        let code = unsafe { call(&raw mut id, card, device) };
        if code == 0 { u32::try_from(id).ok() } else { None }
    }

    fn readings(&mut self, at: (c_int, c_int), device: &mut Device) {
        let celsius = of_device(self.temperature, at)
            .and_then(|value| library::celsius(value, self.temperature.name));
        device.celsius = device.take(Quantity::Temperature, celsius);
        let watts = self.watts(at);
        device.watts = device.take(Quantity::Power, watts);
        let utilisation = [AI_CORES, WHOLE_NPU]
            .map(|kind| of_kind(self.utilisation, at, kind))
            .into_iter()
            .reduce(|first, second| first.or_else(|why| second.map_err(|_| why)))
            .unwrap_or(Err(Why::NoCall))
            .and_then(|value| library::share(value, self.utilisation.name));
        device.utilisation = device.take(Quantity::Utilisation, utilisation);
        let mhz = of_kind(self.frequency, at, AI_CORE_CLOCK)
            .and_then(|value| library::mhz(value, self.frequency.name));
        device.frequency_mhz = device.take(Quantity::Frequency, mhz);
        let health = of_device(self.health, at).and_then(|code| self.judge(code));
        device.health = device.take(Quantity::Health, health).unwrap_or(Health::Unknown);
        self.memory(at, device);
        let ecc = self.ecc(at, ECC_HBM).or_else(|why| self.ecc(at, ECC_DDR).map_err(|_| why));
        device.ecc = device.take(Quantity::Ecc, ecc);
    }

    /// Tenths of a watt; boards that do not tell it of the chip tell it of the card.
    fn watts(&self, (card, device): (c_int, c_int)) -> Result<f64, Why> {
        let of_card = || {
            let call = self.card_power.get()?;
            let mut value = 0;
            // SAFETY: a place for the number.
            outcome(unsafe { call(card, &raw mut value) }, self.card_power.name)?;
            Ok((value, self.card_power.name))
        };
        let told = of_device(self.power, (card, device)).map(|value| (value, self.power.name));
        let (value, call) = told.or_else(|why: Why| of_card().map_err(|_: Why| why))?;
        library::plausible(value, 0..=100_000, call).map(|tenths| tenths as f64 / 10.0)
    }

    fn judge(&self, code: c_uint) -> Result<Health, Why> {
        match code {
            0 => Ok(Health::Ok),
            1..=3 => Ok(Health::Degraded(Complaint::Alarm { level: code })),
            HEALTH_ABSENT => Ok(Health::Unusable(Complaint::Absent)),
            other => {
                let call = self.health.name.to_owned();
                Err(Why::Implausible { call, value: other.into() })
            }
        }
    }

    /// High-bandwidth memory where there is some, else DDR, of which the share in use is told reliably and the
    /// bytes are not.
    fn memory(&mut self, at: (c_int, c_int), device: &mut Device) {
        let hbm: Result<Hbm, Why> = self.answer(self.hbm, at);
        if let Ok(hbm) = hbm
            && let Ok(total) = library::mebibytes(hbm.size, self.hbm.name)
        {
            device.memory_total = Some(total);
            let used = i64::try_from(hbm.used).unwrap_or(i64::MAX);
            let most = i64::try_from(hbm.size).unwrap_or(i64::MAX);
            let used = library::plausible(used, 0..=most, self.hbm.name);
            let used = used.map(|used| used.unsigned_abs() << 20);
            device.memory_used = device.take(Quantity::MemoryUsed, used);
            return;
        }
        let memory: Result<MemoryV3, Why> = self.answer(self.memory, at);
        let call = self.memory.name;
        let total = memory.clone().and_then(|memory| library::mebibytes(memory.size, call));
        let share = memory.and_then(|memory| library::share(memory.utilisation, call));
        device.memory_total = device.take(Quantity::Memory, total);
        let share = device.take(Quantity::MemoryUsed, share);
        device.memory_used =
            device.memory_total.zip(share).map(|(total, share)| (total as f64 * share) as u64);
    }

    fn ecc(&mut self, at: (c_int, c_int), kind: c_int) -> Result<EccErrors, Why> {
        let call = self.ecc.get()?;
        let place = self.buffer.begin::<Ecc>(None);
        // SAFETY: a place that is larger than the structure of any version.
        outcome(unsafe { call(at.0, at.1, kind, place) }, self.ecc.name)?;
        // SAFETY: integers alone.
        let ecc: Ecc = unsafe { self.buffer.read() };
        if ecc.enabled == 0 {
            return Err(Why::Disabled { call: self.ecc.name.to_owned() });
        }
        let (corrected, uncorrected) = (ecc.total_single.into(), ecc.total_double.into());
        Ok(EccErrors { corrected, uncorrected })
    }

    /// The structure that a call answers with; all of them hold integers alone.
    fn answer<T: Copy>(
        &mut self,
        function: Function<OfDevice<T>>,
        at: (c_int, c_int),
    ) -> Result<T, Why> {
        let call = function.get()?;
        let place = self.buffer.begin::<T>(None);
        // SAFETY: a place that is larger than the structure of any version.
        outcome(unsafe { call(at.0, at.1, place) }, function.name)?;
        // SAFETY: the structures above hold integers and arrays of them.
        Ok(unsafe { self.buffer.read() })
    }
}

/// A number that a call tells of a device.
fn of_device<T: Default>(function: Function<OfDevice<T>>, at: (c_int, c_int)) -> Result<T, Why> {
    let call = function.get()?;
    let mut value = T::default();
    // SAFETY: a place for the number.
    outcome(unsafe { call(at.0, at.1, &raw mut value) }, function.name)?;
    Ok(value)
}

fn of_kind(
    function: Function<OfKind<c_uint>>,
    at: (c_int, c_int),
    kind: c_int,
) -> Result<c_uint, Why> {
    let call = function.get()?;
    let mut value = 0;
    // SAFETY: a place for the number.
    outcome(unsafe { call(at.0, at.1, kind, &raw mut value) }, function.name)?;
    Ok(value)
}

/// What a return code means for one quantity.
fn outcome(code: c_int, call: &str) -> Result<(), Why> {
    let call = call.to_owned();
    match code {
        0 => Ok(()),
        UNSUPPORTED => Err(Why::Unsupported { call }),
        IN_CONTAINER => Err(Why::InContainer { call }),
        NO_PERMISSION => Err(Why::NoPermission { call }),
        code => Err(Why::Failed { call, code: code.into() }),
    }
}

/// The same for what everything begins with.
fn began(code: c_int, call: &str) -> Result<(), Trouble> {
    let call = call.to_owned();
    match code {
        0 => Ok(()),
        IN_CONTAINER => Err(Trouble::InContainer { call }),
        NO_PERMISSION => Err(Trouble::NoPermission { call }),
        code => Err(Trouble::Failed { call, code: code.into() }),
    }
}
