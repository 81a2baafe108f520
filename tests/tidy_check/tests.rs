//! The checker finds what it must and nothing else.

use super::House;

const LIB: &str =
    "pub mod limits;\npub mod config;\npub mod onnx;\n// pub mod ghost;\npub mod shell;\n";

fn found(name: &str, text: &str) -> Vec<String> {
    all(&[(name, text)])
}

fn all(files: &[(&str, &str)]) -> Vec<String> {
    let own = |(name, text): &(&str, &str)| ((*name).to_owned(), (*text).to_owned());
    let files: Vec<(String, String)> = files.iter().map(own).collect();
    House::new(LIB).check(&files).iter().map(|violation| violation.to_string()).collect()
}

#[track_caller]
fn finds(name: &str, text: &str, part: &str) {
    let found = found(name, text);
    assert!(found.len() == 1 && found[0].contains(part), "{text}\n{found:?}");
}

#[track_caller]
fn passes(name: &str, text: &str) {
    assert_eq!(found(name, text), Vec::<String>::new(), "{text}");
}

#[test]
fn rooms_are_those_of_lib_in_its_order() {
    assert_eq!(House::new(LIB).rooms(), ["limits", "config", "onnx", "shell"]);
}

#[test]
fn finds_a_room_that_uses_a_room_below_it() {
    finds("src/config/raw.rs", "use crate::onnx::Model;\n", "raw.rs:1: `config` uses `onnx`");
    finds("src/config/raw.rs", "\nuse crate::{limits, onnx::{Model, Graph}};\n", "raw.rs:2");
    finds("src/config/mod.rs", "fn f() -> crate::shell::X {}\n", "uses `shell`");
    finds("src/config/raw.rs", "use super::super::onnx::Model;\n", "uses `onnx`");
    finds("src/limits.rs", "use crate::config::X;\n", "uses `config`");
}

#[test]
fn passes_rooms_above_the_own_room_and_what_only_tests_use() {
    passes("src/onnx/graph.rs", "use crate::config::X;\nuse crate::{limits, onnx::Y};\n");
    passes("src/shell/agent.rs", "use crate::onnx::X;\n");
    passes(
        "src/config/raw.rs",
        "use super::onnx;\n// crate::shell::X\nconst A: &str = \"crate::shell\";\n",
    );
    passes("src/config/raw.rs", "#[cfg(test)]\nmod tests {\n    use crate::shell::X;\n}\n");
    let files = [
        ("src/config/mod.rs", "#[cfg(test)]\nmod tests;\n"),
        ("src/config/tests.rs", "use crate::shell::X;\nfn f() { std::fs::read(x).unwrap(); }\n"),
    ];
    assert_eq!(all(&files), Vec::<String>::new());
    assert_ne!(all(&files[1..]), Vec::<String>::new(), "a tests.rs that is no test module");
}

#[test]
fn finds_what_touches_the_world_outside_of_the_shell() {
    for text in [
        "use std::fs;\n",
        "use std::{collections::BTreeMap, fs::File};\n",
        "fn f() { std::env::var(x); }\n",
        "use std::time::Instant;\nfn f() -> Instant { Instant::now() }\n",
        "use std::time::SystemTime as T;\nfn f() { std::time::SystemTime::now(); }\n",
        "use tokio::sync::mpsc;\n",
        "fn f(s: ort::session::Session) {}\n",
        "use std::net::TcpStream;\n",
        "fn f() { println!(\"x\"); }\n",
    ] {
        finds("src/onnx/model.rs", text, "touches the world");
        passes("src/shell/x.rs", text);
        passes("src/cli/x.rs", text);
        passes("src/main.rs", text);
    }
}

#[test]
fn passes_types_and_words_that_only_look_like_the_world() {
    passes(
        "src/onnx/model.rs",
        "use std::net::SocketAddr;\nuse std::time::{Duration, Instant};\nuse std::path::Path;\n\
         /// Not like std::fs::read, nor `println!`.\nfn f<'a>(x: &'a str, c: char) -> bool {\n    \
         let text = \"std::fs::read\"; let raw = r#\"tokio::spawn \"quoted\" \"#;\n    \
         c == '\"' || c == '\\'' || text == raw || env!(\"X\") == x\n}\nfn notify() { report::ort(); }\n",
    );
}

