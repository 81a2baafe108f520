//! Kunlunxin XPU through XPUML (`libxpuml.so`), as far as its public header (kunlunxin/go-xpuml, `xpuml.h`)
//! goes. All calls return 0 where they succeed. The header speaks of the first two generations of chips: of
//! later ones only plain numbers are read, no structure whose layout nobody has published.

use std::ffi::{c_char, c_int, c_uint, c_void};
use std::path::Path;

use super::identities::Identities;
use super::library::{self, Buffer, Function, Loaded, Places};
use crate::hardware::{Complaint, Device, Health, Quantity, Trouble, Vendor, Why};
use crate::limits;

pub const PLACES: Places = Places {
    names: &["libxpuml.so", "libxpuml.so.1"],
    folders: &["/usr/local/xpu/lib64", "/usr/local/xpu/lib", "/usr/lib64", "/usr/local/lib"],
};

/// Return codes.
const NOT_SUPPORTED: c_int = 3;
const NO_PERMISSION: c_int = 4;

/// Generations of chips that the header describes.
const KNOWN_GENERATIONS: std::ops::RangeInclusive<i32> = 1..=2;

/// Models by number (`xpumlDeviceModel_enum`).
const MODELS: &[(i32, &str)] = &[
    (0, "K200"),
    (1, "K100"),
    (2, "R200"),
    (3, "R300"),
    (4, "R200-8F"),
    (200, "R200 (SR-IOV PF)"),
    (201, "R200 (SR-IOV VF, whole)"),
    (202, "R200 (SR-IOV VF, half)"),
    (203, "R200 (SR-IOV VF, third)"),
];

/// States of a device.
const RUNNING: i32 = 201;
const IN_RESET: i32 = 205;
const ERROR: i32 = 207;
const IN_EXCEPTION: i32 = 208;

/// A power in mW that a card can draw. What lies below is taken for watts, which other versions may well tell,
/// and is not guessed at.
const MILLIWATTS: std::ops::RangeInclusive<i64> = 1_000..=2_000_000;

