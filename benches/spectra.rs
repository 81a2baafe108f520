//! Singular values of operators: the Gram matrix on the small side against faer's own decomposition, and many
//! small matrices at once against one after the other.

use std::hint::black_box;

use blochd::onnx::Matrix;
use blochd::spectra::{OperatorMatrix, Precision, spectrum, tiny};
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use faer::Mat;

/// Deterministic weights of about unit size.
fn weights(count: usize) -> Vec<f32> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u32 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

fn layers(c: &mut Criterion) {
    let mut group = c.benchmark_group("layer");
    group.sample_size(10);
    for (rows, cols) in [(64, 576), (256, 2304), (512, 4608), (1280, 320)] {
        let data = weights(rows * cols);
        let dense = Mat::from_fn(rows, cols, |i, j| f64::from(data[i * cols + j]));
        let operator = OperatorMatrix::dense_of(Matrix { rows, cols, data }, None);
        let shape = format!("{rows}x{cols}");
        for (name, precision) in [("gram", Precision::Gram), ("exact", Precision::Exact)] {
            group.bench_function(BenchmarkId::new(name, &shape), |b| {
                b.iter(|| spectrum(black_box(&operator), precision));
            });
        }
        group.bench_function(BenchmarkId::new("faer svd", &shape), |b| {
            b.iter(|| black_box(&dense).singular_values());
        });
    }
    group.finish();
}

fn channels(c: &mut Criterion) {
    let mut group = c.benchmark_group("channels");
    group.sample_size(10);
    for (count, rows, cols) in [(1024, 64, 9), (4096, 16, 9)] {
        let data = weights(count * rows * cols);
        let shape = format!("{count}x({rows}x{cols})");
        group.bench_function(BenchmarkId::new("batched", &shape), |b| {
            b.iter(|| tiny::batch(black_box(&data), rows, cols));
        });
        group.bench_function(BenchmarkId::new("faer svd each", &shape), |b| {
            b.iter(|| {
                let one = |matrix: &[f32]| {
                    Mat::from_fn(rows, cols, |i, j| f64::from(matrix[i * cols + j]))
                        .singular_values()
                };
                black_box(&data).chunks_exact(rows * cols).map(one).collect::<Vec<_>>()
            });
        });
    }
    group.finish();
}

criterion_group!(benches, layers, channels);
criterion_main!(benches);
