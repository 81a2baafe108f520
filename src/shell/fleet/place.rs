//! A bundle's models in their places: `<model>/<N>/model.onnx` in the model directory and what belongs to it
//! beside it, whole or not at all.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use crate::fleet::Artifact;
use crate::fleet::apply::Placed;
use crate::shell::files;

use super::fetch::{hash, whole};

/// What the agent passes over, and what is left of an interrupted placing or removing.
fn hidden(models: &Path, placed: &Placed, what: &str) -> PathBuf {
    models.join(&placed.name).join(format!(".fleet-{what}-{}", placed.version))
}

fn folder(models: &Path, placed: &Placed) -> PathBuf {
    models.join(&placed.name).join(placed.version.to_string())
}

fn of(artifact: &Artifact) -> Placed {
    Placed { name: artifact.name.clone(), version: artifact.version }
}

fn failed(doing: &str, path: &Path, error: &io::Error) -> String {
    format!("cannot {doing} {}: {error}", path.display())
}

/// Which of the artifacts lie in their places, with the same contents.
///
/// # Errors
/// Where a place is taken by something else, or a newer version is there that would be served instead.
pub fn there(models: &Path, artifacts: &[Artifact]) -> Result<Vec<Placed>, String> {
    let mut there = Vec::new();
    for artifact in artifacts {
        let placed = of(artifact);
        let (name, version) = (&artifact.name, artifact.version);
        if let Some(newer) = newest(&models.join(name)).filter(|newest| *newest > version.0) {
            return Err(format!(
                "{name} has version {newer} here, which would be served instead of {version}: \
                 send it under a higher number"
            ));
        }
        if models.join(format!("{name}.onnx")).exists() && version.0 == 1 {
            return Err(format!("{name}.onnx is version 1 of {name} here: send a higher number"));
        }
        let folder = folder(models, &placed);
        if fs::symlink_metadata(&folder).is_err() {
            continue;
        }
        if !is_there(&folder, artifact) {
            return Err(format!(
                "{} is there with other contents: send it under another number",
                folder.display()
            ));
        }
        there.push(placed);
    }
    Ok(there)
}

/// The highest version of a model.
fn newest(model: &Path) -> Option<u64> {
    let entries = fs::read_dir(model).ok()?;
    let number = |entry: fs::DirEntry| entry.file_name().to_str()?.parse::<u64>().ok();
    entries.flatten().filter_map(number).max()
}

fn is_there(folder: &Path, artifact: &Artifact) -> bool {
    let never = AtomicBool::new(false);
    artifact.pieces().all(|piece| {
        let found = hash(&folder.join(piece.name), &never);
        found.is_ok_and(|found| found == (piece.sha256, piece.size))
    })
}

/// Lays the files of an artifact, which lie whole in `from`, into a folder by their own names. What was there
/// before goes.
///
/// # Errors
/// Where that cannot be done, or one of them is not what the bundle says.
pub fn lay_together(folder: &Path, from: &Path, artifact: &Artifact) -> Result<(), String> {
    clear(folder)?;
    fs::create_dir_all(folder).map_err(|error| failed("make", folder, &error))?;
    for piece in artifact.pieces() {
        let (source, file) = (whole(from, &piece), folder.join(piece.name));
        let linked = fs::hard_link(&source, &file).or_else(|_| fs::copy(&source, &file).map(drop));
        linked.map_err(|error| failed("write", &file, &error))?;
    }
    if !is_there(folder, artifact) {
        clear(folder)?;
        let (name, version) = (&artifact.name, artifact.version);
        return Err(format!("{name} version {version} is no longer what was fetched"));
    }
    let readable = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode));
    let lasting = artifact.pieces().try_for_each(|piece| {
        let file = folder.join(piece.name);
        readable(&file, 0o644).and_then(|()| File::open(&file)?.sync_all())
    });
    let lasting = lasting.and_then(|()| readable(folder, 0o755));
    let lasting = lasting.and_then(|()| files::sync_dir(folder));
    lasting.map_err(|error| failed("write", folder, &error))
}

/// Puts artifacts, which lie whole in `from`, in their places. Those that are there stay.
///
/// # Errors
/// Where one cannot be put there; others may have been.
pub fn place(models: &Path, from: &Path, artifacts: &[Artifact]) -> Result<(), String> {
    artifacts.iter().try_for_each(|artifact| place_one(models, from, artifact))
}

fn place_one(models: &Path, from: &Path, artifact: &Artifact) -> Result<(), String> {
    let placed = of(artifact);
    let folder = folder(models, &placed);
    if is_there(&folder, artifact) {
        return Ok(());
    }
    let new = hidden(models, &placed, "new");
    // What the agent was shown in the trial, and nothing else.
    lay_together(&new, from, artifact)?;
    let model = models.join(&placed.name);
    let lasting = fs::rename(&new, &folder)
        .and_then(|()| files::sync_dir(&model))
        .and_then(|()| files::sync_dir(models));
    lasting.map_err(|error| failed("put in place", &folder, &error))
}

/// Takes versions away. Those that are not there are fine, and what interrupted work has left goes, too.
///
/// # Errors
/// Where one cannot be taken away; others may have been.
pub fn remove(models: &Path, placed: &[Placed]) -> Result<(), String> {
    for one in placed {
        let (folder, gone) = (folder(models, one), hidden(models, one, "gone"));
        clear(&hidden(models, one, "new"))?;
        clear(&gone)?;
        match fs::rename(&folder, &gone) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(failed("take away", &folder, &error)),
        }
        let model = models.join(&one.name);
        files::sync_dir(&model).map_err(|error| failed("sync", &model, &error))?;
        clear(&gone)?;
        // The folder of a model that came with the bundle is empty now; one that is not stays.
        let _ = fs::remove_dir(&model);
    }
    Ok(())
}

