//! The numbers: every operator on f32, by loops that are easy to follow where they need not be fast.

use std::borrow::Cow;

use super::gemm::multiply_add;
use super::ops::{Op, Window};

/// A tensor; those that come in are lent.
#[derive(Debug, Clone)]
pub struct Held<'a> {
    pub shape: Vec<usize>,
    pub data: Cow<'a, [f32]>,
}

impl Held<'_> {
    fn new(shape: Vec<usize>, data: Vec<f32>) -> Self {
        Self { shape, data: Cow::Owned(data) }
    }

    fn filled(shape: Vec<usize>, value: f32) -> Self {
        let count = shape.iter().product();
        Self::new(shape, vec![value; count])
    }

    /// Batch, channels, height, width.
    fn image(&self) -> Result<[usize; 4], String> {
        let sizes = self.shape.as_slice().try_into();
        sizes.map_err(|_| format!("an image has four dimensions, not {:?}", self.shape))
    }
}

/// The output of an operator; the inputs in its order, absent ones as none.
pub fn run<'a>(op: &Op, inputs: &[Option<&Held<'a>>]) -> Result<Held<'a>, String> {
    let at = |place: usize| inputs.get(place).copied().flatten();
    let need = |place: usize| at(place).ok_or_else(|| format!("input {place} is missing"));
    match op {
        Op::Conv { window, groups } => conv(window, *groups, need(0)?, need(1)?, at(2)),
        Op::MaxPool { window, kernel } => pool(window, *kernel, need(0)?, |seen, _| {
            seen.iter().copied().fold(f32::NEG_INFINITY, f32::max)
        }),
        Op::AveragePool { window, kernel, counts_pads } => {
            pool(window, *kernel, need(0)?, |seen, all| {
                let count = if *counts_pads { all } else { seen.len() };
                seen.iter().sum::<f32>() / count as f32
            })
        }
        Op::GlobalAveragePool => {
            let [n, c, h, w] = need(0)?.image()?;
            let planes = need(0)?.data.chunks_exact((h * w).max(1));
            let mean = |plane: &[f32]| plane.iter().sum::<f32>() / (h * w) as f32;
            Ok(Held::new(vec![n, c, 1, 1], planes.map(mean).collect()))
        }
        Op::Gemm { alpha, beta, transposed } => {
            gemm(*alpha, *beta, *transposed, need(0)?, need(1)?, at(2))
        }
        Op::MatMul => matmul(need(0)?, need(1)?),
        Op::Binary(by) => binary(*by, need(0)?, need(1)?),
        Op::Unary(unary) => Ok(map(need(0)?, |x| unary.of(x))),
        Op::Clip => {
            let bound = |place: usize, none: f32| {
                at(place).and_then(|held| held.data.first().copied()).unwrap_or(none)
            };
            let (low, high) = (bound(1, f32::NEG_INFINITY), bound(2, f32::INFINITY));
            Ok(map(need(0)?, |x| x.max(low).min(high)))
        }
        Op::Flatten { axis } => {
            let input = need(0)?;
            let rank = input.shape.len() as i64;
            let axis = if *axis < 0 { axis + rank } else { *axis }.clamp(0, rank) as usize;
            let rows = input.shape[..axis].iter().product();
            let shape = vec![rows, input.shape[axis..].iter().product()];
            Ok(Held { shape, data: input.data.clone() })
        }
    }
}

fn map<'a>(input: &Held<'_>, by: impl Fn(f32) -> f32) -> Held<'a> {
    Held::new(input.shape.clone(), input.data.iter().map(|x| by(*x)).collect())
}

fn conv<'a>(
    window: &Window,
    groups: usize,
    input: &Held<'_>,
    weight: &Held<'_>,
    bias: Option<&Held<'_>>,
) -> Result<Held<'a>, String> {
    let [n, c, h, w] = input.image()?;
    let [m, per_group, kh, kw] = weight.image()?;
    if per_group * groups != c || m % groups != 0 || bias.is_some_and(|b| b.data.len() != m) {
        return Err(format!(
            "{:?} does not fit {:?} in {groups} groups",
            weight.shape, input.shape
        ));
    }
    let [oh, ow] = window.over([h, w], [kh, kw]).ok_or("the kernel is larger than the image")?;
    let mut output = Held::filled(vec![n, m, oh, ow], 0.0);
    let (plane, depth, rows) = (oh * ow, per_group * kh * kw, m / groups);
    let to = output.data.to_mut();
    for (at, to) in to.chunks_exact_mut(plane.max(1)).enumerate() {
        to.fill(bias.map_or(0.0, |bias| bias.data[at % m]));
    }
    if per_group == 1 && rows == 1 {
        each_alone(window, &input.data, &weight.data, [h, w], [kh, kw], [oh, ow], to);
        return Ok(output);
    }
    for (image, group) in (0..n).flat_map(|image| (0..groups).map(move |group| (image, group))) {
        let first = (image * c + group * per_group) * h * w;
        let seen = &input.data[first..][..per_group * h * w];
        let weight = &weight.data[group * rows * depth..][..rows * depth];
        let to = &mut to[(image * m + group * rows) * plane..][..rows * plane];
        let row = |step: usize, line: &mut [f32]| {
            let (channel, place) = (step / (kh * kw), step % (kh * kw));
            let channel = &seen[channel * h * w..][..h * w];
            unfold(window, channel, [h, w], [place / kw, place % kw], ow, line);
        };
        multiply_add((rows, depth, plane), weight, row, to);
    }
    Ok(output)
}

