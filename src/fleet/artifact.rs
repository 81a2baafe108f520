//! The models of a bundle: what they are, where their files lie, and by what those are known.
//!
//! ```yaml
//! - name: ocr
//!   version: 3
//!   url: https://depot.example/ocr-3.onnx   # or oci://registry.example/ocr, or `file:` beside the bundle
//!   size: 1048576
//!   sha256: …
//!   signature: |                            # of the file itself, by a key that is trusted
//!     untrusted comment: …
//!   files:                                  # what lies beside it: external data, calibration.npz
//!     - {name: weights.bin, url: 'https://depot.example/ocr-3.bin', size: 4194304, sha256: …}
//! ```

use std::fmt;
use std::str::FromStr;

use crate::config::WebAddress;
use crate::config::raw::{Node, Value};
use crate::limits;
use crate::units::{ByteSize, Version, check_model_name, is_fleet_name};

use super::document::{Entries, Reader};
use super::oci::Repository;

/// The model's own file in a version's folder.
pub const MODEL_FILE: &str = "model.onnx";

/// Samples of a version's inputs may come with it.
pub const SAMPLES_FILE: &str = "calibration.npz";

/// The files that become the folder `<name>/<version>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Artifact {
    pub name: String,
    pub version: Version,
    pub from: Source,
    /// Bytes.
    pub size: u64,
    pub sha256: Sha256,
    /// Of the file itself, by a key that is trusted: four lines as minisign writes them.
    pub signature: Option<String>,
    /// What lies beside the model's own file, by name, each once.
    pub files: Vec<Further>,
}

/// A file beside a model's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Further {
    /// A plain name: no folder, nothing hidden, none that means something to the agent but
    /// [`SAMPLES_FILE`].
    pub name: String,
    pub from: Source,
    /// Bytes.
    pub size: u64,
    pub sha256: Sha256,
}

/// One file of an artifact.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece<'a> {
    /// What it is called in the version's folder.
    pub name: &'a str,
    pub from: &'a Source,
    /// Bytes.
    pub size: u64,
    pub sha256: Sha256,
}

/// Where a file is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    Web(WebAddress),
    /// A blob of a registry, by its hash.
    Registry(Repository),
    /// Beside the bundle: a relative path within the inbox.
    File(String),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Web(address) => f.write_str(address.text()),
            Self::Registry(repository) => write!(f, "{repository}"),
            Self::File(file) => f.write_str(file),
        }
    }
}

impl Artifact {
    /// All its files, the model's own first.
    pub fn pieces(&self) -> impl Iterator<Item = Piece<'_>> {
        let Self { from, size, sha256, .. } = self;
        let own = Piece { name: MODEL_FILE, from, size: *size, sha256: *sha256 };
        let further = self.files.iter().map(|file| {
            let Further { name, from, size, sha256 } = file;
            Piece { name, from, size: *size, sha256: *sha256 }
        });
        std::iter::once(own).chain(further)
    }
}

/// SHA-256 of some content, as 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sha256(pub [u8; 32]);

impl fmt::Display for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sha256({self})")
    }
}

impl FromStr for Sha256 {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let digit = |byte: u8| (byte as char).to_digit(16).map(|digit| digit as u8);
        let text = text.as_bytes();
        let mut bytes = [0; 32];
        if text.len() != 2 * bytes.len() {
            return Err(());
        }
        for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
            let (Some(high), Some(low)) = (digit(pair[0]), digit(pair[1])) else { return Err(()) };
            *byte = (high << 4) | low;
        }
        Ok(Self(bytes))
    }
}

/// What is said of any file: where it is, how large, and its hash.
struct Content {
    from: Source,
    size: u64,
    sha256: Sha256,
}

impl Reader {
    pub(super) fn models(&mut self, node: Node) -> Vec<Artifact> {
        let mut models: Vec<Artifact> = Vec::new();
        if !matches!(node.value, Value::List(_)) {
            self.problem(node.at, "`models` is not a list", "write each model behind a dash");
            return models;
        }
        for item in self.items(node, "models", limits::FLEET_MODELS) {
            let at = item.at;
            let Some(model) = self.model(item) else { continue };
            if models.iter().any(|other| other.name == model.name) {
                let what = format!("model {} stands twice", model.name);
                self.problem(at, what, "name one version of each model");
            } else {
                models.push(model);
            }
        }
        models.sort_by(|a, b| a.name.cmp(&b.name));
        models
    }

