//! Cambricon MLU through CNDEV (`libcndev.so`), as far as the public header (Cambricon's Kubernetes device
//! plugin, `cndev.h`) goes. All calls return 0 where they succeed. Structures of the older form begin with the
//! version of the interface, which is 6 or, with older libraries, 5; those of the newer form have no such
//! field. Where both forms of a call exist, the newer is asked first.

mod layouts;

use std::ffi::{c_char, c_int};
use std::path::Path;

use self::layouts::{
    CardInfo, Ecc, Frequency, HealthState, LibraryVersion, Memory, MemoryV2, Pcie, PcieV2, Power,
    PowerV2, Temperature, Utilisation, Versions,
};
use super::identities::Identities;
use super::library::{self, Buffer, Function, Loaded, Places};
use crate::hardware::{Complaint, Device, EccErrors, Health, Quantity, Trouble, Vendor, Why};
use crate::limits;

pub const PLACES: Places = Places {
    names: &["libcndev.so"],
    folders: &["/usr/local/neuware/lib64", "/usr/lib64", "/usr/local/lib"],
};

/// Return codes.
const OTHER_VERSION: c_int = 3;
const NOT_SUPPORTED: c_int = 10;
const NO_DEVICES: c_int = 12;
const NO_PERMISSION: c_int = 13;

/// Versions of the interface, the newest first.
const VERSIONS: [i32; 2] = [6, 5];

/// A device and a driver that are well.
const DEVICE_GOOD: i32 = 1;
const DRIVER_RUNNING: i32 = 4;

/// Fills a structure of its own for a device.
type OfDevice<T> = unsafe extern "C" fn(*mut T, i32) -> c_int;
type OfAll<T> = unsafe extern "C" fn(*mut T) -> c_int;
type Handle = unsafe extern "C" fn(c_int, *mut i32) -> c_int;
type Name = unsafe extern "C" fn(i32) -> *const c_char;

/// The library, initialised.
pub struct Cndev {
    loaded: Loaded,
    count: Function<OfAll<CardInfo>>,
    handle: Function<Handle>,
    name: Function<Name>,
    memory: Function<OfDevice<MemoryV2>>,
    older_memory: Function<OfDevice<Memory>>,
    temperature: Function<OfDevice<Temperature>>,
    power: Function<OfDevice<PowerV2>>,
    older_power: Function<OfDevice<Power>>,
    utilisation: Function<OfDevice<Utilisation>>,
    health: Function<OfDevice<HealthState>>,
    frequency: Function<OfDevice<Frequency>>,
    ecc: Function<OfDevice<Ecc>>,
    versions: Function<OfDevice<Versions>>,
    library_version: Function<OfAll<LibraryVersion>>,
    pcie: Function<OfDevice<PcieV2>>,
    older_pcie: Function<OfDevice<Pcie>>,
    asking: Asking,
    identities: Identities<i32>,
}

impl Cndev {
    /// Loads and initialises the library.
    ///
    /// # Errors
    /// Where there is none that can be used.
    pub fn open(named: Option<&Path>) -> Result<Self, Trouble> {
        let loaded = library::open(named, &PLACES)?;
        // SAFETY: the signatures are those of the header.
        let cndev = unsafe {
            Self {
                count: loaded.function("cndevGetDeviceCount"),
                handle: loaded.function("cndevGetDeviceHandleByIndex"),
                name: loaded.function("cndevGetCardNameStringByDevId"),
                memory: loaded.function("cndevGetMemoryUsageV2"),
                older_memory: loaded.function("cndevGetMemoryUsage"),
                temperature: loaded.function("cndevGetTemperatureInfo"),
                power: loaded.function("cndevGetDevicePowerInfo"),
                older_power: loaded.function("cndevGetPowerInfo"),
                utilisation: loaded.function("cndevGetDeviceUtilizationInfo"),
                health: loaded.function("cndevGetCardHealthState"),
                frequency: loaded.function("cndevGetFrequencyInfo"),
                ecc: loaded.function("cndevGetECCInfo"),
                versions: loaded.function("cndevGetVersionInfo"),
                library_version: loaded.function("cndevGetLibVersion"),
                pcie: loaded.function("cndevGetPCIeInfoV2"),
                older_pcie: loaded.function("cndevGetPCIeInfo"),
                asking: Asking { buffer: Buffer::new(), version: VERSIONS[0] },
                identities: Identities::default(),
                loaded,
            }
        };
        // SAFETY: as above.
        let init: Function<unsafe extern "C" fn(c_int) -> c_int> =
            unsafe { cndev.loaded.function("cndevInit") };
        let begin = init.get().map_err(|_| cndev.loaded.lacks(init.name))?;
        // SAFETY: the argument is reserved and 0.
        match unsafe { begin(0) } {
            0 => Ok(cndev),
            code => Err(began(code, init.name)),
        }
    }