/// A convolution of every channel with a kernel of its own, added to what stands in `to`.
fn each_alone(
    window: &Window,
    input: &[f32],
    weight: &[f32],
    [h, w]: [usize; 2],
    [kh, kw]: [usize; 2],
    [oh, ow]: [usize; 2],
    to: &mut [f32],
) {
    let planes = input.chunks_exact((h * w).max(1)).zip(to.chunks_exact_mut((oh * ow).max(1)));
    let kernels = weight.chunks_exact((kh * kw).max(1)).cycle();
    for ((channel, to), kernel) in planes.zip(kernels) {
        for (y, line) in to.chunks_exact_mut(ow.max(1)).enumerate() {
            for (i, weights) in kernel.chunks_exact(kw.max(1)).enumerate() {
                let Some(row) = window.seen(0, y, i, h) else { continue };
                let seen = &channel[row * w..][..w];
                for (j, weight) in weights.iter().enumerate() {
                    if let Some((to, from, wide)) = window.straight(j, w, ow) {
                        let both = line[to..to + wide].iter_mut().zip(&seen[from..from + wide]);
                        both.for_each(|(to, seen)| *to += weight * seen);
                        continue;
                    }
                    for (x, to) in line.iter_mut().enumerate() {
                        *to += window.seen(1, x, j, w).map_or(0.0, |at| weight * seen[at]);
                    }
                }
            }
        }
    }
}

/// What one place of the kernel sees of a channel from every place of the output.
fn unfold(
    window: &Window,
    channel: &[f32],
    [h, w]: [usize; 2],
    [i, j]: [usize; 2],
    ow: usize,
    to: &mut [f32],
) {
    for (y, line) in to.chunks_exact_mut(ow.max(1)).enumerate() {
        let Some(seen) = window.seen(0, y, i, h).map(|at| &channel[at * w..][..w]) else {
            line.fill(0.0);
            continue;
        };
        if let Some((to, from, wide)) = window.straight(j, w, ow) {
            line.fill(0.0);
            line[to..to + wide].copy_from_slice(&seen[from..from + wide]);
            continue;
        }
        for (x, to) in line.iter_mut().enumerate() {
            *to = window.seen(1, x, j, w).map_or(0.0, |at| seen[at]);
        }
    }
}

/// `of` tells the output from what the window sees of the image, and how many places it has.
fn pool<'a>(
    window: &Window,
    [kh, kw]: [usize; 2],
    input: &Held<'_>,
    of: impl Fn(&[f32], usize) -> f32,
) -> Result<Held<'a>, String> {
    let [n, c, h, w] = input.image()?;
    let [oh, ow] = window.over([h, w], [kh, kw]).ok_or("the kernel is larger than the image")?;
    let mut output = Vec::with_capacity(n * c * oh * ow);
    let mut seen = Vec::with_capacity(kh * kw);
    for plane in input.data.chunks_exact((h * w).max(1)) {
        for (y, x) in (0..oh).flat_map(|y| (0..ow).map(move |x| (y, x))) {
            seen.clear();
            for row in (0..kh).filter_map(|i| window.seen(0, y, i, h)) {
                let columns = (0..kw).filter_map(|j| window.seen(1, x, j, w));
                seen.extend(columns.map(|column| plane[row * w + column]));
            }
            output.push(of(&seen, kh * kw));
        }
    }
    Ok(Held::new(vec![n, c, oh, ow], output))
}

