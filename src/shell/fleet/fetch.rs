//! Fetching artifacts: room first, on from where it stopped, no faster than is allowed, and never more than
//! what the signed bundle says. Nothing takes an artifact's name before its hash holds.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::statvfs::statvfs;

use crate::fleet::apply::Failure;
use crate::fleet::artifact::MODEL_FILE;
use crate::fleet::{Artifact, KeySet, Piece, Sha256, Source};
use crate::limits;
use crate::shell::{files, hashes};
use crate::units::ByteSize;

use super::depot::{Depot, is_final};
use super::place;

/// Bytes that are read at a time.
const CHUNK: usize = 64 << 10;

/// Where a file of an artifact lies once it is whole.
pub fn whole(dir: &Path, piece: &Piece) -> PathBuf {
    let ending = if piece.name == MODEL_FILE { "onnx" } else { "data" };
    dir.join(format!("{}.{ending}", piece.sha256))
}

/// Where it lies while it is fetched.
fn part(dir: &Path, piece: &Piece) -> PathBuf {
    dir.join(format!(".{}.part", piece.sha256))
}

/// The model file of an artifact that was fetched, with what belongs to it beside it.
pub fn model_file(dir: &Path, artifact: &Artifact) -> PathBuf {
    match artifact.files.is_empty() {
        true => dir.join(format!("{}.onnx", artifact.sha256)),
        false => together(dir, artifact).join(MODEL_FILE),
    }
}

/// The folder in which the files of an artifact lie by their own names.
fn together(dir: &Path, artifact: &Artifact) -> PathBuf {
    dir.join(format!("{}.version", artifact.sha256))
}

/// Sets room aside for what is still to fetch, below `dir`, and looks whether there is some in the directory of
/// the models, where what was tried is put.
///
/// # Errors
/// With how much is missing where.
pub fn reserve(artifacts: &[Artifact], dir: &Path, models: &Path) -> Result<(), String> {
    let failed = |doing: &str, path: &Path, error: &dyn std::fmt::Display| {
        format!("cannot {doing} {}: {error}", path.display())
    };
    fs::create_dir_all(dir).map_err(|error| failed("make", dir, &error))?;
    // What was set aside before takes its blocks already.
    let taken = |path: PathBuf| fs::metadata(path).map_or(0, |meta| meta.blocks() * 512);
    let missing = |one: Piece| {
        let taken = taken(whole(dir, &one)).max(taken(part(dir, &one)));
        one.size.saturating_sub(taken)
    };
    let pieces = || artifacts.iter().flat_map(Artifact::pieces);
    let total = |sizes: &mut dyn Iterator<Item = u64>| sizes.fold(0, u64::saturating_add);
    room(dir, total(&mut pieces().map(missing)))?;
    // On another file system they are copied, on the same one linked.
    if !on_one_disk(dir, models) {
        room(models, total(&mut pieces().map(|one| one.size)))?;
    }
    for piece in pieces().filter(|one| !whole(dir, one).exists()) {
        let path = part(dir, &piece);
        let file = File::options().write(true).create(true).truncate(false).open(&path);
        let file = file.map_err(|error| failed("write", &path, &error))?;
        // The blocks are the file's from now on, and its size stays. A file system that has no such thing is
        // taken at its word of what is free.
        let size = i64::try_from(piece.size).unwrap_or(i64::MAX);
        let reserved = fallocate(&file, FallocateFlags::FALLOC_FL_KEEP_SIZE, 0, size);
        if let Err(Errno::ENOSPC | Errno::EDQUOT | Errno::EFBIG) = reserved {
            let why = "there is no room for all of it";
            return Err(failed("write", &path, &why));
        }
    }
    Ok(())
}

fn on_one_disk(a: &Path, b: &Path) -> bool {
    let device = |path: &Path| fs::metadata(path).map(|meta| meta.dev()).ok();
    device(a).is_some() && device(a) == device(b)
}

fn room(dir: &Path, wanted: u64) -> Result<(), String> {
    let found =
        statvfs(dir).map_err(|error| format!("cannot look at {}: {error}", dir.display()))?;
    let free = found.blocks_available().saturating_mul(found.fragment_size());
    let wanted = wanted.saturating_add(limits::DISK_RESERVE);
    if free >= wanted {
        return Ok(());
    }
    let (wanted, free) = (ByteSize(wanted), ByteSize(free));
    Err(format!("{} has {free} left of the {wanted} that are needed", dir.display()))
}

