//! From classes of atoms to groups.

use std::collections::{BTreeMap, BTreeSet};

use super::atoms::{Atoms, Axis};
use super::norms::{Norm, norms};
use super::rules::relate;
use super::types::{Consumer, Coupling, Frozen, Group, GroupId, Neutral, Place, Producer, Reason};
use crate::onnx::{Graph, NodeId, Operator, OperatorKind, Shapes, operators};

/// The places of one class: (number of the axis) → indices.
type Members = BTreeMap<usize, Vec<u32>>;

/// Finds the coupled groups of a model. `shapes` are those of one request, every axis known if possible.
pub fn couple(graph: &Graph, shapes: &Shapes) -> Coupling {
    let mut atoms = Atoms::new(graph, shapes);
    let norms = dividing(graph, &atoms);
    relate(graph, shapes, &norms, &mut atoms);
    let linear = operators(graph);
    let (opened, mut frozen) = opened(graph, &linear, &mut atoms);
    let axes: Vec<(String, usize)> =
        atoms.all().map(|(value, axis, _)| (value.to_owned(), axis)).collect();
    let mut members: BTreeMap<u32, Members> = BTreeMap::new();
    for (number, (value, axis)) in axes.iter().enumerate() {
        let Some(axis) = atoms.axis(value, *axis) else { continue };
        for index in 0..axis.length as u32 {
            let root = atoms.root(axis.first + index);
            if opened.contains(&root) {
                members.entry(root).or_default().entry(number).or_default().push(index);
            }
        }
    }
    let mut alike: BTreeMap<Vec<(usize, usize)>, Vec<Members>> = BTreeMap::new();
    for class in members.into_values() {
        let signature = class.iter().map(|(axis, indices)| (*axis, indices.len())).collect();
        alike.entry(signature).or_default().push(class);
    }
    let mut groups: Vec<Group> =
        alike.into_values().filter_map(|classes| group(graph, &linear, &axes, classes)).collect();
    let first = |group: &Group| group.producers.iter().map(|producer| producer.node).min();
    groups.sort_by_key(|group| (first(group), group.places.first().map(|p| p.index.clone())));
    let (groups, tied): (Vec<Group>, Vec<Group>) =
        groups.into_iter().partition(|group| group.width > 1);
    frozen.extend(tied.into_iter().flat_map(|group| {
        group.producers.into_iter().map(|producer| Frozen {
            what: graph.label(producer.node),
            width: producer.outputs.iter().map(Vec::len).sum(),
            because: Reason::Indivisible,
        })
    }));
    let groups = numbered(groups).into_iter().map(|mut group| {
        if norms.iter().any(|norm| norm.centred && normalises(norm, &atoms, &group)) {
            group.neutral = Neutral::Mean;
        }
        group
    });
    let groups = groups.collect();
    Coupling { groups, frozen }
}

/// The normalisations that may lose channels.
fn dividing(graph: &Graph, atoms: &Atoms) -> Vec<Norm> {
    let divides = |norm: &Norm| {
        let rank = atoms.rank(&norm.output).unwrap_or(0);
        let last = rank.checked_sub(1).and_then(|last| atoms.axis(&norm.output, last));
        last.is_some_and(|axis| norm.divides(graph, rank, axis.length))
    };
    norms(graph).into_iter().filter(divides).collect()
}

/// Whether the channels of a group are among those that a normalisation works along.
fn normalises(norm: &Norm, atoms: &Atoms, group: &Group) -> bool {
    let last = atoms.rank(&norm.output).and_then(|rank| rank.checked_sub(1));
    group.places.iter().any(|place| place.value == norm.output && Some(place.axis) == last)
}

/// Gives every group its number, and a name of its own.
fn numbered(groups: Vec<Group>) -> Vec<Group> {
    let mut begun: BTreeMap<String, usize> = BTreeMap::new();
    let named = groups.into_iter().enumerate().map(|(number, mut group)| {
        let turn = begun.entry(group.name.clone()).or_default();
        *turn += 1;
        if *turn > 1 {
            group.name = format!("{}#{turn}", group.name);
        }
        group.id = GroupId(number);
        group
    });
    named.collect()
}

/// The classes that an operator writes and nothing freezes, and what is frozen of each operator.
fn opened(graph: &Graph, linear: &[Operator], atoms: &mut Atoms) -> (BTreeSet<u32>, Vec<Frozen>) {
    let mut opened = BTreeSet::new();
    let mut frozen = Vec::new();
    for operator in linear.iter().filter(|operator| !operator.is_depthwise()) {
        let value = graph.node(operator.node).output.first().map_or("", String::as_str);
        let axis = match operator.kind {
            OperatorKind::Conv { .. } | OperatorKind::ConvTranspose { .. } => 1,
            OperatorKind::Gemm { .. } | OperatorKind::MatMul => {
                atoms.rank(value).unwrap_or(0).saturating_sub(1)
            }
        };
        open(graph, operator.node, atoms.axis(value, axis), atoms, &mut opened, &mut frozen);
    }
    for (node, output) in attentions(graph) {
        open(graph, node, atoms.axis(output, 2), atoms, &mut opened, &mut frozen);
    }
    (opened, frozen)
}

