//! Finished spectra and reports of channels between runs: one file a key under `<state>/spectra/`, shared by
//! all versions and models. The key is the content (see `spectra::KeyBuilder`), so there is nothing to
//! invalidate; the least recently used go first when the bound is reached. Every file carries its own hash:
//! what is torn, of another layout or not what its name says is as good as absent and will be written again.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::files;
use crate::limits;
use crate::spectra::{Drift, Spectrum, Store};
use crate::units::Digest;

/// Starts every file; the last byte is the layout's version.
const MAGIC: [u8; 8] = *b"blspect\x02";

/// Starts every file that holds another kind of result.
const BYTES_MAGIC: [u8; 8] = *b"blbytes\x01";

/// Bytes before the values: magic, key, rows, columns, exact, drift, count.
const HEAD: usize = 8 + 32 + 8 + 8 + 1 + 8 + 4;

/// Bytes of the hash at the end.
const HASH: usize = 32;

/// After eviction this share of the bound is in use, so that not every further entry evicts again.
const AFTER_EVICTION: f64 = 0.9;

/// What happened to the cache in this run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CacheStats {
    /// Entries that were found.
    pub hits: usize,
    /// Entries that were there but not sound.
    pub corrupted: usize,
    /// Entries that were removed for want of room.
    pub evicted: usize,
    /// Why entries could not be kept: the first reason of all.
    pub not_kept: Option<String>,
}

/// A directory of spectra.
#[derive(Debug)]
pub struct SpectraCache {
    dir: PathBuf,
    limit: u64,
    used: u64,
    stats: CacheStats,
}

impl SpectraCache {
    /// Opens the cache in `<state>/spectra`; the directory is made if it is missing.
    ///
    /// # Errors
    /// Where the directory cannot be made or read.
    pub fn open(state: &Path) -> io::Result<Self> {
        Self::with_limit(state, limits::SPECTRA_CACHE_BYTES)
    }

    fn with_limit(state: &Path, limit: u64) -> io::Result<Self> {
        let dir = state.join("spectra");
        fs::create_dir_all(&dir)?;
        let mut cache = Self { dir, limit, used: 0, stats: CacheStats::default() };
        cache.evict()?;
        Ok(cache)
    }

    /// What happened so far.
    pub fn stats(&self) -> &CacheStats {
        &self.stats
    }

    fn path(&self, key: &Digest) -> PathBuf {
        self.dir.join(key.to_string())
    }

    /// Counts what is there and removes the least recently used entries beyond the bound, and what dead
    /// processes left.
    fn evict(&mut self) -> io::Result<()> {
        let mut entries: Vec<(SystemTime, OsString, u64)> = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            // A file that another process removed in between is no failure.
            let Ok(metadata) = entry.metadata() else { continue };
            if !metadata.is_file() {
                continue;
            }
            let used = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            let name = entry.file_name();
            if name.to_string_lossy().starts_with('.') {
                let age = SystemTime::now().duration_since(used).unwrap_or(Duration::ZERO);
                if age > Duration::from_secs(limits::SPECTRA_CACHE_STALE_SECS) {
                    let _ = fs::remove_file(entry.path());
                }
                continue;
            }
            entries.push((used, name, metadata.len()));
        }
        self.used = entries.iter().map(|(_, _, size)| size).sum();
        if self.used <= self.limit {
            return Ok(());
        }
        entries.sort();
        let target = (self.limit as f64 * AFTER_EVICTION) as u64;
        for (_, name, size) in entries {
            if self.used <= target {
                break;
            }
            if fs::remove_file(self.dir.join(name)).is_ok() {
                self.stats.evicted += 1;
            }
            self.used -= size;
        }
        Ok(())
    }
}