/// Fetches one artifact after another.
pub struct Fetcher {
    depot: Depot,
    dir: PathBuf,
    inbox: Option<PathBuf>,
    /// Bytes a second.
    bandwidth: Option<u64>,
    /// Set where it is no longer wanted.
    stop: Arc<AtomicBool>,
}

/// Where bytes come from, and how many of them are known already.
struct Stream {
    from: Box<dyn Read>,
    /// Bytes that were not sent again.
    skipped: u64,
}

impl Fetcher {
    pub fn new(
        dir: PathBuf,
        inbox: Option<PathBuf>,
        depot: Depot,
        bandwidth: Option<u64>,
        stop: Arc<AtomicBool>,
    ) -> Self {
        Self { depot, dir, inbox, bandwidth, stop }
    }

    /// Fetches the files of an artifact, or what is missing of them, checks them against what the bundle says,
    /// and lays them together as its version has them.
    ///
    /// # Errors
    /// Whether it may go well later.
    pub fn fetch(&self, artifact: &Artifact, trusted: Option<&KeySet>) -> Result<(), Failure> {
        for piece in artifact.pieces() {
            let signature = artifact.signature.as_deref().filter(|_| piece.name == MODEL_FILE);
            let check = |path: &Path| check_signature(path, signature, trusted);
            self.fetch_piece(&piece, check).map_err(|failure| name(artifact, &piece, failure))?;
        }
        if artifact.files.is_empty() {
            return Ok(());
        }
        let folder = together(&self.dir, artifact);
        place::lay_together(&folder, &self.dir, artifact).map_err(Failure::Later)
    }

    fn fetch_piece(
        &self,
        piece: &Piece,
        check: impl Fn(&Path) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let (whole, part) = (whole(&self.dir, piece), part(&self.dir, piece));
        if hash(&whole, &self.stop).is_ok_and(|found| found == (piece.sha256, piece.size)) {
            return check(&whole);
        }
        let later = |error: io::Error| Failure::Later(format!("{}: {error}", part.display()));
        let mut file = File::options();
        let file = file.read(true).write(true).create(true).truncate(false);
        let mut file = file.open(&part).map_err(later)?;
        let resumed = self.fill(&mut file, piece)?;
        let found = hash(&part, &self.stop).map_err(later)?;
        if found != (piece.sha256, piece.size) {
            // From here on there is nothing to go on from.
            fs::remove_file(&part).map_err(later)?;
            let why = format!("its SHA-256 is {} and not what the bundle says", found.0);
            // What was held from before may have been to blame.
            return Err(if resumed { Failure::Later(why) } else { Failure::ForGood(why) });
        }
        if let Err(failure) = check(&part) {
            fs::remove_file(&part).map_err(later)?;
            return Err(failure);
        }
        file.sync_all().map_err(later)?;
        fs::rename(&part, &whole).map_err(later)?;
        files::sync_dir(&self.dir).map_err(later)
    }

    /// Brings a file to the size that is said of it. Says whether it went on from what was held.
    fn fill(&self, file: &mut File, piece: &Piece) -> Result<bool, Failure> {
        let later = |error: io::Error| Failure::Later(error.to_string());
        let mut held = file.metadata().map_err(later)?.len();
        if held > piece.size {
            file.set_len(0).map_err(later)?;
            held = 0;
        }
        if held == piece.size {
            return Ok(true);
        }
        let Stream { from, skipped } = self.open(piece, held)?;
        if skipped < held {
            file.set_len(skipped).map_err(later)?;
        }
        file.seek(SeekFrom::Start(skipped)).map_err(later)?;
        self.copy(from, file, piece.size - skipped)?;
        Ok(skipped > 0)
    }

    fn open(&self, piece: &Piece, held: u64) -> Result<Stream, Failure> {
        match piece.from {
            Source::File(name) => self.open_file(name, piece, held),
            Source::Web(_) | Source::Registry(_) => self.open_url(piece, held),
        }
    }

