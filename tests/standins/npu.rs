//! The simulated accelerator in this process: its plugin registered with ONNX Runtime, sessions on it, and what it
//! counts.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use blochd::config::Plugin;
use blochd::shell::engine::{Search, locate};
use blochd::shell::places;
use libloading::Library;
use ort::AsPointer;
use ort::environment::Environment;
use ort::session::Session;
use ort::session::builder::{AutoDevicePolicy, SessionBuilder};
use ort::value::Tensor;
use sha2::{Digest, Sha256};

use super::{Bench, SCENARIO};

/// The provider's name.
pub const NAME: &str = "SimNPU";

/// The plugin of a bench, as the configuration pins it.
pub fn plugin(bench: &Bench) -> Plugin {
    let library = bench.library("npu");
    let hash = Sha256::digest(std::fs::read(&library).unwrap());
    Plugin {
        name: "npu".to_owned(),
        library,
        sha256: hash.iter().map(|byte| format!("{byte:02x}")).collect(),
        provider: Some(NAME.to_owned()),
        device: 0,
        options: BTreeMap::new(),
    }
}

/// What the library of a bench counts in this process, such as `simnpu_modelled_ns`.
pub fn count(bench: &Bench, what: &str) -> u64 {
    // SAFETY: built from this repository; its initialisers do nothing, and all functions of such names have
    // this signature.
    unsafe {
        let library = Library::new(bench.library("npu")).unwrap();
        library.get::<extern "C" fn() -> u64>(what.as_bytes()).unwrap()()
    }
}

/// ONNX Runtime's only environment in this process.
pub fn environment() -> &'static Environment {
    static ENVIRONMENT: OnceLock<Environment> = OnceLock::new();
    ENVIRONMENT.get_or_init(|| {
        let found = locate(&Search::new(None, &places::state_dir()));
        let path = found.unwrap_or_else(|error| panic!("{error}")).path;
        ort::init_from(path).unwrap().with_name("npu").with_telemetry(false).build().unwrap()
    })
}

/// What a call of the runtime's C interface says; `Err` with its words where it fails.
fn checked(status: ort::sys::OrtStatusPtr) -> Result<(), String> {
    let Some(status) = std::ptr::NonNull::new(status.0) else { return Ok(()) };
    let api = ort::api();
    // SAFETY: a status that is not null carries a text, and is released once.
    unsafe {
        let words = std::ffi::CStr::from_ptr((api.GetErrorMessage)(status.as_ptr()));
        let words = words.to_string_lossy().into_owned();
        (api.ReleaseStatus)(status.as_ptr());
        Err(words)
    }
}

/// One accelerator at a time: the scenario is the process's.
pub struct Npu {
    pub bench: Bench,
    name: String,
    _only: MutexGuard<'static, ()>,
}

impl Npu {
    /// One that plays `scenario`.
    ///
    /// # Errors
    /// Where the runtime does not take the plugin.
    pub fn registered(name: &str, scenario: &str) -> Result<Self, String> {
        static ONLY: Mutex<()> = Mutex::new(());
        let only = ONLY.lock().unwrap_or_else(PoisonError::into_inner);
        let environment = environment();
        let bench = Bench::with(&[("npu", "")]);
        bench.play(scenario);
        // SAFETY: those who read variables hold the same lock, or Rust's own.
        unsafe { std::env::set_var(SCENARIO, bench.scenario()) };
        let name = name.to_owned();
        let registered = environment.register_ep_library(name.clone(), bench.library("npu"));
        registered.map_err(|error| error.to_string())?;
        Ok(Self { bench, name, _only: only })
    }

    /// A virtual one.
    pub fn new(scenario: &str) -> Self {
        Self::registered("npu.virtual", scenario).unwrap()
    }

    /// Changes the scenario, from now on.
    pub fn play(&self, scenario: &str) {
        self.bench.play(scenario);
        self.count("simnpu_look");
    }

    /// A number that the library counts, such as `simnpu_modelled_ns`.
    pub fn count(&self, what: &str) -> u64 {
        count(&self.bench, what)
    }

    /// Devices of this provider: whether they are an NPU, and the numbers of their maker and kind.
    pub fn devices(&self) -> Vec<(bool, u32, u32)> {
        let ours = environment().devices().filter(|device| device.ep().is_ok_and(|ep| ep == NAME));
        let told = ours.map(|device| {
            let hardware = device.hardware_device();
            let is_npu = hardware.ty() == ort::memory::DeviceType::NPU;
            // SAFETY: the device is the runtime's, and there for as long as the plugin is.
            let vendor = unsafe { (ort::api().HardwareDevice_VendorId)(hardware.ptr()) };
            (is_npu, vendor, hardware.id())
        });
        told.collect()
    }

    /// A session of a model on it.
    pub fn open(&self, model: &[u8]) -> Result<Session, String> {
        let open = || -> ort::Result<Session> {
            let devices =
                environment().devices().filter(|device| device.ep().is_ok_and(|ep| ep == NAME));
            builder()?.with_devices(devices, None)?.commit_from_memory(model)
        };
        open().map_err(|error| error.to_string())
    }

    /// The same of a file.
    pub fn session(&self, model: &Path) -> Session {
        self.open(&std::fs::read(model).unwrap()).unwrap()
    }

    /// Nanoseconds that it says one run takes.
    pub fn modelled(&self, session: &mut Session, shape: &[usize]) -> u64 {
        let before = self.count("simnpu_modelled_ns");
        run(session, shape, 1).unwrap();
        self.count("simnpu_modelled_ns") - before
    }

    /// Takes the plugin out of the runtime; no session may be there any more.
    pub fn unregister(&self) -> Result<(), String> {
        let name = std::ffi::CString::new(self.name.as_str()).unwrap();
        let environment = environment().ptr().cast_mut();
        // SAFETY: the environment lives, and the name ends in zero.
        checked(unsafe {
            (ort::api().UnregisterExecutionProviderLibrary)(environment, name.as_ptr())
        })
    }
}

impl Drop for Npu {
    fn drop(&mut self) {
        // A test may have done so itself.
        let _ = self.unregister();
    }
}

/// A builder that takes no device by itself, as that of the binding would any NPU that it sees.
fn builder() -> ort::Result<SessionBuilder> {
    let builder = SessionBuilder::new(environment())?.with_intra_threads(1)?;
    Ok(builder.with_auto_device(AutoDevicePolicy::PreferCPU)?)
}

/// A session on the runtime's own kernels.
pub fn on_cpu(model: &[u8]) -> Session {
    builder().unwrap().commit_from_memory(model).unwrap()
}

/// The outputs for noise of this shape, another one for each `seed`, or what the runtime says.
pub fn run(session: &mut Session, shape: &[usize], seed: u64) -> Result<Vec<Vec<f32>>, String> {
    let mut state = seed;
    let mut noise = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    let values: Vec<f32> = (0..shape.iter().product()).map(|_| noise()).collect();
    let input = Tensor::from_array((shape.to_vec(), values)).unwrap();
    let outputs = session.run(ort::inputs![input]).map_err(|error| error.to_string())?;
    let flat = |(_, value): (_, ort::value::ValueRef<'_>)| -> Vec<f32> {
        value.try_extract_tensor::<f32>().unwrap().1.to_vec()
    };
    Ok(outputs.iter().map(flat).collect())
}