impl SpectraCache {
    /// The contents of a file of at most `most` bytes as `sound` reads them, if it takes them for sound.
    fn read<T>(
        &mut self,
        key: &Digest,
        most: usize,
        sound: impl Fn(&[u8]) -> Option<T>,
    ) -> Option<T> {
        let mut file = File::open(self.path(key)).ok()?;
        let metadata = file.metadata().ok();
        let size = metadata.as_ref().map_or(0, std::fs::Metadata::len);
        let mut bytes = Vec::new();
        let found = (size <= most as u64).then_some(()).and_then(|()| {
            bytes.reserve_exact(size as usize + 1);
            file.by_ref().take(most as u64 + 1).read_to_end(&mut bytes).ok()?;
            sound(&bytes)
        });
        if found.is_none() {
            self.stats.corrupted += 1;
            return None;
        }
        self.stats.hits += 1;
        // The time of the last use orders eviction; where it cannot be set, the entry goes earlier.
        let used = metadata.and_then(|metadata| metadata.modified().ok());
        let now = SystemTime::now();
        let age = used.and_then(|used| now.duration_since(used).ok()).unwrap_or(Duration::MAX);
        if age > Duration::from_secs(limits::SPECTRA_CACHE_USED_SECS) {
            let _ = file.set_modified(now);
        }
        found
    }

    fn write(&mut self, key: &Digest, bytes: &[u8]) {
        // What is replaced is counted twice until the directory is counted again: the bound holds all the same.
        match files::replace_unsynced(&self.path(key), bytes) {
            Ok(()) => self.used += bytes.len() as u64,
            Err(error) => drop(self.stats.not_kept.get_or_insert(error.to_string())),
        }
        if self.used > self.limit
            && let Err(error) = self.evict()
        {
            self.stats.not_kept.get_or_insert(error.to_string());
        }
    }
}

impl Store for SpectraCache {
    fn get(&mut self, key: &Digest) -> Option<Spectrum> {
        let most = HEAD + 8 * (limits::GRAM_SIDE + 1) + HASH;
        self.read(key, most, |bytes| decode(key, bytes))
    }

    fn put(&mut self, key: &Digest, spectrum: &Spectrum) {
        self.write(key, &encode(key, spectrum));
    }

    fn get_bytes(&mut self, key: &Digest) -> Option<Vec<u8>> {
        let most = BYTES_MAGIC.len() + HASH + limits::CHANNEL_REPORTS_BYTES + HASH;
        self.read(key, most, |bytes| unsealed(key, bytes).map(<[u8]>::to_vec))
    }

    fn put_bytes(&mut self, key: &Digest, bytes: &[u8]) {
        let mut file = [&BYTES_MAGIC[..], key.as_bytes(), bytes].concat();
        let hash = Digest::of(&file);
        file.extend_from_slice(hash.as_bytes());
        self.write(key, &file);
    }
}

/// The bytes in a file of the cache that holds no spectrum; `None` as for [`decode`].
fn unsealed<'b>(key: &Digest, bytes: &'b [u8]) -> Option<&'b [u8]> {
    let (body, hash) = bytes.split_last_chunk::<HASH>()?;
    if Digest::of(body).as_bytes() != hash {
        return None;
    }
    let (magic, rest) = body.split_first_chunk::<8>()?;
    let (stored_key, bytes) = rest.split_first_chunk::<32>()?;
    (*magic == BYTES_MAGIC && stored_key == key.as_bytes()).then_some(bytes)
}

fn encode(key: &Digest, spectrum: &Spectrum) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEAD + 8 * spectrum.values.len() + HASH);
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(key.as_bytes());
    bytes.extend_from_slice(&(spectrum.shape.0 as u64).to_le_bytes());
    bytes.extend_from_slice(&(spectrum.shape.1 as u64).to_le_bytes());
    bytes.push(u8::from(spectrum.exact));
    bytes.extend_from_slice(&spectrum.drift.bound().to_le_bytes());
    bytes.extend_from_slice(&(spectrum.values.len() as u32).to_le_bytes());
    spectrum.values.iter().for_each(|value| bytes.extend_from_slice(&value.to_le_bytes()));
    let hash = Digest::of(&bytes);
    bytes.extend_from_slice(hash.as_bytes());
    bytes
}

