//! The time that the simulated core takes, by a rule: its cube multiplies blocks of 16 × 16 channels, its vector
//! unit works on blocks of 16, and what does not fill a block costs as much as one that is full. A sample is the
//! work of one core, a batch that of several.

use super::ops::Op;

/// Channels in a block.
pub const BLOCK: usize = 16;
/// Multiply-adds of the cube a nanosecond.
const CUBE: f64 = 8.0;
/// Elements of the vector unit a nanosecond.
const VECTOR: f64 = 0.5;
/// Cores among which the samples of a batch are spread.
const CORES: usize = 8;
/// Nanoseconds to start an operator.
const START: f64 = 5_000.0;

fn blocks(channels: usize) -> f64 {
    (channels.div_ceil(BLOCK) * BLOCK) as f64
}

/// Turns that the cores take over a batch.
fn turns(batch: usize) -> f64 {
    batch.div_ceil(CORES) as f64
}

fn product(sizes: &[usize]) -> f64 {
    sizes.iter().map(|size| *size as f64).product()
}

/// Elements of a tensor whose channels (its second dimension, the last of a matrix) fill blocks.
fn elements(shape: &[usize]) -> f64 {
    match shape {
        [batch, channels, rest @ ..] => turns(*batch) * blocks(*channels) * product(rest),
        _ => blocks(product(shape) as usize),
    }
}

/// Nanoseconds of an operator on inputs of these shapes (empty where absent) with an output of this one.
pub fn nanoseconds(op: &Op, inputs: &[&[usize]], output: &[usize]) -> f64 {
    START
        + match (op, inputs) {
            (Op::Conv { groups, .. }, [_, weight @ [m, per_group, kernel @ ..], ..]) => {
                let places = turns(output[0]) * product(&output[2..]);
                if *per_group == 1 && *groups > 1 {
                    // A channel a group is no work for the cube.
                    places * blocks(*m) * product(&weight[2..]) / VECTOR
                } else {
                    let group = blocks(*per_group) * blocks(m / groups) * product(kernel);
                    *groups as f64 * places * group / CUBE
                }
            }
            (Op::Gemm { transposed, .. }, [[rows, columns], ..]) => {
                let (m, k) = if transposed[0] { (columns, rows) } else { (rows, columns) };
                turns(*m) * blocks(*k) * blocks(output[1]) / CUBE
            }
            (Op::MatMul, [[.., k], ..]) => {
                let rows = product(&output[..output.len() - 1]);
                rows * blocks(*k) * blocks(output[output.len() - 1]) / CUBE
            }
            (Op::MaxPool { kernel, .. } | Op::AveragePool { kernel, .. }, _) => {
                elements(output) * product(kernel) / VECTOR
            }
            (Op::GlobalAveragePool, [image, ..]) => elements(image) / VECTOR,
            // It moves nothing.
            (Op::Flatten { .. }, _) => 0.0,
            _ => elements(output) / VECTOR,
        }
}
