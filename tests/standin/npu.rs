//! Stands in for a vendor's plugin of ONNX Runtime: an execution provider `SimNPU` behind the real interface, for
//! 1.24 and later. It claims operators, computes them on the processor, and takes as long as a core would that
//! works in blocks of 16 channels. Registered under a name that ends in `.virtual` it brings an NPU of its own. Its
//! scenario (see `scenario.rs`), read again while it runs:
//!
//! - `npu.attach = 1`: whatever its name, it attaches to the processor, as plugins do that bring no device.
//! - `npu.ops = Conv, Relu`: the operators that it claims.
//! - `npu.time = 100`: per cent of the modelled time that a run takes; 0: no longer than it really does.
//! - `npu.compile_ms = 0`: what the first run of every further shape waits for its program.
//! - `temperature`, `npu.hot = 85`, `npu.throttle = 200`: at that temperature, which the telemetry tells as
//!   well, a run takes that many per cent.
//! - `gone = 0`, or `npu.vanished = 1`: the card is lost. Runs and new sessions fail.
//! - `npu.pci = 0000:3b:00.0`: the address that the device tells, which telemetry knows it by.
//! - `npu.hang = Compute`: runs that do not return until the scenario says otherwise.
//! - `npu.error.CALL = CODE` of CreateEpFactories, GetSupportedDevices, CreateEp, Compile and Compute.
//! - `npu.log = FILE`: a line for every program, build and run, after the number of the process.

#[path = "npu/abi.rs"]
mod abi;
#[path = "npu/compute.rs"]
mod compute;
#[path = "npu/cost.rs"]
mod cost;
#[path = "npu/gemm.rs"]
mod gemm;
#[path = "npu/graph.rs"]
mod graph;
#[path = "npu/ops.rs"]
mod ops;
#[path = "npu/play.rs"]
mod play;
#[path = "npu/program.rs"]
mod program;
#[path = "npu/provider.rs"]
mod provider;
#[path = "scenario.rs"]
mod scenario;

use std::ffi::{CString, c_char, c_int, c_void};
use std::ptr::{null, null_mut};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use abi::{Api, ApiBase, Ep, EpApi, Factory, Opaque, Status};
use graph::{checked, text};

const NAME: &std::ffi::CStr = c"SimNPU";
const VENDOR: &std::ffi::CStr = c"Simulated Ascend";
const VENDOR_ID: u32 = 0x19e5;
const DEVICE_ID: u32 = 0xd500;

#[repr(C)]
struct Maker {
    table: Factory,
    api: Api,
    ep_api: EpApi,
    is_virtual: bool,
    /// The device that it brought; released with it.
    device: Mutex<*mut c_void>,
}

/// A status that tells of a failure, or none.
fn told(api: Api, done: Result<(), String>, code: c_int) -> Status {
    let Err(words) = done else { return null_mut() };
    play::note(&format!("error {words}"));
    let words = CString::new(words.replace('\0', " ")).unwrap_or_default();
    // SAFETY: the runtime copies the text.
    unsafe { api.CreateStatus(code, words.as_ptr()) }
}

/// # Safety
/// As the runtime calls it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn CreateEpFactories(
    registered: *const c_char,
    base: *const ApiBase,
    _logger: Opaque,
    factories: *mut *mut Factory,
    room: usize,
    count: *mut usize,
) -> Status {
    // SAFETY: the runtime's own table, its name for this library, and places to write to.
    unsafe {
        count.write(0);
        let api = ((*base).GetApi)(abi::VERSION);
        if api.is_null() || room == 0 {
            return null_mut();
        }
        let api = Api(api.cast());
        if let Err(words) = play::begin("CreateEpFactories") {
            return told(api, Err(words), abi::FAIL);
        }
        let ep_api = EpApi(api.GetEpApi().cast());
        let is_virtual = text(registered).ends_with(".virtual");
        let device = Mutex::new(null_mut());
        let maker = Box::new(Maker { table: table(), api, ep_api, is_virtual, device });
        factories.write(Box::into_raw(maker).cast());
        count.write(1);
    }
    null_mut()
}

/// # Safety
/// `factory` is one of ours, and used no more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ReleaseEpFactory(factory: *mut Factory) -> Status {
    // SAFETY: it was made by `CreateEpFactories`; its device was made by the runtime.
    unsafe {
        let maker = Box::from_raw(factory.cast::<Maker>());
        if let Ok(device) = maker.device.lock()
            && !device.is_null()
        {
            maker.ep_api.ReleaseHardwareDevice(*device);
        }
    }
    null_mut()
}

fn table() -> Factory {
    Factory {
        ort_version_supported: abi::VERSION,
        GetName: name,
        GetVendor: vendor,
        GetSupportedDevices: devices,
        CreateEp: create,
        ReleaseEp: release,
        GetVendorId: vendor_id,
        GetVersion: version,
        ValidateCompiledModelCompatibilityInfo: null(),
        CreateAllocator: null(),
        ReleaseAllocator: null(),
        CreateDataTransfer: no_transfer,
        IsStreamAware: no_streams,
        later: [null(); 8],
    }
}

