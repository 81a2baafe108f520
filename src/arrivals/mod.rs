//! What lies in the model directory + now → settled models. The shell lists the directory on every file
//! event and every so often without one, and shows the whole list here; a version is settled once its
//! files have stayed the same for the settle time. Because the whole list is shown each time, a lost event
//! is made good by the next one.
//!
//! The layout is that which users of Triton know: `<model>/<version>/model.onnx`, with an optional
//! `<model>/policy.yaml` and `<model>/calibration.npz`; a bare `<model>.onnx` is version 1. All that lies
//! in a version's folder belongs to it; to a bare file belong its external data, by name until the file
//! was read ([`Arrivals::depends`]).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::units::{Version, check_model_name};

/// One file as the directory's listing tells.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct FileFact {
    /// Path relative to the model directory, with `/`.
    pub path: String,
    pub size: u64,
    /// Time of the last change, nanoseconds since 1970.
    pub modified_ns: i128,
    /// A file that was replaced by another of the same size has another number.
    pub inode: u64,
}

/// One version of a model.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct VersionKey {
    pub model: String,
    pub version: Version,
}

/// What has come of the files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Arrival {
    /// A version is complete: it is new, or its files changed. `file` is relative to the directory.
    Settled { key: VersionKey, file: String },
    /// A version's model file is gone.
    Removed { key: VersionKey },
    /// A file that looks like a model and stands where none is looked for, and why it is none.
    Misplaced { file: String, why: &'static str },
    /// A model's `policy.yaml` or `calibration.npz` came, changed or went; its contents have settled.
    Companions { model: String },
}

/// What the directory holds, by the layout's rules.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Layout {
    /// Model file and all files that belong to the version.
    versions: BTreeMap<VersionKey, (String, BTreeSet<FileFact>)>,
    companions: BTreeMap<String, BTreeSet<FileFact>>,
    misplaced: BTreeMap<String, (&'static str, BTreeSet<FileFact>)>,
}

/// Watches files settle.
#[derive(Debug, Clone)]
pub struct Arrivals {
    settle: Duration,
    versions: BTreeMap<VersionKey, Watched>,
    companions: BTreeMap<String, Watched>,
    misplaced: BTreeMap<String, Watched>,
    /// What was told and has not been told to be gone since, whatever its files have done meanwhile.
    told: Told,
    /// What bare model files say that they need, by path.
    needs: BTreeMap<VersionKey, BTreeSet<String>>,
    /// The last listing, and since when each file has been as it is.
    seen: BTreeMap<String, (FileFact, Duration)>,
}

#[derive(Debug, Clone, Default)]
struct Told {
    versions: BTreeSet<VersionKey>,
    companions: BTreeSet<String>,
}

#[derive(Debug, Clone)]
struct Watched {
    files: BTreeSet<FileFact>,
    /// Since when they have been the same.
    since: Duration,
    /// When that was told.
    told: Option<Duration>,
}

impl Arrivals {
    /// Versions settle when nothing of theirs has changed for `settle`.
    pub fn new(settle: Duration) -> Self {
        Self {
            settle,
            versions: BTreeMap::new(),
            companions: BTreeMap::new(),
            misplaced: BTreeMap::new(),
            told: Told::default(),
            needs: BTreeMap::new(),
            seen: BTreeMap::new(),
        }
    }

    /// From now on versions settle after that time.
    pub fn set_settle(&mut self, settle: Duration) {
        self.settle = settle;
    }

    /// Takes in a listing of the whole directory. The answer comes in a fixed order, companions first, so
    /// that a policy holds before its model is served.
    pub fn observe(&mut self, files: &[FileFact], now: Duration) -> Vec<Arrival> {
        self.remember(files, now);
        let layout = layout(files, &self.needs);
        let mut arrivals = Vec::new();
        let settle = self.settle;
        for (model, files) in &layout.companions {
            if watch(&mut self.companions, model, files, now, settle) {
                self.told.companions.insert(model.clone());
                arrivals.push(Arrival::Companions { model: model.clone() });
            }
        }
        self.companions.retain(|model, _| layout.companions.contains_key(model));
        self.told.companions.retain(|model| {
            let there = layout.companions.contains_key(model);
            if !there {
                arrivals.push(Arrival::Companions { model: model.clone() });
            }
            there
        });
        for (key, (file, files)) in &layout.versions {
            if watch(&mut self.versions, key, files, now, settle) {
                self.told.versions.insert(key.clone());
                arrivals.push(Arrival::Settled { key: key.clone(), file: file.clone() });
            }
        }
        self.versions.retain(|key, _| layout.versions.contains_key(key));
        self.told.versions.retain(|key| {
            let there = layout.versions.contains_key(key);
            if !there {
                arrivals.push(Arrival::Removed { key: key.clone() });
            }
            there
        });
        for (file, (why, facts)) in &layout.misplaced {
            if watch(&mut self.misplaced, file, facts, now, settle) {
                arrivals.push(Arrival::Misplaced { file: file.clone(), why });
            }
        }
        self.misplaced.retain(|file, _| layout.misplaced.contains_key(file));
        self.needs.retain(|key, _| layout.versions.contains_key(key));
        arrivals
    }

