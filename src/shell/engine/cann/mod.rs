//! ONNX Runtime's execution provider for Huawei's CANN: an Ascend runs what it compiles.
//!
//! The provider keeps compiled models (`CANNExecutionProvider_<graph>_<hash>.om`) in the *working directory*,
//! and whatever lies there under the name that it looks for is run in place of the model. The name is made of
//! the graph's name, of the model's path or its tensors' names, and of shapes: not of the weights. So each
//! model's graph is given a name of its own, and files are kept only in a folder of that model alone (see
//! `kept`); otherwise nothing is kept (`dump_om_model=0`), and since the provider loads what lies there all the
//! same, a directory that holds any other such file, or that others can write to, is refused. The latter holds
//! for its libraries too: the provider's search path ends in the working directory.
//!
//! It compiles at the first run of every combination of shapes, with one lock for all, and forgets none while
//! the session lives: what is served is run once before, in the trial and in the warm-up.

mod advice;
mod kept;
mod options;

use std::cell::RefCell;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::unistd::Uid;
use ort::ep::{ArbitrarilyConfigurableExecutionProvider, CANN};
use ort::session::builder::SessionBuilder;

pub use advice::advice;
pub(super) use kept::named;
pub use kept::{Aside, Shown, installed, is_there};

use super::library::Located;
use crate::config::Cann;
use crate::limits;
use crate::onnx::{ExecError, Tensor};
use options::OptionError;

/// ONNX Runtime's name of the provider.
pub use crate::config::providers::CANN as NAME;

/// Why CANN is not even asked.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    #[error(
        "ONNX Runtime {version} at {} was built without CANN; `blochd runtime fetch --ep cann` \
         installs a build with it",
        path.display()
    )]
    NotBuilt { version: String, path: PathBuf },
    #[error(transparent)]
    Option(#[from] OptionError),
    #[error(
        "the working directory {} {what}: CANN's provider takes libraries and compiled models \
         from there. Start blochd in a folder that it alone can write to (WorkingDirectory= of \
         the service)",
        dir.display()
    )]
    Open { dir: PathBuf, what: &'static str },
    #[error(
        "the working directory {} holds {file}, a compiled model that CANN's provider would run \
         in place of the one that is loaded; remove it, or start blochd elsewhere",
        dir.display()
    )]
    Stale { dir: PathBuf, file: String },
    #[error("the working directory cannot be looked at: {0}")]
    Unreadable(String),
}

/// Has a session run on CANN; what the provider does not take falls to the CPU, and what makes the provider
/// itself fail is an error. `cache` is the folder of what was compiled of the model: what is compiled now is
/// kept where it is the working directory.
///
/// # Errors
/// Where CANN may not be asked, or refuses.
pub(super) fn append(
    builder: SessionBuilder,
    library: &Located,
    asked: &Cann,
    cache: Option<&Path>,
) -> ort::Result<SessionBuilder> {
    let options = prepare(library, asked, Path::new("."), cache).map_err(ort::Error::wrap)?;
    let with = |ep: CANN, (key, value): (&str, String)| ep.with_arbitrary_config(key, value);
    let ep = options.into_iter().fold(CANN::default(), with);
    Ok(builder.with_execution_providers([ep.build().error_on_failure()])?)
}

/// All that can be found out without the provider: its options, in the end.
fn prepare<'a>(
    library: &Located,
    asked: &'a Cann,
    dir: &Path,
    cache: Option<&Path>,
) -> Result<Vec<(&'a str, String)>, Refused> {
    if !library.providers.iter().any(|name| name == NAME) {
        let (version, path) = (library.version.clone(), library.path.clone());
        return Err(Refused::NotBuilt { version, path });
    }
    let cache = cache.and_then(|cache| cache.canonicalize().ok());
    let keeps = cache.is_some() && dir.canonicalize().ok() == cache;
    let options = options::all(&library.version, asked, keeps)?;
    check_folder(dir, cache.as_deref())?;
    Ok(options)
}

