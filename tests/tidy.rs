//! Holds the rules of the house over the source: rooms use only rooms above them, only the shell touches
//! the world, nothing outside of tests panics on purpose, and files stay readable.

#[path = "tidy_check/mod.rs"]
mod tidy_check;

use std::fs;
use std::path::{Path, PathBuf};

use tidy_check::{House, Violation};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn rust_files(dir: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            rust_files(&path, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            into.push(path);
        }
    }
    into.sort();
}

#[test]
fn the_source_keeps_the_rules_of_the_house() {
    let mut files = Vec::new();
    rust_files(&root().join("src"), &mut files);
    let read = |path: &PathBuf| {
        let name = path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
        (name, fs::read_to_string(path).unwrap())
    };
    let files: Vec<(String, String)> = files.iter().map(read).collect();
    assert!(files.len() > 30, "the source was not found");
    let lib = &files.iter().find(|(name, _)| name == "src/lib.rs").unwrap().1;
    let house = House::new(lib);
    assert!(house.rooms().len() > 10, "{:?}", house.rooms());
    let violations: Vec<String> = house.check(&files).iter().map(Violation::to_string).collect();
    assert!(violations.is_empty(), "{} violations:\n{}", violations.len(), violations.join("\n"));
}