#[repr(C)]
#[derive(Clone, Copy)]
struct Memory {
    page: u64,
    /// Bytes, as all that follow.
    total: u64,
    free: u64,
    used: u64,
    level3: [u64; 4],
    reserved: [u64; 8],
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Utilisation {
    /// Per cent.
    xpu: c_uint,
    memory: c_uint,
    reserved: [u64; 15],
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Attributes {
    generation: i32,
    board: i32,
    model: i32,
    counts: [c_uint; 7],
    memory_mb: u64,
    level3_mb: u64,
    reserved: [u64; 9],
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Pci {
    domain: c_uint,
    bus: c_uint,
    device: c_uint,
    function: c_uint,
    ids: [c_uint; 2],
    text: [u8; 32],
    reserved: [u64; 9],
}

const _: () = {
    use std::mem::offset_of;
    assert!(size_of::<Memory>() == 128 && offset_of!(Memory, used) == 24);
    assert!(size_of::<Utilisation>() == 128 && offset_of!(Utilisation, reserved) == 8);
    assert!(size_of::<Attributes>() == 128 && offset_of!(Attributes, memory_mb) == 40);
    assert!(size_of::<Pci>() == 128 && offset_of!(Pci, text) == 24);
};

/// What the library knows a device by: an address that is only handed back.
type Handle = *mut c_void;
type OfDevice<T> = unsafe extern "C" fn(Handle, *mut T) -> c_int;
type OfKind = unsafe extern "C" fn(Handle, c_int, *mut c_uint) -> c_int;
type HandleByIndex = unsafe extern "C" fn(c_uint, *mut Handle) -> c_int;
type Text = unsafe extern "C" fn(*mut c_char, c_uint) -> c_int;
type TextOf = unsafe extern "C" fn(Handle, *mut c_char, c_uint) -> c_int;

/// The library, initialised.
pub struct Xpuml {
    loaded: Loaded,
    count: Function<unsafe extern "C" fn(*mut c_uint) -> c_int>,
    handle: Function<HandleByIndex>,
    attributes: Function<OfDevice<Attributes>>,
    name: Function<TextOf>,
    pci: Function<OfDevice<Pci>>,
    memory: Function<OfDevice<Memory>>,
    utilisation: Function<OfDevice<Utilisation>>,
    temperature: Function<OfKind>,
    clock: Function<OfKind>,
    power: Function<OfDevice<c_uint>>,
    state: Function<OfDevice<c_int>>,
    driver: Function<Text>,
    version: Function<Text>,
    buffer: Buffer,
    identities: Identities<u32>,
    /// The chip's generation, by device, as far as it is told.
    generations: Vec<Option<i32>>,
}

impl Xpuml {
    /// Loads and initialises the library.
    ///
    /// # Errors
    /// Where there is none that can be used.
    pub fn open(named: Option<&Path>) -> Result<Self, Trouble> {
        let loaded = library::open(named, &PLACES)?;
        // SAFETY: the signatures are those of the header.
        let xpuml = unsafe {
            Self {
                count: loaded.function("xpumlDeviceGetCount"),
                handle: loaded.function("xpumlDeviceGetHandleByIndex"),
                attributes: loaded.function("xpumlDeviceGetAttributes"),
                name: loaded.function("xpumlDeviceGetName"),
                pci: loaded.function("xpumlDeviceGetPciInfo"),
                memory: loaded.function("xpumlDeviceGetMemoryInfo"),
                utilisation: loaded.function("xpumlDeviceGetUtilizationRates"),
                temperature: loaded.function("xpumlDeviceGetTemperature"),
                clock: loaded.function("xpumlDeviceGetClockInfo"),
                power: loaded.function("xpumlDeviceGetPowerUsage"),
                state: loaded.function("xpumlDeviceGetState"),
                driver: loaded.function("xpumlSystemGetDriverVersion"),
                version: loaded.function("xpumlSystemGetXPUMLVersion"),
                buffer: Buffer::new(),
                identities: Identities::default(),
                generations: Vec::new(),
                loaded,
            }
        };
        // SAFETY: as above.
        let init: Function<unsafe extern "C" fn() -> c_int> =
            unsafe { xpuml.loaded.function("xpumlInit") };
        let begin = init.get().map_err(|_| xpuml.loaded.lacks(init.name))?;
        // SAFETY: takes nothing.
        match unsafe { begin() } {
            0 => Ok(xpuml),
            code => Err(began(code, init.name)),
        }
    }

    pub fn path(&self) -> &Path {
        self.loaded.path()
    }

    /// The library's own version.
    pub fn version(&self) -> Option<String> {
        told(self.version).ok().flatten()
    }

    /// Every device, as it is now.
    ///
    /// # Errors
    /// Where the library cannot count them.
    pub fn sweep(&mut self) -> Result<Vec<Device>, Trouble> {
        let call = self.count.get().map_err(|_| self.loaded.lacks(self.count.name))?;
        let mut count = 0;
        // SAFETY: a place for the number.
        let code = unsafe { call(&raw mut count) };
        if code != 0 {
            return Err(began(code, self.count.name));
        }
        if count as usize > limits::VENDOR_CARDS {
            let call = self.count.name.to_owned();
            return Err(Trouble::Implausible { call, value: count.into() });
        }
        let numbers: Vec<u32> = (0..count).collect();
        self.identities.begin(&numbers);
        self.generations.resize(numbers.len(), None);
        let mut devices = Vec::new();
        for index in numbers {
            let Some(handle) = self.handle_of(index) else { continue };
            let (mut device, generation) = self.identity(index, handle);
            self.readings(handle, generation, &mut device);
            devices.push(device);
        }
        Ok(devices)
    }

    /// `None` where the device has just gone.
    fn handle_of(&self, index: u32) -> Option<Handle> {
        let call = self.handle.get().ok()?;
        let mut handle = std::ptr::null_mut();
        // SAFETY: a place for the handle.
        let code = unsafe { call(index, &raw mut handle) };
        (code == 0).then_some(handle)
    }

    /// What does not change, and the generation of the chip.
    fn identity(&mut self, index: u32, handle: Handle) -> (Device, Option<i32>) {
        let place = index as usize;
        if let Some(known) = self.identities.get(&index) {
            return (known.clone(), self.generations.get(place).copied().flatten());
        }
        let mut device = Device::new(Vendor::Kunlunxin, index);
        let attributes = self.answer(self.attributes, handle);
        let generation = attributes.as_ref().ok().map(|told: &Attributes| told.generation);
        let model = self.name(handle).or_else(|_| attributes.map(model));
        device.model = device.take(Quantity::Model, model).flatten();
        let known = self.is_known(generation, self.pci.name);
        let pci = known.and_then(|()| self.answer(self.pci, handle));
        let address = |at: Pci| library::pci(at.domain, at.bus, at.device, at.function);
        device.pci = device.take(Quantity::Pci, pci).and_then(address);
        let driver = told(self.driver);
        device.driver = device.take(Quantity::Driver, driver).flatten();
        for what in [Quantity::Soc, Quantity::Firmware, Quantity::Runtime, Quantity::Ecc] {
            device.lacks(what, Why::NoCall);
        }
        self.identities.keep(index, &device);
        if let Some(kept) = self.generations.get_mut(place) {
            *kept = generation;
        }
        (device, generation)
    }

    /// Newer libraries have names.
    fn name(&self, handle: Handle) -> Result<Option<String>, Why> {
        let call = self.name.get()?;
        let mut name = [0u8; limits::VENDOR_TEXT_BYTES];
        let length = c_uint::try_from(name.len() - 1).unwrap_or_default();
        // SAFETY: the buffer has the length that is told, and a NUL behind it.
        let code = unsafe { call(handle, name.as_mut_ptr().cast(), length) };
        outcome(code, self.name.name)?;
        Ok(library::text(&name))
    }

    /// Whether the structures of this generation have the layout that the header gives them.
    fn is_known(&self, generation: Option<i32>, call: &str) -> Result<(), Why> {
        match generation {
            Some(known) if KNOWN_GENERATIONS.contains(&known) => Ok(()),
            other => {
                let generation = other.map_or(-1, i64::from);
                Err(Why::UnknownLayout { call: call.to_owned(), generation })
            }
        }
    }

    fn readings(&mut self, handle: Handle, generation: Option<i32>, device: &mut Device) {
        // The sensor of the chip, and its clock, are the first of their kinds.
        let celsius = of_kind(self.temperature, handle)
            .and_then(|value| library::celsius(value, self.temperature.name));
        device.celsius = device.take(Quantity::Temperature, celsius);
        let mhz =
            of_kind(self.clock, handle).and_then(|value| library::mhz(value, self.clock.name));
        device.frequency_mhz = device.take(Quantity::Frequency, mhz);
        let watts = number(self.power, handle)
            .and_then(|value: c_uint| library::plausible(value, MILLIWATTS, self.power.name));
        device.watts =
            device.take(Quantity::Power, watts).map(|milliwatts| milliwatts as f64 / 1e3);
        let health = number(self.state, handle).and_then(|state: c_int| self.judge(state));
        device.health = device.take(Quantity::Health, health).unwrap_or(Health::Unknown);
        let known = self.is_known(generation, self.utilisation.name);
        let utilisation = known
            .and_then(|()| self.answer(self.utilisation, handle))
            .and_then(|busy| library::share(busy.xpu, self.utilisation.name));
        device.utilisation = device.take(Quantity::Utilisation, utilisation);
        let known = self.is_known(generation, self.memory.name);
        let memory = known.and_then(|()| self.answer(self.memory, handle)).and_then(|memory| {
            let value = i64::try_from(memory.total).unwrap_or(i64::MAX);
            library::plausible(value, 1..=1 << 50, self.memory.name).map(|_| memory)
        });
        if let Some(memory) = device.take(Quantity::Memory, memory) {
            device.memory_total = Some(memory.total);
            device.memory_used = Some(memory.used).filter(|used| *used <= memory.total);
        }
    }

    fn judge(&self, state: c_int) -> Result<Health, Why> {
        let complaint = Complaint::State { state: state.into() };
        match state {
            RUNNING => Ok(Health::Ok),
            IN_RESET => Ok(Health::Degraded(complaint)),
            ERROR | IN_EXCEPTION => Ok(Health::Unusable(complaint)),
            other => {
                let call = self.state.name.to_owned();
                Err(Why::Implausible { call, value: other.into() })
            }
        }
    }

    /// The structure that a call answers with; all of them hold integers alone.
    fn answer<T: Copy>(
        &mut self,
        function: Function<OfDevice<T>>,
        handle: Handle,
    ) -> Result<T, Why> {
        let call = function.get()?;
        let place = self.buffer.begin::<T>(None);
        // SAFETY: a handle of this library, and a place that is larger than the structure of any version.
        outcome(unsafe { call(handle, place) }, function.name)?;
        // SAFETY: the structures above hold integers and arrays of them.
        Ok(unsafe { self.buffer.read() })
    }
}

fn model(attributes: Attributes) -> Option<String> {
    let known = MODELS.iter().find(|(number, _)| *number == attributes.model);
    known.map(|(_, name)| (*name).to_owned())
}

fn number<T: Default>(function: Function<OfDevice<T>>, handle: Handle) -> Result<T, Why> {
    let call = function.get()?;
    let mut value = T::default();
    // SAFETY: a handle of this library and a place for the number.
    outcome(unsafe { call(handle, &raw mut value) }, function.name)?;
    Ok(value)
}

fn of_kind(function: Function<OfKind>, handle: Handle) -> Result<c_uint, Why> {
    let call = function.get()?;
    let mut value = 0;
    // SAFETY: as above; the first kind is 0.
    outcome(unsafe { call(handle, 0, &raw mut value) }, function.name)?;
    Ok(value)
}

fn told(function: Function<Text>) -> Result<Option<String>, Why> {
    let call = function.get()?;
    let mut text = [0u8; limits::VENDOR_TEXT_BYTES];
    let length = c_uint::try_from(text.len() - 1).unwrap_or_default();
    // SAFETY: the buffer has the length that is told, and a NUL behind it.
    outcome(unsafe { call(text.as_mut_ptr().cast(), length) }, function.name)?;
    Ok(library::text(&text))
}

fn outcome(code: c_int, call: &str) -> Result<(), Why> {
    let call = call.to_owned();
    match code {
        0 => Ok(()),
        NOT_SUPPORTED => Err(Why::Unsupported { call }),
        NO_PERMISSION => Err(Why::NoPermission { call }),
        code => Err(Why::Failed { call, code: code.into() }),
    }
}

fn began(code: c_int, call: &str) -> Trouble {
    let call = call.to_owned();
    match code {
        NO_PERMISSION => Trouble::NoPermission { call },
        code => Trouble::Failed { call, code: code.into() },
    }
}