/// Whether the provider may look into a directory, where what was compiled of the model lies in `cache`.
fn check_folder(dir: &Path, cache: Option<&Path>) -> Result<(), Refused> {
    const OTHERS_WRITE: u32 = 0o002;
    let unreadable = |error: std::io::Error| Refused::Unreadable(error.to_string());
    let dir = dir.canonicalize().map_err(unreadable)?;
    let meta = dir.metadata().map_err(unreadable)?;
    let what = if meta.mode() & OTHERS_WRITE != 0 {
        Some("can be written to by everybody")
    } else if ![0, Uid::effective().as_raw()].contains(&meta.uid()) {
        Some("belongs to another user")
    } else {
        None
    };
    if let Some(what) = what {
        return Err(Refused::Open { dir, what });
    }
    if cache == Some(dir.as_path()) {
        return Ok(());
    }
    let entries = fs::read_dir(&dir).map_err(unreadable)?.flatten().take(limits::DIRECTORY_ENTRIES);
    let strange = entries.filter_map(|entry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        let own = cache.is_some_and(|cache| kept::is_shown(&entry.path(), cache));
        (kept::is_one(&name) && !own).then_some(name)
    });
    match strange.min() {
        Some(file) => Err(Refused::Stale { dir, file }),
        None => Ok(()),
    }
}

