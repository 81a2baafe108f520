use faer::Mat;
use proptest::prelude::*;

use super::response::ChannelMoments;
use super::tridiagonal::Tridiagonal;
use super::*;
use crate::onnx::Matrix;

fn matrix(rows: usize, cols: usize, data: Vec<f32>) -> Matrix {
    Matrix { rows, cols, data }
}

fn any_matrix(most: usize) -> impl Strategy<Value = Matrix> {
    (1..=most, 1..=most).prop_flat_map(|(rows, cols)| {
        prop::collection::vec(-4.0f32..4.0, rows * cols)
            .prop_map(move |data| matrix(rows, cols, data))
    })
}

fn plain(matrix: Matrix) -> OperatorMatrix {
    OperatorMatrix::dense_of(matrix, None)
}

fn values(matrix: &OperatorMatrix) -> Vec<f64> {
    spectrum(matrix, Precision::Gram).unwrap().values
}

fn close(a: &[f64], b: &[f64], tolerance: f64) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() <= tolerance)
}

/// An orthogonal n × n matrix: the product of Householder reflections along the given vectors.
fn orthogonal(n: usize, vectors: &[f64]) -> Mat<f64> {
    let mut q = Mat::<f64>::identity(n, n);
    for v in vectors.chunks_exact(n) {
        let square: f64 = v.iter().map(|x| x * x).sum();
        if square > 1e-3 {
            let h =
                Mat::from_fn(n, n, |i, j| f64::from(u8::from(i == j)) - 2.0 * v[i] * v[j] / square);
            q = &q * &h;
        }
    }
    q
}

fn to_f64(m: &Matrix) -> Mat<f64> {
    Mat::from_fn(m.rows, m.cols, |i, j| f64::from(m.data[i * m.cols + j]))
}

fn frobenius(m: &Mat<f64>) -> f64 {
    m.norm_l2()
}

