//! Vendors' shared libraries: where they may be, which of them are taken, and how their functions are found.
//!
//! What the configuration names comes first and is taken or refused, never replaced by another; then the places
//! where the vendor installs; then the directories that the dynamic linker is told of. Each is looked into here
//! and the file opened by its whole path, so that neither the working directory nor an empty entry of
//! `LD_LIBRARY_PATH` is ever searched.
//!
//! A library's code runs with the agent's rights. One that everybody may write to, or whose folder is such, is
//! refused wherever it comes from. One that was found, not named, must belong to the superuser or to the
//! agent's own user: whoever installs below `/usr/local` as another user is not thereby allowed to run code as
//! this one. The operator who names a file in the configuration vouches for its owner, and vendors' installers
//! do give their files to users of their own.

use std::ffi::{CStr, c_char};
use std::path::{Path, PathBuf};

use libloading::Library;
use nix::unistd::Uid;

use crate::hardware::{Trouble, Why};
use crate::limits;
use crate::shell::engine::Search;
use crate::shell::exposed::{By, Exposed, Trust, exposed};

/// Where a vendor's library may be.
pub struct Places {
    /// Names of its file, the first preferred.
    pub names: &'static [&'static str],
    /// Folders where the vendor installs it.
    pub folders: &'static [&'static str],
}

/// A library that is loaded for as long as the process lives: vendors' libraries keep threads and handlers that
/// outlive their unloading.
pub struct Loaded {
    library: &'static Library,
    path: PathBuf,
}

/// A function of a library, or its name alone where the library does not have it.
#[derive(Clone, Copy)]
pub struct Function<F> {
    pub name: &'static str,
    function: Option<F>,
}

impl<F: Copy> Function<F> {
    /// The function.
    ///
    /// # Errors
    /// Where the library does not have it.
    pub fn get(&self) -> Result<F, Why> {
        self.function.ok_or_else(|| Why::NoSymbol { symbol: self.name.to_owned() })
    }

    pub fn is_there(&self) -> bool {
        self.function.is_some()
    }
}

/// Finds and loads a library. `named`: the file, or its folder, from the configuration.
///
/// # Errors
/// Where it is not found, may not be taken, or is refused by the dynamic linker.
pub fn open(named: Option<&Path>, places: &Places) -> Result<Loaded, Trouble> {
    let path = find(named, places)?;
    check(&path, named.is_some(), Uid::effective().as_raw())?;
    // SAFETY: the library's initialisers run. It is the operator's, or the system's own: see above.
    let library = unsafe { Library::new(&path) }.map_err(|error| {
        let source = std::error::Error::source(&error).map(ToString::to_string);
        let said = source.unwrap_or_else(|| error.to_string());
        Trouble::NotLoadable { path: path.display().to_string(), said }
    })?;
    Ok(Loaded { library: Box::leak(Box::new(library)), path })
}

impl Loaded {
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Looks a function up; libraries of other versions lack some.
    ///
    /// # Safety
    /// `F` is a pointer to a function of the signature that the vendor's header gives the name.
    pub unsafe fn function<F: Copy>(&self, name: &'static str) -> Function<F> {
        // SAFETY: the caller's promise; the library is never unloaded, so that the pointer stays good.
        let function = unsafe { self.library.get::<F>(name) }.ok().map(|symbol| *symbol);
        Function { name, function }
    }

    /// The trouble of a library that lacks what everything begins with.
    pub fn lacks(&self, symbol: &str) -> Trouble {
        Trouble::NoSymbol { path: self.path.display().to_string(), symbol: symbol.to_owned() }
    }
}

/// The file that is to be loaded, without links.
///
/// # Errors
/// Where there is none.
pub fn find(named: Option<&Path>, places: &Places) -> Result<PathBuf, Trouble> {
    let whole = |path: &Path| path.canonicalize().ok().filter(|path| path.is_file());
    let inside = |dir: &Path| places.names.iter().find_map(|name| whole(&dir.join(name)));
    if let Some(path) = named {
        let there = if path.is_dir() { inside(path) } else { whole(path) };
        return there.ok_or_else(|| Trouble::NotThere { path: path.display().to_string() });
    }
    let vendor = places.folders.iter().map(PathBuf::from);
    let linker = Search::new(None, Path::new("")).system;
    let all: Vec<PathBuf> = vendor.chain(linker).filter(|dir| dir.is_absolute()).collect();
    all.iter().find_map(|dir| inside(dir)).ok_or_else(|| Trouble::NoLibrary {
        name: places.names.first().copied().unwrap_or_default().to_owned(),
        looked: all.iter().map(|dir| dir.display().to_string()).collect(),
    })
}

