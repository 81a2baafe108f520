//! Finds the ONNX Runtime library. Order: the configuration, `ORT_DYLIB_PATH`, the state directory, the
//! system. A library that the user named is taken or refused, never replaced by another one. Of those in the
//! state directory the newest that has the wanted execution provider is taken: builds with one lag behind
//! those without.

use std::collections::BTreeSet;
use std::ffi::CStr;
use std::path::{Path, PathBuf};
use std::{env, fmt, fs, ptr};

use libloading::{Library, Symbol};
use serde::{Deserialize, Serialize};

use super::cann;
use super::error::{Looked, RuntimeError, Unusable};
use crate::config::Provider;
use crate::limits;

/// Environment variable that names the library; the one that other users of `ort` know.
pub const LIBRARY_VARIABLE: &str = "ORT_DYLIB_PATH";

/// Start of the library's file name.
const LIBRARY_NAME: &str = "libonnxruntime.so";

/// Which rule of the search led to a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    Config,
    Environment,
    State,
    System,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Config => "the configuration",
            Self::Environment => LIBRARY_VARIABLE,
            Self::State => "state directory",
            Self::System => "system",
        })
    }
}

/// Where to look. Every field can be set, so that a search can be repeated without the environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Search {
    /// A library, or the directory that holds it, from the configuration or a flag.
    pub config: Option<PathBuf>,
    /// The same from `ORT_DYLIB_PATH`.
    pub environment: Option<PathBuf>,
    /// The state directory; libraries lie in `runtime/<name>-<version>/`.
    pub state_dir: PathBuf,
    /// Directories of the system, in the order in which the dynamic linker looks at them.
    pub system: Vec<PathBuf>,
    /// The execution provider that the library must be built with, by ONNX Runtime's name for it. Others are
    /// passed over however new they are; one that the user named is refused.
    pub wants: Option<String>,
}

impl Search {
    /// The search of this process: `config` from the configuration, the rest from the environment.
    pub fn new(config: Option<PathBuf>, state_dir: &Path) -> Self {
        let environment = env::var_os(LIBRARY_VARIABLE).filter(|path| !path.is_empty());
        Self {
            config,
            environment: environment.map(PathBuf::from),
            state_dir: state_dir.to_owned(),
            system: system_dirs(),
            wants: None,
        }
    }

    /// The same search for a library that can run models on `provider`.
    #[must_use]
    pub fn wanting(self, provider: &Provider) -> Self {
        match provider {
            Provider::Cann(_) => Self { wants: Some(cann::NAME.to_owned()), ..self },
            // Every build has the CPU's kernels and takes plugins.
            Provider::Cpu | Provider::Plugin(_) => self,
        }
    }

    /// Whether a usable library has what is wanted.
    pub(super) fn check(&self, located: Located) -> Result<Located, Unusable> {
        match &self.wants {
            Some(wanted) if !located.providers.contains(wanted) => {
                Err(Unusable::Lacks { version: located.version, provider: wanted.clone() })
            }
            _ => Ok(located),
        }
    }

    /// The library that the user named and the rule that it came by.
    pub(super) fn named(&self) -> Option<(Origin, &Path)> {
        let config = self.config.as_deref().map(|path| (Origin::Config, path));
        config.or(self.environment.as_deref().map(|path| (Origin::Environment, path)))
    }

    /// Every candidate of every rule, in the order in which they are tried.
    pub fn candidates(&self) -> Vec<(Origin, PathBuf)> {
        let named = [
            (Origin::Config, self.config.as_deref()),
            (Origin::Environment, self.environment.as_deref()),
        ];
        let named = named
            .into_iter()
            .filter_map(|(origin, path)| Some((origin, path?)))
            .flat_map(|(origin, path)| expand(path).into_iter().map(move |file| (origin, file)));
        let installed = installed(&self.state_dir.join("runtime"));
        let system = self.system.iter().flat_map(|dir| libraries_in(dir));
        let mut seen = BTreeSet::new();
        named
            .chain(installed.into_iter().map(|file| (Origin::State, file)))
            .chain(system.map(|file| (Origin::System, file)))
            // Of several names of one file the first is kept.
            .filter(|(_, file)| seen.insert(file.canonicalize().unwrap_or_else(|_| file.clone())))
            .collect()
    }
}

