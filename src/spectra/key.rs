//! The keys under which spectra are kept.

use super::{Augment, Precision};
use crate::onnx::DType;
use crate::units::Digest;

/// Version of the algorithm that computes spectra. It goes into every key: raise it whenever a change may move
/// a result by more than rounding, and old results are found no more.
pub const ALGORITHM: u32 = 2;

/// Builds the key of one spectrum: BLAKE3 over the algorithm's version, what is computed, and the shape, type
/// and digest of the bytes of every constant that takes part.
#[derive(Debug, Clone)]
pub struct KeyBuilder(blake3::Hasher);

impl KeyBuilder {
    /// Starts the key of what `what` names (such as `conv group=4`) under the given settings.
    pub fn new(what: &str, augment: Augment, precision: Precision) -> Self {
        let settings = [augment as u8, precision as u8];
        Self::of("blochd spectra", ALGORITHM).bytes(&settings).bytes(what.as_bytes())
    }

    /// Starts a key of another kind of result; `version` is that of its algorithm.
    pub fn of(kind: &'static str, version: u32) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key(kind);
        hasher.update(&version.to_le_bytes());
        Self(hasher)
    }

    /// Adds whatever else decides the result. Lengths go in before contents, so that no two lists read alike.
    #[must_use]
    pub fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.update(&(bytes.len() as u64).to_le_bytes()).update(bytes);
        self
    }

    /// Adds a number.
    #[must_use]
    pub fn number(self, value: f64) -> Self {
        self.bytes(&value.to_le_bytes())
    }

    /// Adds a constant by the digest of its elements.
    #[must_use]
    pub fn constant(mut self, dtype: DType, dims: &[usize], elements: &Digest) -> Self {
        self.0.update(&(dtype as i32).to_le_bytes()).update(&(dims.len() as u64).to_le_bytes());
        for dim in dims {
            self.0.update(&(*dim as u64).to_le_bytes());
        }
        self.bytes(elements.as_bytes())
    }

    /// The key.
    pub fn finish(self) -> Digest {
        Digest::from_bytes(*self.0.finalize().as_bytes())
    }
}

/// Where finished results are kept between runs. The shell puts a directory behind it.
pub trait Store {
    /// The values kept under `key`, if they are there and sound.
    fn get(&mut self, key: &Digest) -> Option<super::Spectrum>;

    /// Keeps a spectrum. A store that cannot keep it says so in its own way: the analysis goes on.
    fn put(&mut self, key: &Digest, spectrum: &super::Spectrum);

    /// The bytes of another kind of result kept under `key`, if they are there and as they were written.
    fn get_bytes(&mut self, key: &Digest) -> Option<Vec<u8>>;

    /// Keeps bytes; otherwise as [`Store::put`].
    fn put_bytes(&mut self, key: &Digest, bytes: &[u8]);
}

/// Keeps nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoStore;

impl Store for NoStore {
    fn get(&mut self, _key: &Digest) -> Option<super::Spectrum> {
        None
    }

    fn put(&mut self, _key: &Digest, _spectrum: &super::Spectrum) {}

    fn get_bytes(&mut self, _key: &Digest) -> Option<Vec<u8>> {
        None
    }

    fn put_bytes(&mut self, _key: &Digest, _bytes: &[u8]) {}
}
