//! The rules, each with the snippets that it must find and must not find.

mod lexer;
mod rules;
mod tests;

use std::collections::BTreeSet;
use std::fmt;

use lexer::{separate, without_tests};

/// One breach of a rule.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Violation {
    pub file: String,
    pub line: usize,
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file, self.line, self.what)
    }
}

/// The rooms in their order.
pub struct House {
    rooms: Vec<String>,
}

/// A file, ready for the rules.
pub struct File<'a> {
    name: &'a str,
    /// Path below `src/` as modules: `["config", "raw"]`.
    modules: Vec<&'a str>,
    /// Without comments, literals and tests.
    code: String,
    comments: String,
    text: &'a str,
}

impl House {
    /// The rooms as `lib.rs` lists them.
    pub fn new(lib: &str) -> Self {
        let code = separate(lib).code;
        let room =
            |line: &str| line.trim().strip_prefix("pub mod ")?.strip_suffix(';').map(str::to_owned);
        Self { rooms: code.lines().filter_map(room).collect() }
    }

    pub fn rooms(&self) -> &[String] {
        &self.rooms
    }

    /// Every breach in `files` (name relative to the project, text), in order.
    pub fn check(&self, files: &[(String, String)]) -> Vec<Violation> {
        let mut tests = BTreeSet::new();
        let mut prepared = Vec::new();
        for (name, text) in files {
            let modules = modules(name);
            let source = separate(text);
            let (code, test_modules) = without_tests(&source.code);
            tests.extend(test_modules.into_iter().map(|module| {
                let mut path: Vec<String> = modules.iter().map(|m| (*m).to_owned()).collect();
                path.push(module);
                path
            }));
            prepared.push(File { name, modules, code, comments: source.comments, text });
        }
        let is_test = |file: &File| {
            (1..=file.modules.len())
                .any(|n| tests.iter().any(|test| test.iter().eq(file.modules[..n].iter())))
        };
        let mut violations = Vec::new();
        for file in &prepared {
            rules::columns(file, &mut violations);
            rules::banned(file, &mut violations);
            if is_test(file) {
                continue;
            }
            rules::room_order(file, &self.rooms, &mut violations);
            rules::world(file, &mut violations);
            rules::channels(file, &mut violations);
            rules::panics(file, &mut violations);
            rules::lengths(file, &mut violations);
        }
        violations.sort();
        violations.dedup();
        violations
    }
}

/// `src/config/raw.rs` → `config`, `raw`; `src/config/mod.rs` → `config`; `src/lib.rs` → nothing.
fn modules(name: &str) -> Vec<&str> {
    let path = name.strip_prefix("src/").unwrap_or(name);
    let path = path.strip_suffix(".rs").unwrap_or(path);
    path.split('/').filter(|part| !matches!(*part, "mod" | "lib" | "main")).collect()
}
