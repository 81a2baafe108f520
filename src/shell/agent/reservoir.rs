//! Samples of live requests, drawn evenly from all that were answered (Vitter's algorithm R): bounded in
//! number and bytes, the same for the same requests and seed.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::BytesMut;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::limits;
use crate::onnx::{DType, Tensor, values};
use crate::protocol::Signature;
use crate::shell::npz;
use crate::shell::slot::Sampler;
use crate::shell::store::Drawn;
use crate::units::Digest;

use super::event::Sampled;

/// One model's samples. Requests offer them; the agent takes them out.
pub struct Reservoir {
    inputs: Digest,
    /// Names and types of the inputs, in the order in which a row holds them.
    names: Vec<(String, DType)>,
    pool: Mutex<Pool>,
}

/// What tells the inputs of one model from those of another.
pub fn inputs_of(signature: &Signature) -> Digest {
    Digest::of(format!("{:?}", signature.inputs).as_bytes())
}

impl Reservoir {
    /// An empty one of at most `most` samples; `None` where the model's inputs cannot be sampled: there
    /// are none, or some are texts or of a type that NumPy does not have.
    pub fn new(signature: &Signature, most: usize, seed: u64) -> Option<Self> {
        let inputs = &signature.inputs;
        let plain = |dtype: DType| npz::descr(dtype).is_some();
        if inputs.is_empty() || !inputs.iter().all(|input| plain(input.dtype)) {
            return None;
        }
        let pool = Pool {
            rng: ChaCha8Rng::seed_from_u64(seed),
            most: most.max(1),
            rows: Vec::new(),
            bytes: 0,
            seen: 0,
        };
        Some(Self {
            inputs: inputs_of(signature),
            names: inputs.iter().map(|input| (input.name.clone(), input.dtype)).collect(),
            pool: Mutex::new(pool),
        })
    }

    /// See [`inputs_of`].
    pub fn inputs(&self) -> Digest {
        self.inputs
    }

    /// Whether there are enough samples of one shape for a ladder.
    pub fn is_enough(&self) -> bool {
        let pool = self.pool();
        let enough = limits::RESERVOIR_ENOUGH.min(pool.most);
        // Of large samples fewer fit, and must do.
        pool.seen >= enough as u64 && (pool.is_full() || pool.commonest().len() >= enough)
    }

    /// Whether so many samples went by that the kept ones stand for them.
    pub fn is_complete(&self) -> bool {
        self.pool().seen >= limits::RESERVOIR_SEEN
    }

    /// The samples of the commonest shape, as an archive of arrays. Copies them: not for threads that
    /// must not wait.
    ///
    /// # Errors
    /// Where they cannot be written as an archive.
    pub fn take(&self) -> Result<Sampled, String> {
        let pool = self.pool();
        let rows = pool.commonest();
        let Some(first) = rows.first() else { return Err("there are none".to_owned()) };
        let arrays: BTreeMap<String, Tensor> = self
            .names
            .iter()
            .enumerate()
            .map(|(at, (name, dtype))| {
                let mut data = BytesMut::new();
                rows.iter().for_each(|row| data.extend_from_slice(&row.data[at]));
                let shape = std::iter::once(rows.len()).chain(first.shapes[at].iter().copied());
                let tensor = Tensor { dtype: *dtype, shape: shape.collect(), data: data.freeze() };
                (name.clone(), tensor)
            })
            .collect();
        let drawn = Drawn { samples: rows.len(), seen: pool.seen, inputs: self.inputs };
        drop(pool);
        let npz = npz::encode(&arrays).map_err(|error| error.to_string())?;
        Ok(Sampled { npz, drawn })
    }

    fn pool(&self) -> MutexGuard<'_, Pool> {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sampler for Reservoir {
    fn offer(&self, inputs: &[(String, Tensor)]) {
        // A session does not wait for another one's sample, nor for the agent.
        let Ok(mut pool) = self.pool.try_lock() else { return };
        let find = |(name, _): &(String, DType)| {
            inputs.iter().find(|(given, _)| given == name).map(|(_, tensor)| tensor)
        };
        let found: Option<Vec<&Tensor>> = self.names.iter().map(find).collect();
        if let Some(tensors) = found {
            pool.offer(&tensors);
        }
    }
}

