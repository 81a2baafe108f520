//! Libraries that offer an execution provider through ONNX Runtime's plugin interface: native code of others,
//! which is loaded only where it is the very file that the configuration pins.
//!
//! The file is hashed where it lies and loaded from there, not from a copy: such libraries are large (one that
//! is on PyPI has 75 MB), and find what they need by their own place. That nobody puts another file there in
//! between is made sure of by who may: none but root and this user, on the whole way to it. What an update
//! puts there is seen afterwards. The libraries that it needs are not pinned.
//!
//! A library is registered while somebody holds it. Sessions do, and what their outputs lie in: none of its
//! code may go before they have.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_char};
use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use nix::unistd::geteuid;
use ort::AsPointer;
use ort::environment::Environment;
use ort::session::builder::SessionBuilder;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::Runtime;
use super::error::PluginError;
use crate::config::Plugin;
use crate::limits;

/// What the runtime allows libraries to make up devices by, at the end of a name.
const VIRTUAL: &str = ".virtual";

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
}

/// A library that is registered; the last holder lets it go.
#[derive(Debug)]
pub struct Library {
    environment: Environment,
    key: String,
    name: CString,
    /// What it offers, and where the runtime keeps it.
    devices: Vec<(OfferedDevice, usize)>,
}

/// A library that was registered, by its hash. It is registered until it is taken out of here.
struct Registered {
    library: Weak<Library>,
    name: CString,
}

