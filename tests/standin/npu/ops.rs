//! The operators that the stand-in computes, as far as it takes them.

use super::graph::{Attribute, Node};

/// What a scenario that names no operators claims.
pub const CLAIMED: &str = "Add, AveragePool, Clip, Conv, Div, Flatten, Gemm, GlobalAveragePool, HardSigmoid, \
                           HardSwish, LeakyRelu, MatMul, MaxPool, Mul, Relu, Sigmoid, Sub, Tanh";

/// Where a window of two dimensions stands.
#[derive(Debug, Clone, PartialEq)]
pub struct Window {
    /// Above, left, below, right.
    pub pads: [usize; 4],
    pub strides: [usize; 2],
    pub dilations: [usize; 2],
}

impl Window {
    /// Size of the output for an image and a kernel of these sizes; none where the kernel does not fit.
    pub fn over(&self, image: [usize; 2], kernel: [usize; 2]) -> Option<[usize; 2]> {
        let size = |axis: usize| {
            let padded = image[axis] + self.pads[axis] + self.pads[axis + 2];
            let wide = self.dilations[axis] * kernel[axis].checked_sub(1)? + 1;
            Some(padded.checked_sub(wide)? / self.strides[axis] + 1)
        };
        Some([size(0)?, size(1)?])
    }

    /// Row or column of the image that a place of the kernel sees from a place of the output.
    pub fn seen(&self, axis: usize, output: usize, kernel: usize, size: usize) -> Option<usize> {
        let at = output * self.strides[axis] + kernel * self.dilations[axis];
        at.checked_sub(self.pads[axis]).filter(|at| *at < size)
    }

    /// Where a line of the output sees one piece of a line of the image through a column of the kernel: from
    /// where in the output, from where in the image, and how much. None where it sees every n-th place.
    pub fn straight(
        &self,
        kernel: usize,
        image: usize,
        output: usize,
    ) -> Option<(usize, usize, usize)> {
        if self.strides[1] != 1 {
            return None;
        }
        let (left, pad) = (kernel * self.dilations[1], self.pads[1]);
        let (to, from) = (pad.saturating_sub(left), left.saturating_sub(pad));
        let wide = output.saturating_sub(to).min(image.saturating_sub(from));
        Some(if wide == 0 { (0, 0, 0) } else { (to, from, wide) })
    }
}

#[derive(Debug, Clone)]
pub enum Op {
    Conv { window: Window, groups: usize },
    MaxPool { window: Window, kernel: [usize; 2] },
    AveragePool { window: Window, kernel: [usize; 2], counts_pads: bool },
    GlobalAveragePool,
    Gemm { alpha: f32, beta: f32, transposed: [bool; 2] },
    MatMul,
    Binary(fn(f32, f32) -> f32),
    Unary(Unary),
    Clip,
    Flatten { axis: i64 },
}

#[derive(Debug, Clone, PartialEq)]
pub enum Unary {
    Relu,
    Leaky(f32),
    Sigmoid,
    Tanh,
    HardSigmoid(f32, f32),
    HardSwish,
}

impl Unary {
    pub fn of(&self, x: f32) -> f32 {
        match *self {
            Self::Relu => x.max(0.0),
            Self::Leaky(slope) => {
                if x < 0.0 {
                    slope * x
                } else {
                    x
                }
            }
            Self::Sigmoid => 1.0 / (1.0 + (-x).exp()),
            Self::Tanh => x.tanh(),
            Self::HardSigmoid(slope, offset) => (slope * x + offset).clamp(0.0, 1.0),
            Self::HardSwish => x * (x / 6.0 + 0.5).clamp(0.0, 1.0),
        }
    }
}