/// One sample: a row (first axis) of every input.
struct Row {
    /// Without the first axis.
    shapes: Vec<Vec<usize>>,
    data: Vec<Vec<u8>>,
}

impl Row {
    fn bytes(&self) -> usize {
        self.data.iter().map(Vec::len).sum()
    }
}

struct Pool {
    rng: ChaCha8Rng,
    most: usize,
    rows: Vec<Row>,
    bytes: usize,
    /// Samples that were offered, the kept ones among them.
    seen: u64,
}

impl Pool {
    /// One request's inputs. Those that are not split alike along the first axis are no samples.
    fn offer(&mut self, inputs: &[&Tensor]) {
        let mut counts = inputs.iter().map(|tensor| tensor.shape.first().copied());
        let Some(Some(count)) = counts.next() else { return };
        if !counts.all(|other| other == Some(count)) {
            return;
        }
        (0..count).for_each(|at| self.offer_row(inputs, at, count));
    }

    fn offer_row(&mut self, inputs: &[&Tensor], at: usize, count: usize) {
        let size: usize = inputs.iter().map(|tensor| tensor.data.len() / count).sum();
        if size == 0 || size > limits::RESERVOIR_BYTES {
            return;
        }
        self.seen += 1;
        let full = self.rows.len() >= self.most || self.bytes + size > limits::RESERVOIR_BYTES;
        let place = match full {
            false => self.rows.len(),
            true => match usize::try_from(self.rng.random_range(0..self.seen)) {
                Ok(place) if place < self.rows.len() => place,
                Ok(_) | Err(_) => return,
            },
        };
        let Some(row) = row(inputs, at, count) else { return };
        self.bytes += size;
        match self.rows.get_mut(place) {
            Some(old) => {
                self.bytes -= old.bytes();
                *old = row;
            }
            None => self.rows.push(row),
        }
        // A larger sample in the place of a smaller one.
        while self.bytes > limits::RESERVOIR_BYTES {
            let gone = self.rows.swap_remove(0);
            self.bytes -= gone.bytes();
        }
    }

    /// Whether a further sample like those that are kept takes another one's place.
    fn is_full(&self) -> bool {
        let mean = self.bytes / self.rows.len().max(1);
        self.rows.len() >= self.most || self.bytes + mean > limits::RESERVOIR_BYTES
    }

    /// The samples of the shapes that most of them have: arrays hold one shape.
    fn commonest(&self) -> Vec<&Row> {
        let mut groups: BTreeMap<&[Vec<usize>], Vec<&Row>> = BTreeMap::new();
        for row in &self.rows {
            groups.entry(&row.shapes).or_default().push(row);
        }
        groups.into_values().max_by_key(Vec::len).unwrap_or_default()
    }
}

