//! ONNX Runtime's libraries for this machine: taken from the wheel that pip gets (the user's own pip
//! configuration and mirrors apply) or from a wheel or folder that somebody brought, checked against the
//! hashes below, and installed under the state directory. Nothing of the wheel but the shared libraries and
//! their licences is kept, and nothing of it is run.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Serialize;
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

use crate::limits;
use crate::shell::files;

/// The version that is fetched where none is named.
pub const RUNTIME_VERSION: &str = "1.32.0";

/// SHA-256 of the libraries in the wheels on PyPI. Wheels for different Pythons hold the same ones, so the
/// library is listed and not the wheel.
const LISTED: [(&str, &str, &str); 2] = [
    ("1.32.0", "x86_64", "6c1585d1bbf45b0712ea4a21b705c5fcb4ba04ff2e30f1fbf81a49faf658638f"),
    ("1.32.0", "aarch64", "49852228a93995158b2a813d4df487d47a1b76b0eaa894507ef49e91b6d7954a"),
];

/// Where the libraries stand in a wheel.
const WHEEL_LIBRARIES: &str = "onnxruntime/capi/";

/// Licence and notices that must go with the libraries.
const NOTICES: [&str; 2] = ["LICENSE", "ThirdPartyNotices.txt"];

/// Why no runtime was installed. What was installed before stands.
#[derive(Debug, thiserror::Error)]
pub enum SupplyError {
    #[error(
        "no Python with pip was found (tried {tried}); install python3-pip, or bring a wheel and \
         run `blochd runtime import WHEEL`"
    )]
    NoPip { tried: String },
    #[error("{command} failed: {said}")]
    Pip { command: String, said: String },
    #[error("{} is no wheel of ONNX Runtime: {reason}", path.display())]
    NotAWheel { path: PathBuf, reason: String },
    #[error(
        "{} in {} has SHA-256 {found}, which is not in the list of this program (expected \
         {expected}); the file is damaged, or it is not the published one. `runtime import \
         --allow-unlisted` takes it all the same",
        library, path.display()
    )]
    Unlisted { path: PathBuf, library: String, found: String, expected: String },
    #[error("this program lists no ONNX Runtime {version} for {arch}; it lists {listed}")]
    NoSuchVersion { version: String, arch: String, listed: String },
    #[error("cannot {doing} {}: {source}", path.display())]
    Io { doing: &'static str, path: PathBuf, source: io::Error },
}

/// What was installed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Installed {
    /// Folder of the libraries.
    pub dir: PathBuf,
    pub version: String,
    /// Whether it had been there, intact.
    pub already: bool,
}

/// The folder of a version below the state directory.
fn folder(state_dir: &Path, version: &str) -> PathBuf {
    state_dir.join("runtime").join(format!("onnxruntime-{version}"))
}

fn library_name(version: &str) -> String {
    format!("libonnxruntime.so.{version}")
}

fn listed(version: &str) -> Option<&'static str> {
    let here =
        |(v, arch, _): &&(&str, &str, &str)| *v == version && *arch == std::env::consts::ARCH;
    LISTED.iter().find(here).map(|(_, _, hash)| *hash)
}

/// Gets version `version` by pip and installs it. `pip` names the command to use (`python3 -m pip` where
/// `None`).
///
/// # Errors
/// Where pip is missing or fails, or what it brings is not what is listed.
pub fn fetch(state_dir: &Path, version: &str, pip: Option<&str>) -> Result<Installed, SupplyError> {
    let Some(expected) = listed(version) else {
        let all = LISTED.iter().map(|(version, arch, _)| format!("{version} ({arch})"));
        let (version, arch) = (version.to_owned(), std::env::consts::ARCH.to_owned());
        return Err(SupplyError::NoSuchVersion {
            version,
            arch,
            listed: all.collect::<Vec<_>>().join(", "),
        });
    };
    let dir = folder(state_dir, version);
    let file = dir.join(library_name(version));
    if hash_of(&file).is_ok_and(|found| found == expected) {
        return Ok(Installed { dir, version: version.to_owned(), already: true });
    }
    let temporary = tempfile::tempdir().map_err(|source| SupplyError::Io {
        doing: "make a temporary folder in",
        path: std::env::temp_dir(),
        source,
    })?;
    download(temporary.path(), version, pip)?;
    let wheel = fs::read_dir(temporary.path())
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|extension| extension == "whl"));
    let wheel = wheel.ok_or_else(|| SupplyError::NotAWheel {
        path: temporary.path().to_owned(),
        reason: "pip downloaded no wheel".to_owned(),
    })?;
    import(state_dir, &wheel, false)
}