    fn remember(&mut self, files: &[FileFact], now: Duration) {
        let mut seen = BTreeMap::new();
        for fact in files {
            let before = self.seen.remove(&fact.path).filter(|(before, _)| before == fact);
            seen.insert(fact.path.clone(), before.unwrap_or_else(|| (fact.clone(), now)));
        }
        self.seen = seen;
    }

    /// A bare model file was read after it was told, and names these files (paths relative to the model
    /// directory) as its external data: from now on the version changes when one of them does, and at
    /// once where one has changed since the version was told.
    pub fn depends(&mut self, key: &VersionKey, files: BTreeSet<String>) {
        let Some(watched) = self.versions.get_mut(key) else { return };
        let before = self.needs.remove(key).unwrap_or_default();
        watched.files.retain(|fact| !before.contains(&fact.path) || files.contains(&fact.path));
        for (fact, since) in files.iter().filter_map(|path| self.seen.get(path)) {
            if watched.told.is_some_and(|told| *since <= told) {
                watched.files.insert(fact.clone());
            }
        }
        self.needs.insert(key.clone(), files);
    }

    /// When the directory should be listed again for files that are settling; `None` when none are.
    pub fn next_look(&self) -> Option<Duration> {
        let all = self.versions.values().chain(self.companions.values());
        let all = all.chain(self.misplaced.values());
        all.filter(|watched| watched.told.is_none())
            .map(|watched| watched.since + self.settle)
            .min()
    }

    /// Whether the last listing held any version of a model.
    pub fn knows(&self, model: &str) -> bool {
        self.versions.keys().any(|key| key.model == model)
    }

    /// The versions of the last listing.
    pub fn versions(&self) -> impl Iterator<Item = &VersionKey> {
        self.versions.keys()
    }

    /// Whether a version's files still have to rest before it is told.
    pub fn is_settling(&self, key: &VersionKey) -> bool {
        self.versions.get(key).is_some_and(|watched| watched.told.is_none())
    }

    /// Tells all versions of a model again as soon as they are settled, as if they had just come; one that has
    /// gone meanwhile is still told as gone.
    pub fn forget(&mut self, model: &str) {
        for (_, watched) in self.versions.iter_mut().filter(|(key, _)| key.model == model) {
            // No version is without files: the next listing shows a change.
            watched.files.clear();
        }
    }
}

/// Whether the files of `key` have just settled.
fn watch<K: Ord + Clone>(
    all: &mut BTreeMap<K, Watched>,
    key: &K,
    files: &BTreeSet<FileFact>,
    now: Duration,
    settle: Duration,
) -> bool {
    let fresh = || Watched { files: files.clone(), since: now, told: None };
    let watched = all.entry(key.clone()).or_insert_with(fresh);
    if watched.files != *files {
        *watched = fresh();
    }
    let settled = watched.told.is_none() && now.saturating_sub(watched.since) >= settle;
    if settled {
        watched.told = Some(now);
    }
    settled
}

