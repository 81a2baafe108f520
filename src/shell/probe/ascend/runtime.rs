//! Huawei Ascend through ACL, the runtime that programs it (`libascendcl.so`): the name by which compilers know
//! the chip, the runtime's version, and memory where the driver's library does not tell it. Opening a device
//! takes some of its memory: this is asked once, in a process that ends.

use std::ffi::{c_char, c_int};
use std::path::{Path, PathBuf};

use crate::hardware::{Device, Quantity, Trouble, Vendor, Why};
use crate::limits;
use crate::shell::probe::library::{self, Function, Loaded, Places};

pub const PLACES: Places = Places {
    names: &["libascendcl.so"],
    folders: &[
        "/usr/local/Ascend/cann/lib64",
        "/usr/local/Ascend/ascend-toolkit/latest/lib64",
        "/usr/local/Ascend/latest/lib64",
        "/usr/local/Ascend/nnrt/latest/lib64",
    ],
};

/// What `aclInit` says the second time: it is as good as success.
const REPEATED: c_int = 100_002;
/// Kinds of memory: chips have the one or the other.
const HBM: c_int = 1;
const DDR: c_int = 0;

type Init = unsafe extern "C" fn(*const c_char) -> c_int;
type Finalize = unsafe extern "C" fn() -> c_int;
type Version = unsafe extern "C" fn(*mut i32, *mut i32, *mut i32) -> c_int;
type SocName = unsafe extern "C" fn() -> *const c_char;
type Count = unsafe extern "C" fn(*mut u32) -> c_int;
type OfDevice = unsafe extern "C" fn(i32) -> c_int;
type MemoryInfo = unsafe extern "C" fn(c_int, *mut usize, *mut usize) -> c_int;

/// The library, initialised.
pub struct Acl {
    loaded: Loaded,
    finalize: Function<Finalize>,
    version: Function<Version>,
    soc: Function<SocName>,
    count: Function<Count>,
    set: Function<OfDevice>,
    reset: Function<OfDevice>,
    memory: Function<MemoryInfo>,
    /// Whether devices are opened and asked for their memory.
    opens: bool,
}

impl Acl {
    /// Loads and initialises the library.
    ///
    /// # Errors
    /// Where there is none that can be used.
    pub fn open(named: Option<&Path>, opens: bool) -> Result<Self, Trouble> {
        let loaded = library::open(Self::folder(named).as_deref(), &PLACES)?;
        // SAFETY: the signatures are those of the vendor's headers.
        let acl = unsafe {
            Self {
                finalize: loaded.function("aclFinalize"),
                version: loaded.function("aclrtGetVersion"),
                soc: loaded.function("aclrtGetSocName"),
                count: loaded.function("aclrtGetDeviceCount"),
                set: loaded.function("aclrtSetDevice"),
                reset: loaded.function("aclrtResetDevice"),
                memory: loaded.function("aclrtGetMemInfo"),
                opens,
                loaded,
            }
        };
        // SAFETY: as above.
        let init: Function<Init> = unsafe { acl.loaded.function("aclInit") };
        let begin = init.get().map_err(|_| acl.loaded.lacks(init.name))?;
        // SAFETY: no configuration is given.
        match unsafe { begin(std::ptr::null()) } {
            0 | REPEATED => Ok(acl),
            code => Err(Trouble::Failed { call: init.name.to_owned(), code: code.into() }),
        }
    }

    /// What is named may be the driver's library: the runtime's then lies beside it.
    pub fn folder(named: Option<&Path>) -> Option<PathBuf> {
        let folder = |path: &Path| match path.is_dir() {
            true => Some(path.to_owned()),
            false => path.parent().map(Path::to_owned),
        };
        named.and_then(folder)
    }

    pub fn path(&self) -> &Path {
        self.loaded.path()
    }

    /// The runtime's version.
    pub fn version(&self) -> Option<String> {
        let call = self.version.get().ok()?;
        let (mut major, mut minor, mut patch) = (0, 0, 0);
        // SAFETY: places for the three numbers.
        let code = unsafe { call(&raw mut major, &raw mut minor, &raw mut patch) };
        (code == 0).then(|| format!("{major}.{minor}.{patch}"))
    }

    /// Every device, with what this library alone tells.
    ///
    /// # Errors
    /// Where it cannot count them.
    pub fn sweep(&mut self) -> Result<Vec<Device>, Trouble> {
        let call = self.count.get().map_err(|_| self.loaded.lacks(self.count.name))?;
        let mut count = 0;
        // SAFETY: a place for the number.
        let code = unsafe { call(&raw mut count) };
        let call = self.count.name.to_owned();
        if code != 0 {
            return Err(Trouble::Failed { call, code: code.into() });
        }
        if count as usize > limits::VENDOR_CARDS {
            return Err(Trouble::Implausible { call, value: count.into() });
        }
        Ok((0..count).map(|index| self.device(index)).collect())
    }

    fn device(&self, index: u32) -> Device {
        let mut device = Device::new(Vendor::Ascend, index);
        device.runtime = self.version();
        let soc = self.soc.get().map(|call| {
            // SAFETY: takes nothing; returns null or a text that stays.
            unsafe { library::text_at(call()) }
        });
        device.soc = device.take(Quantity::Soc, soc).flatten();
        if self.opens {
            let memory = self.memory(index);
            device.memory_total = device.take(Quantity::Memory, memory);
        }
        device
    }

    /// All memory of a device, bytes.
    fn memory(&self, index: u32) -> Result<u64, Why> {
        let number = i32::try_from(index).map_err(|_| Why::NoCall)?;
        let failed = |call: &str, code: c_int| {
            let call = call.to_owned();
            if code == 0 { Ok(()) } else { Err(Why::Failed { call, code: code.into() }) }
        };
        let (set, info) = (self.set.get()?, self.memory.get()?);
        // SAFETY: plain numbers; a device that is not there is an error.
        failed(self.set.name, unsafe { set(number) })?;
        let (mut free, mut total) = (0usize, 0usize);
        let mut told = Ok(());
        for kind in [HBM, DDR] {
            // SAFETY: places for the two numbers.
            let code = unsafe { info(kind, &raw mut free, &raw mut total) };
            told = failed(self.memory.name, code);
            if told.is_ok() && total > 0 {
                break;
            }
        }
        if let Ok(reset) = self.reset.get() {
            // SAFETY: as above. The process ends soon: what stays open is freed then.
            let _ = unsafe { reset(number) };
        }
        told?;
        let value = i64::try_from(total).unwrap_or(i64::MAX);
        library::plausible(value, 1..=1 << 50, self.memory.name).map(i64::unsigned_abs)
    }
}

impl Drop for Acl {
    fn drop(&mut self) {
        if let Ok(finalize) = self.finalize.get() {
            // SAFETY: it was initialised; what it says changes nothing any more.
            let _ = unsafe { finalize() };
        }
    }
}