/// The spectrum in a file of the cache; `None` where anything about it is not as it was written.
fn decode(key: &Digest, bytes: &[u8]) -> Option<Spectrum> {
    let (body, hash) = bytes.split_last_chunk::<HASH>()?;
    if Digest::of(body).as_bytes() != hash {
        return None;
    }
    let (head, values) = body.split_at_checked(HEAD)?;
    let (magic, rest) = head.split_first_chunk::<8>()?;
    let (stored_key, rest) = rest.split_first_chunk::<32>()?;
    let (rows, rest) = rest.split_first_chunk::<8>()?;
    let (cols, rest) = rest.split_first_chunk::<8>()?;
    let (exact, rest) = rest.split_first_chunk::<1>()?;
    let (drift, rest) = rest.split_first_chunk::<8>()?;
    let (count, _) = rest.split_first_chunk::<4>()?;
    let count = u32::from_le_bytes(*count) as usize;
    let shape =
        (u64::from_le_bytes(*rows).try_into().ok()?, u64::from_le_bytes(*cols).try_into().ok()?);
    if *magic != MAGIC || stored_key != key.as_bytes() || values.len() != 8 * count {
        return None;
    }
    let values = values.as_chunks::<8>().0.iter().map(|b| f64::from_le_bytes(*b)).collect();
    let drift = Drift::from_bound(f64::from_le_bytes(*drift))?;
    Some(Spectrum { values, shape, exact: exact[0] != 0, drift })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spectrum(first: f64) -> Spectrum {
        let drift = Drift::default().after(first.abs() / 100.0, 1.0);
        Spectrum { values: vec![first, 0.5, 0.0], shape: (3, 7), exact: false, drift }
    }

    fn key(name: &str) -> Digest {
        Digest::of(name.as_bytes())
    }

    fn names(state: &Path) -> Vec<String> {
        let entries = fs::read_dir(state.join("spectra")).unwrap();
        entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn spectra_survive_a_restart_to_the_last_bit() {
        let state = tempfile::tempdir().unwrap();
        let kept = spectrum(std::f64::consts::PI);
        SpectraCache::open(state.path()).unwrap().put(&key("a"), &kept);
        let mut again = SpectraCache::open(state.path()).unwrap();
        assert_eq!(again.get(&key("a")), Some(kept));
        assert_eq!(again.get(&key("b")), None);
        assert_eq!(again.stats(), &CacheStats { hits: 1, ..CacheStats::default() });
    }

    #[test]
    fn an_entry_with_any_byte_changed_or_missing_is_recomputed_and_written_again() {
        let state = tempfile::tempdir().unwrap();
        let mut cache = SpectraCache::open(state.path()).unwrap();
        cache.put(&key("a"), &spectrum(1.0));
        let path = cache.path(&key("a"));
        let sound = fs::read(&path).unwrap();
        for at in 0..sound.len() {
            let mut bad = sound.clone();
            bad[at] ^= 0x10;
            fs::write(&path, &bad).unwrap();
            assert_eq!(cache.get(&key("a")), None, "byte {at} was changed");
            fs::write(&path, &sound[..at]).unwrap();
            assert_eq!(cache.get(&key("a")), None, "cut after {at} bytes");
        }
        assert_eq!(cache.stats().corrupted, 2 * sound.len());
        cache.put(&key("a"), &spectrum(1.0));
        assert_eq!(cache.get(&key("a")), Some(spectrum(1.0)));
    }

    #[test]
    fn other_results_are_kept_as_they_are_and_a_damaged_one_is_not_believed() {
        let state = tempfile::tempdir().unwrap();
        let mut cache = SpectraCache::open(state.path()).unwrap();
        let bytes: Vec<u8> = (0..200).collect();
        cache.put_bytes(&key("a"), &bytes);
        assert_eq!(cache.get_bytes(&key("a")), Some(bytes.clone()));
        assert_eq!(cache.get(&key("a")), None, "it is no spectrum");
        let path = cache.path(&key("a"));
        let sound = fs::read(&path).unwrap();
        for at in 0..sound.len() {
            let mut bad = sound.clone();
            bad[at] ^= 0x10;
            fs::write(&path, &bad).unwrap();
            assert_eq!(cache.get_bytes(&key("a")), None, "byte {at} was changed");
            fs::write(&path, &sound[..at]).unwrap();
            assert_eq!(cache.get_bytes(&key("a")), None, "cut after {at} bytes");
        }
        cache.put(&key("a"), &spectrum(1.0));
        assert_eq!(cache.get_bytes(&key("a")), None, "it is a spectrum now");
        // More than is ever kept is not even read.
        let file = File::create(&path).unwrap();
        file.set_len(limits::CHANNEL_REPORTS_BYTES as u64 + 1024).unwrap();
        assert_eq!(cache.get_bytes(&key("a")), None);
    }

    #[test]
    fn the_bound_holds_for_all_kinds_of_results_together() {
        let state = tempfile::tempdir().unwrap();
        let mut cache = SpectraCache::with_limit(state.path(), 10_000).unwrap();
        for number in 0..30 {
            cache.put_bytes(&key(&format!("bytes {number}")), &[7; 1500]);
            cache.put(&key(&format!("spectrum {number}")), &spectrum(1.0));
            let sizes = fs::read_dir(state.path().join("spectra")).unwrap();
            let used: u64 = sizes.map(|entry| entry.unwrap().metadata().unwrap().len()).sum();
            assert!(used <= 10_000, "{used}");
        }
        assert!(cache.stats().evicted > 0);
    }

    #[test]
    fn an_entry_under_another_key_is_not_believed() {
        let state = tempfile::tempdir().unwrap();
        let mut cache = SpectraCache::open(state.path()).unwrap();
        cache.put(&key("a"), &spectrum(1.0));
        fs::rename(cache.path(&key("a")), cache.path(&key("b"))).unwrap();
        assert_eq!(cache.get(&key("b")), None);
    }

    #[test]
    fn the_least_recently_used_go_first_and_the_bound_holds() {
        let state = tempfile::tempdir().unwrap();
        let size = encode(&key("x"), &spectrum(1.0)).len() as u64;
        let mut cache = SpectraCache::with_limit(state.path(), 10 * size).unwrap();
        let start = SystemTime::now() - Duration::from_secs(1000);
        for number in 0..10u64 {
            let key = key(&number.to_string());
            cache.put(&key, &spectrum(number as f64 + 1.0));
            let file = File::options().append(true).open(cache.path(&key)).unwrap();
            file.set_modified(start + Duration::from_secs(number)).unwrap();
        }
        assert!(cache.get(&key("0")).is_some(), "and is now the most recently used");
        cache.put(&key("10"), &spectrum(1.0));
        assert_eq!(cache.stats().evicted, 2);
        assert_eq!(names(state.path()).len(), 9);
        assert!(cache.get(&key("1")).is_none() && cache.get(&key("2")).is_none());
        assert!(cache.get(&key("0")).is_some() && cache.get(&key("10")).is_some());
    }

    #[test]
    fn what_a_killed_process_left_is_swept_but_not_what_a_living_one_writes() {
        let state = tempfile::tempdir().unwrap();
        drop(SpectraCache::open(state.path()).unwrap());
        for (name, age) in [(".old", limits::SPECTRA_CACHE_STALE_SECS + 60), (".new", 1)] {
            let file = File::create(state.path().join("spectra").join(name)).unwrap();
            file.set_modified(SystemTime::now() - Duration::from_secs(age)).unwrap();
        }
        drop(SpectraCache::open(state.path()).unwrap());
        assert_eq!(names(state.path()), [".new"]);
    }

    #[test]
    fn a_cache_that_cannot_be_written_says_why_and_stops_nothing() {
        let state = tempfile::tempdir().unwrap();
        let mut cache = SpectraCache::open(state.path()).unwrap();
        fs::remove_dir(state.path().join("spectra")).unwrap();
        cache.put(&key("a"), &spectrum(1.0));
        assert!(cache.stats().not_kept.is_some());
        assert_eq!(cache.get(&key("a")), None);
    }
}
