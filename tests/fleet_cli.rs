//! `blochd fleet` as an operator uses it: with keys and signatures of stock minisign, and beside the stock tool
//! where it is installed.

mod running;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/fleet").join(name)
}

/// The program in `dir`, without settings of whoever runs the tests.
fn fleet(dir: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_blochd"));
    running::without_settings(&mut command);
    command.current_dir(dir).arg("fleet").args(args).stdin(Stdio::null()).output().unwrap()
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

fn said(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    text(&output.stdout) + &text(&output.stderr)
}

fn done(output: Output) -> Output {
    assert!(output.status.success(), "{}", said(&output));
    output
}

/// A directory with the keys and the document, unsigned.
fn desk() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for name in ["alice.key", "alice.pub", "bob.key", "bob.pub", "mallory.key", "document.yaml"] {
        fs::copy(fixture(name), dir.path().join(name)).unwrap();
    }
    dir
}

#[test]
fn two_people_sign_in_turn_and_a_box_that_asks_for_both_takes_it() {
    let desk = desk();
    let dir = desk.path();
    done(fleet(dir, &["sign", "document.yaml", "--key", "alice.key"]));
    let both =
        ["verify", "document.bundle", "--key", "alice.pub", "--key", "bob.pub", "--threshold", "2"];
    let output = fleet(dir, &both);
    assert_eq!(code(&output), 1, "{}", said(&output));
    assert!(said(&output).contains("1 of the 2 signatures that are needed hold"));
    // The same one again is no second signature.
    assert_eq!(code(&fleet(dir, &["sign", "document.bundle", "--key", "alice.key"])), 64);
    done(fleet(dir, &["sign", "document.bundle", "--key", "bob.key", "--comment", "looked at it"]));
    let output = done(fleet(dir, &both));
    assert!(said(&output).contains("(looked at it)") && said(&output).contains("revision 42"));
    let mut with_json = both.to_vec();
    with_json.push("--json");
    let told: Value = serde_json::from_slice(&done(fleet(dir, &with_json)).stdout).unwrap();
    assert_eq!(told["holds"], true);
    assert_eq!(told["document"]["revision"], 42);
    assert_eq!(told["signed_by"].as_object().unwrap().len(), 2);
}

#[test]
fn what_was_made_by_stock_minisign_and_cat_is_verified_for_a_box_and_a_moment() {
    let dir = tempfile::tempdir().unwrap();
    let (bundle, key) = (fixture("document.bundle"), fixture("alice.pub"));
    let verify = |more: &[&str]| {
        let mut args = vec!["verify", bundle.to_str().unwrap(), "--key", key.to_str().unwrap()];
        args.extend(more);
        args.push("--json");
        let output = fleet(dir.path(), &args);
        let told: Value = serde_json::from_slice(&output.stdout).unwrap();
        (code(&output), told["refused"].as_str().unwrap_or("").to_owned())
    };
    let ok = (0, String::new());
    let no = |kind: &str| (1, kind.to_owned());
    assert_eq!(verify(&[]), ok);
    assert_eq!(verify(&["--at", "2097-01-01T00:00:00Z"]), no("expired"));
    // By its hash a box is among the 25.5 %, or not; box-1 is not.
    assert_eq!(verify(&["--node", "box-3", "--label", "site=berlin"]).0, verify_place("box-3"));
    assert_eq!(verify(&["--node", "box-1", "--label", "site=berlin"]), no("not_chosen"));
    assert_eq!(verify(&["--node", "box-1", "--label", "site=bonn"]), no("not_for_this_node"));
    let mallory = fixture("mallory.pub");
    let by_mallory = ["verify", bundle.to_str().unwrap(), "--key", mallory.to_str().unwrap()];
    assert_eq!(code(&fleet(dir.path(), &by_mallory)), 1);
    // Without a key nobody is trusted, and that is a matter of the configuration.
    fs::write(dir.path().join("empty.yaml"), "").unwrap();
    let nobody = ["verify", bundle.to_str().unwrap(), "--config", "empty.yaml"];
    assert_eq!(code(&fleet(dir.path(), &nobody)), 78);
}