    pub fn path(&self) -> &Path {
        self.loaded.path()
    }

    /// The library's own version.
    pub fn version(&mut self) -> Option<String> {
        let version = self.asking.all(self.library_version).ok()?.ok()?;
        Some(dotted(version.parts))
    }

    /// Every card, as it is now.
    ///
    /// # Errors
    /// Where the library cannot count them.
    pub fn sweep(&mut self) -> Result<Vec<Device>, Trouble> {
        let name = self.count.name;
        let told = self.asking.all(self.count).map_err(|_| self.loaded.lacks(name))?;
        let count = match told {
            Ok(info) => info.number,
            Err(NO_DEVICES) => 0,
            Err(code) => return Err(began(code, name)),
        };
        if count as usize > limits::VENDOR_CARDS {
            return Err(Trouble::Implausible { call: name.to_owned(), value: count.into() });
        }
        let handles: Vec<(u32, i32)> =
            (0..count).filter_map(|index| Some((index, self.handle_of(index)?))).collect();
        let numbers: Vec<i32> = handles.iter().map(|(_, handle)| *handle).collect();
        self.identities.begin(&numbers);
        let mut devices = Vec::new();
        for (index, handle) in handles {
            let mut device = self.identity(index, handle);
            self.readings(handle, &mut device);
            devices.push(device);
        }
        Ok(devices)
    }

    /// By what a card is asked for; older libraries take its number. `None` where it has just gone.
    fn handle_of(&self, index: u32) -> Option<i32> {
        let number = i32::try_from(index).ok()?;
        let Ok(call) = self.handle.get() else { return Some(number) };
        let mut handle = 0;
        // SAFETY: a place for the handle.
        let code = unsafe { call(number, &raw mut handle) };
        (code == 0).then_some(handle)
    }

    /// What does not change.
    fn identity(&mut self, index: u32, handle: i32) -> Device {
        if let Some(known) = self.identities.get(&handle) {
            return known.clone();
        }
        let mut device = Device::new(Vendor::Cambricon, index);
        // SAFETY: the library returns null or a text that stays.
        let model = self.name.get().map(|call| unsafe { library::text_at(call(handle)) });
        device.model = device.take(Quantity::Model, model).flatten();
        let pcie = self.pcie(handle);
        device.pci = device.take(Quantity::Pci, pcie).flatten();
        let versions = self.asking.device(self.versions, handle, true);
        if let Some(versions) = device.take(Quantity::Driver, versions) {
            device.driver = Some(dotted(versions.driver));
            device.firmware = Some(dotted(versions.mcu));
        } else {
            device.lacks(Quantity::Firmware, Why::NoCall);
        }
        device.lacks(Quantity::Soc, Why::NoCall);
        device.lacks(Quantity::Runtime, Why::NoCall);
        self.identities.keep(handle, &device);
        device
    }

    fn pcie(&mut self, handle: i32) -> Result<Option<String>, Why> {
        if self.pcie.is_there() {
            let at = self.asking.device(self.pcie, handle, false)?;
            return Ok(library::pci(at.domain, at.bus, at.slot, at.function));
        }
        let at = self.asking.device(self.older_pcie, handle, true)?;
        Ok(library::pci(at.domain, at.bus, at.slot, at.function))
    }

    fn readings(&mut self, handle: i32, device: &mut Device) {
        let asking = &mut self.asking;
        let celsius = asking.device(self.temperature, handle, true).and_then(|heat| {
            // Of the chip, where the library's version tells it: the board is cooler.
            let chip = library::celsius(heat.chip, self.temperature.name);
            let chip = chip.ok().filter(|celsius| *celsius > 0.0);
            chip.map_or_else(|| library::celsius(heat.board, self.temperature.name), Ok)
        });
        device.celsius = device.take(Quantity::Temperature, celsius);
        let watts = if self.power.is_there() {
            let told = asking.device(self.power, handle, false);
            told.map(|power| (power.usage, self.power.name))
        } else {
            let told = asking.device(self.older_power, handle, true);
            told.map(|power| (power.usage, self.older_power.name))
        };
        let watts = watts.and_then(|(usage, call)| library::plausible(usage, 0..=10_000, call));
        device.watts = device.take(Quantity::Power, watts).map(|watts| watts as f64);
        let utilisation = asking
            .device(self.utilisation, handle, true)
            .and_then(|busy| library::share(busy.average, self.utilisation.name));
        device.utilisation = device.take(Quantity::Utilisation, utilisation);
        let mhz = asking
            .device(self.frequency, handle, true)
            .and_then(|clock| library::mhz(clock.board, self.frequency.name));
        device.frequency_mhz = device.take(Quantity::Frequency, mhz);
        let ecc = asking
            .device(self.ecc, handle, true)
            .map(|ecc| EccErrors { corrected: ecc.corrected, uncorrected: ecc.uncorrected });
        device.ecc = device.take(Quantity::Ecc, ecc);
        let health = asking.device(self.health, handle, true).map(judge);
        device.health = device.take(Quantity::Health, health).unwrap_or(Health::Unknown);
        self.memory(handle, device);
    }

