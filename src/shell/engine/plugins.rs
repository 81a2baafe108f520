//! Libraries that offer an execution provider through ONNX Runtime's plugin interface: native code of others,
//! which is loaded only where it is the very file that the configuration pins.
//!
//! A library is registered while somebody holds it. Sessions do, and what their outputs lie in: none of its
//! code may go before they have.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_char};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use ort::AsPointer;
use ort::environment::Environment;
use ort::session::builder::SessionBuilder;
use serde::{Deserialize, Serialize};

use super::Runtime;
use super::error::PluginError;
use super::pinned::Checked;
use crate::config::Plugin;
use crate::hardware::Told;
use crate::limits;

/// What the runtime allows libraries to make up devices by, at the end of a name.
const VIRTUAL: &str = ".virtual";

/// By which a device tells its address on the PCI bus.
const PCI: &CStr = c"pci_bus_id";

/// What stands for the folder of compiled graphs in the value of an option.
const CACHE: &str = "{cache}";

/// One device of a provider, as the library tells of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OfferedDevice {
    /// The runtime's name of the provider.
    pub provider: String,
    /// Version of the provider, where it gives one.
    pub version: Option<String>,
    /// Who made the device.
    pub vendor: String,
    /// Numbers of maker and device, as on the PCI bus.
    pub vendor_id: u32,
    pub device_id: u32,
    /// `cpu`, `gpu` or `npu`.
    pub kind: String,
    /// Address on the PCI bus, where it is told.
    #[serde(default)]
    pub pci: Option<String>,
}

impl OfferedDevice {
    /// By what it can be known again.
    pub fn told(&self) -> Told<'_> {
        Told { vendor_id: self.vendor_id, pci: self.pci.as_deref() }
    }
}

/// A library that is registered; the last holder lets it go.
#[derive(Debug)]
pub struct Library {
    environment: Environment,
    key: Key,
    number: u64,
    name: CString,
    /// What it offers, and where the runtime keeps it.
    devices: Vec<(OfferedDevice, usize)>,
}

/// Hash of a library, and the name that it is registered by: some call their provider as they are called.
type Key = (String, String);

/// A library that is registered, until it is taken out of the registry.
struct Registered {
    library: Weak<Library>,
    number: u64,
    name: CString,
}

/// All that this process has registered, and how many there have been.
struct Registry {
    all: BTreeMap<Key, Registered>,
    count: u64,
}

static REGISTRY: Mutex<Registry> = Mutex::new(Registry { all: BTreeMap::new(), count: 0 });

fn registry() -> MutexGuard<'static, Registry> {
    REGISTRY.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for Library {
    fn drop(&mut self) {
        let mut registry = registry();
        // Somebody may have been quicker, who wanted it anew.
        if registry.all.get(&self.key).is_some_and(|entry| entry.number == self.number) {
            registry.all.remove(&self.key);
            unregister(&self.environment, &self.name);
        }
    }
}

impl Library {
    /// The library of `plugin`: the one that is registered, or else it is checked and registered.
    ///
    /// # Errors
    /// Where it is not what the configuration pins, the runtime does not take it, or it offers nothing.
    pub fn of(runtime: &Runtime, plugin: &Plugin) -> Result<Arc<Self>, PluginError> {
        let mut registry = registry();
        let key = (plugin.sha256.clone(), called(plugin).to_owned());
        if let Some(entry) = registry.all.get(&key) {
            if let Some(library) = entry.library.upgrade() {
                return Ok(library);
            }
            // Its last holder has let go and waits for us to be done.
            if let Some(entry) = registry.all.remove(&key) {
                unregister(runtime.environment(), &entry.name);
            }
        }
        let checked = Checked::new(plugin)?;
        registry.count += 1;
        let library = Arc::new(register(runtime, plugin, &checked, registry.count)?);
        let entry = Registered {
            library: Arc::downgrade(&library),
            number: library.number,
            name: library.name.clone(),
        };
        registry.all.insert(key, entry);
        Ok(library)
    }

    /// What it offers, in its own order.
    pub fn devices(&self) -> impl Iterator<Item = &OfferedDevice> {
        self.devices.iter().map(|(device, _)| device)
    }