impl Op {
    /// The operator of a node; none where it, its types or its attributes are beyond this stand-in.
    pub fn of(node: &Node) -> Option<Self> {
        let present = |value: &&super::graph::Value| !value.name.is_empty();
        let mut values = node.inputs.iter().chain(&node.outputs).filter(present);
        if !values.all(|value| value.is_float) || node.outputs.len() != 1 {
            return None;
        }
        let attributes = Attributes(node);
        let is_image = node.inputs.first()?.rank == 4;
        match node.kind.as_str() {
            "Conv" if is_image => {
                let groups = attributes.int("group", 1).try_into().ok().filter(|n| *n > 0)?;
                Some(Self::Conv { window: attributes.window()?, groups })
            }
            "MaxPool" if is_image => {
                let kernel = attributes.sizes("kernel_shape", None)?;
                Some(Self::MaxPool { window: attributes.window()?, kernel })
            }
            "AveragePool" if is_image => {
                let counts_pads = attributes.int("count_include_pad", 0) != 0;
                let kernel = attributes.sizes("kernel_shape", None)?;
                Some(Self::AveragePool { window: attributes.window()?, kernel, counts_pads })
            }
            "GlobalAveragePool" if is_image => Some(Self::GlobalAveragePool),
            "Gemm" => Some(Self::Gemm {
                alpha: attributes.float("alpha", 1.0),
                beta: attributes.float("beta", 1.0),
                transposed: ["transA", "transB"].map(|name| attributes.int(name, 0) != 0),
            }),
            "MatMul" if node.inputs.iter().all(|value| value.rank >= 2) => Some(Self::MatMul),
            "Add" => Some(Self::Binary(|a, b| a + b)),
            "Sub" => Some(Self::Binary(|a, b| a - b)),
            "Mul" => Some(Self::Binary(|a, b| a * b)),
            "Div" => Some(Self::Binary(|a, b| a / b)),
            "Clip" if node.attributes.is_empty() => Some(Self::Clip),
            "Flatten" => Some(Self::Flatten { axis: attributes.int("axis", 1) }),
            _ => Self::unary(node.kind.as_str(), &attributes).map(Self::Unary),
        }
    }

    fn unary(kind: &str, attributes: &Attributes) -> Option<Unary> {
        Some(match kind {
            "Relu" => Unary::Relu,
            "LeakyRelu" => Unary::Leaky(attributes.float("alpha", 0.01)),
            "Sigmoid" => Unary::Sigmoid,
            "Tanh" => Unary::Tanh,
            "HardSigmoid" => {
                Unary::HardSigmoid(attributes.float("alpha", 0.2), attributes.float("beta", 0.5))
            }
            "HardSwish" => Unary::HardSwish,
            _ => return None,
        })
    }
}

struct Attributes<'a>(&'a Node);

impl Attributes<'_> {
    fn int(&self, name: &str, otherwise: i64) -> i64 {
        match self.0.attributes.get(name) {
            Some(Attribute::Ints(held)) => held.first().copied().unwrap_or(otherwise),
            _ => otherwise,
        }
    }

    fn float(&self, name: &str, otherwise: f32) -> f32 {
        match self.0.attributes.get(name) {
            Some(Attribute::Floats(held)) => held.first().copied().unwrap_or(otherwise),
            _ => otherwise,
        }
    }

    fn sizes<const N: usize>(
        &self,
        name: &str,
        otherwise: Option<[usize; N]>,
    ) -> Option<[usize; N]> {
        match self.0.attributes.get(name) {
            Some(Attribute::Ints(held)) => {
                let held: Option<Vec<usize>> = held.iter().map(|n| (*n).try_into().ok()).collect();
                held?.try_into().ok()
            }
            Some(_) => None,
            None => otherwise,
        }
    }

    fn window(&self) -> Option<Window> {
        let padded = match self.0.attributes.get("auto_pad") {
            Some(Attribute::Text(how)) => how != "NOTSET",
            _ => false,
        };
        if padded || self.int("ceil_mode", 0) != 0 || self.int("storage_order", 0) != 0 {
            return None;
        }
        let pads = self.sizes("pads", Some([0; 4]))?;
        let strides = self.sizes("strides", Some([1; 2]))?;
        let dilations = self.sizes("dilations", Some([1; 2]))?;
        let positive = strides.iter().chain(&dilations).all(|size| *size > 0);
        positive.then_some(Window { pads, strides, dilations })
    }
}