/// Whether nobody else can have put code into `path` or into its place.
fn check(path: &Path, named: bool, user: u32) -> Result<(), Trouble> {
    let there = || path.display().to_string();
    let trust = if named { Trust::Named } else { Trust::Found };
    let found = exposed(path, trust, user)
        .map_err(|error| Trouble::NotLoadable { path: there(), said: error.to_string() })?;
    let Some(Exposed { part, by }) = found else { return Ok(()) };
    Err(match by {
        By::Owner(uid) => Trouble::Owner { path: there(), uid },
        By::Everybody | By::Group(_) => {
            let what = if part == path { "it".to_owned() } else { part.display().to_string() };
            Trouble::WritableByOthers { path: there(), what }
        }
    })
}

/// A place for an answer: larger than any structure that is read out of it, since structures grow with the
/// library's versions and the library writes as much as its own has; and all zero.
pub struct Buffer(Box<[u64]>);

impl Buffer {
    pub fn new() -> Self {
        Self(vec![0; limits::VENDOR_ANSWER_BYTES / size_of::<u64>()].into_boxed_slice())
    }

    /// Zeroes what the last answer may have left and begins it with `version`, where a structure has one. The
    /// place for a `T`.
    pub fn begin<T>(&mut self, version: Option<i32>) -> *mut T {
        const { assert!(size_of::<T>() <= limits::VENDOR_ANSWER_BYTES) };
        const { assert!(align_of::<T>() <= align_of::<u64>()) };
        self.0.fill(0);
        let place = self.0.as_mut_ptr();
        if let Some(version) = version {
            // SAFETY: the buffer is larger than an i32 and aligned for it.
            unsafe { place.cast::<i32>().write(version) };
        }
        place.cast()
    }

    /// What the answer says.
    ///
    /// # Safety
    /// `T` holds integers and arrays of them alone: any bytes make one.
    pub unsafe fn read<T: Copy>(&self) -> T {
        const { assert!(size_of::<T>() <= limits::VENDOR_ANSWER_BYTES) };
        // SAFETY: large enough and aligned (see `begin`), and every pattern of bits is a `T`.
        unsafe { self.0.as_ptr().cast::<T>().read() }
    }
}