    fn open_file(&self, name: &str, piece: &Piece, held: u64) -> Result<Stream, Failure> {
        let Some(inbox) = &self.inbox else {
            return Err(Failure::ForGood("it lies in an inbox, and there is none".to_owned()));
        };
        // It may still be on its way, as the bundle was.
        let later = |error: io::Error| Failure::Later(error.to_string());
        let inbox = inbox.canonicalize().map_err(later)?;
        let path = inbox.join(name).canonicalize().map_err(later)?;
        if !path.starts_with(&inbox) {
            return Err(Failure::ForGood("it leads out of the inbox".to_owned()));
        }
        let mut file = File::open(&path).map_err(later)?;
        let meta = file.metadata().map_err(later)?;
        if !meta.is_file() || meta.len() != piece.size {
            let (size, wanted) = (meta.len(), piece.size);
            return Err(Failure::Later(format!("it has {size} bytes and not {wanted}")));
        }
        file.seek(SeekFrom::Start(held)).map_err(later)?;
        Ok(Stream { from: Box::new(file), skipped: held })
    }

    fn open_url(&self, piece: &Piece, held: u64) -> Result<Stream, Failure> {
        let (answer, url) = match piece.from {
            Source::Registry(repository) => {
                (self.depot.blob(repository, piece.sha256, held)?, repository.to_string())
            }
            Source::Web(address) => (self.depot.web(address, held)?, address.shown().to_owned()),
            Source::File(name) => {
                return Err(Failure::ForGood(format!("{name} is on no server")));
            }
        };
        let range = answer.headers().get("content-range").and_then(|value| value.to_str().ok());
        let goes_on = range.is_some_and(|range| range.starts_with(&format!("bytes {held}-")));
        let skipped = match answer.status().as_u16() {
            200 => 0,
            206 if goes_on => held,
            206 => {
                return Err(Failure::Later(format!("{url} sends another part than was asked for")));
            }
            // What is held is not a beginning of what is there: all of it once more.
            416 if held > 0 => return self.open_url(piece, 0),
            status if is_final(status) => {
                return Err(Failure::ForGood(format!("{url} answers {status}")));
            }
            status => return Err(Failure::Later(format!("{url} answers {status}"))),
        };
        Ok(Stream { from: Box::new(answer.into_body().into_reader()), skipped })
    }

    /// Copies exactly so many bytes, no faster than is allowed.
    fn copy(&self, mut from: Box<dyn Read>, to: &mut File, wanted: u64) -> Result<(), Failure> {
        let begin = Instant::now();
        let mut buffer = vec![0; CHUNK];
        let mut done = 0u64;
        while done < wanted {
            if self.stop.load(Ordering::Relaxed) {
                return Err(Failure::Later("it is no longer wanted".to_owned()));
            }
            let most = usize::try_from(wanted - done).unwrap_or(CHUNK).min(CHUNK);
            let read = from.read(&mut buffer[..most]);
            let read =
                read.map_err(|error| Failure::Later(format!("{error}, after {done} bytes")))?;
            if read == 0 {
                return Err(Failure::Later(format!("it ended after {done} bytes")));
            }
            let written = to.write_all(&buffer[..read]);
            written.map_err(|error| Failure::Later(error.to_string()))?;
            done += read as u64;
            self.wait(done, begin);
        }
        // One byte more is another file than the one that was signed.
        match from.read(&mut buffer[..1]) {
            Ok(0) | Err(_) => Ok(()),
            Ok(_) => Err(Failure::ForGood("it is larger than the bundle says".to_owned())),
        }
    }

    fn wait(&self, done: u64, begin: Instant) {
        let Some(bandwidth) = self.bandwidth else { return };
        let due = Duration::from_secs_f64(done as f64 / bandwidth as f64);
        while let Some(left) = due.checked_sub(begin.elapsed()).filter(|left| !left.is_zero()) {
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            thread::sleep(left.min(limits::TICK));
        }
    }
}

fn name(artifact: &Artifact, piece: &Piece, failure: Failure) -> Failure {
    let file = match piece.name {
        MODEL_FILE => String::new(),
        further => format!(", {further}"),
    };
    let of = |why: String| format!("{} version {}{file}: {why}", artifact.name, artifact.version);
    match failure {
        Failure::Later(why) => Failure::Later(of(why)),
        Failure::ForGood(why) => Failure::ForGood(of(why)),
    }
}