fn layout(files: &[FileFact], needs: &BTreeMap<VersionKey, BTreeSet<String>>) -> Layout {
    let mut layout = Layout::default();
    let mut beside: BTreeMap<VersionKey, BTreeSet<FileFact>> = BTreeMap::new();
    for fact in files {
        let parts: Vec<&str> = fact.path.split('/').collect();
        if parts.iter().any(|part| is_temporary(part)) {
            continue;
        }
        if let Some(why) = out_of_place(&parts) {
            let facts = BTreeSet::from([fact.clone()]);
            layout.misplaced.insert(fact.path.clone(), (why, facts));
        }
        match parts.as_slice() {
            [file] => {
                if let Some(model) = file.strip_suffix(".onnx").filter(|name| is_name(name)) {
                    let key = VersionKey { model: model.to_owned(), version: Version(1) };
                    // A directory of the same name has the last word.
                    let entry = (fact.path.clone(), BTreeSet::from([fact.clone()]));
                    layout.versions.entry(key).or_insert(entry);
                }
            }
            [model, "policy.yaml" | "calibration.npz"] if is_name(model) => {
                layout.companions.entry((*model).to_owned()).or_default().insert(fact.clone());
            }
            [model, version, rest @ ..] if is_name(model) && !rest.is_empty() => {
                let Some(version) = version_of(version) else { continue };
                let key = VersionKey { model: (*model).to_owned(), version };
                beside.entry(key.clone()).or_default().insert(fact.clone());
                if rest == ["model.onnx"] {
                    layout.versions.insert(key, (fact.path.clone(), BTreeSet::new()));
                }
            }
            _ => {}
        }
    }
    // Further models in a version's folder are its own business.
    let of_a_version = |file: &str| {
        let key = file.split('/').collect::<Vec<_>>();
        let [model, version, _] = key.as_slice() else { return false };
        version_of(version).is_some_and(|version| {
            let key = VersionKey { model: (*model).to_owned(), version };
            layout.versions.get(&key).is_some_and(|(file, _)| file.contains('/'))
        })
    };
    let misplaced = std::mem::take(&mut layout.misplaced);
    layout.misplaced = misplaced.into_iter().filter(|(file, _)| !of_a_version(file)).collect();
    for (key, (file, own)) in &mut layout.versions {
        if file.contains('/') {
            own.extend(beside.remove(key).unwrap_or_default());
        } else {
            let needed = needs.get(key);
            let belongs = |fact: &&FileFact| {
                is_data_of(&fact.path, file) || needed.is_some_and(|all| all.contains(&fact.path))
            };
            own.extend(files.iter().filter(belongs).cloned());
        }
    }
    layout
}

/// Whether `path` is called as exporters call the external data of the bare model `file`:
/// `m.onnx.data`, `m.onnx_data`, `m.onnx_data_1`.
fn is_data_of(path: &str, file: &str) -> bool {
    let rest = path.strip_prefix(file).filter(|_| !is_temporary(path));
    rest.is_some_and(|rest| rest.starts_with(['.', '_']) && !rest.contains('/'))
}

/// Why a file that ends in `.onnx` is not the file of a version; `None` where it is, or is no model.
fn out_of_place(parts: &[&str]) -> Option<&'static str> {
    const NAME: &str = "a model's name has up to 128 letters, digits, '.', '_' and '-', and does \
                        not begin with '.'";
    let file = parts.last()?;
    let name = file.strip_suffix(".onnx")?;
    match parts {
        [_] => (!is_name(name)).then_some(NAME),
        [model, _] if is_name(model) => Some("a model's file is <model>/<version>/model.onnx"),
        [model, version, _] if is_name(model) => match (version_of(version), *file) {
            (Some(_), "model.onnx") => None,
            (Some(_), _) => Some("the file in a version's folder is called model.onnx"),
            (None, _) => Some("a version is a number from 1 on, without leading zeros"),
        },
        [_, _] | [_, _, _] => Some(NAME),
        _ => None,
    }
}

/// Digits without a leading zero, at least 1.
fn version_of(text: &str) -> Option<Version> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit()) && !text.starts_with('0');
    text.parse().ok().filter(|_| plain).map(Version)
}

/// Names that can stand in a URL, a file name and a metric's label as they are.
pub fn is_name(name: &str) -> bool {
    check_model_name(name).is_ok()
}