#[test]
fn finds_panics_outside_of_tests_only() {
    finds("src/shell/x.rs", "fn f() { x.unwrap(); }\n", ".unwrap() outside");
    finds("src/shell/x.rs", "fn f() {\n    x\n        .expect(\"y\");\n}\n", "x.rs:3: .expect(");
    passes("src/shell/x.rs", "fn f() { x.unwrap_or(1); x.unwrap_or_default(); expect(1); }\n");
    passes("src/shell/x.rs", "/// x.unwrap()\n#[cfg(test)]\nmod t { fn f() { x.unwrap(); } }\n");
    passes("src/shell/x.rs", "#[cfg(test)]\nfn f() { x.unwrap(); }\nfn g() {}\n");
    let after = "#[cfg(test)]\nmod t { const C: char = '}'; const S: &str = \"}\"; }\nfn f() { x.unwrap(); }\n";
    finds("src/shell/x.rs", after, "x.rs:3");
    finds("src/shell/x.rs", "#[cfg(test)]\nuse x::y;\nfn f() { x.unwrap(); }\n", "x.rs:3");
}

#[test]
fn finds_unfinished_code_and_unbounded_channels_even_in_tests() {
    finds("src/shell/x.rs", "fn f() { todo!() }\n", "todo!");
    finds("src/shell/x.rs", "fn f() { unimplemented!(\"x\") }\n", "unimplemented!");
    finds("src/shell/x.rs", "fn f() { dbg!(x); }\n", "dbg!");
    finds("src/shell/x.rs", "// FIXME later\n", "FIXME");
    finds("src/shell/x.rs", "/* TODO */\n", "TODO");
    finds(
        "src/shell/x.rs",
        "fn f() { tokio::sync::mpsc::unbounded_channel::<u8>(); }\n",
        "bounded",
    );
    finds("src/shell/x.rs", "fn f() { mpsc::channel::<Vec<u8>>(); }\n", "bounded");
    finds("src/shell/x.rs", "fn f() { std::sync::mpsc::channel(); }\n", "bounded");
    passes(
        "src/shell/x.rs",
        "fn f() { mpsc::channel(4); mpsc::sync_channel::<u8>(1); my_dbg!(); }\n",
    );
    passes("src/shell/x.rs", "const TODO: &str = \"FIXME todo!()\"; // TODOS are no words\n");
}

#[test]
fn finds_long_lines_functions_and_files() {
    finds("src/shell/x.rs", &format!("f({});\n", "x".repeat(97)), "101 columns, more than 100");
    passes("src/shell/x.rs", &format!("f({});\n", "ä".repeat(96)));
    finds("src/shell/x.rs", &format!("// {}\n", "x".repeat(110)), "113 columns, more than 112");
    passes("src/shell/x.rs", &format!("// {}\n", "ä".repeat(109)));
    let function = |lines: usize| format!("fn f() {{\n{}}}\n", "    g();\n".repeat(lines));
    finds("src/shell/x.rs", &function(69), "`f` has 71 lines");
    passes("src/shell/x.rs", &function(68));
    let generic = format!(
        "fn f<T: Fn() -> [u8; 2]>(a: T) -> B\nwhere\n    T: C,\n{{\n{}}}\n",
        "g();\n".repeat(70)
    );
    finds("src/shell/x.rs", &generic, "`f` has 75 lines");
    passes("src/shell/x.rs", "trait A { fn f(&self); }\n");
    finds("src/shell/x.rs", &"g();\n".repeat(801), "801 lines");
    let tests = format!("g();\n#[cfg(test)]\nmod t {{\n{}}}\n", "    g();\n".repeat(900));
    passes("src/shell/x.rs", &tests);
}