/// SHA-256 and size of a file.
pub fn hash(path: &Path, stop: &AtomicBool) -> io::Result<(Sha256, u64)> {
    let goes_on = || !stop.load(Ordering::Relaxed);
    let (hash, size) = hashes::sha256(&mut File::open(path)?, goes_on)?;
    Ok((Sha256(hash), size))
}

/// A signature of the file itself, where the bundle has one, must be that of a key that is trusted.
fn check_signature(
    path: &Path,
    signature: Option<&str>,
    trusted: Option<&KeySet>,
) -> Result<(), Failure> {
    let Some(signature) = signature else { return Ok(()) };
    let keys = trusted.map(KeySet::keys).unwrap_or_default();
    for key in keys {
        let mut file = File::open(path).map_err(|error| Failure::Later(error.to_string()))?;
        let mut whole = true;
        let holds = key.signed(signature, |take| {
            let mut buffer = vec![0; CHUNK];
            loop {
                match file.read(&mut buffer) {
                    Ok(0) => break,
                    Ok(read) => take(&buffer[..read]),
                    Err(_) => {
                        whole = false;
                        break;
                    }
                }
            }
        });
        if holds && whole {
            return Ok(());
        }
    }
    let why = "its own signature is by nobody who is trusted".to_owned();
    Err(Failure::ForGood(why))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::Further;
    use crate::units::Version;

    fn artifact(bytes: &[u8], from: &str) -> Artifact {
        Artifact {
            name: "m".into(),
            version: Version(1),
            from: Source::File(from.into()),
            size: bytes.len() as u64,
            sha256: Sha256(hashes::sha256(&mut &*bytes, || true).unwrap().0),
            signature: None,
            files: Vec::new(),
        }
    }

    /// The only file of an artifact.
    fn own(artifact: &Artifact) -> Piece<'_> {
        artifact.pieces().next().unwrap()
    }

    /// A fetcher with an inbox, and the directories of both.
    fn fetcher(bandwidth: Option<u64>) -> (tempfile::TempDir, PathBuf, PathBuf, Fetcher) {
        let dir = tempfile::tempdir().unwrap();
        let (inbox, to) = (dir.path().join("inbox"), dir.path().join("to"));
        fs::create_dir(&inbox).unwrap();
        fs::create_dir(&to).unwrap();
        let (dirs, depot) = ((to.clone(), Some(inbox.clone())), Depot::default());
        let fetcher = Fetcher::new(dirs.0, dirs.1, depot, bandwidth, Arc::default());
        (dir, inbox, to, fetcher)
    }

    #[test]
    fn an_artifact_that_is_there_half_is_completed_and_one_that_is_whole_is_not_asked_for() {
        let (_dir, inbox, to, fetcher) = fetcher(None);
        let bytes: Vec<u8> = (0..200_000u32).map(|n| n as u8).collect();
        let one = artifact(&bytes, "f");
        reserve(std::slice::from_ref(&one), &to, &to).unwrap();
        fs::write(part(&to, &own(&one)), &bytes[..70_000]).unwrap();
        // It may come later than the bundle.
        assert!(matches!(fetcher.fetch(&one, None), Err(Failure::Later(_))));
        fs::write(inbox.join("f"), &bytes).unwrap();
        assert_eq!(fetcher.fetch(&one, None), Ok(()));
        assert_eq!(fs::read(whole(&to, &own(&one))).unwrap(), bytes);
        fs::remove_file(inbox.join("f")).unwrap();
        assert_eq!(fetcher.fetch(&one, None), Ok(()));
        assert_eq!(fs::read_dir(&to).unwrap().count(), 1);
    }

    #[test]
    fn what_is_not_what_was_signed_never_takes_the_artifacts_name() {
        let (dir, inbox, to, fetcher) = fetcher(None);
        let one = artifact(b"right", "f");
        fs::write(inbox.join("f"), "wrong").unwrap();
        assert!(matches!(fetcher.fetch(&one, None), Err(Failure::ForGood(_))));
        fs::write(inbox.join("f"), "right and more").unwrap();
        assert!(fetcher.fetch(&one, None).is_err());
        // What was held is wrong: it is fetched anew.
        fs::write(inbox.join("f"), "right").unwrap();
        fs::write(part(&to, &own(&one)), "wro").unwrap();
        assert!(matches!(fetcher.fetch(&one, None), Err(Failure::Later(_))));
        assert_eq!(fs::read_dir(&to).unwrap().count(), 0);
        assert_eq!(fetcher.fetch(&one, None), Ok(()));
        fs::write(dir.path().join("secret"), "other").unwrap();
        std::os::unix::fs::symlink("../secret", inbox.join("link")).unwrap();
        let leads_out = artifact(b"other", "link");
        assert!(matches!(fetcher.fetch(&leads_out, None), Err(Failure::ForGood(_))));
    }

    #[test]
    fn an_artifacts_own_signature_must_be_by_somebody_who_is_trusted() {
        let (_dir, inbox, _to, fetcher) = fetcher(None);
        let [vendor, other] =
            [(); 2].map(|()| minisign::KeyPair::generate_unencrypted_keypair().unwrap());
        let key = crate::fleet::Key::parse(&vendor.pk.to_base64()).unwrap();
        let trusted = KeySet::new(vec![key], 1).unwrap();
        fs::write(inbox.join("f"), "model").unwrap();
        let signed = |pair: &minisign::KeyPair| {
            let signature = minisign::sign(None, &pair.sk, &b"model"[..], None, None).unwrap();
            Artifact { signature: Some(signature.into_string()), ..artifact(b"model", "f") }
        };
        let fetch = |one: &Artifact| fetcher.fetch(one, Some(&trusted));
        assert!(matches!(fetch(&signed(&other)), Err(Failure::ForGood(_))));
        assert_eq!(fetch(&signed(&vendor)), Ok(()));
        assert!(fetcher.fetch(&signed(&vendor), None).is_err());
    }

    #[test]
    fn all_files_of_an_artifact_are_fetched_and_laid_together_by_their_names() {
        let (_dir, inbox, to, fetcher) = fetcher(None);
        let further = |name: &str, bytes: &[u8]| Further {
            name: name.into(),
            from: Source::File(name.into()),
            size: bytes.len() as u64,
            sha256: Sha256(hashes::sha256(&mut &*bytes, || true).unwrap().0),
        };
        let files = vec![further("a.bin", b"data"), further("b.bin", b"data")];
        let one = Artifact { files, ..artifact(b"model", "f") };
        reserve(std::slice::from_ref(&one), &to, &to).unwrap();
        fs::write(inbox.join("f"), "model").unwrap();
        fs::write(inbox.join("a.bin"), "data").unwrap();
        // What has the same contents is fetched once.
        assert_eq!(fetcher.fetch(&one, None), Ok(()));
        let folder = model_file(&to, &one).parent().unwrap().to_owned();
        for (name, bytes) in [("model.onnx", "model"), ("a.bin", "data"), ("b.bin", "data")] {
            assert_eq!(fs::read_to_string(folder.join(name)).unwrap(), bytes);
        }
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 3);
        assert_eq!(fetcher.fetch(&one, None), Ok(()));
        // One that is not what was signed keeps all of it back.
        let two = Artifact { files: vec![further("c.bin", b"right")], ..one.clone() };
        fs::write(inbox.join("c.bin"), "wrong").unwrap();
        let Err(Failure::ForGood(why)) = fetcher.fetch(&two, None) else { panic!() };
        assert!(why.starts_with("m version 1, c.bin: its SHA-256 is "), "{why}");
    }

    #[test]
    fn room_that_is_not_there_is_told_before_anything_is_fetched() {
        let dir = tempfile::tempdir().unwrap();
        let large = Artifact { size: 1 << 55, ..artifact(b"x", "f") };
        let said = reserve(&[large], dir.path(), dir.path()).unwrap_err();
        assert!(said.contains("that are needed"), "{said}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn no_more_is_taken_of_the_network_than_is_allowed() {
        let (_dir, inbox, _to, fetcher) = fetcher(Some(1 << 20));
        let bytes = vec![7; 300 << 10];
        fs::write(inbox.join("f"), &bytes).unwrap();
        let begin = Instant::now();
        assert_eq!(fetcher.fetch(&artifact(&bytes, "f"), None), Ok(()));
        assert!(begin.elapsed() >= Duration::from_millis(290), "{:?}", begin.elapsed());
    }
}