/// What editors and copying programs write first.
fn is_temporary(name: &str) -> bool {
    let ends = [".tmp", ".part", ".partial", ".swp", ".crdownload", "~"];
    name.starts_with('.') || ends.iter().any(|end| name.ends_with(end))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fact(path: &str, size: u64) -> FileFact {
        FileFact { path: path.to_owned(), size, modified_ns: 0, inode: size }
    }

    fn at(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn settled(model: &str, version: u64, file: &str) -> Arrival {
        let key = VersionKey { model: model.to_owned(), version: Version(version) };
        Arrival::Settled { key, file: file.to_owned() }
    }

    #[test]
    fn a_file_that_grows_is_told_once_after_it_has_rested() {
        let mut arrivals = Arrivals::new(at(500));
        for (ms, size) in [(0, 10), (300, 20), (600, 30), (900, 30)] {
            assert_eq!(arrivals.observe(&[fact("m.onnx", size)], at(ms)), []);
        }
        assert_eq!(arrivals.next_look(), Some(at(1100)));
        let told = arrivals.observe(&[fact("m.onnx", 30)], at(1100));
        assert_eq!(told, [settled("m", 1, "m.onnx")]);
        assert_eq!(arrivals.observe(&[fact("m.onnx", 30)], at(9000)), []);
        assert_eq!(arrivals.next_look(), None);
    }

    #[test]
    fn external_data_beside_the_model_holds_it_back_until_it_is_complete() {
        let mut arrivals = Arrivals::new(at(500));
        let model = fact("m/2/model.onnx", 5);
        arrivals.observe(&[model.clone(), fact("m/2/weights.bin", 1)], at(0));
        assert_eq!(arrivals.observe(&[model.clone(), fact("m/2/weights.bin", 9)], at(500)), []);
        let told = arrivals.observe(&[model, fact("m/2/weights.bin", 9)], at(1000));
        assert_eq!(told, [settled("m", 2, "m/2/model.onnx")]);
    }

    #[test]
    fn a_bare_model_changes_with_its_external_data() {
        let bare = [settled("m", 1, "m.onnx")];
        let key = VersionKey { model: "m".to_owned(), version: Version(1) };
        let model = fact("m.onnx", 5);
        let mut arrivals = Arrivals::new(at(500));
        // By the name that exporters give it, even before the model was read.
        let named = |size| [model.clone(), fact("m.onnx.data", size), fact("other.bin", size)];
        arrivals.observe(&named(1), at(0));
        assert_eq!(arrivals.observe(&named(2), at(500)), []);
        assert_eq!(arrivals.observe(&named(2), at(1000)), bare);
        assert_eq!(arrivals.observe(&[model.clone(), named(2)[1].clone()], at(1001)), []);
        // By what the model says.
        let mut arrivals = Arrivals::new(at(500));
        let needed = |size| [model.clone(), fact("data/w.bin", size), fact("other.bin", size)];
        let needs = || BTreeSet::from(["data/w.bin".to_owned()]);
        arrivals.observe(&needed(1), at(0));
        assert_eq!(arrivals.observe(&needed(1), at(500)), bare);
        arrivals.depends(&key, needs());
        assert_eq!(arrivals.observe(&needed(1), at(9000)), [], "nothing has changed");
        assert_eq!(arrivals.observe(&needed(2), at(9100)), []);
        assert_eq!(arrivals.observe(&needed(2), at(9600)), bare);
        arrivals.depends(&key, needs());
        assert_eq!(arrivals.observe(&needed(2), at(9700)), []);
        // Data that goes, and comes back, is a change as well.
        arrivals.observe(std::slice::from_ref(&model), at(10_000));
        assert_eq!(arrivals.observe(std::slice::from_ref(&model), at(10_500)), bare);
        assert_eq!(arrivals.observe(&needed(2), at(11_000)), []);
        assert_eq!(arrivals.observe(&needed(2), at(11_500)), bare);
    }

    #[test]
    fn external_data_that_changed_while_its_model_was_read_is_seen() {
        let key = VersionKey { model: "m".to_owned(), version: Version(1) };
        let files = |size| [fact("m.onnx", 5), fact("w.bin", size)];
        let mut arrivals = Arrivals::new(at(500));
        arrivals.observe(&files(1), at(0));
        assert_eq!(arrivals.observe(&files(1), at(500)).len(), 1);
        assert_eq!(arrivals.observe(&files(2), at(600)), [], "it is not known to belong");
        arrivals.depends(&key, BTreeSet::from(["w.bin".to_owned()]));
        arrivals.observe(&files(2), at(700));
        assert_eq!(arrivals.observe(&files(2), at(1200)), [settled("m", 1, "m.onnx")]);
    }

    #[test]
    fn a_version_that_goes_and_one_that_is_replaced_are_told() {
        let mut arrivals = Arrivals::new(at(0));
        assert_eq!(arrivals.observe(&[fact("m.onnx", 1)], at(0)).len(), 1);
        assert_eq!(arrivals.observe(&[fact("m.onnx", 2)], at(1)), [settled("m", 1, "m.onnx")]);
        let key = VersionKey { model: "m".to_owned(), version: Version(1) };
        assert_eq!(arrivals.observe(&[], at(2)), [Arrival::Removed { key }]);
    }

    #[test]
    fn what_goes_before_its_change_has_settled_is_told_to_be_gone() {
        let key = VersionKey { model: "m".to_owned(), version: Version(1) };
        let companions = Arrival::Companions { model: "m".to_owned() };
        let files = |size| [fact("m/1/model.onnx", size), fact("m/policy.yaml", size)];
        let gone = [companions.clone(), Arrival::Removed { key: key.clone() }];
        let mut arrivals = Arrivals::new(at(500));
        arrivals.observe(&files(1), at(0));
        assert_eq!(arrivals.observe(&files(1), at(500)).len(), 2);
        // Written over, and gone while the settle time runs.
        assert_eq!(arrivals.observe(&files(2), at(600)), []);
        assert!(arrivals.is_settling(&key));
        assert_eq!(arrivals.observe(&[], at(700)), gone);
        assert_eq!(arrivals.observe(&[], at(800)), [], "once");
        // What was never told is not told to be gone.
        let mut arrivals = Arrivals::new(at(500));
        arrivals.observe(&files(1), at(0));
        assert_eq!(arrivals.observe(&[], at(100)), []);
    }

    #[test]
    fn a_version_that_goes_while_its_model_is_forgotten_is_told_as_gone() {
        let mut arrivals = Arrivals::new(at(500));
        let files = [fact("m/1/model.onnx", 1), fact("m/2/model.onnx", 1)];
        arrivals.observe(&files, at(0));
        assert_eq!(arrivals.observe(&files, at(500)).len(), 2);
        arrivals.forget("m");
        let key = VersionKey { model: "m".to_owned(), version: Version(2) };
        assert_eq!(arrivals.observe(&files[..1], at(600)), [Arrival::Removed { key }]);
        assert_eq!(arrivals.next_look(), Some(at(1100)));
        let told = arrivals.observe(&files[..1], at(1100));
        assert_eq!(told, [settled("m", 1, "m/1/model.onnx")]);
        // Another settle time holds for what is settling already.
        arrivals.forget("m");
        assert_eq!(arrivals.observe(&files[..1], at(1200)), []);
        arrivals.set_settle(at(50));
        assert_eq!(arrivals.next_look(), Some(at(1250)));
        assert_eq!(arrivals.observe(&files[..1], at(1250)).len(), 1);
    }

    #[test]
    fn a_policy_is_told_before_the_model_and_again_when_it_goes() {
        let mut arrivals = Arrivals::new(at(0));
        let files = [fact("m/1/model.onnx", 1), fact("m/policy.yaml", 1)];
        let told = arrivals.observe(&files, at(0));
        let companions = Arrival::Companions { model: "m".to_owned() };
        assert_eq!(told, [companions.clone(), settled("m", 1, "m/1/model.onnx")]);
        assert_eq!(arrivals.observe(&files[..1], at(1)), [companions]);
    }

    #[test]
    fn what_is_no_model_is_passed_over() {
        let mut arrivals = Arrivals::new(at(0));
        for path in [
            ".m.onnx",
            "m.onnx.part",
            "m.onnx.tmp",
            "m.onnx~",
            "m/1/.tmp/model.onnx",
            "readme.txt",
            "m/notes.txt",
            "m/1/sub/model.onnx",
        ] {
            assert_eq!(arrivals.observe(&[fact(path, 1)], at(0)), [], "{path:?}");
        }
    }

    #[test]
    fn a_model_where_none_is_looked_for_is_told_once() {
        let mut arrivals = Arrivals::new(at(500));
        for (path, word) in [
            ("a b.onnx", "name"),
            ("ä.onnx", "name"),
            ("a b/1/model.onnx", "name"),
            ("m/model.onnx", "<version>"),
            ("m/0/model.onnx", "number"),
            ("m/01/model.onnx", "number"),
            ("m/x/model.onnx", "number"),
            ("m/1/other.onnx", "model.onnx"),
        ] {
            assert_eq!(arrivals.observe(&[fact(path, 1)], at(0)), [], "{path}");
            let told = arrivals.observe(&[fact(path, 1)], at(500));
            let [Arrival::Misplaced { file, why }] = told.as_slice() else { panic!("{told:?}") };
            assert!(file == path && why.contains(word), "{path}: {why}");
            assert_eq!(arrivals.observe(&[fact(path, 1)], at(9000)), []);
            assert_eq!(arrivals.next_look(), None);
            arrivals.observe(&[], at(9000));
        }
        // Beside the file of its version it is one of its parts.
        let files = [fact("m/1/model.onnx", 1), fact("m/1/part.onnx", 1)];
        arrivals.observe(&files, at(0));
        assert_eq!(arrivals.observe(&files, at(500)), [settled("m", 1, "m/1/model.onnx")]);
    }
}