    fn memory(&mut self, handle: i32, device: &mut Device) {
        let (told, call) = if self.memory.is_there() {
            let told = self.asking.device(self.memory, handle, false);
            (told.map(|memory| (memory.total, memory.used)), self.memory.name)
        } else {
            let told = self.asking.device(self.older_memory, handle, true);
            (told.map(|memory| (memory.total, memory.used)), self.older_memory.name)
        };
        let Some((total, used)) = device.take(Quantity::Memory, told) else { return };
        let bytes = library::mebibytes(total.max(0).unsigned_abs(), call);
        device.memory_total = device.take(Quantity::Memory, bytes);
        let used = library::plausible(used, 0..=total.max(0), call);
        device.memory_used =
            device.take(Quantity::MemoryUsed, used).map(|used| used.unsigned_abs() << 20);
    }
}

/// Asks with the version that the library takes.
struct Asking {
    buffer: Buffer,
    version: i32,
}

impl Asking {
    /// Calls with each version that it may be, from the one that was taken last on.
    fn versioned<T: Copy>(&mut self, call: impl Fn(*mut T) -> c_int) -> Result<T, c_int> {
        let from = VERSIONS.iter().position(|version| *version == self.version).unwrap_or(0);
        let mut last = OTHER_VERSION;
        for version in &VERSIONS[from..] {
            last = call(self.buffer.begin(Some(*version)));
            if last != OTHER_VERSION {
                break;
            }
        }
        if last != 0 {
            return Err(last);
        }
        // SAFETY: the structures of this interface that are read hold integers and arrays of them.
        let answer: T = unsafe { self.buffer.read() };
        Ok(answer)
    }

    /// What a call says that is not about one device; the outer error is that there is no such call.
    fn all<T: Copy>(&mut self, function: Function<OfAll<T>>) -> Result<Result<T, c_int>, Why> {
        let call = function.get()?;
        // SAFETY: a place that is larger than the structure of any version, which begins with its version.
        Ok(self.versioned(|place| unsafe { call(place) }))
    }

    /// The structure that a call fills for a device. `versioned`: whether it begins with a version.
    fn device<T: Copy>(
        &mut self,
        function: Function<OfDevice<T>>,
        handle: i32,
        versioned: bool,
    ) -> Result<T, Why> {
        let call = function.get()?;
        let told = if versioned {
            // SAFETY: as above.
            self.versioned(|place| unsafe { call(place, handle) })
        } else {
            let place = self.buffer.begin(None);
            // SAFETY: as above, without a version.
            match unsafe { call(place, handle) } {
                // SAFETY: integers and arrays of them.
                0 => Ok(unsafe { self.buffer.read() }),
                code => Err(code),
            }
        };
        told.map_err(|code| {
            let call = function.name.to_owned();
            match code {
                NOT_SUPPORTED => Why::Unsupported { call },
                NO_PERMISSION => Why::NoPermission { call },
                code => Why::Failed { call, code: code.into() },
            }
        })
    }
}

fn began(code: c_int, call: &str) -> Trouble {
    let call = call.to_owned();
    match code {
        NO_PERMISSION => Trouble::NoPermission { call },
        code => Trouble::Failed { call, code: code.into() },
    }
}

fn judge(state: HealthState) -> Health {
    if state.driver != DRIVER_RUNNING {
        Health::Unusable(Complaint::Driver { state: state.driver.into() })
    } else if state.device != DEVICE_GOOD {
        Health::Unusable(Complaint::State { state: state.device.into() })
    } else {
        Health::Ok
    }
}

fn dotted(parts: [u32; 3]) -> String {
    parts.map(|part| part.to_string()).join(".")
}