fn download(into: &Path, version: &str, pip: Option<&str>) -> Result<(), SupplyError> {
    let candidates: Vec<Vec<String>> = match pip {
        Some(command) => vec![command.split_whitespace().map(str::to_owned).collect()],
        None => [vec!["python3", "-m", "pip"], vec!["pip3"], vec!["pip"]]
            .map(|words| words.into_iter().map(str::to_owned).collect())
            .to_vec(),
    };
    let platform = format!("manylinux_2_28_{}", std::env::consts::ARCH);
    for words in &candidates {
        let Some((program, first)) = words.split_first() else { continue };
        let mut command = Command::new(program);
        command.args(first).args(["download", "--no-deps", "--only-binary=:all:", "--quiet"]);
        // Any Python's wheel will do: the library inside is the same.
        command.args(["--platform", &platform, "--python-version", "3.11", "--dest"]);
        command.arg(into).arg(format!("onnxruntime=={version}"));
        let Ok(output) = command.output() else { continue };
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        // A Python without pip is passed over like no Python.
        if !said.contains("No module named pip") {
            return Err(SupplyError::Pip { command: words.join(" ") + " download", said });
        }
    }
    let tried = candidates.iter().map(|words| words.join(" ")).collect::<Vec<_>>().join(", ");
    Err(SupplyError::NoPip { tried })
}

/// Installs the libraries of a wheel or of a folder that holds them. `unlisted` takes libraries of which
/// this program does not know the hash.
///
/// # Errors
/// Where it holds no ONNX Runtime, or an unlisted one that is not allowed.
pub fn import(state_dir: &Path, from: &Path, unlisted: bool) -> Result<Installed, SupplyError> {
    let root = state_dir.join("runtime");
    let failed = |doing, path: &Path| {
        let path = path.to_owned();
        move |source| SupplyError::Io { doing, path, source }
    };
    fs::create_dir_all(&root).map_err(failed("make", &root))?;
    let staged =
        TempDir::with_prefix_in(".installing-", &root).map_err(failed("write to", &root))?;
    if from.is_dir() {
        copy_folder(from, staged.path())?;
    } else {
        unpack(from, staged.path())?;
    }
    let (library, version) = find_library(staged.path()).ok_or_else(|| SupplyError::NotAWheel {
        path: from.to_owned(),
        reason: "it holds no libonnxruntime.so.<version>".to_owned(),
    })?;
    let found = hash_of(&staged.path().join(&library)).map_err(failed("read", from))?;
    match listed(&version) {
        Some(expected) if expected == found => {}
        _ if unlisted => {}
        expected => {
            let expected = expected.unwrap_or("a listed version").to_owned();
            return Err(SupplyError::Unlisted { path: from.to_owned(), library, found, expected });
        }
    }
    let dir = folder(state_dir, &version);
    if dir.exists() {
        fs::remove_dir_all(&dir).map_err(failed("replace", &dir))?;
    }
    open_to_all(staged.path()).map_err(failed("prepare", staged.path()))?;
    let staged = staged.keep();
    fs::rename(&staged, &dir).map_err(failed("put the libraries into", &dir))?;
    files::sync_dir(&root).map_err(failed("write to", &root))?;
    Ok(Installed { dir, version, already: false })
}

/// The service may run under another user than who installs.
fn open_to_all(dir: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755))?;
    files::sync_dir(dir)
}

fn is_library(name: &str) -> bool {
    let ours = name == "libonnxruntime.so"
        || name.starts_with("libonnxruntime.so.")
        || name.starts_with("libonnxruntime_providers_");
    ours && name.contains(".so") && !name.contains('/')
}

fn find_library(dir: &Path) -> Option<(String, String)> {
    let names = fs::read_dir(dir).ok()?.flatten();
    let mut names: Vec<String> =
        names.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    names.into_iter().find_map(|name| {
        let version = name.strip_prefix("libonnxruntime.so.")?.to_owned();
        let whole = version.split('.').count() == 3
            && version.split('.').all(|part| part.parse::<u32>().is_ok());
        whole.then_some((name, version))
    })
}

/// Takes the libraries and notices out of a wheel. Entries are chosen by their exact place and written
/// under their last name only: no path of the archive is ever used.
fn unpack(wheel: &Path, into: &Path) -> Result<(), SupplyError> {
    let not = |reason: String| SupplyError::NotAWheel { path: wheel.to_owned(), reason };
    let unread = |source| SupplyError::Io { doing: "read", path: wheel.to_owned(), source };
    let file = File::open(wheel).map_err(unread)?;
    let mut archive = zip::ZipArchive::new(file).map_err(|error| not(error.to_string()))?;
    for index in 0..archive.len() {
        let entry = archive.by_index(index).map_err(|error| not(error.to_string()))?;
        let Some(name) = entry.name().ok().and_then(|name| wanted(&name)) else { continue };
        let path = into.join(&name);
        let mut limited = entry.take(limits::LIBRARY_BYTES + 1);
        let mut out = File::create(&path).map_err(|error| not(error.to_string()))?;
        let copied = io::copy(&mut limited, &mut out).map_err(|error| not(error.to_string()))?;
        if copied > limits::LIBRARY_BYTES {
            return Err(not(format!("{name} is larger than {} bytes", limits::LIBRARY_BYTES)));
        }
        out.sync_all().map_err(|error| not(error.to_string()))?;
    }
    Ok(())
}