/// A library that was found usable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Located {
    /// The file.
    pub path: PathBuf,
    /// By which rule it was found.
    pub origin: Origin,
    /// ONNX Runtime's version, such as `1.32.0`.
    pub version: String,
    /// The execution providers that it was built with, in its own order of preference.
    pub providers: Vec<String>,
}

/// Finds the first usable library that has what is wanted.
///
/// # Errors
/// Where the library that the user named is not usable, or no place holds a usable one.
pub fn locate(search: &Search) -> Result<Located, RuntimeError> {
    if let Some((origin, path)) = search.named() {
        let refused = |why| RuntimeError::Named { origin, path: path.to_owned(), why };
        let files = expand(path);
        let Some(file) = files.first() else { return Err(refused(Unusable::Empty)) };
        return inspect(file, origin).and_then(|found| search.check(found)).map_err(refused);
    }
    let mut looked: Vec<Looked> = [Origin::Config, Origin::Environment]
        .map(|origin| Looked { origin, path: None, why: None })
        .into();
    let mut candidates = search.candidates().into_iter().peekable();
    let mut seen = |origin: Origin, dirs: &[PathBuf]| {
        let mut any = false;
        while let Some((_, path)) = candidates.next_if(|(found, _)| *found == origin) {
            any = true;
            match inspect(&path, origin).and_then(|found| search.check(found)) {
                Ok(located) => return Some(located),
                Err(why) => looked.push(Looked { origin, path: Some(path), why: Some(why) }),
            }
        }
        for dir in dirs.iter().filter(|_| !any) {
            let why = if dir.is_dir() { Unusable::Empty } else { Unusable::Missing };
            looked.push(Looked { origin, path: Some(dir.clone()), why: Some(why) });
        }
        None
    };
    let state = [search.state_dir.join("runtime")];
    seen(Origin::State, &state)
        .or_else(|| seen(Origin::System, &search.system))
        .ok_or(RuntimeError::NotFound { looked, wants: search.wants.clone() })
}

/// Loads the library at `path` and asks it what it is.
///
/// # Errors
/// Where it is not an ONNX Runtime of a usable version.
pub fn inspect(path: &Path, origin: Origin) -> Result<Located, Unusable> {
    if !path.exists() {
        return Err(Unusable::Missing);
    }
    // The linker searches its own places for a name without a slash.
    let file = path.canonicalize().map_err(|error| Unusable::NotALibrary(error.to_string()))?;
    // SAFETY: the library's initialisers run. The file was named by the user, by the state directory or by
    // the system's library path: whoever can write there can run code as this user anyhow.
    let library = unsafe { Library::new(&file) }.map_err(|error| {
        let source = std::error::Error::source(&error).map(ToString::to_string);
        Unusable::NotALibrary(source.unwrap_or_else(|| error.to_string()))
    })?;
    // SAFETY: `OrtGetApiBase` has had this signature since ONNX Runtime's first release.
    let get_base: Symbol<'_, unsafe extern "C" fn() -> *const ort::sys::OrtApiBase> =
        unsafe { library.get(b"OrtGetApiBase\0") }.map_err(|_| Unusable::NotOnnxRuntime)?;
    // SAFETY: the function takes nothing and returns a pointer to a static structure or null.
    let base = unsafe { get_base().as_ref() }.ok_or(Unusable::NotOnnxRuntime)?;
    // SAFETY: a valid base carries this function, which returns a static text or null.
    let version = unsafe { (base.GetVersionString)() };
    if version.is_null() {
        return Err(Unusable::NotOnnxRuntime);
    }
    // SAFETY: not null, and static by the interface's contract.
    let version = unsafe { CStr::from_ptr(version) };
    let version = version.to_str().map_err(|_| Unusable::NotOnnxRuntime)?.to_owned();
    let minor = version.split('.').nth(1).and_then(|part| part.parse::<u32>().ok());
    if minor.ok_or(Unusable::NotOnnxRuntime)? < ort::MINOR_VERSION {
        return Err(Unusable::TooOld { version });
    }
    // SAFETY: as above; null where the library does not carry this version of the interface.
    let api = unsafe { (base.GetApi)(ort::sys::ORT_API_VERSION).as_ref() };
    let Some(api) = api else { return Err(Unusable::TooOld { version }) };
    Ok(Located { path: file, origin, version, providers: providers(api) })
}

