//! The rules themselves.

use super::lexer::{item_end, paths};
use super::{File, Violation};

/// Longest line of code, characters: what rustfmt is told.
const COLUMNS: usize = 100;

/// Longest line of comment alone. rustfmt leaves comments as they are, and nobody counts by hand.
const COMMENT_COLUMNS: usize = 112;

/// Longest function, lines from its name to its closing brace.
const FUNCTION_LINES: usize = 70;

/// Longest file, lines, tests not counted.
const FILE_LINES: usize = 800;

/// Functions that may be longer, and why.
const LONG_FUNCTIONS: &[(&str, &str, &str)] =
    &[("src/coupling/rules.rs", "rule", "a table: one arm an operator")];

/// Modules that may touch the world.
const WORLDLY: &[&str] = &["shell", "cli"];

/// What touches the world: paths that begin like this.
const WORLD: &[&[&str]] = &[
    &["std", "fs"],
    &["std", "env"],
    &["std", "process"],
    &["std", "thread"],
    &["std", "os"],
    &["std", "io", "stdin"],
    &["std", "io", "stdout"],
    &["std", "io", "stderr"],
    &["std", "net", "TcpListener"],
    &["std", "net", "TcpStream"],
    &["std", "net", "UdpSocket"],
    &["std", "net", "ToSocketAddrs"],
    &["tokio"],
    &["tokio_util"],
    &["axum"],
    &["ort"],
    &["notify"],
    &["nix"],
    &["sysinfo"],
    &["ureq"],
    &["tempfile"],
    &["memmap2"],
    &["sd_notify"],
    &["metrics"],
];

/// The same in the middle of a path: `std::time::Instant::now`, or `Instant::now` behind a `use`.
const WORLD_CALLS: &[&[&str]] = &[
    &["Instant", "now"],
    &["SystemTime", "now"],
    &["fs", "read"],
    &["fs", "write"],
    &["fs", "read_to_string"],
    &["File", "open"],
    &["File", "create"],
    &["thread", "spawn"],
    &["thread", "sleep"],
];

const WORLD_MACROS: &[&str] = &["print!", "println!", "eprint!", "eprintln!"];

const BANNED_MACROS: &[&str] = &["todo!", "unimplemented!", "dbg!"];

const BANNED_WORDS: &[&str] = &["TODO", "FIXME", "XXX"];

fn report(file: &File, line: usize, what: String, into: &mut Vec<Violation>) {
    into.push(Violation { file: file.name.to_owned(), line, what });
}

fn is_worldly(file: &File) -> bool {
    file.name == "src/main.rs" || file.modules.first().is_some_and(|room| WORLDLY.contains(room))
}

pub fn columns(file: &File, into: &mut Vec<Violation>) {
    for (index, line) in file.text.lines().enumerate() {
        let is_comment = line.trim_start().starts_with("//");
        let most = if is_comment { COMMENT_COLUMNS } else { COLUMNS };
        let columns = line.chars().count();
        if columns > most {
            report(file, index + 1, format!("{columns} columns, more than {most}"), into);
        }
    }
}

/// What stands nowhere, tests included.
pub fn banned(file: &File, into: &mut Vec<Violation>) {
    macros(file, BANNED_MACROS, "is for unfinished code", into);
    for (index, line) in file.comments.lines().enumerate() {
        let words = || line.split(|c: char| !c.is_alphanumeric() && c != '_');
        for word in BANNED_WORDS {
            if words().any(|found| found == *word) {
                report(file, index + 1, format!("{word}: finish it, or say why not"), into);
            }
        }
    }
}

/// Channels that grow without bound; tests may.
pub fn channels(file: &File, into: &mut Vec<Violation>) {
    for path in paths(&file.code) {
        let has = |name: &str| path.segments.iter().any(|segment| segment == name);
        let std_channel =
            path.called_empty && path.segments.ends_with(&owned(&["mpsc", "channel"]));
        let imported = path.segments == owned(&["std", "sync", "mpsc", "channel"]);
        if has("unbounded_channel") || has("unbounded") || std_channel || imported {
            let what = format!("{}: channels are bounded", path.segments.join("::"));
            report(file, path.line, what, into);
        }
    }
}