/// The nodes that project and attend in one, with their outputs (batch, tokens, all heads).
fn attentions<'g>(graph: &'g Graph) -> impl Iterator<Item = (NodeId, &'g str)> {
    let fused = (0..graph.nodes().len()).filter(|id| graph.op(*id) == "com.microsoft.Attention");
    fused.filter_map(|id| Some((id, graph.node(id).output.first()?.as_str())))
}

/// Opens the classes of one operator's outputs.
fn open(
    graph: &Graph,
    node: NodeId,
    axis: Option<Axis>,
    atoms: &mut Atoms,
    opened: &mut BTreeSet<u32>,
    frozen: &mut Vec<Frozen>,
) {
    let Some(axis) = axis else { return };
    let mut because: BTreeMap<Reason, usize> = BTreeMap::new();
    for index in 0..axis.length as u32 {
        let root = atoms.root(axis.first + index);
        match atoms.frozen(root) {
            Some(reason) => *because.entry(reason.clone()).or_default() += 1,
            None => drop(opened.insert(root)),
        }
    }
    let what = graph.label(node);
    frozen.extend(because.into_iter().map(|(because, width)| Frozen {
        what: what.clone(),
        width,
        because,
    }));
}

fn group(
    graph: &Graph,
    linear: &[Operator],
    axes: &[(String, usize)],
    mut classes: Vec<Members>,
) -> Option<Group> {
    // In the order of their first index in the first axis that they share.
    classes.sort_by(|a, b| a.values().cmp(b.values()));
    let places: Vec<Place> = classes
        .first()?
        .keys()
        .map(|number| {
            let (value, axis) = axes[*number].clone();
            let constant = graph.weight(&value).is_some();
            let index = classes.iter().map(|class| class[number].clone()).collect();
            Place { value, constant, axis, index }
        })
        .collect();
    let on = |value: &str, axis: usize| {
        places.iter().find(|place| place.value == value && place.axis == axis)
    };
    let mut producers = Vec::new();
    let mut consumers = Vec::new();
    let mut through = Vec::new();
    for operator in linear {
        let (input_axis, output_axis) = match operator.kind {
            OperatorKind::Conv { .. } => (1, 0),
            OperatorKind::ConvTranspose { .. } => (0, 1),
            OperatorKind::Gemm { trans_b } => (usize::from(trans_b), usize::from(!trans_b)),
            OperatorKind::MatMul => (0, 1),
        };
        if operator.group() > 1 {
            let value = graph.node(operator.node).output.first().map_or("", String::as_str);
            if let Some(place) = on(value, 1) {
                through.push(operator.node);
                if !operator.is_depthwise() {
                    producers.push(Producer { node: operator.node, outputs: place.index.clone() });
                }
            }
            continue;
        }
        if let Some(place) = on(&operator.weight, output_axis) {
            producers.push(Producer { node: operator.node, outputs: place.index.clone() });
        }
        if let Some(place) = on(&operator.weight, input_axis) {
            consumers.push(Consumer { node: operator.node, inputs: place.index.clone() });
        }
    }
    let fused = attentions(graph).filter_map(|(node, output)| Some((node, on(output, 2)?)));
    producers.extend(fused.map(|(node, place)| Producer { node, outputs: place.index.clone() }));
    let name = graph.label(producers.first()?.node);
    let stream = places.iter().any(|place| is_sum(graph, &place.value));
    let (id, width) = (GroupId(0), classes.len());
    let neutral = Neutral::Zero;
    Some(Group { id, name, width, places, producers, consumers, through, stream, neutral })
}

/// Whether the value is the sum of two computed values.
fn is_sum(graph: &Graph, value: &str) -> bool {
    graph.producer(value).is_some_and(|node| {
        let terms = match graph.op(node).as_str() {
            "Add" => graph.node(node).input.as_slice(),
            "com.microsoft.SkipLayerNormalization"
            | "com.microsoft.SkipSimplifiedLayerNormalization" => {
                graph.node(node).input.get(..2).unwrap_or_default()
            }
            _ => return false,
        };
        terms.iter().all(|input| !is_constant(graph, input))
    })
}

/// Whether a value is a constant, or one reshaped or cast before its use.
fn is_constant(graph: &Graph, value: &str) -> bool {
    let reshaped = |node: NodeId| {
        let op = graph.op(node);
        matches!(
            op.as_str(),
            "Reshape" | "Cast" | "Identity" | "Unsqueeze" | "Squeeze" | "Transpose"
        ) && graph.input(node, 0).is_some_and(|input| graph.weight(input).is_some())
    };
    graph.weight(value).is_some() || graph.producer(value).is_some_and(reshaped)
}
