//! A model under test: run it, cut it, and compare the cut with what it should compute.

// Each test file uses a part of it.
#![allow(dead_code)]

use std::collections::BTreeMap;

use blochd::coupling::{Coupling, Group, Neutral, Norm, couple, norms};
use blochd::onnx::proto::NodeProto;
use blochd::onnx::{
    DType, Engine, Graph, Matrix, Model, Operator, OperatorKind, Patch, Session, Shapes, Tensor,
    Use, ValueType, operators, tensor, with_outputs,
};
use blochd::shell::engine::{Dim, EngineOptions, LiveSession, OrtEngine, Runtime, Search, init};
use blochd::shell::places;
use blochd::surgery::{Cut, apply, gone};

use super::nets::Chance;

pub fn runtime() -> Runtime {
    init(&Search::new(None, &places::state_dir())).unwrap_or_else(|error| panic!("{error}"))
}

pub fn engine() -> OrtEngine {
    OrtEngine::new(&runtime(), EngineOptions::default())
}

/// A model, its shapes at one request, and what couples in it.
pub struct Subject {
    pub model: Model,
    pub shapes: Shapes,
    pub coupling: Coupling,
    pub inputs: Vec<(String, Tensor)>,
}

/// Sizes of free dimensions by name; others are 2.
pub type Free<'a> = &'a [(&'a str, usize)];

impl Subject {
    pub fn new(model: Model, free: Free, seed: u64) -> Self {
        let session = LiveSession::open_model(&runtime(), &model, &EngineOptions::default());
        let session = session.unwrap_or_else(|error| panic!("{error}\n{}", listing(&model)));
        let mut chance = Chance(seed);
        let mut fixed = BTreeMap::new();
        let mut inputs = Vec::new();
        for info in session.inputs() {
            let declared =
                model.graph().input.iter().find(|i| i.name.as_deref() == Some(&info.name));
            if declared.is_none() || Graph::new(&model).weight(&info.name).is_some() {
                continue;
            }
            let size = |(axis, dim): (usize, &Dim)| match dim {
                Dim::Fixed(size) => *size,
                Dim::Free(name) => {
                    let at = format!("{axis}");
                    let found = free.iter().find(|(n, _)| n == name || *n == at);
                    let size = found.map_or(2, |(_, size)| *size);
                    fixed.insert(name.clone(), size);
                    size
                }
            };
            let shape: Vec<usize> = info.shape.iter().enumerate().map(size).collect();
            let values: Vec<f32> =
                (0..shape.iter().product()).map(|_| chance.real() * 1.5).collect();
            let mut made = Tensor::from_f32(&shape, &values);
            if info.dtype == DType::F16 {
                let bytes = blochd::onnx::values::float_bytes(DType::F16, &values).unwrap();
                made = Tensor { dtype: DType::F16, shape, data: bytes.into() };
            }
            if info.dtype == DType::I64 {
                // Token ids, or flags.
                let flags = info.name.contains("mask") || info.name.contains("type");
                let most = if flags { 2 } else { 500 };
                let bytes: Vec<u8> = (0..values.len())
                    .flat_map(|_| (chance.below(most) as i64).to_le_bytes())
                    .collect();
                made = Tensor { dtype: DType::I64, shape: made.shape, data: bytes.into() };
            }
            inputs.push((info.name.clone(), made));
        }
        let shapes = engine().shapes(&model, &fixed).unwrap();
        let coupling = Coupling::default();
        let mut subject = Self { model, shapes, coupling, inputs };
        subject.fill_shapes();
        subject.coupling = couple(&Graph::new(&subject.model), &subject.shapes);
        subject
    }

    /// Where the runtime cannot tell a shape beforehand it is what one run makes it.
    fn fill_shapes(&mut self) {
        let graph = Graph::new(&self.model);
        let written = graph.nodes().iter().flat_map(|node| &node.output);
        let known = |name: &String| {
            graph.weight(name).is_some()
                || self.shapes.get(name).is_some_and(|found| !found.shape.contains(&None))
        };
        let open: Vec<&str> =
            written.filter(|name| !name.is_empty() && !known(name)).map(String::as_str).collect();
        let outputs = graph.model().graph().output.len();
        let extended = with_outputs(&self.model, open.iter().copied()).unwrap();
        let names = extended.graph().output.iter().map(|output| output.name.clone().unwrap());
        let found: Vec<(String, ValueType)> = names
            .zip(self.run(&extended))
            .skip(outputs)
            .map(|(name, made)| {
                let shape = made.shape.iter().copied().map(Some).collect();
                (name, ValueType { dtype: made.dtype, shape })
            })
            .collect();
        self.shapes.extend(found);
    }

    pub fn run(&self, model: &Model) -> Vec<Tensor> {
        let session = LiveSession::open_model(&runtime(), model, &EngineOptions::default());
        let mut session = session.unwrap_or_else(|error| panic!("{error}\n{}", listing(model)));
        let inputs: Vec<(&str, &Tensor)> =
            self.inputs.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
        Session::run(&mut session, &inputs)
            .unwrap_or_else(|error| panic!("{error}\n{}", listing(model)))
    }

    pub fn apply(&self, cut: &Cut) -> Model {
        apply(&self.model, &self.coupling, &self.shapes, cut)
            .unwrap_or_else(|error| panic!("{error}\n{}", listing(&self.model)))
    }

    /// A random legal cut: of every group, with the given chance, a random part.
    pub fn cut(&self, chance: &mut Chance) -> Cut {
        let mut cut = Cut::default();
        for group in &self.coupling.groups {
            // Of one channel a normalisation that takes the mean off leaves nothing but rounding.
            let least = if group.neutral == Neutral::Mean { group.width.min(3) } else { 1 };
            if chance.below(4) > 0 && least < group.width {
                let gone = 1 + chance.below(group.width - least);
                let mut channels: Vec<usize> = (0..group.width).collect();
                (0..gone).for_each(|at| channels.swap(at, at + chance.below(group.width - at)));
                cut.removed.insert(group.id, channels[..gone].iter().copied().collect());
            }
        }
        cut
    }

    pub fn group_of(&self, producer: &str) -> Option<&Group> {
        self.coupling.groups.iter().find(|group| {
            let graph = Graph::new(&self.model);
            group.producers.iter().any(|p| graph.label(p.node) == producer)
        })
    }

    /// The dense model in which the producers of the cut's channels have no weights for them.
    pub fn emptied(&self, cut: &Cut) -> Model {
        let mut rows: BTreeMap<usize, Vec<u32>> = BTreeMap::new();
        for (id, removed) in &cut.removed {
            for producer in &self.coupling.groups[id.0].producers {
                let gone = removed.iter().flat_map(|channel| &producer.outputs[*channel]);
                rows.entry(producer.node).or_default().extend(gone);
            }
        }
        let model = self.with_zero_rows(&rows);
        self.without_heads(&model, cut)
    }

    /// `model` in which attentions that project themselves do so by zeros for the heads that `cut` removes.
    fn without_heads(&self, model: &Model, cut: &Cut) -> Model {
        let graph = Graph::new(model);
        let mut patch = Patch::default();
        for (id, removed) in &cut.removed {
            let group = &self.coupling.groups[id.0];
            for producer in &group.producers {
                if graph.op(producer.node) != "com.microsoft.Attention" {
                    continue;
                }
                let weight = graph.input(producer.node, 1).unwrap();
                let place = group.places.iter().find(|p| p.value == weight && p.axis == 1).unwrap();
                let dims = graph.weight_dims(weight).unwrap();
                let mut values = graph.floats(weight).unwrap();
                for row in values.chunks_mut(dims[1]) {
                    let gone = removed.iter().flat_map(|channel| &place.index[*channel]);
                    gone.for_each(|column| row[*column as usize] = 0.0);
                }
                let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
                patch.constants.insert(weight.to_owned(), tensor(weight, DType::F32, &dims, bytes));
            }
        }
        patch.apply(model).unwrap()
    }

    /// The dense model in which the operators at `nodes` compute nothing but zero.
    pub fn without_rows(&self, nodes: &[usize]) -> Model {
        let linear = operators(&Graph::new(&self.model));
        let all = linear.iter().filter(|operator| nodes.contains(&operator.node));
        let rows = all.map(|operator| (operator.node, (0..operator.outputs as u32).collect()));
        self.with_zero_rows(&rows.collect())
    }

    fn with_zero_rows(&self, rows: &BTreeMap<usize, Vec<u32>>) -> Model {
        let graph = Graph::new(&self.model);
        let mut patch = Patch::default();
        for operator in operators(&graph) {
            let Some(rows) = rows.get(&operator.node) else { continue };
            let mut matrix = operator.matrix(&graph).unwrap();
            for row in rows.iter().map(|row| *row as usize) {
                matrix.data[row * matrix.cols..(row + 1) * matrix.cols].fill(0.0);
            }
            let made = operator.weight_tensor(&graph, &matrix).unwrap();
            patch.constants.insert(operator.weight.clone(), made);
        }
        patch.apply(&self.model).unwrap()
    }

    /// The dense model in which channel `to` of a group is computed exactly as channel `from`.
    pub fn with_twins(&self, group: &Group, from: usize, to: usize) -> Model {
        let graph = Graph::new(&self.model);
        let heard = self.heard(group);
        let mut patch = Patch::default();
        for place in group.places.iter().filter(|place| place.constant) {
            if heard.contains(&(place.value.clone(), place.axis)) {
                continue;
            }
            let dims = graph.weight_dims(&place.value).unwrap();
            let dtype = graph.weight_dtype(&place.value).unwrap();
            let size = dtype.size().unwrap();
            let mut bytes = match patch.constants.get(&place.value) {
                Some(made) => made.raw_data.clone().unwrap().to_vec(),
                None => graph.weight_bytes(&place.value).unwrap().unwrap().to_vec(),
            };
            let inner = dims[place.axis + 1..].iter().product::<usize>() * size;
            for plane in bytes.chunks_mut(dims[place.axis] * inner) {
                for (a, b) in place.index[from].iter().zip(&place.index[to]) {
                    let (a, b) = (*a as usize * inner, *b as usize * inner);
                    plane.copy_within(a..a + inner, b);
                }
            }
            let made = tensor(&place.value, dtype, &dims, bytes);
            patch.constants.insert(place.value.clone(), made);
        }
        patch.apply(&self.model).unwrap()
    }

    /// Whether channels of a group that are blocks pass a node that may shift them.
    pub fn shifts(&self, group: &Group) -> bool {
        let graph = Graph::new(&self.model);
        let shifting = |value: &str| {
            let op = graph.producer(value).map(|node| graph.op(node)).unwrap_or_default();
            matches!(op.as_str(), "Pad" | "Slice" | "Concat")
        };
        group.places.iter().any(|place| place.index[0].len() > 1 && shifting(&place.value))
    }

    /// Whether two channels of a group say the same wherever they are.
    pub fn are_twins(&self, group: &Group, a: usize, b: usize) -> bool {
        let places: Vec<_> = group.places.iter().filter(|place| !place.constant).collect();
        let names = places.iter().map(|place| place.value.as_str());
        let model = with_outputs(&self.model, names).unwrap();
        let outputs = model.graph().output.iter().map(|output| output.name.clone().unwrap());
        let values: BTreeMap<String, Tensor> = outputs.zip(self.run(&model)).collect();
        places.iter().all(|place| {
            let tensor = &values[&place.value];
            let inner: usize = tensor.shape[place.axis + 1..].iter().product();
            let length = tensor.shape[place.axis];
            let values = tensor.to_f32().unwrap();
            values.chunks(length * inner).all(|plane| {
                let of = |index: u32| &plane[index as usize * inner..][..inner];
                place.index[a].iter().zip(&place.index[b]).all(|(a, b)| of(*a) == of(*b))
            })
        })
    }

    /// The constants and axes along which readers of a group sum over its channels.
    pub fn heard(&self, group: &Group) -> Vec<(String, usize)> {
        let linear = operators(&Graph::new(&self.model));
        let readers = linear.iter().filter(|o| group.consumers.iter().any(|c| c.node == o.node));
        let axis = |operator: &Operator| match operator.kind {
            OperatorKind::Conv { .. } => 1,
            OperatorKind::ConvTranspose { .. } | OperatorKind::MatMul => 0,
            OperatorKind::Gemm { trans_b } => usize::from(trans_b),
        };
        readers.map(|operator| (operator.weight.clone(), axis(operator))).collect()
    }

    /// The model in which the readers of a group hear channel `twin` for channel `gone` as well.
    pub fn folded(&self, group: &Group, gone: usize, twin: usize) -> Model {
        let graph = Graph::new(&self.model);
        let linear = operators(&graph);
        let mut patch = Patch::default();
        for reader in &group.consumers {
            let operator = linear.iter().find(|o| o.node == reader.node).unwrap();
            if patch.constants.contains_key(&operator.weight) {
                continue;
            }
            let taps = operator.taps();
            let mut matrix = operator.matrix(&graph).unwrap();
            for row in matrix.data.chunks_mut(matrix.cols) {
                for (a, b) in reader.inputs[gone].iter().zip(&reader.inputs[twin]) {
                    for tap in 0..taps {
                        row[*b as usize * taps + tap] += row[*a as usize * taps + tap];
                    }
                }
            }
            let made = operator.weight_tensor(&graph, &matrix).unwrap();
            patch.constants.insert(operator.weight.clone(), made);
        }
        patch.apply(&self.model).unwrap()
    }

    /// Normalisations along the channels of a group.
    pub fn norms_of(&self, group: &Group) -> Vec<Norm> {
        let along = |norm: &Norm| {
            let last = self.shapes.get(&norm.output).map(|found| found.shape.len() - 1);
            group.places.iter().any(|p| p.value == norm.output && Some(p.axis) == last)
        };
        norms(&Graph::new(&self.model)).into_iter().filter(along).collect()
    }

    /// Lets every normalisation see the channels of `cut` where it does not see them: as zero, or as the mean of
    /// the others where it takes the mean off.
    fn blinded(&self, cut: &Cut, patch: &mut Patch) {
        let graph = Graph::new(&self.model);
        let gone = gone(&self.coupling, cut).unwrap();
        for norm in norms(&graph) {
            let Some(found) = self.shapes.get(&norm.output) else { continue };
            let last = found.shape.len() - 1;
            let Some(gone) = gone.get(&(norm.output.clone(), last)) else { continue };
            let width = found.shape[last].unwrap();
            let share = 1.0 / (width - gone.len()) as f32;
            let matrix = |from: usize, to: usize| match (gone.contains(&from), gone.contains(&to)) {
                (true, _) => 0.0,
                (false, true) if norm.centred => share,
                (false, _) => f32::from(u8::from(from == to)),
            };
            let values: Vec<f32> =
                (0..width * width).map(|at| matrix(at / width, at % width)).collect();
            let bytes = blochd::onnx::values::float_bytes(found.dtype, &values).unwrap();
            let name = format!("{}.seen", norm.output);
            let seen = tensor(&name, found.dtype, &[width; 2], bytes);
            // What remains is the same for everybody, and nobody else hears what changes.
            for term in norm.terms.iter().filter(|term| graph.weight(term).is_none()) {
                let made = format!("{term}.seen");
                if patch.insert.iter().any(|(_, node)| node.output[0] == made) {
                    continue;
                }
                let mut first = usize::MAX;
                for used in graph.uses(term) {
                    let Use::Input { node, input } = used else { panic!("{term} {used:?}") };
                    patch.inputs.insert((*node, *input), made.clone());
                    first = first.min(*node);
                }
                // ONNX Runtime refuses constants that nobody reads: some norms add up constants alone.
                patch.constants.insert(name.clone(), seen.clone());
                let product = NodeProto {
                    op_type: Some("MatMul".to_owned()),
                    input: vec![term.clone(), name.clone()],
                    output: vec![made],
                    ..Default::default()
                };
                patch.insert.push((first, product));
            }
            // What the node adds itself.
            let (node, op) = (norm.scale_at.0, graph.op(norm.scale_at.0));
            let added = match op.as_str() {
                "com.microsoft.SkipLayerNormalization" => 4..5,
                "com.microsoft.SkipSimplifiedLayerNormalization" => 3..4,
                "com.microsoft.EmbedLayerNormalization" => 2..5,
                _ => 0..0,
            };
            for input in added {
                let Some(value) = graph.input(node, input) else { continue };
                let (dims, old) = (graph.weight_dims(value).unwrap(), graph.floats(value).unwrap());
                let seen: Vec<f32> = old
                    .chunks(width)
                    .flat_map(|row| {
                        let column = |to| (0..width).map(|from| row[from] * matrix(from, to)).sum();
                        (0..width).map(column).collect::<Vec<f32>>()
                    })
                    .collect();
                let dtype = graph.weight_dtype(value).unwrap();
                let bytes = blochd::onnx::values::float_bytes(dtype, &seen).unwrap();
                let name = format!("{}.input{input}.seen", norm.output);
                patch.constants.insert(name.clone(), tensor(&name, dtype, &dims, bytes));
                patch.inputs.insert((node, input), name);
            }
        }
    }

    /// The dense model in which nobody hears the channels of `cut`: the readers' weights for them are
    /// zero, and normalisations do not see them. What a cut model computes must be the same.
    pub fn silenced(&self, cut: &Cut) -> Model {
        let graph = Graph::new(&self.model);
        let linear = operators(&graph);
        let mut changed: BTreeMap<usize, (&Operator, Matrix)> = BTreeMap::new();
        for (id, removed) in &cut.removed {
            let group = &self.coupling.groups[id.0];
            for reader in &group.consumers {
                let operator = linear.iter().find(|o| o.node == reader.node).unwrap();
                let (_, matrix) = changed
                    .entry(reader.node)
                    .or_insert_with(|| (operator, operator.matrix(&graph).unwrap()));
                for input in removed.iter().flat_map(|channel| &reader.inputs[*channel]) {
                    let taps = operator.taps();
                    let columns = *input as usize * taps..(*input as usize + 1) * taps;
                    for row in matrix.data.chunks_mut(matrix.cols) {
                        row[columns.clone()].fill(0.0);
                    }
                }
            }
        }
        let mut patch = Patch::default();
        self.blinded(cut, &mut patch);
        for (operator, matrix) in changed.into_values() {
            let made = operator.weight_tensor(&graph, &matrix).unwrap();
            let before = patch.constants.insert(operator.weight.clone(), made);
            // A weight that two nodes share was silenced for both alike: the channels are the same.
            assert!(before.is_none() || graph.uses(&operator.weight).len() > 1);
        }
        patch.apply(&self.model).unwrap()
    }
}

/// The graph as text, for the message of a failure.
pub fn listing(model: &Model) -> String {
    let graph = Graph::new(model);
    let line = |id: usize| {
        let node = graph.node(id);
        let dims = |name: &String| match graph.weight_dims(name) {
            Some(dims) => format!("{name}{dims:?}"),
            None => name.clone(),
        };
        let inputs: Vec<String> = node.input.iter().map(dims).collect();
        format!("{id} {} ({}) -> {}", graph.op(id), inputs.join(", "), node.output.join(", "))
    };
    (0..graph.nodes().len()).map(line).collect::<Vec<_>>().join("\n")
}

/// Largest difference, relative to the largest value.
pub fn difference(a: &[Tensor], b: &[Tensor]) -> f32 {
    assert_eq!(a.len(), b.len());
    let one = |(a, b): (&Tensor, &Tensor)| {
        assert_eq!((a.dtype, &a.shape), (b.dtype, &b.shape), "an output changed its type or shape");
        let (Some(x), Some(y)) = (a.to_f32(), b.to_f32()) else {
            return if a == b { 0.0 } else { f32::INFINITY };
        };
        let scale = x.iter().chain(&y).fold(1e-3f32, |most, value| most.max(value.abs()));
        x.iter().zip(&y).fold(0f32, |most, (x, y)| most.max((x - y).abs() / scale))
    };
    a.iter().zip(b).map(one).fold(0.0, f32::max)
}

/// Cut and silenced dense model must agree, and a second cut of the same model must be the same bytes.
pub fn check_cut(subject: &Subject, cut: &Cut, tolerance: f32) -> f32 {
    let model = subject.apply(cut);
    let graph = Graph::new(&model);
    let before = Graph::new(&subject.model);
    assert_eq!(graph.nodes().len(), before.nodes().len(), "a node came or went");
    for id in 0..graph.nodes().len() {
        assert_eq!(graph.label(id), before.label(id));
        assert_eq!(graph.node(id).output, before.node(id).output);
    }
    let again = subject.apply(cut);
    assert!(model.encode_inline().unwrap() == again.encode_inline().unwrap(), "not deterministic");
    let error = difference(&subject.run(&model), &subject.run(&subject.silenced(cut)));
    assert!(
        error < tolerance,
        "the cut model differs by {error} from the silenced one\n{cut:?}\n{}\n{:#?}",
        listing(&subject.model),
        subject.coupling.groups
    );
    error
}
