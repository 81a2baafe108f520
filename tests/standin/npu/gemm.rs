//! Products of matrices: packed panels and a kernel that stays in registers, so that what a run of the stand-in
//! really takes lies well below what it claims to take.

use std::cell::RefCell;

/// The most rows and columns of a tile that any kernel here has.
const TILE: usize = 8 * 32;

/// Rows and columns of a kernel's tile, and the kernel: (depth, packed rows, packed columns, where to).
struct Kernel {
    rows: usize,
    columns: usize,
    run: unsafe fn(usize, &[f32], &[f32], &mut [f32; TILE]),
}

fn kernel() -> Kernel {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            return Kernel { rows: 8, columns: 32, run: x86::avx512 };
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            return Kernel { rows: 4, columns: 16, run: x86::avx2 };
        }
    }
    Kernel { rows: 4, columns: 8, run: plain }
}

fn plain(depth: usize, a: &[f32], b: &[f32], to: &mut [f32; TILE]) {
    let mut sums = [[0f32; 8]; 4];
    for (a, b) in a.chunks_exact(4).zip(b.chunks_exact(8)).take(depth) {
        for (sums, a) in sums.iter_mut().zip(a) {
            sums.iter_mut().zip(b).for_each(|(sum, b)| *sum += a * b);
        }
    }
    for (to, sums) in to.chunks_exact_mut(8).zip(&sums) {
        to.copy_from_slice(sums);
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::TILE;

    macro_rules! kernel {
        ($name:ident, $features:literal, $rows:literal, $lanes:literal, $zero:ident, $load:ident,
         $all:ident, $add:ident, $store:ident) => {
            /// # Safety
            /// The processor has these features, and the panels hold `depth` rows.
            #[target_feature(enable = $features)]
            pub unsafe fn $name(depth: usize, a: &[f32], b: &[f32], to: &mut [f32; TILE]) {
                assert!(a.len() >= depth * $rows && b.len() >= depth * 2 * $lanes);
                let mut sums = [[$zero(); 2]; $rows];
                for step in 0..depth {
                    // SAFETY: within the panels, by the assertion above.
                    unsafe {
                        let at = b.as_ptr().add(step * 2 * $lanes);
                        let columns = [$load(at), $load(at.add($lanes))];
                        for row in 0..$rows {
                            let one = $all(*a.as_ptr().add(step * $rows + row));
                            sums[row][0] = $add(one, columns[0], sums[row][0]);
                            sums[row][1] = $add(one, columns[1], sums[row][1]);
                        }
                    }
                }
                for (row, sums) in sums.iter().enumerate() {
                    // SAFETY: rows × two vectors are no more than a tile.
                    unsafe {
                        let to = to.as_mut_ptr().add(row * 2 * $lanes);
                        $store(to, sums[0]);
                        $store(to.add($lanes), sums[1]);
                    }
                }
            }
        };
    }

    kernel!(
        avx512,
        "avx512f",
        8,
        16,
        _mm512_setzero_ps,
        _mm512_loadu_ps,
        _mm512_set1_ps,
        _mm512_fmadd_ps,
        _mm512_storeu_ps
    );
    kernel!(
        avx2,
        "avx2,fma",
        4,
        8,
        _mm256_setzero_ps,
        _mm256_loadu_ps,
        _mm256_set1_ps,
        _mm256_fmadd_ps,
        _mm256_storeu_ps
    );
}

thread_local! {
    /// Packed panels of both sides and a row, kept for the next product: fresh memory of their size would cost as
    /// much as it does.
    static PANELS: RefCell<[Vec<f32>; 3]> = const { RefCell::new([const { Vec::new() }; 3]) };
}

/// The product of `a` (m × k, row by row) and a matrix of k × n, whose rows `row` writes one after the other, added
/// to what stands in `to` (m × n).
pub fn multiply_add(
    (m, k, n): (usize, usize, usize),
    a: &[f32],
    mut row: impl FnMut(usize, &mut [f32]),
    to: &mut [f32],
) {
    assert!(a.len() >= m * k && to.len() >= m * n);
    let kernel = kernel();
    let (rows, columns) = (kernel.rows, kernel.columns);
    let (tall, wide) = (m.next_multiple_of(rows), n.next_multiple_of(columns));
    PANELS.with_borrow_mut(|[left, right, line]| {
        left.clear();
        left.resize(tall * k, 0.0);
        for (at, row) in a[..m * k].chunks_exact(k.max(1)).enumerate() {
            let panel = &mut left[at / rows * rows * k..];
            row.iter().enumerate().for_each(|(step, one)| panel[step * rows + at % rows] = *one);
        }
        right.resize(right.len().max(wide * k), 0.0);
        line.clear();
        line.resize(wide, 0.0);
        for step in 0..k {
            row(step, &mut line[..n]);
            for (panel, part) in line.chunks_exact(columns).enumerate() {
                right[(panel * k + step) * columns..][..columns].copy_from_slice(part);
            }
        }
        packed(&kernel, (m, k, n), left, right, to);
    });
}

fn packed(
    kernel: &Kernel,
    (m, k, n): (usize, usize, usize),
    left: &[f32],
    right: &[f32],
    to: &mut [f32],
) {
    let (rows, columns) = (kernel.rows, kernel.columns);
    let mut tile = [0f32; TILE];
    for first in (0..n).step_by(columns) {
        let (right, wide) = (&right[first * k..][..columns * k], columns.min(n - first));
        for top in (0..m).step_by(rows) {
            // SAFETY: the kernel was chosen for this processor, and both panels hold `k` rows.
            unsafe { (kernel.run)(k, &left[top * k..][..rows * k], right, &mut tile) };
            for row in 0..rows.min(m - top) {
                let to = &mut to[(top + row) * n + first..][..wide];
                to.iter_mut().zip(&tile[row * columns..]).for_each(|(to, sum)| *to += sum);
            }
        }
    }
}