/// A copy of one sample; `None` where it holds values that are not finite: a camera that sends one such
/// image must not spoil the statistics of all.
fn row(inputs: &[&Tensor], at: usize, count: usize) -> Option<Row> {
    let mut row = Row { shapes: Vec::new(), data: Vec::new() };
    for tensor in inputs {
        let stride = tensor.data.len() / count;
        let data = tensor.data.get(at * stride..(at + 1) * stride)?;
        if values::floats(tensor.dtype, data).is_some_and(|v| !v.iter().all(|v| v.is_finite())) {
            return None;
        }
        row.shapes.push(tensor.shape.get(1..)?.to_vec());
        row.data.push(data.to_vec());
    }
    Some(row)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{Dim, TensorSpec};

    fn signature(dtype: DType) -> Signature {
        let free = || Dim::Free(String::new());
        let spec = |name: &str| TensorSpec {
            name: name.to_owned(),
            dtype,
            shape: Some(vec![free(), free()]),
        };
        Signature { inputs: vec![spec("x"), spec("y")], outputs: vec![spec("z")] }
    }

    fn reservoir(most: usize) -> Reservoir {
        Reservoir::new(&signature(DType::F32), most, 7).unwrap()
    }

    /// Offers `count` rows that begin at `from`, with `width` columns in both inputs.
    fn offer(to: &Reservoir, from: usize, count: usize, width: usize) {
        let values: Vec<f32> = (from..from + count).flat_map(|v| vec![v as f32; width]).collect();
        let tensor = Tensor::from_f32(&[count, width], &values);
        to.offer(&[("y".to_owned(), tensor.clone()), ("x".to_owned(), tensor)]);
    }

    fn kept(reservoir: &Reservoir) -> Vec<f32> {
        let pool = reservoir.pool();
        pool.rows
            .iter()
            .map(|row| f32::from_le_bytes(row.data[0][..4].try_into().unwrap()))
            .collect()
    }

    #[test]
    fn keeps_an_even_draw_of_all_rows_and_the_same_one_for_the_same_seed() {
        let draw = || {
            let reservoir = reservoir(100);
            (0..1000).for_each(|n| offer(&reservoir, n * 10, 10, 1));
            kept(&reservoir)
        };
        let rows = draw();
        assert_eq!(rows, draw());
        assert_eq!(rows.len(), 100);
        let late = rows.iter().filter(|value| **value >= 5000.0).count();
        assert!((30..=70).contains(&late), "{late} of the second half");
    }

    #[test]
    fn holds_no_more_bytes_than_allowed_however_the_shapes_mix() {
        let reservoir = reservoir(usize::MAX);
        let width = limits::RESERVOIR_BYTES / 8 / 5;
        for n in 0..12 {
            offer(&reservoir, n, 1, if n % 3 == 0 { width / 4 } else { width });
            let pool = reservoir.pool();
            assert_eq!(pool.bytes, pool.rows.iter().map(Row::bytes).sum::<usize>());
            assert!(pool.bytes <= limits::RESERVOIR_BYTES);
        }
        assert!(reservoir.pool().is_full());
        let before = reservoir.pool().seen;
        offer(&reservoir, 0, 1, width * 6);
        assert_eq!(reservoir.pool().seen, before, "one that is too large is none");
    }

    #[test]
    fn what_it_gives_has_one_shape_and_is_read_back() {
        let reservoir = reservoir(512);
        offer(&reservoir, 0, 20, 3);
        offer(&reservoir, 100, 130, 2);
        assert!(reservoir.is_enough() && !reservoir.is_complete());
        let Sampled { npz, drawn } = reservoir.take().unwrap();
        assert_eq!((drawn.samples, drawn.seen), (130, 150));
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), npz).unwrap();
        let arrays = npz::read(file.path()).unwrap();
        assert_eq!(arrays.keys().collect::<Vec<_>>(), ["x", "y"]);
        assert_eq!(arrays["x"].shape, [130, 2]);
        assert_eq!(arrays["x"].to_f32().unwrap()[..4], [100.0, 100.0, 101.0, 101.0]);
    }

    #[test]
    fn what_is_no_sample_is_passed_over() {
        let reservoir = reservoir(512);
        let with = |x: Tensor, y: Tensor| reservoir.offer(&[("x".into(), x), ("y".into(), y)]);
        let two = || Tensor::from_f32(&[2, 1], &[1.0, 2.0]);
        with(two(), Tensor::from_f32(&[1, 1], &[1.0]));
        with(Tensor::from_f32(&[], &[1.0]), two());
        with(Tensor::from_f32(&[0, 1], &[]), Tensor::from_f32(&[0, 1], &[]));
        reservoir.offer(&[("x".into(), two())]);
        assert_eq!(reservoir.pool().seen, 0);
        with(two(), Tensor::from_f32(&[2, 1], &[f32::NAN, 3.0]));
        assert_eq!(kept(&reservoir), [2.0], "the row that is finite");
        assert!(Reservoir::new(&signature(DType::String), 9, 0).is_none());
        assert!(Reservoir::new(&signature(DType::BF16), 9, 0).is_none());
    }
}