proptest! {
    #[test]
    fn gram_values_agree_with_a_decomposition(m in any_matrix(40)) {
        let reference = to_f64(&m).singular_values().unwrap();
        let largest = reference[0];
        let found = values(&plain(m));
        for (a, b) in found.iter().zip(&reference) {
            // A Gram matrix knows σ² to rounding of σ₁².
            prop_assert!((a * a - b * b).abs() <= 1e-13 * largest * largest, "{a} {b}");
        }
        prop_assert_eq!(found.len(), reference.len());
    }

    #[test]
    fn the_border_is_the_same_as_the_augmented_matrix_written_out(
        m in any_matrix(12), seed in prop::collection::vec(-2.0f32..2.0, 12)
    ) {
        let bias = seed[..m.rows].to_vec();
        let operator = OperatorMatrix::dense_of(m, Some(bias));
        let reference = operator.dense().singular_values().unwrap();
        let found = values(&operator);
        let squares = |v: &[f64]| v.iter().map(|x| x * x).collect::<Vec<_>>();
        prop_assert!(close(&squares(&found), &squares(&reference), 1e-12 * reference[0].powi(2)));
        let norm = found.iter().map(|v| v * v).sum::<f64>().sqrt();
        prop_assert!((norm - operator.frobenius()).abs() < 1e-9 * norm);
    }

    #[test]
    fn groups_are_blocks_with_and_without_bias(
        data in prop::collection::vec(-2.0f32..2.0, 3 * 2 * 5),
        bias in prop::option::of(prop::collection::vec(-2.0f32..2.0, 6)), tall: bool
    ) {
        let (rows, cols) = if tall { (5, 2) } else { (2, 5) };
        let blocks: Vec<Matrix> =
            data.chunks_exact(10).map(|d| matrix(rows, cols, d.to_vec())).collect();
        let bias = bias.map(|mut b| { b.resize(3 * rows, 0.5); b });
        let operator = OperatorMatrix::blocks_of(blocks, bias);
        let reference = operator.dense().singular_values().unwrap();
        prop_assert!(close(&values(&operator), &reference, 1e-6 * reference[0]));
    }

    #[test]
    fn many_small_matrices_at_once_give_what_each_gives_alone(
        (rows, cols) in (1usize..20, 1usize..20),
        count in 1usize..20,
        seed in prop::collection::vec(-3.0f32..3.0, 20 * 20 * 20)
    ) {
        let data = &seed[..rows * cols * count];
        let found = tiny::batch(data, rows, cols).unwrap();
        prop_assert_eq!(found.len(), count);
        for (one, chunk) in found.iter().zip(data.chunks_exact(rows * cols)) {
            let reference = to_f64(&matrix(rows, cols, chunk.to_vec())).singular_values().unwrap();
            for (a, b) in one.iter().zip(&reference) {
                prop_assert!((a * a - b * b).abs() <= 1e-12 * reference[0].powi(2), "{a} {b}");
            }
            prop_assert_eq!(one.len(), reference.len());
        }
    }

    #[test]
    fn a_state_ignores_scale_rotation_and_permutation(
        m in any_matrix(12),
        scale in 0.01f32..100.0,
        vectors in prop::collection::vec(-1.0f64..1.0, 24),
    ) {
        let own = values(&plain(m.clone()));
        let Some(state) = State::of(&own) else { return Ok(()) };
        let scaled = matrix(m.rows, m.cols, m.data.iter().map(|v| -v * scale).collect());
        let state_of = |m: &Mat<f64>| State::of(&m.singular_values().unwrap()).unwrap();
        let rotated = orthogonal(m.rows, &vectors[..m.rows * (24 / m.rows).min(2)]) * to_f64(&m);
        let reversed = Mat::from_fn(m.rows, m.cols, |i, j| {
            f64::from(m.data[(m.rows - 1 - i) * m.cols + (m.cols - 1 - j)])
        });
        prop_assert!(state.fubini_study(&state_of(&to_f64(&scaled))) < 1e-6);
        prop_assert!(state.fubini_study(&state_of(&rotated)) < 1e-6);
        prop_assert!(state.fubini_study(&state_of(&reversed)) < 1e-6);
    }

    #[test]
    fn distances_of_states_are_a_metric(
        a in prop::collection::vec(0.0f64..5.0, 1..9),
        b in prop::collection::vec(0.0f64..5.0, 1..9),
        c in prop::collection::vec(0.0f64..5.0, 1..9)
    ) {
        let states: Option<Vec<State>> = [&a, &b, &c].iter().map(|v| State::of(v)).collect();
        let Some(states) = states else { return Ok(()) };
        let d = |i: usize, j: usize| states[i].fubini_study(&states[j]);
        prop_assert_eq!(d(0, 1), d(1, 0));
        prop_assert_eq!(d(0, 0), 0.0);
        prop_assert!(d(0, 1) <= std::f64::consts::FRAC_PI_2 + 1e-12);
        prop_assert!(d(0, 2) <= d(0, 1) + d(1, 2) + 1e-12);
        let w = |x: &[f64], y: &[f64]| wasserstein2(x, y) * (x.len().max(y.len()) as f64).sqrt();
        prop_assert!(w(&a, &c) <= w(&a, &b) + w(&b, &c) + 1e-12);
    }

    #[test]
    fn the_distance_is_the_best_error_after_rotations(
        rows in 1usize..7, cols in 1usize..7,
        a in prop::collection::vec(-2.0f64..2.0, 36), b in prop::collection::vec(-2.0f64..2.0, 36),
        q in prop::collection::vec(-1.0f64..1.0, 12), r in prop::collection::vec(-1.0f64..1.0, 12)
    ) {
        let w1 = Mat::from_fn(rows, cols, |i, j| a[i * cols + j]);
        let w2 = Mat::from_fn(rows, cols, |i, j| b[i * cols + j]);
        let (n1, n2) = (frobenius(&w1), frobenius(&w2));
        prop_assume!(n1 > 1e-3 && n2 > 1e-3);
        let (s1, s2) = (w1.singular_values().unwrap(), w2.singular_values().unwrap());
        let d = State::of(&s1).unwrap().fubini_study(&State::of(&s2).unwrap());
        let stated = 2.0 * n1 * (d / 2.0).sin();
        // Reached by Q = U₁U₂ᵀ, R = V₂V₁ᵀ …
        let (svd1, svd2) = (w1.svd().unwrap(), w2.svd().unwrap());
        let best = svd1.U() * svd2.U().transpose() * &w2 * svd2.V() * svd1.V().transpose();
        let reached = frobenius(&(&w1 - best * faer::Scale(n1 / n2)));
        prop_assert!((reached - stated).abs() < 1e-7 * n1, "{reached} {stated}");
        // … and undercut by no other rotation.
        let q = orthogonal(rows, &q[..rows * 2.min(12 / rows)]);
        let r = orthogonal(cols, &r[..cols]);
        let other = frobenius(&(&w1 - q * &w2 * r * faer::Scale(n1 / n2)));
        prop_assert!(other >= stated - 1e-9 * n1);
    }

    #[test]
    fn no_change_moves_a_state_further_than_its_bound(
        m in any_matrix(10), change in prop::collection::vec(-1.0f32..1.0, 100), size in 0.0f32..2.0
    ) {
        let e = matrix(m.rows, m.cols, change[..m.data.len()].iter().map(|v| v * size).collect());
        let (w, e) = (to_f64(&m), to_f64(&e));
        let sum = &w + &e;
        let states = [&w, &sum].map(|m| State::of(&m.singular_values().unwrap()));
        let [Some(before), Some(after)] = states else { return Ok(()) };
        let bound = angle_bound(frobenius(&e), frobenius(&w));
        prop_assert!(before.fubini_study(&after) <= bound + 1e-7);
    }

    #[test]
    fn accumulated_drift_bounds_any_number_of_changes(
        m in any_matrix(6), changes in prop::collection::vec(
            prop::collection::vec(-0.1f32..0.1, 36), 1..6)
    ) {
        let start = to_f64(&m);
        let Some(first) = State::of(&start.singular_values().unwrap()) else { return Ok(()) };
        let (mut now, mut drift) = (start, Drift::default());
        for change in &changes {
            let e = Mat::from_fn(m.rows, m.cols, |i, j| f64::from(change[i * m.cols + j]));
            drift = drift.after(frobenius(&e), frobenius(&now));
            now = &now + &e;
        }
        let Some(last) = State::of(&now.singular_values().unwrap()) else { return Ok(()) };
        let moved = first.fubini_study(&last);
        prop_assert!(moved <= drift.bound() + 1e-7);
        // An edge to a third operator that is further from the threshold than the drift stays on its side.
        let third = State::of(&[1.0, 0.5]).unwrap();
        let (old, new) = (first.fubini_study(&third), last.fubini_study(&third));
        for threshold in [0.05, 0.3, 0.8] {
            if !drift.may_move_edge(Drift::default(), old, threshold) {
                prop_assert_eq!(old < threshold, new < threshold);
            }
        }
    }

    #[test]
    fn moments_do_not_depend_on_how_rows_are_batched(
        rows in prop::collection::vec(-3.0f64..3.0, 3 * 4..3 * 30), cut in 1usize..20
    ) {
        let rows = &rows[..rows.len() / 3 * 3];
        let mut whole = ChannelMoments::new(3);
        whole.add(rows);
        let mut parts = ChannelMoments::new(3);
        rows.chunks(3 * cut).for_each(|part| parts.add(part));
        prop_assert_eq!(whole.rows(), parts.rows());
        for i in 0..3 {
            prop_assert!((whole.mean(i) - parts.mean(i)).abs() < 1e-12);
            for j in 0..3 {
                prop_assert!((whole.covariance(i, j) - parts.covariance(i, j)).abs() < 1e-11);
            }
        }
    }

    #[test]
    fn the_affine_substitute_errs_by_norm_times_sine_and_none_errs_less(
        rows in prop::collection::vec(-3.0f64..3.0, 2 * 40), da in -1.0f64..1.0, dc in -1.0f64..1.0
    ) {
        let mut moments = ChannelMoments::new(2);
        moments.add(&rows);
        let (a, c) = moments.substitute(0, 1);
        let error = |a: f64, c: f64| {
            let sum: f64 = rows.chunks_exact(2).map(|r| (r[0] - a * r[1] - c).powi(2)).sum();
            (sum / moments.rows() as f64).sqrt()
        };
        let stated = moments.substitution_error(0, 1);
        prop_assert!((error(a, c) - stated).abs() < 1e-9, "{} {}", error(a, c), stated);
        prop_assert!((moments.error_of(0, 1, (a, c)) - stated).abs() < 1e-9);
        prop_assert!(error(a + da, c + dc) >= stated - 1e-9);
    }
}

