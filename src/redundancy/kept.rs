//! Channel reports between runs. The report of a layer is kept under a key of everything that it is made from
//! (the layer's weight or that of its one reader, what the channels say on the samples, the threshold), so
//! that it is found by what it is about and never stale. The reports of one model's layers stand together in
//! one entry of the store, under a key of what a new version of the model has in common with the one before:
//! a version in which little has changed finds the rest with one read.

use std::collections::BTreeMap;

use super::analysis::{ChannelReport, Options};
use super::cover::Cluster;
use super::graph::{Certificate, Edge, Metric, StatesFrom};
use crate::limits;
use crate::onnx::{Graph, OnnxError, Operator};
use crate::spectra::response::Response;
use crate::spectra::{ALGORITHM, KeyBuilder, Layer, Store};
use crate::units::Digest;

/// Version of the algorithm of channel graphs and of their encoding. It goes into every key: raise it
/// whenever a change may move a report.
const GRAPHS: u32 = 1;

/// The key of one layer's report.
///
/// # Errors
/// Where a constant's data is missing.
pub(super) fn key(
    graph: &Graph,
    operator: &Operator,
    reader: Option<&Operator>,
    response: Option<&Response>,
    options: &Options,
) -> Result<Digest, OnnxError> {
    let mut key = KeyBuilder::of("blochd channels", GRAPHS)
        .number(f64::from(ALGORITHM))
        .number(options.threshold)
        .number(limits::REPORT_REACH);
    for bound in [limits::REPORT_EDGES, limits::RESPONSE_CHANNELS, limits::DIRECTION_CHANNELS] {
        key = key.bytes(&bound.to_le_bytes());
    }
    for operator in [Some(operator), reader].into_iter().flatten() {
        let sizes = [operator.outputs, operator.inputs, operator.taps()];
        key = key.bytes(format!("{:?} {sizes:?}", operator.kind).as_bytes());
        let weight = &operator.weight;
        if let (Some(dtype), Some(digest)) =
            (graph.weight_dtype(weight), graph.weight_digest(weight)?)
        {
            let dims = graph.weight_dims(weight).unwrap_or_default();
            key = key.constant(dtype, &dims, &digest);
        }
    }
    key = key.bytes(&[u8::from(reader.is_some())]);
    if let Some(response) = response {
        key = key.bytes(response.digest().as_bytes());
    }
    Ok(key.finish())
}

/// The reports of one model: those of an earlier run, and those of this one.
pub(super) struct Kept {
    key: Digest,
    before: BTreeMap<Digest, Vec<u8>>,
    now: BTreeMap<Digest, Vec<u8>>,
    /// Whether a report was made that was not there before.
    new: bool,
}

impl Kept {
    /// What was kept of a model with these layers.
    pub fn open(
        layers: &[Layer],
        options: &Options,
        on_samples: bool,
        store: &mut dyn Store,
    ) -> Self {
        let mut key = KeyBuilder::of("blochd channels of a model", GRAPHS)
            .number(options.threshold)
            .bytes(&[u8::from(on_samples)]);
        for layer in layers {
            key = key.bytes(layer.name.as_bytes()).bytes(layer.op.as_bytes());
        }
        let key = key.finish();
        let entry = store.get_bytes(&key);
        let before = entry.and_then(|bytes| split(&bytes)).unwrap_or_default();
        Self { key, before, now: BTreeMap::new(), new: false }
    }

    /// The report kept under `key`, but for the name of the value that was measured.
    pub fn find(&mut self, key: &Digest) -> Option<ChannelReport> {
        // Layers with equal weights have one report.
        let bytes = self.now.get(key).or_else(|| self.before.get(key))?;
        let report = decode(bytes)?;
        if let Some(bytes) = self.before.remove(key) {
            self.now.insert(*key, bytes);
        }
        Some(report)
    }