/// The execution providers that the library was built with.
fn providers(api: &ort::sys::OrtApi) -> Vec<String> {
    let (mut names, mut count) = (ptr::null_mut(), 0);
    // SAFETY: both arguments are valid places to write to.
    let status = unsafe { (api.GetAvailableProviders)(&mut names, &mut count) };
    if !status.0.is_null() {
        // SAFETY: the status is ours to release, once.
        unsafe { (api.ReleaseStatus)(status.0) };
        return Vec::new();
    }
    let found = (0..usize::try_from(count).unwrap_or_default())
        // SAFETY: `names` holds `count` texts until it is released below.
        .map(|at| unsafe { CStr::from_ptr(*names.add(at)) }.to_string_lossy().into_owned())
        .collect();
    // SAFETY: the array came from `GetAvailableProviders` and is released once. The status, which tells
    // that an array of ours could not be released, changes nothing.
    let _ = unsafe { (api.ReleaseAvailableProviders)(names, count) };
    found
}

/// A file as it is; a directory's libraries, the one without trailing version first.
fn expand(path: &Path) -> Vec<PathBuf> {
    if path.is_dir() { libraries_in(path) } else { vec![path.to_owned()] }
}

/// The libraries of the installed runtimes, newest version first.
fn installed(runtime_dir: &Path) -> Vec<PathBuf> {
    let mut dirs = entries(runtime_dir);
    // Temporary directories of an interrupted installation start with a dot.
    dirs.retain(|dir| !name_of(dir).starts_with('.') && dir.is_dir());
    dirs.sort_by_key(|dir| std::cmp::Reverse((version_of(dir), name_of(dir).to_owned())));
    dirs.iter().flat_map(|dir| libraries_in(dir)).collect()
}

/// `[1, 32, 0]` of `onnxruntime-1.32.0`.
fn version_of(dir: &Path) -> Vec<u64> {
    let version = name_of(dir).rsplit('-').next().unwrap_or_default();
    version.split('.').map_while(|part| part.parse().ok()).collect()
}

/// `libonnxruntime.so` and `libonnxruntime.so.*` in `dir`, shortest name first.
fn libraries_in(dir: &Path) -> Vec<PathBuf> {
    let mut files = entries(dir);
    files.retain(|file| {
        let rest = name_of(file).strip_prefix(LIBRARY_NAME);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.')) && file.is_file()
    });
    files.sort_by_key(|file| (name_of(file).len(), name_of(file).to_owned()));
    files
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    let found = fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut found: Vec<PathBuf> = found.take(limits::DIRECTORY_ENTRIES).collect();
    found.sort();
    found
}

fn name_of(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}

/// The directories that the dynamic linker looks at: `LD_LIBRARY_PATH`, those of `ld.so.conf`, and the
/// built-in ones.
fn system_dirs() -> Vec<PathBuf> {
    let variable = env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    let mut dirs: Vec<PathBuf> =
        env::split_paths(&variable).filter(|dir| dir.is_absolute()).collect();
    let mut files = vec![PathBuf::from("/etc/ld.so.conf")];
    files.extend(entries(Path::new("/etc/ld.so.conf.d")));
    for text in files.iter().filter_map(|file| fs::read_to_string(file).ok()) {
        let lines = text.lines().map(str::trim).filter(|line| line.starts_with('/'));
        dirs.extend(lines.map(PathBuf::from));
    }
    let arch = env::consts::ARCH;
    dirs.extend(
        [
            "/usr/local/lib".to_owned(),
            "/usr/local/lib64".to_owned(),
            format!("/usr/lib/{arch}-linux-gnu"),
            "/usr/lib64".to_owned(),
            "/usr/lib".to_owned(),
        ]
        .map(PathBuf::from),
    );
    let mut seen = BTreeSet::new();
    dirs.retain(|dir| seen.insert(dir.clone()));
    dirs
}
