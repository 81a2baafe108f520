//! Small random networks over the operators that coupling has rules for.

// Each test file uses a part of it.
#![allow(dead_code)]

use blochd::onnx::proto::attribute_proto::AttributeType;
use blochd::onnx::proto::tensor_shape_proto::{Dimension, dimension::Value as Size};
use blochd::onnx::proto::type_proto::{Tensor as TensorType, Value as Kind};
use blochd::onnx::proto::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto,
    TensorShapeProto, TypeProto, ValueInfoProto,
};
use blochd::onnx::{DType, Model, attr_ints, tensor};

/// SplitMix64: the same numbers on every machine.
pub struct Chance(pub u64);

impl Chance {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    pub fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }

    /// Between -1 and 1.
    pub fn real(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }
}

/// Where ONNX Runtime's own operators live.
const FUSED: &str = "com.microsoft";

/// A value of shape (N, channels, height, width).
#[derive(Clone, Debug)]
pub struct Image {
    pub name: String,
    pub c: usize,
    pub h: usize,
    pub w: usize,
}

/// A graph in the making.
pub struct Net {
    pub chance: Chance,
    graph: GraphProto,
    pub opset: i64,
    ir: i64,
    constant_nodes: bool,
    /// Vectors of zeros, one a length, that all who want one share.
    shared_zeros: bool,
    /// No biases, and no activation but those with f(0) = 0.
    pub quiet: bool,
}

pub fn attr_int(name: &str, value: i64) -> AttributeProto {
    AttributeProto {
        name: Some(name.to_owned()),
        r#type: Some(AttributeType::INT),
        i: Some(value),
        ..Default::default()
    }
}

pub fn attr_float(name: &str, value: f32) -> AttributeProto {
    AttributeProto {
        name: Some(name.to_owned()),
        r#type: Some(AttributeType::FLOAT),
        f: Some(value),
        ..Default::default()
    }
}

pub fn attr_text(name: &str, value: &str) -> AttributeProto {
    AttributeProto {
        name: Some(name.to_owned()),
        r#type: Some(AttributeType::STRING),
        s: Some(value.as_bytes().to_vec().into()),
        ..Default::default()
    }
}

pub fn attr_floats(name: &str, values: &[f32]) -> AttributeProto {
    AttributeProto {
        name: Some(name.to_owned()),
        r#type: Some(AttributeType::FLOATS),
        floats: values.to_vec(),
        ..Default::default()
    }
}

fn declared(name: &str, dims: &[Option<usize>]) -> ValueInfoProto {
    let dim = |(axis, size): (usize, &Option<usize>)| Dimension {
        value: Some(match size {
            Some(size) => Size::DimValue(*size as i64),
            None => Size::DimParam(format!("free{axis}")),
        }),
        ..Default::default()
    };
    let shape =
        TensorShapeProto { dim: dims.iter().enumerate().map(dim).collect(), ..Default::default() };
    let kind = TensorType { elem_type: Some(1), shape: Some(shape).into(), ..Default::default() };
    ValueInfoProto {
        name: Some(name.to_owned()),
        r#type: Some(TypeProto {
            value: Some(Kind::TensorType(Box::new(kind))),
            ..Default::default()
        })
        .into(),
        ..Default::default()
    }
}

/// Gives a declared value another element type.
fn of_type(info: &mut ValueInfoProto, dtype: DType) {
    if let Some(Kind::TensorType(found)) =
        info.r#type.as_option_mut().and_then(|found| found.value.as_mut())
    {
        found.elem_type = Some(dtype as i32);
    }
}

impl Net {
    /// An empty graph of operator set 9, which has operators and forms that are gone today.
    pub fn old(seed: u64) -> Self {
        let mut net = Self::plain(seed);
        net.opset = 9;
        net
    }

    /// An empty graph whose style (operator set, where weights stand) chance decides.
    pub fn new(seed: u64) -> Self {
        let mut chance = Chance(seed);
        let opset = chance.pick(&[13, 17, 17, 18, 20, 24]);
        let constant_nodes = chance.below(3) == 0;
        let old = if opset > 20 { 10 } else { 3 };
        let ir = if constant_nodes { 8 } else { chance.pick(&[old, 8, 8]) };
        let shared_zeros = chance.below(3) == 0;
        let graph = GraphProto { name: Some("random".to_owned()), ..Default::default() };
        Self { chance, graph, opset, ir, constant_nodes, shared_zeros, quiet: false }
    }