fn clear(path: &Path) -> Result<(), String> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(failed("remove", path, &error))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use sha2::Digest as _;

    use super::*;
    use crate::fleet::{Further, Piece, Sha256, Source};
    use crate::units::Version;

    fn artifact(name: &str, version: u64, bytes: &[u8]) -> Artifact {
        Artifact {
            name: name.into(),
            version: Version(version),
            from: Source::File("f".into()),
            size: bytes.len() as u64,
            sha256: Sha256(sha2::Sha256::digest(bytes).into()),
            signature: None,
            files: Vec::new(),
        }
    }

    fn piece(artifact: &Artifact, at: usize) -> Piece<'_> {
        artifact.pieces().nth(at).unwrap()
    }

    /// A model directory and one with artifacts that were fetched.
    fn box_with(artifacts: &[(&Artifact, &[u8])]) -> (tempfile::TempDir, PathBuf, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let (models, from) = (dir.path().join("models"), dir.path().join("artifacts"));
        fs::create_dir(&models).unwrap();
        fs::create_dir(&from).unwrap();
        for (artifact, bytes) in artifacts {
            fs::write(whole(&from, &piece(artifact, 0)), bytes).unwrap();
        }
        (dir, models, from)
    }

    #[test]
    fn versions_are_put_in_place_once_and_taken_away_again() {
        let (a, b) = (artifact("a", 2, b"two"), artifact("b", 1, b"one"));
        let (_dir, models, from) = box_with(&[(&a, b"two"), (&b, b"one")]);
        fs::create_dir_all(models.join("a/1")).unwrap();
        fs::write(models.join("a/1/model.onnx"), "old").unwrap();
        let both = [a.clone(), b.clone()];
        assert_eq!(there(&models, &both), Ok(vec![]));
        place(&models, &from, &both).unwrap();
        assert_eq!(fs::read(models.join("a/2/model.onnx")).unwrap(), b"two");
        assert_eq!(there(&models, &both), Ok(vec![of(&a), of(&b)]));
        // Again, and with the artifacts gone.
        fs::remove_dir_all(&from).unwrap();
        place(&models, &from, &both).unwrap();
        for _ in 0..2 {
            remove(&models, &[of(&a), of(&b)]).unwrap();
            assert!(!models.join("a/2").exists() && !models.join("b").exists());
            assert_eq!(fs::read(models.join("a/1/model.onnx")).unwrap(), b"old");
        }
    }

    #[test]
    fn a_place_that_is_taken_and_a_newer_version_are_told_before_anything_is_done() {
        let two = artifact("a", 2, b"two");
        let (_dir, models, _from) = box_with(&[(&two, b"two")]);
        fs::create_dir_all(models.join("a/2")).unwrap();
        fs::write(models.join("a/2/model.onnx"), "other").unwrap();
        assert!(there(&models, std::slice::from_ref(&two)).unwrap_err().contains("other contents"));
        fs::create_dir_all(models.join("a/10")).unwrap();
        assert!(there(&models, &[two]).unwrap_err().contains("version 10"));
        fs::write(models.join("b.onnx"), "bare").unwrap();
        assert!(there(&models, &[artifact("b", 1, b"x")]).unwrap_err().contains("b.onnx"));
    }

    #[test]
    fn what_is_not_what_was_tried_is_not_put_in_place_and_leftovers_are_cleared() {
        let one = artifact("a", 1, b"one");
        let (_dir, models, from) = box_with(&[(&one, b"ONE")]);
        fs::create_dir_all(models.join("a/.fleet-new-1")).unwrap();
        fs::write(models.join("a/.fleet-new-1/model.onnx"), "half").unwrap();
        assert!(place(&models, &from, std::slice::from_ref(&one)).is_err());
        assert!(!models.join("a/1").exists());
        fs::write(whole(&from, &piece(&one, 0)), "one").unwrap();
        place(&models, &from, &[one]).unwrap();
        assert_eq!(fs::read_dir(models.join("a")).unwrap().count(), 1);
    }

    #[test]
    fn a_version_of_several_files_comes_and_goes_as_one() {
        let data = Further {
            name: "weights.bin".into(),
            from: Source::File("w".into()),
            size: 4,
            sha256: Sha256(sha2::Sha256::digest(b"data").into()),
        };
        let one = Artifact { files: vec![data], ..artifact("a", 1, b"one") };
        let (_dir, models, from) = box_with(&[(&one, b"one")]);
        let all = [one.clone()];
        // Where one of them is missing or not what was signed, there is no version.
        assert!(place(&models, &from, &all).is_err());
        fs::write(whole(&from, &piece(&one, 1)), "DATA").unwrap();
        assert!(place(&models, &from, &all).is_err());
        assert!(!models.join("a/1").exists());
        fs::write(whole(&from, &piece(&one, 1)), "data").unwrap();
        place(&models, &from, &all).unwrap();
        assert_eq!(fs::read(models.join("a/1/weights.bin")).unwrap(), b"data");
        assert_eq!(fs::read(models.join("a/1/model.onnx")).unwrap(), b"one");
        assert_eq!(there(&models, &all), Ok(vec![of(&one)]));
        // Other weights under the same number are another version.
        fs::remove_file(models.join("a/1/weights.bin")).unwrap();
        fs::write(models.join("a/1/weights.bin"), "other").unwrap();
        assert!(there(&models, &all).unwrap_err().contains("other contents"));
        remove(&models, &[of(&one)]).unwrap();
        assert!(!models.join("a").exists());
    }
}
