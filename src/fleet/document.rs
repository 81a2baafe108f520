//! What a bundle says: a YAML text → its parts, every error at once with line and column.
//!
//! ```yaml
//! fleet: 1                          # the form of this document
//! revision: 42                      # above every one before
//! expires: 2026-12-31T00:00:00Z     # not begun after that
//! for:                              # or `all`
//!   nodes: [box-17, box-18]
//!   labels: {site: [berlin, hamburg]}
//!   percent: 25
//!   salt: spring
//! config:                           # laid over the box's own files, and in place of the last bundle's
//!   defaults: {budget: {p99: 40ms}}
//! models:
//!   - {name: ocr, version: 3, url: 'https://depot/ocr-3.onnx', size: 1048576, sha256: …}
//! keys:                             # who signs the bundles after this one
//!   threshold: 2
//!   public: [RWQ…, RWQ…, RWQ…]
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use crate::config::raw::{At, Key as YamlKey, Node, Value, parse};
use crate::config::{ConfigErrors, Origin, Problem, did_you_mean, fleet_problems};
use crate::limits;
use crate::units::is_fleet_name;

use super::artifact::Artifact;
use super::keys::{Key, KeySet};
use super::select::{Selector, Share, WHOLE};
use super::time::Timestamp;

/// The form of documents that this program reads.
pub const FORM: u64 = 1;

/// What a bundle says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// At least 1.
    pub revision: u64,
    /// From then on it is not begun.
    pub expires: Timestamp,
    pub selector: Selector,
    /// Settings as they would stand in `agent.yaml`, with their places in the bundle.
    pub config: Option<Node>,
    /// By name, each once.
    pub models: Vec<Artifact>,
    /// Who signs bundles once this one is in force.
    pub keys: Option<KeySet>,
}

impl Document {
    /// Reads a document. `file` is only named in errors.
    ///
    /// # Errors
    /// All that is wrong with it.
    pub fn parse(file: &str, text: &str) -> Result<Self, ConfigErrors> {
        let mut reader = Reader { file: file.into(), problems: Vec::new() };
        let document = reader.document(text);
        reader.problems.sort();
        match document {
            Some(document) if reader.problems.is_empty() => Ok(document),
            Some(_) | None => Err(ConfigErrors(reader.problems)),
        }
    }
}

/// Walks the tree and collects what is wrong.
pub(super) struct Reader {
    file: Arc<str>,
    problems: Vec<Problem>,
}

/// The entries of a map, taken out one by one.
pub(super) struct Entries {
    pub(super) at: At,
    name: String,
    left: Vec<(YamlKey, Node)>,
}

impl Reader {
    pub(super) fn problem(&mut self, at: At, what: impl Into<String>, right: impl Into<String>) {
        let file = Arc::clone(&self.file);
        let origin = Origin::File { file, line: at.line, column: at.column };
        self.problems.push(Problem { origin, what: what.into(), right: right.into() });
    }

    fn document(&mut self, text: &str) -> Option<Document> {
        let root = match parse(text) {
            Ok(root) => root,
            Err(error) => {
                self.problem(error.at, error.what, "write one YAML document");
                return None;
            }
        };
        let known = ["fleet", "revision", "expires", "for", "config", "models", "keys"];
        let mut root = self.map(root, "the document", &known)?;
        self.form(&mut root)?;
        let revision = self.required(&mut root, "revision", "a whole number above the last one");
        let revision = revision.and_then(|node| self.whole(&node, "revision", 1, u64::MAX));
        let expires = self.required(&mut root, "expires", "a moment such as 2026-12-31T00:00:00Z");
        let expires = expires.and_then(|node| {
            let text = self.scalar(&node, "expires")?;
            let read = text.parse::<Timestamp>();
            self.taken(node.at, read, "write a moment such as 2026-12-31T00:00:00Z")
        });
        let selector = self.required(&mut root, "for", "all, or nodes, labels or a percentage");
        let selector = selector.and_then(|node| self.selector(node));
        let config = root.take("config").map(|(_, node)| node);
        if let Some(config) = &config {
            self.problems.extend(fleet_problems(&self.file, config));
        }
        let models = root.take("models").map(|(_, node)| self.models(node)).unwrap_or_default();
        let keys = root.take("keys").and_then(|(_, node)| self.keys(node));
        let (revision, expires, selector) = (revision?, expires?, selector?);
        Some(Document { revision, expires, selector, config, models, keys })
    }