/// The text of an answer up to its NUL; `None` where it is empty.
pub fn text(bytes: &[u8]) -> Option<String> {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    let text = String::from_utf8_lossy(&bytes[..end]);
    let text: String = text.chars().filter(|c| !c.is_control()).collect();
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

/// A text that a library returns by its address.
///
/// # Safety
/// `address` is null or that of a text that ends with NUL and stays where it is.
pub unsafe fn text_at(address: *const c_char) -> Option<String> {
    if address.is_null() {
        return None;
    }
    // SAFETY: the caller's promise.
    let bytes = unsafe { CStr::from_ptr(address) }.to_bytes();
    text(bytes.get(..limits::VENDOR_TEXT_BYTES).unwrap_or(bytes))
}

/// An answer that lies within what can be.
///
/// # Errors
/// Where it does not.
pub fn plausible(
    value: impl Into<i64>,
    range: std::ops::RangeInclusive<i64>,
    call: &str,
) -> Result<i64, Why> {
    let value = value.into();
    if range.contains(&value) {
        Ok(value)
    } else {
        Err(Why::Implausible { call: call.to_owned(), value })
    }
}

/// °C that a chip can have and be asked.
pub fn celsius(value: impl Into<i64>, call: &str) -> Result<f64, Why> {
    plausible(value, -60..=200, call).map(|value| value as f64)
}

/// A share out of per cent.
pub fn share(value: impl Into<i64>, call: &str) -> Result<f64, Why> {
    plausible(value, 0..=100, call).map(|value| value as f64 / 100.0)
}

/// A clock, MHz.
pub fn mhz(value: impl Into<i64>, call: &str) -> Result<u32, Why> {
    let value = plausible(value, 1..=20_000, call)?;
    u32::try_from(value).map_err(|_| Why::Implausible { call: call.to_owned(), value })
}

/// Mebibytes as bytes; no device has none, or an exbibyte.
pub fn mebibytes(value: u64, call: &str) -> Result<u64, Why> {
    let value = plausible(i64::try_from(value).unwrap_or(i64::MAX), 1..=1 << 30, call)?;
    Ok(value.unsigned_abs() << 20)
}

/// A PCI address as sysfs writes it.
pub fn pci(domain: u32, bus: u32, device: u32, function: u32) -> Option<String> {
    let fits = bus <= 0xFF && device <= 0x1F && function <= 7;
    fits.then(|| format!("{domain:04x}:{bus:02x}:{device:02x}.{function:x}"))
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use super::*;

    const PLACES: Places = Places { names: &["libvendor.so", "libvendor.so.1"], folders: &[] };

    fn mode(path: &Path, mode: u32) {
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn what_is_named_is_the_file_or_lies_in_the_folder_and_nothing_stands_in_for_it() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("libvendor.so.1");
        fs::write(&file, "x").unwrap();
        assert_eq!(find(Some(dir.path()), &PLACES), Ok(file.clone()));
        assert_eq!(find(Some(&file), &PLACES), Ok(file));
        let missing = dir.path().join("libvendor.so");
        let path = missing.display().to_string();
        assert_eq!(find(Some(&missing), &PLACES), Err(Trouble::NotThere { path }));
        assert!(matches!(find(None, &PLACES), Err(Trouble::NoLibrary { .. })));
        // A file that is no library is told so by the linker.
        let refused = open(Some(dir.path()), &PLACES).map(|_| ());
        assert!(matches!(refused, Err(Trouble::NotLoadable { .. })), "{refused:?}");
    }

    #[test]
    fn what_others_may_write_to_is_refused_and_what_others_own_unless_it_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("folder");
        fs::create_dir(&folder).unwrap();
        let file = folder.join("libvendor.so");
        fs::write(&file, "x").unwrap();
        mode(&file, 0o644);
        let owner = file.metadata().unwrap().uid();
        assert_eq!(check(&file, false, owner), Ok(()));
        mode(&file, 0o646);
        let refused = |named| check(&file, named, owner).unwrap_err();
        let path = file.display().to_string();
        let by_others = |what: String| Trouble::WritableByOthers { path: path.clone(), what };
        assert_eq!(refused(true), by_others("it".to_owned()));
        mode(&file, 0o644);
        mode(&folder, 0o777);
        assert_eq!(refused(true), by_others(folder.display().to_string()));
        mode(&folder, 0o1777);
        assert_eq!(check(&file, true, owner), Ok(()));
        // The superuser's files are everybody's; those of a third user nobody's but his.
        if owner == 0 {
            nix::unistd::chown(&file, Some(Uid::from_raw(4321)), None).unwrap();
            let third = Trouble::Owner { path: path.clone(), uid: 4321 };
            assert_eq!(check(&file, false, 0), Err(third));
            assert_eq!(check(&file, true, 0), Ok(()));
            assert_eq!(check(&file, false, 4321), Ok(()));
        }
    }

    #[test]
    fn answers_that_cannot_be_are_no_answers() {
        assert_eq!(celsius(85, "t"), Ok(85.0));
        for value in [0x7FFF, -274] {
            let why = Why::Implausible { call: "t".to_owned(), value };
            assert_eq!(celsius(value, "t"), Err(why));
        }
        assert_eq!(share(100, "u"), Ok(1.0));
        assert!(share(101, "u").is_err() && mhz(0, "f").is_err() && mebibytes(0, "m").is_err());
        assert_eq!(mebibytes(8192, "m"), Ok(8 << 30));
        assert!(mebibytes(u64::MAX, "m").is_err());
        assert_eq!(pci(0, 0x3b, 0, 0).as_deref(), Some("0000:3b:00.0"));
        assert_eq!(pci(0x10000, 1, 2, 3).as_deref(), Some("10000:01:02.3"));
        assert_eq!(pci(0, 256, 0, 0), None);
        assert_eq!(text(b"310P3\0junk"), Some("310P3".to_owned()));
        assert_eq!(text(&[0; 4]), None);
        assert_eq!(text(b"a\x1b[2J"), Some("a[2J".to_owned()));
    }
}