    /// An empty graph in the commonest style.
    pub fn plain(seed: u64) -> Self {
        let mut net = Self::new(seed);
        (net.opset, net.ir, net.constant_nodes, net.shared_zeros) = (17, 8, false, false);
        net
    }

    pub fn input(&mut self, c: usize, h: usize, w: usize) -> Image {
        let dims = [None, Some(c), Some(h), Some(w)];
        self.graph.input.push(declared("input", &dims));
        Image { name: "input".to_owned(), c, h, w }
    }

    /// A further input, of another element type.
    pub fn typed(&mut self, name: &str, dtype: DType, dims: &[Option<usize>]) -> String {
        let mut info = declared(name, dims);
        if let Some(Kind::TensorType(tensor)) = &mut info.r#type.get_or_insert_default().value {
            tensor.elem_type = Some(dtype as i32);
        }
        self.graph.input.push(info);
        name.to_owned()
    }

    /// An input image of one row as tokens: (batch, rows, width).
    pub fn tokens(&mut self, width: usize, rows: usize) -> String {
        let x = self.input(width, 1, rows);
        let rows = self.transpose(&x.name, &[0, 3, 2, 1]);
        let axes = self.ints(&[2]);
        self.node("Squeeze", &[&rows, &axes], Vec::new())
    }

    /// x · W with a new weight of from × to.
    pub fn product(&mut self, x: &str, from: usize, to: usize) -> String {
        let weight = self.weight(&[from, to]);
        self.node("MatMul", &[x, &weight], Vec::new())
    }

    pub fn output(&mut self, name: &str) {
        self.graph
            .output
            .push(ValueInfoProto { name: Some(name.to_owned()), ..Default::default() });
    }

    pub fn model(self) -> Model {
        let mut graph = self.graph;
        if self.ir < 4 {
            // Before IR version 4 every initializer is an input as well.
            let listed = graph.initializer.iter().filter(|tensor| tensor.data_type == Some(1));
            let listed: Vec<ValueInfoProto> = listed
                .map(|tensor| {
                    let dims: Vec<_> = tensor.dims.iter().map(|d| Some(*d as usize)).collect();
                    declared(tensor.name.as_deref().unwrap(), &dims)
                })
                .collect();
            graph.input.extend(listed);
        }
        let opset = OperatorSetIdProto { version: Some(self.opset), ..Default::default() };
        let fused = OperatorSetIdProto {
            domain: Some(FUSED.to_owned()),
            version: Some(1),
            ..Default::default()
        };
        let uses_fused = graph.node.iter().any(|node| node.domain.as_deref() == Some(FUSED));
        let fused = uses_fused.then_some(fused);
        let proto = ModelProto {
            ir_version: Some(self.ir),
            opset_import: std::iter::once(opset).chain(fused).collect(),
            graph: Some(graph).into(),
            ..Default::default()
        };
        Model::from_proto(proto).unwrap()
    }

    fn fresh(&self, kind: &str) -> String {
        let count = self.graph.node.len() + self.graph.initializer.len();
        format!("{}{count}", kind.to_lowercase())
    }

    pub fn nodes(
        &mut self,
        kind: &str,
        inputs: &[&str],
        outputs: usize,
        attrs: Vec<AttributeProto>,
    ) -> Vec<String> {
        let base = self.fresh(kind);
        let names: Vec<String> = (0..outputs).map(|number| format!("{base}.{number}")).collect();
        self.graph.node.push(NodeProto {
            op_type: Some(kind.to_owned()),
            name: Some(base),
            input: inputs.iter().map(|name| (*name).to_owned()).collect(),
            output: names.clone(),
            attribute: attrs,
            ..Default::default()
        });
        names
    }

    pub fn node(&mut self, kind: &str, inputs: &[&str], attrs: Vec<AttributeProto>) -> String {
        self.nodes(kind, inputs, 1, attrs).remove(0)
    }

    /// A truth value that stands in the model.
    pub fn truth(&mut self) -> String {
        let name = self.fresh("b");
        self.constant(tensor(&name, DType::Bool, &[], vec![1]))
    }

    /// `If`, `Loop` or `Scan` around x, bent by a Tanh inside the body.
    pub fn control_flow(&mut self, kind: &str, x: &Image) -> String {
        let base = self.fresh("body");
        let name = |part: &str| format!("{base}.{part}");
        let bent = |from: &str, to: &str| NodeProto {
            op_type: Some("Tanh".to_owned()),
            input: vec![from.to_owned()],
            output: vec![to.to_owned()],
            ..Default::default()
        };
        let images = [None, Some(x.c), Some(x.h), Some(x.w)];
        let body = |part: &str, inputs: Vec<ValueInfoProto>, nodes, outputs| GraphProto {
            name: Some(name(part)),
            input: inputs,
            node: nodes,
            output: outputs,
            ..Default::default()
        };
        let graph = |attribute: &str, body: GraphProto| AttributeProto {
            name: Some(attribute.to_owned()),
            r#type: Some(AttributeType::GRAPH),
            g: Some(body).into(),
            ..Default::default()
        };
        match kind {
            "If" => {
                let branches = ["then_branch", "else_branch"].map(|part| {
                    let end = name(part);
                    let nodes = vec![bent(&x.name, &end)];
                    graph(part, body(part, Vec::new(), nodes, vec![declared(&end, &images)]))
                });
                let truth = self.truth();
                self.node("If", &[&truth], branches.to_vec())
            }
            "Loop" => {
                let mut turn = declared(&name("turn"), &[]);
                let mut on = declared(&name("on"), &[]);
                of_type(&mut turn, DType::I64);
                of_type(&mut on, DType::Bool);
                let kept = NodeProto {
                    op_type: Some("Identity".to_owned()),
                    input: vec![name("on")],
                    output: vec![name("kept")],
                    ..Default::default()
                };
                let mut stays = declared(&name("kept"), &[]);
                of_type(&mut stays, DType::Bool);
                let inputs = vec![turn, on, declared(&name("from"), &images)];
                let nodes = vec![kept, bent(&name("from"), &name("to"))];
                let outputs = vec![stays, declared(&name("to"), &images)];
                let attrs = vec![graph("body", body("loop", inputs, nodes, outputs))];
                let (turns, truth) = (self.fresh("i"), self.truth());
                let turns =
                    self.constant(tensor(&turns, DType::I64, &[], 2i64.to_le_bytes().to_vec()));
                self.node("Loop", &[&turns, &truth, &x.name], attrs)
            }
            _ => {
                let rows = &images[1..];
                let inputs = vec![declared(&name("from"), rows)];
                let nodes = vec![bent(&name("from"), &name("to"))];
                let outputs = vec![declared(&name("to"), rows)];
                let scanned = body("scan", inputs, nodes, outputs);
                let attrs = vec![graph("body", scanned), attr_int("num_scan_inputs", 1)];
                self.node("Scan", &[&x.name], attrs)
            }
        }
    }

    /// A node of the operators that ONNX Runtime's optimiser fuses others into.
    pub fn fused(&mut self, kind: &str, inputs: &[&str], attrs: Vec<AttributeProto>) -> String {
        let name = self.node(kind, inputs, attrs);
        self.graph.node.last_mut().unwrap().domain = Some(FUSED.to_owned());
        name
    }

    /// The same with several outputs, of which those numbered in `absent` are left out.
    pub fn fused_nodes(
        &mut self,
        kind: &str,
        inputs: &[&str],
        outputs: usize,
        absent: &[usize],
        attrs: Vec<AttributeProto>,
    ) -> Vec<String> {
        self.nodes(kind, inputs, outputs, attrs);
        let node = self.graph.node.last_mut().unwrap();
        node.domain = Some(FUSED.to_owned());
        absent.iter().for_each(|number| node.output[*number].clear());
        node.output.clone()
    }

    /// A fused normalisation of a sum: what is normalised, and the sum.
    pub fn skip_norm(&mut self, kind: &str, inputs: &[&str]) -> (String, String) {
        let names = self.nodes(kind, inputs, 4, Vec::new());
        let node = self.graph.node.last_mut().unwrap();
        node.domain = Some(FUSED.to_owned());
        // The statistics between them are for training only.
        node.output[1..3].fill(String::new());
        (names[0].clone(), names[3].clone())
    }

    /// A fused normalisation of embeddings.
    pub fn embed_norm(&mut self, inputs: &[&str]) -> String {
        // The second output, which counts tokens, must be there.
        let names = self.nodes("EmbedLayerNormalization", inputs, 2, Vec::new());
        self.graph.node.last_mut().unwrap().domain = Some(FUSED.to_owned());
        names[0].clone()
    }

    /// Gives the last node another name.
    pub fn rename_last(&mut self, name: &str) {
        self.graph.node.last_mut().unwrap().name = Some(name.to_owned());
    }

    fn constant(&mut self, made: TensorProto) -> String {
        let name = made.name.clone().unwrap();
        if !self.constant_nodes {
            self.graph.initializer.push(made);
            return name;
        }
        let attribute = AttributeProto {
            name: Some("value".to_owned()),
            r#type: Some(AttributeType::TENSOR),
            t: Some(made).into(),
            ..Default::default()
        };
        self.node("Constant", &[], vec![attribute])
    }

    pub fn weight(&mut self, dims: &[usize]) -> String {
        let fan = dims[1..].iter().product::<usize>().max(1) as f32;
        self.reals(dims, |chance| chance.real() * (3.0 / fan).sqrt())
    }

    pub fn reals(&mut self, dims: &[usize], mut each: impl FnMut(&mut Chance) -> f32) -> String {
        let count = dims.iter().product();
        let data: Vec<u8> = (0..count).flat_map(|_| each(&mut self.chance).to_le_bytes()).collect();
        let name = self.fresh("w");
        self.constant(tensor(&name, DType::F32, dims, data))
    }

    pub fn bias(&mut self, length: usize) -> String {
        if !self.shared_zeros {
            let loud = if self.quiet { 0.0 } else { 0.3 };
            return self.reals(&[length], |chance| chance.real() * loud);
        }
        let name = format!("zeros{length}");
        if self.graph.initializer.iter().all(|tensor| tensor.name.as_ref() != Some(&name)) {
            self.graph.initializer.push(tensor(&name, DType::F32, &[length], vec![0; length * 4]));
        }
        name
    }

    pub fn ints(&mut self, values: &[i64]) -> String {
        self.ints_of(&[values.len()], values)
    }

    /// Whole numbers as a tensor of the given shape.
    pub fn ints_of(&mut self, dims: &[usize], values: &[i64]) -> String {
        let data: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let name = self.fresh("i");
        self.constant(tensor(&name, DType::I64, dims, data))
    }

    /// Input `input` of the node that writes `value`.
    pub fn input_of(&self, value: &str, input: usize) -> String {
        let writes = |node: &&NodeProto| node.output.iter().any(|output| output == value);
        self.graph.node.iter().find(writes).unwrap().input[input].clone()
    }

    /// Token ids as ONNX Runtime's fused operators read them.
    pub fn ids32(&mut self, dims: &[usize], ids: &[i32]) -> String {
        let data: Vec<u8> = ids.iter().flat_map(|value| value.to_le_bytes()).collect();
        let name = self.fresh("i");
        self.constant(tensor(&name, DType::I32, dims, data))
    }

    fn ints32(&mut self, values: &[i32]) -> String {
        self.ids32(&[values.len()], values)
    }

    pub fn conv(
        &mut self,
        x: &Image,
        c: usize,
        kernel: usize,
        stride: usize,
        group: usize,
    ) -> Image {
        let weight = self.weight(&[c, x.c / group, kernel, kernel]);
        let bias = self.bias(c);
        let pad = (kernel / 2) as i64;
        let attrs = vec![
            attr_ints("pads", &[pad; 4]),
            attr_ints("strides", &[stride as i64; 2]),
            attr_int("group", group as i64),
        ];
        let with_bias = self.chance.below(4) > 0;
        let inputs: &[&str] =
            if with_bias { &[&x.name, &weight, &bias] } else { &[&x.name, &weight] };
        let name = self.node("Conv", inputs, attrs);
        let out = |length: usize| (length - 1) / stride + 1;
        Image { name, c, h: out(x.h), w: out(x.w) }
    }

    pub fn unary(&mut self, kind: &str, x: &Image) -> Image {
        Image { name: self.node(kind, &[&x.name], Vec::new()), ..x.clone() }
    }

    pub fn binary(&mut self, kind: &str, x: &Image, y: &str) -> Image {
        Image { name: self.node(kind, &[&x.name, y], Vec::new()), ..x.clone() }
    }

    pub fn activation(&mut self, x: &Image) -> Image {
        match self.chance.below(5) {
            0 => self.unary("Tanh", x),
            1 => {
                // HardSwish as exporters decompose it.
                let (three, six) = (self.reals(&[], |_| 3.0), self.reals(&[], |_| 6.0));
                let low = self.reals(&[], |_| 0.0);
                let shifted = self.binary("Add", x, &three);
                let name = self.node("Clip", &[&shifted.name, &low, &six], Vec::new());
                let product = self.binary("Mul", x, &name);
                self.binary("Div", &product, &six)
            }
            2 => {
                let slope = self.reals(&[x.c, 1, 1], |chance| chance.real().abs());
                self.binary("PRelu", x, &slope)
            }
            _ => self.unary("Relu", x),
        }
    }

    pub fn batch_norm(&mut self, x: &Image, shift: f32) -> Image {
        let shift = if self.quiet { 0.0 } else { shift };
        let scale = self.reals(&[x.c], |chance| 1.0 + chance.real() * 0.5);
        let bias = self.reals(&[x.c], |chance| chance.real() * shift);
        let mean = self.reals(&[x.c], |chance| chance.real() * shift);
        let variance = self.reals(&[x.c], |chance| 1.0 + chance.real() * 0.5);
        let inputs = [x.name.as_str(), &scale, &bias, &mean, &variance];
        Image { name: self.node("BatchNormalization", &inputs, Vec::new()), ..x.clone() }
    }

    pub fn reshape(&mut self, x: &str, target: &[i64]) -> String {
        let target = self.ints(target);
        self.node("Reshape", &[x, &target], Vec::new())
    }

    pub fn transpose(&mut self, x: &str, order: &[i64]) -> String {
        self.node("Transpose", &[x], vec![attr_ints("perm", order)])
    }

    pub fn slice(&mut self, x: &str, axes: &[i64], bounds: &[(i64, i64)], step: i64) -> String {
        let (starts, ends): (Vec<i64>, Vec<i64>) = bounds.iter().copied().unzip();
        let steps = vec![step; axes.len()];
        let narrow = self.chance.below(3) == 0;
        let lists = [&starts, &ends, &axes.to_vec(), &steps].map(|list| {
            if narrow {
                let list: Vec<i32> = list
                    .iter()
                    .map(|v| (*v).clamp(i32::MIN.into(), i32::MAX.into()) as i32)
                    .collect();
                self.ints32(&list)
            } else {
                self.ints(list)
            }
        });
        self.node("Slice", &[x, &lists[0], &lists[1], &lists[2], &lists[3]], Vec::new())
    }

    pub fn split(&mut self, x: &str, sizes: &[usize]) -> Vec<String> {
        let even = sizes.iter().all(|size| *size == sizes[0]);
        let mut attrs = vec![attr_int("axis", 1)];
        if even && self.chance.below(2) == 0 {
            if self.opset >= 18 {
                attrs.push(attr_int("num_outputs", sizes.len() as i64));
            }
            return self.nodes("Split", &[x], sizes.len(), attrs);
        }
        let sizes: Vec<i64> = sizes.iter().map(|size| *size as i64).collect();
        let list = self.ints(&sizes);
        self.nodes("Split", &[x, &list], sizes.len(), attrs)
    }

    /// y = x · W + b over the last axis.
    pub fn linear(&mut self, x: &str, from: usize, to: usize) -> String {
        let weight = self.weight(&[from, to]);
        let product = self.node("MatMul", &[x, &weight], Vec::new());
        let bias = self.bias(to);
        self.node("Add", &[&product, &bias], Vec::new())
    }

    pub fn gemm(&mut self, x: &str, from: usize, to: usize) -> String {
        let transposed = self.chance.below(2);
        let weight =
            if transposed == 1 { self.weight(&[to, from]) } else { self.weight(&[from, to]) };
        let bias = self.bias(to);
        self.node("Gemm", &[x, &weight, &bias], vec![attr_int("transB", transposed as i64)])
    }
}