fn owned(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn macros(file: &File, names: &[&str], why: &str, into: &mut Vec<Violation>) {
    for (index, line) in file.code.lines().enumerate() {
        for name in names {
            let before = |at: usize| line[..at].chars().next_back();
            let whole = |at: usize| !before(at).is_some_and(|c| c.is_alphanumeric() || c == '_');
            if line.match_indices(name).any(|(at, _)| whole(at)) {
                report(file, index + 1, format!("{name} {why}"), into);
            }
        }
    }
}

/// A room uses only rooms above it; nobody but the binary uses the shell.
pub fn room_order(file: &File, rooms: &[String], into: &mut Vec<Violation>) {
    let Some(own) = file.modules.first() else { return };
    let Some(place) = rooms.iter().position(|room| room == own) else { return };
    for path in paths(&file.code) {
        let supers = path.segments.iter().take_while(|segment| *segment == "super").count();
        let used = match path.segments[0].as_str() {
            "crate" => path.segments.get(1),
            // As many steps up as the file lies deep lead to the crate's root.
            "super" if supers >= file.modules.len() => path.segments.get(supers),
            _ => None,
        };
        let used = used.and_then(|used| rooms.iter().position(|room| room == used));
        if let Some(used) = used.filter(|used| *used > place) {
            let what = format!("`{own}` uses `{}`, which stands below it in lib.rs", rooms[used]);
            report(file, path.line, what, into);
        }
    }
}

/// Only the shell and the binary touch the world.
pub fn world(file: &File, into: &mut Vec<Violation>) {
    if is_worldly(file) {
        return;
    }
    for path in paths(&file.code) {
        let names: Vec<&str> = path.segments.iter().map(String::as_str).collect();
        let begins = WORLD.iter().any(|world| names.starts_with(world));
        let holds =
            WORLD_CALLS.iter().any(|call| names.windows(call.len()).any(|window| window == *call));
        if begins || holds {
            let what = format!("{} touches the world: only shell and cli do", names.join("::"));
            report(file, path.line, what, into);
        }
    }
    macros(file, WORLD_MACROS, "touches the world: only shell and cli do", into);
}

pub fn panics(file: &File, into: &mut Vec<Violation>) {
    for (index, line) in file.code.lines().enumerate() {
        for call in [".unwrap()", ".expect(", ".unwrap_err()", ".expect_err("] {
            if line.contains(call) {
                report(file, index + 1, format!("{call} outside of tests"), into);
            }
        }
    }
}

pub fn lengths(file: &File, into: &mut Vec<Violation>) {
    let lines = file.code.lines().zip(file.text.lines());
    // Blanked tests leave empty lines where the source has some.
    let counted = lines.filter(|(code, text)| {
        !code.trim().is_empty() || text.trim().is_empty() || text.trim().starts_with("//")
    });
    let counted = counted.count();
    if counted > FILE_LINES {
        report(file, 1, format!("{counted} lines, more than {FILE_LINES}"), into);
    }
    let chars: Vec<char> = file.code.chars().collect();
    let mut line = 1;
    for at in 0..chars.len() {
        line += usize::from(chars[at] == '\n');
        let word = chars[at..].starts_with(&['f', 'n', ' ']);
        let whole = at == 0 || !(chars[at - 1].is_alphanumeric() || chars[at - 1] == '_');
        if !(word && whole) {
            continue;
        }
        let name: String =
            chars[at + 3..].iter().take_while(|c| c.is_alphanumeric() || **c == '_').collect();
        let end = item_end(&chars, at);
        let length = 1 + chars[at..end].iter().filter(|c| **c == '\n').count();
        let allowed = LONG_FUNCTIONS.iter().any(|(f, n, _)| *f == file.name && *n == name);
        if !name.is_empty() && length > FUNCTION_LINES && !allowed {
            let what = format!("`{name}` has {length} lines, more than {FUNCTION_LINES}");
            report(file, line, what, into);
        }
    }
}