    /// Keeps a report.
    pub fn keep(&mut self, key: Digest, report: &ChannelReport) {
        self.new = true;
        self.now.insert(key, encode(report));
    }

    /// Writes down what there is now, as far as it has room.
    pub fn close(self, store: &mut dyn Store) {
        self.close_within(limits::CHANNEL_REPORTS_BYTES, store);
    }

    fn close_within(self, most: usize, store: &mut dyn Store) {
        if !self.new {
            return;
        }
        let mut bytes = Vec::new();
        for (key, report) in self.now {
            if bytes.len() + report.len() + ENTRY > most {
                break;
            }
            bytes.extend_from_slice(key.as_bytes());
            bytes.extend_from_slice(&(report.len() as u64).to_le_bytes());
            bytes.extend_from_slice(&report);
        }
        store.put_bytes(&self.key, &bytes);
    }
}

/// Bytes before each report: its key and its length.
const ENTRY: usize = 32 + 8;

/// The reports of an entry by their keys; `None` where it is not made up of whole ones.
fn split(bytes: &[u8]) -> Option<BTreeMap<Digest, Vec<u8>>> {
    let mut found = BTreeMap::new();
    let mut reader = Reader(bytes);
    while !reader.0.is_empty() {
        let key = Digest::from_bytes(*reader.take::<32>()?);
        let length = usize::try_from(reader.number()?).ok()?;
        let (report, rest) = reader.0.split_at_checked(length)?;
        found.insert(key, report.to_vec());
        reader.0 = rest;
    }
    Some(found)
}

fn encode(report: &ChannelReport) -> Vec<u8> {
    let mut out = Writer(Vec::new());
    out.byte(match report.by {
        Metric::Response => 0,
        Metric::Spectral => 1,
    });
    out.byte(match report.states {
        None => 0,
        Some(StatesFrom::Kernels) => 1,
        Some(StatesFrom::Reader) => 2,
    });
    out.real(report.redundancy);
    out.reals(&[report.nearest]);
    out.reals(&[report.directions.map(|directions| directions as f64)]);
    out.number(report.edges_left_out);
    out.number(report.clusters.len());
    for cluster in &report.clusters {
        out.number(cluster.representative);
        out.real(cluster.radius);
        out.number(cluster.members.len());
        cluster.members.iter().for_each(|member| out.number(*member));
    }
    out.number(report.certificates.len());
    for one in &report.certificates {
        out.number(one.removed);
        out.number(one.represented_by);
        out.reals(&[one.d_fs, one.d_response, one.bound, one.relative, one.measured]);
    }
    out.number(report.edges.len());
    for edge in &report.edges {
        out.number(edge.a);
        out.number(edge.b);
        out.reals(&[edge.d_fs, edge.d_response]);
    }
    out.0
}

fn decode(bytes: &[u8]) -> Option<ChannelReport> {
    let mut from = Reader(bytes);
    let by = match from.byte()? {
        0 => Metric::Response,
        1 => Metric::Spectral,
        _ => return None,
    };
    let states = match from.byte()? {
        0 => None,
        1 => Some(StatesFrom::Kernels),
        2 => Some(StatesFrom::Reader),
        _ => return None,
    };
    let redundancy = from.real()?;
    let [nearest] = from.reals()?;
    let [directions] = from.reals()?;
    let edges_left_out = from.size()?;
    let cluster = |from: &mut Reader| {
        let (representative, radius) = (from.size()?, from.real()?);
        Some(Cluster { representative, radius, members: from.list(Reader::size)? })
    };
    let clusters = from.list(cluster)?;
    let certificate = |from: &mut Reader| {
        let (removed, represented_by) = (from.size()?, from.size()?);
        let [d_fs, d_response, bound, relative, measured] = from.reals()?;
        Some(Certificate { removed, represented_by, d_fs, d_response, bound, relative, measured })
    };
    let certificates = from.list(certificate)?;
    let edge = |from: &mut Reader| {
        let (a, b) = (from.size()?, from.size()?);
        let [d_fs, d_response] = from.reals()?;
        Some(Edge { a, b, d_fs, d_response })
    };
    let edges = from.list(edge)?;
    from.0.is_empty().then_some(ChannelReport {
        by,
        value: None,
        states,
        redundancy,
        nearest,
        directions: directions.map(|directions| directions as usize),
        clusters,
        certificates,
        edges,
        edges_left_out,
    })
}