    /// The device that `plugin` asks for.
    ///
    /// # Errors
    /// Where there is none of that name or number.
    pub fn device(&self, plugin: &Plugin) -> Result<&OfferedDevice, PluginError> {
        self.chosen(plugin).map(|(device, _)| device)
    }

    fn chosen(&self, plugin: &Plugin) -> Result<&(OfferedDevice, usize), PluginError> {
        let first = self.devices.first().map(|(device, _)| device.provider.as_str());
        let wanted = plugin.provider.as_deref().or(first).unwrap_or_default();
        let wanted = wanted.strip_suffix(VIRTUAL).unwrap_or(wanted);
        let is_it = |name: &str| name.strip_suffix(VIRTUAL).unwrap_or(name) == wanted;
        let mut of_it =
            self.devices.iter().filter(|(device, _)| is_it(&device.provider)).peekable();
        if of_it.peek().is_none() {
            let mut offered: Vec<_> = self.devices().map(|d| d.provider.clone()).collect();
            offered.dedup();
            let (path, wanted) = (plugin.library.clone(), wanted.to_owned());
            return Err(PluginError::NoProvider { path, wanted, offered });
        }
        let found = of_it.clone().count();
        of_it.nth(plugin.device).ok_or_else(|| PluginError::NoSuchDevice {
            path: plugin.library.clone(),
            provider: wanted.to_owned(),
            device: plugin.device,
            found,
        })
    }

    /// Asks for the device that `plugin` names. `cache` is where compiled graphs may be kept.
    ///
    /// # Errors
    /// Where there is no such device, or the provider does not take its options.
    pub fn append(
        &self,
        builder: SessionBuilder,
        plugin: &Plugin,
        cache: Option<&Path>,
    ) -> Result<SessionBuilder, PluginError> {
        let (device, place) = self.chosen(plugin)?;
        let provider = &device.provider;
        let options: Vec<(String, String)> = plugin
            .options
            .iter()
            .map(|(key, value)| (format!("{provider}.{key}"), placed(value, cache)))
            .collect();
        let devices = self.environment.devices().filter(|found| found.ptr().addr() == *place);
        let refused = |error: String| PluginError::Options {
            path: plugin.library.clone(),
            provider: provider.clone(),
            reason: error,
        };
        builder.with_devices(devices, Some(&options)).map_err(|error| refused(error.to_string()))
    }
}

/// The value of an option with the folder of compiled graphs in its place; without one, the folder in which
/// this process works.
fn placed(value: &str, cache: Option<&Path>) -> String {
    value.replace(CACHE, &cache.unwrap_or(Path::new(".")).to_string_lossy())
}

/// The name by which a library is registered.
fn called(plugin: &Plugin) -> &str {
    plugin.provider.as_deref().unwrap_or(&plugin.name)
}

/// Registers a library that was checked, and asks what it offers. What has no device of the box to offer is
/// asked again, with leave to make one up: of accelerators, the runtime itself finds hardly any.
fn register(
    runtime: &Runtime,
    plugin: &Plugin,
    checked: &Checked,
    number: u64,
) -> Result<Library, PluginError> {
    let environment = runtime.environment();
    for end in ["", VIRTUAL] {
        let name = CString::new(format!("{}{end}", called(plugin))).unwrap_or_default();
        let before = places(environment);
        register_as(environment, &name, &checked.path).map_err(|reason| {
            let path = plugin.library.clone();
            PluginError::Refused { path, version: runtime.library().version.clone(), reason }
        })?;
        match offers(environment, plugin, checked, &before) {
            Ok(devices) if !devices.is_empty() => {
                let key = (plugin.sha256.clone(), called(plugin).to_owned());
                let environment = environment.clone();
                return Ok(Library { environment, key, number, name, devices });
            }
            Ok(_) => unregister(environment, &name),
            Err(error) => {
                unregister(environment, &name);
                return Err(error);
            }
        }
    }
    let version = runtime.library().version.clone();
    Err(PluginError::NoDevice { path: plugin.library.clone(), version })
}