/// 0 where the box is among the 25.5 % of the fixture's salt, else 1.
fn verify_place(node: &str) -> i32 {
    let share = blochd::fleet::Share { parts: 2550, salt: "spring".to_owned() };
    i32::from(share.place(node) >= share.parts)
}

#[test]
fn stock_minisign_verifies_what_is_signed_here_once_the_document_is_taken_out() {
    if Command::new("minisign").arg("-v").output().is_err() {
        eprintln!(
            "minisign is not installed; its own signatures among the fixtures are tested anyway"
        );
        return;
    }
    let desk = desk();
    let dir = desk.path();
    let made =
        done(fleet(dir, &["keygen", "--key", "c.key", "--public", "c.pub", "--no-password"]));
    assert!(said(&made).starts_with("key "));
    done(fleet(dir, &["sign", "document.yaml", "--key", "c.key", "-o", "b"]));
    let shell = "sed '/^untrusted comment: /,$d' b > out.yaml && sed -n '/^untrusted comment: /,$p' b > out.sig && \
                 cmp out.yaml document.yaml && minisign -V -p c.pub -m out.yaml -x out.sig";
    let output = Command::new("sh").args(["-c", shell]).current_dir(dir).output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    assert!(said(&output).contains("Trusted comment: revision:42"), "{}", said(&output));
}

#[test]
fn a_wrong_document_is_not_signed_and_files_that_are_there_are_left_alone() {
    let desk = desk();
    let dir = desk.path();
    fs::write(dir.join("wrong.yaml"), "fleet: 1\nrevision: 1\n").unwrap();
    let output = fleet(dir, &["sign", "wrong.yaml", "--key", "alice.key"]);
    assert_eq!(code(&output), 65, "{}", said(&output));
    assert!(
        said(&output).contains("wrong.yaml:1:1: the document has no `expires`"),
        "{}",
        said(&output)
    );
    assert!(!dir.join("wrong.bundle").exists());
    let output = fleet(dir, &["sign", "document.yaml", "--key", "alice.pub"]);
    assert_eq!(code(&output), 65, "{}", said(&output));
    assert_eq!(code(&fleet(dir, &["sign", "no.yaml", "--key", "alice.key"])), 74);
    let keygen = ["keygen", "--key", "alice.key", "--public", "new.pub", "--no-password"];
    assert_eq!(code(&fleet(dir, &keygen)), 74);
    assert_eq!(fs::read(dir.join("alice.key")).unwrap(), fs::read(fixture("alice.key")).unwrap());
}

#[test]
fn a_key_with_a_password_signs_with_it_and_not_without() {
    let desk = desk();
    let dir = desk.path();
    fs::write(dir.join("password"), "tolles wort\n").unwrap();
    fs::write(dir.join("other"), "anderes\n").unwrap();
    let keygen =
        ["keygen", "--key", "p.key", "--public", "p.pub", "--password-file", "password", "--json"];
    let told: Value = serde_json::from_slice(&done(fleet(dir, &keygen)).stdout).unwrap();
    assert_eq!(told["id"].as_str().unwrap().len(), 16);
    let sign = |file: &str| {
        fleet(dir, &["sign", "document.yaml", "--key", "p.key", "--password-file", file])
    };
    assert_eq!(code(&sign("other")), 65, "{}", said(&sign("other")));
    done(sign("password"));
    done(fleet(dir, &["verify", "document.bundle", "--key", "p.pub"]));
}

#[test]
fn a_box_tells_by_which_name_bundles_address_it_and_a_bundle_what_it_says() {
    let desk = desk();
    let dir = desk.path();
    fs::write(dir.join("agent.yaml"), "fleet: {node_id: box-3, labels: {site: berlin}}\n").unwrap();
    let output = done(fleet(dir, &["node", "--config", "agent.yaml", "--json"]));
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (told["id"].as_str(), told["labels"]["site"].as_str()),
        (Some("box-3"), Some("berlin"))
    );
    let output = done(fleet(dir, &["show", "document.yaml"]));
    let first =
        "revision 42, until 2096-12-31T00:00:00Z, for site berlin or hamburg; 25.5 % (salt spring)";
    assert!(said(&output).starts_with(first), "{}", said(&output));
    assert!(
        said(&output)
            .contains("ocr version 2: 1048576 bytes from http://depot.example:8080/ocr/2.onnx")
    );
}