unsafe extern "C" fn name(_: *const Factory) -> *const c_char {
    NAME.as_ptr()
}

unsafe extern "C" fn vendor(_: *const Factory) -> *const c_char {
    VENDOR.as_ptr()
}

unsafe extern "C" fn vendor_id(_: *const Factory) -> u32 {
    VENDOR_ID
}

unsafe extern "C" fn version(_: *const Factory) -> *const c_char {
    c"1.0.0".as_ptr()
}

unsafe extern "C" fn no_transfer(_: *mut Factory, to: *mut *mut c_void) -> Status {
    // SAFETY: a place to write to. Its memory is the processor's: nothing needs to be copied.
    unsafe { to.write(null_mut()) };
    null_mut()
}

unsafe extern "C" fn no_streams(_: *const Factory) -> bool {
    false
}

unsafe extern "C" fn devices(
    factory: *mut Factory,
    there: *const Opaque,
    many: usize,
    to: *mut *mut c_void,
    room: usize,
    count: *mut usize,
) -> Status {
    // SAFETY: `factory` is one of ours, and the runtime gives `many` devices and `room` for ours.
    unsafe {
        let maker = &*factory.cast::<Maker>();
        count.write(0);
        let offer = || -> Result<(), String> {
            play::begin("GetSupportedDevices")?;
            if room == 0 || !play::is_there() {
                return Ok(());
            }
            let device = match (play::attaches(), maker.is_virtual) {
                (false, true) => maker.own_device()?,
                (false, false) => return Ok(()),
                (true, _) => {
                    let mut all = (0..many).map(|at| *there.add(at));
                    let processor =
                        all.find(|one| maker.api.HardwareDevice_Type(*one) == abi::CPU_DEVICE);
                    let Some(processor) = processor else { return Ok(()) };
                    processor
                }
            };
            let made = maker.ep_api.CreateEpDevice(factory, device, null(), null(), to);
            checked(maker.api, made)?;
            count.write(1);
            Ok(())
        };
        let done = offer();
        told(maker.api, done, abi::FAIL)
    }
}

impl Maker {
    fn own_device(&self) -> Result<Opaque, String> {
        let mut device = self.device.lock().map_err(|error| error.to_string())?;
        if device.is_null() {
            let mut about = null_mut();
            // SAFETY: the runtime copies texts and pairs; what it made for us is released here.
            unsafe {
                self.api.CreateKeyValuePairs(&mut about);
                self.api.AddKeyValuePair(about, c"is_virtual".as_ptr(), c"1".as_ptr());
                if let Some(pci) = scenario::text("npu", "pci") {
                    let pci = CString::new(pci).unwrap_or_default();
                    self.api.AddKeyValuePair(about, c"pci_bus_id".as_ptr(), pci.as_ptr());
                }
                let made = self.ep_api.CreateHardwareDevice(
                    abi::NPU_DEVICE,
                    VENDOR_ID,
                    DEVICE_ID,
                    VENDOR.as_ptr(),
                    about,
                    &mut *device,
                );
                self.api.ReleaseKeyValuePairs(about);
                checked(self.api, made)?;
            }
        }
        Ok(device.cast_const())
    }
}

unsafe extern "C" fn create(
    factory: *mut Factory,
    _devices: *const Opaque,
    _metadata: *const Opaque,
    _many: usize,
    _options: Opaque,
    _logger: Opaque,
    to: *mut *mut Ep,
) -> Status {
    // SAFETY: `factory` is one of ours, and there is a place to write to.
    unsafe {
        let maker = &*factory.cast::<Maker>();
        let there = || if play::is_there() { Ok(()) } else { Err(play::lost("CreateEp")) };
        if let Err(words) = play::begin("CreateEp").and_then(|()| there()) {
            return told(maker.api, Err(words), abi::EP_FAIL);
        }
        to.write(provider::create(maker.api, maker.ep_api));
    }
    null_mut()
}

unsafe extern "C" fn release(_: *mut Factory, ep: *mut Ep) {
    // SAFETY: it was made by `create`, and is used no more.
    unsafe { provider::release(ep) };
}

macro_rules! counters {
    ($($name:ident: $counter:ident),*) => {
        $(
            #[unsafe(no_mangle)]
            pub extern "C" fn $name() -> u64 {
                read(&play::$counter)
            }
        )*
    };
}

fn read(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

counters! {
    simnpu_modelled_ns: MODELLED,
    simnpu_runs: RUNS,
    simnpu_builds: BUILDS,
    simnpu_operators: OPERATORS,
    simnpu_programs: PROGRAMS
}

/// Reads the scenario now.
#[unsafe(no_mangle)]
pub extern "C" fn simnpu_look() -> u64 {
    scenario::sweep();
    0
}