/// What a library offers that was just registered, where it is the one that was checked.
fn offers(
    environment: &Environment,
    plugin: &Plugin,
    checked: &Checked,
    before: &[usize],
) -> Result<Vec<(OfferedDevice, usize)>, PluginError> {
    let path = || plugin.library.clone();
    if !checked.is_the_same() {
        return Err(PluginError::Changed { path: path() });
    }
    if !checked.is_loaded() {
        return Err(PluginError::Stale { path: path() });
    }
    let devices = new_devices(environment, before);
    let long = |name: &str| name.len() > limits::PROVIDER_NAME_BYTES;
    match devices.iter().find(|(device, _)| long(&device.provider)) {
        Some((device, _)) => {
            Err(PluginError::LongName { path: path(), name: device.provider.clone() })
        }
        None => Ok(devices),
    }
}

fn register_as(environment: &Environment, name: &CStr, path: &Path) -> Result<(), String> {
    let registered = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        environment.register_ep_library(name.to_string_lossy(), path)
    }));
    match registered {
        Ok(done) => done.map_err(|error| error.to_string()),
        Err(_) => Err("the binding of ONNX Runtime cannot handle it".to_owned()),
    }
}

fn unregister(environment: &Environment, name: &CStr) {
    let environment = environment.ptr().cast_mut();
    // SAFETY: the environment is alive, the name a text; a name that is not registered is an error.
    let status =
        unsafe { (ort::api().UnregisterExecutionProviderLibrary)(environment, name.as_ptr()) };
    // SAFETY: the status came from the call above and is given up here.
    if let Err(error) = unsafe { ort::Error::result_from_status(status) } {
        tracing::warn!("an execution provider's library stays loaded: {error}");
    }
}

/// Where the runtime keeps the devices that are known.
fn places(environment: &Environment) -> Vec<usize> {
    environment.devices().map(|device| device.ptr().addr()).collect()
}

/// All that are known.
pub(super) fn devices(environment: &Environment) -> Vec<OfferedDevice> {
    new_devices(environment, &[]).into_iter().map(|(device, _)| device).collect()
}

fn new_devices(environment: &Environment, before: &[usize]) -> Vec<(OfferedDevice, usize)> {
    let new = environment.devices().filter(|device| !before.contains(&device.ptr().addr()));
    new.take(limits::PLUGIN_DEVICES).filter_map(|device| offered(&device)).collect()
}

fn offered(device: &ort::device::Device<'_>) -> Option<(OfferedDevice, usize)> {
    let place = device.ptr();
    let hardware = device.hardware_device();
    let api = ort::api();
    // SAFETY: both are alive as long as the library is registered, which our caller sees to.
    let (vendor_id, metadata, about) = unsafe {
        (
            (api.HardwareDevice_VendorId)(hardware.ptr()),
            (api.EpDevice_EpMetadata)(place),
            (api.HardwareDevice_Metadata)(hardware.ptr()),
        )
    };
    let told = OfferedDevice {
        provider: device.ep().ok()?.to_owned(),
        version: value_of(metadata, c"version"),
        vendor: hardware.vendor().unwrap_or_default().to_owned(),
        vendor_id,
        device_id: hardware.id(),
        kind: format!("{:?}", hardware.ty()).to_lowercase(),
        // The runtime's own word for it, which a plugin may use for the device that it brings.
        pci: value_of(about, PCI).or_else(|| value_of(metadata, PCI)),
    };
    Some((told, place.addr()))
}

/// One of the texts that a device carries by names.
fn value_of(pairs: *const ort::sys::OrtKeyValuePairs, key: &CStr) -> Option<String> {
    if pairs.is_null() {
        return None;
    }
    // SAFETY: the pairs are alive with their device, the key is a text.
    let value: *const c_char = unsafe { (ort::api().GetKeyValue)(pairs, key.as_ptr()) };
    // SAFETY: a text of the pairs, or null.
    let text = (!value.is_null()).then(|| unsafe { CStr::from_ptr(value) });
    text.map(|text| text.to_string_lossy().chars().take(limits::PROVIDER_NAME_BYTES).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_of_compiled_graphs_takes_its_place_in_an_option() {
        assert_eq!(placed("{cache}/om", Some(Path::new("/var/c"))), "/var/c/om");
        assert_eq!(placed("4", None), "4");
    }
}
