//! Every ONNX Runtime on the box, and whether CANN can be used by those that were built with it. The provider's
//! library and all that it needs of Huawei's is loaded in a child, confined as a trial is: it runs the vendor's
//! code.

use std::path::Path;

use blochd::config::Sandbox;
use blochd::limits;
use blochd::shell::children::{self, Bounds, Memory, Priority, Wish, this_program};
use blochd::shell::engine::{Located, Search, cann, inspect};
use serde_json::{Value, json};
use tokio::sync::watch;

/// A list, in the order in which they are looked at; `used` is the one that is taken.
pub fn all(search: &Search, used: Option<&Path>, sandbox: Sandbox) -> Value {
    let shown =
        search.candidates().into_iter().map(|(origin, path)| match inspect(&path, origin) {
            Ok(found) => json!({
                "path": found.path, "origin": found.origin, "version": found.version,
                "providers": found.providers, "in_use": Some(found.path.as_path()) == used,
                "cann": cann(&found, sandbox),
            }),
            Err(error) => {
                json!({"path": path, "origin": origin, "in_use": false, "why": error.to_string()})
            }
        });
    shown.collect()
}

/// Whether CANN's provider loads, and why not; null where the library was built without it.
fn cann(library: &Located, sandbox: Sandbox) -> Value {
    if !library.providers.iter().any(|name| name == cann::NAME) {
        return Value::Null;
    }
    match loads(&library.path, sandbox) {
        Ok(()) => json!({"loads": true}),
        Err(why) => json!({"loads": false, "why": why}),
    }
}

fn loads(library: &Path, sandbox: Sandbox) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| error.to_string())?;
    let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
    let bounds = Bounds {
        timeout: limits::PROVIDER_LOAD,
        processor: limits::PROVIDER_LOAD,
        memory: Memory::Available { parts: 2 },
        priority: Priority::Normal,
        folder: Some(folder.path().to_owned()),
        homes: &[],
    };
    let mut arguments: Vec<String> =
        ["runtime", "check", "cann", "--load-only", "--json", "--runtime-library"]
            .map(str::to_owned)
            .into();
    arguments.push(library.to_string_lossy().into_owned());
    arguments.extend(["--sandbox".to_owned(), sandbox.to_string(), "--scratch".to_owned()]);
    arguments.push(folder.path().to_string_lossy().into_owned());
    let mut why = None;
    let mut line = |line: &str| {
        // What vendors' libraries print stands between.
        let told: Option<Value> = serde_json::from_str(line).ok();
        why = told.and_then(|told| Some(told["why"].as_str()?.to_owned())).or(why.take());
        Ok(())
    };
    let (_wisher, wish) = watch::channel(Wish::Run);
    let ended =
        runtime.block_on(children::run(&this_program(), &arguments, &bounds, wish, &mut line));
    runtime.shutdown_background();
    ended.map_err(|error| why.unwrap_or_else(|| error.to_string()))
}