#[test]
fn an_orthogonal_matrix_has_full_ranks_and_equal_values() {
    let q = orthogonal(6, &[0.3, -1.0, 0.2, 0.9, 0.5, -0.4, 1.0, 0.1, 0.7, -0.6, 0.2, 0.8]);
    let data: Vec<f32> = (0..36).map(|i| q[(i / 6, i % 6)] as f32).collect();
    let found = values(&plain(matrix(6, 6, data)));
    assert!(close(&found, &[1.0; 6], 1e-6), "{found:?}");
    assert!((effective_rank(&found) - 6.0).abs() < 1e-5);
    assert!((stable_rank(&found) - 6.0).abs() < 1e-5);
    assert_eq!(energy_rank(&found, 0.99), 6);
}

#[test]
fn a_rank_one_matrix_has_one_value_and_its_tail_is_noise() {
    let (u, v) = ([1.0f32, 2.0, -2.0], [3.0f32, 0.0, 4.0, 0.0]);
    let data: Vec<f32> = u.iter().flat_map(|a| v.iter().map(move |b| a * b)).collect();
    let operator = plain(matrix(3, 4, data));
    let found = values(&operator);
    assert!((found[0] - 15.0).abs() < 1e-12);
    assert_eq!(found[1..], [0.0, 0.0]);
    assert!((effective_rank(&found) - 1.0).abs() < 1e-12);
    assert_eq!(energy_rank(&found, 0.99), 1);
    assert_eq!(numerical_rank(&found, (3, 4), f64::from(f32::EPSILON)), 1);
    // A noisy tail is computed again where that is cheap.
    let again = spectrum(&operator, Precision::Auto).unwrap();
    assert!(again.exact && again.values[1] < 1e-14, "{again:?}");
}