fn gemm<'a>(
    alpha: f32,
    beta: f32,
    transposed: [bool; 2],
    a: &Held<'_>,
    b: &Held<'_>,
    c: Option<&Held<'_>>,
) -> Result<Held<'a>, String> {
    let (m, k, left) = matrix(a, transposed[0])?;
    let (inner, n, right) = matrix(b, transposed[1])?;
    if k != inner {
        return Err(format!("{:?} and {:?} have no product", a.shape, b.shape));
    }
    let mut product = Held::filled(vec![m, n], 0.0);
    let row = |step: usize, line: &mut [f32]| line.copy_from_slice(&right[step * n..][..n]);
    multiply_add((m, k, n), &left, row, product.data.to_mut());
    if alpha != 1.0 {
        product = map(&product, |x| alpha * x);
    }
    match c {
        Some(c) if beta != 0.0 => binary(|a, b| a + b, &product, &map(c, |x| beta * x)),
        _ => Ok(product),
    }
}

/// Rows, columns and elements of a matrix, turned if asked.
fn matrix<'h>(held: &'h Held<'_>, turned: bool) -> Result<(usize, usize, Cow<'h, [f32]>), String> {
    let [rows, columns] = held.shape.as_slice().try_into().map_err(|_| "not a matrix")?;
    if !turned {
        return Ok((rows, columns, Cow::Borrowed(&held.data)));
    }
    let places = (0..columns).flat_map(|column| (0..rows).map(move |row| (row, column)));
    let turned = places.map(|(row, column)| held.data[row * columns + column]).collect();
    Ok((columns, rows, Cow::Owned(turned)))
}

fn matmul<'a>(a: &Held<'_>, b: &Held<'_>) -> Result<Held<'a>, String> {
    let split = |held: &Held<'_>| -> Result<(Vec<usize>, usize, usize), String> {
        let [batch @ .., rows, columns] = held.shape.as_slice() else {
            return Err("a matrix has two dimensions".to_owned());
        };
        Ok((batch.to_vec(), *rows, *columns))
    };
    let ((batch_a, m, k), (batch_b, inner, n)) = (split(a)?, split(b)?);
    if k != inner {
        return Err(format!("{:?} and {:?} have no product", a.shape, b.shape));
    }
    let mut shape = broadcast(&batch_a, &batch_b)?;
    let (lefts, rights) = (places(&batch_a, &shape), places(&batch_b, &shape));
    let mut output = vec![0f32; lefts.len() * m * n];
    for ((left, right), to) in
        lefts.iter().zip(&rights).zip(output.chunks_exact_mut((m * n).max(1)))
    {
        let right = &b.data[right * k * n..];
        let row = |step: usize, line: &mut [f32]| line.copy_from_slice(&right[step * n..][..n]);
        multiply_add((m, k, n), &a.data[left * m * k..], row, to);
    }
    shape.extend([m, n]);
    Ok(Held::new(shape, output))
}

fn binary<'a>(
    by: impl Fn(f32, f32) -> f32,
    a: &Held<'_>,
    b: &Held<'_>,
) -> Result<Held<'a>, String> {
    if a.shape == b.shape {
        let both = a.data.iter().zip(b.data.iter());
        return Ok(Held::new(a.shape.clone(), both.map(|(a, b)| by(*a, *b)).collect()));
    }
    let shape = broadcast(&a.shape, &b.shape)?;
    let (lefts, rights) = (places(&a.shape, &shape), places(&b.shape, &shape));
    let both = lefts.iter().zip(&rights).map(|(l, r)| by(a.data[*l], b.data[*r]));
    Ok(Held::new(shape, both.collect()))
}

/// The shape that both are spread over.
fn broadcast(a: &[usize], b: &[usize]) -> Result<Vec<usize>, String> {
    let rank = a.len().max(b.len());
    let size = |shape: &[usize], axis: usize| {
        (axis + shape.len()).checked_sub(rank).map_or(1, |at| shape[at])
    };
    let joined = (0..rank).map(|axis| match (size(a, axis), size(b, axis)) {
        (left, right) if left == right || right == 1 => Ok(left),
        (1, right) => Ok(right),
        _ => Err(format!("{a:?} and {b:?} do not go together")),
    });
    joined.collect()
}

/// For every place of `to`, the place of the tensor of `shape` that is spread there.
fn places(shape: &[usize], to: &[usize]) -> Vec<usize> {
    let mut all = vec![0];
    let missing = to.len() - shape.len();
    for (axis, wide) in to.iter().enumerate() {
        let size = axis.checked_sub(missing).map_or(1, |at| shape[at]);
        let step = |at: usize| if size == 1 { 0 } else { at };
        all = all.iter().flat_map(|at| (0..*wide).map(move |i| at * size + step(i))).collect();
    }
    all
}