/// All that this process has registered, and how many there have been: each gets a name of its own.
struct Registry {
    all: BTreeMap<String, Registered>,
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
        if registry.all.get(&self.key).is_some_and(|entry| entry.name == self.name) {
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
        if let Some(entry) = registry.all.get(&plugin.sha256) {
            if let Some(library) = entry.library.upgrade() {
                return Ok(library);
            }
            // Its last holder has let go and waits for us to be done.
            if let Some(entry) = registry.all.remove(&plugin.sha256) {
                unregister(runtime.environment(), &entry.name);
            }
        }
        let checked = Checked::new(plugin)?;
        registry.count += 1;
        let library = Arc::new(register(runtime, plugin, &checked, registry.count)?);
        let entry = Registered { library: Arc::downgrade(&library), name: library.name.clone() };
        registry.all.insert(plugin.sha256.clone(), entry);
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
        let mut of_it =
            self.devices.iter().filter(|(device, _)| device.provider == wanted).peekable();
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

/// A file that was found to be the one that is pinned.
struct Checked {
    /// Without links on the way.
    path: PathBuf,
    /// As it was when it was hashed; it is open until it is registered.
    was: Metadata,
    _file: File,
}

impl Checked {
    fn new(plugin: &Plugin) -> Result<Self, PluginError> {
        let unreadable = |error: io::Error| PluginError::Unreadable {
            path: plugin.library.clone(),
            reason: error.to_string(),
        };
        let path = plugin.library.canonicalize().map_err(unreadable)?;
        if let Some(by) = exposed(&path).map_err(unreadable)? {
            return Err(PluginError::Exposed { path: plugin.library.clone(), by });
        }
        let mut file = File::open(&path).map_err(unreadable)?;
        let was = file.metadata().map_err(unreadable)?;
        if !was.is_file() || was.len() > limits::PLUGIN_BYTES {
            let why = format!("it is no file of at most {} bytes", limits::PLUGIN_BYTES);
            return Err(unreadable(io::Error::new(io::ErrorKind::InvalidData, why)));
        }
        let found = hash(&mut file).map_err(unreadable)?;
        if found != plugin.sha256 {
            let (path, expected) = (plugin.library.clone(), plugin.sha256.clone());
            return Err(PluginError::OtherFile { path, expected, found });
        }
        Ok(Self { path, was, _file: file })
    }

    /// Whether it is still the file that was hashed.
    fn is_the_same(&self) -> bool {
        let key = |m: &Metadata| {
            let changed = (m.ctime(), m.ctime_nsec(), m.mtime(), m.mtime_nsec());
            (m.dev(), m.ino(), m.len(), changed)
        };
        fs::metadata(&self.path).is_ok_and(|now| key(&now) == key(&self.was))
    }

    /// Whether it is what is loaded under its name. A library that does not let itself be unloaded stays when
    /// another file takes its place, and the linker goes by names.
    fn is_loaded(&self) -> bool {
        let path = self.path.to_string_lossy();
        let Ok(maps) = fs::read_to_string("/proc/self/maps") else { return true };
        let of = |line: &str| line.find('/').map(|at| line[at..].to_owned());
        maps.lines().any(|line| of(line).is_some_and(|mapped| mapped == path))
    }
}

fn hash(file: &mut impl Read) -> io::Result<String> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => hasher.update(&buffer[..read]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// What on the way to a file, it included, others than root and this user could exchange.
fn exposed(path: &Path) -> io::Result<Option<PathBuf>> {
    let user = geteuid().as_raw();
    for part in path.ancestors() {
        let found = fs::symlink_metadata(part)?;
        let owned = found.uid() == 0 || found.uid() == user;
        // Where the sticky bit is set, as on /tmp, only owners exchange what is theirs.
        let sticky = found.is_dir() && found.mode() & 0o1000 != 0;
        // A group of the same number as its user is the user's own, by the custom of most distributions.
        let group = found.gid() == 0 || found.gid() == user;
        let others = found.mode() & 0o002 != 0 || (found.mode() & 0o020 != 0 && !group);
        if !owned || (others && !sticky) {
            return Ok(Some(part.to_owned()));
        }
    }
    Ok(None)
}

/// Registers a library that was checked, and asks what it offers. What has no device of the box to offer is
/// asked again, with leave to make one up: of accelerators, the runtime itself finds hardly any.
fn register(
    runtime: &Runtime,
    plugin: &Plugin,
    checked: &Checked,
    count: u64,
) -> Result<Library, PluginError> {
    let environment = runtime.environment();
    for end in ["", VIRTUAL] {
        let name = CString::new(format!("blochd-{count}{end}")).unwrap_or_default();
        let before = places(environment);
        register_as(environment, &name, &checked.path).map_err(|reason| {
            let path = plugin.library.clone();
            PluginError::Refused { path, version: runtime.library().version.clone(), reason }
        })?;
        match offers(environment, plugin, checked, &before) {
            Ok(devices) if !devices.is_empty() => {
                let (environment, key) = (environment.clone(), plugin.sha256.clone());
                return Ok(Library { environment, key, name, devices });
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

fn new_devices(environment: &Environment, before: &[usize]) -> Vec<(OfferedDevice, usize)> {
    let new = environment.devices().filter(|device| !before.contains(&device.ptr().addr()));
    new.take(limits::PLUGIN_DEVICES).filter_map(|device| offered(&device)).collect()
}

fn offered(device: &ort::device::Device<'_>) -> Option<(OfferedDevice, usize)> {
    let place = device.ptr();
    let hardware = device.hardware_device();
    let api = ort::api();
    // SAFETY: both are alive as long as the library is registered, which our caller sees to.
    let (vendor_id, metadata) = unsafe {
        ((api.HardwareDevice_VendorId)(hardware.ptr()), (api.EpDevice_EpMetadata)(place))
    };
    let told = OfferedDevice {
        provider: device.ep().ok()?.to_owned(),
        version: value_of(metadata, c"version"),
        vendor: hardware.vendor().unwrap_or_default().to_owned(),
        vendor_id,
        device_id: hardware.id(),
        kind: format!("{:?}", hardware.ty()).to_lowercase(),
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
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_file_that_others_could_exchange_is_told_by_what_they_could_change() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        let (folder, file) = (root.join("folder"), root.join("folder/lib.so"));
        fs::create_dir(&folder).unwrap();
        fs::write(&file, "x").unwrap();
        let open = |path: &Path, mode| {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        };
        open(&folder, 0o755);
        open(&file, 0o644);
        assert_eq!(exposed(&file).unwrap(), None);
        open(&file, 0o646);
        assert_eq!(exposed(&file).unwrap(), Some(file.clone()));
        open(&file, 0o644);
        open(&folder, 0o777);
        assert_eq!(exposed(&file).unwrap(), Some(folder.clone()));
        // Others may put files there, and not exchange this one.
        open(&folder, 0o1777);
        assert_eq!(exposed(&file).unwrap(), None);
    }

    #[test]
    fn the_hash_is_that_of_the_bytes_and_the_cache_takes_its_place() {
        let found = hash(&mut &b"abc"[..]).unwrap();
        assert_eq!(found, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!(placed("{cache}/om", Some(Path::new("/var/c"))), "/var/c/om");
        assert_eq!(placed("4", None), "4");
    }
}