    fn model(&mut self, node: Node) -> Option<Artifact> {
        let known = ["name", "version", "url", "file", "size", "sha256", "signature", "files"];
        let mut entries = self.map(node, "a model", &known)?;
        let name = self.required(&mut entries, "name", "the model's name").and_then(|node| {
            let name = self.scalar(&node, "name")?;
            self.taken(node.at, check_model_name(&name), "rename the model")?;
            Some(name)
        });
        let version = self.required(&mut entries, "version", "a whole number above the last one");
        let version = version.and_then(|node| self.whole(&node, "version", 1, u64::MAX));
        let content = self.content(&mut entries, "a model", limits::FLEET_ARTIFACT_BYTES);
        let files = match entries.take("files") {
            None => Vec::new(),
            Some((_, node)) => self.further(node),
        };
        let signature = match entries.take("signature") {
            None => None,
            Some((_, node)) => Some(self.signature(&node)?),
        };
        let (version, Content { from, size, sha256 }) = (Version(version?), content?);
        Some(Artifact { name: name?, version, from, size, sha256, signature, files })
    }

    fn content(&mut self, entries: &mut Entries, what: &str, most: u64) -> Option<Content> {
        let at = entries.at;
        let size = self.required(entries, "size", "the file's number of bytes");
        let size = size.and_then(|node| self.whole(&node, "size", 1, most));
        let sha256 = self.required(entries, "sha256", "what `sha256sum` says of the file");
        let sha256 = sha256.and_then(|node| {
            let text = self.scalar(&node, "sha256")?;
            let read = text.parse().map_err(|()| format!("`sha256` is {text:?}"));
            self.taken(node.at, read, "write the 64 hexadecimal digits that `sha256sum` says")
        });
        let from = match (entries.take("url"), entries.take("file")) {
            (Some((_, node)), None) => self.url(&node),
            (None, Some((_, node))) => self.file(&node).map(Source::File),
            (None, None) | (Some(_), Some(_)) => {
                let what = format!("{what} has one of `url` and `file`");
                self.problem(at, what, "write where it is");
                None
            }
        };
        Some(Content { from: from?, size: size?, sha256: sha256? })
    }

    fn further(&mut self, node: Node) -> Vec<Further> {
        let mut files: Vec<Further> = Vec::new();
        if !matches!(node.value, Value::List(_)) {
            self.problem(node.at, "`files` is not a list", "write each file behind a dash");
            return files;
        }
        for item in self.items(node, "files", limits::FLEET_FILES) {
            let at = item.at;
            let Some(file) = self.further_one(item) else { continue };
            if files.iter().any(|other| other.name == file.name) {
                self.problem(at, format!("{} stands twice", file.name), "name each file once");
            } else {
                files.push(file);
            }
        }
        files.sort_by(|a, b| a.name.cmp(&b.name));
        files
    }

    fn further_one(&mut self, node: Node) -> Option<Further> {
        let known = ["name", "url", "file", "size", "sha256"];
        let mut entries = self.map(node, "a file", &known)?;
        let name = self.required(&mut entries, "name", "what it is called beside the model");
        let name = name.and_then(|node| {
            let name = self.scalar(&node, "name")?;
            self.taken(node.at, check_file_name(&name), FILE_NAME)?;
            Some(name)
        });
        let content = self.content(&mut entries, "a file", limits::FLEET_FILE_BYTES);
        let Content { from, size, sha256 } = content?;
        Some(Further { name: name?, from, size, sha256 })
    }

    fn url(&mut self, node: &Node) -> Option<Source> {
        let text = self.scalar(node, "url")?;
        if text.starts_with("oci://") || text.starts_with("oci+http://") {
            let right = "write oci://, a registry, and a repository there";
            return self.taken(node.at, text.parse(), right).map(Source::Registry);
        }
        // A name and a password in a URL would stand in logs.
        let right = "write https://, http:// or oci://, a host without a user's name, and a path";
        self.taken(node.at, text.parse(), right).map(Source::Web)
    }

    fn file(&mut self, node: &Node) -> Option<String> {
        let text = self.scalar(node, "file")?;
        let plain = |part: &str| is_fleet_name(part) && !part.starts_with('.');
        if text.len() <= limits::FLEET_URL_BYTES && text.split('/').all(plain) {
            return Some(text);
        }
        let right = "write the name of a file in the folder of the bundle, or in a folder below it";
        self.problem(node.at, "`file` leads elsewhere", right);
        None
    }

    fn signature(&mut self, node: &Node) -> Option<String> {
        let text = self.scalar(node, "signature")?;
        let size = text.len();
        if text.trim_end().lines().count() == 4 && size <= limits::FLEET_SIGNATURE_BYTES {
            return Some(text.trim_end().to_owned());
        }
        let what = format!("`signature` has {} and no four lines", ByteSize(size as u64));
        self.problem(
            node.at,
            what,
            "write the contents of the .minisig file behind `signature: |`",
        );
        None
    }
}