#[test]
fn ranks_follow_their_closed_forms() {
    // p = (1/2, 1/4, 1/4): entropy 1.5 bits.
    assert!((effective_rank(&[2.0, 1.0, 1.0]) - 2f64.powf(1.5)).abs() < 1e-12);
    assert!((stable_rank(&[2.0, 1.0, 1.0]) - 1.5).abs() < 1e-12);
    // Energies 4, 1, 1 of 6.
    assert_eq!(energy_rank(&[2.0, 1.0, 1.0], 0.66), 1);
    assert_eq!(energy_rank(&[2.0, 1.0, 1.0], 0.67), 2);
    assert_eq!(energy_rank(&[2.0, 1.0, 1.0], 1.0), 3);
    assert_eq!(
        (effective_rank(&[0.0, 0.0]), stable_rank(&[]), energy_rank(&[], 0.99)),
        (0.0, 0.0, 0)
    );
    assert!(State::of(&[0.0, 0.0]).is_none());
}

#[test]
fn small_angles_keep_their_digits() {
    let angle = 1e-9f64;
    let (a, b) = (State::of(&[1.0, 0.0]).unwrap(), State::of(&[1.0, angle]).unwrap());
    assert!((a.fubini_study(&b) - angle).abs() < 1e-6 * angle);
}

#[test]
fn single_rows_are_all_at_distance_zero() {
    let (a, b) = (values(&plain(matrix(1, 3, vec![1.0, 2.0, 3.0]))), [7.5]);
    assert_eq!(State::of(&a).unwrap().fubini_study(&State::of(&b).unwrap()), 0.0);
}

#[test]
fn a_weight_that_is_no_number_is_named_as_such() {
    let bad = plain(matrix(1, 2, vec![1.0, f32::NAN]));
    assert_eq!(spectrum(&bad, Precision::Auto), Err(SpectraError::NotFinite));
    assert_eq!(tiny::batch(&[f32::INFINITY; 4], 2, 2), Err(SpectraError::NotFinite));
}

#[test]
fn keys_tell_apart_whatever_changes_a_spectrum() {
    use crate::onnx::DType;
    let key = |what: &str, augment, dtype, dims: &[usize], bytes: &[u8]| {
        let elements = crate::units::Digest::of(bytes);
        KeyBuilder::new(what, augment, Precision::Auto).constant(dtype, dims, &elements).finish()
    };
    let base = key("Gemm", Augment::Affine, DType::F16, &[2, 4], &[0; 16]);
    assert_eq!(base, key("Gemm", Augment::Affine, DType::F16, &[2, 4], &[0; 16]));
    let others = [
        key("MatMul", Augment::Affine, DType::F16, &[2, 4], &[0; 16]),
        key("Gemm", Augment::None, DType::F16, &[2, 4], &[0; 16]),
        key("Gemm", Augment::Affine, DType::BF16, &[2, 4], &[0; 16]),
        key("Gemm", Augment::Affine, DType::F16, &[4, 2], &[0; 16]),
        key("Gemm", Augment::Affine, DType::F16, &[2, 4], &[1; 16]),
    ];
    assert!(others.iter().all(|other| *other != base));
}

