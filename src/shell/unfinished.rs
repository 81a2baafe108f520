//! How far the ladder in a folder is: a hidden file beside the rungs that names what is finished, with the hash
//! of each file, and under what conditions. A rung counts as finished once this file says so; it is written
//! after the rung's own files, and removed when the manifest takes its place.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::files;
use super::models::{self, LoadError};
use super::store::seal;
use crate::ladder::task::SoFar;
use crate::units::Digest;

/// The file's name. Hidden: it is no part of a ladder.
pub const UNFINISHED_FILE: &str = ".unfinished";

/// What is finished in a folder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Unfinished {
    /// See `ladder::resume::conditions`.
    pub conditions: Digest,
    /// Calibration samples that were used, of those that were given.
    pub samples: usize,
    pub so_far: SoFar,
    /// BLAKE3 of the rungs' files by name, external data included.
    pub files: BTreeMap<String, Digest>,
}

impl Unfinished {
    /// Nothing is finished yet.
    pub fn new(conditions: Digest, samples: usize) -> Self {
        Self { conditions, samples, so_far: SoFar::default(), files: BTreeMap::new() }
    }
}

/// What is finished in `dir` under these conditions. Of rungs that are not what was written, or not there,
/// the first one ends it: those behind build on it.
pub fn read(dir: &Path, conditions: &Digest) -> Option<Unfinished> {
    let bytes = std::fs::read(dir.join(UNFINISHED_FILE)).ok()?;
    let mut found: Unfinished = seal::open(&bytes)
        .inspect_err(|damage| tracing::warn!("an unfinished ladder is made anew: {damage}"))
        .ok()?;
    if found.conditions != *conditions {
        return None;
    }
    let is_whole = |name: &str| {
        found.files.get(name).is_some_and(|told| hash(&dir.join(name)).is_ok_and(|is| is == *told))
    };
    let whole = |file: &str| {
        let data = data_of(file);
        is_whole(file) && (!found.files.contains_key(&data) || is_whole(&data))
    };
    let sound = found.so_far.finished.iter().take_while(|one| whole(&one.rung.file)).count();
    if let Some(lost) = found.so_far.finished.get(sound) {
        tracing::warn!("{} is not what was written; it is made anew", lost.rung.file);
        let reached = lost.rung.asked;
        found.so_far.finished.truncate(sound);
        found.so_far.not_built.retain(|missed| missed.asked > reached);
    }
    let kept: Vec<String> = found.so_far.finished.iter().map(|one| one.rung.file.clone()).collect();
    found.files.retain(|name, _| kept.iter().any(|file| name == file || *name == data_of(file)));
    Some(found)
}

/// Says in `dir` what is finished there.
///
/// # Errors
/// Where it cannot be written; what was said before then stands.
pub fn write(dir: &Path, unfinished: &Unfinished) -> io::Result<()> {
    let bytes = seal::seal(unfinished).map_err(io::Error::other)?;
    files::replace(&dir.join(UNFINISHED_FILE), &[bytes.into()])
}

/// The ladder in `dir` is finished, or begun anew.
///
/// # Errors
/// Where the file is there and cannot be removed.
pub fn remove(dir: &Path) -> io::Result<()> {
    match std::fs::remove_file(dir.join(UNFINISHED_FILE)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Hashes of a model's file in `dir` and of its external data.
///
/// # Errors
/// Where a file cannot be read.
pub fn hashes(dir: &Path, file: &str) -> Result<BTreeMap<String, Digest>, LoadError> {
    let external = models::external_files(&dir.join(file))?;
    let names = external.into_iter().chain([file.to_owned()]);
    names
        .map(|name| {
            let path = dir.join(&name);
            let found = hash(&path).map_err(|source| LoadError::Io { path, source })?;
            Ok((name, found))
        })
        .collect()
}

/// The name under which [`models::save`] puts a model's external data.
fn data_of(file: &str) -> String {
    Path::new(file).with_extension("data").to_string_lossy().into_owned()
}

fn hash(path: &Path) -> io::Result<Digest> {
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(File::open(path)?)?;
    Ok(Digest::from_bytes(*hasher.finalize().as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ladder::manifest::{Figures, NotBuilt, Rung};
    use crate::ladder::plan::Plan;
    use crate::ladder::task::{Finished, Step};

    fn finished(asked: f64) -> Finished {
        let rung = Rung {
            in_two: Vec::new(),
            substituted: Vec::new(),
            name: format!("r{asked}"),
            asked,
            file: format!("r{asked}.onnx"),
            digest: Digest::of(b"rung"),
            figures: Figures::default(),
            cuts: vec![],
            bypassed: vec![],
            repairs: vec![],
            nested: None,
        };
        let plan = Plan {
            widths: [(crate::coupling::GroupId(3), 8)].into(),
            bypass: [1].into(),
            ranks: [(2, 16)].into(),
        };
        Finished { rung, step: Step { plan, needed: 12.5, ratio: 0.1 + 0.2 } }
    }

    /// Two rungs, and one between them that was not built.
    fn half(dir: &Path) -> Unfinished {
        let rungs = [finished(0.75), finished(0.5)];
        let mut files = BTreeMap::new();
        for one in &rungs {
            std::fs::write(dir.join(&one.rung.file), &one.rung.name).unwrap();
            files.insert(one.rung.file.clone(), Digest::of(one.rung.name.as_bytes()));
        }
        let missed = NotBuilt { asked: 0.6, because: "x".to_owned(), reachable: None };
        let so_far = SoFar {
            dense: Figures { p50_us: 100.0 / 3.0, ..Figures::default() },
            finished: rungs.to_vec(),
            not_built: vec![missed],
        };
        let unfinished = Unfinished { conditions: Digest::of(b"a"), samples: 7, so_far, files };
        write(dir, &unfinished).unwrap();
        unfinished
    }

    #[test]
    fn what_was_finished_comes_back_to_the_last_bit_and_only_under_its_conditions() {
        let dir = tempfile::tempdir().unwrap();
        let written = half(dir.path());
        assert_eq!(read(dir.path(), &Digest::of(b"a")), Some(written));
        assert_eq!(read(dir.path(), &Digest::of(b"b")), None);
        remove(dir.path()).unwrap();
        assert_eq!(read(dir.path(), &Digest::of(b"a")), None);
        remove(dir.path()).unwrap();
    }

    #[test]
    fn a_rung_whose_file_is_half_or_gone_is_not_finished_nor_is_what_builds_on_it() {
        for (file, left) in [("r0.75.onnx", 0), ("r0.5.onnx", 1)] {
            for half_of_it in [Some("r0."), None] {
                let dir = tempfile::tempdir().unwrap();
                half(dir.path());
                let path = dir.path().join(file);
                match half_of_it {
                    Some(bytes) => std::fs::write(path, bytes).unwrap(),
                    None => std::fs::remove_file(path).unwrap(),
                }
                let found = read(dir.path(), &Digest::of(b"a")).unwrap();
                assert_eq!((found.so_far.finished.len(), found.files.len()), (left, left));
                assert_eq!(found.so_far.not_built.len(), left, "0.6 came after 0.75");
            }
        }
    }

    #[test]
    fn half_a_record_is_none() {
        let dir = tempfile::tempdir().unwrap();
        half(dir.path());
        let path = dir.path().join(UNFINISHED_FILE);
        let bytes = std::fs::read(&path).unwrap();
        for end in [0, 1, bytes.len() / 2, bytes.len() - 1] {
            std::fs::write(&path, &bytes[..end]).unwrap();
            assert_eq!(read(dir.path(), &Digest::of(b"a")), None, "{end} bytes");
        }
    }
}