    /// A document of another form is not read any further: its keys may mean something else.
    fn form(&mut self, root: &mut Entries) -> Option<()> {
        let node = self.required(root, "fleet", "1, the form of this document")?;
        let form = self.whole(&node, "fleet", 0, u64::MAX)?;
        if form == FORM {
            return Some(());
        }
        let what = format!("this document has form {form}");
        self.problem(
            node.at,
            what,
            format!("this blochd reads form {FORM}: write that, or update it"),
        );
        None
    }

    /// The entries of a map with no other keys than `known`, none twice.
    pub(super) fn map(&mut self, node: Node, name: &str, known: &[&str]) -> Option<Entries> {
        let at = node.at;
        let Value::Map(entries) = node.value else {
            self.problem(at, format!("{name} is not a map"), "write `key: value` lines");
            return None;
        };
        let mut left: Vec<(YamlKey, Node)> = Vec::new();
        for (key, node) in entries {
            if !known.is_empty() && !known.contains(&key.text.as_str()) {
                let right = did_you_mean(&key.text, known.iter().copied());
                self.problem(key.at, format!("unknown key `{}`", key.text), right);
            } else if let Some((first, _)) = left.iter().find(|(first, _)| first.text == key.text) {
                let what = format!("`{}` stands here for the second time", key.text);
                let right = format!("the first is in line {}: keep one", first.at.line);
                self.problem(key.at, what, right);
            } else {
                left.push((key, node));
            }
        }
        Some(Entries { at, name: name.to_owned(), left })
    }

    pub(super) fn required(
        &mut self,
        entries: &mut Entries,
        key: &str,
        right: &str,
    ) -> Option<Node> {
        let found = entries.take(key).map(|(_, node)| node);
        if found.is_none() {
            let what = format!("{} has no `{key}`", entries.name);
            self.problem(entries.at, what, format!("write {key}: {right}"));
        }
        found
    }

    pub(super) fn scalar(&mut self, node: &Node, name: &str) -> Option<String> {
        match &node.value {
            Value::Scalar(text) => Some(text.clone()),
            Value::Null | Value::List(_) | Value::Map(_) => {
                self.problem(node.at, format!("`{name}` is not a single value"), "write one value");
                None
            }
        }
    }

    pub(super) fn whole(&mut self, node: &Node, name: &str, least: u64, most: u64) -> Option<u64> {
        let text = self.scalar(node, name)?;
        match text.parse::<u64>() {
            Ok(value) if (least..=most).contains(&value) => Some(value),
            Ok(_) | Err(_) => {
                let right = format!("write a whole number from {least} to {most}");
                self.problem(node.at, format!("`{name}` is {text:?}"), right);
                None
            }
        }
    }

    pub(super) fn taken<T, E: fmt::Display>(
        &mut self,
        at: At,
        read: Result<T, E>,
        right: &str,
    ) -> Option<T> {
        read.map_err(|error| self.problem(at, error.to_string(), right)).ok()
    }

    /// The items of a list, or a single value as a list of one.
    pub(super) fn items(&mut self, node: Node, name: &str, most: usize) -> Vec<Node> {
        let at = node.at;
        let items = match node.value {
            Value::List(items) => items,
            Value::Scalar(_) => vec![node],
            Value::Null => Vec::new(),
            Value::Map(_) => {
                self.problem(at, format!("`{name}` is not a list"), "write a list, such as [a, b]");
                return Vec::new();
            }
        };
        if items.is_empty() {
            self.problem(at, format!("`{name}` is empty"), "write an item, or leave the key out");
        }
        if items.len() > most {
            let what = format!("`{name}` has {} items", items.len());
            self.problem(at, what, format!("write at most {most}"));
            return Vec::new();
        }
        items
    }

    fn names(&mut self, node: Node, name: &str, most: usize) -> BTreeSet<String> {
        let mut names = BTreeSet::new();
        for item in self.items(node, name, most) {
            let Some(text) = self.scalar(&item, name) else { continue };
            if self.name(item.at, &text) {
                names.insert(text);
            }
        }
        names
    }