thread_local! {
    /// What the provider last wrote to the log of a call that failed, on the thread that made it: the error
    /// tells which call it was, the log alone the code.
    static LOGGED: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Hears what ONNX Runtime writes to its log.
pub(super) fn heard(message: &str) {
    if message.starts_with("CANN") && message.contains(" failure ") {
        let words = message.chars().take(limits::CANN_WORDS).collect();
        LOGGED.set(Some(words));
    }
}

/// A call begins: what was heard before is not about it.
pub(super) fn begin() {
    LOGGED.set(None);
}

/// The words of an error, with what to do about it where CANN had a part in it.
pub(super) fn explained(words: String) -> String {
    let logged = LOGGED.take().filter(|_| is_to_blame(&words));
    let words = match logged {
        Some(logged) => format!("{words}; {}", logged.trim()),
        None => words,
    };
    match advice(&words) {
        Some(advice) => format!("{}: {advice}", told(&words)),
        None => words,
    }
}

/// The words without the places in the provider's source that stand before what it has to say.
fn told(words: &str) -> String {
    const BEGINNINGS: [&str; 4] = [
        "CANN failure ",
        "CANNGRAPH failure ",
        "Failed to load library",
        "Failed to parse provider option",
    ];
    let place = words.find(".cc:").and_then(|at| words[..at].rfind(char::is_whitespace));
    let place = place.map_or(0, |at| at + 1);
    let said = BEGINNINGS.iter().filter_map(|beginning| words.rfind(beginning)).min();
    let words = match said {
        Some(said) if words[..said].contains(".cc:") => {
            format!("{}{}", &words[..place.min(said)], &words[said..])
        }
        _ => words.to_owned(),
    };
    words.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Whether an error is the provider's, or CANN's under it: it speaks against running this model there.
pub fn is_to_blame(words: &str) -> bool {
    words.contains("CANN")
}

/// The error of a run, with the shapes that the model was to be compiled for.
pub(super) fn of_run(error: ExecError, inputs: &[(&str, &Tensor)]) -> ExecError {
    if !is_to_blame(&error.reason) {
        return error;
    }
    let shapes: Vec<String> =
        inputs.iter().map(|(name, tensor)| format!("{name} {:?}", tensor.shape)).collect();
    ExecError { reason: format!("{} (for {})", error.reason, shapes.join(", ")), ..error }
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::shell::engine::Origin;

    fn library(providers: &[&str]) -> Located {
        Located {
            path: "/x/libonnxruntime.so.1.24.4".into(),
            origin: Origin::State,
            version: "1.24.4".to_owned(),
            providers: providers.iter().map(|name| (*name).to_owned()).collect(),
        }
    }

    #[test]
    fn a_build_without_cann_is_refused_with_the_command_that_fetches_one() {
        let dir = tempfile::tempdir().unwrap();
        let cpu = library(&["CPUExecutionProvider"]);
        let error = prepare(&cpu, &Cann::default(), dir.path(), None).unwrap_err().to_string();
        assert!(error.contains("1.24.4") && error.contains("runtime fetch --ep cann"), "{error}");
        let both = library(&[NAME, "CPUExecutionProvider"]);
        assert!(prepare(&both, &Cann::default(), dir.path(), None).is_ok());
    }

    #[test]
    fn a_directory_that_others_write_to_or_that_holds_a_compiled_model_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert!(check_folder(dir.path(), None).is_ok());
        let file = "CANNExecutionProvider_g_1_0_0_2.om";
        fs::write(dir.path().join(file), "x").unwrap();
        let error = check_folder(dir.path(), None).unwrap_err().to_string();
        assert!(error.contains(file), "{error}");
        // What is its own is not in its way, here or behind a link.
        let own = dir.path().canonicalize().unwrap();
        assert!(check_folder(dir.path(), Some(&own)).is_ok());
        let other = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(own.join(file), other.path().join(file)).unwrap();
        assert!(check_folder(other.path(), Some(&own)).is_ok());
        assert!(check_folder(other.path(), None).is_err());
        let both = library(&[NAME]);
        let dumps = |dir: &Path, cache: Option<&Path>| {
            let asked = Cann::default();
            let options = prepare(&both, &asked, dir, cache).unwrap();
            options.iter().any(|(name, value)| *name == "dump_om_model" && value == "1")
        };
        assert!(dumps(dir.path(), Some(&own)) && !dumps(other.path(), Some(&own)));
        fs::remove_file(dir.path().join(file)).unwrap();
        // Somebody's own compiled model is never looked for.
        fs::write(dir.path().join("mine.om"), "x").unwrap();
        assert!(check_folder(dir.path(), None).is_ok());
        for mode in [0o777, 0o1777] {
            fs::set_permissions(dir.path(), Permissions::from_mode(mode)).unwrap();
            let error = check_folder(dir.path(), None).unwrap_err();
            assert!(matches!(error, Refused::Open { .. }), "{error}");
        }
    }

    #[test]
    fn the_code_is_taken_from_the_log_of_the_same_call_alone() {
        heard("CANN failure 507008: (look for ACL_ERROR_xxx in acl.h) ; NPU=0 ; hostname=box");
        begin();
        let words = "CANN error executing aclmdlLoadFromMem(model.data.get())".to_owned();
        assert!(!explained(words.clone()).contains("507008"));
        heard("CANN failure 507008: (look for ACL_ERROR_xxx in acl.h) ; NPU=0 ; hostname=box");
        // Of somebody else.
        assert_eq!(explained("no such input".to_owned()), "no such input");
        heard("CANN failure 507008: (look for ACL_ERROR_xxx in acl.h) ; NPU=0 ; hostname=box");
        let all = explained(words);
        assert!(all.contains("507008") && all.contains("SoC"), "{all}");
    }

    #[test]
    fn places_in_the_source_of_others_are_left_out() {
        let loading = "/ci/core/session/provider_bridge_ort.cc:1952 onnxruntime::Provider& \
                       onnxruntime::ProviderLibrary::Get() [ONNXRuntimeError] : 1 : FAIL : Failed \
                       to load library /s/libonnxruntime_providers_cann.so with error: \
                       libascendcl.so: cannot open shared object file: No such file\n";
        assert!(explained(loading.to_owned()).starts_with("Failed to load library /s/"));
        let running = "Non-zero status code returned while running g node. Name:'g_0' Status \
                       Message: /ci/cann_call.cc:148 bool onnxruntime::CannCall(ERRTYPE) [with \
                       THRW = true] /ci/cann_call.cc:142 bool CANN failure 207001: (look) ; \
                       expr=aclrtMalloc(size); \n\n";
        let all = explained(running.to_owned());
        let expected = "Name:'g_0' Status Message: CANN failure 207001: (look) ; expr=aclrtMalloc";
        assert!(all.contains(expected) && !all.contains('\n'), "{all}");
    }
}