struct Writer(Vec<u8>);

impl Writer {
    fn byte(&mut self, value: u8) {
        self.0.push(value);
    }

    /// Numbers of channels and their counts, which are small for the most part: seven bits a byte.
    fn number(&mut self, value: usize) {
        let mut rest = value as u64;
        while rest >= 0x80 {
            self.byte(rest as u8 | 0x80);
            rest >>= 7;
        }
        self.byte(rest as u8);
    }

    fn real(&mut self, value: f64) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    /// Which of the values there are, and those.
    fn reals(&mut self, values: &[Option<f64>]) {
        let bit = |(place, value): (usize, &Option<f64>)| u8::from(value.is_some()) << place;
        self.byte(values.iter().enumerate().map(bit).sum());
        values.iter().flatten().for_each(|value| self.real(*value));
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take<const N: usize>(&mut self) -> Option<&'a [u8; N]> {
        let (first, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(first)
    }

    fn byte(&mut self) -> Option<u8> {
        Some(self.take::<1>()?[0])
    }

    /// A length before an entry.
    fn number(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(*self.take::<8>()?))
    }

    fn size(&mut self) -> Option<usize> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return usize::try_from(value).ok();
            }
        }
        None
    }

    fn real(&mut self) -> Option<f64> {
        Some(f64::from_le_bytes(*self.take::<8>()?))
    }

    fn reals<const N: usize>(&mut self) -> Option<[Option<f64>; N]> {
        let there = self.byte()?;
        let mut values = [None; N];
        for (place, value) in values.iter_mut().enumerate() {
            if there & (1 << place) != 0 {
                *value = Some(self.real()?);
            }
        }
        Some(values)
    }

    /// A list. No more is set aside for it than there are bytes.
    fn list<T>(&mut self, each: impl Fn(&mut Self) -> Option<T>) -> Option<Vec<T>> {
        let count = self.size()?;
        let mut found = Vec::with_capacity(count.min(self.0.len()));
        for _ in 0..count {
            found.push(each(self)?);
        }
        Some(found)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Keeps one entry of bytes.
    #[derive(Default)]
    struct One(Option<(Digest, Vec<u8>)>);

    impl Store for One {
        fn get(&mut self, _key: &Digest) -> Option<crate::spectra::Spectrum> {
            None
        }

        fn put(&mut self, _key: &Digest, _spectrum: &crate::spectra::Spectrum) {}

        fn get_bytes(&mut self, key: &Digest) -> Option<Vec<u8>> {
            let found = self.0.iter().find(|(kept, _)| kept == key);
            found.map(|(_, bytes)| bytes.clone())
        }

        fn put_bytes(&mut self, key: &Digest, bytes: &[u8]) {
            self.0 = Some((*key, bytes.to_vec()));
        }
    }

    const OPTIONS: Options = Options { augment: crate::spectra::Augment::Affine, threshold: 0.1 };

    fn any_report() -> impl Strategy<Value = ChannelReport> {
        let real = || prop_oneof![any::<f64>().prop_filter("no NaN", |v| !v.is_nan()), Just(-0.0)];
        let maybe = move || prop::option::of(real());
        let cluster = (any::<usize>(), prop::collection::vec(0usize..5000, 0..6), real()).prop_map(
            |(representative, members, radius)| Cluster { representative, members, radius },
        );
        let certificate = (0usize..5000, 0usize..5000, prop::array::uniform5(maybe())).prop_map(
            |(removed, represented_by, [d_fs, d_response, bound, relative, measured])| {
                Certificate { removed, represented_by, d_fs, d_response, bound, relative, measured }
            },
        );
        let edge = (0usize..5000, 0usize..5000, maybe(), maybe())
            .prop_map(|(a, b, d_fs, d_response)| Edge { a, b, d_fs, d_response });
        (
            prop::sample::select(vec![Metric::Response, Metric::Spectral]),
            prop::sample::select(vec![None, Some(StatesFrom::Kernels), Some(StatesFrom::Reader)]),
            (real(), maybe(), prop::option::of(0usize..5000), any::<usize>()),
            prop::collection::vec(cluster, 0..5),
            prop::collection::vec(certificate, 0..5),
            prop::collection::vec(edge, 0..8),
        )
            .prop_map(|(by, states, numbers, clusters, certificates, edges)| {
                let (redundancy, nearest, directions, edges_left_out) = numbers;
                ChannelReport {
                    by,
                    value: None,
                    states,
                    redundancy,
                    nearest,
                    directions,
                    clusters,
                    certificates,
                    edges,
                    edges_left_out,
                }
            })
    }

    proptest! {
        #[test]
        fn a_report_comes_back_to_the_last_bit_and_a_damaged_one_not_at_all(
            report in any_report(), cut in any::<prop::sample::Index>(),
            noise in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            let bytes = encode(&report);
            let again = decode(&bytes).unwrap();
            prop_assert_eq!(encode(&again), bytes.clone());
            prop_assert_eq!(again, report);
            prop_assert_eq!(decode(&bytes[..cut.index(bytes.len())]), None);
            // Whatever stands there, nothing worse happens than that it is made again.
            let _ = (decode(&noise), split(&noise));
        }

        #[test]
        fn what_is_kept_is_found_again_and_no_more_is_kept_than_there_is_room_for(
            reports in prop::collection::vec(any_report(), 1..12), room in 0usize..4000
        ) {
            let mut store = One::default();
            let keys: Vec<Digest> = (0..reports.len()).map(|i| Digest::of(&[i as u8])).collect();
            let mut kept = Kept::open(&[], &OPTIONS, false, &mut store);
            for (key, report) in keys.iter().zip(&reports) {
                prop_assert_eq!(kept.find(key), None);
                kept.keep(*key, report);
                let found = kept.find(key);
                prop_assert_eq!(found.as_ref(), Some(report));
            }
            kept.close_within(room, &mut store);
            prop_assert!(store.0.as_ref().is_some_and(|(_, bytes)| bytes.len() <= room));
            let mut again = Kept::open(&[], &OPTIONS, false, &mut store);
            for (key, report) in keys.iter().zip(&reports) {
                let found = again.find(key);
                prop_assert!(found.is_none() || found.as_ref() == Some(report));
            }
            let whole: usize = reports.iter().map(|report| encode(report).len() + ENTRY).sum();
            if whole <= room {
                prop_assert_eq!(again.now.len(), reports.len());
            }
            // Nothing new was made: nothing is written.
            store.0 = None;
            again.close(&mut store);
            prop_assert!(store.0.is_none());
            let other = Options { threshold: 0.2, ..OPTIONS };
            prop_assert!(Kept::open(&[], &other, false, &mut store).before.is_empty());
        }
    }

    #[test]
    fn an_entry_that_is_not_whole_is_as_good_as_absent() {
        let mut store = One::default();
        let mut kept = Kept::open(&[], &OPTIONS, true, &mut store);
        kept.keep(
            Digest::of(b"a"),
            &decode(&[1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]).unwrap(),
        );
        kept.close(&mut store);
        let whole = store.0.clone().unwrap().1;
        assert_eq!(Kept::open(&[], &OPTIONS, true, &mut store).before.len(), 1);
        store.0.as_mut().unwrap().1.truncate(whole.len() - 1);
        assert!(Kept::open(&[], &OPTIONS, true, &mut store).before.is_empty());
    }
}
