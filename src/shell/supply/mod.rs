//! ONNX Runtime's libraries for this machine: taken from the wheel that pip gets (the user's own pip
//! configuration and mirrors apply) or from a wheel or folder that somebody brought, checked against the
//! hashes below, and installed under the state directory. Nothing of the wheel but the shared libraries and
//! their licences is kept, and nothing of it is run.

mod archive;
mod listed;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Serialize;
use tempfile::TempDir;

pub use listed::Build;

use crate::shell::files;
use crate::shell::hashes::sha256_text;

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
    #[error("this program lists no {package} {version} for {arch}; it lists {listed}")]
    NoSuchVersion { package: &'static str, version: String, arch: String, listed: String },
    #[error("cannot {doing} {}: {source}", path.display())]
    Io { doing: &'static str, path: PathBuf, source: io::Error },
}

/// What was installed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Installed {
    /// The wheel's name.
    pub package: &'static str,
    /// Folder of the libraries.
    pub dir: PathBuf,
    pub version: String,
    /// Whether it had been there, intact.
    pub already: bool,
}

/// The folder of a build below the state directory.
fn folder(state_dir: &Path, build: Build, version: &str) -> PathBuf {
    state_dir.join("runtime").join(format!("{}-{version}", build.package()))
}

/// Gets a build by pip and installs it. `version`: as listed where `None`. `pip` names the command to use
/// (`python3 -m pip` where `None`).
///
/// # Errors
/// Where pip is missing or fails, or what it brings is not what is listed.
pub fn fetch(
    state_dir: &Path,
    build: Build,
    version: Option<&str>,
    pip: Option<&str>,
) -> Result<Installed, SupplyError> {
    let version = version.unwrap_or(build.version());
    let Some(expected) = listed::listed(build, version) else {
        let all = listed::LISTED.iter();
        let all = all.map(|one| format!("{} {} ({})", one.build.package(), one.version, one.arch));
        return Err(SupplyError::NoSuchVersion {
            package: build.package(),
            version: version.to_owned(),
            arch: std::env::consts::ARCH.to_owned(),
            listed: all.collect::<Vec<_>>().join(", "),
        });
    };
    let dir = folder(state_dir, build, version);
    let intact =
        |(name, hash): &(&str, &str)| hash_of(&dir.join(name)).is_ok_and(|found| found == *hash);
    if expected.libraries.iter().all(intact) {
        let (package, version) = (build.package(), version.to_owned());
        return Ok(Installed { package, dir, version, already: true });
    }
    let temporary = tempfile::tempdir().map_err(|source| SupplyError::Io {
        doing: "make a temporary folder in",
        path: std::env::temp_dir(),
        source,
    })?;
    download(temporary.path(), build, version, pip)?;
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

fn download(
    into: &Path,
    build: Build,
    version: &str,
    pip: Option<&str>,
) -> Result<(), SupplyError> {
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
        command.arg(into).arg(format!("{}=={version}", build.package()));
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

/// Installs the libraries of a wheel or of a folder that holds them; a provider's library among them makes it
/// that provider's build. `unlisted` takes libraries of which this program does not know the hash.
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
        archive::copy_folder(from, staged.path())?;
    } else {
        archive::unpack(from, staged.path())?;
    }
    let libraries = libraries_in(staged.path());
    let version = libraries.iter().find_map(|name| version_of(name));
    let version = version.ok_or_else(|| SupplyError::NotAWheel {
        path: from.to_owned(),
        reason: "it holds no libonnxruntime.so.<version>".to_owned(),
    })?;
    let build = Build::of(&libraries);
    if !unlisted {
        check(from, staged.path(), &libraries, build, &version)?;
    }
    let dir = folder(state_dir, build, &version);
    if dir.exists() {
        fs::remove_dir_all(&dir).map_err(failed("replace", &dir))?;
    }
    open_to_all(staged.path()).map_err(failed("prepare", staged.path()))?;
    let staged = staged.keep();
    fs::rename(&staged, &dir).map_err(failed("put the libraries into", &dir))?;
    files::sync_dir(&root).map_err(failed("write to", &root))?;
    Ok(Installed { package: build.package(), dir, version, already: false })
}

/// Every library must be listed with its hash, and every one that is listed must be there: one that comes along
/// is loaded like the rest.
fn check(
    from: &Path,
    staged: &Path,
    libraries: &[String],
    build: Build,
    version: &str,
) -> Result<(), SupplyError> {
    let listed = listed::listed(build, version).map_or(&[][..], |listed| listed.libraries);
    for library in libraries {
        let path = staged.join(library);
        let found = hash_of(&path).map_err(|source| SupplyError::Io {
            doing: "read",
            path: path.clone(),
            source,
        })?;
        let expected = listed.iter().find(|(name, _)| name == library).map(|(_, hash)| *hash);
        if expected != Some(found.as_str()) {
            let expected = expected.unwrap_or("a listed version").to_owned();
            let (path, library) = (from.to_owned(), library.clone());
            return Err(SupplyError::Unlisted { path, library, found, expected });
        }
    }
    match listed.iter().find(|(name, _)| libraries.iter().all(|library| library != name)) {
        None => Ok(()),
        Some((name, _)) => Err(SupplyError::NotAWheel {
            path: from.to_owned(),
            reason: format!("{name} of {} {version} is missing", build.package()),
        }),
    }
}

/// The service may run under another user than who installs.
fn open_to_all(dir: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755))?;
    files::sync_dir(dir)
}

/// Names of the libraries in a folder, sorted.
fn libraries_in(dir: &Path) -> Vec<String> {
    let names = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<String> =
        names.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.retain(|name| archive::is_library(name));
    names.sort();
    names
}

/// `1.32.0` of `libonnxruntime.so.1.32.0`.
fn version_of(library: &str) -> Option<String> {
    let version = library.strip_prefix("libonnxruntime.so.")?;
    let whole = version.split('.').count() == 3
        && version.split('.').all(|part| part.parse::<u32>().is_ok());
    whole.then(|| version.to_owned())
}

/// SHA-256 of a file, in hexadecimal digits.
fn hash_of(path: &Path) -> io::Result<String> {
    sha256_text(&mut File::open(path)?)
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
        let error = fetch(dir.path(), Build::Cpu, Some("0.1.0"), None).unwrap_err();
        assert!(error.to_string().contains("1.32.0"), "{error}");
    }

    #[test]
    fn a_missing_pip_is_named_with_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let error = fetch(dir.path(), Build::Cann, None, Some("no-such-pip-here")).unwrap_err();
        assert!(matches!(error, SupplyError::NoPip { .. }));
        assert!(error.to_string().contains("runtime import"), "{error}");
    }
}