    fn name(&mut self, at: At, text: &str) -> bool {
        let is_name = is_fleet_name(text);
        if !is_name {
            let short: String = text.chars().take(limits::FLEET_NAME_BYTES).collect();
            let right = "write letters (a-z, A-Z), digits, dots, dashes and underscores";
            self.problem(at, format!("{short:?} is no name of a node or label"), right);
        }
        is_name
    }

    fn selector(&mut self, node: Node) -> Option<Selector> {
        if node.value == Value::Scalar("all".to_owned()) {
            return Some(Selector::default());
        }
        let at = node.at;
        let mut entries = self.map(node, "for", &["nodes", "labels", "percent", "salt"])?;
        if entries.left.is_empty() {
            self.problem(at, "nobody is named", "write for: all if every node is meant");
        }
        let mut selector = Selector::default();
        if let Some((_, nodes)) = entries.take("nodes") {
            selector.nodes = self.names(nodes, "nodes", limits::FLEET_NODES);
        }
        if let Some((_, labels)) = entries.take("labels") {
            selector.labels = self.labels(labels);
        }
        let salt = entries.take("salt");
        match (entries.take("percent"), salt) {
            (None, None) => {}
            (None, Some((key, _))) => {
                self.problem(key.at, "`salt` without `percent`", "write percent: 10");
            }
            (Some((key, _)), None) => {
                let right = "write salt: and a word; later revisions of the same roll-out keep it";
                self.problem(key.at, "`percent` without `salt`", right);
            }
            (Some((_, percent)), Some((_, salt))) => selector.share = self.share(&percent, &salt),
        }
        Some(selector)
    }

    fn labels(&mut self, node: Node) -> BTreeMap<String, BTreeSet<String>> {
        let mut labels = BTreeMap::new();
        let Some(entries) = self.map(node, "labels", &[]) else { return labels };
        if entries.left.is_empty() || entries.left.len() > limits::FLEET_LABELS {
            let what = format!("there are {} labels", entries.left.len());
            self.problem(entries.at, what, format!("write 1 to {}", limits::FLEET_LABELS));
            return labels;
        }
        for (key, values) in entries.left {
            if self.name(key.at, &key.text) {
                let values = self.names(values, &key.text, limits::FLEET_LABELS);
                labels.insert(key.text, values);
            }
        }
        labels
    }

    fn share(&mut self, percent: &Node, salt: &Node) -> Option<Share> {
        let text = self.scalar(percent, "percent")?;
        let salt_text = self.scalar(salt, "salt")?;
        // More digits than two would be rounded to what is not meant.
        let parts = text.parse::<f64>().ok().map(|percent| percent * 100.0);
        let fits = |parts: &f64| (0.0..=WHOLE as f64).contains(parts);
        let near = |parts: &f64| (parts - parts.round()).abs() < 1e-6;
        let Some(parts) = parts.filter(fits).filter(near) else {
            let right = "write a number from 0 to 100 with at most two decimals";
            self.problem(percent.at, format!("`percent` is {text:?}"), right);
            return None;
        };
        if salt_text.is_empty() || salt_text.len() > limits::FLEET_SALT_BYTES {
            let right = format!("write 1 to {} bytes", limits::FLEET_SALT_BYTES);
            self.problem(salt.at, format!("`salt` has {} bytes", salt_text.len()), right);
            return None;
        }
        Some(Share { parts: parts.round() as u64, salt: salt_text })
    }

    fn keys(&mut self, node: Node) -> Option<KeySet> {
        let mut entries = self.map(node, "keys", &["threshold", "public"])?;
        let at = entries.at;
        let threshold = self.required(&mut entries, "threshold", "how many must sign")?;
        let threshold = self.whole(&threshold, "threshold", 1, limits::FLEET_KEYS as u64)?;
        let public = self.required(&mut entries, "public", "a list of public keys")?;
        let mut keys = Vec::new();
        for item in self.items(public, "public", limits::FLEET_KEYS) {
            let text = self.scalar(&item, "public")?;
            keys.push(self.taken(item.at, Key::parse(&text), "write RW… and 54 letters")?);
        }
        let set = KeySet::new(keys, threshold as usize);
        self.taken(at, set, "correct the list")
    }
}

impl Entries {
    pub(super) fn take(&mut self, key: &str) -> Option<(YamlKey, Node)> {
        let at = self.left.iter().position(|(found, _)| found.text == key)?;
        Some(self.left.remove(at))
    }
}