const FILE_NAME: &str = "write a name of letters, digits, dots, dashes and underscores, as the \
                         model has it; calibration.npz may come along, policy.yaml and further \
                         models may not";

/// Whether a file of this name may lie beside a model's own.
fn check_file_name(name: &str) -> Result<(), String> {
    let shown: String = name.chars().take(limits::FLEET_NAME_BYTES).collect();
    if !is_fleet_name(name) || name.starts_with('.') {
        return Err(format!("{shown:?} is no plain name of a file"));
    }
    let lower = name.to_ascii_lowercase();
    let taken = lower.ends_with(".onnx") || lower == "policy.yaml";
    if taken || (lower == SAMPLES_FILE && name != SAMPLES_FILE) {
        return Err(format!("{shown:?} is a name that means something else here"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::Document;

    const SUM: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    fn read(models: &str) -> Result<Vec<Artifact>, String> {
        let text = format!(
            "fleet: 1\nrevision: 1\nexpires: 2096-01-01T00:00:00Z\nfor: all\nmodels:\n{models}\n"
        );
        let read = Document::parse("b", &text);
        read.map(|document| document.models).map_err(|errors| errors.to_string())
    }

    fn from(url: &str) -> Result<Source, String> {
        let line = format!("- {{name: m, version: 1, url: '{url}', size: 3, sha256: {SUM}}}");
        read(&line).map(|mut models| models.remove(0).from)
    }

    #[test]
    fn a_model_lies_on_a_web_server_in_a_registry_or_beside_the_bundle() {
        let Ok(Source::Web(address)) = from("https://depot.example:8443/m?v=3") else { panic!() };
        assert!(address.tls);
        assert!(matches!(from("http://depot/m"), Ok(Source::Web(address)) if !address.tls));
        assert!(matches!(from("oci://registry.example/models/m:3"), Ok(Source::Registry(_))));
        for (url, what) in [
            ("ftp://depot/m", "begins with https://"),
            ("https://me:letmein@depot/m", "credentials"),
            ("oci://registry.example", "no repository"),
        ] {
            let said = from(url).unwrap_err();
            assert!(said.contains(what) && !said.contains("letmein"), "{said}");
        }
    }

    fn with_file(name: &str) -> Result<Vec<Artifact>, String> {
        read(&format!(
            "- name: m\n  version: 1\n  file: m.onnx\n  size: 3\n  sha256: {SUM}\n  files:\n  \
             - {{name: '{name}', file: w, size: 4, sha256: {SUM}}}"
        ))
    }

    #[test]
    fn further_files_have_plain_names_that_mean_nothing_else() {
        for name in ["weights.bin", "model.onnx.data", "model.onnx_data_1", "calibration.npz"] {
            let models = with_file(name).unwrap();
            let names: Vec<&str> = models[0].pieces().map(|piece| piece.name).collect();
            assert_eq!(names, ["model.onnx", name]);
        }
        for name in [
            "../weights.bin",
            "a/b",
            "/etc/passwd",
            "..",
            ".hidden",
            "",
            "a\\b",
            "model.onnx",
            "MODEL.ONNX",
            "other.onnx",
            "policy.yaml",
            "Calibration.npz",
        ] {
            assert!(with_file(name).unwrap_err().contains("b:12:"), "{name}");
        }
    }

    #[test]
    fn a_further_file_says_all_of_itself_and_stands_once() {
        let models = |files: &str| {
            read(&format!(
                "- {{name: m, version: 1, file: m, size: 3, sha256: {SUM}, files: {files}}}"
            ))
        };
        let whole = format!("{{name: w, file: w, size: 4, sha256: {SUM}}}");
        assert!(models(&format!("[{whole}]")).is_ok());
        for (files, what) in [
            (format!("[{whole}, {whole}]"), "stands twice"),
            (whole.clone(), "not a list"),
            (format!("[{{name: w, size: 4, sha256: {SUM}}}]"), "one of `url` and `file`"),
            (format!("[{{name: w, file: w, sha256: {SUM}}}]"), "has no `size`"),
            ("[{name: w, file: w, size: 4}]".to_owned(), "has no `sha256`"),
            (format!("[{{name: w, file: ../w, size: 4, sha256: {SUM}}}]"), "leads elsewhere"),
        ] {
            let said = models(&files).unwrap_err();
            assert!(said.contains(what), "{said}");
        }
    }
}