/// A dense symmetric matrix with these two diagonals.
fn written_out(matrix: &Tridiagonal) -> Mat<f64> {
    let n = matrix.diagonal.len();
    Mat::from_fn(n, n, |i, j| match i.abs_diff(j) {
        0 => matrix.diagonal[i],
        1 => matrix.squares[i.min(j)].sqrt(),
        _ => 0.0,
    })
}

/// Tridiagonal matrices with what makes iterations fail: gaps, rows that are alike, magnitudes that fall off,
/// negative values.
fn any_tridiagonal(most: usize) -> impl Strategy<Value = Tridiagonal> {
    let element =
        prop_oneof![6 => -1.0f64..1.0, 1 => Just(0.0), 1 => Just(1.0), 1 => -1e-9f64..1e-9];
    (1..=most, 0.0f64..2.0).prop_flat_map(move |(n, fall)| {
        let diagonal = prop::collection::vec(element.clone(), n);
        let beside = prop::collection::vec(element.clone(), n - 1);
        (diagonal, beside).prop_map(move |(mut diagonal, beside)| {
            let scale = |i: usize| (-fall * i as f64).exp2();
            diagonal.iter_mut().enumerate().for_each(|(i, d)| *d *= scale(i));
            let squares = beside.iter().enumerate().map(|(i, b)| (b * scale(i)).powi(2));
            Tridiagonal { diagonal, squares: squares.collect() }
        })
    })
}

proptest! {
    #[test]
    fn eigenvalues_of_tridiagonal_matrices_agree_with_a_dense_solver(t in any_tridiagonal(150)) {
        let dense = written_out(&t);
        let reference = dense.self_adjoint_eigenvalues(faer::Side::Lower).unwrap();
        let largest = reference.iter().fold(0.0f64, |most, value| most.max(value.abs()));
        let found = t.eigenvalues().unwrap();
        prop_assert!(close(&found, &reference, 1e-13 * largest), "{found:?} {reference:?}");
    }

    #[test]
    fn eigenvalues_of_symmetric_matrices_agree_with_a_dense_solver(m in any_matrix(60)) {
        let m = to_f64(&m);
        let symmetric = &m * m.transpose();
        let reference = symmetric.self_adjoint_eigenvalues(faer::Side::Lower).unwrap();
        let mirrored = Mat::from_fn(symmetric.nrows(), symmetric.nrows(), |i, j| {
            symmetric[(i.max(j), i.min(j))]
        });
        let found = singular::eigenvalues(mirrored.as_ref()).unwrap();
        let largest = reference.last().copied().unwrap_or(0.0);
        prop_assert!(close(&found, &reference, 1e-13 * largest));
    }
}

#[test]
fn eigenvalues_beyond_the_caches_agree_with_those_within() {
    // The second difference has known eigenvalues: 2 - 2·cos(kπ/(n + 1)).
    let n = crate::limits::CACHED_SIDE + 8;
    let difference = Mat::from_fn(n, n, |i, j| match i.abs_diff(j) {
        0 => 2.0,
        1 => -1.0,
        _ => 0.0,
    });
    // A reflection makes it dense without moving an eigenvalue.
    let vector: Vec<f64> = (0..n).map(|i| 1.0 + (i % 7) as f64).collect();
    let q = orthogonal(n, &vector);
    let dense = &q * difference * &q;
    let found = singular::eigenvalues(dense.as_ref()).unwrap();
    for (k, value) in found.iter().enumerate() {
        let angle = (k + 1) as f64 * std::f64::consts::PI / (n + 1) as f64;
        assert!((value - (2.0 - 2.0 * angle.cos())).abs() < 1e-12, "{k}: {value}");
    }
}

#[test]
fn a_matrix_with_something_that_is_no_number_has_no_eigenvalues() {
    for bad in [f64::NAN, f64::INFINITY] {
        let t = Tridiagonal { diagonal: vec![1.0, bad, 2.0], squares: vec![0.5, 0.5] };
        assert_eq!(t.eigenvalues(), None);
        let t = Tridiagonal { diagonal: vec![1.0, 3.0, 2.0], squares: vec![0.5, bad] };
        assert_eq!(t.eigenvalues(), None);
    }
}