/// The name under which an entry of a wheel is kept; `None` for what is not wanted.
fn wanted(entry: &str) -> Option<String> {
    if let Some(name) = entry.strip_prefix(WHEEL_LIBRARIES) {
        return is_library(name).then(|| name.to_owned());
    }
    let name = entry.strip_prefix("onnxruntime/")?;
    NOTICES.contains(&name).then(|| name.to_owned())
}

fn copy_folder(from: &Path, into: &Path) -> Result<(), SupplyError> {
    let failed = |source| SupplyError::Io { doing: "copy from", path: from.to_owned(), source };
    for entry in fs::read_dir(from).map_err(failed)?.flatten() {
        let Ok(name) = entry.file_name().into_string() else { continue };
        if is_library(&name) || NOTICES.contains(&name.as_str()) {
            fs::copy(entry.path(), into.join(&name)).map_err(failed)?;
        }
    }
    Ok(())
}

/// SHA-256 of a file, in hexadecimal digits.
fn hash_of(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            count => hasher.update(&buffer[..count]),
        }
    }
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn wheel(dir: &Path, entries: &[(&str, &[u8])]) -> PathBuf {
        let path = dir.join("onnxruntime-1.32.0-any.whl");
        let mut zip = zip::ZipWriter::new(File::create(&path).unwrap());
        for (name, contents) in entries {
            zip.start_file(*name, zip::write::SimpleFileOptions::default()).unwrap();
            zip.write_all(contents).unwrap();
        }
        zip.finish().unwrap();
        path
    }

    #[test]
    fn a_library_that_is_not_listed_is_refused_and_nothing_is_installed() {
        let dir = tempfile::tempdir().unwrap();
        let library = "onnxruntime/capi/libonnxruntime.so.1.32.0";
        let wheel = wheel(dir.path(), &[(library, b"tampered")]);
        let state = dir.path().join("state");
        let error = import(&state, &wheel, false).unwrap_err();
        assert!(matches!(error, SupplyError::Unlisted { .. }), "{error}");
        assert_eq!(fs::read_dir(state.join("runtime")).unwrap().count(), 0);
    }

    #[test]
    fn paths_in_a_wheel_lead_nowhere() {
        let dir = tempfile::tempdir().unwrap();
        let entries: [(&str, &[u8]); 5] = [
            ("onnxruntime/capi/../../evil.so", b"x"),
            ("../evil/libonnxruntime.so.1.32.0", b"x"),
            ("onnxruntime/capi/libonnxruntime.so.1.32.0", b"taken"),
            ("onnxruntime/capi/onnxruntime_pybind11_state.so", b"x"),
            ("onnxruntime/LICENSE", b"MIT"),
        ];
        let wheel = wheel(dir.path(), &entries);
        let state = dir.path().join("state");
        let installed = import(&state, &wheel, true).unwrap();
        let mut names: Vec<_> = fs::read_dir(&installed.dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names, ["LICENSE", "libonnxruntime.so.1.32.0"]);
        assert!(!dir.path().join("evil.so").exists());
    }

    #[test]
    fn what_is_no_wheel_and_what_is_no_listed_version_is_said_so() {
        let dir = tempfile::tempdir().unwrap();
        let text = dir.path().join("x.whl");
        fs::write(&text, "not a zip").unwrap();
        let error = import(dir.path(), &text, false).unwrap_err();
        assert!(matches!(error, SupplyError::NotAWheel { .. }), "{error}");
        let empty = wheel(dir.path(), &[("onnxruntime/LICENSE", b"MIT")]);
        let error = import(dir.path(), &empty, true).unwrap_err();
        assert!(error.to_string().contains("holds no libonnxruntime.so"), "{error}");
        let error = fetch(dir.path(), "0.1.0", None).unwrap_err();
        assert!(error.to_string().contains("1.32.0"), "{error}");
    }

    #[test]
    fn a_missing_pip_is_named_with_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let error = fetch(dir.path(), RUNTIME_VERSION, Some("no-such-pip-here")).unwrap_err();
        assert!(matches!(error, SupplyError::NoPip { .. }));
        assert!(error.to_string().contains("runtime import"), "{error}");
    }
}
